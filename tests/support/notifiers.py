"""A notifier that can only wait for its answer, as many that providers ship."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseNotifier


class FileNotifier(BaseNotifier):
    """Writes a line to a file.

    :param path: of the file
    :param message: the line
    """

    template_fields: Sequence[str] = ("message",)

    def __init__(self, *, path: str, message: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.message = message

    def notify(self, context: Mapping[str, Any]) -> None:
        """Write it."""
        with Path(self.path).open("a", encoding="utf-8") as file:
            file.write(f"{self.message}\n")
