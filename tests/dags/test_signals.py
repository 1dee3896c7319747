"""Links, notes and metrics of a run, and the dashboard of the metrics."""

import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.sdk.observability.metrics import stats_utils
from airflow.sdk.observability.stats import Stats
from airflow.utils.session import create_session
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from sqlalchemy import Engine, event, select

from dev.servers import RcloneServer
from include.log_rollup.hour.changes import Changes
from include.log_rollup.hour.records import Measured
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin import metrics
from log_rollup_plugin.listener import on_dag_run_success
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.urls import console_page, object_page
from tests.conftest import ROOT
from tests.dags.conftest import LoadDags
from tests.dags.test_policy import stream
from tests.support.fixtures import BucketFactory
from tests.support.raw_hours import AGGREGATED, HOUR, RAW, make_hour
from tests.support.statsd import StatsdServer
from tests.support.webhook import Webhook

END = HOUR + timedelta(hours=1)
OBJECTS = 30
# A row of the table of metrics: name and type.
DOCUMENTED = re.compile(r"^\| `log_rollup\.(\w+)` \| (\w+) \|", re.MULTILINE)
STATSD_TYPES = {"counter": "c", "gauge": "g", "timer": "ms"}


@pytest.fixture
def bucket(rclone_server: RcloneServer, make_bucket: BucketFactory) -> str:
    return make_bucket(rclone_server)


@pytest.fixture
def dag(
    rclone_server: RcloneServer, bucket: str, load_dags: LoadDags, monkeypatch: pytest.MonkeyPatch
) -> DAG:
    """Return the Dag of a stream that is named like the bucket, with a raw hour."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/here/")
    places = {"raw": f"s3://{bucket}/raw/app/", "aggregated": f"s3://{bucket}/aggregated/app/"}
    sizes = {
        "part_size": "5MiB",
        "shard_size": "5MiB",
        "max_connections": 8,
        "quiet_period": "1s",
        "poll_interval": "1s",
    }
    bag = load_dags(stream(bucket, **{**places, **sizes}))
    assert bag.import_errors == {}
    make_hour(rclone_server.client(), bucket, RAW, objects=OBJECTS)
    return bag.dags[f"log_rollup_{bucket}"]


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsdServer]:
    """Start a StatsD server, and let Airflow in this process send to it."""

    def initialize() -> None:
        # Each Airflow process does this when it starts.
        Stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)

    with StatsdServer() as server, pytest.MonkeyPatch.context() as settings:
        settings.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        settings.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        settings.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.port))
        initialize()
        yield server
        settings.undo()
        initialize()


# -- links and note ------------------------------------------------------------------------------------


def stored_links(dag: DAG) -> dict[str, dict[str, str]]:
    """Return the links that Airflow stored for each task; for a mapped task those of its last instance."""
    found: dict[str, dict[str, str]] = {}
    with create_session() as session:
        wanted = select(XComModel).where(XComModel.dag_id == dag.dag_id, XComModel.key.startswith("_link_"))
        for row in session.scalars(wanted):
            found.setdefault(row.task_id, {})[row.key] = row.value
    return found


@contextmanager
def open_run(dag: DAG) -> Iterator[DagRun]:
    """Open the only run of a Dag, in a session that is committed at the end."""
    with create_session() as session:
        yield session.scalars(select(DagRun).where(DagRun.dag_id == dag.dag_id)).one()


def succeed(dag: DAG, **changed: Any) -> None:
    """Do what the scheduler does when the run has succeeded, with other changes of its own."""
    with open_run(dag) as run:
        for name, value in changed.items():
            setattr(run, name, value)
        on_dag_run_success(dag_run=run, msg="success")


@contextmanager
def before(statement: str, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` before each SQL statement that begins like this."""

    def run_action(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith(statement):
            action()

    event.listen(Engine, "before_cursor_execute", run_action)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", run_action)


def fail_insert() -> None:
    raise RuntimeError("the database refuses")


def write_elsewhere() -> None:
    """Write to the database from another connection, as other processes do."""
    with closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")) as database, database:
        database.execute("UPDATE slot_pool SET description = hex(randomblob(8))")


def test_tasks_have_links_and_the_run_has_a_note(
    dag: DAG, rclone_server: RcloneServer, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert str(dag.test(logical_date=END).state) == "success"
    hour = {
        "_link_HourLink": f"https://airflow.example.com/here/plugin/log-rollup-hours/log-rollup/hours/?stream={bucket}"
        "&hour=2026-11-23T08:00:00Z"
    }
    files = f"{rclone_server.endpoint_url}/{bucket}/{AGGREGATED}"
    manifest = {"_link_ManifestLink": f"{files}_manifest.jsonl.gz"}
    assert stored_links(dag) == {
        "plan_hour": hour,
        "pack_shard": hour,
        "validate_hour": {**hour, **manifest},
        "complete_hour": {**hour, **manifest, "_link_MarkerLink": f"{files}_SUCCESS"},
    }
    assert dag.get_task("pack_shard").operator_class.operator_extra_links[0].name == "Hour"

    # The note.
    with before("INSERT INTO dag_run_note", fail_insert), caplog.at_level(logging.ERROR):
        succeed(dag, conf={"the scheduler": "has done something"})
    assert "could not write the note of run" in caplog.text
    with open_run(dag) as run:
        assert (run.note, run.conf) == (None, {"the scheduler": "has done something"})
    with before("INSERT INTO dag_run_note", write_elsewhere):
        succeed(dag)
    with open_run(dag) as run:
        note = str(run.note)
    assert re.fullmatch(rf"{OBJECTS} objects, [0-9.]+ MiB -> [0-9]+ parts, verified by CRC", note)
    # A cleared run gets a new note; a note that a person wrote stays.
    stale = note.replace(f"{OBJECTS} objects", "1,000 objects")
    for content, user, expected in ((stale, None, note), ("mine", None, "mine"), (stale, "admin", stale)):
        with open_run(dag) as run:
            run.dag_run_note.content, run.dag_run_note.user_id = content, user
        succeed(dag)
        with open_run(dag) as run:
            assert run.note == expected


@pytest.mark.parametrize(
    ("region", "console"),
    [
        ("eu-central-1", "https://console.aws.amazon.com/s3/object/logs?region=eu-central-1"),
        ("cn-north-1", "https://console.amazonaws.cn/s3/object/logs?region=cn-north-1"),
        ("us-gov-west-1", "https://console.amazonaws-us-gov.com/s3/object/logs?region=us-gov-west-1"),
    ],
)
def test_aws_object_links_to_the_console_of_its_partition(
    monkeypatch: pytest.MonkeyPatch, region: str, console: str
) -> None:
    connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": {"region_name": region}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    with PooledS3Hook(aws_conn_id="aws_default") as hook:
        assert object_page(hook, Location("logs", "a b/_SUCCESS")) == f"{console}&prefix=a%20b/_SUCCESS"
        prefix = console_page(hook.client.meta, Location("logs", "a b/"))
        assert prefix == console.replace("/object/", "/buckets/") + "&prefix=a%20b/"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "https://amazonaws.com.example.org"])
