"""The record of an hour's expired raw objects: which of them were deleted on purpose, because parts hold them."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from include.log_rollup import crc
from include.log_rollup.errors import UnreadableRecordError
from include.log_rollup.hour.gzip_json import DAMAGED_ERRORS, to_json
from include.log_rollup.storage.protocol import Location

T = TypeVar("T")

EXPIRY_FORMAT = 1
_CRC = "crc64nvme"


@dataclass(frozen=True, slots=True)
class ExpiredPart:
    """A part whose raw objects have been announced for deletion.

    :param kept: keys of its raw objects that are not announced, because they had changed or vanished before
    """

    fingerprint: str
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Deletion:
    """One deletion of raw objects of an hour; it may have taken several runs.

    :param plan_id: of the manifest that proved the parts
    :param finished_at: None while it is at work, or after it was interrupted
    :param objects: number of deleted objects; 0 until it is finished
    :param size: of them, in bytes
    :param left: number of announced raw objects that it did not delete, because they had changed meanwhile or the
        store refused it
    """

    plan_id: str
    started_at: str
    finished_at: str | None = None
    objects: int = 0
    size: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True)
class ExpiryRecord:
    """The content of ``_expired.json``.

    It is written before the first delete and after the last, so an announced object may still exist. If it is
    gone, it has expired; a raw object that is gone without being announced has vanished. A part with announced
    objects may be their last copy at any moment: it is never written again, moved, merged or removed. What was
    announced stays announced, because a run can't know what another one has deleted.

    :param parts: those with announced raw objects, by name
    :param objects: number of raw objects that have expired, at the end of the last deletion that finished
    :param size: of them, in bytes
    :param etag: of the object ``_expired.json``; empty if this record was not read or written
    """

    stream: str
    hour: str
    parts: Mapping[str, ExpiredPart]
    deletions: Sequence[Deletion]
    objects: int = 0
    size: int = 0
    etag: str = ""

    def has_announced(self, part_name: str, fingerprint: str) -> bool:
        """Whether raw objects of this part have been announced for deletion."""
        part = self.parts.get(part_name)
        return part is not None and part.fingerprint == fingerprint

    def is_announced(self, part_name: str, fingerprint: str, key: str) -> bool:
        """Whether this raw object has been announced for deletion: if it does not exist, it has expired."""
        return self.has_announced(part_name, fingerprint) and key not in self.kept(part_name)

    def kept(self, part_name: str) -> Collection[str]:
        """Keys of the raw objects of a part that have not been announced, although the part is in the record."""
        part = self.parts.get(part_name)
        return part.kept if part else ()

    @property
    def unfinished(self) -> Deletion | None:
        """The deletion that is at work or was interrupted; None if the last one has finished."""
        last = self.deletions[-1] if self.deletions else None
        return last if last and last.finished_at is None else None

    @property
    def expired_at(self) -> str:
        """When the last deletion finished, or started if it has not finished; empty if there was none."""
        return (self.deletions[-1].finished_at or self.deletions[-1].started_at) if self.deletions else ""

    def to_bytes(self) -> bytes:
        """The bytes of ``_expired.json``; the totals come first, and last a CRC64NVME of all the rest."""
        body = {
            "format": EXPIRY_FORMAT,
            "stream": self.stream,
            "hour": self.hour,
            "objects": self.objects,
            "bytes": self.size,
            "deletions": [
                {
                    "plan_id": one.plan_id,
                    "started_at": one.started_at,
                    "finished_at": one.finished_at,
                    "objects": one.objects,
                    "bytes": one.size,
                    "left": one.left,
                }
                for one in self.deletions
            ],
            "parts": {
                name: {"fingerprint": part.fingerprint, "kept": sorted(part.kept)}
                for name, part in sorted(self.parts.items())
            },
        }
        return f"{to_json({**body, _CRC: _crc_of(body)})}\n".encode()

    @staticmethod
    def from_bytes(source: Location, body: bytes, etag: str = "") -> "ExpiryRecord":
        """Read a record from its bytes.

        :param source: where it was read, for messages
        :raises UnreadableRecordError: if it is damaged or of another format
        """
        try:
            value = json.loads(body)
            written_as = value["format"]
            # Earlier versions wrote none.
            stated = value.pop(_CRC, None)
            if stated is not None and stated != _crc_of(value):
                raise ValueError(f"its content does not have the CRC64NVME {stated}")
            if written_as == EXPIRY_FORMAT:
                return replace(_parse(value), etag=etag)
        except DAMAGED_ERRORS as error:
            raise unreadable_expiry(source, error) from error
        raise UnreadableRecordError(
            f"{source}: the record of expired raw objects has format {written_as}, this version of Log Rollup "
            f"reads format {EXPIRY_FORMAT}, so nothing is changed. Update Log Rollup to the version that wrote it."
        )


def unreadable_expiry(source: Location, reason: object) -> UnreadableRecordError:
    """The error for a record that cannot be read."""
    return UnreadableRecordError(
        f"{source}: the record of expired raw objects cannot be read ({reason}). It says which raw objects were "
        f"deleted on purpose, so nothing is changed without it. Restore it from a backup or from an older version "
        f"of the object. If there is none, move it away: raw objects that have expired then count as vanished, "
        f"and their parts stay."
    )


def _crc_of(value: Mapping[str, Any]) -> str:
    return crc.to_hex(crc.crc64(to_json(value).encode()))


def _parse(value: Mapping[str, Any]) -> ExpiryRecord:
    return ExpiryRecord(
        _typed(value["stream"], str),
        _typed(value["hour"], str),
        {name: _part(part) for name, part in value["parts"].items()},
        tuple(_deletion(one) for one in _typed(value["deletions"], list)),
        _typed(value["objects"], int),
        _typed(value["bytes"], int),
    )


def _part(value: Mapping[str, Any]) -> ExpiredPart:
    kept = _typed(value["kept"], list)
    return ExpiredPart(_typed(value["fingerprint"], str), frozenset(_typed(key, str) for key in kept))


def _deletion(value: Mapping[str, Any]) -> Deletion:
    finished_at = value["finished_at"]
    return Deletion(
        _typed(value["plan_id"], str),
        _typed(value["started_at"], str),
        None if finished_at is None else _typed(finished_at, str),
        _typed(value["objects"], int),
        _typed(value["bytes"], int),
        _typed(value.get("left", 0), int),
    )


def _typed(value: Any, kind: type[T]) -> T:
    """Return a value of exactly this type; numbers are counts.

    :raises TypeError: if it is of another type, or negative
    """
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise TypeError(f"unexpected {value!r}")
    return value
