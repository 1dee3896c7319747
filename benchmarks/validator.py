"""Our validator on the story's number of objects and parts, on a server that keeps CRCs and refuses wrong ones.

rclone and moto take any CRC, so that parts are read back from them; S3 does not, and neither does
:mod:`benchmarks.synthetic`.
"""

from benchmarks.report import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PROJECT, Settings
from benchmarks.steps import SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json

# Tiny ones: what is measured is the number of them. So many make the story's 520 parts of 30,000 objects.
OBJECT_BYTES = 1_000
OBJECTS_A_PART = 58
MOST_CPU_SECONDS = 10.0


def validator(settings: Settings) -> int:
    """Plan, pack and then validate; only the last is measured. The exit code."""
    print(f"{settings.objects:,} raw objects of {OBJECT_BYTES:,} bytes; {machine()}\n", flush=True)
    part_bytes = OBJECT_BYTES * OBJECTS_A_PART
    with scratch() as folder, SyntheticServer(folder, settings.objects, (OBJECT_BYTES,), 0.0) as server:
        planned = step("plan", server, folder, part_bytes, CONNECTIONS)
        shards = next(iter(planned.own["shards"].values()))
        step("pack", server, folder, part_bytes, CONNECTIONS, shards=shards)
        done = step("validate", server, folder, part_bytes, CONNECTIONS)
    totals, requests = done.own["totals"], done.own["requests"]
    row = {
        "objects": totals["objects"],
        "parts": totals["parts"],
        "proven_by": " ".join(totals["verified"]["parts"]),
        "seconds": round(float(done.own["seconds"]), 2),
        "cpu_seconds": round(float(done.own["cpu_seconds"]), 2),
        "peak_rss_mib": round(done.peak_rss_mib),
        "lists": requests.get("ListObjectsV2", 0),
        "heads": requests.get("HeadObject", 0),
        "gets": requests.get("GetObject", 0),
        "puts": requests.get("PutObject", 0),
        "peak_sockets": done.seen.peak_sockets,
    }
    print(as_table([row]))
    print()
    verdict("CPU seconds", float(row["cpu_seconds"]), MOST_CPU_SECONDS)
    verdict("HEADs, one for each part", row["heads"], totals["parts"])
    verdict("peak sockets", done.seen.peak_sockets, int(done.own["max_connections"]))
    target = BUILD / "bench-validator.json"
    write_json(target, [row])
    print(f"\nwritten: {target.relative_to(PROJECT)}")
    return 0
