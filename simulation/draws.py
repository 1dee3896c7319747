"""What a seed draws: the server, the stream, and how much interferes."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.streams import Stream
from simulation.quirks import UNUSABLE, Checksums, ETags, ListingFault, Order, Quirks, StartAfter

BUCKET = "logs"


def draw_quirks(rng: random.Random) -> Quirks:
    """Draw a server: S3 itself, or a server with one to three quirks."""
    quirks = Quirks(page_size=rng.choice((1000, 1000, 3, 2, 1)))
    count = rng.choice((0, 0, 0, 0, 1, 1, 1, 2, 3))
    choices: list[Callable[[Quirks], Quirks]] = [
        lambda quirks: replace(quirks, order=rng.choice((Order.FOLDERS, Order.REVERSED))),
        lambda quirks: replace(
            quirks, start_after=rng.choice((StartAfter.IGNORED, StartAfter.FOLDER, StartAfter.INCLUSIVE))
        ),
        lambda quirks: replace(
            quirks,
            listing=rng.choice(
                (ListingFault.TWICE, ListingFault.TWICE_LATER, ListingFault.PAGES_OVERLAP, *UNUSABLE)
            ),
        ),
        lambda quirks: replace(quirks, empty_pages=True, page_size=2),
        lambda quirks: replace(quirks, listed_etags=False),
        lambda quirks: replace(quirks, etags=rng.choice((ETags.OPAQUE, ETags.MARKED))),
        lambda quirks: replace(quirks, checksums=rng.choice((Checksums.ECHOED, Checksums.NONE))),
        lambda quirks: replace(quirks, copies=False),
        lambda quirks: replace(quirks, if_match_get=False),
        lambda quirks: replace(quirks, if_match_delete=False),
        lambda quirks: replace(quirks, uploads_by_prefix=False),
        lambda quirks: replace(quirks, clock_seconds=rng.choice((-12_000.0, -4000.0, 700.0, 90_000.0))),
    ]
    for choice in rng.sample(choices, count):
        quirks = choice(quirks)
    return quirks


def draw_stream(rng: random.Random) -> Stream:
    """Draw a stream with parts of a few bytes, smaller than the streams file allows."""
    stream = Stream(
        name="app",
        raw=RawTemplate.parse(f"s3://{BUCKET}/raw/app/"),
        aggregated=AggregatedTemplate.parse(f"s3://{BUCKET}/aggregated/app/"),
        start=datetime(2026, 11, 1, tzinfo=UTC),
        max_connections=rng.choice((4, 5, 8)),
    )
    part_size = rng.choice((24, 40, 40, 80))
    update: dict[str, Any] = {
        "part_size": part_size,
        "shard_size": part_size * rng.choice((1, 2, 2, 4)),
        "allow_empty": rng.random() < 0.5,
        "ensure_newline": rng.random() < 0.4,
        "storage_class": rng.choice((None, None, "STANDARD_IA")),
        "ready_object": rng.choice((None, None, "DONE")),
    }
    update["check_encoding"] = rng.random() < 0.3
    if update["ensure_newline"] and part_size == 80:
        # Room for two compressed objects and their newline frames.
        update["part_size"] = 120
        update["shard_size"] = update["shard_size"] * 3 // 2
    return stream.model_copy(update=update)


@dataclass(slots=True)
class Settings:
    """How often each kind of event occurs in a scenario.

    :param fault_rate: probability that a request goes wrong
    :param rounds: how often runs compete; the first of several rounds is one undisturbed run
    :param drop_vanished: whether some runs drop vanished objects
    :param control_connections: connections for requests other than transfers
    :param delay_rate: probability that a task is delayed for a long time
    """

    fault_rate: float
    rounds: int
    runs: int
    kills: int
    timeouts: int
    presumed_dead: int
    clears: int
    producer_events: int
    damages: int
    foreign: int
    drop_vanished: bool
    control_connections: int
    delay_rate: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Settings":
        """Draw a mixture; most kinds of event are often missing."""

        def some(probability: float, most: int) -> int:
            return rng.randint(1, most) if rng.random() < probability else 0

        return cls(
            fault_rate=rng.choice((0.0, 0.0, 0.01, 0.03, 0.08)),
            rounds=rng.choice((1, 1, 2, 3)),
            runs=rng.choice((1, 2, 2, 3)),
            kills=some(0.5, 3),
            timeouts=some(0.2, 2),
            presumed_dead=some(0.3, 2),
            clears=some(0.6, 4),
            producer_events=some(0.6, 4),
            damages=some(0.25, 2),
            foreign=some(0.3, 3),
            drop_vanished=rng.random() < 0.05,
            control_connections=rng.choice((1, 1, 4)),
            delay_rate=rng.choice((0.0, 0.0, 0.1, 0.3)),
        )

    @classmethod
    def draw_race(cls, rng: random.Random) -> "Settings":
        """Draw runs that overtake each other on a server that works, while raw objects change."""
        return replace(
            cls.draw(rng),
            fault_rate=rng.choice((0.0, 0.01, 0.03)),
            runs=rng.choice((2, 2, 3)),
            timeouts=0,
            producer_events=rng.choice((1, 1, 2)),
            damages=rng.choice((0, 0, 1, 2)),
            foreign=0,
            delay_rate=rng.choice((0.2, 0.4)),
        )
