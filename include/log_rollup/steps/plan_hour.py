"""The step plan_hour: makes a plan from the raw listing and writes it into the bucket."""

import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from include.log_rollup import limits
from include.log_rollup.backoff import seconds_until_next_try
from include.log_rollup.errors import EmptyHourError, TransientError
from include.log_rollup.hour.group_summary import GroupChanges, largest_groups
from include.log_rollup.hour.kept_parts import KeepRules, ProvenParts, read_proven_parts
from include.log_rollup.hour.layout import folder_of, format_hour
from include.log_rollup.hour.manifest import ManifestReader
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
from include.log_rollup.hour.raw_digest import digest_raw, is_as_completed
from include.log_rollup.hour.reader import HourChangedError, LateListingError
from include.log_rollup.hour.records import Claim, Measured, PackedPart, PlanSummary, ShardPlan
from include.log_rollup.hour.selection import LeftOut, select
from include.log_rollup.hour.state import HourState
from include.log_rollup.hour.stored_proof import stored_problem
from include.log_rollup.hour.survey import (
    Survey,
    add_receipts,
    read_holdings,
    refuse_damaged,
    refuse_misplaced,
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
    store: ObjectStore,
    stream: Stream,
    hour: datetime,
    run_id: str,
    drop_vanished: bool = False,
    repack: bool = False,
) -> Planned:
    """Plan an hour as it is listed now, and write the plan into the bucket.

    An hour that is complete and unchanged is left untouched. Otherwise the plan is written, then claimed, then the
    completion marker is removed, all before any part changes.

    If the hour has a manifest, the plan keeps every part whose raw objects are all unchanged or have expired; see
    :func:`include.log_rollup.hour.kept_parts.read_proven_parts`. These parts, and others that exist already as
    planned, are named in the receipts, so that they are not packed again.

    An hour is not planned if raw objects have vanished that its parts hold, because the parts may be the last
    copy.

    :param run_id: written into the claim, for people who read it
    :param drop_vanished: plan the hour without vanished raw objects, so that their bytes are lost
    :param repack: pack the whole hour again with the stream's present settings, except parts with expired raw
        objects
    :raises VanishedInputError: if raw objects that a part holds have vanished; nothing is changed
    :raises UnreadableRecordError: if parts exist and no readable record says what they hold
    :raises ConfigurationError: if parts hold raw objects that the stream's templates don't find in this hour, or
        were planned with another template ``aggregated``
    :raises EmptyHourError: if there is nothing to pack and the stream does not allow that
    :raises UnsupportedOperationError: if the parts go into an archive class, where this store could not prove them
    :raises TransientError: if other runs of the hour keep changing it
    :raises RollupError: as the store raises
    """
    planner = _Planner(store, stream, hour, drop_vanished, repack)
    paths, is_late = stream.at(hour), False
    for tried in range(limits.PLAN_TRIES):
        if tried:
            log.info("another run has changed the hour meanwhile; planning it again")
            time.sleep(seconds_until_next_try(limits.PLAN_FIRST_WAIT_SECONDS, tried))
        try:
            planned = planner.try_to_plan(run_id)
        except HourChangedError as error:
            planned, is_late = None, isinstance(error, LateListingError)
        if planned is not None:
            return planned
    if is_late:
        raise TransientError(
            f"hour {format_hour(hour)}: listings of {paths.work} lack files that were written before, in each of "
            f"{limits.PLAN_TRIES} tries: the store lists late what is written, or another run removes it"
        )
    raise TransientError(
        f"hour {format_hour(hour)}: other runs of this hour changed {paths.aggregated} during each of "
        f"{limits.PLAN_TRIES} tries to plan it"
    )


@without_collector
def preview_hour(store: ObjectStore, stream: Stream, hour: datetime, repack: bool = False) -> Preview:
    """What :func:`plan_hour` would do now. Writes and removes nothing.

    :param repack: as for :func:`plan_hour`
    :raises RollupError: as :func:`plan_hour` would
    """
    try:
        return _Planner(store, stream, hour, drop_vanished=False, repack=repack).preview()
    except HourChangedError:
        raise TransientError(
            f"hour {format_hour(hour)}: another run of this hour is changing {stream.at(hour).aggregated} just now"
        ) from None


