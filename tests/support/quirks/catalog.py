"""The quirks. Each is a correct server with one behaviour overridden, named after its class.

A class that begins with an underscore is no quirk by itself. Class attributes are a quirk's settings, for which
other values may be given when it is chosen; its counters begin at zero then. Where a real server is known to do
this, the docstring names it or the report.
"""

import base64
import gzip
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

from tests.support.quirks.http_server import Answer, Request
from tests.support.quirks.memory import Memory, StoredObject, Upload, md5_hex
from tests.support.quirks.service import (
    ARCHIVED,
    Page,
    Row,
    S3Error,
    Service,
    checksum,
    error_xml,
    stated_checksums,
)
from tests.support.quirks.signatures import is_signed, signed_at

LISTINGS = ("ListObjectsV2", "ListObjects")
CONDITIONS = ("if-match", "if-none-match", "x-amz-copy-source-if-match", "x-amz-copy-source-if-none-match")


class Quirk(Service):
    """Base of all quirks."""

    def __init__(self, memory: Memory, secret_key: str, **settings: Any) -> None:
        super().__init__(memory, secret_key)
        self.happened = 0
        """How often the quirk showed, where it counts that."""
        for name, value in settings.items():
            if not hasattr(type(self), name):
                raise ValueError(f"the quirk {self.name} has no setting {name!r}")
            setattr(self, name, value)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def happens(self, times: int) -> bool:
        """Count an occasion; whether it is one of the first so many."""
        self.happened += 1
        return self.happened <= times


class NoQuirk(Quirk):
    """A correct server."""


# -- listings that contradict themselves -----------------------------------------------------------------


class _Shuffled(Quirk):
    """Rows in another order or number than S3 has; a token is an index into them.

    ``start-after`` leaves out the keys that are not behind it in the order of bytes.
    """

    def order(self, rows: list[Row]) -> list[Row]:
        """The rows as they are listed."""
        return rows

    def rows(self, request: Request) -> list[Row]:
        after = self.after(request).encode()
        return self.order([row for row in super().rows(request) if row.key.encode() > after])

    def after(self, request: Request) -> str:
        """The start-after of a request, or of the one that its token came from."""
        if token := request.arguments.get("continuation-token"):
            return str(_untoken(token)[1])
        return request.arguments.get("start-after") or request.arguments.get("marker") or ""

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        token = request.arguments.get("continuation-token")
        return int(_untoken(token)[0]) if token else 0

    def token(self, request: Request, last: str, next_index: int) -> str:
        return base64.urlsafe_b64encode(json.dumps([next_index, self.after(request)]).encode()).decode()


def _untoken(token: str) -> list[Any]:
    decoded: list[Any] = json.loads(base64.urlsafe_b64decode(token))
    return decoded


class FolderListedTwice(_Shuffled):
    """All below an explicit folder object is listed, and then once more (rustfs 2439)."""

    def order(self, rows: list[Row]) -> list[Row]:
        listed: list[Row] = []
        below: list[Row] = []
        folder = ""
        for row in rows:
            if folder and not row.key.startswith(folder):
                listed += below
                folder, below = "", []
            if not folder and row.key.endswith("/"):
                folder = row.key
            elif folder:
                below.append(row)
            listed.append(row)
        return listed + below


class KeyListedTwice(_Shuffled):
    """Each key below an explicit folder object is listed twice in succession."""

    def order(self, rows: list[Row]) -> list[Row]:
        folders = tuple(row.key for row in rows if row.key.endswith("/"))
        return [
            again for row in rows for again in [row] * (1 + (row.key.startswith(folders) and row.size > 0))
        ]


class KeyListedWithTwoEtags(_Shuffled):
    """One key in ten is listed twice in succession, the second time with another ETag."""

    def order(self, rows: list[Row]) -> list[Row]:
        listed: list[Row] = []
        for number, row in enumerate(rows):
            listed.append(row)
            if number % 10 == 5:
                listed.append(replace(row, etag=md5_hex(row.etag.encode())))
        return listed


class PageBeginsWithLastKey(Quirk):
    """A page begins with the last key of the page before."""

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        return super().start(request, rows) - ("continuation-token" in request.arguments)


