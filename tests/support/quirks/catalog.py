"""The quirks. Each is a correct server with one behaviour overridden, and has the name of its class.

A class whose name begins with an underscore is only a base class. Class attributes are the settings of a quirk;
other values can be given when the quirk is selected. The docstring names real servers that behave like this, or a
report of it.
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
        self.occurrences = 0
        """How often the quirk could have occurred, for quirks that count it."""
        for name, value in settings.items():
            if not hasattr(type(self), name):
                raise ValueError(f"the quirk {self.name} has no setting {name!r}")
            setattr(self, name, value)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def is_among_first(self, times: int) -> bool:
        """Count an occurrence; returns whether it is one of the first ``times``."""
        self.occurrences += 1
        return self.occurrences <= times


class NoQuirk(Quirk):
    """A correct server."""


# -- listings that contradict themselves -----------------------------------------------------------------


class _Shuffled(Quirk):
    """Rows in another order or number than in S3; a token is an index of the rows.

    ``start-after`` omits the keys up to it in the order of bytes.
    """

    def order(self, rows: list[Row]) -> list[Row]:
        """The rows in the order of the listing."""
        return rows

    def rows(self, request: Request) -> list[Row]:
        after = self.after(request).encode()
        return self.order([row for row in super().rows(request) if row.key.encode() > after])

    def after(self, request: Request) -> str:
        """The start-after of a request, or of the request that its token comes from."""
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
    """The keys below a folder's placeholder are listed, then listed again (rustfs 2439)."""

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
    """Each key below a folder's placeholder is listed twice in succession."""

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
    """Keys are listed folder by folder, as in a file system (versitygw 1283, storj roadmap 62)."""

    def order(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: row.key.encode().split(b"/"))


class FilesBeforeFolders(_Shuffled):
    """In each folder, objects are listed before subfolders (s3ninja 91)."""

    def order(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: _walk(row.key))


def _walk(key: str) -> list[tuple[bool, str]]:
    """A sort key that puts the objects of a folder before its subfolders."""
    *folders, name = key.split("/")
    return [(True, folder) for folder in folders] + [(False, name)]


class NewestFirst(_Shuffled):
    """Keys are listed in reverse order."""

    def order(self, rows: list[Row]) -> list[Row]:
        return rows[::-1]


class StartAfterIgnored(Quirk):
    """start-after has no effect; tokens work (minio 12611, SeaweedFS)."""

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        return super().start(request, rows) if "continuation-token" in request.arguments else 0


class StartAfterInTree(FolderByFolder):
    """Keys are listed folder by folder, and start-after is relative to that order (versitygw 138)."""

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


class TokenOnLastPage(Quirk):
    """The last page has a token too, which leads to the first page."""

    def page(self, request: Request) -> Page:
        page = super().page(request)
        return page if page.truncated else replace(page, token="first")

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        if request.arguments.get("continuation-token") == "first":
            return 0
        return super().start(request, rows)


class EndNotStated(Quirk):
    """Pages have neither IsTruncated nor a token, and fewer keys than max-keys."""

    def page(self, request: Request) -> Page:
        return replace(super().page(request), truncated=None, token=None)


class DelimiterAssumed(Quirk):
    """Listings without a delimiter are answered as with ``/``: the keys below folders are not listed."""

    def page(self, request: Request) -> Page:
        request = _without(request)
        request.arguments.setdefault("delimiter", "/")
        return super().page(request)


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
    """The first page is returned for every token, each time with a new token."""

    def page(self, request: Request) -> Page:
        page = super().page(request)
        return replace(page, token=uuid.uuid4().hex) if page.truncated else page

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        return 0 if "continuation-token" in request.arguments else super().start(request, rows)


class EmptyPages(Quirk):
    """The first page is followed by empty pages without end, each with a new token."""

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
    """The first key after the prefix is listed as well."""

    def rows(self, request: Request) -> list[Row]:
        rows, every = super().rows(request), super().rows(_without(request, "prefix"))
        after = [row for row in every if rows and row.key.encode() > rows[-1].key.encode()]
        return rows + after[:1]


class MaxKeysIgnored(Quirk):
    """A page contains all keys, whatever max-keys is."""

    def limit(self, request: Request) -> int:
        return 10**9


