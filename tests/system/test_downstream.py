"""The example Dags downstream of complete hours, under a real scheduler."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from dev.stack.paths import BUCKET
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.streams import load_streams
from tests.conftest import ROOT
from tests.support.raw_hours import hour_prefix, make_hour
from tests.system.downstream import EXAMPLES, REPORT_STREAM
from tests.system.in_process import roll_up_in_process
from tests.system.running import Running

ROLLUP = f"log_rollup_{REPORT_STREAM}"
REPORT_HOUR = f"report_hour_{REPORT_STREAM}"
REPORT_DAY = f"report_day_{REPORT_STREAM}"
DAY_HOURS = 24
AT_A_TIME = 6


@pytest.fixture(scope="module")
def past(running: Running) -> datetime:
    """Midnight of a past day; both example Dags are ready for its hours."""
    for dag_id in (ROLLUP, REPORT_HOUR, REPORT_DAY):
        running.wait_for_dag(dag_id)
    return running.dataset.hours[0].hour.replace(hour=0) - timedelta(days=5)


def make(running: Running, hour: datetime) -> None:
    make_hour(
        running.client, BUCKET, hour_prefix(f"raw/{REPORT_STREAM}/", hour), objects=2, max_bytes=100_000
    )


def roll_up(running: Running, hours: list[datetime]) -> list[str]:
    """Roll up hours by manual runs, a few at a time; return the ids of the runs, all of which succeeded."""
    run_ids: list[str] = []
    for start in range(0, len(hours), AT_A_TIME):
        few = hours[start : start + AT_A_TIME]
        ids = [running.trigger(ROLLUP, {"hour": format_hour(hour)}) for hour in few]
        assert {running.ended(ROLLUP, run_id).state for run_id in ids} == {"success"}
        run_ids += ids
    return run_ids


def emit_events(running: Running, extras: Iterable[dict[str, Any]]) -> None:
    """Emit events as completions do, while the hour Dag is paused: it would run once for each."""
    (asset,) = running.stack.api.request("GET", f"/assets?name_pattern={ROLLUP}_hours")["assets"]
    with running.paused(REPORT_HOUR):
        for extra in extras:
            event = {"asset_id": asset["id"], "partition_key": extra["hour"], "extra": extra}
            running.write("POST", "/assets/events", event)


def events(running: Running, keys: set[str]) -> list[dict[str, Any]]:
    """Return the partitioned events of some hours, the oldest first."""
    query = f"/assets/events?source_dag_id={ROLLUP}&limit=100&order_by=timestamp"
    found = running.stack.api.request("GET", query)["asset_events"]
    return [event for event in found if event["partition_key"] in keys]


def reports(running: Running, dag_id: str, keys: set[str], count: int) -> list[dict[str, Any]]:
    """Wait for ``count`` successful runs for some partitions; return them in the order of their creation."""

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
    """Return what the task ``report`` of a run returned."""
    path = f"/dags/{dag_id}/dagRuns/{run['dag_run_id']}/taskInstances/report/xcomEntries/return_value"
    return running.stack.api.request("GET", path, params={"deserialize": "true"})["value"]


def consumed(running: Running, dag_id: str, run: dict[str, Any]) -> list[str]:
    """Return the hours whose events started a run, in order."""
    path = f"/dags/{dag_id}/dagRuns/{run['dag_run_id']}/upstreamAssetEvents"
    return sorted(
        {event["partition_key"] for event in running.stack.api.request("GET", path)["asset_events"]}
    )


@dataclass(frozen=True)
class Day:
    """A day that is rolled up.

    :param extras: the extra of the events of all hours but the last
    :param last_run: the run that completed the last hour
    """

    hours: list[datetime]
    extras: list[dict[str, Any]]
    last_run: str

    @property
    def key(self) -> str:
        """The key of the day's partition."""
        return f"{self.hours[0]:%Y-%m-%d}"

    @property
    def last(self) -> set[str]:
        """The key of the last hour's partition."""
        return {format_hour(self.hours[-1])}


