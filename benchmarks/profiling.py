"""Our pack step under py-spy: a profile to look at, and where the CPU goes in a few lines."""

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
from benchmarks.stage import Stage, stage

SAMPLES_A_SECOND = 100
SECONDS_AN_OBJECT = 0.5
SHOWN = 25
WAITING_DEPTH = 6
# Frames that say that a sample belongs to Airflow's start and not to the pack step.
IMPORTING = ("_find_and_load", "_call_with_frames_removed")
# Frames in which a thread only waits, though it is not seen to sleep.
WAITING = (
    "Condition.wait", "Event.wait", "_worker", "EpollSelector.select", "PyThread_acquire_lock_timed",
    "take_gil",
)  # fmt: skip


def profile(settings: Settings) -> int:
    """Profile one shard after the other; the exit code."""
    spy = tools.peer_venv().py_spy
    BUILD.mkdir(parents=True, exist_ok=True)
    with stage(settings.objects, settings.tls[:1]) as scene:
        print(f"{scene}; under py-spy, {SAMPLES_A_SECOND} samples a second", flush=True)
        secure = settings.tls[0]
        # Native frames where py-spy may read them; without them, Python's alone.
        for native in (True, False):
            title = f"profile-{'native' if native else 'python'}"
            targets = _record(scene, secure, spy, title, native)
            for target in targets:
                print(f"\nwritten: {target.relative_to(PROJECT)}, for https://www.speedscope.app")
                print("\n".join(_summary(json.loads(target.read_text(encoding="utf-8")))))
            if not targets:
                print(f"{title}: py-spy could not record this here")
    return 0


def _record(scene: Stage, secure: bool, spy: Path, title: str, native: bool) -> list[Path]:
    out_prefix = f"out/{title}/"
    written = []
    shards = plan(scene, secure, out_prefix)
    with scratch_folder(scene) as scratch:
        job = Run(scene, secure, out_prefix, scratch, shards)
        for number, shard in enumerate(shards[:1]):
            target = BUILD / f"{title}.speedscope.json"
            target.unlink(missing_ok=True)
            command = [
                str(spy), "record", "--rate", str(SAMPLES_A_SECOND), "--threads", "--format", "speedscope",
                "--output", str(target), *(["--native"] if native else []), "--",
                *job.python("ours", number=number, step="pack", shards=[shard]),
            ]  # fmt: skip
            limits = Limits(
                int(psutil.virtual_memory().available * MEMORY_SHARE),
                START_SECONDS + scene.objects * SECONDS_AN_OBJECT,
            )
            log = scratch / "log"
            run(command, environment(job.server, scratch), PROJECT, job.server.port, log, limits)
            if target.exists():
                written.append(target)
            else:
                print(*log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:], sep="\n")
    shutil.rmtree(scene.out_folder(out_prefix), ignore_errors=True)
    return written


def _summary(recorded: Mapping[str, Any]) -> Iterator[str]:
    """Where the samples of the pack step lie: by thread, by frame itself, and by frame with all it calls."""
    frames = [f"{frame['name']} ({frame.get('file', '?')})" for frame in recorded["shared"]["frames"]]
    threads: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for one in recorded["profiles"]:
        for stack, weight in zip(one["samples"], one["weights"], strict=True):
            names = [frames[number] for number in stack]
            # Below the frame that waits there may be some of the C library without a name.
            if not names or any(name.startswith(WAITING) for name in names[-WAITING_DEPTH:]):
                continue
            if any(name.startswith(IMPORTING) for name in names):
                continue
            threads[one["name"]] += weight
            alone[names[-1]] += weight
            for name in set(names):
                within[name] += weight
    total = sum(threads.values()) or 1
    for title, counts in (
        ("by thread", threads),
        ("in the frame itself", alone),
        ("with what it calls", within),
    ):
        yield f"\n{title}, share of the samples outside imports"
        for name, weight in counts.most_common(SHOWN):
            yield f"  {100 * weight / total:5.1f} %  {name}"
