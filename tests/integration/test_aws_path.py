"""The requests to a store that compares CRCs and honours conditions, as AWS and MiniStack do.

If the store has compared the CRC of a part, validation does not read the part back. Each copy or delete that
depends on an ETag states it as a condition.
"""

from collections.abc import Mapping

import pytest

from dev.servers import MinistackServer, S3Server
from include.log_rollup.errors import InputChangedError, NotFoundError, ProofError
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.integration.conftest import PipelineFactory
from tests.support.faults import Call, CorruptRequest, ReplaceHeaders, Request, Rule, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline
from tests.support.proxy import FaultProxy
from tests.support.raw_hours import AGGREGATED, MIB, RAW, make_hour

STORED = "stored-crc64nvme"
BIG = f"{RAW}big.log"


@pytest.fixture
def proxy(ministack_server: MinistackServer, fault_proxy: ProxyFactory) -> FaultProxy:
    """The proxy before MiniStack that records the pipeline's requests."""
    return fault_proxy(ministack_server)


@pytest.fixture
def pipeline(
    ministack_server: MinistackServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    proxy: FaultProxy,
) -> Pipeline:
    """A pipeline on MiniStack."""
    return pipeline_on(ministack_server, make_bucket(ministack_server), proxy.endpoint_url)


def put_as_on_aws(pipeline: Pipeline, objects: Mapping[str, bytes], algorithm: str = "CRC64NVME") -> None:
    """Write raw objects with a stored CRC. S3 itself computes one for each upload without a CRC."""
    for key, body in objects.items():
        pipeline.client.put_object(Bucket=pipeline.bucket, Key=key, Body=body, ChecksumAlgorithm=algorithm)


def raw_hour(pipeline: Pipeline, objects: int = 9) -> dict[str, bytes]:
    """Write the raw objects of an hour with stored CRCs; they become two parts."""
    written = {
        f"{RAW}{number:02d}.log": b"%02d line of a log\n" % number * 40_000 for number in range(objects)
    }
    put_as_on_aws(pipeline, written)
    return written


def part_keys(proxy: FaultProxy, operation: str, status: int | None = None) -> list[str]:
    """The parts in requests of an operation, in the order of the requests.

    :param status: only requests with this status
    """
    return [
        exchange.request.key
        for exchange in proxy.exchanges
        if exchange.request.operation == operation
        and "/part-" in exchange.request.key
        and status in (None, exchange.status)
    ]


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32"])
def test_no_part_is_read_back(pipeline: Pipeline, proxy: FaultProxy, algorithm: str) -> None:
    made = {f"{RAW}{number:02d}.log": b"%02d\n" % number * 150_000 for number in range(14)}
    put_as_on_aws(pipeline, made, algorithm)
    pipeline.run()
    facts = pipeline.verify(made)
    assert facts.parts > 1
    assert facts.marker["verified"]["parts"] == {STORED: facts.parts}
    assert facts.marker["verified"]["objects"] == {algorithm.lower(): len(made)}
    assert part_keys(proxy, "GetObject") == []


def test_objects_without_a_crc_are_proven_by_their_etag(pipeline: Pipeline) -> None:
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    pipeline.run()
    assert pipeline.verify(made).marker["verified"]["objects"] == {"etag-md5": 12}


def test_rerun_of_a_complete_hour_touches_no_part(pipeline: Pipeline, proxy: FaultProxy) -> None:
    made = raw_hour(pipeline)
    pipeline.run()
    before = pipeline.client.head_object(Bucket=pipeline.bucket, Key=f"{AGGREGATED}_SUCCESS")
    proxy.reset_records()
    assert pipeline.plan().unchanged
    pipeline.validate()
    pipeline.complete()
    for operation in ("GetObject", "PutObject", "CopyObject", "DeleteObject"):
        assert part_keys(proxy, operation) == []
    after = pipeline.client.head_object(Bucket=pipeline.bucket, Key=f"{AGGREGATED}_SUCCESS")
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])
    pipeline.verify(made)


def test_late_object_reads_no_finished_part(pipeline: Pipeline, proxy: FaultProxy) -> None:
    made = raw_hour(pipeline)
    pipeline.run()
    finished = pipeline.parts()
    late = {f"{RAW}zz-late.log": b"late\n" * 100}
    put_as_on_aws(pipeline, late)
    proxy.reset_records()
    pipeline.run()
    facts = pipeline.verify(made | late)
    assert part_keys(proxy, "GetObject") == []
    assert len(part_keys(proxy, "PutObject")) == 1
    kept = finished.items() & pipeline.parts().items()
    assert len(kept) == facts.parts - 1
    assert facts.marker["verified"]["parts"] == {STORED: facts.parts}


