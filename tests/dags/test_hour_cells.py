"""The state of an hour where the bucket and its runs disagree, or where the clock decides."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from include.log_rollup.queries.overview import late_after
from include.log_rollup.queries.status import ExpiredObjects, HourStatus, HourSummary
from log_rollup_plugin.hours_page.cache import CachedHour
from log_rollup_plugin.hours_page.database import HourRun
from log_rollup_plugin.hours_page.hour_cells import CellStatus, cell_of
from tests.support.hour_on_server import stream_on
from tests.support.raw_hours import HOUR

STREAM = stream_on("logs", start="2026-11-23T00:00:00Z", quiet_period="10m")
END = HOUR + timedelta(hours=1)
SOON = END + timedelta(minutes=20)
RUN = HourRun("scheduled__x", HOUR, "running", "scheduled", END, END, None, END, active="pack_shard")
DONE = replace(RUN, state="success", ended_at=END + timedelta(minutes=15), active="")


def read(state: HourStatus, at: datetime = SOON) -> CachedHour:
    return CachedHour(HourSummary(HOUR, state, {} if state is HourStatus.COMPLETE else None), at)


def state(now: datetime, hour_read: CachedHour | None, run: HourRun | None) -> CellStatus:
    return cell_of(STREAM, HOUR, now, hour_read, run).status


@pytest.mark.parametrize("run", [None, RUN, DONE, replace(RUN, state="failed", failed="plan_hour")])
def test_hour_with_marker_is_complete_whatever_its_run(run: HourRun | None) -> None:
    assert state(SOON, read(HourStatus.COMPLETE), run) is CellStatus.COMPLETE


def test_hour_read_before_its_run_ended_is_unknown() -> None:
    before, after = DONE.queued_at, DONE.ended_at
    assert before is not None
    assert after is not None
    assert state(SOON, read(HourStatus.INCOMPLETE, before), DONE) is CellStatus.UNKNOWN
    assert state(SOON, read(HourStatus.INCOMPLETE, after + timedelta(seconds=1)), DONE) is CellStatus.MISSING


def test_hour_is_late_when_its_run_takes_too_long() -> None:
    limit = END + late_after(STREAM)
    assert state(limit, None, RUN) is CellStatus.RUNNING
    assert state(limit + timedelta(seconds=1), None, RUN) is CellStatus.LATE
    waits = replace(RUN, waits=True)
    assert state(limit, None, waits) is CellStatus.WAITING
    assert state(limit + timedelta(seconds=1), None, waits) is CellStatus.LATE


@pytest.mark.parametrize("kind", ["backfill", "manual", "operator_triggered"])
def test_requested_hour_is_late_counted_from_its_request(kind: str) -> None:
    requested = END + timedelta(days=30)
    run = replace(RUN, kind=kind, queued_at=requested)
    assert state(requested + late_after(STREAM), None, run) is CellStatus.RUNNING
    assert state(requested + late_after(STREAM) + timedelta(seconds=1), None, run) is CellStatus.LATE


def test_hour_without_run_is_missing_only_when_due() -> None:
    incomplete = read(HourStatus.INCOMPLETE)
    assert state(HOUR - timedelta(seconds=1), incomplete, None) is CellStatus.NONE
    assert state(HOUR + timedelta(minutes=30), incomplete, None) is CellStatus.OPEN
    assert state(END + timedelta(minutes=1), incomplete, None) is CellStatus.OPEN
    assert state(SOON, incomplete, None) is CellStatus.MISSING
    assert state(SOON, None, None) is CellStatus.UNKNOWN


def test_hour_before_start_is_none_if_nothing_exists() -> None:
    stream = stream_on("logs", start=END)
    assert cell_of(stream, HOUR, SOON, read(HourStatus.INCOMPLETE), None).status is CellStatus.NONE
    assert cell_of(stream, HOUR, SOON, read(HourStatus.COMPLETE), None).status is CellStatus.COMPLETE
    assert cell_of(stream, HOUR, SOON, None, RUN).status is CellStatus.RUNNING
    assert cell_of(stream, HOUR, SOON, read(HourStatus.BUILDING), None).status is CellStatus.MISSING


def test_queued_run_is_waiting() -> None:
    assert state(SOON, None, replace(RUN, state="queued", active="")) is CellStatus.WAITING


@pytest.mark.parametrize("run", [None, RUN, replace(DONE, ended_at=HOUR), replace(RUN, state="failed")])
def test_damaged_hour_is_damaged_whatever_its_run(run: HourRun | None) -> None:
    hour_read = CachedHour(HourSummary(HOUR, HourStatus.DAMAGED, None, "cannot be read"), SOON)
    cell = cell_of(STREAM, HOUR, SOON, hour_read, run)
    assert cell.status is CellStatus.DAMAGED
    assert cell.reason.startswith("cannot be read")
    assert cell.reason.endswith("a rerun is in progress") is (run is RUN)


def test_damaged_hour_is_unknown_after_a_later_run() -> None:
    hour_read = CachedHour(HourSummary(HOUR, HourStatus.DAMAGED, None, "cannot be read"), END)
    assert cell_of(STREAM, HOUR, SOON, hour_read, DONE).status is CellStatus.UNKNOWN


def test_complete_hour_that_clocks_empty_says_why() -> None:
    hour_read = CachedHour(HourSummary(HOUR, HourStatus.COMPLETE, {"why_empty": "clocks are set back"}), SOON)
    assert cell_of(STREAM, HOUR, SOON, hour_read, DONE).reason == "clocks are set back"
    assert cell_of(STREAM, HOUR, SOON, hour_read, RUN).reason == "a rerun is in progress"


def test_run_that_failed_after_completing_its_hour_is_no_failed_rerun() -> None:
    failed = replace(RUN, state="failed", ended_at=END + timedelta(minutes=30), failed="complete_hour")
    for completed_at, reason in (
        (END + timedelta(minutes=20), "its last run failed, but the hour is complete"),
        (END - timedelta(minutes=1), "the last rerun failed and changed nothing"),
    ):
        summary = HourSummary(HOUR, HourStatus.COMPLETE, {"completed_at": completed_at.isoformat()})
        cell = cell_of(STREAM, HOUR, SOON, CachedHour(summary, SOON), failed)
        assert cell.status is CellStatus.COMPLETE
        assert cell.reason.startswith(reason)


def test_complete_hour_says_what_has_expired() -> None:
    expired = ExpiredObjects(1200, 9000, "2026-12-07T05:00:01+00:00", finished=True)
    summary = HourSummary(HOUR, HourStatus.COMPLETE, {}, expired=expired)
    cell = cell_of(STREAM, HOUR, END, CachedHour(summary, SOON), None)
    note = "1,200 raw objects expired on 2026-12-07"
    assert (cell.status, cell.reason) == (CellStatus.COMPLETE, note)
    for run, first in (
        (RUN, "a rerun is in progress"),
        (replace(RUN, state="failed"), "the last rerun failed"),
    ):
        reason = cell_of(STREAM, HOUR, END, CachedHour(summary, SOON), run).reason
        assert reason.startswith(first)
        assert reason.endswith(f"; {note}")


def test_complete_hour_says_that_its_record_of_expired_objects_is_damaged() -> None:
    summary = HourSummary(HOUR, HourStatus.COMPLETE, {}, "_expired.json: cannot be read")
    cell = cell_of(STREAM, HOUR, END, CachedHour(summary, SOON), DONE)
    assert (cell.status, cell.reason) == (CellStatus.COMPLETE, "_expired.json: cannot be read")
