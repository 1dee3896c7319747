"""Requests of the data plane, GET, PUT and COPY: what is sent, and what S3's response to it means."""

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from include.log_rollup import crc
from include.log_rollup.errors import ForeignResponseError, TransientError, UnsupportedOperationError
from include.log_rollup.storage.protocol import Downloaded, Location, Uploaded
from include.log_rollup.units import KIB
from log_rollup_plugin.s3.checksums import (
    ChecksumSupport,
    bare_etag,
    content_md5,
    etag_may_be_md5,
    may_refuse_header,
    stated_checksum,
)
from log_rollup_plugin.s3.connection import Body, Connection
from log_rollup_plugin.s3.connector import BucketEndpoint, proxy_headers
from log_rollup_plugin.s3.content_range import other_range_error, stated_range
from log_rollup_plugin.s3.error_mapping import from_response

# How much XML of a response is kept: S3's errors and the results of copies are a few hundred bytes.
XML_BYTES = 64 * KIB
# Sent by boto3 with every request, and not signed, because proxies may change it. Without it, a server may unpack
# objects that have a Content-Encoding.
_ACCEPT_ENCODING = "accept-encoding: identity"
# Statuses, and with 400 error codes, that mean that the bucket is in another region.
_REDIRECT_STATUSES = (301, 302, 307, 308, 400)
_WRONG_REGION_CODES = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_CHECKSUM_HEADERS = frozenset(
    {
        "x-amz-checksum-mode", "x-amz-checksum-algorithm", "x-amz-checksum-crc64nvme",
        "x-amz-sdk-checksum-algorithm",
    }
)  # fmt: skip


def _element(name: str, content: str = "(.*?)") -> re.Pattern[str]:
    """An XML element with its content; as in boto3, with any prefix, and with attributes or without."""
    return re.compile(rf"<(?:[\w.-]+:)?{name}(?:\s[^<>]*)?>{content}</", re.DOTALL)


_ERROR_CODE = _element("Code")
_ERROR_MESSAGE = _element("Message")
_ERROR_ROOT = re.compile(r"\s*(?:<\?xml.*?\?>)?\s*<(?:[\w.-]+:)?Error[\s>]", re.DOTALL)
_COPY_ETAG = _element("ETag")
_COPY_CRC = _element("ChecksumCRC64NVME")
_COPY_OF_PARTS = _element("ChecksumType", r"\s*COMPOSITE\s*")


class ObjectRequest(ABC):
    """One request, from its submission to its result; takes the response as a ``ResponseHandler``.

    :param endpoint: where it is sent
    :param location: the object that its URL names
    :param headers: without Host and the signature
    :param done: gets the result or the error
    :param cancel: cancels this request
    :param checksums: its field for this kind of request becomes False if the server refuses the checksum headers
    """

    method: str
    operation: ClassVar[str]
    """As error messages name it."""
    buffer: memoryview | None = None
    """See :class:`log_rollup_plugin.s3.connection.ResponseHandler`."""
    body: Body | None = None

    def __init__(
        self,
        endpoint: BucketEndpoint,
        location: Location,
        headers: list[tuple[str, str]],
        done: Callable[[Any], None],
        cancel: "Callable[[ObjectRequest], None]",
        checksums: ChecksumSupport,
        query: str = "",
    ) -> None:
        self.location = location
        self.named = location
        """The object that error messages name."""
        self.headers = headers
        self.done = done
        self.connection: Connection | None = None
        """The connection that carries it; None while it waits for one, and when it has ended."""
        self.was_resent = False
        """Whether it was sent again because its first connection had been closed by the server."""
        self._cancel = cancel
        self._checksums = checksums
        self._query = query
        self._redirects = 0
        self._status = 0
        self._response_headers: Mapping[str, str] = {}
        self._xml = bytearray()
        self._without_checksums = False
        self.direct_to(endpoint)

    def direct_to(self, endpoint: BucketEndpoint) -> None:
        """Send the request to this endpoint, for the first time or after a redirect."""
        self.endpoint = endpoint
        self.target = endpoint.target(self.location.key) + self._query
        """Path and query."""
        self._xml.clear()

    def encode_head(self, signed_headers: list[tuple[str, str]]) -> bytes:
        """The head of the request as it is sent, to the origin or to a proxy."""
        endpoint, target = self.endpoint, self.target
        headers = signed_headers
        if endpoint.proxy and not endpoint.tunnelled:
            target = endpoint.base_url + target
            headers = [*headers, *proxy_headers(endpoint).items()]
        lines = [
            f"{self.method} {target} HTTP/1.1",
            _ACCEPT_ENCODING,
            *[f"{name}: {value}" for name, value in headers],
        ]
        return "\r\n".join((*lines, "", "")).encode()

    def cancel(self) -> None:
        """See :class:`include.log_rollup.storage.protocol.Cancellable`."""
        self._cancel(self)

    # -- the response ----------------------------------------------------------------------------------

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        """See :class:`log_rollup_plugin.s3.connection.ResponseHandler`."""
        self._status, self._response_headers = status, headers

    def on_data(self, chunk: bytes) -> None:
        """Keep the beginning of the XML."""
        if len(self._xml) < XML_BYTES:
            self._xml += chunk

    def on_received(self, size: int) -> None:
        """See :class:`log_rollup_plugin.s3.connection.ResponseHandler`."""
        raise AssertionError("only a GET has a buffer to receive into")

    def is_redirected(self) -> bool:
        """Whether the server says, for the first time, that the bucket is in another region."""
        if self._status not in _REDIRECT_STATUSES:
            return False
        if self._status == 400 and self._error_code() not in _WRONG_REGION_CODES:
            return False
        self._redirects += 1
        return self._redirects == 1

    def drop_refused_checksums(self) -> bool:
        """If the server refused the checksum headers, remove them; returns whether to send the request again."""
        if self._status not in (400, 501) or not may_refuse_header(self._status, self._error_code()):
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
        """The result of the complete response, or the error that it means."""
        if self._status >= 300:
            return self._error()
        if self._without_checksums:
            self._note_refused_checksums()
        return self._success(self._response_headers)

    @abstractmethod
    def _note_refused_checksums(self) -> None:
        """Remember that the server carries out such a request only without checksum headers."""

    @abstractmethod
    def _success(self, headers: Mapping[str, str]) -> object:
        """The result of a request that S3 has carried out."""

    def _foreign(self, problem: str) -> ForeignResponseError:
        text = self._text()[:200]
        return ForeignResponseError(
            f"{self}: S3 answered {self._status} {problem}" + (f", and {text!r}" if text else "")
        )

    def _error(self) -> Exception:
        message = _ERROR_MESSAGE.search(self._text())
        return from_response(
            self.operation, self.named, self._status, self._error_code(), message[1] if message else "",
            self._response_headers,
        )  # fmt: skip

    def _error_code(self) -> str:
        """S3's error code, or the status if the response has none."""
        found = _ERROR_CODE.search(self._text())
        return found[1].strip() if found else str(self._status)

    def _text(self) -> str:
        return self._xml.decode(errors="replace")

    def __str__(self) -> str:
        return f"{self.operation} {self.named}"


