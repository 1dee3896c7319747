"""The trigger of wait_for_raw_hour: its serialization, when it fires, its deadline, its clients."""

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from dev.servers import RcloneServer, free_port
from include.log_rollup import limits
from include.log_rollup.errors import AccessError, ConfigurationError, ListingError, TransientError
from include.log_rollup.steps import wait_for_raw_hour
from include.log_rollup.steps.wait_for_raw_hour import RawHourCheck, RawHourStatus
from log_rollup_plugin import poller as poller_module
from log_rollup_plugin import trigger as trigger_module
from log_rollup_plugin.poller import poller_of
from log_rollup_plugin.trigger import RawHourTrigger
from tests.support.faults import Call, Delay, Rule, access_denied, internal_error, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.raw_hours import HOUR, RAW, put_objects

FAR = datetime(2100, 1, 1, tzinfo=UTC)
STORED: dict[str, Any] = {
    "aws_conn_id": "aws_default",
    "bucket": "logs",
    "prefix": "raw/app/",
    "hour": "2026-11-23T08:00:00Z",
    "quiet_seconds": 1.0,
    "marker": None,
    "allow_empty": False,
    "poll_seconds": 0.2,
    "until": FAR.isoformat(),
}


@pytest.fixture(autouse=True)
def _new_clients() -> None:
    poller_of.cache_clear()


@pytest.fixture
def bucket(rclone_server: RcloneServer, make_bucket: BucketFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
    return make_bucket(rclone_server)


def trigger(bucket: str = "logs", **changed: Any) -> RawHourTrigger:
    return RawHourTrigger(**{**STORED, "bucket": bucket, **changed})


def wait_times(seconds: float, whole: float = 3600.0) -> dict[str, str]:
    """Return the times of a wait that takes ``whole`` seconds and ends in ``seconds``."""
    now = datetime.now(UTC)
    end = now + timedelta(seconds=seconds)
    since = end - timedelta(seconds=whole)
    return {"until": end.isoformat(), "since": since.isoformat(), "deadline": end.isoformat()}


def first_event(of: RawHourTrigger) -> dict[str, Any]:
    """Run a trigger until it fires."""

    async def fire() -> TriggerEvent:
        return await anext(of.run())

    payload: dict[str, Any] = asyncio.run(asyncio.wait_for(fire(), 60)).payload
    return payload


def set_results(monkeypatch: pytest.MonkeyPatch, *results: RawHourCheck | Exception) -> list[object]:
    """Let checks return these results in turn, the last one repeatedly; returns the clients they used."""
    clients: list[object] = []

    def check(hook: object, *_: Any) -> RawHourCheck:
        clients.append(hook)
        result = results[min(len(clients), len(results)) - 1]
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(poller_module, "check_raw_hour", check)
    return clients


def check_result(state: RawHourStatus, now: datetime | None = None) -> RawHourCheck:
    return RawHourCheck(state, 3, 300, HOUR, now or datetime.now(UTC))


# -- serialization -------------------------------------------------------------------------------------


def test_trigger_serializes_exactly() -> None:
    times = {"since": "2026-11-23T09:00:00+00:00", "deadline": "2026-11-23T15:00:00+00:00"}
    where = {"template": "s3://logs/raw/{service}/%Y%m%d/%H/", "timezone": "Europe/Berlin"}
    assert trigger(marker="_DONE", **times, **where).serialize() == (
        "log_rollup_plugin.trigger.RawHourTrigger",
        {**STORED, "marker": "_DONE", **times, **where},
    )


def test_trigger_stored_by_an_earlier_version_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    set_results(monkeypatch, TransientError("no route to host"))
    past = {**STORED, "until": (datetime.now(UTC) - timedelta(minutes=1)).isoformat()}
    event = first_event(RawHourTrigger(**past))
    assert event["status"] == "failed"
    assert "no route to host" in event["message"]


# -- when it fires -------------------------------------------------------------------------------------


def test_trigger_fires_when_the_hour_is_quiet(bucket: str, rclone_server: RcloneServer) -> None:
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})
    event = first_event(trigger(bucket))
    assert event["status"] == "settled"
    assert "1 objects" in event["message"]


def test_trigger_fires_when_the_ready_object_exists(bucket: str, rclone_server: RcloneServer) -> None:
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a", f"{RAW}_DONE": b""})
    event = first_event(trigger(bucket, marker="_DONE", quiet_seconds=3600.0))
    assert event["status"] == "settled"


