"""An hour is settled by the store's own clock and listing, and by nothing else."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from include.log_rollup.errors import EmptyHourError, MissingBucketError, UnsettledHourError
from include.log_rollup.settle import Look, Rule, State, give_up_at, look, unsettled
from tests.unit.fake_store import FakeStore
from tests.unit.pipeline import HOUR, RAW, make_stream

PATHS = make_stream().at(HOUR)
QUIET = Rule(timedelta(minutes=10), None, False)
AFTER = HOUR + timedelta(hours=1)


def store_at(now: datetime, *written: datetime, **options: Any) -> FakeStore:
    """A store with an object for each of these times."""
    store = FakeStore(**options)
    store.now = now
    for number, instant in enumerate(written):
        store.produce(f"{RAW}{number:05d}.log", b"x" * 100, modified=instant.timestamp())
    return store


@pytest.mark.parametrize(
    ("now", "newest", "state"),
    [
        (AFTER - timedelta(seconds=1), HOUR, State.NOT_ENDED),
        (AFTER, AFTER - timedelta(minutes=10), State.SETTLED),
        (AFTER, AFTER - timedelta(minutes=10) + timedelta(seconds=1), State.BEING_WRITTEN),
        (AFTER + timedelta(hours=3), AFTER + timedelta(hours=2, minutes=55), State.BEING_WRITTEN),
        (AFTER + timedelta(hours=3), AFTER + timedelta(hours=2, minutes=50), State.SETTLED),
        (AFTER + timedelta(days=900), HOUR, State.SETTLED),
    ],
)
def test_an_hour_is_settled_once_it_has_ended_and_been_quiet(
    now: datetime, newest: datetime, state: State
) -> None:
    assert look(store_at(now, HOUR, newest, HOUR), PATHS, QUIET).state is state


def test_the_newest_object_counts_on_whichever_page_it_is_listed() -> None:
    old = [HOUR] * 9
    for index in range(10):
        written = [*old[:index], AFTER, *old[index:]]
        seen = look(store_at(AFTER + timedelta(minutes=5), *written, page_size=3), PATHS, QUIET)
        assert (seen.state, seen.objects, seen.bytes) == (State.BEING_WRITTEN, 10, 1000)
        assert seen.newest == AFTER


def test_one_look_is_one_listing() -> None:
    store = store_at(AFTER, *[HOUR] * 10, page_size=4)
    look(store, PATHS, QUIET)
    assert [operation.kind for operation in store.log] == ["LIST"] * 3


def test_an_hour_without_objects_is_empty_and_settles_only_where_that_is_allowed() -> None:
    allowed = Rule(timedelta(minutes=10), None, True)
    for minutes, forbidden_state, allowed_state in (
        (-1, State.NOT_ENDED, State.NOT_ENDED),
        (9, State.EMPTY, State.EMPTY),
        (10, State.EMPTY, State.SETTLED),
    ):
        store = store_at(AFTER + timedelta(minutes=minutes))
        assert look(store, PATHS, QUIET).state is forbidden_state
        assert look(store, PATHS, allowed).state is allowed_state


def test_where_there_is_a_marker_it_alone_decides() -> None:
    rule = Rule(timedelta(minutes=10), "done/_OK", False)
    store = store_at(AFTER + timedelta(hours=9), HOUR)
    assert look(store, PATHS, rule).state is State.NO_MARKER
    store.produce(RAW + "done/_OK2", b"")
    store.produce(RAW + "x/done/_OK", b"")
    assert look(store, PATHS, rule).state is State.NO_MARKER
    store.produce(RAW + "done/_OK", b"")
    assert look(store, PATHS, rule).state is State.SETTLED
    store.now = HOUR
    assert look(store, PATHS, rule).state is State.SETTLED


def test_only_the_hour_itself_is_looked_at() -> None:
    store = store_at(AFTER)
    store.produce("raw/app/20261123/09/a.log", b"x")
    store.produce("raw/app/20261123/080/a.log", b"x")
    store.produce("raw/other/20261123/08/a.log", b"x")
    assert look(store, PATHS, QUIET).objects == 0


def test_a_missing_bucket_is_no_empty_hour() -> None:
    with pytest.raises(MissingBucketError):
        look(FakeStore(buckets=["another"]), PATHS, QUIET)


def test_an_empty_hour_is_waited_for_until_the_timeout_after_its_end_and_a_busy_one_from_now_on() -> None:
    six_hours = timedelta(hours=6)
    late = AFTER + timedelta(hours=30)
    empty = Look(State.EMPTY, 0, 0, None, late)
    busy = Look(State.BEING_WRITTEN, 1, 1, late, late)
    early = Look(State.NOT_ENDED, 1, 1, HOUR, HOUR)
    assert give_up_at(PATHS, QUIET, empty, six_hours) == AFTER + six_hours
    assert give_up_at(PATHS, QUIET, busy, six_hours) == late + six_hours
    assert give_up_at(PATHS, QUIET, early, six_hours) == AFTER + six_hours


def test_giving_up_on_an_empty_hour_says_where_nothing_was_and_what_to_do() -> None:
    error = unsettled(PATHS, QUIET, Look(State.EMPTY, 0, 0, None, AFTER))
    assert isinstance(error, EmptyHourError)
    for part in ("2026-11-23T08:00:00Z", f"s3://logs/{RAW}", "allow_empty"):
        assert part in str(error)


def test_giving_up_on_a_marker_names_it() -> None:
    rule = Rule(timedelta(minutes=10), "_DONE", False)
    error = unsettled(PATHS, rule, Look(State.NO_MARKER, 1234, 1, HOUR, AFTER))
    assert isinstance(error, UnsettledHourError)
    for part in ("2026-11-23T08:00:00Z", f"s3://logs/{RAW}_DONE", "1,234 objects"):
        assert part in str(error)


def test_giving_up_on_a_busy_hour_says_when_it_was_written_to_last() -> None:
    newest = datetime(2026, 11, 23, 9, 7, 5, tzinfo=UTC)
    error = unsettled(PATHS, QUIET, Look(State.BEING_WRITTEN, 1234, 2048, newest, AFTER))
    assert isinstance(error, UnsettledHourError)
    for part in (
        "being written",
        "1,234 objects",
        "2.0 KiB",
        "2026-11-23 09:07:05Z",
        "0:10:00",
        "quiet_period",
    ):
        assert part in str(error)
