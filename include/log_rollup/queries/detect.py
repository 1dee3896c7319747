"""Proposes streams for the objects that a bucket already has, from a sample of their keys."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import yaml

from include.log_rollup import limits
from include.log_rollup.errors import (
    ConfigurationError,
    NotFoundError,
    UnknownLayoutError,
)
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.queries.layouts import Layout, find_layouts, reason_without_layout
from include.log_rollup.queries.object_ends import EndReader
from include.log_rollup.queries.producers import BY_NAME, Producer
from include.log_rollup.queries.proposal import DEFAULT_CONNECTION, Draft, Proposal
from include.log_rollup.queries.sample_keys import KeySample
from include.log_rollup.storage.protocol import Location, SampledStore, TimedObject
from include.log_rollup.streams import parse_streams

MAX_REQUESTS = limits.DETECT_LIST_REQUESTS + limits.DETECT_READ_REQUESTS
MAX_STREAMS = 8
# Folders whose names do not describe their objects.
_USUAL_FOLDERS = frozenset(("raw", "log", "logs", "data", "topics"))
# Only where these are is a folder one that this project has written.
_MANIFEST = "_manifest.jsonl.gz"
NOT_PROPOSED = (
    "more layouts than are proposed at once, or one that overlaps with another; give a longer prefix"
)
OWN = "parts and records that Log Rollup has written"


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
        Draft(layout, name, rows, reader, max(2, limits.DETECT_READ_REQUESTS // len(layouts)), now, conn_id)
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
