"""The app behind the page Hours: its files, and what they ask for. Everything is only read."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dag import DagModel
from botocore.config import Config
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import TypeAdapter
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException as StarletteHTTPException

from include.log_rollup import limits
from include.log_rollup.errors import ConfigurationError, TransientError
from include.log_rollup.hour.layout import format_hour, parse_hour
from include.log_rollup.queries.hour_detail import HourDetail, PartStatus, read_hour
from include.log_rollup.queries.status import HourStatus
from include.log_rollup.streams import Stream, load_streams
from log_rollup_plugin.hours_page.cache import MarkerCache, ReadHour, explain
from log_rollup_plugin.hours_page.database import (
    LATE_DAG_ID,
    HourRun,
    HourTask,
    LateHour,
    is_paused,
    late_hours,
    runs_between,
    tasks_of,
)
from log_rollup_plugin.hours_page.states import State, judge, late_after
from log_rollup_plugin.hours_page.threads import BusyError, OwnThreads
from log_rollup_plugin.runs import dag_id_of
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.urls import console_page

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
_MONTH = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")
_HEADERS = {
    # The page is framed by Airflow's own; everything else comes from here.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
_LOG_IN = """<!doctype html><meta charset="utf-8"><title>Hours</title>
<p>Nobody is logged in. <a href="../../api/v2/auth/login">Log in to Airflow</a>, then open this page again.</p>
"""


@dataclass(frozen=True, slots=True)
class StreamView:
    """A stream as the page needs it; sizes in bytes, durations in seconds."""

    name: str
    dag_id: str
    raw: str
    aggregated: str
    start: datetime
    part_size: int
    max_connections: int
    late_after: float
    paused: bool | None
    """None where Airflow does not know the Dag yet."""


@dataclass(frozen=True, slots=True)
class StreamsView:
    """The streams whose Dags the user may read."""

    streams: Sequence[StreamView]
    now: datetime


@dataclass(frozen=True, slots=True)
class MarkerView:
    """What the calendar and the charts take from a completion marker; sizes in bytes."""

    objects: int
    bytes_in: int
    bytes_out: int
    parts: int
    pack_seconds: float
    sockets: int
    max_connections: int
    completed_at: str


@dataclass(frozen=True, slots=True)
class HourView:
    """An hour of the calendar."""

    hour: str
    state: State
    why: str
    run_id: str | None
    marker: MarkerView | None
    late: LateHour | None


@dataclass(frozen=True, slots=True)
class BucketView:
    """How old what the bucket says is, and what is not known yet.

    :param pending: how many hours are being read
    :param error: why it could not be read; empty if it could
    """

    oldest: datetime | None
    newest: datetime | None
    pending: int
    error: str


@dataclass(frozen=True, slots=True)
class MonthView:
    """A month of hours of a stream."""

    stream: StreamView
    month: str
    now: datetime
    hours: Sequence[HourView]
    bucket: BucketView


@dataclass(frozen=True, slots=True)
class PlaceView:
    """A prefix; ``console`` is its address in the AWS console, None for other servers."""

    url: str
    console: str | None


@dataclass(frozen=True, slots=True)
class DetailView:
    """An hour's page.

    :param planned: of an hour that is being built, how many parts, objects and bytes are planned
    :param unclear: why the parts cannot be told
    :param runs: the present or last one first
    :param tasks: of that one
    :param late: None if nothing was found, or if the user may not read log_rollup_late
    :param may_clear: whether the user may clear a run
    """

    stream: StreamView
    hour: str
    now: datetime
    state: State
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


class ImpatientHook(PooledS3Hook):
    """A hook that gives up early, whatever the connection says, because a person waits for it.

    :param seconds: after which it sends no further request; None for no limit
    """

    def __init__(self, *args: Any, seconds: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def _get_config(self, config: Config | None = None) -> Config:
        early = Config(
            connect_timeout=limits.PAGE_CONNECT_SECONDS,
            read_timeout=limits.PAGE_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": limits.PAGE_TRIES},
        )
        return super()._get_config(config).merge(early)

    def get_client_type(self, *args: Any, **kwargs: Any) -> Any:
        """The boto3 client, which sends nothing after the deadline."""
        client = super().get_client_type(*args, **kwargs)
        client.meta.events.register_first("before-send.s3", self._check_deadline)
        return client

    def _check_deadline(self, **_: Any) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TransientError(f"the bucket answers too slowly: it was not read within {self._seconds:g} s")


@contextmanager
def open_store(
    stream: Stream, connections: int = limits.MONTH_PAGE_CONNECTIONS, seconds: float | None = None
) -> Iterator[PooledS3Hook]:
    """A hook that gives up early, closed afterwards.

    :param seconds: after which it sends no further request; None for no limit
    """
    # Only the aggregated bucket is read, so that all of them are for one host.
    hook = ImpatientHook(
        aws_conn_id=stream.aws_conn_id, max_connections=connections, control_connections=connections,
        seconds=seconds,
    )  # fmt: skip
    with hook:
        yield hook


OpenStore = Callable[..., AbstractContextManager[PooledS3Hook]]


def known_streams() -> list[Stream]:
    """All streams.

    :raises HTTPException: 503 if their file is wrong, or not there; what is wrong in it may name streams that the
        user may not read, so that only the log has it
    """
    try:
        return load_streams()
    except ConfigurationError as error:
        log.error("the page Hours cannot show any stream: %s", error)
        raise HTTPException(
            503,
            "the streams file of this api-server is wrong or cannot be read; LOG_ROLLUP_STREAMS has to name a "
            "readable file. What is wrong with it is shown among Airflow's Dag import errors, to those who may "
            "see them, and in the log of the api-server",
        ) from None


def readable_stream(stream: str, request: Request, user: GetUserDep) -> Stream:
    """The stream of the path, if the user may read its Dag, runs and tasks.

    :raises HTTPException: 403 if not, 404 if there is none of this name
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

    :raises HTTPException: 400 if it is none
    """
    match = _MONTH.fullmatch(month)
    if not match:
        raise HTTPException(400, f"month: {month!r} is not a month of 2000 to 2099; write it like 2026-11")
    first = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    end = (first + timedelta(days=32)).replace(day=1)
    return [first + timedelta(hours=number) for number in range(int((end - first).total_seconds()) // 3600)]


def one_hour(hour: str) -> datetime:
    """An hour such as ``2026-11-23T08:00:00Z``.

    :raises HTTPException: 400 if it is none
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
class _Look:
    """What was read of one hour.

    :param error: why it could not be read, for people; empty if it could
    """

    detail: HourDetail | None
    raw: PlaceView
    aggregated: PlaceView
    error: str


