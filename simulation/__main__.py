"""``python -m simulation --seeds 10000``: simulates scenarios, and prints the log of one that fails."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

from simulation.scenario import Outcome, simulate_seed
from simulation.seeds import simulate

# Log lines printed of the first failing seed.
LOG_LINES = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many scenarios to simulate")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="simulate only this seed, and print its log")
    parser.add_argument("--log", action="store_true", help="with --seed: print requests that only read, too")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stop-after", type=int, default=20, help="stop after this many failing seeds")
    options = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":
        # A scenario must not depend on the order in which a set of strings is iterated.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulation", *(arguments or sys.argv[1:])])
    if options.seed is not None:
        outcome = simulate_seed(options.seed)
        _print_outcome(outcome, with_reads=options.log, last=None)
        return 1 if outcome.problems else 0
    return _simulate_many(options)


def _simulate_many(options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.seeds)
    seen: Counter[str] = Counter()
    failing: list[int] = []
    done = 0
    started = time.monotonic()
    for summary in simulate(seeds, options.processes):
        done += 1
        seen.update(summary.seen)
        if summary.problems:
            failing.append(summary.seed)
            print(f"seed {summary.seed}: {summary.problems[0].splitlines()[0]}", flush=True)
            if len(failing) >= options.stop_after:
                break
        if done % 100 == 0 and sys.stderr.isatty():
            print(f"\r{done:,} of {len(seeds):,} scenarios", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    print(f"{done:,} scenarios in {seconds:.0f} s, {1000 * seconds / max(done, 1):.1f} ms each")
    for name, count in sorted(seen.items()):
        print(f"  {count:8,} {name}")
    if failing:
        _print_outcome(simulate_seed(failing[0]), with_reads=False, last=LOG_LINES)
        print(f"{len(failing)} of {done:,} scenarios failed. Seeds: {', '.join(map(str, failing))}")
        print(f"Replay one with: python -m simulation --seed {failing[0]} --log")
        return 1
    print("OK")
    return 0


def _print_outcome(outcome: Outcome, *, with_reads: bool, last: int | None) -> None:
    print(f"\nseed {outcome.seed}; the server: {', '.join(outcome.quirks) or 'as S3'}")
    for line in outcome.log.format(with_reads=with_reads, last=last):
        print(line)
    for problem in outcome.problems:
        print(f"FAILED: {problem}")
    if not outcome.problems:
        print("OK")


if __name__ == "__main__":
    sys.exit(main())
