"""Hours with few open files, little memory, very many or very large objects, and extreme part sizes.

A control group limits the memory if the machine allows one; otherwise the memory is only measured.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dev.servers import RcloneServer
from tests.integration.conftest import PipelineFactory
from tests.integration.fork_server import ForkServer
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline, settings_on
from tests.support.limits import memory_cgroup, peak_bytes
from tests.support.raw_hours import MIB, RAW, RawHour, make_hour, put_objects

MEMORY = 512 * MIB


def soak(*values: int) -> Any:
    """Values for soak tests only."""
    return pytest.param(*values, marks=pytest.mark.soak)


def port_of(server: RcloneServer) -> int:
    """The port on which the server listens."""
    return int(server.endpoint_url.rpartition(":")[2])


def roll_up_in_little_memory(server: RcloneServer, pipeline: Pipeline, settings: Mapping[str, Any]) -> int:
    """Run all steps of the hour within 512 MiB of memory, and return the most that was used, in bytes."""
    with memory_cgroup(MEMORY) as group:
        with ForkServer(cgroup=group) as processes:
            code, printed, watch = processes.run(settings, None, port_of(server))
        used = watch.peak_rss_bytes if group is None else peak_bytes(group)
    assert code == 0, printed
    assert watch.peak_rss_bytes <= MEMORY
    print(
        f"memory: {watch.peak_rss_bytes / MIB:.0f} MiB resident, {used / MIB:.0f} MiB in all of {MEMORY // MIB}"
    )
    return used


@pytest.mark.parametrize(("limit", "connections"), [(64, 8), soak(128, 60), soak(1024, 250)])
def test_open_file_limit_above_the_connections_is_enough(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fork_server: ForkServer,
    limit: int,
    connections: int,
) -> None:
    bucket = make_bucket(rclone_server)
    settings = settings_on(bucket, max_connections=connections, shard_size="64MiB")
    pipeline = pipeline_on(rclone_server, bucket, max_connections=connections, shard_size="64MiB")
    made = make_hour(pipeline.client, bucket, RAW, objects=60, min_bytes=2_000, max_bytes=300_000)
    planned = pipeline.plan()
    code, printed, watch = fork_server.run(settings, planned, port_of(rclone_server), open_files=limit)
    assert code == 0, printed
    assert watch.peak_open_files <= limit
    pipeline.validate()
    pipeline.complete()
    pipeline.verify(made)


@pytest.mark.parametrize(("limit", "connections"), [soak(64, 60), (128, 250), soak(1024, 1000)])
def test_too_low_open_file_limit_fails_before_packing(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fork_server: ForkServer,
    limit: int,
    connections: int,
) -> None:
    bucket = make_bucket(rclone_server)
    pipeline = pipeline_on(rclone_server, bucket)
    make_hour(pipeline.client, bucket, RAW, objects=3, min_bytes=2_000, max_bytes=3_000)
    code, printed, _ = fork_server.run(
        settings_on(bucket, max_connections=connections),
        pipeline.plan(),
        port_of(rclone_server),
        open_files=limit,
    )
    assert code == 1
    assert printed[0].startswith(f"ResourceLimitError: the open-file limit of this process is {limit}")
    assert "ulimit" in printed[0]
    assert not pipeline.parts()
    pipeline.assert_not_complete()


def test_default_sizes_stay_within_512_mib(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    bucket = make_bucket(rclone_server)
    sizes = {"part_size": "32MiB", "shard_size": "1GiB", "max_connections": 25}
    pipeline = pipeline_on(rclone_server, bucket, **sizes)
    raw = RawHour(RAW, 60, min_bytes=1_200_000, max_bytes=1_500_000)
    put_objects(pipeline.client, bucket, raw)
    assert roll_up_in_little_memory(rclone_server, pipeline, settings_on(bucket, **sizes)) <= MEMORY
    assert pipeline.verify(raw).objects == 60


@pytest.fixture
def filled_server(tmp_path: Path) -> Iterator[tuple[RcloneServer, str, RawHour]]:
    """A server that has an hour of 30,000 objects of 1 to 2 KiB on its disk when it starts."""
    raw = RawHour(RAW, 30_000, min_bytes=1024, max_bytes=2048)
    server = RcloneServer(tmp_path)
    for key in raw:
        path = server.data_dir / "many" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw[key])
    with server:
        yield server, "many", raw


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_30_000_tiny_objects_are_packed_within_512_mib(
    filled_server: tuple[RcloneServer, str, RawHour], pipeline_on: PipelineFactory
) -> None:
    server, bucket, raw = filled_server
    sizes = {"part_size": "32MiB", "shard_size": "1GiB", "max_connections": 25}
    pipeline = pipeline_on(server, bucket, **sizes)
    roll_up_in_little_memory(server, pipeline, settings_on(bucket, **sizes))
    assert pipeline.verify(raw).objects == 30_000


@pytest.mark.soak
@pytest.mark.parametrize(
    ("part_size", "parts"),
    [("5MiB", 3), ("32MiB", 3), ("512MiB", 2)],
    ids=["copied, 5 MiB", "copied, 32 MiB", "packed, 512 MiB"],
)
def test_hour_of_three_objects_of_200_mb_completes(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    part_size: str,
    parts: int,
) -> None:
    bucket = make_bucket(rclone_server)
    pipeline = pipeline_on(rclone_server, bucket, part_size=part_size, shard_size="1GiB")
    raw = RawHour(RAW, 3, min_bytes=200_000_000, max_bytes=200_000_000)
    put_objects(pipeline.client, bucket, raw, threads=1)
    measured = pipeline.run()
    assert pipeline.verify(raw).parts == parts
    print(f"{part_size}: {max(one.rss_bytes for one in measured) / MIB:.0f} MiB resident in this process")


@pytest.mark.soak
def test_large_part_size_needs_no_more_memory_than_the_hour(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    bucket = make_bucket(rclone_server)
    sizes = {"part_size": "512MiB", "shard_size": "1GiB"}
    pipeline = pipeline_on(rclone_server, bucket, **sizes)
    made = make_hour(pipeline.client, bucket, RAW, objects=60)
    roll_up_in_little_memory(rclone_server, pipeline, settings_on(bucket, **sizes))
    assert pipeline.verify(made).parts == 1
