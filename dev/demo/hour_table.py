"""The table of the hours: the completion marker of each, compared with the made raw hour."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dev.made_logs.dataset import AGGREGATED_PREFIX, hour_folder
from dev.made_logs.log_files import MadeHour
from dev.s3_client import S3Client
from dev.stack.bucket import read_object

_HEADINGS: tuple[str, ...] = (
    "hour (UTC)",
    "objects",
    "bytes in",
    "bytes out",
    "parts",
    "seconds",
    "peak sockets / cap",
    "verified",
)


class BadMarkerError(Exception):
    """A completion marker that is not JSON or lacks a field."""


@dataclass(frozen=True)
class Marker:
    """The fields of a completion marker that the table shows."""

    objects: int
    bytes_in: int
    separator_bytes: int
    bytes_out: int
    parts: int
    verified_parts: Mapping[str, int]
    verified_objects: Mapping[str, int]
    max_connections: int
    peak_sockets: int


@dataclass(frozen=True)
class HourResult:
    """A row of the table: the made hour, the end of its run, and its completion marker, if it has one."""

    made: MadeHour
    run_state: str
    seconds: float | None
    marker: Marker | None

    def problems(self) -> list[str]:
        """Return the problems of the hour, one sentence each; an empty list if it is as expected."""
        name = f"{self.made.hour:%Y-%m-%d %H:%M} UTC"
        marker = self.marker
        if self.run_state != "success":
            return [f"{name}: the Dag run ended as {self.run_state}"]
        if marker is None:
            return [f"{name}: the Dag run succeeded, but there is no _SUCCESS"]
        expected_out = marker.bytes_in + marker.separator_bytes
        found = []
        for actual, expected, what in (
            (marker.objects, self.made.objects, "objects in"),
            (marker.bytes_in, self.made.bytes, "bytes in"),
            (marker.bytes_out, expected_out, "bytes out"),
            (sum(marker.verified_parts.values()), marker.parts, "verified parts"),
            (sum(marker.verified_objects.values()), marker.objects, "verified objects"),
        ):
            if actual != expected:
                found.append(f"{name}: _SUCCESS has {actual:,} {what}, expected {expected:,}")
        if marker.peak_sockets > marker.max_connections:
            found.append(f"{name}: {marker.peak_sockets} sockets, above the cap of {marker.max_connections}")
        return found


def read_marker(client: S3Client, hour: datetime) -> Marker | None:
    """Return an hour's completion marker, or None if the hour is not complete.

    :raises BadMarkerError: if the marker is not JSON or lacks a field
    """
    key = f"{AGGREGATED_PREFIX}{hour_folder(hour)}/_SUCCESS"
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
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadMarkerError(f"{key} is not a completion marker of format 1: {error!r}") from error


def render(results: Sequence[HourResult]) -> str:
    """Return the table of the hours, with numbers aligned to the right."""
    rows = [_HEADINGS, *(_cells(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(_HEADINGS) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if index in (0, last) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cells(result: HourResult) -> tuple[str, ...]:
    hour = f"{result.made.hour:%Y-%m-%d %H:%M}"
    seconds = "-" if result.seconds is None else f"{result.seconds:.1f}"
    marker = result.marker
    if marker is None:
        return (hour, "-", "-", "-", "-", seconds, "-", f"NO: run {result.run_state}, no _SUCCESS")
    return (
        hour,
        f"{marker.objects:,}",
        f"{marker.bytes_in:,}",
        f"{marker.bytes_out:,}",
        f"{marker.parts:,}",
        seconds,
        f"{marker.peak_sockets} / {marker.max_connections}",
        f"{'NO' if result.problems() else 'yes'}: {_proofs(marker)}",
    )


def _proofs(marker: Marker) -> str:
    """Return how the hour was proven: `parts 6 read-back; objects 300 etag-md5`."""
    kinds = (("parts", marker.verified_parts), ("objects", marker.verified_objects))
    return "; ".join(
        f"{kind} " + (" + ".join(f"{count:,} {proof}" for proof, count in counts.items() if count) or "0")
        for kind, counts in kinds
    )
