"""Checks the invariants of the hour after every change below the aggregated prefix.

It shares no code with the pipeline, and reads the server's memory instead of making requests. It checks after
every change because readers may read at any time.
"""

import json
import re
from collections.abc import Sequence

from simulation.completion_checker import CompletionChecker
from simulation.hour_model import (
    FRAME_MAGIC,
    Hour,
    Manifest,
    Version,
    content_of,
    is_too_large,
    read_gzip_json,
)
from simulation.scheduler import EXPIRE, Scheduler, Task
from simulation.server import FOREIGN, INTERFERENCE, Server, ServerObject, Upload

# The name of a part that was split off a compressed part.
_SPLIT_OFF_COMPRESSED = re.compile(r"part-\d+-[0-9a-f]{8}-[0-9a-f]{8}")


class InvariantChecker:
    """Collects violations in ``problems``; the first one ends the scenario.

    :param server: has the parts and records
    :param source: has the raw objects; may be the same
    """

    def __init__(self, server: Server, source: Server, scheduler: Scheduler, hour: Hour) -> None:
        self.problems: list[str] = []
        self.hour = hour
        # The step at which each key was damaged, until a task writes it again.
        self.damaged: dict[str, int] = {}
        # Key, ETag and bytes (also those of the content) of deleted raw objects that a recorded part held at that
        # moment. No task may delete the last part that holds them.
        self.last_copies: dict[tuple[str, str], Sequence[bytes]] = {}
        # Keys that the pipeline has written: it may delete them, even if another program writes them later.
        self.our_keys: set[str] = set()
        # Contents of damaged parts.
        self.damaged_bodies: list[bytes] = []
        self.records_damaged = False
        self.older_expired = False
        # Without CopyObject, an overtaken run may leave a wrong marker until it has read the claim again,
        # and its late PUT may overwrite a newer manifest.
        self.has_copy_object = server.quirks.copies
        self.manifest_overtaken = False
        self._server = server
        self._source = source
        self._scheduler = scheduler
        self.completion = CompletionChecker(server, source, scheduler, hour, self.damaged)
        source.on_change = self._on_source_change
        server.on_change = self._on_change
        server.on_abort = self._on_abort

    # -- changes ---------------------------------------------------------------------------------------

    def _on_change(
        self, key: str, before: ServerObject | None, now: ServerObject | None, task: Task | None
    ) -> None:
        """Check one change."""
        hour = self.hour
        if now is not None and now.author not in INTERFERENCE:
            self.our_keys.add(key)
        if task is not None and task.kind == EXPIRE and self._is_of_expiry(key, before, now, task):
            return
        if task is not None:
            self.damaged.pop(key, None)
            if not hour.is_aggregated(key):
                self.fail(f"{task.name} changed {key}, which is not below {', '.join(hour.prefixes)}")
            if before is not None and before.author == FOREIGN:
                self.fail(f"{task.name} changed {key}, which belongs to another program")
            if now is not None and hour.is_part_like(key) and self._lacks_storage_class(now):
                self.fail(f"{task.name} wrote {key} without its storage class")
        if not hour.is_aggregated(key):
            return
        if before is not None and task is not None:
            self._check_last_copies(f"after {task.name} changed {key.removeprefix(hour.base)}")
        if key == hour.manifest and now is not None and task is not None and not self.has_copy_object:
            self.manifest_overtaken |= not self._has_current_claim(now)
        # A part that is written again with the same bytes changes nothing.
        is_changed = now is not None and (before is None or before.body != now.body)
        if is_changed and task is not None and task.plan_id and hour.is_part_like(key):
            self._check_markers_before_part(key, task)
        if key in hour.records or hour.is_part_like(key):
            author = task.name if task is not None else "another program"
            self._check_completion(key, f"after {author} changed {key.removeprefix(hour.base)}")

    def _on_source_change(
        self, key: str, before: ServerObject | None, now: ServerObject | None, task: Task | None
    ) -> None:
        """Check one change in the store of the raw objects, if it is another one than that of the parts."""
        if task is not None and not (task.kind == EXPIRE and self._is_of_expiry(key, before, now, task)):
            self.fail(f"{task.name} changed {key} in the store of the raw objects")

    # -- expiry ----------------------------------------------------------------------------------------

    def _is_of_expiry(
        self, key: str, before: ServerObject | None, now: ServerObject | None, task: Task
    ) -> bool:
        """Check a change that only the expiry makes; returns False if it is another one."""
        hour = self.hour
        if key == hour.expiry_record and now is not None:
            self._note_announcement(now)
            return True
        if before is None or now is not None or not hour.is_raw(key):
            return False
        self._check_expired(before, task)
        return True

    def _note_announcement(self, record: ServerObject) -> None:
        """Note which parts a record of expired raw objects names: no run may change them."""
        manifest = self._manifest()
        rows = manifest.by_part() if manifest is not None else {}
        known = self.hour.announced
        announced = {}
        for name, part in json.loads(record.body)["parts"].items():
            keys = {row.key for row in rows[name]} if name in rows else known.get(name, set())
            announced[name] = keys - set(part["kept"])
        self.hour.announced = announced

    def _check_expired(self, gone: ServerObject, task: Task) -> None:
        """Check that a proven part holds a raw object that the expiry has just deleted."""
        hour = self.hour
        version = next(
            (one for one in hour.history.get(gone.key, ()) if one.etag == gone.etag and one.end is None), None
        )
        if version is None:
            self.fail(f"{task.name} deleted {gone.key}, which no producer wrote")
            return
        version.end = self._scheduler.step
        manifest = self._manifest()
        is_damaged = self.damaged.get(hour.manifest, -1) >= task.started
        is_newest = False
        for name, rows in (manifest.by_part() if manifest is not None else {}).items():
            objects = [(row.key, row.etag) for row in rows]
            if gone.key not in {row.key for row in rows}:
                continue
            is_newest = (gone.key, gone.etag) in objects
            place = hour.base + name
            is_damaged = is_damaged or self.damaged.get(place, -1) >= task.started
            stored = self._server.objects.get(place)
            if is_newest and stored is not None and self.holds(name, stored, objects):
                is_damaged = True
        if not is_damaged:
            self.fail(f"{task.name} deleted {gone.key}, which no proven part holds")
        if not is_newest:
            # A delete that was carried out late hit an earlier version, which a producer had restored.
            self.older_expired = True
        hour.expired.add((gone.key, gone.etag))
        self.raw_object_removed(version)

    def held_raw_objects(self) -> list[str]:
        """Keys of the raw objects that exist as the last part with their key holds them."""
        manifest = self._manifest()
        newest = {row.key: row.etag for row in manifest.rows} if manifest is not None else {}
        return [
            key
            for key, etag in newest.items()
            if key in self._source.objects and self._source.objects[key].etag == etag
        ]

    def _manifest(self) -> Manifest | None:
        stored = self._server.objects.get(self.hour.manifest)
        return self.completion.read_manifest(stored) if stored is not None else None

    def _has_current_claim(self, manifest: ServerObject) -> bool:
        """Whether a manifest was written under the current claim."""
        read = self.completion.read_manifest(manifest)
        claim = self._server.objects.get(self.hour.claim)
        try:
            current = json.loads(claim.body)["claim_id"] if claim else None
        except (ValueError, LookupError, TypeError):
            return False
        return read is not None and current == read.header.get("claim_id")

    def _on_abort(self, upload: Upload, task: Task | None) -> None:
        """Check an aborted upload."""
        if upload.author == FOREIGN and task is not None:
            self.fail(f"{task.name} aborted the upload of {upload.key}, which belongs to another program")

    @property
    def drops_vanished(self) -> bool:
        """Whether a run may drop raw objects that have vanished."""
        return self.hour.drops_vanished

    def fail(self, problem: str) -> None:
        """Add a violation; it ends the scenario."""
        self.problems.append(problem)
        self._scheduler.stopped = True

    def _lacks_storage_class(self, stored: ServerObject) -> bool:
        wanted = self.hour.storage_class
        return wanted is not None and stored.headers.get("x-amz-storage-class") != wanted

    # -- completion markers ----------------------------------------------------------------------------

    def violations(self, *, final: bool = False) -> list[str]:
        """What is wrong with the hour, if it has a completion marker; see :class:`CompletionChecker`."""
        return self.completion.hour_violations(final=final)

    def group_violations(self) -> dict[str, list[str]]:
        """What is wrong at the end with the records of groups, by folder."""
        if not self.hour.has_groups:
            return {}
        found = {folder: self.completion.group_violations(folder, final=True) for folder in self.hour.folders}
        return {folder: problems for folder, problems in found.items() if problems}

    def _check_completion(self, key: str, when: str) -> None:
        """Check the hour, and the group that a key belongs to."""
        problems = self.completion.hour_violations()
        folder = self.hour.folder_of(key)
        if folder:
            problems += self.completion.group_violations(folder)
        for problem in problems:
            self.fail(f"{when}: {problem}")

    def _check_markers_before_part(self, key: str, task: Task) -> None:
        """The markers of the hour and of the group must be gone before a run changes the first part of a group."""
        objects, hour = self._server.objects, self.hour
        claim = objects.get(hour.claim)
        if not self.has_copy_object or claim is None or _plan_id_of(claim) != task.plan_id:
            return
        folder = hour.folder_of(key)
        for scope in (hour.scope(), hour.scope(folder or None)):
            marker = objects.get(scope.marker)
            if marker is None or marker.author in INTERFERENCE:
                continue
            # Since the claim, another run may have completed the hour with the same parts.
            is_same = _plan_id_of(marker).partition("-")[0] == task.plan_id.partition("-")[0]
            if marker.step < claim.step or not is_same:
                self.fail(f"{task.name} wrote {key.removeprefix(hour.base)}, but {scope.marker} is there")

    # -- last copies -----------------------------------------------------------------------------------

    def raw_object_removed(self, version: Version) -> bool:
        """Note that a raw object was deleted: from now on, a part that holds it must stay.

        Parts that are damaged don't count, and parts of an incomplete hour whose removal is announced.

        :returns: whether such a part exists
        """
        if not version.body or not self.hour.is_input(version.key, len(version.body)):
            return False
        forms = self.hour.forms_of(version)
        if any(_has(body, forms) for body in self.damaged_bodies) or self._is_unprotected(version):
            return False
        removals = self._announced_removals()
        for part, contents in self.recorded_contents().items():
            stored = self._server.objects.get(self.hour.base + part)
            if stored is None or part in removals:
                continue
            for objects in contents:
                if (version.key, version.etag) in objects and self.holds(part, stored, objects):
                    self.last_copies[version.key, version.etag] = forms
                    return True
        return False

    def _is_unprotected(self, version: Version) -> bool:
        """Whether the last copy of this version is lost through a window that RELIABILITY.md leaves open.

        A task that received it with wrong bytes may write its part again before validation notices that.
        """
        return (version.key, version.etag) in self._source.misread or self._restored_unlisted(version)

    def _restored_unlisted(self, version: Version) -> bool:
        """Whether a producer restored earlier bytes after the hour was planned with other ones.

        No plan has listed the restored object, so a part that still holds these bytes may be replaced.
        """
        known = self.hour.history[version.key]
        planned = self._server.objects.get(self.hour.claim) or self._server.objects.get(self.hour.manifest)
        restored = any(other.etag == version.etag for other in known if other is not version)
        return restored and planned is not None and version.begin > planned.step

    def _announced_removals(self) -> set[str]:
        """Return the names of parts in removal records, except those of a complete hour, which must stay."""
        names: set[str] = set()
        for key, stored in self._server.objects.items():
            if key.startswith(self.hour.work + "removals/") and stored.author not in INTERFERENCE:
                names.update(json.loads(stored.body)["names"])
        objects, hour = self._server.objects, self.hour
        manifest = self._manifest()
        if manifest is not None and hour.marker in objects and hour.claim not in objects:
            names.difference_update(manifest.by_part())
        return names

    def holds(self, part: str, stored: ServerObject, objects: Sequence[tuple[str, str]]) -> bool:
        """Whether a part has exactly these raw objects.

        :param part: name of the part
        """
        expected = b""
        is_compressed = stored.body.startswith(FRAME_MAGIC)
        for key, etag in objects:
            version = self.completion.version(key, etag)
            if version is None:
                return False
            if is_compressed:
                expected += b"".join(self.hour.held_in_frames(key, version.body))
                continue
            expected += version.body + self.hour.newline_in_part(part, key, version.body)
            # An object that S3 copied has no newline added. With compression, smaller ones are copied, too. An
            # object that was not recompressed, although that was planned, has none either.
            is_copied = len(objects) == 1 and (
                is_too_large(key, len(version.body), self.hour.copied_above)
                or _SPLIT_OFF_COMPRESSED.search(part) is not None
            )
            if is_copied and stored.body == version.body:
                return True
        return content_of(stored.body) == expected

    def raw_object_written(self, key: str) -> None:
        """Note that a raw object was written: parts need not keep its earlier versions, unless these expired."""
        for lost in [copy for copy in self.last_copies if copy[0] == key and copy not in self.hour.expired]:
            del self.last_copies[lost]

    def excuse_part(self, stored: ServerObject) -> None:
        """Note that a part is damaged from outside: the pipeline need not keep its bytes."""
        content = content_of(stored.body)
        self.damaged_bodies.append(content)
        for lost in [copy for copy, forms in self.last_copies.items() if _has(content, forms)]:
            del self.last_copies[lost]

    def _check_last_copies(self, when: str) -> None:
        # No run drops what has expired as announced, as long as the record says so.
        expired = self.hour.expired if not self.records_damaged else set()
        copies = [copy for copy in self.last_copies if not self.drops_vanished or copy in expired]
        if not copies:
            return
        objects = self._server.objects
        parts = [content_of(stored.body) for key, stored in objects.items() if self.hour.is_part_like(key)]
        for key, etag in copies:
            if not any(_has(part, self.last_copies[key, etag]) for part in parts):
                self.fail(f"{when}: the last copy of {key} is lost")

    def unrecorded_last_copies(self) -> list[str]:
        """Return the last copies whose part no readable record names any more."""
        if self.drops_vanished or self.records_damaged or self.manifest_overtaken or self._server.claim_lost:
            return []
        recorded = {
            entry
            for contents in self.recorded_contents().values()
            for objects in contents
            for entry in objects
        }
        return [
            f"no record names the part that holds {key}"
            for key, etag in self.last_copies
            if (key, etag) not in recorded
        ]

    def recorded_contents(self) -> dict[str, list[list[tuple[str, str]]]]:
        """Return, for each part in a readable record, its raw objects by each of those records."""
        found: dict[str, list[list[tuple[str, str]]]] = {}
        manifest = self._server.objects.get(self.hour.manifest)
        read = self.completion.read_manifest(manifest) if manifest else None
        if read is not None:
            for part, rows in read.by_part().items():
                found.setdefault(part, []).append([(row.key, row.etag) for row in rows])
        for key, stored in self._server.objects.items():
            if key.startswith(self.hour.work) and "/shard-" in key:
                self._add_planned_parts(found, key, stored)
        return found

    def _add_planned_parts(
        self, found: dict[str, list[list[tuple[str, str]]]], key: str, stored: ServerObject
    ) -> None:
        """Add the parts of a plan's shard and of its receipt."""
        shard = read_gzip_json(stored, (1, 2))
        receipt = self._server.objects.get(key.replace("/shard-", "/receipt-"))
        written = read_gzip_json(receipt, (1,)) if receipt else None
        if shard is None:
            return
        for part in shard["parts"]:
            found.setdefault(part[0], []).append([(self.hour.raw_base + row[0], row[2]) for row in part[5]])
        for parts in (written or {}).get("splits", {}).values():
            for part in parts:
                found.setdefault(part[0], []).append([(row[0], row[2]) for row in part[4]])


def _has(content: bytes, forms: Sequence[bytes]) -> bool:
    return any(form in content for form in forms)


def _plan_id_of(record: ServerObject) -> str:
    """The plan that a claim or a marker names; empty if it can't be read."""
    try:
        return str(json.loads(record.body)["plan_id"])
    except (ValueError, LookupError, TypeError):
        return ""
