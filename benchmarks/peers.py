"""The programs that are measured: what each is called, and the command that does the whole job with it."""

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
from benchmarks.stage import BUCKET, RAW_PREFIX, Stage
from dev.servers import S3Server

OURS = "log-rollup"
BOTO3 = "boto3-threads"
S5CMD = "s5cmd"
RCLONE = "rclone"
S3_CONCAT = "s3-concat"
GO_UNBOUNDED = "story-go"
GO_BOUNDED = "story-go-250"
CRT_GET = "crt-get"
CRT_GET_PUT = "crt-get-put"
FLOOR_GET = "floor-get"
FLOOR_GET_PUT = "floor-get-put"
# As many at a time as our own pack step; rclone's four would only make it look slow.
RCLONE_OPTIONS = ("--transfers=25", "--checkers=25", "--s3-no-check-bucket", "--config=", "--stats=0")


Command = Sequence[str]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one program; ``shards`` are those of our plan."""

    stage: Stage
    tls: bool
    out_prefix: str
    scratch: Path
    shards: Sequence[Mapping[str, Any]]

    @property
    def server(self) -> S3Server:
        """The server that it talks to."""
        return self.stage.servers[self.tls]

    def result(self, number: int = 0) -> Path:
        """Where a program in Python writes down what it used."""
        return self.scratch / f"result-{number}.json"

    def python(
        self, module: str, interpreter: Path | None = None, number: int = 0, **options: object
    ) -> list[str]:
        """The command of one of the programs in :mod:`benchmarks.clients`.

        :param number: tells the commands of one run apart
        """
        job = self.scratch / f"job-{number}.json"
        self.stage.job(self.tls, self.out_prefix, self.result(number), **options).write(job)
        return [str(interpreter or sys.executable), "-m", f"benchmarks.clients.{module}", str(job)]


@dataclass(frozen=True, slots=True)
class Peer:
    """A program under measurement.

    :param commands: makes the command lines, which run one after the other and count together; raises
        MissingError where the program cannot be had
    :param in_python: its own figures count, from after its imports
    :param writes: whether it writes parts, which are then checked
    """

    name: str
    what: str
    commands: Callable[[Run], Sequence[Command]]
    in_python: bool
    writes: bool = True


def peers(may_install: bool) -> list[Peer]:
    """All of them, the two whose times are held together next to each other."""

    def story(limit: int) -> Callable[[Run], Sequence[Command]]:
        return lambda run: [_story(run, limit, may_install)]

    return [
        Peer(OURS, "this project's pack step, every check on", _ours, in_python=True),
        Peer(
            FLOOR_GET_PUT, "floor, sockets: GET and PUT as many bytes", _bare("floor", True), in_python=True
        ),
        Peer(BOTO3, "boto3, 16 threads: get_object, join, put_object", _boto3, in_python=True),
        Peer(S5CMD, "s5cmd cat | split, s5cmd cp", _s5cmd, in_python=False),
        Peer(RCLONE, "rclone copy, cat | split, rclone copy", _rclone, in_python=False),
        Peer(S3_CONCAT, "s3-concat of PyPI, 4 x 4 threads", _s3_concat, in_python=True),
        Peer(GO_UNBOUNDED, "the story's Go program, no limit of connections", story(0), in_python=False),
        Peer(GO_BOUNDED, "the story's Go program, MaxConnsPerHost 250", story(250), in_python=False),
        Peer(CRT_GET, "AWS CRT: GET and throw away", _bare("crt", False), in_python=True, writes=False),
        Peer(CRT_GET_PUT, "AWS CRT: GET and PUT as many bytes, no more", _bare("crt", True), in_python=True),
        Peer(
            FLOOR_GET,
            "floor, sockets: GET and throw away",
            _bare("floor", False),
            in_python=True,
            writes=False,
        ),
    ]


def environment(server: S3Server, scratch: Path) -> dict[str, str]:
    """What a program sees: the server, and nothing of the user's own settings."""
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
        # Programs in Go take the authorities that they trust from here.
        **({"SSL_CERT_FILE": ca, "RCLONE_CA_CERT": ca} if ca else {}),
    }


def _ours(run: Run) -> Sequence[Command]:
    """A process for each shard, as each is a task; all after each other."""
    return [
        run.python("ours", number=number, step="pack", shards=[shard])
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


def _story(run: Run, limit: int, may_install: bool) -> Command:
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
    """Steps one after the other, as one would write them in a script; ``|`` is a pipe."""
    lines = (" ".join(word if word == "|" else shlex.quote(word) for word in step) for step in steps)
    return [["bash", "-c", "set -euo pipefail\n" + "\n".join(lines)]]


def figures(path: Path) -> dict[str, Any]:
    """What a program in Python wrote down."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
