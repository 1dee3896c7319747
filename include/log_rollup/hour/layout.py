"""Hours in UTC, and the names of an hour's objects in the bucket."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import ClassVar

import pendulum

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.storage.protocol import Location

# Names have four digits for the year, and every time-out can be added to an hour of these years.
FIRST_YEAR, LAST_YEAR = 1970, 2999
# The name of a part: index, 8 digits of its fingerprint (none in format 1), 8 more if it was split off a part.
_PART = re.compile(r"part-([0-9]{5,})(-[0-9a-f]{8}){0,2}\.log(\.[a-z0-9]+)?")
_SPLIT = re.compile(r"(part-[0-9]{5,}-[0-9a-f]{8})-[0-9a-f]{8}(\.log.*)")
# The names of this project's files below `_rollup/`; everything else there is foreign.
_PLAN_FILE = (
    r"[0-9a-f]{20}(-[0-9a-f]{8})?/"
    r"(plan\.json|(shard|receipt)-[0-9]{5,}\.json\.gz|staged-[0-9a-f]+-\w+(\.jsonl\.gz)?)"
)
_WORK = re.compile(rf"claim\.json|crc-probe|removals/[0-9a-f]+\.json|{_PLAN_FILE}")


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
    return hour.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class HourPaths:
    """The locations of one hour of a stream: raw objects, parts and records."""

    raw_prefix: Location
    aggregated_prefix: Location
    hour: datetime

    marker_name: ClassVar = "_SUCCESS"
    manifest_name: ClassVar = "_manifest.jsonl.gz"

    @property
    def end(self) -> datetime:
        """The end of the hour."""
        return self.hour + timedelta(hours=1)

    @cached_property
    def raw(self) -> Location:
        """``raw/app/20261123/08/``"""
        return self.raw_prefix.child(f"{self.hour:%Y%m%d/%H}/")

    @cached_property
    def aggregated(self) -> Location:
        """``aggregated/app/20261123/08/``"""
        return self.aggregated_prefix.child(f"{self.hour:%Y%m%d/%H}/")

    @property
    def marker(self) -> Location:
        """The completion marker: the hour is complete if and only if it exists."""
        return self.aggregated.child(self.marker_name)

    @property
    def manifest(self) -> Location:
        """The manifest: part, offset, length, ETag and CRC of every raw object."""
        return self.aggregated.child(self.manifest_name)

    @property
    def work(self) -> Location:
        """The prefix of the files that exist only while the hour is being built."""
        return self.aggregated.child("_rollup/")

    @property
    def claim(self) -> Location:
        """The claim: which plan is being built."""
        return self.work.child("claim.json")

    def plan(self, plan_id: str) -> Location:
        """The summary of a plan, written after its shards: a plan without it is not whole."""
        return self.work.child(f"{plan_id}/plan.json")

    def shard(self, plan_id: str, shard: int) -> Location:
        """The parts of one shard, with their raw objects."""
        return self.work.child(f"{plan_id}/shard-{shard:05d}.json.gz")

    def receipt(self, plan_id: str, shard: int) -> Location:
        """The receipt of one shard."""
        return self.work.child(f"{plan_id}/receipt-{shard:05d}.json.gz")

    def staged_manifest(self, plan_id: str, nonce: str) -> Location:
        """A manifest that is not published yet; see :mod:`include.log_rollup.hour.state`."""
        return self.work.child(f"{plan_id}/staged-{nonce}-{self.manifest_name}")

    def staged_marker(self, plan_id: str, nonce: str) -> Location:
        """A completion marker that is not published yet; see :mod:`include.log_rollup.hour.state`."""
        return self.work.child(f"{plan_id}/staged-{nonce}-{self.marker_name}")

    @property
    def removals(self) -> Location:
        """The prefix of the removal records."""
        return self.work.child("removals/")

    def part(self, name: str) -> Location:
        """The location of a part."""
        return self.aggregated.child(name)

    def part_name_of(self, key: str) -> str | None:
        """The name of the part with this key; None if it is not the key of a part."""
        name = key.removeprefix(self.aggregated.key)
        return name if name != key and _PART.fullmatch(name) else None

    def work_name_of(self, key: str) -> str | None:
        """The name below ``_rollup/`` of a file of this project; None for any other key."""
        name = key.removeprefix(self.work.key)
        return name if name != key and _WORK.fullmatch(name) else None


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
    return int(match[1]) if match else None


def split_name(planned: str, tag: str) -> str:
    """The name of a part that is split off a planned part: ``part-00008-91d0c7e4-5b0e66aa.log.gz``.

    It begins with the planned part's name, so that the plan alone shows which part it belongs to.

    :param planned: name of the planned part
    :param tag: first 8 hexadecimal digits of the split part's fingerprint
    """
    start, dot, rest = planned.partition(".")
    return f"{start}-{tag}{dot}{rest}"


def planned_name(name: str) -> str:
    """The name of the planned part that a part was split off; the same name if it was not split off."""
    match = _SPLIT.fullmatch(name)
    return f"{match[1]}{match[2]}" if match else name


def has_tag(name: str) -> bool:
    """Whether a name is that of a part and has digits of its fingerprint, which format 1 lacks."""
    match = _PART.fullmatch(name)
    return match is not None and match[2] is not None
