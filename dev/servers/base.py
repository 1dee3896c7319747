"""An S3 server process: started, awaited, logged, and ended together with everything it started."""

import abc
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from dev.s3_client import S3Client, plain_client
from dev.servers import guard
from dev.stack.environment import REGION
from dev.tls import TlsFiles

SESSION_VARIABLE = "LOG_ROLLUP_TEST_SESSION"
"""Environment variable that marks the processes of a test session; servers inherit it."""

_BIND_ATTEMPTS = 5
_STOP_SECONDS = guard.GRACE_SECONDS + 5.0
_INHERITED = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", SESSION_VARIABLE)


class ServerError(RuntimeError):
    """A server did not start or could not be ended; the message shows the end of its log."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3Server(abc.ABC):
    """A server process on a port of 127.0.0.1.

    It runs in its own session below :mod:`dev.servers.guard`, which ends it even if this process is killed. It
    does not get the user's environment or configuration. After :meth:`stop` or :meth:`kill`, :meth:`start`
    starts it again on the same port.

    :param state_dir: directory of data and log; by default a temporary one, removed by :meth:`close`
    :param tls: serve TLS with these files
    """

    access_key = "test-access-key"
    secret_key = "test-secret-key-0123456789"
    region = REGION
    start_seconds = 30.0

    def __init__(self, state_dir: Path | None = None, tls: TlsFiles | None = None) -> None:
        self.tls = tls
        self._own_state_dir = state_dir is None
        self.state_dir = state_dir or Path(tempfile.mkdtemp(prefix="log-rollup-s3-"))
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = self.state_dir / "server.log"
        self.port = 0
        self.pid = 0
        self._guard: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def command(self) -> list[str]:
        """Return the command line of a server on ``self.port``."""

    def environment(self) -> dict[str, str]:
        """Return the complete environment of the process."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return inherited | {"HOME": str(self.state_dir), "TMPDIR": str(self.state_dir)}

    @property
    def endpoint_url(self) -> str:
        """``http://127.0.0.1:PORT``, or https with TLS."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the process and wait until it answers.

        :raises ServerError: if it ends or does not answer within ``start_seconds``
        """
        if self.running:
            raise ServerError(f"{type(self).__name__} is running already, on port {self.port}")
        fixed_port = self.port
        deadline = time.monotonic() + self.start_seconds
        for _attempt in range(_BIND_ATTEMPTS):
            # Another process may take the port before the server binds it: then try another port.
            self.port = fixed_port or free_port()
            self._launch()
            if self._await_answer(deadline):
                return
            self.stop()
            if time.monotonic() > deadline:
                break
        raise ServerError(
            f"{type(self).__name__} did not answer on port {self.port} within {self.start_seconds:.0f} s; "
            f"its log ends:\n{self.log_tail()}"
        )

    def stop(self) -> None:
        """End the process with SIGTERM, and what is left of its group after a grace period with SIGKILL."""
        guard_process, self._guard = self._guard, None
        if guard_process is None:
            return
        assert guard_process.stdin is not None
        assert guard_process.stdout is not None
        guard_process.stdin.close()
        try:
            guard_process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # The guard has not been waited for yet, so its id cannot belong to another process group.
            with suppress(ProcessLookupError):
                os.killpg(guard_process.pid, signal.SIGKILL)
            guard_process.wait(_STOP_SECONDS)
        guard_process.stdout.close()
        if self.pid and psutil.pid_exists(self.pid):
            _await_end(self.pid, str(self.log_path))
        self.pid = 0

    def kill(self) -> None:
        """Kill the process, as a crash would."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def close(self) -> None:
        """Stop the process, and remove data and log if the directory is a temporary one."""
        self.stop()
        if self._own_state_dir:
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the server's log."""
        with suppress(FileNotFoundError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        return "(no log)"

    def client(
        self,
        endpoint_url: str | None = None,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        verify: Path | None = None,
        read_timeout_seconds: float = 30.0,
        max_connections: int = 10,
    ) -> S3Client:
        """Return a client of this server, see :func:`dev.s3_client.plain_client`.

        :param endpoint_url: another address of the server, such as that of a proxy
        :param verify: certificate of the authority of that address; by default that of this server
        """
        return plain_client(
            endpoint_url or self.endpoint_url,
            access_key or self.access_key,
            secret_key or self.secret_key,
            verify=verify or (self.tls.ca if self.tls else None),
            read_timeout_seconds=read_timeout_seconds,
            max_connections=max_connections,
        )

    def airflow_connection_json(
        self, endpoint_url: str | None = None, *, verify: Path | None = None, **extra: Any
    ) -> str:
        """Return a value of ``AIRFLOW_CONN_AWS_DEFAULT`` for this server.

        :param endpoint_url: another address of the server, such as that of a proxy
        :param verify: certificate of the authority of that address; by default that of this server
        :param extra: more fields of the connection's extra
        """
        authority = verify or (self.tls.ca if self.tls else None)
        fields: dict[str, Any] = {
            "region_name": self.region,
            "endpoint_url": endpoint_url or self.endpoint_url,
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        }
        if authority:
            fields["verify"] = str(authority)
        return json.dumps(
            {
                "conn_type": "aws",
                "login": self.access_key,
                "password": self.secret_key,
                "extra": fields | extra,
            }
        )

    def create_bucket(self, bucket: str) -> None:
        """Create an empty bucket."""
        self.client().create_bucket(Bucket=bucket)

    def delete_bucket(self, bucket: str) -> None:
        """Delete a bucket with all its objects."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [found["Key"] for found in page.get("Contents", [])]
            # DeleteObjects is XML, which cannot represent control characters.
            in_one_request = [{"Key": key} for key in keys if min(key) >= " "]
            if in_one_request:
                client.delete_objects(Bucket=bucket, Delete={"Objects": in_one_request, "Quiet": True})
            for key in keys:
                if min(key) < " ":
                    client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _launch(self) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(self.log_path), *self.command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.state_dir,
            env=self.environment(),
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        first_line = self._guard.stdout.readline()
        if not first_line:
            self.stop()
            raise ServerError(f"cannot run {self.command()[0]}")
        self.pid = int(first_line)

    def _await_answer(self, deadline: float) -> bool:
        """Return whether the process, and not another one on its port, answers before the deadline."""
        while self.running and time.monotonic() < deadline:
            if self._answers() and self._listens():
                return True
            time.sleep(0.02)
        return False

    def _answers(self) -> bool:
        connection = self._http(timeout_seconds=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _http(self, timeout_seconds: float) -> http.client.HTTPConnection:
        if self.tls:
            return http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=timeout_seconds, context=self.tls.client_context()
            )
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_seconds)

    def _listens(self) -> bool:
        try:
            sockets = psutil.Process(self.pid).net_connections("tcp4")
        except psutil.Error:
            return False
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == self.port for s in sockets)


def _await_end(pid: int, log_path: str) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            raise ServerError(f"process {pid} is still there after SIGKILL; its log is {log_path}")
        time.sleep(0.02)
