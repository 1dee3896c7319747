"""The step plan_hour: from the raw listing to a plan in the bucket."""

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from include.log_rollup import limits
from include.log_rollup.errors import (
    EmptyHourError,
    TransientError,
    UnreadableRecordError,
    VanishedInputError,
)
from include.log_rollup.hour.changes import named
from include.log_rollup.hour.layout import HourPaths, format_hour, has_tag, part_index, planned_name
from include.log_rollup.hour.parts import is_as_written, is_intact
from include.log_rollup.hour.plan import (
    PLAN_FORMAT,
    LeftOut,
    Plan,
    ShardRef,
    content_id_of,
    make_plan,
    make_shards,
    new_plan_id,
    select,
    shard_refs,
)
from include.log_rollup.hour.raw_digest import digest_raw
from include.log_rollup.hour.records import (
    Claim,
    ManifestReader,
    Measured,
    PlanSummary,
    ShardPlan,
    packed_row_json,
)
from include.log_rollup.hour.state import HourState, Inventory
from include.log_rollup.memory import without_collector
from include.log_rollup.storage.listing import list_all, list_by_token
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
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
    :param parts_standing: those that are there already as planned, and would not be packed again
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
    any part changes. Parts that are there already as planned are noted in the receipts, so that they are left
    alone.

    An hour is not planned without raw objects that have vanished while parts of it hold them, by a lifecycle rule
    perhaps: the parts may be all that is left of them.

    :param run_id: named in the claim, for people who look
    :param drop_vanished: plan it without them all the same, so that the parts lose what they held
    :raises VanishedInputError: if raw objects that a part holds have vanished; nothing is touched
    :raises UnreadableRecordError: if there are parts, and no record that can be read says what they hold
    :raises EmptyHourError: if there is nothing to pack and the stream does not allow that
    :raises TransientError: if other runs of the hour keep changing it
    :raises RollupError: as the store raises
    """
    state = HourState(store, stream, hour)
    for _ in range(limits.PLAN_TRIES):
        try:
            outlook = _look(store, stream, state, drop_vanished)
        except _ChangedError:
            log.info("another run has changed the hour meanwhile; it is planned again")
            continue
        plan = outlook.plan
        if outlook.unchanged:
            state.clean_up(outlook.complete_as)
            log.info("the hour is complete under this very plan; nothing is to be done")
            return Planned(outlook.complete_as, [], True)
        plan_id = new_plan_id(plan.content_id)
        refs, files = _write_plan(stream, state, outlook, plan_id)
        names = [part.name for part in plan.parts]
        if state.begin(plan_id, run_id, names, files, outlook.marker_etag, outlook.manifest_etag):
            return Planned(plan_id, refs, False)
        log.info("another run has changed the hour meanwhile; it is planned again")
    raise TransientError(
        f"hour {format_hour(hour)}: other runs of this hour changed {state.paths.aggregated} during each of "
        f"{limits.PLAN_TRIES} tries to plan it"
    )


@without_collector
def preview_hour(store: ObjectStore, stream: Stream, hour: datetime) -> Preview:
    """What :func:`plan_hour` would do now, without doing it: nothing is written or removed.

    :raises RollupError: as :func:`plan_hour` would
    """
    state = HourState(store, stream, hour)
    try:
        outlook = _look(store, stream, state, drop_vanished=False)
    except _ChangedError:
        raise TransientError(
            f"hour {format_hour(hour)}: another run of this hour is changing {state.paths.aggregated} just now"
        ) from None
    plan = outlook.plan
    return Preview(
        plan_id=outlook.complete_as or plan.content_id,
        unchanged=outlook.unchanged,
        objects=plan.objects,
        bytes_in=plan.bytes_in,
        parts=len(plan.parts),
        parts_copied=sum(part.copied for part in plan.parts),
        parts_standing=len(plan.parts) if outlook.unchanged else len(outlook.packed),
        shards=0 if outlook.unchanged else len(make_shards(plan, stream.shard_size, stream.max_shards)),
        left_out=plan.left_out,
    )


class _ChangedError(Exception):
    """Another run has changed the hour while it was read."""


@dataclass(frozen=True, slots=True)
class _Outlook:
    """An hour as planning finds it: what it would be packed as, and what there is of it already.

    :param packed: rows of receipts of those of its parts that are there already as planned, by name
    :param replaces: names of parts that are there and belong to other plans of this hour
    :param measured: what earlier tries of this plan have measured, by shard
    :param marker_etag: None if there is no completion marker
    :param manifest_etag: None if there is no manifest
    :param complete_as: the plan under which the hour is complete already; empty if something is to be done
    """

    plan: Plan
    packed: Mapping[str, str]
    replaces: Sequence[str]
    measured: Mapping[int, Measured]
    marker_etag: str | None
    manifest_etag: str | None
    complete_as: str = ""

    @property
    def unchanged(self) -> bool:
        """Whether nothing is to be done."""
        return bool(self.complete_as)


def _look(store: ObjectStore, stream: Stream, state: HourState, drop_vanished: bool) -> _Outlook:
    listed = list_all(store, state.paths.raw)
    claim = state.claim()
    outlook = _assess(stream, state, listed, claim, drop_vanished)
    if outlook.unchanged or claim is None or content_id_of(claim.plan_id) != outlook.plan.content_id:
        return outlook
    # Planned before, and not completed: perhaps because validation lists the hour in another way and finds
    # something else. That way is right on more servers.
    seen = digest_raw(store, state.paths, stream.ready_object, len(listed))
    if seen.digests == outlook.plan.digests:
        return outlook
    log.warning("%s is listed differently page by page; that listing is planned", state.paths.raw)
    return _assess(stream, state, list_by_token(store, state.paths.raw), claim, drop_vanished)


def _assess(
    stream: Stream, state: HourState, listed: Sequence[ObjectInfo], claim: Claim | None, drop_vanished: bool
) -> _Outlook:
    paths, records = state.paths, state.records
    chosen, left_out = select(listed, paths.raw.key, stream.ready_object)
    found = state.inventory()
    manifest = records.open_manifest(paths.manifest) if found.manifest_etag is not None else None
    marker, marker_etag = records.read_marker_with_etag(paths.marker)
    recorded = state.recorded_parts(found.work, manifest, found.parts) if found.parts else {}
    if manifest is None:
        _refuse_unrecorded(state, found, marker, recorded)
    if not chosen and not stream.allow_empty:
        _check_vanished(state, found, manifest, listed, recorded, marker is not None, drop_vanished)
        raise EmptyHourError(
            f"hour {format_hour(paths.hour)}: nothing to pack under {paths.raw} ({len(listed)} objects listed, "
            f"{left_out.hidden} hidden, {left_out.placeholders} folder placeholders). If that is as it should "
            f"be, set 'allow_empty: true' for the stream {stream.name!r}; otherwise clear the run when the "
            f"objects are there."
        )
    foreign = found.parts.keys() - recorded.keys()
    plan = make_plan(
        chosen,
        left_out,
        stream.part_size,
        stream.write_options,
        kept_names=_kept_names(manifest, found),
        taken=foreign | state.names_under_removal(found.work),
    )
    log.info(
        "plan %s: %d objects, %s -> %d parts (left out: %d hidden, %d placeholders, %d markers)",
        plan.content_id, plan.objects, format_size(plan.bytes_in), len(plan.parts),
        left_out.hidden, left_out.placeholders, left_out.markers,
    )  # fmt: skip
    _log_foreign(paths, found, foreign)
    etag = None if marker is None else marker_etag
    if manifest is not None and _is_unchanged(plan, manifest, marker or {}, found, recorded):
        complete_as = manifest.totals.plan_id
        if claim is None or claim.plan_id == complete_as:
            return _Outlook(plan, {}, (), {}, etag, found.manifest_etag, complete_as)
        # Validation would go by the claim, whose run may have died: it is taken over.
        log.info("the hour is complete under this very plan, but it was claimed for another one since")
    complete = marker is not None
    packed, unclear = _check_vanished(state, found, manifest, listed, recorded, complete, drop_vanished, plan)
    measured = _read_receipts(state, found, plan, packed)
    names = {part.name for part in plan.parts}
    ours = found.parts.keys() & recorded.keys()
    replaces = sorted(name for name in ours if recorded[name] not in names and name not in unclear)
    return _Outlook(plan, packed, replaces, measured, etag, found.manifest_etag)


def _is_unchanged(
    plan: Plan,
    manifest: ManifestReader,
    marker: Mapping[str, Any],
    found: Inventory,
    recorded: Mapping[str, str],
) -> bool:
    """Whether the hour is complete as it would be planned, with nothing else of ours beside its parts."""
    same = plan.content_id == content_id_of(manifest.totals.plan_id) or (
        [part.fingerprint for part in plan.parts] == [entry["fingerprint"] for entry in manifest.table]
    )
    ours = {name for name in found.parts if name in recorded}
    return (
        same
        and marker.get("plan_id") == manifest.totals.plan_id
        and is_intact(manifest.table, found.parts)
        and ours == {entry["name"] for entry in manifest.table}
    )


def _refuse(state: HourState, found: Inventory, message: str) -> NoReturn:
    """Refuse to plan because of what the records say.

    :param found: what the records were held against
    :raises UnreadableRecordError: with this message
    :raises _ChangedError: if the hour has changed since it was listed: another run may have completed it and
        removed the records of its plan
    """
    if state.inventory() != found:
        raise _ChangedError
    raise UnreadableRecordError(message)


def _refuse_unrecorded(
    state: HourState, found: Inventory, marker: Mapping[str, Any] | None, recorded: Mapping[str, str]
) -> None:
    """Without a manifest, refuse to plan beside parts of ours that no record describes.

    What is named like a part of format 1 may be somebody else's; with a completion marker beside it, it is not.
    """
    paths = state.paths
    hour = format_hour(paths.hour)
    unknown = sorted(found.parts.keys() - recorded.keys())
    ours = unknown if marker is not None else [name for name in unknown if has_tag(name)]
    if ours:
        beside = "" if marker is None else f" beside {paths.marker}"
        _refuse(
            state,
            found,
            f"hour {hour}: there are {len(ours):,} parts under {paths.aggregated}{beside} ({named(ours)}), but "
            f"there is no {paths.manifest}, which says what they hold. Nothing was changed, since they may hold "
            f"bytes that no raw object holds any more. Restore the manifest from a backup or from an older "
            f"version of the object; or, if all raw objects still exist or another program wrote these parts, "
            f"move them and _SUCCESS away. Then clear the run from plan_hour on.",
        )
    if marker == {}:
        _refuse(
            state,
            found,
            f"hour {hour}: {paths.marker} is there, but this version of Log Rollup did not write it, and there is "
            f"no {paths.manifest}. Nothing was changed. If another program completed this hour, keep it so and "
            f"mark the run as success; otherwise move _SUCCESS away and clear the run from plan_hour on.",
        )


def _kept_names(manifest: ManifestReader | None, found: Inventory) -> dict[tuple[int, str], str]:
    """The names under which parts of the manifest are there, by index and fingerprint."""
    kept: dict[tuple[int, str], str] = {}
    for entry in manifest.table if manifest else ():
        name = str(entry["name"])
        index = part_index(name)
        if index is not None and name in found.parts and not entry.get("split_of"):
            kept[index, entry["fingerprint"]] = name
    return kept


def _log_foreign(paths: HourPaths, found: Inventory, foreign: Iterable[str]) -> None:
    keys = sorted([*foreign, *(item.key.removeprefix(paths.aggregated.key) for item in found.foreign)])
    if keys:
        log.warning(
            "%d objects under %s are not of this project, and are left alone: %s",
            len(keys), paths.aggregated, named(keys),
        )  # fmt: skip


def _check_vanished(
    state: HourState,
    found: Inventory,
    manifest: ManifestReader | None,
    listed: Sequence[ObjectInfo],
    recorded: Mapping[str, str],
    complete: bool,
    drop_vanished: bool,
    plan: Plan | None = None,
) -> tuple[dict[str, str], set[str]]:
    """Refuse to plan an hour whose parts may hold bytes that no raw object holds any more.

    The manifest tells what they hold, with or without the marker: a rerun that did not end has removed that. Of a
    plan that was never completed, its own files tell.

    :param recorded: names of the parts that are ours, each with the planned part it was made for
    :returns: what the manifest says of parts that are there as the plan wants them: rows of receipts, by name; and
        the names of parts of which no record says what they hold, which stay where they are
    """
    # Compared with all that is listed: an object that the stream's settings hide by now is still there.
    keys = [row.key for row in listed]
    gone: list[str] = []
    objects = 0
    packed: dict[str, str] = {}
    wanted = {} if plan is None else {part.name: part.fingerprint for part in plan.parts}
    # Under a name of format 1 something else may be there than the manifest says, from a later rerun.
    known: set[str] = set()
    for planned, done in manifest.parts() if manifest else ():
        objects += len(planned.objects)
        gone += _missing(planned.objects, keys)
        if is_as_written(done, found.parts):
            known.add(done.name)
            if wanted.get(done.name) == done.fingerprint:
                packed[done.name] = packed_row_json(done)
    # A planned part is there under its own name, or split into parts that hold its objects between them.
    there = {planned_name(name) for name in found.parts.keys() - known} | (found.parts.keys() - known)
    described: set[str] = set()
    damaged = False
    for name in sorted(found.work):
        if "/shard-" not in name:
            continue
        shard = state.records.read_shard(
            state.paths.work.child(name), state.paths.raw.key, formats=(1, PLAN_FORMAT)
        )
        damaged = damaged or shard is None
        for planned in shard.parts if shard else ():
            described.add(planned.name)
            if planned.name in there:
                objects += len(planned.objects)
                gone += _missing(planned.objects, keys)
    ours = (name for name in found.parts if name in recorded and name not in known and name not in wanted)
    unclear = {name for name in ours if recorded[name] not in described}
    if unclear and manifest is not None:
        # What the proven plan was to replace, it holds.
        proven = state.records.read_plan(state.paths.plan(manifest.totals.plan_id))
        unclear.difference_update(proven.replaces if proven else ())
    # Beside a manifest, the plans of runs that were overtaken have been removed when the hour was complete.
    if unclear and (manifest is None or damaged):
        _refuse(
            state,
            found,
            f"hour {format_hour(state.paths.hour)}: the plan that says what {len(unclear):,} parts under "
            f"{state.paths.aggregated} hold ({named(sorted(unclear))}) is damaged or gone. Nothing was changed, "
            f"since they may hold bytes that no raw object holds any more. If all raw objects still exist, move "
            f"these parts away, then clear the run from plan_hour on.",
        )
    if gone and not drop_vanished:
        _raise_vanished(state.paths, sorted(set(gone)), objects, complete)
    return packed, unclear


def _missing(objects: Iterable[ObjectInfo], keys: Sequence[str]) -> Iterator[str]:
    for item in objects:
        place = bisect_left(keys, item.key)
        if place == len(keys) or keys[place] != item.key:
            yield item.key


def _raise_vanished(paths: HourPaths, gone: Sequence[str], objects: int, complete: bool) -> None:
    hour = format_hour(paths.hour)
    stays = ": the hour stays complete" if complete else ""
    conf = f'{{"hour": "{hour}", "drop_vanished": true}}'
    raise VanishedInputError(
        f"hour {hour}: {len(gone):,} of {objects:,} raw objects ({named(gone)}) from which the parts under "
        f"{paths.aggregated} were made are gone from {paths.raw}. To plan the hour again would delete what the "
        f"parts hold of them, so nothing was changed. If they expired, mark the run as success{stays}. If they "
        f"are to go, trigger the Dag for this hour with 'drop_vanished' in the form, or --conf '{conf}'."
    )


def _read_receipts(
    state: HourState, found: Inventory, plan: Plan, packed: dict[str, str]
) -> dict[int, Measured]:
    """Add rows of receipts for parts that are there as the plan wants them; what this plan's tries measured."""
    wanted = {part.name: part.fingerprint for part in plan.parts}
    measured: dict[int, Measured] = {}
    for name in sorted(found.work):
        receipt = state.records.read_receipt(state.paths.work.child(name)) if "/receipt-" in name else None
        if receipt is None:
            continue
        if content_id_of(receipt.plan_id) == plan.content_id:
            # Each try goes on from what the tries before it measured.
            before = measured.get(receipt.shard, Measured())
            measured[receipt.shard] = max(before, receipt.measured, key=lambda tried: tried.seconds)
        for part in receipt.parts:
            if wanted.get(part.name) == part.fingerprint and is_as_written(part, found.parts):
                # What the manifest says is proven, so that comes first.
                packed.setdefault(part.name, packed_row_json(part))
    return measured


