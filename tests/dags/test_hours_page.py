"""The API of the page Hours, with a real bucket, real rows in Airflow's database, and real users."""

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
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
from sqlalchemy import delete, event, insert

from dev.servers import RcloneServer
from include.log_rollup import limits
from include.log_rollup.errors import TransientError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.status import read_hours
from include.log_rollup.streams import load_streams
from log_rollup_plugin.hours_page import page_store
from log_rollup_plugin.hours_page.api import HoursApi
from log_rollup_plugin.hours_page.app import create_app
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.urls import HOURS_URL_PREFIX
from tests.support.hour_on_server import Pipeline, stream_on
from tests.support.raw_hours import hour_prefix, make_hour, put_objects

# Early in its month, because a page reads all past hours of a month.
HOUR = datetime(2026, 11, 2, 8, tzinfo=UTC)
NOW = HOUR + timedelta(hours=4, minutes=30)
START = HOUR - timedelta(hours=4)
APP, WEB, LATE = "log_rollup_app", "log_rollup_web", "log_rollup_late"
BUNDLE = "hours-page"
Users = Callable[..., TestClient]


@pytest.fixture(scope="module")
def bucket_with_hour(rclone_server: RcloneServer) -> Iterator[str]:
    """Create a bucket with one complete hour of the stream ``app``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
        rclone_server.create_bucket("hours-page")
        client = rclone_server.client()
        make_hour(client, "hours-page", "raw/app/20261102/08/", objects=20)
        Pipeline(stream_on("hours-page"), client, "hours-page", HOUR).run()
        yield "hours-page"
    rclone_server.delete_bucket("hours-page")


@pytest.fixture
def streams(bucket_with_hour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a streams file with two streams in that bucket."""
    path = tmp_path / "streams.yaml"
    entries = [
        {
            "name": name, "start": START, "part_size": "5MiB", "shard_size": "5MiB",
            "raw": f"s3://{bucket_with_hour}/raw/{name}/",
            "aggregated": f"s3://{bucket_with_hour}/aggregated/{name}/",
        }
        for name in ("app", "web")
    ]  # fmt: skip
    path.write_text(yaml.safe_dump({"streams": entries}))
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(path))
    return path


@pytest.fixture
def dags(database: None) -> Iterator[None]:
    """Add the Dags of these streams to Airflow's database, and delete them afterwards."""
    delete_dags()
    with create_session() as session:
        session.add(DagBundleModel(name=BUNDLE))
        session.flush()
        for dag_id in (APP, WEB, LATE):
            session.add(DagModel(dag_id=dag_id, bundle_name=BUNDLE, is_paused=dag_id == WEB))
    yield
    delete_dags()


def delete_dags() -> None:
    """Delete all rows of these Dags; other tests have Dags of the same names."""
    with create_session() as session:
        for table in (XComModel, TaskInstance, DagRun, DagModel):
            session.execute(delete(table).where(table.dag_id.in_([APP, WEB, LATE])))
        session.execute(delete(DagBundleModel).where(DagBundleModel.name == BUNDLE))


