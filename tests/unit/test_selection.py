"""Which objects of a raw hour are packed: include, exclude, and containers."""

from dataclasses import asdict

import pytest

from include.log_rollup.errors import UnsupportedInputError
from include.log_rollup.hour.plan import Plan, WriteOptions, make_plan
from include.log_rollup.hour.selection import InputRules, LeftOut, select
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.storage.protocol import ObjectInfo
from tests.support.hour_in_memory import make_stream
from tests.support.raw_hours import HOUR, RAW, name_of

NAMES = ("web-1/a.log", "web-1/a.log.tmp", "web-2/b.log.gz", "web-2/c.parquet", "x[1].log")


def listed(*names: str, size: int = 10) -> list[ObjectInfo]:
    return [ObjectInfo(RAW + name, size, f"{number:032x}") for number, name in enumerate(sorted(names))]


def chosen_names(rules: InputRules) -> tuple[list[str], LeftOut]:
    chosen, left_out = select(listed(*NAMES), name_of, rules)
    return [item.key.removeprefix(RAW) for item in chosen], left_out


def plan_of(rules: InputRules, *names: str, size: int = 10, part_size: int = 100) -> Plan:
    chosen, left_out = select(listed(*names, size=size), name_of, rules)
    return make_plan(chosen, left_out, part_size, WriteOptions(), unjoinable=rules.unjoinable)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (InputRules(), NAMES),
        (InputRules(include=("*.log",)), ("web-1/a.log", "x[1].log")),
        (InputRules(include=("web-?/*",)), NAMES[:4]),
        (InputRules(include=("web-[2-9]/*",)), ("web-2/b.log.gz", "web-2/c.parquet")),
        (InputRules(include=("x[[]1].log",)), ("x[1].log",)),
        (InputRules(exclude=("*.tmp", "*.parquet")), ("web-1/a.log", "web-2/b.log.gz", "x[1].log")),
        (InputRules(include=("web-1/*",), exclude=("*.tmp",)), ("web-1/a.log",)),
        # The whole name has to match, and case matters.
        (InputRules(include=("a.log", "*.LOG")), ()),
    ],
)
def test_patterns_choose_by_the_name_below_the_hour(rules: InputRules, expected: tuple[str, ...]) -> None:
    names, left_out = chosen_names(rules)
    assert names == list(expected)
    assert left_out == LeftOut(excluded=len(NAMES) - len(expected))


def test_excluded_ready_object_is_the_ready_object() -> None:
    _, left_out = select(listed("DONE", "a.log"), name_of, InputRules("DONE", exclude=("*",)))
    assert left_out == LeftOut(markers=1, excluded=1)


def test_hidden_objects_are_not_input_even_if_included() -> None:
    _, left_out = select(listed("_a.log"), name_of, InputRules(include=("*",)))
    assert left_out == LeftOut(hidden=1)


def test_skipped_containers_are_counted() -> None:
    names, left_out = chosen_names(InputRules(unjoinable="skip"))
    assert "web-2/c.parquet" not in names
    assert left_out == LeftOut(unjoinable=1)


def test_container_that_is_excluded_stops_nothing() -> None:
    assert plan_of(InputRules(exclude=("*.parquet",)), *NAMES).objects == 4


def test_container_stops_planning_by_default() -> None:
    with pytest.raises(UnsupportedInputError, match=r"c\.parquet"):
        plan_of(InputRules(), *NAMES)


def test_each_container_gets_a_part_of_its_own() -> None:
    plan = plan_of(InputRules(unjoinable="copy"), "a.log", "b.log", "c.parquet", "d.parquet", "e.zip")
    assert [(part.encoding, len(part.objects), part.copied) for part in plan.parts] == [
        ("", 2, False),
        (".parquet", 1, False),
        (".parquet", 1, False),
        (".zip", 1, False),
    ]
    assert plan.parts[1].name.endswith(".log.parquet")


def test_large_container_is_copied_by_the_store() -> None:
    (part,) = plan_of(InputRules(unjoinable="copy"), "a.orc", size=101).parts
    assert part.copied


def test_counts_are_shown_and_added() -> None:
    one = LeftOut(hidden=1, excluded=2_000)
    assert str(one) == "1 hidden, 0 folder placeholders, 0 ready objects, 2,000 excluded"
    assert asdict(one + LeftOut(1, 1, 1, 1, 1, 1)) == {
        "hidden": 2, "placeholders": 1, "markers": 1, "excluded": 2_001, "unjoinable": 1, "unmatched": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("s3://logs/raw/%Y%m%d/%H/", {"a.log"}),
        ("s3://logs/raw/%Y%m%d/%H", {"a.log", "_host.log", ".123.gz"}),
        ("s3://logs/raw/%Y%m%d/%H_", {"a.log", "_host.log", ".123.gz"}),
    ],
)
def test_rest_of_a_step_is_not_hidden(template: str, names: set[str]) -> None:
    stream = make_stream(raw=RawTemplate.parse(template))
    paths = stream.at(HOUR)
    base = paths.key_base
    rows = [
        ObjectInfo(base + name, 1, "") for name in (".123.gz", "/.b.log", "/_a/b.log", "_host.log", "a.log")
    ]
    chosen, left_out = select(rows, paths.name_of, stream.input_rules)
    assert {paths.name_of(item.key) for item in chosen} == names
    assert left_out.hidden == len(rows) - len(names)
