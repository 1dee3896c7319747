"""What planning finds in the aggregated hour: which parts exist, and what raw objects they hold by the records."""

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

from include.log_rollup.errors import (
    ConfigurationError,
    InputChangedError,
    UnreadableRecordError,
    VanishedInputError,
)
from include.log_rollup.hour.changes import MAX_SHOWN, KeyIndex, first_keys
from include.log_rollup.hour.expiry_record import ExpiryRecord
from include.log_rollup.hour.group_summary import GroupChanges
from include.log_rollup.hour.kept_parts import ProvenParts
from include.log_rollup.hour.layout import folder_of, format_hour, has_tag, part_index, planned_name
from include.log_rollup.hour.manifest import ManifestReader
from include.log_rollup.hour.parts import is_as_written, is_intact
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PLAN_FORMAT, Plan, content_id_of
from include.log_rollup.hour.reader import HourChangedError, HourReader, Inventory
from include.log_rollup.hour.records import Measured, PackedPart, ShardPlan, StoredMarker, compressed_row
from include.log_rollup.storage.protocol import ObjectInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Survey:
    """The aggregated hour and its records.

    :param recorded: names of the parts that are ours, each with the name of the planned part it was made for
    :param expiry: which raw objects have been deleted because parts hold them
    """

    reader: HourReader
    found: Inventory
    manifest: ManifestReader | None
    marker: StoredMarker | None
    recorded: Mapping[str, str]
    expiry: ExpiryRecord | None

    @property
    def foreign_parts(self) -> set[str]:
        """Names of foreign objects that are named like parts."""
        return self.found.parts.keys() - self.recorded.keys()

    def names_not_to_use(self) -> set[str]:
        """Names that no new part may get: those of foreign objects, and those under removal."""
        return self.foreign_parts | self.reader.names_under_removal(self.found.work)

    def kept_names(self) -> dict[tuple[str, int, str], str]:
        """Names of the manifest's parts that exist, by folder, index and fingerprint."""
        kept: dict[tuple[str, int, str], str] = {}
        for entry in self.manifest.table if self.manifest else ():
            name = str(entry["name"])
            index = part_index(name)
            if index is not None and name in self.found.parts and not entry.get("split_of"):
                kept[folder_of(name), index, entry["fingerprint"]] = name
        return kept

    def is_complete_under(self, plan: Plan) -> bool:
        """Whether the hour is complete, has no stray parts, and this plan would write the same parts."""
        manifest = self.manifest
        if manifest is None:
            return False
        # Parts that were split have other names than in the plan.
        same = (
            (plan.kept == manifest.names and len(plan.parts) == len(plan.kept))
            or plan.content_id == content_id_of(manifest.totals.plan_id)
            or [part.fingerprint for part in plan.parts] == [entry["fingerprint"] for entry in manifest.table]
        )
        return same and self.is_complete_and_intact()

    def is_complete_and_intact(self) -> bool:
        """Whether the hour is complete, has no stray parts, and its parts are as they were proven."""
        manifest, marker = self.manifest, self.marker
        if manifest is None or marker is None or not marker.is_of(manifest.totals.plan_id):
            return False
        ours = {name for name in self.found.parts if name in self.recorded}
        return (
            is_intact(manifest.table, self.found.parts)
            and ours == manifest.names
            and self._has_records_of_groups(manifest)
        )

    def _has_records_of_groups(self, manifest: ManifestReader) -> bool:
        """Whether each group has a manifest and a completion marker; somebody may have removed one."""
        folders = {group.folder for group in manifest.totals.groups}
        return folders <= self.found.group_manifests and folders <= self.found.group_markers.keys()

    def changed_groups(self, plan: Plan, proven: Container[str]) -> frozenset[str]:
        """The folders of the groups that change: they have no manifest, or get parts other than those it names.

        A part that was or will be written again counts as another one, although it has the same name and bytes:
        its ETag and its proof may differ. Without a manifest of the hour no group can have a completion marker.

        :param proven: names of the parts that exist as the manifest says
        """
        if self.manifest is None:
            return frozenset()
        before, after = (
            _names_by_folder(self.manifest.names),
            _names_by_folder(part.name for part in plan.parts),
        )
        folders = before.keys() | after.keys()
        changed = {folder for folder in folders if before.get(folder) != after.get(folder)}
        changed |= folders - self.found.group_manifests
        changed |= {folder_of(part.name) for part in plan.parts if part.name not in proven}
        return frozenset(changed - {""})

    def group_changes(self, plan: Plan) -> GroupChanges | None:
        """Which groups of a plan are new or vanished, compared with the manifest; None without a manifest."""
        paths = self.reader.paths
        if self.manifest is None or not paths.has_groups:
            return None
        folders = {folder_of(part.name) for part in plan.parts}
        before = (group.captures for group in self.manifest.totals.groups)
        return GroupChanges.between(before, map(paths.captures_of, folders))

    def refuse_foreign_groups(self, plan: Plan) -> None:
        """Refuse to plan if another program wrote a completion marker or a manifest in the folder of a new group.

        :raises UnreadableRecordError: if there is one
        :raises HourChangedError: if another run changes the hour meanwhile
        """
        known = {group.folder for group in self.manifest.totals.groups} if self.manifest else set()
        new = {folder_of(part.name) for part in plan.parts} - known - {""}
        try:
            foreign = self.reader.foreign_group_records(new, self.found)
        except InputChangedError:
            raise HourChangedError from None
        if foreign:
            places = sorted(map(str, foreign))
            self.refuse(
                f"hour {format_hour(self.reader.paths.hour)}: the folders of new groups have {len(places):,} "
                f"objects named _SUCCESS or _manifest.jsonl.gz that this stream did not write for them "
                f"({first_keys(places)}). Nothing was changed. If another program wrote them, move them away; "
                f"then clear the run from plan_hour on."
            )

    def log_foreign(self) -> None:
        """Log which objects are foreign."""
        paths = self.reader.paths
        names = (item.key.removeprefix(paths.base.key) for item in self.found.foreign)
        keys = sorted([*self.foreign_parts, *names])
        if keys:
            log.warning(
                "%d objects under %s are not of this project, and are left alone: %s",
                len(keys), paths.aggregated, first_keys(keys),
            )  # fmt: skip

    def refuse(self, message: str) -> NoReturn:
        """Refuse to plan because of what the records say.

        :raises UnreadableRecordError: with this message
        :raises HourChangedError: if the hour has changed since it was listed: another run may have completed it
            and removed the records of its plan
        """
        if self.reader.inventory() != self.found:
            raise HourChangedError
        raise UnreadableRecordError(message)


