"""Proposes streams for the objects that a bucket already has, from a sample of their keys."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import yaml

from include.log_rollup import limits
from include.log_rollup.errors import (
    ConfigurationError,
    NotFoundError,
    UnknownLayoutError,
)
from include.log_rollup.hour.selection import (
    NOT_JOINABLE,
    PLAIN,
    InputFilter,
    LeftOut,
    encoding_of,
    is_hidden,
)
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.queries.layouts import Layout, find_layouts, reason_without_layout
from include.log_rollup.queries.object_ends import EndReader, Newlines
from include.log_rollup.queries.producers import BY_NAME, Producer
from include.log_rollup.queries.sample_keys import KeySample
from include.log_rollup.queries.written_times import (
    QuietPeriod,
    ZoneGuess,
    guess_zone,
    quiet_period_of,
    times_by_hour,
)
from include.log_rollup.storage.protocol import Location, ObjectInfo, SampledStore, TimedObject
from include.log_rollup.streams import Stream, parse_streams
from include.log_rollup.units import format_duration

MAX_REQUESTS = limits.DETECT_LIST_REQUESTS + limits.DETECT_READ_REQUESTS
DEFAULT_CONNECTION = "aws_default"
MAX_STREAMS = 8
_DEFAULT_QUIET_PERIOD = timedelta(minutes=10)
# Hours that are listed only with all objects of their day, so that they are listed less often.
_DAY_POLL_INTERVAL = "10m"
_TEMPORARY = (".tmp", ".temp", ".partial", ".part", ".inprogress", ".filepart", ".swp", ".crdownload")
_READY = re.compile(r"(?i)[._]?(?:success|done|complete|completed|ready|finished|manifest)(?:\.\w+)?$")
# Folders whose names do not describe their objects.
_USUAL_FOLDERS = frozenset(("raw", "log", "logs", "data", "topics"))
# Only where these are is a folder one that this project has written.
_MANIFEST = "_manifest.jsonl.gz"
NOT_PROPOSED = (
    "more layouts than are proposed at once, or one that overlaps with another; give a longer prefix"
)
OWN = "parts and records that Log Rollup has written"


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


@dataclass(frozen=True)
class Detection:
    """The result of :func:`detect`.

    :param requests: how many requests were sent
    :param objects: number of objects in the sample
    :param is_whole: whether these are all objects below the prefix
    :param not_sampled: folders that the sample did not follow, except those that only have other dates
    :param not_read: the keys that no proposed stream reads, by reason
    :param text: the proposed streams file
    """

    place: Location
    requests: int
    objects: int
    is_whole: bool
    proposals: Sequence[Proposal]
    not_sampled: Sequence[str]
    not_read: Mapping[str, Sequence[str]]
    text: str


def detect(
    store: SampledStore, place: Location, now: datetime, conn_id: str = DEFAULT_CONNECTION
) -> Detection:
    """Propose streams for the objects below a prefix.

    It sends at most :data:`MAX_REQUESTS` requests, and changes nothing.

    :param now: the present time, in UTC
    :param conn_id: Airflow connection, for the proposed streams
    :raises NotFoundError: if there are no objects
    :raises UnknownLayoutError: if no template can read them
    :raises RollupError: as the store raises
    """
    sample = KeySample(store, place, now, limits.DETECT_LIST_REQUESTS)
    sample.take()
    rows = sample.objects
    if not rows:
        raise NotFoundError(
            f"there are no objects below {place}; give a prefix that has some, and list the bucket with "
            f"aws s3 ls s3://{place.bucket}/"
        )
    own = _own_folders(rows)
    foreign = [row for row in rows if not _is_own(row.key, own)]
    layouts, reasons = find_layouts(place.bucket, foreign)
    if not layouts:
        raise _unknown_layout(place, foreign, reasons)
    reader = EndReader(store, place.bucket, limits.DETECT_READ_REQUESTS)
    proposals, text = _propose(place, layouts[:MAX_STREAMS], foreign, reader, now, conn_id)
    proposed = {proposal.layout.raw for proposal in proposals}
    others = [RawTemplate.parse(layout.raw) for layout in layouts if layout.raw not in proposed]
    not_read: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if _is_own(row.key, own):
            not_read[OWN].append(row.key)
        elif all(proposal.stream.raw.match(row.key) is None for proposal in proposals):
            not_read[_reason(row.key, others, reasons)].append(row.key)
    return Detection(
        place,
        sample.lists + reader.reads,
        len(rows),
        sample.is_whole,
        proposals,
        sample.not_followed,
        dict(not_read),
        text,
    )


def _reason(key: str, others: Sequence[RawTemplate], reasons: Mapping[str, str]) -> str:
    """Why no proposed stream reads a key.

    :param others: templates that are not proposed
    """
    if any(template.match(key) is not None for template in others):
        return NOT_PROPOSED
    return reasons.get(key) or reason_without_layout(key)


def producers_of(keys: Sequence[str]) -> list[Producer]:
    """The producers that have keys of the form of most of these."""
    return [
        producer
        for producer in BY_NAME
        if 2 * sum(producer.pattern.search(key) is not None for key in keys) > len(keys)
    ]


def _own_folders(rows: Sequence[TimedObject]) -> set[str]:
    return {row.key.removesuffix(_MANIFEST) for row in rows if row.key.endswith("/" + _MANIFEST)}


def _is_own(key: str, own: set[str]) -> bool:
    folder = key.partition("_rollup/")[0] if "/_rollup/" in key else key[: key.rfind("/") + 1]
    return folder in own or "/_hours/" in f"/{key}"


def _unknown_layout(
    place: Location, rows: Sequence[TimedObject], reasons: Mapping[str, str]
) -> UnknownLayoutError:
    if not rows:
        return UnknownLayoutError(f"below {place} are only {OWN}; give the prefix of the raw objects")
    counts = Counter(reasons.get(row.key) or reason_without_layout(row.key) for row in rows)
    example = {reasons.get(row.key) or reason_without_layout(row.key): row.key for row in rows}
    found = "; ".join(
        f"{count:,} keys have {reason}, like {example[reason]}" for reason, count in counts.most_common(3)
    )
    looks = [
        f"They look like {producer.name}: docs/SOURCES.md#{producer.anchor} shows how to set it up. "
        for producer in producers_of([row.key for row in rows])
    ]
    return UnknownLayoutError(
        f"none of {len(rows):,} sampled keys below {place} can be read by a template: {found}. {''.join(looks)}"
        f"A template needs year, month, day and hour in the keys, in digits with leading zeros: have the producer "
        f"write them, or give the prefix of other objects"
    )


def _propose(
    place: Location,
    layouts: Sequence[Layout],
    rows: Sequence[TimedObject],
    reader: EndReader,
    now: datetime,
    conn_id: str,
) -> tuple[list[Proposal], str]:
    """The proposals, and the streams file with them, which loads."""
    names = _names(place, layouts)
    drafts = [
        _Draft(layout, name, rows, reader, max(2, limits.DETECT_READ_REQUESTS // len(layouts)), now, conn_id)
        for layout, name in zip(layouts, names, strict=True)
    ]
    while True:
        for target in (
            f"{place.bucket}/aggregated",
            f"{place.bucket}/log-rollup",
            _other_bucket(place.bucket),
        ):
            entries = [draft.entry(target) for draft in drafts]
            text = _yaml_of(entries)
            try:
                streams = parse_streams(text.encode())
            except ConfigurationError:
                # Templates overlap.
                continue
            proposals = [
                draft.proposal(stream, entry)
                for draft, stream, entry in zip(drafts, streams, entries, strict=True)
            ]
            return proposals, text
        if len(drafts) == 1:
            # One stream with a bucket for its parts cannot overlap; the error is another one.
            parse_streams(_yaml_of([drafts[0].entry(_other_bucket(place.bucket))]).encode())
        drafts.pop()


def _other_bucket(bucket: str) -> str:
    return bucket[:55].rstrip("-.") + "-rollups"


def _names(place: Location, layouts: Sequence[Layout]) -> list[str]:
    """A name for each stream: that of the producer, or of the last literal step before the hour."""
    names: list[str] = []
    for layout in layouts:
        if layout.producers:
            name = layout.producers[0].stream if len(layout.producers) == 1 else "logs"
        else:
            steps = RawTemplate.parse(layout.raw).root.key.split("/")
            steps = [step for step in steps if step and step.lower() not in _USUAL_FOLDERS]
            name = steps[-1] if steps else place.bucket
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:90].strip("_.") or "logs"
        name = "late_logs" if name == "late" else name
        number, unique = 2, name
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return names


class _Draft:
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
        self._names = {match.name for _, match in self._matches}
        self._rows = [row for row, _ in self._matches]
        self._newlines = reader.newlines(
            [row for row, match in self._matches if not self._is_hidden(match.name)], share
        )
        self._quiet = self._measure_quiet_period()
        self._ready = self._ready_objects()

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
        if self._excluded:
            entry["exclude"] = list(self._excluded)
        if any(encoding_of(row.key) in NOT_JOINABLE for row in self._rows):
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
    def _excluded(self) -> list[str]:
        """Patterns for temporary objects, and for visible objects that mark an hour as complete."""
        temporary = [
            f"*{ending}"
            for ending in _TEMPORARY
            if any(name.lower().endswith(ending) and not self._is_hidden(name) for name in self._names)
        ]
        return temporary + [name for name in self._ready if not self._is_hidden(name)]

    @property
    def _adds_newlines(self) -> bool:
        if self._newlines.formats:
            # A newline between compressed objects would damage them.
            return False
        known = any(not producer.has_newline for producer in self._layout.producers)
        plain = any(encoding_of(row.key) == PLAIN for row in self._rows)
        return self._newlines.without > 0 or (known and plain and not self._newlines.read)

    def _ready_objects(self) -> list[str]:
        """Names that occur in most of at least three hours, and look like those of ready objects."""
        hours = {match.hour for _, match in self._matches}
        with_name: dict[str, set[datetime]] = defaultdict(set)
        for _, match in self._matches:
            if _READY.fullmatch(match.name):
                with_name[match.name].add(match.hour)
        return [
            name
            for name, found in sorted(with_name.items())
            if len(hours) > 2 and 2 * len(found) > len(hours)
        ]

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
        if "unjoinable" in stream.model_fields_set:
            yield "containers cannot be joined end to end; unjoinable: copy gives each a part of its own"
        for name in self._ready:
            yield (
                f"most hours have an object {name}: if the producer writes it last, use ready_object: {name}"
                + ("" if self._is_hidden(name) else " instead of exclude")
            )
        yield from self._newline_remarks()

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
                "this producer's documents do not end with a newline, and compressed ones get none: see "
                "docs/SOURCES.md#json-documents-without-a-newline"
            )


def _yaml_of(entries: Sequence[Mapping[str, object]]) -> str:
    lines = ["streams:"]
    for entry in entries:
        for index, (key, value) in enumerate(entry.items()):
            lines.append(f"  {'-' if index == 0 else ' '} {key}: {_scalar(key, value)}")
    return "\n".join(lines) + "\n"


def _scalar(key: str, value: object) -> str:
    if key == "start":
        return str(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...").strip()
