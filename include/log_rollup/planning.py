"""The step plan_hour: from the raw listing to a plan in the bucket."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from include.log_rollup.changes import named
from include.log_rollup.errors import EmptyHourError, ProofError, VanishedInputError
from include.log_rollup.hours import HourPaths, format_hour
from include.log_rollup.listing import list_all
from include.log_rollup.memory import without_collector
from include.log_rollup.plan import LeftOut, Plan, ShardRef, make_plan, make_shards, select, shard_refs
from include.log_rollup.records import (
    Manifest,
    Measured,
    PackedPart,
    PlanSummary,
    Receipt,
    Records,
    ShardPlan,
)
from include.log_rollup.store import Location, ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Planned:
    """The outcome of planning: the shards to pack, none where the hour is complete and unchanged."""

    plan_id: str
    shards: list[ShardRef]
    unchanged: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """What planning would come to; sizes in bytes.

    :param unchanged: the hour is complete under this very plan, so that nothing would be done
    :param parts_copied: those that S3 would copy, each of one object larger than a part
    :param parts_standing: those that stand already as planned, and would not be packed again
    """

    plan_id: str
    unchanged: bool
    objects: int
    bytes_in: int
    parts: int
    parts_copied: int
    parts_standing: int
    shards: int
    left_out: LeftOut


@without_collector
def plan_hour(
    store: ObjectStore, stream: Stream, hour: datetime, run_id: str, drop_vanished: bool = False
) -> Planned:
    """Plan an hour as it is listed now, and write the plan into the bucket.

    An hour that is complete under the very same plan, with all its parts in place, is left untouched.
    Otherwise the plan is written, then claimed, and then the completion marker is removed: it is gone before
    any part changes. Parts that already stand as planned are noted in the receipts, so that they are left
    alone.

    An hour that was proven is not planned without raw objects that have vanished since, by a lifecycle rule
    perhaps: its parts may be all that is left of them.

    :param run_id: named in the claim, for people who look
    :param drop_vanished: plan it without them all the same, so that the parts lose what they held
    :raises VanishedInputError: if raw objects of an hour that was proven have vanished; nothing is touched
    :raises EmptyHourError: if there is nothing to pack and the stream does not allow that
    :raises RollupError: as the store raises
    """
    paths = stream.at(hour)
    records = Records(store)
    outlook = _look(store, records, stream, paths, drop_vanished)
    plan = outlook.plan
    if outlook.unchanged:
        return _unchanged(store, paths, plan)
    shards = _write_plan(store, records, stream, paths, outlook)
    records.write_claim(paths.claim, plan.plan_id, run_id)
    # Looked at again after the claim: a run that is about to complete the hour looks at the claim again
    # after its marker, so that one of the two sees the other.
    if records.read_marker(paths.marker) is not None:
        # It goes before parts change: one that is there after the look at them is of what was seen.
        if is_proven(store, records, paths, plan.plan_id) and records.is_marked(paths.marker, plan.plan_id):
            return _unchanged(store, paths, plan)
        log.info("the hour was complete as something else: its completion marker is removed")
        store.delete(paths.marker.bucket, [paths.marker.key])
        if records.read_claim(paths.claim) is None:
            # It was the marker of a run that has completed the hour since the look, and has tidied up.
            return plan_hour(store, stream, hour, run_id, drop_vanished)
    clean_up(store, paths, keep=plan.plan_id)
    return Planned(plan.plan_id, shards, False)


def _unchanged(store: ObjectStore, paths: HourPaths, plan: Plan) -> Planned:
    clean_up(store, paths)
    log.info("the hour is complete under this very plan; nothing is to be done")
    return Planned(plan.plan_id, [], True)


@without_collector
def preview_hour(store: ObjectStore, stream: Stream, hour: datetime) -> Preview:
    """What :func:`plan_hour` would do now, without doing it: nothing is written or removed.

    :raises RollupError: as :func:`plan_hour` would
    """
    paths = stream.at(hour)
    records = Records(store)
    outlook = _look(store, records, stream, paths, drop_vanished=False)
    plan = outlook.plan
    known = _known(_receipts(store, records, paths), outlook)
    return Preview(
        plan_id=plan.plan_id,
        unchanged=outlook.unchanged,
        objects=plan.objects,
        bytes_in=plan.bytes_in,
        parts=len(plan.parts),
        parts_copied=sum(part.copied for part in plan.parts),
        parts_standing=sum((part.name, part.fingerprint) in known for part in plan.parts),
        shards=0 if outlook.unchanged else len(make_shards(plan, stream.shard_size, stream.max_shards)),
        left_out=plan.left_out,
    )


@dataclass(frozen=True, slots=True)
class _Outlook:
    """An hour as planning finds it: what it would be packed as, and what there is of it already."""

    plan: Plan
    manifest: Manifest | None
    standing: Mapping[str, ObjectInfo]
    unchanged: bool


def _look(
    store: ObjectStore, records: Records, stream: Stream, paths: HourPaths, drop_vanished: bool
) -> _Outlook:
    listed = list_all(store, paths.raw)
    chosen, left_out = select(listed, paths.raw.key, stream.marker)
    standing = standing_parts(store, paths)
    manifest = _readable_manifest(records, paths)
    marker = records.read_marker(paths.marker)
    if not drop_vanished:
        _check_vanished(paths, manifest, marker, listed, len(chosen), standing)
    if not chosen and not stream.allow_empty:
        raise EmptyHourError(
            f"hour {format_hour(paths.hour)}: nothing to pack under {paths.raw} ({len(listed)} objects listed, "
            f"{left_out.hidden} hidden, {left_out.placeholders} folder placeholders). If that is as it should "
            f"be, set 'allow_empty: true' for the stream {stream.name!r}; otherwise clear the run when the "
            f"objects are there."
        )
    plan = make_plan(chosen, left_out, stream.part_size, stream.ensure_newline, stream.storage_class)
    log.info(
        "plan %s: %d objects, %s -> %d parts (left out: %d hidden, %d placeholders, %d markers)",
        plan.plan_id, plan.objects, format_size(plan.bytes_in), len(plan.parts),
        left_out.hidden, left_out.placeholders, left_out.markers,
    )  # fmt: skip
    unchanged = (
        (marker or {}).get("plan_id") == plan.plan_id
        and manifest is not None
        and is_intact(manifest, plan.plan_id, standing)
    )
    return _Outlook(plan, manifest, standing, unchanged)


def _check_vanished(
    paths: HourPaths,
    manifest: Manifest | None,
    marker: Mapping[str, Any] | None,
    listed: Sequence[ObjectInfo],
    chosen: int,
    standing: Mapping[str, ObjectInfo],
) -> None:
    """Refuse to plan an hour whose parts may hold bytes that no raw object holds any more.

    The manifest tells which objects those are, with or without the marker: a rerun that did not end has
    removed that. Without a manifest only the numbers tell.
    """
    if manifest:
        # Held against all that is listed: an object that the stream's settings hide by now is still there.
        keys = sorted(_keys(manifest) - {item.key for item in listed})
        gone, found = len(keys), f"{len(keys):,} of {manifest.totals.objects:,} raw objects ({named(keys)})"
    elif marker and isinstance(marker.get("objects"), int):
        gone = marker["objects"] - chosen
        found = f"{gone:,} of {marker['objects']:,} raw objects"
    else:
        gone, found = 0 if chosen else len(standing), "all raw objects"
    if gone <= 0:
        return
    hour = format_hour(paths.hour)
    complete = "" if marker is None else ": the hour stays complete"
    conf = f'{{"hour": "{hour}", "drop_vanished": true}}'
    raise VanishedInputError(
        f"hour {hour}: {found} from which the parts under {paths.aggregated} were made are gone from "
        f"{paths.raw}. To plan the hour anew would delete what the parts hold of them, so nothing was changed. "
        f"If they expired, mark the run as success{complete}. If they are to go, trigger the Dag for this hour "
        f"with 'drop_vanished' in the form, or --conf '{conf}'."
    )


def _keys(manifest: Manifest) -> set[str]:
    return {item.key for part in manifest.planned for item in part.objects}


def standing_parts(store: ObjectStore, paths: HourPaths) -> dict[str, ObjectInfo]:
    """The parts that lie in the aggregated hour now, by name."""
    # Names of parts sort after "part-" and before everything that begins with "_".
    pages = store.list_pages(paths.aggregated.child("part-"))
    named = ((paths.part_name_of(item.key), item) for page in pages for item in page.objects)
    return {name: item for name, item in named if name}


def is_intact(manifest: Manifest, plan_id: str, standing: Mapping[str, ObjectInfo]) -> bool:
    """Whether exactly the parts of a manifest stand, as they were when they were proven."""
    return manifest.totals.plan_id == plan_id and {
        part.name: (part.size, part.etag) for part in manifest.packed
    } == {name: (item.size, item.etag) for name, item in standing.items()}


def is_proven(store: ObjectStore, records: Records, paths: HourPaths, plan_id: str) -> bool:
    """Whether the hour's manifest is of this plan, and its parts stand as they were proven."""
    manifest = _readable_manifest(records, paths)
    return manifest is not None and is_intact(manifest, plan_id, standing_parts(store, paths))


