"""The API of the overview of all streams, with buckets in memory, rows in Airflow's database, and real users."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow import settings
from airflow.api_fastapi.app import get_auth_manager, init_auth_manager, purge_cached_app
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete, event, insert, update

from include.log_rollup import limits
from include.log_rollup.errors import AccessError, TransientError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.overview import last_hours
from include.log_rollup.queries.status import ExpiredObjects, HourStatus, HourSummary
from include.log_rollup.queries.volume import HourVolume
from include.log_rollup.streams import Stream, load_streams
from log_rollup_plugin.hours_page.api import HoursApi
from log_rollup_plugin.hours_page.app import create_app
from log_rollup_plugin.hours_page.cache import CachedHour
from log_rollup_plugin.hours_page.overview_api import OverviewApi
from log_rollup_plugin.hours_page.overview_cache import (
    FAILURE_PAUSE,
    MAX_AGE_INCOMPLETE,
    MIN_AGE,
    FoundHours,
    OverviewHour,
)
from log_rollup_plugin.hours_page.overview_views import row_view
from log_rollup_plugin.urls import HOURS_URL_PREFIX
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream
from tests.support.markers import marker_body

NOW = datetime(2026, 11, 23, 12, 45, tzinfo=UTC)
HOURS = last_hours(NOW)
LATE = "log_rollup_late"
BUNDLE = "overview"
NAMES = ("app", "web", "batch")
Client = TestClient


class Buckets:
    """Opens stores in memory, and counts how many are open. Streams of a bucket in ``stalled`` wait."""

    def __init__(self) -> None:
        self.store = FakeStore(buckets=[f"bucket-{name}" for name in NAMES], control_connections=1)
        self.now = NOW
        self.stalled: set[str] = set()
        self.release = threading.Event()
        self.open: list[str] = []
        self.opened = 0
        self.most_open = 0
        self._lock = threading.Lock()

    def clock(self) -> datetime:
        """Return the time of the page."""
        return self.now

    @contextmanager
    def __call__(self, stream: Stream) -> Iterator[FakeStore]:
        with self._lock:
            self.open.append(stream.aggregated.bucket)
            self.opened += 1
            self.most_open = max(self.most_open, len(self.open))
        try:
            if stream.aggregated.bucket in self.stalled:
                assert self.release.wait(60)
                raise TransientError("the bucket stalled")
            yield self.store
        finally:
            with self._lock:
                self.open.remove(stream.aggregated.bucket)

    def complete(self, stream: Stream, hour: datetime, objects: int = 100, **what: Any) -> None:
        """Write the completion marker of an hour."""
        body = marker_body(stream, hour, objects, objects * 10, **what)
        self.store.produce(stream.at(hour).marker.key, body, bucket=stream.aggregated.bucket, algorithm=None)

    def requests(self) -> int:
        """Return the number of requests since the last call."""
        count = len(self.store.log)
        self.store.log.clear()
        return count


@pytest.fixture
def buckets() -> Iterator[Buckets]:
    found = Buckets()
    yield found
    found.release.set()


@pytest.fixture
def use_streams(
    database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Write a streams file with streams of these names, each in a bucket of its own, and their Dags."""
    used: list[str] = []

    def use(
        *names: str, bucket: Callable[[str], str] = lambda name: f"bucket-{name}"
    ) -> Mapping[str, Stream]:
        entries = [
            {
                "name": name, "start": "2026-10-01T00:00:00Z", "raw": f"s3://{bucket(name)}/raw/{name}/",
                "aggregated": f"s3://{bucket(name)}/out/{name}/",
            }
            for name in names
        ]  # fmt: skip
        path = tmp_path / "streams.yaml"
        path.write_text(yaml.safe_dump({"streams": entries}))
        monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(path))
        delete_dags(used)
        used[:] = [LATE, *(f"log_rollup_{name}" for name in names)]
        delete_dags(used)
        with create_session() as session:
            session.add(DagBundleModel(name=BUNDLE))
            session.flush()
            for dag_id in used:
                session.add(
                    DagModel(dag_id=dag_id, bundle_name=BUNDLE, is_paused=dag_id == "log_rollup_batch")
                )
        return {stream.name: stream for stream in load_streams()}

    yield use
    delete_dags(used)


def delete_dags(dag_ids: list[str]) -> None:
    with create_session() as session:
        for table in (XComModel, TaskInstance, DagRun, DagModel):
            session.execute(delete(table).where(table.dag_id.in_(dag_ids)))
        session.execute(delete(DagBundleModel).where(DagBundleModel.name == BUNDLE))


@pytest.fixture
def streams(use_streams: Callable[..., Mapping[str, Stream]]) -> Mapping[str, Stream]:
    return use_streams(*NAMES)


