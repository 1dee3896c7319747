"""The local stack: an S3 server and a real Airflow of four processes, started and stopped together."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from dev.stack import processes
from dev.stack.airflow_api import AirflowApi, ApiUnavailableError
from dev.stack.bucket import make_client, upload_bucket
from dev.stack.environment import (
    Addresses,
    AirflowFolders,
    Secrets,
    airflow_environment,
    clean_environment,
    load_secrets,
)
from dev.stack.paths import DAG_FOLDER, PLUGINS_FOLDER, PROJECT, StackPaths, read_json, write_json
from dev.stack.processes import ProcessRecord
from dev.stack.s3_servers import RCLONE, SERVERS, MissingProgramError

S3 = "s3"
MIGRATE = "db-migrate"
API_SERVER = "api-server"
POSTGRES = "postgres"
REDIS = "redis"
# In this order they are stopped, after everything else.
_SERVERS = ((API_SERVER,), (S3, POSTGRES, REDIS))
# The log servers of scheduler and triggerer listen on all interfaces, and are for other machines.
_WORKERS: Mapping[str, Sequence[str]] = {
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
# Idle processes end within a second or two. A task takes no notice of SIGTERM, and waiting for it to be
# done would take as long as it takes.
_WORKER_GRACE_SECONDS = 5.0
_SERVER_GRACE_SECONDS = 6.0
_POLL_SECONDS = 0.5
_LOG_TAIL_LINES = 30


class StackError(Exception):
    """The stack couldn't be started or didn't stay up; the message says which process, and shows its log."""


@dataclass(frozen=True)
class StackRecord:
    """A stack as it was started, in `stack.json`: its addresses, its processes, the name of its S3 server."""

    addresses: Addresses
    processes: tuple[ProcessRecord, ...]
    s3: str = RCLONE

    def dead(self) -> list[ProcessRecord]:
        """Return the processes that should live and don't."""
        return [record for record in self.processes if processes.find(record) is None]


