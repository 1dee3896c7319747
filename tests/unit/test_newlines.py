"""With ``ensure_newline``, parts of every encoding have whole lines, and raw objects keep their bytes."""

import bz2
import gzip
import hashlib
import lzma
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup.decompression import COMPRESSED_ENCODINGS, inspect
from include.log_rollup.hour import plan as plan_module
from include.log_rollup.hour.plan import WriteOptions
from include.log_rollup.newlines import newline_crc, newline_of
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import (
    assert_complete,
    assert_right,
    finish_hour,
    make_stream,
    manifest_of,
    marker_of,
    numbered,
    parts,
    produce,
    run_hour,
)
from tests.support.newlines import NEWLINE_BYTES, content_of, lacks_newline
from tests.support.raw_hours import HOUR, RAW


def compress_zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(body)


COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": partial(gzip.compress, mtime=0),
    ".zst": compress_zstd,
    ".bz2": bz2.compress,
    # A higher preset allocates up to 94 MiB for each call.
    ".xz": partial(lzma.compress, preset=0),
    ".lz4": partial(lz4.frame.compress, content_checksum=True),
}
COMMANDS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz", ".lz4": "lz4"}
of_each_encoding = pytest.mark.parametrize("encoding", sorted(COMPRESS))
STREAM = make_stream(part_size=4096, shard_size=8192, ensure_newline=True)
CHECKING = STREAM.model_copy(update={"check_encoding": True})

contents = st.lists(
    st.sampled_from([b"", b"\n", b"a", b"a\n", b"a\nb", b"\r", b"\n\n", b"x" * 300]), max_size=3
)


def members_of(encoding: str, members: list[bytes]) -> bytes:
    return b"".join(map(COMPRESS[encoding], members))


# -- the constants -------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["", *sorted(COMPRESS)])
def test_newline_of_each_encoding_holds_just_a_newline(encoding: str) -> None:
    assert content_of(encoding, newline_of(encoding)) == b"\n"
    assert len(newline_of(encoding)) == NEWLINE_BYTES[encoding]
    assert newline_crc(encoding) > 0


def test_every_encoding_that_is_decompressed_has_a_newline() -> None:
    assert {encoding for encoding in COMPRESSED_ENCODINGS if newline_of(encoding)} == COMPRESSED_ENCODINGS


@pytest.mark.parametrize("encoding", [".lzo", ".snappy", ".parquet", ".zip"])
def test_other_encodings_have_no_newline(encoding: str) -> None:
    assert newline_of(encoding) == b""


def test_newlines_never_change() -> None:
    """A change gives parts of the same name other bytes, so it needs another FINGERPRINT_FORMAT."""
    together = b"".join(newline_of(encoding) for encoding in sorted(NEWLINE_BYTES))
    assert plan_module.FINGERPRINT_FORMAT == 1
    assert (
        hashlib.sha256(together).hexdigest()
        == "c427034aa032df795e1b912d483b9140e7e2159e48c2dd2e3472a5c30478e1c7"
    )


@of_each_encoding
def test_commands_read_objects_with_newlines_between_them(encoding: str) -> None:
    command = shutil.which(COMMANDS[encoding])
    if command is None:
        pytest.skip(f"{COMMANDS[encoding]} is not installed")
    bodies = [COMPRESS[encoding](b"one"), COMPRESS[encoding](b"two"), COMPRESS[encoding](b"three\n")]
    part = newline_of(encoding).join(bodies)
    result = subprocess.run([command, "-dc"], input=part, capture_output=True, check=True)
    assert (result.stdout, result.stderr) == (b"one\ntwo\nthree\n", b"")


# -- how an object ends --------------------------------------------------------------------------------


@of_each_encoding
@given(members=contents)
def test_content_without_a_newline_at_its_end_is_noticed(encoding: str, members: list[bytes]) -> None:
    found = inspect(encoding, memoryview(members_of(encoding, members)))
    assert found.damage is None
    assert found.lacks_newline == (b"".join(members)[-1:] not in (b"", b"\n"))


@of_each_encoding
@given(members=contents, data=st.data())
def test_damaged_object_counts_as_ending_with_a_newline(
    encoding: str, members: list[bytes], data: st.DataObject
) -> None:
    body = bytearray(members_of(encoding, [*members, b"no newline"]))
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = inspect(encoding, memoryview(body)[: data.draw(st.integers(0, len(body)))])
    assert found.damage is None or not found.lacks_newline