@pytest.fixture(scope="module")
def day(running: Running, past: datetime) -> Day:
    """A day whose last hour is rolled up by its Dag, and the other hours in this process, which is faster."""
    hours = [past + timedelta(hours=number) for number in range(DAY_HOURS)]
    for hour in hours:
        make(running, hour)
    extras = roll_up_in_process(running, REPORT_STREAM, hours[:-1])
    emit_events(running, extras)
    return Day(hours, extras, *roll_up(running, hours[-1:]))


def test_hour_dag_runs_once_per_completion_with_its_totals(running: Running, day: Day) -> None:
    (run,) = reports(running, REPORT_HOUR, day.last, 1)
    (event,) = events(running, day.last)
    extras = returned(running, REPORT_HOUR, run)
    assert extras == event["extra"]
    assert (extras["hour"], extras["objects"], extras["parts"]) == (run["partition_key"], 2, 1)


def test_day_dag_runs_once_after_all_24_hours(running: Running, day: Day) -> None:
    (run,) = reports(running, REPORT_DAY, {day.key}, 1)
    assert consumed(running, REPORT_DAY, run) == [format_hour(hour) for hour in day.hours]
    totals = returned(running, REPORT_DAY, run)
    assert (totals["objects"], totals["parts"]) == (2 * DAY_HOURS, DAY_HOURS)


def test_unchanged_hour_restarts_its_day_only_with_23_others(running: Running, day: Day) -> None:
    run = running.stack.api.dag_run(ROLLUP, day.last_run)
    prefix = hour_prefix(f"aggregated/{REPORT_STREAM}/", day.hours[-1])
    before = running.stamps(prefix)
    running.clear(ROLLUP, run)
    assert running.ended(ROLLUP, day.last_run).state == "success"
    assert running.stamps(prefix) == before
    # The map indexes of the first try are no longer part of the run's result.
    shards = running.instances(ROLLUP, run)["pack_shard"]
    assert {shard.state for shard in shards} <= {"skipped", "removed"}

    first, again = reports(running, REPORT_HOUR, day.last, 2)
    assert returned(running, REPORT_HOUR, again) == returned(running, REPORT_HOUR, first)
    assert len(events(running, day.last)) == 2
    reports(running, REPORT_DAY, {day.key}, 1)
    emit_events(running, day.extras)
    again = reports(running, REPORT_DAY, {day.key}, 2)[-1]
    assert consumed(running, REPORT_DAY, again) == [format_hour(hour) for hour in day.hours]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_day_of_runs_starts_each_hour_dag_and_one_day_dag(running: Running, past: datetime) -> None:
    midnight = past - timedelta(days=2)
    key = f"{midnight:%Y-%m-%d}"
    hours = [midnight + timedelta(hours=number) for number in range(DAY_HOURS)]
    for hour in hours:
        make(running, hour)
    roll_up(running, hours)
    keys = {format_hour(hour) for hour in hours}
    assert {run["partition_key"] for run in reports(running, REPORT_HOUR, keys, DAY_HOURS)} == keys
    (run,) = reports(running, REPORT_DAY, {key}, 1)
    assert consumed(running, REPORT_DAY, run) == sorted(keys)

    # One late hour by itself doesn't start its day again.
    raw = hour_prefix(f"raw/{REPORT_STREAM}/", hours[3])
    running.client.put_object(Bucket=BUCKET, Key=f"{raw}zz-late.log", Body=b"late\n" * 1000)
    roll_up(running, [hours[3]])
    reports(running, REPORT_HOUR, {format_hour(hours[3])}, 2)
    reports(running, REPORT_DAY, {key}, 1)


def test_examples_name_only_the_shipped_stream() -> None:
    assert len(EXAMPLES) == 3
    shipped = {stream.name for stream in load_streams(ROOT / "include" / "streams.yaml")}
    for path in EXAMPLES:
        assert f'STREAM = "{next(iter(shipped))}"' in path.read_text()
