"""Measures the memory of each step on an hour of a million objects, and of a plan after one more object came."""

from benchmarks.results import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PROJECT, Settings
from benchmarks.steps import BUCKET, RAW_PREFIX, StepResult, SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json
from benchmarks.validator import OBJECT_BYTES, OBJECTS_PER_PART
from dev.s3_client import plain_client

MAX_RSS_MIB = 512.0


def bounds(settings: Settings) -> int:
    """Roll up the hour, plan it again, also with a late object, and return the exit code."""
    print(f"{settings.objects:,} raw objects of {OBJECT_BYTES:,} bytes; {machine()}\n", flush=True)
    part_bytes = OBJECT_BYTES * OBJECTS_PER_PART
    results: dict[str, StepResult] = {}
    with scratch() as folder, SyntheticServer(folder, settings.objects, (OBJECT_BYTES,), 0.0) as server:
        results["plan"] = step("plan", server, folder, part_bytes, CONNECTIONS)
        shards = next(iter(results["plan"].own["shards"].values()))
        results["pack"] = step("pack", server, folder, part_bytes, CONNECTIONS, shards=shards)
        for name in ("validate", "complete"):
            results[name] = step(name, server, folder, part_bytes, CONNECTIONS)
        results["plan again"] = step("plan", server, folder, part_bytes, CONNECTIONS)
        client = plain_client(server.endpoint_url, server.access_key, server.secret_key)
        client.put_object(Bucket=BUCKET, Key=f"{RAW_PREFIX}late.log", Body=b"a line\n")
        results["plan with a late object"] = step("plan", server, folder, part_bytes, CONNECTIONS)
    rows = [
        {
            "step": name,
            "seconds": round(float(result.own["seconds"]), 2),
            "cpu_seconds": round(float(result.own["cpu_seconds"]), 2),
            "peak_rss_mib": round(result.peak_rss_mib),
            "of_it_imports_mib": round(int(result.own["rss_before_bytes"]) / 1024**2),
        }
        for name, result in results.items()
    ]
    print(as_table(rows))
    print()
    # One process packs all shards here, so its memory is not that of a task.
    for row in rows:
        if row["step"] == "pack":
            continue
        verdict(f"peak RSS of {row['step']}, MiB", float(str(row["peak_rss_mib"])), MAX_RSS_MIB)
    target = BUILD / "bench-bounds.json"
    write_json(target, rows)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0
