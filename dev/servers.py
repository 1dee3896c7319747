"""Real S3 servers, each a process of its own.

What each does was seen with rclone 1.75.2, moto 5.2.5 and MiniStack 1.4.21;
``tests/unit/test_support_servers.py`` checks most of it. What S3 does and none of them does is added by rules of
:mod:`tests.support.faults`.

====================================  ================================  ====================================
request                               rclone                            moto
====================================  ================================  ====================================
wrong access key, wrong secret        403 InvalidAccessKeyId,           accepted; the same 403s, and a
                                      SignatureDoesNotMatch             user's policy, within
                                                                        ``enforced_authentication``
PUT with x-amz-checksum-crc64nvme     stored as sent, right or wrong;   the same, if the request bears
                                      every HEAD and GET returns it,    x-amz-sdk-checksum-algorithm, too;
                                      asked or not                      returned where asked for, not with
                                                                        a Range
PUT with a wrong Content-MD5          400 BadDigest                     accepted
PUT whose body is not the signed one  accepted                          accepted
If-Match, If-None-Match               ignored                           honoured: 412
x-amz-copy-source-if-match            ignored                           ignored (if-none-match is honoured)
If-Match of DeleteObject              ignored                           honoured: 412
CopyObject                            keeps metadata and CRC; REPLACE   keeps both; REPLACE replaces; makes
                                      merges the old with the new       a CRC where asked for
UploadPartCopy                        stores an empty part              copies
multipart upload, its ETag            MD5 of the whole in HEAD, LIST    ``...-N``
user metadata                         names come back ``Like-This``     names come back as sent
restart                               keeps bodies, loses metadata,     loses everything
                                      CRCs and storage classes
LIST                                  ETags without quotes; KeyCount    as S3
                                      missing where it is 0
keys with ``//``, ``/./``, ``/../``   400 InvalidArgument               as S3
an object ``a`` and one ``a/b``       500 InternalError for the second  as S3
a key's step of over 255 bytes        500 InternalError                 as S3
control characters                    listed as other characters        as S3, newline 404
placeholder ``a/``                    becomes the object ``a``          as S3
uploads into a new folder at once     now and then a 500                as S3
connections                           kept alive                        closed after every answer
====================================  ================================  ====================================

The same on both and as in S3: spaces, ``+``, ``%``, ``&``, quotes and any Unicode in keys; the order of a LIST;
StartAfter, Delimiter, MaxKeys, encoding-type=url; empty objects; Range; DeleteObjects; ListMultipartUploads; a
Date in every answer; 100-continue; presigned URLs.

MiniStack does in each of these rows what S3 does, with these exceptions:

- Access keys and signatures aren't checked, nor is the SHA-256 of a body; presigned URLs are checked.
- A CRC64-NVME is compared with the body only if the request also has x-amz-sdk-checksum-algorithm; otherwise
  it is stored as sent. A wrong one is refused with 400 BadDigest. A CRC32C is refused with 400 InvalidRequest.
- CopyObject keeps the CRC of the source, but makes none where the request asks for one.
- UploadPartCopy ignores x-amz-copy-source-if-match. CopyObject honours it.
- The CRC of a multipart upload is composite, also where FULL_OBJECT was asked for.
- DeleteObject with If-Match answers 204 where there is no such object.
- Everything is in memory and lost at a restart.

So rclone is for volume, speed, signatures and restarts; moto for odd keys, placeholders, policies; MiniStack for
checksums and conditions, as AWS has them.
"""

import abc
import functools
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
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
import botocore.config
import botocore.session
import psutil

from dev import guard
from dev.stack.s3_servers import MINISTACK_PROGRAM
from dev.tls import TlsFiles

S3Client = Any
"""A plain client of boto3; boto3 makes its classes at run time, so there is no type to name."""

REGION = "us-east-1"
SESSION_VARIABLE = "LOG_ROLLUP_TEST_SESSION"
"""Environment variable that marks what a test session started; it is handed down to servers."""

_BIND_ATTEMPTS = 5
_STOP_SECONDS = guard.GRACE_SECONDS + 5.0
_HANDED_DOWN = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", SESSION_VARIABLE)


