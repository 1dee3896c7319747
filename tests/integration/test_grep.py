"""The command grep on a real server: its text, its JSON and its exit codes."""

import base64
import gzip
import json
import lzma
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from dev.servers import RcloneServer
from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.integration.test_cli import run_script
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


@pytest.fixture
def complete(hour: Pipeline) -> Pipeline:
    """The same hour, complete, and without its raw objects."""
    hour.run()
    for key in OBJECTS:
        hour.client.delete_object(Bucket=hour.bucket, Key=key)
    return hour


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
    assert command("grep", "-F", "level=.*", *a_log).code == 1
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


def test_grep_names_skipped_hours_and_exits_with_2(command: RunCommand, complete: Pipeline) -> None:
    result = command("grep", "-c", "ERROR", "app", SINCE, "--until=20261123/10", "--match=a.log")
    assert (result.code, result.text) == (2, f"{RAW}a.log:10\n")
    assert "\nskipped: 2 hours from 2026-11-23T09:00:00Z to 2026-11-23T10:00:00Z: " in f"\n{result.err}"
    assert "there is no s3://" in result.err
    complete.client.delete_object(Bucket=complete.bucket, Key=f"{AGGREGATED}_SUCCESS")
    assert command("grep", "ERROR", "app", SINCE).code == 2
    result = command("grep", "-c", "ERROR", "app", SINCE, "--match=a.log", "--incomplete")
    assert (result.code, result.text) == (0, f"{RAW}a.log:10\n")
    assert re.search(
        "not complete, but searched: hour 2026-11-23T08.*: parts were read: .*_SUCCESS", result.err
    )


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


def test_grep_shows_where_a_pattern_is_wrong(command: RunCommand, hour: Pipeline) -> None:
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
        (["a", "other", SINCE], "there is no stream"),
    ],
)
def test_grep_refuses_a_wrong_command_line(
    command: RunCommand, hour: Pipeline, arguments: list[str], reason: str
) -> None:
    result = command("grep", *arguments)
    assert (result.code, result.out) == (2, b"")
    assert reason in result.err


def test_grep_errors_do_not_look_like_nothing_found(command: RunCommand, complete: Pipeline) -> None:
    (part, *_) = complete.listed(f"{AGGREGATED}part-00000")
    complete.client.delete_object(Bucket=complete.bucket, Key=part)
    result = command("grep", "-c", "absent", "app", SINCE)
    assert (result.code, result.out) == (2, b"")
    assert "it was overwritten or removed while it was read" in result.err


def test_grep_stops_when_its_reader_does(complete: Pipeline, tmp_path: Path) -> None:
    put_objects(
        complete.client, complete.bucket, {f"{RAW}{number}.log": b"x\n" * 200_000 for number in range(20)}
    )
    complete.client.delete_object(Bucket=complete.bucket, Key=f"{AGGREGATED}_SUCCESS")
    process = run_script(["grep", "x", "app", SINCE, "--include-raw"], tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(len(RAW)) == RAW.encode()
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_grep_escapes_control_characters_on_a_terminal(complete: Pipeline, tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    process = subprocess.run(
        [str(ROOT / "log-rollup"), "grep", "ERROR", "app", SINCE, "--match=odd.log"],
        cwd=tmp_path, stdout=terminal, check=False,
    )  # fmt: skip
    os.close(terminal)
    shown = os.read(ours, 1000)
    os.close(ours)
    assert process.returncode == 0
    assert shown == f"{RAW}odd.log:\\xff \\x1b[31m\tlevel=ERROR grüße\r\n".encode()
