"""Clearing, backfills, late objects and competing runs, under a real scheduler.

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
from include.log_rollup.hour.layout import format_hour
from tests.support.raw_hours import hour_prefix, make_hour, put_objects
from tests.support.verify import VerifiedHour, assert_not_complete, verify_hour
from tests.system.in_process import roll_up_in_process
from tests.system.marker_watch import MarkerWatch
from tests.system.running import Running
from tests.system.streams import AT_ONCE, PART_SIZE, SMALL_CONNECTIONS, stream

pytestmark = pytest.mark.overlaps

SMALL = "log_rollup_small"
BACKFILLED = "log_rollup_backfilled"
OLDER = "log_rollup_older"
REVISED = "log_rollup_revised"
FRESH = "log_rollup_fresh"
LATE = "log_rollup_late"
# Enough for planning and validating, too few for packing.
NO_PACKING = SMALL_CONNECTIONS - 1


def raw(hour: datetime, name: str = "small") -> str:
    return hour_prefix(f"raw/{name}/", hour)


def aggregated(hour: datetime, name: str = "small") -> str:
    return hour_prefix(f"aggregated/{name}/", hour)


def make(
    running: Running, hour: datetime, objects: int, *, big: bool = False, name: str = "small"
) -> dict[str, bytes]:
    """Write a raw hour. Each big object becomes a part and a shard of its own."""
    low, high = (3_000_000, 4_000_000) if big else (1024, 100_000)
    return make_hour(running.client, BUCKET, raw(hour, name), objects=objects, min_bytes=low, max_bytes=high)


def verify(
    running: Running, hour: datetime, expected: Mapping[str, bytes], name: str = "small", reruns: bool = False
) -> VerifiedHour:
    """Compare an hour byte by byte.

    :param reruns: whether later runs have packed objects of the hour
    """
    return verify_hour(
        running.client, BUCKET, raw(hour, name), aggregated(hour, name),
        part_size=PART_SIZE, expected=expected, reruns=reruns,
    )  # fmt: skip


def delete(running: Running, *keys: str) -> None:
    for key in keys:
        running.client.delete_object(Bucket=BUCKET, Key=key)


def run_by_hand(running: Running, hour: datetime, **conf: Any) -> DagRun:
    """Run an hour of the stream ``small``, and wait for the end."""
    return running.ended(SMALL, running.trigger(SMALL, {"hour": format_hour(hour), **conf}))


def tries(running: Running, run: DagRun) -> dict[str, int]:
    """Return how often each task of a run was tried."""
    return {
        instance.label: instance.try_number
        for instance in running.stack.api.task_instances(SMALL, run.run_id)
        if instance.state != "removed"
    }


def hour_before(running: Running, hours: int) -> datetime:
    """Return an hour before those of ``app``; each test uses other hours."""
    return running.dataset.hours[0].hour - timedelta(hours=2 + hours)


def add_fresh(running: Running) -> None:
    """Add the stream ``fresh``: each hour of ``app`` has a scheduled run, which waits for its first objects."""
    settings = {**AT_ONCE, "quiet_period": "3s"}
    running.add_stream(stream("fresh", running.dataset.hours[0].hour, **settings))


# -- clearing ------------------------------------------------------------------------------------------


def test_clear_of_tasks_runs_only_those_tasks(running: Running) -> None:
    past = hour_before(running, 0)
    made = make(running, past, 2, big=True)
    key = sorted(made)[1]
    with running.pool_of(NO_PACKING):
        run_id = running.trigger(SMALL, {"hour": format_hour(past)})
        running.wait_for("its shards", lambda: len(running.waiting_shards(SMALL, run_id)) > 1)
        delete(running, key)
    run = running.ended(SMALL, run_id)
    assert run.state == "failed"
    assert_not_complete(running.client, BUCKET, aggregated(past))

    # The failed shard and what depends on it.
    shards = running.instances(SMALL, run)["pack_shard"]
    (failed,) = (shard.map_index for shard in shards if shard.state == "failed")
    put_objects(running.client, BUCKET, {key: made[key]})
    running.clear(SMALL, run, task_ids=[["pack_shard", failed]], include_downstream=True)
    assert running.ended(SMALL, run_id).state == "success"
    verify(running, past, made)
    expected = {
        "wait_for_raw_hour": 1, "plan_hour": 1, "validate_hour": 1, "complete_hour": 1,
        **{f"pack_shard[{shard.map_index}]": 1 + (shard.map_index == failed) for shard in shards},
    }  # fmt: skip
    assert tries(running, run) == expected

    # A single task of the complete hour.
    before = running.stamps(aggregated(past))
    for task in ("validate_hour", "plan_hour"):
        running.clear(SMALL, run, task_ids=[task])
        assert running.ended(SMALL, run_id).state == "success"
    assert tries(running, run) == {**expected, "validate_hour": 2, "plan_hour": 2}
    assert running.stamps(aggregated(past)) == before
    verify(running, past, made)


def test_hour_that_shrinks_and_grows_is_never_mixed(running: Running) -> None:
    hour = hour_before(running, 1)
    made = make(running, hour, 3, big=True)
    with MarkerWatch(running.client, BUCKET, aggregated(hour)) as watch:
        run = run_by_hand(running, hour, drop_vanished=True)
        assert verify(running, hour, made).parts == 3
        kept = dict(sorted(made.items())[1:3])
        delete(running, *(made.keys() - kept.keys()))
        running.clear(SMALL, run)
        assert running.ended(SMALL, run.run_id).state == "success"
        assert verify(running, hour, kept).parts == 2
        # The deleted objects come back, one object has changed, and one is new.
        grown = make(running, hour, 4, big=True)
        changed = sorted(kept)[0]
        grown[changed] = b"changed\n" * 400_000
        put_objects(running.client, BUCKET, {changed: grown[changed]})
        running.clear(SMALL, run)
        assert running.ended(SMALL, run.run_id).state == "success"
        assert verify(running, hour, grown, reruns=True).parts == 4
    watch.assert_never_mixed(plans={3})


def test_run_with_expired_raw_objects_fails_and_keeps_the_hour(running: Running) -> None:
    hour = hour_before(running, 2)
    made = make(running, hour, 3)
    roll_up_in_process(running, "small", [hour])
    before = running.stamps(aggregated(hour))
    delete(running, sorted(made)[0])
    run = run_by_hand(running, hour)
    assert run.state == "failed"
    assert running.stamps(aggregated(hour)) == before
    (plan,) = running.instances(SMALL, run)["plan_hour"]
    assert "1 of 3 raw objects" in (running.stack.api.task_log(SMALL, plan).error or "")


# -- backfills -----------------------------------------------------------------------------------------


def test_each_kind_of_backfill_runs_only_what_is_missing(running: Running) -> None:
    name = "backfilled"
    first, last = hour_before(running, 4), hour_before(running, 3)
    made = {first: make(running, first, 2, big=True, name=name), last: make(running, last, 3, name=name)}
    container = f"{raw(last, name)}not-a-log.parquet"
    put_objects(running.client, BUCKET, {container: b"PAR1"})

    # Both hours are before the stream's start. One cannot be planned.
    runs = running.backfill(BACKFILLED, first, last, max_active_runs=1)
    assert [(run["run_type"], run["state"]) for run in runs] == [
        ("backfill", "success"),
        ("backfill", "failed"),
    ]
    verify(running, first, made[first], name)
    assert_not_complete(running.client, BUCKET, aggregated(last, name))

    # The failed run is repeated once the cause is gone; the other run is unchanged.
    delete(running, container)
    again = running.backfill(BACKFILLED, first, last, reprocess_behavior="failed")
    assert [run["state"] for run in again] == ["success", "success"]
    assert again[0]["start_date"] == runs[0]["start_date"]
    verify(running, last, made[last], name)

    # Complete hours are run again, one at a time from the last to the first, and stay as they are.
    before = {hour: running.stamps(aggregated(hour, name)) for hour in made}
    runs = running.backfill(
        BACKFILLED, first, last, reprocess_behavior="completed", run_backwards=True, max_active_runs=1
    )
    assert [run["data_interval_start"] for run in runs] == [format_hour(last), format_hour(first)]
    assert runs[0]["end_date"] <= runs[1]["start_date"]
    assert [run["state"] for run in runs] == ["success", "success"]
    assert {hour: running.stamps(aggregated(hour, name)) for hour in made} == before

    # A run that had no shard the last time has all of them after a late object.
    late = {f"{raw(first, name)}zz-late.log": b"late\n" * 700_000}
    put_objects(running.client, BUCKET, late)
    (run,) = running.backfill(BACKFILLED, first, first, reprocess_behavior="completed")
    assert run["state"] == "success"
    verify(running, first, {**made[first], **late}, name)
    # Without reprocess_behavior no run is repeated.
    (same,) = running.backfill(BACKFILLED, first, first)
    assert (same["start_date"], same["end_date"]) == (run["start_date"], run["end_date"])


def test_present_hour_gets_connections_before_a_backfill(running: Running) -> None:
    add_fresh(running)
    hours = [hour_before(running, back) for back in (6, 5)]
    made = {hour: make(running, hour, 2, name="older") for hour in hours}
    present = running.dataset.hours[-1].hour
    scheduled = running.run_of(FRESH, present)
    with running.pool_of(NO_PACKING):
        backfill = running.start_backfill(OLDER, hours[0], hours[-1], max_active_runs=len(hours))
        for hour in hours:
            running.wait_for("a shard of the backfill", partial(backfilled_shards, running, hour))
        made_present = make(running, present, 2, name="fresh")
        running.wait_for("the present shard", lambda: running.waiting_shards(FRESH, scheduled.run_id))
        # One shard at a time.
        with running.pool_of(SMALL_CONNECTIONS):
            assert running.ended(FRESH, scheduled.run_id).state == "success"
            runs = [running.finished_run(OLDER, hour) for hour in hours]
    running.end_backfill(backfill)
    assert [run.state for run in runs] == ["success"] * len(hours)
    verify(running, present, made_present, "fresh")
    for hour in hours:
        verify(running, hour, made[hour], "older")
    began = [running.packing_began(OLDER, run.run_id) for run in runs]
    assert running.packing_began(FRESH, scheduled.run_id) < min(began)


def backfilled_shards(running: Running, hour: datetime) -> list[TaskInstance]:
    """Return the shards of an hour's backfill run that wait for their slots."""
    runs = running.runs_between(OLDER, hour, hour)
    return [shard for run in runs for shard in running.waiting_shards(OLDER, run["dag_run_id"])]


