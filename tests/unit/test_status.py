"""The status of hours, read from the bucket alone."""

import gzip
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from include.log_rollup.errors import AccessError, TooLargeError, UnreadableRecordError
from include.log_rollup.queries.status import HourStatus, HourSummary, read_hours
from include.log_rollup.steps.plan_hour import plan_hour
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import CLAIM, MARKER, make_stream, marker_of, produce, run_hour
from tests.support.raw_hours import HOUR

pytestmark = pytest.mark.usefixtures("unwatched")
STREAM = make_stream()
NEXT = HOUR + timedelta(hours=1)


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, {"a.log": b"a" * 30, "b.log": b"b" * 40})
    return store


@pytest.fixture
def complete_store(store: FakeStore) -> FakeStore:
    run_hour(store, STREAM)
    return store


def status_of(store: FakeStore) -> HourSummary:
    """Return the status of the hour, and check that of the next hour."""
    found, next_hour = read_hours(store, STREAM, [HOUR, NEXT])
    assert next_hour.state is HourStatus.INCOMPLETE
    return found


def test_hours_come_in_order_with_their_markers(store: FakeStore) -> None:
    run_hour(store, STREAM)
    later, first = read_hours(store, STREAM, [NEXT, HOUR])
    assert (later.hour, later.state, later.marker) == (NEXT, HourStatus.INCOMPLETE, None)
    assert (first.hour, first.state, first.problem) == (HOUR, HourStatus.COMPLETE, "")
    written = marker_of(store)
    assert first.marker == {name: value for name, value in written.items() if name != "format"}


def test_claimed_hour_is_being_built(store: FakeStore) -> None:
    plan_hour(store, STREAM, HOUR, "run")
    assert [status.state for status in read_hours(store, STREAM, [HOUR])] == [HourStatus.BUILDING]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"not JSON", b"null", b"[]", b"7", b'{"format": 99}', b'{"format": "1"}', b"\xff\xfe{}",
        gzip.compress(b"{}"), b'{"format": 1', b'{"format": 1}', b"[" * 200_000, b'{"a":' * 200_000,
    ],
)  # fmt: skip
def test_invalid_marker_is_a_damaged_hour(store: FakeStore, body: bytes) -> None:
    store.produce(MARKER, body)
    status = status_of(store)
    assert (status.state, status.marker) == (HourStatus.DAMAGED, None)
    assert f"s3://logs/{MARKER}" in status.problem


WRONG: Mapping[type, list[Any]] = {
    int: [None, -1, 1.5, "7", True, [], {}, 2**70, float("nan")],
    str: [None, 7, [], {}, "\ud800"],
    dict: [None, 7, "x", [], {"x": "y"}, {"x": -1}, {"\ud800": -1}],
}
MARKER_KEYS = (
    "stream", "hour", "plan_id", "objects", "bytes_in", "separator_bytes", "bytes_out", "parts", "left_out",
    "verified", "validated_at", "completed_at", "max_connections", "peak", "requests", "retries", "throttles",
    "seconds", "foreign", "damaged", "raw_digest",
)  # fmt: skip
# Markers of earlier versions lack these keys.
NEW_KEYS = ("foreign", "damaged", "raw_digest")


def test_every_key_of_a_marker_is_validated(complete_store: FakeStore) -> None:
    assert set(MARKER_KEYS) == marker_of(complete_store).keys() - {"format"}


@pytest.mark.parametrize("name", MARKER_KEYS)
def test_marker_without_a_key_or_with_a_wrong_one_is_damaged(complete_store: FakeStore, name: str) -> None:
    marker = marker_of(complete_store)
    if name not in NEW_KEYS:
        assert_damaged(complete_store, {key: value for key, value in marker.items() if key != name}, name)
    for value in WRONG[type(marker[name])]:
        if name not in NEW_KEYS or (value is not None and (name == "raw_digest" or value not in ([], {}))):
            assert_damaged(complete_store, {**marker, name: value}, name)


