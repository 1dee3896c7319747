"""Each quirk of the server with quirks changes the behaviour that it names.

That the server behaves as S3 without a quirk is tested by whole hours, in test_quirks.
"""

import base64
import gzip
import http.client
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from awscrt.checksums import crc64nvme
from botocore.exceptions import ClientError

from dev.servers import S3Client, plain_client
from tests.support.quirks.catalog import QUIRKS
from tests.support.quirks.process import QuirkServer, Seen

BUCKET = "bucket"
KEYS = (
    "a",
    "a/",
    "a/b",
    "a/c/d",
    "a-b/e",
    "a.log",
    "b/f",
    "it's & so + on %41.log",
    "ü/\U0001f600",
    "ü/\uff5e",
)


@pytest.fixture(scope="module")
def quirk_process() -> Iterator[QuirkServer]:
    """One process for all tests of this file."""
    with QuirkServer() as server:
        yield server


@pytest.fixture
def server(quirk_process: QuirkServer) -> QuirkServer:
    """A server with an empty bucket and no quirk."""
    quirk_process.reset()
    quirk_process.put(BUCKET, {})
    return quirk_process


@pytest.fixture
def client(server: QuirkServer) -> S3Client:
    """A plain boto3 client."""
    return server.client()


def error_of(call: Callable[[], Any]) -> tuple[int, str]:
    """Status and code of the error that a call of boto3 raises."""
    with pytest.raises(ClientError) as caught:
        call()
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def listed(client: S3Client, **arguments: Any) -> list[str]:
    """All keys as boto3's paginator lists them."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, **arguments)
    return [row["Key"] for page in pages for row in page.get("Contents", ())]


def crc_header(body: bytes) -> str:
    return base64.b64encode(crc64nvme(body).to_bytes(8, "big")).decode()


# -- without a quirk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32", "CRC32C"])
def test_wrong_checksum_is_a_bad_digest(client: S3Client, algorithm: str) -> None:
    right = client.put_object(Bucket=BUCKET, Key="k", Body=b"body", ChecksumAlgorithm=algorithm)
    name = f"Checksum{algorithm}"

    def put(value: str) -> Any:
        return client.put_object(Bucket=BUCKET, Key="k2", Body=b"other", **{name: value})

    assert error_of(lambda: put(right[name])) == (400, "BadDigest")
    assert error_of(lambda: put("AAA=")) == (400, "InvalidRequest")
    assert listed(client) == ["k"]
    assert name in client.head_object(Bucket=BUCKET, Key="k", ChecksumMode="ENABLED")


def test_objects_are_written_and_read_without_s3(server: QuirkServer, client: S3Client) -> None:
    given: dict[str, bytes | Seen] = {
        "a": Seen(b"1", "mine", 1e9, {"x-amz-meta-a": "b"}),
        "b": b"22",
        "c": b"",
    }
    server.put(BUCKET, given)
    row = client.list_objects_v2(Bucket=BUCKET)["Contents"][0]
    assert (row["ETag"], row["LastModified"].timestamp()) == ('"mine"', 1e9)
    assert {key: seen.body for key, seen in server.objects(BUCKET).items()} == {
        "a": b"1",
        "b": b"22",
        "c": b"",
    }
    server.remove(BUCKET, ["a", "c"])
    assert listed(client) == ["b"]


def test_requests_are_logged_with_their_outcome(server: QuirkServer, client: S3Client) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"", IfNoneMatch="*")
    error_of(lambda: client.get_object(Bucket=BUCKET, Key="none"))
    first, second = server.requests()
    assert (first["operation"], first["key"], first["status"]) == ("PutObject", "k", 200)
    assert first["headers"]["if-none-match"] == "*"
    assert (second["operation"], second["status"], second["error"]) == ("GetObject", 404, "NoSuchKey")
    server.forget_requests()
    assert server.requests() == []


def test_unknown_quirks_and_settings_are_refused(server: QuirkServer) -> None:
    with pytest.raises(ValueError, match="no quirk 'none-such'"):
        server.choose("none-such")
    with pytest.raises(ValueError, match="no setting 'colour'"):
        server.choose("slow-answers", colour="red")


# -- with quirks -----------------------------------------------------------------------------------------


def test_every_quirk_is_documented_and_can_be_chosen(server: QuirkServer) -> None:
    assert len(QUIRKS) > 80
    for name, quirk in QUIRKS.items():
        assert quirk.__doc__
        server.choose(name)
        assert server.state()["quirk"] == name


# What boto3's paginator lists with each quirk, of 30 keys of which page 2 begins with the eleventh.
LISTED = {
    "folder-listed-twice": "more",
    "key-listed-twice": "more",
    "key-listed-with-two-etags": "more",
    "page-begins-with-last-key": "more",
    "folder-by-folder": "all",
    "files-before-folders": "all",
    "newest-first": "all",
    "start-after-in-tree": "all",
    "start-after-ignored": "all",
    "some-empty-pages": "all",
    "max-keys-ignored": "all",
    "neighbour-listed": "more",
    "prefix-ignored": "more",
    "key-skipped-between-pages": "fewer",
    "truncated-missing": "fewer",
    "truncated-false-with-token": "fewer",
    "encoding-ignored": "all",
    "apostrophe-as-entity": "all",
    "ampersand-as-entity": "all",
    "numeric-entities": "all",
    "spaces-as-percent": "all",
    "rfc1123-times": "all",
    "times-with-offset": "all",
    "pretty-printed": "all",
}


@pytest.mark.parametrize(("quirk", "outcome"), LISTED.items())
def test_quirks_of_listings_show_in_boto3(
    server: QuirkServer, client: S3Client, quirk: str, outcome: str
) -> None:
    keys = [f"in/{folder}{number}.log" for folder in ("a/", "a-b/", "it's & so/") for number in range(9)]
    made = dict.fromkeys(keys, b"x") | {"in/a/": b"", "in/z.log": b"z", "in/": b""}
    server.put(BUCKET, made | {"out": b"x"})
    server.choose(quirk)
    if quirk == "max-keys-ignored":
        assert client.list_objects_v2(Bucket=BUCKET, Prefix="in/", MaxKeys=10)["KeyCount"] == len(made)
    found = listed(client, Prefix="in/", PaginationConfig={"PageSize": 10})
    got = {
        "all": sorted(found) == sorted(made),
        "more": len(found) > len(made),
        "fewer": len(found) < len(made),
    }
    assert got[outcome]


def test_endless_listings_have_no_end(server: QuirkServer, client: S3Client) -> None:
    server.put(BUCKET, dict.fromkeys((f"{number:02}" for number in range(30)), b"x"))
    for quirk in ("page-repeats", "empty-pages", "token-repeats"):
        server.choose(quirk)
        token: dict[str, str] = {}
        for _ in range(20):
            page = client.list_objects_v2(Bucket=BUCKET, MaxKeys=10, **token)
            assert page["IsTruncated"]
            token = {"ContinuationToken": page["NextContinuationToken"]}


def test_etag_quirks_give_etags_other_than_md5(server: QuirkServer, client: S3Client) -> None:
    md5 = client.put_object(Bucket=BUCKET, Key="k", Body=b"x")["ETag"]
    for quirk in (
        "random-etags",
        "uuid-etags",
        "uppercase-etags",
        "multipart-etags",
        "unquoted-etags",
        "weak-etags",
    ):
        server.choose(quirk)
        etag = client.put_object(Bucket=BUCKET, Key="k", Body=b"x")["ETag"]
        assert etag != md5
        assert client.list_objects_v2(Bucket=BUCKET)["Contents"][0]["ETag"] == etag
        assert client.get_object(Bucket=BUCKET, Key="k", IfMatch=etag)["ETag"] == etag


def test_echoed_checksums_are_not_checked(server: QuirkServer, client: S3Client) -> None:
    wrong = crc_header(b"other")
    for quirk in ("checksum-echoed", "checksum-echoed-body-damaged"):
        server.choose(quirk)
        client.put_object(Bucket=BUCKET, Key="x/part-0", Body=b"body", ChecksumCRC64NVME=wrong)
        head = client.head_object(Bucket=BUCKET, Key="x/part-0", ChecksumMode="ENABLED")
        assert head["ChecksumCRC64NVME"] == wrong
    assert server.objects(BUCKET)["x/part-0"].body != b"body"
    for quirk, code in (("probe-expired", "ExpiredToken"), ("probe-times-out", "RequestTimeout")):
        server.choose(quirk)

        def put() -> Any:
            return client.put_object(Bucket=BUCKET, Key="k", Body=b"body", ChecksumCRC64NVME=wrong)

        assert error_of(put) == (400, code)
        assert put()["ChecksumCRC64NVME"] == wrong


def test_signatures_are_checked_where_asked(server: QuirkServer) -> None:
    server.put(BUCKET, {"a b/ü+%41*": b"x"})
    right = server.client()
    wrong = plain_client(server.endpoint_url, "test-access-key", "other")
    server.choose("signatures-checked")
    assert listed(right, Prefix="a b/ü+", StartAfter="a ") == ["a b/ü+%41*"]
    right.put_object(Bucket=BUCKET, Key="a b/ü+%41*", Body=b"y", Metadata={"a": "b  c"})
    assert right.get_object(Bucket=BUCKET, Key="a b/ü+%41*")["Body"].read() == b"y"
    assert error_of(lambda: wrong.list_objects_v2(Bucket=BUCKET)) == (403, "SignatureDoesNotMatch")
    server.choose("requests-expire", seconds=-1.0)
    assert error_of(lambda: right.list_objects_v2(Bucket=BUCKET)) == (403, "RequestTimeTooSkewed")


def test_gzip_is_decompressed_unless_identity_is_requested(server: QuirkServer) -> None:
    packed = gzip.compress(b"text")
    server.put(BUCKET, {"k": Seen(packed, headers={"content-encoding": "gzip"})})
    server.choose("gzip-unpacked")
    for headers, body in (({}, b"text"), ({"Accept-Encoding": "identity"}, packed)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.putrequest("GET", f"/{BUCKET}/k", skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().read() == body
        connection.close()


# A call with each quirk that refuses it the first time, and the answer.
REFUSALS: dict[str, tuple[str, dict[str, Any], tuple[int, str]]] = {
    "uploads-not-implemented": ("list_multipart_uploads", {}, (501, "NotImplemented")),
    "copy-not-implemented": ("copy_object", {"Key": "c", "CopySource": "bucket/k"}, (501, "NotImplemented")),
    "copy-not-allowed": ("copy_object", {"Key": "c", "CopySource": "bucket/k"}, (405, "MethodNotAllowed")),
    "copy-error-in200": ("copy_object", {"Key": "c", "CopySource": "bucket/k"}, (500, "InternalError")),
    "delete-objects-not-implemented": (
        "delete_objects", {"Delete": {"Objects": [{"Key": "k"}]}}, (501, "NotImplemented"),
    ),
    "delete-objects-not-allowed": (
        "delete_objects", {"Delete": {"Objects": [{"Key": "k"}]}}, (405, "MethodNotAllowed"),
    ),
    "delete-objects-wants-md5": (
        "delete_objects", {"Delete": {"Objects": [{"Key": "k"}]}}, (400, "InvalidRequest"),
    ),
    "delete-of-missing-fails": ("delete_object", {"Key": "none"}, (404, "NoSuchKey")),
    "checksum-wanted": ("put_object", {"Key": "k", "Body": b"x"}, (400, "InvalidRequest")),
    "checksum-header-invalid": (
        "put_object", {"Key": "k", "Body": b"x", "ChecksumAlgorithm": "CRC32"}, (400, "InvalidArgument"),
    ),
    "checksum-header-not-implemented": (
        "put_object", {"Key": "k", "Body": b"x", "ChecksumAlgorithm": "CRC32"}, (501, "NotImplemented"),
    ),
    "checksum-mode-invalid": (
        "get_object", {"Key": "k", "ChecksumMode": "ENABLED"}, (400, "InvalidArgument"),
    ),
    "wrong-checksum-other-code": (
        "put_object", {"Key": "k", "Body": b"x", "ChecksumCRC64NVME": "AAAAAAAAAAA="},
        (400, "XAmzContentChecksumMismatch"),
    ),
    "probe-refused": (
        "put_object", {"Key": "k", "Body": b"x", "ChecksumCRC64NVME": "AAAAAAAAAAA="}, (400, "InvalidArgument"),
    ),
    "if-match-fails": ("get_object", {"Key": "k", "IfMatch": "*"}, (412, "PreconditionFailed")),
    "conditional-writes-not-implemented": (
        "put_object", {"Key": "n", "Body": b"x", "IfNoneMatch": "*"}, (501, "NotImplemented"),
    ),
    "archived-answers400": ("get_object", {"Key": "cold"}, (400, "InvalidObjectState")),
    "busy-in-html": ("get_object", {"Key": "k"}, (503, "503")),
    "default-port-dropped": ("get_object", {"Key": "k"}, (200, "")),
}  # fmt: skip


@pytest.mark.parametrize("quirk", REFUSALS)
def test_quirks_refuse_what_they_say(server: QuirkServer, client: S3Client, quirk: str) -> None:
    server.put(BUCKET, {"k": b"body", "cold": Seen(b"cold", storage_class="GLACIER")})
    server.choose(quirk)
    operation, arguments, wanted = REFUSALS[quirk]

    def call() -> Any:
        return getattr(client, operation)(Bucket=BUCKET, **arguments)

    if wanted[0] == 200:
        call()
    else:
        assert error_of(call) == wanted


def test_keys_of_a_delete_fail_the_first_times(server: QuirkServer, client: S3Client) -> None:
    for quirk, code in (("key-delete-fails", "InternalError"), ("key-delete-slows-down", "SlowDown")):
        server.put(BUCKET, {"a": b"", "b": b"", "c": b""})
        server.choose(quirk)
        keys = {"Objects": [{"Key": key} for key in "abc"]}
        errors = client.delete_objects(Bucket=BUCKET, Delete=keys)["Errors"]
        assert [(one["Key"], one["Code"]) for one in errors] == [("a", code), ("b", code)]
        assert "Errors" not in client.delete_objects(Bucket=BUCKET, Delete=keys)


def test_ignored_copy_header_writes_an_empty_object(server: QuirkServer, client: S3Client) -> None:
    server.put(BUCKET, {"k": b"body"})
    server.choose("copy-header-ignored")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("PUT", f"/{BUCKET}/c", headers={"x-amz-copy-source": f"{BUCKET}/k"})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.close()
    assert server.objects(BUCKET)["c"].body == b""


def raw_answer(server: QuirkServer, request: str) -> bytes:
    """What the server sends to a request; ``<closed>`` behind it where it closes the connection then."""
    received = b""
    # A second request right behind it, which is answered only if the connection stays open.
    again = "GET /-/state HTTP/1.1\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(f"{request}\r\nHost: s3\r\nx-amz-checksum-mode: ENABLED\r\n\r\n{again}".encode())
        while piece := connection.recv(65536):
            received += piece
    answer, second, _ = received.rpartition(b"HTTP/1.1 200 OK\r\n")
    return answer if answer and second else received + b"<closed>"


def test_quirks_of_http_show_on_the_wire(server: QuirkServer) -> None:
    server.put(BUCKET, {"empty": b"", "k": b"0123456789"})

    def ask(quirk: str, request: str = "GET /bucket/k HTTP/1.1", **settings: Any) -> bytes:
        server.choose(quirk, **settings)
        return raw_answer(server, request)

    assert b"Content-Length: 0" in ask("no-quirk", "HEAD /bucket/empty HTTP/1.1")
    assert b"Content-Length" not in ask("head-without-length", "HEAD /bucket/empty HTTP/1.1")
    assert b"chunked\r\n" in ask("chunked-answers")
    assert ask("chunked-answers").endswith(b"a\r\n0123456789\r\n0\r\n\r\n")
    assert ask("length-not-stated").endswith(b"\r\n\r\n0123456789<closed>")
    assert b"Connection: close\r\n" in ask("connections-closed")
    assert ask("connections-closed-silently").endswith(b"0123456789<closed>")
    assert ask("body-cut-short", every=1).endswith(b"01234<closed>")
    assert b"Date:" not in ask("without-date")
    assert ask("heads-byte-by-byte").endswith(b"0123456789")
    assert b"x-amz-checksum-crc64nvme: not*base64" in ask("damaged-checksum-header")
    assert b"x-amz-checksum-crc64nvme: AAAA" in ask("short-checksum-header")
    assert b"x-amz-checksum" not in ask("no-checksums")
    assert b"&#13;&#10;x-injected: yes" in ask("etag-with-line-break", "GET /bucket?list-type=2 HTTP/1.1")
    assert b"<ETag>" not in ask("listing-without-etags", "GET /bucket?list-type=2 HTTP/1.1")
    assert b"ETag" not in ask("put-without-etag", "PUT /bucket/empty HTTP/1.1")
    assert b" 200 " in ask("slow-answers", delay_seconds=0.01)
    assert b"<Code>SlowDown</Code>" in ask("listing-error-in200", "GET /bucket?list-type=2 HTTP/1.1")
    assert b"Location: http://s3/bucket/k\r\n" in ask("temporary-redirect", times=1)
    assert b" 200 " in raw_answer(server, "GET /bucket/k HTTP/1.1")
    assert b" 307 " in ask("redirects-for-ever")
    assert b" 307 " in raw_answer(server, "GET /bucket/k HTTP/1.1")
    assert b"x-amz-bucket-region: " in ask("regions-in-circles")
    assert b"0123456789" in ask("range-ignored", "GET /bucket/k HTTP/1.1\r\nRange: bytes=1-2")
    wrong = ask("wrong-checksum-stated")
    assert b"x-amz-checksum-crc64nvme: " in wrong
    assert wrong not in ask("no-quirk")
