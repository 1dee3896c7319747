"""S3 for the pipeline: the amazon provider's hook with one number that bounds every connection it opens."""

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from io import BytesIO
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path

from include.log_rollup import crc
from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    CredentialsError,
    InputChangedError,
    NotFoundError,
)
from include.log_rollup.store import ListPage, Location, ObjectHead
from include.log_rollup.streams import Stream
from include.log_rollup.units import MIB
from log_rollup_plugin import listing
from log_rollup_plugin.connection import BucketEndpoint
from log_rollup_plugin.faults import translated
from log_rollup_plugin.transfer import SocketTransfer, TransferSettings, etag_may_be_md5

log = logging.getLogger(__name__)

# S3 deletes at most this many objects in one request.
DELETE_BATCH = 1000
# CopyObject takes at most 5 GiB; above that the copy is a multipart one.
COPY_CONFIG = TransferConfig(
    multipart_threshold=5 * 1024**3, multipart_chunksize=512 * MIB, use_threads=False, max_concurrency=1
)
# A listing may take a while on servers that hash what they list.
READ_TIMEOUT_SECONDS = 60
CONTROL_RETRIES = 6
_SCOPE_REGION = re.compile(r"Credential=[^/]+/\d{8}/([^/]+)/s3/")


class PooledS3Hook(S3Hook):
    """Implements :class:`include.log_rollup.store.ObjectStore` within ``max_connections`` connections.

    botocore's ``max_pool_connections`` is no cap: it says how many idle connections are kept, and more are
    opened when more threads ask (botocore issues 619 and 766). Here the connection pool blocks instead, so
    that ``control_connections`` bounds all boto3 calls made through this hook to one host, and a transfer
    gets what that leaves of ``max_connections``.

    :param max_connections: the most connections to S3 that may be open at any time
    :param control_connections: how many of them boto3 may use for one host; the rest are the transfer's
    :param connect_timeout: for connecting, and as long again for the TLS handshake
    :param response_timeout: for the first byte of an object
    :param kwargs: of :class:`airflow.providers.amazon.aws.hooks.s3.S3Hook`
    """

    def __init__(
        self,
        *args: Any,
        max_connections: int = 25,
        control_connections: int = 1,
        connect_timeout: timedelta = timedelta(seconds=5),
        response_timeout: timedelta = timedelta(seconds=5),
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
        """Close boto3's connections: Airflow gives a task's slots away as soon as the task says it is done."""
        if "client" in self.__dict__:
            self.client.close()

    # -- the boto3 client ------------------------------------------------------------------------------

    def _get_config(self, config: Config | None = None) -> Config:
        base: Config = super()._get_config(config)
        retries = base.retries or {"mode": "standard", "max_attempts": CONTROL_RETRIES}
        return base.merge(
            Config(
                max_pool_connections=self.control_connections,
                connect_timeout=self._connect_timeout.total_seconds(),
                read_timeout=READ_TIMEOUT_SECONDS,
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
        """One session for boto3 and the transfer: where there is a role, each would assume it for itself."""
        wanted = region_name, deferrable
        if wanted not in self._sessions:
            self._sessions[wanted] = super().get_session(region_name, deferrable)
        return self._sessions[wanted]

    def get_client_type(self, *args: Any, **kwargs: Any) -> Any:
        """The boto3 client, whose connection pool waits instead of growing."""
        client = super().get_client_type(*args, **kwargs)
        # urllib3 has the option, botocore has no way to set it.
        _http_session(client)._manager.connection_pool_kw["block"] = True
        client.meta.events.register("before-send.s3", self._count)
        listing.read_rows_with(client)
        client.meta.events.register("before-sign.s3", self._say_who_pays)
        return client

    def _say_who_pays(self, request: Any, **_: Any) -> None:
        for name, value in self._request_headers.items():
            request.headers[name] = value

    def _count(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1

    @cached_property
    def client(self) -> Any:
        """The client, made once; errors of the connection are told as such.

        :raises ConfigurationError: if the connection cannot be used
        """
        with translated("connect to", Location("", self.aws_conn_id or "")):
            try:
                return self.get_conn()
            except ValueError as error:
                raise ConfigurationError(
                    f"the Airflow connection {self.aws_conn_id!r} cannot be used: {error}; mend it under "
                    f"Admin, Connections"
                ) from error

    # -- the control plane -----------------------------------------------------------------------------

    def list_pages(self, prefix: Location, start_after: str = "") -> Iterator[ListPage]:
        """The objects under a prefix, a page of up to 1,000 at a time."""
        asked = {"Bucket": prefix.bucket, "Prefix": prefix.key}
        if start_after:
            asked["StartAfter"] = start_after
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(**asked))
        while True:
            with translated("LIST", prefix):
                page = next(pages, None)
            if page is None:
                return
            yield listing.page_of(page)

    def head(self, target: Location) -> ObjectHead | None:
        """Size, ETag and CRC of an object, None if there is none."""
        try:
            with translated("HEAD", target):
                answer = self.client.head_object(Bucket=target.bucket, Key=target.key, ChecksumMode="ENABLED")
        except NotFoundError:
            return None
        etag = answer["ETag"].strip('"')
        whole = answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        return ObjectHead(
            size=answer["ContentLength"],
            etag=etag,
            crc64nvme=crc.from_header(answer.get("ChecksumCRC64NVME")) if whole else None,
            etag_is_md5=etag_may_be_md5(
                etag, answer.get("ServerSideEncryption"), answer.get("SSECustomerAlgorithm")
            ),
        )

    def read(self, source: Location) -> bytes | None:
        """The whole of a small object, None if there is none."""
        try:
            with translated("GET", source):
                return self._body(Bucket=source.bucket, Key=source.key)
        except NotFoundError:
            return None

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """A run of an object's bytes, if it still has this ETag."""
        span = f"bytes={offset}-{offset + length - 1}"
        with translated("GET", source):
            return self._body(Bucket=source.bucket, Key=source.key, Range=span, IfMatch=f'"{etag}"')

    def _body(self, **asked: Any) -> bytes:
        body: bytes = self.client.get_object(**asked)["Body"].read()
        return body

    def write(self, target: Location, body: bytes, content_type: str) -> None:
        """Write a small object."""
        with translated("PUT", target):
            self.client.put_object(Bucket=target.bucket, Key=target.key, Body=body, ContentType=content_type)

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """Whether the store refuses an object whose CRC64-NVME is wrong; the object is removed otherwise."""
        body = b"\n"
        wrong = crc.to_header(crc.crc64(body) ^ 1)
        try:
            self.client.put_object(Bucket=scratch.bucket, Key=scratch.key, Body=body, ChecksumCRC64NVME=wrong)
        except ClientError as error:
            # 400 BadDigest or InvalidRequest; anything else is no answer to the question.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 400:
                return True
            with translated("PUT", scratch):
                raise
        self.delete(scratch.bucket, [scratch.key])
        return False

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there count as deleted.

        :raises AccessError: if S3 refuses to delete one of them
        """
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            with translated("DELETE", Location(bucket, batch[0])):
                answer = self.client.delete_objects(
                    Bucket=bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            for refused in answer.get("Errors", ()):
                raise AccessError(
                    f"DELETE s3://{bucket}/{refused.get('Key')}: S3 answered {refused.get('Code')} "
                    f"({refused.get('Message')}); the README lists the permissions that the Dag needs"
                )

    def abort_uploads(self, prefix: Location) -> int:
        """Give up the multipart uploads under a prefix that were never finished; how many there were.

        :raises AccessError: if the credentials may not list or abort them
        """
        pages = self.client.get_paginator("list_multipart_uploads")
        count = 0
        with translated("LIST UPLOADS", prefix):
            try:
                for page in pages.paginate(Bucket=prefix.bucket, Prefix=prefix.key):
                    for upload in page.get("Uploads", ()):
                        self.client.abort_multipart_upload(
                            Bucket=prefix.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
            except self.client.exceptions.NoSuchUpload:
                # rclone's answer to a listing where there are none; else, another run has given it up.
                log.debug("no multipart upload under %s any more", prefix)
        return count

    def copy(
        self, source: Location, etag: str, size: int, target: Location, headers: Mapping[str, str]
    ) -> None:
        """Have S3 copy an object, in parts above 5 GiB; nothing passes through here."""
        extra = {"CopySourceIfMatch": f'"{etag}"'}
        if "x-amz-storage-class" in headers:
            extra["StorageClass"] = headers["x-amz-storage-class"]
        origin = {"Bucket": source.bucket, "Key": source.key}
        try:
            with translated("COPY", source):
                if size <= COPY_CONFIG.multipart_threshold:
                    self.client.copy_object(
                        CopySource=origin, Bucket=target.bucket, Key=target.key,
                        ChecksumAlgorithm="CRC64NVME", **extra,
                    )  # fmt: skip
                else:
                    self.client.copy(origin, target.bucket, target.key, ExtraArgs=extra, Config=COPY_CONFIG)
        except NotFoundError as error:
            raise InputChangedError(
                f"{error}: it changed after it was planned; clear the run from plan_hour on"
            ) from error

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

        :raises ConfigurationError: if that is none
        """
        endpoints = {bucket: self._endpoint(bucket) for bucket in {read_bucket, write_bucket}}
        hosts = len({endpoint.host for endpoint in endpoints.values()})
        connections = self.max_connections - hosts * self.control_connections
        if connections < 1:
            raise ConfigurationError(
                f"max_connections is {self.max_connections}; {hosts * self.control_connections + 1} are "
                f"needed at least, for {hosts} hosts"
            )
        credentials = self.get_session(self.region_name).get_credentials()
        if credentials is None:
            raise CredentialsError(
                f"the Airflow connection {self.aws_conn_id!r} gives no credentials; add them"
            )
        verify = _http_session(self.client)._verify
        settings = TransferSettings(
            verify,
            str(get_cert_path(verify)) if verify else "",
            self._connect_timeout,
            self._response_timeout,
            self._request_headers,
        )
        return SocketTransfer(endpoints, connections, credentials, settings)

    @cached_property
    def _request_headers(self) -> dict[str, str]:
        """Headers of every request: who pays, where the connection's extra has ``requester_pays``."""
        pays = self.conn_config.extra_config.get("requester_pays", self._requester_pays)
        return {"x-amz-request-payer": "requester"} if pays else {}

    def _endpoint(self, bucket: str) -> BucketEndpoint:
        """Where boto3 would send a request for an object of this bucket: it knows all the endpoint rules."""
        caught: list[AWSPreparedRequest] = []

        def catch(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
            caught.append(request)
            return AWSResponse(request.url, 200, {}, BytesIO())

        events = self.client.meta.events
        with self._asking, translated("connect to", Location(bucket, "")):
            events.register_first("before-send.s3.GetObject", catch)
            try:
                self.client.get_object(Bucket=bucket, Key="k")
            finally:
                events.unregister("before-send.s3.GetObject", catch)
        url = urlsplit(caught[0].url)
        scope = caught[0].headers["Authorization"]
        signed = _SCOPE_REGION.search(scope.decode() if isinstance(scope, bytes) else scope)
        region = signed[1] if signed else self.client.meta.region_name
        origin = f"{url.scheme}://{url.netloc}"
        return BucketEndpoint(origin, url.path.removesuffix("k"), region, self._proxy(origin))


def _http_session(client: Any) -> Any:
    """botocore's HTTP session of a client: neither its pool's options nor its CA file are public."""
    return client._endpoint.http_session
