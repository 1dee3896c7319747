"""The hook as an ObjectStore: on real servers, and on a recorder that answers like servers with quirks."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

import pytest

from dev.servers import RcloneServer, S3Client, S3Server
from include.log_rollup import limits
from include.log_rollup.crc import crc64, to_header
from include.log_rollup.errors import (
    AccessError,
    CutShortError,
    ForeignResponseError,
    InputChangedError,
    MissingBucketError,
    NotFoundError,
    RollupError,
    ThrottledError,
    TooLargeError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import Downloaded, Location, StoredObject, Uploaded
from include.log_rollup.units import MIB
from log_rollup_plugin.s3.error_mapping import is_unreachable
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.s3.transfer import SocketTransfer
from tests.support.raw_hours import put_objects
from tests.support.recorder import ETAG, Recorded, Recorder, like_s3, refuse, respond

HookFactory = Callable[..., PooledS3Hook]


@pytest.fixture
def hook(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> PooledS3Hook:
    """A hook on each of the servers."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_server.airflow_connection_json())
    return PooledS3Hook(aws_conn_id="aws_default", max_connections=3)


@pytest.fixture
def hook_on(monkeypatch: pytest.MonkeyPatch) -> HookFactory:
    """Makes a hook on a recorder: ``hook_on(recorder, attempts=1)``, with so many attempts by botocore."""

    def make(server: Recorder, attempts: int = 1) -> PooledS3Hook:
        config = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": attempts}}
        extra = {"endpoint_url": server.url, "region_name": "eu-central-1", "config_kwargs": config}
        connection = {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_RECORDER", json.dumps(connection))
        monkeypatch.setattr(limits, "DELETE_FIRST_WAIT_SECONDS", 0.001)
        monkeypatch.setattr(limits, "FOREIGN_FIRST_WAIT_SECONDS", 0.001)
        return PooledS3Hook(aws_conn_id="recorder", max_connections=3)

    return make


def keys_of(client: S3Client, bucket: str) -> list[str]:
    """All keys of a bucket, listed without the hook."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [row["Key"] for page in pages for row in page.get("Contents", ())]


def wait_for(transfer: SocketTransfer, results: list[Uploaded | Exception], count: int) -> None:
    """Wait until ``count`` requests have ended."""
    until = time.monotonic() + 30
    while len(results) < count and time.monotonic() < until:
        transfer.wait(1.0)
    assert len(results) == count


# -- real servers ------------------------------------------------------------------------------------------


def test_page_of_a_listing_is_one_request(hook: PooledS3Hook, s3_server: S3Server, bucket: str) -> None:
    put_objects(s3_server.client(), bucket, {f"a/{n}": b"x" * n for n in range(7)})
    place = Location(bucket, "a/")
    first = hook.list_page(place, limit=3)
    assert [row.key for row in first.objects] == ["a/0", "a/1", "a/2"]
    assert first.truncated
    assert first.token
    second = hook.list_page(place, token=first.token, limit=10)
    assert [row.key for row in second.objects] == [f"a/{n}" for n in range(3, 7)]
    assert (second.truncated, second.token) == (False, None)
    after = hook.list_page(place, start_after="a/4")
    assert [row.key for row in after.objects] == ["a/5", "a/6"]
    assert hook.requests["ListObjectsV2"] == 3


def test_listing_with_times_has_folders_and_objects(
    hook: PooledS3Hook, s3_server: S3Server, bucket: str
) -> None:
    put_objects(s3_server.client(), bucket, dict.fromkeys(("a/1", "a/b/2", "a/c/3", "a/d"), b"xy"))
    place = Location(bucket, "a/")
    page = hook.list_times(place, delimiter="/")
    assert ([row.key for row in page.objects], list(page.folders)) == (["a/1", "a/d"], ["a/b/", "a/c/"])
    assert all(abs(datetime.now(UTC) - row.modified) < timedelta(minutes=5) for row in page.objects)
    below = hook.list_times(place, start_after="a/b/2")
    assert [(row.key, row.size) for row in below.objects] == [("a/c/3", 2), ("a/d", 2)]
    assert not below.truncated


def test_small_object_is_written_and_read_with_its_etag(hook: PooledS3Hook, bucket: str) -> None:
    target = Location(bucket, "a/record.json")
    assert hook.read(target) is None
    etag = hook.write(target, b"{}", "application/json")
    assert hook.read(target) == StoredObject(b"{}", etag)
    head = hook.head(target)
    assert head is not None
    assert (head.size, head.etag) == (2, etag)
    assert hook.read_range(target, etag, 1, 1) == b"}"
    assert hook.read(target, limit=2) == StoredObject(b"{}", etag)
    with pytest.raises(TooLargeError, match="larger than 1 bytes"):
        hook.read(target, limit=1)
    # The connection of the unread object was given back.
    assert hook.read(target) is not None


def test_published_object_has_content_and_type_of_its_source(
    hook: PooledS3Hook, s3_server: S3Server, bucket: str
) -> None:
    staged, target = Location(bucket, "a/_rollup/staged"), Location(bucket, "a/_SUCCESS")
    hook.write(staged, b"{}", "application/json")
    hook.publish(staged, target)
    found = hook.read(target)
    assert found is not None
    assert found.body == b"{}"
    stored = s3_server.client().head_object(Bucket=bucket, Key=target.key)
    assert stored["ContentType"] == "application/json"


def test_publishing_a_deleted_object_fails(hook: PooledS3Hook, bucket: str) -> None:
    staged, target = Location(bucket, "a/staged"), Location(bucket, "a/_SUCCESS")
    hook.write(staged, b"{}", "application/json")
    hook.delete(bucket, [staged.key])
    with pytest.raises(NotFoundError):
        hook.publish(staged, target)
    assert hook.read(target) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_deleted_objects_are_gone(hook: PooledS3Hook, s3_server: S3Server, bucket: str, count: int) -> None:
    names = ["a/1", "a/ü&<b>.log", "a/\t\x01", "a/ x+y%20", "a/'\""][:count]
    put_objects(s3_server.client(), bucket, dict.fromkeys([*names, "a/kept"], b"x"))
    hook.delete(bucket, [*names, "a/never-there"])
    assert keys_of(s3_server.client(), bucket) == ["a/kept"]


def test_single_key_is_deleted_by_delete_object(hook: PooledS3Hook, bucket: str) -> None:
    hook.delete(bucket, ["a"])
    assert dict(hook.requests) == {"DeleteObject": 1}


def test_conditional_delete_keeps_a_changed_object(hook: PooledS3Hook, bucket: str) -> None:
    target = Location(bucket, "a/claim.json")
    first = hook.write(target, b"1", "text/plain")
    second = hook.write(target, b"22", "text/plain")
    # rclone ignores the condition.
    if not hook.delete_if(target, first):
        assert hook.read(target) == StoredObject(b"22", second)
        assert hook.delete_if(target, second) is True
    assert hook.read(target) is None
    assert hook.delete_if(target, second) is True


def test_multipart_upload_from_copied_ranges_is_completed(
    hook: PooledS3Hook, s3_server: S3Server, bucket: str
) -> None:
    body = bytes(range(256)) * (6 * MIB // 256)
    source, target = Location(bucket, "raw/large ü.log"), Location(bucket, "out/part")
    put_objects(s3_server.client(), bucket, {source.key: body})
    raw = hook.head(source)
    assert raw is not None
    upload = hook.begin_upload(target, {"x-amz-storage-class": "STANDARD"})
    listed = hook.list_uploads(Location(bucket, "out/"))
    assert listed in ([(target.key, upload)], [])
    parts: list[Uploaded | Exception] = []
    with closing(hook.open_transfer(bucket, bucket)) as transfer:
        for number, (first, last) in enumerate([(0, 5 * MIB - 1), (5 * MIB, len(body) - 1)], 1):
            transfer.copy_range(source, raw.etag, first, last, target, upload, number, parts.append)
            wait_for(transfer, parts, number)
    etags = [part.etag for part in parts if isinstance(part, Uploaded)]
    if len(etags) < 2:
        # rclone has no UploadPartCopy.
        assert isinstance(s3_server, RcloneServer)
        hook.abort_upload(target, upload)
    else:
        hook.finish_upload(target, upload, etags)
        assert s3_server.client().get_object(Bucket=bucket, Key=target.key)["Body"].read() == body
    hook.abort_upload(target, upload)
    assert hook.list_uploads(Location(bucket, "out/")) == []


def test_unchanged_object_is_copied(hook: PooledS3Hook, s3_server: S3Server, bucket: str) -> None:
    source, target = Location(bucket, "raw/ü a+b.log"), Location(bucket, "out/part-00000.log")
    put_objects(s3_server.client(), bucket, {source.key: b"hello"})
    head = hook.head(source)
    assert head is not None
    results: list[Uploaded | Exception] = []
    with closing(hook.open_transfer(bucket, bucket)) as transfer:
        transfer.copy(source, head.etag, target, {}, results.append)
        wait_for(transfer, results, 1)
        transfer.copy(Location(bucket, "raw/gone"), head.etag, target.child("-gone"), {}, results.append)
        wait_for(transfer, results, 2)
    copied = hook.head(target)
    assert copied is not None
    assert [type(result) for result in results] == [Uploaded, NotFoundError]
    assert isinstance(results[0], Uploaded)
    assert results[0].etag == copied.etag


# -- servers with quirks -----------------------------------------------------------------------------------


def fields(request: Recorded) -> dict[str, list[str]]:
    """The fields of a request's query."""
    return parse_qs(request.path.partition("?")[2], keep_blank_values=True)


def test_contradictory_page_is_returned_unchanged(hook_on: HookFactory) -> None:
    """Callers compare what a page states: this one is truncated and has no token."""
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>b</Key><Size>1</Size>"
        b"<LastModified>2026-11-26T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag></Contents>"
        b"<NextContinuationToken></NextContinuationToken></ListBucketResult>"
    )
    with Recorder(lambda _: respond(200, page)) as server:
        found = hook_on(server).list_page(Location("logs", "a/"), start_after="a/z", limit=17)
    assert ([row.key for row in found.objects], found.truncated, found.token) == (["b"], True, None)
    (request,) = server.requests
    asked = fields(request)
    assert (asked["max-keys"], asked["start-after"], asked["prefix"]) == (["17"], ["a/z"], ["a/"])


