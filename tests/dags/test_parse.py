"""Parsing is cheap for a thousand streams, and Dags share nothing that a run changes."""

import copy
import cProfile
from types import CodeType
from typing import Any

import pytest
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from log_rollup_plugin.form import FormParam, hour_form
from tests.dags.conftest import LoadDags
from tests.dags.test_policy import stream


def is_counted(code: CodeType | str) -> bool:
    """Whether an entry of a profile is a Python function outside the YAML library."""
    return isinstance(code, CodeType) and "/yaml/" not in code.co_filename


def test_stream_takes_few_calls_to_parse(load_dags: LoadDags) -> None:
    def calls(streams: int) -> int:
        many = [stream(f"app-{number:04d}") for number in range(streams)]
        load_dags(*many[:1])
        with cProfile.Profile() as profile:
            bag = load_dags(*many)
        assert len(bag.dags) == streams + 1
        return int(sum(entry.callcount for entry in profile.getstats() if is_counted(entry.code)))

    # Counts calls because times differ between machines.
    assert (calls(120) - calls(20)) / 100 < 3_200


def test_task_makes_the_dag_of_its_own_stream_only(
    load_dags: LoadDags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "log_rollup_web")
    bag = load_dags(stream("app"), stream("web"), stream("web-2"))
    assert set(bag.dags) == {"log_rollup_web", "log_rollup_late"}


def test_params_are_serialized_as_airflow_serializes_its_own() -> None:
    ours, plain = hour_form(), {}
    for name, param in ours.items():
        plain[name] = Param(param.value, param.description, schema=param.schema)
    serialized = [DagSerialization._serialize_params_dict(ParamsDict(params)) for params in (ours, plain)]
    assert serialized[0] == serialized[1]
    assert [param["__class"] for _, param in serialized[0]] == ["airflow.sdk.definitions.param.Param"] * len(
        ours
    )


@pytest.mark.parametrize("name", hour_form())
def test_defaults_of_the_form_are_valid(name: str) -> None:
    param = hour_form()[name]
    assert isinstance(param, FormParam)
    assert Param(param.value, schema=param.schema).resolve() is param.resolve()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hour", "yesterday"),
        ("hour", 8),
        ("drop_vanished", "yes"),
        ("drop_vanished", None),
        ("repack", 1),
    ],
)
def test_values_of_a_run_are_validated(name: str, value: Any) -> None:
    for param in (hour_form()[name], copy.deepcopy(hour_form()[name])):
        with pytest.raises(ParamValidationError):
            param.resolve(value)
        with pytest.raises(ParamValidationError):
            param.resolve(value=value)


def test_value_of_one_run_does_not_reach_another_dag(load_dags: LoadDags) -> None:
    bag = load_dags(stream("app"), stream("web"))
    bag.dags["log_rollup_app"].params["hour"] = "2026-11-23T08:00:00Z"
    assert bag.dags["log_rollup_app"].params["hour"] == "2026-11-23T08:00:00Z"
    assert bag.dags["log_rollup_web"].params["hour"] is None
    assert bag.dags["log_rollup_app"].get_task("plan_hour").params["hour"] is None
