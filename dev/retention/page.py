"""Writes the generated sections of docs/RETENTION.md and its plot.

``python -m dev.retention`` replaces what is between the comments ``begin`` and ``end`` of a section. A test fails
if the page and the code differ.
"""

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from textwrap import fill
from typing import Any

from dev.retention.plot import cumulative_plot
from dev.retention.scenarios import (
    RATIO,
    SCENARIOS,
    YEAR,
    bill_of,
    daily_costs,
    load,
    object_sizes,
    steps_of,
)
from include.log_rollup.prices import Prices, load_prices
from include.log_rollup.queries.lifecycle import lifecycle_rules, terraform
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "RETENTION.md"
PLOT = ROOT / "docs" / "images" / "retention-cost.svg"
PRICES = ROOT / "include" / "prices.yaml"
NONCURRENT_DAYS = 7
_SECTION = re.compile(r"(<!-- begin (?P<name>\w+)[^>]*-->\n)(?s:.*?)(<!-- end -->)")
_EVERY_DAYS = 5
_WIDTH = 120
_COLUMNS = ("first year", "of it raw objects", "parts", "requests", "the 12th month", "three years")


def render(page: str) -> str:
    """The page with its generated sections as the code has them now.

    :param page: its present text
    """
    prices = load_prices(PRICES)
    sections = {
        "load": _load(prices),
        "year": _year(prices),
        "rules": _rules(prices),
        "terraform": _terraform(prices),
    }
    return _SECTION.sub(lambda match: f"{match[1]}{sections[match['name']]}\n{match[3]}", page)


def render_plot() -> str:
    """The plot: what has been paid since the first hour."""
    prices = load_prices(PRICES)
    days = [*range(0, YEAR, _EVERY_DAYS), YEAR]
    lines = []
    for scenario in SCENARIOS:
        paid = [0.0, *accumulate(daily_costs(prices, scenario, YEAR))]
        lines.append((scenario.label, [paid[day] for day in days]))
    title = f"{prices.currency} paid since the first hour: 30,000 objects of 100 KB to 1 MB an hour"
    return cumulative_plot(title, days, lines)


def _load(prices: Prices) -> str:
    plain, compressed = load(False), load(True)
    text = (
        f"30,000 raw objects an hour, evenly spread from 100 KB to 1 MB: {format_size(sum(object_sizes()))} in "
        f"{plain.parts.count:,} parts of up to 32 MiB, or with compression (assumed ratio {RATIO:g}) "
        f"{format_size(compressed.parts.size)} in {compressed.parts.count:,} parts. {plain.raw.small:,} raw "
        f"objects are smaller than 128 KB. Prices: {prices.region}, {prices.as_of}, in {prices.currency}."
    )
    return fill(text, _WIDTH)


def _year(prices: Prices) -> str:
    lines = [
        f"| {prices.currency} | {' | '.join(_COLUMNS)} |",
        f"|---|{'--:|' * len(_COLUMNS)}",
    ]
    for scenario in SCENARIOS:
        bill = bill_of(prices, scenario, YEAR)
        before = bill_of(prices, scenario, YEAR - YEAR // 12)
        requests = bill.raw_writes + bill.raw_transitions + bill.rollup_requests + bill.part_transitions
        amounts = (
            bill.total,
            bill.raw_storage,
            bill.part_storage + bill.record_storage,
            requests,
            bill.total - before.total,
            bill_of(prices, scenario, 3 * YEAR).total,
        )
        lines.append(f"| {scenario.title} | " + " | ".join(f"{amount:,.0f}" for amount in amounts) + " |")
    return "\n".join(lines)


def example_stream() -> Stream:
    """The stream of the example rules."""
    return Stream.model_validate(
        {
            "name": "app",
            "raw": "s3://my-logs/raw/app/",
            "aggregated": "s3://my-logs/aggregated/app/",
            "start": "2026-11-24T00:00:00Z",
            "tags": {"log-rollup": "part"},
        }
    )


def example_rules(prices: Prices) -> Mapping[str, Any]:
    """All lifecycle rules of the bucket of the example."""
    stream = example_stream()
    prefixes = {"raw": stream.raw.literal, "aggregated": stream.aggregated.literal}
    rules = list(lifecycle_rules(stream, steps_of(prices, SCENARIOS[-1]))["Rules"])
    rules.append(
        {
            "ID": "log-rollup-app-uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": prefixes["aggregated"]},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
    )
    for name, prefix in prefixes.items():
        rules.append(
            {
                "ID": f"log-rollup-app-old-versions-of-{name}",
                "Status": "Enabled",
                "Filter": {"Prefix": prefix},
                "Expiration": {"ExpiredObjectDeleteMarker": True},
                "NoncurrentVersionExpiration": {"NoncurrentDays": NONCURRENT_DAYS},
            }
        )
    return {"Rules": rules}


def _rules(prices: Prices) -> str:
    return f"```json\n{json.dumps(example_rules(prices), indent=2)}\n```"


def _terraform(prices: Prices) -> str:
    lines = terraform("my-logs", example_rules(prices))
    return "\n".join(["```hcl", *lines, "```"])


def main() -> int:
    """Write the page and the plot."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    PLOT.write_text(render_plot(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and {PLOT.relative_to(ROOT)}")
    return 0
