"""How a raw hour differs from what was planned for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from include.log_rollup.plan import PlannedPart
from include.log_rollup.store import ObjectInfo

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


def compare(planned: Iterable[PlannedPart], chosen: Iterable[ObjectInfo]) -> Changes:
    """Hold the input of an hour as it is listed now against the parts that were planned for it.

    :param planned: all parts of the plan, or of the manifest
    :param chosen: the input, without what is left out
    """
    then = {item.key: (item.size, item.etag) for part in planned for item in part.objects}
    now = {item.key: (item.size, item.etag) for item in chosen}
    return Changes(
        late=sorted(now.keys() - then.keys()),
        changed=sorted(key for key in now.keys() & then.keys() if now[key] != then[key]),
        vanished=sorted(then.keys() - now.keys()),
    )


def named(keys: Sequence[str]) -> str:
    """The first few of some keys, for a message."""
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
