"""The fleet of docker-compose.yaml without containers: the same commands and environments, as plain processes.

PostgreSQL and Redis are the installed ones, or Debian's packages if this is root; the S3 server is rclone. Only
addresses, paths and names of workers differ, because all processes share one host.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.make_env import render
from dev.stack import processes
from dev.stack.environment import clean_environment
from dev.stack.local_stack import LocalStack, StackError
from dev.stack.ports import free_ports
from dev.stack.processes import ProcessRecord
from dev.stack.stack_record import API_SERVER, POSTGRES, REDIS, S3
from tests.support import debian
from tests.support.compose import ROOT, Service, dotenv, image_environment, services
from tests.support.observe import with_descendants

TRIGGERER = "airflow-triggerer"
WORKER = "airflow-worker"
_POSTGRES_USER = "postgres"
_POLL_SECONDS = 0.2


@dataclass
class FleetStack(LocalStack):
    """PostgreSQL, Redis, S3, Airflow's four processes and Celery workers, started and stopped together.

    :param worker_count: number of workers at the start
    """

    worker_count: int = 1
    _started_workers: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Choose the ports, generate the keys, and find the programs.

        :raises tests.support.debian.MissingProgramError: if a program is missing
        """
        super().__post_init__()
        # Debian installs it outside PATH, in a folder for each version.
        self._postgres_bin = debian.program("initdb", "postgresql", "usr/lib/postgresql/*/bin").parent
        self._redis_server = debian.program("redis-server", "redis-server")
        self._postgres_port, self._redis_port, self._health_port = free_ports(None, None, None)
        self.variables = dotenv(render((ROOT / ".env.example").read_text())) | {
            # The test writes its own raw hours.
            "INIT_MODULE": "",
            "DEMO_HOURS": "",
            "LOG_ROLLUP_STREAMS": str(self.paths.streams),
        }
        # Directly in /tmp: PostgreSQL's user has no access to the folders of tests.
        self._database = Path(tempfile.mkdtemp(prefix="log-rollup-postgres-"))

    @property
    def service(self) -> Mapping[str, Service]:
        """The services of the compose file."""
        return services(self.variables)

    @property
    def env(self) -> dict[str, str]:
        """The environment that the compose file and the image set, with this machine's addresses."""
        return self._environment(self.project)

    def _environment(self, project: Path) -> dict[str, str]:
        theirs = image_environment() | self.service[WORKER].environment
        return (
            clean_environment(os.environ)
            | {name: self._here(value, project) for name, value in theirs.items()}
            | {
                "AIRFLOW_HOME": str(self.paths.airflow_home),
                "AIRFLOW__API__HOST": "127.0.0.1",
                "AIRFLOW__API__PORT": str(self.addresses.ui_port),
                "AIRFLOW__API__BASE_URL": self.addresses.ui_url,
                "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
                "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(self._health_port),
                "HOSTNAME": socket.gethostname(),
            }
            | dict(self.extra_env)
        )

    @property
    def keys(self) -> tuple[str, str]:
        """Access key and secret key of the S3 server."""
        return self.variables["S3_ACCESS_KEY"], self.variables["S3_SECRET_KEY"]

    @property
    def records(self) -> tuple[ProcessRecord, ...]:
        """All processes that should be running."""
        return tuple(self._records)

    def start(self) -> None:
        """See :meth:`LocalStack.start`; also start the workers."""
        super().start()
        try:
            for _ in range(self.worker_count):
                self.start_worker()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int:
        """See :meth:`LocalStack.stop`; also delete the database."""
        count = super().stop()
        shutil.rmtree(self._database, ignore_errors=True)
        return count

    def start_worker(self, project: Path | None = None) -> ProcessRecord:
        """Start one more worker, and wait until it takes tasks.

        :param project: the root of its code; by default that of all other processes
        """
        self._started_workers += 1
        name = f"{WORKER}-{self._started_workers}"
        record = self._spawn(
            name,
            [
                *self._airflow_command(self.service[WORKER].command),
                *("--celery-hostname", f"{name}@{socket.gethostname()}"),
                *("--pid", str(self.paths.state / f"{name}.pid")),
            ],
            self._environment(project or self.project),
        )
        self._await(f"{name} ready", lambda: " ready." in Path(record.log).read_text(errors="replace"), 90)
        return record

    def workers(self) -> list[ProcessRecord]:
        """Return the workers that should be running."""
        return [record for record in self._records if record.name.startswith(WORKER)]

    def kill_worker(self, record: ProcessRecord) -> None:
        """Kill a worker and all its processes with SIGKILL, as the loss of its container would."""
        members = processes.family([record])
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        psutil.wait_procs(members, timeout=10)
        self._records.remove(record)

    def retire_worker(self, record: ProcessRecord, grace_seconds: float) -> None:
        """Send SIGTERM to a worker's main process, as the container engine does, and wait until it has ended."""
        members = processes.family([record])
        os.kill(record.pid, signal.SIGTERM)
        _gone, left = psutil.wait_procs(members, timeout=grace_seconds)
        for member in left:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self._records.remove(record)

    def toggle_bandwidth_limit(self) -> None:
        """Remove the S3 server's bandwidth limit, or set it again (rclone does so on SIGUSR2)."""
        os.kill(next(one.pid for one in self._records if one.name == S3), signal.SIGUSR2)

    def run_healthcheck(self, service: str) -> None:
        """Run a service's own healthcheck from the compose file.

        :raises subprocess.CalledProcessError: if it fails
        """
        kind, *words = map(self._here, self.service[service].definition["healthcheck"]["test"])
        # Workers that share a host have different names.
        worker = self.workers()[-1].name if self.workers() else WORKER
        words = [word.replace("celery@$", f"{worker}@$") for word in words]
        command = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        subprocess.run(command, env=self.env, check=True, capture_output=True, timeout=60)

    def pids(self) -> list[int]:
        """Return all processes of the fleet."""
        return with_descendants(*(one.pid for one in self.records))()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the fleet so far, including those that have ended."""
        total = 0.0
        for process in processes.family(self._records):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                # Includes the children for which the process has waited.
                total += times.user + times.system + times.children_user + times.children_system
        return total

    # -- steps of LocalStack.start ----------------------------------------------------------------------

    def _start_stores(self, deadline: float) -> None:
        self.log("starting PostgreSQL and Redis")
        self._start_postgres(deadline)
        self._start_redis(deadline)

    def _init_command(self) -> list[str]:
        return self._python_command(self.service["airflow-init"].command)

    def _api_server_command(self) -> Sequence[str]:
        return self._airflow_command((API_SERVER,))

    def _daemons(self) -> Mapping[str, Sequence[str]]:
        names = ("airflow-dag-processor", TRIGGERER, "airflow-scheduler")
        return {name: self._airflow_command(self.service[name].command) for name in names}

    def _s3_command(self) -> list[str]:
        # The command line of the compose file behind the program of the locked package.
        return [super()._s3_command()[0], *map(self._here, self.service["s3"].command)]

    def _s3_env(self) -> dict[str, str]:
        # Slow, so that a task's connections stay open for seconds, as over a network.
        return clean_environment(os.environ) | self.service["s3"].environment | {"RCLONE_BWLIMIT": "12M"}

    # -- PostgreSQL and Redis --------------------------------------------------------------------------

    def _start_postgres(self, deadline: float) -> None:
        given = self.service[POSTGRES].environment
        password = self._database / "password"
        password.write_text(given["POSTGRES_PASSWORD"])
        data = self._database / "data"
        data.mkdir(mode=0o700)
        if os.getuid() == 0:
            owner = pwd.getpwnam(_POSTGRES_USER)
            for path in (self._database, password, data):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        password.chmod(0o600)
        self._run_to_end("initdb", self._unprivileged(
            "initdb", f"--pgdata={data}", f"--username={given['POSTGRES_USER']}", f"--pwfile={password}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        ), deadline)  # fmt: skip
        self._spawn(POSTGRES, self._unprivileged(
            "postgres", "-D", str(data), "-h", "127.0.0.1", "-p", str(self._postgres_port), "-k", "",
        ), clean_environment(os.environ))  # fmt: skip
        ready = [str(self._postgres_bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self._postgres_port)]
        self._await("PostgreSQL ready", lambda: _succeeds(ready), deadline - time.monotonic())
        self._run_to_end(
            "createdb", [str(self._postgres_bin / "createdb"), given["POSTGRES_DB"]], deadline,
            {
                "PGHOST": "127.0.0.1", "PGPORT": str(self._postgres_port), "PGUSER": given["POSTGRES_USER"],
                "PGPASSWORD": given["POSTGRES_PASSWORD"], "PGDATABASE": "postgres",
            },
        )  # fmt: skip

    def _unprivileged(self, program: str, *arguments: str) -> list[str]:
        # PostgreSQL refuses to run as root.
        command = [str(self._postgres_bin / program), *arguments]
        if os.getuid() != 0:
            return command
        user = f"--reuid={_POSTGRES_USER}"
        return [
            str(debian.program("setpriv", "util-linux")),
            user,
            f"--regid={_POSTGRES_USER}",
            "--clear-groups",
            *command,
        ]

    def _start_redis(self, deadline: float) -> None:
        settings = self.paths.state / "redis.conf"
        # Not on the command line, as in the compose file: other users of this machine would see the password.
        given = self.service[REDIS].command
        options = [f"{name.removeprefix('--')} {value or chr(34) * 2}" for name, value in _pairs(given[1:])]
        settings.touch(mode=0o600)
        settings.write_text("\n".join([*options, "bind 127.0.0.1", f"port {self._redis_port}", ""]))
        record = self._spawn(REDIS, [str(self._redis_server), str(settings)], clean_environment(os.environ))
        self._await(
            "Redis ready",
            lambda: "Ready to accept" in Path(record.log).read_text(),
            deadline - time.monotonic(),
        )

    def _python_command(self, command: Sequence[str]) -> list[str]:
        # The image's entry point runs `python` itself, and takes anything else as arguments of `airflow`.
        return [self._airflow_command(())[0], *command[1:]]

    def _here(self, value: str, project: Path | None = None) -> str:
        """Replace addresses and paths of the containers with those of this machine."""
        for theirs, ours in (
            ("/opt/log-rollup", str((project or self.project).resolve())),
            ("/opt/airflow", str(self.paths.airflow_home)),
            ("/demo/s3", str(self.paths.s3)),
            ("/tmp/rclone", str(self.paths.cache)),
            ("@postgres:5432/", f"@127.0.0.1:{self._postgres_port}/"),
            ("@redis:6379/", f"@127.0.0.1:{self._redis_port}/"),
            ("http://airflow-api-server:8080", self.addresses.ui_url),
            ("http://s3:9000", self.s3_endpoint),
            ("http://localhost:8974", f"http://127.0.0.1:{self._health_port}"),
            ("--addr=:9000", f"--addr=127.0.0.1:{self.addresses.s3_port}"),
        ):
            value = value.replace(theirs, ours)
        return value

    def _await(self, what: str, probe: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not probe():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"not {what} after {seconds:.0f} s; the logs are in {self.paths.logs}")
            time.sleep(_POLL_SECONDS)


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0
