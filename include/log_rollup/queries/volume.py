"""Finds streams and groups that are silent or have shrunk, from the totals in completion markers alone.

The last complete hours of a stream are compared with the same hours of the same weekday in earlier weeks.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from statistics import median_low
from typing import Any

from include.log_rollup.hour.group_summary import group_name
from include.log_rollup.queries.status import HourStatus, HourSummary

COMPARED_HOURS = 3
"""Number of the last complete hours that are compared together: a short pause of a producer is not silence."""
WEEKS = 4
"""The most earlier weeks to compare with."""
MIN_WEEKS = 2
"""The fewest: a single week may have been unusual."""
MIN_OBJECTS = 10
"""Fewer raw objects than this in the usual volume vary too much from week to week to be compared."""
SHRUNK_SHARE = 0.5
"""Less than this share of the usual bytes is shrunk."""
MAX_GROUPS = 1_000
"""The groups of hours with more groups are not compared; their totals are kept in memory."""

_WEEK = timedelta(days=7)


class VolumeState(StrEnum):
    """How the last complete hours compare with earlier weeks.

    - usual: neither silent nor shrunk.
    - shrunk: they have less than :data:`SHRUNK_SHARE` of the usual bytes.
    - silent: they have no raw objects.
    - unknown: there are not enough hours, weeks or objects to compare.
    """

    USUAL = "usual"
    SHRUNK = "shrunk"
    SILENT = "silent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class GroupVolumes:
    """Raw objects and bytes of the groups of an hour, in arrays, because an hour may have a thousand groups.

    :param names: the values of the captures of each group, joined with ``/``
    """

    names: tuple[str, ...]
    objects: "array[int]"
    bytes_in: "array[int]"

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return zip(self.names, self.objects, self.bytes_in, strict=True)


@dataclass(frozen=True, slots=True)
class HourVolume:
    """The volume of a complete hour; sizes in bytes.

    :param bytes_stored: size of the parts in the bucket
    :param groups: None if they were not read, if there are more than :data:`MAX_GROUPS`, or if there are none
    """

    objects: int
    bytes_in: int
    bytes_stored: int
    groups: GroupVolumes | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Raw objects and bytes of some hours, and what is usual in these hours.

    :param usual_objects: median of the earlier weeks; of an even number, the lower of the two in the middle
    """

    state: VolumeState
    objects: int = 0
    bytes_in: int = 0
    usual_objects: int = 0
    usual_bytes_in: int = 0


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """A group that is silent or has shrunk.

    :param name: for people, as :func:`group_name` makes it
    """

    name: str
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """The comparison of the last complete hours of a stream with earlier weeks.

    :param hours: the compared hours, the oldest first
    :param weeks: number of earlier weeks that have all of these hours
    :param groups: number of groups that were compared; None if groups were not
    :param unusual: silent groups first, then shrunk ones, each the largest first
    """

    comparison: Comparison
    hours: Sequence[datetime] = ()
    weeks: int = 0
    groups: int | None = None
    unusual: Sequence[GroupComparison] = ()

    @property
    def state(self) -> VolumeState:
        """The state of the stream as a whole."""
        return self.comparison.state

    @property
    def is_unusual(self) -> bool:
        """Whether the stream or any of its groups is silent or has shrunk."""
        return self.state in (VolumeState.SILENT, VolumeState.SHRUNK) or bool(self.unusual)


NOT_COMPARED = VolumeReport(Comparison(VolumeState.UNKNOWN))


def volume_of(summary: HourSummary) -> HourVolume | None:
    """The volume of an hour; None if the hour is not complete."""
    marker = summary.marker
    if summary.state is not HourStatus.COMPLETE or marker is None:
        return None
    stored = marker.get("bytes_stored")
    return HourVolume(
        marker["objects"],
        marker["bytes_in"],
        marker["bytes_out"] if stored is None else stored,
        _group_volumes(summary.groups),
    )


def _group_volumes(groups: Sequence[Mapping[str, Any]]) -> GroupVolumes | None:
    if not 0 < len(groups) <= MAX_GROUPS:
        return None
    # Most groups are in all hours of their stream: each name is in memory once.
    return GroupVolumes(
        tuple(sys.intern("/".join(group["captures"].values())) for group in groups),
        array("q", (group["objects"] for group in groups)),
        array("q", (group["bytes_in"] for group in groups)),
    )


