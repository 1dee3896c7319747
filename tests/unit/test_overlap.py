"""No two templates that could match one key go unnoticed."""

import itertools
import re
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.hour.overlap import find_overlap, overlap
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate, Template
from include.log_rollup.hour.template_syntax import CAPTURE, DIRECTIVE, LITERAL, Element
from tests.unit.strategies import templates, zone_hours


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ("s3://bkt/raw/app", "s3://bkt/raw/app2", None),
        ("s3://bkt/raw/app", "s3://bkt2/raw/app", None),
        ("s3://bkt/raw/app", "s3://bkt/raw/app", "raw/app/20261123/08/"),
        ("s3://bkt/raw/app", "s3://bkt/raw/{service}", "raw/app/20261123/08/"),
        ("s3://bkt/raw/app/{b}", "s3://bkt/raw/{service}", None),
        ("s3://bkt/raw/{a}/{b}", "s3://bkt/{a}/{b}/app", "raw/x/app/20261123/08/"),
        ("s3://bkt/raw", "s3://bkt/raw/%Y%m%d/%H/sub/%Y%m%d/%H/", "raw/20261123/08/sub/20261123/08/"),
        ("s3://bkt/raw/20261123/08", "s3://bkt/raw", "raw/20261123/08/20261123/08/"),
        ("s3://bkt/%Y%m%d%H", "s3://bkt/%Y/%m%d%H", None),
        ("s3://bkt/%Y%m%d%H-a{b}_", "s3://bkt/%Y%m%d%H-{b}a_", "2026112308-aa_"),
        ("s3://bkt/%Y%m%d%H-a{b}a_", "s3://bkt/%Y%m%d%H-a{b}b_", "2026112308-axa_b_"),
        ("s3://bkt/%Y%m%d%H-a{b}a/", "s3://bkt/%Y%m%d%H-a{b}b/", None),
        # Dates and repeated captures are not compared.
        ("s3://bkt/%Y%m%d/%H/", "s3://bkt/%Y%d%m/%H/", "20261123/08/"),
        ("s3://bkt/{a}/{a}", "s3://bkt/x/y", "x/y/20261123/08/"),
    ],
)
def test_common_key_is_found(one: str, other: str, key: str | None) -> None:
    assert overlap(RawTemplate.parse(one), RawTemplate.parse(other)) == key
    found = overlap(RawTemplate.parse(other), RawTemplate.parse(one))
    assert (found is None) == (key is None)


def test_raw_below_aggregated_or_home_is_found() -> None:
    aggregated = AggregatedTemplate.parse("s3://bkt/agg/{a}/")
    home = aggregated.home_template("app")
    assert overlap(RawTemplate.parse("s3://bkt/agg/x/"), aggregated) == "agg/x/20261123/08/"
    assert overlap(RawTemplate.parse("s3://bkt/agg/_hours/{a}/"), aggregated) is None
    assert overlap(RawTemplate.parse("s3://bkt/agg/_hours/{a}/"), home) == "agg/_hours/app/20261123/08/"
    assert overlap(RawTemplate.parse("s3://bkt/agg/{a}/{b}/"), home) == "agg/_hours/app/20261123/08/"


def test_exempt_pair_does_not_hide_another() -> None:
    chain = [RawTemplate.parse(f"s3://bkt/{text}") for text in ("{a}", "{b}", "x")]
    found = find_overlap(chain, exempt=[(0, 1)])
    assert found is not None
    assert found.other == 2
    assert find_overlap(chain, exempt=[(0, 1), (0, 2), (1, 2)]) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "s3://bkt/raw/app{number}/",
        "s3://bkt/raw/{{a}}/{{b}}/app{number}/",
        "s3://bkt/{{a}}/{number}x{{b}}y/",
        "s3://bkt/E{number}.%Y-%m-%d-%H.",
        "s3://bkt/%Y/%m/%d/app{number}_{{a}}_%H_",
    ],
)
def test_thousand_templates_take_less_than_a_second(pattern: str) -> None:
    parsed = [RawTemplate.parse(pattern.format(number=f"{number:04}")) for number in range(1000)]
    start = time.process_time()
    assert find_overlap(parsed) is None
    assert time.process_time() - start < 1


def test_first_overlap_in_a_thousand_is_found() -> None:
    parsed = [RawTemplate.parse(f"s3://bkt/{{a}}/app{number}/") for number in range(1000)]
    found = find_overlap([*parsed, RawTemplate.parse("s3://bkt/x/app500/")])
    assert found == (500, 1000, "x/app500/20261123/08/")


@given(templates(), templates(), zone_hours, st.data())
def test_key_of_two_templates_is_never_missed(
    one: str, other: str, zone_hour: tuple[str, datetime], data: st.DataObject
) -> None:
    first, second = RawTemplate.parse(one), RawTemplate.parse(other)
    key = overlap(first, second)
    if key is not None:
        assert re.match(_naive(first), key)
        assert re.match(_naive(second), key)
    values = {name: data.draw(st.text("ab01_-.", min_size=1)) for name in first.captures}
    _, hour = zone_hour
    sample = first.fill(hour, values) + data.draw(st.text("ab01_-./", max_size=20))
    if second.match(sample):
        assert key is not None


def _naive(template: Template) -> str:
    """The template as a regular expression, without any agreement of its parts."""
    widths = {"%Y": 4, "%j": 3}
    return "".join(
        {LITERAL: re.escape(value), CAPTURE: "[^/]+", DIRECTIVE: f"[0-9]{{{widths.get(value, 2)}}}"}[kind]
        for kind, value, _ in template.elements
    )


_elements = st.one_of(
    st.text("a1/", min_size=1, max_size=2).map(lambda text: Element(LITERAL, text, 0)),
    st.just(Element(CAPTURE, "c", 0)),
    st.just(Element(DIRECTIVE, "%H", 0)),
)
_short_templates = st.lists(_elements, min_size=1, max_size=3).map(
    lambda elements: Template("", "bkt", tuple(elements))
)
_KEYS = ["".join(letters) for length in range(8) for letters in itertools.product("a1/", repeat=length)]


@given(_short_templates, _short_templates)
def test_overlap_agrees_with_all_keys_of_a_small_alphabet(one: Template, other: Template) -> None:
    patterns = [re.compile(_naive(one)), re.compile(_naive(other))]
    key = overlap(one, other)
    if key is None:
        assert not any(all(pattern.match(key) for pattern in patterns) for key in _KEYS)
    else:
        assert all(pattern.match(key) for pattern in patterns)
