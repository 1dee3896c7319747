"""Measures the validation of 30,000 objects in 520 parts on a server that keeps CRCs and refuses wrong ones.

rclone and moto accept any CRC, so validation has to read parts back. S3 and :mod:`benchmarks.synthetic` check
them.
"""

from benchmarks.results import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PROJECT, Settings
from benchmarks.steps import SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json

# Tiny objects: their number matters, not their size. 58 for each part give 520 parts of 30,000 objects.
OBJECT_BYTES = 1_000
OBJECTS_PER_PART = 58
MAX_CPU_SECONDS = 10.0


def validator(settings: Settings) -> int:
    """Plan, pack and validate, measure the validation only, and return the exit code."""
    print(f"{settings.objects:,} raw objects of {OBJECT_BYTES:,} bytes; {machine()}\n", flush=True)
    part_bytes = OBJECT_BYTES * OBJECTS_PER_PART
    with scratch() as folder, SyntheticServer(folder, settings.objects, (OBJECT_BYTES,), 0.0) as server:
        planned = step("plan", server, folder, part_bytes, CONNECTIONS)
        shards = next(iter(planned.own["shards"].values()))
        step("pack", server, folder, part_bytes, CONNECTIONS, shards=shards)
        result = step("validate", server, folder, part_bytes, CONNECTIONS)
    totals, requests = result.own["totals"], result.own["requests"]
    row = {
        "objects": totals["objects"],
        "parts": totals["parts"],
        "proven_by": " ".join(totals["verified"]["parts"]),
        "seconds": round(float(result.own["seconds"]), 2),
        "cpu_seconds": round(float(result.own["cpu_seconds"]), 2),
        "peak_rss_mib": round(result.peak_rss_mib),
        "lists": requests.get("ListObjectsV2", 0),
        "heads": requests.get("HeadObject", 0),
        "gets": requests.get("GetObject", 0),
        "puts": requests.get("PutObject", 0),
        "peak_sockets": result.observed.peak_sockets,
    }
    print(as_table([row]))
    print()
    verdict("CPU seconds", float(row["cpu_seconds"]), MAX_CPU_SECONDS)
    verdict("HEAD requests, one for each part", row["heads"], totals["parts"])
    verdict("peak sockets", result.observed.peak_sockets, int(result.own["max_connections"]))
    target = BUILD / "bench-validator.json"
    write_json(target, [row])
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0
