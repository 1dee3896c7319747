"""Queries of Airflow's metadata database for the runs of hours."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import floor_hour, parse_hour

LATE_DAG_ID = "log_rollup_late"
WAIT_TASK_ID = "wait_for_raw_hour"
UNFINISHED = ("queued", "running")
# Runs whose logical date is their hour.
_SCHEDULED = (DagRunType.SCHEDULED, DagRunType.BACKFILL_JOB)
# The hour of other runs, by hand or of log_rollup_late, is in their conf. Not every database can search that, so
# at most this number of the newest runs is read.
MAX_OTHER_RUNS = 5_000
# States of a task instance that its run is working on; of several tasks, the first of these states is shown.
_ACTIVE = ("running", "deferred", "restarting", "queued", "scheduled", "up_for_retry", "up_for_reschedule")


@dataclass(frozen=True, slots=True)
class HourRun:
    """A run of an hour.

    :param waits: whether wait_for_raw_hour is deferred
    :param active: the task that is running or about to; empty if there is none
    :param active_state: state of that task
    :param failed: the first task that failed; empty if none did
    """

    run_id: str
    hour: datetime
    state: str
    kind: str
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    touched_at: datetime | None
    waits: bool = False
    active: str = ""
    failed: str = ""
    active_state: str = ""

    @property
    def is_unfinished(self) -> bool:
        """Whether it has not ended."""
        return self.state in UNFINISHED


@dataclass(frozen=True, slots=True)
class HourTask:
    """A task instance of a run; ``map_index`` is -1 if it is not mapped."""

    task_id: str
    map_index: int
    title: str | None
    state: str | None
    tries: int
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class LateHour:
    """What log_rollup_late last found of an hour: the number of late, changed and vanished raw objects.

    :param at: time of the check
    :param rerun: whether it reruns the hour; not if raw objects have vanished
    """

    at: datetime
    rerun: bool
    late: int
    changed: int
    vanished: int


_REPORTS = (XComModel.dag_id == LATE_DAG_ID, XComModel.key == "report")
_RUN_COLUMNS = (
    DagRun.dag_id, DagRun.run_id, DagRun.state, DagRun.run_type, DagRun.conf, DagRun.data_interval_start,
    DagRun.queued_at, DagRun.start_date, DagRun.end_date, DagRun.updated_at,
)  # fmt: skip


def runs_between(
    session: Session, dag_id: str, first: datetime, last: datetime
) -> dict[datetime, list[HourRun]]:
    """The runs of each hour of a range, both ends included; unfinished runs first, then the newest."""
    of_dag = select(*_RUN_COLUMNS).where(DagRun.dag_id == dag_id)
    return _runs(session, of_dag, first, last, MAX_OTHER_RUNS).get(dag_id, {})


def runs_of_dags(
    session: Session, dag_ids: Collection[str], first: datetime, last: datetime, changed_since: datetime
) -> dict[str, dict[datetime, list[HourRun]]]:
    """The same for several Dags, by Dag, with as many queries; of successful runs only those that changed lately.

    Runs from before ``first`` are not searched: no run of an hour is created before the hour.
    """
    of_dags = _of_dags(dag_ids, first).where(
        or_(DagRun.state != DagRunState.SUCCESS, DagRun.updated_at >= changed_since)
    )
    return _runs(session, of_dags, first, last, MAX_OTHER_RUNS)


def successful_runs(
    session: Session, dag_ids: Collection[str], first: datetime, last: datetime
) -> dict[str, dict[datetime, list[HourRun]]]:
    """The successful runs that :func:`runs_of_dags` leaves out, with two queries."""
    of_dags = _of_dags(dag_ids, first).where(DagRun.state == DagRunState.SUCCESS)
    return _runs(session, of_dags, first, last, MAX_OTHER_RUNS)


def _of_dags(dag_ids: Collection[str], first: datetime) -> Any:
    return select(*_RUN_COLUMNS).where(DagRun.dag_id.in_(dag_ids), DagRun.run_after >= first)


def tasks_of(session: Session, dag_id: str, run_id: str) -> list[HourTask]:
    """The task instances of a run, by task and map index."""
    query = (
        select(
            TaskInstance.task_id, TaskInstance.map_index, TaskInstance.rendered_map_index,
            TaskInstance.state, TaskInstance.try_number, TaskInstance.start_date, TaskInstance.end_date,
        )
        .where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
        .order_by(TaskInstance.task_id, TaskInstance.map_index)
    )  # fmt: skip
    return [HourTask(*row) for row in session.execute(query)]


def is_paused(session: Session, dag_ids: Iterable[str]) -> Mapping[str, bool]:
    """Whether each of these Dags is paused; without Dags that Airflow does not know."""
    query = select(DagModel.dag_id, DagModel.is_paused).where(DagModel.dag_id.in_(list(dag_ids)))
    return {dag_id: bool(paused) for dag_id, paused in session.execute(query)}


def late_hours(session: Session, stream: str) -> Mapping[str, LateHour]:
    """What the last check of log_rollup_late found of a stream, by hour as in ``2026-11-23T08:00:00Z``."""
    query = (
        select(XComModel)
        .where(*_REPORTS, XComModel.task_id == f"find_{stream}")
        .order_by(XComModel.timestamp.desc())
        .limit(1)
    )
    row = session.scalars(query).first()
    return {} if row is None else _late_hours(row)


def late_hours_of_streams(session: Session) -> dict[str, Mapping[str, LateHour]]:
    """The same for all streams, by stream, with one query."""
    newest = (
        select(XComModel.task_id, func.max(XComModel.timestamp).label("timestamp"))
        .where(*_REPORTS)
        .group_by(XComModel.task_id)
        .subquery()
    )
    query = (
        select(XComModel)
        .join(
            newest,
            and_(XComModel.task_id == newest.c.task_id, XComModel.timestamp == newest.c.timestamp),
        )
        .where(*_REPORTS)
    )
    return {row.task_id.removeprefix("find_"): _late_hours(row) for row in session.scalars(query)}


def _late_hours(row: XComModel) -> Mapping[str, LateHour]:
    report = XComModel.deserialize_value(row)
    if not isinstance(report, dict):
        return {}
    return {
        hour: LateHour(row.timestamp, kind == "rerun", **counts)
        for kind in ("rerun", "left_alone")
        for hour, counts in report.get(kind, {}).items()
    }


def _runs(
    session: Session, query: Any, first: datetime, last: datetime, max_others: int
) -> dict[str, dict[datetime, list[HourRun]]]:
    """The runs of each hour of a range, by Dag.

    :param query: selects all runs of the Dags
    :param max_others: the most runs that are neither scheduled nor of a backfill
    """
    # The logical date of these is their hour, and it has an index.
    scheduled = query.where(DagRun.run_type.in_(_SCHEDULED), DagRun.logical_date.between(first, last))
    others = query.where(DagRun.run_type.not_in(_SCHEDULED)).order_by(DagRun.id.desc()).limit(max_others)
    chosen = []
    for rows in (session.execute(scheduled), session.execute(others)):
        for row in rows:
            run = _run(row)
            if run is not None and first <= run.hour <= last:
                chosen.append((row.dag_id, run))
    found: dict[str, dict[datetime, list[HourRun]]] = {}
    for dag_id, run in _with_tasks(session, chosen):
        found.setdefault(dag_id, {}).setdefault(run.hour, []).append(run)
    for hours in found.values():
        for runs in hours.values():
            if len(runs) > 1:
                runs.sort(key=lambda run: (run.is_unfinished, _stamp(run)), reverse=True)
    return found


def _run(row: Any) -> HourRun | None:
    """A run with its hour; None if its hour is unknown."""
    explicit = row.conf.get("hour") if isinstance(row.conf, dict) else None
    try:
        hour = parse_hour(explicit) if explicit else floor_hour(row.data_interval_start)
    except (ConfigurationError, AttributeError):
        return None
    return HourRun(
        row.run_id, hour, str(row.state), str(row.run_type),
        row.queued_at, row.start_date, row.end_date, row.updated_at,
    )  # fmt: skip


def _stamp(run: HourRun) -> float:
    at = run.ended_at or run.started_at or run.queued_at
    return at.timestamp() if at else 0.0


def _with_tasks(session: Session, runs: Sequence[tuple[str, HourRun]]) -> Iterable[tuple[str, HourRun]]:
    """Runs with their Dags, and with the active task of unfinished ones and the failed task of failed ones."""
    unclear = {(dag_id, run.run_id) for dag_id, run in runs if run.is_unfinished or run.state == "failed"}
    query = (
        select(TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, TaskInstance.state)
        .where(
            # More than these pairs: runs of one hour have one id in many Dags.
            TaskInstance.dag_id.in_({dag_id for dag_id, _ in unclear}),
            TaskInstance.run_id.in_({run_id for _, run_id in unclear}),
            or_(TaskInstance.state == "failed", TaskInstance.state.in_(_ACTIVE)),
        )
        .order_by(TaskInstance.start_date)
    )
    active: dict[tuple[str, str], tuple[str, str]] = {}
    failed: dict[tuple[str, str], str] = {}
    waits = set()
    for dag_id, run_id, task_id, state in session.execute(query) if unclear else ():
        of_run = dag_id, run_id
        if state == "failed":
            failed.setdefault(of_run, task_id)
        elif of_run not in active or _ACTIVE.index(state) < _ACTIVE.index(active[of_run][1]):
            active[of_run] = task_id, state
        if task_id == WAIT_TASK_ID and state == "deferred":
            waits.add((dag_id, run_id))
    for dag_id, run in runs:
        key = dag_id, run.run_id
        if key in unclear:
            task_id, state = active.get(key, ("", ""))
            run = replace(
                run, waits=key in waits, active=task_id, active_state=state, failed=failed.get(key, "")
            )
        yield dag_id, run
