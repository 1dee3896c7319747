"""Raw objects on one server, parts and records on another: streams with ``target_conn_id``."""

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from deploy.init_airflow import _missing_connections
from dev.servers import MinistackServer, MotoServer, RcloneServer, S3Client, S3Server
from dev.tls import TlsFiles
from examples.dags import report_day
from include.log_rollup import crc
from include.log_rollup.errors import (
    ConfigurationError,
    InputChangedError,
    ProofError,
    RollupError,
    TransientError,
)
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.streams import Stream
from log_rollup_plugin.cli.main import main
from log_rollup_plugin.s3.stream_store import store_for
from tests.conftest import ROOT
from tests.integration.fork_server import ForkServer
from tests.integration.test_permissions import GROUPED, allowed, assert_least, needed, use_groups
from tests.support.faults import (
    Answer,
    Call,
    CorruptRequest,
    CorruptResponse,
    Delay,
    ReplaceHeaders,
    Request,
    Reset,
    Rule,
    VerifyUpload,
    access_denied,
    internal_error,
    on,
)
from tests.support.fixtures import ProxyFactory
from tests.support.hour_on_server import Pipeline, settings_on, stream_on
from tests.support.proxy import FaultProxy
from tests.support.raw_hours import AGGREGATED, HOUR, MIB, RAW, make_hour, put_objects
from tests.support.verify import VerifiedHour, verify_hour

LARGE = f"{RAW}large.log"


@dataclass
class TwoServers:
    """A stream between two servers, each behind a proxy that records requests.

    :param bucket: has this name on both servers, so that a request to the wrong one is noticed
    :param pipeline: its client is one of the target
    :param raw: a client of the source
    """

    bucket: str
    reads: FaultProxy
    writes: FaultProxy
    settings: Mapping[str, Any]
    pipeline: Pipeline
    raw: S3Client

    def produce(self, objects: int = 6, max_bytes: int = 20_000, **large: int) -> dict[str, bytes]:
        """Make a raw hour of small objects.

        :param large: sizes in MiB of more objects, by the beginning of their names
        """
        made = make_hour(self.raw, self.bucket, RAW, objects=objects, min_bytes=1024, max_bytes=max_bytes)
        more = {f"{RAW}{name}.log": random_bytes(size * MIB + 17) for name, size in large.items()}
        put_objects(self.raw, self.bucket, more)
        return made | more

    def verify(self, expected: Mapping[str, bytes]) -> VerifiedHour:
        """Compare the hour byte by byte, with none of the project's code."""
        return verify_hour(
            self.raw, self.bucket, RAW, AGGREGATED, part_size=self.pipeline.stream.part_size,
            expected=expected, aggregated_client=self.pipeline.client,
        )  # fmt: skip


Between = Callable[..., TwoServers]


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def requests_of(proxy: FaultProxy, *operations: str) -> list[Request]:
    found = (exchange.request for exchange in proxy.exchanges)
    return [request for request in found if not operations or request.operation in operations]


