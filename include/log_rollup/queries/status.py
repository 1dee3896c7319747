"""The status of hours from the bucket alone: complete, damaged, building or incomplete."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from include.log_rollup.errors import ArchivedError, ProofError, TooLargeError, UnreadableRecordError
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.hour.records import MARKER_BYTES, Records
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import Location, ObjectStore
from include.log_rollup.streams import Stream

# The subset of ISO 8601 that Date of a browser reads.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"
)

# How many problems of one record a message names.
MOST_PROBLEMS = 3
_REMEDY = "the hour does not count as complete. Clear its run: plan_hour says what to do"


class HourStatus(StrEnum):
    """The status of an hour.

    - complete: it has a readable completion marker.
    - damaged: it has a ``_SUCCESS``, but not one that this version can read, or one that is archived.
    - building: it has no ``_SUCCESS``, and a run has claimed it.
    - incomplete: neither.
    """

    COMPLETE = "complete"
    DAMAGED = "damaged"
    BUILDING = "building"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class ExpiredObjects:
    """The raw objects of an hour that were deleted because parts hold proven copies; size in bytes.

    :param at: when the last deletion finished, or started if it has not finished
    :param finished: False if a deletion is at work or was interrupted; the numbers are then those before it
    """

    objects: int
    size: int
    at: str
    finished: bool

    def __str__(self) -> str:
        if not self.finished:
            return f"raw objects are being deleted since {self.at[:16]}Z"
        return f"{self.objects:,} raw objects expired on {self.at[:10]}"


@dataclass(frozen=True, slots=True)
class HourSummary:
    """The status of an hour, with its completion marker.

    :param marker: content of ``_SUCCESS`` with the keys of :class:`MarkerContent`, but of the groups only their
        number; None unless complete
    :param problem: message that says which record cannot be read and why; empty if there is none
    :param groups: totals of each group, with the keys of :class:`GroupContent`, if they were asked for
    :param expired: the raw objects that have expired; None if there are none, or this was not read
    """

    hour: datetime
    state: HourStatus
    marker: Mapping[str, Any] | None
    problem: str = ""
    groups: Sequence[Mapping[str, Any]] = ()
    expired: ExpiredObjects | None = None


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("not a time like 2026-11-23T09:12:30+00:00")
    datetime.fromisoformat(text)
    return text


def _length(value: Any) -> Any:
    """Accept a list or an object in place of a count."""
    return len(value) if isinstance(value, list | dict) else value


Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0)]
# With a constraint, pydantic refuses half of a surrogate pair, which cannot be encoded as UTF-8 in a response.
Text = Annotated[str, Field(max_length=MARKER_BYTES)]
Time = Annotated[str, AfterValidator(_time)]
Counts = dict[Text, Count]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class _Verified(_Record):
    parts: Counts
    objects: Counts


class _Peak(_Record):
    sockets: Count
    open_files: Count
    rss_bytes: Count


class _Durations(_Record):
    pack: Seconds
    pack_cpu: Seconds


class GroupContent(_Record):
    """The totals of a group in the completion marker of an hour; sizes in bytes."""

    folder: Text
    captures: dict[Text, Text]
    objects: Count
    bytes_in: Count
    separator_bytes: Count
    bytes_out: Count
    parts: Count
    verified: _Verified
    damaged: Count = 0
    bytes_stored: Count = 0
    recompressed: Count = 0
    bytes_unpacked: Count = 0


class MarkerContent(_Record):
    """The keys that a completion marker needs to be readable; sizes in bytes, durations in seconds."""

    stream: Text
    hour: Time
    plan_id: Text
    objects: Count
    bytes_in: Count
    separator_bytes: Count
    bytes_out: Count
    parts: Count
    left_out: Counts
    verified: _Verified
    validated_at: Time
    completed_at: Time
    max_connections: Count
    peak: _Peak
    requests: Counts
    retries: Count
    throttles: Count
    seconds: _Durations
    foreign: Annotated[Count | None, BeforeValidator(_length)] = None
    """Number of foreign objects."""
    damaged: Annotated[Count | None, BeforeValidator(_length)] = None
    """Number of compressed raw objects that cannot be decompressed."""
    groups: list[GroupContent] | None = None
    """Totals of each group, in the order of the folders; only of an hour with groups."""
    group: dict[Text, Text] | None = None
    """The captures of a group, by name; only in the marker of a group."""
    why_empty: Text | None = None
    """Why no object can belong to the hour; only if none can."""
    bytes_stored: Count | None = None
    """Size of the parts in the bucket; only if any of them is compressed."""
    recompressed: Count | None = None
    """Number of raw objects that the parts have as their content; only if there are any."""
    bytes_unpacked: Count | None = None
    """Size of the raw objects, of these ones that of their content."""
    raw_digest: Text | None = None
    """Digest of the listed raw objects; only of an hour, and not if an earlier version completed it."""
    older_versions: Count | None = None
    """Number of raw objects in parts of which a later part has a newer version; only if there are any."""


def read_hours(
    store: ObjectStore,
    stream: Stream,
    hours: Sequence[datetime],
    *,
    groups: bool = False,
    expired: bool | None = None,
) -> list[HourSummary]:
    """The status of some hours, in their order.

    Takes one GET for an hour with a completion marker and two for any other. A record that cannot be read is not
    an error, but shown in the status of its hour. Whether raw objects have expired takes one GET more.

    :param groups: whether to keep the totals of each group, of which an hour may have thousands
    :param expired: whether to read of complete hours which raw objects have expired; None for those hours that are
        older than the stream's ``expire_raw.after``
    :raises RollupError: as the store raises
    """
    records = Records(store)
    now = datetime.now(UTC)

    def read(hour: datetime) -> HourSummary:
        paths = stream.at(hour)
        try:
            with readable(paths.marker):
                marker = records.read_marker_json(paths.marker)
                content = None if marker is None else _content(marker)
        except ProofError as error:
            return HourSummary(hour, HourStatus.DAMAGED, None, str(error))
        if content is not None:
            values = content.model_dump(exclude_none=True, exclude={"groups"})
            if content.groups is not None:
                values["groups"] = len(content.groups)
            totals = [group.model_dump() for group in content.groups or ()] if groups else ()
            old = stream.expire_raw is not None and paths.end + stream.expire_raw.after <= now
            reads_expired = old if expired is None else expired
            gone, problem = _expired(store, stream, hour) if reads_expired else (None, "")
            return HourSummary(hour, HourStatus.COMPLETE, values, problem, totals, gone)
        try:
            with readable(paths.claim):
                claim = records.read_claim(paths.claim)
        except ProofError as error:
            # A run has claimed the hour, even if the claim cannot be read.
            return HourSummary(hour, HourStatus.BUILDING, None, str(error))
        if claim is None:
            return HourSummary(hour, HourStatus.INCOMPLETE, None)
        problem = "" if claim.plan_id else f"{paths.claim}: cannot be read, or another version wrote it"
        return HourSummary(hour, HourStatus.BUILDING, None, problem)

    return list(in_parallel(store.control_connections, "log-rollup-status", read, hours))


def _expired(store: ObjectStore, stream: Stream, hour: datetime) -> tuple[ExpiredObjects | None, str]:
    """The raw objects of an hour that have expired, and why that cannot be read."""
    reader = HourReader(store, stream, hour)
    try:
        with readable(reader.paths.expiry_record):
            record = reader.expiry_record()
    except ProofError as error:
        return None, str(error)
    if record is None or not (record.objects or record.unfinished):
        return None, ""
    return ExpiredObjects(record.objects, record.size, record.expired_at, record.unfinished is None), ""


@contextmanager
def readable(source: Location) -> Iterator[None]:
    """Convert the errors of a record that cannot be read into a ProofError that names the record.

    Other errors, such as those of requests, are passed on: they do not mean that the record is damaged.

    :param source: the record
    :raises ProofError: if the record is damaged, too large or archived
    """
    try:
        yield
    except (ProofError, UnreadableRecordError, TooLargeError, ArchivedError) as error:
        text = str(error)
        raise ProofError(_encodable_message(text if str(source) in text else f"{source}: {text}")) from error


@contextmanager
def valid(source: Location) -> Iterator[None]:
    """Convert any error of interpreting a record's content into a ProofError that names the record.

    It must not enclose a request, whose errors are not those of the record.

    :param source: the record
    :raises ProofError: if the record has an unexpected structure
    """
    try:
        yield
    except ValidationError as error:
        raise ProofError(_encodable_message(f"{source}: is damaged ({_first_problems(error)})")) from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        message = f"{source}: cannot be read ({type(error).__name__}: {error})"
        raise ProofError(_encodable_message(message)) from error


def _encodable_message(message: str) -> str:
    """Escape halves of surrogate pairs, which JSON from a bucket may contain."""
    return message.encode("utf-8", "backslashreplace").decode()


def _first_problems(error: ValidationError) -> str:
    """The first problems of a record, and how many more there are."""
    shown = [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}"
        for problem in error.errors()[:MOST_PROBLEMS]
    ]
    more = error.error_count() - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _content(marker: Mapping[str, Any]) -> MarkerContent:
    """The content of a completion marker.

    :raises UnreadableRecordError: if a key is missing or has an invalid value
    """
    if not marker:
        raise UnreadableRecordError(
            f"is empty, is not JSON, or another version or program wrote it; {_REMEDY}"
        )
    try:
        return MarkerContent.model_validate(dict(marker))
    except ValidationError as error:
        raise UnreadableRecordError(f"is damaged ({_first_problems(error)}); {_REMEDY}") from None
