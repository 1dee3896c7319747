"""JSON and gzip of the records. Reading is bounded, because a damaged record may decompress to any size."""

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from include.log_rollup.units import MIB

LONGEST_LINE_BYTES = 64 * MIB
_PIECE_BYTES = MIB

# All errors that reading a damaged record, or a record of another shape, can raise.
DAMAGED_ERRORS = (
    OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError, RecursionError,
)  # fmt: skip


def to_json(value: Any) -> str:
    """Return compact JSON; keys stay readable, without ``\\u`` escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def new_compressor() -> "zlib._Compress":
    """Return a compressor for one gzip member. Its header has no time and no name: equal content, equal bytes."""
    return zlib.compressobj(level=4, wbits=zlib.MAX_WBITS | 16)


def new_decompressor() -> "zlib._Decompress":
    """Return a decompressor for one gzip member."""
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def compress_text(text: str) -> bytes:
    """Return one gzip member with this text."""
    compressor = new_compressor()
    return compressor.compress(text.encode()) + compressor.flush()


def decompress(body: bytes, limit: int) -> bytes:
    """Return the content of gzip members.

    :param limit: maximum size of the content, in bytes
    :raises ValueError: if it is larger
    :raises zlib.error: if they are damaged
    :raises EOFError: if the last one is cut short
    """
    pieces = []
    size = 0
    for piece in decompress_pieces((body,)):
        size += len(piece)
        if size > limit:
            raise ValueError(f"it decompresses to more than {limit:,} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def decompress_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of gzip members, in pieces of at most 1 MiB.

    :param pieces: the members, cut anywhere
    :raises zlib.error: if they are damaged
    :raises EOFError: if the last one is cut short
    """
    rest = iter(pieces)
    piece, position = b"", 0
    decompressor = None
    while True:
        data = decompressor.unconsumed_tail if decompressor is not None else b""
        if not data:
            if position == len(piece):
                piece, position = next(rest, b""), 0
            if decompressor is None:
                if not piece:
                    return
                decompressor = new_decompressor()
            data = piece[position : position + _PIECE_BYTES]
            position += len(data)
        assert decompressor is not None
        content = decompressor.decompress(data, _PIECE_BYTES)
        if content:
            yield content
        elif not data and not decompressor.eof:
            raise EOFError("it is cut short")
        if decompressor.eof:
            # The next member begins within the bytes that were read already.
            position -= len(decompressor.unused_data)
            decompressor = None


def decompress_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of gzip members, without their newlines.

    :raises ValueError: if a line is longer than 64 MiB
    :raises zlib.error: if the members are damaged
    :raises EOFError: if the last one is cut short
    """
    # Not splitlines(): it also splits at characters that a key may contain.
    begun = b""
    for piece in decompress_pieces(pieces):
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
