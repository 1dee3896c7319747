"""A plan packs each raw object once, whole and in order, and is the same for the same listing."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from include.log_rollup.errors import UnsupportedInputError
from include.log_rollup.plan import (
    LeftOut,
    Plan,
    PlannedPart,
    ShardRef,
    encoding_of,
    make_plan,
    make_shards,
    select,
    shard_refs,
)
from include.log_rollup.store import ObjectInfo
from tests.unit import pipeline
from tests.unit.pipeline import RAW
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
) -> Plan:
    chosen, left_out = select(listed, RAW, None)
    return make_plan(chosen, left_out, part_size, separators, storage_class)


def by_encoding(plan: Plan) -> dict[str, list[PlannedPart]]:
    groups: dict[str, list[PlannedPart]] = {}
    for part in plan.parts:
        groups.setdefault(part.encoding, []).append(part)
    return groups


# -- what is packed, and in what order -----------------------------------------------------------------


@given(listings(), part_sizes, st.booleans())
def test_each_object_is_planned_exactly_once_and_in_key_order_within_its_encoding(
    listed: list[ObjectInfo], part_size: int, separators: bool
) -> None:
    plan = plan_of(listed, part_size, separators)
    packed = {
        encoding: [item.key for part in parts for item in part.objects]
        for encoding, parts in by_encoding(plan).items()
    }
    wanted: dict[str, list[str]] = {}
    for key in sorted((item.key for item in listed), key=lambda key: key.encode()):
        wanted.setdefault(pipeline.encoding_of(key), []).append(key)
    assert packed == wanted
    assert (plan.objects, plan.bytes_in) == (len(listed), sum(item.size for item in listed))


@given(listings(), part_sizes)
def test_objects_lie_end_to_end_in_parts_that_keep_to_the_part_size(
    listed: list[ObjectInfo], part_size: int
) -> None:
    for part in plan_of(listed, part_size).parts:
        sizes = [item.size for item in part.objects]
        assert part.size == sum(sizes)
        if part.copied:
            assert len(sizes) == 1
            assert part.size > part_size
        else:
            assert part.size <= part_size


@given(listings(), part_sizes)
def test_a_part_with_a_newline_behind_each_plain_object_still_keeps_to_the_part_size(
    listed: list[ObjectInfo], part_size: int
) -> None:
    for part in plan_of(listed, part_size, separators=True).parts:
        newlines = sum(1 for item in part.objects if item.size) if part.encoding == "" else 0
        assert part.copied or part.size + newlines <= part_size


@given(listings(), part_sizes)
def test_a_part_ends_only_where_the_next_object_does_not_fit(
    listed: list[ObjectInfo], part_size: int
) -> None:
    for parts in by_encoding(plan_of(listed, part_size)).values():
        for part, after in pairwise(parts):
            assert part.size + after.objects[0].size > part_size


@given(listings(), part_sizes)
def test_parts_are_numbered_without_gaps_and_carry_the_ending_of_their_encoding(
    listed: list[ObjectInfo], part_size: int
) -> None:
    parts = plan_of(listed, part_size).parts
    assert [part.name for part in parts] == [
        f"part-{number:05d}.log{part.encoding}" for number, part in enumerate(parts)
    ]
    for part in parts:
        assert {pipeline.encoding_of(item.key) for item in part.objects} == {part.encoding}


def test_key_order_is_that_of_utf8_bytes_and_not_of_utf16() -> None:
    # U+FF5E comes before U+1F600 in UTF-8, behind its surrogates in UTF-16.
    plan = plan_of([info("\U0001f600"), info("\uff5e"), info("z"), info("a/b"), info("a b"), info("A")])
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
    ],
)
def test_the_ending_of_a_name_tells_its_encoding(name: str, encoding: str) -> None:
    assert encoding_of(RAW + name) == encoding


@pytest.mark.parametrize("ending", [*CONTAINERS, ".PARQUET"])
def test_a_container_is_refused_with_its_key_and_the_way_out(ending: str) -> None:
    with pytest.raises(UnsupportedInputError, match="cannot be joined") as caught:
        plan_of([info("a.log"), info(f"b{ending}")])
    assert f"{RAW}b{ending}" in str(caught.value)
    assert "begins with '_'" in str(caught.value)


def test_a_hidden_container_does_not_matter() -> None:
    assert plan_of([info("a.log"), info("_b.parquet")]).objects == 1


# -- what is left out ----------------------------------------------------------------------------------


def test_hidden_objects_placeholders_and_the_marker_are_left_out_and_counted() -> None:
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
    chosen, left_out = select(listed, RAW, "done")
    assert [item.key.removeprefix(RAW) for item in chosen] == ["a.log", "b_c.d/e.log", "folder-with-bytes/"]
    assert left_out == LeftOut(hidden=4, placeholders=2, markers=1)


def test_a_marker_that_is_hidden_as_well_counts_as_the_marker() -> None:
    chosen, left_out = select([info("_DONE"), info("_DONE2")], RAW, "_DONE")
    assert not chosen
    assert left_out == LeftOut(hidden=1, markers=1)


@given(raw_hours)
def test_every_listed_object_is_either_chosen_or_counted_as_left_out(hour: dict[str, bytes]) -> None:
    listed = [info(name, len(body)) for name, body in hour.items()]
    chosen, left_out = select(listed, RAW, None)
    assert len(chosen) + left_out.hidden + left_out.placeholders + left_out.markers == len(hour)
    assert {item.key for item in chosen} <= {RAW + name for name in hour}


# -- the same listing, the same plan -------------------------------------------------------------------


@given(listings(), part_sizes, st.booleans(), st.randoms(use_true_random=False))
def test_the_same_listing_in_any_order_gives_the_same_plan(
    listed: list[ObjectInfo], part_size: int, separators: bool, shuffler: random.Random
) -> None:
    shuffled = list(listed)
    shuffler.shuffle(shuffled)
    assert plan_of(shuffled, part_size, separators) == plan_of(listed, part_size, separators)


@given(listings(max_objects=8), part_sizes, st.data())
def test_another_key_size_or_etag_gives_another_plan_id(
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
    before = plan_of(listed, part_size).plan_id
    assert plan_of([*listed[:index], other, *listed[index + 1 :]], part_size).plan_id != before
    assert plan_of([*listed[:index], *listed[index + 1 :]], part_size).plan_id != before


@given(listings(), part_sizes, part_sizes)
def test_another_part_size_gives_another_plan_id_if_and_only_if_it_gives_other_parts(
    listed: list[ObjectInfo], one_size: int, other_size: int
) -> None:
    one, other = plan_of(listed, one_size), plan_of(listed, other_size)
    shapes = [
        [(part.copied, [item.key for item in part.objects]) for part in plan.parts] for plan in (one, other)
    ]
    assert (one.plan_id == other.plan_id) == (shapes[0] == shapes[1])


def test_a_part_size_that_divides_differently_gives_another_plan_id() -> None:
    listed = [info("a"), info("b"), info("c")]
    assert len({plan_of(listed, size).plan_id for size in (9, 10, 20, 30)}) == 4


def test_separators_give_another_plan_id_for_plain_objects_only() -> None:
    assert plan_of([info("a")], separators=True).plan_id != plan_of([info("a")]).plan_id
    assert plan_of([info("a.gz")], separators=True).plan_id == plan_of([info("a.gz")]).plan_id


def test_another_storage_class_gives_another_plan_id() -> None:
    listed = [info("a")]
    assert plan_of(listed, storage_class="STANDARD_IA").plan_id != plan_of(listed).plan_id


def test_names_that_read_alike_when_written_one_after_the_other_give_different_plan_ids() -> None:
    one = [info("a", 1, "x"), info("b", 1, "x")]
    other = [info(f"a 1 x\n{len(RAW) + 1} {RAW}b", 1, "x")]
    assert plan_of(one).plan_id != plan_of(other).plan_id


def test_a_late_object_leaves_the_fingerprints_of_the_parts_before_it_alone() -> None:
    listed = [info(f"{number:02d}") for number in range(20)]
    before, after = plan_of(listed).parts, plan_of([*listed, info("19a")]).parts
    assert [part.fingerprint for part in before[:-1]] == [part.fingerprint for part in after[:-1]]
    assert before[-1].fingerprint != after[-1].fingerprint


def test_a_listing_without_input_gives_a_plan_without_parts() -> None:
    plan = plan_of([info("_hidden")])
    assert (plan.parts, plan.objects, plan.bytes_in) == ((), 0, 0)
    assert make_shards(plan, 100, 10) == []


# -- shards --------------------------------------------------------------------------------------------


@given(listings(), part_sizes, st.integers(1, 300), st.integers(1, 12))
def test_shards_are_runs_of_parts_that_cover_all_of_them_and_are_no_more_than_allowed(
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
    # What S3 copies costs the worker next to nothing.
    weights = [[1 if part.copied else max(part.size, 1) for part in shard] for shard in shards]
    total = sum(map(sum, weights))
    wanted = min(max_shards, len(plan.parts), -(-total // shard_size))
    largest = max(map(max, weights))
    assert max(map(sum, weights)) <= total / wanted + largest


@given(st.integers(1, 60), st.integers(1, 12))
def test_parts_of_one_size_are_dealt_out_evenly(parts: int, max_shards: int) -> None:
    plan = plan_of([info(f"{number:03d}", 10) for number in range(parts)], part_size=10)
    counts = [len(shard) for shard in make_shards(plan, 10, max_shards)]
    assert len(counts) == min(parts, max_shards)
    assert max(counts) - min(counts) <= 1


def test_a_shard_holds_about_shard_size() -> None:
    plan = plan_of([info(f"{number:03d}", 10) for number in range(30)], part_size=10)
    assert [len(shard) for shard in make_shards(plan, 50, 64)] == [5] * 6


@given(listings(), part_sizes, st.integers(1, 12))
def test_references_to_shards_name_their_parts_objects_and_bytes(
    listed: list[ObjectInfo], part_size: int, max_shards: int
) -> None:
    plan = plan_of(listed, part_size)
    shards = make_shards(plan, 1, max_shards)
    refs = shard_refs("app", "2026-11-23T08:00:00Z", plan.plan_id, shards)
    assert [ref.shard for ref in refs] == list(range(len(shards)))
    for ref, shard in zip(refs, shards, strict=True):
        assert list(plan.parts[ref.first_part : ref.first_part + ref.parts]) == list(shard)
    assert sum(ref.objects for ref in refs) == plan.objects
    assert sum(ref.bytes for ref in refs) == plan.bytes_in


def test_the_title_of_a_shard_names_its_parts_objects_and_size() -> None:
    ref = ShardRef("app", "2026-11-23T08:00:00Z", "id", 1, 32, 32, 2048, 1024**3)
    assert ref.title == "parts 32-63: 2,048 objects, 1.0 GiB"
    assert replace(ref, parts=1, objects=1, bytes=7).title == "part 32: 1 objects, 7 B"
