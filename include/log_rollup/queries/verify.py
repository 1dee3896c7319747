"""Proves a complete hour once more, and changes nothing: what validate_hour asks, and with ``deep`` every byte."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from awscrt import checksums

from include.log_rollup.errors import InputChangedError, NotFoundError, ProofError
from include.log_rollup.hour.changes import Changes, compare, first_keys
from include.log_rollup.hour.layout import HourPaths, format_hour
from include.log_rollup.hour.manifest import Manifest
from include.log_rollup.hour.parts import Piece, part_problem, read_pieces
from include.log_rollup.hour.plan import PlannedPart, select
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.hour.records import PROVEN_BY_READING, PROVEN_BY_STORE, CompletionMarker, PackedPart
from include.log_rollup.storage.listing import list_all
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream

# How a part was proven, beside the kinds in the manifest: it was read back once, and has the ETag of then.
PROVEN_BY_ETAG = "same-etag"

Watch = Callable[[int, int], None]
"""Called, from several threads in turn, with how many bytes of parts are proven, and of how many."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    :param part: the part that is wrong; None where it is the hour as a whole
    :param keys: the raw objects whose bytes are wrong, as far as they are known
    """

    part: str | None
    reason: str
    keys: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of a complete hour; sizes in bytes.

    :param proofs: how many parts were proven, by kind of proof
    :param raw_present: how many of its raw objects are there as they were packed
    :param raw_compared: how many of those were read and held against the parts, byte for byte
    :param changes: how the raw hour differs from what was packed; what has vanished is no problem
    :param foreign: objects beside the parts that are not this project's; they are no problem
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

    @property
    def remedy(self) -> str | None:
        """What to do about parts that are not right; None if all of them are."""
        if not any(problem.part for problem in self.problems):
            return None
        if self.changes.vanished:
            return (
                "Raw objects of the hour have expired, so that a rerun is refused. Restore the parts from older "
                "versions or a copy; until then `log-rollup cat` reads every object whose bytes are right."
            )
        # A part whose bytes changed behind its ETag would be left alone by a rerun.
        return (
            "Delete _SUCCESS, then those parts, then clear the hour's run from plan_hour on: they are packed "
            "again from the raw objects, all of which are there."
        )


def verify_hour(
    store: ObjectStore, stream: Stream, hour: datetime, *, deep: bool = False, watch: Watch | None = None
) -> Verification:
    """Prove a complete hour from what is in the bucket, reading only.

    Raw and aggregated are listed anew and held against the manifest. A part has to have its size and ETag,
    and the CRC that the store states, where that could be trusted when the hour was validated; a part that
    was read back then is the same as long as its ETag is. Raw objects that have expired are no fault: the
    parts are then proven by the manifest alone.

    :param deep: read every part, and hold the CRC of its bytes and of the bytes of each raw object in it
        against the manifest, and against the raw objects themselves where they still exist
    :param watch: told how far it is
    :raises NotFoundError: if the hour is not complete
    :raises ProofError: if its records are damaged, or do not belong together
    :raises SupersededError: if a run has begun to replace it meanwhile
    :raises RollupError: as the store raises
    """
    reader = HourReader(store, stream, hour)
    paths = reader.paths
    marker, manifest = _load(reader)
    chosen, _ = select(list_all(store, paths.raw), paths.raw.key, stream.ready_object)
    changes = compare(manifest.planned, chosen)
    present = {item.key for item in chosen} - {*changes.late, *changes.changed}
    found = reader.inventory()
    standing = found.parts
    others = standing.keys() - {part.name for part in manifest.packed}
    strays = reader.strays(found, {part.name for part in manifest.packed}, manifest.totals.plan_id, None)
    verifier = _Verifier(
        store,
        paths,
        stream.raw.bucket,
        standing,
        present if deep else set(),
        deep,
        _Progress(manifest, watch),
    )
    outcomes = verifier.run(manifest)
    problems = [
        *_differences(marker, manifest),
        *_left_behind(strays),
        *_arrivals(changes),
        *(outcome for outcome in outcomes if isinstance(outcome, Problem)),
    ]
    if problems:
        current = reader.marker()
        if current is None or not current.is_of(manifest.totals.plan_id):
            raise reader.superseded(
                f"a run has begun to replace hour {format_hour(hour)} while it was verified",
                "verify it again when that run is done",
            )
    proven = [outcome for outcome in outcomes if isinstance(outcome, _Proven)]
    totals = manifest.totals
    return Verification(
        plan_id=totals.plan_id,
        deep=deep,
        objects=totals.objects,
        bytes_in=totals.bytes_in,
        bytes_out=totals.bytes_out,
        parts=totals.parts,
        proofs=dict(sorted(Counter(outcome.proof for outcome in proven).items())),
        raw_present=len(present),
        raw_compared=sum(outcome.compared for outcome in proven),
        changes=changes,
        foreign=len(others - strays.keys()) + len(found.foreign),
        problems=problems,
    )


def _load(reader: HourReader) -> tuple[CompletionMarker, Manifest]:
    paths = reader.paths
    hour = format_hour(paths.hour)
    marker = reader.marker()
    if marker is None:
        claimed = reader.claim()
        now = "no run has planned it" if claimed is None else f"it is being built as plan {claimed.plan_id}"
        raise NotFoundError(f"hour {hour} is not complete, so there is nothing to verify: {now}")
    manifest = reader.manifest()
    if marker.content is None or manifest is None:
        raise ProofError(
            f"hour {hour}: there is no {paths.marker} with a {paths.manifest} of this version. Clear the hour's "
            f"run from plan_hour on: its message says what to do"
        )
    if not marker.is_of(manifest.totals.plan_id):
        raise ProofError(
            f"hour {hour}: {paths.marker} is of plan {marker.content.plan_id}, the manifest beside it of plan "
            f"{manifest.totals.plan_id}. If no run is at work on the hour, clear its run from plan_hour on."
        )
    return marker.content, manifest.whole()


def _differences(marker: CompletionMarker, manifest: Manifest) -> list[Problem]:
    """Where marker, manifest's header and manifest's lines do not say the same."""
    totals = manifest.totals
    counted = {
        "objects": sum(len(part.objects) for part in manifest.planned),
        "bytes_in": sum(part.size for part in manifest.planned),
        "bytes_out": sum(part.size for part in manifest.packed),
        "parts": len(manifest.packed),
    }
    return [
        Problem(None, f"{name}: _SUCCESS says {stated}, the manifest's header {header}, its lines {number}")
        for name, number in counted.items()
        if not (stated := getattr(marker, name)) == (header := getattr(totals, name)) == number
    ]


def _left_behind(strays: Iterable[str]) -> list[Problem]:
    reason = (
        "a run that was overtaken left it behind. Clear the hour's run from plan_hour on, which removes it"
    )
    return [Problem(None, f"{name}: {reason}") for name in sorted(strays)]


def _arrivals(changes: Changes) -> list[Problem]:
    since = Changes(changes.late, changes.changed, ())
    remedy = (
        "a rerun is refused, because others have expired"
        if changes.vanished
        else "log_rollup_late reruns the hour within the stream's late_days; or clear its run"
    )
    return [Problem(None, f"raw objects are not what was packed: {since}; {remedy}")] if since else []


@dataclass(frozen=True, slots=True)
class _Proven:
    proof: str
    compared: int = 0


class _Progress:
    """How many bytes of parts are done; safe to use from several threads."""

    def __init__(self, manifest: Manifest, watch: Watch | None) -> None:
        self._total = sum(part.size for part in manifest.packed)
        self._done = 0
        self._watch = watch
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self._watch:
                self._watch(self._done, self._total)


class _Verifier:
    """Proves one part at a time; safe to use from several threads.

    :param present: the raw objects to hold against the parts
    """

    def __init__(
        self,
        store: ObjectStore,
        paths: HourPaths,
        raw_bucket: str,
        standing: Mapping[str, ObjectInfo],
        present: set[str],
        deep: bool,
        progress: _Progress,
    ) -> None:
        self._store = store
        self._paths = paths
        self._raw_bucket = raw_bucket
        self._standing = standing
        self._present = present
        self._deep = deep
        self._progress = progress
        self._stopped = threading.Event()

    def run(self, manifest: Manifest) -> list[_Proven | Problem]:
        """The outcome of each part, in order."""
        with ThreadPoolExecutor(self._store.control_connections, "log-rollup-verify") as threads:
            try:
                return list(threads.map(self._prove, manifest.planned, manifest.packed))
            except BaseException:
                # Not to be waited for: one part may be an object of gigabytes.
                self._stopped.set()
                raise

    def _prove(self, planned: PlannedPart, packed: PackedPart) -> _Proven | Problem:
        problem = part_problem(planned, packed, self._standing.get(planned.name))
        if problem:
            self._progress.add(packed.size)
            return Problem(planned.name, problem)
        try:
            if not self._deep:
                proof = self._without_reading(packed)
                if proof:
                    self._progress.add(packed.size)
                    return proof
            return self._read(planned, packed)
        except (InputChangedError, NotFoundError):
            return Problem(planned.name, "it was overwritten or removed while it was verified")

    def _without_reading(self, packed: PackedPart) -> _Proven | Problem | None:
        """By what the store states, if that proves anything."""
        if packed.proof == PROVEN_BY_READING:
            return _Proven(PROVEN_BY_ETAG)
        # When the hour was validated, the store was seen to refuse a wrong CRC.
        head = self._store.head(self._paths.part(packed.name))
        if head is None or head.etag != packed.etag:
            return Problem(packed.name, "it was overwritten or removed while it was verified")
        if head.crc64nvme is None:
            return None
        if head.crc64nvme != packed.crc64nvme:
            return Problem(packed.name, f"the store has CRC64NVME {head.crc64nvme:x}, {_stated(packed)}")
        return _Proven(PROVEN_BY_STORE)

    def _read(self, planned: PlannedPart, packed: PackedPart) -> _Proven | Problem:
        whole = 0
        values = [0] * len(planned.objects)
        compared = [item.key in self._present for item in planned.objects]
        differ: set[int] = set()
        for run, pieces in read_pieces(self._store, self._paths.part(planned.name), planned, packed):
            if self._stopped.is_set():
                break
            whole = checksums.crc64nvme(run, whole)
            for piece in pieces:
                index = piece.index
                values[index] = checksums.crc64nvme(piece.body, values[index])
                if compared[index] and piece.body:
                    raw = self._raw(planned.objects[index], piece)
                    compared[index] = raw is not None
                    if raw not in (None, piece.body):
                        differ.add(index)
            self._progress.add(len(run))
        wrong = [
            item.key
            for item, value, done in zip(planned.objects, values, packed.objects, strict=True)
            if value != done.crc64nvme
        ]
        unlike = [planned.objects[index].key for index in sorted(differ)]
        reasons = []
        if whole != packed.crc64nvme:
            reasons.append(f"its bytes have CRC64NVME {whole:x}, {_stated(packed)}")
        if wrong:
            reasons.append(
                f"the bytes of {len(wrong)} objects are not as the manifest says ({first_keys(wrong)})"
            )
        if reasons:
            return Problem(planned.name, "; ".join(reasons), wrong)
        if unlike:
            reason = (
                f"the bytes of {len(unlike)} raw objects are not those that were packed, though their ETags are "
                f"({first_keys(unlike)}); {planned.name} holds what was packed"
            )
            return Problem(None, reason, unlike)
        return _Proven(PROVEN_BY_READING, sum(compared))

    def _raw(self, item: ObjectInfo, piece: Piece) -> bytes | None:
        """The same bytes of the raw object, None if it expired or changed meanwhile."""
        source = Location(self._raw_bucket, item.key)
        try:
            return self._store.read_range(source, item.etag, piece.offset, len(piece.body))
        except (NotFoundError, InputChangedError):
            return None


def _stated(packed: PackedPart) -> str:
    return "none in the manifest" if packed.crc64nvme is None else f"{packed.crc64nvme:x} is in the manifest"