def _names_by_folder(names: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(folder_of(name), set()).add(name)
    return found


def survey_hour(reader: HourReader) -> Survey:
    """List the aggregated hour and read its records.

    :raises UnreadableRecordError: if the manifest or the expiry record cannot be read, if the manifest is missing
        although there are parts of ours, a record of expired raw objects or a marker of another program, or if it
        does not name existing parts whose raw objects have expired
    :raises ConfigurationError: if the manifest was written with another template ``aggregated``
    :raises HourChangedError: if another run changes the hour meanwhile
    """
    found = reader.inventory()
    manifest = reader.manifest() if found.manifest_etag is not None else None
    marker = reader.marker()
    recorded = reader.recorded_parts(found.work, manifest, found.parts) if found.parts else {}
    expiry = reader.expiry_record() if found.expiry_etag is not None else None
    _assert_as_listed(found.manifest_etag, manifest.etag if manifest else None)
    _assert_as_listed(found.expiry_etag, expiry.etag if expiry else None)
    if found.has_marker and marker is None:
        raise HourChangedError
    survey = Survey(reader, found, manifest, marker, recorded, expiry)
    if manifest is None:
        _refuse_without_manifest(survey)
    else:
        _refuse_other_groups(reader.paths, manifest)
        if problem := reader.unnamed_expired(found.parts, recorded, expiry):
            survey.refuse(f"hour {format_hour(reader.paths.hour)}: {problem}")
    return survey


def _assert_as_listed(listed: str | None, read: str | None) -> None:
    """Make sure that a record was read as it is listed: without it, parts would be planned that are the last copy.

    :param listed: its ETag in the listing; None if it is not listed
    :param read: its ETag when it was read; None if it was not found, empty if the store stated none
    :raises HourChangedError: if it was not
    """
    if listed is not None and (read is None or (read and read != listed)):
        raise HourChangedError


def _refuse_other_groups(paths: HourPaths, manifest: ManifestReader) -> None:
    """Refuse to plan if the groups of the manifest are not of the stream's present template.

    The records may have the same place for both, but parts of the two may be in other places, and the order of two
    versions of a raw object follows from the names of their parts.

    :raises ConfigurationError: if there are any
    """
    others = [
        group.folder
        for group in manifest.totals.groups
        if not paths.is_own_folder(group.folder)
        or (group.captures and group.captures != paths.captures_of(group.folder))
    ]
    if others:
        raise ConfigurationError(
            f"hour {format_hour(paths.hour)}: {paths.manifest} has {len(others):,} groups ({first_keys(others)}) "
            f"of another template 'aggregated' than the stream has now, {paths.aggregated_template}. Nothing was "
            f"changed. Set 'aggregated' back to what it was when the hour was packed, then clear the run from "
            f"plan_hour on. For other groups or folders, define a stream with another name, and an 'aggregated' "
            f"with another text before its first capture or directive."
        )


def _refuse_without_manifest(survey: Survey) -> None:
    """Refuse to plan if no record describes parts of ours, or if there is another record or marker.

    The name of a part of format 1 alone does not prove that the part is ours; with a completion marker it does.
    """
    paths, marker = survey.reader.paths, survey.marker
    hour = format_hour(paths.hour)
    unknown = sorted(survey.foreign_parts)
    ours = unknown if marker is not None else [name for name in unknown if has_tag(name)]
    if ours:
        place = str(paths.aggregated) if marker is None else f"{paths.aggregated} and {paths.marker}"
        survey.refuse(
            f"hour {hour}: there are {len(ours):,} parts under {place} ({first_keys(ours)}), "
            f"but there is no {paths.manifest}, which says what they hold. Nothing was changed, since they may "
            f"hold bytes that no raw object holds any more. Restore the manifest from a backup or from an older "
            f"version of the object; or, if all raw objects still exist or another program wrote these parts, "
            f"move them and _SUCCESS away. Then clear the run from plan_hour on."
        )
    if survey.expiry is not None and survey.expiry.parts:
        names = sorted(survey.expiry.parts)
        survey.refuse(
            f"hour {hour}: {paths.expiry_record} says that raw objects of {len(names):,} parts have expired "
            f"({first_keys(names)}), but there is no {paths.manifest}, which names these parts. Nothing was "
            f"changed. Restore the manifest and these parts from a backup or from older versions of the objects; "
            f"or, if the hour should be packed without them, move _expired.json away. Then clear the run from "
            f"plan_hour on."
        )
    if survey.found.group_markers:
        folders = sorted(survey.found.group_markers)
        survey.refuse(
            f"hour {hour}: {len(folders):,} groups have a _SUCCESS ({first_keys(folders)}), but there is no "
            f"{paths.manifest}. Nothing was changed. Restore the manifest from a backup or from an older version "
            f"of the object; or, if another program wrote these _SUCCESS, move them away. Then clear the run "
            f"from plan_hour on."
        )
    if marker is not None and marker.content is None:
        survey.refuse(
            f"hour {hour}: {paths.marker} is there, but this version of Log Rollup did not write it, and there is "
            f"no {paths.manifest}. Nothing was changed. If another program completed this hour, keep it so and "
            f"mark the run as success; otherwise move _SUCCESS away and clear the run from plan_hour on."
        )


# -- what the existing parts hold ----------------------------------------------------------------------


@dataclass(slots=True)
class Holdings:
    """The raw objects that the existing parts hold, by the records.

    :param wanted: fingerprints of the new plan's parts, by name
    :param listed: the raw hour, including what is left out: it still exists
    :param chosen: the input
    :param find_folder: see :meth:`include.log_rollup.hour.paths.HourPaths.find_folder`
    :param packed: rows of receipts of the existing parts that the new plan wants, by name
    :param proven: names of the parts that exist as the manifest says
    :param described: names of the planned parts whose raw objects a shard file names
    :param unclear: names of our parts whose raw objects no record names; they must stay
    :param gone: keys of raw objects that have vanished
    :param misplaced: those of them that are not of this hour by the stream's present templates
    :param left_out: keys of raw objects that exist and are left out, in parts that are not kept
    :param objects: number of raw objects in the records
    """

    wanted: Mapping[str, str]
    listed: KeyIndex
    chosen: KeyIndex
    find_folder: Callable[[str], str | None]
    packed: dict[str, bytes] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)
    described: set[str] = field(default_factory=set)
    unclear: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    misplaced: list[str] = field(default_factory=list)
    objects: int = 0

    def add_proven(self, proven: ProvenParts) -> None:
        """Take over the parts of the manifest, also without a marker, which an interrupted rerun has removed."""
        self.objects += proven.objects
        self.gone += proven.gone
        self.left_out.update(proven.left_out)
        # Under a name of format 1 there may be something else, which a later rerun wrote.
        self.proven.update(proven.rows)
        self.packed |= {
            name: row
            for name, (fingerprint, row) in proven.rows.items()
            if self.wanted.get(name) == fingerprint
        }

    def add_packed(self, part: PackedPart) -> None:
        """Take over an existing part, if the plan wants it and an earlier record has not given it."""
        if self.wanted.get(part.name) == part.fingerprint and part.name not in self.packed:
            self.packed[part.name] = compressed_row(part)

    def add_objects(self, keys: Sequence[str]) -> None:
        """Add raw objects of a part that is not kept."""
        self.objects += len(keys)
        for key in keys:
            if self.listed.place(key) is None:
                self.gone.append(key)
                if self.find_folder(key) is None:
                    self.misplaced.append(key)
            elif self.chosen.place(key) is None:
                self.left_out.add(key)


