"""Notifications of failed runs and missed deadlines: recipients, text, and invalid entries."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.deadline import DeadlineReference
from airflow.serialization.serialized_objects import DagSerialization

from include.log_rollup.errors import RollupError
from include.log_rollup.streams import Notifier
from log_rollup_plugin.notify import make_notifier, tell_of_deadline
from tests.dags.conftest import LoadDags
from tests.dags.test_policy import stream
from tests.support.webhook import Webhook

HTTP = "airflow.providers.http.notifications.http.HttpNotifier"
SMTP = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
FILE = "tests.support.notifiers.FileNotifier"
CHAT = {"class": HTTP, "http_conn_id": "chat"}
RUN = {
    "dag_id": "log_rollup_app",
    "dag_run_id": "scheduled__2026-11-23T08:00:00+00:00",
    "data_interval_start": "2026-11-23T08:00:00Z",
    "conf": {},
    "run_type": "scheduled",
    "state": "running",
}
URL = "https://airflow.example.com/dags/log_rollup_app/runs/scheduled__2026-11-23T08%3A00%3A00%2B00%3A00"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """Start a webhook for the connection ``chat``."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com")
    with Webhook() as webhook:
        monkeypatch.setenv("AIRFLOW_CONN_CHAT", f"http://127.0.0.1:{webhook.port}")
        yield webhook


def fail_run(load_dags: LoadDags, *notify: dict[str, Any]) -> None:
    """Do what the Dag processor does when a run has failed."""
    dag = load_dags(stream(notify=list(notify))).dags["log_rollup_app"]
    run = SimpleNamespace(
        **{**RUN, "data_interval_start": datetime(2026, 11, 23, 8, tzinfo=UTC), "run_id": RUN["dag_run_id"]}
    )
    del run.dag_run_id
    dag.on_failure_callback({"dag": dag, "dag_run": run, "ti": SimpleNamespace(task_id="validate_hour")})


def miss_deadline(load_dags: LoadDags, *notify: dict[str, Any], **run: Any) -> None:
    """Do what the triggerer does when the deadline of a run has passed."""
    dag = load_dags(stream(notify=list(notify), deadline="1h30m")).dags["log_rollup_app"]
    (deadline,) = dag.deadline
    assert deadline.callback.path == f"{tell_of_deadline.__module__}.{tell_of_deadline.__qualname__}"
    # Airflow stores the arguments in its database.
    arguments = json.loads(json.dumps(deadline.callback.kwargs))
    asyncio.run(tell_of_deadline(**arguments, context={"dag_run": {**RUN, **run}, "deadline": {}}))


# -- the Dag -------------------------------------------------------------------------------------------


def test_stream_has_no_deadline_or_callback_by_default(load_dags: LoadDags) -> None:
    dag = load_dags(stream()).dags["log_rollup_app"]
    assert dag.deadline is None
    assert not dag.has_on_failure_callback


def test_deadline_counts_from_queueing_and_serializes_stably(
    load_dags: LoadDags,
) -> None:
    settings: dict[str, Any] = {"deadline": "2h", "notify": [CHAT, {"class": SMTP, "to": ["a@example.com"]}]}
    one, other = (load_dags(stream(**settings)).dags["log_rollup_app"] for _ in range(2))
    (deadline,) = one.deadline
    assert deadline.reference == DeadlineReference.DAGRUN_QUEUED_AT
    assert deadline.interval == timedelta(hours=2)
    assert one.has_on_failure_callback
    assert DagSerialization.to_dict(one) == DagSerialization.to_dict(other)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class": "airflow.providers.slack.SlackNotifier"}, "cannot be imported"),
        ({"class": "airflow.providers.http.notifications.http.HtpNotifier"}, "cannot be imported"),
        ({"class": "airflow.sdk.BaseOperator"}, "is no notifier"),
        ({"class": HTTP, "http_con_id": "chat"}, "it takes http_conn_id, endpoint, method"),
        ({"class": SMTP}, "it takes to, from_email"),
        ({**CHAT, "json": {"text": "{{ log_rollup.text }"}}, "a template of it cannot be read: "),
        ({**CHAT, "endpoint": "{{ ti.task_id }}"}, "templates know only log_rollup, dag_run"),
        ({**CHAT, "endpoint": "{{ dag_run.run_after.strftime('%H') }}"}, "has no attribute 'strftime'"),
    ],
)
def test_invalid_notifier_is_an_import_error_with_the_fix(
    load_dags: LoadDags, entry: dict[str, Any], message: str
) -> None:
    bag = load_dags(stream(notify=[CHAT, entry], deadline="2h"))
    assert "log_rollup_app" not in bag.dags
    (error,) = (error for path, error in bag.import_errors.items() if path.endswith("log_rollup.py"))
    assert "stream 'app': notify: entry 2: " in error
    assert message in error


