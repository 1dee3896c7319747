"""The command grep on a real server: its text, its JSON and its exit codes."""

import base64
import gzip
import json
import lzma
import os
import pty
import re
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dev.servers import RcloneServer
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline, settings_on, stream_on
from tests.support.raw_hours import AGGREGATED, RAW, put_objects, zstd_frame

SINCE = "--since=2026-11-23T08"
LINES = b"".join(
    b"line %d level=%b\n" % (number, b"INFO" if number % 10 else b"ERROR") for number in range(100)
)
OBJECTS = {
    RAW + "a.log": LINES,
    RAW + "b.log": b"no newline level=ERROR",
    RAW + "c.log.gz": gzip.compress(LINES),
    RAW + "d.log.zst": zstd_frame(LINES),
    RAW + "e.log.xz": lzma.compress(LINES),
    RAW + "odd.log": b"\xff \x1b[31m\tlevel=ERROR gr\xc3\xbc\xc3\x9fe\n",
    RAW + "web/f.log": b"level=ERROR in web\n",
}


@pytest.fixture
def hour(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    use_streams: UseStreams,
) -> Pipeline:  # fmt: skip
    """The raw objects of an hour."""
    bucket = make_bucket(rclone_server)
    use_streams(settings_on(bucket))
    pipeline = pipeline_on(rclone_server, bucket)
    put_objects(pipeline.client, bucket, OBJECTS)
    return pipeline


