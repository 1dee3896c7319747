"""The late check finds exactly the complete hours whose raw objects changed, and changes nothing."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from include.log_rollup.errors import AccessError
from include.log_rollup.hour.changes import Changes
from include.log_rollup.queries.late import LateCheckResult, find_changed_hours, recent_hours
from include.log_rollup.steps.plan_hour import plan_hour
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import MANIFEST, MARKER, make_stream, produce, run_hour
from tests.support.raw_hours import HOUR, RAW

RAW_HOUR: Mapping[str, bytes] = {f"{letter}.log": letter.encode() * 30 for letter in "abcde"}
STREAM = make_stream(ready_object="DONE")


@pytest.fixture
def store() -> FakeStore:
    """Return a store with one complete hour."""
    store = FakeStore()
    produce(store, {**RAW_HOUR, "DONE": b""})
    run_hour(store, STREAM)
    store.log.clear()
    return store


def check(store: FakeStore) -> LateCheckResult:
    return find_changed_hours(store, STREAM, [HOUR - timedelta(hours=1), HOUR, HOUR + timedelta(hours=1)])


def changes_of(result: LateCheckResult) -> Changes:
    (found,) = result.changed
    assert found.hour == HOUR
    return found.changes


def test_hours_of_the_last_days_have_all_ended() -> None:
    hours = recent_hours(datetime(2026, 11, 23, 8, 59, tzinfo=UTC), days=2)
    assert len(hours) == 48
    assert (hours[0], hours[-1]) == (
        datetime(2026, 11, 21, 8, tzinfo=UTC),
        datetime(2026, 11, 23, 7, tzinfo=UTC),
    )
    assert recent_hours(HOUR, days=0) == []


def test_unchanged_hour_needs_only_its_listing_and_marker(store: FakeStore) -> None:
    result = check(store)
    assert (result.hours, result.complete, result.changed, result.unclear) == (3, 1, [], [])
    assert {(operation.kind, operation.key) for operation in store.log if operation.kind != "LIST"} >= {
        ("READ", MARKER)
    }
    assert MANIFEST not in {operation.key for operation in store.log}


CHANGES: dict[str, tuple[Callable[[FakeStore], object], Changes]] = {
    "late": (lambda store: produce(store, {"z.log": b"late"}), Changes([RAW + "z.log"], [], [])),
    "late and empty": (lambda store: produce(store, {"z.log": b""}), Changes([RAW + "z.log"], [], [])),
    "a late container": (lambda store: produce(store, {"z.orc": b"ORC"}), Changes([RAW + "z.orc"], [], [])),
    "changed": (lambda store: produce(store, {"c.log": b"C" * 30}), Changes([], [RAW + "c.log"], [])),
    "both": (
        lambda store: produce(store, {"aa.log": b"late", "c.log": b"c"}),
        Changes([RAW + "aa.log"], [RAW + "c.log"], []),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_late_and_changed_objects_cause_a_rerun(store: FakeStore, change: str) -> None:
    change_hour, expected = CHANGES[change]
    change_hour(store)
    result = check(store)
    assert changes_of(result) == expected
    assert result.changed[0].can_be_rerun
    assert store.writes() == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("names", [["a.log"], list(RAW_HOUR)], ids=["one", "all"])
def test_vanished_objects_are_reported_without_a_rerun(
    store: FakeStore, names: list[str], late: bool
) -> None:
    for name in names:
        store.vanish(RAW + name)
    if late:
        produce(store, {"z.log": b"late"})
    result = check(store)
    assert changes_of(result).vanished == [RAW + name for name in names]
    assert bool(changes_of(result).late) == late
    assert not result.changed[0].can_be_rerun


@pytest.mark.parametrize("name", ["_late", ".late", "host/", "x/_temporary/late.log"])
def test_late_objects_that_are_not_packed_are_ignored(store: FakeStore, name: str) -> None:
    produce(store, {name: b"" if name.endswith("/") else b"x"})
    assert check(store).changed == []


def test_object_rewritten_with_the_same_bytes_is_unchanged(store: FakeStore) -> None:
    store.produce(RAW + "c.log", RAW_HOUR["c.log"], modified=store.now.timestamp())
    assert check(store).changed == []


@pytest.mark.parametrize("settings", [{"part_size": 128}, {"ensure_newline": True}], ids=str)
def test_changed_settings_do_not_make_an_hour_late(store: FakeStore, settings: dict[str, int | bool]) -> None:
    result = find_changed_hours(store, make_stream(ready_object="DONE", **settings), [HOUR])
    assert (result.complete, result.changed) == (1, [])


def test_incomplete_hour_is_left_to_its_own_run(store: FakeStore) -> None:
    produce(store, {"z.log": b"late"})
    plan_hour(store, STREAM, HOUR, "a run")
    result = check(store)
    assert (result.hours, result.complete, result.changed) == (3, 0, [])


@pytest.mark.parametrize("manifest", [None, b"damaged"])
def test_missing_manifest_is_reported_and_other_hours_checked(
    store: FakeStore, manifest: bytes | None
) -> None:
    produce(store, {"z.log": b"late"})
    store.vanish(MANIFEST)
    if manifest:
        store.produce(MANIFEST, manifest)
    result = check(store)
    assert (result.hours, result.complete, result.changed) == (3, 1, [])
    (unclear,) = result.unclear
    assert unclear.startswith(
        "2026-11-23T08:00:00Z: s3://logs/" if manifest else "2026-11-23T08:00:00Z: there"
    )


def test_store_error_is_raised(store: FakeStore) -> None:
    store.on("LIST", "", AccessError("denied"))
    with pytest.raises(AccessError):
        check(store)


def test_rerun_resolves_what_was_found(store: FakeStore) -> None:
    produce(store, {"z.log": b"late", "c.log": b"C"})
    assert check(store).changed
    run_hour(store, STREAM)
    assert check(store).changed == []


def test_object_that_a_new_exclude_leaves_out_has_not_vanished(store: FakeStore) -> None:
    stream = make_stream(ready_object="DONE", exclude=("c.log",))
    assert find_changed_hours(store, stream, [HOUR]).changed == []
    store.delete("logs", [RAW + "c.log"])
    result = find_changed_hours(store, stream, [HOUR])
    assert changes_of(result) == Changes([], [], [RAW + "c.log"])


@pytest.mark.parametrize("record", [MARKER, MANIFEST])
def test_archived_record_leaves_only_its_own_hour_unclear(store: FakeStore, record: str) -> None:
    produce(store, {"z.log": b"late"})
    store.archive(record)
    result = check(store)
    assert (result.hours, result.complete, result.changed) == (3, 1, [])
    (unclear,) = result.unclear
    assert unclear.startswith(f"2026-11-23T08:00:00Z: GET s3://logs/{record}: ")
