"""A key belongs to one hour and group by its stream's template, and the hour's prefixes cover the key."""

from datetime import UTC, datetime

import pytest

from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "key", "captures", "name"),
    [
        ("s3://bkt/raw/app", "raw/app/20261123/08/x/y.log", (), "x/y.log"),
        ("s3://bkt/raw/{service}", "raw/billing/20261123/08/a", ("billing",), "a"),
        ("s3://bkt/t={t}.d/%y%j/%H", "t=x.d/26327/08/a", ("x",), "/a"),
        ("s3://bkt/%%{{a}}/%Y%m%d/%H/", "%{a}/20261123/08/", (), ""),
    ],
)
def test_key_gives_hour_captures_and_name(text: str, key: str, captures: tuple[str], name: str) -> None:
    assert RawTemplate.parse(text).match(key) == (HOUR, captures, name)


def test_home_is_apart_from_the_groups() -> None:
    assert AggregatedTemplate.parse("s3://bkt/agg/{a}").home("app", HOUR) == "agg/_hours/app/20261123/08/"
    assert AggregatedTemplate.parse("s3://bkt/agg").home("app", HOUR) == "agg/20261123/08/"
