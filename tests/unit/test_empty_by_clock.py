"""UTC hours to which no object can belong, because the clocks of the stream's zone are set back."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from include.log_rollup.errors import EmptyHourError
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries.status import HourStatus, read_hours
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.steps.wait_for_raw_hour import RawHourStatus, SettleRule, check_raw_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream

# The clocks of Berlin show 02:00 to 02:59 twice: from 00:00 and from 01:00 UTC.
EARLIER = datetime(2026, 10, 25, 0, tzinfo=UTC)
LATER = datetime(2026, 10, 25, 1, tzinfo=UTC)
WHY = (
    "No object belongs to the UTC hour 2026-10-25T00:00:00Z: the clocks of Europe/Berlin are set back, the local "
    "hour 2026-10-25 02:00 occurs twice, and its objects belong to the UTC hour 2026-10-25T01:00:00Z."
)
RULE = SettleRule(timedelta(minutes=10), None, False)
MARKER = "aggregated/app/20261025/00/_SUCCESS"


def berlin(raw: str = "raw/app/%Y%m%d/%H/") -> Stream:
    return make_stream(
        raw=RawTemplate.parse(f"s3://logs/{raw}", "Europe/Berlin"),
        aggregated=AggregatedTemplate.parse("s3://logs/aggregated/app/"),
    )


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    for number in range(3):
        store.produce(f"raw/app/20261025/02/{number}.log", b"of two hours" * 3)
    return store


def run(store: FakeStore, stream: Stream, hour: datetime) -> None:
    for ref in plan_hour(store, stream, hour, "run").shards:
        pack_shard(store, stream, ref)
    validate_hour(store, stream, hour)
    complete_hour(store, stream, hour)


@pytest.mark.parametrize("rule", [RULE, SettleRule(timedelta(minutes=10), "DONE", False)])
@pytest.mark.parametrize("raw", ["raw/app/%Y%m%d/%H/", "raw/{service}/%Y%m%d/%H/"])
def test_empty_hour_is_settled_once_it_has_ended(store: FakeStore, rule: SettleRule, raw: str) -> None:
    seen = check_raw_hour(store, berlin(raw).at(EARLIER), rule)
    assert (seen.status, seen.objects, seen.why_empty) == (RawHourStatus.SETTLED, 0, WHY)
    assert WHY in str(seen)
    assert store.log == []


def test_empty_hour_is_not_settled_before_its_end() -> None:
    stream = berlin()
    empty = next(
        hour
        for hour in (datetime(2900, 10, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(31 * 24))
        if stream.raw.why_empty(hour)
    )
    assert check_raw_hour(FakeStore(), stream.at(empty), RULE).status is RawHourStatus.NOT_ENDED


def test_empty_hour_completes_and_says_why(store: FakeStore) -> None:
    run(store, berlin(), EARLIER)
    marker = json.loads(store.body(MARKER))
    assert (marker["objects"], marker["parts"], marker["why_empty"]) == (0, 0, WHY)
    (found,) = read_hours(store, berlin(), [EARLIER])
    assert found.state is HourStatus.COMPLETE
    assert found.marker is not None
    assert found.marker["why_empty"] == WHY


def test_later_hour_has_the_objects_and_no_reason(store: FakeStore) -> None:
    run(store, berlin(), LATER)
    marker = json.loads(store.body(MARKER.replace("/00/", "/01/")))
    assert marker["objects"] == 3
    assert "why_empty" not in marker


def test_other_empty_hours_still_need_permission(store: FakeStore) -> None:
    with pytest.raises(EmptyHourError):
        run(store, berlin(), EARLIER - timedelta(hours=1))
