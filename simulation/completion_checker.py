"""Checks what completion markers promise: of the hour, and of each of its groups.

It shares no code with the pipeline, and reads the servers' memory instead of making requests.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from awscrt.checksums import crc64nvme

from simulation.hour_model import (
    DEFAULT_LEVEL,
    Hour,
    Manifest,
    Row,
    Scope,
    Version,
    encoding_of,
    is_too_large,
    read_manifest,
    seek_table,
    split_frames,
    unpacked,
)
from simulation.scheduler import Scheduler
from simulation.server import INTERFERENCE, Server, ServerObject

_TOTALS = ("objects", "bytes_in", "separator_bytes", "bytes_out", "parts")


class CompletionChecker:
    """Compares markers, manifests and parts with what producers wrote.

    :param server: has the parts and records
    :param source: has the raw objects; may be the same
    :param damaged: the step at which each key was damaged, until a task writes it again
    """

    def __init__(
        self, server: Server, source: Server, scheduler: Scheduler, hour: Hour, damaged: Mapping[str, int]
    ) -> None:
        self._server = server
        self._source = source
        self._scheduler = scheduler
        self._hour = hour
        self._damaged = damaged
        self._manifests: dict[int, tuple[ServerObject, Manifest | None]] = {}
        # Bytes of compressed parts, by fingerprint: it decides them.
        self._compressed: dict[str, bytes] = {}
        # Without CopyObject, an overtaken run may leave a wrong marker until it has read the claim again, and its
        # late PUT may overwrite a newer manifest.
        self._has_copy_object = server.quirks.copies
        # If the server ignores If-Match of a DELETE, an overtaken run may remove a record of a group that another
        # run has just written.
        self._keeps_group_records = server.quirks.copies and server.quirks.if_match_delete

    def hour_violations(self, *, final: bool = False) -> list[str]:
        """What is wrong with the hour, if it has a completion marker.

        :param final: nothing has interfered since: the raw hour must match, and no damage is excused
        """
        return self._violations(self._hour.scope(), final)

    def group_violations(self, folder: str, *, final: bool = False) -> list[str]:
        """What is wrong with a group, if it has a completion marker.

        :param final: nothing has interfered since; a group of the hour's manifest must have a marker then
        """
        scope = self._hour.scope(folder)
        if final and folder not in self._named_folders():
            objects = self._server.objects
            left = [key for key in (scope.marker, scope.manifest) if key in objects]
            return [f"the hour does not have the group {folder}, but {key} is there" for key in left]
        return [f"group {folder}: {problem}" for problem in self._violations(scope, final)]

    def _named_folders(self) -> set[str]:
        """The folders of the parts in the hour's manifest."""
        stored = self._server.objects.get(self._hour.manifest)
        manifest = self.read_manifest(stored) if stored else None
        return {_folder_of(name) for name in manifest.by_part()} if manifest else set()

    def _violations(self, scope: Scope, final: bool) -> list[str]:
        objects = self._server.objects
        marker = objects.get(scope.marker)
        if marker is None or (marker.author in INTERFERENCE and not final):
            return ["there is no marker"] if final else []
        # Damage that is older than the task that wrote the marker is not excused.
        since = _begin_of(marker)
        try:
            fields = json.loads(marker.body)
            plan_id = fields["plan_id"]
        except (ValueError, LookupError, TypeError) as error:
            return [f"the marker cannot be read: {error!r}"]
        if fields.get("format") != 1:
            return [f"the marker has format {fields.get('format')}"]
        stored = objects.get(scope.manifest)
        if not final and self._is_damaged_since(scope.manifest, since):
            return []
        if stored is None:
            excused = scope.folder is not None and not self._keeps_group_records and not final
            return [] if excused else ["a marker is in place, but no manifest"]
        manifest = self.read_manifest(stored)
        if manifest is None:
            return ["a marker is in place, but the manifest cannot be read"]
        if manifest.plan_id != plan_id and not self._has_copy_object and not final:
            return []
        if manifest.plan_id != plan_id:
            return [f"the marker is of plan {plan_id}, the manifest of {manifest.plan_id}"]
        problems: list[str] = []
        # A damaged marker may still be readable, with a wrong number. No run reads that of a group again.
        if marker.author not in INTERFERENCE or (final and scope.folder is not None):
            problems += _total_violations(fields, manifest)
            problems += self._captures_violations(scope, fields, manifest)
            if scope.folder is None and self._hour.has_groups:
                problems += self._group_list_violations(fields, manifest, since, final)
        problems += self._part_violations(scope, manifest, since, final)
        problems += self._object_violations(scope, manifest, stored, final)
        return problems

    def _is_damaged_since(self, key: str, since: int) -> bool:
        """Whether a key was damaged at or after a step."""
        return self._damaged.get(key, -1) >= since

    def _is_misread(self, stored: ServerObject | None, rows: Sequence[Row], since: int) -> bool:
        """Whether a part may have wrong bytes through a window that RELIABILITY.md leaves open.

        A task that was believed dead wrote it after a step, and may have received wrong bytes without a CRC.
        """
        misread = self._source.misread
        return (
            stored is not None
            and stored.step >= since
            and any((row.key, row.etag) in misread for row in rows)
        )

    # -- groups ----------------------------------------------------------------------------------------

    def _captures_violations(
        self, scope: Scope, fields: Mapping[str, Any], manifest: Manifest
    ) -> Iterator[str]:
        """Check the captures in the records of a group; those of an hour have none."""
        expected = {} if scope.folder is None else self._hour.folders[scope.folder]
        for name, values in (("marker", fields), ("manifest", manifest.header)):
            if values.get("group", {}) != expected:
                yield f"the {name} is of the group {values.get('group')}, not {expected}"

    def _group_list_violations(
        self, fields: Mapping[str, Any], manifest: Manifest, since: int, final: bool
    ) -> Iterator[str]:
        """Check the list of groups in the hour's marker and manifest, and that the groups are complete too."""
        rows: dict[str, list[Row]] = {}
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for entry in manifest.header["parts_table"]:
            parts.setdefault(_folder_of(entry["name"]), []).append(entry)
        for row in manifest.rows:
            rows.setdefault(_folder_of(row.part), []).append(row)
        expected: list[dict[str, Any]] = [
            {
                "folder": folder,
                "captures": self._hour.folders.get(folder),
                "objects": len(rows.get(folder, ())),
                "bytes_in": sum(row.length for row in rows.get(folder, ())),
                "bytes_out": _content_bytes(entries, rows.get(folder, ())),
                "bytes_stored": _stored_bytes(entries),
                "parts": len(entries),
                **_recompressed_totals(rows.get(folder, ())),
            }
            for folder, entries in sorted(parts.items())
        ]
        for group in expected:
            group["separator_bytes"] = group["bytes_out"] - (group["bytes_unpacked"] or group["bytes_in"])
        for name, values in (("marker", fields), ("manifest", manifest.header)):
            stated = sorted(values.get("groups", ()), key=lambda group: str(group["folder"]))
            for group, listed in zip(expected, stated, strict=False):
                if any(listed.get(key, 0) != value for key, value in group.items()):
                    yield f"the {name} lists the group {listed}, which is {group}"
            if len(stated) != len(expected):
                yield f"the {name} lists {len(stated)} groups, there are {len(expected)}"
        if self._keeps_group_records and not final:
            yield from self._group_record_violations(parts, since)

    def _group_record_violations(
        self, parts: Mapping[str, Sequence[Mapping[str, Any]]], since: int
    ) -> Iterator[str]:
        """Check that each group of a complete hour has its records, and that no other one has any."""
        for folder in self._hour.folders:
            scope = self._hour.scope(folder)
            for key in (scope.marker, scope.manifest):
                stored = self._server.objects.get(key)
                if folder in parts and stored is None and not self._is_damaged_since(key, since):
                    yield f"the hour has a marker, but {key} is not there"
                if folder not in parts and stored is not None and stored.author not in INTERFERENCE:
                    yield f"{key} is there, but the hour does not have this group"

    # -- parts -----------------------------------------------------------------------------------------

    def _part_violations(self, scope: Scope, manifest: Manifest, since: int, final: bool) -> Iterator[str]:
        entries = {entry["name"]: entry for entry in manifest.header["parts_table"]}
        bytes_out = 0
        for name, rows in manifest.by_part().items():
            if name not in entries:
                yield f"{name} has raw objects, but the table of parts does not have it"
                continue
            contents, problem = self._expected_contents(entries[name], rows)
            if problem:
                yield f"{name}: {problem}"
                continue
            size = sum(map(len, contents))
            bytes_out += size
            folder = _folder_of(name) or scope.folder or ""
            wrong = [row.key for row in rows if self._hour.place_of(row.key).folder != folder]
            if wrong:
                yield f"{name} holds {wrong[0]}, which is of another group"
            planned = sum(row.length * self._hour.ratio if row.content else row.length for row in rows)
            has_content = any(row.content for row in rows)
            if (planned if has_content else size) > self._hour.part_size and len(rows) > 1:
                yield f"{name} holds more than a part may"
            stored = self._server.objects.get(scope.parts + name)
            is_damaged = not final and (
                self._is_damaged_since(scope.parts + name, since) or self._is_misread(stored, rows, since)
            )
            stored = None if is_damaged else stored
            if stored is None and not is_damaged:
                yield f"{name} is missing"
            is_recent = (
                final
                and stored is not None
                and _begin_of(stored) >= self._hour.packing_since
                and (scope.parts + name).removeprefix(self._hour.base) not in self._hour.announced
            )
            if is_recent:
                yield from self._packing_violations(entries[name], rows)
            yield from self._recompression_violations(entries[name], rows, is_recent)
            if "compression" in entries[name]:
                if stored is not None:
                    yield from self._frame_violations(entries[name], rows, contents, stored.body, is_recent)
            else:
                yield from _body_violations(entries[name], contents[0], stored)
        if bytes_out != manifest.header["bytes_out"]:
            yield f"the manifest says {manifest.header['bytes_out']} bytes, its parts have {bytes_out}"

    def _expected_contents(
        self, entry: Mapping[str, Any], rows: Sequence[Row]
    ) -> tuple[list[bytes], str | None]:
        """Return what each frame of a part must hold by its rows, or a problem.

        Without compression, the part is the only element.
        """
        if "compression" not in entry:
            body, problem = self._expected_body(rows, bool(entry["copied"]))
            return [body], problem
        contents: list[bytes] = []
        if [row.key for row in rows] != sorted((row.key for row in rows), key=str.encode):
            return [], "its raw objects are not in key order"
        for frame, members in groupby(rows, key=lambda row: row.frame):
            inside = list(members)
            body, problem = self._expected_body(inside, copied=False)
            if problem is None and frame is None:
                problem = f"{inside[0].key} has no frame"
            if problem is None and sum(row.held + (row.separator or 0) for row in inside) != len(body):
                problem = f"the separators in the frame at {frame} do not add up"
            if problem is None and any(
                encoding_of(row.key) and row.length and not row.content for row in inside
            ):
                problem = "it compresses objects that are not plain"
            if problem is not None:
                return [], problem
            if len(inside) > 1 and sum(row.held for row in inside) > self._hour.frame_bytes:
                return [], f"the frame at {frame} holds more than a frame may"
            contents.append(body)
        return contents, None

    def _expected_body(self, rows: Sequence[Row], copied: bool) -> tuple[bytes, str | None]:
        """Return the bytes that a part or a frame must hold by its rows, or a problem.

        :param copied: whether S3 copied the only raw object
        """
        body = b""
        last = ""
        encodings = set()
        for row in rows:
            version = self.version(row.key, row.etag)
            if version is None:
                return b"", f"{row.key} with ETag {row.etag} was never produced"
            if row.key <= last:
                return b"", f"{row.key} is not in key order"
            last = row.key
            if row.offset != len(body) or row.length != len(version.body):
                stated, actual = (row.offset, row.length), (len(body), len(version.body))
                return b"", f"{row.key} has offset and length {stated} in the manifest, not {actual}"
            if row.crc64nvme is not None and row.crc64nvme != f"{crc64nvme(version.body):016x}":
                return b"", f"{row.key} has the wrong CRC in the manifest: {row.crc64nvme}"
            if row.content is None and (row.frame is None or row.length):
                newline = b""
                if not copied and not row.damaged:
                    newline = self._hour.newline_in_part(row.part, row.key, version.body)
                body += version.body + newline
                encodings.add(encoding_of(row.key))
                continue
            held, newline = self._hour.held_in_frames(row.key, version.body)
            if row.content not in (None, (len(held), f"{crc64nvme(held):016x}")):
                return b"", f"{row.key} has other content than the manifest says"
            body += held + newline
        if len(encodings) > 1:
            return b"", f"it mixes {sorted(encodings)}"
        if copied and not (len(rows) == 1 and is_too_large(last, len(body), self._hour.copied_above)):
            return b"", "it is copied, though its raw objects fit into a part"
        return body, None

    def _frame_violations(
        self,
        entry: Mapping[str, Any],
        rows: Sequence[Row],
        contents: Sequence[bytes],
        body: bytes,
        is_recent: bool,
    ) -> Iterator[str]:
        """Check a compressed part.

        :param contents: what each frame must hold
        :param body: of the part
        :param is_recent: whether it was written as the stream says now
        """
        name = entry["name"]
        if (entry["size"], entry["crc64nvme"]) != (len(body), f"{crc64nvme(body):016x}"):
            yield f"{name}: the manifest gives it another size or CRC than it has"
        try:
            frames, rest = split_frames(body)
        except ValueError as error:
            yield f"{name}: {error}"
            return
        if [frame.content for frame in frames] != list(contents):
            yield f"{name} holds {frames[:2]}, not {contents[:2]}"
        if [(frame.offset, frame.length) for frame in frames] != list(
            dict.fromkeys(row.frame for row in rows)
        ):
            yield f"{name}: the manifest gives its frames another place than they have"
        if rest != (seek_table(frames) if entry["compression"] == "zstd" else b""):
            yield f"{name} has {rest!r} after its last frame"
        if len({(frame.level, frame.version) for frame in frames}) > 1:
            yield f"{name} mixes frames of different versions or levels"
        packing = self._hour.packing
        level = DEFAULT_LEVEL if packing.level is None else packing.level
        if is_recent and frames and (frames[0].level, frames[0].version) != (level, packing.version):
            yield f"{name} was packed with version {frames[0].version}, level {frames[0].level}; not as {packing}"
        if self._compressed.setdefault(entry["fingerprint"], body) != body:
            yield f"{name}: its fingerprint was given to other bytes before"

    def _packing_violations(self, entry: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
        """Check that a part is compressed as the stream says now."""
        is_plain = not any(encoding_of(row.key) and not row.content for row in rows) and not entry["copied"]
        is_plain = is_plain or "recompressed" in entry
        expected = self._hour.packing.compression if is_plain else ""
        if entry.get("compression", "") != expected:
            yield f"{entry['name']} has the compression {entry.get('compression')}, not {expected}"

    def _recompression_violations(
        self, entry: Mapping[str, Any], rows: Sequence[Row], is_recent: bool
    ) -> Iterator[str]:
        """Check that objects are recompressed if they can be, and that no others are.

        :param is_recent: whether the part was written as the stream says now
        """
        if entry.get("recompressed", 0) != sum(row.content is not None for row in rows):
            yield f"{entry['name']} has another number of recompressed objects than the manifest says"
        for row in rows:
            version = self.version(row.key, row.etag)
            if version is None or not encoding_of(row.key) or not row.length:
                continue
            content = unpacked(row.key, version.body)
            if content is not None and len(content) > self._hour.largest_content:
                content = None
            if row.content is not None and content is None:
                yield f"{row.key} is recompressed, although it is damaged or too large"
            packing = self._hour.packing
            if (
                is_recent
                and content is not None
                and packing.recompress
                and packing.compression
                and row.length <= self._hour.part_size
                and row.content is None
            ):
                yield f"{row.key} is not recompressed"
            if row.damaged and content is not None and not self._hour.packing.compression:
                yield f"{row.key} is called damaged, but it is not"

    # -- raw objects -----------------------------------------------------------------------------------

    def _object_violations(
        self, scope: Scope, manifest: Manifest, stored: ServerObject, final: bool
    ) -> Iterator[str]:
        """Check that every raw object is in the manifest once, with an ETag it had during validation.

        A part whose raw objects have expired may have an older version besides.
        """
        begin = _begin_of(stored)
        end = stored.step
        if final:
            begin = end = self._scheduler.step
        announced = {self._hour.base + name for name in self._hour.announced}
        named: dict[str, Row] = {}
        for row in manifest.rows:
            if row.key in named and scope.parts + named[row.key].part not in announced:
                yield f"{row.key} is in the manifest twice"
            named[row.key] = row
        for key, versions in self._hour.history.items():
            if scope.folder is not None and self._hour.place_of(key).folder != scope.folder:
                continue
            inputs = [version for version in versions if self._hour.is_input(key, len(version.body))]
            present = [
                version
                for version in inputs
                if version.begin <= end and (version.end is None or version.end >= begin)
            ]
            if key in named:
                etag = named[key].etag
                part = scope.parts + named[key].part
                # A part with expired objects stays, and with it the others, although they have vanished.
                has_expired = part in announced
                if etag in {version.etag for version in present}:
                    continue
                if not has_expired:
                    yield f"{key} is in the manifest, but was not there with this ETag when it was validated"
                elif _existed_throughout(present, begin, end):
                    yield f"{key} is in the manifest as it expired, but was there again all the time"
            elif _existed_throughout(present, begin, end):
                yield f"{key} is not in the manifest, and was there all the time"
        if len(manifest.rows) != manifest.header["objects"]:
            yield f"the manifest says {manifest.header['objects']} objects, and names {len(manifest.rows)}"
        total = sum(row.length for row in manifest.rows)
        if total != manifest.header["bytes_in"]:
            yield f"the manifest says {manifest.header['bytes_in']} bytes of raw objects, and names {total}"

    def version(self, key: str, etag: str) -> Version | None:
        """A version of a raw object, by its ETag; None if no producer wrote it."""
        for version in self._hour.history.get(key, ()):
            if version.etag == etag:
                return version
        return None

    def read_manifest(self, stored: ServerObject) -> Manifest | None:
        """Return a manifest, None if it can't be read."""
        known = self._manifests.get(id(stored))
        if known is None or known[0] is not stored:
            known = self._manifests[id(stored)] = (stored, read_manifest(stored.body))
        return known[1]


def _total_violations(fields: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """Totals that differ between a marker and its manifest."""
    for name in _TOTALS:
        # As readers do, which take a missing number for 0.
        if fields.get(name, 0) != manifest.header[name]:
            yield f"the marker says {name}={fields.get(name)}, the manifest {manifest.header[name]}"
    table = manifest.header["parts_table"]
    for record, values in (("marker", fields), ("manifest", manifest.header)):
        if values.get("bytes_stored", 0) != _stored_bytes(table):
            stated = values.get("bytes_stored")
            yield f"the {record} says that the parts have {stated} bytes, they have {_stored_bytes(table)}"
    for record, values in (("marker", fields), ("manifest", manifest.header)):
        for name, value in _recompressed_totals(manifest.rows).items():
            if values.get(name, 0) != value:
                yield f"the {record} says {name}={values.get(name)}, it is {value}"
    if manifest.header["format"] != 1 + any("compression" in entry for entry in table):
        yield f"the manifest has format {manifest.header['format']}"


def _body_violations(entry: Mapping[str, Any], expected: bytes, stored: ServerObject | None) -> Iterator[str]:
    """Check a part that is not compressed.

    :param stored: the part; None if it is missing, or may be damaged
    """
    name = entry["name"]
    if entry["size"] != len(expected):
        yield f"{name}: the manifest gives it another size than its raw objects have"
    if entry["crc64nvme"] not in (None, f"{crc64nvme(expected):016x}"):
        yield f"{name}: the manifest gives it the CRC {entry['crc64nvme']}, its raw objects have another one"
    if stored is not None and stored.body != expected:
        yield f"{name} holds {stored.body[:60]!r}, not {expected[:60]!r}"


def _content_bytes(entries: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> int:
    """Size of the content of some parts, in bytes: raw objects and separators.

    :param rows: of these parts
    """
    plain: int = sum(entry["size"] for entry in entries if "compression" not in entry)
    return plain + sum(row.held + (row.separator or 0) for row in rows if row.frame is not None)


def _recompressed_totals(rows: Sequence[Row]) -> dict[str, int]:
    """The totals of recompressed objects, 0 if there are none."""
    count = sum(row.content is not None for row in rows)
    return {"recompressed": count, "bytes_unpacked": sum(row.held for row in rows) if count else 0}


def _stored_bytes(entries: Sequence[Mapping[str, Any]]) -> int:
    """Size of some parts, in bytes, if any is compressed; else 0."""
    is_compressed = any("compression" in entry for entry in entries)
    return sum(entry["size"] for entry in entries) if is_compressed else 0


def _folder_of(name: str) -> str:
    return name[: name.rfind("/") + 1]


def _begin_of(stored: ServerObject) -> int:
    """The step at which the task began that wrote an object. Its request may be carried out long after that."""
    return stored.task.started if stored.task else stored.step


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
