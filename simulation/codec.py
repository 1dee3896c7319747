"""A fake codec, which can fail and differ between workers, and what a seed draws of compression.

The choices come from a random stream of their own, so that a seed without compression gives the same scenario as
before it existed.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from include.log_rollup.compression import Codec, Zstd
from include.log_rollup.streams import Stream
from simulation.hour_model import DEFAULT_LEVEL, FRAME_HEADER, FRAME_MAGIC, Packing
from simulation.scheduler import Task, running_fiber

WITH_COMPRESSION = 0.25
# Of the seeds with compression.
WITH_RECOMPRESSION = 0.5
# How much larger raw objects and parts are, so that most frames are smaller than their content.
SCALE = 4
LEVELS = (None, 1, 9)


class CodecFailureError(Exception):
    """The library fails, such as for lack of memory. It is no error of the pipeline's own."""


@dataclass(slots=True, eq=False)
class Library:
    """The compression library on the workers, and the stream's settings of it.

    :param packing: format, level and version that new tasks use
    :param formats: formats that the stream's settings may change to; empty for none
    :param frame_bytes: the content of a frame may not exceed it
    :param largest_frame_bytes: largest object that is compressed
    :param mixed: probability that a worker has another version
    :param faults: probability that the compression of a frame goes wrong
    :param changes: how often version or settings change in a round
    :param changes_at_end: whether something changes before the last phase, such as of a complete hour
    :param can_recompress: whether the stream's settings may change to recompression and back
    :param ratio: how many times as large as itself the content of a compressed object is assumed to be
    :param calm: whether nothing goes wrong
    :param on_fault: called with what goes wrong
    """

    rng: random.Random
    packing: Packing
    formats: tuple[str, ...]
    frame_bytes: int
    largest_frame_bytes: int
    mixed: float
    faults: float
    changes: int
    changes_at_end: bool
    can_recompress: bool
    ratio: int
    calm: bool = False
    on_fault: Callable[[str], None] = lambda _: None
    _versions: dict[Task, int] = field(default_factory=dict)

    def apply(self, stream: Stream) -> Stream:
        """The stream with the present settings."""
        packing = self.packing
        update: dict[str, Any] = {
            "compression": packing.compression or "none",
            "compression_level": packing.level if packing.compression else None,
            "recompress": packing.recompress and bool(packing.compression),
        }
        return stream.model_copy(update=update)

    def change(self) -> str:
        """Change the version or a setting; returns what has changed."""
        draw, packing = self.rng.random(), self.packing
        if draw < 0.4:
            packing = packing._replace(version=self._other_version())
        elif draw < 0.5:
            packing = packing._replace(level=self.rng.choice(LEVELS))
        elif draw < 0.7 and self.can_recompress:
            packing = packing._replace(recompress=not packing.recompress)
        else:
            packing = packing._replace(compression=self.rng.choice(self.formats))
        self.packing = packing
        recompress = ", recompress" if packing.recompress else ""
        return (
            f"{packing.compression or 'none'}, level {packing.level}, version {packing.version}{recompress}"
        )

    def version_here(self) -> int:
        """The version that the running task has; it stays the same to the task's end."""
        fiber = running_fiber()
        assert fiber is not None
        task = fiber.task
        if task not in self._versions:
            is_other = not self.calm and self.rng.random() < self.mixed
            self._versions[task] = self._other_version() if is_other else self.packing.version
        return self._versions[task]

    def draw_fault(self) -> str:
        """What goes wrong with a frame; empty for nothing."""
        if self.calm or self.rng.random() >= self.faults:
            return ""
        fault = self.rng.choice(("compression fails", "wrong content in a frame", "a frame is cut off"))
        self.on_fault(fault)
        return fault

    def _other_version(self) -> int:
        return 3 - self.packing.version


class FakeCodec(Codec):
    """Frames of one deflate stream, with level and version in their header. Readers accept any version."""

    # Of the scenario that is being simulated.
    library: ClassVar[Library]

    def describe(self) -> str:
        return f"{self.extension} {self._level} {self.library.version_here()}"

    def compress(self, content: memoryview) -> bytes:
        body, fault = bytes(content), self.library.draw_fault()
        if fault == "compression fails":
            raise CodecFailureError("not enough memory")
        if fault == "wrong content in a frame":
            body = body[:-1] + b"?" if body else b"?"
        frame = FRAME_HEADER.pack(FRAME_MAGIC, self.library.version_here(), self._level, len(body))
        frame += zlib.compress(body, 1)
        return frame[:-1] if fault == "a frame is cut off" else frame

    @staticmethod
    def decompress(frame: bytes | memoryview, size: int) -> bytes:
        try:
            magic, _, _, stated = FRAME_HEADER.unpack_from(frame)
            content = zlib.decompress(frame[FRAME_HEADER.size :])
        except (struct.error, zlib.error) as error:
            raise ValueError(f"the frame cannot be decompressed: {error}") from None
        if (magic, stated, len(content)) != (FRAME_MAGIC, size, size):
            raise ValueError(f"the frame does not have exactly {size:,} bytes of content")
        return content


class FakeZstd(FakeCodec):
    """In place of zstd, with the same table after the last frame."""

    extension = ".zst"

    def trailer(self, frames: Iterable[tuple[int, int]]) -> bytes:
        return Zstd(self._level).trailer(frames)


class FakeGzip(FakeCodec):
    """In place of gzip."""

    extension = ".gz"


_CODECS = {"zstd": FakeZstd, "gzip": FakeGzip}


def fake_codec_of(compression: str, level: int | None = None) -> Codec:
    """Replaces :func:`include.log_rollup.compression.codec_of`."""
    return _CODECS[compression](DEFAULT_LEVEL if level is None else level)


def draw_library(seed: int, part_size: int) -> Library | None:
    """Draw the library of a seed's scenario; None if nothing is compressed.

    :param part_size: of the stream, in bytes
    """
    rng = random.Random(f"compression {seed}")
    if rng.random() >= WITH_COMPRESSION:
        return None
    compression = rng.choice(("zstd", "zstd", "gzip"))
    of_recompression = random.Random(f"recompression {seed}")
    can_recompress = of_recompression.random() < WITH_RECOMPRESSION
    recompress = can_recompress and of_recompression.random() < 0.8
    return Library(
        rng,
        Packing(compression, rng.choice(LEVELS), rng.choice((1, 2)), recompress),
        formats=("", "", compression, compression, "gzip"),
        frame_bytes=rng.choice((20, 60, 120)),
        largest_frame_bytes=part_size if rng.random() < 0.7 else 50,
        mixed=rng.choice((0.0, 0.0, 0.0, 0.1, 0.3)),
        faults=rng.choice((0.0, 0.0, 0.1, 0.3)),
        changes=rng.choice((0, 0, 1, 1, 2, 3)),
        changes_at_end=rng.random() < 0.3,
        can_recompress=can_recompress,
        ratio=of_recompression.choice((1, 1, 2, 8)),
    )
