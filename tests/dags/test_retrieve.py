"""RetrievePartsOperator requests what is archived, waits in a trigger, and ends its wait."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import TaskDeferred

from include.log_rollup.errors import ArchivedError, ConfigurationError, NotFoundError
from include.log_rollup.hour.layout import format_hour
from log_rollup_plugin import retrieve
from log_rollup_plugin.retrieve import RetrievePartsOperator
from tests.conftest import ROOT
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream, produce, run_hour
from tests.support.raw_hours import AGGREGATED, HOUR

STREAM = make_stream(storage_class="DEEP_ARCHIVE")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    """A complete hour whose parts are archived."""
    store = FakeStore()
    produce(store, {f"{number}.log": b"line\n" * 10 for number in range(4)})
    run_hour(store, STREAM)
    store.log.clear()

    @contextmanager
    def opened(*_: Any) -> Iterator[FakeStore]:
        yield store

    monkeypatch.setattr(retrieve, "store_for", opened)
    monkeypatch.setattr(retrieve, "find_stream", lambda _: STREAM)
    return store


def operator(**settings: Any) -> RetrievePartsOperator:
    given = {"stream": "app", "hour": format_hour(HOUR), "tier": "bulk", "days": 2, **settings}
    return RetrievePartsOperator(task_id="retrieve", **given)


def context(waited: timedelta = timedelta(0)) -> Any:
    return {"ti": SimpleNamespace(start_date=datetime.now(UTC) - waited)}


def parts_of(store: FakeStore) -> list[str]:
    return store.listing(AGGREGATED + "part-")


def test_parts_are_requested_once_and_awaited(store: FakeStore) -> None:
    task = operator()
    with pytest.raises(TaskDeferred) as first:
        task.execute(context())
    assert store.retrievals == dict.fromkeys(parts_of(store), False)
    assert {one.detail for one in store.log if one.kind == "RETRIEVE"} == {"Bulk 2"}
    deferred = first.value
    assert deferred.method_name == "resume"
    path, arguments = deferred.trigger.serialize()
    assert path == "airflow.providers.standard.triggers.temporal.DateTimeTrigger"
    assert timedelta(minutes=29) < arguments["moment"] - datetime.now(UTC) <= timedelta(minutes=30)
    assert deferred.timeout == timedelta(minutes=45)
    store.log.clear()
    with pytest.raises(TaskDeferred):
        task.resume(context(), event=arguments["moment"])
    assert not [one for one in store.log if one.kind == "RETRIEVE"]
    store.end_retrievals()
    assert task.resume(context(), event=arguments["moment"]) == len(parts_of(store))


def test_readable_parts_need_no_wait(store: FakeStore) -> None:
    store.archive(AGGREGATED + "part-", "STANDARD_IA")
    assert operator().execute(context()) == len(parts_of(store))
    assert not [one for one in store.log if one.kind == "RETRIEVE"]


def test_only_parts_of_chosen_objects_are_retrieved(store: FakeStore) -> None:
    with pytest.raises(TaskDeferred):
        operator(match=["3.log"]).execute(context())
    assert len(store.retrievals) == 1


def test_wait_ends_at_the_deadline(store: FakeStore) -> None:
    task = operator(wait_timeout=timedelta(hours=1), poll_interval=timedelta(hours=5))
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context())
    assert isinstance(deferred.value.timeout, timedelta)
    assert deferred.value.timeout < timedelta(hours=1, minutes=16)
    with pytest.raises(ArchivedError, match=r"could not be read after 1h, such as .*wait_timeout"):
        task.resume(context(timedelta(hours=1)), event=None)


def test_hour_that_is_not_complete_fails_the_task(store: FakeStore) -> None:
    with pytest.raises(NotFoundError, match="2026-11-23T09:00:00Z is not complete"):
        operator(last_hour=format_hour(HOUR + timedelta(hours=1))).execute(context())
    assert store.retrievals == {}


def test_wrong_arguments_are_refused(store: FakeStore) -> None:
    with pytest.raises(ConfigurationError, match="'fast' is not a tier; give bulk, standard, expedited"):
        operator(tier="fast")
    with pytest.raises(ConfigurationError, match="give 1 to 365"):
        operator(days=0)
    with pytest.raises(ConfigurationError, match="last_hour: 2026-11-23T07:00:00Z is before the hour"):
        operator(last_hour="2026-11-23T07:00:00Z").execute(context())
    with pytest.raises(
        ConfigurationError, match="DEEP_ARCHIVE cannot be retrieved with the tier 'expedited'"
    ):
        operator(tier="expedited").execute(context())
    assert store.retrievals == {}


def test_policy_of_a_retrieval_allows_nothing_else() -> None:
    policies = {
        name: json.loads((ROOT / "deploy" / f"iam-policy{name}.json").read_text())["Statement"]
        for name in ("", "-retrieve")
    }
    (statement,) = policies["-retrieve"]
    parts = next(one["Resource"] for one in policies[""] if one["Sid"] == "BuildAggregated")
    assert (statement["Action"], statement["Resource"]) == ("s3:RestoreObject", parts)
    assert "s3:RestoreObject" not in json.dumps(policies[""])


def test_example_parses_and_uses_the_pool(database: None) -> None:
    bag = DagBag(ROOT / "examples" / "dags" / "read_archived_hours.py")
    assert bag.import_errors == {}
    task = bag.dags["read_archived_hours_app"].get_task("retrieve")
    assert (task.pool, task.pool_slots) == ("s3_connections", 4)
    assert task.downstream_task_ids == {"count"}
