"""The answer of the page's API about all streams, and how it is built; sizes are in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fastapi import Response
from pydantic import TypeAdapter

from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.overview import make_overview
from include.log_rollup.queries.volume import Comparison, GroupComparison, VolumeState
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.database import HourRun, LateHour
from log_rollup_plugin.hours_page.hour_cells import CellStatus, cell_of
from log_rollup_plugin.hours_page.overview_cache import FoundHours, OverviewHour
from log_rollup_plugin.hours_page.views import BucketView
from log_rollup_plugin.runs import dag_id_of

EMPTY = "empty"
"""State of a complete hour without raw objects; the calendar has no such state."""
# Number of groups of a stream in one answer.
MOST_GROUPS = 5


@dataclass(frozen=True, slots=True)
class LateView:
    """Complete hours whose raw objects had changed at the last check of log_rollup_late, unless completed since.

    :param objects: number of raw objects that came late or changed
    :param vanished: number of raw objects that are gone
    """

    at: datetime
    hours: int
    objects: int
    vanished: int


@dataclass(frozen=True, slots=True)
class RowView:
    """A stream.

    :param paused: whether its Dag is paused; None if Airflow does not know the Dag yet
    :param states: of each hour, a :class:`CellStatus` or ``empty``
    :param reasons: reasons of these states, by index of the hour
    :param last_complete: None if none of the hours is complete
    :param hours_behind: number of due hours after the last complete one; None if not all hours are known
    :param due: number of hours that should be complete by now
    :param incomplete: how many of them are not
    :param failed: number of hours whose run failed, or whose ``_SUCCESS`` cannot be read
    :param missing: number of hours with neither a completion marker nor an unfinished run
    :param overdue: number of hours that should be complete, and whose run has not ended
    :param objects: raw objects of the complete hours
    :param volume: the last complete hours, compared with earlier weeks
    :param groups: number of groups that were compared; None if groups were not
    :param unusual: number of groups that are silent or have shrunk
    :param first_unusual: the first of them
    :param late: None if there is nothing, or if the user may not read log_rollup_late
    :param pending: number of hours that are being read
    :param error: why the bucket could not be read; empty if it could
    :param problems: names of what needs attention, the worst first
    """

    name: str
    dag_id: str
    paused: bool | None
    states: Sequence[str]
    reasons: Mapping[int, str]
    last_complete: str | None
    hours_behind: int | None
    due: int
    incomplete: int
    failed: int
    missing: int
    overdue: int
    objects: int
    bytes_in: int
    bytes_stored: int
    volume: Comparison
    groups: int | None
    unusual: int
    first_unusual: Sequence[GroupComparison]
    late: LateView | None
    pending: int
    error: str
    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class OverviewView:
    """The last hours of all streams whose Dags the user may read.

    :param hours: the hours, the oldest first
    """

    now: datetime
    hours: Sequence[str]
    streams: Sequence[RowView]
    bucket: BucketView


_ADAPTER = TypeAdapter(OverviewView)


def overview_response(view: OverviewView) -> Response:
    """Encode the answer in the calling thread."""
    return Response(_ADAPTER.dump_json(view), media_type="application/json")


def row_view(
    stream: Stream,
    now: datetime,
    hours: Sequence[datetime],
    found: FoundHours,
    runs: Mapping[datetime, Sequence[HourRun]],
    late: Mapping[datetime, LateHour],
    paused: bool | None,
) -> RowView:
    """The row of a stream.

    :param found: what was last read from the bucket
    :param runs: the runs of each hour, the one that counts first
    :param late: what log_rollup_late found, by hour
    """
    states: list[str] = []
    reasons: dict[int, str] = {}
    for number, hour in enumerate(hours):
        state, reason = _state(stream, hour, now, found.hours.get(hour), runs.get(hour))
        states.append(state)
        if reason:
            reasons[number] = reason
    volumes = {hour: one.volume for hour, one in found.hours.items() if one.volume is not None}
    overview = make_overview(stream, now, hours, volumes)
    report = overview.volume
    failed = states.count(CellStatus.FAILED) + states.count(CellStatus.DAMAGED)
    missing, overdue = states.count(CellStatus.MISSING), states.count(CellStatus.LATE)
    late_view = _late_view(late, found.hours)
    is_known = not found.pending and not found.error
    row = RowView(
        name=stream.name,
        dag_id=dag_id_of(stream),
        paused=paused,
        states=states,
        reasons=reasons,
        last_complete=format_hour(overview.last_complete) if overview.last_complete else None,
        hours_behind=overview.hours_behind if is_known else None,
        due=overview.due,
        incomplete=len(overview.incomplete),
        failed=failed,
        missing=missing,
        overdue=overdue,
        objects=overview.objects,
        bytes_in=overview.bytes_in,
        bytes_stored=overview.bytes_stored,
        volume=report.comparison,
        groups=report.groups,
        unusual=len(report.unusual),
        first_unusual=report.unusual[:MOST_GROUPS],
        late=late_view,
        pending=found.pending,
        error=found.error,
        problems=(),
    )
    return replace(row, problems=_problems(row))


def _state(
    stream: Stream,
    hour: datetime,
    now: datetime,
    found: OverviewHour | None,
    runs: Sequence[HourRun] | None,
) -> tuple[str, str]:
    """The state of an hour, and its reason if that says more than the state does."""
    if found is None or found.volume is None:
        cell = cell_of(stream, hour, now, found.cached if found else None, runs[0] if runs else None)
        return cell.status.value, "" if cell.status in (CellStatus.NONE, CellStatus.OPEN) else cell.reason
    state = CellStatus.COMPLETE.value if found.volume.objects else EMPTY
    return state, cell_of(stream, hour, now, found.cached, runs[0] if runs else None).reason


def _problems(row: RowView) -> Sequence[str]:
    found = {
        "unreadable": row.error,
        "failed": row.failed,
        "missing": row.missing,
        "behind": row.hours_behind or row.overdue,
        "silent": row.volume.state is VolumeState.SILENT,
        "shrunk": row.volume.state is VolumeState.SHRUNK,
        # All groups of a silent stream are silent.
        "groups": row.unusual and row.volume.state is not VolumeState.SILENT,
        "late": row.late,
        "paused": row.paused is not False,
    }
    return [name for name, is_found in found.items() if is_found]


def _late_view(late: Mapping[datetime, LateHour], found: Mapping[datetime, OverviewHour]) -> LateView | None:
    left = [one for hour, one in late.items() if not _completed_since(found.get(hour), one.at)]
    if not left:
        return None
    return LateView(
        max(one.at for one in left),
        len(left),
        sum(one.late + one.changed for one in left),
        sum(one.vanished for one in left),
    )


def _completed_since(found: OverviewHour | None, at: datetime) -> bool:
    marker = found.cached.summary.marker if found else None
    return bool(marker) and datetime.fromisoformat((marker or {})["completed_at"]) >= at
