"""What the pipeline writes beside the parts: plans, receipts, the manifest, the marker, as JSON."""

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeVar

from include.log_rollup import crc
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    TooLargeError,
    TransientError,
    UnreadableRecordError,
)
from include.log_rollup.hour.plan import PLAN_FORMAT, LeftOut, PlannedPart, ShardRef
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.units import KIB, MIB

log = logging.getLogger(__name__)

T = TypeVar("T")

CLAIM_FORMAT = 2
RECEIPT_FORMAT = 1
MANIFEST_FORMAT = 1
MARKER_FORMAT = 1
REMOVAL_FORMAT = 1
# Enough for the header of 500 parts; a longer one takes more requests.
HEADER_BYTES = 128 * KIB
# No record of ours is larger. A claim or a marker has some hundred bytes, the header of a million objects 5 MB.
SMALL_RECORD_BYTES = MIB
LONGEST_LINE_BYTES = 64 * MIB
# Of a shard or receipt: 20 times what one of 156,000 objects has, of an hour of 10 million.
UNPACKED_BYTES = 512 * MIB
# A manifest of 30,000 objects has 2 MB; a larger one is read in pieces of this size, again for each use.
MANIFEST_AT_ONCE_BYTES = 8 * MIB
_UNZIP_PIECE_BYTES = MIB

JSON = "application/json"
GZIP = "application/gzip"

