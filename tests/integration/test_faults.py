"""Packing while the network or S3 fails: the hour is packed correctly, or the step fails with the reason."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from dev.servers import MotoServer, RcloneServer, S3Server
from include.log_rollup.errors import (
    AccessError,
    InputChangedError,
    ProofError,
    RollupError,
    ThrottledError,
    TransientError,
)
from tests.integration.conftest import PipelineFactory
from tests.support.faults import (
    Answer,
    Call,
    CorruptRequest,
    CorruptResponse,
    Delay,
    Fault,
    Request,
    Reset,
    Rule,
    Stall,
    Truncate,
    VerifyUpload,
    access_denied,
    expired_token,
    internal_error,
    on,
    slow_down,
    wrong_etag,
)
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline, stream_on
from tests.support.proxy import FaultProxy
from tests.support.raw_hours import AGGREGATED, RAW, make_hour


@pytest.fixture
def proxy(rclone_server: RcloneServer, fault_proxy: ProxyFactory) -> FaultProxy:
    """A proxy in front of rclone."""
    return fault_proxy(rclone_server)


@pytest.fixture
def planned(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, proxy: FaultProxy
) -> Pipeline:
    """A pipeline through the proxy, with the raw objects of an hour, which become two parts."""
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server), proxy.endpoint_url)
    make_hour(pipeline.client, pipeline.bucket, RAW, objects=20, min_bytes=260_000, max_bytes=340_000)
    return pipeline


def test_passing_faults_of_reads_are_retried(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    faults: tuple[Fault, ...] = (
        slow_down(),
        internal_error(),
        Reset("before_response"),
        Reset("mid_response"),
        Truncate(),
        wrong_etag(),
    )
    # Each of them for the objects whose number ends with one digit.
    rules = [
        Rule(on("GetObject", key=rf"raw/.*{digit}\.log$", attempt=1), fault)
        for digit, fault in enumerate(faults)
    ]
    proxy.add(*rules)
    planned.pack_all(plan)
    proxy.clear_rules()
    assert [proxy.fired(rule) for rule in rules] == [2] * len(faults)
    planned.validate()
    planned.complete()
    planned.verify()


def test_passing_faults_of_writes_are_retried(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    # Each of the two parts suffers each of them, one after the other.
    faults: tuple[Fault, ...] = (
        Reset("mid_request"),
        Reset("before_response"),
        internal_error(after_effect=True),
        slow_down(retry_after_seconds=1),
    )
    rules = [
        Rule(on("PutObject", key="/part-", attempt=number), fault) for number, fault in enumerate(faults, 1)
    ]
    proxy.add(*rules)
    planned.pack_all(plan)
    proxy.clear_rules()
    assert [proxy.fired(rule) for rule in rules] == [2] * len(faults)
    planned.validate()
    planned.complete()
    planned.verify()


def test_constant_throttling_fails_in_time_and_a_retry_completes(
    proxy: FaultProxy, planned: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.log_rollup.limits.REQUEST_TRIES", 3)
    plan = planned.plan()
    proxy.add(Rule(on("GetObject", key="raw/"), slow_down()))
    with pytest.raises(ThrottledError, match=r"503 SlowDown.*tries"):
        planned.pack(plan.shards[0])
    proxy.clear_rules()
    planned.pack_all(plan)
    planned.validate()
    planned.complete()
    planned.verify()


def test_denied_read_fails_at_once(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    rule = Rule(on("GetObject", key="raw/"), access_denied())
    proxy.add(rule)
    with pytest.raises(AccessError, match="AccessDenied"):
        planned.pack(plan.shards[0])
    planned.assert_not_complete()


def test_etag_that_stays_wrong_is_a_changed_object(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    proxy.add(Rule(on("GetObject", key="raw/"), wrong_etag()))
    with pytest.raises(InputChangedError, match="its ETag is"):
        planned.pack(plan.shards[0])
    planned.assert_not_complete()


def test_stalled_body_is_cancelled_and_fetched_again(
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


def test_wrong_bytes_of_the_right_length_are_found_by_crc(
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


def test_wrong_bytes_without_crcs_are_found_by_reading_back(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    proxy.add(Rule(on("GetObject", key="raw/"), CorruptResponse(), count=1))
    planned.pack_all(plan)
    proxy.clear_rules()
    with pytest.raises(ProofError, match="MD5"):
        planned.validate()
    planned.assert_not_complete()
    planned.run()
    planned.verify()


def test_upload_damaged_in_transit_is_refused_and_resent(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    rule = Rule(on("PutObject", key="/part-", attempt=1), CorruptRequest())
    proxy.add(rule, Rule(on("PutObject", key="/part-"), VerifyUpload()))
    planned.pack_all(plan)
    assert proxy.fired(rule) > 0
    proxy.clear_rules()
    planned.validate()
    planned.complete()
    planned.verify()


def test_server_that_is_down_is_retryable(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    proxy.refuse_connections()
    with pytest.raises(TransientError):
        planned.pack_all(plan)
    proxy.accept_connections()
    planned.run()
    planned.verify()


MANY_KINDS: tuple[Fault, ...] = (
    slow_down(),
    slow_down(retry_after_seconds=1),
    internal_error(),
    internal_error(after_effect=True),
    Reset("request"),
    Reset("mid_request"),
    Reset("before_response"),
    Reset("mid_response"),
    Reset("after_response"),
    Truncate(),
    Stall(4.0),
    Stall(4.0, at="request"),
    Delay(4.0),
    CorruptResponse(),
    CorruptRequest(),
    wrong_etag(),
    expired_token(),
)
"""All faults that may pass. AccessDenied is not among them, because a task that gets it fails for good."""


def roll_up_despite_faults(
    server: S3Server, bucket: str, pipeline_on: PipelineFactory, proxy: FaultProxy, seed: int, objects: int
) -> None:
    """Run an hour in which each request of each step gets a fault with a probability of 5 %."""
    pipeline = pipeline_on(
        server, bucket, proxy.endpoint_url, connect_timeout="1s", response_timeout="1s", shard_size="40MiB"
    )
    made = make_hour(pipeline.client, bucket, RAW, objects=objects, min_bytes=2_000, max_bytes=100_000)
    share = 0.05 / len(MANY_KINDS)
    # Other faults on each server.
    seed += 1000 * isinstance(server, MotoServer)
    rules = [
        Rule(on(), kind, probability=share, seed=seed * 100 + number)
        for number, kind in enumerate(MANY_KINDS)
    ]
    # AWS refuses an upload that was damaged in transit; neither test server does.
    proxy.add(*rules, Rule(on("PutObject"), VerifyUpload()))
    errors = pipeline.run_as_airflow(clears=30)
    faults = sum(proxy.fired(rule) for rule in rules)
    print(f"seed {seed}: {len(proxy.exchanges)} requests, {faults} faults; {len(errors)} failed tries:")
    print(*(f"  {type(error).__name__}: {error}" for error in errors), sep="\n")
    assert faults > 0.02 * len(proxy.exchanges)
    pipeline.verify(made)
    assert pipeline.open_uploads() == []


def test_hour_completes_although_5_percent_of_requests_fail(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, proxy: FaultProxy
) -> None:
    roll_up_despite_faults(rclone_server, make_bucket(rclone_server), pipeline_on, proxy, seed=1, objects=200)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 7))
def test_ten_hours_complete_although_5_percent_fail(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory, fault_proxy: ProxyFactory, seed: int
) -> None:
    roll_up_despite_faults(s3_server, bucket, pipeline_on, fault_proxy(s3_server), seed, objects=400)


@dataclass(frozen=True)
class LastingFault:
    """A fault of every request for raw objects or parts, and the expected outcome.

    :param ends: the error of packing or validation; None if both succeed
    :param verified_upload: whether the server refuses an upload that was damaged in transit
    """

    operation: str
    fault: Fault
    ends: type[RollupError] | None = TransientError
    verified_upload: bool = False


LASTING_FAULTS: dict[str, LastingFault] = {
    "throttled reads": LastingFault("GetObject", slow_down(), ThrottledError),
    "throttled reads with Retry-After": LastingFault("GetObject", slow_down(1), ThrottledError),
    "throttled writes": LastingFault("PutObject", slow_down(), ThrottledError),
    "errors while reading": LastingFault("GetObject", internal_error()),
    "errors while writing": LastingFault("PutObject", internal_error()),
    "writes whose answer is an error": LastingFault("PutObject", internal_error(after_effect=True)),
    "reads reset at once": LastingFault("GetObject", Reset("request")),
    "reads reset before the answer": LastingFault("GetObject", Reset("before_response")),
    "reads reset midway": LastingFault("GetObject", Reset("mid_response")),
    "reads reset after the last byte": LastingFault("GetObject", Reset("after_response"), None),
    "writes reset at once": LastingFault("PutObject", Reset("request")),
    "writes reset midway": LastingFault("PutObject", Reset("mid_request")),
    "writes reset before the answer": LastingFault("PutObject", Reset("before_response")),
    "bodies that end early": LastingFault("GetObject", Truncate()),
    "wrong bytes read": LastingFault("GetObject", CorruptResponse(), ProofError),
    "wrong bytes written": LastingFault("PutObject", CorruptRequest(), ProofError),
    "wrong bytes written to a store that checks": LastingFault(
        "PutObject", CorruptRequest(), TransientError, verified_upload=True
    ),
    "wrong ETags read": LastingFault("GetObject", wrong_etag(), InputChangedError),
    "wrong ETags written": LastingFault("PutObject", wrong_etag(), ProofError),
    "credentials that stay expired": LastingFault("GetObject", expired_token()),
    "reads denied": LastingFault("GetObject", access_denied(), AccessError),
    "writes denied": LastingFault("PutObject", access_denied(), AccessError),
}
STALLS: dict[str, LastingFault] = {
    "bodies that stall": LastingFault("GetObject", Stall(600.0)),
    "first bytes that do not come": LastingFault("GetObject", Delay(600.0)),
    "writes that stall": LastingFault("PutObject", Stall(600.0, at="request")),
    "writes that are not answered": LastingFault("PutObject", Delay(600.0)),
}


def fail_and_complete(pipeline: Pipeline, proxy: FaultProxy, lasting: LastingFault) -> None:
    """Run an hour while all requests fail; it has no completion marker, and a clear completes it."""
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=8, min_bytes=2_000, max_bytes=20_000)
    plan = pipeline.plan()
    rule = Rule(on(lasting.operation, key=r"raw/|/part-"), lasting.fault)
    proxy.add(rule)
    if lasting.verified_upload:
        proxy.add(Rule(on("PutObject"), VerifyUpload()))

    def pack_and_validate() -> None:
        pipeline.pack_all(plan)
        # Validation finds what packing cannot see. Its own requests have no faults.
        proxy.clear_rules()
        pipeline.validate()

    if lasting.ends is None:
        pack_and_validate()
    else:
        with pytest.raises(lasting.ends) as failed:
            pack_and_validate()
        assert type(failed.value) is lasting.ends
        print(f"{proxy.fired(rule)} faults, then: {failed.value}")
    pipeline.assert_not_complete()
    assert proxy.fired(rule) > 0
    proxy.clear_rules()
    pipeline.run()
    pipeline.verify(made)


# The other kinds take a similar path through the code; the soak test has all kinds.
IN_THE_SUITE = (
    "throttled reads",
    "errors while writing",
    "reads reset midway",
    "reads reset after the last byte",
    "writes reset before the answer",
    "wrong bytes read",
    "wrong bytes written",
    "wrong ETags written",
    "credentials that stay expired",
    "writes denied",
)


@pytest.mark.parametrize("kind", IN_THE_SUITE)
def test_fault_of_every_request_fails_and_a_clear_completes(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr("include.log_rollup.limits.REQUEST_TRIES", 2)
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server), proxy.endpoint_url)
    fail_and_complete(pipeline, proxy, LASTING_FAULTS[kind])


def test_unanswered_writes_fail_and_a_clear_completes(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("include.log_rollup.limits.REQUEST_TRIES", 1)
    pipeline = pipeline_on(
        rclone_server,
        make_bucket(rclone_server),
        proxy.endpoint_url,
        connect_timeout="1s",
        response_timeout="1s",
    )
    fail_and_complete(pipeline, proxy, STALLS["writes that are not answered"])


@pytest.mark.soak
def test_every_fault_of_every_request_fails_in_bounded_time(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bound is the time limit of a test, 300 s. All kinds wait at the same time."""
    hours: list[tuple[str, LastingFault, Pipeline, FaultProxy]] = []
    for number, (kind, lasting) in enumerate((LASTING_FAULTS | STALLS).items()):
        proxy = fault_proxy(rclone_server)
        connection = f"kind_{number}"
        monkeypatch.setenv(
            f"AIRFLOW_CONN_{connection.upper()}", rclone_server.airflow_connection_json(proxy.endpoint_url)
        )
        bucket = make_bucket(rclone_server)
        stream = stream_on(bucket, aws_conn_id=connection, connect_timeout="1s", response_timeout="1s")
        hours.append((kind, lasting, Pipeline(stream, rclone_server.client(), bucket), proxy))

    def run(kind: str, lasting: LastingFault, pipeline: Pipeline, proxy: FaultProxy) -> None:
        began = time.monotonic()
        fail_and_complete(pipeline, proxy, lasting)
        print(f"{kind}: {time.monotonic() - began:.0f} s until it was complete")

    with ThreadPoolExecutor(len(hours)) as threads:
        for ended in [threads.submit(run, *one) for one in hours]:
            ended.result()


