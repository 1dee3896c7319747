"""Summaries of the groups of an hour, short enough for events, notes, pages and messages."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from include.log_rollup.printable import printable

# Number of groups that a note, a log line or a preview names.
FEW_GROUPS = 3
# Values of captures may have up to a thousand characters.
LONGEST_NAME = 60


class _Sized(Protocol):
    @property
    def folder(self) -> str: ...
    @property
    def bytes_in(self) -> int: ...


G = TypeVar("G", bound=_Sized)


def largest_groups(groups: Iterable[G], count: int) -> list[G]:
    """The groups with the most bytes of raw objects, the largest first; equal ones in the order of their folders.

    :param count: the most groups to return
    """
    return heapq.nsmallest(count, groups, key=lambda group: (-group.bytes_in, group.folder))


def largest_rows(groups: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """As :func:`largest_groups`, of groups as they are in a completion marker."""
    return heapq.nsmallest(count, groups, key=lambda group: (-group["bytes_in"], group["folder"]))


def group_name(captures: Mapping[str, str]) -> str:
    """The name of a group for people: the values of its captures, on one line with escapes, shortened if long."""
    shown = printable("/".join(captures.values()))
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


@dataclass(frozen=True, slots=True)
class GroupChanges:
    """How the groups of an hour differ from others.

    :param new: number of groups that the others lack
    :param vanished: number of groups that only the others have
    :param first_new: names of the first new ones
    :param first_vanished: names of the first that vanished
    """

    new: int
    vanished: int
    first_new: tuple[str, ...]
    first_vanished: tuple[str, ...]

    @classmethod
    def between(cls, before: Iterable[Mapping[str, str]], after: Iterable[Mapping[str, str]]) -> Self:
        """Compare groups by their captures."""
        old = {tuple(captures.values()): captures for captures in before}
        now = {tuple(captures.values()): captures for captures in after}
        new, vanished = sorted(now.keys() - old.keys()), sorted(old.keys() - now.keys())
        return cls(
            len(new),
            len(vanished),
            tuple(group_name(now[values]) for values in new[:FEW_GROUPS]),
            tuple(group_name(old[values]) for values in vanished[:FEW_GROUPS]),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` has made."""
        return cls(
            values["new"], values["vanished"], tuple(values["first_new"]), tuple(values["first_vanished"])
        )

    def to_json(self) -> dict[str, Any]:
        """The fields with lists, because Airflow stores a tuple in an XCom as an object."""
        return {
            "new": self.new,
            "vanished": self.vanished,
            "first_new": list(self.first_new),
            "first_vanished": list(self.first_vanished),
        }

    def __bool__(self) -> bool:
        return bool(self.new or self.vanished)

    def __str__(self) -> str:
        kinds = ((self.new, "new", self.first_new), (self.vanished, "vanished", self.first_vanished))
        return ", ".join(
            f"{count:,} {kind} ({', '.join(first)}{', …' if count > len(first) else ''})"
            for count, kind, first in kinds
            if count
        )
