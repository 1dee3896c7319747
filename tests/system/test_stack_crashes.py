"""Processes of the stack are killed with SIGKILL in the midst of an hour and come again; the hour is completed.

Each test has an hour of the stream ``crashes`` for itself, which waits in the triggerer until the test writes its
raw objects. The proxy before the S3 server holds a request of the hour until the process is dead.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import psutil
import pytest

from dev.stack.airflow_api import TaskInstance
from dev.stack.paths import BUCKET
from tests.support.faults import Call, Request, Rule, on
from tests.support.observe import with_descendants
from tests.support.raw_hours import hour_prefix, make_hour
from tests.support.verify import verify_hour
from tests.system.conftest import Running

DAG = "log_rollup_crashes"
PART_SIZE = 5 * 1024 * 1024
OBJECTS = 60


class CrashHour:
    """An hour of the stream.

    :param back: how many hours before the last made one
    """

    def __init__(self, running: Running, back: int) -> None:
        self.running = running
        self.hour: datetime = running.dataset.hours[-1].hour - timedelta(hours=back)
        self.raw = hour_prefix("raw/crashes/", self.hour)
        self.aggregated = hour_prefix("aggregated/crashes/", self.hour)
        self.made: dict[str, bytes] = {}

    def tasks(self) -> list[TaskInstance]:
        """The task instances of its run, none if there is no run yet."""
        api = self.running.stack.api
        if not api.dag_is_known(DAG):
            return []
        runs = [run for run in api.dag_runs(DAG) if run.hour == self.hour]
        return [task for run in runs for task in api.task_instances(DAG, run.run_id)]

    def await_deferral(self) -> None:
        """Wait until the sensor waits in the triggerer."""
        self.running.wait_for(
            "the deferral",
            lambda: any(
                task.task_id == "wait_for_raw_hour" and task.state == "deferred" for task in self.tasks()
            ),
        )

    def write(self) -> None:
        """Write its raw objects."""
        self.made = make_hour(self.running.client, BUCKET, self.raw, objects=OBJECTS)

    @contextmanager
    def held(self, operation: str, key: str) -> Iterator[Callable[[], None]]:
        """Hold the requests of an operation for keys of this hour; calls return at the end of the block.

        :returns: waits until one is held
        """
        release = threading.Event()

        def hold(_: Request) -> None:
            release.wait(60)

        rule = Rule(on(operation, key=key, attempt=1), Call(hold), count=3)
        proxy = self.running.proxy
        proxy.add(rule)
        try:
            yield lambda: self.running.wait_for(f"a held {operation}", lambda: proxy.fired(rule))
        finally:
            release.set()
            proxy.remove(rule)

    def must_become_complete(self) -> None:
        """Its run ends well, without being cleared, and it is right byte by byte."""
        run = self.running.finished_run(DAG, self.hour)
        tries = {task.label: task.try_number for task in self.tasks()}
        print(f"{self.hour:%H:%M}: {run.state} after {run.duration_seconds:.0f} s, tries {tries}")
        assert run.state == "success"
        facts = verify_hour(
            self.running.client, BUCKET, self.raw, self.aggregated, part_size=PART_SIZE, expected=self.made
        )
        assert facts.objects == OBJECTS


def test_triggerer_killed_during_deferral_keeps_the_hour_waiting(running: Running) -> None:
    hour = CrashHour(running, back=0)
    hour.await_deferral()
    running.stack.kill("triggerer")
    hour.write()
    running.stack.start_again("triggerer")
    hour.must_become_complete()


def test_scheduler_killed_while_packing_finds_the_hour_again(running: Running) -> None:
    hour = CrashHour(running, back=1)
    hour.await_deferral()
    with hour.held("PutObject", f"{hour.aggregated}part-") as await_held:
        hour.write()
        await_held()
        running.stack.kill("scheduler")
    running.stack.start_again("scheduler")
    hour.must_become_complete()


def test_s3_server_killed_while_packing_is_waited_for(running: Running) -> None:
    hour = CrashHour(running, back=2)
    hour.await_deferral()
    with hour.held("GetObject", hour.raw) as await_held:
        hour.write()
        await_held()
        running.stack.kill("s3")
    running.stack.start_again("s3")
    hour.must_become_complete()


@pytest.mark.soak
def test_task_killed_while_packing_is_retried(running: Running) -> None:
    hour = CrashHour(running, back=3)
    hour.await_deferral()
    with hour.held("PutObject", f"{hour.aggregated}part-") as await_held:
        hour.write()
        await_held()
        victims = packing_processes(running)
        for process in victims:
            process.kill()
    assert victims
    hour.must_become_complete()
    assert max(task.try_number for task in hour.tasks() if task.task_id == "pack_shard") > 1


@pytest.mark.soak
def test_loss_of_scheduler_and_tasks_loses_nothing(running: Running) -> None:
    hour = CrashHour(running, back=4)
    hour.await_deferral()
    with hour.held("PutObject", f"{hour.aggregated}part-") as await_held:
        hour.write()
        await_held()
        running.stack.kill("scheduler", children=True)
    running.stack.start_again("scheduler")
    hour.must_become_complete()


def packing_processes(running: Running) -> list[psutil.Process]:
    """The processes below the scheduler that have a connection to S3."""
    found = []
    for pid in with_descendants(running.stack.process("scheduler").pid)():
        process = psutil.Process(pid)
        if any(
            connection.raddr and connection.raddr.port == running.proxy.port
            for connection in process.net_connections("tcp4")
        ):
            found.append(process)
    return found