@pytest.mark.parametrize(
    "fault",
    [
        Reset("before_response"),
        pytest.param(internal_error(), marks=pytest.mark.soak),
        pytest.param(slow_down(), marks=pytest.mark.soak),
    ],
    ids=["resets", "errors", "throttling"],
)
def test_fault_of_every_control_request_fails_each_step(
    proxy: FaultProxy, planned: Pipeline, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    # Fewer tries than in production, to wait less.
    monkeypatch.setattr("include.log_rollup.limits.CONTROL_RETRIES", 2)
    plan = planned.plan()
    proxy.add(Rule(on(), fault))
    for step in (planned.plan, lambda: planned.pack(plan.shards[0]), planned.validate, planned.complete):
        with pytest.raises(TransientError):
            step()
    planned.assert_not_complete()
    proxy.clear_rules()
    planned.run()
    planned.verify()


def test_store_with_little_capacity_is_used_at_its_pace(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, proxy: FaultProxy
) -> None:
    pipeline = pipeline_on(
        rclone_server, make_bucket(rclone_server), proxy.endpoint_url, max_connections=16, shard_size="64MiB"
    )
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=80, min_bytes=2_000, max_bytes=20_000)
    planned = pipeline.plan()
    reads = on("GetObject", key="raw/")

    def above_capacity(request: Request) -> bool:
        in_progress = [
            e for e in proxy.exchanges if e.ended_seconds is None and e.request.key.startswith(RAW)
        ]
        return reads(request) and len(in_progress) > 3

    throttle = Rule(above_capacity, slow_down())
    proxy.add(throttle, Rule(reads, Delay(0.02)))
    measured = pipeline.pack_all(planned)
    assert proxy.fired(throttle) > 0
    assert sum(one.throttles for one in measured) > 0
    pipeline.validate()
    pipeline.complete()
    pipeline.verify(made)


