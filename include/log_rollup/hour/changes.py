"""How a raw hour differs from what was planned for it."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.storage.protocol import ObjectInfo

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Changes:
    """The keys that came late, changed or vanished since, each in order; false if there are none."""

    late: Sequence[str]
    changed: Sequence[str]
    vanished: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.late or self.changed or self.vanished)

    def __str__(self) -> str:
        kinds = (("came late", self.late), ("changed", self.changed), ("vanished", self.vanished))
        return "; ".join(f"{len(keys):,} {what} ({named(keys)})" for what, keys in kinds if keys)


class Comparison:
    """Compares the input of an hour as it is listed now with what was planned or packed, part by part.

    :param chosen: the input in key order, without what is left out
    """

    def __init__(self, chosen: Sequence[ObjectInfo]) -> None:
        self._chosen = chosen
        self._keys = [item.key for item in chosen]
        self._found = bytearray(len(chosen))
        self._changed: list[str] = []
        self._vanished: list[str] = []

    def add(self, planned: Iterable[ObjectInfo]) -> None:
        """Take some of the planned objects, in any order."""
        for item in planned:
            place = bisect_left(self._keys, item.key)
            if place == len(self._keys) or self._keys[place] != item.key:
                self._vanished.append(item.key)
                continue
            self._found[place] = 1
            if self._chosen[place] != item:
                self._changed.append(item.key)

    def changes(self) -> Changes:
        """What differs, once all planned objects were added."""
        late = [key for key, found in zip(self._keys, self._found, strict=True) if not found]
        return Changes(late, sorted(self._changed), sorted(self._vanished))


def compare(planned: Iterable[PlannedPart], chosen: Sequence[ObjectInfo]) -> Changes:
    """Compare the input of an hour as it is listed now with the parts that were planned for it.

    :param planned: all parts of the plan, or of the manifest
    :param chosen: the input in key order, without what is left out
    """
    comparison = Comparison(chosen)
    for part in planned:
        comparison.add(part.objects)
    return comparison.changes()


def named(keys: Sequence[str]) -> str:
    """The first few of some keys, for a message."""
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
