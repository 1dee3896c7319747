"""Finds parts that are archived, and requests that they become readable again (S3's RestoreObject).

An object of an archive class, or of an archive tier of INTELLIGENT_TIERING, cannot be read before it has been
retrieved. S3 then keeps a copy that can be read for some days. Which objects are archived, and which are being
retrieved, is read from the store each time, so a command or a task that is started again continues where the last
one ended.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice

from include.log_rollup.errors import ConfigurationError, NotFoundError, UnreadableRecordError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.parallel import in_parallel
from include.log_rollup.prices import DEEP_ARCHIVE, GLACIER, INTELLIGENT_TIERING, STANDARD, Prices
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.storage.protocol import Location, ObjectStore, RetrievalStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import GIB

DEFAULT_DAYS = 7
MAX_DAYS = 365
_DAYS_PER_MONTH = 365 / 12
_THREADS = "log-rollup-retrieval"
_PARTS_AT_ONCE = 1000


class Tier(StrEnum):
    """How fast S3 retrieves, and what it costs."""

    BULK = "bulk"
    STANDARD = "standard"
    EXPEDITED = "expedited"


# How long S3 usually takes at most.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/restoring-objects-retrieval-options.html
LONGEST_RETRIEVALS = {
    (GLACIER, Tier.EXPEDITED): timedelta(minutes=5),
    (GLACIER, Tier.STANDARD): timedelta(hours=5),
    (GLACIER, Tier.BULK): timedelta(hours=12),
    (DEEP_ARCHIVE, Tier.STANDARD): timedelta(hours=12),
    (DEEP_ARCHIVE, Tier.BULK): timedelta(hours=48),
    # Those of its deep archive tier.
    (INTELLIGENT_TIERING, Tier.STANDARD): timedelta(hours=12),
    (INTELLIGENT_TIERING, Tier.BULK): timedelta(hours=48),
}


@dataclass(frozen=True, slots=True)
class ArchivedPart:
    """A part that cannot be read now.

    :param size: in bytes
    :param is_being_retrieved: whether its retrieval was requested and is under way
    """

    hour: datetime
    place: Location
    size: int
    storage_class: str
    is_being_retrieved: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a retrieval costs.

    :param requests: number of objects to retrieve
    :param size: theirs, in bytes
    :param amount: of requests, retrieved bytes and the copies that are kept; None if the file has no prices for it
    :param longest: how long S3 usually takes at most; None if that is not known
    """

    requests: int
    size: int
    amount: float | None
    longest: timedelta | None


def needed_parts(
    store: ObjectStore,
    stream: Stream,
    hours: Iterable[datetime],
    chosen: ObjectFilter,
    *,
    incomplete: bool = False,
    strict: bool = False,
) -> Iterator[tuple[datetime, Location]]:
    """The parts that hold chosen raw objects of some hours, from the manifests of these hours.

    :param incomplete: whether to include hours that have a manifest, but are not complete
    :param strict: whether an hour that is left out is an error
    :returns: hour and place of each; none of hours without a readable manifest
    :raises NotFoundError: with ``strict``, if an hour is not complete
    :raises UnreadableRecordError: with ``strict``, if a manifest cannot be read
    :raises RollupError: as the store raises
    """

    def parts_of(hour: datetime) -> list[tuple[datetime, Location]]:
        reader = HourReader(store, stream, hour)
        try:
            manifest, marker = reader.manifest(), reader.marker()
        except UnreadableRecordError:
            if strict:
                raise
            return []
        is_complete = manifest and marker and marker.is_of(manifest.totals.plan_id)
        if manifest is None or not (is_complete or incomplete):
            if strict:
                raise NotFoundError(
                    f"hour {format_hour(hour)} is not complete, so its parts cannot be retrieved"
                )
            return []
        return [
            (hour, reader.paths.part(planned.name))
            for planned, _ in manifest.parts()
            if chosen.indices(reader.paths, planned)
        ]

    workers = store.control_connections
    for found in in_parallel(workers, _THREADS, parts_of, hours, ahead=2 * workers):
        yield from found


