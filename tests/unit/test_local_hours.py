"""The label of a local hour belongs to the UTC hour that contains its last instant."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup.hour.layout import floor_hour
from include.log_rollup.hour.local_hours import LocalHours, check_zone
from tests.unit.strategies import zone_hours

# Offsets since 1970 are whole multiples of it.
STEP = timedelta(seconds=30)
ZONES = sorted(available_timezones() - {"localtime"})


def local(year: int, month: int, day: int, hour: int) -> datetime:
    return datetime(year, month, day, hour)  # noqa: DTZ001


def utc(year: int, month: int, day: int, hour: int) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "label", "hour"),
    [
        ("UTC", local(2026, 11, 23, 8), utc(2026, 11, 23, 8)),
        ("Europe/Berlin", local(2026, 7, 1, 0), utc(2026, 6, 30, 22)),
        # Twice, and never.
        ("Europe/Berlin", local(2026, 10, 25, 2), utc(2026, 10, 25, 1)),
        ("Europe/Berlin", local(2026, 3, 29, 2), None),
        ("Asia/Kolkata", local(2026, 11, 23, 13), utc(2026, 11, 23, 8)),
        ("Asia/Kathmandu", local(2026, 11, 23, 13), utc(2026, 11, 23, 8)),
        # The clock jumps from 23:30 to midnight, and from 02:00 to 02:30.
        ("Asia/Pyongyang", local(2018, 5, 4, 23), utc(2018, 5, 4, 14)),
        ("Australia/Lord_Howe", local(2026, 10, 4, 2), utc(2026, 10, 3, 15)),
        # A whole day is skipped.
        ("Pacific/Apia", local(2011, 12, 30, 12), None),
        ("America/New_York", local(1969, 12, 31, 23), utc(1970, 1, 1, 4)),
        ("Asia/Tokyo", local(3000, 1, 1, 8), utc(2999, 12, 31, 23)),
        ("Asia/Tokyo", local(3000, 1, 1, 9), None),
        ("Asia/Tokyo", local(1, 1, 1, 0), None),
        ("America/New_York", local(9999, 12, 31, 23), None),
    ],
)
def test_label_belongs_to_the_utc_hour_of_its_end(zone: str, label: datetime, hour: datetime | None) -> None:
    assert LocalHours(zone).hour_of(label) == hour
    if hour:
        assert label in LocalHours(zone).labels_of(hour)


any_hours = st.integers(1, 9_000_000).map(lambda hours: utc(1970, 1, 1, 0) + timedelta(hours=hours))


@given(zone_hours | st.tuples(st.sampled_from(ZONES), any_hours))
@settings(max_examples=60)
def test_labels_and_hours_agree_with_the_clock(zone_hour: tuple[str, datetime]) -> None:
    """Each half minute of nine hours is read from the zone's clock."""
    zone, middle = zone_hour
    hours, clock = LocalHours(zone), ZoneInfo(zone)
    start, end = middle - timedelta(hours=4), middle + timedelta(hours=5)
    last_instants: dict[datetime, datetime] = {}
    instant = start
    while instant < end:
        shown = instant.astimezone(clock)
        last_instants[datetime(shown.year, shown.month, shown.day, shown.hour)] = instant  # noqa: DTZ001
        instant += STEP
    labels: dict[datetime, list[datetime]] = defaultdict(list)
    for label, instant in last_instants.items():
        labels[floor_hour(instant)].append(label)
    # Beyond these, a label may go on after the last instant.
    for offset in range(-4, 3):
        hour = middle + timedelta(hours=offset)
        if 1970 <= hour.year <= 2999:
            assert list(hours.labels_of(hour)) == sorted(labels[hour])
            assert all(hours.hour_of(label) == hour for label in labels[hour])
            assert (hours.why_empty(hour) is None) == bool(labels[hour])


@pytest.mark.parametrize(
    ("name", "caret", "near"),
    [
        ("Europe/Berlln", 11, "Europe/Berlin"),
        ("europe/berlin", 0, "Europe/Berlin"),
        ("Europe/Berlinn", 13, "Europe/Berlin"),
        ("Europe/Berli", 12, "Europe/Berlin"),
        ("New York", 0, "America/New_York"),
        ("+01:00", 0, "Europe/Berlin"),
        ("../UTC", 0, "Europe/Berlin"),
        ("", 0, "Europe/Berlin"),
        (5, 0, "Europe/Berlin"),
    ],
)
def test_unknown_zone_is_shown_with_the_nearest_one(name: object, caret: int, near: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone") as caught:
        check_zone(name)
    assert str(caught.value).split("\n") == [
        f"{name!r} is not a time zone",
        f"  timezone: {name}",
        f"            {' ' * caret}^",
        f"write it like timezone: {near}",
    ]


@pytest.mark.parametrize("name", ["UTC", "Etc/GMT+5", "Asia/Kolkata", "America/Argentina/Buenos_Aires"])
def test_zone_is_accepted(name: str) -> None:
    assert check_zone(name) == name
