"""The order of writes keeps competing runs apart: claim, staged objects, removal records, cleaning up."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from include.log_rollup.errors import (
    NotFoundError,
    RollupError,
    SupersededError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.packing import pack_shard
from include.log_rollup.plan import PlannedPart
from include.log_rollup.planning import Planned, plan_hour
from include.log_rollup.records import Claim
from include.log_rollup.state import HourState
from include.log_rollup.store import Location
from include.log_rollup.validate import validate_hour
from tests.unit.fake_store import Effect, FakeStore
from tests.unit.pipeline import (
    AGGREGATED,
    CLAIM,
    HOUR,
    MANIFEST,
    MARKER,
    RAW,
    REMOVALS,
    WORK,
    assert_complete,
    assert_right,
    finish_hour,
    make_stream,
    manifest_of,
    marker_of,
    part_name,
    parts,
    produce,
    run_hour,
)

RAW_HOUR: Mapping[str, bytes] = {f"{letter}.log": letter.encode() * 30 for letter in "abcde"}
STREAM = make_stream()
PLAN = "0123456789abcdef0123"
OTHER = "fedcba98765432100123"


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, RAW_HOUR)
    return store


def state_of(store: FakeStore) -> HourState:
    return HourState(store, STREAM, HOUR)


def begin(store: FakeStore, plan_id: str = PLAN, parts: tuple[str, ...] = ()) -> Claim:
    """Claim the hour for a plan of these parts, whose file is there."""
    store.produce(f"{WORK}{plan_id}/plan.json", b"{}")
    etag = store.stored(MARKER).etag if store.has(MARKER) else None
    claim = state_of(store).begin(plan_id, "run", parts, {f"{plan_id}/plan.json"}, etag)
    assert claim is not None
    return claim


def packed(store: FakeStore, run: str = "run", **how: Any) -> Planned:
    planned = plan_hour(store, STREAM, HOUR, run, **how)
    for ref in planned.shards:
        pack_shard(store, STREAM, ref)
    return planned


# -- what lies there -----------------------------------------------------------------------------------


def test_an_inventory_tells_ours_from_foreign_objects(store: FakeStore) -> None:
    ours = (
        "claim.json", "crc-probe", "removals/0a.json", f"{PLAN}/plan.json", f"{PLAN}/shard-00000.json.gz",
    )  # fmt: skip
    foreign = (
        "README",
        "part-x",
        "sub/part-00000.log",
        "_SUCCESS.crc",
        "_rollup/notes.txt",
        "_rollup/x/plan.json",
    )
    likes = (
        "part-00000.log",
        "part-00001-0123abcd.log.gz",
        "part-00002-0123abcd-89efcdab.log",
        "part-00001.log.br",
    )
    for name in (*(f"_rollup/{each}" for each in ours), *foreign, *likes, "_SUCCESS"):
        store.produce(AGGREGATED + name, b"x")
    for placeholder in ("", "_rollup/", "folder/"):
        store.produce(AGGREGATED + placeholder, b"")
    found = state_of(store).inventory()
    assert set(found.parts) == set(likes)
    assert found.work == set(ours)
    assert {item.key for item in found.foreign} == {AGGREGATED + name for name in foreign}
    assert (found.has_marker, found.has_manifest) == (True, False)


# -- the claim -----------------------------------------------------------------------------------------


def test_a_claim_is_current_until_another_one_is_written(store: FakeStore) -> None:
    state = state_of(store)
    one = begin(store)
    assert state.check_current(PLAN) == state.check_current(PLAN, one.claim_id) == one
    assert not state.is_complete_under(PLAN)
    again = begin(store)
    assert state.check_current(PLAN) == again
    with pytest.raises(SupersededError):
        state.check_current(PLAN, one.claim_id)
    begin(store, OTHER)
    for check in (lambda: state.check_current(PLAN), lambda: state.is_complete_under(PLAN)):
        with pytest.raises(SupersededError, match=f"plan {OTHER} of run 'run' is being built there now"):
            check()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"format": 1, "plan_id": "x", "run_id": "y"}', b"x" * 2**21]
)
def test_a_claim_that_cannot_be_read_is_nobodys(store: FakeStore, body: bytes) -> None:
    begin(store)
    store.produce(CLAIM, body)
    with pytest.raises(SupersededError, match="the claim there is damaged, or another version"):
        state_of(store).check_current(PLAN)


def test_without_a_claim_nothing_is_current(store: FakeStore) -> None:
    with pytest.raises(SupersededError, match="no plan is being built there now"):
        state_of(store).check_current(PLAN)


def test_the_marker_goes_after_the_claim(store: FakeStore) -> None:
    run_hour(store, STREAM)
    store.log.clear()
    begin(store)
    assert [f"{each.kind} {each.name}" for each in store.writes()] == ["WRITE claim.json", "DELETE _SUCCESS"]


def test_a_plan_whose_files_were_removed_is_not_begun(store: FakeStore) -> None:
    """Another run has tidied up between the writing of the plan and the claim."""
    assert state_of(store).begin(PLAN, "run", (), {f"{PLAN}/plan.json"}, None) is None


def test_a_marker_that_came_meanwhile_makes_the_plan_be_made_again(store: FakeStore) -> None:
    store.produce(f"{WORK}{PLAN}/plan.json", b"{}")
    store.produce(MARKER, b'{"format": 1}')
    for seen in (None, "0" * 32):
        assert state_of(store).begin(PLAN, "run", (), {f"{PLAN}/plan.json"}, seen) is None
        assert store.has(MARKER)


def test_a_claim_that_was_overtaken_at_once_is_not_begun(store: FakeStore) -> None:
    store.produce(f"{WORK}{PLAN}/plan.json", b"{}")
    store.on("READ", CLAIM, lambda: _discard(begin(store, OTHER)))
    with pytest.raises(SupersededError, match=OTHER):
        state_of(store).begin(PLAN, "run", (), {f"{PLAN}/plan.json"}, None)


def _discard(_: object) -> None:
    """A rule's function returns nothing."""


