"""Fixtures that parse the Dags as Airflow does, and that receive its metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.observability.metrics import stats_utils
from airflow.sdk.observability.stats import Stats

from tests.conftest import ROOT
from tests.support.statsd import StatsdServer

LoadDags = Callable[..., DagBag]


def dag_loader(folder: Path, patch: pytest.MonkeyPatch) -> LoadDags:
    """Return a function that parses the Dag file with a streams file: ``load(stream, ...)``.

    :param folder: where it writes the streams file; each stream is a dict of settings
    """

    def load(*streams: dict[str, Any], **document: Any) -> DagBag:
        path = folder / "streams.yaml"
        path.write_text(yaml.safe_dump({"streams": list(streams), **document}))
        patch.setenv("LOG_ROLLUP_STREAMS", str(path))
        return DagBag(ROOT / "dags", collect_dags=True)

    return load


@pytest.fixture
def load_dags(database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadDags:
    """Parse the Dag file with a streams file: ``load_dags(stream, ...)``, each stream a dict of settings."""
    return dag_loader(tmp_path, monkeypatch)


@contextmanager
def running_statsd() -> Iterator[StatsdServer]:
    """Start a StatsD server, and let Airflow in this process send to it."""

    def initialize() -> None:
        # Each Airflow process does this when it starts.
        Stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)

    with StatsdServer() as server, pytest.MonkeyPatch.context() as settings:
        settings.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        settings.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        settings.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.port))
        initialize()
        yield server
        settings.undo()
        initialize()


@pytest.fixture
def statsd() -> Iterator[StatsdServer]:
    """Start a StatsD server for one test, and let Airflow send to it."""
    with running_statsd() as server:
        yield server
