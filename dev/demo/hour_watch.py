"""Waits until the Dag runs of the demo's hours have ended, and prints their progress meanwhile."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import httpx

from dev.demo.progress import Progress
from dev.stack.airflow_api import (
    AirflowApi,
    ApiUnavailableError,
    DagRun,
    ImportFailure,
    TaskInstance,
    TaskLog,
)

_POLL_SECONDS = 2.0
_LOG_TAIL_LINES = 30
_ENDED = frozenset({"success", "failed"})
_DONE = frozenset({"success", "skipped"})
# A group of mapped tasks is shown with the first of these states that one of them has.
_ACTIVE = ("running", "restarting", "up_for_retry", "deferred", "up_for_reschedule", "queued", "scheduled")


class DemoFailedError(Exception):
    """The demo failed; the message shows why."""


@dataclass(frozen=True)
class HourWatch:
    """Polls the Dag runs of some hours until they have ended."""

    api: AirflowApi
    dag_id: str
    hours: Sequence[datetime]
    progress: Progress
    _reported: set[Hashable] = field(default_factory=set)

    def wait(self, timeout_seconds: float, check: Callable[[], None]) -> Mapping[datetime, DagRun]:
        """Wait until all runs have ended, and return them by hour.

        A failed run is reported at once with the log of its failed task; the other runs continue.

        :param check: called at every poll; raises if a process of the stack has ended
        :raises DemoFailedError: if a Dag cannot be imported, if the pool of a task is too small to ever run it, or
            after `timeout_seconds`
        """
        deadline = time.monotonic() + timeout_seconds
        statuses = ["waiting for Airflow to load the Dag"]
        while True:
            check()
            try:
                failures = self.api.import_failures()
                if failures:
                    raise DemoFailedError(describe_import_failures(failures))
                if self.api.dag_is_known(self.dag_id):
                    runs = self._runs()
                    self._report_ended(runs)
                    if all(hour in runs and runs[hour].state in _ENDED for hour in self.hours):
                        return runs
                    statuses = self._statuses(runs)
                self.progress.update(statuses)
            except ApiUnavailableError as error:
                # The server may just be busy. If it has ended, the next check raises.
                self.progress.update([f"Airflow does not answer, trying again ({error})"])
            if time.monotonic() > deadline:
                last = " | ".join(statuses)
                raise DemoFailedError(f"not done after {timeout_seconds:.0f} s; last status: {last}")
            time.sleep(_POLL_SECONDS)

    def _runs(self) -> dict[datetime, DagRun]:
        runs = self.api.dag_runs(self.dag_id)
        return {run.hour: run for run in runs if run.hour is not None and run.hour in self.hours}

    def _report_ended(self, runs: Mapping[datetime, DagRun]) -> None:
        """Report each run that has ended since the last poll."""
        for hour, run in sorted(runs.items()):
            if run.state not in _ENDED or run.run_id in self._reported:
                continue
            report = f"{hour:%H:%M} {run.state} after {run.duration_seconds or 0:.1f} s"
            if run.state == "failed":
                report = f"{report}\n{self._describe_failure(run)}"
            else:
                tasks = self.api.task_instances(self.dag_id, run.run_id)
                report = f"{report}: {describe_step_times(run.duration_seconds or 0, tasks)}"
            self._reported.add(run.run_id)
            self.progress.log(report)

    def _describe_failure(self, run: DagRun) -> str:
        """Return the failed tasks of a run, and the end of the log of the first one."""
        tasks = self.api.task_instances(self.dag_id, run.run_id)
        failed = [task for task in tasks if task.state == "failed"]
        if not failed:
            return "no task has failed: the run was marked as failed, or it timed out"
        names = ", ".join(f"{task.label} (try {task.try_number})" for task in failed)
        lines = self._log(failed[0]).lines[-_LOG_TAIL_LINES:]
        return "\n".join([f"failed: {names}; the end of the log of {failed[0].label}:", *lines])

    def _statuses(self, runs: Mapping[datetime, DagRun]) -> list[str]:
        """Return a status for each hour that has not ended: `08:00 pack_shard 3/5 running`."""
        statuses = []
        for hour in self.hours:
            run = runs.get(hour)
            if run is None:
                statuses.append(f"{hour:%H:%M} not scheduled yet")
            elif run.state == "running":
                tasks = self.api.task_instances(self.dag_id, run.run_id)
                self._report_retries(hour, tasks)
                self._check_pools(hour, tasks)
                statuses.append(f"{hour:%H:%M} {_summary(tasks)}")
            elif run.state not in _ENDED:
                statuses.append(f"{hour:%H:%M} {run.state}")
        return statuses

    def _report_retries(self, hour: datetime, tasks: Sequence[TaskInstance]) -> None:
        """Report each failed try that Airflow will retry, with its error."""
        for task in tasks:
            if task.state != "up_for_retry" or task in self._reported:
                continue
            self._reported.add(task)
            error = self._log(task).error or "its log shows no exception"
            what = f"{task.label} failed at try {task.try_number} and will be retried"
            self.progress.log(f"{hour:%H:%M} {what}: {error}")

    def _check_pools(self, hour: datetime, tasks: Sequence[TaskInstance]) -> None:
        """Fail if a pool is too small: Airflow would leave the task scheduled forever and only log it."""
        scheduled = [task for task in tasks if task.state == "scheduled"]
        pools = self.api.pools() if scheduled else {}
        for task in scheduled:
            slots = pools.get(task.pool)
            if slots is None or 0 <= slots < task.pool_slots:
                pool = "does not exist" if slots is None else f"has {slots}"
                raise DemoFailedError(
                    f"{hour:%H:%M} {task.label} can never run: it needs {task.pool_slots} slots of the pool "
                    f"{task.pool}, which {pool}"
                )

    def _log(self, task: TaskInstance) -> TaskLog:
        """Return a task's log, or the reason why Airflow does not return it: no reason to fail."""
        try:
            return self.api.task_log(self.dag_id, task)
        except (ApiUnavailableError, httpx.HTTPStatusError) as error:
            reason = f"cannot read its log: {error}"
            return TaskLog(lines=(reason,), error=reason)


