"""The answers of the page's API, and how they are built; sizes are in bytes, durations in seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import Response
from pydantic import TypeAdapter

from include.log_rollup.hour.group_summary import group_name, largest_rows
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.template import Template
from include.log_rollup.queries.hour_detail import FrameStatus, HourDetail, PartStatus
from include.log_rollup.queries.overview import late_after
from include.log_rollup.queries.status import ExpiredObjects, HourStatus, HourSummary
from include.log_rollup.storage.protocol import Location
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.cache import CachedHour
from log_rollup_plugin.hours_page.cost_view import CostView
from log_rollup_plugin.hours_page.database import HourRun, HourTask, LateHour
from log_rollup_plugin.hours_page.hour_cells import CellStatus, cell_of
from log_rollup_plugin.runs import dag_id_of
from log_rollup_plugin.urls import console_page

# Number of groups and parts of an hour in one answer.
SHOWN_GROUPS = 50
MOST_GROUPS = 1_000
MOST_PARTS = 1_000
# Number of frames of a part in one answer. A part of 256 MiB has about 45, one of small frames thousands.
MOST_FRAMES = 100


@dataclass(frozen=True, slots=True)
class StreamView:
    """A stream."""

    name: str
    dag_id: str
    raw: str
    aggregated: str
    start: datetime
    part_size: int
    max_connections: int
    late_after: float
    paused: bool | None
    """None if Airflow does not know the Dag yet."""


@dataclass(frozen=True, slots=True)
class StreamsView:
    """The streams whose Dags the user may read."""

    streams: Sequence[StreamView]
    now: datetime


@dataclass(frozen=True, slots=True)
class MarkerView:
    """The fields of a completion marker that the calendar and the charts show.

    :param bytes_stored: size of the parts in the bucket; None if none of them is compressed
    """

    objects: int
    bytes_in: int
    bytes_out: int
    parts: int
    pack_seconds: float
    sockets: int
    max_connections: int
    completed_at: str
    groups: int | None
    bytes_stored: int | None = None


@dataclass(frozen=True, slots=True)
class HourView:
    """An hour of the calendar."""

    hour: str
    state: CellStatus
    why: str
    run_id: str | None
    marker: MarkerView | None
    late: LateHour | None
    expired: ExpiredObjects | None = None


@dataclass(frozen=True, slots=True)
class BucketView:
    """How old the answers of the bucket are, and what is missing.

    :param pending: number of hours that are still being read
    :param error: why the bucket could not be read; empty if it could
    """

    oldest: datetime | None
    newest: datetime | None
    pending: int
    error: str


@dataclass(frozen=True, slots=True)
class TotalsView:
    """The totals of the complete hours of a month, as far as their markers have been read.

    :param hours: number of these hours
    :param compressed: number of those with compressed parts
    :param bytes_stored: size of the parts in the bucket
    """

    hours: int = 0
    compressed: int = 0
    objects: int = 0
    bytes_in: int = 0
    bytes_stored: int = 0


@dataclass(frozen=True, slots=True)
class MonthView:
    """A month of hours of a stream."""

    stream: StreamView
    month: str
    now: datetime
    hours: Sequence[HourView]
    bucket: BucketView
    totals: TotalsView = TotalsView()
    cost: CostView | None = None


@dataclass(frozen=True, slots=True)
class PlaceView:
    """Where the raw objects, parts or records of an hour are.

    :param url: for people; with captures it is a template, such as ``s3://logs/raw/{service}/20261123/08/``
    :param console: URL in the AWS console; None for other servers
    :param prefixes: the prefixes of ``url``; none if it has captures, or if no raw object can belong to the hour
    :param captures: names of the captures in ``url``
    """

    url: str
    console: str | None
    prefixes: Sequence[str]
    captures: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group of a complete hour, with the prefix of its parts.

    :param bytes_stored: size of its parts in the bucket; None if none of them is compressed
    """

    name: str
    objects: int
    bytes_in: int
    parts: int
    damaged: int
    place: PlaceView
    bytes_stored: int | None = None


@dataclass(frozen=True, slots=True)
class GroupsView:
    """Groups of a complete hour, the largest first.

    :param total: number of groups of the hour
    :param found: number of those whose name contains the text that was searched
    :param groups: the largest of these
    """

    total: int
    found: int
    groups: Sequence[GroupView]


@dataclass(frozen=True, slots=True)
class FramesView:
    """The frames of a compressed part.

    :param total: number of its frames
    :param frames: the first of them
    """

    total: int
    frames: Sequence[FrameStatus]


@dataclass(frozen=True, slots=True)
class DetailView:
    """One hour in full, in a bounded size.

    :param parts: the first ones
    :param parts_found: number of all parts that are known
    :param groups: the largest ones; None if the hour has none or is not complete
    :param records: where the hour's own records are; None if they are beside its parts
    :param planned: number of planned parts, objects and bytes of an hour that is being built
    :param unclear: why the parts are not known
    :param runs: the unfinished run first, then the last one
    :param tasks: the tasks of the first of these runs
    :param late: None if nothing was found, or if the user may not read log_rollup_late
    :param may_clear: whether the user may clear a run
    :param expired: the raw objects that were deleted because parts hold them; None if there are none
    """

    stream: StreamView
    hour: str
    now: datetime
    state: CellStatus
    why: str
    marker: Mapping[str, Any] | None
    parts: Sequence[PartStatus]
    planned: Mapping[str, int] | None
    unclear: str
    runs: Sequence[HourRun]
    tasks: Sequence[HourTask]
    late: LateHour | None
    raw: PlaceView
    aggregated: PlaceView
    error: str
    may_clear: bool
    parts_found: int = 0
    groups: GroupsView | None = None
    records: PlaceView | None = None
    expired: ExpiredObjects | None = None


