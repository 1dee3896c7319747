"""The Dag log_rollup_late: a check and reruns for each stream with ``late_days``, and waits that end."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.trigger_dagrun import DagIsPaused
from airflow.sdk import Context
from airflow.sdk.api.datamodels._generated import DagRunState
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowRuntimeError,
    ErrorType,
    TaskDeferralError,
    TaskDeferred,
)
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetDagRun, OKResponse, TriggerDagRun

from include.log_rollup.errors import PermanentError
from include.log_rollup.hour.changes import Changes
from include.log_rollup.queries import late
from include.log_rollup.queries.late import ChangedHour
from log_rollup_plugin import operators
from log_rollup_plugin.rerun import RerunHourOperator
from tests.dags.conftest import LoadDags
from tests.dags.test_policy import stream
from tests.support.hour_in_memory import make_stream
from tests.support.raw_hours import HOUR


def test_each_stream_has_a_check_and_reruns_one_hour_at_a_time(load_dags: LoadDags) -> None:
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


def test_schedule_is_daily_unless_the_streams_file_sets_it(load_dags: LoadDags) -> None:
    assert load_dags(stream()).dags["log_rollup_late"].timetable.expression == "0 5 * * *"
    bag = load_dags(stream(), late_schedule="30 */6 * * *")
    assert bag.dags["log_rollup_late"].timetable.expression == "30 */6 * * *"
    assert bag.dags["log_rollup_late"].catchup is False


def test_invalid_schedule_is_an_import_error(load_dags: LoadDags) -> None:
    (error,) = load_dags(stream(), late_schedule="sometimes").import_errors.values()
    assert "late_schedule: 'sometimes' is not a cron expression; write it like" in error


def test_report_counts_changes_but_no_expired_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = ChangedHour(HOUR, Changes(("a", "b"), ("c",), (), expired=9))
    result = late.LateCheckResult(72, 70, [changed], [])
    monkeypatch.setattr(late, "find_changed_hours", lambda *_: result)
    monkeypatch.setattr(operators, "_control_hook", lambda _: nullcontext())
    pushed: dict[str, Any] = {}
    instance = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    find = operators.FindLateHoursOperator(task_id="find_app", stream=make_stream())
    (rerun,) = find.execute(Context(ti=instance))
    assert rerun["note"] == "Rerun of a complete hour: 2 raw objects came late, 1 changed."
    counts = {"late": 2, "changed": 1, "vanished": 0}
    assert pushed["report"]["rerun"] == {"2026-11-23T08:00:00Z": counts}


# -- every wait has an end -----------------------------------------------------------------------------

RUN = "late__2026-11-23T08:00:00Z"
CHECKED = datetime(2026, 11, 25, 5, tzinfo=UTC)


class Supervisor:
    """Replaces Airflow's supervisor: gives every request of a task one answer, and keeps the requests.

    :param run: the run of the id that the task starts, in its state; or the error if there is none
    """

    def __init__(self, answer: Any, run: Any) -> None:
        self.answer = answer
        self.run = run
        self.requests: list[Any] = []

    def send(self, message: Any) -> Any:
        if isinstance(message, GetDagRun):
            assert (message.dag_id, message.run_id) == ("log_rollup_app", RUN)
            if isinstance(self.run, Exception):
                raise self.run
            return self.run
        self.requests.append(message)
        return self.answer


def run_in(state: str, started: timedelta | None = timedelta(minutes=5)) -> Any:
    """Return a run in a state.

    :param started: when it started, after the run of log_rollup_late did; None if it has not
    """
    return SimpleNamespace(state=state, start_date=None if started is None else CHECKED + started)


def supervised(monkeypatch: pytest.MonkeyPatch, answer: Any = None, run: Any = None) -> Supervisor:
    supervisor = Supervisor(answer or OKResponse(ok=True), run)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


class Instance:
    """A task instance that has waited for 10 hours, of a task with two retries."""

    def __init__(
        self, state: str | Exception = "running", paused: bool = False, tries: tuple[int, int] = (1, 2)
    ) -> None:
        self.try_number, self.max_tries = tries
        self.start_date = datetime.now(UTC) - timedelta(hours=10)
        self.pushed: dict[str, Any] = {}
        self._state = state
        self._paused = paused

    def get_dag(self, dag_id: str) -> Any:
        return SimpleNamespace(is_paused=self._paused)

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        if isinstance(self._state, Exception):
            raise self._state
        return self._state

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def context(instance: Instance) -> Any:
    return {"ti": instance, "dag_run": SimpleNamespace(start_date=CHECKED)}


def rerun() -> RerunHourOperator:
    """Return the operator of the Dag, for one hour."""
    return RerunHourOperator(
        task_id="rerun_app",
        trigger_dag_id="log_rollup_app",
        trigger_run_id=RUN,
        conf={"hour": "2026-11-23T08:00:00Z"},
        note="Rerun of a complete hour",
        logical_date=None,
        reset_dag_run=True,
        fail_when_dag_is_paused=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=60,
        execution_timeout=timedelta(hours=10),
        retries=2,
    )


def test_rerun_defers_with_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, instance = supervised(monkeypatch), Instance()
    with pytest.raises(TaskDeferred) as raised:
        rerun().execute(context(instance))
    assert raised.value.timeout == timedelta(hours=10)
    assert raised.value.method_name == "execute_complete"
    path, arguments = raised.value.trigger.serialize()
    assert path == "airflow.providers.standard.triggers.external_task.DagStateTrigger"
    assert (arguments["dag_id"], arguments["run_ids"]) == ("log_rollup_app", [RUN])
    assert [str(state) for state in arguments["states"]] == ["success", "failed"]
    assert instance.pushed["trigger_run_id"] == RUN
    (request,) = supervisor.requests
    assert isinstance(request, TriggerDagRun)
    assert (request.dag_id, request.run_id, request.reset_dag_run) == ("log_rollup_app", RUN, True)
    assert (request.conf, request.note) == ({"hour": "2026-11-23T08:00:00Z"}, "Rerun of a complete hour")


def resume(instance: Instance, reason: TriggerFailureReason) -> None:
    rerun().resume_execution("__fail__", {"error": reason}, {"ti": instance})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("queued", "still queued"),
        (DagRunState.RUNNING, "still running"),
        (AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR)), "in an unknown state"),
    ],
)
def test_stuck_rerun_fails_and_is_named(state: str | Exception, message: str) -> None:
    with pytest.raises(PermanentError) as raised:
        resume(Instance(state), TriggerFailureReason.TRIGGER_TIMEOUT)
    for part in (RUN, "log_rollup_app", message, "after 10h", "clear or fail it"):
        assert part in str(raised.value)


def test_rerun_whose_trigger_broke_fails() -> None:
    with pytest.raises(TaskDeferralError):
        resume(Instance(), TriggerFailureReason.TRIGGER_FAILURE)


@pytest.mark.parametrize("state", ["success", "failed"])
def test_rerun_ends_as_its_run_ended(state: str) -> None:
    event = ("DagStateTrigger", {"run_ids": [RUN], RUN: state})
    if state == "success":
        rerun().resume_execution("execute_complete", {"event": event}, {})
        return
    with pytest.raises(AirflowException, match=RUN):
        rerun().resume_execution("execute_complete", {"event": event}, {})


# What Airflow counts: the try, and the last try.
RETRIES = [(2, 2), (3, 2), (4, 4)]
FIRST_TRIES = [(1, 2), (3, 4), (4, 5)]


@pytest.mark.parametrize("tries", RETRIES)
@pytest.mark.parametrize("run", [run_in("queued", None), run_in("running"), run_in(DagRunState.RUNNING)])
def test_retry_waits_for_the_run_of_an_earlier_try(
    monkeypatch: pytest.MonkeyPatch, run: Any, tries: tuple[int, int]
) -> None:
    supervisor = supervised(monkeypatch, run=run)
    with pytest.raises(TaskDeferred) as raised:
        rerun().execute(context(Instance(tries=tries)))
    assert raised.value.trigger.serialize()[1]["run_ids"] == [RUN]
    assert supervisor.requests == []


@pytest.mark.parametrize("tries", RETRIES)
def test_retry_ends_as_the_run_of_an_earlier_try_ended(
    monkeypatch: pytest.MonkeyPatch, tries: tuple[int, int]
) -> None:
    supervisor = supervised(monkeypatch, run=run_in(DagRunState.SUCCESS))
    rerun().execute(context(Instance(tries=tries)))
    supervisor.run = run_in("failed")
    with pytest.raises(PermanentError, match=f"{RUN}.*has failed: .* clear this task"):
        rerun().execute(context(Instance(tries=tries)))
    assert supervisor.requests == []


YESTERDAY = -timedelta(days=1)


@pytest.mark.parametrize(
    ("run", "tries"),
    [
        *((run_in("success"), tries) for tries in FIRST_TRIES),
        (AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR)), RETRIES[0]),
        # The runs of an earlier check; then try 1 was lost before it started its own.
        *((run_in("success", YESTERDAY), tries) for tries in RETRIES),
        (run_in("failed", YESTERDAY), RETRIES[0]),
        (run_in("failed", None), RETRIES[0]),
        (run_in(DagRunState.RUNNING, YESTERDAY), RETRIES[0]),
    ],
)
def test_cleared_rerun_or_one_without_a_run_starts_it(
    monkeypatch: pytest.MonkeyPatch, run: Any, tries: tuple[int, int]
) -> None:
    supervisor = supervised(monkeypatch, run=run)
    with pytest.raises(TaskDeferred):
        rerun().execute(context(Instance(tries=tries)))
    (request,) = supervisor.requests
    assert isinstance(request, TriggerDagRun)


def test_rerun_of_a_paused_dag_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = supervised(monkeypatch)
    with pytest.raises(DagIsPaused):
        rerun().execute(context(Instance(paused=True)))
    assert supervisor.requests == []


def test_rerun_that_cannot_be_started_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    supervised(monkeypatch, ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS))
    with pytest.raises(PermanentError, match="could not be started: DAGRUN_ALREADY_EXISTS"):
        rerun().execute(context(Instance()))


@pytest.mark.parametrize("timeout", ["6h", "9000h"])
def test_stuck_rerun_does_not_delay_the_next_days_check(load_dags: LoadDags, timeout: str) -> None:
    dag = load_dags(stream(timeout=timeout)).dags["log_rollup_late"]
    limit = dag.get_task("rerun_app").partial_kwargs["execution_timeout"]
    assert timedelta(0) < limit < dag.dagrun_timeout < timedelta(days=1)
