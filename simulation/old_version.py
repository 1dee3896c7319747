"""Writes an hour as the older version of this project left it, which named parts by their index alone."""

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from include.log_rollup import crc
from include.log_rollup.storage.protocol import Checksum
from simulation.hour_model import encoding_of
from simulation.quirks import Checksums
from simulation.server import OLD_VERSION, ServerObject

if TYPE_CHECKING:
    from simulation.world import World

# Encoding and keys of a part, and whether S3 copied it.
Part = tuple[str, list[str], bool]

_MEASURED = {"max_connections": 8, "sockets": 0, "open_files": 0, "rss_bytes": 0, "seconds": 0.1,
             "cpu_seconds": 0.1, "requests": {}, "retries": 0, "throttles": 0, "parts_written": 1,
             "parts_left_alone": 0}  # fmt: skip


def write_old_hour(world: "World", *, complete: bool) -> None:
    """Write the objects of a complete hour, or of a run that was stopped while it packed."""
    server, hour, rng = world.server, world.hour, world.rng
    plan_id = f"{rng.getrandbits(80):020x}"
    parts = _plan_parts(world)
    # Every version removes the completion marker before any part changes.
    server.remove(hour.marker)
    table, rows, receipts = [], [], []
    for index, (encoding, keys, copied) in enumerate(parts):
        name = f"part-{index:05d}.log{encoding}"
        body, part_rows, packed = _part_content(world, name, keys, copied)
        if not complete and rng.random() < 0.4:
            continue
        before = server.objects.get(hour.base + name)
        if before is not None:
            world.checker.excuse_part(before)
        checked = world.quirks.checksums is not Checksums.NONE
        checksum = Checksum("crc64nvme", crc.crc64(body)) if checked else None
        stored = server.store(hour.base + name, body, OLD_VERSION, checksum=checksum)
        value = crc.to_hex(crc.crc64(body))
        fingerprint = f"{rng.getrandbits(128):032x}"
        table.append(
            {"name": name, "encoding": encoding, "size": len(body), "etag": stored.etag, "crc64nvme": value,
             "objects": len(keys), "copied": copied, "fingerprint": fingerprint, "proof": "read-back"}
        )  # fmt: skip
        rows += part_rows
        receipts.append([name, fingerprint, len(body), stored.etag, value, None, packed])
    totals = _totals(plan_id, table, rows)
    if complete:
        _write_completion(world, totals, table, rows)
    else:
        _write_plan(world, totals, parts, receipts)


