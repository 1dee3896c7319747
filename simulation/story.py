"""What happened in a life, line by line, for people who look at a failing seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

# Requests that only read are left out of the short story.
READS = ("GET", "HEAD", "LIST", "LIST UPLOADS")


class Line(NamedTuple):
    """One request or event, and what came of it."""

    step: int
    actor: str
    request: str
    key: str
    effect: str


class Story:
    """The lines of one life."""

    def __init__(self, prefix: str = "") -> None:
        self.clock: Any = None
        self.lines: list[Line] = []
        self._prefix = prefix

    def add(self, actor: str, request: str, key: str, effect: str) -> None:
        """Note a request or an event."""
        self.lines.append(Line(self.clock.step, actor, request, key, effect))

    def tell(self, *, everything: bool = False, last: int | None = None) -> Sequence[str]:
        """The story as numbered lines.

        :param everything: with requests that only read, and changed nothing
        :param last: only the last lines
        """
        shown = [line for line in self.lines if everything or line.request not in READS]
        if last is not None and len(shown) > last:
            shown = shown[-last:]
        width = max((len(line.actor) for line in shown), default=0)
        return [
            f"{line.step:5} {line.actor:{width}} {line.request:6} {line.key.replace(self._prefix, '')} "
            f"{'-> ' if line.effect else ''}{line.effect}".rstrip()
            for line in shown
        ]