@pytest.mark.parametrize("status", [200, 202, 204])
def test_listing_answered_by_a_proxy_is_sent_again(hook_on: HookFactory, status: int) -> None:
    listing = respond(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
    body = b"" if status == 204 else b"<html>Please wait</html>"
    answers = [respond(status, body)] * 3 + [listing]
    with Recorder(lambda _: answers.pop(0) if answers else respond(status, body)) as server:
        hook = hook_on(server)
        assert not hook.list_page(Location("logs", "a/")).objects
        assert len(server.requests) == 4
        with pytest.raises(ForeignResponseError, match="LIST s3://logs/a/: the server") as caught:
            hook.list_page(Location("logs", "a/"))
    assert not is_unreachable(caught.value)


def test_upload_without_id_or_etag_is_tried_again(hook_on: HookFactory) -> None:
    with Recorder(lambda _: respond(200, b"<InitiateMultipartUploadResult/>")) as server:
        hook, target = hook_on(server), Location("logs", "k")
        for with_crc in (True, False):
            with pytest.raises(TransientError, match="BEGIN UPLOAD s3://logs/k: the response cannot be read"):
                hook.begin_upload(target, {}, with_crc=with_crc)
        with pytest.raises(TransientError, match=r"PUT s3://logs/k: .* without the ETag of part 1"):
            hook.write_range(target, "id", 1, b"x")


@pytest.mark.parametrize("length", [True, False])
def test_object_above_the_limit_is_not_read(hook_on: HookFactory, length: bool) -> None:
    """Neither if the response has a length, nor if it is chunked."""
    body = bytes(3 * MIB)
    chunks = b"100000\r\n%s\r\n" % bytes(MIB)

    def answer(request: Recorded) -> bytes:
        if request.path.endswith("small"):
            return like_s3(request)
        if length:
            return respond(200, body, f'ETag: "{ETAG}"')
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks * 3 + b"0\r\n\r\n"

    with Recorder(answer) as server, hook_on(server) as hook:
        for _ in range(3):
            with pytest.raises(TooLargeError):
                hook.read(Location("logs", "large"), limit=MIB)
        assert hook.read(Location("logs", "small")) == StoredObject(b"hello", ETAG)


@pytest.mark.parametrize("missing", [0, 1, 99])
def test_etag_of_a_head_is_needed_and_may_be_weak(hook_on: HookFactory, missing: int) -> None:
    left = iter([""] * missing)

    def answer(_: Recorded) -> bytes:
        stated = next(left, f'ETag: W/"{ETAG}"\r\n')
        return f"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{stated}\r\n".encode()

    with Recorder(answer) as server, hook_on(server) as hook:
        if missing == 99:
            with pytest.raises(ForeignResponseError, match="HEAD s3://logs/k: S3 answered without an ETag"):
                hook.head(Location("logs", "k"))
        else:
            head = hook.head(Location("logs", "k"))
            assert head is not None
            assert head.etag == ETAG


@pytest.mark.parametrize("status", [200, 206])
def test_range_of_another_length_is_an_error(hook_on: HookFactory, status: int) -> None:
    """A server that ignores ranges sends the whole object."""
    with (
        Recorder(lambda _: respond(status, b"0123456789", f'ETag: "{ETAG}"')) as server,
        hook_on(server) as hook,
        pytest.raises(TransientError, match="more of 3 bytes came for the range bytes=2-4"),
    ):
        hook.read_range(Location("logs", "k"), ETAG, 2, 3)


def read_into(hook: PooledS3Hook, into: memoryview) -> bytes:
    hook.read_into(Location("logs", "k"), ETAG, 0, into)
    return bytes(into)


READS: Mapping[str, Callable[[PooledS3Hook, memoryview], bytes]] = {
    "record": lambda hook, _: getattr(hook.read(Location("logs", "k")), "body", b""),
    "range": lambda hook, _: hook.read_range(Location("logs", "k"), ETAG, 0, 4),
    "into": read_into,
}


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("what", READS)
def test_body_that_ends_early_is_read_again(hook_on: HookFactory, what: str, times: int) -> None:
    """botocore tries requests again, but not the reading of a body."""
    whole = respond(200, b"0123", f'ETag: "{ETAG}"', "Connection: close")
    left = iter([whole[:-2]] * times)
    with Recorder(lambda _: next(left, whole)) as server, hook_on(server) as hook:
        if times == 1:
            assert READS[what](hook, memoryview(bytearray(4))) == b"0123"
        else:
            with pytest.raises(CutShortError, match="GET s3://logs/k: "):
                READS[what](hook, memoryview(bytearray(4)))


@pytest.mark.parametrize("stated", ["bytes 0-2/10", "bytes=0-2/*"])
def test_other_range_than_requested_is_an_error(hook_on: HookFactory, stated: str) -> None:
    response = respond(206, b"012", f'ETag: "{ETAG}"', f"Content-Range: {stated}")
    with Recorder(lambda _: response) as server, hook_on(server) as hook:
        source = Location("logs", "k")
        for ask in (
            lambda first: hook.read_range(source, ETAG, first, 3),
            lambda first: hook.read_into(source, ETAG, first, memoryview(bytearray(3))),
        ):
            with pytest.raises(TransientError, match=r"from 2 on were requested, .* those from 0 on"):
                ask(2)
            ask(0)


@pytest.mark.parametrize("kind", ["refused", "empty", "ranged", "whole"])
def test_head_without_a_length_gets_it_from_a_get(hook_on: HookFactory, kind: str) -> None:
    """Supabase Storage omits the length of an empty object."""
    responses = {
        "refused": (refuse(416, "InvalidRange"), 0),
        "empty": (respond(200), 0),
        "ranged": (respond(206, b"h", "Content-Range: bytes 0-0/123"), 123),
        "whole": (respond(200, b"hello"), 5),
    }
    response, size = responses[kind]

    def answer(request: Recorded) -> bytes:
        head = b'HTTP/1.1 200 OK\r\nETag: "%s"\r\nConnection: close\r\n\r\n' % ETAG.encode()
        return head if request.method == "HEAD" else response

    with Recorder(answer) as server, hook_on(server) as hook:
        for _ in range(2):
            head = hook.head(Location("logs", "k"))
            assert head is not None
            assert head.size == size
    assert server.requests[1]["range"] == "bytes=0-0"


def test_record_without_a_length_is_read_until_two_copies_are_equal(hook_on: HookFactory) -> None:
    bodies = [b"whole", b"who", b"w", b"whole", b"whole", b"other"]

    def answer(_: Recorded) -> bytes:
        head = b'HTTP/1.1 200 OK\r\nETag: "%s"\r\nConnection: close\r\n\r\n' % ETAG.encode()
        return head + bodies[len(server.requests) - 1]

    with Recorder(answer) as server, hook_on(server) as hook:
        assert hook.read(Location("logs", "k")) == StoredObject(b"whole", ETAG)
        assert len(server.requests) == 5
        bodies[5:] = [b"%d" % number for number in range(100)]
        with pytest.raises(TransientError, match="it differs each time"):
            hook.read(Location("logs", "k"))
    with Recorder(like_s3) as server, hook_on(server) as hook:
        hook.read(Location("logs", "k"))
    assert len(server.requests) == 1


PAGE_OF_A_PROXY = respond(404, b"<html>default backend</html>", "Content-Type: text/html")
LISTED = b"<ListBucketResult><Contents><Key>k</Key><Size>5</Size></Contents></ListBucketResult>"
NOT_LISTED = b"<ListBucketResult></ListBucketResult>"


@pytest.mark.parametrize("call", [PooledS3Hook.head, PooledS3Hook.read])
def test_404_of_a_proxy_is_tried_again(hook_on: HookFactory, call: Callable[..., object]) -> None:
    def answer(request: Recorded) -> bytes:
        if "list-type" in request.target:
            return respond(200, LISTED)
        if len(server.requests) < 3:
            return respond(404) if request.method == "HEAD" else PAGE_OF_A_PROXY
        return like_s3(request)

    with Recorder(answer) as server, hook_on(server) as hook:
        assert call(hook, Location("logs", "k")) is not None


@pytest.mark.parametrize("call", [PooledS3Hook.head, PooledS3Hook.read])
def test_404_of_a_proxy_is_no_missing_object(hook_on: HookFactory, call: Callable[..., object]) -> None:
    listed = [LISTED]

    def answer(request: Recorded) -> bytes:
        return respond(200, listed[0]) if "list-type" in request.target else PAGE_OF_A_PROXY

    with Recorder(answer) as server, hook_on(server) as hook:
        with pytest.raises(ForeignResponseError, match="the object is listed"):
            call(hook, Location("logs", "k"))
        listed[0] = NOT_LISTED
        assert call(hook, Location("logs", "k")) is None


def test_list_is_tried_again_after_a_404_of_a_proxy(hook_on: HookFactory) -> None:
    def answer(_: Recorded) -> bytes:
        return PAGE_OF_A_PROXY if len(server.requests) < 3 else respond(200, LISTED)

    with Recorder(answer) as server, hook_on(server) as hook:
        assert [row.key for row in hook.list_page(Location("logs", "")).objects] == ["k"]


@pytest.mark.parametrize(
    "delete",
    [
        lambda hook, target: hook.delete_if(target, ETAG),
        lambda hook, target: hook.delete(target.bucket, [target.key]),
    ],
)
def test_404_of_a_proxy_to_a_delete_is_an_error(
    hook_on: HookFactory, delete: Callable[[PooledS3Hook, Location], object]
) -> None:
    def answer(request: Recorded) -> bytes:
        return PAGE_OF_A_PROXY if request.method == "DELETE" else like_s3(request)

    with Recorder(answer) as server, hook_on(server) as hook, pytest.raises(ForeignResponseError):
        delete(hook, Location("logs", "k"))


@pytest.mark.parametrize("value", ["!", "AAAA", "AAAAAAAAAAAAAAAA"])
def test_damaged_checksum_of_a_head_counts_as_none(hook_on: HookFactory, value: str) -> None:
    def answer(request: Recorded) -> bytes:
        return respond(200, b"", f"x-amz-checksum-crc64nvme: {value}", f'ETag: "{ETAG}"')

    with Recorder(answer) as server, hook_on(server) as hook:
        head = hook.head(Location("logs", "k"))
    assert head is not None
    assert head.crc64nvme is None


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (refuse(501, "NotImplemented"), UnsupportedOperationError),
        (refuse(405, "MethodNotAllowed"), UnsupportedOperationError),
        (respond(200), UnsupportedOperationError),
        (refuse(404, "NoSuchKey"), NotFoundError),
        (refuse(404, "NoSuchBucket"), MissingBucketError),
        (refuse(200, "SlowDown"), ThrottledError),
        (refuse(200, "InternalError"), TransientError),
        (refuse(403, "AccessDenied"), AccessError),
    ],
)
def test_failed_publication_has_the_class_of_its_cause(
    hook_on: HookFactory, response: bytes, error: type[RollupError]
) -> None:
    with (
        Recorder(lambda _: response) as server,
        hook_on(server) as hook,
        pytest.raises(RollupError) as failed,
    ):
        hook.publish(Location("logs", "staged"), Location("logs", "_SUCCESS"))
    assert type(failed.value) is error


