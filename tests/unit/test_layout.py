"""Hours are UTC, whatever the offset of the given time, and have fixed paths in the bucket."""

from datetime import UTC, datetime, timedelta, timezone

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import (
    floor_hour,
    format_hour,
    has_tag,
    hours_between,
    parse_hour,
    part_index,
    part_name,
    part_name_of_format_1,
    planned_name,
    split_name,
)
from include.log_rollup.hour.paths import RawPaths
from include.log_rollup.hour.selection import ENCODINGS, OPAQUE
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.storage.protocol import Location
from tests.support.hour_in_memory import WORK, make_stream
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

# The years 2000 to 2099.
instants = st.builds(
    datetime.fromtimestamp,
    st.integers(946_684_800, 4_102_444_800),
    st.sampled_from([UTC, timezone(timedelta(hours=5.5))]),
)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T08:00:00Z",
        "2026-11-23T08:59:59.999Z",
        "2026-11-23T09:30:00+01:00",
        "2026-11-23T13:40:00+05:30",
        "2026-11-23 08:00+00:00",
    ],
)
def test_time_with_any_offset_gives_its_utc_hour(text: str) -> None:
    assert parse_hour(text) == HOUR


@pytest.mark.parametrize("text", ["2026-11-23T08:00:00", "2026-11-23", "08:00Z", "now", "", None])
def test_other_text_is_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"hour: .* write it like 2026-11-23T08:00:00Z"):
        parse_hour(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:30:00-05:00"])
def test_time_beyond_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="hour: "):
        parse_hour(text)


@given(instants)
def test_formatted_hour_is_read_back(instant: datetime) -> None:
    hour = floor_hour(instant)
    assert parse_hour(format_hour(hour)) == hour
    assert hour <= instant < hour + timedelta(hours=1)
    assert hour.tzinfo is UTC


def test_hour_is_written_with_four_digits_of_its_year() -> None:
    assert format_hour(datetime(226, 11, 23, 8, tzinfo=UTC)) == "0226-11-23T08:00:00Z"


def test_hours_between_begin_with_the_start_without_the_end() -> None:
    start = HOUR + timedelta(minutes=59)
    assert hours_between(start, HOUR + timedelta(hours=2)) == [HOUR, HOUR + timedelta(hours=1)]
    assert hours_between(HOUR, HOUR + timedelta(hours=1, seconds=1)) == [HOUR, HOUR + timedelta(hours=1)]
    assert hours_between(HOUR, HOUR) == hours_between(HOUR, HOUR - timedelta(hours=9)) == []


def test_hours_between_are_plain_datetimes() -> None:
    (hour,) = hours_between(pendulum.instance(HOUR), pendulum.instance(HOUR).add(hours=1))
    assert (type(hour), hour.tzinfo) == (datetime, UTC)


def test_hour_has_paths_below_both_prefixes() -> None:
    paths = make_stream().at(HOUR)
    assert str(paths.raw) == f"s3://logs/{RAW}"
    assert paths.home == paths.base == Location("logs", AGGREGATED)
    assert str(paths.aggregated) == f"s3://logs/{AGGREGATED}"
    assert paths.marker.key == AGGREGATED + "_SUCCESS"
    assert paths.manifest.key == AGGREGATED + "_manifest.jsonl.gz"
    assert paths.claim.key == WORK + "claim.json"
    assert paths.plan("f00").key == WORK + "f00/plan.json"
    assert paths.shard("f00", 3).key == WORK + "f00/shard-00003.json.gz"
    assert paths.receipt("f00", 3).key == WORK + "f00/receipt-00003.json.gz"
    assert paths.part(part_name(7, ".gz", "3f9c2a1b")).key == AGGREGATED + "part-00007-3f9c2a1b.log.gz"
    assert paths.part(part_name_of_format_1(7, ".gz")).key == AGGREGATED + "part-00007.log.gz"
    assert paths.removals.key == WORK + "removals/"
    assert paths.staged_manifest("f00", "0a").key == WORK + "f00/staged-0a-_manifest.jsonl.gz"
    assert paths.staged_marker("f00", "0a").key == WORK + "f00/staged-0a-_SUCCESS"
    assert paths.end - paths.hour == timedelta(hours=1)