_ADAPTERS = {view: TypeAdapter(view) for view in (MonthView, DetailView, GroupsView, FramesView)}


def json_response(view: MonthView | DetailView | GroupsView | FramesView) -> Response:
    """Encode an answer in the calling thread; FastAPI would do it in the thread that serves all requests."""
    return Response(_ADAPTERS[type(view)].dump_json(view), media_type="application/json")


def stream_view(stream: Stream, paused: Mapping[str, bool]) -> StreamView:
    """The view of a stream.

    :param paused: whether each Dag that Airflow knows is paused
    """
    return StreamView(
        stream.name, dag_id_of(stream), str(stream.raw), str(stream.aggregated), stream.start,
        stream.part_size, stream.max_connections, late_after(stream).total_seconds(),
        paused.get(dag_id_of(stream)),
    )  # fmt: skip


def hour_view(
    stream: Stream,
    hour: datetime,
    now: datetime,
    cached: CachedHour | None,
    runs: Sequence[HourRun],
    late: Mapping[str, LateHour],
) -> HourView:
    """The view of an hour in the calendar.

    :param cached: what was last read from the bucket
    :param runs: the hour's runs, the one that counts first
    :param late: what log_rollup_late found, by hour
    """
    run = runs[0] if runs else None
    cell = cell_of(stream, hour, now, cached, run)
    summary = cached.summary if cached else None
    is_complete = summary is not None and summary.state is HourStatus.COMPLETE
    marker = _marker_view(summary.marker) if summary is not None and is_complete else None
    name = format_hour(hour)
    return HourView(
        name, cell.status, cell.reason, run.run_id if run else None, marker, late.get(name),
        summary.expired if summary else None,
    )  # fmt: skip


def _marker_view(marker: Mapping[str, Any] | None) -> MarkerView | None:
    """None for a marker that another version wrote."""
    if not marker:
        return None
    return MarkerView(
        marker["objects"], marker["bytes_in"], marker["bytes_out"], marker["parts"],
        marker["seconds"]["pack"], marker["peak"]["sockets"], marker["max_connections"],
        marker["completed_at"], marker.get("groups"), marker.get("bytes_stored"),
    )  # fmt: skip


def totals_view(hours: Sequence[HourView]) -> TotalsView:
    """The totals of the complete hours among these."""
    markers = [hour.marker for hour in hours if hour.marker is not None]
    return TotalsView(
        hours=len(markers),
        compressed=sum(marker.bytes_stored is not None for marker in markers),
        objects=sum(marker.objects for marker in markers),
        bytes_in=sum(marker.bytes_in for marker in markers),
        bytes_stored=sum(
            marker.bytes_out if marker.bytes_stored is None else marker.bytes_stored for marker in markers
        ),
    )


def planned_view(detail: HourDetail | None) -> Mapping[str, int] | None:
    """The totals of the hour's plan, if it is being built."""
    plan = detail.planned if detail else None
    return {"parts": plan.parts, "objects": plan.objects, "bytes": plan.bytes_in} if plan else None


def place_views(stream: Stream, hour: datetime, meta: Any) -> tuple[PlaceView, PlaceView, PlaceView | None]:
    """The raw and the aggregated prefix of an hour; and with groups that of its records.

    The console shows folders: for a prefix with captures, or one that ends within a name, the folder above it.

    :param meta: of the boto3 client for the parts; None if there is none, then there are no links to the console
    """
    paths = stream.at(hour)
    base = paths.key_base
    raw = stream.raw.location(base[: base.rfind("/") + 1])
    raw_meta = None if stream.has_two_connections else meta
    return (
        _template_view(stream.raw, hour, raw, raw_meta),
        _template_view(stream.aggregated, hour, paths.base, meta),
        place_view(paths.home, meta) if paths.has_groups else None,
    )


def _template_view(template: Template, hour: datetime, folder: Location, meta: Any) -> PlaceView:
    """The prefixes of a template in an hour.

    :param folder: shown in the console
    :param meta: of the boto3 client; None if there is none
    """
    keys = () if template.captures else template.prefixes(hour, {})
    return PlaceView(
        url=template.show(hour),
        console=console_page(meta, folder) if meta else None,
        prefixes=[str(template.location(key)) for key in keys],
        captures=template.captures,
    )


def place_view(folder: Location, meta: Any) -> PlaceView:
    """A prefix of parts or records.

    :param meta: of the boto3 client for the parts; None if there is none
    """
    return PlaceView(str(folder), console_page(meta, folder) if meta else None, [str(folder)])


def groups_view(
    stream: Stream, summary: HourSummary, meta: Any, search: str = "", most: int = SHOWN_GROUPS
) -> GroupsView | None:
    """The largest groups of a complete hour; None if it has no groups.

    :param search: only groups whose name contains this text, in any case
    :param most: the most groups to return
    """
    paths = stream.at(summary.hour)
    if not paths.has_groups or summary.state is not HourStatus.COMPLETE:
        return None
    wanted = search.casefold()
    found = [group for group in summary.groups if wanted in "/".join(group["captures"].values()).casefold()]
    views = []
    for group in largest_rows(found, most):
        folder = paths.base.child(group["folder"])
        views.append(
            GroupView(
                group_name(group["captures"]), group["objects"], group["bytes_in"], group["parts"],
                group["damaged"], place_view(folder, meta), group.get("bytes_stored") or None,
            )
        )  # fmt: skip
    return GroupsView(len(summary.groups), len(found), views)
