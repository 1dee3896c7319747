"""Who is told when a run fails or its deadline passes, in which words, and what a wrong entry looks like."""

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
    """A webhook behind the connection ``chat``."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com")
    with Webhook() as webhook:
        monkeypatch.setenv("AIRFLOW_CONN_CHAT", f"http://127.0.0.1:{webhook.port}")
        yield webhook


def fail(load_dags: LoadDags, *notify: dict[str, Any]) -> None:
    """What the Dag processor does when a run has failed."""
    dag = load_dags(stream(notify=list(notify))).dags["log_rollup_app"]
    run = SimpleNamespace(
        **{**RUN, "data_interval_start": datetime(2026, 11, 23, 8, tzinfo=UTC), "run_id": RUN["dag_run_id"]}
    )
    del run.dag_run_id
    dag.on_failure_callback({"dag": dag, "dag_run": run, "ti": SimpleNamespace(task_id="validate_hour")})


def pass_by(load_dags: LoadDags, *notify: dict[str, Any], **run: Any) -> None:
    """What the triggerer does when the deadline of a run has passed."""
    dag = load_dags(stream(notify=list(notify), deadline="1h30m")).dags["log_rollup_app"]
    (deadline,) = dag.deadline
    assert deadline.callback.path == f"{tell_of_deadline.__module__}.{tell_of_deadline.__qualname__}"
    # As it comes out of the database.
    arguments = json.loads(json.dumps(deadline.callback.kwargs))
    asyncio.run(tell_of_deadline(**arguments, context={"dag_run": {**RUN, **run}, "deadline": {}}))


# -- the Dag -------------------------------------------------------------------------------------------


def test_a_stream_has_neither_deadline_nor_callback_unless_it_asks(load_dags: LoadDags) -> None:
    dag = load_dags(stream()).dags["log_rollup_app"]
    assert dag.deadline is None
    assert not dag.has_on_failure_callback


def test_the_deadline_counts_from_when_the_run_was_queued_and_does_not_change_from_parse_to_parse(
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
    ("entry", "says"),
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
def test_a_notifier_that_cannot_be_made_is_an_import_error_that_names_stream_entry_and_fix(
    load_dags: LoadDags, entry: dict[str, Any], says: str
) -> None:
    bag = load_dags(stream(notify=[CHAT, entry], deadline="2h"))
    assert "log_rollup_app" not in bag.dags
    (error,) = (error for path, error in bag.import_errors.items() if path.endswith("log_rollup.py"))
    assert "stream 'app': notify: entry 2: " in error
    assert says in error


def test_without_a_deadline_templates_may_have_what_only_a_failed_run_knows(
    load_dags: LoadDags, chat: Webhook
) -> None:
    fail(load_dags, {**CHAT, "json": {"text": "{{ ti.task_id.upper() }}"}})
    assert chat.texts == ["VALIDATE_HOUR"]


# -- what is told --------------------------------------------------------------------------------------


def test_a_failed_run_is_told_with_its_hour_its_task_and_its_address(
    load_dags: LoadDags, chat: Webhook
) -> None:
    fail(load_dags, CHAT)
    assert chat.texts == [
        "Log Rollup: hour 2026-11-23T08:00:00Z of the stream app has failed in validate_hour; that task's log "
        f"says what to do. {URL}"
    ]


def test_a_passed_deadline_is_told_with_its_hour_and_the_state_of_the_run(
    load_dags: LoadDags, chat: Webhook
) -> None:
    pass_by(load_dags, CHAT)
    pass_by(load_dags, CHAT, conf={"hour": "2026-11-20T07:10:00Z"}, state="failed")
    told = "Log Rollup: hour {} of the stream app is not complete in time: it was queued 1h30m ago, the run is {}."
    assert chat.texts == [
        f"{told.format('2026-11-23T08:00:00Z', 'running')} {URL}",
        f"{told.format('2026-11-20T07:00:00Z', 'failed')} {URL}",
    ]


def test_a_run_without_an_hour_is_told_by_its_id(load_dags: LoadDags, chat: Webhook) -> None:
    pass_by(load_dags, CHAT, data_interval_start=None, dag_run_id="by-hand")
    (text,) = chat.texts
    assert text.startswith("Log Rollup: run by-hand of the stream app is not complete in time")


def test_of_a_backfill_only_the_runs_at_work_are_told(load_dags: LoadDags, chat: Webhook) -> None:
    pass_by(load_dags, CHAT, run_type="backfill", state="queued")
    assert chat.bodies == []
    pass_by(load_dags, CHAT, run_type="backfill", state="running")
    pass_by(load_dags, CHAT, run_type="scheduled", state="queued")
    assert len(chat.bodies) == 2


@pytest.mark.parametrize("tell", [fail, pass_by])
def test_the_words_of_the_streams_file_go_before_ours(load_dags: LoadDags, chat: Webhook, tell: Any) -> None:
    words = {"is": "{{ log_rollup.event }}", "when": "{{ log_rollup.hour }}", "run": "{{ dag_run.dag_id }}"}
    tell(load_dags, {**CHAT, "json": words})
    (body,) = chat.bodies
    assert body["is"] in ("failed", "deadline")
    assert (body["when"], body["run"]) == ("2026-11-23T08:00:00Z", "log_rollup_app")


@pytest.mark.parametrize("tell", [fail, pass_by])
def test_everybody_is_told_though_one_cannot_be_and_a_notifier_may_block(
    load_dags: LoadDags, chat: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    file = tmp_path / "told"
    with Webhook(status=404) as gone:
        monkeypatch.setenv("AIRFLOW_CONN_GONE", f"http://127.0.0.1:{gone.port}")
        with pytest.raises(RollupError, match=r"some notifiers failed: .*HttpNotifier"):
            tell(
                load_dags,
                {**CHAT, "http_conn_id": "gone"},
                {"class": FILE, "path": str(file)},
                CHAT,
            )
    assert len(chat.bodies) == len(gone.bodies) == 1
    assert file.read_text().splitlines() == chat.texts


def test_a_mail_has_a_subject_a_text_and_a_link_of_ours() -> None:
    mail = make_notifier(Notifier(SMTP, {"to": "oncall@example.com", "from_email": "airflow@example.com"}))
    notice = {"title": "An hour has failed", "text": "See its log.", "url": URL}
    mail.render_template_fields({"log_rollup": notice})
    assert mail.subject == "An hour has failed"
    assert mail.html_content == f'<p>See its log.</p><p><a href="{URL}">{URL}</a></p>'