class ServerError(RuntimeError):
    """A server did not start, or could not be ended; the message carries the end of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plain_client(
    endpoint_url: str,
    access_key: str,
    secret_key: str,
    *,
    verify: Path | None = None,
    read_timeout_seconds: float = 30.0,
    max_connections: int = 10,
) -> S3Client:
    """A boto3 S3 client that depends on nothing but its arguments: no profile, no proxy, no retries.

    Path style, Signature Version 4, checksums only where S3 demands them.

    :param verify: the authority's certificate, for TLS
    """
    return _session().client(
        "s3",
        region_name=REGION,
        endpoint_url=endpoint_url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        verify=str(verify) if verify else None,
        config=botocore.config.Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=read_timeout_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=max_connections,
            proxies={},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )


# One for all clients: a session of its own would cost each of them half a second of reading S3's description.
@functools.cache
def _session() -> boto3.Session:
    core = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    return boto3.Session(botocore_session=core)


class S3Server(abc.ABC):
    """A server process: started, awaited, logged, and ended with everything that belongs to it.

    The process runs in a session of its own below a guard (:mod:`dev.guard`), which ends it even
    if this process is killed. It sees nothing of the user's environment or configuration. After
    :meth:`stop` or :meth:`kill`, :meth:`start` brings it up again on the same port.

    :param state_dir: where data and log go; a new temporary directory, removed at the end, if not given
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
        """The command line that serves on ``self.port``."""

    def environment(self) -> dict[str, str]:
        """The whole environment of the process."""
        handed_down = {name: os.environ[name] for name in _HANDED_DOWN if name in os.environ}
        return handed_down | {"HOME": str(self.state_dir), "TMPDIR": str(self.state_dir)}

    @property
    def endpoint_url(self) -> str:
        """``http://127.0.0.1:PORT``, or https with TLS."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the process and return as soon as it answers.

        :raises ServerError: if it ends, or does not answer within ``start_seconds``
        """
        if self.running:
            raise ServerError(f"{type(self).__name__} is running already, on port {self.port}")
        fixed_port = self.port
        deadline = time.monotonic() + self.start_seconds
        for _attempt in range(_BIND_ATTEMPTS):
            # Between finding a port and the server's bind another process may take it: then try the next.
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
        """End the process: SIGTERM, and SIGKILL to whatever is left of its group after a grace time."""
        guard_process, self._guard = self._guard, None
        if guard_process is None:
            return
        assert guard_process.stdin is not None
        assert guard_process.stdout is not None
        guard_process.stdin.close()
        try:
            guard_process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # The guard is not reaped yet, so its id still names our own process group.
            with suppress(ProcessLookupError):
                os.killpg(guard_process.pid, signal.SIGKILL)
            guard_process.wait(_STOP_SECONDS)
        guard_process.stdout.close()
        if self.pid and psutil.pid_exists(self.pid):
            _await_end(self.pid, str(self.log_path))
        self.pid = 0

    def kill(self) -> None:
        """End the process without warning, as a crash would."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def close(self) -> None:
        """Stop, and remove data and log if the directory is this server's own."""
        self.stop()
        if self._own_state_dir:
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
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
        """A plain client of this server, see :func:`plain_client`.

        :param endpoint_url: another way to the server, such as a proxy's
        :param verify: the authority of that other way; this server's own if not given
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
        """The value of ``AIRFLOW_CONN_AWS_DEFAULT`` that leads to this server.

        :param endpoint_url: another way to the server, such as a proxy's
        :param verify: the authority of that other way; this server's own if not given
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
        """Make an empty bucket."""
        self.client().create_bucket(Bucket=bucket)

    def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket and everything in it."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [found["Key"] for found in page.get("Contents", [])]
            # XML has no way to name a control character, and a DeleteObjects is XML.
            together = [{"Key": key} for key in keys if min(key) >= " "]
            if together:
                client.delete_objects(Bucket=bucket, Delete={"Objects": together, "Quiet": True})
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
        """Whether the process itself, and not a stranger on its port, answered before the deadline."""
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


