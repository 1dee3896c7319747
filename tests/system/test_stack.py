"""The Dag under a real scheduler: catchup, the pool, events, and waiting in the triggerer."""

from datetime import datetime

import pytest

from dev.stack.airflow_api import DagRun
from dev.stack.paths import BUCKET
from include.log_rollup.hour.layout import format_hour
from tests.support.raw_hours import hour_prefix, make_hour
from tests.support.verify import VerifiedHour, verify_hour
from tests.system.running import APP, POOL, POOL_SLOTS, Running
from tests.system.streams import APP_OBJECTS, PART_SIZE

QUIET = "log_rollup_quiet"


def verify(running: Running, name: str, hour: datetime) -> VerifiedHour:
    """Compare an hour of a stream byte by byte."""
    return verify_hour(
        running.client, BUCKET,
        hour_prefix(f"raw/{name}/", hour), hour_prefix(f"aggregated/{name}/", hour), part_size=PART_SIZE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(running: Running) -> list[DagRun]:
    """The ended catchup runs of the made hours."""
    return [running.finished_run(APP, made.hour) for made in running.dataset.hours]


def test_catchup_completes_every_hour(running: Running, runs: list[DagRun]) -> None:
    assert [run.state for run in runs] == ["success"] * len(runs)
    for made in running.dataset.hours:
        facts = verify(running, "app", made.hour)
        assert facts.objects == APP_OBJECTS
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
        events = [event for event in found if event["source_run_id"] == run.run_id]
        assert sorted((event["name"], event["partition_key"]) for event in events) == [
            (APP, None),
            (f"{APP}_hours", format_hour(made.hour)),
        ]
        marker = verify(running, "app", made.hour).marker
        fields = ("stream", "hour", "plan_id", "objects", "bytes_in", "bytes_out", "parts")
        aggregated = f"s3://{BUCKET}/{hour_prefix('aggregated/app/', made.hour)}"
        assert [event["extra"] for event in events] == 2 * [
            {
                **{field: marker[field] for field in fields},
                "aggregated": aggregated,
                "manifest": f"{aggregated}_manifest.jsonl.gz",
                "marker": f"{aggregated}_SUCCESS",
            }
        ]


@pytest.mark.usefixtures("alone")
def test_sockets_of_all_processes_stay_within_the_pool(running: Running, runs: list[DagRun]) -> None:
    # By now the other tests have run.
    assert running.stack.api.pools()[POOL] == POOL_SLOTS
    assert 0 < running.watch.peak_sockets <= POOL_SLOTS
    assert running.watch.peak_sockets_of_one <= 25


@pytest.mark.overlaps
def test_hour_waits_in_the_triggerer_until_it_is_quiet(running: Running) -> None:
    hour = running.dataset.hours[-1].hour
    run_id = running.trigger(QUIET, {"hour": format_hour(hour)})
    running.wait_for_deferral(QUIET, run_id)
    make_hour(running.client, BUCKET, hour_prefix("raw/quiet/", hour), objects=5)
    assert running.ended(QUIET, run_id).state == "success"
    verify(running, "quiet", hour)
