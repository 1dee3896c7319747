"""One local stack for the system tests: a real scheduler, Dag processor, triggerer and api-server."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from dev.made_logs.dataset import Dataset, make_dataset
from dev.servers import S3Client, plain_client
from dev.stack.airflow_api import ApiUnavailableError, DagRun, TaskInstance
from dev.stack.local_stack import LocalStack
from dev.stack.paths import BUCKET
from tests.support.observe import Watch, with_descendants
from tests.support.proxy import FaultProxy

OBJECTS = 120
HOURS = 2
CRASH_HOURS = 5
POOL = "s3_connections"
APP = "log_rollup_app"
POOL_SLOTS = 250
# The streams of small hours; the objects of the second one are divided into groups.
SMALL = "log_rollup_small"
GROUPED = "log_rollup_grouped"
FRESH = "log_rollup_fresh"
# Its runs are notified through the connection ``chat``; its hours wait for a ready object.
NOTIFIED = "log_rollup_notified"
NOTIFIED_MARKER = "_DONE"
HTTP_NOTIFIER = "airflow.providers.http.notifications.http.HttpNotifier"
SMALL_CONNECTIONS = 8
# Settings of a stream whose hours are settled as soon as they are written.
AT_ONCE = {
    "shard_size": "5MiB", "max_connections": SMALL_CONNECTIONS, "quiet_period": "1s", "poll_interval": "1s",
}  # fmt: skip
PATIENCE_SECONDS = 240.0
# The second Dag bundle: Dags outside the project.
DOWNSTREAM = "downstream"


@dataclass(frozen=True)
class Running:
    """The stack with its raw hours, and the watch over all of its processes."""

    stack: LocalStack
    dataset: Dataset
    client: S3Client
    watch: Watch
    proxy: FaultProxy
    """Between the stack and its S3 server; only the stream ``crashes`` uses it."""

    def wait_for(self, what: str, probe: Callable[[], Any]) -> Any:
        """Call probe until its result is true, and return that; all processes must stay alive."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.stack.check()
            if answer := probe():
                return answer
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")

    def run_of(self, dag_id: str, hour: datetime, *states: str) -> DagRun:
        """Wait for the run of an hour, in one of these states if any is given."""

        def probe() -> DagRun | None:
            if not self.stack.api.dag_is_known(dag_id):
                return None
            runs = [run for run in self.stack.api.dag_runs(dag_id) if run.hour == hour]
            return next((run for run in runs if not states or run.state in states), None)

        found: DagRun = self.wait_for(f"a run of {dag_id} for {hour}, {' or '.join(states)}", probe)
        return found

    def finished_run(self, dag_id: str, hour: datetime) -> DagRun:
        """Wait for the end of the run of an hour."""
        return self.run_of(dag_id, hour, "success", "failed")

    def add_stream(self, name: str, start: datetime, **settings: Any) -> None:
        """Add a stream to the streams file, as an operator would, and have the Dag file parsed again soon."""
        path = self.stack.paths.streams
        document = yaml.safe_load(path.read_text())
        document["streams"].append(_stream(name, start, **settings))
        path.write_text(yaml.safe_dump(document))
        self.wait_for(f"{APP} to be known", lambda: self.stack.api.dag_is_known(APP))
        token = self.stack.api.request("GET", f"/dags/{APP}")["file_token"]
        self._create("PUT", f"/parseDagFile/{token}")

    def add_dag(self, name: str, source: str) -> None:
        """Add a Dag file to the second bundle."""
        (self.stack.paths.state / DOWNSTREAM / name).write_text(source)

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a manual run without a logical date; return its id."""
        self.wait_for(f"{dag_id} to be known", lambda: self.stack.api.dag_is_known(dag_id))
        run_id = f"manual__{uuid4()}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        self.create(f"/dags/{dag_id}/dagRuns", body)
        return run_id

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        """Create something in Airflow by its name; nothing happens if it exists already."""
        self._create("POST", path, body)

    def _create(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        try:
            self.write(method, path, body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise

    def write(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request that writes; repeated while SQLite is locked."""

        def attempt() -> tuple[Any] | None:
            try:
                return (self.stack.api.request(method, path, json=body),)
            except ApiUnavailableError as error:
                # SQLite has one writer; Airflow has rolled the request back.
                if "Database error" not in str(error) and " 503 " not in str(error):
                    raise
            return None

        (answer,) = self.wait_for(f"an answer to {method} {path}", attempt)
        return answer

    def ended(self, dag_id: str, run_id: str) -> DagRun:
        """Wait for the end of a run, by its id."""

        def probe() -> DagRun | None:
            (run,) = (run for run in self.stack.api.dag_runs(dag_id) if run.run_id == run_id)
            return run if run.state in ("success", "failed") else None

        found: DagRun = self.wait_for(f"the end of {run_id} of {dag_id}", probe)
        return found

    def start_backfill(self, dag_id: str, first: datetime, last: datetime, **options: Any) -> int:
        """Start a backfill of a range of hours, as the UI does; return its id."""
        body = {"dag_id": dag_id, "from_date": first.isoformat(), "to_date": last.isoformat(), **options}

        def create() -> Any:
            try:
                return self.write("POST", "/backfills", body)
            except httpx.HTTPStatusError as error:
                # A Dag has one backfill at a time; Airflow notices the end of the previous one after a while.
                if error.response.status_code != httpx.codes.CONFLICT:
                    raise
            return None

        self.wait_for(f"{dag_id} to be known", lambda: self.stack.api.dag_is_known(dag_id))
        # A 503 rolls runs back; the scheduler of Airflow 3.3.2 crashes if it has started them.
        with self.paused(dag_id):
            return int(self.wait_for("the backfill to be made", create)["id"])

    @contextmanager
    def paused(self, dag_id: str) -> Iterator[None]:
        """Pause the Dag during the block: no run starts, and no asset event counts for it."""
        path = f"/dags/{dag_id}"
        self.write("PATCH", path, {"is_paused": True})
        try:
            yield
        finally:
            self.write("PATCH", path, {"is_paused": False})

    def backfill(self, dag_id: str, first: datetime, last: datetime, **options: Any) -> list[dict[str, Any]]:
        """Backfill a range of hours and wait for the end; return the runs sorted by their start."""
        number = self.start_backfill(dag_id, first, last, **options)

        def ended() -> list[dict[str, Any]] | None:
            runs = self.runs_between(dag_id, first, last)
            return runs if all(run["state"] in ("success", "failed") for run in runs) else None

        runs: list[dict[str, Any]] = self.wait_for("the end of the backfill's runs", ended)
        self.end_backfill(number)
        return runs

    def end_backfill(self, number: int) -> None:
        """Mark a backfill whose runs have ended as ended; Airflow itself checks every 30 s."""
        try:
            self.write("PUT", f"/backfills/{number}/cancel")
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise

    def runs_between(self, dag_id: str, first: datetime, last: datetime) -> list[dict[str, Any]]:
        """The API's rows of the runs whose logical date is in a range of hours, sorted by their start."""
        runs = self.stack.api.request(
            "GET",
            f"/dags/{dag_id}/dagRuns",
            params={
                "logical_date_gte": first.isoformat(),
                "logical_date_lte": last.isoformat(),
                "limit": 100,
            },
        )["dag_runs"]
        return sorted(runs, key=lambda run: str(run["start_date"]))

    def packing_began(self, dag_id: str, run_id: str) -> str:
        """When the first shard of a run started."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/pack_shard/listMapped"
        rows = self.stack.api.request("GET", path)["task_instances"]
        return min(str(row["start_date"]) for row in rows)

    @contextmanager
    def pool_of(self, slots: int) -> Iterator[None]:
        """Resize the pool during the block, as an operator would."""
        self._resize_pool(slots)
        try:
            yield
        finally:
            self._resize_pool(POOL_SLOTS)

    def _resize_pool(self, slots: int) -> None:
        body = {"pool": POOL, "slots": slots, "include_deferred": False}
        self.write("PATCH", f"/pools/{POOL}", body)

    def waiting_shards(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """The shards of a run that wait for pool slots."""
        return [
            instance
            for instance in self.stack.api.task_instances(dag_id, run_id)
            if instance.task_id == "pack_shard" and instance.map_index >= 0 and instance.state == "scheduled"
        ]

    def stamps(self, prefix: str) -> dict[str, tuple[datetime, str]]:
        """When each object under a prefix was written, and its ETag."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {
            item["Key"]: (item["LastModified"], item["ETag"])
            for page in pages
            for item in page.get("Contents", ())
        }

    def instances(self, dag_id: str, run: DagRun) -> dict[str, list[TaskInstance]]:
        """The task instances of a run, by task."""
        found: dict[str, list[TaskInstance]] = {}
        for instance in self.stack.api.task_instances(dag_id, run.run_id):
            found.setdefault(instance.task_id, []).append(instance)
        return found

    def clear(self, dag_id: str, run: DagRun, **body: Any) -> None:
        """Clear a run, or some tasks of it, as the UI does."""
        options = {"dry_run": False, "dag_run_id": run.run_id, "only_failed": False, **body}
        self.write("POST", f"/dags/{dag_id}/clearTaskInstances", options)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The stack, with two raw hours of the stream ``app`` and streams without any.

    ``quiet`` must wait; ``small``, ``grouped`` and ``notified`` are for manual runs and backfills of hours before
    their start; ``fresh`` has a scheduled run for each of the two hours, which waits for its first objects.
    """
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    dataset = make_dataset(stack.paths, HOURS, OBJECTS, datetime.now(UTC), lambda _: None)
    document = yaml.safe_load(stack.paths.streams.read_text())
    document["defaults"].update({"part_size": "5MiB", "shard_size": "20MiB", "late_days": 0})
    last = dataset.hours[-1].hour
    document["streams"] += [
        _stream("quiet", last, quiet_period="20s", poll_interval="2s"),
        _stream("small", last + timedelta(hours=1), late_days=1, **AT_ONCE),
        _stream(
            "grouped",
            last + timedelta(hours=1),
            raw=f"s3://{BUCKET}/grouped/{{service}}/%Y%m%d/%H/",
            aggregated=f"s3://{BUCKET}/packed/{{service}}/%Y%m%d/%H/",
            **AT_ONCE,
        ),
        _stream(
            "notified",
            last + timedelta(hours=1),
            ready_object=NOTIFIED_MARKER,
            deadline="2s",
            notify=[{"class": HTTP_NOTIFIER, "http_conn_id": "chat"}],
            **AT_ONCE,
        ),
        _stream("fresh", dataset.hours[0].hour, **{**AT_ONCE, "quiet_period": "3s"}),
        _stream(
            "crashes",
            last - timedelta(hours=CRASH_HOURS - 1),
            aws_conn_id="proxied",
            max_active_runs=CRASH_HOURS + 1,
            quiet_period="3s",
            poll_interval="3s",
        ),
    ]
    stack.paths.streams.write_text(yaml.safe_dump(document))
    downstream = stack.paths.state / DOWNSTREAM
    downstream.mkdir(parents=True)
    bundles = [
        {"name": name, "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": kwargs}
        for name, kwargs in (("dags-folder", {}), (DOWNSTREAM, {"path": str(downstream)}))
    ]
    proxied = json.loads(stack.env["AIRFLOW_CONN_AWS_DEFAULT"])
    with FaultProxy(stack.s3_endpoint) as proxy:
        proxied["extra"]["endpoint_url"] = proxy.endpoint_url
        stack.extra_env = {
            "AIRFLOW_CONN_PROXIED": json.dumps(proxied),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            # A new scheduler adopts the tasks of a dead one at this interval; the default is five minutes.
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
            # Each task of a run waits for the scheduler's next loop; the default pause is 1 s.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            # Parsing takes a second of CPU for each file. New files and add_stream don't wait for the interval.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "120",
            # A new triggerer takes the triggers of a dead one after this time; the default is 30 s.
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
        }
        with stack:
            yield from _run(stack, dataset, proxy)


def _run(stack: LocalStack, dataset: Dataset, proxy: FaultProxy) -> Iterator[Running]:
    client = plain_client(stack.s3_endpoint, stack.secrets.s3_access_key, stack.secrets.s3_secret_key)
    mine = with_descendants(os.getpid())

    def others() -> list[int]:
        return [pid for pid in mine() if pid != os.getpid()]

    with Watch(others, [stack.addresses.s3_port]) as watch:
        yield Running(stack, dataset, client, watch, proxy)


def _stream(name: str, start: datetime, **settings: Any) -> dict[str, Any]:
    places = {side: f"s3://{BUCKET}/{side}/{name}/" for side in ("raw", "aggregated")}
    return {"name": name, "start": start, **places, **settings}
