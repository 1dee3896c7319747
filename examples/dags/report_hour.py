"""
# A report on each complete hour

Runs once for each completion of an hour of the stream `app`: copy it, change `STREAM`, and put your own work
in the place of `report`. The hour is the run's partition key, and its start `partition_date`.

A rerun of an hour completes it again, also where nothing has changed, so this Dag runs for it again. Work that
is not to be done twice for the same content goes by `plan_id`: the same hour with the same `plan_id` has the
same parts.
"""

from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, StartOfHourMapper, task

STREAM = "app"
HOURS = Asset.ref(name=f"log_rollup_{STREAM}_hours")
# How the hours are written in the partition keys.
KEY = "%Y-%m-%dT%H:%M:%SZ"

with DAG(
    dag_id=f"report_hour_{STREAM}",
    description=f"Once for each complete hour of {STREAM}",
    doc_md=__doc__,
    schedule=PartitionedAssetTimetable(
        assets=HOURS,
        default_partition_mapper=StartOfHourMapper(input_format=KEY, output_format=KEY),
    ),
    catchup=False,
    tags=["log-rollup", "example"],
):

    @task
    def report(**context: Any) -> dict[str, Any]:
        """Tell what the hour holds and where; the last event counts, should there be several."""
        told: dict[str, Any] = context["triggering_asset_events"][HOURS][-1].extra
        average = told["bytes_in"] / max(told["objects"], 1)
        print(
            f"{told['hour']}: {told['objects']:,} objects of {average:,.0f} bytes in {told['parts']} parts "
            f"under {told['aggregated']}"
        )
        return told

    report()
