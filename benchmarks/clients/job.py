"""The job of a measured Python program, and the clock with which it measures itself without its imports."""

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a program and the file for its figures.

    :param ca: certificate file of the server's authority; empty for plain HTTP
    :param raw_prefix: prefix of the hour's raw objects
    :param out_prefix: prefix of the parts
    :param result: file for the figures
    :param options: options of single programs
    """

    endpoint: str
    ca: str
    access_key: str
    secret_key: str
    region: str
    bucket: str
    raw_prefix: str
    out_prefix: str
    part_bytes: int
    connections: int
    result: str
    options: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the job to a file, whose path is the only argument of the program."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def from_arguments(cls) -> Self:
        """Read the job of this process."""
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    def finish(self, clock: "Clock | None" = None, **results: Any) -> None:
        """Write the figures of the clock, the peak memory and further results."""
        measured = {} if clock is None else {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
        memory = {"peak_rss_bytes": peak_rss_bytes()}
        Path(self.result).write_text(json.dumps({**measured, **memory, **results}), encoding="utf-8")


class Clock:
    """Measures wall time and CPU time of a ``with`` block, children included."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._cpu = _cpu_seconds()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began
        self.cpu_seconds = _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process, imports included.

    Not ru_maxrss, which a process inherits from its parent (getrusage(2), execve(2)).
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
