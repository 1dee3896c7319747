"""Parts that are compressed frame by frame."""

import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup import compression
from include.log_rollup.compression import Gzip, Zstd, codec_of
from include.log_rollup.errors import ChangedBufferError, ConfigurationError, ProofError
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import (
    assert_not_complete,
    make_stream,
    part_key,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW
from tests.support.verify_compressed import decompress, verify_compressed_hour

pytestmark = pytest.mark.usefixtures("unwatched")

FORMATS = ("zstd", "gzip")
bodies = st.binary(max_size=40) | st.builds(lambda line: line * 5, st.binary(max_size=20))
hours = st.dictionaries(st.integers(0, 99).map(lambda n: f"{n:02d}.log"), bodies, min_size=1, max_size=12)
stores: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"keeps_crc": True, "checks_crc": True},
        {"keeps_crc": False, "checks_crc": False},
        {"keeps_crc": False, "checks_crc": False, "etag_is_md5": False},
    ]
)


def raw_of(hour: dict[str, bytes]) -> dict[str, bytes]:
    return {RAW + name: body for name, body in hour.items()}


def verify(store: FakeStore, hour: dict[str, bytes], stream: Stream) -> dict[str, Any]:
    return verify_compressed_hour(
        raw_of(hour), lambda name: store.body(AGGREGATED + name), ensure_newline=stream.ensure_newline
    )


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of up to 50 bytes."""
    monkeypatch.setattr(compression, "FRAME_BYTES", 50)


@pytest.mark.slow
@given(
    hour=hours,
    options=stores,
    settings=st.fixed_dictionaries(
        {
            "compression": st.sampled_from(FORMATS),
            "part_size": st.integers(1, 200),
            "ensure_newline": st.booleans(),
            "max_shards": st.integers(1, 3),
        }
    ),
    frame_bytes=st.integers(1, 100),
    largest=st.integers(20, 100),
    threads=st.sampled_from([0, 2]),
)
def test_any_hour_is_compressed_completely(
    hour: dict[str, bytes],
    options: dict[str, Any],
    settings: dict[str, Any],
    frame_bytes: int,
    largest: int,
    threads: int,
) -> None:
    store = FakeStore(**options, threads=threads)
    stream = make_stream(**settings)
    produce(store, hour, md5_etag=options.get("etag_is_md5", True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "FRAME_BYTES", frame_bytes)
        patch.setattr(compression, "LARGEST_FRAME_BYTES", largest)
        totals = run_hour(store, stream)
        if any(len(body) >= min(largest, stream.part_size) for body in hour.values()):
            # Those are copied, so they get no newline; the verifier does not know which.
            assert totals.bytes_in == sum(map(len, hour.values()))
        else:
            verify(store, hour, stream)
        written = parts(store)
        run_hour(store, stream)
        assert parts(store) == written
        assert verify_hour(store, stream, HOUR, deep=True).problems == []
        for key, body in raw_of(hour).items():
            assert b"".join(read_object(store, locate(store, stream, key))) == body


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("small_frames")
def test_one_request_for_a_frame_reads_an_object(name: str) -> None:
    store, stream = FakeStore(), make_stream(compression=name, part_size=1000)
    hour = {f"{number:02d}.log": f"line {number}\n".encode() * 3 for number in range(12)}
    produce(store, hour)
    run_hour(store, stream)
    header = verify(store, hour, stream)
    assert len(header["parts_table"]) == 1
    found = locate(store, stream, RAW + "07.log")
    frame = found.place.frame
    assert frame is not None
    body = store.body(found.part.key)[found.place.frame_offset :][: frame.size]
    assert hour["07.log"] in decompress(name, body)
    assert len(body) < len(store.body(found.part.key)) / 2


def test_compressed_and_unknown_objects_keep_their_bytes() -> None:
    store, stream = FakeStore(), make_stream(compression="zstd")
    produce(store, {"a.log": b"plain\n", "b.gz": b"not really gzip", "c.snappy": b"s", "d.parquet": b"p"})
    stream = stream.model_copy(update={"unjoinable": "copy"})
    run_hour(store, stream)
    found = {name.partition(".log")[2]: body for name, body in parts(store).items()}
    assert decompress("zstd", found.pop(".zst")) == b"plain\n"
    assert found == {".gz": b"not really gzip", ".snappy": b"s", ".parquet": b"p"}


def test_object_that_is_too_large_for_a_frame_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "LARGEST_FRAME_BYTES", 40)
    store, stream = FakeStore(), make_stream(compression="zstd", part_size=1000)
    produce(store, {"a.log": b"a\n", "b.log": b"b" * 41, "c.log": b"c\n"})
    run_hour(store, stream)
    # In the order of the keys.
    assert [decompress("zstd", body) if b"\x28\xb5" in body else body for body in parts(store).values()] == [
        b"a\n", b"b" * 41, b"c\n",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_frame_that_decompresses_wrongly_is_not_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = type(codec_of(name))
    right = codec.compress
    monkeypatch.setattr(codec, "compress", lambda self, _: right(self, memoryview(b"wrong")))
    store, stream = FakeStore(), make_stream(compression=name)
    produce(store, {"a.log": b"right"})
    (ref,) = plan_hour(store, stream, HOUR, "a run").shards
    with pytest.raises(ChangedBufferError, match="does not decompress to the bytes that were received"):
        pack_shard(store, stream, ref)
    assert parts(store) == {}
    assert_not_complete(store)


@pytest.mark.parametrize("change", ["version", "level", "none"])
def test_worker_with_another_codec_packs_nothing(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, stream = FakeStore(), make_stream(compression="zstd")
    produce(store, {"a.log": b"a"})
    (ref,) = plan_hour(store, stream, HOUR, "a run").shards
    if change == "version":
        monkeypatch.setattr(Zstd, "version", "0.0.1")
    else:
        changes: dict[str, dict[str, Any]] = {
            "level": {"compression_level": 9},
            "none": {"compression": "none"},
        }
        stream = stream.model_copy(update=changes[change])
    with pytest.raises(ConfigurationError, match="other settings or another version of the compression"):
        pack_shard(store, stream, ref)
    assert parts(store) == {}


def test_other_compression_gives_parts_of_other_names() -> None:
    store, hour = FakeStore(), {"a.log": b"a\n" * 20}
    produce(store, hour)
    names = []
    for settings in ({}, {"compression": "zstd"}, {"compression": "zstd", "compression_level": 9}):
        run_hour(store, make_stream(**settings), repack=True)
        (name,) = parts(store)
        names.append(name)
    assert len(set(names)) == 3


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("small_frames")
def test_damaged_frame_is_found_by_verify_and_cat(name: str) -> None:
    store, stream = FakeStore(), make_stream(compression=name, part_size=1000)
    produce(store, {f"{number}.log": f"line {number}\n".encode() * 4 for number in range(5)})
    run_hour(store, stream)
    store.corrupt(part_key(store, 0), keep_etag=True)
    (problem,) = verify_hour(store, stream, HOUR, deep=True).problems
    assert "frame" in problem.reason
    found = [locate(store, stream, f"{RAW}{number}.log") for number in range(5)]
    with pytest.raises(ProofError, match="frame"):
        _read = [list(read_object(store, one)) for one in found]


@pytest.mark.parametrize("codec", [Zstd(3), Gzip(6)], ids=FORMATS)
def test_more_than_the_stated_content_is_not_decompressed(codec: compression.Codec) -> None:
    bomb = codec.compress(memoryview(bytes(10_000_000)))
    with pytest.raises(ValueError, match="bytes of content"):
        codec.decompress(bomb, 1000)
    for end in (1, 10, len(bomb) - 1):
        with pytest.raises(ValueError, match="frame"):
            codec.decompress(bomb[:end], 10_000_000)
    with pytest.raises(ValueError, match="frame"):
        codec.decompress(bomb + bomb, 10_000_000)


@pytest.mark.usefixtures("small_frames")
def test_gzip_command_reads_a_part() -> None:
    store, stream = FakeStore(), make_stream(compression="gzip", part_size=1000)
    hour = {f"{number:02d}.log": f"line {number}\n".encode() * 3 for number in range(12)}
    produce(store, hour)
    run_hour(store, stream)
    (body,) = parts(store).values()
    done = subprocess.run(["gzip", "-dc"], input=body, capture_output=True, check=True)
    assert done.stdout == b"".join(hour.values())
