"""The API of the page Hours; it only reads."""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dag import DagModel
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from include.log_rollup import limits
from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import format_hour, parse_hour
from include.log_rollup.queries.hour_detail import HourDetail, read_frames, read_hour
from include.log_rollup.queries.status import read_hours
from include.log_rollup.streams import Stream, load_streams
from log_rollup_plugin.hours_page.cache import MarkerCache, explain
from log_rollup_plugin.hours_page.cost_view import cost_view
from log_rollup_plugin.hours_page.database import (
    LATE_DAG_ID,
    HourRun,
    LateHour,
    is_paused,
    late_hours,
    runs_between,
    tasks_of,
)
from log_rollup_plugin.hours_page.hour_cells import cell_of
from log_rollup_plugin.hours_page.page_store import OpenStore, open_store
from log_rollup_plugin.hours_page.page_threads import BusyError, PageThreads
from log_rollup_plugin.hours_page.views import (
    MOST_FRAMES,
    MOST_GROUPS,
    MOST_PARTS,
    SHOWN_GROUPS,
    BucketView,
    DetailView,
    FramesView,
    GroupsView,
    MonthView,
    PlaceView,
    StreamsView,
    groups_view,
    hour_view,
    json_response,
    place_views,
    planned_view,
    stream_view,
    totals_view,
)
from log_rollup_plugin.runs import dag_id_of
from log_rollup_plugin.s3.hook import PooledS3Hook

log = logging.getLogger(__name__)

_MONTH = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")


def known_streams() -> list[Stream]:
    """All streams of the streams file.

    :raises HTTPException: 503 if the file is wrong or missing. The error itself goes only to the log, because it
        may name streams that the user may not read
    """
    try:
        return load_streams()
    except ConfigurationError as error:
        log.error("the page Hours cannot show any stream: %s", error)
        raise HTTPException(
            503,
            "the streams file of this api-server is wrong or cannot be read; LOG_ROLLUP_STREAMS has to name a "
            "readable file. The error is in the log of the api-server and among Airflow's Dag import errors, for "
            "users who may see those",
        ) from None


def readable_stream(stream: str, request: Request, user: GetUserDep) -> Stream:
    """The stream of the path, if the user may read its Dag, runs and tasks.

    :raises HTTPException: 403 if not, 404 if there is no such stream
    """
    dag_id = f"log_rollup_{stream}"
    for entity in (None, DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE):
        requires_access_dag("GET", entity, dag_id)(request, user)
    found = next((one for one in known_streams() if one.name == stream), None)
    if found is None:
        raise HTTPException(404, f"there is no stream {stream!r} in the streams file of this api-server")
    return found