def test_part_damaged_in_transit_is_refused_and_resent(pipeline: Pipeline, proxy: FaultProxy) -> None:
    made = raw_hour(pipeline)
    proxy.add(Rule(on("PutObject", key="/part-"), CorruptRequest(), count=1))
    pipeline.run()
    (refused,) = part_keys(proxy, "PutObject", status=400)
    assert part_keys(proxy, "PutObject", status=200).count(refused) == 1
    assert part_keys(proxy, "GetObject") == []
    pipeline.verify(made)


def test_part_with_another_stored_crc_is_not_proven(pipeline: Pipeline, proxy: FaultProxy) -> None:
    made = raw_hour(pipeline)
    pipeline.pack_all(pipeline.plan())
    other = Rule(
        on("HeadObject", key="/part-00000"), ReplaceHeaders({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="})
    )
    proxy.add(other)
    with pytest.raises(ProofError, match=r"part-00000.*the store has CRC64NVME 0"):
        pipeline.validate()
    assert proxy.fired(other)
    pipeline.assert_not_complete()
    proxy.clear_rules()
    pipeline.run()
    pipeline.verify(made)


@pytest.mark.parametrize("complete", [False, True], ids=["packed", "complete"])
def test_overwritten_part_is_found_without_reading_it(
    pipeline: Pipeline, proxy: FaultProxy, complete: bool
) -> None:
    made = raw_hour(pipeline)
    pipeline.pack_all(pipeline.plan())
    if complete:
        pipeline.validate()
        pipeline.complete()
    key = min(pipeline.parts())
    size = pipeline.client.head_object(Bucket=pipeline.bucket, Key=key)["ContentLength"]
    put_as_on_aws(pipeline, {key: bytes(size)})
    with pytest.raises(ProofError, match=key.rpartition("/")[2]):
        pipeline.validate()
    pipeline.assert_not_complete()
    assert part_keys(proxy, "GetObject") == []
    proxy.reset_records()
    pipeline.run()
    assert len(part_keys(proxy, "PutObject", status=200)) == 1
    pipeline.verify(made)


def test_copied_part_is_proven_without_reading_it(pipeline: Pipeline, proxy: FaultProxy) -> None:
    made = raw_hour(pipeline, objects=3) | {BIG: b"b" * (6 * MIB), f"{RAW}big.log.gz": b"z" * (7 * MIB)}
    put_as_on_aws(pipeline, {key: made[key] for key in made if "big" in key})
    pipeline.run()
    facts = pipeline.verify(made)
    assert len(part_keys(proxy, "CopyObject", status=200)) == 2
    read = {exchange.request.key for exchange in proxy.exchanges if exchange.request.operation == "GetObject"}
    assert BIG not in read
    assert part_keys(proxy, "GetObject") == []
    assert facts.marker["verified"]["parts"] == {STORED: facts.parts}
    assert facts.marker["verified"]["objects"] == {"crc64nvme": 5}


def test_copy_without_a_crc_of_its_own_is_read_back(pipeline: Pipeline, proxy: FaultProxy) -> None:
    made = raw_hour(pipeline, objects=3) | {BIG: b"b" * (6 * MIB)}
    put_as_on_aws(pipeline, {BIG: made[BIG]}, "CRC32")
    pipeline.run()
    facts = pipeline.verify(made)
    assert facts.marker["verified"]["parts"] == {STORED: facts.parts - 1, "read-back": 1}
    assert set(part_keys(proxy, "GetObject")) == set(part_keys(proxy, "CopyObject"))


def test_copy_in_ranges_is_read_back(
    pipeline: Pipeline, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.log_rollup.steps.packer.LARGEST_COPY_BYTES", 5 * MIB)
    monkeypatch.setattr("include.log_rollup.steps.packer.COPY_RANGE_BYTES", 5 * MIB)
    made = raw_hour(pipeline, objects=3) | {BIG: b"range\n" * (2 * MIB)}
    put_as_on_aws(pipeline, {BIG: made[BIG]})
    pipeline.run()
    facts = pipeline.verify(made)
    assert len(part_keys(proxy, "UploadPartCopy", status=200)) == 3
    # The CRC of a multipart upload is the CRC of its parts' CRCs: it proves nothing about the whole.
    assert facts.marker["verified"]["parts"] == {STORED: facts.parts - 1, "read-back": 1}
    assert pipeline.open_uploads() == []


@pytest.mark.parametrize(
    ("key", "operation"), [(f"{RAW}01.log", "GetObject"), (BIG, "CopyObject")], ids=["read", "copied"]
)
def test_changed_object_is_refused_by_its_etag(
    pipeline: Pipeline, proxy: FaultProxy, key: str, operation: str
) -> None:
    made = raw_hour(pipeline, objects=3) | {BIG: b"b" * (6 * MIB)}
    put_as_on_aws(pipeline, {BIG: made[BIG]})
    planned = pipeline.plan()
    made[key] = made[key].swapcase()
    put_as_on_aws(pipeline, {key: made[key]})
    with pytest.raises(InputChangedError, match=key.rpartition("/")[2]):
        pipeline.pack_all(planned)
    assert proxy.count(operation, status=412) >= 1
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify(made)


def test_copy_source_changed_before_the_copy_is_refused(pipeline: Pipeline, proxy: FaultProxy) -> None:
    made = raw_hour(pipeline, objects=2) | {BIG: b"b" * (6 * MIB)}
    put_as_on_aws(pipeline, {BIG: made[BIG]})
    planned = pipeline.plan()
    made[BIG] = b"B" * (6 * MIB)

    def change(_: Request) -> None:
        put_as_on_aws(pipeline, {BIG: made[BIG]})

    proxy.add(Rule(on("CopyObject", key="/part-"), Call(change), count=1))
    with pytest.raises(InputChangedError, match=r"big\.log"):
        pipeline.pack_all(planned)
    pipeline.run()
    pipeline.verify(made)


def test_claim_is_deleted_on_condition(pipeline: Pipeline, proxy: FaultProxy) -> None:
    raw_hour(pipeline, objects=2)
    pipeline.run()
    (removal,) = (
        exchange
        for exchange in proxy.exchanges
        if exchange.request.operation == "DeleteObject" and exchange.request.key.endswith("/claim.json")
    )
    assert (removal.status, "if-match" in removal.request.headers) == (204, True)


def hook_on(server: S3Server, bucket: str, pipeline_on: PipelineFactory) -> PooledS3Hook:
    """The object store that the steps use."""
    return PooledS3Hook.for_stream(pipeline_on(server, bucket).stream, 4, 4)


@pytest.mark.parametrize(("name", "trusted"), [("ministack", True), ("moto", False), ("rclone", False)])
def test_only_a_store_that_refuses_a_wrong_crc_is_trusted(
    request: pytest.FixtureRequest, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    name: str, trusted: bool,
) -> None:  # fmt: skip
    server: S3Server = request.getfixturevalue(f"{name}_server")
    bucket = make_bucket(server)
    scratch = Location(bucket, "work/crc-probe")
    assert hook_on(server, bucket, pipeline_on).refuses_wrong_crc(scratch) is trusted
    assert server.client().list_objects_v2(Bucket=bucket).get("Contents", []) == []


@pytest.mark.parametrize("name", ["ministack", "moto"])
def test_changed_record_survives_a_conditional_delete(
    request: pytest.FixtureRequest, make_bucket: BucketFactory, pipeline_on: PipelineFactory, name: str
) -> None:
    server: S3Server = request.getfixturevalue(f"{name}_server")
    bucket = make_bucket(server)
    store, record = hook_on(server, bucket, pipeline_on), Location(bucket, "work/claim.json")
    old = store.write(record, b"old", "application/json")
    new = store.write(record, b"new", "application/json")
    assert not store.delete_if(record, old)
    found = store.read(record)
    assert found is not None
    assert found.body == b"new"
    assert store.delete_if(record, new)
    assert store.read(record) is None
    assert store.delete_if(record, new)


@pytest.mark.parametrize("name", ["ministack", "moto", "rclone"])
def test_record_is_published_only_while_its_source_exists(
    request: pytest.FixtureRequest, make_bucket: BucketFactory, pipeline_on: PipelineFactory, name: str
) -> None:
    server: S3Server = request.getfixturevalue(f"{name}_server")
    bucket = make_bucket(server)
    store = hook_on(server, bucket, pipeline_on)
    staged, target = Location(bucket, "work/a b+c/staged.json"), Location(bucket, "hour/_SUCCESS")
    store.write(staged, b'{"plan": 1}', "application/json")
    store.publish(staged, target)
    head = server.client().head_object(Bucket=bucket, Key=target.key)
    published = store.read(target)
    assert published is not None
    assert (published.body, head["ContentType"]) == (b'{"plan": 1}', "application/json")
    store.delete(bucket, [staged.key])
    with pytest.raises(NotFoundError):
        store.publish(staged, target)
    assert store.read(target) == published
