"""The record of a running stack, `stack.json`, with which another command finds and stops it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dev.stack import processes
from dev.stack.environment import Addresses
from dev.stack.paths import StackPaths, read_json, write_json
from dev.stack.processes import ProcessRecord
from dev.stack.s3_servers import RCLONE

S3 = "s3"
API_SERVER = "api-server"
POSTGRES = "postgres"
REDIS = "redis"
# Stopped in this order, after all other processes.
_SERVERS = ((API_SERVER,), (S3, POSTGRES, REDIS))
# Idle processes end within two seconds. Tasks ignore SIGTERM, and waiting for them would take too long.
_AIRFLOW_GRACE_SECONDS = 5.0
_SERVER_GRACE_SECONDS = 6.0


@dataclass(frozen=True)
class StackRecord:
    """The addresses and processes of a stack, and the name of its S3 server."""

    addresses: Addresses
    processes: tuple[ProcessRecord, ...]
    s3: str = RCLONE

    def dead(self) -> list[ProcessRecord]:
        """Return the processes that have ended."""
        return [record for record in self.processes if processes.find(record) is None]


def write_record(paths: StackPaths, record: StackRecord) -> None:
    """Write the record of the running stack."""
    write_json(paths.stack, asdict(record))


def read_record(paths: StackPaths) -> StackRecord | None:
    """Return the record of the stack that was started and not stopped below this directory, or None."""
    content = read_json(paths.stack)
    if content is None:
        return None
    return StackRecord(
        addresses=Addresses(**content["addresses"]),
        processes=tuple(ProcessRecord(**entry) for entry in content["processes"]),
        # Records of earlier versions do not name the server: it was always rclone.
        s3=content.get("s3", RCLONE),
    )


def stop_recorded(paths: StackPaths, record: StackRecord) -> int:
    """Stop a stack that another command started, and return the number of its processes."""
    with processes.signals_deferred():
        count = stop_in_order(record.processes)
        paths.stack.unlink(missing_ok=True)
    return count


def stop_in_order(records: Sequence[ProcessRecord]) -> int:
    """Stop the processes, servers last so that no log is full of refused connections; return their number."""
    servers = {name for group in _SERVERS for name in group}
    count = processes.stop([r for r in records if r.name not in servers], _AIRFLOW_GRACE_SECONDS)
    for group in _SERVERS:
        count += processes.stop([r for r in records if r.name in group], _SERVER_GRACE_SECONDS)
    return count
