"""Finds the hour in a key: where its year, month, day and hour are, and in which order.

A key may be read in several ways: ``04/11/2026`` is in April or in November. All readings with different hours are
returned; which one is right shows in other keys, or in the times at which the objects were written.
"""

import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import NamedTuple

_YEAR, _MONTH, _DAY = r"(?:19[7-9]\d|20\d\d)", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_HOUR, _DAY_OF_YEAR = r"(?:[01]\d|2[0-3])", r"(?:[0-2]\d\d|3[0-6]\d)"
# A step of the path may have a name before its number: month=11, m11.
_LABEL = r"(?:[A-Za-z_]+=|(?i:year|month|day|hour|[ymdht])[-_]?)?"
_BETWEEN = rf"(?:[-_.]|/{_LABEL})?"
_ADJACENT = re.compile(
    rf"(?P<between>[-_.T ]|/{_LABEL}|)(?P<hour>{_HOUR})(?=[0-5]\d(?:[0-5]\d)?(?!\d)|(?!\d))"
)
# A later step that is an hour, or begins with hour and minute.
_LATER = re.compile(
    rf"/(?:[A-Za-z_]+=)?(?P<hour>{_HOUR})(?=/|(?<=[=].{{2}})(?!\d)|[-_.:h]?[0-5]\d(?:[-_.:]?[0-5]\d)?(?!\d))"
)
# An earlier step that is an hour: any one next to the date, or one with a name further before it.
_EARLIER = re.compile(
    rf"(?:(?<=/)|^)(?:[A-Za-z_]+=|(?i:hour|h)[-_]?)?(?P<hour>{_HOUR})(?:[-_.T ]|/{_LABEL})$"
)
_EARLIER_NAMED = re.compile(rf"(?:(?<=/)|^)(?i:hour|hr|hh|h)[=_-]?(?P<hour>{_HOUR})(?=/)")
_INNER = re.compile(rf"[-_.T ]?|/{_LABEL}")


def _form(*parts: str) -> re.Pattern[str]:
    # In a lookahead, so that dates that overlap are found too.
    return re.compile(rf"(?<!\d)(?=({_BETWEEN.join(f'({part})' for part in parts)}))")


# The order of the directives in a date, and its expression; the most usual order first.
_FORMS = (
    (("%Y", "%m", "%d"), _form(_YEAR, _MONTH, _DAY)),
    (("%Y", "%j"), _form(_YEAR, _DAY_OF_YEAR + r"(?!\d)")),
    (("%d", "%m", "%Y"), _form(_DAY, _MONTH, _YEAR + r"(?!\d)")),
    (("%m", "%d", "%Y"), _form(_MONTH, _DAY, _YEAR + r"(?!\d)")),
)
# Two digits are tried only if the key has no year of four, and only where a step begins.
_SHORT = re.compile(rf"(?:(?<=/)|^)(?:[A-Za-z_]+=)?((\d\d){_BETWEEN}(\d\d){_BETWEEN}(\d\d))(?!\d)")
_SHORT_FORMS = (("%y", "%m", "%d"), ("%d", "%m", "%y"), ("%m", "%d", "%y"))


class Field(NamedTuple):
    """A directive and its place in a key."""

    directive: str
    start: int
    end: int


class Reading(NamedTuple):
    """One way to read the hour of a key.

    :param fields: of the date and the hour, in their order; a date that occurs twice has its fields twice
    :param label: the local hour, as a naive datetime
    :param order: rank of the order of the date's directives; 0 is the most usual
    """

    fields: tuple[Field, ...]
    label: datetime
    order: int


class DateInKey(NamedTuple):
    """A date in a key.

    :param order: as in :class:`Reading`
    """

    fields: tuple[Field, ...]
    day: date
    order: int

    @property
    def start(self) -> int:
        """Index of its first digit."""
        return self.fields[0].start

    @property
    def end(self) -> int:
        """Index behind its last digit."""
        return self.fields[-1].end


def dates_in(key: str) -> list[DateInKey]:
    """The dates in a key, those of the most usual order first."""
    found: list[DateInKey] = []
    for order, (directives, form) in enumerate(_FORMS):
        for match in form.finditer(key):
            day = _date_of(directives, match, 2)
            if day is None or _is_inside(match.start(1), match.end(1), found, order):
                continue
            if key[match.end(1) : match.end(1) + 1].isdigit() and not _is_compact_hour(key, match.end(1)):
                continue
            found.append(DateInKey(_fields(directives, match, 2), day, order))
    if not found:
        found += _short_dates(key)
    return found


