"""The demo command: its options, and the report of an ended run."""

import argparse
import gzip
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dev.demo import cli, group_table
from dev.demo.group_table import read_group
from dev.demo.hour_watch import describe_step_times
from dev.made_logs import log_files
from dev.made_logs.dataset import Dataset, make_dataset, read_dataset
from dev.made_logs.layouts import CLOUDTRAIL, GROUPS, LAYOUTS, PLAIN
from dev.made_logs.log_files import MadeGroup
from dev.stack.airflow_api import TaskInstance
from dev.stack.environment import Addresses
from dev.stack.paths import StackPaths
from dev.stack.s3_servers import MINISTACK, RCLONE
from dev.stack.stack_record import StackRecord, read_record, write_record
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate

START = datetime(2026, 11, 24, 8, tzinfo=UTC)

POOL_BYTES = 200_000

MakeHours = Callable[[str], tuple[StackPaths, Dataset]]


@pytest.fixture(scope="module")
def make_hours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeHours]:
    """Make two small hours of a layout, once for all tests."""

    @cache
    def make(layout_name: str) -> tuple[StackPaths, Dataset]:
        paths = StackPaths(tmp_path_factory.mktemp(layout_name))
        now = START + timedelta(hours=2)
        return paths, make_dataset(paths, 2, 4, now, lambda _: None, layout_name=layout_name)

    with pytest.MonkeyPatch.context() as patch:
        # Large pools of lines take seconds of CPU, and only make the objects different.
        patch.setattr(log_files, "_PLAIN_POOL_BYTES", POOL_BYTES)
        patch.setattr(log_files, "_GZIP_POOL_BYTES", POOL_BYTES)
        yield make


def keys_in(paths: StackPaths) -> list[str]:
    """The keys of all raw objects."""
    return [path.relative_to(paths.bucket).as_posix() for path in paths.bucket.rglob("*") if path.is_file()]


def task(task_id: str, map_index: int, start: float | None, end: float | None) -> TaskInstance:
    """Return a task that ran from `start` to `end`, in seconds after the start of the run."""
    moments = (None if one is None else START + timedelta(seconds=one) for one in (start, end))
    return TaskInstance("run", task_id, map_index, "success", 1, "pool", 1, *moments)


def test_run_time_is_split_into_steps_and_idle_time() -> None:
    tasks = [
        task("complete", -1, 17, 18),
        task("pack", 0, 5, 9),
        task("pack", 1, 5.5, 11),
        task("pack", 2, 12, 15),
        task("plan", -1, 1, 4),
        task("skipped", -1, None, None),
    ]
    assert (
        describe_step_times(20, tasks) == "plan 3.0 s, pack (3) 10.0 s, complete 1.0 s, no task running 7.0 s"
    )


def test_run_without_tasks_is_all_idle_time() -> None:
    assert describe_step_times(2.5, []) == "no task running 2.5 s"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--s3", "minio"], "--s3: 'minio' is not one of rclone, ministack, moto"),
        (
            ["--layout", "Group"],
            "--layout: 'Group' is not one of plain, groups, cloudtrail; did you mean groups?",
        ),
        (["--layout", ""], "--layout: '' is not one of plain, groups, cloudtrail"),
        (["--hours", "0"], "--hours: '0' is not a whole number above 0"),
        (["--objects", "many"], "--objects: 'many' is not a whole number above 0"),
    ],
)
def test_wrong_option_is_refused_in_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["run", *options])
    assert capsys.readouterr().err == f"python -m dev.demo run: error: argument {message}\n"


def test_progress_shows_the_groups_of_each_made_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_PLAIN_POOL_BYTES", POOL_BYTES)
    monkeypatch.setattr(log_files, "_GZIP_POOL_BYTES", POOL_BYTES)
    lines: list[str] = []
    make_dataset(StackPaths(tmp_path), 2, 4, START, lines.append, layout_name=GROUPS)
    assert [line.rpartition(": ")[2] for line in lines] == ["web 2, api 2", "web 2, api 1, edge 1"]