def test_empty_hour_fails_at_the_deadline_with_a_remedy(bucket: str) -> None:
    event = first_event(trigger(bucket, **wait_times(0.5, 7200)))
    assert event["status"] == "failed"
    for part in ("no objects under", "after 2h", "allow_empty"):
        assert part in event["message"]


def test_missing_bucket_fails_at_once(bucket: str) -> None:
    event = first_event(trigger("no-such-bucket-anywhere"))
    assert event["status"] == "failed"
    assert "NoSuchBucket" in event["message"]


def test_contradictory_listing_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = set_results(monkeypatch, ListingError("truncated, but without a token"))
    assert first_event(trigger()) == {"status": "failed", "message": "truncated, but without a token"}
    assert len(clients) == 1


# -- every wait ends -----------------------------------------------------------------------------------


def test_unreachable_store_fails_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"endpoint_url": f"http://127.0.0.1:{free_port()}", "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    monkeypatch.setattr("include.log_rollup.limits.CONTROL_RETRIES", 1)
    event = first_event(trigger(**wait_times(1.0, 6 * 3600)))
    assert event["status"] == "failed"
    for part in (
        "hour 2026-11-23T08:00:00Z",
        "S3 is unreachable",
        "s3://logs/raw/app/20261123/08/",
        "after 6h",
        "Could not connect",
        "'aws_default'",
        "clear this task",
    ):
        assert part in event["message"]


def test_stalled_listing_does_not_delay_the_deadline(
    bucket: str, rclone_server: RcloneServer, fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    monkeypatch.setattr(limits, "LAST_POLL_LISTING_SECONDS", 1.0)
    monkeypatch.setattr("include.log_rollup.limits.CONTROL_RETRIES", 1)
    proxy.add(Rule(on("ListObjectsV2"), Delay(600), count=100))
    event = first_event(trigger(bucket, **wait_times(0.5)))
    assert event["status"] == "failed"
    assert "the listing did not end within 1s" in event["message"]


def test_store_clock_decides_while_the_store_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    # This machine's clock is an hour ahead: by it the deadline has passed, by the store's clock it has not.
    times = wait_times(-3600.0, 7200.0)
    times["until"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    set_results(
        monkeypatch,
        check_result(RawHourStatus.BEING_WRITTEN),
        check_result(RawHourStatus.BEING_WRITTEN),
        check_result(RawHourStatus.SETTLED),
    )
    assert first_event(trigger(**times))["status"] == "settled"


def test_long_poll_interval_does_not_exceed_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    set_results(monkeypatch, check_result(RawHourStatus.BEING_WRITTEN, FAR))
    event = first_event(trigger(poll_seconds=3600.0, **wait_times(0.5)))
    assert "not settled under" in event["message"]


# -- transient errors are retried ----------------------------------------------------------------------


def test_network_faults_are_retried(
    bucket: str, rclone_server: RcloneServer, fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    monkeypatch.setattr("include.log_rollup.limits.CONTROL_RETRIES", 1)
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})
    rule = Rule(on("ListObjectsV2"), internal_error(), count=2)
    proxy.add(rule)
    assert first_event(trigger(bucket))["status"] == "settled"
    assert proxy.fired(rule) == 2


NOWHERE = {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}


@pytest.mark.parametrize("old", [{"password": "an-old-secret"}, {"extra": NOWHERE}, None])
def test_changed_connection_reaches_waiting_hours(
    bucket: str, rclone_server: RcloneServer, monkeypatch: pytest.MonkeyPatch, old: dict[str, Any] | None
) -> None:
    """The keys are rotated, the endpoint changes, or the connection is deleted and created again."""
    new = rclone_server.airflow_connection_json()
    if old is None:
        monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    else:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({**json.loads(new), **old}))
    monkeypatch.setattr("include.log_rollup.limits.CONTROL_RETRIES", 1)
    monkeypatch.setattr(limits, "POLL_FAILED_CLIENT_SECONDS", 0.0)
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})
    failures = 0

    def check(*arguments: Any) -> RawHourCheck:
        nonlocal failures
        try:
            return wait_for_raw_hour.check_raw_hour(*arguments)
        except Exception:
            failures += 1
            if failures == 3:
                monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", new)
            raise

    monkeypatch.setattr(poller_module, "check_raw_hour", check)
    assert first_event(trigger(bucket))["status"] == "settled"
    assert failures == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [AccessError("403"), ConfigurationError("no CA"), RuntimeError("no such id")]
)
def test_lasting_refusal_fails_after_a_limited_time(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(limits, "POLL_REFUSED_SECONDS", 1.0)
    monkeypatch.setattr(limits, "POLL_FAILED_CLIENT_SECONDS", 0.0)
    clients = set_results(monkeypatch, error)
    event = first_event(trigger())
    assert event["status"] == "failed"
    for part in ("hour 2026-11-23T08:00:00Z", str(error), "from new clients too", "'aws_default'"):
        assert part in event["message"]
    assert len(set(map(id, clients))) == len(clients) > 2


def test_refusal_that_ends_does_not_count_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POLL_REFUSED_SECONDS", 0.0)
    monkeypatch.setattr(trigger_module, "JITTER", 0.0)
    set_results(
        monkeypatch,
        TransientError("reset"),
        check_result(RawHourStatus.BEING_WRITTEN),
        check_result(RawHourStatus.SETTLED),
    )
    assert first_event(trigger())["status"] == "settled"


# -- clients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_seconds", [600.0, 0.0])
def test_all_triggers_share_two_connections(
    bucket: str,
    rclone_server: RcloneServer,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
    client_seconds: float,
) -> None:
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    monkeypatch.setattr(limits, "POLL_CLIENT_SECONDS", client_seconds)
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})

    async def fire_all() -> None:
        await asyncio.gather(*(anext(trigger(bucket).run()) for _ in range(8)))

    asyncio.run(asyncio.wait_for(fire_all(), 60))
    assert proxy.count("ListObjectsV2") >= 8
    assert proxy.peak_connections <= limits.POLL_THREADS
    assert (proxy.accepted_connections > limits.POLL_THREADS) is (client_seconds == 0.0)