@dataclass(frozen=True, slots=True)
class _Assessment:
    """The plan of an hour, and what exists of it already.

    :param packed: rows of receipts of the parts that exist already as planned, by name
    :param replaces: names of existing parts that belong to other plans of this hour
    :param taken: names that no new part may get
    :param replaced_left_out: keys of raw objects that exist and are left out, in parts that are not kept
    :param measured: what earlier tries of this plan have measured, by shard
    :param changed_groups: folders of the groups in which parts are written or removed
    :param group_changes: which groups the manifest lacks, and which the plan lacks; None without a manifest
    """

    survey: Survey
    plan: Plan
    packed: Mapping[str, bytes]
    replaces: Sequence[str]
    taken: Container[str]
    replaced_left_out: Sequence[str]
    measured: Mapping[int, Measured]
    changed_groups: frozenset[str]
    group_changes: GroupChanges | None


@dataclass(frozen=True, slots=True)
class _CompleteHour:
    """An hour that is complete and unchanged.

    :param manifest: under whose plan it is complete
    :param left_out: of its raw objects
    """

    manifest: ManifestReader
    left_out: LeftOut


class _Planner:
    """Plans one hour.

    :param drop_vanished: plan without raw objects that have vanished
    :param repack: keep only parts with expired raw objects
    """

    def __init__(
        self, store: ObjectStore, stream: Stream, hour: datetime, drop_vanished: bool, repack: bool
    ) -> None:
        self._store = store
        self._stream = stream
        self._hour = hour
        self._drop_vanished = drop_vanished
        self._repack = repack

    @cached_property
    def _state(self) -> HourState:
        return HourState(self._store, self._stream, self._hour)

    def try_to_plan(self, run_id: str) -> Planned | None:
        """Plan the hour and claim it; None if another run has changed it meanwhile.

        :raises HourChangedError: the same
        """
        assessment = self._assess()
        if isinstance(assessment, _CompleteHour):
            plan_id = assessment.manifest.totals.plan_id
            self._state.clean_up(plan_id)
            log.info("the hour is complete under this very plan; nothing to do")
            return Planned(plan_id, [], True)
        changes = assessment.group_changes
        if changes:
            log.info("groups, compared with the manifest: %s", changes)
        options = self._stream.write_options
        if options.is_archived:
            require_stored_crc(
                self._store, self._state.paths.work.child("crc-probe"), f"{options.storage_class}"
            )
        plan_id = new_plan_id(assessment.plan.content_id)
        refs, files = self._write_plan(assessment, plan_id)
        survey = assessment.survey
        claim = self._state.begin(
            plan_id,
            run_id,
            # Only a kept part with expired raw objects may have a name that is taken.
            [part.name for part in assessment.plan.parts if part.name not in assessment.taken],
            files,
            survey.marker.etag if survey.marker else None,
            survey.found.manifest_etag,
            survey.found.expiry_etag,
            assessment.changed_groups,
        )
        return Planned(plan_id, [ref for ref in refs if ref.parts], False, changes) if claim else None

    def preview(self) -> Preview:
        """See :func:`preview_hour`.

        :raises HourChangedError: if another run changes the hour meanwhile
        """
        assessment = self._assess()
        if isinstance(assessment, _CompleteHour):
            return self._preview_of_complete(assessment)
        plan = assessment.plan
        groups = self._groups(plan)
        refs = self._shard_refs("", "", plan, self._shards(plan))
        return Preview(
            plan_id=plan.content_id,
            unchanged=False,
            objects=plan.objects,
            bytes_in=plan.bytes_in,
            parts=len(plan.parts),
            parts_copied=sum(part.copied for part in plan.parts),
            parts_standing=len(assessment.packed),
            shards=sum(1 for ref in refs if ref.parts),
            left_out=plan.left_out,
            groups=len(groups) if self._state.paths.has_groups else None,
            largest_groups=largest_groups(groups, PREVIEWED_GROUPS),
        )

    def _preview_of_complete(self, complete: _CompleteHour) -> Preview:
        totals = complete.manifest.totals
        groups = [
            PlannedGroup(group.folder, group.captures, group.objects, group.bytes_in, group.parts)
            for group in totals.groups
        ]
        return Preview(
            plan_id=totals.plan_id,
            unchanged=True,
            objects=totals.objects,
            bytes_in=totals.bytes_in,
            parts=totals.parts,
            parts_copied=sum(bool(entry["copied"]) for entry in complete.manifest.table),
            parts_standing=totals.parts,
            shards=0,
            left_out=complete.left_out,
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

    def _assess(self) -> _Assessment | _CompleteHour:
        """List the raw hour, plan it, and compare the plan with the aggregated hour."""
        listed = self._state.paths.raw_and_unmatched.list_all(self._store)
        claim = self._state.claim()
        assessment = self._assess_listing(listed, claim)
        if isinstance(assessment, _CompleteHour):
            return assessment
        was_planned = claim is not None and content_id_of(claim.plan_id) == assessment.plan.content_id
        if not was_planned:
            return assessment
        # The same plan was not completed before. Maybe validation lists the hour differently, page by page; more
        # servers are right that way.
        digest = digest_raw(self._store, self._state.paths, self._stream.input_rules, len(listed))
        if digest.digests == assessment.plan.digests:
            return assessment
        raw = self._state.paths.raw_and_unmatched
        log.warning("%s is listed differently page by page; that listing is planned", raw)
        return self._assess_listing(raw.list_by_token(self._store), claim)

    def _assess_listing(
        self, listed: Sequence[ObjectInfo], claim: Claim | None
    ) -> _Assessment | _CompleteHour:
        name_of = self._state.paths.name_of
        chosen, left_out = select(listed, name_of, self._stream.input_rules)
        if left_out.unmatched:
            log.warning(
                "%d objects belong to no hour, because their folder has another day than their name, like %s",
                left_out.unmatched, next(item.key for item in listed if name_of(item.key) == item.key),
            )  # fmt: skip
        survey = survey_hour(self._state)
        why_empty = self._state.paths.raw_template.why_empty(self._hour)
        taken = survey.names_not_to_use()
        if why_empty:
            log.info("%s", why_empty)
        elif not chosen and not self._stream.allow_empty:
            self._refuse_empty(survey, taken, listed, left_out)
        survey.log_foreign()
        manifest = survey.manifest
        is_claimed = claim is not None and manifest is not None and claim.plan_id != manifest.totals.plan_id
        if manifest and not self._repack and not is_claimed and self._is_complete_as_listed(survey, chosen):
            return _CompleteHour(manifest, left_out)
        proven = self._proven_parts(survey, taken, listed, chosen)
        plan = self._make_plan(survey, proven, taken, chosen, left_out)
        if manifest and survey.is_complete_under(plan):
            if not is_claimed:
                return _CompleteHour(manifest, left_out)
            # Validation would prove the claimed plan, whose run may have died: plan and claim the hour again.
            log.info("the hour is complete under this very plan, but it was claimed for another one since")
        holdings = read_holdings(survey, proven, listed, chosen, plan)
        refuse_misplaced(self._state.paths, holdings.misplaced)
        if not self._drop_vanished:
            refuse_vanished(self._state.paths, holdings, survey.marker is not None)
        survey.refuse_foreign_groups(plan)
        measured = add_receipts(holdings, survey, plan.content_id)
        replaces = sorted(
            name
            for name in survey.found.parts.keys() & survey.recorded.keys()
            if survey.recorded[name] not in holdings.wanted
            and name not in holdings.wanted
            and name not in holdings.unclear
        )
        return _Assessment(
            survey,
            plan,
            holdings.packed,
            replaces,
            taken,
            sorted(holdings.left_out),
            measured,
            changed_groups=survey.changed_groups(plan, holdings.proven),
            group_changes=survey.group_changes(plan),
        )

    @property
    def _folder_of_key(self) -> Callable[[str], str] | None:
        paths = self._state.paths
        return paths.folder_of_key if paths.has_groups else None

    def _proven_parts(
        self,
        survey: Survey,
        taken: Container[str],
        listed: Sequence[ObjectInfo],
        chosen: Sequence[ObjectInfo],
    ) -> ProvenParts:
        """The parts of the manifest, compared with the raw hour; none without a manifest.

        :raises ConfigurationError: if the stream's templates don't find raw objects that they hold
        :raises VanishedInputError: if one of them is damaged, and its raw objects have expired
        """
        if survey.manifest is None:
            return ProvenParts()
        stream, paths = self._stream, self._state.paths
        rules = KeepRules(
            stream.part_size,
            stream.write_options,
            self._folder_of_key,
            paths.find_folder,
            self._repack,
            stream.late_merge,
        )
        parts = survey.found.parts

        def problem_of(planned: PlannedPart, packed: PackedPart) -> str | None:
            listed_part = parts.get(packed.name)
            return stored_problem(self._store, paths, planned, packed, listed_part, deep=True)

        proven = read_proven_parts(
            survey.manifest, parts, listed, chosen, survey.expiry, taken, rules, problem_of
        )
        refuse_misplaced(paths, proven.misplaced)
        refuse_damaged(paths, proven)
        return proven

    def _refuse_empty(
        self,
        survey: Survey,
        taken: Container[str],
        listed: Sequence[ObjectInfo],
        left_out: LeftOut,
    ) -> None:
        """Refuse an hour without input; if parts hold raw objects that have vanished, that error comes first.

        An hour whose raw objects have all expired has parts that are kept, so it is not empty.

        :raises EmptyHourError: otherwise
        """
        proven = self._proven_parts(survey, taken, listed, ())
        holdings = read_holdings(survey, proven, listed, (), None)
        refuse_misplaced(self._state.paths, holdings.misplaced)
        if not self._drop_vanished:
            refuse_vanished(self._state.paths, holdings, survey.marker is not None)
        if proven.kept.stay:
            return
        paths = self._state.paths
        raise EmptyHourError(
            f"hour {format_hour(paths.hour)}: nothing to pack under {paths.raw} ({len(listed)} objects listed; "
            f"left out: {left_out}). If that is as it should be, set 'allow_empty: true' for the stream "
            f"{self._stream.name!r}; otherwise clear the run when the objects are there."
        )

    def _is_complete_as_listed(self, survey: Survey, chosen: Sequence[ObjectInfo]) -> bool:
        """Whether the hour is complete, and its raw objects are those that were listed for its plan.

        A fast path: nothing is compared object by object.
        """
        content = survey.marker.content if survey.marker else None
        return survey.is_complete_and_intact() and is_as_completed(content, self._state.paths, chosen)

    def _make_plan(
        self,
        survey: Survey,
        proven: ProvenParts,
        taken: Container[str],
        chosen: Sequence[ObjectInfo],
        left_out: LeftOut,
    ) -> Plan:
        plan = make_plan(
            chosen,
            left_out,
            self._stream.part_size,
            self._stream.write_options,
            unjoinable=self._stream.unjoinable,
            folder_of_key=self._folder_of_key,
            kept_names=survey.kept_names(),
            taken=taken,
            kept=proven.kept,
        )
        log.info(
            "plan %s: %d objects, %s -> %d parts, of which %d are kept (left out: %s)",
            plan.content_id, plan.objects, format_size(plan.bytes_in), len(plan.parts), len(plan.kept), left_out,
        )  # fmt: skip
        return plan

    def _shards(self, plan: Plan) -> list[Sequence[PlannedPart]]:
        return make_shards(plan, self._stream.shard_size, self._stream.max_shards)

    def _shard_refs(
        self, hour: str, plan_id: str, plan: Plan, shards: Sequence[Sequence[PlannedPart]]
    ) -> list[ShardRef]:
        return shard_refs(self._stream.name, hour, plan_id, shards, plan.kept)

    def _write_plan(self, assessment: _Assessment, plan_id: str) -> tuple[list[ShardRef], set[str]]:
        """Write a plan's files.

        :returns: references to its shards, and the names below ``_rollup/`` of the files that it needs
        """
        plan, paths, records = assessment.plan, self._state.paths, self._state.records
        shards = self._shards(plan)
        hour = format_hour(paths.hour)
        refs = self._shard_refs(hour, plan_id, plan, shards)
        targets = [paths.shard(plan_id, ref.shard) for ref in refs]
        for ref, parts, target in zip(refs, shards, targets, strict=True):
            kept = plan.kept.intersection(part.name for part in parts)
            records.write_shard(target, ShardPlan(plan_id, ref.shard, tuple(parts), kept), paths.key_base)
            rows = [assessment.packed[part.name] for part in parts if part.name in assessment.packed]
            if rows:
                receipt = paths.receipt(plan_id, ref.shard)
                # A shard without parts to pack has no task that would measure anything.
                without_task = Measured(
                    max_connections=self._stream.max_connections, parts_left_alone=len(parts)
                )
                measured = assessment.measured.get(ref.shard, Measured() if ref.parts else without_task)
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
            plan.in_key_order,
            tuple(assessment.replaced_left_out),
            assessment.survey.found.manifest_etag or "",
        )
        records.write_plan(paths.plan(plan_id), summary)
        targets.append(paths.plan(plan_id))
        return refs, {target.key.removeprefix(paths.work.key) for target in targets}
