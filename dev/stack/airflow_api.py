"""A client for the parts of Airflow's REST API that the demo and the system tests use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import httpx

# Airflow's default of [api] maximum_page_limit.
_PAGE_LIMIT = 100


class ApiUnavailableError(Exception):
    """The API server did not answer, or answered with a server error (5xx)."""


@dataclass(frozen=True)
class DagRun:
    """One run of a Dag. `hour` is the start of its data interval in UTC, None without a data interval."""

    run_id: str
    state: str
    hour: datetime | None
    duration_seconds: float | None


@dataclass(frozen=True)
class TaskInstance:
    """One task of a run; `map_index` is -1 for a task that is not mapped or not expanded yet.

    `start` and `end` are in UTC, None if the task has not started or ended.
    """

    run_id: str
    task_id: str
    map_index: int
    state: str | None
    try_number: int
    pool: str
    pool_slots: int
    start: datetime | None
    end: datetime | None

    @property
    def label(self) -> str:
        """The task id, with the map index of a mapped task: `pack_shard[2]`."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


@dataclass(frozen=True)
class TaskLog:
    """The log of one try of a task: its lines, and the exception that ended it, or None."""

    lines: tuple[str, ...]
    error: str | None


@dataclass(frozen=True)
class ImportFailure:
    """A Dag file or a plugin that Airflow could not load."""

    source: str
    trace: str


class AirflowApi:
    """The REST API at `url` of an Airflow without login, in which every user is an admin.

    Every method raises `ApiUnavailableError` if the server does not answer, and `httpx.HTTPStatusError` if it
    refuses the request.
    """

    def __init__(self, url: str, timeout_seconds: float = 90) -> None:
        # The server may wait a minute for SQLite's only writer.
        # trust_env=False: ignore the user's proxy settings and .netrc.
        self._client = httpx.Client(base_url=url, timeout=timeout_seconds, trust_env=False)
        self._token: str | None = None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request to `/api/v2<path>` and return the decoded JSON, or None for an empty response.

        :param options: arguments of `httpx.Client.request`, such as `params` and `json`
        """
        if self._token is None:
            self._token = self._send("GET", "/auth/token", {}).json()["access_token"]
        headers = {**options.pop("headers", {}), "Authorization": f"Bearer {self._token}"}
        response = self._send(method, f"/api/v2{path}", {**options, "headers": headers})
        return response.json() if response.content else None

    def wake_execution_api(self) -> None:
        """Request the health of the API that tasks use: only its first response takes seconds."""
        self._send("GET", "/execution/health", {})

    def unhealthy(self) -> list[str]:
        """Return the components that are not healthy yet, each with its state."""
        health: dict[str, dict[str, Any]] = self.request("GET", "/monitor/health")
        components = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        states = {name: (health.get(name) or {}).get("status") or "not started" for name in components}
        return [f"{name}: {state}" for name, state in states.items() if state != "healthy"]

    def dag_is_known(self, dag_id: str) -> bool:
        """Return whether the Dag processor has stored this Dag in the database."""
        try:
            self.request("GET", f"/dags/{dag_id}")
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return False
            raise
        return True

    def import_failures(self) -> list[ImportFailure]:
        """Return the Dag files and plugins that Airflow could not load."""
        dags = [
            ImportFailure(source=str(entry["filename"]), trace=str(entry["stack_trace"]))
            for entry in self._pages("/importErrors", "import_errors", {})
        ]
        plugins = self.request("GET", "/plugins/importErrors")["import_errors"]
        return dags + [
            ImportFailure(source=str(entry["source"]), trace=str(entry["error"])) for entry in plugins
        ]

    def pools(self) -> dict[str, int]:
        """Return the slots of every pool, by name."""
        return {entry["name"]: entry["slots"] for entry in self._pages("/pools", "pools", {})}

    def dag_run(self, dag_id: str, run_id: str) -> DagRun:
        """Return one run of a Dag."""
        return _as_dag_run(self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}"))

    def dag_runs(self, dag_id: str, **filters: str) -> list[DagRun]:
        """Return all runs of a Dag, or those that the filters of the REST API select, ordered by hour."""
        entries = self._pages(f"/dags/{dag_id}/dagRuns", "dag_runs", {"order_by": "run_after", **filters})
        return [_as_dag_run(entry) for entry in entries]

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the task instances of a run, ordered by map index."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return [
            TaskInstance(
                run_id=run_id,
                task_id=entry["task_id"],
                map_index=entry["map_index"],
                state=entry["state"],
                try_number=entry["try_number"],
                pool=entry["pool"],
                pool_slots=entry["pool_slots"],
                start=_as_utc(entry["start_date"]),
                end=_as_utc(entry["end_date"]),
            )
            for entry in self._pages(path, "task_instances", {"order_by": "map_index"})
        ]

    def task_log(self, dag_id: str, task: TaskInstance) -> TaskLog:
        """Return the log of a task's latest try, with tracebacks as text."""
        answer = self.request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{task.run_id}/taskInstances/{task.task_id}/logs/{task.try_number}",
            params={"map_index": task.map_index, "full_content": "true"},
            headers={"Accept": "application/json"},
        )
        records = [record for record in answer["content"] if isinstance(record, dict)]
        errors = [error for record in records for error in (record.get("error_detail") or ())[:1]]
        return TaskLog(
            lines=tuple(line for record in records for line in _log_lines(record)),
            error=_error_line(errors[-1]) if errors else None,
        )

    def _send(self, method: str, path: str, options: Mapping[str, Any]) -> httpx.Response:
        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise ApiUnavailableError(f"{method} {path}: {error!r}") from error
        if response.is_server_error:
            raise ApiUnavailableError(f"{method} {path}: {response.status_code} {response.text[:500]}")
        response.raise_for_status()
        return response

    def _pages(self, path: str, field: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self.request("GET", path, params={**params, "limit": _PAGE_LIMIT, "offset": offset})
            yield from page[field]
            offset += len(page[field])
            if not page[field] or offset >= page["total_entries"]:
                return


def _as_dag_run(entry: Mapping[str, Any]) -> DagRun:
    return DagRun(
        run_id=entry["dag_run_id"],
        state=entry["state"],
        hour=_as_utc(entry.get("data_interval_start")),
        duration_seconds=entry.get("duration"),
    )


def _as_utc(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


def _log_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield one record of a structured task log as lines of text."""
    event = str(record.get("event", ""))
    # These records only group lines in the UI, or name the source of the log.
    if event.startswith("::"):
        return
    words = (str(record.get("timestamp") or "")[:19], record.get("level"), event)
    yield from " ".join(word for word in words if word).splitlines()
    for error in record.get("error_detail") or ():
        for is_library, frames in groupby(error.get("frames") or (), key=_is_library):
            # Airflow's own frames, often a dozen, would hide the few that matter.
            if is_library:
                yield f"  ... {len(list(frames))} frames in libraries"
                continue
            for frame in frames:
                yield f'  File "{frame["filename"]}", line {frame["lineno"]}, in {frame["name"]}'
        yield from _error_line(error).splitlines()


def _is_library(frame: Mapping[str, Any]) -> bool:
    return "/site-packages/" in frame["filename"]


def _error_line(error: Mapping[str, Any]) -> str:
    return f"{error.get('exc_type')}: {error.get('exc_value')}"