def stands(part: PackedPart, standing: Mapping[str, ObjectInfo]) -> bool:
    """Whether a part lies in the bucket as it was written."""
    item = standing.get(part.name)
    return item is not None and (item.size, item.etag) == (part.size, part.etag)


def clean_up(store: ObjectStore, paths: HourPaths, keep: str | None = None) -> None:
    """Remove what was needed only to build the hour.

    :param keep: the plan that is still being built, with its claim
    """
    kept = () if keep is None else (paths.work.child(f"{keep}/").key, paths.claim.key)
    gone = [item.key for item in list_all(store, paths.work) if not item.key.startswith(kept)]
    store.delete(paths.work.bucket, gone)


def _readable_manifest(records: Records, paths: HourPaths) -> Manifest | None:
    try:
        return records.read_manifest(paths.manifest)
    except ProofError as error:
        log.warning("%s; the hour is planned without it", error)
        return None


def _write_plan(
    store: ObjectStore,
    records: Records,
    stream: Stream,
    paths: HourPaths,
    outlook: _Outlook,
) -> list[ShardRef]:
    plan = outlook.plan
    shards = make_shards(plan, stream.shard_size, stream.max_shards)
    hour = format_hour(paths.hour)
    refs = shard_refs(stream.name, hour, plan.plan_id, shards)
    before = _receipts(store, records, paths)
    known = _known(before, outlook)
    measured = {receipt.shard: receipt.measured for receipt in before if receipt.plan_id == plan.plan_id}
    left_alone = 0
    for ref, parts in zip(refs, shards, strict=True):
        names = ((part.name, part.fingerprint) for part in parts)
        seeds = tuple(known[name] for name in names if name in known)
        left_alone += len(seeds)
        records.write_shard(
            paths.shard(plan.plan_id, ref.shard),
            ShardPlan(plan.plan_id, ref.shard, tuple(parts)),
            paths.raw.key,
        )
        target = paths.receipt(plan.plan_id, ref.shard)
        if seeds:
            kept = measured.get(ref.shard, Measured())
            records.write_receipt(target, Receipt(plan.plan_id, ref.shard, seeds, kept))
        else:
            store.delete(target.bucket, [target.key])
    if left_alone:
        log.info("%d of %d parts stand already as planned", left_alone, len(plan.parts))
    records.write_plan(
        paths.plan(plan.plan_id),
        PlanSummary(
            plan.plan_id,
            stream.name,
            hour,
            len(plan.parts),
            plan.objects,
            plan.bytes_in,
            plan.left_out,
            tuple(refs),
        ),
    )
    return refs


def _receipts(store: ObjectStore, records: Records, paths: HourPaths) -> list[Receipt]:
    found = []
    for item in list_all(store, paths.work):
        if "/receipt-" in item.key:
            receipt = records.read_receipt(Location(paths.work.bucket, item.key))
            if receipt:
                found.append(receipt)
    return found


def _known(receipts: Iterable[Receipt], outlook: _Outlook) -> dict[tuple[str, str], PackedPart]:
    """The parts that stand as they were written, by name and fingerprint."""
    return {
        (part.name, part.fingerprint): part
        for part in _packed_before(receipts, outlook.manifest)
        if stands(part, outlook.standing)
    }


def _packed_before(receipts: Iterable[Receipt], manifest: Manifest | None) -> Iterable[PackedPart]:
    """What earlier runs wrote; the manifest last, because its parts are proven."""
    for receipt in receipts:
        yield from receipt.parts
    if manifest:
        yield from manifest.packed
