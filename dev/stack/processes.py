"""Starts processes in their own sessions, and stops them together with everything that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Tolerance for start times, since the clock may be adjusted. The system does not reuse a process id so soon.
_SAME_START_SECONDS = 2.0
_KILL_WAIT_SECONDS = 5.0


@dataclass(frozen=True)
class ProcessRecord:
    """A started process: identifies it later, even if its id was reused.

    It leads its own session, so `pid` is also the session id.
    """

    name: str
    pid: int
    started: float
    log: str


def spawn(name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> ProcessRecord:
    """Start a process in its own session, without a terminal, with its output appended to `log`.

    :raises OSError: if the program cannot be run or the log cannot be opened
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # The process outlives this function and, with `up`, this interpreter: without this line Python warns.
    child.returncode = 0
    try:
        started = psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess:
        started = time.time()
    return ProcessRecord(name=name, pid=child.pid, started=started, log=str(log))


def find(record: ProcessRecord) -> psutil.Process | None:
    """Return the recorded process if it is alive and still the same one."""
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.started) < _SAME_START_SECONDS
        alive = same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if alive else None


def family(records: Iterable[ProcessRecord]) -> set[psutil.Process]:
    """Return the recorded processes that are alive and their descendants, orphans included.

    Airflow's workers and tasks create their own process groups, and become orphans if their parent is killed, but
    none of them leaves the session. So the result is all descendants and all processes of the session.
    """
    found: set[psutil.Process] = set()
    sessions: dict[int, float] = {}
    for record in records:
        root = find(record)
        # The id was reused by a foreign process: its session is not ours.
        if root is None and psutil.pid_exists(record.pid) and not _is_zombie(record.pid):
            continue
        sessions[record.pid] = record.started
        if root is not None:
            found.add(root)
            with suppress(psutil.NoSuchProcess):
                found.update(root.children(recursive=True))
    for process in psutil.process_iter():
        try:
            began = sessions.get(os.getsid(process.pid))
            if began is not None and process.create_time() > began - _SAME_START_SECONDS:
                found.add(process)
        except (OSError, psutil.Error):
            continue
    return {process for process in found if not _is_zombie(process.pid)}


def stop(records: Sequence[ProcessRecord], grace_seconds: float) -> int:
    """Stop the recorded processes and their families, and return the number of processes.

    They get SIGTERM first and SIGKILL after `grace_seconds`. The search repeats until no process is left, so it
    also finds processes that were started meanwhile.

    :raises RuntimeError: if a process cannot be killed
    """
    members = family(records)
    everyone = set(members)
    for process in members:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(members, timeout=grace_seconds)
    deadline = time.monotonic() + _KILL_WAIT_SECONDS
    while left := family(records) | {member for member in everyone if _is_alive(member)}:
        if time.monotonic() > deadline:
            raise RuntimeError(f"these processes cannot be killed: {sorted(process.pid for process in left)}")
        everyone |= left
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    return len(everyone)


def kill(record: ProcessRecord, children: bool) -> None:
    """Kill the recorded process, with its family if `children` is true, and wait until it is gone."""
    root = find(record)
    victims = family([record]) if children else {root} if root else set()
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, timeout=_KILL_WAIT_SECONDS)


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a log file, or a note that it is empty."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            # Read the end only: the log of a long run has many megabytes.
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "(the log does not exist)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer Ctrl-C and the other stop signals to the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    before = {number: signal.signal(number, hold) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
