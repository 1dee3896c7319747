"""Where the local stack keeps what it makes: one directory, every path named once."""

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
    """The paths under one state directory (`.local` for the demo, a temporary one for a system test)."""

    state: Path

    @property
    def s3(self) -> Path:
        """The folder whose sub-folders are buckets."""
        return self.state / "s3"

    @property
    def bucket(self) -> Path:
        """The bucket that the streams of the demo use."""
        return self.s3 / BUCKET

    @property
    def airflow_home(self) -> Path:
        """AIRFLOW_HOME: the metadata database, the task logs, the generated airflow.cfg."""
        return self.state / "airflow"

    @property
    def logs(self) -> Path:
        """One log file for each process of the stack."""
        return self.state / "logs"

    @property
    def cache(self) -> Path:
        """What rclone would otherwise put into the user's own cache directory."""
        return self.state / "cache"

    @property
    def streams(self) -> Path:
        """The streams file that the demo's Dag reads."""
        return self.state / "streams.yaml"

    @property
    def dataset(self) -> Path:
        """The record of the raw hours that were made; it is there only if all of them are."""
        return self.state / "dataset.json"

    @property
    def secrets(self) -> Path:
        """Generated keys; kept, so that a database encrypted with them stays readable."""
        return self.state / "secrets.json"

    @property
    def stack(self) -> Path:
        """The record of the running processes (the pid file)."""
        return self.state / "stack.json"

    @property
    def lock(self) -> Path:
        """Held by the command that is starting, running or stopping the stack."""
        return self.state / "lock"


def write_json(path: Path, content: dict[str, Any], mode: int = 0o644) -> None:
    """Write a JSON file whole or not at all, readable by `mode` from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    part.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None when there is no such file.

    :raises ValueError: when the file is there and is not a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, but holds a {type(content).__name__}")
    return content
