"""Clearing, backfills, late objects and two runs at once, under a real scheduler.

Every hour is compared byte by byte by code that shares nothing with the pipeline's.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from dev.stack.airflow_api import DagRun, TaskInstance
from dev.stack.paths import BUCKET
from tests.support.raw_hours import hour_prefix, make_hour, put_objects
from tests.support.verify import VerifiedHour, assert_not_complete, verify_hour
from tests.system.conftest import FRESH, SMALL, SMALL_CONNECTIONS, Running
from tests.system.markers import MarkerWatch

LATE = "log_rollup_late"
PART_SIZE = 5 * 1024 * 1024
# Enough for planning and validating, too little for packing.
NO_PACKING = SMALL_CONNECTIONS - 1


def iso(hour: datetime) -> str:
    return f"{hour:%Y-%m-%dT%H:%M:%SZ}"


def raw(hour: datetime, stream: str = "small") -> str:
    return hour_prefix(f"raw/{stream}/", hour)


def aggregated(hour: datetime, stream: str = "small") -> str:
    return hour_prefix(f"aggregated/{stream}/", hour)


def make(
    running: Running, hour: datetime, objects: int, *, big: bool = False, stream: str = "small"
) -> dict[str, bytes]:
    """Write a raw hour; of big objects each is a part by itself, and a few of them make several shards."""
    low, high = (3_000_000, 4_000_000) if big else (1024, 100_000)
    return make_hour(
        running.client, BUCKET, raw(hour, stream), objects=objects, min_bytes=low, max_bytes=high
    )


def verify(
    running: Running, hour: datetime, expected: Mapping[str, bytes], stream: str = "small"
) -> VerifiedHour:
    """Compare an hour byte by byte."""
    return verify_hour(
        running.client, BUCKET, raw(hour, stream), aggregated(hour, stream),
        part_size=PART_SIZE, expected=expected,
    )  # fmt: skip


def delete(running: Running, *keys: str) -> None:
    for key in keys:
        running.client.delete_object(Bucket=BUCKET, Key=key)


def roll_up(running: Running, hour: datetime, **conf: Any) -> DagRun:
    """Run an hour of the stream ``small`` by hand."""
    return running.ended(SMALL, running.trigger(SMALL, {"hour": iso(hour), **conf}))


def tries(running: Running, run: DagRun) -> dict[str, int]:
    """How often each task of a run was tried."""
    return {
        instance.label: instance.try_number
        for instance in running.stack.api.task_instances(SMALL, run.run_id)
        if instance.state != "removed"
    }


@pytest.fixture(scope="module")
def past(running: Running) -> datetime:
    """An hour of the day before; each test takes hours of its own, some hours earlier."""
    return running.dataset.hours[0].hour - timedelta(hours=2)


# -- clear and rerun -----------------------------------------------------------------------------------


def test_clear_of_a_failed_shard_keeps_the_other_shards(running: Running, past: datetime) -> None:
    made = make(running, past, 3, big=True)
    key = sorted(made)[1]
    with running.pool_of(NO_PACKING):
        run_id = running.trigger(SMALL, {"hour": iso(past)})
        running.wait_for("its shards", lambda: len(running.waiting_shards(SMALL, run_id)) > 1)
        delete(running, key)
    run = running.ended(SMALL, run_id)
    assert run.state == "failed"
    assert_not_complete(running.client, BUCKET, aggregated(past))
    shards = running.instances(SMALL, run)["pack_shard"]
    (failed,) = (shard.map_index for shard in shards if shard.state == "failed")
    put_objects(running.client, BUCKET, {key: made[key]})
    running.clear(SMALL, run, task_ids=[["pack_shard", failed]], include_downstream=True)
    assert running.ended(SMALL, run_id).state == "success"
    verify(running, past, made)
    assert tries(running, run) == {
        "wait_for_raw_hour": 1, "plan_hour": 1, "validate_hour": 1, "complete_hour": 1,
        **{f"pack_shard[{shard.map_index}]": 1 + (shard.map_index == failed) for shard in shards},
    }  # fmt: skip


def test_clear_of_one_task_runs_only_that_task(running: Running, past: datetime) -> None:
    hour = past - timedelta(hours=1)
    made = make(running, hour, 3)
    run = roll_up(running, hour)
    before, first = running.stamps(aggregated(hour)), tries(running, run)
    for task in ("validate_hour", "plan_hour"):
        running.clear(SMALL, run, task_ids=[task])
        assert running.ended(SMALL, run.run_id).state == "success"
    assert tries(running, run) == {**first, "validate_hour": 2, "plan_hour": 2}
    assert running.stamps(aggregated(hour)) == before
    verify(running, hour, made)


# -- a rerun that plans differently --------------------------------------------------------------------


def test_hour_that_shrinks_and_grows_is_never_mixed(running: Running, past: datetime) -> None:
    hour = past - timedelta(hours=2)
    made = make(running, hour, 5, big=True)
    with MarkerWatch(running.client, BUCKET, aggregated(hour)) as watch:
        run = roll_up(running, hour, drop_vanished=True)
        assert verify(running, hour, made).parts == 5
        kept = dict(sorted(made.items())[2:4])
        delete(running, *(made.keys() - kept.keys()))
        running.clear(SMALL, run)
        assert running.ended(SMALL, run.run_id).state == "success"
        assert verify(running, hour, kept).parts == 2
        # The others come back, one of them as another, and two more.
        grown = make(running, hour, 7, big=True)
        changed = sorted(kept)[0]
        grown[changed] = b"changed\n" * 400_000
        put_objects(running.client, BUCKET, {changed: grown[changed]})
        running.clear(SMALL, run)
        assert running.ended(SMALL, run.run_id).state == "success"
        assert verify(running, hour, grown).parts == 7
    watch.assert_never_mixed(plans=3)


def test_run_with_expired_raw_objects_fails_and_keeps_the_hour(running: Running, past: datetime) -> None:
    hour = past - timedelta(hours=3)
    made = make(running, hour, 3)
    run = roll_up(running, hour)
    before = running.stamps(aggregated(hour))
    delete(running, sorted(made)[0])
    running.clear(SMALL, run)
    assert running.ended(SMALL, run.run_id).state == "failed"
    assert running.stamps(aggregated(hour)) == before
    (plan,) = running.instances(SMALL, run)["plan_hour"]
    assert "1 of 3 raw objects" in (running.stack.api.task_log(SMALL, plan).error or "")


# -- backfills -----------------------------------------------------------------------------------------


def test_each_kind_of_backfill_runs_only_what_is_missing(running: Running, past: datetime) -> None:
    first, last = past - timedelta(hours=5), past - timedelta(hours=4)
    made = {hour: make(running, hour, 3, big=True) for hour in (first, last)}
    container = f"{raw(last)}not-a-log.parquet"
    put_objects(running.client, BUCKET, {container: b"PAR1"})

    # Both hours lie before the stream's start. One cannot be planned.
    runs = running.backfill(SMALL, first, last, max_active_runs=1)
    assert [(run["run_type"], run["state"]) for run in runs] == [
        ("backfill", "success"),
        ("backfill", "failed"),
    ]
    verify(running, first, made[first])
    assert_not_complete(running.client, BUCKET, aggregated(last))

    # What failed goes again, once the cause is gone; the other run is not touched.
    delete(running, container)
    again = running.backfill(SMALL, first, last, reprocess_behavior="failed")
    assert [run["state"] for run in again] == ["success", "success"]
    assert again[0]["start_date"] == runs[0]["start_date"]
    verify(running, last, made[last])

    # What is complete is looked at again, from the last hour to the first, one at a time, and stays.
    before = {hour: running.stamps(aggregated(hour)) for hour in made}
    runs = running.backfill(
        SMALL, first, last, reprocess_behavior="completed", run_backwards=True, max_active_runs=1
    )
    assert [run["data_interval_start"] for run in runs] == [iso(last), iso(first)]
    assert runs[0]["end_date"] <= runs[1]["start_date"]
    assert [run["state"] for run in runs] == ["success", "success"]
    assert {hour: running.stamps(aggregated(hour)) for hour in made} == before

    # The run that had no shard at all the last time has all of them when an object has come late.
    late = {f"{raw(first)}zz-late.log": b"late\n" * 700_000}
    put_objects(running.client, BUCKET, late)
    (run,) = running.backfill(SMALL, first, first, reprocess_behavior="completed")
    assert run["state"] == "success"
    verify(running, first, {**made[first], **late})
    # Nothing is reprocessed where that is not asked for.
    (same,) = running.backfill(SMALL, first, first)
    assert (same["start_date"], same["end_date"]) == (run["start_date"], run["end_date"])


def test_present_hour_gets_connections_before_a_backfill(running: Running, past: datetime) -> None:
    hours = [past - timedelta(hours=back) for back in (8, 7, 6)]
    made = {hour: make(running, hour, 2) for hour in hours}
    present = running.dataset.hours[-1].hour
    scheduled = running.run_of(FRESH, present)
    with running.pool_of(NO_PACKING):
        backfill = running.start_backfill(SMALL, hours[0], hours[-1], max_active_runs=len(hours))
        for hour in hours:
            running.wait_for("a shard of the backfill", partial(backfilled_shards, running, hour))
        fresh = make(running, present, 2, stream="fresh")
        running.wait_for("the present shard", lambda: running.waiting_shards(FRESH, scheduled.run_id))
        # One shard at a time.
        with running.pool_of(SMALL_CONNECTIONS):
            assert running.ended(FRESH, scheduled.run_id).state == "success"
            runs = [running.finished_run(SMALL, hour) for hour in hours]
    running.end_backfill(backfill)
    assert [run.state for run in runs] == ["success"] * len(hours)
    verify(running, present, fresh, "fresh")
    for hour in hours:
        verify(running, hour, made[hour])
    began = [running.packing_began(SMALL, run.run_id) for run in runs]
    assert running.packing_began(FRESH, scheduled.run_id) < min(began)


def backfilled_shards(running: Running, hour: datetime) -> list[TaskInstance]:
    """The shards of an hour's backfill run that wait for their slots."""
    runs = running.runs_between(SMALL, hour, hour)
    return [shard for run in runs for shard in running.waiting_shards(SMALL, run["dag_run_id"])]


