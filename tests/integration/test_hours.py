"""Whole hours on rclone and MiniStack, compared byte by byte by code that shares nothing with the pipeline.

rclone checks no CRCs and no conditions, so every part is read back; MiniStack checks both, as AWS does. Tests in
which the server makes no difference run on one of them. Crashes and faults run on moto too.
"""

import pytest

from dev.servers import MinistackServer, MotoServer, RcloneServer, S3Server
from include.log_rollup.errors import (
    EmptyHourError,
    InputChangedError,
    MissingBucketError,
    ProofError,
    SupersededError,
    UnsupportedInputError,
    VanishedInputError,
)
from tests.integration.conftest import PipelineFactory
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline
from tests.support.raw_hours import (
    AGGREGATED,
    MIB,
    ODD_NAMES_BEYOND_FILES,
    RAW,
    make_hour,
    make_small_hour,
    odd_hour,
    put_objects,
)
from tests.support.verify import verify_hour


@pytest.fixture(params=["rclone", "ministack"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server in turn."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def rclone_pipeline(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> Pipeline:
    """A pipeline on rclone."""
    return pipeline_on(rclone_server, make_bucket(rclone_server))


@pytest.fixture
def ministack_pipeline(
    ministack_server: MinistackServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> Pipeline:
    """A pipeline on MiniStack."""
    return pipeline_on(ministack_server, make_bucket(ministack_server))


def test_plain_and_compressed_objects_get_separate_parts(pipeline: Pipeline) -> None:
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=20, encodings=("", "", "", ".gz"))
    pipeline.run()
    facts = pipeline.verify(made)
    assert facts.objects == 20
    extensions = {key.partition(".log")[2] for key in pipeline.listed() if "/part-" in key}
    assert extensions == {"", ".gz"}


def test_objects_with_odd_keys_are_packed(pipeline: Pipeline) -> None:
    made = odd_hour(RAW)
    put_objects(pipeline.client, pipeline.bucket, made)
    pipeline.run()
    pipeline.verify(made)


def test_keys_that_no_file_system_can_hold_are_packed(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(moto_server, make_bucket(moto_server))
    # Two keys have a step that begins with a dot, so they are hidden.
    made = odd_hour(RAW, ODD_NAMES_BEYOND_FILES)
    put_objects(pipeline.client, pipeline.bucket, made)
    pipeline.run()
    assert pipeline.verify(made).hidden == 2


def test_hidden_objects_are_left_out_and_empty_ones_are_not(rclone_pipeline: Pipeline) -> None:
    made = {
        f"{RAW}a.log": b"",
        f"{RAW}b.log": b"something\n",
        f"{RAW}c.log": b"",
        f"{RAW}_temporary/d.log": b"hidden\n",
        f"{RAW}.e.log": b"hidden\n",
    }
    put_objects(rclone_pipeline.client, rclone_pipeline.bucket, made)
    rclone_pipeline.run()
    facts = rclone_pipeline.verify(made)
    assert (facts.objects, facts.hidden, facts.bytes_out) == (3, 2, 10)
    assert facts.marker["left_out"]["hidden"] == 2


def test_names_that_continue_a_step_are_not_hidden(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    bucket = make_bucket(rclone_server)
    pipeline = pipeline_on(rclone_server, bucket, raw=f"s3://{bucket}/raw/app/%Y%m%d/%H")
    base = RAW.removesuffix("/")
    made = {
        f"{base}{name}": name.encode() for name in ("_host.log", ".123.gz", "-a.log", "/.b.log", "/_c/d.log")
    }
    put_objects(pipeline.client, bucket, made)
    pipeline.run()
    found = verify_hour(
        pipeline.client, bucket, base, AGGREGATED, part_size=pipeline.stream.part_size, expected=made
    )
    assert (found.objects, found.hidden) == (3, 2)


def test_hour_of_empty_objects_completes(ministack_pipeline: Pipeline) -> None:
    made = {f"{RAW}{number}.log": b"" for number in range(3)}
    put_objects(ministack_pipeline.client, ministack_pipeline.bucket, made)
    ministack_pipeline.run()
    facts = ministack_pipeline.verify(made)
    assert (facts.objects, facts.parts, facts.bytes_out) == (3, 1, 0)


def test_object_larger_than_a_part_is_copied_by_the_store(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(s3_server)
    pipeline = pipeline_on(s3_server, bucket, proxy.endpoint_url)
    made = {
        f"{RAW}a.log": b"a" * 1000,
        f"{RAW}b.log": b"b" * (6 * MIB),
        f"{RAW}c.log": b"c" * 1000,
        f"{RAW}d.log.gz": b"d" * (5 * MIB + 1),
    }
    put_objects(pipeline.client, bucket, made)
    for ref in pipeline.plan().shards:
        pipeline.pack(ref)
    assert proxy.count("CopyObject", status=200) == 2
    read = {exchange.request.key for exchange in proxy.exchanges if exchange.request.operation == "GetObject"}
    assert f"{RAW}b.log" not in read
    pipeline.validate()
    pipeline.complete()
    pipeline.verify(made)


def test_newlines_are_added_only_where_missing(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(s3_server, bucket, ensure_newline=True)
    made = {
        f"{RAW}a.log": b"without",
        f"{RAW}b.log": b"with\n",
        f"{RAW}c.log": b"",
        f"{RAW}d.log": b"without again",
        f"{RAW}e.log.gz": b"\x1f\x8bnever in an archive",
    }
    put_objects(pipeline.client, bucket, made)
    pipeline.run()
    facts = pipeline.verify(made)
    assert facts.separator_bytes == 2
    body = pipeline.client.get_object(Bucket=bucket, Key=pipeline.part(0))["Body"].read()
    assert body == b"without\nwith\nwithout again\n"


def test_second_run_writes_no_part_and_keeps_the_marker(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(s3_server)
    pipeline = pipeline_on(s3_server, bucket, proxy.endpoint_url)
    made = make_small_hour(pipeline.client, bucket, RAW, objects=20)
    pipeline.run()
    marker = pipeline.client.head_object(Bucket=bucket, Key=f"{AGGREGATED}_SUCCESS")
    proxy.reset_records()
    assert pipeline.plan().unchanged
    pipeline.validate()
    pipeline.complete()
    written = {
        exchange.request.key for exchange in proxy.exchanges if exchange.request.operation == "PutObject"
    }
    assert written == {f"{AGGREGATED}_rollup/crc-probe"}
    again = pipeline.client.head_object(Bucket=bucket, Key=f"{AGGREGATED}_SUCCESS")
    assert (again["ETag"], again["LastModified"]) == (marker["ETag"], marker["LastModified"])
    pipeline.verify(made)


def test_late_object_rewrites_only_the_parts_it_changes(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(s3_server)
    pipeline = pipeline_on(s3_server, bucket, proxy.endpoint_url)
    made = make_hour(pipeline.client, bucket, RAW, objects=12)
    pipeline.run()
    late = {f"{RAW}zz-late.log": b"late\n" * 100}
    put_objects(pipeline.client, bucket, late)
    proxy.reset_records()
    pipeline.run()
    facts = pipeline.verify({**made, **late})
    assert facts.parts > 1
    written = {
        exchange.request.key
        for exchange in proxy.exchanges
        if exchange.request.operation == "PutObject" and "/part-" in exchange.request.key
    }
    assert written == {pipeline.part(facts.parts - 1)}


def test_parts_of_a_longer_plan_are_removed_before_completion(ministack_pipeline: Pipeline) -> None:
    client, bucket = ministack_pipeline.client, ministack_pipeline.bucket
    made = make_hour(client, bucket, RAW, objects=12)
    ministack_pipeline.run()
    kept = dict(sorted(made.items())[:4])
    for key in made.keys() - kept.keys():
        client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(VanishedInputError, match="8 of 12 raw objects"):
        ministack_pipeline.run()
    # The hour is unchanged.
    put_objects(client, bucket, made)
    before = ministack_pipeline.verify(made).parts
    for key in made.keys() - kept.keys():
        client.delete_object(Bucket=bucket, Key=key)
    ministack_pipeline.run(drop_vanished=True)
    assert ministack_pipeline.verify(kept).parts < before


def test_parts_are_read_back_if_the_store_proves_nothing(rclone_pipeline: Pipeline) -> None:
    make_small_hour(rclone_pipeline.client, rclone_pipeline.bucket, RAW, objects=12)
    rclone_pipeline.run()
    assert set(rclone_pipeline.verify().marker["verified"]["parts"]) == {"read-back"}


def test_object_changed_before_packing_needs_a_new_plan(pipeline: Pipeline) -> None:
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    planned = pipeline.plan()
    key = sorted(made)[3]
    made[key] = b"changed" * 1000
    put_objects(pipeline.client, pipeline.bucket, {key: made[key]})
    with pytest.raises(InputChangedError, match="clear the run"):
        pipeline.pack_all(planned)
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify(made)


def test_object_deleted_before_packing_needs_a_new_plan(pipeline: Pipeline) -> None:
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    planned = pipeline.plan()
    key = sorted(made)[3]
    del made[key]
    pipeline.client.delete_object(Bucket=pipeline.bucket, Key=key)
    with pytest.raises(InputChangedError, match=key.rpartition("/")[2]):
        pipeline.pack_all(planned)
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify(made)


def test_object_added_before_validation_is_named(rclone_pipeline: Pipeline) -> None:
    made = make_small_hour(rclone_pipeline.client, rclone_pipeline.bucket, RAW, objects=12)
    for ref in rclone_pipeline.plan().shards:
        rclone_pipeline.pack(ref)
    late = {f"{RAW}late.log": b"late\n"}
    put_objects(rclone_pipeline.client, rclone_pipeline.bucket, late)
    with pytest.raises(InputChangedError, match=r"1 came late \(raw/app/20261123/08/late.log\)"):
        rclone_pipeline.validate()
    rclone_pipeline.assert_not_complete()
    rclone_pipeline.run()
    rclone_pipeline.verify({**made, **late})


def test_part_changed_after_completion_is_packed_again(pipeline: Pipeline) -> None:
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    pipeline.run()
    pipeline.client.put_object(Bucket=pipeline.bucket, Key=pipeline.part(0), Body=b"other bytes")
    with pytest.raises(ProofError, match=r"part-00000-.*marker is removed"):
        pipeline.validate()
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify(made)


def test_hour_without_objects_fails_or_completes_empty(
    ministack_server: MinistackServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    bucket = make_bucket(ministack_server)
    with pytest.raises(EmptyHourError, match="allow_empty"):
        pipeline_on(ministack_server, bucket).plan()
    pipeline = pipeline_on(ministack_server, bucket, allow_empty=True)
    pipeline.assert_not_complete()
    pipeline.run()
    assert pipeline.verify({}).parts == 0


def test_files_that_cannot_be_joined_are_refused(rclone_pipeline: Pipeline) -> None:
    put_objects(rclone_pipeline.client, rclone_pipeline.bucket, {f"{RAW}a.parquet": b"PAR1"})
    with pytest.raises(UnsupportedInputError, match=r"a\.parquet"):
        rclone_pipeline.plan()


def test_missing_bucket_is_named(s3_server: S3Server, bucket_name: str, pipeline_on: PipelineFactory) -> None:
    with pytest.raises(MissingBucketError, match=bucket_name):
        pipeline_on(s3_server, bucket_name).plan()


def test_packing_and_validation_need_a_plan(ministack_pipeline: Pipeline) -> None:
    make_small_hour(ministack_pipeline.client, ministack_pipeline.bucket, RAW, objects=3)
    with pytest.raises(SupersededError, match="clear the run from plan_hour"):
        ministack_pipeline.validate()
    planned = ministack_pipeline.plan()
    for key in ministack_pipeline.listed(f"{AGGREGATED}_rollup/"):
        ministack_pipeline.client.delete_object(Bucket=ministack_pipeline.bucket, Key=key)
    with pytest.raises(SupersededError, match="clear this one from plan_hour"):
        ministack_pipeline.pack(planned.shards[0])
    ministack_pipeline.assert_not_complete()


def test_two_plans_at_once_never_mix(s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory) -> None:
    pipeline = pipeline_on(s3_server, bucket, shard_size="5MiB")
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    first = pipeline.plan()
    pipeline.pack(first.shards[0])
    late = {f"{RAW}late.log": b"late\n"}
    put_objects(pipeline.client, pipeline.bucket, late)
    second = pipeline.plan()
    with pytest.raises(SupersededError, match=f"plan {second.plan_id} of run .* is being built"):
        pipeline.pack(first.shards[1])
    for ref in second.shards:
        pipeline.pack(ref)
    pipeline.validate()
    pipeline.complete()
    pipeline.verify({**made, **late})
