"""Parts that a lifecycle rule has archived, on a real server: they are named, retrieved and restored."""

from pathlib import Path

from dev.servers import MotoServer
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline, settings_on
from tests.support.raw_hours import AGGREGATED, HOUR, RAW, make_hour

TEXT = f"{HOUR:%Y-%m-%dT%H}"


def part_keys(pipeline: Pipeline) -> list[str]:
    return [key for key in pipeline.listed(AGGREGATED) if key.startswith(f"{AGGREGATED}part-")]


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
