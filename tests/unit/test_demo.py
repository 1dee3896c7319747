"""The demo command: its options, and the report of an ended run."""

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dev.demo import cli
from dev.demo.hour_watch import describe_step_times
from dev.made_logs.dataset import read_dataset
from dev.stack.airflow_api import TaskInstance
from dev.stack.environment import Addresses
from dev.stack.paths import StackPaths
from dev.stack.s3_servers import MINISTACK, RCLONE, SERVERS
from dev.stack.stack_record import StackRecord, read_record, write_record

START = datetime(2026, 11, 24, 8, tzinfo=UTC)


def task(task_id: str, map_index: int, start: float | None, end: float | None) -> TaskInstance:
    """Return a task that ran from `start` to `end`, in seconds after the start of the run."""
    moments = (None if one is None else START + timedelta(seconds=one) for one in (start, end))
    return TaskInstance("run", task_id, map_index, "success", 1, "pool", 1, *moments)


def test_run_time_is_split_into_steps_and_idle_time() -> None:
    tasks = [
        task("complete", -1, 17, 18),
        task("pack", 0, 5, 9),
        task("pack", 1, 5.5, 11),
        task("pack", 2, 12, 15),
        task("plan", -1, 1, 4),
        task("skipped", -1, None, None),
    ]
    assert (
        describe_step_times(20, tasks) == "plan 3.0 s, pack (3) 10.0 s, complete 1.0 s, no task running 7.0 s"
    )


def test_run_without_tasks_is_all_idle_time() -> None:
    assert describe_step_times(2.5, []) == "no task running 2.5 s"


def test_unknown_s3_server_is_refused_with_the_valid_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["run", "--s3", "minio"])
    message = capsys.readouterr().err
    assert "argument --s3: invalid choice: 'minio'" in message
    assert all(name in message for name in SERVERS)


def test_up_with_another_s3_server_is_refused(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    write_record(paths, StackRecord(Addresses(ui_port=8080, s3_port=9000), (), MINISTACK))
    with pytest.raises(cli.RefusedError, match=r"with MiniStack is running .*make down"):
        cli.up(paths, argparse.Namespace(s3=RCLONE))


def test_records_without_s3_server_mean_rclone(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    paths.stack.write_text(json.dumps({"addresses": {"ui_port": 1, "s3_port": 2}, "processes": []}))
    paths.dataset.write_text(json.dumps({"seed": 1, "hours": []}))
    paths.streams.touch()
    stack, dataset = read_record(paths), read_dataset(paths)
    assert stack is not None
    assert dataset is not None
    assert (stack.s3, dataset.s3) == (RCLONE, RCLONE)
