"""The records of an hour except its manifest: plan, shards, receipts, claim, removals and completion marker."""

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from include.log_rollup import crc
from include.log_rollup.errors import TooLargeError
from include.log_rollup.hour.gzip_json import DAMAGED_ERRORS, compress_text, decompress, to_json
from include.log_rollup.hour.layout import planned_name
from include.log_rollup.hour.plan import PLAN_FORMAT, PlannedPart, ShardRef
from include.log_rollup.hour.selection import LeftOut
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.units import MIB

log = logging.getLogger(__name__)

T = TypeVar("T")

CLAIM_FORMAT = 2
RECEIPT_FORMAT = 1
MARKER_FORMAT = 1
REMOVAL_FORMAT = 1
# A claim has a few hundred bytes.
SMALL_RECORD_BYTES = MIB
# A completion marker has a few hundred bytes, and with groups up to 500 for each.
MARKER_BYTES = 32 * MIB
_OPTIONAL_MARKER_KEYS = (
    "groups", "group", "why_empty", "bytes_stored", "recompressed", "bytes_unpacked", "raw_digest",
    "older_versions",
)  # fmt: skip
# With the values that are not written, so that earlier versions read plans without them.
_OPTIONAL_PLAN_KEYS = {"in_key_order": True, "replaced_left_out": (), "seen_manifest": None}
# The largest shard or receipt that is read: 20 times one of 156,000 objects, as in an hour of 10 million.
MAX_DECOMPRESSED_BYTES = 512 * MIB

JSON = "application/json"
GZIP = "application/gzip"

