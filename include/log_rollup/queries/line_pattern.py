"""Compiles the pattern of a search in lines, and finds the text that each matching line contains."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from include.log_rollup.errors import ConfigurationError

# A shorter literal is in so many lines that looking for it first does not pay.
_SHORTEST_LITERAL = 2
# Each literal is looked for by itself.
_MOST_LITERALS = 8
_TOKEN = re.compile(
    r"""
      (?P<escape> \\ (?: x[0-9a-fA-F]{2} | 0[0-7]{0,2} | [0-7]{3} | [0-9]{1,2} | . ) )
    | (?P<set> \[ \^? \]? (?: \\. | [^\]\\] )* \] )
    | (?P<flags> \(\? [a-zA-Z]+ \) )
    | (?P<comment> \(\?\# )
    | (?P<open> \( )
    | (?P<close> \) )
    | (?P<repeat> (?: [*+?] | \{ (?: [0-9]+ (?: , [0-9]* )? | , [0-9]* ) \} ) [?+]? )
    | (?P<or> \| )
    | (?P<other> [.^$] )
    | (?P<character> . )
    """,
    re.VERBOSE | re.DOTALL,
)
# Python would take it for a set of the characters `:`, `d`, `i`, …, followed by `]`.
_POSIX_CLASS = re.compile(
    r"\[:\^?(?:alnum|alpha|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit):\]"
)
# Escapes of these stand for the character itself.
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")
# Other flags change how the pattern is read.
_PLAIN_FLAGS = frozenset("aims")


class PatternError(ConfigurationError):
    """A pattern is not a valid regular expression.

    :param position: index of the character with the error; None if it is not known
    """

    def __init__(self, message: str, position: int | None) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class LinePattern:
    """A pattern that is compared with lines, as bytes without the newline.

    :param matches: whether a line matches; a truthy value or None
    :param literals: one of them is in each line that matches; empty if there are no such texts
    :param ignore_case: whether the literals are in lower case, and have to be looked for in the line in lower case
    :param is_literal: whether each line that contains a literal matches
    """

    matches: Callable[[bytes], object]
    literals: tuple[bytes, ...]
    ignore_case: bool
    is_literal: bool


def compile_pattern(text: str, *, fixed: bool = False, ignore_case: bool = False) -> LinePattern:
    """Compile a regular expression of Python, or a fixed string.

    It is matched with bytes: `.` is one byte, and case is ignored for ASCII letters only. A character that is not
    ASCII is its UTF-8 bytes.

    :param fixed: whether the text is a fixed string
    :raises PatternError: if it is not a valid regular expression
    :raises ConfigurationError: if lines cannot match it, or it cannot be matched with bytes
    """
    if "\n" in text:
        raise ConfigurationError("the pattern has a newline, but lines don't; search for each line by itself")
    if fixed:
        literal = os.fsencode(text)
        pattern = re.compile(re.escape(literal), re.IGNORECASE if ignore_case else 0)
        wanted = literal.lower() if ignore_case else literal
        return LinePattern(pattern.search, (wanted,) if wanted else (), ignore_case, bool(wanted))
    flags = re.IGNORECASE if ignore_case else 0
    _compile(text, text, flags)
    matches = list(_TOKEN.finditer(text))
    _refuse_posix_classes(matches)
    tokens = [(match.lastgroup or "", match[0]) for match in matches]
    found = _compile(text, os.fsencode(_with_whole_characters(text, tokens)), flags)
    ignore_case = bool(found.flags & re.IGNORECASE)
    lower = bytes.lower if ignore_case else bytes
    literals = tuple(dict.fromkeys(map(lower, _literals(tokens))))
    is_literal = len(literals) == 1 and all(kind == "character" for kind, _ in tokens)
    return LinePattern(found.search, literals, ignore_case, is_literal)


def _compile(text: str, pattern: str | bytes, flags: int) -> "re.Pattern[bytes]":
    """Compile a pattern.

    :param text: as the user wrote it, for the message
    """
    try:
        with warnings.catch_warnings():
            # "Possible nested set": they may become operators in a later Python.
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(pattern, flags)  # type: ignore[arg-type]
    except re.error as error:
        is_as_written = pattern in (text, os.fsencode(text))
        message = f"the pattern is not a regular expression: {error.msg}"
        raise PatternError(message, error.pos if is_as_written else None) from None
    except (OverflowError, RecursionError) as error:
        raise ConfigurationError(f"the pattern cannot be compiled: {error}") from None


def _refuse_posix_classes(tokens: Iterable["re.Match[str]"]) -> None:
    for token in tokens:
        if token.lastgroup == "set" and (found := _POSIX_CLASS.search(token[0])):
            raise PatternError(
                f"the pattern is not a regular expression: Python has no class {found[0]}; write \\d, \\s or \\w, "
                f"or a set like [A-Za-z]",
                token.start() + found.start(),
            )


def _with_whole_characters(text: str, tokens: Sequence[tuple[str, str]]) -> str:
    """The pattern with a group around each character of several bytes: a repetition repeats all of them."""
    if text.isascii():
        return text
    words = []
    for kind, word in tokens:
        if word.isascii():
            words.append(word)
        elif kind == "set":
            raise ConfigurationError(
                f"the set {word} has characters that are not ASCII, which are several bytes; write alternatives "
                f"like (é|è) instead"
            )
        else:
            words.append(f"(?:{word.removeprefix(chr(92))})")
    return "".join(words)


def _literals(tokens: Sequence[tuple[str, str]]) -> tuple[bytes, ...]:
    """Texts of which each match contains at least one; empty if the pattern has an alternative without one."""
    for kind, word in tokens:
        if kind == "comment" or (kind == "flags" and not _PLAIN_FLAGS.issuperset(word[2:-1])):
            return ()
    found = []
    for runs in _alternatives(tokens):
        longest = max(runs, key=len, default="")
        if len(longest) < _SHORTEST_LITERAL:
            return ()
        found.append(os.fsencode(longest))
    return tuple(found) if len(found) <= _MOST_LITERALS else ()


def _alternatives(tokens: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
    """The runs of characters, outside of groups, that each alternative of the whole pattern contains."""
    runs = [""]
    depth = 0
    for kind, word in tokens:
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
        if kind in ("open", "close", "flags"):
            runs.append("")
        elif depth:
            continue
        elif kind == "or":
            yield runs
            runs = [""]
        elif kind == "repeat":
            # The character before it may be missing, unless it is `+`. It has been added to the run.
            if word[0] != "+":
                runs[-1] = runs[-1][:-1]
            runs.append("")
        elif kind == "character":
            runs[-1] += word
        elif kind == "escape" and word[1] in _PUNCTUATION:
            runs[-1] += word[1]
        else:
            runs.append("")
    yield runs
