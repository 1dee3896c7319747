"""Proves a complete hour again, from the store's CRCs or from every byte, and changes nothing."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from include.log_rollup import crc
from include.log_rollup.decompression import DamageError, decompress_object
from include.log_rollup.errors import ArchivedError, InputChangedError, NotFoundError, ProofError
from include.log_rollup.hour.changes import Changes, Comparison, first_keys
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.manifest import Manifest
from include.log_rollup.hour.parts import (
    Piece,
    count_recompressed,
    held_crc,
    part_problem,
    read_pieces,
    stored_bytes,
    unpacked_bytes,
)
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.hour.records import (
    PROVEN_BY_READING,
    PROVEN_BY_STORE,
    CompletionMarker,
    PackedObject,
    PackedPart,
)
from include.log_rollup.hour.selection import encoding_of, select
from include.log_rollup.queries.verify_groups import find_group_problems
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream

# A kind of proof that manifests don't have: the part was read back once, and its ETag is still the same.
PROVEN_BY_ETAG = "same-etag"

ProgressCallback = Callable[[int, int], None]
"""Called with the number of bytes of parts that are done, and the total; from several threads, one at a time."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A difference between the hour and its records.

    :param part: name of the part that is wrong or archived; None if the problem is not in one part
    :param keys: the raw objects whose bytes are wrong, as far as known
    :param group: folder of the group whose records are missing or wrong; None if the problem is not in these
    :param is_archived: whether the part cannot be read, so that nothing is known of its bytes
    """

    part: str | None
    reason: str
    keys: Sequence[str] = ()
    group: str | None = None
    is_archived: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying a complete hour; sizes in bytes.

    :param proofs: number of proven parts, by kind of proof
    :param raw_present: how many raw objects still exist as they were packed
    :param raw_compared: how many of them were read and compared with the parts, byte for byte
    :param changes: how the raw hour differs from the packed objects; expired and vanished ones are not a problem
    :param announced: names of the parts whose raw objects have expired, or may expire at any moment
    :param foreign: number of foreign objects; they are not a problem
    :param groups: number of groups; None if the stream has none
    """

    plan_id: str
    deep: bool
    objects: int
    bytes_in: int
    bytes_out: int
    parts: int
    proofs: Mapping[str, int]
    raw_present: int
    raw_compared: int
    changes: Changes
    foreign: int
    problems: Sequence[Problem]
    groups: int | None = None
    announced: Collection[str] = ()

    @property
    def remedy(self) -> str | None:
        """What to do about wrong parts, or else about wrong records of groups; None if there are none."""
        if not any(problem.part and not problem.is_archived for problem in self.problems):
            if any(problem.is_archived for problem in self.problems):
                return (
                    "Retrieve these parts from the archive (docs/READING.md), then verify the hour again. Without "
                    "--deep, a part whose CRC the store states is not read."
                )
            return self._remedy_for_groups
        if self.changes.vanished:
            return (
                "Raw objects of the hour have vanished, so a rerun is refused. Restore the parts from older "
                "versions or a copy; until then `log-rollup cat` reads every object whose bytes are right."
            )
        last = [one.part for one in self.problems if one.part and one.part in self.announced]
        if last:
            return (
                f"Raw objects of {len(last):,} of these parts have expired ({first_keys(last)}). Restore these "
                f"parts from older versions or a copy; until then `log-rollup cat` reads every object whose bytes "
                f"are right. "
                f"Then delete _SUCCESS and the other wrong parts, if there are any, and clear the hour's run from "
                f"plan_hour on."
            )
        # The parts have to be deleted: a rerun keeps a part with the right ETag, also if its bytes are wrong.
        return (
            "Delete _SUCCESS, then those parts, then clear the hour's run from plan_hour on: they are packed "
            "again from the raw objects, all of which are there."
        )

    @property
    def _remedy_for_groups(self) -> str | None:
        if not any(problem.group for problem in self.problems):
            return None
        if self.changes.vanished:
            return (
                "Raw objects of the hour have vanished, so a rerun is refused. The manifest of the hour names the "
                "parts of all groups; restore the records of these groups from older versions or a copy."
            )
        return (
            "Delete _SUCCESS and _manifest.jsonl.gz of these groups where they exist, and the hour's _SUCCESS, "
            "then clear the hour's run from plan_hour on: they are written again, and no part is packed again."
        )