PAGE_WITH_200 = respond(200, b"<html>wait</html>", "Content-Type: text/html")


def test_success_that_is_not_one_of_s3_is_tried_again(hook_on: HookFactory) -> None:
    target = Location("logs", "k")
    with Recorder(lambda request: PAGE_WITH_200 if len(server.requests) < 3 else like_s3(request)) as server:
        assert hook_on(server).write(target, b"{}", "application/json") == ETAG
    with Recorder(lambda request: PAGE_WITH_200 if len(server.requests) < 3 else like_s3(request)) as server:
        assert hook_on(server).read(target) == StoredObject(b"hello", ETAG)


@pytest.mark.parametrize(
    "call",
    [
        lambda hook, target: hook.write(target, b"{}", "application/json"),
        lambda hook, target: hook.read(target),
        lambda hook, target: hook.publish(target, target),
        lambda hook, target: hook.write_range(target, "id", 1, b"x"),
    ],
)
def test_page_with_status_200_is_transient(
    hook_on: HookFactory, call: Callable[[PooledS3Hook, Location], object]
) -> None:
    with Recorder(lambda _: PAGE_WITH_200) as server, pytest.raises(ForeignResponseError):
        call(hook_on(server), Location("logs", "k"))


# -- whether the server compares CRCs ----------------------------------------------------------------------


