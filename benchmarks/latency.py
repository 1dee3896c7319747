"""Our pack step against answers that come late: does its throughput follow the number of connections?"""

from benchmarks.report import machine
from benchmarks.settings import BUILD, PART_BYTES, PROJECT, Settings
from benchmarks.steps import Done, SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json

DELAY_SECONDS = 0.05
CONNECTIONS = (10, 25, 50, 100)
# Small ones: the wait is to take the time, not the bytes, which the same two cores move twice.
OBJECT_BYTES = 20_000


def latency(settings: Settings) -> int:
    """Pack the same hour with more and more connections; the exit code."""
    print(
        f"{settings.objects:,} raw objects of {OBJECT_BYTES:,} bytes, each answer {DELAY_SECONDS * 1000:.0f} ms "
        f"late; {machine()}\n",
        flush=True,
    )
    rows = []
    with scratch() as folder:
        for connections in CONNECTIONS:
            # A server for each, so that none finds the parts of another.
            place = folder / str(connections)
            with SyntheticServer(place, settings.objects, [OBJECT_BYTES], DELAY_SECONDS) as server:
                planned = step("plan", server, place, PART_BYTES, connections)
                shards = next(iter(planned.own["shards"].values()))
                rows.append(_row(connections, settings.objects, step(
                    "pack", server, place, PART_BYTES, connections, shards=shards
                )))  # fmt: skip
    print(as_table(rows))
    target = BUILD / "bench-latency.json"
    write_json(target, rows)
    print(f"\nwritten: {target.relative_to(PROJECT)}")
    return 0


def _row(connections: int, objects: int, done: Done) -> dict[str, float | int | str]:
    seconds = float(done.own["seconds"])
    return {
        "max_connections": connections,
        "seconds": round(seconds, 2),
        "objects_per_s": round(objects / seconds),
        # What so many connections could do if an answer took nothing but the delay; one is the control plane's.
        "most_objects_per_s": round((connections - 1) / DELAY_SECONDS),
        "mb_per_s": round(objects * OBJECT_BYTES / seconds / 1e6),
        "cpu_ms_per_object": round(float(done.own["cpu_seconds"]) * 1000 / objects, 3),
        "peak_rss_mib": round(done.peak_rss_mib),
        "peak_sockets": done.seen.peak_sockets,
    }
