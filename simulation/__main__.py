"""``python -m simulation --seeds 10000``: simulates lives of hours, and tells the story of one that fails."""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from simulation.world import Outcome, live

# Seeds that one process simulates before it reports.
CHUNK = 50
STORY_LINES = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many lives to simulate")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="simulate this one alone")
    parser.add_argument("--story", action="store_true", help="print every request of it")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stop-after", type=int, default=20, help="end after this many failing seeds")
    options = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":
        # A life must not depend on the order in which a set of strings is iterated.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulation", *(arguments or sys.argv[1:])])
    if options.seed is not None:
        outcome = live(options.seed)
        _print_outcome(outcome, everything=options.story, last=None)
        return 1 if outcome.problems else 0
    return _run_many(options)


def _run_many(options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.seeds)
    seen: Counter[str] = Counter()
    failing: list[int] = []
    done = 0
    started = time.monotonic()
    for outcomes in _outcomes(seeds, options.processes):
        for seed, problems, life_seen in outcomes:
            done += 1
            seen.update(life_seen)
            if problems:
                failing.append(seed)
                print(f"seed {seed}: {problems[0].splitlines()[0]}", flush=True)
        if len(failing) >= options.stop_after:
            break
        if sys.stderr.isatty():
            print(f"\r{done:,} of {len(seeds):,} lives", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    print(f"{done:,} lives in {seconds:.0f} s, {1000 * seconds / max(done, 1):.1f} ms each")
    for name, count in sorted(seen.items()):
        print(f"  {count:8,} {name}")
    if failing:
        _print_outcome(live(failing[0]), everything=False, last=STORY_LINES)
        print(f"{len(failing)} of {done:,} lives went wrong. Seeds: {', '.join(map(str, failing))}")
        print(f"Replay one with: python -m simulation --seed {failing[0]} --story")
        return 1
    print("OK")
    return 0


def _outcomes(seeds: range, processes: int) -> Iterator[list[tuple[int, list[str], dict[str, int]]]]:
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if processes == 1:
        yield from map(_simulate, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_simulate, chunks)


def _simulate(seeds: range) -> list[tuple[int, list[str], dict[str, int]]]:
    # Collections of cycles take a fifth of the time otherwise.
    gc.disable()
    outcomes = []
    for seed in seeds:
        outcome = live(seed)
        outcomes.append((seed, outcome.problems, dict(outcome.seen)))
    gc.collect()
    return outcomes


def _print_outcome(outcome: Outcome, *, everything: bool, last: int | None) -> None:
    print(f"\nseed {outcome.seed}; the server: {', '.join(outcome.quirks) or 'as S3'}")
    for line in outcome.story.tell(everything=everything, last=last):
        print(line)
    for problem in outcome.problems:
        print(f"WRONG: {problem}")
    if not outcome.problems:
        print("OK")


if __name__ == "__main__":
    sys.exit(main())
