"""Restoring plans ranges that are near, keeps key order in bounded memory, and refuses unsafe names."""

import argparse
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup import crc
from include.log_rollup.errors import ConfigurationError, TargetConflictError
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import Frame, PackedObject, PackedPart
from include.log_rollup.queries import restore_plan
from include.log_rollup.queries.batches import BATCH_BYTES, NEAR_BYTES, Batch, plan_batches
from include.log_rollup.queries.present_objects import PresentObjects
from include.log_rollup.queries.restore_targets import (
    DirectoryTarget,
    Presence,
    RestoredObject,
    Target,
    TarTarget,
    UnusableNameError,
    path_problem,
)
from include.log_rollup.queries.restore_to_s3 import S3Target
from include.log_rollup.storage.protocol import ListPage, Location, ObjectInfo
from include.log_rollup.units import MIB
from log_rollup_plugin.cli.arguments import group, hours
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream
from tests.support.raw_hours import HOUR, RAW

PREFIX = Location("logs", "copy/")
STREAM = make_stream()


def part_of(
    sizes: Sequence[int], keys: Sequence[str] = (), frames: Sequence[Frame] = ()
) -> tuple[PlannedPart, PackedPart]:
    """Make a part of objects of these sizes, with a newline after each."""
    names = keys or [f"{number:05}" for number in range(len(sizes))]
    objects = tuple(ObjectInfo(key, size, "e") for key, size in zip(names, sizes, strict=True))
    planned = PlannedPart("part-00000-00000000.log", "", sum(sizes), False, "f", objects)
    done = tuple(PackedObject(0, "crc64nvme", False, 1) for _ in sizes)
    size = sum(frame.size for frame in frames) or sum(sizes) + len(sizes)
    return planned, PackedPart(planned.name, "f", size, "e", 0, done, "read-back", tuple(frames))


def item_of(name: str, body: bytes) -> RestoredObject:
    return RestoredObject(f"raw/{name}", name, HOUR, len(body), "e", crc.crc64(body), False)


# -- ranges -----------------------------------------------------------------------------------------------


