"""The text of a template, its elements and its errors.

A template is ``s3://bucket/`` and a text of

* literals; ``%%`` is a percent sign, ``{{`` and ``}}`` are braces,
* directives of the hour, with a fixed number of digits: ``%Y``, ``%y``, ``%m``, ``%d``, ``%H``, and ``%j`` (day of
  the year),
* captures ``{name}``: one or more characters other than ``/``.

Directives and captures may occur several times, and then have to agree in a key; a date in the folders may differ
by a day from that in the name (:func:`count_folder_directives`). ``%y`` has the years 1969 to 2068, as for
``strptime`` (https://docs.python.org/3/library/time.html, "Year 2000 (Y2K) issues").
"""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

DEFAULT_SUFFIX = "%Y%m%d/%H/"
# Each directive as a regular expression, and its number of digits.
DIGITS = {
    "%Y": "[0-9]{4}",
    "%y": "[0-9]{2}",
    "%m": "(?:0[1-9]|1[0-2])",
    "%d": "(?:0[1-9]|[12][0-9]|3[01])",
    "%H": "(?:[01][0-9]|2[0-3])",
    "%j": "(?:[0-2][0-9]{2}|3[0-6][0-9])",
}
WIDTHS = {"%Y": 4, "%y": 2, "%m": 2, "%d": 2, "%H": 2, "%j": 3}
LITERAL, DIRECTIVE, CAPTURE = "literal", "directive", "capture"

_RAW_EXAMPLE = "s3://my-bucket/raw/app/%Y%m%d/%H/"
_AGGREGATED_EXAMPLE = "s3://my-bucket/aggregated/app/%Y%m%d/%H/"
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_URL = re.compile(r"s3://([^/]*)/")
_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_TOKEN = re.compile(r"%%|%[YymdHj]|\{\{|\}\}|\{[a-z_][a-z0-9_]*\}|[^%{}]+")
# Directives of strftime for a time within the hour.
_WITHIN_HOUR = ("%M", "%S", "%f")
# What other directives of strftime are likely to mean.
_NEAR = {"%I": "%H", "%k": "%H", "%h": "%H", "%e": "%d", "%D": "%d", "%F": "%Y-%m-%d", "%G": "%Y"}


class TemplateError(ValueError):
    """A template is wrong; the message shows it with a caret under the fault, and an example.

    :param reason: what is wrong and how to fix it
    :param position: index of the fault in ``text``
    :param example: a correct template, as near as possible
    """

    def __init__(self, reason: str, text: str, position: int, example: str) -> None:
        super().__init__(f"{reason}\n  {text}\n  {' ' * position}^\nwrite it like {example}")
        self.reason, self.text, self.position, self.example = reason, text, position, example


class _FaultError(Exception):
    """A fault at a position; ``fixes`` are texts that may be correct, the best one first."""

    def __init__(self, reason: str, position: int, *fixes: str) -> None:
        super().__init__(reason)
        self.reason, self.position, self.fixes = reason, position, fixes


class Element(NamedTuple):
    """A literal, directive or capture of a template.

    :param value: the literal without escapes, the directive (``%Y``), or the capture's name
    :param start: index of its first character in the template
    """

    kind: str
    value: str
    start: int

    def __str__(self) -> str:
        return f"{{{self.value}}}" if self.kind == CAPTURE else self.value


def count_folder_directives(elements: Sequence[Element]) -> int:
    """How many directives, from the first, are of a folder's date that a later date with the hour overrides.

    In ``%Y/%m/%d/{name}_%Y%m%dT%H`` the first three. The hour has to be in one path step only, and the later date
    in the same one or before it. 0 if there is no such folder.
    """
    directives: list[tuple[str, int]] = []
    step = 0
    for element in elements:
        if element.kind == LITERAL:
            step += element.value.count("/")
        elif element.kind == DIRECTIVE:
            directives.append((element.value, step))
    hours = {step for value, step in directives if value == "%H"}
    if len(hours) != 1:
        return 0
    (last,) = hours
    year = "%Y" if any(value == "%Y" for value, _ in directives) else "%y"
    for count in range(len(directives) - 1, 0, -1):
        begins_step = directives[count][1] > directives[count - 1][1]
        rest = {value for value, step in directives[count:] if step <= last}
        if begins_step and year in rest and "%H" in rest and gives_day(rest):
            return count
    return 0


def gives_day(directives: Collection[str]) -> bool:
    """Whether directives give the day: year, and month and day or the day of the year."""
    given = set(directives)
    return bool(given & {"%Y", "%y"}) and (given >= {"%m", "%d"} or "%j" in given)


def escape(literal: str) -> str:
    """The text of a literal in a template."""
    return re.sub(r"[%{}]", r"\g<0>\g<0>", literal)


