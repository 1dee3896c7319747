"""The step wait_for_raw_hour: decides whether a raw hour is settled, i.e. no more objects are expected in it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from include.log_rollup.errors import EmptyHourError, UnsettledHourError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.paths import RawPaths
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.units import format_duration, format_size


class RawHourStatus(StrEnum):
    """Result of one check of a raw hour; only ``SETTLED`` ends the wait."""

    SETTLED = "settled"
    NOT_ENDED = "not ended"
    EMPTY = "empty"
    BEING_WRITTEN = "being written"
    NO_READY_OBJECT = "waiting for the ready object"


@dataclass(frozen=True, slots=True)
class SettleRule:
    """When a raw hour counts as settled.

    :param quiet_period: minimum age of the newest object
    :param ready_object: name below the raw hour of the object that the producer writes last; if given, only its
        presence decides
    :param allow_empty: whether an hour without objects can be settled
    """

    quiet_period: timedelta
    ready_object: str | None
    allow_empty: bool


@dataclass(frozen=True, slots=True)
class RawHourCheck:
    """What one listing of the raw hour shows. Each check is independent of the earlier ones.

    :param objects: number of listed objects, hidden ones included
    :param bytes: their total size
    :param newest: last modification of the newest object, by the store's clock
    :param now: the store's clock when it answered
    """

    status: RawHourStatus
    objects: int
    bytes: int
    newest: datetime | None
    now: datetime

    def __str__(self) -> str:
        written = f", the newest written {self.newest:%Y-%m-%d %H:%M:%SZ}" if self.newest else ""
        return f"{self.status}: {self.objects:,} objects, {format_size(self.bytes)}{written}"


def check_raw_hour(store: ObjectStore, paths: RawPaths, rule: SettleRule) -> RawHourCheck:
    """List the raw hour completely and decide whether it is settled.

    Uses only the store's times (``LastModified`` and the ``Date`` header), so a wrong clock on this machine has no
    effect.

    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    objects = size = 0
    newest = 0.0
    is_ready = False
    now = datetime.now(UTC)
    for page in paths.raw.pages(store):
        now = page.server_time
        newest = max(newest, page.newest)
        for item in page.objects:
            objects += 1
            size += item.size
            is_ready = is_ready or (
                rule.ready_object is not None and paths.name_of(item.key) == rule.ready_object
            )
    last = datetime.fromtimestamp(newest, UTC) if objects else None
    return RawHourCheck(_status(paths, rule, is_ready, last, now), objects, size, last, now)


def _status(
    paths: RawPaths, rule: SettleRule, is_ready: bool, newest: datetime | None, now: datetime
) -> RawHourStatus:
    if rule.ready_object:
        return RawHourStatus.SETTLED if is_ready else RawHourStatus.NO_READY_OBJECT
    if now < paths.end:
        return RawHourStatus.NOT_ENDED
    if newest is not None:
        is_quiet = now - newest >= rule.quiet_period
        return RawHourStatus.SETTLED if is_quiet else RawHourStatus.BEING_WRITTEN
    if rule.allow_empty and now - paths.end >= rule.quiet_period:
        return RawHourStatus.SETTLED
    return RawHourStatus.EMPTY


def give_up_at(paths: RawPaths, first: RawHourCheck, timeout: timedelta) -> datetime:
    """When the wait ends, by the store's clock.

    For an hour without objects, the time-out counts from the end of the hour: a backfill of an hour that never had
    objects does not wait. Otherwise it counts from now, or from the end of the hour if that is later.

    :param first: the first check of the wait
    """
    if first.status is RawHourStatus.EMPTY:
        return paths.end + timeout
    return max(paths.end, first.now) + timeout


def unsettled_error(
    paths: RawPaths, rule: SettleRule, last: RawHourCheck, waited: timedelta | None = None
) -> EmptyHourError | UnsettledHourError:
    """The error for an hour that is not settled when the time-out has passed.

    :param last: the last check
    :param waited: how long the task has waited; None if it has not
    """
    hour, after = format_hour(paths.hour), _after(waited)
    if last.status is RawHourStatus.EMPTY:
        return EmptyHourError(
            f"hour {hour}: no objects under {paths.raw}{after}. If its producers were silent, set 'allow_empty: "
            f"true' for the stream, or mark the run as success; if they are late, clear this task. If the "
            f"objects were rolled up and have expired since, mark the run as success: the hour stays as it is."
        )
    if last.status is RawHourStatus.NO_READY_OBJECT:
        return UnsettledHourError(
            f"hour {hour}: the ready object {rule.ready_object} was not written under {paths.raw} "
            f"({last.objects:,} objects are there){after}. Have the producer write it, then clear this task."
        )
    return UnsettledHourError(
        f"hour {hour}: not settled under {paths.raw}{after}: {last}; 'quiet_period' is {rule.quiet_period}. "
        f"Clear this task once the producers are done, or raise 'timeout' for the stream."
    )


def unlisted_error(
    paths: RawPaths, aws_conn_id: str, problem: str, lasted: timedelta, waited: timedelta
) -> UnsettledHourError:
    """The error for an hour that could not be listed when the time-out had passed.

    :param aws_conn_id: the Airflow connection that was used
    :param problem: why the last listing failed
    :param lasted: time since the last successful listing
    :param waited: how long the task has waited
    """
    hour = format_hour(paths.hour)
    return UnsettledHourError(
        f"hour {hour}: S3 is unreachable or does not answer: no listing of {paths.raw} succeeded for "
        f"{format_duration(lasted)}{_after(waited)}. The last problem: {problem}. Check that triggerer and "
        f"workers reach the endpoint of the Airflow connection {aws_conn_id!r}, then clear this task."
    )


def _after(waited: timedelta | None) -> str:
    return "" if waited is None else f" after {format_duration(waited)} of waiting"
