"""A key belongs to one hour and group by its stream's template, and the hour's prefixes cover the key."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup.hour.template import AggregatedTemplate, Level, RawTemplate, check_pair
from include.log_rollup.hour.template_syntax import TemplateError
from include.log_rollup.hour.why_no_hour import why_no_hour
from tests.unit.strategies import templates, zone_hours

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
CLOUDTRAIL = "s3://bkt/AWSLogs/{account}/CloudTrail/{region}/%Y/%m/%d/{account}_CloudTrail_{region}_%Y%m%dT%H"
CLOUDTRAIL_KEY = (
    "AWSLogs/111/CloudTrail/eu-west-1/2026/11/23/111_CloudTrail_eu-west-1_20261123T0855Z_abc.json.gz"
)


@pytest.mark.parametrize(
    ("text", "key", "captures", "name"),
    [
        ("s3://bkt/raw/app", "raw/app/20261123/08/x/y.log", (), "x/y.log"),
        ("s3://bkt/", "20261123/08/y", (), "y"),
        ("s3://bkt/raw/{service}", "raw/billing/20261123/08/a", ("billing",), "a"),
        ("s3://bkt/t={t}.d/%y%j/%H", "t=x.d/26327/08/a", ("x",), "/a"),
        ("s3://bkt/%%{{a}}/%Y%m%d/%H/", "%{a}/20261123/08/", (), ""),
        ("s3://bkt/year=%Y/month=%m/day=%d/hour=%H/", "year=2026/month=11/day=23/hour=08/a", (), "a"),
        ("s3://bkt/E1.%Y-%m-%d-%H.", "E1.2026-11-23-08.abc.gz", (), "abc.gz"),
        ("s3://bkt/access/%Y-%m-%d-%H-", "access/2026-11-23-08-59-01-ABC", (), "59-01-ABC"),
        (CLOUDTRAIL, CLOUDTRAIL_KEY, ("111", "eu-west-1"), "55Z_abc.json.gz"),
        # Each capture takes as little as it can, but enough for the digits to fit.
        ("s3://bkt/%Y%m%d/{a}_{b}_%H", "20261123/x_y_z_08a", ("x", "y_z"), "a"),
        ("s3://bkt/%Y%m%d/{a}-%H-", "20261123/x-99-y-08-z-09-", ("x-99-y",), "z-09-"),
        ("s3://bkt/{a}/{a}/%Y%m%d/%H/", "x/x/20261123/08/\n", ("x",), "\n"),
    ],
)
def test_key_gives_hour_captures_and_name(text: str, key: str, captures: tuple[str], name: str) -> None:
    template = RawTemplate.parse(text)
    assert template.match(key) == (HOUR, captures, name)
    assert any(key.startswith(prefix) for prefix in _prefixes(template, HOUR, captures))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("s3://bkt/raw/app/", "raw/app2/20261123/08/a"),
        ("s3://bkt/raw/app/", "raw/app/20261123/8/a"),
        ("s3://bkt/raw/app/", "raw/app/20260230/08/a"),
        ("s3://bkt/raw/app/", "raw/app/20261123/24/a"),
        ("s3://bkt/raw/app/", "raw/app/２０２６1123/08/a"),
        ("s3://bkt/raw/app/", "raw/app/19691231/23/a"),
        ("s3://bkt/raw/app/", "raw/app/30000101/00/a"),
        ("s3://bkt/raw/app/", "raw/app/00000101/00/a"),
        ("s3://bkt/raw.app/", "raw-app/20261123/08/a"),
        ("s3://bkt/%Y%j/%H/", "2026366/08/a"),
        ("s3://bkt/%Y%j/%H/", "2026000/08/a"),
        ("s3://bkt/%Y%m%d%j/%H/", "20261123326/08/a"),
        ("s3://bkt/%Y%m%d%y/%H/", "2026112325/08/a"),
        ("s3://bkt/raw/{a}/", "raw//20261123/08/a"),
        ("s3://bkt/raw/{a}/", "raw/x/y/20261123/08/a"),
        ("s3://bkt/{a}/{a}/", "x/y/20261123/08/a"),
        (CLOUDTRAIL, CLOUDTRAIL_KEY.replace("23T", "24T")),
        (CLOUDTRAIL, CLOUDTRAIL_KEY.replace("111_", "112_")),
    ],
)
def test_other_key_belongs_to_no_hour(text: str, key: str) -> None:
    assert RawTemplate.parse(text).match(key) is None


@pytest.mark.parametrize(("digits", "year"), [("68", 2068), ("69", None), ("70", 1970), ("99", 1999)])
def test_year_of_two_digits_is_that_of_strptime(digits: str, year: int | None) -> None:
    match = RawTemplate.parse("s3://bkt/%y%m%d/%H/").match(f"{digits}0101/00/a")
    assert (match and match.hour) == (datetime(year, 1, 1, tzinfo=UTC) if year else None)
    assert time.strptime(digits, "%y").tm_year == (year or 1969)


def test_hour_outside_the_years_of_two_digits_has_no_prefix() -> None:
    template = RawTemplate.parse("s3://bkt/%y%m%d/%H/")
    hour = datetime(2069, 1, 1, tzinfo=UTC)
    assert template.prefixes(hour, {}) == ()
    assert "%y has the years 1969 to 2068 only" in str(template.why_empty(hour))


def test_no_key_takes_long() -> None:
    template = RawTemplate.parse("s3://bkt/%Y/%m/%d/{a}_{b}_{c}_{d}_{e}_%Y%m%dT%H")
    for _ in range(100):
        # With backtracking, one of them would take hours.
        assert template.match("2026/11/23/" + "_" * 1000) is None


def test_stamps_are_remembered_within_bounds() -> None:
    template = RawTemplate.parse("s3://bkt/")
    for day in range(500):
        for hour in range(24):
            instant = HOUR + timedelta(days=day, hours=hour)
            match = template.match(f"{instant:%Y%m%d/%H}/a")
            assert match is not None
            assert match.hour == instant
    assert len(template._hour_of_stamp) <= 10_000


# Zones


def test_keys_of_a_zone_belong_to_utc_hours() -> None:
    template = RawTemplate.parse("s3://bkt/", "Asia/Kolkata")
    match = template.match("20261123/13/a")
    assert match is not None
    assert match.hour == HOUR
    assert template.prefixes(HOUR, {}) == ("20261123/13/",)


def test_earlier_of_two_equal_local_hours_is_empty() -> None:
    template = RawTemplate.parse("s3://bkt/", "Europe/Berlin")
    earlier, later = datetime(2026, 10, 25, 0, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)
    assert template.prefixes(earlier, {}) == ()
    assert template.prefixes(later, {}) == ("20261025/02/",)
    assert template.why_empty(later) is None
    assert template.why_empty(earlier) == (
        "No object belongs to the UTC hour 2026-10-25T00:00:00Z: the clocks of Europe/Berlin are set back, the "
        "local hour 2026-10-25 02:00 occurs twice, and its objects belong to the UTC hour 2026-10-25T01:00:00Z."
    )


def test_prefixes_of_an_hour_with_two_local_hours_are_apart() -> None:
    hour = datetime(2026, 10, 3, 15, tzinfo=UTC)
    zone = "Australia/Lord_Howe"
    assert RawTemplate.parse("s3://bkt/", zone).prefixes(hour, {}) == ("20261004/01/", "20261004/02/")
    assert RawTemplate.parse("s3://bkt/%Y%m%d/{a}_%H_", zone).prefixes(hour, {}) == ("20261004/",)


def test_unknown_zone_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'Europe/Berlln' is not a time zone\n(.*\n){2}.* timezone: Europe/Berlin$"
    ):
        RawTemplate.parse("s3://bkt/", "Europe/Berlln")


# Listing


def test_levels_find_the_captures_before_the_date() -> None:
    template = RawTemplate.parse("s3://bkt/raw/{a}/x/b={b}.d/{a}/%Y%m%d/%H/{c}_")
    assert template.next_level({}) == Level("a", "raw/", "/")
    assert template.next_level({"a": "1"}) == Level("b", "raw/1/x/b=", ".d/")
    assert template.next_level({"a": "1", "b": "2"}) is None
    assert template.prefixes(HOUR, {"a": "1", "b": "2"}) == ("raw/1/x/b=2.d/1/20261123/08/",)
    assert template.prefixes(HOUR, {"a": "1", "b": "2", "c": "3"}) == ("raw/1/x/b=2.d/1/20261123/08/3_",)


@pytest.mark.parametrize(
    ("prefix", "value"),
    [("raw/b=2.d/", "2"), ("raw/b=.d/", None), ("raw/b=2/", None), ("raw/b=d/", None), ("raw/c=2.d/", None)],
)
def test_level_reads_values_of_common_prefixes(prefix: str, value: str | None) -> None:
    assert Level("b", "raw/b=", ".d/").value(prefix) == value


def test_prefix_needs_the_captures_before_the_date() -> None:
    with pytest.raises(ValueError, match=r"the capture {a} before the date has no value"):
        RawTemplate.parse("s3://bkt/{a}/").prefixes(HOUR, {})


# Folders of the day before or after


def trail_key(folder: str, name: str) -> str:
    return f"AWSLogs/111/CloudTrail/eu-west-1/{folder}/111_CloudTrail_eu-west-1_{name}05Z_abc.json.gz"


@pytest.mark.parametrize(
    ("folder", "name", "hour"),
    [
        ("2026/11/24", "20261123T23", datetime(2026, 11, 23, 23, tzinfo=UTC)),
        ("2026/11/24", "20261123T21", datetime(2026, 11, 23, 21, tzinfo=UTC)),
        ("2026/11/22", "20261123T00", datetime(2026, 11, 23, 0, tzinfo=UTC)),
        ("2027/01/01", "20261231T23", datetime(2026, 12, 31, 23, tzinfo=UTC)),
        ("3000/01/01", "29991231T23", datetime(2999, 12, 31, 23, tzinfo=UTC)),
        ("1969/12/31", "19700101T00", datetime(1970, 1, 1, tzinfo=UTC)),
        # Not near midnight, on the wrong side of it, or more than a day apart.
        ("2026/11/24", "20261123T20", None),
        ("2026/11/22", "20261123T23", None),
        ("2026/11/24", "20261123T00", None),
        ("2026/11/25", "20261123T23", None),
        ("2026/12/24", "20261123T23", None),
        ("9999/12/31", "99991231T23", None),
        ("0001/01/01", "00010101T00", None),
    ],
)
def test_name_decides_where_the_folder_is_a_day_off(folder: str, name: str, hour: datetime | None) -> None:
    template = RawTemplate.parse(CLOUDTRAIL)
    key = trail_key(folder, name)
    match = template.match(key)
    assert (match and match.hour) == hour
    if hour is not None:
        assert any(key.startswith(prefix) for prefix in _prefixes(template, hour, ("111", "eu-west-1")))


def test_key_in_no_hour_is_reported_by_the_hour_of_its_folder() -> None:
    template = RawTemplate.parse("s3://bkt/%Y/%m/%d/{lb}_%Y%m%dT%H")
    hour = datetime(2026, 11, 24, 20, tzinfo=UTC)
    assert template.reporting_hour("2026/11/24/web_20261123T20") == hour
    assert template.reporting_hour("2016/11/24/web_20261123T20") == hour.replace(year=2016)
    # It belongs to an hour, the folder is no day, or there is no folder.
    assert template.reporting_hour("2026/11/24/web_20261123T23") is None
    assert template.reporting_hour("2026/02/30/web_20261123T20") is None
    assert RawTemplate.parse("s3://bkt/%Y%m%d/%d/%H/").reporting_hour("20261124/23/20/") is None
    monthly = RawTemplate.parse("s3://bkt/%Y/%m/{lb}_%Y%m%dT%H")
    assert monthly.reporting_hour("2026/12/web_20261123T20") is None


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ("%Y/%m/%d/{lb}_%Y%m%dT%H", True),
        ("%Y/%m/%d/%Y%m%dT%H", False),
        ("%Y%m%d/{lb}_%H", False),
        ("", False),
    ],
)
def test_unmatched_keys_are_found_in_folders_of_days_only(text: str, finds: bool) -> None:
    assert RawTemplate.parse(f"s3://bkt/{text}").finds_unmatched == finds


def test_only_hours_near_midnight_list_a_second_folder() -> None:
    template = RawTemplate.parse("s3://bkt/%Y/%m/%d/{lb}_%Y%m%dT%H")
    midnight = datetime(2026, 11, 23, tzinfo=UTC)
    prefixes = [template.prefixes(midnight + timedelta(hours=hour), {}) for hour in range(24)]
    assert prefixes[0] == ("2026/11/22/", "2026/11/23/")
    assert set(prefixes[1:21]) == {("2026/11/23/",)}
    assert set(prefixes[21:]) == {("2026/11/23/", "2026/11/24/")}


def test_folder_is_that_of_a_day_in_the_zone() -> None:
    template = RawTemplate.parse("s3://bkt/%Y/%m/%d/%Y%m%dT%H", "Asia/Tokyo")
    match = template.match("2026/11/24/20261123T2355")
    assert match == (datetime(2026, 11, 23, 14, tzinfo=UTC), (), "55")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        # The folder has an hour too, the hour's folder has no full date, or both dates are in one step.
        ("s3://bkt/%Y/%m/%d/%H/%Y%m%dT%H", "2026/11/24/23/20261123T23"),
        ("s3://bkt/%Y%m%d/%H/x-%Y%m%d", "20261124/23/x-20261123"),
        ("s3://bkt/%Y%m%d/%d/%H/", "20261124/23/23/"),
        ("s3://bkt/%Y%m%d-%Y%m%dT%H", "20261124-20261123T23"),
        ("s3://bkt/%Y/%m/%d/%y%m%dT%H", "2026/11/24/261123T23"),
    ],
)
def test_other_dates_have_to_agree(text: str, key: str) -> None:
    assert RawTemplate.parse(text).match(key) is None


def test_folder_of_a_year_or_month_may_be_the_next_one() -> None:
    template = RawTemplate.parse("s3://bkt/%Y/%m/%Y-%m-%dT%H")
    hour = datetime(2026, 12, 31, 23, tzinfo=UTC)
    assert template.match("2027/01/2026-12-31T23") == (hour, (), "")
    assert template.prefixes(hour, {}) == ("2026/12/2026-12-31T23", "2027/01/2026-12-31T23")
    assert template.match("2027/12/2026-12-31T23") is None


def test_dates_of_an_aggregated_template_have_to_agree() -> None:
    template = AggregatedTemplate.parse("s3://bkt/%Y%m%d/%Y%m%d-%H/")
    hour = datetime(2026, 11, 23, 23, tzinfo=UTC)
    assert template.prefixes(hour, {}) == ("20261123/20261123-23/",)
    assert template.match("20261124/20261123-23/part") is None


@given(templates(), zone_hours, st.data(), st.integers(0, 60), st.sampled_from("a0/_"))
def test_reason_is_given_for_keys_without_an_hour_only(
    text: str, zone_hour: tuple[str, datetime], data: st.DataObject, place: int, character: str
) -> None:
    zone, hour = zone_hour
    template = RawTemplate.parse(text, zone)
    values = {capture: data.draw(plain_values | odd_values) for capture in template.captures}
    for label in template.labels(hour):
        key = template.fill(label, values)
        for changed in (key, key[:place] + character + key[place + 1 :], key[:place]):
            match = template.match(changed)
            assert (why_no_hour(template, changed) is None) == (match is not None)
            assert template.reporting_hour(changed) is None or match is None


# Aggregated templates


def test_aggregated_prefix_is_rendered_in_utc() -> None:
    template = AggregatedTemplate.parse("s3://bkt/agg/s={s}/dt=%Y-%m-%d/hour=%H")
    assert template.render(HOUR, ("x",)) == "agg/s=x/dt=2026-11-23/hour=08/"
    assert template.match("agg/s=x/dt=2026-11-23/hour=08/part") == (HOUR, ("x",), "part")


@pytest.mark.parametrize("group", [(), ("",), ("a/b",), ("a", "b")])
def test_wrong_group_is_not_rendered(group: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="are not values of the captures"):
        AggregatedTemplate.parse("s3://bkt/agg/{s}").render(HOUR, group)


def test_home_is_apart_from_the_groups() -> None:
    template = AggregatedTemplate.parse("s3://bkt/agg/x-{a}/{b}")
    assert template.home("app", HOUR) == "agg/_hours/app/20261123/08/"
    assert template.home_template("app").render(HOUR) == template.home("app", HOUR)
    assert template.match("agg/_hours/app/20261123/08/claim.json") is None
    with pytest.raises(ValueError, match=r"would be below s3://bkt/_hours/, where"):
        AggregatedTemplate.parse("s3://bkt/{a}/{b}").render(HOUR, ("_hours", "x"))


def test_home_without_captures_is_the_aggregated_hour() -> None:
    template = AggregatedTemplate.parse("s3://bkt/agg")
    assert template.home("app", HOUR) == template.render(HOUR) == "agg/20261123/08/"
    assert template.home_template("app") == template


def test_home_keeps_percent_signs_and_braces() -> None:
    template = AggregatedTemplate.parse("s3://bkt/%%Y{{x}}/{a}")
    assert template.home_template("app").render(HOUR) == template.home("app", HOUR)


def test_aggregated_uses_captures_of_raw() -> None:
    raw = RawTemplate.parse("s3://bkt/{service}/{team}")
    check_pair(raw, AggregatedTemplate.parse("s3://bkt/{team}"))
    with pytest.raises(TemplateError) as caught:
        check_pair(raw, AggregatedTemplate.parse("s3://bkt/agg/{servise}"))
    assert str(caught.value) == (
        "has a capture {servise} that raw lacks; the captures of raw are {service}, {team}\n"
        "  s3://bkt/agg/{servise}/%Y%m%d/%H/\n"
        "               ^\n"
        "write it like s3://bkt/agg/{service}/%Y%m%d/%H/"
    )
    with pytest.raises(
        TemplateError, match=r"the captures of raw are none\n.*\n.*\nwrite it like s3://bkt/a/%Y"
    ):
        check_pair(RawTemplate.parse("s3://bkt/"), AggregatedTemplate.parse("s3://bkt/{a}"))


# Errors

RAW_EXAMPLE = "s3://my-bucket/raw/app/%Y%m%d/%H/"
FAULTS = [
    # template, caret, reason, example
    ("logs/%Y%m%d/%H/", "^", "is not an S3 URL", "s3://logs/%Y%m%d/%H/"),
    ("s3://logs", "^", "is not an S3 URL", "s3://logs/%Y%m%d/%H/"),
    ("", "^", "is not an S3 URL", RAW_EXAMPLE),
    ("s3://{logs}/a", "     ^", "'{logs}' is not the name of a bucket", RAW_EXAMPLE),
    ("s3://bkt/%H/", "         ^", "does not give the day: it needs %Y", "s3://bkt/%Y/%m/%d/%H/"),
    ("s3://bkt/%Y/%m/%H/", "         ^", "does not give the day", "s3://bkt/%Y/%m/%d/%H/"),
    ("s3://bkt/%m-%d/%H/", "         ^", "does not give the day", "s3://bkt/%Y/%m-%d/%H/"),
    ("s3://bkt/%Y%m%d/", "               ^", "does not give the hour: it needs %H", "s3://bkt/%Y%m%d/%H/"),
    (
        "s3://bkt/%Y%m%d/%H%M/",
        "                  ^",
        "has a directive %M, a time within",
        "s3://bkt/%Y%m%d/%H",
    ),
    (
        "s3://bkt/%q/",
        "         ^",
        "has an unknown directive %q; the directives are",
        "s3://bkt/%%q/%Y%m%d/%H/",
    ),
    ("s3://bkt/%F/%I/", "         ^", "has an unknown directive %F", "s3://bkt/%Y-%m-%d/%H/"),
    ("s3://bkt/50%/", "           ^", "has a percent sign without a directive", "s3://bkt/50%%/%Y%m%d/%H/"),
    ("s3://bkt/50%", "           ^", "has a percent sign without a directive", "s3://bkt/50%%/%Y%m%d/%H/"),
    ("s3://bkt/{a/%Y%m%d/%H/", "         ^", "has a capture without its }", "s3://bkt/{a}/%Y%m%d/%H/"),
    ("s3://bkt/{a%Y%m%d/%H/", "         ^", "has a capture without its }", "s3://bkt/{a}/%Y%m%d/%H/"),
    ("s3://bkt/a}/", "          ^", "has a } without a {", "s3://bkt/a}}/%Y%m%d/%H/"),
    ("s3://bkt/{}/", "         ^", "has a capture without a name", "s3://bkt/{name}/%Y%m%d/%H/"),
    (
        "s3://bkt/{My App}/",
        "         ^",
        "has a capture with the name 'My App'",
        "s3://bkt/{my_app}/%Y%m%d/%H/",
    ),
    ("s3://bkt/{1}/", "         ^", "has a capture with the name '1'", "s3://bkt/{name1}/%Y%m%d/%H/"),
    ("s3://bkt/{a}{b}/", "            ^", "has {a} and {b} without a literal", "s3://bkt/{a}/{b}/%Y%m%d/%H/"),
    ("s3://bkt/{a}%Y%m%d/%H/", "            ^", "has {a} and %Y without", "s3://bkt/{a}/%Y%m%d/%H/"),
    ("s3://bkt/%Y%m%d/%H{a}/", "                  ^", "has %H and {a} without", "s3://bkt/%Y%m%d/%H/{a}/"),
    (
        "s3://bkt/{a}-{b}/",
        "             ^",
        "has {a} and {b} in one path step",
        "s3://bkt/{a}/{b}/%Y%m%d/%H/",
    ),
    ("s3://bkt/{a}.%Y%m%d-%H", "         ^", "has {a} before the date in the same", "s3://bkt/{a}/%Y%m%d-%H"),
    ("s3://bkt/%Y%m%d/%H/{a}", "                   ^", "ends with {a}", "s3://bkt/%Y%m%d/%H/{a}/"),
    ("s3://bkt/%Y%m%d/{a}_{b}_{a}_%H", "                        ^", "has {a} again after {b}", RAW_EXAMPLE),
    ("s3://bkt/a\nb/%H", "             ^", "does not give the day", "s3://bkt/a\nb/%Y/%m/%d/%H"),
]


@pytest.mark.parametrize(("text", "caret", "reason", "example"), FAULTS)
def test_error_points_at_the_fault(text: str, caret: str, reason: str, example: str) -> None:
    with pytest.raises(TemplateError) as caught:
        RawTemplate.parse(text)
    shown = text.replace("\n", "\ufffd")
    assert str(caught.value).startswith(reason)
    assert str(caught.value).endswith(f"\n  {shown}\n  {caret}\nwrite it like {example}")
    RawTemplate.parse(example)


@pytest.mark.parametrize(
    ("text", "caret", "reason", "example"),
    [
        ("s3://bkt/%y%m%d/%H/", "         ^", "has the year without its century", "s3://bkt/%Y%m%d/%H/"),
        (
            "s3://bkt/%Y%m%d/%H/{a}-{b}",
            " " * 23 + "^",
            "has {a} and {b} in one",
            "s3://bkt/%Y%m%d/%H/{a}/{b}/",
        ),
        ("s3://{b}/", "     ^", "'{b}' is not the name", "s3://my-bucket/aggregated/app/%Y%m%d/%H/"),
    ],
)
def test_error_of_aggregated_points_at_the_fault(text: str, caret: str, reason: str, example: str) -> None:
    with pytest.raises(TemplateError) as caught:
        AggregatedTemplate.parse(text)
    assert str(caught.value).startswith(reason)
    assert str(caught.value).endswith(f"\n  {text}\n  {caret}\nwrite it like {example}")
    AggregatedTemplate.parse(example)


@given(st.text(st.sampled_from("%YmdHj{}ab_/-"), max_size=25), st.booleans())
def test_any_text_is_parsed_or_refused_with_an_example(text: str, aggregated: bool) -> None:
    kind = AggregatedTemplate if aggregated else RawTemplate
    try:
        kind.parse(f"s3://bkt/{text}")
    except TemplateError as error:
        kind.parse(error.example)


# Invariants

# No character of them occurs in a literal or a date.
plain_values = st.text("xyzX", min_size=1, max_size=3)
# These can be confused with the literals and dates.
odd_values = st.text("ab01_-.%{é", min_size=1, max_size=12) | st.sampled_from(
    ["2026112308", "a_20261123", "08"]
)
names = st.text("ab01_-./", max_size=6)


@given(templates(), zone_hours, st.data(), names)
def test_key_of_an_hour_gives_the_hour_and_captures(
    text: str, zone_hour: tuple[str, datetime], data: st.DataObject, name: str
) -> None:
    zone, hour = zone_hour
    template = RawTemplate.parse(text, zone)
    values = {capture: data.draw(plain_values) for capture in template.captures}
    assert (template.labels(hour) == ()) == (template.why_empty(hour) is not None)
    for text in _texts(template, hour, values):
        assert template.match(text + name) == (hour, tuple(values.values()), name)


@given(templates(), zone_hours, st.data(), names, st.integers(0, 60), st.sampled_from("a0/_"))
def test_matching_key_is_a_key_of_one_hour_only(
    text: str, zone_hour: tuple[str, datetime], data: st.DataObject, name: str, place: int, character: str
) -> None:
    zone, hour = zone_hour
    template = RawTemplate.parse(text, zone)
    values = {capture: data.draw(plain_values | odd_values) for capture in template.captures}
    keys = [text + name for text in _texts(template, hour, values)]
    for key in [*keys, *(key[:place] + character + key[place + 1 :] for key in keys)]:
        match = template.match(key)
        if match is None:
            continue
        found = dict(zip(template.captures, match.captures, strict=True))
        texts = {
            other: [text + match.name for text in _texts(template, other, found)]
            for other in (match.hour + timedelta(hours=hours) for hours in (-25, -24, *range(-4, 5), 24, 25))
        }
        assert [other for other in texts if key in texts[other]] == [match.hour]
        prefixes = template.prefixes(match.hour, found)
        assert any(key.startswith(prefix) for prefix in prefixes)


@given(templates(), zone_hours, st.data(), st.lists(names, min_size=2, max_size=4))
def test_lookup_finds_what_match_finds(
    text: str, zone_hour: tuple[str, datetime], data: st.DataObject, endings: list[str]
) -> None:
    zone, hour = zone_hour
    template = RawTemplate.parse(text, zone)
    find = template.lookup(lambda match: (match.hour, match.captures))
    groups = [
        {capture: data.draw(plain_values | odd_values) for capture in template.captures} for _ in range(2)
    ]
    beginnings = [text for group in groups for text in _texts(template, hour, group)]
    for key in [
        *beginnings,
        *(one[:-1] for one in beginnings),
        *(one + end for one in beginnings for end in endings),
    ]:
        match, found = template.match(key), find(key)
        expected = match and (len(key) - len(match.name), (match.hour, match.captures))
        assert found == expected


@given(templates(), zone_hours, st.data())
def test_levels_and_prefixes_find_all_keys_of_an_hour(
    text: str, zone_hour: tuple[str, datetime], data: st.DataObject
) -> None:
    zone, hour = zone_hour
    template = RawTemplate.parse(text, zone)
    keys = set()
    for _ in range(4):
        values = {capture: data.draw(plain_values | odd_values) for capture in template.captures}
        for other in (hour + timedelta(hours=hours) for hours in (-24, -1, 0, 1, 24)):
            keys |= {text + "a" for text in _texts(template, other, values)}
    expected = {key for key in keys if (match := template.match(key)) and match.hour == hour}
    found = []
    for expanded in _expand(template, keys, {}):
        for prefix in template.prefixes(hour, expanded):
            found += [key for key in keys if key.startswith(prefix)]
    assert len(found) == len(set(found))
    assert expected <= set(found)


def _expand(template: RawTemplate, keys: set[str], values: Mapping[str, str]) -> list[Mapping[str, str]]:
    """All values of the captures before the date, by listings of ``keys`` with a delimiter."""
    level = template.next_level(values)
    if level is None:
        return [values]
    below = [key.removeprefix(level.prefix) for key in keys if key.startswith(level.prefix)]
    common = {level.prefix + name.partition("/")[0] + "/" for name in below if "/" in name}
    return [
        expanded
        for prefix in common
        if (value := level.value(prefix)) is not None
        for expanded in _expand(template, keys, {**values, level.capture: value})
    ]


def _texts(template: RawTemplate, hour: datetime, values: Mapping[str, str]) -> list[str]:
    """The beginnings of the keys of an hour, for each day that the folder may have."""
    return [
        template.fill(label, values, folder)
        for label in template.labels(hour)
        for folder in template.folder_days(label)
    ]


def _prefixes(template: RawTemplate, hour: datetime, captures: tuple[str, ...]) -> tuple[str, ...]:
    return template.prefixes(hour, dict(zip(template.captures, captures, strict=True)))


AGGREGATED = [
    "s3://bkt/a/{a}/%Y%m%d/%H/",
    "s3://bkt/{a}/{b}/dt=%Y-%m-%d/%H",
    "s3://bkt/%Y%j-{a}/%H-{b}-1/",
    "s3://bkt/{a}-%d/{a}/%m/%Y%H/{b}",
]


@settings(max_examples=50)
@given(st.sampled_from(AGGREGATED), st.lists(st.tuples(zone_hours, odd_values, odd_values), max_size=6))
def test_prefixes_of_hours_and_groups_are_never_inside_another(
    text: str, drawn: list[tuple[tuple[str, datetime], str, str]]
) -> None:
    template = AggregatedTemplate.parse(text)
    prefixes: dict[str, tuple[datetime, tuple[str, ...]]] = {}
    for (_, hour), *values in drawn:
        group = tuple(values[: len(template.captures)])
        prefix = template.render(hour, group)
        assert template.match(prefix + "part") == (hour, group, "part")
        assert prefixes.setdefault(prefix, (hour, group)) == (hour, group)
    ordered = sorted(prefixes)
    assert not any(inner.startswith(outer) for outer, inner in pairwise(ordered))


def test_template_without_captures_is_that_of_layout() -> None:
    """Old streams keep their prefixes."""
    for prefix in ("s3://bkt/raw/app/", "s3://bkt/raw/app", "s3://bkt/"):
        template = RawTemplate.parse(prefix)
        expected = re.sub("^s3://bkt/|/$", "", prefix)
        assert template.prefixes(HOUR, {}) == (f"{expected}/20261123/08/".lstrip("/"),)
        assert template.literal == f"{expected}/".lstrip("/")
