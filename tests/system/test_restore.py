"""A compressed hour, packed under a real scheduler, whose raw objects expire and are restored."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
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
SEPARATOR = "\0"
# As `python -m log_rollup_plugin.cli`, several times; it stops at the first command that fails.
RUN_COMMANDS = f"""
import json, sys
import log_rollup_plugin.cli.__main__
from log_rollup_plugin.cli.main import main

for command in json.loads(sys.argv[1]):
    if code := main([*command, "--json"]):
        sys.exit(code)
    print(end={SEPARATOR!r}, flush=True)
"""


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
    verified, to_directory, to_prefix = outputs_of(
        running,
        ("verify", STREAM, argument, "--deep"),
        ("restore", STREAM, argument, "--to", str(target), "--md5"),
        ("restore", STREAM, argument, "--to", f"s3://{BUCKET}/{RESTORED}"),
    )
    assert verified["ok"] is True
    assert verified["raw"]["expired"] == len(made)
    assert to_directory["restored"] == len(made)
    files = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
    assert {RAW + name: path.read_bytes() for name, path in files.items()} == made
    assert to_prefix["restored"] == len(made)
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


def outputs_of(running: Running, *commands: Sequence[str]) -> list[Any]:
    """Run commands of ``log-rollup`` that succeed, with the settings of the stack; return the JSON of each.

    They run in one process, because it takes seconds of CPU time to import Airflow.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS, json.dumps(commands)], env=command_environment(running),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(text) for text in done.stdout.split(SEPARATOR)[:-1]]


def command_environment(running: Running) -> dict[str, str]:
    """Return the environment in which the script ``log-rollup`` starts Python."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    return environment(running.stack.paths) | {"PYTHONPATH": path}
