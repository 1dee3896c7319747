"""Open files, sockets and memory of this process: compared with limits before packing, logged during it."""

import logging
import os
import resource
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from include.log_rollup.errors import ResourceLimitError
from include.log_rollup.units import format_size

# Files that a task may open in addition to its connections: event loop, DNS, log and heartbeat channels, modules
# that are imported late. Airflow's own 17 to 29 files are open already when the limit is compared.
OTHER_FILES = 24

SAMPLE_SECONDS = 0.25
LOG_SECONDS = 5.0


def open_files() -> int:
    """How many file descriptors this process has open."""
    return psutil.Process().num_fds()


def sockets_to(ports: Collection[int]) -> int:
    """How many TCP connections to one of these ports this process has.

    The system's table of connections, which psutil reads, covers the whole machine and includes connections that
    were closed a minute ago, so this asks each socket of the process instead.
    """
    return sum(1 for file in Path("/dev/fd").iterdir() if _peer_port(int(file.name)) in ports)


def _peer_port(file: int) -> int | None:
    # Another thread may close the descriptor meanwhile, and open another file with its number.
    with suppress(OSError):
        connection = socket.socket(fileno=file)
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                port: int = connection.getpeername()[1]
                return port
        finally:
            # Without this, the garbage collector would close the descriptor.
            connection.detach()
    return None


def check_open_file_limit(max_connections: int) -> None:
    """Check that the open-file limit allows this many connections, before a task opens the first.

    :raises ResourceLimitError: if it does not; the message has the numbers and the fix
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    already_open = open_files()
    needed = already_open + max_connections + OTHER_FILES
    if limit != resource.RLIM_INFINITY and needed > limit:
        most = limit - already_open - OTHER_FILES
        lower = f"max_connections of the stream to {most} or less" if most >= 4 else "nothing: it is too low"
        raise ResourceLimitError(
            f"the open-file limit of this process is {limit}, but the task may need {needed}: {already_open} are "
            f"open, max_connections is {max_connections}, and {OTHER_FILES} are for the rest. "
            f"Raise the worker's limit (ulimits.nofile in docker-compose, LimitNOFILE in systemd, ulimit -n "
            f"in a shell) to at least {needed}, or lower {lower}."
        )


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest values sampled.

    :param sockets: TCP connections to S3
    """

    sockets: int = 0
    open_files: int = 0
    rss_bytes: int = 0


class Monitor:
    """Samples this process on a thread, and logs a line every :data:`LOG_SECONDS`; a context manager.

    :param log: receives the lines
    :param ports: TCP connections to these ports count as sockets to S3
    :param max_connections: the cap, shown next to the number of sockets
    :param progress: returns the beginning of each line
    """

    def __init__(
        self, log: logging.Logger, ports: Collection[int], max_connections: int, progress: Callable[[], str]
    ) -> None:
        self._log = log
        self._ports = ports
        self._cap = max_connections
        self._progress = progress
        self._process = psutil.Process()
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-rollup-monitor", daemon=True)
        self.peaks = Peaks()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        samples_per_line = round(LOG_SECONDS / SAMPLE_SECONDS)
        count = 0
        while not self._stop.wait(SAMPLE_SECONDS):
            now = self._sample()
            count += 1
            if count % samples_per_line == 0:
                self._log.info("%s | %s", self._progress(), self._line(now))

    def _sample(self) -> Peaks:
        now = Peaks(sockets_to(self._ports), self._process.num_fds(), self._process.memory_info().rss)
        peak = self.peaks
        self.peaks = Peaks(
            max(peak.sockets, now.sockets),
            max(peak.open_files, now.open_files),
            max(peak.rss_bytes, now.rss_bytes),
        )
        return now

    def _line(self, now: Peaks) -> str:
        return (
            f"sockets {now.sockets}/{self._cap} | open files {now.open_files}/{self._limit} | "
            f"memory {format_size(now.rss_bytes)}"
        )


def cpu_seconds() -> float:
    """The CPU time of this process so far, user and system, in seconds."""
    times = os.times()
    return times.user + times.system