_MONTH_JSON = TypeAdapter(MonthView)
_DETAIL_JSON = TypeAdapter(DetailView)


class Hours:
    """What the page asks for.

    What may wait for S3 runs in threads of its own; the threads that all of Airflow's pages share are used for
    the database and for making answers alone.

    :param clock: the present time
    :param open_store: opens the store of a stream
    """

    def __init__(
        self, clock: Callable[[], datetime] = lambda: datetime.now(UTC), open_store: OpenStore = open_store
    ) -> None:
        self._clock = clock
        self._open_store = open_store
        self._cache = MarkerCache(open_store, clock)
        self._threads = OwnThreads(
            limits.HOUR_PAGE_THREADS,
            "log-rollup-hours",
            limits.HOUR_PAGE_QUEUE_SECONDS,
            limits.HOUR_PAGE_READ_SECONDS,
        )
        self.router = APIRouter(prefix="/api/streams")
        self.router.add_api_route("", self.streams)
        self.router.add_api_route("/{stream}/hours", self.month, response_model=None)
        self.router.add_api_route("/{stream}/hours/{hour}", self.hour, response_model=None)

    def streams(self, user: GetUserDep, session: SessionDep) -> StreamsView:
        """The streams whose Dags the user may read."""
        readable = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
        mine = [stream for stream in known_streams() if dag_id_of(stream) in readable]
        paused = is_paused(session, map(dag_id_of, mine))
        return StreamsView([_stream_view(stream, paused) for stream in mine], self._clock())

    async def month(
        self,
        stream: ReadableStream,
        user: GetUserDep,
        session: SessionDep,
        month: Annotated[str, Query(description="like 2026-11")],
        refresh: Annotated[bool, Query(description="read all of it again")] = False,
    ) -> Response:
        """A month of hours (:class:`MonthView`): what is known at once, the rest while it is being read."""
        hours, now = month_hours(month), self._clock()
        begun = [hour for hour in hours if hour <= now]
        runs, touched = await run_in_threadpool(_runs_of, session, stream, hours)
        known = await run_in_threadpool(self._cache.look, stream, begun, touched, refresh=refresh)
        if known.pending:
            settled = asyncio.wrap_future(self._cache.settled(stream, begun))
            await asyncio.wait([settled], timeout=limits.MONTH_PAGE_WAIT_SECONDS)
            settled.cancel()

        def answer() -> Response:
            found = self._cache.known(stream, begun)
            late = self._late(stream, user, session)
            views = [
                _hour_view(stream, hour, now, found.hours.get(hour), runs.get(hour, []), late)
                for hour in hours
            ]
            ages = [read.at for read in found.hours.values()]
            bucket = BucketView(min(ages, default=None), max(ages, default=None), found.pending, found.error)
            paused = is_paused(session, [dag_id_of(stream)])
            return _json(_MONTH_JSON, MonthView(_stream_view(stream, paused), month, now, views, bucket))

        return await run_in_threadpool(answer)

    async def hour(
        self, stream: ReadableStream, hour: str, user: GetUserDep, session: SessionDep
    ) -> Response:
        """An hour in full (:class:`DetailView`), read now.

        :raises HTTPException: 503 with Retry-After if too many others are being read
        """
        at, now = one_hour(hour), self._clock()
        runs_by_hour, _ = await run_in_threadpool(_runs_of, session, stream, [at])
        look = await self._look(stream, at)

        def answer() -> Response:
            dag_id, runs = dag_id_of(stream), runs_by_hour.get(at, [])
            # What could not be read now is as it was seen the last time.
            read = self._cache.kept(stream, at)
            judged = judge(stream, at, now, read, runs[0] if runs else None)
            view = DetailView(
                stream=_stream_view(stream, is_paused(session, [dag_id])),
                hour=hour,
                now=now,
                state=judged.state,
                why=judged.why,
                marker=read.status.marker if read else None,
                parts=look.detail.parts if look.detail else (),
                planned=_planned(look.detail),
                unclear=look.detail.unclear if look.detail else "",
                runs=runs,
                tasks=tasks_of(session, dag_id, runs[0].run_id) if runs else (),
                late=self._late(stream, user, session).get(hour),
                raw=look.raw,
                aggregated=look.aggregated,
                error=look.error,
                may_clear=_may(user, dag_id, "PUT", DagAccessEntity.TASK_INSTANCE),
            )
            return _json(_DETAIL_JSON, view)

        return await run_in_threadpool(answer)

    async def _look(self, stream: Stream, hour: datetime) -> _Look:
        """Read an hour in one of the page's own threads.

        :raises HTTPException: 503 if none is free
        """
        try:
            return await self._threads.run(partial(self._read, stream, hour))
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
            return _Look(None, *_places(stream, hour, None), error)

    def _read(self, stream: Stream, hour: datetime) -> _Look:
        """An hour's detail and the places of its objects."""
        places = _places(stream, hour, None)
        try:
            with self._open_store(
                stream, limits.HOUR_PAGE_CONNECTIONS, limits.HOUR_PAGE_READ_SECONDS
            ) as hook:
                places = _places(stream, hour, hook.client.meta)
                detail = read_hour(hook, stream, hour)
        except Exception as error:
            return _Look(None, *places, explain(error, stream))
        self._cache.keep(stream, detail.status)
        return _Look(detail, *places, "")

    def _late(self, stream: Stream, user: BaseUser, session: SessionDep) -> Mapping[str, LateHour]:
        if not stream.late_days or not _may(user, LATE_DAG_ID, "GET", DagAccessEntity.XCOM):
            return {}
        return late_hours(session, stream.name)


