"""What the page Hours keeps of the bucket, and when it reads again."""

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
    """A clock that stands until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, duration: timedelta) -> None:
        self.now += duration


class Bucket:
    """Hands out one fake store, and counts how often it is opened and how many are open."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.broken = False
        self.opened = 0
        self.most = 0
        self._open = 0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stream: Stream) -> Iterator[FakeStore]:
        if self.broken:
            raise AccessError("the access key is not known to the server")
        with self._lock:
            self.opened += 1
            self._open += 1
            self.most = max(self.most, self._open)
        try:
            yield self.store
        finally:
            with self._lock:
                self._open -= 1

    def reads(self) -> int:
        """How many requests came since the last time."""
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


def look(
    cache: MarkerCache, touched: Mapping[datetime, datetime] | None = None, refresh: bool = False
) -> CachedHours:
    """Look and wait for all of it."""
    return cache.request(STREAM, DAY, touched or {}, refresh=refresh, wait_seconds=60)


def test_hour_is_not_read_again_while_its_entry_is_valid(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    known = look(cache)
    assert (known.pending, known.error) == (0, "")
    states = {hour: read.summary.state for hour, read in known.hours.items()}
    assert states == dict.fromkeys(DAY, HourStatus.INCOMPLETE) | {HOUR: HourStatus.COMPLETE}
    # One request for the hour that is complete, two for each other.
    assert bucket.reads() == 1 + 2 * 23
    look(cache)
    assert bucket.reads() == 0
    clock.pass_by(MAX_AGE[True, False] + timedelta(seconds=1))
    look(cache)
    assert bucket.reads() == 2 * 23


def test_complete_past_hours_are_cached_longest(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    clock.pass_by(timedelta(days=9))
    look(cache)
    bucket.reads()
    clock.pass_by(MAX_AGE[False, False] + timedelta(seconds=1))
    look(cache)
    assert bucket.reads() == 2 * 23
    clock.pass_by(MAX_AGE[False, True])
    look(cache)
    assert bucket.reads() == 1 + 2 * 23


def test_hour_whose_run_changed_is_read_again(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    look(cache)
    bucket.reads()
    bucket.store.delete("logs", [MARKER])
    bucket.reads()
    clock.pass_by(timedelta(seconds=5))
    known = look(cache, touched={HOUR: clock.now})
    assert known.hours[HOUR].summary.state is HourStatus.INCOMPLETE
    assert bucket.reads() == 2


def test_refresh_reads_all_hours_once_at_a_time(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    look(cache)
    bucket.reads()
    look(cache, refresh=True)
    assert bucket.reads() == 0
    clock.pass_by(timedelta(seconds=5))
    look(cache, refresh=True)
    assert bucket.reads() == 1 + 2 * 23


def test_failing_bucket_is_reported_and_keeps_known_hours(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    look(cache)
    bucket.broken = True
    clock.pass_by(timedelta(minutes=1))
    known = look(cache)
    assert (known.error, known.pending) == ("the access key is not known to the server", 0)
    assert known.hours[HOUR].summary.state is HourStatus.COMPLETE
    bucket.broken = False
    assert look(cache).error == known.error
    clock.pass_by(FAILURE_PAUSE + timedelta(seconds=1))
    assert look(cache).error == ""


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
    assert bucket.most == 1


def test_waiting_requests_wake_when_reading_ends_or_fails(bucket: Bucket, clock: Clock) -> None:
    cache = MarkerCache(bucket, clock)
    assert cache.when_read(STREAM, DAY).done()
    assert cache.when_read(STREAM, []).done()
    gate = threading.Event()

    def hold() -> None:
        assert gate.wait(60)

    bucket.store.on("READ", "", hold)
    assert cache.request(STREAM, DAY, {}).pending == len(DAY)
    waiting, given_up = cache.when_read(STREAM, DAY), cache.when_read(STREAM, DAY)
    assert not waiting.done()
    assert given_up.cancel()
    gate.set()
    waiting.result(60)
    assert cache.cached(STREAM, DAY).pending == 0
    clock.pass_by(timedelta(minutes=1))
    bucket.broken = True
    cache.request(STREAM, DAY, {}, refresh=True)
    cache.when_read(STREAM, DAY).result(60)
    assert cache.cached(STREAM, DAY).error == "the access key is not known to the server"


def test_damaged_hour_is_read_as_often_as_an_incomplete_one(bucket: Bucket, clock: Clock) -> None:
    bucket.store.produce(MARKER, b"")
    cache = MarkerCache(bucket, clock)
    assert look(cache).hours[HOUR].summary.state is HourStatus.DAMAGED
    bucket.reads()
    clock.pass_by(MAX_AGE[True, False] + timedelta(seconds=1))
    look(cache)
    assert bucket.reads() == 1 + 2 * 23
