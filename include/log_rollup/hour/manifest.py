"""The manifest of an hour: totals, a table of its parts, and one line for each raw object."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from typing import Any

from include.log_rollup.compression import COMPRESSIONS
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    TooLargeError,
    TransientError,
    UnreadableRecordError,
)
from include.log_rollup.hour.gzip_json import (
    DAMAGED_ERRORS,
    LONGEST_LINE_BYTES,
    compress_text,
    decompress_lines,
    new_compressor,
    new_decompressor,
    to_json,
)
from include.log_rollup.hour.parts import count_recompressed, places
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import (
    Content,
    Frame,
    Measured,
    PackedObject,
    PackedPart,
    crc_text,
    parse_crc,
)
from include.log_rollup.hour.selection import LeftOut
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.units import KIB, MIB

# Format 2 has compressed parts: "offset" is that in the content of a frame, and a recompressed object has length
# and CRC of its content. Other manifests are written in format 1, so that versions without compression read them.
MANIFEST_FORMAT, MANIFEST_FORMAT_COMPRESSED = 1, 2
# One request reads the header of up to 500 parts; a longer header takes more requests.
HEADER_BYTES = 128 * KIB
# The manifest of 30,000 objects has 2 MB. A larger one is read in pieces of this size, again for each use.
MANIFEST_AT_ONCE_BYTES = 8 * MIB
_OPTIONAL_TOTALS = ("bytes_stored", "recompressed", "bytes_unpacked")


@dataclass(frozen=True, slots=True)
class Verified:
    """Number of parts by proof, and of raw objects by how their bytes were compared."""

    parts: Mapping[str, int]
    objects: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """Totals of a group of a validated hour; sizes in bytes.

    :param folder: of its parts, as in the names of the table of parts
    :param captures: values of the captures of the template ``aggregated``, by name
    :param bytes_stored: size of its parts in the bucket, if any of them is compressed; else 0
    :param recompressed: number of raw objects that are in the parts as their content
    :param bytes_unpacked: as in :class:`HourTotals`
    """

    folder: str
    captures: Mapping[str, str]
    objects: int
    bytes_in: int
    separator_bytes: int
    bytes_out: int
    parts: int
    verified: Verified
    damaged: int = 0
    bytes_stored: int = 0
    recompressed: int = 0
    bytes_unpacked: int = 0

    def to_json(self) -> dict[str, Any]:
        """The totals as in manifest and marker: those of compression only if they are not 0."""
        values = asdict(self)
        return {key: value for key, value in values.items() if value or key not in _OPTIONAL_TOTALS}


@dataclass(frozen=True, slots=True)
class HourTotals:
    """Totals of a validated hour; sizes in bytes.

    :param foreign: number of foreign objects below the aggregated hour
    :param damaged: number of raw objects that could not be decompressed; only tried with ``check_encoding`` or
        ``recompress``
    :param groups: of a stream with groups, in the order of the folders
    :param group: of the manifest of a group: its captures
    :param bytes_stored: size of the parts in the bucket, if any of them is compressed; else 0
    :param recompressed: number of raw objects that are in the parts as their content
    :param bytes_unpacked: size of the raw objects, of the recompressed ones that of their content; 0 if there are
        none of those
    """

    stream: str
    hour: str
    plan_id: str
    objects: int
    bytes_in: int
    separator_bytes: int
    bytes_out: int
    parts: int
    left_out: LeftOut
    verified: Verified
    measured: Measured
    foreign: int = 0
    damaged: int = 0
    groups: tuple[GroupTotals, ...] = ()
    group: Mapping[str, str] = field(default_factory=dict)
    bytes_stored: int = 0
    recompressed: int = 0
    bytes_unpacked: int = 0

    @property
    def bytes_held(self) -> int:
        """Size of what the parts have of the raw objects: their bytes, or the content of recompressed ones."""
        return self.bytes_unpacked if self.recompressed else self.bytes_in

    def of_group(self, group: GroupTotals) -> "HourTotals":
        """The totals of a group alone; what tasks measured is that of the whole hour."""
        return replace(
            self,
            objects=group.objects,
            bytes_in=group.bytes_in,
            separator_bytes=group.separator_bytes,
            bytes_out=group.bytes_out,
            parts=group.parts,
            left_out=LeftOut(),
            verified=group.verified,
            foreign=0,
            damaged=group.damaged,
            groups=(),
            group=group.captures,
            bytes_stored=group.bytes_stored,
            recompressed=group.recompressed,
            bytes_unpacked=group.bytes_unpacked,
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole manifest in memory: the parts as planned and as packed, in the same order."""

    totals: HourTotals
    planned: tuple[PlannedPart, ...]
    packed: tuple[PackedPart, ...]
    validated_at: str


