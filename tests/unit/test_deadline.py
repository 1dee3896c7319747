"""The end of a wait, with clocks that differ, jump and stop."""

from datetime import UTC, datetime, timedelta

import pytest

from include.log_rollup import limits
from include.log_rollup.deadline import Deadline

START = datetime(2026, 11, 23, 9, tzinfo=UTC)
TIMEOUT = timedelta(hours=6)


class Clocks:
    """The clocks of a machine and of a store, which may differ from the true time."""

    def __init__(
        self, machine_offset: timedelta = timedelta(0), store_offset: timedelta = timedelta(0)
    ) -> None:
        self.seconds = 1000.0
        self.machine_offset = machine_offset
        self.store_offset = store_offset

    def advance(self, duration: timedelta) -> None:
        self.seconds += duration.total_seconds()

    def monotonic(self) -> float:
        return self.seconds

    def true(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000.0)

    def machine(self) -> datetime:
        return self.true() + self.machine_offset

    def store(self) -> datetime:
        return self.true() + self.store_offset

    def deadline(self) -> Deadline:
        """Return the deadline of a wait that began at START, by a worker with the true time."""
        return Deadline(
            START + TIMEOUT + self.store_offset,
            START,
            START + TIMEOUT,
            clock=self.monotonic,
            now=self.machine,
        )


def test_wait_without_answers_ends_by_the_machine_clock() -> None:
    clocks = Clocks(store_offset=timedelta(hours=3))
    wait = clocks.deadline()
    clocks.advance(TIMEOUT - timedelta(seconds=1))
    assert (wait.passed, wait.left) == (False, 1.0)
    clocks.advance(timedelta(seconds=1))
    assert (wait.passed, wait.left, wait.waited) == (True, 0.0, TIMEOUT)


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
def test_store_clock_decides_after_an_answer(hours: int) -> None:
    clocks = Clocks(machine_offset=timedelta(hours=1), store_offset=timedelta(hours=hours))
    wait = clocks.deadline()
    clocks.advance(timedelta(minutes=10))
    wait.answered(clocks.store())
    assert wait.left == (TIMEOUT - timedelta(minutes=10)).total_seconds()


def test_setting_the_machine_clock_does_not_move_the_end() -> None:
    clocks = Clocks()
    wait = clocks.deadline()
    clocks.machine_offset = timedelta(days=400)
    assert not wait.passed
    clocks.machine_offset = timedelta(days=-400)
    clocks.advance(TIMEOUT)
    assert wait.passed


def test_slow_machine_clock_waits_at_most_the_full_time() -> None:
    clocks = Clocks(machine_offset=timedelta(days=-400))
    wait = clocks.deadline()
    clocks.advance(TIMEOUT)
    assert wait.passed


def test_stopped_store_clock_still_ends_the_wait() -> None:
    clocks = Clocks()
    wait = clocks.deadline()
    for _ in range(100):
        clocks.advance(timedelta(minutes=10))
        wait.answered(START)
        if wait.passed:
            break
    assert clocks.true() - START <= TIMEOUT + timedelta(seconds=limits.CLOCK_MARGIN_SECONDS, minutes=10)


def test_restarted_wait_counts_the_time_before() -> None:
    clocks = Clocks()
    clocks.advance(timedelta(hours=5))
    wait = clocks.deadline()
    assert (wait.left, wait.waited) == (3600.0, timedelta(hours=5))


def test_wait_of_an_earlier_version_ends_by_its_deadline() -> None:
    clocks = Clocks()
    wait = Deadline(START + TIMEOUT, None, None, clock=clocks.monotonic, now=clocks.machine)
    clocks.advance(timedelta(hours=6))
    assert wait.passed
    assert wait.waited == TIMEOUT


def test_deadline_in_the_past_has_passed() -> None:
    clocks = Clocks()
    clocks.advance(timedelta(days=3))
    wait = clocks.deadline()
    assert (wait.passed, wait.left) == (True, 0.0)
    # The time for which no triggerer ran the trigger does not count as waiting.
    assert wait.waited == TIMEOUT
