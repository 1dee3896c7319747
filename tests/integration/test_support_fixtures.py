"""A test session that leaves a process running fails and names it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT

SLEEP = "[sys.executable, '-I', '-S', '-c', 'import time; time.sleep(30)']"


def test_session_that_leaves_processes_fails(tmp_path: Path) -> None:
    """The test under a worker leaves a child and an orphan, whose parent has ended."""
    parent = f"import subprocess, sys; subprocess.Popen({SLEEP})"
    (tmp_path / "test_it.py").write_text(
        "import subprocess, sys\n\n\n"
        "def test_it():\n"
        f"    subprocess.Popen({SLEEP})\n"
        f"    subprocess.run([sys.executable, '-c', {parent!r}])\n"
    )
    plugins = ["-p", "tests.support.fixtures", "-p", "no:cacheprovider", "-p", "xdist"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, "-n", "1", f"--rootdir={tmp_path}", "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    named = [line for line in result.stdout.splitlines() if "time.sleep(30)" in line]
    for line in named:
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout
    assert "processes left running" in result.stdout
    assert len(named) == 2, result.stdout
    assert "1 passed" in result.stdout
