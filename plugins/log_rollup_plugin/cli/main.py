"""The command line: commands and options, errors and exit codes."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from include.log_rollup import __version__
from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    MissingBucketError,
    RollupError,
    TransientError,
)
from log_rollup_plugin.cli import arguments, cost, detect, doctor, expire, grep, hours, objects, restore
from log_rollup_plugin.cli.output import Answer, OutputError, tell

OK = 0
FAILED = 1
USAGE = 2
NO_ACCESS = 3
INTERRUPTED = 130
CLOSED_PIPE = 141

Command = Callable[[argparse.Namespace, Answer], bool | int]
"""Writes the answer; returns whether it is OK, or an exit code."""

_EPILOG = """\
exit codes:
  0  OK
  1  the hour or object is wrong or missing, or a check of doctor failed; grep has found nothing
  2  the command line, the streams file or the connection is wrong; grep could not search everything; the output
     cannot be written; an unexpected error
  3  S3 refuses the request, or cannot be reached
  4  parts are archived: nothing was read; start the same command again when they have been retrieved
  130, 141  interrupted by Ctrl-C; the reader of the output closed the pipe

Times are UTC. Write an hour as 2026-11-23T08 or, as in the bucket, 20261123/08. Only three commands change a
bucket: restore, if you name one; expire; and doctor, which writes small test objects and removes them. With
--retrieve, restore and grep have S3 make copies of archived parts.

Streams and connections are found as in Airflow's own processes: LOG_ROLLUP_STREAMS, AIRFLOW_CONN_..., secrets
backends, the metadata database.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    :raises SystemExit: with 2 if the command line is wrong
    """
    options = _parser().parse_args(argv)
    answer = Answer(sys.stdout)
    try:
        return _run(options, answer)
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        answer.discard()
        return CLOSED_PIPE
    except OutputError as error:
        answer.discard()
        tell(f"log-rollup {options.name}: {error}")
        return USAGE
    except Exception:
        # Python would exit with 1, which means that the hour is wrong, or that grep has found nothing.
        with suppress(OSError):
            traceback.print_exc()
        return USAGE


def _run(options: argparse.Namespace, answer: Answer) -> int:
    command: Command = options.command
    try:
        # Airflow logs to stdout, which has to contain only the answer.
        with redirect_stdout(sys.stderr):
            code = command(options, answer)
        if isinstance(code, bool):
            return OK if code else FAILED
        return code
    except RollupError as error:
        tell(f"log-rollup {options.name}: {error}")
        if options.json:
            document = {"error": {"kind": type(error).__name__, "message": str(error)}}
            answer.json(document, in_one_line=command is grep.grep)
        code = _exit_code(error)
        # As of the command grep, 1 means that nothing was found.
        return grep.INCOMPLETE if code == FAILED and command is grep.grep else code


def _exit_code(error: RollupError) -> int:
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, AccessError | MissingBucketError | TransientError):
        return NO_ACCESS
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="log-rollup",
        description="Shows and verifies the hours of Log Rollup's streams, from the records in the bucket.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    def add(
        command: Command,
        stream: bool = True,
        json: str = "write one JSON document instead of text",
        **how: Any,
    ) -> argparse.ArgumentParser:
        about = (command.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(command.__name__, help=about, description=about, **how)
        sub.set_defaults(command=command)
        sub.add_argument("--json", action="store_true", help=json)
        if stream:
            sub.add_argument("stream", metavar="STREAM", help="name of a stream")
        return sub

    status = add(hours.status, stream=False)
    status.add_argument(
        "stream", metavar="STREAM", nargs="?", help="name of a stream (default: an overview of all streams)"
    )
    status.add_argument(
        "day",
        metavar="DAY",
        nargs="?",
        type=arguments.day_or_hour,
        help="like 2026-11-23, or an hour like 2026-11-23T08 (default: today)",
    )
    status.add_argument("--groups", action="store_true", help="list the groups of each hour, largest first")
    verify = add(hours.verify)
    verify.add_argument("hour", metavar="HOUR", type=arguments.hour, help="like 2026-11-23T08")
    verify.add_argument(
        "--deep",
        action="store_true",
        help="read every byte of the parts, and of the raw objects that still exist",
    )
    add(objects.locate).add_argument("key", metavar="KEY", help="key of a raw object, or s3://bucket/key")
    cat = add(objects.cat)
    cat.add_argument("key", metavar="KEY", help="key of a raw object, or s3://bucket/key")
    cat.add_argument(
        "-o", "--output", metavar="FILE", help="write to a file, which is created only if the CRC is right"
    )
    # -h is that of the command grep.
    searching = add(grep.grep, False, "write a JSON object for each line instead of text", add_help=False)
    searching.add_argument("--help", action="help", help="show this help message and exit")
    grep.add_arguments(searching)
    restore.add_arguments(add(restore.restore))
    expire.add_arguments(add(expire.expire))
    plan = add(hours.plan)
    plan.add_argument("hour", metavar="HOUR", type=arguments.hour, help="like 2026-11-23T08")
    plan.add_argument("--dry-run", action="store_true", help="required, because only Airflow plans hours")
    plan.add_argument(
        "--repack", action="store_true", help="as with 'repack' in the form: pack all parts again"
    )
    cost.add_arguments(add(cost.cost))
    detected = add(detect.detect, stream=False)
    detected.add_argument("url", metavar="URL", help="prefix of the objects, like s3://my-bucket/raw/")
    detected.add_argument(
        "--conn-id",
        metavar="CONNECTION",
        default="aws_default",
        help="name of the Airflow connection (default: aws_default)",
    )
    add(doctor.doctor, stream=False).add_argument(
        "stream", metavar="STREAM", nargs="?", help="name of a stream (default: all streams)"
    )
    return parser
