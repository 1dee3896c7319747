"""A rerun keeps the parts whose raw objects are unchanged or expired, and packs only the others."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

import pytest

from include.log_rollup.errors import (
    ConfigurationError,
    InputChangedError,
    ProofError,
    TransientError,
    UnreadableRecordError,
    UnsupportedOperationError,
    VanishedInputError,
)
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.hour.changes import Changes
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries.grep import Found, GrepOptions, grep
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.line_pattern import compile_pattern
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.expire_hour import ExpiryState, expire_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, plan_hour, preview_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage.protocol import Location, StoredObject
from include.log_rollup.streams import Stream
from include.log_rollup.units import MIB
from tests.support.fake_store import Effect, FakeStore
from tests.support.hour_in_memory import (
    CLAIM,
    MANIFEST,
    MARKER,
    REMOVALS,
    assert_complete,
    complete_in_format_1,
    finish_hour,
    make_stream,
    manifest_of,
    marker_of,
    numbered,
    part_key,
    part_name,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

pytestmark = pytest.mark.usefixtures("unwatched")

RECORD = f"{AGGREGATED}_expired.json"
# Three parts of two objects.
NAMES = tuple(f"{letter}.log" for letter in "abcdef")


def streaming(**settings: object) -> Stream:
    return make_stream(expire_raw=ExpireRaw(after=timedelta(days=14), mode="delete"), **settings)


STREAM = streaming()


@pytest.fixture
def store() -> FakeStore:
    return complete(STREAM)


def complete(stream: Stream, hour: Mapping[str, bytes] | None = None) -> FakeStore:
    store = FakeStore(control_connections=1)
    produce(store, hour or {name: name[0].encode() * 30 for name in NAMES})
    run_hour(store, stream)
    store.log.clear()
    return store


def written(store: FakeStore) -> list[str]:
    """The names of the parts that were written, without their fingerprints."""
    return numbered(operation.name for operation in store.log if operation.kind in ("PUT", "COPY"))


def expire(store: FakeStore, stream: Stream = STREAM) -> None:
    assert expire_hour(store, stream, HOUR).state is ExpiryState.EXPIRED
    store.log.clear()


def assert_kept(store: FakeStore, before: Mapping[str, bytes], *names: str) -> None:
    """Assert that all parts from before are still there, and that exactly these were added."""
    assert before.items() <= parts(store).items()
    assert numbered(sorted(parts(store).keys() - before.keys())) == list(names)
    assert written(store) == list(names)


def announce_removal(store: FakeStore, names: Iterable[str]) -> None:
    record = {"format": 1, "names": sorted(names)}
    store.produce(f"{REMOVALS}0123456789abcdef.json", json.dumps(record).encode())


def content(store: FakeStore, name: str, stream: Stream = STREAM) -> bytes:
    return b"".join(read_object(store, locate(store, stream, RAW + name)))


# -- what a rerun writes ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_late_objects_among_many_cost_what_they_weigh() -> None:
    stream, store = make_stream(part_size=1024, shard_size=MIB), FakeStore()
    names = [f"{number:05d}.log" for number in range(30_000)]
    produce(store, dict.fromkeys(names, b"x" * 16))
    complete_in_format_1(store, (names[start : start + 60] for start in range(0, 30_000, 60)))
    before = parts(store)
    produce(store, {f"{number:05d}-late.log": b"late" for number in range(0, 30_000, 1000)})
    produce(store, {"12345.log": b"changed"})
    found = preview_hour(store, stream, HOUR)
    assert (found.parts, found.parts_standing, found.shards) == (501, 499, 1)
    planned = plan_hour(store, stream, HOUR, "again")
    assert [(ref.parts, ref.objects) for ref in planned.shards] == [(2, 90)]
    for ref in planned.shards:
        pack_shard(store, stream, ref)
    assert_kept(store, before, "part-00500.log", "part-00501.log")


def test_only_parts_of_changed_and_dropped_objects_are_replaced(store: FakeStore) -> None:
    before = parts(store)
    produce(store, {"c.log": b"C" * 30, "aa.log": b"late"})
    store.vanish(RAW + "f.log")
    run_hour(store, STREAM, drop_vanished=True)
    assert_complete(store, STREAM)
    # Part 2 loses f, part 1 an old c; d and e go with c and aa.
    assert numbered(parts(store)) == ["part-00000.log", "part-00001.log", "part-00002.log"]
    assert part_name(store, 0) in before
    assert [row["key"].removeprefix(RAW) for row in manifest_of(store)[1]] == [
        "a.log", "b.log", "aa.log", "c.log", "d.log", "e.log",
    ]  # fmt: skip


def test_lost_part_is_packed_again_under_its_name(store: FakeStore) -> None:
    before = parts(store)
    store.vanish(part_key(store, 1))
    produce(store, {"z.log": b"late"})
    run_hour(store, STREAM)
    assert sorted(written(store)) == ["part-00001.log", "part-00003.log"]
    assert before.items() <= parts(store).items()
    assert_complete(store, STREAM)


def test_lost_part_of_other_settings_is_packed_with_the_present_ones(store: FakeStore) -> None:
    store.vanish(part_key(store, 1))
    other = streaming(ensure_newline=True)
    run_hour(store, other)
    assert written(store) == ["part-00003.log"]
    assert store.body(part_key(store, 3)) == b"c" * 30 + b"\n" + b"d" * 30 + b"\n"
    assert find_changed_hours(store, other, [HOUR]).changed == []


def test_damaged_part_of_other_settings_is_removed(store: FakeStore) -> None:
    store.corrupt(part_key(store, 1))
    other = streaming(ensure_newline=True)
    totals = run_hour(store, other)
    assert written(store) == ["part-00003.log"]
    assert numbered(parts(store)) == ["part-00000.log", "part-00002.log", "part-00003.log"]
    assert totals.foreign == 0


def test_part_lost_since_planning_is_not_packed_with_other_settings(store: FakeStore) -> None:
    produce(store, {"z.log": b"late"})
    other = streaming(ensure_newline=True)
    planned = plan_hour(store, other, HOUR, "again")
    store.vanish(part_key(store, 1))
    with pytest.raises(ProofError, match=r"part-00001-\w+\.log\).*clear the run from plan_hour on"):
        pack_shard(store, other, planned.shards[0])
    run_hour(store, other)
    assert find_changed_hours(store, other, [HOUR]).changed == []


def test_plan_of_a_proven_hour_without_a_marker_keeps_all_parts(store: FakeStore) -> None:
    store.vanish(MARKER)
    planned = plan_hour(store, STREAM, HOUR, "again")
    assert (planned.shards, planned.unchanged) == ([], False)
    finish_hour(store, STREAM, planned)
    assert written(store) == []
    assert marker_of(store)["max_connections"] == STREAM.max_connections
    assert_complete(store, STREAM)


def test_plan_is_a_function_of_listing_and_manifest(store: FakeStore) -> None:
    produce(store, {"aa.log": b"late", "c.log": b"C" * 30})
    plans = [plan_hour(store.fork(), STREAM, HOUR, run).plan_id.partition("-")[0] for run in "ab"]
    assert plans[0] == plans[1]
    run_hour(store, STREAM)
    assert marker_of(store)["plan_id"].startswith(plans[0])
    store.vanish(MARKER)
    run_hour(store, STREAM)
    assert marker_of(store)["plan_id"].startswith(plans[0])


def test_rerun_of_a_changed_hour_is_unchanged_and_not_late(store: FakeStore) -> None:
    produce(store, {"aa.log": b"late"})
    run_hour(store, STREAM)
    store.log.clear()
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []
    assert not any(operation.kind in ("GET", "WRITE") for operation in store.log)


def test_marker_of_an_earlier_version_falls_back_to_the_manifest(store: FakeStore) -> None:
    produce(store, {"aa.log": b"late"})
    run_hour(store, STREAM)
    marker = store.body(MARKER).replace(b'"raw_digest"', b'"other"')
    store.produce(MARKER, marker)
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []


def test_repack_packs_the_whole_hour_in_key_order(store: FakeStore) -> None:
    produce(store, {"aa.log": b"late" * 10})
    run_hour(store, STREAM)
    assert preview_hour(store, STREAM, HOUR).unchanged
    assert preview_hour(store, STREAM, HOUR, repack=True).parts_standing == 0
    run_hour(store, STREAM, repack=True)
    keys = [row["key"] for row in manifest_of(store)[1]]
    assert keys == sorted(keys)
    assert_complete(store, STREAM)
    assert plan_hour(store, STREAM, HOUR, "again", repack=True).unchanged


@pytest.mark.parametrize("merge", [False, True])
def test_small_parts_are_merged_if_the_stream_asks_for_it(store: FakeStore, merge: bool) -> None:
    stream = streaming(late_merge=merge)
    counts = []
    for number in range(8):
        produce(store, {f"late-{number}.log": b"late"})
        run_hour(store, stream)
        assert_complete(store, stream)
        counts.append(len(parts(store)))
    assert counts == ([4, 5, 6, 7, 8, 4, 5, 6] if merge else [4, 5, 6, 7, 8, 9, 10, 11])
    assert plan_hour(store, stream, HOUR, "again").unchanged


def test_hour_whose_parts_and_manifest_were_moved_away_is_packed(store: FakeStore) -> None:
    expire(store)
    for key in [MARKER, MANIFEST, *(AGGREGATED + name for name in parts(store))]:
        store.vanish(key)
    produce(store, {"z.log": b"new"})
    with pytest.raises(UnreadableRecordError, match=r"raw objects of 3 parts have expired \(part-00000-"):
        run_hour(store, STREAM)
    store.vanish(RECORD)
    run_hour(store, STREAM)
    assert written(store) == ["part-00000.log"]


def test_older_manifest_than_the_expired_record_is_refused(store: FakeStore) -> None:
    """Somebody has restored it, as the message about a damaged manifest says."""
    expire(store)
    older = {key: store.body(key) for key in (MANIFEST, MARKER)}
    produce(store, {"z.log": b"late"})
    run_hour(store, STREAM)
    expire(store)
    newest = {key: store.body(key) for key in (MANIFEST, MARKER)}
    for key, body in older.items():
        store.produce(key, body)
    before = store.snapshot()
    (problem,) = verify_hour(store, STREAM, HOUR).problems
    assert "1 existing parts have expired or were about to (part-00003-" in problem.reason
    with pytest.raises(
        UnreadableRecordError, match=r"or were about to \(part-00003-.*restore the newest one"
    ):
        plan_hour(store, STREAM, HOUR, "again")
    assert store.snapshot() == before
    for key, body in newest.items():
        store.produce(key, body)
    run_hour(store, STREAM)
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def test_expiry_that_gives_way_to_a_rerun_does_not_block_the_hour(store: FakeStore) -> None:
    """It does not announce a part that the rerun, which has claimed the hour just before, replaces."""
    produce(store, {"a.log": b"changed"})
    other = store.another_client()
    # The rerun claims the hour after the expiry has proven its parts.
    reruns: list[Planned] = []
    other.on("WRITE", "_rollup/expiry/", lambda: reruns.append(plan_hour(store, STREAM, HOUR, "again")))
    found = expire_hour(other, STREAM, HOUR)
    assert "a run has claimed the hour" in found.reason
    finish_hour(store, STREAM, reruns[0])
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    expire(store)
    assert content(store, "a.log") == b"changed"


def test_dropped_part_of_expired_objects_is_no_problem_later(store: FakeStore) -> None:
    expire(store)
    store.vanish(part_key(store, 0))
    produce(store, {"z.log": b"late"})
    run_hour(store, STREAM, drop_vanished=True)
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    expire(store)
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


# -- after raw objects have expired ----------------------------------------------------------------------


def test_expired_hour_is_unchanged_and_not_late(store: FakeStore) -> None:
    expire(store)
    before = store.snapshot()
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    validate_hour(store, STREAM, HOUR)
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []
    found = verify_hour(store, STREAM, HOUR, deep=True)
    assert (found.problems, found.changes) == ([], Changes([], [], [], expired=6))
    assert store.snapshot() == before


@pytest.mark.parametrize("repack", [False, True])
def test_late_object_after_expiry_gets_a_part_of_its_own(store: FakeStore, repack: bool) -> None:
    expire(store)
    before = parts(store)
    produce(store, {"aa.log": b"late"})
    (late,) = find_changed_hours(store, STREAM, [HOUR]).changed
    assert (late.changes, late.can_be_rerun) == (Changes([RAW + "aa.log"], [], [], expired=6), True)
    totals = run_hour(store, STREAM, repack=repack)
    assert_kept(store, before, "part-00003.log")
    assert totals.objects == 7
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    expire(store)
    assert plan_hour(store, STREAM, HOUR, "again").unchanged


def test_part_with_expired_objects_stays_under_a_dead_removal(store: FakeStore) -> None:
    """A run that died has left a removal record, which names the planned parts of the parts that it removed."""
    expire(store)
    before = parts(store)
    announce_removal(store, before)
    run_hour(store, STREAM)
    assert_kept(store, before)
    produce(store, {"late.log": b"late"})
    run_hour(store, STREAM)
    assert_kept(store, before, "part-00003.log")


def test_removal_announced_during_planning_spares_expired_parts(store: FakeStore) -> None:
    expire(store)
    before = parts(store)
    produce(store, {"late.log": b"late"})
    store.on("WRITE", CLAIM, lambda: announce_removal(store, before))
    run_hour(store, STREAM)
    assert_kept(store, before, "part-00003.log")


def test_object_written_again_after_expiry_keeps_both_versions(store: FakeStore) -> None:
    expire(store)
    before = parts(store)
    produce(store, {"b.log": b"B" * 10})
    run_hour(store, STREAM)
    assert_kept(store, before, "part-00003.log")
    assert marker_of(store)["older_versions"] == 1
    found = locate(store, STREAM, RAW + "b.log")
    assert (found.part.key, found.older_versions) == (part_key(store, 3), 1)
    assert content(store, "b.log") == b"B" * 10
    assert locate(store, STREAM, RAW + "a.log").older_versions == 0
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []
    expire(store)
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    assert content(store, "b.log") == b"B" * 10
    # Also if it gets its first content again.
    produce(store, {"b.log": b"b" * 30})
    run_hour(store, STREAM)
    assert content(store, "b.log") == b"b" * 30
    assert plan_hour(store, STREAM, HOUR, "again").unchanged


@pytest.mark.parametrize("complete_first", [False, True])
def test_object_that_gets_its_expired_content_back_has_changed(
    store: FakeStore, complete_first: bool
) -> None:
    """The newest version in the parts is another one, although an older part has the listed bytes."""
    expire(store)
    produce(store, {"b.log": b"B" * 10})
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    if complete_first:
        validate_hour(store, STREAM, HOUR)
        complete_hour(store, STREAM, HOUR)
    produce(store, {"b.log": b"b" * 30})
    with pytest.raises(InputChangedError, match=r"1 changed \(.*b\.log\)"):
        validate_hour(store, STREAM, HOUR)
    if complete_first:
        (late,) = find_changed_hours(store, STREAM, [HOUR]).changed
        assert late.changes.changed == [RAW + "b.log"]
    run_hour(store, STREAM)
    assert content(store, "b.log") == b"b" * 30
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def test_grep_searches_only_the_newest_version(store: FakeStore) -> None:
    expire(store)
    produce(store, {"b.log": b"B" * 10})
    run_hour(store, STREAM)
    options = GrepOptions(compile_pattern("b+", ignore_case=True), ObjectFilter(STREAM))
    found = [one for one in grep(store, STREAM, [HOUR], options) if isinstance(one, Found)]
    assert [(one.key.removeprefix(RAW), one.lines.lines) for one in found] == [("b.log", [b"B" * 10])]


def test_changed_object_next_to_expired_ones_stays_in_its_part(store: FakeStore) -> None:
    produce(store, {"b.log": b"B" * 10})
    expire(store)
    assert store.listing(RAW) == [RAW + "b.log"]
    before = parts(store)
    run_hour(store, STREAM)
    assert_kept(store, before, "part-00003.log")
    assert content(store, "b.log") == b"B" * 10
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []
    assert plan_hour(store, STREAM, HOUR, "again").unchanged


def test_real_vanish_is_refused_after_expiry(store: FakeStore) -> None:
    expire(store)
    produce(store, {"aa.log": b"late"})
    run_hour(store, STREAM)
    store.vanish(RAW + "aa.log")
    before = store.snapshot()
    with pytest.raises(VanishedInputError, match=r"1 of 7 raw objects .*aa\.log"):
        plan_hour(store, STREAM, HOUR, "again")
    with pytest.raises(VanishedInputError, match=r"1 vanished \(.*aa\.log\)"):
        validate_hour(store, STREAM, HOUR)
    (late,) = find_changed_hours(store, STREAM, [HOUR]).changed
    assert not late.can_be_rerun
    assert store.snapshot() == before
    run_hour(store, STREAM, drop_vanished=True)
    assert numbered(parts(store)) == ["part-00000.log", "part-00001.log", "part-00002.log"]


@pytest.mark.parametrize(
    ("raw", "zone", "late"),
    [
        ("s3://logs/raw2/app/", "UTC", "raw2/app/20261123/08/late.log"),
        ("s3://logs/raw/app/", "Europe/Berlin", "raw/app/20261123/09/late.log"),
    ],
    ids=["other prefix", "other time zone"],
)
def test_expired_objects_of_another_raw_template_are_refused(
    store: FakeStore, raw: str, zone: str, late: str
) -> None:
    expire(store)
    store.produce(late, b"late")
    before = store.snapshot()
    other = streaming(raw=RawTemplate.parse(raw, zone))
    for drop_vanished in (False, True):
        with pytest.raises(
            ConfigurationError, match=r"hold 6 raw objects .*a\.log, .*'raw' .* and 'timezone'"
        ):
            plan_hour(store, other, HOUR, "again", drop_vanished)
    assert store.snapshot() == before
    produce(store, {"late.log": b"late"})
    run_hour(store, STREAM)
    assert content(store, "a.log") == b"a" * 30


def test_expired_objects_of_another_group_are_refused() -> None:
    aggregated = AggregatedTemplate.parse("s3://logs/agg/{service}/%Y%m%d/%H/")
    one = streaming(raw=RawTemplate.parse("s3://logs/raw/{service}/{host}/"), aggregated=aggregated)
    other = streaming(raw=RawTemplate.parse("s3://logs/raw/{host}/{service}/"), aggregated=aggregated)
    store, key = FakeStore(), "raw/web/h1/20261123/08/a.log"
    store.produce(key, b"v1")
    run_hour(store, one)
    expire(store, one)
    store.produce(key, b"v2")
    before = store.snapshot()
    with pytest.raises(
        ConfigurationError, match=r"hold 1 raw objects \(raw/web/h1/.* not of this hour and group"
    ):
        plan_hour(store, other, HOUR, "again")
    assert store.snapshot() == before


def test_vanished_object_next_to_expired_ones_is_not_refused(store: FakeStore) -> None:
    """Its part stays, so that nothing would be lost; late objects need no ``drop_vanished``."""
    produce(store, {"b.log": b"B" * 10})
    expire(store)
    store.vanish(RAW + "b.log")
    before = parts(store)
    assert run_hour(store, STREAM).parts == len(before)
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []
    assert_kept(store, before)
    produce(store, {"z.log": b"late"})
    (late,) = find_changed_hours(store, STREAM, [HOUR]).changed
    assert late.can_be_rerun
    run_hour(store, STREAM)
    assert_kept(store, before, "part-00003.log")
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
    run_hour(store, STREAM, drop_vanished=True)
    assert_kept(store, before, "part-00003.log")


def test_vanished_newer_version_in_another_part_is_refused(store: FakeStore) -> None:
    """The part of the older version stays for the expired object in it, but that of the newer one would not."""
    produce(store, {"b.log": b"B" * 10})
    expire(store)
    run_hour(store, STREAM)
    store.vanish(RAW + "b.log")
    before = store.snapshot()
    with pytest.raises(VanishedInputError, match=r"1 of 7 raw objects .*b\.log"):
        plan_hour(store, STREAM, HOUR, "again")
    with pytest.raises(VanishedInputError, match=r"1 vanished \(.*b\.log\)"):
        validate_hour(store, STREAM, HOUR)
    assert store.snapshot() == before
    run_hour(store, STREAM, drop_vanished=True)
    assert numbered(parts(store)) == ["part-00000.log", "part-00001.log", "part-00002.log"]
    assert plan_hour(store, STREAM, HOUR, "again").unchanged


def damage(store: FakeStore) -> None:
    store.corrupt(part_key(store, 0), keep_etag=True)


def overwrite(store: FakeStore) -> None:
    store.corrupt(part_key(store, 0))


@pytest.mark.parametrize(("change", "refused"), [(damage, False), (overwrite, True)])
def test_damaged_part_with_expired_objects_is_never_removed(
    change: Callable[[FakeStore], None], refused: bool
) -> None:
    store = FakeStore(control_connections=1, keeps_crc=False)
    produce(store, {name: name[0].encode() * 30 for name in NAMES})
    run_hour(store, STREAM)
    expire(store)
    good = store.stored(part_key(store, 0))
    change(store)
    found = verify_hour(store, STREAM, HOUR, deep=True)
    assert found.remedy is not None
    assert "have expired" in found.remedy
    if refused:
        with pytest.raises(ProofError, match="so these were left alone: restore them"):
            validate_hour(store, STREAM, HOUR)
        for drops in (False, True):
            before = store.snapshot()
            with pytest.raises(
                VanishedInputError, match=r"not as they were proven \(part-00000-.*Restore them"
            ):
                plan_hour(store, STREAM, HOUR, "again", drop_vanished=drops)
            assert store.snapshot() == before
    assert store.has(part_key(store, 0))
    store.corrupt(part_key(store, 0), body=good.body)
    run_hour(store, STREAM)
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


@pytest.mark.parametrize("keeps_crc", [True, False])
def test_part_restored_with_another_etag_is_proven_and_kept(keeps_crc: bool) -> None:
    store = FakeStore(control_connections=1, random_etags=True, keeps_crc=keeps_crc)
    produce(store, {name: name[0].encode() * 30 for name in NAMES})
    run_hour(store, STREAM)
    expire(store)
    before = store.stored(part_key(store, 0))
    store.produce(part_key(store, 0), before.body)
    assert store.stored(part_key(store, 0)).etag != before.etag
    produce(store, {"z.log": b"late"})
    run_hour(store, STREAM)
    assert written(store) == ["part-00003.log"]
    assert store.body(part_key(store, 0)) == b"a" * 30 + b"b" * 30
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def test_damaged_part_whose_raw_objects_exist_is_packed_again(store: FakeStore) -> None:
    """Expiry has announced them, but was interrupted before its first delete."""
    announce(store)
    store.corrupt(part_key(store, 0))
    run_hour(store, STREAM)
    assert written(store) == ["part-00000.log"]
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


@pytest.mark.parametrize("name", ["_expired.json", "_manifest.jsonl.gz"])
@pytest.mark.parametrize("is_complete", [True, False])
def test_record_that_is_listed_but_not_found_is_read_again(
    monkeypatch: pytest.MonkeyPatch, store: FakeStore, name: str, is_complete: bool
) -> None:
    """A load balancer answers one request with a 404 of its own."""
    expire(store)
    before = parts(store)
    produce(store, {"z.log": b"late"})
    if not is_complete:
        plan_hour(store, STREAM, HOUR, "interrupted", drop_vanished=True)
    missed: list[str] = []
    read = store.read

    def read_late(source: Location, *limit: int) -> StoredObject | None:
        if source.key.endswith(name) and not missed:
            missed.append(name)
            return None
        return read(source, *limit)

    monkeypatch.setattr(store, "read", read_late)
    run_hour(store, STREAM, drop_vanished=True)
    assert missed
    assert_kept(store, before, "part-00003.log")
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def announce(store: FakeStore) -> None:
    """Announce all raw objects, but delete none: the deletion is interrupted before its first request."""
    store.on("DELETE", RAW, TransientError("no answer"))
    with pytest.raises(TransientError):
        expire(store)


def test_announced_part_that_is_packed_wrong_is_packed_again() -> None:
    store = FakeStore(control_connections=1, keeps_crc=False, checks_crc=False)
    produce(store, {name: name[0].encode() * 30 for name in NAMES})
    run_hour(store, STREAM)
    announce(store)
    store.vanish(part_key(store, 0))
    store.on("PUT", "part-", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match="The raw objects are untouched: clear the run from plan_hour on"):
        run_hour(store, STREAM)
    run_hour(store, STREAM)
    assert store.body(part_key(store, 0)) == b"a" * 30 + b"b" * 30
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def test_part_packed_wrong_stays_if_its_raw_objects_expire_then() -> None:
    store = FakeStore(control_connections=1, keeps_crc=False, checks_crc=False)
    produce(store, {name: name[0].encode() * 30 for name in NAMES})
    run_hour(store, STREAM)
    announce(store)
    store.vanish(part_key(store, 0))
    store.on("PUT", "part-", Effect.WRONG_BYTES)
    # A delete that was sent before the hour was claimed is carried out late: after the first proof.
    store.on("WRITE", "claim.json", lambda: None)
    store.on("WRITE", "claim.json", lambda: store.vanish(RAW + "a.log"))
    with pytest.raises(ProofError, match="Raw objects of 1 of them are gone"):
        run_hour(store, STREAM)
    assert store.has(part_key(store, 0))


def test_damaged_announced_part_of_a_complete_hour_is_packed_again(store: FakeStore) -> None:
    announce(store)
    store.corrupt(part_key(store, 0))
    with pytest.raises(ProofError, match="The raw objects are untouched: clear the run from plan_hour on"):
        validate_hour(store, STREAM, HOUR)
    assert store.has(part_key(store, 0))
    run_hour(store, STREAM)
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def test_damaged_announced_part_of_other_settings_is_refused(store: FakeStore) -> None:
    """It could not be packed under its name, and no run may remove it."""
    announce(store)
    store.corrupt(part_key(store, 0))
    other = streaming(ensure_newline=True)
    with pytest.raises(VanishedInputError, match="move them away: what they held is then packed again"):
        plan_hour(store, other, HOUR, "again")
    store.vanish(part_key(store, 0))
    run_hour(store, other)
    expire(store, other)
    assert verify_hour(store, other, HOUR, deep=True).problems == []
    assert plan_hour(store, other, HOUR, "again").unchanged


def test_part_announced_after_planning_is_kept_by_the_next_plan(store: FakeStore) -> None:
    """Without CopyObject, a deletion may announce a part after the hour was claimed; it then deletes nothing."""
    produce(store, {"a.log": b"A" * 10})
    other, planned = store.another_client(), []

    def plan_before_the_write() -> None:
        planned.append(plan_hour(other, STREAM, HOUR, "run"))
        raise UnsupportedOperationError("COPY: S3 answered 501 NotImplemented")

    store.on("PUBLISH", "_expired.json", plan_before_the_write)
    assert expire_hour(store, STREAM, HOUR).state is ExpiryState.LEFT_ALONE
    before = parts(store)
    with pytest.raises(
        InputChangedError, match=r"replaces 1 parts .*part-00000-.* clear the run from plan_hour"
    ):
        finish_hour(store, STREAM, planned[0])
    assert before.items() <= parts(store).items()
    run_hour(store, STREAM)
    assert before.items() <= parts(store).items()
    assert content(store, "a.log") == b"A" * 10
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []
    assert plan_hour(store, STREAM, HOUR, "again").unchanged


def test_copied_part_is_proven_without_its_raw_object() -> None:
    for keeps_crc in (True, False):
        store = FakeStore(control_connections=1, keeps_crc=keeps_crc)
        produce(store, {"a.log": b"a" * 200, "b.log": b"b"})
        run_hour(store, STREAM)
        expire(store)
        produce(store, {"c.log": b"late"})
        before = parts(store)
        run_hour(store, STREAM)
        assert_kept(store, before, "part-00002.log")
        assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def test_expiry_that_begins_during_planning_is_seen(store: FakeStore) -> None:
    """Expiry writes its record and reads the claim; a rerun writes its claim and reads the record."""
    produce(store, {"b.log": b"B" * 10})
    before = parts(store)
    other = store.another_client()
    # The rerun has listed the raw hour, and is about to claim the hour.
    store.on("WRITE", f"{AGGREGATED}_rollup/claim.json", lambda: expire(other))
    planned = plan_hour(store, STREAM, HOUR, "again")
    finish_hour(store, STREAM, planned)
    assert before.items() < parts(store).items()
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []
    assert content(store, "a.log") == b"a" * 30


def test_deletion_during_a_rerun_does_no_harm(store: FakeStore) -> None:
    """Expiry has read the claim before the rerun wrote it, and deletes raw objects while the rerun packs."""
    other = store.fork()
    expire(other)
    produce(store, {"z.log": b"late"})
    store.produce(f"{AGGREGATED}_expired.json", other.body(f"{AGGREGATED}_expired.json"))
    planned = plan_hour(store, STREAM, HOUR, "again")
    for name in NAMES:
        store.vanish(RAW + name)
    finish_hour(store, STREAM, planned)
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []
    assert plan_hour(store, STREAM, HOUR, "again").unchanged
