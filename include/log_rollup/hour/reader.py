"""Reads the state of one hour from the bucket, and never writes: :class:`HourReader`."""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    SupersededError,
    TooLargeError,
    UnreadableRecordError,
)
from include.log_rollup.hour.changes import first_keys
from include.log_rollup.hour.expiry_record import ExpiryRecord, unreadable_expiry
from include.log_rollup.hour.layout import format_hour, has_tag, planned_name
from include.log_rollup.hour.manifest import ManifestReader, open_manifest, read_manifest_header
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import Claim, PlanSummary, Records, ShardPlan, StoredMarker, parse_claim
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.listing import list_by_token
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream

CLEAR_FROM_PLAN = "clear the run from plan_hour on"


class HourChangedError(Exception):
    """Another run has changed the hour while it was read."""


class LateListingError(HourChangedError):
    """A listing lacks what this run has just written: the store lists late, or another run has removed it."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All objects below the aggregated hour.

    :param parts: objects named like a part, by name; also foreign ones
    :param work: names below ``_rollup/`` of the files that this project writes there
    :param foreign: all other objects except manifest, completion marker and record of expired raw objects
    :param manifest_etag: None if there is no manifest
    :param group_markers: ETags of the groups' completion markers, by the folder of the group
    :param group_manifests: folders of the groups that have a manifest
    :param expiry_etag: ETag of the record of expired raw objects; None if there is none
    """

    parts: Mapping[str, ObjectInfo]
    work: frozenset[str]
    foreign: Sequence[ObjectInfo]
    manifest_etag: str | None
    has_marker: bool
    group_markers: Mapping[str, str] = field(default_factory=dict)
    group_manifests: frozenset[str] = frozenset()
    expiry_etag: str | None = None