# -- the fence -----------------------------------------------------------------------------------------


PUBLISHES = {
    MARKER: lambda state, claim: state.publish_marker(claim, {"format": 1, "plan_id": claim.plan_id}),
    MANIFEST: lambda state, claim: state.publish_manifest(claim, b"a manifest"),
}


@pytest.mark.parametrize("target", PUBLISHES)
def test_what_is_published_is_there_and_nothing_is_left(store: FakeStore, target: str) -> None:
    claim = begin(store)
    PUBLISHES[target](state_of(store), claim)
    assert store.has(target)
    assert store.stored(target).content_type == (
        "application/json" if target == MARKER else "application/gzip"
    )
    assert [key for key in store.listing(WORK) if "/staged-" in key] == []


@pytest.mark.parametrize("target", PUBLISHES)
@pytest.mark.parametrize("overtaker", [PLAN, OTHER])
@pytest.mark.parametrize("moment", ["WRITE /staged-", "READ claim.json", "PUBLISH "])
def test_a_publish_after_another_begin_fails_and_leaves_nothing(
    store: FakeStore, target: str, overtaker: str, moment: str
) -> None:
    """However late the copy comes: the run that took over has deleted the staged object."""
    claim = begin(store)
    kind, contains = moment.split(" ")
    store.on(kind, contains, lambda: _discard(begin(store, overtaker)))
    with pytest.raises(SupersededError):
        PUBLISHES[target](state_of(store), claim)
    assert not store.has(target)
    assert [key for key in store.listing(WORK) if "/staged-" in key] == []


@pytest.mark.parametrize("target", PUBLISHES)
def test_a_copy_that_comes_after_the_other_run_is_done_fails(store: FakeStore, target: str) -> None:
    produce(store, {"f.log": b"late"})
    claim = begin(store)
    store.on("PUBLISH", target, lambda: _discard(run_hour(store, STREAM, "another run")))
    with pytest.raises(SupersededError, match="no plan is being built there now"):
        PUBLISHES[target](state_of(store), claim)
    assert_complete(store, STREAM)


