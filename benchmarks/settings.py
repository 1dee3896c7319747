"""The options of the benchmarks, from flags or environment variables."""

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build"
KIB, MIB = 1024, 1024**2
# The defaults of a stream.
PART_BYTES = 32 * MIB
CONNECTIONS = 25

COMMANDS = {
    "compare": "the pack step and other programs (default)",
    "latency": "the pack step with delayed responses, by number of connections",
    "planner": "the planner on a million objects",
    "validator": "the validation of 30,000 objects on a server that keeps CRCs",
    "groups": "all steps on 1,000 groups of 30 objects, and one hour of a day's folder",
    "encoding": "the cost of check_encoding on gzip objects",
    "compression": "ratios, and the pack step with and without compression, on real and made logs",
    "restore": "the restore of an hour to a directory, next to s5cmd cp",
    "grep": "the search of an hour, next to s5cmd cat and rclone cat with grep",
    "overview": "the page of all streams, for 200 streams of 48 hours",
    "bounds": "the memory of each step on a million objects",
    "profile": "the CPU profile of the pack step, with py-spy",
}
_OBJECTS = {
    "compare": 3_000,
    "latency": 6_000,
    "planner": 1_000_000,
    "validator": 30_000,
    "groups": 30_000,
    "encoding": 300,
    "compression": 3_000,
    "restore": 3_000,
    "grep": 3_000,
    "overview": 30_000,
    "bounds": 1_000_000,
    "profile": 3_000,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run.

    :param objects: number of raw objects in the hour
    :param rounds: number of runs of each program
    :param only: run only programs whose name contains one of these strings; all if empty
    :param tls: measure plain HTTP (False), TLS (True), or both
    :param may_install: whether to install missing Debian packages
    :param folders: directories of log files, for ``compression``; none for its default
    """

    command: str
    objects: int
    rounds: int
    only: tuple[str, ...]
    tls: tuple[bool, ...]
    may_install: bool
    folders: tuple[Path, ...] = ()

    def wants(self, name: str) -> bool:
        """Return whether to run the program of this name."""
        return not self.only or any(part.lower() in name.lower() for part in self.only)


def parse(arguments: Sequence[str]) -> Settings:
    """Parse the command line; an environment variable with the flag's name in capitals gives the default."""
    listed = "\n".join(f"  {name:11} {what}" for name, what in COMMANDS.items())
    parser = ArgumentParser(
        "python -m benchmarks", epilog=f"Commands:\n{listed}", formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", default="compare", choices=list(COMMANDS), metavar="COMMAND")
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR",
        help="directories of log files, for compression (default: /var/log, and the logs of Airflow's home)",
    )  # fmt: skip
    parser.add_argument("--objects", type=int, help="raw objects in the hour")
    parser.add_argument("--rounds", type=int, help="runs of each program (default: 3)")
    parser.add_argument(
        "--only", help="run only programs whose name contains one of these comma-separated strings"
    )
    parser.add_argument(
        "--tls", choices=("both", "no", "yes"), help="measure TLS, plain HTTP, or both (default: both)"
    )
    parser.add_argument(
        "--install", choices=("yes", "no"),
        help="whether to install a missing Go with apt-get (default: yes for root)",
    )  # fmt: skip
    asked = parser.parse_intermixed_args(arguments)
    if asked.folders and asked.command != "compression":
        parser.error(f"{asked.command} takes no directories")
    return _settings(asked)


def _settings(asked: Namespace) -> Settings:
    def value(name: str, otherwise: str) -> str:
        return str(getattr(asked, name) or os.environ.get(name.upper()) or otherwise)

    return Settings(
        command=asked.command,
        objects=int(value("objects", str(_OBJECTS[asked.command]))),
        rounds=int(value("rounds", "3")),
        only=tuple(part.strip() for part in value("only", "").split(",") if part.strip()),
        tls={"both": (False, True), "no": (False,), "yes": (True,)}[value("tls", "both")],
        may_install=value("install", "yes" if os.geteuid() == 0 else "no") == "yes",
        folders=tuple(asked.folders),
    )