# -- late and changed objects --------------------------------------------------------------------------


def look_for_late_objects(running: Running) -> tuple[DagRun, dict[str, Any]]:
    """A run of the late Dag, and what it reports of the stream ``small``."""
    run = running.ended(LATE, running.trigger(LATE, {}))
    path = f"/dags/{LATE}/dagRuns/{run.run_id}/taskInstances/find_small/xcomEntries/report"
    value = running.stack.api.request("GET", path)["value"]
    return run, json.loads(value) if isinstance(value, str) else value


def test_only_hours_with_late_or_changed_objects_are_rerun(running: Running, past: datetime) -> None:
    late, changed, unchanged, expired = (past - timedelta(hours=back) for back in (12, 11, 10, 9))
    made = {hour: make(running, hour, 3) for hour in (late, changed, unchanged, expired)}
    running.backfill(SMALL, late, expired)
    made[late][f"{raw(late)}zz-late.log"] = b"late\n" * 1000
    made[changed][sorted(made[changed])[0]] = b"changed\n" * 1000
    for hour in (late, changed):
        put_objects(running.client, BUCKET, made[hour])
    delete(running, *made[expired])
    before = {hour: running.stamps(aggregated(hour)) for hour in (unchanged, expired)}

    run, report = look_for_late_objects(running)
    assert run.state == "success"
    assert report["rerun"] == {
        iso(late): {"late": 1, "changed": 0, "vanished": 0},
        iso(changed): {"late": 0, "changed": 1, "vanished": 0},
    }
    assert report["left_alone"][iso(expired)] == {"late": 0, "changed": 0, "vanished": 3}
    for hour in (late, changed):
        verify(running, hour, made[hour])
    assert {hour: running.stamps(aggregated(hour)) for hour in (unchanged, expired)} == before

    # Once more: the hour's late run is there already, and is cleared.
    made[late][f"{raw(late)}zzz-later.log"] = b"later\n" * 1000
    put_objects(running.client, BUCKET, made[late])
    run, report = look_for_late_objects(running)
    assert run.state == "success"
    assert list(report["rerun"]) == [iso(late)]
    verify(running, late, made[late])
    reruns = [run.run_id for run in running.stack.api.dag_runs(SMALL) if run.run_id.startswith("late__")]
    assert sorted(reruns) == [f"late__{iso(late)}", f"late__{iso(changed)}"]


