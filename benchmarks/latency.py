"""Measures how the pack step's throughput grows with its connections when every response is delayed."""

from benchmarks.results import machine
from benchmarks.settings import BUILD, PART_BYTES, PROJECT, Settings
from benchmarks.steps import StepResult, SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json

DELAY_SECONDS = 0.05
CONNECTIONS = (10, 25, 50, 100)
# Small objects, so that the delay dominates: server and client share the cores that move the bytes.
OBJECT_BYTES = 20_000


def latency(settings: Settings) -> int:
    """Pack the same hour with increasing numbers of connections, and return the exit code."""
    print(
        f"{settings.objects:,} raw objects of {OBJECT_BYTES:,} bytes, each response {DELAY_SECONDS * 1000:.0f} ms "
        f"late; {machine()}\n",
        flush=True,
    )
    rows = []
    with scratch() as folder:
        for connections in CONNECTIONS:
            # A new server for each number, so that no part exists yet.
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
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0


def _row(connections: int, objects: int, result: StepResult) -> dict[str, float | int | str]:
    seconds = float(result.own["seconds"])
    return {
        "max_connections": connections,
        "seconds": round(seconds, 2),
        "objects_per_s": round(objects / seconds),
        # The limit if a response took only the delay; one connection belongs to the control plane.
        "most_objects_per_s": round((connections - 1) / DELAY_SECONDS),
        "mb_per_s": round(objects * OBJECT_BYTES / seconds / 1e6),
        "cpu_ms_per_object": round(float(result.own["cpu_seconds"]) * 1000 / objects, 3),
        "peak_rss_mib": round(result.peak_rss_mib),
        "peak_sockets": result.observed.peak_sockets,
    }
