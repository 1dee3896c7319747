"""What the pipeline writes beside the parts: plans, receipts, the manifest, the marker, as JSON."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeVar

from include.log_rollup import crc
from include.log_rollup.errors import ProofError
from include.log_rollup.plan import PLAN_FORMAT, LeftOut, PlannedPart, ShardRef
from include.log_rollup.store import Location, ObjectInfo, ObjectStore
from include.log_rollup.units import KIB

T = TypeVar("T")

CLAIM_FORMAT = 1
RECEIPT_FORMAT = 1
MANIFEST_FORMAT = 1
MARKER_FORMAT = 1
# Enough for the header of 500 parts; a longer one takes more requests.
HEADER_BYTES = 128 * KIB

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
class PlanSummary:
    """A plan without its parts: its settings, its totals and its shards."""

    plan_id: str
    stream: str
    hour: str
    parts: int
    objects: int
    bytes_in: int
    left_out: LeftOut
    shards: tuple[ShardRef, ...]


@dataclass(frozen=True, slots=True)
class PackedObject:
    """A raw object as it was packed: CRC of its bytes (None if S3 copied it), and how the read was checked.

    ``checked`` is the name of the store's own CRC, ``etag-md5``, or ``length`` where nothing more was to be
    had; ``etag_is_md5`` says that reading the part back can still prove more. ``separator`` is the number of
    newline bytes written behind it.
    """

    crc64nvme: int | None
    checked: str
    etag_is_md5: bool
    separator: int = 0


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
    """What a shard has written so far, and what it measured."""

    plan_id: str
    shard: int
    parts: tuple[PackedPart, ...] = ()
    measured: Measured = Measured()


@dataclass(frozen=True, slots=True)
class Verified:
    """How many parts and raw objects were proven, by kind of proof."""

    parts: Mapping[str, int]
    objects: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HourTotals:
    """What a validated hour amounts to; sizes in bytes."""

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
    return gzip.compress(text.encode(), compresslevel=4, mtime=0)


def _unzip(body: bytes) -> str:
    return gzip.decompress(body).decode()


class Records:
    """Reads and writes these records in one hour's place in the bucket.

    A record that is not there, or is of another version of this code, reads as None: what it described is
    then planned, packed or proven anew.

    :raises ProofError: on reading one that is damaged
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

    def read_shard(self, source: Location, raw_prefix: str) -> ShardPlan | None:
        """Read the parts of a shard."""

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

        return self._read(source, PLAN_FORMAT, parse)

    def write_plan(self, target: Location, summary: PlanSummary) -> None:
        """Write a plan's summary, which makes the plan whole."""
        self._store.write(target, _json({"format": PLAN_FORMAT, **asdict(summary)}).encode(), JSON)

    def read_plan(self, source: Location) -> PlanSummary | None:
        """Read a plan's summary."""

        def parse(body: dict[str, Any]) -> PlanSummary:
            left_out = LeftOut(**body.pop("left_out"))
            shards = tuple(ShardRef(**ref) for ref in body.pop("shards"))
            return PlanSummary(**body, left_out=left_out, shards=shards)

        return self._read(source, PLAN_FORMAT, parse)

    def write_claim(self, target: Location, plan_id: str, run_id: str) -> None:
        """Say which plan is being built, and by which run."""
        self._store.write(
            target, _json({"format": CLAIM_FORMAT, "plan_id": plan_id, "run_id": run_id}).encode(), JSON
        )

    def read_claim(self, source: Location) -> str | None:
        """The plan that is being built."""
        return self._read(source, CLAIM_FORMAT, _plan_id)

    def write_receipt(self, target: Location, receipt: Receipt) -> None:
        """Write what a shard has done so far."""
        body = {
            "format": RECEIPT_FORMAT,
            "plan_id": receipt.plan_id,
            "shard": receipt.shard,
            "measured": asdict(receipt.measured),
            "parts": [_packed_row(part) for part in receipt.parts],
        }
        self._store.write(target, _zip(_json(body)), GZIP)

    def read_receipt(self, source: Location) -> Receipt | None:
        """Read what a shard has done so far."""

        def parse(body: dict[str, Any]) -> Receipt:
            parts = tuple(_packed_part(row) for row in body["parts"])
            return Receipt(body["plan_id"], body["shard"], parts, Measured(**body["measured"]))

        return self._read(source, RECEIPT_FORMAT, parse)

    def write_manifest(self, target: Location, manifest: Manifest, raw_prefix: str) -> None:
        """Write the header line, then a line for each raw object in the order of the parts."""
        lines = "".join(f"{_json(line)}\n" for line in manifest_lines(manifest, raw_prefix))
        self._store.write(target, _zip(lines), GZIP)

    def read_manifest(self, source: Location) -> Manifest | None:
        """Read a manifest back, parts and raw objects."""
        body = self._store.read(source)
        if body is None:
            return None
        with _told(source):
            # Not splitlines(): it would cut at U+2028, which a key may hold.
            lines = _unzip(body).removesuffix("\n").split("\n")
            header = json.loads(lines[0])
            if header.pop("format") != MANIFEST_FORMAT:
                return None
            return _manifest(header, [json.loads(line) for line in lines[1:]])

    def read_manifest_header(self, source: Location) -> dict[str, Any] | None:
        """Read the totals and the table of parts alone: of a manifest of any length, little more than these.

        :raises InputChangedError: if it is written anew meanwhile
        """
        head = self._store.head(source)
        if head is None:
            return None
        text, unzip = b"", zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        with _told(source):
            for offset in range(0, head.size, HEADER_BYTES):
                length = min(HEADER_BYTES, head.size - offset)
                text += unzip.decompress(self._store.read_range(source, head.etag, offset, length))
                line, newline, _ = text.partition(b"\n")
                if newline:
                    header: dict[str, Any] = json.loads(line)
                    return header if header.pop("format") == MANIFEST_FORMAT else None
            raise EOFError("its first line does not end")

    def write_marker(self, target: Location, marker: Mapping[str, Any]) -> None:
        """Write the completion marker."""
        self._store.write(target, (json.dumps(marker, indent=1) + "\n").encode(), JSON)

    def read_marker(self, source: Location) -> dict[str, Any] | None:
        """Read the completion marker; an empty dict if it is there but not one of this version."""
        body = self._store.read(source)
        if body is None:
            return None
        try:
            marker = json.loads(body)
        except ValueError:
            return {}
        return marker if isinstance(marker, dict) and marker.get("format") == MARKER_FORMAT else {}

    def is_marked(self, source: Location, plan_id: str) -> bool:
        """Whether the completion marker is there, and of this plan."""
        marker = self.read_marker(source)
        return marker is not None and marker.get("plan_id") == plan_id

    def _read(self, source: Location, version: int, parse: Callable[[dict[str, Any]], T]) -> T | None:
        body = self._store.read(source)
        return None if body is None else _parsed(source, body, version, parse)


