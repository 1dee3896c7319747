"""The commands about hours: status, verify, plan."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, time, timedelta
from typing import Any

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.group_summary import group_name, largest_rows
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.status import ExpiredObjects, HourStatus, HourSummary, read_hours
from include.log_rollup.queries.verify import Verification, verify_hour
from include.log_rollup.steps.plan_hour import preview_hour
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size
from log_rollup_plugin.cli.all_streams import status_of_all
from log_rollup_plugin.cli.arguments import find_stream
from log_rollup_plugin.cli.output import Answer, ProgressDisplay, table, tell
from log_rollup_plugin.cli.store import open_store
from log_rollup_plugin.runs import dag_id_of

# Number of groups that `status --groups` lists of each hour of a day, and of one hour.
_GROUPS_OF_DAY = 10
_GROUPS_OF_HOUR = 100
# Number of problems that `verify` prints.
_MAX_PROBLEMS = 20
# Of tables with compressed parts.
_STORED_HEADINGS = ("bytes stored", "ratio")
# States that the pipeline does not have, for hours that no run could have completed yet.
_BEFORE_START = "before-start"
_NOT_OVER = "not-over"


def status(options: argparse.Namespace, answer: Answer) -> bool | int:
    """show the hours of a day that have begun; without a stream, an overview of all streams"""
    if options.stream is None:
        if options.groups:
            raise ConfigurationError("status: --groups needs a stream")
        return status_of_all(answer, options.json)
    stream = find_stream(options.stream)
    now = datetime.now(UTC)
    day = options.day or now.date()
    one = isinstance(day, datetime)
    if isinstance(day, datetime):
        hours, day = [day] if day <= now else [], day.date()
    else:
        midnight = datetime.combine(day, time(), UTC)
        hours = [hour for hour in (midnight + timedelta(hours=number) for number in range(24)) if hour <= now]
    with open_store(stream) as store:
        read = read_hours(store, stream, hours, groups=options.groups)
    found = [_hour(stream, summary, now) for summary in read]
    groups = {format_hour(summary.hour): summary.groups for summary in read}
    damaged = [hour for hour in found if hour["state"] == HourStatus.DAMAGED]
    if options.json:
        if options.groups:
            found = [{**hour, "group_totals": list(groups[hour["hour"]])} for hour in found]
        answer.json({"stream": stream.name, "day": f"{day}", "hours": found})
        return not damaged
    shown = [hour for hour in found if hour["state"] != _BEFORE_START]
    if shown:
        with_groups = bool(stream.aggregated.captures)
        compressed = any(hour["bytes_stored"] != hour["bytes_out"] for hour in shown)
        headings = (
            "hour (UTC)", "state", "objects", "bytes in", "bytes out", *(_STORED_HEADINGS if compressed else ()),
            "parts", "pack s", "peak sockets / cap", "verified", *(["groups"] if with_groups else ()),
        )  # fmt: skip
        rows = [_cells(hour, with_groups, compressed) for hour in shown]
        answer.lines(*table(headings, rows, (0, 1, headings.index("verified"))))
    else:
        why = f"the stream starts at {format_hour(stream.start)}" if found else "that day has not begun yet"
        tell(f"nothing to show for {day}: {why}")
    for hour in shown if options.groups else ():
        most = _GROUPS_OF_HOUR if one else _GROUPS_OF_DAY
        answer.lines(*_group_lines(hour["hour"], groups[hour["hour"]], most))
    for hour, summary in zip(found, read, strict=True):
        if hour["problem"] or hour["why_empty"]:
            tell(f"{hour['hour']}: {hour['problem'] or hour['why_empty']}")
        if hour["expired"]:
            tell(f"{hour['hour']}: {summary.expired}")
        if hour["unmatched"]:
            tell(
                f"{hour['hour']}: {hour['unmatched']:,} objects in the folder of this day belong to no hour, "
                f"as their name has another day"
            )
    return not damaged


def _group_lines(hour: str, groups: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """A table of the largest groups of an hour; no lines if it has none.

    :param most: the most groups to list
    """
    if not groups:
        return []
    largest = largest_rows(groups, most)
    compressed = any(group.get("bytes_stored") for group in largest)
    headings = (
        "group", "objects", "bytes in", "bytes out", *(_STORED_HEADINGS if compressed else ()), "parts", "folder",
    )  # fmt: skip
    rows = [
        [
            group_name(group["captures"]),
            *(_number(group[name]) for name in ("objects", "bytes_in", "bytes_out")),
            *(_stored_cells(group["bytes_in"], group.get("bytes_stored") or None) if compressed else ()),
            _number(group["parts"]),
            group["folder"],
        ]
        for group in largest
    ]
    lines = ["", f"{hour}: {len(groups):,} groups", *table(headings, rows, (0, len(headings) - 1))]
    if len(groups) > len(largest):
        lines.append(f"and {len(groups) - len(largest):,} smaller ones; --json has all")
    return lines


def _hour(stream: Stream, summary: HourSummary, now: datetime) -> dict[str, Any]:
    marker = summary.marker or {}
    stored = marker.get("bytes_stored") or marker.get("bytes_out")
    return {
        "hour": format_hour(summary.hour),
        "state": _state(stream, summary, now),
        "plan_id": marker.get("plan_id"),
        "objects": marker.get("objects"),
        "bytes_in": marker.get("bytes_in"),
        "bytes_out": marker.get("bytes_out"),
        "bytes_stored": stored,
        "ratio": round(marker["bytes_in"] / stored, 3) if stored else None,
        "parts": marker.get("parts"),
        "pack_seconds": marker.get("seconds", {}).get("pack"),
        "peak_sockets": marker.get("peak", {}).get("sockets"),
        "max_connections": marker.get("max_connections"),
        "verified": marker.get("verified"),
        "completed_at": marker.get("completed_at"),
        "foreign": marker.get("foreign"),
        "damaged": marker.get("damaged"),
        "recompressed": marker.get("recompressed"),
        "bytes_unpacked": marker.get("bytes_unpacked"),
        "unmatched": marker.get("left_out", {}).get("unmatched"),
        "groups": marker.get("groups"),
        "why_empty": marker.get("why_empty"),
        "expired": _expired_json(summary.expired),
        "problem": summary.problem or None,
    }


def _expired_json(expired: ExpiredObjects | None) -> dict[str, Any] | None:
    if expired is None:
        return None
    return {
        "objects": expired.objects, "bytes": expired.size, "at": expired.at, "finished": expired.finished,
    }  # fmt: skip


def _state(stream: Stream, summary: HourSummary, now: datetime) -> str:
    """The state of an hour; incomplete ones are split by whether a run could have completed them by now."""
    if summary.state is HourStatus.INCOMPLETE:
        if summary.hour < stream.start:
            return _BEFORE_START
        if stream.at(summary.hour).end > now:
            return _NOT_OVER
    return summary.state.value


def _stored_cells(bytes_in: int | None, stored: int | None) -> list[str]:
    """Stored bytes and the ratio, as cells of a table."""
    return [_number(stored), f"{bytes_in / stored:.1f}x" if bytes_in is not None and stored else "-"]


def _cells(hour: Mapping[str, Any], with_groups: bool, compressed: bool) -> list[str]:
    verified = hour["verified"] or {}
    seconds = hour["pack_seconds"]
    sockets = f"{hour['peak_sockets']} / {hour['max_connections']}"
    return [
        f"{datetime.fromisoformat(hour['hour']):%Y-%m-%d %H:%M}",
        hour["state"],
        *(_number(hour[name]) for name in ("objects", "bytes_in", "bytes_out")),
        *(_stored_cells(hour["bytes_in"], hour["bytes_stored"]) if compressed else ()),
        _number(hour["parts"]),
        "-" if seconds is None else f"{seconds:.1f}",
        "-" if hour["peak_sockets"] is None else sockets,
        "; ".join(f"{kind} {_counts(verified.get(kind, {}))}" for kind in ("parts", "objects"))
        if verified
        else "-",
        *([_number(hour["groups"])] if with_groups else []),
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _counts(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "0"


def verify(options: argparse.Namespace, answer: Answer) -> bool:
    """prove a complete hour again; changes nothing"""
    stream = find_stream(options.stream)
    title = f"{'reading' if options.deep else 'verifying'} {format_hour(options.hour)}"
    with open_store(stream) as store, ProgressDisplay(title) as progress:
        found = verify_hour(store, stream, options.hour, deep=options.deep, on_progress=progress)
    if options.json:
        answer.json(_verification(stream, options.hour, found))
    else:
        answer.lines(*_report(options.hour, found))
    return not found.problems


def _verification(stream: Stream, hour: datetime, found: Verification) -> dict[str, Any]:
    return {
        "stream": stream.name,
        "hour": format_hour(hour),
        "ok": not found.problems,
        "deep": found.deep,
        "plan_id": found.plan_id,
        "objects": found.objects,
        "bytes_in": found.bytes_in,
        "bytes_out": found.bytes_out,
        "parts": found.parts,
        "proofs": dict(found.proofs),
        "raw": {
            "present": found.raw_present,
            "compared": found.raw_compared,
            "expired": len(found.changes.vanished) + found.changes.expired,
            "vanished": len(found.changes.vanished),
            "changed": len(found.changes.changed),
            "late": len(found.changes.late),
        },
        "foreign": found.foreign,
        "groups": found.groups,
        "problems": [
            {
                "part": problem.part,
                "reason": problem.reason,
                "keys": list(problem.keys),
                "group": problem.group,
            }
            for problem in found.problems
        ],
        "remedy": found.remedy,
    }


def _report(hour: datetime, found: Verification) -> Sequence[str]:
    vanished = len(found.changes.vanished)
    expired = vanished + found.changes.expired
    compared = f", {found.raw_compared:,} compared byte for byte" if found.deep else ""
    lines = [
        f"hour {format_hour(hour)}, plan {found.plan_id}: {found.objects:,} objects, "
        f"{format_size(found.bytes_in)} in {found.parts:,} parts",
        f"parts proven: {_counts(found.proofs)}",
        f"raw objects: {found.raw_present:,} as they were packed{compared}",
    ]
    if found.groups is not None:
        lines.append(f"groups: {found.groups:,}")
    if expired:
        lines.append(f"{expired:,} raw objects have expired: their parts are proven by the manifest alone")
    if found.changes.expired and vanished:
        lines.append(
            f"{vanished:,} of them are not in the hour's record of expired objects; a rerun is refused"
        )
    if found.foreign:
        lines.append(
            f"{found.foreign:,} foreign objects are beside the parts; take the parts from the manifest"
        )
    lines += [
        f"FAILED: {problem.part}: {problem.reason}" if problem.part else f"FAILED: {problem.reason}"
        for problem in found.problems[:_MAX_PROBLEMS]
    ]
    if len(found.problems) > _MAX_PROBLEMS:
        lines.append(f"FAILED: {len(found.problems) - _MAX_PROBLEMS:,} more problems; --json has all")
    if found.remedy:
        lines.append(found.remedy)
    if not found.problems:
        lines.append("OK")
    return lines


def plan(options: argparse.Namespace, answer: Answer) -> bool:
    """show what planning an hour would do now (with --dry-run)"""
    stream = find_stream(options.stream)
    hour = format_hour(options.hour)
    if not options.dry_run:
        conf = f'{{"hour": "{hour}"}}'
        raise ConfigurationError(
            f"only Airflow plans hours: clear the hour's run, or trigger it with "
            f"airflow dags trigger {dag_id_of(stream)} --conf '{conf}'. With --dry-run this command shows what "
            f"planning would do."
        )
    with open_store(stream) as store:
        found = preview_hour(store, stream, options.hour, options.repack)
    if options.json:
        answer.json({"stream": stream.name, "hour": hour, **asdict(found)})
        return True
    to_write = found.parts - found.parts_standing
    answer.lines(
        f"hour {hour}, plan {found.plan_id}: {found.objects:,} objects, {format_size(found.bytes_in)}",
        f"left out: {found.left_out}",
        f"parts: {found.parts:,}, of which {found.parts_copied:,} copied by S3; shards: {found.shards:,}",
        f"parts that exist as planned: {found.parts_standing:,}; parts to write: {to_write:,}",
    )
    if found.groups is not None:
        largest = ", ".join(
            f"{group_name(group.captures)} ({group.objects:,} objects, {format_size(group.bytes_in)})"
            for group in found.largest_groups
        )
        answer.lines(f"groups: {found.groups:,}" + (f"; the largest: {largest}" if largest else ""))
    if found.unchanged:
        answer.lines("The hour is complete with this plan: nothing would be done.")
    return True
