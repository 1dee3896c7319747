"""Settings of every Dag, retries by error, and the import errors of an invalid streams file."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.serialization.serialized_objects import DagSerialization

from include.log_rollup.errors import (
    AccessError,
    InputChangedError,
    MissingBucketError,
    ThrottledError,
    TransientError,
)
from log_rollup_plugin.retries import retry_policy
from tests.dags.conftest import LoadDags

STEPS = ["wait_for_raw_hour", "plan_hour", "pack_shard", "validate_hour", "complete_hour"]


def stream(name: str = "app", **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "raw": f"s3://logs/raw/{name}/",
        "aggregated": f"s3://logs/aggregated/{name}/",
        "start": "2026-11-01T00:00:00Z",
        **settings,
    }


def test_each_stream_is_a_dag_of_the_five_steps_in_order(load_dags: LoadDags) -> None:
    bag = load_dags(stream("app"), stream("web-2", max_active_runs=7))
    assert bag.import_errors == {}
    assert set(bag.dags) == {"log_rollup_app", "log_rollup_web-2", "log_rollup_late"}
    for dag in (bag.dags["log_rollup_app"], bag.dags["log_rollup_web-2"]):
        assert [task.task_id for task in dag.topological_sort()] == STEPS
    assert bag.dags["log_rollup_web-2"].max_active_runs == 7


def test_dag_is_the_same_for_each_parse(load_dags: LoadDags) -> None:
    one, other = (load_dags(stream("app"), stream("web")).dags for _ in range(2))
    for dag_id, dag in one.items():
        assert DagSerialization.to_dict(dag) == DagSerialization.to_dict(other[dag_id])


def test_shipped_streams_file_is_valid(database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.dag_processing.dagbag import DagBag

    from tests.conftest import ROOT

    monkeypatch.delenv("LOG_ROLLUP_STREAMS", raising=False)
    bag = DagBag(ROOT / "dags")
    assert bag.import_errors == {}
    assert bag.dags


def test_dag_has_schedule_runbook_tags_and_owner(
    load_dags: LoadDags,
) -> None:
    dag = load_dags(stream(owner="logs-team")).dags["log_rollup_app"]
    assert dag.catchup is True
    assert dag.start_date == datetime(2026, 11, 1, tzinfo=UTC)
    assert dag.timetable.expression == "0 * * * *"
    assert {"log-rollup", "app"} <= dag.tags
    assert dag.doc_md is not None
    for step in STEPS:
        assert step in dag.doc_md
    assert {task.owner for task in dag.tasks} == {"logs-team"}


def test_every_task_has_pool_time_limit_and_retry_policy(load_dags: LoadDags) -> None:
    dag = load_dags(stream(max_connections=40, task_timeout="2h")).dags["log_rollup_app"]
    for task in dag.tasks:
        settings = task.partial_kwargs if task.is_mapped else vars(task)
        assert settings["pool"] == "s3_connections"
        assert settings["execution_timeout"] > timedelta(0)
        assert settings["retries"] > 0
        assert settings["retry_policy"] is not None
    packing = dag.get_task("pack_shard").partial_kwargs
    assert packing["pool_slots"] == 40
    assert packing["execution_timeout"] == timedelta(hours=2)


@pytest.mark.parametrize("error", [AccessError, InputChangedError, MissingBucketError])
def test_permanent_errors_fail_at_once(error: type[Exception]) -> None:
    assert retry_policy().evaluate(error("no"), 1, 4).action.value == "fail"


@pytest.mark.parametrize("error", [TransientError("later"), ThrottledError("later"), OSError("later")])
def test_transient_errors_are_retried(error: Exception) -> None:
    assert retry_policy().evaluate(error, 1, 4).action.value in {"retry", "default"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (stream(part_sise="32MiB"), "part_sise: unknown key; did you mean part_size?"),
        (stream(part_size="4MiB"), "part_size: 4.0 MiB is out of range; give 5.0 MiB to 1.0 GiB"),
        (stream(part_size="big"), "part_size: 'big' is not a size"),
        (stream(aggregated="s3://logs/raw/app/%Y%m%d/%H/rolled/"), "overlaps with"),
        (stream(max_connections=251), "250 slots of the pool 's3_connections'"),
    ],
)
def test_invalid_streams_file_is_an_import_error_with_the_fix(
    load_dags: LoadDags, bad: dict[str, Any], message: str
) -> None:
    bag = load_dags(bad)
    assert "log_rollup_app" not in bag.dags
    (error,) = (error for path, error in bag.import_errors.items() if path.endswith("log_rollup.py"))
    assert "stream 'app'" in error
    assert message in error
