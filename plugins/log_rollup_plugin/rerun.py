"""The operator of rerun_<stream> in log_rollup_late: runs a stream's Dag for one hour, and waits with a limit."""

from typing import Any, NoReturn

import pendulum
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.triggers.external_task import DagStateTrigger
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowRuntimeError, DagRunTriggerException, TaskDeferralTimeout

from include.log_rollup.errors import PermanentError
from include.log_rollup.units import format_duration


class RerunHourOperator(TriggerDagRunOperator):
    """A TriggerDagRunOperator whose deferral ends after ``execution_timeout``.

    Airflow 3.3.2 has no time limit for such a deferral: the standard operator asks the task runner to start the
    run and to defer, and the task runner defers without a timeout. So this operator starts the run as the task
    runner does, and then defers by itself.

    A retry waits for the run that an earlier try started, and starts no second one: a task whose trigger fires
    while the scheduler is busy is marked as failed by Airflow 3.3.2, because the scheduler reads the end of its
    first process too late. A cleared task starts the run again, and so does a retry if no earlier try has: the run
    of that id may be from the check of another day.
    """

    def execute(self, context: Context) -> None:
        """Start the run, or clear it if it exists, and wait for its end.

        :raises DagIsPaused: if the Dag is paused
        :raises PermanentError: if this is a retry, and the run that an earlier try started has failed
        """
        state = self._state_of_started_run(context)
        if state == "success":
            self.log.info("the run %r of %s has succeeded", self.trigger_run_id, self.trigger_dag_id)
            return
        if state == "failed":
            raise PermanentError(
                f"the run {self.trigger_run_id!r} of {self.trigger_dag_id} has failed: see its tasks, fix the "
                f"cause, then clear this task"
            )
        try:
            super().execute(context)
        except DagRunTriggerException as wanted:
            if state is None:
                self._start(wanted)
            context["ti"].xcom_push(key="trigger_run_id", value=wanted.dag_run_id)
            self.defer(
                trigger=DagStateTrigger(
                    dag_id=wanted.trigger_dag_id,
                    states=[*wanted.allowed_states, *wanted.failed_states],
                    run_ids=[wanted.dag_run_id],
                    poll_interval=wanted.poke_interval,
                ),
                method_name="execute_complete",
                timeout=self.execution_timeout,
            )

    def _state_of_started_run(self, context: Context) -> str | None:
        """Return the state of the run that an earlier try started; None on a first try, or without such a run."""
        # These modules can only be imported where a task runs.
        from airflow.sdk.execution_time.comms import GetDagRun
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        instance = context["ti"]
        # Clearing raises `max_tries`, so that the cleared task has a first try again.
        if instance.try_number <= instance.max_tries - self.retries + 1:
            return None
        try:
            run = SUPERVISOR_COMMS.send(GetDagRun(dag_id=self.trigger_dag_id, run_id=self.trigger_run_id))
        except AirflowRuntimeError:
            return None
        state = _state(run.state)
        # A run that has not started yet will see the late objects, even if another task or a person queued it.
        is_new = state == "queued" or (run.start_date and run.start_date >= context["dag_run"].start_date)
        return state if is_new else None

    def _start(self, wanted: DagRunTriggerException) -> None:
        # These modules can only be imported where a task runs.
        from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        answer = SUPERVISOR_COMMS.send(
            TriggerDagRun(
                dag_id=wanted.trigger_dag_id,
                run_id=wanted.dag_run_id,
                logical_date=wanted.logical_date,
                run_after=wanted.run_after,
                conf=wanted.conf,
                reset_dag_run=wanted.reset_dag_run,
                note=wanted.note,
            )
        )
        if isinstance(answer, ErrorResponse):
            raise PermanentError(
                f"the run {wanted.dag_run_id!r} of {wanted.trigger_dag_id} could not be started: "
                f"{answer.error.value} {answer.detail or ''}; clear this task, or start the run by hand"
            )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the deferral.

        :raises PermanentError: if the run has not ended in time
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self._fail_unfinished(context)

    def _fail_unfinished(self, context: Context) -> NoReturn:
        instance = context["ti"]
        waited = format_duration(pendulum.now("UTC") - instance.start_date)
        try:
            state = f"still {_state(instance.get_dagrun_state(self.trigger_dag_id, self.trigger_run_id))}"
        except AirflowRuntimeError as error:
            state = f"in an unknown state ({error})"
        raise PermanentError(
            f"the run {self.trigger_run_id!r} of {self.trigger_dag_id} is {state} after {waited} of waiting. It "
            f"continues: see what it waits for, and clear or fail it if it is stuck. The next run of "
            f"log_rollup_late checks the hour again"
        )


def _state(answer: object) -> str:
    """Return a run's state in lower case; Airflow's answer is an enum member or its value."""
    return str(answer).rpartition(".")[2].lower()
