"""Complete Dag runs in one process, with a real S3 server."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import DAG

from dev.servers import RcloneServer, S3Client
from tests.dags.conftest import LoadDags
from tests.dags.test_policy import STEPS, stream
from tests.support.fixtures import BucketFactory
from tests.support.raw_hours import AGGREGATED, HOUR, MIB, RAW, RawHour, make_hour, put_objects
from tests.support.verify import assert_not_complete, verify_hour

# The hour ends at the logical date of a manual run.
END = HOUR + timedelta(hours=1)
MakeDag = Callable[..., DAG]


@pytest.fixture
def bucket(rclone_server: RcloneServer, make_bucket: BucketFactory) -> str:
    return make_bucket(rclone_server)


@pytest.fixture
def client(rclone_server: RcloneServer) -> S3Client:
    return rclone_server.client()


@pytest.fixture
def make_dag(
    rclone_server: RcloneServer, bucket: str, load_dags: LoadDags, monkeypatch: pytest.MonkeyPatch
) -> MakeDag:
    """Return the Dag of a stream in ``bucket``."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())

    def make(**settings: Any) -> DAG:
        places = {"raw": f"s3://{bucket}/raw/app/", "aggregated": f"s3://{bucket}/aggregated/app/"}
        sizes = {"part_size": "5MiB", "shard_size": "5MiB", "max_connections": 8}
        times = {"quiet_period": "1s", "poll_interval": "1s"}
        # The unique name separates the runs and assets of different tests.
        bag = load_dags(stream(bucket, **{**sizes, **times, **places, **settings}))
        assert bag.import_errors == {}
        return bag.dags[f"log_rollup_{bucket}"]

    return make


def run(dag: DAG, **arguments: Any) -> tuple[str, dict[str, list[str]]]:
    """Run a Dag; returns the state of the run, and the states of each task's instances."""
    dag_run = dag.test(**arguments)
    states: dict[str, list[str]] = {}
    for instance in dag_run.get_task_instances():
        states.setdefault(instance.task_id, []).append(str(instance.state))
    return str(dag_run.state), states


def test_second_run_leaves_a_complete_hour_unchanged(
    make_dag: MakeDag, client: S3Client, bucket: str
) -> None:
    made = make_hour(client, bucket, RAW, objects=30, encodings=("", ".gz"))
    state, states = run(make_dag(), logical_date=END)
    assert state == "success"
    assert set(states) == set(STEPS)
    assert len(states["pack_shard"]) > 1
    verify_hour(client, bucket, RAW, AGGREGATED, part_size=5 * MIB, expected=made)
    marker = client.head_object(Bucket=bucket, Key=f"{AGGREGATED}_SUCCESS")["LastModified"]
    state, states = run(make_dag(), logical_date=END + timedelta(minutes=1))
    assert (state, states["pack_shard"]) == ("success", ["skipped"])
    assert client.head_object(Bucket=bucket, Key=f"{AGGREGATED}_SUCCESS")["LastModified"] == marker


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
