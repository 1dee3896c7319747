"""The end of a wait, with clocks that differ, jump and stand still."""

from datetime import UTC, datetime, timedelta

import pytest

from include.log_rollup import limits
from include.log_rollup.deadline import Deadline

START = datetime(2026, 11, 23, 9, tzinfo=UTC)
WHOLE = timedelta(hours=6)


class Clocks:
    """A machine's clocks and a store's, which may be off."""

    def __init__(self, machine_off: timedelta = timedelta(0), store_off: timedelta = timedelta(0)) -> None:
        self.seconds = 1000.0
        self.machine_off = machine_off
        self.store_off = store_off

    def pass_by(self, duration: timedelta) -> None:
        self.seconds += duration.total_seconds()

    def monotonic(self) -> float:
        return self.seconds

    def true(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000.0)

    def machine(self) -> datetime:
        return self.true() + self.machine_off

    def store(self) -> datetime:
        return self.true() + self.store_off

    def deadline(self) -> Deadline:
        """Of a wait that began at START by the clock of a worker that is right."""
        return Deadline(
            START + WHOLE + self.store_off, START, START + WHOLE, clock=self.monotonic, now=self.machine
        )


def test_wait_without_answers_ends_by_the_machine_clock() -> None:
    clocks = Clocks(store_off=timedelta(hours=3))
    wait = clocks.deadline()
    clocks.pass_by(WHOLE - timedelta(seconds=1))
    assert (wait.passed, wait.left) == (False, 1.0)
    clocks.pass_by(timedelta(seconds=1))
    assert (wait.passed, wait.left, wait.waited) == (True, 0.0, WHOLE)


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
def test_store_clock_decides_after_an_answer(hours: int) -> None:
    clocks = Clocks(machine_off=timedelta(hours=1), store_off=timedelta(hours=hours))
    wait = clocks.deadline()
    clocks.pass_by(timedelta(minutes=10))
    wait.answered(clocks.store())
    assert wait.left == (WHOLE - timedelta(minutes=10)).total_seconds()


def test_setting_the_machine_clock_does_not_move_the_end() -> None:
    clocks = Clocks()
    wait = clocks.deadline()
    clocks.machine_off = timedelta(days=400)
    assert not wait.passed
    clocks.machine_off = timedelta(days=-400)
    clocks.pass_by(WHOLE)
    assert wait.passed


def test_slow_machine_clock_waits_at_most_the_full_time() -> None:
    clocks = Clocks(machine_off=timedelta(days=-400))
    wait = clocks.deadline()
    clocks.pass_by(WHOLE)
    assert wait.passed


def test_stopped_store_clock_still_ends_the_wait() -> None:
    clocks = Clocks()
    wait = clocks.deadline()
    for _ in range(100):
        clocks.pass_by(timedelta(minutes=10))
        wait.answered(START)
        if wait.passed:
            break
    assert clocks.true() - START <= WHOLE + timedelta(seconds=limits.CLOCK_MARGIN_SECONDS, minutes=10)


def test_restarted_wait_counts_the_time_before() -> None:
    clocks = Clocks()
    clocks.pass_by(timedelta(hours=5))
    wait = clocks.deadline()
    assert (wait.left, wait.waited) == (3600.0, timedelta(hours=5))


def test_wait_of_an_earlier_version_ends_by_its_deadline() -> None:
    clocks = Clocks()
    wait = Deadline(START + WHOLE, None, None, clock=clocks.monotonic, now=clocks.machine)
    clocks.pass_by(timedelta(hours=6))
    assert wait.passed
    assert wait.waited == WHOLE


def test_deadline_in_the_past_has_passed() -> None:
    clocks = Clocks()
    clocks.pass_by(timedelta(days=3))
    wait = clocks.deadline()
    assert (wait.passed, wait.left) == (True, 0.0)
    # How long the trigger was stored in vain is not time that it waited.
    assert wait.waited == WHOLE
