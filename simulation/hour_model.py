"""The hour as the invariants see it: its keys, what producers wrote, and its records.

It shares no code with the pipeline.
"""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

from simulation.server import ServerObject

# Formats whose objects never share a part with plain ones.
ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".snappy", ".zz", ".br", ".z", ".tgz")
_OLD_NAME = re.compile(r"part-\d+\.log.*")
# A gzip member without a time that holds just a newline, in a block with fixed codes (RFC 1951, 3.2.6).
_GZIP_NEWLINE = bytes.fromhex("1f8b0800000000000003e302009306d73201000000")
# The size of the newline in each encoding that the simulation has.
_NEWLINE_BYTES = {"": 1, ".gz": 21, ".zst": 10}
# What a frame of the fake codec begins with: magic bytes, version, level and size of the content.
FRAME_MAGIC = b"\xf5Z"
FRAME_HEADER = struct.Struct(">2sBBI")
DEFAULT_LEVEL = 3
# Formats of manifests without and with compressed parts.
MANIFEST_FORMATS = (1, 2)


class Packing(NamedTuple):
    """What decides the bytes of compressed parts.

    :param compression: zstd, gzip, or empty for none
    :param level: None for the default
    :param version: of the library
    :param recompress: whether compressed raw objects are decompressed first
    """

    compression: str
    level: int | None
    version: int
    recompress: bool = False


class PartFrame(NamedTuple):
    """A frame of the fake codec in a part.

    :param offset: in the part
    :param length: in the part
    """

    offset: int
    length: int
    content: bytes
    level: int
    version: int


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
    # Offset and length of its frame in the part, and the bytes added behind it; None if it is not compressed.
    frame: tuple[int, int] | None = None
    separator: int | None = None
    # Length and CRC of its content, if the part has that instead of its bytes.
    content: tuple[int, str] | None = None
    damaged: bool = False

    @property
    def held(self) -> int:
        """How many bytes the part has of it."""
        return self.length if self.content is None else self.content[0]


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


