"""
# Hourly log rollup

For each UTC hour of a stream: waits until the raw hour is settled, packs its many small objects into parts, proves
that no byte is lost or doubled, and then marks the hour complete.

| task | what it does | if it fails |
|---|---|---|
| `wait_for_raw_hour` | waits until no object has arrived for `quiet_period`, or until the ready object exists | the hour is empty or still being written: read the message, then clear the task |
| `plan_hour` | lists the raw hour and writes a plan into the bucket: which object goes into which part | fix what the message names (bucket, credentials, a setting of the stream), then clear the task. If raw objects of a complete hour have vanished, mark the run as success |
| `pack_shard` | packs one shard of the plan; parts that exist as planned are not packed again | clear the failed tasks |
| `validate_hour` | compares raw objects and parts (number, bytes, CRC) and writes the manifest | the raw hour changed, or a part is wrong: clear the run from `plan_hour` on |
| `complete_hour` | writes `_SUCCESS` and emits the asset events for Dags downstream | clear the run from `plan_hour` on |

**An hour is complete if and only if `_SUCCESS` exists beside its parts.**

- **Clearing is always safe.** A complete hour that has not changed stays as it is; that takes seconds. An hour that
  has changed loses its `_SUCCESS` before its first part changes.
- **Late objects.** A rerun packs late and changed objects, and keeps the other parts. To pack the whole hour again with
  changed settings, trigger the Dag with `repack`.
- **Expired raw objects.** Parts whose raw objects `expire_raw` has deleted are kept. If others have vanished, a rerun
  fails and changes nothing; to roll the hour up without them, trigger the Dag with `drop_vanished`.
- **Roll up one hour by hand:** trigger the Dag and enter the hour in the form.
- **Roll up a past range:** start a backfill. Tasks of newer hours go first.
- **Retries.** Network faults and throttling are retried. An error that a retry cannot fix fails at once.
- **Notifications.** `notify` and `deadline` in the streams file say who is notified of failed and late runs.
- **Result.** The note on a successful run has the hour's totals.
- **Connections.** Each task takes as many slots of the pool `s3_connections` as it may open connections to S3, so the
  pool limits all tasks of all streams together.
"""

import pendulum
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
# Set while a task runs, which needs only its own Dag. None in the Dag processor, which needs all.
running_dag_id = get_parsing_context().dag_id

# Shared by all Dags: creating them takes time, and there may be a thousand streams.
hourly = CronDataIntervalTimetable("0 * * * *", timezone="UTC")
policy = retry_policy()
fresh_hours_first = FreshHoursFirst()

for stream in streams:
    if running_dag_id not in (None, dag_id_of(stream)):
        continue
    check_notifiers(stream)
    with DAG(
        dag_id=dag_id_of(stream),
        description=f"{stream.raw} -> {stream.aggregated}, hour by hour",
        doc_md=__doc__,
        schedule=hourly,
        start_date=pendulum.instance(stream.start),
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
            # So that a long backfill does not delay the newest hour.
            "weight_rule": fresh_hours_first,
        },
        # With True, Airflow 3.3.2 expands pack_shard of a cleared run before the hour is planned again, and removes
        # the shards that the last plan did not have.
        rerun_with_latest_version=False,
    ):
        wait = RawHourSensor(
            task_id="wait_for_raw_hour",
            stream=stream,
            pool_slots=stream.wait_connections,
            execution_timeout=limits.WAIT_TASK_TIMEOUT,
        )
        plan = PlanHourOperator(task_id="plan_hour", stream=stream, pool_slots=stream.control_connections)
        pack = PackShardOperator.partial(
            task_id="pack_shard",
            stream=stream,
            pool_slots=stream.max_connections,
            map_index_template="{{ task.title }}",
        ).expand(shard=plan.output)
        validate = ValidateHourOperator(
            task_id="validate_hour",
            stream=stream,
            pool_slots=stream.control_connections,
            # Packing is skipped for a complete hour that has not changed: it has no shards.
            trigger_rule="none_failed",
        )
        complete = CompleteHourOperator(
            task_id="complete_hour",
            stream=stream,
            pool_slots=stream.control_connections,
            execution_timeout=limits.COMPLETE_TASK_TIMEOUT,
        )

        wait >> plan >> pack >> validate >> complete
