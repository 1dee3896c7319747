"""Hours of a stream: UTC, and the names under which they lie in the bucket."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import ClassVar

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.storage.protocol import Location

# A year has four digits in names, and a time-out can be added to any hour of these.
FIRST_YEAR, LAST_YEAR = 1970, 2999
# With 8 digits of the fingerprint; without, as manifests of format 1 have them; or, of a part that was split off
# another one, with the digits of both.
_PART = re.compile(r"part-([0-9]{5,})(-[0-9a-f]{8}){0,2}\.log(\.[a-z0-9]+)?")
_SPLIT = re.compile(r"(part-[0-9]{5,}-[0-9a-f]{8})-[0-9a-f]{8}(\.log.*)")
# What this project writes below `_rollup/`; anything else there is somebody else's.
_PLAN_FILE = (
    r"[0-9a-f]{20}(-[0-9a-f]{8})?/"
    r"(plan\.json|(shard|receipt)-[0-9]{5,}\.json\.gz|staged-[0-9a-f]+-\w+(\.jsonl\.gz)?)"
)
_WORK = re.compile(rf"claim\.json|crc-probe|removals/[0-9a-f]+\.json|{_PLAN_FILE}")


def parse_hour(value: str) -> datetime:
    """Read an hour such as ``2026-11-23T08:00:00Z``; minutes are cut off.

    :raises ConfigurationError: if it is no time, has no offset from UTC, or is in no year from 1970 to 2999
    """
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
    """Refuse an instant so far off that its hour has no name, or no end.

    :raises ValueError: if it is in no year from 1970 to 2999
    """
    if not FIRST_YEAR <= instant.year <= LAST_YEAR:
        raise ValueError(
            f"{instant.isoformat()} is out of range; give an hour of the years {FIRST_YEAR} to {LAST_YEAR}"
        )


def floor_hour(instant: datetime) -> datetime:
    """The UTC hour in which an instant lies, as a plain datetime.

    Airflow's own instants are pendulum's, whose differences Airflow 3.3.2 cannot send to its supervisor.
    """
    utc = instant.astimezone(UTC)
    return datetime(utc.year, utc.month, utc.day, utc.hour, tzinfo=UTC)


def format_hour(hour: datetime) -> str:
    """An hour as it stands in markers, messages and partition keys: ``2026-11-23T08:00:00Z``."""
    return hour.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class HourPaths:
    """Where one hour of a stream lies: its raw objects, its parts and what stands beside them."""

    raw_prefix: Location
    aggregated_prefix: Location
    hour: datetime

    marker_name: ClassVar = "_SUCCESS"
    manifest_name: ClassVar = "_manifest.jsonl.gz"

    @property
    def end(self) -> datetime:
        """The instant at which the hour is over."""
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
        """The completion marker: the hour is complete if and only if it is there."""
        return self.aggregated.child(self.marker_name)

    @property
    def manifest(self) -> Location:
        """For every raw object its part, offset, length, ETag and CRC."""
        return self.aggregated.child(self.manifest_name)

    @property
    def work(self) -> Location:
        """The prefix of everything that is needed only while the hour is being built."""
        return self.aggregated.child("_rollup/")

    @property
    def claim(self) -> Location:
        """Which plan is being built at present."""
        return self.work.child("claim.json")

    def plan(self, plan_id: str) -> Location:
        """The plan's summary, written after its shards: a plan without it is not whole."""
        return self.work.child(f"{plan_id}/plan.json")

    def shard(self, plan_id: str, shard: int) -> Location:
        """Which raw objects lie in which parts of one shard."""
        return self.work.child(f"{plan_id}/shard-{shard:05d}.json.gz")

    def receipt(self, plan_id: str, shard: int) -> Location:
        """What one shard wrote and measured."""
        return self.work.child(f"{plan_id}/receipt-{shard:05d}.json.gz")

    def staged_manifest(self, plan_id: str, nonce: str) -> Location:
        """A manifest before it is published; see :mod:`include.log_rollup.hour.state`."""
        return self.work.child(f"{plan_id}/staged-{nonce}-{self.manifest_name}")

    def staged_marker(self, plan_id: str, nonce: str) -> Location:
        """A completion marker before it is published; see :mod:`include.log_rollup.hour.state`."""
        return self.work.child(f"{plan_id}/staged-{nonce}-{self.marker_name}")

    @property
    def removals(self) -> Location:
        """The prefix of the records that name parts which are about to be deleted."""
        return self.work.child("removals/")

    def part(self, name: str) -> Location:
        """A part by its name."""
        return self.aggregated.child(name)

    def part_name_of(self, key: str) -> str | None:
        """The name of the part that lies under this key; None if the key is not that of a part."""
        name = key.removeprefix(self.aggregated.key)
        return name if name != key and _PART.fullmatch(name) else None

    def work_name_of(self, key: str) -> str | None:
        """The name below ``_rollup/`` of an object that this project writes there; None for any other key."""
        name = key.removeprefix(self.work.key)
        return name if name != key and _WORK.fullmatch(name) else None


def part_name(index: int, encoding: str, tag: str) -> str:
    """``part-00007-3f9c2a1b.log``, ``part-00008-91d0c7e4.log.gz``

    :param tag: 8 hexadecimal digits of what the part holds
    """
    return f"part-{index:05d}-{tag}.log{encoding}"


def part_name_of_format_1(index: int, encoding: str) -> str:
    """``part-00007.log``: the name that parts had before they were named by what they hold."""
    return f"part-{index:05d}.log{encoding}"


def part_index(name: str) -> int | None:
    """The index of a part by its name; None if it is not the name of a part."""
    match = _PART.fullmatch(name)
    return int(match[1]) if match else None


def split_name(planned: str, tag: str) -> str:
    """The name of a part that is split off a planned one: ``part-00008-91d0c7e4-5b0e66aa.log.gz``.

    It holds the planned part's name, so that the plan alone says whose part it is.

    :param planned: name of the planned part
    :param tag: 8 hexadecimal digits of what the split part holds
    """
    start, dot, rest = planned.partition(".")
    return f"{start}-{tag}{dot}{rest}"


def planned_name(name: str) -> str:
    """The name of the planned part that a part was split off; its own name if it was not split off."""
    match = _SPLIT.fullmatch(name)
    return f"{match[1]}{match[2]}" if match else name


def has_tag(name: str) -> bool:
    """Whether a name is that of a part and says what the part holds."""
    match = _PART.fullmatch(name)
    return match is not None and match[2] is not None
