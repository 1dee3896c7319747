"""S3 for the pipeline: the amazon provider's hook with a hard cap on the connections that it opens."""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from types import FrameType, TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from botocore import exceptions as boto
from botocore.config import Config

from include.log_rollup import crc, limits
from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    ForeignResponseError,
    NotFoundError,
    RollupError,
    TooLargeError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import (
    READ_LIMIT_BYTES,
    DeleteResult,
    FolderPage,
    ListPage,
    Location,
    ObjectHead,
    ObjectInfo,
    StoredObject,
    TimedPage,
)
from include.log_rollup.storage_options import ARCHIVE_CLASSES
from include.log_rollup.streams import Stream
from log_rollup_plugin.s3 import list_parser
from log_rollup_plugin.s3.checksums import (
    BAD_DIGEST,
    ChecksumSupport,
    bare_etag,
    content_md5,
    etag_may_be_md5,
    may_refuse_header,
    quoted_etag,
)
from log_rollup_plugin.s3.client_settings import (
    ClientSettings,
    extra_headers,
    keep_user_agent,
    prepare_connections,
    with_tuples,
)
from log_rollup_plugin.s3.connector import BucketEndpoint
from log_rollup_plugin.s3.deletion import Deleter
from log_rollup_plugin.s3.direct_lists import DirectLists
from log_rollup_plugin.s3.error_mapping import from_network, limit_redirects, status_and_code, translated
from log_rollup_plugin.s3.exact_deletion import ExactDeleter
from log_rollup_plugin.s3.responses import (
    check_range,
    check_received,
    discard_body,
    has_body,
    has_headers_of_s3,
    read_body,
    read_body_into,
    receiving,
    span_of,
    until_usable,
)
from log_rollup_plugin.s3.transfer import SocketTransfer, TransferSettings, TransferSide

log = logging.getLogger(__name__)

# The object is being retrieved already, or it can be read.
_NOTHING_TO_RETRIEVE = frozenset({"RestoreAlreadyInProgress", "ObjectAlreadyInActiveTierError"})
_YES = frozenset({"true", "t", "yes", "y", "on", "1"})
_NO = frozenset({"false", "f", "no", "n", "off", "0", "none", ""})