@dataclass(frozen=True, slots=True)
class Place:
    """A prefix of raw objects of the hour, all of one group.

    :param folder: of the group's parts, below the prefix of the names of parts; empty without groups
    :param captures: values that make the group, by name
    """

    raw: str
    folder: str
    captures: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a completion marker is for: the hour, or one of its groups.

    :param folder: of the group; None for the hour
    :param marker: its key
    :param manifest: its key
    :param parts: prefix of the names of parts in the manifest
    """

    folder: str | None
    marker: str
    manifest: str
    parts: str


@dataclass(slots=True)
class Hour:
    """The prefixes of the hour, and the stream's settings that affect its parts.

    :param places: of the raw objects
    :param base: prefix of the names of parts
    :param home: prefix of the hour's records
    :param raw_base: what the files of plans leave out of raw keys
    :param ready_object: name of the producer's ready object, if there is one
    :param packing: how the next run compresses
    :param frame_bytes: the largest content of a frame of several raw objects
    :param ratio: how many times as large as itself the content of a recompressed object is assumed to be
    :param largest_content: the largest content of a recompressed object
    :param copied_above: the largest raw object that no run copies to a part of its own
    :param include: patterns, one of which the name of a raw object must match; empty for any name
    :param exclude: patterns that it must not match
    :param history: the versions of each raw object, oldest first
    """

    places: Sequence[Place]
    base: str
    home: str
    raw_base: str
    part_size: int
    ensure_newline: bool
    storage_class: str | None
    ready_object: str | None
    packing: Packing
    frame_bytes: int
    ratio: int
    largest_content: int
    copied_above: int
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    history: dict[str, list[Version]] = field(default_factory=dict)
    expired: set[tuple[str, str]] = field(default_factory=set)
    """Key and ETag of the raw objects that have expired as announced."""
    announced: dict[str, set[str]] = field(default_factory=dict)
    """Keys of the raw objects that were announced, by the names of their parts, which stay as they are."""
    drops_vanished: bool = False
    """Whether a run may drop raw objects that have vanished."""
    packing_since: int = 0
    """The step since which parts are written as ``packing`` says; reruns keep older parts."""
    folders: dict[str, Mapping[str, str]] = field(init=False)
    """The captures of each group, by folder; one empty folder without groups."""
    records: frozenset[str] = field(init=False)
    """The keys of all completion markers and manifests."""
    _raw: tuple[str, ...] = field(init=False)
    _parts: tuple[str, ...] = field(init=False)
    _prefixes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.folders = {place.folder: place.captures for place in self.places}
        self._raw = tuple(place.raw for place in self.places)
        self._parts = tuple(f"{self.base}{folder}part-" for folder in self.folders)
        self._prefixes = (self.home, *(self.base + folder for folder in self.folders))
        scopes = [self.scope(folder or None) for folder in (None, *self.folders)]
        self.records = frozenset(key for scope in scopes for key in (scope.marker, scope.manifest))

    @property
    def has_groups(self) -> bool:
        """Whether the parts are divided into groups."""
        return "" not in self.folders

    def scope(self, folder: str | None = None) -> Scope:
        """The hour, or the group with this folder."""
        place = self.home if folder is None else self.base + folder
        parts = self.base if folder is None else place
        return Scope(folder, f"{place}_SUCCESS", f"{place}_manifest.jsonl.gz", parts)

    @property
    def marker(self) -> str:
        """The key of the completion marker."""
        return self.home + "_SUCCESS"

    @property
    def manifest(self) -> str:
        """The key of the manifest."""
        return self.home + "_manifest.jsonl.gz"

    @property
    def expiry_record(self) -> str:
        """The key of the record of expired raw objects."""
        return self.home + "_expired.json"

    @property
    def work(self) -> str:
        """The prefix of plans, receipts and the claim."""
        return self.home + "_rollup/"

    @property
    def claim(self) -> str:
        """The key of the claim."""
        return self.work + "claim.json"

    @property
    def prefixes(self) -> Sequence[str]:
        """Of the hour's records, and of the parts of each group."""
        return self._prefixes

    def is_raw(self, key: str) -> bool:
        """Whether a key of the raw objects' store is in the hour."""
        return key.startswith(self._raw)

    def is_aggregated(self, key: str) -> bool:
        """Whether a key is that of a part or of a record of the hour, or below their prefixes."""
        return key.startswith(self._prefixes)

    def place_of(self, key: str) -> Place:
        """The place of a raw object."""
        return next(place for place in self.places if key.startswith(place.raw))

    def folder_of(self, key: str) -> str:
        """The folder of the group of an aggregated key; empty for the hour's records and without groups."""
        return next((folder for folder in self.folders if key.startswith(self.base + folder)), "")

    def is_input(self, key: str, size: int) -> bool:
        """Whether a raw object must be in a part."""
        name = key.removeprefix(self.place_of(key).raw)
        hidden = any(step.startswith(("_", ".")) for step in name.split("/"))
        placeholder = size == 0 and (name == "" or name.endswith("/"))
        return not hidden and not placeholder and name != self.ready_object and not self._is_excluded(name)

    def _is_excluded(self, name: str) -> bool:
        included = not self.include or any(fnmatchcase(name, pattern) for pattern in self.include)
        return not included or any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def newline_in_part(self, part: str, key: str, body: bytes) -> bytes:
        """The newline that follows a raw object in a part that is not a copy; empty if none does.

        :param part: name of the part
        """
        # The older version added newlines to plain objects only; its names have no digits of a fingerprint.
        is_of_old_version = _OLD_NAME.fullmatch(part.rpartition("/")[2]) is not None
        if not self.ensure_newline or (is_of_old_version and encoding_of(key)):
            return b""
        return newline_after(key, body)

    def held_in_frames(self, key: str, body: bytes) -> tuple[bytes, bytes]:
        """What a compressed part has of a raw object, and the newline that follows it: none of a damaged one."""
        held = (unpacked(key, body) or b"") if encoding_of(key) else body
        return held, b"\n" if self.ensure_newline and held and not held.endswith(b"\n") else b""

    def forms_of(self, version: Version) -> Sequence[bytes]:
        """The bytes of which parts may have either: those of a raw object, and its content."""
        # Parts that were compressed before may stay when nothing is compressed any more.
        content = unpacked(version.key, version.body) if self.frame_bytes else None
        return (version.body, content) if content else (version.body,)

    def is_part_like(self, key: str) -> bool:
        """Whether a key is named like a part."""
        return key.startswith(self._parts)


