"""
# Hourly log rollup

Waits until a stream's raw hour is settled, packs its many small objects into parts of `part_size` through a
capped set of S3 connections, proves that nothing was lost or doubled, and only then marks the hour complete.

| task | what it does | when it fails |
|---|---|---|
| `wait_for_raw_hour` | waits until no object came for `quiet_period`, or the stream's marker is there | the hour is empty or still being written to: see its message, then clear it |
| `plan_hour` | lists the raw hour and writes into the bucket which object goes into which part | the bucket, the credentials or a setting of the stream: mend it, then clear it; or raw objects of a proven hour have expired: mark the run as success |
| `pack_shard` | packs one run of parts; parts that stand already are left alone | clear the failed ones; finished parts are not packed again |
| `validate_hour` | compares raw objects and parts, in number, bytes and CRC, and writes the manifest | the raw hour changed, or a part is not right: clear the run from `plan_hour` on |
| `complete_hour` | writes `_SUCCESS` and tells the Dags downstream | clear the run from `plan_hour` on |

**An hour is complete if and only if `_SUCCESS` lies beside its parts.** Clearing is always safe: a complete
hour that has not changed is left as it is and takes seconds, and one that has changed loses its `_SUCCESS`
before the first part is touched. An hour whose raw objects have expired is refused and stays as it is; who wants
it without them triggers it with `drop_vanished`.

**To roll up an hour by hand**, trigger the Dag and give the hour in the form. **To roll up a past range**,
use a backfill; the tasks of younger hours go before it. What cannot be mended by a retry fails at once; throttling and network faults are retried.

Who is told that a run has failed or has missed its deadline stands in the streams file, under `notify` and
`deadline`. The note on a finished run says what it made of its hour.

The pool `s3_connections` caps the connections to S3 of all tasks of all streams together: a task takes as
many slots as it may open connections.
"""

from airflow.sdk import DAG, CronDataIntervalTimetable, get_parsing_context

from include.log_rollup import limits
from include.log_rollup.streams import POOL, check_pool, load_streams, pool_slots
from log_rollup_plugin.form import hour_form
from log_rollup_plugin.notify import check_notifiers, deadline_alert, failure_callback
from log_rollup_plugin.operators import (
    CompleteHourOperator,
    PackShardOperator,
    PlanHourOperator,
    ValidateHourOperator,
)
from log_rollup_plugin.priority import FreshHoursFirst
from log_rollup_plugin.retries import retry_policy
from log_rollup_plugin.runs import dag_id_of
from log_rollup_plugin.sensor import RawHourSensor

streams = load_streams()
check_pool(streams, pool_slots())
# A task needs the Dag of its own stream only; where nothing runs, all are made.
only = get_parsing_context().dag_id

# Equal for all streams, so made once: each costs time where there are a thousand of them.
hourly = CronDataIntervalTimetable("0 * * * *", timezone="UTC")
policy = retry_policy()
freshest = FreshHoursFirst()

for stream in streams:
    if only is not None and dag_id_of(stream) != only:
        continue
    check_notifiers(stream)
    with DAG(
        dag_id=dag_id_of(stream),
        description=f"{stream.raw} -> {stream.aggregated}, hour by hour",
        doc_md=__doc__,
        schedule=hourly,
        start_date=stream.start,
        catchup=True,
        max_active_runs=stream.max_active_runs,
        tags=["log-rollup", stream.name],
        deadline=deadline_alert(stream),
        on_failure_callback=failure_callback(stream),
        params=hour_form(),
        default_args={
            "owner": stream.owner,
            "pool": POOL,
            "retries": limits.TASK_RETRIES,
            "retry_delay": limits.TASK_RETRY_DELAY,
            "retry_policy": policy,
            "execution_timeout": stream.task_timeout,
            # A long backfill must not keep the present hour from its connections.
            "weight_rule": freshest,
        },
        # With the latest version, Airflow 3.3.2 looks at the shards of a cleared run before it is planned
        # again, and removes for good those that its last plan did not have.
        rerun_with_latest_version=False,
    ):
        wait = RawHourSensor(
            task_id="wait_for_raw_hour",
            stream=stream,
            pool_slots=limits.WAIT_CONNECTIONS,
            execution_timeout=limits.WAIT_TASK_TIMEOUT,
        )
        plan = PlanHourOperator(task_id="plan_hour", stream=stream, pool_slots=limits.CONTROL_CONNECTIONS)
        pack = PackShardOperator.partial(
            task_id="pack_shard",
            stream=stream,
            pool_slots=stream.max_connections,
            map_index_template="{{ task.title }}",
        ).expand(shard=plan.output)
        validate = ValidateHourOperator(
            task_id="validate_hour",
            stream=stream,
            pool_slots=limits.CONTROL_CONNECTIONS,
            # A complete hour that has not changed has no shards, so packing is skipped.
            trigger_rule="none_failed",
        )
        complete = CompleteHourOperator(
            task_id="complete_hour",
            stream=stream,
            pool_slots=limits.CONTROL_CONNECTIONS,
            execution_timeout=limits.COMPLETE_TASK_TIMEOUT,
        )

        wait >> plan >> pack >> validate >> complete
