"""The cap on connections, counted outside the process that opens them, and what a connection needs."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from botocore.credentials import Credentials

from dev.servers import MotoServer, RcloneServer, S3Server
from dev.tls import TlsFiles
from include.log_rollup.crc import crc64
from include.log_rollup.errors import AccessError, ConfigurationError
from include.log_rollup.storage.protocol import Downloaded, Location, Uploaded
from log_rollup_plugin.s3.connector import BucketEndpoint
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.s3.transfer import SocketTransfer, TransferSettings, TransferSide
from tests.integration.conftest import PipelineFactory
from tests.integration.fork_server import ForkServer
from tests.support.faults import Delay, Rule, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline, settings_on, stream_on
from tests.support.observe import Watch
from tests.support.raw_hours import RAW, make_hour, put_objects


@pytest.mark.parametrize("cap", [4, 10])
def test_packing_from_a_slow_server_stays_within_the_cap(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
    fork_server: ForkServer,
    cap: int,
) -> None:
    bucket = make_bucket(rclone_server)
    proxy = fault_proxy(rclone_server)
    proxy.add(Rule(on({"GetObject", "PutObject"}), Delay(0.05)))
    pipeline = pipeline_on(rclone_server, bucket, proxy.endpoint_url, max_connections=cap, shard_size="64MiB")
    made = make_hour(pipeline.client, bucket, RAW, objects=60, min_bytes=2_000, max_bytes=60_000)
    planned = pipeline.plan()
    proxy.wait_idle()
    proxy.reset_records()
    code, printed, watch = fork_server.run(
        settings_on(bucket, max_connections=cap, shard_size="64MiB"), planned, proxy.port
    )
    assert code == 0, printed
    assert watch.peak_sockets <= cap
    # All connections were busy at the same time, except the one for records.
    assert proxy.peak_in_flight >= cap - 1
    measured = json.loads(printed[0])
    assert cap - 1 <= measured["sockets"] <= cap
    pipeline.validate()
    pipeline.complete()
    assert pipeline.verify(made).marker["peak"]["sockets"] == measured["sockets"]


def test_more_threads_than_connections_wait(
    moto_server: MotoServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = make_bucket(moto_server)
    proxy = fault_proxy(moto_server)
    proxy.add(Rule(on("HeadObject"), Delay(0.05)))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", moto_server.airflow_connection_json(proxy.endpoint_url))
    hook = PooledS3Hook(aws_conn_id="aws_default", max_connections=3, control_connections=3)
    with ThreadPoolExecutor(24) as threads:
        heads = list(threads.map(lambda n: hook.head(Location(bucket, f"{n}")), range(48)))
    assert heads == [None] * 48
    assert proxy.peak_connections <= 3


def test_boto3_stays_within_its_share_on_each_of_two_hosts(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each virtual-hosted bucket is a host, and an idle connection to one host cannot serve the other."""
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    stream = stream_on("one", raw="s3://one/raw/", aggregated="s3://two/aggregated/")
    hook = PooledS3Hook.for_stream(stream, 10, 4)
    assert hook.control_connections == 2
    with pytest.raises(ConfigurationError, match="needed at least"):
        PooledS3Hook(aws_conn_id="aws_default", max_connections=1, control_connections=1).open_transfer(
            "one", "one"
        )


