"""The commands `python -m dev.demo run|up|down`: their options, what they say, their exit status."""

from __future__ import annotations

import argparse
import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from dev.demo.hour_watch import DemoFailedError, HourWatch, describe_import_failures
from dev.demo.progress import Progress
from dev.demo.report import BadMarkerError, HourResult, read_marker, render
from dev.made_logs.dataset import DAG_ID, STREAM, Dataset, NotEnoughDiskError, make_dataset, read_dataset
from dev.stack.airflow_api import AirflowApi, DagRun
from dev.stack.bucket import S3Client, make_client
from dev.stack.environment import Addresses
from dev.stack.local_stack import (
    LocalStack,
    StackError,
    StackRecord,
    port_is_free,
    read_record,
    stop_recorded,
)
from dev.stack.paths import PROJECT, StackPaths
from dev.stack.processes import STOP_SIGNALS
from dev.stack.s3_servers import RCLONE, SERVERS

DEFAULT_HOURS = 3
DEFAULT_OBJECTS = 300
_UI_PORT = 8080
_DAG_WAIT_SECONDS = 60
# A generous bound for the slowest machine, not an estimate: for the whole, for an hour, for an object.
_TIMEOUT_SECONDS = (300.0, 90.0, 0.05)


class RefusedError(Exception):
    """The command can't be carried out as things stand; the message says what to do."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP. A BaseException, so that nothing on the way takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command and return the exit status: 0, 1 for a failure, 128 + n for signal n."""
    options = _parser().parse_args(arguments)
    paths = StackPaths(options.state.resolve())
    _raise_on_signals()
    try:
        with _exclusive(paths):
            command: Callable[[StackPaths, argparse.Namespace], int] = options.command
            return command(paths, options)
    except Interrupted as interruption:
        print(f"\nstopped by {interruption}; nothing of it runs any more", file=sys.stderr)
        return 128 + interruption.number
    except (RefusedError, NotEnoughDiskError, StackError, DemoFailedError, BadMarkerError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def run(paths: StackPaths, options: argparse.Namespace) -> int:
    """Make raw hours from nothing, let a real Airflow roll them up, and print the table of the hours."""
    progress = Progress()
    record = read_record(paths)
    if record is not None and not record.dead():
        raise RefusedError(f"a stack is running at {record.addresses.ui_url}: stop it with `make down` first")
    _clean_slate(paths, record)
    server = SERVERS[options.s3]
    dataset = make_dataset(paths, options.hours, options.objects, datetime.now(UTC), progress.say, options.s3)
    fixed, for_hour, for_object = _TIMEOUT_SECONDS
    timeout_seconds = options.timeout or fixed + options.hours * (for_hour + options.objects * for_object)
    stack = LocalStack(
        paths.state, s3=options.s3, dags=options.dags, parallelism=options.parallelism, say=progress.say
    )
    # Not `with`: a signal between the end of __enter__ and the block would leave the stack running.
    try:
        stack.start()
        progress.say(f"Airflow is healthy; waiting for {DAG_ID} to roll up {len(dataset.hours)} hour(s)")
        watch = HourWatch(stack.api, DAG_ID, tuple(dataset.by_hour), progress)
        runs = watch.wait(timeout_seconds, stack.check)
        results = _results(make_client(stack.s3_endpoint, stack.secrets), dataset, runs)
    finally:
        stack.stop()
    print(f"\n{render(results)}\n")
    problems = [problem for result in results for problem in result.problems()]
    if problems:
        where = f"the logs are in {paths.logs} and {paths.airflow_home / 'logs'}"
        raise DemoFailedError("\n".join([*problems, where]))
    if server.in_memory:
        print(
            f"{server.title} kept all of it in memory, so it is gone now; `make up S3={options.s3}` rolls up new "
            "hours and leaves them there to look at."
        )
    else:
        print(f"All of it lies in {paths.bucket}; `make up` shows these runs in Airflow's UI.")
    return 0


def up(paths: StackPaths, options: argparse.Namespace) -> int:
    """Leave the stack running in the background, with what is there, or else with the default demo data."""
    progress = Progress()
    record = read_record(paths)
    if record is not None and not record.dead():
        if record.s3 != options.s3:
            raise RefusedError(
                f"a stack with {SERVERS[record.s3].title} is running at {record.addresses.ui_url}: stop it with "
                "`make down` first"
            )
        print("It is running already.")
        _print_addresses(paths, record.addresses, record.s3)
        return 0
    if record is not None:
        dead = ", ".join(process.name for process in record.dead())
        progress.say(f"no longer running: {dead}; starting all of it again")
        stop_recorded(paths, record)
    dataset = read_dataset(paths)
    # Airflow's database says of its hours that they are complete: without their objects they are of no use.
    if dataset is None or dataset.s3 != options.s3 or SERVERS[options.s3].in_memory:
        _clean_slate(paths, None)
        make_dataset(paths, DEFAULT_HOURS, DEFAULT_OBJECTS, datetime.now(UTC), progress.say, options.s3)
    ui_port = _UI_PORT if port_is_free(_UI_PORT) else None
    stack = LocalStack(paths.state, s3=options.s3, dags=options.dags, ui_port=ui_port, say=progress.say)
    stack.start()
    _print_addresses(paths, stack.addresses, options.s3)
    return _wait_for_dag(stack.api)


def down(paths: StackPaths, _options: argparse.Namespace) -> int:
    """Stop what `up` has left running."""
    record = read_record(paths)
    if record is None:
        print("Nothing is running.")
        return 0
    names = ", ".join(process.name for process in record.processes)
    count = stop_recorded(paths, record)
    print(f"Stopped {names}: {count} processes with their children." if count else "It had ended by itself.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.demo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (run, up, down):
        sub = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--state",
            type=Path,
            default=PROJECT / ".local",
            help="directory for all that it makes (default: .local)",
        )
        if command is not down:
            sub.add_argument("--dags", type=Path, help="another Dags folder than the project's")
            sub.add_argument(
                "--s3",
                choices=tuple(SERVERS),
                default=RCLONE,
                help="the S3 server to start (default: %(default)s)",
            )
        if command is run:
            sub.add_argument(
                "--hours", type=_positive, default=DEFAULT_HOURS, help="how many raw hours to make"
            )
            sub.add_argument(
                "--objects", type=_positive, default=DEFAULT_OBJECTS, help="raw objects in each hour"
            )
            sub.add_argument(
                "--parallelism",
                type=_positive,
                default=LocalStack.parallelism,
                help="how many tasks run at once (default: %(default)s)",
            )
            sub.add_argument(
                "--timeout",
                type=_positive,
                help="seconds for the hours to end (default: by their number and size)",
            )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} should be at least 1")
    return number


