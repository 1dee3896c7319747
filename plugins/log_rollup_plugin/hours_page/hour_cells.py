"""The status of an hour's cell in the calendar, from the bucket, the hour's runs and the clock."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from airflow.utils.types import DagRunType

from include.log_rollup.queries.overview import late_after
from include.log_rollup.queries.status import HourStatus, HourSummary
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.cache import CachedHour
from log_rollup_plugin.hours_page.database import HourRun

RUN_DELAY = timedelta(minutes=5)
"""An hour without a run is not reported until this long after its end; the scheduler needs seconds."""


# What the active task of a run does in states in which it has no log yet, or none that grows.
_DOES = {
    "scheduled": "waits for slots of its pool",
    "queued": "waits for a worker",
    "up_for_retry": "waits for its next try",
}


class CellStatus(StrEnum):
    """What the calendar shows for an hour."""

    COMPLETE = "complete"
    RUNNING = "running"
    WAITING = "waiting"
    LATE = "late"
    FAILED = "failed"
    DAMAGED = "damaged"
    """Its ``_SUCCESS`` cannot be read."""
    MISSING = "missing"
    UNKNOWN = "unknown"
    """Its completion marker has not been read yet."""
    OPEN = "open"
    """It has not ended, or ended a few minutes ago."""
    NONE = "none"
    """Before the stream's start, or in the future."""


@dataclass(frozen=True, slots=True)
class HourCell:
    """The status of an hour, and the reason for it."""

    status: CellStatus
    reason: str


def cell_of(
    stream: Stream, hour: datetime, now: datetime, cached: CachedHour | None, run: HourRun | None
) -> HourCell:
    """The cell of an hour.

    :param cached: what was last read from the bucket; None if nothing was
    :param run: the unfinished run of the hour, or else its last one; None if it has none
    """
    summary = cached.summary if cached else None
    if summary is not None and summary.state is HourStatus.COMPLETE:
        return _complete(run, summary)
    if cached and run and run.ended_at and run.ended_at >= cached.read_at:
        # The run may have completed the hour since it was read.
        summary = None
    if summary is not None and summary.state is HourStatus.DAMAGED:
        rerun = "; a rerun is in progress" if run is not None and run.is_unfinished else ""
        return HourCell(CellStatus.DAMAGED, f"{summary.problem}{rerun}")
    if run is not None and run.is_unfinished:
        return _unfinished(stream, hour, now, run)
    if run is not None and run.state == "failed":
        return HourCell(CellStatus.FAILED, f"{run.failed} failed" if run.failed else "its run failed")
    if run is not None and summary is None:
        return HourCell(CellStatus.UNKNOWN, "its run succeeded; its completion marker has not been read")
    if run is not None:
        return HourCell(CellStatus.MISSING, "its run is marked as success, but there is no completion marker")
    return _without_run(stream, hour, now, summary)


def _complete(run: HourRun | None, summary: HourSummary) -> HourCell:
    if run is None or run.state == "success":
        first = (summary.marker or {}).get("why_empty", "")
    elif run.is_unfinished:
        first = "a rerun is in progress"
    elif _was_completed_since(run, summary):
        first = (
            "its last run failed, but the hour is complete; clear the run if Dags downstream lack its event"
        )
    else:
        first = "the last rerun failed and changed nothing"
    # A complete hour has a problem if its record of expired raw objects cannot be read.
    reasons = (first, str(summary.expired) if summary.expired else "", summary.problem)
    return HourCell(CellStatus.COMPLETE, "; ".join(filter(None, reasons)))


def _was_completed_since(run: HourRun, summary: HourSummary) -> bool:
    """Whether an hour was completed after a run of it had started: by that run, or by another."""
    completed_at = (summary.marker or {}).get("completed_at")
    return bool(completed_at and run.started_at and datetime.fromisoformat(completed_at) >= run.started_at)


def _unfinished(stream: Stream, hour: datetime, now: datetime, run: HourRun) -> HourCell:
    if run.state == "queued":
        reason = "its run is queued"
    elif run.waits:
        reason = "waits until its raw objects are settled"
    else:
        reason = f"{run.active or 'its run'} {_DOES.get(run.active_state, 'is running')}"
    since = hour + timedelta(hours=1)
    if run.kind != DagRunType.SCHEDULED and run.queued_at:
        since = max(since, run.queued_at)
    if now - since > late_after(stream):
        return HourCell(CellStatus.LATE, reason)
    waiting = run.state == "queued" or run.waits
    return HourCell(CellStatus.WAITING if waiting else CellStatus.RUNNING, reason)


def _without_run(stream: Stream, hour: datetime, now: datetime, summary: HourSummary | None) -> HourCell:
    end = hour + timedelta(hours=1)
    if summary is not None and summary.state is HourStatus.BUILDING:
        return HourCell(CellStatus.MISSING, "it has been planned, but this Airflow has no run of it")
    if hour < stream.start:
        return HourCell(CellStatus.NONE, "before the stream's start")
    if hour > now:
        return HourCell(CellStatus.NONE, "in the future")
    if end > now:
        return HourCell(CellStatus.OPEN, "has not ended")
    if now - end < RUN_DELAY:
        return HourCell(CellStatus.OPEN, "has ended; its run will be created soon")
    if summary is None:
        return HourCell(CellStatus.UNKNOWN, "has no run; its completion marker has not been read")
    return HourCell(CellStatus.MISSING, "has neither a completion marker nor a run")
