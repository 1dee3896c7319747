"""One connection of the data plane: how it is made, and how requests and answers (HTTP/1.1) pass over it.

What is plain and comes thirty thousand times, the body of an object, is received straight into its place. All
that is not plain (errors, bodies in chunks or without a length, interim answers) is h11's to understand.
"""

import base64
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

import h11

from include.log_rollup import crc
from include.log_rollup.errors import ChangedBufferError, ConfigurationError
from include.log_rollup.units import KIB

# The keep-alive of the story, in seconds.
KEEP_ALIVE_SECONDS = 30
# Heads of answers are some hundred bytes; what comes behind one, up to this, has to be copied to its place.
HEAD_BYTES = 8 * KIB
LONGEST_HEAD_BYTES = 64 * KIB
# A piece of this size is still in the processor's cache when it is sent, after its CRC was counted.
SEND_BYTES = 256 * KIB
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_WENT_AWAY = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_END_OF_HEAD = b"\r\n\r\n"
_FOLDED = re.compile(rb"\r\n[ \t]")


class ProtocolError(Exception):
    """An answer that is no HTTP, or that ended in its midst."""


@dataclass(frozen=True, slots=True)
class BucketEndpoint:
    """Where a bucket answers, and how requests to it are signed.

    :param origin: scheme, host and port, like ``https://logs.s3.eu-central-1.amazonaws.com``
    :param path: of the bucket, up to where the key begins
    :param proxy: URL of the proxy on the way there, empty for none
    """

    origin: str
    path: str
    region: str
    proxy: str = ""

    @property
    def host(self) -> str:
        """Host and port, as they are signed."""
        return self.origin.partition("://")[2]

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return self.origin.startswith("https:")

    @property
    def way(self) -> tuple[str, str]:
        """What a connection has to lead to, and through which proxy, to be of use."""
        return self.origin, self.proxy

    def target(self, key: str) -> str:
        """The path of an object, percent-encoded as S3 signs it."""
        return self.path + quote(key, safe="/~")


class Connector:
    """Makes connections as boto3 does: looks the host up, goes through its proxy, and checks its certificate.

    :param verify: as botocore's: False for certificates that are not checked
    :param ca: the CA file or directory to check them against
    :param timeout: for connecting to an address, and for each answer of a TLS handshake or a proxy
    :raises ConfigurationError: if the CA file cannot be used, or a proxy wants TLS itself
    """

    def __init__(
        self, endpoints: Collection[BucketEndpoint], verify: str | bool, ca: str, timeout: timedelta
    ) -> None:
        self._seconds = timeout.total_seconds()
        self._tls = _context(verify, ca) if any(endpoint.secure for endpoint in endpoints) else None
        for endpoint in endpoints:
            if urlsplit(endpoint.proxy).scheme not in ("", "http"):
                raise ConfigurationError(
                    f"the proxy {_without_password(endpoint.proxy)} cannot be used: proxies are spoken to in "
                    f"plain HTTP (what passes through to S3 is encrypted all the same); name it as http://"
                )

    def connect(self, endpoint: BucketEndpoint) -> socket.socket:
        """A connection that does not block; takes its time, from a thread of its own.

        :raises OSError: if there is none to be had
        """
        there, proxy = urlsplit(endpoint.origin), urlsplit(endpoint.proxy)
        host, port = there.hostname or "", there.port or (443 if endpoint.secure else 80)
        first = (proxy.hostname or "", proxy.port or 80) if endpoint.proxy else (host, port)
        made: HTTPConnection
        if endpoint.secure:
            made = HTTPSConnection(*first, timeout=self._seconds, context=self._tls)
            if endpoint.proxy:
                made.set_tunnel(host, port, proxy_headers(endpoint))
        else:
            made = HTTPConnection(*first, timeout=self._seconds)
        try:
            made.connect()
            made.sock.setblocking(False)
            _keep_alive(made.sock)
        except BaseException:
            made.close()
            raise
        return made.sock


