"""One connection of the data plane: sends a request and receives its response (HTTP/1.1, non-blocking).

Fast path: the body of a 200 response with one Content-Length is received straight into the caller's buffer. h11
parses every other response: errors, chunked bodies, bodies without a length, interim responses. Their heads are
repaired before, because h11 refuses some that boto3 reads. Which of the two takes a response is decided once, when
its head is complete, in :meth:`Connection._receive_head`.
"""

import re
import select
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import h11

from include.log_rollup import crc
from include.log_rollup.errors import ChangedBufferError
from include.log_rollup.units import KIB
from log_rollup_plugin.s3.connector import BucketEndpoint, NestedTls, Socket
from log_rollup_plugin.s3.response_head import END_OF_HEAD, repair_head

# Response heads are a few hundred bytes. Body bytes that arrive with one are copied to the caller's buffer.
HEAD_BYTES = 8 * KIB
LONGEST_HEAD_BYTES = 64 * KIB
# Small enough that a piece is still in the CPU cache when it is sent, after its CRC was computed.
SEND_BYTES = 256 * KIB
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_PEER_CLOSED = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_END_OF_HEAD = b"\r\n\r\n"
_FOLDED_HEADER = re.compile(rb"\r\n[ \t]")


class ProtocolError(Exception):
    """The response is not HTTP, or it ended too early."""


class ConnectionState(Enum):
    """What a connection is doing. A request may still be on its way out while its response is received."""

    CONNECTING = auto()
    """There is no socket yet."""
    IDLE = auto()
    """Open, without a request."""
    RECEIVING_HEAD = auto()
    """A request is being sent or has been sent, and the head of its response is not complete."""
    RECEIVING_BODY = auto()
    """Fast path: the body goes straight into the caller's buffer."""
    PARSING = auto()
    """h11 parses the response."""
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request, and the CRC64-NVME that it must have."""

    content: memoryview
    crc64nvme: int


class ResponseHandler(Protocol):
    """Takes the response to one request."""

    method: str

    @property
    def buffer(self) -> memoryview | None:
        """Where the fast path puts the body of a 200 response; None turns the fast path off."""

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Take status and headers; header names are in lower case."""

    def on_data(self, chunk: bytes) -> None:
        """Take a piece of a body that h11 has parsed."""

    def on_received(self, size: int) -> None:
        """Count body bytes of the fast path: those in ``buffer``, and those that did not fit in it."""


