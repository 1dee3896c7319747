"""Forwards one request through a :class:`tests.support.proxy.FaultProxy`, with its faults, and records it."""

import asyncio
import fcntl
import socket
import ssl
import struct
import termios
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Literal
from xml.sax.saxutils import escape

from tests.support.faults import (
    Answer,
    Call,
    CorruptRequest,
    CorruptResponse,
    Delay,
    Fault,
    ReplaceHeaders,
    Request,
    Reset,
    Stall,
    Truncate,
    VerifyUpload,
    refuse_upload,
)
from tests.support.wire import (
    CHUNK_BYTES,
    Body,
    Event,
    Head,
    StoppedError,
    apply_events,
    read_head,
    single_piece,
)

BUFFER_BYTES = 1024 * 1024
FLUSH_SECONDS = 5.0
"""How long the proxy waits for a client to take its last bytes."""
CONTINUE_SECONDS = 1.0
"""How long the proxy waits for the server to ask for a body; clients then send it without being asked."""
_UPSTREAM_CONNECT_SECONDS = 10.0
_LINGER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response. Times are in seconds since the proxy was made."""

    request: Request
    started_seconds: float
    first_byte_seconds: float | None
    """When the first byte of the response was sent to the client; None if none was."""
    ended_seconds: float | None
    """None while the request is in progress."""
    status: int | None
    """The status that was sent to the client; None if none was."""
    response_headers: Mapping[str, str]
    request_bytes: int
    """Bytes of the request's body that were received from the client."""
    response_bytes: int
    """Bytes of the response's body that were written to the client's socket."""
    faults: tuple[str, ...]
    error: str | None
    """An error that no rule caused, such as a client that closed its connection."""


def abort_with_reset(transport: asyncio.WriteTransport) -> None:
    """Close immediately with RST instead of FIN, by SO_LINGER with a time of 0."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class ExchangeRecord:
    """An exchange in progress; only the proxy's thread writes to it."""

    def __init__(self, request: Request, now: Callable[[], float]) -> None:
        self.request = request
        self.now = now
        self.started = now()
        self.first_byte: float | None = None
        self.ended: float | None = None
        self.status: int | None = None
        self.response_headers: Mapping[str, str] = {}
        self.request_bytes = 0
        self.response_bytes = 0
        self.faults: list[Fault] = []
        self.error: str | None = None

    def record_response(self, status: int, headers: Mapping[str, str]) -> None:
        """Record a response, before its first byte is sent, so that the client can rely on the record."""
        self.status = status
        self.response_headers = headers
        self.first_byte = self.now()

    def snapshot(self) -> Exchange:
        return Exchange(
            request=self.request,
            started_seconds=self.started,
            first_byte_seconds=self.first_byte,
            ended_seconds=self.ended,
            status=self.status,
            response_headers=self.response_headers,
            request_bytes=self.request_bytes,
            response_bytes=self.response_bytes,
            faults=tuple(type(fault).__name__ for fault in self.faults),
            error=self.error,
        )


class ClientProtocol(asyncio.StreamReaderProtocol):
    """Notices when the client ends a connection, also while the proxy waits for something else."""

    def __init__(self, reader: asyncio.StreamReader, on_gone: Callable[[], None]) -> None:
        super().__init__(reader)
        self.gone = asyncio.Event()
        self._on_gone = on_gone

    def count_once(self) -> None:
        if not self.gone.is_set():
            self.gone.set()
            self._on_gone()

    def eof_received(self) -> bool | None:
        self.count_once()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.count_once()
        super().connection_lost(exc)


