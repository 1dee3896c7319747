"""Listings of an hour with many prefixes: over all connections, in the order of keys, in bounded memory."""

import threading
import time

import pytest

from include.log_rollup.hour.raw_digest import digest_raw
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.steps.wait_for_raw_hour import RawHourStatus, SettleRule, check_raw_hour
from include.log_rollup.units import parse_duration
from tests.support.fake_store import FakeStore
from tests.support.grouped_hour import HOME, HOUR, GroupedHour
from tests.support.hour_in_memory import make_stream

GROUPS = [f"g{number:03d}" for number in range(60)]
CONNECTIONS = 8


class Load:
    """Counts the requests that a store is handling at the same time; each takes some milliseconds."""

    def __init__(self, store: FakeStore) -> None:
        self.peak = 0
        self._running = 0
        self._lock = threading.Lock()
        store.control_connections = CONNECTIONS
        store.on("ANY", "", self._request, times=10**6)

    def _request(self) -> None:
        with self._lock:
            self._running += 1
            self.peak = max(self.peak, self._running)
        time.sleep(0.002)
        with self._lock:
            self._running -= 1


@pytest.fixture
def hour() -> GroupedHour:
    made = GroupedHour("before the date", max_connections=CONNECTIONS)
    made.produce({group: {"a.log": b"a", "b.log": b"bb", "c.log": b"c"} for group in GROUPS})
    return made


def keys_in_order(hour: GroupedHour) -> list[str]:
    return [hour.key(group, name) for group in GROUPS for name in ("a.log", "b.log", "c.log")]


@pytest.mark.parametrize("expected", [None, 1, 200, 10**6])
def test_pages_of_groups_come_in_key_order(hour: GroupedHour, expected: int | None) -> None:
    pages = hour.stream.at(HOUR).raw.pages(hour.store, expected)
    assert [row.key for page in pages for row in page.objects] == keys_in_order(hour)


def test_groups_are_paged_over_all_connections(hour: GroupedHour) -> None:
    load = Load(hour.store)
    assert len(list(hour.stream.at(HOUR).raw.pages(hour.store))) == len(GROUPS)
    assert 1 < load.peak <= CONNECTIONS


def test_pages_are_not_requested_far_ahead(hour: GroupedHour) -> None:
    hour.store.control_connections = CONNECTIONS
    pages = hour.stream.at(HOUR).raw.pages(hour.store)
    next(pages)
    time.sleep(0.1)
    # Two prefixes for each connection; one listing has found the groups.
    assert hour.store.requests["ListObjectsV2"] <= 1 + 2 * CONNECTIONS + 1


def test_validation_lists_each_group_in_two_pages(hour: GroupedHour) -> None:
    hour.plan()
    paths = hour.stream.at(HOUR)
    load = Load(hour.store)
    before = hour.store.requests["ListObjectsV2"]
    found = digest_raw(hour.store, paths, hour.stream.input_rules, 3 * len(GROUPS))
    assert found.objects == 3 * len(GROUPS)
    assert hour.store.requests["ListObjectsV2"] - before == 1 + 2 * len(GROUPS)
    assert 1 < load.peak <= CONNECTIONS


def test_wait_lists_each_group_once_in_parallel(hour: GroupedHour) -> None:
    load = Load(hour.store)
    rule = SettleRule(parse_duration("10m"), None, allow_empty=False)
    found = check_raw_hour(hour.store, hour.stream.at(HOUR), rule)
    assert (found.status, found.objects) == (RawHourStatus.SETTLED, 3 * len(GROUPS))
    assert hour.store.requests["ListObjectsV2"] == 1 + len(GROUPS)
    assert 1 < load.peak <= CONNECTIONS


def test_steps_stay_within_the_connections(hour: GroupedHour) -> None:
    planned = hour.plan()
    for ref in planned.shards:
        pack_shard(hour.store, hour.stream, ref)
    load = Load(hour.store)
    for step in (validate_hour, complete_hour):
        load.peak = 0
        step(hour.store, hour.stream, HOUR)
        assert 1 < load.peak <= CONNECTIONS


def test_records_of_groups_come_before_those_of_the_hour(hour: GroupedHour) -> None:
    Load(hour.store)
    hour.run()
    copies = [operation.key for operation in hour.store.log if operation.kind == "PUBLISH"]
    manifests = {f"{hour.folder(group)}_manifest.jsonl.gz" for group in GROUPS}
    markers = {f"{hour.folder(group)}_SUCCESS" for group in GROUPS}
    count = len(GROUPS)
    assert set(copies[:count]) == manifests
    assert copies[count] == f"{HOME}_manifest.jsonl.gz"
    assert set(copies[count + 1 : -1]) == markers
    assert copies[-1] == f"{HOME}_SUCCESS"


def test_wait_of_groups_takes_more_connections(hour: GroupedHour) -> None:
    assert hour.stream.wait_connections == 8
    assert make_stream().wait_connections == 1
    few = GroupedHour("before the date", max_connections=3)
    assert few.stream.wait_connections == 3
    assert GroupedHour("behind the date").stream.wait_connections == 1
