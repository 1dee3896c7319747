"""Reads a completion marker: of an hour, or of one of its groups."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dev.s3_client import S3Client
from dev.stack.bucket import read_object


class BadMarkerError(Exception):
    """A completion marker that is not JSON or lacks a field."""


@dataclass(frozen=True)
class Marker:
    """The fields of a completion marker that the tables show or check.

    :param bytes_stored: size of the parts; less than ``bytes_out`` if they are compressed
    :param bytes_unpacked: size of the raw objects, of recompressed ones that of the content
    :param group: the captures, if it is the marker of a group
    :param group_objects: number of objects by group, if it is the marker of an hour with groups
    """

    objects: int
    bytes_in: int
    separator_bytes: int
    bytes_out: int
    parts: int
    verified_parts: Mapping[str, int]
    verified_objects: Mapping[str, int]
    max_connections: int
    peak_sockets: int
    group: Mapping[str, str]
    group_objects: Mapping[str, int]
    bytes_stored: int
    bytes_unpacked: int

    def problems(self, objects: int, size_bytes: int) -> Iterator[str]:
        """Return what differs from the raw objects that were made, a sentence for each number."""
        for actual, expected, what in (
            (self.objects, objects, "objects in"),
            (self.bytes_in, size_bytes, "bytes in"),
            (self.bytes_out, self.bytes_unpacked + self.separator_bytes, "bytes out"),
            (sum(self.verified_parts.values()), self.parts, "verified parts"),
            (sum(self.verified_objects.values()), self.objects, "verified objects"),
        ):
            if actual != expected:
                yield f"_SUCCESS has {actual:,} {what}, expected {expected:,}"


def read_marker(client: S3Client, prefix: str) -> Marker | None:
    """Return the completion marker below a prefix, or None if there is none.

    :param prefix: of an hour or of a group of an hour
    :raises BadMarkerError: if the marker is not JSON or lacks a field
    """
    key = f"{prefix}_SUCCESS"
    body = read_object(client, key)
    if body is None:
        return None
    try:
        content: dict[str, Any] = json.loads(body)
        return Marker(
            objects=content["objects"],
            bytes_in=content["bytes_in"],
            separator_bytes=content["separator_bytes"],
            bytes_out=content["bytes_out"],
            parts=content["parts"],
            verified_parts=content["verified"]["parts"],
            verified_objects=content["verified"]["objects"],
            max_connections=content["max_connections"],
            peak_sockets=content["peak"]["sockets"],
            bytes_stored=content.get("bytes_stored", content["bytes_out"]),
            bytes_unpacked=content.get("bytes_unpacked", content["bytes_in"]),
            group=content.get("group", {}),
            group_objects={
                "/".join(group["captures"].values()): group["objects"] for group in content.get("groups", ())
            },
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadMarkerError(f"{key} is not a completion marker of format 1: {error!r}") from error
