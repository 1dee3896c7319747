"""Reads and writes sizes and durations in the form that settings and logs use: 32MiB, 10m."""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, TypeAdapter

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_BYTES = TypeAdapter(ByteSize)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]+)\s*([smhd])")


def parse_duration(value: Any) -> timedelta:
    """Read a duration such as ``90s``, ``10m``, ``6h``, ``2d`` or ``1h30m``.

    :raises ValueError: for anything else, also for a number without a unit
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    if not re.fullmatch(rf"({_DURATION.pattern}\s*)+", text):
        raise ValueError(f"{value!r} is not a duration; write it like 90s, 10m, 6h, 2d or 1h30m")
    try:
        return timedelta(
            seconds=sum(int(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))
        )
    except OverflowError:
        raise ValueError(f"{value!r} is too long for a duration") from None


def format_duration(duration: timedelta) -> str:
    """Write a duration, rounded down to seconds, in the form that :func:`parse_duration` reads."""
    rest, words = int(duration.total_seconds()), ""
    for unit, seconds in reversed(_SECONDS.items()):
        count, rest = divmod(rest, seconds)
        words += f"{count}{unit}" if count else ""
    return words or "0s"


def parse_size(value: Any) -> int:
    """Read a size such as ``32MiB``, ``500MB`` or ``33554432`` (bytes).

    :returns: the size in bytes
    :raises ValueError: for anything else
    """
    try:
        return int(_BYTES.validate_python(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a size; write it like 32MiB, 1GiB or 33554432") from None


def format_size(size_bytes: float) -> str:
    """Write a number of bytes with a binary unit, such as ``31.9 MiB``."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes:.0f} B"


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
