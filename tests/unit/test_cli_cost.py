"""The command cost: its text, its JSON, and wrong arguments."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from include.log_rollup.prices import COMPARED_CLASSES, prices_path
from include.log_rollup.units import KIB
from log_rollup_plugin.cli import cost
from log_rollup_plugin.cli.main import main
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream, produce, run_hour

RunCommand = Callable[..., tuple[int, str, str]]
DAY = ("--since", "2026-11-23T08", "--until", "2026-11-23T09")


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unwatched: None,
) -> RunCommand:
    """Return a function that runs the command on a store with one complete hour of one part."""
    store = FakeStore()
    produce(store, {"a.log": b"a" * 200 * KIB, "b.log": b"b" * 100 * KIB})
    run_hour(store, make_stream(part_size=320 * KIB, shard_size=320 * KIB))
    stream = {"name": "app", "raw": "s3://logs/raw/app/", "aggregated": "s3://logs/aggregated/app/"}
    path = tmp_path / "streams.yaml"
    path.write_text(yaml.safe_dump({"streams": [{**stream, "start": "2026-11-23T00:00:00Z"}]}))
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(path))
    monkeypatch.delenv("LOG_ROLLUP_PRICES", raising=False)
    monkeypatch.setattr(cost, "open_store", lambda _: nullcontext(store))

    def run_command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main(["cost", "app", *DAY, *arguments]), *capsys.readouterr()

    return run_command


def test_text_says_what_was_measured_and_which_prices_count(run: RunCommand) -> None:
    code, out, _ = run()
    assert code == 0
    assert "an average hour: 2 raw objects of 300.0 KiB; 1 parts of 300.0 KiB, ratio 1.0x" in out
    assert (
        "measured from 1 complete hours, 2026-11-23T08:00:00Z to 2026-11-23T08:00:00Z, and the manifests of 1 of "
        "them; 1 hours are not complete"
    ) in out
    assert f"prices: us-east-1 of 2026-06-18, from {prices_path()}; compare them with https://" in out
    assert "raw objects for ever: neither expire_raw nor --keep-raw says that they are deleted" in out
    assert "saved: nothing; the rollup costs" in out
    for name in COMPARED_CLASSES:
        assert f"\n{name} " in out
    assert "These bills include raw objects in STANDARD, kept as long as the parts." in out
    out = run("--keep-raw", "14d")[1]
    assert "kept: raw objects 14d (--keep-raw)" in out
    assert "These bills include raw objects in STANDARD, kept 14d at most." in out


def test_json_has_all_figures(run: RunCommand) -> None:
    code, out, _ = run("--json", "--keep-raw", "0d", "--plan", "3y", "--retention", "1y")
    document = json.loads(out)
    assert code == 0
    assert document["measured"] == {
        "first": "2026-11-23T08:00:00Z", "last": "2026-11-23T08:00:00Z", "hours": 1, "incomplete": 1,
        "not_read": 0,
        "manifests": ["2026-11-23T08:00:00Z"],
    }  # fmt: skip
    assert document["hour"]["small_objects"] == 1
    assert document["kept"]["raw_days"] == 0
    now, without = document["month"]["now"], document["month"]["without_rollup"]
    assert now["raw_storage"] == 0
    assert document["month"]["saved"] == pytest.approx(without["total"] - now["total"], abs=1e-5)
    assert [one["storage_class"] for one in document["classes"]] == list(COMPARED_CLASSES)
    assert document["classes"][0]["months"].keys() == {"365"} == document["without_rollup_months"].keys()
    assert document["plan"]["steps"][0] == {"storage_class": "STANDARD", "from_day": 0}
    assert document["plan"]["lifecycle"]["Rules"][0]["ID"] == "log-rollup-app-parts"


def test_plan_is_written_as_json_or_terraform(run: RunCommand) -> None:
    _, out, err = run("--plan", "3y")
    assert json.loads(out[out.index("\n{") :])["Rules"]
    assert 'Give stream \'app\' tags: {"log-rollup": "part"}' in err
    assert "replaces all rules of bucket 'logs'" in err
    _, out, _ = run("--plan", "3y", "--terraform")
    assert 'resource "aws_s3_bucket_lifecycle_configuration" "log_rollup" {' in out
    _, out, err = run("--plan", "10d")
    assert "No lifecycle rule is needed" in err
    assert "Rules" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--terraform",), "--terraform: there is no lifecycle to write; give --plan too"),
        (
            ("--move", "30d=GLACIER", "--move", "30d=DEEP_ARCHIVE"),
            "--move: each has to be later than the one before it",
        ),
        (("--plan", "0d"), "--plan: there is nothing to plan for 0 days"),
        (("--prices", "/none.yaml"), "/none.yaml: the prices cannot be read (No such file or directory)"),
        (("--since", "2026-11-23T10"), "has ended before 2026-11-23T10:00:00Z; give an earlier one"),
        (("--since", "2001-01-01"), "hours before the last hour; give a later one"),
    ],
)
def test_wrong_arguments_end_with_2(run: RunCommand, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_moves_of_a_lifecycle_count(run: RunCommand) -> None:
    _, out, _ = run("--move", "1d=GLACIER_IR", "--move", "91d=DEEP_ARCHIVE", "--keep-raw", "1d")
    assert "parts for ever, in STANDARD, GLACIER_IR from day 1, DEEP_ARCHIVE from day 91." in out
    assert "\ntransitions of parts " in out
    document = json.loads(run("--move", "1d=GLACIER_IR", "--json")[1])
    assert document["steps"][1] == {"storage_class": "GLACIER_IR", "from_day": 1}
    assert document["month"]["now"]["part_transitions"] > 0


@pytest.mark.parametrize("text", ["30d", "30d=EXPRESS", "GLACIER=30d", "=GLACIER"])
def test_text_that_is_no_move_is_refused(run: RunCommand, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--move", text)
    assert ended.value.code == 2


@pytest.mark.parametrize("text", ["3", "3m", "-1d", "1.5y", "101y", ""])
def test_text_that_is_no_time_is_refused(run: RunCommand, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(f"--plan={text}")
    assert ended.value.code == 2


@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31", "9999-12-31T23"])
def test_day_out_of_range_ends_with_2(run: RunCommand, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--until", text)
    assert ended.value.code == 2


def test_no_complete_hour_ends_with_1(run: RunCommand) -> None:
    code, _, err = run("--since", "2026-11-22", "--until", "2026-11-22")
    assert code == 1
    assert "so there is nothing to calculate from; give complete hours with --since and --until" in err
