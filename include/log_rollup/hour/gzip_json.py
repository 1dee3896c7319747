"""JSON and gzip as the records use them; reading is bounded, because a damaged record may unpack to any size."""

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from include.log_rollup.units import MIB

LONGEST_LINE_BYTES = 64 * MIB
_PIECE_BYTES = MIB

# Everything that reading a damaged record, or one of another shape, can raise.
DAMAGED_ERRORS = (
    OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError, RecursionError,
)  # fmt: skip


def to_json(value: Any) -> str:
    """Compact JSON; keys stay readable, without ``\\u`` escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def compressor() -> "zlib._Compress":
    """A compressor for one gzip member. Its header has no time and no name: equal content gives equal bytes."""
    return zlib.compressobj(level=4, wbits=zlib.MAX_WBITS | 16)


def decompressor() -> "zlib._Decompress":
    """A decompressor for one gzip member."""
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def zip_text(text: str) -> bytes:
    """One gzip member with this text."""
    packer = compressor()
    return packer.compress(text.encode()) + packer.flush()


def unzip(body: bytes, limit: int) -> bytes:
    """The content of gzip members.

    :param limit: maximum size of the content, in bytes
    :raises ValueError: if it is larger
    :raises zlib.error: if they are damaged
    :raises EOFError: if the last one is cut short
    """
    pieces = []
    size = 0
    for piece in unzip_pieces((body,)):
        size += len(piece)
        if size > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def unzip_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The content of gzip members, in pieces of at most 1 MiB.

    :param pieces: the members, cut anywhere
    :raises zlib.error: if they are damaged
    :raises EOFError: if the last one is cut short
    """
    rest = iter(pieces)
    piece, position = b"", 0
    unpacker = None
    while True:
        packed = unpacker.unconsumed_tail if unpacker is not None else b""
        if not packed:
            if position == len(piece):
                piece, position = next(rest, b""), 0
            if unpacker is None:
                if not piece:
                    return
                unpacker = decompressor()
            packed = piece[position : position + _PIECE_BYTES]
            position += len(packed)
        assert unpacker is not None
        unpacked = unpacker.decompress(packed, _PIECE_BYTES)
        if unpacked:
            yield unpacked
        elif not packed and not unpacker.eof:
            raise EOFError("it is cut short")
        if unpacker.eof:
            # The next member begins within the bytes that were read already.
            position -= len(unpacker.unused_data)
            unpacker = None


def unzip_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of gzip members, without their newlines.

    :raises ValueError: if a line is longer than 64 MiB
    :raises zlib.error: if the members are damaged
    :raises EOFError: if the last one is cut short
    """
    # Not splitlines(): it also splits at characters that a key may contain.
    begun = b""
    for piece in unzip_pieces(pieces):
        *lines, rest = piece.split(b"\n")
        if lines:
            yield begun + lines[0]
            yield from lines[1:]
            begun = rest
        else:
            begun += rest
        if len(begun) > LONGEST_LINE_BYTES:
            raise ValueError(f"a line is longer than {LONGEST_LINE_BYTES:,} bytes")
    if begun:
        yield begun
