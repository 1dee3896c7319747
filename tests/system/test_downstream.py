"""The example Dags downstream of complete hours, under a real scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from demo.layout import BUCKET
from include.log_rollup.complete import complete_hour, event_of
from include.log_rollup.hours import format_hour
from include.log_rollup.packing import pack_shard
from include.log_rollup.planning import plan_hour
from include.log_rollup.streams import load_streams
from include.log_rollup.validate import validate_hour
from log_rollup_plugin.hook import PooledS3Hook
from tests.conftest import ROOT
from tests.support.hours import hour_prefix, make_hour
from tests.system.conftest import AT_ONCE, Running

STREAM = "report"
ROLLUP = f"log_rollup_{STREAM}"
REPORT_HOUR = f"report_hour_{STREAM}"
REPORT_DAY = f"report_day_{STREAM}"
EXAMPLES = sorted((ROOT / "examples" / "dags").glob("*.py"))
DAY_HOURS = 24


@pytest.fixture(scope="module")
def past(running: Running) -> datetime:
    """A day that is over, with the examples waiting for the hours of a stream of their own."""
    running.add_stream(STREAM, running.dataset.hours[-1].hour + timedelta(hours=1), **AT_ONCE)
    for path in EXAMPLES:
        running.add_dag(path.name, path.read_text().replace('STREAM = "app"', f'STREAM = "{STREAM}"'))
    for dag_id in (ROLLUP, REPORT_HOUR, REPORT_DAY):
        running.wait_for(f"{dag_id} to be known", partial(running.stack.api.dag_is_known, dag_id))
    return running.dataset.hours[0].hour.replace(hour=0) - timedelta(days=5)


def make(running: Running, hour: datetime) -> None:
    make_hour(running.client, BUCKET, hour_prefix(f"raw/{STREAM}/", hour), objects=2, max_bytes=100_000)


def roll_up(running: Running, hours: list[datetime]) -> list[str]:
    """Roll up hours by hand; the ids of their runs, once all have ended well."""
    run_ids = [running.trigger(ROLLUP, {"hour": format_hour(hour)}) for hour in hours]
    assert {running.ended(ROLLUP, run_id).state for run_id in run_ids} == {"success"}
    return run_ids


def events(running: Running, keys: set[str]) -> list[dict[str, Any]]:
    """The events of some hours that partitioned Dags get, the oldest first."""
    query = f"/assets/events?source_dag_id={ROLLUP}&limit=100&order_by=timestamp"
    found = running.stack.api.request("GET", query)["asset_events"]
    return [event for event in found if event["partition_key"] in keys]


def reports(running: Running, dag_id: str, keys: set[str], count: int) -> list[dict[str, Any]]:
    """The runs for some partitions, once there are so many and all have ended, in the order of their making."""

    def probe() -> list[dict[str, Any]] | None:
        answer = running.stack.api.request("GET", f"/dags/{dag_id}/dagRuns?limit=100&order_by=run_after")
        runs = [run for run in answer["dag_runs"] if run["partition_key"] in keys]
        ended = all(run["state"] in ("success", "failed") for run in runs)
        return runs if len(runs) >= count and ended else None

    runs: list[dict[str, Any]] = running.wait_for(f"{count} runs of {dag_id}", probe)
    assert len(runs) == count
    assert {run["state"] for run in runs} == {"success"}
    return runs


def returned(running: Running, dag_id: str, run: dict[str, Any]) -> Any:
    """What the task ``report`` of a run has returned."""
    path = f"/dags/{dag_id}/dagRuns/{run['dag_run_id']}/taskInstances/report/xcomEntries/return_value"
    return running.stack.api.request("GET", path, params={"deserialize": "true"})["value"]


def consumed(running: Running, dag_id: str, run: dict[str, Any]) -> list[str]:
    """The hours whose events have started a run, in order."""
    path = f"/dags/{dag_id}/dagRuns/{run['dag_run_id']}/upstreamAssetEvents"
    return sorted(event["partition_key"] for event in running.stack.api.request("GET", path)["asset_events"])


@contextmanager
def paused(running: Running, dag_id: str) -> Iterator[None]:
    """Events meanwhile don't start this Dag."""

    def set_to(value: bool) -> None:
        running.stack.api.request("PATCH", f"/dags/{dag_id}", json={"is_paused": value})

    set_to(True)
    try:
        yield
    finally:
        set_to(False)


