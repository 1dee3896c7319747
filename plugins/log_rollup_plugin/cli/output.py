"""Output of the command: answers on stdout, all else on stderr.

Keys and other data of a bucket may contain any character. All lines are made printable (see
:mod:`include.log_rollup.printable`), so that they cannot move the cursor, change earlier output, or look like a
separate line.
"""

import io
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from include.log_rollup.printable import printable
from include.log_rollup.units import format_size
from log_rollup_plugin.cli.standard_streams import discard

LINE_SECONDS = 5.0
"""Interval between lines of progress where there is no terminal."""


def printable_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A factory for ``logging.setLogRecordFactory``: makes the message :func:`printable`."""
    record = logging.LogRecord(*args, **kwargs)
    # The handler reports a message that does not fit its arguments, with its place in the code.
    with suppress(TypeError, ValueError, LookupError):
        record.msg, record.args = printable(record.getMessage()), ()
    return record


class OutputError(Exception):
    """Standard output cannot be written. It is not a RollupError, which some commands report in their answer."""


class _Output(io.FileIO):
    """Standard output, whose errors cannot be taken for those of other files and of the network."""

    def write(self, data: Any, /) -> int:
        """See the base class.

        :raises OutputError: for any error but a closed pipe
        """
        with _writing():
            return super().write(data)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror}") from error


class Answer:
    """Writes the answer to standard output.

    :param stream: the process's original standard output
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def is_terminal(self) -> bool:
        """Whether standard output is a terminal."""
        return self._stream.isatty()

    def open_bytes(self) -> IO[bytes]:
        """Standard output as a stream of bytes. Close it before anything else is written.

        Its methods, and those below, raise OutputError if standard output cannot be written.
        """
        # Not stream.buffer, which is unbuffered with PYTHONUNBUFFERED, so that its write() may write only a part.
        return io.BufferedWriter(_Output(self._stream.fileno(), "wb", closefd=False))

    def json(self, document: Mapping[str, Any], in_one_line: bool = False) -> None:
        """Write one document in printable ASCII, which any terminal or pipe can pass on."""
        self._write(json_text(document, None if in_one_line else 2) + "\n")

    def lines(self, *lines: str) -> None:
        """Write lines of text, each made :func:`printable`."""
        text = "".join(f"{printable(line)}\n" for line in lines)
        encoding = self._stream.encoding or "utf-8"
        # A terminal that supports only ASCII shows escapes for the rest.
        self._write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _write(self, text: str) -> None:
        with _writing():
            self._stream.write(text)
            self._stream.flush()

    def discard(self) -> None:
        """Drop all further output after an error; Python would fail to flush it at exit."""
        discard(self._stream)


def json_text(document: Mapping[str, Any], indent: int | None = None) -> str:
    """A document as JSON in printable ASCII."""
    # json does not escape DEL, which is a control character too.
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")


def tell(message: str) -> None:
    """Write a line to stderr, made :func:`printable`. It is lost if stderr cannot be written."""
    try:
        sys.stderr.write(f"{printable(message)}\n")
    except BrokenPipeError:
        raise
    except OSError:
        # The exit code has to be that of the answer.
        pass


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Format a table.

    :param left: indexes of the columns to align left; the others are aligned right
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return [line(headings), "  ".join("-" * width for width in widths), *map(line, rows)]


class ProgressDisplay:
    """Shows the progress of a long command: a bar on a terminal, else a line every few seconds.

    :param title: text before the numbers
    :param shown: whether to show anything
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
        self._last_line = time.monotonic()

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
        """Show that ``done`` of ``total`` bytes have been processed."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        elif self._shown and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            tell(f"{self._title}: {format_size(done)} of {format_size(total)}")
