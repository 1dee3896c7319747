"""The step plan_hour: makes a plan from the raw listing and writes it into the bucket."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from include.log_rollup import limits
from include.log_rollup.errors import EmptyHourError, TransientError
from include.log_rollup.hour.group_summary import GroupChanges, largest_groups
from include.log_rollup.hour.layout import folder_of, format_hour
from include.log_rollup.hour.plan import (
    Plan,
    PlannedPart,
    ShardRef,
    content_id_of,
    make_plan,
    make_shards,
    new_plan_id,
    shard_refs,
)
from include.log_rollup.hour.prover import require_stored_crc
from include.log_rollup.hour.raw_digest import digest_raw
from include.log_rollup.hour.records import Claim, Measured, PlanSummary, ShardPlan
from include.log_rollup.hour.selection import LeftOut, select
from include.log_rollup.hour.state import HourState
from include.log_rollup.hour.survey import (
    HourChangedError,
    Survey,
    add_receipts,
    read_holdings,
    refuse_vanished,
    survey_hour,
)
from include.log_rollup.memory import without_collector
from include.log_rollup.storage.protocol import ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)

# Number of groups that a preview describes.
PREVIEWED_GROUPS = 5


@dataclass(frozen=True, slots=True)
class Planned:
    """The result of planning.

    :param shards: to pack; empty if ``unchanged``
    :param unchanged: whether the hour is complete and would be planned the same way again
    :param group_changes: how the groups differ from those of the hour's manifest; None without one
    """

    plan_id: str
    shards: list[ShardRef]
    unchanged: bool
    group_changes: GroupChanges | None = None


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """A group of a plan; sizes in bytes.

    :param folder: of its parts
    :param captures: values of the captures of the template ``aggregated``, by name
    """

    folder: str
    captures: Mapping[str, str]
    objects: int
    bytes_in: int
    parts: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What planning would do now; sizes in bytes.

    :param unchanged: whether the hour is complete under this plan, so that nothing would be done
    :param parts_copied: number of parts that S3 would copy, each of one object larger than a part
    :param parts_standing: number of parts that exist already as planned, and would not be packed again
    :param groups: number of groups; None if the stream has none
    :param largest_groups: the largest ones
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
    groups: int | None = None
    largest_groups: Sequence[PlannedGroup] = ()


@without_collector
def plan_hour(
    store: ObjectStore, stream: Stream, hour: datetime, run_id: str, drop_vanished: bool = False
) -> Planned:
    """Plan an hour as it is listed now, and write the plan into the bucket.

    An hour that is complete and would be planned the same way is left untouched. Otherwise the plan is written,
    then claimed, then the completion marker is removed, all before any part changes. Parts that exist already as
    planned are named in the receipts, so that they are not packed again.

    An hour is not planned if raw objects have vanished that its parts hold, because the parts may be the last
    copy.

    :param run_id: written into the claim, for people who read it
    :param drop_vanished: plan the hour without vanished raw objects, so that their bytes are lost
    :raises VanishedInputError: if raw objects that a part holds have vanished; nothing is changed
    :raises UnreadableRecordError: if parts exist and no readable record says what they hold
    :raises EmptyHourError: if there is nothing to pack and the stream does not allow that
    :raises UnsupportedOperationError: if the parts go into an archive class, where this store could not prove them
    :raises TransientError: if other runs of the hour keep changing it
    :raises RollupError: as the store raises
    """
    planner = _Planner(store, stream, hour, drop_vanished)
    for _ in range(limits.PLAN_TRIES):
        planned = planner.try_to_plan(run_id)
        if planned is not None:
            return planned
        log.info("another run has changed the hour meanwhile; planning it again")
    raise TransientError(
        f"hour {format_hour(hour)}: other runs of this hour changed {stream.at(hour).aggregated} during each of "
        f"{limits.PLAN_TRIES} tries to plan it"
    )


@without_collector
def preview_hour(store: ObjectStore, stream: Stream, hour: datetime) -> Preview:
    """What :func:`plan_hour` would do now. Writes and removes nothing.

    :raises RollupError: as :func:`plan_hour` would
    """
    try:
        return _Planner(store, stream, hour, drop_vanished=False).preview()
    except HourChangedError:
        raise TransientError(
            f"hour {format_hour(hour)}: another run of this hour is changing {stream.at(hour).aggregated} just now"
        ) from None


@dataclass(frozen=True, slots=True)
class _Assessment:
    """The plan of an hour, and what exists of it already.

    :param packed: rows of receipts of the parts that exist already as planned, by name
    :param replaces: names of existing parts that belong to other plans of this hour
    :param measured: what earlier tries of this plan have measured, by shard
    :param marker_etag: None if there is no completion marker
    :param manifest_etag: None if there is no manifest
    :param complete_as: id of the plan under which the hour is complete and unchanged; otherwise empty
    :param changed_groups: folders of the groups in which parts are written or removed
    :param group_changes: which groups the manifest lacks, and which the plan lacks; None without a manifest
    """

    plan: Plan
    packed: Mapping[str, str]
    replaces: Sequence[str]
    measured: Mapping[int, Measured]
    marker_etag: str | None
    manifest_etag: str | None
    complete_as: str = ""
    changed_groups: frozenset[str] = frozenset()
    group_changes: GroupChanges | None = None


class _Planner:
    """Plans one hour.

    :param drop_vanished: plan without raw objects that have vanished
    """

    def __init__(self, store: ObjectStore, stream: Stream, hour: datetime, drop_vanished: bool) -> None:
        self._store = store
        self._stream = stream
        self._hour = hour
        self._drop_vanished = drop_vanished

    @cached_property
    def _state(self) -> HourState:
        return HourState(self._store, self._stream, self._hour)

    def try_to_plan(self, run_id: str) -> Planned | None:
        """Plan the hour and claim it; None if another run has changed it meanwhile."""
        try:
            assessment = self._assess()
        except HourChangedError:
            return None
        changes = assessment.group_changes
        if changes:
            log.info("groups, compared with the manifest: %s", changes)
        if assessment.complete_as:
            self._state.clean_up(assessment.complete_as)
            log.info("the hour is complete under this very plan; nothing to do")
            return Planned(assessment.complete_as, [], True)
        options = self._stream.write_options
        if options.is_archived:
            require_stored_crc(
                self._store, self._state.paths.work.child("crc-probe"), f"{options.storage_class}"
            )
        plan_id = new_plan_id(assessment.plan.content_id)
        refs, files = self._write_plan(assessment, plan_id)
        claim = self._state.begin(
            plan_id,
            run_id,
            [part.name for part in assessment.plan.parts],
            files,
            assessment.marker_etag,
            assessment.manifest_etag,
            assessment.changed_groups,
        )
        return Planned(plan_id, refs, False, changes) if claim else None

    def preview(self) -> Preview:
        """See :func:`preview_hour`.

        :raises HourChangedError: if another run changes the hour meanwhile
        """
        assessment = self._assess()
        plan, unchanged = assessment.plan, bool(assessment.complete_as)
        groups = self._groups(plan)
        return Preview(
            plan_id=assessment.complete_as or plan.content_id,
            unchanged=unchanged,
            objects=plan.objects,
            bytes_in=plan.bytes_in,
            parts=len(plan.parts),
            parts_copied=sum(part.copied for part in plan.parts),
            parts_standing=len(plan.parts) if unchanged else len(assessment.packed),
            shards=0 if unchanged else len(self._shards(plan)),
            left_out=plan.left_out,
            groups=len(groups) if self._state.paths.has_groups else None,
            largest_groups=largest_groups(groups, PREVIEWED_GROUPS),
        )

    def _groups(self, plan: Plan) -> list[PlannedGroup]:
        """The groups of a plan; none if the stream has none."""
        paths = self._state.paths
        if not paths.has_groups:
            return []
        parts: dict[str, list[PlannedPart]] = {}
        for part in plan.parts:
            parts.setdefault(folder_of(part.name), []).append(part)
        return [
            PlannedGroup(
                folder,
                paths.captures_of(folder),
                sum(len(part.objects) for part in own),
                sum(part.size for part in own),
                len(own),
            )
            for folder, own in parts.items()
        ]

    def _assess(self) -> _Assessment:
        """List the raw hour, plan it, and compare the plan with the aggregated hour."""
        listed = self._state.paths.raw_and_unmatched.list_all(self._store)
        claim = self._state.claim()
        assessment = self._assess_listing(listed, claim)
        was_planned = claim is not None and content_id_of(claim.plan_id) == assessment.plan.content_id
        if assessment.complete_as or not was_planned:
            return assessment
        # The same plan was not completed before. Maybe validation lists the hour differently, page by page; more
        # servers are right that way.
        digest = digest_raw(self._store, self._state.paths, self._stream.input_rules, len(listed))
        if digest.digests == assessment.plan.digests:
            return assessment
        raw = self._state.paths.raw_and_unmatched
        log.warning("%s is listed differently page by page; that listing is planned", raw)
        return self._assess_listing(raw.list_by_token(self._store), claim)

    def _assess_listing(self, listed: Sequence[ObjectInfo], claim: Claim | None) -> _Assessment:
        name_of = self._state.paths.name_of
        chosen, left_out = select(listed, name_of, self._stream.input_rules)
        if left_out.unmatched:
            log.warning(
                "%d objects belong to no hour, because their folder has another day than their name, like %s",
                left_out.unmatched, next(item.key for item in listed if name_of(item.key) == item.key),
            )  # fmt: skip
        survey = survey_hour(self._state)
        why_empty = self._state.paths.raw_template.why_empty(self._hour)
        if why_empty:
            log.info("%s", why_empty)
        elif not chosen and not self._stream.allow_empty:
            self._refuse_empty(survey, listed, left_out)
        plan = self._make_plan(survey, chosen, left_out)
        survey.log_foreign()
        marker_etag = survey.marker.etag if survey.marker else None
        complete_as = survey.complete_plan(plan)
        if complete_as and (claim is None or claim.plan_id == complete_as):
            return _Assessment(plan, {}, (), {}, marker_etag, survey.found.manifest_etag, complete_as)
        if complete_as:
            # Validation would prove the claimed plan, whose run may have died: plan and claim the hour again.
            log.info("the hour is complete under this very plan, but it was claimed for another one since")
        holdings = read_holdings(survey, listed, plan)
        if not self._drop_vanished:
            refuse_vanished(self._state.paths, holdings, survey.marker is not None)
        measured = add_receipts(holdings, survey, plan.content_id)
        replaces = sorted(
            name
            for name in survey.found.parts.keys() & survey.recorded.keys()
            if survey.recorded[name] not in holdings.wanted and name not in holdings.unclear
        )
        return _Assessment(
            plan,
            holdings.packed,
            replaces,
            measured,
            marker_etag,
            survey.found.manifest_etag,
            changed_groups=survey.changed_groups(plan, holdings.proven),
            group_changes=survey.group_changes(plan),
        )

    def _refuse_empty(self, survey: Survey, listed: Sequence[ObjectInfo], left_out: LeftOut) -> None:
        """Refuse an hour without input; if parts hold raw objects that have vanished, that error comes first.

        :raises EmptyHourError: otherwise
        """
        holdings = read_holdings(survey, listed, None)
        if not self._drop_vanished:
            refuse_vanished(self._state.paths, holdings, survey.marker is not None)
        paths = self._state.paths
        raise EmptyHourError(
            f"hour {format_hour(paths.hour)}: nothing to pack under {paths.raw} ({len(listed)} objects listed; "
            f"left out: {left_out}). If that is as it should be, set 'allow_empty: true' for the stream "
            f"{self._stream.name!r}; otherwise clear the run when the objects are there."
        )

    def _make_plan(self, survey: Survey, chosen: Sequence[ObjectInfo], left_out: LeftOut) -> Plan:
        plan = make_plan(
            chosen,
            left_out,
            self._stream.part_size,
            self._stream.write_options,
            unjoinable=self._stream.unjoinable,
            folder_of_key=self._state.paths.folder_of_key if self._state.paths.has_groups else None,
            kept_names=survey.kept_names(),
            taken=survey.names_not_to_use(),
        )
        log.info(
            "plan %s: %d objects, %s -> %d parts (left out: %s)",
            plan.content_id, plan.objects, format_size(plan.bytes_in), len(plan.parts), left_out,
        )  # fmt: skip
        return plan

    def _shards(self, plan: Plan) -> list[Sequence[PlannedPart]]:
        return make_shards(plan, self._stream.shard_size, self._stream.max_shards)

    def _write_plan(self, assessment: _Assessment, plan_id: str) -> tuple[list[ShardRef], set[str]]:
        """Write a plan's files.

        :returns: references to its shards, and the names below ``_rollup/`` of the files that it needs
        """
        plan, paths, records = assessment.plan, self._state.paths, self._state.records
        shards = self._shards(plan)
        hour = format_hour(paths.hour)
        refs = shard_refs(self._stream.name, hour, plan_id, shards)
        targets = [paths.shard(plan_id, ref.shard) for ref in refs]
        for ref, parts, target in zip(refs, shards, targets, strict=True):
            records.write_shard(target, ShardPlan(plan_id, ref.shard, tuple(parts)), paths.key_base)
            rows = [assessment.packed[part.name] for part in parts if part.name in assessment.packed]
            if rows:
                receipt = paths.receipt(plan_id, ref.shard)
                measured = assessment.measured.get(ref.shard, Measured())
                records.write_receipt_rows(receipt, plan_id, ref.shard, rows, measured)
        if assessment.packed:
            log.info("%d of %d parts exist already as planned", len(assessment.packed), len(plan.parts))
        summary = PlanSummary(
            plan_id,
            self._stream.name,
            hour,
            len(plan.parts),
            plan.objects,
            plan.bytes_in,
            plan.left_out,
            tuple(refs),
            plan.digests,
            tuple(assessment.replaces),
        )
        records.write_plan(paths.plan(plan_id), summary)
        targets.append(paths.plan(plan_id))
        return refs, {target.key.removeprefix(paths.work.key) for target in targets}