def zstd_with_dictionary(body: bytes) -> bytes:
    samples: list[bytes | bytearray | memoryview] = []
    samples += [b"%d: a line that repeats %d" % (number, number * 7919) for number in range(2000)]
    dictionary = zstandard.train_dictionary(1024, samples)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(body)


def zstd_with_large_window(body: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(body) + compressor.flush()


def xz_with_large_dictionary(body: bytes) -> bytes:
    return lzma.compress(body, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 200 * 1024 * 1024}])


@pytest.mark.parametrize(
    ("encoding", "make"),
    [
        (".zst", zstd_with_dictionary),
        (".zst", zstd_with_large_window),
        (".xz", xz_with_large_dictionary),
    ],
)
def test_object_of_unknown_end_counts_as_ending_with_one(
    encoding: str, make: Callable[[bytes], bytes]
) -> None:
    unknown, known = make(b"no newline"), COMPRESS[encoding](b"no newline")
    assert inspect(encoding, memoryview(known + unknown)) == inspect(encoding, memoryview(b""))
    if encoding == ".zst":
        assert inspect(encoding, memoryview(unknown + known)).lacks_newline
        assert not inspect(encoding, memoryview(unknown + COMPRESS[encoding](b""))).lacks_newline


def test_skippable_frames_do_not_hide_the_last_line() -> None:
    skippable = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    for content, expected in ((b"a", True), (b"a\n", False)):
        assert inspect(".zst", memoryview(compress_zstd(content) + skippable)).lacks_newline == expected


def test_padding_of_xz_does_not_hide_the_last_line() -> None:
    body = COMPRESS[".xz"](b"a") + bytes(8)
    assert inspect(".xz", memoryview(body)).lacks_newline


# -- parts ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@of_each_encoding
@settings(max_examples=25)
@given(
    objects=st.lists(
        st.tuples(contents, st.sampled_from(["", "", "", "cut", "flip"])), min_size=1, max_size=6
    ),
    check_encoding=st.booleans(),
    part_size=st.sampled_from([64, 200, 4096]),
    keeps_crc=st.booleans(),
)
def test_parts_have_whole_lines_and_raw_objects_their_bytes(
    encoding: str,
    objects: list[tuple[list[bytes], str]],
    check_encoding: bool,
    part_size: int,
    keeps_crc: bool,
) -> None:
    hour = {}
    for number, (members, damage) in enumerate(objects):
        body = members_of(encoding, members)
        if damage and body:
            middle = len(body) // 2
            flipped = body[:middle] + bytes([body[middle] ^ 0x40]) + body[middle + 1 :]
            body = body[:-3] if damage == "cut" else flipped
        hour[f"{number}{encoding}"] = body
    stream = make_stream(
        part_size=part_size, shard_size=2 * part_size, ensure_newline=True, check_encoding=check_encoding
    )
    store = FakeStore(keeps_crc=keeps_crc, checks_crc=keeps_crc)
    produce(store, hour)
    totals = run_hour(store, stream)
    assert_right(store, stream)
    assert verify_hour(store, stream, HOUR, deep=True).problems == []
    assert verify_hour(store, stream, HOUR).problems == []
    for name, body in hour.items():
        assert b"".join(read_object(store, locate(store, stream, RAW + name))) == body
    header, _ = manifest_of(store)
    assert totals.separator_bytes == header["bytes_out"] - sum(map(len, hour.values()))
    if not any(damage for _, damage in objects):
        for entry in header["parts_table"]:
            assert entry["copied"] or not lacks_newline(encoding, parts(store)[entry["name"]])
    before = store.snapshot()
    assert run_hour(store, stream) == totals
    assert store.snapshot() == before


@of_each_encoding
def test_newline_frames_follow_only_lines_without_one(encoding: str) -> None:
    store = FakeStore()
    bodies = [COMPRESS[encoding](content) for content in (b"one", b"two\n", b"", b"three")]
    produce(store, {f"{number}{encoding}": body for number, body in enumerate([*bodies, b""])})
    totals = run_hour(store, STREAM)
    newline = newline_of(encoding)
    (part,) = parts(store).values()
    assert part == bodies[0] + newline + bodies[1] + bodies[2] + bodies[3] + newline
    assert content_of(encoding, part) == b"one\ntwo\nthree\n"
    assert totals.separator_bytes == marker_of(store)["separator_bytes"] == 2 * len(newline)
    assert_complete(store, STREAM)


