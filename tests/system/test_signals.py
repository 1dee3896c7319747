"""Notifications of failures and missed deadlines, run notes and links, under a real scheduler."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from urllib.parse import quote

import pytest

from dev.stack.airflow_api import DagRun
from dev.stack.paths import BUCKET
from include.log_rollup.hour.layout import format_hour
from tests.support.raw_hours import hour_prefix, make_hour, put_objects
from tests.support.webhook import Webhook
from tests.system.running import APP, Running
from tests.system.streams import READY_OBJECT

OBJECTS = 5
NAME = "notified"
NOTIFIED = f"log_rollup_{NAME}"


@pytest.fixture(scope="module")
def present(running: Running) -> datetime:
    """The last hour that has ended, with its raw objects and without its ready object."""
    hour = running.dataset.hours[-1].hour
    # SQLite may refuse a writer while the first catchup runs, because there are so many.
    running.finished_run(APP, hour)
    make_hour(running.client, BUCKET, hour_prefix(f"raw/{NAME}/", hour), objects=OBJECTS)
    return hour


@pytest.fixture(scope="module")
def chat(running: Running) -> Iterator[Webhook]:
    """A chat behind the connection of the stream's notifier."""
    with Webhook() as webhook:
        connection = {"conn_type": "http", "host": "127.0.0.1", "port": webhook.port}
        running.write_if_new("POST", "/connections", {"connection_id": "chat", **connection})
        yield webhook


@pytest.fixture(scope="module")
def waiting(running: Running, chat: Webhook, present: datetime) -> str:
    """The run of the present hour, which waits for its ready object."""
    return running.trigger(NOTIFIED, {"hour": format_hour(present)})


def message_about(running: Running, chat: Webhook, hour: datetime, what: str) -> str:
    """Wait for the message about an hour, and return it."""
    expected = f"hour {format_hour(hour)} of the stream {NAME} {what}"

    def probe() -> str | None:
        return next((text for text in chat.texts if expected in text), None)

    text: str = running.wait_for(f"a message with {expected!r}", probe)
    return text


def links_of(running: Running, run: DagRun, task: str, map_index: int = -1) -> dict[str, str]:
    """Return the links of a task, as the UI shows them."""
    path = f"/dags/{NOTIFIED}/dagRuns/{run.run_id}/taskInstances/{task}/links"
    answer = running.stack.api.request("GET", path, params={"map_index": map_index})
    links: dict[str, str] = answer["extra_links"]
    return links


def test_failed_run_is_notified_once_with_the_failed_task(
    running: Running, chat: Webhook, present: datetime, waiting: str
) -> None:
    past = present - timedelta(days=2)
    raw = hour_prefix(f"raw/{NAME}/", past)
    put_objects(running.client, BUCKET, {f"{raw}{READY_OBJECT}": b"", f"{raw}not-a-log.parquet": b"PAR1"})
    run_id = running.trigger(NOTIFIED, {"hour": format_hour(past)})
    assert running.ended(NOTIFIED, run_id).state == "failed"
    message_about(running, chat, past, "has failed in plan_hour")
    message = f"hour {format_hour(past)} of the stream {NAME} has failed"
    assert sum(message in text for text in chat.texts) == 1


def test_missed_deadline_is_notified_and_run_gets_note_and_links(
    running: Running, chat: Webhook, present: datetime, waiting: str
) -> None:
    text = message_about(running, chat, present, "is not complete in time: it was queued 2s ago")
    assert text.endswith(f"{running.stack.addresses.ui_url}/dags/{NOTIFIED}/runs/{quote(waiting)}")

    ready_object = f"{hour_prefix(f'raw/{NAME}/', present)}{READY_OBJECT}"
    put_objects(running.client, BUCKET, {ready_object: b""})
    run = running.ended(NOTIFIED, waiting)
    assert run.state == "success"
    note = running.stack.api.request("GET", f"/dags/{NOTIFIED}/dagRuns/{waiting}")["note"]
    assert note.startswith(f"{OBJECTS} objects, ")
    assert note.endswith(" -> 1 parts, verified by CRC")
    links = links_of(running, run, "complete_hour")
    aggregated = f"{running.stack.s3_endpoint}/{BUCKET}/{hour_prefix(f'aggregated/{NAME}/', present)}"
    assert set(links) == {"Hour", "Manifest", "_SUCCESS"}
    assert links["_SUCCESS"] == f"{aggregated}_SUCCESS"
    assert list(links_of(running, run, "pack_shard", 0)) == ["Hour"]