def proxy_headers(endpoint: BucketEndpoint) -> dict[str, str]:
    """What the proxy of an endpoint wants to be told: its user and password, where its URL has them."""
    proxy = urlsplit(endpoint.proxy)
    if proxy.username is None:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _context(verify: str | bool, ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(**{"capath" if Path(ca).is_dir() else "cafile": ca})
    except OSError as error:
        raise ConfigurationError(
            f"the CA file {ca} cannot be used: {error}; mend the connection's extra 'verify' or AWS_CA_BUNDLE"
        ) from error
    return context


def _keep_alive(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The first is macOS's name of the second.
    for name in ("TCP_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), KEEP_ALIVE_SECONDS)


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent behind the head of a request, and the CRC64-NVME that it must have."""

    content: memoryview
    crc64nvme: int


class Sink(Protocol):
    """What an answer is for."""

    method: str

    @property
    def into(self) -> memoryview | None:
        """Where the body of a good answer belongs; None if it is of no interest."""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the answer has come; names are in lower case."""

    def came(self, chunk: bytes) -> None:
        """Some of the body has come, that was not received straight into its place."""

    def received(self, size: int) -> None:
        """So much of the body was received straight into its place, or would have been, were there room."""


class Connection:
    """A slot for a socket, and one request at a time.

    :param endpoint: one of those that it leads to
    """

    __slots__ = (
        "_body", "_crc64nvme", "_head", "_out", "_reader", "_ready", "_scratch", "_sink", "_socket",
        "_stated_crc64nvme", "_tls", "answered", "closing", "descriptor", "endpoint", "moved", "polled", "used",
    )  # fmt: skip

    def __init__(self, endpoint: BucketEndpoint, scratch: memoryview) -> None:
        self.endpoint = endpoint
        self.descriptor = -1
        """Of the socket; -1 for none."""
        self._sink: Sink | None = None
        self.used = False
        """Whether it has carried a request before this one."""
        self.answered = False
        """Whether anything of the answer has come."""
        self.closing = False
        """Whether it cannot carry another request."""
        self.moved = 0.0
        """When something came last, or the last request began."""
        self.polled = 0
        """The events that it is polled for."""
        self._scratch = scratch
        self._socket: socket.socket | None = None
        self._tls = endpoint.secure
        self._out: deque[memoryview] = deque()
        # Of the first of these, so many bytes may be sent.
        self._ready = 0
        self._crc64nvme = self._stated_crc64nvme = 0
        self._head = b""
        self._body: memoryview | None = None
        self._reader: h11.Connection | None = None

    def open(self, connected: socket.socket) -> int:
        """Take a socket; its descriptor."""
        self._socket = connected
        self.descriptor = connected.fileno()
        self.moved = time.monotonic()
        return self.descriptor

    def close(self) -> None:
        """Close the socket, if there is one."""
        self._out.clear()
        self._sink = self._body = self._reader = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.descriptor = -1

    @property
    def events(self) -> int:
        """What to poll for. An answer may come at any time, also one that ends an upload early."""
        return select.POLLIN | select.POLLOUT if self._out else select.POLLIN

    def begin(self, sink: Sink, head: bytes, body: Body | None) -> None:
        """Send a request, or as much of it as the socket takes at once.

        :raises OSError: if the connection is broken
        :raises ChangedBufferError: if the body is not what its CRC says; all of it is not sent then
        """
        self._sink = sink
        self.answered = False
        self.moved = time.monotonic()
        self._head = b""
        self._body = self._reader = None
        self._out.append(memoryview(head))
        self._ready = len(head)
        if body is not None and body.content:
            self._out.append(body.content)
            self._crc64nvme, self._stated_crc64nvme = 0, body.crc64nvme
        self._send()

    def advance(self, events: int) -> bool:
        """Send and receive what can be; whether the answer is complete.

        :raises OSError: if the connection is broken
        :raises ProtocolError: if the answer is
        :raises ChangedBufferError: if the body is not what its CRC says
        """
        if self._out and events & select.POLLOUT:
            self._send()
        complete = bool(events & ~select.POLLOUT) and self._receive()
        if complete:
            # The memory of the body is not this one's to keep.
            self._sink = self._body = self._reader = None
        return complete

    def _send(self) -> None:
        assert self._socket is not None
        try:
            while self._out:
                view = self._out[0]
                if not self._ready:
                    self._make_ready(view)
                sent = self._socket.send(view[: self._ready])
                self._ready -= sent
                if sent == len(view):
                    self._out.popleft()
                else:
                    self._out[0] = view[sent:]
        except _NOT_NOW:
            pass
        except _WENT_AWAY:
            # Perhaps not without an answer, which is told apart when it is received.
            self._out.clear()
            self.closing = True

    def _make_ready(self, left: memoryview) -> None:
        """Count the CRC of the piece that is sent next; of a body that changed, the last piece is not."""
        piece = left[:SEND_BYTES]
        self._crc64nvme = crc.crc64(piece, self._crc64nvme)
        if len(piece) == len(left) and self._crc64nvme != self._stated_crc64nvme:
            raise ChangedBufferError(
                f"its buffer changed after its objects were read: its CRC64-NVME is "
                f"{crc.to_hex(self._crc64nvme)}, not {crc.to_hex(self._stated_crc64nvme)}"
            )
        self._ready = len(piece)

    def _receive(self) -> bool:
        self.moved = time.monotonic()
        try:
            if self._body is None and self._reader is None and not self._receive_head():
                return False
            return self._receive_body() if self._body is not None else self._receive_read()
        except _NOT_NOW:
            return False

    def _receive_head(self) -> bool:
        """Take the beginning of an answer; whether its head is complete."""
        assert self._socket is not None
        count = self._socket.recv_into(self._scratch)
        if not count:
            raise ProtocolError("the server closed the connection without an answer")
        self.answered = True
        came = self._head + bytes(self._scratch[:count])
        end = came.find(_END_OF_HEAD)
        if end < 0:
            if len(came) > LONGEST_HEAD_BYTES:
                raise ProtocolError(f"the head of the answer is longer than {LONGEST_HEAD_BYTES} bytes")
            self._head = came
            # Over TLS more may have come than poll can know of.
            return self._tls and self._receive_head()
        if not self._plain(came[:end], came[end + len(_END_OF_HEAD) :]):
            self._reader = _reader(self._sink)
            self._read(came)
        return True

    def _plain(self, head: bytes, begun: bytes) -> bool:
        """Whether this is the head of an object of a stated length; then its body goes straight to its place."""
        assert self._sink is not None
        into = self._sink.into
        lines = head.split(b"\r\n")
        if into is None or not lines[0].startswith(b"HTTP/1.1 200"):
            return False
        headers = _fields(lines)
        length = headers.get("content-length", "")
        lengths = head.lower().count(b"\r\ncontent-length:")
        if lengths != 1 or not length.isdecimal() or "transfer-encoding" in headers or _FOLDED.search(head):
            return False
        size = int(length)
        self._sink.answered(200, headers)
        begun_bytes = len(begun)
        if size > len(into) or begun_bytes > size:
            # Not what was planned, or not what was stated: the length that is told says so.
            self.closing = True
            self._sink.received(max(size, begun_bytes))
            self._body = into[:0]
            return True
        into[:begun_bytes] = begun
        self._sink.received(begun_bytes)
        self._body = into[begun_bytes:size]
        self.closing = self.closing or "close" in headers.get("connection", "").lower()
        return True

    def _receive_body(self) -> bool:
        assert self._socket is not None
        assert self._sink is not None
        assert self._body is not None
        body, place = self._body, 0
        try:
            while place < len(body):
                count = self._socket.recv_into(body[place:])
                if not count:
                    left = len(body) - place
                    raise ProtocolError(f"the server closed the connection {left} bytes too early")
                place += count
                # Of what is left there, poll knows; but not of what TLS has decrypted.
                if not self._tls:
                    break
        finally:
            self._body = body[place:]
            self._sink.received(place)
        return place == len(body)

    def _receive_read(self) -> bool:
        """Take an answer that is not plain."""
        assert self._socket is not None
        assert self._reader is not None
        while not self._complete():
            self._read(self._socket.recv(HEAD_BYTES))
        return True

    def _complete(self) -> bool:
        assert self._reader is not None
        return self._reader.their_state is not h11.SEND_RESPONSE and (
            self._reader.their_state is not h11.SEND_BODY
        )

    def _read(self, chunk: bytes) -> None:
        """Have h11 understand some more; nothing where the connection was closed."""
        assert self._reader is not None
        assert self._sink is not None
        try:
            self._reader.receive_data(chunk)
            while not isinstance(event := self._reader.next_event(), type):
                if isinstance(event, h11.Response):
                    headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                    self._sink.answered(event.status_code, headers)
                    if self._out:
                        self._answered_early(event.status_code)
                elif isinstance(event, h11.Data):
                    self._sink.came(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
        except h11.RemoteProtocolError as error:
            raise ProtocolError(f"the server's answer is broken: {error}") from error
        if self._complete():
            kept = self._reader.their_state is h11.DONE and not self._reader.trailing_data[0]
            self.closing = self.closing or not kept
        elif not chunk:
            raise ProtocolError("the server closed the connection in the midst of an answer")

    def _answered_early(self, status: int) -> None:
        """Not all of the request was sent: S3 doesn't want the rest."""
        if status < 300:
            raise ProtocolError(f"the server answered {status} before all of the body was sent")
        self._out.clear()
        self.closing = True


def _reader(sink: Sink | None) -> h11.Connection:
    """An h11 connection that has sent a request of this method."""
    assert sink is not None
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=sink.method, target="/", headers=[("host", "s3")]))
    reader.send(h11.EndOfMessage())
    return reader


def _fields(lines: list[bytes]) -> dict[str, str]:
    """The headers of an answer, below its status line."""
    parts = (line.decode("latin-1").partition(":") for line in lines[1:])
    return {name.lower(): value.strip() for name, _, value in parts}
