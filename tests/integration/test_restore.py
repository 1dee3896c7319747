"""The command restore on real servers: every target gets the raw objects' bytes under their own names."""

import functools
import gzip
import hashlib
import os
import signal
import tarfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import pytest

from dev.servers import MotoServer, RcloneServer
from include.log_rollup.errors import TransientError
from include.log_rollup.queries import restore_plan
from include.log_rollup.queries.restore_targets import TEMPORARY
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline, settings_on, stream_on
from tests.support.raw_hours import AGGREGATED, HOUR, RAW, make_small_hour, odd_hour, put_objects

HOUR_ARGUMENT = "2026-11-23T08"
# Below the literal beginning of the raw template, which is raw/app/.
FOLDER = RAW.removeprefix("raw/app/")
LARGE = f"{RAW}large.log"
ZIPPED = f"{RAW}zipped.log.gz"


@functools.cache
def raw_objects() -> dict[str, bytes]:
    """Odd names, an empty object, gzip objects between plain ones, and an object larger than a part and a run."""
    numbered = {
        f"{RAW}n{number:02}.log{'.gz' if number % 3 else ''}": gzip.compress(
            b"%d " % number * 99_000, 0, mtime=0
        )
        for number in range(24)
    }
    return {
        **odd_hour(RAW),
        **numbered,
        LARGE: bytes(range(256)) * 40 * 1024,
        ZIPPED: gzip.compress(b"a line\n" * 1000, mtime=0),
        f"{RAW}empty.log": b"",
    }


@pytest.fixture(scope="module")
def complete_hour(rclone_server: RcloneServer) -> Iterator[Pipeline]:
    """A complete hour on rclone, whose raw objects have expired, for all tests of this module."""
    bucket = f"bucket-{uuid.uuid4().hex[:16]}"
    rclone_server.create_bucket(bucket)
    pipeline = Pipeline(stream_on(bucket), rclone_server.client(), bucket)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
        complete(pipeline)
    yield pipeline
    rclone_server.delete_bucket(bucket)


@pytest.fixture
def hour(
    complete_hour: Pipeline, rclone_server: RcloneServer, pipeline_on: PipelineFactory, use_streams: UseStreams
) -> Pipeline:  # fmt: skip
    """The hour of this module, which a test may read and not change."""
    use_streams(settings_on(complete_hour.bucket))
    return pipeline_on(rclone_server, complete_hour.bucket)


@pytest.fixture
def own_hour(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, use_streams: UseStreams
) -> Pipeline:  # fmt: skip
    """Such an hour for one test, which may change it."""
    bucket = make_bucket(rclone_server)
    use_streams(settings_on(bucket))
    pipeline = pipeline_on(rclone_server, bucket)
    complete(pipeline)
    return pipeline