@pytest.fixture(scope="module")
def complete_hour(rclone_server: RcloneServer) -> Iterator[Pipeline]:
    """The same hour for all tests of this module, complete, and without its raw objects."""
    bucket = f"bucket-{uuid.uuid4().hex[:16]}"
    rclone_server.create_bucket(bucket)
    pipeline = Pipeline(stream_on(bucket), rclone_server.client(), bucket)
    put_objects(pipeline.client, bucket, OBJECTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
        expire(pipeline)
    yield pipeline
    rclone_server.delete_bucket(bucket)


@pytest.fixture
def complete(
    complete_hour: Pipeline, rclone_server: RcloneServer, pipeline_on: PipelineFactory, use_streams: UseStreams
) -> Pipeline:  # fmt: skip
    """The complete hour of this module, which a test may read and not change."""
    use_streams(settings_on(complete_hour.bucket))
    return pipeline_on(rclone_server, complete_hour.bucket)


@pytest.fixture
def own_complete(hour: Pipeline) -> Pipeline:
    """Such an hour for one test, which may change it."""
    expire(hour)
    return hour


def expire(pipeline: Pipeline) -> None:
    """Run the hour, and delete its raw objects."""
    pipeline.run()
    for key in OBJECTS:
        pipeline.client.delete_object(Bucket=pipeline.bucket, Key=key)


def prefixed(name: str, numbered: bool = False) -> list[str]:
    return [
        f"{RAW}{name}:{f'{number + 1}:' if numbered else ''}line {number} level=ERROR"
        for number in range(0, 100, 10)
    ]


def test_grep_writes_the_lines_of_every_format_in_order(command: RunCommand, complete: Pipeline) -> None:
    result = command("grep", "level=(ERROR|FATAL)", "app", SINCE)
    assert result.code == 0
    assert "searched" not in result.err
    assert result.out.split(b"\n") == [
        *(line.encode() for line in prefixed("a.log")),
        f"{RAW}b.log:no newline level=ERROR".encode(),
        f"{RAW}odd.log:".encode() + OBJECTS[RAW + "odd.log"][:-1],
        f"{RAW}web/f.log:level=ERROR in web".encode(),
        *(line.encode() for name in ("c.log.gz", "e.log.xz", "d.log.zst") for line in prefixed(name)),
        b"",
    ]


def test_grep_options_are_those_of_grep(command: RunCommand, complete: Pipeline) -> None:
    a_log = ["app", SINCE, "--match=a.log"]
    assert command("grep", "-n", "ERROR", *a_log).text.splitlines() == prefixed("a.log", numbered=True)
    assert command("grep", "-h", "-m2", "ERROR", *a_log).text == "line 0 level=ERROR\nline 10 level=ERROR\n"
    assert command("grep", "-c", "-v", "ERROR", *a_log).text == f"{RAW}a.log:90\n"
    assert command("grep", "-hc", "-i", "error", *a_log).text == "10\n"
    assert command("grep", "-l", "ERROR", "app", SINCE, "--match=web*").text == f"{RAW}web/f.log\n"
    found = command("grep", "-F", "level=.*", *a_log)
    assert (found.code, "searched" in found.err) == (1, False)
    found = command("grep", "ERROR", "app", SINCE, "--match=other*")
    assert (found.code, "nothing was searched: no raw object" in found.err) == (1, True)
    assert command("grep", "--json", "-c", "ERROR", *a_log).json == {
        "hour": "2026-11-23T08:00:00Z", "key": f"{RAW}a.log", "count": 10,
    }  # fmt: skip
    assert command("grep", *a_log[1:], "--", "-x", "app").code == 1


def test_grep_json_has_an_object_for_each_line(command: RunCommand, complete: Pipeline) -> None:
    result = command("grep", "--json", "ERROR", "app", SINCE, "--match=odd*", "--match=web/*")
    odd, web = map(json.loads, result.out.splitlines())
    place = {"hour": "2026-11-23T08:00:00Z", "line_number": 1}
    assert web == {**place, "key": f"{RAW}web/f.log", "text": "level=ERROR in web"}
    assert base64.b64decode(odd.pop("bytes")) == OBJECTS[RAW + "odd.log"][:-1]
    assert odd == {**place, "key": f"{RAW}odd.log"}
    assert result.out.isascii()


def test_grep_names_skipped_hours_and_exits_with_2(command: RunCommand, own_complete: Pipeline) -> None:
    result = command("grep", "-c", "ERROR", "app", SINCE, "--until=20261123/10", "--match=a.log")
    assert (result.code, result.text) == (2, f"{RAW}a.log:10\n")
    assert "\nskipped: 2 hours from 2026-11-23T09:00:00Z to 2026-11-23T10:00:00Z: " in f"\n{result.err}"
    assert "there is no s3://" in result.err
    own_complete.client.delete_object(Bucket=own_complete.bucket, Key=f"{AGGREGATED}_SUCCESS")
    assert command("grep", "ERROR", "app", SINCE).code == 2
    result = command("grep", "-c", "ERROR", "app", SINCE, "--match=a.log", "--incomplete")
    assert (result.code, result.text) == (0, f"{RAW}a.log:10\n")
    assert re.search(
        "not complete, but searched: hour 2026-11-23T08.*: parts were read: .*_SUCCESS", result.err
    )


def test_grep_names_skipped_hours_by_their_reasons(command: RunCommand, own_complete: Pipeline) -> None:
    result = command("grep", "-c", "ERROR", "app", "--since=20261123/06", "--until=20261123/10")
    skipped = [line for line in result.err.splitlines() if line.startswith("skipped: ")]
    # Not five hours less one.
    assert [line.partition(": of")[0] for line in skipped] == [
        "skipped: 2 hours from 2026-11-23T06:00:00Z to 2026-11-23T07:00:00Z",
        "skipped: 2 hours from 2026-11-23T09:00:00Z to 2026-11-23T10:00:00Z",
    ]
    own_complete.client.delete_object(Bucket=own_complete.bucket, Key=f"{AGGREGATED}_SUCCESS")
    result = command("grep", "-c", "ERROR", "app", SINCE, "--until=20261123/09")
    skipped = [line for line in result.err.splitlines() if line.startswith("skipped: ")]
    assert [line.rpartition("/")[2] for line in skipped] == ["_SUCCESS", "_manifest.jsonl.gz"]


def test_grep_reads_raw_objects_of_an_hour_without_parts(command: RunCommand, hour: Pipeline) -> None:
    assert command("grep", "ERROR", "app", SINCE).code == 2
    result = command("grep", "-c", "ERROR", "app", SINCE, "--include-raw")
    names = ("a.log", "b.log", "c.log.gz", "d.log.zst", "e.log.xz", "odd.log", "web/f.log")
    assert (result.code, [line.split(":")[0] for line in result.text.splitlines()]) == (
        0,
        [RAW + name for name in names],
    )
    assert "raw objects were read: there is no s3://" in result.err


def test_grep_searches_chosen_groups(command: RunCommand, hour: Pipeline, use_streams: UseStreams) -> None:
    places = {
        "raw": f"s3://{hour.bucket}/raw/{{service}}/",
        "aggregated": f"s3://{hour.bucket}/out/{{service}}/",
    }
    put_objects(hour.client, hour.bucket, {"raw/other/20261123/08/x.log": b"level=ERROR other\n"})
    use_streams(settings_on(hour.bucket, **places))
    Pipeline(stream_on(hour.bucket, **places), hour.client, hour.bucket).run()
    result = command("grep", "ERROR", "app", SINCE, "--group", "service=other")
    assert (result.code, result.text) == (0, "raw/other/20261123/08/x.log:level=ERROR other\n")
    assert command("grep", "ERROR", "app", SINCE, "--group", "service=none").code == 1
    assert command("grep", "ERROR", "app", SINCE, "--group", "host=web").code == 2


def test_grep_searches_compressed_parts(command: RunCommand, hour: Pipeline, use_streams: UseStreams) -> None:
    use_streams(settings_on(hour.bucket, compression="zstd"))
    Pipeline(stream_on(hour.bucket, compression="zstd"), hour.client, hour.bucket).run()
    result = command("grep", "ERROR", "app", SINCE, "--match=*.log", "-c")
    assert result.text.splitlines() == [
        f"{RAW}{name}:{count}"
        for name, count in (("a.log", 10), ("b.log", 1), ("odd.log", 1), ("web/f.log", 1))
    ]


def test_grep_shows_where_a_pattern_is_wrong(command: RunCommand, complete: Pipeline) -> None:
    result = command("grep", "a(b", "app", SINCE)
    assert (result.code, result.out) == (2, b"")
    assert "  a(b\n   ^\nlog-rollup grep: " in result.err
    assert "not a regular expression: missing ), unterminated subpattern" in result.err
    result = command("grep", "--json", "a(b", "app", SINCE)
    assert (result.code, len(result.out.splitlines())) == (2, 1)
    assert result.json["error"]["kind"] == "PatternError"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a", "app"], "--since"),
        (["a", "app", SINCE, "--until=2026-11-22"], "is before --since"),
        (["a", "app", "--since=2990-01-01"], "has not begun"),
        (["a", "app", SINCE, "-m0"], "is not a number of lines"),
        (["a", "app", SINCE, "--group", "web"], "is not a group"),
        (["a", "app", SINCE, "-c", "-l"], "not allowed with"),
        (["[é]", "app", SINCE], "are not ASCII"),
        (["[[:digit:]]+", "app", SINCE], "Python has no class [:digit:]; write \\d"),
        (["a", "other", SINCE], "there is no stream"),
    ],
)
def test_grep_refuses_a_wrong_command_line(
    command: RunCommand, complete: Pipeline, arguments: list[str], reason: str
) -> None:
    result = command("grep", *arguments)
    assert (result.code, result.out) == (2, b"")
    assert reason in result.err


