"""Deletes the raw objects of complete hours, of which parts hold proven copies."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice

from include.log_rollup.errors import ArchivedError, ProofError, SupersededError, UnsupportedOperationError
from include.log_rollup.hour.changes import MAX_SHOWN
from include.log_rollup.hour.expiry_record import Deletion, ExpiredPart, ExpiryRecord
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.manifest import ManifestReader
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.raw_listing import Presence, RawListing
from include.log_rollup.hour.records import READ_BY_LENGTH, PackedPart
from include.log_rollup.hour.selection import select
from include.log_rollup.hour.state import HourState
from include.log_rollup.hour.stored_proof import raw_crc, stored_problem
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import ExpiryStore, Location, ObjectInfo
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)

# S3 deletes at most this many objects in one request.
BATCH_OBJECTS = 1000
# Parts are proven in rounds of so many parts or raw objects, so that few of them are in memory.
_ROUND_PARTS = 64
_ROUND_OBJECTS = 20_000
_THREADS = "log-rollup-expiry"


class ExpiryState(StrEnum):
    """What became of an hour.

    - expired: it is complete, and all its raw objects that may be deleted are deleted.
    - deletable: raw objects can be deleted; nothing was deleted, as it was only examined.
    - left-alone: nothing may be deleted now, or the deletion was stopped; the reason says why.
    - incomplete: it has no completion marker.
    """

    EXPIRED = "expired"
    DELETABLE = "deletable"
    LEFT_ALONE = "left-alone"
    INCOMPLETE = "incomplete"


@dataclass(slots=True)
class Keys:
    """Some keys: their number, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, key: str) -> None:
        """Add a key."""
        self.count += 1
        if len(self.first) < MAX_SHOWN:
            self.first.append(key)


@dataclass(slots=True)
class HourExpiry:
    """What was found in an hour, and what was deleted of it.

    :param reason: why nothing, or not everything, was deleted; empty if there is no reason
    :param objects: number of raw objects that can be deleted, or that were deleted just now
    :param size: of them, in bytes
    :param expired: number of raw objects of the manifest that have expired, with those of earlier runs
    :param expired_size: of them, in bytes
    :param late: raw objects that are in no part; they stay
    :param changed: raw objects of which the parts hold another version; they stay
    :param vanished: raw objects of the manifest that are gone, and that no expiry has deleted
    :param refused: raw objects that the store has refused to delete
    :param left_out: number of objects of the raw hour that are no input of the stream; they stay
    :param delete_markers: how many deletes left a delete marker: the bucket keeps the bytes as older versions
    """

    hour: datetime
    state: ExpiryState
    reason: str = ""
    objects: int = 0
    size: int = 0
    expired: int = 0
    expired_size: int = 0
    late: Keys = field(default_factory=Keys)
    changed: Keys = field(default_factory=Keys)
    vanished: Keys = field(default_factory=Keys)
    refused: Keys = field(default_factory=Keys)
    left_out: int = 0
    delete_markers: int = 0


def is_over(store: ExpiryStore, stream: Stream, hour: datetime) -> HourExpiry | None:
    """Whether nothing is left to do for an hour, by its records alone; takes one or two requests.

    :returns: what is known of an incomplete hour, or of one whose raw objects were all deleted under its present
        plan; None if its raw objects have to be listed
    """
    state = HourState(store, stream, hour)
    try:
        record = state.expiry_record()
        marker = state.marker()
    except (ProofError, ArchivedError):
        return None
    if marker is None:
        return HourExpiry(hour, ExpiryState.INCOMPLETE)
    if record is None or record.unfinished or not record.deletions or marker.content is None:
        return None
    last = record.deletions[-1]
    has_left = last.left or any(part.kept for part in record.parts.values())
    if has_left or last.plan_id != marker.content.plan_id:
        return None
    return HourExpiry(hour, ExpiryState.EXPIRED, expired=record.objects, expired_size=record.size)


def examine_hour(store: ExpiryStore, stream: Stream, hour: datetime) -> HourExpiry:
    """Prove an hour again and find the raw objects that can be deleted; changes nothing.

    :raises RollupError: as the store raises
    """
    return _Expiry(store, stream, hour).examine()


def expire_hour(store: ExpiryStore, stream: Stream, hour: datetime) -> HourExpiry:
    """Prove an hour again, and delete those of its raw objects of which the proven parts hold copies.

    A raw object is deleted only if it still has the size and ETag that were packed, on condition of that ETag. An
    hour that cannot be proven is left alone, and so are raw objects that came late, changed, or are not input.
    What is about to be deleted is recorded first, so that a deletion that is interrupted can be continued.

    :raises UnsupportedOperationError: if the store ignores the condition, and the stream does not accept that
    :raises RollupError: as the store raises
    """
    return _Expiry(store, stream, hour).expire()


