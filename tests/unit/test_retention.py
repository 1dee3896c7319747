"""The figures and rules of docs/RETENTION.md are those of the code."""

import json
import re

import boto3
import pytest
from botocore.validate import ParamValidator

from dev.retention import page
from dev.retention.scenarios import SCENARIOS, YEAR, Scenario, bill_of, daily_costs, load
from include.log_rollup.prices import load_prices

RUN = "run make docs"


def test_page_matches_the_code() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.render(text), RUN


def test_plot_matches_the_code() -> None:
    assert page.PLOT.read_text(encoding="utf-8") == page.render_plot(), RUN


def test_lifecycle_rules_of_the_page_are_valid_for_s3() -> None:
    blocks = re.findall(r"```json\n(.*?)```", page.PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    model = boto3.client("s3", region_name="us-east-1").meta.service_model
    shape = model.operation_model("PutBucketLifecycleConfiguration").input_shape
    parameters = {"Bucket": "my-logs", "LifecycleConfiguration": json.loads(blocks[0])}
    report = ParamValidator().validate(parameters, shape)
    assert not report.has_errors(), report.generate_report()
    # The validator does not compare values with the enumerations of the model.
    assert {rule["Status"] for rule in parameters["LifecycleConfiguration"]["Rules"]} == {"Enabled"}


def test_rules_move_and_delete_no_records() -> None:
    for rule in page.example_rules(load_prices(page.PRICES))["Rules"]:
        assert "Transitions" not in rule or rule["Filter"]["And"]["Tags"]
        assert rule.get("Expiration", {"ExpiredObjectDeleteMarker": True}) == {
            "ExpiredObjectDeleteMarker": True
        }


@pytest.mark.parametrize("scenario", SCENARIOS[:1] + SCENARIOS[-1:], ids=lambda scenario: scenario.label)
def test_sum_of_the_days_is_the_bill_of_the_year(scenario: Scenario) -> None:
    prices = load_prices(page.PRICES)
    assert sum(daily_costs(prices, scenario, YEAR)) == pytest.approx(bill_of(prices, scenario, YEAR).total)


def test_example_is_the_hour_of_the_project() -> None:
    plain = load(False)
    assert (plain.raw.count, plain.parts.count) == (30_000, 497)
    assert plain.raw.size == pytest.approx(30_000 * 550_000, rel=1e-4)
    # Raw objects alone for a year, by hand: each GiB of each hour is stored half a year on average.
    gib = plain.raw.size / 2**30
    bill = bill_of(load_prices(page.PRICES), SCENARIOS[0], YEAR)
    assert bill.raw_storage == pytest.approx(gib * 8760 * 366 / 2 / (365 / 12) * 0.023)
    assert bill.raw_writes == pytest.approx(8760 * 30 * 0.005)
