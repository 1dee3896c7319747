"""Raw objects expire under a real scheduler: reported, approved, deleted, interrupted, and restored.

Three hours are rolled up, one fails, and one gets a late object. At the end, every byte that was produced can be
read: from a raw object, or from a part.
"""

import json
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from dev.stack.airflow_api import TaskInstance
from dev.stack.paths import BUCKET
from dev.stack.run_command import environment
from include.log_rollup.hour.layout import format_hour
from tests.conftest import ROOT
from tests.support.faults import Call, Request, Rule, on
from tests.support.raw_hours import hour_prefix, make_hour, put_objects
from tests.system.running import Running
from tests.system.streams import EXPIRING_DAYS
from tests.system.test_stack_crashes import packing_processes

pytestmark = [pytest.mark.slow, pytest.mark.overlaps]

STREAM = "expiring"
DAG = f"log_rollup_{STREAM}"
EXPIRE = "log_rollup_expire"
HOLD_SECONDS = 120


class Expiring:
    """The stream, its hours, and all bytes that were produced for it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        start = running.dataset.hours[-1].hour + timedelta(hours=1)
        self.hours = [start - timedelta(days=EXPIRING_DAYS) + timedelta(hours=number) for number in range(4)]
        self.produced: dict[str, bytes] = {}

    def make(self, hour: datetime) -> None:
        self.produced |= make_hour(
            self.running.client, BUCKET, self.raw(hour), objects=5, min_bytes=1024, max_bytes=4000
        )

    def put(self, key: str, body: bytes) -> None:
        put_objects(self.running.client, BUCKET, {key: body})
        self.produced[key] = body

    def roll_up(self, *hours: datetime) -> list[str]:
        """Run some hours at the same time; return the states of the runs."""
        runs = [self.running.trigger(DAG, {"hour": format_hour(hour)}) for hour in hours]
        return [self.running.ended(DAG, run).state for run in runs]

    def raw(self, hour: datetime) -> str:
        return hour_prefix(f"raw/{STREAM}/", hour)

    def aggregated(self, hour: datetime) -> str:
        return hour_prefix(f"aggregated/{STREAM}/", hour)

    def present(self, *hours: datetime) -> set[str]:
        """Return the keys of the raw objects of some hours."""
        return {key for hour in hours for key in self.running.stamps(self.raw(hour))}

    def parts(self, hour: datetime) -> dict[str, Any]:
        stamps = self.running.stamps(self.aggregated(hour))
        return {key: stamp for key, stamp in stamps.items() if "/part-" in key}

    def record(self, hour: datetime) -> Any:
        key = f"{self.aggregated(hour)}_expired.json"
        return json.loads(self.running.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def set_rules(self, **rules: Any) -> None:
        """Change ``expire_raw`` in the streams file, as an operator would."""
        with self.running.edited_streams() as streams:
            (entry,) = [one for one in streams if one["name"] == STREAM]
            entry["expire_raw"].update(rules)

    def task(self, run_id: str) -> TaskInstance:
        (task,) = self.running.stack.api.task_instances(EXPIRE, run_id)
        return task

    def report(self, run_id: str) -> Any:
        path = f"/dags/{EXPIRE}/dagRuns/{run_id}/taskInstances/expire_raw/xcomEntries/report"
        entry = self.running.stack.api.request("GET", path, params={"map_index": 0, "deserialize": "true"})
        return entry["value"]

    def expire(self) -> Any:
        """Run the expiry, and return its report."""
        run_id = self.running.trigger(EXPIRE, {})
        assert self.running.ended(EXPIRE, run_id).state == "success"
        return self.report(run_id)

    def approve_until(self, run_id: str, what: str, happened: Callable[[], int]) -> None:
        """Approve each question of the task until something has happened.

        A scheduler that is busy when the answer comes sees the end of the asking process too late, takes the task
        for lost and repeats it, and the next try asks again.
        """
        approved: set[int] = set()

        def has_happened() -> int:
            task = self.task(run_id)
            if task.state == "awaiting_input" and task.try_number not in approved:
                path = f"/dags/{EXPIRE}/dagRuns/{run_id}/taskInstances/expire_raw/0/hitlDetails"
                self.running.write("PATCH", path, {"chosen_options": ["Approve"], "params_input": {}})
                approved.add(task.try_number)
            return happened()

        self.running.wait_for(what, has_happened)
        assert approved

    def restore(self, target: Path, *hours: datetime) -> dict[str, bytes]:
        """Restore a range of hours with the command; return the content of each object by its key."""
        argument = f"{hours[0]:%Y-%m-%dT%H}..{hours[-1]:%Y-%m-%dT%H}"
        command = [str(ROOT / "log-rollup"), "restore", STREAM, argument, "--to", str(target), "--json"]
        # The connection through the proxy is not in the environment of commands.
        env = environment(self.running.stack.paths) | dict(self.running.stack.extra_env)
        subprocess.run(command, env=env, check=True)
        files = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
        return {f"raw/{STREAM}/{name}": path.read_bytes() for name, path in files.items()}


def test_raw_objects_expire_and_every_byte_stays_readable(running: Running) -> None:
    expiring = Expiring(running)
    first, second, third, failing = expiring.hours
    for hour in expiring.hours:
        expiring.make(hour)
    # It cannot be joined, so the hour fails.
    expiring.put(f"{expiring.raw(failing)}table.parquet", b"not joinable")
    assert expiring.roll_up(*expiring.hours) == ["success", "success", "success", "failed"]
    late = f"{expiring.raw(second)}zz-late.log"
    expiring.put(late, b"late\n")
    packed = expiring.present(first, second, third) - {late}

    # The mode is `report`.
    report = expiring.expire()
    assert (report["deleted"], report["objects"], report["late"]) == (False, 15, 1)
    assert format_hour(failing) in report["incomplete"]
    assert packed | {late} == expiring.present(first, second, third)

    # The task is killed after the objects of the second hour were deleted, before that is recorded.
    expiring.set_rules(mode="delete")
    release = threading.Event()

    def hold(_: Request) -> None:
        release.wait(HOLD_SECONDS)

    record = f"{expiring.aggregated(second)}_expired.json"
    rule = Rule(on("CopyObject", key=record, attempt=2), Call(hold), count=1)
    running.proxy.add(rule)
    try:
        run_id = running.trigger(EXPIRE, {})
        expiring.approve_until(run_id, "the held record", lambda: running.proxy.fired(rule))
        victims: list[psutil.Process] = packing_processes(running)
        for process in victims:
            process.kill()
    finally:
        release.set()
        running.proxy.remove(rule)
    assert victims
    # The retry does not ask again, because the deletion has begun.
    assert running.ended(EXPIRE, run_id).state == "success"
    assert expiring.task(run_id).try_number > 1
    assert expiring.present(first, second, third) == {late}
    for hour in (first, second, third):
        assert [one["objects"] for one in expiring.record(hour)["deletions"]] == [5]
        assert expiring.record(hour)["deletions"][0]["finished_at"]
    assert len(expiring.present(failing)) == 6

    # The late object is packed into one more part, and expires too.
    before = expiring.parts(second)
    assert expiring.roll_up(second) == ["success"]
    after = expiring.parts(second)
    assert before.items() < after.items()
    assert len(after) == len(before) + 1
    report = expiring.expire()
    assert (report["objects"], report["expired_before"], report["left_alone"]) == (1, 15, 0)
    assert expiring.present(first, second, third) == set()

    restored = expiring.restore(running.stack.paths.state / "unexpired", first, third)
    kept = {
        key: running.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in expiring.present(failing)
    }
    assert restored | kept == expiring.produced
    assert not restored.keys() & kept.keys()
