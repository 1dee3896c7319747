"""A test session that leaves a process running fails, and says which."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLEEP = "[sys.executable, '-I', '-S', '-c', 'import time; time.sleep(30)']"


def _session(directory: Path, test: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run a pytest session of its own with the plugin and this one test."""
    (directory / "test_it.py").write_text(f"import subprocess, sys\n\n\ndef test_it():\n    {test}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.fixtures", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *options, f"--rootdir={directory}", str(directory / "test_it.py")],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_session_that_leaves_nothing_passes(tmp_path: Path) -> None:
    result = _session(tmp_path, "subprocess.run([sys.executable, '-V'])")
    assert result.returncode == pytest.ExitCode.OK, result.stdout


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "1"]], ids=["alone", "with-a-worker"])
def test_a_session_that_leaves_processes_fails_and_names_them(tmp_path: Path, options: list[str]) -> None:
    # The second one is an orphan when the session ends: its parent is gone.
    parent = f"import subprocess, sys; subprocess.Popen({SLEEP})"
    result = _session(
        tmp_path, f"subprocess.Popen({SLEEP}); subprocess.run([sys.executable, '-c', {parent!r}])", *options
    )
    named = [line for line in result.stdout.splitlines() if "time.sleep(30)" in line]
    for line in named:
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout
    assert "processes left running" in result.stdout
    assert len(named) == 2, result.stdout
    assert "1 passed" in result.stdout
