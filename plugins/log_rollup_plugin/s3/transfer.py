"""The data plane: moves bodies between S3 and memory over a hard-capped set of connections."""

import html
import math
import os
import re
import select
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from botocore.credentials import Credentials

from include.log_rollup import crc, limits
from include.log_rollup.errors import (
    ChangedBufferError,
    ListingError,
    RollupError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import Checksum, Downloaded, Location, Uploaded
from include.log_rollup.units import KIB
from log_rollup_plugin.s3.checksums import ChecksumSupport, content_md5, may_refuse_header
from log_rollup_plugin.s3.connection import HEAD_BYTES, Body, Connection, ProtocolError
from log_rollup_plugin.s3.connector import (
    BucketEndpoint,
    ClientCertificate,
    Connector,
    Stream,
    TlsSettings,
    proxy_headers,
)
from log_rollup_plugin.s3.error_mapping import from_network, from_response, translated
from log_rollup_plugin.s3.signing import Signer

# As S3's access logs show it.
USER_AGENT = "log-rollup"
# Sent by boto3 with every request, and not signed: proxies may change it. A server that is not asked to leave a
# body as it is may unpack what bears a Content-Encoding.
_ACCEPT_ENCODING = "accept-encoding: identity"
# Statuses, and error codes with 400, for a bucket that is in another region than the request is made to.
_REDIRECTS = (301, 302, 307, 308, 400)
_WRONG_REGION = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_CHECKSUM_HEADERS = frozenset(
    {
        "x-amz-checksum-mode", "x-amz-checksum-algorithm", "x-amz-checksum-crc64nvme",
        "x-amz-sdk-checksum-algorithm",
    }
)  # fmt: skip
_WAKE, _CONNECTED = b"w", b"c"
_BROKEN = (OSError, ProtocolError, ChangedBufferError)
# Failures after which a request is not sent again on another connection.
_FINAL = (TimeoutError, ChangedBufferError)
# So much of an answer's XML is kept: S3's errors and the results of copies are a few hundred bytes.
XML_BYTES = 64 * KIB
_MD5 = re.compile(r"[0-9a-f]{32}")
_ERROR_CODE = re.compile(r"<Code>(.*?)</Code>", re.DOTALL)
_ERROR_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_ERROR_ROOT = re.compile(r"\s*(?:<\?xml.*?\?>)?\s*<Error[\s>]", re.DOTALL)
_COPY_ETAG = re.compile(r"<ETag>(.*?)</ETag>", re.DOTALL)
_COPY_CRC = re.compile(r"<ChecksumCRC64NVME>(.*?)</ChecksumCRC64NVME>", re.DOTALL)
_COPY_OF_PARTS = "<ChecksumType>COMPOSITE</ChecksumType>"


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How connections are made, and what all requests carry.

    :param verify: as botocore's: whether, or against which CA file or directory, certificates are checked
    :param ca: the CA file or directory that this comes to
    :param connect_timeout: for connecting, and again for the TLS handshake
    :param response_timeout: without a byte of an object that is read
    :param headers: sent with every request, such as ``x-amz-request-payer``
    :param write_headers: sent with uploads and copies on top of those
    :param client: certificate that origins are shown
    :param proxy_tls: how proxies with https URLs are spoken to; None for as origins are
    :param checksums: which checksum headers the server takes; changed when it refuses one
    """

    verify: str | bool
    ca: str
    connect_timeout: timedelta
    response_timeout: timedelta
    headers: Mapping[str, str]
    write_headers: Mapping[str, str] = field(default_factory=dict)
    client: ClientCertificate | None = None
    proxy_tls: TlsSettings | None = None
    checksums: ChecksumSupport = field(default_factory=ChecksumSupport)


class SocketTransfer:
    """Implements :class:`include.log_rollup.storage.protocol.Transfer` on non-blocking sockets and poll().

    Connections that are being made count towards the cap, and an idle one to another host is closed before a new
    one takes its place. Bodies move on the thread that calls :meth:`wait`; other threads make the connections.

    :param endpoints: by bucket
    :param connections: the most that may be open at any time
    :param credentials: botocore's, which may renew themselves
    :param relocate: finds the endpoint of a bucket whose requests are redirected, as boto3 does
    """

    def __init__(
        self,
        endpoints: Mapping[str, BucketEndpoint],
        connections: int,
        credentials: Credentials,
        settings: TransferSettings,
        relocate: Callable[[str], BucketEndpoint] | None = None,
    ) -> None:
        self.connections = connections
        self.endpoints = dict(endpoints)
        self._relocate = relocate
        self._signer = Signer(credentials)
        self._headers = (("user-agent", USER_AGENT), *settings.headers.items())
        self._write_headers = (*self._headers, *settings.write_headers.items())
        self.checksums = settings.checksums
        self._response_seconds = settings.response_timeout.total_seconds()
        self._connector = Connector(
            endpoints.values(),
            settings.connect_timeout,
            TlsSettings(bool(settings.verify), settings.ca, settings.client),
            settings.proxy_tls,
        )
        self._connecting = ThreadPoolExecutor(
            min(connections, limits.PACKING_CONNECTING_THREADS), "log-rollup-connect"
        )
        self._connected: deque[tuple[Connection, Stream | Exception]] = deque()
        # All that count towards the cap: open ones and those that are being made.
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
        """Fetch a whole object, with If-Match where there is an ETag, and the CRC that S3 keeps of it."""
        headers = [*self._headers]
        if self.checksums.on_read:
            headers.append(("x-amz-checksum-mode", "ENABLED"))
        if etag is not None:
            headers.append(("if-match", f'"{etag}"'))
        return self._submit(_Get(self, source, source, headers, done, into=into), etag)

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> "_Request":
        """Write an object in one request; S3 refuses a body whose CRC differs.

        The CRC of each piece is counted just before it is sent. If the CRC of all of them is another one, the
        last piece is not sent and the connection is closed, so that S3 stores nothing.

        The CRC is sent as a header: a trailing checksum makes some S3-compatible servers store "aws-chunked" as
        the content encoding. A server that refuses the header is sent the MD5 instead.
        """
        fields = [
            ("content-length", str(len(body))),
            ("content-type", "application/octet-stream"),
            *headers.items(),
            *self._write_headers,
        ]
        if self.checksums.on_write:
            fields.append(("x-amz-sdk-checksum-algorithm", "CRC64NVME"))
            fields.append(("x-amz-checksum-crc64nvme", crc.to_header(crc64nvme)))
        else:
            fields.append(("content-md5", content_md5(body)))
        sent = Body(body, crc64nvme)
        return self._submit(_Put(self, target, target, fields, done, body=sent), *headers.values())

    def copy(
        self,
        source: Location,
        etag: str,
        target: Location,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> "_Request":
        """Let S3 copy an object of at most 5 GiB, if the source still has this ETag (CopyObject)."""
        fields = self._copy_headers(source, etag)
        fields.extend(headers.items())
        if self.checksums.on_copy:
            fields.append(("x-amz-checksum-algorithm", "CRC64NVME"))
        return self._submit(_Copy(self, target, source, fields, done), etag, *headers.values())

    def copy_range(
        self,
        source: Location,
        etag: str,
        first: int,
        last: int,
        target: Location,
        upload_id: str,
        number: int,
        done: Callable[[Uploaded | Exception], None],
    ) -> "_Request":
        """Let S3 copy the bytes ``first`` to ``last`` into one part of a multipart upload (UploadPartCopy)."""
        fields = self._copy_headers(source, etag)
        fields.append(("x-amz-copy-source-range", f"bytes={first}-{last}"))
        query = f"?partNumber={number}&uploadId={quote(upload_id, safe='')}"
        return self._submit(_Copy(self, target, source, fields, done, query=query), etag)

    def _copy_headers(self, source: Location, etag: str) -> list[tuple[str, str]]:
        return [
            ("content-length", "0"),
            ("x-amz-copy-source", f"{source.bucket}/{quote(source.key, safe='/~')}"),
            ("x-amz-copy-source-if-match", f'"{etag}"'),
            *self._write_headers,
        ]

    def wait(self, seconds: float) -> None:
        """Move bodies until a request has ended, :meth:`wake` is called, or the time is over."""
        until = time.monotonic() + seconds
        # Not when a request is cancelled: the caller may be cancelling all of them.
        self._assign()
        while True:
            left = 0.0 if self._ended else max(0.0, until - time.monotonic())
            woken = False
            # Rounded up: with the rest of a millisecond, poll() would return at once, again and again.
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
            if self._report() or woken or now >= until:
                return

    def wake(self) -> None:
        """Make :meth:`wait` return, from another thread."""
        self._write(_WAKE)

    def close(self) -> None:
        """Close every connection."""
        self._connecting.shutdown(cancel_futures=True)
        for _, made in self._connected:
            if not isinstance(made, Exception):
                made.close()
        for connection in self._all:
            connection.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def cancel(self, request: "_Request") -> None:
        """Give a request up; nothing happens to one that has ended."""
        connection = request.connection
        if connection is not None:
            self._detach(connection)
            # A connection that is still being made has nothing of the request yet.
            if connection.descriptor >= 0:
                self._close(connection)
        elif request in self._waiting:
            self._waiting.remove(request)
        else:
            return
        request.done(TransientError(f"{request}: cancelled"))

    # -- requests --------------------------------------------------------------------------------------

    def _submit(self, request: "_Request", *values: str | None) -> "_Request":
        """Queue a request.

        :param values: of its headers, from outside: one with a line break would add headers to the request
        """
        for value in values:
            if value is not None and not value.isprintable():
                problem = ListingError(f"{request}: {value!r} cannot be sent as the value of a header")
                self._ended.append((request, problem))
                return request
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
        """An idle connection to the endpoint, or a new one if the cap allows it."""
        now = time.monotonic()
        for connection in reversed(self._idle):
            if (
                connection.endpoint.pool_key == endpoint.pool_key
                and now - connection.moved < limits.IDLE_CONNECTION_SECONDS
            ):
                self._idle.remove(connection)
                return connection
        if len(self._all) >= self.connections:
            if not self._idle:
                return None
            # It leads elsewhere, or S3 may have closed it by now.
            self._close(self._idle[0])
        return Connection(endpoint, self._scratch)

    def _start(self, connection: Connection, request: "_Request") -> None:
        endpoint, target = request.endpoint, request.target
        try:
            with translated("credentials for", request.location):
                headers = self._signer.sign(
                    endpoint.region, endpoint.host, request.method, target, request.headers,
                    request.body is not None,
                )  # fmt: skip
        except RollupError as error:
            self._ended.append((request, error))
            self._release(connection)
            return
        if endpoint.proxy and not endpoint.tunnelled:
            target = endpoint.base_url + target
            headers += proxy_headers(endpoint).items()
        lines = [
            f"{request.method} {target} HTTP/1.1",
            _ACCEPT_ENCODING,
            *[f"{name}: {value}" for name, value in headers],
        ]
        try:
            connection.begin(request, "\r\n".join((*lines, "", "")).encode(), request.body)
        except _BROKEN as error:
            self._fail(connection, error)
        else:
            self._poll_for(connection)

    def _poll_for(self, connection: Connection) -> None:
        """Register a connection for the events that it waits for, if they have changed."""
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
            if request.drop_refused_checksums() or self._follow(request):
                self._waiting.appendleft(request)
            else:
                self._ended.append((request, request.result()))
            self._release(connection)
        else:
            self._poll_for(connection)

    def _follow(self, request: "_Request") -> bool:
        """Direct a request to where its bucket is, if the server says that it is elsewhere; once."""
        if self._relocate is None or not request.is_redirected():
            return False
        bucket = request.place.bucket
        if self.endpoints[bucket] == request.endpoint:
            # Of all requests under way, the first that is redirected finds the endpoint.
            with suppress(RollupError):
                self.endpoints[bucket] = self._relocate(bucket)
        if self.endpoints[bucket] == request.endpoint:
            return False
        request.address()
        return True

    def _release(self, connection: Connection) -> None:
        """Use a connection for the next request, before the result of the last one is reported."""
        self._detach(connection)
        connection.used = True
        if connection.closing:
            self._close(connection)
        else:
            self._idle.append(connection)
            self._poll_for(connection)
        self._assign()

    def _fail(self, connection: Connection, error: Exception) -> None:
        """Handle a broken connection. S3 may close an idle one just when it is used again: send again once."""
        request = self._detach(connection)
        unanswered = connection.used and not connection.answered and not isinstance(error, _FINAL)
        self._close(connection)
        if unanswered and not request.again:
            request.again = True
            self._waiting.appendleft(request)
        else:
            self._ended.append((request, from_network(request.operation, request.location, error)))
        self._assign()

    def _detach(self, connection: Connection) -> "_Request":
        """Part a connection and the request that it was serving."""
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
        """Fail GETs that have stalled. S3 may take long to answer uploads and copies: the packer limits those."""
        for connection, request in tuple(self._serving.items()):
            silent = connection.descriptor >= 0 and now - connection.moved > self._response_seconds
            if silent and isinstance(request, _Get):
                self._fail(connection, TimeoutError(f"no byte came for {self._response_seconds:g} s"))

    def _report(self) -> bool:
        """Call the callbacks of requests that have ended; whether there were any."""
        ended, self._ended = self._ended, []
        for request, result in ended:
            request.done(result)
        return bool(ended)

    # -- connecting ------------------------------------------------------------------------------------

    def _connect(self, connection: Connection) -> None:
        """Make a connection, on a thread of its own."""
        made: Stream | Exception
        try:
            made = self._connector.connect(connection.endpoint)
        except Exception as error:
            made = error
        self._connected.append((connection, made))
        self._write(_CONNECTED)

    def _connect_ended(self, connection: Connection, made: Stream | Exception) -> None:
        request = self._serving.get(connection)
        if not isinstance(made, Exception):
            self._polled[connection.open(made)] = connection
        if request is None:
            # Its request was cancelled meanwhile; another one can use it.
            if isinstance(made, Exception):
                self._close(connection)
            else:
                connection.used = True
                self._idle.append(connection)
                self._poll_for(connection)
            self._assign()
        elif isinstance(made, Exception):
            self._fail(connection, made)
        else:
            self._start(connection, request)

    def _write(self, what: bytes) -> None:
        # A full pipe holds bytes enough to wake the other side.
        with suppress(BlockingIOError):
            os.write(self._wake_write, what)


class _Request(ABC):
    """A request from its submission to its result."""

    method: str
    operation: str
    """As errors name it."""

    def __init__(
        self,
        transfer: SocketTransfer,
        place: Location,
        location: Location,
        headers: list[tuple[str, str]],
        done: Callable[[Any], None],
        *,
        into: memoryview | None = None,
        body: Body | None = None,
        query: str = "",
    ) -> None:
        self.place = place
        """The object that the URL names."""
        self.location = location
        """The object that errors name."""
        self.headers = headers
        self.done = done
        self.connection: Connection | None = None
        self.again = False
        """Whether it was sent a second time, because its first connection had been closed."""
        self.into = into
        """See :class:`log_rollup_plugin.s3.connection.Sink`."""
        self.body = body
        self._transfer = transfer
        self._query = query
        self._redirects = 0
        self._status = 0
        self._answer: Mapping[str, str] = {}
        self._xml = bytearray()
        self._without_checksums = False
        self.address()

    def address(self) -> None:
        """Take the endpoint of the bucket as it is known now."""
        self.endpoint = self._transfer.endpoints[self.place.bucket]
        self.target = self.endpoint.target(self.place.key) + self._query
        """Path and query."""
        self._xml.clear()

    def is_redirected(self) -> bool:
        """Whether the server says for the first time that the bucket is elsewhere."""
        if self._status not in _REDIRECTS or (self._status == 400 and self._code() not in _WRONG_REGION):
            return False
        self._redirects += 1
        return self._redirects == 1

    def cancel(self) -> None:
        """See :class:`include.log_rollup.storage.protocol.Cancellable`."""
        self._transfer.cancel(self)

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """See :class:`log_rollup_plugin.s3.connection.Sink`."""
        self._status, self._answer = status, headers

    def came(self, chunk: bytes) -> None:
        """Keep the beginning of an error's XML."""
        if len(self._xml) < XML_BYTES:
            self._xml += chunk

    def received(self, size: int) -> None:
        """See :class:`log_rollup_plugin.s3.connection.Sink`."""
        raise AssertionError("only a GET has a buffer to receive into")

    def drop_refused_checksums(self) -> bool:
        """Make the request ready to be sent again without checksum headers, if the server refused them."""
        if self._status not in (400, 501) or not may_refuse_header(self._status, self._code()):
            return False
        kept = [header for header in self.headers if header[0] not in _CHECKSUM_HEADERS]
        if len(kept) == len(self.headers):
            return False
        if self.body is not None:
            kept.append(("content-md5", content_md5(self.body.content)))
        self.headers = kept
        self._without_checksums = True
        self._xml.clear()
        return True

    def result(self) -> object:
        """The result, or an error of S3."""
        if self._status >= 300:
            return self._error(self._status)
        if self._without_checksums:
            self._note_refusal(self._transfer.checksums)
        return self._success(self._answer)

    def _code(self) -> str:
        found = _ERROR_CODE.search(self._text())
        return found[1].strip() if found else str(self._status)

    def _text(self) -> str:
        return self._xml.decode(errors="replace")

    def _error(self, status: int) -> Exception:
        message = _ERROR_MESSAGE.search(self._text())
        return from_response(
            self.operation, self.location, status, self._code(), message[1] if message else "", self._answer
        )

    @abstractmethod
    def _note_refusal(self, checksums: ChecksumSupport) -> None:
        """Remember that the server refused the checksum headers of such a request, and took it without."""

    @abstractmethod
    def _success(self, headers: Mapping[str, str]) -> object:
        """The result of a request that S3 has carried out."""

    def __str__(self) -> str:
        return f"{self.operation} {self.location}"


class _Get(_Request):
    method = operation = "GET"

    def __init__(self, *arguments: Any, into: memoryview) -> None:
        super().__init__(*arguments, into=into)
        self._position = 0

    def received(self, size: int) -> None:
        """See :class:`log_rollup_plugin.s3.connection.Sink`."""
        self._position += size

    def came(self, chunk: bytes) -> None:
        """Copy a piece of the body into the buffer, as far as there is room; the size shows what is too long."""
        if self._status >= 300:
            super().came(chunk)
            return
        start = self._position
        self._position += len(chunk)
        assert self.into is not None
        room = max(0, len(self.into) - start)
        self.into[start : start + len(chunk)] = chunk[:room]

    def _note_refusal(self, checksums: ChecksumSupport) -> None:
        checksums.on_read = False

    def _success(self, headers: Mapping[str, str]) -> Downloaded:
        etag = headers.get("etag", "").strip('"')
        return Downloaded(self._position, etag, _checksum(headers), _etag_is_md5(etag, headers))


class _Put(_Request):
    method = operation = "PUT"

    def _note_refusal(self, checksums: ChecksumSupport) -> None:
        checksums.on_write = False

    def _success(self, headers: Mapping[str, str]) -> Uploaded:
        stored = crc.from_header(headers.get("x-amz-checksum-crc64nvme"))
        return Uploaded(headers.get("etag", "").strip('"'), stored)


class _Copy(_Request):
    """CopyObject or UploadPartCopy: the result is XML, and so is an error that comes with status 200."""

    method, operation = "PUT", "COPY"

    def came(self, chunk: bytes) -> None:
        """Keep the XML, without the white space that S3 sends while it copies."""
        super().came(chunk if self._xml else chunk.lstrip())

    def result(self) -> object:
        """The result, or an error of S3, with whichever status it came."""
        if self._status in (405, 501):
            return UnsupportedOperationError(
                f"{self}: S3 answered {self._status} {self._code()}: the store cannot copy objects"
            )
        if self._status < 300 and _ERROR_ROOT.match(self._text()):
            return self._error(self._status)
        return super().result()

    def _note_refusal(self, checksums: ChecksumSupport) -> None:
        checksums.on_copy = False

    def _success(self, headers: Mapping[str, str]) -> Uploaded | Exception:
        text = self._text()
        etag = _COPY_ETAG.search(text)
        if not text:
            return UnsupportedOperationError(
                f"{self}: S3 answered without a result: the store took the copy for an empty upload"
            )
        if etag is None:
            return TransientError(f"{self}: S3 answered {text[:200]!r} without an ETag")
        stored = _COPY_CRC.search(text) if _COPY_OF_PARTS not in text else None
        return Uploaded(html.unescape(etag[1]).strip().strip('"'), crc.from_header(stored and stored[1]))


def _checksum(headers: Mapping[str, str]) -> Checksum | None:
    if headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() != "FULL_OBJECT":
        return None
    for algorithm in crc.ALGORITHMS:
        value = crc.from_header(headers.get(f"x-amz-checksum-{algorithm}"), algorithm)
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
