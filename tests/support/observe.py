"""Watches other processes from outside: their TCP connections, open files and memory, all read from /proc.

The tests compare this with what the processes report about themselves. Sampling can miss what lasts less than an
interval; :class:`tests.support.proxy.FaultProxy` counts every connection.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """One process at one moment; ``sockets`` counts its TCP connections to the watched ports, in any state."""

    pid: int
    sockets: int
    open_files: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """All watched processes at one moment; ``seconds`` counts from the start of the watch."""

    seconds: float
    processes: tuple[ProcessSample, ...]

    @property
    def sockets(self) -> int:
        """Total connections to the watched ports."""
        return sum(process.sockets for process in self.processes)

    @property
    def rss_bytes(self) -> int:
        """Total resident memory; shared pages count once for each process."""
        return sum(process.rss_bytes for process in self.processes)


class Watch:
    """Takes samples in a thread while the ``with`` block runs.

    :param pids: a process id, or a function that returns the ids to sample now
    :param ports: remote TCP ports; connections to any of them are counted
    :param interval_seconds: pause between two samples. A sample of twenty processes takes milliseconds of CPU time
    """

    def __init__(
        self, pids: int | Callable[[], Iterable[int]], ports: Collection[int], interval_seconds: float = 0.05
    ) -> None:
        self._pids = (lambda: (pids,)) if isinstance(pids, int) else pids
        self._ports = frozenset(ports)
        self._interval = interval_seconds
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._began = 0.0
        self._error: Exception | None = None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples so far, the oldest first."""
        return tuple(self._samples)

    @property
    def peak_sockets(self) -> int:
        """Largest number of connections in one sample, of all processes together."""
        return max((sample.sockets for sample in self._samples), default=0)

    @property
    def peak_sockets_of_one(self) -> int:
        """Largest number of connections of one process."""
        return max((process.sockets for process in self._processes()), default=0)

    @property
    def peak_open_files(self) -> int:
        """Largest number of open files of one process."""
        return max((process.open_files for process in self._processes()), default=0)

    @property
    def peak_rss_bytes(self) -> int:
        """Largest resident memory of one process."""
        return max((process.rss_bytes for process in self._processes()), default=0)

    @property
    def seen_pids(self) -> frozenset[int]:
        """The processes in any sample."""
        return frozenset(process.pid for process in self._processes())

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise RuntimeError("the watch stopped early: its peaks may be too low") from self._error

    def _processes(self) -> Iterator[ProcessSample]:
        return (process for sample in self._samples for process in sample.processes)

    def _run(self) -> None:
        try:
            while True:
                self._samples.append(self._sample())
                if self._stop.wait(self._interval):
                    return
        except (OSError, ValueError, RuntimeError) as error:
            self._error = error

    def _sample(self) -> Sample:
        seconds = time.monotonic() - self._began
        tables: dict[int, frozenset[int]] = {}
        processes = []
        for pid in self._pids():
            # A process may end between any two reads; this sample leaves it out.
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                processes.append(self._sample_of(pid, tables))
        return Sample(seconds, tuple(processes))

    def _sample_of(self, pid: int, tables: dict[int, frozenset[int]]) -> ProcessSample:
        process = _PROC / str(pid)
        # The table covers a whole network namespace: read it once for all processes in it.
        namespace = (process / "ns" / "net").stat().st_ino
        if namespace not in tables:
            tables[namespace] = _inodes_to_ports(process, self._ports)
        wanted = tables[namespace]
        open_files = list((process / "fd").iterdir())
        sockets = 0
        if wanted:
            for file in open_files:
                with suppress(FileNotFoundError):
                    target = str(file.readlink())
                    sockets += target.startswith("socket:[") and int(target[8:-1]) in wanted
        resident_pages = int((process / "statm").read_text().split()[1])
        return ProcessSample(pid, sockets, len(open_files), resident_pages * _PAGE_BYTES)


class PortWatch:
    """Counts in a thread the TCP connections of the whole machine to some ports.

    A sample reads one table of the kernel, however many processes there are, so the pace holds under full load.

    :param ports: remote TCP ports, of servers that no other process uses
    :param interval_seconds: from one sample to the next
    """

    def __init__(self, ports: Collection[int], interval_seconds: float = 0.05) -> None:
        self._ports = frozenset(ports)
        self._interval = interval_seconds
        self._samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="port-watch", daemon=True)
        self._began = 0.0

    @property
    def samples(self) -> tuple[tuple[float, int], ...]:
        """Seconds since the start of the watch, and the number of connections."""
        return tuple(self._samples)

    def now(self) -> float:
        """Seconds since the start of the watch."""
        return time.monotonic() - self._began

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = self._began
        while True:
            self._samples.append((self.now(), len(_inodes_to_ports(_PROC / "self", self._ports))))
            due = max(due + self._interval, time.monotonic())
            if self._stop.wait(due - time.monotonic()):
                return


def _inodes_to_ports(process: Path, ports: Collection[int]) -> frozenset[int]:
    """Return the inodes of the TCP sockets whose remote port is one of these (proc(5), /proc/net/tcp)."""
    endings = tuple(f":{port:04X}" for port in ports)
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in (process / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[2].endswith(endings):
                    inodes.add(int(fields[9]))
    # A socket in TIME_WAIT belongs to no process and has the inode 0.
    return frozenset(inodes - {0})


def with_descendants(*roots: int) -> Callable[[], list[int]]:
    """Return a function that returns these processes, those that exist, and all their descendants.

    Each process is before its descendants.
    """

    def pids() -> list[int]:
        children: dict[int, list[int]] = {}
        for pid, parent in _parents():
            children.setdefault(parent, []).append(pid)
        found = [pid for pid in roots if (_PROC / str(pid)).exists()]
        for pid in found:
            found.extend(child for child in children.get(pid, ()) if child not in found)
        return found

    return pids


def processes_with_environment(name: str, value: str) -> list[int]:
    """Return the running processes whose environment has this variable with this value."""
    entry = f"{name}={value}".encode()
    found = []
    for pid, _parent in _parents():
        with suppress(OSError):
            if entry in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def describe_process(pid: int) -> str:
    """Return a process's id, state and command line, for messages."""
    with suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        return f"{pid} ({_state(pid)}): {b' '.join(words).decode(errors='replace').strip()[:200]}"
    return f"{pid} (gone)"


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    return _state(pid) not in ("gone", "Z", "X")


def _state(pid: int) -> str:
    with suppress(OSError):
        return _stat_fields(pid)[0]
    return "gone"


def _parents() -> Iterator[tuple[int, int]]:
    for process in _PROC.iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                yield int(process.name), int(_stat_fields(int(process.name))[1])


def _stat_fields(pid: int) -> list[str]:
    # The second field, a name in parentheses, may contain spaces and parentheses: see proc(5).
    return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
