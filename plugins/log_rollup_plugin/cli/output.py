"""What the command prints: answers on stdout, all else on stderr."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from include.log_rollup.units import format_size

LINE_SECONDS = 5.0


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
        """Write one document, in ASCII, so that any key passes through any terminal or pipe."""
        self._stream.write(json.dumps(document, indent=2) + "\n")
        self._stream.flush()

    def lines(self, *lines: str) -> None:
        """Write lines of text."""
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()

    def give_up(self) -> None:
        """After its reader has gone: have Python not try once more at its end, and complain."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def tell(message: str) -> None:
    """Say something that is no answer."""
    sys.stderr.write(f"{message}\n")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lay a table out, columns to the right but for those of ``left``."""
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
        self._title = title
        self._shown = shown
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(),
                DownloadColumn(binary_units=True), TimeRemainingColumn(),
                console=console, transient=True, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=None)
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
