"""The demo: its options, and its report of a run that has ended."""

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dev.demo import cli
from dev.demo.hour_watch import describe_split
from dev.made_logs.dataset import read_dataset
from dev.stack.airflow_api import TaskInstance
from dev.stack.environment import Addresses
from dev.stack.local_stack import StackRecord, read_record, write_record
from dev.stack.paths import StackPaths
from dev.stack.s3_servers import MINISTACK, RCLONE, SERVERS

BEGAN = datetime(2026, 11, 24, 8, tzinfo=UTC)


def at_work(task_id: str, map_index: int, start: float | None, end: float | None) -> TaskInstance:
    """A task that was at work between two moments, in seconds after the run began."""
    moments = (None if one is None else BEGAN + timedelta(seconds=one) for one in (start, end))
    return TaskInstance("run", task_id, map_index, "success", 1, "pool", 1, *moments)


def test_a_run_is_split_into_its_steps_in_their_order_and_what_lies_between_them() -> None:
    tasks = [
        at_work("complete", -1, 17, 18),
        at_work("pack", 0, 5, 9),
        at_work("pack", 1, 5.5, 11),
        at_work("pack", 2, 12, 15),
        at_work("plan", -1, 1, 4),
        at_work("skipped", -1, None, None),
    ]
    assert describe_split(20, tasks) == ("plan 3.0 s, pack (3) 10.0 s, complete 1.0 s, no task at work 7.0 s")


def test_a_run_without_a_task_is_all_waiting() -> None:
    assert describe_split(2.5, []) == "no task at work 2.5 s"


def test_unknown_s3_server_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["run", "--s3", "minio"])
    said = capsys.readouterr().err
    assert "argument --s3: invalid choice: 'minio'" in said
    assert all(name in said for name in SERVERS)


def test_up_with_another_s3_server_is_refused(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    write_record(paths, StackRecord(Addresses(ui_port=8080, s3_port=9000), (), MINISTACK))
    with pytest.raises(cli.RefusedError, match=r"with MiniStack is running .*make down"):
        cli.up(paths, argparse.Namespace(s3=RCLONE))


def test_records_without_an_s3_server_mean_rclone(tmp_path: Path) -> None:
    paths = StackPaths(tmp_path)
    paths.stack.write_text(json.dumps({"addresses": {"ui_port": 1, "s3_port": 2}, "processes": []}))
    paths.dataset.write_text(json.dumps({"seed": 1, "hours": []}))
    paths.streams.touch()
    stack, dataset = read_record(paths), read_dataset(paths)
    assert stack is not None
    assert dataset is not None
    assert (stack.s3, dataset.s3) == (RCLONE, RCLONE)
