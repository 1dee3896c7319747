"""The step validate_hour: what lies in the bucket is exactly the raw hour, part for part and byte for byte."""

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter

from awscrt import checksums

from include.log_rollup import crc
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    ProofError,
    SupersededError,
    UnsupportedInputError,
    VanishedInputError,
)
from include.log_rollup.hour.changes import SHOWN, Comparison, named
from include.log_rollup.hour.layout import HourPaths, format_hour
from include.log_rollup.hour.parts import mismatch, read_pieces, read_runs
from include.log_rollup.hour.plan import LeftOut, ObjectDigests, PlannedPart, select
from include.log_rollup.hour.raw_digest import digest_raw
from include.log_rollup.hour.records import (
    PROVEN_BY_READING,
    PROVEN_BY_STORE,
    READ_BY_ETAG,
    READ_BY_LENGTH,
    Claim,
    HourTotals,
    ManifestReader,
    ManifestWriter,
    Measured,
    PackedObject,
    PackedPart,
    Receipt,
    ShardPlan,
    Verified,
)
from include.log_rollup.hour.state import HourState, Inventory
from include.log_rollup.memory import without_collector
from include.log_rollup.monitor import Monitor
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.listing import list_by_token
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)

# Of a complete hour, as many parts as this are proven at a time.
PARTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Some parts to be proven: as they were planned, as they were split, and what was written of them."""

    planned: tuple[PlannedPart, ...]
    parts: tuple[PlannedPart, ...]
    packed: Mapping[str, PackedPart]


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be proven: a plan and what was written for it, or a complete hour by its manifest.

    :param claim: of the hour; None where it is complete and tidied up
    :param manifest: of the hour that is complete, so that it is proven once more; None where it is being built
    :param digests: of the raw objects that were planned, where they are known beforehand
    :param batches: reads the parts, a few at a time; may be called again
    """

    plan_id: str
    claim: Claim | None
    manifest: ManifestReader | None
    parts: int
    objects: int
    left_out: LeftOut
    measured: Measured
    digests: Mapping[str, str] | None
    batches: Callable[[], Iterator[Batch]]

    @property
    def complete(self) -> bool:
        """Whether the hour is complete."""
        return self.manifest is not None


@without_collector
def validate_hour(store: ObjectStore, stream: Stream, hour: datetime) -> HourTotals:
    """Prove an hour from what is in the bucket alone, and write its manifest.

    Raw and aggregated are listed again, the raw hour in another way than for the plan, and it must still be what
    was planned. Each part must have the size, ETag and CRC of its receipt, and its CRC must be the combination of
    its raw objects' CRCs in order. What the store cannot vouch for, because it keeps no CRC, is read back: the
    part's CRC is computed again, and each raw object's bytes are compared with its ETag where that is an MD5.
    Parts of ours that the plan does not need are removed, once the manifest is in place. A part that is not as its
    receipt says is removed too: clearing the run writes it again. What is not ours stays.

    A complete hour is proven in the same way from its manifest, and keeps its marker if it holds. Parts are proven
    a shard at a time, so memory does not grow with the hour.

    :raises InputChangedError: if raw objects came late, changed or vanished
    :raises VanishedInputError: if objects of a complete hour vanished
    :raises ProofError: if the parts are not what they should be
    :raises SupersededError: if nothing is planned, or another run takes over
    """
    state = HourState(store, stream, hour)
    work = _load(state)
    left_out = _check_raw(store, stream, state.paths, work)
    found = state.inventory()
    prover = _Prover(store, stream.raw.bucket, state.paths, found.parts, work.parts)
    proof = _Proof(store, state, prover)
    with Monitor(log, store.port, store.max_connections, prover.progress):
        for batch in work.batches():
            proof.add(batch)
    proof.check_complete(work)
    if proof.failures:
        _reject(state, work, proof.failures, found)
    strays, foreign = _others(state, found, proof.names, work)
    strays = state.removable(
        found, strays, work.plan_id, (part for batch in work.batches() for part in batch.planned)
    )
    totals = proof.totals(stream, work, left_out, foreign)
    if work.claim is not None and not work.complete:
        validated_at = datetime.now(UTC).isoformat(timespec="seconds")
        body = proof.manifest.finish(totals, validated_at, state.paths.raw.key, work.claim.claim_id)
        state.publish_manifest(work.claim, body)
    if strays:
        log.info("removing %d parts that the plan does not need: %s", len(strays), named(sorted(strays)))
        try:
            state.remove_parts(strays, work.claim)
        except SupersededError:
            # Another run may have removed them, and completed the hour under this very plan.
            if not state.is_complete_under(work.plan_id):
                raise
    log.info(
        "proven: %d objects, %s in = %s out in %d parts; parts: %s; raw objects: %s",
        totals.objects, format_size(totals.bytes_in), format_size(totals.bytes_out), totals.parts,
        dict(totals.verified.parts), dict(totals.verified.objects),
    )  # fmt: skip
    return totals


