"""The data plane: bodies between S3 and memory through the AWS CRT, over a hard-capped set of connections."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from io import RawIOBase
from typing import Any
from urllib.parse import quote

from awscrt import auth, http, io, s3
from botocore.credentials import Credentials, ReadOnlyCredentials

from include.log_rollup import crc
from include.log_rollup.store import Checksum, Downloaded, Location, Uploaded
from log_rollup_plugin.faults import from_crt, from_response

# The CRT opens about 2.5 connections for each Gbit/s of its target, whatever the cap.
CONNECTIONS_PER_GBPS = 2.5
# A single PUT may have 5 GiB; a part is far below that, and must never become a multipart upload.
MULTIPART_THRESHOLD = 5 * 1024**3
# Our own retries are the real ones: they slow the whole shard down. These bridge a dropped connection.
CRT_RETRIES = 1
CLOSE_SECONDS = 10.0
_MD5_LENGTH = 32


@dataclass(frozen=True, slots=True)
class BucketEndpoint:
    """Where a bucket answers, and how requests to it are signed."""

    tls: bool
    host: str
    path: str
    region: str

    @property
    def port(self) -> int:
        """The TCP port of the endpoint."""
        _, colon, port = self.host.rpartition(":")
        return int(port) if colon and port.isdigit() else (443 if self.tls else 80)

    def target(self, key: str) -> str:
        """The path of an object, percent-encoded as S3 signs it."""
        return self.path + quote(key, safe="/~")


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server's certificate is checked: ``verify`` is botocore's: a CA file or directory, or False."""

    verify: str | bool
    ca_file: str


