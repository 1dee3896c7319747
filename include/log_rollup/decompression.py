"""Decompresses compressed objects piece by piece, to inspect them or to read their content."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import lz4.frame
import zstandard

from include.log_rollup.units import KIB, MIB

# The most input and output of one step: a small object may decompress to gigabytes.
_PIECE_BYTES = MIB
# The input of a frame's first step. It is small because an object may have thousands of small frames, and the
# decompressor copies what follows the frame twice.
_FIRST_PIECE_BYTES = 4 * KIB
# The most memory for a frame's window, as the zstd command allows without an option.
WINDOW_BYTES = 128 * MIB
# The xz format allows zeros after a stream, also between streams, in multiples of this many bytes (xz file format,
# 2.2). Gzip readers stop at zeros and would not read the objects that follow in the part, so for gzip zeros are
# damage.
_PADDING = {".xz": 4}
_XZ_MAGIC = b"\xfd7zXZ\0"


class _Decompressor(Protocol):
    """The interface of the decompressors of bz2 and lzma; others are wrapped to fit."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._decompressor.eof

    @property
    def needs_input(self) -> bool:
        return not self._decompressor.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decompressor.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decompressor.decompress(self._decompressor.unconsumed_tail or data, max_length)


class _Lz4:
    def __init__(self) -> None:
        self._decompressor = lz4.frame.LZ4FrameDecompressor()

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._decompressor.needs_input)

    @property
    def unused_data(self) -> bytes:
        return self._decompressor.unused_data or b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return bytes(self._decompressor.decompress(data, max_length))


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_BYTES),
    ".lz4": _Lz4,
}
COMPRESSED_ENCODINGS = frozenset({*_DECOMPRESSORS, ".zst"})
"""The encodings that :func:`inspect` decompresses."""
_CUT_OFF = "it is cut off before the end of the last frame"
# The longest header of a zstd frame, and the type of a block that is one byte, repeated (RFC 8878, 3.1.1).
_ZSTD_HEADER_BYTES = 18
_ZSTD_RLE_BLOCK = 1
_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What decompressing an object has shown.

    :param damage: why it cannot be decompressed; None if it can, or if its encoding is not supported
    :param lacks_newline: whether its content has a last line without a newline
    """

    damage: str | None = None
    lacks_newline: bool = False


def inspect(encoding: str, body: memoryview) -> Inspection:
    """Decompress an object to its end, piece by piece.

    Zeros after a stream of xz count as padding. A frame that needs more than 128 MiB of memory or a zstd
    dictionary counts as intact; of such a zstd frame only the length is checked. How an object ends is unknown if
    its last frame is of this kind; it then counts as ending with a newline.

    :param encoding: as :func:`include.log_rollup.hour.selection.encoding_of` returns it
    """
    if not body or encoding not in COMPRESSED_ENCODINGS:
        return Inspection()
    try:
        last = _decompress_zstd(body) if encoding == ".zst" else _decompress(encoding, body)
    except _ERRORS as error:
        if isinstance(error, lzma.LZMAError) and "Memory usage limit" in str(error):
            return Inspection()
        return Inspection(str(error) or type(error).__name__)
    return Inspection(lacks_newline=last not in (b"", b"\n"))


def _decompress(encoding: str, body: memoryview) -> bytes:
    """The last byte of the content; empty if there is none."""
    last = b""
    position = 0
    while position < len(body):
        if position and encoding in _PADDING and not body[position]:
            size = _count_zeros(body[position:])
            position += size
            _check_padding(encoding, size, body[position:])
            continue
        decompressor = _DECOMPRESSORS[encoding]()
        size = _FIRST_PIECE_BYTES
        while not decompressor.eof:
            needs_input = decompressor.needs_input
            data = bytes(body[position : position + size]) if needs_input else b""
            position += len(data)
            size = min(2 * size, _PIECE_BYTES)
            output = decompressor.decompress(data, _PIECE_BYTES)
            last = output[-1:] or last
            if needs_input and not data and not output and not decompressor.eof:
                raise EOFError(_CUT_OFF)
        position -= len(decompressor.unused_data)
    return last


def _count_zeros(rest: memoryview) -> int:
    """How many zeros it begins with."""
    start, size = 0, _FIRST_PIECE_BYTES
    while piece := bytes(rest[start : start + size]):
        behind = len(piece.lstrip(b"\0"))
        if behind:
            return start + len(piece) - behind
        start, size = start + size, min(2 * size, _PIECE_BYTES)
    return len(rest)


def _check_padding(encoding: str, size: int, following: bytes | memoryview) -> None:
    """Compare zeros after a stream, and what follows them, with what the format says.

    :param following: at least the first byte behind the zeros; empty at the end of the object
    :raises ValueError: if this is damage
    """
    multiple = _PADDING[encoding]
    if following and following[0] != _XZ_MAGIC[0]:
        raise ValueError("there is something else after its last stream")
    if size % multiple:
        raise ValueError(f"the padding after a stream is not a multiple of {multiple} bytes")


class _LastByte(io.BytesIO):
    """A file that keeps only the last byte of what is written to it."""

    last = b""

    def write(self, data: Any, /) -> int:
        self.last = bytes(data[-1:]) or self.last
        return len(data)


def _decompress_zstd(body: memoryview) -> bytes:
    """The last byte of the content; empty if there is none, or if it is unknown."""
    # stream_writer writes its output in small pieces. The library's other interfaces return all of it at once, or
    # don't report whether a frame has ended.
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
    content = _LastByte()
    position = 0
    while position < len(body):
        rest = body[position:]
        size = _skippable_size(rest)
        if not size:
            parameters = zstandard.get_frame_parameters(rest[:_ZSTD_HEADER_BYTES])
            size = _frame_size(rest, parameters)
            if not parameters.dict_id and parameters.window_size <= WINDOW_BYTES:
                decompressor.stream_writer(content).write(rest[:size])
            else:
                content.last = b""
        position += size
    return content.last


def _frame_size(rest: memoryview, parameters: zstandard.FrameParameters) -> int:
    """The size of the zstd frame that begins here, from the sizes of its blocks (RFC 8878, 3.1.1).

    :raises EOFError: if the frame is cut off
    """
    end = zstandard.frame_header_size(rest[:_ZSTD_HEADER_BYTES])
    last = False
    while not last:
        if end + 3 > len(rest):
            raise EOFError(_CUT_OFF)
        header = int.from_bytes(rest[end : end + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        end += 3 + (1 if kind == _ZSTD_RLE_BLOCK else size)
    if parameters.has_checksum:
        end += 4
    if end > len(rest):
        raise EOFError(_CUT_OFF)
    return end


def _skippable_size(rest: memoryview) -> int:
    """The size of the skippable frame that begins here, 0 if none does (RFC 8878, 3.1.2).

    :raises EOFError: if the frame is cut off
    """
    if bytes(rest[1:4]) != b"\x2a\x4d\x18" or rest[0] & 0xF0 != 0x50:
        return 0
    size = 8 + int.from_bytes(rest[4:8], "little")
    if len(rest) < 8 or size > len(rest):
        raise EOFError("it is cut off within a skippable frame")
    return size


# -- reading the content -----------------------------------------------------------------------------------

# A frame that fails within so many bytes is decompressed again, in steps that get smaller near the damage.
_REPEATED_BYTES = 4 * MIB
_SMALL_STEPS_BYTES = (512, 1)
# The input of one step of zstd: each 4 bytes may become a block of 128 KiB, and all output comes at once.
_ZSTD_STEP_BYTES = KIB
_MAGIC_NUMBERS = (
    (".gz", b"\x1f\x8b\x08"),
    (".zst", b"\x28\xb5\x2f\xfd"),
    (".bz2", b"BZh"),
    (".xz", _XZ_MAGIC),
    (".lz4", b"\x04\x22\x4d\x18"),
)
LONGEST_MAGIC_BYTES = 10
"""How many bytes of an object :func:`encoding_of_content` needs."""


class DamageError(ValueError):
    """Compressed content that cannot be decompressed; the message says why."""


def encoding_of_content(beginning: bytes, named: str = "") -> str:
    """The encoding of an object by its first bytes: ``.gz``, ``.zst``, …; empty if it is none of these.

    :param named: its encoding by its name, which decides if it begins with a skippable frame, as zstd and lz4 do
    """
    for encoding, magic in _MAGIC_NUMBERS:
        if beginning.startswith(magic):
            # After "BZh", which text may begin with, come the block size and a block or the end.
            is_bzip2 = beginning[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
            return encoding if encoding != ".bz2" or is_bzip2 else ""
    is_skippable_frame = beginning[1:4] == b"\x2a\x4d\x18" and beginning[0] & 0xF0 == 0x50
    if not is_skippable_frame:
        return ""
    return ".lz4" if named == ".lz4" else ".zst"


class _Zstd:
    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj()
        self._rest = memoryview(b"")

    @property
    def eof(self) -> bool:
        return self._decompressor.eof

    @property
    def needs_input(self) -> bool:
        return not self._rest

    @property
    def unused_data(self) -> bytes:
        return self._decompressor.unused_data + bytes(self._rest)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """May return more than ``max_length``: what one step returns."""
        rest = self._rest or memoryview(data)
        output, size = [], 0
        while rest and not self.eof and size < max_length:
            output.append(self._decompressor.decompress(rest[:_ZSTD_STEP_BYTES]))
            rest = rest[_ZSTD_STEP_BYTES:]
            size += len(output[-1])
        self._rest = rest
        return b"".join(output)


class _Input:
    """The pieces of an object, as one sequence of bytes."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = iter(pieces)
        self._taken_back: list[memoryview] = []

    def take(self, most: int) -> bytes:
        """The next bytes; none at the end."""
        rest = self._taken_back.pop() if self._taken_back else memoryview(b"")
        while not rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            rest = memoryview(piece)
        if len(rest) > most:
            self._taken_back.append(rest[most:])
        return bytes(rest[:most])

    def give_back(self, data: bytes) -> None:
        """Take these bytes again next time."""
        if data:
            self._taken_back.append(memoryview(data))


