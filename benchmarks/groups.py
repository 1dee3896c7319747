"""Measures hours of 1,000 groups of 30 objects next to one group of 30,000, and one hour of a day's folder.

Runs with one group and with many alternate, so that other work on the machine meets both.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.planner import DELAY_SECONDS, MAX_RSS_MIB, SIZES
from benchmarks.results import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PART_BYTES, PROJECT, Settings
from benchmarks.steps import BUCKET, StepResult, SyntheticServer, out_prefix, scratch, step
from benchmarks.synthetic import HOURS_PER_DAY
from benchmarks.table import as_table, write_json

OBJECTS_PER_GROUP = 30
MAX_PLAN_CPU_SECONDS = 3.0
MAX_PLAN_SECONDS = 30.0
MAX_PACK_RATIO = 1.1
# The pack step moves bytes, so it packs a part of the hour; its cost per object does not depend on their number.
PACKED_SHARE = 10

SERVICES = "raw/app/"
SERVICE_LAYOUT = "{service}/%Y%m%d/%H/"
DAY = "raw/lb/2026/11/23/"
DAY_LAYOUT = "raw/lb/%Y/%m/%d/app.{balancer}_%Y%m%dT%H"
BALANCER_LAYOUT = "{balancer}/%Y%m%d/%H/"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Hour:
    """An hour on its own server.

    :param options: of all steps
    """

    server: SyntheticServer
    folder: Path
    objects: int
    groups: int
    options: Mapping[str, Any]

    def step(self, name: str, **options: Any) -> StepResult:
        return step(name, self.server, self.folder, PART_BYTES, CONNECTIONS, **self.options, **options)

    def row(self, name: str, result: StepResult) -> Row:
        requests = result.own.get("requests", {})
        cpu_seconds = float(result.own["cpu_seconds"])
        print(f"{name}, {self.groups:,} groups: {cpu_seconds:.2f} s of CPU", file=sys.stderr, flush=True)
        return {
            "step": name,
            "objects": self.objects,
            "groups": self.groups,
            "seconds": round(float(result.own["seconds"]), 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "cpu_ms_per_object": round(cpu_seconds * 1000 / self.objects, 3),
            "peak_rss_mib": round(result.peak_rss_mib),
            "lists": requests.get("ListObjectsV2", 0),
            "requests": sum(requests.values()),
        }


def groups(settings: Settings) -> int:
    """Run all measurements and return the exit code."""
    print(f"{settings.objects:,} objects in groups of {OBJECTS_PER_GROUP}; {machine()}\n", flush=True)
    many = max(1, settings.objects // OBJECTS_PER_GROUP)
    rows: list[Row] = []
    with scratch() as folder:
        for number in range(settings.rounds):
            for count in (1, many) if number % 2 else (many, 1):
                rows += _roll_up(folder, settings.objects, count)
                rows += _pack(folder, settings.objects // PACKED_SHARE, max(1, count // PACKED_SHARE))
        rows += _plan_late(folder, settings.objects, many)
        rows += _plan_day(folder, settings.objects * HOURS_PER_DAY)
    table = _medians(rows)
    print(as_table(table))
    print()
    _verdicts(table)
    target = BUILD / "bench-groups.json"
    write_json(target, table)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0


def _roll_up(folder: Path, objects: int, count: int) -> list[Row]:
    """All steps on tiny objects, after an earlier hour of the same groups; and planning of the complete hour."""
    with _server(folder, objects, count, (1_000,)) as server:
        hour = _service_hour(server, folder, objects, count)
        _write_earlier_hour(server, count)
        planned = hour.step("plan")
        shards = next(iter(planned.own["shards"].values()))
        results = {
            "plan": planned,
            "pack tiny": hour.step("pack", shards=shards),
            "validate": hour.step("validate"),
            "complete": hour.step("complete"),
            "plan again": hour.step("plan"),
        }
        return [hour.row(name, result) for name, result in results.items()]


def _pack(folder: Path, objects: int, count: int) -> list[Row]:
    """The pack step on objects of usual size."""
    with _server(folder, objects, count, SIZES) as server:
        hour = _service_hour(server, folder, objects, count)
        shards = next(iter(hour.step("plan").own["shards"].values()))
        return [hour.row("pack", hour.step("pack", shards=shards))]


def _plan_late(folder: Path, objects: int, count: int) -> list[Row]:
    """Planning with late answers, of the stream's first hour and of a later one."""
    rows = []
    for name, is_first in (("plan, late answers, first hour", True), ("plan, late answers", False)):
        with _server(folder, objects, count, (1_000,), DELAY_SECONDS) as server:
            hour = _service_hour(server, folder, objects, count)
            if not is_first:
                _write_earlier_hour(server, count)
            rows.append(hour.row(name, hour.step("plan")))
    return rows


