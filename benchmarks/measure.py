"""Runs one program and measures time, CPU, memory and connections from outside."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.sockets import connections_to

SAMPLE_SECONDS = 0.05
# Descendants are searched only every fourth time, because that reads all of /proc.
SAMPLES_PER_SEARCH = 4
END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of memory and time; a program that exceeds one is stopped."""

    rss_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Observed:
    """The usage of a program and its children; ``stopped`` is the reason if it was stopped."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_sockets: int
    exit_code: int
    stopped: str | None


def run(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, port: int, log: Path, limits: Limits
) -> Observed:
    """Run a command until it ends; when this returns or raises, the command and its children have ended.

    :param folder: working directory
    :param port: port of the server; all connections to it are counted, also those of other programs
    :param log: file for the output
    """
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    watch = _Watch(process.pid, port, limits)
    try:
        with watch:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        _end_group(process)
    return Observed(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=watch.peak_rss_bytes,
        peak_sockets=watch.peak_sockets,
        exit_code=process.returncode,
        stopped=watch.stopped,
    )


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill the rest of the process group, such as the other programs of a pipe in which one has failed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        process.wait(END_SECONDS)


class _Watch:
    """Samples a process tree in a thread, and kills its group if it exceeds the limits."""

    def __init__(self, pid: int, port: int, limits: Limits) -> None:
        self._root = psutil.Process(pid)
        self._port = port
        self._limits = limits
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.peak_rss_bytes = 0
        self.peak_sockets = 0
        self.stopped: str | None = None

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        until = time.monotonic() + self._limits.seconds
        pids: list[int] = []
        count = 0
        while not self._stop.wait(SAMPLE_SECONDS):
            if count % SAMPLES_PER_SEARCH == 0:
                pids = self._tree()
            count += 1
            self.peak_sockets = max(self.peak_sockets, connections_to(self._port))
            resident, highest = _memory_of(pids)
            self.peak_rss_bytes = max(self.peak_rss_bytes, resident, highest)
            if resident > self._limits.rss_bytes:
                self._end(f"it used {resident / 1e9:.1f} GB of memory, more than this machine has free")
            elif time.monotonic() > until:
                self._end(f"it was not finished after {self._limits.seconds:.0f} s")

    def _tree(self) -> list[int]:
        with contextlib.suppress(psutil.Error):
            return [self._root.pid, *(child.pid for child in self._root.children(recursive=True))]
        return []

    def _end(self, why: str) -> None:
        self.stopped = why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._root.pid, signal.SIGKILL)
        self._stop.set()


def _memory_of(pids: Iterable[int]) -> tuple[int, int]:
    """Return the total of resident bytes of these processes, and the highest peak of one of them."""
    resident = highest = 0
    for pid in pids:
        # A process may end meanwhile.
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
            resident += int(status.partition("VmRSS:")[2].split()[0]) * 1024
            highest = max(highest, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    return resident, highest
