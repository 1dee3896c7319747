"""The cap on connections, seen from outside the process that is held to it."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest

from include.log_rollup.errors import AccessError, ConfigurationError
from include.log_rollup.planning import Planned
from include.log_rollup.store import Location
from log_rollup_plugin.hook import PooledS3Hook
from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory
from tests.integration.pipeline import RAW, Pipeline, stream_on
from tests.support.faults import Delay, Rule, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hours import make_hour, put_objects
from tests.support.observe import Watch
from tests.support.servers import MotoServer, RcloneServer, S3Server
from tests.support.tls import TlsFiles


def pack_outside(
    settings: dict[str, Any], planned: Planned, port: int, limit_files: int | None = None
) -> tuple[int, list[str], Watch]:
    """Pack a planned hour in another process and watch it: exit status, results, what was seen."""

    def limit() -> None:
        if limit_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit_files, limit_files))

    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.pack_process", json.dumps(settings),
         json.dumps([asdict(ref) for ref in planned.shards])],
        cwd=ROOT, env=os.environ.copy(), stdout=subprocess.PIPE, text=True, preexec_fn=limit,
    )  # fmt: skip
    with Watch(process.pid, [port], interval_seconds=0.01) as watch:
        printed = process.communicate(timeout=120)[0]
    results = [line.removeprefix("RESULT ") for line in printed.splitlines() if line.startswith("RESULT ")]
    return process.returncode, results, watch


Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings() -> Settings:
    """Settings of a stream as another process reads them."""

    def make(bucket: str, **changed: Any) -> dict[str, Any]:
        return {
            "name": "app", "raw": f"s3://{bucket}/raw/app/", "aggregated": f"s3://{bucket}/aggregated/app/",
            "start": "2026-11-01T00:00:00Z", "part_size": "5MiB", "shard_size": "64MiB", **changed,
        }  # fmt: skip

    return make


@pytest.mark.parametrize("cap", [4, 10])
def test_packing_slow_answers_never_opens_more_sockets_than_the_cap(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
    settings: Settings,
    cap: int,
) -> None:
    bucket = make_bucket(rclone_server)
    proxy = fault_proxy(rclone_server)
    proxy.add(Rule(on({"GetObject", "PutObject"}), Delay(0.05)))
    pipeline = pipeline_on(rclone_server, bucket, proxy.endpoint_url, max_connections=cap, shard_size="64MiB")
    made = make_hour(pipeline.client, bucket, RAW, objects=200, min_bytes=2_000, max_bytes=120_000)
    planned = pipeline.plan()
    proxy.wait_idle()
    proxy.reset_records()
    code, printed, watch = pack_outside(settings(bucket, max_connections=cap), planned, proxy.port)
    assert code == 0, printed
    assert watch.peak_sockets <= cap
    # It uses what it is given: all but the one that is kept for receipts were busy at once.
    assert proxy.peak_in_flight >= cap - 1
    measured = json.loads(printed[0])
    assert cap - 1 <= measured["sockets"] <= cap
    pipeline.validate()
    pipeline.complete()
    assert pipeline.verify(made).marker["peak"]["sockets"] == measured["sockets"]


def test_packing_under_a_low_open_file_limit_works_where_the_cap_fits_under_it(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, settings: Settings
) -> None:
    bucket = make_bucket(rclone_server)
    pipeline = pipeline_on(rclone_server, bucket, max_connections=8)
    made = make_hour(pipeline.client, bucket, RAW, objects=60, min_bytes=2_000, max_bytes=300_000)
    planned = pipeline.plan()
    port = int(rclone_server.endpoint_url.rpartition(":")[2])
    code, printed, watch = pack_outside(settings(bucket, max_connections=8), planned, port, limit_files=64)
    assert code == 0, printed
    assert watch.peak_open_files <= 64
    pipeline.validate()
    pipeline.complete()
    pipeline.verify(made)


def test_packing_refuses_to_start_where_the_cap_does_not_fit_under_the_limit(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, settings: Settings
) -> None:
    bucket = make_bucket(rclone_server)
    pipeline = pipeline_on(rclone_server, bucket)
    make_hour(pipeline.client, bucket, RAW, objects=3, min_bytes=2_000, max_bytes=3_000)
    planned = pipeline.plan()
    port = int(rclone_server.endpoint_url.rpartition(":")[2])
    code, printed, _ = pack_outside(settings(bucket, max_connections=250), planned, port, limit_files=128)
    assert code == 1
    assert printed[0].startswith("ResourceLimitError: the open-file limit of this process is 128")
    assert "ulimit" in printed[0]
    pipeline.assert_not_complete()


def test_more_threads_than_connections_wait_instead_of_opening_more(
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


def test_two_hosts_share_the_cap(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Virtual-hosted buckets are a host each, and idle connections to one are of no use to the other."""
    proxy = fault_proxy(rclone_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json(proxy.endpoint_url))
    stream = stream_on("one", raw="s3://one/raw/", aggregated="s3://two/aggregated/")
    hook = PooledS3Hook.for_stream(stream, 10, 4)
    assert hook.control_connections == 2
    with pytest.raises(ConfigurationError, match="needed at least"):
        PooledS3Hook(aws_conn_id="aws_default", max_connections=1, control_connections=1).open_transfer(
            "one", "one"
        )


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


def test_wrong_credentials_fail_at_once_and_say_which(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = json.loads(s3_server.airflow_connection_json()) | {"login": "nobodyknows", "password": "nothing"}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(wrong))
    pipeline = Pipeline(stream_on(bucket), s3_server.client(), bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}a.log": b"a"})
    if isinstance(s3_server, MotoServer):
        with (
            s3_server.enforced_authentication(),
            pytest.raises(AccessError, match="the access key is not known there"),
        ):
            pipeline.plan()
    else:
        with pytest.raises(AccessError, match="the access key is not known there"):
            pipeline.plan()


def test_a_permission_that_is_missing_is_named(
    moto_server: MotoServer, make_bucket: BucketFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(moto_server)
    pipeline = Pipeline(stream_on(bucket), moto_server.client(), bucket)
    put_objects(pipeline.client, bucket, {f"{RAW}a.log": b"a"})
    with moto_server.enforced_authentication("s3:ListBucket", "s3:GetObject") as (key, secret):
        login = json.loads(moto_server.airflow_connection_json()) | {"login": key, "password": secret}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(login))
        with pytest.raises(AccessError, match=r"PUT .*the README lists the permissions"):
            pipeline.plan()
    pipeline.assert_not_complete()
