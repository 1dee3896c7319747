"""What a stream costs in S3: pure functions from an average hour and prices to amounts of money.

An hour of a stream has the same objects, bytes and requests as the next one, on average. Amounts are floats in the
currency of the price file, and are not rounded. A GB has 2^30 bytes, a month 730 hours, a year 365 days.

Not counted: workers, data transfer, KMS, replication, older versions of objects, reads of parts, and the lower
prices of STANDARD above 50 TB.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, pairwise

from include.log_rollup.prices import (
    DEEP_ARCHIVE,
    GLACIER,
    GLACIER_IR,
    INTELLIGENT_TIERING,
    ONEZONE_IA,
    RULES,
    SMALL_BYTES,
    STANDARD,
    STANDARD_IA,
    ClassPrices,
    Prices,
)
from include.log_rollup.units import GIB

HOURS_PER_DAY = 24
DAYS_PER_YEAR = 365
HOURS_PER_MONTH = HOURS_PER_DAY * DAYS_PER_YEAR / 12
DAYS_PER_MONTH = DAYS_PER_YEAR / 12

# Requests that the completion marker does not count, for each hour: raw is listed twice while it settles, and when
# it is planned and validated. Plan, claim, manifest and marker are written, the last two through a copy.
RAW_LISTINGS = 4
RECORD_WRITES = 8
OBJECTS_PER_LIST = 1000

# A plan moves parts down this list. ONEZONE_IA is left out because its objects are in one zone only, and
# INTELLIGENT_TIERING because its price depends on what is read.
_PLANNED_CLASSES = (STANDARD_IA, GLACIER_IR, GLACIER, DEEP_ARCHIVE)
# Parts may have been written in one of these; lifecycle rules move them to fewer classes.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/lifecycle-transition-general-considerations.html
_MOVED_FROM: Mapping[str, Sequence[str]] = {
    ONEZONE_IA: (GLACIER, DEEP_ARCHIVE),
    INTELLIGENT_TIERING: (GLACIER_IR, GLACIER, DEEP_ARCHIVE),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of objects and their bytes, on average for an hour.

    :param small: how many of them are smaller than 128 KB
    :param small_size: bytes of these
    """

    count: float
    size: float
    small: float = 0.0
    small_size: float = 0.0

    @property
    def large(self) -> "Sizes":
        """Those of at least 128 KB."""
        return Sizes(self.count - self.small, self.size - self.small_size)

    @property
    def below_minimum(self) -> "Sizes":
        """Those smaller than 128 KB."""
        return Sizes(self.small, self.small_size, self.small, self.small_size)

    def billed(self, minimum_bytes: int) -> float:
        """Bytes that are billed.

        :param minimum_bytes: billable size of an object: 128 KB, or 0 for none
        """
        return self.size + self.small * SMALL_BYTES - self.small_size if minimum_bytes else self.size


