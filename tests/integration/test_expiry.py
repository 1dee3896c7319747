"""Expiry of raw objects on real servers: conditional deletes, the command, and the permissions that it needs."""

import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dev.servers import MinistackServer, MotoServer, S3Server
from include.log_rollup.storage.protocol import Location, ObjectInfo
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.integration.test_permissions import EXAMPLE_BUCKET, assert_least, needed
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import settings_on
from tests.support.raw_hours import AGGREGATED, HOUR, RAW, put_objects

POLICY = json.loads((ROOT / "deploy" / "iam-policy-expire.json").read_text())
DELETING: dict[str, Any] = {"expire_raw": {"after": "3d", "mode": "delete"}}
# Few hours before the one that is rolled up.
RECENT = {"start": "2026-11-23T05:00:00Z"}
# MiniStack enforces the ETag in requests for many objects and for one, moto only in those for one, rclone in none.
ENFORCED = {"ministack": (True, True), "moto": (False, True), "rclone": (False, False)}

MakeHook = Callable[[S3Server], PooledS3Hook]


@pytest.fixture(params=sorted(ENFORCED))
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of each server in turn."""
    return str(request.param)


@pytest.fixture
def server(name: str, request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{name}_server")
    return found


@pytest.fixture
def make_hook(monkeypatch: pytest.MonkeyPatch) -> MakeHook:
    def make(server: S3Server) -> PooledS3Hook:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", server.airflow_connection_json())
        return PooledS3Hook(aws_conn_id="aws_default", max_connections=4, control_connections=4)

    return make


def objects_of(hook: PooledS3Hook, bucket: str) -> list[ObjectInfo]:
    return list(hook.list_page(Location(bucket, "a/")).objects)


def test_enforcement_of_conditions_is_tried_out(
    name: str, server: S3Server, make_bucket: BucketFactory, make_hook: MakeHook
) -> None:
    bucket = make_bucket(server)
    with closing(make_hook(server)) as hook:
        probe = Location(bucket, "probe")
        assert hook.deletes_on_condition(probe) is any(ENFORCED[name])
        sent = hook.requests["PutObject"]
        assert hook.deletes_on_condition(probe) is any(ENFORCED[name])
        assert hook.requests["PutObject"] == sent
        assert hook.head(probe) is None


def test_only_objects_with_the_expected_etag_are_deleted(
    server: S3Server, make_bucket: BucketFactory, make_hook: MakeHook
) -> None:
    bucket = make_bucket(server)
    client = server.client()
    put_objects(client, bucket, {f"a/{number:04}": b"x" for number in range(40)})
    with closing(make_hook(server)) as hook:
        enforced = hook.deletes_on_condition(Location(bucket, "probe"))
        listed = objects_of(hook, bucket)
        put_objects(client, bucket, {"a/0003": b"changed"})
        client.delete_object(Bucket=bucket, Key="a/0004")
        result = hook.delete_exactly(Location(bucket, ""), listed, conditional=True)
        if enforced:
            assert (list(result.changed), dict(result.refused)) == (["a/0003"], {})
            assert [row.key for row in objects_of(hook, bucket)] == ["a/0003"]
        else:
            assert set(result.refused) == {row.key for row in listed}
            assert len(objects_of(hook, bucket)) == 39


def test_unconditional_deletes_take_one_request(
    server: S3Server, make_bucket: BucketFactory, make_hook: MakeHook
) -> None:
    bucket = make_bucket(server)
    put_objects(server.client(), bucket, {f"a/{number}": b"x" for number in range(9)})
    with closing(make_hook(server)) as hook:
        result = hook.delete_exactly(Location(bucket, ""), objects_of(hook, bucket), conditional=False)
        assert (list(result.changed), dict(result.refused), objects_of(hook, bucket)) == ([], {}, [])
        assert hook.requests["DeleteObjects"] == 1


def test_delete_markers_of_versioned_buckets_are_counted(
    ministack_server: MinistackServer, make_bucket: BucketFactory, make_hook: MakeHook
) -> None:
    bucket = make_bucket(ministack_server)
    client = ministack_server.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_objects(client, bucket, {"a/1": b"x", "a/2": b"x"})
    with closing(make_hook(ministack_server)) as hook:
        assert hook.deletes_on_condition(Location(bucket, "probe"))
        result = hook.delete_exactly(Location(bucket, ""), objects_of(hook, bucket), conditional=True)
        assert (result.delete_markers, objects_of(hook, bucket)) == (2, [])
    versions = client.list_object_versions(Bucket=bucket, Prefix="a/")
    assert len(versions["Versions"]) == 2


# -- the command -----------------------------------------------------------------------------------------


def test_command_reports_then_deletes(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    command: RunCommand, use_streams: UseStreams,
) -> None:  # fmt: skip
    bucket = make_bucket(moto_server)
    pipeline = pipeline_on(moto_server, bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}{number}.log": b"line\n" for number in range(5)})
    pipeline.run()
    put_objects(pipeline.client, bucket, {f"{RAW}late.log": b"late\n"})
    use_streams(settings_on(bucket, expire_raw={"after": "3d"}))
    hour = f"{HOUR:%Y-%m-%dT%H}"
    result = command("expire", "app", hour, "--dry-run")
    assert result.code == 0
    assert "5 raw objects, 25 B, can be deleted" in result.text
    assert f"late: {RAW}late.log" in result.text
    assert len(pipeline.listed(RAW)) == 6

    result = command("expire", "app", hour)
    assert (result.code, len(pipeline.listed(RAW))) == (2, 6)
    assert "has mode: report, so nothing is deleted" in result.err

    use_streams(settings_on(bucket, **DELETING, **RECENT))
    result = command("expire", "app", hour, "--json")
    assert result.code == 0
    assert (result.json["objects"], result.json["deleted"], result.json["late"]) == (5, True, 1)
    assert result.json["found"]["2026-11-23T08:00:00Z"]["late_keys"] == [f"{RAW}late.log"]
    assert pipeline.listed(RAW) == [f"{RAW}late.log"]
    assert f"{AGGREGATED}_expired.json" in pipeline.listed()
    result = command("expire", "app", "--json")
    # All other hours since the start of the stream are incomplete.
    assert (result.code, result.json["objects"], result.json["expired_before"]) == (0, 0, 5)
    assert result.json["incomplete_hours"] == result.json["hours"] - 1


def test_command_refuses_what_the_streams_file_forbids(
    moto_server: MotoServer, bucket_name: str, pipeline_on: PipelineFactory,
    command: RunCommand, use_streams: UseStreams,
) -> None:  # fmt: skip
    pipeline_on(moto_server, bucket_name)
    use_streams(settings_on(bucket_name))
    result = command("expire", "app")
    assert (result.code, "has no expire_raw, so nothing is deleted" in result.err) == (2, True)
    use_streams(settings_on(bucket_name, **DELETING))
    young = f"{datetime.now(UTC) - timedelta(days=2):%Y-%m-%dT%H}"
    result = command("expire", "app", young)
    assert (result.code, "ended less than 3d ago" in result.err) == (2, True)


def test_unproven_hour_ends_the_command_with_1(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    command: RunCommand, use_streams: UseStreams,
) -> None:  # fmt: skip
    bucket = make_bucket(moto_server)
    pipeline = pipeline_on(moto_server, bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}1.log": b"line\n"})
    pipeline.run()
    pipeline.client.put_object(Bucket=bucket, Key=pipeline.part(0), Body=b"other")
    use_streams(settings_on(bucket, **DELETING))
    result = command("expire", "app", f"{HOUR:%Y-%m-%dT%H}")
    assert result.code == 1
    assert "is not proven: its ETag is" in result.text
    assert len(pipeline.listed(RAW)) == 1


@pytest.mark.parametrize("unconditional", [False, True])
def test_doctor_tries_the_deletes_of_the_expiry(
    name: str, server: S3Server, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    command: RunCommand, use_streams: UseStreams, monkeypatch: pytest.MonkeyPatch, unconditional: bool,
) -> None:  # fmt: skip
    bucket = make_bucket(server)
    pipeline = pipeline_on(server, bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}1.log": b"line\n"})
    monkeypatch.setenv("AIRFLOW_CONN_EXPIRY", server.airflow_connection_json())
    rules = DELETING["expire_raw"] | {"conn_id": "expiry", "unconditional": unconditional}
    use_streams(settings_on(bucket, expire_raw=rules))
    before = pipeline.listed("")
    result = command("doctor", "--json")
    checks = {check["check"]: check for check in result.json["checks"]}
    assert {"connection aws_default", "connection expiry"} <= set(checks)
    assert "mode: delete: deletes the raw objects" in checks["expire_raw"]["found"]
    tried, enforced = checks["expiry deletes"], any(ENFORCED[name])
    refused = not enforced and not unconditional
    assert (tried["state"], result.code) == (("fail", 1) if refused else ("ok", 0)), tried
    if refused:
        assert "the expiry deletes nothing of this stream" in tried["remedy"]
    words = "deletes only objects with the given ETag" if enforced else "'unconditional: true'"
    assert words in tried["found"]
    assert pipeline.listed("") == before


def test_policy_of_the_expiry_is_least(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory, command: RunCommand, use_streams: UseStreams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bucket, proxy = make_bucket(moto_server), fault_proxy(moto_server)
    pipeline = pipeline_on(moto_server, bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}{number}.log": b"line\n" for number in range(5)})
    pipeline.run()
    monkeypatch.setenv("AIRFLOW_CONN_EXPIRY", moto_server.airflow_connection_json(proxy.endpoint_url))
    rules = {"after": "3d", "mode": "delete", "conn_id": "expiry", "unconditional": True, "deep": True}
    use_streams(settings_on(bucket, expire_raw=rules))
    # Without conditions, the raw objects are looked at again.
    monkeypatch.setattr(PooledS3Hook, "deletes_on_condition", lambda hook, scratch: probed(hook, scratch))
    assert command("expire", "app", f"{HOUR:%Y-%m-%dT%H}").code == 0
    assert pipeline.listed(RAW) == []
    pairs = needed(exchange.request for exchange in proxy.exchanges)
    # The keys of DeleteObjects are in its body.
    pairs -= {("s3:DeleteObject", f"arn:aws:s3:::{EXAMPLE_BUCKET}/{AGGREGATED}")}
    pairs.add(("s3:DeleteObject", f"arn:aws:s3:::{EXAMPLE_BUCKET}/{RAW}0.log"))
    assert_least(POLICY, pairs)


def probed(hook: PooledS3Hook, scratch: Location) -> bool:
    """Try conditional deletes out, and don't use them."""
    hook._exact_deleter.deletes_on_condition(scratch)
    return False


