"""Checks of parts and reading of parts, shared by validate_hour, the commands and the planner."""

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
    """Whether all parts of a manifest's table exist with the size and ETag that were proven.

    :param parts: the listed parts, by name
    """
    for entry in table:
        item = parts.get(entry["name"])
        if item is None or (item.size, item.etag) != (entry["size"], entry["etag"]):
            return False
    return True


def is_as_written(part: PackedPart, parts: Mapping[str, ObjectInfo]) -> bool:
    """Whether a part exists with the size and ETag that were written.

    :param parts: the listed parts, by name
    """
    item = parts.get(part.name)
    return item is not None and (item.size, item.etag) == (part.size, part.etag)


def part_problem(planned: PlannedPart, packed: PackedPart | None, listed: ObjectInfo | None) -> str | None:
    """Compare a part with its plan, by listing and records alone.

    :param packed: the part as it was written
    :param listed: the part as it is listed
    :returns: what is wrong; None if nothing is
    """
    if packed is None or packed.fingerprint != planned.fingerprint:
        return "it was not packed under this plan"
    if listed is None:
        return "it is not in the bucket"
    if listed.size != packed.size:
        return f"it has {listed.size} bytes, {packed.size} were written"
    if listed.etag != packed.etag:
        return f"its ETag is {listed.etag}, {packed.etag} was written"
    if len(packed.objects) != len(planned.objects):
        return f"it holds {len(packed.objects)} objects, {len(planned.objects)} were planned"
    if planned.size + packed.separators != packed.size:
        return f"it has {packed.size} bytes, its raw objects {planned.size}, separators {packed.separators}"
    if not planned.copied and crc.concatenate(_crcs_and_sizes(planned, packed)) != packed.crc64nvme:
        return "its CRC is not the combination of its raw objects' CRCs"
    return None


def _crcs_and_sizes(planned: PlannedPart, packed: PackedPart) -> Iterator[tuple[int, int]]:
    newline = crc.crc64(b"\n")
    for item, done in zip(planned.objects, packed.objects, strict=True):
        yield done.crc64nvme or 0, item.size
        if done.separator:
            yield newline, done.separator


def spans(planned: PlannedPart, packed: PackedPart) -> list[tuple[int, int]]:
    """Where each raw object begins and ends in the written part, in bytes."""
    found = []
    offset = 0
    for item, done in zip(planned.objects, packed.objects, strict=True):
        found.append((offset, offset + item.size))
        offset += item.size + done.separator
    return found


def read_runs(store: ObjectStore, source: Location, etag: str, size: int, offset: int = 0) -> Iterator[bytes]:
    """Read an object or a range of it in runs of up to 8 MiB, as long as it has this ETag.

    :param size: number of bytes to read
    :param offset: of the first byte
    :raises NotFoundError: if it is gone
    :raises InputChangedError: if its ETag has changed
    """
    for start in range(0, size, READ_BACK_BYTES):
        yield store.read_range(source, etag, offset + start, min(READ_BACK_BYTES, size - start))


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a part that belong to one raw object.

    :param index: of the raw object in its part
    :param offset: of the first byte within the raw object
    """

    index: int
    offset: int
    body: memoryview


def read_pieces(
    store: ObjectStore, source: Location, planned: PlannedPart, packed: PackedPart
) -> Iterator[tuple[bytes, list[Piece]]]:
    """Read a part in runs of up to 8 MiB, each with its pieces of raw objects.

    :raises NotFoundError: if the part is gone
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
