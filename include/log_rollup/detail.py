"""One hour in full, for people: its parts as they were proven, or as far as they are packed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from include.log_rollup import crc
from include.log_rollup.errors import ProofError
from include.log_rollup.hours import HourPaths
from include.log_rollup.records import PackedPart, PlanSummary, Records
from include.log_rollup.status import HourState, HourStatus, read_hours
from include.log_rollup.store import ObjectStore
from include.log_rollup.streams import Stream


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A part as its hour's manifest or a receipt tells it; the size is in bytes.

    :param crc64nvme: of the whole part, in hexadecimal; None where S3 copied it and stated none
    :param proof: how it was proven; None as long as it is only packed
    """

    name: str
    size: int
    objects: int
    copied: bool
    crc64nvme: str | None
    proof: str | None


@dataclass(frozen=True, slots=True)
class HourDetail:
    """An hour with its parts.

    :param planned: of an hour that is being built, the plan that its run has claimed it for
    :param unclear: why the parts cannot be told, for people; empty where they can
    """

    status: HourStatus
    parts: Sequence[PartStatus]
    planned: PlanSummary | None = None
    unclear: str = ""


def read_hour(store: ObjectStore, stream: Stream, hour: datetime) -> HourDetail:
    """The status of an hour and its parts, from its marker and manifest or from its plan and receipts.

    :raises RollupError: as the store raises
    """
    paths = stream.at(hour)
    (status,) = read_hours(store, stream, [hour])
    try:
        if status.state is HourState.COMPLETE:
            return _complete(store, paths, status)
        if status.state is HourState.BUILDING:
            return _building(store, paths, status)
    except ProofError as error:
        return HourDetail(status, (), unclear=str(error))
    return HourDetail(status, ())


def _complete(store: ObjectStore, paths: HourPaths, status: HourStatus) -> HourDetail:
    header = Records(store).read_manifest_header(paths.manifest)
    if header is None:
        return HourDetail(status, (), unclear=f"there is no {paths.manifest}, or another version wrote it")
    return HourDetail(status, [_proven(entry) for entry in header["parts_table"]])


def _proven(entry: dict[str, Any]) -> PartStatus:
    names = ("name", "size", "objects", "copied", "crc64nvme", "proof")
    return PartStatus(**{name: entry[name] for name in names})


def _building(store: ObjectStore, paths: HourPaths, status: HourStatus) -> HourDetail:
    records = Records(store)
    claim = records.read_claim(paths.claim)
    plan = records.read_plan(paths.plan(claim.plan_id)) if claim and claim.plan_id else None
    if plan is None:
        return HourDetail(status, ())

    def packed(shard: int) -> Sequence[PackedPart]:
        receipt = records.read_receipt(paths.receipt(plan.plan_id, shard))
        return receipt.parts if receipt else ()

    with ThreadPoolExecutor(store.control_connections, "log-rollup-receipts") as threads:
        shards = list(threads.map(packed, [ref.shard for ref in plan.shards]))
    return HourDetail(status, [_packed(part) for parts in shards for part in parts], planned=plan)


def _packed(part: PackedPart) -> PartStatus:
    # S3 copies an object of its own alone, and states the CRC of what it copied or none.
    copied = len(part.objects) == 1 and part.objects[0].crc64nvme is None
    stated = None if part.crc64nvme is None else crc.to_hex(part.crc64nvme)
    return PartStatus(part.name, part.size, len(part.objects), copied, stated, part.proof)