def test_the_hour_dag_runs_once_for_each_completion_and_is_told_the_hour_and_its_totals(
    running: Running, past: datetime
) -> None:
    hours = [past - timedelta(hours=back) for back in (2, 1)]
    for hour in hours:
        make(running, hour)
    first, _ = roll_up(running, hours)
    keys = {format_hour(hour) for hour in hours}
    runs = reports(running, REPORT_HOUR, keys, 2)
    assert {run["partition_key"] for run in runs} == keys
    told = {run["partition_key"]: returned(running, REPORT_HOUR, run) for run in runs}
    assert told == {event["partition_key"]: event["extra"] for event in events(running, keys)}
    assert all(one["hour"] == key and one["objects"] == 2 for key, one in told.items())

    # The hour is complete under the same plan once more: that is an event, and so a run, with the same plan.
    (run,) = (run for run in running.stack.api.dag_runs(ROLLUP) if run.run_id == first)
    running.clear(ROLLUP, run)
    assert running.ended(ROLLUP, first).state == "success"
    again = reports(running, REPORT_HOUR, {format_hour(hours[0])}, 2)[-1]
    assert returned(running, REPORT_HOUR, again) == told[again["partition_key"]]
    assert len(events(running, keys)) == 3


def test_the_day_dag_runs_once_and_only_after_all_24_hours(
    running: Running, past: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", running.stack.env["AIRFLOW_CONN_AWS_DEFAULT"])
    stream = next(one for one in load_streams(running.stack.layout.streams) if one.name == STREAM)
    (asset,) = running.stack.api.request("GET", f"/assets?name_pattern={ROLLUP}_hours")["assets"]
    hours = [past + timedelta(hours=number) for number in range(DAY_HOURS)]
    for hour in hours:
        make(running, hour)
    # The last hour is rolled up by its Dag, the others by the same steps here, which costs less.
    with paused(running, REPORT_HOUR), PooledS3Hook.for_stream(stream, 4, 1) as hook:
        for hour in hours[:-1]:
            for ref in plan_hour(hook, stream, hour, "test").shards:
                pack_shard(hook, stream, ref)
            validate_hour(hook, stream, hour)
            told = event_of(stream, hour, complete_hour(hook, stream, hour))
            event = {"asset_id": asset["id"], "partition_key": told["hour"], "extra": told}
            running.stack.api.request("POST", "/assets/events", json=event)
    roll_up(running, hours[-1:])
    (run,) = reports(running, REPORT_DAY, {f"{past:%Y-%m-%d}"}, 1)
    assert consumed(running, REPORT_DAY, run) == [format_hour(hour) for hour in hours]
    totals = returned(running, REPORT_DAY, run)
    assert (totals["objects"], totals["parts"]) == (2 * DAY_HOURS, DAY_HOURS)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_backfilled_day_runs_the_hour_dag_for_each_hour_and_the_day_dag_once(
    running: Running, past: datetime
) -> None:
    day = past - timedelta(days=2)
    hours = [day + timedelta(hours=number) for number in range(DAY_HOURS)]
    for hour in hours:
        make(running, hour)
    runs = running.backfill(ROLLUP, hours[0], hours[-1], max_active_runs=6)
    assert [run["state"] for run in runs] == ["success"] * DAY_HOURS
    keys = {format_hour(hour) for hour in hours}
    assert {run["partition_key"] for run in reports(running, REPORT_HOUR, keys, DAY_HOURS)} == keys
    (run,) = reports(running, REPORT_DAY, {f"{day:%Y-%m-%d}"}, 1)
    assert consumed(running, REPORT_DAY, run) == sorted(keys)

    # A late hour, by itself, doesn't start its day again; 24 hours that are told again do.
    made_late = hour_prefix(f"raw/{STREAM}/", hours[3])
    running.client.put_object(Bucket=BUCKET, Key=f"{made_late}zz-late.log", Body=b"late\n" * 1000)
    roll_up(running, [hours[3]])
    reports(running, REPORT_HOUR, {format_hour(hours[3])}, 2)
    reports(running, REPORT_DAY, {f"{day:%Y-%m-%d}"}, 1)
    again = running.backfill(ROLLUP, hours[0], hours[-1], max_active_runs=6, reprocess_behavior="completed")
    assert [run["state"] for run in again] == ["success"] * DAY_HOURS
    run = reports(running, REPORT_DAY, {f"{day:%Y-%m-%d}"}, 2)[-1]
    assert set(consumed(running, REPORT_DAY, run)) == keys
    assert returned(running, REPORT_DAY, run)["objects"] == 2 * DAY_HOURS + 1


def test_the_examples_name_no_stream_but_that_of_the_shipped_streams_file() -> None:
    assert len(EXAMPLES) == 2
    shipped = {stream.name for stream in load_streams(ROOT / "include" / "streams.yaml")}
    for path in EXAMPLES:
        assert f'STREAM = "{next(iter(shipped))}"' in path.read_text()