@pytest.fixture
def user(buckets: Buckets, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Client]]:
    """Serve the page, and return clients of users."""
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.dags.auth.OneDagEach")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "of-this-test-alone-and-long-enough-for-sha-512" * 2)
    purge_cached_app()
    airflow = FastAPI()
    init_auth_manager(airflow)
    overview = OverviewApi(buckets.clock, buckets)
    airflow.mount(HOURS_URL_PREFIX, create_app(HoursApi(buckets.clock), overview))

    def client(name: str) -> Client:
        found = TestClient(airflow, base_url=f"http://testserver{HOURS_URL_PREFIX}/")
        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role="VIEWER"))
        found.cookies.set("_token", token)
        return found

    yield client
    purge_cached_app()


def read_once(client: Client) -> dict[str, Any]:
    """Return the answer, also with the rows by name."""
    answer = client.get("api/overview")
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view | {row["name"]: row for row in view["streams"]}


def read(client: Client) -> dict[str, Any]:
    """The same after all hours have been read."""
    deadline = time.monotonic() + 60
    while True:
        view = read_once(client)
        if not view["bucket"]["pending"] or time.monotonic() > deadline:
            return view


def add_run(stream: str, hour: datetime, state: str, **tasks: str) -> None:
    """Add a scheduled run and its tasks to Airflow's database."""
    dag_id, run_id = f"log_rollup_{stream}", f"scheduled__{format_hour(hour)}"
    end = hour + timedelta(hours=1)
    with create_session() as session:
        run = DagRun(
            dag_id, run_id, run_type="scheduled", state=state, run_after=end, queued_at=end, start_date=end,
            logical_date=hour, data_interval=(hour, end),
        )  # fmt: skip
        run.end_date = end if state in ("success", "failed") else None
        session.add(run)
        session.flush()
        for task_id, task_state in tasks.items():
            session.execute(
                insert(TaskInstance).values(
                    dag_id=dag_id, run_id=run_id, task_id=task_id, state=task_state, pool="default_pool",
                    start_date=end, map_index=-1, try_number=1,
                )
            )  # fmt: skip


def add_report(stream: str, at: datetime, report: Mapping[str, Any]) -> None:
    """Add what log_rollup_late has found of a stream."""
    run_id = f"scheduled__{format_hour(at)}"
    with create_session() as session:
        run = DagRun(LATE, run_id, run_type="scheduled", state="success", run_after=at, logical_date=at)
        session.add(run)
        session.flush()
        session.execute(
            insert(TaskInstance).values(
                dag_id=LATE, run_id=run_id, task_id=f"find_{stream}", state="success", pool="default_pool",
                map_index=-1, try_number=1,
            )
        )  # fmt: skip
        session.add(
            XComModel(
                dag_run_id=run.id, dag_id=LATE, run_id=run_id, task_id=f"find_{stream}", key="report",
                value=report, timestamp=at,
            )
        )  # fmt: skip


def test_rows_follow_buckets_runs_and_clock(
    streams: Mapping[str, Stream], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    for number, hour in enumerate(HOURS[:-2]):
        buckets.complete(streams["app"], hour, 0 if number == 5 else 100, stored=250)
        if number not in (7, 8):
            buckets.complete(streams["web"], hour)
    for week in range(4):
        for hour in HOURS[-5:-2]:
            buckets.complete(streams["batch"], hour - week * timedelta(days=7), 100 if week else 0)
    add_run("web", HOURS[7], "failed", plan_hour="failed")
    add_run("web", HOURS[-1], "running", wait_for_raw_hour="deferred")
    add_run("app", HOURS[-1], "running", plan_hour="running")
    view = read(user("viewer"))
    assert view["hours"] == list(map(format_hour, HOURS))
    app, web, batch = (view[name] for name in NAMES)
    assert (app["states"][5], app["states"][-3:]) == ("empty", ["complete", "missing", "running"])
    assert (app["last_complete"], app["hours_behind"]) == (format_hour(HOURS[-3]), 1)
    assert (app["due"], app["incomplete"]) == (47, 1)
    assert (app["objects"], app["bytes_in"], app["bytes_stored"]) == (4500, 45_000, 46 * 250)
    assert app["problems"] == ["missing", "behind"]
    assert (web["states"][7], web["states"][8], web["states"][-1]) == ("failed", "missing", "waiting")
    assert web["reasons"]["7"] == "plan_hour failed"
    assert web["problems"] == ["failed", "missing", "behind"]
    assert batch["problems"] == ["missing", "behind", "silent", "paused"]
    assert batch["volume"] == {
        "state": "silent", "objects": 0, "bytes_in": 0, "usual_objects": 300, "usual_bytes_in": 3000,
    }  # fmt: skip


def test_row_says_which_raw_objects_expired_also_without_a_run() -> None:
    expired = ExpiredObjects(1200, 9000, "2026-11-23T05:00:01+00:00", finished=True)
    summary = HourSummary(HOURS[3], HourStatus.COMPLETE, {}, expired=expired)
    found = OverviewHour(CachedHour(summary, NOW), HourVolume(1200, 9000, 9000))
    row = row_view(make_stream(), NOW, HOURS, FoundHours({HOURS[3]: found}, 0, 0, ""), {}, {}, False)
    assert (row.states[3], row.reasons[3]) == ("complete", "1,200 raw objects expired on 2026-11-23")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("running", "is running"),
        ("scheduled", "waits for slots of its pool"),
        ("queued", "waits for a worker"),
        ("up_for_retry", "waits for its next try"),
    ],
)
def test_row_says_what_an_active_task_waits_for(
    streams: Mapping[str, Stream], user: Callable[[str], Client], state: str, reason: str
) -> None:
    add_run("app", HOURS[-1], "running", plan_hour="success", pack_shard=state)
    add_run("app", HOURS[-9], "running", plan_hour="success", pack_shard=state)
    app = read(user("viewer"))["app"]
    assert (app["states"][-1], app["reasons"]["47"]) == ("running", f"pack_shard {reason}")
    assert (app["states"][-9], app["reasons"]["39"]) == ("late", f"pack_shard {reason}")


