"""The open-file limit is checked before the work; open files, sockets and memory are measured during it."""

import logging
import os
import re
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from include.log_rollup import monitor
from include.log_rollup.errors import ResourceLimitError
from include.log_rollup.monitor import OTHER_FILES, Monitor, check_open_file_limit, open_files

log = logging.getLogger("tests.unit.monitor")

OPENED = 40


class LineCollector(logging.Handler):
    """Collects log lines, and sets an event when there are enough."""

    def __init__(self, awaited: int) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.enough = threading.Event()
        self._awaited = awaited

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if len(self.lines) >= self._awaited:
            self.enough.set()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[LineCollector]:
    """Collect the lines of a monitor that writes often."""
    monkeypatch.setattr(monitor, "SAMPLE_SECONDS", 0.005)
    monkeypatch.setattr(monitor, "LOG_SECONDS", 0.01)
    handler = LineCollector(2)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def limit_to(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Set the open-file limit of a process with OPENED files; the real count varies with garbage collection."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(monitor, "open_files", lambda: OPENED)


# -- before the work -----------------------------------------------------------------------------------


def test_sufficient_limit_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_to(monkeypatch, OPENED + 25 + OTHER_FILES)
    check_open_file_limit(25)


def test_limit_one_too_low_is_refused_with_numbers_and_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = OPENED + 25 + OTHER_FILES
    limit_to(monkeypatch, needed - 1)
    with pytest.raises(ResourceLimitError) as caught:
        check_open_file_limit(25)
    for part in (
        f"is {needed - 1}",
        f"may need {needed}",
        f"{OPENED} are open",
        "max_connections is 25",
        f"at least {needed}",
        "max_connections of the stream to 24 or less",
        "ulimit",
    ):
        assert part in str(caught.value)


def test_limit_below_one_connection_has_only_one_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_to(monkeypatch, OPENED + OTHER_FILES + 3)
    with pytest.raises(ResourceLimitError) as caught:
        check_open_file_limit(25)
    assert "it is too low" in str(caught.value)
    assert "or less" not in str(caught.value)


def test_unlimited_open_files_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_to(monkeypatch, resource.RLIM_INFINITY)
    check_open_file_limit(1000)


# -- during the work -----------------------------------------------------------------------------------


def test_log_lines_have_progress_counts_and_limits(lines: LineCollector, listener: socket.socket) -> None:
    with (
        closing(socket.create_connection(listener.getsockname())),
        Monitor(log, {port_of(listener)}, 25, lambda: "parts 3/9"),
    ):
        assert lines.enough.wait(30)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    pattern = rf"parts 3/9 \| sockets 1/25 \| open files \d+/{limit} \| memory [\d.]+ [KMG]iB"
    assert all(re.fullmatch(pattern, line) for line in lines.lines)


def test_only_sockets_to_the_port_count_for_the_peak(lines: LineCollector, listener: socket.socket) -> None:
    with ExitStack() as stack, Monitor(log, {port_of(listener)}, 25, str) as running_monitor:
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(socket.create_connection(other.getsockname()))
        with ExitStack() as connections:
            for _ in range(5):
                connections.enter_context(socket.create_connection(listener.getsockname()))
            lines.lines.clear()
            lines.enough.clear()
            assert lines.enough.wait(30)
    assert running_monitor.peaks.sockets == 5


def test_peak_of_open_files_is_kept(lines: LineCollector) -> None:
    before = open_files()
    with Monitor(log, {1}, 25, str) as running_monitor:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
        try:
            lines.lines.clear()
            lines.enough.clear()
            assert lines.enough.wait(30)
        finally:
            for descriptor in opened:
                os.close(descriptor)
    # Other code in this process may have closed files in the meantime.
    assert before + 40 <= running_monitor.peaks.open_files < before + 100
    assert open_files() < before + 50
    assert running_monitor.peaks.rss_bytes > 1024**2


def test_work_shorter_than_a_sample_is_measured(listener: socket.socket) -> None:
    with (
        closing(socket.create_connection(listener.getsockname())),
        Monitor(log, {port_of(listener)}, 25, str) as running_monitor,
    ):
        pass
    assert running_monitor.peaks.sockets == 1
    assert running_monitor.peaks.open_files > 0


def test_monitor_stops_when_the_work_fails(lines: LineCollector) -> None:
    def fail_work() -> None:
        with Monitor(log, {1}, 25, str):
            assert lines.enough.wait(30)
            raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        fail_work()
    assert "log-rollup-monitor" not in [thread.name for thread in threading.enumerate()]
