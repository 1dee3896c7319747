"""Measures the average hour of a stream: from the completion markers of its hours, and from some manifests."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from include.log_rollup import limits
from include.log_rollup.errors import NotFoundError, UnreadableRecordError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.manifest import open_manifest
from include.log_rollup.parallel import in_parallel
from include.log_rollup.prices import SMALL_BYTES
from include.log_rollup.queries.cost import HourlyLoad, Sizes
from include.log_rollup.queries.status import HourStatus, HourSummary, read_hours
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

# The most raw objects of a manifest whose sizes are read.
MOST_OBJECTS = 100_000


@dataclass(frozen=True, slots=True)
class SampledSizes:
    """Sizes of the objects of one hour, from its manifest.

    :param raw: its raw objects, or the first of them
    :param records: its manifests and completion markers
    """

    hour: datetime
    raw: Sizes
    parts: Sizes
    records: Sizes


@dataclass(frozen=True, slots=True)
class MeasuredLoad:
    """The average of some complete hours, and which hours they are.

    :param hours: the complete hours, in order
    :param incomplete: number of hours whose markers were read, but that are not complete
    :param sampled: those hours whose manifests were read
    :param skipped: number of hours in the range whose markers were not read
    """

    load: HourlyLoad
    hours: Sequence[datetime]
    incomplete: int
    sampled: Sequence[datetime]
    skipped: int = 0


def measure_load(store: ObjectStore, stream: Stream, hours: Sequence[datetime]) -> MeasuredLoad:
    """Measure the average of the complete hours among some hours.

    Reads at most ``limits.COST_MARKER_REQUESTS`` markers, and ``limits.COST_MANIFEST_REQUESTS`` manifests.

    :param hours: in order
    :raises NotFoundError: if none of them is complete
    """
    read = _spread(hours, limits.COST_MARKER_REQUESTS)
    found = read_hours(store, stream, read, expired=False)
    complete = [summary for summary in found if summary.state is HourStatus.COMPLETE]
    if not complete:
        place = f"{format_hour(hours[0])} to {format_hour(hours[-1])}" if hours else "the time that was given"
        raise NotFoundError(
            f"stream {stream.name!r}: no hour of {place} is complete, so there is nothing to calculate from; give "
            f"complete hours with --since and --until"
        )
    with_parts = [summary.hour for summary in complete if (summary.marker or {}).get("parts")]
    sampled = in_parallel(
        store.control_connections,
        "log-rollup-cost",
        lambda hour: _sample(store, stream, hour),
        _spread(with_parts, limits.COST_MANIFEST_REQUESTS),
    )
    return average_load(
        complete,
        [sizes for sizes in sampled if sizes is not None],
        len(read) - len(complete),
        len(hours) - len(read),
    )


def _spread(hours: Sequence[datetime], most: int) -> list[datetime]:
    """At most so many of the hours, at equal intervals, with the first and the last."""
    if len(hours) <= most:
        return list(hours)
    return [hours[number * (len(hours) - 1) // (most - 1)] for number in range(most)]


def _sample(store: ObjectStore, stream: Stream, hour: datetime) -> SampledSizes | None:
    """The sizes of an hour; None if its manifest is gone or cannot be read, which other commands report."""
    paths = stream.at(hour)
    try:
        manifest = open_manifest(store, paths.manifest)
        if manifest is None:
            return None
        parts = _sizes(entry["size"] for entry in manifest.table)
        objects = (item.size for planned, _ in manifest.parts() for item in planned.objects)
        raw = _sizes(islice(objects, MOST_OBJECTS))
    except UnreadableRecordError:
        return None
    heads = [store.head(place) for place in (paths.manifest, paths.marker)]
    sizes = [head.size for head in heads if head is not None]
    groups = len(manifest.totals.groups)
    # The records of the groups hold what those of the hour hold, once more.
    records = Sizes(2 + 2 * groups, sum(sizes) * (2 if groups else 1))
    return SampledSizes(hour, raw, parts, records)


def _sizes(sizes: Iterable[int]) -> Sizes:
    count = total = small = small_total = 0
    for size in sizes:
        count += 1
        total += size
        if size < SMALL_BYTES:
            small += 1
            small_total += size
    return Sizes(count, total, small, small_total)


def average_load(
    complete: Sequence[HourSummary],
    sampled: Sequence[SampledSizes] = (),
    incomplete: int = 0,
    skipped: int = 0,
) -> MeasuredLoad:
    """The average of complete hours.

    Counts and bytes come from all markers. The share of small objects and the size of the records come from the
    sampled hours; without any, objects are small if their average is, and records count as nothing.

    :param complete: at least one
    """
    markers = [summary.marker or {} for summary in complete]
    number = len(markers)
    requests: dict[str, float] = {}
    for marker in markers:
        for name, count in marker["requests"].items():
            requests[name] = requests.get(name, 0) + count / number
    load = HourlyLoad(
        raw=_with_small(
            sum(marker["objects"] for marker in markers) / number,
            sum(marker["bytes_in"] for marker in markers) / number,
            [sizes.raw for sizes in sampled],
        ),
        parts=_with_small(
            sum(marker["parts"] for marker in markers) / number,
            sum(map(_stored_bytes, markers)) / number,
            [sizes.parts for sizes in sampled],
        ),
        records=_mean([sizes.records for sizes in sampled]),
        requests=requests,
    )
    hours = [summary.hour for summary in complete]
    return MeasuredLoad(load, hours, incomplete, [sizes.hour for sizes in sampled], skipped)


def _stored_bytes(marker: Mapping[str, Any]) -> int:
    stored: int = marker.get("bytes_stored") or marker["bytes_out"]
    return stored


def _with_small(count: float, size: float, samples: Sequence[Sizes]) -> Sizes:
    """Sizes with the share of small objects that some samples have."""
    sampled = _mean(samples)
    if not sampled.count:
        is_small = bool(count) and size / count < SMALL_BYTES
        return Sizes(count, size, count, size) if is_small else Sizes(count, size)
    small = count * sampled.small / sampled.count
    small_size = size * sampled.small_size / sampled.size if sampled.size else 0.0
    return Sizes(count, size, small, small_size)


def _mean(samples: Sequence[Sizes]) -> Sizes:
    number = len(samples) or 1
    return Sizes(
        sum(sizes.count for sizes in samples) / number,
        sum(sizes.size for sizes in samples) / number,
        sum(sizes.small for sizes in samples) / number,
        sum(sizes.small_size for sizes in samples) / number,
    )