tags = st.integers(0, 2**32 - 1).map("{:08x}".format)


@given(st.integers(0, 10**6), st.sampled_from(["", *ENCODINGS, *OPAQUE]), tags, tags)
def test_part_name_is_recognised_in_its_key(index: int, encoding: str, tag: str, split: str) -> None:
    paths = make_stream().at(HOUR)
    name = part_name(index, encoding, tag)
    old = part_name_of_format_1(index, encoding)
    for known, tagged in ((name, True), (split_name(name, split), True), (old, False)):
        assert paths.part_name_of(paths.part(known).key) == known
        assert paths.work_name_of(paths.part(known).key) is None
        assert (part_index(known), has_tag(known)) == (index, tagged)
    assert planned_name(split_name(name, split)) == planned_name(name) == name
    assert planned_name(old) == old


PLAN_ID = "0123456789abcdef0123"


@pytest.mark.parametrize(
    "name",
    [
        "claim.json", "crc-probe", "removals/0a1b.json", f"{PLAN_ID}/plan.json",
        f"{PLAN_ID}/shard-00012.json.gz", f"{PLAN_ID}/receipt-00012.json.gz",
        f"{PLAN_ID}/staged-0a-_manifest.jsonl.gz", f"{PLAN_ID}/staged-0a-_SUCCESS",
    ],
)  # fmt: skip
def test_our_keys_below_rollup_are_recognised(name: str) -> None:
    paths = make_stream().at(HOUR)
    assert paths.work_name_of(WORK + name) == name
    assert paths.part_name_of(WORK + name) is None


@pytest.mark.parametrize(
    "name",
    [
        "", "notes.txt", "claim.json.bak", "removals/", "removals/x.json", "removals/0a.json/x", "plan.json",
        f"{PLAN_ID}/", f"{PLAN_ID}/notes.txt", f"{PLAN_ID}/plan.json/x", f"{PLAN_ID}0/plan.json",
        f"{PLAN_ID}/shard-1.json.gz", f"x/{PLAN_ID}/plan.json", f"{PLAN_ID.upper()}/plan.json",
        f"{PLAN_ID}/shard-0000\u0661.json.gz",
    ],
)  # fmt: skip
def test_other_keys_below_rollup_are_foreign(name: str) -> None:
    assert make_stream().at(HOUR).work_name_of(WORK + name) is None


@pytest.mark.parametrize(
    "key",
    [
        AGGREGATED + "_SUCCESS",
        AGGREGATED + "part-1.log",
        AGGREGATED + "part-00001.txt",
        AGGREGATED + "part-00001.log/x",
        AGGREGATED + "sub/part-00001.log",
        AGGREGATED + "part-0000\u0661.log",
        AGGREGATED + "part-00001-3F9C2A1B.log",
        AGGREGATED + "part-00001-3f9c2a1.log",
        AGGREGATED + "part-00001-3f9c2a1b0.log",
        AGGREGATED + "part-00001-.log",
        AGGREGATED + "part-00001.log.gz.bak",
        AGGREGATED + "part-00001.log\n",
        "part-00001.log",
        "aggregated/app/20261123/09/part-00001.log",
    ],
)
def test_names_that_no_plan_gives_are_not_parts(key: str) -> None:
    assert make_stream().at(HOUR).part_name_of(key) is None


def test_stream_of_a_whole_bucket_has_hours_at_the_top() -> None:
    paths = RawPaths(RawTemplate.parse("s3://raw-logs/"), HOUR)
    assert str(paths.raw) == "s3://raw-logs/20261123/08/"
