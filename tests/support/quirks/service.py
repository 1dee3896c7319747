"""The operations of S3 as AWS performs them, as far as the pipeline and its tests use them.

Not supported: versions, permissions, encryption, tags, bodies that are signed in chunks. The responses follow
https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html.
"""

import base64
import binascii
import re
import time
import uuid
import xml.etree.ElementTree as ET
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from hashlib import md5
from typing import Any
from urllib.parse import quote_plus, unquote
from xml.sax.saxutils import escape

from awscrt import checksums

from tests.support.quirks.http_server import Answer, Request
from tests.support.quirks.memory import STANDARD, Memory, StoredObject, Upload, md5_hex

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
ALGORITHMS: Mapping[str, tuple[Callable[[bytes], int], int]] = {
    "crc64nvme": (checksums.crc64nvme, 8),
    "crc32": (checksums.crc32, 4),
    "crc32c": (checksums.crc32c, 4),
}
"""For each name of a checksum in S3, its function and its length in bytes."""

ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
_STORED_HEADERS = (
    "content-type",
    "content-encoding",
    "content-language",
    "cache-control",
    "content-disposition",
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PAGE = 1000


class S3Error(Exception):
    """An error response.

    :param code: the error code of S3
    """

    def __init__(
        self, status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message or code
        self.headers = dict(headers or {})

    def answer(self, request: Request) -> Answer:
        """The response of S3 for this error."""
        headers = {"Content-Type": "application/xml", **self.headers}
        return Answer(self.status, headers, error_xml(self.code, self.message, request), error=self.code)


@dataclass(frozen=True, slots=True)
class Row:
    """An object in a listing; its ETag has no quotes."""

    key: str
    size: int
    etag: str
    modified: float
    storage_class: str = STANDARD


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing.

    :param prefixes: common prefixes, if there is a delimiter
    :param truncated: value of IsTruncated; None omits the element
    """

    rows: Sequence[Row]
    prefixes: Sequence[str] = ()
    truncated: bool | None = False
    token: str | None = None


class Service:
    """A correct S3 server; quirks override its methods.

    Not thread-safe: the caller holds a lock.

    :param memory: the objects and uploads of the server
    :param secret_key: the secret key of the only user, for quirks that check signatures
    """

    name = "none"
    page_size = _PAGE
    """The largest number of objects in a page, whatever ``max-keys`` is."""
    piece_bytes = 0
    """See :class:`tests.support.quirks.http_server.Application`."""

    def __init__(self, memory: Memory, secret_key: str) -> None:
        self.memory = memory
        self.secret_key = secret_key

    def closes_handshake(self) -> bool:
        """Whether to close a TLS connection in its handshake."""
        return False

    # -- requests --------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Answer a request, with an error response if it fails."""
        try:
            early = self.intercept(request)
            answer = early if early is not None else self.perform(request)
        except S3Error as error:
            answer = error.answer(request)
        return self.finish(request, answer)

    def intercept(self, request: Request) -> Answer | None:
        """Return a response instead of performing the operation; None to perform it.

        :raises S3Error: to send an error response
        """
        return None

    def finish(self, request: Request, answer: Answer) -> Answer:
        """Change a response before it is sent."""
        return answer

    def perform(self, request: Request) -> Answer:
        """Perform the operation.

        :raises S3Error: as S3 would
        """
        method: Callable[[Request], Answer] | None = getattr(self, _METHODS.get(request.operation, ""), None)
        if method is None:
            raise S3Error(
                501, "NotImplemented", "A header you provided implies functionality that is not implemented"
            )
        if request.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            raise S3Error(501, "NotImplemented", "Bodies that are signed in chunks are not implemented")
        return method(request)

    # -- buckets ---------------------------------------------------------------------------------------

    def list_buckets(self, request: Request) -> Answer:
        """ListBuckets."""
        rows = "".join(
            f"<Bucket><Name>{escape(name)}</Name></Bucket>" for name in sorted(self.memory.buckets)
        )
        return xml("ListAllMyBucketsResult", f"<Buckets>{rows}</Buckets>")

    def create_bucket(self, request: Request) -> Answer:
        """CreateBucket; an existing bucket is left unchanged."""
        self.memory.buckets.setdefault(request.bucket, {})
        return Answer(200, {"Location": f"/{request.bucket}"})

    def delete_bucket(self, request: Request) -> Answer:
        """DeleteBucket."""
        if self.objects(request):
            raise S3Error(409, "BucketNotEmpty")
        del self.memory.buckets[request.bucket]
        return Answer(204)

    def head_bucket(self, request: Request) -> Answer:
        """HeadBucket."""
        self.objects(request)
        return Answer(200, {"x-amz-bucket-region": "us-east-1"})

    def get_bucket_location(self, request: Request) -> Answer:
        """GetBucketLocation; it is empty for us-east-1."""
        self.objects(request)
        return xml("LocationConstraint", "")

    def objects(self, request: Request) -> dict[str, StoredObject]:
        """The objects of the request's bucket.

        :raises S3Error: NoSuchBucket
        """
        try:
            return self.memory.buckets[request.bucket]
        except KeyError:
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist") from None

    # -- listings --------------------------------------------------------------------------------------

    def list_objects_v2(self, request: Request) -> Answer:
        """ListObjectsV2."""
        return self.write_page(request, self.page(request))

    def list_objects(self, request: Request) -> Answer:
        """ListObjects (version 1), whose marker is a key."""
        return self.write_page(request, self.page(request))

    def rows(self, request: Request) -> list[Row]:
        """The rows below the prefix, in the order of the keys' UTF-8 bytes."""
        prefix = request.arguments.get("prefix", "")
        found = [(key, stored) for key, stored in self.objects(request).items() if key.startswith(prefix)]
        found.sort(key=lambda pair: pair[0].encode())
        return [Row(key, len(o.body), o.etag, o.modified, o.storage_class) for key, o in found]

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        """The index of the first row that may be in the page, by token, marker or start-after."""
        arguments = request.arguments
        if token := arguments.get("continuation-token"):
            after = untoken(token)
        else:
            after = arguments.get("start-after") or arguments.get("marker") or ""
        if not after:
            return 0
        # A common prefix followed by U+10FFFF represents all keys below it.
        return bisect_right(rows, after.encode(), key=lambda row: row.key.encode())

    def token(self, request: Request, last: str, next_index: int) -> str:
        """The token of the next page, which begins after the key ``last`` at this index of the rows."""
        return token_of(last)

    def limit(self, request: Request) -> int:
        """The largest number of keys and common prefixes in the page."""
        return min(int(request.arguments.get("max-keys", str(_PAGE))), self.page_size)

    def page(self, request: Request) -> Page:
        """The requested page."""
        rows = self.rows(request)
        index, limit = self.start(request, rows), self.limit(request)
        prefix, delimiter = request.arguments.get("prefix", ""), request.arguments.get("delimiter", "")
        taken: list[Row] = []
        prefixes: list[str] = []
        last = ""
        while index < len(rows) and len(taken) + len(prefixes) < limit:
            row = rows[index]
            head, found, _ = row.key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                common = prefix + head + delimiter
                prefixes.append(common)
                while index < len(rows) and rows[index].key.startswith(common):
                    index += 1
                last = common + "\U0010ffff"
            else:
                taken.append(row)
                index += 1
                last = row.key
        truncated = index < len(rows)
        return Page(taken, prefixes, truncated, self.token(request, last, index) if truncated else None)

    def write_page(self, request: Request, page: Page) -> Answer:
        """A page as XML."""
        arguments = request.arguments
        encode = self.encoder(request)
        v2 = arguments.get("list-type") == "2"
        out = [
            f"<Name>{escape(request.bucket)}</Name>",
            f"<Prefix>{encode(arguments.get('prefix', ''))}</Prefix>",
        ]
        if v2:
            out.append(f"<KeyCount>{len(page.rows) + len(page.prefixes)}</KeyCount>")
            if page.token is not None:
                out.append(f"<NextContinuationToken>{escape(page.token)}</NextContinuationToken>")
        else:
            out.append(f"<Marker>{encode(arguments.get('marker', ''))}</Marker>")
            if page.token is not None and page.rows:
                out.append(f"<NextMarker>{encode(page.rows[-1].key)}</NextMarker>")
        out.append(f"<MaxKeys>{self.limit(request)}</MaxKeys>")
        if arguments.get("delimiter"):
            out.append(f"<Delimiter>{encode(arguments['delimiter'])}</Delimiter>")
        if self.encodes(request):
            out.append("<EncodingType>url</EncodingType>")
        if page.truncated is not None:
            out.append(f"<IsTruncated>{str(page.truncated).lower()}</IsTruncated>")
        out += [self.write_row(row, encode) for row in page.rows]
        out += [f"<CommonPrefixes><Prefix>{encode(one)}</Prefix></CommonPrefixes>" for one in page.prefixes]
        return xml("ListBucketResult", "".join(out))

    def write_row(self, row: Row, encode: Callable[[str], str]) -> str:
        """A row as XML."""
        return (
            f"<Contents><Key>{encode(row.key)}</Key><LastModified>{self.write_time(row.modified)}</LastModified>"
            f"{self.write_etag(row)}<Size>{row.size}</Size><StorageClass>{row.storage_class}</StorageClass></Contents>"
        )

    def write_etag(self, row: Row) -> str:
        """The ETag of a row as XML."""
        return f"<ETag>&quot;{escape(row.etag)}&quot;</ETag>"

    def write_time(self, modified: float) -> str:
        """A time as LastModified in a listing."""
        return iso_time(modified)

    def encodes(self, request: Request) -> bool:
        """Whether keys in this listing are url-encoded."""
        return request.arguments.get("encoding-type") == "url"

    def encoder(self, request: Request) -> Callable[[str], str]:
        """The function that encodes keys for this listing."""
        return self.encode_key if self.encodes(request) else escape

    def encode_key(self, key: str) -> str:
        """A key in a listing with ``encoding-type=url``."""
        return quote_plus(key, safe="/*")

    # -- objects ---------------------------------------------------------------------------------------

    def find(self, request: Request) -> StoredObject:
        """The object of a request.

        :raises S3Error: NoSuchKey, NoSuchBucket
        """
        try:
            return self.objects(request)[request.key]
        except KeyError:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.") from None

    def get_object(self, request: Request) -> Answer:
        """GetObject."""
        stored = self.find(request)
        self.check_not_archived(stored)
        if early := self.check_read_conditions(request, stored):
            return early
        headers = self.object_headers(request, stored)
        bounds = self.byte_range(request, len(stored.body))
        if bounds is None:
            return Answer(200, headers, stored.body)
        first, last = bounds
        headers = {name: value for name, value in headers.items() if not name.startswith("x-amz-checksum-")}
        headers["Content-Range"] = f"bytes {first}-{last}/{len(stored.body)}"
        return Answer(206, headers, memoryview(stored.body)[first : last + 1])

    def head_object(self, request: Request) -> Answer:
        """HeadObject; the response has no body, so errors have no code."""
        stored = self.find(request)
        if early := self.check_read_conditions(request, stored):
            return early
        return Answer(200, self.object_headers(request, stored), length=len(stored.body))

    def byte_range(self, request: Request, size: int) -> tuple[int, int] | None:
        """First and last byte of the requested range; None without a range.

        :raises S3Error: InvalidRange
        """
        match = _RANGE.fullmatch(request.headers.get("range", ""))
        if match is None or not (match[1] or match[2]):
            return None
        if not match[1]:
            first, last = max(0, size - int(match[2])), size - 1
        else:
            first, last = int(match[1]), min(int(match[2] or size), size - 1)
        if first >= size or last < first:
            raise S3Error(416, "InvalidRange", headers={"Content-Range": f"bytes */{size}"})
        return first, last

    def object_headers(self, request: Request, stored: StoredObject) -> dict[str, str]:
        """The headers of a response with this object."""
        headers = {
            "ETag": f'"{stored.etag}"',
            "Last-Modified": formatdate(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            **stored.headers,
        }
        if stored.storage_class != STANDARD:
            headers["x-amz-storage-class"] = stored.storage_class
        if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers.update(self.checksum_headers(stored))
        return headers

    def checksum_headers(self, stored: StoredObject) -> dict[str, str]:
        """The checksum headers of an object."""
        headers = {f"x-amz-checksum-{name}": value for name, value in stored.checksums.items()}
        return {**headers, "x-amz-checksum-type": "FULL_OBJECT"} if headers else {}

    def check_not_archived(self, stored: StoredObject) -> None:
        """Refuse to read an archived object.

        :raises S3Error: InvalidObjectState
        """
        if stored.storage_class in ARCHIVED:
            raise S3Error(
                403, "InvalidObjectState", "The operation is not valid for the object's storage class"
            )

    def check_read_conditions(self, request: Request, stored: StoredObject) -> Answer | None:
        """Check If-Match and If-None-Match of a read; returns a response with status 304, or None.

        :raises S3Error: PreconditionFailed
        """
        if (expected := request.headers.get("if-match")) and not matches(expected, stored.etag):
            raise precondition_failed("If-Match")
        if (not_expected := request.headers.get("if-none-match")) and matches(not_expected, stored.etag):
            return Answer(304, {"ETag": f'"{stored.etag}"'})
        return None

    def check_write_conditions(self, request: Request) -> None:
        """Check If-Match and If-None-Match of a write or a delete.

        :raises S3Error: PreconditionFailed; NoSuchKey for If-Match if there is no object
        """
        stored = self.objects(request).get(request.key)
        if request.headers.get("if-none-match") == "*" and stored is not None:
            raise precondition_failed("If-None-Match")
        if expected := request.headers.get("if-match"):
            if stored is None:
                raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
            if not matches(expected, stored.etag):
                raise precondition_failed("If-Match")

    def put_object(self, request: Request) -> Answer:
        """PutObject."""
        self.check_write_conditions(request)
        self.check_md5(request)
        self.check_checksums(request)
        stored = self.store(
            request, request.key, request.body, self.checksums_to_store(request), stored_headers(request)
        )
        return Answer(200, {"ETag": f'"{stored.etag}"', **self.checksum_headers(stored)})

    def store(
        self, request: Request, key: str, body: bytes, checksums_: Mapping[str, str], headers: Mapping[str, str],
        etag: str | None = None,
    ) -> StoredObject:  # fmt: skip
        """Store an object."""
        stored = StoredObject(
            body, self.etag(body) if etag is None else etag, time.time(), headers, checksums_,
            request.headers.get("x-amz-storage-class", STANDARD),
        )  # fmt: skip
        self.objects(request)[key] = stored
        return stored

    def etag(self, body: bytes) -> str:
        """The ETag of an object that is uploaded in one request."""
        return md5_hex(body)

    def check_md5(self, request: Request) -> None:
        """Compare the body with its Content-MD5.

        :raises S3Error: BadDigest, InvalidDigest
        """
        stated = request.headers.get("content-md5")
        if stated is None:
            return
        try:
            expected = base64.b64decode(stated, validate=True)
        except binascii.Error:
            raise S3Error(400, "InvalidDigest", "The Content-MD5 you specified was invalid.") from None
        if expected != md5(request.body, usedforsecurity=False).digest():
            raise S3Error(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")

    def check_checksums(self, request: Request) -> None:
        """Compare the body with the checksums in its headers.

        :raises S3Error: BadDigest, InvalidRequest
        """
        for name, value in stated_checksums(request).items():
            try:
                length = len(base64.b64decode(value, validate=True))
            except binascii.Error:
                length = -1
            if length != ALGORITHMS[name][1]:
                raise S3Error(400, "InvalidRequest", f"Value for x-amz-checksum-{name} header is invalid.")
            if value != checksum(name, request.body):
                raise self.wrong_checksum(name)

    def wrong_checksum(self, algorithm: str) -> S3Error:
        """The error for a body that does not have the checksum of its header."""
        return S3Error(
            400, "BadDigest", f"The {algorithm.upper()} you specified did not match the calculated checksum."
        )

    def checksums_to_store(self, request: Request) -> dict[str, str]:
        """The checksums to store: those in the headers, or a CRC64-NVME if there are none."""
        return stated_checksums(request) or {"crc64nvme": checksum("crc64nvme", request.body)}

    def delete_object(self, request: Request) -> Answer:
        """DeleteObject; succeeds if there is no such object."""
        objects = self.objects(request)
        if request.key in objects:
            self.check_write_conditions(request)
            del objects[request.key]
        return Answer(204)

    def delete_objects(self, request: Request) -> Answer:
        """DeleteObjects."""
        objects = self.objects(request)
        if not request.headers.get("content-md5") and not stated_checksums(request):
            raise S3Error(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
        self.check_md5(request)
        self.check_checksums(request)
        root = parsed(request.body)
        quiet = (root.findtext("{*}Quiet") or "").lower() == "true"
        out = []
        for entry in root.iterfind("{*}Object"):
            key, etag = entry.findtext("{*}Key") or "", entry.findtext("{*}ETag")
            try:
                self.delete_one(objects, key, etag)
            except S3Error as error:
                out.append(
                    f"<Error><Key>{escape(key)}</Key><Code>{error.code}</Code>"
                    f"<Message>{escape(error.message)}</Message></Error>"
                )
            else:
                out += [] if quiet else [f"<Deleted><Key>{escape(key)}</Key></Deleted>"]
        return xml("DeleteResult", "".join(out))

    def delete_one(self, objects: dict[str, StoredObject], key: str, etag: str | None) -> None:
        """Delete one object of a DeleteObjects request.

        :param etag: the ETag that the object must have; None for any
        :raises S3Error: the error of this key; other keys are deleted
        """
        if etag is not None and key in objects and not matches(etag, objects[key].etag):
            raise precondition_failed("If-Match")
        objects.pop(key, None)

    # -- copies ----------------------------------------------------------------------------------------

    def copy_source(self, request: Request) -> StoredObject:
        """The object to copy, if it meets the conditions.

        :raises S3Error: NoSuchKey, NoSuchBucket, PreconditionFailed, InvalidObjectState
        """
        source = unquote(request.headers["x-amz-copy-source"].partition("?")[0]).removeprefix("/")
        bucket, _, key = source.partition("/")
        if bucket not in self.memory.buckets:
            raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
        stored = self.memory.buckets[bucket].get(key)
        if stored is None:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
        expected = request.headers.get("x-amz-copy-source-if-match")
        if expected and not matches(expected, stored.etag):
            raise precondition_failed("x-amz-copy-source-If-Match")
        not_expected = request.headers.get("x-amz-copy-source-if-none-match")
        if not_expected and matches(not_expected, stored.etag):
            raise precondition_failed("x-amz-copy-source-If-None-Match")
        self.check_not_archived(stored)
        return stored

    def copy_object(self, request: Request) -> Answer:
        """CopyObject."""
        self.objects(request)
        source = self.copy_source(request)
        self.check_write_conditions(request)
        replace = request.headers.get("x-amz-metadata-directive", "").upper() == "REPLACE"
        algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower()
        checksums_ = {algorithm: checksum(algorithm, source.body)} if algorithm else dict(source.checksums)
        stored = self.store(
            request, request.key, source.body, checksums_ or {"crc64nvme": checksum("crc64nvme", source.body)},
            stored_headers(request) if replace else source.headers,
        )  # fmt: skip
        return xml("CopyObjectResult", self.copy_result(stored.etag, stored.modified, stored.checksums))

    def copy_result(self, etag: str, modified: float, sums: Mapping[str, str]) -> str:
        """The content of the response to a copy."""
        stated = "".join(
            f"<Checksum{name.upper()}>{value}</Checksum{name.upper()}>" for name, value in sums.items()
        )
        kind = "<ChecksumType>FULL_OBJECT</ChecksumType>" if sums else ""
        return (
            f"<LastModified>{iso_time(modified)}</LastModified><ETag>&quot;{etag}&quot;</ETag>{stated}{kind}"
        )

    # -- multipart uploads -----------------------------------------------------------------------------

    def upload(self, request: Request) -> Upload:
        """The upload that a request names.

        :raises S3Error: NoSuchUpload
        """
        upload = self.memory.uploads.get(request.arguments.get("uploadId", ""))
        if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
            raise S3Error(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        return upload

    def create_multipart_upload(self, request: Request) -> Answer:
        """CreateMultipartUpload."""
        self.objects(request)
        upload = self.memory.begin_upload(
            request.bucket,
            request.key,
            stored_headers(request),
            request.headers.get("x-amz-storage-class", STANDARD),
        )
        return xml(
            "InitiateMultipartUploadResult",
            f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(request.key)}</Key>"
            f"<UploadId>{upload.upload_id}</UploadId>",
        )

    def upload_part(self, request: Request) -> Answer:
        """UploadPart."""
        upload = self.upload(request)
        self.check_md5(request)
        self.check_checksums(request)
        etag = self.etag(request.body)
        upload.parts[int(request.arguments["partNumber"])] = (etag, request.body)
        return Answer(200, {"ETag": f'"{etag}"'})

    def upload_part_copy(self, request: Request) -> Answer:
        """UploadPartCopy of a whole object or of a range."""
        upload = self.upload(request)
        body = self.copy_source(request).body
        match = _RANGE.fullmatch(request.headers.get("x-amz-copy-source-range", ""))
        if match:
            first, last = int(match[1]), int(match[2])
            if last >= len(body):
                raise S3Error(400, "InvalidArgument", "Range specified is not valid for source object")
            body = body[first : last + 1]
        etag = self.etag(body)
        upload.parts[int(request.arguments["partNumber"])] = (etag, body)
        return xml("CopyPartResult", self.copy_result(etag, time.time(), {}))

    def complete_multipart_upload(self, request: Request) -> Answer:
        """CompleteMultipartUpload; stores the CRC64-NVME of the whole object."""
        upload = self.upload(request)
        self.check_write_conditions(request)
        bodies, digests = [], b""
        for entry in parsed(request.body).iterfind("{*}Part"):
            number = int(entry.findtext("{*}PartNumber") or "0")
            etag, body = upload.parts.get(number, ("", b""))
            if not etag or (entry.findtext("{*}ETag") or "").strip('"') != etag:
                raise S3Error(400, "InvalidPart", "One or more of the specified parts could not be found.")
            bodies.append(body)
            digests += md5(body, usedforsecurity=False).digest()
        if not bodies:
            raise S3Error(400, "MalformedXML", "You must specify at least one part")
        whole = b"".join(bodies)
        sums = {"crc64nvme": checksum("crc64nvme", whole)}
        etag = f"{md5_hex(digests)}-{len(bodies)}"
        stored = StoredObject(whole, etag, time.time(), upload.headers, sums, upload.storage_class)
        self.objects(request)[request.key] = stored
        del self.memory.uploads[upload.upload_id]
        return xml(
            "CompleteMultipartUploadResult",
            f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(request.key)}</Key>"
            f"{self.copy_result(etag, stored.modified, sums)}",
        )

    def abort_multipart_upload(self, request: Request) -> Answer:
        """AbortMultipartUpload."""
        del self.memory.uploads[self.upload(request).upload_id]
        return Answer(204)

    def list_multipart_uploads(self, request: Request) -> Answer:
        """ListMultipartUploads, by key and upload id."""
        self.objects(request)
        arguments = request.arguments
        after = (arguments.get("key-marker", ""), arguments.get("upload-id-marker", ""))
        found = sorted(self.uploads(request), key=lambda upload: (upload.key, upload.upload_id))
        found = [upload for upload in found if not after[0] or (upload.key, upload.upload_id) > after]
        limit = min(int(arguments.get("max-uploads", str(_PAGE))), self.page_size)
        encode = self.encoder(request)
        taken, truncated = found[:limit], len(found) > limit
        out = [
            f"<Bucket>{escape(request.bucket)}</Bucket><Prefix>{encode(arguments.get('prefix', ''))}</Prefix>"
        ]
        if self.encodes(request):
            out.append("<EncodingType>url</EncodingType>")
        if truncated:
            out.append(
                f"<NextKeyMarker>{encode(taken[-1].key)}</NextKeyMarker>"
                f"<NextUploadIdMarker>{taken[-1].upload_id}</NextUploadIdMarker>"
            )
        out.append(f"<IsTruncated>{str(truncated).lower()}</IsTruncated>")
        out += [
            f"<Upload><Key>{encode(upload.key)}</Key><UploadId>{upload.upload_id}</UploadId>"
            f"<Initiated>{iso_time(upload.begun)}</Initiated></Upload>"
            for upload in taken
        ]
        return xml("ListMultipartUploadsResult", "".join(out))

    def uploads(self, request: Request) -> Iterable[Upload]:
        """The uploads of the bucket whose keys have the prefix."""
        prefix = request.arguments.get("prefix", "")
        return [
            upload
            for upload in self.memory.uploads.values()
            if upload.bucket == request.bucket and upload.key.startswith(prefix)
        ]


_METHODS: Mapping[str, str] = {
    operation: re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", operation).lower()
    for operation in (
        "ListBuckets", "CreateBucket", "DeleteBucket", "HeadBucket", "GetBucketLocation", "ListObjects",
        "ListObjectsV2", "GetObject", "HeadObject", "PutObject", "DeleteObject", "DeleteObjects", "CopyObject",
        "CreateMultipartUpload", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload", "AbortMultipartUpload",
        "ListMultipartUploads",
    )
}  # fmt: skip


def operation_of(request: Request) -> str:
    """The name of the operation in S3; method and query names if it is not implemented."""
    arguments, method = request.arguments, request.method
    if not request.bucket:
        return "ListBuckets" if method == "GET" else method
    if request.key:
        return _object_operation(method, arguments, "x-amz-copy-source" in request.headers)
    if method == "GET":
        if arguments.get("list-type") == "2":
            return "ListObjectsV2"
        if "location" in arguments:
            return "GetBucketLocation"
        if "uploads" in arguments:
            return "ListMultipartUploads"
        known = {"prefix", "marker", "max-keys", "delimiter", "encoding-type"}
        return "ListObjects" if arguments.keys() <= known else f"GET ?{'&'.join(arguments)}"
    if method == "POST":
        return "DeleteObjects" if "delete" in arguments else method
    plain = {"PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket"}
    return plain.get(method, method) if not arguments else f"{method} ?{'&'.join(arguments)}"


def _object_operation(method: str, arguments: Mapping[str, str], copies: bool) -> str:
    multipart = "uploadId" in arguments
    if method == "GET":
        return "GetObject" if not arguments.keys() - {"x-id", "partNumber"} else f"GET ?{'&'.join(arguments)}"
    if method == "HEAD":
        return "HeadObject"
    if method == "PUT" and not arguments.keys() - {"x-id", "uploadId", "partNumber"}:
        if multipart:
            return "UploadPartCopy" if copies else "UploadPart"
        return "CopyObject" if copies else "PutObject"
    if method == "DELETE":
        return "AbortMultipartUpload" if multipart else "DeleteObject"
    if method == "POST":
        return "CompleteMultipartUpload" if multipart else "CreateMultipartUpload"
    return f"{method} ?{'&'.join(arguments)}"


def xml(root: str, inner: str) -> Answer:
    """A successful response with XML."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{NAMESPACE}">{inner}</{root}>'
    return Answer(200, {"Content-Type": "application/xml"}, text.encode())


def error_xml(code: str, message: str, request: Request) -> bytes:
    """The XML of an error response."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{escape(message)}</Message>'
        f"<Resource>{escape(request.path)}</Resource><RequestId>{uuid.uuid4().hex[:16].upper()}</RequestId></Error>"
    ).encode()


def parsed(body: bytes) -> Any:
    """The root element of a request's body.

    :raises S3Error: MalformedXML
    """
    try:
        return ET.fromstring(body)
    except ET.ParseError:
        raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed") from None


def checksum(algorithm: str, body: bytes) -> str:
    """A checksum in base64; the algorithm has its name in S3 in lower case."""
    compute, length = ALGORITHMS[algorithm]
    return base64.b64encode(compute(body).to_bytes(length, "big")).decode()


def stated_checksums(request: Request) -> dict[str, str]:
    """The checksums in the headers of a request."""
    stated = {name: request.headers.get(f"x-amz-checksum-{name}") for name in ALGORITHMS}
    return {name: value for name, value in stated.items() if value}


def stored_headers(request: Request) -> dict[str, str]:
    """The headers of a write that are stored and returned with every read."""
    return {
        name: value
        for name, value in request.headers.items()
        if name in _STORED_HEADERS or name.startswith("x-amz-meta-")
    }


def matches(condition: str, etag: str) -> bool:
    """Whether an ETag meets a condition: one ETag with or without quotes, or a star."""
    return condition == "*" or condition.strip('"') == etag


def precondition_failed(condition: str) -> S3Error:
    """The error for a condition that is not met."""
    return S3Error(412, "PreconditionFailed", f"At least one of the pre-conditions did not hold: {condition}")


def iso_time(seconds: float) -> str:
    """A time in the format of S3's XML."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def token_of(key: str) -> str:
    """A continuation token that contains the last key of a page."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def untoken(token: str) -> str:
    """The key in a continuation token.

    :raises S3Error: InvalidArgument
    """
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError:
        raise S3Error(400, "InvalidArgument", "The continuation token provided is incorrect") from None
