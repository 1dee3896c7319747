"""Caches the last hours of all streams in this process, and reads them in a few background threads."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from include.log_rollup import limits
from include.log_rollup.errors import TransientError
from include.log_rollup.queries.status import HourStatus, HourSummary, read_hours
from include.log_rollup.queries.volume import HourVolume, earlier_hours, hours_to_compare, volume_of
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.cache import CachedHour, OpenStore, explain

# The least time between two reads of an hour. Airflow updates the row of an active run every few seconds.
MIN_AGE = timedelta(seconds=30)
# How long an hour is valid that no run has changed since. One that is not complete may be completed by another
# Airflow.
MAX_AGE_INCOMPLETE = timedelta(minutes=2)
MAX_AGE_COMPLETE = timedelta(hours=6)
# The same of hours that had late objects, and of those of earlier weeks, which are only compared with.
MAX_AGE_LATE = timedelta(minutes=10)
MAX_AGE_EARLIER = timedelta(hours=24)
# An hour that is being read again counts as pending only if it is older than this.
PENDING_AGE = timedelta(minutes=5)
# The pause after a failed read of a bucket or a stream.
FAILURE_PAUSE = timedelta(minutes=1)
# Groups are kept of hours that may be compared: the last complete hours are younger than this, unless the stream
# is behind.
GROUPS_AGE = timedelta(hours=12)
# Until it has answered so recently, a bucket is read by a single thread.
ANSWERED_SECONDS = 60.0

Bucket = tuple[str, str]
"""The Airflow connection and the name of a bucket."""


@dataclass(frozen=True, slots=True)
class OverviewHour:
    """An hour as its records described it when it was read.

    :param cached: of the marker it has only ``why_empty`` and ``completed_at``
    :param volume: None if the hour is not complete
    """

    cached: CachedHour
    volume: HourVolume | None


@dataclass(frozen=True, slots=True)
class WantedHours:
    """The hours of a stream for an overview, each group the oldest first.

    :param hours: the last hours that have ended
    :param late: other hours, that had late objects
    :param touched: when a run of an hour last changed something, perhaps the marker
    """

    stream: Stream
    hours: Sequence[datetime]
    late: Sequence[datetime] = ()
    touched: Mapping[datetime, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FoundHours:
    """What the cache has of the hours of a stream.

    :param hours: the hours that have been read, those of earlier weeks among them
    :param pending: number of hours that have to be read before the overview of the stream is right
    :param reading: number of hours that are being read, those that were read a short time ago among them
    :param error: why they could not be read the last time, for people; empty if they could
    """

    hours: Mapping[datetime, OverviewHour]
    pending: int
    reading: int
    error: str


@dataclass
class _Entry:
    """A stream, its cached hours, and those that have to be read."""

    wanted: WantedHours
    hours: dict[datetime, OverviewHour] = field(default_factory=dict)
    queue: dict[datetime, None] = field(default_factory=dict)
    reading: set[datetime] = field(default_factory=set)
    error: str = ""
    failed_at: datetime | None = None

    @property
    def stream(self) -> Stream:
        return self.wanted.stream

    def earlier(self) -> Sequence[datetime]:
        """The hours of earlier weeks to compare with; none before all of the last hours have been read."""
        if any(hour not in self.hours for hour in self.wanted.hours):
            return ()
        complete = (hour for hour in self.wanted.hours if self.hours[hour].volume)
        return [hour for hour in earlier_hours(hours_to_compare(complete)) if hour not in self.wanted.hours]

    def enqueue(self, now: datetime, refresh: bool = False) -> None:
        """Queue the hours that may have changed, the newest first, and drop those that are not wanted any more."""
        earlier = self.earlier()
        groups_from = now - GROUPS_AGE
        kept = {}
        for hours, is_earlier in ((self.wanted.late, False), (self.wanted.hours, False), (earlier, True)):
            for hour in hours:
                found = self.hours.get(hour)
                if found is not None:
                    if not is_earlier and hour < groups_from and found.volume and found.volume.groups:
                        found = replace(found, volume=replace(found.volume, groups=None))
                    kept[hour] = found
        self.hours = kept
        for hours, max_age in (
            (self.wanted.hours[::-1], None),
            (self.wanted.late, MAX_AGE_LATE),
            (earlier, MAX_AGE_EARLIER),
        ):
            for hour in hours:
                is_queued = hour in self.reading or hour in self.queue
                if not is_queued and self._is_stale(hour, now, refresh, max_age):
                    self.queue[hour] = None

    def _is_stale(self, hour: datetime, now: datetime, refresh: bool, max_age: timedelta | None) -> bool:
        found = self.hours.get(hour)
        if found is None:
            return True
        age = now - found.cached.read_at
        if age < MIN_AGE:
            return False
        touched = self.wanted.touched.get(hour)
        if touched is not None and touched >= found.cached.read_at - MIN_AGE:
            return True
        if max_age is not None:
            return age > max_age
        if found.volume is None:
            return refresh or age > MAX_AGE_INCOMPLETE
        return age > MAX_AGE_COMPLETE

    def pending(self, now: datetime) -> int:
        return sum(
            (found := self.hours.get(hour)) is None or now - found.cached.read_at > PENDING_AGE
            for hour in (*self.queue, *self.reading)
        )

    def found(self, now: datetime) -> FoundHours:
        reading = len(self.queue) + len(self.reading)
        return FoundHours(dict(self.hours), self.pending(now) if reading else 0, reading, self.error)


@dataclass
class _BucketState:
    """A bucket, with the streams in it that have hours to read, those that have waited longest first."""

    waiting: dict[str, _Entry] = field(default_factory=dict)
    threads: int = 0
    served_at: float = 0.0
    answered_at: float = -ANSWERED_SECONDS
    failed_at: datetime | None = None


class OverviewCache:
    """Reads hours in :data:`limits.OVERVIEW_PAGE_THREADS` threads, each with one store of one connection.

    A bucket that does not answer delays the other buckets by no more than the time limits of a request: until it
    has answered it gets one thread, and never all of them. After a failure it gets none for a minute.

    :param open_store: opens the store of a stream; it is used for the other streams of the same bucket too
    :param clock: returns the present time
    """

    def __init__(
        self, open_store: OpenStore, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._open_store = open_store
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._buckets: dict[Bucket, _BucketState] = {}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def request(self, wanted: Sequence[WantedHours], *, refresh: bool = False) -> list[FoundHours]:
        """Return what is cached; the hours that may have changed are read again in the background.

        :param refresh: read all hours again that are not complete, also those whose last read has failed
        """
        with self._changed:
            now = self._clock()
            found = []
            for one in wanted:
                entry = self._entries.setdefault(_place(one.stream), _Entry(one))
                entry.wanted = one
                bucket = self._buckets.setdefault(bucket_of(one.stream), _BucketState())
                if refresh:
                    entry.failed_at = bucket.failed_at = None
                if not any(_is_recent(at, now) for at in (entry.failed_at, bucket.failed_at)):
                    self._enqueue(entry, now, refresh)
                found.append(entry.found(now))
            self._start_threads()
            self._changed.notify_all()
            return found

    def cached(self, streams: Sequence[Stream]) -> list[FoundHours]:
        """Return what is cached of streams that have been requested; nothing is read."""
        with self._changed:
            now = self._clock()
            entries = [self._entries.get(_place(stream)) for stream in streams]
            return [entry.found(now) if entry else FoundHours({}, 0, 0, "") for entry in entries]

    def forget_others(self, streams: Sequence[Stream]) -> None:
        """Drop all streams but these: those that are no longer in the streams file."""
        places = {_place(stream) for stream in streams}
        with self._changed:
            for place in self._entries.keys() - places:
                self._entries.pop(place).queue.clear()

    # -- the threads -----------------------------------------------------------------------------------

    def _start_threads(self) -> None:
        while len(self._threads) < limits.OVERVIEW_PAGE_THREADS and any(
            state.waiting for state in self._buckets.values()
        ):
            thread = threading.Thread(
                target=self._work, name=f"log-rollup-overview-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _enqueue(self, entry: _Entry, now: datetime, refresh: bool = False) -> None:
        entry.enqueue(now, refresh)
        if entry.queue:
            state = self._buckets[bucket_of(entry.stream)]
            state.waiting.setdefault(_place(entry.stream), entry)

    def _work(self) -> None:
        """Read hours, for ever: those of one bucket after those of another."""
        while True:
            with self._changed:
                while (state := self._next_bucket()) is None:
                    self._changed.wait()
                state.threads += 1
                state.served_at = time.monotonic()
                entry = next(iter(state.waiting.values()))
            try:
                self._read_bucket(state, entry.stream)
            finally:
                with self._changed:
                    state.threads -= 1
                    self._changed.notify_all()

    def _next_bucket(self) -> _BucketState | None:
        """The bucket with hours to read that has the fewest threads, of several the one that has waited longest.

        :returns: None if no bucket may have one more thread
        """
        free = [state for state in self._buckets.values() if state.waiting and self._may_start(state)]
        return min(free, key=lambda state: (state.threads, state.served_at), default=None)

    def _may_start(self, state: _BucketState) -> bool:
        has_answered = time.monotonic() - state.answered_at < ANSWERED_SECONDS
        most = max(1, limits.OVERVIEW_PAGE_THREADS - 1) if has_answered else 1
        return state.threads < most

    def _read_bucket(self, state: _BucketState, stream: Stream) -> None:
        """Read hours of a bucket over one store, until none is left or another bucket has waited long enough."""
        ends = time.monotonic() + limits.OVERVIEW_PAGE_BUCKET_SECONDS
        try:
            with self._open_store(stream) as store:
                for entry, hour in self._hours_of(state, ends):
                    self._read(store, entry, hour)
                    state.answered_at = time.monotonic()
        except Exception as error:
            self._fail(state, explain(error, stream))

    def _hours_of(self, state: _BucketState, ends: float) -> Iterator[tuple[_Entry, datetime]]:
        """Take hours from the queues of a bucket: all of one stream, then those of the next."""
        while True:
            with self._changed:
                if time.monotonic() > ends and self._other_waits(state):
                    return
                place, entry = next(iter(state.waiting.items()), ("", None))
                if entry is None:
                    return
                hour = next(iter(entry.queue), None)
                if hour is None:
                    del state.waiting[place]
                    continue
                del entry.queue[hour]
                entry.reading.add(hour)
            yield entry, hour

    def _other_waits(self, state: _BucketState) -> bool:
        return any(
            other.waiting and not other.threads and other is not state for other in self._buckets.values()
        )

    def _read(self, store: ObjectStore, entry: _Entry, hour: datetime) -> None:
        """Read an hour.

        :raises TransientError: if the bucket does not answer
        """
        stream = entry.stream
        try:
            # Of hours of earlier weeks, only the volume is used.
            expired = None if hour in entry.wanted.hours else False
            with_groups = bool(stream.aggregated.captures)
            (summary,) = read_hours(store, stream, [hour], groups=with_groups, expired=expired)
        except Exception as error:
            bucket_failed = isinstance(error, TransientError)
            self._fail_entry(entry, hour, str(error) if bucket_failed else explain(error, stream))
            if bucket_failed:
                raise
            return
        with self._changed:
            now = self._clock()
            entry.reading.discard(hour)
            entry.hours[hour] = OverviewHour(CachedHour(_short(summary), now), volume_of(summary))
            entry.error, entry.failed_at = "", None
            if not entry.queue and not entry.reading:
                # Now it is known which earlier hours to compare with. The last hours of other streams come first.
                self._buckets[bucket_of(stream)].waiting.pop(_place(stream), None)
                self._enqueue(entry, now)
            self._changed.notify_all()

    def _fail_entry(self, entry: _Entry, hour: datetime, error: str) -> None:
        with self._changed:
            entry.reading.discard(hour)
            entry.error, entry.failed_at = error, self._clock()
            entry.queue.clear()
            self._changed.notify_all()

    def _fail(self, state: _BucketState, error: str) -> None:
        with self._changed:
            state.failed_at = self._clock()
            state.answered_at = -ANSWERED_SECONDS
            for entry in state.waiting.values():
                entry.error = error
                entry.queue.clear()
            state.waiting.clear()
            self._changed.notify_all()


def bucket_of(stream: Stream) -> Bucket:
    """The bucket of a stream's parts."""
    return stream.connection_of_aggregated, stream.aggregated.bucket


def _place(stream: Stream) -> str:
    """Identifies the place of a stream's markers; if the stream gets another place, its hours are read again."""
    return f"{stream.name} {stream.connection_of_aggregated} {stream.aggregated.text}"


def _is_recent(failed_at: datetime | None, now: datetime) -> bool:
    return failed_at is not None and now - failed_at < FAILURE_PAUSE


def _short(summary: HourSummary) -> HourSummary:
    """An hour without the totals of its groups, and with two keys of its marker."""
    marker = summary.marker
    if summary.state is HourStatus.COMPLETE and marker is not None:
        marker = {name: marker[name] for name in ("why_empty", "completed_at") if name in marker}
    return replace(summary, marker=marker, groups=())
