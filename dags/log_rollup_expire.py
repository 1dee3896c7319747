"""
# Expired raw objects

Deletes once a day the raw objects of old complete hours, for the streams with `expire_raw` in the streams file. With
`mode: report`, the default, it only says what can be deleted.

Each hour is proven again before: its parts must be as the manifest says, by size, ETag and the CRC that the store
states, or, with `deep`, by every byte. Then exactly the raw objects are deleted that still have the size and ETag that
were packed, on condition of that ETag. Objects that came late, changed, or are no input stay.

| task | what it does | if it fails |
|---|---|---|
| `expire_raw` | one task for each stream; its log, its XCom `report` and the run's note have the result | fix what the message says, then clear the task: it continues where it was interrupted |

- **Hours that are left alone** are named in `report`, each with its reason: a run has claimed it, or a part or a record
  is not as it should be. `./log-rollup verify` says what to do. Nothing of such an hour is deleted.
- **Approval.** With `approve_first` (the default) the first deletion of a stream waits for a person, and with
  `approve_above` each that would delete more objects: open the task's Required Actions. Without an answer within 20
  hours nothing is deleted, and the next run asks again.
- **What was deleted** is recorded in `_expired.json` next to the hour's `_SUCCESS`, before the first delete and after
  the last.

`expire_raw` and `expire_schedule` (a cron expression in UTC) are keys of the streams file.
"""

import pendulum
from airflow.sdk import DAG, CronTriggerTimetable

from include.log_rollup import limits
from include.log_rollup.streams import POOL, load_expire_schedule, load_streams
from log_rollup_plugin.retries import retry_policy

streams = [stream for stream in load_streams() if stream.expire_raw is not None]

if streams:
    # Takes 0.1 s to import, which most deployments don't need.
    from log_rollup_plugin.expiry import ExpireRawOperator

    with DAG(
        dag_id="log_rollup_expire",
        description="Deletes old raw objects of which parts hold proven copies",
        doc_md=__doc__,
        schedule=CronTriggerTimetable(load_expire_schedule(), timezone="UTC"),
        start_date=min(pendulum.instance(stream.start) for stream in streams),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=limits.EXPIRY_RUN_TIMEOUT,
        tags=["log-rollup"],
    ):
        expire_raw = ExpireRawOperator.partial(
            task_id="expire_raw",
            map_index_template="{{ task.stream_name }}",
            pool=POOL,
            pool_slots=limits.CONTROL_CONNECTIONS,
            retries=limits.TASK_RETRIES,
            retry_delay=limits.TASK_RETRY_DELAY,
            retry_policy=retry_policy(),
            execution_timeout=max(stream.task_timeout for stream in streams),
        ).expand(stream_name=[stream.name for stream in streams])
