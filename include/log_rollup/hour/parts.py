"""What is asked of a part, whoever asks: that it stands as it was written, and what bytes it holds."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from include.log_rollup import crc
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import PackedPart
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.units import MIB

READ_BACK_BYTES = 8 * MIB


def is_intact(table: Iterable[Mapping[str, Any]], parts: Mapping[str, ObjectInfo]) -> bool:
    """Whether all parts of a manifest's table are there, as they were when they were proven."""
    for entry in table:
        item = parts.get(entry["name"])
        if item is None or (item.size, item.etag) != (entry["size"], entry["etag"]):
            return False
    return True


def is_as_written(part: PackedPart, parts: Mapping[str, ObjectInfo]) -> bool:
    """Whether a part lies in the bucket as it was written."""
    item = parts.get(part.name)
    return item is not None and (item.size, item.etag) == (part.size, part.etag)


def mismatch(planned: PlannedPart, packed: PackedPart | None, stands: ObjectInfo | None) -> str | None:
    """Why a part is not what it should be, by the listing and the records alone; None if it is.

    :param packed: the part as it was written
    :param stands: the part as it is listed
    """
    if packed is None or packed.fingerprint != planned.fingerprint:
        return "it was not packed under this plan"
    if stands is None:
        return "it is not in the bucket"
    if stands.size != packed.size:
        return f"it has {stands.size} bytes, {packed.size} were written"
    if stands.etag != packed.etag:
        return f"its ETag is {stands.etag}, {packed.etag} was written"
    if len(packed.objects) != len(planned.objects):
        return f"it holds {len(packed.objects)} objects, {len(planned.objects)} were planned"
    if planned.size + packed.separators != packed.size:
        return f"it has {packed.size} bytes, its raw objects {planned.size}, separators {packed.separators}"
    if not planned.copied and crc.concatenate(_lengths(planned, packed)) != packed.crc64nvme:
        return "its CRC is not the combination of its raw objects' CRCs"
    return None


def _lengths(planned: PlannedPart, packed: PackedPart) -> Iterator[tuple[int, int]]:
    newline = crc.crc64(b"\n")
    for item, done in zip(planned.objects, packed.objects, strict=True):
        yield done.crc64nvme or 0, item.size
        if done.separator:
            yield newline, done.separator


def spans(planned: PlannedPart, packed: PackedPart) -> list[tuple[int, int]]:
    """Where each raw object begins and ends in the part as it was written, in bytes."""
    found = []
    offset = 0
    for item, done in zip(planned.objects, packed.objects, strict=True):
        found.append((offset, offset + item.size))
        offset += item.size + done.separator
    return found


def read_runs(store: ObjectStore, source: Location, etag: str, size: int, offset: int = 0) -> Iterator[bytes]:
    """The bytes of an object, or of a stretch of it, a few MiB at a time, while it has this ETag.

    :param size: how many bytes to read
    :param offset: where to begin
    :raises InputChangedError: if it has another ETag by now
    """
    for start in range(0, size, READ_BACK_BYTES):
        yield store.read_range(source, etag, offset + start, min(READ_BACK_BYTES, size - start))


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a part that belong to one raw object.

    :param index: which of the part's raw objects
    :param offset: where the bytes begin within it
    """

    index: int
    offset: int
    body: memoryview


def read_pieces(
    store: ObjectStore, source: Location, planned: PlannedPart, packed: PackedPart
) -> Iterator[tuple[bytes, list[Piece]]]:
    """The bytes of a part, a few MiB at a time, each time with what of it belongs to which raw object.

    :raises InputChangedError: if the part was overwritten since it was packed
    """
    where = spans(planned, packed)
    position = first = 0
    for run in read_runs(store, source, packed.etag, packed.size):
        view = memoryview(run)
        pieces = []
        for index in range(first, len(where)):
            start, end = where[index]
            if start >= position + len(run):
                break
            body = view[max(start - position, 0) : end - position]
            pieces.append(Piece(index, max(position - start, 0), body))
            if end <= position + len(run):
                first = index + 1
        yield run, pieces
        position += len(run)
