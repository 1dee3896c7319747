"""The record of expired raw objects says what has expired; a damaged one is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup.errors import SupersededError, UnreadableRecordError
from include.log_rollup.hour.expiry_record import Deletion, ExpiredPart, ExpiryRecord
from include.log_rollup.hour.plan import new_plan_id
from include.log_rollup.hour.state import HourState
from include.log_rollup.storage.protocol import Location
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream, part_name, produce, run_hour
from tests.support.raw_hours import AGGREGATED, HOUR

pytestmark = pytest.mark.usefixtures("unwatched")

AT = Location("logs", f"{AGGREGATED}_expired.json")
PART = "part-00000-0a1b2c3d.log"
STARTED, FINISHED = "2026-12-07T05:00:00+00:00", "2026-12-07T05:01:00+00:00"

texts = st.text(max_size=9)
counts = st.integers(0, 2**40)
records = st.builds(
    ExpiryRecord,
    texts,
    texts,
    st.dictionaries(texts, st.builds(ExpiredPart, texts, st.frozensets(texts, max_size=3)), max_size=3),
    st.lists(st.builds(Deletion, texts, texts, st.none() | texts, counts, counts), max_size=3).map(tuple),
    counts,
    counts,
)


def a_record(**changes: Any) -> ExpiryRecord:
    parts = {PART: ExpiredPart("f1", frozenset({"raw/kept"}))}
    values: dict[str, Any] = {"parts": parts, "deletions": (Deletion("a plan", STARTED),), **changes}
    return ExpiryRecord("app", "2026-11-23T08:00:00Z", **values)


def damaged(**changes: Any) -> bytes:
    body = {**json.loads(a_record().to_bytes()), **changes}
    # As of an earlier version, so that its form decides.
    del body["crc64nvme"]
    return json.dumps(body).encode()


@settings(max_examples=20)
@given(record=records)
def test_record_round_trips(record: ExpiryRecord) -> None:
    assert ExpiryRecord.from_bytes(AT, record.to_bytes()) == record


def test_totals_are_at_the_beginning() -> None:
    keys = list(json.loads(a_record(objects=3, size=90).to_bytes()))
    assert keys == ["format", "stream", "hour", "objects", "bytes", "deletions", "parts", "crc64nvme"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 1}',
        damaged(parts=[]),
        damaged(parts={PART: {"fingerprint": "f1"}}),
        damaged(parts={PART: {"fingerprint": "f1", "kept": "raw/kept"}}),
        damaged(parts={PART: {"fingerprint": 1, "kept": []}}),
        damaged(deletions=[{"plan_id": "a plan"}]),
        damaged(objects=-1),
        damaged(bytes=True),
        a_record().to_bytes()[:-9],
    ],
)
def test_damaged_record_is_refused(body: bytes) -> None:
    with pytest.raises(
        UnreadableRecordError, match=r"_expired\.json: the record .* cannot be read .* Restore it"
    ):
        ExpiryRecord.from_bytes(AT, body)


def test_record_with_a_changed_byte_is_refused() -> None:
    body = a_record().to_bytes()
    assert ExpiryRecord.from_bytes(AT, damaged()) == a_record()
    for changed in (body.replace(b"raw/kept", b"raw/kepu"), body.replace(b'"f1"', b'"f3"')):
        assert changed != body
        with pytest.raises(UnreadableRecordError, match="its content does not have the CRC64NVME"):
            ExpiryRecord.from_bytes(AT, changed)


def test_record_of_a_later_format_is_refused() -> None:
    with pytest.raises(UnreadableRecordError, match=r"has format 2, this version .* reads format 1"):
        ExpiryRecord.from_bytes(AT, damaged(format=2))


def test_announced_is_what_the_part_does_not_keep() -> None:
    record = a_record()
    assert record.is_announced(PART, "f1", "raw/a")
    assert not record.is_announced(PART, "f1", "raw/kept")
    assert not record.is_announced(PART, "f2", "raw/a")
    assert not record.is_announced("part-00001-0a1b2c3d.log", "f1", "raw/a")
    assert (record.has_announced(PART, "f1"), record.has_announced(PART, "f2")) == (True, False)


def test_time_of_expiry_is_the_end_of_the_last_deletion() -> None:
    begun = a_record()
    assert (begun.unfinished, begun.expired_at) == (begun.deletions[0], STARTED)
    done = a_record(deletions=(Deletion("a plan", STARTED, FINISHED, 3, 90),))
    assert (done.unfinished, done.expired_at) == (None, FINISHED)
    assert (a_record(deletions=()).unfinished, a_record(deletions=()).expired_at) == (None, "")


# -- in the bucket ---------------------------------------------------------------------------------------


@pytest.fixture
def state() -> HourState:
    """Return the state of a complete hour."""
    return HourState(store_with_hour(), make_stream(), HOUR)


def store_with_hour() -> FakeStore:
    store = FakeStore(control_connections=1)
    produce(store, {"a.log": b"a" * 30, "b.log": b"b" * 30})
    run_hour(store, make_stream())
    return store


def manifest_etag(state: HourState) -> str:
    return state.inventory().manifest_etag or ""


def test_hour_without_expired_objects_has_no_record(state: HourState) -> None:
    assert state.expiry_record() is None
    assert state.inventory().expiry_etag is None


def test_record_is_read_as_written_and_is_not_foreign(state: HourState) -> None:
    written = state.announce_expiry(a_record(), None, manifest_etag(state))
    assert written.etag
    assert state.expiry_record() == written
    found = state.inventory()
    assert (found.expiry_etag, list(found.foreign)) == (written.etag, [])
    assert state.announce_expiry(a_record(objects=1), written.etag, manifest_etag(state)).objects == 1


def test_damaged_record_in_the_bucket_is_refused() -> None:
    store = store_with_hour()
    store.produce(AT.key, b"{")
    with pytest.raises(UnreadableRecordError, match="cannot be read"):
        HourState(store, make_stream(), HOUR).expiry_record()


def test_record_of_another_run_is_not_replaced(state: HourState) -> None:
    written = state.announce_expiry(a_record(), None, manifest_etag(state))
    with pytest.raises(SupersededError, match="another run has written the record of expired raw objects"):
        state.announce_expiry(a_record(objects=1), None, manifest_etag(state))
    assert state.expiry_record() == written


def test_nothing_may_be_deleted_once_the_hour_has_changed(state: HourState) -> None:
    seen = manifest_etag(state)
    written = state.announce_expiry(a_record(), None, seen)
    state.assert_expirable(written, seen)
    with pytest.raises(SupersededError, match="the manifest is not the one whose parts were proven"):
        state.assert_expirable(written, "another")
    finished = state.finish_expiry(a_record(objects=2), written, seen)
    with pytest.raises(SupersededError, match="another run has written the record"):
        state.assert_expirable(written, seen)
    marker = state.marker()
    assert marker is not None
    state.remove_marker(marker.etag)
    with pytest.raises(SupersededError, match="the hour is not complete any more"):
        state.assert_expirable(finished, seen)
    state.records.write_claim(state.paths.claim, "f" * 20, "a run", "0a")
    with pytest.raises(SupersededError, match="a run has claimed the hour"):
        state.assert_expirable(finished, seen)


def test_finished_deletion_leaves_the_record_of_another_run(state: HourState) -> None:
    seen = manifest_etag(state)
    first = state.announce_expiry(a_record(), None, seen)
    second = state.announce_expiry(a_record(objects=1), first.etag, seen)
    with pytest.raises(SupersededError, match="another run has written the record"):
        state.finish_expiry(a_record(objects=2), first, seen)
    assert state.expiry_record() == second


def test_announced_parts_stay_announced_once_the_hour_is_claimed(state: HourState) -> None:
    """The plan may keep a part because of the announcement, although its raw object was not deleted after all."""
    seen = manifest_etag(state)
    first = state.announce_expiry(a_record(), None, seen)
    state.begin(new_plan_id("f" * 20), "a run", [], [], None, seen, first.etag)
    with pytest.raises(SupersededError, match="a run has claimed the hour"):
        state.finish_expiry(a_record(objects=2, parts={}), first, seen)
    assert state.expiry_record() == first


@pytest.mark.parametrize("other", ["expiry", "plan"])
def test_record_copied_late_replaces_nothing(other: str) -> None:
    """Another run writes the record, or claims the hour, just before the store copies the staged record."""
    store = store_with_hour()
    state = HourState(store, make_stream(), HOUR)
    seen = manifest_etag(state)
    first = state.announce_expiry(a_record(), None, seen)
    publish = store.publish

    def take_over(source: Location, target: Location) -> None:
        store.publish = publish  # type: ignore[method-assign]
        if other == "expiry":
            state.announce_expiry(a_record(objects=1), first.etag, seen)
        else:
            plan_id = new_plan_id("f" * 20)
            state.begin(plan_id, "a run", [], [], None, seen, first.etag)
        publish(source, target)

    store.publish = take_over  # type: ignore[method-assign]
    with pytest.raises(SupersededError, match="another run has taken over the hour"):
        state.finish_expiry(a_record(objects=2), first, seen)
    record = state.expiry_record()
    assert record is not None
    assert record.objects == (1 if other == "expiry" else a_record().objects)
    assert not [name for name in state.inventory().work if "staged" in name]


def test_record_names_existing_parts() -> None:
    store = store_with_hour()
    state = HourState(store, make_stream(), HOUR)
    manifest = state.manifest()
    assert manifest is not None
    (entry,) = manifest.table
    name = part_name(store, 0)
    state.announce_expiry(
        a_record(parts={name: ExpiredPart(entry["fingerprint"])}), None, manifest_etag(state)
    )
    record = state.expiry_record()
    assert record is not None
    assert record.has_announced(name, entry["fingerprint"])