def test_a_begin_deletes_what_others_have_staged_and_nothing_else(store: FakeStore) -> None:
    kept = [f"{WORK}{OTHER}/{name}" for name in ("plan.json", "shard-00000.json.gz", "receipt-00000.json.gz")]
    staged = [f"{WORK}{OTHER}/staged-0a-{name}" for name in ("_SUCCESS", "_manifest.jsonl.gz")]
    foreign = [f"{WORK}staged-notes.txt", f"{WORK}{OTHER}/staged-notes.txt", f"{WORK}{OTHER}/staged-0a-x.bak"]
    for key in (*kept, *staged, *foreign):
        store.produce(key, b"x")
    begin(store)
    assert [each.key for each in store.writes() if each.kind == "DELETE"] == sorted(staged)
    assert all(store.has(key) for key in (*kept, *foreign))


class NoCopies(FakeStore):
    """A store without CopyObject."""

    def publish(self, source: Location, target: Location) -> None:
        self.begin("PUBLISH", target)
        raise UnsupportedOperationError(f"PUBLISH {target}: S3 answered 501 NotImplemented")


def test_without_copies_an_hour_is_completed_by_plain_writes() -> None:
    store = NoCopies()
    produce(store, RAW_HOUR)
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


@pytest.mark.parametrize("moment", ["WRITE /staged-", "READ claim.json", "PUBLISH "])
def test_without_copies_an_overtaken_marker_is_taken_back(moment: str) -> None:
    store = NoCopies()
    claim = begin(store)
    kind, contains = moment.split(" ")
    store.on(kind, contains, lambda: _discard(begin(store, OTHER)))
    with pytest.raises(SupersededError, match=OTHER):
        state_of(store).publish_marker(claim, {"format": 1, "plan_id": PLAN})
    assert not store.has(MARKER)


@pytest.mark.parametrize("error", [TransientError("broke"), NotFoundError("gone")], ids=str)
def test_a_staged_object_that_stays_does_not_fail_the_marker(store: FakeStore, error: RollupError) -> None:
    claim = begin(store)
    store.on("DELETE", "/staged-", error)
    state_of(store).publish_marker(claim, {"format": 1, "plan_id": PLAN})
    assert store.has(MARKER)


# -- removing the marker -------------------------------------------------------------------------------


def test_only_the_marker_of_this_etag_is_removed(store: FakeStore) -> None:
    etag = store.produce(MARKER, b"one")
    store.produce(MARKER, b"other")
    state_of(store).remove_marker(etag)
    assert store.body(MARKER) == b"other"
    state_of(store).remove_marker(store.stored(MARKER).etag)
    assert not store.has(MARKER)


class RefusesConditions(FakeStore):
    """A store that refuses each condition of a delete, also one that holds."""

    def delete_if(self, target: Location, etag: str) -> bool:
        self.begin("DELETE", target)
        return False


def test_a_marker_goes_where_the_server_refuses_conditions() -> None:
    store = RefusesConditions()
    etag = store.produce(MARKER, b"one")
    state_of(store).remove_marker("0" * 32)
    assert store.has(MARKER)
    state_of(store).remove_marker(etag)
    assert not store.has(MARKER)


# -- removing parts ------------------------------------------------------------------------------------


def test_parts_are_named_in_a_record_before_they_go(store: FakeStore) -> None:
    names = ["part-00000-0123abcd.log", "part-00001-0123abcd.log"]
    for name in names:
        store.produce(AGGREGATED + name, b"x")
    claim = begin(store)
    store.log.clear()
    state_of(store).remove_parts({name: name for name in names}, claim)
    written, *deleted, forgotten = store.writes()
    assert written.key.startswith(REMOVALS)
    assert [each.key for each in deleted] == [AGGREGATED + name for name in names]
    assert forgotten.key == written.key
    kinds = [f"{each.kind} {each.key}" for each in store.log]
    assert kinds.index(f"READ {CLAIM}") == kinds.index(f"WRITE {written.key}") + 1


