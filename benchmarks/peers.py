"""The compared programs: names, and the commands that roll up the hour with each."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tools
from benchmarks.settings import PART_BYTES, PROJECT
from benchmarks.testbed import BUCKET, RAW_PREFIX, Testbed
from dev.servers import S3Server

OURS = "log-rollup"
BOTO3 = "boto3-threads"
S5CMD = "s5cmd"
RCLONE = "rclone"
S3_CONCAT = "s3-concat"
GO_UNLIMITED = "go-unlimited"
GO_250 = "go-250"
CRT_GET = "crt-get"
CRT_GET_PUT = "crt-get-put"
FLOOR_GET = "floor-get"
FLOOR_GET_PUT = "floor-get-put"
# As many concurrent transfers as the pack step; with its default of four rclone would look slow.
RCLONE_OPTIONS = ("--transfers=25", "--checkers=25", "--s3-no-check-bucket", "--config=", "--stats=0")


Command = Sequence[str]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one program; ``shards`` are those of the pack step's plan."""

    testbed: Testbed
    tls: bool
    out_prefix: str
    scratch: Path
    shards: Sequence[Mapping[str, Any]]

    @property
    def server(self) -> S3Server:
        """The S3 server of this run."""
        return self.testbed.servers[self.tls]

    def result(self, number: int = 0) -> Path:
        """Return the file into which a Python program writes its figures."""
        return self.scratch / f"result-{number}.json"

    def python(
        self, module: str, interpreter: Path | None = None, number: int = 0, **options: Any
    ) -> list[str]:
        """Return the command of a program in :mod:`benchmarks.clients`.

        :param number: index of the command within this run
        """
        job = self.scratch / f"job-{number}.json"
        self.testbed.job(self.tls, self.out_prefix, self.result(number), **options).write(job)
        return [str(interpreter or sys.executable), "-m", f"benchmarks.clients.{module}", str(job)]


@dataclass(frozen=True, slots=True)
class Peer:
    """A measured program.

    :param commands: returns the command lines, which run one after the other and are summed; raises MissingError
        if the program cannot be installed
    :param in_python: use the figures that the program reports itself, which exclude imports
    :param writes: whether it writes parts, which are then checked
    """

    name: str
    what: str
    commands: Callable[[Run], Sequence[Command]]
    in_python: bool
    writes: bool = True


def peers(may_install: bool) -> list[Peer]:
    """Return all programs; the two that are compared most closely run one after the other."""

    def go(limit: int) -> Callable[[Run], Sequence[Command]]:
        return lambda run: [_go(run, limit, may_install)]

    return [
        Peer(OURS, "this project's pack step with all checks", _ours, in_python=True),
        Peer(
            FLOOR_GET_PUT,
            "floor, sockets: GET and PUT the same number of bytes",
            _bare("floor", True),
            in_python=True,
        ),
        Peer(BOTO3, "boto3, 16 threads: get_object, join, put_object", _boto3, in_python=True),
        Peer(S5CMD, "s5cmd cat | split, s5cmd cp", _s5cmd, in_python=False),
        Peer(RCLONE, "rclone copy, cat | split, rclone copy", _rclone, in_python=False),
        Peer(S3_CONCAT, "s3-concat from PyPI, 4 x 4 threads", _s3_concat, in_python=True),
        Peer(
            GO_UNLIMITED, "aws-sdk-go, one goroutine per object, no connection limit", go(0), in_python=False
        ),
        Peer(GO_250, "aws-sdk-go, one goroutine per object, MaxConnsPerHost 250", go(250), in_python=False),
        Peer(CRT_GET, "AWS CRT: GET and discard", _bare("crt", False), in_python=True, writes=False),
        Peer(
            CRT_GET_PUT, "AWS CRT: GET and PUT the same number of bytes", _bare("crt", True), in_python=True
        ),
        Peer(
            FLOOR_GET,
            "floor, sockets: GET and discard",
            _bare("floor", False),
            in_python=True,
            writes=False,
        ),
    ]