class ManifestWriter:
    """Builds a manifest part by part; only the compressed lines stay in memory."""

    def __init__(self) -> None:
        self._compressor = new_compressor()
        self._lines: list[bytes] = []
        self._table: list[dict[str, Any]] = []
        self._is_ended = False

    def add(self, planned: PlannedPart, packed: PackedPart) -> None:
        """Add a proven part with its raw objects."""
        self._table.append(_table_row(planned, packed))
        text = "".join(f"{to_json(line)}\n" for line in object_lines(planned, packed))
        self._lines.append(self._compressor.compress(text.encode()))

    def end(self) -> None:
        """Free the compressor's memory: no part is added any more."""
        self._lines.append(self._compressor.flush())
        self._is_ended = True

    def finish(self, totals: HourTotals, validated_at: str, raw_prefix: str, claim_id: str) -> bytes:
        """The bytes of the manifest: one gzip member with the header line, one with the lines of the raw objects.

        :param claim_id: of the claim under which the hour was proven
        """
        values = _header(totals, validated_at, raw_prefix, self._table) | {"claim_id": claim_id}
        header = f"{to_json(values)}\n"
        if not self._is_ended:
            self.end()
        return b"".join((compress_text(header), *self._lines))


class ManifestReader:
    """A manifest whose header is read at once, and whose parts are read on demand.

    :param source: the manifest's location, for messages
    :param read: reads its bytes from the beginning, in pieces
    :param etag: of the object; empty if it is not known
    :raises UnreadableRecordError: if it is damaged or of another format; also while parts are read
    """

    def __init__(self, source: Location, read: Callable[[], Iterable[bytes]], etag: str = "") -> None:
        self.source = source
        self.etag = etag
        self._read = read
        with _readable(source):
            header = _parse_header(source, next(decompress_lines(read()), b""))
            header.pop("raw_prefix")
            self.claim_id: str = header.pop("claim_id", "")
            self.validated_at: str = header.pop("validated_at")
            self.table: list[dict[str, Any]] = header.pop("parts_table")
            header["left_out"] = LeftOut(**header["left_out"])
            header["verified"] = Verified(**header["verified"])
            header["measured"] = Measured(**header["measured"])
            header["groups"] = tuple(_group_totals(group) for group in header.get("groups", ()))
            self.totals = HourTotals(**header)
            for entry in self.table:
                # Find a damaged table now, before anything is done.
                _ = entry["name"], entry["fingerprint"], entry["size"], entry["etag"], entry["objects"]

    @property
    def names(self) -> set[str]:
        """The names of its parts."""
        return {entry["name"] for entry in self.table}

    def parts(self) -> Iterator[tuple[PlannedPart, PackedPart]]:
        """Each part as planned and as proven, with its raw objects; reads the manifest to its end."""
        with _readable(self.source):
            lines = decompress_lines(self._read())
            next(lines)
            rows = (json.loads(line) for line in lines)
            for entry in self.table:
                yield _proven_part(entry, rows)
            for row in rows:
                raise ValueError(f"it has more lines than objects, the first of them for {row.get('key')!r}")

    def part(self, name: str) -> tuple[PlannedPart, PackedPart] | None:
        """One part as planned and as proven, with its raw objects; None if the manifest doesn't have it.

        :param name: as in the table of parts
        """
        with _readable(self.source):
            lines = decompress_lines(self._read())
            next(lines)
            for entry in self.table:
                if entry["name"] == name:
                    return _proven_part(entry, map(json.loads, lines))
                # Lines of other parts are not parsed.
                deque(islice(lines, entry["objects"]), maxlen=0)
        return None

    def older_versions(self) -> dict[str, set[int]]:
        """The indices of the raw objects of which a later part has a newer version, by the name of their part.

        There are such objects only if a producer wrote them again after they had expired.
        """
        last: dict[str, tuple[str, int]] = {}
        older: dict[str, set[int]] = {}
        for planned, _ in self.parts():
            for index, item in enumerate(planned.objects):
                before = last.get(item.key)
                if before is not None:
                    older.setdefault(before[0], set()).add(before[1])
                last[item.key] = planned.name, index
        return older

    def whole(self) -> Manifest:
        """The whole manifest in memory."""
        found = list(self.parts())
        return Manifest(
            self.totals,
            tuple(planned for planned, _ in found),
            tuple(packed for _, packed in found),
            self.validated_at,
        )


