"""The data plane: bodies between S3 and memory, over a hard-capped set of connections."""

import math
import os
import re
import select
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from botocore.credentials import Credentials

from include.log_rollup import crc
from include.log_rollup.errors import ChangedBufferError, TransientError
from include.log_rollup.store import Checksum, Downloaded, Location, Uploaded
from include.log_rollup.units import KIB
from log_rollup_plugin.connection import (
    HEAD_BYTES,
    Body,
    BucketEndpoint,
    Connection,
    Connector,
    ProtocolError,
    proxy_headers,
)
from log_rollup_plugin.faults import from_network, from_response, translated
from log_rollup_plugin.signing import Signer

# The story's idle time-out, in seconds.
IDLE_SECONDS = 90
CONNECTING_AT_ONCE = 8
# As it stands in S3's access logs.
USER_AGENT = "log-rollup"
_WAKE, _CONNECTED = b"w", b"c"
_BROKEN = (OSError, ProtocolError, ChangedBufferError)
# Not sent again on another connection, but told.
_TOLD = (TimeoutError, ChangedBufferError)
# Of an answer that is no object, so much is kept: S3's errors are a few hundred bytes of XML.
ERROR_BYTES = 64 * KIB
_MD5 = re.compile(r"[0-9a-f]{32}")
_ERROR_CODE = re.compile(r"<Code>(.*?)</Code>", re.DOTALL)
_ERROR_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How connections are made.

    :param verify: as botocore's: whether, or against which CA file or directory, certificates are checked
    :param ca: the CA file or directory that this comes to
    :param connect_timeout: for connecting, and as long again for the TLS handshake
    :param response_timeout: without a byte of an object that is read
    :param headers: sent with every request, such as ``x-amz-request-payer``
    """

    verify: str | bool
    ca: str
    connect_timeout: timedelta
    response_timeout: timedelta
    headers: Mapping[str, str]


class SocketTransfer:
    """Implements :class:`include.log_rollup.store.Transfer` on sockets that are polled.

    The cap is kept by counting: those on their way to a host count as connections, and one to another host is
    closed before its place is taken. Bodies move on the thread that calls :meth:`wait`; connections are made on
    others.

    :param endpoints: by bucket
    :param connections: the most that may be open at any time
    :param credentials: botocore's, which may renew themselves
    """

    def __init__(
        self,
        endpoints: Mapping[str, BucketEndpoint],
        connections: int,
        credentials: Credentials,
        settings: TransferSettings,
    ) -> None:
        self.connections = connections
        self._endpoints = endpoints
        self._signer = Signer(credentials)
        self._headers = (("user-agent", USER_AGENT), *settings.headers.items())
        self._response_seconds = settings.response_timeout.total_seconds()
        self._connector = Connector(
            endpoints.values(), settings.verify, settings.ca, settings.connect_timeout
        )
        self._connecting = ThreadPoolExecutor(min(connections, CONNECTING_AT_ONCE), "log-rollup-connect")
        self._connected: deque[tuple[Connection, socket.socket | Exception]] = deque()
        # All that count: open ones and those that are being made.
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []
        self._serving: dict[Connection, _Request] = {}
        self._polled: dict[int, Connection] = {}
        self._waiting: deque[_Request] = deque()
        self._ended: list[tuple[_Request, object]] = []
        self._scratch = memoryview(bytearray(HEAD_BYTES))
        self._next_look = 0.0
        # Not epoll: macOS has none, and among so few sockets it is no faster.
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poll.register(self._wake_read, select.POLLIN)

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> "_Request":
        """Fetch a whole object, with If-Match where there is an ETag, asking for the CRC that S3 keeps of it.

        Failures come through ``done``.

        :raises RollupError: if there are no credentials any more
        """
        headers = [("x-amz-checksum-mode", "ENABLED"), *self._headers]
        if etag is not None:
            headers.append(("if-match", f'"{etag}"'))
        return self._submit(_Get(self, self._endpoints[source.bucket], source, headers, done, into=into))

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> "_Request":
        """Write an object in one request; S3 refuses a body whose CRC differs. Failures come through ``done``.

        The CRC of what is sent is counted piece by piece, just before. If it comes to another one, the last
        piece is not sent and the connection is closed, so that S3 stores nothing.

        The CRC goes as a header, computed beforehand: a trailing checksum makes some S3-compatible servers
        store "aws-chunked" as the content encoding.

        :raises RollupError: if there are no credentials any more
        """
        fields = [
            ("content-length", str(len(body))),
            ("content-type", "application/octet-stream"),
            ("x-amz-sdk-checksum-algorithm", "CRC64NVME"),
            ("x-amz-checksum-crc64nvme", crc.to_header(crc64nvme)),
            *headers.items(),
            *self._headers,
        ]
        sent = Body(body, crc64nvme)
        return self._submit(_Put(self, self._endpoints[target.bucket], target, fields, done, body=sent))

    def wait(self, seconds: float) -> None:
        """Move bodies until a request has ended, :meth:`wake` is called, or the time is over."""
        until = time.monotonic() + seconds
        # Places of requests that were given up are not taken before: all the others may be given up as well.
        self._assign()
        while True:
            left = 0.0 if self._ended else max(0.0, until - time.monotonic())
            woken = False
            # Rounded up: a time that is not over yet would be asked for again and again.
            for descriptor, events in self._poll.poll(math.ceil(left * 1000)):
                if descriptor == self._wake_read:
                    woken = _WAKE in os.read(self._wake_read, 4096)
                elif connection := self._polled.get(descriptor):
                    self._advance(connection, events)
            while self._connected:
                self._connect_ended(*self._connected.popleft())
            now = time.monotonic()
            if now >= self._next_look:
                self._next_look = now + 1.0
                self._give_up_silent(now)
            if self._tell() or woken or now >= until:
                return

    def wake(self) -> None:
        """Have :meth:`wait` return, from another thread."""
        self._write(_WAKE)

    def close(self) -> None:
        """Close every connection."""
        self._connecting.shutdown(cancel_futures=True)
        for _, made in self._connected:
            if isinstance(made, socket.socket):
                made.close()
        for connection in self._all:
            connection.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def cancel(self, request: "_Request") -> None:
        """Give a request up; nothing happens to one that has ended."""
        connection = request.connection
        if connection is not None:
            self._taken_off(connection)
            # One that is still being made has nothing of the request yet.
            if connection.descriptor >= 0:
                self._close(connection)
        elif request in self._waiting:
            self._waiting.remove(request)
        else:
            return
        request.done(TransientError(f"{request}: cancelled"))

    # -- requests --------------------------------------------------------------------------------------

    def _submit(self, request: "_Request") -> "_Request":
        self._waiting.append(request)
        self._assign()
        return request

    def _assign(self) -> None:
        """Give connections to the requests that wait, in order."""
        while self._waiting:
            connection = self._take(self._waiting[0].endpoint)
            if connection is None:
                return
            request = self._waiting.popleft()
            request.connection = connection
            self._serving[connection] = request
            if connection in self._all:
                self._start(connection, request)
            else:
                self._all.add(connection)
                self._connecting.submit(self._connect, connection)

    def _take(self, endpoint: BucketEndpoint) -> Connection | None:
        """An idle connection that leads there, or a new one where there is room for it."""
        now = time.monotonic()
        for connection in reversed(self._idle):
            if connection.endpoint.way == endpoint.way and now - connection.moved < IDLE_SECONDS:
                self._idle.remove(connection)
                return connection
        if len(self._all) >= self.connections:
            if not self._idle:
                return None
            # One that leads elsewhere, or that S3 may have closed by now.
            self._close(self._idle[0])
        return Connection(endpoint, self._scratch)

    def _start(self, connection: Connection, request: "_Request") -> None:
        endpoint, target = request.endpoint, request.endpoint.target(request.location.key)
        with translated("credentials for", request.location):
            headers = self._signer.sign(
                endpoint.region, endpoint.host, request.method, target, request.headers
            )
        if endpoint.proxy and not endpoint.secure:
            target = endpoint.origin + target
            headers += proxy_headers(endpoint).items()
        lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        try:
            connection.begin(request, "\r\n".join((*lines, "", "")).encode(), request.body)
        except _BROKEN as error:
            self._fail(connection, error)
        else:
            self._poll_for(connection)

    def _poll_for(self, connection: Connection) -> None:
        """Poll for what a connection waits for, which is mostly what it waited for before."""
        if connection.events != connection.polled:
            connection.polled = connection.events
            self._poll.register(connection.descriptor, connection.polled)

    def _advance(self, connection: Connection, events: int) -> None:
        request = self._serving.get(connection)
        if request is None:
            # Idle, and S3 has closed it.
            self._close(connection)
            return
        try:
            complete = connection.advance(events)
        except _BROKEN as error:
            self._fail(connection, error)
            return
        if complete:
            self._ended.append((request, request.result()))
            self._release(connection)
        else:
            self._poll_for(connection)

    def _release(self, connection: Connection) -> None:
        """Give a connection that has done its work something else to do, before its result is told."""
        self._taken_off(connection)
        connection.used = True
        if connection.closing:
            self._close(connection)
        else:
            self._idle.append(connection)
            self._poll_for(connection)
        self._assign()

    def _fail(self, connection: Connection, error: Exception) -> None:
        """A connection is broken. S3 may close one that was idle just when it is used again."""
        request = self._taken_off(connection)
        unanswered = connection.used and not connection.answered and not isinstance(error, _TOLD)
        self._close(connection)
        if unanswered and not request.again:
            request.again = True
            self._waiting.appendleft(request)
        else:
            self._ended.append((request, from_network(request.method, request.location, error)))
        self._assign()

    def _taken_off(self, connection: Connection) -> "_Request":
        """The request that a connection was serving, from now on without it."""
        request = self._serving.pop(connection)
        request.connection = None
        return request

    def _close(self, connection: Connection) -> None:
        self._all.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)
        if connection.descriptor >= 0:
            if connection.polled:
                self._poll.unregister(connection.descriptor)
            del self._polled[connection.descriptor]
        connection.close()

    def _give_up_silent(self, now: float) -> None:
        """Fail GETs that stand still. S3 may think about a PUT: the packer sees to those."""
        for connection, request in tuple(self._serving.items()):
            silent = connection.descriptor >= 0 and now - connection.moved > self._response_seconds
            if silent and isinstance(request, _Get):
                self._fail(connection, TimeoutError(f"no byte came for {self._response_seconds:g} s"))

    def _tell(self) -> bool:
        """Tell of the requests that have ended."""
        ended, self._ended = self._ended, []
        for request, result in ended:
            request.done(result)
        return bool(ended)

    # -- connecting ------------------------------------------------------------------------------------

    def _connect(self, connection: Connection) -> None:
        """Make a connection, on a thread for that."""
        made: socket.socket | Exception
        try:
            made = self._connector.connect(connection.endpoint)
        except Exception as error:
            made = error
        self._connected.append((connection, made))
        self._write(_CONNECTED)

    def _connect_ended(self, connection: Connection, made: socket.socket | Exception) -> None:
        request = self._serving.get(connection)
        if isinstance(made, socket.socket):
            self._polled[connection.open(made)] = connection
        if request is None:
            # It was cancelled meanwhile.
            self._close(connection)
            self._assign()
        elif isinstance(made, socket.socket):
            self._start(connection, request)
        else:
            self._fail(connection, made)

    def _write(self, what: bytes) -> None:
        # If the pipe is full, it is of wakes that were not seen yet.
        with suppress(BlockingIOError):
            os.write(self._wake_write, what)


class _Request(ABC):
    """A request from its submission to its result."""

    method: str

    def __init__(
        self,
        transfer: SocketTransfer,
        endpoint: BucketEndpoint,
        location: Location,
        headers: list[tuple[str, str]],
        done: Callable[[Any], None],
        *,
        into: memoryview | None = None,
        body: Body | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.location = location
        self.headers = headers
        self.done = done
        self.connection: Connection | None = None
        self.again = False
        """Whether it is sent for the second time, for its first connection had been closed."""
        self.into = into
        """See :class:`log_rollup_plugin.connection.Sink`."""
        self.body = body
        """What is sent behind the head."""
        self._transfer = transfer
        self._status = 0
        self._answer: Mapping[str, str] = {}
        self._error = bytearray()

    def cancel(self) -> None:
        """See :class:`include.log_rollup.store.Cancellable`."""
        self._transfer.cancel(self)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """See :class:`log_rollup_plugin.connection.Sink`."""
        self._status, self._answer = status, headers

    def came(self, chunk: bytes) -> None:
        """Keep the beginning of an answer that is not what was asked for."""
        if len(self._error) < ERROR_BYTES:
            self._error += chunk

    def result(self) -> object:
        """What came of it: an error of S3, or the result."""
        if self._status < 300:
            return self._success(self._answer)
        text = self._error.decode(errors="replace")
        found, told = _ERROR_CODE.search(text), _ERROR_MESSAGE.search(text)
        return from_response(
            self.method, self.location, self._status, found[1] if found else str(self._status),
            told[1] if told else "", self._answer,
        )  # fmt: skip

    @abstractmethod
    def received(self, size: int) -> None:
        """See :class:`log_rollup_plugin.connection.Sink`."""

    @abstractmethod
    def _success(self, headers: Mapping[str, str]) -> object: ...

    def __str__(self) -> str:
        return f"{self.method} {self.location}"


class _Get(_Request):
    method = "GET"

    def __init__(self, *arguments: Any, into: memoryview) -> None:
        super().__init__(*arguments, into=into)
        self._position = 0

    def received(self, size: int) -> None:
        """See :class:`log_rollup_plugin.connection.Sink`."""
        self._position += size

    def came(self, chunk: bytes) -> None:
        """Put a piece of the body to its place, as far as there is room: the packer sees what is too long."""
        if self._status >= 300:
            super().came(chunk)
            return
        start = self._position
        self._position += len(chunk)
        assert self.into is not None
        room = max(0, len(self.into) - start)
        self.into[start : start + len(chunk)] = chunk[:room]

    def _success(self, headers: Mapping[str, str]) -> Downloaded:
        etag = headers.get("etag", "").strip('"')
        return Downloaded(self._position, etag, _checksum(headers), _etag_is_md5(etag, headers))


class _Put(_Request):
    method = "PUT"

    def received(self, size: int) -> None:
        """Nothing is: what S3 says to it is read as it comes."""

    def _success(self, headers: Mapping[str, str]) -> Uploaded:
        stored = crc.from_header(headers.get("x-amz-checksum-crc64nvme"))
        return Uploaded(headers.get("etag", "").strip('"'), stored)


def _checksum(headers: Mapping[str, str]) -> Checksum | None:
    if headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() != "FULL_OBJECT":
        return None
    for algorithm in crc.ALGORITHMS:
        value = crc.from_header(headers.get(f"x-amz-checksum-{algorithm}"))
        if value is not None:
            return Checksum(algorithm, value)
    return None


def _etag_is_md5(etag: str, headers: Mapping[str, str]) -> bool:
    return etag_may_be_md5(
        etag,
        headers.get("x-amz-server-side-encryption"),
        headers.get("x-amz-server-side-encryption-customer-algorithm"),
    )


def etag_may_be_md5(etag: str, encryption: str | None, customer_algorithm: str | None) -> bool:
    """Whether an ETag is the MD5 of the content: not after a multipart upload, nor under KMS or customer keys.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    if encryption not in (None, "AES256") or customer_algorithm is not None:
        return False
    return _MD5.fullmatch(etag) is not None
