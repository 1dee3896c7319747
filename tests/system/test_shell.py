"""The command log-rollup with the settings of a running stack."""

import json
import subprocess
from pathlib import Path

import pytest

from dev.stack.paths import StackPaths
from dev.stack.run_command import NothingRunsError, environment
from tests.conftest import ROOT
from tests.system.running import POOL_SLOTS, Running


@pytest.mark.overlaps
def test_doctor_passes_within_the_stack_and_sees_the_pool(running: Running) -> None:
    done = subprocess.run(
        [str(ROOT / "log-rollup"), "doctor", "app", "--json"], env=environment(running.stack.paths),
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert f"has {POOL_SLOTS} slots" in checks["pool"]["found"]


def test_environment_needs_a_running_stack(tmp_path: Path) -> None:
    with pytest.raises(NothingRunsError, match="make up"):
        environment(StackPaths(tmp_path))
