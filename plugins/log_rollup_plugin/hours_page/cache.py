"""What the bucket says of hours, kept in this process and read again where it may have changed."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from include.log_rollup.errors import RollupError
from include.log_rollup.queries.status import HourStatus, HourSummary, read_hours
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)

OpenStore = Callable[[Stream], AbstractContextManager[ObjectStore]]

# About a year of one stream, 30 MB; those that were read longest ago are forgotten first.
MOST_HOURS = 10_000
# Hours are read in runs of this many, those that were asked for last going first.
RUN_HOURS = 48
RECENT = timedelta(days=2)
# For how long what was read is good, unless a run of the hour did something since.
GOOD_FOR = {
    # (recent, complete)
    (True, False): timedelta(seconds=15),
    (True, True): timedelta(minutes=5),
    (False, False): timedelta(minutes=10),
    (False, True): timedelta(hours=1),
}
# However often somebody asks, the same hour is not read more often than this.
AT_LEAST = timedelta(seconds=2)
# After a failure the bucket is left alone for this long.
PAUSE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class ReadHour:
    """What was read of an hour, and when."""

    status: HourSummary
    at: datetime


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the hours that were asked for.

    :param hours: those that were ever read
    :param pending: how many are being read, or wait for it
    :param error: why the bucket could not be read the last time, for people; empty if it could
    """

    hours: Mapping[datetime, ReadHour]
    pending: int
    error: str


@dataclass
class _Job:
    stream: Stream
    place: str
    hours: dict[datetime, None] = field(default_factory=dict)
    waiting: list["Future[None]"] = field(default_factory=list)

    def end(self) -> None:
        """Tell those who wait that none of its hours wait any more."""
        for future in self.waiting:
            # Not one whose owner has given up.
            if future.set_running_or_notify_cancel():
                future.set_result(None)