def test_burst_of_throttling_waits_for_retry_after(proxy: FaultProxy, planned: Pipeline) -> None:
    plan = planned.plan()
    burst = Rule(on("GetObject", key="raw/", attempt=1), slow_down(retry_after_seconds=1), count=12)
    proxy.add(burst)
    proxy.reset_records()
    planned.pack_all(plan)
    assert proxy.fired(burst) == 12
    refused: dict[str, float] = {}
    for exchange in proxy.exchanges:
        key = exchange.request.key
        if exchange.status == 503:
            refused[key] = exchange.started_seconds
        elif key in refused:
            assert exchange.started_seconds - refused[key] >= 1.0
    planned.validate()
    planned.complete()
    planned.verify()


def test_403_midway_fails_at_once_and_keeps_finished_parts(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, proxy: FaultProxy
) -> None:
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server), proxy.endpoint_url, shard_size="64MiB")
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=80, min_bytes=200_000, max_bytes=400_000)
    (ref,) = pipeline.plan().shards
    written = threading.Event()

    def deny(_: Request) -> Answer | None:
        return access_denied() if written.is_set() else None

    # Deny reads as soon as the second part exists.
    proxy.add(
        Rule(on("PutObject", key="/part-00001"), Call(lambda _: written.set(), "after")),
        Rule(on("GetObject", key="raw/"), Call(deny)),
    )
    with pytest.raises(AccessError, match="AccessDenied"):
        pipeline.pack(ref)
    pipeline.assert_not_complete()
    assert proxy.count("GetObject", status=403) <= 12
    before = pipeline.parts()
    proxy.clear_rules()
    proxy.reset_records()
    # If the task failed before it received the answer to a part's upload, the part is written again.
    left_alone = pipeline.pack(ref).parts_left_alone
    assert 0 < left_alone <= len(before)
    again = {e.request.key for e in proxy.exchanges if e.request.operation == "PutObject"}
    assert len(again & before.keys()) == len(before) - left_alone
    pipeline.validate()
    pipeline.complete()
    pipeline.verify(made)
    assert {key: pipeline.parts()[key] for key in before} == before


