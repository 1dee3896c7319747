"""Our own steps, each as a process of its own, against a server that is not the comparison's."""

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
from benchmarks.clients.clock import Job
from benchmarks.measure import Limits, Observed, run
from benchmarks.settings import PROJECT
from benchmarks.synthetic import Made
from dev.servers import S3Server

BUCKET = "bench"
STREAM_PREFIX = "raw/app/"
HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
RAW_PREFIX = f"{STREAM_PREFIX}{HOUR:%Y%m%d/%H}/"
MEMORY_SHARE = 0.7
LONGEST_SECONDS = 1800
LOG_TAIL_LINES = 5


class StepError(Exception):
    """A step failed; the message has the end of what it said."""


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
    ) -> None:
        super().__init__(folder)
        self._made = Made(0, BUCKET, RAW_PREFIX, objects, tuple(sizes), delay_seconds, only_lists, encoding)

    def command(self) -> list[str]:
        """See :meth:`dev.servers.S3Server.command`."""
        return replace(self._made, port=self.port).arguments()

    def environment(self) -> dict[str, str]:
        """See :meth:`dev.servers.S3Server.environment`."""
        return super().environment() | {"PYTHONPATH": str(PROJECT)}


@dataclass(frozen=True, slots=True)
class Done:
    """A step's own figures, and what was seen from outside."""

    own: Mapping[str, Any]
    seen: Observed

    @property
    def peak_rss_mib(self) -> float:
        """The most memory that it had, its imports included."""
        return max(int(self.own["peak_rss_bytes"]), self.seen.peak_rss_bytes) / 1024**2


def step(
    name: str, server: S3Server, folder: Path, part_bytes: int, connections: int, **options: Any
) -> Done:
    """Run ``plan``, ``pack``, ``validate`` or ``complete`` to its end.

    :raises StepError: if it fails
    """
    with scratch(folder) as place:
        prefix = f"out/{connections}/"
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
        limits = Limits(int(psutil.virtual_memory().available * MEMORY_SHARE), LONGEST_SECONDS)
        command = [sys.executable, "-m", "benchmarks.clients.ours"]
        log = place / "log"
        seen = run(
            [*command, str(place / "job.json")],
            peers.environment(server, place),
            PROJECT,
            server.port,
            log,
            limits,
        )
        if seen.exit_code != 0:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
            raise StepError(f"{name}: {seen.stopped or f'exit code {seen.exit_code}'}: {' | '.join(said)}")
        return Done(peers.figures(Path(job.result)), seen)


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="log-rollup-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