# How the bytes of a raw object were compared with it; otherwise the name of the CRC that S3 keeps of it.
READ_BY_LENGTH = "length"
READ_BY_ETAG = "etag-md5"
# Proof of a part.
PROVEN_BY_STORE = "stored-crc64nvme"
PROVEN_BY_READING = "read-back"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The parts of one shard, with all their raw objects.

    :param kept: names of the parts that existed when the hour was planned, perhaps written with other settings
    """

    plan_id: str
    shard: int
    parts: tuple[PlannedPart, ...]
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Claim:
    """Which plan is being built.

    :param plan_id: empty if the claim cannot be read
    :param claim_id: unique for each claim, also of the same plan
    :param etag: of the object ``claim.json``
    """

    plan_id: str
    run_id: str
    claim_id: str
    etag: str


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan without its parts: totals and shards.

    :param digests: see :class:`include.log_rollup.hour.plan.ObjectDigests`
    :param replaces: names of parts of earlier plans that existed when this plan was made
    :param in_key_order: see :class:`include.log_rollup.hour.plan.Plan`
    :param replaced_left_out: keys of raw objects that exist and are left out, in parts of earlier plans
    :param seen_manifest: ETag of the manifest that it was made with; empty if there was none, None if an earlier
        version wrote the plan
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
    in_key_order: bool = True
    replaced_left_out: tuple[str, ...] = ()
    seen_manifest: str | None = None


class Content(NamedTuple):
    """The content of a recompressed object, which its part has instead of its bytes.

    :param size: in bytes
    """

    size: int
    crc64nvme: int


@dataclass(frozen=True, slots=True)
class PackedObject:
    """A raw object as it was packed.

    :param crc64nvme: of its bytes; None if S3 copied it
    :param checked: how its bytes were compared with the raw object: name of the CRC that S3 keeps, ``etag-md5``,
        or ``length`` if neither was available
    :param etag_is_md5: whether reading the part back can prove more than ``checked`` says
    :param separator: number of bytes added after it: a newline in its encoding
    :param damaged: whether it could not be decompressed; only tried with ``check_encoding`` or ``recompress``
    :param content: of a recompressed object; None if the part has the object's bytes
    """

    crc64nvme: int | None
    checked: str
    etag_is_md5: bool
    separator: int = 0
    damaged: bool = False
    content: Content | None = None


class Frame(NamedTuple):
    """A frame of a compressed part; sizes in bytes.

    :param objects: how many raw objects it holds
    :param size: of the frame, in the part
    :param content: of its content: the raw objects and their separators
    """

    objects: int
    size: int
    content: int


@dataclass(frozen=True, slots=True)
class PackedPart:
    """A part as it was written.

    :param size: in the bucket, in bytes
    :param proof: how it was proven, for this ETag; None until then
    :param frames: of a compressed part, in order; they begin at its first byte
    """

    name: str
    fingerprint: str
    size: int
    etag: str
    crc64nvme: int | None
    objects: tuple[PackedObject, ...]
    proof: str | None = None
    frames: tuple[Frame, ...] = ()

    @property
    def content_size(self) -> int:
        """Size of its content, in bytes: its raw objects and their separators."""
        return sum(frame.content for frame in self.frames) if self.frames else self.size

    @property
    def separators(self) -> int:
        """Number of bytes of its content that belong to no raw object."""
        return sum(item.separator for item in self.objects)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a packing task measured; sockets, files and memory are peaks. A sum has the higher peak of each."""

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
    """What a shard has written so far, and what its tasks measured.

    :param splits: for each planned part that was split because objects in it are damaged: the parts that were
        written instead
    """

    plan_id: str
    shard: int
    parts: tuple[PackedPart, ...] = ()
    measured: Measured = Measured()
    splits: Mapping[str, tuple[PlannedPart, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompletionMarker:
    """The content of ``_SUCCESS``, with the keys of its JSON; sizes in bytes, durations in seconds.

    One that was read holds the values as they are in the JSON, which nobody has validated; a key that is missing
    there has its default here.

    :param plan_id: empty if the JSON has none
    :param groups: totals of each group of the hour
    :param group: captures of a group, in its own marker
    :param why_empty: why no object can belong to the hour; empty if objects can
    :param bytes_stored: size of the parts in the bucket, if any of them is compressed; else 0
    :param recompressed: number of raw objects that were decompressed and are in the parts as their content
    :param bytes_unpacked: size of the raw objects, of the recompressed ones that of their content; 0 if there are
        none of those
    :param raw_digest: of the listed raw objects, see :func:`include.log_rollup.hour.plan.digest_of`; empty in
        markers of older versions
    :param older_versions: number of raw objects in parts of which a later part has a newer version
    """

    stream: str = ""
    hour: str = ""
    plan_id: str = ""
    objects: int = 0
    bytes_in: int = 0
    separator_bytes: int = 0
    bytes_out: int = 0
    parts: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    foreign: int = 0
    damaged: int = 0
    verified: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    validated_at: str = ""
    completed_at: str = ""
    max_connections: int = 0
    peak: Mapping[str, int] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    throttles: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    groups: Sequence[Mapping[str, Any]] = ()
    group: Mapping[str, str] = field(default_factory=dict)
    why_empty: str = ""
    bytes_stored: int = 0
    recompressed: int = 0
    bytes_unpacked: int = 0
    raw_digest: str = ""
    older_versions: int = 0

    def to_json(self) -> dict[str, Any]:
        """The JSON object of ``_SUCCESS``; the last eight keys only if they have a value."""
        values = {"format": MARKER_FORMAT, **asdict(self)}
        return {key: value for key, value in values.items() if value or key not in _OPTIONAL_MARKER_KEYS}

    def to_bytes(self) -> bytes:
        """The bytes of ``_SUCCESS``; each group takes one line."""
        values = self.to_json()
        groups = values.pop("groups", ())
        text = json.dumps(values, indent=1)
        if groups:
            lines = ",\n  ".join(json.dumps(group) for group in groups)
            text = f'{text[:-2]},\n "groups": [\n  {lines}\n ]\n}}'
        return f"{text}\n".encode()


@dataclass(frozen=True, slots=True)
class StoredMarker:
    """A ``_SUCCESS`` as it is in the bucket.

    :param content: None if it is damaged, or if another version or another program wrote it
    :param etag: empty if the object is too large to be read
    """

    content: CompletionMarker | None
    etag: str

    def is_of(self, plan_id: str) -> bool:
        """Whether it was written for this plan."""
        return self.content is not None and self.content.plan_id == plan_id


class Records:
    """Reads and writes these records.

    A plan, shard, receipt, claim or removal that is missing, damaged or of another format counts as not there:
    what it described is planned or packed again.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def write_shard(self, target: Location, shard: ShardPlan, raw_prefix: str) -> None:
        """Write the parts of a shard.

        :param raw_prefix: raw prefix of the hour; the keys are written without it if all of them begin with it
        """
        if not all(item.key.startswith(raw_prefix) for part in shard.parts for item in part.objects):
            raw_prefix = ""
        parts = [
            [
                part.name, part.encoding, part.size, part.copied, part.fingerprint,
                [[item.key[len(raw_prefix) :], item.size, item.etag] for item in part.objects],
                *([part.compression, *([True] if part.recompressed else [])] if part.compression else []),
            ]
            for part in shard.parts
        ]  # fmt: skip
        body = {
            "format": PLAN_FORMAT,
            "plan_id": shard.plan_id,
            "shard": shard.shard,
            "raw_prefix": raw_prefix,
            "parts": parts,
        }
        if shard.kept:
            body["kept"] = sorted(shard.kept)
        self._store.write(target, compress_text(to_json(body)), GZIP)

    def read_shard(
        self, source: Location, raw_prefix: str, formats: Sequence[int] = (PLAN_FORMAT,)
    ) -> ShardPlan | None:
        """Read the parts of a shard.

        :param raw_prefix: raw prefix of the hour, for files of earlier versions, which don't state theirs
        :param formats: that are accepted
        """

        def parse(body: dict[str, Any]) -> ShardPlan:
            prefix = str(body.get("raw_prefix", raw_prefix))
            parts = tuple(
                PlannedPart(
                    name,
                    encoding,
                    size,
                    copied,
                    fingerprint,
                    tuple(ObjectInfo(prefix + key, size, etag) for key, size, etag in rows),
                    # Of a part that is kept; no plan has others that were split off.
                    split_of="" if planned_name(name) == name else planned_name(name),
                    compression=compression[0] if compression else "",
                    recompressed=len(compression) > 1,
                )
                for name, encoding, size, copied, fingerprint, rows, *compression in body["parts"]
            )
            return ShardPlan(body["plan_id"], body["shard"], parts, frozenset(body.get("kept", ())))

        return self._read(source, formats, parse)

    def write_plan(self, target: Location, summary: PlanSummary) -> None:
        """Write a plan's summary, the last file of the plan."""
        values = {"format": PLAN_FORMAT, **asdict(summary)}
        for key, default in _OPTIONAL_PLAN_KEYS.items():
            if values[key] == default:
                del values[key]
        self._store.write(target, to_json(values).encode(), JSON)

    def read_plan(self, source: Location) -> PlanSummary | None:
        """Read a plan's summary."""

        def parse(body: dict[str, Any]) -> PlanSummary:
            left_out = LeftOut(**body.pop("left_out"))
            shards = tuple(ShardRef(**ref) for ref in body.pop("shards"))
            # Written by earlier versions, for a check that the record of expired raw objects now answers.
            body.pop("vanished", None)
            for key in ("replaces", "replaced_left_out"):
                if key in body:
                    body[key] = tuple(body[key])
            return PlanSummary(**body, left_out=left_out, shards=shards)

        return self._read(source, (PLAN_FORMAT,), parse)

    def write_claim(self, target: Location, plan_id: str, run_id: str, claim_id: str) -> Claim:
        """Write which plan is being built, and by which run."""
        body = {"format": CLAIM_FORMAT, "plan_id": plan_id, "run_id": run_id, "claim_id": claim_id}
        return Claim(plan_id, run_id, claim_id, self._store.write(target, to_json(body).encode(), JSON))

    def read_claim(self, source: Location) -> Claim | None:
        """Read a claim; its plan is empty if it is damaged or of another format."""
        try:
            found = self._store.read(source, SMALL_RECORD_BYTES)
        except TooLargeError:
            return Claim("", "", "", "")
        return None if found is None else parse_claim(found.body, found.etag)

    def write_receipt(self, target: Location, receipt: Receipt) -> None:
        """Write a receipt."""
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
                    [
                        part.name,
                        part.encoding,
                        part.size,
                        part.fingerprint,
                        list(map(list, part.objects)),
                        *([part.compression, True] if part.recompressed else []),
                    ]
                    for part in parts
                ]
                for name, parts in receipt.splits.items()
            }
        self._store.write(target, compress_text(to_json(body)), GZIP)

    def write_receipt_rows(
        self, target: Location, plan_id: str, shard: int, rows: Sequence[bytes], measured: Measured
    ) -> None:
        """Write a receipt.

        :param rows: of its parts, from :func:`compressed_row`
        """
        head = {
            "format": RECEIPT_FORMAT,
            "plan_id": plan_id,
            "shard": shard,
            "measured": asdict(measured),
        }
        parts = (zlib.decompress(row).decode() for row in rows)
        text = f'{to_json(head)[:-1]},"parts":[{",".join(parts)}]}}'
        self._store.write(target, compress_text(text), GZIP)

    def read_receipt(self, source: Location) -> Receipt | None:
        """Read a receipt."""

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
                        *compression,
                    )
                    for part, encoding, size, fingerprint, objects, *compression in rows
                )
                for name, rows in body.get("splits", {}).items()
            }
            return Receipt(body["plan_id"], body["shard"], parts, Measured(**body["measured"]), splits)

        return self._read(source, (RECEIPT_FORMAT,), parse)

    def write_removal(self, target: Location, names: Sequence[str]) -> None:
        """Write which parts, and which files below ``_rollup/``, are about to be deleted."""
        self._store.write(target, to_json({"format": REMOVAL_FORMAT, "names": list(names)}).encode(), JSON)

    def read_removal(self, source: Location) -> Sequence[str]:
        """The names in a removal record; none if it cannot be read."""

        def parse(body: dict[str, Any]) -> Sequence[str]:
            return [str(name) for name in body["names"]]

        return self._read(source, (REMOVAL_FORMAT,), parse) or ()

    def read_marker(self, source: Location) -> StoredMarker | None:
        """Read the completion marker; None if there is no such object."""
        values, etag = self._read_marker(source)
        if values is None:
            return None
        return StoredMarker(_parse_marker(values) if values else None, etag)

    def read_marker_json(self, source: Location) -> dict[str, Any] | None:
        """The JSON object of the completion marker, to be validated by the caller.

        :returns: None if there is no such object; empty if it is damaged or of another format
        """
        return self._read_marker(source)[0]

    def _read_marker(self, source: Location) -> tuple[dict[str, Any] | None, str]:
        try:
            found = self._store.read(source, MARKER_BYTES)
        except TooLargeError:
            return {}, ""
        if found is None:
            return None, ""
        try:
            values = json.loads(found.body)
        except (ValueError, RecursionError):
            return {}, found.etag
        is_ours = isinstance(values, dict) and values.get("format") == MARKER_FORMAT
        return (values if is_ours else {}), found.etag

    def _read(
        self, source: Location, formats: Sequence[int], parse: Callable[[dict[str, Any]], T]
    ) -> T | None:
        try:
            found = self._store.read(source)
        except TooLargeError as error:
            _warn_unreadable(source, error)
            return None
        if found is None:
            return None
        try:
            text = (
                decompress(found.body, MAX_DECOMPRESSED_BYTES) if source.key.endswith(".gz") else found.body
            )
            value = json.loads(text)
            return parse(value) if value.pop("format") in formats else None
        except DAMAGED_ERRORS as error:
            _warn_unreadable(source, error)
            return None


