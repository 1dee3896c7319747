"""An overview of a stream: which of its last hours are complete, how far it is behind, and its volume."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from include.log_rollup.hour.layout import floor_hour
from include.log_rollup.queries.status import HourStatus, HourSummary, read_hours
from include.log_rollup.queries.volume import (
    HourVolume,
    VolumeReport,
    compare_volumes,
    earlier_hours,
    hours_to_compare,
    volume_of,
)
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

OVERVIEW_HOURS = 48
"""Number of hours that an overview covers: the last ones that have ended."""
LATE_MARGIN = timedelta(hours=1)
"""Packing takes minutes after the quiet period; an hour that is not complete after this is late."""


@dataclass(frozen=True, slots=True)
class StreamOverview:
    """The last hours of a stream; sizes in bytes.

    :param last_complete: the newest of these hours that is complete; None if none is
    :param hours_behind: number of due hours after that one
    :param due: number of these hours that should be complete by now
    :param complete: number of these hours that are complete
    :param empty: how many of those have no raw objects
    :param incomplete: the due hours that are not complete, the oldest first
    :param objects: raw objects of the complete hours
    :param bytes_stored: size of their parts in the bucket
    :param volume: the last complete hours, compared with earlier weeks
    """

    last_complete: datetime | None
    hours_behind: int
    due: int
    complete: int
    empty: int
    incomplete: Sequence[datetime]
    objects: int
    bytes_in: int
    bytes_stored: int
    volume: VolumeReport

    @property
    def is_whole(self) -> bool:
        """Whether every hour that should be complete is."""
        return not self.incomplete


@dataclass(frozen=True, slots=True)
class IncompleteHour:
    """A due hour that is not complete.

    :param problem: message that says which record cannot be read and why; empty if there is none
    """

    hour: datetime
    state: HourStatus
    problem: str


def late_after(stream: Stream) -> timedelta:
    """How long after its end an hour that is not complete counts as late.

    For a run that was created later, by hand or by a backfill, the time counts from when it was queued.
    """
    return stream.quiet_period + LATE_MARGIN


def last_hours(now: datetime) -> list[datetime]:
    """The hours of an overview, the oldest first."""
    present = floor_hour(now)
    return [present - timedelta(hours=number) for number in range(OVERVIEW_HOURS, 0, -1)]


def make_overview(
    stream: Stream, now: datetime, hours: Sequence[datetime], volumes: Mapping[datetime, HourVolume]
) -> StreamOverview:
    """Make an overview of some hours.

    :param hours: as :func:`last_hours` returns them
    :param volumes: of complete hours: of these, and of the earlier weeks that they are compared with
    """
    due_before = now - late_after(stream) - timedelta(hours=1)
    due = [hour for hour in hours if stream.start <= hour < due_before]
    complete = [hour for hour in hours if hour in volumes]
    found = [volumes[hour] for hour in complete]
    last = complete[-1] if complete else None
    return StreamOverview(
        last_complete=last,
        hours_behind=sum(last is None or hour > last for hour in due),
        due=len(due),
        complete=len(complete),
        empty=sum(not volume.objects for volume in found),
        incomplete=[hour for hour in due if hour not in volumes],
        objects=sum(volume.objects for volume in found),
        bytes_in=sum(volume.bytes_in for volume in found),
        bytes_stored=sum(volume.bytes_stored for volume in found),
        volume=compare_volumes(hours_to_compare(complete), volumes),
    )


def read_overview(
    store: ObjectStore, stream: Stream, now: datetime
) -> tuple[StreamOverview, Sequence[IncompleteHour]]:
    """Read the last hours of a stream, and the earlier hours that they are compared with.

    Takes up to 60 GETs, and one more for each hour that is not complete.

    :returns: the overview, and its incomplete hours with their states
    :raises RollupError: as the store raises
    """
    hours = last_hours(now)
    summaries = {
        summary.hour: summary for summary in read_hours(store, stream, hours, groups=True, expired=False)
    }
    volumes = _volumes(summaries.values())
    compared = hours_to_compare(volumes)
    earlier = [hour for hour in earlier_hours(compared) if hour not in volumes]
    volumes |= _volumes(read_hours(store, stream, earlier, groups=True, expired=False))
    overview = make_overview(stream, now, hours, volumes)
    incomplete = [
        IncompleteHour(hour, summaries[hour].state, summaries[hour].problem) for hour in overview.incomplete
    ]
    return overview, incomplete


def _volumes(summaries: Iterable[HourSummary]) -> dict[datetime, HourVolume]:
    return {summary.hour: volume for summary in summaries if (volume := volume_of(summary)) is not None}
