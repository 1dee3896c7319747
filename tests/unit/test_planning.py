"""plan_hour writes a whole plan before it claims the hour, and takes the marker away before any part changes."""

import gzip
import json
from collections.abc import Mapping

import pytest

from include.log_rollup.complete import complete_hour
from include.log_rollup.errors import (
    AccessError,
    EmptyHourError,
    MissingBucketError,
    TransientError,
    UnsupportedInputError,
    VanishedInputError,
)
from include.log_rollup.packing import pack_shard
from include.log_rollup.planning import Preview, plan_hour, preview_hour
from include.log_rollup.validate import validate_hour
from tests.unit.fake_store import FakeStore
from tests.unit.pipeline import (
    AGGREGATED,
    CLAIM,
    HOUR,
    MANIFEST,
    MARKER,
    RAW,
    WORK,
    assert_complete,
    assert_not_complete,
    finish_hour,
    inputs,
    make_stream,
    parts,
    plan_id_of,
    produce,
    run_hour,
)

# Three parts in two shards.
RAW_HOUR: Mapping[str, bytes] = {f"{letter}.log": letter.encode() * 30 for letter in "abcde"}


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, RAW_HOUR)
    return store


def written_names(store: FakeStore) -> list[str]:
    return [f"{operation.kind} {operation.key.removeprefix(AGGREGATED)}" for operation in store.writes()]


