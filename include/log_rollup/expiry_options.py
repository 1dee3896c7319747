"""The stream key ``expire_raw``: when raw objects of complete hours are deleted."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from include.log_rollup.units import Duration, format_duration

_EXAMPLE = "{after: 14d, mode: report}"
SHORTEST_AFTER = timedelta(days=1)
"""No raw object of a younger hour is deleted."""
_LONGEST = timedelta(days=3650)


def _check_age(after: timedelta) -> timedelta:
    if not SHORTEST_AFTER <= after <= _LONGEST:
        raise ValueError(
            f"{format_duration(after)} is out of range; give {format_duration(SHORTEST_AFTER)} to "
            f"{format_duration(_LONGEST)}"
        )
    return after


def _check_since(since: datetime) -> datetime:
    if since.tzinfo is None:
        raise ValueError("has no offset from UTC; write it like 2026-11-01T00:00:00Z")
    if since != since.replace(minute=0, second=0, microsecond=0):
        raise ValueError(f"{since} is not a whole hour; write it like 2026-11-01T00:00:00Z")
    return since.astimezone(UTC)


class ExpireRaw(BaseModel):
    """When the raw objects of a stream are deleted; ``docs/REFERENCE.md`` shows the docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    after: Annotated[Duration, AfterValidator(_check_age)]
    """Age of an hour, from its end, at which its raw objects may be deleted; 1 to 3,650 days, and not less than
    `late_days`."""
    since: Annotated[datetime, AfterValidator(_check_since)] | None = None
    """First hour whose raw objects may be deleted, with its offset from UTC; by default the stream's `start`. An
    earlier one is needed for the hours of backfills."""
    mode: Literal["report", "delete"] = "report"
    """`report` says what would be deleted; `delete` deletes it."""
    approve_first: bool = True
    """Whether a person has to approve the first deletion of the stream, in Airflow's UI."""
    approve_above: Annotated[int, Field(ge=0)] | None = None
    """A run that would delete more raw objects than this waits for approval; by default none does."""
    conn_id: Annotated[str, Field(min_length=1)] | None = None
    """Airflow connection that may delete raw objects; only the expiry uses it, in place of `aws_conn_id`. By
    default that is used."""
    deep: bool = False
    """Whether every byte of the parts is read and compared before. Parts in archive classes then cannot be
    proven, and their raw objects stay."""
    unconditional: bool = False
    """Whether raw objects are deleted also where the store ignores the condition that the ETag is the same. An
    object that is overwritten between the last look and its deletion is lost then."""


def parse_expire_raw(value: Any) -> Any:
    """Accept only a mapping, for a clear message.

    :raises ValueError: for anything else
    """
    if value is None or isinstance(value, ExpireRaw | Mapping):
        return value
    raise ValueError(f"{value!r} is not a mapping; write it like {_EXAMPLE}")


def check_late_days(expire_raw: ExpireRaw | None, late_days: int) -> None:
    """Refuse to delete raw objects of hours that are still checked for late objects.

    :raises ValueError: if ``after`` is shorter than ``late_days``
    """
    if expire_raw is not None and expire_raw.after < timedelta(days=late_days):
        raise ValueError(
            f"expire_raw.after: {format_duration(expire_raw.after)} is less than the {late_days} days of "
            f"late_days, in which hours are still rerun for late objects; give at least {late_days}d, or lower "
            f"late_days"
        )
