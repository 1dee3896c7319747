"""Buffers in which raw objects are joined into parts, or into frames of compressed parts.

Fast path: each raw object is downloaded to its final offset, so a full buffer is a finished part and nothing is
copied. Bytes move only where newlines may be added (the offsets leave room for one after each object), where a
damaged object gets a part of its own, and where objects are recompressed: :mod:`recompression`.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate

from include.log_rollup import compression, crc
from include.log_rollup.compression import Codec
from include.log_rollup.errors import ChangedBufferError
from include.log_rollup.hour.plan import (
    PlannedPart,
    WriteOptions,
    gets_newlines,
    split_part,
    split_recompressed,
)
from include.log_rollup.hour.records import READ_BY_LENGTH, Frame, PackedObject, PackedPart
from include.log_rollup.hour.selection import PLAIN
from include.log_rollup.newlines import newline_crc, newline_of
from include.log_rollup.storage.protocol import Downloaded, ObjectInfo

MAX_BUFFERS = 8
# A batch of recompressed objects has about so many frames, so that few of them are smaller than they could be.
FRAMES_PER_BATCH = 4
_NEWLINE = ord("\n")


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """A part that was written.

    :param planned: as planned, or as split off a planned part
    """

    planned: PlannedPart
    packed: PackedPart


@dataclass(slots=True, eq=False)
class PartBody:
    """The bytes to write as one part: a whole planned part, or one that was split off.

    :param buffer: what holds the planned part
    :param planned: the part to write
    :param crc64nvme: computed from the raw objects' CRCs, or from those of the frames, not from the buffer; the
        transfer compares the two
    :param frames: of a compressed part
    """

    buffer: "PartBuffer | FramedPart"
    planned: PlannedPart
    content: memoryview
    crc64nvme: int
    objects: tuple[PackedObject, ...]
    frames: tuple[Frame, ...] = ()

    def packed(self, etag: str) -> PackedPart:
        """The part as it was written.

        :param etag: that S3 has given it
        """
        return PackedPart(
            self.planned.name,
            self.planned.fingerprint,
            len(self.content),
            etag,
            self.crc64nvme,
            self.objects,
            frames=self.frames,
        )


@dataclass(slots=True, eq=False)
class PartBuffer:
    """A planned part, or one frame of it, whose raw objects arrive in memory, in any order.

    :param options: of the parts
    :param frame: index of the frame in its part; None for a part that is not compressed
    :param memory: at least :func:`buffer_size` bytes
    :param starts: offset of each object, with room for newlines between them
    :param lacks_newline: whether the content of each compressed object has a last line without a newline
    :param objects: what is known of each object; None until it has arrived
    :param missing: how many objects have not arrived, or are still being decompressed
    :param unwritten: how many of its bodies are not written
    :param written: what was written for it; more than one part if it was split
    """

    planned: PlannedPart
    options: WriteOptions
    memory: memoryview
    frame: "FrameIndex | None" = None
    starts: list[int] = field(init=False)
    lacks_newline: list[bool] = field(init=False)
    objects: list[PackedObject | None] = field(init=False)
    missing: int = field(init=False)
    unwritten: int = field(default=0, init=False)
    written: list[WrittenPart] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        items = self.planned.objects
        room = self.options.room_for_newline(self.planned.encoding)
        self.starts = list(accumulate((item.size + room for item in items), initial=0))
        self.lacks_newline = [False] * len(items)
        # Empty objects are not downloaded.
        self.objects = [None if item.size else PackedObject(0, READ_BY_LENGTH, False) for item in items]
        self.missing = self.objects.count(None)

    def window(self, index: int) -> memoryview:
        """The memory to download an object to."""
        start = self.starts[index]
        return self.memory[start : start + self.planned.objects[index].size]

    def set_downloaded(self, index: int, result: Downloaded) -> None:
        """Note an object whose bytes are in its window and match ``result``."""
        stated = result.checksum
        if stated is not None and stated.algorithm == crc.CRC64NVME:
            # The bytes were compared with this CRC already.
            value = stated.value
        else:
            value = crc.crc64(self.window(index))
        checked = stated.algorithm if stated else READ_BY_LENGTH
        self.objects[index] = PackedObject(value, checked, result.etag_is_md5)

    def set_damaged(self, index: int) -> None:
        """Note that an object cannot be decompressed; it gets a part of its own."""
        known = self.objects[index]
        assert known is not None
        self.objects[index] = replace(known, damaged=True)

    def bodies(self) -> list[PartBody]:
        """What to write, once no object is missing: one part, or more where damaged objects are split off."""
        damaged = [index for index, known in enumerate(self.objects) if known is not None and known.damaged]
        if damaged and len(self.objects) > 1:
            bodies = self._split(damaged)
        else:
            bodies = [self._join(self.planned, range(len(self.objects)))]
        self.unwritten = len(bodies)
        return bodies

    def _split(self, damaged: Sequence[int]) -> list[PartBody]:
        """Bodies of each damaged object alone, and of all intact ones together."""
        intact = [index for index in range(len(self.objects)) if index not in set(damaged)]
        groups = [[index] for index in damaged] + ([intact] if intact else [])
        members = ([self.planned.objects[index] for index in group] for group in groups)
        bodies = []
        for planned, group in zip(split_part(self.planned, self.options, members), groups, strict=True):
            body = self._join(planned, group)
            if group is not intact:
                # Joining the intact objects, which comes last, overwrites the damaged ones.
                body.content = memoryview(bytes(body.content))
            bodies.append(body)
        return bodies

    def _join(self, planned: PlannedPart, indexes: Sequence[int]) -> PartBody:
        """Close the gaps between some objects, and add a newline after each one that ends without it."""
        pieces: list[tuple[int, int]] = []
        objects: list[PackedObject] = []
        memory = self.memory
        encoding = self.planned.encoding
        newline = newline_of(encoding) if gets_newlines(self.planned, self.options) else b""
        begin = end = self.starts[indexes[0]] if len(indexes) == 1 else 0
        for index in indexes:
            item, known = self.planned.objects[index], self.objects[index]
            assert known is not None
            if item.size:
                if self.starts[index] != end:
                    # Within one memoryview CPython moves overlapping ranges as memmove does.
                    memory[end : end + item.size] = self.window(index)
                end += item.size
                pieces.append((known.crc64nvme or 0, item.size))
                if newline and self._lacks_newline(index, memory[end - 1]):
                    memory[end : end + len(newline)] = newline
                    end += len(newline)
                    pieces.append((newline_crc(encoding), len(newline)))
                    known = replace(known, separator=len(newline))
            objects.append(known)
        return PartBody(self, planned, memory[begin:end], crc.concatenate(pieces), tuple(objects))

    def _lacks_newline(self, index: int, last_byte: int) -> bool:
        return last_byte != _NEWLINE if self.planned.encoding == PLAIN else self.lacks_newline[index]


@dataclass(slots=True, eq=False)
class FramedPart:
    """A planned part that is compressed frame by frame, in any order.

    :param planned: the whole part
    :param options: of the parts
    :param frames: what is compressed at a time, as if it were a part: a frame, or a batch with recompressed
        objects
    :param done: what has become of them; None until it has
    :param unwritten: how many of its bodies are not written
    :param written: what was written for it; more than one part if it was split
    """

    planned: PlannedPart
    codec: Codec
    options: WriteOptions
    frames: list[PlannedPart] = field(init=False)
    done: list["CompressedBatch | None"] = field(init=False)
    missing: int = field(init=False)
    unwritten: int = field(default=0, init=False)
    written: list[WrittenPart] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.frames = list(split_into_frames(self.planned))
        self.done = [None] * len(self.frames)
        self.missing = len(self.frames)

    def set_compressed(self, index: int, batch: "CompressedBatch") -> None:
        """Note a compressed frame or batch."""
        self.done[index] = batch
        self.missing -= 1

    def bodies(self) -> list[PartBody]:
        """What to write, once no frame is missing: one part, or more if objects keep their bytes."""
        done = [batch for batch in self.done if batch is not None]
        self.done.clear()
        kept = [item for batch in done for item in batch.kept]
        frames = [frame for batch in done for frame in batch.frames]
        bodies = self._split(kept, frames) if kept else [self._join(self.planned, frames)]
        self.unwritten = len(bodies)
        return bodies

    def _split(self, kept: Sequence["KeptObject"], frames: Sequence["CompressedFrame"]) -> list[PartBody]:
        keys = {one.item.key for one in kept}
        others = [item for item in self.planned.objects if item.key not in keys]
        parts = split_recompressed(self.planned, self.options, [one.item for one in kept], others)
        bodies = [
            PartBody(self, planned, memoryview(one.body), one.packed.crc64nvme or 0, (one.packed,))
            for planned, one in zip(parts, kept, strict=False)
        ]
        return bodies + [self._join(planned, frames) for planned in parts[len(kept) :]]

    def _join(self, planned: PlannedPart, done: Sequence["CompressedFrame"]) -> PartBody:
        trailer = self.codec.trailer((len(frame.content), frame.size) for frame in done)
        content = memoryview(b"".join((*(frame.content for frame in done), trailer)))
        pieces = [(frame.crc64nvme, len(frame.content)) for frame in done]
        return PartBody(
            self,
            planned,
            content,
            crc.concatenate([*pieces, (crc.crc64(trailer), len(trailer))]),
            tuple(known for frame in done for known in frame.objects),
            tuple(Frame(len(frame.objects), len(frame.content), frame.size) for frame in done),
        )


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Which frame or batch of a part a buffer holds."""

    part: FramedPart
    index: int


