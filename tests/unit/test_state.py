"""HourState keeps runs apart: no marker, manifest or part of one run harms another run's hour."""

import gzip
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from include.log_rollup import limits
from include.log_rollup.errors import (
    AccessError,
    InputChangedError,
    NotFoundError,
    RollupError,
    SupersededError,
    TransientError,
    UnsupportedOperationError,
    VanishedInputError,
)
from include.log_rollup.hour.expiry_record import Deletion, ExpiredPart, ExpiryRecord
from include.log_rollup.hour.manifest import ManifestReader
from include.log_rollup.hour.plan import PlannedPart, content_id_of
from include.log_rollup.hour.reader import LateListingError
from include.log_rollup.hour.records import Claim, CompletionMarker
from include.log_rollup.hour.state import HourState
from include.log_rollup.steps.complete_hour import complete_hour, marker_of
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage.protocol import Location, ObjectInfo
from tests.support.fake_store import CrashError, Effect, FakeStore, Operation
from tests.support.hour_in_memory import (
    CLAIM,
    MANIFEST,
    MARKER,
    REMOVALS,
    WORK,
    assert_complete,
    assert_right,
    finish_hour,
    make_stream,
    part_name,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

pytestmark = pytest.mark.usefixtures("unwatched")

# Three parts in two shards.
RAW_HOUR: Mapping[str, bytes] = {f"{letter}.log": letter.encode() * 30 for letter in "abcdef"}
STREAM = make_stream()
OTHER_PLAN = "f" * 20
STRAY = "part-00009-0a1b2c3d.log"


@pytest.fixture
def store() -> FakeStore:
    """Return a store with an unplanned raw hour; with one connection, the order of requests is fixed."""
    store = FakeStore(control_connections=1)
    produce(store, RAW_HOUR)
    return store


def state_of(store: FakeStore) -> HourState:
    return HourState(store, STREAM, HOUR)


def plan(store: FakeStore, run_id: str = "run") -> Planned:
    return plan_hour(store, STREAM, HOUR, run_id)


def current(store: FakeStore) -> Claim:
    """Return the current claim, read without the log and the rules of the store."""
    claim = state_of(store.fork()).claim()
    assert claim is not None
    return claim


def run_until_marker(store: FakeStore) -> tuple[Claim, CompletionMarker]:
    """Run all steps but the last; returns the claim, and the marker to publish."""
    for ref in plan(store).shards:
        pack_shard(store, STREAM, ref)
    validate_hour(store, STREAM, HOUR)
    manifest = manifest_of(store)
    now = datetime(2026, 11, 23, 10, tzinfo=UTC)
    return current(store), marker_of(manifest.totals, manifest.validated_at, now)


def manifest_of(store: FakeStore) -> ManifestReader:
    manifest = state_of(store.fork()).manifest()
    assert manifest is not None
    return manifest


def take_over(store: FakeStore) -> Planned:
    """Change the hour, and plan it as another run."""
    store.produce(RAW + "late.log", b"late")
    return plan(store, "another run")


def part_names_of(store: FakeStore, plan_id: str) -> set[str]:
    """Return the names of a plan's parts, read from its shards."""
    state = state_of(store.fork())
    found = set()
    for name in state.inventory().work:
        if name.startswith(f"{plan_id}/shard-"):
            shard = state.records.read_shard(state.paths.work.child(name), RAW)
            assert shard is not None
            found |= {part.name for part in shard.parts}
    return found


def remove(store: FakeStore, names: Iterable[str], basis: Claim | None, **options: Any) -> None:
    """Delete parts."""
    state_of(store).remove_parts({name: name for name in names}, basis, **options)


def staged(store: FakeStore) -> list[str]:
    return [key for key in store.listing(WORK) if "staged-" in key]


class InterruptedStore(FakeStore):
    """A copy of a store that calls an action before one of the requests."""

    def __init__(self, base: FakeStore, number: int, action: Callable[[FakeStore], object]) -> None:
        super().__init__(control_connections=1)
        self._buckets = base.fork()._buckets
        self._left = number
        self._action = action
        self.interrupted = False

    def begin(self, kind: str, target: Location, detail: str = "") -> Effect | None:
        if not self.interrupted:
            if self._left == 0:
                self.interrupted = True
                self._action(self)
            self._left -= 1
        return super().begin(kind, target, detail)


def interruptions(
    base: FakeStore, work: Callable[[FakeStore], object], action: Callable[[FakeStore], object]
) -> Iterator[tuple[FakeStore, RollupError | None]]:
    """Do some work repeatedly, with an action before each of its requests in turn, and at last after all of them.

    :returns: for each repetition the store afterwards, and the error of the work, None if it succeeded
    """
    for number in count():
        store = InterruptedStore(base, number, action)
        error = None
        try:
            work(store)
        except RollupError as caught:
            error = caught
        if not store.interrupted:
            action(store)
            yield store, error
            assert number > 2, "there was nothing to interrupt"
            return
        yield store, error


# -- inventory -----------------------------------------------------------------------------------------


def test_inventory_separates_ours_from_foreign_objects(store: FakeStore) -> None:
    plan_id = plan(store).plan_id
    for name in ("notes.txt", f"{plan_id}/notes.txt", "removals/notes.json"):
        store.produce(WORK + name, b"foreign")
    for name in (STRAY, "part-1.log", "other/part-00000.log", "_SUCCESS.old", "folder/"):
        store.produce(AGGREGATED + name, b"" if name.endswith("/") else b"foreign")
    found = state_of(store).inventory()
    assert set(found.parts) == {STRAY}
    assert "claim.json" in found.work
    assert f"{plan_id}/plan.json" in found.work
    assert [item.key.removeprefix(AGGREGATED) for item in found.foreign] == [
        "_SUCCESS.old", f"_rollup/{plan_id}/notes.txt", "_rollup/notes.txt", "_rollup/removals/notes.json",
        "other/part-00000.log", "part-1.log",
    ]  # fmt: skip
    assert (found.manifest_etag is not None, found.has_marker) == (False, False)


def test_inventory_has_manifest_and_marker(store: FakeStore) -> None:
    run_hour(store, STREAM)
    found = state_of(store).inventory()
    assert (found.manifest_etag is not None, found.has_marker, list(found.foreign), found.work) == (
        True,
        True,
        [],
        frozenset(),
    )
    assert set(found.parts) == set(parts(store))


def test_part_that_a_record_names_is_ours(store: FakeStore) -> None:
    plan_id = plan(store).plan_id
    pack = part_names_of(store, plan_id)
    state = state_of(store)
    assert set(state.recorded_parts(state.inventory().work, None)) == pack
    assert state.recorded_parts((), None) == {}
    run_hour(store, STREAM)
    assert set(state.recorded_parts((), manifest_of(store))) == pack


def test_unrecorded_parts_are_not_stray_parts(store: FakeStore) -> None:
    before = plan(store)
    for ref in before.shards:
        pack_shard(store, STREAM, ref)
    old = set(parts(store))
    after = take_over(store)
    store.produce(AGGREGATED + STRAY, b"foreign")
    needed = part_names_of(store, after.plan_id)
    state = state_of(store)
    assert set(state.strays(state.inventory(), needed, after.plan_id, None)) == old - needed
    assert old - needed


def test_claims_of_other_plans_are_not_current(store: FakeStore) -> None:
    state = state_of(store)
    with pytest.raises(SupersededError, match="no plan is being built there now"):
        state.assert_current(OTHER_PLAN)
    plan_id = plan(store).plan_id
    claim = state.assert_current(plan_id)
    assert state.assert_current(plan_id, claim.claim_id) == claim
    assert state.is_complete_under(plan_id) is False
    with pytest.raises(SupersededError, match="another run has taken over"):
        state.assert_current(plan_id, "another claim")
    for check in (state.assert_current, state.is_complete_under):
        with pytest.raises(SupersededError, match=f"plan {plan_id} of run 'run' is being built there now"):
            check(OTHER_PLAN)
    store.produce(CLAIM, b"damaged")
    with pytest.raises(SupersededError, match="the claim there is damaged"):
        state.assert_current(plan_id)


def test_marker_counts_for_its_plan_without_a_claim(store: FakeStore) -> None:
    plan_id = run_hour(store, STREAM).plan_id
    state = state_of(store)
    assert state.is_complete_under(plan_id) is True
    with pytest.raises(SupersededError):
        state.is_complete_under(OTHER_PLAN)
    store.vanish(MARKER)
    with pytest.raises(SupersededError):
        state.is_complete_under(plan_id)


# -- begin ---------------------------------------------------------------------------------------------


def begin(store: FakeStore, plan_id: str = OTHER_PLAN, **options: Any) -> Claim | None:
    there = store.stored(MANIFEST).etag if store.has(MANIFEST) else None
    seen = {"seen_marker": None, "seen_manifest": there}
    arguments: dict[str, Any] = {"parts": [STRAY], "files": (), **seen, **options}
    return state_of(store).begin(plan_id, "another run", **arguments)


def test_claim_comes_before_everything_else(store: FakeStore) -> None:
    run_hour(store, STREAM)
    stale = WORK + f"{OTHER_PLAN}/staged-0f-_SUCCESS"
    store.produce(stale, b"{}")
    store.log.clear()
    claim = begin(store, seen_marker=store.stored(MARKER).etag)
    assert claim == current(store)
    assert [(operation.kind, operation.key) for operation in store.writes()] == [
        ("WRITE", CLAIM), ("DELETE", stale), ("DELETE", MARKER),
    ]  # fmt: skip
    assert store.log[0] == Operation("WRITE", "logs", CLAIM)


def test_each_begin_writes_its_own_claim(store: FakeStore) -> None:
    one, two = begin(store), begin(store)
    assert one is not None
    assert two is not None
    assert (one.plan_id, one.run_id) == (two.plan_id, two.run_id)
    assert one.claim_id != two.claim_id


def test_begin_deletes_staged_objects_of_all_runs(store: FakeStore) -> None:
    for plan_id in (OTHER_PLAN, "0" * 20):
        for name in ("staged-0f-_SUCCESS", "staged-1f-_manifest.jsonl.gz", "plan.json"):
            store.produce(WORK + f"{plan_id}/{name}", b"{}")
    begin(store)
    assert staged(store) == []
    assert len(store.listing(WORK)) == 3


def test_marker_unknown_to_planning_stops_begin(store: FakeStore) -> None:
    run_hour(store, STREAM)
    for seen in (None, "another"):
        assert begin(store, seen_marker=seen) is None
        assert store.has(MARKER)


def test_begin_requires_the_files_of_its_plan(store: FakeStore) -> None:
    plan_id = plan(store).plan_id
    files = [f"{plan_id}/plan.json", f"{plan_id}/shard-00000.json.gz"]
    assert begin(store, plan_id, files=files) is not None
    store.vanish(WORK + files[1])
    with pytest.raises(LateListingError):
        begin(store, plan_id, files=files)


def test_begin_fails_if_its_claim_is_replaced(store: FakeStore) -> None:
    store.on("LIST", WORK, lambda: discard(take_over(store)))
    with pytest.raises(SupersededError, match="'another run' is being built there now"):
        begin(store)


def test_begin_fails_if_its_claim_is_deleted(store: FakeStore) -> None:
    store.on("LIST", WORK, lambda: store.vanish(CLAIM))
    assert begin(store) is None


def discard(_: object) -> None:
    """Drop a result: the function of a rule returns nothing."""


def test_stray_part_with_announced_objects_stays(store: FakeStore) -> None:
    run_hour(store, STREAM)
    name = part_name(store, 0)
    announced = ExpiryRecord("app", "2026-11-23T08:00:00Z", {name: ExpiredPart("0" * 16)}, ())
    store.produce(f"{AGGREGATED}_expired.json", announced.to_bytes())
    store.produce(AGGREGATED + STRAY, b"x")
    remove(store, [name, STRAY], None, completed=manifest_of(store))
    assert name in parts(store)
    assert STRAY not in parts(store)


def test_claim_is_removed_if_its_condition_is_refused(
    monkeypatch: pytest.MonkeyPatch, store: FakeStore
) -> None:
    monkeypatch.setattr(store, "delete_if", lambda *_: False)
    plan_id = run_hour(store, STREAM).plan_id
    assert not store.has(CLAIM)
    state_of(store).clean_up(plan_id)
    claim = begin(store, seen_marker=store.stored(MARKER).etag)
    assert claim is not None
    store.on("HEAD", CLAIM, lambda: discard(begin(store)))
    state_of(store).clean_up(claim.plan_id)
    assert store.has(CLAIM)


# -- publishing ----------------------------------------------------------------------------------------

PUBLISH: Mapping[str, Callable[[FakeStore, Claim, CompletionMarker], None]] = {
    MANIFEST: lambda store, claim, _: state_of(store).write_manifest(
        claim, store.body(MANIFEST), store.stored(MANIFEST).etag
    ),
    MARKER: lambda store, claim, marker: state_of(store).complete(claim, marker),
}
for_both_targets = pytest.mark.parametrize("target", [MANIFEST, MARKER])


@for_both_targets
def test_publishing_stages_the_object_first(store: FakeStore, target: str) -> None:
    claim, marker = run_until_marker(store)
    manifest = store.stored(MANIFEST)
    store.log.clear()
    PUBLISH[target](store, claim, marker)
    first, second, third = store.writes()
    assert (first.kind, first.key.startswith(WORK + claim.plan_id + "/staged-")) == ("WRITE", True)
    assert (second.kind, second.key) == ("PUBLISH", target)
    assert (third.kind, third.key) == ("DELETE", first.key)
    found = store.stored(target)
    assert found.content_type == ("application/json" if target == MARKER else "application/gzip")
    assert found is not manifest
    assert found.body == manifest.body if target == MANIFEST else json.loads(found.body) == marker.to_json()


@for_both_targets
@pytest.mark.parametrize("point", ["WRITE staged-", "READ claim.json", "PUBLISH"])
def test_overtaken_run_publishes_nothing(store: FakeStore, target: str, point: str) -> None:
    claim, marker = run_until_marker(store)
    before = store.stored(MANIFEST)
    kind, _, name = point.partition(" ")
    rule = store.on(kind, name, lambda: discard(take_over(store)))
    with pytest.raises(SupersededError, match="'another run' is being built there now"):
        PUBLISH[target](store, claim, marker)
    assert rule.hits == 1
    assert store.stored(MANIFEST) is before
    assert not store.has(MARKER)
    assert staged(store) == []


@for_both_targets
@pytest.mark.parametrize("point", ["WRITE staged-", "READ claim.json", "PUBLISH"])
def test_new_claim_of_an_equal_plan_overtakes_too(store: FakeStore, target: str, point: str) -> None:
    claim, marker = run_until_marker(store)
    before = store.stored(MANIFEST)
    kind, _, name = point.partition(" ")
    store.on(kind, name, lambda: discard(plan(store, "another run")))
    with pytest.raises(SupersededError):
        PUBLISH[target](store, claim, marker)
    assert content_id_of(current(store).plan_id) == content_id_of(claim.plan_id)
    assert store.stored(MANIFEST) is before
    assert not store.has(MARKER)
    assert staged(store) == []


@for_both_targets
def test_claim_that_is_written_again_changes_no_complete_hour(store: FakeStore, target: str) -> None:
    """The server carries out the PUT of the claim a second time, after another run has completed the hour."""
    claim, marker = run_until_marker(store)
    written = store.body(WORK + "claim.json")

    def complete_and_write_again() -> None:
        finish_hour(store, STREAM, take_over(store))
        store.produce(WORK + "claim.json", written)

    store.on("WRITE", "staged-", complete_and_write_again)
    with pytest.raises(SupersededError, match="another run has"):
        PUBLISH[target](store, claim, marker)
    assert_right(store, STREAM)


def test_marker_is_removed_by_a_run_that_takes_over(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    outcomes = set()
    for after, error in interruptions(
        store, lambda store: state_of(store).complete(claim, marker), take_over
    ):
        assert isinstance(error, SupersededError | None)
        assert not after.has(MARKER)
        assert staged(after) == []
        outcomes.add(error is None)
        finish_hour(after, STREAM, plan(after, "another run"))
        assert_complete(after, STREAM)
    assert outcomes == {True, False}


def test_marker_published_during_a_takeover_is_removed(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    store.produce(RAW + "late.log", b"late")
    published = []

    def publish(store: FakeStore) -> None:
        with suppress(SupersededError):
            state_of(store).complete(claim, marker)
            published.append(claim)

    for after, error in interruptions(store, lambda store: plan(store, "another run"), publish):
        assert error is None
        assert not after.has(MARKER)
        assert staged(after) == []
        assert current(after).run_id == "another run"
    assert published


@for_both_targets
def test_store_without_copies_gets_a_direct_write(store: FakeStore, target: str) -> None:
    claim, marker = run_until_marker(store)
    store.on("PUBLISH", "", UnsupportedOperationError("CopyObject: 501 NotImplemented"))
    store.log.clear()
    PUBLISH[target](store, claim, marker)
    kinds = [(operation.kind, operation.key) for operation in store.log]
    # The claim is read again after the write.
    assert kinds.index(("WRITE", target)) < max(
        number for number, operation in enumerate(kinds) if operation == ("READ", CLAIM)
    )
    assert store.stored(target).content_type in ("application/json", "application/gzip")
    assert staged(store) == []


@for_both_targets
@pytest.mark.parametrize("point", ["READ claim.json", "WRITE target"])
def test_overtaken_run_fails_without_copies(store: FakeStore, target: str, point: str) -> None:
    claim, marker = run_until_marker(store)
    store.on("PUBLISH", "", UnsupportedOperationError("CopyObject: 501 NotImplemented"))
    kind, _, name = point.partition(" ")
    store.on(kind, target if name == "target" else name, lambda: discard(take_over(store)))
    with pytest.raises(SupersededError, match="'another run'"):
        PUBLISH[target](store, claim, marker)
    assert not store.has(MARKER)
    assert staged(store) == []


def test_marker_of_the_other_run_stays_without_copies(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    store.on("PUBLISH", MARKER, UnsupportedOperationError("CopyObject: 501 NotImplemented"))

    def complete_other_run() -> None:
        finish_hour(store, STREAM, take_over(store))

    # The other run completes the hour between this run's write and its read of the claim.
    written: list[str] = []

    def on_operation(operation: Operation) -> None:
        if operation.key == MARKER and operation.kind == "WRITE" and not written:
            written.append(operation.key)
            store.on("READ", CLAIM, complete_other_run)

    store.watcher = on_operation
    with pytest.raises(SupersededError):
        state_of(store).complete(claim, marker)
    assert written
    assert_complete(store, STREAM)


@for_both_targets
def test_publishing_succeeds_even_if_cleanup_fails(store: FakeStore, target: str) -> None:
    claim, marker = run_until_marker(store)
    store.on("DELETE", "staged-", TransientError("the connection broke"))
    PUBLISH[target](store, claim, marker)
    assert store.has(target)
    assert len(staged(store)) == 1
    plan(store, "another run")
    assert staged(store) == []


def test_failed_cleanup_does_not_hide_another_error(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    store.on("PUBLISH", MARKER, AccessError("may not"))
    store.on("DELETE", "staged-", TransientError("the connection broke"))
    with pytest.raises(AccessError):
        state_of(store).complete(claim, marker)
    assert not store.has(MARKER)


def test_publish_with_a_lost_answer_is_repeated(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    store.on("PUBLISH", MARKER, Effect.LOST_ANSWER)
    with pytest.raises(TransientError):
        state_of(store).complete(claim, marker)
    complete_hour(store, STREAM, HOUR)
    assert_complete(store, STREAM)


# -- removing the marker -------------------------------------------------------------------------------


class RefusingStore(FakeStore):
    """Refuses every conditional delete, as some servers do."""

    def delete_if(self, target: Location, etag: str) -> bool:
        self.begin("DELETE", target)
        return False


@pytest.mark.parametrize("kind", [FakeStore, RefusingStore])
def test_only_the_marker_with_the_given_etag_is_removed(kind: type[FakeStore]) -> None:
    store = kind()
    etag = store.produce(MARKER, b"{}")
    state_of(store).remove_marker("another")
    assert store.has(MARKER)
    state_of(store).remove_marker(etag)
    assert not store.has(MARKER)
    state_of(store).remove_marker(etag)


def test_later_marker_stays_if_the_condition_is_refused() -> None:
    store = RefusingStore()
    etag = store.produce(MARKER, b"{}")
    store.on("DELETE", MARKER, lambda: discard(store.produce(MARKER, b"[]")))
    state_of(store).remove_marker(etag)
    assert store.body(MARKER) == b"[]"


# -- removing parts ------------------------------------------------------------------------------------


def pack_shards(store: FakeStore) -> Claim:
    """Plan and pack the hour; returns its claim."""
    for ref in plan(store).shards:
        pack_shard(store, STREAM, ref)
    return current(store)


def test_parts_are_deleted_after_a_record_and_a_claim_check(store: FakeStore) -> None:
    claim = pack_shards(store)
    name = part_name(store, 1)
    named: list[object] = []

    def record_names() -> None:
        named.extend(json.loads(store.body(record))["names"] for record in records(store))

    store.on("DELETE", AGGREGATED + name, record_names)
    store.log.clear()
    remove(store, [name], claim)
    assert named == [[name]]
    (record,) = {operation.key for operation in store.log if operation.key.startswith(REMOVALS)}
    assert [(operation.kind, operation.key) for operation in store.log] == [
        ("READ", f"{AGGREGATED}_expired.json"), ("WRITE", record), ("READ", CLAIM),
        ("DELETE", AGGREGATED + name), ("DELETE", record),
    ]  # fmt: skip
    assert name not in parts(store)


def records(store: FakeStore) -> list[str]:
    return store.listing(REMOVALS)


@pytest.mark.parametrize("change", ["another plan", "same plan", "gone", "damaged"])
@pytest.mark.parametrize("point", ["WRITE removals/", "READ claim.json"])
def test_nothing_is_deleted_under_another_claim(store: FakeStore, change: str, point: str) -> None:
    claim = pack_shards(store)
    before = parts(store)
    changes: Mapping[str, Callable[[], object]] = {
        "another plan": lambda: take_over(store),
        "same plan": lambda: plan(store, "another run"),
        "gone": lambda: store.vanish(CLAIM),
        "damaged": lambda: store.produce(CLAIM, b"x"),
    }
    kind, _, name = point.partition(" ")
    store.on(kind, name, lambda: discard(changes[change]()))
    with pytest.raises(SupersededError):
        remove(store, before, claim)
    assert parts(store) == before
    assert records(store) == []


def test_stray_parts_of_a_complete_hour_need_no_claim(store: FakeStore) -> None:
    run_hour(store, STREAM)
    store.produce(AGGREGATED + STRAY, b"of a run that was overtaken")
    remove(store, [STRAY], None, completed=manifest_of(store))
    assert_complete(store, STREAM)


def test_parts_stay_if_another_run_completed_the_hour(store: FakeStore) -> None:
    run_hour(store, STREAM)
    before = manifest_of(store)
    store.produce(AGGREGATED + STRAY, b"of a run that was overtaken")
    finish_hour(store, STREAM, take_over(store))
    with pytest.raises(SupersededError):
        remove(store, [STRAY], None, completed=before)
    assert store.has(AGGREGATED + STRAY)
    assert records(store) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "_SUCCESS",
        "_manifest.jsonl.gz",
        "_rollup/claim.json",
        "../09/part-00000.log",
        "x.log",
        "part-1.log",
    ],
)
def test_only_keys_named_like_parts_are_deleted(store: FakeStore, name: str) -> None:
    claim = pack_shards(store)
    before = store.snapshot()
    with pytest.raises(ValueError, match="is not the key of a part"):
        remove(store, [part_name(store, 0), name], claim)
    assert store.snapshot() == before


def test_part_under_removal_gets_another_name(store: FakeStore) -> None:
    """A run seems to die between its removal record and the DELETE, which may then come at any time."""
    claim = pack_shards(store)
    name = part_name(store, 1)
    store.on("DELETE", AGGREGATED + name, lambda: store.crash_after_writes(0))
    with pytest.raises(CrashError):
        remove(store, [name], claim)
    store.revive()
    late = plan(store, "another run")
    assert name not in part_names_of(store, late.plan_id)
    finish_hour(store, STREAM, late)
    if store.has(AGGREGATED + name):
        store.vanish(AGGREGATED + name)
    assert_complete(store, STREAM, died=True)


def test_removal_record_written_during_planning_is_seen(store: FakeStore) -> None:
    claim = pack_shards(store)
    name = part_name(store, 1)
    record = Location("logs", REMOVALS + "0f.json")
    state = state_of(store)
    store.on("WRITE", CLAIM, lambda: state.records.write_removal(record, [name]))
    late = plan(store, "another run")
    assert current(store).claim_id != claim.claim_id
    assert name not in part_names_of(store, late.plan_id)
    finish_hour(store, STREAM, late)
    assert_complete(store, STREAM, died=True)


def test_damaged_removal_record_names_nothing(store: FakeStore) -> None:
    pack_shards(store)
    store.produce(REMOVALS + "0f.json", b"damaged")
    state = state_of(store)
    assert state.names_under_removal(state.inventory().work) == set()
    finish_hour(store, STREAM, plan(store, "another run"))
    assert_complete(store, STREAM, died=True)


class DeletionGuard:
    """Records every deletion of a part that the plan of the current claim needs."""

    def __init__(self, store: FakeStore) -> None:
        self.hit: list[str] = []
        self._store = store
        self._parts = set(parts(store))
        store.watcher = self.on_operation

    def on_operation(self, operation: Operation) -> None:
        name = operation.key.removeprefix(AGGREGATED)
        if operation.kind == "DELETE" and name in self._parts and self._store.has(CLAIM):
            claim = current(self._store)
            if claim.run_id == "another run" and name in part_names_of(self._store, claim.plan_id):
                self.hit.append(f"{name} of {claim.plan_id}")
        self._parts = set(parts(self._store))


def test_deletion_never_hits_a_part_of_a_new_plan(store: FakeStore) -> None:
    claim = pack_shards(store)
    name = part_name(store, 1)
    outcomes = set()

    def delete(store: FakeStore) -> None:
        try:
            remove(store, [name], claim)
            outcomes.add("deleted")
        except SupersededError:
            outcomes.add("overtaken")

    def work(store: FakeStore) -> None:
        guard = DeletionGuard(store)
        plan(store, "another run")
        assert guard.hit == []

    for after, error in interruptions(store, work, delete):
        assert error is None
        finish_hour(after, STREAM, plan(after, "another run"))
        assert_complete(after, STREAM)
    assert outcomes == {"deleted", "overtaken"}


def test_plan_made_during_a_deletion_keeps_its_parts(store: FakeStore) -> None:
    claim = pack_shards(store)
    name = part_name(store, 1)
    outcomes = set()

    def work(store: FakeStore) -> None:
        guard = DeletionGuard(store)
        remove(store, [name], claim)
        assert guard.hit == []

    for after, error in interruptions(store, work, lambda store: plan(store, "another run")):
        outcomes.add(error is None)
        late = current(after)
        assert late.run_id == "another run"
        finish_hour(after, STREAM, plan(after, "another run"))
        assert_complete(after, STREAM)
    assert outcomes == {True, False}


# -- rejecting parts -----------------------------------------------------------------------------------


def reject(
    store: FakeStore, plan_id: str, names: Iterable[str], basis: Claim | None, **options: Any
) -> set[str]:
    return state_of(store).reject_parts(plan_id, {name: name for name in names}, basis, **options)


def test_hour_with_rejected_parts_is_not_completed(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    name = part_name(store, 1)
    store.log.clear()
    reject(store, claim.plan_id, [name], claim)
    assert name not in parts(store)
    writes = [(operation.kind, operation.key) for operation in store.writes()]
    assert writes.index(("WRITE", CLAIM)) < writes.index(("DELETE", AGGREGATED + name))
    assert current(store).claim_id != claim.claim_id
    with pytest.raises(SupersededError):
        state_of(store).complete(claim, marker)
    assert not store.has(MARKER)
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


def test_rejecting_removes_the_marker_before_the_parts(store: FakeStore) -> None:
    plan_id = run_hour(store, STREAM).plan_id
    name = part_name(store, 1)
    store.log.clear()
    reject(store, plan_id, [name], None, completed=manifest_of(store))
    writes = [(operation.kind, operation.key) for operation in store.writes()]
    assert writes.index(("DELETE", MARKER)) < writes.index(("DELETE", AGGREGATED + name))
    assert not store.has(MARKER)
    assert store.listing(WORK) == []
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


def test_parts_whose_raw_objects_expire_are_not_rejected(store: FakeStore) -> None:
    plan_id = run_hour(store, STREAM).plan_id
    expiring, other = part_name(store, 0), part_name(store, 1)
    state = state_of(store)

    def announce() -> None:
        """Raw objects may be deleted from now on: there is no claim yet."""
        parts = {expiring: ExpiredPart("a fingerprint")}
        record = ExpiryRecord(
            "app", "2026-11-23T08:00:00Z", parts, (Deletion(plan_id, "2026-11-24T08:00:00Z"),)
        )
        state.announce_expiry(record, None, state.inventory().manifest_etag or "")

    store.on("WRITE", CLAIM, announce)
    assert reject(store, plan_id, [expiring, other], None, completed=manifest_of(store)) == {expiring}
    assert expiring in parts(store)
    assert other not in parts(store)
    assert not store.has(MARKER)


def test_parts_of_another_run_are_not_rejected(store: FakeStore) -> None:
    claim, _ = run_until_marker(store)
    before = manifest_of(store)
    finish_hour(store, STREAM, take_over(store))
    found = store.snapshot(AGGREGATED)
    for basis in (claim, None):
        with pytest.raises(SupersededError):
            reject(store, claim.plan_id, parts(store), basis, completed=before)
    assert store.snapshot(AGGREGATED) == found


# -- parts of an overtaken run -------------------------------------------------------------------------


def overtaken_parts(store: FakeStore, plan_id: str) -> dict[str, PlannedPart]:
    """Return the planned parts of a plan, as its packers know them."""
    state = state_of(store.fork())
    found: dict[str, PlannedPart] = {}
    for name in state.inventory().work:
        if name.startswith(f"{plan_id}/shard-"):
            shard = state.records.read_shard(state.paths.work.child(name), RAW)
            assert shard is not None
            found |= {part.name: part for part in shard.parts}
    return found


def test_overtaken_run_removes_its_unneeded_parts(store: FakeStore) -> None:
    claim = pack_shards(store)
    written = overtaken_parts(store, claim.plan_id)
    late = take_over(store)
    finish_hour(store, STREAM, late)
    kept = parts(store)
    # One of its writes comes after the other run completed the hour; some parts are in both plans.
    stray = next(name for name in written if name not in kept)
    store.produce(AGGREGATED + stray, b"late")
    assert any(name in kept for name in written)
    state_of(store).remove_overtaken(claim.plan_id, written)
    assert parts(store) == kept
    assert_complete(store, STREAM)


def test_parts_needed_by_the_next_plan_stay(store: FakeStore) -> None:
    claim = pack_shards(store)
    before = parts(store)
    written = overtaken_parts(store, claim.plan_id)
    late = take_over(store)
    assert set(before) & part_names_of(store, late.plan_id)
    store.log.clear()
    state_of(store).remove_overtaken(claim.plan_id, written)
    # Nothing is proven yet, so even unneeded parts stay until then.
    assert parts(store) == before
    assert store.writes() == []
    finish_hour(store, STREAM, late)
    assert_complete(store, STREAM)


def test_parts_with_content_missing_in_the_hour_stay(store: FakeStore) -> None:
    claim = pack_shards(store)
    written = overtaken_parts(store, claim.plan_id)
    before = parts(store)
    # The raw objects of one part vanish.
    gone = max(written)
    for item in written[gone].objects:
        store.vanish(item.key)
    late = plan_hour(store, STREAM, HOUR, "another run", drop_vanished=True)
    finish_hour(store, STREAM, late)
    store.produce(AGGREGATED + gone, before[gone])
    state_of(store).remove_overtaken(claim.plan_id, written)
    assert parts(store)[gone] == before[gone]
    assert_right(store, STREAM)


@pytest.mark.parametrize("is_newer", [False, True])
def test_part_with_a_newer_version_than_the_hour_stays(store: FakeStore, is_newer: bool) -> None:
    claim = pack_shards(store)
    written = overtaken_parts(store, claim.plan_id)
    before = parts(store)
    changed = max(written)
    for item in written[changed].objects:
        store.produce(item.key, b"another version")
    late = plan_hour(store, STREAM, HOUR, "another run")
    finish_hour(store, STREAM, late)
    store.produce(AGGREGATED + changed, before[changed])
    if is_newer:
        # As if the other run had packed its version before this one was written.
        store.vanish(written[changed].objects[0].key)
    state_of(store).remove_overtaken(claim.plan_id, written)
    assert (changed in parts(store)) == is_newer


def test_split_parts_of_the_hour_stay(store: FakeStore) -> None:
    stream = make_stream(check_encoding=True)
    produce(store, {"x.gz": b"damaged", "y.gz": gzip.compress(b"intact", mtime=0)})
    run_hour(store, stream)
    before = parts(store)
    written = {}
    for planned, _ in manifest_of(store).parts():
        name = planned.split_of or planned.name
        written[planned.name] = replace(planned, name=name, split_of="")
    assert len(written) == len({planned.name for planned in written.values()}) + 1
    # Another try has split a part differently from how the hour holds it.
    planned = written[part_name(store, 0)]
    other = planned.name.replace(".log", "-0a1b2c3d.log")
    store.produce(AGGREGATED + other, b"a" * 30)
    state_of(store).remove_overtaken(OTHER_PLAN, {**written, other: planned})
    assert parts(store) == {**before, other: b"a" * 30}


@pytest.mark.parametrize("what", ["claim", "manifest", "no manifest", "same plan"])
def test_parts_stay_if_anything_is_unclear(store: FakeStore, what: str) -> None:
    run_hour(store, STREAM)
    items = (ObjectInfo(RAW + "a.log", 30, "e"),)
    stray = {STRAY: PlannedPart(STRAY, "", 30, False, "f", items)}
    store.produce(AGGREGATED + STRAY, b"a" * 30)
    plan_id = OTHER_PLAN
    if what == "claim":
        store.produce(CLAIM, b"damaged")
    elif what == "manifest":
        store.corrupt(MANIFEST)
    elif what == "no manifest":
        store.vanish(MANIFEST)
    else:
        store.vanish(MARKER)
        plan_id = plan(store, "another run").plan_id
    store.log.clear()
    state_of(store).remove_overtaken(plan_id, stray)
    assert store.has(AGGREGATED + STRAY)
    assert store.writes() == []


@pytest.mark.parametrize("tries", [1, 2])
def test_stray_parts_are_reviewed_if_the_hour_changes(
    store: FakeStore, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REMOVAL_TRIES", tries)
    run_hour(store, STREAM)
    items = (ObjectInfo(RAW + "a.log", 30, "e"),)
    stray = {STRAY: PlannedPart(STRAY, "", 30, False, "f", items)}
    store.produce(AGGREGATED + STRAY, b"a" * 30)
    store.on("WRITE", "removals/", lambda: discard(finish_hour(store, STREAM, take_over(store))))
    state_of(store).remove_overtaken(OTHER_PLAN, stray)
    # After the last try it stays; the next run may remove it.
    assert store.has(AGGREGATED + STRAY) is (tries == 1)
    assert_right(store, STREAM)
    assert records(store) == []


# -- parts that came after the plan --------------------------------------------------------------------


def test_late_part_with_the_last_copy_stops_validation(store: FakeStore) -> None:
    """A packer read an object that then vanished; its PUT comes after the hour was planned again."""
    store.produce(RAW + "g.log", b"g" * 60)
    before = plan(store)
    (late,) = (
        part
        for part in overtaken_parts(store, before.plan_id).values()
        if part.objects[-1].key == RAW + "g.log"
    )
    store.vanish(RAW + "g.log")
    after = plan(store, "another run")
    for ref in after.shards:
        pack_shard(store, STREAM, ref)
    store.produce(AGGREGATED + late.name, b"g" * 60)
    with pytest.raises(InputChangedError, match=r"changed by now \(raw/app/20261123/08/g.log\)"):
        validate_hour(store, STREAM, HOUR)
    assert store.has(AGGREGATED + late.name)
    assert not store.has(MANIFEST)
    with pytest.raises(VanishedInputError, match=r"g\.log"):
        plan(store, "a third run")
    finish_hour(store, STREAM, plan_hour(store, STREAM, HOUR, "a third run", drop_vanished=True))
    assert_complete(store, STREAM)


def test_late_part_with_known_content_is_removed(store: FakeStore) -> None:
    before = plan(store)
    old = overtaken_parts(store, before.plan_id)
    store.produce(RAW + "0.log", b"early")
    after = plan(store, "another run")
    stray = next(name for name in old if name not in part_names_of(store, after.plan_id))
    for ref in after.shards:
        pack_shard(store, STREAM, ref)
    store.produce(AGGREGATED + stray, b"of the first run")
    validate_hour(store, STREAM, HOUR)
    assert not store.has(AGGREGATED + stray)
    complete_hour(store, STREAM, HOUR)
    assert_complete(store, STREAM)


# -- cleaning up ---------------------------------------------------------------------------------------


def test_cleanup_removes_the_files_of_plans(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    store.produce(WORK + f"{OTHER_PLAN}/plan.json", b"{}")
    state = state_of(store)
    state.complete(claim, marker)
    state.clean_up(claim.plan_id)
    assert store.listing(WORK) == []
    assert_complete(store, STREAM)


def test_cleanup_keeps_foreign_objects_and_removals(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    foreign = ["notes.txt", f"{claim.plan_id}/notes.txt", f"{OTHER_PLAN}/sub/plan.json", "removals/notes.txt"]
    for name in [*foreign, "removals/0f.json"]:
        store.produce(WORK + name, b"foreign")
    state = state_of(store)
    state.complete(claim, marker)
    state.clean_up(claim.plan_id)
    assert store.listing(WORK) == sorted(WORK + name for name in [*foreign, "removals/0f.json"])


def test_cleanup_keeps_the_files_of_another_run(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    state_of(store).complete(claim, marker)
    late = take_over(store)
    other_files = store.snapshot(WORK)
    state_of(store).clean_up(claim.plan_id)
    left = store.snapshot(WORK)
    assert left == {
        key: found for key, found in other_files.items() if not key.startswith(f"{WORK}{claim.plan_id}/")
    }
    assert left[CLAIM] == other_files[CLAIM]
    finish_hour(store, STREAM, late)
    assert_complete(store, STREAM)


def test_cleanup_keeps_everything_under_a_damaged_claim(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    state_of(store).complete(claim, marker)
    store.produce(CLAIM, b"damaged")
    store.produce(WORK + f"{OTHER_PLAN}/plan.json", b"{}")
    state_of(store).clean_up(claim.plan_id)
    assert store.listing(WORK) == [CLAIM, WORK + f"{OTHER_PLAN}/plan.json"]


def test_run_that_begins_during_a_cleanup_continues(store: FakeStore) -> None:
    claim, marker = run_until_marker(store)
    state_of(store).complete(claim, marker)
    for after, error in interruptions(
        store, lambda store: state_of(store).clean_up(claim.plan_id), take_over
    ):
        assert error is None
        assert current(after).run_id == "another run"
        assert not after.has(MARKER)
        # All of its files exist, so none of its steps needs a new plan.
        summary = state_of(after.fork()).records.read_plan(STREAM.at(HOUR).plan(current(after).plan_id))
        assert summary is not None
        for ref in summary.shards:
            pack_shard(after, STREAM, ref)
        validate_hour(after, STREAM, HOUR)
        complete_hour(after, STREAM, HOUR)
        assert_complete(after, STREAM)


def test_cleanup_never_leaves_a_claim_without_its_files(store: FakeStore) -> None:
    """A run has written its plan when the cleanup lists, and claims the hour before the cleanup deletes."""
    claim, marker = run_until_marker(store)
    state_of(store).complete(claim, marker)
    store.produce(RAW + "late.log", b"late")

    def clean_up(other: FakeStore) -> None:
        state_of(other).clean_up(claim.plan_id)

    for after, error in interruptions(store, lambda other: plan(other, "another run"), clean_up):
        assert error is None
        assert has_complete_plan(after)


@pytest.mark.parametrize("point", ["LIST", "READ", "HEAD", None])
def test_plan_whose_files_are_deleted_is_made_again(store: FakeStore, point: str | None) -> None:
    """A cleanup has listed them and read the claim before this run claims the hour, and deletes them later."""
    deleted_keys: list[str] = []

    def announce() -> None:
        deleted_keys.extend(store.listing(WORK))
        names = [key.removeprefix(WORK) for key in deleted_keys]
        store.produce(f"{REMOVALS}0a.json", json.dumps({"format": 1, "names": names}).encode())

    def delete() -> None:
        for key in filter(store.has, deleted_keys):
            store.vanish(key)

    def claimed() -> None:
        announce()
        if point:
            store.on(point, "", delete)

    store.on("WRITE", "claim.json", claimed)
    plan(store, "another run")
    delete()
    assert has_complete_plan(store)


def has_complete_plan(store: FakeStore) -> bool:
    """Whether all files of the claim's plan exist."""
    state = state_of(store.fork())
    summary = state.records.read_plan(state.paths.plan(current(store).plan_id))
    return summary is not None and all(
        store.has(state.paths.shard(ref.plan_id, ref.shard).key) for ref in summary.shards
    )


# -- unfinished uploads --------------------------------------------------------------------------------


@pytest.mark.parametrize("lists_all", [False, True])
def test_only_uploads_of_the_given_parts_are_aborted(store: FakeStore, lists_all: bool) -> None:
    store.lists_all_uploads = lists_all
    ours = AGGREGATED + STRAY
    foreign = [
        AGGREGATED + "part-00008-0a1b2c3d.log",
        AGGREGATED + "sub/" + STRAY,
        AGGREGATED + "notes.txt",
        f"aggregated/app/20261123/09/{STRAY}",
        f"other/{STRAY}",
        STRAY,
        RAW + STRAY,
    ]
    for key in (ours, *foreign, ours):
        store.begin_upload(Location("logs", key), {})
    state_of(store).abort_uploads({STRAY, "sub/" + STRAY, "notes.txt"})
    assert sorted(key for key, _ in store.uploads.values()) == sorted(foreign)


@pytest.mark.parametrize("kind", ["UPLOADS", "ABORT"])
@pytest.mark.parametrize("error", [AccessError("may not"), TransientError("broke"), NotFoundError("gone")])
def test_failed_aborts_of_uploads_are_only_logged(
    store: FakeStore, kind: str, error: RollupError, caplog: pytest.LogCaptureFixture
) -> None:
    store.begin_upload(Location("logs", AGGREGATED + STRAY), {})
    store.on(kind, "", error)
    with caplog.at_level(logging.INFO):
        state_of(store).abort_uploads({STRAY})
    assert "could not abort multipart uploads" in caplog.text
