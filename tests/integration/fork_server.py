"""Rolls an hour up in a process of its own, which a test can watch, limit and kill."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from include.log_rollup.steps.plan_hour import Planned
from tests.conftest import ROOT
from tests.support.observe import Watch


class HourProcess:
    """A process that rolls an hour up.

    :param output: of the fork server, which is read until this process has ended
    """

    def __init__(self, output: IO[str]) -> None:
        self.results: list[str] = []
        """What each shard measured, as JSON, or the error."""
        self.pid = 0
        self._code: int | None = None
        self._output = output
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._started.wait()
        assert self.pid, "the fork server has ended"

    def poll(self) -> int | None:
        """The exit status; None while the process is running."""
        return self._code

    def wait(self) -> int:
        """Wait for the end of the process and return its exit status, which is -9 after SIGKILL."""
        self._reader.join()
        assert self._code is not None, "the fork server has ended"
        return self._code

    def kill(self) -> None:
        """Kill the process, if it is still running, and wait for its end."""
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def _read(self) -> None:
        for line in self._output:
            word, _, rest = line.rstrip("\n").partition(" ")
            if word == "RESULT":
                self.results.append(rest)
            elif word == "PID":
                self.pid = int(rest)
                self._started.set()
            elif word == "EXIT":
                self._code = int(rest)
                return
        self._started.set()


class ForkServer:
    """Starts processes that roll hours up, one at a time. Airflow is imported once for all of them.

    :param cgroup: the control group (version 1) of memory that it joins with all its processes
    :param environment: variables in addition to those of this process
    """

    def __init__(self, cgroup: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.pack_process"], cwd=ROOT,
            env={**os.environ, **(environment or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=None if cgroup is None else partial(_join, cgroup),
        )  # fmt: skip

    def start(
        self,
        settings: Mapping[str, Any],
        planned: Planned | None = None,
        *,
        open_files: int | None = None,
        copy_in_parts_above: int = 0,
    ) -> HourProcess:
        """Start a process with the present environment of the test.

        :param settings: of the stream
        :param planned: the plan whose shards are packed; if it is None, all steps are run
        :param open_files: the open-file limit of the process (RLIMIT_NOFILE)
        :param copy_in_parts_above: size in bytes above which objects are copied in ranges of that size
        """
        request = {
            "settings": settings,
            "shards": None if planned is None else [asdict(ref) for ref in planned.shards],
            "open_files": open_files,
            "copy_in_parts_above": copy_in_parts_above,
            "environment": dict(os.environ),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return HourProcess(self._process.stdout)

    def run(
        self,
        settings: Mapping[str, Any],
        planned: Planned | None,
        *ports: int,
        open_files: int | None = None,
    ) -> tuple[int, list[str], Watch]:
        """Run a process to its end and watch it.

        :param ports: remote ports of the connections to count
        :returns: exit status, results and the watch
        """
        process = self.start(settings, planned, open_files=open_files)
        try:
            with Watch(process.pid, ports, interval_seconds=0.01) as watch:
                code = process.wait()
        finally:
            process.kill()
        return code, process.results, watch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The server ends at the end of its input.
        self._process.communicate()


def _join(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