def test_pack_task_assumes_its_role_once(
    moto_server: MotoServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = make_bucket(moto_server)
    sts = fault_proxy(moto_server)
    connection = moto_server.airflow_connection_json(
        role_arn="arn:aws:iam::123456789012:role/log-rollup",
        service_config={"sts": {"endpoint_url": sts.endpoint_url}},
    )
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
    pipeline = Pipeline(stream_on(bucket), moto_server.client(), bucket)
    make_hour(pipeline.client, bucket, RAW, objects=3)
    planned = pipeline.plan()
    assert len(planned.shards) == 1
    sts.reset_records()
    pipeline.pack_all(planned)
    assert len(sts.exchanges) == 1


def test_packing_over_tls_checks_the_certificate(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    tls_files: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = make_bucket(rclone_server)
    proxy = fault_proxy(rclone_server, tls=tls_files)
    connection = rclone_server.airflow_connection_json(proxy.endpoint_url, verify=tls_files.ca)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
    pipeline = Pipeline(stream_on(bucket), rclone_server.client(), bucket)
    made = make_hour(pipeline.client, bucket, RAW, objects=12)
    pipeline.run()
    pipeline.verify(made)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    with pytest.raises(ConfigurationError, match="verify"):
        pipeline.plan()


def test_wrong_access_key_fails_at_once_and_is_named(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = json.loads(s3_server.airflow_connection_json()) | {
        "login": "unknown-key",
        "password": "unknown-secret",
    }
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(wrong))
    pipeline = Pipeline(stream_on(bucket), s3_server.client(), bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}a.log": b"a"})
    if isinstance(s3_server, MotoServer):
        with (
            s3_server.enforced_authentication(),
            pytest.raises(AccessError, match="the access key is not known to the server"),
        ):
            pipeline.plan()
    else:
        with pytest.raises(AccessError, match="the access key is not known to the server"):
            pipeline.plan()


def test_missing_permission_is_named(
    moto_server: MotoServer, make_bucket: BucketFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(moto_server)
    pipeline = Pipeline(stream_on(bucket), moto_server.client(), bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}a.log": b"a"})
    with moto_server.enforced_authentication("s3:ListBucket", "s3:GetObject") as (key, secret):
        login = json.loads(moto_server.airflow_connection_json()) | {"login": key, "password": secret}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(login))
        with pytest.raises(AccessError, match=r"PUT .*docs/DEPLOY.md lists the permissions"):
            pipeline.plan()
    pipeline.assert_not_complete()


def test_two_hosts_share_one_cap(
    rclone_server: RcloneServer, make_bucket: BucketFactory, fault_proxy: ProxyFactory
) -> None:
    """Each virtual-hosted bucket is a host; here each host is a proxy."""
    bucket, other = make_bucket(rclone_server), make_bucket(rclone_server)
    put_objects(rclone_server.client(), bucket, {f"raw/{n:03d}": b"x" * 300_000 for n in range(40)})
    # rclone may answer 500 when several uploads create a folder at the same time.
    put_objects(rclone_server.client(), other, {"out/raw/first": b""})
    proxies = {bucket: fault_proxy(rclone_server), other: fault_proxy(rclone_server)}
    for proxy in proxies.values():
        proxy.add(Rule(on({"GetObject", "PutObject"}), Delay(0.02)))
    endpoints = {
        name: BucketEndpoint(proxy.endpoint_url, f"/{name}/", rclone_server.region)
        for name, proxy in proxies.items()
    }
    side = TransferSide(
        endpoints, Credentials(rclone_server.access_key, rclone_server.secret_key),
        TransferSettings(False, "", timedelta(seconds=5), timedelta(seconds=5), {}),
    )  # fmt: skip
    transfer = SocketTransfer(side, 4)
    listing = rclone_server.client().list_objects_v2(Bucket=bucket, Prefix="raw/")["Contents"]
    buffers = {row["Key"]: memoryview(bytearray(row["Size"])) for row in listing}
    results: list[Downloaded | Uploaded | Exception] = []

    def on_downloaded(key: str, result: Downloaded | Exception) -> None:
        results.append(result)
        body = buffers[key]
        transfer.put(Location(other, f"out/{key}"), body, crc64(body), {}, results.append)

    with Watch(os.getpid(), [proxy.port for proxy in proxies.values()], interval_seconds=0.002) as watch:
        try:
            for row in listing:
                key = row["Key"]
                transfer.get(
                    Location(bucket, key), row["ETag"].strip('"'), buffers[key], partial(on_downloaded, key)
                )
            until = time.monotonic() + 60
            while len(results) < 2 * len(listing) and time.monotonic() < until:
                transfer.wait(1.0)
        finally:
            transfer.close()
    assert [result for result in results if isinstance(result, Exception)] == []
    assert len(results) == 2 * len(listing)
    assert 2 <= watch.peak_sockets <= 4
    assert [proxy.peak_connections <= 4 for proxy in proxies.values()] == [True, True]
