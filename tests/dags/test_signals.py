"""Links to objects, names of metrics, and the dashboard of the metrics; test_runs.py has those of a run."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from include.log_rollup.hour.records import Measured
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin import metrics
from log_rollup_plugin.hours_page.page_store import open_store
from log_rollup_plugin.hours_page.views import place_views
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.s3.stream_store import store_for
from log_rollup_plugin.urls import console_page, object_page
from tests.conftest import ROOT
from tests.support.hour_in_memory import make_stream
from tests.support.raw_hours import HOUR
from tests.support.statsd import StatsdServer
from tests.support.webhook import Webhook

# A row of the table of metrics: name and type.
DOCUMENTED = re.compile(r"^\| `log_rollup\.(\w+)` \| (\w+) \|", re.MULTILINE)


def documented_metrics() -> dict[str, str]:
    """Return the documented metrics: type by name."""
    return dict(DOCUMENTED.findall((ROOT / "docs" / "OBSERVABILITY.md").read_text()))


# -- links ---------------------------------------------------------------------------------------------


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


def test_console_links_know_the_connection_of_the_parts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, region in (("RAW", "us-east-1"), ("PARTS", "eu-central-1")):
        connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": {"region_name": region}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))
    stream = make_stream(aws_conn_id="raw", target_conn_id="parts")
    with store_for(stream, 4, 4) as store:
        marker = stream.at(HOUR).marker
        assert "region=eu-central-1" in object_page(store, marker)
    with open_store(stream) as page:
        raw, aggregated, _ = place_views(stream, HOUR, page.meta(marker))
    assert raw.console is None
    assert "region=eu-central-1" in str(aggregated.console)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "https://amazonaws.com.example.org"])
def test_other_servers_have_no_console_link(endpoint: str) -> None:
    assert console_page(SimpleNamespace(endpoint_url=endpoint), Location("logs", "a/")) is None


# -- metrics -------------------------------------------------------------------------------------------


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
