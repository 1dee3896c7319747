"""The results of the comparison: table, verdicts on the goals, rows of JSON."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil

from benchmarks import peers
from benchmarks.settings import CONNECTIONS

MEGABYTE = 1e6
MEBIBYTE = 1024**2


@dataclass(frozen=True, slots=True)
class Measurement:
    """One round of one program."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_sockets: int

    def __add__(self, other: "Measurement") -> "Measurement":
        """Combine two programs that ran one after the other."""
        return Measurement(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_rss_bytes, other.peak_rss_bytes),
            max(self.peak_sockets, other.peak_sockets),
        )

    def __str__(self) -> str:
        return (
            f"{self.seconds:.2f} s, {self.cpu_seconds:.2f} s CPU, {self.peak_rss_bytes / MEBIBYTE:.0f} MiB, "
            f"{self.peak_sockets} sockets"
        )


@dataclass(slots=True)
class Outcome:
    """All rounds of one program, or the reason why there are none."""

    rounds: list[Measurement] = field(default_factory=list)
    missing: str | None = None
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The row of a program: medians of its rounds, and their spread."""

    name: str
    what: str
    tls: bool
    objects: int
    bytes: int
    outcome: Outcome

    @property
    def measured(self) -> bool:
        """Whether there is a round."""
        return bool(self.outcome.rounds)

    @property
    def seconds(self) -> float:
        """Median of the wall time."""
        return median(each.seconds for each in self.outcome.rounds)

    @property
    def cpu_ms_per_object(self) -> float:
        """Median of the client's CPU time per object, in milliseconds."""
        return median(self._cpu())

    @property
    def peak_rss_mib(self) -> float:
        """Maximum of all rounds."""
        return max(each.peak_rss_bytes for each in self.outcome.rounds) / MEBIBYTE

    @property
    def peak_sockets(self) -> int:
        """Maximum of all rounds."""
        return max(each.peak_sockets for each in self.outcome.rounds)

    def _cpu(self) -> list[float]:
        return [each.cpu_seconds * 1000 / self.objects for each in self.outcome.rounds]

    def spread(self, of: Callable[[Measurement], float]) -> tuple[float, float]:
        """Return the minimum and maximum over the rounds."""
        values = [of(each) for each in self.outcome.rounds]
        return min(values), max(values)

    def as_json(self) -> Mapping[str, Any]:
        """Return the row of ``bench.json``; without rounds it has nulls and the reason."""
        head = {
            "name": self.name,
            "what": self.what,
            "tls": self.tls,
            "objects": self.objects,
            "bytes": self.bytes,
        }
        if not self.measured:
            figures = (
                "seconds",
                "objects_per_s",
                "mb_per_s",
                "cpu_ms_per_object",
                "peak_rss_mb",
                "peak_sockets",
            )
            why = {"missing": self.outcome.missing, "failed": self.outcome.broken}
            return {**head, **dict.fromkeys(figures), **{key: text for key, text in why.items() if text}}
        cpu = self._cpu()
        return {
            **head,
            "seconds": round(self.seconds, 3),
            "objects_per_s": round(self.objects / self.seconds, 1),
            "mb_per_s": round(self.bytes / MEGABYTE / self.seconds, 1),
            "cpu_ms_per_object": round(self.cpu_ms_per_object, 4),
            "peak_rss_mb": round(self.peak_rss_mib * MEBIBYTE / MEGABYTE, 1),
            "peak_sockets": self.peak_sockets,
            "rounds": len(cpu),
            "spread": {
                "seconds": [round(value, 3) for value in self.spread(lambda each: each.seconds)],
                "cpu_ms_per_object": [round(min(cpu), 4), round(max(cpu), 4)],
            },
            **({"failed": self.outcome.broken} if self.outcome.broken else {}),
        }


def machine() -> str:
    """Return the machine's size and versions, without its name."""
    memory = psutil.virtual_memory().total / 1024**3
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} at the start"
    )


