"""The log of a scenario: every request and event, to find out why a seed fails."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

# Requests that change nothing; the short form of the log omits them.
READS = ("GET", "HEAD", "LIST", "LIST UPLOADS")


class Clock(Protocol):
    """Counts the steps of a scenario."""

    step: int


class Entry(NamedTuple):
    """A request or an event, and its effect."""

    step: int
    actor: str
    request: str
    key: str
    effect: str


class EventLog:
    """The entries of one scenario.

    :param prefix: left out where keys are printed
    """

    clock: Clock

    def __init__(self, prefix: str = "") -> None:
        self.entries: list[Entry] = []
        self._prefix = prefix

    def add(self, actor: str, request: str, key: str, effect: str) -> None:
        """Add a request or an event at the current step."""
        self.entries.append(Entry(self.clock.step, actor, request, key, effect))

    def format(self, *, with_reads: bool = False, last: int | None = None) -> Sequence[str]:
        """Format the entries, one line each.

        :param with_reads: include requests that change nothing
        :param last: return only this many of the last lines
        """
        shown = [entry for entry in self.entries if with_reads or entry.request not in READS]
        if last is not None and len(shown) > last:
            shown = shown[-last:]
        width = max((len(entry.actor) for entry in shown), default=0)
        return [
            f"{entry.step:5} {entry.actor:{width}} {entry.request:6} {entry.key.replace(self._prefix, '')} "
            f"{'-> ' if entry.effect else ''}{entry.effect}".rstrip()
            for entry in shown
        ]