def read_holdings(
    survey: Survey,
    proven: ProvenParts,
    listed: Sequence[ObjectInfo],
    chosen: Sequence[ObjectInfo],
    plan: Plan | None,
) -> Holdings:
    """Read which raw objects the existing parts hold.

    :param proven: the parts of the manifest
    :param listed: the raw hour, including what is left out
    :param chosen: the input
    :param plan: the new plan; None if there is nothing to plan
    :raises UnreadableRecordError: if the records don't say it
    :raises HourChangedError: if another run changes the hour meanwhile
    """
    wanted = {} if plan is None else {part.name: part.fingerprint for part in plan.parts}
    holdings = Holdings(wanted, KeyIndex(listed), KeyIndex(chosen), survey.reader.paths.find_folder)
    holdings.add_proven(proven)
    damaged = _add_shards(holdings, survey)
    holdings.unclear = _unclear_parts(holdings, survey)
    # If there is a manifest, the files of overtaken plans were removed when the hour was complete.
    if holdings.unclear and (survey.manifest is None or damaged):
        paths = survey.reader.paths
        survey.refuse(
            f"hour {format_hour(paths.hour)}: the plan that says what {len(holdings.unclear):,} parts under "
            f"{paths.aggregated} hold ({first_keys(sorted(holdings.unclear))}) is damaged or gone. Nothing was "
            f"changed, since they may hold bytes that no raw object holds any more. If all raw objects still "
            f"exist, move these parts away, then clear the run from plan_hour on."
        )
    return holdings


