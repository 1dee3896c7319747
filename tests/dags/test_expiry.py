"""The Dag log_rollup_expire: a mapped task for each stream with ``expire_raw``, approvals, and metrics."""

import json
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import yaml
from airflow.sdk.exceptions import TaskAwaitingInput
from airflow.sdk.execution_time import task_runner
from airflow.serialization.serialized_objects import DagSerialization

from include.log_rollup.errors import ConfigurationError, PermanentError
from include.log_rollup.streams import Stream, load_streams
from log_rollup_plugin import expiry
from log_rollup_plugin.expiry import APPROVE, REJECT, ExpireRawOperator
from log_rollup_plugin.run_note import describe_expiry, is_ours
from tests.conftest import ROOT
from tests.dags.conftest import LoadDags
from tests.dags.test_policy import stream
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream, produce, run_hour
from tests.support.raw_hours import RAW
from tests.support.statsd import StatsdServer

AFTER = {"after": "3d"}
DELETING = {"after": "3d", "mode": "delete", "approve_first": False}
REPORTED = "2026-11-23T08:00:00Z"


def test_no_dag_without_expiring_streams(load_dags: LoadDags) -> None:
    assert "log_rollup_expire" not in load_dags(stream()).dags


def test_task_is_mapped_over_the_expiring_streams(load_dags: LoadDags) -> None:
    bag = load_dags(stream("app", expire_raw=AFTER), stream("web"), stream("api", expire_raw=DELETING))
    assert bag.import_errors == {}
    dag = bag.dags["log_rollup_expire"]
    (task,) = dag.tasks
    assert task.is_mapped
    assert task.expand_input.value == {"stream_name": ["app", "api"]}
    settings = task.partial_kwargs
    assert (settings["pool"], settings["pool_slots"]) == ("s3_connections", 4)
    assert settings["execution_timeout"] > timedelta(0)
    assert settings["retries"] > 0
    assert settings["retry_policy"] is not None
    assert dag.timetable.expression == "0 7 * * *"
    assert (dag.catchup, dag.max_active_runs) == (False, 1)
    assert "expire_raw" in (dag.doc_md or "")
    other = load_dags(stream("app", expire_raw=AFTER), stream("web"), stream("api", expire_raw=DELETING))
    assert DagSerialization.to_dict(dag) == DagSerialization.to_dict(other.dags["log_rollup_expire"])


def test_schedule_comes_from_the_streams_file(load_dags: LoadDags) -> None:
    bag = load_dags(stream(expire_raw=AFTER), expire_schedule="30 2 * * *")
    assert bag.dags["log_rollup_expire"].timetable.expression == "30 2 * * *"
    (error,) = load_dags(stream(expire_raw=AFTER), expire_schedule="sometimes").import_errors.values()
    assert "expire_schedule: 'sometimes' is not a cron expression" in error


def test_reserved_name_is_refused(load_dags: LoadDags) -> None:
    errors = load_dags(stream("expire")).import_errors.values()
    assert all("log_rollup_expire is another Dag of this project" in error for error in errors)


# -- the operator ------------------------------------------------------------------------------------------


class Instance:
    """A task instance that keeps its XComs."""

    map_index = 0
    id = UUID(int=1)

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        # As Airflow stores it.
        self.pushed[key] = json.loads(json.dumps(value))

    def xcom_pull(self, key: str, map_indexes: int) -> Any:
        return self.pushed.get(key)


