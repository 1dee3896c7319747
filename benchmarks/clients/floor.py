"""The minimum work of any client: GET all objects and discard them, or also PUT as many bytes.

Run as ``python -m benchmarks.clients.floor JOB``. It uses one thread and plain sockets, checks and keeps nothing,
and accepts only the expected responses: its time is the cost of moving the bytes.
"""

import hashlib
import hmac
import mmap
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import boto3
from botocore.config import Config

from benchmarks.clients.job import Clock, Job

SCRATCH_BYTES = 4 * 1024**2
SEND_BYTES = 1024**2


def main() -> None:
    """GET all objects; with the option ``put``, PUT the same number of bytes meanwhile."""
    job = Job.from_arguments()
    listed = list(listing(job))
    with Clock() as clock:
        parts = Floor(job).run(listed)
    job.finish(clock, parts=parts)


def listing(job: Job) -> Iterator[tuple[str, int]]:
    """Yield key and size of every raw object. Not measured, since the pack step has them from its plan."""
    client = boto3.client(
        "s3",
        endpoint_url=job.endpoint,
        region_name=job.region,
        aws_access_key_id=job.access_key,
        aws_secret_access_key=job.secret_key,
        verify=job.ca or None,
        config=Config(s3={"addressing_style": "path"}),
    )
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=job.bucket, Prefix=job.raw_prefix):
        for row in page.get("Contents", ()):
            yield row["Key"], row["Size"]


def memory_file(size: int) -> int:
    """Return a file in memory of ``size`` bytes, all allocated."""
    descriptor = os.memfd_create("floor")
    block = bytes(1024**2)
    for start in range(0, size, len(block)):
        os.write(descriptor, block[: size - start])
    return descriptor


@dataclass(slots=True)
class _Connection:
    """A socket, and the remaining bytes of its request body and response body."""

    socket: socket.socket
    head_received: bool = False
    to_send: int = 0
    to_receive: int = 0


class Floor:
    """Connections in an epoll set, and the queue of requests."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._host = urlsplit(job.endpoint).netloc
        self._tls = ssl.create_default_context(cafile=job.ca) if job.ca else None
        self._scratch = memoryview(mmap.mmap(-1, SCRATCH_BYTES))
        self._part_file = memory_file(job.part_bytes)
        self._part = memoryview(mmap.mmap(self._part_file, job.part_bytes))
        self._poll = select.epoll()
        self._waiting: deque[tuple[str, str, int]] = deque()
        self._sign = _signer(job, self._host)

    def run(self, listed: list[tuple[str, int]]) -> int:
        """Transfer all bytes, and return the number of parts.

        :raises OSError: after an unexpected response
        """
        parts = self._queue(listed)
        connections = {}
        for _ in range(min(self._job.connections, len(self._waiting))):
            connection = _Connection(self._connect())
            connections[connection.socket.fileno()] = connection
            self._poll.register(connection.socket, select.EPOLLIN)
            self._start(connection)
        left = len(listed) + parts
        while left:
            for descriptor, _ in self._poll.poll():
                connection = connections[descriptor]
                with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if connection.to_send:
                        self._send(connection)
                    elif self._receive(connection):
                        left -= 1
                        if self._waiting:
                            self._start(connection)
        for connection in connections.values():
            connection.socket.close()
        return parts

    def _queue(self, listed: list[tuple[str, int]]) -> int:
        """Queue the GETs in order, with a PUT after each full part; return the number of PUTs."""
        got = parts = 0
        for key, size in listed:
            self._waiting.append(("GET", key, size))
            got += size
            if self._job.options.get("put") and got >= self._job.part_bytes * (parts + 1):
                self._waiting.append(("PUT", self._part_key(parts), self._job.part_bytes))
                parts += 1
        rest = got - self._job.part_bytes * parts
        if self._job.options.get("put") and rest:
            self._waiting.append(("PUT", self._part_key(parts), rest))
            parts += 1
        return parts

    def _part_key(self, number: int) -> str:
        return f"{self._job.out_prefix}part-{number:05d}.log"

    def _connect(self) -> socket.socket:
        host, _, port = self._host.rpartition(":")
        plain = socket.create_connection((host, int(port)))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected = self._tls.wrap_socket(plain, server_hostname=host) if self._tls else plain
        connected.setblocking(False)
        return connected

    def _start(self, connection: _Connection) -> None:
        method, key, size = self._waiting.popleft()
        connection.head_received = False
        connection.to_send = size if method == "PUT" else 0
        # The head fits into the socket's buffer.
        connection.socket.send(self._sign(method, key, connection.to_send))
        if connection.to_send:
            self._poll.modify(connection.socket, select.EPOLLOUT)

    def _send(self, connection: _Connection) -> None:
        """Send more of a part; every part consists of the same bytes."""
        while connection.to_send:
            count = min(connection.to_send, SEND_BYTES)
            if self._tls:
                connection.to_send -= connection.socket.send(self._part[:count])
            else:
                connection.to_send -= os.sendfile(connection.socket.fileno(), self._part_file, 0, count)
        self._poll.modify(connection.socket, select.EPOLLIN)

    def _receive(self, connection: _Connection) -> bool:
        """Receive available bytes, and return whether the response is complete."""
        if not connection.head_received:
            connection.to_receive = self._head(connection)
            connection.head_received = True
        while connection.to_receive:
            count = connection.socket.recv_into(self._scratch, min(connection.to_receive, SCRATCH_BYTES))
            if not count:
                raise ConnectionError("the server closed a connection within a response")
            connection.to_receive -= count
            if not self._tls:
                break
        return not connection.to_receive

    def _head(self, connection: _Connection) -> int:
        """Receive the head and the start of the body, and return the number of remaining bytes."""
        count = connection.socket.recv_into(self._scratch, 16 * 1024)
        head, found, body = bytes(self._scratch[:count]).partition(b"\r\n\r\n")
        if not found or not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"unexpected response: {head[:200]!r}")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return int(line[15:]) - len(body)
        raise ConnectionError(f"response without Content-Length: {head[:200]!r}")


def _signer(job: Job, host: str) -> Callable[[str, str, int], bytes]:
    """Return a function that returns the signed head of a request (Signature Version 4, unsigned body)."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"{stamp[:8]}/{job.region}/s3/aws4_request"
    signing_key = f"AWS4{job.secret_key}".encode()
    for step in scope.split("/"):
        signing_key = hmac.digest(signing_key, step.encode(), "sha256")
    names = "host;x-amz-content-sha256;x-amz-date"
    signed = (
        f"host:{host}\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:{stamp}\n\n{names}\nUNSIGNED-PAYLOAD"
    )
    fields = f"host: {host}\r\nx-amz-content-sha256: UNSIGNED-PAYLOAD\r\nx-amz-date: {stamp}\r\n"

    def head(method: str, key: str, length: int) -> bytes:
        path = "/" + quote(f"{job.bucket}/{key}", safe="/~")
        digest = hashlib.sha256(f"{method}\n{path}\n\n{signed}".encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = hmac.digest(signing_key, text.encode(), "sha256").hex()
        body = f"content-length: {length}\r\n" if method == "PUT" else ""
        return (
            f"{method} {path} HTTP/1.1\r\n{fields}{body}authorization: AWS4-HMAC-SHA256 "
            f"Credential={job.access_key}/{scope}, SignedHeaders={names}, Signature={signature}\r\n\r\n"
        ).encode()

    return head


if __name__ == "__main__":
    main()
