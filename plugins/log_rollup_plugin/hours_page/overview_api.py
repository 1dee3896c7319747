"""The API of the overview of all streams; it only reads."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dag import DagModel
from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from include.log_rollup import limits
from include.log_rollup.hour.layout import format_hour, parse_hour
from include.log_rollup.queries.overview import last_hours
from include.log_rollup.streams import Stream
from log_rollup_plugin.hours_page.api import known_streams, last_change, may
from log_rollup_plugin.hours_page.cache import OpenStore
from log_rollup_plugin.hours_page.database import (
    LATE_DAG_ID,
    HourRun,
    LateHour,
    is_paused,
    late_hours_of_streams,
    runs_of_dags,
    successful_runs,
)
from log_rollup_plugin.hours_page.overview_cache import (
    MAX_AGE_COMPLETE,
    MIN_AGE,
    FoundHours,
    OverviewCache,
    WantedHours,
)
from log_rollup_plugin.hours_page.overview_views import OverviewView, overview_response, row_view
from log_rollup_plugin.hours_page.page_store import open_store
from log_rollup_plugin.hours_page.views import BucketView
from log_rollup_plugin.runs import dag_id_of

# Number of hours of a stream with late objects whose markers are read, besides the last 48 hours. log_rollup_late
# checks 3 days by default, of which 47 hours are older a day after the check.
MOST_LATE_HOURS = 48
_POLL_SECONDS = 0.05
_ONE_CONNECTION: OpenStore = partial(open_store, connections=1)


@dataclass(frozen=True, slots=True)
class _Database:
    """What Airflow's database has of the streams that a user may read.

    :param runs: the runs of each hour, by Dag
    :param late: what log_rollup_late found, by stream and hour
    :param shows_late: whether the user may see that
    :param paused: whether each Dag that Airflow knows is paused
    """

    streams: Sequence[Stream]
    runs: Mapping[str, Mapping[datetime, Sequence[HourRun]]]
    late: Mapping[str, Mapping[datetime, LateHour]]
    shows_late: bool
    paused: Mapping[str, bool]


class OverviewApi:
    """The route of the overview.

    Buckets are read in threads of :class:`OverviewCache`.

    :param clock: returns the present time
    :param open_store: opens the store of a stream
    """

    def __init__(
        self,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        open_store: OpenStore = _ONE_CONNECTION,
    ) -> None:
        self._clock = clock
        self._cache = OverviewCache(open_store, clock)
        self.router = APIRouter(prefix="/api/overview")
        self.router.add_api_route("", self.overview, response_model=None)

    async def overview(
        self,
        user: GetUserDep,
        session: SessionDep,
        refresh: Annotated[bool, Query(description="read all hours again that are not complete")] = False,
    ) -> Response:
        """All streams (:class:`OverviewView`), from the cache; the rest is read in the background."""
        now = self._clock()
        hours = last_hours(now)
        found = await run_in_threadpool(self._read_database, user, session, hours)
        wanted = [_wanted(stream, hours, found) for stream in found.streams]
        read = await run_in_threadpool(self._cache.request, wanted, refresh=refresh)
        ends = time.monotonic() + limits.OVERVIEW_PAGE_WAIT_SECONDS
        while any(one.reading for one in read) and time.monotonic() < ends:
            await asyncio.sleep(_POLL_SECONDS)
            read = self._cache.cached(found.streams)
        return await run_in_threadpool(_answer, now, hours, found, read, session)

    def _read_database(self, user: BaseUser, session: Session, hours: Sequence[datetime]) -> _Database:
        """Read Airflow's database: a few queries, however many streams there are."""
        known = known_streams()
        self._cache.forget_others(known)
        # Permissions come first, as Airflow reads them in a session of its own: with two connections at a time, as
        # many requests as the pool has connections could each wait for their second one.
        streams = _readable(user, known)
        may_see_late = may(user, LATE_DAG_ID, "GET", DagAccessEntity.XCOM)
        dag_ids = {dag_id_of(stream) for stream in streams}
        # Older changes don't matter: the hours have been read again since.
        changed_since = self._clock() - MAX_AGE_COMPLETE - MIN_AGE
        runs = runs_of_dags(session, dag_ids, hours[0], hours[-1], changed_since)
        # Also of users who may not see it: all users share the cache, which drops hours that nobody wants.
        late = late_hours_of_streams(session)
        paused = is_paused(session, dag_ids)
        # Returns the connection to the pool while the buckets are read.
        session.commit()
        by_hour = {
            stream.name: {parse_hour(hour): one for hour, one in late.get(stream.name, {}).items()}
            for stream in streams
            if stream.late_days
        }
        return _Database(streams, runs, by_hour, may_see_late, paused)


