"""The step validate_hour: proves that the parts hold exactly the raw hour, and writes the manifest."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter

from include.log_rollup.errors import (
    InputChangedError,
    ProofError,
    SupersededError,
    VanishedInputError,
)
from include.log_rollup.hour.changes import MAX_SHOWN, Changes, Comparison, first_keys
from include.log_rollup.hour.layout import folder_of, format_hour
from include.log_rollup.hour.manifest import GroupTotals, HourTotals, ManifestReader, ManifestWriter, Verified
from include.log_rollup.hour.parts import count_recompressed, held_bytes
from include.log_rollup.hour.plan import ObjectDigests, PlannedPart, without_folder
from include.log_rollup.hour.prover import PartProver, UnprovenPart
from include.log_rollup.hour.raw_digest import digest_raw, new_digests
from include.log_rollup.hour.reader import Inventory
from include.log_rollup.hour.records import Claim, Measured, PackedPart, Receipt, ShardPlan, StoredMarker
from include.log_rollup.hour.selection import InputRules, LeftOut, select
from include.log_rollup.hour.state import HourState
from include.log_rollup.memory import without_collector
from include.log_rollup.monitor import Monitor
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.listing import PAGE_SIZE
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)

# Number of parts of a complete hour that are in memory at a time.
PARTS_AT_ONCE = 64


@without_collector
def validate_hour(store: ObjectStore, stream: Stream, hour: datetime) -> HourTotals:
    """Prove an hour from what is in the bucket alone, and write its manifest.

    - The raw hour is listed again, in another way than for the plan, and must be what was planned. Raw objects
      that have expired, as the hour's record of them says, are proven by their part and the manifest.
    - The aggregated hour is listed again. Each part must have the size, ETag and CRC of its receipt, and its CRC
      must be the combination of the CRCs of its raw objects in order.
    - A part is read back if the store keeps no CRC of it: its CRC is computed again, and the bytes of each raw
      object are compared with its ETag if that is an MD5.
    - A part that fails is removed; clearing the run packs it again. Stray parts are removed once the manifest is
      in place. Foreign objects stay.

    A complete hour is proven the same way from its manifest, and keeps its marker if the proof succeeds. Only one
    shard is in memory at a time.

    :raises InputChangedError: if raw objects came late, changed or vanished, or those of parts that the plan
        replaces were announced for deletion since it was made
    :raises VanishedInputError: if raw objects of a complete hour vanished
    :raises ProofError: if the parts are not what they should be
    :raises SupersededError: if no plan is being built, or another run takes over
    """
    state = HourState(store, stream, hour)
    expected = _read_expected(state)
    raw = _check_raw(store, state, stream.input_rules, expected)
    found = state.inventory()
    prover = PartProver(store, stream.raw.root, state.paths, found.parts, expected.parts, raw.announced)
    proof = _Proof(prover, store.control_connections, new_digests(state.paths))
    with Monitor(log, store.ports, store.max_connections, prover.progress):
        for batch in expected.batches():
            proof.add(batch)
    _check_digests(state, expected, raw, proof)
    if proof.failures:
        _reject(store, state, expected, proof.failures, found, raw.announced)
    strays = _find_strays(state, found, proof.names, expected)
    foreign = _foreign_keys(state, found, proof.names | strays.keys())
    strays = state.removable(found, strays, expected.plan_id, expected.planned_parts())
    totals = _totals(state, stream, expected, proof, raw.left_out, len(foreign))
    if expected.claim is not None and not expected.is_complete:
        if strays:
            state.refuse_announced(strays, expected.claim, found)
        claim = _write_manifests(state, expected.claim, proof, totals, found)
        expected = replace(expected, claim=claim)
    if strays:
        _remove_strays(state, expected, strays)
    log.info(
        "proven: %d objects, %s in = %s out in %d parts%s; parts: %s; raw objects: %s",
        totals.objects, format_size(totals.bytes_in), format_size(totals.bytes_out), totals.parts,
        f" ({totals.recompressed} objects unpacked)" if totals.recompressed else "",
        dict(totals.verified.parts), dict(totals.verified.objects),
    )  # fmt: skip
    return totals


# -- what the hour must hold ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some parts to prove.

    :param planned: as in the plan
    :param parts: the same, but with the parts that were written instead of split ones
    :param packed: as written, by name
    """

    planned: tuple[PlannedPart, ...]
    parts: tuple[PlannedPart, ...]
    packed: Mapping[str, PackedPart]


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the hour must hold: by the plan that is being built, or by the manifest of a complete hour.

    :param claim: of the hour; None if it is complete and cleaned up
    :param manifest: of a complete hour; None if the hour is being built
    :param digests: of the planned raw objects, if they are in key order over all parts; else None, as for a
        complete hour
    :param batches: reads the parts, a few at a time; can be called again
    """

    plan_id: str
    claim: Claim | None
    manifest: ManifestReader | None
    parts: int
    objects: int
    left_out: LeftOut
    measured: Measured
    digests: Mapping[str, str] | None
    batches: Callable[[], Iterator[_Batch]]

    @property
    def is_complete(self) -> bool:
        """Whether the hour is complete."""
        return self.manifest is not None

    def planned_parts(self) -> Iterator[PlannedPart]:
        """All parts as planned."""
        for batch in self.batches():
            yield from batch.planned


def _read_expected(state: HourState) -> _Expected:
    claim = state.claim()
    marker = state.marker()
    # A claim and a marker of the same plan: another run has completed the hour under this plan.
    if claim is None or (marker is not None and marker.is_of(claim.plan_id)):
        return _expected_of_manifest(state, marker, claim)
    return _expected_of_plan(state, claim)


def _expected_of_plan(state: HourState, claim: Claim) -> _Expected:
    """What the plan of a claim says.

    :raises SupersededError: if the plan cannot be read, or another run has proven the hour since it was made
    """
    summary = state.plan(claim.plan_id)
    state.assert_planned_on_manifest(summary)

    def receipt_of(shard: int) -> Receipt:
        source = state.paths.receipt(summary.plan_id, shard)
        return state.records.read_receipt(source) or Receipt(summary.plan_id, shard)

    def batches() -> Iterator[_Batch]:
        for ref in summary.shards:
            yield _batch_of(state.shard(summary.plan_id, ref.shard), receipt_of(ref.shard))

    measured = Measured()
    for ref in summary.shards:
        measured += receipt_of(ref.shard).measured
    return _Expected(
        summary.plan_id,
        claim,
        None,
        summary.parts,
        summary.objects,
        summary.left_out,
        measured,
        summary.digests if summary.in_key_order else None,
        batches,
    )


def _batch_of(shard: ShardPlan, receipt: Receipt) -> _Batch:
    parts: list[PlannedPart] = []
    for planned in shard.parts:
        split = receipt.splits.get(planned.name)
        whole = split and sorted(item for part in split for item in part.objects) == sorted(planned.objects)
        parts += split if split and whole else (planned,)
    return _Batch(shard.parts, tuple(parts), {part.name: part for part in receipt.parts})


def _expected_of_manifest(state: HourState, marker: StoredMarker | None, claim: Claim | None) -> _Expected:
    """What the manifest of a complete hour says.

    :raises SupersededError: if the hour is not complete
    """
    manifest = state.manifest()
    if marker is None or manifest is None or not marker.is_of(manifest.totals.plan_id):
        raise state.superseded(
            f"nothing is planned for {format_hour(state.paths.hour)} under {state.paths.work}, and the hour is "
            f"not complete"
        )
    totals = manifest.totals
    return _Expected(
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


def _manifest_batches(manifest: ManifestReader) -> Iterator[_Batch]:
    pairs = manifest.parts()
    while chunk := list(islice(pairs, PARTS_AT_ONCE)):
        planned = tuple(one for one, _ in chunk)
        yield _Batch(planned, planned, {packed.name: packed for _, packed in chunk})


# -- the raw hour --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RawHour:
    """The raw hour, which is what was planned.

    :param digests: of the raw objects in the order of the parts
    :param announced: names of the parts whose raw objects may have expired
    """

    left_out: LeftOut
    digests: Mapping[str, str]
    announced: Collection[str] = ()


def _check_raw(store: ObjectStore, state: HourState, rules: InputRules, expected: _Expected) -> _RawHour:
    """Compare the raw hour with what was planned.

    :raises InputChangedError: if it differs
    :raises VanishedInputError: if it differs, the hour is complete and raw objects have vanished
    :raises ProofError: if two parts of the plan hold one raw object
    """
    if expected.digests is not None:
        found = digest_raw(store, state.paths, rules, expected.objects)
        if found.digests == expected.digests:
            return _RawHour(found.left_out, expected.digests)
    # With all rows in memory: for a complete hour or one with kept parts, or to name what has changed.
    page_size = max(1, min(PAGE_SIZE, expected.objects // 2 + 1))
    listed = state.paths.raw_and_unmatched.list_by_token(store, page_size)
    chosen, left_out = select(listed, state.paths.name_of, rules)
    left_out_keys = {row.key for row in listed} - {row.key for row in chosen}
    comparison = Comparison(chosen, state.expiry_record(), left_out_keys)
    digests = new_digests(state.paths)
    for part in expected.planned_parts():
        comparison.add(part)
        if state.paths.has_groups:
            _require_own_group(state, expected, part)
        digests.add(part.objects)
    changes = comparison.changes()
    if changes:
        raise _raw_changed(state, expected, changes)
    if comparison.doubled:
        raise _wrong_plan(state, expected)
    return _RawHour(left_out, digests.result(), comparison.announced)


def _require_own_group(state: HourState, expected: _Expected, part: PlannedPart) -> None:
    """Refuse a part whose raw objects belong to another hour or group by the stream's present templates.

    :raises InputChangedError: if there are any
    """
    find_folder, folder = state.paths.find_folder, folder_of(part.name)
    others = [item.key for item in part.objects if find_folder(item.key) != folder]
    if others:
        raise InputChangedError(
            f"hour {format_hour(state.paths.hour)}: {part.name} of plan {expected.plan_id} holds {len(others):,} "
            f"raw objects ({first_keys(others)}) of another hour or group by the stream's present 'raw', "
            f"'timezone' and 'aggregated', which have changed since it was planned. Nothing is lost: clear the "
            f"run from plan_hour on, which says what can be done."
        )


def _raw_changed(
    state: HourState, expected: _Expected, changes: Changes
) -> InputChangedError | VanishedInputError:
    found = f"{state.paths.raw} is not what was planned as {expected.plan_id}: {changes}. Nothing is lost: "
    if expected.is_complete and changes.vanished:
        return VanishedInputError(
            f"{found}the hour stays complete, and its parts hold what vanished. If it expired, mark the run as "
            f"success."
        )
    return InputChangedError(
        f"{found}clear the run from plan_hour on, and the hour is planned and packed as it is now."
    )


# -- the parts -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """Totals of some proven parts, and their manifest."""

    manifest: ManifestWriter = field(default_factory=ManifestWriter)
    parts: int = 0
    objects: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_stored: int = 0
    bytes_held: int = 0
    recompressed: int = 0
    is_compressed: bool = False
    separators: int = 0
    damaged: list[str] = field(default_factory=list)
    parts_by_proof: Counter[str] = field(default_factory=Counter)
    objects_by_check: Counter[str] = field(default_factory=Counter)

    def add(self, planned: PlannedPart, packed: PackedPart) -> None:
        """Add a proven part."""
        self.manifest.add(planned, packed)
        self.parts += 1
        self.objects += len(planned.objects)
        self.bytes_in += planned.size
        self.bytes_out += packed.content_size
        self.bytes_stored += packed.size
        self.bytes_held += held_bytes(planned, packed)
        self.recompressed += count_recompressed((packed,))
        self.is_compressed = self.is_compressed or bool(packed.frames)
        self.separators += packed.separators
        self.parts_by_proof[packed.proof or ""] += 1
        for item, done in zip(planned.objects, packed.objects, strict=True):
            self.objects_by_check[done.checked] += 1
            if done.damaged:
                self.damaged.append(item.key)

    @property
    def verified(self) -> Verified:
        """How its parts and raw objects were compared."""
        return Verified(_by_name(self.parts_by_proof), _by_name(self.objects_by_check))


@dataclass(slots=True)
class _Proof:
    """The parts that were proven so far, and their totals.

    :param connections: number of parts that are proven at the same time
    :param groups: totals and manifest of each group, by its folder
    """

    prover: PartProver
    connections: int
    digests: ObjectDigests
    hour: _Tally = field(default_factory=_Tally)
    groups: dict[str, _Tally] = field(default_factory=dict)
    failures: list[UnprovenPart] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def add(self, batch: _Batch) -> None:
        """Prove some parts."""
        for planned in batch.planned:
            self.digests.add(planned.objects)
        self.names.update(part.name for part in batch.parts)
        outcomes = in_parallel(
            self.connections,
            "log-rollup-validate",
            lambda part: self.prover.prove(part, batch.packed.get(part.name)),
            batch.parts,
        )
        for planned, outcome in zip(batch.parts, outcomes, strict=True):
            if isinstance(outcome, UnprovenPart):
                self.failures.append(outcome)
            else:
                self._add_part(planned, outcome)

    def _add_part(self, planned: PlannedPart, packed: PackedPart) -> None:
        self.hour.add(planned, packed)
        folder = folder_of(planned.name)
        if not folder:
            return
        if folder not in self.groups:
            # The parts of a group follow each other.
            if self.groups:
                self.groups[next(reversed(self.groups))].manifest.end()
            self.groups[folder] = _Tally()
        self.groups[folder].add(without_folder(planned), replace(packed, name=packed.name[len(folder) :]))


def _check_digests(state: HourState, expected: _Expected, raw: _RawHour, proof: _Proof) -> None:
    """Compare the raw objects in the proven parts with the raw hour.

    :raises ProofError: if they differ
    """
    if proof.digests.result() != dict(raw.digests):
        raise _wrong_plan(state, expected)


def _wrong_plan(state: HourState, expected: _Expected) -> ProofError:
    return ProofError(
        f"the files of plan {expected.plan_id} under {state.paths.work} do not belong together; clear "
        f"the run from plan_hour on"
    )


def _reject(
    store: ObjectStore,
    state: HourState,
    expected: _Expected,
    failures: Sequence[UnprovenPart],
    found: Inventory,
    announced: Collection[str],
) -> None:
    """Remove the parts that failed, except those that may hold the last copy of raw objects.

    :param announced: names of the parts with raw objects that were announced for deletion
    :raises ProofError: always
    """
    # A part without a receipt is packed again anyway, and may belong to another run.
    bad = {
        failure.name: failure.planned
        for failure in failures
        if failure.written and failure.name in found.parts
    }
    named = {failure.name: failure.planned for failure in failures if failure.name in announced}
    gone = _without_raw_objects(store, state, expected, bad | named, announced)
    bad = {name: planned for name, planned in bad.items() if name not in gone}
    if bad or expected.is_complete:

        def without_raw_objects(parts: Mapping[str, str], named: Collection[str]) -> set[str]:
            planned = {parts[name] for name in named}
            return _without_raw_objects(store, state, expected, parts, planned.union(named))

        left = state.reject_parts(
            expected.plan_id, bad, expected.claim, expected.manifest, without_raw_objects
        )
        gone |= without_raw_objects({name: bad[name] for name in left}, left)
    shown = "; ".join(f"{failure.name}: {failure.reason}" for failure in failures[:MAX_SHOWN])
    more = f" and {len(failures) - MAX_SHOWN} more" if len(failures) > MAX_SHOWN else ""
    undone = " The hour is no longer complete, its marker is removed." if expected.is_complete else ""
    last = sorted(gone)
    if last:
        remedy = (
            f"Raw objects of {len(last)} of them are gone ({first_keys(last)}), so these were left alone: "
            f"restore them from older versions or from a copy, then clear the run from plan_hour on."
        )
    else:
        remedy = (
            "The raw objects are untouched: clear the run from plan_hour on, which packs missing parts again."
        )
    raise ProofError(
        f"hour {format_hour(state.paths.hour)}: {len(failures)} of {expected.parts} parts are not proven: "
        f"{shown}{more}.{undone} {remedy}"
    )


def _without_raw_objects(
    store: ObjectStore,
    state: HourState,
    expected: _Expected,
    parts: Mapping[str, str],
    announced: Container[str],
) -> set[str]:
    """Names of the parts of which a raw object does not exist any more.

    :param parts: their names, each with the name of the planned part it was made for
    :param announced: names of the parts of which a raw object that exists in another version counts as gone
    """
    names = {*parts, *parts.values()}
    root = state.paths.raw_template.root
    found: set[str] = set()
    for planned in expected.planned_parts() if names else ():
        if planned.name in names:
            places = [root.at(item.key) for item in planned.objects]
            heads = in_parallel(store.control_connections, "log-rollup-vanished", store.head, places)
            is_announced = planned.name in announced
            for item, head in zip(planned.objects, heads, strict=True):
                if head is None or (is_announced and (head.size, head.etag) != (item.size, item.etag)):
                    found.add(planned.name)
    return {name for name, planned_name in parts.items() if name in found or planned_name in found}


# -- other objects below the aggregated hour -----------------------------------------------------------


def _find_strays(state: HourState, found: Inventory, needed: set[str], expected: _Expected) -> dict[str, str]:
    """The stray parts of an hour that is being built; see :meth:`HourState.strays`."""
    if expected.is_complete or not found.parts.keys() - needed:
        return {}
    return state.strays(found, needed, expected.plan_id, state.manifest())


def _foreign_keys(state: HourState, found: Inventory, ours: set[str]) -> list[str]:
    """The keys of the foreign objects, which are logged.

    :param ours: names of the parts that are not foreign
    """
    keys = sorted(
        [
            *(found.parts[name].key for name in found.parts.keys() - ours),
            *(item.key for item in found.foreign),
        ]
    )
    if keys:
        log.warning(
            "%d objects under %s are not of this project; they are left alone, and readers should follow the "
            "manifest: %s", len(keys), state.paths.aggregated, first_keys(keys),
        )  # fmt: skip
    return keys


def _remove_strays(state: HourState, expected: _Expected, strays: Mapping[str, str]) -> None:
    log.info("removing %d stray parts: %s", len(strays), first_keys(sorted(strays)))
    try:
        state.remove_parts(strays, expected.claim)
    except SupersededError:
        # Another run may have removed them and completed the hour under this plan.
        if not state.is_complete_under(expected.plan_id):
            raise


# -- totals and manifest -------------------------------------------------------------------------------


def _totals(
    state: HourState, stream: Stream, expected: _Expected, proof: _Proof, left_out: LeftOut, foreign: int
) -> HourTotals:
    """The totals of a proven hour.

    :raises ProofError: if raw objects (of recompressed ones the content) and separators don't add up to the bytes
        of the parts
    """
    hour, tally = format_hour(state.paths.hour), proof.hour
    if tally.bytes_held + tally.separators != tally.bytes_out:
        raise ProofError(
            f"hour {hour}: {tally.bytes_held} bytes of raw objects and {tally.separators} of separators are not "
            f"the {tally.bytes_out} bytes of the parts; clear the run from plan_hour on"
        )
    if tally.damaged:
        log.warning(
            "%d raw objects could not be decompressed; each keeps its bytes, in a part of its own: %s",
            len(tally.damaged), first_keys(tally.damaged),
        )  # fmt: skip
    return HourTotals(
        stream=stream.name,
        hour=hour,
        plan_id=expected.plan_id,
        objects=tally.objects,
        bytes_in=tally.bytes_in,
        separator_bytes=tally.separators,
        bytes_out=tally.bytes_out,
        parts=len(proof.names),
        left_out=left_out,
        verified=tally.verified,
        measured=expected.measured,
        foreign=foreign,
        damaged=len(tally.damaged),
        bytes_stored=tally.bytes_stored if tally.is_compressed else 0,
        recompressed=tally.recompressed,
        bytes_unpacked=tally.bytes_held if tally.recompressed else 0,
        groups=tuple(_group_totals(state, folder, group) for folder, group in proof.groups.items()),
    )


def _group_totals(state: HourState, folder: str, tally: _Tally) -> GroupTotals:
    return GroupTotals(
        folder=folder,
        captures=state.paths.captures_of(folder),
        objects=tally.objects,
        bytes_in=tally.bytes_in,
        separator_bytes=tally.separators,
        bytes_out=tally.bytes_out,
        parts=tally.parts,
        verified=tally.verified,
        damaged=len(tally.damaged),
        bytes_stored=tally.bytes_stored if tally.is_compressed else 0,
        recompressed=tally.recompressed,
        bytes_unpacked=tally.bytes_held if tally.recompressed else 0,
    )


def _write_manifests(
    state: HourState, claim: Claim, proof: _Proof, totals: HourTotals, found: Inventory
) -> Claim:
    """Write the manifest of the hour, and those of its groups whose parts have changed.

    If there are files of another plan, all manifests of groups are written, and so their markers too: an overtaken
    run may still remove the marker of any group, if it is the one that it has seen.

    :returns: the claim under which they were written; a new one if a group has a marker that has to be removed
    """
    plan = f"{claim.plan_id}/"
    has_other_plan = any(name.endswith("/plan.json") and not name.startswith(plan) for name in found.work)
    changed = [
        group
        for group in totals.groups
        # A group with a marker has the same parts as before: planning removes those of the others.
        if has_other_plan
        or group.folder not in found.group_markers
        or group.folder not in found.group_manifests
    ]
    claim = state.prepare_manifests(claim, found, [group.folder for group in changed])
    validated_at = datetime.now(UTC).isoformat(timespec="seconds")
    base = state.paths.key_base
    groups = {
        group.folder: proof.groups[group.folder].manifest.finish(
            totals.of_group(group), validated_at, base, claim.claim_id
        )
        for group in changed
    }
    body = proof.hour.manifest.finish(totals, validated_at, base, claim.claim_id)
    state.write_manifest(claim, body, found.manifest_etag, groups)
    state.remove_gone_groups(claim, found, proof.groups)
    return claim


def _by_name(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=itemgetter(0)))