class Task:
    """The task of one stream, with a store in memory that has a complete hour of five raw objects."""

    def __init__(self, tmp_path: Any, patch: pytest.MonkeyPatch, rules: dict[str, Any] | None) -> None:
        self.store = FakeStore()
        self.stream: Stream = make_stream()
        produce(self.store, {f"{number}.log": b"x" * 30 for number in range(5)})
        run_hour(self.store, self.stream)
        self._path = tmp_path / "streams.yaml"
        self.configure(rules)
        patch.setenv("LOG_ROLLUP_STREAMS", str(self._path))
        patch.setattr(expiry, "_store", self._opened)
        patch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", self._asked)
        patch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(send=self._shown), raising=False)
        patch.setattr("pendulum.now", lambda zone: datetime(2026, 11, 26, 10, tzinfo=UTC))
        self.operator = ExpireRawOperator(task_id="expire_raw", stream_name="app")
        self.instance = Instance()
        self.questions: list[dict[str, Any]] = []
        self.old_question: Any = None

    def configure(self, rules: dict[str, Any] | None, *first: dict[str, Any], **settings: Any) -> None:
        """Write the streams file: some streams, then the one of this task."""
        own = {**stream(start="2026-11-23T08:00:00Z"), **({"expire_raw": rules} if rules else {}), **settings}
        self._path.write_text(yaml.safe_dump({"streams": [*first, own]}))

    @contextmanager
    def _opened(self, opened: Stream) -> Iterator[FakeStore]:
        assert opened.name == self.stream.name
        yield self.store

    def _asked(self, **question: Any) -> None:
        self.questions.append(question)

    def _shown(self, question: Any) -> Any:
        """Answer as Airflow: with the first question of the task, if there is one."""
        return self.old_question or question

    @property
    def context(self) -> Any:
        run = SimpleNamespace(run_after=datetime(2026, 11, 26, 9, tzinfo=UTC))
        return {"ti": self.instance, "task_instance": self.instance, "dag_run": run}

    def run(self) -> Any:
        return self.operator.execute(self.context)

    def answer(self, option: str) -> Any:
        event = {
            "chosen_options": [option], "params_input": {}, "responded_at": datetime.now(UTC),
            "responded_by_user": {"id": "1", "name": "ops"}, "timedout": False,
        }  # fmt: skip
        # The task that continues has read the Dag file again.
        dag = runpy.run_path(str(ROOT / "dags" / "log_rollup_expire.py"))
        mapped = dag["expire_raw"]
        name = mapped.expand_input.value["stream_name"][self.instance.map_index]
        self.operator = ExpireRawOperator(task_id="expire_raw", stream_name=name)
        return self.operator.execute_complete(self.context, event)

    @property
    def raw(self) -> int:
        return len(self.store.listing(RAW))


@pytest.fixture
def make_task(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, database: None) -> Any:
    return lambda rules: Task(tmp_path, monkeypatch, rules)


def test_report_names_the_hours_and_deletes_nothing(make_task: Any) -> None:
    task = make_task(AFTER)
    result = task.run()
    assert (result["objects"], result["bytes"], result["deleted"], task.raw) == (5, 150, False, 5)
    report = task.instance.pushed["report"]
    assert report["found"][REPORTED]["state"] == "deletable"
    assert (report["hours"], report["left_alone"]) == (1, 0)


def test_only_hours_of_the_age_are_examined(make_task: Any) -> None:
    task = make_task({"after": "4d"})
    assert task.run()["hours"] == 0


def test_delete_mode_deletes_and_counts(make_task: Any, statsd: StatsdServer) -> None:
    task = make_task(DELETING)
    result = task.run()
    assert (result["objects"], result["deleted"], task.raw) == (5, True, 0)
    assert statsd.received("airflow.log_rollup.expired_objects")[""] == ("c", 5)
    again = task.run()
    assert (again["objects"], again["expired_before"], again["expired_hours"]) == (0, 5, 1)
    assert task.questions == []


def test_first_deletion_waits_for_approval(make_task: Any) -> None:
    task = make_task({"after": "3d", "mode": "delete"})
    with pytest.raises(TaskAwaitingInput) as waiting:
        task.run()
    assert waiting.value.timeout == timedelta(hours=20)
    (question,) = task.questions
    assert question["subject"] == "Delete 5 raw objects (150 B) of stream app?"
    assert "This is the first deletion of the stream" in question["body"]
    assert question["defaults"] == [REJECT]
    assert task.raw == 5
    assert task.answer(APPROVE)["objects"] == 5
    assert task.raw == 0
    # Later deletions are not the first.
    produce(task.store, {"0.log": b"x" * 30})
    task.run()
    assert len(task.questions) == 1


def test_rejected_deletion_deletes_nothing(make_task: Any) -> None:
    task = make_task({"after": "3d", "mode": "delete"})
    with pytest.raises(TaskAwaitingInput):
        task.run()
    assert task.answer(REJECT)["approved"] is False
    assert task.raw == 5


