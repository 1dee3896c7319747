"""Compares the restore of an hour to a directory with ``s5cmd cp`` of its raw objects, alternating."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import peers, tools
from benchmarks.compare import roll_up, run_checked, scratch_folder
from benchmarks.peers import Run
from benchmarks.results import machine
from benchmarks.settings import BUILD, PROJECT, Settings
from benchmarks.table import as_table, write_json
from benchmarks.testbed import BUCKET, RAW_PREFIX, NoRoomError, Testbed, md5_of, open_testbed

OUT_PREFIX = "restored/"
NAMES = ("restore", "restore --md5", "s5cmd cp")


def restore(settings: Settings) -> int:
    """Pack the hour, restore it with each program in each round, compare the files, and return the exit code."""
    try:
        with open_testbed(settings.objects, (False,)) as testbed:
            print(f"{testbed}; {machine()}\n", flush=True)
            roll_up(testbed, OUT_PREFIX)
            rounds = [
                (name, *measure(testbed, name))
                for _ in range(settings.rounds)
                for name in NAMES
                if settings.wants(name)
            ]
    except (NoRoomError, tools.MissingError) as error:
        print(error, file=sys.stderr)
        return 1
    rows = [
        {
            "program": name,
            "seconds": round(median(seconds for one, seconds, _ in rounds if one == name), 2),
            "cpu_seconds": round(median(cpu for one, _, cpu in rounds if one == name), 2),
        }
        for name in dict.fromkeys(one for one, _, _ in rounds)
    ]
    print(as_table(rows))
    target = BUILD / "bench-restore.json"
    write_json(target, rows)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0


def measure(testbed: Testbed, name: str) -> tuple[float, float]:
    """Return wall and CPU seconds of one restore, whose files are compared with the raw objects.

    :raises SystemExit: if they differ
    """
    with scratch_folder(testbed) as scratch:
        run = Run(testbed, False, OUT_PREFIX, scratch, ())
        folder = scratch / "restored"
        observed = run_checked(run, command_of(run, name, folder))
        seconds, cpu = observed.seconds, observed.cpu_seconds
        if name != "s5cmd cp":
            own = peers.figures(run.result())
            seconds, cpu = float(own["seconds"]), float(own["cpu_seconds"])
        if digest(folder) != digest(testbed.raw_folder):
            sys.exit(f"{name}: the restored files differ from the raw objects")
        shutil.rmtree(folder)
    return seconds, cpu


def command_of(run: Run, name: str, folder: Path) -> Sequence[str]:
    """Return the command of a program."""
    if name != "s5cmd cp":
        return run.python("restore_hour", folder=str(folder), md5=name.endswith("--md5"))
    s5cmd = str(tools.peer_venv().s5cmd)
    return [
        s5cmd,
        "--endpoint-url",
        run.server.endpoint_url,
        "cp",
        f"s3://{BUCKET}/{RAW_PREFIX}*",
        f"{folder}/",
    ]


def digest(folder: Path) -> str:
    """Return the MD5 of all files below a folder, in the order of their paths."""
    return md5_of(sorted(path for path in folder.rglob("*") if path.is_file()))