class Connection:
    """Carries one request at a time over one socket.

    :param endpoint: what it connects to; requests to any endpoint with the same ``pool_key`` can use it
    :param scratch: receives response heads; connections used by one thread can share it
    """

    __slots__ = (
        "_body", "_body_crc", "_crc", "_handler", "_head", "_is_tls", "_parser", "_scratch", "_sendable",
        "_socket", "_unsent", "descriptor", "endpoint", "last_activity", "must_close", "response_started",
        "reused", "state", "watched_events",
    )  # fmt: skip

    def __init__(self, endpoint: BucketEndpoint, scratch: memoryview) -> None:
        self.endpoint = endpoint
        self.state = ConnectionState.CONNECTING
        self.descriptor = -1
        """File descriptor of the socket; -1 without one."""
        self.reused = False
        """Whether it was idle before the present request: the server may have closed it in that time."""
        self.response_started = False
        """Whether any byte of the response has arrived."""
        self.must_close = False
        """Whether it cannot carry another request."""
        self.last_activity = 0.0
        """When it was opened, a request was begun, or poll() reported something to receive (monotonic seconds)."""
        self.watched_events = 0
        """Events that poll() watches on it; kept by the pool."""
        self._scratch = scratch
        self._socket: Socket | None = None
        self._is_tls = False
        self._handler: ResponseHandler | None = None
        self._unsent: deque[memoryview] = deque()
        # How many bytes at the start of _unsent[0] may be sent: their CRC is part of _crc.
        self._sendable = 0
        self._crc = self._body_crc = 0
        self._head = b""
        # Fast path: the part of the caller's buffer that is still empty.
        self._body: memoryview | None = None
        self._parser: h11.Connection | None = None

    def open(self, connected: Socket) -> int:
        """Take a connected socket in non-blocking mode; returns its file descriptor."""
        self._socket = connected
        self._is_tls = isinstance(connected, ssl.SSLSocket | NestedTls)
        self.state = ConnectionState.IDLE
        self.descriptor = connected.fileno()
        self.last_activity = time.monotonic()
        return self.descriptor

    def close(self) -> None:
        """Close the socket, if there is one."""
        self.state = ConnectionState.CLOSED
        self._unsent.clear()
        self._handler = self._body = self._parser = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.descriptor = -1

    @property
    def events(self) -> int:
        """Events to poll for. A response can arrive at any time, also before the request is sent."""
        return select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN

    def send_request(self, handler: ResponseHandler, head: bytes, body: Body | None) -> None:
        """Begin to send a request: as much of it as the socket takes now.

        :raises OSError: if the connection is broken
        :raises ChangedBufferError: if the body does not have its CRC; its last piece is not sent
        """
        self.state = ConnectionState.RECEIVING_HEAD
        self._handler = handler
        self.response_started = False
        self.last_activity = time.monotonic()
        self._head = b""
        self._unsent.append(memoryview(head))
        self._sendable = len(head)
        if body is not None and body.content:
            self._unsent.append(body.content)
            self._crc, self._body_crc = 0, body.crc64nvme
        self._send()

    def handle_events(self, events: int) -> bool:
        """Send and receive as much as possible now; returns whether the response is complete.

        :param events: as poll() reported them
        :raises OSError: if the connection is broken
        :raises ProtocolError: if the response is broken
        :raises ChangedBufferError: if the body of the request does not have its CRC
        """
        if self._unsent and events & select.POLLOUT:
            self._send()
        if not events & ~select.POLLOUT or not self._receive():
            return False
        self.state = ConnectionState.IDLE
        # An idle connection must not keep the caller's buffer alive.
        self._handler = self._body = self._parser = None
        return True

    # -- sending ---------------------------------------------------------------------------------------

    def _send(self) -> None:
        assert self._socket is not None
        try:
            while self._unsent:
                view = self._unsent[0]
                if not self._sendable:
                    self._add_to_crc(view)
                sent = self._socket.send(view[: self._sendable])
                self._sendable -= sent
                if sent == len(view):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = view[sent:]
        except _WOULD_BLOCK:
            pass
        except _PEER_CLOSED:
            # The server may have sent an error before it closed the connection. Receiving shows that.
            self._unsent.clear()
            self.must_close = True

    def _add_to_crc(self, unsent: memoryview) -> None:
        """Make the next piece of a body sendable; refuse the last one if the body does not have its CRC."""
        piece = unsent[:SEND_BYTES]
        self._crc = crc.crc64(piece, self._crc)
        if len(piece) == len(unsent) and self._crc != self._body_crc:
            raise ChangedBufferError(
                f"the buffer changed after its objects were read: its CRC64-NVME is {crc.to_hex(self._crc)}, "
                f"not {crc.to_hex(self._body_crc)}"
            )
        self._sendable = len(piece)

    # -- receiving -------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        self.last_activity = time.monotonic()
        try:
            if self.state is ConnectionState.RECEIVING_HEAD and not self._receive_head():
                return False
            return (
                self._receive_body()
                if self.state is ConnectionState.RECEIVING_BODY
                else self._receive_parsed()
            )
        except _WOULD_BLOCK:
            return False

    def _receive_head(self) -> bool:
        """Receive the head of a response and choose who takes the rest; returns whether the head is complete."""
        assert self._socket is not None
        assert self._handler is not None
        while True:
            count = self._socket.recv_into(self._scratch)
            if not count:
                raise ProtocolError("the server closed the connection without a response")
            self.response_started = True
            received = self._head + bytes(self._scratch[:count])
            end = received.find(_END_OF_HEAD)
            if end >= 0 or END_OF_HEAD.search(received):
                break
            self._head = _within_limit(received)
            # poll() sees unread socket data, but not bytes that TLS has already decrypted: read those now.
            if not self._is_tls:
                return False
        buffer = self._handler.buffer
        simple = None if buffer is None or end < 0 else _parse_simple_head(received[:end])
        if buffer is None or simple is None:
            self.state = ConnectionState.PARSING
            self._parser = _new_parser(self._handler.method)
            self._head = b""
            self._parse(received)
        else:
            headers, length = simple
            self._begin_body(buffer, headers, length, received[end + len(_END_OF_HEAD) :])
        return True

    def _begin_body(self, buffer: memoryview, headers: dict[str, str], length: int, beginning: bytes) -> None:
        """Enter the fast path.

        :param beginning: bytes of the body that arrived with the head
        """
        assert self._handler is not None
        self.state = ConnectionState.RECEIVING_BODY
        self._handler.on_head(200, headers)
        begun = len(beginning)
        if length > len(buffer):
            # The body is longer than the buffer: report its size, receive no more.
            self.must_close = True
            self._handler.on_received(length)
            self._body = buffer[:0]
            return
        if begun > length:
            # Some servers send a line break after a body. It does not belong to the next response.
            self.must_close = True
            beginning, begun = beginning[:length], length
        buffer[:begun] = beginning
        self._handler.on_received(begun)
        self._body = buffer[begun:length]
        self.must_close = self.must_close or "close" in headers.get("connection", "").lower()

    def _receive_body(self) -> bool:
        assert self._socket is not None
        assert self._handler is not None
        assert self._body is not None
        body, received = self._body, 0
        try:
            while received < len(body):
                count = self._socket.recv_into(body[received:])
                if not count:
                    missing = len(body) - received
                    raise ProtocolError(f"the server closed the connection {missing} bytes too early")
                received += count
                if not self._is_tls:
                    break
        finally:
            self._body = body[received:]
            self._handler.on_received(received)
        return received == len(body)

    def _receive_parsed(self) -> bool:
        assert self._socket is not None
        while not self._is_parsed():
            self._parse(self._socket.recv(HEAD_BYTES))
        return True

    def _is_parsed(self) -> bool:
        """Whether h11 has seen the end of the response."""
        assert self._parser is not None
        return (
            self._parser.their_state is not h11.SEND_RESPONSE
            and self._parser.their_state is not h11.SEND_BODY
        )

    def _parse(self, chunk: bytes) -> None:
        """Give h11 some bytes; none means that the server closed the connection."""
        assert self._parser is not None
        is_end = not chunk
        # Interim responses have heads too.
        while self._parser.their_state is h11.SEND_RESPONSE:
            received = (self._head + chunk).lstrip(b"\r\n")
            end = END_OF_HEAD.search(received)
            if end is None:
                if is_end:
                    raise ProtocolError("the server closed the connection in the middle of a response")
                self._head = _within_limit(received)
                return
            self._head, chunk = b"", received[end.end() :]
            self._parse_piece(repair_head(received[: end.start()]))
        if chunk or is_end:
            self._parse_piece(chunk)
        if self._is_parsed():
            reusable = self._parser.their_state is h11.DONE and not self._parser.trailing_data[0]
            self.must_close = self.must_close or not reusable
        elif is_end:
            raise ProtocolError("the server closed the connection in the middle of a response")

    def _parse_piece(self, piece: bytes) -> None:
        """Give h11 a head or a piece of a body, and pass on what it parses."""
        assert self._parser is not None
        assert self._handler is not None
        try:
            self._parser.receive_data(piece)
            while not isinstance(event := self._parser.next_event(), type):
                if isinstance(event, h11.Response):
                    headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                    self._handler.on_head(event.status_code, headers)
                    if self._unsent:
                        self._stop_sending(event.status_code)
                elif isinstance(event, h11.Data):
                    self._handler.on_data(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
        except h11.RemoteProtocolError as error:
            raise ProtocolError(f"the response is not valid HTTP: {error}") from error

    def _stop_sending(self, status: int) -> None:
        """Handle a response that arrives before the whole request was sent."""
        if status < 300:
            raise ProtocolError(f"the server answered {status} before the whole body was sent")
        self._unsent.clear()
        self.must_close = True


def _within_limit(head: bytes) -> bytes:
    """The beginning of a head, if it is not too long."""
    if len(head) > LONGEST_HEAD_BYTES:
        raise ProtocolError(f"the head of the response is longer than {LONGEST_HEAD_BYTES} bytes")
    return head


def _parse_simple_head(head: bytes) -> tuple[dict[str, str], int] | None:
    """Headers and Content-Length of a response for the fast path; None if h11 has to parse the response."""
    lines = head.split(b"\r\n")
    if not lines[0].startswith(b"HTTP/1.1 200"):
        return None
    pairs = (line.decode("latin-1").partition(":") for line in lines[1:])
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    length = headers.get("content-length", "")
    lengths = head.lower().count(b"\r\ncontent-length:")
    if (
        lengths != 1
        or not length.isdecimal()
        or "transfer-encoding" in headers
        or _FOLDED_HEADER.search(head)
    ):
        return None
    line_ends = len(lines) - 1
    if head.count(b"\n") != line_ends or head.count(b"\r") != line_ends:
        # A value contains a line break.
        return None
    return headers, int(length)


def _new_parser(method: str) -> h11.Connection:
    """An h11 connection that expects the response to a request with this method."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "s3")]))
    parser.send(h11.EndOfMessage())
    return parser
