"""Figures of the command cost, compared with ones calculated by hand from include/prices.yaml."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from botocore.validate import ParamValidator
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup import limits
from include.log_rollup.errors import ConfigurationError, NotFoundError
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.prices import COMPARED_CLASSES, RULES, load_prices
from include.log_rollup.queries.cost import (
    Bill,
    HourlyLoad,
    Sizes,
    Step,
    bill_over,
    class_costs,
    lifetime_cost,
    monthly_bill,
    monthly_bill_of_raw,
    plan_storage,
    storage_cost,
)
from include.log_rollup.queries.cost_report import kept_of
from include.log_rollup.queries.hourly_load import average_load, measure_load
from include.log_rollup.queries.lifecycle import lifecycle_rules, terraform
from include.log_rollup.queries.status import read_hours
from include.log_rollup.units import GIB, KIB, MIB
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import MANIFEST, MARKER, make_stream, produce, run_hour
from tests.support.raw_hours import AGGREGATED, HOUR

PRICES = load_prices()
# 1 GiB an hour: 1,024 raw objects of 1 MiB, packed into 32 parts of 32 MiB without compression.
LOAD = HourlyLoad(
    raw=Sizes(1024, GIB), parts=Sizes(32, GIB), records=Sizes(2, MIB), requests={"GET": 1024, "PUT": 40}
)
YEAR = 365.0
MONTH = YEAR / 12
STANDARD_STEP = (Step("STANDARD", 0),)


def test_storage_of_a_gib_for_a_month_costs_the_list_price() -> None:
    found = {name: storage_cost(PRICES, Sizes(1, GIB), name, MONTH) for name in COMPARED_CLASSES}
    archive = 32 * KIB / GIB, 8 * KIB / GIB * 0.023
    assert found == pytest.approx(
        {
            "STANDARD": 0.023,
            "STANDARD_IA": 0.0125,
            "ONEZONE_IA": 0.01,
            # 30 of 30.4167 days in the first tier, the rest in the second; monitoring of one object.
            "INTELLIGENT_TIERING": (0.023 * 30 + 0.0125 * (MONTH - 30)) / MONTH + 0.0025 / 1000,
            "GLACIER_IR": 0.004,
            "GLACIER": 0.0036 * (1 + archive[0]) + archive[1],
            "DEEP_ARCHIVE": 0.00099 * (1 + archive[0]) + archive[1],
        }
    )


def test_a_year_of_tiering_takes_three_prices() -> None:
    found = storage_cost(PRICES, Sizes(1, GIB), "INTELLIGENT_TIERING", YEAR)
    # 30 days at 0.023, 60 at 0.0125, 275 at 0.004, each for a month of 30.4167 days; 12 months of monitoring.
    assert found == pytest.approx((30 * 0.023 + 60 * 0.0125 + 275 * 0.004) * 12 / 365 + 12 * 0.0025 / 1000)
    small = Sizes(1, 100 * KIB, 1, 100 * KIB)
    assert storage_cost(PRICES, small, "INTELLIGENT_TIERING", YEAR) == pytest.approx(
        12 * 100 * KIB / GIB * 0.023
    )


def test_objects_below_128_kb_are_billed_as_such() -> None:
    # 8,192 objects of 64 KiB are 0.5 GiB, billed as 1 GiB.
    small = Sizes(8192, GIB / 2, 8192, GIB / 2)
    for name, price in {"STANDARD_IA": 0.0125, "ONEZONE_IA": 0.01, "GLACIER_IR": 0.004}.items():
        assert storage_cost(PRICES, small, name, MONTH) == pytest.approx(price)
    assert storage_cost(PRICES, small, "STANDARD", MONTH) == pytest.approx(0.023 / 2)


def test_archived_objects_have_an_overhead_of_40_kb() -> None:
    # 32,768 objects of 32 KiB: 1 GiB, another GiB of archive index, and 0.25 GiB in STANDARD.
    small = Sizes(32768, GIB, 32768, GIB)
    assert storage_cost(PRICES, small, "GLACIER", MONTH) == pytest.approx(2 * 0.0036 + 0.25 * 0.023)
    assert storage_cost(PRICES, small, "DEEP_ARCHIVE", MONTH) == pytest.approx(2 * 0.00099 + 0.25 * 0.023)


@pytest.mark.parametrize(
    ("name", "billed_days"),
    [("STANDARD", 10), ("STANDARD_IA", 30), ("GLACIER_IR", 90), ("GLACIER", 90), ("DEEP_ARCHIVE", 180)],
)
def test_early_deletion_is_billed_to_the_minimum_duration(name: str, billed_days: int) -> None:
    ended = storage_cost(PRICES, Sizes(1, GIB), name, 10, are_removed=True)
    assert ended == pytest.approx(storage_cost(PRICES, Sizes(1, GIB), name, billed_days))
    kept = storage_cost(PRICES, Sizes(1, GIB), name, 10)
    assert kept == pytest.approx(ended * 10 / billed_days)


def test_bill_of_a_month_is_as_calculated_by_hand() -> None:
    bill = monthly_bill(PRICES, LOAD, STANDARD_STEP, age_days=YEAR, raw_days=10)
    # 240 GiB of raw objects, 8,760 GiB of parts, 8,760 MiB of records.
    expected = Bill(
        raw_writes=730 * 1.024 * 0.005,
        raw_storage=240 * 0.023,
        # 1,024 GETs; 8 PUTs besides the parts, 8 of records, 4 LISTs of 1.024 pages; 32 PUTs of parts.
        rollup_requests=730 * (1.024 * 0.0004 + (8 + 8 + 4 * 1.024) / 1000 * 0.005 + 0.032 * 0.005),
        part_storage=8760 * 0.023,
        record_storage=8760 / 1024 * 0.023,
    )
    assert bill.total == pytest.approx(expected.total)
    assert bill.part_storage == pytest.approx(201.48)
    assert bill.raw_storage == pytest.approx(5.52)
    without = monthly_bill_of_raw(PRICES, LOAD, age_days=YEAR)
    assert without.total == pytest.approx(8760 * 0.023 + 730 * 1.024 * 0.005)


def test_classes_of_parts_are_billed_as_calculated_by_hand() -> None:
    found = {cost.storage_class: cost for cost in class_costs(PRICES, LOAD, COMPARED_CLASSES, [30, 365], 0)}
    deep = found["DEEP_ARCHIVE"]
    # Parts of 30 days are billed for 180: 4,320 GiB, and 40 KiB for each of 138,240 parts.
    storage = 4320 * (1 + 32 * 32 * KIB / GIB) * 0.00099 + 138240 * 8 * KIB / GIB * 0.023
    assert deep.months[30].part_storage == pytest.approx(storage)
    assert deep.months[365].part_storage == pytest.approx(storage * 365 / 180)
    assert deep.write == deep.transition == pytest.approx(730 * 0.032 * 0.05)
    assert deep.raw_transition == pytest.approx(730 * 1.024 * 0.05)
    assert deep.overhead_bytes == 32 * 40 * KIB
    assert deep.read_hour == pytest.approx(0.02 + 0.032 * (0.0004 + 0.1))
    assert found["STANDARD"].transition == 0
    assert found["STANDARD_IA"].read_hour == pytest.approx(0.01 + 0.032 * 0.001)


def test_steps_are_billed_one_after_the_other() -> None:
    steps = (Step("STANDARD", 0), Step("GLACIER_IR", 30), Step("DEEP_ARCHIVE", 120))
    sizes = Sizes(33, GIB + 64 * KIB, 1, 64 * KIB)
    found = lifetime_cost(PRICES, sizes, steps, YEAR)
    # The small object stays in STANDARD.
    expected = (64 * KIB / GIB * 0.023 * 365 + 0.023 * 30 + 0.004 * 90) * 12 / 365
    expected += storage_cost(PRICES, Sizes(32, GIB), "DEEP_ARCHIVE", 245)
    assert found.storage == pytest.approx(expected)
    assert found.transitions == pytest.approx(0.032 * (0.02 + 0.05))
    assert lifetime_cost(PRICES, sizes, steps, 30).transitions == 0
    assert lifetime_cost(PRICES, sizes, steps, 31).transitions == pytest.approx(0.032 * 0.02)


def test_plan_is_as_calculated_by_hand() -> None:
    plan = plan_storage(PRICES, LOAD, days=1095, hot_days=30, readable_days=90, raw_days=14)
    assert plan.steps == (Step("STANDARD", 0), Step("GLACIER_IR", 30), Step("DEEP_ARCHIVE", 120))
    archived = (975 * 12 / 365) * ((1 + 32 * 32 * KIB / GIB) * 0.00099 + 32 * 8 * KIB / GIB * 0.023)
    assert plan.part.storage == pytest.approx((30 * 0.023 + 90 * 0.004) * 12 / 365 + archived)
    assert plan.part.transitions == pytest.approx(0.032 * 0.07)
    assert plan.raw.total == pytest.approx(36 * 0.023)
    # 24 GiB a day for 1,095 days: each day's GiB is stored until the end.
    gib_days = 24 * sum(range(1, 1096))
    assert plan.raw_bill.raw_storage == pytest.approx(gib_days * 12 / 365 * 0.023)
    raw_gib_days = 24 * (sum(range(1, 15)) + 1081 * 14)
    assert plan.bill.raw_storage == pytest.approx(raw_gib_days * 12 / 365 * 0.023)


@pytest.mark.parametrize(
    ("days", "hot", "readable", "classes"),
    [
        (20, 0, 0, ["STANDARD"]),
        (59, 0, 0, ["STANDARD"]),
        (90, 0, 90, ["GLACIER_IR"]),
        (120, 0, 0, ["GLACIER"]),
        (365, 0, 0, ["DEEP_ARCHIVE"]),
        (75, 30, 75, ["STANDARD", "STANDARD_IA"]),
        (365, 30, 60, ["GLACIER_IR", "DEEP_ARCHIVE"]),
        (365, 30, 365, ["GLACIER_IR"]),
        (365, 365, 365, ["STANDARD"]),
    ],
)
def test_plan_respects_times_and_minimum_durations(
    days: int, hot: int, readable: int, classes: list[str]
) -> None:
    plan = plan_storage(PRICES, LOAD, days=days, hot_days=hot, readable_days=readable)
    assert [step.storage_class for step in plan.steps][-len(classes) :] == classes


@pytest.mark.parametrize(
    ("first", "unsupported"),
    [("ONEZONE_IA", {"STANDARD_IA", "GLACIER_IR"}), ("INTELLIGENT_TIERING", {"STANDARD_IA"})],
)
def test_plan_uses_only_moves_that_s3_supports(first: str, unsupported: set[str]) -> None:
    for days in (60, 100, 200, 400):
        plan = plan_storage(PRICES, LOAD, days=days, hot_days=0, readable_days=days, first_class=first)
        assert not unsupported & {step.storage_class for step in plan.steps}
        plan = plan_storage(PRICES, LOAD, days=days, hot_days=0, readable_days=0, first_class=first)
        assert not unsupported & {step.storage_class for step in plan.steps}


@settings(max_examples=50)
@given(
    st.integers(1, 1000), st.integers(0, 400), st.integers(0, 1000), st.sampled_from([*RULES]),
    st.integers(1, 5000), st.floats(1.0, 1e9), st.floats(0.0, 1.0),
)  # fmt: skip
def test_plan_is_never_dearer_and_never_too_early(
    days: int, hot: int, readable: int, first: str, count: int, size: float, small: float
) -> None:
    sizes = Sizes(count, count * size, count * small, count * small * min(size, 1000.0))
    plan = plan_storage(
        PRICES,
        HourlyLoad(LOAD.raw, sizes),
        days=days,
        hot_days=hot,
        readable_days=readable,
        first_class=first,
    )
    assert plan.part.total <= lifetime_cost(PRICES, sizes, (Step(first, 0),), days).total
    ends = [step.from_day for step in plan.steps[1:]] + [days]
    for number, (step, end) in enumerate(zip(plan.steps, ends, strict=True)):
        assert number == 0 or end - step.from_day >= RULES[step.storage_class].minimum_days
        assert number == 0 or step.from_day >= max(hot, RULES[step.storage_class].least_age_days)
        assert number == 0 or not RULES[step.storage_class].is_archive or step.from_day >= readable


@given(st.floats(1, 3000), st.floats(0, 500), st.sampled_from(COMPARED_CLASSES))
def test_longer_storage_never_costs_less(days: float, more: float, name: str) -> None:
    sizes = Sizes(10, 10 * MIB, 5, 100 * KIB)
    assert storage_cost(PRICES, sizes, name, days) <= storage_cost(PRICES, sizes, name, days + more)


def test_bill_over_a_time_is_the_sum_of_its_months() -> None:
    steps = (Step("STANDARD", 0), Step("DEEP_ARCHIVE", 90))
    whole = bill_over(PRICES, LOAD, steps, 365, raw_days=14)
    # A month's bill grows from day to day; the sum over the days is that of the year.
    days = [monthly_bill(PRICES, LOAD, steps, age_days=age, raw_days=14) for age in range(1, 366)]
    assert whole.total == pytest.approx(sum(day.total for day in days) * 12 / 365)


# -- measuring -----------------------------------------------------------------------------------------------


def test_load_is_measured_from_markers_and_manifests() -> None:
    store, stream = FakeStore(), make_stream(part_size=300 * KIB, shard_size=600 * KIB)
    produce(store, {"a.log": b"a" * 200 * KIB, "b.log": b"b" * 100 * KIB, "c.log": b"c" * 10})
    run_hour(store, stream)
    hours = [HOUR - timedelta(hours=1), HOUR]
    measured = measure_load(store, stream, hours)
    assert (measured.hours, measured.incomplete, measured.sampled) == ([HOUR], 1, [HOUR])
    load = measured.load
    assert load.raw == Sizes(3, 300 * KIB + 10, 2, 100 * KIB + 10)
    assert load.parts == Sizes(2, 300 * KIB + 10, 1, 10)
    assert load.records == Sizes(2, len(store.body(MANIFEST)) + len(store.body(MARKER)))
    assert load.requests["GET"] >= 3
    assert load.ratio == 1.0


def test_hours_are_averaged_and_small_objects_scaled() -> None:
    store, stream = FakeStore(), make_stream()
    produce(store, {"a.log": b"a" * 60})
    run_hour(store, stream)
    (summary,) = read_hours(store, stream, [HOUR])
    empty = {
        **(summary.marker or {}),
        "objects": 0,
        "bytes_in": 0,
        "parts": 0,
        "bytes_out": 0,
        "requests": {},
    }
    other = type(summary)(HOUR + timedelta(hours=1), summary.state, empty)
    measured = average_load([summary, other])
    # Without a manifest, the average says whether objects are small.
    assert measured.load.raw == Sizes(0.5, 30.0, 0.5, 30.0)
    assert measured.load.parts.count == 0.5
    assert measured.sampled == []


def test_unreadable_manifest_is_left_out_of_the_sample() -> None:
    store, stream = FakeStore(), make_stream()
    produce(store, {"a.log": b"a" * 60})
    run_hour(store, stream)
    store.produce(MANIFEST, gzip.compress(b"{}\n"))
    assert measure_load(store, stream, [HOUR]).sampled == []
    store.vanish(MANIFEST)
    assert measure_load(store, stream, [HOUR]).sampled == []


def test_number_of_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store, stream = FakeStore(), make_stream()
    asked: list[datetime] = []

    def read_nothing(
        _store: object, _stream: object, hours: list[datetime], *, expired: bool
    ) -> list[object]:
        assert not expired
        asked.extend(hours)
        return []

    monkeypatch.setattr("include.log_rollup.queries.hourly_load.read_hours", read_nothing)
    hours = [HOUR + timedelta(hours=number) for number in range(5000)]
    with pytest.raises(NotFoundError, match=r"no hour of 2026-11-23T08:00:00Z to .* is complete"):
        measure_load(store, stream, hours)
    assert len(asked) == limits.COST_MARKER_REQUESTS == len(set(asked))
    assert (asked[0], asked[-1]) == (hours[0], hours[-1])


def test_hours_that_are_not_read_do_not_count_as_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    store, stream = FakeStore(), make_stream()
    produce(store, {"a.log": b"a" * 60})
    run_hour(store, stream)
    monkeypatch.setattr(limits, "COST_MARKER_REQUESTS", 3)
    measured = measure_load(store, stream, [HOUR + timedelta(hours=number) for number in range(10)])
    assert (measured.hours, measured.incomplete, measured.skipped) == ([HOUR], 2, 7)


@pytest.mark.parametrize(
    ("expire_raw", "asked", "kept"),
    [
        (None, None, (None, "")),
        (None, 7.0, (7.0, "--keep-raw")),
        (ExpireRaw(after=timedelta(days=14), mode="delete"), None, (14.0, "expire_raw")),
        (ExpireRaw(after=timedelta(days=14), mode="delete"), 30.0, (30.0, "--keep-raw")),
        (ExpireRaw(after=timedelta(days=14), mode="report"), None, (None, "")),
    ],
)
def test_raw_objects_are_kept_as_expire_raw_or_the_option_says(
    expire_raw: ExpireRaw | None, asked: float | None, kept: tuple[float | None, str]
) -> None:
    stream = make_stream(expire_raw=expire_raw)
    found = kept_of(stream, stream.start + timedelta(days=20), asked, "--keep-raw")
    assert (found.raw_days, found.raw_reason) == kept
    assert found.age_days == 20
    assert kept_of(stream, stream.start - timedelta(days=1)).age_days == 0


# -- lifecycle rules -----------------------------------------------------------------------------------------

STEPS = (Step("STANDARD", 0), Step("GLACIER_IR", 30), Step("DEEP_ARCHIVE", 120))


@pytest.mark.parametrize("tags", [{}, {"team": "search", "cost-center": "42"}])
def test_lifecycle_is_valid_for_s3(tags: dict[str, str]) -> None:
    stream = make_stream(tags=tags)
    configuration = lifecycle_rules(stream, STEPS)
    model = boto3.client("s3", region_name="us-east-1").meta.service_model
    shape = model.operation_model("PutBucketLifecycleConfiguration").input_shape
    report = ParamValidator().validate({"Bucket": "logs", "LifecycleConfiguration": configuration}, shape)
    assert not report.has_errors(), report.generate_report()
    (rule,) = configuration["Rules"]
    named = {tag["Key"]: tag["Value"] for tag in rule["Filter"]["And"]["Tags"]}
    assert named == (tags or {"log-rollup": "part"})
    assert rule["Filter"]["And"]["Prefix"] == AGGREGATED[: AGGREGATED.index("app/") + 4]
    assert rule["Transitions"] == [
        {"Days": 30, "StorageClass": "GLACIER_IR"},
        {"Days": 120, "StorageClass": "DEEP_ARCHIVE"},
    ]
    classes = model.shape_for("TransitionStorageClass").enum
    assert {transition["StorageClass"] for transition in rule["Transitions"]} <= set(classes)


def test_plan_without_moves_needs_no_rule() -> None:
    assert lifecycle_rules(make_stream(), STANDARD_STEP) == {"Rules": []}


def test_terraform_has_the_same_rule() -> None:
    stream = make_stream(tags={"team": 'a"${b}%{c}'})
    lines = terraform("logs", lifecycle_rules(stream, STEPS))
    text = "\n".join(lines)
    assert text.count("{") - text.count("$${b}") - text.count("%%{c}") == text.count("}") - 2
    assert '          "team" = "a\\"$${b}%%{c}"' in lines
    assert '        prefix                   = "aggregated/app/"' in lines
    assert "        object_size_greater_than = 131071" in lines
    assert "      days          = 120" in lines


# -- the price file ------------------------------------------------------------------------------------------

HEAD = "as_of: 2026-01-01\nregion: x\ncurrency: USD\nsource: y\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "the prices are not YAML"),
        ("as_of: 2026-13-45", "the prices are not YAML"),
        ("- 1", "the prices are not right"),
        (HEAD + "region: z\n", "key 'region' is given twice, in line 2 and in line 5; remove one"),
        (HEAD + "classes: {}", "classes: STANDARD, .* missing"),
        (HEAD + "classes: {STANDARD: {storage: -1, put: 0, get: 0}}", r"classes.STANDARD.storage: .*greater"),
        (HEAD + "classes: {STANDARD: {storage: yes, put: 0, get: 0}}", r"classes.STANDARD.storage: "),
        (HEAD + "classes: {EXPRESS: {storage: 1, put: 0, get: 0}}", "classes.EXPRESS"),
        ("as_of: today\n", "as_of: "),
    ],
)
def test_wrong_price_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as error:
        load_prices(path)
    assert str(path) in str(error.value)


def test_missing_price_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOG_ROLLUP_PRICES", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigurationError, match="LOG_ROLLUP_PRICES or --prices has to name a readable file"):
        load_prices()


def test_shipped_prices_are_dated_and_have_a_source() -> None:
    assert PRICES.as_of.year >= 2026
    assert PRICES.source.startswith("https://aws.amazon.com/")
    assert json.dumps(PRICES.model_dump(mode="json"))
    assert datetime.now(UTC).date() >= PRICES.as_of
