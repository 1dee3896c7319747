"""The simulation: lives of hours come to a good end, a seed is always the same life, and faults are found."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SEEDS = 300


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as ``make simulate`` does."""
    return subprocess.run(
        [sys.executable, "-m", "simulation", "--processes", "1", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_simulated_life_ends_well() -> None:
    done = simulate("--seeds", str(SEEDS))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert done.stdout.endswith("OK\n")


def test_a_seed_replays_the_same_story() -> None:
    stories = {simulate("--seed", "7", "--story").stdout for _ in range(2)}
    assert len(stories) == 1
    assert "Z0.plan" in stories.pop()
