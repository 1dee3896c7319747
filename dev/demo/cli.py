"""The commands `python -m dev.demo run|up|down`: options, output and exit status."""

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
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dev.demo import group_table, hour_table
from dev.demo.group_table import GroupResult, read_group
from dev.demo.hour_table import HourResult
from dev.demo.hour_watch import DemoFailedError, HourWatch, describe_import_failures
from dev.demo.marker import BadMarkerError, read_marker
from dev.demo.progress import Progress
from dev.demo.settings import InvalidSettingError, one_of, positive
from dev.made_logs.dataset import COMPRESSIONS, NONE, Dataset, NotEnoughDiskError, make_dataset, read_dataset
from dev.made_logs.layouts import LAYOUTS, PLAIN, Layout
from dev.s3_client import S3Client
from dev.stack.airflow_api import AirflowApi, DagRun
from dev.stack.bucket import make_client
from dev.stack.environment import Addresses
from dev.stack.local_stack import LocalStack, StackError
from dev.stack.paths import PROJECT, StackPaths
from dev.stack.ports import port_is_free
from dev.stack.processes import STOP_SIGNALS
from dev.stack.s3_servers import RCLONE, SERVERS
from dev.stack.stack_record import StackRecord, read_record, stop_recorded

DEFAULT_HOURS = 3
DEFAULT_OBJECTS = 300
_DEFAULT_LAYOUTS = {True: PLAIN, False: f"that of the existing hours, or {PLAIN}"}
_UI_PORT = 8080
_DAG_WAIT_SECONDS = 60
# Generous time limits for slow machines: of the demo itself, for each hour, for each object.
_TIMEOUT_SECONDS = (300.0, 90.0, 0.05)