def verify_hour(
    store: ObjectStore,
    stream: Stream,
    hour: datetime,
    *,
    deep: bool = False,
    on_progress: ProgressCallback | None = None,
) -> Verification:
    """Prove a complete hour from the bucket, reading only.

    Raw and aggregated are listed again and compared with the manifest. The size and ETag of each part have to
    match, and so has the CRC that the store states, if the store was seen to refuse wrong CRCs when the hour was
    validated. A part that was read back then counts as proven while its ETag is the same. Expired and vanished raw
    objects are not a problem: the manifest alone proves their parts.

    With groups, each of them needs a manifest and a completion marker that agree with the manifest of the hour.

    :param deep: read every part, and compare the CRCs of the part and of each raw object in it with the manifest;
        compare the bytes with the raw objects that still exist
    :raises NotFoundError: if the hour is not complete
    :raises ProofError: if its records are damaged, or do not belong together
    :raises SupersededError: if a run has started to replace the hour meanwhile
    :raises RollupError: as the store raises
    """
    reader = HourReader(store, stream, hour)
    marker, manifest = _load(reader)
    totals = manifest.totals
    chosen, _ = select(reader.paths.raw.list_all(store), reader.paths.name_of, stream.input_rules)
    inventory = reader.inventory()
    expiry = reader.expiry_record() if inventory.expiry_etag is not None else None
    comparison = Comparison(chosen, expiry)
    for planned in manifest.planned:
        comparison.add(planned)
    changes = comparison.changes()
    present = {item.key for item in chosen} - {*changes.late, *changes.changed}
    packed_names = {part.name for part in manifest.packed}
    strays = reader.strays(inventory, packed_names, totals.plan_id, None)
    unnamed = reader.unnamed_expired(inventory.parts, packed_names | strays.keys(), expiry)
    verifier = _PartVerifier(
        store,
        reader.paths,
        stream.raw.root,
        inventory.parts,
        present if deep else set(),
        deep,
        _Progress(manifest, on_progress),
    )
    outcomes = verifier.run(manifest)
    group_problems = (
        find_group_problems(store, reader.paths, marker, manifest, inventory)
        if reader.paths.has_groups
        else ()
    )
    problems = [
        *_count_problems(marker, manifest),
        *(Problem(None, f"group {one.folder}: {one.reason}", (), one.folder) for one in group_problems),
        *_stray_problems(strays),
        *((Problem(None, unnamed),) if unnamed else ()),
        *_raw_problems(changes),
        *(outcome for outcome in outcomes if isinstance(outcome, Problem)),
    ]
    if problems:
        _assert_not_replaced(reader, totals.plan_id)
    proofs = [outcome for outcome in outcomes if isinstance(outcome, _Proof)]
    return Verification(
        plan_id=totals.plan_id,
        deep=deep,
        objects=totals.objects,
        bytes_in=totals.bytes_in,
        bytes_out=totals.bytes_out,
        parts=totals.parts,
        proofs=dict(sorted(Counter(proof.kind for proof in proofs).items())),
        raw_present=len(present),
        raw_compared=sum(proof.compared for proof in proofs),
        changes=changes,
        foreign=len(inventory.parts.keys() - packed_names - strays.keys()) + len(inventory.foreign),
        problems=problems,
        groups=len(totals.groups) if reader.paths.has_groups else None,
        announced=comparison.announced,
    )


def _assert_not_replaced(reader: HourReader, plan_id: str) -> None:
    """Make sure that the problems are not those of an hour in transition.

    :raises SupersededError: if the hour is no longer complete under this plan
    """
    marker = reader.marker()
    if marker is None or not marker.is_of(plan_id):
        raise reader.superseded(
            f"a run has begun to replace hour {format_hour(reader.paths.hour)} while it was verified",
            "verify it again when that run is done",
        )


