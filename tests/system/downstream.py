"""Dags that are not part of the project. They are in a second bundle of the stack."""

from datetime import UTC, datetime
from pathlib import Path

from include.log_rollup.hour.layout import format_hour
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples" / "dags").glob("*.py"))
# The stream whose hours start the runs of the example Dags.
REPORT_STREAM = "report"
WAITS = "log_rollup_waits"
# Its run never ends, because its ready object is missing.
STUCK_HOUR = datetime(2026, 11, 2, 9, tzinfo=UTC)
STUCK = "stuck_rerun"
_STUCK_DAG = f"""
from datetime import datetime, timedelta
from airflow.sdk import DAG
from log_rollup_plugin.rerun import RerunHourOperator

with DAG("{STUCK}", start_date=datetime(2026, 11, 1), schedule=None):
    RerunHourOperator(
        task_id="rerun",
        trigger_dag_id="{WAITS}",
        trigger_run_id="late__stuck",
        conf={{"hour": "{format_hour(STUCK_HOUR)}"}},
        logical_date=None,
        reset_dag_run=True,
        fail_when_dag_is_paused=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=5,
        retries=0,
        execution_timeout=timedelta(seconds=25),
    )
"""


def write_dags(folder: Path) -> None:
    """Write the example Dags, and one that reruns the stuck hour, into a new folder."""
    folder.mkdir(parents=True)
    for path in EXAMPLES:
        source = path.read_text().replace('STREAM = "app"', f'STREAM = "{REPORT_STREAM}"')
        (folder / path.name).write_text(source)
    (folder / f"{STUCK}.py").write_text(_STUCK_DAG)
