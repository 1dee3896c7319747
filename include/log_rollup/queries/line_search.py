"""Searches the lines of one object, which comes in pieces of any size."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from include.log_rollup.queries.line_pattern import LinePattern
from include.log_rollup.units import KIB, MIB

LONGEST_LINE_BYTES = 16 * MIB
"""A longer line is searched in pieces of this size, as if each were a line."""
# Lines are searched in blocks of this size, of which a block of tiny lines takes some 50 times as much memory.
_BLOCK_BYTES = MIB
# The beginning of a block shows whether so many lines contain a literal that it is faster to look at each line.
_SAMPLE_BYTES = 32 * KIB


@dataclass(slots=True)
class Lines:
    """Selected lines of one object, without their newlines.

    :param numbers: of the lines, from 1; empty if they were not asked for
    """

    lines: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


class LineSearch:
    """Selects the lines of an object that match a pattern, or with ``invert`` those that don't.

    A line ends before each newline, and at the end of the object.

    :param numbered: whether to number the lines
    """

    def __init__(self, pattern: LinePattern, *, invert: bool = False, numbered: bool = False) -> None:
        self.has_long_line = False
        """Whether a line was longer than :data:`LONGEST_LINE_BYTES`."""
        self._pattern = pattern
        self._invert = invert
        self._numbered = numbered
        self._number = 1
        # The beginning of a line whose end has not come yet.
        self._carry: list[bytes] = []
        self._carried = 0

    def feed(self, body: bytes | memoryview) -> Iterator[Lines]:
        """Search the lines that end in the next piece of the object."""
        for start in range(0, len(body), _BLOCK_BYTES):
            yield from self._feed(bytes(body[start : start + _BLOCK_BYTES]))

    def finish(self) -> Iterator[Lines]:
        """Search the last line, if it does not end with a newline."""
        if self._carry:
            yield self._search_carry()

    def _feed(self, body: bytes) -> Iterator[Lines]:
        first = 0
        if self._carry:
            end = body.find(b"\n")
            if end < 0:
                yield from self._keep(body)
                return
            yield from self._keep(body[:end])
            yield self._search_carry()
            self._number += 1
            first = end + 1
        last = body.rfind(b"\n") + 1
        if first < last:
            yield self._search(body[first:last])
        if last < len(body):
            yield from self._keep(body[last:])

    def _keep(self, rest: bytes) -> Iterator[Lines]:
        """Keep the beginning of a line, but not more than the longest line."""
        self._carry.append(rest)
        self._carried += len(rest)
        if self._carried > LONGEST_LINE_BYTES:
            self.has_long_line = True
            line = b"".join(self._carry)
            self._carry = [line[:LONGEST_LINE_BYTES]]
            yield self._search_carry()
            self._carry = [line[LONGEST_LINE_BYTES:]]
            self._carried = len(self._carry[0])

    def _search_carry(self) -> Lines:
        line = b"".join(self._carry)
        self._carry = []
        self._carried = 0
        return self._search(line)

    def _search(self, block: bytes) -> Lines:
        """The selected lines of a block: one line, or several that end with newlines."""
        found = Lines()
        lines, numbers = found.lines, found.numbers
        counted = 0
        for start, end in self._selected(block):
            lines.append(block[start:end])
            if self._numbered:
                self._number += block.count(b"\n", counted, start)
                counted = start
                numbers.append(self._number)
        if self._numbered:
            self._number += block.count(b"\n", counted)
        return found

    def _selected(self, block: bytes) -> Iterator[tuple[int, int]]:
        """Where each selected line begins and ends."""
        pattern = self._pattern
        haystack = block.lower() if pattern.ignore_case and pattern.literals else block
        if self._invert or not pattern.literals or _is_frequent(haystack, pattern.literals):
            return _each_line(block, pattern, self._invert)
        return _lines_with(haystack, block, pattern)


def _is_frequent(haystack: bytes, literals: tuple[bytes, ...]) -> bool:
    """Whether a literal is in more than about every second line."""
    lines = haystack.count(b"\n", 0, _SAMPLE_BYTES)
    return any(2 * haystack.count(literal, 0, _SAMPLE_BYTES) > lines + 2 for literal in literals)


def _each_line(block: bytes, pattern: LinePattern, invert: bool) -> Iterator[tuple[int, int]]:
    """Where the lines are that match, or with ``invert`` those that don't: every line is compared."""
    matches = pattern.matches
    start = 0
    for line in block.removesuffix(b"\n").split(b"\n"):
        end = start + len(line)
        if (not matches(line)) is invert:
            yield start, end
        start = end + 1


def _lines_with(haystack: bytes, block: bytes, pattern: LinePattern) -> Iterator[tuple[int, int]]:
    """Where the lines are that match: only lines with one of the pattern's literals are compared.

    :param haystack: the block; in lower case, if the literals are
    """
    next_hits = {literal: haystack.find(literal) for literal in pattern.literals}
    while next_hits := {literal: hit for literal, hit in next_hits.items() if hit >= 0}:
        hit = min(next_hits.values())
        start = haystack.rfind(b"\n", 0, hit) + 1
        end = haystack.find(b"\n", hit)
        end = len(haystack) if end < 0 else end
        if pattern.is_literal or pattern.matches(block[start:end]):
            yield start, end
        next_hits = {
            literal: haystack.find(literal, end) if hit < end else hit for literal, hit in next_hits.items()
        }
