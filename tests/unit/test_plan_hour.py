"""plan_hour writes the plan before it claims the hour, and removes the marker before any part changes."""

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest

from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    EmptyHourError,
    MissingBucketError,
    ProofError,
    SupersededError,
    TransientError,
    UnreadableRecordError,
    UnsupportedInputError,
    VanishedInputError,
)
from include.log_rollup.hour import gzip_json, manifest
from include.log_rollup.hour.layout import has_tag
from include.log_rollup.hour.plan import content_id_of
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, Preview, plan_hour, preview_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage.protocol import ListPage, Location
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import (
    CLAIM,
    MANIFEST,
    MARKER,
    WORK,
    assert_complete,
    assert_not_complete,
    assert_right,
    complete_in_format_1,
    content_of_plan,
    finish_hour,
    inputs,
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

# Three parts in two shards.
RAW_HOUR: Mapping[str, bytes] = {f"{letter}.log": letter.encode() * 30 for letter in "abcde"}


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, RAW_HOUR)
    return store


def written_names(store: FakeStore) -> list[str]:
    return [f"{operation.kind} {operation.key.removeprefix(AGGREGATED)}" for operation in store.writes()]


def written_parts(store: FakeStore) -> list[str]:
    return numbered(operation.name for operation in store.log if operation.kind == "PUT")