class CrtTransfer:
    """Implements :class:`include.log_rollup.store.Transfer` on one CRT client, or two for two hosts.

    The cap is the CRT's ``max_active_connections_override``, which holds for all requests of a client
    together. Idle connections to one host are not given up for another, so where raw and aggregated lie on
    two hosts, each has a client and a share of the cap of its own.

    :param read_from: endpoint of the raw bucket
    :param write_to: endpoint of the aggregated bucket
    :param connections: the most that may be open at any time, two at least where there are two hosts
    :param credentials: botocore's, which may renew themselves
    :param headers: sent with every request, such as ``x-amz-request-payer``
    """

    def __init__(
        self,
        read_from: BucketEndpoint,
        write_to: BucketEndpoint,
        connections: int,
        credentials: Credentials,
        tls: Tls,
        connect_timeout: timedelta,
        headers: Mapping[str, str],
    ) -> None:
        self.connections = connections
        self._read_from = read_from
        self._write_to = write_to
        self._credentials = credentials
        self._headers = tuple(headers.items())
        self._current = _frozen(credentials)
        loops = io.EventLoopGroup(1)
        bootstrap = io.ClientBootstrap(loops, io.DefaultHostResolver(loops))
        make = partial(self._client, bootstrap, tls, connect_timeout)
        if read_from.host == write_to.host and read_from.region == write_to.region:
            self._reader = self._writer = make(read_from, connections)
        else:
            writers = max(1, min(4, connections // 4))
            self.connections = connections - writers
            self._reader = make(read_from, connections - writers)
            self._writer = make(write_to, writers)

    def _client(
        self,
        bootstrap: io.ClientBootstrap,
        tls: Tls,
        connect_timeout: timedelta,
        endpoint: BucketEndpoint,
        connections: int,
    ) -> s3.S3Client:
        provider = auth.AwsCredentialsProvider.new_delegate(lambda: self._current)
        return s3.S3Client(
            bootstrap=bootstrap,
            region=endpoint.region,
            tls_mode=s3.S3RequestTlsMode.ENABLED if endpoint.tls else s3.S3RequestTlsMode.DISABLED,
            tls_connection_options=_tls_options(tls) if endpoint.tls else None,
            signing_config=s3.create_default_s3_signing_config(
                region=endpoint.region, credential_provider=provider
            ),
            part_size=8 * 1024**2,
            multipart_upload_threshold=MULTIPART_THRESHOLD,
            throughput_target_gbps=float(math.ceil(connections / CONNECTIONS_PER_GBPS)),
            max_active_connections_override=connections,
            retry_config=s3.S3RetryConfig(max_retries=CRT_RETRIES),
            connect_timeout_ms=int(connect_timeout.total_seconds() * 1000),
        )

    def tick(self) -> None:
        """Renew credentials that are about to expire, on the caller's thread and not the event loop's."""
        self._current = _frozen(self._credentials)

    def get(
        self, source: Location, etag: str, into: memoryview, done: Callable[[Downloaded | Exception], None]
    ) -> s3.S3Request:
        """Fetch a whole object with If-Match, asking for the CRC that S3 keeps of it.

        :raises nothing: failures come through ``done``
        """
        answer = _Answer()

        # The buffer's slice refuses a body that is longer than planned; the CRT reports that as the failure.
        def on_body(chunk: bytes, offset: int, **_: Any) -> None:
            end = offset + len(chunk)
            into[offset:end] = chunk
            answer.received = max(answer.received, end)

        def on_done(error: Exception | None = None, status_code: int | None = None, **_: Any) -> None:
            done(_downloaded(source, answer, error, status_code))

        request = self._request(
            self._read_from,
            "GET",
            source.key,
            [("if-match", f'"{etag}"'), ("x-amz-checksum-mode", "ENABLED")],
        )
        return self._reader.make_request(
            type=s3.S3RequestType.DEFAULT,
            operation_name="GetObject",
            request=request,
            on_headers=answer.on_headers,
            on_body=on_body,
            on_done=on_done,
        )

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> s3.S3Request:
        """Write an object in one request; S3 refuses a body whose CRC differs.

        The CRC goes as a header, computed beforehand: a trailing checksum makes some S3-compatible servers
        store "aws-chunked" as the content encoding.

        :raises nothing: failures come through ``done``
        """
        answer = _Answer()

        def on_done(error: Exception | None = None, **_: Any) -> None:
            if error is not None:
                done(from_crt("PUT", target, error))
            else:
                stored = crc.from_header(answer.headers.get("x-amz-checksum-crc64nvme"))
                done(Uploaded(answer.headers.get("etag", "").strip('"'), stored))

        request = self._request(
            self._write_to,
            "PUT",
            target.key,
            [
                ("content-length", str(len(body))),
                ("content-type", "application/octet-stream"),
                ("x-amz-sdk-checksum-algorithm", "CRC64NVME"),
                ("x-amz-checksum-crc64nvme", crc.to_header(crc64nvme)),
                *headers.items(),
            ],
            _Body(body),
        )
        return self._writer.make_request(
            type=s3.S3RequestType.DEFAULT,
            operation_name="PutObject",
            request=request,
            on_headers=answer.on_headers,
            on_done=on_done,
        )

    def close(self) -> None:
        """Close every connection, and wait for that for a while."""
        events = {self._reader.shutdown_event, self._writer.shutdown_event}
        del self._reader, self._writer
        for event in events:
            event.wait(CLOSE_SECONDS)

    def _request(
        self,
        endpoint: BucketEndpoint,
        method: str,
        key: str,
        headers: list[tuple[str, str]],
        body: "_Body | None" = None,
    ) -> http.HttpRequest:
        fields = [("host", endpoint.host), *headers, *self._headers]
        return http.HttpRequest(method, endpoint.target(key), http.HttpHeaders(fields), body)


class _Answer:
    """What the event loop notes of an answer until it is done."""

    __slots__ = ("headers", "received")

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.received = 0

    def on_headers(self, headers: list[tuple[str, str]], **_: Any) -> None:
        self.headers = {name.lower(): value for name, value in headers}


class _Body(RawIOBase):
    """A stream over memory that is read without being copied first."""

    def __init__(self, body: memoryview) -> None:
        super().__init__()
        self._body = body
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        count = min(len(into), len(self._body) - self._position)
        into[:count] = self._body[self._position : self._position + count]
        self._position += count
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to another place: a retry begins anew."""
        self._position = (0, self._position, len(self._body))[whence] + offset
        return self._position


def _downloaded(
    source: Location, answer: _Answer, error: Exception | None, status: int | None
) -> Downloaded | Exception:
    if error is not None:
        return from_crt("GET", source, error)
    headers = answer.headers
    if status is not None and status >= 300:
        return from_response("GET", source, status, str(status), "", headers)
    etag = headers.get("etag", "").strip('"')
    return Downloaded(answer.received, etag, _checksum(headers), _etag_is_md5(etag, headers))


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


def _frozen(credentials: Credentials) -> auth.AwsCredentials:
    frozen: ReadOnlyCredentials = credentials.get_frozen_credentials()
    return auth.AwsCredentials(frozen.access_key, frozen.secret_key, frozen.token)


def _tls_options(tls: Tls) -> io.TlsConnectionOptions:
    options = io.TlsContextOptions()
    if tls.verify is False:
        options.verify_peer = False
    else:
        options.override_default_trust_store_from_path(ca_filepath=tls.ca_file)
    return io.ClientTlsContext(options).new_connection_options()
