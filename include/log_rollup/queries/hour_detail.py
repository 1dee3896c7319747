"""The status of one hour with its parts: all parts of a complete hour, or those that are packed so far.

Also the frames of one part.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import accumulate

from pydantic import TypeAdapter

from include.log_rollup import crc
from include.log_rollup.errors import ProofError
from include.log_rollup.hour.manifest import open_manifest, read_manifest_header
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.records import PackedPart, Records
from include.log_rollup.parallel import in_parallel
from include.log_rollup.queries.status import (
    Count,
    HourStatus,
    HourSummary,
    Text,
    read_hours,
    readable,
    valid,
)
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A part as the manifest or a receipt describes it.

    :param size: in the bucket, in bytes
    :param objects: number of raw objects
    :param copied: whether S3 copied it: one raw object, larger than a part
    :param crc64nvme: of the part, in hexadecimal; None if S3 copied it and states none
    :param proof: kind of proof; None while the part is only packed
    :param frames: number of frames of a compressed part; 0 if it is not compressed
    :param content_size: of a compressed part: size of its content, in bytes
    """

    name: Text
    size: Count
    objects: Count
    copied: bool
    crc64nvme: Text | None
    proof: Text | None
    frames: Count = 0
    content_size: Count | None = None


@dataclass(frozen=True, slots=True)
class FrameStatus:
    """A frame of a part as the manifest describes it; sizes in bytes.

    :param offset: in the part
    :param size: in the bucket
    :param content_size: of its raw objects and their separators
    :param objects: number of raw objects
    """

    offset: int
    size: int
    content_size: int
    objects: int


@dataclass(frozen=True, slots=True)
class PlannedTotals:
    """The totals of a plan; ``bytes_in`` is the size of the raw objects."""

    parts: Count
    objects: Count
    bytes_in: Count


# Types of values that are read from records, which may be damaged.
_PARTS = TypeAdapter(list[PartStatus])
_PLANNED = TypeAdapter(PlannedTotals)


@dataclass(frozen=True, slots=True)
class HourDetail:
    """An hour with its parts.

    :param planned: totals of the plan in the claim, while the hour is being built
    :param unclear: message that says why the parts cannot be shown; empty if they can
    """

    status: HourSummary
    parts: Sequence[PartStatus]
    planned: PlannedTotals | None = None
    unclear: str = ""


def read_hour(store: ObjectStore, stream: Stream, hour: datetime) -> HourDetail:
    """The status of an hour and its parts, from its manifest, or from its plan and receipts.

    A record that cannot be read is not an error, but named in the result.

    :raises RollupError: as the store raises
    """
    paths = stream.at(hour)
    (status,) = read_hours(store, stream, [hour], groups=True, expired=True)
    try:
        if status.state is HourStatus.COMPLETE:
            return _complete(store, paths, status)
        if status.state is HourStatus.BUILDING:
            return _building(store, paths, status)
    except ProofError as error:
        return HourDetail(status, (), unclear=str(error))
    return HourDetail(status, (), unclear=status.problem)


def read_frames(store: ObjectStore, stream: Stream, hour: datetime, part: str) -> list[FrameStatus] | None:
    """The frames of a part, in their order, from the manifest of an hour.

    Takes one request for a manifest of up to 8 MiB.

    :param part: its name as in the manifest
    :returns: an empty list if the part is not compressed; None if there is no manifest, or no such part in it
    :raises UnreadableRecordError: if the manifest is damaged or of another format
    :raises RollupError: as the store raises
    """
    manifest = open_manifest(store, stream.at(hour).manifest)
    found = None if manifest is None else manifest.part(part)
    if found is None:
        return None
    frames = found[1].frames
    offsets = accumulate((frame.size for frame in frames), initial=0)
    return [
        FrameStatus(offset, frame.size, frame.content, frame.objects)
        for offset, frame in zip(offsets, frames, strict=False)
    ]


def _complete(store: ObjectStore, paths: HourPaths, status: HourSummary) -> HourDetail:
    with readable(paths.manifest):
        header = read_manifest_header(store, paths.manifest)
    if header is None:
        return HourDetail(status, (), unclear=f"there is no {paths.manifest}, or another version wrote it")
    with valid(paths.manifest):
        return HourDetail(status, _PARTS.validate_python(header["parts_table"]))


def _building(store: ObjectStore, paths: HourPaths, status: HourSummary) -> HourDetail:
    if status.problem:
        return HourDetail(status, (), unclear=status.problem)
    records = Records(store)
    with readable(paths.claim):
        claim = records.read_claim(paths.claim)
    plan_id = claim.plan_id if claim else ""
    if not plan_id:
        return HourDetail(status, ())
    source = paths.plan(plan_id)
    with readable(source):
        plan = records.read_plan(source)
    if plan is None:
        return HourDetail(status, (), unclear=f"there is no {source}, or it cannot be read")
    with valid(source):
        planned = _PLANNED.validate_python(
            {"parts": plan.parts, "objects": plan.objects, "bytes_in": plan.bytes_in}
        )
        shards = [ref.shard for ref in plan.shards]

    def read_receipt(shard: int) -> tuple[Sequence[PartStatus], str]:
        receipt_source = paths.receipt(plan_id, shard)
        try:
            with readable(receipt_source):
                receipt = records.read_receipt(receipt_source)
            with valid(receipt_source):
                rows = [asdict(_part_status(part)) for part in receipt.parts] if receipt else []
                return _PARTS.validate_python(rows), ""
        except ProofError as error:
            # The parts of the other shards are shown all the same.
            return (), str(error)

    receipts = list(in_parallel(store.control_connections, "log-rollup-receipts", read_receipt, shards))
    parts = [part for rows, _ in receipts for part in rows]
    return HourDetail(status, parts, planned, "; ".join(problem for _, problem in receipts if problem))


def _part_status(part: PackedPart) -> PartStatus:
    # Records have no CRC for an object that S3 copied, which is alone in its part.
    copied = len(part.objects) == 1 and part.objects[0].crc64nvme is None
    stated = None if part.crc64nvme is None else crc.to_hex(part.crc64nvme)
    content_size = part.content_size if part.frames else None
    return PartStatus(
        part.name, part.size, len(part.objects), copied, stated, part.proof, len(part.frames), content_size
    )
