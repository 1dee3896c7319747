"""Rolls an hour up in a process of its own, which is watched, limited or killed from outside."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from include.log_rollup.steps.plan_hour import Planned
from tests.conftest import ROOT
from tests.support.observe import Watch


@dataclass(frozen=True)
class Limits:
    """What the process may have.

    :param open_files: RLIMIT_NOFILE, soft and hard
    :param cgroup: of memory, which the process is put into before it runs
    :param environment: variables on top of this process's own
    """

    open_files: int | None = None
    cgroup: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def take_hold(self) -> None:
        """Called in the new process, before its program."""
        if self.open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))


NO_LIMITS = Limits()


def start_outside(
    settings: Mapping[str, Any],
    planned: Planned | None = None,
    limits: Limits = NO_LIMITS,
    copy_in_parts_above: int = 0,
) -> "subprocess.Popen[str]":
    """Start rolling an hour up.

    :param planned: pack its shards alone; without it, run all steps
    """
    shards = [] if planned is None else ["--shards", json.dumps([asdict(ref) for ref in planned.shards])]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.pack_process", json.dumps(settings), *shards,
         "--copy-in-parts-above", str(copy_in_parts_above)],
        cwd=ROOT, env={**os.environ, **limits.environment}, stdout=subprocess.PIPE, text=True,
        preexec_fn=limits.take_hold,
    )  # fmt: skip


def run_outside(
    settings: Mapping[str, Any],
    planned: Planned | None,
    port: int,
    limits: Limits = NO_LIMITS,
    timeout_seconds: float = 120.0,
) -> tuple[int, list[str], Watch]:
    """Run it to its end and watch it: exit status, results, what was seen.

    :param port: connections to it are counted
    """
    process = start_outside(settings, planned, limits)
    try:
        with Watch(process.pid, [port], interval_seconds=0.01) as watch:
            printed = process.communicate(timeout=timeout_seconds)[0]
    finally:
        process.kill()
        process.wait()
    results = [line.removeprefix("RESULT ") for line in printed.splitlines() if line.startswith("RESULT ")]
    return process.returncode, results, watch
