"""The Dag that looks for late objects: one pair of tasks for each stream that wants it."""

from datetime import timedelta

from tests.dags.conftest import LoadDags
from tests.dags.test_policy import stream


def test_each_stream_has_a_look_and_reruns_one_hour_at_a_time(load_dags: LoadDags) -> None:
    bag = load_dags(stream("app", owner="logs-team"), stream("web.2", late_days=7), stream("x", late_days=0))
    assert bag.import_errors == {}
    dag = bag.dags["log_rollup_late"]
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {
        "find_app": {"rerun_app"},
        "rerun_app": set(),
        "find_web.2": {"rerun_web.2"},
        "rerun_web.2": set(),
    }
    rerun = dag.get_task("rerun_app").partial_kwargs
    assert rerun["trigger_dag_id"] == "log_rollup_app"
    assert rerun["max_active_tis_per_dagrun"] == 1
    assert rerun["reset_dag_run"] is rerun["deferrable"] is True
    assert {task.owner for task in dag.tasks} == {"logs-team", "log-rollup"}
    find = dag.get_task("find_app")
    assert (find.pool, find.pool_slots) == ("s3_connections", 4)
    assert find.execution_timeout > timedelta(0)


def test_it_looks_daily_or_as_the_streams_file_says(load_dags: LoadDags) -> None:
    assert load_dags(stream()).dags["log_rollup_late"].timetable.expression == "0 5 * * *"
    bag = load_dags(stream(), late_schedule="30 */6 * * *")
    assert bag.dags["log_rollup_late"].timetable.expression == "30 */6 * * *"
    assert bag.dags["log_rollup_late"].catchup is False


def test_a_schedule_that_is_none_is_an_import_error_that_names_it(load_dags: LoadDags) -> None:
    (error,) = load_dags(stream(), late_schedule="sometimes").import_errors.values()
    assert "late_schedule: 'sometimes' is not a cron expression; write it like" in error
