"""``ensure_newline`` on a real server: parts of every encoding have whole lines, raw objects keep their bytes."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard

from dev.servers import RcloneServer
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline, settings_on
from tests.support.newlines import NEWLINE_BYTES
from tests.support.raw_hours import AGGREGATED, RAW, put_objects

COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lz4": lz4.frame.compress,
}
CONTENTS = (b'{"id": 1}', b'{"id": 2}\n', b"", b'{"id": 3}\n{"id": 4}', b'{"id": 5}')
LINES = [b'{"id": %d}' % number for number in range(1, 6)]
DAMAGED = {f"{RAW}z.json.gz": gzip.compress(b'{"id": 6}')[:-3], f"{RAW}z.json.lzo": b"no newline"}
OBJECTS = {
    f"{RAW}{number}.json{encoding}": compress(content)
    for number, content in enumerate(CONTENTS)
    for encoding, compress in COMPRESS.items()
} | DAMAGED


# How an ordinary reader opens a part, by its extension.
OPEN: Mapping[str, Callable[..., Any]] = {
    ".log": open,
    ".gz": gzip.open,
    ".zst": zstandard.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".lz4": lz4.frame.open,
}


def content_of(path: Path) -> bytes:
    with OPEN[path.suffix](path, "rb") as file:
        return bytes(file.read())


@pytest.fixture
def hour(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, use_streams: UseStreams
) -> Pipeline:  # fmt: skip
    """A complete hour with objects of every encoding."""
    bucket = make_bucket(rclone_server)
    settings = {"ensure_newline": True, "check_encoding": True}
    use_streams(settings_on(bucket, **settings))
    pipeline = pipeline_on(rclone_server, bucket, **settings)
    put_objects(pipeline.client, bucket, OBJECTS)
    pipeline.run()
    return pipeline


def test_parts_of_every_encoding_have_whole_lines(hour: Pipeline, tmp_path: Path) -> None:
    found = {}
    for key in hour.listed():
        name = key.rpartition("/")[2]
        if name.startswith("part-"):
            path = tmp_path / name
            path.write_bytes(hour.client.get_object(Bucket=hour.bucket, Key=key)["Body"].read())
            found[name] = path
    # Each damaged object, and the one of another encoding, is alone in its part.
    alone = {name for name, path in found.items() if path.read_bytes() in DAMAGED.values()}
    assert len(alone) == len(DAMAGED)
    read = {path.suffix: content_of(path) for name, path in found.items() if name not in alone}
    assert read == dict.fromkeys((".log", *COMPRESS.keys() - {""}), b"\n".join(LINES) + b"\n")
    marker = json.loads(
        hour.client.get_object(Bucket=hour.bucket, Key=f"{AGGREGATED}_SUCCESS")["Body"].read()
    )
    assert marker["separator_bytes"] == 3 * sum(NEWLINE_BYTES.values())
    assert marker["damaged"] == 1


def test_commands_return_raw_objects_without_newline_frames(
    command: RunCommand, hour: Pipeline, tmp_path: Path
) -> None:
    assert command("verify", "app", "2026-11-23T08", "--deep").code == 0
    for key in OBJECTS:
        hour.client.delete_object(Bucket=hour.bucket, Key=key)
    target = tmp_path / "restored"
    result = command("restore", "app", "2026-11-23T08", "--to", str(target), "--md5")
    assert result.code == 0, result.err
    restored = {
        f"raw/app/{path.relative_to(target).as_posix()}": path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }
    assert restored == OBJECTS
    for key in (f"{RAW}0.json.zst", f"{RAW}4.json.gz", f"{RAW}z.json.gz"):
        assert command("cat", "app", key).out == OBJECTS[key]
    for encoding in COMPRESS:
        name = f"4.json{encoding}"
        found = command("grep", "-c", "^", "app", "--since=2026-11-23T08", f"--match={name}")
        assert (found.code, found.text) == (0, f"{RAW}{name}:1\n"), found.err