class KeySkippedBetweenPages(Quirk):
    """The first key after each page is in no page."""

    def start(self, request: Request, rows: Sequence[Row]) -> int:
        return super().start(request, rows) + ("continuation-token" in request.arguments)


class ListVersionIgnored(Quirk):
    """ListObjectsV2 is answered as ListObjects: there are markers, no tokens, and no start-after."""

    def list_objects_v2(self, request: Request) -> Answer:
        known = _without(request, "list-type", "continuation-token", "start-after")
        return self.write_page(known, self.page(known))


class MarkerWithoutTruncation(ListVersionIgnored):
    """The same, and IsTruncated is false."""

    def page(self, request: Request) -> Page:
        return replace(super().page(request), truncated=False)


class ListedWithAnotherStatus(Quirk):
    """Listings are answered with another status of success and a page, as by a proxy that asks to wait."""

    status = 202
    body = "<html>Please wait</html>"

    def list_objects_v2(self, request: Request) -> Answer:
        return Answer(self.status, {"Content-Type": "text/html"}, self.body.encode())


class RawPrefixReplaced(Quirk):
    """Listings of raw objects are an empty one of another prefix, as Prefix says: a cache ignores the query."""

    def list_objects_v2(self, request: Request) -> Answer:
        if request.arguments.get("prefix", "").startswith("raw/"):
            request = _without(request)
            request.arguments["prefix"] = "raw/none/"
        return super().list_objects_v2(request)


class UploadMarkersRepeat(Quirk):
    """ListMultipartUploads returns the same page with the same markers without end."""

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
    """ListMultipartUploads lists all uploads of the bucket (chimera 485, S3Mock 192)."""

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
    """In a url-encoded listing, an apostrophe is ``&apos;`` (Ceph's gateway)."""

    def encode_key(self, key: str) -> str:
        return quote_plus(key, safe="/*'").replace("'", "&apos;")


class AmpersandAsEntity(Quirk):
    """In a url-encoded listing, an ampersand is ``&amp;`` (SeaweedFS)."""

    def encode_key(self, key: str) -> str:
        return quote_plus(key, safe="/*&").replace("&", "&amp;")


class NumericEntities(Quirk):
    """In a url-encoded listing, quotes and ampersands are numeric entities."""

    def encode_key(self, key: str) -> str:
        text = quote_plus(key, safe="/*&'\"")
        return re.sub("[&'\"]", lambda found: f"&#{ord(found[0])};", text).replace("&#39;", "&#x27;")


class EncodingIgnored(Quirk):
    """Keys are not url-encoded, even if it is requested."""

    def encodes(self, request: Request) -> bool:
        return False


class SpacesAsPercent(Quirk):
    """In a url-encoded listing, a space is ``%20``, and slashes are encoded."""

    def encode_key(self, key: str) -> str:
        return quote_plus(key).replace("+", "%20")


class Rfc1123Times(Quirk):
    """LastModified has the format of an HTTP header (s3rver 181)."""

    def write_time(self, modified: float) -> str:
        return formatdate(modified, usegmt=True)


class TimesWithOffset(Quirk):
    """LastModified has an offset from UTC and no fraction."""

    def write_time(self, modified: float) -> str:
        return datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds")


class ListingWithoutEtags(Quirk):
    """Rows of a listing have no ETag."""

    def write_etag(self, row: Row) -> str:
        return ""


class EtagWithLineBreak(Quirk):
    """An ETag in a listing contains CR, LF, and text that looks like a header."""

    def write_etag(self, row: Row) -> str:
        return f"<ETag>&quot;{row.etag}&#13;&#10;x-injected: yes&quot;</ETag>"