def test_other_servers_have_no_console_link(endpoint: str) -> None:
    assert console_page(SimpleNamespace(endpoint_url=endpoint), Location("logs", "a/")) is None


# -- metrics -------------------------------------------------------------------------------------------


def documented_metrics() -> dict[str, str]:
    """Return the documented metrics: type by name."""
    return dict(DOCUMENTED.findall((ROOT / "docs" / "OBSERVABILITY.md").read_text()))


def test_statsd_gets_each_metric_by_stream_and_in_total(dag: DAG, bucket: str, statsd: StatsdServer) -> None:
    for minutes in range(2):
        assert str(dag.test(logical_date=END + timedelta(minutes=minutes)).state) == "success"
    metrics.late_checked(bucket, [Changes(("a", "b"), (), ("c",)), Changes(("d",), ("e",), ())])
    received = statsd.received("airflow.log_rollup.")
    by_stream = {
        name.removesuffix(f".{bucket}"): metric
        for name, metric in received.items()
        if name.endswith(f".{bucket}")
    }
    assert by_stream == {name: metric for name, metric in received.items() if not name.endswith(bucket)}
    assert {name: kind for name, (kind, _) in by_stream.items()} == {
        name: STATSD_TYPES[kind] for name, kind in documented_metrics().items()
    }
    values = {name: value for name, (_, value) in by_stream.items()}
    assert (values["hours"], values["objects"]) == (1, OBJECTS)
    assert values["bytes"] > values["parts"] > 1
    assert 0 < values["peak_sockets"] <= 8
    assert values["shard_duration"] > 0
    assert values["retries"] == values["throttles"] == 0
    kinds = ("changed_hours", "late_objects", "changed_objects", "vanished_objects")
    assert [values[kind] for kind in kinds] == [2, 3, 1, 1]


def test_dots_are_replaced_and_legacy_names_are_optional(
    statsd: StatsdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.shard_packed("web.2", Measured(throttles=3))
    assert statsd.received("airflow.log_rollup.throttles") == {"": ("c", 3), ".web__2": ("c", 3)}
    monkeypatch.setenv("AIRFLOW__METRICS__LEGACY_NAMES_ON", "False")
    metrics.shard_packed("web.2", Measured(throttles=4))
    assert statsd.received("airflow.log_rollup.throttles") == {"": ("c", 7), ".web__2": ("c", 3)}


# Runs in a process of its own because OpenTelemetry sends when the process ends.
OTEL_PROCESS = """
from airflow.sdk.observability.metrics import stats_utils
from airflow.sdk.observability.stats import Stats
from include.log_rollup.hour.records import Measured
from log_rollup_plugin import metrics

Stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
metrics.shard_packed("app", Measured(seconds=1.5, throttles=3, sockets=25))
"""


@pytest.mark.slow
def test_opentelemetry_has_stream_attribute_and_deltas() -> None:
    with Webhook(parse=ExportMetricsServiceRequest.FromString) as collector:
        env = {
            "AIRFLOW__METRICS__OTEL_ON": "True",
            "AIRFLOW__METRICS__OTEL_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__OTEL_PORT": str(collector.port),
            "AIRFLOW__METRICS__LEGACY_NAMES_ON": "False",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
        }
        subprocess.run([sys.executable, "-c", OTEL_PROCESS], env={**os.environ, **env}, check=True)
    sent = {
        metric.name.removeprefix("airflow.log_rollup."): metric
        for resource in collector.bodies[0].resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    throttles, duration, sockets = (sent[name] for name in ("throttles", "shard_duration", "peak_sockets"))
    assert throttles.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    (point,) = throttles.sum.data_points
    assert point.as_int == 3
    assert [(one.key, one.value.string_value) for one in point.attributes] == [("stream", "app")]
    assert (duration.unit, duration.exponential_histogram.data_points[0].sum) == ("ms", 1500)
    assert sockets.gauge.data_points[0].as_int == 25


def test_dashboard_queries_every_metric_by_name_and_label() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    # The names of the Prometheus StatsD exporter, where a timer is a summary.
    expected = {
        f"airflow_log_rollup_{name}{ending}"
        for name, kind in documented_metrics().items()
        for ending in (("_sum", "_count") if kind == "timer" else ("",))
    }
    assert {name for query in queries for name in re.findall(r"airflow_log_rollup_\w+", query)} == expected
    assert all('{stream=~"$stream"}' in query for query in queries)
