"""The deadline of a wait, by two clocks: the store's and this machine's."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from include.log_rollup import limits


def _now() -> datetime:
    return datetime.now(UTC)


class Deadline:
    """The deadline of a wait.

    This machine's clock decides until the store answers. Each answer brings the store's time, which decides from
    then on, so that a wrong clock of this machine does not end a wait early. Between answers, time is measured
    by a monotonic clock. A store whose clock does not advance prolongs a wait by at most its whole length and 5
    minutes.

    :param until: deadline by the store's clock
    :param since: start of the wait by this machine's clock; None if unknown
    :param deadline: deadline by this machine's clock; None to use ``until``
    :param clock: monotonic clock, in seconds
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
        # The part of the wait before this object was made: before a restart, or on another machine.
        self._before = 0.0 if since is None else min(whole, max(0.0, (now() - since).total_seconds()))

    def answered(self, store_now: datetime) -> None:
        """Adjust the deadline to the store's time in an answer that has just arrived."""
        left = (self._until - store_now).total_seconds()
        self._ends = min(self._latest, self._clock() + left)

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self._ends - self._clock())

    @property
    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock() >= self._ends

    @property
    def waited(self) -> timedelta:
        """Duration of the wait so far."""
        return timedelta(seconds=self._before + self._clock() - self._start)