class ClientConnection:
    """The connection to the client."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._gone = gone

    async def sleep(self, seconds: float) -> None:
        """Wait, or until the client has closed the connection."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), seconds)

    async def reset(self) -> None:
        """Close with RST, after everything that was written has arrived: RST would discard the rest."""
        # Not 0: with TLS, asyncio would treat an empty buffer as full, and wait forever.
        self.writer.transport.set_write_buffer_limits(high=1)
        with suppress(OSError):
            await self.writer.drain()
            await self._all_acknowledged()
        abort_with_reset(self.writer.transport)

    async def linger(self) -> None:
        """Read for a moment before closing: with unread bytes, closing sends RST, and the response is lost."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self.reader.read(CHUNK_BYTES):
                    pass

    async def _all_acknowledged(self) -> None:
        raw = self.writer.get_extra_info("socket")
        deadline = time.monotonic() + FLUSH_SECONDS
        while time.monotonic() < deadline:
            # How many bytes the peer has not acknowledged; see SIOCOUTQ in tcp(7).
            if not struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
                return
            await asyncio.sleep(0.001)


class UpstreamConnection:
    """The connection to the server: opened on demand, and kept as long as both sides keep it open."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._ssl = context
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and (self._streams[0].at_eof() or self._streams[1].is_closing()):
            self.abort()
        if self._streams is None:
            async with asyncio.timeout(_UPSTREAM_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, limit=BUFFER_BYTES, ssl=self._ssl
                )
            writer.transport.set_write_buffer_limits(BUFFER_BYTES)
            self._streams = reader, writer
        return self._streams

    def abort(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


class Forwarding:
    """Forwards one request to the server and the response back, with the faults of the rules."""

    def __init__(
        self,
        client: ClientConnection,
        upstream: UpstreamConnection,
        head: Head,
        record: ExchangeRecord,
        call: Callable[[Call, Request], Awaitable[Answer | None]],
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._head = head
        self._record = record
        self._request = record.request
        self._faults = record.faults
        self._call = call
        self._body = Body(client.reader, record.request.headers, until_close=False)
        self._expects = "100-continue" in record.request.headers.get("expect", "").lower()
        self._body_requested = asyncio.Event()
        if not self._expects:
            self._body_requested.set()
        self._body_read = not self._body.expected
        self._body_broken = False
        connection = record.request.headers.get("connection", "").lower()
        self._keeps = head.first_line.endswith("HTTP/1.1") and "close" not in connection

    async def run(self) -> bool:
        """Forward the request; returns whether the client's connection can carry another request."""
        if self._resets("request"):
            await self._client.reset()
            return False
        if answer := await self._answer_instead("before"):
            return await self._send_answer(answer)
        try:
            answered = await self._forward()
        except StoppedError:
            self._upstream.abort()
            await self._client.reset()
            return False
        if isinstance(answered, Answer):
            return await self._send_answer(answered)
        reader, head = answered
        headers = head.lower()
        no_body = self._request.method == "HEAD" or head.status in (204, 304)
        body = Body(reader, {} if no_body else headers, until_close=not no_body)
        answer = await self._answer_instead("after")
        if answer or self._resets("before_response"):
            async for _ in body.pieces():
                pass
            self._done_with_upstream(head, body)
            if answer:
                return await self._send_answer(answer)
            await self._client.reset()
            return False
        return await self._relay(head, body)

    def _resets(self, at: str) -> bool:
        return any(isinstance(fault, Reset) and fault.at == at for fault in self._faults)

    async def _answer_instead(self, when: Literal["before", "after"]) -> Answer | None:
        answer: Answer | None = None
        for fault in self._faults:
            if isinstance(fault, Call) and fault.when == when:
                answer = answer or await self._call(fault, self._request)
            elif isinstance(fault, Answer) and fault.after_effect == (when == "after"):
                answer = answer or fault
        return answer

    async def _delay(self) -> None:
        await self._client.sleep(sum(fault.seconds for fault in self._faults if isinstance(fault, Delay)))

    async def _send_answer(self, answer: Answer) -> bool:
        """Send an answer instead of the server's."""
        if self._body_requested.is_set() and not self._body_broken:
            await self._discard_body()
        await self._delay()
        keeps = self._keeps and self._body_read
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{escape(answer.code)}</Code><Message>{escape(answer.message)}</Message>"
            f"<Resource>{escape(self._request.path)}</Resource><RequestId>{uuid.uuid4().hex[:16]}</RequestId></Error>"
        ).encode()
        if self._request.method == "HEAD":
            body = b""
        headers = {
            "Date": formatdate(usegmt=True),
            "Content-Type": "application/xml",
            "Content-Length": str(len(body)),
            **({} if keeps else {"Connection": "close"}),
            **answer.headers,
        }
        self._write_head(answer.status, "Answered by the test", headers)
        await self._write(body)
        if not self._body_read:
            await self._client.writer.drain()
            await self._client.linger()
        return keeps

    async def _discard_body(self) -> None:
        if not self._body_read:
            async for piece in self._body.pieces():
                self._record.request_bytes += len(piece)
            self._body_read = True

    async def _forward(self) -> tuple[asyncio.StreamReader, Head] | Answer:
        """Send the request to the server; returns the stream of the response, and its head.

        :raises StoppedError: if a rule resets the client's connection within the body
        """
        verifies = any(isinstance(fault, VerifyUpload) for fault in self._faults)
        pieces: AsyncIterator[bytes]
        if self._body.expected and (verifies or (self._body.chunked and self._request_events(1))):
            self._request_body()
            held = await self._body.whole()
            self._body_read = True
            self._record.request_bytes = len(held)
            faulty = apply_events(single_piece(held), self._request_events(len(held)), self._client.sleep)
            held = b"".join([piece async for piece in faulty])
            if verifies and (refusal := refuse_upload(held, self._request.headers)):
                return refusal
            pieces = single_piece(
                b"%x\r\n%b\r\n0\r\n\r\n" % (len(held), held) if self._body.chunked else held
            )
        else:
            events = self._request_events(self._body.length or 0)
            pieces = apply_events(self._counted(self._body.pieces()), events, self._client.sleep)
        reader, writer = await self._upstream.open()
        writer.write(self._head.raw)
        response_head = asyncio.ensure_future(self._response_head(reader))
        # If the request ends in another way, the result is not awaited; reading the exception avoids a warning.
        response_head.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            if not self._body_requested.is_set():
                await self._await_request_for_body(response_head)
            if self._body_requested.is_set() and self._body.expected:
                await self._send_body(pieces, writer, response_head)
            return reader, await response_head
        finally:
            response_head.cancel()

    async def _await_request_for_body(self, response_head: "asyncio.Future[Head]") -> None:
        """Wait until the server asks for the body or refuses it, or until a client would send it anyway."""
        requested = asyncio.ensure_future(self._body_requested.wait())
        first: set[asyncio.Future[Any]] = {requested, response_head}
        try:
            await asyncio.wait(first, timeout=CONTINUE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            requested.cancel()
        if not response_head.done():
            self._request_body()

    async def _send_body(
        self,
        pieces: AsyncIterator[bytes],
        writer: asyncio.StreamWriter,
        response_head: "asyncio.Future[Head]",
    ) -> None:
        """Send the body until it ends, or until the server responds before the end."""

        async def send() -> None:
            async for piece in pieces:
                try:
                    writer.write(piece)
                    await writer.drain()
                except ConnectionError:
                    # A server that refuses a body may respond and close before the whole body is sent.
                    return
            self._body_read = True

        sending = asyncio.ensure_future(send())
        try:
            first: set[asyncio.Future[Any]] = {sending, response_head}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                self._body_broken = True
        finally:
            sending.cancel()

    async def _response_head(self, reader: asyncio.StreamReader) -> Head:
        """The head of the final response; an interim one that asks for the body is forwarded."""
        while True:
            head = await read_head(reader)
            if head is None:
                raise EOFError("the server closed the connection without a response")
            if head.status >= 200:
                return head
            if head.status == 100:
                self._request_body()

    def _request_body(self) -> None:
        if not self._body_requested.is_set():
            self._body_requested.set()
            self._client.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self._record.request_bytes += len(piece)
            yield piece

    def _request_events(self, length: int) -> list[Event]:
        events = []
        for fault in self._faults:
            if isinstance(fault, CorruptRequest):
                events.append(Event(_position(length, fault.fraction), "corrupt"))
            elif isinstance(fault, Stall) and fault.at == "request":
                events.append(Event(_position(length, fault.fraction), "stall", fault.seconds))
            elif isinstance(fault, Reset) and fault.at == "mid_request":
                events.append(Event(_position(length, fault.fraction), "reset"))
        return events

    def _response_events(self, length: int) -> list[Event]:
        events = []
        for fault in self._faults:
            if isinstance(fault, CorruptResponse):
                events.append(Event(_position(length, fault.fraction), "corrupt"))
            elif isinstance(fault, Stall) and fault.at == "response":
                events.append(Event(_position(length, fault.fraction), "stall", fault.seconds))
            elif isinstance(fault, Truncate):
                events.append(Event(_position(length, fault.fraction), "close"))
            elif isinstance(fault, Reset) and fault.at == "mid_response":
                events.append(Event(_position(length, fault.fraction), "reset"))
        return events

    async def _relay(self, head: Head, body: Body) -> bool:
        """Send the server's response to the client."""
        # Headers of the connection to the server only.
        headers = {
            name: value for name, value in head.headers if name.lower() not in ("connection", "keep-alive")
        }
        pieces = body.pieces()
        length = body.length or 0
        if body.expected and body.length is None and self._response_events(1):
            # A fault at a fraction of the body needs the length of the body.
            held = await body.whole()
            length = len(held)
            pieces = single_piece(held)
            headers = {name: value for name, value in headers.items() if name.lower() != "transfer-encoding"}
            headers["Content-Length"] = str(length)
        await self._delay()
        for fault in self._faults:
            if isinstance(fault, ReplaceHeaders):
                headers = _replace(headers, fault.headers)
        # Not kept if the request was not sent completely, or if only closing can end the response.
        keeps = self._keeps and self._body_read and not (body.until_close and "Content-Length" not in headers)
        if not keeps:
            headers["Connection"] = "close"
        self._write_head(head.status, head.reason, headers)
        try:
            async for piece in apply_events(pieces, self._response_events(length), self._client.sleep):
                await self._write(piece)
        except StoppedError as stopped:
            if stopped.act == "reset":
                await self._client.reset()
            return False
        self._done_with_upstream(head, body)
        if self._resets("after_response"):
            await self._client.reset()
            return False
        if not self._body_read:
            await self._client.writer.drain()
            await self._client.linger()
        return keeps

    def _done_with_upstream(self, head: Head, body: Body) -> None:
        closes = "close" in head.lower().get("connection", "").lower() or head.first_line.startswith(
            "HTTP/1.0"
        )
        if closes or body.until_close or not self._body_read:
            self._upstream.abort()

    def _write_head(self, status: int, reason: str, headers: Mapping[str, str]) -> None:
        self._record.record_response(status, {name.lower(): value for name, value in headers.items()})
        lines = [
            f"HTTP/1.1 {status} {reason}",
            *(f"{name}: {value}" for name, value in headers.items()),
            "",
            "",
        ]
        self._client.writer.write("\r\n".join(lines).encode("latin-1"))

    async def _write(self, piece: bytes) -> None:
        self._record.response_bytes += len(piece)
        self._client.writer.write(piece)
        await self._client.writer.drain()


def _position(length: int, fraction: float) -> int:
    """The offset of a fraction of a body, at least one byte before its end."""
    return max(0, min(length - 1, int(length * fraction)))


def _replace(headers: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    changed = {name.lower() for name in changes}
    kept = {name: value for name, value in headers.items() if name.lower() not in changed}
    return kept | {name: value for name, value in changes.items() if value is not None}
