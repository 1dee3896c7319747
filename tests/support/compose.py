"""Reads the services of docker-compose.yaml and the environment of the Dockerfile, as a container engine does."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"
# Interpolation as in the compose specification: ${NAME}, ${NAME:-default}, ${NAME:?message}, and $$ for a dollar.
_REFERENCE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<word>[^}]*))?\}")


@dataclass(frozen=True)
class Service:
    """A service: its command, its environment, and its whole definition in the file."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    definition: Mapping[str, Any]


def services(variables: Mapping[str, str]) -> dict[str, Service]:
    """Return all services by name, including those of profiles.

    :param variables: the variables of .env
    :raises KeyError: with the name of a variable that the file requires and .env lacks
    """
    document = yaml.safe_load(COMPOSE_FILE.read_text())
    found = {}
    for name, definition in document["services"].items():
        values = _interpolated(definition, variables)
        found[name] = Service(
            name, tuple(values.get("command", ())), values.get("environment", {}), definition=values
        )
    return found


def references() -> set[str]:
    """Return the names of all variables of .env that the file uses."""
    document = yaml.safe_load(COMPOSE_FILE.read_text())
    return {match["name"] for match in _REFERENCE.finditer(str(document)) if match["name"]}


def dotenv(text: str) -> dict[str, str]:
    """Return the variables of a .env file whose lines are comments, empty, or unquoted NAME=VALUE pairs."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def image_environment() -> dict[str, str]:
    """Return the variables that the Dockerfile sets with ENV."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    pairs = [pair for line in text.splitlines() if line.startswith("ENV ") for pair in line.split()[1:]]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _value_of(match, variables), value)
    if isinstance(value, list):
        return [_interpolated(item, variables) for item in value]
    if isinstance(value, dict):
        return {name: _interpolated(item, variables) for name, item in value.items()}
    return value


def _value_of(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match[0] == "$$":
        return "$"
    value = variables.get(match["name"], "")
    if not value and match["kind"] == "?":
        raise KeyError(match["name"])
    return value or (match["word"] if match["kind"] == "-" else "")
