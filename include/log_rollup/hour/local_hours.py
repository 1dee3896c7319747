"""Hours of a time zone, and the UTC hours to which they belong."""

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from include.log_rollup.hour.layout import FIRST_YEAR, LAST_YEAR, floor_hour, format_hour

_SECOND = timedelta(seconds=1)
_TO_LAST_SECOND = timedelta(minutes=59, seconds=59)


@dataclass(frozen=True)
class LocalHours:
    """The hours of a time zone by their labels: year, month, day and hour of the zone's clock.

    A label belongs to the UTC hour that contains its last instant, so that no object with this label is written
    after the UTC hour has ended. The label of a repeated hour belongs to the later UTC hour; the earlier one may
    then have no label. A label that the clock skips belongs to no hour. A UTC hour can have two labels, if the
    clock skips less than an hour in it (Australia/Lord_Howe).

    Labels are naive datetimes, UTC hours aware ones. Both are total for UTC hours of the years 1970 to 2999.

    :param zone: IANA name; see :func:`check_zone`
    """

    zone: str = "UTC"

    @cached_property
    def _info(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    def hour_of(self, label: datetime) -> datetime | None:
        """The UTC hour of a label; None if the clock skips it, or the hour is not in the years 1970 to 2999."""
        # Conversions of a year further away may overflow.
        if not FIRST_YEAR - 1 <= label.year <= LAST_YEAR + 1:
            return None
        hour = label.replace(tzinfo=UTC) if self.zone == "UTC" else self._convert(label)
        return hour if hour is not None and FIRST_YEAR <= hour.year <= LAST_YEAR else None

    def labels_of(self, hour: datetime) -> tuple[datetime, ...]:
        """The labels that belong to a UTC hour, in their order: usually one, at times none or two."""
        if self.zone == "UTC":
            return (hour.replace(tzinfo=None),)
        return tuple(label for label in self._labels_in(hour) if self.hour_of(label) == hour)

    def why_empty(self, hour: datetime) -> str | None:
        """Why no label belongs to a UTC hour, as a sentence; None if one does."""
        if self.labels_of(hour):
            return None
        # All labels shown in it have their last instant later.
        ends = ((label, self.hour_of(label)) for label in self._labels_in(hour))
        label, later = next((label, end) for label, end in ends if end is None or end > hour)
        owner = f"the UTC hour {format_hour(later)}" if later else "a later UTC hour"
        return (
            f"No object belongs to the UTC hour {format_hour(hour)}: the clocks of {self.zone} are set back, the "
            f"local hour {label:%Y-%m-%d %H}:00 occurs twice, and its objects belong to {owner}."
        )

    def _convert(self, label: datetime) -> datetime | None:
        last = self._instant(label + _TO_LAST_SECOND)
        if last is None:
            # The clock skips the last second. If it shows the first, it is set forward within the hour.
            first = self._instant(label)
            if first is None:
                return None
            last = self._before_skip(first)
        return floor_hour(last)

    def _instant(self, local: datetime) -> datetime | None:
        """The last UTC instant at which the clock shows a local time; None if it skips it."""
        instant = local.replace(tzinfo=self._info, fold=1).astimezone(UTC)
        return instant if self._local(instant) == local else None

    def _local(self, instant: datetime) -> datetime:
        return instant.astimezone(self._info).replace(tzinfo=None)

    def _before_skip(self, first: datetime) -> datetime:
        """The last second before the clock is set forward, less than an hour after ``first``."""
        offset = first.astimezone(self._info).utcoffset()
        low, high = 0, 3599
        while high - low > 1:
            middle = (low + high) // 2
            same = (first + middle * _SECOND).astimezone(self._info).utcoffset() == offset
            low, high = (middle, high) if same else (low, middle)
        return first + low * _SECOND

    def _labels_in(self, hour: datetime) -> list[datetime]:
        """The labels that the clock shows during a UTC hour, and perhaps their neighbours."""
        first, last = self._local(hour), self._local(hour + _TO_LAST_SECOND)
        # If the clock is set in between, it runs on from the first time and up to the last one.
        shown = (first, first + _TO_LAST_SECOND, last - _TO_LAST_SECOND, last)
        return sorted({time.replace(minute=0, second=0, fold=0) for time in shown})


def check_zone(name: object) -> str:
    """The name of a time zone, if it is one.

    :raises ValueError: if the IANA database has no such zone; the message shows the key of the streams file with a
        caret under the fault, and the zone with the nearest name
    """
    if isinstance(name, str) and name:
        try:
            return ZoneInfo(name).key
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    text = str(name)
    near = _nearest_zone(text)
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
    caret = " " * (len("timezone: ") + _first_difference(text, near or ""))
    raise ValueError(
        f"{name!r} is not a time zone\n  timezone: {shown}\n  {caret}^\n"
        f"write it like timezone: {near or 'Europe/Berlin'}"
    )


def _nearest_zone(text: str) -> str | None:
    """The zone whose name, or the last step of it, is nearest to a text; None if none is near."""
    zones = sorted(available_timezones())
    by_lower = {zone.lower(): zone for zone in zones} | {
        zone.lower().rpartition("/")[2]: zone for zone in zones
    }
    near = difflib.get_close_matches(text.replace(" ", "_").lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[near[0]] if near else None


def _first_difference(text: str, near: str) -> int:
    """Index of the first character of a text that differs from the zone's name."""
    pairs = enumerate(zip(text, near, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(text), len(near)))