def month_hours(month: str) -> list[datetime]:
    """The hours of a month such as ``2026-11``.

    :raises HTTPException: 400 if it is not a month
    """
    match = _MONTH.fullmatch(month)
    if not match:
        raise HTTPException(400, f"month: {month!r} is not a month of 2000 to 2099; write it like 2026-11")
    first = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    end = (first + timedelta(days=32)).replace(day=1)
    return [first + timedelta(hours=number) for number in range(int((end - first).total_seconds()) // 3600)]


def one_hour(hour: str) -> datetime:
    """An hour such as ``2026-11-23T08:00:00Z``.

    :raises HTTPException: 400 if it is not an hour
    """
    try:
        parsed = parse_hour(hour)
        if format_hour(parsed) == hour and _MONTH.fullmatch(hour[:7]):
            return parsed
    except ConfigurationError:
        pass
    raise HTTPException(
        400, f"hour: {hour!r} is not a whole UTC hour of 2000 to 2099; write it like 2026-11-23T08:00:00Z"
    )


ReadableStream = Annotated[Stream, Depends(readable_stream)]


@dataclass(frozen=True, slots=True)
class _BucketHour:
    """What was read of one hour.

    :param detail: None if it could not be read
    :param error: why; empty if it could
    """

    detail: HourDetail | None
    raw: PlaceView
    aggregated: PlaceView
    records: PlaceView | None
    error: str
    groups: GroupsView | None = None
    frames: FramesView | None = None


class HoursApi:
    """The routes of the API.

    Reads of S3 run in threads of the page. The threads that all pages of Airflow share are used only for the
    database and for encoding answers.

    :param clock: returns the present time
    :param open_store: opens the store of a stream
    """

    def __init__(
        self, clock: Callable[[], datetime] = lambda: datetime.now(UTC), open_store: OpenStore = open_store
    ) -> None:
        self._clock = clock
        self._open_store = open_store
        self._cache = MarkerCache(open_store, clock)
        self._threads = PageThreads(
            limits.HOUR_PAGE_THREADS,
            "log-rollup-hours",
            limits.HOUR_PAGE_QUEUE_SECONDS,
            limits.HOUR_PAGE_READ_SECONDS,
        )
        self.router = APIRouter(prefix="/api/streams")
        self.router.add_api_route("", self.streams)
        self.router.add_api_route("/{stream}/hours", self.month, response_model=None)
        self.router.add_api_route("/{stream}/hours/{hour}", self.hour, response_model=None)
        self.router.add_api_route("/{stream}/hours/{hour}/groups", self.groups, response_model=None)
        self.router.add_api_route("/{stream}/hours/{hour}/frames", self.frames, response_model=None)

    def streams(self, user: GetUserDep, session: SessionDep) -> StreamsView:
        """The streams whose Dags the user may read."""
        readable = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
        streams = [stream for stream in known_streams() if dag_id_of(stream) in readable]
        paused = is_paused(session, map(dag_id_of, streams))
        return StreamsView([stream_view(stream, paused) for stream in streams], self._clock())

    async def month(
        self,
        stream: ReadableStream,
        user: GetUserDep,
        session: SessionDep,
        month: Annotated[str, Query(description="like 2026-11")],
        refresh: Annotated[bool, Query(description="read all hours again")] = False,
    ) -> Response:
        """A month of hours (:class:`MonthView`), from the cache; the rest is read in the background."""
        hours, now = month_hours(month), self._clock()
        begun = [hour for hour in hours if hour <= now]
        runs, touched = await run_in_threadpool(_runs_of, session, stream, hours)
        cached = await run_in_threadpool(self._cache.request, stream, begun, touched, refresh=refresh)
        if cached.pending:
            read = asyncio.wrap_future(self._cache.when_read(stream, begun))
            await asyncio.wait([read], timeout=limits.MONTH_PAGE_WAIT_SECONDS)
            read.cancel()

        def answer() -> Response:
            found = self._cache.cached(stream, begun)
            late = self._late(stream, user, session)
            views = [
                hour_view(stream, hour, now, found.hours.get(hour), runs.get(hour, []), late)
                for hour in hours
            ]
            ages = [one.read_at for one in found.hours.values()]
            bucket = BucketView(min(ages, default=None), max(ages, default=None), found.pending, found.error)
            paused = is_paused(session, [dag_id_of(stream)])
            summaries = (found.hours[hour].summary for hour in hours if hour in found.hours)
            cost = cost_view(stream, summaries, now)
            totals = totals_view(views)
            return json_response(
                MonthView(stream_view(stream, paused), month, now, views, bucket, totals, cost)
            )

        return await run_in_threadpool(answer)

    async def hour(
        self, stream: ReadableStream, hour: str, user: GetUserDep, session: SessionDep
    ) -> Response:
        """One hour in full (:class:`DetailView`), read from the bucket now.

        :raises HTTPException: 503 with Retry-After if too many hours are being read
        """
        at, now = one_hour(hour), self._clock()
        runs_by_hour, _ = await run_in_threadpool(_runs_of, session, stream, [at])
        found = await self._run(stream, at, partial(self._read_now, stream, at))

        def answer() -> Response:
            dag_id, runs = dag_id_of(stream), runs_by_hour.get(at, [])
            # Permissions come first: Airflow reads them in a session of its own, and a thread that holds one
            # connection while it waits for a second can block all others, once the pool has none left.
            may_clear = may(user, dag_id, "PUT", DagAccessEntity.TASK_INSTANCE)
            late = self._late(stream, user, session).get(hour)
            # If it could not be read now, this is what was read the last time.
            cached = self._cache.get(stream, at)
            cell = cell_of(stream, at, now, cached, runs[0] if runs else None)
            return json_response(
                DetailView(
                    stream=stream_view(stream, is_paused(session, [dag_id])),
                    hour=hour,
                    now=now,
                    state=cell.status,
                    why=cell.reason,
                    marker=cached.summary.marker if cached else None,
                    parts=found.detail.parts[:MOST_PARTS] if found.detail else (),
                    parts_found=len(found.detail.parts) if found.detail else 0,
                    groups=found.groups,
                    records=found.records,
                    planned=planned_view(found.detail),
                    unclear=found.detail.unclear if found.detail else "",
                    runs=runs,
                    tasks=tasks_of(session, dag_id, runs[0].run_id) if runs else (),
                    late=late,
                    raw=found.raw,
                    aggregated=found.aggregated,
                    error=found.error,
                    may_clear=may_clear,
                    expired=cached.summary.expired if cached else None,
                )
            )

        return await run_in_threadpool(answer)

    async def groups(
        self,
        stream: ReadableStream,
        hour: str,
        search: Annotated[str, Query(description="text in the name of a group", max_length=200)] = "",
        most: Annotated[int, Query(description="the most groups", ge=1, le=MOST_GROUPS)] = SHOWN_GROUPS,
    ) -> Response:
        """Groups of a complete hour (:class:`GroupsView`), read from the bucket now.

        :raises HTTPException: 404 if it has none, 503 if too many hours are being read or the bucket can't be
        """
        at = one_hour(hour)
        found = await self._run(stream, at, partial(self._read_groups, stream, at, search, most))
        if found.error:
            raise HTTPException(503, found.error)
        if found.groups is None:
            raise HTTPException(404, f"hour {hour} of {stream.name} is not complete, or has no groups")
        return await run_in_threadpool(json_response, found.groups)

    async def frames(
        self,
        stream: ReadableStream,
        hour: str,
        part: Annotated[str, Query(description="name of the part in the manifest", max_length=1024)],
    ) -> Response:
        """The first frames of a compressed part (:class:`FramesView`), read from the bucket now.

        :raises HTTPException: 404 if the manifest has no such part or the part is not compressed, 503 if too many
            hours are being read or the bucket can't be
        """
        at = one_hour(hour)
        found = await self._run(stream, at, partial(self._read_frames, stream, at, part))
        if found.error:
            raise HTTPException(503, found.error)
        if found.frames is None:
            raise HTTPException(404, f"hour {hour} of {stream.name} has no compressed part {part!r}")
        return await run_in_threadpool(json_response, found.frames)

    async def _run(self, stream: Stream, hour: datetime, read: Callable[[], _BucketHour]) -> _BucketHour:
        """Read an hour in one of the page's threads.

        :raises HTTPException: 503 if no thread is free
        """
        try:
            return await self._threads.run(read)
        except BusyError:
            raise HTTPException(
                503,
                f"too many hours are being read at once, or the bucket answers slowly; trying again in "
                f"{limits.HOUR_PAGE_RETRY_AFTER_SECONDS} s",
                headers={"Retry-After": str(limits.HOUR_PAGE_RETRY_AFTER_SECONDS)},
            ) from None
        except TimeoutError:
            error = (
                f"{stream.aggregated} was not read within {limits.HOUR_PAGE_READ_SECONDS:g} s; "
                f"the bucket answers too slowly"
            )
            return _BucketHour(None, *place_views(stream, hour, None), error)

    def _read_groups(self, stream: Stream, hour: datetime, search: str, most: int) -> _BucketHour:
        def read(hook: PooledS3Hook, found: _BucketHour) -> _BucketHour:
            (summary,) = read_hours(hook, stream, [hour], groups=True)
            meta = hook.meta(stream.aggregated.root)
            return replace(found, groups=groups_view(stream, summary, meta, search, most))

        return self._read(stream, hour, read)

    def _read_frames(self, stream: Stream, hour: datetime, part: str) -> _BucketHour:
        def read(hook: PooledS3Hook, found: _BucketHour) -> _BucketHour:
            frames = read_frames(hook, stream, hour, part)
            view = FramesView(len(frames), frames[:MOST_FRAMES]) if frames else None
            return replace(found, frames=view)

        return self._read(stream, hour, read)

    def _read(
        self, stream: Stream, hour: datetime, read: Callable[[PooledS3Hook, _BucketHour], _BucketHour]
    ) -> _BucketHour:
        """Read some of an hour; an error is part of the result.

        :param read: adds what it reads to an empty result
        """
        found = _BucketHour(None, *place_views(stream, hour, None), "")
        try:
            with self._open_store(
                stream, limits.HOUR_PAGE_CONNECTIONS, limits.HOUR_PAGE_READ_SECONDS
            ) as hook:
                return read(hook, found)
        except Exception as error:
            return replace(found, error=explain(error, stream))

    def _read_now(self, stream: Stream, hour: datetime) -> _BucketHour:
        places, read_at = place_views(stream, hour, None), self._clock()
        try:
            with self._open_store(
                stream, limits.HOUR_PAGE_CONNECTIONS, limits.HOUR_PAGE_READ_SECONDS
            ) as hook:
                places = place_views(stream, hour, hook.meta(stream.aggregated.root))
                detail = read_hour(hook, stream, hour)
                groups = groups_view(stream, detail.status, hook.meta(stream.aggregated.root))
        except Exception as error:
            return _BucketHour(None, *places, explain(error, stream))
        self._cache.put(stream, detail.status, read_at)
        return _BucketHour(detail, *places, "", groups)

    def _late(self, stream: Stream, user: BaseUser, session: SessionDep) -> Mapping[str, LateHour]:
        if not stream.late_days or not may(user, LATE_DAG_ID, "GET", DagAccessEntity.XCOM):
            return {}
        return late_hours(session, stream.name)


def may(user: BaseUser, dag_id: str, method: str, entity: DagAccessEntity) -> bool:
    """Whether a user may access something of a Dag; Airflow may read this in a database session of its own."""
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    manager = get_auth_manager()
    return bool(manager.is_authorized_dag(method=method, access_entity=entity, details=details, user=user))


def _runs_of(
    session: Session, stream: Stream, hours: Sequence[datetime]
) -> tuple[Mapping[datetime, Sequence[HourRun]], Mapping[datetime, datetime]]:
    """The runs of each hour, and when each hour was last changed by one."""
    runs = runs_between(session, dag_id_of(stream), hours[0], hours[-1])
    # Returns the connection to the pool while the bucket is read.
    session.commit()
    return runs, {hour: at for hour in runs if (at := last_change(runs[hour]))}


def last_change(runs: Sequence[HourRun]) -> datetime | None:
    """When a run of an hour last changed something; None if it has no runs."""
    return max((run.touched_at for run in runs if run.touched_at), default=None)
