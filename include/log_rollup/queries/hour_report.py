"""The totals of a complete hour for events, XComs and notes, in a bounded size; sizes are in bytes."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from include.log_rollup.errors import RollupError
from include.log_rollup.hour.group_summary import FEW_GROUPS, GroupChanges, largest_groups
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.manifest import GroupTotals, HourTotals
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.records import Records
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)

# An event names so many groups, in so many bytes of JSON: it is a row of the metadata database.
EVENT_GROUPS = 100
EVENT_GROUP_BYTES = 32 * 1024


def event_of(stream: Stream, hour: datetime, totals: HourTotals) -> dict[str, Any]:
    """The content of an asset event: totals of a complete hour, sizes in bytes, and its locations.

    Small enough for a row of the metadata database: of many groups, only the largest are in it. The same hour with
    the same ``plan_id`` has the same parts.
    """
    paths = stream.at(hour)
    event = {
        "stream": stream.name,
        "hour": format_hour(hour),
        "plan_id": totals.plan_id,
        "objects": totals.objects,
        "bytes_in": totals.bytes_in,
        "bytes_out": totals.bytes_out,
        "parts": totals.parts,
        "aggregated": str(paths.aggregated),
        "manifest": str(paths.manifest),
        "marker": str(paths.marker),
    }
    if totals.bytes_stored:
        event["bytes_stored"] = totals.bytes_stored
    if totals.recompressed:
        event |= {"recompressed": totals.recompressed, "bytes_unpacked": totals.bytes_unpacked}
    if paths.has_groups:
        event |= {"groups": len(totals.groups), "group_totals": list(_event_groups(paths, totals))}
    return event


def _event_groups(paths: HourPaths, totals: HourTotals) -> Iterator[dict[str, Any]]:
    """The totals of the largest groups, as far as they fit."""
    size = 0
    for group in largest_groups(totals.groups, EVENT_GROUPS):
        row = {
            "captures": dict(group.captures),
            "objects": group.objects,
            "bytes_in": group.bytes_in,
            "bytes_out": group.bytes_out,
            "parts": group.parts,
            "aggregated": str(paths.base.child(group.folder)),
        }
        size += len(json.dumps(row))
        if size > EVENT_GROUP_BYTES:
            return
        yield row


def result_of(stream: Stream, hour: datetime, totals: HourTotals) -> dict[str, Any]:
    """The totals of an hour as a task returns them: of the groups, only their number and the largest ones."""
    paths = stream.at(hour)
    values = asdict(totals)
    groups = values.pop("groups")
    del values["group"]
    if paths.has_groups:
        few = largest_groups(totals.groups, FEW_GROUPS)
        values |= {"groups": len(groups), "largest_groups": list(map(_short_row, few))}
    if why_empty := paths.raw_template.why_empty(hour):
        values["why_empty"] = why_empty
    return values


def _short_row(group: GroupTotals) -> dict[str, Any]:
    return {
        "captures": dict(group.captures),
        "objects": group.objects,
        "bytes_in": group.bytes_in,
        "parts": group.parts,
    }


def compare_with_hour_before(
    store: ObjectStore, stream: Stream, hour: datetime, totals: HourTotals
) -> GroupChanges | None:
    """Which groups the hour before did not have, and which only it had; takes one request.

    :returns: None if the stream has no groups, or the hour before is not complete or cannot be read
    """
    if not stream.at(hour).has_groups:
        return None
    try:
        stored = Records(store).read_marker(stream.at(hour - timedelta(hours=1)).marker)
    except RollupError as error:
        log.info("the groups are not compared with those of the hour before: %s", error)
        return None
    if stored is None or stored.content is None:
        return None
    try:
        before = [_captures(group) for group in stored.content.groups]
    except (LookupError, TypeError, ValueError) as error:
        log.info(
            "the groups are not compared with those of the hour before: its marker is damaged (%r)", error
        )
        return None
    return GroupChanges.between(before, (group.captures for group in totals.groups))


def _captures(group: Mapping[str, Any]) -> Mapping[str, str]:
    return {str(name): str(value) for name, value in dict(group["captures"]).items()}
