"""The state of one hour in the bucket: claim, completion marker, manifest, and which parts are ours.

Only this module changes what makes an hour complete. S3 has no locks, and not every server has conditional writes,
so the order of the writes keeps competing runs apart:

1. ``begin`` writes the claim, which names the plan that is being built. Only then it reads what other runs have
   prepared: it deletes their staged manifests and markers, then a completion marker that is there.
2. A manifest or marker is written to a staged object first. The claim is read once more, and the store copies the
   staged object to its place. A run that was overtaken finds its staged object deleted, so that its copy fails,
   however late it comes.
3. A part is named by what it holds, so a run that was overtaken can leave a part that nobody needs, but never
   overwrite one.
4. A part is deleted only after its name was written into a removal record and the claim was read again. A later
   plan reads the removal records after its claim and gives such a part another name, so that the deletion, however
   late it comes, hits nothing that is needed. Before a part of the very plan that is being built is deleted, the
   hour is claimed once more, so that nobody completes it meanwhile.
5. The files of a plan have names that no other try to plan the hour uses. Those of other plans are deleted in the
   way of rule 4.
"""

import logging
import secrets
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from include.log_rollup import limits
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    RollupError,
    SupersededError,
    UnreadableRecordError,
    UnsupportedOperationError,
)
from include.log_rollup.hour.changes import named
from include.log_rollup.hour.layout import planned_name
from include.log_rollup.hour.plan import PlannedPart, content_id_of
from include.log_rollup.hour.records import GZIP, JSON, Claim, ManifestReader, Records, marker_body
from include.log_rollup.storage.listing import list_by_token
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What lies below the aggregated hour.

    :param parts: by name, everything that is named like a part, ours or not
    :param work: names below ``_rollup/`` of what this project wrote there
    :param foreign: everything else but manifest and completion marker
    :param manifest_etag: None if there is no manifest
    """

    parts: Mapping[str, ObjectInfo]
    work: frozenset[str]
    foreign: Sequence[ObjectInfo]
    manifest_etag: str | None
    has_marker: bool


def _is_same(one: Claim | None, other: Claim | None) -> bool:
    """Whether two readings of the claim found the same one, or none both times."""
    return (one and one.claim_id) == (other and other.claim_id)


class HourState:
    """The state of one hour; each method reads the bucket afresh.

    :param hour: in UTC
    """

    def __init__(self, store: ObjectStore, stream: Stream, hour: datetime) -> None:
        self.paths = stream.at(hour)
        self.records = Records(store)
        self._store = store

    # -- reading ---------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """List the aggregated hour.

        :raises RollupError: as the store raises
        """
        parts: dict[str, ObjectInfo] = {}
        work: set[str] = set()
        foreign: list[ObjectInfo] = []
        ours: dict[str, str | None] = {self.paths.manifest.key: None, self.paths.marker.key: None}
        for item in list_by_token(self._store, self.paths.aggregated):
            if item.key in ours:
                ours[item.key] = item.etag
            elif name := self.paths.part_name_of(item.key):
                parts[name] = item
            elif name := self.paths.work_name_of(item.key):
                work.add(name)
            elif item.size or not item.key.endswith("/"):
                foreign.append(item)
        return Inventory(
            parts,
            frozenset(work),
            foreign,
            manifest_etag=ours[self.paths.manifest.key],
            has_marker=ours[self.paths.marker.key] is not None,
        )

    def claim(self) -> Claim | None:
        """Which plan is being built; None if none is."""
        return self.records.read_claim(self.paths.claim)

    def recorded_parts(
        self, work: Iterable[str], manifest: ManifestReader | None, parts: Iterable[str] = ()
    ) -> dict[str, str]:
        """The names of all parts that a record of ours names, each with the planned part it was made for.

        What a plan of format 1 names may be somebody else's object, for such a name says nothing of the content:
        only its receipts count.

        :param work: names below ``_rollup/`` to read
        :param parts: names of parts that are there; those that were split off recorded ones are recorded too
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

    def strays(
        self, found: Inventory, needed: Collection[str], plan_id: str, manifest: ManifestReader | None
    ) -> dict[str, str]:
        """The parts of ours that a plan does not need, each with the planned part it was made for.

        :param needed: names of the plan's parts
        :param manifest: what is there as the manifest
        """
        others = found.parts.keys() - needed
        if not others:
            return {}
        # The plan's own shards name nothing else, but one try may have split a part that another wrote whole.
        own = f"{plan_id}/shard-"
        files = (name for name in found.work if not name.startswith(own))
        recorded = self.recorded_parts(files, manifest, others)
        planned = {planned_name(name) for name in needed}
        recorded |= {name: planned_name(name) for name in others if planned_name(name) in planned}
        return {name: recorded[name] for name in others if name in recorded}

    def removable(
        self, found: Inventory, strays: Mapping[str, str], plan_id: str, parts: Iterable[PlannedPart]
    ) -> dict[str, str]:
        """Those strays that may be deleted: the proven plan holds every raw object that they hold.

        Planning has compared what it found with the raw hour. A stray that came since stays if no shard of a plan
        says what it holds.

        :param strays: as :meth:`strays` finds them
        :param plan_id: of the proven plan
        :param parts: of that plan
        :raises InputChangedError: if one holds raw objects that have vanished and were in no listing of this plan
        """
        plan = self.records.read_plan(self.paths.plan(plan_id)) if strays else None
        replaced = frozenset(plan.replaces if plan else ())
        late = {planned for name, planned in strays.items() if name not in replaced}
        if not late:
            return dict(strays)
        missing: set[str] = set()
        described: set[str] = set()
        for name in found.work:
            if "/shard-" in name:
                shard = self.records.read_shard(self.paths.work.child(name), self.paths.raw.key)
                for part in shard.parts if shard else ():
                    if part.name in late:
                        described.add(part.name)
                        missing.update(item.key for item in part.objects)
        for part in parts:
            missing.difference_update(item.key for item in part.objects)
        if missing:
            raise InputChangedError(
                f"{self.paths.aggregated}: a part that another run has written since the hour was planned holds "
                f"raw objects that are gone by now ({named(sorted(missing))}). Nothing is lost: clear the run "
                f"from plan_hour on, which says what can be done."
            )
        return {name: planned for name, planned in strays.items() if name in replaced or planned in described}

    def names_under_removal(self, work: Iterable[str]) -> set[str]:
        """The names of parts and of plans' files that a run is about to delete, or was when it died.

        :param work: names below ``_rollup/``
        """
        found: set[str] = set()
        for name in work:
            if name.startswith("removals/"):
                found.update(self.records.read_removal(self.paths.work.child(name)))
        return found

    def is_complete_under(self, plan_id: str) -> bool:
        """Whether the hour is complete with the parts of this plan; False means that it is being built under it.

        :raises SupersededError: if it is neither
        """
        claim = self.claim()
        if claim is not None and claim.plan_id == plan_id:
            return False
        marker = self.records.read_marker(self.paths.marker) if claim is None else None
        if marker and content_id_of(str(marker.get("plan_id"))) == content_id_of(plan_id):
            return True
        raise self.superseded(plan_id, claim)

    def check_current(self, plan_id: str, claim_id: str | None = None) -> Claim:
        """The claim of the hour, which is for this plan.

        :param claim_id: of the claim that it has to be; None for any of this plan
        :raises SupersededError: if it is not
        """
        claim = self.claim()
        if claim is None or claim.plan_id != plan_id or claim_id not in (None, claim.claim_id):
            raise self.superseded(plan_id, claim)
        return claim

    def superseded(self, plan_id: str, claim: Claim | None) -> SupersededError:
        """The error for a run whose plan is not the hour's plan any more."""
        if claim is None:
            now = "no plan is being built there now"
        elif claim.plan_id:
            now = f"plan {claim.plan_id} of run {claim.run_id!r} is being built there now"
        else:
            now = "the claim there is damaged, or another version of Log Rollup wrote it"
        return SupersededError(
            f"{self.paths.aggregated} was planned as {plan_id}, but {now}: another run has taken over the hour. "
            f"If that run is not at work any more, clear this one from plan_hour on."
        )

    # -- writing ---------------------------------------------------------------------------------------

    def begin(
        self,
        plan_id: str,
        run_id: str,
        parts: Iterable[str],
        files: Collection[str],
        seen_marker: str | None,
        seen_manifest: str | None,
    ) -> Claim | None:
        """Claim the hour for a plan whose files are written, and remove the completion marker.

        :param parts: names of the plan's parts
        :param files: names below ``_rollup/`` of the plan's files, which no other plan uses
        :param seen_marker: ETag of the marker that was there when the plan was made; None if there was none
        :param seen_manifest: as well, of the manifest
        :returns: the claim; None if something has changed since the plan was made: it has to be made again
        :raises SupersededError: if yet another run has claimed the hour meanwhile
        """
        claim, work = self._take(plan_id, run_id)
        removed = self.names_under_removal(work)
        if not work.issuperset(files) or not removed.isdisjoint([*parts, *files]):
            return None
        manifest = self._store.head(self.paths.manifest)
        if (manifest.etag if manifest else None) != seen_manifest:
            # Another run has proven the hour: its parts may hold raw objects that this plan knows nothing of.
            return None
        marker, etag = self.records.read_marker_with_etag(self.paths.marker)
        if marker is not None:
            if etag != seen_marker:
                return None
            log.info("the completion marker is removed before parts change: %s", self.paths.marker)
            self.remove_marker(etag)
        current = self.claim()
        if current is None:
            return None
        if current.claim_id != claim.claim_id:
            raise self.superseded(plan_id, current)
        return claim

    def _take(self, plan_id: str, run_id: str) -> tuple[Claim, set[str]]:
        """Claim the hour and delete what other runs have staged; the claim, and what is below ``_rollup/``."""
        claim = self.records.write_claim(self.paths.claim, plan_id, run_id, secrets.token_hex(8))
        work = self._work_names()
        self._delete_work(name for name in work if "/staged-" in name)
        return claim, work

    def remove_marker(self, etag: str) -> None:
        """Remove the completion marker that has this ETag; one that was written since stays."""
        if self._store.delete_if(self.paths.marker, etag):
            return
        if self.records.read_marker_with_etag(self.paths.marker)[1] == etag:
            # Some servers refuse the condition although it holds.
            self._store.delete(self.paths.marker.bucket, [self.paths.marker.key])

    def remove_parts(
        self, parts: Mapping[str, str], basis: Claim | None, completed: ManifestReader | None = None
    ) -> None:
        """Delete parts that neither the hour nor any run that is at work on it needs.

        :param parts: names of parts of ours, each with the planned part it was made for
        :param basis: the claim under which they were found not to be needed; None if there was none
        :param completed: where there was no claim: the manifest by which they were found not to be needed
        :raises SupersededError: if the claim or that manifest is another one by now; nothing is deleted then
        """
        keys = [self._part_key(name) for name in sorted(parts)]
        record = self._announce_removal({*parts, *parts.values()})
        claim = self.claim()
        if not _is_same(claim, basis) or (basis is None and self._completed_since(completed)):
            self._store.delete(record.bucket, [record.key])
            raise self.superseded(basis.plan_id if basis else "", claim)
        self._store.delete(self.paths.aggregated.bucket, keys)
        self._store.delete(record.bucket, [record.key])

    def _announce_removal(self, names: Collection[str]) -> Location:
        """Write a record of what is about to be deleted: a plan that is claimed from now on does not use it.

        :returns: the record, to be deleted after the last of them
        """
        record = self.paths.removals.child(f"{secrets.token_hex(8)}.json")
        self.records.write_removal(record, sorted(names))
        return record

    def _completed_since(self, completed: ManifestReader | None) -> bool:
        """Whether a whole run has come and gone since this manifest was read, and its claim with it."""
        manifest = self.records.open_manifest(self.paths.manifest)
        return (manifest and manifest.claim_id) != (completed and completed.claim_id)

    def reject_parts(
        self,
        plan_id: str,
        parts: Mapping[str, str],
        basis: Claim | None,
        completed: ManifestReader | None = None,
    ) -> None:
        """Delete parts of the plan that is being built or was completed, because they are not right.

        The completion marker goes before them, and no run can complete the hour until it is planned again.

        :param parts: as in :meth:`remove_parts`
        :raises SupersededError: if the hour has been claimed by another run meanwhile; nothing is deleted then
        """
        claim = self.claim()
        if not _is_same(claim, basis):
            raise self.superseded(plan_id, claim)
        taken, _ = self._take(plan_id, basis.run_id if basis else "validate_hour")
        if basis is None and self._completed_since(completed):
            self._store.delete_if(self.paths.claim, taken.etag)
            raise self.superseded(plan_id, None)
        marker, etag = self.records.read_marker_with_etag(self.paths.marker)
        if marker is not None:
            self.remove_marker(etag)
        if parts:
            self.remove_parts(parts, taken)
        if basis is None:
            self._store.delete_if(self.paths.claim, taken.etag)

    def _part_key(self, name: str) -> str:
        key = self.paths.part(name).key
        if self.paths.part_name_of(key) != name:
            raise ValueError(f"{key} is not the key of a part")
        return key

    def remove_overtaken(self, plan_id: str, written: Mapping[str, PlannedPart]) -> None:
        """After this run was overtaken, delete those parts it wrote that the hour does not need.

        That is known once the hour is proven and its parts hold every raw object that the deleted ones hold.
        Before, the run that took over sees them, and removes them when it has proven the hour. Whatever is unclear
        stays: readers who follow the manifest do not see it.

        :param written: names of the parts, each with the planned part it was made for
        """
        for _ in range(limits.REMOVAL_TRIES):
            claim = self.claim()
            if claim is not None and claim.plan_id == plan_id:
                return
            try:
                manifest = self.records.open_manifest(self.paths.manifest)
                strays = self._not_needed(claim, manifest, written)
            except UnreadableRecordError:
                return
            if not strays:
                return
            try:
                self.remove_parts(strays, claim, manifest)
            except SupersededError:
                continue
            log.info("%d parts of the plan that was overtaken are removed", len(strays))
            return

    def _not_needed(
        self, claim: Claim | None, manifest: ManifestReader | None, written: Mapping[str, PlannedPart]
    ) -> dict[str, str]:
        """Those of some parts whose raw objects the proven hour holds in other parts."""
        if manifest is None or (claim is not None and claim.claim_id != manifest.claim_id):
            return {}
        needed = self.recorded_parts((), manifest)
        missing = {item.key for planned in written.values() for item in planned.objects}
        for held, _ in manifest.parts():
            missing.difference_update(item.key for item in held.objects)
        return {
            name: planned.name
            for name, planned in written.items()
            if name not in needed
            and planned.name not in needed
            and missing.isdisjoint(item.key for item in planned.objects)
        }

    def publish_manifest(self, claim: Claim, body: bytes) -> None:
        """Put the manifest of a proven plan in its place, and before it remove a completion marker that is there.

        There is one if planning was interrupted behind its claim.

        :param claim: under which it was proven
        :raises SupersededError: if the hour has been claimed since
        """
        # Read before the claim: a marker that another run writes later has another ETag.
        marker, etag = self.records.read_marker_with_etag(self.paths.marker)
        if marker is not None:
            self.check_current(claim.plan_id, claim.claim_id)
            self.remove_marker(etag)
        staged = self.paths.staged_manifest(claim.plan_id, secrets.token_hex(8))
        self._publish(claim, staged, self.paths.manifest, body, GZIP)

    def publish_marker(self, claim: Claim, marker: Mapping[str, object]) -> None:
        """Put the completion marker in its place: the hour is complete from then on.

        :param claim: under which the manifest was published and found to be right
        :raises SupersededError: if the hour has been claimed since
        """
        staged = self.paths.staged_marker(claim.plan_id, secrets.token_hex(8))
        self._publish(claim, staged, self.paths.marker, marker_body(marker), JSON)

    def _publish(
        self, claim: Claim, staged: Location, target: Location, body: bytes, content_type: str
    ) -> None:
        self._store.write(staged, body, content_type)
        try:
            self.check_current(claim.plan_id, claim.claim_id)
            try:
                self._store.publish(staged, target)
            except NotFoundError:
                raise self.superseded(claim.plan_id, self.claim()) from None
            except UnsupportedOperationError:
                self._write_without_copy(claim, target, body, content_type)
        finally:
            try:
                self._store.delete(staged.bucket, [staged.key])
            except RollupError as error:
                # The next run removes it; what was published counts.
                log.info("could not remove %s: %s", staged, error)

    def _write_without_copy(self, claim: Claim, target: Location, body: bytes, content_type: str) -> None:
        """For servers that know no copy: a run that takes over meanwhile is seen by the second reading only."""
        etag = self._store.write(target, body, content_type)
        try:
            self.check_current(claim.plan_id, claim.claim_id)
        except SupersededError:
            if target == self.paths.marker:
                self.remove_marker(etag)
            raise

    def clean_up(self, plan_id: str) -> None:
        """After the hour is complete under this plan, remove what was needed only to build it.

        Of a run that has claimed the hour meanwhile, or claims it just now, nothing is removed.
        """
        claim = self.claim()
        work = {
            name for name in self._work_names() if name != "claim.json" and not name.startswith("removals/")
        }
        others = {name for name in work if "/" in name and not name.startswith(f"{plan_id}/")}
        gone = work - others
        if claim is not None and claim.plan_id != plan_id:
            log.info("plan %s is being built by now; its files are left alone", claim.plan_id or "unknown")
        elif others:
            record = self._announce_removal(others)
            if _is_same(self.claim(), claim):
                self._delete_work(others)
            self._store.delete(record.bucket, [record.key])
        self._delete_work(gone)
        if claim is not None and claim.plan_id == plan_id:
            self._store.delete_if(self.paths.claim, claim.etag)

    def _delete_work(self, names: Iterable[str]) -> None:
        self._store.delete(
            self.paths.work.bucket, [self.paths.work.child(name).key for name in sorted(names)]
        )

    def abort_uploads(self, parts: Container[str]) -> None:
        """Give up multipart uploads of these parts that a crash has left unfinished; what fails is only logged."""
        aborted = 0
        try:
            for key, upload_id in self._store.list_uploads(self.paths.aggregated):
                # Some servers list the whole bucket.
                name = self.paths.part_name_of(key)
                if name is not None and name in parts:
                    self._store.abort_upload(Location(self.paths.aggregated.bucket, key), upload_id)
                    aborted += 1
        except RollupError as error:
            log.info("could not look for multipart uploads that a crash may have left: %s", error)
        if aborted:
            log.info("gave up %d multipart uploads that a crash had left unfinished", aborted)

    def _work_names(self) -> set[str]:
        listed = list_by_token(self._store, self.paths.work)
        names = (self.paths.work_name_of(item.key) for item in listed)
        return {name for name in names if name}
