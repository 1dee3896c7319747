"""The memory of each of our steps on an hour of a million objects, to the plan of the complete hour."""

from benchmarks.report import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PROJECT, Settings
from benchmarks.steps import Done, SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json
from benchmarks.validator import OBJECT_BYTES, OBJECTS_A_PART

MOST_RSS_MIB = 512.0


def bounds(settings: Settings) -> int:
    """Roll the hour up, then plan it again; the exit code."""
    print(f"{settings.objects:,} raw objects of {OBJECT_BYTES:,} bytes; {machine()}\n", flush=True)
    part_bytes = OBJECT_BYTES * OBJECTS_A_PART
    done: dict[str, Done] = {}
    with scratch() as folder, SyntheticServer(folder, settings.objects, (OBJECT_BYTES,), 0.0) as server:
        done["plan"] = step("plan", server, folder, part_bytes, CONNECTIONS)
        shards = next(iter(done["plan"].own["shards"].values()))
        done["pack"] = step("pack", server, folder, part_bytes, CONNECTIONS, shards=shards)
        for name in ("validate", "complete"):
            done[name] = step(name, server, folder, part_bytes, CONNECTIONS)
        done["plan again"] = step("plan", server, folder, part_bytes, CONNECTIONS)
    rows = [
        {
            "step": name,
            "seconds": round(float(one.own["seconds"]), 2),
            "cpu_seconds": round(float(one.own["cpu_seconds"]), 2),
            "peak_rss_mib": round(one.peak_rss_mib),
            "of_it_imports_mib": round(int(one.own["rss_before_bytes"]) / 1024**2),
        }
        for name, one in done.items()
    ]
    print(as_table(rows))
    print()
    for row in rows:
        verdict(f"peak RSS of {row['step']}, MiB", float(str(row["peak_rss_mib"])), MOST_RSS_MIB)
    target = BUILD / "bench-bounds.json"
    write_json(target, rows)
    print(f"\nwritten: {target.relative_to(PROJECT)}")
    return 0
