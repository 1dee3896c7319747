"""What the bucket alone says of hours: complete, damaged, being built, or neither."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from include.log_rollup.errors import ProofError, TooLargeError, UnreadableRecordError
from include.log_rollup.hour.records import Records
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import Location, ObjectStore
from include.log_rollup.streams import Stream

# What a browser's Date reads, of all that ISO 8601 allows.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"
)

# Of those in one record that are named.
MOST_PROBLEMS = 3
_REMEDY = "the hour does not count as complete. Clear its run: plan_hour says what to do"


class HourStatus(StrEnum):
    """Complete if and only if a readable marker is there; building if a run has claimed the hour.

    Damaged: there is a ``_SUCCESS``, but not one that this version writes or can read.
    """

    COMPLETE = "complete"
    DAMAGED = "damaged"
    BUILDING = "building"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class HourSummary:
    """An hour as its records describe it.

    :param marker: the content of its ``_SUCCESS``, with all keys of :class:`MarkerContent`; None unless complete
    :param problem: which record cannot be read and why, for people; empty if all can be
    """

    hour: datetime
    state: HourStatus
    marker: Mapping[str, Any] | None
    problem: str = ""


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("not a time like 2026-11-23T09:12:30+00:00")
    datetime.fromisoformat(text)
    return text


def _encodable(text: str) -> str:
    # JSON may hold half of a character, which no answer could be encoded with.
    text.encode()
    return text


def _count_of(value: Any) -> Any:
    return len(value) if isinstance(value, list | dict) else value


Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0)]
Text = Annotated[str, AfterValidator(_encodable)]
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


class MarkerContent(_Record):
    """What a completion marker has to hold to be shown; sizes in bytes, durations in seconds."""

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
    foreign: Annotated[Count | None, BeforeValidator(_count_of)] = None
    """Objects beside the parts that no record of the hour names."""
    damaged: Annotated[Count | None, BeforeValidator(_count_of)] = None
    """Compressed raw objects that cannot be decompressed."""


def read_hours(store: ObjectStore, stream: Stream, hours: Sequence[datetime]) -> list[HourSummary]:
    """The status of hours, in their order: one GET for each that has a marker, two for each other.

    A record that cannot be read is part of an hour's status, and no error.

    :raises RollupError: as the store raises
    """
    records = Records(store)

    def read(hour: datetime) -> HourSummary:
        paths = stream.at(hour)
        try:
            with readable(paths.marker):
                marker = records.read_marker_json(paths.marker)
                content = None if marker is None else _content(marker)
        except ProofError as error:
            return HourSummary(hour, HourStatus.DAMAGED, None, str(error))
        if content is not None:
            return HourSummary(hour, HourStatus.COMPLETE, content)
        try:
            with readable(paths.claim):
                claim = records.read_claim(paths.claim)
        except ProofError as error:
            # Some run has claimed it; which one does not matter here.
            return HourSummary(hour, HourStatus.BUILDING, None, str(error))
        if claim is None:
            return HourSummary(hour, HourStatus.INCOMPLETE, None)
        problem = "" if claim.plan_id else f"{paths.claim}: cannot be read, or another version wrote it"
        return HourSummary(hour, HourStatus.BUILDING, None, problem)

    return list(in_parallel(store.control_connections, "log-rollup-status", read, hours))


@contextmanager
def readable(source: Location) -> Iterator[None]:
    """Turn whatever is wrong with the content of a record into one error that names the record.

    :raises ProofError: if it is damaged, too large, or not of the expected shape
    """
    try:
        yield
    except (ProofError, UnreadableRecordError, TooLargeError) as error:
        text = str(error)
        raise ProofError(_text(text if str(source) in text else f"{source}: {text}")) from error
    except ValidationError as error:
        raise ProofError(_text(f"{source}: is damaged ({_wrong(error)})")) from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise ProofError(_text(f"{source}: cannot be read ({type(error).__name__}: {error})")) from error


def _text(message: str) -> str:
    """A message that can be encoded: what JSON in a bucket holds may be half of a character."""
    return message.encode("utf-8", "backslashreplace").decode()


def _wrong(error: ValidationError) -> str:
    """The first problems, one after the other."""
    shown = [
        f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in error.errors()[:MOST_PROBLEMS]
    ]
    more = error.error_count() - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _content(marker: Mapping[str, Any]) -> dict[str, Any]:
    """What of a marker is shown, checked.

    :raises UnreadableRecordError: if it is not a marker of this version
    """
    if not marker:
        raise UnreadableRecordError(
            f"is empty, is not JSON, or another version or program wrote it; {_REMEDY}"
        )
    try:
        return MarkerContent.model_validate(dict(marker)).model_dump(exclude_none=True)
    except ValidationError as error:
        raise UnreadableRecordError(f"is damaged ({_wrong(error)}); {_REMEDY}") from None