def environment(server: S3Server, scratch: Path) -> dict[str, str]:
    """Return the environment of a program: the server's settings, and none of the user's."""
    ca = str(server.tls.ca) if server.tls else ""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "LANG": "C.UTF-8",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "plugins")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AIRFLOW_HOME": str(scratch / "airflow"),
        "AIRFLOW_CONN_AWS_DEFAULT": server.airflow_connection_json(),
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_PROVIDER": "Rclone",
        "RCLONE_CONFIG_BENCH_ENDPOINT": server.endpoint_url,
        "RCLONE_CONFIG_BENCH_REGION": server.region,
        "RCLONE_CONFIG_BENCH_ENV_AUTH": "true",
        # Go programs read the trusted authorities from here.
        **({"SSL_CERT_FILE": ca, "RCLONE_CA_CERT": ca} if ca else {}),
    }


def _ours(run: Run) -> Sequence[Command]:
    """Return one command for each shard, as Airflow runs one task for each."""
    return [
        run.python("rollup_steps", number=number, step="pack", shards=[shard])
        for number, shard in enumerate(run.shards)
    ]


def _boto3(run: Run) -> Sequence[Command]:
    return [run.python("boto3_pool")]


def _s3_concat(run: Run) -> Sequence[Command]:
    return [run.python("s3concat", tools.peer_venv().python)]


def _bare(module: str, put: bool) -> Callable[[Run], Sequence[Command]]:
    return lambda run: [run.python(module, put=put)]


def _s5cmd(run: Run) -> Sequence[Command]:
    s5cmd = [str(tools.peer_venv().s5cmd), "--endpoint-url", run.server.endpoint_url]
    parts = run.scratch / "parts"
    return _script(
        ["mkdir", str(parts)],
        [*s5cmd, "cat", f"s3://{BUCKET}/{RAW_PREFIX}*", "|", *_split(parts)],
        [*s5cmd, "cp", f"{parts}/", f"s3://{BUCKET}/{run.out_prefix}"],
    )


def _rclone(run: Run) -> Sequence[Command]:
    rclone = [str(Path(sys.executable).with_name("rclone")), "copy", *RCLONE_OPTIONS]
    raw, parts = run.scratch / "raw", run.scratch / "parts"
    return _script(
        ["mkdir", str(parts)],
        [*rclone, f"bench:{BUCKET}/{RAW_PREFIX}", str(raw)],
        [
            "find",
            str(raw),
            "-type",
            "f",
            "-print0",
            "|",
            "sort",
            "-z",
            "|",
            "xargs",
            "-0",
            "cat",
            "|",
            *_split(parts),
        ],
        [*rclone, str(parts), f"bench:{BUCKET}/{run.out_prefix}"],
    )


def _split(folder: Path) -> list[str]:
    return [
        "split",
        f"--bytes={PART_BYTES}",
        "--numeric-suffixes",
        "--suffix-length=5",
        "-",
        f"{folder}/part-",
    ]


def _go(run: Run, limit: int, may_install: bool) -> Command:
    return [
        str(tools.go_program(may_install)),
        f"-endpoint={run.server.endpoint_url}",
        f"-region={run.server.region}",
        f"-bucket={BUCKET}",
        f"-raw={RAW_PREFIX}",
        f"-out={run.out_prefix}",
        f"-part-bytes={PART_BYTES}",
        f"-max-conns={limit}",
    ]


def _script(*steps: Sequence[str]) -> list[Command]:
    """Return a shell script of these steps; ``|`` is a pipe."""
    lines = (" ".join(word if word == "|" else shlex.quote(word) for word in step) for step in steps)
    return [["bash", "-c", "set -euo pipefail\n" + "\n".join(lines)]]


def figures(path: Path) -> dict[str, Any]:
    """Return the figures that a Python program wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