def _plan_day(folder: Path, objects: int) -> list[Row]:
    """Planning and validation of one hour in the folder of a day."""
    place = folder / "day"
    with SyntheticServer(place, objects, (1_000,), 0.0, prefix=DAY, day=True) as server:
        options = {"stream_prefix": DAY_LAYOUT, "groups_layout": BALANCER_LAYOUT}
        hour = _Hour(server, place, objects, 1, options)
        planned = hour.step("plan")
        shards = next(iter(planned.own["shards"].values()))
        hour.step("pack", shards=shards)
        return [
            hour.row("plan, day's folder", planned),
            hour.row("validate, day's folder", hour.step("validate")),
        ]


def _server(
    folder: Path, objects: int, count: int, sizes: Sequence[int], delay_seconds: float = 0.0
) -> SyntheticServer:
    place = folder / f"groups-{count}-{len(sizes)}-{delay_seconds}"
    return SyntheticServer(place, objects, sizes, delay_seconds, prefix=SERVICES, groups=count)


def _service_hour(server: SyntheticServer, folder: Path, objects: int, count: int) -> _Hour:
    options = {"stream_prefix": SERVICES + SERVICE_LAYOUT, "groups_layout": SERVICE_LAYOUT}
    return _Hour(server, folder, objects, count, options)


def _write_earlier_hour(server: SyntheticServer, count: int) -> None:
    """Write one object for each group, so that the folders of all groups exist."""
    connection = HTTPConnection("127.0.0.1", server.port)
    for number in range(count):
        key = f"{out_prefix(CONNECTIONS)}service-{number:04d}/20261123/07/_SUCCESS"
        connection.request("PUT", f"/{BUCKET}/{key}", b"{}")
        connection.getresponse().read()
    connection.close()


def _medians(rows: Sequence[Row]) -> list[Row]:
    """One row for each step and number of groups, with the medians of its rounds."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["step"], row["groups"]), []).append(row)
    return [
        {
            name: value if isinstance(value, str) else round(median(row[name] for row in same), 3)
            for name, value in same[0].items()
        }
        for _, same in sorted(found.items())
    ]


def _verdicts(table: Sequence[Row]) -> None:
    by_step: dict[str, list[Row]] = {}
    for row in table:
        by_step.setdefault(row["step"], []).append(row)
    for name, rows in by_step.items():
        if len(rows) == 2:
            one, many = rows
            ratio = many["cpu_ms_per_object"] / one["cpu_ms_per_object"]
            if name == "pack":
                verdict("CPU per object of pack / one group's", ratio, MAX_PACK_RATIO)
            else:
                print(f"  CPU per object of {name} / one group's: {ratio:.2f}")
    verdict("CPU seconds of plan", by_step["plan"][-1]["cpu_seconds"], MAX_PLAN_CPU_SECONDS)
    for name in ("plan, late answers, first hour", "plan, late answers"):
        verdict(f"seconds of {name}", by_step[name][0]["seconds"], MAX_PLAN_SECONDS)
    for name in ("plan, day's folder", "validate, day's folder"):
        verdict(f"peak RSS of {name}, MiB", by_step[name][0]["peak_rss_mib"], MAX_RSS_MIB)
