"""The simulation passes on many seeds, and a seed always gives the same scenario."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
SEEDS = 300


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as ``make simulate`` does."""
    return subprocess.run(
        [sys.executable, "-m", "simulation", "--processes", "1", *arguments],
        cwd=PROJECT,
        # Without it, the command would set it and start again.
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_seeds_pass() -> None:
    done = simulate("--seeds", str(SEEDS))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert done.stdout.endswith("OK\n")


# The second one has groups, compression, and raw objects and parts in different stores.
@pytest.mark.parametrize("seed", ["7", "504"])
def test_seed_replays_same_log(seed: str) -> None:
    logs = {simulate("--seed", seed, "--log").stdout for _ in range(2)}
    assert len(logs) == 1
    assert "Z0.plan" in logs.pop()