def describe_import_failures(failures: Sequence[ImportFailure]) -> str:
    """Return the import errors with their tracebacks."""
    return "\n".join(
        f"Airflow cannot load {failure.source}:\n{failure.trace.rstrip()}" for failure in failures
    )


def describe_step_times(run_seconds: float, tasks: Sequence[TaskInstance]) -> str:
    """Return the time of each step: `plan_hour 3.1 s, pack_shard (5) 20.3 s, ..., no task running 4.0 s`.

    The time of a step is from the start of its first task to the end of its last, process start included.
    """
    spans: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for task in tasks:
        if task.start is not None and task.end is not None:
            spans[task.task_id].append((task.start, task.end))
    words = []
    for task_id, times in sorted(spans.items(), key=lambda step: min(step[1])):
        seconds = (max(end for _, end in times) - min(start for start, _ in times)).total_seconds()
        count = f" ({len(times)})" if len(times) > 1 else ""
        words.append(f"{task_id}{count} {seconds:.1f} s")
    busy = _covered_seconds([time for times in spans.values() for time in times])
    return ", ".join([*words, f"no task running {max(0.0, run_seconds - busy):.1f} s"])


def _covered_seconds(times: Sequence[tuple[datetime, datetime]]) -> float:
    covered = 0.0
    until: datetime | None = None
    for start, end in sorted(times):
        if until is None or start > until:
            until = start
        if end > until:
            covered += (end - until).total_seconds()
            until = end
    return covered


def _summary(tasks: Sequence[TaskInstance]) -> str:
    groups: dict[str, list[TaskInstance]] = defaultdict(list)
    for task in tasks:
        groups[task.task_id].append(task)
    words = []
    for task_id, members in groups.items():
        states = {member.state for member in members}
        state = next((active for active in _ACTIVE if active in states), None)
        if state is None:
            continue
        done = sum(member.state in _DONE for member in members)
        # Tasks of an earlier, larger plan have the state `removed` and do not count.
        total = sum(member.state != "removed" for member in members)
        mapped = any(member.map_index >= 0 for member in members)
        words.append(f"{task_id} {done}/{total} {state}" if mapped else f"{task_id} {state}")
    return ", ".join(words) or "between two tasks"
