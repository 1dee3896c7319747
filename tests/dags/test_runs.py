"""Complete Dag runs in one process, with a real S3 server: their tasks, links, notes and metrics."""

import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.api_fastapi.execution_api import versions
from airflow.models.asset import AssetEvent
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from cadwyn import HeadVersion, Version, VersionBundle
from cadwyn.route_generation import _EndpointTransformer
from sqlalchemy import Engine, event, select

from dev.servers import RcloneServer, S3Client
from include.log_rollup.hour.changes import Changes
from log_rollup_plugin import metrics
from log_rollup_plugin.listener import on_dag_run_success
from tests.dags.conftest import LoadDags, dag_loader, running_statsd
from tests.dags.test_policy import STEPS, stream
from tests.dags.test_signals import documented_metrics
from tests.support.fixtures import BucketFactory
from tests.support.raw_hours import AGGREGATED, HOUR, MIB, RAW, RawHour, make_hour, put_objects
from tests.support.verify import assert_not_complete, verify_hour

# The hour ends at the logical date of a manual run.
END = HOUR + timedelta(hours=1)
OBJECTS = 16
STATSD_TYPES = {"counter": "c", "gauge": "g", "timer": "ms"}
MakeDag = Callable[..., DAG]
TaskStates = dict[str, list[str]]


@pytest.fixture(scope="module", autouse=True)
def latest_task_api() -> Iterator[None]:
    """Let Airflow's API for tasks have its latest version alone; the earlier ones take seconds of CPU time."""
    transform = _EndpointTransformer.transform

    def without_earlier_routes(transformer: Any) -> Any:
        transformer.routes_that_never_existed.clear()
        return transform(transformer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            versions, "bundle", VersionBundle(HeadVersion(), Version(versions.bundle.versions[0].value))
        )
        patch.setattr(_EndpointTransformer, "transform", without_earlier_routes)
        yield


@pytest.fixture(scope="module")
def client(rclone_server: RcloneServer) -> S3Client:
    return rclone_server.client()


@pytest.fixture
def bucket(rclone_server: RcloneServer, make_bucket: BucketFactory) -> str:
    return make_bucket(rclone_server)


@pytest.fixture
def make_dag(
    rclone_server: RcloneServer, bucket: str, load_dags: LoadDags, monkeypatch: pytest.MonkeyPatch
) -> MakeDag:
    """Return the Dag of a stream in ``bucket``."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
    return lambda **settings: dag_of(load_dags, bucket, **settings)


def dag_of(load_dags: LoadDags, bucket: str, **settings: Any) -> DAG:
    """Return the Dag of a stream that is named like its bucket, which separates runs and assets of tests."""
    places = {"raw": f"s3://{bucket}/raw/app/", "aggregated": f"s3://{bucket}/aggregated/app/"}
    sizes = {"part_size": "5MiB", "shard_size": "5MiB", "max_connections": 8}
    times = {"quiet_period": "1s", "poll_interval": "1s"}
    bag = load_dags(stream(bucket, **{**sizes, **times, **places, **settings}))
    assert bag.import_errors == {}
    return bag.dags[f"log_rollup_{bucket}"]


def run(dag: DAG, **arguments: Any) -> tuple[str, TaskStates]:
    """Run a Dag; returns the state of the run, and the states of each task's instances."""
    dag_run = dag.test(**arguments)
    states: TaskStates = {}
    for instance in dag_run.get_task_instances():
        states.setdefault(instance.task_id, []).append(str(instance.state))
    return str(dag_run.state), states


# -- two runs of one hour ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoRuns:
    """Two runs of one hour, and what they left.

    :param raw: bodies of the raw objects by key
    :param runs: state of each run, and of its tasks
    :param markers: ``LastModified`` of the completion marker after each run
    :param received: what a StatsD server received, type and value by name
    """

    dag: DAG
    bucket: str
    raw: Mapping[str, bytes]
    runs: list[tuple[str, TaskStates]]
    markers: list[datetime]
    received: Mapping[str, tuple[str, float]]


@pytest.fixture(scope="module")
def two_runs(
    rclone_server: RcloneServer, client: S3Client, database: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoRuns]:
    """Run an hour, and run it again; the tests only read the result."""
    bucket = "two-runs"
    rclone_server.create_bucket(bucket)
    raw = make_hour(client, bucket, RAW, objects=OBJECTS, encodings=("", ".gz"))
    runs, markers = [], []
    with pytest.MonkeyPatch.context() as patch, running_statsd() as statsd:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
        patch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/here/")
        dag = dag_of(dag_loader(tmp_path_factory.mktemp("two-runs"), patch), bucket)
        for minutes in range(2):
            runs.append(run(dag, logical_date=END + timedelta(minutes=minutes)))
            markers.append(client.head_object(Bucket=bucket, Key=f"{AGGREGATED}_SUCCESS")["LastModified"])
        metrics.late_checked(bucket, [Changes(("a", "b"), (), ("c",)), Changes(("d",), ("e",), ())])
        received = statsd.received("airflow.log_rollup.")
    yield TwoRuns(dag, bucket, raw, runs, markers, received)
    rclone_server.delete_bucket(bucket)


