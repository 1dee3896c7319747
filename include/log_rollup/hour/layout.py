"""Hours in UTC, and the names of parts."""

import re
from datetime import UTC, datetime

import pendulum

from include.log_rollup.errors import ConfigurationError

# Names have four digits for the year, and every time-out can be added to an hour of these years.
FIRST_YEAR, LAST_YEAR = 1970, 2999
# The name of a part: index, 8 digits of its fingerprint (none in format 1), 8 more if it was split off a part, and
# the extension of that part if it has another one. Records put the folder of its group before it, if there are
# groups.
_PART = re.compile(
    r"(?P<folder>(?s:.+/)?)part-(?P<index>[0-9]{5,})(?P<tag>-[0-9a-f]{8}(-[0-9a-f]{8}(-zst|-gz)?)?)?"
    r"\.log(\.[a-z0-9]+)?"
)
_SPLIT = re.compile(
    r"(?P<start>(?s:.+/)?part-[0-9]{5,}-[0-9a-f]{8})-[0-9a-f]{8}(-(?P<planned>zst|gz))?(?P<rest>\.log.*)"
)


def parse_hour(value: str) -> datetime:
    """Read an hour such as ``2026-11-23T08:00:00Z``; minutes and seconds are cut off.

    :raises ConfigurationError: if it is not a time, has no UTC offset, or is not in the years 1970 to 2999
    """
    # Not pendulum.parse, which reads a time without an offset as UTC.
    try:
        instant = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        instant = None
    if instant is None or instant.tzinfo is None:
        raise ConfigurationError(
            f"hour: {value!r} is not a time with an offset; write it like 2026-11-23T08:00:00Z"
        )
    try:
        check_hour(instant)
    except ValueError as error:
        raise ConfigurationError(f"hour: {error}") from None
    return floor_hour(instant)


def check_hour(instant: datetime) -> None:
    """Refuse an instant whose hour has no name, or no end that can be calculated.

    :raises ValueError: if it is not in the years 1970 to 2999
    """
    if not FIRST_YEAR <= instant.year <= LAST_YEAR:
        raise ValueError(
            f"{instant.isoformat()} is out of range; give an hour of the years {FIRST_YEAR} to {LAST_YEAR}"
        )


def floor_hour(instant: datetime) -> datetime:
    """The start of the UTC hour of an instant.

    It is a plain datetime, also for an instant of pendulum: Airflow 3.3.2 cannot send the difference of two such
    instants to its supervisor.
    """
    # Not pendulum: this is called for each hour of the page Hours, and 20 times as fast.
    utc = instant.astimezone(UTC)
    return datetime(utc.year, utc.month, utc.day, utc.hour, tzinfo=UTC)


def hours_between(start: datetime, end: datetime) -> list[datetime]:
    """The starts of the UTC hours from that of ``start`` up to, but not including, ``end``; plain datetimes."""
    interval = pendulum.interval(pendulum.instance(floor_hour(start)), pendulum.instance(end))
    return [floor_hour(hour) for hour in interval.range("hours") if hour < end]


def format_hour(hour: datetime) -> str:
    """An hour as in records, messages and partition keys: ``2026-11-23T08:00:00Z``."""
    utc = hour.astimezone(UTC)
    # Not %Y, which has fewer than four digits before the year 1000.
    return utc.strftime(f"{utc.year:04}-%m-%dT%H:%M:%SZ")


def part_name(index: int, encoding: str, tag: str) -> str:
    """The name of a part: ``part-00007-3f9c2a1b.log``, ``part-00008-91d0c7e4.log.gz``.

    :param tag: first 8 hexadecimal digits of its fingerprint
    """
    return f"part-{index:05d}-{tag}.log{encoding}"


def part_name_of_format_1(index: int, encoding: str) -> str:
    """The name of a part in format 1, which did not depend on the content: ``part-00007.log``."""
    return f"part-{index:05d}.log{encoding}"


def part_index(name: str) -> int | None:
    """The index in the name of a part; None if it is not the name of a part."""
    match = _PART.fullmatch(name)
    return int(match["index"]) if match else None


def folder_of(name: str) -> str:
    """The folder of a part's group, with a slash at the end; empty if there are no groups."""
    return name[: name.rfind("/") + 1]


def split_name(planned: str, tag: str, encoding: str | None = None) -> str:
    """The name of a part that is split off a planned part: ``part-00008-91d0c7e4-5b0e66aa.log.gz``.

    It begins with the planned part's name, so that the plan alone shows which part it belongs to. If the planned
    part has another extension, that is in it too: ``part-00008-91d0c7e4-5b0e66aa-zst.log.gz``.

    :param planned: name of the planned part
    :param tag: first 8 hexadecimal digits of the split part's fingerprint
    :param encoding: extension of the split part; None for that of the planned part
    """
    folder = folder_of(planned)
    start, dot, rest = planned[len(folder) :].partition(".")
    extension = rest.removeprefix("log")
    if encoding is None or encoding == extension:
        return f"{folder}{start}-{tag}{dot}{rest}"
    return f"{folder}{start}-{tag}-{extension[1:]}.log{encoding}"


def planned_name(name: str) -> str:
    """The name of the planned part that a part was split off; the same name if it was not split off."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return name
    return (
        f"{match['start']}.log.{match['planned']}" if match["planned"] else f"{match['start']}{match['rest']}"
    )


def is_part_name(name: str) -> bool:
    """Whether a name is that of a part, without a folder."""
    match = _PART.fullmatch(name)
    return match is not None and not match["folder"]


def has_tag(name: str) -> bool:
    """Whether a name is that of a part and has digits of its fingerprint, which format 1 lacks."""
    match = _PART.fullmatch(name)
    return match is not None and match["tag"] is not None