def claim_of(source: Location, body: bytes) -> str | None:
    """The plan that a claim names, None if it is another version's.

    :raises ProofError: if it can't be read
    """
    return _parsed(source, body, CLAIM_FORMAT, _plan_id)


def _plan_id(claim: Mapping[str, Any]) -> str:
    return str(claim["plan_id"])


def _parsed(source: Location, body: bytes, version: int, parse: Callable[[dict[str, Any]], T]) -> T | None:
    with _told(source):
        value = json.loads(_unzip(body) if source.key.endswith(".gz") else body)
        return parse(value) if value.pop("format") == version else None


def manifest_lines(manifest: Manifest, raw_prefix: str) -> Iterator[dict[str, Any]]:
    """The lines of a manifest: the header, then one for each raw object in the order of the parts."""
    yield {
        "format": MANIFEST_FORMAT,
        **asdict(manifest.totals),
        "raw_prefix": raw_prefix,
        "validated_at": manifest.validated_at,
        "parts_table": [
            {
                "name": planned.name, "encoding": planned.encoding, "size": packed.size,
                "etag": packed.etag, "crc64nvme": _hex(packed.crc64nvme), "objects": len(packed.objects),
                "copied": planned.copied, "fingerprint": planned.fingerprint, "proof": packed.proof,
            }
            for planned, packed in zip(manifest.planned, manifest.packed, strict=True)
        ],
    }  # fmt: skip
    for planned, packed in zip(manifest.planned, manifest.packed, strict=True):
        offset = 0
        for item, done in zip(planned.objects, packed.objects, strict=True):
            yield {
                "key": item.key, "part": planned.name, "offset": offset, "length": item.size,
                "etag": item.etag, "crc64nvme": _hex(done.crc64nvme), "checked": done.checked,
            }  # fmt: skip
            offset += item.size + done.separator


@contextmanager
def _told(source: Location) -> Iterator[None]:
    """Say of a record that is damaged, or of another shape, where it lies."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ProofError(f"{source}: cannot be read ({error}); delete it and clear the run") from error


def _hex(value: int | None) -> str | None:
    return None if value is None else crc.to_hex(value)


def _unhex(text: str | None) -> int | None:
    return None if text is None else int(text, 16)


def _packed_row(part: PackedPart) -> list[Any]:
    objects = [
        [_hex(item.crc64nvme), item.checked, item.etag_is_md5, item.separator] for item in part.objects
    ]
    return [
        part.name, part.fingerprint, part.size, part.etag, _hex(part.crc64nvme), part.proof, objects
    ]  # fmt: skip


def _packed_part(row: Sequence[Any]) -> PackedPart:
    name, fingerprint, size, etag, crc64nvme, proof, objects = row
    packed = tuple(PackedObject(_unhex(item), checked, is_md5, sep) for item, checked, is_md5, sep in objects)
    return PackedPart(name, fingerprint, size, etag, _unhex(crc64nvme), packed, proof)


def _manifest(header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Manifest:
    header.pop("raw_prefix")
    validated_at = header.pop("validated_at")
    remaining = iter(rows)
    planned, packed = [], []
    for entry in header.pop("parts_table"):
        one_planned, one_packed = _proven_part(entry, remaining)
        planned.append(one_planned)
        packed.append(one_packed)
    header["left_out"] = LeftOut(**header["left_out"])
    header["verified"] = Verified(**header["verified"])
    header["measured"] = Measured(**header["measured"])
    return Manifest(HourTotals(**header), tuple(planned), tuple(packed), validated_at)


def _proven_part(
    entry: dict[str, Any], remaining: Iterator[dict[str, Any]]
) -> tuple[PlannedPart, PackedPart]:
    rows = list(islice(remaining, entry["objects"]))
    ends = [row["offset"] for row in rows[1:]] + [entry["size"]]
    objects, done = [], []
    for row, end in zip(rows, ends, strict=True):
        objects.append(ObjectInfo(row["key"], row["length"], row["etag"]))
        # A proven part needs no second proof of its reads, so nothing more is asked of the ETag.
        done.append(
            PackedObject(_unhex(row["crc64nvme"]), row["checked"], False, end - row["offset"] - row["length"])
        )
    planned = PlannedPart(
        entry["name"], entry["encoding"], sum(item.size for item in objects), entry["copied"],
        entry["fingerprint"], tuple(objects),
    )  # fmt: skip
    packed = PackedPart(
        entry["name"], entry["fingerprint"], entry["size"], entry["etag"], _unhex(entry["crc64nvme"]),
        tuple(done), entry["proof"],
    )  # fmt: skip
    return planned, packed