class StartAfterInclusive(Quirk):
    """A listing with start-after begins with that very key."""

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        index = super().start(request, rows)
        after = request.arguments.get("start-after")
        return index - (after is not None and index > 0 and rows[index - 1].key == after)


class FolderByFolder(_Shuffled):
    """Keys come folder by folder, as a walk through directories (versitygw 1283, storj roadmap 62)."""

    def order(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: row.key.encode().split(b"/"))


class FilesBeforeFolders(_Shuffled):
    """Of each folder the files come first, then the folders within (s3ninja 91)."""

    def order(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: _walk(row.key))


def _walk(key: str) -> list[tuple[bool, str]]:
    """The place of a key in a walk that takes the files of a folder before the folders within."""
    *folders, name = key.split("/")
    return [(True, folder) for folder in folders] + [(False, name)]


class NewestFirst(_Shuffled):
    """Keys come in the opposite order."""

    def order(self, rows: list[Row]) -> list[Row]:
        return rows[::-1]


class StartAfterIgnored(Quirk):
    """start-after has no effect; tokens work (minio 12611, SeaweedFS)."""

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        return super().start(request, rows) if "continuation-token" in request.arguments else 0


class StartAfterInTree(FolderByFolder):
    """Keys come folder by folder, and start-after is a place in that order (versitygw 138)."""

    def rows(self, request: Request) -> list[Row]:
        after = self.after(request).encode().split(b"/")
        rows = self.order(Service.rows(self, request))
        return [row for row in rows if after == [b""] or row.key.encode().split(b"/") > after]


class TruncatedWithoutToken(Quirk):
    """IsTruncated is true and there is no token (s3ninja 251, eucalyptus 116)."""

    def page(self, request: Request) -> Page:
        return replace(super().page(request), token=None)


class TruncatedMissing(Quirk):
    """A page that is not the last has a token and no IsTruncated."""

    def page(self, request: Request) -> Page:
        return replace(super().page(request), truncated=None)


class TruncatedFalseWithToken(Quirk):
    """A page that is not the last has a token, and IsTruncated is false."""

    def page(self, request: Request) -> Page:
        return replace(super().page(request), truncated=False)


class TokenRepeats(Quirk):
    """Every page has the same token, which leads to the second page."""

    def page(self, request: Request) -> Page:
        page = super().page(request)
        return replace(page, truncated=True, token="again") if page.truncated else page

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        if request.arguments.get("continuation-token") == "again":
            return min(self.limit(request), len(rows) - 1)
        return super().start(request, rows)


class PageRepeats(Quirk):
    """Behind the first page comes the same page again and again, each time with a new token."""

    def page(self, request: Request) -> Page:
        page = super().page(request)
        return replace(page, token=uuid.uuid4().hex) if page.truncated else page

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        return 0 if "continuation-token" in request.arguments else super().start(request, rows)


class EmptyPages(Quirk):
    """Behind the first page come empty pages without end, each with a new token."""

    def page(self, request: Request) -> Page:
        if "continuation-token" in request.arguments:
            return Page((), truncated=True, token=uuid.uuid4().hex)
        return super().page(request)


class SomeEmptyPages(Quirk):
    """Every page is followed by an empty one with a new token, which S3 allows."""

    def page(self, request: Request) -> Page:
        token = request.arguments.get("continuation-token", "")
        if token.startswith("empty."):
            return Page((), truncated=True, token=token.removeprefix("empty."))
        page = super().page(request)
        return replace(page, token=f"empty.{page.token}") if page.truncated else page


class PrefixIgnored(Quirk):
    """A listing has all keys of the bucket."""

    def rows(self, request: Request) -> list[Row]:
        return super().rows(_without(request, "prefix"))


class NeighbourListed(Quirk):
    """The key behind the prefix is listed as well."""

    def rows(self, request: Request) -> list[Row]:
        rows, every = super().rows(request), super().rows(_without(request, "prefix"))
        behind = [row for row in every if rows and row.key.encode() > rows[-1].key.encode()]
        return rows + behind[:1]


class MaxKeysIgnored(Quirk):
    """A page holds everything, however few keys were asked for."""

    def limit(self, request: Request) -> int:
        return 10**9


class KeySkippedBetweenPages(Quirk):
    """The first key behind a page is in no page."""

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        return super().start(request, rows) + ("continuation-token" in request.arguments)