def _group_totals(values: Mapping[str, Any]) -> GroupTotals:
    return GroupTotals(**{**values, "verified": Verified(**values["verified"])})


def open_manifest(store: ObjectStore, source: Location) -> ManifestReader | None:
    """Open a manifest and read its header; None if there is no manifest.

    :raises UnreadableRecordError: if it is damaged or of another format
    """
    try:
        found = store.read(source, MANIFEST_AT_ONCE_BYTES)
    except TooLargeError:
        return _open_large_manifest(store, source)
    return None if found is None else ManifestReader(source, lambda: (found.body,), found.etag)


def _open_large_manifest(store: ObjectStore, source: Location) -> ManifestReader | None:
    head = store.head(source)
    if head is None:
        return None

    def read() -> Iterator[bytes]:
        for offset in range(0, head.size, MANIFEST_AT_ONCE_BYTES):
            length = min(MANIFEST_AT_ONCE_BYTES, head.size - offset)
            try:
                yield store.read_range(source, head.etag, offset, length)
            except (NotFoundError, InputChangedError) as error:
                raise TransientError(f"{source} was replaced while it was read: {error}") from error

    return ManifestReader(source, read, head.etag)


def read_manifest(store: ObjectStore, source: Location) -> Manifest | None:
    """Read a whole manifest into memory; None if there is none.

    :raises UnreadableRecordError: if it is damaged or of another format
    """
    reader = open_manifest(store, source)
    return None if reader is None else reader.whole()


def read_manifest_header(store: ObjectStore, source: Location) -> dict[str, Any] | None:
    """Read only the header, with totals and table of parts; None if there is no manifest.

    :raises UnreadableRecordError: if it is damaged or of another format
    :raises InputChangedError: if the manifest is replaced meanwhile
    """
    head = store.head(source)
    if head is None:
        return None
    text, decompressor = b"", new_decompressor()
    with _readable(source):
        for offset in range(0, head.size, HEADER_BYTES):
            length = min(HEADER_BYTES, head.size - offset)
            data = store.read_range(source, head.etag, offset, length)
            while data:
                text += decompressor.decompress(data, LONGEST_LINE_BYTES)
                data = decompressor.unconsumed_tail
                line, newline, _ = text.partition(b"\n")
                if newline:
                    return _parse_header(source, line)
                if len(text) > LONGEST_LINE_BYTES:
                    raise ValueError(f"its header is longer than {LONGEST_LINE_BYTES:,} bytes")
        raise EOFError("its first line does not end")


def manifest_lines(manifest: Manifest, raw_prefix: str) -> Iterator[dict[str, Any]]:
    """The lines of a manifest: the header, then one for each raw object in the order of the parts."""
    pairs = list(zip(manifest.planned, manifest.packed, strict=True))
    table = [_table_row(planned, packed) for planned, packed in pairs]
    yield _header(manifest.totals, manifest.validated_at, raw_prefix, table)
    for planned, packed in pairs:
        yield from object_lines(planned, packed)


def object_lines(planned: PlannedPart, packed: PackedPart) -> Iterator[dict[str, Any]]:
    """The lines of the raw objects of one part."""
    for item, done, place in zip(planned.objects, packed.objects, places(planned, packed), strict=True):
        line = {
            "key": item.key, "part": planned.name, "offset": place.offset, "length": item.size,
            "etag": item.etag, "crc64nvme": crc_text(done.crc64nvme), "checked": done.checked,
        }  # fmt: skip
        if done.damaged:
            line["damaged"] = True
        if place.frame is not None:
            line["frame_offset"], line["frame_length"] = place.frame_offset, place.frame.size
            line["separator"] = done.separator
        if done.content is not None:
            line["content_length"] = done.content.size
            line["content_crc64nvme"] = crc_text(done.content.crc64nvme)
        yield line


def _header(
    totals: HourTotals, validated_at: str, raw_prefix: str, table: list[dict[str, Any]]
) -> dict[str, Any]:
    values = asdict(totals)
    values["groups"] = [group.to_json() for group in totals.groups]
    for optional in ("groups", "group", *_OPTIONAL_TOTALS):
        if not values[optional]:
            del values[optional]
    is_compressed = any("compression" in row for row in table)
    return {
        "format": MANIFEST_FORMAT_COMPRESSED if is_compressed else MANIFEST_FORMAT,
        **values,
        "raw_prefix": raw_prefix,
        "validated_at": validated_at,
        "parts_table": table,
    }