@pytest.fixture
def between(fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """Makes a stream: ``between(source, target, templates without the bucket, **settings of the stream)``."""
    with ExitStack() as stack:

        def make(
            source: S3Server, target: S3Server, templates: Mapping[str, str] | None = None, **settings: Any
        ) -> TwoServers:
            bucket = f"bucket-{uuid.uuid4().hex[:16]}"
            for server in dict.fromkeys((source, target)):
                server.create_bucket(bucket)
                stack.callback(server.delete_bucket, bucket)
            reads, writes = fault_proxy(source), fault_proxy(target)
            monkeypatch.setenv("AIRFLOW_CONN_RAW", source.airflow_connection_json(reads.endpoint_url))
            monkeypatch.setenv("AIRFLOW_CONN_PARTS", target.airflow_connection_json(writes.endpoint_url))
            places = {side: f"s3://{bucket}/{template}" for side, template in (templates or {}).items()}
            chosen = settings_on(bucket, aws_conn_id="raw", target_conn_id="parts", **places, **settings)
            pipeline = Pipeline(Stream.model_validate(chosen), target.client(), bucket)
            return TwoServers(bucket, reads, writes, chosen, pipeline, source.client())

        yield make


PAIRS = ("rclone-moto", "moto-rclone", "rclone-ministack", "ministack-moto")


@pytest.fixture(params=PAIRS)
def pair(
    request: pytest.FixtureRequest, rclone_server: RcloneServer, moto_server: MotoServer,
    ministack_server: MinistackServer, between: Between,
) -> TwoServers:  # fmt: skip
    """A stream from the first server to the second."""
    servers = {"rclone": rclone_server, "moto": moto_server, "ministack": ministack_server}
    source, target = request.param.split("-")
    return between(servers[source], servers[target])


def test_hour_and_its_reruns_are_right(pair: TwoServers) -> None:
    raw = pair.produce(objects=16, max_bytes=1_000_000, large=6, larger=11)
    pair.pipeline.run()
    assert_raw_is_only_read_and_parts_only_at_the_target(pair)
    assert pair.verify(raw).parts > 3
    before = pair.pipeline.parts()
    pair.pipeline.run()
    assert pair.pipeline.parts() == before
    late = {f"{RAW}zz-late.log": b"late\n", f"{RAW}zz-large.log": random_bytes(6 * MIB)}
    put_objects(pair.raw, pair.bucket, late)
    pair.pipeline.run()
    pair.verify(raw | late)
    assert pair.pipeline.open_uploads() == []


def assert_raw_is_only_read_and_parts_only_at_the_target(pair: TwoServers) -> None:
    with store_for(pair.pipeline.stream, 4, 4) as store:
        found = find_changed_hours(store, pair.pipeline.stream, [HOUR])
    assert (found.complete, list(found.changed), list(found.unclear)) == (1, [], [])
    reads, writes = requests_of(pair.reads), requests_of(pair.writes)
    assert {one.operation for one in reads} == {"ListObjectsV2", "GetObject", "HeadObject"}
    assert {one.key.startswith("raw/") for one in reads} == {True}
    assert {one.key.startswith("aggregated/") for one in writes if one.key} == {True}
    assert not [one for one in writes if "raw/" in one.headers.get("x-amz-copy-source", "")]


# Each command uses one side or the other, whichever server that is. The tests above have all pairs.
@pytest.mark.parametrize(
    "pair",
    ["ministack-moto", *(pytest.param(name, marks=pytest.mark.soak) for name in PAIRS[:-1])],
    indirect=True,
)
def test_commands_read_both_sides(
    pair: TwoServers, pool: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = pair.produce(large=6)
    pair.pipeline.run()
    streams = tmp_path / "streams.yaml"
    streams.write_text(yaml.safe_dump({"streams": [dict(pair.settings)]}))
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(streams))
    key, hour = f"{RAW}large.log", f"{HOUR:%Y-%m-%dT%H}"
    for command in (
        ("status", "app", f"{HOUR:%Y-%m-%d}"), ("verify", "app", hour), ("verify", "app", hour, "--deep"),
        ("cat", "app", key, "-o", str(tmp_path / "object")), ("plan", "app", hour, "--dry-run"), ("doctor",),
    ):  # fmt: skip
        assert main(command) == 0, command
    assert (tmp_path / "object").read_bytes() == raw[key]


def test_example_of_a_day_reads_the_markers_at_the_target(
    rclone_server: RcloneServer,
    moto_server: MotoServer,
    between: Between,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    two = between(rclone_server, moto_server)
    two.produce()
    two.pipeline.run()
    streams = tmp_path / "streams.yaml"
    streams.write_text(yaml.safe_dump({"streams": [dict(two.settings)]}))
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(streams))
    with pytest.raises(RuntimeError, match="not complete now") as refused:
        report_day.check.function(dag_run=SimpleNamespace(partition_key=f"{HOUR:%Y-%m-%d}"))
    missing = str(refused.value)
    assert [hour for hour in range(24) if f"T{hour:02d}:00" not in missing] == [HOUR.hour]


def test_large_object_passes_in_ranges_with_its_crc(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between
) -> None:
    two = between(rclone_server, moto_server, tags={"team": "search"}, kms_key_id="alias/logs")
    raw = two.produce(large=11)
    agrees = ReplaceHeaders({"x-amz-checksum-type": "FULL_OBJECT"})
    two.writes.add(Rule(on("CreateMultipartUpload"), agrees))
    two.pipeline.run()
    two.verify(raw)
    gets = [one for one in requests_of(two.reads, "GetObject") if one.key == LARGE]
    (etag,) = {one.headers["if-match"] for one in gets}
    spans = {f"bytes={first * 5 * MIB}-{min((first + 1) * 5 * MIB, 11 * MIB + 17) - 1}" for first in range(3)}
    assert {one.headers.get("range") for one in gets} == spans
    assert etag
    (begun,) = requests_of(two.writes, "CreateMultipartUpload")
    assert begun.headers["x-amz-checksum-algorithm"] == "CRC64NVME"
    assert begun.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert begun.headers["x-amz-tagging"] == "team=search"
    assert begun.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/logs"
    sent = requests_of(two.writes, "UploadPart")
    assert len(sent) == 3
    for one in sent:
        assert "x-amz-checksum-crc64nvme" in one.headers
        # S3 refuses them with UploadPart.
        assert not {name for name in one.headers if name.startswith(("x-amz-tagging", "x-amz-server-side"))}
    (ended,) = requests_of(two.writes, "CompleteMultipartUpload")
    assert ended.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert ended.headers["x-amz-checksum-crc64nvme"] == crc.to_header(crc.crc64(raw[LARGE]))
    assert not requests_of(two.writes, "UploadPartCopy")


def test_transient_faults_of_ranges_are_retried(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between
) -> None:
    two = between(rclone_server, moto_server)
    raw = two.produce(large=11)
    two.reads.add(Rule(on("GetObject", key="large", attempt=1), Reset("mid_response")))
    two.writes.add(Rule(on("UploadPart", attempt=1), internal_error()))
    two.pipeline.run()
    two.verify(raw)


def test_range_damaged_on_its_way_to_the_target_is_refused(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between
) -> None:
    two = between(rclone_server, moto_server)
    raw = two.produce(large=11)
    damaged = Rule(on("UploadPart", attempt=1), CorruptRequest())
    two.writes.add(damaged, Rule(on("UploadPart"), VerifyUpload()))
    two.pipeline.run()
    assert two.writes.fired(damaged) == 3
    two.verify(raw)


def test_range_damaged_on_its_way_from_the_source_is_found(
    ministack_server: MinistackServer, moto_server: MotoServer, between: Between
) -> None:
    """The source states the CRC of the whole object: the upload is not completed."""
    two = between(ministack_server, moto_server)
    raw = two.produce()
    body = random_bytes(6 * MIB)
    two.raw.put_object(Bucket=two.bucket, Key=LARGE, Body=body, ChecksumAlgorithm="CRC64NVME")
    damaged = Rule(on("GetObject", key="large"), CorruptResponse(), count=1)
    two.reads.add(damaged)
    planned = two.pipeline.plan()
    with pytest.raises(TransientError, match="the received bytes have crc64nvme"):
        two.pipeline.pack_all(planned)
    assert not requests_of(two.writes, "CompleteMultipartUpload")
    two.pipeline.run()
    two.verify(raw | {LARGE: body})
    assert two.pipeline.open_uploads() == []


def test_range_damaged_without_a_stated_crc_fails_validation(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between
) -> None:
    """rclone states no CRC, but its ETag is an MD5: the part is read back."""
    two = between(rclone_server, moto_server)
    raw = two.produce(large=6)
    two.reads.add(Rule(on("GetObject", key="large"), CorruptResponse(), count=1))
    two.pipeline.pack_all(two.pipeline.plan())
    with pytest.raises(ProofError, match="MD5"):
        two.pipeline.validate()
    two.pipeline.run()
    two.verify(raw)


def test_object_that_changes_while_it_passes_is_noticed(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between
) -> None:
    two = between(moto_server, rclone_server)
    raw = two.produce(large=11)
    changed = random_bytes(10 * MIB)

    def change(_: Request) -> None:
        put_objects(two.raw, two.bucket, {LARGE: changed})

    two.writes.add(Rule(on("UploadPart", nth=2), Call(change)))
    planned = two.pipeline.plan()
    with pytest.raises(InputChangedError, match="changed after it was planned"):
        two.pipeline.pack_all(planned)
    two.writes.clear_rules()
    two.pipeline.run()
    two.verify(raw | {LARGE: changed})


def test_upload_left_by_a_kill_is_aborted_at_completion(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between, fork_server: ForkServer
) -> None:
    two = between(rclone_server, moto_server)
    raw = two.produce(objects=4, large=11)
    dead = threading.Event()

    def held(_: Request) -> Answer:
        dead.wait(60)
        return internal_error()

    rule = Rule(on("UploadPart", nth=2), Call(held))
    two.writes.add(rule)
    process = fork_server.start(two.settings)
    try:
        while not two.writes.fired(rule):
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.kill()
        dead.set()
    two.writes.clear_rules()
    (upload,) = two.pipeline.open_uploads()
    assert upload.startswith(f"{AGGREGATED}part-0")
    two.pipeline.run()
    assert two.pipeline.open_uploads() == []
    two.verify(raw)


@pytest.mark.parametrize("cap", [4, 9])
def test_cap_holds_over_both_servers(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between, fork_server: ForkServer, cap: int
) -> None:
    two = between(rclone_server, moto_server, max_connections=cap, shard_size="64MiB")
    raw = two.produce(objects=30, large=11)
    slow = Rule(on({"GetObject", "PutObject", "UploadPart"}), Delay(0.03))
    two.reads.add(slow)
    two.writes.add(slow)
    planned = two.pipeline.plan()
    two.reads.wait_idle()
    two.writes.wait_idle()
    code, printed, watch = fork_server.run(two.settings, planned, two.reads.port, two.writes.port)
    assert code == 0, printed
    assert watch.peak_sockets <= cap
    measured = json.loads(printed[0])
    # All of them were used: two by boto3, the others by bodies.
    assert cap - 1 <= measured["sockets"] <= cap
    two.pipeline.validate()
    two.pipeline.complete()
    two.verify(raw)


def test_one_connection_under_two_names_copies_nothing(moto_server: MotoServer, between: Between) -> None:
    """Two ids may be two accounts, although the endpoint is the same."""
    two = between(moto_server, moto_server)
    raw = two.produce(large=6)
    two.pipeline.run()
    two.verify(raw)
    copies = requests_of(two.writes, "CopyObject", "UploadPartCopy")
    assert {unquote(one.headers["x-amz-copy-source"]).partition("/")[2].split("/")[0] for one in copies} == {
        "aggregated"
    }


def test_target_with_the_id_of_the_source_copies(
    moto_server: MotoServer, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = between(moto_server, moto_server)
    raw = two.produce(large=6)
    pipeline = replace(two.pipeline, stream=two.pipeline.stream.model_copy(update={"target_conn_id": "raw"}))
    pipeline.run()
    pipeline.verify(raw)
    assert LARGE in {
        unquote(one.headers["x-amz-copy-source"]).partition("/")[2]
        for one in requests_of(two.reads, "CopyObject")
    }
    assert requests_of(two.writes) == []


def test_each_policy_of_two_allows_what_is_needed_only(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between
) -> None:
    two = between(rclone_server, moto_server)
    raw = two.produce(large=6)
    two.writes.add(Rule(on("UploadPart"), access_denied()))
    with pytest.raises(RollupError):
        two.pipeline.run()
    two.writes.clear_rules()
    two.pipeline.run()
    late = {f"{RAW}zz-late.log": b"late\n"}
    put_objects(two.raw, two.bucket, late)
    two.pipeline.run()
    two.verify(raw | late)
    for name, bucket, proxy in (
        ("raw", "application-logs", two.reads), ("aggregated", "log-archive", two.writes),
    ):  # fmt: skip
        policy = json.loads((ROOT / "deploy" / f"iam-policy-{name}.json").read_text())
        assert_least(policy, needed(requests_of(proxy), bucket))


def test_each_policy_of_two_allows_groups(
    rclone_server: RcloneServer, moto_server: MotoServer, between: Between
) -> None:
    two = between(rclone_server, moto_server, templates=GROUPED)
    use_groups(two.pipeline, two.raw)
    for name, bucket, proxy in (
        ("raw", "application-logs", two.reads), ("aggregated", "log-archive", two.writes),
    ):  # fmt: skip
        policy = json.loads((ROOT / "deploy" / f"iam-policy-{name}.json").read_text())
        pairs = needed(requests_of(proxy), bucket)
        assert {pair for pair in pairs if not allowed(*pair, policy)} == set()


def test_each_side_uses_its_own_tls_settings(
    rclone_server: RcloneServer, between: Between, fault_proxy: ProxyFactory, tls_files: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Raw objects come over TLS of a private authority, which the connection of the parts doesn't trust."""
    two = between(rclone_server, rclone_server)
    secure = fault_proxy(rclone_server, tls=tls_files)

    def connect(name: str, verify: Path | None) -> None:
        fields = rclone_server.airflow_connection_json(secure.endpoint_url, verify=verify)
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", fields)

    connect("RAW", tls_files.ca)
    raw = two.produce(large=6)
    two.pipeline.run()
    two.verify(raw)
    connect("PARTS", None)
    put_objects(two.raw, two.bucket, {f"{RAW}zz-late.log": b"late\n"})
    with pytest.raises(ConfigurationError, match="not trusted"):
        two.pipeline.plan()


def test_init_names_a_missing_connection_of_the_parts(
    database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RAW", '{"conn_type": "aws"}')
    stream = stream_on("logs", aws_conn_id="raw", target_conn_id="parts")
    assert _missing_connections([stream]) == ["parts"]