NOTHING = Sizes(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class HourlyLoad:
    """What an hour of a stream stores and requests, on average.

    :param raw: raw objects
    :param parts: parts, as they are stored
    :param records: manifests and completion markers
    :param requests: number of requests of the packing tasks, by S3's name of the operation
    """

    raw: Sizes
    parts: Sizes
    records: Sizes = NOTHING
    requests: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times smaller the parts are than the raw objects; None without parts."""
        return self.raw.size / self.parts.size if self.parts.size else None


@dataclass(frozen=True, slots=True)
class Step:
    """From which age on objects are in a storage class."""

    storage_class: str
    from_day: float


@dataclass(frozen=True, slots=True)
class LifetimeCost:
    """What objects cost from their writing on.

    :param transitions: requests that moved them to other classes
    """

    storage: float
    transitions: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.storage + self.transitions


@dataclass(frozen=True, slots=True)
class Bill:
    """What a stream costs in some time; the names are those of the JSON of ``log-rollup cost``.

    :param raw_writes: requests of the producers: one PUT for each raw object
    :param rollup_requests: requests of the rollup
    """

    raw_writes: float = 0.0
    raw_storage: float = 0.0
    raw_transitions: float = 0.0
    rollup_requests: float = 0.0
    part_storage: float = 0.0
    part_transitions: float = 0.0
    record_storage: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return (
            self.raw_writes + self.raw_storage + self.raw_transitions + self.rollup_requests + self.part_storage
            + self.part_transitions + self.record_storage
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClassCost:
    """What a storage class costs for the parts of a stream.

    :param months: for each number of days that parts are kept, the bill of a month in which as many hours are
        deleted as are added; parts are written in this class
    :param write: PUTs of the parts of a month
    :param transition: the requests that move the parts of a month into this class; 0 for STANDARD
    :param raw_transition: the same for the raw objects instead of the parts
    :param overhead_bytes: added to the parts of an hour: by their archive index, and by the minimum size
    :param read_hour: to read the parts of an hour once, including their restore
    """

    storage_class: str
    months: Mapping[float, Bill]
    write: float
    transition: float
    raw_transition: float
    overhead_bytes: float
    read_hour: float


@dataclass(frozen=True, slots=True)
class StoragePlan:
    """The cheapest storage classes for parts over their life.

    :param days: how long parts are kept
    :param part: what the parts of an hour cost in this time
    :param raw: what the raw objects of an hour would cost in STANDARD in this time
    :param bill: of the stream's first ``days`` days, with the rollup and this plan
    :param raw_bill: the same without the rollup, with raw objects in STANDARD
    """

    steps: Sequence[Step]
    days: float
    hot_days: float
    readable_days: float
    part: LifetimeCost
    raw: LifetimeCost
    bill: Bill
    raw_bill: Bill


def storage_cost(
    prices: Prices, sizes: Sizes, storage_class: str, days: float, *, are_removed: bool = False
) -> float:
    """What it costs to store objects in a class for some days.

    :param are_removed: whether they are deleted or moved then, so that the minimum duration is billed
    """
    rules, price = RULES[storage_class], prices.of(storage_class)
    if are_removed:
        days = max(days, rules.minimum_days)
    months = days / DAYS_PER_MONTH
    size = sizes.billed(rules.minimum_bytes) + sizes.count * rules.overhead_bytes
    standard = sizes.count * rules.overhead_standard_bytes
    per_month = size / GIB * price.storage + standard / GIB * prices.of(STANDARD).storage
    per_month += (sizes.count - sizes.small) / 1000 * price.monitoring
    return per_month * months - _saved_by_tiers(price, sizes.large.size, days)


def _saved_by_tiers(price: ClassPrices, size: float, days: float) -> float:
    """What the tiers for objects that are not read save; objects below 128 KB stay in the first tier."""
    saved = 0.0
    starts = [*sorted(price.tiers), days]
    for first, last in pairwise(starts):
        if first < days:
            months = (min(last, days) - first) / DAYS_PER_MONTH
            saved += size / GIB * (price.storage - price.tiers[int(first)]) * months
    return saved


def lifetime_cost(
    prices: Prices, sizes: Sizes, steps: Sequence[Step], days: float, *, are_deleted: bool = False
) -> LifetimeCost:
    """What objects cost in their first days, without the request that wrote them.

    Objects below 128 KB stay in the first class.

    :param steps: the first one from day 0 on
    :param are_deleted: whether they are deleted after these days
    """
    first = steps[0].storage_class
    if len(steps) == 1:
        return LifetimeCost(storage_cost(prices, sizes, first, days, are_removed=are_deleted), 0.0)
    storage = storage_cost(prices, sizes.below_minimum, first, days, are_removed=are_deleted)
    transitions = 0.0
    reached = [step for step in steps if step.from_day < days or step is steps[0]]
    for number, step in enumerate(reached):
        is_last = number == len(reached) - 1
        end = days if is_last else reached[number + 1].from_day
        removed = are_deleted if is_last else True
        storage += storage_cost(
            prices, sizes.large, step.storage_class, end - step.from_day, are_removed=removed
        )
        if number:
            transitions += sizes.large.count / 1000 * prices.of(step.storage_class).transition
    return LifetimeCost(storage, transitions)


def requests_cost(prices: Prices, load: HourlyLoad, storage_class: str) -> float:
    """What the requests of rolling up an hour cost.

    The writes of the parts are billed in the class of the parts, all else in STANDARD.
    """
    standard = prices.of(STANDARD)
    reads = sum(count for name, count in load.requests.items() if name.upper().startswith(("GET", "HEAD")))
    free = sum(count for name, count in load.requests.items() if name.startswith(("Delete", "Abort")))
    writes = max(0.0, sum(load.requests.values()) - reads - free - load.parts.count)
    lists = RAW_LISTINGS * max(1.0, load.raw.count / OBJECTS_PER_LIST)
    thousands = (writes + lists + RECORD_WRITES) / 1000
    return (
        reads / 1000 * standard.get
        + thousands * standard.put
        + load.parts.count / 1000 * prices.of(storage_class).put
    )


def monthly_bill(
    prices: Prices,
    load: HourlyLoad,
    steps: Sequence[Step],
    *,
    age_days: float,
    raw_days: float | None = None,
    part_days: float | None = None,
) -> Bill:
    """The bill of a month of a stream that has run for some time.

    The hours of a month are as many as are stored of each age, so a month costs as much as 730 hours cost so far.

    :param steps: the storage classes of the parts
    :param age_days: how long the stream has run
    :param raw_days: how long raw objects are kept, in STANDARD; None for ever
    :param part_days: how long parts and records are kept; None for ever
    """
    raw_age, raw_deleted = _stored_days(age_days, raw_days)
    part_age, part_deleted = _stored_days(age_days, part_days)
    raw = storage_cost(prices, load.raw, STANDARD, raw_age, are_removed=raw_deleted)
    parts = lifetime_cost(prices, load.parts, steps, part_age, are_deleted=part_deleted)
    return Bill(
        raw_writes=HOURS_PER_MONTH * load.raw.count / 1000 * prices.of(STANDARD).put,
        raw_storage=HOURS_PER_MONTH * raw,
        rollup_requests=HOURS_PER_MONTH * requests_cost(prices, load, steps[0].storage_class),
        part_storage=HOURS_PER_MONTH * parts.storage,
        part_transitions=HOURS_PER_MONTH * parts.transitions,
        record_storage=HOURS_PER_MONTH * storage_cost(prices, load.records, STANDARD, part_age),
    )


def monthly_bill_of_raw(
    prices: Prices,
    load: HourlyLoad,
    steps: Sequence[Step] = (Step(STANDARD, 0),),
    *,
    age_days: float,
    raw_days: float | None = None,
) -> Bill:
    """The bill of a month without the rollup.

    :param steps: the storage classes of the raw objects
    :param age_days: how long the producers have run
    :param raw_days: how long raw objects are kept; None for ever
    """
    age, are_deleted = _stored_days(age_days, raw_days)
    raw = lifetime_cost(prices, load.raw, steps, age, are_deleted=are_deleted)
    return Bill(
        raw_writes=HOURS_PER_MONTH * load.raw.count / 1000 * prices.of(steps[0].storage_class).put,
        raw_storage=HOURS_PER_MONTH * raw.storage,
        raw_transitions=HOURS_PER_MONTH * raw.transitions,
    )


def _stored_days(age_days: float, kept_days: float | None) -> tuple[float, bool]:
    """The age of the oldest stored hour, and whether older ones have been deleted."""
    if kept_days is None or age_days < kept_days:
        return age_days, False
    return kept_days, True


def class_costs(
    prices: Prices,
    load: HourlyLoad,
    storage_classes: Sequence[str],
    retentions: Sequence[float],
    raw_days: float | None = None,
) -> list[ClassCost]:
    """What each storage class costs for the parts of a stream.

    :param retentions: numbers of days that parts are kept
    :param raw_days: how long raw objects are kept besides; None for as long as the parts
    """
    found = []
    for name in storage_classes:
        rules, price = RULES[name], prices.of(name)
        months = {
            days: monthly_bill(
                prices, load, (Step(name, 0),), age_days=days, part_days=days,
                raw_days=days if raw_days is None else min(days, raw_days),
            )
            for days in retentions
        }  # fmt: skip
        overhead = load.parts.billed(rules.minimum_bytes) - load.parts.size
        overhead += load.parts.count * (rules.overhead_bytes + rules.overhead_standard_bytes)
        read = load.parts.size / GIB * price.retrieval + load.parts.count / 1000 * (price.get + price.restore)
        found.append(
            ClassCost(
                name,
                months,
                write=HOURS_PER_MONTH * load.parts.count / 1000 * price.put,
                transition=HOURS_PER_MONTH * load.parts.large.count / 1000 * price.transition,
                raw_transition=HOURS_PER_MONTH * load.raw.large.count / 1000 * price.transition,
                overhead_bytes=overhead,
                read_hour=read,
            )
        )
    return found


def bill_over(
    prices: Prices,
    load: HourlyLoad,
    steps: Sequence[Step],
    days: int,
    raw_days: float | None = None,
) -> Bill:
    """The bill of a stream's first days, in which nothing but raw objects is deleted.

    :param steps: the storage classes of the parts
    :param raw_days: how long raw objects are kept, in STANDARD; None for ever
    """
    hours = HOURS_PER_DAY * days
    # The hours that begin on a day are stored for the rest of the time.
    parts = [lifetime_cost(prices, load.parts, steps, age) for age in range(1, days + 1)]
    records = sum(storage_cost(prices, load.records, STANDARD, age) for age in range(1, days + 1))
    raw = 0.0
    for age in range(1, days + 1):
        stored, removed = _stored_days(age, raw_days)
        raw += storage_cost(prices, load.raw, STANDARD, stored, are_removed=removed)
    return Bill(
        raw_writes=hours * load.raw.count / 1000 * prices.of(STANDARD).put,
        raw_storage=HOURS_PER_DAY * raw,
        rollup_requests=hours * requests_cost(prices, load, steps[0].storage_class),
        part_storage=HOURS_PER_DAY * sum(cost.storage for cost in parts),
        part_transitions=HOURS_PER_DAY * sum(cost.transitions for cost in parts),
        record_storage=HOURS_PER_DAY * records,
    )


def bill_of_raw_over(prices: Prices, load: HourlyLoad, steps: Sequence[Step], days: int) -> Bill:
    """The bill of the first days without the rollup, in which nothing is deleted.

    :param steps: the storage classes of the raw objects
    """
    raw = [lifetime_cost(prices, load.raw, steps, age) for age in range(1, days + 1)]
    return Bill(
        raw_writes=HOURS_PER_DAY * days * load.raw.count / 1000 * prices.of(steps[0].storage_class).put,
        raw_storage=HOURS_PER_DAY * sum(cost.storage for cost in raw),
        raw_transitions=HOURS_PER_DAY * sum(cost.transitions for cost in raw),
    )


def plan_storage(
    prices: Prices,
    load: HourlyLoad,
    *,
    days: int,
    hot_days: float,
    readable_days: float,
    first_class: str = STANDARD,
    raw_days: float | None = None,
) -> StoragePlan:
    """Choose the cheapest classes for parts that are kept for some time, as :func:`cheapest_steps` does.

    :param raw_days: how long raw objects are kept besides; None for ever
    """
    steps = cheapest_steps(
        prices, load, days=days, hot_days=hot_days, readable_days=readable_days, first_class=first_class
    )
    raw_steps = (Step(STANDARD, 0),)
    return StoragePlan(
        steps,
        days,
        hot_days,
        readable_days,
        lifetime_cost(prices, load.parts, steps, days),
        lifetime_cost(prices, load.raw, raw_steps, days),
        bill_over(prices, load, steps, days, raw_days),
        bill_of_raw_over(prices, load, raw_steps, days),
    )


def cheapest_steps(
    prices: Prices,
    load: HourlyLoad,
    *,
    days: int,
    hot_days: float,
    readable_days: float,
    first_class: str = STANDARD,
) -> Sequence[Step]:
    """The cheapest classes for the parts of an hour.

    A class is used only if parts stay there for its minimum duration, so nothing is billed for leaving early.

    :param days: how long parts are kept
    :param hot_days: how long they stay in their first class, where reading them costs least
    :param readable_days: how long they can be read without a restore
    :param first_class: in which they are written
    """
    lower = _MOVED_FROM.get(first_class, _PLANNED_CLASSES)
    if first_class in lower:
        lower = lower[lower.index(first_class) + 1 :]
    subsets = chain.from_iterable(combinations(lower, length) for length in range(len(lower) + 1))
    start = [Step(first_class, 0)]
    candidates = (_timed(start, subset, days, hot_days, readable_days) for subset in subsets)
    return min(
        (tuple(found) for found in candidates if found is not None),
        key=lambda found: (lifetime_cost(prices, load.parts, found, days).total, len(found)),
    )


def _timed(
    steps: list[Step], classes: Sequence[str], days: float, hot_days: float, readable_days: float
) -> list[Step] | None:
    """The earliest days at which parts can move through some classes; None if they don't fit into the time."""
    for name in classes:
        last = steps[-1]
        at = max(last.from_day + RULES[last.storage_class].minimum_days, RULES[name].least_age_days, hot_days)
        if RULES[name].is_archive:
            at = max(at, readable_days)
        if at + RULES[name].minimum_days > days:
            return None
        steps = [*steps, Step(name, at)]
    return steps
