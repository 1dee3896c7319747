"""Our planner on an hour of a million objects: from listing pages to the written plan and its shard references."""

from benchmarks.report import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PART_BYTES, PROJECT, Settings
from benchmarks.steps import SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json

LATE_SECONDS = 0.1
# Of the story's objects, so that parts and shards are as many as they would be.
SIZES = tuple(range(100_000, 1_000_001, 45_000))
MOST_CPU_SECONDS = 15.0
MOST_RSS_MIB = 512.0
MOST_XCOM_KIB = 64.0


def planner(settings: Settings) -> int:
    """Plan with pages that come at once, and with pages that come late; the exit code."""
    print(f"{settings.objects:,} objects in pages of 1,000; {machine()}\n", flush=True)
    rows = []
    with scratch() as folder:
        for late in (0.0, LATE_SECONDS):
            place = folder / f"late-{late}"
            with SyntheticServer(place, settings.objects, SIZES, late, only_lists=True) as server:
                done = step("plan", server, place, PART_BYTES, CONNECTIONS)
            rows.append(
                {
                    "page_ms_late": round(late * 1000),
                    "objects": settings.objects,
                    "shards": len(next(iter(done.own["shards"].values()))),
                    "seconds": round(float(done.own["seconds"]), 2),
                    "cpu_seconds": round(float(done.own["cpu_seconds"]), 2),
                    "peak_rss_mib": round(done.peak_rss_mib),
                    "of_it_imports_mib": round(int(done.own["rss_before_bytes"]) / 1024**2),
                    "xcom_kib": round(int(done.own["xcom_bytes"]) / 1024, 1),
                    "lists": done.own["requests"].get("ListObjectsV2", 0),
                    "peak_sockets": done.seen.peak_sockets,
                }
            )
    print(as_table(rows))
    print()
    verdict("CPU seconds", max(row["cpu_seconds"] for row in rows), MOST_CPU_SECONDS)
    verdict("peak RSS, MiB", max(row["peak_rss_mib"] for row in rows), MOST_RSS_MIB)
    verdict("XCom, KiB", max(row["xcom_kib"] for row in rows), MOST_XCOM_KIB)
    target = BUILD / "bench-planner.json"
    write_json(target, rows)
    print(f"\nwritten: {target.relative_to(PROJECT)}")
    return 0
