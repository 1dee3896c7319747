"""Runs single steps of the pipeline, each as a process, against a synthetic S3 server."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers
from benchmarks.clients.job import Job
from benchmarks.measure import Limits, Observed, run
from benchmarks.settings import PROJECT
from benchmarks.synthetic import ServerSettings
from dev.servers import S3Server

BUCKET = "bench"
STREAM_PREFIX = "raw/app/"
HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
RAW_PREFIX = f"{STREAM_PREFIX}{HOUR:%Y%m%d/%H}/"
MEMORY_SHARE = 0.7
TIMEOUT_SECONDS = 1800
LOG_TAIL_LINES = 5


class StepError(Exception):
    """A step failed; the message shows the end of its output."""


class SyntheticServer(S3Server):
    """:mod:`benchmarks.synthetic` as a process."""

    def __init__(
        self,
        folder: Path,
        objects: int,
        sizes: Sequence[int],
        delay_seconds: float,
        only_lists: bool = False,
        encoding: str = "",
        prefix: str = RAW_PREFIX,
        groups: int = 0,
        day: bool = False,
    ) -> None:
        super().__init__(folder)
        self._settings = ServerSettings(
            0, BUCKET, prefix, objects, tuple(sizes), delay_seconds, only_lists, encoding, groups, day
        )

    def command(self) -> list[str]:
        """See :meth:`dev.servers.S3Server.command`."""
        return replace(self._settings, port=self.port).command()

    def environment(self) -> dict[str, str]:
        """See :meth:`dev.servers.S3Server.environment`."""
        return super().environment() | {"PYTHONPATH": str(PROJECT)}


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures that a step reports, and those observed from outside."""

    own: Mapping[str, Any]
    observed: Observed

    @property
    def peak_rss_mib(self) -> float:
        """Peak memory, imports included."""
        return max(int(self.own["peak_rss_bytes"]), self.observed.peak_rss_bytes) / 1024**2


def step(
    name: str, server: S3Server, folder: Path, part_bytes: int, connections: int, **options: Any
) -> StepResult:
    """Run ``plan``, ``pack``, ``validate`` or ``complete``.

    :raises StepError: if it fails
    """
    with scratch(folder) as place:
        prefix = out_prefix(connections)
        job = Job(
            endpoint=server.endpoint_url, ca="", access_key=server.access_key, secret_key=server.secret_key,
            region=server.region, bucket=BUCKET, raw_prefix=RAW_PREFIX, out_prefix=prefix,
            part_bytes=part_bytes, connections=connections, result=str(place / "result.json"),
            options={
                "hour": HOUR.isoformat(), "stream_prefix": STREAM_PREFIX, "step": name,
                "out_prefixes": [prefix], **options,
            },
        )  # fmt: skip
        job.write(place / "job.json")
        limits = Limits(int(psutil.virtual_memory().available * MEMORY_SHARE), TIMEOUT_SECONDS)
        command = [sys.executable, "-m", "benchmarks.clients.rollup_steps"]
        log = place / "log"
        observed = run(
            [*command, str(place / "job.json")],
            peers.environment(server, place),
            PROJECT,
            server.port,
            log,
            limits,
        )
        if observed.exit_code != 0:
            output = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
            raise StepError(
                f"{name}: {observed.stopped or f'exit code {observed.exit_code}'}: {' | '.join(output)}"
            )
        return StepResult(peers.figures(Path(job.result)), observed)


def out_prefix(connections: int) -> str:
    """Return the prefix of the parts that a step with this number of connections writes."""
    return f"out/{connections}/"


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """Yield a temporary directory."""
    folder = Path(tempfile.mkdtemp(prefix="log-rollup-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