def test_more_objects_than_approved_are_left(make_task: Any) -> None:
    task = make_task({**DELETING, "approve_above": 4})
    with pytest.raises(TaskAwaitingInput):
        task.run()
    assert "more than the 4 objects of approve_above" in task.questions[0]["body"]
    task.instance.pushed["report"]["objects"] = 3
    result = task.answer(APPROVE)
    assert (result["objects"], result["unfinished_hours"], task.raw) == (0, 1, 5)


def test_approval_is_of_the_stream_that_was_asked_for(make_task: Any) -> None:
    rules = {"after": "3d", "mode": "delete"}
    task = make_task(rules)
    with pytest.raises(TaskAwaitingInput):
        task.run()
    # Now the first stream in the file is another one.
    task.configure(rules, stream("aaa", expire_raw={"after": "3d"}))
    result = task.answer(APPROVE)
    assert (result["stream"], result["objects"], result["deleted"], task.raw) == ("app", 5, True, 0)
    assert task.operator.stream_name == "app"


@pytest.mark.parametrize(
    "changed",
    [
        {"expire_raw": {"after": "3d", "mode": "report"}},
        {"expire_raw": {"after": "2d", "mode": "delete"}},
        {"raw": "s3://logs/raw/other/"},
        {"aggregated": "s3://logs/other/"},
        {"aws_conn_id": "other"},
        {"start": "2026-11-20T00:00:00Z"},
    ],
)
def test_approval_is_void_after_a_change_of_the_stream(
    make_task: Any, caplog: pytest.LogCaptureFixture, changed: dict[str, Any]
) -> None:
    rules = {"after": "3d", "mode": "delete"}
    task = make_task(rules)
    with pytest.raises(TaskAwaitingInput):
        task.run()
    task.configure(rules, **{"late_days": 0, **changed})
    result = task.answer(APPROVE)
    assert (result["approved"], result["deleted"], task.raw) == (False, False, 5)
    assert "settings of stream app have changed since the question: nothing was deleted" in caplog.text
    # The next run asks again, unless it only reports.
    if changed == {"aws_conn_id": "other"}:
        with pytest.raises(TaskAwaitingInput):
            task.run()


def test_approval_of_a_stream_without_expiry_is_refused(make_task: Any) -> None:
    task = make_task({"after": "3d", "mode": "delete"})
    with pytest.raises(TaskAwaitingInput):
        task.run()
    task.configure(None, stream("aaa", expire_raw=AFTER))
    with pytest.raises(ConfigurationError, match="'app' has no expire_raw any more, so nothing is deleted"):
        task.answer(APPROVE)
    assert task.raw == 5


def test_question_of_an_earlier_try_is_not_asked_again(make_task: Any) -> None:
    task = make_task({"after": "3d", "mode": "delete"})
    task.old_question = SimpleNamespace(subject="Delete 4 raw objects (120 B) of stream app?", body="")
    with pytest.raises(PermanentError, match="still shows the question of an earlier try, 'Delete 4 raw obj"):
        task.run()
    assert (task.questions, task.raw) == ([], 5)


def test_few_objects_need_no_approval(make_task: Any) -> None:
    task = make_task({**DELETING, "approve_above": 5})
    assert task.run()["objects"] == 5
    assert task.raw == 0


def test_stream_that_no_longer_expires_is_refused(make_task: Any) -> None:
    task = make_task(None)
    with pytest.raises(ConfigurationError, match="has no expire_raw any more, so nothing is deleted"):
        task.run()


def test_expiry_uses_its_own_connection(make_task: Any) -> None:
    make_task({**AFTER, "conn_id": "expiry"})
    (loaded,) = load_streams()
    assert (loaded.aws_conn_id, loaded.for_expiry.aws_conn_id) == ("aws_default", "expiry")


# -- the note of the run -----------------------------------------------------------------------------------


def test_note_says_what_expired_of_each_stream(make_task: Any) -> None:
    task = make_task(AFTER)
    reported = task.run()
    assert describe_expiry([reported]) == "Raw objects that can expire: app 5 (150 B)"
    deleted = {**reported, "deleted": True, "left_alone": 1}
    note = describe_expiry([deleted, {**reported, "stream": "web", "approved": False}])
    assert note == ("Raw objects that expired: app 5 (150 B), 1 hours left alone; web 5 (150 B) not approved")
    assert is_ours(note)
    assert len(describe_expiry([reported] * 100)) == 1000