class PrettyPrinted(Quirk):
    """XML responses have line breaks and indents between the elements."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if answer.headers.get("Content-Type") == "application/xml":
            answer.body = re.sub(rb"><(?=[A-Z/])", b">\n    <", bytes(answer.body))
        return answer


class _Rewritten(Quirk):
    """Listings have another form of XML."""

    def rewrite(self, text: str) -> str:
        """The listing in that form."""
        return text

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation in LISTINGS and answer.status == 200:
            answer.body = self.rewrite(bytes(answer.body).decode()).encode()
        return answer


class CdataKeys(_Rewritten):
    """Keys in a listing are CDATA."""

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
    """LastModified in a listing is not a time."""

    def rewrite(self, text: str) -> str:
        return re.sub("<LastModified>.*?</LastModified>", "<LastModified>yesterday</LastModified>", text)


class KeyTwiceInRow(_Rewritten):
    """Each row of a listing has its key twice."""

    def rewrite(self, text: str) -> str:
        return re.sub("(<Key>.*?</Key>)", r"\1\1", text)


class TokenTwice(_Rewritten):
    """Each page of a listing has its token twice."""

    def rewrite(self, text: str) -> str:
        return re.sub("(<NextContinuationToken>.*?</NextContinuationToken>)", r"\1\1", text)


class TimesInMilliseconds(_Rewritten):
    """LastModified in a listing is a number of milliseconds since 1970."""

    def rewrite(self, text: str) -> str:
        return re.sub("<LastModified>.*?</LastModified>", "<LastModified>1764000000000</LastModified>", text)


class TimesAtTheEnd(_Rewritten):
    """LastModified in a listing is the last time that can be written with four digits of the year."""

    def rewrite(self, text: str) -> str:
        last = "<LastModified>9999-12-31T23:59:59.999999999Z</LastModified>"
        return re.sub("<LastModified>.*?</LastModified>", last, text)


class SizeImpossible(_Rewritten):
    """The last object of a page has a size that no object has."""

    size = 2**62

    def rewrite(self, text: str) -> str:
        return re.sub(r"<Size>\d+</Size>(?!.*<Size>)", f"<Size>{self.size}</Size>", text)


class SizesMissing(_Rewritten):
    """Objects of a listing have no Size."""

    def rewrite(self, text: str) -> str:
        return re.sub("<Size>.*?</Size>", "", text)


class _OtherSizes(Quirk):
    """One object in ten is listed with a wrong size."""

    def size(self, row: Row) -> int:
        """The size in the listing."""
        return row.size

    def rows(self, request: Request) -> list[Row]:
        return [
            replace(row, size=self.size(row)) if number % 10 == 9 and row.size else row
            for number, row in enumerate(super().rows(request))
        ]


class SizesListedAsZero(_OtherSizes):
    """One object in ten is listed with a size of 0 (noobaa-core 7705: all of them)."""

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
    """The first listings return an error with status 200."""

    times = 2

    def intercept(self, request: Request) -> Answer | None:
        if request.operation in LISTINGS and self.is_among_first(self.times):
            return Answer(
                200, {"Content-Type": "application/xml"}, error_xml("SlowDown", "Reduce your rate", request)
            )
        return None


# -- ETags -----------------------------------------------------------------------------------------------


class RandomEtags(Quirk):
    """ETags have 32 hexadecimal digits and are not MD5s (minio 20520, S3 Express)."""

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
    """ETags have another form everywhere."""

    form = '"{}"'

    def finish(self, request: Request, answer: Answer) -> Answer:
        if "ETag" in answer.headers:
            answer.headers["ETag"] = self.form.format(answer.headers["ETag"].strip('"'))
        if answer.headers.get("Content-Type") == "application/xml":
            text = bytes(answer.body).decode()
            found = re.compile(r"<ETag>(?:&quot;)?([^<&]*)(?:&quot;)?</ETag>")
            written = found.sub(lambda tag: f"<ETag>{escape(self.form.format(tag[1]))}</ETag>", text)
            answer.body = written.encode()
        return answer


class UnquotedEtags(_RewrittenEtags):
    """ETags have no quotes, neither in headers nor in XML (rclone)."""

    form = "{}"


class HeadWithoutEtag(Quirk):
    """The response to a HEAD has no ETag: a proxy removes it."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "HeadObject":
            answer.headers.pop("ETag", None)
        return answer


class WeakEtagsOfHeads(Quirk):
    """The ETags of HEADs are weak, those of other responses are not."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "HeadObject" and "ETag" in answer.headers:
            answer.headers["ETag"] = f"W/{answer.headers['ETag']}"
        return answer


class WeakEtags(_RewrittenEtags):
    """ETags are weak: ``W/"…"``."""

    form = 'W/"{}"'

    def answer(self, request: Request) -> Answer:
        headers = {
            name: value.removeprefix("W/").removeprefix('"W/') if name in CONDITIONS else value
            for name, value in request.headers.items()
        }
        return super().answer(replace_request(request, headers))


class ListedEtagsDiffer(Quirk):
    """Listings have other ETags than GET and HEAD."""

    def write_etag(self, row: Row) -> str:
        return super().write_etag(replace(row, etag=md5_hex(row.etag.encode())))


class PutWithoutEtag(Quirk):
    """The response to a PUT has no ETag."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "PutObject":
            answer.headers.pop("ETag", None)
        return answer