def test_second_run_leaves_a_complete_hour_unchanged(two_runs: TwoRuns, client: S3Client) -> None:
    (state, states), (second_state, second_states) = two_runs.runs
    assert state == "success"
    assert set(states) == set(STEPS)
    assert len(states["pack_shard"]) > 1
    verify_hour(client, two_runs.bucket, RAW, AGGREGATED, part_size=5 * MIB, expected=two_runs.raw)
    assert (second_state, second_states["pack_shard"]) == ("success", ["skipped"])
    assert two_runs.markers[0] == two_runs.markers[1]


def test_statsd_gets_each_metric_by_stream_and_in_total(two_runs: TwoRuns, client: S3Client) -> None:
    stream_suffix = f".{two_runs.bucket}"
    by_stream = {
        name.removesuffix(stream_suffix): metric
        for name, metric in two_runs.received.items()
        if name.endswith(stream_suffix)
    }
    assert by_stream == {
        name: metric for name, metric in two_runs.received.items() if not name.endswith(stream_suffix)
    }
    assert {name: kind for name, (kind, _) in by_stream.items()} == {
        name: STATSD_TYPES[kind]
        for name, kind in documented_metrics().items()
        # These runs delete nothing; test_expiry covers its metrics.
        if not name.startswith("expir")
    }
    values = {name: value for name, (_, value) in by_stream.items()}
    marker = json.loads(client.get_object(Bucket=two_runs.bucket, Key=f"{AGGREGATED}_SUCCESS")["Body"].read())
    assert (values["hours"], values["objects"]) == (1, OBJECTS)
    assert values["bytes"] > values["parts"] > 1
    # Other tests' idle connections from this process to the same server count too, so it may exceed the cap here.
    assert 0 < values["peak_sockets"] <= marker["peak"]["sockets"]
    assert values["shard_duration"] > 0
    # A slow server may cause a few.
    assert (values["retries"], values["throttles"]) == (marker["retries"], marker["throttles"])
    kinds = ("changed_hours", "late_objects", "changed_objects", "vanished_objects")
    assert [values[kind] for kind in kinds] == [2, 3, 1, 1]


def test_tasks_link_to_their_hour_and_its_files(two_runs: TwoRuns, rclone_server: RcloneServer) -> None:
    hour = {
        "_link_HourLink": "https://airflow.example.com/here/plugin/log-rollup-hours/log-rollup/hours/"
        f"?stream={two_runs.bucket}&hour=2026-11-23T08:00:00Z"
    }
    files = f"{rclone_server.endpoint_url}/{two_runs.bucket}/{AGGREGATED}"
    manifest = {"_link_ManifestLink": f"{files}_manifest.jsonl.gz"}
    assert stored_links(two_runs.dag, END) == {
        "plan_hour": hour,
        "pack_shard": hour,
        "validate_hour": {**hour, **manifest},
        "complete_hour": {**hour, **manifest, "_link_MarkerLink": f"{files}_SUCCESS"},
    }
    assert two_runs.dag.get_task("pack_shard").operator_class.operator_extra_links[0].name == "Hour"


def stored_links(dag: DAG, logical_date: datetime) -> dict[str, dict[str, str]]:
    """Return the links that Airflow stored for each task; for a mapped task those of its last instance."""
    found: dict[str, dict[str, str]] = {}
    with open_run(dag, logical_date) as dag_run, create_session() as session:
        wanted = select(XComModel).where(
            XComModel.dag_id == dag.dag_id,
            XComModel.run_id == dag_run.run_id,
            XComModel.key.startswith("_link_"),
        )
        for row in session.scalars(wanted):
            found.setdefault(row.task_id, {})[row.key] = row.value
    return found


@contextmanager
def open_run(dag: DAG, logical_date: datetime = END) -> Iterator[DagRun]:
    """Open a run of a Dag, in a session that is committed at the end."""
    with create_session() as session:
        wanted = select(DagRun).where(DagRun.dag_id == dag.dag_id, DagRun.logical_date == logical_date)
        yield session.scalars(wanted).one()


def succeed(dag: DAG, **changed: Any) -> None:
    """Do what the scheduler does when the run has succeeded, with other changes of its own."""
    with open_run(dag) as dag_run:
        for name, value in changed.items():
            setattr(dag_run, name, value)
        on_dag_run_success(dag_run=dag_run, msg="success")


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


