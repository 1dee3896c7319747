"""
# Read hours whose parts are archived

Retrieves the parts of some hours of the stream `app` from the archive, waits until they can be read, and reads
them. Copy the file, change `STREAM`, and replace `count` with your own work. Trigger it with the first and the
last hour.

`retrieve` succeeds at once if no part is archived. Otherwise it defers, for up to two days with the tier `bulk`,
and takes no slot meanwhile. It needs the permission in deploy/iam-policy-retrieve.json.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param, task

from include.log_rollup import limits
from include.log_rollup.hour.layout import hours_between, parse_hour
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.streams import POOL, load_streams
from log_rollup_plugin.retrieve import RetrievePartsOperator
from log_rollup_plugin.s3.stream_store import store_for

STREAM = "app"

with DAG(
    dag_id=f"read_archived_hours_{STREAM}",
    description=f"Reads hours of {STREAM}, also from the archive",
    doc_md=__doc__,
    schedule=None,
    params={
        "first": Param("2026-11-23T08:00:00Z", type="string"),
        "last": Param("2026-11-23T08:00:00Z", type="string"),
    },
    tags=["log-rollup", "example"],
):
    retrieve = RetrievePartsOperator(
        task_id="retrieve",
        stream=STREAM,
        hour="{{ params.first }}",
        last_hour="{{ params.last }}",
        tier="bulk",
        days=3,
    )

    @task(pool=POOL, pool_slots=limits.CONTROL_CONNECTIONS)
    def count(first: str, last: str) -> int:
        """Count the lines of the parts; those of compressed parts would have to be decompressed first."""
        stream = next(stream for stream in load_streams() if stream.name == STREAM)
        lines = 0
        with store_for(stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS) as store:
            for hour in hours_between(parse_hour(first), parse_hour(last) + timedelta(hours=1)):
                reader = HourReader(store, stream, hour)
                manifest = reader.manifest()
                for _, packed in manifest.parts() if manifest else ():
                    body = store.read_range(reader.paths.part(packed.name), packed.etag, 0, packed.size)
                    lines += body.count(b"\n")
        print(f"{lines:,} lines from {first} to {last}")
        return lines

    retrieve >> count("{{ params.first }}", "{{ params.last }}")