def decompress_pieces(encoding: str, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The content of a compressed object, in pieces of about 1 MiB.

    All frames are decompressed, as :func:`inspect` does. Content before damage is returned, except for the last
    1 MiB of it if the damaged frame has more than 4 MiB before the damage.

    :param encoding: one of :data:`COMPRESSED_ENCODINGS`
    :param pieces: the object's bytes
    :raises DamageError: if the object is damaged or cut off, or a frame needs more than 128 MiB of memory or a
        dictionary
    """
    return _decompress_pieces(encoding, pieces, up_to_damage=True)


def _decompress_pieces(
    encoding: str, pieces: Iterable[bytes | memoryview], *, up_to_damage: bool
) -> Iterator[bytes]:
    source = _Input(pieces)
    is_first = True
    try:
        while data := source.take(_FIRST_PIECE_BYTES):
            if not is_first and encoding in _PADDING and not data[0]:
                _skip_padding(encoding, data, source)
                continue
            is_first = False
            yield from _decompress_frame(encoding, data, source, up_to_damage)
    except _ERRORS as error:
        raise DamageError(str(error) or type(error).__name__) from error


def _begin_frame(encoding: str) -> _Decompressor:
    return _Zstd() if encoding == ".zst" else _DECOMPRESSORS[encoding]()


def _decompress_frame(encoding: str, data: bytes, source: _Input, up_to_damage: bool) -> Iterator[bytes]:
    """The content of the frame that begins with ``data``.

    :param up_to_damage: whether a step that fails is repeated, in small ones that return what comes before
    """
    decompressor = _begin_frame(encoding)
    size = _FIRST_PIECE_BYTES
    needs_input = True
    done = taken = 0
    steps: list[bytes] = []
    while True:
        taken += len(data)
        if up_to_damage and taken <= _REPEATED_BYTES:
            steps.append(data)
        try:
            output = decompressor.decompress(data, _PIECE_BYTES)
        except _ERRORS:
            if up_to_damage and taken <= _REPEATED_BYTES:
                yield _up_to_damage(encoding, steps, done, taken - len(data))
            raise
        if output:
            done += len(output)
            yield output
        if decompressor.eof:
            break
        if needs_input and not data and not output:
            raise EOFError(_CUT_OFF)
        needs_input = decompressor.needs_input
        size = min(2 * size, _PIECE_BYTES)
        data = source.take(size) if needs_input else b""
    source.give_back(decompressor.unused_data)


def _up_to_damage(encoding: str, steps: Sequence[bytes], done: int, taken: int) -> bytes:
    """Decompress a damaged frame again: its content before the damage that is not known yet.

    A decompressor that fails returns nothing of what it has decompressed in this step. So the steps get small
    where the unknown content begins, and smaller the second time.

    :param steps: the bytes of the frame
    :param done: how many bytes of the content are known
    :param taken: how many bytes of the frame came before the step that failed
    """
    found: list[bytes] = []
    for small in _SMALL_STEPS_BYTES:
        decompressor, source = _begin_frame(encoding), _Input(steps)
        position = end = 0
        with suppress(*_ERRORS):
            while not decompressor.eof:
                data = b""
                if needs_input := decompressor.needs_input:
                    data = source.take(_FIRST_PIECE_BYTES if end + _FIRST_PIECE_BYTES <= taken else small)
                most = _FIRST_PIECE_BYTES if position + _FIRST_PIECE_BYTES <= done else small
                end += len(data)
                output = decompressor.decompress(data, most)
                if needs_input and not data and not output:
                    break
                position += len(output)
                if position > done:
                    found.append(output[-(position - done) :])
                    done = position
        taken = max(taken, end - len(data))
    return b"".join(found)


def _skip_padding(encoding: str, data: bytes, source: _Input) -> None:
    """Read the zeros after a stream.

    :param data: the first of them
    """
    size = 0
    rest = b""
    while data and not rest:
        rest = data.lstrip(b"\0")
        size += len(data) - len(rest)
        data = source.take(_PIECE_BYTES) if not rest else b""
    _check_padding(encoding, size, rest)
    source.give_back(rest)


def decompress_object(encoding: str, body: bytes | memoryview, most: int) -> bytes:
    """The content of a compressed object.

    :param encoding: one of :data:`COMPRESSED_ENCODINGS`
    :param most: the most bytes that it may have
    :raises DamageError: if it has more, or as :func:`decompress_pieces` raises
    """
    pieces, size = [], 0
    for piece in _decompress_pieces(encoding, (body,), up_to_damage=False):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise DamageError(f"its content has more than {most:,} bytes")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