class GetRequest(ObjectRequest):
    """GetObject into a buffer.

    :param first: offset of the first byte of the range that it asks for; None if it asks for the whole object
    """

    method = operation = "GET"

    def __init__(self, *arguments: Any, buffer: memoryview, first: int | None = None) -> None:
        super().__init__(*arguments)
        self.buffer: memoryview = buffer
        self._first = first
        self._size = 0

    def on_received(self, size: int) -> None:
        """See :class:`log_rollup_plugin.s3.connection.ResponseHandler`."""
        self._size += size

    def on_data(self, chunk: bytes) -> None:
        """Copy a piece of the body into the buffer. What does not fit is counted only: the size shows it."""
        if self._status >= 300:
            super().on_data(chunk)
            return
        start = self._size
        self._size += len(chunk)
        room = max(0, len(self.buffer) - start)
        self.buffer[start : start + len(chunk)] = chunk[:room]

    def _note_refused_checksums(self) -> None:
        self._checksums.on_read = False

    def _success(self, headers: Mapping[str, str]) -> Downloaded | Exception:
        content_range = headers.get("content-range")
        if content_range and (error := other_range_error(self.named, content_range, self._first or 0)):
            return error
        etag = bare_etag(headers.get("etag"))
        if not etag and any(name == "if-match" for name, _ in self.headers):
            return self._foreign("without the ETag of the object")
        etag_is_md5 = etag_may_be_md5(
            etag,
            headers.get("x-amz-server-side-encryption"),
            headers.get("x-amz-server-side-encryption-customer-algorithm"),
        )
        if self._first is None:
            return Downloaded(self._size, etag, stated_checksum(headers), etag_is_md5)
        # A server may state the CRC of the whole object with a range of it.
        stated = stated_range(content_range)
        return Downloaded(self._size, etag, None, etag_is_md5, stated and stated.total)


class PutRequest(ObjectRequest):
    """PutObject or UploadPart."""

    method = operation = "PUT"

    def __init__(self, *arguments: Any, body: Body, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.body = body

    def _note_refused_checksums(self) -> None:
        self._checksums.on_write = False

    def _success(self, headers: Mapping[str, str]) -> Uploaded | Exception:
        etag, text = bare_etag(headers.get("etag")), self._text()
        if _ERROR_ROOT.match(text):
            return self._error()
        # S3 sends no body. Some servers send no ETag, but without that of each part no upload can be completed.
        if not etag and (text or self._query):
            return self._foreign("without the ETag of what was written")
        return Uploaded(etag, crc.from_header(headers.get("x-amz-checksum-crc64nvme")))


class CopyRequest(ObjectRequest):
    """CopyObject or UploadPartCopy. The result is XML, and an error can come with status 200.

    :param source: the object that is copied, which error messages name
    """

    method, operation = "PUT", "COPY"

    def __init__(self, *arguments: Any, source: Location, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.named = source

    def on_data(self, chunk: bytes) -> None:
        """Keep the XML, without the white space that S3 sends while it copies."""
        super().on_data(chunk if self._xml else chunk.lstrip())

    def result(self) -> object:
        """The result of the complete response, or the error that it means, whatever its status."""
        if self._status in (405, 501):
            return UnsupportedOperationError(
                f"{self}: S3 answered {self._status} {self._error_code()}: the store cannot copy objects"
            )
        if self._status < 300 and _ERROR_ROOT.match(self._text()):
            return self._error()
        return super().result()

    def _note_refused_checksums(self) -> None:
        self._checksums.on_copy = False

    def _success(self, headers: Mapping[str, str]) -> Uploaded | Exception:
        text = self._text()
        etag = _COPY_ETAG.search(text)
        if not text:
            return UnsupportedOperationError(
                f"{self}: S3 answered without a result: the store ignored the copy source and stored an empty "
                f"object"
            )
        if etag is None:
            return TransientError(f"{self}: S3 answered {text[:200]!r} without an ETag")
        stored = None if _COPY_OF_PARTS.search(text) else _COPY_CRC.search(text)
        return Uploaded(bare_etag(html.unescape(etag[1])), crc.from_header(stored and stored[1]))
