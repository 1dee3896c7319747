"""Reads the settings of the demo: options of the command, or variables of the compose file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class InvalidSettingError(ValueError):
    """A setting with a wrong value; the message says what is right."""


def positive(text: str) -> int:
    """Return the number in a text.

    :raises InvalidSettingError: if it is not a whole number above 0
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise InvalidSettingError(f"{text!r} is not a whole number above 0")
    return number


def one_of(names: Sequence[str], text: str) -> str:
    """Return the text if it is one of the names.

    :raises InvalidSettingError: if it is not
    """
    if text in names:
        return text
    near = difflib.get_close_matches(text.lower(), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InvalidSettingError(f"{text!r} is not one of {', '.join(names)}{hint}")