def test_plan_returns_shard_references_without_keys(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    assert [(ref.shard, ref.first_part, ref.parts, ref.objects, ref.bytes) for ref in planned.shards] == [
        (0, 0, 1, 2, 60), (1, 1, 2, 3, 90),
    ]  # fmt: skip
    assert {(ref.stream, ref.hour, ref.plan_id) for ref in planned.shards} == {
        ("app", "2026-11-23T08:00:00Z", planned.plan_id)
    }
    assert not planned.unchanged
    assert content_id_of(planned.plan_id) == content_of_plan(store, make_stream())


def test_plan_is_written_before_the_claim(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    plan_prefix = f"_rollup/{planned.plan_id}"
    writes = [name for name in written_names(store) if name.startswith("WRITE")]
    assert writes == [
        f"WRITE {plan_prefix}/shard-00000.json.gz",
        f"WRITE {plan_prefix}/shard-00001.json.gz",
        f"WRITE {plan_prefix}/plan.json",
        "WRITE _rollup/claim.json",
    ]


def test_plan_has_each_raw_object_once_in_order(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    rows = []
    for shard in range(2):
        body = gzip.decompress(store.body(f"{WORK}{planned.plan_id}/shard-0000{shard}.json.gz"))
        for part in json.loads(body)["parts"]:
            rows.extend(part[5])
    assert rows == [[name, 30, store.stored(RAW + name).etag] for name in RAW_HOUR]
    summary = json.loads(store.body(f"{WORK}{planned.plan_id}/plan.json"))
    assert (summary["objects"], summary["bytes_in"], summary["parts"]) == (5, 150, 3)
    claim = json.loads(store.body(CLAIM))
    assert re.fullmatch("[0-9a-f]{16}", claim.pop("claim_id"))
    assert claim == {"format": 2, "plan_id": planned.plan_id, "run_id": "run"}


@pytest.mark.parametrize("listings", [3, 1000])
def test_planning_waits_for_a_store_that_lists_late(
    monkeypatch: pytest.MonkeyPatch, store: FakeStore, listings: int
) -> None:
    listed = store.list_page
    late = [0]

    def list_page(prefix: Location, *arguments: Any, **options: Any) -> ListPage:
        page = listed(prefix, *arguments, **options)
        late[0] += prefix.key == WORK
        if late[0] > listings:
            return page
        return replace(page, objects=[row for row in page.objects if not row.key.startswith(WORK)])

    monkeypatch.setattr(store, "list_page", list_page)
    if listings == 1000:
        with pytest.raises(TransientError, match="the store lists late what is written"):
            plan_hour(store, make_stream(), HOUR, "run")
        assert not parts(store)
    else:
        planned = plan_hour(store, make_stream(), HOUR, "run")
        assert len({name.partition("/")[0] for name in map(in_work, store.listing(WORK))}) == 2
        finish_hour(store, make_stream(), planned)
        assert_complete(store, make_stream())


def in_work(key: str) -> str:
    return key.removeprefix(WORK)


def test_each_plan_has_its_own_claim(store: FakeStore) -> None:
    claims = []
    for run in ("one", "one", "other"):
        plan_hour(store, make_stream(), HOUR, run)
        claims.append(json.loads(store.body(CLAIM))["claim_id"])
    assert len(set(claims)) == 3


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_hour_of_many_pages_is_planned_completely(page_size: int) -> None:
    store = FakeStore(page_size=page_size)
    produce(store, RAW_HOUR)
    planned = plan_hour(store, make_stream(), HOUR, "run")
    assert content_id_of(planned.plan_id) == content_of_plan(store, make_stream())
    assert sum(ref.objects for ref in plan_hour(store, make_stream(), HOUR, "run").shards) == 5


def test_more_than_a_thousand_objects_are_planned() -> None:
    store = FakeStore()
    produce(store, {f"{number:05d}.log": b"x" for number in range(2500)})
    planned = plan_hour(store, make_stream(part_size=100), HOUR, "run")
    assert sum(ref.objects for ref in planned.shards) == 2500


def test_same_hour_gives_the_same_plan(store: FakeStore) -> None:
    one = plan_hour(store, make_stream(), HOUR, "one")
    other = plan_hour(store, make_stream(), HOUR, "other")
    assert content_id_of(one.plan_id) == content_id_of(other.plan_id)
    assert [replace(ref, plan_id=one.plan_id) for ref in other.shards] == one.shards


def test_two_plans_share_no_files(store: FakeStore) -> None:
    one = plan_hour(store, make_stream(), HOUR, "one")
    before = {key: store.body(key) for key in store.listing(WORK + one.plan_id)}
    assert plan_hour(store, make_stream(), HOUR, "other").plan_id != one.plan_id
    assert {key: store.body(key) for key in store.listing(WORK + one.plan_id)} == before


# -- reruns --------------------------------------------------------------------------------------------


def test_complete_unchanged_hour_is_not_touched(store: FakeStore) -> None:
    run_hour(store, make_stream())
    before = store.snapshot()
    store.log.clear()
    planned = plan_hour(store, make_stream(), HOUR, "again")
    assert (planned.shards, planned.unchanged) == ([], True)
    assert store.writes() == []
    assert store.snapshot() == before


def test_late_object_removes_the_marker_after_the_claim(store: FakeStore) -> None:
    before = run_hour(store, make_stream())
    store.produce(RAW + "ea.log", b"late" * 5)
    store.log.clear()
    planned = plan_hour(store, make_stream(), HOUR, "again")
    assert content_id_of(planned.plan_id) != content_id_of(before.plan_id)
    names = written_names(store)
    assert names.index("WRITE _rollup/claim.json") < names.index("DELETE _SUCCESS")
    assert [name for name in names if "part-" in name] == []
    assert_not_complete(store)
    assert len(parts(store)) == 3


def test_marker_written_by_an_older_run_is_removed(store: FakeStore) -> None:
    for ref in plan_hour(store, make_stream(), HOUR, "older").shards:
        pack_shard(store, make_stream(), ref)
    validate_hour(store, make_stream(), HOUR)
    store.vanish(RAW + "e.log")
    completed: list[object] = []
    store.on("WRITE", "plan.json", lambda: completed.append(complete_hour(store, make_stream(), HOUR)))
    plan_hour(store, make_stream(), HOUR, "newer", drop_vanished=True)
    assert completed
    assert_not_complete(store)


def test_existing_parts_of_a_plan_are_not_packed_again(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.produce(RAW + "ea.log", b"late" * 5)
    planned = plan_hour(store, make_stream(), HOUR, "again")
    store.log.clear()
    finish_hour(store, make_stream(), planned)
    assert written_parts(store) == ["part-00003.log"]
    assert_complete(store, make_stream())


def test_existing_parts_of_an_unfinished_plan_are_kept(store: FakeStore) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    pack_shard(store, make_stream(), planned.shards[0])
    store.produce(RAW + "ea.log", b"late" * 5)
    store.log.clear()
    run_hour(store, make_stream())
    assert written_parts(store) == ["part-00001.log", "part-00002.log"]
    assert_complete(store, make_stream())


def test_files_of_an_older_plan_stay_until_the_hour_is_complete(store: FakeStore) -> None:
    """They record what its parts hold, and which parts are ours."""
    older = plan_hour(store, make_stream(), HOUR, "run")
    store.produce(f"{WORK}{older.plan_id}/staged-0f-_manifest.jsonl.gz", b"staged")
    store.produce(RAW + "f.log", b"late")
    before = store.snapshot(WORK)
    store.log.clear()
    new = plan_hour(store, make_stream(), HOUR, "again")
    names = written_names(store)
    deleted = [name for name in names if name.startswith(f"DELETE _rollup/{older.plan_id}/")]
    assert deleted == [f"DELETE _rollup/{older.plan_id}/staged-0f-_manifest.jsonl.gz"]
    assert names.index("WRITE _rollup/claim.json") < names.index(deleted[0])
    kept = {key for key in before if "/staged-" not in key and key != CLAIM}
    assert {key: store.body(key) for key in kept} == {key: before[key].body for key in kept}
    finish_hour(store, make_stream(), new)
    assert_complete(store, make_stream())


@pytest.mark.parametrize("damage", ["corrupted", "deleted", "stray"])
def test_complete_hour_with_changed_parts_is_planned_again(store: FakeStore, damage: str) -> None:
    before = run_hour(store, make_stream())
    if damage == "corrupted":
        store.corrupt(part_key(store, 1))
    elif damage == "deleted":
        store.vanish(part_key(store, 1))
    else:
        # A stray part of an overtaken run, whose plan still exists.
        late = FakeStore()
        produce(late, {**RAW_HOUR, "e.log": b"E" * 30})
        for ref in plan_hour(late, make_stream(), HOUR, "overtaken").shards:
            pack_shard(late, make_stream(), ref)
        for key, found in late.snapshot(AGGREGATED).items():
            if key != CLAIM:
                store.produce(key, found.body)
        assert len(parts(store)) == 4
    planned = plan_hour(store, make_stream(), HOUR, "again", drop_vanished=True)
    assert content_id_of(planned.plan_id) == content_id_of(before.plan_id)
    assert not planned.unchanged
    assert_not_complete(store)
    finish_hour(store, make_stream(), planned)
    assert_complete(store, make_stream())


# -- hours of format 1, whose parts are named by their index only --------------------------------------

IN_FORMAT_1 = [["a.log", "b.log"], ["c.log", "d.log"], ["e.log"]]


@pytest.fixture
def format_1_store(store: FakeStore) -> FakeStore:
    """Return a store with an hour that the older version completed."""
    complete_in_format_1(store, IN_FORMAT_1)
    return store


def test_hour_of_format_1_is_not_touched(format_1_store: FakeStore) -> None:
    before = format_1_store.snapshot()
    plan_id = marker_of(format_1_store)["plan_id"]
    format_1_store.log.clear()
    assert plan_hour(format_1_store, make_stream(), HOUR, "again") == Planned(plan_id, [], unchanged=True)
    assert validate_hour(format_1_store, make_stream(), HOUR).plan_id == plan_id
    assert complete_hour(format_1_store, make_stream(), HOUR).plan_id == plan_id
    found = verify_hour(format_1_store, make_stream(), HOUR, deep=True)
    assert (found.problems, found.parts, found.foreign) == ([], 3, 0)
    assert find_changed_hours(format_1_store, make_stream(), [HOUR]).changed == []
    assert format_1_store.writes() == []
    assert format_1_store.snapshot() == before


def test_late_object_keeps_parts_of_format_1(format_1_store: FakeStore) -> None:
    format_1_store.produce(RAW + "f.log", b"late")
    format_1_store.log.clear()
    run_hour(format_1_store, make_stream())
    assert written_parts(format_1_store) == ["part-00003.log"]
    names = list(parts(format_1_store))
    assert names[:3] == ["part-00000.log", "part-00001.log", "part-00002.log"]
    assert has_tag(names[3])
    assert_complete(format_1_store, make_stream())
    before = format_1_store.snapshot()
    assert plan_hour(format_1_store, make_stream(), HOUR, "again").unchanged
    assert find_changed_hours(format_1_store, make_stream(), [HOUR]).changed == []
    assert format_1_store.snapshot() == before


def test_changed_object_replaces_only_its_part_of_format_1(format_1_store: FakeStore) -> None:
    format_1_store.produce(RAW + "a.log", b"changed")
    run_hour(format_1_store, make_stream())
    names = list(parts(format_1_store))
    assert names[:2] == ["part-00001.log", "part-00002.log"]
    assert has_tag(names[2])
    assert_complete(format_1_store, make_stream())


def test_repack_replaces_parts_of_format_1(format_1_store: FakeStore) -> None:
    format_1_store.produce(RAW + "aa.log", b"late" * 9)
    run_hour(format_1_store, make_stream(), repack=True)
    assert all(has_tag(name) for name in parts(format_1_store))
    assert_complete(format_1_store, make_stream())


def test_damaged_part_of_format_1_is_packed_again(format_1_store: FakeStore) -> None:
    format_1_store.corrupt(AGGREGATED + "part-00001.log")
    with pytest.raises(ProofError, match=r"part-00001\.log: its ETag is"):
        validate_hour(format_1_store, make_stream(), HOUR)
    format_1_store.log.clear()
    run_hour(format_1_store, make_stream())
    assert written_parts(format_1_store) == ["part-00001.log"]
    assert_complete(format_1_store, make_stream())


def test_expired_objects_of_format_1_are_kept_and_found(format_1_store: FakeStore) -> None:
    for name in RAW_HOUR:
        format_1_store.vanish(RAW + name)
    format_1_store.produce(RAW + "z.log", b"late")
    before = format_1_store.snapshot()
    with pytest.raises(VanishedInputError, match="5 of 5 raw objects"):
        plan_hour(format_1_store, make_stream(), HOUR, "again")
    assert format_1_store.snapshot() == before
    found = locate(format_1_store, make_stream(), RAW + "d.log")
    assert b"".join(read_object(format_1_store, found)) == RAW_HOUR["d.log"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_manifest_of_format_1_is_refused(format_1_store: FakeStore, damage: str) -> None:
    body = format_1_store.body(MANIFEST)
    format_1_store.produce(MANIFEST, body[:-9] if damage == "cut" else body[:60] + b"\xff" + body[61:])
    format_1_store.produce(RAW + "z.log", b"late")
    refusal_message(format_1_store)


@pytest.mark.parametrize("expired", [False, True])
def test_unfinished_run_of_format_1_is_taken_over(store: FakeStore, *, expired: bool) -> None:
    plan_id = complete_in_format_1(store, IN_FORMAT_1)
    header, rows = manifest_of(store)
    at = f"{WORK}{plan_id}/"
    shard = [
        [
            entry["name"], "", entry["size"], False, entry["fingerprint"],
            [
                [row["key"].removeprefix(RAW), row["length"], row["etag"]]
                for row in rows if row["part"] == entry["name"]
            ],
        ]
        for entry in header["parts_table"]
    ]  # fmt: skip
    receipt = [
        [
            entry["name"], entry["fingerprint"], entry["size"], entry["etag"], entry["crc64nvme"], None,
            [[row["crc64nvme"], "crc64nvme", True, 0] for row in rows if row["part"] == entry["name"]],
        ]
        for entry in header["parts_table"]
    ]  # fmt: skip
    start = {"format": 1, "plan_id": plan_id, "shard": 0}
    for name, fields in (
        ("shard", {**start, "parts": shard}),
        ("receipt", {**start, "measured": header["measured"], "parts": receipt}),
    ):
        store.produce(f"{at}{name}-00000.json.gz", gzip.compress(json.dumps(fields).encode()))
    store.produce(f"{at}plan.json", json.dumps({"format": 1, "plan_id": plan_id}).encode())
    store.produce(CLAIM, json.dumps({"format": 1, "plan_id": plan_id, "run_id": "old"}).encode())
    store.vanish(MARKER)
    store.vanish(MANIFEST)
    if expired:
        store.vanish(RAW + "c.log")
        with pytest.raises(VanishedInputError, match="1 of 5 raw objects"):
            plan_hour(store, make_stream(), HOUR, "run")
    run_hour(store, make_stream(), drop_vanished=expired)
    assert_complete(store, make_stream())


# -- records that cannot be read -----------------------------------------------------------------------


def refusal_message(store: FakeStore, *, drop_vanished: bool = False) -> str:
    """Check that planning refuses because of a record and changes nothing; returns the message."""
    before = store.snapshot()
    store.log.clear()
    with pytest.raises(UnreadableRecordError) as caught:
        plan_hour(store, make_stream(allow_empty=True), HOUR, "again", drop_vanished)
    assert store.writes() == []
    assert store.snapshot() == before
    return str(caught.value)


ROWS_DAMAGED = ("without rows", "without the last row", "with another row")
# Limit on a line of a manifest, lowered so that a small bomb exceeds it.
BOMB_LINE_BYTES = 2**20


def damaged_manifests(body: bytes) -> dict[str, bytes | None]:
    packed = len(body)
    header, *rows = gzip.decompress(body).splitlines(keepends=True)
    return {
        "deleted": None,
        "empty": b"",
        "no gzip": b"damaged",
        "an empty object": gzip.compress(b"{}"),
        "cut in the header": body[:20],
        "cut in the rows": body[: packed - 30],
        "cut by a byte": body[:-1],
        "without rows": gzip.compress(header),
        "without the last row": gzip.compress(b"".join([header, *rows[:-1]])),
        "with another row": gzip.compress(b"".join([header, *rows, rows[0]])),
        "of another format": gzip.compress(b"".join([header.replace(b'"format":1', b'"format":3'), *rows])),
        "a list": gzip.compress(b"[]\n"),
        "a bomb": gzip.compress(b" " * (BOMB_LINE_BYTES + 1)),
    }


@pytest.mark.parametrize("damage", damaged_manifests(gzip.compress(b"header\nrow\n")))
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("expired", [[], ["a.log", "c.log"], list(RAW_HOUR)], ids=["", "half", "all"])
def test_hour_with_an_unreadable_manifest_is_not_planned(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, damage: str, marked: bool, expired: list[str]
) -> None:
    for module in (gzip_json, manifest):
        monkeypatch.setattr(module, "LONGEST_LINE_BYTES", BOMB_LINE_BYTES)
    run_hour(store, make_stream())
    for name in expired:
        store.vanish(RAW + name)
    body = damaged_manifests(store.body(MANIFEST))[damage]
    store.vanish(MANIFEST)
    if body is not None:
        store.produce(MANIFEST, body)
    if not marked:
        store.vanish(MARKER)
    if marked and not expired and damage in ("cut in the rows", "cut by a byte", *ROWS_DAMAGED):
        # Its first line is correct and says that nothing changed; validation reads all of it.
        assert plan_hour(store, make_stream(), HOUR, "again").unchanged
        with pytest.raises(UnreadableRecordError):
            validate_hour(store, make_stream(), HOUR)
        return
    for drop_vanished in (False, True):
        message = refusal_message(store, drop_vanished=drop_vanished)
        assert "_manifest.jsonl.gz" in message
        assert "clear the run from plan_hour on" in message


def test_manifest_with_a_flipped_bit_is_refused_or_correct(store: FakeStore) -> None:
    run_hour(store, make_stream())
    body = store.body(MANIFEST)
    late = b"late" * 5
    header = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    header.decompress(body)
    second = len(body) - len(header.unused_data)
    for place in range(0, len(body), 5):
        store.produce(MANIFEST, body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :])
        other = store.fork()
        other.produce(RAW + "z.log", late)
        try:
            run_hour(other, make_stream())
        except UnreadableRecordError:
            assert other.snapshot(AGGREGATED) == store.snapshot(AGGREGATED)
        else:
            # Some bytes in the headers of its two gzip members have no meaning.
            assert place < 10 or second <= place < second + 10
            assert_complete(other, make_stream())


def test_hour_is_planned_after_restoring_the_manifest(store: FakeStore) -> None:
    run_hour(store, make_stream())
    body = store.body(MANIFEST)
    store.produce(MANIFEST, body[:50])
    refusal_message(store)
    store.produce(MANIFEST, body)
    assert plan_hour(store, make_stream(), HOUR, "again").unchanged


def test_hour_is_packed_after_moving_parts_and_records_away(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.produce(MANIFEST, store.body(MANIFEST)[:50])
    refusal_message(store)
    for key in (MANIFEST, MARKER, *(AGGREGATED + name for name in parts(store))):
        store.vanish(key)
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


@pytest.mark.parametrize("body", [b"", b"done", b"[]", b'{"format": 999}', b"x" * (2**20 + 1)], ids=repr)
@pytest.mark.parametrize("with_parts", [True, False])
def test_foreign_marker_without_a_manifest_is_refused(
    store: FakeStore, body: bytes, with_parts: bool
) -> None:
    """Another program wrote an empty ``_SUCCESS`` and part-00000.log, and half of its raw objects expired."""
    if with_parts:
        store.produce(AGGREGATED + "part-00000.log", b"a" * 30 + b"of an expired object")
    store.produce(MARKER, body)
    assert "move" in refusal_message(store)


def test_our_marker_without_a_manifest_is_refused(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.vanish(MANIFEST)
    message = refusal_message(store)
    assert f"there are 3 parts under s3://logs/{AGGREGATED} and s3://logs/{MARKER}" in message
    assert "Restore the manifest from a backup" in message


def test_our_parts_without_any_record_are_refused(store: FakeStore) -> None:
    run_hour(store, make_stream())
    for key in (MANIFEST, MARKER, *(RAW + name for name in RAW_HOUR)):
        store.vanish(key)
    assert "there are 3 parts under" in refusal_message(store)


@pytest.mark.parametrize(
    ("lost", "expired"), [("shard-00000.json.gz", "a.log"), ("shard-00001.json.gz", "e.log")]
)
@pytest.mark.parametrize("damage", [None, b"", b"damaged", gzip.compress(b"[]")])
def test_parts_whose_plan_is_lost_are_not_replaced(
    store: FakeStore, lost: str, expired: str, damage: bytes | None
) -> None:
    """A receipt names the parts, but only the plan records which raw objects they hold."""
    planned = plan_hour(store, make_stream(), HOUR, "run")
    for ref in planned.shards:
        pack_shard(store, make_stream(), ref)
    key = f"{WORK}{planned.plan_id}/{lost}"
    store.vanish(key)
    if damage is not None:
        store.produce(key, damage)
    store.vanish(RAW + expired)
    refusal_message(store)


def test_hour_completed_during_planning_is_not_refused(store: FakeStore) -> None:
    """Its records move from the plan to the manifest between two reads."""
    for ref in plan_hour(store, make_stream(), HOUR, "older").shards:
        pack_shard(store, make_stream(), ref)
    validated = store.fork()
    validate_hour(validated, make_stream(), HOUR)

    def complete(store: FakeStore) -> None:
        validate_hour(store, make_stream(), HOUR)
        complete_hour(store, make_stream(), HOUR)

    for start in (store, validated):
        for number in count():
            other = start.fork()
            other.on("ANY", "", lambda: None, times=number)
            rule = other.on("ANY", "", partial(complete, other))
            with suppress(SupersededError):
                plan_hour(other, make_stream(), HOUR, "newer")
            if not rule.hits:
                assert number > 10
                break
            run_hour(other, make_stream(), "cleared")
            assert_complete(other, make_stream())


@pytest.mark.parametrize("name", ["receipt-00000.json.gz", "plan.json", "claim.json"])
@pytest.mark.parametrize("body", [b"", b"damaged", b"[]", b"{}", b'{"format": 99}'], ids=repr)
def test_damaged_receipt_plan_or_claim_counts_as_missing(store: FakeStore, name: str, body: bytes) -> None:
    planned = plan_hour(store, make_stream(), HOUR, "run")
    pack_shard(store, make_stream(), planned.shards[0])
    key = CLAIM if name == "claim.json" else f"{WORK}{planned.plan_id}/{name}"
    store.produce(key, gzip.compress(body) if name.startswith("receipt") else body)
    run_hour(store, make_stream(), "cleared")
    assert_complete(store, make_stream())


@pytest.mark.parametrize("body", [b"", b"done", b"[]", b'{"format": 999}'])
def test_invalid_marker_causes_a_new_plan(store: FakeStore, body: bytes) -> None:
    run_hour(store, make_stream())
    store.produce(MARKER, body)
    assert not plan_hour(store, make_stream(), HOUR, "again").unchanged
    assert_not_complete(store)


def storage_classes(store: FakeStore) -> list[str | None]:
    return [store.stored(AGGREGATED + name).headers.get("x-amz-storage-class") for name in parts(store)]


def test_other_storage_class_applies_to_new_parts_only(store: FakeStore) -> None:
    run_hour(store, make_stream())
    cold = make_stream(storage_class="STANDARD_IA")
    assert plan_hour(store, cold, HOUR, "again").unchanged
    store.produce(RAW + "f.log", b"late")
    run_hour(store, cold)
    assert storage_classes(store) == [None, None, None, "STANDARD_IA"]
    run_hour(store, cold, repack=True)
    assert_complete(store, cold)
    assert storage_classes(store) == ["STANDARD_IA"] * 3


# -- invalid input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [{}, {"_hidden": b"x", "host/": b"", ".x": b"y", "DONE": b"z"}])
def test_hour_with_nothing_to_pack_fails_with_counts(raw: dict[str, bytes]) -> None:
    store = FakeStore()
    produce(store, raw)
    with pytest.raises(EmptyHourError) as caught:
        plan_hour(store, make_stream(ready_object="DONE"), HOUR, "run")
    hidden, placeholders = (2, 1) if raw else (0, 0)
    counted = f"({len(raw)} objects listed; left out: {hidden} hidden, {placeholders} folder placeholders"
    for part in ("2026-11-23T08:00:00Z", f"s3://logs/{RAW}", counted, "'allow_empty: true'", "'app'"):
        assert part in str(caught.value)
    assert store.writes() == []


def test_empty_hour_completes_without_parts_if_allowed() -> None:
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
def test_complete_hour_with_vanished_objects_is_refused(
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
def test_drop_vanished_plans_without_vanished_objects(store: FakeStore, names: list[str]) -> None:
    stream = make_stream(allow_empty=True)
    run_hour(store, stream)
    for name in names:
        store.vanish(RAW + name)
    run_hour(store, stream, drop_vanished=True)
    assert_complete(store, stream)


def test_vanished_objects_are_known_after_a_crashed_rerun(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.produce(RAW + "z.log", b"late")
    plan_hour(store, make_stream(), HOUR, "a run that dies")
    assert_not_complete(store)
    store.vanish(RAW + "a.log")
    with pytest.raises(VanishedInputError, match=r"mark the run as success\."):
        plan_hour(store, make_stream(), HOUR, "again")


def test_object_hidden_by_new_settings_has_not_vanished(store: FakeStore) -> None:
    run_hour(store, make_stream())
    other = make_stream(ready_object="e.log")
    run_hour(store, other)
    assert_complete(store, other)


@pytest.mark.parametrize("names", VANISHED.values(), ids=VANISHED)
@pytest.mark.parametrize("allow_empty", [False, True])
def test_content_of_unfinished_parts_is_not_dropped(
    store: FakeStore, names: list[str], allow_empty: bool
) -> None:
    """The parts may be the last copies of the objects, even before validation."""
    stream = make_stream(allow_empty=allow_empty)
    for ref in plan_hour(store, stream, HOUR, "run").shards:
        pack_shard(store, stream, ref)
    for name in names:
        store.vanish(RAW + name)
    before = store.snapshot()
    with pytest.raises(VanishedInputError, match=f"{len(names)} of 5 raw objects") as caught:
        plan_hour(store, stream, HOUR, "again")
    assert "mark the run as success. If" in str(caught.value)
    assert store.snapshot() == before


@pytest.mark.parametrize("names", [["a.log"], [*RAW_HOUR]], ids=["first", "all"])
@pytest.mark.parametrize("drop_vanished", [False, True])
def test_parts_of_another_raw_template_are_not_replaced(
    store: FakeStore, names: list[str], drop_vanished: bool
) -> None:
    """The new place has objects of the same names, but the parts hold the last copies of the old ones."""
    for ref in plan_hour(store, make_stream(), HOUR, "run").shards:
        pack_shard(store, make_stream(), ref)
    for name in RAW_HOUR:
        store.produce(f"raw2/app/20261123/08/{name}", b"new")
    for name in names:
        store.vanish(RAW + name)
    before = store.snapshot()
    other = make_stream(raw=RawTemplate.parse("s3://logs/raw2/app/"))
    with pytest.raises(ConfigurationError, match=r"hold 5 raw objects \(raw/app/20261123/08/a\.log, .*'raw'"):
        plan_hour(store, other, HOUR, "again", drop_vanished)
    assert store.snapshot() == before


def test_unfinished_hour_is_planned_with_a_wider_template(store: FakeStore) -> None:
    store.produce(RAW + "web/f.log", b"f")
    narrow = make_stream(raw=RawTemplate.parse("s3://logs/raw/app/%Y%m%d/%H/{host}/"))
    for ref in plan_hour(store, narrow, HOUR, "run").shards:
        pack_shard(store, narrow, ref)
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def test_drop_vanished_applies_to_unfinished_hours(store: FakeStore) -> None:
    for ref in plan_hour(store, make_stream(), HOUR, "run").shards:
        pack_shard(store, make_stream(), ref)
    store.vanish(RAW + "a.log")
    run_hour(store, make_stream(), drop_vanished=True)
    assert_complete(store, make_stream())


def test_objects_in_no_part_may_vanish(store: FakeStore) -> None:
    first, *_ = plan_hour(store, make_stream(), HOUR, "run").shards
    pack_shard(store, make_stream(), first)
    store.vanish(RAW + "e.log")
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def test_container_fails_the_plan_before_anything_is_written(store: FakeStore) -> None:
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


FOREIGN = (
    "README", "sub/part-00000.log", "_metadata", "part-x", "part-00000.log", "part-00002.log", "part-00009.log",
    "part-00001.log.snappy", "_rollup/notes.txt", "_rollup/plan/plan.json", "_rollup/removals/x.json",
)  # fmt: skip


def test_foreign_objects_are_left_alone_and_counted(
    store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    others = {AGGREGATED + name: b"foreign " + name.encode() for name in FOREIGN}
    for key, body in others.items():
        store.produce(key, body)
    # A placeholder of a folder does not count.
    store.produce(AGGREGATED, b"")
    for stream in (make_stream(), make_stream(), make_stream(part_size=100)):
        caplog.clear()
        totals = run_hour(store, stream)
        assert {key: store.body(key) for key in others} == others
        assert totals.foreign == marker_of(store)["foreign"] == len(FOREIGN)
        assert_right(store, stream)
        assert f"{len(FOREIGN)} objects under s3://logs/{AGGREGATED} are not of this project" in caplog.text
        assert not store.listing(WORK + totals.plan_id)
    store.produce(RAW + "z.log", b"late")
    run_hour(store, make_stream())
    assert {key: store.body(key) for key in others} == others
    assert_right(store, make_stream())


def test_part_avoids_the_name_of_a_foreign_object(store: FakeStore) -> None:
    plan = plan_hour(store.fork(), make_stream(), HOUR, "run")
    other = store.fork()
    run_hour(other, make_stream())
    name = part_name(other, 1)
    # Without a manifest, the foreign object would count as a part whose record is lost.
    run_hour(store, make_stream(part_size=30))
    assert name not in parts(store)
    store.produce(AGGREGATED + name, b"foreign")
    totals = run_hour(store, make_stream(), repack=True)
    assert store.body(AGGREGATED + name) == b"foreign"
    assert totals.foreign == 1
    assert totals.plan_id != plan.plan_id
    assert_right(store, make_stream())
    assert plan_hour(store, make_stream(), HOUR, "again").unchanged


def test_missing_bucket_is_an_error() -> None:
    with pytest.raises(MissingBucketError, match="logs"):
        plan_hour(FakeStore(buckets=["another"]), make_stream(), HOUR, "run")


@pytest.mark.parametrize("error", [AccessError("denied"), TransientError("the connection broke")])
def test_store_error_is_raised_and_a_retry_continues(store: FakeStore, error: Exception) -> None:
    store.on("WRITE", "plan.json", error)
    with pytest.raises(type(error)):
        plan_hour(store, make_stream(), HOUR, "run")
    assert_not_complete(store)
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def preview(store: FakeStore) -> Preview:
    """Preview the hour, and check that nothing changes and that planning gives the same result."""
    before = store.snapshot()
    found = preview_hour(store, make_stream(), HOUR)
    assert store.snapshot() == before
    planned = plan_hour(store.fork(), make_stream(), HOUR, "run")
    assert found.unchanged == planned.unchanged
    assert content_id_of(found.plan_id) == content_id_of(planned.plan_id)
    assert found.shards == len(planned.shards)
    is_fresh = found.parts == sum(ref.parts for ref in planned.shards)
    assert is_fresh or store.has(MANIFEST)
    if is_fresh:
        assert (found.objects, found.bytes_in) == (
            sum(ref.objects for ref in planned.shards),
            sum(ref.bytes for ref in planned.shards),
        )
    return found


def test_preview_counts_what_would_be_packed(store: FakeStore) -> None:
    produce(store, {"_hidden.log": b"h", "large.log": b"l" * 100})
    found = preview(store)
    assert (found.objects, found.parts, found.parts_copied, found.parts_standing) == (6, 4, 1, 0)
    assert found.left_out.hidden == 1


def test_preview_of_a_complete_hour_has_nothing_to_do(store: FakeStore) -> None:
    run_hour(store, make_stream())
    found = preview(store)
    assert (found.unchanged, found.shards, found.parts, found.parts_standing) == (True, 0, 3, 3)


def test_preview_counts_existing_parts(store: FakeStore) -> None:
    shards = plan_hour(store, make_stream(), HOUR, "run").shards
    pack_shard(store, make_stream(), shards[0])
    assert preview(store).parts_standing == shards[0].parts
    run_hour(store, make_stream())
    produce(store, {"late.log": b"late"})
    found = preview(store)
    assert (found.unchanged, found.shards, found.parts, found.parts_standing) == (False, 1, 4, 3)


def test_preview_fails_like_planning(store: FakeStore) -> None:
    run_hour(store, make_stream())
    store.vanish(RAW + "a.log")
    with pytest.raises(VanishedInputError):
        preview_hour(store, make_stream(), HOUR)