def _load(state: HourState) -> Work:
    claim = state.claim()
    marker = state.records.read_marker(state.paths.marker)
    # Beside its own claim a marker is there when another run has completed the hour under the very same plan.
    if claim is None or (marker and marker.get("plan_id") == claim.plan_id):
        return _load_complete(state, marker, claim)
    summary = state.records.read_plan(state.paths.plan(claim.plan_id)) if claim.plan_id else None
    if summary is None:
        raise SupersededError(
            f"plan {claim.plan_id} is not whole under {state.paths.work}; clear the run from plan_hour on"
        )
    measured = Measured()
    for ref in summary.shards:
        receipt = state.records.read_receipt(state.paths.receipt(summary.plan_id, ref.shard))
        measured += receipt.measured if receipt else Measured()

    def batches() -> Iterator[Batch]:
        for ref in summary.shards:
            shard = state.records.read_shard(
                state.paths.shard(summary.plan_id, ref.shard), state.paths.raw.key
            )
            if shard is None:
                raise SupersededError(
                    f"shard {ref.shard} of plan {summary.plan_id} is gone or damaged; clear the run from "
                    f"plan_hour on"
                )
            receipt = state.records.read_receipt(state.paths.receipt(summary.plan_id, ref.shard))
            yield _batch(shard, receipt or Receipt(summary.plan_id, ref.shard))

    return Work(
        summary.plan_id,
        claim,
        None,
        summary.parts,
        summary.objects,
        summary.left_out,
        measured,
        summary.digests,
        batches,
    )


def _batch(shard: ShardPlan, receipt: Receipt) -> Batch:
    parts: list[PlannedPart] = []
    for planned in shard.parts:
        split = receipt.splits.get(planned.name)
        whole = split and sorted(item for part in split for item in part.objects) == sorted(planned.objects)
        parts += split if split and whole else (planned,)
    return Batch(shard.parts, tuple(parts), {part.name: part for part in receipt.parts})


def _load_complete(state: HourState, marker: Mapping[str, object] | None, claim: Claim | None) -> Work:
    manifest = state.records.open_manifest(state.paths.manifest)
    if not marker or manifest is None or marker.get("plan_id") != manifest.totals.plan_id:
        raise SupersededError(
            f"nothing is planned for {format_hour(state.paths.hour)} under {state.paths.work}, and the hour is "
            f"not complete; clear the run from plan_hour on"
        )
    totals = manifest.totals
    return Work(
        totals.plan_id,
        claim,
        manifest,
        totals.parts,
        totals.objects,
        totals.left_out,
        totals.measured,
        None,
        lambda: _manifest_batches(manifest),
    )


def _manifest_batches(manifest: ManifestReader) -> Iterator[Batch]:
    pairs = manifest.parts()
    while chunk := list(islice(pairs, PARTS_AT_ONCE)):
        planned = tuple(one for one, _ in chunk)
        yield Batch(planned, planned, {packed.name: packed for _, packed in chunk})


