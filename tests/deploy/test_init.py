"""The init step: what it makes, what it refuses, and that it may be done again."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from dev.made_logs.dataset import read_dataset
from dev.stack.paths import StackPaths
from include.log_rollup.streams import POOL, pool_slots
from tests.conftest import ROOT


def init(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it with a database of its own."""
    own = {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(ROOT), "DEMO_HOURS": "", **variables}
    return subprocess.run(
        [sys.executable, "-m", "deploy.init"], env=os.environ | own, cwd=home, capture_output=True, text=True
    )


def test_it_makes_hours_database_and_pool_and_names_a_connection_that_is_missing(tmp_path: Path) -> None:
    demo = {"DEMO_HOURS": "1", "DEMO_OBJECTS": "3", "LOG_ROLLUP_STREAMS": str(tmp_path / "streams.yaml")}
    refused = init(tmp_path, **demo)
    assert refused.returncode == 1
    assert "AIRFLOW_CONN_AWS_DEFAULT" in refused.stderr
    made = read_dataset(StackPaths(tmp_path))
    assert made is not None
    assert [hour.objects for hour in made.hours] == [3]
    with sqlite3.connect(tmp_path / "airflow.db") as database:
        assert database.execute("select slots from slot_pool where pool = ?", [POOL]).fetchall() == [
            (pool_slots(),)
        ]
        # As somebody would who needs another cap.
        database.execute("update slot_pool set slots = 40 where pool = ?", [POOL])
    again = init(tmp_path, **demo, AIRFLOW_CONN_AWS_DEFAULT='{"conn_type": "aws"}')
    assert again.returncode == 0, again.stderr
    assert "ready: app" in again.stdout
    assert read_dataset(StackPaths(tmp_path)) == made
    with sqlite3.connect(tmp_path / "airflow.db") as database:
        assert database.execute("select slots from slot_pool where pool = ?", [POOL]).fetchall() == [(40,)]


def test_a_mistake_in_the_streams_stops_it_before_anything_is_touched(tmp_path: Path) -> None:
    (tmp_path / "streams.yaml").write_text("streams: [{name: app, rav: s3://b/raw/}]")
    refused = init(tmp_path, LOG_ROLLUP_STREAMS=str(tmp_path / "streams.yaml"))
    assert refused.returncode == 1
    assert "did you mean raw?" in refused.stderr
    assert not (tmp_path / "airflow.db").exists()