def test_successful_run_gets_a_note(two_runs: TwoRuns, caplog: pytest.LogCaptureFixture) -> None:
    dag = two_runs.dag
    with before("INSERT INTO dag_run_note", fail_insert), caplog.at_level(logging.ERROR):
        succeed(dag, conf={"the scheduler": "has done something"})
    assert "could not write the note of run" in caplog.text
    with open_run(dag) as dag_run:
        assert (dag_run.note, dag_run.conf) == (None, {"the scheduler": "has done something"})
    with before("INSERT INTO dag_run_note", write_elsewhere):
        succeed(dag)
    with open_run(dag) as dag_run:
        note = str(dag_run.note)
    assert re.fullmatch(rf"{OBJECTS} objects, [0-9.]+ MiB -> [0-9]+ parts, verified by CRC", note)
    # A cleared run gets a new note; a note that a person wrote stays.
    stale = note.replace(f"{OBJECTS} objects", "1,000 objects")
    for content, user, expected in ((stale, None, note), ("mine", None, "mine"), (stale, "admin", stale)):
        with open_run(dag) as dag_run:
            dag_run.dag_run_note.content, dag_run.dag_run_note.user_id = content, user
        succeed(dag)
        with open_run(dag) as dag_run:
            assert dag_run.note == expected


# -- runs of other hours -------------------------------------------------------------------------------


def test_hour_of_the_form_overrides_the_data_interval(
    make_dag: MakeDag, client: S3Client, bucket: str
) -> None:
    made = make_hour(client, bucket, RAW, objects=3)
    later = datetime(2026, 11, 23, 11, tzinfo=UTC)
    state, _ = run(make_dag(), logical_date=later, run_conf={"hour": "2026-11-23T09:17:00+01:00"})
    assert state == "success"
    verify_hour(client, bucket, RAW, AGGREGATED, part_size=5 * MIB, expected=made)


def test_run_without_any_hour_says_what_to_give(
    make_dag: MakeDag, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    state, states = run(make_dag(), logical_date=None)
    assert state == "failed"
    assert states["wait_for_raw_hour"] == ["failed"]
    output = caplog.text + "".join(capfd.readouterr())
    assert "give the hour in the form, like 2026-11-23T08:00:00Z" in output


def test_unsettled_hour_defers_until_it_is_settled(make_dag: MakeDag, client: S3Client, bucket: str) -> None:
    made = dict(RawHour(RAW, objects=3))
    put_objects(client, bucket, made)
    dag = make_dag(quiet_period="4s", poll_interval="1s")
    state, states = run(dag, logical_date=END)
    assert (state, states["wait_for_raw_hour"]) == ("success", ["success"])
    verify_hour(client, bucket, RAW, AGGREGATED, part_size=5 * MIB, expected=made)


def test_empty_past_hour_fails_unless_allowed(make_dag: MakeDag, client: S3Client, bucket: str) -> None:
    past = datetime(2026, 11, 20, 9, tzinfo=UTC)
    state, states = run(make_dag(), logical_date=past)
    assert (state, states["wait_for_raw_hour"]) == ("failed", ["failed"])
    assert_not_complete(client, bucket, "aggregated/app/20261120/08/")
    state, states = run(make_dag(allow_empty=True), logical_date=past + timedelta(minutes=1))
    assert (state, states["pack_shard"]) == ("success", ["skipped"])
    verify_hour(
        client, bucket, "raw/app/20261120/08/", "aggregated/app/20261120/08/", part_size=5 * MIB, expected={}
    )


def test_run_with_groups_shows_them_in_note_and_event(
    make_dag: MakeDag, client: S3Client, bucket: str
) -> None:
    places = {"raw": f"s3://{bucket}/raw/{{service}}/", "aggregated": f"s3://{bucket}/out/{{service}}/"}
    dag = make_dag(**places)
    for hour, services in (("08", "web db"), ("09", "web api")):
        for service in services.split():
            key = f"raw/{service}/20261123/{hour}/a.log"
            client.put_object(Bucket=bucket, Key=key, Body=service.encode() * 10)
    for hours in (0, 1):
        state, _ = run(dag, logical_date=END + timedelta(hours=hours))
        assert state == "success"
    with create_session() as session:
        wanted = select(DagRun).where(
            DagRun.dag_id == dag.dag_id, DagRun.logical_date == END + timedelta(hours=1)
        )
        dag_run = session.scalars(wanted).one()
        on_dag_run_success(dag_run=dag_run, msg="success")
    with create_session() as session:
        note = session.scalars(wanted).one().note
        event = session.scalars(
            select(AssetEvent).where(AssetEvent.source_dag_id == dag.dag_id).order_by(AssetEvent.id.desc())
        ).first()
    assert note == (
        "2 objects, 60 B -> 2 parts, verified by CRC; 2 groups: api 30 B, web 30 B; "
        "compared with the hour before: 1 new (api), 1 vanished (db)"
    )
    assert event is not None
    assert event.extra["groups"] == 2
    assert event.extra["group_totals"][0]["captures"] == {"service": "api"}
