"""Checks an hour against the objects in the server's memory, without any code of the pipeline.

A complete hour must be correct, whatever the server did. A failed hour must have changed nothing outside its
aggregated prefix.
"""

import gzip
import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from tests.support.quirks.process import ObjectState

MARKER = "_SUCCESS"
MANIFEST = "_manifest.jsonl.gz"
WORK = "_rollup/"


def find_outside_changes(
    before: Mapping[str, ObjectState], now: Mapping[str, ObjectState], aggregated: str
) -> list[str]:
    """Return what has changed outside the aggregated prefix, a sentence for each object."""

    def describe(state: ObjectState | None) -> str:
        return "missing" if state is None else f"{len(state.body)} bytes"

    return [
        f"{key}: was {describe(before.get(key))}, is {describe(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if not key.startswith(aggregated) and before.get(key) != now.get(key)
    ]


def find_hour_problems(
    now: Mapping[str, ObjectState],
    raw: Mapping[str, bytes],
    aggregated: str,
    foreign: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Return what is wrong with an hour that should be complete, a sentence for each problem.

    :param raw: the raw objects of the hour, by key
    :param foreign: foreign objects below the aggregated prefix, by key
    """
    others = foreign or {}
    found = [
        f"{key}: this foreign object has changed"
        for key, body in others.items()
        if key not in now or now[key].body != body
    ]
    manifest = now.get(f"{aggregated}{MANIFEST}")
    if manifest is None:
        return [*found, f"there is no {MANIFEST}"]
    # Not splitlines(): a key may contain other characters that Python takes for the end of a line.
    header, *lines = [json.loads(line) for line in gzip.decompress(manifest.body).rstrip(b"\n").split(b"\n")]
    found += _find_line_problems(lines, raw)
    found += _find_part_problems(now, lines, header, raw, aggregated, others)
    expected = {
        "objects": len(raw),
        "bytes_in": sum(map(len, raw.values())),
        "parts": len(header["parts_table"]),
        "plan_id": header["plan_id"],
    }
    for source, record in ((MARKER, read_marker(now, aggregated)), (MANIFEST, header)):
        found += [
            f"{source}: {name} is {record.get(name)!r}, it should be {value!r}"
            for name, value in expected.items()
            if record.get(name) != value
        ]
    return found


def read_marker(now: Mapping[str, ObjectState], aggregated: str) -> Mapping[str, Any]:
    """Return the parsed completion marker; empty if there is none."""
    stored = now.get(f"{aggregated}{MARKER}")
    marker: Mapping[str, Any] = json.loads(stored.body) if stored else {}
    return marker


def _find_line_problems(lines: Collection[Mapping[str, Any]], raw: Mapping[str, bytes]) -> list[str]:
    counts = Counter(line["key"] for line in lines)
    return [
        f"{key}: is in {counts[key]} lines of the manifest, it should be in {int(key in raw)}"
        for key in sorted(counts.keys() | raw.keys())
        if counts[key] != (key in raw)
    ]


def _find_part_problems(
    now: Mapping[str, ObjectState],
    lines: Collection[Mapping[str, Any]],
    header: Mapping[str, Any],
    raw: Mapping[str, bytes],
    aggregated: str,
    foreign: Mapping[str, bytes],
) -> list[str]:
    found = []
    names = [part["name"] for part in header["parts_table"]]
    in_lines = {line["part"] for line in lines}
    if len(set(names)) != len(names) or in_lines != set(names):
        found.append(f"{MANIFEST}: its table has the parts {names}, its lines have {sorted(in_lines)}")
    ends: dict[str, int] = {}
    for line in lines:
        name, offset, length = line["part"], line["offset"], line["length"]
        part = now.get(aggregated + name)
        if part is None:
            found.append(f"{name}: is in the manifest and does not exist")
            continue
        end = ends.get(name, 0)
        if offset != end:
            found.append(f"{name}: {line['key']} begins at {offset}, the object before it ends at {end}")
        if part.body[offset : offset + length] != raw.get(line["key"]):
            found.append(f"{name}: the bytes at {offset} are not those of {line['key']}")
        ends[name] = offset + length
    for name, end in ends.items():
        size = len(now[aggregated + name].body)
        if size != end:
            found.append(f"{name}: has {size} bytes, its objects have {end}")
    allowed = {aggregated + name for name in (*names, MARKER, MANIFEST)} | foreign.keys()
    found += [
        f"{key}: should have been removed" for key in now if key.startswith(aggregated) and key not in allowed
    ]
    return found