def _warn_unreadable(source: Location, error: Exception) -> None:
    log.warning("%s cannot be read (%s); it counts as not there", source, error)


def parse_claim(body: bytes, etag: str = "") -> Claim:
    """Read a claim from its bytes; its plan is empty if it is damaged or of another format."""
    try:
        value = json.loads(body)
        if value["format"] == CLAIM_FORMAT:
            return Claim(str(value["plan_id"]), str(value["run_id"]), str(value["claim_id"]), etag)
    except DAMAGED_ERRORS:
        pass
    return Claim("", "", "", etag)


def _parse_marker(values: Mapping[str, Any]) -> CompletionMarker:
    known = {one.name: values[one.name] for one in fields(CompletionMarker) if one.name in values}
    plan_id = known.get("plan_id")
    return CompletionMarker(**known | {"plan_id": plan_id if isinstance(plan_id, str) else ""})


def packed_row(part: PackedPart) -> list[Any]:
    """A packed part as in a receipt."""
    objects = [
        [crc_text(item.crc64nvme), item.checked, item.etag_is_md5, item.separator]
        + ([True] if item.damaged else [])
        + ([False, item.content.size, crc_text(item.content.crc64nvme)] if item.content else [])
        for item in part.objects
    ]
    return [
        part.name, part.fingerprint, part.size, part.etag, crc_text(part.crc64nvme), part.proof, objects,
        *([part.frames] if part.frames else []),
    ]  # fmt: skip


def compressed_row(part: PackedPart) -> bytes:
    """A packed part as in a receipt, compressed: planning has those of a whole hour in memory."""
    return zlib.compress(to_json(packed_row(part)).encode(), 1)


def _packed_part(row: Sequence[Any]) -> PackedPart:
    name, fingerprint, size, etag, crc64nvme, proof, objects, *frames = row
    packed = tuple(
        PackedObject(parse_crc(item), checked, is_md5, separator, any(more[:1]), _content(more[1:]))
        for item, checked, is_md5, separator, *more in objects
    )
    return PackedPart(
        name, fingerprint, size, etag, parse_crc(crc64nvme), packed, proof,
        tuple(Frame(*frame) for frame in frames[0]) if frames else (),
    )  # fmt: skip


def _content(row: Sequence[Any]) -> Content | None:
    return Content(int(row[0]), int(row[1], 16)) if row else None


def crc_text(value: int | None) -> str | None:
    """A CRC as in the records: 16 hexadecimal digits."""
    return None if value is None else crc.to_hex(value)


def parse_crc(text: str | None) -> int | None:
    """Read a CRC as :func:`crc_text` writes it."""
    return None if text is None else int(text, 16)
