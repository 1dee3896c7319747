"""Tags, KMS key and storage class of a stream arrive with the right requests of both planes."""

from urllib.parse import parse_qsl

import pytest

from dev.servers import MotoServer
from tests.integration.conftest import PipelineFactory
from tests.support.faults import Request
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline
from tests.support.raw_hours import AGGREGATED, MIB, RAW, make_hour, put_objects

TAGS = {"team": "search + logs", "cost-center": "42", "größe": ""}
KEY = "arn:aws:kms:eu-central-1:123456789012:key/0c1d2e3f-0000-0000-0000-000000000000"
# What creates an object. UploadPartCopy and CompleteMultipartUpload refuse the headers.
CREATING = {"PutObject", "CopyObject", "CreateMultipartUpload"}


@pytest.fixture(params=["whole", "ranges"])
def requests(
    request: pytest.FixtureRequest, moto_server: MotoServer, make_bucket: BucketFactory,
    pipeline_on: PipelineFactory, fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch,
) -> list[Request]:  # fmt: skip
    """The requests of an hour with a large object, which is copied at once or in ranges; the hour is right."""
    if request.param == "ranges":
        monkeypatch.setattr("include.log_rollup.steps.packer.LARGEST_COPY_BYTES", 5 * MIB)
        monkeypatch.setattr("include.log_rollup.steps.packer.COPY_RANGE_BYTES", 5 * MIB)
    proxy = fault_proxy(moto_server)
    pipeline = pipeline_on(
        moto_server, make_bucket(moto_server), proxy.endpoint_url,
        tags=TAGS, kms_key_id=KEY, storage_class="STANDARD_IA",
    )  # fmt: skip
    raw = make_hour(pipeline.client, pipeline.bucket, RAW, objects=20)
    large = {f"{RAW}large.log": b"l" * (6 * MIB)}
    put_objects(pipeline.client, pipeline.bucket, large)
    pipeline.run()
    pipeline.verify(raw | large)
    assert_stored_as_asked(pipeline)
    return [exchange.request for exchange in proxy.exchanges if exchange.request.operation in CREATING]


def is_part(key: str) -> bool:
    return key.startswith(f"{AGGREGATED}part-")


def assert_stored_as_asked(pipeline: Pipeline) -> None:
    """The server keeps tags and class of each part, and the KMS key of each object of the hour."""
    for key in pipeline.listed(AGGREGATED):
        head = pipeline.client.head_object(Bucket=pipeline.bucket, Key=key)
        found = pipeline.client.get_object_tagging(Bucket=pipeline.bucket, Key=key)["TagSet"]
        assert head["ServerSideEncryption"] == "aws:kms", key
        assert head["SSEKMSKeyId"] == KEY, key
        assert {tag["Key"]: tag["Value"] for tag in found} == (TAGS if is_part(key) else {}), key
        assert head.get("StorageClass") == ("STANDARD_IA" if is_part(key) else None), key


def test_each_write_names_the_kms_key(requests: list[Request]) -> None:
    keys = {one.headers.get("x-amz-server-side-encryption-aws-kms-key-id") for one in requests}
    assert keys == {KEY}
    assert {one.headers.get("x-amz-server-side-encryption") for one in requests} == {"aws:kms"}


def test_parts_have_tags_and_class_and_records_have_none(requests: list[Request]) -> None:
    parts = [one for one in requests if is_part(one.key)]
    assert {one.operation for one in parts} >= {"PutObject"}
    assert len({one.operation for one in parts}) == 2
    for one in parts:
        sent = dict(parse_qsl(one.headers["x-amz-tagging"], keep_blank_values=True))
        assert sent == TAGS
        assert one.headers["x-amz-storage-class"] == "STANDARD_IA"
        replaces = one.headers.get("x-amz-tagging-directive")
        assert replaces == ("REPLACE" if one.operation == "CopyObject" else None)
    for one in requests:
        if not is_part(one.key):
            assert not {"x-amz-tagging", "x-amz-storage-class"} & one.headers.keys()


def test_rerun_with_a_kms_key_keeps_the_parts(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(moto_server, make_bucket(moto_server), kms_key_id=KEY)
    raw = make_hour(pipeline.client, pipeline.bucket, RAW, objects=20)
    pipeline.run()
    before = pipeline.parts()
    pipeline.run()
    assert pipeline.parts() == before
    pipeline.verify(raw)
