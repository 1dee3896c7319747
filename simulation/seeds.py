"""Many lives, in several processes, and what of each is kept."""

import gc
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulation.world import live

# Seeds that one process simulates before it reports.
CHUNK = 50


@dataclass(frozen=True, slots=True)
class Summary:
    """A life without its story.

    :param problems: what is wrong; empty if all is well
    :param seen: what occurred in it, each once
    """

    seed: int
    problems: Sequence[str]
    seen: Mapping[str, int]


def simulate(seeds: range, processes: int) -> Iterator[Summary]:
    """Simulate lives; their summaries come in the order of the seeds."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if processes == 1:
        for chunk in chunks:
            yield from _chunk(chunk)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for summaries in pool.imap(_chunk, chunks):
            yield from summaries


def _chunk(seeds: range) -> list[Summary]:
    enabled = gc.isenabled()
    # Collections of cycles take a fifth of the time otherwise.
    gc.disable()
    try:
        summaries = []
        for seed in seeds:
            outcome = live(seed)
            summaries.append(Summary(seed, outcome.problems, dict(outcome.seen)))
        return summaries
    finally:
        gc.collect()
        if enabled:
            gc.enable()