class MarkerCache:
    """Reads markers in one background thread, so that asking never waits for the bucket longer than told.

    One thread and one store at a time: this process never opens more connections for it than a store has.

    :param open_store: a stream's store, closed when no more of its hours wait
    :param clock: the present time
    """

    def __init__(
        self, open_store: OpenStore, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._open_store = open_store
        self._clock = clock
        self._read: OrderedDict[tuple[str, datetime], ReadHour] = OrderedDict()
        self._jobs: OrderedDict[tuple[str, datetime], _Job] = OrderedDict()
        self._errors: dict[str, tuple[datetime, str]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def look(
        self,
        stream: Stream,
        hours: Sequence[datetime],
        touched: Mapping[datetime, datetime],
        *,
        refresh: bool = False,
        wait_seconds: float = 0.0,
    ) -> Known:
        """What is known of some hours; what may have changed since is read again in the background.

        :param touched: when a run of an hour last did something, which may have changed its marker
        :param refresh: read all of them again
        :param wait_seconds: how long to wait for that
        """
        place = _place(stream)
        deadline = time.monotonic() + wait_seconds
        with self._changed:
            now = self._clock()
            failed_at, _ = self._errors.get(place, (None, ""))
            if failed_at is None or refresh or now - failed_at > PAUSE:
                stale = [
                    hour for hour in hours if self._is_stale(place, hour, touched.get(hour), now, refresh)
                ]
                self._ask(stream, place, hours, stale)
            while self._pending(place, hours) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._known(place, hours)

    def known(self, stream: Stream, hours: Sequence[datetime]) -> Known:
        """What is known of some hours that :meth:`look` was asked for; nothing more is read."""
        with self._changed:
            return self._known(_place(stream), hours)

    def _known(self, place: str, hours: Sequence[datetime]) -> Known:
        found = {hour: self._read[place, hour] for hour in hours if (place, hour) in self._read}
        _, error = self._errors.get(place, (None, ""))
        return Known(found, self._pending(place, hours), error)

    def settled(self, stream: Stream, hours: Sequence[datetime]) -> "Future[None]":
        """Done when none of the hours that :meth:`look` was asked for wait to be read, or reading has failed."""
        future: Future[None] = Future()
        with self._changed:
            job = self._jobs.get((_place(stream), hours[0])) if hours else None
            if job is None:
                future.set_result(None)
            else:
                job.waiting.append(future)
        return future

    def keep(self, stream: Stream, status: HourSummary) -> None:
        """Take over what somebody else has read just now."""
        with self._changed:
            self._store(_place(stream), [status])

    def kept(self, stream: Stream, hour: datetime) -> ReadHour | None:
        """What was read of an hour the last time, without reading it; None if it never was."""
        with self._changed:
            return self._read.get((_place(stream), hour))

    def _is_stale(
        self, place: str, hour: datetime, touched: datetime | None, now: datetime, refresh: bool
    ) -> bool:
        read = self._read.get((place, hour))
        if read is None:
            return True
        age = now - read.at
        if age < AT_LEAST:
            return False
        complete = read.status.state is HourStatus.COMPLETE
        did_something = touched is not None and touched >= read.at - AT_LEAST
        return refresh or did_something or age > GOOD_FOR[now - hour < RECENT, complete]

    def _ask(self, stream: Stream, place: str, hours: Sequence[datetime], stale: Iterable[datetime]) -> None:
        if not hours:
            return
        job = self._jobs.pop((place, hours[0]), None) or _Job(stream, place)
        # The present is what people look at first.
        job.hours.update(dict.fromkeys(sorted(stale, reverse=True)))
        if not job.hours:
            return
        self._jobs[place, hours[0]] = job
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log-rollup-markers", daemon=True)
            self._thread.start()

    def _pending(self, place: str, hours: Sequence[datetime]) -> int:
        job = self._jobs.get((place, hours[0])) if hours else None
        return len(job.hours) if job else 0

    def _work(self) -> None:
        """Read what is asked for, for ever; a store stays open as long as hours of its stream wait."""
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                stream = next(reversed(self._jobs.values())).stream
            self._work_on(stream)

    def _work_on(self, stream: Stream) -> None:
        place = _place(stream)
        try:
            with ExitStack() as stack:
                store: ObjectStore | None = None
                while hours := self._next(place):
                    store = store or stack.enter_context(self._open_store(stream))
                    self._done(place, hours, read_hours(store, stream, hours))
        except Exception as error:
            self._give_up(place, explain(error, stream))

    def _next(self, place: str) -> list[datetime]:
        """The next hours of this place, if it is the one that was asked for last."""
        with self._changed:
            job = next(reversed(self._jobs.values()), None)
            return list(job.hours)[:RUN_HOURS] if job and job.place == place else []

    def _done(self, place: str, hours: Sequence[datetime], read: Sequence[HourSummary]) -> None:
        with self._changed:
            self._errors.pop(place, None)
            self._store(place, read)
            for key, job in list(self._jobs.items()):
                if job.place == place:
                    for hour in hours:
                        job.hours.pop(hour, None)
                    if not job.hours:
                        del self._jobs[key]
                        job.end()
            self._changed.notify_all()

    def _give_up(self, place: str, error: str) -> None:
        with self._changed:
            self._errors[place] = (self._clock(), error)
            for key, job in list(self._jobs.items()):
                if job.place == place:
                    del self._jobs[key]
                    job.end()
            self._changed.notify_all()

    def _store(self, place: str, read: Sequence[HourSummary]) -> None:
        at = self._clock()
        for status in read:
            self._read[place, status.hour] = ReadHour(status, at)
            self._read.move_to_end((place, status.hour))
        while len(self._read) > MOST_HOURS:
            self._read.popitem(last=False)


def explain(error: Exception, stream: Stream) -> str:
    """Why a stream's bucket could not be read, for people; the log gets it, too."""
    if isinstance(error, RollupError):
        log.warning("could not read under %s: %s", stream.aggregated, error)
        return str(error)
    log.error("could not read under %s", stream.aggregated, exc_info=error)
    return f"{type(error).__name__}: {error}; the log of the api-server has more"


def _place(stream: Stream) -> str:
    """Where a stream's markers lie: a stream that is pointed elsewhere is read anew."""
    return f"{stream.aws_conn_id} {stream.aggregated}"
