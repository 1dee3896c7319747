"""Infers the time zone of hours, and the quiet period, from the times at which objects were written."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

# One for each usual clock; of zones that agree with the sample, the first is proposed and all are named.
_ZONES = (
    "Europe/Berlin", "Europe/London", "Europe/Athens", "Europe/Moscow", "America/New_York", "America/Chicago",
    "America/Denver", "America/Phoenix", "America/Los_Angeles", "America/Halifax", "America/Sao_Paulo",
    "America/St_Johns", "America/Anchorage", "Pacific/Honolulu", "Asia/Kolkata", "Asia/Shanghai", "Asia/Tokyo",
    "Asia/Dubai", "Asia/Karachi", "Asia/Dhaka", "Asia/Bangkok", "Asia/Kathmandu", "Asia/Tehran",
    "Australia/Sydney", "Australia/Brisbane", "Australia/Adelaide", "Australia/Perth", "Pacific/Auckland",
    "Africa/Lagos", "Africa/Johannesburg", "Africa/Nairobi",
)  # fmt: skip
# S3 and the producer may have clocks that differ by this much.
_CLOCKS = timedelta(minutes=2)
# Objects that are written during their hour begin early in it, and end soon after it.
_BEGIN, _END = timedelta(minutes=15), timedelta(minutes=90)
# A delay of this many hours may be a time zone.
_ZONE_DELAY = timedelta(hours=2)
# With times further from the hour, the objects were copied, or the number is no hour.
_BEFORE, _AFTER = timedelta(hours=15), timedelta(hours=40)
# The objects of an hour are written within less, unless many are late.
_SPREAD = timedelta(hours=12)
_MIN_OBJECTS, _MIN_HOURS = 12, 2
# Deliveries that come later than this are left to log_rollup_late.
_MAX_GAP = timedelta(hours=6)
_QUIET_PERIODS = tuple(timedelta(minutes=count) for count in (10, 15, 20, 30, 45, 60, 90, 120, 180, 360))

# A local hour, and the time at which an object of it was written.
Written = tuple[datetime, datetime]


@dataclass(frozen=True)
class ZoneGuess:
    """Which time zone the hours in the keys have.

    :param zone: to propose
    :param others: that agree with the sample as well; they may include UTC
    :param reason: why, as a sentence
    :param is_known: whether the times show it
    """

    zone: str
    others: tuple[str, ...]
    reason: str
    is_known: bool


def guess_zone(written: Sequence[Written]) -> ZoneGuess:
    """Infer the time zone of the hours in keys from the times at which their objects were written."""
    hours = {label for label, _ in written}
    if len(written) < _MIN_OBJECTS or len(hours) < _MIN_HOURS:
        return ZoneGuess("UTC", (), f"{len(written)} objects of {len(hours)} hours are too few", False)
    low, middle, high = _delays(written, "UTC")
    if not -_BEFORE <= middle <= _AFTER:
        return ZoneGuess(
            "UTC",
            (),
            f"the objects were written {_words(middle)} the start of their hour, so they may have been copied",
            False,
        )
    if high - low > _SPREAD:
        return ZoneGuess(
            "UTC",
            (),
            f"objects of an hour are written over {_words(high - low).rpartition(' ')[0]}: they come late, or the "
            f"number that is taken for the hour is no hour",
            False,
        )
    fitting = [zone for zone in _ZONES if _fits(_delays(written, zone))]
    if low >= -_CLOCKS and (low < _ZONE_DELAY or not fitting):
        return ZoneGuess(
            "UTC", (), f"objects are written from {_words(low)} the start of their hour on", True
        )
    if low >= -_CLOCKS:
        return ZoneGuess(
            fitting[0],
            (*fitting[1:], "UTC"),
            f"objects are written {_words(low)} the start of their hour, as if it were UTC, and then evenly over "
            f"an hour: a local time, or a delay",
            True,
        )
    if fitting:
        return ZoneGuess(
            fitting[0],
            tuple(fitting[1:]),
            f"objects are written {_words(low)} the start of their hour, if it were UTC",
            True,
        )
    return ZoneGuess(
        "UTC",
        (),
        f"objects are written {_words(low)} the start of their hour, and no usual time zone fits",
        False,
    )


def _fits(delays: tuple[timedelta, timedelta, timedelta]) -> bool:
    low, _, high = delays
    return -_CLOCKS <= low <= _BEGIN and high <= _END


def _delays(written: Sequence[Written], zone: str) -> tuple[timedelta, timedelta, timedelta]:
    """Times from the start of the hour to the object: nearly the least, the middle, and nearly the longest."""
    info = ZoneInfo(zone)
    delays = sorted(modified - label.replace(tzinfo=info).astimezone(UTC) for label, modified in written)
    edge = len(delays) // 50
    return delays[edge], delays[len(delays) // 2], delays[-1 - edge]


def _words(delay: timedelta) -> str:
    seconds = abs(int(delay.total_seconds()))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    amount = f"{hours // 24:,} days" if hours >= 72 else f"{hours}:{minutes:02} h"
    return f"{amount} {'before' if delay < timedelta() else 'after'}"


@dataclass(frozen=True)
class QuietPeriod:
    """How long to wait after the end of an hour.

    :param period: to propose
    :param gap: the longest time between two objects of an hour, if the later one came after its end
    :param last: how long after its end the last object of an hour came
    """

    period: timedelta
    gap: timedelta
    last: timedelta


def quiet_period_of(times: Mapping[datetime, Iterable[datetime]], least: timedelta) -> QuietPeriod:
    """The quiet period for hours with objects written at some times.

    An hour is settled when it has ended and its newest object is that old. So the period has to be longer than any
    time between two objects of which the later one was written after the end; it gets half of that as a margin.

    :param times: when the objects of each UTC hour were written
    :param least: the least to propose
    """
    gap = last = timedelta()
    for hour, moments in times.items():
        end = hour + timedelta(hours=1)
        ordered = sorted(moments)
        for earlier, later in pairwise(ordered):
            if end < later <= end + _MAX_GAP:
                gap = max(gap, later - earlier)
        last = max([last, *(moment - end for moment in ordered[-1:] if moment <= end + _MAX_GAP)])
    wanted = max(least, gap * 1.5)
    return QuietPeriod(next((p for p in _QUIET_PERIODS if p >= wanted), max(least, _MAX_GAP)), gap, last)


def times_by_hour(rows: Iterable[tuple[datetime, datetime]]) -> dict[datetime, list[datetime]]:
    """The times at which the objects of each hour were written, from pairs of both."""
    found: dict[datetime, list[datetime]] = defaultdict(list)
    for hour, modified in rows:
        found[hour].append(modified)
    return dict(found)
