"""The header Content-Range: which bytes of an object a response has, and how large the object is."""

import re
from typing import NamedTuple

from include.log_rollup.errors import TransientError
from include.log_rollup.storage.protocol import Location

# Some servers write "bytes=" as in a request.
_CONTENT_RANGE = re.compile(r"bytes[ =]+(\d{1,19})-\d+/(\d{1,19}|\*)")


class StatedRange(NamedTuple):
    """What a response states.

    :param first: offset of its first byte
    :param total: size of the whole object in bytes; None if it is not stated
    """

    first: int
    total: int | None


def stated_range(value: str | None) -> StatedRange | None:
    """Read the header; None if it is missing or has another form, as with servers that send ranges without it."""
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    if match is None:
        return None
    return StatedRange(int(match[1]), None if match[2] == "*" else int(match[2]))


def other_range_error(source: Location, value: str | None, first: int) -> TransientError | None:
    """The error if a response states another first byte than ``first``, the one that was requested."""
    stated = stated_range(value)
    if stated is None or stated.first == first:
        return None
    return TransientError(
        f"GET {source}: the bytes from {first} on were requested, but the server sent those from {stated.first} on"
    )