class PooledS3Hook(S3Hook):
    """Implements :class:`include.log_rollup.storage.protocol.ObjectStore` within ``max_connections`` connections.

    botocore's ``max_pool_connections`` is no cap: it is the number of idle connections that are kept, and more
    threads open more connections (botocore issues 619 and 766). Here the connection pools block instead, those of
    proxies too. So ``control_connections`` bounds all boto3 calls of this hook to one host, and a transfer gets
    the rest of ``max_connections``.

    A hook keeps the settings and the credentials of the Airflow connection that it was made with: make a new hook
    after they changed.

    :param max_connections: the most connections to S3 that may be open at any time
    :param control_connections: how many of them boto3 may use for one host; the rest is the transfer's
    :param connect_timeout: for connecting, and again for the TLS handshake
    :param response_timeout: for the first byte of an object
    :param many_lists: whether to send listings with less CPU than boto3; for hours with many groups
    :param kms_key_id: KMS key that encrypts what :meth:`write` and :meth:`publish` write; None for the bucket's
        default encryption
    :param kwargs: of :class:`airflow.providers.amazon.aws.hooks.s3.S3Hook`
    """

    def __init__(
        self,
        *args: Any,
        max_connections: int = limits.DEFAULT_MAX_CONNECTIONS,
        control_connections: int = 1,
        connect_timeout: timedelta = limits.DEFAULT_CONNECT_TIMEOUT,
        response_timeout: timedelta = limits.DEFAULT_RESPONSE_TIMEOUT,
        kms_key_id: str | None = None,
        many_lists: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 1 <= control_connections <= max_connections:
            raise ConfigurationError(
                f"control_connections is {control_connections}; set it to a number from 1 to max_connections "
                f"({max_connections})"
            )
        self.max_connections = max_connections
        self.control_connections = control_connections
        self.requests: Counter[str] = Counter()
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._encryption: Mapping[str, str] = (
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key_id} if kms_key_id else {}
        )
        self._many_lists = many_lists
        self._checksums = ChecksumSupport()
        self._checksum_setting: str | None = None
        self._uploads_with_crc: set[str] = set()
        self._sessions: dict[tuple[str | None, bool], Any] = {}

    copies_raw = True

    @classmethod
    def for_stream(
        cls, stream: Stream, max_connections: int, control_connections: int, conn_id: str | None = None
    ) -> "PooledS3Hook":
        """The hook for a step of a stream; :func:`log_rollup_plugin.s3.stream_store.store_for` chooses it.

        :param max_connections: of this step: the slots of the pool that its task takes
        :param control_connections: of boto3 to all hosts together; one per host at least
        :param conn_id: the Airflow connection; the default is that of the raw objects
        """
        one_host = stream.raw.bucket == stream.aggregated.bucket and not stream.has_two_connections
        hosts = 1 if one_host else 2
        return cls(
            aws_conn_id=conn_id or stream.aws_conn_id,
            max_connections=max_connections,
            control_connections=max(1, control_connections // hosts),
            connect_timeout=stream.connect_timeout,
            response_timeout=stream.response_timeout,
            kms_key_id=stream.kms_key_id,
            many_lists=bool(stream.raw.captures),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close boto3's connections. Airflow frees the slots of a task as soon as the task has ended."""
        if "client" in self.__dict__:
            self.client.close()

    # -- the boto3 client ------------------------------------------------------------------------------

    def _get_config(self, config: Config | None = None) -> Config:
        base: Config = super()._get_config(config)
        retries = base.retries or {"mode": "standard", "max_attempts": limits.CONTROL_RETRIES}
        self._checksum_setting = base.request_checksum_calculation
        base = base.merge(Config(**with_tuples(base)))
        return base.merge(
            Config(
                max_pool_connections=self.control_connections,
                connect_timeout=self._connect_timeout.total_seconds(),
                read_timeout=limits.CONTROL_READ_TIMEOUT_SECONDS,
                tcp_keepalive=True,
                retries=retries,
                # The pipeline itself compares CRCs. botocore would compare the CRC of a whole object with a
                # range of it if the server sends that CRC, and would upload in chunks with a trailing CRC,
                # which some servers refuse or store as part of the object.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
        )

    def _get_caller(self, target_function_name: str = "execute") -> str:
        """The class of the calling operator, which the provider adds to the user agent.

        The provider's own search reads the source of all callers: 0.1 s of CPU time in each task.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == target_function_name and "self" in frame.f_locals:
                return type(frame.f_locals["self"]).__name__
            frame = frame.f_back
        return "Unknown"

    def get_session(self, region_name: str | None = None, deferrable: bool = False) -> Any:
        """One session for boto3 and the transfer, so that a role is assumed once."""
        key = region_name, deferrable
        if key not in self._sessions:
            self._sessions[key] = super().get_session(region_name, deferrable)
        return self._sessions[key]

    def get_client_type(self, *args: Any, **kwargs: Any) -> Any:
        """A boto3 client within the cap, with the handlers of this project."""
        client = super().get_client_type(*args, **kwargs)
        if (self._checksum_setting or self._checksum_default()) == "when_required":
            self._checksums.on_write = self._checksums.on_copy = False
        prepare_connections(client)
        keep_user_agent(client)
        client.meta.events.register("before-send.s3", self._count_request)
        list_parser.register_fast_parser(client)
        limit_redirects(client)
        client.meta.events.register("before-sign.s3", self._add_request_headers)
        return client

    def _checksum_default(self) -> str | None:
        """``request_checksum_calculation`` from the environment or AWS's configuration file."""
        for session in self._sessions.values():
            # A boto3 session wraps one of botocore.
            botocore_session = getattr(session, "_session", session)
            return str(botocore_session.get_config_variable("request_checksum_calculation")).lower()
        return None

    def _add_request_headers(self, request: Any, **_: Any) -> None:
        for name, value in self._request_headers.items():
            request.headers[name] = value

    def _count_request(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1

    @cached_property
    def client(self) -> Any:
        """The boto3 client, made on first use.

        :raises ConfigurationError: if the Airflow connection cannot be used
        """
        with translated("connect to", Location("", self.aws_conn_id or "")):
            try:
                return self.get_conn()
            except ValueError as error:
                raise ConfigurationError(
                    f"the Airflow connection {self.aws_conn_id!r} cannot be used: {error}; fix it under "
                    f"Admin > Connections"
                ) from error

    @cached_property
    def _settings(self) -> ClientSettings:
        return ClientSettings(self.client, self.aws_conn_id)

    @cached_property
    def _deleter(self) -> Deleter:
        return Deleter(self.client, self.head)

    @cached_property
    def _exact_deleter(self) -> ExactDeleter:
        return ExactDeleter(
            self.client,
            self.control_connections,
            self.head,
            lambda target, body: self.write(target, body, "application/octet-stream"),
            lambda target: self.delete(target.bucket, [target.key]),
        )

    @cached_property
    def _direct_lists(self) -> DirectLists | None:
        credentials = self.get_session(self.region_name).get_credentials() if self._many_lists else None
        return DirectLists(self.client, self._settings, credentials) if credentials else None

    # -- listing and small objects ---------------------------------------------------------------------

    def _list(self, prefix: Location, **options: Any) -> Mapping[str, Any]:
        """The response to ListObjectsV2 for a prefix."""
        arguments = {"Bucket": prefix.bucket, "Prefix": prefix.key, **options}
        with translated("LIST", prefix):
            response = self._direct_lists.send(arguments) if self._direct_lists else None
        if response is None:
            response = self._list_with_boto3(prefix, arguments)
        else:
            self.requests["ListObjectsV2"] += 1
        list_parser.check_prefix(response, prefix)
        return response

    def _list_with_boto3(self, prefix: Location, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        def once() -> Mapping[str, Any]:
            with translated("LIST", prefix):
                try:
                    response: Mapping[str, Any] = self.client.list_objects_v2(**arguments)
                except RollupError as error:
                    # The parser does not know what is listed. A cause would mean an unreachable server.
                    raise from_network("LIST", prefix, error) from None
            return response

        return until_usable(once)

    def _assert_not_listed(self, target: Location, error: RollupError) -> None:
        """Make sure that an object does not exist, after a 404 that may not be of S3.

        :raises ForeignResponseError: if it is listed
        """
        if any(row.key == target.key for row in self.list_page(target).objects):
            raise ForeignResponseError(
                f"{error}; but the object is listed, so a proxy or load balancer may have sent this"
            ) from error

    def list_page(
        self,
        prefix: Location,
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
        own: Callable[[str], bool] | None = None,
    ) -> ListPage:
        """One page of the objects under a prefix, as the server states it (ListObjectsV2)."""
        options: dict[str, Any] = {"MaxKeys": limit}
        if token is not None:
            options["ContinuationToken"] = token
        elif start_after:
            options["StartAfter"] = start_after
        return list_parser.parse_page(self._list(prefix, **options), own)

    def list_folders(self, prefix: Location, token: str | None = None, limit: int = 1000) -> FolderPage:
        """One page of the folders under a prefix, as the server states it (ListObjectsV2)."""
        options: dict[str, Any] = {"Delimiter": "/", "MaxKeys": limit}
        if token is not None:
            options["ContinuationToken"] = token
        return list_parser.parse_folders(self._list(prefix, **options))

    def list_times(self, prefix: Location, start_after: str = "", delimiter: str = "") -> TimedPage:
        """One page of the objects and folders under a prefix, with the objects' times (ListObjectsV2)."""
        arguments: dict[str, Any] = {"Bucket": prefix.bucket, "Prefix": prefix.key}
        if start_after:
            arguments["StartAfter"] = start_after
        if delimiter:
            arguments["Delimiter"] = delimiter
        response = self._list_with_boto3(prefix, arguments)
        list_parser.check_prefix(response, prefix)
        return list_parser.parse_times(response)

    def head(self, target: Location) -> ObjectHead | None:
        """Size, ETag and CRC of an object; None if there is none."""
        return until_usable(lambda: self._head_once(target))

    def _head_once(self, target: Location) -> ObjectHead | None:
        try:
            with translated("HEAD", target):
                response = self._head(target)
                size = response.get("ContentLength")
                if size is None:
                    size = self._size_by_get(target)
        except NotFoundError as error:
            if not has_headers_of_s3(error):
                self._assert_not_listed(target, error)
            return None
        etag = bare_etag(response.get("ETag"))
        if not etag:
            # An empty ETag would count as that of another object, and parts would be removed.
            raise ForeignResponseError(f"HEAD {target}: S3 answered without an ETag")
        whole = response.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        storage_class, retrieval = response.get("StorageClass", ""), response.get("Restore", "")
        return ObjectHead(
            size=size,
            etag=etag,
            crc64nvme=crc.from_header(response.get("ChecksumCRC64NVME")) if whole else None,
            etag_is_md5=etag_may_be_md5(
                etag, response.get("ServerSideEncryption"), response.get("SSECustomerAlgorithm")
            ),
            storage_class=storage_class,
            # INTELLIGENT_TIERING states the archive tier apart.
            is_archived=(storage_class in ARCHIVE_CLASSES or bool(response.get("ArchiveStatus")))
            and 'ongoing-request="false"' not in retrieval,
            is_being_retrieved='ongoing-request="true"' in retrieval,
        )

    def _head(self, target: Location) -> Mapping[str, Any]:
        """HEAD with the header that asks for the CRC, unless the server refuses that header."""
        arguments = {"Bucket": target.bucket, "Key": target.key}
        response: Mapping[str, Any]
        if self._checksums.on_read:
            try:
                response = self.client.head_object(**arguments, ChecksumMode="ENABLED")
                return response
            except boto.ClientError as error:
                if not may_refuse_header(*status_and_code(error)):
                    raise
        response = self.client.head_object(**arguments)
        self._checksums.on_read = False
        return response

    def _size_by_get(self, target: Location) -> int:
        """The size of an object if HEAD does not state it; some servers omit it for empty objects."""
        try:
            response = self.client.get_object(Bucket=target.bucket, Key=target.key, Range="bytes=0-0")
        except boto.ClientError as error:
            status, code = status_and_code(error)
            if status == 416 or code == "InvalidRange":
                return 0
            raise
        discard_body(response["Body"])
        total = response.get("ContentRange", "").rpartition("/")[2]
        size = int(total) if total.isdecimal() else response.get("ContentLength")
        if size is None:
            raise TransientError(f"HEAD {target}: the store does not state the size of the object")
        return int(size)

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        """All of a small object with its ETag; None if there is no object.

        :raises TooLargeError: if it has more than ``limit`` bytes
        """
        found, is_whole = until_usable(lambda: self._read_once(source, limit))
        if is_whole:
            return found
        for _ in range(limits.FOREIGN_TRIES):
            again, is_whole = until_usable(lambda: self._read_once(source, limit))
            if is_whole or again == found:
                return again
            found = again
        raise TransientError(
            f"GET {source}: the server states no length of the body, and it differs each time"
        )

    def _read_once(self, source: Location, limit: int) -> tuple[StoredObject | None, bool]:
        """All of a small object; and whether it is known to be whole, because the response states its length."""
        try:
            with translated("GET", source):
                response = self.client.get_object(Bucket=source.bucket, Key=source.key)
        except NotFoundError:
            return None, True
        except ForeignResponseError as error:
            self._assert_not_listed(source, error)
            return None, True
        with receiving(source):
            body = read_body(response, limit)
        if body is None:
            raise TooLargeError(f"GET {source}: it is larger than {limit} bytes, the most that is read of it")
        etag = bare_etag(response.get("ETag"))
        if not etag and body.lstrip()[:1] == b"<":
            # No record is XML or HTML.
            raise ForeignResponseError(f"GET {source}: S3 answered without an ETag, and {body[:200]!r}")
        is_chunked = "transfer-encoding" in response["ResponseMetadata"]["HTTPHeaders"]
        return StoredObject(body, etag), is_chunked or response.get("ContentLength") is not None

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """Bytes of an object, if it still has this ETag.

        :raises TransientError: if the store sends another number of bytes
        """
        return until_usable(lambda: self._read_range_once(source, etag, offset, length))

    def _read_range_once(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        response = self._get_range(source, etag, offset, length)
        with receiving(source):
            body = read_body(response, length)
        check_range(response, source, offset)
        check_received(source, None if body is None else len(body), offset, length)
        return body or b""

    def _get_range(self, source: Location, etag: str, offset: int, length: int) -> Mapping[str, Any]:
        with translated("GET", source):
            response: Mapping[str, Any] = self.client.get_object(
                Bucket=source.bucket,
                Key=source.key,
                Range=span_of(offset, length),
                IfMatch=quoted_etag(source, etag),
            )
        return response

    def read_into(self, source: Location, etag: str, offset: int, into: memoryview) -> None:
        """Read bytes of an object into memory of the caller, if it still has this ETag.

        It takes half the CPU of :meth:`read_range`, because bytes are not copied and memory is not allocated.

        :param into: its length is that of the range
        :raises TransientError: if the store sends another number of bytes
        """
        until_usable(lambda: self._read_into_once(source, etag, offset, into))

    def _read_into_once(self, source: Location, etag: str, offset: int, into: memoryview) -> None:
        response = self._get_range(source, etag, offset, len(into))
        with receiving(source):
            received = read_body_into(response, into)
        check_range(response, source, offset)
        check_received(source, received, offset, len(into))

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        """Write a small object; returns its ETag."""
        return until_usable(lambda: self._write_once(target, body, content_type))

    def _write_once(self, target: Location, body: bytes, content_type: str) -> str:
        with translated("PUT", target):
            response = self._put(target, body, ContentType=content_type)
        etag = bare_etag(response.get("ETag"))
        if not etag and has_body(response):
            raise ForeignResponseError(f"PUT {target}: S3 answered without an ETag, and with a body")
        return etag

    def _put(self, target: Location, body: bytes, **options: str) -> Mapping[str, Any]:
        """PUT with a checksum, which Object Lock requires: the CRC, or the MD5 if the server refuses the CRC."""
        arguments = {"Bucket": target.bucket, "Key": target.key, "Body": body, **self._encryption, **options}
        response: Mapping[str, Any]
        # Making the client sets _checksums from the settings of the connection.
        client = self.client
        if self._checksums.on_write:
            try:
                response = client.put_object(**arguments, ChecksumCRC64NVME=crc.to_header(crc.crc64(body)))
                return response
            except boto.ClientError as error:
                if not may_refuse_header(*status_and_code(error)):
                    raise
        response = client.put_object(**arguments, ContentMD5=content_md5(body))
        self._checksums.on_write = False
        return response

    def publish(self, source: Location, target: Location) -> None:
        """Copy a small object within the bucket in one request (CopyObject).

        :raises NotFoundError: if the source is gone
        :raises UnsupportedOperationError: if the store does not support CopyObject
        """
        problem = f"COPY {source} to {target}: the store cannot copy objects"
        with translated("COPY", source):
            try:
                response = self.client.copy_object(
                    CopySource={"Bucket": source.bucket, "Key": source.key},
                    Bucket=target.bucket, Key=target.key, MetadataDirective="COPY",
                    **self._encryption,
                )  # fmt: skip
            except boto.ClientError as error:
                status, code = status_and_code(error)
                if status in (405, 501) or code in ("NotImplemented", "MethodNotAllowed"):
                    raise UnsupportedOperationError(f"{problem}; it answered {status} {code}") from error
                raise
        if not response.get("CopyObjectResult", {}).get("ETag"):
            if has_body(response):
                raise ForeignResponseError(
                    f"COPY {source} to {target}: S3 answered without the ETag of the copy"
                )
            # The store ignored the copy source and stored an empty object.
            raise UnsupportedOperationError(f"{problem}; it answered without a result")

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """Whether the store compares the CRC64-NVME of an upload: refuses a wrong one, and accepts the right one.

        :param scratch: an object that is written and deleted
        """
        body = b"\n"
        right = crc.crc64(body)
        refuses = not self._accepts_crc(scratch, body, right ^ 1) and self._accepts_crc(scratch, body, right)
        self.delete(scratch.bucket, [scratch.key])
        return refuses

    def _accepts_crc(self, scratch: Location, body: bytes, stated: int) -> bool:
        """Whether an upload with this CRC passes; also True if the store does not know the header."""
        with translated("PUT", scratch):
            try:
                self.client.put_object(
                    Bucket=scratch.bucket, Key=scratch.key, Body=body,
                    ChecksumAlgorithm="CRC64NVME", ChecksumCRC64NVME=crc.to_header(stated),
                    **self._encryption,
                )  # fmt: skip
            except boto.ClientError as error:
                status, code = status_and_code(error)
                if code in BAD_DIGEST:
                    return False
                if not may_refuse_header(status, code):
                    raise
        return True

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there count as deleted.

        :raises AccessError: if S3 refuses to delete one of them
        :raises TransientError: if one of them still cannot be deleted after some tries
        """
        self._deleter.delete(bucket, keys)

    def delete_if(self, target: Location, etag: str) -> bool:
        """Delete an object if it has this ETag; False if it has another one."""
        return self._deleter.delete_if(target, etag)

    def deletes_on_condition(self, scratch: Location) -> bool:
        """Whether deletes can be made to depend on the ETag; see :class:`ExactDeleter`."""
        return self._exact_deleter.deletes_on_condition(scratch)

    def delete_exactly(
        self, prefix: Location, objects: Sequence[ObjectInfo], *, conditional: bool
    ) -> DeleteResult:
        """Delete objects that still have these ETags; see :class:`ExactDeleter`."""
        return self._exact_deleter.delete_exactly(prefix, objects, conditional=conditional)

    def request_retrieval(self, target: Location, tier: str, days: int | None) -> bool:
        """Request that an archived object becomes readable (RestoreObject); False if that need not be requested.

        :raises AccessError: if the credentials may not request it
        :raises UnsupportedOperationError: if the store does not know the request
        """
        request: dict[str, Any] = {"GlacierJobParameters": {"Tier": tier}}
        if days is not None:
            request["Days"] = days
        with translated("RETRIEVE", target):
            try:
                self.client.restore_object(Bucket=target.bucket, Key=target.key, RestoreRequest=request)
            except boto.ClientError as error:
                status, code = status_and_code(error)
                if code in _NOTHING_TO_RETRIEVE:
                    return False
                if code == "AccessDenied":
                    raise AccessError(
                        f"RETRIEVE {target}: S3 answered {status} {code}: retrievals need s3:RestoreObject on the "
                        f"parts; grant it (deploy/iam-policy-retrieve.json)"
                    ) from error
                raise
        return True

    # -- multipart uploads -----------------------------------------------------------------------------

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        """Key and upload id of the unfinished multipart uploads, as the store lists them.

        Listing ends at a page without a new upload, because some servers repeat a page for ever.

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
                # rclone's error if there are none.
                log.debug("no multipart upload under %s", prefix)
        return list(found)

    def begin_upload(self, target: Location, headers: Mapping[str, str], *, with_crc: bool = False) -> str:
        """Begin a multipart upload; returns its upload id.

        :param with_crc: ask S3 to keep the CRC64-NVME of the whole object, unless the server refuses that
        """
        shape = self.client.meta.service_model.operation_model("CreateMultipartUpload").input_shape
        # boto3's arguments by the header in which each is sent.
        names = {
            str(member.serialization.get("name", "")).lower(): name for name, member in shape.members.items()
        }
        options = {names[name.lower()]: value for name, value in headers.items()}
        arguments = {"Bucket": target.bucket, "Key": target.key, **options}
        client = self.client
        with translated("BEGIN UPLOAD", target):
            if with_crc and self._checksums.on_write:
                try:
                    response = client.create_multipart_upload(
                        **arguments, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT"
                    )
                    upload_id = str(response["UploadId"])
                    # Other servers would compare the CRC of the object with one of its parts' CRCs.
                    if response.get("ChecksumType") == "FULL_OBJECT":
                        self._uploads_with_crc.add(upload_id)
                    return upload_id
                except boto.ClientError as error:
                    if not may_refuse_header(*status_and_code(error)):
                        raise
            response = client.create_multipart_upload(**arguments)
            if with_crc:
                # Parts with a CRC would be refused too.
                self._checksums.on_write = False
            return str(response["UploadId"])

    def write_range(self, target: Location, upload_id: str, number: int, body: bytes) -> str:
        """Write one part of a multipart upload; returns its ETag.

        :param upload_id: of an upload that began with ``with_crc``, which finds out whether CRCs are accepted
        """
        checksum = (
            {"ChecksumCRC64NVME": crc.to_header(crc.crc64(body))}
            if self._checksums.on_write
            else {"ContentMD5": content_md5(body)}
        )
        with translated("PUT", target):
            response = self.client.upload_part(
                Bucket=target.bucket,
                Key=target.key,
                UploadId=upload_id,
                PartNumber=number,
                Body=body,
                **checksum,
            )
        etag = bare_etag(response.get("ETag"))
        if not etag:
            raise ForeignResponseError(
                f"PUT {target}: S3 answered without the ETag of part {number} of the upload"
            )
        return etag

    def finish_upload(
        self, target: Location, upload_id: str, etags: Sequence[str], crc64nvme: int | None = None
    ) -> None:
        """Complete a multipart upload from its parts' ETags, in order.

        :param crc64nvme: of the whole object; S3 refuses the upload if its parts have another one. It is sent only
            if the server has agreed to keep it.
        """
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)]
        arguments: dict[str, Any] = {
            "Bucket": target.bucket, "Key": target.key, "UploadId": upload_id,
            "MultipartUpload": {"Parts": parts},
        }  # fmt: skip
        with translated("FINISH UPLOAD", target):
            if crc64nvme is not None and upload_id in self._uploads_with_crc:
                arguments |= {"ChecksumCRC64NVME": crc.to_header(crc64nvme), "ChecksumType": "FULL_OBJECT"}
            self.client.complete_multipart_upload(**arguments)

    def abort_upload(self, target: Location, upload_id: str) -> None:
        """Abort a multipart upload; one that does not exist counts as aborted."""
        with translated("ABORT UPLOAD", target):
            try:
                self.client.abort_multipart_upload(Bucket=target.bucket, Key=target.key, UploadId=upload_id)
            except boto.ClientError as error:
                status, code = status_and_code(error)
                if code != "NoSuchUpload" and (status != 404 or code == "NoSuchBucket"):
                    raise

    # -- the data plane --------------------------------------------------------------------------------

    @property
    def ports(self) -> frozenset[int]:
        """The TCP port of the endpoint, or of the proxy on the way to it, by which its sockets are recognised."""
        endpoint = self.client.meta.endpoint_url
        url = urlsplit(self._settings.proxy(endpoint) or endpoint)
        return frozenset({url.port or (443 if url.scheme == "https" else 80)})

    def meta(self, location: Location) -> Any:
        """The ``meta`` of the boto3 client for a location: endpoint, region, partition."""
        return self.client.meta

    def open_transfer(self, read_bucket: str, write_bucket: str) -> SocketTransfer:
        """A transfer with the connections that boto3 does not use.

        :raises ConfigurationError: if there are none left, or the data plane cannot use the Airflow connection
        """
        side = self.transfer_side(read_bucket, write_bucket)
        hosts = len({endpoint.host for endpoint in side.endpoints.values()})
        connections = connections_left(self.max_connections, hosts, self.control_connections)
        return SocketTransfer(side, connections)

    def transfer_side(self, *buckets: str) -> TransferSide:
        """How a transfer has to send requests for some buckets, as boto3 would.

        :param buckets: the last one may be written to
        :raises ConfigurationError: if the data plane cannot use the Airflow connection
        """
        settings = self._settings
        requests = {bucket: settings.get_request(bucket) for bucket in buckets}
        write_request = settings.put_request(buckets[-1])
        endpoints = {bucket: settings.endpoint(request) for bucket, request in requests.items()}
        endpoints[buckets[-1]] = settings.endpoint(write_request)
        credentials = self.get_session(self.region_name).get_credentials()
        if credentials is None:
            # boto3 returns the same if a metadata service does not answer for a moment: a retry can help.
            raise TransientError(
                f"the Airflow connection {self.aws_conn_id!r} gives no credentials; add them"
            )
        headers = {**extra_headers(requests[buckets[0]]), **self._request_headers}
        transfer_settings = TransferSettings(
            verify=settings.verify,
            ca=settings.ca,
            connect_timeout=self._connect_timeout,
            response_timeout=self._response_timeout,
            headers=headers,
            write_headers={
                name: value for name, value in extra_headers(write_request).items() if name not in headers
            },
            client=settings.client_certificate,
            proxy_tls=settings.proxy_tls(secure=any(endpoint.secure for endpoint in endpoints.values())),
            checksums=self._checksums,
        )
        return TransferSide(endpoints, credentials, transfer_settings, self._relocate)

    def _relocate(self, bucket: str) -> BucketEndpoint:
        """The endpoint of a bucket whose requests are redirected: boto3 follows the redirect and remembers it."""
        place = Location(bucket, "k")
        with suppress(NotFoundError), translated("HEAD", place):
            self._head(place)
        return self._settings.endpoint(self._settings.get_request(bucket))

    @cached_property
    def _request_headers(self) -> dict[str, str]:
        """Headers of every request: the one of ``requester_pays`` in the connection's extra."""
        pays = str(self.conn_config.extra_config.get("requester_pays", self._requester_pays)).strip().lower()
        if pays not in _YES | _NO:
            raise ConfigurationError(
                f"the Airflow connection {self.aws_conn_id!r} has requester_pays={pays!r}; set it to true or "
                f"false"
            )
        return {"x-amz-request-payer": "requester"} if pays in _YES else {}


def connections_left(max_connections: int, hosts: int, control_connections: int) -> int:
    """How many connections a transfer may open.

    :param control_connections: of boto3 to each host
    :raises ConfigurationError: if there are none
    """
    left = max_connections - hosts * control_connections
    if left < 1:
        raise ConfigurationError(
            f"max_connections is {max_connections}, but {hosts * control_connections + 1} are needed at least for "
            f"{hosts} hosts; raise it"
        )
    return left
