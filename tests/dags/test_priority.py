"""The priority weight of a task depends on the age of its hour, also after Airflow serialized the Dag."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.serialization.serialized_objects import DagSerialization

from log_rollup_plugin.priority import FreshHoursFirst
from tests.dags.conftest import LoadDags
from tests.dags.test_policy import STEPS, stream


def instance_of(run_id: str) -> Any:
    """Return a task instance with what the strategy reads."""
    return SimpleNamespace(run_id=run_id)


def weight(run_id: str) -> int:
    return FreshHoursFirst().get_weight(instance_of(run_id))


def hours_ago(hours: float) -> str:
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()


@pytest.mark.parametrize(
    ("hours", "expected"), [(0.5, 25), (1.5, 24), (12.5, 13), (23.5, 2), (24.5, 1), (9000.5, 1), (-5, 25)]
)
@pytest.mark.parametrize("kind", ["scheduled", "backfill", "manual", "late"])
def test_fresher_hours_have_higher_weights(kind: str, hours: float, expected: int) -> None:
    assert weight(f"{kind}__{hours_ago(hours)}") == expected


@pytest.mark.parametrize("run_id", ["my-run", "manual__now", "", "__"])
def test_run_id_without_hour_counts_as_fresh(run_id: str) -> None:
    assert weight(run_id) == 25


def test_run_id_of_the_late_dag_has_its_hour() -> None:
    assert weight("late__2020-01-01T08:00:00Z") == 1


def test_serialized_tasks_have_the_weight_rule(load_dags: LoadDags) -> None:
    dag = load_dags(stream()).dags["log_rollup_app"]
    read = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    old = instance_of("backfill__2020-01-01T08:00:00+00:00")
    assert {
        task_id: read.get_task(task_id).weight_rule.get_weight(old) for task_id in STEPS
    } == dict.fromkeys(STEPS, 1)