@pytest.fixture
def serve(
    rclone_server: RcloneServer, streams: Path, dags: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[HoursApi], Users]]:
    """Serve Airflow with the page Hours, and with another page ``/other``."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.dags.auth.OneDagEach")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "of-this-test-alone-and-long-enough-for-sha-512" * 2)
    purge_cached_app()
    airflow = FastAPI()
    init_auth_manager(airflow)
    airflow.add_api_route("/other", lambda: "here")

    def with_hours(hours: HoursApi) -> Users:
        airflow.mount(HOURS_URL_PREFIX, create_app(hours))

        def client(name: str = "", role: str | None = "VIEWER") -> TestClient:
            found = TestClient(airflow, base_url=f"http://testserver{HOURS_URL_PREFIX}/")
            if name:
                found.cookies.set(
                    "_token", get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role))
                )
            return found

        return client

    yield with_hours
    purge_cached_app()


@pytest.fixture
def users(serve: Callable[[HoursApi], Users]) -> Users:
    """Return clients of users: ``users("viewer", "VIEWER")``; ``users()`` is not logged in."""
    return serve(HoursApi(lambda: NOW))


def add_run(hour: datetime, state: str, tasks: dict[str, str], kind: str = "scheduled", **more: Any) -> str:
    """Add a run of the stream ``app`` and its tasks to Airflow's database."""
    run_id = f"{kind}__{format_hour(hour)}"
    timed = {"logical_date": hour, "data_interval": (hour, hour + timedelta(hours=1))}
    at = hour + timedelta(hours=1)
    with create_session() as session:
        values = {"queued_at": at, "start_date": at} | (timed if kind == "scheduled" else {}) | more
        run = DagRun(APP, run_id, run_type=kind, state=state, run_after=at, **values)
        # Airflow sets it to this machine's time, which is not the time of the test.
        run.end_date = values["start_date"] if state in ("success", "failed") else None
        session.add(run)
        session.flush()
        for task_id, task_state in tasks.items():
            session.execute(
                insert(TaskInstance).values(
                    dag_id=APP, run_id=run_id, task_id=task_id, state=task_state, pool="default_pool",
                    start_date=at, map_index=0 if task_id == "pack_shard" else -1, try_number=1,
                )
            )  # fmt: skip
    return run_id


def read_month(client: TestClient, stream: str = "app") -> dict[str, Any]:
    """Return a month after all of its hours have been read, with the hours by name."""
    deadline = time.monotonic() + 60
    while True:
        answer = client.get(f"api/streams/{stream}/hours", params={"month": "2026-11"})
        assert answer.status_code == 200, answer.text
        month: dict[str, Any] = answer.json()
        if not month["bucket"]["pending"] or time.monotonic() > deadline:
            return month | {"hours": {one["hour"]: one for one in month["hours"]}}


def state_and_reason(month: dict[str, Any], hours_after: int) -> tuple[str, str]:
    """Return state and reason of an hour, by its distance from the complete hour."""
    one = month["hours"][format_hour(HOUR + timedelta(hours=hours_after))]
    return one["state"], one["why"]


@pytest.mark.parametrize(
    "path",
    ["", "api/streams", "api/streams/app/hours?month=2026-11", f"api/streams/app/hours/{format_hour(HOUR)}"],
)
def test_every_address_requires_a_login(users: Users, path: str) -> None:
    assert users().get(path).status_code == 401
    wrong = users()
    wrong.cookies.set("_token", "not a token")
    assert wrong.get(path).status_code in (401, 403)


def test_page_without_login_links_to_the_login(users: Users) -> None:
    answer = users().get("")
    assert answer.status_code == 401
    assert "../../api/v2/auth/login" in answer.text


def test_user_without_role_sees_no_stream(users: Users) -> None:
    user = users("nobody", None)
    assert user.get("api/streams").json()["streams"] == []
    for path in ("api/streams/app/hours?month=2026-11", f"api/streams/app/hours/{format_hour(HOUR)}"):
        assert user.get(path).status_code == 403


def test_user_sees_only_streams_of_readable_dags(users: Users) -> None:
    everything, one = users("viewer"), users(f"viewer-of-{WEB}")
    found = everything.get("api/streams").json()["streams"]
    assert [(stream["name"], stream["paused"]) for stream in found] == [("app", False), ("web", True)]
    assert [stream["name"] for stream in one.get("api/streams").json()["streams"]] == ["web"]
    assert one.get("api/streams/web/hours?month=2026-11").status_code == 200
    assert one.get("api/streams/app/hours?month=2026-11").status_code == 403
    assert one.get(f"api/streams/app/hours/{format_hour(HOUR)}").status_code == 403