@dataclass
class LocalStack:
    """A context manager that runs the stack under a directory; on leaving, nothing of it still runs.

    `s3` names the S3 server, one of :data:`dev.stack.s3_servers.SERVERS`. One that keeps objects in memory gets
    the files of the bucket's folder each time it starts.

    With `ui_port` or `s3_port` None a free port is taken. `streams`, `dags` and `plugins` name other files
    and folders than those of the demo and the project, and `extra_env` adds variables for Airflow's
    processes. `say` is called with what is being done.
    """

    state: Path
    project: Path = PROJECT
    streams: Path | None = None
    dags: Path | None = None
    plugins: Path | None = None
    ui_port: int | None = None
    s3_port: int | None = None
    s3: str = RCLONE
    parallelism: int = 8
    extra_env: Mapping[str, str] = field(default_factory=dict)
    boot_timeout_seconds: float = 300
    say: Callable[[str], None] = lambda _message: None

    def __post_init__(self) -> None:
        """Choose the addresses and make the keys, so that both are known before anything runs."""
        self.paths = StackPaths(self.state.resolve())
        ui_port, s3_port = free_ports(self.ui_port, self.s3_port)
        self.addresses = Addresses(ui_port=ui_port, s3_port=s3_port)
        self.secrets: Secrets = load_secrets(self.paths)
        self.api = AirflowApi(self.addresses.ui_url)
        self._records: list[ProcessRecord] = []
        self._killed: list[ProcessRecord] = []

    @property
    def s3_endpoint(self) -> str:
        """Address of the S3 server."""
        return self.addresses.s3_endpoint

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of the Airflow processes, for an `airflow` command beside them too."""
        folders = AirflowFolders(
            project=self.project.resolve(),
            dags=(self.dags or self.project / DAG_FOLDER).resolve(),
            plugins=(self.plugins or self.project / PLUGINS_FOLDER).resolve(),
            streams=(self.streams or self.paths.streams).resolve(),
        )
        settings = airflow_environment(self.paths, folders, self.addresses, self.secrets, self.parallelism)
        return clean_environment(os.environ) | settings | dict(self.extra_env)

    def __enter__(self) -> Self:
        """Start everything and wait until all of it is healthy."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        self.stop()

    def start(self) -> None:
        """Start everything and wait until all of it is healthy; what was started is stopped on any error.

        :raises StackError: when a process ends, or isn't healthy after `boot_timeout_seconds`.
        """
        deadline = time.monotonic() + self.boot_timeout_seconds
        try:
            self.paths.s3.mkdir(parents=True, exist_ok=True)
            self.paths.airflow_home.mkdir(parents=True, exist_ok=True)
            self.say(f"starting S3 at {self.s3_endpoint}")
            self._start_s3(deadline)
            self._start_stores(deadline)
            self.say("making Airflow's database")
            self._run_to_end(MIGRATE, self._init_command(), deadline)
            self.say(f"starting Airflow at {self.addresses.ui_url}")
            # First the server that tasks report to, until it answers them: the scheduler starts tasks as soon
            # as it runs, and on a slow machine they would give up before a server that starts beside them.
            self._spawn(API_SERVER, self._airflow_command((API_SERVER,)), self.env)
            self._wait_until(self._server_faults, deadline)
            for name, arguments in self._workers().items():
                self._spawn(name, self._airflow_command(arguments), self.env)
            self._wait_until(self.api.unhealthy, deadline)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise when a process of the stack has ended.

        :raises StackError: naming it and showing the end of its log.
        """
        dead = self._record().dead()
        if dead:
            raise StackError(_obituary(dead[0]))

    def stop(self) -> int:
        """Stop every process of the stack, and return how many there were, their children counted."""
        with processes.signals_deferred():
            self.api.close()
            count = _stop_in_order([*self._records, *self._killed])
            self._records.clear()
            self._killed.clear()
            self.paths.stack.unlink(missing_ok=True)
        return count

    def process(self, name: str) -> ProcessRecord:
        """Return the process of this name: `s3`, `api-server`, `scheduler`, `dag-processor` or `triggerer`."""
        return next(record for record in self._records if record.name == name)

    def kill(self, name: str, children: bool = False) -> None:
        """Kill a process with SIGKILL, as a crash would; `start_again` has to follow.

        :param children: kill all that it has started with it, as the loss of its machine would; without it,
            they live on until they end or `stop` ends them.
        """
        record = self.process(name)
        self._records.remove(record)
        self._killed.append(record)
        processes.kill(record, children)

    def start_again(self, name: str) -> None:
        """Start a killed process again and wait until all of the stack is healthy.

        :raises StackError: when a process ends, or isn't healthy after `boot_timeout_seconds`.
        """
        deadline = time.monotonic() + self.boot_timeout_seconds
        if name == S3:
            self._start_s3(deadline)
        else:
            self._spawn(name, self._airflow_command(_WORKERS[name]), self.env)
        self._wait_until(self.api.unhealthy, deadline)

    def _start_s3(self, deadline: float) -> None:
        """Start the S3 server; one that keeps objects in memory gets those of the bucket's folder."""
        self._spawn(S3, self._s3_command(), self._s3_env())
        server = SERVERS[self.s3]
        if not server.in_memory:
            return
        self._wait_until(self._s3_faults, deadline)
        count = upload_bucket(make_client(self.s3_endpoint, self.secrets), self.paths)
        self.say(f"uploaded {count:,} raw objects to {server.title}")

    def _start_stores(self, deadline: float) -> None:
        """Start what Airflow keeps its state in; nothing here, where that is a file."""

    def _init_command(self) -> list[str]:
        """Return what has to have ended well before Airflow starts."""
        return self._airflow_command(("db", "migrate"))

    def _workers(self) -> Mapping[str, Sequence[str]]:
        """Return the arguments of the Airflow processes beside the server, by name."""
        return _WORKERS

    def _s3_command(self) -> list[str]:
        try:
            return SERVERS[self.s3].command(self.paths, self.addresses.s3_port)
        except MissingProgramError as error:
            raise StackError(str(error)) from error

    def _s3_env(self) -> dict[str, str]:
        settings = SERVERS[self.s3].settings(self.paths, self.addresses.s3_port, self.secrets)
        return clean_environment(os.environ) | settings

    def _airflow_command(self, arguments: Sequence[str]) -> list[str]:
        # Not the `airflow` script: its first line holds the path at which the environment was made.
        return [sys.executable, "-m", "airflow", *arguments]

    def _spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> ProcessRecord:
        """Start a process and record it; a signal can't come between the two."""
        with processes.signals_deferred():
            record = processes.spawn(name, argv, env, self.paths.state, self.paths.logs / f"{name}.log")
            self._records.append(record)
            write_record(self.paths, self._record())
        return record

    def _record(self) -> StackRecord:
        return StackRecord(self.addresses, tuple(self._records), self.s3)

    def _run_to_end(
        self, name: str, argv: Sequence[str], deadline: float, env: Mapping[str, str] | None = None
    ) -> None:
        record = self._spawn(name, argv, self.env if env is None else env)
        try:
            status = psutil.Process(record.pid).wait(timeout=max(0.0, deadline - time.monotonic()))
        except psutil.TimeoutExpired as error:
            raise StackError(f"{name} did not end in time; {_log_end(record)}") from error
        if status != 0:
            raise StackError(f"{name} ended with status {status}; {_log_end(record)}")
        self._records.remove(record)

    def _server_faults(self) -> list[str]:
        self.api.wake_execution_api()
        return []

    def _s3_faults(self) -> list[str]:
        with closing(socket.socket()) as probe:
            return [S3] if probe.connect_ex(("127.0.0.1", self.addresses.s3_port)) else []

    def _wait_until(self, faults: Callable[[], list[str]], deadline: float) -> None:
        while True:
            self.check()
            try:
                waiting_for = faults()
            except ApiUnavailableError:
                waiting_for = [API_SERVER]
            if not waiting_for:
                return
            if time.monotonic() > deadline:
                raise StackError(
                    f"the stack isn't healthy after {self.boot_timeout_seconds:.0f} s "
                    f"({', '.join(waiting_for)}); its logs are in {self.paths.logs}"
                )
            time.sleep(_POLL_SECONDS)


