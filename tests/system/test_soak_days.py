"""Catchup of a whole day, and every kind of backfill that Airflow offers."""

import itertools
from datetime import timedelta
from operator import itemgetter

import pytest

from dev.stack.paths import BUCKET
from tests.support.raw_hours import put_objects
from tests.system.running import Running
from tests.system.streams import AT_ONCE, stream
from tests.system.test_reruns import SMALL, aggregated, delete, make, raw, verify

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DAY = "log_rollup_day"
HOURS = 24
# Limit of concurrent runs.
MOST_RUNS = 6


def most_at_once(runs: list[dict[str, str]]) -> int:
    """Return the largest number of runs that were running at the same time."""
    edges = sorted(
        itertools.chain.from_iterable(((run["start_date"], 1), (run["end_date"], -1)) for run in runs)
    )
    return max(itertools.accumulate(step for _, step in edges))


def test_day_is_backfilled_in_every_way(running: Running) -> None:
    first = running.dataset.hours[0].hour - timedelta(days=3)
    hours = [first + timedelta(hours=number) for number in range(HOURS)]
    made = {hour: make(running, hour, 3 + number % 18) for number, hour in enumerate(hours)}
    unplannable = {hour: f"{raw(hour)}not-a-log.parquet" for hour in hours[::8]}
    put_objects(running.client, BUCKET, dict.fromkeys(unplannable.values(), b"PAR1"))

    def backfill(backward: bool, **options: str) -> list[dict[str, str]]:
        runs = running.backfill(
            SMALL, hours[0], hours[-1], run_backwards=backward, max_active_runs=MOST_RUNS, **options
        )
        assert len(runs) == HOURS
        assert most_at_once(runs) <= MOST_RUNS
        return runs

    runs = backfill(False)
    assert most_at_once(runs) > 1
    assert [run["state"] for run in sorted(runs, key=itemgetter("logical_date"))] == [
        "failed" if hour in unplannable else "success" for hour in hours
    ]
    delete(running, *unplannable.values())
    again = backfill(True, reprocess_behavior="failed")
    assert len({run["start_date"] for run in again} - {run["start_date"] for run in runs}) == len(unplannable)
    assert {run["state"] for run in again} == {"success"}
    for hour in hours:
        verify(running, hour, made[hour])

    before = {hour: running.stamps(aggregated(hour)) for hour in hours}
    assert {run["state"] for run in backfill(False, reprocess_behavior="completed")} == {"success"}
    assert {hour: running.stamps(aggregated(hour)) for hour in hours} == before

    late = hours[::2]
    for hour in late:
        made[hour][f"{raw(hour)}zz-late.log"] = b"late\n" * 1000
        put_objects(running.client, BUCKET, made[hour])
    assert {run["state"] for run in backfill(True, reprocess_behavior="completed")} == {"success"}
    for hour in hours:
        verify(running, hour, made[hour])
        assert (running.stamps(aggregated(hour)) == before[hour]) == (hour not in late)


def test_stream_that_starts_a_day_ago_catches_up(running: Running) -> None:
    first = running.dataset.hours[-1].hour - timedelta(hours=HOURS - 1)
    hours = [first + timedelta(hours=number) for number in range(HOURS)]
    made = {hour: make(running, hour, 3 + number % 18, name="day") for number, hour in enumerate(hours)}
    running.add_stream(stream("day", first, max_active_runs=MOST_RUNS, **AT_ONCE))
    ended = [running.finished_run(DAY, hour) for hour in hours]
    assert [run.state for run in ended] == ["success"] * HOURS
    runs = running.runs_between(DAY, hours[0], hours[-1])
    assert 1 < most_at_once(runs) <= MOST_RUNS
    assert {run["run_type"] for run in runs} == {"scheduled"}
    for hour in hours:
        verify(running, hour, made[hour], "day")
