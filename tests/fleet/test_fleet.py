"""The connection limit across Celery workers, as `make fleet-test` runs it: several tests of one scenario."""

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dev.servers import plain_client
from dev.stack.paths import BUCKET
from tests.fleet.plot import sockets_plot
from tests.fleet.scenario import (
    BACKFILL_HOURS,
    CATCHUP_HOURS,
    HALVED_SLOTS,
    MAX_CONNECTIONS,
    OBJECTS,
    PART_SIZE,
    POOL_SLOTS,
    Scenario,
)
from tests.fleet.stack import FleetStack
from tests.support.compose import ROOT
from tests.support.debian import MissingProgramError
from tests.support.raw_hours import hour_prefix
from tests.support.verify import verify_hour

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(480)]
BUILD = ROOT / "build"
# Differences from the compose file, so that the scenario takes minutes on a small machine.
SETTINGS = {
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
    # More tasks than the pool allows to pack, and few enough for the memory of a small machine.
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "3",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "25",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
}


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    """The scenario after its only run; the fleet keeps running for the tests."""
    began = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {message}", flush=True)

    # Stop the fleet when this process gets SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        stack = FleetStack(tmp_path_factory.mktemp("fleet"), extra_env=SETTINGS, log=say)
    except MissingProgramError as error:
        pytest.fail(str(error), pytrace=False)
    made = Scenario(stack, say, datetime.now(UTC))
    made.prepare()
    made.make_new_version(tmp_path_factory.mktemp("new-version"))
    with stack:
        say("the fleet is healthy")
        made.scale()
        made.hold_the_cap()
        _report(made)
        yield made


def _report(scenario: Scenario) -> None:
    """Print the observations, and write them and the plot into build/."""
    BUILD.mkdir(exist_ok=True)
    curve = [(round(seconds, 2), sockets) for seconds, sockets in scenario.sockets]
    peak = max(sockets for _, sockets in curve)
    after = max((sockets for seconds, sockets in curve if seconds >= scenario.followed_at), default=0)
    plot = sockets_plot(
        f"Sockets to S3 of all processes: peak {peak} of {POOL_SLOTS}, after halving {after} of {HALVED_SLOTS}",
        curve,
        [(0.0, POOL_SLOTS), (scenario.followed_at, HALVED_SLOTS)],
        [
            (scenario.halved_at, "pool halved"),
            (scenario.followed_at, "pool within its new size"),
            (scenario.killed_at, "worker killed"),
            (scenario.upgraded_at, "new version of the code"),
        ],
    )
    (BUILD / "fleet-sockets.svg").write_text(plot)
    figures = {
        "pool": [POOL_SLOTS, HALVED_SLOTS], "peak": peak, "peak_after_halving": after,
        "samples": len(curve), "seconds": curve[-1][0], "scaling": [asdict(work) for work in scenario.work],
    }  # fmt: skip
    (BUILD / "fleet.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"\npeak sockets {peak} of {POOL_SLOTS}; after halving {after} of {HALVED_SLOTS}; {len(curve)} samples"
    )
    print("workers  hours  objects     MB  tasks  seconds  CPU s")
    for work in scenario.work:
        print(
            f"{work.workers:7}  {work.hours:5}  {work.objects:7}  {work.bytes / 1e6:5.0f}  {work.tasks:5}  "
            f"{work.seconds:7.1f}  {work.cpu_seconds:5.1f}"
        )


def test_every_hour_ends_complete_and_correct(scenario: Scenario) -> None:
    assert list(scenario.states.values()) == ["success"] * (CATCHUP_HOURS + BACKFILL_HOURS)
    client = plain_client(scenario.stack.s3_endpoint, *scenario.stack.keys)
    for name, hours in scenario.made.items():
        for made in hours:
            facts = verify_hour(
                client, BUCKET,
                hour_prefix(f"raw/{name}/", made.hour), hour_prefix(f"aggregated/{name}/", made.hour),
                part_size=PART_SIZE,
            )  # fmt: skip
            assert (facts.objects, facts.bytes_in) == (OBJECTS, made.bytes)


def test_sockets_of_all_processes_never_exceed_the_pool(scenario: Scenario) -> None:
    assert (
        MAX_CONNECTIONS
        < max(sockets for _, sockets in scenario.sockets)
        <= POOL_SLOTS + triggerer_sockets(scenario)
    )
    assert (
        max(process.sockets for sample in scenario.samples for process in sample.processes) <= MAX_CONNECTIONS
    )


def test_halved_pool_limits_the_tasks_that_start_later(scenario: Scenario) -> None:
    later = [sockets for seconds, sockets in scenario.sockets if seconds >= scenario.followed_at]
    assert 0 < max(later) <= HALVED_SLOTS + triggerer_sockets(scenario)


def triggerer_sockets(scenario: Scenario) -> int:
    """Return the triggerer's largest number of sockets, which the pool does not count: none without deferrals."""
    peak = max(
        sum(process.sockets for process in sample.processes if process.pid in scenario.triggerer)
        for sample in scenario.samples
    )
    assert peak <= 2
    return peak


def test_killed_worker_was_replaced(scenario: Scenario) -> None:
    assert scenario.sockets_of_killed > 2
    assert {shard.state for shard in scenario.shards} == {"success"}
    assert any(shard.try_number > 1 for shard in scenario.shards)


def test_new_code_version_took_over_during_the_backfill(scenario: Scenario) -> None:
    bucket = scenario.stack.paths.bucket
    markers = [bucket / hour_prefix("aggregated/app/", one.hour) / "_SUCCESS" for one in scenario.made["app"]]
    by_new = [marker.read_text().startswith('{\n   "') for marker in markers]
    assert any(by_new)
    assert {worker.name for worker in scenario.stack.workers()} == {"airflow-worker-3"}


def test_health_checks_of_the_compose_file_pass(scenario: Scenario) -> None:
    for name in ("airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "airflow-worker"):
        scenario.stack.run_healthcheck(name)


def test_plot_is_written(scenario: Scenario) -> None:
    assert Path(BUILD / "fleet-sockets.svg").read_text().startswith("<svg")