class RefusedError(Exception):
    """The command cannot run now; the message says what to do."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP. A BaseException, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 after a failure, 128 + n after signal n."""
    options = _parser().parse_args(arguments)
    paths = StackPaths(options.state.resolve())
    _raise_on_signals()
    try:
        with _exclusive(paths):
            command: Callable[[StackPaths, argparse.Namespace], int] = options.command
            return command(paths, options)
    except Interrupted as interruption:
        print(f"\nstopped by {interruption}; all processes have ended", file=sys.stderr)
        return 128 + interruption.number
    except (RefusedError, NotEnoughDiskError, StackError, DemoFailedError, BadMarkerError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def run(paths: StackPaths, options: argparse.Namespace) -> int:
    """Make raw hours, roll them up with a real Airflow, and print the table of the hours."""
    if options.recompress and (options.compression == NONE or options.layout != PLAIN):
        raise RefusedError("RECOMPRESS=true needs COMPRESSION=zstd or gzip, and LAYOUT=plain")
    progress = Progress()
    record = read_record(paths)
    if record is not None and not record.dead():
        raise RefusedError(f"a stack is running at {record.addresses.ui_url}: stop it with `make down` first")
    _reset_state(paths, record)
    server = SERVERS[options.s3]
    dataset = make_dataset(
        paths,
        options.hours,
        options.objects,
        datetime.now(UTC),
        progress.log,
        options.s3,
        options.layout,
        options.compression,
        options.recompress,
    )
    dag_id = dataset.layout.dag_id
    fixed, for_hour, for_object = _TIMEOUT_SECONDS
    timeout_seconds = options.timeout or fixed + options.hours * (for_hour + options.objects * for_object)
    stack = LocalStack(
        paths.state, s3=options.s3, dags=options.dags, parallelism=options.parallelism, log=progress.log
    )
    # No `with` statement: a signal right after __enter__ would leave the stack running.
    try:
        stack.start()
        progress.log(f"Airflow is healthy; waiting for {dag_id} to roll up {len(dataset.hours)} hour(s)")
        watch = HourWatch(stack.api, dag_id, tuple(dataset.by_hour), progress)
        runs = watch.wait(timeout_seconds, stack.check)
        client = make_client(stack.s3_endpoint, stack.secrets)
        hours = _hour_results(client, dataset, runs)
        groups = _group_results(client, paths, dataset)
    finally:
        stack.stop()
    print(f"\n{hour_table.render(hours)}\n")
    if saved := hour_table.describe_compression(hours):
        print(saved)
    if groups:
        print(f"{group_table.render(groups)}\n")
    problems = [problem for hour in hours for problem in hour.problems()]
    problems += [problem for group in groups for problem in group.problems()]
    if problems:
        where = f"the logs are in {paths.logs} and {paths.airflow_home / 'logs'}"
        raise DemoFailedError("\n".join([*problems, where]))
    if server.in_memory:
        print(
            f"{server.title} had all objects in memory, so they are gone now; `make up S3={options.s3} "
            f"LAYOUT={options.layout}` rolls up new hours and keeps running."
        )
    else:
        print(f"All objects are in {paths.bucket}; `make up` shows these runs in Airflow's UI.")
    return 0


def up(paths: StackPaths, options: argparse.Namespace) -> int:
    """Start the stack in the background, with the existing hours or with new ones."""
    progress = Progress()
    record = read_record(paths)
    dataset = read_dataset(paths)
    if record is not None and not record.dead():
        if record.s3 != options.s3:
            raise RefusedError(
                f"a stack with {SERVERS[record.s3].title} is running at {record.addresses.ui_url}: stop it with "
                "`make down` first"
            )
        layout_name = PLAIN if dataset is None else dataset.layout_name
        if options.layout not in (None, layout_name):
            raise RefusedError(
                f"a stack with the layout {layout_name} is running at {record.addresses.ui_url}: stop it with "
                "`make down` first"
            )
        print("The stack is already running.")
        _print_addresses(paths, record.addresses, record.s3, LAYOUTS[layout_name])
        return 0
    if record is not None:
        dead = ", ".join(process.name for process in record.dead())
        progress.log(f"no longer running: {dead}; restarting the stack")
        stop_recorded(paths, record)
    layout_name = options.layout or (PLAIN if dataset is None else dataset.layout_name)
    # Without the objects of earlier runs, Airflow's database is useless: make new hours.
    if (
        dataset is None
        or (dataset.s3, dataset.layout_name) != (options.s3, layout_name)
        or SERVERS[options.s3].in_memory
    ):
        _reset_state(paths, None)
        dataset = make_dataset(
            paths, DEFAULT_HOURS, DEFAULT_OBJECTS, datetime.now(UTC), progress.log, options.s3, layout_name
        )
    ui_port = _UI_PORT if port_is_free(_UI_PORT) else None
    stack = LocalStack(paths.state, s3=options.s3, dags=options.dags, ui_port=ui_port, log=progress.log)
    stack.start()
    _print_addresses(paths, stack.addresses, options.s3, dataset.layout)
    return _wait_for_dag(stack.api, dataset.layout.dag_id)


def down(paths: StackPaths, _options: argparse.Namespace) -> int:
    """Stop the stack that `up` started."""
    record = read_record(paths)
    if record is None:
        print("Nothing is running.")
        return 0
    names = ", ".join(process.name for process in record.processes)
    count = stop_recorded(paths, record)
    print(
        f"Stopped {names}: {count} processes, children included." if count else "The stack had already ended."
    )
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser without the usage before its errors: most people give the options as variables of make."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m dev.demo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (run, up, down):
        sub = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--state",
            type=Path,
            default=PROJECT / ".local",
            help="directory for all files of the demo (default: .local)",
        )
        if command is not down:
            sub.add_argument("--dags", type=Path, help="Dags folder (default: the project's)")
            sub.add_argument(
                "--s3",
                type=partial(_one_of, tuple(SERVERS)),
                metavar="|".join(SERVERS),
                default=RCLONE,
                help="the S3 server to start (default: %(default)s)",
            )
            sub.add_argument(
                "--layout",
                type=partial(_one_of, tuple(LAYOUTS)),
                metavar="|".join(LAYOUTS),
                default=PLAIN if command is run else None,
                help=f"the layout of the raw objects (default: {_DEFAULT_LAYOUTS[command is run]})",
            )
        if command is run:
            sub.add_argument(
                "--hours",
                type=_positive,
                default=DEFAULT_HOURS,
                help="number of raw hours to make (default: %(default)s)",
            )
            sub.add_argument(
                "--objects",
                type=_positive,
                default=DEFAULT_OBJECTS,
                help="raw objects in each hour (default: %(default)s)",
            )
            sub.add_argument(
                "--compression",
                type=partial(_one_of, COMPRESSIONS),
                metavar="|".join(COMPRESSIONS),
                default=NONE,
                help="compression of the parts (default: %(default)s)",
            )
            sub.add_argument(
                "--recompress",
                action="store_true",
                help="decompress compressed raw objects first; needs --compression and the layout plain",
            )
            sub.add_argument(
                "--parallelism",
                type=_positive,
                default=LocalStack.parallelism,
                help="limit of concurrent tasks (default: %(default)s)",
            )
            sub.add_argument(
                "--timeout",
                type=_positive,
                help="seconds to wait for the runs (default: depends on hours and objects)",
            )
    return parser


