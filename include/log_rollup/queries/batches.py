"""Plans in which ranges some raw objects of a part are read, and reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from include.log_rollup.hour.parts import READ_BACK_BYTES, Piece, spans
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import PackedPart
from include.log_rollup.storage.protocol import Location, RestoreStore
from include.log_rollup.units import MIB

BATCH_BYTES = READ_BACK_BYTES
"""The most that a batch of several objects reads, so that it takes one GET and is held in memory."""

NEAR_BYTES = MIB
"""Objects this near to each other are read together: on S3, a request takes as long as about 1 MiB of a body."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw objects of a part that are read together.

    :param indices: of the raw objects in their part, in its order; none of them is empty
    :param start: offset of the first byte that is read
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


def plan_batches(planned: PlannedPart, packed: PackedPart, wanted: Sequence[int]) -> Iterator[Batch]:
    """Divide raw objects of a part into batches. This alone decides which bytes of a part are read.

    :param wanted: indices of raw objects, in the order of the part; empty objects are left out
    """
    wanted = [index for index in wanted if planned.objects[index].size]
    if not wanted:
        return
    where = spans(planned, packed)
    chosen = [wanted[0]]
    start, end = where[wanted[0]]
    for index in wanted[1:]:
        first, last = where[index]
        if first - end > NEAR_BYTES or last - start > BATCH_BYTES:
            yield Batch(chosen, start, end)
            chosen, start = [], first
        chosen.append(index)
        end = last
    yield Batch(chosen, start, end)


class BatchReader:
    """Reads batches, one at a time, into memory that it keeps: pieces are valid until the next run is read."""

    def __init__(self, store: RestoreStore) -> None:
        self._store = store
        self._memory = bytearray(READ_BACK_BYTES)

    def read(
        self, source: Location, planned: PlannedPart, packed: PackedPart, batch: Batch
    ) -> Iterator[Piece]:
        """The raw objects of a batch, each in one piece or, if it is larger than 8 MiB, in several.

        :param source: the part
        :raises NotFoundError: if the part is gone
        :raises InputChangedError: if the part was overwritten since it was packed
        """
        where = spans(planned, packed)
        first = 0
        for position in range(batch.start, batch.end, READ_BACK_BYTES):
            run = memoryview(self._memory)[: min(READ_BACK_BYTES, batch.end - position)]
            self._store.read_into(source, packed.etag, position, run)
            for place in range(first, len(batch.indices)):
                index = batch.indices[place]
                start, end = where[index]
                if start >= position + len(run):
                    break
                yield Piece(index, max(position - start, 0), run[max(start - position, 0) : end - position])
                if end <= position + len(run):
                    first = place + 1
