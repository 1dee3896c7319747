"""All programs side by side, in turns, over plain HTTP and TLS; their medians as a table and as JSON."""

import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers
from benchmarks.measure import Limits, Observed, run
from benchmarks.peers import OURS, Peer, Run
from benchmarks.report import Measurement, Outcome, Row, print_table, print_verdicts
from benchmarks.settings import BUILD, PROJECT, Settings
from benchmarks.stage import Stage, md5_of, stage
from benchmarks.tools import MissingError

# Of the memory that is free when a program starts; the rest keeps the machine, and its other users, alive.
MEMORY_SHARE = 0.7
START_SECONDS = 120
SLOWEST_SECONDS_AN_OBJECT = 0.1
LOG_TAIL_LINES = 5


class BrokenError(Exception):
    """A program did not do its job; the message says what came of it."""


def compare(settings: Settings) -> int:
    """Run everything, print the table, write ``build/bench.json``; the exit code."""
    chosen = [peer for peer in peers.peers(settings.may_install) if settings.wants(peer.name)]
    with stage(settings.objects, settings.tls) as scene:
        print(f"{scene}; rounds: {settings.rounds}", flush=True)
        outcomes: dict[tuple[str, bool], Outcome] = defaultdict(Outcome)
        try:
            _rounds(scene, chosen, settings, outcomes)
        except KeyboardInterrupt:
            print("\nstopped; the table has what was measured until then", flush=True)
    rows = [
        Row(peer.name, peer.what, secure, scene.objects, scene.bytes, outcomes[peer.name, secure])
        for secure in settings.tls
        for peer in chosen
    ]
    print_table(rows)
    print_verdicts(rows)
    target = BUILD / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {target.relative_to(PROJECT)}")
    # What a peer cannot do is a result; what we cannot do is a failure.
    return 1 if any(row.outcome.broken for row in rows if row.name == OURS) else 0


def _rounds(
    scene: Stage, chosen: Sequence[Peer], settings: Settings, outcomes: Mapping[tuple[str, bool], Outcome]
) -> None:
    for number in range(1, settings.rounds + 1):
        for secure in settings.tls:
            # There and back: whoever begins has a server that has done nothing yet, and memory not touched yet.
            for peer in chosen if number % 2 else chosen[::-1]:
                outcome = outcomes[peer.name, secure]
                # It would be the same again.
                if outcome.missing or outcome.broken:
                    continue
                told = f"  round {number}, {'TLS' if secure else 'HTTP'}, {peer.name}:"
                try:
                    measurement = measure_one(scene, peer, secure, f"round-{number}")
                except MissingError as error:
                    outcome.missing = str(error)
                    print(f"{told} missing: {error}", flush=True)
                except BrokenError as error:
                    outcome.broken = str(error)
                    print(f"{told} failed: {error}", flush=True)
                else:
                    outcome.rounds.append(measurement)
                    print(f"{told} {measurement}", flush=True)


def measure_one(scene: Stage, peer: Peer, secure: bool, title: str) -> Measurement:
    """One run of one program; its output is checked and removed.

    :raises MissingError: where the program cannot be had
    :raises BrokenError: where it failed, or its output is not what it should be
    """
    out_prefix = f"out/{peer.name}-{'tls' if secure else 'http'}-{title}/"
    with scratch_folder(scene) as scratch:
        try:
            shards = plan(scene, secure, out_prefix) if peer.name == OURS else ()
            job = Run(scene, secure, out_prefix, scratch, shards)
            # What the disk has still to write of what came before is not this program's to wait for.
            os.sync()
            took = []
            for number, command in enumerate(peer.commands(job)):
                observed = run_checked(job, command)
                own = peers.figures(job.result(number)) if peer.in_python else {}
                took.append(
                    Measurement(
                        seconds=own.get("seconds", observed.seconds),
                        cpu_seconds=own.get("cpu_seconds", observed.cpu_seconds),
                        peak_rss_bytes=max(own.get("peak_rss_bytes", 0), observed.peak_rss_bytes),
                        peak_sockets=observed.peak_sockets,
                    )
                )
            if peer.writes:
                _check_parts(scene, out_prefix, by_md5=peer.name == OURS)
        finally:
            shutil.rmtree(scene.out_folder(out_prefix), ignore_errors=True)
    return sum(took[1:], took[0])


def plan(scene: Stage, secure: bool, out_prefix: str) -> Sequence[Mapping[str, Any]]:
    """Plan the hour for our pack step, in a process of its own; the shards.

    :raises BrokenError: if that fails
    """
    with scratch_folder(scene) as scratch:
        job = Run(scene, secure, out_prefix, scratch, ())
        run_checked(job, job.python("ours", step="plan", out_prefixes=[out_prefix]))
        shards: Sequence[Mapping[str, Any]] = peers.figures(job.result())["shards"][out_prefix]
    return shards


def run_checked(job: Run, command: Sequence[str]) -> Observed:
    """Run a program that has to end well.

    :raises BrokenError: with the end of what it said
    """
    log = job.scratch / "log"
    limits = Limits(
        int(psutil.virtual_memory().available * MEMORY_SHARE),
        START_SECONDS + job.stage.objects * SLOWEST_SECONDS_AN_OBJECT,
    )
    observed = run(command, peers.environment(job.server, job.scratch), PROJECT, job.server.port, log, limits)
    if observed.stopped:
        raise BrokenError(
            f"stopped after {observed.seconds:.0f} s with {observed.peak_sockets} sockets: {observed.stopped}"
        )
    if observed.exit_code != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
        raise BrokenError(
            f"exit code {observed.exit_code} after {observed.seconds:.0f} s with {observed.peak_sockets} "
            f"sockets: {' | '.join(said) or 'it said nothing'}"
        )
    return observed


def _check_parts(scene: Stage, out_prefix: str, by_md5: bool) -> None:
    parts = scene.written(out_prefix)
    total = sum(path.stat().st_size for path in parts)
    if total != scene.bytes:
        raise BrokenError(f"it wrote {total:,} bytes in {len(parts)} parts; {scene.bytes:,} were read")
    if by_md5 and (found := md5_of(parts)) != scene.raw_md5:
        raise BrokenError(f"its parts end to end have MD5 {found}; the raw objects have {scene.raw_md5}")


@contextmanager
def scratch_folder(scene: Stage) -> Iterator[Path]:
    """A folder for one run, where the data lies too: in memory, if that is in memory."""
    folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=scene.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
