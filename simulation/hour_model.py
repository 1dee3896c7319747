"""The hour as the invariants see it: its keys, what producers wrote, and its records.

It shares no code with the pipeline.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulation.server import ServerObject

# Formats whose objects never share a part with plain ones.
ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".snappy", ".zz", ".br", ".z", ".tgz")


@dataclass(slots=True)
class Version:
    """A raw object as a producer wrote it.

    :param begin: the step at which it was written
    :param end: the step at which it was replaced or deleted; None if it still exists
    """

    key: str
    body: bytes
    etag: str
    begin: int
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A raw object in a manifest."""

    key: str
    part: str
    offset: int
    length: int
    etag: str
    crc64nvme: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A readable manifest."""

    header: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def plan_id(self) -> str:
        """The plan that it belongs to."""
        return str(self.header["plan_id"])

    def by_part(self) -> dict[str, list[Row]]:
        """Return the rows of each part in order, also of parts without rows."""
        found: dict[str, list[Row]] = {entry["name"]: [] for entry in self.header["parts_table"]}
        for row in self.rows:
            found.setdefault(row.part, []).append(row)
        return found


@dataclass(slots=True)
class Hour:
    """The prefixes of the hour, and the stream's settings that affect its parts.

    :param ready_object: name of the producer's ready object, if there is one
    :param history: the versions of each raw object, oldest first
    """

    raw: str
    aggregated: str
    part_size: int
    ensure_newline: bool
    storage_class: str | None
    ready_object: str | None
    history: dict[str, list[Version]] = field(default_factory=dict)

    @property
    def marker(self) -> str:
        """The key of the completion marker."""
        return self.aggregated + "_SUCCESS"

    @property
    def manifest(self) -> str:
        """The key of the manifest."""
        return self.aggregated + "_manifest.jsonl.gz"

    @property
    def work(self) -> str:
        """The prefix of plans, receipts and the claim."""
        return self.aggregated + "_rollup/"

    def is_input(self, key: str, size: int) -> bool:
        """Whether a raw object must be in a part."""
        name = key.removeprefix(self.raw)
        hidden = any(step.startswith(("_", ".")) for step in name.split("/"))
        placeholder = size == 0 and (name == "" or name.endswith("/"))
        return not hidden and not placeholder and name != self.ready_object

    def is_part_like(self, key: str) -> bool:
        """Whether a key is named like a part."""
        return key.startswith(self.aggregated + "part-")


def encoding_of(key: str) -> str:
    """Return the ending that keeps an object apart from plain ones, in lower case; "" for plain objects."""
    name = key.rpartition("/")[2].lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def read_gzip_json(stored: ServerObject, formats: Sequence[int]) -> dict[str, Any] | None:
    """Return a record of one of these formats, None if it can't be read."""
    try:
        body: dict[str, Any] = json.loads(gzip.decompress(stored.body))
        return body if body["format"] in formats else None
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError):
        return None


def read_manifest(body: bytes) -> Manifest | None:
    """Return a manifest, None if it can't be read."""
    try:
        first, *lines = gzip.decompress(body).decode().removesuffix("\n").split("\n")
        header = json.loads(first)
        if header["format"] != 1:
            return None
        rows = [json.loads(line) for line in lines]
        return Manifest(
            header,
            [
                Row(row["key"], row["part"], row["offset"], row["length"], row["etag"], row["crc64nvme"])
                for row in rows
            ],
        )
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError):
        return None
