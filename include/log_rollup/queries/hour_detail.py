"""One hour in full, for people: its parts as they were proven, or as far as they are packed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from pydantic import TypeAdapter

from include.log_rollup import crc
from include.log_rollup.errors import ProofError
from include.log_rollup.hour.layout import HourPaths
from include.log_rollup.hour.manifest import read_manifest_header
from include.log_rollup.hour.records import PackedPart, Records
from include.log_rollup.parallel import in_parallel
from include.log_rollup.queries.status import Count, HourStatus, HourSummary, Text, read_hours, readable
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A part as its hour's manifest or a receipt describes it; the size is in bytes.

    :param crc64nvme: of the whole part, in hexadecimal; None where S3 copied it and stated none
    :param proof: how it was proven; None as long as it is only packed
    """

    name: Text
    size: Count
    objects: Count
    copied: bool
    crc64nvme: Text | None
    proof: Text | None


@dataclass(frozen=True, slots=True)
class PlannedTotals:
    """What the plan of an hour that is being built amounts to; the size is in bytes."""

    parts: Count
    objects: Count
    bytes_in: Count


# What a record says is checked before it is shown.
_PARTS = TypeAdapter(list[PartStatus])
_PLANNED = TypeAdapter(PlannedTotals)


@dataclass(frozen=True, slots=True)
class HourDetail:
    """An hour with its parts.

    :param planned: of an hour that is being built, the plan that its run has claimed it for
    :param unclear: why the parts cannot be shown, for people; empty where they can
    """

    status: HourSummary
    parts: Sequence[PartStatus]
    planned: PlannedTotals | None = None
    unclear: str = ""


def read_hour(store: ObjectStore, stream: Stream, hour: datetime) -> HourDetail:
    """The status of an hour and its parts, from its marker and manifest or from its plan and receipts.

    A record that cannot be read is part of the answer, and no error.

    :raises RollupError: as the store raises
    """
    paths = stream.at(hour)
    (status,) = read_hours(store, stream, [hour])
    try:
        if status.state is HourStatus.COMPLETE:
            return _complete(store, paths, status)
        if status.state is HourStatus.BUILDING:
            return _building(store, paths, status)
    except ProofError as error:
        return HourDetail(status, (), unclear=str(error))
    return HourDetail(status, (), unclear=status.problem)


def _complete(store: ObjectStore, paths: HourPaths, status: HourSummary) -> HourDetail:
    with readable(paths.manifest):
        header = read_manifest_header(store, paths.manifest)
        if header is None:
            return HourDetail(
                status, (), unclear=f"there is no {paths.manifest}, or another version wrote it"
            )
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
        planned = _PLANNED.validate_python(
            {"parts": plan.parts, "objects": plan.objects, "bytes_in": plan.bytes_in}
        )
        shards = [ref.shard for ref in plan.shards]

    def packed(shard: int) -> tuple[Sequence[PartStatus], str]:
        receipt_source = paths.receipt(plan_id, shard)
        try:
            with readable(receipt_source):
                receipt = records.read_receipt(receipt_source)
                rows = [asdict(_packed(part)) for part in receipt.parts] if receipt else []
                return _PARTS.validate_python(rows), ""
        except ProofError as error:
            # Its shard is packed again; those of the others count.
            return (), str(error)

    found = list(in_parallel(store.control_connections, "log-rollup-receipts", packed, shards))
    parts = [part for rows, _ in found for part in rows]
    return HourDetail(status, parts, planned, "; ".join(problem for _, problem in found if problem))


def _packed(part: PackedPart) -> PartStatus:
    # S3 copies an object of its own alone, and states the CRC of what it copied or none.
    copied = len(part.objects) == 1 and part.objects[0].crc64nvme is None
    stated = None if part.crc64nvme is None else crc.to_hex(part.crc64nvme)
    return PartStatus(part.name, part.size, len(part.objects), copied, stated, part.proof)
