"""The steps that `make fleet-test` runs on a fleet, and what they observe for the tests."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import yaml

from dev.made_logs.log_files import MadeHour, last_complete_hours, write_hour
from dev.stack.airflow_api import ApiUnavailableError, TaskInstance
from dev.stack.paths import BUCKET
from dev.stack.processes import ProcessRecord
from tests.fleet.stack import TRIGGERER, FleetStack
from tests.support.observe import PortWatch, Sample, Watch, with_descendants
from tests.support.raw_hours import hour_prefix

OBJECTS = 50
CATCHUP_HOURS = 6
BACKFILL_HOURS = 2
SCALING_HOURS = 2
PART_SIZE = 5 * 1024 * 1024
MAX_CONNECTIONS = 10
POOL = "s3_connections"
POOL_SLOTS = 40
HALVED_SLOTS = 20
MAIN = "log_rollup_app"
SCALING = ("log_rollup_one", "log_rollup_two")
PATIENCE_SECONDS = 200.0
# The module that writes `_SUCCESS`, and what the new version has at its end: it indents by three spaces.
RECORDS = Path("include/log_rollup/hour/records.py")
NEW_LAYOUT = """

_to_bytes = CompletionMarker.to_bytes
CompletionMarker.to_bytes = lambda self: _to_bytes(self).replace(b"\\n ", b"\\n   ")
"""
_ENDED = ("success", "failed")


@dataclass(frozen=True)
class Work:
    """The cost of the same work with a number of workers; CPU time is that of all processes of the fleet."""

    workers: int
    hours: int
    objects: int
    bytes: int
    tasks: int
    seconds: float
    cpu_seconds: float


@dataclass
class Scenario:
    """The fleet, its raw hours, and the observations."""

    stack: FleetStack
    say: Callable[[str], None]
    now: datetime
    made: dict[str, list[MadeHour]] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    sockets: tuple[tuple[float, int], ...] = ()
    samples: tuple[Sample, ...] = ()
    triggerer: frozenset[int] = frozenset()
    halved_at: float = 0.0
    followed_at: float = 0.0
    killed_at: float = 0.0
    killed: str = ""
    upgraded_at: float = 0.0
    new_version: Path | None = None
    sockets_of_killed: int = 0
    states: dict[datetime, str] = field(default_factory=dict)
    shards: list[TaskInstance] = field(default_factory=list)

    def prepare(self) -> None:
        """Make the raw hours and the streams file; call it before the S3 server starts, which caches folders."""
        streams: list[dict[str, Any]] = []
        for name, hours, scheduled in (
            ("app", CATCHUP_HOURS + BACKFILL_HOURS, CATCHUP_HOURS),
            ("one", SCALING_HOURS, SCALING_HOURS),
            ("two", SCALING_HOURS, SCALING_HOURS),
        ):
            bucket = self.stack.paths.bucket
            self.made[name] = [
                # The same seed, so that "one" and "two" are the same work.
                write_hour(bucket / hour_prefix(f"raw/{name}/", hour), hour, OBJECTS, seed=5)
                for hour in last_complete_hours(hours, self.now)
            ]
            streams.append(
                {
                    "name": name,
                    "raw": f"s3://{BUCKET}/raw/{name}/",
                    "aggregated": f"s3://{BUCKET}/aggregated/{name}/",
                    "start": self.made[name][-scheduled].hour,
                }
            )
        settings = {
            "quiet_period": "1s", "part_size": PART_SIZE, "shard_size": "15MiB",
            "max_connections": MAX_CONNECTIONS, "max_active_runs": CATCHUP_HOURS + BACKFILL_HOURS,
        }  # fmt: skip
        self.stack.paths.streams.write_text(yaml.safe_dump({"defaults": settings, "streams": streams}))

    def scale(self) -> None:
        """Roll up the same hours with one worker and then with two, without the bandwidth limit."""
        self.stack.toggle_bandwidth_limit()
        for dag_id, made in zip(SCALING, (self.made["one"], self.made["two"]), strict=True):
            if self.work:
                self.stack.start_worker()
            self.wait_for(f"the Dag {dag_id}", partial(self.stack.api.dag_is_known, dag_id))
            cpu_before, began = self.stack.cpu_seconds(), time.monotonic()
            self._unpause(dag_id)
            self.wait_for(f"the end of {dag_id}", partial(self._all_ended, dag_id, made))
            tasks = self.stack.api.request("GET", f"/dags/{dag_id}/dagRuns/~/taskInstances")["total_entries"]
            self.work.append(
                Work(
                    workers=len(self.stack.workers()),
                    hours=len(made),
                    objects=sum(one.objects for one in made),
                    bytes=sum(one.bytes for one in made),
                    tasks=tasks,
                    seconds=time.monotonic() - began,
                    cpu_seconds=self.stack.cpu_seconds() - cpu_before,
                )
            )
            self.say(f"{self.work[-1].workers} worker(s): {self.work[-1].seconds:.1f} s")

    def hold_the_cap(self) -> None:
        """Run a catchup and a backfill; meanwhile halve the pool, kill a worker and replace the workers."""
        triggerer = next(one.pid for one in self.stack.records if one.name == TRIGGERER)
        self.triggerer = frozenset(with_descendants(triggerer)())
        port = self.stack.addresses.s3_port
        self._resize_pool(POOL_SLOTS)
        self.stack.toggle_bandwidth_limit()
        with (
            PortWatch([port], interval_seconds=0.05) as sockets,
            # Finds the process of each connection, which costs more CPU time.
            Watch(self.stack.pids, [port], interval_seconds=0.4) as watch,
        ):
            self._unpause(MAIN)
            self._backfill()
            self.say(f"{CATCHUP_HOURS} hours and a backfill of {BACKFILL_HOURS} hours are running")
            self.wait_for("a full pool and some finished shards", lambda: self._busy(3, POOL_SLOTS))
            self._resize_pool(HALVED_SLOTS)
            self.halved_at = sockets.now()
            self.say(f"the pool is halved to {HALVED_SLOTS}")
            self.wait_for("the pool within its new size", lambda: self._occupied() <= HALVED_SLOTS)
            self.followed_at = sockets.now()
            busy = self.wait_for("a busy worker", lambda: self._worker_with_sockets(watch))
            record, self.sockets_of_killed = busy
            self.stack.kill_worker(record)
            self.killed_at, self.killed = sockets.now(), record.name
            self.say(f"{record.name} is killed, with {self.sockets_of_killed} sockets open")
            self._replace_workers(sockets)
            made = self.made["app"]
            self.wait_for("the end of all hours", partial(self._all_ended, MAIN, made))
        self.sockets, self.samples = sockets.samples, watch.samples
        self.states = self._ended(MAIN, made)
        self.shards = [
            task
            for run in self.stack.api.dag_runs(MAIN)
            for task in self.stack.api.task_instances(MAIN, run.run_id)
            if task.task_id == "pack_shard"
        ]

    def _replace_workers(self, sockets: PortWatch) -> None:
        """Deploy a new version of the code during the backfill."""
        old_workers = self.stack.workers()
        self.stack.start_worker(self.new_version)
        for record in old_workers:
            self.stack.retire_worker(record, grace_seconds=60)
        self.upgraded_at = sockets.now()
        self.say("the workers are replaced by one of a new version of the code")

    def make_new_version(self, folder: Path) -> None:
        """Copy the project, with a change that shows in `_SUCCESS` which version completed an hour."""
        for name in ("dags", "plugins", "include"):
            copytree(self.stack.project / name, folder / name, ignore=ignore_patterns("__pycache__"))
        records = folder / RECORDS
        records.write_text(records.read_text() + NEW_LAYOUT)
        self.new_version = folder

    def wait_for(self, what: str, probe: Callable[[], Any]) -> Any:
        """Call `probe` until its result is true, and return the result; the fleet must stay up meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.stack.check()
            try:
                if answer := probe():
                    return answer
            except ApiUnavailableError:
                # Busy for a moment; the next check raises if it has ended.
                pass
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")

    def _ended(self, dag_id: str, made: list[MadeHour]) -> dict[datetime, str]:
        wanted = {one.hour for one in made}
        runs = self.stack.api.dag_runs(dag_id)
        return {run.hour: run.state for run in runs if run.hour in wanted and run.state in _ENDED}

    def _all_ended(self, dag_id: str, made: list[MadeHour]) -> bool:
        return len(self._ended(dag_id, made)) == len(made)

    def _unpause(self, dag_id: str) -> None:
        self.stack.api.request("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def _backfill(self) -> None:
        hours = [one.hour for one in self.made["app"][:BACKFILL_HOURS]]
        self.stack.api.request(
            "POST", "/backfills",
            json={
                "dag_id": MAIN, "from_date": hours[0].isoformat(),
                # The last hour's own logical date is included, that of the next hour is not.
                "to_date": (hours[-1] + timedelta(minutes=1)).isoformat(),
            },
        )  # fmt: skip

    def _resize_pool(self, slots: int) -> None:
        pool = self.stack.api.request("GET", f"/pools/{POOL}")
        kept = {name: pool[name] for name in ("name", "description", "include_deferred")}
        self.stack.api.request("PATCH", f"/pools/{POOL}", json={**kept, "slots": slots})

    def _occupied(self) -> int:
        return int(self.stack.api.request("GET", f"/pools/{POOL}")["occupied_slots"])

    def _busy(self, done: int, slots: int) -> bool:
        answer = self.stack.api.request(
            "GET",
            f"/dags/{MAIN}/dagRuns/~/taskInstances",
            params={"task_id": "pack_shard", "state": "success"},
        )
        return answer["total_entries"] >= done and self._occupied() > slots - MAX_CONNECTIONS

    def _worker_with_sockets(self, watch: Watch) -> tuple[ProcessRecord, int] | None:
        latest = watch.samples[-1]
        for record in self.stack.workers():
            members = set(with_descendants(record.pid)())
            sockets = sum(process.sockets for process in latest.processes if process.pid in members)
            if sockets > 2:
                return record, sockets
        return None
