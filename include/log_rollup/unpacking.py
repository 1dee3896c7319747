"""Whether a compressed object can be unpacked to its end, without keeping what it unpacks to."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

import lz4.frame
import zstandard

from include.log_rollup.units import MIB

# What the command zstd unpacks without being asked to take more memory; of a frame that needs more, only the
# blocks are counted.
LARGEST_WINDOW_BYTES = 128 * MIB
# At a time, of what an object unpacks to: a small object may unpack to gigabytes.
_PIECE_BYTES = MIB


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
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    ".lz4": _Lz4,
}
# The encodings that can be checked; those that S3 objects are joined in are among them.
CHECKED_ENCODINGS = frozenset({*_UNPACKERS, ".zst"})
_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def why_damaged(encoding: str, body: memoryview) -> str | None:
    """Why an object cannot be unpacked to its end; None if it can, or if its encoding is not checked.

    Zeros behind the last frame count as padding. What is unpacked is dropped, a piece at a time.

    :param encoding: as :func:`include.log_rollup.plan.encoding_of` has it
    """
    if not body or encoding not in CHECKED_ENCODINGS:
        return None
    try:
        if encoding == ".zst":
            _unpack_zstd(body)
        else:
            _unpack(_UNPACKERS[encoding], body)
    except _ERRORS as error:
        return str(error) or type(error).__name__
    return None


def _unpack(make: Callable[[], _Unpacker], body: memoryview) -> None:
    position = 0
    while position < len(body):
        unpacker = make()
        while not unpacker.eof:
            data = b""
            if unpacker.needs_input:
                data = bytes(body[position : position + _PIECE_BYTES])
                position += len(data)
            if not unpacker.decompress(data, _PIECE_BYTES) and not data and not unpacker.eof:
                raise EOFError("it is cut off before the end of the last frame")
        position -= len(unpacker.unused_data)
        if not any(body[position : position + _PIECE_BYTES]):
            return


def _unpack_zstd(body: memoryview) -> None:
    position = 0
    while position < len(body):
        size = _skippable_size(body[position:])
        if not size:
            size = _zstd_frame_size(body[position:])
            frame = body[position : position + size]
            if zstandard.get_frame_parameters(frame).window_size <= LARGEST_WINDOW_BYTES:
                # Neither of its other decoders has a limit on what it returns at a time.
                with zstandard.ZstdDecompressor().stream_reader(frame) as reader:
                    piece = bytearray(_PIECE_BYTES)
                    while reader.readinto(piece):
                        pass
        position += size


def _zstd_frame_size(rest: memoryview) -> int:
    """The size of the frame that begins here, by its header and those of its blocks (RFC 8878, 3.1.1)."""
    header = bytes(rest[:32])
    position = zstandard.frame_header_size(header)
    checksum = 4 if zstandard.get_frame_parameters(header).has_checksum else 0
    last = False
    while not last:
        block = int.from_bytes(rest[position : position + 3], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        # A block of one byte that is repeated holds that byte alone.
        position += 3 + (1 if kind == 1 else size)
        if position > len(rest) - (checksum if last else 1):
            raise EOFError("it is cut off before the end of the last frame")
    return position + checksum


def _skippable_size(rest: memoryview) -> int:
    """The size of the skippable frame (RFC 8878, 3.1.2) that begins here; 0 if none does."""
    if len(rest) < 8 or bytes(rest[1:4]) != b"\x2a\x4d\x18" or rest[0] & 0xF0 != 0x50:
        return 0
    size = 8 + int.from_bytes(rest[4:8], "little")
    if size > len(rest):
        raise EOFError("it is cut off within a skippable frame")
    return size