class ListVersionIgnored(Quirk):
    """ListObjectsV2 is answered as ListObjects: there are markers, no tokens, and no start-after."""

    def list_objects_v2(self, request: Request) -> Answer:
        known = _without(request, "list-type", "continuation-token", "start-after")
        return self.write_page(known, self.page(known))


class UploadMarkersRepeat(Quirk):
    """ListMultipartUploads answers the same page and the same markers without end."""

    def list_multipart_uploads(self, request: Request) -> Answer:
        answer = super().list_multipart_uploads(_without(request, "key-marker", "upload-id-marker"))
        more = f"<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>{self.marker()}</NextUploadIdMarker>"
        text = bytes(answer.body).decode().replace("<IsTruncated>false", f"{more}<IsTruncated>true")
        answer.body = text.encode()
        return answer

    def marker(self) -> str:
        """The next upload id marker."""
        return "again"


class UploadPagesRepeat(UploadMarkersRepeat):
    """The same, each time with new markers."""

    def marker(self) -> str:
        return uuid.uuid4().hex


class UploadsIgnorePrefix(Quirk):
    """ListMultipartUploads lists all of the bucket (chimera 485, S3Mock 192)."""

    def uploads(self, request: Request) -> list[Upload]:
        return [upload for upload in self.memory.uploads.values() if upload.bucket == request.bucket]


def _without(request: Request, *names: str) -> Request:
    """The request without these arguments."""
    changed = replace_request(request, request.headers)
    changed.arguments = {name: value for name, value in request.arguments.items() if name not in names}
    return changed


def replace_request(request: Request, headers: Mapping[str, str]) -> Request:
    """The request with other headers."""
    changed = Request(request.method, request.path, request.query, headers, request.body, request.connection)
    changed.operation = request.operation
    return changed


# -- the form of listings --------------------------------------------------------------------------------


class ApostropheAsEntity(Quirk):
    """In a url-encoded listing the apostrophe comes as ``&apos;`` (Ceph's gateway)."""

    def encode_key(self, key: str) -> str:
        return quote_plus(key, safe="/*'").replace("'", "&apos;")


class AmpersandAsEntity(Quirk):
    """In a url-encoded listing the ampersand comes as ``&amp;`` (SeaweedFS)."""

    def encode_key(self, key: str) -> str:
        return quote_plus(key, safe="/*&").replace("&", "&amp;")


class NumericEntities(Quirk):
    """In a url-encoded listing quotes and ampersands come as numeric entities."""

    def encode_key(self, key: str) -> str:
        text = quote_plus(key, safe="/*&'\"")
        return re.sub("[&'\"]", lambda found: f"&#{ord(found[0])};", text).replace("&#39;", "&#x27;")


class EncodingIgnored(Quirk):
    """Keys are not url-encoded, whatever was asked for."""

    def encodes(self, request: Request) -> bool:
        return False


class SpacesAsPercent(Quirk):
    """In a url-encoded listing a space comes as ``%20``, and slashes are encoded as well."""

    def encode_key(self, key: str) -> str:
        return quote_plus(key).replace("+", "%20")


class Rfc1123Times(Quirk):
    """LastModified comes as in an HTTP header (s3rver 181)."""

    def write_time(self, modified: float) -> str:
        return formatdate(modified, usegmt=True)


class TimesWithOffset(Quirk):
    """LastModified comes with an offset from UTC and without a fraction."""

    def write_time(self, modified: float) -> str:
        return datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds")


class ListingWithoutEtags(Quirk):
    """Rows of a listing have no ETag."""

    def write_etag(self, row: Row) -> str:
        return ""


class EtagWithLineBreak(Quirk):
    """An ETag in a listing holds CR and LF, and what would be a header behind them."""

    def write_etag(self, row: Row) -> str:
        return f"<ETag>&quot;{row.etag}&#13;&#10;x-injected: yes&quot;</ETag>"


