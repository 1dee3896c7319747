"""Judges an hour by the server's memory alone, with none of the pipeline's code.

An hour that bears ``_SUCCESS`` has to be right, whatever the server did; an hour that failed must have changed
nothing outside its aggregated prefix.
"""

import gzip
import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from tests.support.quirks.process import Seen

MARKER = "_SUCCESS"
MANIFEST = "_manifest.jsonl.gz"
WORK = "_rollup/"


def problems_outside(before: Mapping[str, Seen], now: Mapping[str, Seen], aggregated: str) -> list[str]:
    """What changed outside the aggregated prefix: nothing may."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        if not key.startswith(aggregated) and before.get(key) != now.get(key):
            was, is_ = (
                "missing" if one is None else f"{len(one.body)} bytes"
                for one in (before.get(key), now.get(key))
            )
            found.append(f"{key}: was {was}, is {is_}")
    return found


def problems_of_hour(
    now: Mapping[str, Seen],
    raw: Mapping[str, bytes],
    aggregated: str,
    foreign: Mapping[str, bytes] | None = None,
) -> list[str]:
    """What is wrong with an hour that claims to be complete.

    :param raw: every raw object that belongs into the hour, by its key
    :param foreign: objects below the aggregated prefix that are none of the pipeline's, by their full key
    """
    others = foreign or {}
    found = [
        f"{key}: is not what it was"
        for key, body in others.items()
        if key not in now or now[key].body != body
    ]
    manifest = now.get(f"{aggregated}{MANIFEST}")
    if manifest is None:
        return [*found, f"there is no {MANIFEST}"]
    # Cut at newlines alone: a key may hold other characters that Python takes for the end of a line.
    header, *lines = [json.loads(line) for line in gzip.decompress(manifest.body).rstrip(b"\n").split(b"\n")]
    found += _problems_of_lines(lines, raw)
    found += _problems_of_parts(now, lines, header, raw, aggregated, others)
    marker = marker_of(now, aggregated)
    wanted = {
        "objects": len(raw),
        "bytes_in": sum(map(len, raw.values())),
        "parts": len(header["parts_table"]),
        "plan_id": header["plan_id"],
    }
    for source, record in ((MARKER, marker), (MANIFEST, header)):
        found += [
            f"{source}: {name} is {record.get(name)!r}, it should be {value!r}"
            for name, value in wanted.items()
            if record.get(name) != value
        ]
    return found


def marker_of(now: Mapping[str, Seen], aggregated: str) -> Mapping[str, Any]:
    """The completion marker, parsed; empty where there is none."""
    kept = now.get(f"{aggregated}{MARKER}")
    parsed: Mapping[str, Any] = json.loads(kept.body) if kept else {}
    return parsed


def _problems_of_lines(lines: Collection[Mapping[str, Any]], raw: Mapping[str, bytes]) -> list[str]:
    counts = Counter(line["key"] for line in lines)
    return [
        f"{key}: is in {counts[key]} lines of the manifest, it should be in {int(key in raw)}"
        for key in sorted(counts.keys() | raw.keys())
        if counts[key] != (key in raw)
    ]


def _problems_of_parts(
    now: Mapping[str, Seen],
    lines: Collection[Mapping[str, Any]],
    header: Mapping[str, Any],
    raw: Mapping[str, bytes],
    aggregated: str,
    foreign: Mapping[str, bytes],
) -> list[str]:
    found = []
    named = [entry["name"] for entry in header["parts_table"]]
    if len(set(named)) != len(named) or {line["part"] for line in lines} != set(named):
        found.append(f"the table of parts names {named}, the lines other parts")
    ends: dict[str, int] = {}
    for line in lines:
        name, offset, length = line["part"], line["offset"], line["length"]
        part = now.get(aggregated + name)
        if part is None:
            found.append(f"{name}: is named by the manifest and is not there")
            continue
        if offset != ends.get(name, 0):
            found.append(
                f"{name}: {line['key']} begins at {offset}, the one before ends at {ends.get(name, 0)}"
            )
        if part.body[offset : offset + length] != raw.get(line["key"]):
            found.append(f"{name}: at {offset} does not lie {line['key']}")
        ends[name] = offset + length
    for name, end in ends.items():
        size = len(now[aggregated + name].body)
        if size != end:
            found.append(f"{name}: has {size} bytes, its objects {end}")
    allowed = {aggregated + name for name in (*named, MARKER, MANIFEST)} | foreign.keys()
    found += [f"{key}: was left behind" for key in now if key.startswith(aggregated) and key not in allowed]
    return found
