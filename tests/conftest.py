"""Settings of all tests: a clean environment, an Airflow home of the session, and how tests are distributed."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.support.fixtures"]

# Until all tests are collected, almost every new object belongs to an imported module. Searching these for garbage
# would take a quarter of the CPU time.
gc.disable()

# Airflow reads these when it is imported. A developer's own Airflow and AWS settings must not reach the tests.
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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Enable garbage collection after the tests have been collected, without the objects that exist by then."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the Airflow home of this session."""
    _home.cleanup()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name binary values by their size: compressed ones hold the time, and ids must be equal in all workers."""
    if isinstance(val, bytes) and not val.isascii():
        return f"{argname}-of-{len(val)}-bytes"
    return None


# -- which tests are slow, and how tests are distributed over the workers of pytest-xdist ----------------

STACK_TESTS = "tests/system/"
# Each starts processes.
SLOW_FIXTURES = {"rclone_server", "moto_server", "ministack_server", "s3_server", "browser"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use an S3 server as slow, and start with those of the local stack, which take longest."""
    for item in items:
        if not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.nodeid.startswith(STACK_TESTS), reverse=True)


_LOWERED = pytest.StashKey[bool]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the local stack go first: its tests mostly wait for Airflow, and end last."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if is_worker and not item.nodeid.startswith(STACK_TESTS) and _LOWERED not in item.config.stash:
        item.config.stash[_LOWERED] = True
        os.nice(5)


class _FilesAndStack(LoadScopeScheduling):
    """Gives each worker one file at a time, and all tests of the local stack to the same worker."""

    def _split_scope(self, nodeid: str) -> str:
        return STACK_TESTS if nodeid.startswith(STACK_TESTS) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Use this scheduler whatever ``--dist`` says."""
    return _FilesAndStack(config, log)
