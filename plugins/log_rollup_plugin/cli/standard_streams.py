"""Standard streams of the process that are closed, or cannot be written."""

import os
import sys
from typing import TextIO


def open_missing_streams() -> None:
    """Open the standard streams that the caller has closed; Python has None in their place.

    Standard output gets a file that refuses to be written, so that an answer is never lost without an error.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, mode)
    if sys.__stdin__ is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.__stdout__ is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.__stderr__ is None:
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)


def discard(stream: TextIO) -> None:
    """Connect a standard stream with the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