def _check_raw(store: ObjectStore, stream: Stream, paths: HourPaths, work: Work) -> LeftOut:
    """Whether the raw hour is what was planned.

    :returns: what is left out of it now
    """
    if work.digests is not None:
        # What has come and cannot be joined is named below like all that came late.
        with suppress(UnsupportedInputError):
            seen = digest_raw(store, paths, stream.ready_object, work.objects)
            if seen.digests == work.digests:
                return seen.left_out
    # With all rows in memory: for a complete hour, or to say what has changed.
    chosen, left_out = select(list_by_token(store, paths.raw), paths.raw.key, stream.ready_object)
    comparison = Comparison(chosen)
    for batch in work.batches():
        for part in batch.planned:
            comparison.add(part.objects)
    changes = comparison.changes()
    if not changes:
        return left_out
    found = f"{paths.raw} is not what was planned as {work.plan_id}: {changes}. Nothing is lost: "
    if work.complete and changes.vanished:
        raise VanishedInputError(
            f"{found}the hour stays complete, and its parts hold what vanished. If it expired, mark the run as "
            f"success."
        )
    raise InputChangedError(
        f"{found}clear the run from plan_hour on, and the hour is planned and packed as it is now."
    )


def _others(state: HourState, found: Inventory, needed: set[str], work: Work) -> tuple[dict[str, str], int]:
    """What else lies there: parts of ours that the plan does not need, and how many objects that are not ours."""
    others = found.parts.keys() - needed
    strays: dict[str, str] = {}
    if others and not work.complete:
        manifest = state.records.open_manifest(state.paths.manifest)
        strays = state.strays(found, needed, work.plan_id, manifest)
    foreign = sorted(
        [
            *(found.parts[name].key for name in others - strays.keys()),
            *(item.key for item in found.foreign),
        ]
    )
    if foreign:
        log.warning(
            "%d objects under %s are not of this project; they are left alone, and readers should follow the "
            "manifest: %s", len(foreign), state.paths.aggregated, named(foreign),
        )  # fmt: skip
    return strays, len(foreign)


@dataclass(slots=True)
class _Proof:
    """What has been proven so far."""

    store: ObjectStore
    state: HourState
    prover: "_Prover"
    manifest: ManifestWriter = field(default_factory=ManifestWriter)
    failures: list["_Failure"] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    digests: ObjectDigests = field(default_factory=ObjectDigests)
    objects: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    separators: int = 0
    damaged: list[str] = field(default_factory=list)
    proofs: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Batch) -> None:
        """Prove some parts."""
        for planned in batch.planned:
            self.digests.add(planned.objects)
        self.names.update(part.name for part in batch.parts)
        outcomes = in_parallel(
            self.store.control_connections,
            "log-rollup-validate",
            lambda part: self.prover.prove(part, batch.packed.get(part.name)),
            batch.parts,
        )
        for planned, outcome in zip(batch.parts, outcomes, strict=True):
            if isinstance(outcome, _Failure):
                self.failures.append(outcome)
            else:
                self._add_part(planned, outcome)

    def _add_part(self, planned: PlannedPart, packed: PackedPart) -> None:
        self.manifest.add(planned, packed)
        self.objects += len(planned.objects)
        self.bytes_in += planned.size
        self.bytes_out += packed.size
        self.separators += packed.separators
        self.proofs[packed.proof or ""] += 1
        for item, done in zip(planned.objects, packed.objects, strict=True):
            self.checks[done.checked] += 1
            if done.damaged:
                self.damaged.append(item.key)

    def check_complete(self, work: Work) -> None:
        """Whether the plan's files hold just what the plan was made of.

        :raises ProofError: if not
        """
        if work.digests is not None and self.digests.result() != dict(work.digests):
            raise ProofError(
                f"the files of plan {work.plan_id} under {self.state.paths.work} do not belong together; clear "
                f"the run from plan_hour on"
            )

    def totals(self, stream: Stream, work: Work, left_out: LeftOut, foreign: int) -> HourTotals:
        """What the hour amounts to.

        :raises ProofError: if the bytes of the raw objects are not those of the parts
        """
        hour = format_hour(self.state.paths.hour)
        if self.bytes_in + self.separators != self.bytes_out:
            raise ProofError(
                f"hour {hour}: {self.bytes_in} bytes of raw objects and {self.separators} of separators are not "
                f"the {self.bytes_out} bytes of the parts; clear the run from plan_hour on"
            )
        if self.damaged:
            log.warning(
                "%d raw objects could not be decompressed; each is in a part of its own: %s",
                len(self.damaged), named(self.damaged),
            )  # fmt: skip
        return HourTotals(
            stream=stream.name,
            hour=hour,
            plan_id=work.plan_id,
            objects=self.objects,
            bytes_in=self.bytes_in,
            separator_bytes=self.separators,
            bytes_out=self.bytes_out,
            parts=len(self.names),
            left_out=left_out,
            verified=Verified(_sorted(self.proofs), _sorted(self.checks)),
            measured=work.measured,
            foreign=foreign,
            damaged=len(self.damaged),
        )


