"""Proves parts: compares what the bucket holds with the receipts, and with the raw objects where needed."""

import hashlib
import logging
import threading
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from awscrt import checksums

from include.log_rollup import crc
from include.log_rollup.errors import (
    ArchivedError,
    InputChangedError,
    NotFoundError,
    ProofError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.hour.parts import part_problem, read_pieces, read_runs
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import (
    PROVEN_BY_READING,
    PROVEN_BY_STORE,
    READ_BY_ETAG,
    READ_BY_LENGTH,
    PackedObject,
    PackedPart,
)
from include.log_rollup.storage.protocol import Location, ObjectHead, ObjectInfo, ObjectStore
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnprovenPart:
    """A part whose proof failed.

    :param planned: name of the planned part it was made for
    :param written: whether a receipt or the manifest says that it was written
    """

    name: str
    reason: str
    planned: str
    written: bool


def require_stored_crc(store: ObjectStore, scratch: Location, storage_class: str) -> None:
    """Refuse a store that cannot prove parts of an archive class, which are not readable once they are written.

    :param scratch: where an object of one byte may be written and deleted; it gets the bucket's standard class
    :param storage_class: of the parts
    :raises UnsupportedOperationError: if the store does not compare and keep CRCs
    """
    if store.refuses_wrong_crc(scratch):
        store.write(scratch, b"\n", "text/plain")
        head = store.head(scratch)
        store.delete(scratch.bucket, [scratch.key])
        if head is not None and head.crc64nvme is not None:
            return
    raise UnsupportedOperationError(
        f"parts could not be proven in the storage class {storage_class}, where they cannot be read back: the "
        f"store does not keep and compare the CRC64-NVME of what it is sent, as was tried with {scratch}. No part "
        f"was written. Remove 'storage_class' of the stream, and let a lifecycle rule move the parts later, when "
        f"they are proven"
    )


class PartProver:
    """Proves one part at a time; can be used from several threads.

    The store's CRCs count only if the store refuses a wrong one, which is tried out first.

    :param parts: the listed parts, by name
    :param total: number of parts to prove, for :meth:`progress`
    :param announced: names of the parts whose raw objects may have expired: the manifest proves them
    """

    def __init__(
        self,
        store: ObjectStore,
        raw: Location,
        paths: HourPaths,
        parts: Mapping[str, ObjectInfo],
        total: int,
        announced: Container[str] = (),
    ) -> None:
        self._store = store
        self._raw = raw
        self._paths = paths
        self._parts = parts
        self._total = total
        self._announced = announced
        self._finished = self._read_bytes = 0
        self._counting = threading.Lock()
        self._trying_etags = threading.Lock()
        self._etags_are_md5: bool | None = None
        self._started = time.monotonic()
        self._crc_is_checked = store.refuses_wrong_crc(paths.work.child("crc-probe"))

    def progress(self) -> str:
        """The progress in one line; can be called from any thread."""
        seconds = max(time.monotonic() - self._started, 0.001)
        return (
            f"parts {self._finished}/{self._total} compared | {format_size(self._read_bytes)} read back | "
            f"{self._read_bytes / seconds / 1e6:.0f} MB/s"
        )

    def prove(self, planned: PlannedPart, packed: PackedPart | None) -> PackedPart | UnprovenPart:
        """Prove one part.

        The part must have the size, ETag and CRC of its receipt. If the store states no CRC that counts, or if a
        raw object was compared by its length only, the part is read back. A part in an archive class cannot be
        read: the store has to state its CRC, and those raw objects are read again instead.

        :param packed: the part as its receipt describes it; None if it has none
        :returns: the part with its proof, or the reason why it has none
        :raises ArchivedError: if it is archived and the store states no CRC of it
        :raises InputChangedError: if a raw object that is needed for the proof has changed or vanished
        """
        outcome = self._prove(planned, packed)
        with self._counting:
            self._finished += 1
        if isinstance(outcome, PackedPart):
            return outcome
        return UnprovenPart(planned.name, outcome, planned.split_of or planned.name, packed is not None)

    def _prove(self, planned: PlannedPart, packed: PackedPart | None) -> PackedPart | str:
        place, listed = self._paths.part(planned.name), self._parts.get(planned.name)
        problem = part_problem(planned, packed, listed)
        if problem or packed is None:
            if packed is not None and listed is None:
                self._assert_missing(place, packed)
            return problem or "it was not packed"
        head = self._store.head(place)
        if head is None and any(row.key == place.key for row in self._store.list_page(place).objects):
            # Not a failure of the part: a proxy may have sent the response.
            raise TransientError(f"HEAD {place}: S3 answered 404, but the object is listed")
        if head is None or head.etag != packed.etag:
            return "it was overwritten while it was validated"
        stored = head.crc64nvme if self._crc_is_checked else None
        if head.is_archived:
            return self._prove_archived(planned, packed, head, stored)
        if planned.copied:
            return self._prove_copy(planned, packed, stored)
        if stored not in (None, packed.crc64nvme):
            return f"the store has CRC64NVME {stored:x}, {packed.crc64nvme:x} was sent"
        needs_reading = any(item.checked == READ_BY_LENGTH and item.etag_is_md5 for item in packed.objects)
        if stored is not None and not needs_reading:
            return replace(packed, proof=PROVEN_BY_STORE)
        if packed.proof == PROVEN_BY_READING:
            # It was proven with this ETag and has not been written since.
            return packed
        return self._read_back(planned, packed)

    def _assert_missing(self, place: Location, packed: PackedPart) -> None:
        """Make sure that a part does not exist that is not listed.

        :raises TransientError: if it exists as it was written
        """
        head = self._store.head(place)
        if head is not None and (head.size, head.etag) == (packed.size, packed.etag):
            raise TransientError(f"{place} exists, but is not listed: the store lists late what is written")

    def _prove_copy(self, planned: PlannedPart, packed: PackedPart, stored: int | None) -> PackedPart | str:
        (item,), (done,) = planned.objects, packed.objects
        source = self._raw.at(item.key)
        before = self._store.head(source)
        if before is None or before.etag != item.etag:
            if planned.name in self._announced and packed.crc64nvme is not None:
                return self._prove_without_source(planned, packed, stored)
            # Not a failure of the part: it may hold the last copy, so it must not be removed.
            raise _input_changed(source)
        if stored is not None and stored == before.crc64nvme:
            proven = PackedObject(stored, crc.CRC64NVME, False)
            return replace(packed, proof=PROVEN_BY_STORE, crc64nvme=stored, objects=(proven,))
        if packed.proof == PROVEN_BY_READING:
            return packed
        states_nothing = before.crc64nvme is None and not before.etag_is_md5
        if states_nothing and stored is not None and stored == packed.crc64nvme:
            # It passed through the worker, as the objects of other parts do, and nothing is left to compare.
            return replace(packed, proof=PROVEN_BY_STORE)
        if before.etag_is_md5:
            done = replace(done, etag_is_md5=True)
            return self._read_back(planned, replace(packed, objects=(done,)))
        return self._compare_with_source(planned, packed, source)

    def _prove_archived(
        self, planned: PlannedPart, packed: PackedPart, head: ObjectHead, stored: int | None
    ) -> PackedPart | str:
        """Prove a part that cannot be read, by the CRC that the store states and by its raw objects."""
        if stored is not None and packed.crc64nvme not in (None, stored):
            return f"the store has CRC64NVME {stored:x}, {packed.crc64nvme:x} was sent"
        was_read = packed.proof == PROVEN_BY_READING
        if was_read or (packed.proof == PROVEN_BY_STORE and stored is not None):
            # It was proven with this ETag and has not been written since.
            return packed
        if stored is None:
            raise self._unprovable(packed.name, head)
        if planned.copied and planned.name in self._announced and packed.crc64nvme == stored:
            # The manifest proves it, also if its raw object has expired.
            return replace(packed, proof=PROVEN_BY_STORE)
        objects = []
        for item, done in zip(planned.objects, packed.objects, strict=True):
            needs_reading = done.checked == READ_BY_LENGTH and done.etag_is_md5
            if planned.copied:
                needs_reading, done = self._compare_copied(item, replace(done, crc64nvme=stored))
            if needs_reading:
                value, md5 = self._read_raw(item)
                if value != done.crc64nvme:
                    return f"its bytes of {item.key} are not those of the raw object, whose CRC64NVME is {value:x}"
                # An ETag that is not the MD5 of these bytes has only its form.
                done = replace(done, checked=READ_BY_ETAG) if md5 == item.etag else done
            objects.append(done)
        return replace(packed, proof=PROVEN_BY_STORE, crc64nvme=stored, objects=tuple(objects))

    def _compare_copied(self, item: ObjectInfo, done: PackedObject) -> tuple[bool, PackedObject]:
        """Compare the only object of an archived part with what the store states of the raw object.

        :param done: with the CRC that the store states of the part
        :returns: whether the raw object has to be read, and the object as it is proven then
        """
        source = self._raw.at(item.key)
        before = self._store.head(source)
        if before is None or before.etag != item.etag:
            raise _input_changed(source)
        if before.crc64nvme == done.crc64nvme:
            return False, replace(done, checked=crc.CRC64NVME, etag_is_md5=False)
        return True, replace(done, checked=PROVEN_BY_READING, etag_is_md5=False)

    def _unprovable(self, name: str, head: ObjectHead) -> ArchivedError:
        return ArchivedError(
            f"{self._paths.part(name)} is in the archive class {head.storage_class}, and the store states no "
            f"CRC64-NVME of it, so that it can be proven only by reading it. Nothing was removed. Retrieve it "
            f"from the archive (RestoreObject), then clear this task; or remove the stream's 'storage_class' and "
            f"pack the hour again"
        )

    def _prove_without_source(
        self, planned: PlannedPart, packed: PackedPart, stored: int | None
    ) -> PackedPart | str:
        """Prove a copied part whose raw object has expired, by the CRC with which it was proven before."""
        if stored == packed.crc64nvme:
            return replace(packed, proof=PROVEN_BY_STORE)
        if stored is not None:
            return f"the store has CRC64NVME {stored:x}, {packed.crc64nvme:x} was proven"
        return packed if packed.proof == PROVEN_BY_READING else self._read_back(planned, packed)

    def _compare_with_source(
        self, planned: PlannedPart, packed: PackedPart, source: Location
    ) -> PackedPart | str:
        """Read both a copied part and its raw object, and compare their CRCs."""
        (item,) = planned.objects
        value = self._crc_of(self._paths.part(planned.name), packed.etag, packed.size)
        if value != self._raw_crc(source, item):
            return f"its bytes are not those of {source}"
        proven = PackedObject(value, PROVEN_BY_READING, False)
        return replace(packed, proof=PROVEN_BY_READING, crc64nvme=value, objects=(proven,))

    def _read_back(self, planned: PlannedPart, packed: PackedPart) -> PackedPart | str:
        """Read a part, compare its CRC, and compare raw objects with their ETags where those are MD5s."""
        value = 0
        md5s = [hashlib.md5(usedforsecurity=False) for _ in planned.objects]
        source = self._paths.part(planned.name)
        try:
            for run, pieces in read_pieces(self._store, source, planned, packed):
                self._count_read(run)
                value = checksums.crc64nvme(run, value)
                for piece in pieces:
                    done = packed.objects[piece.index]
                    if done.etag_is_md5 and done.content is None:
                        md5s[piece.index].update(piece.body)
        except ProofError as error:
            return str(error)
        if packed.crc64nvme not in (None, value):
            return f"read back it has CRC64NVME {value:x}, {packed.crc64nvme:x} was sent"
        if planned.copied:
            packed = replace(packed, objects=(replace(packed.objects[0], crc64nvme=value),))
        objects = []
        for index, (done, md5) in enumerate(zip(packed.objects, md5s, strict=True)):
            item, checked = planned.objects[index], done.checked
            if done.content is not None:
                # Packing compared the MD5 of its bytes, which the part does not have.
                if done.etag_is_md5 and not self._is_not_md5(planned, packed, index):
                    return f"the bytes of {item.key} that were unpacked are not those of the raw object"
            elif done.etag_is_md5 and md5.hexdigest() != item.etag:
                if not self._is_not_md5(planned, packed, index):
                    return f"its bytes of {item.key} have MD5 {md5.hexdigest()}, not {item.etag}"
            elif done.etag_is_md5 and checked == READ_BY_LENGTH:
                checked = READ_BY_ETAG
            objects.append(replace(done, checked=checked))
        return replace(packed, proof=PROVEN_BY_READING, crc64nvme=value, objects=tuple(objects))

    def _is_not_md5(self, planned: PlannedPart, packed: PackedPart, index: int) -> bool:
        """Whether the bytes of a raw object are right, although its ETag has the form of another MD5.

        Some servers answer 32 random digits. This is tried out once, on a part whose bytes are known. If that
        shows nothing, if S3 copied the object, or if another connection has the raw objects, so that they may be
        on another server, the raw object is read again and compared by its CRC.
        """
        if self._store.copies_raw and not planned.copied and self._server_has_no_md5(packed):
            return True
        item = planned.objects[index]
        return self._raw_crc(self._raw.at(item.key), item) == packed.objects[index].crc64nvme

    def _server_has_no_md5(self, packed: PackedPart) -> bool:
        with self._trying_etags:
            if self._etags_are_md5 is None:
                self._etags_are_md5 = self._try_md5(packed)
                if self._etags_are_md5 is False:
                    log.warning("ETags are not MD5s on this server, so they prove nothing about raw objects")
            return self._etags_are_md5 is False

    def _try_md5(self, packed: PackedPart) -> bool | None:
        """Whether the ETag of a part is the MD5 of its bytes; None if it need not be, or the bytes are wrong."""
        target = self._paths.part(packed.name)
        head = self._store.head(target)
        if head is None or not head.etag_is_md5:
            return None
        md5, value = hashlib.md5(usedforsecurity=False), 0
        for run in read_runs(self._store, target, packed.etag, packed.size):
            self._count_read(run)
            md5.update(run)
            value = checksums.crc64nvme(run, value)
        return md5.hexdigest() == packed.etag if value == packed.crc64nvme else None

    def _raw_crc(self, source: Location, item: ObjectInfo) -> int:
        try:
            return self._crc_of(source, item.etag, item.size)
        except (NotFoundError, InputChangedError):
            raise _input_changed(source) from None

    def _read_raw(self, item: ObjectInfo) -> tuple[int, str]:
        """CRC and MD5 of a raw object, which is read again."""
        source, value, md5 = self._raw.at(item.key), 0, hashlib.md5(usedforsecurity=False)
        try:
            for run in read_runs(self._store, source, item.etag, item.size):
                self._count_read(run)
                value = checksums.crc64nvme(run, value)
                md5.update(run)
        except (NotFoundError, InputChangedError):
            raise _input_changed(source) from None
        return value, md5.hexdigest()

    def _crc_of(self, source: Location, etag: str, size: int) -> int:
        value = 0
        for run in read_runs(self._store, source, etag, size):
            self._count_read(run)
            value = checksums.crc64nvme(run, value)
        return value

    def _count_read(self, run: bytes | memoryview) -> None:
        with self._counting:
            self._read_bytes += len(run)


def _input_changed(source: Location) -> InputChangedError:
    return InputChangedError(
        f"{source} changed or vanished while the hour was validated. Nothing is lost: clear the run from "
        f"plan_hour on."
    )
