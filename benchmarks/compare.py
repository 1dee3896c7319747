"""Compares all programs, alternating, over plain HTTP and TLS; prints medians and writes JSON."""

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
from benchmarks.results import Measurement, Outcome, Row, print_table, print_verdicts
from benchmarks.settings import BUILD, PROJECT, Settings
from benchmarks.testbed import Testbed, md5_of, open_testbed
from benchmarks.tools import MissingError

# Share of the free memory that a program may use; the rest keeps the machine usable.
MEMORY_SHARE = 0.7
START_SECONDS = 120
MAX_SECONDS_PER_OBJECT = 0.1
LOG_TAIL_LINES = 5


class BrokenError(Exception):
    """A program failed or wrote wrong output; the message says which."""


def compare(settings: Settings) -> int:
    """Run all programs, print the table, write ``build/bench.json``, and return the exit code."""
    chosen = [peer for peer in peers.peers(settings.may_install) if settings.wants(peer.name)]
    with open_testbed(settings.objects, settings.tls) as testbed:
        print(f"{testbed}; rounds: {settings.rounds}", flush=True)
        outcomes: dict[tuple[str, bool], Outcome] = defaultdict(Outcome)
        try:
            _rounds(testbed, chosen, settings, outcomes)
        except KeyboardInterrupt:
            print("\nstopped; the table shows the rounds until then", flush=True)
    rows = [
        Row(peer.name, peer.what, secure, testbed.objects, testbed.bytes, outcomes[peer.name, secure])
        for secure in settings.tls
        for peer in chosen
    ]
    print_table(rows)
    print_verdicts(rows)
    target = BUILD / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {target.relative_to(PROJECT)}")
    # A failed peer is a result; a failure of this project's step is an error.
    return 1 if any(row.outcome.broken for row in rows if row.name == OURS) else 0


def _rounds(
    testbed: Testbed, chosen: Sequence[Peer], settings: Settings, outcomes: Mapping[tuple[str, bool], Outcome]
) -> None:
    for number in range(1, settings.rounds + 1):
        for secure in settings.tls:
            # Reverse every second round: the first program meets an idle server and untouched memory.
            for peer in chosen if number % 2 else chosen[::-1]:
                outcome = outcomes[peer.name, secure]
                # It would only fail again.
                if outcome.missing or outcome.broken:
                    continue
                label = f"  round {number}, {'TLS' if secure else 'HTTP'}, {peer.name}:"
                try:
                    measurement = measure_one(testbed, peer, secure, f"round-{number}")
                except MissingError as error:
                    outcome.missing = str(error)
                    print(f"{label} missing: {error}", flush=True)
                except BrokenError as error:
                    outcome.broken = str(error)
                    print(f"{label} failed: {error}", flush=True)
                else:
                    outcome.rounds.append(measurement)
                    print(f"{label} {measurement}", flush=True)


def measure_one(testbed: Testbed, peer: Peer, secure: bool, title: str) -> Measurement:
    """Run one program once, check its output and remove it.

    :raises MissingError: if the program cannot be installed
    :raises BrokenError: if the program failed or its output is wrong
    """
    out_prefix = f"out/{peer.name}-{'tls' if secure else 'http'}-{title}/"
    with scratch_folder(testbed) as scratch:
        try:
            shards = plan(testbed, secure, out_prefix) if peer.name == OURS else ()
            job = Run(testbed, secure, out_prefix, scratch, shards)
            # Flush earlier writes to disk, so that this program does not wait for them.
            os.sync()
            measurements = []
            for number, command in enumerate(peer.commands(job)):
                observed = run_checked(job, command)
                own = peers.figures(job.result(number)) if peer.in_python else {}
                measurements.append(
                    Measurement(
                        seconds=own.get("seconds", observed.seconds),
                        cpu_seconds=own.get("cpu_seconds", observed.cpu_seconds),
                        peak_rss_bytes=max(own.get("peak_rss_bytes", 0), observed.peak_rss_bytes),
                        peak_sockets=observed.peak_sockets,
                    )
                )
            if peer.writes:
                _check_parts(testbed, out_prefix, by_md5=peer.name == OURS)
        finally:
            shutil.rmtree(testbed.out_folder(out_prefix), ignore_errors=True)
    return sum(measurements[1:], measurements[0])


def plan(testbed: Testbed, secure: bool, out_prefix: str, **options: Any) -> Sequence[Mapping[str, Any]]:
    """Plan the hour for the pack step in a separate process, and return the shards.

    :param options: of the stream
    :raises BrokenError: if planning fails
    """
    with scratch_folder(testbed) as scratch:
        job = Run(testbed, secure, out_prefix, scratch, ())
        run_checked(job, job.python("rollup_steps", step="plan", out_prefixes=[out_prefix], **options))
        shards: Sequence[Mapping[str, Any]] = peers.figures(job.result())["shards"][out_prefix]
    return shards


def roll_up(testbed: Testbed, out_prefix: str, **options: Any) -> None:
    """Plan, pack, validate and complete the hour over plain HTTP.

    :param options: of the stream
    :raises BrokenError: if a step fails
    """
    shards = plan(testbed, False, out_prefix, **options)
    with scratch_folder(testbed) as scratch:
        job = Run(testbed, False, out_prefix, scratch, shards)
        for step in ("pack", "validate", "complete"):
            run_checked(job, job.python("rollup_steps", step=step, shards=shards, **options))


def run_checked(job: Run, command: Sequence[str]) -> Observed:
    """Run a program that has to succeed.

    :raises BrokenError: with the end of its output, if it fails
    """
    log = job.scratch / "log"
    limits = Limits(
        int(psutil.virtual_memory().available * MEMORY_SHARE),
        START_SECONDS + job.testbed.objects * MAX_SECONDS_PER_OBJECT,
    )
    observed = run(command, peers.environment(job.server, job.scratch), PROJECT, job.server.port, log, limits)
    if observed.stopped:
        raise BrokenError(
            f"stopped after {observed.seconds:.0f} s with {observed.peak_sockets} sockets: {observed.stopped}"
        )
    if observed.exit_code != 0:
        output = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
        raise BrokenError(
            f"exit code {observed.exit_code} after {observed.seconds:.0f} s with {observed.peak_sockets} "
            f"sockets: {' | '.join(output) or 'no output'}"
        )
    return observed


def _check_parts(testbed: Testbed, out_prefix: str, by_md5: bool) -> None:
    parts = testbed.written(out_prefix)
    total = sum(path.stat().st_size for path in parts)
    if total != testbed.bytes:
        raise BrokenError(f"it wrote {total:,} bytes in {len(parts)} parts, expected {testbed.bytes:,} bytes")
    if by_md5 and (found := md5_of(parts)) != testbed.raw_md5:
        raise BrokenError(f"its concatenated parts have MD5 {found}, the raw objects {testbed.raw_md5}")


@contextmanager
def scratch_folder(testbed: Testbed) -> Iterator[Path]:
    """Yield a directory for one run next to the data, and so in memory if the data is."""
    folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=testbed.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