@dataclass(frozen=True, slots=True)
class _Failure:
    """A part that is not proven.

    :param planned: name of the planned part it was made for
    :param written: whether a receipt or the manifest says that it was written
    """

    name: str
    reason: str
    planned: str
    written: bool


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
        parts: Mapping[str, ObjectInfo],
        total: int,
    ) -> None:
        self._store = store
        self._raw_bucket = raw_bucket
        self._paths = paths
        self._parts = parts
        self._total = total
        self._looked_at = self._read_bytes = 0
        self._counting = threading.Lock()
        self._trying = threading.Lock()
        self._etags_are_md5: bool | None = None
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
        if isinstance(outcome, PackedPart):
            return outcome
        return _Failure(planned.name, outcome, planned.split_of or planned.name, packed is not None)

    def _prove(self, planned: PlannedPart, packed: PackedPart | None) -> PackedPart | str:
        problem = mismatch(planned, packed, self._parts.get(planned.name))
        if problem or packed is None:
            return problem or "it was not packed"
        head = self._store.head(self._paths.part(planned.name))
        if head is None or head.etag != packed.etag:
            return "it was overwritten while it was validated"
        stored = head.crc64nvme if self._crc_is_checked else None
        if planned.copied:
            return self._prove_copy(planned, packed, stored)
        if stored not in (None, packed.crc64nvme):
            return f"the store has CRC64NVME {stored:x}, {packed.crc64nvme:x} was sent"
        wants_reading = any(item.checked == READ_BY_LENGTH and item.etag_is_md5 for item in packed.objects)
        if stored is not None and not wants_reading:
            return replace(packed, proof=PROVEN_BY_STORE)
        if packed.proof == PROVEN_BY_READING:
            # Proven when it had this very ETag; nothing was written since.
            return packed
        return self._read_back(planned, packed)

    def _prove_copy(self, planned: PlannedPart, packed: PackedPart, stored: int | None) -> PackedPart | str:
        (item,), (done,) = planned.objects, packed.objects
        source = Location(self._raw_bucket, item.key)
        before = self._store.head(source)
        if before is None or before.etag != item.etag:
            # Nothing is wrong with the part, which may hold the last copy.
            raise _changed(source)
        if stored is not None and stored == before.crc64nvme:
            proven = PackedObject(stored, crc.CRC64NVME, False)
            return replace(packed, proof=PROVEN_BY_STORE, crc64nvme=stored, objects=(proven,))
        if packed.proof == PROVEN_BY_READING:
            return packed
        if before.etag_is_md5:
            done = replace(done, etag_is_md5=True)
            return self._read_back(planned, replace(packed, objects=(done,)))
        target = self._paths.part(planned.name)
        value = self._crc_of(target, packed.etag, packed.size)
        try:
            expected = self._crc_of(source, item.etag, item.size)
        except (NotFoundError, InputChangedError):
            raise _changed(source) from None
        if value != expected:
            return f"its bytes are not those of {source}"
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

    def _read_back(self, planned: PlannedPart, packed: PackedPart) -> PackedPart | str:
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
            return f"read back it has CRC64NVME {value:x}, {packed.crc64nvme:x} was sent"
        objects = []
        if planned.copied:
            packed = replace(packed, objects=(replace(packed.objects[0], crc64nvme=value),))
        for index, (done, md5) in enumerate(zip(packed.objects, md5s, strict=True)):
            item, checked = planned.objects[index], done.checked
            if done.etag_is_md5 and md5.hexdigest() != item.etag:
                if not self._is_not_md5(planned, packed, index):
                    return f"its bytes of {item.key} have MD5 {md5.hexdigest()}, not {item.etag}"
            elif done.etag_is_md5 and checked == READ_BY_LENGTH:
                checked = READ_BY_ETAG
            objects.append(replace(done, checked=checked))
        return replace(packed, proof=PROVEN_BY_READING, crc64nvme=value, objects=tuple(objects))

    def _is_not_md5(self, planned: PlannedPart, packed: PackedPart, index: int) -> bool:
        """Whether the ETag of a raw object is no MD5, though it looks like one, and its bytes are right.

        Some servers answer 32 random digits. That is tried out on a part whose bytes are known to be those that
        were sent. Where it shows nothing, or S3 copied the object, the raw object is read a second time.
        """
        if not planned.copied:
            with self._trying:
                if self._etags_are_md5 is None:
                    self._etags_are_md5 = self._try_md5(packed)
                    if self._etags_are_md5 is False:
                        log.warning(
                            "ETags are no MD5s on this server, so they prove nothing about raw objects"
                        )
            if self._etags_are_md5 is False:
                return True
        item = planned.objects[index]
        source = Location(self._raw_bucket, item.key)
        try:
            value = self._crc_of(source, item.etag, item.size)
        except (NotFoundError, InputChangedError):
            raise _changed(source) from None
        return value == packed.objects[index].crc64nvme

    def _try_md5(self, packed: PackedPart) -> bool | None:
        """Whether the ETag of a part is the MD5 of its bytes; None if it need not be, or if they came wrong."""
        target = self._paths.part(packed.name)
        head = self._store.head(target)
        if head is None or not head.etag_is_md5:
            return None
        md5, value = hashlib.md5(usedforsecurity=False), 0
        for run in read_runs(self._store, target, packed.etag, packed.size):
            self._count_read(run)
            md5.update(run)
            value = checksums.crc64nvme(run, value)
        return md5.hexdigest() == packed.etag if value == packed.crc64nvme else None


def _changed(source: Location) -> InputChangedError:
    return InputChangedError(
        f"{source} changed or vanished while the hour was validated. Nothing is lost: clear the run from "
        f"plan_hour on."
    )


def _reject(state: HourState, work: Work, failures: Sequence[_Failure], found: Inventory) -> None:
    # A part without a receipt is packed again in any case, and may be the work of another run.
    bad = {
        failure.name: failure.planned
        for failure in failures
        if failure.written and failure.name in found.parts
    }
    if bad or work.complete:
        state.reject_parts(work.plan_id, bad, work.claim, work.manifest)
    shown = "; ".join(f"{failure.name}: {failure.reason}" for failure in failures[:SHOWN])
    more = f" and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    undone = " The hour is not complete any more, its marker is removed." if work.complete else ""
    raise ProofError(
        f"hour {format_hour(state.paths.hour)}: {len(failures)} of {work.parts} parts are not proven: "
        f"{shown}{more}.{undone} The raw objects are untouched: clear the run from plan_hour on, and the "
        f"missing parts are packed again."
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=itemgetter(0)))