def test_head_refused_without_a_reason_is_retryable(proxy: FaultProxy, planned: Pipeline) -> None:
    """The answer to a HEAD has no body, so expired credentials look like any other bad request."""
    planned.pack_all(planned.plan())
    refused = Rule(on("HeadObject"), expired_token())
    proxy.add(refused)
    with pytest.raises(TransientError, match="400"):
        planned.validate()
    proxy.clear_rules()
    planned.validate()
    planned.complete()
    planned.verify()


def test_credentials_that_expire_while_packing_are_renewed(
    moto_server: MotoServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    pipeline_on: PipelineFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The role is assumed on moto; the proxy answers that the keys used so far have expired."""
    bucket = make_bucket(moto_server)
    proxy = fault_proxy(moto_server)
    pipeline = pipeline_on(moto_server, bucket, proxy.endpoint_url)
    connection = moto_server.airflow_connection_json(
        proxy.endpoint_url,
        role_arn="arn:aws:iam::123456789012:role/log-rollup",
        # botocore renews credentials that expire within 15 minutes, so it renews these at each use.
        assume_role_kwargs={"DurationSeconds": 900},
        service_config={"sts": {"endpoint_url": moto_server.endpoint_url}},
    )
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
    made = make_hour(pipeline.client, bucket, RAW, objects=40, min_bytes=2_000, max_bytes=20_000)
    used: set[str] = set()
    expired: set[str] = set()

    def check(request: Request) -> Answer | None:
        signed = re.search(r"Credential=([^/]+)/", request.headers["authorization"])
        assert signed is not None
        assert "x-amz-security-token" in request.headers
        used.add(signed[1])
        # Half-way through reading, all keys that were used so far expire at once.
        if (
            request.operation == "GetObject"
            and request.key.startswith(RAW)
            and not expired
            and request.nth > 20
        ):
            expired.update(used)
        return expired_token() if signed[1] in expired else None

    proxy.add(Rule(on(), Call(check)))
    errors = pipeline.run_as_airflow(clears=1)
    assert expired
    assert used - expired
    assert proxy.count(status=400) > 0
    assert {type(error) for error in errors} <= {TransientError}
    pipeline.verify(made)
    assert not [key for key in pipeline.listed() if key.startswith(f"{AGGREGATED}_rollup/")]
