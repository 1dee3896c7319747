"""The command's output is printable and aligned, and its arguments accept the usual forms."""

import argparse
import io
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from include.log_rollup import __version__
from include.log_rollup.printable import printable
from include.log_rollup.streams import INCLUDE, load_streams
from log_rollup_plugin.cli import cost, detect, hours, objects, output, restore
from log_rollup_plugin.cli.arguments import hour
from log_rollup_plugin.cli.main import main
from log_rollup_plugin.cli.output import Answer, ProgressDisplay, printable_record, table
from log_rollup_plugin.cli.standard_streams import discard
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import MARKER, make_stream, manifest_of, produce, run_hour
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

# Characters that change what a terminal shows: C0 and C1 controls, line ends, bidirectional and invisible ones.
CONTROL_CHARACTERS = (
    "\x1b[2J\n\r\t\b\x00\x7f\x85\x9b31m\u2028\u2029\u202e\u2066\u200f\u061c\u200b\ufeff\u00ad\U000e0001"
)
SURROGATE = "\ud800"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T08:00:00Z", "2026-11-23T08:59:59Z", "2026-11-23T08", "2026-11-23 08:30", "20261123T08",
        "20261123/08", "20261123/08/", "2026-11-23T10:00+02:00",
    ],
)  # fmt: skip
def test_hour_is_read_in_usual_forms_and_is_utc_by_default(text: str) -> None:
    assert hour(text) == datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "9999-12-31T23", "9999-12-31T23:30-05:00", "0001-01-01T00", "0001-01-01T00:00+05:00", "99991231/23",
        "00010101/00", "3000-01-01T00",
    ],
)  # fmt: skip
def test_hour_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match="out of range; give an hour of the years 1970 to 2999"
    ):
        hour(text)


@pytest.mark.parametrize("text", ["", "08", "2026-11-23", "20261123", "20261123/24", "20261123/8", "now"])
def test_text_that_is_no_hour_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        hour(text)


def test_table_is_aligned_without_trailing_blanks() -> None:
    assert table(("hour", "n", "how"), [("08", "1,000", "x"), ("09", "-", "read-back")], (0, 2)) == [
        "hour      n  how",
        "----  -----  ---------",
        "08    1,000  x",
        "09        -  read-back",
    ]


def test_progress_without_a_terminal_is_an_occasional_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    with ProgressDisplay("reading") as progress:
        progress(1024, 4096)
    with ProgressDisplay("reading", shown=False) as progress:
        progress(2048, 4096)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "reading: 1.0 KiB of 4.0 KiB\n")