class PrettyPrinted(Quirk):
    """Answers in XML have line breaks and indents between the elements."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if answer.headers.get("Content-Type") == "application/xml":
            answer.body = re.sub(rb"><(?=[A-Z/])", b">\n    <", bytes(answer.body))
        return answer


class _Rewritten(Quirk):
    """Listings are written in another form of XML."""

    def rewrite(self, text: str) -> str:
        """The listing as it is sent."""
        return text

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation in LISTINGS and answer.status == 200:
            answer.body = self.rewrite(bytes(answer.body).decode()).encode()
        return answer


class CdataKeys(_Rewritten):
    """Keys in a listing come as CDATA."""

    def rewrite(self, text: str) -> str:
        return re.sub("<Key>(.*?)</Key>", lambda key: f"<Key><![CDATA[{key[1]}]]></Key>", text)


class TagsWithAttributes(_Rewritten):
    """Elements of a listing have attributes."""

    def rewrite(self, text: str) -> str:
        return re.sub("<(Key|Size|ETag|LastModified|Contents)>", r'<\1 type="x">', text)


class NamespacePrefixes(_Rewritten):
    """Elements of a listing have a namespace prefix."""

    def rewrite(self, text: str) -> str:
        return re.sub("<(/?)([A-Z])", r"<\1s3:\2", text).replace(" xmlns=", " xmlns:s3=")


class OwnersListed(_Rewritten):
    """Each object of a listing has its owner, whose name looks like a key."""

    def rewrite(self, text: str) -> str:
        owner = "<Owner><ID>1</ID><DisplayName>Key&gt;x&lt;/Key</DisplayName></Owner>"
        return text.replace(
            "<StorageClass>", f"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>{owner}<StorageClass>"
        )


class TimesMissing(_Rewritten):
    """Objects of a listing have no LastModified."""

    def rewrite(self, text: str) -> str:
        return re.sub("<LastModified>.*?</LastModified>", "", text)


class TimesDamaged(_Rewritten):
    """LastModified of a listing is no time."""

    def rewrite(self, text: str) -> str:
        return re.sub("<LastModified>.*?</LastModified>", "<LastModified>yesterday</LastModified>", text)


class SizesMissing(_Rewritten):
    """Objects of a listing have no Size."""

    def rewrite(self, text: str) -> str:
        return re.sub("<Size>.*?</Size>", "", text)


class _OtherSizes(Quirk):
    """One object in ten is listed with a wrong size."""

    def size(self, row: Row) -> int:
        """The size that is listed."""
        return row.size

    def rows(self, request: Request) -> list[Row]:
        return [
            replace(row, size=self.size(row)) if number % 10 == 9 and row.size else row
            for number, row in enumerate(super().rows(request))
        ]


class SizesListedAsZero(_OtherSizes):
    """One object in ten is listed with a size of 0 (noobaa-core 7705: all are)."""

    def size(self, row: Row) -> int:
        return 0


class SizesListedSmaller(_OtherSizes):
    """One object in ten is listed as one byte smaller than it is."""

    def size(self, row: Row) -> int:
        return row.size - 1


class SizesListedLarger(_OtherSizes):
    """One object in ten is listed as one byte larger than it is."""

    def size(self, row: Row) -> int:
        return row.size + 1


class ListingErrorIn200(Quirk):
    """The first listings are answered with status 200 and an error."""

    times = 2

    def intercept(self, request: Request) -> Answer | None:
        if request.operation in LISTINGS and self.happens(self.times):
            return Answer(
                200, {"Content-Type": "application/xml"}, error_xml("SlowDown", "Reduce your rate", request)
            )
        return None


# -- ETags -----------------------------------------------------------------------------------------------


class RandomEtags(Quirk):
    """ETags are 32 hexadecimal digits and no MD5 (minio 20520, S3 Express)."""

    def etag(self, body: bytes) -> str:
        return uuid.uuid4().hex


class UuidEtags(Quirk):
    """ETags are UUIDs."""

    def etag(self, body: bytes) -> str:
        return str(uuid.uuid4())


class UppercaseEtags(Quirk):
    """ETags are MD5s in upper case."""

    def etag(self, body: bytes) -> str:
        return md5_hex(body).upper()


class MultipartEtags(Quirk):
    """Every ETag looks as after a multipart upload."""

    def etag(self, body: bytes) -> str:
        return f"{md5_hex(body)}-1"


class _RewrittenEtags(Quirk):
    """ETags are written in another form everywhere."""

    form = '"{}"'

    def finish(self, request: Request, answer: Answer) -> Answer:
        if "ETag" in answer.headers:
            answer.headers["ETag"] = self.form.format(answer.headers["ETag"].strip('"'))
        if answer.headers.get("Content-Type") == "application/xml":
            text = bytes(answer.body).decode()
            found = re.compile(r"<ETag>(?:&quot;)?([^<&]*)(?:&quot;)?</ETag>")
            written = found.sub(lambda one: f"<ETag>{escape(self.form.format(one[1]))}</ETag>", text)
            answer.body = written.encode()
        return answer


class UnquotedEtags(_RewrittenEtags):
    """ETags come without quotes, also as headers (rclone)."""

    form = "{}"


class WeakEtags(_RewrittenEtags):
    """ETags come as weak ones, ``W/"…"``."""

    form = 'W/"{}"'

    def answer(self, request: Request) -> Answer:
        headers = {
            name: value.removeprefix("W/").removeprefix('"W/') if name in CONDITIONS else value
            for name, value in request.headers.items()
        }
        return super().answer(replace_request(request, headers))


class ListedEtagsDiffer(Quirk):
    """A listing has other ETags than GET and HEAD."""

    def write_etag(self, row: Row) -> str:
        return super().write_etag(replace(row, etag=md5_hex(row.etag.encode())))


class PutWithoutEtag(Quirk):
    """The answer to a PUT has no ETag."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "PutObject":
            answer.headers.pop("ETag", None)
        return answer


