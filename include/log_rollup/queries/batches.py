"""Plans in which ranges some raw objects of a part are read, and reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from include.log_rollup.hour.parts import READ_BACK_BYTES, Piece, Place, decompress_frame, held_size, places
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import PackedPart
from include.log_rollup.storage.protocol import LargeReadStore, Location
from include.log_rollup.units import MIB

BATCH_BYTES = READ_BACK_BYTES
"""The most that a batch of several objects or frames reads, and the most that these have, to be held in memory."""

NEAR_BYTES = MIB
"""Objects this near to each other are read together: on S3, a request takes as long as about 1 MiB of a body."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw objects of a part that are read together.

    :param indices: of the raw objects in their part, in its order; none of them is empty there
    :param start: offset of the first byte that is read: of an object, or of a frame of a compressed part
    :param end: offset behind the last byte that is read
    """

    indices: Sequence[int]
    start: int
    end: int

    @property
    def gets(self) -> int:
        """Number of ranged GETs."""
        # Rounded up.
        return -(-(self.end - self.start) // READ_BACK_BYTES)


def plan_batches(
    planned: PlannedPart,
    packed: PackedPart,
    wanted: Sequence[int],
    batch_bytes: int = BATCH_BYTES,
    content_bytes: float = BATCH_BYTES,
) -> Iterator[Batch]:
    """Divide raw objects of a part into batches. This alone decides which bytes of a part are read.

    :param wanted: indices of raw objects, in the order of the part; empty objects are left out
    :param batch_bytes: the most that a batch of several objects or frames reads
    :param content_bytes: the most that these have, decompressed
    """
    where = list(places(planned, packed))
    chosen: list[int] = []
    start = end = content = 0
    for index in wanted:
        size, frame = held_size(planned.objects[index], packed.objects[index]), where[index].frame
        if not size:
            continue
        first, last = _range_of(where[index], size)
        if chosen and last == end:
            # Objects of one frame are read and decompressed together in any case.
            chosen.append(index)
            continue
        more = size if frame is None else frame.content
        is_near = first - end <= NEAR_BYTES and last - start <= batch_bytes
        if chosen and not (is_near and content + more <= content_bytes):
            yield Batch(chosen, start, end)
            chosen, content = [], 0
        if not chosen:
            start = first
        chosen.append(index)
        end = last
        content += more
    if chosen:
        yield Batch(chosen, start, end)


def _range_of(place: Place, size: int) -> tuple[int, int]:
    """The bytes of a part that have to be read for an object."""
    if place.frame is None:
        return place.offset, place.offset + size
    return place.frame_offset, place.frame_offset + place.frame.size


class BatchReader:
    """Reads batches, one at a time, into memory that it keeps: pieces are valid until the next run is read.

    :param request_bytes: the most that a request reads, and the size of that memory
    """

    def __init__(self, store: LargeReadStore, request_bytes: int = READ_BACK_BYTES) -> None:
        self._store = store
        self._request_bytes = request_bytes
        self._memory = bytearray(request_bytes)

    def read_range(self, source: Location, etag: str, size: int, first: int = 0) -> Iterator[memoryview]:
        """A range of an object, in pieces of up to ``request_bytes``.

        :param size: of the range in bytes
        :param first: offset of its first byte
        :raises NotFoundError: if the object is gone
        :raises InputChangedError: if it was overwritten
        """
        for offset in range(0, size, self._request_bytes):
            run = memoryview(self._memory)[: min(self._request_bytes, size - offset)]
            self._store.read_into(source, etag, first + offset, run)
            yield run

    def read(
        self, source: Location, planned: PlannedPart, packed: PackedPart, batch: Batch
    ) -> Iterator[Piece]:
        """The raw objects of a batch, each in one piece or, if it is larger than a request, perhaps in several.

        :param source: the part
        :raises NotFoundError: if the part is gone
        :raises InputChangedError: if the part was overwritten since it was packed
        :raises ProofError: if a frame cannot be decompressed
        """
        where = list(places(planned, packed))
        if packed.frames:
            yield from self._read_frames(source, planned, packed, batch, where)
            return
        first, position = 0, batch.start
        for run in self.read_range(source, packed.etag, batch.end - batch.start, batch.start):
            for place in range(first, len(batch.indices)):
                index = batch.indices[place]
                start, end = _range_of(where[index], planned.objects[index].size)
                if start >= position + len(run):
                    break
                yield Piece(index, max(position - start, 0), run[max(start - position, 0) : end - position])
                if end <= position + len(run):
                    first = place + 1
            position += len(run)

    def _read_frames(
        self,
        source: Location,
        planned: PlannedPart,
        packed: PackedPart,
        batch: Batch,
        where: Sequence[Place],
    ) -> Iterator[Piece]:
        size = batch.end - batch.start
        # A frame of a single object may be larger.
        body = memoryview(self._memory if size <= len(self._memory) else bytearray(size))[:size]
        for start in range(0, size, self._request_bytes):
            self._store.read_into(
                source, packed.etag, batch.start + start, body[start : start + self._request_bytes]
            )
        for frame_offset, members in groupby(batch.indices, key=lambda index: where[index].frame_offset):
            indices = list(members)
            frame = where[indices[0]].frame
            assert frame is not None
            first = frame_offset - batch.start
            content = memoryview(
                decompress_frame(source, planned.compression, body[first : first + frame.size], frame.content)
            )
            for index in indices:
                offset = where[index].offset
                held = held_size(planned.objects[index], packed.objects[index])
                yield Piece(index, 0, content[offset : offset + held])
