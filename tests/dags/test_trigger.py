"""The trigger behind the sensor: what is stored of it, and what it fires on."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from log_rollup_plugin.trigger import RawHourTrigger, shared_hook
from tests.integration.pipeline import HOUR, RAW
from tests.support.faults import Rule, internal_error, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hours import put_objects
from tests.support.servers import RcloneServer

FAR = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _fresh_client() -> None:
    shared_hook.cache_clear()


def trigger(bucket: str, **changed: Any) -> RawHourTrigger:
    arguments = {
        "aws_conn_id": "aws_default",
        "bucket": bucket,
        "prefix": "raw/app/",
        "hour": "2026-11-23T08:00:00Z",
        "quiet_seconds": 1.0,
        "marker": None,
        "allow_empty": False,
        "poll_seconds": 0.2,
        "until": FAR.isoformat(),
    }
    return RawHourTrigger(**{**arguments, **changed})


def first_event(of: RawHourTrigger) -> dict[str, Any]:
    """Run a trigger until it fires."""

    async def fire() -> TriggerEvent:
        return await anext(of.run())

    payload: dict[str, Any] = asyncio.run(asyncio.wait_for(fire(), 60)).payload
    return payload


@pytest.fixture
def bucket(rclone_server: RcloneServer, make_bucket: BucketFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
    return make_bucket(rclone_server)


def test_it_is_stored_as_a_handful_of_numbers_and_names() -> None:
    assert trigger("logs", marker="_DONE").serialize() == (
        "log_rollup_plugin.trigger.RawHourTrigger",
        {
            "aws_conn_id": "aws_default",
            "bucket": "logs",
            "prefix": "raw/app/",
            "hour": "2026-11-23T08:00:00Z",
            "quiet_seconds": 1.0,
            "marker": "_DONE",
            "allow_empty": False,
            "poll_seconds": 0.2,
            "until": "2100-01-01T00:00:00+00:00",
        },
    )


def test_it_fires_when_the_hour_has_been_quiet(bucket: str, rclone_server: RcloneServer) -> None:
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})
    event = first_event(trigger(bucket))
    assert event["status"] == "settled"
    assert "1 objects" in event["message"]


def test_it_fires_when_the_marker_is_there(bucket: str, rclone_server: RcloneServer) -> None:
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a", f"{RAW}_DONE": b""})
    event = first_event(trigger(bucket, marker="_DONE", quiet_seconds=3600.0))
    assert event["status"] == "settled"


def test_it_gives_up_at_its_time_with_a_message_for_the_operator(bucket: str) -> None:
    event = first_event(trigger(bucket, until=(HOUR + timedelta(hours=1)).isoformat()))
    assert event["status"] == "failed"
    assert "no objects under" in event["message"]
    assert "allow_empty" in event["message"]


def test_it_waits_network_faults_out(
    bucket: str,
    rclone_server: RcloneServer,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = fault_proxy(rclone_server)
    connection = rclone_server.airflow_connection_json(proxy.endpoint_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
    monkeypatch.setattr("log_rollup_plugin.hook.CONTROL_RETRIES", 1)
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})
    rule = Rule(on("ListObjectsV2"), internal_error(), count=2)
    proxy.add(rule)
    assert first_event(trigger(bucket))["status"] == "settled"
    assert proxy.fired(rule) == 2


def test_it_tells_at_once_what_waiting_cannot_mend(bucket: str) -> None:
    event = first_event(trigger("no-such-bucket-anywhere"))
    assert event["status"] == "failed"
    assert "NoSuchBucket" in event["message"]


def test_all_triggers_share_one_small_client(
    bucket: str,
    rclone_server: RcloneServer,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = fault_proxy(rclone_server)
    connection = rclone_server.airflow_connection_json(proxy.endpoint_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})

    async def fire_all() -> None:
        await asyncio.gather(*(anext(trigger(bucket).run()) for _ in range(20)))

    asyncio.run(asyncio.wait_for(fire_all(), 60))
    assert proxy.count("ListObjectsV2") >= 20
    assert proxy.peak_connections <= 2
