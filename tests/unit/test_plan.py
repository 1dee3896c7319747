"""A plan has each raw object once and in order, and is the same for the same listing."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from include.log_rollup.errors import ListingError, UnsupportedInputError
from include.log_rollup.hour import plan as plan_module
from include.log_rollup.hour.layout import part_index, planned_name
from include.log_rollup.hour.plan import (
    COPIES_PER_SHARD,
    ObjectDigests,
    Plan,
    PlannedPart,
    ShardRef,
    WriteOptions,
    gets_newlines,
    make_plan,
    make_shards,
    shard_refs,
    split_part,
)
from include.log_rollup.hour.selection import ENCODINGS, OPAQUE, InputRules, LeftOut, encoding_of, select
from include.log_rollup.storage.listing import list_all, list_by_token
from include.log_rollup.storage.protocol import ListPage, Location, ObjectInfo
from tests.support import hour_in_memory
from tests.support.fake_store import FakeStore
from tests.support.newlines import NEWLINE_BYTES
from tests.support.raw_hours import RAW, name_of
from tests.unit.strategies import CONTAINERS, listings, raw_hours

part_sizes = st.integers(1, 100)
etag = "0" * 32


def info(name: str, size: int = 10, etag: str = etag) -> ObjectInfo:
    return ObjectInfo(RAW + name, size, etag)


def plan_of(
    listed: list[ObjectInfo],
    part_size: int = 64,
    separators: bool = False,
    storage_class: str | None = None,
    **names: Any,
) -> Plan:
    # Listings are in key order.
    chosen, left_out = select(sorted(listed), name_of, InputRules())
    return make_plan(chosen, left_out, part_size, WriteOptions(separators, storage_class), **names)


class UnorderedStore(FakeStore):
    """Lists keys in the order in which they were written."""

    def list_page(
        self,
        prefix: Location,
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
        own: Callable[[str], bool] | None = None,
    ) -> ListPage:
        keys = list(self.snapshot(prefix.key))
        first = int(token or 0)
        rows = [self._info(prefix.bucket, key) for key in keys[first : first + limit]]
        more = first + limit < len(keys)
        return ListPage(rows, 0.0, self.now, more, str(first + limit) if more else None)


def by_encoding(plan: Plan) -> dict[str, list[PlannedPart]]:
    groups: dict[str, list[PlannedPart]] = {}
    for part in plan.parts:
        groups.setdefault(part.encoding, []).append(part)
    return groups


# -- objects in parts ----------------------------------------------------------------------------------


@given(listings(), part_sizes, st.booleans())
def test_each_object_is_planned_once_in_key_order_per_encoding(
    listed: list[ObjectInfo], part_size: int, separators: bool
) -> None:
    plan = plan_of(listed, part_size, separators)
    packed = {
        encoding: [item.key for part in parts for item in part.objects]
        for encoding, parts in by_encoding(plan).items()
    }
    wanted: dict[str, list[str]] = {}
    for key in sorted((item.key for item in listed), key=lambda key: key.encode()):
        wanted.setdefault(hour_in_memory.encoding_of(key), []).append(key)
    assert packed == wanted
    assert (plan.objects, plan.bytes_in) == (len(listed), sum(item.size for item in listed))


@given(listings(), part_sizes)
def test_objects_are_contiguous_within_the_part_size(listed: list[ObjectInfo], part_size: int) -> None:
    for part in plan_of(listed, part_size).parts:
        sizes = [item.size for item in part.objects]
        assert part.size == sum(sizes)
        if part.copied:
            assert len(sizes) == 1
            assert part.size > part_size
        else:
            assert part.size <= part_size


@given(listings(), part_sizes)
def test_part_size_includes_added_newlines(listed: list[ObjectInfo], part_size: int) -> None:
    for part in plan_of(listed, part_size, separators=True).parts:
        newlines = sum(1 for item in part.objects if item.size) * NEWLINE_BYTES.get(part.encoding, 0)
        assert part.copied or part.size + newlines <= part_size


@given(listings(), part_sizes)
def test_part_ends_only_where_the_next_object_does_not_fit(listed: list[ObjectInfo], part_size: int) -> None:
    for parts in by_encoding(plan_of(listed, part_size)).values():
        for part, after in pairwise(parts):
            assert part.size + after.objects[0].size > part_size


@given(listings(), part_sizes)
def test_parts_are_numbered_and_end_with_their_encoding(listed: list[ObjectInfo], part_size: int) -> None:
    parts = plan_of(listed, part_size).parts
    assert [part.name for part in parts] == [
        f"part-{number:05d}-{part.fingerprint[:8]}.log{part.encoding}" for number, part in enumerate(parts)
    ]
    for part in parts:
        assert {hour_in_memory.encoding_of(item.key) for item in part.objects} == {part.encoding}


def test_key_order_is_by_utf8_bytes_not_utf16() -> None:
    # U+FF5E sorts before U+1F600 in UTF-8, and after its surrogates in UTF-16.
    store = FakeStore()
    for name in ("\U0001f600", "\uff5e", "z", "a/b", "a b", "A"):
        store.produce(RAW + name, b"0123456789")
    for listed in (list_all, list_by_token):
        chosen, left_out = select(listed(store, Location("logs", RAW)), name_of, InputRules())
        plan = make_plan(chosen, left_out, 64, WriteOptions())
        assert [item.key.removeprefix(RAW) for item in plan.parts[0].objects] == [
            "A", "a b", "a/b", "z", "\uff5e", "\U0001f600",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("a.log", ""),
        ("a", ""),
        ("a.log.gz", ".gz"),
        ("A.LOG.GZ", ".gz"),
        ("a.zst", ".zst"),
        ("a.bz2", ".bz2"),
        ("a.xz", ".xz"),
        ("a.lz4", ".lz4"),
        ("a.gz.log", ""),
        ("agz", ""),
        ("gz/a", ""),
        *((f"a{ending}", ending) for ending in (".snappy", ".zz", ".br", ".tgz", ".tar", ".zstd", ".bin")),
        ("a.Z", ".z"),
        ("a.log.gz-apwgylqg", ".gz"),
        ("a.gz-b/c", ""),
        ("a.log-1", ""),
        ("a.hsnappy", ".hsnappy"),
        ("a.log.SNAPPY", ".snappy"),
        ("a.snappy.log", ""),
        ("tar/a", ""),
    ],
)
def test_encoding_follows_from_the_ending_of_a_name(name: str, encoding: str) -> None:
    assert encoding_of(RAW + name) == encoding


@pytest.mark.parametrize("ending", [*CONTAINERS, ".PARQUET"])
def test_container_is_refused_with_its_key_and_the_fix(ending: str) -> None:
    with pytest.raises(UnsupportedInputError, match="cannot be joined") as caught:
        plan_of([info("a.log"), info(f"b{ending}")])
    assert f"{RAW}b{ending}" in str(caught.value)
    assert "'unjoinable: skip'" in str(caught.value)


def test_hidden_container_does_not_matter() -> None:
    assert plan_of([info("a.log"), info("_b.parquet")]).objects == 1


# -- what is left out ----------------------------------------------------------------------------------


def test_hidden_placeholder_and_ready_objects_are_left_out() -> None:
    listed = [
        info("", 0),
        info("host/", 0),
        info("_temporary"),
        info(".hidden"),
        info("host/_inner/a.log"),
        info("host/.b.log"),
        info("done"),
        info("a.log"),
        info("b_c.d/e.log", 0),
        info("folder-with-bytes/"),
    ]
    chosen, left_out = select(listed, name_of, InputRules("done"))
    assert [item.key.removeprefix(RAW) for item in chosen] == ["a.log", "b_c.d/e.log", "folder-with-bytes/"]
    assert left_out == LeftOut(hidden=4, placeholders=2, markers=1)


def test_hidden_ready_object_counts_as_ready_object() -> None:
    chosen, left_out = select([info("_DONE"), info("_DONE2")], name_of, InputRules("_DONE"))
    assert not chosen
    assert left_out == LeftOut(hidden=1, markers=1)


@given(raw_hours)
def test_every_object_is_chosen_or_counted_as_left_out(hour: dict[str, bytes]) -> None:
    listed = [info(name, len(body)) for name, body in hour.items()]
    chosen, left_out = select(listed, name_of, InputRules())
    assert len(chosen) + left_out.hidden + left_out.placeholders + left_out.markers == len(hour)
    assert {item.key for item in chosen} <= {RAW + name for name in hour}


# -- the same listing, the same plan -------------------------------------------------------------------


@given(raw_hours, st.integers(1, 12), st.randoms(use_true_random=False))
def test_listing_in_any_order_gives_the_same_plan(
    hour: dict[str, bytes], page_size: int, shuffler: random.Random
) -> None:
    names = list(hour)
    plans = []
    for store in (FakeStore(), UnorderedStore()):
        shuffler.shuffle(names)
        for name in names:
            store.produce(RAW + name, hour[name])
        chosen, left_out = select(
            list_by_token(store, Location("logs", RAW), page_size), name_of, InputRules()
        )
        plans.append(make_plan(chosen, left_out, 20, WriteOptions()))
    assert plans[0] == plans[1]


@given(listings(max_objects=8), part_sizes, st.data())
def test_other_key_size_or_etag_gives_another_content_id(
    listed: list[ObjectInfo], part_size: int, data: st.DataObject
) -> None:
    assume(listed)
    index = data.draw(st.integers(0, len(listed) - 1))
    item = listed[index]
    other = data.draw(
        st.sampled_from(
            [
                item._replace(key=item.key + "x"),
                item._replace(size=item.size + 1),
                item._replace(etag=item.etag + "-1"),
            ]
        )
    )
    before = plan_of(listed, part_size).content_id
    assert plan_of([*listed[:index], other, *listed[index + 1 :]], part_size).content_id != before
    assert plan_of([*listed[:index], *listed[index + 1 :]], part_size).content_id != before


@given(listings(), part_sizes, part_sizes)
def test_part_size_changes_content_id_only_with_the_parts(
    listed: list[ObjectInfo], one_size: int, other_size: int
) -> None:
    one, other = plan_of(listed, one_size), plan_of(listed, other_size)
    shapes = [
        [(part.copied, [item.key for item in part.objects]) for part in plan.parts] for plan in (one, other)
    ]
    assert (one.content_id == other.content_id) == (shapes[0] == shapes[1])


def test_part_size_that_moves_borders_changes_the_content_id() -> None:
    listed = [info("a"), info("b"), info("c")]
    assert len({plan_of(listed, size).content_id for size in (9, 10, 20, 30)}) == 4


@pytest.mark.parametrize("ending", ["", *ENCODINGS])
def test_newlines_change_the_content_id_of_text(ending: str) -> None:
    listed = [info(f"a{ending}")]
    assert plan_of(listed, separators=True).content_id != plan_of(listed).content_id


@pytest.mark.parametrize("ending", sorted(OPAQUE))
def test_newlines_keep_the_content_id_of_other_formats(ending: str) -> None:
    listed = [info(f"a{ending}")]
    assert plan_of(listed, separators=True).content_id == plan_of(listed).content_id


@pytest.mark.parametrize("ending", ENCODINGS)
def test_newlines_keep_the_name_of_a_copied_object(ending: str) -> None:
    names = [
        [part.name for part in plan_of([info(f"a{ending}", 65)], separators=separators).parts]
        for separators in (False, True)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("ending", "planned", "packed", "expected"),
    [
        ("", True, True, True),
        ("", True, False, False),
        (".gz", True, True, True),
        # An earlier version, or other settings, planned it without newlines.
        (".gz", False, True, False),
        (".gz", True, False, False),
        (".snappy", True, True, False),
    ],
)
def test_parts_get_the_newlines_that_were_planned(
    ending: str, planned: bool, packed: bool, expected: bool
) -> None:
    (part,) = plan_of([info(f"a{ending}"), info(f"b{ending}")], 200, separators=planned).parts
    assert gets_newlines(part, WriteOptions(packed)) == expected


def test_other_storage_class_gives_another_content_id() -> None:
    listed = [info("a")]
    assert plan_of(listed, storage_class="STANDARD_IA").content_id != plan_of(listed).content_id


@pytest.mark.parametrize(
    "options",
    [
        WriteOptions(tags=(("team", "search"),)),
        WriteOptions(tags=(("team", "search"), ("to", "x"))),
        WriteOptions(kms_key_id="alias/logs"),
        WriteOptions(tags=(("team", "search"),), kms_key_id="alias/logs"),
        WriteOptions(tags=(("team", "search kms_key_id=alias/logs"),)),
    ],
)
def test_tags_and_kms_key_change_the_fingerprint(options: WriteOptions) -> None:
    others = {
        WriteOptions().describe("", False),
        WriteOptions(tags=(("team", "other"),)).describe("", False),
        WriteOptions(kms_key_id="alias/other").describe("", False),
    }
    assert options.describe("", False) not in others


def test_fingerprint_without_tags_and_kms_key_stays_the_same() -> None:
    """Hours that were packed before these keys existed need no rerun."""
    assert WriteOptions().describe(".gz", True) == "1 .gz True 0 None\n"
    assert WriteOptions(True, "STANDARD_IA").describe("", False) == "1  False 1 STANDARD_IA\n"


def test_ambiguous_concatenations_give_different_content_ids() -> None:
    one = [info("a", 1, "x"), info("b", 1, "x")]
    other = [info(f"a 1 x\n{len(RAW) + 1} {RAW}b", 1, "x")]
    assert plan_of(one).content_id != plan_of(other).content_id


def test_late_object_keeps_fingerprints_of_earlier_parts() -> None:
    listed = [info(f"{number:02d}") for number in range(20)]
    before, after = plan_of(listed).parts, plan_of([*listed, info("19a")]).parts
    assert [part.fingerprint for part in before[:-1]] == [part.fingerprint for part in after[:-1]]
    assert before[-1].fingerprint != after[-1].fingerprint


def test_listing_without_input_gives_a_plan_without_parts() -> None:
    plan = plan_of([info("_hidden")])
    assert (plan.parts, plan.objects, plan.bytes_in) == ((), 0, 0)
    assert make_shards(plan, 100, 10) == []


# -- names and ids -------------------------------------------------------------------------------------


@given(listings(), part_sizes, st.booleans())
def test_equal_names_mean_equal_bytes(listed: list[ObjectInfo], part_size: int, separators: bool) -> None:
    """A name contains digits of the fingerprint, which covers objects and write options."""
    plans = [
        plan_of(rows, size, newline, storage_class)
        for rows in (listed, listed[1:], [item._replace(etag="f" * 32) for item in listed])
        for size in (part_size, part_size + 1)
        for newline in (separators, not separators)
        for storage_class in (None, "STANDARD_IA")
    ]
    seen: dict[str, tuple[object, ...]] = {}
    for plan in plans:
        for part in plan.parts:
            content = (part.fingerprint, part.encoding, part.copied, part.objects)
            assert seen.setdefault(part.name, content) == content


@given(listings(), part_sizes)
def test_same_content_has_the_id_of_format_1(listed: list[ObjectInfo], part_size: int) -> None:
    """Otherwise, hours that the older version completed would count as changed."""
    plan = plan_of(listed, part_size)
    digest = hashlib.blake2b(b"1\n", digest_size=10)
    for number, part in enumerate(plan.parts):
        text = f"1 {part.encoding} {part.copied} 0 None\n" + "".join(
            f"{len(item.key)} {item.key} {item.size} {item.etag}\n" for item in part.objects
        )
        fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        assert part.fingerprint == fingerprint
        digest.update(f"part-{number:05d}.log{part.encoding} {fingerprint}\n".encode())
    assert plan.content_id == digest.hexdigest()


@given(listings(), part_sizes, st.sets(st.integers(0, 20)))
def test_part_gets_no_taken_name(listed: list[ObjectInfo], part_size: int, numbers: set[int]) -> None:
    plan = plan_of(listed, part_size)
    taken = {part.name for number, part in enumerate(plan.parts) if number in numbers}
    other = plan_of(listed, part_size, taken=taken)
    assert not taken & {part.name for part in other.parts}
    assert (other.content_id == plan.content_id) == (not taken)
    assert other == plan_of(listed, part_size, taken=taken)
    for one, two in zip(plan.parts, other.parts, strict=True):
        assert replace(two, name=one.name) == one
        assert (two.name == one.name) == (one.name not in taken)
        assert two.name[:10] == one.name[:10]
    # The next choices are taken, too.
    both = plan_of(listed, part_size, taken={part.name for part in (*plan.parts, *other.parts)})
    assert not {part.name for part in both.parts} & {part.name for part in (*plan.parts, *other.parts)}


@given(listings(), part_sizes, st.data())
def test_existing_parts_keep_their_format_1_names(
    listed: list[ObjectInfo], part_size: int, data: st.DataObject
) -> None:
    plan = plan_of(listed, part_size)
    kept = {
        ("", number, part.fingerprint): f"part-{number:05d}.log{part.encoding}"
        for number, part in enumerate(plan.parts)
        if data.draw(st.booleans())
    }
    other = plan_of(listed, part_size, kept_names=kept)
    names = [kept.get(("", number, part.fingerprint), part.name) for number, part in enumerate(plan.parts)]
    assert [part.name for part in other.parts] == names
    assert (other.content_id == plan.content_id) == (not kept)


def test_kept_name_is_not_for_other_content_or_another_index() -> None:
    listed = [info("a"), info("b")]
    plan = plan_of(listed, part_size=10)
    for kept in (
        {("", 0, plan.parts[1].fingerprint): "part-00000.log"},
        {("", 1, plan.parts[0].fingerprint): "part-00001.log"},
    ):
        assert plan_of(listed, 10, kept_names=kept) == plan


def test_name_under_removal_is_not_kept() -> None:
    plan = plan_of([info("a")])
    kept = {("", 0, plan.parts[0].fingerprint): "part-00000.log"}
    assert plan_of([info("a")], kept_names=kept, taken={"part-00000.log"}) == plan


@pytest.mark.parametrize("etags", [(etag, etag), (etag, "1" * 32)])
def test_duplicate_key_cannot_be_planned(etags: tuple[str, str]) -> None:
    one, other = (info("b", etag=each) for each in etags)
    with pytest.raises(ListingError, match=r"'raw/app/20261123/08/b' was listed twice"):
        make_plan([info("a"), one, other], LeftOut(), 64, WriteOptions())


def test_keys_out_of_order_cannot_be_planned() -> None:
    with pytest.raises(ListingError):
        make_plan([info("b"), info("a")], LeftOut(), 64, WriteOptions())


# -- objects that are not text -------------------------------------------------------------------------


@given(st.lists(st.sampled_from(sorted(OPAQUE)), min_size=1, max_size=8), st.booleans())
def test_unknown_formats_share_no_part_with_text(endings: list[str], upper: bool) -> None:
    listed = [info("a.log"), info("z.log")] + [
        info(f"{number}{ending.upper() if upper else ending}") for number, ending in enumerate(endings)
    ]
    plan = plan_of(listed, 10**6, separators=True)
    assert {part.encoding for part in plan.parts} == {"", *endings}
    for part in plan.parts:
        assert {pipeline_ending(item.key) for item in part.objects} == {part.encoding}
        assert WriteOptions(True).room_for_newline(part.encoding) == (1 if part.encoding == "" else 0)
        assert WriteOptions(False).room_for_newline(part.encoding) == 0


@pytest.mark.parametrize("encoding", ["", *ENCODINGS])
def test_there_is_room_for_the_newline_of_each_encoding(encoding: str) -> None:
    assert WriteOptions(True).room_for_newline(encoding) == NEWLINE_BYTES[encoding]
    assert WriteOptions(False).room_for_newline(encoding) == 0


def pipeline_ending(key: str) -> str:
    ending = key[key.rindex(".") :].lower()
    return "" if ending == ".log" else ending


# -- parts that were split -----------------------------------------------------------------------------


@given(listings(max_size=10, max_objects=12), st.data())
def test_split_parts_hold_the_objects_between_them(listed: list[ObjectInfo], data: st.DataObject) -> None:
    assume(listed)
    plan = plan_of(listed, 10**6)
    part = plan.parts[0]
    damaged = data.draw(st.sets(st.sampled_from(range(len(part.objects))), min_size=1))
    groups = [[item] for number, item in enumerate(part.objects) if number in damaged]
    rest = [item for number, item in enumerate(part.objects) if number not in damaged]
    split = split_part(part, WriteOptions(), groups + ([rest] if rest else []))
    assert sorted(item for one in split for item in one.objects) == sorted(part.objects)
    assert sum(one.size for one in split) == part.size
    names = [one.name for one in split]
    assert len({*names, *(other.name for other in plan.parts)}) == len(names) + len(plan.parts)
    assert {one.split_of for one in split} == {planned_name(name) for name in names} == {part.name}
    assert {part_index(name) for name in names} == {part_index(part.name)}


# -- digests -------------------------------------------------------------------------------------------


@given(listings(), part_sizes, st.booleans(), st.data())
def test_plan_digests_match_its_rows(
    listed: list[ObjectInfo], part_size: int, separators: bool, data: st.DataObject
) -> None:
    plan = plan_of(listed, part_size, separators)
    rows = sorted(listed, key=lambda row: row.key)
    digests, begin = ObjectDigests(), 0
    while begin < len(rows):
        end = data.draw(st.integers(begin + 1, len(rows)))
        digests.add(rows[begin:end])
        begin = end
    assert digests.result() == plan.digests


@given(listings(max_objects=8), st.data())
def test_digests_differ_if_any_row_differs(listed: list[ObjectInfo], data: st.DataObject) -> None:
    assume(listed)
    rows = sorted(listed, key=lambda row: row.key)
    number = data.draw(st.integers(0, len(rows) - 1))
    change = data.draw(
        st.sampled_from(
            [None, {"size": rows[number].size + 1}, {"etag": "0" * 31}, {"key": rows[number].key + "x"}]
        )
    )
    others = [*rows[:number], *([rows[number]._replace(**change)] if change else []), *rows[number + 1 :]]
    one, other = ObjectDigests(), ObjectDigests()
    one.add(rows)
    other.add(others)
    assert one.result() != other.result()


# -- shards --------------------------------------------------------------------------------------------


@given(listings(), part_sizes, st.integers(1, 300), st.integers(1, 12))
def test_shards_cover_all_parts_within_max_shards(
    listed: list[ObjectInfo], part_size: int, shard_size: int, max_shards: int
) -> None:
    plan = plan_of(listed, part_size)
    shards = make_shards(plan, shard_size, max_shards)
    assert [part for shard in shards for part in shard] == list(plan.parts)
    assert all(shards)
    assert len(shards) <= max_shards


@given(listings(), part_sizes, st.integers(1, 300), st.integers(1, 12))
def test_no_shard_is_heavier_than_its_share_and_one_part(
    listed: list[ObjectInfo], part_size: int, shard_size: int, max_shards: int
) -> None:
    plan = plan_of(listed, part_size)
    assume(plan.parts)
    shards = make_shards(plan, shard_size, max_shards)
    weights = [[_weight(part, shard_size) for part in shard] for shard in shards]
    total = sum(map(sum, weights))
    wanted = min(max_shards, len(plan.parts), -(-total // shard_size))
    largest = max(map(max, weights))
    assert max(map(sum, weights)) <= total / wanted + largest


def _weight(part: PlannedPart, shard_size: int) -> int:
    """Return the weight of a part: a copy moves no bytes through the task, but costs a request."""
    return max(1, shard_size // COPIES_PER_SHARD) if part.copied else max(part.size, 1)


@settings(max_examples=20)
@given(st.integers(1, 2000), st.integers(1, 12))
def test_copies_are_spread_over_shards_by_their_number(copies: int, max_shards: int) -> None:
    """10,000 copies in one task would take long, whatever their sizes."""
    rows = [info(f"{number:05d}", 10**6 * (1 + number % 1000)) for number in range(copies)]
    plan = plan_of(rows, part_size=10)
    assert all(part.copied for part in plan.parts)
    counts = [len(shard) for shard in make_shards(plan, 64 * 1024, max_shards)]
    assert max(counts) - min(counts) <= 1
    assert len(counts) == min(max_shards, -(-copies // COPIES_PER_SHARD))


def test_tiny_objects_are_spread_over_shards_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "OBJECTS_PER_SHARD", 1000)
    plan = plan_of([info(f"{number:06d}", 1) for number in range(4000)], part_size=40)
    counts = [sum(len(part.objects) for part in shard) for shard in make_shards(plan, 2**30, 64)]
    assert len(counts) == 4
    assert max(counts) <= 1100


@given(st.integers(1, 60), st.integers(1, 12))
def test_parts_of_one_size_are_spread_evenly(parts: int, max_shards: int) -> None:
    plan = plan_of([info(f"{number:03d}", 10) for number in range(parts)], part_size=10)
    counts = [len(shard) for shard in make_shards(plan, 10, max_shards)]
    assert len(counts) == min(parts, max_shards)
    assert max(counts) - min(counts) <= 1


def test_shard_holds_about_shard_size() -> None:
    plan = plan_of([info(f"{number:03d}", 10) for number in range(30)], part_size=10)
    assert [len(shard) for shard in make_shards(plan, 50, 64)] == [5] * 6


@given(listings(), part_sizes, st.integers(1, 12))
def test_references_to_shards_name_their_parts_objects_and_bytes(
    listed: list[ObjectInfo], part_size: int, max_shards: int
) -> None:
    plan = plan_of(listed, part_size)
    shards = make_shards(plan, 1, max_shards)
    refs = shard_refs("app", "2026-11-23T08:00:00Z", plan.content_id, shards)
    assert [ref.shard for ref in refs] == list(range(len(shards)))
    for ref, shard in zip(refs, shards, strict=True):
        assert list(plan.parts[ref.first_part : ref.first_part + ref.parts]) == list(shard)
    assert sum(ref.objects for ref in refs) == plan.objects
    assert sum(ref.bytes for ref in refs) == plan.bytes_in


def test_title_of_a_shard_names_its_parts_objects_and_size() -> None:
    ref = ShardRef("app", "2026-11-23T08:00:00Z", "id", 1, 32, 32, 2048, 1024**3)
    assert ref.title == "parts 32-63: 2,048 objects, 1.0 GiB"
    assert replace(ref, parts=1, objects=1, bytes=7).title == "part 32: 1 objects, 7 B"