# -- late and changed objects --------------------------------------------------------------------------


def run_late_check(running: Running) -> tuple[DagRun, dict[str, Any]]:
    """Run the late Dag; return its run, and its report about the stream ``revised``."""
    run = running.ended(LATE, running.trigger(LATE, {}))
    path = f"/dags/{LATE}/dagRuns/{run.run_id}/taskInstances/find_revised/xcomEntries/report"
    value = running.stack.api.request("GET", path)["value"]
    return run, json.loads(value) if isinstance(value, str) else value


def test_only_hours_with_late_or_changed_objects_are_rerun(running: Running) -> None:
    name = "revised"
    hours = [hour_before(running, back) for back in (10, 9, 8, 7)]
    late, changed, unchanged, expired = hours
    made = {hour: make(running, hour, 3, name=name) for hour in hours}
    roll_up_in_process(running, name, hours)
    made[late][f"{raw(late, name)}zz-late.log"] = b"late\n" * 1000
    made[changed][sorted(made[changed])[0]] = b"changed\n" * 1000
    for hour in (late, changed):
        put_objects(running.client, BUCKET, made[hour])
    delete(running, *made[expired])
    before = {hour: running.stamps(aggregated(hour, name)) for hour in (unchanged, expired)}

    run, report = run_late_check(running)
    assert run.state == "success"
    assert report["rerun"] == {
        format_hour(late): {"late": 1, "changed": 0, "vanished": 0},
        format_hour(changed): {"late": 0, "changed": 1, "vanished": 0},
    }
    assert report["left_alone"][format_hour(expired)] == {"late": 0, "changed": 0, "vanished": 3}
    for hour in (late, changed):
        verify(running, hour, made[hour], name)
    assert {hour: running.stamps(aggregated(hour, name)) for hour in (unchanged, expired)} == before

    # Once more: the hour's late run exists already, and is cleared.
    made[late][f"{raw(late, name)}zzz-later.log"] = b"later\n" * 1000
    put_objects(running.client, BUCKET, made[late])
    run, report = run_late_check(running)
    assert run.state == "success"
    assert list(report["rerun"]) == [format_hour(late)]
    verify(running, late, made[late], name)
    reruns = [run.run_id for run in running.stack.api.dag_runs(REVISED) if run.run_id.startswith("late__")]
    assert sorted(reruns) == [f"late__{format_hour(late)}", f"late__{format_hour(changed)}"]


