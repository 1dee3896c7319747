"""Parses the Dags as Airflow does, with a metadata database of the test's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag

from tests.conftest import ROOT

LoadDags = Callable[..., DagBag]


@pytest.fixture
def load_dags(database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadDags:
    """Parse the Dag file with a streams file: ``load_dags(stream, ...)``, each stream a dict of settings."""

    def load(*streams: dict[str, Any], **document: Any) -> DagBag:
        path = tmp_path / "streams.yaml"
        path.write_text(yaml.safe_dump({"streams": list(streams), **document}))
        monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(path))
        return DagBag(ROOT / "dags", collect_dags=True)

    return load
