"""When a raw hour is settled: nothing more is to be expected in it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from include.log_rollup.errors import EmptyHourError, UnsettledHourError
from include.log_rollup.hour.layout import HourPaths, format_hour
from include.log_rollup.storage.listing import pages_by_token
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.units import format_duration, format_size


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
    """List the raw hour once and judge it; no page counts before the last one has been read.

    All times are the store's, from LastModified and the Date of its answers, so that the clock of the
    machine that looks does not matter.

    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
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


def unsettled(
    paths: HourPaths, rule: Rule, last: Look, waited: timedelta | None = None
) -> EmptyHourError | UnsettledHourError:
    """The error for an hour that is not settled when the timeout has passed.

    :param last: the look that decided
    :param waited: how long the hour was waited for; None if it was not
    """
    hour, after = format_hour(paths.hour), _waited(waited)
    if last.state is State.EMPTY:
        return EmptyHourError(
            f"hour {hour}: no objects under {paths.raw}{after}. If its producers were silent, set 'allow_empty: "
            f"true' for the stream, or mark the run as success; if they are late, clear this task. If the "
            f"objects were rolled up and have expired since, mark the run as success: the hour stays as it is."
        )
    if last.state is State.NO_MARKER:
        return UnsettledHourError(
            f"hour {hour}: the marker {paths.raw.child(rule.marker or '')} did not come ({last.objects:,} "
            f"objects are there){after}. Have the producer write it, then clear this task."
        )
    return UnsettledHourError(
        f"hour {hour}: not settled under {paths.raw}{after}: {last}; 'quiet_period' is {rule.quiet_period}. "
        f"Clear this task once the producers are done, or raise 'timeout' for the stream."
    )


def unlisted(
    paths: HourPaths, aws_conn_id: str, problem: str, lasted: timedelta, waited: timedelta
) -> UnsettledHourError:
    """The error for an hour that could not be listed when the timeout had passed.

    :param aws_conn_id: the Airflow connection that was used
    :param problem: why the last listing failed
    :param lasted: how long no listing has succeeded
    :param waited: how long the hour was waited for
    """
    hour = format_hour(paths.hour)
    return UnsettledHourError(
        f"hour {hour}: S3 is unreachable or does not answer: no listing of {paths.raw} succeeded for "
        f"{format_duration(lasted)}{_waited(waited)}. The last problem: {problem}. Check that triggerer and "
        f"workers reach the endpoint of the Airflow connection {aws_conn_id!r}, then clear this task."
    )


def _waited(duration: timedelta | None) -> str:
    return "" if duration is None else f" after {format_duration(duration)} of waiting"
