"""Starts and stops the local stack: an S3 server and the four processes of a real Airflow."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
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
from dev.stack.paths import DAG_FOLDER, PLUGINS_FOLDER, PROJECT, StackPaths
from dev.stack.ports import free_ports
from dev.stack.processes import ProcessRecord
from dev.stack.s3_servers import RCLONE, SERVERS, MissingProgramError
from dev.stack.stack_record import API_SERVER, S3, StackRecord, stop_in_order, write_record

_MIGRATE = "db-migrate"
_POLL_SECONDS = 0.5
_LOG_TAIL_LINES = 30


class StackError(Exception):
    """The stack did not start or a process ended; the message names the process and shows its log."""


@dataclass
class LocalStack:
    """A context manager that runs the stack below a state directory and stops all its processes at the end.

    :param state: the state directory
    :param project: the project root, from which Airflow imports
    :param streams: the streams file; by default that of the demo
    :param dags: the Dags folder; by default that of the project
    :param plugins: the plugins folder; by default that of the project
    :param ui_port: the port of Airflow's UI and API; by default a free one
    :param s3_port: the port of the S3 server; by default a free one
    :param s3: the S3 server, a key of :data:`dev.stack.s3_servers.SERVERS`. A server that keeps objects in memory
        gets the files of the bucket's directory each time it starts
    :param parallelism: limit of concurrent tasks
    :param extra_env: more variables for Airflow's processes
    :param boot_timeout_seconds: time limit of the start
    :param log: called with a message at each step of the start
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
    log: Callable[[str], None] = lambda _message: None

    def __post_init__(self) -> None:
        """Choose the ports and generate the keys, so that both are known before the start."""
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
        """The complete environment of the Airflow processes, also for other `airflow` commands."""
        folders = AirflowFolders(
            project=self.project.resolve(),
            dags=(self.dags or self.project / DAG_FOLDER).resolve(),
            plugins=(self.plugins or self.project / PLUGINS_FOLDER).resolve(),
            streams=(self.streams or self.paths.streams).resolve(),
        )
        settings = airflow_environment(self.paths, folders, self.addresses, self.secrets, self.parallelism)
        return clean_environment(os.environ) | settings | dict(self.extra_env)

    def __enter__(self) -> Self:
        """Start the stack and wait until it is healthy."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the stack."""
        self.stop()

    def start(self) -> None:
        """Start the stack and wait until it is healthy; on an error stop what was started.

        :raises StackError: if a process ends, or the stack is not healthy after `boot_timeout_seconds`
        """
        deadline = time.monotonic() + self.boot_timeout_seconds
        try:
            self.paths.s3.mkdir(parents=True, exist_ok=True)
            self.paths.airflow_home.mkdir(parents=True, exist_ok=True)
            self.log(f"starting S3 at {self.s3_endpoint}")
            self._start_s3(deadline)
            self._start_stores(deadline)
            self.log("creating Airflow's database")
            self._run_to_end(_MIGRATE, self._init_command(), deadline)
            self.log(f"starting Airflow at {self.addresses.ui_url}")
            *others, (scheduler, scheduler_command) = self._daemons().items()
            for name, command in ((API_SERVER, self._api_server_command()), *others):
                self._spawn(name, command, self.env)
            # The scheduler starts tasks at once, and they give up if the API server does not answer in time, as on
            # a slow machine: so it starts last.
            self._wait_until_ready(self._api_server_pending, deadline)
            self._spawn(scheduler, scheduler_command, self.env)
            self._wait_until_ready(self.api.unhealthy, deadline)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Check that no process of the stack has ended.

        :raises StackError: with its name and the end of its log, if one has
        """
        dead = self._record().dead()
        if dead:
            raise StackError(_describe_end(dead[0]))

    def stop(self) -> int:
        """Stop every process of the stack, and return their number, children included."""
        with processes.signals_deferred():
            self.api.close()
            count = stop_in_order([*self._records, *self._killed])
            self._records.clear()
            self._killed.clear()
            self.paths.stack.unlink(missing_ok=True)
        return count

    def process(self, name: str) -> ProcessRecord:
        """Return the process of this name: `s3`, `api-server`, `scheduler`, `dag-processor` or `triggerer`."""
        return next(record for record in self._records if record.name == name)

    def kill(self, name: str, children: bool = False) -> None:
        """Kill a process with SIGKILL, as a crash would; call `start_again` afterwards.

        :param children: also kill its children, as the loss of the machine would; otherwise they go on until they
            end or `stop` ends them
        """
        record = self.process(name)
        self._records.remove(record)
        self._killed.append(record)
        processes.kill(record, children)

    def start_again(self, name: str) -> None:
        """Start a killed process again and wait until the stack is healthy.

        :raises StackError: if a process ends, or the stack is not healthy after `boot_timeout_seconds`
        """
        deadline = time.monotonic() + self.boot_timeout_seconds
        if name == S3:
            self._start_s3(deadline)
        else:
            self._spawn(name, self._daemons()[name], self.env)
        self._wait_until_ready(self.api.unhealthy, deadline)

    def _start_s3(self, deadline: float) -> None:
        """Start the S3 server; if it keeps objects in memory, upload the files of the bucket's directory."""
        self._spawn(S3, self._s3_command(), self._s3_env())
        server = SERVERS[self.s3]
        if not server.in_memory:
            return
        self._wait_until_ready(self._s3_pending, deadline)
        count = upload_bucket(make_client(self.s3_endpoint, self.secrets), self.paths)
        self.log(f"uploaded {count:,} raw objects to {server.title}")

    def _start_stores(self, deadline: float) -> None:
        """Start the databases of Airflow; nothing by default, because SQLite is a file."""

    def _init_command(self) -> list[str]:
        """Return the command that has to succeed before Airflow starts."""
        return self._airflow_command(("db", "migrate"))

    def _api_server_command(self) -> Sequence[str]:
        return [sys.executable, "-m", "dev.stack.api_server"]

    def _daemons(self) -> Mapping[str, Sequence[str]]:
        """Return the command lines of the Dag processor, triggerer and, last, the scheduler, by process name."""
        # Without log servers: they listen on all interfaces, and only other machines need them.
        return {
            "dag-processor": self._airflow_command(("dag-processor",)),
            "triggerer": self._airflow_command(("triggerer", "--skip-serve-logs")),
            "scheduler": [sys.executable, "-m", "dev.stack.scheduler", "--skip-serve-logs"],
        }

    def _s3_command(self) -> list[str]:
        try:
            return SERVERS[self.s3].command(self.paths, self.addresses.s3_port)
        except MissingProgramError as error:
            raise StackError(str(error)) from error

    def _s3_env(self) -> dict[str, str]:
        settings = SERVERS[self.s3].settings(self.paths, self.addresses.s3_port, self.secrets)
        return clean_environment(os.environ) | settings

    def _airflow_command(self, arguments: Sequence[str]) -> list[str]:
        # Not the `airflow` script: its first line has the path at which the environment was created.
        return [sys.executable, "-m", "airflow", *arguments]

    def _spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> ProcessRecord:
        """Start a process and record it; no signal can interrupt between the two."""
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

    def _api_server_pending(self) -> list[str]:
        self.api.wake_execution_api()
        return []

    def _s3_pending(self) -> list[str]:
        with closing(socket.socket()) as probe:
            return [S3] if probe.connect_ex(("127.0.0.1", self.addresses.s3_port)) else []

    def _wait_until_ready(self, pending: Callable[[], list[str]], deadline: float) -> None:
        """Poll until `pending` returns no component that is not ready yet."""
        while True:
            self.check()
            try:
                waiting_for = pending()
            except ApiUnavailableError:
                waiting_for = [API_SERVER]
            if not waiting_for:
                return
            if time.monotonic() > deadline:
                raise StackError(
                    f"the stack is not healthy after {self.boot_timeout_seconds:.0f} s "
                    f"({', '.join(waiting_for)}); its logs are in {self.paths.logs}"
                )
            time.sleep(_POLL_SECONDS)


def _describe_end(record: ProcessRecord) -> str:
    return f"the process {record.name} (pid {record.pid}) has ended unexpectedly; {_log_end(record)}"


def _log_end(record: ProcessRecord) -> str:
    return f"the end of {record.log}:\n{processes.tail(Path(record.log), _LOG_TAIL_LINES)}"
