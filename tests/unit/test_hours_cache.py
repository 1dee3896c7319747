"""What the page Hours caches of the bucket, and when it reads again."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from include.log_rollup.errors import AccessError
from include.log_rollup.queries.status import HourStatus
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.cache import FAILURE_PAUSE, MAX_AGE, CachedHours, MarkerCache
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import MARKER, make_stream, produce, run_hour
from tests.support.raw_hours import HOUR

pytestmark = pytest.mark.usefixtures("unwatched")
STREAM = make_stream()
DAY = [datetime(2026, 11, 23, hour, tzinfo=UTC) for hour in range(24)]


class Clock:
    """A clock that only moves when it is advanced."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, duration: timedelta) -> None:
        self.now += duration


class Bucket:
    """Opens one fake store, and counts how often it was opened and how many are open."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.broken = False
        self.opened = 0
        self.most_open = 0
        self._open = 0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stream: Stream) -> Iterator[FakeStore]:
        if self.broken:
            raise AccessError("the access key is not known to the server")
        with self._lock:
            self.opened += 1
            self._open += 1
            self.most_open = max(self.most_open, self._open)
        try:
            yield self.store
        finally:
            with self._lock:
                self._open -= 1

    def reads(self) -> int:
        """Return the number of requests since the last call."""
        count = len(self.store.log)
        self.store.log.clear()
        return count


@pytest.fixture
def bucket() -> Bucket:
    bucket = Bucket()
    produce(bucket.store, {"a.log": b"a" * 30})
    run_hour(bucket.store, STREAM)
    bucket.reads()
    return bucket


@pytest.fixture
def clock() -> Clock:
    return Clock(HOUR + timedelta(hours=3))


def read_all(
    cache: MarkerCache, touched: Mapping[datetime, datetime] | None = None, refresh: bool = False
) -> CachedHours:
    """Request all hours of the day, and wait until they are read."""
    return cache.request(STREAM, DAY, touched or {}, refresh=refresh, wait_seconds=60)


def test_hour_is_not_read_again_while_its_entry_is_valid(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    known = read_all(cache)
    assert (known.pending, known.error) == (0, "")
    states = {hour: read.summary.state for hour, read in known.hours.items()}
    assert states == dict.fromkeys(DAY, HourStatus.INCOMPLETE) | {HOUR: HourStatus.COMPLETE}
    # One request for the complete hour, two for each other hour.
    assert bucket.reads() == 1 + 2 * 23
    read_all(cache)
    assert bucket.reads() == 0
    clock.advance(MAX_AGE[True, False] + timedelta(seconds=1))
    read_all(cache)
    assert bucket.reads() == 2 * 23


def test_complete_past_hours_are_cached_longest(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    clock.advance(timedelta(days=9))
    read_all(cache)
    bucket.reads()
    clock.advance(MAX_AGE[False, False] + timedelta(seconds=1))
    read_all(cache)
    assert bucket.reads() == 2 * 23
    clock.advance(MAX_AGE[False, True])
    read_all(cache)
    assert bucket.reads() == 1 + 2 * 23


def test_hour_whose_run_changed_is_read_again(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    read_all(cache)
    bucket.reads()
    bucket.store.delete("logs", [MARKER])
    bucket.reads()
    clock.advance(timedelta(seconds=5))
    known = read_all(cache, touched={HOUR: clock.now})
    assert known.hours[HOUR].summary.state is HourStatus.INCOMPLETE
    assert bucket.reads() == 2


def test_hour_that_changes_during_a_slow_read_is_read_again(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    marker = bucket.store.body(MARKER)
    bucket.store.delete("logs", [MARKER])
    # One hour after the other.
    bucket.store.control_connections = 1
    completed: list[datetime] = []

    def complete_and_go_on() -> None:
        """The hour has been read; its run completes it while other hours of the batch are still being read."""
        bucket.store.produce(MARKER, marker)
        completed.append(clock.now)
        clock.advance(timedelta(seconds=10))

    # The hours are read from the newest to the oldest.
    bucket.store.on("READ", STREAM.at(DAY[0]).marker.key, complete_and_go_on)
    assert read_all(cache).hours[HOUR].summary.state is HourStatus.INCOMPLETE
    known = read_all(cache, touched={HOUR: completed[0]})
    assert known.hours[HOUR].summary.state is HourStatus.COMPLETE


def test_refresh_after_some_seconds_reads_all_hours_again(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    read_all(cache)
    bucket.reads()
    read_all(cache, refresh=True)
    assert bucket.reads() == 0
    clock.advance(timedelta(seconds=5))
    read_all(cache, refresh=True)
    assert bucket.reads() == 1 + 2 * 23


def test_failing_bucket_is_reported_and_keeps_known_hours(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    read_all(cache)
    bucket.broken = True
    clock.advance(timedelta(minutes=1))
    known = read_all(cache)
    assert (known.error, known.pending) == ("the access key is not known to the server", 0)
    assert known.hours[HOUR].summary.state is HourStatus.COMPLETE
    bucket.broken = False
    assert read_all(cache).error == known.error
    clock.advance(FAILURE_PAUSE + timedelta(seconds=1))
    assert read_all(cache).error == ""


def test_one_store_is_open_at_a_time_for_many_requests(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    streams = [STREAM.model_copy(update={"aws_conn_id": f"conn_{number}"}) for number in range(8)]
    threads = [
        threading.Thread(target=cache.request, args=(stream, DAY, {}), kwargs={"wait_seconds": 60})
        for stream in streams
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = [cache.request(stream, DAY, {}) for stream in streams]
    assert [len(one.hours) for one in known] == [24] * 8
    assert bucket.most_open == 1


def test_waiting_requests_wake_when_reading_ends_or_fails(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    assert cache.when_read(STREAM, DAY).done()
    assert cache.when_read(STREAM, []).done()
    gate = threading.Event()

    def wait_for_gate() -> None:
        assert gate.wait(60)

    bucket.store.on("READ", "", wait_for_gate)
    assert cache.request(STREAM, DAY, {}).pending == len(DAY)
    waiting, given_up = cache.when_read(STREAM, DAY), cache.when_read(STREAM, DAY)
    assert not waiting.done()
    assert given_up.cancel()
    gate.set()
    waiting.result(60)
    assert cache.cached(STREAM, DAY).pending == 0
    clock.advance(timedelta(minutes=1))
    bucket.broken = True
    cache.request(STREAM, DAY, {}, refresh=True)
    cache.when_read(STREAM, DAY).result(60)
    assert cache.cached(STREAM, DAY).error == "the access key is not known to the server"


def test_damaged_hour_is_read_as_often_as_an_incomplete_one(bucket: Bucket, clock: Clock) -> None:
    bucket.store.produce(MARKER, b"")
    cache = MarkerCache(bucket, clock)
    assert read_all(cache).hours[HOUR].summary.state is HourStatus.DAMAGED
    bucket.reads()
    clock.advance(MAX_AGE[True, False] + timedelta(seconds=1))
    read_all(cache)
    assert bucket.reads() == 1 + 2 * 23