# -- checksums -------------------------------------------------------------------------------------------


class ChecksumEchoed(Quirk):
    """Checksums that come with a body are kept unread and answered."""

    def check_checksums(self, request: Request) -> None:
        return


class ChecksumEchoedBodyDamaged(ChecksumEchoed):
    """The same, and the first parts are stored with a damaged byte; their MD5 is of what was stored."""

    times = 1

    def store(
        self, request: Request, key: str, body: bytes, checksums_: Mapping[str, str], headers: Mapping[str, str],
        etag: str | None = None,
    ) -> StoredObject:  # fmt: skip
        if "/part-" in key and body and self.happens(self.times):
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return super().store(request, key, body, checksums_, headers, etag)


class NoChecksums(ChecksumEchoed):
    """The server knows no checksums: they are neither read nor answered."""

    def checksum_headers(self, kept: StoredObject) -> dict[str, str]:
        return {}

    def copy_result(self, etag: str, modified: float, sums: Mapping[str, str]) -> str:
        return super().copy_result(etag, modified, {})


class ProbeExpired(ChecksumEchoed):
    """Checksums are echoed; the first PUTs of a wrong one are refused for another reason."""

    times = 1
    code = "ExpiredToken"

    def put_object(self, request: Request) -> Answer:
        stated = stated_checksums(request)
        wrong = any(value != checksum(name, request.body) for name, value in stated.items())
        if wrong and self.happens(self.times):
            raise S3Error(400, self.code, "This has nothing to do with the checksum")
        return super().put_object(request)


class ProbeTimesOut(ProbeExpired):
    """The same with RequestTimeout."""

    code = "RequestTimeout"


class ProbeRefused(ProbeExpired):
    """Every PUT of a wrong checksum is refused with a code that has nothing to do with it."""

    times = 10**6
    code = "InvalidArgument"


class WrongChecksumOtherCode(Quirk):
    """A wrong checksum is refused with MinIO's code."""

    def wrong_checksum(self, algorithm: str) -> S3Error:
        return S3Error(
            400, "XAmzContentChecksumMismatch", "The provided 'x-amz-checksum' header does not match"
        )


class DamagedChecksumHeader(Quirk):
    """The checksum of an object is no base64."""

    value = "not*base64"

    def checksum_headers(self, kept: StoredObject) -> dict[str, str]:
        return dict.fromkeys((f"x-amz-checksum-{name}" for name in kept.checksums), self.value)


class ShortChecksumHeader(DamagedChecksumHeader):
    """The checksum of an object is too short."""

    value = "AAAA"


class WrongChecksumStated(Quirk):
    """The checksum that is stated of an object is another one's."""

    def checksum_headers(self, kept: StoredObject) -> dict[str, str]:
        return {f"x-amz-checksum-{name}": checksum(name, kept.body + b"?") for name in kept.checksums}


class ChecksumWanted(Quirk):
    """A PUT without a checksum is refused, as in a bucket with Object Lock."""

    def intercept(self, request: Request) -> Answer | None:
        if request.operation in ("PutObject", "UploadPart") and not (
            "content-md5" in request.headers or stated_checksums(request)
        ):
            raise S3Error(
                400, "InvalidRequest",
                "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock "
                "parameters",
            )  # fmt: skip
        return None


