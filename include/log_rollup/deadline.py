"""The end of a wait that is kept by two clocks: the store's and this machine's."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from include.log_rollup import limits


def _now() -> datetime:
    return datetime.now(UTC)


class Deadline:
    """When a wait ends.

    Until the store has answered, this machine's clock decides. Each answer brings the store's time, which then
    decides: so a machine whose clock is wrong does not end a wait early. In between, time is counted by a clock
    that nobody sets. A store whose clock does not move cannot prolong a wait by more than its whole length.

    :param until: the deadline by the store's clock
    :param since: when the wait began, by this machine's clock; None if that is not known
    :param deadline: the deadline by this machine's clock; None if it is that of the store
    :param clock: seconds that only grow
    :param now: this machine's clock
    """

    def __init__(
        self,
        until: datetime,
        since: datetime | None,
        deadline: datetime | None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._until = until
        self._clock = clock
        self._start = clock()
        local = deadline or until
        left = max(0.0, (local - now()).total_seconds())
        whole = left if since is None else max(0.0, (local - since).total_seconds())
        self._ends = self._start + min(left, whole)
        self._latest = self._start + whole + limits.CLOCK_MARGIN_SECONDS
        # Of the wait, what lies before this object was made: after a restart, or on another machine.
        self._before = 0.0 if since is None else min(whole, max(0.0, (now() - since).total_seconds()))

    def answered(self, store_now: datetime) -> None:
        """Take the store's time from an answer that has just come."""
        left = (self._until - store_now).total_seconds()
        self._ends = min(self._latest, self._clock() + left)

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 once it has passed."""
        return max(0.0, self._ends - self._clock())

    @property
    def passed(self) -> bool:
        """Whether the wait is over."""
        return self._clock() >= self._ends

    @property
    def waited(self) -> timedelta:
        """How long the wait has lasted."""
        return timedelta(seconds=self._before + self._clock() - self._start)