def complete(pipeline: Pipeline) -> None:
    """Write the raw objects, run the hour, and delete the raw objects as if they had expired."""
    put_objects(pipeline.client, pipeline.bucket, raw_objects())
    pipeline.run()
    keys = [{"Key": key} for key in raw_objects()]
    pipeline.client.delete_objects(Bucket=pipeline.bucket, Delete={"Objects": keys, "Quiet": True})
    assert pipeline.listed(RAW) == []


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of each file by the key of its raw object; temporary ones too."""
    return {
        f"raw/app/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def objects_below(pipeline: Pipeline, prefix: str) -> dict[str, bytes]:
    """Return the content of each object below a prefix, by key."""
    return {
        key: pipeline.client.get_object(Bucket=pipeline.bucket, Key=key)["Body"].read()
        for key in pipeline.listed(prefix)
    }


def flip_byte(
    server: RcloneServer, pipeline: Pipeline, command: RunCommand, key: str, offset: int = 0
) -> str:
    """Damage the bytes of a raw object in its part, as a disk does; return the name of the part."""
    found = command("locate", "app", key, "--json").json
    path = server.data_dir / pipeline.bucket / AGGREGATED / found["part"]
    body = bytearray(path.read_bytes())
    body[found["offset"] + offset] ^= 1
    path.write_bytes(body)
    return str(found["part"])


def without(objects: Mapping[str, bytes], *keys: str) -> dict[str, bytes]:
    return {key: body for key, body in objects.items() if key not in keys}


# -- targets ----------------------------------------------------------------------------------------------


def test_restores_an_hour_to_a_directory(command: RunCommand, hour: Pipeline, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    result = command("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--md5")
    assert result.code == 0, result.err
    assert files_below(target) == raw_objects()
    assert result.text.startswith(f"restored {len(raw_objects())} objects, ")
    assert f"1 hour: {len(raw_objects())} objects, " in result.err
    assert " GETs of " in result.err
    assert (target / FOLDER / "n01.log.gz").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_dry_run_counts_the_requests_and_writes_nothing(
    command: RunCommand, hour: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--json")
    planned = command(*arguments, "--dry-run")
    assert (planned.code, planned.json["dry_run"], planned.json["restored"]) == (0, True, None)
    assert not target.exists()
    sent: list[int] = []
    read_into = PooledS3Hook.read_into

    def counted(hook: PooledS3Hook, source: Location, etag: str, offset: int, into: memoryview) -> None:
        sent.append(len(into))
        read_into(hook, source, etag, offset, into)

    monkeypatch.setattr(PooledS3Hook, "read_into", counted)
    done = command(*arguments).json
    assert (done["restored"], done["bytes_restored"]) == (planned.json["objects"], planned.json["bytes"])
    assert (len(sent), sum(sent)) == (planned.json["gets"], planned.json["bytes_read"])
    assert planned.json["bytes_read"] >= planned.json["bytes"]


def test_restores_to_a_prefix_and_to_the_original_keys(command: RunCommand, own_hour: Pipeline) -> None:
    copy = f"s3://{own_hour.bucket}/copy/here/"
    result = command("restore", "app", HOUR_ARGUMENT, "--to", copy, "--json")
    assert (result.code, result.json["restored"]) == (0, len(raw_objects())), result.err
    expected = {key.replace("raw/app/", "copy/here/", 1): body for key, body in raw_objects().items()}
    assert objects_below(own_hour, "copy/") == expected
    assert command("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{own_hour.bucket}/raw/app/").code == 0
    assert objects_below(own_hour, "raw/") == raw_objects()
    assert own_hour.open_uploads() == []
    assert command("verify", "app", HOUR_ARGUMENT).text.endswith("OK\n")


def test_restores_to_another_bucket_within_the_cap(
    command: RunCommand, hour: Pipeline, rclone_server: RcloneServer, make_bucket: BucketFactory
) -> None:
    other = make_bucket(rclone_server)
    assert command("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{other}").code == 0
    for key, body in raw_objects().items():
        stored = hour.client.get_object(Bucket=other, Key=key.removeprefix("raw/app/"))
        assert stored["Body"].read() == body


def test_restores_to_a_tar_file(command: RunCommand, hour: Pipeline, tmp_path: Path) -> None:
    target = tmp_path / "hour.tar"
    assert command("restore", "app", HOUR_ARGUMENT, "--to", str(target)).code == 0
    with tarfile.open(target) as tar:
        members = tar.getmembers()
        found = {f"raw/app/{member.name}": tar.extractfile(member) for member in members}
        assert {key: file.read() for key, file in found.items() if file} == raw_objects()
        assert {member.mtime for member in members} == {HOUR.timestamp()}
    assert target.stat().st_size % tarfile.RECORDSIZE == 0
    refused = command("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--json")
    assert (refused.code, refused.json["error"]["kind"]) == (1, "TargetConflictError")
    assert command("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tar"] == ["hour.tar"]


def test_writes_bytes_to_stdout_in_key_order(
    command: RunCommand, hour: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = b"".join(body for _, body in sorted(raw_objects().items()))
    result = command("restore", "app", HOUR_ARGUMENT, "--to", "-")
    assert (result.code, result.out == expected) == (0, True)
    assert f"restored {len(raw_objects())} objects" in result.err
    monkeypatch.setattr(restore_plan, "MAX_OPEN_BATCHES", 1)
    assert command("restore", "app", HOUR_ARGUMENT, "--to", "-").out == expected
    zipped = command("restore", "app", HOUR_ARGUMENT, "--to", "-", "--match", "zipped*")
    assert gzip.decompress(zipped.out) == b"a line\n" * 1000
    assert command("restore", "app", HOUR_ARGUMENT, "--to", "-", "--json").code == 2
    assert command("restore", "app", HOUR_ARGUMENT, "--to", "-", "--json", "--dry-run").json["ok"] is True


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_restores_compressed_parts_to_every_target(
    command: RunCommand, rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    use_streams: UseStreams, tmp_path: Path, compression: str,
) -> None:  # fmt: skip
    bucket = make_bucket(rclone_server)
    settings = {"compression": compression, "part_size": "32MiB", "shard_size": "64MiB"}
    use_streams(settings_on(bucket, **settings))
    pipeline = pipeline_on(rclone_server, bucket, **settings)
    put_objects(pipeline.client, bucket, raw_objects())
    pipeline.run()
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to")
    result = command(*arguments, str(tmp_path / "out"), "--json", "--md5")
    assert (result.code, result.json["restored"]) == (0, len(raw_objects())), result.err
    assert result.json["bytes_read"] < result.json["bytes_restored"]
    assert files_below(tmp_path / "out") == raw_objects()
    assert command(*arguments, "-").out == b"".join(body for _, body in sorted(raw_objects().items()))
    assert command(*arguments, f"s3://{bucket}/raw/app/", "--json").json["present"] == len(raw_objects())
    assert command(*arguments, f"s3://{bucket}/copy/").code == 0
    expected = {key.replace("raw/app/", "copy/", 1): body for key, body in raw_objects().items()}
    assert objects_below(pipeline, "copy/") == expected
    one = command(*arguments, str(tmp_path / "one"), "--match", "n03.log", "--json").json
    assert one["gets"] == 1
    part = (
        rclone_server.data_dir / bucket / AGGREGATED / command("locate", "app", LARGE, "--json").json["part"]
    )
    body = bytearray(part.read_bytes())
    body[len(body) // 3] ^= 255
    part.write_bytes(body)
    damaged = command(*arguments, str(tmp_path / "damaged"), "--json")
    failed = {one["key"] for one in damaged.json["failed"]}
    assert (damaged.code, bool(failed)) == (1, True)
    assert files_below(tmp_path / "damaged") == without(raw_objects(), *failed)


# -- what is there already --------------------------------------------------------------------------------


def test_recompressed_objects_come_back_as_their_content(
    command: RunCommand, rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    use_streams: UseStreams, tmp_path: Path,
) -> None:  # fmt: skip
    bucket = make_bucket(rclone_server)
    options = {"compression": "zstd", "recompress": True}
    use_streams(settings_on(bucket, **options))
    pipeline = pipeline_on(rclone_server, bucket, **options)
    content = {name: f"{name}\n".encode() * 50 for name in ("a.log", "a.log.gz", "b.gz", "c/d.log.gz")}
    raw = {
        f"{RAW}{name}": gzip.compress(body, mtime=0) if name.endswith(".gz") else body
        for name, body in content.items()
    }
    raw[f"{RAW}damaged.gz"] = b"damaged"
    put_objects(pipeline.client, bucket, raw)
    pipeline.run()
    found = command("locate", "app", f"{RAW}b.gz", "--json").json
    assert (found["recompressed"], found["length"]) == (True, len(content["b.gz"]))
    assert found["raw_length"] == len(raw[f"{RAW}b.gz"])
    cat = command("cat", "app", f"{RAW}b.gz")
    assert cat.out == content["b.gz"]
    assert "recompressed" in cat.err
    for key in raw:
        pipeline.client.delete_object(Bucket=bucket, Key=key)
    expected = {
        f"{RAW}a.log": content["a.log"],
        # Its name without the extension is that of another object.
        f"{RAW}a.log.gz.unpacked": content["a.log.gz"],
        f"{RAW}b": content["b.gz"],
        f"{RAW}c/d.log": content["c/d.log.gz"],
        f"{RAW}damaged.gz": b"damaged",
    }
    target = tmp_path / "out"
    result = command("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--json")
    assert (result.code, result.json["recompressed"]) == (0, 3)
    assert files_below(target) == expected
    again = command("restore", "app", HOUR_ARGUMENT, "--to", str(target))
    assert "3 objects recompressed: restored as the content" in again.text
    assert f"{RAW}a.log.gz is restored as {RAW}a.log.gz.unpacked" in again.text
    assert "restored 0 objects" in again.text
    assert command("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{bucket}/copy/").code == 0
    assert objects_below(pipeline, "copy/") == {
        key.replace("raw/app/", "copy/"): body for key, body in expected.items()
    }
    assert command("restore", "app", HOUR_ARGUMENT, "--to", "-").out == b"".join(
        expected[key] for key in sorted(expected, key=lambda key: key.replace(".unpacked", ""))
    )


def test_second_restore_skips_what_the_directory_has(
    command: RunCommand, hour: Pipeline, tmp_path: Path
) -> None:
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", str(tmp_path / "out"), "--json")
    command(*arguments)
    (tmp_path / "out" / FOLDER / "large.log").unlink()
    kept = (tmp_path / "out" / FOLDER / "n01.log.gz").stat().st_ino
    result = command(*arguments).json
    assert (result["restored"], result["present"]) == (1, len(raw_objects()) - 1)
    assert result["bytes_read"] == len(raw_objects()[LARGE])
    assert (tmp_path / "out" / FOLDER / "n01.log.gz").stat().st_ino == kept
    assert files_below(tmp_path / "out") == raw_objects()
    nothing = command(*arguments)
    assert (nothing.code, nothing.json["gets"], nothing.json["restored"]) == (0, 0, 0)


@pytest.mark.parametrize("server_name", ["rclone", "moto"])
def test_second_restore_skips_what_the_prefix_has(
    command: RunCommand, server_name: str, rclone_server: RcloneServer, moto_server: MotoServer,
    make_bucket: BucketFactory, pipeline_on: PipelineFactory, use_streams: UseStreams,
) -> None:  # fmt: skip
    server = rclone_server if server_name == "rclone" else moto_server
    bucket = make_bucket(server)
    use_streams(settings_on(bucket))
    pipeline = pipeline_on(server, bucket)
    put_objects(pipeline.client, bucket, raw_objects())
    pipeline.run()
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{bucket}/copy/", "--json")
    assert command(*arguments).code == 0
    pipeline.client.delete_object(Bucket=bucket, Key=f"copy/{FOLDER}n02.log.gz")
    result = command(*arguments)
    assert (result.code, result.json["restored"], result.json["different"]) == (0, 1, 0), result.err
    # The original objects are the same too, also the one that was uploaded in another way.
    original = command("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{bucket}/raw/app/", "--json").json
    assert (original["present"], original["restored"]) == (len(raw_objects()), 0)


def test_different_content_is_refused_and_overwritten_on_request(
    command: RunCommand, hour: Pipeline, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    (target / FOLDER).mkdir(parents=True)
    (target / FOLDER / "n01.log.gz").write_bytes(b"mine")
    same_size = bytes(len(raw_objects()[f"{RAW}n02.log.gz"]))
    (target / FOLDER / "n02.log.gz").write_bytes(same_size)
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", str(target))
    refused = command(*arguments)
    assert refused.code == 1
    assert "has other content for 2 objects" in refused.err
    assert f"{RAW}n01.log.gz" in refused.err
    assert len(files_below(target)) == 2
    planned = command(*arguments, "--dry-run", "--json")
    assert (planned.code, planned.json["ok"], planned.json["different"]) == (1, False, 2)
    assert command(*arguments, "--overwrite").code == 0
    assert files_below(target) == raw_objects()


def test_different_objects_in_s3_are_refused(command: RunCommand, own_hour: Pipeline) -> None:
    key = f"copy/{FOLDER}large.log"
    own_hour.client.put_object(Bucket=own_hour.bucket, Key=key, Body=bytes(len(raw_objects()[LARGE])))
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{own_hour.bucket}/copy/")
    assert command(*arguments, "--json").json["error"]["kind"] == "TargetConflictError"
    assert own_hour.listed("copy/") == [key]
    assert command(*arguments, "--overwrite").code == 0
    assert objects_below(own_hour, "copy/")[key] == raw_objects()[LARGE]


# -- a part of the objects --------------------------------------------------------------------------------


def test_match_restores_some_objects_and_reads_near_them(
    command: RunCommand, hour: Pipeline, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--json")
    result = command(*arguments, "--match", "n0[12].log.gz", "--match", "large*").json
    keys = (f"{RAW}n01.log.gz", f"{RAW}n02.log.gz", LARGE)
    assert files_below(target) == {key: raw_objects()[key] for key in keys}
    assert result["bytes_read"] == result["bytes_restored"]
    nothing = command(*arguments, "--match", "web-*")
    assert (nothing.code, nothing.json["error"]["kind"]) == (1, "NotFoundError")
    assert "--match web-*; a name below the hour is " in nothing.err


def test_group_restores_one_group(
    command: RunCommand, rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    use_streams: UseStreams, tmp_path: Path,
) -> None:  # fmt: skip
    bucket = make_bucket(rclone_server)
    places = {"raw": f"s3://{bucket}/raw/{{service}}/", "aggregated": f"s3://{bucket}/out/{{service}}/"}
    use_streams(settings_on(bucket, **places))
    server_pipeline = pipeline_on(rclone_server, bucket)
    objects = {
        f"raw/{name}/20261123/08/{number}.log": b"%d\n" % number
        for name in ("api", "web")
        for number in range(9)
    }
    put_objects(server_pipeline.client, bucket, objects)
    Pipeline(stream_on(bucket, **places), server_pipeline.client, bucket).run()
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", str(tmp_path / "out"))
    assert command(*arguments, "--group", "service=web").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"web"}
    assert (tmp_path / "out/web/20261123/08/3.log").read_bytes() == b"3\n"
    absent = command(*arguments, "--group", "service=edge")
    assert (absent.code, "matches --group service=edge" in absent.err) == (1, True)
    unknown = command(*arguments, "--group", "region=eu")
    assert (unknown.code, "its groups are by service" in unknown.err) == (2, True)
    inside = command("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{bucket}/out/", "--json")
    assert (inside.code, inside.json["restored"]) == (1, 0)
    assert "would be among the parts and records" in inside.json["failed"][0]["reason"]


# -- hours ------------------------------------------------------------------------------------------------


def test_range_restores_complete_hours_and_names_the_others(
    command: RunCommand, own_hour: Pipeline, tmp_path: Path
) -> None:
    earlier = Pipeline(own_hour.stream, own_hour.client, own_hour.bucket, HOUR.replace(hour=7))
    make_small_hour(own_hour.client, own_hour.bucket, "raw/app/20261123/07/", objects=3)
    earlier.run()
    own_hour.client.delete_object(Bucket=own_hour.bucket, Key=f"{AGGREGATED}_SUCCESS")
    target = tmp_path / "out"
    arguments = ("restore", "app", "2026-11-23T06..2026-11-23T08", "--to", str(target))
    result = command(*arguments, "--json")
    assert result.code == 1
    states = {one["hour"]: one["state"] for one in result.json["hours"]}
    assert states == {
        "2026-11-23T06:00:00Z": "no-manifest",
        "2026-11-23T07:00:00Z": "complete",
        "2026-11-23T08:00:00Z": "incomplete",
    }
    assert {path.name for path in (target / "20261123").iterdir()} == {"07"}
    text = command(*arguments, "--dry-run").text
    assert "SKIPPED: 2026-11-23T08:00:00Z is incomplete: there is no s3://" in text
    anyway = command("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--incomplete")
    assert (anyway.code, "is not complete; it was read by its manifest" in anyway.text) == (0, True)
    assert {key: body for key, body in files_below(target).items() if key.startswith(RAW)} == raw_objects()


def test_unreadable_manifest_skips_its_hour(command: RunCommand, own_hour: Pipeline, tmp_path: Path) -> None:
    own_hour.client.put_object(Bucket=own_hour.bucket, Key=f"{AGGREGATED}_manifest.jsonl.gz", Body=b"?")
    result = command("restore", "app", HOUR_ARGUMENT, "--to", str(tmp_path / "out"), "--json")
    assert (result.code, result.json["hours"][0]["state"]) == (1, "unreadable")
    assert "the manifest cannot be read" in result.json["hours"][0]["problem"]


# -- damage and interruption ------------------------------------------------------------------------------


def test_damaged_object_is_named_and_the_rest_is_restored(
    command: RunCommand, own_hour: Pipeline, rclone_server: RcloneServer, tmp_path: Path
) -> None:
    damaged = f"{RAW}n04.log.gz"
    part = flip_byte(rclone_server, own_hour, command, damaged)
    flip_byte(rclone_server, own_hour, command, LARGE, 9_000_000)
    target = tmp_path / "out"
    result = command("restore", "app", HOUR_ARGUMENT, "--to", str(target), "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    failed = {one["key"]: one for one in result.json["failed"]}
    assert failed.keys() == {damaged, LARGE}
    assert failed[damaged]["part"] == part
    assert "its bytes in the part have the CRC64-NVME" in failed[damaged]["reason"]
    assert files_below(target) == without(raw_objects(), damaged, LARGE)
    tar_file = tmp_path / "out.tar"
    assert command("restore", "app", HOUR_ARGUMENT, "--to", str(tar_file)).code == 1
    with tarfile.open(tar_file) as tar:
        names = {f"raw/app/{name}" for name in tar.getnames()}
    assert names == without(raw_objects(), damaged, LARGE).keys()
    prefix = command("restore", "app", HOUR_ARGUMENT, "--to", f"s3://{own_hour.bucket}/copy/")
    assert f"FAILED: {LARGE}: " in prefix.text
    assert len(own_hour.listed("copy/")) == len(raw_objects()) - 2
    assert own_hour.open_uploads() == []
    stream = command("restore", "app", HOUR_ARGUMENT, "--to", "-")
    assert stream.code == 1
    assert "bytes of it are in the output" in stream.err


def test_missing_part_fails_its_objects_only(command: RunCommand, own_hour: Pipeline, tmp_path: Path) -> None:
    part = command("locate", "app", LARGE, "--json").json["part"]
    own_hour.client.delete_object(Bucket=own_hour.bucket, Key=AGGREGATED + part)
    result = command("restore", "app", HOUR_ARGUMENT, "--to", str(tmp_path / "out"), "--json")
    assert [one["key"] for one in result.json["failed"]] == [LARGE]
    assert "the part is gone or was replaced" in result.json["failed"][0]["reason"]
    assert files_below(tmp_path / "out") == without(raw_objects(), LARGE)


def test_wrong_md5_is_found_on_request(
    command: RunCommand, hour: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def update(self, _: object) -> None:
            pass

        def hexdigest(self) -> str:
            return "0" * 32

    monkeypatch.setattr(hashlib, "md5", Wrong)
    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", str(tmp_path / "out"), "--json")
    result = command(*arguments, "--md5", "--match", "*.gz")
    assert {"have the MD5 0000" in one["reason"] for one in result.json["failed"]} == {True}
    monkeypatch.undo()


@pytest.mark.parametrize("to", ["out", "out.tar"])
def test_interrupted_restore_leaves_no_half_file(
    command: RunCommand, hour: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    target = tmp_path / "restored" / to
    target.parent.mkdir()
    read_into = PooledS3Hook.read_into

    handled = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        handled.set()
        signal.default_int_handler(number, frame)

    def interrupted(hook: PooledS3Hook, source: Location, etag: str, offset: int, into: memoryview) -> None:
        if offset and not handled.is_set():
            # The second run of the large object, after its first one was written.
            os.kill(os.getpid(), signal.SIGINT)
            assert handled.wait(60)
            raise TransientError("the main thread is interrupted, so nothing more is read")
        read_into(hook, source, etag, offset, into)

    monkeypatch.setattr(PooledS3Hook, "read_into", interrupted)
    before = signal.signal(signal.SIGINT, handle)
    try:
        result = command("restore", "app", HOUR_ARGUMENT, "--to", str(target))
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == 130
    assert not [path for path in target.parent.rglob("*") if TEMPORARY in path.name]
    assert not target.with_name("out.tar").exists()
    found = files_below(target)
    assert found == {key: raw_objects()[key] for key in found}
    assert LARGE not in found
    monkeypatch.setattr(PooledS3Hook, "read_into", read_into)
    assert command("restore", "app", HOUR_ARGUMENT, "--to", str(target)).code == 0


def test_unreachable_store_ends_with_3_and_can_be_resumed(
    command: RunCommand, hour: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise TransientError("GET: no route to host")

    arguments = ("restore", "app", HOUR_ARGUMENT, "--to", str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(PooledS3Hook, "read_into", lost)
        result = command(*arguments)
    assert (result.code, "no route to host" in result.err) == (3, True)
    assert command(*arguments).code == 0
    assert files_below(tmp_path / "out") == raw_objects()


# -- wrong input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["2026-11-23T08", "--to", "ftp://host/"], "give s3://bucket/prefix/"),
        (["2026-11-23T08", "--to", "s3://bucket/prefix"], "write s3://bucket/prefix/"),
        (["2026-11-23T08", "--to", "hour.tar.gz"], "name a .tar file"),
        (["2026-11-23T08", "--to", "{file}"], "it is a file"),
        (["2026-11-23T08", "--to", "{file}/below"], "cannot write"),
        (["2026-11-23T08", "--to", "out", "--group", "service"], "write it like service=web"),
        (["2026-11-23T08", "--to", "out", "--group", "service=web"], "not divided into groups"),
        (["2026-11-23T08..2026-11-23T07", "--to", "out"], "ends before it begins"),
        (["2026-11-23T08..", "--to", "out"], "is not an hour"),
        (["2026-11-23", "--to", "out"], "is a day"),
        (["2026-11-23T08..2936-11-23T08", "--to", "out"], "give at most 10,000"),
        (["2026-11-23T08"], "--to"),
    ],
)
def test_wrong_arguments_exit_with_2_and_a_reason(
    command: RunCommand, hour: Pipeline, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    given = [one.format(file=file) for one in arguments]
    result = command("restore", "app", *given)
    assert (result.code, result.out) == (2, b"")
    assert reason in result.err
    assert file.read_bytes() == b"mine"


def test_restored_bytes_have_the_etags_of_the_manifest(
    command: RunCommand, hour: Pipeline, tmp_path: Path
) -> None:
    command("restore", "app", HOUR_ARGUMENT, "--to", str(tmp_path / "out"))
    for key in (ZIPPED, f"{RAW}n01.log.gz"):
        found = command("locate", "app", key, "--json").json
        body = (tmp_path / "out" / key.removeprefix("raw/app/")).read_bytes()
        assert hashlib.md5(body).hexdigest() == found["etag"]