def readings_of(key: str) -> list[Reading]:
    """The ways to read the hour of a key, with different hours; the most usual first."""
    found: list[Reading] = []
    dates = dates_in(key)
    # An hour next to its date is more likely than one further on.
    for day in sorted(
        dates, key=lambda item: (item.order, _adjacent_hour(key, item, dates) is None, item.start)
    ):
        hour = _hour_of(key, day, dates)
        if hour is None:
            continue
        fields, value = hour
        label = datetime(day.day.year, day.day.month, day.day.day, value)  # noqa: DTZ001 - a local time
        if all(reading.label != label for reading in found):
            found.append(Reading(fields, label, day.order))
    return found


def is_inner(text: str) -> bool:
    """Whether a text between two fields is a separator, possibly with a step's name: ``/month=``."""
    return _INNER.fullmatch(text) is not None


def _hour_of(key: str, day: DateInKey, dates: list[DateInKey]) -> tuple[tuple[Field, ...], int] | None:
    """The fields up to the hour of a date, and the hour."""
    adjacent = _adjacent_hour(key, day, dates)
    if adjacent is not None:
        # The date of a folder, and date and hour in the name.
        folder = next((other for other in dates if other.end <= day.start and _is_same(other, day)), None)
        before = folder.fields if folder else ()
        return (*before, *day.fields, adjacent), int(key[adjacent.start : adjacent.end])
    for other in dates:
        if other.start >= day.end and _is_same(other, day):
            adjacent = _adjacent_hour(key, other, dates)
            if adjacent is not None:
                return (*day.fields, *other.fields, adjacent), int(key[adjacent.start : adjacent.end])
    for later in _LATER.finditer(key, day.end):
        field = Field("%H", later.start("hour"), later.end("hour"))
        if not any(other.start <= field.start < other.end for other in dates):
            return (*day.fields, field), int(later["hour"])
    head = key[: day.start]
    earlier = _EARLIER.search(head) or _EARLIER_NAMED.search(head)
    if earlier and not any(other.start <= earlier.start("hour") < other.end for other in dates):
        return (Field("%H", *earlier.span("hour")), *day.fields), int(earlier["hour"])
    return None


def _is_same(one: DateInKey, other: DateInKey) -> bool:
    return one.day == other.day and one.order == other.order


def _adjacent_hour(key: str, day: DateInKey, dates: list[DateInKey]) -> Field | None:
    match = _ADJACENT.match(key, day.end)
    if match is None or any(other.start == match.start("hour") for other in dates):
        return None
    if not match["between"] and not _is_compact(key, day):
        return None
    return Field("%H", match.start("hour"), match.end("hour"))


def _is_compact(key: str, day: DateInKey) -> bool:
    return key[day.start : day.end].isdigit()


def _is_compact_hour(key: str, end: int) -> bool:
    match = _ADJACENT.match(key, end)
    return match is not None and not match["between"]


def _is_inside(start: int, end: int, dates: list[DateInKey], order: int) -> bool:
    """Whether a date that does not begin with its year shares digits with one that does."""
    return order > 1 and any(day.order <= 1 and start < day.end and day.start < end for day in dates)


def _short_dates(key: str) -> Iterator[DateInKey]:
    for match in _SHORT.finditer(key):
        for order, directives in enumerate(_SHORT_FORMS, len(_FORMS)):
            day = _date_of(directives, match, 2)
            if day is not None:
                yield DateInKey(_fields(directives, match, 2), day, order)


def _fields(directives: tuple[str, ...], match: re.Match[str], first: int) -> tuple[Field, ...]:
    return tuple(Field(directive, *match.span(group)) for group, directive in enumerate(directives, first))


def _date_of(directives: tuple[str, ...], match: re.Match[str], first: int) -> date | None:
    values = {name: int(match[group]) for group, name in enumerate(directives, first)}
    # Years of two digits far from now are more likely something else.
    year = values["%Y"] if "%Y" in values else values["%y"] + 2000
    if not 1970 <= year <= 2099 or ("%y" in values and values["%y"] > 50):
        return None
    try:
        if "%j" in values:
            day = date(year, 1, 1) + timedelta(days=values["%j"] - 1)
            return day if day.year == year else None
        return date(year, values["%m"], values["%d"])
    except ValueError:
        return None