def require_conditions(store: ExpiryStore, stream: Stream) -> bool:
    """Whether the store deletes on condition only, which is tried out with an object of our own.

    :raises UnsupportedOperationError: if it does not, and the stream does not set ``unconditional``
    """
    if store.deletes_on_condition(probe_of(stream)):
        return True
    if stream.expire_raw is not None and stream.expire_raw.unconditional:
        return False
    raise UnsupportedOperationError(
        f"stream {stream.name!r}: the store deletes objects with another ETag than the one that was asked for, as "
        f"was tried with {probe_of(stream)}, so a raw object that is overwritten at that moment would be lost. "
        f"Nothing was deleted. If producers never overwrite objects that old, set 'unconditional: true' in "
        f"expire_raw of the stream"
    )


def probe_of(stream: Stream) -> Location:
    """The object with which conditional deletes are tried out, on the server that has the raw objects.

    It is below ``aggregated`` if the raw objects are in the same bucket; else below ``raw``, where it belongs to
    no hour.
    """
    same = stream.raw.bucket == stream.aggregated.bucket and not stream.has_two_connections
    return (stream.aggregated.root if same else stream.raw.root).child("_log-rollup-delete-probe")


class _LeftAloneError(Exception):
    """Nothing may be deleted; the text says why."""


@dataclass(frozen=True, slots=True)
class _Proven:
    """A complete hour whose parts were proven.

    :param manifest_etag: of the manifest that names these parts
    :param record: of the raw objects that have expired before; None if there is none
    """

    manifest: ManifestReader
    manifest_etag: str
    listing: RawListing
    record: ExpiryRecord | None
    found: HourExpiry