class HourReader:
    """Claim, completion marker, manifest, plans and parts of one hour. Each method reads the bucket again.

    :param hour: in UTC
    """

    def __init__(self, store: ObjectStore, stream: Stream, hour: datetime) -> None:
        self.paths = stream.at(hour)
        self.records = Records(store)
        self._store = store
        self._stream_name = stream.name

    def inventory(self) -> Inventory:
        """List the aggregated hour, and with groups the hour's records too.

        :raises RollupError: as the store raises
        """
        parts: dict[str, ObjectInfo] = {}
        work: set[str] = set()
        foreign: list[ObjectInfo] = []
        group_markers: dict[str, str] = {}
        group_manifests: set[str] = set()
        paths = self.paths
        ours: dict[str, str | None] = {
            paths.manifest.key: None, paths.marker.key: None, paths.expiry_record.key: None,
        }  # fmt: skip
        rows = paths.aggregated.list_by_token(self._store)
        if paths.has_groups:
            rows += list_by_token(self._store, paths.home)
        for item in rows:
            if item.key in ours:
                ours[item.key] = item.etag
            elif name := paths.part_name_of(item.key):
                parts[name] = item
            elif name := paths.work_name_of(item.key):
                work.add(name)
            elif folder := paths.folder_of_marker(item.key):
                group_markers[folder] = item.etag
            elif folder := paths.folder_of_manifest(item.key):
                group_manifests.add(folder)
            elif item.size or not item.key.endswith("/"):
                foreign.append(item)
        return Inventory(
            parts,
            frozenset(work),
            foreign,
            manifest_etag=ours[paths.manifest.key],
            has_marker=ours[paths.marker.key] is not None,
            group_markers=group_markers,
            group_manifests=frozenset(group_manifests),
            expiry_etag=ours[paths.expiry_record.key],
        )

    def claim(self) -> Claim | None:
        """The claim of the hour; None if no plan is being built."""
        return self.records.read_claim(self.paths.claim)

    @staticmethod
    def is_claim_of(plan_id: str, body: bytes) -> bool:
        """Whether the content of ``claim.json``, which the caller has read, names this plan."""
        return parse_claim(body).plan_id == plan_id

    def marker(self) -> StoredMarker | None:
        """The completion marker; None if there is none."""
        return self.records.read_marker(self.paths.marker)

    def manifest(self) -> ManifestReader | None:
        """The manifest; None if there is none.

        :raises UnreadableRecordError: if it is damaged or of another format
        """
        return open_manifest(self._store, self.paths.manifest)

    def expiry_record(self) -> ExpiryRecord | None:
        """The record of expired raw objects; None if none was ever announced.

        :raises UnreadableRecordError: if it is damaged or of another format
        """
        source = self.paths.expiry_record
        try:
            found = self._store.read(source)
        except TooLargeError as error:
            raise unreadable_expiry(source, error) from error
        return None if found is None else ExpiryRecord.from_bytes(source, found.body, found.etag)

    def plan(self, plan_id: str) -> PlanSummary:
        """The summary of a plan.

        :raises SupersededError: if it cannot be read
        """
        summary = self.records.read_plan(self.paths.plan(plan_id)) if plan_id else None
        if summary is None:
            raise self.superseded(f"plan {plan_id or 'unknown'} is not whole under {self.paths.work}")
        return summary

    def shard(self, plan_id: str, shard: int) -> ShardPlan:
        """The parts of one shard.

        :raises SupersededError: if they cannot be read
        """
        found = self.records.read_shard(self.paths.shard(plan_id, shard), self.paths.key_base)
        if found is None:
            raise self.superseded(
                f"shard {shard} of plan {plan_id} is gone from {self.paths.work}, is damaged, or another version "
                f"wrote it"
            )
        return found

    def superseded(self, problem: str, remedy: str = CLEAR_FROM_PLAN) -> SupersededError:
        """The error for a run that no longer owns the hour.

        :param problem: what was found
        :param remedy: what to do, in the imperative
        """
        return SupersededError(f"{self.paths.aggregated}: {problem}; {remedy}")

    def recorded_parts(
        self, work: Iterable[str], manifest: ManifestReader | None, parts: Iterable[str] = ()
    ) -> dict[str, str]:
        """Names of all parts that a record names, each with the name of the planned part it was made for.

        A name in a plan of format 1 proves nothing: such names don't depend on the content, so the object may be
        foreign. Only receipts count there.

        :param work: names below ``_rollup/`` of the records to read
        :param parts: names of existing parts; those that were split off recorded parts are included
        """
        found: dict[str, str] = {}
        if manifest is not None:
            found |= {entry["name"]: entry.get("split_of") or entry["name"] for entry in manifest.table}
        for name in sorted(work):
            source, file = self.paths.work.child(name), name.rpartition("/")[2]
            if file == "plan.json":
                summary = self.records.read_plan(source)
                found |= {part: planned_name(part) for part in summary.replaces} if summary else {}
            elif file.startswith("shard-"):
                shard = self.records.read_shard(source, "")
                found |= {part.name: part.name for part in shard.parts} if shard else {}
            elif file.startswith("receipt-"):
                receipt = self.records.read_receipt(source)
                if receipt:
                    found |= {planned_name(part.name): planned_name(part.name) for part in receipt.parts}
                    found |= {part.name: planned_name(part.name) for part in receipt.parts}
        for name in parts:
            planned = planned_name(name)
            if name not in found and planned in found:
                found[name] = planned
        return found

    def unnamed_expired(
        self, parts: Container[str], recorded: Container[str], expiry: ExpiryRecord | None
    ) -> str:
        """The message if the manifest does not name all parts with expired raw objects; empty if it does.

        Names of format 1 don't depend on the content: a run leaves such a part where it is if it was damaged.

        :param parts: names of the existing parts
        :param recorded: names of the parts that the manifest or a record of a plan names
        """
        announced = expiry.parts if expiry else ()
        unnamed = sorted(
            name for name in announced if name in parts and name not in recorded and has_tag(name)
        )
        if not unnamed:
            return ""
        return (
            f"{self.paths.expiry_record} says that raw objects of {len(unnamed):,} existing parts have expired or "
            f"were about to ({first_keys(unnamed)}), but {self.paths.manifest} does not name these parts. They "
            f"may be the last copies, so nothing was changed. If an older manifest was restored, restore the "
            f"newest one. If that is impossible, move these parts away and keep them. Then clear the run from "
            f"plan_hour on."
        )

    def strays(
        self, found: Inventory, needed: Collection[str], plan_id: str, manifest: ManifestReader | None
    ) -> dict[str, str]:
        """The stray parts of a plan, each with the name of the planned part it was made for.

        :param needed: names of the plan's parts
        :param manifest: the hour's present manifest
        """
        others = found.parts.keys() - needed
        if not others:
            return {}
        # The plan's own shards name no other part. But two tasks may have split a part differently.
        own = f"{plan_id}/shard-"
        files = (name for name in found.work if not name.startswith(own))
        recorded = self.recorded_parts(files, manifest, others)
        planned = {planned_name(name) for name in needed}
        recorded |= {name: planned_name(name) for name in others if planned_name(name) in planned}
        return {name: recorded[name] for name in others if name in recorded}

    def removable(
        self, found: Inventory, strays: Mapping[str, str], plan_id: str, parts: Iterable[PlannedPart]
    ) -> dict[str, str]:
        """Those stray parts that may be deleted: the proven plan holds their raw objects, or these exist.

        Planning has compared the parts that it found with the raw hour. A stray part that was written later stays
        if no shard file says what it holds.

        :param strays: from :meth:`strays`
        :param plan_id: of the proven plan
        :param parts: of the proven plan
        :raises InputChangedError: if a stray part holds raw objects, or versions of them, that may exist nowhere
            else: planning never saw them, or saw them and left them out
        """
        plan = self.records.read_plan(self.paths.plan(plan_id)) if strays else None
        replaced = frozenset(plan.replaces if plan else ())
        if plan is not None and not replaced.isdisjoint(strays):
            self._assert_present(plan.replaced_left_out)
        late = {planned for name, planned in strays.items() if name not in replaced}
        if not late:
            return dict(strays)
        described: list[PlannedPart] = []
        for name in found.work:
            if "/shard-" in name:
                shard = self.records.read_shard(self.paths.work.child(name), self.paths.key_base)
                described += [part for part in shard.parts if part.name in late] if shard else ()
        if gone := self._not_held(described, parts):
            raise InputChangedError(
                f"hour {format_hour(self.paths.hour)}: another run has written a part under "
                f"{self.paths.aggregated} since the hour was planned, and raw objects in it are gone or have "
                f"changed by now ({first_keys(sorted(gone))}). Nothing is lost: clear the run from plan_hour on, "
                f"which says what can be done."
            )
        removable = {part.name for part in described}
        return {name: planned for name, planned in strays.items() if name in replaced or planned in removable}

    def _not_held(self, strays: Iterable[PlannedPart], parts: Iterable[PlannedPart]) -> set[str]:
        """The keys of raw objects that a proven plan does not hold, or of which it may hold an older version.

        A version that the plan does not hold is older than that of the plan if the raw object is as planned now.

        :param strays: the parts that hold these raw objects
        :param parts: of the plan
        """
        others = {item for part in strays for item in part.objects}
        keys = {item.key for item in others}
        # The last part with a key holds its newest version.
        newest: dict[str, ObjectInfo] = {}
        for part in parts:
            for item in part.objects:
                if item.key in keys:
                    newest[item.key] = item
                    others.discard(item)
        unsure = [newest[key] for key in sorted({item.key for item in others} & newest.keys())]
        places = [self.paths.raw_template.root.at(item.key) for item in unsure]
        heads = in_parallel(self._store.control_connections, "log-rollup-strays", self._store.head, places)
        return keys - newest.keys() | {
            item.key
            for item, head in zip(unsure, heads, strict=True)
            if head is None or (head.size, head.etag) != (item.size, item.etag)
        }

    def foreign_group_records(self, folders: Iterable[str], found: Inventory) -> list[Location]:
        """Completion markers and manifests of groups that this stream did not write for this hour and group.

        :param folders: of groups; those without such objects are skipped
        :raises InputChangedError: if a manifest is replaced meanwhile
        """
        ordered = sorted(folders)
        markers = [folder for folder in ordered if folder in found.group_markers]
        manifests = [folder for folder in ordered if folder in found.group_manifests]

        def marker(folder: str) -> dict[str, Any] | None:
            return self.records.read_marker_json(self.paths.group_marker(folder))

        def header(folder: str) -> dict[str, Any] | None:
            try:
                return read_manifest_header(self._store, self.paths.group_manifest(folder))
            except UnreadableRecordError:
                return {}
            except NotFoundError:
                return None

        foreign: list[Location] = []
        for some, place, read in (
            (manifests, self.paths.group_manifest, header),
            (markers, self.paths.group_marker, marker),
        ):
            values = in_parallel(self._store.control_connections, "log-rollup-groups", read, some)
            for folder, one in zip(some, values, strict=True):
                if one is not None and not self._is_of_group(one, folder):
                    foreign.append(place(folder))
        return foreign

    def _is_of_group(self, values: Mapping[str, Any], folder: str) -> bool:
        return (
            bool(values.get("plan_id"))
            and values.get("stream") == self._stream_name
            and values.get("hour") == format_hour(self.paths.hour)
            and values.get("group") == self.paths.captures_of(folder)
        )

    def _assert_present(self, keys: Sequence[str]) -> None:
        """Make sure that raw objects exist which are left out, before the parts that hold them are deleted.

        :raises InputChangedError: if one is gone
        """
        places = [self.paths.raw_template.root.at(key) for key in keys]
        heads = in_parallel(self._store.control_connections, "log-rollup-left-out", self._store.head, places)
        gone = [key for key, head in zip(keys, heads, strict=True) if head is None]
        if gone:
            raise InputChangedError(
                f"hour {format_hour(self.paths.hour)}: {len(gone):,} raw objects ({first_keys(gone)}) that are "
                f"left out now are gone since the hour was planned, and parts that would be removed hold them. "
                f"Nothing is lost: clear the run from plan_hour on, which says what can be done."
            )

    def names_under_removal(self, work: Iterable[str]) -> set[str]:
        """Names of the parts and plan files in removal records: a run deletes them, or died doing so.

        :param work: names below ``_rollup/``
        """
        found: set[str] = set()
        for name in work:
            if name.startswith("removals/"):
                found.update(self.records.read_removal(self.paths.work.child(name)))
        return found