class RcloneServer(S3Server):
    """``rclone serve s3`` over a directory: fast, objects are plain files below ``data_dir/BUCKET/``."""

    def __init__(self, state_dir: Path | None = None, tls: TlsFiles | None = None) -> None:
        super().__init__(state_dir, tls)
        self.data_dir = self.state_dir / "data"
        self.data_dir.mkdir(exist_ok=True)

    def command(self) -> list[str]:
        """See :meth:`S3Server.command`."""
        return [
            str(Path(sys.executable).with_name("rclone")),
            "serve",
            "s3",
            str(self.data_dir),
            # An empty name keeps the configuration in memory: the user's own is never read.
            "--config=",
            f"--cache-dir={self.state_dir / 'cache'}",
            f"--addr=127.0.0.1:{self.port}",
            f"--auth-key={self.access_key},{self.secret_key}",
            "--vfs-cache-mode=off",
            *([f"--cert={self.tls.certificate}", f"--key={self.tls.key}"] if self.tls else []),
        ]

    def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket and everything in it, as files; the server may show its name for a while yet."""
        shutil.rmtree(self.data_dir / bucket)


class MotoServer(S3Server):
    """``moto_server``: strict and complete, slow, everything in memory."""

    # Importing moto and all that it stands on takes seconds on a busy machine.
    start_seconds = 60.0

    def command(self) -> list[str]:
        """See :meth:`S3Server.command`."""
        return [
            str(Path(sys.executable).with_name("moto_server")),
            "--host=127.0.0.1",
            f"--port={self.port}",
            *([f"--ssl-cert={self.tls.certificate}", f"--ssl-key={self.tls.key}"] if self.tls else []),
        ]

    def reset(self) -> None:
        """Forget all buckets, objects and users; a matter of milliseconds."""
        self._api("/moto-api/reset")

    @contextmanager
    def enforced_authentication(self, *actions: str) -> Iterator[tuple[str, str]]:
        """Check signatures and permissions while the block runs; outside it, moto takes any credentials.

        :param actions: what the new user may do, such as ``s3:GetObject``; everything in S3 if none is named
        :returns: access key and secret key of that user, the only one that there is
        """
        allowed = {"Effect": "Allow", "Action": list(actions) or ["s3:*"], "Resource": "*"}
        with self.enforced_policy({"Version": "2012-10-17", "Statement": [allowed]}) as keys:
            yield keys

    @contextmanager
    def enforced_policy(self, policy: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The same with a whole policy, as IAM has it."""
        iam = _session().client(
            "iam",
            region_name=self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=str(self.tls.ca) if self.tls else None,
        )
        user = f"user-{uuid.uuid4().hex[:12]}"
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="test", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        # The number of requests that are let through unchecked from now on.
        self._api("/moto-api/reset-auth", "0")
        try:
            yield key["AccessKeyId"], key["SecretAccessKey"]
        finally:
            self._api("/moto-api/reset-auth", "inf")

    def _api(self, path: str, body: str = "") -> None:
        connection = self._http(timeout_seconds=30)
        try:
            connection.request("POST", path, body=body)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"moto answered {response.status} to POST {path}: {text}")


class MinistackServer(S3Server):
    """``ministack``: the rules of S3 for checksums and conditions, fast, everything in memory."""

    def command(self) -> list[str]:
        """See :meth:`S3Server.command`."""
        return [sys.executable, "-I", str(MINISTACK_PROGRAM)]

    def environment(self) -> dict[str, str]:
        """See :meth:`S3Server.environment`; MiniStack takes all of its settings from there."""
        settings = {
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_REGION": self.region,
            # Of its many services S3 alone; those with a port of their own are switched off by name.
            "SERVICES": "s3",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            # It checks the signatures of presigned URLs alone, with this key.
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # At its start and end it removes containers with its label: it must not find any.
            "DOCKER_HOST": f"unix://{self.state_dir / 'no-docker.sock'}",
        }
        if self.tls:
            settings |= {
                "USE_SSL": "1",
                "MINISTACK_SSL_CERT": str(self.tls.certificate),
                "MINISTACK_SSL_KEY": str(self.tls.key),
            }
        return super().environment() | settings


def _await_end(pid: int, log_path: str) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            raise ServerError(f"process {pid} is still there after SIGKILL; its log is {log_path}")
        time.sleep(0.02)
