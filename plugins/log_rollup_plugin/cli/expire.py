"""The command expire: deletes raw objects of old complete hours, or shows what can be deleted."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.steps.expire_hour import HourExpiry
from include.log_rollup.steps.expire_stream import StreamExpiry, describe, expire_stream, old_hours
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_duration, format_size
from log_rollup_plugin.cli import arguments
from log_rollup_plugin.cli.output import Answer, table, tell
from log_rollup_plugin.cli.store import open_store

# Hours that are listed, and reasons; --json has all.
_MAX_HOURS = 48
_KINDS = ("late", "changed", "vanished", "refused")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "hours",
        metavar="HOUR",
        nargs="?",
        type=arguments.hours,
        help="like 2026-11-23T08, or a range like 2026-11-23T08..2026-11-23T10 (default: all hours that are older "
        "than expire_raw.after)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what can be deleted; change nothing")


def expire(options: argparse.Namespace, answer: Answer) -> bool:
    """delete the raw objects of old complete hours, of which parts hold proven copies"""
    stream = arguments.find_stream(options.stream).for_expiry
    now = datetime.now(UTC)
    hours = _hours(stream, options.hours, now, options.dry_run)
    with open_store(stream) as store:
        result = expire_stream(
            store, stream, hours, delete=not options.dry_run, skip_over=options.hours is None,
            on_hour=_tell if sys.stderr.isatty() and not options.json else None,
        )  # fmt: skip
    if options.json:
        answer.json(result.to_json(most_hours=None))
    else:
        answer.lines(*_report(result))
    return result.is_ok and not (options.hours and result.incomplete)


def _hours(
    stream: Stream, given: Sequence[datetime] | None, now: datetime, dry_run: bool
) -> Sequence[datetime]:
    """The hours of the command line, or all old ones.

    :raises ConfigurationError: if the streams file does not allow to delete them
    """
    rules = stream.expire_raw
    if dry_run and given:
        return given
    if rules is None:
        raise ConfigurationError(
            f"stream {stream.name!r} has no expire_raw, so nothing is deleted; add it, like "
            f"expire_raw: {{after: 14d, mode: delete}}, or give an hour and --dry-run"
        )
    if not dry_run and rules.mode != "delete":
        raise ConfigurationError(
            f"expire_raw of stream {stream.name!r} has mode: report, so nothing is deleted; set mode: delete, or "
            f"use --dry-run"
        )
    if given is None:
        return old_hours(stream, now)
    for hour in given:
        if stream.at(hour).end + rules.after > now:
            raise ConfigurationError(
                f"hour {format_hour(hour)} ended less than {format_duration(rules.after)} ago, the age in "
                f"expire_raw.after; choose older hours, or use --dry-run"
            )
    return given


def _tell(found: HourExpiry) -> None:
    tell(f"{format_hour(found.hour)}: {found.state}, {found.objects:,} raw objects")


def _report(result: StreamExpiry) -> list[str]:
    shown = [one for one in result.found if one.objects or one.reason]
    lines = []
    if shown:
        headings = ("hour (UTC)", "state", "objects", "bytes", *_KINDS, "expired in all")
        rows = [_cells(one) for one in shown[:_MAX_HOURS]]
        lines += [*table(headings, rows, (0, 1)), ""]
        if len(shown) > _MAX_HOURS:
            lines.append(f"and {len(shown) - _MAX_HOURS:,} more hours; --json has all")
    for one in shown[:_MAX_HOURS]:
        if one.reason:
            lines.append(f"{format_hour(one.hour)}: {one.reason}")
        for kind in _KINDS:
            keys = getattr(one, kind)
            if keys.count:
                more = ", …" if keys.count > len(keys.first) else ""
                lines.append(f"{format_hour(one.hour)}: {kind}: {', '.join(keys.first)}{more}")
    markers = sum(one.delete_markers for one in result.found)
    if markers:
        lines.append(
            f"the bucket is versioned: {markers:,} deletes left delete markers; the bytes stay as older versions"
        )
    return [*lines, describe(result)]


def _cells(one: HourExpiry) -> list[str]:
    return [
        f"{one.hour:%Y-%m-%d %H:%M}",
        one.state.value,
        f"{one.objects:,}",
        format_size(one.size),
        *(f"{getattr(one, kind).count:,}" for kind in _KINDS),
        f"{one.expired:,}",
    ]
