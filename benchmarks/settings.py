"""What can be asked of the benchmark, by flags or by the environment."""

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build"
KIB, MIB = 1024, 1024**2
# As in the project's own include/streams.yaml.
PART_BYTES = 32 * MIB
CONNECTIONS = 25

COMMANDS = {
    "compare": "our pack step beside its peers (the default)",
    "latency": "our pack step against answers that come late, by number of connections",
    "planner": "our planner on a million objects",
    "validator": "our validator on 30,000 objects, against a server that keeps CRCs",
    "encoding": "the price of check_encoding on gzip objects",
    "bounds": "the memory of each of our steps on a million objects",
    "profile": "our pack step under py-spy: where its CPU goes",
}
_OBJECTS = {
    "compare": 3_000,
    "latency": 6_000,
    "planner": 1_000_000,
    "validator": 30_000,
    "encoding": 300,
    "bounds": 1_000_000,
    "profile": 3_000,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """One run's settings.

    :param objects: in the raw hour
    :param rounds: how often each program runs
    :param only: parts of names; programs with none of them in theirs are left out
    :param tls: which of plain HTTP (False) and TLS (True) to measure
    :param may_install: whether Debian packages may be installed where they are missing
    """

    command: str
    objects: int
    rounds: int
    only: tuple[str, ...]
    tls: tuple[bool, ...]
    may_install: bool

    def wants(self, name: str) -> bool:
        """Whether a program of this name is to run."""
        return not self.only or any(part.lower() in name.lower() for part in self.only)


def parse(arguments: Sequence[str]) -> Settings:
    """Read the command line; what it leaves out is looked up in the environment, under the name in capitals."""
    listed = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    parser = ArgumentParser(
        "python -m benchmarks", epilog=f"Commands:\n{listed}", formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", default="compare", choices=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--objects", type=int, help="in the raw hour")
    parser.add_argument("--rounds", type=int, help="how often each program runs (3)")
    parser.add_argument("--only", help="parts of names, with commas between: the programs to run")
    parser.add_argument("--tls", choices=("both", "no", "yes"), help="TLS, plain HTTP, or both (both)")
    parser.add_argument(
        "--install", choices=("yes", "no"),
        help="whether a missing Go may be installed by apt-get (yes where this is root's machine)",
    )  # fmt: skip
    return _settings(parser.parse_args(arguments))


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
    )