def checks(code: str, right_too: bool = False) -> Callable[[Recorded], bytes]:
    """A server that refuses a wrong CRC64-NVME with this code; with ``right_too`` it refuses every CRC."""

    def answer(request: Recorded) -> bytes:
        if request.method == "PUT":
            right = request["x-amz-checksum-crc64nvme"] == to_header(crc64(request.body))
            if right_too or not right:
                return refuse(400, code)
        return like_s3(request)

    return answer


@pytest.mark.parametrize(
    ("code", "right_too", "refuses"),
    [
        ("BadDigest", False, True),
        ("XAmzContentChecksumMismatch", False, True),
        ("BadDigest", True, False),
        ("InvalidRequest", False, False),
        ("InvalidArgument", True, False),
        ("NotImplemented", True, False),
    ],
)
def test_only_a_bad_digest_counts_as_refusing_a_wrong_crc(
    hook_on: HookFactory, code: str, right_too: bool, refuses: bool
) -> None:
    with Recorder(checks(code, right_too)) as server, hook_on(server) as hook:
        assert hook.refuses_wrong_crc(Location("logs", "scratch")) is refuses
    assert server.requests[-1].method == "DELETE"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ExpiredToken", TransientError),
        ("RequestTimeout", TransientError),
        ("InvalidToken", AccessError),
        ("MalformedXML", RollupError),
    ],
)
def test_other_errors_of_the_crc_check_are_raised(
    hook_on: HookFactory, code: str, error: type[RollupError]
) -> None:
    with Recorder(checks(code)) as server, hook_on(server) as hook, pytest.raises(error, match=code):
        hook.refuses_wrong_crc(Location("logs", "scratch"))