def test_invalid_requests_are_explained(users: Users) -> None:
    viewer = users("viewer")
    for path, status, message in [
        ("api/streams/other/hours?month=2026-11", 404, "no stream 'other'"),
        ("api/streams/app/hours?month=2026-13", 400, "write it like 2026-11"),
        ("api/streams/app/hours?month=0001-01", 400, "write it like 2026-11"),
        ("api/streams/app/hours/2026-11-02T08:30:00Z", 400, "write it like 2026-11-23T08:00:00Z"),
        ("api/streams/app/hours/9999-12-31T23:00:00Z", 400, "of 2000 to 2099"),
        ("api/streams/app/hours/0001-01-01T00:00:00Z", 400, "of 2000 to 2099"),
        ("api/streams/app/hours/1999-12-31T23:00:00Z", 400, "of 2000 to 2099"),
        ("api/streams/app/hours/0001-01-01T00:00:00+05:00", 400, "of 2000 to 2099"),
        ("api/streams/app/hours/2099-12-31T23:00:00-05:00", 400, "write it like"),
        ("api/streams/app/hours?month=9999-12", 400, "write it like 2026-11"),
        ("api/streams/app/hours/yesterday", 400, "write it like 2026-11-23T08:00:00Z"),
        ("api/streams/app/hours", 422, "month"),
        ("api/streams/app/hours?month=2026-11&refresh=perhaps", 422, "refresh"),
    ]:
        answer = viewer.get(path)
        assert (answer.status_code, message in json.dumps(answer.json()["detail"])) == (status, True), path


def test_first_and_last_hours_and_months_are_shown(users: Users) -> None:
    viewer = users("viewer")
    for hour in ("2000-01-01T00:00:00Z", "2099-12-31T23:00:00Z"):
        assert viewer.get(f"api/streams/app/hours/{hour}").status_code == 200
        assert viewer.get("api/streams/app/hours", params={"month": hour[:7]}).status_code == 200


def test_missing_streams_file_is_a_503_with_the_reason(users: Users, streams: Path) -> None:
    viewer = users("viewer")
    streams.unlink()
    answer = viewer.get("api/streams")
    assert answer.status_code == 503
    assert "LOG_ROLLUP_STREAMS has to name a readable file" in answer.json()["detail"]


@pytest.mark.parametrize(
    "text",
    [
        "streams:\n- {name: app, raw: s3://secret-bucket/}\n- {name: payroll, secret_key: 1}\n",
        "streams: [{name: payroll, raw: s3://secret-bucket/",
        "{streams: [], payroll: secret}",
    ],
)
def test_invalid_streams_file_reveals_no_stream(users: Users, streams: Path, text: str) -> None:
    streams.write_text(text)
    for user in (users(f"viewer-of-{APP}"), users("nobody", None), users("admin", "ADMIN")):
        for path in ("api/streams", "api/streams/app/hours?month=2026-11"):
            answer = user.get(path)
            assert answer.status_code in (403, 503)
            for secret in ("payroll", "secret", str(streams)):
                assert secret not in answer.text
    answer = users("viewer").get("api/streams")
    assert answer.status_code == 503
    assert "Dag import errors" in answer.json()["detail"]


def test_damaged_marker_affects_only_its_own_hour(
    users: Users, rclone_server: RcloneServer, bucket_with_hour: str
) -> None:
    client = rclone_server.client()
    hour = HOUR + timedelta(hours=2)
    key = "aggregated/app/20261102/10/_SUCCESS"
    marker = json.loads(
        client.get_object(Bucket=bucket_with_hour, Key="aggregated/app/20261102/08/_SUCCESS")["Body"].read()
    )
    nested = b"[" * 200_000
    wrong = [b"", b"<html>", b'{"format": 1}', json.dumps({**marker, "seconds": None}).encode(), nested]
    viewer = users("viewer")
    add_run(hour, "success", {"complete_hour": "success"})
    try:
        for body in wrong:
            client.put_object(Bucket=bucket_with_hour, Key=key, Body=body)
            detail = viewer.get(f"api/streams/app/hours/{format_hour(hour)}").json()
            assert (detail["state"], detail["marker"], detail["parts"]) == ("damaged", None, [])
            assert "_SUCCESS" in detail["why"]
            month = read_month(viewer)
            assert state_and_reason(month, 0)[0] == "complete"
            assert state_and_reason(month, 2)[0] == "damaged"
            assert month["hours"][format_hour(hour)]["marker"] is None
    finally:
        client.delete_object(Bucket=bucket_with_hour, Key=key)


