"""Profiles the pack step with py-spy: a profile file and a short summary of the CPU time."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks import tools
from benchmarks.compare import LOG_TAIL_LINES, MEMORY_SHARE, START_SECONDS, plan, scratch_folder
from benchmarks.measure import Limits, run
from benchmarks.peers import Run, environment
from benchmarks.settings import BUILD, PROJECT, Settings
from benchmarks.testbed import Testbed, open_testbed

SAMPLES_PER_SECOND = 100
SECONDS_PER_OBJECT = 0.5
SHOWN = 25
WAITING_DEPTH = 6
# Frames of imports: such a sample belongs to the start of Airflow, not to the pack step.
IMPORTING = ("_find_and_load", "_call_with_frames_removed")
# Frames in which a thread waits, although py-spy reports it as active.
WAITING = (
    "Condition.wait", "Event.wait", "_worker", "EpollSelector.select", "PyThread_acquire_lock_timed",
    "take_gil",
)  # fmt: skip


def profile(settings: Settings) -> int:
    """Profile one shard, and return the exit code."""
    spy = tools.peer_venv().py_spy
    BUILD.mkdir(parents=True, exist_ok=True)
    with open_testbed(settings.objects, settings.tls[:1]) as testbed:
        print(f"{testbed}; under py-spy, {SAMPLES_PER_SECOND} samples per second", flush=True)
        secure = settings.tls[0]
        # With native frames, if py-spy may read them here, and with Python frames only.
        for native in (True, False):
            title = f"profile-{'native' if native else 'python'}"
            targets = _record(testbed, secure, spy, title, native)
            for target in targets:
                print(f"\nwrote {target.relative_to(PROJECT)}, open it in https://www.speedscope.app")
                print("\n".join(_summary(json.loads(target.read_text(encoding="utf-8")))))
            if not targets:
                print(f"{title}: py-spy could not record this on this machine")
    return 0


def _record(testbed: Testbed, secure: bool, spy: Path, title: str, native: bool) -> list[Path]:
    out_prefix = f"out/{title}/"
    written = []
    shards = plan(testbed, secure, out_prefix)
    with scratch_folder(testbed) as scratch:
        job = Run(testbed, secure, out_prefix, scratch, shards)
        for number, shard in enumerate(shards[:1]):
            target = BUILD / f"{title}.speedscope.json"
            target.unlink(missing_ok=True)
            command = [
                str(spy), "record", "--rate", str(SAMPLES_PER_SECOND), "--threads", "--format", "speedscope",
                "--output", str(target), *(["--native"] if native else []), "--",
                *job.python("rollup_steps", number=number, step="pack", shards=[shard]),
            ]  # fmt: skip
            limits = Limits(
                int(psutil.virtual_memory().available * MEMORY_SHARE),
                START_SECONDS + testbed.objects * SECONDS_PER_OBJECT,
            )
            log = scratch / "log"
            run(command, environment(job.server, scratch), PROJECT, job.server.port, log, limits)
            if target.exists():
                written.append(target)
            else:
                print(*log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:], sep="\n")
    shutil.rmtree(testbed.out_folder(out_prefix), ignore_errors=True)
    return written


def _summary(recorded: Mapping[str, Any]) -> Iterator[str]:
    """Yield the shares of the pack step's samples by thread, by frame, and by frame with everything it calls."""
    frames = [f"{frame['name']} ({frame.get('file', '?')})" for frame in recorded["shared"]["frames"]]
    threads: Counter[str] = Counter()
    own: Counter[str] = Counter()
    total_of: Counter[str] = Counter()
    for thread in recorded["profiles"]:
        for stack, weight in zip(thread["samples"], thread["weights"], strict=True):
            names = [frames[number] for number in stack]
            # The waiting frame may have called unnamed frames of the C library.
            if not names or any(name.startswith(WAITING) for name in names[-WAITING_DEPTH:]):
                continue
            if any(name.startswith(IMPORTING) for name in names):
                continue
            threads[thread["name"]] += weight
            own[names[-1]] += weight
            for name in set(names):
                total_of[name] += weight
    total = sum(threads.values()) or 1
    for title, counts in (
        ("by thread", threads),
        ("in the frame itself", own),
        ("in the frame and what it calls", total_of),
    ):
        yield f"\n{title}, share of the samples outside imports"
        for name, weight in counts.most_common(SHOWN):
            yield f"  {100 * weight / total:5.1f} %  {name}"
