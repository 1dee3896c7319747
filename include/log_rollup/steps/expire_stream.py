"""Expires the raw objects of the old hours of a stream: which hours, in which order, for how long."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from include.log_rollup.errors import ArchivedError, ProofError
from include.log_rollup.hour.layout import floor_hour, format_hour, hours_between
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.parallel import in_parallel
from include.log_rollup.steps.expire_hour import ExpiryState, HourExpiry, examine_hour, expire_hour, is_over
from include.log_rollup.storage.protocol import ExpiryStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)

# A report, which is a row of the metadata database, names so many hours of a kind.
MAX_HOURS_SHOWN = 100
# Hours whose records are read at a time.
_ROUND_HOURS = 500


@dataclass(slots=True)
class StreamExpiry:
    """What was found in the hours of a stream, and what was deleted of them; sizes in bytes.

    :param deletes: whether raw objects were deleted; False if hours were only examined
    :param hours: number of hours
    :param expired: how many of them have no raw object left that may be deleted
    :param incomplete: the hours that are not complete; they are left alone
    :param found: the hours that are not over, by their records alone
    :param unfinished: number of hours that were not reached, because the time or the number of objects was over
    :param objects: number of raw objects that can be deleted, or that were deleted
    :param before: number of raw objects that had expired before
    """

    stream: str
    deletes: bool
    hours: int = 0
    expired: int = 0
    incomplete: list[datetime] = field(default_factory=list)
    found: list[HourExpiry] = field(default_factory=list)
    unfinished: int = 0
    objects: int = 0
    size: int = 0
    before: int = 0

    @property
    def left_alone(self) -> Sequence[HourExpiry]:
        """The hours that were left alone, or not finished, each with its reason."""
        return [one for one in self.found if one.state is ExpiryState.LEFT_ALONE]

    @property
    def is_ok(self) -> bool:
        """Whether no complete hour had to be left alone."""
        return not self.left_alone

    def to_json(self, most_hours: int | None = MAX_HOURS_SHOWN) -> dict[str, Any]:
        """A report.

        :param most_hours: the most hours of each kind to name; None for all
        """
        shown = [one for one in self.found if one.objects or one.state is ExpiryState.LEFT_ALONE]
        return {
            "stream": self.stream,
            "deleted": self.deletes,
            "hours": self.hours,
            "expired_hours": self.expired,
            "incomplete_hours": len(self.incomplete),
            "incomplete": [format_hour(hour) for hour in self.incomplete[:most_hours]],
            "unfinished_hours": self.unfinished,
            "objects": self.objects,
            "bytes": self.size,
            "expired_before": self.before,
            "left_alone": len(self.left_alone),
            "late": sum(one.late.count for one in self.found),
            "changed": sum(one.changed.count for one in self.found),
            "vanished": sum(one.vanished.count for one in self.found),
            "refused": sum(one.refused.count for one in self.found),
            "delete_markers": sum(one.delete_markers for one in self.found),
            "found": {format_hour(one.hour): hour_json(one) for one in shown[:most_hours]},
        }


def hour_json(found: HourExpiry) -> dict[str, Any]:
    """What was found in an hour, as in a report."""
    values: dict[str, Any] = {
        "state": found.state.value,
        "reason": found.reason,
        "objects": found.objects,
        "bytes": found.size,
        "expired": found.expired,
        "left_out": found.left_out,
        "delete_markers": found.delete_markers,
    }
    for name in ("late", "changed", "vanished", "refused"):
        keys = getattr(found, name)
        values[name] = keys.count
        values[f"{name}_keys"] = list(keys.first)
    return values


def old_hours(stream: Stream, now: datetime) -> list[datetime]:
    """The hours of a stream that are older than its ``expire_raw.after``, the oldest first."""
    rules = stream.expire_raw
    assert rules is not None
    since = rules.since or stream.start
    # An hour is as old as its end.
    return hours_between(since, max(floor_hour(now - rules.after), since))


def has_expired(store: ExpiryStore, stream: Stream, hours: Sequence[datetime]) -> bool:
    """Whether a deletion was begun in any of these hours; the newest hours are read first."""

    def read(hour: datetime) -> bool:
        try:
            return HourReader(store, stream, hour).expiry_record() is not None
        except (ProofError, ArchivedError):
            return True

    newest = list(reversed(hours))
    for start in range(0, len(newest), _ROUND_HOURS):
        some = newest[start : start + _ROUND_HOURS]
        if any(in_parallel(store.control_connections, "log-rollup-hours", read, some)):
            return True
    return False


def expire_stream(
    store: ExpiryStore,
    stream: Stream,
    hours: Iterable[datetime],
    *,
    delete: bool,
    skip_over: bool = True,
    at_most: int | None = None,
    seconds: float | None = None,
    on_hour: Callable[[HourExpiry], None] | None = None,
) -> StreamExpiry:
    """Examine some hours, and delete their raw objects where it is safe.

    Hours that are over take two small requests. An hour that cannot be proven does not stop the others.

    :param delete: False to examine only
    :param skip_over: don't list the raw objects of hours in which everything has expired by their records. False
        finds objects that were restored since
    :param at_most: the most raw objects to delete; an hour that would exceed it is left for the next run
    :param seconds: time after which no further hour is begun
    :param on_hour: called with each hour that is not over
    :raises UnsupportedOperationError: if the store deletes unconditionally, and the stream does not accept that
    :raises RollupError: as the store raises
    """
    result = StreamExpiry(stream.name, delete)
    until = None if seconds is None else time.monotonic() + seconds
    left = list(hours)
    result.hours = len(left)
    while left:
        some, left = left[:_ROUND_HOURS], left[_ROUND_HOURS:]
        over = list(
            in_parallel(
                store.control_connections,
                "log-rollup-hours",
                lambda hour: is_over(store, stream, hour) if skip_over else None,
                some,
            )
        )
        for number, (hour, known) in enumerate(zip(some, over, strict=True)):
            if known is not None:
                _count_known(result, known)
                continue
            if until is not None and time.monotonic() >= until:
                result.unfinished += over[number:].count(None) + len(left)
                return _logged(result)
            found = _one_hour(store, stream, hour, delete, at_most, result.objects)
            if found is None:
                result.unfinished += 1
                continue
            _count_found(result, found)
            if on_hour:
                on_hour(found)
    return _logged(result)


def _one_hour(
    store: ExpiryStore, stream: Stream, hour: datetime, delete: bool, at_most: int | None, done: int
) -> HourExpiry | None:
    """What became of an hour; None if it would delete more than ``at_most`` raw objects in all."""
    if not delete:
        return examine_hour(store, stream, hour)
    if at_most is not None:
        found = examine_hour(store, stream, hour)
        if found.state is ExpiryState.DELETABLE and done + found.objects > at_most:
            return None
    return expire_hour(store, stream, hour)


def _count_known(result: StreamExpiry, known: HourExpiry) -> None:
    if known.state is ExpiryState.INCOMPLETE:
        result.incomplete.append(known.hour)
    else:
        result.expired += 1
        result.before += known.expired


def _count_found(result: StreamExpiry, found: HourExpiry) -> None:
    if found.state is ExpiryState.INCOMPLETE:
        result.incomplete.append(found.hour)
        return
    result.found.append(found)
    result.objects += found.objects
    result.size += found.size
    result.before += found.expired - (found.objects if result.deletes else 0)
    if found.state is ExpiryState.EXPIRED:
        result.expired += 1
    if found.state is ExpiryState.LEFT_ALONE:
        log.warning("hour %s is left alone: %s", format_hour(found.hour), found.reason)


def _logged(result: StreamExpiry) -> StreamExpiry:
    log.info("%s", describe(result))
    return result


def describe(result: StreamExpiry) -> str:
    """The result in one line."""
    verb = "deleted" if result.deletes else "can be deleted"
    text = (
        f"{result.objects:,} raw objects, {format_size(result.size)}, {verb}; {result.hours:,} hours: "
        f"{result.expired:,} expired, {len(result.left_alone):,} left alone, {len(result.incomplete):,} incomplete"
    )
    if result.unfinished:
        text += f", {result.unfinished:,} left for the next run"
    return text