# -- two at once ---------------------------------------------------------------------------------------


def test_competing_runs_never_mix_an_hour(
    running: Running,
) -> None:
    hour = running.dataset.hours[0].hour
    scheduled = running.run_of(FRESH, hour)
    with MarkerWatch(running.client, BUCKET, aggregated(hour, "fresh")) as watch:
        with running.pool_of(NO_PACKING):
            made = make(running, hour, 3, big=True, stream="fresh")
            running.wait_for("its shards", lambda: running.waiting_shards(FRESH, scheduled.run_id))
            made[f"{raw(hour, 'fresh')}a-late.log"] = b"late\n" * 700_000
            put_objects(running.client, BUCKET, made)
            by_hand = running.trigger(FRESH, {"hour": iso(hour)})
            running.wait_for("the other shards", lambda: running.waiting_shards(FRESH, by_hand))
        # The later plan has the claim.
        assert running.ended(FRESH, by_hand).state == "success"
        assert running.ended(FRESH, scheduled.run_id).state == "failed"
        verify(running, hour, made, "fresh")
        running.clear(FRESH, scheduled)
        assert running.ended(FRESH, scheduled.run_id).state == "success"
    verify(running, hour, made, "fresh")
    watch.assert_never_mixed(plans=1)


def test_two_runs_of_an_unchanged_hour_agree(running: Running, past: datetime) -> None:
    hour = past - timedelta(hours=13)
    made = make(running, hour, 3, big=True)
    with MarkerWatch(running.client, BUCKET, aggregated(hour)) as watch:
        runs = [running.trigger(SMALL, {"hour": iso(hour)}) for _ in range(2)]
        states = {running.ended(SMALL, run_id).state for run_id in runs}
    assert "success" in states
    verify(running, hour, made)
    watch.assert_never_mixed(plans=1)
