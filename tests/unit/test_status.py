"""What the bucket alone says of hours."""

from datetime import timedelta

import pytest

from include.log_rollup.planning import plan_hour
from include.log_rollup.status import HourState, read_hours
from tests.unit.fake_store import FakeStore
from tests.unit.pipeline import HOUR, MARKER, make_stream, produce, run_hour

pytestmark = pytest.mark.usefixtures("unwatched")
STREAM = make_stream()
NEXT = HOUR + timedelta(hours=1)


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, {"a.log": b"a" * 30, "b.log": b"b" * 40})
    return store


def test_a_complete_hour_comes_with_its_marker_and_the_order_is_the_one_asked_for(store: FakeStore) -> None:
    run_hour(store, STREAM)
    later, first = read_hours(store, STREAM, [NEXT, HOUR])
    assert (later.hour, later.state, later.marker) == (NEXT, HourState.INCOMPLETE, None)
    assert (first.hour, first.state) == (HOUR, HourState.COMPLETE)
    assert first.marker is not None
    assert first.marker["objects"] == 2


def test_an_hour_that_a_run_has_claimed_is_being_built(store: FakeStore) -> None:
    plan_hour(store, STREAM, HOUR, "run")
    assert [status.state for status in read_hours(store, STREAM, [HOUR])] == [HourState.BUILDING]


def test_a_marker_of_another_version_is_a_complete_hour_without_numbers(store: FakeStore) -> None:
    store.produce(MARKER, b'{"format": 99}')
    (status,) = read_hours(store, STREAM, [HOUR])
    assert (status.state, status.marker) == (HourState.COMPLETE, {})
