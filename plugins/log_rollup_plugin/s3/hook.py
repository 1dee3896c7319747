"""S3 for the pipeline: the amazon provider's hook with a hard cap on the connections that it opens."""

import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from io import BytesIO
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from botocore import exceptions as boto
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.httpsession import get_cert_path
from urllib3 import HTTPResponse

from include.log_rollup import crc, limits
from include.log_rollup.errors import (
    ConfigurationError,
    CredentialsError,
    ListingError,
    MissingBucketError,
    NotFoundError,
    PermanentError,
    RollupError,
    TooLargeError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import READ_LIMIT_BYTES, ListPage, Location, ObjectHead, StoredObject
from include.log_rollup.streams import Stream
from include.log_rollup.units import MIB
from log_rollup_plugin.s3 import list_parser
from log_rollup_plugin.s3.checksums import (
    BAD_DIGEST,
    ChecksumSupport,
    content_md5,
    etag_may_be_md5,
    may_refuse_header,
)
from log_rollup_plugin.s3.connector import BucketEndpoint, ClientCertificate, TlsSettings
from log_rollup_plugin.s3.error_mapping import from_code, limit_redirects, translated
from log_rollup_plugin.s3.transfer import SocketTransfer, TransferSettings

log = logging.getLogger(__name__)

# S3 deletes at most this many objects in one request.
DELETE_BATCH = 1000
READ_PIECE_BYTES = MIB
_SCOPE_REGION = re.compile(r"Credential=[^/]+/\d{8}/([^/]+)/s3/")
_YES = frozenset({"true", "t", "yes", "y", "on", "1"})
_NO = frozenset({"false", "f", "no", "n", "off", "0", "none", ""})
# XML 1.0 cannot name these characters, and DeleteObjects is XML.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# What the data plane sends itself, or leaves out; other headers come from handlers of boto3's events.
_OWN_HEADERS = frozenset(
    {
        "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "content-length",
        "content-md5", "content-type", "expect", "host", "transfer-encoding", "user-agent",
        "x-amz-content-sha256", "x-amz-date", "x-amz-sdk-checksum-algorithm", "x-amz-security-token",
    }
)  # fmt: skip


class PooledS3Hook(S3Hook):
    """Implements :class:`include.log_rollup.storage.protocol.ObjectStore` within ``max_connections`` connections.

    botocore's ``max_pool_connections`` is no cap: it says how many idle connections are kept, and more are
    opened when more threads ask (botocore issues 619 and 766). Here the connection pools block instead, those
    of proxies too, so that ``control_connections`` bounds all boto3 calls made through this hook to one host,
    and a transfer gets what that leaves of ``max_connections``.

    A hook keeps the connection and the credentials that it was made with: make a new one after they changed.

    :param max_connections: the most connections to S3 that may be open at any time
    :param control_connections: how many of them boto3 may use for one host; the rest are the transfer's
    :param connect_timeout: for connecting, and as long again for the TLS handshake
    :param response_timeout: for the first byte of an object
    :param kwargs: of :class:`airflow.providers.amazon.aws.hooks.s3.S3Hook`
    """

    def __init__(
        self,
        *args: Any,
        max_connections: int = limits.DEFAULT_MAX_CONNECTIONS,
        control_connections: int = 1,
        connect_timeout: timedelta = limits.DEFAULT_CONNECT_TIMEOUT,
        response_timeout: timedelta = limits.DEFAULT_RESPONSE_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 1 <= control_connections <= max_connections:
            raise ConfigurationError(
                f"control_connections is {control_connections}; it has to be 1 to max_connections "
                f"({max_connections})"
            )
        self.max_connections = max_connections
        self.control_connections = control_connections
        self.requests: Counter[str] = Counter()
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._checksums = ChecksumSupport()
        self._checksum_setting: str | None = None
        self._deletes_batches = True
        self._deletes_conditionally = True
        self._asking = threading.Lock()
        self._sessions: dict[tuple[str | None, bool], Any] = {}

    @classmethod
    def for_stream(cls, stream: Stream, max_connections: int, control_connections: int) -> "PooledS3Hook":
        """The hook for a step of a stream.

        :param max_connections: of this step, as many as its task takes slots of the pool
        """
        hosts = 1 if stream.raw.bucket == stream.aggregated.bucket else 2
        return cls(
            aws_conn_id=stream.aws_conn_id,
            max_connections=max_connections,
            control_connections=max(1, control_connections // hosts),
            connect_timeout=stream.connect_timeout,
            response_timeout=stream.response_timeout,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close boto3's connections: Airflow gives a task's slots away as soon as the task has ended."""
        if "client" in self.__dict__:
            self.client.close()

    # -- the boto3 client ------------------------------------------------------------------------------

    def _get_config(self, config: Config | None = None) -> Config:
        base: Config = super()._get_config(config)
        retries = base.retries or {"mode": "standard", "max_attempts": limits.CONTROL_RETRIES}
        self._checksum_setting = base.request_checksum_calculation
        base = base.merge(Config(**_with_tuples(base)))
        return base.merge(
            Config(
                max_pool_connections=self.control_connections,
                connect_timeout=self._connect_timeout.total_seconds(),
                read_timeout=limits.CONTROL_READ_TIMEOUT_SECONDS,
                tcp_keepalive=True,
                retries=retries,
                # Objects are proven by CRCs of their whole, by the pipeline itself: botocore would hold the
                # CRC of a whole object against a range of it where a server sends that, and would upload in
                # chunks with a trailing CRC, which some servers refuse or store as they come.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
        )

    def get_session(self, region_name: str | None = None, deferrable: bool = False) -> Any:
        """The session of boto3 and the transfer: with one of its own, each would assume the role for itself."""
        wanted = region_name, deferrable
        if wanted not in self._sessions:
            self._sessions[wanted] = super().get_session(region_name, deferrable)
        return self._sessions[wanted]

    def get_client_type(self, *args: Any, **kwargs: Any) -> Any:
        """The boto3 client, whose connection pool waits instead of growing."""
        client = super().get_client_type(*args, **kwargs)
        if (self._checksum_setting or self._checksum_default()) == "when_required":
            self._checksums.on_write = self._checksums.on_copy = False
        # urllib3 has the option, botocore has no way to set it. It makes the managers of proxies when they are
        # first used, and two threads could make two of them.
        session = _http_session(client)
        for scheme in ("http", "https"):
            if proxy := session._proxy_config.proxy_url_for(f"{scheme}://s3"):
                session._get_proxy_manager(proxy)
        for manager in (session._manager, *session._proxy_managers.values()):
            manager.connection_pool_kw["block"] = True
        client.meta.events.register("before-send.s3", self._count)
        list_parser.read_rows_with(client)
        limit_redirects(client)
        client.meta.events.register("before-sign.s3", self._say_who_pays)
        return client

    def _checksum_default(self) -> str | None:
        """``request_checksum_calculation`` of the environment or of AWS's configuration file."""
        for session in self._sessions.values():
            # boto3 wraps botocore's session.
            core = getattr(session, "_session", session)
            return str(core.get_config_variable("request_checksum_calculation")).lower()
        return None

    def _say_who_pays(self, request: Any, **_: Any) -> None:
        for name, value in self._request_headers.items():
            request.headers[name] = value

    def _count(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1

    @cached_property
    def client(self) -> Any:
        """The client, made once.

        :raises ConfigurationError: if the connection cannot be used
        """
        with translated("connect to", Location("", self.aws_conn_id or "")):
            try:
                return self.get_conn()
            except ValueError as error:
                raise ConfigurationError(
                    f"the Airflow connection {self.aws_conn_id!r} cannot be used: {error}; fix it under "
                    f"Admin > Connections"
                ) from error

    # -- the control plane -----------------------------------------------------------------------------

    def list_page(
        self, prefix: Location, start_after: str = "", token: str | None = None, limit: int = 1000
    ) -> ListPage:
        """One page of the objects under a prefix, as the server answers (ListObjectsV2)."""
        asked: dict[str, Any] = {"Bucket": prefix.bucket, "Prefix": prefix.key, "MaxKeys": limit}
        if token is not None:
            asked["ContinuationToken"] = token
        elif start_after:
            asked["StartAfter"] = start_after
        with translated("LIST", prefix):
            answer = self.client.list_objects_v2(**asked)
        return list_parser.page_of(answer)

    def head(self, target: Location) -> ObjectHead | None:
        """Size, ETag and CRC of an object, None if there is none."""
        try:
            with translated("HEAD", target):
                answer = self._head(target)
                size = answer.get("ContentLength")
                if size is None:
                    size = self._size_by_get(target)
        except NotFoundError:
            return None
        etag = answer.get("ETag", "").strip('"')
        whole = answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        return ObjectHead(
            size=size,
            etag=etag,
            crc64nvme=crc.from_header(answer.get("ChecksumCRC64NVME")) if whole else None,
            etag_is_md5=etag_may_be_md5(
                etag, answer.get("ServerSideEncryption"), answer.get("SSECustomerAlgorithm")
            ),
        )

    def _head(self, target: Location) -> Mapping[str, Any]:
        asked = {"Bucket": target.bucket, "Key": target.key}
        answer: Mapping[str, Any]
        if not self._checksums.on_read:
            answer = self.client.head_object(**asked)
            return answer
        try:
            answer = self.client.head_object(**asked, ChecksumMode="ENABLED")
        except boto.ClientError as error:
            if not may_refuse_header(*_status_and_code(error)):
                raise
            answer = self.client.head_object(**asked)
            self._checksums.on_read = False
        return answer

    def _size_by_get(self, target: Location) -> int:
        """The size of an object whose HEAD states none: some servers leave it out for an empty object."""
        try:
            answer = self.client.get_object(Bucket=target.bucket, Key=target.key, Range="bytes=0-0")
        except boto.ClientError as error:
            status, code = _status_and_code(error)
            if status == 416 or code == "InvalidRange":
                return 0
            raise
        _end(answer["Body"])
        total = answer.get("ContentRange", "").rpartition("/")[2]
        size = int(total) if total.isdecimal() else answer.get("ContentLength")
        if size is None:
            raise TransientError(f"HEAD {target}: the store does not state the size of the object")
        return int(size)

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        """The whole of a small object with its ETag, None if there is none.

        :raises TooLargeError: if it has more than ``limit`` bytes
        """
        try:
            with translated("GET", source):
                answer = self.client.get_object(Bucket=source.bucket, Key=source.key)
                body = _read(answer, limit)
        except NotFoundError:
            return None
        if body is None:
            raise TooLargeError(f"GET {source}: it is larger than {limit} bytes, the most that is read of it")
        return StoredObject(body, answer.get("ETag", "").strip('"'))

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """A run of an object's bytes, if it still has this ETag.

        :raises TransientError: if the store sends more or less than was asked for
        """
        span = f"bytes={offset}-{offset + length - 1}"
        with translated("GET", source):
            answer = self.client.get_object(
                Bucket=source.bucket, Key=source.key, Range=span, IfMatch=_quoted(source, etag)
            )
            body = _read(answer, length)
        if body is None or len(body) != length:
            came = "more" if body is None else f"{len(body)}"
            raise TransientError(f"GET {source}: {came} of {length} bytes came for the range {span}")
        return body

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        """Write a small object; returns its ETag."""
        with translated("PUT", target):
            answer = self._put(target, body, ContentType=content_type)
        return str(answer.get("ETag", "")).strip('"')

    def _put(self, target: Location, body: bytes, **options: str) -> Mapping[str, Any]:
        """PUT with a checksum, which buckets with Object Lock insist on."""
        asked = {"Bucket": target.bucket, "Key": target.key, "Body": body, **options}
        answer: Mapping[str, Any]
        # Making the client reads what the connection says about checksums.
        client = self.client
        if self._checksums.on_write:
            stated = crc.to_header(crc.crc64(body))
            try:
                answer = client.put_object(**asked, ChecksumCRC64NVME=stated)
                return answer
            except boto.ClientError as error:
                if not may_refuse_header(*_status_and_code(error)):
                    raise
        answer = client.put_object(**asked, ContentMD5=content_md5(body))
        self._checksums.on_write = False
        return answer

    def publish(self, source: Location, target: Location) -> None:
        """Copy a small object within the bucket in one request (CopyObject).

        :raises NotFoundError: if the source is gone
        :raises UnsupportedOperationError: if the store knows no CopyObject
        """
        problem = f"COPY {source} to {target}: the store cannot copy objects"
        with translated("COPY", source):
            try:
                answer = self.client.copy_object(
                    CopySource={"Bucket": source.bucket, "Key": source.key},
                    Bucket=target.bucket, Key=target.key, MetadataDirective="COPY",
                )  # fmt: skip
            except boto.ClientError as error:
                status, code = _status_and_code(error)
                if status in (405, 501) or code in ("NotImplemented", "MethodNotAllowed"):
                    raise UnsupportedOperationError(f"{problem}; it answered {status} {code}") from error
                raise
        if not answer.get("CopyObjectResult", {}).get("ETag"):
            # It took the request for an upload of nothing.
            raise UnsupportedOperationError(f"{problem}; it answered without a result")

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """Whether the store checks the CRC64-NVME that comes with an object.

        It has to refuse a wrong one with the error code for that, and to take the right one.
        """
        body = b"\n"
        right = crc.crc64(body)
        refused = not self._takes_crc(scratch, body, right ^ 1) and self._takes_crc(scratch, body, right)
        self.delete(scratch.bucket, [scratch.key])
        return refused

    def _takes_crc(self, scratch: Location, body: bytes, stated: int) -> bool:
        """Whether the store takes an object with this CRC, as far as that tells whether it checks CRCs."""
        with translated("PUT", scratch):
            try:
                self.client.put_object(
                    Bucket=scratch.bucket, Key=scratch.key, Body=body,
                    ChecksumAlgorithm="CRC64NVME", ChecksumCRC64NVME=crc.to_header(stated),
                )  # fmt: skip
            except boto.ClientError as error:
                status, code = _status_and_code(error)
                if code in BAD_DIGEST:
                    return False
                # A store that does not know the header does not check it.
                if not may_refuse_header(status, code):
                    raise
        return True

    # -- deletes ---------------------------------------------------------------------------------------

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there count as deleted.

        :raises AccessError: if S3 refuses to delete one of them
        :raises TransientError: if one of them still cannot be deleted after some tries
        """
        together = [key for key in keys if not _NOT_IN_XML.search(key)]
        singly = [key for key in keys if _NOT_IN_XML.search(key)]
        for start in range(0, len(together), DELETE_BATCH):
            batch = together[start : start + DELETE_BATCH]
            if len(batch) > 1 and self._deletes_batches:
                batch = self._delete_batch(bucket, batch)
            singly += batch
        for key in singly:
            self._delete_one(Location(bucket, key))

    def _delete_one(self, target: Location) -> None:
        try:
            with translated("DELETE", target):
                self.client.delete_object(Bucket=target.bucket, Key=target.key)
        except NotFoundError:
            log.debug("%s was gone before it was deleted", target)

    def _delete_batch(self, bucket: str, keys: Sequence[str]) -> list[str]:
        """Delete objects by DeleteObjects; returns those that the store does not say to have deleted."""
        left = list(keys)
        for tried in range(1, limits.DELETE_TRIES + 1):
            try:
                with translated("DELETE", Location(bucket, left[0])):
                    answer = self.client.delete_objects(
                        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in left], "Quiet": False}
                    )
            except (CredentialsError, MissingBucketError, ConfigurationError):
                raise
            except PermanentError as error:
                return self._without_batches(bucket, left, error)
            refused = {row.get("Key"): row for row in answer.get("Errors", ())}
            deleted = {row.get("Key") for row in answer.get("Deleted", ())}
            silent = [key for key in left if key not in refused and key not in deleted]
            failed = {key: _error_of_key(bucket, key, refused[key]) for key in left if key in refused}
            for problem in failed.values():
                if not isinstance(problem, TransientError | NotFoundError):
                    raise problem
            again = {key: problem for key, problem in failed.items() if isinstance(problem, TransientError)}
            if silent or not again:
                return [*silent, *again]
            if tried == limits.DELETE_TRIES:
                first = next(iter(again.values()))
                raise type(first)(f"{first} (after {tried} tries)") from first
            left = list(again)
            longest = limits.DELETE_FIRST_WAIT_SECONDS * 2**tried
            time.sleep(random.uniform(longest / 2, longest))
        raise AssertionError("not reached")

    def _without_batches(self, bucket: str, keys: Sequence[str], error: RollupError) -> list[str]:
        """Delete the first key by itself where DeleteObjects was refused; returns the rest if that is taken."""
        self._delete_one(Location(bucket, keys[0]))
        log.info("objects are deleted one by one: %s", error)
        self._deletes_batches = False
        return list(keys[1:])

    def delete_if(self, target: Location, etag: str) -> bool:
        """Delete an object if it has this ETag; False if it has another one.

        Where the store does not know the condition, the ETag is looked at first.
        """
        asked = {"Bucket": target.bucket, "Key": target.key}
        with translated("DELETE", target):
            if self._deletes_conditionally:
                try:
                    self.client.delete_object(**asked, IfMatch=_quoted(target, etag))
                    return True
                except boto.ClientError as error:
                    status, code = _status_and_code(error)
                    if status == 412:
                        return False
                    if status == 404 and code != "NoSuchBucket":
                        return True
                    if not may_refuse_header(status, code):
                        raise
        found = self.head(target)
        if found is not None and found.etag != etag:
            return False
        self._delete_one(target)
        self._deletes_conditionally = False
        return True

    # -- multipart uploads -----------------------------------------------------------------------------

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        """Key and upload id of the multipart uploads under way, as the store lists them.

        The listing ends with a page that names no other upload, since some servers repeat a page without end.

        :raises AccessError: if the credentials may not list them
        """
        pages = self.client.get_paginator("list_multipart_uploads")
        found: dict[tuple[str, str], None] = {}
        with translated("LIST UPLOADS", prefix):
            try:
                for page in pages.paginate(Bucket=prefix.bucket, Prefix=prefix.key):
                    known = len(found)
                    found.update(((row["Key"], row["UploadId"]), None) for row in page.get("Uploads", ()))
                    if len(found) == known:
                        break
            except self.client.exceptions.NoSuchUpload:
                # rclone's answer where there are none.
                log.debug("no multipart upload under %s", prefix)
        return list(found)

    def begin_upload(self, target: Location, headers: Mapping[str, str]) -> str:
        """Begin a multipart upload; returns its upload id."""
        shape = self.client.meta.service_model.operation_model("CreateMultipartUpload").input_shape
        names = {
            str(member.serialization.get("name", "")).lower(): name for name, member in shape.members.items()
        }
        options = {names[name.lower()]: value for name, value in headers.items()}
        with translated("BEGIN UPLOAD", target):
            answer = self.client.create_multipart_upload(Bucket=target.bucket, Key=target.key, **options)
        return str(answer["UploadId"])

    def finish_upload(self, target: Location, upload_id: str, etags: Sequence[str]) -> None:
        """Complete a multipart upload from its parts' ETags, in order."""
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)]
        with translated("FINISH UPLOAD", target):
            self.client.complete_multipart_upload(
                Bucket=target.bucket, Key=target.key, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )

    def abort_upload(self, target: Location, upload_id: str) -> None:
        """Give up a multipart upload; one that is not there counts as given up."""
        with translated("ABORT UPLOAD", target):
            try:
                self.client.abort_multipart_upload(Bucket=target.bucket, Key=target.key, UploadId=upload_id)
            except boto.ClientError as error:
                status, code = _status_and_code(error)
                if code != "NoSuchUpload" and (status != 404 or code == "NoSuchBucket"):
                    raise

    # -- the data plane --------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The TCP port of the endpoint, or of the proxy on the way to it, by which its sockets are known."""
        endpoint = self.client.meta.endpoint_url
        url = urlsplit(self._proxy(endpoint) or endpoint)
        return url.port or (443 if url.scheme == "https" else 80)

    def _proxy(self, url: str) -> str:
        """The proxy that boto3 uses, of the connection's config or of the environment; empty for none."""
        return _http_session(self.client)._proxy_config.proxy_url_for(url) or ""

    def open_transfer(self, read_bucket: str, write_bucket: str) -> SocketTransfer:
        """A transfer with the connections that boto3 leaves.

        :raises ConfigurationError: if that is none, or the data plane cannot use the Airflow connection
        """
        reads = self._request_of(read_bucket, "GetObject")
        writes = self._request_of(write_bucket, "PutObject", Body=b"")
        endpoints = {read_bucket: self._endpoint(reads), write_bucket: self._endpoint(writes)}
        hosts = len({endpoint.host for endpoint in endpoints.values()})
        connections = self.max_connections - hosts * self.control_connections
        if connections < 1:
            raise ConfigurationError(
                f"max_connections is {self.max_connections}; {hosts * self.control_connections + 1} are "
                f"needed at least, for {hosts} hosts"
            )
        credentials = self.get_session(self.region_name).get_credentials()
        if credentials is None:
            # Also where a metadata service did not answer for a moment.
            raise TransientError(
                f"the Airflow connection {self.aws_conn_id!r} gives no credentials; add them"
            )
        session = _http_session(self.client)
        ca = str(get_cert_path(session._verify)) if session._verify else ""
        headers = {**_other_headers(reads), **self._request_headers}
        settings = TransferSettings(
            session._verify,
            ca,
            self._connect_timeout,
            self._response_timeout,
            headers,
            {name: value for name, value in _other_headers(writes).items() if name not in headers},
            (session._cert_file, session._key_file) if session._cert_file else None,
            _proxy_tls(session, ca, any(endpoint.secure for endpoint in endpoints.values())),
            self._checksums,
        )
        return SocketTransfer(endpoints, connections, credentials, settings, self._relocate)

    @cached_property
    def _request_headers(self) -> dict[str, str]:
        """Headers of every request: who pays, where the connection's extra has ``requester_pays``."""
        pays = str(self.conn_config.extra_config.get("requester_pays", self._requester_pays)).strip().lower()
        if pays not in _YES | _NO:
            raise ConfigurationError(
                f"the Airflow connection {self.aws_conn_id!r} has requester_pays={pays!r}; set it to true or "
                f"false"
            )
        return {"x-amz-request-payer": "requester"} if pays in _YES else {}

    def _request_of(self, bucket: str, operation: str, **options: Any) -> AWSPreparedRequest:
        """The request that boto3 would send for an object ``k`` of a bucket: it knows all the endpoint rules."""
        caught: list[AWSPreparedRequest] = []

        def catch(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
            caught.append(request)
            return AWSResponse(request.url, 200, {}, HTTPResponse(BytesIO(), preload_content=False))

        event = f"before-send.s3.{operation}"
        ask = {"GetObject": self.client.get_object, "PutObject": self.client.put_object}[operation]
        events = self.client.meta.events
        with self._asking, translated("connect to", Location(bucket, "")):
            events.register_first(event, catch)
            try:
                ask(Bucket=bucket, Key="k", **options)
            finally:
                events.unregister(event, catch)
        return caught[0]

    def _relocate(self, bucket: str) -> BucketEndpoint:
        """Where boto3 sends requests for a bucket after it was redirected: it follows, and remembers."""
        self.head(Location(bucket, "k"))
        return self._endpoint(self._request_of(bucket, "GetObject"))

    def _endpoint(self, request: AWSPreparedRequest) -> BucketEndpoint:
        """Where boto3 sends a request, and how it signs it."""
        url = urlsplit(request.url)
        signature = _text(request.headers.get("Authorization", ""))
        signed = _SCOPE_REGION.search(signature)
        if signed is None or not signature.startswith("AWS4-HMAC-SHA256 "):
            raise ConfigurationError(
                f"the Airflow connection {self.aws_conn_id!r} asks for requests without a signature of version "
                f"4; remove 'signature_version' from its config_kwargs"
            )
        session = _http_session(self.client)
        origin = f"{url.scheme}://{url.netloc}"
        proxy = self._proxy(origin)
        forwards = bool(session._proxies_kwargs().get("use_forwarding_for_https"))
        return BucketEndpoint(
            origin,
            url.path.removesuffix("k"),
            signed[1],
            proxy,
            forwards and url.scheme == "https" and proxy.startswith("https:"),
        )


def _http_session(client: Any) -> Any:
    """botocore's HTTP session of a client: neither its pool's options nor its CA file are public."""
    return client._endpoint.http_session


def _with_tuples(config: Config) -> dict[str, Any]:
    """Options in which botocore expects a tuple: the JSON of a connection has lists, which it would ignore."""
    options: dict[str, Any] = {}
    if isinstance(config.client_cert, list):
        options["client_cert"] = tuple(config.client_cert)
    proxies = config.proxies_config or {}
    if isinstance(proxies.get("proxy_client_cert"), list):
        options["proxies_config"] = {**proxies, "proxy_client_cert": tuple(proxies["proxy_client_cert"])}
    return options


def _proxy_tls(session: Any, ca: str, secure: bool) -> TlsSettings:
    """How boto3 speaks TLS to proxies.

    :param ca: against which certificates of origins are checked
    :param secure: whether the origins speak TLS; where they don't, boto3 checks a proxy's certificate only against
        ``proxy_ca_bundle``
    """
    settings = session._proxy_config.settings
    shown = settings.get("proxy_client_cert")
    client: ClientCertificate | None = None
    if shown:
        client = (shown, None) if isinstance(shown, str) else (shown[0], shown[1])
    bundle = settings.get("proxy_ca_bundle")
    if bundle:
        return TlsSettings(True, str(bundle), client)
    return TlsSettings(secure and bool(session._verify), ca, client)


def _other_headers(request: AWSPreparedRequest) -> dict[str, str]:
    """Headers of a request of boto3's that neither it nor the data plane always sends."""
    return {
        name.lower(): _text(value)
        for name, value in request.headers.items()
        if name.lower() not in _OWN_HEADERS and not name.lower().startswith("x-amz-checksum-")
    }


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _status_and_code(error: boto.ClientError) -> tuple[int, str]:
    """HTTP status and error code of an answer; for a HEAD the status stands for the code."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(error.response.get("Error", {}).get("Code", ""))


def _error_of_key(bucket: str, key: str, row: Mapping[str, Any]) -> RollupError:
    """The error for one key within the answer to DeleteObjects."""
    code, message = str(row.get("Code", "")), str(row.get("Message", ""))
    return from_code("DELETE", Location(bucket, key), code, message)


def _quoted(target: Location, etag: str) -> str:
    """An ETag as the value of a header.

    :raises ListingError: if it would break the header
    """
    if not etag.isprintable():
        raise ListingError(f"{target}: its ETag {etag!r} cannot be sent as the value of a header")
    return f'"{etag}"'


def _read(answer: Mapping[str, Any], limit: int) -> bytes | None:
    """The body of an answer to GetObject; None if it has more than ``limit`` bytes."""
    body = answer["Body"]
    if (answer.get("ContentLength") or 0) > limit:
        _end(body)
        return None
    pieces: list[bytes] = []
    left = limit
    while piece := body.read(READ_PIECE_BYTES):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            _end(body)
            return None
    return b"".join(pieces)


def _end(body: Any) -> None:
    """Close a body that is not read to its end, and give its place in the pool back."""
    body.close()
    body._raw_stream.release_conn()