def encoding_of(key: str) -> str:
    """Return the ending that keeps an object apart from plain ones, in lower case; "" for plain objects."""
    name = key.rpartition("/")[2].lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def unpacked(key: str, body: bytes) -> bytes | None:
    """The content of a compressed raw object, None if it is damaged; only gzip objects are intact."""
    if encoding_of(key) != ".gz":
        return None
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error):
        return None


def newline_after(key: str, body: bytes) -> bytes:
    """What ``ensure_newline`` adds after a raw object; of the compressed ones, only gzip objects are intact."""
    if encoding_of(key) == "":
        return b"\n" if body and not body.endswith(b"\n") else b""
    content = unpacked(key, body)
    return _GZIP_NEWLINE if content and not content.endswith(b"\n") else b""


def is_too_large(key: str, size: int, most: int) -> bool:
    """Whether a raw object of this size is copied where a part takes this many bytes, its newline included."""
    return size + _NEWLINE_BYTES.get(encoding_of(key), 0) > most


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
        if header["format"] not in MANIFEST_FORMATS:
            return None
        return Manifest(header, [_row(json.loads(line)) for line in lines])
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError):
        return None


def _row(row: Mapping[str, Any]) -> Row:
    frame = (row["frame_offset"], row["frame_length"]) if "frame_offset" in row else None
    content = (row["content_length"], row["content_crc64nvme"]) if "content_length" in row else None
    return Row(
        row["key"], row["part"], row["offset"], row["length"], row["etag"], row["crc64nvme"],
        frame, row.get("separator"), content, row.get("damaged", False),
    )  # fmt: skip


def split_frames(body: bytes) -> tuple[list[PartFrame], bytes]:
    """The frames of a compressed part, and what follows the last one.

    :raises ValueError: if a frame is damaged
    """
    frames: list[PartFrame] = []
    position = 0
    while body.startswith(FRAME_MAGIC, position):
        decompressor = zlib.decompressobj()
        try:
            _, version, level, size = FRAME_HEADER.unpack_from(body, position)
            content = decompressor.decompress(body[position + FRAME_HEADER.size :])
        except (struct.error, zlib.error) as error:
            raise ValueError(f"the frame at {position} cannot be decompressed: {error}") from None
        if not decompressor.eof or len(content) != size:
            raise ValueError(f"the frame at {position} does not have {size} bytes of content")
        end = len(body) - len(decompressor.unused_data)
        frames.append(PartFrame(position, end - position, content, level, version))
        position = end
    return frames, body[position:]


@lru_cache(maxsize=256)
def content_of(body: bytes) -> bytes:
    """The raw objects in a part, end to end; of a damaged compressed part no bytes."""
    if not body.startswith(FRAME_MAGIC):
        return body
    try:
        frames, _ = split_frames(body)
    except ValueError:
        return b""
    return b"".join(frame.content for frame in frames)


def seek_table(frames: Sequence[PartFrame]) -> bytes:
    """What follows the frames of a zstd part: the seek table of the seekable format."""
    entries = b"".join(struct.pack("<II", frame.length, len(frame.content)) for frame in frames)
    footer = struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(entries) + len(footer)) + entries + footer