@dataclass(frozen=True, slots=True)
class CompressedFrame:
    """A frame that was decompressed again and compared.

    :param crc64nvme: of the frame
    :param size: of its content, in bytes
    :param objects: the raw objects in it
    """

    content: bytes
    crc64nvme: int
    size: int
    objects: tuple[PackedObject, ...]


@dataclass(frozen=True, slots=True)
class KeptObject:
    """An object that is not recompressed, although that was planned.

    :param body: its bytes
    """

    item: ObjectInfo
    packed: PackedObject
    body: bytes


@dataclass(frozen=True, slots=True)
class CompressedBatch:
    """What has become of the raw objects of a buffer: frames, and those that keep their bytes."""

    frames: Sequence[CompressedFrame]
    kept: Sequence[KeptObject] = ()


def compress_buffer(buffer: PartBuffer, codec: Codec) -> CompressedBatch:
    """Compress the raw objects of a buffer, which have all arrived, into one frame.

    :raises ChangedBufferError: as :func:`compress_frame`
    """
    (body,) = buffer.bodies()
    return CompressedBatch(
        (compress_frame(buffer.planned, codec, body.content, body.crc64nvme, body.objects),)
    )


def compress_frame(
    planned: PlannedPart, codec: Codec, content: memoryview, crc64nvme: int, objects: tuple[PackedObject, ...]
) -> CompressedFrame:
    """Compress a frame, decompress it, and compare the content's CRC.

    :param planned: what the frame belongs to, for the message
    :param crc64nvme: of the content, computed from the raw objects' CRCs
    :raises ChangedBufferError: if the decompressed content is not what was received
    """
    frame = codec.compress(content)
    try:
        value = crc.crc64(codec.decompress(frame, len(content)))
    except ValueError as error:
        raise _damaged(planned, str(error)) from None
    if value != crc64nvme:
        raise _damaged(planned, f"its CRC64-NVME is {crc.to_hex(value)}, not {crc.to_hex(crc64nvme)}")
    return CompressedFrame(frame, crc.crc64(frame), len(content), objects)


