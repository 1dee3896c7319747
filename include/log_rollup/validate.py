"""The step validate_hour: what lies in the bucket is exactly the raw hour, part for part and byte for byte."""

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from awscrt import checksums

from include.log_rollup import crc
from include.log_rollup.changes import SHOWN, compare
from include.log_rollup.errors import InputChangedError, ProofError, SupersededError, VanishedInputError
from include.log_rollup.hours import HourPaths, format_hour
from include.log_rollup.listing import list_all
from include.log_rollup.memory import without_collector
from include.log_rollup.monitor import Monitor
from include.log_rollup.plan import LeftOut, PlannedPart, select
from include.log_rollup.planning import standing_parts
from include.log_rollup.proof import mismatch, read_pieces, read_runs
from include.log_rollup.records import (
    PROVEN_BY_READING,
    PROVEN_BY_STORE,
    READ_BY_ETAG,
    READ_BY_LENGTH,
    HourTotals,
    Manifest,
    Measured,
    PackedObject,
    PackedPart,
    Records,
    Verified,
)
from include.log_rollup.store import Location, ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be proven: a plan and what was written for it; complete where the marker stands."""

    plan_id: str
    planned: tuple[PlannedPart, ...]
    packed: dict[str, PackedPart]
    left_out: LeftOut
    measured: Measured
    complete: bool


@without_collector
def validate_hour(store: ObjectStore, stream: Stream, hour: datetime) -> HourTotals:
    """Prove an hour from what is in the bucket alone, and write its manifest.

    Raw and aggregated are listed anew. The raw hour must still be what was planned. Each part must have the
    size, ETag and CRC of its receipt, and its CRC must be the combination of its raw objects' CRCs in order.
    What the store cannot vouch for, because it keeps no CRC, is read back: the part's CRC is computed again,
    and each raw object's bytes are held against its ETag where that is an MD5. Parts that the plan does not
    know are removed. A part that is not as its receipt says is removed too: clearing the run writes it again.

    A complete hour is proven in the same way from its manifest, and keeps its marker if it holds.

    :raises InputChangedError: if raw objects came late, changed or vanished
    :raises VanishedInputError: if objects of a complete hour vanished
    :raises ProofError: if the parts are not what they should be
    :raises SupersededError: if nothing is planned
    """
    paths = stream.at(hour)
    records = Records(store)
    work = _load(records, paths)
    listed = list_all(store, paths.raw)
    chosen, left_out = select(listed, paths.raw.key, stream.marker)
    _check_raw(paths, work, chosen)
    standing = standing_parts(store, paths)
    prover = _Prover(store, stream.raw.bucket, paths, standing, len(work.planned))
    with (
        Monitor(log, store.port, store.max_connections, prover.progress),
        ThreadPoolExecutor(store.control_connections, "log-rollup-validate") as threads,
    ):
        outcomes = list(
            threads.map(lambda part: prover.prove(part, work.packed.get(part.name)), work.planned)
        )
    failures = [outcome for outcome in outcomes if isinstance(outcome, _Failure)]
    unknown = sorted(standing.keys() - {part.name for part in work.planned})
    if failures or (work.complete and unknown):
        failures += [_Failure(name, "the plan does not know it") for name in unknown if work.complete]
        _reject(store, records, paths, work, failures, standing)
    proven = [outcome for outcome in outcomes if isinstance(outcome, PackedPart)]
    totals = _totals(stream, paths, work, proven, left_out)
    if unknown:
        log.info(
            "removing %d parts that the plan does not know: %s", len(unknown), ", ".join(unknown[:SHOWN])
        )
        _remove(store, records, paths, work, [standing[name].key for name in unknown])
    if not work.complete:
        manifest = Manifest(
            totals, work.planned, tuple(proven), datetime.now(UTC).isoformat(timespec="seconds")
        )
        records.write_manifest(paths.manifest, manifest, paths.raw.key)
    log.info(
        "proven: %d objects, %s in = %s out in %d parts; parts: %s; raw objects: %s",
        totals.objects, format_size(totals.bytes_in), format_size(totals.bytes_out), totals.parts,
        dict(totals.verified.parts), dict(totals.verified.objects),
    )  # fmt: skip
    return totals


def _load(records: Records, paths: HourPaths) -> Work:
    plan_id = records.read_claim(paths.claim)
    marker = records.read_marker(paths.marker)
    # Beside its own claim a marker stands when another run has completed the hour under the very same plan.
    if plan_id is None or (marker and marker.get("plan_id") == plan_id):
        return _load_complete(records, paths, marker)
    summary = records.read_plan(paths.plan(plan_id))
    if summary is None:
        raise SupersededError(
            f"plan {plan_id} is not whole under {paths.work}; clear the run from plan_hour on"
        )
    planned: list[PlannedPart] = []
    packed: dict[str, PackedPart] = {}
    measured = Measured()
    for ref in summary.shards:
        shard = records.read_shard(paths.shard(plan_id, ref.shard), paths.raw.key)
        if shard is None:
            raise SupersededError(
                f"shard {ref.shard} of plan {plan_id} is gone; clear the run from plan_hour on"
            )
        planned.extend(shard.parts)
        receipt = records.read_receipt(paths.receipt(plan_id, ref.shard))
        if receipt is not None:
            packed.update((part.name, part) for part in receipt.parts)
            measured += receipt.measured
    return Work(plan_id, tuple(planned), packed, summary.left_out, measured, False)


def _load_complete(records: Records, paths: HourPaths, marker: Mapping[str, Any] | None) -> Work:
    manifest = records.read_manifest(paths.manifest)
    if not marker or manifest is None or marker.get("plan_id") != manifest.totals.plan_id:
        raise SupersededError(
            f"nothing is planned for {format_hour(paths.hour)} under {paths.work}, and the hour is not "
            f"complete; clear the run from plan_hour on"
        )
    totals = manifest.totals
    packed = {part.name: part for part in manifest.packed}
    return Work(totals.plan_id, manifest.planned, packed, totals.left_out, totals.measured, True)


def _check_raw(paths: HourPaths, work: Work, chosen: Sequence[ObjectInfo]) -> None:
    changes = compare(work.planned, chosen)
    if not changes:
        return
    found = f"{paths.raw} is not what was planned as {work.plan_id}: {changes}. Nothing is lost: "
    if work.complete and changes.vanished:
        raise VanishedInputError(
            f"{found}the hour stays complete, and its parts hold what vanished. If it expired, mark the run as "
            f"success."
        )
    raise InputChangedError(
        f"{found}clear the run from plan_hour on, and the hour is planned and packed as it is now."
    )


@dataclass(frozen=True, slots=True)
class _Failure:
    name: str
    reason: str


class _Prover:
    """Proves one part at a time; safe to use from several threads.

    The store's CRCs count only where it was seen to refuse a wrong one.

    :param total: how many parts are to be proven, for people
    """

    def __init__(
        self,
        store: ObjectStore,
        raw_bucket: str,
        paths: HourPaths,
        standing: dict[str, ObjectInfo],
        total: int,
    ) -> None:
        self._store = store
        self._raw_bucket = raw_bucket
        self._paths = paths
        self._standing = standing
        self._total = total
        self._looked_at = self._read_bytes = 0
        self._counting = threading.Lock()
        self._started = time.monotonic()
        self._crc_is_checked = store.refuses_wrong_crc(paths.work.child("crc-probe"))

    def progress(self) -> str:
        """One line on how far it is; safe from any thread."""
        seconds = max(time.monotonic() - self._started, 0.001)
        return (
            f"parts {self._looked_at}/{self._total} looked at | {format_size(self._read_bytes)} read back | "
            f"{self._read_bytes / seconds / 1e6:.0f} MB/s"
        )

    def prove(self, planned: PlannedPart, packed: PackedPart | None) -> PackedPart | _Failure:
        """The part with its proof, or why it has none."""
        outcome = self._prove(planned, packed)
        with self._counting:
            self._looked_at += 1
        return outcome

    def _prove(self, planned: PlannedPart, packed: PackedPart | None) -> PackedPart | _Failure:
        problem = mismatch(planned, packed, self._standing.get(planned.name))
        if problem or packed is None:
            return _Failure(planned.name, problem or "it was not packed")
        head = self._store.head(self._paths.part(planned.name))
        if head is None or head.etag != packed.etag:
            return _Failure(planned.name, "it was overwritten while it was validated")
        stored = head.crc64nvme if self._crc_is_checked else None
        if planned.copied:
            return self._prove_copy(planned, packed, stored)
        if stored not in (None, packed.crc64nvme):
            return _Failure(
                planned.name, f"the store has CRC64NVME {stored:x}, {packed.crc64nvme:x} was sent"
            )
        wants_reading = any(item.checked == READ_BY_LENGTH and item.etag_is_md5 for item in packed.objects)
        if stored is not None and not wants_reading:
            return replace(packed, proof=PROVEN_BY_STORE)
        if packed.proof == PROVEN_BY_READING:
            # Proven when it had this very ETag; nothing was written since.
            return packed
        return self._read_back(planned, packed)

    def _prove_copy(
        self, planned: PlannedPart, packed: PackedPart, stored: int | None
    ) -> PackedPart | _Failure:
        (item,), (done,) = planned.objects, packed.objects
        source = Location(self._raw_bucket, item.key)
        before = self._store.head(source)
        if before is None or before.etag != item.etag:
            return _Failure(planned.name, f"{source} changed while it was validated")
        if stored is not None and stored == before.crc64nvme:
            proven = PackedObject(stored, crc.CRC64NVME, False)
            return replace(packed, proof=PROVEN_BY_STORE, crc64nvme=stored, objects=(proven,))
        if packed.proof == PROVEN_BY_READING:
            return packed
        if done.etag_is_md5:
            return self._read_back(planned, packed)
        target = self._paths.part(planned.name)
        value = self._crc_of(target, packed.etag, packed.size)
        if value != self._crc_of(source, item.etag, item.size):
            return _Failure(planned.name, f"its bytes are not those of {source}")
        proven = PackedObject(value, PROVEN_BY_READING, False)
        return replace(packed, proof=PROVEN_BY_READING, crc64nvme=value, objects=(proven,))

    def _crc_of(self, source: Location, etag: str, size: int) -> int:
        value = 0
        for run in read_runs(self._store, source, etag, size):
            self._count_read(run)
            value = checksums.crc64nvme(run, value)
        return value

    def _count_read(self, run: bytes) -> None:
        with self._counting:
            self._read_bytes += len(run)

    def _read_back(self, planned: PlannedPart, packed: PackedPart) -> PackedPart | _Failure:
        value = 0
        md5s = [hashlib.md5(usedforsecurity=False) for _ in planned.objects]
        source = self._paths.part(planned.name)
        for run, pieces in read_pieces(self._store, source, planned, packed):
            self._count_read(run)
            value = checksums.crc64nvme(run, value)
            for piece in pieces:
                if packed.objects[piece.index].etag_is_md5:
                    md5s[piece.index].update(piece.body)
        if packed.crc64nvme not in (None, value):
            return _Failure(
                planned.name, f"read back it has CRC64NVME {value:x}, {packed.crc64nvme:x} was sent"
            )
        objects = []
        for item, done, md5 in zip(planned.objects, packed.objects, md5s, strict=True):
            checked = done.checked
            if done.etag_is_md5 and md5.hexdigest() != item.etag:
                return _Failure(
                    planned.name, f"its bytes of {item.key} have MD5 {md5.hexdigest()}, not {item.etag}"
                )
            if done.etag_is_md5 and checked == READ_BY_LENGTH:
                checked = READ_BY_ETAG
            objects.append(
                replace(done, checked=checked, crc64nvme=value if planned.copied else done.crc64nvme)
            )
        return replace(packed, proof=PROVEN_BY_READING, crc64nvme=value, objects=tuple(objects))


def _reject(
    store: ObjectStore,
    records: Records,
    paths: HourPaths,
    work: Work,
    failures: Sequence[_Failure],
    standing: dict[str, ObjectInfo],
) -> None:
    # A part without a receipt is packed again in any case, and may be the work of another run.
    bad = [
        standing[failure.name].key
        for failure in failures
        if failure.name in standing and (work.complete or failure.name in work.packed)
    ]
    if bad or work.complete:
        _remove(store, records, paths, work, bad)
    shown = "; ".join(f"{failure.name}: {failure.reason}" for failure in failures[:SHOWN])
    more = f" and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    undone = " The hour is not complete any more, its marker is removed." if work.complete else ""
    raise ProofError(
        f"hour {format_hour(paths.hour)}: {len(failures)} of {len(work.planned)} parts are not proven: "
        f"{shown}{more}.{undone} The raw objects are untouched: clear the run from plan_hour on, and the "
        f"missing parts are packed again."
    )


def _totals(
    stream: Stream, paths: HourPaths, work: Work, proven: Sequence[PackedPart], left_out: LeftOut
) -> HourTotals:
    bytes_in = sum(part.size for part in work.planned)
    separators = sum(part.separators for part in proven)
    bytes_out = sum(part.size for part in proven)
    if bytes_in + separators != bytes_out:
        raise ProofError(
            f"hour {format_hour(paths.hour)}: {bytes_in} bytes of raw objects and {separators} of separators "
            f"are not the {bytes_out} bytes of the parts; clear the run from plan_hour on"
        )
    kinds = Counter(item.checked for part in proven for item in part.objects)
    proofs = Counter(part.proof or "" for part in proven)
    return HourTotals(
        stream=stream.name,
        hour=format_hour(paths.hour),
        plan_id=work.plan_id,
        objects=sum(len(part.objects) for part in work.planned),
        bytes_in=bytes_in,
        separator_bytes=separators,
        bytes_out=bytes_out,
        parts=len(proven),
        left_out=left_out,
        verified=Verified(_sorted(proofs), _sorted(kinds)),
        measured=work.measured,
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=itemgetter(0)))


def _remove(store: ObjectStore, records: Records, paths: HourPaths, work: Work, keys: Sequence[str]) -> None:
    """Remove parts, and before them the marker, which must not stand over what is left.

    :raises SupersededError: if another run has planned or completed the hour meanwhile: they are its parts
    """
    claimed = records.read_claim(paths.claim)
    marker = records.read_marker(paths.marker)
    marked = marker is not None and marker.get("plan_id") == work.plan_id
    # The claim of a complete hour is still there where tidying up was cut short.
    if marked != work.complete or (claimed != work.plan_id and not (marked and claimed is None)):
        raise SupersededError(
            f"{paths.aggregated} was validated as plan {work.plan_id}, but another run has planned it anew "
            f"meanwhile; if that run is not at work any more, clear this one from plan_hour on"
        )
    if marker is not None:
        store.delete(paths.marker.bucket, [paths.marker.key])
    store.delete(paths.aggregated.bucket, keys)
