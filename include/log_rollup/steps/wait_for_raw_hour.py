"""The step wait_for_raw_hour: decides whether a raw hour is settled, i.e. no more objects are expected in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from include.log_rollup.errors import EmptyHourError, UnsettledHourError
from include.log_rollup.hour.changes import MAX_SHOWN
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
        presence decides. If the raw template has captures, each place of the hour that has objects needs its own;
        near midnight, the folders of two days are one place, and the object may be in either
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
    :param why_empty: why no object can belong to the hour; None if objects can
    :param places: number of places with objects; only counted if the template has captures and there is a ready
        object
    :param unready: those of them that lack the ready object, as URLs; the first ones
    :param unready_count: number of all that lack it
    """

    status: RawHourStatus
    objects: int
    bytes: int
    newest: datetime | None
    now: datetime
    why_empty: str | None = None
    places: int = 0
    unready: tuple[str, ...] = ()
    unready_count: int = 0

    def __str__(self) -> str:
        written = f", the newest written {self.newest:%Y-%m-%d %H:%M:%SZ}" if self.newest else ""
        why = f". {self.why_empty}" if self.why_empty else ""
        return f"{self.status}: {self.objects:,} objects, {format_size(self.bytes)}{written}{why}"


class _ReadyObjects:
    """Notes which places of the hour have objects, and which have the ready object.

    Without captures the hour is one place. With captures, the objects of each place have the same key up to the
    name below the hour. What a producer delivers after midnight, into the folder of the next day, is of the same
    place: producers write one ready object for an hour, in the folder of its own day or of the day of delivery.
    """

    def __init__(self, paths: RawPaths, ready_object: str) -> None:
        self._paths = paths
        self._ready_object = ready_object
        self._by_place = bool(paths.raw_template.captures)
        self._ready: dict[str, bool] = {}
        # Places by the text of a key up to its name.
        self._places: dict[str, str] = {}

    def add(self, key: str, size: int) -> None:
        """Note an object; empty ones for folders don't count."""
        name = self._paths.name_of(key)
        is_ready = name == self._ready_object
        if is_ready or size or (name and not name.endswith("/")):
            place = self._place_of(key[: len(key) - len(name)]) if self._by_place else ""
            self._ready[place] = self._ready.get(place, False) or is_ready

    def _place_of(self, text: str) -> str:
        place = self._places.get(text)
        if place is None:
            place = self._places[text] = self._paths.raw_template.own_folder(text)
        return place

    @property
    def places(self) -> Mapping[str, bool]:
        """Whether each place with objects has the ready object."""
        return self._ready

    @property
    def unready(self) -> list[str]:
        """The places that lack the ready object, as URLs."""
        bucket = self._paths.raw_template.bucket
        return [f"s3://{bucket}/{place}" for place, is_ready in sorted(self._ready.items()) if not is_ready]


def check_raw_hour(store: ObjectStore, paths: RawPaths, rule: SettleRule) -> RawHourCheck:
    """List the raw hour completely and decide whether it is settled.

    Uses only the store's times (``LastModified`` and the ``Date`` header), so a wrong clock on this machine has no
    effect.

    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    objects = size = 0
    newest = 0.0
    ready = _ReadyObjects(paths, rule.ready_object) if rule.ready_object else None
    # No key can belong to an hour that the clocks skip: nothing is listed, and this machine's clock is enough.
    now = datetime.now(UTC)
    for page in paths.raw.pages(store):
        now = page.server_time
        newest = max(newest, page.newest)
        for item in page.objects:
            objects += 1
            size += item.size
            if ready:
                ready.add(item.key, item.size)
    last = datetime.fromtimestamp(newest, UTC) if objects else None
    why_empty = paths.raw_template.why_empty(paths.hour)
    status = _empty_status(paths, now) if why_empty else _status(paths, rule, ready, last, now)
    by_place = ready if ready and paths.raw_template.captures else None
    unready = by_place.unready if by_place else []
    return RawHourCheck(
        status,
        objects,
        size,
        last,
        now,
        why_empty,
        len(by_place.places) if by_place else 0,
        tuple(unready[:MAX_SHOWN]),
        len(unready),
    )


def _empty_status(paths: RawPaths, now: datetime) -> RawHourStatus:
    """The status of an hour to which no object can belong: nobody has to allow that it is empty."""
    return RawHourStatus.NOT_ENDED if now < paths.end else RawHourStatus.SETTLED


def _status(
    paths: RawPaths, rule: SettleRule, ready: _ReadyObjects | None, newest: datetime | None, now: datetime
) -> RawHourStatus:
    if ready:
        is_ready = bool(ready.places) and all(ready.places.values())
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
    if last.status is RawHourStatus.NO_READY_OBJECT and last.unready:
        more = (
            f" and {last.unready_count - len(last.unready):,} more"
            if last.unready_count > len(last.unready)
            else ""
        )
        return UnsettledHourError(
            f"hour {hour}: the ready object {rule.ready_object} is missing in {last.unready_count:,} of "
            f"{last.places:,} places with objects{after}: {', '.join(last.unready)}{more}. Have the producer "
            f"write it there, then clear this task."
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