def _add_shards(holdings: Holdings, survey: Survey) -> bool:
    """Add what the shard files of plans say that were never completed.

    :returns: whether one of them cannot be read
    :raises ConfigurationError: if one was planned with another template ``aggregated``
    """
    reader = survey.reader
    unproven = survey.found.parts.keys() - holdings.proven
    # A planned part exists under its own name, or was split.
    existing = {planned_name(name) for name in unproven} | unproven
    damaged = False
    for name in sorted(survey.found.work):
        if "/shard-" not in name:
            continue
        shard = reader.records.read_shard(
            reader.paths.work.child(name), reader.paths.key_base, formats=(1, PLAN_FORMAT)
        )
        damaged = damaged or shard is None
        if shard is not None:
            _refuse_other_folders(reader.paths, shard)
        for planned in shard.parts if shard else ():
            holdings.described.add(planned.name)
            if planned.name in existing:
                holdings.add_objects([item.key for item in planned.objects])
    return damaged


def _refuse_other_folders(paths: HourPaths, shard: ShardPlan) -> None:
    """Refuse to plan if parts of an unfinished plan are in folders that the present template doesn't have.

    :raises ConfigurationError: if there are any
    """
    others = [part.name for part in shard.parts if not paths.is_own_folder(folder_of(part.name))]
    if others:
        raise ConfigurationError(
            f"hour {format_hour(paths.hour)}: the unfinished plan {shard.plan_id} under {paths.work} has parts "
            f"({first_keys(others)}) of another template 'aggregated' than the stream has now, "
            f"{paths.aggregated_template}. Nothing was changed, since they may hold bytes that no raw object "
            f"holds any more. Set 'aggregated' back to what it was, and clear the run from plan_hour on. Or, if "
            f"all raw objects still exist, move the files under {paths.work} and these parts away, then clear it."
        )