def parse(text: str, aggregated: bool) -> tuple[str, str, tuple[Element, ...]]:
    """The completed text of a template, its bucket and its elements.

    :raises TemplateError: if it is wrong
    """
    try:
        return _read(text, aggregated)
    except _FaultError as fault:
        shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
        raise TemplateError(
            fault.reason, shown, fault.position, _first_correct(fault.fixes, aggregated)
        ) from None


def _first_correct(texts: Sequence[str], aggregated: bool) -> str:
    """The first text that is correct once its other faults are fixed too; an example if there is none."""
    return _corrected(texts, aggregated, 4) or (_AGGREGATED_EXAMPLE if aggregated else _RAW_EXAMPLE)


def _corrected(texts: Sequence[str], aggregated: bool, tries: int) -> str | None:
    for text in texts if tries else ():
        try:
            return _read(text, aggregated)[0]
        except _FaultError as fault:
            corrected = _corrected(fault.fixes, aggregated, tries - 1)
            if corrected:
                return corrected
    return None


def _read(text: str, aggregated: bool) -> tuple[str, str, tuple[Element, ...]]:
    bucket = _bucket_of(text)
    elements = _elements_of(text)
    if not any(element.kind == DIRECTIVE for element in elements):
        text = _with_slash(text) + DEFAULT_SUFFIX
    elif aggregated:
        text = _with_slash(text)
    elements = _elements_of(text)
    _refuse_touching(text, elements)
    _refuse_missing_day(text, elements)
    _refuse_missing_hour(text, elements)
    if aggregated:
        _refuse_missing_century(text, elements)
        _refuse_two_in_a_step(text, elements)
    else:
        _refuse_capture_at_end(text, elements)
        first = next(index for index, element in enumerate(elements) if element.kind == DIRECTIVE)
        _refuse_two_in_a_step(text, elements[:first])
        _refuse_capture_in_step_of_date(text, elements[: first + 1])
        _refuse_ambiguous_repeat(text, elements)
    return text, bucket, elements


def _with_slash(text: str) -> str:
    return text if text.endswith("/") else text + "/"


def _bucket_of(text: str) -> str:
    url = _URL.match(text)
    if not url:
        raise _FaultError(
            "is not an S3 URL, which begins with s3://, a bucket and a slash",
            0,
            *([text + "/"] if text.startswith("s3://") else ["s3://" + text.lstrip("/")]),
        )
    if not _BUCKET.fullmatch(url[1]):
        raise _FaultError(
            f"{url[1]!r} is not the name of a bucket: 3 to 63 lower-case letters, digits, '-' and '.'",
            url.start(1),
        )
    return url[1]


def _elements_of(text: str) -> tuple[Element, ...]:
    """The elements of a template behind the bucket; neighbouring literals are one."""
    elements: list[Element] = []
    position = text.index("/", len("s3://")) + 1
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise _bad_token(text, position)
        value = token[0]
        if value in DIGITS:
            elements.append(Element(DIRECTIVE, value, position))
        elif value[0] == "{" and value != "{{":
            elements.append(Element(CAPTURE, value[1:-1], position))
        else:
            value = value[0] if value in ("%%", "{{", "}}") else value
            if elements and elements[-1].kind == LITERAL:
                value, start = elements[-1].value + value, elements.pop().start
            else:
                start = position
            elements.append(Element(LITERAL, value, start))
        position = token.end()
    return tuple(elements)


def _bad_token(text: str, position: int) -> _FaultError:
    """The fault of a percent sign or brace that begins no element."""
    before, sign, behind = text[:position], text[position], text[position + 1 :]
    doubled = f"{before}{sign}{sign}{behind}"
    if sign == "%":
        directive = text[position : position + 2]
        known = f"the directives are {' '.join(DIGITS)}, and %% is a percent sign"
        if directive in _WITHIN_HOUR:
            return _FaultError(
                f"has a directive {directive}, a time within the hour; end the template before it, as it matches "
                f"the start of keys",
                position,
                before,
            )
        if directive[1:].isalnum():
            fixes = [f"{before}{_NEAR[directive]}{behind[1:]}"] if directive in _NEAR else []
            return _FaultError(f"has an unknown directive {directive}; {known}", position, *fixes, doubled)
        return _FaultError(f"has a percent sign without a directive; {known}", position, doubled)
    if sign == "}":
        return _FaultError("has a } without a {; write }} for a brace", position, doubled)
    name, closed, rest = re.match(r"([^{}/%]*)(\}?)(.*)", behind, re.DOTALL).groups()  # type: ignore[union-attr]
    word = re.sub(r"[^a-z0-9_]+", "_", name.lower())
    if not closed:
        word = re.match("[a-z0-9_]*", name.lower())[0]  # type: ignore[index]
        rest = name[len(word) :] + rest
    better = word if _NAME.fullmatch(word) else f"name{word}"
    fixed = f"{before}{{{better}}}{rest}"
    if not closed:
        return _FaultError("has a capture without its }; write {{ for a brace", position, fixed)
    if not name:
        return _FaultError("has a capture without a name", position, fixed)
    return _FaultError(
        f"has a capture with the name {name!r}; a name has lower-case letters, digits and _, and no digit first",
        position,
        fixed,
    )


