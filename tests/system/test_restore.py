"""A compressed hour, packed under a real scheduler, whose raw objects expire and are restored."""

import gzip
import json
import subprocess
from datetime import timedelta
from typing import Any

import pytest

from dev.stack.paths import BUCKET
from dev.stack.run_command import environment
from include.log_rollup.hour.layout import format_hour
from tests.conftest import ROOT
from tests.support.raw_hours import hour_prefix, make_hour
from tests.system.running import Running

STREAM = "archive"
DAG = f"log_rollup_{STREAM}"
RAW = f"raw/{STREAM}/"
RESTORED = "restored/"
ENCODINGS = ("", "", ".gz")


@pytest.mark.overlaps
def test_expired_raw_objects_are_restored_from_parts(running: Running) -> None:
    hour = running.dataset.hours[0].hour - timedelta(days=1)
    raw = hour_prefix(RAW, hour)
    # About 13 MB of plain objects, in frames of at most 6 MiB.
    made = make_hour(running.client, BUCKET, raw, objects=30, encodings=ENCODINGS)
    run_id = running.trigger(DAG, {"hour": format_hour(hour)})
    assert running.ended(DAG, run_id).state == "success"
    assert frames_of_compressed_part(running, hour_prefix(f"aggregated/{STREAM}/", hour)) > 1
    # As a lifecycle rule does.
    for key in made:
        running.client.delete_object(Bucket=BUCKET, Key=key)
    assert objects_below(running, raw) == {}

    target = running.stack.paths.state / "restored"
    argument = f"{hour:%Y-%m-%dT%H}"
    # Each takes seconds to start.
    verify, to_directory, to_prefix = (
        start_command(running, *command)
        for command in (
            ("verify", STREAM, argument, "--deep"),
            ("restore", STREAM, argument, "--to", str(target), "--md5"),
            ("restore", STREAM, argument, "--to", f"s3://{BUCKET}/{RESTORED}"),
        )
    )
    verified = output_of(verify)
    assert verified["ok"] is True
    assert verified["raw"]["expired"] == len(made)
    assert output_of(to_directory)["restored"] == len(made)
    files = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
    assert {RAW + name: path.read_bytes() for name, path in files.items()} == made
    assert output_of(to_prefix)["restored"] == len(made)
    objects = objects_below(running, RESTORED)
    assert {RAW + key.removeprefix(RESTORED): body for key, body in objects.items()} == made


def frames_of_compressed_part(running: Running, aggregated: str) -> int:
    """The number of frames of the only compressed part below an hour's prefix."""
    stored = running.client.get_object(Bucket=BUCKET, Key=f"{aggregated}_manifest.jsonl.gz")
    header, *rows = map(json.loads, gzip.decompress(stored["Body"].read()).splitlines())
    (part,) = [entry["name"] for entry in header["parts_table"] if entry.get("compression") == "zstd"]
    return len({row["frame_offset"] for row in rows if row["part"] == part})


def objects_below(running: Running, prefix: str) -> dict[str, bytes]:
    """The content of each object below a prefix, by key."""
    return {
        key: running.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in running.stamps(prefix)
    }


def start_command(running: Running, *arguments: str) -> subprocess.Popen[str]:
    """Start ``log-rollup --json`` with the settings of the stack."""
    return subprocess.Popen(
        [str(ROOT / "log-rollup"), *arguments, "--json"], env=environment(running.stack.paths),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def output_of(process: subprocess.Popen[str]) -> Any:
    """Wait for a command that succeeds; return its JSON."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)
