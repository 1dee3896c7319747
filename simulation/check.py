"""Whether an hour is right, seen from outside: shares no code with the pipeline, and reads the server's memory.

It is asked after every change below the aggregated prefix, because a reader may come at any moment.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from awscrt.checksums import crc64nvme

from simulation.actors import Scheduler, Task
from simulation.store import DAMAGE, FOREIGN, Server, Stored, Upload

SCENARIO = (DAMAGE, FOREIGN)
# Formats whose files never share a part with plain text, and those whose files may be joined.
ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".snappy", ".zz", ".br", ".z", ".tgz")


@dataclass(slots=True)
class Version:
    """What a producer wrote under a key, and from when until when it was there, in steps."""

    key: str
    body: bytes
    etag: str
    begin: int
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What a manifest says of one raw object."""

    key: str
    part: str
    offset: int
    length: int
    etag: str
    crc64nvme: str | None


@dataclass(frozen=True, slots=True)
class ManifestRead:
    """A manifest as it was read."""

    header: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def plan_id(self) -> str:
        """The plan that it names."""
        return str(self.header["plan_id"])

    def by_part(self) -> dict[str, list[Row]]:
        """The rows of each part, in their order; parts without rows too."""
        found: dict[str, list[Row]] = {entry["name"]: [] for entry in self.header["parts_table"]}
        for row in self.rows:
            found.setdefault(row.part, []).append(row)
        return found


@dataclass(slots=True)
class Hour:
    """Where the hour lies, and what of the stream's settings its parts depend on."""

    raw: str
    aggregated: str
    part_size: int
    ensure_newline: bool
    storage_class: str | None
    ready_marker: str | None
    history: dict[str, list[Version]] = field(default_factory=dict)

    @property
    def marker(self) -> str:
        """Key of the completion marker."""
        return self.aggregated + "_SUCCESS"

    @property
    def manifest(self) -> str:
        """Key of the manifest."""
        return self.aggregated + "_manifest.jsonl.gz"

    @property
    def work(self) -> str:
        """Prefix of the records of plans."""
        return self.aggregated + "_rollup/"

    def is_input(self, key: str, size: int) -> bool:
        """Whether a raw object belongs into the parts."""
        name = key.removeprefix(self.raw)
        hidden = any(step.startswith(("_", ".")) for step in name.split("/"))
        placeholder = size == 0 and (name == "" or name.endswith("/"))
        return not hidden and not placeholder and name != self.ready_marker

    def is_part_like(self, key: str) -> bool:
        """Whether a key looks as if it were a part's."""
        return key.startswith(self.aggregated + "part-")


