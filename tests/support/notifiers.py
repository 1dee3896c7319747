"""A synchronous notifier, like many notifiers of providers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseNotifier


class FileNotifier(BaseNotifier):
    """Appends a line to a file.

    :param path: path of the file
    :param message: the line
    """

    template_fields: Sequence[str] = ("message",)

    def __init__(self, *, path: str, message: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.message = message

    def notify(self, context: Mapping[str, Any]) -> None:
        """Append the line."""
        with Path(self.path).open("a", encoding="utf-8") as file:
            file.write(f"{self.message}\n")
