"""What the command prints: answers on stdout, all else on stderr.

Keys and whatever else comes from a bucket may hold any character. :func:`printable` is applied to every line that
is printed, so that none of them can move the cursor, change what was printed before, or look like another line.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from include.log_rollup.units import format_size

LINE_SECONDS = 5.0


def printable(text: str) -> str:
    """Text in one line, as a terminal may show it.

    Control characters (C0, C1, DEL, line ends among them), bidirectional and other format characters, line
    separators, unusual spaces and what is no character at all become escapes as in Python: ``\\x1b``, ``\\u202e``.
    All else stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def printable_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a log record whose message is :func:`printable`; to be set with ``logging.setLogRecordFactory``."""
    record = logging.LogRecord(*args, **kwargs)
    # A message that does not fit its arguments is left to the handler, which says where it came from.
    with suppress(TypeError, ValueError, LookupError):
        record.msg, record.args = printable(record.getMessage()), ()
    return record


class Answer:
    """Where the answer goes, and nothing else does.

    :param stream: standard output, as the process found it
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads it as it comes."""
        return self._stream.isatty()

    def open_bytes(self) -> IO[bytes]:
        """The stream as one of bytes, to be closed before anything else is written."""
        # Its own buffer is none under PYTHONUNBUFFERED, and then takes a part of what it is given and says so.
        return os.fdopen(self._stream.fileno(), "wb", closefd=False)

    def json(self, document: Mapping[str, Any]) -> None:
        """Write one document, in printable ASCII, so that any key passes through any terminal or pipe."""
        # json leaves DEL alone, which is a control character too.
        self._stream.write(json.dumps(document, indent=2).replace("\x7f", "\\u007f") + "\n")
        self._stream.flush()

    def lines(self, *lines: str) -> None:
        """Write lines of text, each made :func:`printable`."""
        text = "".join(f"{printable(line)}\n" for line in lines)
        encoding = self._stream.encoding or "utf-8"
        # A terminal that knows ASCII alone shows escapes for the rest.
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()

    def give_up(self) -> None:
        """After its reader has gone: have Python not try once more at its end, and complain."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def tell(message: str) -> None:
    """Print a line that is no answer, made :func:`printable`."""
    sys.stderr.write(f"{printable(message)}\n")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lay a table out, columns to the right but for those of ``left``."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return [line(headings), "  ".join("-" * width for width in widths), *map(line, rows)]


class Progressing:
    """Shows how far a long command is: a bar on a terminal, elsewhere a line every few seconds.

    :param title: what is being done
    :param shown: whether there is to be anything to see
    """

    def __init__(self, title: str, shown: bool = True) -> None:
        self._title = printable(title)
        self._shown = shown
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(),
                DownloadColumn(binary_units=True), TimeRemainingColumn(),
                console=console, transient=True, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._task = self._bar.add_task(self._title, total=None)
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that so many bytes of so many are done."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        elif self._shown and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            tell(f"{self._title}: {format_size(done)} of {format_size(total)}")