def test_groups_are_listed_over_a_few_connections(
    bucket: str, rclone_server: RcloneServer, fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    proxy.add(Rule(on("ListObjectsV2"), Delay(0.05)))
    groups = 40
    put_objects(
        rclone_server.client(), bucket, {f"raw/g{n:02d}/20261123/08/a.log": b"a" for n in range(groups)}
    )
    template = f"s3://{bucket}/raw/{{service}}/%Y%m%d/%H/"
    assert first_event(trigger(bucket, template=template))["status"] == "settled"
    assert proxy.count("ListObjectsV2") % (1 + groups) == 0
    assert 1 < proxy.peak_connections <= limits.POLL_CONNECTIONS


def test_clients_that_failed_are_renewed(
    bucket: str, rclone_server: RcloneServer, fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    monkeypatch.setattr(limits, "POLL_FAILED_CLIENT_SECONDS", 0.0)
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})
    proxy.add(Rule(on("ListObjectsV2"), access_denied(), count=3))
    assert first_event(trigger(bucket))["status"] == "settled"
    assert proxy.accepted_connections == 4
    assert proxy.peak_connections == 1


def test_old_clients_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POLL_CLIENT_SECONDS", 0.0)
    clients = set_results(
        monkeypatch,
        check_result(RawHourStatus.BEING_WRITTEN),
        check_result(RawHourStatus.BEING_WRITTEN),
        check_result(RawHourStatus.SETTLED),
    )
    assert first_event(trigger())["status"] == "settled"
    assert len(set(map(id, clients))) == 3


def test_stalled_endpoint_does_not_delay_other_endpoints(
    bucket: str, rclone_server: RcloneServer, fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_STALLED", rclone_server.airflow_connection_json(proxy.endpoint_url))
    put_objects(rclone_server.client(), bucket, {f"{RAW}a.log": b"a"})
    arrived = threading.Semaphore(0)
    proxy.add(Rule(on("ListObjectsV2"), Call(lambda _: arrived.release()), count=100))
    proxy.add(Rule(on("ListObjectsV2"), Delay(600), count=100))

    async def fire(conn_id: str) -> TriggerEvent:
        return await anext(trigger(bucket, aws_conn_id=conn_id).run())

    async def fire_while_others_stall() -> TriggerEvent:
        stalled = [asyncio.create_task(fire("stalled")) for _ in range(4)]
        for _ in range(limits.POLL_THREADS):
            await asyncio.to_thread(arrived.acquire)
        event = await fire("aws_default")
        for task in stalled:
            task.cancel()
        return event

    assert asyncio.run(asyncio.wait_for(fire_while_others_stall(), 60)).payload["status"] == "settled"


def test_trigger_fires_for_an_hour_that_the_clocks_empty(bucket: str) -> None:
    event = first_event(
        trigger(
            bucket,
            hour="2026-10-25T00:00:00Z",
            template=f"s3://{bucket}/raw/app/%Y%m%d/%H/",
            timezone="Europe/Berlin",
        )
    )
    assert event["status"] == "settled"
    assert "the clocks of Europe/Berlin are set back" in event["message"]
