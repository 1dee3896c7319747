"""A proxy that delays requests to an S3 server and counts them, as a process.

It supports requests without a body, such as GET, HEAD and LIST. Run as ``python -m benchmarks.delay PORT
UPSTREAM_PORT SECONDS COUNTS``. Each request adds its first line to the file COUNTS.
"""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.settings import MIB, PROJECT
from dev.servers import S3Server

_END_OF_HEAD = b"\r\n\r\n"


class DelayServer(S3Server):
    """The proxy as a process.

    :param server: the S3 server, over plain HTTP
    :param delay_seconds: time between the arrival of a request and its forwarding
    """

    def __init__(self, folder: Path, server: S3Server, delay_seconds: float) -> None:
        super().__init__(folder)
        self._server = server
        self._delay_seconds = delay_seconds
        self._counts = folder / "requests.txt"

    def command(self) -> list[str]:
        """See :meth:`dev.servers.S3Server.command`."""
        options = (self.port, self._server.port, self._delay_seconds, self._counts)
        return [sys.executable, "-m", "benchmarks.delay", *map(str, options)]

    def environment(self) -> dict[str, str]:
        """See :meth:`dev.servers.S3Server.environment`."""
        return super().environment() | {"PYTHONPATH": str(PROJECT)}

    def requests(self) -> int:
        """Return the number of requests since the start."""
        return self._counts.read_bytes().count(b"\n")


def main() -> None:
    """Serve until the process is ended."""
    port, upstream_port, delay_seconds, counts = sys.argv[1:]
    log = os.open(counts, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with socket.create_server(("127.0.0.1", int(port)), backlog=1024) as listener:
        while True:
            client, _ = listener.accept()
            upstream = socket.create_connection(("127.0.0.1", int(upstream_port)))
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for work, arguments in (
                (_forward_requests, (client, upstream, float(delay_seconds), log)),
                (_forward_responses, (upstream, client)),
            ):
                threading.Thread(target=work, args=arguments, daemon=True).start()


def _forward_requests(client: socket.socket, upstream: socket.socket, delay_seconds: float, log: int) -> None:
    head = b""
    with suppress(OSError):
        while data := client.recv(MIB):
            head += data
            if head.endswith(_END_OF_HEAD):
                os.write(log, head.partition(b"\r\n")[0] + b"\n")
                time.sleep(delay_seconds)
                upstream.sendall(head)
                head = b""
    _shut_down(client, upstream)


def _forward_responses(upstream: socket.socket, client: socket.socket) -> None:
    buffer = memoryview(bytearray(MIB))
    with suppress(OSError):
        while size := upstream.recv_into(buffer):
            client.sendall(buffer[:size])
    _shut_down(upstream, client)


def _shut_down(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