def _unclear_parts(holdings: Holdings, survey: Survey) -> set[str]:
    """Names of our parts, except those that the new plan wants, whose raw objects no record names."""
    # A name with a tag always means what the manifest says it holds.
    known = {name for name in survey.manifest.names if has_tag(name)} if survey.manifest else set()
    others = (
        name
        for name in survey.found.parts.keys() - known
        if name in survey.recorded and name not in holdings.proven and name not in holdings.wanted
    )
    unclear = {name for name in others if survey.recorded[name] not in holdings.described}
    if unclear and survey.manifest is not None:
        # The proven plan holds the raw objects of the parts that it was made to replace, or names the others.
        source = survey.reader.paths.plan(survey.manifest.totals.plan_id)
        proven = survey.reader.records.read_plan(source)
        if proven is not None and not unclear.isdisjoint(proven.replaces):
            unclear.difference_update(proven.replaces)
            holdings.add_objects(proven.replaced_left_out)
    return unclear


def refuse_damaged(paths: HourPaths, proven: ProvenParts) -> None:
    """Refuse to plan if parts with expired raw objects are not as they were proven.

    :raises VanishedInputError: if there are any
    """
    if not proven.damaged:
        return
    shown = "; ".join(f"{name}: {problem}" for name, problem in islice(proven.damaged.items(), MAX_SHOWN))
    more = f"; and {len(proven.damaged) - MAX_SHOWN:,} more" if len(proven.damaged) > MAX_SHOWN else ""
    raise VanishedInputError(
        f"hour {format_hour(paths.hour)}: raw objects of {len(proven.damaged):,} parts under {paths.aggregated} "
        f"have expired or were about to, but these parts are not as they were proven ({shown}{more}). Nothing "
        f"else may have their bytes, so nothing was changed, and no run removes them, with 'drop_vanished' "
        f"neither. Restore them from older versions or from a copy, then clear the run from plan_hour on. If that "
        f"is impossible, move them away: what they held is then packed again if it still exists, or has vanished."
    )


def refuse_misplaced(paths: HourPaths, keys: Sequence[str]) -> None:
    """Refuse to plan if parts hold raw objects that the stream's present templates don't find.

    Whether such raw objects still exist is unknown, so their parts may be the last copy.

    :param keys: of these raw objects
    :raises ConfigurationError: if there are any
    """
    if not keys:
        return
    found = sorted(set(keys))
    raise ConfigurationError(
        f"hour {format_hour(paths.hour)}: the parts under {paths.aggregated} hold {len(found):,} raw objects "
        f"({first_keys(found)}) that are not of this hour and group by the stream's present 'raw' "
        f"{paths.raw_template} and 'timezone' {paths.raw_template.zone}. Nothing was changed. Set them back to "
        f"what they were when these objects were packed, then clear the run from plan_hour on. For raw objects "
        f"in another place, define a stream with another name and another 'aggregated'."
    )


def refuse_vanished(paths: HourPaths, holdings: Holdings, is_complete: bool) -> None:
    """Refuse to plan if raw objects have vanished that the parts hold: the parts may be the last copy.

    :raises VanishedInputError: if there are any
    """
    if not holdings.gone:
        return
    hour = format_hour(paths.hour)
    gone = sorted(set(holdings.gone))
    stays = ": the hour stays complete" if is_complete else ""
    conf = f'{{"hour": "{hour}", "drop_vanished": true}}'
    raise VanishedInputError(
        f"hour {hour}: {len(gone):,} of {holdings.objects:,} raw objects ({first_keys(gone)}) from which the "
        f"parts under {paths.aggregated} were made are gone from {paths.raw}. To plan the hour again would delete "
        f"what the parts hold of them, so nothing was changed. If they expired, mark the run as success{stays}. "
        f"If they should be dropped, trigger the Dag for this hour with 'drop_vanished' in the form, or "
        f"--conf '{conf}'."
    )


def add_receipts(holdings: Holdings, survey: Survey, content_id: str) -> dict[int, Measured]:
    """Add the existing parts that receipts name.

    :param content_id: of the new plan
    :returns: what earlier tries of the same plan have measured, by shard
    """
    measured: dict[int, Measured] = {}
    for name in sorted(survey.found.work):
        if "/receipt-" not in name:
            continue
        receipt = survey.reader.records.read_receipt(survey.reader.paths.work.child(name))
        if receipt is None:
            continue
        if content_id_of(receipt.plan_id) == content_id:
            # The receipt of a try includes the earlier tries, so that with the most time is the latest.
            before = measured.get(receipt.shard, Measured())
            measured[receipt.shard] = max(before, receipt.measured, key=lambda tried: tried.seconds)
        for part in receipt.parts:
            if is_as_written(part, survey.found.parts):
                holdings.add_packed(part)
    return measured