class Check:
    """Watches a server and keeps what is wrong.

    :param competing: False once no other run can be at work: then nothing may be left over
    """

    def __init__(self, server: Server, scheduler: Scheduler, hour: Hour) -> None:
        self.problems: list[str] = []
        self.hour = hour
        # When the world itself damaged a key; a task that writes it again makes that good.
        self.damaged: dict[str, int] = {}
        # Bytes of raw objects that are gone, which a recorded part held at that moment.
        self.owed: dict[tuple[str, str], bytes] = {}
        # Keys under which this project has written: by record they are ours, whoever writes there later.
        self.ours: set[str] = set()
        # What the world has destroyed, once and for all.
        self.destroyed: list[bytes] = []
        self.records_damaged = self.drops_vanished = False
        # Without CopyObject a marker may be wrong between its PUT and the look at the claim behind it.
        self.fenced = server.quirks.copies
        # Without CopyObject a run that was overtaken may overwrite a newer manifest by a PUT that comes late.
        self.manifest_overtaken = False
        self._server = server
        self._scheduler = scheduler
        self._manifests: dict[int, tuple[Stored, ManifestRead | None]] = {}
        server.changed = self.changed
        server.aborted = self.aborted

    # -- what is watched -------------------------------------------------------------------------------

    def changed(self, key: str, before: Stored | None, now: Stored | None, task: Task | None) -> None:
        """Look at one change."""
        hour = self.hour
        if now is not None and now.author not in SCENARIO:
            self.ours.add(key)
        if task is not None:
            self.damaged.pop(key, None)
            if not key.startswith(hour.aggregated):
                self.fail(f"{task.name} changed {key}, which is not below {hour.aggregated}")
            if before is not None and before.author == FOREIGN:
                self.fail(f"{task.name} changed {key}, which belongs to someone else")
            if now is not None and hour.is_part_like(key) and self._lacks_headers(now):
                self.fail(f"{task.name} wrote {key} without its storage class")
        if not key.startswith(hour.aggregated):
            return
        if before is not None and task is not None:
            self._check_owed(f"after {task.name} changed {key.removeprefix(hour.aggregated)}")
        if key == hour.manifest and now is not None and task is not None and not self.fenced:
            self.manifest_overtaken |= not self._is_claimed(now)
        if key in (hour.marker, hour.manifest) or hour.is_part_like(key):
            for problem in self.wrong():
                who = task.name if task is not None else "the world"
                self.fail(f"after {who} changed {key.removeprefix(hour.aggregated)}: {problem}")

    def _is_claimed(self, manifest: Stored) -> bool:
        """Whether a manifest was written under the claim that is there."""
        read = self.read_manifest(manifest)
        claim = self._server.objects.get(self.hour.work + "claim.json")
        try:
            current = json.loads(claim.body)["claim_id"] if claim else None
        except (ValueError, LookupError, TypeError):
            return False
        return read is not None and current == read.header.get("claim_id")

    def aborted(self, upload: Upload, task: Task | None) -> None:
        """Look at an upload that was given up."""
        if upload.author == FOREIGN and task is not None:
            self.fail(f"{task.name} aborted the upload of {upload.key}, which belongs to someone else")

    def fail(self, problem: str) -> None:
        """Note what is wrong; the life ends with it."""
        self.problems.append(problem)
        self._scheduler.stopped = True

    def _lacks_headers(self, stored: Stored) -> bool:
        wanted = self.hour.storage_class
        return wanted is not None and stored.headers.get("x-amz-storage-class") != wanted

    # -- the hour --------------------------------------------------------------------------------------

    def wrong(self, *, final: bool = False) -> list[str]:
        """What is wrong with the hour, if a marker is in place.

        :param final: the world has been quiet since: the raw hour is what it is, and no damage is excused
        """
        objects, hour = self._server.objects, self.hour
        marker = objects.get(hour.marker)
        if marker is None or (marker.author in SCENARIO and not final):
            return ["there is no marker"] if final else []
        since = marker.task.started if marker.task else marker.step
        try:
            said = json.loads(marker.body)
            plan_id = said["plan_id"]
        except (ValueError, LookupError, TypeError) as error:
            return [f"the marker cannot be read: {error!r}"]
        manifest = objects.get(hour.manifest)
        if not final and self._excused(hour.manifest, since):
            return []
        if manifest is None:
            return ["a marker is in place, but no manifest"]
        read = self.read_manifest(manifest)
        if read is None:
            return ["a marker is in place, but the manifest cannot be read"]
        if read.plan_id != plan_id and not self.fenced and not final:
            return []
        if read.plan_id != plan_id:
            return [f"the marker is of plan {plan_id}, the manifest of {read.plan_id}"]
        problems = [
            f"the marker says {name}={said.get(name)}, the manifest {read.header[name]}"
            for name in ("objects", "bytes_in", "separator_bytes", "bytes_out", "parts")
            # A digit of a marker that was damaged may still be a digit.
            if said.get(name) != read.header[name] and marker.author not in SCENARIO
        ]
        problems += self._wrong_parts(read, since, final)
        problems += self._wrong_objects(read, manifest, final)
        return problems

    def _excused(self, key: str, since: int) -> bool:
        """Whether the world damaged a key after the task that wrote the marker began."""
        return self.damaged.get(key, -1) >= since

    def _wrong_parts(self, read: ManifestRead, since: int, final: bool) -> Iterator[str]:
        sizes = {entry["name"]: entry for entry in read.header["parts_table"]}
        bytes_out = 0
        for name, rows in read.by_part().items():
            key = self.hour.aggregated + name
            expected, problem = self._expected(rows)
            if problem:
                yield f"{name}: {problem}"
                continue
            bytes_out += len(expected)
            if name not in sizes or sizes[name]["size"] != len(expected):
                yield f"{name}: the manifest gives it another size than its raw objects have"
            stated = sizes[name]["crc64nvme"] if name in sizes else None
            if stated is not None and stated != f"{crc64nvme(expected):016x}":
                yield f"{name}: the manifest gives it the CRC {stated}, its raw objects have another one"
            if not final and self._excused(key, since):
                continue
            stored = self._server.objects.get(key)
            if stored is None:
                yield f"{name} is missing"
            elif stored.body != expected:
                yield f"{name} holds {stored.body[:60]!r}, not {expected[:60]!r}"
            elif len(expected) > self.hour.part_size and len(rows) > 1:
                yield f"{name} holds more than a part may"
        if bytes_out != read.header["bytes_out"]:
            yield f"the manifest says {read.header['bytes_out']} bytes, its parts have {bytes_out}"

    def _expected(self, rows: Sequence[Row]) -> tuple[bytes, str | None]:
        """The bytes that a part has to hold by its rows."""
        body = b""
        last = ""
        kinds = set()
        for row in rows:
            version = self._version(row.key, row.etag)
            if version is None:
                return b"", f"{row.key} with ETag {row.etag} was never produced"
            if row.key <= last:
                return b"", f"{row.key} is not in key order"
            last = row.key
            if row.offset == len(body) + 1:
                if not (self.hour.ensure_newline and encoding_of(row.key) == "") or body.endswith(b"\n"):
                    return b"", f"there is a byte before {row.key} that belongs to nothing"
                body += b"\n"
            if row.offset != len(body) or row.length != len(version.body):
                return b"", f"{row.key} is said to lie at {row.offset}, with {row.length} bytes"
            if row.crc64nvme is not None and row.crc64nvme != f"{crc64nvme(version.body):016x}":
                return b"", f"{row.key} is said to have the CRC {row.crc64nvme}"
            body += version.body
            kinds.add(encoding_of(row.key))
        if len(kinds) > 1:
            return b"", f"it mixes {sorted(kinds)}"
        wants_newline = self.hour.ensure_newline and kinds == {""} and len(body) <= self.hour.part_size
        if wants_newline and body and not body.endswith(b"\n"):
            copied = len(rows) == 1 and len(body) + 1 > self.hour.part_size
            body += b"" if copied else b"\n"
        return body, None

    def _wrong_objects(self, read: ManifestRead, manifest: Stored, final: bool) -> Iterator[str]:
        """Every raw object is in the manifest once, as it was at some moment while the hour was validated."""
        begin = manifest.task.started if manifest.task else manifest.step
        end = manifest.step
        if final:
            begin = end = self._scheduler.step
        named: dict[str, str] = {}
        for row in read.rows:
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
            elif _covers(present, begin, end):
                yield f"{key} is not in the manifest, and was there all the time"
        if len(read.rows) != read.header["objects"]:
            yield f"the manifest says {read.header['objects']} objects, and names {len(read.rows)}"
        total = sum(row.length for row in read.rows)
        if total != read.header["bytes_in"]:
            yield f"the manifest says {read.header['bytes_in']} bytes of raw objects, and names {total}"

    def _version(self, key: str, etag: str) -> Version | None:
        for version in self.hour.history.get(key, ()):
            if version.etag == etag:
                return version
        return None

    def read_manifest(self, stored: Stored) -> ManifestRead | None:
        """A manifest, None if it cannot be read."""
        known = self._manifests.get(id(stored))
        if known is None or known[0] is not stored:
            known = self._manifests[id(stored)] = (stored, _read_manifest(stored.body))
        return known[1]

    # -- last copies -----------------------------------------------------------------------------------

    def vanished(self, version: Version) -> bool:
        """A raw object is gone: from now on a part that holds it owes its bytes.

        A part that is not right, or is about to be deleted, is nothing that anyone can rely on.

        :returns: whether one does
        """
        if not version.body or not self.hour.is_input(version.key, len(version.body)):
            return False
        if any(version.body in body for body in self.destroyed) or self._came_back_unseen(version):
            return False
        condemned = self._under_removal()
        for part, contents in self.recorded().items():
            stored = self._server.objects.get(self.hour.aggregated + part)
            if stored is None or part in condemned:
                continue
            for objects in contents:
                if (version.key, version.etag) in objects and stored.body == self._joined(objects):
                    self.owed[version.key, version.etag] = version.body
                    return True
        return False

    def _came_back_unseen(self, version: Version) -> bool:
        """Whether a producer restored an earlier content after the hour was planned with another one.

        No plan has listed it since, so that a part which still holds it counts as replaced.
        """
        known = self.hour.history[version.key]
        planned = self._server.objects.get(self.hour.work + "claim.json") or self._server.objects.get(
            self.hour.manifest
        )
        came_back = any(each.etag == version.etag for each in known if each is not version)
        return came_back and planned is not None and version.begin > planned.step

    def _under_removal(self) -> set[str]:
        """Names of parts that some task has announced to delete."""
        names: set[str] = set()
        for key, stored in self._server.objects.items():
            if key.startswith(self.hour.work + "removals/") and stored.author not in SCENARIO:
                names.update(json.loads(stored.body)["names"])
        return names

    def _joined(self, objects: Sequence[tuple[str, str]]) -> bytes | None:
        """The bytes of a part that holds these raw objects."""
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

    def produced(self, key: str) -> None:
        """A raw object is there again: what it was before is no longer owed."""
        for owed in [owed for owed in self.owed if owed[0] == key]:
            del self.owed[owed]

    def forgive(self, stored: Stored) -> None:
        """The world itself destroys a part: its bytes are owed by no one."""
        self.destroyed.append(stored.body)
        for owed in [owed for owed, body in self.owed.items() if body in stored.body]:
            del self.owed[owed]

    def _check_owed(self, when: str) -> None:
        if self.drops_vanished or not self.owed:
            return
        parts = [stored.body for key, stored in self._server.objects.items() if self.hour.is_part_like(key)]
        for (key, _), body in self.owed.items():
            if not any(body in part for part in parts):
                self.fail(f"{when}: the last copy of {key} is lost")

    def unrecorded(self) -> list[str]:
        """Owed raw objects whose part no readable record names any more."""
        if self.drops_vanished or self.records_damaged or self.manifest_overtaken:
            return []
        recorded = {held for contents in self.recorded().values() for objects in contents for held in objects}
        return [
            f"no record names the part that holds {key}"
            for key, etag in self.owed
            if (key, etag) not in recorded
        ]

    def recorded(self) -> dict[str, list[list[tuple[str, str]]]]:
        """For each part that a readable record names: the raw objects that it holds, by each record."""
        found: dict[str, list[list[tuple[str, str]]]] = {}
        manifest = self._server.objects.get(self.hour.manifest)
        read = self.read_manifest(manifest) if manifest else None
        if read is not None:
            for part, rows in read.by_part().items():
                found.setdefault(part, []).append([(row.key, row.etag) for row in rows])
        for key, stored in self._server.objects.items():
            if key.startswith(self.hour.work) and "/shard-" in key:
                self._add_shard(found, key, stored)
        return found

    def _add_shard(self, found: dict[str, list[list[tuple[str, str]]]], key: str, stored: Stored) -> None:
        """What a plan's shard and its receipt say of parts."""
        shard = _read_json(stored, (1, 2))
        receipt = self._server.objects.get(key.replace("/shard-", "/receipt-"))
        written = _read_json(receipt, (1,)) if receipt else None
        if shard is None:
            return
        for part in shard["parts"]:
            found.setdefault(part[0], []).append([(self.hour.raw + row[0], row[2]) for row in part[5]])
        for parts in (written or {}).get("splits", {}).values():
            for part in parts:
                found.setdefault(part[0], []).append([(row[0], row[2]) for row in part[4]])


def encoding_of(key: str) -> str:
    """The ending by which an object is kept apart from plain ones, in lower case."""
    name = key.rpartition("/")[2].lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def _covers(versions: Sequence[Version], begin: int, end: int) -> bool:
    """Whether there was a version at every moment."""
    covered = begin
    for version in sorted(versions, key=lambda version: version.begin):
        if version.begin > covered:
            return False
        if version.end is None or version.end > end:
            return True
        covered = max(covered, version.end)
    return False


def _read_json(stored: Stored, formats: Sequence[int]) -> dict[str, Any] | None:
    try:
        body: dict[str, Any] = json.loads(gzip.decompress(stored.body))
        return body if body["format"] in formats else None
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError):
        return None


def _read_manifest(body: bytes) -> ManifestRead | None:
    try:
        first, *lines = gzip.decompress(body).decode().removesuffix("\n").split("\n")
        header = json.loads(first)
        if header["format"] != 1:
            return None
        rows = [json.loads(line) for line in lines]
        return ManifestRead(
            header,
            [
                Row(row["key"], row["part"], row["offset"], row["length"], row["etag"], row["crc64nvme"])
                for row in rows
            ],
        )
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError):
        return None
