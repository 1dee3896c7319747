"""What a seed draws of the stream's layout: groups, filters, and a store of its own for the raw objects.

The choices come from a random stream of their own, so that a seed without them gives the same scenario as before
they existed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.streams import Stream
from simulation.draws import BUCKET, draw_quirks
from simulation.hour_model import Place
from simulation.quirks import Quirks

# Of both kinds together, a third of the scenarios has at least one.
WITH_GROUPS = 0.2
WITH_TWO_STORES = 0.2
SERVICES = ("web", "web-2", "zürich", "it's", "part-00000.log")
HOSTS = ("h1", "h2")
HOUR_FOLDERS = "20261123/08/"
# Include and exclude patterns.
FILTERS: Sequence[tuple[tuple[str, ...], tuple[str, ...]]] = (
    ((), ()),
    ((), ()),
    ((), ("*.LOG",)),
    ((), ("b/*", "3.*")),
    (("*.log", "*.gz", "4"), ()),
    (("*.log", "*.GZ", "*.json"), ("a/*",)),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the raw objects and the parts of a scenario are.

    :param raw: template of the raw objects
    :param aggregated: template of the parts
    :param places: of the raw objects, each with the folder of its group
    :param late: how many of the places, from the end, have no objects at first
    :param base: prefix below which the names of parts are
    :param home: prefix of the hour's records
    :param raw_base: what the records leave out of raw keys
    :param source: how the store of the raw objects behaves; None if there is one store
    :param source_bucket: its bucket
    :param large: the largest raw object, in parts
    """

    rng: random.Random
    raw: str
    aggregated: str
    places: Sequence[Place]
    late: int
    base: str
    home: str
    raw_base: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    source: Quirks | None
    source_bucket: str
    large: int

    @property
    def has_groups(self) -> bool:
        """Whether the parts are divided into groups."""
        return bool(self.places[0].folder)

    @property
    def is_usual(self) -> bool:
        """Whether there are neither groups nor two stores."""
        return not self.has_groups and self.source is None

    def apply(self, stream: Stream) -> Stream:
        """The stream with this layout."""
        update: dict[str, Any] = {
            "raw": _raw_template(f"s3://{self.source_bucket}/{self.raw}"),
            "aggregated": _aggregated_template(f"s3://{BUCKET}/{self.aggregated}"),
            "include": self.include,
            "exclude": self.exclude,
        }
        if self.source is not None:
            update["target_conn_id"] = "target"
        return stream.model_copy(update=update)


@cache
def _raw_template(text: str) -> RawTemplate:
    return RawTemplate.parse(text)


@cache
def _aggregated_template(text: str) -> AggregatedTemplate:
    return AggregatedTemplate.parse(text)


def draw_layout(seed: int) -> Layout:
    """Draw the layout of a seed's scenario."""
    rng = random.Random(f"layout {seed}")
    with_groups, with_two_stores = rng.random() < WITH_GROUPS, rng.random() < WITH_TWO_STORES
    raw, aggregated, base, raw_base, places = (
        _draw_groups(rng)
        if with_groups
        else (
            "raw/app/",
            "aggregated/app/",
            f"aggregated/app/{HOUR_FOLDERS}",
            f"raw/app/{HOUR_FOLDERS}",
            [Place(f"raw/app/{HOUR_FOLDERS}", "", {})],
        )
    )
    include, exclude = rng.choice(FILTERS) if with_groups or with_two_stores else ((), ())
    return Layout(
        rng,
        raw,
        aggregated,
        places,
        late=rng.choice((0, 1, 1, 2)) if with_groups else 0,
        base=base,
        home=f"{base}_hours/app/{HOUR_FOLDERS}" if with_groups else base,
        raw_base=raw_base,
        include=include,
        exclude=exclude,
        source=_draw_source(rng) if with_two_stores else None,
        source_bucket=rng.choice((BUCKET, "raw-logs")) if with_two_stores else BUCKET,
        large=rng.choice((1, 2, 3)) if with_two_stores else 1,
    )


def _draw_source(rng: random.Random) -> Quirks:
    return draw_quirks(rng) if rng.random() < 0.7 else Quirks(page_size=rng.choice((1000, 2)))


def _draw_groups(rng: random.Random) -> tuple[str, str, str, str, list[Place]]:
    """The templates, the prefixes that all parts and all raw keys have, and the places, in random order."""
    services = rng.sample(SERVICES, rng.choice((2, 2, 3, 4)))
    kind = rng.choice(("before the date", "before the date", "behind the date", "several places"))
    if kind == "behind the date":
        places = [
            Place(f"raw/{HOUR_FOLDERS}{name}/", f"{HOUR_FOLDERS}{name}/", {"service": name})
            for name in services
        ]
        return (
            "raw/%Y%m%d/%H/{service}/",
            "aggregated/%Y%m%d/%H/{service}/",
            "aggregated/",
            "raw/",
            places,
        )
    hosts = [f"{host}/" for host in HOSTS] if kind == "several places" else [""]
    places = [
        Place(f"raw/{name}/{host}{HOUR_FOLDERS}", f"{name}/{HOUR_FOLDERS}", {"service": name})
        for host in hosts
        for name in services[: None if host == hosts[0] else 2]
    ]
    rng.shuffle(places)
    raw = "raw/{service}/{host}/%Y%m%d/%H/" if kind == "several places" else "raw/{service}/%Y%m%d/%H/"
    return raw, "aggregated/{service}/%Y%m%d/%H/", "aggregated/", "raw/", places
