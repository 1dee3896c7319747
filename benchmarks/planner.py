"""Measures the planner on an hour of a million objects, from the listing to the written plan and shards."""

from benchmarks.results import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PART_BYTES, PROJECT, Settings
from benchmarks.steps import SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json

DELAY_SECONDS = 0.1
# 100 KB to 1 MB, for a realistic number of parts and shards.
SIZES = tuple(range(100_000, 1_000_001, 45_000))
MAX_CPU_SECONDS = 15.0
MAX_RSS_MIB = 512.0
MAX_XCOM_KIB = 64.0


def planner(settings: Settings) -> int:
    """Plan without and with delayed pages, and return the exit code."""
    print(f"{settings.objects:,} objects in pages of 1,000; {machine()}\n", flush=True)
    rows = []
    with scratch() as folder:
        for delay in (0.0, DELAY_SECONDS):
            place = folder / f"delay-{delay}"
            with SyntheticServer(place, settings.objects, SIZES, delay, only_lists=True) as server:
                result = step("plan", server, place, PART_BYTES, CONNECTIONS)
            rows.append(
                {
                    "page_ms_late": round(delay * 1000),
                    "objects": settings.objects,
                    "shards": len(next(iter(result.own["shards"].values()))),
                    "seconds": round(float(result.own["seconds"]), 2),
                    "cpu_seconds": round(float(result.own["cpu_seconds"]), 2),
                    "peak_rss_mib": round(result.peak_rss_mib),
                    "of_it_imports_mib": round(int(result.own["rss_before_bytes"]) / 1024**2),
                    "xcom_kib": round(int(result.own["xcom_bytes"]) / 1024, 1),
                    "lists": result.own["requests"].get("ListObjectsV2", 0),
                    "peak_sockets": result.observed.peak_sockets,
                }
            )
    print(as_table(rows))
    print()
    verdict("CPU seconds", max(row["cpu_seconds"] for row in rows), MAX_CPU_SECONDS)
    verdict("peak RSS, MiB", max(row["peak_rss_mib"] for row in rows), MAX_RSS_MIB)
    verdict("XCom, KiB", max(row["xcom_kib"] for row in rows), MAX_XCOM_KIB)
    target = BUILD / "bench-planner.json"
    write_json(target, rows)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0