def _may(user: BaseUser, dag_id: str, method: str, entity: DagAccessEntity) -> bool:
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    manager = get_auth_manager()
    return bool(manager.is_authorized_dag(method=method, access_entity=entity, details=details, user=user))


def _stream_view(stream: Stream, paused: Mapping[str, bool]) -> StreamView:
    return StreamView(
        stream.name, dag_id_of(stream), str(stream.raw), str(stream.aggregated), stream.start,
        stream.part_size, stream.max_connections, late_after(stream).total_seconds(),
        paused.get(dag_id_of(stream)),
    )  # fmt: skip


def _runs_of(
    session: Session, stream: Stream, hours: Sequence[datetime]
) -> tuple[Mapping[datetime, Sequence[HourRun]], Mapping[datetime, datetime]]:
    """The runs of hours by hour, and when each hour was last touched by one."""
    runs = runs_between(session, dag_id_of(stream), hours[0], hours[-1])
    # Gives the database's connection back while the bucket is read.
    session.commit()
    return runs, {hour: at for hour in runs if (at := _touched(runs[hour]))}


def _places(stream: Stream, hour: datetime, meta: Any) -> tuple[PlaceView, PlaceView]:
    """Where the raw objects and the parts of an hour are.

    :param meta: of the boto3 client; None where there is none, and so no console to link to
    """
    paths = stream.at(hour)
    raw, aggregated = (
        PlaceView(str(place), console_page(meta, place) if meta else None)
        for place in (paths.raw, paths.aggregated)
    )
    return raw, aggregated