# -- checksums -------------------------------------------------------------------------------------------


class ChecksumEchoed(Quirk):
    """Checksums in headers are stored without a check, and returned."""

    def check_checksums(self, request: Request) -> None:
        return


class ChecksumEchoedBodyDamaged(ChecksumEchoed):
    """Also, the first parts are stored with a damaged byte; their ETag is the MD5 of the damaged body."""

    times = 1

    def store(
        self, request: Request, key: str, body: bytes, checksums_: Mapping[str, str], headers: Mapping[str, str],
        etag: str | None = None,
    ) -> StoredObject:  # fmt: skip
        if "/part-" in key and body and self.is_among_first(self.times):
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return super().store(request, key, body, checksums_, headers, etag)


class NoChecksums(ChecksumEchoed):
    """The server ignores checksums and returns none."""

    def checksum_headers(self, stored: StoredObject) -> dict[str, str]:
        return {}

    def copy_result(self, etag: str, modified: float, sums: Mapping[str, str]) -> str:
        return super().copy_result(etag, modified, {})


class ProbeExpired(ChecksumEchoed):
    """Checksums are echoed; the first PUTs with a wrong one fail for another reason."""

    times = 1
    code = "ExpiredToken"

    def put_object(self, request: Request) -> Answer:
        stated = stated_checksums(request)
        wrong = any(value != checksum(name, request.body) for name, value in stated.items())
        if wrong and self.is_among_first(self.times):
            raise S3Error(400, self.code, "This error is unrelated to the checksum")
        return super().put_object(request)


class ProbeTimesOut(ProbeExpired):
    """The same with RequestTimeout."""

    code = "RequestTimeout"


class ProbeRefused(ProbeExpired):
    """Every PUT with a wrong checksum is refused with an unrelated code."""

    times = 10**6
    code = "InvalidArgument"


class WrongChecksumOtherCode(Quirk):
    """A wrong checksum is refused with the code of MinIO."""

    def wrong_checksum(self, algorithm: str) -> S3Error:
        return S3Error(
            400, "XAmzContentChecksumMismatch", "The provided 'x-amz-checksum' header does not match"
        )


class DamagedChecksumHeader(Quirk):
    """The checksum of an object is not base64."""

    value = "not*base64"

    def checksum_headers(self, stored: StoredObject) -> dict[str, str]:
        return dict.fromkeys((f"x-amz-checksum-{name}" for name in stored.checksums), self.value)


class ShortChecksumHeader(DamagedChecksumHeader):
    """The checksum of an object is too short."""

    value = "AAAA"


class WrongChecksumStated(Quirk):
    """The checksum of an object is that of other bytes."""

    def checksum_headers(self, stored: StoredObject) -> dict[str, str]:
        return {f"x-amz-checksum-{name}": checksum(name, stored.body + b"?") for name in stored.checksums}


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
    """Checksum headers are refused (Backblaze B2, cyberduck 16107)."""

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
    """The same with the error of Cloudflare R2 (icechunk PR 1999)."""

    status = 501
    code = "NotImplemented"
    message = "Header '{}' with value 'CRC64NVME' not implemented"


class ChecksumModeInvalid(ChecksumHeaderInvalid):
    """Checksum headers are refused, also x-amz-checksum-mode of GET and HEAD."""

    allowed = ()


# -- operations that are missing or fail sometimes -------------------------------------------------------


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
    """ListMultipartUploads returns 501 (localbucket, s3rver)."""

    operations = ("ListMultipartUploads",)


class CopyNotImplemented(_Refused):
    """Copies return 501."""

    operations = ("CopyObject", "UploadPartCopy")


class CopyNotAllowed(CopyNotImplemented):
    """Copies return 405."""

    status = 405
    code = "MethodNotAllowed"


