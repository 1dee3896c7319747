"""Decompresses raw objects that are compressed themselves, and compresses them again together with plain ones.

The content of an object takes the place of its bytes. It is that of bytes whose CRC or ETag was compared, and the
frame that holds it is decompressed again before it is written. An object keeps its bytes, and gets a part of its
own, if it cannot be decompressed, has more content than a frame may hold, or would need more than twice its size.

Memory is bounded by one frame and one object: a frame is compressed as soon as the next object does not fit.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from include.log_rollup import compression, crc
from include.log_rollup.compression import Codec
from include.log_rollup.decompression import DamageError, decompress_object
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import READ_BY_ETAG, READ_BY_LENGTH, Content, PackedObject
from include.log_rollup.hour.selection import PLAIN, encoding_of
from include.log_rollup.newlines import newline_crc, newline_of
from include.log_rollup.steps.part_buffers import (
    CompressedBatch,
    CompressedFrame,
    KeptObject,
    PartBuffer,
    compress_frame,
)
from include.log_rollup.storage.protocol import ObjectInfo

log = logging.getLogger(__name__)

# A frame of recompressed objects may have twice their size and this much more: the compressed part is in memory.
_GROWTH, _GROWTH_BYTES = 2, 64
_NEWLINE = ord("\n")


@dataclass(frozen=True, slots=True)
class _Member:
    """A raw object in a frame.

    :param raw: its bytes as received
    :param held: what the frame has of it, without a newline
    """

    item: ObjectInfo
    packed: PackedObject
    raw: memoryview
    held: bytes | memoryview


def recompress_buffer(buffer: PartBuffer, codec: Codec) -> CompressedBatch:
    """Compress the raw objects of a buffer, which have all arrived, and which are decompressed first where needed.

    :raises ChangedBufferError: as :func:`compress_frame`
    """
    return _Recompression(buffer, codec).run()


@dataclass(slots=True)
class _Recompression:
    buffer: PartBuffer
    codec: Codec
    frames: list[CompressedFrame] = field(default_factory=list)
    kept: list[KeptObject] = field(default_factory=list)
    members: list[_Member] = field(default_factory=list)
    size: int = 0

    def run(self) -> CompressedBatch:
        for index in range(len(self.buffer.planned.objects)):
            member = self._member(index)
            if member is None:
                continue
            if self.members and self.size + len(member.held) > compression.FRAME_BYTES:
                self._end_frame()
            self.members.append(member)
            self.size += len(member.held)
        self._end_frame()
        return CompressedBatch(self.frames, self.kept)

    @property
    def _planned(self) -> PlannedPart:
        return self.buffer.planned

    def _member(self, index: int) -> _Member | None:
        """An object with its content; None if it keeps its bytes."""
        item, packed, raw = (
            self._planned.objects[index],
            self.buffer.objects[index],
            self.buffer.window(index),
        )
        assert packed is not None
        if not self._planned.is_recompressed(item):
            return _Member(item, packed, raw, raw)
        if packed.checked == READ_BY_LENGTH and packed.etag_is_md5:
            packed = _compare_with_etag(item, packed, raw)
        try:
            content = decompress_object(encoding_of(item.key), raw, compression.LARGEST_FRAME_BYTES)
        except DamageError as error:
            self._keep(item, packed, raw, f"it cannot be decompressed: {error}")
            return None
        found = Content(len(content), crc.crc64(content))
        return _Member(item, replace(packed, content=found), raw, content)

    def _keep(self, item: ObjectInfo, packed: PackedObject, raw: memoryview, why: str) -> None:
        log.warning("%s is not recompressed, and gets a part of its own: %s", item.key, why)
        # The buffer is used again before the part is written.
        self.kept.append(KeptObject(item, replace(packed, damaged=True, content=None), bytes(raw)))

    def _end_frame(self) -> None:
        members, self.members, self.size = self.members, [], 0
        if not members:
            return
        frame = self._compress(members)
        if _is_small(frame, members):
            self.frames.append(frame)
            return
        # The objects that are to blame keep their bytes; the others get a frame each.
        for member in members:
            frame = self._compress([member])
            if _is_small(frame, [member]):
                self.frames.append(frame)
            else:
                why = f"its content takes {len(frame.content):,} bytes in a frame"
                self._keep(member.item, member.packed, member.raw, why)

    def _compress(self, members: list[_Member]) -> CompressedFrame:
        """Compress a frame, with a newline after each object that ends without one if the part gets these."""
        newline = newline_of(PLAIN) if self.buffer.options.ensure_newline else b""
        bodies: list[bytes | memoryview] = []
        pieces: list[tuple[int, int]] = []
        objects: list[PackedObject] = []
        for member in members:
            packed, held = member.packed, member.held
            if held:
                content = packed.content
                bodies.append(held)
                pieces.append((content.crc64nvme if content else packed.crc64nvme or 0, len(held)))
                if newline and held[-1] != _NEWLINE:
                    bodies.append(newline)
                    pieces.append((newline_crc(PLAIN), len(newline)))
                    packed = replace(packed, separator=len(newline))
            objects.append(packed)
        content_bytes = memoryview(b"".join(bodies))
        return compress_frame(
            self._planned, self.codec, content_bytes, crc.concatenate(pieces), tuple(objects)
        )


def _is_small(frame: CompressedFrame, members: Sequence[_Member]) -> bool:
    """Whether a frame is not much larger than its raw objects; one of plain objects never is."""
    most = _GROWTH * sum(member.item.size for member in members) + _GROWTH_BYTES
    return len(frame.content) <= most or all(member.packed.content is None for member in members)


def _compare_with_etag(item: ObjectInfo, packed: PackedObject, raw: memoryview) -> PackedObject:
    """Compare the bytes of an object of which S3 states no CRC: reading the part back cannot do it later.

    If they differ, the ETag need not be an MD5, which validation tries out.
    """
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != item.etag:
        return packed
    return replace(packed, checked=READ_BY_ETAG, etag_is_md5=False)