def _readable(user: BaseUser, streams: Sequence[Stream]) -> Sequence[Stream]:
    """The streams whose Dags, runs and tasks a user may read."""
    manager = get_auth_manager()
    dags = manager.get_authorized_dag_ids(user=user, method="GET")
    readable = [stream for stream in streams if dag_id_of(stream) in dags]
    teams = DagModel.get_dag_id_to_team_name_mapping([dag_id_of(stream) for stream in readable])

    def may_read(dag_id: str) -> bool:
        details = DagDetails(id=dag_id, team_name=teams.get(dag_id))
        return all(
            manager.is_authorized_dag(method="GET", access_entity=entity, details=details, user=user)
            for entity in (DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE)
        )

    return [stream for stream in readable if may_read(dag_id_of(stream))]


def _wanted(stream: Stream, hours: Sequence[datetime], found: _Database) -> WantedHours:
    """The hours of a stream to read: not those before its start, unless they have a run."""
    runs = found.runs.get(dag_id_of(stream), {})
    last = [hour for hour in hours if hour >= stream.start or hour in runs]
    late = [hour for hour in found.late.get(stream.name, {}) if hour not in last]
    touched = {hour: at for hour in runs if (at := last_change(runs[hour]))}
    return WantedHours(stream, last, late[:MOST_LATE_HOURS], touched)


def _answer(
    now: datetime,
    hours: Sequence[datetime],
    found: _Database,
    read: Sequence[FoundHours],
    session: Session,
) -> Response:
    ended = _ended_runs(hours, found, read, session)
    rows = []
    for stream, one in zip(found.streams, read, strict=True):
        dag_id = dag_id_of(stream)
        runs = {**ended.get(dag_id, {}), **found.runs.get(dag_id, {})}
        late = found.late.get(stream.name, {}) if found.shows_late else {}
        rows.append(row_view(stream, now, hours, one, runs, late, found.paused.get(dag_id)))
    # Only of the last hours: those of earlier weeks are read once a day.
    ages = [
        cached.cached.read_at for one in read for hour in hours if (cached := one.hours.get(hour)) is not None
    ]
    pending = sum(one.pending for one in read)
    bucket = BucketView(min(ages, default=None), max(ages, default=None), pending, "")
    return overview_response(OverviewView(now, list(map(format_hour, hours)), rows, bucket))


def _ended_runs(
    hours: Sequence[datetime], found: _Database, read: Sequence[FoundHours], session: Session
) -> Mapping[str, Mapping[datetime, Sequence[HourRun]]]:
    """The successful runs of hours that are not complete: few streams have any."""
    without: dict[str, list[datetime]] = {}
    for stream, one in zip(found.streams, read, strict=True):
        dag_id = dag_id_of(stream)
        runs = found.runs.get(dag_id, {})
        for hour in hours:
            cached = one.hours.get(hour)
            if hour not in runs and cached is not None and cached.volume is None:
                without.setdefault(dag_id, []).append(hour)
    if not without:
        return {}
    of_these = [hour for each in without.values() for hour in each]
    return successful_runs(session, without, min(of_these), max(of_these))