@pytest.mark.parametrize(
    ("outer", "inner", "value"),
    [
        ("peak", "sockets", -1),
        ("seconds", "pack", float("inf")),
        ("seconds", "pack_cpu", float("nan")),
        ("verified", "objects", {"read-back": "all"}),
    ],
)
def test_nested_keys_of_a_marker_are_validated(
    complete_store: FakeStore, outer: str, inner: str, value: Any
) -> None:
    marker = marker_of(complete_store)
    assert_damaged(complete_store, {**marker, outer: {**marker[outer], inner: value}}, f"{outer}.{inner}")
    rest = {key: value for key, value in marker[outer].items() if key != inner}
    assert_damaged(complete_store, {**marker, outer: rest}, f"{outer}.{inner}")


@pytest.mark.parametrize("time", ["yesterday", "20261123T09", "2026-13-23T09:00:00Z", "2026-11-23T09:00:00"])
def test_marker_with_an_invalid_time_is_damaged(complete_store: FakeStore, time: str) -> None:
    assert_damaged(complete_store, {**marker_of(complete_store), "completed_at": time}, "completed_at")


def assert_damaged(store: FakeStore, marker: Mapping[str, Any], named: str) -> None:
    """Check that an hour with this marker is damaged, and that the message names the key."""
    store.produce(MARKER, json.dumps(marker).encode())
    status = status_of(store)
    assert status.state is HourStatus.DAMAGED, marker
    assert named in status.problem
    assert status.problem.encode()


def test_foreign_and_damaged_counts_are_read_if_present(complete_store: FakeStore) -> None:
    marker = marker_of(complete_store)
    complete_store.produce(MARKER, json.dumps({**marker, "foreign": 3, "damaged": ["a.gz", "b.gz"]}).encode())
    found = status_of(complete_store).marker
    assert found is not None
    assert (found["foreign"], found["damaged"]) == (3, 2)


@pytest.mark.parametrize("error", [TooLargeError("has 1 GiB"), UnreadableRecordError("is cut off")])
def test_unreadable_record_is_not_an_error(complete_store: FakeStore, error: Exception) -> None:
    complete_store.on("READ", MARKER, error)
    status = status_of(complete_store)
    assert status.state is HourStatus.DAMAGED
    assert status.problem.startswith(f"s3://logs/{MARKER}: ")


@pytest.mark.parametrize("error", [AttributeError("no isatty"), MemoryError(), TypeError("no")])
def test_error_of_a_request_is_no_damaged_record(complete_store: FakeStore, error: Exception) -> None:
    complete_store.on("READ", MARKER, error)
    with pytest.raises(type(error)):
        read_hours(complete_store, STREAM, [HOUR])


def test_archived_record_affects_only_its_own_hour(store: FakeStore) -> None:
    run_hour(store, STREAM)
    store.produce(MARKER.replace("/08/", "/09/"), store.body(MARKER))
    store.archive(MARKER)
    archived, readable = read_hours(store, STREAM, [HOUR, NEXT])
    assert (archived.state, readable.state) == (HourStatus.DAMAGED, HourStatus.COMPLETE)
    assert f"s3://logs/{MARKER}" in archived.problem
    assert "the object is archived" in archived.problem


def test_damaged_claim_leaves_the_hour_being_built(store: FakeStore) -> None:
    plan_hour(store, STREAM, HOUR, "run")
    for body in (b"", b"[]", b"{", b"[" * 200_000, b'{"format": 1}'):
        store.produce(CLAIM, body)
        status = status_of(store)
        assert status.state is HourStatus.BUILDING
        assert f"s3://logs/{CLAIM}" in status.problem


def test_bucket_that_refuses_is_an_error(store: FakeStore) -> None:
    store.on("READ", MARKER, AccessError("no"))
    with pytest.raises(AccessError):
        read_hours(store, STREAM, [HOUR])