@pytest.mark.parametrize("key", ["notes.txt", "../08/x", "_SUCCESS", "_rollup/claim.json", "part-1.log", ""])
def test_what_is_not_named_like_a_part_is_never_removed(store: FakeStore, key: str) -> None:
    claim = begin(store)
    store.log.clear()
    with pytest.raises(ValueError, match="is not the key of a part"):
        state_of(store).remove_parts({key: key}, claim)
    assert store.writes() == []


@pytest.mark.parametrize("overtaker", [PLAN, OTHER])
def test_nothing_is_removed_under_another_claim(store: FakeStore, overtaker: str) -> None:
    name = "part-00000-0123abcd.log"
    store.produce(AGGREGATED + name, b"x")
    claim = begin(store)
    store.on("WRITE", REMOVALS, lambda: _discard(begin(store, overtaker)))
    with pytest.raises(SupersededError):
        state_of(store).remove_parts({name: name}, claim)
    assert store.has(AGGREGATED + name)
    assert store.listing(REMOVALS) == []


def test_a_planner_gives_a_part_under_removal_another_name(store: FakeStore) -> None:
    """The record was there first: the deletion may come at any time."""
    usual = store.fork()
    run_hour(usual, STREAM)
    name = part_name(usual, 1)
    store.produce(f"{REMOVALS}0a.json", json.dumps({"format": 1, "parts": [name]}).encode())
    totals = run_hour(store, STREAM)
    assert name not in parts(store)
    assert totals.plan_id != marker_of(usual)["plan_id"]
    assert_complete(store, STREAM, died=True)
    # The deletion comes now, and hits nothing.
    store.delete("logs", [AGGREGATED + name])
    assert_complete(store, STREAM, died=True)
    assert plan_hour(store, STREAM, HOUR, "again").unchanged


def test_a_part_comes_under_removal_while_the_hour_is_planned(store: FakeStore) -> None:
    """The record comes between the plan and the claim: the plan is made again."""
    usual = store.fork()
    run_hour(usual, STREAM)
    name = part_name(usual, 1)

    def record() -> None:
        store.produce(f"{REMOVALS}0a.json", json.dumps({"format": 1, "parts": [name]}).encode())

    store.on("WRITE", "plan.json", record)
    run_hour(store, STREAM)
    assert name not in parts(store)
    assert_complete(store, STREAM, died=True)


def test_a_deletion_whose_record_came_after_the_claim_is_given_up(store: FakeStore) -> None:
    """The planner came first: whoever is about to delete reads its claim."""
    late = {"cc.log": b"late" * 9}
    produce(store, late)
    packed(store, "overtaken")
    stray = set(parts(store))
    store.vanish(RAW + "cc.log")
    packed(store, drop_vanished=True)
    planned: list[Planned] = []

    def plan() -> None:
        produce(store, late)
        planned.append(plan_hour(store, STREAM, HOUR, "newer"))

    store.on("WRITE", REMOVALS, plan)
    with pytest.raises(SupersededError):
        validate_hour(store, STREAM, HOUR)
    assert stray <= parts(store).keys()
    finish_hour(store, STREAM, planned[0])
    assert_complete(store, STREAM)


def test_a_record_of_a_removal_that_failed_stays(store: FakeStore) -> None:
    """The deletion may still come: its answer was lost, or the request is under way."""
    name = "part-00000-0123abcd.log"
    store.produce(AGGREGATED + name, b"x")
    claim = begin(store)
    store.on("DELETE", name, Effect.LOST_ANSWER)
    with pytest.raises(TransientError):
        state_of(store).remove_parts({name: name}, claim)
    (record,) = store.listing(REMOVALS)
    assert json.loads(store.body(record))["parts"] == [name]


