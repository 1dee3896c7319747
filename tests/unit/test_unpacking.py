"""A compressed object is unpacked to its end, or the reason why it cannot be is given, in little memory."""

import bz2
import gzip
import lzma
import tracemalloc
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.plan import ENCODINGS
from include.log_rollup.units import MIB
from include.log_rollup.unpacking import CHECKED_ENCODINGS, LARGEST_WINDOW_BYTES, why_damaged


def _lz4(body: bytes) -> bytes:
    return bytes(lz4.frame.compress(body, content_checksum=True))


def _zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(body)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lz4": _lz4,
    ".zst": _zstd,
}
kinds = pytest.mark.parametrize("encoding", PACKERS)


def why(encoding: str, body: bytes) -> str | None:
    return why_damaged(encoding, memoryview(body))


def test_every_encoding_that_can_be_joined_is_checked() -> None:
    assert set(ENCODINGS) == set(CHECKED_ENCODINGS) == set(PACKERS)


@kinds
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_whole_objects_of_several_frames_are_fine(encoding: str, frames: list[bytes]) -> None:
    assert why(encoding, b"".join(map(PACKERS[encoding], frames))) is None


@kinds
@given(st.binary(min_size=1, max_size=300), st.integers(1, 10**6), st.booleans())
def test_an_object_that_was_cut_off_is_damaged(encoding: str, content: bytes, cut: int, second: bool) -> None:
    frame = PACKERS[encoding](content)
    whole = frame * 2 if second else frame
    left = len(whole) - 1 - cut % (len(whole) - 1)
    # Cut between two frames, it is a whole object.
    assert (why(encoding, whole[:left]) is None) == (left == len(frame))


@kinds
@given(content=st.binary(min_size=20, max_size=300), place=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_a_changed_byte_of_the_content_is_found(encoding: str, content: bytes, place: int, mask: int) -> None:
    body = bytearray(PACKERS[encoding](content))
    # Behind the header, some of whose bytes mean nothing, and before what a decoder need not read.
    begin, end = 10, len(body) - 4
    body[begin + place % (end - begin)] ^= mask
    damage = why(encoding, bytes(body))
    if damage is None:
        # Bits that no decoder looks at: what comes out is right.
        assert _unpacked(encoding, bytes(body)) == content


def _unpacked(encoding: str, body: bytes) -> bytes:
    match encoding:
        case ".gz":
            return gzip.decompress(body)
        case ".bz2":
            return bz2.decompress(body)
        case ".xz":
            return lzma.decompress(body)
        case ".lz4":
            return bytes(lz4.frame.decompress(body))
        case _:
            return zstandard.ZstdDecompressor().decompressobj().decompress(body)


@kinds
@pytest.mark.parametrize("body", [b"plain text, not packed at all", b"\x00" * 40, b"\x1f"])
def test_what_is_not_packed_at_all_is_damaged(encoding: str, body: bytes) -> None:
    assert why(encoding, body)


@kinds
def test_garbage_behind_the_last_frame_is_damaged(encoding: str) -> None:
    assert why(encoding, PACKERS[encoding](b"content") + b"garbage behind the end")


@pytest.mark.parametrize("encoding", [".gz", ".bz2", ".xz", ".lz4"])
def test_zeros_behind_the_last_frame_are_padding(encoding: str) -> None:
    assert why(encoding, PACKERS[encoding](b"content") + b"\x00" * 512) is None


def test_skippable_frames_of_zstandard_are_passed_over() -> None:
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    assert why(".zst", _zstd(b"one") + skippable + _zstd(b"two")) is None
    assert why(".zst", skippable + _zstd(b"one")) is None
    assert "skippable" in (why(".zst", _zstd(b"one") + skippable[:-1]) or "")


def test_a_frame_of_zstandard_with_a_large_window_is_counted() -> None:
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    ).compressobj()
    body = packer.compress(b"content" * 99) + packer.flush()
    assert zstandard.get_frame_parameters(body).window_size > LARGEST_WINDOW_BYTES
    assert why(".zst", body) is None
    assert why(".zst", body + body) is None
    assert "cut off" in (why(".zst", body[:-1]) or "")


@pytest.mark.parametrize("encoding", ["", ".snappy", ".zz", ".br", ".log"])
def test_other_encodings_are_not_checked(encoding: str) -> None:
    assert why(encoding, b"anything") is None


@kinds
def test_an_empty_object_is_fine(encoding: str) -> None:
    assert why(encoding, b"") is None


@kinds
def test_a_bomb_is_unpacked_in_little_memory(encoding: str) -> None:
    body = PACKERS[encoding](b"0" * 64 * MIB)
    tracemalloc.start()
    try:
        assert why(encoding, body) is None
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
