"""The data plane: bodies between S3 and memory through libcurl, over a hard-capped set of connections."""

import math
import os
import re
import select
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pycurl
from awscrt import auth, http
from botocore.credentials import Credentials, ReadOnlyCredentials

from include.log_rollup import crc
from include.log_rollup.errors import TransientError
from include.log_rollup.store import Checksum, Downloaded, Location, Uploaded
from include.log_rollup.units import KIB
from log_rollup_plugin.faults import from_curl, from_response, translated

# The story's idle time-out and keep-alive, in seconds.
IDLE_SECONDS = 90
KEEP_ALIVE_SECONDS = 30
RECEIVE_BUFFER = 256 * KIB
SEND_BUFFER = 64 * KIB
# Of an answer that is no object, so much is kept: S3's errors are a few hundred bytes of XML.
ERROR_BYTES = 64 * KIB
_MD5_LENGTH = 32
_ERROR_CODE = re.compile(r"<Code>(.*?)</Code>", re.DOTALL)
_ERROR_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)


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

    def target(self, key: str) -> str:
        """The path of an object, percent-encoded as S3 signs it."""
        return self.path + quote(key, safe="/~")


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


class CurlTransfer:
    """Implements :class:`include.log_rollup.store.Transfer` on libcurl's multi interface.

    The cap is kept twice: there are as many handles as connections, a request that finds none waits for one,
    and libcurl itself holds connections of all hosts together to that number, those on their way out too
    (CURLMOPT_MAX_TOTAL_CONNECTIONS). Everything happens on the thread that calls :meth:`wait`.

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
        self._signer = _Signer(credentials)
        self._headers = tuple(settings.headers.items())
        self._response_seconds = math.ceil(settings.response_timeout.total_seconds())
        # Not epoll: what a socket waits for changes with every request, and here that is no system call.
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poll.register(self._wake_read, select.POLLIN)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, connections)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._due: float | None = None
        self._waiting: deque[_Request] = deque()
        self._handles = [_handle(settings) for _ in range(connections)]
        # The first request goes ahead: those after it find the host's name looked up, instead of looking it up
        # with a thread and a file each.
        self._free, self._later = self._handles[:1], self._handles[1:]

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> "_Request":
        """Fetch a whole object, with If-Match where there is an ETag, asking for the CRC that S3 keeps of it.

        :raises nothing: failures come through ``done``
        """
        headers = [("x-amz-checksum-mode", "ENABLED"), *self._headers]
        if etag is not None:
            headers.append(("if-match", f'"{etag}"'))
        endpoint = self._endpoints[source.bucket]
        return self._submit(_Get(self, endpoint, source, headers, into, done, self._response_seconds))

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> "_Request":
        """Write an object in one request; S3 refuses a body whose CRC differs.

        The CRC goes as a header, computed beforehand: a trailing checksum makes some S3-compatible servers
        store "aws-chunked" as the content encoding.

        :raises nothing: failures come through ``done``
        """
        fields = [
            ("content-type", "application/octet-stream"),
            ("x-amz-sdk-checksum-algorithm", "CRC64NVME"),
            ("x-amz-checksum-crc64nvme", crc.to_header(crc64nvme)),
            *headers.items(),
            *self._headers,
        ]
        return self._submit(_Put(self, self._endpoints[target.bucket], target, fields, body, done))

    def wait(self, seconds: float) -> None:
        """Move bodies until a request has ended, :meth:`wake` is called, or the time is over."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            due = until if self._due is None else min(self._due, until)
            # Rounded up: a time that is not over yet would be asked for again and again.
            ready = self._poll.poll(max(0, math.ceil((due - now) * 1000)))
            woken = False
            for fd, events in ready:
                if fd == self._wake_read:
                    woken = bool(os.read(self._wake_read, 4096))
                else:
                    self._multi.socket_action(fd, _curl_events(events))
            now = time.monotonic()
            if self._due is not None and self._due <= now:
                self._due = None
                self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            if self._collect() or woken or now >= until:
                return

    def wake(self) -> None:
        """Have :meth:`wait` return, from another thread."""
        # If the pipe is full, it is of wakes that were not seen yet.
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Close every connection."""
        for handle in self._handles:
            handle.close()
        self._multi.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # -- requests --------------------------------------------------------------------------------------

    def _submit(self, request: "_Request") -> "_Request":
        if self._free:
            self._start(request, self._free.pop())
        else:
            self._waiting.append(request)
        return request

    def _start(self, request: "_Request", handle: Any) -> None:
        endpoint, target = request.endpoint, request.endpoint.target(request.location.key)
        with translated("credentials for", request.location):
            signed = self._signer.sign(request.method, endpoint, target, request.headers)
        handle.setopt(pycurl.URL, endpoint.origin + target)
        handle.setopt(pycurl.PROXY, endpoint.proxy)
        handle.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in signed])
        request.begin(handle)
        self._multi.add_handle(handle)

    def _collect(self) -> bool:
        """Tell of the requests that have ended, after their connections have something else to do."""
        ended: list[tuple[_Request, int, str]] = []
        while True:
            more, succeeded, failed = self._multi.info_read()
            ended += [(handle.request, 0, "") for handle in succeeded]
            ended += [(handle.request, code, message) for handle, code, message in failed]
            if not more:
                break
        results = [(request, request.result(code, message)) for request, code, message in ended]
        for request, _ in results:
            self._release(request)
        for request, result in results:
            request.done(result)
        return bool(results)

    def cancel(self, request: "_Request") -> None:
        """Give a request up; not for one that has ended."""
        if request.handle is None:
            if request not in self._waiting:
                return
            self._waiting.remove(request)
        else:
            self._release(request)
        request.done(TransientError(f"{request}: cancelled"))

    def _release(self, request: "_Request") -> None:
        handle = request.handle
        self._multi.remove_handle(handle)
        request.handle = handle.request = None
        self._free += [*self._later, handle]
        self._later.clear()
        while self._waiting and self._free:
            self._start(self._waiting.popleft(), self._free.pop())

    # -- libcurl's callbacks ---------------------------------------------------------------------------

    def _on_socket(self, what: int, fd: int, *_: Any) -> None:
        if what == pycurl.POLL_REMOVE:
            # Of a socket that never waited for anything there is nothing to forget.
            with suppress(KeyError):
                self._poll.unregister(fd)
        else:
            self._poll.register(fd, _POLL_EVENTS[what])

    def _on_timer(self, milliseconds: int) -> None:
        self._due = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000


_POLL_EVENTS = {
    pycurl.POLL_NONE: 0,
    pycurl.POLL_IN: select.POLLIN,
    pycurl.POLL_OUT: select.POLLOUT,
    pycurl.POLL_INOUT: select.POLLIN | select.POLLOUT,
}


def _curl_events(events: int) -> int:
    """What poll told of a socket, as libcurl wants to be told."""
    ready = pycurl.CSELECT_IN if events & (select.POLLIN | select.POLLHUP) else 0
    if events & select.POLLOUT:
        ready |= pycurl.CSELECT_OUT
    if events & (select.POLLERR | select.POLLNVAL):
        ready |= pycurl.CSELECT_ERR
    return ready


class _Signer:
    """Signature Version 4 of requests whose bodies are not signed, because a CRC of theirs is.

    It is the CRT's: libcurl's own can't be had together with keys that have steps such as "..".

    :param credentials: botocore's, which renew themselves when they are about to expire
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._frozen: ReadOnlyCredentials | None = None
        self._configs: dict[str, auth.AwsSigningConfig] = {}

    def sign(
        self, method: str, endpoint: BucketEndpoint, target: str, headers: list[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """All headers of a request, its signature among them."""
        frozen = self._credentials.get_frozen_credentials()
        if frozen != self._frozen:
            self._frozen = frozen
            self._configs.clear()
        config = self._configs.get(endpoint.region)
        if config is None:
            config = self._configs[endpoint.region] = _signing_config(endpoint.region, frozen)
        fields = http.HttpHeaders([("host", endpoint.host), *headers])
        request = http.HttpRequest(method, target, fields)
        auth.aws_sign_request(request, config).result()
        return list(request.headers)


def _signing_config(region: str, credentials: ReadOnlyCredentials) -> auth.AwsSigningConfig:
    return auth.AwsSigningConfig(
        credentials_provider=auth.AwsCredentialsProvider.new_static(
            credentials.access_key, credentials.secret_key, credentials.token
        ),
        region=region,
        service="s3",
        use_double_uri_encode=False,
        should_normalize_uri_path=False,
        signed_body_value=auth.AwsSignedBodyValue.UNSIGNED_PAYLOAD,
        signed_body_header_type=auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
    )


class _Request(ABC):
    """A request from its submission to its result."""

    method: str

    def __init__(
        self,
        transfer: CurlTransfer,
        endpoint: BucketEndpoint,
        location: Location,
        headers: list[tuple[str, str]],
        body: memoryview,
        done: Callable[[Any], None],
    ) -> None:
        self.endpoint = endpoint
        self.location = location
        self.headers = headers
        self.done = done
        self.handle: Any = None
        self.too_long = False
        self._transfer = transfer
        self._body = body
        self._position = 0
        self._error = bytearray()
        self._lines: list[bytes] = []

    def cancel(self) -> None:
        """See :class:`include.log_rollup.store.Cancellable`."""
        self._transfer.cancel(self)

    def begin(self, handle: Any) -> None:
        """Take a handle."""
        self.handle = handle
        handle.request = self
        handle.setopt(pycurl.HEADERFUNCTION, self._lines.append)

    def result(self, code: int, message: str) -> object:
        """What came of it: an error of libcurl, of S3, or the result.

        :param code: of libcurl's, 0 for none
        """
        if code and not self.too_long:
            return from_curl(self.method, self.location, code, message)
        status, headers = self._answer
        if status < 300:
            return self.success(headers)
        text = self._error.decode(errors="replace")
        found, told = _ERROR_CODE.search(text), _ERROR_MESSAGE.search(text)
        return from_response(
            self.method, self.location, status, found[1] if found else str(status), told[1] if told else "",
            headers,
        )  # fmt: skip

    @abstractmethod
    def success(self, headers: Mapping[str, str]) -> object:
        """The result of a request that S3 has answered well."""

    @cached_property
    def _answer(self) -> tuple[int, Mapping[str, str]]:
        """Status and headers, once all are there; handles can't be asked from within a callback."""
        return _parsed(self._lines)

    def _on_error(self, chunk: bytes) -> None:
        if len(self._error) < ERROR_BYTES:
            self._error += chunk

    def __str__(self) -> str:
        return f"{self.method} {self.location}"


class _Get(_Request):
    method = "GET"

    def __init__(self, *arguments: Any) -> None:
        *others, self._response_seconds = arguments
        super().__init__(*others)

    def begin(self, handle: Any) -> None:
        super().begin(handle)
        handle.setopt(pycurl.HTTPGET, 1)
        handle.setopt(pycurl.LOW_SPEED_TIME, self._response_seconds)
        handle.setopt(pycurl.WRITEFUNCTION, self._on_body, use_memoryview=True)

    def success(self, headers: Mapping[str, str]) -> Downloaded:
        etag = headers.get("etag", "").strip('"')
        return Downloaded(self._position, etag, _checksum(headers), _etag_is_md5(etag, headers))

    def _on_body(self, chunk: bytes) -> int | None:
        start = self._position
        if start == 0 and self._answer[0] >= 300:
            self._on_error(chunk)
            return None
        end = start + len(chunk)
        self._position = end
        if end > len(self._body):
            # More than was planned: libcurl gives the request up, and the packer sees the length and the ETag.
            self.too_long = True
            return -1
        self._body[start:end] = chunk
        return None


class _Put(_Request):
    method = "PUT"

    def begin(self, handle: Any) -> None:
        super().begin(handle)
        handle.setopt(pycurl.UPLOAD, 1)
        handle.setopt(pycurl.INFILESIZE_LARGE, len(self._body))
        # How long S3 thinks about a part depends on its size: the packer's deadline sees to that.
        handle.setopt(pycurl.LOW_SPEED_TIME, 0)
        handle.setopt(pycurl.READFUNCTION, self._read)
        handle.setopt(pycurl.SEEKFUNCTION, self._seek)
        handle.setopt(pycurl.WRITEFUNCTION, self._on_error)

    def success(self, headers: Mapping[str, str]) -> Uploaded:
        stored = crc.from_header(headers.get("x-amz-checksum-crc64nvme"))
        return Uploaded(headers.get("etag", "").strip('"'), stored)

    def _read(self, size: int) -> memoryview:
        chunk = self._body[self._position : self._position + size]
        self._position += len(chunk)
        return chunk

    def _seek(self, offset: int, _origin: int) -> None:
        """Begin anew: libcurl does so where a connection that was kept turns out to be closed."""
        self._position = offset


def _handle(settings: TransferSettings) -> Any:
    """A handle with all that is the same for every request."""
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    # A key may have steps such as "..": they are names here, not ways.
    handle.setopt(pycurl.PATH_AS_IS, 1)
    handle.setopt(pycurl.NOPROXY, "")
    handle.setopt(pycurl.BUFFERSIZE, RECEIVE_BUFFER)
    handle.setopt(pycurl.UPLOAD_BUFFERSIZE, SEND_BUFFER)
    # libcurl counts the TLS handshake with the connecting.
    handle.setopt(pycurl.CONNECTTIMEOUT_MS, round(2000 * settings.connect_timeout.total_seconds()))
    handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
    handle.setopt(pycurl.MAXAGE_CONN, IDLE_SECONDS)
    handle.setopt(pycurl.TCP_KEEPALIVE, 1)
    handle.setopt(pycurl.TCP_KEEPIDLE, KEEP_ALIVE_SECONDS)
    handle.setopt(pycurl.TCP_KEEPINTVL, KEEP_ALIVE_SECONDS)
    if settings.verify is False:
        handle.setopt(pycurl.SSL_VERIFYPEER, 0)
        handle.setopt(pycurl.SSL_VERIFYHOST, 0)
    else:
        handle.setopt(pycurl.CAPATH if Path(settings.ca).is_dir() else pycurl.CAINFO, settings.ca)
    return handle


def _parsed(lines: list[bytes]) -> tuple[int, Mapping[str, str]]:
    """Status and headers of the last answer, names in lower case: interim ones (100 Continue) come before it."""
    first = max(number for number, line in enumerate(lines) if line.startswith(b"HTTP/"))
    status, *fields = (line.decode("latin-1") for line in lines[first:])
    parts = (field.partition(":") for field in fields)
    return int(status.split(None, 2)[1]), {name.lower(): value.strip() for name, _, value in parts}


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
    return len(etag) == _MD5_LENGTH and all(digit in "0123456789abcdef" for digit in etag)