# How the bytes of a raw object were checked when they were read, or later.
READ_BY_LENGTH = "length"
READ_BY_ETAG = "etag-md5"
# How a finished part was proven.
PROVEN_BY_STORE = "stored-crc64nvme"
PROVEN_BY_READING = "read-back"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The parts of one shard, with all their raw objects."""

    plan_id: str
    shard: int
    parts: tuple[PlannedPart, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """Which plan is being built.

    :param plan_id: empty where the claim cannot be read
    :param claim_id: different for each planning, of the same plan too
    :param etag: of the claim as an object
    """

    plan_id: str
    run_id: str
    claim_id: str
    etag: str


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan without its parts: its settings, its totals and its shards.

    :param digests: see :class:`include.log_rollup.hour.plan.ObjectDigests`
    :param replaces: names of parts of earlier plans that were there when this plan was made
    """

    plan_id: str
    stream: str
    hour: str
    parts: int
    objects: int
    bytes_in: int
    left_out: LeftOut
    shards: tuple[ShardRef, ...]
    digests: Mapping[str, str]
    replaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PackedObject:
    """A raw object as it was packed: CRC of its bytes (None if S3 copied it), and how the read was checked.

    ``checked`` is the name of the store's own CRC, ``etag-md5``, or ``length`` where nothing more was to be
    had; ``etag_is_md5`` says that reading the part back can still prove more. ``separator`` is the number of
    newline bytes written behind it. ``damaged`` says that it could not be decompressed, where that was tried.
    """

    crc64nvme: int | None
    checked: str
    etag_is_md5: bool
    separator: int = 0
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class PackedPart:
    """A part as it was written; ``proof`` is set once it has been proven, and holds for this ETag."""

    name: str
    fingerprint: str
    size: int
    etag: str
    crc64nvme: int | None
    objects: tuple[PackedObject, ...]
    proof: str | None = None

    @property
    def separators(self) -> int:
        """Bytes in the part that are in no raw object."""
        return sum(item.separator for item in self.objects)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a shard's task measured, peaks over its whole life; adding two keeps the higher peaks."""

    max_connections: int = 0
    sockets: int = 0
    open_files: int = 0
    rss_bytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    requests: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    throttles: int = 0
    parts_written: int = 0
    parts_left_alone: int = 0

    def __add__(self, other: "Measured") -> "Measured":
        requests = dict(self.requests)
        for name, count in other.requests.items():
            requests[name] = requests.get(name, 0) + count
        return Measured(
            max_connections=max(self.max_connections, other.max_connections),
            sockets=max(self.sockets, other.sockets),
            open_files=max(self.open_files, other.open_files),
            rss_bytes=max(self.rss_bytes, other.rss_bytes),
            seconds=round(self.seconds + other.seconds, 3),
            cpu_seconds=round(self.cpu_seconds + other.cpu_seconds, 3),
            requests=requests,
            retries=self.retries + other.retries,
            throttles=self.throttles + other.throttles,
            parts_written=self.parts_written + other.parts_written,
            parts_left_alone=self.parts_left_alone + other.parts_left_alone,
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a shard has written so far, and what it measured.

    :param splits: by the name of a planned part, the parts that were written instead of it, because objects in it
        were found damaged
    """

    plan_id: str
    shard: int
    parts: tuple[PackedPart, ...] = ()
    measured: Measured = Measured()
    splits: Mapping[str, tuple[PlannedPart, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verified:
    """How many parts and raw objects were proven, by kind of proof."""

    parts: Mapping[str, int]
    objects: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HourTotals:
    """What a validated hour amounts to; sizes in bytes.

    :param foreign: objects below the aggregated hour that are not this project's; they were left alone
    :param damaged: raw objects that could not be decompressed, where the stream has that tried
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """A validated hour in full: the plan as it was packed, and the parts as they were proven."""

    totals: HourTotals
    planned: tuple[PlannedPart, ...]
    packed: tuple[PackedPart, ...]
    validated_at: str


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _zip(text: str) -> bytes:
    # No time and no name in the header: the same content is the same object.
    packer = zlib.compressobj(level=4, wbits=zlib.MAX_WBITS | 16)
    return packer.compress(text.encode()) + packer.flush()


def _unzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What gzip members hold, a piece at a time.

    :param pieces: the members, cut anywhere
    :raises zlib.error: if they are damaged
    :raises EOFError: if the last one is cut short
    """
    rest = iter(pieces)
    piece, position = b"", 0
    unpacker = None
    while True:
        packed = unpacker.unconsumed_tail if unpacker is not None else b""
        if not packed:
            if position == len(piece):
                piece, position = next(rest, b""), 0
            if unpacker is None:
                if not piece:
                    return
                unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            packed = piece[position : position + _UNZIP_PIECE_BYTES]
            position += len(packed)
        assert unpacker is not None
        unpacked = unpacker.decompress(packed, _UNZIP_PIECE_BYTES)
        if unpacked:
            yield unpacked
        elif not packed and not unpacker.eof:
            raise EOFError("it is cut short")
        if unpacker.eof:
            # The next member begins in what was read already.
            position -= len(unpacker.unused_data)
            unpacker = None


def _unzip(body: bytes, limit: int) -> bytes:
    pieces = []
    size = 0
    for piece in _unzipped((body,)):
        size += len(piece)
        if size > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _unzipped_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of what gzip members hold, without their ends."""
    # Not splitlines(): it would cut at characters that a key may hold.
    begun = b""
    for piece in _unzipped(pieces):
        *lines, rest = piece.split(b"\n")
        if lines:
            yield begun + lines[0]
            yield from lines[1:]
            begun = rest
        else:
            begun += rest
        if len(begun) > LONGEST_LINE_BYTES:
            raise ValueError(f"a line is longer than {LONGEST_LINE_BYTES:,} bytes")
    if begun:
        yield begun


class ManifestWriter:
    """Builds a manifest part by part, so that only its compressed lines are in memory."""

    def __init__(self) -> None:
        self._packer = zlib.compressobj(level=4, wbits=zlib.MAX_WBITS | 16)
        self._lines: list[bytes] = []
        self._table: list[dict[str, Any]] = []

    def add(self, planned: PlannedPart, packed: PackedPart) -> None:
        """Add a proven part with its raw objects."""
        self._table.append(_table_row(planned, packed))
        text = "".join(f"{_json(line)}\n" for line in object_lines(planned, packed))
        self._lines.append(self._packer.compress(text.encode()))

    def finish(self, totals: HourTotals, validated_at: str, raw_prefix: str, claim_id: str) -> bytes:
        """The manifest: the header line as a gzip member of its own, then the lines of the raw objects.

        :param claim_id: of the claim under which the hour was proven
        """
        fields = _header(totals, validated_at, raw_prefix, self._table) | {"claim_id": claim_id}
        header = f"{_json(fields)}\n"
        return b"".join((_zip(header), *self._lines, self._packer.flush()))


class ManifestReader:
    """A manifest: its header is read at once, its parts as they are asked for.

    :param source: where it lies
    :param read: reads its bytes from the beginning, in pieces
    :raises UnreadableRecordError: if it is damaged or of another format; while parts are read, too
    """

    def __init__(self, source: Location, read: Callable[[], Iterable[bytes]]) -> None:
        self.source = source
        self._read = read
        with _manifest_readable(source):
            header = _manifest_header(source, next(_unzipped_lines(read()), b""))
            header.pop("raw_prefix")
            self.claim_id: str = header.pop("claim_id", "")
            self.validated_at: str = header.pop("validated_at")
            self.table: list[dict[str, Any]] = header.pop("parts_table")
            header["left_out"] = LeftOut(**header["left_out"])
            header["verified"] = Verified(**header["verified"])
            header["measured"] = Measured(**header["measured"])
            self.totals = HourTotals(**header)
            for entry in self.table:
                # Read here, so that a damaged table is found before anything is done.
                _ = entry["name"], entry["fingerprint"], entry["size"], entry["etag"], entry["objects"]

    def parts(self) -> Iterator[tuple[PlannedPart, PackedPart]]:
        """Each part as it was planned and as it was proven, with its raw objects; reads to the end."""
        with _manifest_readable(self.source):
            lines = _unzipped_lines(self._read())
            next(lines)
            rows = (json.loads(line) for line in lines)
            for entry in self.table:
                yield _proven_part(entry, rows)
            for row in rows:
                raise ValueError(f"it has more lines than objects, the first of them for {row.get('key')!r}")

    def whole(self) -> Manifest:
        """All of it in memory."""
        found = list(self.parts())
        return Manifest(
            self.totals,
            tuple(planned for planned, _ in found),
            tuple(packed for _, packed in found),
            self.validated_at,
        )


class Records:
    """Reads and writes these records in one hour's place in the bucket.

    A plan, shard, receipt or claim that is not there, is damaged, or is of another version of this code, counts as
    none: what it described is then planned or packed again. Of a manifest that is damaged or of another version
    nothing may be concluded, so that is an error.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def write_shard(self, target: Location, shard: ShardPlan, raw_prefix: str) -> None:
        """Write the parts of a shard, keys without the hour's raw prefix."""
        parts = [
            [
                part.name, part.encoding, part.size, part.copied, part.fingerprint,
                [[item.key.removeprefix(raw_prefix), item.size, item.etag] for item in part.objects],
            ]
            for part in shard.parts
        ]  # fmt: skip
        body = {"format": PLAN_FORMAT, "plan_id": shard.plan_id, "shard": shard.shard, "parts": parts}
        self._store.write(target, _zip(_json(body)), GZIP)

    def read_shard(
        self, source: Location, raw_prefix: str, formats: Sequence[int] = (PLAN_FORMAT,)
    ) -> ShardPlan | None:
        """Read the parts of a shard.

        :param formats: that are good enough; to know what an older version planned, format 1 is
        """

        def parse(body: dict[str, Any]) -> ShardPlan:
            parts = tuple(
                PlannedPart(
                    name,
                    encoding,
                    size,
                    copied,
                    fingerprint,
                    tuple(ObjectInfo(raw_prefix + key, size, etag) for key, size, etag in rows),
                )
                for name, encoding, size, copied, fingerprint, rows in body["parts"]
            )
            return ShardPlan(body["plan_id"], body["shard"], parts)

        return self._read(source, formats, parse)

    def write_plan(self, target: Location, summary: PlanSummary) -> None:
        """Write a plan's summary, which makes the plan whole."""
        self._store.write(target, _json({"format": PLAN_FORMAT, **asdict(summary)}).encode(), JSON)

    def read_plan(self, source: Location) -> PlanSummary | None:
        """Read a plan's summary."""

        def parse(body: dict[str, Any]) -> PlanSummary:
            left_out = LeftOut(**body.pop("left_out"))
            shards = tuple(ShardRef(**ref) for ref in body.pop("shards"))
            replaces = tuple(body.pop("replaces"))
            return PlanSummary(**body, left_out=left_out, shards=shards, replaces=replaces)

        return self._read(source, (PLAN_FORMAT,), parse)

    def write_claim(self, target: Location, plan_id: str, run_id: str, claim_id: str) -> Claim:
        """Say which plan is being built, and by which run."""
        body = {"format": CLAIM_FORMAT, "plan_id": plan_id, "run_id": run_id, "claim_id": claim_id}
        return Claim(plan_id, run_id, claim_id, self._store.write(target, _json(body).encode(), JSON))

    def read_claim(self, source: Location) -> Claim | None:
        """The claim of an hour; without a plan if it cannot be read."""
        try:
            found = self._store.read(source, SMALL_RECORD_BYTES)
        except TooLargeError:
            return Claim("", "", "", "")
        return None if found is None else parse_claim(found.body, found.etag)

    def write_receipt(self, target: Location, receipt: Receipt) -> None:
        """Write what a shard has done so far."""
        body = {
            "format": RECEIPT_FORMAT,
            "plan_id": receipt.plan_id,
            "shard": receipt.shard,
            "measured": asdict(receipt.measured),
            "parts": [packed_row(part) for part in receipt.parts],
        }
        if receipt.splits:
            body["splits"] = {
                name: [
                    [part.name, part.encoding, part.size, part.fingerprint, list(map(list, part.objects))]
                    for part in parts
                ]
                for name, parts in receipt.splits.items()
            }
        self._store.write(target, _zip(_json(body)), GZIP)

    def write_receipt_rows(
        self, target: Location, plan_id: str, shard: int, rows: Sequence[str], measured: Measured
    ) -> None:
        """Write a receipt from parts that are JSON already; see :func:`packed_row`."""
        head = {
            "format": RECEIPT_FORMAT,
            "plan_id": plan_id,
            "shard": shard,
            "measured": asdict(measured),
        }
        text = f'{_json(head)[:-1]},"parts":[{",".join(rows)}]}}'
        self._store.write(target, _zip(text), GZIP)

    def read_receipt(self, source: Location) -> Receipt | None:
        """Read what a shard has done so far."""

        def parse(body: dict[str, Any]) -> Receipt:
            parts = tuple(_packed_part(row) for row in body["parts"])
            splits = {
                name: tuple(
                    PlannedPart(
                        part,
                        encoding,
                        size,
                        False,
                        fingerprint,
                        tuple(ObjectInfo(*item) for item in objects),
                        name,
                    )
                    for part, encoding, size, fingerprint, objects in rows
                )
                for name, rows in body.get("splits", {}).items()
            }
            return Receipt(body["plan_id"], body["shard"], parts, Measured(**body["measured"]), splits)

        return self._read(source, (RECEIPT_FORMAT,), parse)

    def write_removal(self, target: Location, names: Sequence[str]) -> None:
        """Write down which parts, and which files below ``_rollup/``, are about to be deleted."""
        self._store.write(target, _json({"format": REMOVAL_FORMAT, "names": list(names)}).encode(), JSON)

    def read_removal(self, source: Location) -> Sequence[str]:
        """What is about to be deleted; nothing if the record is not there or cannot be read."""

        def parse(body: dict[str, Any]) -> Sequence[str]:
            return [str(name) for name in body["names"]]

        return self._read(source, (REMOVAL_FORMAT,), parse) or ()

    def open_manifest(self, source: Location) -> ManifestReader | None:
        """Read a manifest's header, and have its parts at hand; None if there is no manifest.

        :raises UnreadableRecordError: if it is damaged or of another format
        """
        try:
            found = self._store.read(source, MANIFEST_AT_ONCE_BYTES)
        except TooLargeError:
            return self._open_large_manifest(source)
        return None if found is None else ManifestReader(source, lambda: (found.body,))

    def _open_large_manifest(self, source: Location) -> ManifestReader | None:
        head = self._store.head(source)
        if head is None:
            return None

        def read() -> Iterator[bytes]:
            for offset in range(0, head.size, MANIFEST_AT_ONCE_BYTES):
                length = min(MANIFEST_AT_ONCE_BYTES, head.size - offset)
                try:
                    yield self._store.read_range(source, head.etag, offset, length)
                except (NotFoundError, InputChangedError) as error:
                    raise TransientError(f"{source} was replaced while it was read: {error}") from error

        return ManifestReader(source, read)

    def read_manifest(self, source: Location) -> Manifest | None:
        """Read a manifest whole, parts and raw objects; None if there is none.

        :raises UnreadableRecordError: if it is damaged or of another format
        """
        reader = self.open_manifest(source)
        return None if reader is None else reader.whole()

    def read_manifest_header(self, source: Location) -> dict[str, Any] | None:
        """Read the totals and the table of parts alone: of a manifest of any length, little more than these.

        :raises UnreadableRecordError: if they are damaged or of another format
        :raises InputChangedError: if it is written anew meanwhile
        """
        head = self._store.head(source)
        if head is None:
            return None
        text, unpacker = b"", zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        with _manifest_readable(source):
            for offset in range(0, head.size, HEADER_BYTES):
                length = min(HEADER_BYTES, head.size - offset)
                packed = self._store.read_range(source, head.etag, offset, length)
                while packed:
                    text += unpacker.decompress(packed, LONGEST_LINE_BYTES)
                    packed = unpacker.unconsumed_tail
                    line, newline, _ = text.partition(b"\n")
                    if newline:
                        return _manifest_header(source, line)
                    if len(text) > LONGEST_LINE_BYTES:
                        raise ValueError(f"its header is longer than {LONGEST_LINE_BYTES:,} bytes")
            raise EOFError("its first line does not end")

    def read_marker(self, source: Location) -> dict[str, Any] | None:
        """Read the completion marker; an empty dict if it is there but not one of this version."""
        return self.read_marker_with_etag(source)[0]

    def read_marker_with_etag(self, source: Location) -> tuple[dict[str, Any] | None, str]:
        """As :meth:`read_marker`, with the ETag of the marker as an object; empty if it is not known."""
        try:
            found = self._store.read(source, SMALL_RECORD_BYTES)
        except TooLargeError:
            return {}, ""
        if found is None:
            return None, ""
        try:
            marker = json.loads(found.body)
        except (ValueError, RecursionError):
            return {}, found.etag
        ours = isinstance(marker, dict) and marker.get("format") == MARKER_FORMAT
        return (marker if ours else {}), found.etag

    def is_marked(self, source: Location, plan_id: str) -> bool:
        """Whether the completion marker is there, and of this plan."""
        marker = self.read_marker(source)
        return marker is not None and marker.get("plan_id") == plan_id

    def _read(
        self, source: Location, formats: Sequence[int], parse: Callable[[dict[str, Any]], T]
    ) -> T | None:
        try:
            found = self._store.read(source)
            if found is None:
                return None
            value = json.loads(
                _unzip(found.body, UNPACKED_BYTES) if source.key.endswith(".gz") else found.body
            )
            return parse(value) if value.pop("format") in formats else None
        except (TooLargeError, *_DAMAGED) as error:
            log.warning("%s cannot be read (%s); it counts as not there", source, error)
            return None


def parse_claim(body: bytes, etag: str = "") -> Claim:
    """A claim from its bytes; without a plan if it is damaged or another version's."""
    try:
        value = json.loads(body)
        if value["format"] == CLAIM_FORMAT:
            return Claim(str(value["plan_id"]), str(value["run_id"]), str(value["claim_id"]), etag)
    except _DAMAGED:
        pass
    return Claim("", "", "", etag)


def marker_body(marker: Mapping[str, Any]) -> bytes:
    """The completion marker as it is written."""
    return (json.dumps(marker, indent=1) + "\n").encode()


def manifest_lines(manifest: Manifest, raw_prefix: str) -> Iterator[dict[str, Any]]:
    """The lines of a manifest: the header, then one for each raw object in the order of the parts."""
    pairs = list(zip(manifest.planned, manifest.packed, strict=True))
    table = [_table_row(planned, packed) for planned, packed in pairs]
    yield _header(manifest.totals, manifest.validated_at, raw_prefix, table)
    for planned, packed in pairs:
        yield from object_lines(planned, packed)


def _header(
    totals: HourTotals, validated_at: str, raw_prefix: str, table: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": MANIFEST_FORMAT,
        **asdict(totals),
        "raw_prefix": raw_prefix,
        "validated_at": validated_at,
        "parts_table": table,
    }


def _table_row(planned: PlannedPart, packed: PackedPart) -> dict[str, Any]:
    row = {
        "name": planned.name, "encoding": planned.encoding, "size": packed.size,
        "etag": packed.etag, "crc64nvme": _hex(packed.crc64nvme), "objects": len(packed.objects),
        "copied": planned.copied, "fingerprint": planned.fingerprint, "proof": packed.proof,
    }  # fmt: skip
    return {**row, "split_of": planned.split_of} if planned.split_of else row


def object_lines(planned: PlannedPart, packed: PackedPart) -> Iterator[dict[str, Any]]:
    """The lines of the raw objects of one part."""
    offset = 0
    for item, done in zip(planned.objects, packed.objects, strict=True):
        line = {
            "key": item.key, "part": planned.name, "offset": offset, "length": item.size,
            "etag": item.etag, "crc64nvme": _hex(done.crc64nvme), "checked": done.checked,
        }  # fmt: skip
        if done.damaged:
            line["damaged"] = True
        yield line
        offset += item.size + done.separator


# What reading a damaged record, or one of another shape, may raise.
_DAMAGED = (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError, RecursionError)


@contextmanager
def _manifest_readable(source: Location) -> Iterator[None]:
    """Turn what reading a damaged manifest raises into an error with its place and the remedy."""
    try:
        yield
    except (TooLargeError, *_DAMAGED) as error:
        raise UnreadableRecordError(
            f"{source}: the manifest cannot be read ({error}). It says what the parts hold, so nothing is changed "
            f"without it. Restore it from a backup or from an older version of the object. If there is none and "
            f"all raw objects still exist, move it and the part-* objects beside it away, then clear the run from "
            f"plan_hour on."
        ) from error


def _manifest_header(source: Location, line: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(line)
    written_as = header.pop("format")
    if written_as != MANIFEST_FORMAT:
        raise UnreadableRecordError(
            f"{source}: the manifest has format {written_as}, this version of Log Rollup reads format "
            f"{MANIFEST_FORMAT}, so nothing is changed. Update Log Rollup to the version that wrote it, then "
            f"clear the run from plan_hour on."
        )
    return header


def _hex(value: int | None) -> str | None:
    return None if value is None else crc.to_hex(value)


def _unhex(text: str | None) -> int | None:
    return None if text is None else int(text, 16)


def packed_row(part: PackedPart) -> list[Any]:
    """A packed part as a receipt holds it."""
    objects = [
        [_hex(item.crc64nvme), item.checked, item.etag_is_md5, item.separator]
        + ([True] if item.damaged else [])
        for item in part.objects
    ]
    return [
        part.name, part.fingerprint, part.size, part.etag, _hex(part.crc64nvme), part.proof, objects
    ]  # fmt: skip


def packed_row_json(part: PackedPart) -> str:
    """As :func:`packed_row`, as JSON."""
    return _json(packed_row(part))


def _packed_part(row: Sequence[Any]) -> PackedPart:
    name, fingerprint, size, etag, crc64nvme, proof, objects = row
    packed = tuple(
        PackedObject(_unhex(item), checked, is_md5, separator, bool(damaged))
        for item, checked, is_md5, separator, *damaged in objects
    )
    return PackedPart(name, fingerprint, size, etag, _unhex(crc64nvme), packed, proof)


def _proven_part(
    entry: dict[str, Any], remaining: Iterator[dict[str, Any]]
) -> tuple[PlannedPart, PackedPart]:
    rows = list(islice(remaining, entry["objects"]))
    if len(rows) != entry["objects"]:
        raise EOFError(f"the lines of {entry['name']} are missing")
    ends = [row["offset"] for row in rows[1:]] + [entry["size"]]
    objects, done = [], []
    for row, end in zip(rows, ends, strict=True):
        objects.append(ObjectInfo(row["key"], row["length"], row["etag"]))
        # A proven part needs no second proof of its reads, so nothing more is asked of the ETag.
        done.append(
            PackedObject(
                _unhex(row["crc64nvme"]),
                row["checked"],
                False,
                end - row["offset"] - row["length"],
                bool(row.get("damaged")),
            )
        )
    planned = PlannedPart(
        entry["name"], entry["encoding"], sum(item.size for item in objects), entry["copied"],
        entry["fingerprint"], tuple(objects), entry.get("split_of", ""),
    )  # fmt: skip
    packed = PackedPart(
        entry["name"], entry["fingerprint"], entry["size"], entry["etag"], _unhex(entry["crc64nvme"]),
        tuple(done), entry["proof"],
    )  # fmt: skip
    return planned, packed
