"""The example reader on an hour of the pipeline: it finds every line of every raw object."""

import gzip
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import boto3
import pytest

from dev.servers import RcloneServer
from examples.read_hour import Hour, NotReadableError, count_lines, main
from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline
from tests.support.raw_hours import AGGREGATED, RAW, make_hour, make_small_hour, put_objects

LEVEL = re.compile(rb"\b(DEBUG|INFO|WARN|ERROR|FATAL)\b")


@pytest.fixture
def pipeline(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> Pipeline:
    return pipeline_on(rclone_server, make_bucket(rclone_server))


@pytest.fixture
def url(pipeline: Pipeline) -> str:
    return f"s3://{pipeline.bucket}/{AGGREGATED}"


def lines_of(made: dict[str, bytes]) -> Counter[tuple[str, str]]:
    """Lines by host and level, counted from the raw objects."""
    counts: Counter[tuple[str, str]] = Counter()
    for key, body in made.items():
        host = key.removeprefix(RAW).partition("/")[0]
        for line in (gzip.decompress(body) if key.endswith(".gz") else body).splitlines():
            found = LEVEL.search(line)
            counts[host, found[1].decode() if found else ""] += 1
    return counts


def test_every_line_is_found_with_its_host(pipeline: Pipeline, url: str, tmp_path: Path) -> None:
    made = make_hour(
        pipeline.client, pipeline.bucket, RAW, objects=12, min_bytes=600_000, encodings=("", "", ".gz")
    )
    # Quotes, separators, an invalid character, and no newline at the end.
    odd = {
        f"{RAW}odd/1.log": b'ERROR "a, b\n\xff;\n"INFO',
        f"{RAW}odd/2.log": b"",
        f"{RAW}odd/3.log": b"WARN\n",
    }
    put_objects(pipeline.client, pipeline.bucket, odd)
    pipeline.run()
    hour = Hour.open(pipeline.client, url)
    assert {part["encoding"] for part in hour.header["parts_table"]} == {"", ".gz"}
    assert len(hour.header["parts_table"]) > 2
    counted = {(host, level): lines for host, level, lines in count_lines(hour, tmp_path)}
    assert counted == dict(lines_of({**made, **odd}))


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_every_line_of_compressed_parts_is_found(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    tmp_path: Path,
    compression: str,
) -> None:
    bucket = make_bucket(rclone_server)
    sizes = {"part_size": "64MiB", "shard_size": "64MiB"}
    pipeline = pipeline_on(rclone_server, bucket, compression=compression, recompress=True, **sizes)
    made = {
        f"{RAW}web-01/1.log": b"INFO a\nWARN b\n" * 100,
        f"{RAW}web-01/2.log.gz": gzip.compress(b"ERROR c\n" * 200),
        f"{RAW}web-02/3.log": b"DEBUG d\n" * 800_000,
        f"{RAW}web-02/4.log": b"FATAL e",
    }
    put_objects(pipeline.client, bucket, made)
    pipeline.run()
    hour = Hour.open(pipeline.client, f"s3://{bucket}/{AGGREGATED}")
    assert sum(part["frames"] for part in hour.header["parts_table"]) > 1
    counted = {(host, level): lines for host, level, lines in count_lines(hour, tmp_path)}
    assert counted == dict(lines_of(made))


def test_incomplete_hour_is_not_read(pipeline: Pipeline, url: str) -> None:
    make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=3)
    with pytest.raises(NotReadableError, match="not complete"):
        Hour.open(pipeline.client, url)
    pipeline.pack_all(pipeline.plan())
    pipeline.validate()
    with pytest.raises(NotReadableError, match="not complete"):
        Hour.open(pipeline.client, url)


def test_rerun_during_reading_is_detected(pipeline: Pipeline, url: str, tmp_path: Path) -> None:
    make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=3)
    pipeline.run()
    hour = Hour.open(pipeline.client, url)
    put_objects(pipeline.client, pipeline.bucket, {f"{RAW}zz-late.log": b"late\n"})
    pipeline.plan()
    with pytest.raises(NotReadableError):
        count_lines(hour, tmp_path)


def test_command_prints_counts_and_fails_for_an_incomplete_hour(
    pipeline: Pipeline,
    url: str,
    rclone_server: RcloneServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_objects(pipeline.client, pipeline.bucket, {f"{RAW}web-01/1.log": b"x INFO y\n" * 1500})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rclone_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rclone_server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    arguments = [url, "--endpoint-url", rclone_server.endpoint_url]
    monkeypatch.setattr(sys, "argv", ["read_hour", *arguments])
    # Clients of this session must not get the credentials of another test.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert main() == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "is not complete" in captured.err
    pipeline.run()
    command = [sys.executable, "-m", "examples.read_hour", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1 objects in 1 parts" in done.stdout
    assert re.search(r"web-01 +INFO +1,500", done.stdout)
