r"""
# A report on each complete day

Runs once the 24 hours of a UTC day of the stream `app` are complete: copy it, change `STREAM`, and put your own
work in the place of `report`. The day is the run's partition key, like `2026-11-23`.

Airflow counts the hours by their asset events, and `check` holds them against the completion markers: an hour
that is being rolled up again at the moment, because objects came late, has none. It then waits for the retry.

**An hour that is rolled up again later** does not start its day again: Airflow waits for 24 new events. To make
the report again, clear its run, which reads the markers anew. **A day whose first hours were complete before this
Dag was there** never had 24 events. A backfill tells all of them again, and moves no data:

```
airflow backfill create --dag-id log_rollup_app --from-date 2026-11-23T00:00:00Z \
    --to-date 2026-11-23T23:00:00Z --reprocess-behavior completed
```
"""

from datetime import UTC, datetime, timedelta
from typing import Any

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
from log_rollup_plugin.s3.hook import PooledS3Hook

STREAM = "app"
HOURS = Asset.ref(name=f"log_rollup_{STREAM}_hours")
# How the hours are written in the partition keys.
KEY = "%Y-%m-%dT%H:%M:%SZ"

with DAG(
    dag_id=f"report_day_{STREAM}",
    description=f"Once for each day of {STREAM} whose 24 hours are complete",
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
        """The totals of the day's hours, by their completion markers as they are now."""
        day = datetime.strptime(context["dag_run"].partition_key, "%Y-%m-%d").replace(tzinfo=UTC)
        hours = [day + timedelta(hours=number) for number in range(24)]
        stream = next(stream for stream in load_streams() if stream.name == STREAM)
        with PooledS3Hook.for_stream(stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS) as hook:
            found = read_hours(hook, stream, hours)
        missing = [format_hour(one.hour) for one in found if not one.marker]
        if missing:
            raise RuntimeError(f"not complete at the moment: {', '.join(missing)}; trying again later")
        told = ("hour", "plan_id", "objects", "bytes_in", "bytes_out", "parts")
        return [{name: one.marker[name] for name in told} for one in found if one.marker]

    @task
    def report(hours: list[dict[str, Any]], **context: Any) -> dict[str, Any]:
        """Add the day up."""
        totals = {name: sum(one[name] for one in hours) for name in ("objects", "bytes_in", "parts")}
        print(f"{context['dag_run'].partition_key}: {totals}")
        return totals

    report(check())
