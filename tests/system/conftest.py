"""One local stack for all system tests: a real scheduler, Dag processor, triggerer and api-server."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from dev.made_logs.dataset import make_dataset
from dev.servers import plain_client
from dev.stack.local_stack import LocalStack
from tests.conftest import STACK_TESTS
from tests.support.observe import Watch, with_descendants
from tests.support.proxy import FaultProxy
from tests.system.downstream import write_dags
from tests.system.overlap import MARKER, OverlappingTests
from tests.system.running import Running
from tests.system.streams import APP_HOURS, APP_OBJECTS, DEFAULTS, manual_streams

# Airflow's own intervals suit a large installation. Shorter ones make the tests faster, longer ones save CPU time.
AIRFLOW_SETTINGS = {
    # A new scheduler adopts the tasks of a dead one at this interval; the default is five minutes.
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
    # Each task of a run waits for the scheduler's next loop, which costs CPU time; the default pause is 1 s.
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.4",
    # How soon the scheduler ends a task whose trigger is silent; the default is 15 s.
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "3",
    # Parsing a file takes a second of CPU time. New files and add_stream do not wait for the interval.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    # A slow and busy machine may need more than the default of 30 s to import a Dag file.
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "240",
    # A new triggerer takes the triggers of a dead one after this time; the default is 30 s.
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
}
# Covers the start of the stack on a slow and busy machine.
TIMEOUT_SECONDS = 900
# Reading /proc for all processes takes milliseconds of CPU time.
WATCH_SECONDS = 1.0
_OVERLAPPING = pytest.StashKey[OverlappingTests]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time than others, because the first one starts the stack.

    Those in threads are awaited after the others, and before those that need the stack alone.
    """
    for item in items:
        if _is_here(item) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))
    items.sort(key=_turn)


def _is_here(item: pytest.Item) -> bool:
    return item.nodeid.startswith(STACK_TESTS)


def _turn(item: pytest.Item) -> int:
    if not _is_here(item):
        return 3
    if "alone" in getattr(item, "fixturenames", ()):
        return 2
    return 1 if item.get_closest_marker(MARKER) else 0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Wait for the end of a test that runs in a thread; call all others as usual."""
    if pyfuncitem.get_closest_marker(MARKER) is None:
        return None
    pyfuncitem.session.stash[_OVERLAPPING].wait_for(pyfuncitem)
    return True


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Running]:
    """The stack, which catches up with two hours of the stream ``app``; tests start all other runs."""
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    dataset = make_dataset(stack.paths, APP_HOURS, APP_OBJECTS, datetime.now(UTC), lambda _: None)
    document = yaml.safe_load(stack.paths.streams.read_text())
    document["defaults"].update(DEFAULTS)
    document["streams"] += manual_streams(dataset.hours[-1].hour + timedelta(hours=1))
    stack.paths.streams.write_text(yaml.safe_dump(document))
    downstream = stack.paths.state / "downstream"
    write_dags(downstream)
    bundles = [
        {"name": name, "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": kwargs}
        for name, kwargs in (("dags-folder", {}), ("downstream", {"path": str(downstream)}))
    ]
    default = stack.env["AIRFLOW_CONN_AWS_DEFAULT"]
    connection = json.loads(default)
    with FaultProxy(stack.s3_endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        # For hours that are rolled up in this process.
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", default)
        connection["extra"]["endpoint_url"] = proxy.endpoint_url
        stack.extra_env = {
            **AIRFLOW_SETTINGS,
            "AIRFLOW_CONN_PROXIED": json.dumps(connection),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        }
        client = plain_client(stack.s3_endpoint, stack.secrets.s3_access_key, stack.secrets.s3_secret_key)
        with stack, Watch(_processes_of_the_stack, [stack.addresses.s3_port], WATCH_SECONDS) as watch:
            found = Running(stack, dataset, client, watch, proxy)
            overlapping = OverlappingTests(request.session.items, found)
            request.session.stash[_OVERLAPPING] = overlapping
            try:
                yield found
            finally:
                overlapping.stop()


@pytest.fixture
def alone(running: Running, request: pytest.FixtureRequest) -> None:
    """Waits until no other test uses the stack."""
    request.session.stash[_OVERLAPPING].wait_for_all()


def _processes_of_the_stack() -> list[int]:
    return with_descendants(os.getpid())()[1:]