def _json(adapter: TypeAdapter[Any], view: Any) -> Response:
    """An answer, made in the thread that calls this: FastAPI would make it while all other requests wait."""
    return Response(adapter.dump_json(view), media_type="application/json")


def _touched(runs: Sequence[HourRun]) -> datetime | None:
    return max((run.touched_at for run in runs if run.touched_at), default=None)


def _hour_view(
    stream: Stream,
    hour: datetime,
    now: datetime,
    read: ReadHour | None,
    runs: Sequence[HourRun],
    late: Mapping[str, LateHour],
) -> HourView:
    status = read.status if read else None
    run = runs[0] if runs else None
    judged = judge(stream, hour, now, read, run)
    marker = _marker_view(status.marker) if status and status.state is HourStatus.COMPLETE else None
    name = format_hour(hour)
    return HourView(name, judged.state, judged.why, run.run_id if run else None, marker, late.get(name))


def _marker_view(marker: Mapping[str, Any] | None) -> MarkerView | None:
    """None for one that another version wrote."""
    if not marker:
        return None
    return MarkerView(
        marker["objects"], marker["bytes_in"], marker["bytes_out"], marker["parts"],
        marker["seconds"]["pack"], marker["peak"]["sockets"], marker["max_connections"],
        marker["completed_at"],
    )  # fmt: skip


def _planned(detail: HourDetail | None) -> Mapping[str, int] | None:
    plan = detail.planned if detail else None
    return {"parts": plan.parts, "objects": plan.objects, "bytes": plan.bytes_in} if plan else None


def _page(user: GetUserDep) -> FileResponse:
    """The page itself, which is the same for all who are logged in."""
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


async def _refused(request: Request, error: Exception) -> Response:
    """Tell somebody who opens the page without being logged in where to do that."""
    assert isinstance(error, StarletteHTTPException)
    is_page = request.url.path == request.scope.get("root_path", "") + "/"
    if error.status_code == 401 and is_page:
        return HTMLResponse(_LOG_IN, 401)
    return await http_exception_handler(request, error)


async def _add_headers(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await go_on(request)
    for name, value in _HEADERS.items():
        response.headers[name] = value
    # A new version of the page must not meet the scripts of an old one.
    response.headers.setdefault("Cache-Control", "no-cache" if "/static/" in request.url.path else "no-store")
    return response


def create_app(hours: Hours | None = None) -> FastAPI:
    """The app, to be mounted in Airflow's.

    :param hours: another one for tests
    """
    app = FastAPI(title="Log Rollup: Hours", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router((hours or Hours()).router)
    app.add_api_route("/", _page, response_class=FileResponse)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.middleware("http")(_add_headers)
    return app
