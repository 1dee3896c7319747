"""What every test stands on: servers and the guard against left-over processes, and an Airflow of its own."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

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


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name binary values by their size: packed ones hold the time, and each worker must collect the same names."""
    if isinstance(val, bytes) and not val.isascii():
        return f"{argname}-of-{len(val)}-bytes"
    return None


# -- side by side, with pytest-xdist -------------------------------------------------------------------

ON_THE_STACK = "tests/system/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that share a local stack: together they take the longest."""
    items.sort(key=lambda item: item.nodeid.startswith(ON_THE_STACK), reverse=True)


class _FilesAndTheStack(LoadScopeScheduling):
    """Gives each worker a file at a time, and all tests of the local stack to one and the same."""

    def _split_scope(self, nodeid: str) -> str:
        return ON_THE_STACK if nodeid.startswith(ON_THE_STACK) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Use this scheduler whatever was asked for."""
    return _FilesAndTheStack(config, log)