def _table_row(planned: PlannedPart, packed: PackedPart) -> dict[str, Any]:
    row = {
        "name": planned.name, "encoding": planned.encoding, "size": packed.size,
        "etag": packed.etag, "crc64nvme": crc_text(packed.crc64nvme), "objects": len(packed.objects),
        "copied": planned.copied, "fingerprint": planned.fingerprint, "proof": packed.proof,
    }  # fmt: skip
    if planned.compression:
        row["compression"] = planned.compression
        row["frames"], row["content_size"] = len(packed.frames), packed.content_size
    if planned.recompressed:
        row["recompressed"] = count_recompressed((packed,))
    if planned.split_of:
        row["split_of"] = planned.split_of
    return row


@contextmanager
def _readable(source: Location) -> Iterator[None]:
    """Turn every error of reading a damaged manifest into one that names the manifest and the remedy."""
    try:
        yield
    except (TooLargeError, *DAMAGED_ERRORS) as error:
        raise UnreadableRecordError(
            f"{source}: the manifest cannot be read ({error}). It says what the parts hold, so nothing is changed "
            f"without it. Restore it from a backup or from an older version of the object. If there is none and "
            f"all raw objects still exist, move it and the part-* objects next to it away, then clear the run "
            f"from plan_hour on."
        ) from error


def _parse_header(source: Location, line: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(line)
    written_as = header.pop("format")
    if written_as not in (MANIFEST_FORMAT, MANIFEST_FORMAT_COMPRESSED):
        raise UnreadableRecordError(
            f"{source}: the manifest has format {written_as}, this version of Log Rollup reads formats "
            f"{MANIFEST_FORMAT} and {MANIFEST_FORMAT_COMPRESSED}, so nothing is changed. Update Log Rollup to the "
            f"version that wrote it, then clear the run from plan_hour on."
        )
    return header


def _proven_part(
    entry: dict[str, Any], remaining: Iterator[dict[str, Any]]
) -> tuple[PlannedPart, PackedPart]:
    rows = list(islice(remaining, entry["objects"]))
    if len(rows) != entry["objects"]:
        raise EOFError(f"the lines of {entry['name']} are missing")
    compression = entry.get("compression", "")
    if compression and compression not in COMPRESSIONS:
        raise ValueError(f"{entry['name']} has the unknown compression {compression!r}")
    if compression:
        separators = [int(row["separator"]) for row in rows]
    else:
        ends = [row["offset"] for row in rows[1:]] + [entry["size"]]
        separators = [end - row["offset"] - row["length"] for row, end in zip(rows, ends, strict=True)]
    objects, done = [], []
    for row, separator in zip(rows, separators, strict=True):
        content = _content(row) if compression and "content_length" in row else None
        objects.append(ObjectInfo(row["key"], row["length"], row["etag"]))
        done.append(
            PackedObject(
                parse_crc(row["crc64nvme"]),
                row["checked"],
                # The part is proven, so its objects are not compared with their ETags again.
                False,
                separator,
                bool(row.get("damaged")),
                content,
            )
        )
    planned = PlannedPart(
        entry["name"], entry["encoding"], sum(item.size for item in objects), entry["copied"],
        entry["fingerprint"], tuple(objects), entry.get("split_of", ""),
        compression, "recompressed" in entry,
    )  # fmt: skip
    packed = PackedPart(
        entry["name"], entry["fingerprint"], entry["size"], entry["etag"], parse_crc(entry["crc64nvme"]),
        tuple(done), entry["proof"], _frames(rows) if compression else (),
    )  # fmt: skip
    return planned, packed


def _content(row: Mapping[str, Any]) -> Content:
    return Content(int(row["content_length"]), int(row["content_crc64nvme"], 16))


def _frames(rows: list[dict[str, Any]]) -> tuple[Frame, ...]:
    """The frames of a compressed part, from the lines of its objects."""
    frames = []
    for (_, size), group in groupby(rows, key=lambda row: (row["frame_offset"], row["frame_length"])):
        members = list(group)
        content = sum(row.get("content_length", row["length"]) + row["separator"] for row in members)
        frames.append(Frame(len(members), size, content))
    return tuple(frames)
