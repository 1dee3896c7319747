"""Dags, assets and tasks have the names that the validation of the streams file derives."""

from typing import Any

from airflow.sdk import Asset

from include.log_rollup.streams import Stream, derived_names
from tests.dags.conftest import LoadDags


def settings(name: str) -> dict[str, Any]:
    """Return the settings of a stream."""
    return {
        "name": name, "raw": f"s3://logs/raw/{name}/", "aggregated": f"s3://logs/aggregated/{name}/",
        "start": "2026-11-01T00:00:00Z",
    }  # fmt: skip


def test_dags_assets_and_tasks_have_the_derived_names(load_dags: LoadDags) -> None:
    streams = [settings(name) for name in ("app", "web.eu-1", "_x")]
    bag = load_dags(*streams)
    assert bag.import_errors == {}
    derived = [derived_names(Stream.model_validate(stream)) for stream in streams]
    late = bag.dags["log_rollup_late"]
    assert bag.dags.keys() - {"log_rollup_late"} == {name for names in derived for name in names["Dag"]}
    assert set(late.task_ids) == {name for names in derived for name in names["task of log_rollup_late"]}
    for names in derived:
        (dag_id,) = names["Dag"]
        outlets = bag.dags[dag_id].get_task("complete_hour").outlets
        assets = [outlet for outlet in outlets if isinstance(outlet, Asset)]
        assert tuple(asset.name for asset in assets) == names["asset"]
        assert len({asset.uri for asset in assets}) == len(assets)


def test_streams_with_colliding_assets_are_an_import_error(load_dags: LoadDags) -> None:
    bag = load_dags(settings("app"), settings("app_hours"))
    assert bag.dags == {}
    assert all("rename one of the two streams" in error for error in bag.import_errors.values())
    assert len(bag.import_errors) == 3