def _damaged(planned: PlannedPart, what: str) -> ChangedBufferError:
    first, last = planned.objects[0].key, planned.objects[-1].key
    return ChangedBufferError(
        f"{planned.name}: a frame does not decompress to the bytes that were received ({what}). It was not "
        f"written. If this happens again, the machine's memory or the compression library is faulty. The frame "
        f"holds {first} to {last}."
    )


def split_into_frames(planned: PlannedPart) -> Iterator[PlannedPart]:
    """The frames of a part, each as a part with some of its raw objects.

    If objects are recompressed, it is a batch of several frames, because only their assumed content is known.
    """
    members: list[ObjectInfo] = []
    size = content = 0
    most = compression.FRAME_BYTES * (FRAMES_PER_BATCH if planned.recompressed else 1)
    for item in planned.objects:
        more = planned.planned_content(item) if planned.recompressed else item.size
        if members and (size + item.size > compression.FRAME_BYTES or content + more > most):
            yield replace(planned, objects=tuple(members), size=size)
            members, size, content = [], 0, 0
        members.append(item)
        size += item.size
        content += more
    yield replace(planned, objects=tuple(members), size=size)


def buffer_size(part: PlannedPart, options: WriteOptions) -> int:
    """How many bytes a part needs, with a newline after each object."""
    return max(part.size + options.room_for_newline(part.encoding) * len(part.objects), 1)


def buffer_count(parts: Sequence[PlannedPart], size: int, connections: int) -> int:
    """How many buffers keep the connections busy: one that is uploaded, and enough to download into.

    :param parts: to pack
    :param size: of a buffer, in bytes
    :returns: 2 to 8, and not more than there are parts
    """
    count = sum(len(part.objects) for part in parts)
    mean = sum(part.size for part in parts) / count
    # Rounded up: buffers that one object for each connection fills.
    filling = -int(-(connections * mean / size) // 1)
    return min(len(parts), MAX_BUFFERS, 1 + max(1, filling))


def allocate(size: int) -> memoryview:
    """Memory for a part, in pages of 2 MiB where the system supports them, which saves page faults.

    :param size: in bytes
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # MADV_HUGEPAGE is missing on some systems, and some kernels refuse it.
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
