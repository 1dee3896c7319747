"""Caches completion markers in this process, and reads them again when they may have changed."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from include.log_rollup.errors import RollupError
from include.log_rollup.queries.status import HourStatus, HourSummary, read_hours
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)

OpenStore = Callable[[Stream], AbstractContextManager[ObjectStore]]

# About a year of one stream, 30 MB. The hours that were read longest ago are dropped first.
MAX_HOURS = 10_000
# Hours are read in batches of this size. The batches of the last request are read first.
BATCH_HOURS = 48
RECENT = timedelta(days=2)
# How long a cached hour is valid, unless a run of the hour has changed something since.
MAX_AGE = {
    # (recent, complete)
    (True, False): timedelta(seconds=15),
    (True, True): timedelta(minutes=5),
    (False, False): timedelta(minutes=10),
    (False, True): timedelta(hours=1),
}
# The least time between two reads of the same hour, however often it is requested.
MIN_AGE = timedelta(seconds=2)
# The pause after a failed read of a bucket.
FAILURE_PAUSE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class CachedHour:
    """An hour as its records described it when it was read.

    :param read_at: when the read began; what a run changed later may be missing
    """

    summary: HourSummary
    read_at: datetime


@dataclass(frozen=True, slots=True)
class CachedHours:
    """What the cache has of the requested hours.

    :param hours: the hours that have been read
    :param pending: number of hours that are being read, or wait for it
    :param error: why the bucket could not be read the last time, for people; empty if it could
    """

    hours: Mapping[datetime, CachedHour]
    pending: int
    error: str


@dataclass
class _ReadJob:
    """The hours of one request that have to be read, and the futures that wait for them."""

    stream: Stream
    place: str
    hours: dict[datetime, None] = field(default_factory=dict)
    waiting: list["Future[None]"] = field(default_factory=list)

    def end(self) -> None:
        """Complete the futures: no hour of this job is pending."""
        for future in self.waiting:
            # False if it has been cancelled.
            if future.set_running_or_notify_cancel():
                future.set_result(None)


class MarkerCache:
    """Reads markers in one background thread, so that a request waits for the bucket only as long as it wants.

    There is one thread and one open store at a time, so the cache never opens more connections than one store has.

    :param open_store: opens a stream's store; it is closed when no more hours of the stream are pending
    :param clock: returns the present time
    """

    def __init__(
        self, open_store: OpenStore, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._open_store = open_store
        self._clock = clock
        self._read: OrderedDict[tuple[str, datetime], CachedHour] = OrderedDict()
        self._jobs: OrderedDict[tuple[str, datetime], _ReadJob] = OrderedDict()
        self._errors: dict[str, tuple[datetime, str]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def request(
        self,
        stream: Stream,
        hours: Sequence[datetime],
        touched: Mapping[datetime, datetime],
        *,
        refresh: bool = False,
        wait_seconds: float = 0.0,
    ) -> CachedHours:
        """Return what is cached of some hours; those that may have changed are read again in the background.

        :param touched: when a run of an hour last changed something, perhaps the marker
        :param refresh: read all of them again
        :param wait_seconds: how long to wait for the reads
        """
        place = _place(stream)
        deadline = time.monotonic() + wait_seconds
        with self._changed:
            now = self._clock()
            failed_at, _ = self._errors.get(place, (None, ""))
            if failed_at is None or refresh or now - failed_at > FAILURE_PAUSE:
                stale = [
                    hour for hour in hours if self._is_stale(place, hour, touched.get(hour), now, refresh)
                ]
                self._enqueue(stream, place, hours, stale)
            while self._pending(place, hours) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._cached(place, hours)

    def cached(self, stream: Stream, hours: Sequence[datetime]) -> CachedHours:
        """Return what is cached of some hours; nothing is read."""
        with self._changed:
            return self._cached(_place(stream), hours)

    def _cached(self, place: str, hours: Sequence[datetime]) -> CachedHours:
        found = {hour: self._read[place, hour] for hour in hours if (place, hour) in self._read}
        _, error = self._errors.get(place, (None, ""))
        return CachedHours(found, self._pending(place, hours), error)

    def when_read(self, stream: Stream, hours: Sequence[datetime]) -> "Future[None]":
        """A future that is done when no hour of a :meth:`request` is pending, or reading has failed."""
        future: Future[None] = Future()
        with self._changed:
            job = self._jobs.get((_place(stream), hours[0])) if hours else None
            if job is None:
                future.set_result(None)
            else:
                job.waiting.append(future)
        return future

    def put(self, stream: Stream, summary: HourSummary, read_at: datetime) -> None:
        """Cache an hour that the caller has read.

        :param read_at: when the read began
        """
        with self._changed:
            self._store(_place(stream), [summary], read_at)

    def get(self, stream: Stream, hour: datetime) -> CachedHour | None:
        """The cached hour, or None; nothing is read."""
        with self._changed:
            return self._read.get((_place(stream), hour))

    def _is_stale(
        self, place: str, hour: datetime, touched: datetime | None, now: datetime, refresh: bool
    ) -> bool:
        read = self._read.get((place, hour))
        if read is None:
            return True
        age = now - read.read_at
        if age < MIN_AGE:
            return False
        complete = read.summary.state is HourStatus.COMPLETE
        changed = touched is not None and touched >= read.read_at - MIN_AGE
        return refresh or changed or age > MAX_AGE[now - hour < RECENT, complete]

    def _enqueue(
        self, stream: Stream, place: str, hours: Sequence[datetime], stale: Iterable[datetime]
    ) -> None:
        if not hours:
            return
        job = self._jobs.pop((place, hours[0]), None) or _ReadJob(stream, place)
        # The newest hours first: people want these most.
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
        """Read pending hours, for ever. A store stays open while hours of its stream are pending."""
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                stream = next(reversed(self._jobs.values())).stream
            self._read_pending(stream)

    def _read_pending(self, stream: Stream) -> None:
        place = _place(stream)
        try:
            with ExitStack() as stack:
                store: ObjectStore | None = None
                while hours := self._next_batch(place):
                    store = store or stack.enter_context(self._open_store(stream))
                    read_at = self._clock()
                    self._done(place, hours, read_hours(store, stream, hours), read_at)
        except Exception as error:
            self._fail(place, explain(error, stream))

    def _next_batch(self, place: str) -> list[datetime]:
        """The next hours of this place, if it is the place of the last request."""
        with self._changed:
            job = next(reversed(self._jobs.values()), None)
            return list(job.hours)[:BATCH_HOURS] if job and job.place == place else []

    def _done(
        self, place: str, hours: Sequence[datetime], read: Sequence[HourSummary], read_at: datetime
    ) -> None:
        with self._changed:
            self._errors.pop(place, None)
            self._store(place, read, read_at)
            for key, job in list(self._jobs.items()):
                if job.place == place:
                    for hour in hours:
                        job.hours.pop(hour, None)
                    if not job.hours:
                        del self._jobs[key]
                        job.end()
            self._changed.notify_all()

    def _fail(self, place: str, error: str) -> None:
        with self._changed:
            self._errors[place] = (self._clock(), error)
            for key, job in list(self._jobs.items()):
                if job.place == place:
                    del self._jobs[key]
                    job.end()
            self._changed.notify_all()

    def _store(self, place: str, read: Sequence[HourSummary], read_at: datetime) -> None:
        for summary in read:
            # An hour may have thousands of groups.
            self._read[place, summary.hour] = CachedHour(replace(summary, groups=()), read_at)
            self._read.move_to_end((place, summary.hour))
        while len(self._read) > MAX_HOURS:
            self._read.popitem(last=False)


def explain(error: Exception, stream: Stream) -> str:
    """Log why a stream's bucket could not be read, and return it for people."""
    if isinstance(error, RollupError):
        log.warning("could not read under %s: %s", stream.aggregated, error)
        return str(error)
    log.error("could not read under %s", stream.aggregated, exc_info=error)
    return f"{type(error).__name__}: {error}; the log of the api-server has more"


def _place(stream: Stream) -> str:
    """Identifies the place of a stream's markers; if the stream gets another place, its hours are read again."""
    return f"{stream.connection_of_aggregated} {stream.aggregated.text}"
