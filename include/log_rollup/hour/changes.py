"""How a raw hour differs from what was planned for it."""

from bisect import bisect_left
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from include.log_rollup.hour.expiry_record import ExpiryRecord
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.storage.protocol import ObjectInfo

# Number of keys or parts that one message names.
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Changes:
    """The keys that came late, changed or vanished, each in order. False if there are none.

    :param expired: number of raw objects that are gone, and in a part with expired raw objects; not a change
    """

    late: Sequence[str]
    changed: Sequence[str]
    vanished: Sequence[str]
    expired: int = 0

    def __bool__(self) -> bool:
        return bool(self.late or self.changed or self.vanished)

    def __str__(self) -> str:
        kinds = (("came late", self.late), ("changed", self.changed), ("vanished", self.vanished))
        return "; ".join(f"{len(keys):,} {what} ({first_keys(keys)})" for what, keys in kinds if keys)


class KeyIndex:
    """Finds listed objects by their keys. A dict would take 100 MiB for a million objects.

    :param listed: in key order
    """

    def __init__(self, listed: Sequence[ObjectInfo]) -> None:
        self._listed = listed
        # The place after that of the last found key: most parts hold objects that follow each other.
        self._next = 0

    def place(self, key: str) -> int | None:
        """The index of the object with this key; None if it is not listed."""
        listed, place = self._listed, self._next
        if place == len(listed) or listed[place].key != key:
            place = bisect_left(listed, key, key=attrgetter("key"))
            if place == len(listed) or listed[place].key != key:
                return None
        self._next = place + 1
        return place


class AbsentObjects:
    """The raw objects of parts that are not listed any more.

    Of several versions of an object, that of the last part counts, so parts are added in their order. It has not
    vanished if raw objects of that part were announced for deletion: the part stays, and with it these bytes.
    """

    def __init__(self) -> None:
        self._vanished: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._vanished)

    def add(self, key: str, announced: Collection[str]) -> None:
        """Add an object.

        :param announced: keys of the objects of its part that were announced for deletion
        """
        self._vanished[key] = not announced

    def vanished(self) -> list[str]:
        """The sorted keys of those that only parts hold which a rerun may remove."""
        return sorted(key for key, vanished in self._vanished.items() if vanished)


class Comparison:
    """Compares the listed input of an hour with what was planned or packed, part by part.

    After raw objects have expired, several parts may hold versions of one raw object. The last of these parts has
    the newest version, which is compared.

    :param chosen: the input in key order, without the objects that are left out
    :param expiry: which raw objects have been deleted because a part holds them; None if there are none
    :param left_out: keys of the objects that are left out
    """

    def __init__(
        self,
        chosen: Sequence[ObjectInfo],
        expiry: ExpiryRecord | None = None,
        left_out: Container[str] = (),
    ) -> None:
        self._chosen = chosen
        self._expiry = expiry
        self._left_out = left_out
        self._index = KeyIndex(chosen)
        self._found = bytearray(len(chosen))
        self._changed: set[int] = set()
        self._absent = AbsentObjects()
        self.announced: set[str] = set()
        """Names of the parts with raw objects that have expired, or may expire at any moment."""
        self.doubled: list[str] = []
        """Keys of the listed objects that two parts hold in the same version."""

    def add(self, planned: PlannedPart) -> None:
        """Compare the objects of a part; parts may come in any order, unless raw objects have expired."""
        announced = expired_keys(planned, self._expiry)
        if announced:
            self.announced.add(planned.name)
        for item in planned.objects:
            place = self._index.place(item.key)
            if place is None:
                # A part with expired objects stays, also if another object in it is left out since.
                if item.key in announced or not (announced and item.key in self._left_out):
                    self._absent.add(item.key, announced)
            elif self._chosen[place] == item:
                if self._found[place]:
                    self.doubled.append(item.key)
                self._found[place] = 1
            else:
                # Even if an earlier part has the listed version: of two, this one is newer.
                self._found[place] = 0
                if item.key not in announced:
                    self._changed.add(place)

    def changes(self) -> Changes:
        """The differences, after all parts were added."""
        changed = [self._chosen[place].key for place in sorted(self._changed) if not self._found[place]]
        late = [
            item.key
            for place, item in enumerate(self._chosen)
            if not self._found[place] and place not in self._changed
        ]
        vanished = self._absent.vanished()
        return Changes(late, changed, vanished, len(self._absent) - len(vanished))


def compare(
    planned: Iterable[PlannedPart], chosen: Sequence[ObjectInfo], expiry: ExpiryRecord | None = None
) -> Changes:
    """Compare the listed input of an hour with the parts that were planned for it.

    :param planned: all parts of the plan or of the manifest, in order
    :param chosen: the input in key order, without the objects that are left out
    :param expiry: the record of expired raw objects; None if there is none
    """
    comparison = Comparison(chosen, expiry)
    for part in planned:
        comparison.add(part)
    return comparison.changes()


def expired_keys(planned: PlannedPart, expiry: ExpiryRecord | None) -> Collection[str]:
    """The keys of those raw objects of a part whose deletion was announced; they may still exist."""
    if expiry is None or not expiry.has_announced(planned.name, planned.fingerprint):
        return ()
    return {item.key for item in planned.objects} - set(expiry.kept(planned.name))


def first_keys(keys: Sequence[str]) -> str:
    """The first five keys, for a message."""
    return ", ".join(keys[:MAX_SHOWN]) + (", …" if len(keys) > MAX_SHOWN else "")
