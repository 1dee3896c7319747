"""A proposed stream for the objects of one layout, and what its sample shows."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

from include.log_rollup.hour.selection import (
    PLAIN,
    InputFilter,
    LeftOut,
    encoding_of,
    is_hidden,
)
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.hour.template_syntax import DIRECTIVE
from include.log_rollup.queries.file_kinds import FileKinds
from include.log_rollup.queries.layouts import Layout
from include.log_rollup.queries.object_ends import EndReader, Newlines
from include.log_rollup.queries.written_times import (
    QuietPeriod,
    ZoneGuess,
    guess_zone,
    quiet_period_of,
    times_by_hour,
)
from include.log_rollup.storage.protocol import ObjectInfo, TimedObject
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_duration

DEFAULT_CONNECTION = "aws_default"
_DEFAULT_QUIET_PERIOD = timedelta(minutes=10)
# Hours that are listed only with all objects of their day, so that they are listed less often.
_DAY_POLL_INTERVAL = "10m"


@dataclass(frozen=True)
class SampledHour:
    """The objects of an hour and a group in the sample.

    :param group: values of the captures that make groups
    :param first: when the first of its objects was written
    :param last: when the last one was
    """

    hour: datetime
    group: Mapping[str, str]
    objects: int
    size_bytes: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Proposal:
    """A proposed stream.

    :param entry: its keys and values in the streams file
    :param zone: which time zone its hours have
    :param quiet: how the quiet period was measured; None if the times do not show it
    :param hours: the sample by hour and group
    :param encodings: number of objects by encoding
    """

    stream: Stream
    entry: Mapping[str, object]
    layout: Layout
    zone: ZoneGuess
    quiet: QuietPeriod | None
    hours: Sequence[SampledHour]
    left_out: LeftOut
    encodings: Mapping[str, int]
    newlines: Newlines
    remarks: Sequence[str]


class Draft:
    """What is known of a stream before the place of its parts is chosen."""

    def __init__(
        self,
        layout: Layout,
        name: str,
        rows: Sequence[TimedObject],
        reader: EndReader,
        share: int,
        now: datetime,
        conn_id: str,
    ) -> None:
        self._layout = layout
        self._name = name
        self._now = now
        self._conn_id = conn_id
        self._is_hidden = partial(is_hidden, begins_step=layout.raw.endswith("/"))
        in_utc = RawTemplate.parse(layout.raw)
        labels = [
            (match.hour.replace(tzinfo=None), row.modified)
            for row in rows
            if (match := in_utc.match(row.key)) is not None and not self._is_hidden(match.name) and row.size
        ]
        self._zone = guess_zone(labels)
        self._raw = RawTemplate.parse(layout.raw, self._zone.zone)
        self._matches = [(row, match) for row in rows if (match := self._raw.match(row.key)) is not None]
        self._rows = [row for row, _ in self._matches]
        self._newlines = reader.newlines(
            [row for row, match in self._matches if not self._is_hidden(match.name)], share
        )
        self._quiet = self._measure_quiet_period()
        self._kinds = FileKinds.of([match for _, match in self._matches], self._is_hidden)

    def entry(self, target: str) -> dict[str, object]:
        """The stream's keys in the streams file.

        :param target: bucket and folder for the parts
        """
        layout = self._layout
        is_hive = "=%Y" in layout.raw or any(producer.tail for producer in layout.producers)
        groups = "".join(f"{{{name}}}/" for name in layout.group)
        hours = "dt=%Y-%m-%d/hour=%H/" if is_hive else "%Y%m%d/%H/"
        entry: dict[str, object] = {
            "name": self._name,
            "raw": layout.raw,
            "aggregated": f"s3://{target}/{self._name}/{groups}{hours}",
        }
        if self._zone.zone != "UTC":
            entry["timezone"] = self._zone.zone
        entry["start"] = f"{self._now:%Y-%m-%d}T00:00:00Z"
        if self._conn_id != DEFAULT_CONNECTION:
            entry["aws_conn_id"] = self._conn_id
        period = self._quiet.period if self._quiet else self._least_quiet_period
        entry["quiet_period"] = format_duration(period)
        if period >= timedelta(hours=2):
            entry["timeout"] = "12h"
        if not self._has_prefix_of_its_own:
            entry["poll_interval"] = _DAY_POLL_INTERVAL
        if self._kinds.include:
            entry["include"] = list(self._kinds.include)
        if self._kinds.exclude:
            entry["exclude"] = list(self._kinds.exclude)
        if self._kinds.containers and not self._kinds.include:
            entry["unjoinable"] = "copy"
        if self._adds_newlines:
            entry["ensure_newline"] = True
        return entry

    def proposal(self, stream: Stream, entry: Mapping[str, object]) -> Proposal:
        """The proposal with the stream of the entry."""
        names = {row.key: match.name for row, match in self._matches}
        input_filter = InputFilter(lambda key: names[key], stream.input_rules)
        kept = {
            item.key
            for item in input_filter.keep([ObjectInfo(row.key, row.size, row.etag) for row in self._rows])
        }
        hours: dict[tuple[datetime, tuple[str, ...]], list[TimedObject]] = defaultdict(list)
        for row, match in self._matches:
            if row.key in kept:
                values = dict(zip(self._raw.captures, match.captures, strict=True))
                hours[match.hour, tuple(values[name] for name in stream.aggregated.captures)].append(row)
        sampled = [
            SampledHour(
                hour,
                dict(zip(stream.aggregated.captures, group, strict=True)),
                len(rows),
                sum(row.size for row in rows),
                min(row.modified for row in rows),
                max(row.modified for row in rows),
            )
            for (hour, group), rows in sorted(hours.items())
        ]
        return Proposal(
            stream,
            entry,
            self._layout,
            self._zone,
            self._quiet,
            sampled,
            input_filter.left_out,
            Counter(encoding_of(key) or "plain" for key in sorted(kept)),
            self._newlines,
            list(self._remarks(stream)),
        )

    @property
    def _least_quiet_period(self) -> timedelta:
        return max([_DEFAULT_QUIET_PERIOD, *(producer.quiet_period for producer in self._layout.producers)])

    @property
    def _has_prefix_of_its_own(self) -> bool:
        """Whether the prefix of an hour leads to keys of that hour only."""
        values = dict.fromkeys(self._raw.captures, "x")
        before: dict[str, str] = {}
        while level := self._raw.next_level(before):
            before[level.capture] = values[level.capture]
        hour = self._now.replace(hour=8, minute=0, second=0, microsecond=0)
        return self._raw.prefixes(hour, before) != self._raw.prefixes(hour + timedelta(hours=1), before)

    @property
    def _adds_newlines(self) -> bool:
        if self._newlines.formats:
            # A newline between compressed objects would damage them.
            return False
        known = any(not producer.has_newline for producer in self._layout.producers)
        plain = any(encoding_of(row.key) == PLAIN for row in self._rows)
        return self._newlines.without > 0 or (known and plain and not self._newlines.read)

    def _measure_quiet_period(self) -> QuietPeriod | None:
        if not self._zone.is_known:
            return None
        times = times_by_hour(
            (match.hour, row.modified) for row, match in self._matches if not self._is_hidden(match.name)
        )
        return quiet_period_of(times, self._least_quiet_period)

    def _remarks(self, stream: Stream) -> Iterator[str]:
        layout = self._layout
        for other in layout.alternatives:
            yield (
                f"the dates can also be read as {other}, with other hours: see which one is right, and use its raw"
            )
        if next(element.value for element in self._raw.elements if element.kind == DIRECTIVE) == "%H":
            yield "the hour is taken from the number before the date: see whether it is an hour"
        if layout.decided_by_time:
            yield "the dates can be read in another order too, but then the objects would be far from their hours"
        if self._zone.zone != "UTC" or self._zone.others:
            yield (
                f"time zone: {self._zone.reason}. {self._zone.zone} fits"
                + (f"; so would {', '.join(self._zone.others[:6])}" if self._zone.others else "")
                + ": compare it with the producer's setting"
            )
        elif not self._zone.is_known:
            yield f"time zone: LastModified does not show it: {self._zone.reason}. UTC is assumed"
        if self._quiet is None:
            yield (
                f"quiet_period: LastModified does not show it; {format_duration(self._least_quiet_period)} is "
                + ("the producer's usual one" if layout.producers else "the default")
            )
        left = [name for name in self._raw.captures if name not in layout.group]
        hours = {match.hour for _, match in self._matches}
        if len(hours) > 2 and len({hour.astimezone(ZoneInfo(self._zone.zone)).hour for hour in hours}) == 1:
            yield (
                "all keys have the same hour of the day, so it may be a placeholder: S3 access logs that are "
                "partitioned by event time have 00 in all keys"
            )
        if left:
            yield (
                f"{', '.join(left)}: too many values for groups of their own, so aggregated does not use them"
            )
        if not self._has_prefix_of_its_own:
            yield "each listing of an hour reads the keys of its whole day, so poll_interval is longer"
        yield from self._remarks_on_kinds()
        yield from self._newline_remarks()

    def _remarks_on_kinds(self) -> Iterator[str]:
        kinds = self._kinds
        containers = ", ".join(f"{count:,} {ending}" for ending, count in kinds.containers.items())
        if kinds.include:
            yield (
                f"{containers} objects cannot be joined end to end and share hours with objects that can: include "
                f"reads the latter only. To keep all, replace include by unjoinable: copy, which gives each "
                f"container a part of its own"
            )
        elif containers:
            yield (
                f"{containers} objects cannot be joined end to end; unjoinable: copy gives each a part of its own"
            )
        for name in kinds.ready:
            yield (
                f"most hours have an object {name}: if the producer writes it last, use ready_object: {name}"
                + (" instead of exclude" if name in kinds.exclude else "")
            )

    def _newline_remarks(self) -> Iterator[str]:
        found = self._newlines
        for kind, count in (found.formats or {}).items():
            yield (
                f"{count} of {found.read} objects that were read are {kind} by their bytes, but not by their "
                f"names; Log Rollup takes them for text. Have the producer add the ending"
            )
        if found.problem:
            yield f"whether objects end with a newline is not known: {found.problem}"
        elif self._adds_newlines and not found.read:
            yield "this producer writes no newline at the end of objects, so ensure_newline adds it"
        elif self._adds_newlines:
            yield f"{found.without} of {found.read} plain objects that were read do not end with a newline"
        elif not found.read and any(row.size and encoding_of(row.key) == PLAIN for row in self._rows):
            yield "whether plain objects end with a newline is not known: none was read"
        compressed = any(encoding_of(row.key) != PLAIN for row in self._rows)
        if compressed and any(not producer.has_newline for producer in self._layout.producers):
            yield (
                "this producer's documents do not end with a newline; ensure_newline adds it to compressed ones "
                "too, and decompresses them for that: see docs/SOURCES.md#json-documents-without-a-newline"
            )
