"""Raw objects that are compressed themselves, and share compressed parts with plain ones."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable, Mapping
from typing import Any

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup import compression
from include.log_rollup.errors import ConfigurationError, ProofError
from include.log_rollup.hour.changes import compare
from include.log_rollup.hour.layout import is_part_name, planned_name, split_name
from include.log_rollup.hour.manifest import read_manifest
from include.log_rollup.queries.grep import GrepOptions, Note, grep
from include.log_rollup.queries.line_pattern import compile_pattern
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.restored_names import names_of_conflicts, unpacked_name
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import (
    finish_hour,
    make_stream,
    manifest_of,
    marker_of,
    part_key,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW
from tests.support.verify_compressed import verify_compressed_hour

pytestmark = pytest.mark.usefixtures("unwatched")

COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda body: gzip.compress(body, mtime=0),
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lz4": lz4.frame.compress,
}
DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {
    "cut off": lambda body: body[:-3],
    "trailing garbage": lambda body: body + b"garbage",
    "not compressed": lambda _: b"plain text in a file of another name\n",
}


def stream_of(**settings: Any) -> Stream:
    return make_stream(**{"compression": "zstd", "recompress": True, "part_size": 10_000, **settings})


def content_of(name: str, body: bytes) -> bytes:
    """The content of a whole raw object."""
    for ending, decompress_one in (
        (".gz", gzip.decompress), (".bz2", bz2.decompress), (".xz", lzma.decompress),
        (".lz4", lz4.frame.decompress), (".zst", lambda frame: zstandard.ZstdDecompressor().decompress(frame)),
    ):  # fmt: skip
        if name.endswith(ending) and body:
            found: bytes = decompress_one(body)
            return found
    return body


def verify(store: FakeStore, hour: Mapping[str, bytes], stream: Stream, kept: tuple[str, ...] = ()) -> Any:
    contents = {RAW + name: content_of(name, body) for name, body in hour.items() if name not in kept}
    return verify_compressed_hour(
        {RAW + name: body for name, body in hour.items()},
        lambda name: store.body(AGGREGATED + name),
        ensure_newline=stream.ensure_newline,
        contents=contents,
    )


MIXED = {
    f"{number:02d}.log{ending}": COMPRESS[ending](f"line {number}\n".encode() * (number + 1))
    for number, ending in enumerate([*COMPRESS] * 3)
}


@pytest.mark.parametrize("name", ["zstd", "gzip"])
@pytest.mark.parametrize("keeps_crc", [True, False])
def test_compressed_objects_share_parts_with_plain_ones(name: str, keeps_crc: bool) -> None:
    store, stream = FakeStore(keeps_crc=keeps_crc, checks_crc=keeps_crc), stream_of(compression=name)
    produce(store, MIXED)
    totals = run_hour(store, stream)
    header = verify(store, MIXED, stream)
    assert len(header["parts_table"]) == 1
    assert totals.recompressed == 15
    assert totals.bytes_unpacked == sum(len(content_of(*one)) for one in MIXED.items()) == totals.bytes_out
    assert totals.bytes_in == sum(map(len, MIXED.values()))
    marker = marker_of(store)
    assert (marker["recompressed"], marker["bytes_unpacked"]) == (15, totals.bytes_unpacked)
    checks = totals.verified.objects
    assert checks == ({"crc64nvme": 18} if keeps_crc else {"etag-md5": 18})
    assert verify_hour(store, stream, HOUR, deep=True).problems == []
    assert verify_hour(store, stream, HOUR, deep=True).raw_compared == 18
    for key, body in MIXED.items():
        found = locate(store, stream, RAW + key)
        assert b"".join(read_object(store, found)) == content_of(key, body)
        assert found.recompressed == (not key.endswith(".log"))
    written = parts(store)
    assert run_hour(store, stream).plan_id == totals.plan_id
    assert parts(store) == written


def test_raw_objects_are_compared_by_their_own_etags() -> None:
    store, stream = FakeStore(), stream_of()
    produce(store, MIXED)
    run_hour(store, stream)
    manifest = read_manifest(store, stream.at(HOUR).manifest)
    assert manifest is not None
    assert not compare(manifest.planned, stream.at(HOUR).raw.list_all(store))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz", ".lz4"])
def test_object_that_cannot_be_decompressed_keeps_its_bytes(ending: str, damage: str) -> None:
    store, stream = FakeStore(), stream_of()
    bad = f"05.log{ending}"
    hour = {**MIXED, bad: DAMAGE[damage](COMPRESS[ending](b"line of a damaged object\n" * 9))}
    if ending != ".lz4":
        hour.pop("05.log.lz4")
    produce(store, hour)
    totals = run_hour(store, stream)
    verify(store, hour, stream, kept=(bad,))
    assert (totals.damaged, totals.parts) == (1, 2)
    row = next(row for row in manifest_of(store)[1] if row["key"] == RAW + bad)
    assert row["damaged"]
    assert row["part"].endswith(f"-zst.log{ending}" if ending != ".zst" else ".log.zst")
    assert store.body(AGGREGATED + row["part"]) == hour[bad]
    assert b"".join(read_object(store, locate(store, stream, RAW + bad))) == hour[bad]
    assert verify_hour(store, stream, HOUR, deep=True).problems == []
    written = parts(store)
    run_hour(store, stream)
    assert parts(store) == written


def test_only_damaged_objects_give_no_compressed_part() -> None:
    store, stream = FakeStore(), stream_of()
    hour = {"a.gz": b"one", "b.gz": b"two"}
    produce(store, hour)
    totals = run_hour(store, stream)
    assert (totals.damaged, totals.recompressed, totals.parts) == (2, 0, 2)
    assert sorted(parts(store).values()) == [b"one", b"two"]
    assert all(name.endswith(".log.gz") for name in parts(store))


def test_too_large_content_stays_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "LARGEST_FRAME_BYTES", 1000)
    store, stream = FakeStore(), stream_of()
    hour = {"a.gz": COMPRESS[".gz"](b"a" * 1000), "b.gz": COMPRESS[".gz"](b"b" * 1001), "c.log": b"c\n"}
    produce(store, hour)
    totals = run_hour(store, stream)
    verify(store, hour, stream, kept=("b.gz",))
    assert (totals.damaged, totals.recompressed) == (1, 1)


def test_content_that_grows_too_much_stays_compressed() -> None:
    store, stream = FakeStore(), stream_of(compression="gzip", part_size=10_000_000)
    # A period that xz sees and gzip does not.
    block = random.Random(1).randbytes(70_000)
    hour = {"a.log": b"a\n", "b.xz": COMPRESS[".xz"](block * 4), "c.gz": COMPRESS[".gz"](b"c\n")}
    produce(store, hour)
    totals = run_hour(store, stream)
    verify(store, hour, stream, kept=("b.xz",))
    assert (totals.damaged, totals.recompressed) == (1, 1)


def test_object_too_large_to_recompress_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "LARGEST_RECOMPRESSED_BYTES", 40)
    store, stream = FakeStore(), stream_of(check_encoding=True)
    large = COMPRESS[".gz"](bytes(range(250)))
    hour = {"a.gz": large, "b.gz": COMPRESS[".gz"](b"b\n"), "c.gz": large, "d.log": b"d\n"}
    produce(store, hour)
    totals = run_hour(store, stream)
    assert (totals.parts, totals.damaged, totals.recompressed) == (2, 0, 1)
    assert large + large in parts(store).values()


def test_late_object_is_added_to_a_recompressed_hour() -> None:
    store, stream = FakeStore(), stream_of(part_size=2000)
    produce(store, MIXED)
    run_hour(store, stream)
    late = {"zz.log.gz": COMPRESS[".gz"](b"late\n")}
    produce(store, late)
    run_hour(store, stream)
    verify(store, {**MIXED, **late}, stream)
    store.vanish(part_key(store, 0))
    run_hour(store, stream)
    verify(store, {**MIXED, **late}, stream)


@pytest.mark.parametrize("is_turned_on", [True, False])
def test_lost_part_is_packed_as_the_stream_says_now(is_turned_on: bool) -> None:
    store = FakeStore()
    hour = {name: COMPRESS[".gz"](name.encode() * 20) for name in ("a.gz", "b.gz")}
    produce(store, hour)
    run_hour(store, stream_of(recompress=not is_turned_on))
    store.vanish(part_key(store, 0))
    totals = run_hour(store, stream_of(recompress=is_turned_on))
    assert totals.recompressed == (2 if is_turned_on else 0)
    assert totals.parts == 1


def test_rerun_keeps_what_was_split_off() -> None:
    store, stream = FakeStore(), stream_of()
    hour = {"a.gz": b"damaged", "b.gz": COMPRESS[".gz"](b"b\n"), "c.log": b"c\n"}
    produce(store, hour)
    run_hour(store, stream)
    before, rows = manifest_of(store)[0]["parts_table"], manifest_of(store)[1]
    late = {"d.gz": COMPRESS[".gz"](b"d\n"), "e.gz": b"damaged too"}
    produce(store, late)
    totals = run_hour(store, stream)
    verify(store, {**hour, **late}, stream, kept=("a.gz", "e.gz"))
    after = manifest_of(store)[0]["parts_table"]
    assert after[: len(before)] == before
    assert manifest_of(store)[1][: len(rows)] == rows
    assert (totals.damaged, totals.recompressed) == (2, 2)
    assert [entry.get("split_of", "")[:10] for entry in after] == ["part-00000"] * 2 + ["part-00001"] * 2


def test_retry_continues_after_the_receipt_of_a_split_part() -> None:
    store, stream = FakeStore(), stream_of()
    produce(store, {"a.gz": b"damaged", "b.gz": COMPRESS[".gz"](b"b\n"), "c.log": b"c\n"})
    planned = plan_hour(store, stream, HOUR, "a run")
    (ref,) = planned.shards
    pack_shard(store, stream, ref)
    written = parts(store)
    assert pack_shard(store, stream, ref).parts_written == 0
    finish_hour(store, stream, planned)
    assert parts(store) == written


def test_wrong_bytes_with_an_md5_are_found() -> None:
    store, stream = FakeStore(keeps_crc=False, checks_crc=False), stream_of()
    produce(store, {"a.gz": COMPRESS[".gz"](b"right\n"), "b.log": b"b\n"})
    planned = plan_hour(store, stream, HOUR, "a run")
    right = store.body(RAW + "a.gz")
    store.corrupt(RAW + "a.gz", keep_etag=True, body=COMPRESS[".gz"](b"wrong\n"))
    for ref in planned.shards:
        pack_shard(store, stream, ref)
    store.corrupt(RAW + "a.gz", keep_etag=True, body=right)
    with pytest.raises(ProofError, match="unpacked are not those of the raw object"):
        finish_hour(store, stream, planned)


def test_etags_without_md5_prove_nothing() -> None:
    store = FakeStore(keeps_crc=False, checks_crc=False, etag_is_md5=False)
    produce(store, MIXED, md5_etag=False)
    stream = stream_of()
    totals = run_hour(store, stream)
    assert totals.verified.objects == {"length": 18}
    verify(store, MIXED, stream)


def test_grep_searches_the_content() -> None:
    store, stream = FakeStore(), stream_of()
    produce(store, MIXED)
    run_hour(store, stream)
    options = GrepOptions(compile_pattern("line 7"), ObjectFilter(stream))
    results = list(grep(store, stream, [HOUR], options))
    keys = {result.key for result in results if hasattr(result, "key")}
    assert keys == {RAW + next(name for name in MIXED if name.startswith("07"))}
    assert not [result for result in results if isinstance(result, Note)]


def test_names_of_restored_objects_never_collide() -> None:
    assert unpacked_name("raw/a.log.gz") == "raw/a.log"
    assert unpacked_name("raw/2026.log.gz-apwgylqg") == "raw/2026.log-apwgylqg"
    store, stream = FakeStore(), stream_of()
    gz = COMPRESS[".gz"]
    names = ("a.log", "a.log.gz", "b.gz", "b.gz.unpacked", "b.zst", "c.gz", "d.gz")
    produce(
        store,
        {name: COMPRESS[".zst"](b"z") if name.endswith(".zst") else gz(b"x") if name.endswith(".gz") else b"p"
         for name in names},
    )  # fmt: skip
    run_hour(store, stream)
    manifest = read_manifest(store, stream.at(HOUR).manifest)
    assert manifest is not None
    conflicts = names_of_conflicts(lambda: zip(manifest.planned, manifest.packed, strict=True))
    assert {key.removeprefix(RAW): name.removeprefix(RAW) for key, name in conflicts.items()} == {
        "a.log.gz": "a.log.gz.unpacked",
        "b.gz": "b.gz.unpacked.unpacked",
        "b.zst": "b.zst.unpacked",
    }


@pytest.mark.parametrize("folder", ["", "web/"])
def test_name_of_a_split_part_says_its_planned_part(folder: str) -> None:
    planned = f"{folder}part-00008-91d0c7e4.log.zst"
    name = split_name(planned, "5b0e66aa", ".gz")
    assert name == f"{folder}part-00008-91d0c7e4-5b0e66aa-zst.log.gz"
    assert planned_name(name) == planned
    assert is_part_name(name.removeprefix(folder))
    assert split_name(planned, "5b0e66aa", ".zst") == split_name(planned, "5b0e66aa")
    assert planned_name(split_name(planned, "5b0e66aa")) == planned


def test_other_workers_refuse_a_plan_with_recompression() -> None:
    store = FakeStore()
    produce(store, MIXED)
    (ref,) = plan_hour(store, stream_of(), HOUR, "a run").shards
    other = stream_of(compression="gzip")
    with pytest.raises(ConfigurationError, match="other settings or another version"):
        pack_shard(store, other, ref)
    assert parts(store) == {}


contents = st.binary(max_size=40) | st.builds(lambda line: line * 5, st.binary(max_size=20))


@pytest.mark.slow
@given(
    hour=st.dictionaries(
        st.tuples(st.integers(0, 99), st.sampled_from([*COMPRESS])), contents, min_size=1, max_size=12
    ),
    damaged=st.sets(st.integers(0, 99), max_size=40),
    name=st.sampled_from(["zstd", "gzip"]),
    ensure_newline=st.booleans(),
    part_size=st.integers(100, 2000),
    frame_bytes=st.integers(1, 100),
    keeps_crc=st.booleans(),
    threads=st.sampled_from([0, 2]),
)
def test_any_hour_is_recompressed_completely(
    hour: dict[tuple[int, str], bytes],
    damaged: set[int],
    name: str,
    ensure_newline: bool,
    part_size: int,
    frame_bytes: int,
    keeps_crc: bool,
    threads: int,
) -> None:
    store = FakeStore(keeps_crc=keeps_crc, checks_crc=keeps_crc, threads=threads)
    stream = stream_of(compression=name, ensure_newline=ensure_newline, part_size=part_size, max_shards=2)
    bodies, kept = {}, []
    for (number, ending), content in hour.items():
        key = f"{number:02d}.log{ending}"
        bodies[key] = COMPRESS[ending](content)
        if number in damaged and ending:
            bodies[key] = bodies[key][:-1]
            kept.append(key)
    produce(store, bodies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "FRAME_BYTES", frame_bytes)
        totals = run_hour(store, stream)
        assert totals.damaged == len(kept)
        verify(store, bodies, stream, kept=tuple(kept))
        assert json.loads(json.dumps(manifest_of(store)[0]))["damaged"] == len(kept)
        assert verify_hour(store, stream, HOUR, deep=True).problems == []
