"""Processes of the stack are killed with SIGKILL while an hour is rolled up, and the hour is still completed.

Each test has its own hour of the stream ``crashes``. Its run waits in the triggerer until the test writes the
raw objects. The proxy in front of the S3 server holds a request of the hour until the process is dead.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

import psutil
import pytest

from dev.stack.paths import BUCKET
from include.log_rollup.hour.layout import format_hour
from tests.support.faults import Call, Request, Rule, on
from tests.support.observe import with_descendants
from tests.support.raw_hours import hour_prefix, make_hour
from tests.support.verify import verify_hour
from tests.system.running import Running
from tests.system.streams import PART_SIZE

# Other tests need all processes.
pytestmark = pytest.mark.usefixtures("alone")

DAG = "log_rollup_crashes"
OBJECTS = 60
HOLD_SECONDS = 60


class CrashHour:
    """An hour of the stream, with a run that waits in the triggerer.

    :param back: number of hours before the last hour of ``app``
    """

    def __init__(self, running: Running, back: int) -> None:
        self.running = running
        self.hour: datetime = running.dataset.hours[-1].hour - timedelta(hours=back)
        self.raw = hour_prefix("raw/crashes/", self.hour)
        self.aggregated = hour_prefix("aggregated/crashes/", self.hour)
        self.made: dict[str, bytes] = {}
        self.run_id = running.trigger(DAG, {"hour": format_hour(self.hour)})
        running.wait_for_deferral(DAG, self.run_id)

    def write(self) -> None:
        """Write its raw objects."""
        self.made = make_hour(self.running.client, BUCKET, self.raw, objects=OBJECTS)

    @contextmanager
    def held(self, operation: str, key: str) -> Iterator[Callable[[], None]]:
        """Hold the requests of an operation for keys of this hour until the end of the block.

        :returns: a function that waits until one is held
        """
        release = threading.Event()

        def hold(_: Request) -> None:
            release.wait(HOLD_SECONDS)

        rule = Rule(on(operation, key=key, attempt=1), Call(hold), count=3)
        proxy = self.running.proxy
        proxy.add(rule)
        try:
            yield lambda: self.running.wait_for(f"a held {operation}", lambda: proxy.fired(rule))
        finally:
            release.set()
            proxy.remove(rule)

    def must_become_complete(self) -> None:
        """Its run succeeds without being cleared, and the hour is correct byte by byte."""
        run = self.running.ended(DAG, self.run_id)
        print(f"{self.hour:%H:%M}: {run.state} after {run.duration_seconds:.0f} s, tries {self.tries()}")
        assert run.state == "success"
        facts = verify_hour(
            self.running.client, BUCKET, self.raw, self.aggregated, part_size=PART_SIZE, expected=self.made
        )
        assert facts.objects == OBJECTS

    def tries(self) -> dict[str, int]:
        """Return how often each task of its run was tried."""
        tasks = self.running.stack.api.task_instances(DAG, self.run_id)
        return {task.label: task.try_number for task in tasks}


def test_triggerer_killed_during_deferral_keeps_the_hour_waiting(running: Running) -> None:
    hour = CrashHour(running, back=0)
    running.stack.kill("triggerer")
    hour.write()
    running.stack.start_again("triggerer")
    hour.must_become_complete()


def test_scheduler_killed_while_packing_finds_the_hour_again(running: Running) -> None:
    hour = CrashHour(running, back=1)
    with hour.held("PutObject", f"{hour.aggregated}part-") as await_held:
        hour.write()
        await_held()
        running.stack.kill("scheduler")
    running.stack.start_again("scheduler")
    hour.must_become_complete()


def test_s3_server_killed_while_packing_is_waited_for(running: Running) -> None:
    hour = CrashHour(running, back=2)
    with hour.held("GetObject", hour.raw) as await_held:
        hour.write()
        await_held()
        running.stack.kill("s3")
    running.stack.start_again("s3")
    hour.must_become_complete()


@pytest.mark.soak
def test_task_killed_while_packing_is_retried(running: Running) -> None:
    hour = CrashHour(running, back=3)
    with hour.held("PutObject", f"{hour.aggregated}part-") as await_held:
        hour.write()
        await_held()
        victims = packing_processes(running)
        for process in victims:
            process.kill()
    assert victims
    hour.must_become_complete()
    assert max(count for label, count in hour.tries().items() if label.startswith("pack_shard")) > 1


@pytest.mark.soak
def test_loss_of_scheduler_and_tasks_loses_nothing(running: Running) -> None:
    hour = CrashHour(running, back=4)
    with hour.held("PutObject", f"{hour.aggregated}part-") as await_held:
        hour.write()
        await_held()
        running.stack.kill("scheduler", children=True)
    running.stack.start_again("scheduler")
    hour.must_become_complete()


def packing_processes(running: Running) -> list[psutil.Process]:
    """Return the descendants of the scheduler that have a connection to S3."""
    found = []
    for pid in with_descendants(running.stack.process("scheduler").pid)():
        # A task may end meanwhile.
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if any(
                connection.raddr and connection.raddr.port == running.proxy.port
                for connection in process.net_connections("tcp4")
            ):
                found.append(process)
    return found