def test_templates_may_use_ti_if_there_is_no_deadline(load_dags: LoadDags, chat: Webhook) -> None:
    fail_run(load_dags, {**CHAT, "json": {"text": "{{ ti.task_id.upper() }}"}})
    assert chat.texts == ["VALIDATE_HOUR"]


# -- messages ------------------------------------------------------------------------------------------


def test_failure_notice_has_hour_task_and_address(load_dags: LoadDags, chat: Webhook) -> None:
    fail_run(load_dags, CHAT)
    assert chat.texts == [
        "Log Rollup: hour 2026-11-23T08:00:00Z of the stream app has failed in validate_hour; that task's log "
        f"says what to do. {URL}"
    ]


def test_deadline_notice_has_hour_and_run_state(load_dags: LoadDags, chat: Webhook) -> None:
    miss_deadline(load_dags, CHAT)
    miss_deadline(load_dags, CHAT, conf={"hour": "2026-11-20T07:10:00Z"}, state="failed")
    text = "Log Rollup: hour {} of the stream app is not complete in time: it was queued 1h30m ago, the run is {}."
    assert chat.texts == [
        f"{text.format('2026-11-23T08:00:00Z', 'running')} {URL}",
        f"{text.format('2026-11-20T07:00:00Z', 'failed')} {URL}",
    ]


def test_notice_of_a_run_without_hour_has_its_id(load_dags: LoadDags, chat: Webhook) -> None:
    miss_deadline(load_dags, CHAT, data_interval_start=None, dag_run_id="by-hand")
    (text,) = chat.texts
    assert text.startswith("Log Rollup: run by-hand of the stream app is not complete in time")


def test_queued_backfill_runs_are_not_notified(load_dags: LoadDags, chat: Webhook) -> None:
    miss_deadline(load_dags, CHAT, run_type="backfill", state="queued")
    assert chat.bodies == []
    miss_deadline(load_dags, CHAT, run_type="backfill", state="running")
    miss_deadline(load_dags, CHAT, run_type="scheduled", state="queued")
    assert len(chat.bodies) == 2


@pytest.mark.parametrize("send", [fail_run, miss_deadline])
def test_text_of_the_streams_file_replaces_the_default(load_dags: LoadDags, chat: Webhook, send: Any) -> None:
    body_template = {
        "is": "{{ log_rollup.event }}",
        "when": "{{ log_rollup.hour }}",
        "run": "{{ dag_run.dag_id }}",
    }
    send(load_dags, {**CHAT, "json": body_template})
    (body,) = chat.bodies
    assert body["is"] in ("failed", "deadline")
    assert (body["when"], body["run"]) == ("2026-11-23T08:00:00Z", "log_rollup_app")


@pytest.mark.parametrize("send", [fail_run, miss_deadline])
def test_all_notifiers_run_even_if_one_fails(
    load_dags: LoadDags, chat: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: Any
) -> None:
    file = tmp_path / "messages"
    with Webhook(status=404) as gone:
        monkeypatch.setenv("AIRFLOW_CONN_GONE", f"http://127.0.0.1:{gone.port}")
        with pytest.raises(RollupError, match=r"some notifiers failed: .*HttpNotifier"):
            send(
                load_dags,
                {**CHAT, "http_conn_id": "gone"},
                {"class": FILE, "path": str(file)},
                CHAT,
            )
    assert len(chat.bodies) == len(gone.bodies) == 1
    assert file.read_text().splitlines() == chat.texts


def test_mail_has_subject_text_and_link() -> None:
    mail = make_notifier(Notifier(SMTP, {"to": "oncall@example.com", "from_email": "airflow@example.com"}))
    notice = {"title": "An hour has failed", "text": "See its log.", "url": URL}
    mail.render_template_fields({"log_rollup": notice})
    assert mail.subject == "An hour has failed"
    assert mail.html_content == f'<p>See its log.</p><p><a href="{URL}">{URL}</a></p>'