def test_references_to_shards_are_returned_and_never_a_key(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    assert [(ref.shard, ref.first_part, ref.parts, ref.objects, ref.bytes) for ref in planned.shards] == [
        (0, 0, 1, 2, 60), (1, 1, 2, 3, 90),
    ]  # fmt: skip
    assert {(ref.stream, ref.hour, ref.plan_id) for ref in planned.shards} == {
        ("app", "2026-11-23T08:00:00Z", planned.plan_id)
    }
    assert not planned.unchanged
    assert planned.plan_id == plan_id_of(store, make_stream())


def test_the_plan_is_whole_before_the_hour_is_claimed_for_it(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    of_plan = f"_rollup/{planned.plan_id}"
    writes = [name for name in written_names(store) if name.startswith("WRITE")]
    assert writes == [
        f"WRITE {of_plan}/shard-00000.json.gz",
        f"WRITE {of_plan}/shard-00001.json.gz",
        f"WRITE {of_plan}/plan.json",
        "WRITE _rollup/claim.json",
    ]


def test_the_plan_in_the_bucket_holds_each_raw_object_once_in_order(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    rows = []
    for shard in range(2):
        body = gzip.decompress(store.body(f"{WORK}{planned.plan_id}/shard-0000{shard}.json.gz"))
        for part in json.loads(body)["parts"]:
            rows.extend(part[5])
    assert rows == [[name, 30, store.stored(RAW + name).etag] for name in RAW_HOUR]
    summary = json.loads(store.body(f"{WORK}{planned.plan_id}/plan.json"))
    assert (summary["objects"], summary["bytes_in"], summary["parts"]) == (5, 150, 3)
    assert json.loads(store.body(CLAIM)) == {"format": 1, "plan_id": planned.plan_id, "run_id": "run"}


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_an_hour_of_many_pages_is_planned_whole(page_size: int) -> None:
    store = FakeStore(page_size=page_size)
    produce(store, RAW_HOUR)
    assert plan_hour(store, make_stream(), HOUR, "run").plan_id == plan_id_of(store, make_stream())
    assert sum(ref.objects for ref in plan_hour(store, make_stream(), HOUR, "run").shards) == 5


def test_more_than_a_thousand_objects_are_planned_whole() -> None:
    store = FakeStore()
    produce(store, {f"{number:05d}.log": b"x" for number in range(2500)})
    planned = plan_hour(store, make_stream(part_size=100), HOUR, "run")
    assert sum(ref.objects for ref in planned.shards) == 2500


def test_the_same_hour_planned_again_is_the_same_plan(store: FakeStore) -> None:
    one = plan_hour(store, make_stream(), HOUR, "one")
    before = {key: store.body(key) for key in store.listing(WORK + one.plan_id)}
    other = plan_hour(store, make_stream(), HOUR, "other")
    assert one == other
    assert {key: store.body(key) for key in store.listing(WORK + one.plan_id)} == before


# -- reruns --------------------------------------------------------------------------------------------


def test_a_complete_and_unchanged_hour_is_left_untouched(store: FakeStore) -> None:
    run_hour(store, make_stream())
    before = store.snapshot()
    store.log.clear()
    planned = plan_hour(store, make_stream(), HOUR, "again")
    assert (planned.shards, planned.unchanged) == ([], True)
    assert store.writes() == []
    assert store.snapshot() == before


def test_a_late_object_takes_the_marker_away_after_the_new_plan_is_claimed(store: FakeStore) -> None:
    before = run_hour(store, make_stream())
    store.produce(RAW + "ea.log", b"late" * 5)
    store.log.clear()
    planned = plan_hour(store, make_stream(), HOUR, "again")
    assert planned.plan_id != before.plan_id
    names = written_names(store)
    assert names.index("WRITE _rollup/claim.json") < names.index("DELETE _SUCCESS")
    assert [name for name in names if "part-" in name] == []
    assert_not_complete(store)
    assert len(parts(store)) == 3


def test_a_marker_that_an_older_run_writes_while_the_hour_is_planned_anew_does_not_outlive_the_plan(
    store: FakeStore,
) -> None:
    for ref in plan_hour(store, make_stream(), HOUR, "older").shards:
        pack_shard(store, make_stream(), ref)
    validate_hour(store, make_stream(), HOUR)
    store.vanish(RAW + "e.log")
    completed: list[object] = []
    store.on("WRITE", "plan.json", lambda: completed.append(complete_hour(store, make_stream(), HOUR)))
    plan_hour(store, make_stream(), HOUR, "newer", drop_vanished=True)
    assert completed
    assert_not_complete(store)


def test_parts_that_stand_as_planned_are_noted_so_that_they_are_left_alone(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.produce(RAW + "ea.log", b"late" * 5)
    planned = plan_hour(store, make_stream(), HOUR, "again")
    store.log.clear()
    finish_hour(store, make_stream(), planned)
    assert [operation.name for operation in store.writes() if operation.kind == "PUT"] == ["part-00002.log"]
    assert_complete(store, make_stream())


def test_parts_of_an_unfinished_plan_that_stand_as_planned_are_left_alone(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    pack_shard(store, make_stream(), planned.shards[0])
    store.produce(RAW + "ea.log", b"late" * 5)
    store.log.clear()
    run_hour(store, make_stream())
    assert [operation.name for operation in store.writes() if operation.kind == "PUT"] == [
        "part-00001.log",
        "part-00002.log",
    ]
    assert_complete(store, make_stream())


def test_what_belongs_to_an_older_plan_is_removed_once_the_new_one_is_claimed(store: FakeStore) -> None:
    old = plan_hour(store, make_stream(), HOUR, "run")
    store.produce(RAW + "f.log", b"late")
    store.log.clear()
    new = plan_hour(store, make_stream(), HOUR, "again")
    names = written_names(store)
    removed = [name for name in names if old.plan_id in name]
    assert removed
    assert names.index("WRITE _rollup/claim.json") < names.index(removed[0])
    assert {key.removeprefix(WORK).partition("/")[0] for key in store.listing(WORK)} == {
        new.plan_id,
        "claim.json",
    }


@pytest.mark.parametrize("damage", ["corrupted", "deleted", "stale"])
def test_a_complete_hour_whose_parts_are_not_those_that_were_proven_is_planned_again(
    store: FakeStore, damage: str
) -> None:
    before = run_hour(store, make_stream())
    if damage == "corrupted":
        store.corrupt(AGGREGATED + "part-00001.log")
    elif damage == "deleted":
        store.vanish(AGGREGATED + "part-00001.log")
    else:
        store.produce(AGGREGATED + "part-00003.log", b"of another plan")
    planned = plan_hour(store, make_stream(), HOUR, "again")
    assert planned.plan_id == before.plan_id
    assert not planned.unchanged
    assert_not_complete(store)
    finish_hour(store, make_stream(), planned)
    assert_complete(store, make_stream())


@pytest.mark.parametrize(
    "body", [b"", b"damaged", gzip.compress(b"{}", mtime=0), gzip.compress(b"x" * 99, mtime=0)[:20]]
)
def test_a_manifest_that_cannot_be_read_makes_the_hour_be_planned_without_it(
    store: FakeStore, body: bytes
) -> None:
    run_hour(store, make_stream())
    store.produce(MANIFEST, body)
    assert not plan_hour(store, make_stream(), HOUR, "again").unchanged
    assert_not_complete(store)
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def test_a_manifest_with_a_flipped_bit_makes_the_hour_be_planned_without_it(store: FakeStore) -> None:
    run_hour(store, make_stream())
    body = store.body(MANIFEST)
    for place in range(10, len(body), 5):
        store.produce(MANIFEST, body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :])
        plan_hour(store, make_stream(), HOUR, "again")
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


@pytest.mark.parametrize("body", [b"", b"done", b"[]", b'{"format": 999}'])
def test_a_marker_of_another_kind_makes_the_hour_be_planned_again(store: FakeStore, body: bytes) -> None:
    run_hour(store, make_stream())
    store.produce(MARKER, body)
    assert not plan_hour(store, make_stream(), HOUR, "again").unchanged
    assert_not_complete(store)


def test_another_storage_class_writes_every_part_anew(store: FakeStore) -> None:
    run_hour(store, make_stream())
    cold = make_stream(storage_class="STANDARD_IA")
    run_hour(store, cold)
    assert_complete(store, cold)
    classes = {store.stored(AGGREGATED + name).headers.get("x-amz-storage-class") for name in parts(store)}
    assert classes == {"STANDARD_IA"}


# -- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [{}, {"_hidden": b"x", "host/": b"", ".x": b"y", "DONE": b"z"}])
def test_an_hour_with_nothing_to_pack_fails_with_what_was_there_instead(raw: dict[str, bytes]) -> None:
    store = FakeStore()
    produce(store, raw)
    with pytest.raises(EmptyHourError) as caught:
        plan_hour(store, make_stream(marker="DONE"), HOUR, "run")
    counted = f"({len(raw)} objects listed, {2 if raw else 0} hidden, {1 if raw else 0} folder placeholders)"
    for part in ("2026-11-23T08:00:00Z", f"s3://logs/{RAW}", counted, "'allow_empty: true'", "'app'"):
        assert part in str(caught.value)
    assert store.writes() == []


def test_an_empty_hour_completes_without_parts_where_that_is_allowed() -> None:
    store, stream = FakeStore(), make_stream(allow_empty=True)
    produce(store, {"_hidden": b"x"})
    planned = plan_hour(store, stream, HOUR, "run")
    assert (planned.shards, planned.unchanged) == ([], False)
    totals = finish_hour(store, stream, planned)
    assert (totals.objects, totals.parts, totals.left_out.hidden) == (0, 0, 1)
    assert_complete(store, stream)
    assert plan_hour(store, stream, HOUR, "again").unchanged


# -- raw objects that have vanished --------------------------------------------------------------------

VANISHED = {"the first": ["a.log"], "some": ["b.log", "d.log"], "all": list(RAW_HOUR)}


@pytest.mark.parametrize("names", VANISHED.values(), ids=VANISHED)
@pytest.mark.parametrize(
    "others", [{}, {"z.log": b"late"}, {"c.log": b"C" * 30}], ids=["", "late", "changed"]
)
@pytest.mark.parametrize("allow_empty", [False, True])
def test_a_complete_hour_is_not_planned_without_raw_objects_that_have_vanished(
    store: FakeStore, names: list[str], others: Mapping[str, bytes], allow_empty: bool
) -> None:
    stream = make_stream(allow_empty=allow_empty)
    run_hour(store, stream)
    produce(store, others)
    gone = [name for name in names if name not in others]
    for name in gone:
        store.vanish(RAW + name)
    before = store.snapshot()
    store.log.clear()
    with pytest.raises(VanishedInputError) as caught:
        plan_hour(store, stream, HOUR, "again")
    message = str(caught.value)
    assert f"{len(gone)} of 5 raw objects ({RAW}{gone[0]}" in message
    assert "mark the run as success: the hour stays complete" in message
    assert '--conf \'{"hour": "2026-11-23T08:00:00Z", "drop_vanished": true}\'' in message
    assert store.writes() == []
    assert store.snapshot() == before


@pytest.mark.parametrize("names", VANISHED.values(), ids=VANISHED)
def test_whoever_insists_gets_the_hour_without_them(store: FakeStore, names: list[str]) -> None:
    stream = make_stream(allow_empty=True)
    run_hour(store, stream)
    for name in names:
        store.vanish(RAW + name)
    run_hour(store, stream, drop_vanished=True)
    assert_complete(store, stream)


def test_a_rerun_that_died_does_not_make_the_next_one_forget_what_has_vanished(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.produce(RAW + "z.log", b"late")
    plan_hour(store, make_stream(), HOUR, "a run that dies")
    assert_not_complete(store)
    store.vanish(RAW + "a.log")
    with pytest.raises(VanishedInputError, match=r"mark the run as success\."):
        plan_hour(store, make_stream(), HOUR, "again")


@pytest.mark.parametrize("manifest", [None, b"damaged"])
def test_without_a_manifest_the_number_in_the_marker_tells_that_objects_have_vanished(
    store: FakeStore, manifest: bytes | None
) -> None:
    run_hour(store, make_stream())
    store.vanish(MANIFEST)
    if manifest is not None:
        store.produce(MANIFEST, manifest)
    store.vanish(RAW + "a.log")
    before = store.snapshot()
    with pytest.raises(VanishedInputError, match="1 of 5 raw objects from which"):
        plan_hour(store, make_stream(), HOUR, "again")
    assert store.snapshot() == before


def test_parts_without_any_record_are_not_removed_because_there_are_no_raw_objects(store: FakeStore) -> None:
    stream = make_stream(allow_empty=True)
    run_hour(store, stream)
    for key in (MANIFEST, MARKER, *(RAW + name for name in RAW_HOUR)):
        store.vanish(key)
    before = store.snapshot()
    with pytest.raises(VanishedInputError, match="all raw objects from which"):
        plan_hour(store, stream, HOUR, "again")
    assert store.snapshot() == before


def test_an_object_that_the_settings_hide_by_now_has_not_vanished(store: FakeStore) -> None:
    run_hour(store, make_stream())
    other = make_stream(marker="e.log")
    run_hour(store, other)
    assert_complete(store, other)


def test_objects_of_an_hour_that_was_never_proven_may_vanish(store: FakeStore) -> None:
    for ref in plan_hour(store, make_stream(), HOUR, "run").shards:
        pack_shard(store, make_stream(), ref)
    store.vanish(RAW + "a.log")
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def test_a_container_fails_the_plan_before_anything_is_written(store: FakeStore) -> None:
    run_hour(store, make_stream())
    before = store.snapshot(AGGREGATED)
    store.produce(RAW + "table.parquet", b"PAR1")
    with pytest.raises(UnsupportedInputError, match=r"table\.parquet"):
        plan_hour(store, make_stream(), HOUR, "again")
    assert store.snapshot(AGGREGATED) == before


def test_only_the_hour_itself_is_planned_and_touched(store: FakeStore) -> None:
    others = {
        "raw/app/20261123/09/a.log": b"next hour",
        "raw/app/20261123/080/a.log": b"no hour",
        "raw/app2/20261123/08/a.log": b"another stream",
        "aggregated/app/20261123/09/part-00000.log": b"next hour",
        "aggregated/app/20261123/09/_rollup/claim.json": b"{}",
        "aggregated/app/20261123/09/_SUCCESS": b"{}",
    }
    for key, body in others.items():
        store.produce(key, body)
    run_hour(store, make_stream())
    assert_complete(store, make_stream())
    assert {key: store.body(key) for key in others} == others
    assert len(inputs(store, make_stream())) == 5


def test_what_others_put_beside_the_parts_is_left_alone(store: FakeStore) -> None:
    others = {
        AGGREGATED + name: b"theirs" for name in ("README", "sub/part-00000.log", "_metadata", "part-x")
    }
    for key, body in others.items():
        store.produce(key, body)
    run_hour(store, make_stream())
    run_hour(store, make_stream())
    assert {key: store.body(key) for key in others} == others


def test_a_missing_bucket_fails_as_such() -> None:
    with pytest.raises(MissingBucketError, match="logs"):
        plan_hour(FakeStore(buckets=["another"]), make_stream(), HOUR, "run")


@pytest.mark.parametrize("error", [AccessError("denied"), TransientError("the connection broke")])
def test_an_error_of_the_store_comes_through_and_the_next_try_goes_on(
    store: FakeStore, error: Exception
) -> None:
    store.on("WRITE", "plan.json", error)
    with pytest.raises(type(error)):
        plan_hour(store, make_stream(), HOUR, "run")
    assert_not_complete(store)
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def previewed(store: FakeStore) -> Preview:
    """Preview the hour, and see that nothing changes and that planning then comes to the very same."""
    before = store.snapshot()
    found = preview_hour(store, make_stream(), HOUR)
    assert store.snapshot() == before
    planned = plan_hour(store.fork(), make_stream(), HOUR, "run")
    assert (found.plan_id, found.unchanged) == (planned.plan_id, planned.unchanged)
    assert found.shards == len(planned.shards)
    if planned.shards:
        assert found.parts == sum(ref.parts for ref in planned.shards)
        assert (found.objects, found.bytes_in) == (
            sum(ref.objects for ref in planned.shards),
            sum(ref.bytes for ref in planned.shards),
        )
    return found


def test_a_preview_of_an_hour_that_nobody_has_planned_counts_what_would_be_packed(store: FakeStore) -> None:
    produce(store, {"_hidden.log": b"h", "large.log": b"l" * 100})
    found = previewed(store)
    assert (found.objects, found.parts, found.parts_copied, found.parts_standing) == (6, 4, 1, 0)
    assert found.left_out.hidden == 1


def test_a_preview_of_a_complete_hour_says_that_nothing_would_be_done(store: FakeStore) -> None:
    run_hour(store, make_stream())
    found = previewed(store)
    assert (found.unchanged, found.shards, found.parts, found.parts_standing) == (True, 0, 3, 3)


def test_a_preview_tells_how_many_parts_stand_of_a_run_that_died_and_of_a_complete_hour(
    store: FakeStore,
) -> None:
    shards = plan_hour(store, make_stream(), HOUR, "run").shards
    pack_shard(store, make_stream(), shards[0])
    assert previewed(store).parts_standing == shards[0].parts
    run_hour(store, make_stream())
    produce(store, {"late.log": b"late"})
    found = previewed(store)
    assert (found.unchanged, found.parts, found.parts_standing) == (False, 3, 2)


def test_a_preview_fails_as_planning_would(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.vanish(RAW + "a.log")
    with pytest.raises(VanishedInputError):
        preview_hour(store, make_stream(), HOUR)
