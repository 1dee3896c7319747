"""What every test stands on: servers and the guard against left-over processes, and an Airflow of its own."""

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.support.fixtures"]

# Before Airflow is imported for the first time: it reads these once. A developer's own Airflow and AWS
# settings must not reach the tests.
for name in [name for name in os.environ if name.startswith(("AIRFLOW", "AWS_", "LOG_ROLLUP_"))]:
    del os.environ[name]
_home = tempfile.TemporaryDirectory(prefix="log-rollup-airflow-")
os.environ.update(
    {
        "AIRFLOW_HOME": _home.name,
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
    }
)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the Airflow home of this session."""
    _home.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that share a local stack together where tests run side by side, and begin with them."""

    def on_stack(item: pytest.Item) -> bool:
        return ROOT / "tests" / "system" in item.path.parents

    for item in filter(on_stack, items):
        item.add_marker(pytest.mark.xdist_group("stack"))
    items.sort(key=on_stack, reverse=True)
