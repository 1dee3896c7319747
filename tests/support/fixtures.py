"""The pytest plugin with servers, buckets and proxies; it fails a session that leaves processes running.

A conftest loads it with ``pytest_plugins = ["tests.support.fixtures"]``.
"""

import fcntl
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from dev.servers import SESSION_VARIABLE, MinistackServer, MotoServer, RcloneServer, S3Server
from dev.tls import TlsFiles, make_tls_files
from tests.support.cheap_clients import share_models
from tests.support.observe import (
    describe_process,
    is_running,
    processes_with_environment,
    with_descendants,
)
from tests.support.proxy import FaultProxy

_SETTLE_SECONDS = 2.0
# A helper process of Python's multiprocessing, which ends together with the interpreter.
_RESOURCE_TRACKER = "multiprocessing.resource_tracker"

_processes_before = pytest.StashKey[frozenset[int]]()
_session_mark = pytest.StashKey[str]()
_processes_left = pytest.StashKey[list[str]]()

BucketFactory = Callable[[S3Server], str]


class ProxyFactory(Protocol):
    """The type of the fixture ``fault_proxy``."""

    def __call__(self, server: S3Server, tls: TlsFiles | None = None) -> FaultProxy:
        """Return a running proxy in front of a server; with TLS files, it speaks TLS to its clients."""


def pytest_configure(config: pytest.Config) -> None:
    """Mark all processes that this session will start, and remember those that exist already.

    A worker of pytest-xdist uses the mark of the main session, which then finds the processes of both.
    """
    given = getattr(config, "workerinput", {}).get(SESSION_VARIABLE)
    config.stash[_session_mark] = os.environ[SESSION_VARIABLE] = given or uuid.uuid4().hex
    config.stash[_processes_before] = frozenset(with_descendants(os.getpid())())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the mark to a pytest-xdist worker."""
    node.workerinput[SESSION_VARIABLE] = node.config.stash[_session_mark]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a process that it started is still running, as a child or as an orphan with its mark."""
    if hasattr(session.config, "workerinput"):
        return
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (left := _left_processes(session.config)) and time.monotonic() < deadline:
        time.sleep(0.05)
    session.config.stash[_processes_left] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List the processes that are still running."""
    left = config.stash.get(_processes_left, [])
    if left:
        terminalreporter.section("processes left running", red=True, bold=True)
        for line in left:
            terminalreporter.line(line, red=True)


def _left_processes(config: pytest.Config) -> list[str]:
    mine = {os.getpid(), *config.stash[_processes_before]}
    found = set(with_descendants(os.getpid())())
    found.update(processes_with_environment(SESSION_VARIABLE, config.stash[_session_mark]))
    described = [describe_process(pid) for pid in sorted(found - mine) if is_running(pid)]
    return [line for line in described if _RESOURCE_TRACKER not in line]


@pytest.fixture(scope="session", autouse=True)
def cheap_s3_clients() -> Iterator[None]:
    """Make S3 clients with a fraction of the CPU time, see :func:`tests.support.cheap_clients.share_models`."""
    with pytest.MonkeyPatch.context() as patch:
        share_models(patch)
        yield


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A migrated metadata database in AIRFLOW_HOME; pytest-xdist workers copy the first worker's."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    template, own = shared / "airflow.db", Path(os.environ["AIRFLOW_HOME"]) / "airflow.db"
    with (shared / "airflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if template.exists():
            _copy_database(template, own)
            return
        # `airflow db migrate` does the same, after seconds to import Airflow in a new process.
        from airflow.utils.db import initdb

        initdb()
        _copy_database(own, template)


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database; a copy of the file alone would lack what is still in its write-ahead log."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[RcloneServer]:
    """A fast S3 server for the session; each test makes its own bucket."""
    with RcloneServer() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    """A strict S3 server for the session; each test makes its own bucket."""
    with MotoServer() as server:
        yield server


@pytest.fixture(scope="session")
def ministack_server() -> Iterator[MinistackServer]:
    """An S3 server with AWS's checks, for the session; each test makes its own bucket."""
    with MinistackServer() as server:
        yield server


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A certificate authority and a server certificate for 127.0.0.1."""
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["rclone", "moto"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server in turn: the test runs once on each."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def bucket_name() -> str:
    """A unique bucket name; no bucket is created."""
    return f"bucket-{uuid.uuid4().hex[:16]}"


@pytest.fixture
def make_bucket() -> Iterator[BucketFactory]:
    """Creates empty buckets on given servers; they and their objects are deleted after the test."""
    with ExitStack() as stack:

        def make(server: S3Server) -> str:
            name = f"bucket-{uuid.uuid4().hex[:16]}"
            server.create_bucket(name)
            stack.callback(server.delete_bucket, name)
            return name

        yield make


@pytest.fixture
def bucket(s3_server: S3Server, make_bucket: BucketFactory) -> str:
    """An empty bucket on ``s3_server``, deleted after the test."""
    return make_bucket(s3_server)


@pytest.fixture
def fault_proxy() -> Iterator[ProxyFactory]:
    """Starts proxies: ``fault_proxy(server)`` or ``fault_proxy(server, tls=tls_files)``. They end after the test.

    If the function of a rule has raised an error, the test fails.
    """
    with ExitStack() as stack:

        def make(server: S3Server, tls: TlsFiles | None = None) -> FaultProxy:
            authority: Path | None = server.tls.ca if server.tls else None
            return stack.enter_context(FaultProxy(server.endpoint_url, tls=tls, upstream_ca=authority))

        yield make
