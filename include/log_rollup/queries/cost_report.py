"""What a stream costs now, in each class and under a plan, with what every figure was measured from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from include.log_rollup.prices import COMPARED_CLASSES, STANDARD, Prices
from include.log_rollup.queries.cost import (
    Bill,
    ClassCost,
    Step,
    class_costs,
    monthly_bill,
    monthly_bill_of_raw,
)
from include.log_rollup.queries.hourly_load import MeasuredLoad
from include.log_rollup.streams import Stream

RETENTIONS_DAYS = (30, 90, 365, 3 * 365, 7 * 365)
"""The retentions that are compared, unless others are asked for."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How long the objects of a stream are kept.

    :param age_days: since the stream's start
    :param raw_days: how long raw objects are kept; None for ever
    :param raw_reason: where that is set; empty for ever
    """

    age_days: float
    raw_days: float | None
    raw_reason: str


@dataclass(frozen=True, slots=True)
class CurrentCost:
    """What a stream costs in this month.

    :param steps: storage classes of the parts; they are written in the first
    :param now: the bill with the rollup
    :param without: the bill without the rollup: raw objects in STANDARD, none deleted
    """

    measured: MeasuredLoad
    prices: Prices
    kept: Kept
    steps: Sequence[Step]
    now: Bill
    without: Bill

    @property
    def saved(self) -> float:
        """What the rollup saves in this month; negative if it costs more."""
        return self.without.total - self.now.total


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a stream costs a month in each storage class.

    :param raw_months: for each retention in days, the bill of a month without the rollup
    """

    classes: Sequence[ClassCost]
    raw_months: Mapping[float, Bill]


def kept_of(stream: Stream, now: datetime, raw_days: float | None = None, reason: str = "") -> Kept:
    """How long a stream's objects are kept: raw objects as ``expire_raw`` says, parts for ever.

    :param raw_days: how long something else keeps raw objects, such as a lifecycle rule
    :param reason: what that is
    """
    age = max(now - stream.start, timedelta()) / timedelta(days=1)
    if raw_days is None:
        expire = stream.expire_raw
        if expire is not None and expire.mode == "delete":
            return Kept(age, expire.after / timedelta(days=1), "expire_raw")
    return Kept(age, raw_days, reason if raw_days is not None else "")


def current_cost(
    measured: MeasuredLoad, prices: Prices, stream: Stream, kept: Kept, moves: Sequence[Step] = ()
) -> CurrentCost:
    """What a stream costs in this month.

    :param moves: how a lifecycle rule of the bucket moves the parts, in order
    """
    steps = (Step(stream.storage_class or STANDARD, 0), *moves)
    load = measured.load
    now = monthly_bill(prices, load, steps, age_days=kept.age_days, raw_days=kept.raw_days)
    without = monthly_bill_of_raw(prices, load, age_days=kept.age_days)
    return CurrentCost(measured, prices, kept, steps, now, without)


def comparison(
    measured: MeasuredLoad, prices: Prices, kept: Kept, retentions: Sequence[float] = RETENTIONS_DAYS
) -> Comparison:
    """What a stream costs in each storage class.

    :param retentions: numbers of days that parts are kept
    """
    load = measured.load
    return Comparison(
        class_costs(prices, load, COMPARED_CLASSES, retentions, kept.raw_days),
        {days: monthly_bill_of_raw(prices, load, age_days=days, raw_days=days) for days in retentions},
    )
