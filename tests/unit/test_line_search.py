"""The search in pieces of an object finds what a search line by line finds."""

import os
import re
import string
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.queries import line_search
from include.log_rollup.queries.line_pattern import PatternError, compile_pattern
from include.log_rollup.queries.line_search import LineSearch
from include.log_rollup.units import MIB

# Few characters, so that random patterns match random lines.
CONTENT = st.lists(
    st.sampled_from([b"a", b"B", b"b", b"ab", b"1", b" ", b"\n", b"\r\n", b"\xff", b"\xc3\xa9", b"."])
)
FIXED = st.text(st.sampled_from("aBb1 .é*"), max_size=4)
ATOMS = st.sampled_from(
    [
        *(
            "a",
            "B",
            "ab",
            "b1",
            "é",
            ".",
            r"\.",
            " ",
            r"\s",
            r"\S",
            r"\d",
            r"\w",
            r"\W",
            r"\D",
            r"\n",
            "\\xc3",
        ),
        *("[^a]", "[ab]", r"[\s1]", r"[^\d]", "[]a]", "[^]a]", "^", "$", r"\A", r"\Z", r"\b", r"\B"),
        *(
            "(?=b)",
            "(?!b)",
            "(?<=a)",
            "(?<!a)",
            r"(?!\n)",
            "(?:ab|b)",
            "(a)",
            "(?i:b)",
            "(?s:.)",
            "(?P<x>b|1)",
        ),
        *(r"\101", r"\x61", "(?>a*)", "{", "a{1", "]", "}", "-"),
    ]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{0,1}", "{,2}", "*?", "++"])
SEQUENCES = st.lists(st.tuples(ATOMS, REPEATS).map("".join), max_size=4).map("".join)
PATTERNS = st.tuples(
    st.sampled_from(["", "", "", "(?i)", "(?s)", "(?m)", "(?x)", "(?ai)"]), SEQUENCES, SEQUENCES
).map(lambda parts: parts[0] + (f"{parts[1]}|{parts[2]}" if parts[2] else parts[1]))


def lines_of(content: bytes, longest: int) -> Iterator[tuple[int, bytes]]:
    """Number and content of each line, without the code that is tested."""
    if content.endswith(b"\n"):
        content = content[:-1]
    elif not content:
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        for start in range(0, max(len(line), 1), longest):
            yield number, line[start : start + longest]


def searched(search: LineSearch, content: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    """Number and content of each selected line."""
    found: list[tuple[int, bytes]] = []
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        for lines in search.feed(memoryview(content)[start:end]):
            found += zip(lines.numbers, lines.lines, strict=True)
    for lines in search.finish():
        found += zip(lines.numbers, lines.lines, strict=True)
    return found


def naive(
    text: str, content: bytes, longest: int, *, fixed: bool, ignore_case: bool, invert: bool
) -> list[tuple[int, bytes]]:
    """The selected lines by one comparison for each line."""
    pattern = re.escape(os.fsencode(text)) if fixed else os.fsencode(re.sub("é", "(?:é)", text))
    compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    return [item for item in lines_of(content, longest) if bool(compiled.search(item[1])) is not invert]


@pytest.mark.slow
@settings(max_examples=200)
@given(
    text=PATTERNS, content=CONTENT.map(b"".join), cuts=st.lists(st.integers(0, 200), max_size=4),
    ignore_case=st.booleans(), invert=st.booleans(), longest=st.sampled_from([3, 10, 1000]),
    block=st.sampled_from([1, 7, 1000]), sample=st.sampled_from([0, 1000]),
)  # fmt: skip
@example("a|b", b"a\n\nb", [1], False, False, 1000, 1000, 0)
def test_regular_expressions_match_as_line_by_line(
    text: str,
    content: bytes,
    cuts: list[int],
    ignore_case: bool,
    invert: bool,
    longest: int,
    block: int,
    sample: int,
) -> None:
    try:
        pattern = compile_pattern(text, ignore_case=ignore_case)
    except PatternError:
        with pytest.raises(re.error):
            re.compile(os.fsencode(re.sub("é", "(?:é)", text)))
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_search, "LONGEST_LINE_BYTES", longest)
        patch.setattr(line_search, "_BLOCK_BYTES", min(block, longest))
        # With 0, literals are looked for however frequent they are.
        patch.setattr(line_search, "_SAMPLE_BYTES", sample)
        search = LineSearch(pattern, invert=invert, numbered=True)
        found = searched(search, content, cuts)
    assert found == naive(text, content, longest, fixed=False, ignore_case=ignore_case, invert=invert)
    assert search.has_long_line == any(len(line) > longest for line in content.split(b"\n"))


@given(
    text=FIXED, content=CONTENT.map(b"".join), cuts=st.lists(st.integers(0, 200), max_size=4),
    ignore_case=st.booleans(), invert=st.booleans(),
)  # fmt: skip
def test_fixed_strings_match_as_line_by_line(
    text: str, content: bytes, cuts: list[int], ignore_case: bool, invert: bool
) -> None:
    pattern = compile_pattern(text, fixed=True, ignore_case=ignore_case)
    found = searched(LineSearch(pattern, invert=invert, numbered=True), content, cuts)
    assert found == naive(text, content, 10**9, fixed=True, ignore_case=ignore_case, invert=invert)


@pytest.mark.parametrize(
    ("text", "literals"),
    [
        ("timeout", ["timeout"]),
        (r"status=5\d\d", ["status=5"]),
        (r"(GET|POST) /api/v1\b", [" /api/v1"]),
        ("error|fatal", ["error", "fatal"]),
        (r"error|\d+", []),
        ("error|", []),
        ("abc?d", ["ab"]),
        ("abc+d", ["abc"]),
        ("abc{2}de", ["ab"]),
        ("ab{c", ["ab{c"]),
        (r"10\.7\.1", ["10.7.1"]),
        ("()" * 18 + r"\18cd", ["cd"]),
        (r"\x41bc", ["bc"]),
        (r"\0123\n", []),
        ("[ab]cd[ef]", ["cd"]),
        ("(?x)a b", []),
        ("(?#abc)de", []),
        ("a(b(cd)e)?fg", ["fg"]),
        ("grüße", ["grüße"]),
        ("a", []),
        ("", []),
    ],
)
def test_literals_are_in_every_match(text: str, literals: list[str]) -> None:
    assert compile_pattern(text).literals == tuple(map(str.encode, literals))


@pytest.mark.parametrize(
    ("text", "position"),
    [("a(b", 1), ("ab)", 2), ("*a", 0), ("[a", 0), ("(?<=a*)b", None), (r"\q", 0), (r"\N{DASH}", 0)],
)
def test_invalid_pattern_is_refused_with_its_position(text: str, position: int | None) -> None:
    with pytest.raises(PatternError, match="the pattern is not a regular expression: ") as caught:
        compile_pattern(text)
    assert position is None or caught.value.position == position


@pytest.mark.parametrize(
    ("text", "position"),
    [("[[:digit:]]+", 1), ("[:space:]", 0), ("a[^x[:alpha:]_]", 4), ("é[[:^upper:]]", 2)],
)
def test_classes_of_posix_are_refused(text: str, position: int) -> None:
    """Python compiles them, to something else that lines hardly match."""
    with pytest.raises(PatternError, match=r"Python has no class \[:") as caught:
        compile_pattern(text)
    assert caught.value.position == position


@pytest.mark.parametrize("text", ["[[:]", "[:d]", r"\[[:x]", "[[:digits:]"])
def test_sets_that_resemble_classes_are_accepted(text: str) -> None:
    assert compile_pattern(text).matches(b"[:")


@pytest.mark.parametrize("text", ["a\nb", "[éè]", "a{99999999999999999999}"])
def test_pattern_that_lines_cannot_match_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        compile_pattern(text)


def test_patterns_that_are_not_utf8_are_accepted() -> None:
    text = os.fsdecode(b"caf\xe9+")
    found = searched(LineSearch(compile_pattern(text), numbered=True), b"caf\xe9\xe9\ncaf\xc3\xa9", [])
    assert found == [(1, b"caf\xe9\xe9")]


def test_every_punctuation_character_can_be_escaped() -> None:
    for character in string.punctuation:
        assert compile_pattern(f"a\\{character}b").literals == (f"a{character}b".encode(),)


def test_memory_stays_bounded_with_a_line_of_gigabytes() -> None:
    piece = b"x" * MIB
    search = LineSearch(compile_pattern("absent"), numbered=True)
    tracemalloc.start()
    try:
        for _ in range(200):
            assert not [lines for lines in search.feed(piece) if lines.lines]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert search.has_long_line
    assert peak < 4 * line_search.LONGEST_LINE_BYTES


@pytest.mark.slow
def test_memory_stays_bounded_with_many_tiny_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    # A quarter, because tracemalloc is slow.
    block = MIB // 4
    monkeypatch.setattr(line_search, "_BLOCK_BYTES", block)
    search = LineSearch(compile_pattern("b", fixed=True), invert=True)
    # One and a half blocks: all lines together would take 11.5 MiB.
    content = b"aa\n" * (block // 2)
    tracemalloc.start()
    try:
        count = sum(len(lines.lines) for lines in search.feed(content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == block // 2
    assert peak < 10 * MIB