def test_grep_errors_do_not_look_like_nothing_found(command: RunCommand, own_complete: Pipeline) -> None:
    (part, *_) = own_complete.listed(f"{AGGREGATED}part-00000")
    own_complete.client.delete_object(Bucket=own_complete.bucket, Key=part)
    result = command("grep", "-c", "absent", "app", SINCE)
    assert (result.code, result.out) == (2, b"")
    assert "it was overwritten or removed while it was read" in result.err


def test_grep_stops_when_its_reader_does(
    command: RunCommand, hour: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More output than a pipe holds.
    put_objects(hour.client, hour.bucket, {f"{RAW}{number}.log": b"x\n" * 20_000 for number in range(4)})
    ours, theirs = os.pipe()

    def read_and_close() -> bytes:
        with os.fdopen(ours, "rb", buffering=0) as pipe:
            return pipe.read(len(RAW))

    # Closing flushes the output, as Python does at exit.
    with ThreadPoolExecutor(1) as reader, os.fdopen(theirs, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        beginning = reader.submit(read_and_close)
        result = command("grep", "x", "app", SINCE, "--include-raw")
    assert beginning.result() == RAW.encode()
    assert result.code == 141
    # Airflow's own messages are disabled in a process of the command.
    assert [line for line in result.err.splitlines() if "[info " not in line] == []


def test_grep_escapes_control_characters_on_a_terminal(
    command: RunCommand, complete: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, terminal = pty.openpty()
    with (
        os.fdopen(ours, "rb", buffering=0) as screen,
        os.fdopen(terminal, "w", encoding="utf-8") as output,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", output)
        result = command("grep", "ERROR", "app", SINCE, "--match=odd.log")
        shown = screen.read(1000)
    assert result.code == 0
    assert shown == f"{RAW}odd.log:\\xff \\x1b[31m\tlevel=ERROR grüße\r\n".encode()