def _write_completion(
    world: "World",
    totals: Mapping[str, Any],
    table: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Write the manifest and the completion marker."""
    server, hour = world.server, world.hour
    header = {"format": 1, **totals, "raw_prefix": hour.raw_base, "validated_at": "2026-11-23T09:20:00+00:00",
              "parts_table": table}  # fmt: skip
    lines = "".join(json.dumps(line) + "\n" for line in (header, *rows))
    server.store(hour.manifest, gzip.compress(lines.encode(), mtime=0), OLD_VERSION)
    marker = {"format": 1, **totals, "completed_at": "2026-11-23T09:21:00+00:00"}
    server.store(hour.marker, json.dumps(marker).encode(), OLD_VERSION)


def _write_plan(
    world: "World", totals: Mapping[str, Any], parts: Sequence[Part], receipts: Sequence[Sequence[Any]]
) -> None:
    """Write the plan, its shard, sometimes its receipt, and the claim."""
    server, hour, rng = world.server, world.hour, world.rng
    plan_id = totals["plan_id"]
    work = f"{hour.work}{plan_id}/"
    written = {row[0]: row[1] for row in receipts}
    planned = []
    for index, (encoding, keys, copied) in enumerate(parts):
        name = f"part-{index:05d}.log{encoding}"
        objects = [server.objects[key] for key in keys]
        planned.append(
            [name, encoding, sum(len(one.body) for one in objects), copied,
             written.get(name, f"{rng.getrandbits(128):032x}"),
             [[one.key.removeprefix(hour.raw_base), len(one.body), one.etag] for one in objects]]
        )  # fmt: skip
    shard = {"format": 1, "plan_id": plan_id, "shard": 0, "parts": planned}
    server.store(f"{work}shard-00000.json.gz", gzip.compress(json.dumps(shard).encode()), OLD_VERSION)
    receipt = {"format": 1, "plan_id": plan_id, "shard": 0, "measured": _MEASURED, "parts": receipts}
    if rng.random() < 0.7:
        server.store(f"{work}receipt-00000.json.gz", gzip.compress(json.dumps(receipt).encode()), OLD_VERSION)
    refs = [
        {"stream": "app", "hour": totals["hour"], "plan_id": plan_id, "shard": 0, "first_part": 0,
         "parts": len(planned), "objects": totals["objects"], "bytes": totals["bytes_in"]}
    ]  # fmt: skip
    summary = {"format": 1, "plan_id": plan_id, "stream": "app", "hour": totals["hour"], "parts": len(planned),
               "objects": totals["objects"], "bytes_in": totals["bytes_in"], "left_out": totals["left_out"],
               "shards": refs if planned else []}  # fmt: skip
    server.store(f"{work}plan.json", json.dumps(summary).encode(), OLD_VERSION)
    claim = {"format": 1, "plan_id": plan_id, "run_id": "an old run"}
    server.store(f"{hour.work}claim.json", json.dumps(claim).encode(), OLD_VERSION)


def _plan_parts(world: "World") -> list[Part]:
    """Fill parts in key order, for each encoding apart."""
    by_encoding: dict[str, list[ServerObject]] = {}
    for key in sorted(world.server.objects, key=str.encode):
        stored = world.server.objects[key]
        if world.hour.is_raw(key) and world.hour.is_input(key, len(stored.body)):
            by_encoding.setdefault(encoding_of(key), []).append(stored)
    parts: list[Part] = []
    for encoding in sorted(by_encoding):
        slack = 1 if world.stream.ensure_newline and encoding == "" else 0
        members: list[str] = []
        used = 0
        for stored in by_encoding[encoding]:
            room = len(stored.body) + slack if stored.body else 0
            if members and used + room > world.stream.part_size:
                parts.append((encoding, members, False))
                members, used = [], 0
            if room > world.stream.part_size:
                parts.append((encoding, [stored.key], True))
            else:
                members.append(stored.key)
                used += room
        if members:
            parts.append((encoding, members, False))
    return parts


def _part_content(
    world: "World", name: str, keys: Sequence[str], copied: bool
) -> tuple[bytes, list[dict[str, Any]], list[list[Any]]]:
    """Return a part's bytes, its rows in the manifest, and the rows of its objects in the receipt."""
    body = b""
    rows, packed = [], []
    for key in keys:
        stored = world.server.objects[key]
        value = crc.to_hex(crc.crc64(stored.body))
        rows.append(
            {"key": key, "part": name, "offset": len(body), "length": len(stored.body), "etag": stored.etag,
             "crc64nvme": value, "checked": "crc64nvme"}
        )  # fmt: skip
        body += stored.body
        adds_newline = world.stream.ensure_newline and encoding_of(key) == "" and not copied
        newline = b"\n" if adds_newline and stored.body and not stored.body.endswith(b"\n") else b""
        body += newline
        packed.append([value, "crc64nvme", False, len(newline)])
    return body, rows, packed


def _totals(
    plan_id: str, table: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    bytes_in = sum(row["length"] for row in rows)
    bytes_out = sum(entry["size"] for entry in table)
    return {
        "stream": "app",
        "hour": "2026-11-23T08:00:00Z",
        "plan_id": plan_id,
        "objects": len(rows),
        "bytes_in": bytes_in,
        "separator_bytes": bytes_out - bytes_in,
        "bytes_out": bytes_out,
        "parts": len(table),
        "left_out": {"hidden": 0, "placeholders": 0, "markers": 0},
        "verified": {"parts": {"read-back": len(table)}, "objects": {"crc64nvme": len(rows)}},
        "measured": _MEASURED,
    }