def test_up_with_another_s3_server_is_refused(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    write_record(paths, StackRecord(Addresses(ui_port=8080, s3_port=9000), (), MINISTACK))
    with pytest.raises(cli.RefusedError, match=r"with MiniStack is running .*make down"):
        cli.up(paths, argparse.Namespace(s3=RCLONE, layout=None))


def test_up_with_another_layout_is_refused(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    write_record(paths, StackRecord(Addresses(ui_port=8080, s3_port=9000), (), RCLONE))
    with pytest.raises(cli.RefusedError, match=r"with the layout plain is running .*make down"):
        cli.up(paths, argparse.Namespace(s3=RCLONE, layout=GROUPS))


def test_records_without_s3_server_mean_rclone(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    paths.stack.write_text(json.dumps({"addresses": {"ui_port": 1, "s3_port": 2}, "processes": []}))
    paths.dataset.write_text(json.dumps({"seed": 1, "hours": []}))
    paths.streams.touch()
    stack, dataset = read_record(paths), read_dataset(paths)
    assert stack is not None
    assert dataset is not None
    assert (stack.s3, dataset.s3) == (RCLONE, RCLONE)
    assert dataset.layout_name == PLAIN


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_made_hours_lie_where_the_templates_say(layout_name: str, make_hours: MakeHours) -> None:
    paths, dataset = make_hours(layout_name)
    layout = dataset.layout
    raw = RawTemplate.parse(f"s3://logs/{layout.raw}")
    aggregated = AggregatedTemplate.parse(f"s3://logs/{layout.aggregated}")
    found = [match for key in keys_in(paths) if (match := raw.match(key))]
    assert len(found) == len(keys_in(paths))
    for made in dataset.hours:
        assert sum(match.hour == made.hour for match in found) == made.objects
        assert layout.home(made.hour) == aggregated.home(layout.stream, made.hour)
        for group in made.groups:
            captures = tuple(group.captures.values())
            assert sum(match[:2] == (made.hour, captures) for match in found) == group.objects
            assert aggregated.render(made.hour, captures) == group.aggregated
        if made.groups:
            assert sum(group.objects for group in made.groups) == made.objects
    assert read_dataset(paths) == dataset


def test_new_service_appears_in_the_second_hour(make_hours: MakeHours) -> None:
    first, second = make_hours(GROUPS)[1].hours
    assert [group.name for group in first.groups] == ["web", "api"]
    assert [group.name for group in second.groups] == ["web", "api", "edge"]


def test_cloudtrail_objects_are_documents_without_a_newline(make_hours: MakeHours) -> None:
    paths, _ = make_hours(CLOUDTRAIL)
    for key in keys_in(paths):
        text = gzip.decompress((paths.bucket / key).read_bytes())
        assert not text.endswith(b"\n")
        assert json.loads(text)["Records"]


class FakeS3:
    """A client of a bucket in memory."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.exceptions = type("exceptions", (), {"NoSuchKey": KeyError})

    def get_paginator(self, _operation: str) -> "FakeS3":
        return self

    def paginate(self, **request: str) -> Iterator[dict[str, Any]]:
        yield {
            "Contents": [{"Key": key} for key in sorted(self.objects) if key.startswith(request["Prefix"])]
        }

    def get_object(self, **request: str) -> dict[str, Any]:
        return {"Body": io.BytesIO(self.objects[request["Key"]])}


def manifest(**compressions: str) -> bytes:
    """A manifest's header, with the compression of each compressed part."""
    table = [{"name": name, "compression": value} for name, value in compressions.items()]
    return gzip.compress(f"{json.dumps({'parts_table': table})}\n".encode())


@pytest.fixture
def group(tmp_path: Path) -> tuple[MadeGroup, FakeS3]:
    """A group of two plain raw objects and one gzip object, and its parts."""
    bodies = {
        "raw/web/b.log": b"two\n",
        "raw/web/a/a.log": b"one\n",
        "raw/web/c.log.gz": gzip.compress(b"three\n"),
    }
    for key, body in bodies.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(body)
    size = sum(map(len, bodies.values()))
    marker = {
        "objects": 3, "bytes_in": size, "separator_bytes": 0, "bytes_out": size, "parts": 2,
        "verified": {"parts": {"etag-md5": 2}, "objects": {"etag-md5": 3}},
        "max_connections": 25, "peak": {"sockets": 5}, "group": {"service": "web"},
    }  # fmt: skip
    client = FakeS3(
        {
            "parts/web/part-00000-3f9c2a1b.log": b"one\ntwo\n",
            "parts/web/part-00001-91d0c7e4.log.gz": bodies["raw/web/c.log.gz"],
            "parts/web/_manifest.jsonl.gz": manifest(),
            "parts/web/_SUCCESS": json.dumps(marker).encode(),
        }
    )
    return MadeGroup({"service": "web"}, "raw/web/", "parts/web/", 3, size), client


def test_group_with_the_bytes_of_raw_has_no_problem(group: tuple[MadeGroup, FakeS3], tmp_path: Path) -> None:
    made, client = group
    result = read_group(client, tmp_path, START, made)
    assert result.problems() == []
    assert group_table.render([result]).splitlines()[-1].split() == [
        "2026-11-24", "08:00", "web", "3", str(made.bytes), str(made.bytes), "2", "yes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("compression", "name", "compress"),
    [
        ("zstd", "part-00000-3f9c2a1b.log.zst", zstandard.ZstdCompressor().compress),
        ("gzip", "part-00000-3f9c2a1b.log.gz", gzip.compress),
    ],
)
def test_compressed_parts_are_decompressed(
    group: tuple[MadeGroup, FakeS3],
    tmp_path: Path,
    compression: str,
    name: str,
    compress: Callable[[bytes], bytes],
) -> None:
    made, client = group
    del client.objects["parts/web/part-00000-3f9c2a1b.log"]
    client.objects[f"parts/web/{name}"] = compress(b"one\n") + compress(b"two\n")
    client.objects["parts/web/_manifest.jsonl.gz"] = manifest(**{name: compression})
    assert read_group(client, tmp_path, START, made).problems() == []


@pytest.mark.parametrize(
    ("key", "body", "problem"),
    [
        ("part-00000-3f9c2a1b.log", b"two\none\n", "the parts do not hold the bytes of the raw objects"),
        ("part-00002-00000000.log", b"", "_SUCCESS has 2 parts, the folder has 3"),
    ],
)
def test_group_with_other_bytes_is_a_problem(
    group: tuple[MadeGroup, FakeS3], tmp_path: Path, key: str, body: bytes, problem: str
) -> None:
    made, client = group
    client.objects[f"parts/web/{key}"] = body
    result = read_group(client, tmp_path, START, made)
    assert result.problems() == [f"2026-11-24 08:00 UTC, web: {problem}"]
    assert group_table.render([result]).endswith("NO")


def test_group_without_a_marker_is_a_problem(group: tuple[MadeGroup, FakeS3], tmp_path: Path) -> None:
    made, client = group
    del client.objects["parts/web/_SUCCESS"]
    result = read_group(client, tmp_path, START, made)
    assert result.problems() == ["2026-11-24 08:00 UTC, web: there is no parts/web/_SUCCESS"]