# -- deletes -----------------------------------------------------------------------------------------------


def deletes(failing: dict[str, list[str]], refused: bytes | None = None) -> Callable[[Recorded], bytes]:
    """A server with DeleteObjects.

    :param failing: error codes by key, one for each try
    :param refused: the response to DeleteObjects of a server that does not support it
    """

    def answer(request: Recorded) -> bytes:
        if request.method != "POST":
            return like_s3(request)
        if refused is not None:
            return refused
        rows = []
        for row in request.body.decode().split("<Key>")[1:]:
            key = row.partition("</Key>")[0]
            codes = failing.get(key)
            if codes:
                rows.append(f"<Error><Key>{escape(key)}</Key><Code>{codes.pop(0)}</Code></Error>")
            else:
                rows.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
        return respond(200, f"<DeleteResult>{''.join(rows)}</DeleteResult>".encode())

    return answer


def named(server: Recorder, method: str) -> list[str]:
    """Keys in the paths of requests with this method."""
    return [
        unquote(request.path).removeprefix("/logs/")
        for request in server.requests
        if request.method == method
    ]


@pytest.mark.parametrize("code", ["InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"])
def test_keys_with_a_transient_error_are_tried_again(hook_on: HookFactory, code: str) -> None:
    with Recorder(deletes({"b": [code] * 3, "c": [code]})) as server, hook_on(server) as hook:
        hook.delete("logs", ["a", "b", "c"])
    bodies = [request.body.decode() for request in server.requests]
    assert [[key for key in "abc" if f"<Key>{key}</Key>" in body] for body in bodies] == [
        ["a", "b", "c"], ["b", "c"], ["b"], ["b"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "error", "tries"),
    [
        ("InternalError", TransientError, 6),
        ("SlowDown", ThrottledError, 6),
        ("AccessDenied", AccessError, 1),
        ("InvalidArgument", RollupError, 1),
    ],
)
def test_keys_that_still_fail_raise_their_error(
    hook_on: HookFactory, code: str, error: type[RollupError], tries: int
) -> None:
    with (
        Recorder(deletes({"b": [code] * 99})) as server,
        hook_on(server) as hook,
        pytest.raises(error, match=rf"DELETE s3://logs/b: .*{code}"),
    ):
        hook.delete("logs", ["a", "b"])
    assert len(server.requests) == tries


