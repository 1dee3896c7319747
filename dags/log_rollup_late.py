"""
# Late objects

Checks once a day the complete hours of each stream's last `late_days` days, and reruns those with raw objects that
arrived or changed after completion. The check lists the raw hours and compares them with their completion markers. It
does not touch an hour that has not changed.

| task | what it does | if it fails |
|---|---|---|
| `find_<stream>` | lists and compares; its log and its XCom `report` have the result | fix the bucket or the credentials, then clear the task |
| `rerun_<stream>` | runs `log_rollup_<stream>` for one changed hour, as the run `late__<hour>`; one hour after the other | the run failed, or its Dag is paused: fix that, then clear this task. Or the run has not ended in time: see what it waits for; the next check covers the hour again |

- **Vanished raw objects.** An hour whose raw objects have vanished, as under a lifecycle rule, is reported under
  `left_alone` and never rerun: its parts may be the last copy.
- **Incomplete hours** are not checked; their own runs complete them.
- **Time limit.** A run of this Dag that takes longer than 23 hours is ended, so that the next one can start. The runs
  that it has started continue.

`late_days` (0: no check) and `late_schedule` (a cron expression in UTC) are keys of the streams file.
"""

import pendulum
from airflow.sdk import DAG, CronTriggerTimetable

from include.log_rollup import limits
from include.log_rollup.streams import POOL, load_late_schedule, load_streams
from log_rollup_plugin.operators import FindLateHoursOperator
from log_rollup_plugin.rerun import RerunHourOperator
from log_rollup_plugin.retries import retry_policy
from log_rollup_plugin.runs import dag_id_of

streams = load_streams()
policy = retry_policy()

with DAG(
    dag_id="log_rollup_late",
    description="Reruns complete hours with late or changed raw objects",
    doc_md=__doc__,
    schedule=CronTriggerTimetable(load_late_schedule(), timezone="UTC"),
    start_date=min((pendulum.instance(stream.start) for stream in streams), default=None),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=limits.LATE_RUN_TIMEOUT,
    tags=["log-rollup"],
):
    for stream in streams:
        if not stream.late_days:
            continue
        find = FindLateHoursOperator(
            task_id=f"find_{stream.name}",
            stream=stream,
            owner=stream.owner,
            pool=POOL,
            pool_slots=stream.control_connections,
            retries=limits.TASK_RETRIES,
            retry_delay=limits.TASK_RETRY_DELAY,
            retry_policy=policy,
            execution_timeout=stream.task_timeout,
        )
        RerunHourOperator.partial(
            task_id=f"rerun_{stream.name}",
            map_index_template="{{ task.trigger_run_id }}",
            owner=stream.owner,
            trigger_dag_id=dag_id_of(stream),
            logical_date=None,
            reset_dag_run=True,
            fail_when_dag_is_paused=True,
            wait_for_completion=True,
            deferrable=True,
            poke_interval=int(stream.poll_interval.total_seconds()),
            # One at a time: reruns count towards the stream's `max_active_runs`, and the newest hour needs one.
            max_active_tis_per_dagrun=1,
            # For lost tasks: the run that it starts has its own retries.
            retries=limits.RERUN_RETRIES,
            retry_delay=limits.TASK_RETRY_DELAY,
            retry_policy=policy,
            execution_timeout=min(
                stream.timeout + limits.LATE_RERUN_MARGIN + 3 * stream.task_timeout, limits.LATE_RERUN_TIMEOUT
            ),
        ).expand_kwargs(find.output)
