"""The regular expression of a template, and the local hour of the digits that it finds in a key."""

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple, Self

from include.log_rollup.hour.template_syntax import (
    CAPTURE,
    DIGITS,
    DIRECTIVE,
    LITERAL,
    WIDTHS,
    Element,
    gives_day,
)


class Run(NamedTuple):
    """Directives of a template without a capture between them; in keys they have fixed positions.

    :param fields: each directive of the hour and its slice of the run's text
    :param folder_fields: the same for the directives of a folder's date
    :param in_folder: how many of the elements, from the first, have the date of a folder
    """

    elements: tuple[Element, ...]
    fields: tuple[tuple[str, slice], ...]
    folder_fields: tuple[tuple[str, slice], ...]
    in_folder: int

    @classmethod
    def of(cls, elements: Sequence[Element], in_folder: int) -> Self:
        fields: list[tuple[str, slice]] = []
        folder_fields: list[tuple[str, slice]] = []
        start = 0
        for index, element in enumerate(elements):
            width = WIDTHS[element.value] if element.kind == DIRECTIVE else len(element.value)
            if element.kind == DIRECTIVE:
                kind = folder_fields if index < in_folder else fields
                kind.append((element.value, slice(start, start + width)))
            start += width
        return cls(tuple(elements), tuple(fields), tuple(folder_fields), in_folder)

    def fill(self, label: datetime, folder: datetime) -> str:
        """The text of the run in keys of a local hour.

        :param folder: the time whose date the folder has
        """
        return "".join(
            text_of(element, folder if index < self.in_folder else label, {})
            for index, element in enumerate(self.elements)
        )


def label_of(runs: Sequence[Run], texts: Sequence[str]) -> datetime | None:
    """The local hour of the texts of the runs, by the last occurrence of each directive; None if it is no date."""
    values: dict[str, int] = {}
    for run, text in zip(runs, texts, strict=True):
        values |= {directive: int(text[place]) for directive, place in run.fields}
    day = _day_of(values)
    return datetime(day.year, day.month, day.day, values["%H"]) if day else None  # noqa: DTZ001 - a local time


def folder_day_of(runs: Sequence[Run], texts: Sequence[str]) -> date | None:
    """The day of the folder in the texts of the runs; None if it has none, or only a month or year."""
    values: dict[str, int] = {}
    for run, text in zip(runs, texts, strict=True):
        values |= {directive: int(text[place]) for directive, place in run.folder_fields}
    return _day_of(values) if gives_day(values) else None


def _day_of(values: Mapping[str, int]) -> date | None:
    """The day of the values of directives; None if there is no such day."""
    year = values["%Y"] if "%Y" in values else full_year(values["%y"])
    try:
        if "%m" in values and "%d" in values:
            return date(year, values["%m"], values["%d"])
        return date(year, 1, 1) + timedelta(days=values["%j"] - 1)
    except (ValueError, OverflowError):
        return None


def full_year(two_digits: int) -> int:
    """The year of two digits, as ``strptime`` reads it."""
    return two_digits + (1900 if two_digits >= 69 else 2000)


def text_of(element: Element, label: datetime, values: Mapping[str, str]) -> str:
    """The text of an element in keys of a local hour.

    :param values: of the captures
    """
    if element.kind == LITERAL:
        return element.value
    if element.kind == CAPTURE:
        return values[element.value]
    match element.value:
        case "%Y":
            return f"{label.year:04}"
        case "%y":
            return f"{label.year % 100:02}"
        case "%m":
            return f"{label.month:02}"
        case "%d":
            return f"{label.day:02}"
        case "%H":
            return f"{label.hour:02}"
    return f"{label.timetuple().tm_yday:03}"


class KeyPattern(NamedTuple):
    """A template as a regular expression.

    :param pattern: that the beginning of a key matches
    :param runs: the runs of directives
    :param stamp_groups: group of each run
    :param capture_groups: group of each capture
    """

    pattern: str
    runs: tuple[Run, ...]
    stamp_groups: tuple[int, ...]
    capture_groups: tuple[int, ...]

    @classmethod
    def of(cls, elements: Sequence[Element], in_folder: int) -> Self:
        """The expression of a template.

        :param in_folder: how many of the elements, from the first, have the date of a folder

        A capture and the text up to the next one are an atomic group. If the rest of a key does not fit, a longer
        value would not help, because the next capture can take the same characters. So no key takes long.
        """
        pieces: list[str] = []
        runs: list[Run] = []
        stamp_groups: list[int] = []
        captures: dict[str, int] = {}
        groups = 0
        folder_end = elements[in_folder].start if in_folder else 0
        for capture, text in _parts(elements):
            if capture is not None and capture.value in captures:
                pieces.append(f"(?:\\{captures[capture.value]})")
            elif capture is not None:
                groups += 1
                pieces.append(")" if captures else "")
                captures[capture.value] = groups
                # Up to a slash there is one way only, which the greedy expression finds faster.
                is_lazy = not text[0].value.startswith("/")
                pieces.append(f"(?>([^/]+{'?' if is_lazy else ''})")
            before, run, behind = _split_run(text)
            pieces += [_pattern_of(element) for element in before]
            if run:
                groups += 1
                stamp_groups.append(groups)
                runs.append(Run.of(run, sum(element.start < folder_end for element in run)))
                pieces.append(f"({''.join(_pattern_of(element) for element in run)})")
            pieces += [_pattern_of(element) for element in behind]
        pieces.append(")" if captures else "")
        return cls("".join(pieces), tuple(runs), tuple(stamp_groups), tuple(captures.values()))


def _parts(elements: Sequence[Element]) -> list[tuple[Element | None, tuple[Element, ...]]]:
    """Each capture with the literals and directives up to the next one; first those before all captures."""
    parts: list[tuple[Element | None, tuple[Element, ...]]] = [(None, ())]
    for element in elements:
        if element.kind == CAPTURE:
            parts.append((element, ()))
        else:
            capture, text = parts[-1]
            parts[-1] = (capture, (*text, element))
    return parts


def _split_run(text: tuple[Element, ...]) -> tuple[tuple[Element, ...], ...]:
    """The elements before the first directive, from there up to the last one, and behind it."""
    directives = [index for index, element in enumerate(text) if element.kind == DIRECTIVE]
    first, end = (directives[0], directives[-1] + 1) if directives else (len(text), len(text))
    return text[:first], text[first:end], text[end:]


def _pattern_of(element: Element) -> str:
    return re.escape(element.value) if element.kind == LITERAL else DIGITS[element.value]
