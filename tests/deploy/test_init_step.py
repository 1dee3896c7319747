"""The init step: what it creates, what it refuses, and that it can run twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import init_airflow
from dev.demo import init_demo
from dev.made_logs.dataset import read_dataset
from dev.stack.paths import StackPaths
from include.log_rollup.streams import POOL, load_streams, pool_slots
from tests.conftest import ROOT

# Runs the step twice in one process, because importing Airflow takes seconds. In between, the pool is resized, as
# an operator may do, and the missing connection is added.
RUN_TWICE = f"""
import json, os, runpy, sqlite3

def run_init():
    try:
        runpy.run_module("dev.demo.init_demo", run_name="__main__")
    except SystemExit as end:
        return end.code

def execute(statement):
    with sqlite3.connect("airflow.db") as database:
        return database.execute(statement).fetchall()

found = {{"first": run_init(), "pools": [execute("select pool, slots from slot_pool where pool = '{POOL}'")]}}
dataset = open("dataset.json").read()
execute("update slot_pool set slots = 40 where pool = '{POOL}'")
os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = '{{"conn_type": "aws"}}'
found["second"] = run_init()
found["pools"].append(execute("select pool, slots from slot_pool where pool = '{POOL}'"))
os.environ["DEMO_LAYOUT"] = "groups"
found["other layout"] = run_init()
found["same hours"] = open("dataset.json").read() == dataset
print("FOUND", json.dumps(found))
"""


def run_python(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with an Airflow database in `home`."""
    env = os.environ | {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=home, capture_output=True, text=True)


def test_demo_init_makes_hours_database_and_pool(tmp_path: Path) -> None:
    demo = {"DEMO_HOURS": "1", "DEMO_OBJECTS": "3", "LOG_ROLLUP_STREAMS": str(tmp_path / "streams.yaml")}
    done = run_python("-c", RUN_TWICE, home=tmp_path, **demo)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[6:])
    assert found == {
        "first": 1,
        "second": 0,
        "other layout": 1,
        "pools": [[[POOL, pool_slots()]], [[POOL, 40]]],
        "same hours": True,
    }
    assert "there is no Airflow connection 'aws_default': set AIRFLOW_CONN_AWS_DEFAULT" in done.stderr
    assert "DEMO_LAYOUT is groups, but the layout of the hours in" in done.stderr
    assert "ready: app" in done.stdout
    made = read_dataset(StackPaths(tmp_path))
    assert made is not None
    assert [hour.objects for hour in made.hours] == [3]


@pytest.fixture
def demo_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the variables of the demo, and skip the migration; returns the folder of the hours."""
    monkeypatch.setenv("DEMO_HOURS", "2")
    monkeypatch.setenv("DEMO_OBJECTS", "6")
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(tmp_path / "streams.yaml"))
    monkeypatch.setattr(init_airflow, "main", lambda: 0)
    return tmp_path


@pytest.mark.parametrize(
    ("layout_name", "groups"), [("plain", [0, 0]), ("groups", [2, 3]), ("cloudtrail", [4, 4])]
)
def test_demo_init_makes_hours_of_each_layout(
    demo_settings: Path, monkeypatch: pytest.MonkeyPatch, layout_name: str, groups: list[int]
) -> None:
    monkeypatch.setenv("DEMO_LAYOUT", layout_name)
    assert init_demo.main() == 0
    made = read_dataset(StackPaths(demo_settings))
    assert made is not None
    assert made.layout_name == layout_name
    assert [len(hour.groups) for hour in made.hours] == groups
    (stream,) = load_streams()
    assert stream.name == made.layout.stream
    assert stream.raw.captures == stream.aggregated.captures
    assert bool(stream.raw.captures) == bool(groups[0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DEMO_LAYOUT", "group", "'group' is not one of plain, groups, cloudtrail; did you mean groups?"),
        ("DEMO_HOURS", "three", "'three' is not a whole number above 0"),
        ("DEMO_OBJECTS", "", "'' is not a whole number above 0"),
    ],
)
def test_wrong_demo_setting_stops_init(
    demo_settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, value: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    assert init_demo.main() == 1
    assert capsys.readouterr().err == f"{name}: {message}\n"
    assert list(demo_settings.iterdir()) == []


def test_full_disk_stops_demo_init(
    demo_settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEMO_OBJECTS", str(10**12))
    assert init_demo.main() == 1
    assert "set fewer HOURS or OBJECTS, or free some disk space" in capsys.readouterr().err


def test_invalid_streams_stop_init_before_the_migration(tmp_path: Path) -> None:
    (tmp_path / "streams.yaml").write_text("streams: [{name: app, rav: s3://b/raw/}]")
    streams = {"LOG_ROLLUP_STREAMS": str(tmp_path / "streams.yaml")}
    refused = run_python("-m", "deploy.init_airflow", home=tmp_path, **streams)
    assert refused.returncode == 1
    assert "did you mean raw?" in refused.stderr
    assert not (tmp_path / "airflow.db").exists()
