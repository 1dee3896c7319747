"""The table of the groups: the marker of each, and its parts compared byte by byte with the made raw objects."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import zstandard

from dev.demo.marker import Marker, read_marker
from dev.demo.table import draw
from dev.made_logs.log_files import MadeGroup
from dev.s3_client import S3Client
from dev.stack.bucket import read_object
from dev.stack.paths import BUCKET

_HEADINGS = ("hour (UTC)", "group", "objects", "bytes in", "bytes out", "parts", "same bytes as raw")
_CHUNK_BYTES = 1024 * 1024
_GZIP = ".gz"


@dataclass(frozen=True)
class GroupResult:
    """A row of the table: the made group, its completion marker, and what was found in its folder.

    :param marker: None if there is none
    :param parts: number of parts in the folder
    :param same_bytes: whether the parts hold the raw objects end to end, in key order, and nothing else
    """

    hour: datetime
    made: MadeGroup
    marker: Marker | None
    parts: int
    same_bytes: bool

    def problems(self) -> list[str]:
        """Return the problems of the group, one sentence each; an empty list if it is as expected."""
        name = f"{self.hour:%Y-%m-%d %H:%M} UTC, {self.made.name}"
        if self.marker is None:
            return [f"{name}: there is no {self.made.aggregated}_SUCCESS"]
        found = [f"{name}: {text}" for text in self.marker.problems(self.made.objects, self.made.bytes)]
        if self.marker.group != self.made.captures:
            found.append(f"{name}: _SUCCESS is of the group {self.marker.group}")
        if self.marker.parts != self.parts:
            found.append(f"{name}: _SUCCESS has {self.marker.parts} parts, the folder has {self.parts}")
        if not self.same_bytes:
            found.append(f"{name}: the parts do not hold the bytes of the raw objects")
        return found


def read_group(client: S3Client, bucket: Path, hour: datetime, made: MadeGroup) -> GroupResult:
    """Read the marker and the parts of a group, and compare them with the files of its raw objects.

    :param bucket: the directory in which the raw objects were made
    :raises BadMarkerError: if the marker is not JSON or lacks a field
    """
    compressions = _compressions(client, made.aggregated)
    parts = [key for key in _keys(client, made.aggregated) if _name(key).startswith("part-")]
    return GroupResult(
        hour=hour,
        made=made,
        marker=read_marker(client, made.aggregated),
        parts=len(parts),
        same_bytes=_digests(_content(client, key, compressions.get(_name(key), "")) for key in parts)
        == _digests((path.name, _read_file(path)) for path in _raw_files(bucket, made.raw)),
    )


def render(results: Sequence[GroupResult]) -> str:
    """Return the table of the groups."""
    return draw([_HEADINGS, *map(_cells, results)], left=(0, 1, len(_HEADINGS) - 1))


def _cells(result: GroupResult) -> tuple[str, ...]:
    hour, name = f"{result.hour:%Y-%m-%d %H:%M}", result.made.name
    marker = result.marker
    if marker is None:
        return (hour, name, "-", "-", "-", "-", "NO: no _SUCCESS")
    return (
        hour,
        name,
        f"{marker.objects:,}",
        f"{marker.bytes_in:,}",
        f"{marker.bytes_out:,}",
        f"{marker.parts:,}",
        "NO" if result.problems() else "yes",
    )


def _digests(contents: Iterable[tuple[str, Iterator[bytes]]]) -> Mapping[bool, str]:
    """Return the SHA-256 of all contents end to end, of names of gzip files and of others."""
    digests = {True: hashlib.sha256(), False: hashlib.sha256()}
    for name, pieces in contents:
        for piece in pieces:
            digests[name.endswith(_GZIP)].update(piece)
    return {is_gzip: digest.hexdigest() for is_gzip, digest in digests.items()}


def _raw_files(bucket: Path, prefix: str) -> list[Path]:
    """Return the files whose keys begin with a prefix, in the order of their keys."""
    folder = bucket / prefix[: prefix.rfind("/") + 1]
    keys = {path.relative_to(bucket).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return [keys[key] for key in sorted(keys, key=str.encode) if key.startswith(prefix)]


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


def _read_object(client: S3Client, key: str) -> Iterator[bytes]:
    body = client.get_object(Bucket=BUCKET, Key=key)["Body"]
    while piece := body.read(_CHUNK_BYTES):
        yield piece


def _compressions(client: S3Client, prefix: str) -> Mapping[str, str]:
    """Return the compression of each compressed part, by its name, as the manifest states it."""
    body = read_object(client, f"{prefix}_manifest.jsonl.gz")
    if body is None:
        return {}
    header = json.loads(gzip.decompress(body).partition(b"\n")[0])
    return {entry["name"]: entry["compression"] for entry in header["parts_table"] if "compression" in entry}


def _content(client: S3Client, key: str, compression: str) -> tuple[str, Iterator[bytes]]:
    """Return the name of a part's content and its bytes, decompressed as any reader of the format does."""
    if not compression:
        return key, _read_object(client, key)
    body = b"".join(_read_object(client, key))
    if compression == "gzip":
        return key.removesuffix(_GZIP), iter((gzip.decompress(body),))
    reader = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True)
    return key, iter((reader.read(),))


def _keys(client: S3Client, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for item in page.get("Contents", ()):
            yield item["Key"]


def _name(key: str) -> str:
    return key[key.rfind("/") + 1 :]
