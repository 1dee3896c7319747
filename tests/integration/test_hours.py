"""Whole hours on rclone and MiniStack, compared byte by byte without the project's code.

rclone proves nothing by itself, so that every part is read back; MiniStack takes the path that AWS takes. Crashes
and faults run on moto too.
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
    odd_hour,
    put_objects,
)


@pytest.fixture(params=["rclone", "ministack"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server in turn."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


def test_plain_and_compressed_objects_get_separate_parts(pipeline: Pipeline) -> None:
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=20, encodings=("", "", "", ".gz"))
    pipeline.run()
    facts = pipeline.verify(made)
    assert facts.objects == 20
    extensions = {key.partition(".log")[2] for key in pipeline.listed() if "/part-" in key}
    assert extensions == {"", ".gz"}


def test_every_odd_key_arrives(pipeline: Pipeline) -> None:
    made = odd_hour(RAW)
    put_objects(pipeline.client, pipeline.bucket, made)
    pipeline.run()
    pipeline.verify(made)


def test_keys_that_no_file_system_could_hold_arrive(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(moto_server, make_bucket(moto_server))
    # A step of the path that begins with a dot is hidden, by Spark's rule and ours.
    made = odd_hour(RAW, ODD_NAMES_BEYOND_FILES)
    put_objects(pipeline.client, pipeline.bucket, made)
    pipeline.run()
    assert pipeline.verify(made).hidden == 2


def test_hour_of_more_than_one_listing_page_completes(
    ministack_server: MinistackServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(ministack_server, make_bucket(ministack_server))
    made = {f"{RAW}{number:05d}.log": f"{number}\n".encode() for number in range(1100)}
    put_objects(pipeline.client, pipeline.bucket, made)
    pipeline.run()
    assert pipeline.verify(made).objects == 1100


def test_empty_hidden_and_placeholder_objects_are_handled(pipeline: Pipeline) -> None:
    made = {
        f"{RAW}a.log": b"",
        f"{RAW}b.log": b"something\n",
        f"{RAW}c.log": b"",
        f"{RAW}_temporary/d.log": b"hidden\n",
        f"{RAW}.e.log": b"hidden\n",
    }
    put_objects(pipeline.client, pipeline.bucket, made)
    pipeline.run()
    facts = pipeline.verify(made)
    assert (facts.objects, facts.hidden, facts.bytes_out) == (3, 2, 10)
    assert facts.marker["left_out"]["hidden"] == 2


def test_hour_of_empty_objects_completes(pipeline: Pipeline) -> None:
    made = {f"{RAW}{number}.log": b"" for number in range(3)}
    put_objects(pipeline.client, pipeline.bucket, made)
    pipeline.run()
    facts = pipeline.verify(made)
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
    made = make_hour(pipeline.client, bucket, RAW, objects=20)
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
    made = make_hour(pipeline.client, bucket, RAW, objects=24)
    pipeline.run()
    late = {f"{RAW}zz-late.log": b"late\n" * 100}
    put_objects(pipeline.client, bucket, late)
    proxy.reset_records()
    pipeline.run()
    facts = pipeline.verify({**made, **late})
    written = {
        exchange.request.key
        for exchange in proxy.exchanges
        if exchange.request.operation == "PutObject" and "/part-" in exchange.request.key
    }
    assert written == {pipeline.part(facts.parts - 1)}


def test_parts_of_a_longer_plan_are_removed_before_completion(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(s3_server, bucket)
    made = make_hour(pipeline.client, bucket, RAW, objects=24)
    pipeline.run()
    before = len([key for key in pipeline.listed() if "/part-" in key])
    kept = dict(sorted(made.items())[:8])
    for key in made.keys() - kept.keys():
        pipeline.client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(VanishedInputError, match="16 of 24 raw objects"):
        pipeline.run()
    # All that it held is still there.
    put_objects(pipeline.client, bucket, made)
    pipeline.verify(made)
    for key in made.keys() - kept.keys():
        pipeline.client.delete_object(Bucket=bucket, Key=key)
    pipeline.run(drop_vanished=True)
    assert pipeline.verify(kept).parts < before


def test_what_the_store_cannot_prove_is_read_back(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server))
    make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    pipeline.run()
    verified = pipeline.verify().marker["verified"]
    assert set(verified["parts"]) == {"read-back"}


def test_object_changed_before_packing_needs_a_new_plan(
    pipeline: Pipeline,
) -> None:
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    planned = pipeline.plan()
    key = sorted(made)[3]
    made[key] = b"changed" * 10_000
    put_objects(pipeline.client, pipeline.bucket, {key: made[key]})
    with pytest.raises(InputChangedError, match="clear the run"):
        pipeline.pack_all(planned)
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify(made)


def test_object_deleted_before_packing_needs_a_new_plan(
    pipeline: Pipeline,
) -> None:
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    planned = pipeline.plan()
    key = sorted(made)[3]
    del made[key]
    pipeline.client.delete_object(Bucket=pipeline.bucket, Key=key)
    with pytest.raises(InputChangedError, match=key.rpartition("/")[2]):
        pipeline.pack_all(planned)
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify(made)


def test_object_added_before_validation_is_named(pipeline: Pipeline) -> None:
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    for ref in pipeline.plan().shards:
        pipeline.pack(ref)
    late = {f"{RAW}late.log": b"late\n"}
    put_objects(pipeline.client, pipeline.bucket, late)
    with pytest.raises(InputChangedError, match=r"1 came late \(raw/app/20261123/08/late.log\)"):
        pipeline.validate()
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify({**made, **late})


def test_part_changed_after_completion_is_packed_again(
    pipeline: Pipeline,
) -> None:
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    pipeline.run()
    pipeline.client.put_object(Bucket=pipeline.bucket, Key=pipeline.part(0), Body=b"not it")
    with pytest.raises(ProofError, match=r"part-00000-.*marker is removed"):
        pipeline.validate()
    pipeline.assert_not_complete()
    pipeline.run()
    pipeline.verify(made)


def test_hour_without_objects_fails_or_completes_empty(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory
) -> None:
    with pytest.raises(EmptyHourError, match="allow_empty"):
        pipeline_on(s3_server, bucket).plan()
    pipeline = pipeline_on(s3_server, bucket, allow_empty=True)
    pipeline.assert_not_complete()
    pipeline.run()
    assert pipeline.verify({}).parts == 0


def test_files_that_cannot_be_joined_are_refused(pipeline: Pipeline) -> None:
    put_objects(pipeline.client, pipeline.bucket, {f"{RAW}a.parquet": b"PAR1"})
    with pytest.raises(UnsupportedInputError, match=r"a\.parquet"):
        pipeline.plan()


def test_missing_bucket_is_named(s3_server: S3Server, bucket_name: str, pipeline_on: PipelineFactory) -> None:
    with pytest.raises(MissingBucketError, match=bucket_name):
        pipeline_on(s3_server, bucket_name).plan()


def test_packing_and_validation_need_a_plan(pipeline: Pipeline) -> None:
    make_hour(pipeline.client, pipeline.bucket, RAW, objects=3)
    with pytest.raises(SupersededError, match="clear the run from plan_hour"):
        pipeline.validate()
    planned = pipeline.plan()
    for key in pipeline.listed(f"{AGGREGATED}_rollup/"):
        pipeline.client.delete_object(Bucket=pipeline.bucket, Key=key)
    with pytest.raises(SupersededError, match="clear this one from plan_hour"):
        pipeline.pack(planned.shards[0])
    pipeline.assert_not_complete()


def test_two_plans_at_once_never_mix(s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory) -> None:
    pipeline = pipeline_on(s3_server, bucket, shard_size="5MiB")
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=20)
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
