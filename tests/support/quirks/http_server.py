"""HTTP/1.1 for the server: persistent connections, each with a thread of its own.

No HTTP library is used, because some quirks send what a library would refuse to send. The server can be its own
proxy: it accepts requests with an absolute URL, and tunnels (CONNECT) with TLS.
"""

import io
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, BinaryIO, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

LONGEST_LINE_BYTES = 64 * 1024
IDLE_SECONDS = 120.0


@dataclass(slots=True)
class Request:
    """A request as it arrived.

    :param path: percent-encoded, without scheme, host and query
    :param query: percent-encoded
    :param headers: names in lower case
    :param connection: number of the connection, from 1
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    connection: int
    bucket: str = field(init=False)
    key: str = field(init=False)
    arguments: dict[str, str] = field(init=False)
    operation: str = ""

    def __post_init__(self) -> None:
        bucket, _, key = self.path.removeprefix("/").partition("/")
        self.bucket, self.key = unquote(bucket), unquote(key)
        self.arguments = dict(parse_qsl(self.query, keep_blank_values=True))


@dataclass(slots=True)
class Answer:
    """A response, and how it is sent.

    :param error: the error code of S3, for the log
    :param length: value of Content-Length; None for the length of the body
    :param stated: whether there is a Content-Length
    :param chunked: whether the body is sent in chunks, without a Content-Length
    :param delay_seconds: how long to wait before sending
    :param sent_bytes: close the connection after this many bytes of the body; None to send all of it
    :param close: close the connection after the response
    :param date: the Date header; None for the current time, empty for no header
    :param version: the HTTP version
    :param interim: an interim response that is sent before
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    error: str = ""
    length: int | None = None
    stated: bool = True
    chunked: bool = False
    delay_seconds: float = 0.0
    sent_bytes: int | None = None
    close: bool = False
    date: str | None = None
    version: str = "HTTP/1.1"
    interim: bytes = b""


class Application(Protocol):
    """Answers the requests of a server."""

    @property
    def piece_bytes(self) -> int:
        """Heads of responses are sent in pieces of this size; 0 to send them at once."""

    def closes_handshake(self) -> bool:
        """Whether to close this TLS connection after the ClientHello."""

    def answer(self, request: Request) -> Answer:
        """Answer a request; called by several threads."""


class HttpServer(socketserver.ThreadingTCPServer):
    """Serves an application.

    :param tls: the context for TLS, from the start or in tunnels
    :param secure: use TLS from the start
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], application: Application, tls: ssl.SSLContext | None, secure: bool
    ) -> None:
        super().__init__(address, Connection)
        self.application = application
        self.tls = tls
        self.secure = secure
        self.counting = threading.Lock()
        self.accepted = 0
        self.open = 0
        self.peak = 0

    def reset_peak(self) -> None:
        """Restart the peak of open connections."""
        with self.counting:
            self.peak = self.open

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the traceback, except when a client has closed its connection."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Connection(socketserver.BaseRequestHandler):
    """One connection: serves requests one after the other until it is closed."""

    server: HttpServer
    request: socket.socket

    def setup(self) -> None:
        """Count the connection."""
        with self.server.counting:
            self.server.accepted += 1
            self.number = self.server.accepted
            self.server.open += 1
            self.server.peak = max(self.server.peak, self.server.open)
        self.request.settimeout(IDLE_SECONDS)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        """Close the connection and count it."""
        with self.server.counting:
            self.server.open -= 1
        with suppress(OSError):
            self.request.close()

    def handle(self) -> None:
        """Serve requests until one side closes."""
        if self.server.secure and not self._start_tls():
            return
        reader: BinaryIO = self.request.makefile("rb")
        while (request := self._read(reader)) is not None:
            if request.method == "CONNECT":
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                if not self._start_tls():
                    return
                reader = self.request.makefile("rb")
                continue
            answer = self.server.application.answer(request)
            if answer.delay_seconds:
                time.sleep(answer.delay_seconds)
            if not self._write(request, answer):
                return

    def _start_tls(self) -> bool:
        application = self.server.application
        with self.server.counting:
            closing = application.closes_handshake()
        if closing:
            self.request.recv(LONGEST_LINE_BYTES)
            return False
        assert self.server.tls is not None
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        return True

    def _read(self, reader: BinaryIO) -> Request | None:
        """The next request; None if the client has closed the connection."""
        first = reader.readline(LONGEST_LINE_BYTES)
        if not first.strip():
            return None
        method, target, _ = first.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := reader.readline(LONGEST_LINE_BYTES)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if method == "CONNECT":
            return Request(method, target, "", headers, b"", self.number)
        if headers.get("expect", "").lower() == "100-continue":
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._read_body(reader, headers)
        if not target.startswith("/"):
            url = urlsplit(target)
            target = f"{url.path or '/'}?{url.query}"
        path, _, query = target.partition("?")
        return Request(method, path, query, headers, body, self.number)

    def _read_body(self, reader: BinaryIO, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return reader.read(int(headers.get("content-length", "0")))
        pieces = io.BytesIO()
        while size := int(reader.readline(LONGEST_LINE_BYTES).partition(b";")[0], 16):
            pieces.write(reader.read(size))
            reader.readline(LONGEST_LINE_BYTES)
        while reader.readline(LONGEST_LINE_BYTES).strip():
            continue
        return pieces.getvalue()

    def _write(self, request: Request, answer: Answer) -> bool:
        """Send a response; returns whether the connection stays open."""
        bodiless = request.method == "HEAD" or answer.status in (204, 304)
        lines = [f"{answer.version} {answer.status} {_reason(answer.status)}"]
        date = formatdate(usegmt=True) if answer.date is None else answer.date
        if date:
            lines.append(f"Date: {date}")
        if answer.chunked and not bodiless:
            lines.append("Transfer-Encoding: chunked")
        elif answer.stated and answer.status != 204:
            length = len(answer.body) if answer.length is None else answer.length
            lines.append(f"Content-Length: {length}")
        if answer.close:
            lines.append("Connection: close")
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        head = answer.interim + "\r\n".join((*lines, "", "")).encode("latin-1", "replace")
        body = b"" if bodiless else answer.body
        if answer.sent_bytes is not None:
            self.request.sendall(head + bytes(body[: answer.sent_bytes]))
            return False
        if answer.chunked and body:
            body = b"%x\r\n%b\r\n" % (len(body), bytes(body))
        if answer.chunked and not bodiless:
            body = bytes(body) + b"0\r\n\r\n"
        if piece := self.server.application.piece_bytes:
            for start in range(0, len(head), piece):
                self.request.sendall(head[start : start + piece])
            self.request.sendall(body)
        elif len(body) < LONGEST_LINE_BYTES:
            self.request.sendall(head + bytes(body))
        else:
            self.request.sendall(head)
            self.request.sendall(body)
        # Without a length, only the end of the connection ends the body.
        ended_by_close = not (answer.stated or answer.chunked or bodiless)
        wants_close = request.headers.get("connection", "").lower() == "close"
        return not (answer.close or ended_by_close or wants_close or answer.version == "HTTP/1.0")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