# -- parts of a run that was overtaken -----------------------------------------------------------------


def overtaken(store: FakeStore) -> tuple[Planned, dict[str, PlannedPart]]:
    """Pack an hour, and have another run complete it without the last object; what the first one wrote."""
    planned = packed(store, "overtaken")
    state = state_of(store)
    written: dict[str, PlannedPart] = {}
    for ref in planned.shards:
        shard = state.records.read_shard(state.paths.shard(ref.plan_id, ref.shard), RAW)
        assert shard is not None
        written |= {part.name: part for part in shard.parts}
    return planned, written


def test_an_overtaken_run_removes_its_strays_once_the_hour_is_proven(store: FakeStore) -> None:
    planned, written = overtaken(store)
    before = parts(store)
    produce(store, {"ab.log": b"late" * 9})
    run_hour(store, STREAM, "newer")
    now = parts(store)
    for name in before:
        store.produce(AGGREGATED + name, before[name])
    state_of(store).remove_overtaken(planned.plan_id, written)
    assert parts(store) == now
    assert_complete(store, STREAM)


def test_an_overtaken_run_leaves_a_last_copy(store: FakeStore) -> None:
    planned, written = overtaken(store)
    before = parts(store)
    store.vanish(RAW + "a.log")
    run_hour(store, STREAM, "newer", drop_vanished=True)
    for name in before:
        store.produce(AGGREGATED + name, before[name])
    state_of(store).remove_overtaken(planned.plan_id, written)
    # The parts with what the hour does not hold stay.
    (holder,) = [
        name for name, part in written.items() if any(item.key == RAW + "a.log" for item in part.objects)
    ]
    assert holder in parts(store)


def test_an_overtaken_run_removes_nothing_while_the_hour_is_built(store: FakeStore) -> None:
    planned, written = overtaken(store)
    produce(store, {"ab.log": b"late" * 9})
    plan_hour(store, STREAM, HOUR, "newer")
    before = store.snapshot()
    state_of(store).remove_overtaken(planned.plan_id, written)
    assert store.snapshot() == before


def test_an_overtaken_run_sees_a_whole_run_that_came_and_went(store: FakeStore) -> None:
    """Without a claim two readings look alike, but the manifest is another one."""
    planned, written = overtaken(store)
    strays = parts(store)
    produce(store, {"ab.log": b"late" * 9})
    run_hour(store, STREAM, "newer")
    for name in strays:
        store.produce(AGGREGATED + name, strays[name])

    def back() -> None:
        # The hour is again as the overtaken run had planned it.
        store.vanish(RAW + "ab.log")
        for name in strays.keys() - {entry["name"] for entry in manifest_of(store)[0]["parts_table"]}:
            store.vanish(AGGREGATED + name)
        run_hour(store, STREAM, "newest", drop_vanished=True)

    store.on("WRITE", REMOVALS, back)
    state_of(store).remove_overtaken(planned.plan_id, written)
    assert_complete(store, STREAM)
    assert parts(store) == strays


# -- parts that are not right --------------------------------------------------------------------------


def test_a_rejected_part_goes_after_claim_and_marker(store: FakeStore) -> None:
    run_hour(store, STREAM)
    name = part_name(store, 1)
    state = state_of(store)
    manifest = state.records.open_manifest(state.paths.manifest)
    store.log.clear()
    state.reject_parts(marker_of(store)["plan_id"], {name: name}, None, manifest)
    names = [f"{each.kind} {each.name}" for each in store.writes()]
    assert names[:2] == ["WRITE claim.json", "DELETE _SUCCESS"]
    assert names.index(f"DELETE {name}") < names.index("DELETE claim.json")
    assert not store.has(CLAIM)


