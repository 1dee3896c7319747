"""One local stack for the system tests: a real scheduler, Dag processor, triggerer and api-server."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from demo.airflow_api import DagRun, TaskInstance
from demo.dataset import Dataset, make_dataset
from demo.layout import BUCKET
from demo.stack import LocalStack
from tests.support.observe import Watch, with_descendants
from tests.support.servers import S3Client, plain_client

OBJECTS = 120
HOURS = 2
POOL = "s3_connections"
PATIENCE_SECONDS = 240.0


@dataclass(frozen=True)
class Running:
    """The stack with its raw hours, and the watch that looks at all of its processes from outside."""

    stack: LocalStack
    dataset: Dataset
    client: S3Client
    watch: Watch

    def wait_for(self, what: str, probe: Callable[[], Any]) -> Any:
        """Ask until the answer is true; the stack must stay up meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.stack.check()
            if answer := probe():
                return answer
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")

    def finished_run(self, dag_id: str, hour: datetime) -> DagRun:
        """The run for an hour, once it has ended."""

        def probe() -> DagRun | None:
            if not self.stack.api.dag_is_known(dag_id):
                return None
            runs = [run for run in self.stack.api.dag_runs(dag_id) if run.hour == hour]
            return next((run for run in runs if run.state in ("success", "failed")), None)

        found: DagRun = self.wait_for(f"the end of {dag_id} for {hour}", probe)
        return found

    def instances(self, dag_id: str, run: DagRun) -> dict[str, list[TaskInstance]]:
        """The task instances of a run, by task."""
        found: dict[str, list[TaskInstance]] = {}
        for instance in self.stack.api.task_instances(dag_id, run.run_id):
            found.setdefault(instance.task_id, []).append(instance)
        return found

    def clear(self, dag_id: str, run: DagRun, **body: Any) -> None:
        """Clear a run, or some tasks of it, as the UI does."""
        self.stack.api.request(
            "POST",
            f"/dags/{dag_id}/clearTaskInstances",
            json={"dry_run": False, "dag_run_id": run.run_id, "only_failed": False, **body},
        )


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The stack, with two raw hours of the stream ``app`` and a stream ``quiet`` that has to wait."""
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    dataset = make_dataset(stack.layout, HOURS, OBJECTS, datetime.now(UTC), lambda _: None)
    document = yaml.safe_load(stack.layout.streams.read_text())
    document["defaults"].update({"part_size": "5MiB", "shard_size": "20MiB"})
    document["streams"].append(
        {
            "name": "quiet",
            "raw": f"s3://{BUCKET}/raw/quiet/",
            "aggregated": f"s3://{BUCKET}/aggregated/quiet/",
            "start": dataset.hours[-1].hour,
            "quiet_period": "20s",
            "poll_interval": "2s",
        }
    )
    stack.layout.streams.write_text(yaml.safe_dump(document))
    with stack:
        client = plain_client(stack.s3_endpoint, stack.secrets.s3_access_key, stack.secrets.s3_secret_key)
        mine = with_descendants(os.getpid())

        def others() -> list[int]:
            return [pid for pid in mine() if pid != os.getpid()]

        with Watch(others, [stack.addresses.s3_port]) as watch:
            yield Running(stack, dataset, client, watch)
