"""How a raw hour differs from what was planned for it."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.storage.protocol import ObjectInfo

# Number of keys or parts that one message names.
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Changes:
    """The keys that came late, changed or vanished, each in order. False if there are none."""

    late: Sequence[str]
    changed: Sequence[str]
    vanished: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.late or self.changed or self.vanished)

    def __str__(self) -> str:
        kinds = (("came late", self.late), ("changed", self.changed), ("vanished", self.vanished))
        return "; ".join(f"{len(keys):,} {what} ({first_keys(keys)})" for what, keys in kinds if keys)


class Comparison:
    """Compares the listed input of an hour with what was planned or packed, part by part.

    :param chosen: the input in key order, without the objects that are left out
    """

    def __init__(self, chosen: Sequence[ObjectInfo]) -> None:
        self._chosen = chosen
        self._keys = [item.key for item in chosen]
        self._found = bytearray(len(chosen))
        self._changed: list[str] = []
        self._vanished: list[str] = []

    def add(self, planned: Iterable[ObjectInfo]) -> None:
        """Compare some of the planned objects, in any order."""
        for item in planned:
            place = bisect_left(self._keys, item.key)
            if place == len(self._keys) or self._keys[place] != item.key:
                self._vanished.append(item.key)
                continue
            self._found[place] = 1
            if self._chosen[place] != item:
                self._changed.append(item.key)

    def changes(self) -> Changes:
        """The differences, after all planned objects were added."""
        late = [key for key, found in zip(self._keys, self._found, strict=True) if not found]
        return Changes(late, sorted(self._changed), sorted(self._vanished))


def compare(planned: Iterable[PlannedPart], chosen: Sequence[ObjectInfo]) -> Changes:
    """Compare the listed input of an hour with the parts that were planned for it.

    :param planned: all parts of the plan or of the manifest
    :param chosen: the input in key order, without the objects that are left out
    """
    comparison = Comparison(chosen)
    for part in planned:
        comparison.add(part.objects)
    return comparison.changes()


def missing_keys(objects: Iterable[ObjectInfo], keys: Sequence[str]) -> list[str]:
    """The keys of those objects that are not among some sorted keys."""
    missing = []
    for item in objects:
        place = bisect_left(keys, item.key)
        if place == len(keys) or keys[place] != item.key:
            missing.append(item.key)
    return missing


def first_keys(keys: Sequence[str]) -> str:
    """The first five keys, for a message."""
    return ", ".join(keys[:MAX_SHOWN]) + (", …" if len(keys) > MAX_SHOWN else "")