# -- control characters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("raw/app/grüße 中文 🎉 \\x1b~.log", "raw/app/grüße 中文 🎉 \\x1b~.log"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb\tc\x7f", "a\\x0d\\x0ab\\x09c\\x7f"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("\u202egnp\u2028", "\\u202egnp\\u2028"),
        ("\ud800\U000e0001", "\\ud800\\U000e0001"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_output_is_printable_for_any_text() -> None:
    assert printable(CONTROL_CHARACTERS + SURROGATE).isprintable()


def test_table_with_control_characters_stays_aligned() -> None:
    lines = table(("key", "n"), [("a\x1b[2J\nb", "1"), ("plain", "2")], (0,))
    assert {len(line) for line in lines} == {len("a\\x1b[2J\\x0ab  1")}
    assert all(line.isprintable() for line in lines)


def test_json_is_printable_ascii_and_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Answer(stream).json({"key": CONTROL_CHARACTERS + SURROGATE + "ü"})
    stream.seek(0)
    text = stream.read()
    assert all(line.isprintable() for line in text.splitlines())
    assert json.loads(text) == {"key": CONTROL_CHARACTERS + SURROGATE + "ü"}


def test_ascii_terminal_gets_escapes() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Answer(stream).lines("grüße", SURROGATE)
    stream.seek(0)
    assert stream.read() == "gr\\xfc\\u00dfe\n\\ud800\n".replace("\\u00df", "\\xdf")


def test_messages_and_titles_are_one_printable_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    output.tell(f"key {CONTROL_CHARACTERS}")
    with ProgressDisplay(f"reading {CONTROL_CHARACTERS}") as progress:
        progress(1, 2)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_log_records_are_one_printable_line() -> None:
    record = printable_record("name", logging.WARNING, __file__, 1, "key %s", (CONTROL_CHARACTERS,), None)
    assert record.getMessage() == f"key {printable(CONTROL_CHARACTERS)}"
    wrong = printable_record("name", logging.WARNING, __file__, 1, "%d", ("x",), None)
    assert (wrong.msg, wrong.args) == ("%d", ("x",))


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a call of the command."""

    code: int
    out: str
    err: str

    def check(self) -> None:
        """Check that all lines are printable."""
        for line in (self.out + self.err).split("\n"):
            assert line.isprintable(), repr(line)


RunCommand = Callable[..., CommandResult]


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def run(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    unwatched: None,
) -> RunCommand:  # fmt: skip
    """Return a function that runs the command on a store in memory."""
    stream = {"name": "app", "raw": "s3://logs/raw/app/", "aggregated": "s3://logs/aggregated/app/"}
    path = tmp_path / "streams.yaml"
    path.write_text(yaml.safe_dump({"streams": [{**stream, "start": "2026-11-01T00:00:00Z"}]}))
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(path))
    for module in (cost, hours, objects, restore):
        monkeypatch.setattr(module, "open_store", lambda *_: nullcontext(store))
    monkeypatch.setattr(detect, "open_connection", lambda _: nullcontext(store))

    def run_command(*arguments: str) -> CommandResult:
        capsys.readouterr()
        return CommandResult(main(arguments), *capsys.readouterr())

    return run_command


def test_no_command_prints_control_characters_of_keys(
    run: RunCommand, store: FakeStore, tmp_path: Path
) -> None:
    name = f"web/{CONTROL_CHARACTERS}.log"
    produce(store, {name: b"a" * 30, f"other-{name}": b"b" * 40})
    run_hour(store, make_stream(part_size=32 * 1024 * 1024, shard_size=1024 * 1024 * 1024))
    key = RAW + name
    part = manifest_of(store)[1][0]["part"]

    def run_every_command() -> list[CommandResult]:
        results = [
            run("status", "app", "2026-11-23"),
            run("verify", "app", "2026-11-23T08"),
            run("verify", "app", "2026-11-23T08", "--deep"),
            run("verify", "app", "2026-11-23T08", "--deep", "--json"),
            run("locate", "app", key),
            run("locate", "app", key, "--json"),
            run("locate", "app", key + CONTROL_CHARACTERS),
            run("locate", "app", f"other/{CONTROL_CHARACTERS}"),
            run("locate", "app", f"s3://{CONTROL_CHARACTERS}/x"),
            run("cat", "app", key, "-o", str(tmp_path / "out")),
            run("cat", "app", key, "-o", str(tmp_path / "no" / "out")),
            run("plan", "app", "2026-11-23T08", "--dry-run"),
            run("plan", "app", "2026-11-23T08", "--dry-run", "--json"),
            run("cost", "app", "--since", "2026-11-23", "--until", "2026-11-23"),
            run("cost", "app", "--since", "2026-11-23", "--until", "2026-11-23", "--json", "--plan", "3y"),
            run("detect", "s3://logs/raw/"),
            run("detect", "s3://logs/raw/", "--json"),
            run("detect", f"s3://logs/{CONTROL_CHARACTERS}/"),
        ]
        for result in results:
            result.check()
        return results

    run_every_command()
    assert (tmp_path / "out").read_bytes() == b"a" * 30
    store.corrupt(AGGREGATED + part, keep_etag=True)
    shown = "".join(result.out + result.err for result in run_every_command())
    # verify --deep names the damaged object.
    assert printable(name) in shown
    store.vanish(key)
    produce(store, {f"late/{CONTROL_CHARACTERS}.log": b"c"})
    run_every_command()


def test_hour_out_of_range_ends_with_2(run: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("verify", "app", "9999-12-31T23")
    assert ended.value.code == 2
    assert "out of range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("s3://logs/x\udcff/", "is not UTF-8, as all keys in S3 are; write it in UTF-8"),
        ("s3://\udcff/", "is not UTF-8"),
        ("", "cannot restore to '': it is empty; for the current directory give ."),
    ],
)
def test_wrong_target_of_restore_ends_with_2(run: RunCommand, target: str, reason: str) -> None:
    result = run("restore", "app", "2026-11-23T08", "--to", target)
    assert result.code == 2
    assert reason in result.err
    result.check()


def test_url_that_is_not_utf8_is_not_sampled(run: RunCommand) -> None:
    result = run("detect", "s3://logs/\udcff")
    assert (result.code, "is not UTF-8" in result.err) == (2, True)


def test_grep_refuses_more_hours_than_a_year_has(run: RunCommand) -> None:
    result = run("grep", "a", "app", "--since", "2020-01-01", "--until", "2021-02-20T16")
    assert result.code == 2
    assert "from --since 2020-01-01T00:00:00Z on there are 10,001 hours; give at most 10,000" in result.err


def test_detected_file_loads_with_any_character(run: RunCommand, store: FakeStore, tmp_path: Path) -> None:
    for number in range(4):
        store.produce(
            f"raw/{CONTROL_CHARACTERS}ü{{}}%/2026-11-22/{number:02}/a: {CONTROL_CHARACTERS}#.log", b"a"
        )
    result = run("detect", "s3://logs/")
    result.check()
    path = tmp_path / "detected.yaml"
    path.write_text(result.out, encoding="utf-8")
    (stream,) = load_streams(path)
    assert all(stream.raw.match(key) for key in store.listing())


@pytest.mark.parametrize("url", ["logs/raw/", "https://logs.s3.amazonaws.com/", "s3://", "s3://logs/*.log"])
def test_detect_refuses_what_is_no_s3_url(run: RunCommand, url: str) -> None:
    result = run("detect", url, "--json")
    assert result.code == 2
    assert "is not an S3 URL; write it like s3://my-bucket/raw/" in result.err


def test_status_shows_a_damaged_hour_and_ends_with_1(run: RunCommand, store: FakeStore) -> None:
    produce(store, {"a.log": b"a" * 30})
    run_hour(store, make_stream())
    assert run("status", "app", "2026-11-23").code == 0
    store.produce(
        MARKER, json.dumps({"format": 1, "left_out": {CONTROL_CHARACTERS: -1, SURROGATE: 1}}).encode()
    )
    shown = run("status", "app", "2026-11-23")
    shown.check()
    assert shown.code == 1
    assert "2026-11-23 08:00  damaged" in shown.out
    assert "2026-11-23T08:00:00Z: s3://logs/" in shown.err
    answer = run("status", "app", "2026-11-23", "--json")
    assert answer.code == 1
    document = json.loads(answer.out)["hours"][HOUR.hour]
    assert (document["state"], document["objects"]) == ("damaged", None)
    assert "_SUCCESS: is damaged (stream: " in document["problem"]


def test_status_shows_stored_bytes_only_of_compressed_hours(run: RunCommand, store: FakeStore) -> None:
    produce(store, {"a.log": b"a" * 3000})
    run_hour(store, make_stream())
    plain = run("status", "app", "2026-11-23")
    assert "bytes out  parts" in plain.out
    document = json.loads(run("status", "app", "2026-11-23", "--json").out)["hours"][HOUR.hour]
    assert (document["bytes_stored"], document["ratio"]) == (3000, 1.0)
    run_hour(store, make_stream(compression="zstd", part_size=10_000), "another run", repack=True)
    stored = json.loads(store.body(MARKER))["bytes_stored"]
    shown = run("status", "app", "2026-11-23")
    shown.check()
    assert "bytes out  bytes stored  ratio  parts" in shown.out
    row = next(line for line in shown.out.splitlines() if " complete " in line)
    assert row.split()[2:9] == ["complete", "1", "3,000", "3,000", f"{stored}", f"{3000 / stored:.1f}x", "1"]
    found = json.loads(run("status", "app", "2026-11-23", "--json").out)["hours"]
    assert found[HOUR.hour]["ratio"] == round(3000 / stored, 3)
    assert found[0]["ratio"] is None


def test_status_shows_foreign_and_damaged_objects(run: RunCommand, store: FakeStore) -> None:
    produce(store, {"a.log": b"a" * 30})
    run_hour(store, make_stream())
    marker = json.loads(store.body(MARKER))
    first = json.loads(run("status", "app", "2026-11-23", "--json").out)["hours"][HOUR.hour]
    assert (first["foreign"], first["damaged"], first["problem"]) == (0, 0, None)
    store.produce(MARKER, json.dumps({**marker, "foreign": 2, "damaged": 1}).encode())
    second = json.loads(run("status", "app", "2026-11-23", "--json").out)["hours"][HOUR.hour]
    assert (second["foreign"], second["damaged"], second["state"]) == (2, 1, "complete")


def test_status_names_objects_that_belong_to_no_hour(run: RunCommand, store: FakeStore) -> None:
    produce(store, {"a.log": b"a" * 30})
    run_hour(store, make_stream())
    marker = json.loads(store.body(MARKER))
    assert "belong to no hour" not in run("status", "app", "2026-11-23").err
    marker["left_out"]["unmatched"] = 2
    store.produce(MARKER, json.dumps(marker).encode())
    shown = run("status", "app", "2026-11-23")
    assert "2026-11-23T08:00:00Z: 2 objects in the folder of this day belong to no hour" in shown.err
    answer = run("status", "app", "2026-11-23", "--json")
    assert json.loads(answer.out)["hours"][HOUR.hour]["unmatched"] == 2


@pytest.mark.parametrize(
    "arguments", [("status", "app", "2026-11-23"), ("status", "app", "--json"), ("cat", "app", f"{RAW}a.log")]
)
def test_output_that_cannot_be_written_ends_with_2(
    run: RunCommand, store: FakeStore, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    produce(store, {"a.log": b"a" * 30})
    run_hour(store, make_stream())
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        result = run(*arguments)
    assert result.code == 2
    assert result.err == f"log-rollup {arguments[0]}: cannot write the output: No space left on device\n"


def test_unexpected_error_ends_with_2(run: RunCommand, store: FakeStore) -> None:
    store.on("READ", MARKER, AttributeError("unexpected"))
    result = run("status", "app", "2026-11-23")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("AttributeError: unexpected\n")


def test_message_that_cannot_be_written_changes_no_exit_code(
    run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run("locate", "app", f"{RAW}a.log").code == 1
        discard(full)


def test_closed_standard_streams_are_opened() -> None:
    code = """
import os, sys
from log_rollup_plugin.cli.standard_streams import open_missing_streams
open_missing_streams()
sys.stderr.write(sys.stdin.read())
try:
    print("answer", flush=True)
except OSError:
    os._exit(7)
"""
    shell = 'exec "$0" -c "$1" <&- >&- 2>&-'
    project = INCLUDE.parent
    path = os.pathsep.join([str(project), str(project / "plugins")])
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, code], env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert done.returncode == 7


def test_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((INCLUDE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == project["version"]
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"log-rollup {__version__}\n"
