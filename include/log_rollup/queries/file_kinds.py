"""Which objects a proposed stream leaves out, by the names in a sample."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from include.log_rollup.hour.selection import ENCODINGS, NOT_JOINABLE, InputRules, encoding_of
from include.log_rollup.hour.template import Match

_TEMPORARY = (".tmp", ".temp", ".partial", ".part", ".inprogress", ".filepart", ".swp", ".crdownload")
_READY = re.compile(r"(?i)[._]?(?:success|done|complete|completed|ready|finished|manifest)(?:\.\w+)?$")
# Checksums and signatures of another object, whose name they continue.
_SIDECARS = (".md5", ".sha1", ".sha256", ".sha512", ".crc", ".crc32", ".crc32c", ".sig", ".asc")
# The ending of a name, with that of its encoding.
_ENDING = re.compile(rf"\.[A-Za-z]\w{{0,7}}(?:{'|'.join(map(re.escape, ENCODINGS))})?$")
# More patterns do not describe a kind of object.
_MAX_ENDINGS = 5


@dataclass(frozen=True)
class FileKinds:
    """What a stream reads of its hours.

    :param include: patterns of the joinable objects; empty unless containers share their hours
    :param exclude: patterns for temporary objects, checksums, and visible objects that mark an hour as complete
    :param ready: names that occur in most of at least three hours, and look like those of ready objects
    :param containers: number of objects in formats that cannot be joined, by ending
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    ready: tuple[str, ...]
    containers: dict[str, int]

    @classmethod
    def of(cls, matches: Collection[Match], is_hidden: Callable[[str], bool]) -> Self:
        """The kinds of sampled objects, by the names below their hours.

        :param is_hidden: whether an object with a given name is left out in any case
        """
        ready = _ready_names(matches)
        visible = [
            match for match in matches if match.name[-1:] not in ("", "/") and not is_hidden(match.name)
        ]
        names = {match.name for match in visible}
        left_out = (
            *(f"*{ending}" for ending in _TEMPORARY if any(name.lower().endswith(ending) for name in names)),
            *(f"*{ending}" for ending in _SIDECARS if _all_are_sidecars(matches, ending)),
            *(name for name in ready if name in names),
        )
        rules = InputRules(exclude=left_out)
        data = [match for match in visible if not rules.excludes(match.name)]
        containers = [match for match in data if encoding_of(match.name) in NOT_JOINABLE]
        joinable = [match for match in data if encoding_of(match.name) not in NOT_JOINABLE]
        include = _patterns(joinable) if _share_hours(containers, joinable) else ()
        # Patterns that include leaves out anyway are not repeated.
        included = [name for name in names if not InputRules(include=include).excludes(name)]
        return cls(
            include,
            tuple(
                pattern
                for pattern in left_out
                if any(InputRules(exclude=(pattern,)).excludes(name) for name in included)
            ),
            tuple(ready),
            _count(encoding_of(match.name) for match in containers),
        )


def _ready_names(matches: Iterable[Match]) -> list[str]:
    with_name: dict[str, set[datetime]] = defaultdict(set)
    hours = set()
    for match in matches:
        hours.add(match.hour)
        if _READY.fullmatch(match.name):
            with_name[match.name].add(match.hour)
    return [
        name for name, found in sorted(with_name.items()) if len(hours) > 2 and 2 * len(found) > len(hours)
    ]


def _all_are_sidecars(matches: Collection[Match], ending: str) -> bool:
    """Whether objects have the ending, each with the name of another object of its hour before it."""
    places = {(match.hour, match.captures, match.name) for match in matches}
    with_ending = [place for place in places if place[2].endswith(ending)]
    return bool(with_ending) and all(
        (hour, captures, name.removesuffix(ending)) in places for hour, captures, name in with_ending
    )


def _share_hours(containers: Sequence[Match], joinable: Sequence[Match]) -> bool:
    """Whether most hours with containers also have joinable objects."""
    hours = {match.hour for match in containers}
    return bool(hours) and 2 * len(hours & {match.hour for match in joinable}) > len(hours)


def _patterns(matches: Iterable[Match]) -> tuple[str, ...]:
    """Patterns of the endings of names; none if a name has no ending, or there are many."""
    endings = set()
    for match in matches:
        found = _ENDING.search(match.name)
        if found is None:
            return ()
        endings.add(found[0])
    return tuple(f"*{ending}" for ending in sorted(endings)) if len(endings) <= _MAX_ENDINGS else ()


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(sorted(counts.items()))
