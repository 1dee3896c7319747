"""Reads the bytes of some raw objects of a part, with few requests."""

from collections.abc import Container, Iterable, Iterator, Sequence

from include.log_rollup.hour.parts import decompress_frame, places
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import Frame, PackedPart
from include.log_rollup.storage.protocol import LargeReadStore, Location
from include.log_rollup.units import MIB

# With the default part_size, one request reads a part.
_REQUEST_BYTES = 32 * MIB
# Objects this near to each other are read with one request, which on S3 takes as long as about 1 MiB of a body.
_NEAR_BYTES = MIB


class ObjectReader:
    """Reads into memory that it keeps: a piece is valid until the next one is asked for. For one thread."""

    def __init__(self, store: LargeReadStore) -> None:
        self._store = store
        self._memory = memoryview(bytearray(_REQUEST_BYTES))

    def read(self, source: Location, etag: str, size: int, first: int = 0) -> Iterator[memoryview]:
        """A range of an object, in pieces of up to 32 MiB.

        :param size: of the range in bytes
        :param first: offset of its first byte
        :raises NotFoundError: if the object is gone
        :raises InputChangedError: if it was overwritten
        """
        for offset in range(0, size, _REQUEST_BYTES):
            yield self._read_once(source, etag, first + offset, min(_REQUEST_BYTES, size - offset))

    def read_objects(
        self, source: Location, planned: PlannedPart, packed: PackedPart, wanted: Sequence[int]
    ) -> Iterator[tuple[int, memoryview]]:
        """Some objects of a part, in order, in pieces with the object's index; empty objects have none.

        :param source: the part
        :raises NotFoundError: if the part is gone
        :raises InputChangedError: if it was overwritten since it was packed
        :raises ProofError: if a frame of it cannot be decompressed
        """
        if packed.frames:
            yield from self._read_from_frames(source, planned, packed, frozenset(wanted))
            return
        starts = [place.offset for place in places(planned, packed)]
        spans = [(starts[index], starts[index] + planned.objects[index].size, index) for index in wanted]
        for batch in _batches(span for span in spans if span[0] < span[1]):
            first, last = batch[0][0], batch[-1][1]
            position = first
            for view in self.read(source, packed.etag, last - first, first):
                for start, end, index in batch:
                    if start < position + len(view) and end > position:
                        yield index, view[max(start - position, 0) : end - position]
                position += len(view)

    def _read_from_frames(
        self, source: Location, planned: PlannedPart, packed: PackedPart, wanted: Container[int]
    ) -> Iterator[tuple[int, memoryview]]:
        """The same for a compressed part: reads the frames that hold these objects."""
        members: dict[int, list[tuple[int, int]]] = {}
        frames: dict[int, Frame] = {}
        for index, place in enumerate(places(planned, packed)):
            if place.frame is not None and index in wanted and planned.objects[index].size:
                frames[place.frame_offset] = place.frame
                members.setdefault(place.frame_offset, []).append((index, place.offset))
        for batch in _batches((start, start + frame.size, start) for start, frame in frames.items()):
            first, last = batch[0][0], batch[-1][1]
            view = self._read_once(source, packed.etag, first, last - first)
            for start, end, _ in batch:
                body = view[start - first : end - first]
                content = memoryview(
                    decompress_frame(source, planned.compression, body, frames[start].content)
                )
                for index, offset in members[start]:
                    yield index, content[offset : offset + planned.objects[index].size]

    def _read_once(self, source: Location, etag: str, first: int, size: int) -> memoryview:
        # A frame of an object that does not compress may be larger than the memory.
        into = self._memory[:size] if size <= len(self._memory) else memoryview(bytearray(size))
        self._store.read_into(source, etag, first, into)
        return into


def _batches(spans: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Join ranges of a part that are near to each other, up to the size of a request.

    :param spans: begin and end of each range, and anything else
    """
    batch: list[tuple[int, int, int]] = []
    for span in spans:
        if batch and (span[0] - batch[-1][1] > _NEAR_BYTES or span[1] - batch[0][0] > _REQUEST_BYTES):
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch
