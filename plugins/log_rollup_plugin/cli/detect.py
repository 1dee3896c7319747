"""The command detect: proposes a streams file for objects that exist."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.detect import MAX_REQUESTS, Detection, producers_of
from include.log_rollup.queries.detect import detect as find
from include.log_rollup.queries.proposal import Proposal, SampledHour
from include.log_rollup.storage.protocol import Location
from include.log_rollup.units import format_duration, format_size
from log_rollup_plugin.cli.arguments import check_utf8
from log_rollup_plugin.cli.output import Answer, table
from log_rollup_plugin.cli.store import open_connection

# The most hours and keys that the text shows; JSON has all hours.
_SHOWN_HOURS = 12
_SHOWN_KEYS = 3
_JSON_KEYS = 20


def detect(options: argparse.Namespace, answer: Answer) -> bool:
    """propose streams for the objects below a prefix, as a streams file"""
    place = _place_of(options.url)
    with open_connection(options.conn_id) as store:
        found = find(store, place, datetime.now(UTC), options.conn_id)
    if options.json:
        answer.json(_document(found))
    else:
        answer.lines(*(f"# {line}".rstrip() for line in _report(found)), *found.text.splitlines())
    return True


def _place_of(url: str) -> Location:
    bucket, slash, key = url.removeprefix("s3://").partition("/")
    if not url.startswith("s3://") or not bucket or "*" in url:
        raise ConfigurationError(f"{url!r} is not an S3 URL; write it like s3://my-bucket/raw/")
    check_utf8(url)
    return Location(bucket, key if slash else "")


def _report(found: Detection) -> Iterator[str]:
    extent = "all" if found.is_whole else "a sample"
    yield (
        f"{found.place}: {found.objects:,} objects listed ({extent}), with {found.requests} of at most "
        f"{MAX_REQUESTS} requests"
    )
    for proposal in found.proposals:
        yield ""
        yield from _about(proposal)
    if found.not_read:
        yield ""
        yield "Not read by these streams:"
        for reason, keys in found.not_read.items():
            looks = " or ".join(producer.name for producer in producers_of(keys))
            yield f"  {len(keys):,}: {reason}{f'; looks like {looks}' if looks else ''}, like"
            yield from (f"    {key}" for key in keys[:_SHOWN_KEYS])
    if found.not_sampled:
        yield ""
        yield f"Not sampled: {len(found.not_sampled):,} folders, for which give a longer prefix, like"
        yield from (f"    {folder}" for folder in found.not_sampled[:_SHOWN_KEYS])
    yield ""
    yield "What follows is a streams file: adjust name, aggregated and start, then run ./log-rollup doctor."


def _about(proposal: Proposal) -> Iterator[str]:
    yield f"{proposal.stream.name}: {proposal.stream.raw.text}"
    producers = proposal.layout.producers
    if producers:
        names = " or ".join(f"{item.name} (docs/SOURCES.md#{item.anchor})" for item in producers)
        yield f"  looks like {names}"
    else:
        yield "  looks like no producer of docs/SOURCES.md"
    yield f"  encodings: {_counts(proposal.encodings)}; left out: {proposal.left_out}"
    if proposal.quiet:
        last, gap = format_duration(proposal.quiet.last), format_duration(proposal.quiet.gap)
        if proposal.quiet.gap:
            yield f"  objects came up to {last} after the end of their hour, and up to {gap} after the one before"
        else:
            yield "  no object came after the end of its hour"
    if proposal.newlines.read and not proposal.newlines.without:
        yield f"  all of {proposal.newlines.read} plain objects that were read end with a newline"
    for remark in proposal.remarks:
        yield f"  ! {remark}"
    shown = proposal.hours[-_SHOWN_HOURS:]
    has_groups = bool(proposal.stream.aggregated.captures)
    headings = ("hour (UTC)", *(["group"] if has_groups else []), "objects", "bytes", "written (UTC)")
    rows = [_cells(hour, has_groups) for hour in shown]
    if len(proposal.hours) > len(shown):
        what = "hours and groups" if has_groups else "hours"
        yield f"  the last {len(shown)} of {len(proposal.hours):,} {what} in the sample:"
    for line in table(headings, rows, (0, 1, len(headings) - 1) if has_groups else (0, 3)):
        yield f"  {line}"


def _cells(hour: SampledHour, has_groups: bool) -> Sequence[str]:
    return (
        f"{hour.hour:%Y-%m-%d %H:%M}",
        *([", ".join(hour.group.values())] if has_groups else []),
        f"{hour.objects:,}",
        format_size(hour.size_bytes),
        f"{hour.first:%Y-%m-%d %H:%M} to {hour.last:%H:%M}"
        if hour.first.date() == hour.last.date()
        else f"{hour.first:%Y-%m-%d %H:%M} to {hour.last:%Y-%m-%d %H:%M}",
    )


def _counts(counts: Any) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"


def _document(found: Detection) -> dict[str, Any]:
    return {
        "url": f"{found.place}",
        "requests": found.requests,
        "max_requests": MAX_REQUESTS,
        "objects": found.objects,
        "is_whole": found.is_whole,
        "streams": [_proposal(proposal) for proposal in found.proposals],
        "not_sampled": {
            "folders": len(found.not_sampled),
            "names": list(found.not_sampled[:_JSON_KEYS]),
        },
        "not_read": [
            {"reason": reason, "objects": len(keys), "keys": list(keys[:_JSON_KEYS])}
            for reason, keys in found.not_read.items()
        ],
        "yaml": found.text,
    }


def _proposal(proposal: Proposal) -> dict[str, Any]:
    layout, quiet, newlines = proposal.layout, proposal.quiet, proposal.newlines
    return {
        "entry": dict(proposal.entry),
        "producers": [{"name": item.name, "section": item.anchor} for item in layout.producers],
        "alternatives": list(layout.alternatives),
        "timezone": {
            "zone": proposal.zone.zone,
            "others": list(proposal.zone.others),
            "is_known": proposal.zone.is_known,
            "reason": proposal.zone.reason,
        },
        "gap_seconds": quiet.gap.total_seconds() if quiet else None,
        "last_seconds": quiet.last.total_seconds() if quiet else None,
        "encodings": dict(proposal.encodings),
        "left_out": asdict(proposal.left_out),
        "newlines": {
            "read": newlines.read,
            "without": newlines.without,
            "formats": dict(newlines.formats or {}),
        },
        "remarks": list(proposal.remarks),
        "hours": [
            {
                "hour": format_hour(hour.hour),
                "group": dict(hour.group),
                "objects": hour.objects,
                "bytes": hour.size_bytes,
                "first_written": hour.first.isoformat(),
                "last_written": hour.last.isoformat(),
            }
            for hour in proposal.hours
        ],
    }
