"""The sensor wait_for_raw_hour: when it defers, for how long, and how it resumes."""

import json
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pendulum
import pytest
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import TaskDeferralError, TaskDeferred

from include.log_rollup import limits
from include.log_rollup.errors import EmptyHourError, ListingError, PermanentError, TransientError
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.steps.wait_for_raw_hour import RawHourCheck, RawHourStatus
from log_rollup_plugin import sensor as sensor_module
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.sensor import RawHourSensor
from tests.support.hour_in_memory import make_stream
from tests.support.raw_hours import AGGREGATED, HOUR

END = HOUR + timedelta(hours=1)
TIMEOUT = timedelta(hours=6)
SILENT = {"error": TriggerFailureReason.TRIGGER_TIMEOUT}


@pytest.fixture(autouse=True)
def _connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws"}))


def set_result(monkeypatch: pytest.MonkeyPatch, result: RawHourCheck | Exception) -> None:
    """Let every check of the raw hour return a result, or raise an error."""

    def check(*_: Any) -> RawHourCheck:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(sensor_module, "check_raw_hour", check)


def check_result(state: RawHourStatus, now: datetime = END) -> RawHourCheck:
    return RawHourCheck(state, 3, 300, HOUR, now)


def context(waited: timedelta = timedelta(0)) -> Any:
    return {
        "params": {"hour": HOUR.isoformat()},
        "ti": SimpleNamespace(start_date=datetime.now(UTC) - waited),
    }


def sensor() -> RawHourSensor:
    return RawHourSensor(task_id="wait_for_raw_hour", stream=make_stream(timeout=TIMEOUT))


def resume_after_timeout(waited: timedelta = timedelta(hours=6, minutes=15)) -> None:
    sensor().resume_execution("__fail__", dict(SILENT), context(waited))


def deferral(monkeypatch: pytest.MonkeyPatch, first: RawHourCheck) -> TaskDeferred:
    set_result(monkeypatch, first)
    with pytest.raises(TaskDeferred) as raised:
        sensor().execute(context())
    return raised.value


def test_deferral_ends_even_if_its_trigger_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    deferred = deferral(monkeypatch, check_result(RawHourStatus.BEING_WRITTEN))
    assert deferred.timeout == TIMEOUT + limits.DEFERRAL_MARGIN


def test_deferral_of_a_scheduled_run_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    # Airflow's times are of pendulum, and the supervisor's protocol can't send their differences.
    set_result(monkeypatch, check_result(RawHourStatus.BEING_WRITTEN))
    scheduled = {**context(), "params": {}, "data_interval_start": pendulum.instance(HOUR)}
    with pytest.raises(TaskDeferred) as raised:
        sensor().execute(scheduled)
    assert type(raised.value.timeout) is timedelta
    assert msgspec.msgpack.encode(raised.value.timeout)


def test_trigger_gets_the_deadline_by_both_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    store_now = END + timedelta(days=300)
    trigger = deferral(monkeypatch, check_result(RawHourStatus.BEING_WRITTEN, store_now)).trigger
    assert datetime.fromisoformat(trigger.until) == store_now + TIMEOUT
    since, deadline = map(datetime.fromisoformat, (trigger.since, trigger.deadline))
    assert deadline - since == TIMEOUT
    assert abs(datetime.now(UTC) - since) < timedelta(minutes=5)


