"""The example's load, and the ways to store it that docs/RETENTION.md compares."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from include.log_rollup.hour.plan import WriteOptions, make_plan
from include.log_rollup.hour.selection import LeftOut
from include.log_rollup.prices import DEEP_ARCHIVE, GLACIER_IR, SMALL_BYTES, STANDARD, Prices
from include.log_rollup.queries.cost import (
    DAYS_PER_MONTH,
    Bill,
    HourlyLoad,
    Sizes,
    Step,
    bill_of_raw_over,
    bill_over,
    cheapest_steps,
    monthly_bill,
    monthly_bill_of_raw,
)
from include.log_rollup.storage.protocol import ObjectInfo
from include.log_rollup.streams import COMPRESSED_PART_SIZE
from include.log_rollup.units import GIB, MIB

OBJECTS = 30_000
SMALLEST_BYTES, LARGEST_BYTES = 100_000, 1_000_000
PART_BYTES = 32 * MIB
# Less than benchmarks/README.md measured for zstd, 12 to 20, and about what gzip reaches for made logs.
RATIO = 6.0
RAW_DAYS = 14
YEAR, PLAN_DAYS = 365, 3 * 365
HOT_DAYS, READABLE_DAYS = 30, 90
# A manifest has about 70 bytes for an object.
MANIFEST_BYTES = 70 * OBJECTS
# Each task packs 1 GiB, reads three records, and writes a receipt every two seconds, for four seconds.
RECORDS_READ, RECEIPTS = 3, 3
# A number that has no factor in common with OBJECTS, so that the sizes come in no order.
_STEP = 7_919


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to store the logs.

    :param label: in the plot
    :param raw_steps: storage classes of raw objects; only without the rollup
    :param raw_days: how long raw objects are kept; None for ever
    """

    title: str
    label: str
    is_rolled_up: bool = True
    is_compressed: bool = False
    is_planned: bool = False
    raw_steps: Sequence[Step] = (Step(STANDARD, 0),)
    raw_days: int | None = RAW_DAYS


SCENARIOS = (
    Scenario("raw objects alone, in STANDARD", "raw objects", is_rolled_up=False),
    Scenario(
        "raw objects alone, to GLACIER_IR after 30 days",
        "raw, GLACIER_IR",
        is_rolled_up=False,
        raw_steps=(Step(STANDARD, 0), Step(GLACIER_IR, 30)),
    ),
    Scenario(
        "raw objects alone, to DEEP_ARCHIVE after 30 days",
        "raw, DEEP_ARCHIVE",
        is_rolled_up=False,
        raw_steps=(Step(STANDARD, 0), Step(DEEP_ARCHIVE, 30)),
    ),
    Scenario("rollup, raw objects kept for ever", "rollup and all raw objects", raw_days=None),
    Scenario(f"rollup, raw objects {RAW_DAYS} days", "rollup"),
    Scenario(
        f"rollup with compression, raw objects {RAW_DAYS} days", "rollup, compressed", is_compressed=True
    ),
    Scenario(f"rollup, raw objects {RAW_DAYS} days, parts archived", "rollup, archived", is_planned=True),
    Scenario(
        f"rollup with compression, raw objects {RAW_DAYS} days, parts archived",
        "rollup, compressed, archived",
        is_compressed=True,
        is_planned=True,
    ),
)


def object_sizes() -> list[int]:
    """Sizes of the raw objects of an hour: evenly spread from 100 KB to 1 MB."""
    span = LARGEST_BYTES - SMALLEST_BYTES
    return [SMALLEST_BYTES + number * _STEP % OBJECTS * span // (OBJECTS - 1) for number in range(OBJECTS)]


@cache
def load(is_compressed: bool) -> HourlyLoad:
    """The example's hour, with the parts that ``plan_hour`` would make."""
    sizes = object_sizes()
    objects = [ObjectInfo(f"{number:05d}.log", size, f'"{number}"') for number, size in enumerate(sizes)]
    size = COMPRESSED_PART_SIZE if is_compressed else PART_BYTES
    parts = [part.size for part in make_plan(objects, LeftOut(), size, WriteOptions()).parts]
    stored = [part / RATIO if is_compressed else float(part) for part in parts]
    shards = round(sum(sizes) / GIB)
    return HourlyLoad(
        raw=_sizes(sizes),
        parts=_sizes(stored),
        records=Sizes(2, MANIFEST_BYTES),
        requests={
            "GET": OBJECTS,
            "PUT": len(parts),
            "GetObject": RECORDS_READ * shards,
            "PutObject": RECEIPTS * shards,
        },
    )


def _sizes(sizes: Sequence[float]) -> Sizes:
    small = [size for size in sizes if size < SMALL_BYTES]
    return Sizes(len(sizes), sum(sizes), len(small), sum(small))


def steps_of(prices: Prices, scenario: Scenario) -> Sequence[Step]:
    """The storage classes of the parts: planned ones are those that ``log-rollup cost --plan 3y`` proposes."""
    if not scenario.is_planned:
        return (Step(STANDARD, 0),)
    return cheapest_steps(
        prices, load(scenario.is_compressed), days=PLAN_DAYS, hot_days=HOT_DAYS, readable_days=READABLE_DAYS
    )


def bill_of(prices: Prices, scenario: Scenario, days: int) -> Bill:
    """The bill of the first days."""
    if not scenario.is_rolled_up:
        return bill_of_raw_over(prices, load(False), scenario.raw_steps, days)
    return bill_over(
        prices, load(scenario.is_compressed), steps_of(prices, scenario), days, scenario.raw_days
    )


def daily_costs(prices: Prices, scenario: Scenario, days: int) -> list[float]:
    """What each of the first days costs."""
    found = []
    steps = steps_of(prices, scenario)
    for day in range(1, days + 1):
        if scenario.is_rolled_up:
            bill = monthly_bill(
                prices, load(scenario.is_compressed), steps, age_days=day, raw_days=scenario.raw_days
            )
        else:
            bill = monthly_bill_of_raw(prices, load(False), scenario.raw_steps, age_days=day)
        found.append(bill.total / DAYS_PER_MONTH)
    return found