class DeleteObjectsNotImplemented(_Refused):
    """DeleteObjects returns 501 (localbucket)."""

    operations = ("DeleteObjects",)


class DeleteObjectsNotAllowed(DeleteObjectsNotImplemented):
    """DeleteObjects returns 405."""

    status = 405
    code = "MethodNotAllowed"


class DeleteObjectsNoSuchKey(DeleteObjectsNotImplemented):
    """DeleteObjects returns 404, as for a URL that does not exist."""

    status = 404
    code = "NoSuchKey"


class DeleteObjectsWantsMd5(Quirk):
    """DeleteObjects requires a Content-MD5 (OpenStack Swift)."""

    def delete_objects(self, request: Request) -> Answer:
        if "content-md5" not in request.headers:
            raise S3Error(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
        return super().delete_objects(request)


class KeyDeleteFails(Quirk):
    """The first keys of DeleteObjects fail with InternalError in a response of status 200 (boto3 3052)."""

    times = 2
    code = "InternalError"

    def delete_one(self, objects: dict[str, StoredObject], key: str, etag: str | None) -> None:
        if self.is_among_first(self.times):
            raise S3Error(500, self.code, "We encountered an internal error. Please try again.")
        super().delete_one(objects, key, etag)


class KeyDeleteSlowsDown(KeyDeleteFails):
    """The same with SlowDown (aws-sdk-java 1307)."""

    code = "SlowDown"


class DeleteOfMissingFails(Quirk):
    """Deleting an object that does not exist returns 404."""

    def delete_object(self, request: Request) -> Answer:
        self.find(request)
        return super().delete_object(request)

    def delete_one(self, objects: dict[str, StoredObject], key: str, etag: str | None) -> None:
        if key not in objects:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
        super().delete_one(objects, key, etag)


class CopyHeaderIgnored(Quirk):
    """The header of a copy is ignored: the empty body of the request is stored."""

    def copy_object(self, request: Request) -> Answer:
        return self.put_object(request)

    def upload_part_copy(self, request: Request) -> Answer:
        return self.upload_part(request)


class CopyErrorIn200(Quirk):
    """The first copies return an error with status 200, as S3 does if a copy fails late."""

    times = 2

    def copy_object(self, request: Request) -> Answer:
        if self.is_among_first(self.times):
            return Answer(
                200, {"Content-Type": "application/xml"}, error_xml("InternalError", "Try again", request)
            )
        return super().copy_object(request)


class CopyAlwaysFails(CopyErrorIn200):
    """All copies return an error with status 200."""

    times = 10**6


class CopyResultPrefixed(Quirk):
    """All elements of the result of a copy have a prefix, with the namespace of S3."""

    def copy_object(self, request: Request) -> Answer:
        answer = super().copy_object(request)
        text = re.sub(rb"<(/?)([A-Z])", rb"<\1s3:\2", bytes(answer.body))
        answer.body = text.replace(b" xmlns=", b" xmlns:s3=")
        return answer


class OddHeads(Quirk):
    """Heads have a name with a space, and Transfer-Encoding: identity (RFC 2616 has it, RFC 9112 has not)."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.headers |= {"x-amz-meta-file name": "x", "Transfer-Encoding": "identity"}
        return answer


class CopyCutShort(Quirk):
    """A copy contains the first half of its source."""

    def copy_source(self, request: Request) -> StoredObject:
        stored = super().copy_source(request)
        return replace(stored, body=stored.body[: len(stored.body) // 2])


class PartsLost(Quirk):
    """The first PUTs of parts return 200, but nothing is stored."""

    times = 1

    def put_object(self, request: Request) -> Answer:
        before = self.objects(request).get(request.key)
        answer = super().put_object(request)
        if "/part-" in request.key and self.is_among_first(self.times):
            if before is None:
                del self.objects(request)[request.key]
            else:
                self.objects(request)[request.key] = before
        return answer


class CopyIgnoresCondition(Quirk):
    """Copies ignore x-amz-copy-source-if-match (rclone, moto)."""

    def copy_source(self, request: Request) -> StoredObject:
        headers = {name: value for name, value in request.headers.items() if name not in CONDITIONS}
        return super().copy_source(replace_request(request, headers))


class ArchivedAnswers400(Quirk):
    """Reading an archived object returns 400 (moto 3224); AWS returns 403."""

    def check_not_archived(self, stored: StoredObject) -> None:
        if stored.storage_class in ARCHIVED:
            raise S3Error(
                400, "InvalidObjectState", "The operation is not valid for the object's storage class"
            )


class TemporaryRedirect(Quirk):
    """The first requests return 307, as for a new bucket."""

    times = 3
    status = 307
    code = "TemporaryRedirect"

    def intercept(self, request: Request) -> Answer | None:
        if request.bucket and self.is_among_first(self.times):
            query = f"?{request.query}" if request.query else ""
            headers = {"Location": f"http://{request.headers.get('host', '')}{request.path}{query}"}
            raise S3Error(
                self.status, self.code, "Please re-send this request to the specified endpoint", headers
            )
        return None


class RedirectsForEver(TemporaryRedirect):
    """Every request returns a 307 to its own URL."""

    times = 10**6


class RegionsInCircles(Quirk):
    """Every request is redirected to another region, without end."""

    regions = ("eu-central-1", "us-west-2")

    def intercept(self, request: Request) -> Answer | None:
        self.occurrences += 1
        region = self.regions[self.occurrences % 2]
        raise S3Error(301, "PermanentRedirect", "Use another endpoint", {"x-amz-bucket-region": region})


class BusyInHtml(Quirk):
    """The first request of each operation returns 503 with an HTML page, as from a load balancer."""

    times = 1

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: dict[str, int] = {}

    def intercept(self, request: Request) -> Answer | None:
        self.seen[request.operation] = self.seen.get(request.operation, 0) + 1
        if self.seen[request.operation] > self.times:
            return None
        # HTTP allows a time instead of seconds.
        headers = {"Content-Type": "text/html", "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
        return Answer(503, headers, b"<html><h1>503 Service Unavailable</h1></html>")


class NotFoundInHtml(Quirk):
    """The first GET, HEAD and LIST of each key return 404 with the page of a load balancer."""

    operations: Sequence[str] = ("GetObject", "HeadObject", "ListObjectsV2")
    status = 404

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: set[tuple[str, str]] = set()

    def intercept(self, request: Request) -> Answer | None:
        if request.operation not in self.operations:
            return None
        call = (request.operation, request.key or request.arguments.get("prefix", ""))
        if call in self.seen:
            return None
        self.seen.add(call)
        return Answer(self.status, {"Content-Type": "text/html"}, b"<html><h1>404 Not Found</h1></html>")


class SuccessInHtml(NotFoundInHtml):
    """The first GET, PUT and copy of each key return 200 with a page, and do nothing."""

    operations = ("GetObject", "PutObject", "CopyObject")
    status = 200


class ConditionalDeletesFail(Quirk):
    """A DELETE with If-Match returns 412 although the condition holds."""

    status = 412

    def intercept(self, request: Request) -> Answer | None:
        if request.method == "DELETE" and "if-match" in request.headers:
            raise S3Error(self.status, "PreconditionFailed", "The condition did not hold")
        return None


class ListingsLate(Quirk):
    """A listing has what is written outside ``raw/`` only after a fifth of a second."""

    def rows(self, request: Request) -> list[Row]:
        latest = time.time() - 0.2
        return [row for row in super().rows(request) if row.key.startswith("raw/") or row.modified <= latest]


class CutWithoutLength(Quirk):
    """Bodies have no length and end with the connection; one GET in nine ends in the middle."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.stated = not answer.body
        if request.operation == "GetObject" and answer.body:
            self.occurrences += 1
            if self.occurrences % 9 == 0:
                answer.sent_bytes = len(answer.body) // 2
        return answer


# -- conditions ------------------------------------------------------------------------------------------


class ConditionsIgnored(Quirk):
    """If-Match and similar conditions are ignored (rclone)."""

    def answer(self, request: Request) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name not in CONDITIONS}
        return super().answer(replace_request(request, headers))