def _load(reader: HourReader) -> tuple[CompletionMarker, Manifest]:
    """The records of a complete hour.

    :raises NotFoundError: if it is not complete
    :raises ProofError: if a record is damaged, or they are of different plans
    """
    paths = reader.paths
    hour = format_hour(paths.hour)
    marker = reader.marker()
    if marker is None:
        claim = reader.claim()
        now = "no run has planned it" if claim is None else f"it is being built as plan {claim.plan_id}"
        raise NotFoundError(f"hour {hour} is not complete, so there is nothing to verify: {now}")
    manifest = reader.manifest()
    if marker.content is None or manifest is None:
        raise ProofError(
            f"hour {hour}: there is no {paths.marker} with a {paths.manifest} of this version. Clear the hour's "
            f"run from plan_hour on: its message says what to do"
        )
    if not marker.is_of(manifest.totals.plan_id):
        raise ProofError(
            f"hour {hour}: {paths.marker} is of plan {marker.content.plan_id}, the manifest next to it of plan "
            f"{manifest.totals.plan_id}. If no run of the hour is active, clear its run from plan_hour on."
        )
    return marker.content, manifest.whole()


def _count_problems(marker: CompletionMarker, manifest: Manifest) -> list[Problem]:
    """Totals that differ between the marker, the header of the manifest, and its lines."""
    totals = manifest.totals
    counted = {
        "objects": sum(len(part.objects) for part in manifest.planned),
        "bytes_in": sum(part.size for part in manifest.planned),
        "bytes_out": sum(part.content_size for part in manifest.packed),
        "bytes_stored": stored_bytes(manifest.packed),
        "recompressed": count_recompressed(manifest.packed),
        "bytes_unpacked": unpacked_bytes(zip(manifest.planned, manifest.packed, strict=True)),
        "parts": len(manifest.packed),
    }
    return [
        Problem(None, f"{name}: _SUCCESS says {stated}, the manifest's header {header}, its lines {number}")
        for name, number in counted.items()
        if not (stated := getattr(marker, name)) == (header := getattr(totals, name)) == number
    ]


def _stray_problems(strays: Iterable[str]) -> list[Problem]:
    reason = (
        "a run that was overtaken left it behind. Clear the hour's run from plan_hour on, which removes it"
    )
    return [Problem(None, f"{name}: {reason}") for name in sorted(strays)]


def _raw_problems(changes: Changes) -> list[Problem]:
    """Raw objects that came late or changed."""
    new = Changes(changes.late, changes.changed, ())
    remedy = (
        "a rerun is refused, because others have vanished"
        if changes.vanished
        else "log_rollup_late reruns the hour within the stream's late_days; or clear its run"
    )
    if not new:
        return []
    return [Problem(None, f"raw objects are not what was packed: {new}; {remedy}")]


@dataclass(frozen=True, slots=True)
class _Proof:
    """A part is right.

    :param compared: how many of its raw objects were compared, byte for byte
    """

    kind: str
    compared: int = 0


class _Progress:
    """Counts the bytes of parts that are done; may be used from several threads."""

    def __init__(self, manifest: Manifest, on_progress: ProgressCallback | None) -> None:
        self._total = sum(part.size for part in manifest.packed)
        self._done = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self._on_progress:
                self._on_progress(self._done, self._total)


