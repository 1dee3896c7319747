"""Compresses the content of parts, frame by frame.

A compressed part is a sequence of frames: zstd frames (RFC 8878) or gzip members (RFC 1952). Each frame holds
whole raw objects end to end, so one ranged GET and the decompression of one frame return any of them. Readers that
know nothing of frames decompress the part as a whole.
"""

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import zstandard

from include.log_rollup.decompression import WINDOW_BYTES
from include.log_rollup.units import MIB

Compression = Literal["none", "zstd", "gzip"]

FRAME_BYTES = 6 * MIB
"""A frame is closed before its content exceeds this size. benchmarks/README.md shows what other sizes give."""
LARGEST_FRAME_BYTES = 32 * MIB
"""The largest raw object that is compressed, in a frame of its own: a task holds a few frames in memory. It also
bounds the content of a recompressed object."""
PLANNED_RATIO = 8
"""How many times as large the content of a recompressed object is assumed to be when parts are planned. Logs
compressed one by one have a ratio of 5 to 15."""
LARGEST_RECOMPRESSED_BYTES = 2 * MIB
"""The largest compressed object that is recompressed: with a ratio of 16, its content has LARGEST_FRAME_BYTES."""
RECOMPRESSION_FORMAT = 1
"""Increase it when other objects are recompressed, or the same ones into other frames: it is in fingerprints."""


class Codec(ABC):
    """Compresses and decompresses frames; can be used from several threads.

    :param level: of the format
    """

    extension: str
    version: str

    def __init__(self, level: int) -> None:
        self._level = level

    def describe(self) -> str:
        """What decides the bytes of a frame besides its content: format, level and version of the library."""
        return f"{self.extension} {self._level} {self.version}"

    @abstractmethod
    def compress(self, content: memoryview) -> bytes:
        """Return one frame."""

    @staticmethod
    @abstractmethod
    def decompress(frame: bytes | memoryview, size: int) -> bytes:
        """Return the content of one frame.

        :param size: of the content, in bytes; more is never decompressed
        :raises ValueError: if the frame is damaged, or its content has another size
        """

    def trailer(self, frames: Iterable[tuple[int, int]]) -> bytes:
        """Bytes to write after the last frame, which readers ignore.

        :param frames: size of each frame and of its content, in bytes
        """
        return b""


class Zstd(Codec):
    """Zstandard frames, each with its content's size and checksum, and the seek table of the seekable format.

    No frame needs a window of more than 8 MiB, which each decoder has to support (RFC 8878, section 3.1.1.1.2).

    https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md
    """

    extension = ".zst"
    # As large as a frame, so that its objects can repeat each other. Level 3 would use 2 MiB.
    _window_log = 23
    version = f"{'.'.join(map(str, zstandard.ZSTD_VERSION))} window {_window_log}"

    def compress(self, content: memoryview) -> bytes:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            self._level, source_size=len(content), window_log=self._window_log, write_checksum=True
        )
        # A compressor cannot be shared between threads. Making one takes a thousandth of the time of a frame.
        frame = zstandard.ZstdCompressor(compression_params=parameters).compress(content)
        # The library allocates as much as the content and shrinks it, which leaves a hole of some MiB next to each
        # frame that is kept. Copying the frames of a part of 256 MiB saves 100 MiB of memory.
        return bytes(memoryview(frame))

    @staticmethod
    def decompress(frame: bytes | memoryview, size: int) -> bytes:
        try:
            stated = zstandard.get_frame_parameters(frame).content_size
            if stated != size:
                raise ValueError(f"the frame states {stated:,} bytes of content, not {size:,}")
            decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
            return decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"the frame cannot be decompressed: {error}") from None

    def trailer(self, frames: Iterable[tuple[int, int]]) -> bytes:
        entries = [struct.pack("<II", *sizes) for sizes in frames]
        footer = struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)
        body = b"".join((*entries, footer))
        return struct.pack("<II", 0x184D2A5E, len(body)) + body


class Gzip(Codec):
    """Gzip members without name and time.

    By zlib, which writes the same bytes on every CPU; the faster isal and zlib-ng do not.
    """

    extension = ".gz"
    version = zlib.ZLIB_RUNTIME_VERSION

    def compress(self, content: memoryview) -> bytes:
        compressor = zlib.compressobj(self._level, wbits=zlib.MAX_WBITS | 16)
        return compressor.compress(content) + compressor.flush()

    @staticmethod
    def decompress(frame: bytes | memoryview, size: int) -> bytes:
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            # One byte more than expected, to notice a longer content. 0 would mean no limit.
            content = decompressor.decompress(frame, size + 1)
        except zlib.error as error:
            raise ValueError(f"the frame cannot be decompressed: {error}") from None
        if len(content) != size or not decompressor.eof or decompressor.unused_data:
            raise ValueError(f"the frame does not have exactly {size:,} bytes of content")
        return content


@dataclass(frozen=True, slots=True)
class _Format:
    codec: type[Codec]
    levels: range
    default_level: int


_FORMATS: Mapping[str, _Format] = {
    "zstd": _Format(Zstd, range(1, 20), 3),
    "gzip": _Format(Gzip, range(1, 10), 6),
}
COMPRESSIONS = frozenset(_FORMATS)
"""The formats in which parts can be compressed."""


def codec_of(compression: str, level: int | None = None) -> Codec:
    """The codec of a format.

    :param compression: ``zstd`` or ``gzip``
    :param level: None for the default: 3 for zstd, 6 for gzip
    :raises ValueError: if the level is out of range
    """
    found = _FORMATS[compression]
    if level is not None and level not in found.levels:
        raise ValueError(
            f"compression_level: {level} is out of range; give {found.levels[0]} to {found.levels[-1]} for "
            f"{compression}"
        )
    return found.codec(found.default_level if level is None else level)
