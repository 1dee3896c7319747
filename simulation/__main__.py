"""``python -m simulation --seeds 10000``: simulates lives of hours, and prints the steps of one that fails."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

from simulation.seeds import simulate
from simulation.world import Outcome, live

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
    for life in simulate(seeds, options.processes):
        done += 1
        seen.update(life.seen)
        if life.problems:
            failing.append(life.seed)
            print(f"seed {life.seed}: {life.problems[0].splitlines()[0]}", flush=True)
            if len(failing) >= options.stop_after:
                break
        if done % 100 == 0 and sys.stderr.isatty():
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
