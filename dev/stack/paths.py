"""The paths of the local stack's files, all below one state directory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BUCKET = "application-logs"
DAG_FOLDER = "dags"
PLUGINS_FOLDER = "plugins"


@dataclass(frozen=True)
class StackPaths:
    """The paths below one state directory: `.local` for the demo, a temporary one for system tests."""

    state: Path

    @property
    def s3(self) -> Path:
        """The directory with one subdirectory for each bucket."""
        return self.state / "s3"

    @property
    def bucket(self) -> Path:
        """The bucket of the demo's streams."""
        return self.s3 / BUCKET

    @property
    def airflow_home(self) -> Path:
        """AIRFLOW_HOME: metadata database, task logs, generated airflow.cfg."""
        return self.state / "airflow"

    @property
    def logs(self) -> Path:
        """The log files of the stack's processes."""
        return self.state / "logs"

    @property
    def cache(self) -> Path:
        """rclone's cache, instead of the user's cache directory."""
        return self.state / "cache"

    @property
    def streams(self) -> Path:
        """The streams file of the demo's Dag."""
        return self.state / "streams.yaml"

    @property
    def dataset(self) -> Path:
        """The record of the made raw hours, written after the last of them."""
        return self.state / "dataset.json"

    @property
    def secrets(self) -> Path:
        """The generated keys, kept as long as the database that is encrypted with them."""
        return self.state / "secrets.json"

    @property
    def stack(self) -> Path:
        """The record of the running processes."""
        return self.state / "stack.json"

    @property
    def lock(self) -> Path:
        """The lock of the command that starts, runs or stops the stack."""
        return self.state / "lock"


def write_json(path: Path, content: dict[str, Any], mode: int = 0o644) -> None:
    """Write a JSON file atomically, with the permissions `mode` from the start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    part.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if the file does not exist.

    :raises ValueError: if the file does not hold a JSON object
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, but holds a {type(content).__name__}")
    return content