@of_each_encoding
def test_no_frames_are_added_without_ensure_newline(encoding: str) -> None:
    store, stream = FakeStore(), make_stream(part_size=4096, shard_size=8192, check_encoding=True)
    bodies = [COMPRESS[encoding](content) for content in (b"one", b"two")]
    produce(store, {f"{number}{encoding}": body for number, body in enumerate(bodies)})
    run_hour(store, stream)
    assert list(parts(store).values()) == [b"".join(bodies)]


@pytest.mark.parametrize("check_encoding", [False, True])
def test_damaged_object_gets_no_newline_frame(check_encoding: bool) -> None:
    store, stream = FakeStore(), STREAM.model_copy(update={"check_encoding": check_encoding})
    whole, damaged = gzip.compress(b"a", mtime=0), gzip.compress(b"b", mtime=0)[:-5]
    produce(store, {"a.gz": whole, "b.gz": damaged})
    totals = run_hour(store, stream)
    newline = newline_of(".gz")
    expected = [damaged, whole + newline] if check_encoding else [whole + newline + damaged]
    assert sorted(parts(store).values()) == sorted(expected)
    assert totals.damaged == (1 if check_encoding else 0)
    assert_right(store, stream)


def test_object_as_large_as_a_part_is_copied_without_newline() -> None:
    body = gzip.compress(hashlib.sha256(b"").digest(), mtime=0)
    for room, copied in ((20, True), (21, False)):
        store, stream = FakeStore(), make_stream(part_size=len(body) + room, ensure_newline=True)
        produce(store, {"a.gz": body})
        run_hour(store, stream)
        assert list(parts(store).values()) == [body if copied else body + newline_of(".gz")]
        assert manifest_of(store)[0]["parts_table"][0]["copied"] == copied


# -- hours of earlier versions -------------------------------------------------------------------------

RAW_HOUR = {"a.gz": gzip.compress(b"a", mtime=0), "b.gz": gzip.compress(b"b", mtime=0), "c.log": b"c"}


def room_of_earlier_versions(options: WriteOptions, encoding: str) -> int:
    return 1 if options.ensure_newline and encoding == "" else 0


@pytest.fixture
def earlier(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Plan as the earlier version did, which added newlines to plain objects only, until this is undone."""
    monkeypatch.setattr(WriteOptions, "room_for_newline", room_of_earlier_versions)
    return monkeypatch


def test_plan_of_an_earlier_version_is_packed_as_it_says(earlier: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    planned = plan_hour(store, STREAM, HOUR, "run")
    earlier.undo()
    finish_hour(store, STREAM, planned)
    assert list(parts(store).values()) == [b"c\n", RAW_HOUR["a.gz"] + RAW_HOUR["b.gz"]]
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []


def test_hour_of_an_earlier_version_stays_as_it_is(earlier: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    planned = plan_hour(store, STREAM, HOUR, "run")
    for ref in planned.shards:
        pack_shard(store, STREAM, ref)
    finish_hour(store, STREAM, planned)
    earlier.undo()
    before = store.snapshot()
    assert verify_hour(store, STREAM, HOUR, deep=True).problems == []
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []
    assert b"".join(read_object(store, locate(store, STREAM, RAW + "b.gz"))) == RAW_HOUR["b.gz"]
    assert store.snapshot() == before


def test_repack_adds_newlines_to_an_hour_of_an_earlier_version(earlier: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    run_hour(store, STREAM)
    names = list(parts(store))
    earlier.undo()
    run_hour(store, STREAM, repack=True)
    assert_complete(store, STREAM)
    assert numbered(names) == numbered(parts(store))
    # The part of plain objects keeps its name.
    assert [name in names for name in parts(store)] == [True, False]


def test_expired_hour_of_an_earlier_version_keeps_its_parts(earlier: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    run_hour(store, STREAM)
    earlier.undo()
    before = parts(store)
    for name in ("a.gz", "b.gz"):
        store.vanish(RAW + name)
    with pytest.raises(Exception, match="2 of 3 raw objects"):
        run_hour(store, STREAM)
    assert parts(store) == before
