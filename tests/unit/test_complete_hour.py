"""complete_hour writes the marker last, only over parts that were proven, and only for the current plan."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from include.log_rollup.errors import InputChangedError, ProofError, SupersededError, TransientError
from include.log_rollup.hour.manifest import HourTotals
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage.protocol import Location
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import (
    MANIFEST,
    MARKER,
    WORK,
    assert_complete,
    assert_not_complete,
    assert_right,
    make_stream,
    manifest_of,
    marker_of,
    part_key,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

RAW_HOUR: Mapping[str, bytes] = {
    **{f"{letter}.log": letter.encode() * 30 for letter in "abcdef"},
    "_hidden": b"x",
    "folder/": b"",
}
STREAM = make_stream()


@pytest.fixture
def store() -> FakeStore:
    """Return a store with an hour that is validated and not yet complete."""
    store = FakeStore()
    produce(store, RAW_HOUR)
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    validate_hour(store, STREAM, HOUR)
    store.log.clear()
    return store


def test_marker_is_written_before_anything_is_cleaned_up(store: FakeStore) -> None:
    complete_hour(store, STREAM, HOUR)
    staged, published, *others = store.writes()
    assert (staged.kind, staged.name.startswith("staged-"), staged.name.endswith("_SUCCESS")) == (
        "WRITE", True, True,
    )  # fmt: skip
    assert (published.kind, published.key) == ("PUBLISH", MARKER)
    assert {operation.kind for operation in others} == {"DELETE"}
    assert all(operation.key.startswith(WORK) for operation in others)
    assert_complete(store, STREAM)


def test_only_cleanup_follows_the_marker_in_the_pipeline() -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    run_hour(store, STREAM)
    names = [f"{operation.kind} {operation.key.removeprefix(AGGREGATED)}" for operation in store.writes()]
    marker = names.index("PUBLISH _SUCCESS")
    assert names.index("PUBLISH _manifest.jsonl.gz") < marker
    assert max(number for number, name in enumerate(names) if "part-" in name) < names.index(
        "PUBLISH _manifest.jsonl.gz"
    )
    assert all(name.startswith("DELETE _rollup/") for name in names[marker + 1 :])


def test_marker_has_totals_and_measurements(store: FakeStore) -> None:
    totals = complete_hour(store, STREAM, HOUR)
    marker = marker_of(store)
    reported = {name: marker[name] for name in ("stream", "hour", "plan_id", "objects", "bytes_in", "parts")}
    assert reported == {
        "stream": "app",
        "hour": "2026-11-23T08:00:00Z",
        "plan_id": totals.plan_id,
        "objects": 6,
        "bytes_in": 180,
        "parts": 3,
    }
    assert marker["left_out"] == {
        "hidden": 1,
        "placeholders": 1,
        "markers": 0,
        "excluded": 0,
        "unjoinable": 0,
        "unmatched": 0,
    }
    assert marker["verified"] == {"parts": {"stored-crc64nvme": 3}, "objects": {"crc64nvme": 6}}
    assert marker["max_connections"] == 8
    assert marker["peak"]["sockets"] == 0
    assert marker["peak"]["open_files"] > 0
    # Six objects, and the claim before each of the three parts.
    assert marker["requests"]["GET"] == 6 + 3
    assert (marker["retries"], marker["throttles"]) == (0, 0)
    assert marker["validated_at"] == manifest_of(store)[0]["validated_at"]
    for name in ("validated_at", "completed_at"):
        assert datetime.fromisoformat(marker[name]).tzinfo == UTC


def test_totals_are_those_of_the_manifest(store: FakeStore) -> None:
    proven = validate_hour(store, STREAM, HOUR)
    assert complete_hour(store, STREAM, HOUR) == proven


def test_marker_of_this_plan_is_not_rewritten(store: FakeStore) -> None:
    complete_hour(store, STREAM, HOUR)
    before = store.stored(MARKER)
    store.log.clear()
    complete_hour(store, STREAM, HOUR)
    assert store.stored(MARKER) is before
    assert store.writes() == []


def test_completion_is_reported_once(store: FakeStore) -> None:
    reported: list[HourTotals] = []
    totals = [complete_hour(store, STREAM, HOUR, reported.append) for _ in range(2)]
    assert reported == totals[:1]


def test_rerun_of_a_complete_hour_changes_no_object() -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    totals = run_hour(store, STREAM)
    before = store.snapshot()
    store.log.clear()
    assert run_hour(store, STREAM, "again") == totals
    assert store.writes() == []
    assert store.snapshot() == before


def test_retry_finishes_an_interrupted_cleanup(store: FakeStore) -> None:
    store.on("DELETE", "plan.json", TransientError("the connection broke"))
    with pytest.raises(TransientError):
        complete_hour(store, STREAM, HOUR)
    before = store.stored(MARKER)
    complete_hour(store, STREAM, HOUR)
    assert store.stored(MARKER) is before
    assert_complete(store, STREAM)


def test_marker_of_an_older_plan_is_replaced(store: FakeStore) -> None:
    store.produce(MARKER, json.dumps({"format": 1, "plan_id": "older"}).encode())
    complete_hour(store, STREAM, HOUR)
    assert_complete(store, STREAM)


@pytest.mark.parametrize("damage", ["corrupted", "deleted"])
def test_parts_changed_after_validation_get_no_marker(store: FakeStore, damage: str) -> None:
    if damage == "corrupted":
        store.corrupt(part_key(store, 1))
    else:
        store.vanish(part_key(store, 1))
    with pytest.raises(ProofError, match="Clear the run from plan_hour on") as caught:
        complete_hour(store, STREAM, HOUR)
    assert AGGREGATED in str(caught.value)
    assert store.writes() == []
    assert_not_complete(store)
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


def test_foreign_objects_do_not_prevent_the_marker(store: FakeStore) -> None:
    store.produce(AGGREGATED + "part-00003.log", b"foreign")
    complete_hour(store, STREAM, HOUR)
    assert_right(store, STREAM)
    assert store.body(AGGREGATED + "part-00003.log") == b"foreign"


def test_remaining_stray_parts_are_removed_before_the_marker() -> None:
    store = FakeStore()
    produce(store, {**RAW_HOUR, "bb.log": b"late" * 9})
    for ref in plan_hour(store, STREAM, HOUR, "overtaken").shards:
        pack_shard(store, STREAM, ref)
    store.vanish(RAW + "bb.log")
    for ref in plan_hour(store, STREAM, HOUR, "run", drop_vanished=True).shards:
        pack_shard(store, STREAM, ref)
    store.on("WRITE", "/removals/", TransientError("the connection broke"))
    with pytest.raises(TransientError):
        validate_hour(store, STREAM, HOUR)
    store.log.clear()
    complete_hour(store, STREAM, HOUR)
    names = [f"{operation.kind} {operation.name}" for operation in store.writes()]
    gone = [number for number, name in enumerate(names) if name.startswith("DELETE part-")]
    assert gone
    assert max(gone) < names.index("PUBLISH _SUCCESS")
    assert_complete(store, STREAM)


@pytest.mark.parametrize("exists", [False, True])
def test_newer_version_in_a_part_of_another_run_is_not_removed(store: FakeStore, exists: bool) -> None:
    """The server carries out the PUT of this claim again, after another run has packed a changed object.

    :param exists: whether the raw object exists in the version that this run has packed, again
    """
    claim, before = store.body(f"{WORK}claim.json"), parts(store)
    store.produce(RAW + "a.log", b"newer")
    for ref in plan_hour(store, STREAM, HOUR, "another").shards:
        pack_shard(store, STREAM, ref)
    assert len(parts(store)) > len(before)
    store.another_client().write(Location("logs", f"{WORK}claim.json"), claim, "application/json")
    if exists:
        store.produce(RAW + "a.log", RAW_HOUR["a.log"])
        complete_hour(store, STREAM, HOUR)
        assert parts(store) == before
        assert_complete(store, STREAM)
        return
    store.vanish(RAW + "a.log")
    with pytest.raises(
        InputChangedError, match=r"gone or have changed by now \(raw/app/20261123/08/a\.log\)"
    ):
        complete_hour(store, STREAM, HOUR)
    assert b"newer" in b"".join(parts(store).values())
    assert_not_complete(store)


def test_hour_without_a_manifest_gets_no_marker(store: FakeStore) -> None:
    store.vanish(MANIFEST)
    with pytest.raises(ProofError, match="clear the run from validate_hour on"):
        complete_hour(store, STREAM, HOUR)
    assert_not_complete(store)


def test_hour_replanned_by_another_run_gets_no_marker(store: FakeStore) -> None:
    store.produce(RAW + "g.log", b"late")
    other = plan_hour(store, STREAM, HOUR, "another run")
    with pytest.raises(SupersededError) as caught:
        complete_hour(store, STREAM, HOUR)
    assert f"plan {other.plan_id} of run 'another run' is being built there now" in str(caught.value)
    assert_not_complete(store)
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


@pytest.mark.parametrize("point", ["READ _SUCCESS", "READ claim.json", "WRITE _SUCCESS", "PUBLISH _SUCCESS"])
def test_run_that_begins_before_the_marker_removes_it(store: FakeStore, point: str) -> None:
    kind, name = point.split()
    store.produce(RAW + "g.log", b"late")
    store.on(kind, name, lambda: _discard(plan_hour(store, STREAM, HOUR, "another run")))
    with pytest.raises(SupersededError, match="is being built there now"):
        complete_hour(store, STREAM, HOUR)
    assert_not_complete(store)
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


def _discard(_: object) -> None:
    """Drop a result: the function of a rule returns nothing."""


def test_removed_marker_is_not_restored_without_a_plan(store: FakeStore) -> None:
    complete_hour(store, STREAM, HOUR)
    store.vanish(MARKER)
    with pytest.raises(SupersededError) as caught:
        complete_hour(store, STREAM, HOUR)
    assert "plan None" not in str(caught.value)
    assert "plan_hour" in str(caught.value)
    run_hour(store, STREAM)
    assert_complete(store, STREAM)
