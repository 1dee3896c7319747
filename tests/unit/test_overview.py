"""The overview of a stream, and the comparison of its volume with earlier weeks."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries import volume
from include.log_rollup.queries.overview import OVERVIEW_HOURS, last_hours, late_after, read_overview
from include.log_rollup.queries.status import HourStatus
from include.log_rollup.queries.volume import Comparison, VolumeState, earlier_hours
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream
from tests.support.markers import marker_body
from tests.support.raw_hours import HOUR

STREAM = make_stream()
GROUPED = make_stream(
    raw=RawTemplate.parse("s3://logs/by/{service}/"),
    aggregated=AggregatedTemplate.parse("s3://logs/out/{service}/"),
)
WEEK = timedelta(days=7)
# Every hour that has ended is due.
NOW = HOUR + timedelta(minutes=59, seconds=59)
LAST = HOUR - timedelta(hours=1)
Volume = dict[str, Any]


def complete(store: FakeStore, stream: Stream, hour: datetime, **what: Any) -> None:
    """Write the completion marker of an hour: 100 objects and 1,000 bytes, unless others are given."""
    values = {"objects": 100, "bytes_in": 1000, **what}
    store.produce(stream.at(hour).marker.key, marker_body(stream, hour, **values))


def complete_all(store: FakeStore, stream: Stream, of_week: Callable[[int], Volume | None]) -> None:
    """Complete the last three hours of this week and of earlier ones.

    :param of_week: the volume of each hour; ``of_week(0)`` is this week's; None for a week without these hours
    """
    for week in range(5):
        what = of_week(week)
        for number in range(3) if what is not None else ():
            complete(store, stream, LAST - week * WEEK - timedelta(hours=number), **(what or {}))


def test_overview_takes_one_request_for_each_complete_hour() -> None:
    store, stream = FakeStore(), make_stream(expire_raw=ExpireRaw(after=timedelta(days=1)))
    complete_all(store, stream, lambda _: {})
    store.log.clear()
    read_overview(store, stream, NOW)
    complete_hours, others = 5 * 3, 48 - 3
    assert len(store.log) == complete_hours + 2 * others


def compare(stream: Stream, of_week: Callable[[int], Volume | None]) -> volume.VolumeReport:
    store = FakeStore()
    complete_all(store, stream, of_week)
    return read_overview(store, stream, NOW)[0].volume


@pytest.mark.parametrize(
    ("volumes", "state", "weeks"),
    [
        # The first volume is this week's; numbers are objects of 10 bytes in each of three hours.
        ([100, 100, 100, 100, 100], VolumeState.USUAL, 4),
        ([0, 100, 100, 100, 100], VolumeState.SILENT, 4),
        ([49, 100, 100, 100, 100], VolumeState.SHRUNK, 4),
        ([50, 100, 100, 100, 100], VolumeState.USUAL, 4),
        ([900, 100, 100, 100, 100], VolumeState.USUAL, 4),
        # A holiday in one of the earlier weeks changes nothing.
        ([49, 1, 100, 100, 100], VolumeState.SHRUNK, 4),
        ([60, 900, 100, 100, 100], VolumeState.USUAL, 4),
        # Every other week, and silent for two weeks.
        ([0, 100, 0, 100, 0], VolumeState.UNKNOWN, 4),
        ([0, 0, 100, 100, 100], VolumeState.SILENT, 4),
        ([0, 0, 0, 100, 100], VolumeState.UNKNOWN, 4),
        # Too few weeks or objects.
        ([0, 100, 100, None, None], VolumeState.SILENT, 2),
        ([0, 100, None, None, None], VolumeState.UNKNOWN, 1),
        ([0, None, 100, None, 100], VolumeState.SILENT, 2),
        ([0, 3, 3, 3, 3], VolumeState.UNKNOWN, 4),
        ([0, 4, 4, 4, 4], VolumeState.SILENT, 4),
    ],
)
def test_volume_is_compared_with_earlier_weeks(
    volumes: list[int | None], state: VolumeState, weeks: int
) -> None:
    def of_week(week: int) -> Volume | None:
        count = volumes[week]
        return None if count is None else {"objects": count, "bytes_in": 10 * count}

    report = compare(STREAM, of_week)
    assert (report.state, report.weeks) == (state, weeks)
    assert report.is_unusual == (state in (VolumeState.SILENT, VolumeState.SHRUNK))
    assert list(report.hours) == [LAST - timedelta(hours=number) for number in (2, 1, 0)]


def test_objects_of_no_size_are_not_silence() -> None:
    report = compare(STREAM, lambda week: {"objects": 100, "bytes_in": 0 if week == 0 else 1000})
    assert report.comparison == Comparison(VolumeState.SHRUNK, 300, 0, 300, 3000)


def groups_of_hours(**now: tuple[int, int]) -> volume.VolumeReport:
    """Compare groups with weeks in which ``web``, ``api`` and ``db`` have 100 objects of 10 bytes an hour."""

    def of_week(week: int) -> Volume:
        groups: Mapping[str, tuple[int, int]] = (
            dict.fromkeys(("web", "api", "db"), (100, 1000)) if week else now
        )
        return {
            "objects": sum(objects for objects, _ in groups.values()),
            "bytes_in": sum(size for _, size in groups.values()),
            "groups": groups,
        }

    return compare(GROUPED, of_week)


def test_silent_and_shrunk_groups_are_named() -> None:
    report = groups_of_hours(web=(100, 5000), db=(30, 300), new=(100, 1000))
    assert (report.state, report.groups, report.is_unusual) == (VolumeState.USUAL, 3, True)
    assert [(one.name, one.comparison.state) for one in report.unusual] == [
        ("api", VolumeState.SILENT), ("db", VolumeState.SHRUNK),
    ]  # fmt: skip
    assert report.unusual[0].comparison == Comparison(VolumeState.SILENT, 0, 0, 300, 3000)


def test_all_groups_of_a_silent_stream_are_silent() -> None:
    report = groups_of_hours()
    assert report.state is VolumeState.SILENT
    assert [one.name for one in report.unusual] == ["api", "db", "web"]


def test_too_many_groups_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "MAX_GROUPS", 2)
    report = groups_of_hours(web=(100, 1000))
    assert (report.state, report.groups, report.unusual) == (VolumeState.SHRUNK, None, ())


def test_overview_counts_the_hours_of_two_days() -> None:
    store = FakeStore()
    hours = last_hours(NOW)
    assert (len(hours), hours[-1]) == (OVERVIEW_HOURS, LAST)
    for hour in hours[:-4]:
        complete(store, STREAM, hour, stored=100)
    complete(store, STREAM, hours[3], objects=0, bytes_in=0)
    store.delete("logs", [STREAM.at(hours[5]).marker.key])
    store.produce(STREAM.at(hours[6]).marker.key, b"<html>")
    store.produce(STREAM.at(hours[-1]).claim.key, b"{}")
    store.log.clear()
    overview, incomplete = read_overview(store, STREAM, NOW)
    assert overview.last_complete == hours[-5]
    # The last hour has not been over for quiet_period and an hour yet.
    assert (overview.hours_behind, overview.due, overview.is_whole) == (3, 47, False)
    assert (overview.complete, overview.empty) == (42, 1)
    assert (overview.objects, overview.bytes_in, overview.bytes_stored) == (4100, 41_000, 4100)
    assert [(one.hour, one.state, bool(one.problem)) for one in incomplete] == [
        (hours[5], HourStatus.INCOMPLETE, False),
        (hours[6], HourStatus.DAMAGED, True),
        *((hour, HourStatus.INCOMPLETE, False) for hour in hours[-4:-1]),
    ]
    # A second request for each hour without a marker; a third of the compared hours is 7, 14, 21, 28 days back.
    assert len(store.log) == 48 + 5 + 2 * len(earlier_hours(hours[-7:-4]))


def test_hours_before_the_start_are_not_due() -> None:
    stream = make_stream(start=HOUR - timedelta(hours=10))
    overview, incomplete = read_overview(FakeStore(), stream, NOW + late_after(stream))
    assert (overview.last_complete, overview.due, overview.hours_behind, len(incomplete)) == (
        None,
        10,
        10,
        10,
    )