def test_objects_near_each_other_are_read_together() -> None:
    planned, packed = part_of([MIB // 2] * 20)
    half = MIB // 2
    assert list(plan_batches(planned, packed, [2, 3, 5])) == [Batch([2, 3, 5], 2 * half + 2, 6 * half + 5)]
    far = list(plan_batches(planned, packed, [0, 4]))
    assert [batch.indices for batch in far] == [[0], [4]]
    assert [batch.gets for batch in far] == [1, 1]


def test_large_object_is_a_batch_of_several_requests() -> None:
    planned, packed = part_of([10, 3 * BATCH_BYTES, 10])
    found = list(plan_batches(planned, packed, [0, 1, 2]))
    assert [(batch.indices, batch.gets) for batch in found] == [([0], 1), ([1], 3), ([2], 1)]


def test_empty_objects_are_not_read() -> None:
    planned, packed = part_of([0, 5, 0])
    assert list(plan_batches(planned, packed, [0, 1, 2])) == [Batch([1], 1, 6)]
    assert list(plan_batches(planned, packed, [0, 2])) == []


def test_objects_of_one_frame_are_read_together() -> None:
    frames = (Frame(3, 100, 3 * MIB + 3), Frame(2, 50, 12 * MIB + 2), Frame(1, 40, MIB + 1))
    planned, packed = part_of([MIB, MIB, MIB, 6 * MIB, 6 * MIB, MIB], frames=frames)
    found = list(plan_batches(planned, packed, [0, 2, 3, 4, 5]))
    assert [(batch.indices, batch.start, batch.end) for batch in found] == [
        ([0, 2], 0, 100),
        ([3, 4], 100, 150),
        ([5], 150, 190),
    ]


@given(
    st.lists(st.integers(0, 3 * MIB), min_size=1, max_size=40).flatmap(
        lambda sizes: st.tuples(st.just(sizes), st.sets(st.integers(0, len(sizes) - 1)))
    )
)
def test_batches_hold_each_wanted_object_once(drawn: tuple[list[int], set[int]]) -> None:
    sizes, chosen = drawn
    planned, packed = part_of(sizes)
    batches = list(plan_batches(planned, packed, sorted(chosen)))
    indices = [index for batch in batches for index in batch.indices]
    assert indices == [index for index in sorted(chosen) if sizes[index]]
    for batch in batches:
        assert len(batch.indices) == 1 or batch.end - batch.start <= BATCH_BYTES
        wanted = sum(sizes[index] for index in batch.indices)
        assert batch.end - batch.start - wanted <= len(batch.indices) * NEAR_BYTES


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4 * MIB)), max_size=60), st.integers(1, 4))
def test_ordered_batches_come_before_their_objects_are_due(drawn: list[tuple[int, int]], most: int) -> None:
    parts = []
    for number in range(6):
        members = [(f"{place:04}", size) for place, (part, size) in enumerate(drawn) if part == number]
        if members:
            planned, packed = part_of([size for _, size in members], [key for key, _ in members])
            parts.append((planned, packed, list(range(len(members)))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore_plan, "MAX_OPEN_BATCHES", most)
        batches = list(restore_plan.ordered_batches(parts))
    read: set[str] = set()
    open_bytes: dict[str, int] = {}
    coming = iter(batches)
    for place, index in restore_plan.in_key_order(parts):
        item = parts[place][0].objects[index]
        if item.key not in read:
            (planned, _, _), batch = next(coming)
            taken = [planned.objects[one] for one in batch.indices]
            assert not read & {one.key for one in taken}
            read |= {one.key for one in taken}
            open_bytes |= {one.key: one.size for one in taken}
            assert sum(open_bytes.values()) <= (most + 1) * BATCH_BYTES
        assert item.key in read
        del open_bytes[item.key]
    assert next(coming, None) is None


# -- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "a/./x", "a//x", "/etc/x", "x/", "", ".", "a\0b", "..", "a/.."]
)
def test_unsafe_names_are_refused(name: str) -> None:
    assert path_problem(name)
    assert DirectoryTarget(Path("out")).name_problem(item_of(name, b""))


@pytest.mark.parametrize("name", ["x", "a/b.log", "...", "a/..b", "back\\slash", "space ", "ü\u2028"])
def test_safe_names_are_accepted(name: str) -> None:
    assert path_problem(name) is None


def test_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "web").symlink_to(outside)
    (folder / "no").symlink_to(outside / "nothing")
    (folder / "in").symlink_to(folder / "inside")
    (folder / "inside").mkdir()
    with DirectoryTarget(folder) as target:
        for name in ("web/x.log", "web/08/deep/x.log"):
            with pytest.raises(UnusableNameError, match="leads out of"):
                target.write(item_of(name, b"x"), b"x")
        with pytest.raises(UnusableNameError, match="cannot be a file"):
            target.write(item_of("no/08/x.log", b"x"), b"x")
        target.write(item_of("in/08/x.log", b"x"), b"x")
    assert list(outside.iterdir()) == []
    assert (folder / "inside/08/x.log").read_bytes() == b"x"


