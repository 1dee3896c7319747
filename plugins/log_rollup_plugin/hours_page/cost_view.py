"""What a stream costs a month, calculated from the complete hours of the month that the page shows."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.prices import load_prices
from include.log_rollup.queries.cost_report import current_cost, kept_of
from include.log_rollup.queries.hourly_load import average_load
from include.log_rollup.queries.status import HourStatus, HourSummary
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CostFigures:
    """The bill of the present month, in ``currency``.

    :param raw: storage of raw objects
    :param parts: storage of parts
    :param requests: those of the producers and of the rollup
    :param total: all of it
    :param without: the bill without the rollup
    :param hours: number of complete hours from which it was measured
    :param raw_days: how long raw objects are kept; None for ever
    """

    currency: str
    raw: float
    parts: float
    requests: float
    total: float
    without: float
    hours: int
    first: str
    last: str
    raw_days: float | None
    region: str
    as_of: date


@dataclass(frozen=True, slots=True)
class CostView:
    """The card of costs.

    :param problem: why there are no figures; empty if there are
    """

    figures: CostFigures | None
    problem: str = ""


def cost_view(stream: Stream, hours: Iterable[HourSummary], now: datetime) -> CostView | None:
    """The card; None if no hour with objects is complete.

    :param hours: of the month, in order, as far as they have been read
    """
    complete = [hour for hour in hours if hour.state is HourStatus.COMPLETE]
    if not any((hour.marker or {}).get("objects") for hour in complete):
        return None
    try:
        prices = load_prices()
    except ConfigurationError as error:
        log.error("the page Hours cannot show costs: %s", error)
        return CostView(None, str(error))
    # Without manifests, records count as nothing; they are less than a thousandth of the bytes.
    measured = average_load(complete)
    found = current_cost(measured, prices, stream, kept_of(stream, now))
    bill = found.now
    return CostView(
        CostFigures(
            currency=prices.currency,
            raw=bill.raw_storage,
            parts=bill.part_storage,
            requests=bill.raw_writes + bill.rollup_requests,
            total=bill.total,
            without=found.without.total,
            hours=len(complete),
            first=format_hour(complete[0].hour),
            last=format_hour(complete[-1].hour),
            raw_days=found.kept.raw_days,
            region=prices.region,
            as_of=prices.as_of,
        )
    )
