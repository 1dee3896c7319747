"""Checks the invariants of the hour after every change below the aggregated prefix.

It shares no code with the pipeline, and reads the server's memory instead of making requests. It checks after
every change because readers may read at any time.
"""

import json
from collections.abc import Iterator, Sequence

from awscrt.checksums import crc64nvme

from simulation.hour_model import Hour, Manifest, Row, Version, encoding_of, read_gzip_json, read_manifest
from simulation.scheduler import Scheduler, Task
from simulation.server import DAMAGE, FOREIGN, Server, ServerObject, Upload

# Authors whose objects the pipeline does not answer for.
INTERFERENCE = (DAMAGE, FOREIGN)


class InvariantChecker:
    """Collects violations in ``problems``; the first one ends the scenario."""

    def __init__(self, server: Server, scheduler: Scheduler, hour: Hour) -> None:
        self.problems: list[str] = []
        self.hour = hour
        # The step at which each key was damaged, until a task writes it again.
        self.damaged: dict[str, int] = {}
        # Key, ETag and bytes of deleted raw objects that a recorded part held at that moment.
        # No task may delete the last part that holds them.
        self.last_copies: dict[tuple[str, str], bytes] = {}
        # Keys that the pipeline has written: it may delete them, even if another program writes them later.
        self.our_keys: set[str] = set()
        # Bodies of damaged parts.
        self.damaged_bodies: list[bytes] = []
        self.records_damaged = self.drops_vanished = False
        # Without CopyObject, an overtaken run may leave a wrong marker until it has read the claim again,
        # and its late PUT may overwrite a newer manifest.
        self.has_copy_object = server.quirks.copies
        self.manifest_overtaken = False
        self._server = server
        self._scheduler = scheduler
        self._manifests: dict[int, tuple[ServerObject, Manifest | None]] = {}
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
        if task is not None:
            self.damaged.pop(key, None)
            if not key.startswith(hour.aggregated):
                self.fail(f"{task.name} changed {key}, which is not below {hour.aggregated}")
            if before is not None and before.author == FOREIGN:
                self.fail(f"{task.name} changed {key}, which belongs to another program")
            if now is not None and hour.is_part_like(key) and self._lacks_storage_class(now):
                self.fail(f"{task.name} wrote {key} without its storage class")
        if not key.startswith(hour.aggregated):
            return
        if before is not None and task is not None:
            self._check_last_copies(f"after {task.name} changed {key.removeprefix(hour.aggregated)}")
        if key == hour.manifest and now is not None and task is not None and not self.has_copy_object:
            self.manifest_overtaken |= not self._has_current_claim(now)
        if key in (hour.marker, hour.manifest) or hour.is_part_like(key):
            for problem in self.violations():
                author = task.name if task is not None else "another program"
                self.fail(f"after {author} changed {key.removeprefix(hour.aggregated)}: {problem}")

    def _has_current_claim(self, manifest: ServerObject) -> bool:
        """Whether a manifest was written under the current claim."""
        read = self.read_manifest(manifest)
        claim = self._server.objects.get(self.hour.work + "claim.json")
        try:
            current = json.loads(claim.body)["claim_id"] if claim else None
        except (ValueError, LookupError, TypeError):
            return False
        return read is not None and current == read.header.get("claim_id")

    def _on_abort(self, upload: Upload, task: Task | None) -> None:
        """Check an aborted upload."""
        if upload.author == FOREIGN and task is not None:
            self.fail(f"{task.name} aborted the upload of {upload.key}, which belongs to another program")

    def fail(self, problem: str) -> None:
        """Add a violation; it ends the scenario."""
        self.problems.append(problem)
        self._scheduler.stopped = True

    def _lacks_storage_class(self, stored: ServerObject) -> bool:
        wanted = self.hour.storage_class
        return wanted is not None and stored.headers.get("x-amz-storage-class") != wanted

    # -- the hour --------------------------------------------------------------------------------------

    def violations(self, *, final: bool = False) -> list[str]:
        """Return what is wrong with the hour, if it has a completion marker.

        :param final: nothing has interfered since: the raw hour must match, and no damage is excused
        """
        objects, hour = self._server.objects, self.hour
        marker = objects.get(hour.marker)
        if marker is None or (marker.author in INTERFERENCE and not final):
            return ["there is no marker"] if final else []
        # Damage that is older than the task that wrote the marker is not excused.
        since = marker.task.started if marker.task else marker.step
        try:
            fields = json.loads(marker.body)
            plan_id = fields["plan_id"]
        except (ValueError, LookupError, TypeError) as error:
            return [f"the marker cannot be read: {error!r}"]
        stored = objects.get(hour.manifest)
        if not final and self._damaged_since(hour.manifest, since):
            return []
        if stored is None:
            return ["a marker is in place, but no manifest"]
        manifest = self.read_manifest(stored)
        if manifest is None:
            return ["a marker is in place, but the manifest cannot be read"]
        if manifest.plan_id != plan_id and not self.has_copy_object and not final:
            return []
        if manifest.plan_id != plan_id:
            return [f"the marker is of plan {plan_id}, the manifest of {manifest.plan_id}"]
        problems = [
            f"the marker says {name}={fields.get(name)}, the manifest {manifest.header[name]}"
            for name in ("objects", "bytes_in", "separator_bytes", "bytes_out", "parts")
            # A damaged marker may still be readable, with a wrong number.
            if fields.get(name) != manifest.header[name] and marker.author not in INTERFERENCE
        ]
        problems += self._part_violations(manifest, since, final)
        problems += self._object_violations(manifest, stored, final)
        return problems

    def _damaged_since(self, key: str, since: int) -> bool:
        """Whether a key was damaged at or after a step."""
        return self.damaged.get(key, -1) >= since

    def _part_violations(self, manifest: Manifest, since: int, final: bool) -> Iterator[str]:
        sizes = {entry["name"]: entry for entry in manifest.header["parts_table"]}
        bytes_out = 0
        for name, rows in manifest.by_part().items():
            key = self.hour.aggregated + name
            expected, problem = self._expected_body(rows)
            if problem:
                yield f"{name}: {problem}"
                continue
            bytes_out += len(expected)
            if name not in sizes or sizes[name]["size"] != len(expected):
                yield f"{name}: the manifest gives it another size than its raw objects have"
            stated = sizes[name]["crc64nvme"] if name in sizes else None
            if stated is not None and stated != f"{crc64nvme(expected):016x}":
                yield f"{name}: the manifest gives it the CRC {stated}, its raw objects have another one"
            if not final and self._damaged_since(key, since):
                continue
            stored = self._server.objects.get(key)
            if stored is None:
                yield f"{name} is missing"
            elif stored.body != expected:
                yield f"{name} holds {stored.body[:60]!r}, not {expected[:60]!r}"
            elif len(expected) > self.hour.part_size and len(rows) > 1:
                yield f"{name} holds more than a part may"
        if bytes_out != manifest.header["bytes_out"]:
            yield f"the manifest says {manifest.header['bytes_out']} bytes, its parts have {bytes_out}"

    def _expected_body(self, rows: Sequence[Row]) -> tuple[bytes, str | None]:
        """Return the bytes that a part must have by its rows, or a problem."""
        body = b""
        last = ""
        encodings = set()
        for row in rows:
            version = self._version(row.key, row.etag)
            if version is None:
                return b"", f"{row.key} with ETag {row.etag} was never produced"
            if row.key <= last:
                return b"", f"{row.key} is not in key order"
            last = row.key
            if row.offset == len(body) + 1:
                if not (self.hour.ensure_newline and encoding_of(row.key) == "") or body.endswith(b"\n"):
                    return b"", f"there is an unexpected byte before {row.key}"
                body += b"\n"
            if row.offset != len(body) or row.length != len(version.body):
                stated, actual = (row.offset, row.length), (len(body), len(version.body))
                return b"", f"{row.key} has offset and length {stated} in the manifest, not {actual}"
            if row.crc64nvme is not None and row.crc64nvme != f"{crc64nvme(version.body):016x}":
                return b"", f"{row.key} has the wrong CRC in the manifest: {row.crc64nvme}"
            body += version.body
            encodings.add(encoding_of(row.key))
        if len(encodings) > 1:
            return b"", f"it mixes {sorted(encodings)}"
        wants_newline = self.hour.ensure_newline and encodings == {""} and len(body) <= self.hour.part_size
        if wants_newline and body and not body.endswith(b"\n"):
            copied = len(rows) == 1 and len(body) + 1 > self.hour.part_size
            body += b"" if copied else b"\n"
        return body, None

    def _object_violations(self, manifest: Manifest, stored: ServerObject, final: bool) -> Iterator[str]:
        """Check that every raw object is in the manifest once, with an ETag it had during validation."""
        begin = stored.task.started if stored.task else stored.step
        end = stored.step
        if final:
            begin = end = self._scheduler.step
        named: dict[str, str] = {}
        for row in manifest.rows:
            if row.key in named:
                yield f"{row.key} is in the manifest twice"
            named[row.key] = row.etag
        for key, versions in self.hour.history.items():
            inputs = [version for version in versions if self.hour.is_input(key, len(version.body))]
            present = [
                version
                for version in inputs
                if version.begin <= end and (version.end is None or version.end >= begin)
            ]
            if key in named:
                if named[key] not in {version.etag for version in present}:
                    yield f"{key} is in the manifest, but was not there with this ETag when it was validated"
            elif _existed_throughout(present, begin, end):
                yield f"{key} is not in the manifest, and was there all the time"
        if len(manifest.rows) != manifest.header["objects"]:
            yield f"the manifest says {manifest.header['objects']} objects, and names {len(manifest.rows)}"
        total = sum(row.length for row in manifest.rows)
        if total != manifest.header["bytes_in"]:
            yield f"the manifest says {manifest.header['bytes_in']} bytes of raw objects, and names {total}"

    def _version(self, key: str, etag: str) -> Version | None:
        for version in self.hour.history.get(key, ()):
            if version.etag == etag:
                return version
        return None

    def read_manifest(self, stored: ServerObject) -> Manifest | None:
        """Return a manifest, None if it can't be read."""
        known = self._manifests.get(id(stored))
        if known is None or known[0] is not stored:
            known = self._manifests[id(stored)] = (stored, read_manifest(stored.body))
        return known[1]

    # -- last copies -----------------------------------------------------------------------------------

    def raw_object_removed(self, version: Version) -> bool:
        """Note that a raw object was deleted: from now on, a part that holds it must stay.

        Parts that are damaged, or whose removal is announced, don't count.

        :returns: whether such a part exists
        """
        if not version.body or not self.hour.is_input(version.key, len(version.body)):
            return False
        if any(version.body in body for body in self.damaged_bodies) or self._is_unprotected(version):
            return False
        removals = self._announced_removals()
        for part, contents in self.recorded_contents().items():
            stored = self._server.objects.get(self.hour.aggregated + part)
            if stored is None or part in removals:
                continue
            for objects in contents:
                if (version.key, version.etag) in objects and stored.body == self._part_body(objects):
                    self.last_copies[version.key, version.etag] = version.body
                    return True
        return False

    def _is_unprotected(self, version: Version) -> bool:
        """Whether the last copy of this version is lost through a window that RELIABILITY.md leaves open.

        A task that received it with wrong bytes may write its part again before validation notices that.
        """
        return (version.key, version.etag) in self._server.misread or self._restored_unlisted(version)

    def _restored_unlisted(self, version: Version) -> bool:
        """Whether a producer restored earlier bytes after the hour was planned with other ones.

        No plan has listed the restored object, so a part that still holds these bytes may be replaced.
        """
        known = self.hour.history[version.key]
        planned = self._server.objects.get(self.hour.work + "claim.json") or self._server.objects.get(
            self.hour.manifest
        )
        restored = any(other.etag == version.etag for other in known if other is not version)
        return restored and planned is not None and version.begin > planned.step

    def _announced_removals(self) -> set[str]:
        """Return the names of parts in removal records."""
        names: set[str] = set()
        for key, stored in self._server.objects.items():
            if key.startswith(self.hour.work + "removals/") and stored.author not in INTERFERENCE:
                names.update(json.loads(stored.body)["names"])
        return names

    def _part_body(self, objects: Sequence[tuple[str, str]]) -> bytes | None:
        """Return the bytes of a part that holds these raw objects, None if one of them is unknown."""
        body = b""
        for key, etag in objects:
            version = self._version(key, etag)
            if version is None:
                return None
            body += version.body
            plain = self.hour.ensure_newline and encoding_of(key) == ""
            copied = len(objects) == 1 and len(version.body) + 1 > self.hour.part_size
            if plain and not copied and version.body and not version.body.endswith(b"\n"):
                body += b"\n"
        return body

    def raw_object_written(self, key: str) -> None:
        """Note that a raw object was written: parts need not keep its earlier versions."""
        for lost in [copy for copy in self.last_copies if copy[0] == key]:
            del self.last_copies[lost]

    def excuse_part(self, stored: ServerObject) -> None:
        """Note that a part is damaged from outside: the pipeline need not keep its bytes."""
        self.damaged_bodies.append(stored.body)
        for lost in [copy for copy, body in self.last_copies.items() if body in stored.body]:
            del self.last_copies[lost]

    def _check_last_copies(self, when: str) -> None:
        if self.drops_vanished or not self.last_copies:
            return
        parts = [stored.body for key, stored in self._server.objects.items() if self.hour.is_part_like(key)]
        for (key, _), body in self.last_copies.items():
            if not any(body in part for part in parts):
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
        read = self.read_manifest(manifest) if manifest else None
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
            found.setdefault(part[0], []).append([(self.hour.raw + row[0], row[2]) for row in part[5]])
        for parts in (written or {}).get("splits", {}).values():
            for part in parts:
                found.setdefault(part[0], []).append([(row[0], row[2]) for row in part[4]])


def _existed_throughout(versions: Sequence[Version], begin: int, end: int) -> bool:
    """Whether one of the versions existed at every step."""
    covered = begin
    for version in sorted(versions, key=lambda version: version.begin):
        if version.begin > covered:
            return False
        if version.end is None or version.end > end:
            return True
        covered = max(covered, version.end)
    return False