class _Expiry:
    def __init__(self, store: ExpiryStore, stream: Stream, hour: datetime) -> None:
        self._store = store
        self._stream = stream
        self._hour = hour
        self._state = HourState(store, stream, hour)
        self._deep = stream.expire_raw is not None and stream.expire_raw.deep

    def examine(self) -> HourExpiry:
        proven = self._prove()
        return proven.found if isinstance(proven, _Proven) else proven

    def expire(self) -> HourExpiry:
        proven = self._prove()
        if not isinstance(proven, _Proven):
            return proven
        conditional = True
        if proven.found.state is ExpiryState.DELETABLE:
            conditional = require_conditions(self._store, self._stream)
        elif proven.record is None or proven.record.unfinished is None:
            return proven.found
        return self._delete(proven, conditional)

    # -- the proof -------------------------------------------------------------------------------------

    def _prove(self) -> _Proven | HourExpiry:
        """Prove the hour; only its state if nothing may be deleted."""
        try:
            proven = self._open()
        except _LeftAloneError as reason:
            return HourExpiry(self._hour, ExpiryState.LEFT_ALONE, str(reason))
        except (ProofError, ArchivedError) as error:
            return HourExpiry(self._hour, ExpiryState.LEFT_ALONE, str(error))
        if proven is None:
            return HourExpiry(self._hour, ExpiryState.INCOMPLETE)
        return proven

    def _open(self) -> _Proven | None:
        """Read the records, list the raw hour, and prove the parts; None if the hour is not complete.

        :raises _LeftAloneError: if nothing may be deleted
        :raises ProofError: if a record cannot be read
        :raises ArchivedError: if a record is in an archive class
        """
        state = self._state
        marker = state.marker()
        if marker is None:
            return None
        claim = state.claim()
        if claim is not None:
            raise _LeftAloneError(f"a run has claimed it: plan {claim.plan_id or 'unknown'} is being built")
        inventory = state.inventory()
        manifest = state.manifest()
        if marker.content is None or manifest is None or inventory.manifest_etag is None:
            raise _LeftAloneError(
                f"there is no {state.paths.marker} with a {state.paths.manifest} of this version; clear its run "
                f"from plan_hour on"
            )
        if not marker.is_of(manifest.totals.plan_id):
            raise _LeftAloneError(
                f"{state.paths.marker} is of plan {marker.content.plan_id}, the manifest next to it of plan "
                f"{manifest.totals.plan_id}; clear its run from plan_hour on"
            )
        listing = RawListing(state.paths.raw.pages(self._store))
        # After the listing, so that it names all objects that another run has deleted before the listing.
        record = state.expiry_record()
        found = self._prove_parts(manifest, inventory.parts, listing, record)
        self._count_others(found, listing)
        return _Proven(manifest, inventory.manifest_etag, listing, record, found)

    def _prove_parts(
        self,
        manifest: ManifestReader,
        parts: Mapping[str, ObjectInfo],
        listing: RawListing,
        record: ExpiryRecord | None,
    ) -> HourExpiry:
        """Compare all parts with the raw hour, then prove those with raw objects that can be deleted.

        :raises _LeftAloneError: if one of them is not proven
        """
        found = HourExpiry(self._hour, ExpiryState.EXPIRED)
        # Several parts may hold versions of one raw object; the last of them has the newest, which counts.
        vanished: dict[str, None] = {}
        for planned, _ in manifest.parts():
            for item in planned.objects:
                if listing.hold(item) is Presence.ABSENT:
                    if _is_announced(record, planned, item):
                        vanished.pop(item.key, None)
                    else:
                        vanished[item.key] = None
        for key in vanished:
            found.vanished.add(key)
        problems: list[tuple[str, str]] = []
        for pairs in _rounds(manifest):
            for planned, _ in pairs:
                deletable = [item for item in planned.objects if listing.is_newest(item)]
                found.objects += len(deletable)
                found.size += sum(item.size for item in deletable)
                expired = [
                    item.size
                    for item in planned.objects
                    if _is_announced(record, planned, item) and listing.find(item) is not Presence.SAME
                ]
                found.expired += len(expired)
                found.expired_size += sum(expired)
            outcomes = in_parallel(
                self._store.control_connections,
                _THREADS,
                lambda pair: self._problem(*pair, parts.get(pair[0].name), listing),
                pairs,
            )
            problems += [
                (planned.name, problem)
                for (planned, _), problem in zip(pairs, outcomes, strict=True)
                if problem
            ]
        if problems:
            name, problem = problems[0]
            more = f" (and {len(problems) - 1:,} more parts)" if len(problems) > 1 else ""
            raise _LeftAloneError(
                f"{name} is not proven: {problem}{more}; see log-rollup verify {self._stream.name} "
                f"{format_hour(self._hour)}"
            )
        if found.objects:
            found.state = ExpiryState.DELETABLE
        return found

    def _problem(
        self, planned: PlannedPart, packed: PackedPart, listed: ObjectInfo | None, listing: RawListing
    ) -> str | None:
        """What is wrong with a part that has raw objects to delete; None if it is proven, or has none."""
        deletable = [listing.is_newest(item) for item in planned.objects]
        if not any(deletable):
            return None
        problem = stored_problem(self._store, self._state.paths, planned, packed, listed, deep=self._deep)
        if problem:
            return problem
        for item, done, is_deletable in zip(planned.objects, packed.objects, deletable, strict=True):
            if not is_deletable or done.checked != READ_BY_LENGTH or not item.size:
                continue
            # Nothing but its length was compared when it was packed.
            try:
                value = raw_crc(self._store, self._stream.raw.root.at(item.key), item)
            except ArchivedError:
                return (
                    f"only the length of the raw object {item.key} was compared when it was packed, and it cannot "
                    f"be read now, because it is archived"
                )
            if value not in (None, done.crc64nvme):
                return (
                    f"its bytes of {item.key} are not those of the raw object, whose CRC64NVME is {value:x}"
                )
        return None

    def _count_others(self, found: HourExpiry, listing: RawListing) -> None:
        """Count the listed objects that no part holds as they are."""
        others = list(listing.others())
        paths = self._state.paths
        late, _ = select(others, paths.name_of, self._stream.input_rules)
        found.left_out = len(others) - len(late)
        for item in late:
            found.late.add(item.key)
        for key in listing.changed():
            found.changed.add(key)

    # -- the deletion ----------------------------------------------------------------------------------

    def _delete(self, proven: _Proven, conditional: bool) -> HourExpiry:
        """Announce the raw objects, delete them, and record what was deleted.

        If the hour changes meanwhile, the deletion stops, and what was announced stays announced.
        """
        found = replace(proven.found, objects=0, size=0)
        before = proven.found.expired, proven.found.expired_size
        try:
            self._delete_and_record(proven, conditional, found)
        except SupersededError as error:
            found.reason = str(error)
            found.expired, found.expired_size = before[0] + found.objects, before[1] + found.size
        return self._concluded(found)

    def _delete_and_record(self, proven: _Proven, conditional: bool, found: HourExpiry) -> None:
        """Announce and delete the raw objects, count them in ``found``, and record what was deleted.

        :raises SupersededError: if the hour changes meanwhile
        """
        before = proven.record or ExpiryRecord(self._stream.name, format_hour(self._hour), {}, ())
        unfinished = before.unfinished
        started_at = unfinished.started_at if unfinished else datetime.now(UTC).isoformat()
        past = before.deletions[:-1] if unfinished else before.deletions
        deletion = Deletion(proven.manifest.totals.plan_id, started_at)
        announced = replace(
            before, parts={**before.parts, **self._new_parts(proven)}, deletions=(*past, deletion)
        )
        written = self._state.announce_expiry(
            announced, before.etag if proven.record else None, proven.manifest_etag
        )
        left = self._delete_announced(proven, written, conditional, found)
        found.expired += found.objects
        found.expired_size += found.size
        finished = replace(
            deletion,
            finished_at=datetime.now(UTC).isoformat(),
            objects=max(0, found.expired - before.objects),
            size=max(0, found.expired_size - before.size),
            left=left,
        )
        # What was announced stays announced, also if this run has not deleted it: another one may have done so.
        self._state.finish_expiry(
            replace(
                announced,
                deletions=(*past, finished),
                objects=found.expired,
                size=found.expired_size,
            ),
            written,
            proven.manifest_etag,
        )

    def _concluded(self, found: HourExpiry) -> HourExpiry:
        found.state = ExpiryState.LEFT_ALONE if found.reason else ExpiryState.EXPIRED
        log.info(
            "hour %s: deleted %d raw objects, %s; %d have expired in all",
            format_hour(self._hour), found.objects, format_size(found.size), found.expired,
        )  # fmt: skip
        if found.delete_markers:
            log.info(
                "hour %s: the bucket is versioned: %d deletes left delete markers, and the bytes stay there as "
                "older versions until a lifecycle rule removes them",
                format_hour(self._hour), found.delete_markers,
            )  # fmt: skip
        if found.reason:
            log.warning("hour %s: %s", format_hour(self._hour), found.reason)
        return found

    def _new_parts(self, proven: _Proven) -> Mapping[str, ExpiredPart]:
        """The parts of which raw objects can be deleted now, as they are announced."""
        parts = {}
        for planned, _ in proven.manifest.parts():
            newest = [proven.listing.is_newest(item) for item in planned.objects]
            if any(newest):
                kept = (
                    item.key
                    for item, is_newest in zip(planned.objects, newest, strict=True)
                    if not is_newest and not _is_announced(proven.record, planned, item)
                )
                parts[planned.name] = ExpiredPart(planned.fingerprint, frozenset(kept))
        return parts

    def _delete_announced(
        self, proven: _Proven, written: ExpiryRecord, conditional: bool, found: HourExpiry
    ) -> int:
        """Delete the announced raw objects that exist as they were packed, and count them in ``found``.

        :returns: how many of them stay
        """
        left = proven.found.objects
        for number, items in enumerate(self._batches(proven, conditional)):
            if number:
                self._state.assert_expirable(written, proven.manifest_etag)
            changed = () if conditional else self._changed_since(items)
            result = self._store.delete_exactly(
                self._stream.raw.root,
                [item for item in items if item.key not in changed] if changed else items,
                conditional=conditional,
            )
            stayed = {*changed, *result.changed, *result.refused}
            for item in items:
                if item.key not in stayed:
                    found.objects += 1
                    found.size += item.size
                    left -= 1
                    continue
                (found.refused if item.key in result.refused else found.changed).add(item.key)
            found.delete_markers += result.delete_markers
            if result.refused and not found.reason:
                found.reason = (
                    f"the store refuses to delete raw objects: {next(iter(result.refused.values()))}"
                )
            if found.reason and not found.objects:
                # It would refuse all others too.
                break
        return left

    def _batches(self, proven: _Proven, conditional: bool) -> Iterator[list[ObjectInfo]]:
        """The raw objects to delete."""
        size = BATCH_OBJECTS * (self._store.control_connections if conditional else 1)
        items = (
            item
            for planned, _ in proven.manifest.parts()
            for item in planned.objects
            if proven.listing.is_newest(item)
        )
        while batch := list(islice(items, size)):
            yield batch

    def _changed_since(self, items: Sequence[ObjectInfo]) -> set[str]:
        """Keys of the raw objects that are not as they were listed: without conditions, this is the last look."""
        root = self._stream.raw.root
        heads = in_parallel(
            self._store.control_connections, _THREADS, lambda item: self._store.head(root.at(item.key)), items
        )
        return {
            item.key
            for item, head in zip(items, heads, strict=True)
            if head is not None and (head.size, head.etag) != (item.size, item.etag)
        }


def _is_announced(record: ExpiryRecord | None, planned: PlannedPart, item: ObjectInfo) -> bool:
    return record is not None and record.is_announced(planned.name, planned.fingerprint, item.key)


def _rounds(manifest: ManifestReader) -> Iterator[list[tuple[PlannedPart, PackedPart]]]:
    """The parts of a manifest, few at a time."""
    pairs: list[tuple[PlannedPart, PackedPart]] = []
    objects = 0
    for planned, packed in manifest.parts():
        pairs.append((planned, packed))
        objects += len(planned.objects)
        if len(pairs) >= _ROUND_PARTS or objects >= _ROUND_OBJECTS:
            yield pairs
            pairs, objects = [], 0
    if pairs:
        yield pairs