def _write_plan(
    stream: Stream, state: HourState, outlook: _Outlook, plan_id: str
) -> tuple[list[ShardRef], set[str]]:
    """Write a plan's files; references to its shards, and the names of the files below ``_rollup/``."""
    plan, paths, records = outlook.plan, state.paths, state.records
    shards = make_shards(plan, stream.shard_size, stream.max_shards)
    hour = format_hour(paths.hour)
    refs = shard_refs(stream.name, hour, plan_id, shards)
    left_alone = 0
    files: list[Location] = []
    for ref, parts in zip(refs, shards, strict=True):
        shard = paths.shard(plan_id, ref.shard)
        records.write_shard(shard, ShardPlan(plan_id, ref.shard, tuple(parts)), paths.raw.key)
        files.append(shard)
        rows = [outlook.packed[part.name] for part in parts if part.name in outlook.packed]
        left_alone += len(rows)
        if rows:
            receipt = paths.receipt(plan_id, ref.shard)
            kept = outlook.measured.get(ref.shard, Measured())
            records.write_receipt_rows(receipt, plan_id, ref.shard, rows, kept)
    if left_alone:
        log.info("%d of %d parts are there already as planned", left_alone, len(plan.parts))
    summary = PlanSummary(
        plan_id,
        stream.name,
        hour,
        len(plan.parts),
        plan.objects,
        plan.bytes_in,
        plan.left_out,
        tuple(refs),
        plan.digests,
        tuple(outlook.replaces),
    )
    records.write_plan(paths.plan(plan_id), summary)
    files.append(paths.plan(plan_id))
    names = (paths.work_name_of(file.key) for file in files)
    return refs, {name for name in names if name}