def find_archived(store: ObjectStore, parts: Iterable[tuple[datetime, Location]]) -> list[ArchivedPart]:
    """Those of some parts that cannot be read now, in their order; parts that don't exist are left out.

    :param parts: hour and place of each; one HEAD for each
    :raises RollupError: as the store raises
    """

    def state_of(part: tuple[datetime, Location]) -> ArchivedPart | None:
        hour, place = part
        head = store.head(place)
        if head is None or not head.is_archived:
            return None
        return ArchivedPart(hour, place, head.size, head.storage_class, head.is_being_retrieved)

    left, archived = iter(parts), list[ArchivedPart]()
    while chunk := list(islice(left, _PARTS_AT_ONCE)):
        found = in_parallel(store.control_connections, _THREADS, state_of, chunk)
        archived += [part for part in found if part is not None]
    return archived


def to_request(parts: Iterable[ArchivedPart]) -> list[ArchivedPart]:
    """Those of archived parts whose retrieval is not under way."""
    return [part for part in parts if not part.is_being_retrieved]


def check_tier(parts: Iterable[ArchivedPart], tier: Tier) -> None:
    """Refuse a tier that one of the parts' classes does not have.

    :raises ConfigurationError: with the tiers that it has
    """
    for storage_class in sorted({part.storage_class for part in parts}):
        known = [one.value for name, one in LONGEST_RETRIEVALS if name == storage_class]
        if known and tier.value not in known:
            raise ConfigurationError(
                f"parts in {storage_class} cannot be retrieved with the tier {tier.value!r}; use "
                f"{' or '.join(repr(one) for one in sorted(known))}"
            )


def estimate(parts: Sequence[ArchivedPart], tier: Tier, days: int, prices: Prices | None) -> Estimate:
    """What the retrieval of some parts costs.

    :param days: how long S3 keeps the copies that can be read
    :param prices: None if they are not known
    """
    amount: float | None = 0.0
    for part in parts:
        cost = None if prices is None else _cost(part, tier, days, prices)
        amount = None if amount is None or cost is None else amount + cost
    times = [LONGEST_RETRIEVALS.get((part.storage_class, tier)) for part in parts]
    longest = max((time for time in times if time is not None), default=None)
    return Estimate(len(parts), sum(part.size for part in parts), amount, longest)


def _cost(part: ArchivedPart, tier: Tier, days: int, prices: Prices) -> float | None:
    if part.storage_class not in (GLACIER, DEEP_ARCHIVE):
        return None
    terms = prices.of(part.storage_class)
    of_tier = {Tier.STANDARD: terms, Tier.BULK: terms.bulk, Tier.EXPEDITED: terms.expedited}[tier]
    if of_tier is None:
        return None
    kept = prices.of(STANDARD).storage * days / _DAYS_PER_MONTH
    return of_tier.restore / 1000 + part.size / GIB * (of_tier.retrieval + kept)


def request_retrieval(store: RetrievalStore, parts: Sequence[ArchivedPart], tier: Tier, days: int) -> int:
    """Request the retrieval of parts; those that were requested before an error stay requested.

    :param days: how long S3 keeps the copies that can be read
    :returns: of how many it was requested now; the others are being retrieved already
    :raises ConfigurationError: if a class does not have the tier; then nothing is requested
    :raises RollupError: as the store raises
    """
    check_tier(parts, tier)

    def request(part: ArchivedPart) -> bool:
        # INTELLIGENT_TIERING moves the object itself back, and takes no number of days.
        kept = None if part.storage_class == INTELLIGENT_TIERING else days
        return store.request_retrieval(part.place, tier.value.capitalize(), kept)

    return sum(in_parallel(store.control_connections, _THREADS, request, to_request(parts)))