def test_groups_are_read_from_the_bucket_in_bounded_answers(
    users: Users, streams: Path, rclone_server: RcloneServer, bucket_with_hour: str
) -> None:
    places = {
        "raw": f"s3://{bucket_with_hour}/by/{{service}}/", "aggregated": f"s3://{bucket_with_hour}/out/{{service}}/"
    }  # fmt: skip
    document = yaml.safe_load(streams.read_text())
    document["streams"][1] |= places
    streams.write_text(yaml.safe_dump(document))
    client = rclone_server.client()
    for number in range(60):
        key = f"by/s{number:02d}/20261102/08/a.log"
        client.put_object(Bucket=bucket_with_hour, Key=key, Body=b"x" * (number + 1))
    Pipeline(stream_on(bucket_with_hour, name="web", **places), client, bucket_with_hour, HOUR).run()
    viewer, hour = users("viewer"), f"api/streams/web/hours/{format_hour(HOUR)}"
    detail = viewer.get(hour).json()
    assert (detail["marker"]["groups"], detail["parts_found"]) == (60, 60)
    assert (detail["groups"]["total"], len(detail["groups"]["groups"])) == (60, 50)
    prefix = f"s3://{bucket_with_hour}/out/s59/20261102/08/"
    assert detail["groups"]["groups"][0] == {
        "name": "s59", "objects": 1, "bytes_in": 60, "parts": 1, "damaged": 0, "bytes_stored": None,
        "place": {"url": prefix, "console": None, "prefixes": [prefix], "captures": []},
    }  # fmt: skip
    assert detail["records"]["url"] == f"s3://{bucket_with_hour}/out/_hours/web/20261102/08/"
    found = viewer.get(f"{hour}/groups", params={"search": "S0", "most": 5}).json()
    assert (found["total"], found["found"]) == (60, 10)
    assert [group["name"] for group in found["groups"]] == ["s09", "s08", "s07", "s06", "s05"]
    assert viewer.get(f"{hour}/groups", params={"most": 1001}).status_code == 422
    other = f"api/streams/app/hours/{format_hour(HOUR)}"
    assert viewer.get(other).json()["groups"] is None
    assert viewer.get(f"{other}/groups").status_code == 404
    assert viewer.get(f"{other}/groups").json()["detail"].endswith("is not complete, or has no groups")


@pytest.fixture(scope="module")
def compressed_hours(rclone_server: RcloneServer, bucket_with_hour: str) -> None:
    """A compressed hour of ``web``: 110 frames of an object. The hour before it is not compressed."""
    places = {name: f"s3://{bucket_with_hour}/{name}/web/" for name in ("raw", "aggregated")}
    client = rclone_server.client()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.log_rollup.compression.FRAME_BYTES", 1_000)
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
        for hour, objects, compression in ((HOUR, 110, "zstd"), (HOUR - timedelta(hours=1), 10, "none")):
            prefix = hour_prefix("raw/web/", hour)
            put_objects(
                client,
                bucket_with_hour,
                {f"{prefix}{number:03d}.log": b"line\n" * 200 for number in range(objects)},
            )
            stream = stream_on(bucket_with_hour, name="web", compression=compression, **places)
            Pipeline(stream, client, bucket_with_hour, hour).run()


@pytest.fixture
def compressed(streams: Path, compressed_hours: None) -> str:
    """The path of the compressed hour, which a test may read and not change."""
    return f"api/streams/web/hours/{format_hour(HOUR)}"


def test_month_has_totals_of_compressed_and_other_hours(users: Users, compressed: str) -> None:
    month = read_month(users("viewer"), "web")
    before, after = (
        month["hours"][format_hour(HOUR + timedelta(hours=hours))]["marker"] for hours in (-1, 0)
    )
    assert (before["bytes_stored"], before["bytes_out"], after["bytes_in"]) == (None, 10_000, 110_000)
    assert 0 < after["bytes_stored"] < 50_000
    assert month["totals"] == {
        "hours": 2, "compressed": 1, "objects": 120, "bytes_in": 120_000,
        "bytes_stored": 10_000 + after["bytes_stored"],
    }  # fmt: skip
    figures = month["cost"]["figures"]
    assert (figures["currency"], figures["hours"], figures["raw_days"]) == ("USD", 2, None)
    assert (figures["first"], figures["last"]) == (format_hour(HOUR - timedelta(hours=1)), format_hour(HOUR))
    # 60 PUTs of producers an hour.
    assert figures["requests"] > 730 * 0.06 * 0.005
    assert figures["total"] > figures["without"] > 0


