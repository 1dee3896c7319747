"""Hours in buckets with versioning and with Object Lock. The servers keep everything in memory until they end.

moto applies a default retention, and does not delete a version before its end, as S3. MiniStack also refuses
a DELETE without a version, which S3 answers with a delete marker.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dev.servers import MinistackServer, MotoServer, S3Server
from include.log_rollup.errors import AccessError
from include.log_rollup.steps.expire_hour import ExpiryState, expire_hour
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.s3.stream_store import store_for
from tests.integration.conftest import PipelineFactory
from tests.support.hour_on_server import Pipeline
from tests.support.raw_hours import AGGREGATED, RAW

# Two parts of at most 5 MiB. Uploads with Object Lock need a checksum.
HOUR_OF_OBJECTS = {f"{RAW}web/{number:02}.log": bytes([65 + number]) * 700_000 for number in range(10)}
LATE = {f"{RAW}zz-late.log": b"late\n"}
EXPIRE = {"after": "3d", "mode": "delete"}
WRONG_ETAG = f'"{"0" * 32}"'


def make_versioned_bucket(server: S3Server, retention: str | None = None) -> str:
    """Create a bucket with versioning, and perhaps with a default retention of a day."""
    client, name = server.client(), f"versioned-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=retention is not None)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    if retention:
        rule = {"DefaultRetention": {"Mode": retention, "Days": 1}}
        client.put_object_lock_configuration(
            Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
        )
    return name


def put(pipeline: Pipeline, objects: Mapping[str, bytes]) -> None:
    """Write raw objects with a checksum."""
    for key, body in objects.items():
        pipeline.client.put_object(Bucket=pipeline.bucket, Key=key, Body=body, ChecksumAlgorithm="CRC32")


def complete_with_a_late_object(pipeline: Pipeline) -> dict[str, bytes]:
    """Roll up an hour, and again with a late object; returns its raw objects."""
    put(pipeline, HOUR_OF_OBJECTS)
    pipeline.run()
    pipeline.verify(HOUR_OF_OBJECTS)
    put(pipeline, LATE)
    pipeline.run()
    raw = HOUR_OF_OBJECTS | LATE
    pipeline.verify(raw)
    return raw


def assert_expiry_leaves_delete_markers(pipeline: Pipeline) -> None:
    """Delete the raw objects, as log_rollup_expire does; no version is removed."""
    before = pipeline.client.list_object_versions(Bucket=pipeline.bucket, Prefix=RAW)["Versions"]
    with store_for(pipeline.stream, 4, 4) as store:
        found = expire_hour(store, pipeline.stream, pipeline.hour)
    number = len(HOUR_OF_OBJECTS | LATE)
    assert (found.state, found.objects, found.delete_markers) == (ExpiryState.EXPIRED, number, number)
    answer = pipeline.client.list_object_versions(Bucket=pipeline.bucket, Prefix=RAW)
    assert len(answer["DeleteMarkers"]) == number
    assert [version["VersionId"] for version in answer["Versions"]] == [
        version["VersionId"] for version in before
    ]
    assert pipeline.listed(RAW) == []


def old_versions(pipeline: Pipeline, prefix: str) -> list[Mapping[str, Any]]:
    """The versions of objects that are not the present ones."""
    versions = pipeline.client.list_object_versions(Bucket=pipeline.bucket, Prefix=prefix)["Versions"]
    return [version for version in versions if not version["IsLatest"]]


def test_versioned_bucket_keeps_what_reruns_replace(
    ministack_server: MinistackServer, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(ministack_server, make_versioned_bucket(ministack_server), expire_raw=EXPIRE)
    complete_with_a_late_object(pipeline)
    old = Counter(
        version["Key"].removeprefix(AGGREGATED).split("/")[0]
        for version in old_versions(pipeline, AGGREGATED)
    )
    # Marker and manifest of the first run, and the work files of both. They are billed until they are deleted.
    assert old["_SUCCESS"] == old["_manifest.jsonl.gz"] == 1
    assert old["_rollup"] >= 10
    key = next(iter(HOUR_OF_OBJECTS))
    with store_for(pipeline.stream, 2, 2) as store:
        location = pipeline.stream.raw.location(key)
        head = store.head(location)
        assert head is not None
        assert not store.delete_if(location, WRONG_ETAG)
        assert store.head(location) == head
    assert_expiry_leaves_delete_markers(pipeline)
    # The bytes are still there, behind a delete marker.
    (version,) = old_versions(pipeline, key)
    found = pipeline.client.get_object(Bucket=pipeline.bucket, Key=key, VersionId=version["VersionId"])
    assert found["Body"].read() == HOUR_OF_OBJECTS[key]


@pytest.fixture
def moto_accepts_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what moto wants with Object Lock: Content-MD5 with PUT, and a header with COPY, which has no body."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    make_client: Callable[..., Any] = PooledS3Hook.get_client_type

    def add_header(params: dict[str, Any], **_: Any) -> None:
        params["headers"]["x-amz-sdk-checksum-algorithm"] = "CRC64NVME"

    def get_client_type(hook: PooledS3Hook, *args: Any, **kwargs: Any) -> Any:
        client = make_client(hook, *args, **kwargs)
        client.meta.events.register("before-call.s3.CopyObject", add_header)
        return client

    monkeypatch.setattr(PooledS3Hook, "get_client_type", get_client_type)


def test_locked_bucket_completes_and_reruns_hours(
    moto_server: MotoServer, pipeline_on: PipelineFactory, moto_accepts_copies: None
) -> None:
    pipeline = pipeline_on(moto_server, make_versioned_bucket(moto_server, "COMPLIANCE"), expire_raw=EXPIRE)
    complete_with_a_late_object(pipeline)
    assert_expiry_leaves_delete_markers(pipeline)
    versions = pipeline.client.list_object_versions(Bucket=pipeline.bucket, Prefix=f"{AGGREGATED}part-")[
        "Versions"
    ]
    assert len(versions) >= 2
    for version in versions:
        with pytest.raises(ClientError, match="AccessDenied"):
            pipeline.client.delete_object(
                Bucket=pipeline.bucket, Key=version["Key"], VersionId=version["VersionId"]
            )


def test_ministack_refuses_to_delete_locked_work_files(
    ministack_server: MinistackServer, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(ministack_server, make_versioned_bucket(ministack_server, "GOVERNANCE"))
    put(pipeline, HOUR_OF_OBJECTS)
    with pytest.raises(AccessError, match="object protected by object lock"):
        pipeline.run()
    pipeline.assert_not_complete()