class ChecksumHeaderInvalid(NoChecksums):
    """Headers of checksums are refused (Backblaze B2, cyberduck 16107)."""

    status = 400
    code = "InvalidArgument"
    message = "Unsupported header '{}' received for this API call."
    allowed: Sequence[str] = ("x-amz-checksum-mode",)

    def intercept(self, request: Request) -> Answer | None:
        for name in request.headers:
            if name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-")) and name not in self.allowed:
                raise S3Error(self.status, self.code, self.message.format(name))
        return None


class ChecksumHeaderNotImplemented(ChecksumHeaderInvalid):
    """The same as Cloudflare's R2 does it (icechunk PR 1999)."""

    status = 501
    code = "NotImplemented"
    message = "Header '{}' with value 'CRC64NVME' not implemented"


class ChecksumModeInvalid(ChecksumHeaderInvalid):
    """Headers of checksums are refused, also the one that asks a GET or HEAD for them."""

    allowed = ()


# -- operations that are missing, or fail now and then ---------------------------------------------------


class _Refused(Quirk):
    """Some operations are refused."""

    operations: Sequence[str] = ()
    status = 501
    code = "NotImplemented"

    def intercept(self, request: Request) -> Answer | None:
        if request.operation in self.operations:
            raise S3Error(self.status, self.code, f"{request.operation} is not supported")
        return None


class UploadsNotImplemented(_Refused):
    """ListMultipartUploads is answered with 501 (localbucket, s3rver)."""

    operations = ("ListMultipartUploads",)


class CopyNotImplemented(_Refused):
    """Copies are answered with 501."""

    operations = ("CopyObject", "UploadPartCopy")


class CopyNotAllowed(CopyNotImplemented):
    """Copies are answered with 405."""

    status = 405
    code = "MethodNotAllowed"


class DeleteObjectsNotImplemented(_Refused):
    """DeleteObjects is answered with 501 (localbucket)."""

    operations = ("DeleteObjects",)


class DeleteObjectsNotAllowed(DeleteObjectsNotImplemented):
    """DeleteObjects is answered with 405."""

    status = 405
    code = "MethodNotAllowed"


class DeleteObjectsNoSuchKey(DeleteObjectsNotImplemented):
    """DeleteObjects is answered with 404, as an address that does not exist."""

    status = 404
    code = "NoSuchKey"