def test_month_says_that_prices_are_wrong(
    users: Users, compressed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.yaml").write_text("as_of: [")
    monkeypatch.setenv("LOG_ROLLUP_PRICES", str(tmp_path / "prices.yaml"))
    cost = read_month(users("viewer"), "web")["cost"]
    assert cost["figures"] is None
    assert "the prices are not YAML" in cost["problem"]


def test_frames_of_a_part_are_read_in_bounded_answers(users: Users, compressed: str) -> None:
    viewer = users("viewer")
    detail = viewer.get(compressed).json()
    (part,) = detail["parts"]
    assert (part["frames"], part["content_size"], part["objects"]) == (110, 110_000, 110)
    assert part["size"] == detail["marker"]["bytes_stored"]
    answer = viewer.get(f"{compressed}/frames", params={"part": part["name"]})
    assert answer.status_code == 200
    assert (answer.json()["total"], len(answer.json()["frames"])) == (110, 100)
    first, second, *_ = answer.json()["frames"]
    assert (first["offset"], first["content_size"], first["objects"]) == (0, 1_000, 1)
    assert second["offset"] == first["size"] > 0


def test_frames_of_other_parts_are_not_found(users: Users, compressed: str) -> None:
    viewer = users("viewer")
    plain = f"api/streams/app/hours/{format_hour(HOUR)}"
    name = viewer.get(plain).json()["parts"][0]["name"]
    for path, part in ((plain, name), (compressed, name), (f"{compressed[:-9]}12:00:00Z", name)):
        answer = viewer.get(f"{path}/frames", params={"part": part})
        assert answer.status_code == 404
        assert f"has no compressed part {part!r}" in answer.json()["detail"].replace('"', "'")
    assert viewer.get(f"{compressed}/frames").status_code == 422
    assert viewer.get(f"{compressed}/frames", params={"part": "x" * 1025}).status_code == 422
    other = users(f"viewer-of-{APP}")
    assert other.get(f"{compressed}/frames", params={"part": name}).status_code == 403
    assert users().get(f"{compressed}/frames", params={"part": name}).status_code == 401


def test_frames_of_a_damaged_manifest_are_refused(
    users: Users, compressed: str, rclone_server: RcloneServer, bucket_with_hour: str
) -> None:
    viewer = users("viewer")
    name = viewer.get(compressed).json()["parts"][0]["name"]
    client, key = rclone_server.client(), "aggregated/web/20261102/08/_manifest.jsonl.gz"
    manifest = client.get_object(Bucket=bucket_with_hour, Key=key)["Body"].read()
    client.put_object(Bucket=bucket_with_hour, Key=key, Body=b"not gzip")
    try:
        answer = viewer.get(f"{compressed}/frames", params={"part": name})
    finally:
        client.put_object(Bucket=bucket_with_hour, Key=key, Body=manifest)
    assert answer.status_code == 503
    assert f"s3://{bucket_with_hour}/{key}: the manifest cannot be read" in answer.json()["detail"]


class StalledStore:
    """Blocks every caller that opens a store, until ``release`` is set."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.release = threading.Event()
        self.opened = 0
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, *_: Any) -> Iterator[PooledS3Hook]:
        with self._lock:
            self.opened += 1
        self.called.set()
        assert self.release.wait(300)
        raise TransientError("the bucket stalled")
        yield  # Makes this a generator.


def send_concurrently(
    client: TestClient, path: str, count: int, meanwhile: Callable[..., Any]
) -> list[httpx.Response]:
    """Send requests concurrently in one event loop, and call ``meanwhile`` while they wait."""

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=client.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://testserver", cookies=dict(client.cookies), timeout=300
        ) as session:
            requests = [asyncio.create_task(session.get(f"{HOURS_URL_PREFIX}/{path}")) for _ in range(count)]
            await meanwhile(session, requests)
            return await asyncio.gather(*requests)

    return asyncio.run(main())


HOUR_PATH = f"api/streams/app/hours/{format_hour(HOUR)}"


@pytest.mark.parametrize("path", [HOUR_PATH, "api/streams/app/hours?month=2026-11"])
def test_stalled_bucket_does_not_delay_other_pages(
    serve: Callable[[HoursApi], Users], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOUR_PAGE_QUEUE_SECONDS", "HOUR_PAGE_READ_SECONDS", "MONTH_PAGE_WAIT_SECONDS"):
        monkeypatch.setattr(limits, name, 300.0)
    store = StalledStore()
    viewer = serve(HoursApi(lambda: NOW, store))("viewer")

    async def other_pages(
        session: httpx.AsyncClient, requests: Sequence["asyncio.Task[httpx.Response]"]
    ) -> None:
        try:
            assert await asyncio.to_thread(store.called.wait, 300)
            for _ in range(20):
                other = await asyncio.wait_for(session.get("/other"), 60)
                assert other.status_code == 200
            streams = await asyncio.wait_for(session.get(f"{HOURS_URL_PREFIX}/api/streams"), 60)
            assert streams.status_code == 200
            assert not any(request.done() for request in requests)
        finally:
            store.release.set()

    answers = send_concurrently(viewer, path, 60, other_pages)
    assert {answer.status_code for answer in answers} == {200}
    assert store.opened <= 60


@pytest.fixture
def most_connections() -> Iterator[Callable[[], int]]:
    """Count the connections to Airflow's database that are in use at the same time."""
    in_use, most = 0, 0

    def checked_out(*_: object) -> None:
        nonlocal in_use, most
        in_use += 1
        most = max(most, in_use)

    def checked_in(*_: object) -> None:
        nonlocal in_use
        in_use -= 1

    listeners = (("checkout", checked_out), ("checkin", checked_in))
    for name, listener in listeners:
        event.listen(settings.engine, name, listener)
    yield lambda: most
    for name, listener in listeners:
        event.remove(settings.engine, name, listener)


# With two, as many requests as the pool has connections could each wait for their second one.
@pytest.mark.parametrize("path", ["api/streams", HOUR_PATH, "api/streams/app/hours?month=2026-11"])
def test_request_takes_one_database_connection_at_a_time(
    serve: Callable[[HoursApi], Users], path: str, most_connections: Callable[[], int]
) -> None:
    assert serve(HoursApi(lambda: NOW))("viewer").get(path).status_code == 200
    assert most_connections() == 1


def test_hours_beyond_the_threads_are_refused_at_once(
    serve: Callable[[HoursApi], Users], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOUR_PAGE_QUEUE_SECONDS", 0.05)
    monkeypatch.setattr(limits, "HOUR_PAGE_READ_SECONDS", 300.0)
    store = StalledStore()
    viewer = serve(HoursApi(lambda: NOW, store))("viewer")

    async def until_refused(_: object, requests: Sequence["asyncio.Task[httpx.Response]"]) -> None:
        waiting = set(requests)
        while len(waiting) > limits.HOUR_PAGE_THREADS:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        store.release.set()

    answers = send_concurrently(viewer, HOUR_PATH, 60, until_refused)
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses == {200: limits.HOUR_PAGE_THREADS, 503: 60 - limits.HOUR_PAGE_THREADS}
    assert store.opened == limits.HOUR_PAGE_THREADS
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == str(limits.HOUR_PAGE_RETRY_AFTER_SECONDS)
            assert "too many hours are being read at once" in answer.json()["detail"]
        else:
            assert "the bucket stalled" in answer.json()["error"]


def test_slow_bucket_read_is_left_out_of_the_answer(
    serve: Callable[[HoursApi], Users], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOUR_PAGE_READ_SECONDS", 0.05)
    store = StalledStore()
    add_run(HOUR, "failed", {"plan_hour": "failed"})
    answer = serve(HoursApi(lambda: NOW, store))("viewer").get(HOUR_PATH)
    store.release.set()
    assert answer.status_code == 200
    assert "was not read within" in answer.json()["error"]
    assert (answer.json()["state"], answer.json()["runs"][0]["state"]) == ("failed", "failed")


def test_silent_server_times_out(serve: Callable[[HoursApi], Users], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_READ_SECONDS", 0.2)
    viewer = serve(HoursApi(lambda: NOW))("viewer")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # The kernel accepts connections, and no one reads from them.
        extra = {
            "endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}", "region_name": "us-east-1",
            "config_kwargs": {"read_timeout": 300, "retries": {"max_attempts": 9}},
        }  # fmt: skip
        connection = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        answer = viewer.get(HOUR_PATH)
        assert (answer.status_code, "Read timeout" in answer.json()["error"]) == (200, True)
        month = read_month(viewer)
        assert "Read timeout" in month["bucket"]["error"]


def test_slow_bucket_gets_no_request_after_the_deadline(
    users: Users, streams: Path, rclone_server: RcloneServer
) -> None:
    users()
    stream = load_streams()[0]
    with page_store.open_store(stream, 1, 0.0) as hook, pytest.raises(TransientError, match="too slowly"):
        read_hours(hook, stream, [HOUR])
    assert hook.requests["GetObject"] == 0


def test_hour_states_follow_bucket_runs_and_clock(users: Users) -> None:
    add_run(HOUR, "success", {"complete_hour": "success"})
    add_run(HOUR + timedelta(hours=1), "running", {"wait_for_raw_hour": "deferred"})
    add_run(HOUR + timedelta(hours=3), "running", {"wait_for_raw_hour": "deferred"})
    add_run(HOUR - timedelta(hours=1), "failed", {"plan_hour": "success", "pack_shard": "failed"})
    add_run(HOUR - timedelta(hours=2), "success", {})
    earlier = HOUR - timedelta(hours=9)
    add_run(
        earlier, "running", {"plan_hour": "success", "pack_shard": "running"}, "manual",
        conf={"hour": format_hour(earlier)}, queued_at=NOW - timedelta(minutes=5),
    )  # fmt: skip
    month = read_month(users("viewer"))
    assert len(month["hours"]) == 30 * 24
    assert state_and_reason(month, 0) == ("complete", "")
    assert state_and_reason(month, 1) == ("late", "waits until its raw objects are settled")
    assert state_and_reason(month, 2) == ("missing", "has neither a completion marker nor a run")
    assert state_and_reason(month, 3) == ("waiting", "waits until its raw objects are settled")
    assert state_and_reason(month, 4) == ("open", "has not ended")
    assert state_and_reason(month, 5) == ("none", "in the future")
    assert state_and_reason(month, -1) == ("failed", "pack_shard failed")
    assert state_and_reason(month, -2)[0] == "missing"
    assert state_and_reason(month, -5) == ("none", "before the stream's start")
    assert state_and_reason(month, -9) == ("running", "pack_shard is running")
    marker = month["hours"][format_hour(HOUR)]["marker"]
    assert marker["objects"] == 20
    assert marker["bytes_in"] == marker["bytes_out"] > 0
    assert marker["sockets"] > 0
    assert month["bucket"]["error"] == ""
    assert month["bucket"]["newest"] == NOW.isoformat().replace("+00:00", "Z")


def test_last_run_counts_unless_a_marker_exists(users: Users) -> None:
    add_run(HOUR, "success", {})
    # The hour was completed by this machine's clock.
    late = {"conf": {"hour": format_hour(HOUR)}, "start_date": datetime.now(UTC)}
    run_id = add_run(HOUR, "failed", {"plan_hour": "failed"}, "operator_triggered", **late)
    viewer = users("viewer")
    assert state_and_reason(read_month(viewer), 0) == (
        "complete",
        "the last rerun failed and changed nothing",
    )
    detail = viewer.get(f"api/streams/app/hours/{format_hour(HOUR)}").json()
    assert [run["run_id"] for run in detail["runs"]] == [run_id, f"scheduled__{format_hour(HOUR)}"]


def test_hour_page_has_parts_proofs_tasks_and_addresses(users: Users) -> None:
    add_run(HOUR, "success", {"plan_hour": "success", "pack_shard": "success"})
    detail = users("viewer").get(f"api/streams/app/hours/{format_hour(HOUR)}").json()
    assert (detail["state"], detail["error"], detail["unclear"]) == ("complete", "", "")
    assert len(detail["parts"]) == detail["marker"]["parts"] > 1
    assert {part["proof"] for part in detail["parts"]} == set(detail["marker"]["verified"]["parts"])
    assert sum(part["size"] for part in detail["parts"]) == detail["marker"]["bytes_out"]
    assert [(task["task_id"], task["map_index"]) for task in detail["tasks"]] == [
        ("pack_shard", 0),
        ("plan_hour", -1),
    ]
    prefix = "s3://hours-page/aggregated/app/20261102/08/"
    assert detail["aggregated"] == {"url": prefix, "console": None, "prefixes": [prefix], "captures": []}
    assert detail["may_clear"] is False


def test_operator_may_clear(users: Users) -> None:
    detail = users("operator", "OP").get(f"api/streams/app/hours/{format_hour(HOUR)}").json()
    assert detail["may_clear"] is True


def test_late_report_is_shown_to_users_who_may_read_it(users: Users) -> None:
    report = {
        "hours": 72, "complete": 1, "unclear": [],
        "rerun": {format_hour(HOUR): {"late": 3, "changed": 1, "vanished": 0}}, "left_alone": {},
    }  # fmt: skip
    with create_session() as session:
        run = DagRun(LATE, "scheduled__x", run_type="scheduled", state="success", run_after=NOW)
        session.add(run)
        session.flush()
        session.execute(
            insert(TaskInstance).values(
                dag_id=LATE, run_id=run.run_id, task_id="find_app", pool="default_pool"
            )
        )
        session.add(
            XComModel(
                dag_run_id=run.id,
                dag_id=LATE,
                run_id=run.run_id,
                task_id="find_app",
                key="report",
                value=report,
            )
        )
    path = f"api/streams/app/hours/{format_hour(HOUR)}"
    found = users("viewer").get(path).json()["late"]
    assert (found["late"], found["changed"], found["vanished"], found["rerun"]) == (3, 1, 0, True)
    assert read_month(users("viewer"))["hours"][format_hour(HOUR)]["late"] == found
    assert users(f"viewer-of-{APP}").get(path).json()["late"] is None


def test_unreadable_bucket_still_shows_runs_and_the_reason(
    users: Users, rclone_server: RcloneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(HOUR, "success", {})
    add_run(HOUR - timedelta(hours=1), "failed", {"plan_hour": "failed"})
    connection = json.loads(rclone_server.airflow_connection_json())
    viewer = users("viewer")
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection | {"password": "wrong"}))
    month = read_month(viewer)
    assert "the secret key does not belong to the access key" in month["bucket"]["error"]
    assert state_and_reason(month, 0) == (
        "unknown",
        "its run succeeded; its completion marker has not been read",
    )
    assert state_and_reason(month, -1)[0] == "failed"
    detail = viewer.get(f"api/streams/app/hours/{format_hour(HOUR)}").json()
    assert "the secret key does not belong to the access key" in detail["error"]
    assert [run["state"] for run in detail["runs"]] == ["success"]


def test_unreadable_hour_shows_its_last_known_state(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer, path = users("viewer"), f"api/streams/app/hours/{format_hour(HOUR)}"
    before = viewer.get(path).json()
    unreachable = {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"}
    gone = {"conn_type": "aws", "login": "a", "password": "b", "extra": unreachable}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(gone))
    after = viewer.get(path).json()
    assert "Could not connect" in after["error"]
    assert (after["state"], after["marker"]) == ("complete", before["marker"])


def test_page_files_are_served_with_a_strict_security_policy(users: Users) -> None:
    viewer = users("viewer")
    page = viewer.get("")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy
    for name in ("app.js", "style.css", "icon.svg"):
        assert f"static/{name}" in page.text or name.startswith("icon")
        assert viewer.get(f"static/{name}").status_code == 200
    assert viewer.get("static/../api.py").status_code == 404