class IfMatchFails(Quirk):
    """A GET with If-Match always returns 412."""

    def intercept(self, request: Request) -> Answer | None:
        if request.operation == "GetObject" and "if-match" in request.headers:
            raise S3Error(412, "PreconditionFailed")
        return None


class ConditionalWritesNotImplemented(Quirk):
    """A PUT or DELETE with a condition returns 501."""

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
        """The value of the Host header that the signature is checked with."""
        return request.headers.get("host", "")

    def intercept(self, request: Request) -> Answer | None:
        if not is_signed(request, self.secret_key, self.host(request)):
            raise S3Error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")
        return None


class DefaultPortDropped(SignaturesChecked):
    """Signatures are checked with a Host without ``:80`` or ``:443`` (aws-cli 2883)."""

    def host(self, request: Request) -> str:
        return re.sub(":(80|443)$", "", super().host(request))


class RequestsExpire(Quirk):
    """A request is refused if its signature is older than some seconds; GETs of raw objects are slow."""

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
    """The first TLS connections are closed after the ClientHello, as by a load balancer that restarts."""

    times = 3

    def closes_handshake(self) -> bool:
        return self.is_among_first(self.times)


class HeadsByteByByte(Quirk):
    """Heads of responses are sent one byte at a time, each in a TLS record of its own."""

    piece_bytes = 1