@pytest.mark.parametrize(
    "refused",
    [
        refuse(400, "InvalidRequest", "Missing required header for this request: Content-MD5"),
        refuse(400, "MissingContentMD5"),
        refuse(501, "NotImplemented"),
        refuse(405, "MethodNotAllowed"),
        refuse(404, "NotFound"),
        refuse(403, "AccessDenied"),
        # The server takes the request for another one and deletes nothing.
        respond(200, b"<Something/>"),
    ],
)
def test_without_delete_objects_keys_are_deleted_singly(hook_on: HookFactory, refused: bytes) -> None:
    with Recorder(deletes({}, refused)) as server, hook_on(server) as hook:
        hook.delete("logs", ["a", "b", "c"])
        assert named(server, "DELETE") == ["a", "b", "c"]
        hook.delete("logs", ["d", "e"])
        assert named(server, "DELETE") == ["a", "b", "c", "d", "e"]
    posts = len([request for request in server.requests if request.method == "POST"])
    assert posts == (2 if refused.startswith(b"HTTP/1.1 200") else 1)


def test_refused_deletes_are_reported_if_both_ways_fail(hook_on: HookFactory) -> None:
    def answer(request: Recorded) -> bytes:
        return refuse(403, "AccessDenied")

    with Recorder(answer) as server, hook_on(server) as hook:
        for _ in range(2):
            with pytest.raises(AccessError, match=r"DELETE s3://logs/a: .*AccessDenied"):
                hook.delete("logs", ["a", "b"])
    # Both ways are tried each time.
    assert [request.method for request in server.requests] == ["POST", "DELETE"] * 2


