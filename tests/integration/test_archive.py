"""Archive classes on real servers: parts are proven there without being read, and read after their retrieval."""

from pathlib import Path

from dev.servers import MinistackServer, MotoServer
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline, settings_on
from tests.support.raw_hours import AGGREGATED, HOUR, MIB, RAW, make_hour

TEXT = f"{HOUR:%Y-%m-%dT%H}"


def part_keys(pipeline: Pipeline) -> list[str]:
    return [key for key in pipeline.listed(AGGREGATED) if key.startswith(f"{AGGREGATED}part-")]


def test_parts_are_written_into_the_archive_and_proven(
    ministack_server: MinistackServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
) -> None:  # fmt: skip
    proxy = fault_proxy(ministack_server)
    pipeline = pipeline_on(
        ministack_server, make_bucket(ministack_server), proxy.endpoint_url, storage_class="DEEP_ARCHIVE"
    )
    make_hour(pipeline.client, pipeline.bucket, RAW, objects=6)
    large = {"Key": f"{RAW}large.log", "Body": b"l" * (6 * MIB), "ChecksumAlgorithm": "CRC64NVME"}
    pipeline.client.put_object(Bucket=pipeline.bucket, **large)
    pipeline.run()
    keys = part_keys(pipeline)
    assert len(keys) > 1
    for key in pipeline.listed(AGGREGATED):
        stated = pipeline.client.head_object(Bucket=pipeline.bucket, Key=key).get("StorageClass", "STANDARD")
        assert stated == ("DEEP_ARCHIVE" if key in keys else "STANDARD"), key
    read = {exchange.request.key for exchange in proxy.exchanges if exchange.request.operation == "GetObject"}
    assert read.isdisjoint(keys)
    before = pipeline.parts()
    pipeline.run()
    assert pipeline.parts() == before


def test_retrieved_parts_are_restored(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, use_streams: UseStreams,
    command: RunCommand, tmp_path: Path,
) -> None:  # fmt: skip
    """The parts are moved as a lifecycle rule moves them; moto retrieves them at once."""
    bucket = make_bucket(moto_server)
    use_streams(settings_on(bucket))
    pipeline = pipeline_on(moto_server, bucket)
    raw = make_hour(pipeline.client, bucket, RAW, objects=6)
    pipeline.run()
    for key in part_keys(pipeline):
        pipeline.client.copy_object(
            Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": key}, StorageClass="GLACIER"
        )
    assert command("verify", "app", TEXT).code == 0
    deep = command("verify", "app", TEXT, "--deep")
    assert (deep.code, "is archived" in deep.text) == (1, True)
    arguments = ("restore", "app", TEXT, "--to", f"{tmp_path}/copy")
    refused = command(*arguments)
    assert (refused.code, "in GLACIER" in refused.err) == (4, True)
    assert command(*arguments, "--retrieve", "bulk", "--yes").code == 4
    again = command(*arguments, "--retrieve", "bulk", "--yes")
    assert again.code == 0, again.err
    restored = {path.name: path.read_bytes() for path in tmp_path.rglob("*.log")}
    assert restored == {key.rpartition("/")[2]: body for key, body in raw.items()}