class _PartVerifier:
    """Proves parts, on as many threads as the store has control connections.

    :param listed: the parts that exist, by name
    :param present: keys of the raw objects to compare with the parts
    """

    def __init__(
        self,
        store: ObjectStore,
        paths: HourPaths,
        raw: Location,
        listed: Mapping[str, ObjectInfo],
        present: set[str],
        deep: bool,
        progress: _Progress,
    ) -> None:
        self._store = store
        self._paths = paths
        self._raw = raw
        self._listed = listed
        self._present = present
        self._deep = deep
        self._progress = progress
        self._stopped = threading.Event()

    def run(self, manifest: Manifest) -> list[_Proof | Problem]:
        """The outcome for each part, in order."""
        with ThreadPoolExecutor(self._store.control_connections, "log-rollup-verify") as threads:
            try:
                return list(threads.map(self._verify, manifest.planned, manifest.packed))
            except BaseException:
                # Don't wait for the other threads to finish their parts, which may have gigabytes.
                self._stopped.set()
                raise

    def _verify(self, planned: PlannedPart, packed: PackedPart) -> _Proof | Problem:
        problem = part_problem(planned, packed, self._listed.get(planned.name))
        if problem:
            self._progress.add(packed.size)
            return Problem(planned.name, problem)
        try:
            if not self._deep:
                outcome = self._verify_by_head(packed)
                if outcome:
                    self._progress.add(packed.size)
                    return outcome
            return self._verify_by_reading(planned, packed)
        except (InputChangedError, NotFoundError):
            return Problem(planned.name, "it was overwritten or removed while it was verified")
        except ProofError as error:
            return Problem(planned.name, str(error))
        except ArchivedError:
            self._progress.add(packed.size)
            return Problem(planned.name, "it is archived, so that its bytes cannot be read", is_archived=True)

    def _verify_by_head(self, packed: PackedPart) -> _Proof | Problem | None:
        """Compare the CRC that the store states; None if it states none."""
        if packed.proof == PROVEN_BY_READING:
            return _Proof(PROVEN_BY_ETAG)
        # The store's CRC counts: when the hour was validated, the store refused a wrong one.
        head = self._store.head(self._paths.part(packed.name))
        if head is None or head.etag != packed.etag:
            return Problem(packed.name, "it was overwritten or removed while it was verified")
        if head.crc64nvme is None:
            return None
        if head.crc64nvme != packed.crc64nvme:
            return Problem(packed.name, f"the store has CRC64NVME {head.crc64nvme:x}, {_stated(packed)}")
        return _Proof(PROVEN_BY_STORE)

    def _verify_by_reading(self, planned: PlannedPart, packed: PackedPart) -> _Proof | Problem:
        """Read the part, and the raw objects that are still present."""
        part_crc = 0
        crcs = [0] * len(planned.objects)
        compared = [item.key in self._present for item in planned.objects]
        different: set[int] = set()
        for run, pieces in read_pieces(self._store, self._paths.part(planned.name), planned, packed):
            if self._stopped.is_set():
                break
            part_crc = crc.crc64(run, part_crc)
            for piece in pieces:
                index = piece.index
                crcs[index] = crc.crc64(piece.body, crcs[index])
                if compared[index] and piece.body:
                    raw = self._read_raw(planned.objects[index], packed.objects[index], piece)
                    compared[index] = raw is not None
                    if raw not in (None, piece.body):
                        different.add(index)
            self._progress.add(len(run))
        problem = _crc_problem(planned, packed, part_crc, crcs)
        if problem:
            return problem
        if different:
            return _raw_content_problem(planned, different)
        return _Proof(PROVEN_BY_READING, sum(compared))

    def _read_raw(self, item: ObjectInfo, done: PackedObject, piece: Piece) -> bytes | None:
        """The bytes of a raw object that belong to a piece; None if it has expired, changed or been archived.

        Of a recompressed object: its content, empty if it cannot be decompressed.
        """
        source = self._raw.at(item.key)
        try:
            if done.content is None:
                return self._store.read_range(source, item.etag, piece.offset, len(piece.body))
            body = self._store.read_range(source, item.etag, 0, item.size)
        except (NotFoundError, InputChangedError, ArchivedError):
            return None
        try:
            return decompress_object(encoding_of(item.key), body, done.content.size)
        except DamageError:
            return b""


def _crc_problem(
    planned: PlannedPart, packed: PackedPart, part_crc: int, crcs: Sequence[int]
) -> Problem | None:
    """How the CRCs of a part and of the objects in it differ from the manifest; None if they don't."""
    wrong = [
        item.key
        for item, value, stated in zip(planned.objects, crcs, packed.objects, strict=True)
        if value != held_crc(stated)
    ]
    reasons = []
    if part_crc != packed.crc64nvme:
        reasons.append(f"its bytes have CRC64NVME {part_crc:x}, {_stated(packed)}")
    if wrong:
        reasons.append(
            f"the bytes of {len(wrong)} objects are not as the manifest says ({first_keys(wrong)})"
        )
    return Problem(planned.name, "; ".join(reasons), wrong) if reasons else None


def _raw_content_problem(planned: PlannedPart, different: set[int]) -> Problem:
    """Raw objects whose bytes differ from a part that is right itself."""
    keys = [planned.objects[index].key for index in sorted(different)]
    return Problem(
        None,
        f"the bytes of {len(keys)} raw objects are not those that were packed, though their ETags are "
        f"({first_keys(keys)}); {planned.name} holds what was packed",
        keys,
    )


def _stated(packed: PackedPart) -> str:
    return "none in the manifest" if packed.crc64nvme is None else f"{packed.crc64nvme:x} is in the manifest"