def test_nothing_is_rejected_of_an_hour_that_was_completed_since(store: FakeStore) -> None:
    run_hour(store, STREAM)
    state = state_of(store)
    manifest = state.records.open_manifest(state.paths.manifest)
    name = part_name(store, 0)
    produce(store, {"z.log": b"late"})
    run_hour(store, STREAM, "another run")
    before = store.snapshot()
    with pytest.raises(SupersededError):
        state.reject_parts("stale", {name: name}, None, manifest)
    assert store.snapshot() == before
    assert_complete(store, STREAM)


# -- cleaning up ---------------------------------------------------------------------------------------


def test_cleaning_up_leaves_foreign_objects_and_removals(store: FakeStore) -> None:
    kept = ("notes.txt", "x/plan.json", f"{PLAN}/notes.txt", "removals/0a.json", "removals/notes")
    gone = (f"{PLAN}/plan.json", f"{OTHER}/shard-00000.json.gz", f"{PLAN}/staged-0a-_SUCCESS", "crc-probe")
    begin(store)
    for name in (*kept, *gone):
        store.produce(WORK + name, b"x")
    state_of(store).clean_up(PLAN)
    assert store.listing(WORK) == sorted(WORK + name for name in kept)


def test_cleaning_up_leaves_the_files_of_another_run(store: FakeStore) -> None:
    begin(store)
    claim = begin(store, OTHER)
    state_of(store).clean_up(PLAN)
    assert store.listing(WORK) == sorted([CLAIM, f"{WORK}{OTHER}/plan.json"])
    assert state_of(store).claim() == claim


def test_a_claim_that_was_renewed_meanwhile_is_left(store: FakeStore) -> None:
    begin(store)
    again: list[Claim] = []
    store.on("DELETE", "plan.json", lambda: again.append(begin(store)))
    state_of(store).clean_up(PLAN)
    assert state_of(store).claim() == again[0]


def test_an_unchanged_run_leaves_another_that_has_just_begun(store: FakeStore) -> None:
    before = run_hour(store, STREAM)
    begun: list[Planned] = []

    def another() -> None:
        store.produce(RAW + "aa.log", b"late" * 10)
        begun.append(plan_hour(store, STREAM, HOUR, "another run"))

    # Just before the unchanged run looks what there is to be tidied up.
    store.on("LIST", WORK, another)
    planned = plan_hour(store, STREAM, HOUR, "unchanged")
    assert (planned.unchanged, planned.plan_id) == (True, before.plan_id)
    finish_hour(store, STREAM, begun[0])
    assert_complete(store, STREAM)


# -- unfinished uploads --------------------------------------------------------------------------------


def test_only_uploads_of_these_parts_are_given_up(store: FakeStore) -> None:
    names = ["part-00000-0123abcd.log", "part-00001-0123abcd.log"]
    keys = {
        "ours": AGGREGATED + names[0],
        "another part": AGGREGATED + names[1],
        "another hour": "aggregated/app/20261123/09/" + names[0],
        "another prefix": "other/" + names[0],
        "foreign": AGGREGATED + "upload.bin",
    }
    for upload, key in keys.items():
        store.uploads[upload] = (key, {})
    # As of servers that ignore the prefix.
    store.lists_all_uploads = True
    state_of(store).abort_uploads({names[0]})
    assert set(store.uploads) == keys.keys() - {"ours"}


def test_uploads_that_cannot_be_listed_fail_nothing(store: FakeStore) -> None:
    store.on("UPLOADS", "", UnsupportedOperationError("501 NotImplemented"))
    state_of(store).abort_uploads({"part-00000-0123abcd.log"})


def test_an_upload_of_a_copy_that_died_is_given_up_with_its_hour(store: FakeStore) -> None:
    produce(store, {"large.log": b"l" * 100})
    packed(store)
    (copied,) = [name for name, body in parts(store).items() if len(body) == 100]
    store.uploads["left"] = (AGGREGATED + copied, {})
    store.uploads["theirs"] = (AGGREGATED + "part-00099.log", {})
    run_hour(store, STREAM)
    assert set(store.uploads) == {"theirs"}
    assert_right(store, STREAM)
