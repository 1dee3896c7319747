"""Changes the state of one hour in the bucket: claim, completion marker, manifest and which parts exist."""

import logging
import secrets
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from include.log_rollup import limits
from include.log_rollup.backoff import seconds_until_next_try
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    RollupError,
    SupersededError,
    TransientError,
    UnreadableRecordError,
    UnsupportedOperationError,
)
from include.log_rollup.hour.changes import first_keys
from include.log_rollup.hour.expiry_record import ExpiryRecord
from include.log_rollup.hour.layout import folder_of, format_hour, has_tag
from include.log_rollup.hour.manifest import ManifestReader, read_manifest_header
from include.log_rollup.hour.plan import PlannedPart, content_id_of, new_plan_id
from include.log_rollup.hour.reader import HourReader, Inventory, LateListingError
from include.log_rollup.hour.records import GZIP, JSON, Claim, CompletionMarker, PlanSummary
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.listing import list_by_token
from include.log_rollup.storage.protocol import Location, ObjectInfo

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Publication:
    """A record that is staged and then put in place by a copy."""

    staged: Location
    target: Location
    body: bytes
    content_type: str


class HourState(HourReader):
    """The state of one hour. Only this class changes what makes an hour complete.

    S3 has no locks, and not every server has conditional writes. So the order of the writes keeps competing runs
    apart. All names are below the hour's home, which without groups is the aggregated hour; parts and the records
    of a group are below the prefix of the group. ``<plan>`` is ``<content id>-<random>``:

    ==  =================  ======================================================================================
    #   step               write
    ==  =================  ======================================================================================
    1   ``plan_hour``      ``_rollup/<plan>/shard-*.json.gz``, and receipts of the parts that exist already as
                           planned
    2                      ``_rollup/<plan>/plan.json``: now the plan is whole
    3                      ``_rollup/claim.json``: the hour is being built under this plan
    4                      what other runs have staged is deleted; then the removal records, and the ETags of the
                           manifest and of ``_expired.json`` are read: a plan that names a part or a file under
                           removal, or was made with another manifest or record, is made again; but a part that
                           planning keeps because raw objects in it have expired stays under its name
    5                      ``_SUCCESS`` is removed, if it is the one that planning saw; the claim is read; then
                           the ``_SUCCESS`` of each group whose parts are not as the manifest says, or whose
                           manifest is missing
    6   ``pack_shard``     a ``_SUCCESS`` of another plan is removed, before the first part is written; with
                           groups, then the claim is read and the ``_SUCCESS`` of the groups of parts that have
                           disappeared since the hour was planned is removed
    7                      before each attempt to write a part, the claim is read; then ``part-…`` is written
    8                      the shard's receipt, after its parts; after the last part the claim is read once more
    9   ``validate_hour``  the manifest must be the one that planning saw, or of this plan; for parts that failed
                           and whose raw objects exist: a claim of no plan, so that the hour has to be planned
                           again; ``_expired.json`` is read, and parts that it names stay, unless the hour was
                           being built; parts stay whose raw objects don't exist any more; ``_SUCCESS`` removed,
                           the claim read, the ``_SUCCESS`` of their groups removed, a removal record, the claim
                           read again, the parts deleted, the record deleted
    10                     if there are stray parts, ``_expired.json`` is read, and nothing is written if it
                           names one of them; what other plans have staged is deleted; with groups, if one
                           whose manifest is written below has a ``_SUCCESS``, the hour is claimed again; a
                           ``_SUCCESS`` of the hour, and those of such groups, are removed;
                           ``_rollup/<plan>/staged-…-_manifest.jsonl.gz`` is written; the claim, ``_SUCCESS``
                           and the manifest are read: another run must not have proven the hour; the store
                           copies it to ``_manifest.jsonl.gz``; with groups, first the same for the manifests
                           of the groups that lack a manifest or a ``_SUCCESS``, or of all groups if there is
                           another plan
    11                     for groups that are gone, if their records are ours: the claim read, ``_SUCCESS``
                           removed, the claim read, the manifest removed; for stray parts: ``_expired.json`` is
                           read, and parts of format 1 that it names stay; a removal record, the claim read
                           again, the parts deleted, the record deleted
    12  ``complete_hour``  the parts are compared with the manifest; what 11 may have left is removed;
                           ``_rollup/<plan>/staged-…-_SUCCESS`` is written; the claim is read; the store copies
                           it to ``_SUCCESS``; with groups, first the same for the groups that lack a
                           ``_SUCCESS``
    13                     unfinished multipart uploads of the hour's parts are aborted; for the files of other
                           plans: a removal record, the claim read again, the files deleted, the record deleted;
                           then this plan's files are deleted, and last the claim, if it is still this plan's
    14  ``expire_hour``    ``_rollup/expiry/staged-…-_expired.json`` is written, with the parts whose raw
                           objects are about to be deleted; ``_expired.json``, the claim, ``_SUCCESS`` and the
                           manifest are read, and the store copies the staged one to ``_expired.json``, if all
                           is as it was proven; what other runs have staged there is deleted; then, and again
                           before each batch, the same four are read: raw objects are deleted only without a
                           claim, and under the manifest that was proven; after the last one ``_expired.json``
                           is replaced in the same way
    ==  =================  ======================================================================================

    Six rules follow from it:

    1. The claim comes before everything that could disturb another run. A run that claims the hour then deletes
       what others have staged.
    2. A manifest, marker or record of expired raw objects is put in place by copying a staged object. If another
       run has claimed the hour, the staged object is gone, and the copy fails, however late the request arrives.
    3. A part is named by what it holds. An overtaken run can leave a stray part, but it cannot overwrite a part.
    4. A part is deleted only after a removal record was written and the claim was read again. A planner does it
       in the other order: it writes its claim, then reads the removal records, and gives such parts other names.
       So one of the two always sees the other. Before parts of the present plan are deleted, the hour is claimed
       again, so that no run completes it meanwhile.
    5. No two plans share a file, because a plan's id has a random part. Files of other plans are deleted as in
       rule 4.
    6. Raw objects are deleted only after their parts were announced in ``_expired.json`` and the claim was read
       again. Planning, and validation before it deletes parts, do it in the other order: they write a claim, then
       read that record again. So one of the two always sees the other, and a part with announced raw objects is
       never written again or removed.
    """

    # -- who owns the hour -----------------------------------------------------------------------------

    def is_complete_under(self, plan_id: str) -> bool:
        """Whether the hour is complete with the parts of this plan; False means that it is being built under it.

        :raises SupersededError: if it is neither
        """
        claim = self.claim()
        if claim is not None and claim.plan_id == plan_id:
            return False
        marker = self.marker() if claim is None else None
        if marker and marker.content and content_id_of(marker.content.plan_id) == content_id_of(plan_id):
            return True
        raise self.overtaken(plan_id, claim)

    def assert_current(self, plan_id: str, claim_id: str | None = None) -> Claim:
        """Return the claim of the hour, which must be for this plan.

        :param claim_id: the claim it must be; None accepts any claim of the plan
        :raises SupersededError: if it is another one
        """
        claim = self.claim()
        if claim is None or claim.plan_id != plan_id or claim_id not in (None, claim.claim_id):
            raise self.overtaken(plan_id, claim)
        return claim

    def overtaken(self, plan_id: str, claim: Claim | None) -> SupersededError:
        """The error for a run whose plan is no longer the hour's plan.

        :param plan_id: of that run; empty if it had no plan
        :param claim: the present claim
        """
        planned = f"the hour was planned as {plan_id}" if plan_id else "the hour was complete"
        if claim is None:
            now = "no plan is being built there now"
        elif claim.plan_id:
            now = f"plan {claim.plan_id} of run {claim.run_id!r} is being built there now"
        else:
            now = "the claim there is damaged, or another version of Log Rollup wrote it"
        return self.superseded(
            f"{planned}, but {now}: another run has taken over the hour",
            "if that run is not at work any more, clear this one from plan_hour on",
        )

    # -- plan_hour and pack_shard ----------------------------------------------------------------------

    def begin(
        self,
        plan_id: str,
        run_id: str,
        parts: Iterable[str],
        files: Collection[str],
        seen_marker: str | None,
        seen_manifest: str | None,
        seen_expiry: str | None = None,
        changed_groups: Collection[str] = (),
    ) -> Claim | None:
        """Claim the hour for a plan whose files are written, and remove the completion marker.

        :param parts: names of the plan's parts, except those that were under removal when it was made and stay
            nevertheless, because raw objects in them have expired
        :param files: names below ``_rollup/`` of the plan's files
        :param seen_marker: ETag of the marker when the plan was made; None if there was none
        :param seen_manifest: the same for the manifest
        :param seen_expiry: the same for the record of expired raw objects
        :param changed_groups: folders of the groups whose parts are not as the manifest says
        :returns: the claim; None if the hour has changed since the plan was made, so that it must be planned again
        :raises LateListingError: the same, if a listing lacks files of the plan
        :raises SupersededError: if another run has claimed the hour meanwhile
        """
        claim, work = self._claim_hour(plan_id, run_id)
        removed = self.names_under_removal(work)
        if not removed.isdisjoint([*parts, *files]):
            return None
        if not work.issuperset(files):
            raise LateListingError
        if self._etag_of(self.paths.manifest) != seen_manifest:
            # Another run has proven the hour: its parts may hold raw objects that are not in this plan.
            return None
        has_expiry = seen_manifest is not None or seen_expiry is not None
        if has_expiry and self._etag_of(self.paths.expiry_record) != seen_expiry:
            # Raw objects are being deleted: their parts must be kept.
            return None
        marker = self.marker()
        if marker is not None:
            if marker.etag != seen_marker:
                return None
            log.info("removing the completion marker before parts change: %s", self.paths.marker)
            self.remove_marker(marker.etag)
        group_markers = self._group_markers(changed_groups)
        current = self.claim()
        if current is None:
            return None
        if current.claim_id != claim.claim_id:
            raise self.overtaken(plan_id, current)
        self._remove_existing(group_markers)
        return claim

    def prepare_packing(self, plan_id: str, lost: Iterable[str] = ()) -> bool:
        """Remove the completion marker of another plan, before parts are written under this plan.

        :param lost: names of parts that existed when the hour was planned and have to be written again; the
            completion markers of their groups are removed too
        :returns: False if another run has completed the hour under this very plan: nothing may be packed then
        :raises SupersededError: if the hour is being built under another plan
        """
        marker = self.marker()
        if marker is not None and marker.is_of(plan_id):
            # plan_hour has removed every earlier marker.
            return False
        if marker is not None:
            # The marker was read before the claim, so it is older than this plan's claim.
            self.assert_current(plan_id)
            self.remove_marker(marker.etag)
        self._remove_group_markers(plan_id, lost)
        return True

    def remove_overtaken(self, plan_id: str, written: Mapping[str, PlannedPart]) -> None:
        """Delete the parts that this overtaken run wrote and that the hour does not need.

        Deletes only if the hour is proven and its parts hold every raw object of the deleted parts. Before that,
        the run that took over removes them itself after its proof. In doubt a part stays; it is not in the
        manifest.

        :param written: names of the parts, each with the planned part it was made for
        """
        for _ in range(limits.REMOVAL_TRIES):
            claim = self.claim()
            if claim is not None and claim.plan_id == plan_id:
                return
            try:
                manifest = self.manifest()
                strays = self._not_needed(claim, manifest, written)
                if not strays:
                    return
                self.remove_parts(strays, claim, manifest)
            except UnreadableRecordError:
                return
            except SupersededError:
                continue
            log.info("removed %d stray parts of the overtaken plan %s", len(strays), plan_id)
            return

    def _not_needed(
        self, claim: Claim | None, manifest: ManifestReader | None, written: Mapping[str, PlannedPart]
    ) -> dict[str, str]:
        """Those of some parts whose raw objects are all in other parts of the proven hour."""
        if manifest is None or (claim is not None and claim.claim_id != manifest.claim_id):
            return {}
        needed = self.recorded_parts((), manifest)
        gone = self._not_held(written.values(), (held for held, _ in manifest.parts()))
        return {
            name: planned.name
            for name, planned in written.items()
            if name not in needed
            and planned.name not in needed
            and gone.isdisjoint(item.key for item in planned.objects)
        }

    # -- validate_hour ---------------------------------------------------------------------------------

    def assert_planned_on_manifest(self, plan: PlanSummary) -> None:
        """Make sure that no other run has proven the hour since a plan was made.

        :meth:`begin` does so too, but the claim stays in place if planning then ends with an error or dies.

        :raises SupersededError: if one has: its parts may hold raw objects that are not in this plan
        """
        if plan.seen_manifest is None:
            return
        if self._etag_of(self.paths.manifest) in (None, plan.seen_manifest):
            return
        header = read_manifest_header(self._store, self.paths.manifest)
        if header is not None and header.get("plan_id") != plan.plan_id:
            raise self.superseded(f"another run has proven the hour since plan {plan.plan_id} was made")

    def remove_parts(
        self, parts: Mapping[str, str], basis: Claim | None, completed: ManifestReader | None = None
    ) -> None:
        """Delete stray parts, which neither the hour nor a run that is at work on it needs.

        Without a claim, parts whose raw objects expire stay. Under a claim no deletion is at work, and validation
        has made sure that none was announced before, see :meth:`refuse_announced`. Names of format 1 don't depend
        on the content, so parts with such a name stay in any case.

        :param parts: their names, each with the name of the planned part it was made for
        :param basis: the claim under which they were found to be stray; None if there was none
        :param completed: if there was no claim: the manifest that was compared with
        :raises SupersededError: if the claim or that manifest has changed; nothing is deleted then
        :raises UnreadableRecordError: if the record of expired raw objects cannot be read
        """
        kept = self._announced(parts)
        if basis is not None:
            kept = {name for name in kept if not has_tag(name)}
        if kept:
            log.warning("%d parts stay, because raw objects in them expire: %s", len(kept), sorted(kept))
        removed = {name: planned for name, planned in parts.items() if name not in kept}
        if removed:
            self._delete_parts(removed, basis, completed)

    def refuse_announced(self, parts: Iterable[str], claim: Claim, listed: Inventory) -> None:
        """Refuse to publish a manifest without parts whose raw objects have been announced since planning.

        Read under the claim: a deletion that announces parts later finds the claim, and deletes nothing.

        :param parts: names of the stray parts
        :param listed: the aggregated hour, listed under the claim
        :raises InputChangedError: if there are any
        :raises TransientError: if the record is listed, but not found
        :raises UnreadableRecordError: if the record of expired raw objects cannot be read
        """
        manifest = self.manifest()
        if manifest is not None and manifest.claim_id == claim.claim_id:
            # It was published before, under this claim.
            return
        expiry = self.expiry_record()
        if expiry is None and listed.expiry_etag is not None:
            raise TransientError(
                f"{self.paths.expiry_record} is listed, but it was not found when it was read"
            )
        announced = sorted(name for name in parts if expiry and name in expiry.parts and has_tag(name))
        if announced:
            raise InputChangedError(
                f"hour {format_hour(self.paths.hour)}: plan {claim.plan_id} replaces {len(announced):,} parts "
                f"under {self.paths.aggregated} whose raw objects have been announced for deletion since it was "
                f"made ({first_keys(announced)}). Nothing is lost: clear the run from plan_hour on, which keeps "
                f"these parts."
            )

    def _announced(self, parts: Mapping[str, str]) -> set[str]:
        """Names of those parts whose raw objects have been announced for deletion.

        :param parts: as in :meth:`remove_parts`
        """
        expiry = self.expiry_record()
        announced = expiry.parts.keys() if expiry else frozenset()
        return {name for name, planned in parts.items() if name in announced or planned in announced}

    def _delete_parts(
        self, parts: Mapping[str, str], basis: Claim | None, completed: ManifestReader | None = None
    ) -> None:
        """Delete parts; parameters and errors as in :meth:`remove_parts`."""
        keys = [self._part_key(name) for name in sorted(parts)]
        record = self._announce_removal({*parts, *parts.values()})
        claim = self.claim()
        if not _is_same(claim, basis) or (basis is None and self._completed_since(completed)):
            self._store.delete(record.bucket, [record.key])
            raise self.overtaken(basis.plan_id if basis else "", claim)
        self._store.delete(self.paths.base.bucket, keys)
        self._store.delete(record.bucket, [record.key])

    def reject_parts(
        self,
        plan_id: str,
        parts: Mapping[str, str],
        basis: Claim | None,
        completed: ManifestReader | None = None,
        without_raw_objects: Callable[[Mapping[str, str], Collection[str]], Collection[str]] | None = None,
    ) -> set[str]:
        """Delete parts of the present plan whose proof has failed.

        The completion marker is removed before them, and no run can complete the hour until it is planned again.
        Parts whose raw objects don't all exist stay: they may hold the last copy, or another run that had claimed
        the hour in between may rely on them. Those whose raw objects were announced for deletion stay in any case,
        unless the hour was being built, so that no deletion is at work.

        :param parts: as in :meth:`remove_parts`
        :param without_raw_objects: asks the store which of these parts have raw objects that don't exist any more;
            takes the names of those that were announced, too. Without it, only announced parts stay
        :returns: names of those that stay
        :raises SupersededError: if another run has claimed the hour meanwhile; nothing is deleted then
        """
        claim = self.claim()
        if not _is_same(claim, basis):
            raise self.overtaken(plan_id, claim)
        # For a plan that does not exist: no other task can go on with this claim.
        claimed, _ = self._claim_hour(
            new_plan_id(content_id_of(plan_id)), basis.run_id if basis else "validate_hour"
        )
        if basis is None and self._completed_since(completed):
            self._release(claimed)
            raise self.overtaken(plan_id, None)
        # Read after the claim was written, as in planning.
        kept = self._announced(parts)
        marker = self.marker()
        if without_raw_objects is not None:
            gone = set(without_raw_objects(parts, kept))
            kept = gone if basis is not None and marker is None else kept | gone
        rejected = {name: planned for name, planned in parts.items() if name not in kept}
        if marker is not None:
            self.remove_marker(marker.etag)
        self._remove_group_markers(claimed.plan_id, rejected, claimed.claim_id)
        if rejected:
            self._delete_parts(rejected, claimed)
        if basis is None:
            self._release(claimed)
        return kept

    def prepare_manifests(self, claim: Claim, found: Inventory, folders: Sequence[str]) -> Claim:
        """Remove what must not be next to the manifests that a run is about to write, whenever it was written.

        That is what other plans have staged, the completion marker of the hour, and those of the groups whose
        manifests are written. If a group has one, the hour is claimed again for the same plan, so that another try
        of this plan can't complete the hour meanwhile.

        :param claim: under which the hour was proven
        :param found: the hour as it was listed for the proof
        :param folders: of the groups whose manifests are written
        :returns: the claim under which the manifests have to be written
        :raises SupersededError: if another run has claimed the hour, or has proven it since
        """
        own = f"{claim.plan_id}/"
        staged = {name for name in self._work_names() if "/staged-" in name and not name.startswith(own)}
        self.assert_current(claim.plan_id, claim.claim_id)
        # From here on, no run of another plan completes anything: it stages a marker, then reads the claim.
        self._delete_work(staged)
        group_markers = self._group_markers(folders)
        if group_markers:
            self.assert_current(claim.plan_id, claim.claim_id)
            claim = self._claim_again(claim, found.manifest_etag)
            group_markers = self._group_markers(folders)
        marker = self.marker()
        if marker is not None or group_markers:
            # Read after them: a marker that another run writes later has another ETag.
            self.assert_current(claim.plan_id, claim.claim_id)
        if marker is not None:
            self.remove_marker(marker.etag)
        self._remove_existing(group_markers)
        return claim

    def _claim_again(self, claim: Claim, seen_manifest: str | None) -> Claim:
        """Claim the hour again for the same plan: another try of it can't complete the hour meanwhile.

        :param claim: the present claim
        :param seen_manifest: ETag of the manifest when the hour was listed; None if there was none
        :returns: the new claim
        :raises SupersededError: if another run has claimed the hour, or has proven it since
        """
        claimed, work = self._claim_hour(claim.plan_id, claim.run_id)
        if f"{claim.plan_id}/plan.json" not in work or self._etag_of(self.paths.manifest) != seen_manifest:
            self._release(claimed)
            raise self.overtaken(claim.plan_id, None)
        return claimed

    def write_manifest(
        self, claim: Claim, body: bytes, seen_manifest: str | None, groups: Mapping[str, bytes] | None = None
    ) -> None:
        """Put the manifests of a proven plan in place, that of the hour last.

        :param claim: from :meth:`prepare_manifests`
        :param seen_manifest: ETag of the manifest when the hour was listed for the proof; None if there was none
        :param groups: the manifests of groups, by folder
        :raises SupersededError: if the hour has been claimed or proven since
        """
        for_groups = [
            _Publication(self._staged_manifest(claim), self.paths.group_manifest(folder), group_body, GZIP)
            for folder, group_body in sorted((groups or {}).items())
        ]
        for_hour = _Publication(self._staged_manifest(claim), self.paths.manifest, body, GZIP)
        for publications in (for_groups, [for_hour]):
            self._publish(claim, publications, lambda one: self._assert_not_proven(one, seen_manifest))

    def remove_gone_groups(self, claim: Claim, found: Inventory, folders: Collection[str]) -> None:
        """Remove marker and manifest of groups that the hour does not have any more, if they are of this stream.

        :param claim: under which the hour was proven
        :param found: the hour as it was listed
        :param folders: of the groups that the hour has
        :raises SupersededError: if the hour has been claimed since
        """
        gone = found.group_manifests.difference(folders)
        foreign = self.foreign_group_records(gone, found)
        if foreign:
            log.warning(
                "%d objects named like records of groups are not of this stream, such as %s",
                len(foreign), foreign[0],
            )  # fmt: skip
        # The markers first: a group with a marker has a manifest.
        for place in (self.paths.group_marker, self.paths.group_manifest):
            ours = [target for target in map(place, sorted(gone)) if target not in foreign]
            present = self._existing(ours)
            if present:
                self.assert_current(claim.plan_id, claim.claim_id)
                self._remove_existing(present)

    # -- complete_hour ---------------------------------------------------------------------------------

    def complete(
        self, claim: Claim, marker: CompletionMarker, groups: Mapping[str, CompletionMarker] | None = None
    ) -> None:
        """Put the completion markers in place, that of the hour last: from then on the hour is complete.

        :param claim: under which the manifest was written
        :param groups: the markers of groups, by folder
        :raises SupersededError: if the hour has been claimed since
        """
        for_groups = [
            _Publication(
                self._staged_marker(claim), self.paths.group_marker(folder), group_marker.to_bytes(), JSON
            )
            for folder, group_marker in sorted((groups or {}).items())
        ]
        self._publish(claim, for_groups, self._assert_manifest_of)
        for_hour = _Publication(self._staged_marker(claim), self.paths.marker, marker.to_bytes(), JSON)
        self._publish(claim, [for_hour], self._assert_manifest_of)

    def abort_uploads(self, parts: Container[str]) -> None:
        """Abort unfinished multipart uploads of these parts, which a crash has left; errors are only logged."""
        aborted = 0
        try:
            for key, upload_id in self._store.list_uploads(self.paths.base):
                # Some servers list the uploads of the whole bucket.
                name = self.paths.part_name_of(key)
                if name is not None and name in parts:
                    self._store.abort_upload(Location(self.paths.base.bucket, key), upload_id)
                    aborted += 1
        except RollupError as error:
            log.info("could not abort multipart uploads that a crash may have left: %s", error)
        if aborted:
            log.info("aborted %d multipart uploads that a crash had left unfinished", aborted)

    def clean_up(self, plan_id: str) -> None:
        """Remove the files below ``_rollup/`` of an hour that is complete under this plan, the claim last.

        If another run has claimed the hour meanwhile, nothing of that run is removed.
        """
        claim = self.claim()
        work = {
            name for name in self._work_names() if name != "claim.json" and not name.startswith("removals/")
        }
        others = {name for name in work if "/" in name and not name.startswith(f"{plan_id}/")}
        if claim is not None and claim.plan_id != plan_id:
            log.info("plan %s is being built now; its files are left alone", claim.plan_id or "unknown")
        elif others:
            record = self._announce_removal(others)
            if _is_same(self.claim(), claim):
                self._delete_work(others)
            self._store.delete(record.bucket, [record.key])
        self._delete_work(work - others)
        if claim is not None and claim.plan_id == plan_id:
            self._release(claim)

    # -- expire_hour -----------------------------------------------------------------------------------

    def announce_expiry(
        self, record: ExpiryRecord, seen_record: str | None, seen_manifest: str
    ) -> ExpiryRecord:
        """Announce that raw objects are about to be deleted. Planning keeps their parts from then on.

        :param seen_record: ETag of the record that was there when the raw hour was listed; None if there was none
        :param seen_manifest: ETag of the manifest whose parts were proven
        :returns: the record as it was written
        :raises SupersededError: if the hour has changed since; no raw object may be deleted then
        """
        # Compared after the raw hour was listed: objects that another run has deleted before are in this record.
        # A record announced under a claim could name parts that the new plan replaces.
        written = self._publish_expiry(record, seen_record, lambda: self._assert_complete(seen_manifest))
        # What other runs have staged could still replace this record; afterwards it is read again.
        self._delete_work(name for name in self._work_names() if name.startswith("expiry/"))
        self.assert_expirable(written, seen_manifest)
        return written

    def finish_expiry(
        self, record: ExpiryRecord, announced: ExpiryRecord, seen_manifest: str
    ) -> ExpiryRecord:
        """Record what was deleted.

        :param announced: from :meth:`announce_expiry`
        :param seen_manifest: as in :meth:`announce_expiry`
        :returns: the record as it was written
        :raises SupersededError: if the hour has changed since: a plan may keep a part because it was announced
        """
        return self._publish_expiry(
            record, announced.etag, lambda: self.assert_expirable(announced, seen_manifest)
        )

    def _publish_expiry(
        self, record: ExpiryRecord, seen: str | None, assert_undisturbed: Callable[[], None]
    ) -> ExpiryRecord:
        """Put a record of expired raw objects in place of the one with this ETag.

        It is copied there, so that a run that writes the record or claims the hour can prevent it: a request that
        the server carries out late does nothing.

        :param assert_undisturbed: called after the record was staged
        """
        target = self.paths.expiry_record
        one = _Publication(self.paths.staged_expiry(secrets.token_hex(8)), target, record.to_bytes(), JSON)
        with self._staged([one]):
            if self._etag_of(target) != seen:
                raise self._expiry_overtaken("another run has written the record of expired raw objects")
            assert_undisturbed()
            try:
                self._store.publish(one.staged, target)
            except NotFoundError:
                raise self._expiry_overtaken("another run has taken over the hour") from None
            except UnsupportedOperationError:
                return replace(record, etag=self._store.write(target, one.body, JSON))
        written = self.expiry_record()
        if written is None or written.to_bytes() != one.body:
            raise self._expiry_overtaken("another run has written the record of expired raw objects")
        return written

    def assert_expirable(self, record: ExpiryRecord, seen_manifest: str) -> None:
        """Make sure that announced raw objects may be deleted now.

        :param record: from :meth:`announce_expiry`
        :param seen_manifest: ETag of the manifest whose parts were proven
        :raises SupersededError: if the hour has changed since
        """
        if self._etag_of(self.paths.expiry_record) != record.etag:
            raise self._expiry_overtaken("another run has written the record of expired raw objects")
        self._assert_complete(seen_manifest)

    def _assert_complete(self, seen_manifest: str) -> None:
        """Make sure that no run has claimed the hour, and that it is complete with this manifest."""
        if self.claim() is not None:
            raise self._expiry_overtaken("a run has claimed the hour")
        if self._store.head(self.paths.marker) is None:
            raise self._expiry_overtaken("the hour is not complete any more")
        if self._etag_of(self.paths.manifest) != seen_manifest:
            raise self._expiry_overtaken("the manifest is not the one whose parts were proven")

    def _expiry_overtaken(self, problem: str) -> SupersededError:
        return self.superseded(
            f"{problem}, so no more raw objects are deleted", "the next run of log_rollup_expire continues"
        )

    # -- used by several steps -------------------------------------------------------------------------

    def remove_marker(self, etag: str) -> None:
        """Remove the completion marker with this ETag; one that was written since stays."""
        self._remove_if(self.paths.marker, etag)

    def _remove_if(self, target: Location, etag: str) -> None:
        if self._store.delete_if(target, etag):
            return
        head = self._store.head(target)
        if head is not None and head.etag == etag:
            # Some servers refuse the condition although it holds.
            self._store.delete(target.bucket, [target.key])

    def _existing(self, targets: Iterable[Location]) -> list[tuple[Location, str]]:
        """Those of some records of groups that exist, each with its ETag.

        The caller then reads the claim, and removes exactly these: what a later run writes has another ETag.
        """
        places = list(targets)
        heads = self._for_each(self._store.head, places)
        return [(place, head.etag) for place, head in zip(places, heads, strict=True) if head is not None]

    def _remove_existing(self, found: Sequence[tuple[Location, str]]) -> None:
        self._for_each(lambda one: self._remove_if(*one), found)

    def _remove_group_markers(self, plan_id: str, parts: Iterable[str], claim_id: str | None = None) -> None:
        """Remove the completion markers of the groups of some parts, before these change.

        :param claim_id: the claim that the hour must have; None accepts any claim of the plan
        :raises SupersededError: if it has another one
        """
        folders = {folder_of(name) for name in parts} - {""}
        found = self._group_markers(folders)
        if found:
            self.assert_current(plan_id, claim_id)
            self._remove_existing(found)

    def _etag_of(self, target: Location) -> str | None:
        head = self._store.head(target)
        return head.etag if head else None

    def _group_markers(self, folders: Iterable[str]) -> list[tuple[Location, str]]:
        return self._existing(map(self.paths.group_marker, sorted(folders)))

    def _for_each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        return list(in_parallel(self._store.control_connections, "log-rollup-groups", function, items))

    def _staged_manifest(self, claim: Claim) -> Location:
        return self.paths.staged_manifest(claim.plan_id, secrets.token_hex(8))

    def _staged_marker(self, claim: Claim) -> Location:
        return self.paths.staged_marker(claim.plan_id, secrets.token_hex(8))

    def _claim_hour(self, plan_id: str, run_id: str) -> tuple[Claim, set[str]]:
        """Claim the hour, then delete what other runs have staged.

        :returns: the claim, and the names below ``_rollup/``
        """
        claim = self.records.write_claim(self.paths.claim, plan_id, run_id, secrets.token_hex(8))
        work = self._names_listed_with(claim)
        self._delete_work(name for name in work if "/staged-" in name)
        return claim, work

    def _names_listed_with(self, claim: Claim) -> set[str]:
        """The names below ``_rollup/`` in a listing that has this claim, and so all that was written before it.

        A store that lists late gets some time for it.
        """
        for tried in range(1, limits.LATE_LISTING_TRIES + 1):
            listed = list(list_by_token(self._store, self.paths.work))
            etag = next((item.etag for item in listed if item.key == self.paths.claim.key), None)
            is_listed = etag is not None and (etag == claim.etag or not etag or not claim.etag)
            if is_listed or tried == limits.LATE_LISTING_TRIES or not _is_same(self.claim(), claim):
                break
            time.sleep(seconds_until_next_try(limits.LATE_LISTING_FIRST_WAIT_SECONDS, tried))
        return self._names_of(listed)

    def _release(self, claim: Claim) -> None:
        """Remove this claim; one that another run has written since stays.

        Some servers ignore the condition of a delete, so the claim is read just before.
        """
        if _is_same(self.claim(), claim):
            self._remove_if(self.paths.claim, claim.etag)

    def _announce_removal(self, names: Collection[str]) -> Location:
        """Write a removal record: plans that are claimed from now on don't use these names.

        :returns: the record, which the caller deletes after the objects
        """
        record = self.paths.removals.child(f"{secrets.token_hex(8)}.json")
        self.records.write_removal(record, sorted(names))
        return record

    def _completed_since(self, completed: ManifestReader | None) -> bool:
        """Whether another run has proven the hour since this manifest was read."""
        manifest = self.manifest()
        return (manifest and manifest.claim_id) != (completed and completed.claim_id)

    def _assert_not_proven(self, claim: Claim, seen_manifest: str | None) -> None:
        """Refuse to replace the manifest of a complete hour, or one that another run has written.

        :param seen_manifest: ETag of the manifest when the hour was listed; None if there was none
        :raises SupersededError: if there is a completion marker, which this run has removed before, or if the
            manifest is neither that one nor of this claim
        """
        if self._store.head(self.paths.marker) is not None:
            raise self.superseded(f"another run has completed the hour since plan {claim.plan_id} was proven")
        if self._etag_of(self.paths.manifest) != seen_manifest:
            self._assert_manifest_of(claim)

    def _assert_manifest_of(self, claim: Claim) -> None:
        """Refuse to go on with the manifest of another run.

        :raises SupersededError: if the manifest was not written under this claim
        """
        header = read_manifest_header(self._store, self.paths.manifest)
        if header is None or header.get("claim_id", "") != claim.claim_id:
            raise self.superseded(f"another run has proven the hour since plan {claim.plan_id} was proven")

    def _publish(
        self,
        claim: Claim,
        publications: Sequence["_Publication"],
        assert_undisturbed: Callable[[Claim], None],
    ) -> None:
        """Write staged records, read the claim, and have the store copy the records to their places.

        :param assert_undisturbed: looks for traces of a later run, in case the server has carried out the PUT of
            this claim a second time, after the other run
        """
        if not publications:
            return
        with self._staged(publications):
            self.assert_current(claim.plan_id, claim.claim_id)
            assert_undisturbed(claim)
            self._for_each(lambda one: self._put_in_place(claim, one), publications)

    @contextmanager
    def _staged(self, publications: Sequence["_Publication"]) -> Iterator[None]:
        """Write staged records, and delete them at the end of the block."""
        try:
            self._for_each(self._stage, publications)
            yield
        finally:
            try:
                self._store.delete(self.paths.home.bucket, [one.staged.key for one in publications])
            except RollupError as error:
                # Only the copy matters; the next run removes this one.
                log.info("could not remove %s: %s", publications[0].staged, error)

    def _stage(self, one: "_Publication") -> None:
        self._store.write(one.staged, one.body, one.content_type)

    def _put_in_place(self, claim: Claim, one: "_Publication") -> None:
        try:
            self._store.publish(one.staged, one.target)
        except NotFoundError:
            raise self.overtaken(claim.plan_id, self.claim()) from None
        except UnsupportedOperationError:
            self._write_without_copy(claim, one)

    def _write_without_copy(self, claim: Claim, one: "_Publication") -> None:
        """For servers without CopyObject: a run that takes over meanwhile is only noticed after the write."""
        etag = self._store.write(one.target, one.body, one.content_type)
        try:
            self.assert_current(claim.plan_id, claim.claim_id)
        except SupersededError:
            if one.content_type == JSON:
                # A completion marker.
                self._remove_if(one.target, etag)
            raise

    def _part_key(self, name: str) -> str:
        key = self.paths.part(name).key
        if self.paths.part_name_of(key) != name:
            raise ValueError(f"{key} is not the key of a part")
        return key

    def _delete_work(self, names: Iterable[str]) -> None:
        self._store.delete(
            self.paths.work.bucket, [self.paths.work.child(name).key for name in sorted(names)]
        )

    def _work_names(self) -> set[str]:
        return self._names_of(list_by_token(self._store, self.paths.work))

    def _names_of(self, listed: Iterable[ObjectInfo]) -> set[str]:
        names = (self.paths.work_name_of(item.key) for item in listed)
        return {name for name in names if name}


def _is_same(one: Claim | None, other: Claim | None) -> bool:
    """Whether two readings found the same claim, or none both times."""
    return (one and one.claim_id) == (other and other.claim_id)
