"""Whether an hour is settled depends only on the store's clock and listing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from include.log_rollup.errors import EmptyHourError, ListingError, MissingBucketError, UnsettledHourError
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.steps.wait_for_raw_hour import (
    RawHourCheck,
    RawHourStatus,
    SettleRule,
    check_raw_hour,
    give_up_at,
    unlisted_error,
    unsettled_error,
)
from include.log_rollup.storage.protocol import ListPage, ObjectInfo
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream
from tests.support.raw_hours import HOUR, RAW

PATHS = make_stream().at(HOUR)
QUIET = SettleRule(timedelta(minutes=10), None, False)
AFTER = HOUR + timedelta(hours=1)


def store_at(now: datetime, *written: datetime, **options: Any) -> FakeStore:
    """Return a store with an object written at each of these times."""
    store = FakeStore(**options)
    store.now = now
    for number, instant in enumerate(written):
        store.produce(f"{RAW}{number:05d}.log", b"x" * 100, modified=instant.timestamp())
    return store


@pytest.mark.parametrize(
    ("now", "newest", "state"),
    [
        (AFTER - timedelta(seconds=1), HOUR, RawHourStatus.NOT_ENDED),
        (AFTER, AFTER - timedelta(minutes=10), RawHourStatus.SETTLED),
        (AFTER, AFTER - timedelta(minutes=10) + timedelta(seconds=1), RawHourStatus.BEING_WRITTEN),
        (AFTER + timedelta(hours=3), AFTER + timedelta(hours=2, minutes=55), RawHourStatus.BEING_WRITTEN),
        (AFTER + timedelta(hours=3), AFTER + timedelta(hours=2, minutes=50), RawHourStatus.SETTLED),
        (AFTER + timedelta(days=900), HOUR, RawHourStatus.SETTLED),
    ],
)
def test_hour_is_settled_after_its_end_and_quiet_period(
    now: datetime, newest: datetime, state: RawHourStatus
) -> None:
    assert check_raw_hour(store_at(now, HOUR, newest, HOUR), PATHS, QUIET).status is state


def test_newest_object_counts_on_any_page() -> None:
    old = [HOUR] * 9
    for index in range(10):
        written = [*old[:index], AFTER, *old[index:]]
        seen = check_raw_hour(store_at(AFTER + timedelta(minutes=5), *written, page_size=3), PATHS, QUIET)
        assert (seen.status, seen.objects, seen.bytes) == (RawHourStatus.BEING_WRITTEN, 10, 1000)
        assert seen.newest == AFTER


def test_one_check_is_one_listing() -> None:
    store = store_at(AFTER, *[HOUR] * 10, page_size=4)
    check_raw_hour(store, PATHS, QUIET)
    assert [operation.kind for operation in store.log] == ["LIST"] * 3


def test_empty_hour_settles_only_if_allowed() -> None:
    allowed = SettleRule(timedelta(minutes=10), None, True)
    for minutes, forbidden_state, allowed_state in (
        (-1, RawHourStatus.NOT_ENDED, RawHourStatus.NOT_ENDED),
        (9, RawHourStatus.EMPTY, RawHourStatus.EMPTY),
        (10, RawHourStatus.EMPTY, RawHourStatus.SETTLED),
    ):
        store = store_at(AFTER + timedelta(minutes=minutes))
        assert check_raw_hour(store, PATHS, QUIET).status is forbidden_state
        assert check_raw_hour(store, PATHS, allowed).status is allowed_state


def test_ready_object_alone_decides() -> None:
    rule = SettleRule(timedelta(minutes=10), "done/_OK", False)
    store = store_at(AFTER + timedelta(hours=9), HOUR)
    assert check_raw_hour(store, PATHS, rule).status is RawHourStatus.NO_READY_OBJECT
    store.produce(RAW + "done/_OK2", b"")
    store.produce(RAW + "x/done/_OK", b"")
    assert check_raw_hour(store, PATHS, rule).status is RawHourStatus.NO_READY_OBJECT
    store.produce(RAW + "done/_OK", b"")
    assert check_raw_hour(store, PATHS, rule).status is RawHourStatus.SETTLED
    store.now = HOUR
    assert check_raw_hour(store, PATHS, rule).status is RawHourStatus.SETTLED


def test_only_the_hour_itself_is_listed() -> None:
    store = store_at(AFTER)
    store.produce("raw/app/20261123/09/a.log", b"x")
    store.produce("raw/app/20261123/080/a.log", b"x")
    store.produce("raw/other/20261123/08/a.log", b"x")
    assert check_raw_hour(store, PATHS, QUIET).objects == 0


class OddStore(FakeStore):
    """A store whose listing has one fault."""

    quirk = ""

    def list_page(self, *arguments: Any, **options: Any) -> ListPage:
        page = super().list_page(*arguments, **options)
        if self.quirk == "no token" and page.truncated:
            return replace(page, token=None)
        if self.quirk == "same token":
            return replace(page, truncated=True, token="1")
        if self.quirk == "other keys":
            rows = [row._replace(key=row.key.replace("/08/", "/09/")) for row in page.objects]
            return replace(page, objects=rows)
        if self.quirk == "keys twice":
            return replace(page, objects=[ObjectInfo(*row) for row in page.objects for _ in range(2)])
        return page


def odd_store(quirk: str) -> OddStore:
    """Return an hour of five old objects, which a correct listing shows as settled."""
    store = OddStore(page_size=2)
    store.quirk, store.now = quirk, AFTER + timedelta(hours=1)
    for number in range(5):
        store.produce(f"{RAW}{number:05d}.log", b"x" * 100, modified=HOUR.timestamp())
    return store


@pytest.mark.parametrize("quirk", ["no token", "same token", "other keys"])
@pytest.mark.parametrize("ready_object", [None, "00000.log"])
def test_contradictory_listing_never_settles(quirk: str, ready_object: str | None) -> None:
    with pytest.raises(ListingError, match=r"server"):
        check_raw_hour(odd_store(quirk), PATHS, SettleRule(timedelta(minutes=10), ready_object, False))


def test_key_listed_twice_counts_once() -> None:
    seen = check_raw_hour(odd_store("keys twice"), PATHS, QUIET)
    assert (seen.status, seen.objects, seen.bytes) == (RawHourStatus.SETTLED, 5, 500)


def test_missing_bucket_is_not_an_empty_hour() -> None:
    with pytest.raises(MissingBucketError):
        check_raw_hour(FakeStore(buckets=["another"]), PATHS, QUIET)


def test_timeout_counts_from_hour_end_if_empty_else_from_now() -> None:
    six_hours = timedelta(hours=6)
    late = AFTER + timedelta(hours=30)
    empty = RawHourCheck(RawHourStatus.EMPTY, 0, 0, None, late)
    busy = RawHourCheck(RawHourStatus.BEING_WRITTEN, 1, 1, late, late)
    early = RawHourCheck(RawHourStatus.NOT_ENDED, 1, 1, HOUR, HOUR)
    assert give_up_at(PATHS, empty, six_hours) == AFTER + six_hours
    assert give_up_at(PATHS, busy, six_hours) == late + six_hours
    assert give_up_at(PATHS, early, six_hours) == AFTER + six_hours


def test_timeout_of_an_empty_hour_names_prefix_and_fix() -> None:
    error = unsettled_error(PATHS, QUIET, RawHourCheck(RawHourStatus.EMPTY, 0, 0, None, AFTER))
    assert isinstance(error, EmptyHourError)
    for part in ("2026-11-23T08:00:00Z", f"s3://logs/{RAW}", "allow_empty"):
        assert part in str(error)


def test_timeout_without_ready_object_names_it() -> None:
    rule = SettleRule(timedelta(minutes=10), "_DONE", False)
    error = unsettled_error(PATHS, rule, RawHourCheck(RawHourStatus.NO_READY_OBJECT, 1234, 1, HOUR, AFTER))
    assert isinstance(error, UnsettledHourError)
    for part in ("2026-11-23T08:00:00Z", f"_DONE was not written under s3://logs/{RAW} ", "1,234 objects"):
        assert part in str(error)


def test_timeout_of_a_busy_hour_names_the_last_write() -> None:
    newest = datetime(2026, 11, 23, 9, 7, 5, tzinfo=UTC)
    error = unsettled_error(
        PATHS, QUIET, RawHourCheck(RawHourStatus.BEING_WRITTEN, 1234, 2048, newest, AFTER)
    )
    assert isinstance(error, UnsettledHourError)
    for part in (
        "being written",
        "1,234 objects",
        "2.0 KiB",
        "2026-11-23 09:07:05Z",
        "0:10:00",
        "quiet_period",
    ):
        assert part in str(error)


@pytest.mark.parametrize(
    "state", [RawHourStatus.EMPTY, RawHourStatus.NO_READY_OBJECT, RawHourStatus.BEING_WRITTEN]
)
def test_timeout_says_how_long_the_wait_was(state: RawHourStatus) -> None:
    rule = SettleRule(timedelta(minutes=10), "_DONE", False)
    last = RawHourCheck(state, 1, 1, HOUR, AFTER)
    assert " after 6h30m of waiting" in str(
        unsettled_error(PATHS, rule, last, timedelta(hours=6, minutes=30))
    )
    assert "of waiting" not in str(unsettled_error(PATHS, rule, last))


def test_unreachable_store_is_named_with_the_problem() -> None:
    error = unlisted_error(PATHS, "aws_logs", "LIST: no route", timedelta(minutes=90), timedelta(hours=6))
    for part in (
        "2026-11-23T08:00:00Z",
        "S3 is unreachable",
        f"s3://logs/{RAW}",
        "for 1h30m after 6h of waiting",
        "LIST: no route",
        "'aws_logs'",
    ):
        assert part in str(error)


GROUPED = make_stream(raw=RawTemplate.parse("s3://logs/raw/{service}/%Y%m%d/%H/")).at(HOUR)
WITH_READY_OBJECT = SettleRule(timedelta(minutes=10), "DONE", False)


def grouped_store(**names: str) -> FakeStore:
    """Return a store with one object for each name, by service."""
    store = store_at(HOUR)
    for service, objects in names.items():
        for name in objects.split():
            store.produce(f"raw/{service}/20261123/08/{name}", b"" if name.endswith("/") else b"x")
    return store


@pytest.mark.parametrize(
    ("names", "state"),
    [
        ({}, RawHourStatus.NO_READY_OBJECT),
        ({"web": "a.log"}, RawHourStatus.NO_READY_OBJECT),
        ({"web": "a.log DONE"}, RawHourStatus.SETTLED),
        ({"web": "a.log DONE", "db": "b.log"}, RawHourStatus.NO_READY_OBJECT),
        ({"web": "a.log DONE", "db": "b.log sub/DONE"}, RawHourStatus.NO_READY_OBJECT),
        ({"web": "a.log DONE", "db": "b.log DONE"}, RawHourStatus.SETTLED),
        ({"web": "a.log DONE", "db": "DONE"}, RawHourStatus.SETTLED),
        ({"web": "a.log DONE", "db": "sub/"}, RawHourStatus.SETTLED),
    ],
)
def test_each_place_with_objects_needs_its_ready_object(names: dict[str, str], state: RawHourStatus) -> None:
    assert check_raw_hour(grouped_store(**names), GROUPED, WITH_READY_OBJECT).status is state


def test_missing_ready_objects_are_named_up_to_five() -> None:
    store = grouped_store(**{f"s{number}": "a.log" for number in range(7)}, web="a.log DONE")
    seen = check_raw_hour(store, GROUPED, WITH_READY_OBJECT)
    message = str(unsettled_error(GROUPED, WITH_READY_OBJECT, seen))
    assert "DONE is missing in 7 of 8 places with objects: s3://logs/raw/s0/20261123/08/, " in message
    assert "s3://logs/raw/s4/20261123/08/ and 2 more." in message
    assert "s5" not in message


def test_ready_object_may_continue_a_step() -> None:
    paths = make_stream(raw=RawTemplate.parse("s3://logs/raw/%Y/%m/%d/{service}_%Y%m%dT%H")).at(HOUR)
    store = store_at(HOUR)
    store.produce("raw/2026/11/23/web_20261123T08_0.log", b"x")
    rule = SettleRule(timedelta(minutes=10), "_DONE", False)
    assert check_raw_hour(store, paths, rule).unready == ("s3://logs/raw/2026/11/23/web_20261123T08",)
    store.produce("raw/2026/11/23/web_20261123T08_DONE", b"")
    assert check_raw_hour(store, paths, rule).status is RawHourStatus.SETTLED
