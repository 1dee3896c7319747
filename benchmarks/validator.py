"""Our validator on the story's number of objects and parts, against a server that keeps CRCs and is not ours."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.report import machine, verdict
from benchmarks.settings import BUILD, CONNECTIONS, PROJECT, Settings
from benchmarks.steps import BUCKET, RAW_PREFIX, scratch, step
from benchmarks.table import as_table, write_json
from tests.support.servers import MotoServer

# Tiny ones: what is measured is the number of them. So many make the story's 520 parts of 30,000 objects.
OBJECT_BYTES = 1_000
OBJECTS_A_PART = 58
WRITERS = 8
MOST_CPU_SECONDS = 10.0
# As moto's log has them: "GET /bench?list-type=2... HTTP/1.1"
_REQUEST = re.compile(r'"([A-Z]+) /[^/ ?"]+(/[^ ?"]*)?(\?[^ "]*)? HTTP')


def validator(settings: Settings) -> int:
    """Write, plan, pack and then validate; only the last is measured. The exit code."""
    print(f"{settings.objects:,} raw objects of {OBJECT_BYTES:,} bytes on moto; {machine()}\n", flush=True)
    part_bytes = OBJECT_BYTES * OBJECTS_A_PART
    with scratch() as folder, MotoServer(folder / "moto") as server:
        _write(server, settings.objects)
        planned = step("plan", server, folder, part_bytes, CONNECTIONS)
        shards = next(iter(planned.own["shards"].values()))
        step("pack", server, folder, part_bytes, CONNECTIONS, shards=shards)
        before = server.log_path.stat().st_size
        done = step("validate", server, folder, part_bytes, CONNECTIONS)
        requests = _requests(server.log_path, before)
    totals = done.own["totals"]
    row = {
        "objects": totals["objects"],
        "parts": totals["parts"],
        "proven_by": " ".join(totals["verified"]["parts"]),
        "seconds": round(float(done.own["seconds"]), 2),
        "cpu_seconds": round(float(done.own["cpu_seconds"]), 2),
        "peak_rss_mib": round(done.peak_rss_mib),
        "lists": requests["LIST"],
        "heads": requests["HEAD"],
        "gets": requests["GET"],
        "puts": requests["PUT"],
        "peak_sockets": done.seen.peak_sockets,
    }
    print(as_table([row]))
    print()
    pages = -(-int(totals["objects"]) // 1000) + -(-int(totals["parts"]) // 1000)
    verdict("CPU seconds", float(row["cpu_seconds"]), MOST_CPU_SECONDS)
    verdict("LIST pages, one pass on each side", requests["LIST"], pages)
    verdict("HEADs, one for each part", requests["HEAD"], totals["parts"])
    verdict("peak sockets", done.seen.peak_sockets, int(done.own["max_connections"]))
    target = BUILD / "bench-validator.json"
    write_json(target, [row])
    print(f"\nwritten: {target.relative_to(PROJECT)}")
    return 0


def _write(server: MotoServer, objects: int) -> None:
    client = server.client(max_connections=WRITERS)
    client.create_bucket(Bucket=BUCKET)

    def put(number: int) -> None:
        body = f"object {number:07d}\n".encode().ljust(OBJECT_BYTES, b".")
        client.put_object(Bucket=BUCKET, Key=f"{RAW_PREFIX}{number:07d}.log", Body=body)

    with ThreadPoolExecutor(WRITERS) as threads:
        for _ in threads.map(put, range(objects)):
            pass


def _requests(log: Path, start: int) -> Counter[str]:
    """What the server itself says it was asked since its log had this length."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", errors="replace")
    counts: Counter[str] = Counter()
    for method, key, query in _REQUEST.findall(text):
        is_list = method == "GET" and not key.strip("/") and "list-type" in query
        counts["LIST" if is_list else method] += 1
    return counts
