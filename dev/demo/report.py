"""The table of the hours: what each says of itself in `_SUCCESS`, held against what was made for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dev.made_logs.dataset import AGGREGATED_PREFIX, hour_folder
from dev.made_logs.log_files import MadeHour
from dev.stack.bucket import S3Client, read_object

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
    """A completion marker that is not what the design says it is."""


@dataclass(frozen=True)
class Marker:
    """The part of a completion marker that the table shows."""

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
    """An hour of the table: what was made for it, how its run ended, and its marker, if there is one."""

    made: MadeHour
    run_state: str
    seconds: float | None
    marker: Marker | None

    def problems(self) -> list[str]:
        """Return what is wrong with the hour, each in a sentence; nothing for an hour as it should be."""
        name = f"{self.made.hour:%Y-%m-%d %H:%M} UTC"
        marker = self.marker
        if self.run_state != "success":
            return [f"{name}: its Dag run ended as {self.run_state}"]
        if marker is None:
            return [f"{name}: its Dag run succeeded, but there is no _SUCCESS"]
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
                found.append(f"{name}: _SUCCESS says {actual:,} {what}, and it should be {expected:,}")
        if marker.peak_sockets > marker.max_connections:
            found.append(f"{name}: {marker.peak_sockets} sockets, above the cap of {marker.max_connections}")
        return found


def read_marker(client: S3Client, hour: datetime) -> Marker | None:
    """Return an hour's completion marker as S3 stores it, or None when the hour isn't complete.

    :raises BadMarkerError: when it is there, but isn't JSON or lacks a field.
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
    """Return the table of the hours, numbers to the right."""
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
        f"{'NO' if result.problems() else 'yes'}: {_means(marker)}",
    )


def _means(marker: Marker) -> str:
    """Say by what means it was verified: `parts 6 read-back; objects 300 etag-md5`."""
    kinds = (("parts", marker.verified_parts), ("objects", marker.verified_objects))
    return "; ".join(
        f"{kind} " + (" + ".join(f"{count:,} {means}" for means, count in counts.items() if count) or "0")
        for kind, counts in kinds
    )
