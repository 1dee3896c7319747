"""Whether one key could belong to two templates.

All templates are put in one tree, character by character, and all pairs of nodes that one text can reach are
visited. So the time depends on the text that templates share, not on the number of pairs of templates.

A directive counts as any digits, and a capture as any characters other than ``/``. So no overlap is missed. Two
templates may count as overlapping although no date, or no value of a capture that occurs twice, fits both.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate, Template
from include.log_rollup.hour.template_syntax import CAPTURE, LITERAL, escape

_DECIMALS = frozenset("0123456789")
# A sample of a capture; those of directives are digits.
_ANY = "x"
_SAMPLES = {"%Y": "2026", "%y": "26", "%m": "11", "%d": "23", "%H": "08", "%j": "327"}
_Pair = tuple["_Node", "_Node"]


class Overlap(NamedTuple):
    """Two templates, by their indices, and a key that may belong to both."""

    one: int
    other: int
    key: str


@dataclass(eq=False)
class _Node:
    """A place in templates with equal texts up to there.

    :param number: its order of creation
    :param only: index of the only template below it; None if there are several
    :param sample: a digit on the way to ``digit``
    :param characters: next nodes after a character of a literal
    :param digit: next node after a digit of a directive
    :param capture: next node after the first character of a capture
    :param is_capture: whether further characters of a capture lead back to this node
    :param ends: templates that end here, so that any text may follow
    """

    number: int
    only: int | None
    is_capture: bool = False
    sample: str = ""
    characters: dict[str, "_Node"] = field(default_factory=dict)
    digit: "_Node | None" = None
    capture: "_Node | None" = None
    ends: list[int] = field(default_factory=list)

    def members(self) -> Iterator[tuple[int, str]]:
        """The templates that end here or below, with a sample of their text from here."""
        nodes = [(self, "")]
        while nodes:
            node, text = nodes.pop()
            yield from ((index, text) for index in node.ends)
            nodes += [(following, text + character) for character, following in node.characters.items()]
            nodes += [(following, text + sample) for sample, following in node.classes()]

    def classes(self) -> Iterator[tuple[str, "_Node"]]:
        """The next nodes behind a digit of a directive and behind the start of a capture, with samples."""
        if self.digit:
            yield self.sample, self.digit
        if self.capture:
            yield _ANY, self.capture


def find_overlap(templates: Sequence[Template], exempt: Collection[tuple[int, int]] = ()) -> Overlap | None:
    """Two templates that could match one key; None if there are none.

    :param exempt: pairs of indices that may overlap, each with the lower index first
    """
    root = _tree(templates)
    exempt = frozenset(exempt)
    # The pairs of nodes that a text reaches, with its last character and the pair before it.
    reached: dict[_Pair, tuple[str, _Pair | None]] = {(root, root): ("", None)}
    pairs = deque(reached)
    while pairs:
        pair = pairs.popleft()
        for ended, other, sample in _ends_at(pair):
            one, two = sorted((ended, other))
            if (one, two) not in exempt:
                return Overlap(one, two, (_text_to(reached, pair) + sample).partition("/")[2])
        for character, node, other_node in _moves(*pair):
            has_two = node.only is None or node.only != other_node.only
            following = (node, other_node) if node.number <= other_node.number else (other_node, node)
            if has_two and following not in reached:
                reached[following] = (character, pair)
                pairs.append(following)
    return None


def overlap(one: Template, other: Template) -> str | None:
    """A key that two templates could both match; None if there is none."""
    found = find_overlap([one, other])
    return found.key if found else None


def example_without_overlap(one: Template, other: Template, name: str) -> str:
    """Lines for an error: the other template with a caret where it begins to differ, and a correct one like it.

    :param name: of the other template's stream, for a folder of its own
    """
    texts = str(one), str(other)
    caret = next((place for place, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), None)
    caret = min(map(len, texts)) if caret is None else caret
    shown = f"\n  {texts[1]}\n  {' ' * caret}^"
    end = len(f"s3://{other.bucket}/{escape(other.root.key)}")
    example = f"{texts[1][:end]}{escape(name)}/{texts[1][end:]}"
    kind = RawTemplate if other.is_raw else AggregatedTemplate
    return f"{shown}\nwrite it like {example}" if overlap(one, kind.parse(example)) is None else shown


def _tree(templates: Sequence[Template]) -> _Node:
    count = 0
    root = _Node(count, None)
    for index, template in enumerate(templates):
        node = root
        for character, is_literal in _text_of(template):
            if is_literal:
                following = node.characters.get(character)
            else:
                following = node.capture if character == _ANY else node.digit
            if following is None:
                count += 1
                following = _Node(count, index)
                if is_literal:
                    node.characters[character] = following
                elif character == _ANY:
                    node.capture, following.is_capture = following, True
                else:
                    node.digit, node.sample = following, character
            elif following.only is not None:
                following.only = None
            node = following
        node.ends.append(index)
    return root


def _text_of(template: Template) -> Iterator[tuple[str, bool]]:
    """The characters of the bucket and the keys, and whether each is of a literal; a capture is one character."""
    for character in template.bucket + "/":
        yield character, True
    for element in template.elements:
        is_literal = element.kind == LITERAL
        text = element.value if is_literal else _ANY if element.kind == CAPTURE else _SAMPLES[element.value]
        for character in text:
            yield character, is_literal


def _ends_at(pair: _Pair) -> Iterator[tuple[int, int, str]]:
    """Each template that ends at one node of a pair, with each that ends at or below the other node.

    The third value is a sample of the second template's text from there.
    """
    for outer, inner in (pair, pair[::-1]):
        if outer.ends:
            for other, sample in inner.members():
                yield from ((index, other, sample) for index in outer.ends if index != other)


def _moves(one: _Node, other: _Node) -> Iterator[tuple[str, _Node, _Node]]:
    """The pairs that one more character reaches, with a character."""
    few, many = sorted((one.characters, other.characters), key=len)
    for character in few:
        if character in many:
            yield character, one.characters[character], other.characters[character]
    classes, other_classes = _classes_at(one), _classes_at(other)
    for sample, node in classes:
        for character, following in other.characters.items():
            if _accepts(sample, character):
                yield character, node, following
        for other_sample, following in other_classes:
            yield (other_sample if sample == _ANY else sample), node, following
    for other_sample, following in other_classes:
        for character, node in one.characters.items():
            if _accepts(other_sample, character):
                yield character, node, following


def _classes_at(node: _Node) -> list[tuple[str, _Node]]:
    return [*node.classes(), *([(_ANY, node)] if node.is_capture else [])]


def _accepts(sample: str, character: str) -> bool:
    """Whether a directive or capture with a sample accepts a character."""
    return character != "/" if sample == _ANY else character in _DECIMALS


def _text_to(reached: Mapping[_Pair, tuple[str, _Pair | None]], pair: _Pair) -> str:
    characters = []
    before: _Pair | None = pair
    while before is not None:
        character, before = reached[before]
        characters.append(character)
    return "".join(reversed(characters))
