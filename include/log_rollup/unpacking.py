"""Whether a compressed object can be unpacked to its end, without keeping what it unpacks to."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import lz4.frame
import zstandard

from include.log_rollup.units import KIB, MIB

# At a time, of an object and of what it unpacks to: a small object may unpack to gigabytes.
_PIECE_BYTES = MIB
# Of a frame at first: an object may have thousands of small frames, and what is behind a frame is copied twice.
_FIRST_PIECE_BYTES = 4 * KIB
# What unpacking may keep of what it has unpacked: as much as the zstd command allows without an option.
_WINDOW_BYTES = 128 * MIB
# The xz format allows zeros behind a stream, in multiples of so many bytes. Readers of gzip stop at zeros, so they
# do not read what follows in the part.
_PADDING = {".xz": 4}


class _Unpacker(Protocol):
    """What the decompressors of bz2 and lzma have in common; others are wrapped to fit."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._unpacker.eof

    @property
    def needs_input(self) -> bool:
        return not self._unpacker.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._unpacker.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._unpacker.decompress(self._unpacker.unconsumed_tail or data, max_length)


class _Lz4:
    def __init__(self) -> None:
        self._unpacker = lz4.frame.LZ4FrameDecompressor()

    @property
    def eof(self) -> bool:
        return bool(self._unpacker.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._unpacker.needs_input)

    @property
    def unused_data(self) -> bytes:
        return self._unpacker.unused_data or b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return bytes(self._unpacker.decompress(data, max_length))


_UNPACKERS: dict[str, Callable[[], _Unpacker]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW_BYTES),
    ".lz4": _Lz4,
}
# The encodings that can be checked; those that S3 objects are joined in are among them.
CHECKED_ENCODINGS = frozenset({*_UNPACKERS, ".zst"})
_CUT_OFF = "it is cut off before the end of the last frame"
# The longest header of a frame, and the type of a block that is one byte, repeated (RFC 8878, 3.1.1).
_ZSTD_HEADER_BYTES = 18
_REPEATED_BYTE = 1
_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def why_damaged(encoding: str, body: memoryview) -> str | None:
    """Why an object cannot be unpacked to its end; None if it can, or if its encoding is not checked.

    Zeros behind the last stream of xz count as padding. What is unpacked is dropped, a piece at a time. A
    frame that takes more than 128 MiB to unpack, or a zstd dictionary, counts as intact; of zstd at least its
    length is checked.

    :param encoding: as :func:`include.log_rollup.hour.plan.encoding_of` has it
    """
    if not body or encoding not in CHECKED_ENCODINGS:
        return None
    try:
        if encoding == ".zst":
            _unpack_zstd(body)
        else:
            _unpack(encoding, body)
    except _ERRORS as error:
        if isinstance(error, lzma.LZMAError) and "Memory usage limit" in str(error):
            return None
        return str(error) or type(error).__name__
    return None


def _unpack(encoding: str, body: memoryview) -> None:
    position = 0
    while position < len(body):
        if position and _is_padding(encoding, body[position:]):
            return
        unpacker = _UNPACKERS[encoding]()
        size = _FIRST_PIECE_BYTES
        while not unpacker.eof:
            hungry = unpacker.needs_input
            data = bytes(body[position : position + size]) if hungry else b""
            position += len(data)
            size = min(2 * size, _PIECE_BYTES)
            unpacked = unpacker.decompress(data, _PIECE_BYTES)
            if hungry and not data and not unpacked and not unpacker.eof:
                raise EOFError(_CUT_OFF)
        position -= len(unpacker.unused_data)


def _is_padding(encoding: str, rest: memoryview) -> bool:
    multiple = _PADDING.get(encoding)
    if multiple is None or len(rest) % multiple or rest[0]:
        return False
    return not any(
        bytes(rest[start : start + _PIECE_BYTES]).strip(b"\0") for start in range(0, len(rest), _PIECE_BYTES)
    )


class _Nowhere(io.BytesIO):
    """Keeps nothing of what is written to it."""

    def write(self, data: Any, /) -> int:
        return len(data)


def _unpack_zstd(body: memoryview) -> None:
    # This writes what it unpacks in small pieces; the library's other ways return all of it at once, or do not
    # say whether a frame has ended.
    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    position = 0
    while position < len(body):
        rest = body[position:]
        size = _skippable_size(rest)
        if not size:
            parameters = zstandard.get_frame_parameters(rest[:_ZSTD_HEADER_BYTES])
            size = _frame_size(rest, parameters)
            if not parameters.dict_id and parameters.window_size <= _WINDOW_BYTES:
                unpacker.stream_writer(_Nowhere()).write(rest[:size])
        position += size


def _frame_size(rest: memoryview, parameters: zstandard.FrameParameters) -> int:
    """The size of the zstd frame (RFC 8878, 3.1.1) that begins here, by the sizes of its blocks."""
    end = zstandard.frame_header_size(rest[:_ZSTD_HEADER_BYTES])
    last = False
    while not last:
        if end + 3 > len(rest):
            raise EOFError(_CUT_OFF)
        header = int.from_bytes(rest[end : end + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        end += 3 + (1 if kind == _REPEATED_BYTE else size)
    if parameters.has_checksum:
        end += 4
    if end > len(rest):
        raise EOFError(_CUT_OFF)
    return end


def _skippable_size(rest: memoryview) -> int:
    """The size of the skippable frame (RFC 8878, 3.1.2) that begins here; 0 if none does."""
    if bytes(rest[1:4]) != b"\x2a\x4d\x18" or rest[0] & 0xF0 != 0x50:
        return 0
    size = 8 + int.from_bytes(rest[4:8], "little")
    if len(rest) < 8 or size > len(rest):
        raise EOFError("it is cut off within a skippable frame")
    return size
