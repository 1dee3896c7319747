"""Compares ``log-rollup grep`` with the same search of the raw objects through s5cmd or rclone, and grep."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import tools
from benchmarks.compare import BrokenError, roll_up, run_checked, scratch_folder
from benchmarks.delay import DelayServer
from benchmarks.peers import RCLONE_OPTIONS, Run
from benchmarks.results import Measurement, machine, verdict
from benchmarks.settings import BUILD, MIB, PART_BYTES, PROJECT, Settings
from benchmarks.table import as_table, write_json
from benchmarks.testbed import (
    BUCKET,
    HOUR,
    RAW_PREFIX,
    STREAM_PREFIX,
    NoRoomError,
    Testbed,
    open_testbed,
    write_plain_hour,
)

DELAY_SECONDS = 0.03
# A text that is in few lines, and a pattern that contains no text, so that each line has to be compared.
FIXED = 'order":70119'
NO_TEXT = r"\b5\d\d\b"
# The pattern, and the delay of each request. Requests are counted only with a delay, because the proxy takes CPU.
SEARCHES = ((FIXED, DELAY_SECONDS), (FIXED, 0.0), (NO_TEXT, 0.0))
PLAIN, COMPRESSED = "log-rollup grep", "log-rollup grep, zstd"
S5CMD, RCLONE = "s5cmd cat, grep", "rclone cat, grep"
# How each way of storing parts is packed.
STORED: dict[str, dict[str, Any]] = {
    PLAIN: {"compression": "none", "part_bytes": PART_BYTES},
    COMPRESSED: {"compression": "zstd", "part_bytes": 256 * MIB},
}
NAMES = (PLAIN, COMPRESSED, S5CMD, RCLONE)


@dataclass(frozen=True, slots=True)
class Found:
    """The figures of one search; ``requests`` is None if nothing counted them."""

    measured: Measurement
    lines: int
    requests: int | None


def grep(settings: Settings) -> int:
    """Roll the hour up, search it with each program in each round, and return the exit code."""
    names = [name for name in NAMES if settings.wants(name)]
    rounds: list[tuple[str, float, str, Found]] = []
    try:
        with open_testbed(settings.objects, (False,), write_plain_hour) as testbed:
            print(f"{testbed}; {machine()}\n", flush=True)
            for name in names:
                if name in STORED:
                    roll_up(testbed, prefix_of(name), **STORED[name])
            for number in range(1, settings.rounds + 1):
                for pattern, delay in SEARCHES:
                    for name in names:
                        found = search(testbed, name, pattern, delay)
                        rounds.append((pattern, delay, name, found))
                        print(
                            f"  round {number}, {pattern}, {delay * 1000:.0f} ms, {name}: {found.measured}",
                            flush=True,
                        )
    except (NoRoomError, tools.MissingError, BrokenError) as error:
        print(error, file=sys.stderr)
        return 1
    rows = rows_of(rounds)
    print(f"\n{as_table(rows)}\n")
    print_goals(rows)
    target = BUILD / "bench-grep.json"
    write_json(target, rows)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    differing = [pattern for pattern in (FIXED, NO_TEXT) if len(lines_found(rows, pattern)) > 1]
    for pattern in differing:
        print(f"{pattern}: the programs found different numbers of lines", file=sys.stderr)
    return 1 if differing else 0


def lines_found(rows: Sequence[dict[str, Any]], pattern: str) -> set[int]:
    """Return the numbers of lines that the searches for a pattern found."""
    return {row["lines"] for row in rows if row["pattern"] == pattern}


def rows_of(rounds: Sequence[tuple[str, float, str, Found]]) -> list[dict[str, Any]]:
    """Return a row for each search and program, with the medians of its rounds."""
    rows = []
    for pattern, delay in SEARCHES:
        for name in dict.fromkeys(name for _, _, name, _ in rounds):
            found = [one for *search, one in rounds if search == [pattern, delay, name]]
            rows.append({
                "pattern": pattern,
                "delay ms": round(delay * 1000),
                "program": name,
                "s": round(median(one.measured.seconds for one in found), 1),
                "CPU s": round(median(one.measured.cpu_seconds for one in found), 1),
                "RSS MiB": round(max(one.measured.peak_rss_bytes for one in found) / MIB),
                "requests": found[0].requests or "",
                "lines": found[0].lines,
            })  # fmt: skip
    return rows


def print_goals(rows: Sequence[dict[str, Any]]) -> None:
    """Print the goals of the delayed search."""
    delayed = {row["program"]: row for row in rows if row["delay ms"]}
    for name in STORED:
        for other in (S5CMD, RCLONE):
            if name in delayed and other in delayed:
                faster = delayed[other]["s"] / delayed[name]["s"]
                verdict(f"{name}: times as fast as {other}", faster, 5, at_least=True)
                fewer = delayed[other]["requests"] / delayed[name]["requests"]
                verdict(f"{name}: times fewer requests than {other}", fewer, 50, at_least=True)


def search(testbed: Testbed, name: str, pattern: str, delay: float) -> Found:
    """Search the hour once.

    :raises BrokenError: if the program fails
    """
    with scratch_folder(testbed) as scratch, ExitStack() as stack:
        proxy = None
        if delay:
            proxy = stack.enter_context(DelayServer(scratch / "proxy", testbed.servers[False], delay))
        used = replace(testbed, servers={False: proxy or testbed.servers[False]})
        run = Run(used, False, prefix_of(name), scratch, ())
        output = scratch / "found.txt"
        before = proxy.requests() if proxy else 0
        # 1 means that no line was found.
        command = f"{command_of(run, name, pattern)} > {shlex.quote(str(output))} || [ $? = 1 ]"
        script = f"set -euo pipefail\n{command}"
        observed = run_checked(run, ["bash", "-c", script])
        requests = proxy.requests() - before if proxy else None
        measured = Measurement(
            observed.seconds, observed.cpu_seconds, observed.peak_rss_bytes, observed.peak_sockets
        )
        return Found(measured, output.read_bytes().count(b"\n"), requests)


def command_of(run: Run, name: str, pattern: str) -> str:
    """Return the shell command of a program, which writes the lines that match."""
    compare = ["grep", "-aP", pattern]
    if name in STORED:
        command = [sys.executable, "-m", "log_rollup_plugin.cli", "grep", pattern, "benchmark"]
        hour = f"{HOUR:%Y-%m-%dT%H}"
        streams = write_streams(run, name)
        return f"LOG_ROLLUP_STREAMS={shlex.quote(str(streams))} {shlex.join([*command, '--since', hour])}"
    if name == S5CMD:
        endpoint = ["--endpoint-url", run.server.endpoint_url]
        command = [str(tools.peer_venv().s5cmd), *endpoint, "cat", f"s3://{BUCKET}/{RAW_PREFIX}*"]
    else:
        rclone = str(Path(sys.executable).with_name("rclone"))
        command = [rclone, "cat", *RCLONE_OPTIONS, f"bench:{BUCKET}/{RAW_PREFIX}"]
    return f"{shlex.join(command)} | {shlex.join(compare)}"


def write_streams(run: Run, name: str) -> Path:
    """Write the streams file for the command, and return its path."""
    target = run.scratch / "streams.yaml"
    target.write_text(
        "streams:\n"
        "  - name: benchmark\n"
        f"    raw: s3://{BUCKET}/{STREAM_PREFIX}\n"
        f"    aggregated: s3://{BUCKET}/{run.out_prefix}\n"
        "    start: 2026-11-01T00:00:00Z\n"
        f"    compression: {STORED[name]['compression']}\n",
        encoding="utf-8",
    )
    return target


def prefix_of(name: str) -> str:
    """Return the prefix of the parts that a program searches."""
    return f"out/{STORED[name]['compression']}/" if name in STORED else ""
