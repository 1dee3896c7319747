"""Checks of parts and reading of parts, shared by validate_hour, the commands and the planner."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from include.log_rollup import crc
from include.log_rollup.compression import codec_of
from include.log_rollup.errors import ProofError
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import Frame, PackedObject, PackedPart
from include.log_rollup.newlines import newline_crc
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
    held = held_bytes(planned, packed)
    if held + packed.separators != packed.content_size:
        size = packed.content_size
        return f"it has {size} bytes, its raw objects {held}, separators {packed.separators}"
    if planned.compression:
        return _frames_problem(planned, packed)
    if not planned.copied and crc.concatenate(_crcs_and_sizes(planned, packed)) != packed.crc64nvme:
        return "its CRC is not the combination of its raw objects' CRCs"
    return None


def _frames_problem(planned: PlannedPart, packed: PackedPart) -> str | None:
    if sum(frame.objects for frame in packed.frames) != len(planned.objects):
        return f"its frames hold other objects than the {len(planned.objects)} planned ones"
    if sum(frame.size for frame in packed.frames) > packed.size:
        return f"its frames are larger than its {packed.size} bytes"
    for place, item, done in zip(places(planned, packed), planned.objects, packed.objects, strict=True):
        frame = place.frame
        if frame is None or place.offset + held_size(item, done) + done.separator > frame.content:
            return f"{item.key} does not fit into its frame"
    return None


def _crcs_and_sizes(planned: PlannedPart, packed: PackedPart) -> Iterator[tuple[int, int]]:
    newline = newline_crc(planned.encoding)
    for item, done in zip(planned.objects, packed.objects, strict=True):
        yield done.crc64nvme or 0, item.size
        if done.separator:
            yield newline, done.separator


def held_size(item: ObjectInfo, done: PackedObject) -> int:
    """Size of what the part has of a raw object: its bytes, or the content of a recompressed one."""
    return item.size if done.content is None else done.content.size


def held_bytes(planned: PlannedPart, packed: PackedPart) -> int:
    """Size of what a part has of its raw objects, without separators."""
    return sum(map(held_size, planned.objects, packed.objects)) if planned.recompressed else planned.size


def held_crc(done: PackedObject) -> int | None:
    """The CRC64-NVME of what the part has of a raw object; None if S3 copied it."""
    return done.crc64nvme if done.content is None else done.content.crc64nvme


def count_recompressed(parts: Iterable[PackedPart]) -> int:
    """Number of recompressed objects in some parts."""
    return sum(done.content is not None for part in parts if part.frames for done in part.objects)


def unpacked_bytes(pairs: Iterable[tuple[PlannedPart, PackedPart]]) -> int:
    """Size of raw objects, of the recompressed ones that of their content; 0 if there are none of those."""
    size, found = 0, False
    for planned, packed in pairs:
        size += held_bytes(planned, packed)
        found = found or count_recompressed((packed,)) > 0
    return size if found else 0


def stored_bytes(parts: Iterable[PackedPart]) -> int:
    """Size of parts in the bucket, in bytes, if any of them is compressed; else 0."""
    size, is_compressed = 0, False
    for part in parts:
        size += part.size
        is_compressed = is_compressed or bool(part.frames)
    return size if is_compressed else 0


class Place(NamedTuple):
    """Where a raw object is in its part, in bytes.

    :param offset: in the part, or in the content of its frame
    :param frame: None if the part is not compressed
    :param frame_offset: of the frame in the part
    """

    offset: int
    frame: Frame | None = None
    frame_offset: int = 0


def places(planned: PlannedPart, packed: PackedPart) -> Iterator[Place]:
    """Where each raw object is, in the order of the part."""
    members = zip(planned.objects, packed.objects, strict=True)
    if not packed.frames:
        offset = 0
        for item, done in members:
            yield Place(offset)
            offset += item.size + done.separator
        return
    frame_offset = 0
    for frame in packed.frames:
        offset = 0
        for item, done in islice(members, frame.objects):
            yield Place(offset, frame, frame_offset)
            offset += held_size(item, done) + done.separator
        frame_offset += frame.size


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
    :param offset: of the first byte within the raw object, or within the content of a recompressed one
    """

    index: int
    offset: int
    body: memoryview


def read_pieces(
    store: ObjectStore, source: Location, planned: PlannedPart, packed: PackedPart
) -> Iterator[tuple[bytes | memoryview, list[Piece]]]:
    """Read a part in runs, each with its pieces of raw objects.

    A run of a compressed part is one frame, and its pieces are decompressed. Other runs have up to 8 MiB.

    :returns: runs that are the bytes of the part, end to end, and their pieces
    :raises NotFoundError: if the part is gone
    :raises InputChangedError: if the part was overwritten since it was packed
    :raises ProofError: if a frame cannot be decompressed
    """
    if packed.frames:
        yield from _read_frames(store, source, planned, packed)
        return
    where = [
        (place.offset, place.offset + item.size)
        for place, item in zip(places(planned, packed), planned.objects, strict=True)
    ]
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


def _read_frames(
    store: ObjectStore, source: Location, planned: PlannedPart, packed: PackedPart
) -> Iterator[tuple[memoryview, list[Piece]]]:
    """The frames of a part, each with the pieces of its content; then what follows the last frame."""
    members = enumerate(zip(planned.objects, packed.objects, strict=True))
    left = list(packed.frames)
    position = 0
    while left:
        batch: list[Frame] = []
        size = 0
        while left and (not batch or size + left[0].size <= READ_BACK_BYTES):
            batch.append(left.pop(0))
            size += batch[-1].size
        run = memoryview(store.read_range(source, packed.etag, position, size))
        position += size
        start = 0
        for frame in batch:
            body = run[start : start + frame.size]
            start += frame.size
            content = memoryview(decompress_frame(source, planned.compression, body, frame.content))
            pieces, offset = [], 0
            for index, (item, done) in islice(members, frame.objects):
                held = held_size(item, done)
                if held:
                    pieces.append(Piece(index, 0, content[offset : offset + held]))
                offset += held + done.separator
            yield body, pieces
    if position < packed.size:
        yield memoryview(store.read_range(source, packed.etag, position, packed.size - position)), []


def decompress_frame(source: Location, compression: str, body: bytes | memoryview, size: int) -> bytes:
    """The content of a frame of a part.

    :param source: the part, for the message
    :param size: of the content, in bytes
    :raises ProofError: if it cannot be decompressed
    """
    try:
        return codec_of(compression).decompress(body, size)
    except ValueError as error:
        raise ProofError(f"{source}: {error}") from None