def test_user_sees_only_rows_of_readable_dags(
    streams: Mapping[str, Stream], user: Callable[[str], Client]
) -> None:
    assert [row["name"] for row in read(user("viewer"))["streams"]] == list(NAMES)
    assert [row["name"] for row in read(user("viewer-of-log_rollup_web"))["streams"]] == ["web"]
    assert user("viewer").get("api/overview", cookies={"_token": ""}).status_code == 401


def test_cached_hours_are_read_again_only_when_they_may_change(
    streams: Mapping[str, Stream], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    app = streams["app"]
    for hour in HOURS[:-1]:
        buckets.complete(app, hour)
    viewer = user(f"viewer-of-log_rollup_{app.name}")
    read(viewer)
    # The last hour and the 12 of earlier weeks are not complete.
    assert buckets.requests() == 47 + 2 * (1 + 12)
    buckets.now += MIN_AGE
    read(viewer)
    assert buckets.requests() == 0
    buckets.now += MAX_AGE_INCOMPLETE
    read(viewer)
    assert buckets.requests() == 2
    buckets.complete(app, HOURS[-1])
    add_run("app", HOURS[-1], "success")
    with create_session() as session:
        session.execute(update(DagRun).values(updated_at=buckets.now + timedelta(seconds=9)))
    buckets.now += MIN_AGE
    assert read(viewer)["app"]["last_complete"] == format_hour(HOURS[-1])
    # The completed hour, and the newest of the compared hours in four weeks.
    assert buckets.requests() == 1 + 2 * 4


def test_stalled_bucket_delays_no_other_stream(
    streams: Mapping[str, Stream],
    buckets: Buckets,
    user: Callable[[str], Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "OVERVIEW_PAGE_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(buckets, "stalled", {"bucket-web"})
    for name in ("app", "batch"):
        buckets.complete(streams[name], HOURS[-2])
    viewer = user("viewer")
    deadline = time.monotonic() + 60
    rows = read_once(viewer)
    while rows["app"]["pending"] + rows["batch"]["pending"] and time.monotonic() < deadline:
        rows = read_once(viewer)
    assert rows["app"]["last_complete"] == rows["batch"]["last_complete"] == format_hour(HOURS[-2])
    assert (rows["web"]["last_complete"], rows["web"]["hours_behind"], rows["web"]["error"]) == (
        None,
        None,
        "",
    )
    assert rows["web"]["pending"] == len(HOURS)
    assert buckets.open == ["bucket-web"]
    buckets.release.set()
    web = read(viewer)["web"]
    assert (web["error"], web["problems"][0]) == ("the bucket stalled", "unreadable")
    opened = buckets.opened
    read(viewer)
    assert buckets.opened == opened
    buckets.stalled.clear()
    buckets.now += FAILURE_PAUSE
    assert read(viewer)["web"]["error"] == ""


def test_stream_without_access_fails_alone(
    use_streams: Callable[..., Mapping[str, Stream]], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    use_streams(*NAMES, bucket=lambda name: "bucket-app")

    def refuse() -> None:
        raise AccessError("GET of the marker: access denied")

    buckets.store.on("READ", "out/web/", refuse, times=1000)
    view = read(user("viewer"))
    assert [view[name]["error"] for name in NAMES] == ["", "GET of the marker: access denied", ""]
    assert view["app"]["due"] == view["app"]["incomplete"] == 47
    # Another bucket would find a free thread.
    assert buckets.most_open <= limits.OVERVIEW_PAGE_THREADS - 1


def test_threads_and_stores_are_bounded(
    use_streams: Callable[..., Mapping[str, Stream]], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    names = [f"many-{number}" for number in range(40)]
    buckets.store = FakeStore(buckets=[f"bucket-{name}" for name in names], control_connections=1)
    use_streams(*names)
    view = read(user("viewer"))
    assert len(view["streams"]) == 40
    assert view["bucket"]["pending"] == 0
    assert 1 <= buckets.most_open <= limits.OVERVIEW_PAGE_THREADS
    # A store for each bucket; none for each hour.
    assert buckets.opened <= 2 * len(names)


def test_queries_do_not_grow_with_the_streams(
    use_streams: Callable[..., Mapping[str, Stream]], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    viewer = user("viewer")
    counts = []
    for number in (1, 3):
        use_streams(*NAMES[:number])
        for name in NAMES[:number]:
            add_run(name, HOURS[-1], "running", plan_hour="running")
            add_run(name, HOURS[-3], "success")
        read(viewer)
        with counted_queries() as found:
            assert len(viewer.get("api/overview").json()["streams"]) == number
        counts.append(found)
    assert counts[0] == counts[1]
    assert counts[1]["at once"] == 1
    assert counts[1]["queries"] <= 10


@contextmanager
def counted_queries() -> Iterator[dict[str, int]]:
    """Count the queries to Airflow's database, and its connections in use at the same time."""
    found = {"queries": 0, "at once": 0}
    in_use = 0

    def query(*_: object) -> None:
        found["queries"] += 1

    def checked_out(*_: object) -> None:
        nonlocal in_use
        in_use += 1
        found["at once"] = max(found["at once"], in_use)

    def checked_in(*_: object) -> None:
        nonlocal in_use
        in_use -= 1

    listeners = (("before_cursor_execute", query), ("checkout", checked_out), ("checkin", checked_in))
    for name, listener in listeners:
        event.listen(settings.engine, name, listener)
    yield found
    for name, listener in listeners:
        event.remove(settings.engine, name, listener)


def test_late_hours_stay_cached_for_users_who_may_see_them(
    streams: Mapping[str, Stream], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    hour = HOURS[0] - timedelta(hours=5)
    buckets.complete(streams["web"], hour)
    late = {format_hour(hour): {"late": 2, "changed": 0, "vanished": 0}}
    # Before the hour was completed again.
    add_report("web", datetime(2026, 11, 23, 5, tzinfo=UTC), {"rerun": late})
    viewer, other = user("viewer"), user("viewer-of-log_rollup_web")
    assert read(viewer)["web"]["late"] is None
    buckets.requests()
    assert read_once(other)["web"]["late"] is None
    assert read_once(viewer)["web"]["late"] is None
    assert buckets.requests() == 0


def test_late_hours_of_a_day_old_check_are_all_read(
    streams: Mapping[str, Stream], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    # By default a check covers 3 days, and after a day the last 48 hours have 25 of these.
    late_hours = [HOURS[0] - timedelta(hours=number) for number in range(1, 3 * 24 - 25 + 1)]
    for hour in late_hours:
        buckets.complete(streams["web"], hour)
    late = {format_hour(hour): {"late": 2, "changed": 0, "vanished": 0} for hour in late_hours}
    add_report("web", datetime(2026, 11, 23, 5, tzinfo=UTC), {"rerun": late})
    assert read(user("viewer"))["web"]["late"] is None


def test_late_objects_count_until_their_hour_is_complete_again(
    streams: Mapping[str, Stream], buckets: Buckets, user: Callable[[str], Client]
) -> None:
    # The markers were written on the 23rd at 9:12:40.
    checked_at = datetime(2026, 11, 23, 9, tzinfo=UTC)
    for hour in HOURS:
        buckets.complete(streams["app"], hour)
        buckets.complete(streams["web"], hour)
    found = {
        "rerun": {format_hour(HOURS[3]): {"late": 2, "changed": 1, "vanished": 0}},
        "left_alone": {format_hour(HOURS[4]): {"late": 0, "changed": 0, "vanished": 5}},
    }
    add_report("app", checked_at, found)
    add_report("web", checked_at - timedelta(days=1), found)
    add_report("web", checked_at + timedelta(hours=1), found)
    view = read(user("viewer"))
    assert view["app"]["late"] is None
    assert view["web"]["late"] == {
        "at": "2026-11-23T10:00:00Z", "hours": 2, "objects": 3, "vanished": 5
    }  # fmt: skip
    assert view["web"]["problems"] == ["late"]
    assert read(user("viewer-of-log_rollup_web"))["web"]["late"] is None
