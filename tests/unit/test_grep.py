"""grep finds in the parts what a search of the raw objects finds, in the order of the parts, with few requests."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup.decompression import COMPRESSED_ENCODINGS, encoding_of_content
from include.log_rollup.errors import ConfigurationError, NotFoundError, TransientError
from include.log_rollup.queries.grep import Found, GrepOptions, Note, Output, Progress, Result, grep
from include.log_rollup.queries.line_pattern import compile_pattern
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.grouped_hour import GroupedHour
from tests.support.hour_in_memory import MANIFEST, MARKER, make_stream, part_key, produce, run_hour
from tests.support.raw_hours import HOUR, RAW
from tests.unit.test_decompression import COMPRESS, LINES

pytestmark = pytest.mark.usefixtures("unwatched")

STREAM = make_stream()
OBJECTS = {
    "a.log": b"one\ntwo error\n\nthree",
    "b.log": b"error at the end\n",
    "c.log": b"",
    "deep/d.log": b"error 1\nerror 2\n" * 10,
    "web-e.log": b"no newline error",
    "f.log": b"\xff\xfe error \x1b[31m\n",
}
ERRORS = [
    ("a.log", 2, b"two error"),
    ("b.log", 1, b"error at the end"),
    *(("deep/d.log", number, b"error %d" % (2 - number % 2)) for number in range(1, 21)),
    ("f.log", 1, b"\xff\xfe error \x1b[31m"),
    ("web-e.log", 1, b"no newline error"),
]


def options_for(
    stream: Stream, text: str, *, match: Sequence[str] = (), groups: Any = (), **how: Any
) -> GrepOptions:
    return GrepOptions(compile_pattern(text), ObjectFilter(stream, match, groups), numbered=True, **how)


def search(store: FakeStore, text: str = "error", *, stream: Stream = STREAM, **how: Any) -> list[Result]:
    return list(grep(store, stream, [HOUR], options_for(stream, text, **how)))


def lines(results: Sequence[Result]) -> list[tuple[str, int, bytes]]:
    """Name, number and content of each line that was found."""
    return [
        (result.key.removeprefix(RAW), number, line)
        for result in results
        if isinstance(result, Found)
        for number, line in zip(result.lines.numbers, result.lines.lines, strict=True)
    ]


def counts(results: Sequence[Result]) -> dict[str, int]:
    return {result.key.removeprefix(RAW): result.count for result in results if isinstance(result, Found)}


def notes(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    found = [result for result in results if isinstance(result, Note)]
    return [(note.kind.value, note.name.removeprefix(RAW), note.text) for note in found]


def complete(
    objects: dict[str, bytes] = OBJECTS, stream: Stream = STREAM, *, expire: bool = True
) -> FakeStore:
    """Return a store with a complete hour, whose raw objects have expired."""
    store = FakeStore()
    produce(store, objects)
    run_hour(store, stream)
    for name in objects if expire else ():
        store.vanish(RAW + name)
    store.log.clear()
    return store


def test_lines_are_found_in_the_parts_in_order() -> None:
    store = complete()
    results = search(store)
    assert lines(results) == ERRORS
    assert notes(results) == []
    assert store.writes() == []


def test_inverted_search_finds_the_other_lines() -> None:
    assert lines(search(complete(), invert=True)) == [
        ("a.log", 1, b"one"),
        ("a.log", 3, b""),
        ("a.log", 4, b"three"),
    ]


def test_counts_and_keys_leave_out_objects_without_matches() -> None:
    store = complete()
    assert counts(search(store, output=Output.COUNT)) == {
        "a.log": 1, "b.log": 1, "deep/d.log": 20, "f.log": 1, "web-e.log": 1,
    }  # fmt: skip
    assert list(counts(search(store, output=Output.KEY))) == [
        "a.log",
        "b.log",
        "deep/d.log",
        "f.log",
        "web-e.log",
    ]


@pytest.mark.parametrize("most", [1, 2, 3, 10, 23, 24, 100])
def test_max_count_returns_the_first_lines(most: int) -> None:
    store = complete()
    assert lines(search(store, max_count=most)) == ERRORS[:most]
    assert sum(counts(search(store, max_count=most, output=Output.COUNT)).values()) == min(most, len(ERRORS))
    assert len(counts(search(store, max_count=most, output=Output.KEY))) == min(most, 5)


NAMES = st.sampled_from(["a.log", "b.log", "c/d.log", "e.log.gz", "f.zst", "g.bz2", "h.xz", "i.lz4", "j.txt"])
BODIES = st.lists(st.sampled_from([b"ab", b"b", b"\n", b"c" * 40, b"\xff"]), max_size=8).map(b"".join)


@pytest.mark.slow
@settings(max_examples=15)
@given(st.dictionaries(NAMES, BODIES, min_size=1), st.sampled_from(["a", "b$", "^c+", "[^b]"]), st.booleans())
def test_parts_give_what_raw_objects_give(objects: dict[str, bytes], text: str, has_newlines: bool) -> None:
    stored = {
        name: COMPRESS[ending](body) if (ending := "." + name.rpartition(".")[2]) in COMPRESS else body
        for name, body in objects.items()
    }
    stream = make_stream(ensure_newline=has_newlines)
    expected = {
        (name, number, line)
        for name, body in objects.items()
        for number, line in enumerate(body.removesuffix(b"\n").split(b"\n") if body else (), 1)
        if re.search(text.encode(), line)
    }
    results = search(complete(stored, stream), text, stream=stream)
    assert set(lines(results)) == expected
    assert len(lines(results)) == len(expected)
    assert notes(results) == []
    store = FakeStore()
    produce(store, stored)
    from_raw = lines(search(store, text, stream=stream, include_raw=True))
    assert from_raw == sorted(expected, key=lambda row: (row[0].encode(), row[1]))


def test_one_part_takes_one_request() -> None:
    stream = make_stream(part_size=10_000, shard_size=20_000)
    store = complete({f"{number}.log": b"x" * 99 + b"\n" for number in range(300)}, stream)
    progress = [result for result in search(store, "error", stream=stream) if isinstance(result, Progress)]
    assert sorted(operation.kind for operation in store.log) == ["RANGE"] * 3 + ["READ"] * 2
    assert sum(item.planned for item in progress) == sum(item.done for item in progress) == 30_000


def test_only_the_ranges_of_matching_objects_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.log_rollup.queries.batches.NEAR_BYTES", 150)
    stream = make_stream(part_size=10_000, shard_size=20_000)
    names = [f"{number:02d}.log" for number in range(20)]
    store = complete({name: f"{name} error\n".encode().rjust(100, b".") for name in names}, stream)
    results = search(store, stream=stream, match=["02.*", "04.*", "1[0-2].log"])
    assert list(counts(results)) == ["02.log", "04.log", "10.log", "11.log", "12.log"]
    assert [operation.detail for operation in store.log if operation.kind == "RANGE"] == [
        "200+300",
        "1000+300",
    ]


@pytest.mark.parametrize("size", [3, 7, 64, 100])
def test_large_part_is_read_in_several_requests(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.log_rollup.queries.grep._REQUEST_BYTES", size)
    store = complete(OBJECTS | {"z.gz": COMPRESS[".gz"](b"error 1\n"), "z.xz": COMPRESS[".xz"](b"error 2\n")})
    assert lines(search(store)) == [*ERRORS, ("z.gz", 1, b"error 1"), ("z.xz", 1, b"error 2")]


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_compressed_parts_are_searched_by_frames(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.log_rollup.compression.FRAME_BYTES", 100)
    monkeypatch.setattr("include.log_rollup.queries.batches.NEAR_BYTES", 0)
    stream = make_stream(compression=compression, part_size=10_000, shard_size=20_000)
    store = complete(
        OBJECTS | {f"web-{number}.log": b"%d error %090d\n" % (number, 0) for number in range(9)}, stream
    )
    results = search(store, "error", stream=stream, match=["web-e.log"])
    assert lines(results) == [ERRORS[-1]]
    (request,) = (operation for operation in store.log if operation.kind == "RANGE")
    part = store.body(part_key(store, 0))
    assert int(request.detail.partition("+")[2]) < len(part) // 2
    assert [row for row in lines(search(store, stream=stream)) if row[0] in OBJECTS] == ERRORS
    store.log.clear()
    assert len(lines(search(store, stream=stream, match=["web-3.*", "web-7.*"]))) == 2
    assert sum(operation.kind == "RANGE" for operation in store.log) == 2


def test_damaged_frame_is_noted_and_others_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.log_rollup.compression.FRAME_BYTES", 100)
    stream = make_stream(compression="zstd", part_size=10_000, shard_size=20_000)
    store = complete(OBJECTS, stream)
    store.corrupt(part_key(store, 0), keep_etag=True)
    results = search(store, stream=stream)
    ((kind, name, text),) = notes(results)
    assert (kind, name[:10]) == ("unread", "part-00000")
    assert "the frame cannot be decompressed" in text


def test_hours_are_searched_in_their_order() -> None:
    store, later = complete(), HOUR + timedelta(hours=1)
    store.produce(f"raw/app/{later:%Y%m%d/%H}/x.log", b"error later\n")
    options = options_for(STREAM, "error", include_raw=True, output=Output.KEY)
    found = [
        result.hour for result in grep(store, STREAM, [HOUR, later], options) if isinstance(result, Found)
    ]
    assert found == [HOUR] * 5 + [later]


# -- hours that are not complete -----------------------------------------------------------------------


def test_missing_hour_is_skipped_or_read_from_raw() -> None:
    store = FakeStore()
    produce(store, OBJECTS)
    missing = f"there is no s3://logs/{MANIFEST}"
    assert (lines(search(store)), notes(search(store))) == ([], [("skipped", "", missing)])
    assert notes(search(store, incomplete=True)) == [("skipped", "", missing)]
    results = search(store, include_raw=True)
    assert sorted(lines(results)) == sorted(ERRORS)
    assert notes(results) == [("unproven", "", f"raw objects were read: {missing}")]


def test_incomplete_hour_is_skipped_unless_asked_for() -> None:
    store = complete(expire=False)
    store.vanish(MARKER)
    reason = f"there is no s3://logs/{MARKER}"
    assert (lines(search(store)), notes(search(store))) == ([], [("skipped", "", reason)])
    results = search(store, incomplete=True, include_raw=True)
    assert lines(results) == ERRORS
    assert notes(results) == [("unproven", "", f"parts were read: {reason}")]
    results = search(store, include_raw=True)
    assert sorted(lines(results)) == sorted(ERRORS)
    assert notes(results) == [("unproven", "", f"raw objects were read: {reason}")]


@pytest.mark.parametrize(
    ("key", "reason"),
    [(MARKER, "_SUCCESS cannot be read, or is of another plan"), (MANIFEST, "the manifest cannot be read")],
)
def test_hour_with_a_damaged_record_is_skipped(key: str, reason: str) -> None:
    store = complete()
    store.produce(key, b"not what it was")
    results = search(store)
    assert lines(results) == []
    assert [kind for kind, _, _ in notes(results)] == ["skipped"]
    assert reason in notes(results)[0][2]


def test_planned_hour_without_parts_is_skipped() -> None:
    store = FakeStore()
    produce(store, OBJECTS)
    plan_hour(store, STREAM, HOUR, "a run")
    assert [kind for kind, _, _ in notes(search(store))] == ["skipped"]


def test_only_input_of_the_raw_hour_is_searched() -> None:
    store = FakeStore()
    stream = make_stream(exclude=("*.tmp",))
    produce(store, {"a.log": b"error", "_hidden.log": b"error", "b.tmp": b"error"})
    assert list(counts(search(store, stream=stream, include_raw=True))) == ["a.log"]


# -- formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", sorted(COMPRESSED_ENCODINGS))
def test_formats_are_seen_by_their_first_bytes(encoding: str) -> None:
    body = COMPRESS[encoding](LINES)
    assert encoding_of_content(body[:10]) == encoding
    # The name may lack the ending, or have that of another format.
    found = counts(search(complete({"a.log": body, "b.gz": body}), "request", output=Output.COUNT))
    assert found == {"a.log": 50, "b.gz": 50}


def test_name_decides_between_lz4_and_zstd_if_frame_is_skippable() -> None:
    skippable = b"\x50\x2a\x4d\x18" + (2).to_bytes(4, "little") + b"xx"
    hour = {f"a{encoding}": skippable + COMPRESS[encoding](LINES) for encoding in (".lz4", ".zst")}
    results = search(complete(hour), "request", output=Output.COUNT)
    assert counts(results) == {"a.lz4": 50, "a.zst": 50}
    assert notes(results) == []


@pytest.mark.parametrize("name", ["a.gz", "a.snappy", "a.parquet"])
def test_object_of_another_format_is_searched_as_bytes(name: str) -> None:
    results = search(complete({name: b"\0\1 error \2\n"}, make_stream(unjoinable="copy")))
    assert lines(results) == [(name, 1, b"\0\1 error \2")]
    assert notes(results) == [("as bytes", name, name[1:])]


@pytest.mark.parametrize("encoding", sorted(COMPRESSED_ENCODINGS))
def test_damaged_object_is_searched_up_to_the_damage(encoding: str) -> None:
    whole = COMPRESS[encoding](b"error 1\n")
    objects = {f"a{encoding}": whole + COMPRESS[encoding](LINES)[:-9], f"b{encoding}": whole}
    results = search(complete(objects, make_stream(part_size=10_000, shard_size=10_000)))
    assert lines(results) == [(f"a{encoding}", 1, b"error 1"), (f"b{encoding}", 1, b"error 1")]
    ((kind, name, text),) = notes(results)
    assert (kind, name) == ("unread", f"a{encoding}")
    assert text.startswith("it cannot be decompressed to its end: ")


def test_long_line_is_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.log_rollup.queries.line_search.LONGEST_LINE_BYTES", 20)
    monkeypatch.setattr("include.log_rollup.queries.line_search._BLOCK_BYTES", 20)
    results = search(complete({"a.log": b"x" * 30 + b" error\n"}))
    assert lines(results) == [("a.log", 1, b"x" * 10 + b" error")]
    assert notes(results) == [("long line", "a.log", "")]


# -- failures ------------------------------------------------------------------------------------------


def test_overwritten_part_is_noted_and_others_are_searched() -> None:
    store = complete()
    store.produce(part_key(store, 0), b"error by another program\n")
    results = search(store)
    ((kind, name, text),) = notes(results)
    assert (kind, text) == ("unread", "it was overwritten or removed while it was read")
    assert name.startswith("part-00000-")
    assert set(lines(results)) < set(ERRORS)
    assert lines(results)


def test_raw_object_that_vanishes_is_noted() -> None:
    store = FakeStore()
    produce(store, OBJECTS)
    store.on("RANGE", "b.log", NotFoundError("it has expired"))
    results = search(store, include_raw=True)
    assert sorted(lines(results)) == sorted(row for row in ERRORS if row[0] != "b.log")
    assert ("unread", "b.log", "it was overwritten or removed while it was read") in notes(results)


def test_failing_store_ends_the_search() -> None:
    store = complete()
    store.on("RANGE", "part-00001", TransientError("no network"))
    with pytest.raises(TransientError):
        search(store)


# -- groups --------------------------------------------------------------------------------------------


@pytest.fixture
def grouped() -> GroupedHour:
    hour = GroupedHour("before the date")
    hour.produce({group: {"a.log": f"error of {group}\n".encode()} for group in ("api", "edge", "web")})
    return hour


@pytest.mark.parametrize("is_complete", [True, False])
def test_groups_are_chosen_by_their_values(grouped: GroupedHour, is_complete: bool) -> None:
    if is_complete:
        grouped.run()
    for groups, expected in (
        ([("service", "web")], [b"error of web"]),
        ([("service", "web"), ("service", "api")], [b"error of api", b"error of web"]),
        ([("service", "other")], []),
    ):
        results = search(grouped.store, stream=grouped.stream, groups=groups, include_raw=not is_complete)
        assert [line for _, _, line in lines(results)] == expected


def test_unknown_group_is_refused(grouped: GroupedHour) -> None:
    with pytest.raises(ConfigurationError, match="its groups are by service"):
        ObjectFilter(grouped.stream, (), [("host", "web")])
    with pytest.raises(ConfigurationError, match="its parts are not divided into groups"):
        ObjectFilter(STREAM, (), [("host", "web")])
