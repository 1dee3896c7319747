"""The Dag under a real scheduler: catchup, the pool, clearing, and waiting in the triggerer."""

from datetime import datetime

import pytest

from dev.stack.airflow_api import DagRun
from dev.stack.paths import BUCKET
from tests.support.raw_hours import hour_prefix, make_hour
from tests.support.verify import VerifiedHour, verify_hour
from tests.system.conftest import OBJECTS, POOL, Running

APP = "log_rollup_app"
QUIET = "log_rollup_quiet"
PART_SIZE = 5 * 1024 * 1024


def verify(running: Running, stream: str, hour: datetime) -> VerifiedHour:
    """Compare an hour byte by byte."""
    return verify_hour(
        running.client, BUCKET,
        hour_prefix(f"raw/{stream}/", hour), hour_prefix(f"aggregated/{stream}/", hour), part_size=PART_SIZE,
    )  # fmt: skip


def state_of(running: Running, run: DagRun) -> str:
    """The state of a run now."""
    return next(one.state for one in running.stack.api.dag_runs(APP) if one.run_id == run.run_id)


@pytest.fixture(scope="module")
def runs(running: Running) -> list[DagRun]:
    """The catchup runs of the made hours, once they have ended."""
    return [running.finished_run(APP, made.hour) for made in running.dataset.hours]


def test_catchup_completes_every_hour(running: Running, runs: list[DagRun]) -> None:
    assert [run.state for run in runs] == ["success"] * len(runs)
    for made in running.dataset.hours:
        facts = verify(running, "app", made.hour)
        assert facts.objects == OBJECTS
        assert 0 < facts.marker["peak"]["sockets"] <= facts.marker["max_connections"]


def test_shards_are_mapped_tasks_with_names_in_the_pool(running: Running, runs: list[DagRun]) -> None:
    tasks = running.instances(APP, runs[0])
    shards = tasks["pack_shard"]
    assert len(shards) > 1
    assert {(shard.pool, shard.pool_slots) for shard in shards} == {(POOL, 25)}
    rows = running.stack.api.request(
        "GET", f"/dags/{APP}/dagRuns/{runs[0].run_id}/taskInstances/pack_shard/listMapped"
    )["task_instances"]
    names = sorted(row["rendered_map_index"] for row in rows)
    assert names[0].startswith("part")
    assert all("objects" in name for name in names)


def test_each_completion_emits_a_partitioned_and_a_plain_event(running: Running, runs: list[DagRun]) -> None:
    found = running.stack.api.request("GET", f"/assets/events?source_dag_id={APP}")["asset_events"]
    for made, run in zip(running.dataset.hours, runs, strict=True):
        key = f"{made.hour:%Y-%m-%dT%H:%M:%SZ}"
        events = [event for event in found if event["source_run_id"] == run.run_id]
        assert sorted((event["name"], event["partition_key"]) for event in events) == [
            (APP, None),
            (f"{APP}_hours", key),
        ]
        marker = verify(running, "app", made.hour).marker
        fields = ("stream", "hour", "plan_id", "objects", "bytes_in", "bytes_out", "parts")
        place = f"s3://{BUCKET}/{hour_prefix('aggregated/app/', made.hour)}"
        assert [event["extra"] for event in events] == 2 * [
            {
                **{field: marker[field] for field in fields},
                "aggregated": place,
                "manifest": f"{place}_manifest.jsonl.gz",
                "marker": f"{place}_SUCCESS",
            }
        ]


def test_sockets_of_all_processes_stay_within_the_pool(running: Running, runs: list[DagRun]) -> None:
    assert running.stack.api.pools()[POOL] == 250
    assert 0 < running.watch.peak_sockets <= 250
    assert running.watch.peak_sockets_of_one <= 25


def test_clear_of_a_complete_hour_writes_no_part(running: Running, runs: list[DagRun]) -> None:
    hour = running.dataset.hours[0].hour
    prefix = hour_prefix("aggregated/app/", hour)

    def stamps() -> dict[str, datetime]:
        listing = running.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
        return {item["Key"]: item["LastModified"] for item in listing}

    before = stamps()
    running.clear(APP, runs[0])
    running.wait_for("the cleared run at work", lambda: state_of(running, runs[0]) != "success")
    again = running.finished_run(APP, hour)
    assert again.state == "success"
    assert stamps() == before
    # The old map indexes are gone from the run's result.
    assert {shard.state for shard in running.instances(APP, again)["pack_shard"]} <= {"skipped", "removed"}


def test_hour_waits_in_the_triggerer_until_it_is_quiet(
    running: Running,
) -> None:
    hour = running.dataset.hours[-1].hour
    make_hour(running.client, BUCKET, hour_prefix("raw/quiet/", hour), objects=5)

    def deferred() -> bool:
        if not running.stack.api.dag_is_known(QUIET):
            return False
        started = [run for run in running.stack.api.dag_runs(QUIET) if run.hour == hour]
        return any(
            instance.task_id == "wait_for_raw_hour" and instance.state == "deferred"
            for run in started
            for instance in running.stack.api.task_instances(QUIET, run.run_id)
        )

    running.wait_for("the deferral", deferred)
    assert running.finished_run(QUIET, hour).state == "success"
    verify(running, "quiet", hour)
