"""The app behind the page Hours: its files, and what they ask for. Everything is only read."""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dag import DagModel
from botocore.config import Config
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from include.log_rollup.detail import HourDetail, PartStatus, read_hour
from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hours import format_hour, parse_hour
from include.log_rollup.status import HourState
from include.log_rollup.streams import Stream, load_streams
from log_rollup_plugin.hook import PooledS3Hook
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
from log_rollup_plugin.links import console_page
from log_rollup_plugin.runs import dag_id_of

# An api-server process holds no slots of the pool. These are all the connections that it opens: for the
# months, whoever looks at whichever stream, and for the one hour that somebody opens.
MONTH_CONNECTIONS = 4
HOUR_CONNECTIONS = 2
# A person waits: a bucket that does not answer is told sooner than to a task.
RETRIES = {"mode": "standard", "max_attempts": 2}
# How long the first answer waits for the bucket; what is not read by then comes with a later one.
PATIENCE_SECONDS = 0.5
# How long an hour's page waits while others read theirs.
TURN_SECONDS = 20.0

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


@contextmanager
def open_store(stream: Stream, connections: int = MONTH_CONNECTIONS) -> Iterator[PooledS3Hook]:
    """A hook that gives up early, closed afterwards."""
    # Only the aggregated bucket is read, so that all of them are for one host.
    hook = PooledS3Hook(
        aws_conn_id=stream.aws_conn_id, max_connections=connections, control_connections=connections,
        connect_timeout=stream.connect_timeout, config=Config(retries=RETRIES),
    )  # fmt: skip
    with hook:
        yield hook


def known_streams() -> list[Stream]:
    """All streams.

    :raises HTTPException: 503 if their file is not right, or not there
    """
    try:
        return load_streams()
    except ConfigurationError as error:
        raise HTTPException(503, f"the streams of this api-server cannot be read: {error}") from None


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
        raise HTTPException(400, f"month: {month!r} is not a month from 2000 on; write it like 2026-11")
    first = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    end = (first + timedelta(days=32)).replace(day=1)
    return [first + timedelta(hours=number) for number in range(int((end - first).total_seconds()) // 3600)]


def one_hour(hour: str) -> datetime:
    """An hour such as ``2026-11-23T08:00:00Z``.

    :raises HTTPException: 400 if it is none
    """
    try:
        parsed = parse_hour(hour)
        if format_hour(parsed) == hour and parsed.year >= 2000:
            return parsed
    except ConfigurationError:
        pass
    raise HTTPException(400, f"hour: {hour!r} is not a whole UTC hour; write it like 2026-11-23T08:00:00Z")


ReadableStream = Annotated[Stream, Depends(readable_stream)]


class Hours:
    """What the page asks for.

    :param clock: the present time
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._cache = MarkerCache(open_store, clock)
        self._turn = Lock()
        self.router = APIRouter(prefix="/api/streams")
        self.router.add_api_route("", self.streams)
        self.router.add_api_route("/{stream}/hours", self.month)
        self.router.add_api_route("/{stream}/hours/{hour}", self.hour)

    def streams(self, user: GetUserDep, session: SessionDep) -> StreamsView:
        """The streams whose Dags the user may read."""
        readable = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
        mine = [stream for stream in known_streams() if dag_id_of(stream) in readable]
        paused = is_paused(session, map(dag_id_of, mine))
        return StreamsView([_stream_view(stream, paused) for stream in mine], self._clock())

    def month(
        self,
        stream: ReadableStream,
        user: GetUserDep,
        session: SessionDep,
        month: Annotated[str, Query(description="like 2026-11")],
        refresh: Annotated[bool, Query(description="read all of it again")] = False,
    ) -> MonthView:
        """A month of hours: what is known of them at once, the rest while it is being read."""
        hours, now = month_hours(month), self._clock()
        runs = runs_between(session, dag_id_of(stream), hours[0], hours[-1])
        touched = {hour: at for hour in runs if (at := _touched(runs[hour]))}
        session.commit()
        begun = [hour for hour in hours if hour <= now]
        known = self._cache.look(stream, begun, touched, refresh=refresh, wait_seconds=PATIENCE_SECONDS)
        late = self._late(stream, user, session)
        views = [
            _hour_view(stream, hour, now, known.hours.get(hour), runs.get(hour, []), late) for hour in hours
        ]
        ages = [read.at for read in known.hours.values()]
        bucket = BucketView(min(ages, default=None), max(ages, default=None), known.pending, known.error)
        paused = is_paused(session, [dag_id_of(stream)])
        return MonthView(_stream_view(stream, paused), month, now, views, bucket)

    def hour(self, stream: ReadableStream, hour: str, user: GetUserDep, session: SessionDep) -> DetailView:
        """An hour in full, read now."""
        at, now, dag_id = one_hour(hour), self._clock(), dag_id_of(stream)
        runs = runs_between(session, dag_id, at, at).get(at, [])
        # Gives the database's connection back while the bucket is read.
        session.commit()
        detail, places, error = self._read(stream, at)
        # What could not be read now is as it was seen the last time.
        read = self._cache.kept(stream, at)
        judged = judge(stream, at, now, read, runs[0] if runs else None)
        return DetailView(
            stream=_stream_view(stream, is_paused(session, [dag_id])),
            hour=hour,
            now=now,
            state=judged.state,
            why=judged.why,
            marker=read.status.marker if read else None,
            parts=detail.parts if detail else (),
            planned=_planned(detail),
            unclear=detail.unclear if detail else "",
            runs=runs,
            tasks=tasks_of(session, dag_id, runs[0].run_id) if runs else (),
            late=self._late(stream, user, session).get(hour),
            raw=places[0],
            aggregated=places[1],
            error=error,
            may_clear=_may(user, dag_id, "PUT", DagAccessEntity.TASK_INSTANCE),
        )

    def _read(self, stream: Stream, hour: datetime) -> tuple[HourDetail | None, list[PlaceView], str]:
        """An hour's detail, the places of its objects, and why it could not be read."""
        paths = stream.at(hour)
        places = [PlaceView(str(place), None) for place in (paths.raw, paths.aggregated)]
        # One at a time, so that all that are open together keep to their connections.
        if not self._turn.acquire(timeout=TURN_SECONDS):
            return None, places, "others are reading hours from a slow bucket; try again"
        try:
            with open_store(stream, HOUR_CONNECTIONS) as hook:
                meta = hook.client.meta
                places = [
                    PlaceView(str(place), console_page(meta, place))
                    for place in (paths.raw, paths.aggregated)
                ]
                detail = read_hour(hook, stream, hour)
        except Exception as error:
            return None, places, explain(error, stream)
        finally:
            self._turn.release()
        self._cache.keep(stream, detail.status)
        return detail, places, ""

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
    marker = _marker_view(status.marker) if status and status.state is HourState.COMPLETE else None
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
