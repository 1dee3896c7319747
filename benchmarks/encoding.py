"""Measures the cost of ``check_encoding``: the pack step on gzip objects with and without it, alternating."""

from statistics import median

from benchmarks.results import machine
from benchmarks.settings import BUILD, CONNECTIONS, PART_BYTES, PROJECT, Settings
from benchmarks.steps import SyntheticServer, scratch, step
from benchmarks.table import as_table, write_json

SIZES = tuple(range(100_000, 1_000_001, 100_000))


def encoding(settings: Settings) -> int:
    """Plan and pack with and without ``check_encoding`` in each round, and return the exit code."""
    print(f"{settings.objects:,} gzip objects of 100 KB to 1 MB; {machine()}\n", flush=True)
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(settings.rounds):
        for check in times:
            # A new server, so that no part exists yet.
            with (
                scratch() as folder,
                SyntheticServer(folder, settings.objects, SIZES, 0.0, encoding=".gz") as server,
            ):
                planned = step("plan", server, folder, PART_BYTES, CONNECTIONS)
                shards = next(iter(planned.own["shards"].values()))
                result = step(
                    "pack", server, folder, PART_BYTES, CONNECTIONS, shards=shards, check_encoding=check
                )
            times[check].append((float(result.own["cpu_seconds"]), float(result.own["seconds"])))
    rows = [
        {
            "check_encoding": str(check).lower(),
            "cpu_ms_an_object": round(1000 * median(cpu for cpu, _ in rounds) / settings.objects, 2),
            "seconds": round(median(seconds for _, seconds in rounds), 2),
        }
        for check, rounds in times.items()
    ]
    print(as_table(rows))
    target = BUILD / "bench-encoding.json"
    write_json(target, rows)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0
