"""Watching from outside counts what another process really holds."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dev.servers import RcloneServer
from tests.support.fixtures import ProxyFactory
from tests.support.observe import (
    PortWatch,
    Watch,
)

# Opens connections and files, grows, says so, lets go of half the connections, says so, waits to be ended.
WORKER = """
import os, socket, sys
port, connections, files, size = map(int, sys.argv[1:])
opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
others = [open(os.devnull) for _ in range(files)]
memory = b"x" * size
print("holding", flush=True)
sys.stdin.readline()
for one in opened[: connections // 2]:
    one.close()
print("let go", flush=True)
sys.stdin.readline()
"""
MIB = 1024 * 1024


@contextmanager
def _worker(port: int, connections: int, files: int, size: int) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WORKER, *map(str, (port, connections, files, size))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process


def _next_step(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_watch_sees_connections_files_and_memory(
    rclone_server: RcloneServer, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(rclone_server)
    other = fault_proxy(rclone_server)
    with (
        _worker(other.port, connections=3, files=0, size=0) as stranger,
        _worker(proxy.port, connections=12, files=20, size=64 * MIB) as worker,
    ):
        with Watch(worker.pid, [proxy.port], interval_seconds=0.01) as watch:
            _await(lambda: bool(watch.samples))
            _next_step(worker)
            _await(lambda: watch.samples[-1].sockets == 6)
            _next_step(worker)
            worker.wait(5)
            _await(lambda: not watch.samples[-1].processes)
        _next_step(stranger)
        _next_step(stranger)
    assert watch.peak_sockets == watch.peak_sockets_of_one == proxy.peak_connections == 12
    # Standard input, output and error, 12 sockets, 20 files.
    assert watch.peak_open_files == 35
    assert 64 * MIB < watch.peak_rss_bytes < 128 * MIB
    assert watch.seen_pids == {worker.pid}
    assert [sample.seconds for sample in watch.samples] == sorted(sample.seconds for sample in watch.samples)


def test_port_watch_counts_connections_of_all_processes(rclone_server: RcloneServer) -> None:
    def settled(watch: PortWatch, connections: int) -> None:
        deadline = time.monotonic() + 10
        while watch.samples[-1:] == () or watch.samples[-1][1] != connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with PortWatch([rclone_server.port], 0.01) as watch:
        with _worker(rclone_server.port, 3, 0, 0) as one, _worker(rclone_server.port, 4, 0, 0) as other:
            settled(watch, 7)
            _next_step(one)
            settled(watch, 6)
            _next_step(one)
            _next_step(other)
            _next_step(other)
        settled(watch, 0)
    assert max(connections for _, connections in watch.samples) == 7


def test_failing_watch_fails_the_test() -> None:
    def pids() -> list[int]:
        raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="broke off"), Watch(pids, [80]) as watch:
        watch._thread.join()


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true within 5 s"
        time.sleep(0.005)