def print_table(rows: Sequence[Row]) -> None:
    """Print medians, with the range of time and CPU, and the CPU relative to this project's."""
    titles = (
        "",
        "s",
        "(min-max)",
        "obj/s",
        "MB/s",
        "CPU ms/obj",
        "(min-max)",
        "x ours",
        "RSS MiB",
        "sockets",
    )
    for secure in sorted({row.tls for row in rows}):
        ours = _find(rows, peers.OURS, secure)
        print(f"\n{'TLS' if secure else 'plain HTTP'}")
        lines: list[tuple[str, ...]] = [titles]
        notes = []
        for row in (row for row in rows if row.tls == secure):
            if row.measured:
                lines.append(_cells(row, ours))
            for kind, why in (("missing", row.outcome.missing), ("failed", row.outcome.broken)):
                if why:
                    notes.append(f"{row.name}: {kind}: {why}")
        widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
        for line in lines:
            first, *others = (
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            print("  ".join((first, *others)))
        for note in notes:
            print(note)


def _cells(row: Row, ours: Row | None) -> tuple[str, ...]:
    fastest, slowest = row.spread(lambda each: each.seconds)
    lowest_cpu, highest_cpu = row.spread(lambda each: each.cpu_seconds * 1000 / row.objects)
    ratio = f"{row.cpu_ms_per_object / ours.cpu_ms_per_object:.2f}" if ours else ""
    return (
        row.name, f"{row.seconds:.2f}", f"{fastest:.2f}-{slowest:.2f}", f"{row.objects / row.seconds:.0f}",
        f"{row.bytes / MEGABYTE / row.seconds:.0f}", f"{row.cpu_ms_per_object:.3f}",
        f"{lowest_cpu:.3f}-{highest_cpu:.3f}", ratio, f"{row.peak_rss_mib:.0f}", str(row.peak_sockets),
    )  # fmt: skip


def _find(rows: Sequence[Row], name: str, secure: bool) -> Row | None:
    return next((row for row in rows if row.name == name and row.tls == secure and row.measured), None)


def print_verdicts(rows: Sequence[Row]) -> None:
    """Print this project's figures and their goals."""
    for secure in sorted({row.tls for row in rows}):
        ours = _find(rows, peers.OURS, secure)
        if ours is None:
            continue
        print(f"\ngoals, {'TLS' if secure else 'plain HTTP'}")
        for name, maximum in ((peers.S5CMD, 1 / 4), (peers.BOTO3, 1 / 5)):
            if other := _find(rows, name, secure):
                verdict(
                    f"CPU per object / {name}'s", ours.cpu_ms_per_object / other.cpu_ms_per_object, maximum
                )
        floors = (_find(rows, name, secure) for name in (peers.FLOOR_GET_PUT, peers.CRT_GET_PUT))
        floor = min((row for row in floors if row), key=lambda row: row.seconds, default=None)
        # The server on the same cores may be the limit: then being near the floor is enough.
        near = floor is not None and ours.seconds <= 1.15 * floor.seconds
        for name, minimum in (
            (peers.S5CMD, 2.5), (peers.BOTO3, 2.0), (peers.GO_UNLIMITED, 2.0), (peers.GO_250, 2.0),
        ):  # fmt: skip
            if other := _find(rows, name, secure):
                verdict(
                    f"times as fast as {name}",
                    other.seconds / ours.seconds,
                    minimum,
                    at_least=True,
                    near_floor=near,
                )
        if floor:
            verdict(f"wall time / {floor.name}'s", ours.seconds / floor.seconds, 1.15)
        verdict("peak RSS, MiB", ours.peak_rss_mib, 256)
        verdict("peak sockets", ours.peak_sockets, CONNECTIONS)


def verdict(what: str, value: float, bound: float, at_least: bool = False, near_floor: bool = False) -> None:
    """Print a figure and its bound.

    :param at_least: whether the bound is a minimum; by default it is a maximum
    :param near_floor: whether the wall time is near the floor, which excuses a missed bound
    """
    good = value >= bound if at_least else value <= bound
    word = "reached" if good else "not reached, but near the floor" if near_floor else "NOT REACHED"
    print(f"  {what}: {value:.2f} (goal: at {'least' if at_least else 'most'} {bound:.2f}): {word}")
