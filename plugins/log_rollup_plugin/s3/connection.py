"""One connection of the data plane: sends requests and receives answers (HTTP/1.1).

Fast path: the body of a 200 with a Content-Length is received straight into the caller's buffer. h11 handles the
rest: errors, chunked bodies, bodies without a length, interim answers.
"""

import re
import select
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import h11

from include.log_rollup import crc
from include.log_rollup.errors import ChangedBufferError
from include.log_rollup.units import KIB
from log_rollup_plugin.s3.connector import BucketEndpoint, NestedTls, Stream

# Heads of answers have some hundred bytes; body bytes that come with one, up to this, are copied to their place.
HEAD_BYTES = 8 * KIB
LONGEST_HEAD_BYTES = 64 * KIB
# A piece of this size is still in the processor's cache when it is sent, after its CRC was counted.
SEND_BYTES = 256 * KIB
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_WENT_AWAY = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_END_OF_HEAD = b"\r\n\r\n"
_FOLDED = re.compile(rb"\r\n[ \t]")


class ProtocolError(Exception):
    """An answer that is not HTTP, or that ended too early."""


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request, and the CRC64-NVME that it must have."""

    content: memoryview
    crc64nvme: int


class Sink(Protocol):
    """Takes the answer to one request."""

    method: str

    @property
    def into(self) -> memoryview | None:
        """Buffer for the body of a good answer; None if bodies are taken through :meth:`came` alone."""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the head of the answer; header names are in lower case."""

    def came(self, chunk: bytes) -> None:
        """Take a piece of the body that was not received straight into ``into``."""

    def received(self, size: int) -> None:
        """Count bytes that were received straight into ``into``, or for which it has no room."""


class Connection:
    """A slot for a socket, which carries one request at a time.

    :param endpoint: one of those with its ``pool_key``
    """

    __slots__ = (
        "_body", "_crc64nvme", "_head", "_out", "_reader", "_ready", "_scratch", "_sink", "_socket",
        "_stated_crc64nvme", "_tls", "answered", "closing", "descriptor", "endpoint", "moved", "polled", "used",
    )  # fmt: skip

    def __init__(self, endpoint: BucketEndpoint, scratch: memoryview) -> None:
        self.endpoint = endpoint
        self.descriptor = -1
        """File descriptor of the socket; -1 without one."""
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
        self._socket: Stream | None = None
        self._tls = False
        self._out: deque[memoryview] = deque()
        # Bytes of the first of these whose CRC is counted.
        self._ready = 0
        self._crc64nvme = self._stated_crc64nvme = 0
        self._head = b""
        self._body: memoryview | None = None
        self._reader: h11.Connection | None = None

    def open(self, connected: Stream) -> int:
        """Take a socket in non-blocking mode; returns its descriptor."""
        self._socket = connected
        self._tls = isinstance(connected, ssl.SSLSocket | NestedTls)
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
        """Events to poll for. An answer can come at any time, also before an upload has ended."""
        return select.POLLIN | select.POLLOUT if self._out else select.POLLIN

    def begin(self, sink: Sink, head: bytes, body: Body | None) -> None:
        """Send a request, or as much of it as the socket takes at once.

        :raises OSError: if the connection is broken
        :raises ChangedBufferError: if the body does not have its CRC; its last piece is not sent
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
        """Send and receive as far as possible; whether the answer is complete.

        :raises OSError: if the connection is broken
        :raises ProtocolError: if the answer is broken
        :raises ChangedBufferError: if the body does not have its CRC
        """
        if self._out and events & select.POLLOUT:
            self._send()
        complete = bool(events & ~select.POLLOUT) and self._receive()
        if complete:
            # Don't keep the caller's memory alive.
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
            # The server may have answered before it closed: receiving shows that.
            self._out.clear()
            self.closing = True

    def _make_ready(self, left: memoryview) -> None:
        """Count the CRC of the next piece; refuse the last piece of a body that has changed."""
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
        while True:
            count = self._socket.recv_into(self._scratch)
            if not count:
                raise ProtocolError("the server closed the connection without an answer")
            self.answered = True
            came = self._head + bytes(self._scratch[:count])
            end = came.find(_END_OF_HEAD)
            if end >= 0:
                break
            if len(came) > LONGEST_HEAD_BYTES:
                raise ProtocolError(f"the head of the answer is longer than {LONGEST_HEAD_BYTES} bytes")
            self._head = came
            # poll() sees unread socket data, not bytes that TLS has already decrypted.
            if not self._tls:
                return False
        if not self._is_plain(came[:end], came[end + len(_END_OF_HEAD) :]):
            self._reader = _reader(self._sink)
            self._read(came)
        return True

    def _is_plain(self, head: bytes, begun: bytes) -> bool:
        """Whether an object with a length follows this head; its body then goes straight to its place."""
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
        breaks = len(lines) - 1
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks:
            # A line break inside a value.
            return False
        size = int(length)
        self._sink.answered(200, headers)
        begun_bytes = len(begun)
        if size > len(into) or begun_bytes > size:
            # Longer than the buffer, or than stated: report the length, receive nothing more.
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
                # poll() sees unread socket data, not bytes that TLS has already decrypted.
                if not self._tls:
                    break
        finally:
            self._body = body[place:]
            self._sink.received(place)
        return place == len(body)

    def _receive_read(self) -> bool:
        """Receive an answer that is not on the fast path."""
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
        """Give h11 some bytes; none means that the server closed the connection."""
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
            raise ProtocolError("the server closed the connection within an answer")

    def _answered_early(self, status: int) -> None:
        """Handle an answer that comes before the whole request was sent."""
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
