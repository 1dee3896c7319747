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
from tests.system.running import Running
from tests.system.streams import READY_OBJECT

WAITS = "log_rollup_waits"
HOUR = datetime(2026, 11, 2, 8, tzinfo=UTC)
LISTINGS = 8
STUCK = "stuck_rerun"
STUCK_DAG = f"""
from datetime import datetime, timedelta
from airflow.sdk import DAG
from log_rollup_plugin.rerun import RerunHourOperator

with DAG("{STUCK}", start_date=datetime(2026, 11, 1), schedule=None):
    RerunHourOperator(
        task_id="rerun",
        trigger_dag_id="{WAITS}",
        trigger_run_id="late__stuck",
        conf={{"hour": "{format_hour(HOUR)}"}},
        logical_date=None,
        reset_dag_run=True,
        fail_when_dag_is_paused=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=5,
        retries=0,
        execution_timeout=timedelta(seconds=25),
    )
"""


@pytest.fixture(scope="module")
def hour(running: Running) -> datetime:
    """An hour with raw objects; its ready object is missing."""
    make_hour(running.client, BUCKET, hour_prefix("raw/waits/", HOUR), objects=2)
    return HOUR


@pytest.fixture(scope="module")
def stuck_run(running: Running, hour: datetime) -> str:
    """A run of the Dag that waits in vain; it ends during the first test of this file."""
    running.add_dag("stuck_rerun.py", STUCK_DAG)
    return running.trigger(STUCK, {})


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


def test_hour_whose_trigger_is_silent_ends(running: Running, hour: datetime, stuck_run: str) -> None:
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


def test_rerun_whose_run_is_stuck_ends_and_names_it(running: Running, hour: datetime, stuck_run: str) -> None:
    assert running.ended(STUCK, stuck_run).state == "failed"
    log = log_of(running, STUCK, stuck_run, "rerun")
    assert "the run 'late__stuck' of log_rollup_waits is still running" in log.replace("\\", "")
    # The run itself continues.
    instance_in(running, WAITS, "late__stuck", "wait_for_raw_hour", "deferred")
    running.client.put_object(Bucket=BUCKET, Key=hour_prefix("raw/waits/", hour) + READY_OBJECT, Body=b"")
    instance_in(running, WAITS, "late__stuck", "wait_for_raw_hour", "success")
