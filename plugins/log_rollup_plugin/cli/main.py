"""The command line: commands and options, errors and exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    MissingBucketError,
    RollupError,
    TransientError,
)
from log_rollup_plugin.cli import arguments, doctor, hours, objects
from log_rollup_plugin.cli.output import Answer, tell

OK = 0
NOT_RIGHT = 1
USAGE = 2
NO_ACCESS = 3
INTERRUPTED = 130
CLOSED_PIPE = 141

Command = Callable[[argparse.Namespace, Answer], bool]

_EPILOG = """\
exit codes:
  0  all is well
  1  what was looked at is not right, or not there; for doctor, a check failed
  2  the command line, the streams file or the connection is wrong
  3  S3 refuses, or cannot be reached
  130, 141  interrupted (Ctrl-C); the reader of the output went away

Times are UTC. An hour is written 2026-11-23T08 or, as in the bucket, 20261123/08. Only doctor writes into a
bucket: one small object below the stream's _rollup/, which it removes again. Streams and connections are those
of Airflow's own processes: LOG_ROLLUP_STREAMS, AIRFLOW_CONN_..., secrets backends, the metadata database.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit code; a wrong command line exits with 2 at once."""
    options = _parser().parse_args(argv)
    answer = Answer(sys.stdout)
    try:
        return _carry_out(options, answer)
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        answer.give_up()
        return CLOSED_PIPE


def _carry_out(options: argparse.Namespace, answer: Answer) -> int:
    command: Command = options.command
    try:
        # Airflow logs to stdout, which is for the answer alone.
        with redirect_stdout(sys.stderr):
            return OK if command(options, answer) else NOT_RIGHT
    except RollupError as error:
        tell(f"log-rollup {options.name}: {error}")
        if options.json:
            answer.json({"error": {"kind": type(error).__name__, "message": str(error)}})
        return _exit_code(error)


def _exit_code(error: RollupError) -> int:
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, AccessError | MissingBucketError | TransientError):
        return NO_ACCESS
    return NOT_RIGHT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="log-rollup",
        description="Looks at the hours of Log Rollup's streams, by what is in the bucket.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    def add(command: Command, stream: bool = True) -> argparse.ArgumentParser:
        about = (command.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(command.__name__, help=about, description=about)
        sub.set_defaults(command=command)
        sub.add_argument("--json", action="store_true", help="write one JSON document instead of text")
        if stream:
            sub.add_argument("stream", metavar="STREAM", help="name of a stream")
        return sub

    status = add(hours.status)
    status.add_argument(
        "day", metavar="DAY", nargs="?", type=arguments.day, help="like 2026-11-23 (default: today)"
    )
    verify = add(hours.verify)
    verify.add_argument("hour", metavar="HOUR", type=arguments.hour, help="like 2026-11-23T08")
    verify.add_argument(
        "--deep", action="store_true", help="read every byte of the parts, and of raw where it exists"
    )
    add(objects.locate).add_argument("key", metavar="KEY", help="key of a raw object, or s3://bucket/key")
    cat = add(objects.cat)
    cat.add_argument("key", metavar="KEY", help="key of a raw object, or s3://bucket/key")
    cat.add_argument(
        "-o", "--output", metavar="FILE", help="write to a file, which appears only if its CRC is right"
    )
    plan = add(hours.plan)
    plan.add_argument("hour", metavar="HOUR", type=arguments.hour, help="like 2026-11-23T08")
    plan.add_argument("--dry-run", action="store_true", help="needed, because it is Airflow that plans")
    add(doctor.doctor, stream=False).add_argument(
        "stream", metavar="STREAM", nargs="?", help="name of a stream (default: all of them)"
    )
    return parser