def test_empty_hour_past_its_timeout_does_not_defer(monkeypatch: pytest.MonkeyPatch) -> None:
    set_result(monkeypatch, check_result(RawHourStatus.EMPTY, END + timedelta(hours=7)))
    with pytest.raises(EmptyHourError):
        sensor().execute(context())


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The objects of the aggregated prefix by key: ``asked`` notes each key that is asked for."""
    objects: dict[str, Any] = {"asked": []}

    def head(_: Any, target: Any) -> object:
        objects["asked"].append(target.key)
        return objects.get(target.key)

    monkeypatch.setattr(PooledS3Hook, "head", head)
    return objects


RECORD = f"{AGGREGATED}_expired.json"
MONTH_OLD = END + timedelta(days=30)


@pytest.mark.parametrize("expired", [True, False])
def test_empty_hour_is_settled_if_its_objects_expired(
    monkeypatch: pytest.MonkeyPatch, records: dict[str, Any], *, expired: bool
) -> None:
    set_result(monkeypatch, RawHourCheck(RawHourStatus.EMPTY, 0, 0, None, MONTH_OLD))
    if expired:
        records[RECORD] = object()
    with nullcontext() if expired else pytest.raises(EmptyHourError):
        sensor().execute(context())
    assert records["asked"] == [RECORD]


@pytest.mark.parametrize(
    "seen",
    [
        # The time-out is longer than `expire_raw.after`.
        RawHourCheck(RawHourStatus.EMPTY, 0, 0, None, END + timedelta(days=2)),
        # A lifecycle rule has removed the ready object.
        RawHourCheck(RawHourStatus.NO_READY_OBJECT, 0, 0, None, MONTH_OLD),
        check_result(RawHourStatus.NO_READY_OBJECT, MONTH_OLD),
    ],
)
def test_expired_hour_is_settled_without_a_wait(
    monkeypatch: pytest.MonkeyPatch, records: dict[str, Any], seen: RawHourCheck
) -> None:
    set_result(monkeypatch, seen)
    waiting = RawHourSensor(task_id="wait_for_raw_hour", stream=make_stream(timeout=timedelta(days=3)))
    with pytest.raises(TaskDeferred):
        waiting.execute(context())
    records[RECORD] = object()
    waiting.execute(context())
    # The same after a wait without the triggerer.
    waiting.resume_execution("__fail__", dict(SILENT), context(timedelta(days=3)))
    assert records["asked"] == [RECORD] * 3


@pytest.mark.parametrize(
    "seen",
    [
        check_result(RawHourStatus.EMPTY, END + timedelta(hours=1)),
        check_result(RawHourStatus.NO_READY_OBJECT, END + timedelta(hours=23)),
        check_result(RawHourStatus.BEING_WRITTEN, MONTH_OLD),
    ],
)
def test_new_or_growing_hour_is_not_asked_for_expired_objects(
    monkeypatch: pytest.MonkeyPatch, records: dict[str, Any], seen: RawHourCheck
) -> None:
    records[RECORD] = object()
    deferral(monkeypatch, seen)
    assert records["asked"] == []


def test_trigger_failure_names_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"status": "failed", "message": "hour 2026-11-23T08:00:00Z: no objects"}
    with pytest.raises(PermanentError, match=r"^stream 'app': hour 2026-11-23T08:00:00Z: no objects$"):
        sensor().resume_execution("resume", {"event": event}, context())


def test_silent_trigger_of_a_settled_hour_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    set_result(monkeypatch, check_result(RawHourStatus.SETTLED))
    resume_after_timeout()


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (check_result(RawHourStatus.BEING_WRITTEN), "not settled under s3://logs/raw/app/20261123/08/"),
        (TransientError("LIST s3://logs: Could not connect"), "Could not connect"),
        (ListingError("truncated, but without a token"), "without a token"),
    ],
)
def test_silent_trigger_fails_with_hour_wait_and_problem(
    monkeypatch: pytest.MonkeyPatch, result: RawHourCheck | Exception, problem: str
) -> None:
    set_result(monkeypatch, result)
    with pytest.raises(PermanentError) as raised:
        resume_after_timeout()
    for part in (
        "stream 'app'",
        "hour 2026-11-23T08:00:00Z",
        "6h15m",
        problem,
        "that a triggerer is running",
    ):
        assert part in str(raised.value)


def test_trigger_failure_is_retried() -> None:
    broken = {"error": TriggerFailureReason.TRIGGER_FAILURE}
    with pytest.raises(TaskDeferralError):
        sensor().resume_execution("__fail__", broken, context())


def test_hour_that_the_clocks_empty_does_not_defer() -> None:
    stream = make_stream(raw=RawTemplate.parse("s3://logs/raw/app/", "Europe/Berlin"))
    at_two = {**context(), "params": {"hour": "2026-10-25T00:00:00Z"}}
    RawHourSensor(task_id="wait_for_raw_hour", stream=stream).execute(at_two)
