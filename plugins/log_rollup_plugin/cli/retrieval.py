"""Archived parts in the commands restore and grep: says which they are, and requests their retrieval."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.prices import Prices, load_prices
from include.log_rollup.queries.retrieval import (
    DEFAULT_DAYS,
    MAX_DAYS,
    ArchivedPart,
    Estimate,
    Tier,
    check_tier,
    estimate,
    request_retrieval,
    to_request,
)
from include.log_rollup.storage.protocol import RetrievalStore
from include.log_rollup.units import format_duration, format_size
from log_rollup_plugin.cli.output import tell

ARCHIVED = 4
"""Exit code: parts have to be retrieved from the archive before the command can read them."""
# Number of parts that the text names; --json has all.
_MAX_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that request a retrieval."""
    add = parser.add_argument
    add(
        "--retrieve", metavar="TIER", type=_tier,
        help="if parts are archived, request their retrieval (RestoreObject) with the tier bulk, standard or "
        "expedited, and exit with 4; start the command again when they can be read",
    )  # fmt: skip
    add(
        "--retrieve-days", metavar="DAYS", type=_days, default=DEFAULT_DAYS,
        help=f"with --retrieve: how long the copies that can be read are kept (default: {DEFAULT_DAYS})",
    )  # fmt: skip
    add("--yes", action="store_true", help="with --retrieve: request it without asking first")


def _tier(text: str) -> Tier:
    try:
        return Tier(text.lower())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a tier; give {', '.join(Tier)}") from None


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days; give 1 to {MAX_DAYS}")
    return int(text)


class Retrieval:
    """What a command says and does about archived parts.

    :param parts: those that it needs and that cannot be read now
    """

    def __init__(self, options: argparse.Namespace, parts: Sequence[ArchivedPart]) -> None:
        self._parts = parts
        self._tier: Tier | None = options.retrieve
        self._days: int = options.retrieve_days
        self._asks = not options.yes
        self._missing = to_request(parts)
        self._requested = 0
        self._prices = _prices()

    def run(self, store: RetrievalStore, *, dry_run: bool = False) -> None:
        """Show which parts are archived and what their retrieval costs, and request it if that is wanted.

        :param dry_run: request nothing
        :raises ConfigurationError: if the parts' class does not have the tier
        """
        if self._tier is not None:
            check_tier(self._missing, self._tier)
        for line in self._state():
            tell(line)
        if not self._missing:
            return
        if self._tier is None:
            tell("nothing was read. Their retrieval can be requested with --retrieve:")
            for tier in Tier:
                if line := self._offer(tier):
                    tell(f"  --retrieve {tier}: {line}")
            return
        tell(f"retrieval with the tier {self._tier}: {self._offer(self._tier)}")
        if dry_run or not self._is_confirmed():
            tell("nothing was requested")
            return
        self._requested = request_retrieval(store, self._missing, self._tier, self._days)
        longest = estimate(self._missing, self._tier, self._days, None).longest
        when = f", usually before {datetime.now(UTC) + longest:%Y-%m-%d %H:%M} UTC" if longest else ""
        tell(
            f"requested the retrieval of {len(self._missing):,} parts; start the same command again when they can "
            f"be read{when}"
        )

    def _state(self) -> list[str]:
        classes = Counter(part.storage_class for part in self._parts)
        shown = ", ".join(f"{count:,} in {name}" for name, count in sorted(classes.items()))
        waiting = len(self._parts) - len(self._missing)
        size = sum(part.size for part in self._parts)
        lines = [
            f"{len(self._parts):,} parts of {format_size(size)} are archived and cannot be read ({shown})"
            + (f"; {waiting:,} of them are being retrieved" if waiting else "")
        ]
        lines += [f"  {part.place}" for part in self._parts[:_MAX_NAMED]]
        if len(self._parts) > _MAX_NAMED:
            lines.append(f"  and {len(self._parts) - _MAX_NAMED:,} more")
        if not self._missing:
            lines.append("their retrieval is under way; start the same command again when it has ended")
        return lines

    def _offer(self, tier: Tier) -> str:
        """What the retrieval with a tier takes, as text; empty if a class does not have it."""
        try:
            check_tier(self._missing, tier)
        except ConfigurationError:
            return ""
        found = self._estimate(tier)
        text = f"{found.requests:,} requests, {format_size(found.size)}"
        if found.longest:
            text += f", usually within {format_duration(found.longest)}"
        if found.amount is None or self._prices is None:
            return f"{text}; the price is not known"
        amount = f"about {found.amount:,.2f}" if found.amount >= 0.01 else "less than 0.01"
        return (
            f"{text}; {amount} {self._prices.currency}, with copies for {self._days} days (prices of "
            f"{self._prices.as_of} in {self._prices.region})"
        )

    def _estimate(self, tier: Tier) -> Estimate:
        return estimate(self._missing, tier, self._days, self._prices)

    def _is_confirmed(self) -> bool:
        if not self._asks:
            return True
        if not sys.stdin.isatty():
            tell("add --yes to request it without being asked")
            return False
        sys.stderr.write("request it? [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def document(self) -> dict[str, Any]:
        """What ``--json`` shows of it."""
        found = None if self._tier is None else self._estimate(self._tier)
        by_hour = groupby(self._parts, attrgetter("hour"))
        return {
            "parts": len(self._parts),
            "bytes": sum(part.size for part in self._parts),
            "being_retrieved": len(self._parts) - len(self._missing) + self._requested,
            "requested": self._requested,
            "tier": self._tier,
            "days": self._days,
            "cost": None if found is None or found.amount is None else round(found.amount, 6),
            "currency": self._prices.currency if self._prices else None,
            "hours": {format_hour(hour): [f"{part.place}" for part in parts] for hour, parts in by_hour},
        }


def _prices() -> Prices | None:
    try:
        return load_prices()
    except ConfigurationError as error:
        tell(f"the cost cannot be estimated: {error}")
        return None
