"""Simulates many seeds, in one or several processes."""

import gc
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulation.scenario import simulate_seed

# Seeds that a process simulates before it reports.
CHUNK = 50


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcome of a scenario without its log.

    :param problems: violated invariants; empty if there are none
    :param seen: what occurred at least once
    """

    seed: int
    problems: Sequence[str]
    seen: Mapping[str, int]


def simulate(seeds: range, processes: int) -> Iterator[Summary]:
    """Simulate seeds; the summaries come in the order of the seeds."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if processes == 1:
        for chunk in chunks:
            yield from _simulate_chunk(chunk)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for summaries in pool.imap(_simulate_chunk, chunks):
            yield from summaries


def _simulate_chunk(seeds: range) -> list[Summary]:
    enabled = gc.isenabled()
    # The cyclic garbage collector would take a fifth of the time.
    gc.disable()
    try:
        summaries = []
        for seed in seeds:
            outcome = simulate_seed(seed)
            summaries.append(Summary(seed, outcome.problems, dict(outcome.seen)))
        return summaries
    finally:
        gc.collect()
        if enabled:
            gc.enable()