def _positive(text: str) -> int:
    try:
        return positive(text)
    except InvalidSettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _one_of(names: Sequence[str], text: str) -> str:
    try:
        return one_of(names, text)
    except InvalidSettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _raise_on_signals() -> None:
    """Raise `Interrupted` at the first stop signal, and ignore later ones while the stack stops."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for stop_signal in STOP_SIGNALS:
            signal.signal(stop_signal, lambda _number, _frame: None)
        raise Interrupted(number)

    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, interrupt)


@contextmanager
def _exclusive(paths: StackPaths) -> Iterator[None]:
    """Hold the lock of the state directory; the system releases it when the process ends, however it ends.

    :raises RefusedError: if another command holds it
    """
    paths.state.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"another demo command is running in {paths.state}: wait for it, or stop it with Ctrl-C"
            ) from None
        yield


def _reset_state(paths: StackPaths, record: StackRecord | None) -> None:
    """Stop what a killed demo left running, and remove the files of earlier demos."""
    if record is not None:
        stop_recorded(paths, record)
    for file in (paths.dataset, paths.streams, paths.secrets):
        file.unlink(missing_ok=True)
    for folder in (paths.s3, paths.airflow_home, paths.logs, paths.cache):
        if folder.exists():
            shutil.rmtree(folder)


def _hour_results(client: S3Client, dataset: Dataset, runs: Mapping[datetime, DagRun]) -> list[HourResult]:
    return [
        HourResult(
            made=made,
            run_state=runs[hour].state,
            seconds=runs[hour].duration_seconds,
            marker=read_marker(client, dataset.layout.home(hour)),
        )
        for hour, made in dataset.by_hour.items()
    ]


def _group_results(client: S3Client, paths: StackPaths, dataset: Dataset) -> list[GroupResult]:
    return [
        read_group(client, paths.bucket, made.hour, group) for made in dataset.hours for group in made.groups
    ]


def _print_addresses(paths: StackPaths, addresses: Addresses, s3: str, layout: Layout) -> None:
    server = SERVERS[s3]
    where = "its objects in memory" if server.in_memory else f"its objects in {paths.s3}"
    print(
        f"""
Airflow   {addresses.ui_url}/dags/{layout.dag_id}
          no login, every user is an admin; it listens on this machine only
S3        {addresses.s3_endpoint} ({server.title}), {where}, its keys in {paths.secrets}
Shell     ./log-rollup status {layout.stream}, ./log-rollup doctor, ./log-rollup --help
Logs      {paths.logs} (processes), {paths.airflow_home / "logs"} (tasks)
Stop      make down
""",
        flush=True,
    )


def _wait_for_dag(api: AirflowApi, dag_id: str) -> int:
    """Wait until Airflow has the Dag, and return the exit status; the stack keeps running in any case."""
    deadline = time.monotonic() + _DAG_WAIT_SECONDS
    while time.monotonic() < deadline:
        failures = api.import_failures()
        if failures:
            print(describe_import_failures(failures), file=sys.stderr)
            print(
                "\nAirflow keeps running and loads the file again when it changes: fix it.", file=sys.stderr
            )
            return 1
        if api.dag_is_known(dag_id):
            return 0
        time.sleep(1)
    print(
        f"Airflow has not loaded the Dag {dag_id} after {_DAG_WAIT_SECONDS} s; it keeps running",
        file=sys.stderr,
    )
    return 1