class GzipUnpacked(Quirk):
    """An object with Content-Encoding gzip is decompressed unless identity is requested (GCS, R2)."""

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
    """The response to a HEAD of an empty object has no Content-Length (supabase storage 1388)."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "HeadObject" and answer.length == 0:
            answer.stated = False
        return answer


class RangeIgnored(Quirk):
    """A GET with a Range returns the whole object."""

    def byte_range(self, request: Request, size: int) -> tuple[int, int] | None:
        return None


class RangeFromStart(NoChecksums):
    """A GET with a Range returns as many bytes from the start of the object, as its Content-Range says."""

    def etag(self, body: bytes) -> str:
        # As after an upload in parts: the ETag proves nothing either.
        return f"{md5_hex(body)}-3"

    def byte_range(self, request: Request, size: int) -> tuple[int, int] | None:
        bounds = super().byte_range(request, size)
        return None if bounds is None else (0, bounds[1] - bounds[0])


class BodyCutShort(Quirk):
    """One GET in nine ends in the middle of its body."""

    every = 9

    def finish(self, request: Request, answer: Answer) -> Answer:
        if request.operation == "GetObject":
            self.occurrences += 1
            if self.occurrences % self.every == 0:
                answer.sent_bytes = len(answer.body) // 2
        return answer


class ChunkedAnswers(Quirk):
    """Bodies are sent in chunks, without a Content-Length."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.chunked = bool(answer.body)
        return answer


class LengthNotStated(Quirk):
    """Bodies end with the connection, without a Content-Length."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.stated = not answer.body
        return answer


class ConnectionsClosed(Quirk):
    """Each connection is closed after one response, which announces it."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.close = True
        return answer


class ConnectionsClosedSilently(Quirk):
    """Each connection is closed after one response, without announcement."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.sent_bytes = len(answer.body)
        return answer


class WithoutDate(Quirk):
    """Responses have no Date."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.date = ""
        return answer


class DamagedDate(Quirk):
    """The Date of responses is not a date."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.date = "yesterday"
        return answer


class HugeDate(Quirk):
    """The year in the Date of responses has twenty digits."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.date = "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"
        return answer


class Http10(Quirk):
    """The server uses HTTP/1.0: a connection for each request."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.version = "HTTP/1.0"
        return answer


class InterimAnswers(Quirk):
    """Every response follows interim responses: 103 as of proxies, 102, and a 100 that was not requested."""

    def finish(self, request: Request, answer: Answer) -> Answer:
        answer.interim = (
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        )
        return answer


class SlowAnswers(Quirk):
    """All responses are slow, and one in twenty is slower."""

    delay_seconds = 0.01
    every = 20
    longer_seconds = 0.2

    def finish(self, request: Request, answer: Answer) -> Answer:
        self.occurrences += 1
        answer.delay_seconds = (
            self.longer_seconds if self.occurrences % self.every == 0 else self.delay_seconds
        )
        return answer


def _all(base: type[Quirk]) -> list[type[Quirk]]:
    found = [] if base.__name__.startswith("_") or base is Quirk else [base]
    for one in base.__subclasses__():
        found += _all(one)
    return found


QUIRKS: Mapping[str, type[Quirk]] = {quirk.name: quirk for quirk in _all(Quirk)}
"""All quirks by name."""