def test_names_that_exclude_each_other_are_reported(tmp_path: Path) -> None:
    with DirectoryTarget(tmp_path) as target:
        target.write(item_of("a", b"x"), b"x")
        for name in ("a/b", "n" * 300):
            with pytest.raises(UnusableNameError, match="cannot be a file"):
                target.write(item_of(name, b"y"), b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_that_are_one_file_are_reported(tmp_path: Path) -> None:
    """As names that differ in case on macOS; here two names of a folder."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "link").symlink_to("inside")
    first, second = item_of("inside/x.log", b"x"), item_of("link/x.log", b"y")
    with DirectoryTarget(tmp_path) as target:
        assert set(target.compare([first, second])) == {Presence.ABSENT}
        target.write(first, b"x")
        with pytest.raises(UnusableNameError, match="another object has been restored to it"):
            target.write(second, b"y")
    assert (tmp_path / "inside/x.log").read_bytes() == b"x"
    with DirectoryTarget(tmp_path) as target:
        # As with --overwrite.
        assert target.compare([second]) == [Presence.DIFFERENT]
        target.write(second, b"y")
    assert [path.read_bytes() for path in (tmp_path / "inside").iterdir()] == [b"y"]


def test_directory_compares_size_content_and_kind(tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(b"abc")
    (tmp_path / "other").write_bytes(b"abd")
    (tmp_path / "longer").write_bytes(b"abcd")
    (tmp_path / "folder").mkdir()
    names = ("same", "other", "longer", "folder", "none", "same/below")
    found = DirectoryTarget(tmp_path).compare([item_of(name, b"abc") for name in names])
    absent, different = Presence.ABSENT, Presence.DIFFERENT
    # Writing a file in the place of a folder fails for this object alone.
    assert found == [Presence.SAME, different, different, absent, absent, absent]
    with DirectoryTarget(tmp_path) as target, pytest.raises(UnusableNameError, match="cannot be a file"):
        target.write(item_of("folder", b"abc"), b"abc")
    assert (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("kind", ["directory", "tar"])
def test_name_that_is_a_folder_of_others_is_refused(kind: str, tmp_path: Path) -> None:
    # The file comes first: the others are restored all the same.
    items = [item_of(name, b"x") for name in ("a", "a/b", "a/b.log", "a/b/c.log", "d")]
    out, archive = tmp_path / "out", tmp_path / "out.tar"
    made: Target = DirectoryTarget(out) if kind == "directory" else TarTarget(archive, False)
    with made as target:
        assert set(target.compare(items)) == {Presence.ABSENT}
        for item in items:
            if item.name in ("a", "a/b"):
                with pytest.raises(UnusableNameError, match="others are in a folder of this name"):
                    target.write(item, b"x")
            else:
                target.write(item, b"x")
    if kind == "tar":
        with tarfile.open(archive) as tar:
            tar.extractall(out, filter="data")
    names = {f"{path.relative_to(out)}" for path in out.rglob("*") if path.is_file()}
    assert names == {"a/b/c.log", "a/b.log", "d"}


def test_failed_target_leaves_nothing(tmp_path: Path) -> None:
    for target in (DirectoryTarget(tmp_path / "out"), TarTarget(tmp_path / "out.tar", False)):
        with pytest.raises(KeyboardInterrupt):
            interrupt(target)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def interrupt(target: Target) -> None:
    """Write half of an object, and then be interrupted."""
    with target:
        target.begin(item_of("large", b"abc")).write(memoryview(b"ab"))
        raise KeyboardInterrupt


def test_discarded_member_is_cut_off_the_tar_file(tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    long_name = "n/" * 100 + "ü" * 100
    with TarTarget(path, False) as target:
        target.write(item_of("first", b"1"), b"1")
        writer = target.begin(item_of("wrong", b"abc"))
        writer.write(memoryview(b"ab"))
        writer.discard()
        target.write(item_of(long_name, b"2" * 600), b"2" * 600)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["first", long_name]
        last = tar.extractfile(long_name)
        assert last is not None
        assert last.read() == b"2" * 600
    with pytest.raises(TargetConflictError, match="use another name, or --overwrite"):
        TarTarget(path, False)
    with pytest.raises(ConfigurationError, match="it is not a file"):
        TarTarget(tmp_path, True)


# -- objects that exist -----------------------------------------------------------------------------------


def reverse(page: ListPage) -> ListPage:
    return replace(page, objects=page.objects[::-1])


def without_end(page: ListPage) -> ListPage:
    return replace(page, objects=page.objects[:2], truncated=None, token=None)


def without_subfolder(page: ListPage) -> ListPage:
    return replace(page, objects=page.objects[:1], folders=["copy/0"])


@pytest.mark.parametrize("change", [None, reverse, without_end, without_subfolder])
def test_present_objects_are_found_with_few_requests(
    change: Callable[[ListPage], ListPage] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    for number in range(3000):
        store.produce(f"copy/{number:05}", b"%d" % number)
    names = [f"{number:05}" for number in (0, 1, 2, 1500, 2998)] + ["absent", "00001-absent"]
    if change:
        list_page = store.list_page
        monkeypatch.setattr(store, "list_page", lambda *a, **k: change(list_page(*a, **k)))
    before = dict(store.requests)
    found = PresentObjects(store, PREFIX).find(names)
    assert found.keys() == {f"{number:05}" for number in (0, 1, 2, 1500, 2998)}
    assert found["01500"] == (4, store.stored("copy/01500").etag)
    sent = sum(store.requests.values()) - sum(before.values())
    assert sent <= (1 + len(names) if change else 4)
    assert PresentObjects(store, PREFIX).find([]) == {}


def s3_target(prefix: str) -> S3Target:
    """Return a target in the bucket of raw objects and parts."""
    store: Any = FakeStore()

    def is_ours(key: str) -> bool:
        return key.startswith("copy/parts/")

    def is_raw(key: str) -> bool:
        return STREAM.raw.match(key) is not None

    return S3Target(store, Location("logs", prefix), {}, is_ours, is_raw)


def test_keys_among_parts_and_too_long_keys_are_refused() -> None:
    target = s3_target("copy/")
    assert target.name_problem(item_of("web/x.log", b"x")) is None
    assert "would be among the parts" in (target.name_problem(item_of("parts/x.log", b"x")) or "")
    assert "more than S3 allows" in (target.name_problem(item_of("ü" * 600, b"x")) or "")


@pytest.mark.parametrize(
    ("prefix", "key", "is_content", "refused"),
    [
        ("raw/app/", "z.log", False, False),
        ("raw/app/", "z.log.gz", True, True),
        # These would be raw objects of the hour a second time.
        (RAW, "z.log", False, True),
        ("raw/app/20261123/09/", "z.log.gz", True, True),
        ("raw/app/copy/", "z.log.gz", True, False),
        ("copy/", "z.log.gz", True, False),
    ],
)
def test_restored_object_is_no_other_raw_object(
    prefix: str, key: str, is_content: bool, refused: bool
) -> None:
    name = f"{RAW}{key.removesuffix('.gz')}".removeprefix("raw/app/")
    item = RestoredObject(f"{RAW}{key}", name, HOUR, 1, "", 1, False, is_content)
    problem = s3_target(prefix).name_problem(item) or ""
    assert ("would be another raw object of the stream" in problem) is refused


# -- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "number"),
    [
        ("2026-11-23T08", 8, 1),
        ("2026-11-23T08..2026-11-23T10", 8, 3),
        ("20261123/08..20261123/08", 8, 1),
        ("2026-11-23T00..20261124/23", 0, 48),
    ],
)
def test_range_of_hours_includes_its_last_hour(text: str, first: int, number: int) -> None:
    found = hours(text)
    assert (found[0], len(found)) == (datetime(2026, 11, 23, first, tzinfo=UTC), number)


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [
        (hours, "..2026-11-23T08", "is not an hour"),
        (hours, "2026-11-23T08...2026-11-23T09", "is not an hour"),
        (hours, "2026-11-23T09..2026-11-23T08", "ends before it begins"),
        (hours, "2026-11-23..2026-11-24", "is a day"),
        (hours, "1970-01-01T00..2026-11-23T08", "give at most 10,000"),
        (group, "service", "write it like service=web"),
        (group, "=web", "write it like service=web"),
        (group, "service=", "write it like service=web"),
    ],
)
def test_wrong_range_or_group_is_refused(parse: Callable[[str], object], text: str, reason: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        parse(text)
