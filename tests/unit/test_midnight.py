"""Hours near midnight, whose objects may be in the folder of the next day or of the day before."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.steps.wait_for_raw_hour import RawHourStatus, SettleRule, check_raw_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream

MIDNIGHT = datetime(2026, 11, 24, tzinfo=UTC)
LAST, FIRST, NOON = MIDNIGHT - timedelta(hours=1), MIDNIGHT, MIDNIGHT + timedelta(hours=12)
# A day's folder with unknown text before the time, a prefix for each hour, and groups.
LAYOUTS = {
    "day": ("raw/%Y/%m/%d/{balancer}_%Y%m%dT%H", "aggregated/%Y%m%d/%H/", "x_"),
    "names": ("raw/%Y/%m/%d/%Y%m%dT%H", "aggregated/%Y%m%d/%H/", ""),
    "groups": ("raw/{account}/%Y/%m/%d/{account}_%Y%m%dT%H", "aggregated/{account}/%Y%m%d/%H/", "1_"),
}


class Layout:
    def __init__(self, name: str) -> None:
        raw, aggregated, self._before = LAYOUTS[name]
        self._root = "raw/1" if name == "groups" else "raw"
        self.store = FakeStore()
        self.stream: Stream = make_stream(
            raw=RawTemplate.parse(f"s3://logs/{raw}"),
            aggregated=AggregatedTemplate.parse(f"s3://logs/{aggregated}"),
        )

    def key(self, hour: datetime, minute: int, folder: datetime) -> str:
        return f"{self._root}/{folder:%Y/%m/%d}/{self._before}{hour:%Y%m%dT%H}{minute:02}Z.log"

    def produce(self, hour: datetime, minute: int, folder: datetime) -> str:
        key = self.key(hour, minute, folder)
        self.store.produce(key, f"{key}\n".encode())
        return key

    def run(self, hour: datetime) -> Planned:
        planned = plan_hour(self.store, self.stream, hour, "run")
        for ref in planned.shards:
            pack_shard(self.store, self.stream, ref)
        validate_hour(self.store, self.stream, hour)
        complete_hour(self.store, self.stream, hour)
        return planned


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return Layout(request.param)


def test_each_object_is_in_the_hour_of_its_name(layout: Layout) -> None:
    expected = {
        LAST: {
            layout.produce(LAST, 50, LAST),
            layout.produce(LAST, 55, FIRST),
        },
        FIRST: {
            layout.produce(FIRST, 0, LAST),
            layout.produce(FIRST, 5, FIRST),
        },
    }
    for hour in expected:
        layout.run(hour)
        assert verify_hour(layout.store, layout.stream, hour, deep=True).problems == []
    for hour, keys in expected.items():
        for key in keys:
            found = locate(layout.store, layout.stream, key)
            assert (found.hour, found.complete) == (hour, True)
            assert b"".join(read_object(layout.store, found)) == f"{key}\n".encode()


def test_delivery_after_midnight_is_a_late_object(layout: Layout) -> None:
    first = layout.produce(LAST, 50, LAST)
    layout.run(LAST)
    late = layout.produce(LAST, 55, FIRST)
    (changed,) = find_changed_hours(layout.store, layout.stream, [LAST]).changed
    assert list(changed.changes.late) == [late]
    layout.run(LAST)
    assert find_changed_hours(layout.store, layout.stream, [LAST]).changed == []
    for key in (first, late):
        assert locate(layout.store, layout.stream, key).hour == LAST


def test_object_in_no_hour_is_counted_in_one_hour(caplog: pytest.LogCaptureFixture) -> None:
    layout = Layout("day")
    early = datetime(2026, 11, 23, 20, tzinfo=UTC)
    for hour in (early, early + timedelta(days=1), NOON, LAST, FIRST):
        layout.produce(hour, 5, hour)
    # Delivered more than three hours late.
    key = layout.produce(early, 55, FIRST)
    counted = {}
    for hour in (early, early + timedelta(days=1), NOON, LAST, FIRST):
        layout.run(hour)
        marker = json.loads(layout.store.body(f"aggregated/{hour:%Y%m%d/%H}/_SUCCESS"))
        assert (marker["objects"], sum(marker["left_out"].values())) == (1, marker["left_out"]["unmatched"])
        counted[hour] = marker["left_out"]["unmatched"]
        assert verify_hour(layout.store, layout.stream, hour, deep=True).problems == []
    assert [hour for hour, count in counted.items() if count] == [early + timedelta(days=1)]
    assert (
        f"1 objects belong to no hour, because their folder has another day than their name, like {key}"
        in (caplog.text)
    )


def test_wait_does_not_count_an_object_in_no_hour() -> None:
    layout = Layout("day")
    early = datetime(2026, 11, 23, 20, tzinfo=UTC)
    layout.produce(early, 55, FIRST)
    rule = SettleRule(timedelta(0), None, False)
    assert check_raw_hour(layout.store, layout.stream.at(early + timedelta(days=1)), rule).objects == 0


def test_wait_counts_a_delivery_after_midnight(layout: Layout) -> None:
    layout.produce(LAST, 50, LAST)
    layout.produce(LAST, 55, FIRST)
    rule = SettleRule(timedelta(0), None, False)
    assert check_raw_hour(layout.store, layout.stream.at(LAST), rule).objects == 2


@pytest.mark.parametrize("ready_folder", [LAST, FIRST])
@pytest.mark.parametrize("hour", [LAST, FIRST])
def test_folders_of_two_days_share_a_ready_object(
    layout: Layout, hour: datetime, ready_folder: datetime
) -> None:
    layout.produce(hour, 50, LAST)
    layout.produce(hour, 55, FIRST)
    paths, rule = layout.stream.at(hour), SettleRule(timedelta(0), "00Z.log", False)
    assert check_raw_hour(layout.store, paths, rule).status is RawHourStatus.NO_READY_OBJECT
    layout.produce(hour, 0, ready_folder)
    seen = check_raw_hour(layout.store, paths, rule)
    assert (seen.status, seen.objects, seen.unready) == (RawHourStatus.SETTLED, 3, ())


def test_place_without_ready_object_has_its_own_folder() -> None:
    layout = Layout("groups")
    layout.produce(LAST, 55, FIRST)
    layout.store.produce("raw/2/2026/11/24/2_20261123T2300Z.log", b"x")
    seen = check_raw_hour(layout.store, layout.stream.at(LAST), SettleRule(timedelta(0), "00Z.log", False))
    assert (seen.places, seen.unready) == (2, ("s3://logs/raw/1/2026/11/23/1_20261123T23",))


def test_second_folder_costs_one_list_and_noon_none(layout: Layout) -> None:
    lists = Counter[datetime]()
    for hour in (LAST, FIRST, NOON):
        layout.produce(hour, 30, hour)
        layout.store.log.clear()
        layout.stream.at(hour).raw.list_all(layout.store)
        lists[hour] = sum(operation.kind == "LIST" for operation in layout.store.log)
    assert lists[LAST] == lists[FIRST] == lists[NOON] + 1
