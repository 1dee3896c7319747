"""
# A report on each complete hour

Runs each time an hour of the stream `app` is completed. Copy the file, change `STREAM`, and replace `report` with
your own work. The run's partition key is the hour, its `partition_date` the start of the hour.

A rerun completes its hour again, even if nothing has changed, and then this Dag runs again. To skip work that was
done before, compare `plan_id`: an hour with an unchanged `plan_id` has the same parts.
"""

from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, StartOfHourMapper, task

STREAM = "app"
HOURS = Asset.ref(name=f"log_rollup_{STREAM}_hours")
# Format of the hours in partition keys.
KEY = "%Y-%m-%dT%H:%M:%SZ"

with DAG(
    dag_id=f"report_hour_{STREAM}",
    description=f"Runs for each complete hour of {STREAM}",
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
        """Print the totals and the place of the hour, from the last event if there are several."""
        event: dict[str, Any] = context["triggering_asset_events"][HOURS][-1].extra
        average = event["bytes_in"] / max(event["objects"], 1)
        print(
            f"{event['hour']}: {event['objects']:,} objects of {average:,.0f} bytes in {event['parts']} parts "
            f"under {event['aggregated']}"
        )
        return event

    report()
