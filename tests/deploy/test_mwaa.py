"""The files for MWAA work where MWAA puts them: only plugins and dags folders, no project root on sys.path."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.mwaa import build

# Parses the Dags as MWAA does, in a process without this project on its path.
_PARSE = """
import json
from airflow import plugins_manager, settings
settings.initialize()
plugins = [plugin["name"] for plugin in plugins_manager.get_plugin_info()]
from airflow.dag_processing.dagbag import DagBag
import sys
bag = DagBag(sys.argv[1])
import include, log_rollup_plugin.trigger
print("FOUND", json.dumps({
    "plugins": plugins, "plugin_errors": plugins_manager.get_import_errors(), "dag_errors": bag.import_errors,
    "dags": sorted(bag.dags), "include": include.__file__, "path": sys.path,
}))
"""


# A stream with the keys that need more of the environment: zone data, a second connection, a KMS key.
_STREAM_WITH_GROUPS = """
  - name: trail
    raw: s3://trail/AWSLogs/{account}/CloudTrail/{region}/%Y/%m/%d/{account}_CloudTrail_{region}_%Y%m%dT%H
    aggregated: s3://log-archive/trail/{account}/{region}/%Y%m%d/%H/
    timezone: Europe/Berlin
    target_conn_id: archive
    include: "*.json.gz"
    exclude: ["*-Digest_*"]
    unjoinable: skip
    ready_object: _READY
    tags: {team: search}
    kms_key_id: arn:aws:kms:eu-central-1:123456789012:key/KEY-ID
    start: 2026-11-01T00:00:00Z
"""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    build(tmp_path / "mwaa", "3.12")
    return tmp_path / "mwaa"


def test_airflow_needs_only_the_zip_and_the_dags_folder(built: Path, tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    with (built / "dags" / "streams.yaml").open("a") as file:
        file.write(_STREAM_WITH_GROUPS)
    zipfile.ZipFile(built / "plugins.zip").extractall(plugins)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, str(built / "dags")], cwd=tmp_path, capture_output=True, text=True,
        env=env | {
            "AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins),
            "AIRFLOW__CORE__DAGS_FOLDER": str(built / "dags"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # As in startup.sh, with the folder of this test instead of MWAA's.
            "LOG_ROLLUP_STREAMS": str(built / "dags" / "streams.yaml"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[6:])
    assert found["plugin_errors"] == found["dag_errors"] == {}
    assert "log_rollup" in found["plugins"]
    assert found["dags"] == ["log_rollup_app", "log_rollup_late", "log_rollup_trail"]
    assert Path(found["include"]).is_relative_to(plugins)


def test_zip_holds_only_the_code(built: Path) -> None:
    with zipfile.ZipFile(built / "plugins.zip") as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    tops = {name.partition("/")[0] for name in names}
    assert tops == {".airflowignore", "log_rollup_plugin", "log_rollup_register.py", "include"}
    assert {"include/__init__.py", "include/pools.json", "include/streams.yaml"} <= set(names)
    assert "log_rollup_plugin/hours_page/static/index.html" in names
    endings = (".py", ".json", ".yaml", ".airflowignore", ".html", ".js", ".css", ".svg")
    assert all(name.endswith(endings) for name in names)
    # MWAA recommends at most 1 GB.
    assert (built / "plugins.zip").stat().st_size < 1_000_000


def test_same_code_gives_the_same_zip(built: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", "3.12")
    assert (tmp_path / "again" / "plugins.zip").read_bytes() == (built / "plugins.zip").read_bytes()


def test_requirements_are_constrained_and_exclude_airflow(built: Path) -> None:
    lines = [line for line in (built / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert lines[0].startswith('--constraint "')
    assert lines[0].endswith('-3.3.2/constraints-3.12.txt"')
    assert not [line for line in lines[1:] if line.startswith("apache-airflow=") or line == "apache-airflow"]


def test_startup_script_names_the_streams_file(built: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'. "{built / "startup.sh"}"; echo "$LOG_ROLLUP_STREAMS"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "/usr/local/airflow/dags/streams.yaml"
    assert (built / "dags" / Path(done.stdout.strip()).name).exists()
