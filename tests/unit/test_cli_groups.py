"""The commands status, verify and plan for hours with groups: short lines, and everything in the JSON."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from io import StringIO
from typing import Any

import pytest

from log_rollup_plugin.cli import arguments, hours
from log_rollup_plugin.cli.output import Answer
from tests.support.fake_store import FakeStore
from tests.support.grouped_hour import HOUR, GroupedHour

DAY = date(2026, 11, 23)
Command = Callable[[argparse.Namespace, Answer], bool]
Ask = Callable[..., str]


@pytest.fixture
def hour() -> GroupedHour:
    found = GroupedHour("before the date")
    found.produce({f"g{number:03d}": {"a.log": b"x" * (number + 1)} for number in range(120)})
    found.run()
    return found


@pytest.fixture
def ask(hour: GroupedHour, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run a command on the hour, and return what it writes."""

    @contextmanager
    def open_store(*_: Any) -> Iterator[FakeStore]:
        yield hour.store

    monkeypatch.setattr(hours, "open_store", open_store)
    monkeypatch.setattr(hours, "find_stream", lambda _: hour.stream)

    def call(command: Command, **options: Any) -> str:
        out = StringIO()
        given = {
            "stream": "app",
            "json": False,
            "groups": False,
            "deep": False,
            "dry_run": True,
            "repack": False,
            **options,
        }
        command(argparse.Namespace(**given), Answer(out))
        return out.getvalue()

    return call


def test_status_shows_only_the_number_of_groups(ask: Ask) -> None:
    lines = ask(hours.status, day=DAY).splitlines()
    assert lines[0].endswith("  groups")
    assert lines[2 + HOUR.hour].endswith("  120")
    assert len(lines) == 26
    found = json.loads(ask(hours.status, day=DAY, json=True))["hours"]
    assert [one["groups"] for one in found] == [120 if one == HOUR.hour else None for one in range(24)]
    assert all("group_totals" not in one for one in found)


def test_status_lists_the_largest_groups_of_each_hour(ask: Ask) -> None:
    text = ask(hours.status, day=DAY, groups=True).partition("2026-11-23T08:00:00Z: ")[2]
    lines = text.splitlines()
    assert lines[0] == "120 groups"
    assert [line.split()[0] for line in lines[3:13]] == [f"g{number:03d}" for number in range(119, 109, -1)]
    assert lines[3].split() == ["g119", "1", "120", "120", "1", "g119/20261123/08/"]
    assert lines[13:] == ["and 110 smaller ones; --json has all"]


def test_status_lists_the_ratio_of_compressed_groups(
    ask: Ask, hour: GroupedHour, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = hour.stream.model_copy(update={"compression": "zstd", "part_size": 10_000})
    hour.produce({"g119": {"b.log": b"y" * 5000}})
    monkeypatch.setattr(hour, "stream", changed)
    hour.run()
    lines = ask(hours.status, day=HOUR, groups=True).splitlines()
    heads = next(line for line in lines if line.startswith("group"))
    assert heads.split("  ")[-4:] == ["bytes stored", "ratio", "parts", "folder"]
    largest = lines[lines.index(heads) + 2].split()
    assert largest[0] == "g119"
    stored = int(largest[4].replace(",", ""))
    assert largest[5] == f"{5120 / stored:.1f}x"


def test_status_of_one_hour_lists_more_groups(ask: Ask) -> None:
    lines = ask(hours.status, day=HOUR, groups=True).splitlines()
    assert len(lines) == 3 + 1 + 3 + 100 + 1
    assert lines[-1] == "and 20 smaller ones; --json has all"
    (found,) = json.loads(ask(hours.status, day=HOUR, groups=True, json=True))["hours"]
    assert len(found["group_totals"]) == found["groups"] == 120


def test_verify_shows_a_bounded_number_of_problems(ask: Ask, hour: GroupedHour) -> None:
    assert "groups: 120" in ask(hours.verify, hour=HOUR).splitlines()
    keys = [key for key in hour.written() if key.endswith("_SUCCESS") and "_hours" not in key]
    hour.store.delete("logs", keys)
    lines = ask(hours.verify, hour=HOUR).splitlines()
    assert len(lines) < 30
    assert "FAILED: 100 more problems; --json has all" in lines
    found = json.loads(ask(hours.verify, hour=HOUR, json=True))
    assert (found["groups"], len(found["problems"])) == (120, 120)
    assert found["problems"][0]["group"] == "g000/20261123/08/"


def test_plan_shows_the_number_and_the_largest_groups(ask: Ask) -> None:
    text = ask(hours.plan, hour=HOUR)
    assert "groups: 120; the largest: g119 (1 objects, 120 B), g118 " in text
    found = json.loads(ask(hours.plan, hour=HOUR, json=True))
    assert (found["groups"], len(found["largest_groups"])) == (120, 5)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2026-11-23", DAY), ("20261123", DAY), ("2026-11-23T08", HOUR), ("20261123/08", HOUR)],
)
def test_status_takes_a_day_or_an_hour(text: str, value: Any) -> None:
    assert arguments.day_or_hour(text) == value


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-11-23T25"])
def test_status_refuses_what_is_neither_day_nor_hour(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write it like 2026-11-23"):
        arguments.day_or_hour(text)


@pytest.mark.parametrize("text", ["0001-01-01", "0226-11-23", "1969-12-31", "3000-01-01", "99991231"])
def test_day_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give a day of the years 1970 to 2999"):
        arguments.day_or_hour(text)
