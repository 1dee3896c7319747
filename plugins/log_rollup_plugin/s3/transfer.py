"""The data plane: moves objects between S3 and memory, over a capped pool of connections."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import quote

from botocore.credentials import Credentials

from include.log_rollup import crc
from include.log_rollup.errors import ChangedBufferError, ListingError, RollupError, TransientError
from include.log_rollup.storage.protocol import Downloaded, Location, Uploaded
from log_rollup_plugin.s3.checksums import ChecksumSupport, content_md5
from log_rollup_plugin.s3.connection import Body, Connection, ConnectionState, ProtocolError
from log_rollup_plugin.s3.connection_pool import ConnectionPool
from log_rollup_plugin.s3.connector import BucketEndpoint, ClientCertificate, Connector, TlsSettings
from log_rollup_plugin.s3.error_mapping import from_network, translated
from log_rollup_plugin.s3.object_requests import CopyRequest, GetRequest, ObjectRequest, PutRequest
from log_rollup_plugin.s3.signing import Signer

# As S3's access logs show it.
USER_AGENT = "log-rollup"
STALL_CHECK_SECONDS = 1.0
_TAGGING = "x-amz-tagging"
_CONNECTION_ERRORS = (OSError, ProtocolError, ChangedBufferError)
# After these, a request is not sent again over another connection.
_NEVER_RESENT = (TimeoutError, ChangedBufferError)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How connections are made, and what all requests carry.

    :param verify: whether, or against which CA file or directory, certificates are checked, as botocore has it
    :param ca: the CA file or directory that results from ``verify``
    :param connect_timeout: for connecting, and again for the TLS handshake
    :param response_timeout: the longest time without a byte while an object is read
    :param headers: sent with every request, such as ``x-amz-request-payer``
    :param write_headers: sent with uploads and copies in addition
    :param client: certificate that is shown to origins
    :param proxy_tls: TLS to proxies with https URLs; None for the same as to origins
    :param checksums: which checksum headers the server accepts; set to False when it refuses one
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


class TransferSide:
    """Where the requests of one Airflow connection go, and how they are signed and sent.

    :param endpoints: by bucket
    :param credentials: botocore's, which may renew themselves
    :param relocate: finds the endpoint of a bucket whose requests are redirected, as boto3 does
    """

    def __init__(
        self,
        endpoints: Mapping[str, BucketEndpoint],
        credentials: Credentials,
        settings: TransferSettings,
        relocate: Callable[[str], BucketEndpoint] | None = None,
    ) -> None:
        self.endpoints = dict(endpoints)
        self.relocate = relocate
        self.signer = Signer(credentials)
        self.headers = (("user-agent", USER_AGENT), *settings.headers.items())
        self.write_headers = (*self.headers, *settings.write_headers.items())
        self.checksums = settings.checksums
        self.response_seconds = settings.response_timeout.total_seconds()
        self.connector = Connector(
            endpoints.values(),
            settings.connect_timeout,
            TlsSettings(bool(settings.verify), settings.ca, settings.client),
            settings.proxy_tls,
        )


class SocketTransfer:
    """Implements :class:`include.log_rollup.storage.protocol.Transfer` on non-blocking sockets and poll().

    Requests wait in one queue and get connections in order. All bodies move on the thread that calls
    :meth:`wait`; only connections are made on other threads.

    :param target: has parts and records
    :param connections: the most that may be open at any time, to all hosts together
    :param source: has the raw objects; None if the target has them
    """

    def __init__(self, target: TransferSide, connections: int, source: TransferSide | None = None) -> None:
        self.connections = connections
        self._target = target
        self._source = source or target
        self._response_seconds = target.response_seconds
        connectors = {
            endpoint.conn_id: side.connector
            for side in (self._source, target)
            for endpoint in side.endpoints.values()
        }
        self._pool = ConnectionPool(
            lambda endpoint: connectors[endpoint.conn_id].connect(endpoint), connections
        )
        self._waiting: deque[ObjectRequest] = deque()
        # By the connection that carries it, or will when it is made.
        self._active: dict[Connection, ObjectRequest] = {}
        self._ended: list[tuple[ObjectRequest, object]] = []
        self._next_stall_check = 0.0

    # -- operations ------------------------------------------------------------------------------------

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> ObjectRequest:
        """Fetch a whole object, with If-Match if an ETag is given, and with the CRC that S3 keeps of it."""
        side = self._side(source)
        headers = [*side.headers]
        if side.checksums.on_read:
            headers.append(("x-amz-checksum-mode", "ENABLED"))
        if etag is not None:
            headers.append(("if-match", f'"{etag}"'))
        endpoint = side.endpoints[source.bucket]
        request = GetRequest(endpoint, source, headers, done, self._cancel, side.checksums, buffer=into)
        return self._submit(request, etag)

    def get_range(
        self,
        source: Location,
        etag: str,
        first: int,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> ObjectRequest:
        """Fetch a range of an object, with If-Match. S3 states no CRC of a range.

        The status is not compared, because some servers answer 200 instead of 206. If one ignores the range, the
        size shows it; if it sends another range, Content-Range does.
        """
        side = self._side(source)
        headers = [
            *side.headers,
            ("if-match", f'"{etag}"'),
            ("range", f"bytes={first}-{first + len(into) - 1}"),
        ]
        request = GetRequest(
            side.endpoints[source.bucket], source, headers, done, self._cancel, side.checksums,
            buffer=into, first=first,
        )  # fmt: skip
        return self._submit(request, etag)

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> ObjectRequest:
        """Write an object in one request; S3 refuses a body whose CRC differs.

        The CRC of each piece is computed just before the piece is sent. If the CRC of the whole body is not
        ``crc64nvme``, the last piece is not sent and the connection is closed, so that S3 stores nothing.

        The CRC is sent as a header: with a trailing checksum, some S3-compatible servers store "aws-chunked" as
        the content encoding. A server that refuses the header gets the MD5 instead.
        """
        side = self._side(target)
        fields = [
            ("content-length", str(len(body))),
            ("content-type", "application/octet-stream"),
            *headers.items(),
            *side.write_headers,
            *_checksum_headers(side, body, crc64nvme),
        ]
        request = PutRequest(
            side.endpoints[target.bucket], target, fields, done, self._cancel, side.checksums,
            body=Body(body, crc64nvme),
        )  # fmt: skip
        return self._submit(request, *headers.values())

    def put_range(
        self,
        target: Location,
        upload_id: str,
        number: int,
        body: memoryview,
        crc64nvme: int,
        done: Callable[[Uploaded | Exception], None],
    ) -> ObjectRequest:
        """Write one part of a multipart upload (UploadPart), with its CRC as in :meth:`put`."""
        side = self._side(target)
        fields = [
            ("content-length", str(len(body))),
            *side.write_headers,
            *_checksum_headers(side, body, crc64nvme),
        ]
        request = PutRequest(
            side.endpoints[target.bucket], target, fields, done, self._cancel, side.checksums,
            body=Body(body, crc64nvme), query=_part_query(upload_id, number),
        )  # fmt: skip
        return self._submit(request)

    def copy(
        self,
        source: Location,
        etag: str,
        target: Location,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> ObjectRequest:
        """Let S3 copy an object of at most 5 GiB, if the source still has this ETag (CopyObject)."""
        side = self._side(target)
        fields = self._copy_headers(source, etag, side)
        fields.extend(headers.items())
        if _TAGGING in headers:
            # Without this, the copy gets the tags of the source, and those of the header are ignored.
            fields.append(("x-amz-tagging-directive", "REPLACE"))
        if side.checksums.on_copy:
            fields.append(("x-amz-checksum-algorithm", "CRC64NVME"))
        request = CopyRequest(
            side.endpoints[target.bucket], target, fields, done, self._cancel, side.checksums, source=source
        )
        return self._submit(request, etag, *headers.values())

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
    ) -> ObjectRequest:
        """Let S3 copy the bytes ``first`` to ``last`` into one part of a multipart upload (UploadPartCopy)."""
        side = self._side(target)
        fields = self._copy_headers(source, etag, side)
        fields.append(("x-amz-copy-source-range", f"bytes={first}-{last}"))
        request = CopyRequest(
            side.endpoints[target.bucket], target, fields, done, self._cancel, side.checksums,
            source=source, query=_part_query(upload_id, number),
        )  # fmt: skip
        return self._submit(request, etag)

    def _side(self, location: Location) -> TransferSide:
        return self._source if location.is_raw else self._target

    def _copy_headers(self, source: Location, etag: str, side: TransferSide) -> list[tuple[str, str]]:
        if self._side(source) is not side:
            raise AssertionError(f"{source}: S3 copies nothing between two connections")
        return [
            ("content-length", "0"),
            ("x-amz-copy-source", f"{source.bucket}/{quote(source.key, safe='/~')}"),
            ("x-amz-copy-source-if-match", f'"{etag}"'),
            *side.write_headers,
        ]

    # -- waiting ---------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Move bodies until a request has ended, :meth:`wake` was called, or the time is over."""
        until = time.monotonic() + seconds
        # A cancelled request leaves its place free until now: its caller may be about to cancel the others too.
        self._assign()
        while True:
            left = 0.0 if self._ended else max(0.0, until - time.monotonic())
            for connection, events in self._pool.poll(left):
                self._advance(connection, events)
            for connection, error in self._pool.connected():
                self._on_connected(connection, error)
            now = time.monotonic()
            if now >= self._next_stall_check:
                self._next_stall_check = now + STALL_CHECK_SECONDS
                self._fail_stalled(now)
            woken = self._pool.take_wake()
            if self._report() or woken or now >= until:
                return

    def wake(self) -> None:
        """Make :meth:`wait` return, from another thread."""
        self._pool.wake()

    def close(self) -> None:
        """Close every connection, also those that are being made."""
        for side in (self._source, self._target):
            side.connector.close()
        self._pool.close()

    def _report(self) -> bool:
        """Call the callbacks of requests that have ended; returns whether there were any."""
        ended, self._ended = self._ended, []
        for request, result in ended:
            request.done(result)
        return bool(ended)

    def _fail_stalled(self, now: float) -> None:
        """Fail GETs that have stalled. S3 may take long to answer a PUT or a copy: the packer limits those."""
        for connection, request in tuple(self._active.items()):
            is_open = connection.state is not ConnectionState.CONNECTING
            stalled = is_open and now - connection.last_activity > self._response_seconds
            if stalled and isinstance(request, GetRequest):
                self._fail(connection, TimeoutError(f"no byte arrived for {self._response_seconds:g} s"))

    # -- one request -----------------------------------------------------------------------------------

    def _submit(self, request: ObjectRequest, *values: str | None) -> ObjectRequest:
        """Queue a request.

        :param values: of its headers, from outside. A line break in one would add headers to the request.
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
            connection = self._pool.acquire(self._waiting[0].endpoint)
            if connection is None:
                return
            request = self._waiting.popleft()
            request.connection = connection
            self._active[connection] = request
            if connection.state is ConnectionState.IDLE:
                self._start(connection, request)

    def _on_connected(self, connection: Connection, error: Exception | None) -> None:
        request = self._active.get(connection)
        if request is not None:
            if error is None:
                self._start(connection, request)
            else:
                self._fail(connection, error)
            return
        # Its request was cancelled meanwhile; another one can use the connection.
        if error is None:
            self._pool.release(connection)
        else:
            self._pool.discard(connection)
        self._assign()

    def _start(self, connection: Connection, request: ObjectRequest) -> None:
        """Sign a request and begin to send it."""
        endpoint = request.endpoint
        try:
            with translated("credentials for", request.named):
                headers = self._side(request.location).signer.sign(
                    endpoint.region, endpoint.host, request.method, request.target, request.headers,
                    request.body is not None,
                )  # fmt: skip
        except RollupError as error:
            self._ended.append((request, error))
            self._release(connection)
            return
        try:
            connection.send_request(request, request.encode_head(headers), request.body)
        except _CONNECTION_ERRORS as error:
            self._fail(connection, error)
        else:
            self._pool.watch(connection)

    def _advance(self, connection: Connection, events: int) -> None:
        """Handle events of a connection that carries a request."""
        try:
            complete = connection.handle_events(events)
        except _CONNECTION_ERRORS as error:
            self._fail(connection, error)
            return
        if not complete:
            self._pool.watch(connection)
            return
        request = self._active[connection]
        if request.drop_refused_checksums() or self._follow_redirect(request):
            self._waiting.appendleft(request)
        else:
            self._ended.append((request, request.result()))
        self._release(connection)

    def _follow_redirect(self, request: ObjectRequest) -> bool:
        """Direct a request to its bucket's region, once, if the server says that the bucket is elsewhere."""
        side = self._side(request.location)
        if side.relocate is None or not request.is_redirected():
            return False
        bucket = request.location.bucket
        if side.endpoints[bucket] == request.endpoint:
            # The first of the redirected requests finds the new endpoint for all.
            with suppress(RollupError):
                side.endpoints[bucket] = side.relocate(bucket)
        if side.endpoints[bucket] == request.endpoint:
            return False
        request.direct_to(side.endpoints[bucket])
        return True

    def _release(self, connection: Connection) -> None:
        """Let the next request use a connection, before the result of the last one is reported."""
        self._detach(connection)
        self._pool.release(connection)
        self._assign()

    def _fail(self, connection: Connection, error: Exception) -> None:
        """Handle a broken connection. S3 may close an idle one just as it is used again: then send again, once."""
        request = self._detach(connection)
        closed_while_idle = connection.reused and not connection.response_started
        self._pool.discard(connection)
        if closed_while_idle and not isinstance(error, _NEVER_RESENT) and not request.was_resent:
            request.was_resent = True
            self._waiting.appendleft(request)
        else:
            self._ended.append((request, from_network(request.operation, request.named, error)))
        self._assign()

    def _cancel(self, request: ObjectRequest) -> None:
        """Cancel a request; nothing happens to one that has ended."""
        connection = request.connection
        if connection is not None:
            self._detach(connection)
            # A connection that is still being made has sent nothing of the request: it is kept.
            if connection.state is not ConnectionState.CONNECTING:
                self._pool.discard(connection)
        elif request in self._waiting:
            self._waiting.remove(request)
        else:
            return
        request.done(TransientError(f"{request}: cancelled"))

    def _detach(self, connection: Connection) -> ObjectRequest:
        """Separate a connection from the request that it carries."""
        request = self._active.pop(connection)
        request.connection = None
        return request


def _checksum_headers(side: TransferSide, body: memoryview, crc64nvme: int) -> list[tuple[str, str]]:
    if side.checksums.on_write:
        return [
            ("x-amz-sdk-checksum-algorithm", "CRC64NVME"),
            ("x-amz-checksum-crc64nvme", crc.to_header(crc64nvme)),
        ]
    return [("content-md5", content_md5(body))]


def _part_query(upload_id: str, number: int) -> str:
    return f"?partNumber={number}&uploadId={quote(upload_id, safe='')}"
