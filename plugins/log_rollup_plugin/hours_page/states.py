"""What to call an hour, from what the bucket, its runs and the clock say of it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from airflow.utils.types import DagRunType

from include.log_rollup.queries.status import HourStatus, HourSummary
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.cache import ReadHour
from log_rollup_plugin.hours_page.database import HourRun

# The scheduler makes a run within seconds of its hour's end.
RUN_IS_DUE = timedelta(minutes=5)
# After its quiet period an hour takes minutes to pack; when the next hour is over as well, something is slow.
LATE = timedelta(hours=1)


class State(StrEnum):
    """What the calendar shows of an hour."""

    COMPLETE = "complete"
    RUNNING = "running"
    WAITING = "waiting"
    LATE = "late"
    FAILED = "failed"
    DAMAGED = "damaged"
    """There is a ``_SUCCESS`` that cannot be read."""
    MISSING = "missing"
    UNKNOWN = "unknown"
    """Its run succeeded, and the marker could not be read yet."""
    OPEN = "open"
    """It is not over, or only just."""
    NONE = "none"
    """Before the stream's start, or to come."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An hour's state, and why, for people."""

    state: State
    why: str


def late_after(stream: Stream) -> timedelta:
    """How long after its end an hour that is not complete is late.

    Where somebody asked for its run later, by hand or by a backfill, it counts from then on.
    """
    return stream.quiet_period + LATE


def judge(
    stream: Stream, hour: datetime, now: datetime, read: ReadHour | None, run: HourRun | None
) -> Judged:
    """The state of an hour.

    :param read: what the bucket says; None if that is not known
    :param run: its present run, or else the last one; None if there is none
    """
    status = read.status if read else None
    if status is not None and status.state is HourStatus.COMPLETE:
        return _complete(run)
    if read and run and run.ended_at and run.ended_at >= read.at:
        # It may have completed the hour since.
        status = None
    if status is not None and status.state is HourStatus.DAMAGED:
        rerun = "; a rerun is under way" if run is not None and run.is_unfinished else ""
        return Judged(State.DAMAGED, f"{status.problem}{rerun}")
    if run is not None and run.is_unfinished:
        return _unfinished(stream, hour, now, run)
    if run is not None and run.state == "failed":
        return Judged(State.FAILED, f"{run.failed} failed" if run.failed else "its run failed")
    if run is not None and status is None:
        return Judged(State.UNKNOWN, "its run succeeded; its completion marker has not been read")
    if run is not None:
        return Judged(State.MISSING, "its run is marked as success, but there is no completion marker")
    return _without_a_run(stream, hour, now, status)


def _complete(run: HourRun | None) -> Judged:
    if run is None or run.state == "success":
        return Judged(State.COMPLETE, "")
    if run.is_unfinished:
        return Judged(State.COMPLETE, "a rerun is under way")
    return Judged(State.COMPLETE, "the last rerun failed and left it as it was")


def _unfinished(stream: Stream, hour: datetime, now: datetime, run: HourRun) -> Judged:
    if run.state == "queued":
        doing = "its run is queued"
    elif run.waits:
        doing = "waits until its raw objects are settled"
    else:
        doing = f"{run.active} is at work" if run.active else "its run is at work"
    since = hour + timedelta(hours=1)
    if run.kind != DagRunType.SCHEDULED and run.queued_at:
        since = max(since, run.queued_at)
    if now - since > late_after(stream):
        return Judged(State.LATE, doing)
    return Judged(State.WAITING if run.state == "queued" or run.waits else State.RUNNING, doing)


def _without_a_run(stream: Stream, hour: datetime, now: datetime, status: HourSummary | None) -> Judged:
    end = hour + timedelta(hours=1)
    if status is not None and status.state is HourStatus.BUILDING:
        return Judged(State.MISSING, "something has begun to build it, but this Airflow has no run of it")
    if hour > now or hour < stream.start:
        return Judged(State.NONE, "before the stream's start" if hour < stream.start else "to come")
    if end > now:
        return Judged(State.OPEN, "is not over")
    if now - end < RUN_IS_DUE:
        return Judged(State.OPEN, "is over; its run is about to be made")
    if status is None:
        return Judged(State.UNKNOWN, "has no run; its completion marker has not been read")
    return Judged(State.MISSING, "has neither a completion marker nor a run")
