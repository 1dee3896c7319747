"""Whether a newline belongs after an object in a part, found by decompressing it frame by frame."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import lz4.frame
import zstandard

NEWLINE_BYTES: Mapping[str, int] = {"": 1, ".gz": 21, ".zst": 10, ".bz2": 37, ".xz": 56, ".lz4": 24}
"""Size of the newline of each encoding."""

_DECOMPRESSORS: Mapping[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    ".lz4": lz4.frame.LZ4FrameDecompressor,
}
_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def content_of(encoding: str, body: bytes) -> bytes:
    """The content of all frames of an object, or of a part.

    :raises Exception: of the library, if it is damaged
    :raises EOFError: if it is cut off
    """
    if not encoding:
        return body
    content = b""
    while body:
        frame = _DECOMPRESSORS[encoding]()
        content += frame.decompress(body)
        if not frame.eof:
            raise EOFError
        body = frame.unused_data or b""
    return content


def lacks_newline(encoding: str, body: bytes) -> bool:
    """Whether the content of an object has a last line without a newline; False if it is damaged."""
    if encoding not in NEWLINE_BYTES:
        return False
    try:
        return content_of(encoding, body)[-1:] not in (b"", b"\n")
    except _ERRORS:
        return False