def hours_to_compare(complete: Iterable[datetime]) -> list[datetime]:
    """The last complete hours, the oldest first; none if there are too few.

    :param complete: the hours that are complete
    """
    last = sorted(complete)[-COMPARED_HOURS:]
    return last if len(last) == COMPARED_HOURS else []


def earlier_hours(hours: Sequence[datetime]) -> list[datetime]:
    """The same hours of the same weekday in earlier weeks, the last week first."""
    return [hour - week * _WEEK for week in range(1, WEEKS + 1) for hour in hours]


def compare_volumes(hours: Sequence[datetime], volumes: Mapping[datetime, HourVolume]) -> VolumeReport:
    """Compare hours with earlier weeks.

    :param hours: as :func:`hours_to_compare` returns them
    :param volumes: of complete hours, those of :func:`earlier_hours` among them
    """
    if not hours or any(hour not in volumes for hour in hours):
        return NOT_COMPARED
    weeks = [
        week
        for number in range(1, WEEKS + 1)
        if None not in (week := [volumes.get(hour - number * _WEEK) for hour in hours])
    ]
    if len(weeks) < MIN_WEEKS:
        return VolumeReport(Comparison(VolumeState.UNKNOWN), tuple(hours), len(weeks))
    now = [volumes[hour] for hour in hours]
    before = [[one for one in week if one is not None] for week in weeks]
    comparison = _compare(_totals(now), [_totals(week) for week in before])
    by_group = _compare_groups(now, before)
    groups, unusual = (None, ()) if by_group is None else by_group
    return VolumeReport(comparison, tuple(hours), len(weeks), groups, unusual)


def _totals(hours: Sequence[HourVolume]) -> tuple[int, int]:
    """Raw objects and bytes of some hours."""
    return sum(hour.objects for hour in hours), sum(hour.bytes_in for hour in hours)


def _compare(now: tuple[int, int], weeks: Sequence[tuple[int, int]]) -> Comparison:
    """Compare raw objects and bytes with those of each earlier week."""
    objects, bytes_in = now
    # The lower median: in a week out of two, a producer that runs every other week is not silent.
    usual_objects = median_low([week[0] for week in weeks])
    usual_bytes_in = median_low([week[1] for week in weeks])
    if usual_objects < MIN_OBJECTS:
        state = VolumeState.UNKNOWN
    elif not objects:
        state = VolumeState.SILENT
    elif bytes_in < SHRUNK_SHARE * usual_bytes_in:
        state = VolumeState.SHRUNK
    else:
        state = VolumeState.USUAL
    return Comparison(state, objects, bytes_in, usual_objects, usual_bytes_in)


def _compare_groups(
    now: Sequence[HourVolume], weeks: Sequence[Sequence[HourVolume]]
) -> tuple[int, Sequence[GroupComparison]] | None:
    """Number of groups of the earlier weeks, and those that are silent or have shrunk.

    :returns: None if the groups of an hour with raw objects are not known
    """
    hours = [*now, *(hour for week in weeks for hour in week)]
    if not any(hour.groups for hour in hours) or any(hour.objects and not hour.groups for hour in hours):
        return None
    totals_now = _group_totals(now)
    totals_before = [_group_totals(week) for week in weeks]
    unusual = []
    names = set().union(*totals_before)
    for name in names:
        comparison = _compare(
            totals_now.get(name, (0, 0)), [totals.get(name, (0, 0)) for totals in totals_before]
        )
        if comparison.state in (VolumeState.SILENT, VolumeState.SHRUNK):
            unusual.append(GroupComparison(group_name({"": name}), comparison))
    unusual.sort(
        key=lambda one: (
            one.comparison.state is VolumeState.SHRUNK,
            -one.comparison.usual_bytes_in,
            one.name,
        )
    )
    return len(names), unusual


def _group_totals(hours: Sequence[HourVolume]) -> Mapping[str, tuple[int, int]]:
    """Raw objects and bytes of each group in some hours."""
    totals: dict[str, tuple[int, int]] = {}
    for hour in hours:
        for name, objects, bytes_in in hour.groups or ():
            before = totals.get(name, (0, 0))
            totals[name] = before[0] + objects, before[1] + bytes_in
    return totals
