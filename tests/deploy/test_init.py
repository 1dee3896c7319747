"""The init step: what it creates, what it refuses, and that it can run twice."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from dev.made_logs.dataset import read_dataset
from dev.stack.paths import StackPaths
from include.log_rollup.streams import POOL, pool_slots
from tests.conftest import ROOT


def run_init(module: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the init step with an Airflow database in `home`."""
    env = os.environ | {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, "-m", module], env=env, cwd=home, capture_output=True, text=True)


def test_demo_init_makes_hours_database_and_pool(tmp_path: Path) -> None:
    demo = {"DEMO_HOURS": "1", "DEMO_OBJECTS": "3", "LOG_ROLLUP_STREAMS": str(tmp_path / "streams.yaml")}
    refused = run_init("dev.demo.init", tmp_path, **demo)
    assert refused.returncode == 1
    assert "AIRFLOW_CONN_AWS_DEFAULT" in refused.stderr
    made = read_dataset(StackPaths(tmp_path))
    assert made is not None
    assert [hour.objects for hour in made.hours] == [3]
    with sqlite3.connect(tmp_path / "airflow.db") as database:
        assert database.execute("select slots from slot_pool where pool = ?", [POOL]).fetchall() == [
            (pool_slots(),)
        ]
        # An operator resizes the pool: init must keep the size.
        database.execute("update slot_pool set slots = 40 where pool = ?", [POOL])
    again = run_init("dev.demo.init", tmp_path, **demo, AIRFLOW_CONN_AWS_DEFAULT='{"conn_type": "aws"}')
    assert again.returncode == 0, again.stderr
    assert "ready: app" in again.stdout
    assert read_dataset(StackPaths(tmp_path)) == made
    with sqlite3.connect(tmp_path / "airflow.db") as database:
        assert database.execute("select slots from slot_pool where pool = ?", [POOL]).fetchall() == [(40,)]


def test_invalid_streams_stop_init_before_the_migration(tmp_path: Path) -> None:
    (tmp_path / "streams.yaml").write_text("streams: [{name: app, rav: s3://b/raw/}]")
    refused = run_init("deploy.init", tmp_path, LOG_ROLLUP_STREAMS=str(tmp_path / "streams.yaml"))
    assert refused.returncode == 1
    assert "did you mean raw?" in refused.stderr
    assert not (tmp_path / "airflow.db").exists()
