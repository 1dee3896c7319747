"""Hours with compressed parts on rclone and MiniStack."""

from collections.abc import Mapping

import pytest

from dev.servers import S3Server
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.verify import verify_hour
from log_rollup_plugin.s3.stream_store import store_for
from tests.integration.conftest import PipelineFactory
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline
from tests.support.raw_hours import AGGREGATED, RAW, make_hour, make_small_hour, put_objects
from tests.support.verify_compressed import verify_compressed_hour


@pytest.fixture(params=[("rclone", "zstd"), ("ministack", "zstd"), ("rclone", "gzip")], ids="-".join)
def pipeline(
    request: pytest.FixtureRequest, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> Pipeline:
    """A stream with compression on a server."""
    name, compression = request.param
    server: S3Server = request.getfixturevalue(f"{name}_server")
    return pipeline_on(server, make_bucket(server), compression=compression, ensure_newline=True)


def verify(pipeline: Pipeline, raw: Mapping[str, bytes]) -> dict[str, object]:
    def read(name: str) -> bytes:
        body: bytes = pipeline.client.get_object(Bucket=pipeline.bucket, Key=AGGREGATED + name)["Body"].read()
        return body

    return verify_compressed_hour(raw, read, ensure_newline=True)


def test_hour_is_compressed_and_read_again(pipeline: Pipeline) -> None:
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=20, min_bytes=200_000, max_bytes=600_000)
    pipeline.run()
    verify(pipeline, made)
    written = pipeline.parts()
    pipeline.run()
    assert pipeline.parts() == written
    store = store_for(pipeline.stream, 2, 2)
    assert verify_hour(store, pipeline.stream, pipeline.hour, deep=True).problems == []
    for key in list(made)[::4]:
        assert b"".join(read_object(store, locate(store, pipeline.stream, key))) == made[key]


def test_late_object_and_damaged_part_are_packed_again(pipeline: Pipeline) -> None:
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=20)
    pipeline.run()
    late = {RAW + "late.log": b"late" * 100}
    put_objects(pipeline.client, pipeline.bucket, late)
    pipeline.run()
    verify(pipeline, {**made, **late})
    pipeline.client.put_object(Bucket=pipeline.bucket, Key=pipeline.part(0), Body=b"damaged")
    pipeline.run()
    verify(pipeline, {**made, **late})
