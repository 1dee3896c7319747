"""Measures the overview of all streams: 200 streams with 48 hours each, whose markers are on an S3 server."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks.results import machine, verdict
from benchmarks.settings import BUILD, PROJECT, Settings
from benchmarks.steps import scratch
from benchmarks.table import as_table, write_json
from dev.servers import RcloneServer
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.records import MARKER_FORMAT
from include.log_rollup.queries.overview import last_hours
from include.log_rollup.queries.volume import earlier_hours, hours_to_compare
from include.log_rollup.streams import Stream

STREAMS = 200
ROUNDS = 10
BUCKET = "benchmark"
OBJECT_BYTES = 550_000
MAX_WARM_SECONDS = 1.0


def overview(settings: Settings) -> int:
    """Request the overview from an empty and from a full cache, and return the exit code."""
    print(f"{STREAMS} streams, {settings.objects:,} objects in each hour; {machine()}\n", flush=True)
    with scratch() as folder:
        server = RcloneServer(folder / "s3")
        entries = [_entry(f"stream-{number:03}") for number in range(STREAMS)]
        for entry in entries:
            _write_markers(server.data_dir, Stream.model_validate(entry), settings.objects)
        streams = folder / "streams.yaml"
        streams.write_text(yaml.safe_dump({"streams": entries}))
        try:
            server.start()
            found = _measure(folder, server, streams)
        finally:
            server.close()
    rows = [
        {
            "request": name,
            "seconds": round(found[name]["seconds"], 2),
            "cpu_seconds": round(found[name]["cpu_seconds"], 2),
        }
        for name in ("first", "all hours", "warm")
    ]
    print(as_table(rows))
    print(
        f"\n{found['streams']} streams, {found['complete_hours']:,} complete hours, {found['answer_kib']} KiB, "
        f"peak RSS {found['peak_rss_bytes'] / 1024**2:.0f} MiB\n"
    )
    verdict("seconds of a warm request", rows[-1]["seconds"], MAX_WARM_SECONDS)
    target = BUILD / "bench-overview.json"
    write_json(target, rows)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0


def _entry(name: str) -> dict[str, Any]:
    places = {side: f"s3://{BUCKET}/{side}/{name}/" for side in ("raw", "aggregated")}
    return {"name": name, "start": "2026-01-01T00:00:00Z", **places}


def _write_markers(data: Path, stream: Stream, objects: int) -> None:
    """Write the markers of the last hours, and of the same hours of earlier weeks, as files of the server."""
    now = datetime.now(UTC)
    # An hour may end while the pages are measured.
    hours = sorted({*last_hours(now), *last_hours(now + timedelta(hours=1))})
    compared = {*hours_to_compare(hours), *hours_to_compare(hours[:-1])}
    for hour in {*hours, *earlier_hours(sorted(compared))}:
        path = data / BUCKET / stream.at(hour).marker.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_marker(stream, hour, objects)))


def _marker(stream: Stream, hour: datetime, objects: int) -> dict[str, Any]:
    size = objects * OBJECT_BYTES
    at = (hour + timedelta(hours=1, minutes=12)).isoformat()
    return {
        "format": MARKER_FORMAT, "stream": stream.name, "hour": format_hour(hour),
        "plan_id": "72476eb6ae5830a3a11a", "objects": objects, "bytes_in": size, "separator_bytes": 0,
        "bytes_out": size, "bytes_stored": size // 9, "parts": 1, "left_out": {"hidden": 0},
        "verified": {"parts": {"read-back": 1}, "objects": {"length": objects}},
        "validated_at": at, "completed_at": at,
        "max_connections": 25, "peak": {"sockets": 20, "open_files": 40, "rss_bytes": 2**27},
        "requests": {"GET": objects}, "retries": 0, "throttles": 0, "seconds": {"pack": 3.9, "pack_cpu": 1.0},
    }  # fmt: skip


def _measure(folder: Path, server: RcloneServer, streams: Path) -> Mapping[str, Any]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "AWS_", "LOG_ROLLUP_"))
    }
    environment = inherited | {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
        "AIRFLOW_CONN_AWS_DEFAULT": server.airflow_connection_json(),
        "LOG_ROLLUP_STREAMS": str(streams),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "plugins")]),
    }
    command = [sys.executable, "-m", "benchmarks.clients.overview_page", str(ROUNDS)]
    ended = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, check=True)
    found: Mapping[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found
