"""Tells on a terminal, or in a log, what goes on."""

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
    """Prints what goes on: on a terminal one line that changes, otherwise a line every few seconds."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    _began: float = field(default_factory=time.monotonic)
    _last_line: str = ""
    _last_time: float = float("-inf")

    def say(self, message: str) -> None:
        """Print a line that stays."""
        clear = "\r\033[K" if self.out.isatty() else ""
        print(f"{clear}{self._clock()} {message}", file=self.out, flush=True)

    def update(self, statuses: Sequence[str]) -> None:
        """Show where the hours stand, one status for each hour that isn't over."""
        if self.out.isatty():
            line = f"{self._clock()} {' | '.join(statuses)}"
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line[:width]}", end="", file=self.out, flush=True)
            return
        line = " | ".join(statuses)
        now = time.monotonic()
        # What hasn't changed is told too, only less often, so that one sees that it lives.
        pause = _LINE_SECONDS if line != self._last_line else _UNCHANGED_LINE_SECONDS
        if now - self._last_time >= pause:
            self._last_line, self._last_time = line, now
            self.say(line)

    def _clock(self) -> str:
        return f"[{time.monotonic() - self._began:4.0f} s]"