def test_missing_bucket_does_not_mean_a_missing_operation(hook_on: HookFactory) -> None:
    with (
        Recorder(lambda _: refuse(404, "NoSuchBucket")) as server,
        hook_on(server) as hook,
        pytest.raises(MissingBucketError),
    ):
        hook.delete("logs", ["a", "b"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("response", "deleted"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (refuse(412, "PreconditionFailed"), False),
        (refuse(404, "NoSuchKey"), True),
    ],
)
def test_conditional_delete_returns_false_for_another_etag(
    hook_on: HookFactory, response: bytes, deleted: bool
) -> None:
    with Recorder(lambda _: response) as server, hook_on(server) as hook:
        assert hook.delete_if(Location("logs", "claim"), "abc") is deleted
    (request,) = server.requests
    assert request["if-match"] == '"abc"'


@pytest.mark.parametrize(
    "refused",
    [
        refuse(501, "NotImplemented"),
        refuse(400, "InvalidArgument"),
        refuse(400, "InvalidRequest"),
        refuse(405, "MethodNotAllowed"),
    ],
)
def test_refused_condition_is_not_sent_again(hook_on: HookFactory, refused: bytes) -> None:
    def answer(request: Recorded) -> bytes:
        return refused if request["if-match"] else like_s3(request)

    with Recorder(answer) as server, hook_on(server) as hook:
        # The hook reads the ETag instead, which leaves a race.
        assert hook.delete_if(Location("logs", "claim"), "another") is False
        assert named(server, "DELETE") == ["claim"]
        assert hook.delete_if(Location("logs", "claim"), ETAG) is True
        assert named(server, "DELETE") == ["claim"] * 3
        assert hook.delete_if(Location("logs", "claim"), ETAG) is True
    assert [request["if-match"] is None for request in server.requests if request.method == "DELETE"] == [
        False, False, True, True
    ]  # fmt: skip


@pytest.mark.parametrize(("code", "error"), [("ExpiredToken", TransientError), ("SlowDown", ThrottledError)])
def test_failed_conditional_delete_keeps_the_condition(
    hook_on: HookFactory, code: str, error: type[RollupError]
) -> None:
    with (
        Recorder(lambda _: refuse(400, code)) as server,
        hook_on(server) as hook,
        pytest.raises(error),
    ):
        hook.delete_if(Location("logs", "claim"), "abc")
    assert len(server.requests) == 1


def test_missing_upload_counts_as_aborted(hook_on: HookFactory) -> None:
    target = Location("logs", "k")
    with Recorder(lambda _: refuse(404, "NoSuchUpload")) as server, hook_on(server) as hook:
        hook.abort_upload(target, "id")
    with (
        Recorder(lambda _: refuse(403, "AccessDenied")) as server,
        hook_on(server) as hook,
        pytest.raises(AccessError),
    ):
        hook.abort_upload(target, "id")


def test_error_in_a_200_response_to_a_completion_is_raised(hook_on: HookFactory) -> None:
    with (
        Recorder(lambda _: refuse(200, "InternalError")) as server,
        hook_on(server) as hook,
        pytest.raises(TransientError, match="InternalError"),
    ):
        hook.finish_upload(Location("logs", "k"), "id", ["a", "b"])


# -- uploads with the CRC of the whole object --------------------------------------------------------------

PIECES = [bytes(5 * MIB), b"the last one is shorter"]


def upload_answer(request: Recorded, *, agrees: bool = True) -> bytes:
    """The response of a server to the requests of a multipart upload.

    :param agrees: whether it keeps the CRC of the whole object
    """
    if request.method == "POST" and "uploads" in request.target:
        body = b"<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"
        return respond(200, body, *(["x-amz-checksum-type: FULL_OBJECT"] if agrees else []))
    if request.method == "POST":
        return respond(
            200, b"<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"
        )
    return like_s3(request)


def upload(hook: PooledS3Hook) -> list[Uploaded | Exception]:
    """Write an object in two pieces, and return the answers to them."""
    target = Location("logs", "out/large ü.log")
    answers: list[Uploaded | Exception] = []
    upload_id = hook.begin_upload(target, {"x-amz-tagging": "a=b"}, with_crc=True)
    with closing(hook.open_transfer("logs", "logs")) as transfer:
        for number, piece in enumerate(PIECES, 1):
            value = crc64(piece)
            transfer.put_range(target, upload_id, number, memoryview(piece), value, answers.append)
            wait_for(transfer, answers, number)
    etags = [answer.etag for answer in answers if isinstance(answer, Uploaded)]
    hook.finish_upload(target, upload_id, etags, crc64(b"".join(PIECES)))
    return answers


def test_upload_has_the_crc_of_each_piece_and_of_the_object(hook_on: HookFactory) -> None:
    with Recorder(upload_answer) as server, hook_on(server) as hook:
        assert all(isinstance(answer, Uploaded) for answer in upload(hook))
    begun, first, last, ended = server.requests
    assert (begun["x-amz-checksum-algorithm"], begun["x-amz-checksum-type"]) == ("CRC64NVME", "FULL_OBJECT")
    assert begun["x-amz-tagging"] == "a=b"
    assert [one["x-amz-checksum-crc64nvme"] for one in (first, last)] == [
        to_header(crc64(piece)) for piece in PIECES
    ]
    assert [one.target.partition("?")[2] for one in (first, last)] == [
        f"partNumber={number}&uploadId=id" for number in (1, 2)
    ]
    assert {one["x-amz-tagging"] for one in (first, last)} == {None}
    assert ended["x-amz-checksum-crc64nvme"] == to_header(crc64(b"".join(PIECES)))
    assert ended["x-amz-checksum-type"] == "FULL_OBJECT"


def test_crc_of_the_object_is_sent_only_to_servers_that_keep_it(hook_on: HookFactory) -> None:
    """MiniStack, for example, would compare it with a CRC of the pieces' CRCs."""
    with Recorder(partial(upload_answer, agrees=False)) as server, hook_on(server) as hook:
        assert all(isinstance(answer, Uploaded) for answer in upload(hook))
    assert server.requests[1]["x-amz-checksum-crc64nvme"] is not None
    assert server.requests[-1]["x-amz-checksum-crc64nvme"] is None


@pytest.mark.parametrize(
    "refused", [refuse(501, "NotImplemented"), refuse(400, "InvalidArgument"), refuse(400, "InvalidRequest")]
)
def test_upload_goes_on_without_crcs_where_they_are_refused(hook_on: HookFactory, refused: bytes) -> None:
    def answer(request: Recorded) -> bytes:
        if any("checksum" in name for name, _ in request.headers):
            return refused
        return upload_answer(request, agrees=False)

    with Recorder(answer) as server, hook_on(server) as hook:
        assert all(isinstance(one, Uploaded) for one in upload(hook))
    assert [one.method for one in server.requests] == ["POST", "POST", "PUT", "PUT", "POST"]
    assert [one["content-md5"] is not None for one in server.requests] == [False, False, True, True, False]


def test_wrong_crc_of_the_object_is_an_error(hook_on: HookFactory) -> None:
    def answer(request: Recorded) -> bytes:
        ends = request.method == "POST" and "uploads" not in request.target
        return refuse(400, "BadDigest") if ends else upload_answer(request)

    with (
        Recorder(answer) as server,
        hook_on(server) as hook,
        pytest.raises(TransientError, match="BadDigest"),
    ):
        upload(hook)


def test_upload_without_permission_is_not_tried_without_crcs(hook_on: HookFactory) -> None:
    with (
        Recorder(lambda _: refuse(403, "AccessDenied")) as server,
        hook_on(server) as hook,
        pytest.raises(AccessError),
    ):
        hook.begin_upload(Location("logs", "k"), {}, with_crc=True)
    assert len(server.requests) == 1


def test_range_arrives_in_its_buffer(hook: PooledS3Hook, s3_server: S3Server, bucket: str) -> None:
    body = bytes(range(256)) * 4
    source = Location(bucket, "raw/a ü.log")
    put_objects(s3_server.client(), bucket, {source.key: body})
    head = hook.head(source)
    assert head is not None
    into = memoryview(bytearray(300))
    answers: list[Downloaded | Exception] = []
    with closing(hook.open_transfer(bucket, bucket)) as transfer:
        for etag in (head.etag, "0" * 32):
            transfer.get_range(source, etag, 500, into, answers.append)
            while len(answers) < (1 if etag == head.etag else 2):
                transfer.wait(1.0)
    received, other = answers
    assert isinstance(received, Downloaded)
    assert (received.size, received.etag, received.checksum) == (300, head.etag, None)
    assert bytes(into) == body[500:800]
    # rclone ignores the condition.
    assert isinstance(other, Downloaded | InputChangedError)