def _refuse_touching(text: str, elements: Sequence[Element]) -> None:
    for one, other in pairwise(elements):
        if CAPTURE in (one.kind, other.kind) and LITERAL not in (one.kind, other.kind):
            raise _FaultError(
                f"has {one} and {other} without a literal between them, so that it is ambiguous "
                f"where a capture ends; put one between them, like a slash",
                other.start,
                f"{text[: other.start]}/{text[other.start :]}",
                f"{text[: other.start]}_{text[other.start :]}",
            )


def _refuse_missing_day(text: str, elements: Sequence[Element]) -> None:
    given = {element.value: element.start for element in elements if element.kind == DIRECTIVE}
    if gives_day(given):
        return
    raise _FaultError(
        "does not give the day: it needs %Y (or %y), with %m and %d, or with %j",
        min(given.values()),
        _with_day(text, min(given.values())),
    )


def _with_day(text: str, first: int) -> str:
    """The text with those of ``%Y``, ``%m`` and ``%d`` that it lacks.

    :param first: index of the first directive
    """
    year = "%y" if "%y" in text else "%Y"
    if year not in text:
        text = f"{text[:first]}%Y/{text[first:]}"
    for before, directive in ((year, "%m"), ("%m", "%d")):
        if directive not in text:
            start = text.index(before)
            separator = text[start - 1] if text[start - 1] in "/-_." else ""
            text = f"{text[: start + 2]}{separator}{directive}{text[start + 2 :]}"
    return text


def _refuse_missing_hour(text: str, elements: Sequence[Element]) -> None:
    directives = [element for element in elements if element.kind == DIRECTIVE]
    if any(element.value == "%H" for element in directives):
        return
    end = directives[-1].start + 2
    raise _FaultError("does not give the hour: it needs %H", end, f"{text[:end]}/%H{text[end:]}")


def _refuse_missing_century(text: str, elements: Sequence[Element]) -> None:
    directives = {element.value: element.start for element in elements if element.kind == DIRECTIVE}
    if "%Y" not in directives:
        start = directives["%y"]
        raise _FaultError(
            "has the year without its century, so that hours 100 years apart would share a prefix; write %Y",
            start,
            f"{text[:start]}%Y{text[start + 2 :]}",
        )


def _refuse_capture_at_end(text: str, elements: Sequence[Element]) -> None:
    if elements[-1].kind == CAPTURE:
        raise _FaultError(
            f"ends with {elements[-1]}, so that it is ambiguous where the capture ends; add the text behind it",
            elements[-1].start,
            text + "/",
        )


def _refuse_ambiguous_repeat(text: str, elements: Sequence[Element]) -> None:
    """Refuse a capture that ends within a step and occurs again after another one.

    Its values would have to be tried with all values of the other one.
    """
    ends_step: dict[str, bool] = {}
    for index, element in enumerate(elements):
        if element.kind == CAPTURE:
            known = element.value in ends_step
            # The last element is a literal or directive.
            ends_step.setdefault(element.value, "/" in elements[index + 1].value)
            newest = list(ends_step)[-1]
            if known and newest != element.value and not ends_step[element.value]:
                raise _FaultError(
                    f"has {element} again after {{{newest}}}, so that its end is ambiguous; let its first "
                    f"place end a path step",
                    element.start,
                )


def _refuse_two_in_a_step(text: str, elements: Sequence[Element]) -> None:
    earlier: Element | None = None
    for element in elements:
        if element.kind == LITERAL and "/" in element.value:
            earlier = None
        elif element.kind == CAPTURE and earlier is not None:
            raise _FaultError(
                f"has {earlier} and {element} in one path step, where only one capture may be",
                element.start,
                f"{text[: earlier.start]}{earlier}/{text[element.start :]}",
            )
        elif element.kind == CAPTURE:
            earlier = element


def _refuse_capture_in_step_of_date(text: str, elements: Sequence[Element]) -> None:
    """Refuse a new capture in the step of the date, before it.

    A listing by delimiter would find its values only with all dates.

    :param elements: up to the first directive
    """
    known: set[str] = set()
    found: Element | None = None
    for element in elements:
        if element.kind == LITERAL and "/" in element.value:
            found = None
        elif element.kind == CAPTURE and element.value not in known:
            known.add(element.value)
            found = element
    if found is not None:
        raise _FaultError(
            f"has {found} before the date in the same path step, so that its values cannot be listed; end "
            f"the step behind it, or write one value instead of it",
            found.start,
            f"{text[: found.start]}{found}/{text[elements[-1].start :]}",
            f"{text[: found.start]}{found.value}{text[found.start + len(str(found)) :]}",
        )