def _raise_on_signals() -> None:
    """Turn the first signal into an exception; later ones don't disturb the stopping that it leads to."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for stop_signal in STOP_SIGNALS:
            signal.signal(stop_signal, lambda _number, _frame: None)
        raise Interrupted(number)

    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, interrupt)


@contextmanager
def _exclusive(paths: StackPaths) -> Iterator[None]:
    """Let one command at a time work in a state directory; the lock goes with the process, however it ends.

    :raises RefusedError: when another one does.
    """
    paths.state.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"another demo command is at work in {paths.state}: wait for it, or stop it with Ctrl-C"
            ) from None
        yield


def _clean_slate(paths: StackPaths, record: StackRecord | None) -> None:
    """Remove what an earlier demo made, after stopping what a killed one may have left running."""
    if record is not None:
        stop_recorded(paths, record)
    for file in (paths.dataset, paths.streams, paths.secrets):
        file.unlink(missing_ok=True)
    for folder in (paths.s3, paths.airflow_home, paths.logs, paths.cache):
        if folder.exists():
            shutil.rmtree(folder)


def _results(client: S3Client, dataset: Dataset, runs: Mapping[datetime, DagRun]) -> list[HourResult]:
    return [
        HourResult(
            made=made,
            run_state=runs[hour].state,
            seconds=runs[hour].duration_seconds,
            marker=read_marker(client, hour),
        )
        for hour, made in dataset.by_hour.items()
    ]


def _print_addresses(paths: StackPaths, addresses: Addresses, s3: str) -> None:
    server = SERVERS[s3]
    where = "its objects in memory" if server.in_memory else f"its objects in {paths.s3}"
    print(
        f"""
Airflow   {addresses.ui_url}/dags/{DAG_ID}
          no login: whoever opens it is an admin; it listens on this machine only
S3        {addresses.s3_endpoint} ({server.title}), {where}, its keys in {paths.secrets}
Shell     ./log-rollup status {STREAM}, ./log-rollup doctor, ./log-rollup --help
Logs      {paths.logs} (processes), {paths.airflow_home / "logs"} (tasks)
Stop      make down
""",
        flush=True,
    )


def _wait_for_dag(api: AirflowApi) -> int:
    """Wait until the Dag shows, and return the exit status; the stack runs on in any case, for mending it."""
    deadline = time.monotonic() + _DAG_WAIT_SECONDS
    while time.monotonic() < deadline:
        failures = api.import_failures()
        if failures:
            print(describe_import_failures(failures), file=sys.stderr)
            print("\nAirflow runs on, and loads it again when it is mended.", file=sys.stderr)
            return 1
        if api.dag_is_known(DAG_ID):
            return 0
        time.sleep(1)
    print(f"Airflow hasn't found the Dag {DAG_ID} after {_DAG_WAIT_SECONDS} s; it runs on.", file=sys.stderr)
    return 1