def test_restored_objects_are_deleted_again_if_the_hour_is_named(
    moto_server: MotoServer, ministack_server: MinistackServer, make_bucket: BucketFactory,
    pipeline_on: PipelineFactory, command: RunCommand, use_streams: UseStreams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Raw objects and parts are on two servers; the probe is written to that of the raw objects."""
    bucket, archive = make_bucket(moto_server), make_bucket(ministack_server)
    monkeypatch.setenv("AIRFLOW_CONN_ARCHIVE", ministack_server.airflow_connection_json())
    places = {"aggregated": f"s3://{archive}/aggregated/app/", "target_conn_id": "archive"}
    pipeline = pipeline_on(moto_server, bucket, **places)
    made = {f"{RAW}{number}.log": b"line\n" for number in range(5)}
    put_objects(pipeline.client, bucket, made)
    pipeline.run()
    use_streams(settings_on(bucket, **places, **DELETING, **RECENT))
    hour = f"{HOUR:%Y-%m-%dT%H}"
    assert command("expire", "app", hour).code == 0
    assert pipeline.listed("raw/") == []
    put_objects(pipeline.client, bucket, made)
    assert command("expire", "app", "--json").json["objects"] == 0
    assert len(pipeline.listed(RAW)) == 5
    assert command("expire", "app", hour, "--json").json["objects"] == 5
    assert pipeline.listed("raw/") == []