def write_record(paths: StackPaths, record: StackRecord) -> None:
    """Write down the running stack, so that another command can find and stop it."""
    write_json(paths.stack, asdict(record))


def read_record(paths: StackPaths) -> StackRecord | None:
    """Return the stack that was started and not stopped under this directory, or None."""
    content = read_json(paths.stack)
    if content is None:
        return None
    return StackRecord(
        addresses=Addresses(**content["addresses"]),
        processes=tuple(ProcessRecord(**entry) for entry in content["processes"]),
        # Records of earlier versions don't name the server: they knew rclone alone.
        s3=content.get("s3", RCLONE),
    )


def stop_recorded(paths: StackPaths, record: StackRecord) -> int:
    """Stop a stack that another command has started, and return how many processes that were."""
    with processes.signals_deferred():
        count = _stop_in_order(record.processes)
        paths.stack.unlink(missing_ok=True)
    return count


def _stop_in_order(records: Sequence[ProcessRecord]) -> int:
    """Stop what works first, then what it talks to, so that the logs aren't full of refused connections."""
    servers = {name for group in _SERVERS for name in group}
    count = processes.stop([r for r in records if r.name not in servers], _WORKER_GRACE_SECONDS)
    for group in _SERVERS:
        count += processes.stop([r for r in records if r.name in group], _SERVER_GRACE_SECONDS)
    return count


def _obituary(record: ProcessRecord) -> str:
    return f"the process {record.name} (pid {record.pid}) has ended by itself; {_log_end(record)}"


def _log_end(record: ProcessRecord) -> str:
    return f"the end of {record.log}:\n{processes.tail(Path(record.log), _LOG_TAIL_LINES)}"


def free_ports(*wanted: int | None) -> list[int]:
    """Return the wanted ports, and where none is wanted a free one, all different from each other."""
    with ExitStack() as held:
        ports = []
        for port in wanted:
            # Held open until all are chosen, so that none is handed out twice.
            probe = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(port or int(probe.getsockname()[1]))
    return ports


def port_is_free(port: int) -> bool:
    """Return whether nobody serves a port of 127.0.0.1, neither there nor on all interfaces."""
    with closing(socket.socket()) as probe:
        # Binding alone wouldn't tell: macOS lets one bind a single address of a port that is served on all.
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
