"""Deferred tasks under a real scheduler: each wait ends, even if its trigger never fires."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dev.stack.airflow_api import TaskInstance
from dev.stack.paths import BUCKET
from include.log_rollup.hour.layout import format_hour
from tests.support.raw_hours import hour_prefix, make_hour
from tests.system.downstream import STUCK, STUCK_HOUR, WAITS
from tests.system.running import Running
from tests.system.streams import READY_OBJECT

pytestmark = pytest.mark.overlaps

LISTINGS = 8


def make(running: Running, hour: datetime) -> None:
    """Write an hour with raw objects; its ready object is missing."""
    make_hour(running.client, BUCKET, hour_prefix("raw/waits/", hour), objects=2)


def instance_in(running: Running, dag_id: str, run_id: str, task_id: str, state: str) -> TaskInstance:
    """Wait until a task instance is in a state; return it."""

    def probe() -> TaskInstance | None:
        instances = running.stack.api.task_instances(dag_id, run_id)
        return next((one for one in instances if (one.task_id, one.state) == (task_id, state)), None)

    found: TaskInstance = running.wait_for(f"{task_id} of {run_id} to be {state}", probe)
    return found


def log_of(running: Running, dag_id: str, run_id: str, task_id: str) -> str:
    """Return the log of a task."""
    path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/1"
    return str(running.stack.api.request("GET", path))


def in_database(running: Running, statement: str, *values: Any) -> list[Any]:
    """Run a statement in Airflow's database; return its rows."""
    path = running.stack.paths.airflow_home / "airflow.db"
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        return database.execute(statement, values).fetchall()


def test_hour_whose_trigger_is_silent_ends(running: Running) -> None:
    hour = STUCK_HOUR - timedelta(hours=1)
    make(running, hour)
    run_id = running.trigger(WAITS, {"hour": format_hour(hour)})
    instance_in(running, WAITS, run_id, "wait_for_raw_hour", "deferred")
    of_task = "WHERE run_id = ? AND task_id = 'wait_for_raw_hour'"
    ((timeout,),) = in_database(running, f"SELECT trigger_timeout FROM task_instance {of_task}", run_id)
    left = datetime.fromisoformat(timeout).replace(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(hours=6) < left < timedelta(hours=7)

    # By then the executor has reported the deferral to the scheduler.
    running.wait_for(
        "some listings",
        lambda: (
            log_of(running, WAITS, run_id, "wait_for_raw_hour").count("is waiting for the ready object")
            > LISTINGS
        ),
    )
    # As if the timeout had passed.
    past = (datetime.now(UTC) - timedelta(seconds=1)).replace(tzinfo=None).isoformat(" ")
    in_database(running, f"UPDATE task_instance SET trigger_timeout = ? {of_task}", past, run_id)
    instance_in(running, WAITS, run_id, "wait_for_raw_hour", "failed")
    assert "the triggerer has not reported for" in log_of(running, WAITS, run_id, "wait_for_raw_hour")
    assert running.ended(WAITS, run_id).state == "failed"


def test_rerun_whose_run_is_stuck_ends_and_names_it(running: Running) -> None:
    make(running, STUCK_HOUR)
    stuck_run = running.trigger(STUCK, {})
    assert running.ended(STUCK, stuck_run).state == "failed"
    log = log_of(running, STUCK, stuck_run, "rerun")
    assert "the run 'late__stuck' of log_rollup_waits is still running" in log.replace("\\", "")
    # The run itself continues.
    instance_in(running, WAITS, "late__stuck", "wait_for_raw_hour", "deferred")
    running.client.put_object(
        Bucket=BUCKET, Key=hour_prefix("raw/waits/", STUCK_HOUR) + READY_OBJECT, Body=b""
    )
    instance_in(running, WAITS, "late__stuck", "wait_for_raw_hour", "success")
