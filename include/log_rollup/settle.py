"""When a raw hour is settled: nothing more is to be expected in it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from include.log_rollup.errors import EmptyHourError, UnsettledHourError
from include.log_rollup.hours import HourPaths, format_hour
from include.log_rollup.listing import pages_by_token
from include.log_rollup.store import ObjectStore
from include.log_rollup.units import format_size


class State(StrEnum):
    """What one look at the raw hour says."""

    SETTLED = "settled"
    NOT_ENDED = "not ended"
    EMPTY = "empty"
    BEING_WRITTEN = "being written"
    NO_MARKER = "no marker"


@dataclass(frozen=True, slots=True)
class Rule:
    """When an hour counts as settled.

    :param quiet_period: how long ago the newest object must have been written
    :param marker: name, below the hour's prefix, of the object that the producer writes last; where it is
        given, it alone decides
    :param allow_empty: whether an hour without objects is settled too
    """

    quiet_period: timedelta
    marker: str | None
    allow_empty: bool


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the raw hour; no state is carried from one to the next.

    :param objects: listed, hidden ones included
    :param newest: when the last of them was written, by the store's clock
    :param now: the store's clock at the time of the listing
    """

    state: State
    objects: int
    bytes: int
    newest: datetime | None
    now: datetime

    def __str__(self) -> str:
        written = f", the newest written {self.newest:%Y-%m-%d %H:%M:%SZ}" if self.newest else ""
        return f"{self.state}: {self.objects:,} objects, {format_size(self.bytes)}{written}"


def look(store: ObjectStore, paths: HourPaths, rule: Rule) -> Look:
    """List the raw hour once and judge it.

    All times are the store's, from LastModified and the Date of its answers, so that the clock of the
    machine that looks does not matter.
    """
    objects = size = 0
    newest = 0.0
    marked = False
    now = datetime.now(UTC)
    for page in pages_by_token(store, paths.raw):
        now = page.server_time
        newest = max(newest, page.newest)
        for item in page.objects:
            objects += 1
            size += item.size
            marked = marked or item.key == paths.raw.key + (rule.marker or "")
    last = datetime.fromtimestamp(newest, UTC) if objects else None
    if rule.marker:
        state = State.SETTLED if marked else State.NO_MARKER
    elif now < paths.end:
        state = State.NOT_ENDED
    elif last is not None:
        state = State.SETTLED if now - last >= rule.quiet_period else State.BEING_WRITTEN
    elif rule.allow_empty and now - paths.end >= rule.quiet_period:
        state = State.SETTLED
    else:
        state = State.EMPTY
    return Look(state, objects, size, last, now)


def give_up_at(paths: HourPaths, rule: Rule, first: Look, timeout: timedelta) -> datetime:
    """Until when waiting makes sense, by the store's clock.

    An hour without objects is waited for until the time-out after its end, so that a backfill of an hour
    that never had any does not wait at all; one that is being written to, for the time-out from now on.
    """
    if first.state is State.EMPTY:
        return paths.end + timeout
    return max(paths.end, first.now) + timeout


def unsettled(paths: HourPaths, rule: Rule, last: Look) -> EmptyHourError | UnsettledHourError:
    """The error for the operator when the time-out has come."""
    hour = format_hour(paths.hour)
    if last.state is State.EMPTY:
        return EmptyHourError(
            f"hour {hour}: no objects under {paths.raw}. If its producers were silent, set 'allow_empty: "
            f"true' for the stream, or mark the run as success; if they are late, clear this task. If the "
            f"objects were rolled up and have expired since, mark the run as success: the hour stays as it is."
        )
    if last.state is State.NO_MARKER:
        return UnsettledHourError(
            f"hour {hour}: the marker {paths.raw.child(rule.marker or '')} did not come ({last.objects:,} "
            f"objects are there). Have the producer write it, then clear this task."
        )
    return UnsettledHourError(
        f"hour {hour}: not settled under {paths.raw}: {last}; 'quiet_period' is {rule.quiet_period}. Clear "
        f"this task once the producers are done, or raise 'timeout' for the stream."
    )
