"""Buffers in which raw objects are joined into parts, or into frames of compressed parts.

Fast path: each raw object is downloaded to its final offset, so a full buffer is a finished part and nothing is
copied. Bytes move only where newlines may be added (the offsets leave room for one after each object) and where a
damaged object gets a part of its own.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate

from include.log_rollup import compression, crc
from include.log_rollup.compression import Codec
from include.log_rollup.errors import ChangedBufferError
from include.log_rollup.hour.plan import PlannedPart, WriteOptions, gets_newlines, split_part
from include.log_rollup.hour.records import READ_BY_LENGTH, Frame, PackedObject, PackedPart
from include.log_rollup.hour.selection import PLAIN
from include.log_rollup.newlines import newline_crc, newline_of
from include.log_rollup.storage.protocol import Downloaded, ObjectInfo

MAX_BUFFERS = 8
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
    :param frames: its frames as if they were parts, with the raw objects of each
    :param done: the compressed frames; None until they are
    """

    planned: PlannedPart
    codec: Codec
    frames: list[PlannedPart] = field(init=False)
    done: list["CompressedFrame | None"] = field(init=False)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.frames = list(split_into_frames(self.planned))
        self.done = [None] * len(self.frames)
        self.missing = len(self.frames)

    def set_compressed(self, index: int, frame: "CompressedFrame") -> None:
        """Note a compressed frame."""
        self.done[index] = frame
        self.missing -= 1

    def body(self) -> PartBody:
        """What to write, once no frame is missing."""
        done = [frame for frame in self.done if frame is not None]
        trailer = self.codec.trailer((len(frame.content), frame.size) for frame in done)
        content = memoryview(b"".join((*(frame.content for frame in done), trailer)))
        pieces = [(frame.crc64nvme, len(frame.content)) for frame in done]
        self.done.clear()
        return PartBody(
            self,
            self.planned,
            content,
            crc.concatenate([*pieces, (crc.crc64(trailer), len(trailer))]),
            tuple(known for frame in done for known in frame.objects),
            tuple(Frame(len(frame.objects), len(frame.content), frame.size) for frame in done),
        )


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Which frame of a part a buffer holds."""

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


def compress_frame(buffer: PartBuffer, codec: Codec) -> CompressedFrame:
    """Compress a frame whose raw objects have all arrived, decompress it, and compare the content's CRC.

    :raises ChangedBufferError: if the decompressed content is not what was received
    """
    (body,) = buffer.bodies()
    frame = codec.compress(body.content)
    try:
        value = crc.crc64(codec.decompress(frame, len(body.content)))
    except ValueError as error:
        raise _damaged(buffer, str(error)) from None
    if value != body.crc64nvme:
        raise _damaged(buffer, f"its CRC64-NVME is {crc.to_hex(value)}, not {crc.to_hex(body.crc64nvme)}")
    return CompressedFrame(frame, crc.crc64(frame), len(body.content), body.objects)


def _damaged(buffer: PartBuffer, what: str) -> ChangedBufferError:
    first, last = buffer.planned.objects[0].key, buffer.planned.objects[-1].key
    return ChangedBufferError(
        f"{buffer.planned.name}: a frame does not decompress to the bytes that were received ({what}). It was not "
        f"written. If this happens again, the machine's memory or the compression library is faulty. The frame "
        f"holds {first} to {last}."
    )


def split_into_frames(planned: PlannedPart) -> Iterator[PlannedPart]:
    """The frames of a part, each as a part with some of its raw objects."""
    members: list[ObjectInfo] = []
    size = 0
    for item in planned.objects:
        if members and size + item.size > compression.FRAME_BYTES:
            yield replace(planned, objects=tuple(members), size=size)
            members, size = [], 0
        members.append(item)
        size += item.size
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
