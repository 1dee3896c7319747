"""The running stack as the system tests use it: starts, clears and awaits runs through Airflow's REST API."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx
import yaml

from dev.made_logs.dataset import Dataset
from dev.servers import S3Client
from dev.stack.airflow_api import ApiUnavailableError, DagRun, TaskInstance
from dev.stack.local_stack import LocalStack
from dev.stack.paths import BUCKET
from tests.support.observe import Watch
from tests.support.proxy import FaultProxy

APP = "log_rollup_app"
POOL = "s3_connections"
POOL_SLOTS = 250
PATIENCE_SECONDS = 240.0
# Each answer takes the API server some 20 ms of CPU time.
_POLL_SECONDS = 1.0
_ENDED = ("success", "failed")


@dataclass(frozen=True)
class Running:
    """The stack, its made raw hours, and the watch over its processes; tests may use it in several threads.

    :param proxy: between the stack and its S3 server; only the stream ``crashes`` uses it
    :param stopping: set when the tests end; nothing is awaited any more
    """

    stack: LocalStack
    dataset: Dataset
    client: S3Client
    watch: Watch
    proxy: FaultProxy
    stopping: threading.Event = field(default_factory=threading.Event)
    _known_dags: set[str] = field(default_factory=set)
    _streams_lock: threading.Lock = field(default_factory=threading.Lock)
    _pool_lock: threading.RLock = field(default_factory=threading.RLock)

    def wait_for(self, what: str, probe: Callable[[], Any]) -> Any:
        """Call ``probe`` until its result is true, and return the result; every process must stay alive.

        :raises AssertionError: after :data:`PATIENCE_SECONDS`
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.stack.check()
            if answer := probe():
                return answer
            if self.stopping.wait(_POLL_SECONDS):
                raise AssertionError(f"the tests end before {what}")
        raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")

    def write(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request that writes; repeat it while SQLite is locked."""

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

    def write_if_new(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Do the same, and accept the answer that it has been done before (409)."""
        try:
            self.write(method, path, body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise

    # -- Dags and streams ------------------------------------------------------------------------------

    def wait_for_dag(self, dag_id: str) -> None:
        """Wait until Airflow knows a Dag."""
        if dag_id not in self._known_dags:
            self.wait_for(f"{dag_id} to be known", lambda: self.stack.api.dag_is_known(dag_id))
            self._known_dags.add(dag_id)

    @contextmanager
    def edited_streams(self) -> Iterator[list[dict[str, Any]]]:
        """Give the entries of the streams file to the block, and write them at its end; one test at a time."""
        path = self.stack.paths.streams
        with self._streams_lock:
            document = yaml.safe_load(path.read_text())
            yield document["streams"]
            new = path.with_suffix(".new")
            new.write_text(yaml.safe_dump(document))
            new.replace(path)

    def add_stream(self, definition: Mapping[str, Any]) -> None:
        """Add a stream to the streams file, as an operator would, and request that the Dag file is parsed.

        Do nothing if another test has added it.
        """
        with self.edited_streams() as streams:
            if any(stream["name"] == definition["name"] for stream in streams):
                return
            streams.append(dict(definition))
        self.wait_for_dag(APP)
        token = self.stack.api.request("GET", f"/dags/{APP}")["file_token"]
        self.write_if_new("PUT", f"/parseDagFile/{token}")

    @contextmanager
    def paused(self, dag_id: str) -> Iterator[None]:
        """Pause the Dag during the block: no run starts, and asset events start none of its runs later."""
        path = f"/dags/{dag_id}"
        self.write("PATCH", path, {"is_paused": True})
        try:
            yield
        finally:
            self.write("PATCH", path, {"is_paused": False})

    # -- runs ------------------------------------------------------------------------------------------

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a manual run without a logical date; return its id."""
        self.wait_for_dag(dag_id)
        run_id = f"manual__{uuid4()}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        self.write_if_new("POST", f"/dags/{dag_id}/dagRuns", body)
        return run_id

    def ended(self, dag_id: str, run_id: str) -> DagRun:
        """Wait for the end of a run."""

        def probe() -> DagRun | None:
            run = self.stack.api.dag_run(dag_id, run_id)
            return run if run.state in _ENDED else None

        found: DagRun = self.wait_for(f"the end of {run_id} of {dag_id}", probe)
        return found

    def run_of(self, dag_id: str, hour: datetime) -> DagRun:
        """Wait for the scheduled or backfill run of an hour."""
        self.wait_for_dag(dag_id)
        date = hour.isoformat()

        def probe() -> list[DagRun]:
            return self.stack.api.dag_runs(dag_id, logical_date_gte=date, logical_date_lte=date)

        (run,) = self.wait_for(f"a run of {dag_id} for {hour}", probe)
        found: DagRun = run
        return found

    def finished_run(self, dag_id: str, hour: datetime) -> DagRun:
        """Wait for the end of the scheduled or backfill run of an hour."""
        return self.ended(dag_id, self.run_of(dag_id, hour).run_id)

    def clear(self, dag_id: str, run: DagRun, **body: Any) -> None:
        """Clear a run, or some of its tasks, as the UI does."""
        options = {"dry_run": False, "dag_run_id": run.run_id, "only_failed": False, **body}
        self.write("POST", f"/dags/{dag_id}/clearTaskInstances", options)

    def instances(self, dag_id: str, run: DagRun) -> dict[str, list[TaskInstance]]:
        """Return the task instances of a run, by task."""
        found: dict[str, list[TaskInstance]] = {}
        for instance in self.stack.api.task_instances(dag_id, run.run_id):
            found.setdefault(instance.task_id, []).append(instance)
        return found

    def wait_for_deferral(self, dag_id: str, run_id: str) -> None:
        """Wait until the raw-hour sensor of a run waits in the triggerer."""

        def deferred() -> bool:
            instances = self.stack.api.task_instances(dag_id, run_id)
            return any((one.task_id, one.state) == ("wait_for_raw_hour", "deferred") for one in instances)

        self.wait_for(f"the deferral of {run_id} of {dag_id}", deferred)

    # -- backfills -------------------------------------------------------------------------------------

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

        self.wait_for_dag(dag_id)
        # A 503 rolls runs back; the scheduler of Airflow 3.3.2 crashes if it has started them.
        with self.paused(dag_id):
            return int(self.wait_for("the new backfill", create)["id"])

    def end_backfill(self, number: int) -> None:
        """Mark a backfill whose runs have ended as ended; Airflow itself checks every 30 s."""
        self.write_if_new("PUT", f"/backfills/{number}/cancel")

    def backfill(self, dag_id: str, first: datetime, last: datetime, **options: Any) -> list[dict[str, Any]]:
        """Backfill a range of hours and wait for the end; return the runs sorted by their start."""
        number = self.start_backfill(dag_id, first, last, **options)

        def ended() -> list[dict[str, Any]] | None:
            runs = self.runs_between(dag_id, first, last)
            return runs if all(run["state"] in _ENDED for run in runs) else None

        runs: list[dict[str, Any]] = self.wait_for("the end of the backfill's runs", ended)
        self.end_backfill(number)
        return runs

    def runs_between(self, dag_id: str, first: datetime, last: datetime) -> list[dict[str, Any]]:
        """Return the API's entries of the runs whose logical date is in a range of hours, sorted by start."""
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

    # -- the pool --------------------------------------------------------------------------------------

    @contextmanager
    def pool_of(self, slots: int) -> Iterator[None]:
        """Resize the pool during the block, as an operator would; one test at a time."""
        with self._pool_lock:
            self._resize_pool(slots)
            try:
                yield
            finally:
                self._resize_pool(POOL_SLOTS)

    def _resize_pool(self, slots: int) -> None:
        body = {"pool": POOL, "slots": slots, "include_deferred": False}
        self.write("PATCH", f"/pools/{POOL}", body)

    def waiting_shards(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the shards of a run that wait for pool slots."""
        return [
            instance
            for instance in self.stack.api.task_instances(dag_id, run_id)
            if instance.task_id == "pack_shard" and instance.map_index >= 0 and instance.state == "scheduled"
        ]

    def packing_began(self, dag_id: str, run_id: str) -> str:
        """Return when the first shard of a run started."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/pack_shard/listMapped"
        rows = self.stack.api.request("GET", path)["task_instances"]
        return min(str(row["start_date"]) for row in rows)

    # -- the bucket ------------------------------------------------------------------------------------

    def stamps(self, prefix: str) -> dict[str, tuple[datetime, str]]:
        """Return when each object under a prefix was written, and its ETag."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {
            item["Key"]: (item["LastModified"], item["ETag"])
            for page in pages
            for item in page.get("Contents", ())
        }
