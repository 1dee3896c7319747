"""Packing through a network and an S3 that misbehave: it ends right, or it ends with the reason."""

import pytest

from include.log_rollup.errors import AccessError, InputChangedError, ProofError, TransientError
from tests.integration.conftest import PipelineFactory
from tests.integration.pipeline import RAW, Pipeline
from tests.support.faults import (
    CorruptRequest,
    CorruptResponse,
    Fault,
    Reset,
    Rule,
    Stall,
    Truncate,
    VerifyUpload,
    access_denied,
    internal_error,
    on,
    slow_down,
    wrong_etag,
)
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hours import make_hour
from tests.support.proxy import FaultProxy
from tests.support.servers import MotoServer, RcloneServer


@pytest.fixture
def proxy(rclone_server: RcloneServer, fault_proxy: ProxyFactory) -> FaultProxy:
    """A proxy before the fast server."""
    return fault_proxy(rclone_server)


@pytest.fixture
def planned(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, proxy: FaultProxy
) -> Pipeline:
    """A pipeline through the proxy, its hour made and planned without faults."""
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server), proxy.endpoint_url)
    make_hour(pipeline.client, pipeline.bucket, RAW, objects=40, min_bytes=20_000, max_bytes=400_000)
    return pipeline


PASSING: dict[str, tuple[str, Fault]] = {
    "throttled reads": ("GetObject", slow_down()),
    "throttled writes": ("PutObject", slow_down(retry_after_seconds=1)),
    "errors while reading": ("GetObject", internal_error()),
    "errors while writing": ("PutObject", internal_error(after_effect=True)),
    "resets before the answer": ("GetObject", Reset("before_response")),
    "resets within the answer": ("GetObject", Reset("mid_response")),
    "resets within an upload": ("PutObject", Reset("mid_request")),
    "resets after an upload": ("PutObject", Reset("before_response")),
    "bodies that end early": ("GetObject", Truncate()),
    "a wrong ETag now and then": ("GetObject", wrong_etag()),
}


@pytest.mark.parametrize("kind", PASSING)
def test_faults_that_pass_are_ridden_out(proxy: FaultProxy, planned: Pipeline, kind: str) -> None:
    operation, fault = PASSING[kind]
    plan = planned.plan()
    # Few parts, so every one of their uploads; many objects, so some of their downloads.
    share = 1.0 if operation == "PutObject" else 0.3
    rule = Rule(on(operation, key=r"raw/|/part-", attempt=1), fault, probability=share, seed=7)
    proxy.add(rule)
    planned.pack_all(plan)
    proxy.clear_rules()
    assert proxy.fired(rule) > 0
    planned.validate()
    planned.complete()
    planned.verify()


def test_an_s3_that_always_throttles_fails_in_bounded_time_and_is_mended_by_a_retry(
    proxy: FaultProxy, planned: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.log_rollup.pack.ATTEMPTS", 3)
    plan = planned.plan()
    proxy.add(Rule(on("GetObject", key="raw/"), slow_down()))
    with pytest.raises(TransientError, match=r"(?i)throttl.*tries"):
        planned.pack(plan.shards[0])
    proxy.clear_rules()
    planned.pack_all(plan)
    planned.validate()
    planned.complete()
    planned.verify()


def test_a_denied_read_fails_at_once(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    rule = Rule(on("GetObject", key="raw/"), access_denied())
    proxy.add(rule)
    with pytest.raises(AccessError, match="AccessDenied"):
        planned.pack(plan.shards[0])
    planned.assert_not_complete()


def test_an_etag_that_stays_wrong_is_a_changed_object(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    proxy.add(Rule(on("GetObject", key="raw/"), wrong_etag()))
    with pytest.raises(InputChangedError, match="its ETag is"):
        planned.pack(plan.shards[0])
    planned.assert_not_complete()


def test_a_body_that_stalls_is_given_up_and_fetched_again(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, proxy: FaultProxy
) -> None:
    pipeline = pipeline_on(
        rclone_server, make_bucket(rclone_server), proxy.endpoint_url,
        connect_timeout="1s", response_timeout="1s",
    )  # fmt: skip
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12, min_bytes=20_000, max_bytes=400_000)
    plan = pipeline.plan()
    rule = Rule(on("GetObject", key="raw/", attempt=1), Stall(60.0), count=2)
    proxy.add(rule)
    measured = pipeline.pack_all(plan)
    assert proxy.fired(rule) == 2
    assert sum(item.retries for item in measured) >= 2
    pipeline.validate()
    pipeline.complete()
    pipeline.verify(made)


def test_wrong_bytes_of_the_right_length_are_caught_by_the_raw_objects_own_crc(
    moto_server: MotoServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
) -> None:
    bucket = make_bucket(moto_server)
    proxy = fault_proxy(moto_server)
    pipeline = pipeline_on(moto_server, bucket, proxy.endpoint_url)
    for number in range(6):
        pipeline.client.put_object(
            Bucket=bucket, Key=f"{RAW}{number}.log", Body=b"%d" % number * 200_000, ChecksumAlgorithm="CRC32C"
        )
    plan = pipeline.plan()
    rule = Rule(on("GetObject", key="raw/", attempt=1), CorruptResponse())
    proxy.add(rule)
    measured = pipeline.pack_all(plan)
    assert proxy.fired(rule) == 6
    assert sum(item.retries for item in measured) == 6
    pipeline.validate()
    pipeline.complete()
    assert pipeline.verify().marker["verified"]["objects"] == {"crc32c": 6}


def test_wrong_bytes_from_a_store_without_crcs_are_caught_when_the_part_is_read_back(
    proxy: FaultProxy, planned: Pipeline
) -> None:
    plan = planned.plan()
    proxy.add(Rule(on("GetObject", key="raw/"), CorruptResponse(), count=1))
    planned.pack_all(plan)
    proxy.clear_rules()
    with pytest.raises(ProofError, match="MD5"):
        planned.validate()
    planned.assert_not_complete()
    planned.run()
    planned.verify()


def test_an_upload_whose_bytes_change_on_the_way_is_refused_and_sent_again(
    proxy: FaultProxy, planned: Pipeline
) -> None:
    plan = planned.plan()
    rule = Rule(on("PutObject", key="/part-", attempt=1), CorruptRequest())
    proxy.add(rule, Rule(on("PutObject", key="/part-"), VerifyUpload()))
    planned.pack_all(plan)
    assert proxy.fired(rule) > 0
    proxy.clear_rules()
    planned.validate()
    planned.complete()
    planned.verify()


def test_a_server_that_is_down_is_worth_a_retry(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    proxy.refuse_connections()
    with pytest.raises(TransientError):
        planned.pack_all(plan)
    proxy.accept_connections()
    planned.run()
    planned.verify()
