"""Prints the progress of the demo on a terminal or into a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

_LINE_SECONDS = 5.0
_UNCHANGED_LINE_SECONDS = 30.0


@dataclass
class Progress:
    """On a terminal, one status line that changes; otherwise a line every few seconds."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    _began: float = field(default_factory=time.monotonic)
    _last_line: str = ""
    _last_time: float = float("-inf")

    def log(self, message: str) -> None:
        """Print a line that remains visible."""
        clear = "\r\033[K" if self.out.isatty() else ""
        print(f"{clear}{self._clock()} {message}", file=self.out, flush=True)

    def update(self, statuses: Sequence[str]) -> None:
        """Show the status of each hour that has not ended."""
        if self.out.isatty():
            line = f"{self._clock()} {' | '.join(statuses)}"
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line[:width]}", end="", file=self.out, flush=True)
            return
        line = " | ".join(statuses)
        now = time.monotonic()
        # An unchanged status is printed too, but less often: it shows that the demo is alive.
        pause = _LINE_SECONDS if line != self._last_line else _UNCHANGED_LINE_SECONDS
        if now - self._last_time >= pause:
            self._last_line, self._last_time = line, now
            self.log(line)

    def _clock(self) -> str:
        return f"[{time.monotonic() - self._began:4.0f} s]"
