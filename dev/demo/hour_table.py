"""The table of the hours: the completion marker of each, compared with the made raw hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dev.demo.marker import Marker
from dev.demo.table import draw
from dev.made_logs.log_files import MadeHour

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
        found = [f"{name}: {text}" for text in marker.problems(self.made.objects, self.made.bytes)]
        groups = {group.name: group.objects for group in self.made.groups}
        if marker.group_objects != groups:
            found.append(f"{name}: _SUCCESS has the groups {marker.group_objects}, expected {groups}")
        if marker.peak_sockets > marker.max_connections:
            found.append(f"{name}: {marker.peak_sockets} sockets, above the cap of {marker.max_connections}")
        return found


def render(results: Sequence[HourResult]) -> str:
    """Return the table of the hours."""
    return draw([_HEADINGS, *map(_cells, results)], left=(0, len(_HEADINGS) - 1))


def describe_compression(results: Sequence[HourResult]) -> str:
    """Return a sentence about the bytes that compression saves; empty if the parts are not compressed."""
    markers = [result.marker for result in results if result.marker is not None]
    raw, content, stored = (
        sum(getattr(marker, name) for marker in markers) for name in ("bytes_in", "bytes_out", "bytes_stored")
    )
    if not stored or stored == content:
        return ""
    return (
        f"The parts take {stored:,} bytes in the bucket, their content {content / stored:.1f} times and the raw "
        f"objects {raw / stored:.1f} times as much.\n"
    )


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