class DeleteObjectsWantsMd5(Quirk):
    """DeleteObjects needs a Content-MD5 (OpenStack Swift)."""

    def delete_objects(self, request: Request) -> Answer:
        if "content-md5" not in request.headers:
            raise S3Error(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
        return super().delete_objects(request)


class KeyDeleteFails(Quirk):
    """DeleteObjects answers 200 with an InternalError for one key, the first times (boto3 3052)."""

    times = 2
    code = "InternalError"

    def delete_one(self, objects: dict[str, StoredObject], key: str, etag: str | None) -> None:
        if self.happens(self.times):
            raise S3Error(500, self.code, "We encountered an internal error. Please try again.")
        super().delete_one(objects, key, etag)


class KeyDeleteSlowsDown(KeyDeleteFails):
    """The same with SlowDown (aws-sdk-java 1307)."""

    code = "SlowDown"


class DeleteOfMissingFails(Quirk):
    """To delete what is not there is answered with 404."""

    def delete_object(self, request: Request) -> Answer:
        self.find(request)
        return super().delete_object(request)

    def delete_one(self, objects: dict[str, StoredObject], key: str, etag: str | None) -> None:
        if key not in objects:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
        super().delete_one(objects, key, etag)


class CopyHeaderIgnored(Quirk):
    """A server that does not know copies stores the empty body of the request."""

    def copy_object(self, request: Request) -> Answer:
        return self.put_object(request)

    def upload_part_copy(self, request: Request) -> Answer:
        return self.upload_part(request)


class CopyErrorIn200(Quirk):
    """The first copies are answered with status 200 and an error, as S3 does where it fails under way."""

    times = 2

    def copy_object(self, request: Request) -> Answer:
        if self.happens(self.times):
            return Answer(
                200, {"Content-Type": "application/xml"}, error_xml("InternalError", "Try again", request)
            )
        return super().copy_object(request)


class CopyAlwaysFails(CopyErrorIn200):
    """The same for all copies."""

    times = 10**6


class CopyCutShort(Quirk):
    """A copy holds half of its source."""

    def copy_source(self, request: Request) -> StoredObject:
        kept = super().copy_source(request)
        return replace(kept, body=kept.body[: len(kept.body) // 2])


class PartsLost(Quirk):
    """The first PUTs of parts are answered with 200, and nothing is stored."""

    times = 1

    def put_object(self, request: Request) -> Answer:
        before = self.objects(request).get(request.key)
        answer = super().put_object(request)
        if "/part-" in request.key and self.happens(self.times):
            if before is None:
                del self.objects(request)[request.key]
            else:
                self.objects(request)[request.key] = before
        return answer


class CopyIgnoresCondition(Quirk):
    """A copy does not look at x-amz-copy-source-if-match (rclone, moto)."""

    def copy_source(self, request: Request) -> StoredObject:
        headers = {name: value for name, value in request.headers.items() if name not in CONDITIONS}
        return super().copy_source(replace_request(request, headers))


class ArchivedAnswers400(Quirk):
    """To read an archived object is answered with 400 (moto 3224); AWS answers 403."""

    def check_not_archived(self, kept: StoredObject) -> None:
        if kept.storage_class in ARCHIVED:
            raise S3Error(
                400, "InvalidObjectState", "The operation is not valid for the object's storage class"
            )


class TemporaryRedirect(Quirk):
    """The first requests are answered with 307, as for a bucket that was made just now."""

    times = 3
    status = 307
    code = "TemporaryRedirect"

    def intercept(self, request: Request) -> Answer | None:
        if request.bucket and self.happens(self.times):
            query = f"?{request.query}" if request.query else ""
            headers = {"Location": f"http://{request.headers.get('host', '')}{request.path}{query}"}
            raise S3Error(
                self.status, self.code, "Please re-send this request to the specified endpoint", headers
            )
        return None


class RedirectsForEver(TemporaryRedirect):
    """Every request is answered with a 307 to itself."""

    times = 10**6


class RegionsInCircles(Quirk):
    """Every request is sent on to another region, without end."""

    regions = ("eu-central-1", "us-west-2")

    def intercept(self, request: Request) -> Answer | None:
        self.happened += 1
        region = self.regions[self.happened % 2]
        raise S3Error(301, "PermanentRedirect", "Use another endpoint", {"x-amz-bucket-region": region})


class BusyInHtml(Quirk):
    """The first requests of each kind are answered with 503 and a page in HTML, as by a load balancer."""

    times = 1

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: dict[str, int] = {}

    def intercept(self, request: Request) -> Answer | None:
        self.seen[request.operation] = self.seen.get(request.operation, 0) + 1
        if self.seen[request.operation] > self.times:
            return None
        # A time instead of seconds, which HTTP allows.
        headers = {"Content-Type": "text/html", "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
        return Answer(503, headers, b"<html><h1>503 Service Unavailable</h1></html>")


# -- conditions ------------------------------------------------------------------------------------------


class ConditionsIgnored(Quirk):
    """If-Match and its kin have no effect (rclone)."""

    def answer(self, request: Request) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name not in CONDITIONS}
        return super().answer(replace_request(request, headers))


class IfMatchFails(Quirk):
    """A GET with If-Match is always answered with 412."""

    def intercept(self, request: Request) -> Answer | None:
        if request.operation == "GetObject" and "if-match" in request.headers:
            raise S3Error(412, "PreconditionFailed")
        return None


class ConditionalWritesNotImplemented(Quirk):
    """A PUT or DELETE with a condition is answered with 501."""

    def intercept(self, request: Request) -> Answer | None:
        if request.method in ("PUT", "DELETE", "POST") and request.headers.keys() & {
            "if-match",
            "if-none-match",
        }:
            raise S3Error(501, "NotImplemented", "Conditional writes are not supported")
        return None


# -- signatures and time ---------------------------------------------------------------------------------


class SignaturesChecked(Quirk):
    """Signatures are checked."""

    def host(self, request: Request) -> str:
        """What the server takes the Host header for."""
        return request.headers.get("host", "")

    def intercept(self, request: Request) -> Answer | None:
        if not is_signed(request, self.secret_key, self.host(request)):
            raise S3Error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")
        return None


class DefaultPortDropped(SignaturesChecked):
    """Signatures are checked with a Host from which ``:80`` or ``:443`` was dropped (aws-cli 2883)."""

    def host(self, request: Request) -> str:
        return re.sub(":(80|443)$", "", super().host(request))


class RequestsExpire(Quirk):
    """A request that was signed more than some seconds ago is refused; GETs of raw objects take their time."""

    seconds = 3.0
    delay_seconds = 0.0

    def intercept(self, request: Request) -> Answer | None:
        signed = signed_at(request)
        if signed is None or time.time() - signed.timestamp() > self.seconds:
            raise S3Error(
                403, "RequestTimeTooSkewed", "The difference between the request time and ours is too large"
            )
        return None

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "GetObject" and request.key.startswith("raw/"):
            answer.delay_seconds = self.delay_seconds
        return answer


# -- HTTP ------------------------------------------------------------------------------------------------


class TlsClosedInHandshake(Quirk):
    """The first TLS connections are closed when the client has said hello (a load balancer that restarts)."""

    times = 3

    def closes_handshake(self) -> bool:
        return self.happens(self.times)


class HeadsByteByByte(Quirk):
    """Heads of answers come one byte at a time, each in a TLS record of its own."""

    piece_bytes = 1


class GzipUnpacked(Quirk):
    """An object with Content-Encoding gzip is unpacked unless the client wants its identity (GCS, R2)."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        wants = request.headers.get("accept-encoding", "")
        if (
            request.operation == "GetObject"
            and answer.headers.get("content-encoding") == "gzip"
            and "identity" not in wants
        ):
            answer.body = gzip.decompress(answer.body)
            answer.chunked = True
            del answer.headers["content-encoding"]
        return answer


class HeadWithoutLength(Quirk):
    """A HEAD of an empty object has no Content-Length (supabase storage 1388)."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "HeadObject" and answer.length == 0:
            answer.stated = False
        return answer


class RangeIgnored(Quirk):
    """A GET with a Range is answered with the whole object."""

    def span(self, request: Request, size: int) -> tuple[int, int] | None:
        return None


class BodyCutShort(Quirk):
    """Every so many GETs the connection ends in the midst of the body."""

    every = 9

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "GetObject":
            self.happened += 1
            if self.happened % self.every == 0:
                answer.sent_bytes = len(answer.body) // 2
        return answer


class ChunkedAnswers(Quirk):
    """Every answer with a body comes in chunks, without a Content-Length."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.chunked = bool(answer.body)
        return answer


class LengthNotStated(Quirk):
    """Every answer with a body ends with the connection, without a Content-Length."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.stated = not answer.body
        return answer


class ConnectionsClosed(Quirk):
    """The server closes each connection behind its answer, and says so."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.close = True
        return answer


class ConnectionsClosedSilently(Quirk):
    """The server closes each connection behind its answer without a word."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.sent_bytes = len(answer.body)
        return answer


class WithoutDate(Quirk):
    """Answers have no Date."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.date = ""
        return answer


class DamagedDate(Quirk):
    """The Date of answers is no date."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.date = "yesterday"
        return answer


class Http10(Quirk):
    """The server speaks HTTP/1.0: a connection for each request."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.version = "HTTP/1.0"
        return answer


class InterimAnswers(Quirk):
    """A 100 Continue that was not asked for comes before every answer."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        return answer


class SlowAnswers(Quirk):
    """Every answer takes its time, some of them longer."""

    delay_seconds = 0.01
    every = 20
    longer_seconds = 0.2

    def finish(self, request: Request, answer: Answer) -> Answer:
        self.happened += 1
        answer.delay_seconds = self.longer_seconds if self.happened % self.every == 0 else self.delay_seconds
        return answer


def _all(base: type[Quirk]) -> list[type[Quirk]]:
    found = [] if base.__name__.startswith("_") or base is Quirk else [base]
    for one in base.__subclasses__():
        found += _all(one)
    return found


QUIRKS: Mapping[str, type[Quirk]] = {quirk.name: quirk for quirk in _all(Quirk)}
"""Every quirk by its name."""
