r"""
# A report on each complete day

Runs when all 24 hours of a UTC day of the stream `app` are complete. Copy the file, change `STREAM`, and replace
`report` with your own work. The run's partition key is the day, like `2026-11-23`.

Airflow counts the asset events of the hours; `check` then reads the completion markers. An hour that is being
rolled up again, because objects came late, has no marker: `check` fails and Airflow retries it.

**An hour that is rolled up again later** does not start this Dag: Airflow waits for 24 new events. To update the
report, clear its run, which reads the markers again. **A day that was partly complete before this Dag existed**
never has 24 events. A backfill emits all events again and moves no data:

```
airflow backfill create --dag-id log_rollup_app --from-date 2026-11-23T00:00:00Z \
    --to-date 2026-11-23T23:00:00Z --reprocess-behavior completed
```
"""

from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import (
    DAG,
    Asset,
    DayWindow,
    PartitionedAssetTimetable,
    RollupMapper,
    StartOfDayMapper,
    WaitForAll,
    task,
)

from include.log_rollup import limits
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.status import read_hours
from include.log_rollup.streams import POOL, load_streams
from log_rollup_plugin.s3.stream_store import store_for

STREAM = "app"
HOURS = Asset.ref(name=f"log_rollup_{STREAM}_hours")
# Format of the hours in partition keys.
KEY = "%Y-%m-%dT%H:%M:%SZ"

with DAG(
    dag_id=f"report_day_{STREAM}",
    description=f"Runs for each day of {STREAM} whose 24 hours are complete",
    doc_md=__doc__,
    schedule=PartitionedAssetTimetable(
        assets=HOURS,
        default_partition_mapper=RollupMapper(
            upstream_mapper=StartOfDayMapper(input_format=KEY),
            window=DayWindow(),
            wait_policy=WaitForAll(),
        ),
    ),
    catchup=False,
    tags=["log-rollup", "example"],
):

    @task(pool=POOL, pool_slots=limits.CONTROL_CONNECTIONS, retries=6, retry_delay=timedelta(minutes=10))
    def check(**context: Any) -> list[dict[str, Any]]:
        """Return the totals of the day's hours from their completion markers."""
        day = pendulum.from_format(context["dag_run"].partition_key, "YYYY-MM-DD", tz="UTC")
        hours = [day.add(hours=number) for number in range(24)]
        stream = next(stream for stream in load_streams() if stream.name == STREAM)
        with store_for(stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS) as store:
            found = read_hours(store, stream, hours)
        missing = [format_hour(status.hour) for status in found if not status.marker]
        if missing:
            raise RuntimeError(f"not complete now: {', '.join(missing)}; Airflow retries this task")
        fields = ("hour", "plan_id", "objects", "bytes_in", "bytes_out", "parts")
        return [{name: status.marker[name] for name in fields} for status in found if status.marker]

    @task
    def report(hours: list[dict[str, Any]], **context: Any) -> dict[str, Any]:
        """Print and return the totals of the day."""
        totals = {name: sum(hour[name] for hour in hours) for name in ("objects", "bytes_in", "parts")}
        print(f"{context['dag_run'].partition_key}: {totals}")
        return totals

    report(check())