# -- two runs of an hour at once -----------------------------------------------------------------------


def test_competing_runs_never_mix_an_hour(running: Running) -> None:
    add_fresh(running)
    hour = running.dataset.hours[0].hour
    scheduled = running.run_of(FRESH, hour)
    with MarkerWatch(running.client, BUCKET, aggregated(hour, "fresh")) as watch:
        with running.pool_of(NO_PACKING):
            made = make(running, hour, 2, big=True, name="fresh")
            running.wait_for("its shards", lambda: running.waiting_shards(FRESH, scheduled.run_id))
            made[f"{raw(hour, 'fresh')}a-late.log"] = b"late\n" * 700_000
            put_objects(running.client, BUCKET, made)
            by_hand = running.trigger(FRESH, {"hour": format_hour(hour)})
            running.wait_for("the other shards", lambda: running.waiting_shards(FRESH, by_hand))
        # The later plan has the claim.
        assert running.ended(FRESH, by_hand).state == "success"
        assert running.ended(FRESH, scheduled.run_id).state == "failed"
        verify(running, hour, made, "fresh")
        running.clear(FRESH, scheduled)
        assert running.ended(FRESH, scheduled.run_id).state == "success"
    verify(running, hour, made, "fresh")
    watch.assert_never_mixed(plans={1})


def test_two_runs_of_an_unchanged_hour_agree(running: Running) -> None:
    hour = hour_before(running, 11)
    made = make(running, hour, 2, big=True)
    with MarkerWatch(running.client, BUCKET, aggregated(hour)) as watch:
        runs = [running.trigger(SMALL, {"hour": format_hour(hour)}) for _ in range(2)]
        states = {running.ended(SMALL, run_id).state for run_id in runs}
    assert "success" in states
    verify(running, hour, made)
    # The second run may begin before or after the first has completed the hour.
    watch.assert_never_mixed(plans={1, 2})
