"""Listings that boto3 does not send: equal to boto3's, also after faults, and within the cap on connections."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, urlsplit

import pytest

from dev.servers import RcloneServer, S3Server
from include.log_rollup.errors import (
    AccessError,
    ListingError,
    MissingBucketError,
    RollupError,
    ThrottledError,
    TransientError,
)
from include.log_rollup.storage.listing import folders_below, list_by_token
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.support.faults import (
    Answer,
    Fault,
    Reset,
    Rule,
    Truncate,
    access_denied,
    internal_error,
    on,
    slow_down,
)
from tests.support.fixtures import ProxyFactory
from tests.support.proxy import FaultProxy
from tests.support.raw_hours import ODD_NAMES, odd_hour, put_objects
from tests.support.recorder import Recorded, Recorder, respond

CONNECTIONS = 4
EMPTY = (
    b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>logs</Name>'
    b"<IsTruncated>false</IsTruncated></ListBucketResult>"
)
HookFactory = Callable[[str, bool], PooledS3Hook]


@pytest.fixture
def hook_on(monkeypatch: pytest.MonkeyPatch) -> HookFactory:
    """Makes a hook from an Airflow connection in JSON, with or without direct listings."""

    def make(connection: str, many_lists: bool) -> PooledS3Hook:
        monkeypatch.setenv("AIRFLOW_CONN_LISTS", connection)
        return PooledS3Hook(
            aws_conn_id="lists",
            max_connections=CONNECTIONS,
            control_connections=CONNECTIONS,
            many_lists=many_lists,
        )

    return make


@pytest.fixture
def faulty(
    rclone_server: RcloneServer, bucket_name: str, fault_proxy: ProxyFactory, hook_on: HookFactory
) -> tuple[FaultProxy, PooledS3Hook, Location]:
    """A proxy before a server with five objects, and a hook that lists them directly."""
    client = rclone_server.client()
    client.create_bucket(Bucket=bucket_name)
    put_objects(client, bucket_name, {f"a/{number}": b"x" for number in range(5)})
    proxy = fault_proxy(rclone_server)
    hook = hook_on(rclone_server.airflow_connection_json(proxy.endpoint_url), True)
    return proxy, hook, Location(bucket_name, "a/")


def test_listings_are_those_of_boto3(s3_server: S3Server, bucket: str, hook_on: HookFactory) -> None:
    put_objects(s3_server.client(), bucket, odd_hour("a b/ü&+%/"))
    connection = s3_server.airflow_connection_json()
    with hook_on(connection, True) as direct, hook_on(connection, False) as plain:
        for prefix in ("", "a b/", "a b/ü&+%/", "a b/ü&+%/ leading", "none/"):
            place = Location(bucket, prefix)
            for size in (1, 7, 1000):
                assert list_by_token(direct, place, size) == list_by_token(plain, place, size)
            assert folders_below(direct, place, 1) == folders_below(plain, place, 1)
        after = f"a b/ü&+%/{sorted(ODD_NAMES)[9]}"
        place = Location(bucket, "a b/")
        pages = [hook.list_page(place, start_after=after) for hook in (direct, plain)]
        assert pages[0].objects == pages[1].objects
        assert pages[0].newest == pages[1].newest
        assert direct.requests["ListObjectsV2"] == plain.requests["ListObjectsV2"]
        assert direct._direct_lists is not None
        assert direct._direct_lists._paused_until == 0.0


def test_requests_are_those_of_boto3(hook_on: HookFactory) -> None:
    extra = {"region_name": "eu-central-1", "requester_pays": True}

    def fields(request: Recorded) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(request.target).query, keep_blank_values=True))

    def headers(request: Recorded) -> dict[str, str]:
        own = ("authorization", "amz-sdk-invocation-id", "amz-sdk-request", "x-amz-date", "user-agent")
        return {name: value for name, value in request.headers if name not in own}

    with Recorder(lambda _: respond(200, EMPTY)) as server:
        config = {"s3": {"addressing_style": "path"}}
        connection = json.dumps(
            {
                "conn_type": "aws",
                "login": "key",
                "password": "secret",
                "extra": {**extra, "endpoint_url": server.url, "config_kwargs": config},
            }
        )
        for many_lists in (True, False):
            with hook_on(connection, many_lists) as hook:
                hook.list_page(Location("logs", "a+b/ü"), start_after="a+b/ü ~", limit=3)
                hook.list_folders(Location("logs", "a/"), token="1+/=")
    direct, plain = server.requests[:2], server.requests[2:]
    for mine, boto in zip(direct, plain, strict=True):
        assert urlsplit(mine.target).path == urlsplit(boto.target).path
        assert fields(mine) == fields(boto)
        assert headers(mine) == headers(boto)
        assert "amz-sdk-request" not in dict(mine.headers)


@pytest.mark.parametrize(
    "fault",
    [
        internal_error(),
        slow_down(),
        Answer(200, "InternalError"),
        Answer(400, "ExpiredToken"),
        Reset("request"),
        Reset("mid_response"),
        Truncate(),
    ],
    ids=str,
)
def test_boto3_sends_a_failed_listing_again(
    faulty: tuple[FaultProxy, PooledS3Hook, Location], fault: Fault
) -> None:
    proxy, hook, place = faulty
    proxy.add(Rule(on("ListObjectsV2"), fault, count=1))
    with hook:
        assert len(list_by_token(hook, place)) == 5
        assert proxy.count("ListObjectsV2") == 2
        # For a while, boto3 sends all listings, each once.
        assert len(list_by_token(hook, place)) == 5
        assert proxy.count("ListObjectsV2") == 3


def test_direct_listings_continue_after_a_pause(
    faulty: tuple[FaultProxy, PooledS3Hook, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.log_rollup.limits.DIRECT_LISTS_PAUSE_SECONDS", 0.0)
    proxy, hook, place = faulty
    proxy.add(Rule(on("ListObjectsV2"), internal_error(), count=1))
    with hook:
        for _ in range(2):
            assert len(list_by_token(hook, place)) == 5
        hook.client.meta.events.register_first(
            "before-send.s3.ListObjectsV2", lambda **_: pytest.fail("boto3")
        )
        assert len(list_by_token(hook, place)) == 5


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(access_denied(), AccessError), (Answer(404, "NoSuchBucket"), MissingBucketError)],
)
def test_errors_are_those_of_boto3(
    faulty: tuple[FaultProxy, PooledS3Hook, Location], fault: Fault, expected: type[RollupError]
) -> None:
    proxy, hook, place = faulty
    proxy.add(Rule(on("ListObjectsV2"), fault))
    with hook, pytest.raises(expected):
        hook.list_page(place)
    assert proxy.count("ListObjectsV2") == 2


def test_throttling_ends_in_the_error_of_boto3(
    faulty: tuple[FaultProxy, PooledS3Hook, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.log_rollup.limits.CONTROL_RETRIES", 1)
    proxy, hook, place = faulty
    proxy.add(Rule(on("ListObjectsV2"), slow_down()))
    with hook, pytest.raises(ThrottledError):
        hook.list_page(place)
    # One direct request, then boto3's first try and its retry.
    assert proxy.count("ListObjectsV2") == 3


def test_listings_stay_within_the_connections(faulty: tuple[FaultProxy, PooledS3Hook, Location]) -> None:
    proxy, hook, place = faulty
    with hook, ThreadPoolExecutor(4 * CONNECTIONS) as threads:
        assert [len(rows) for rows in threads.map(lambda _: list_by_token(hook, place), range(100))] == [
            5
        ] * 100
    assert 1 < proxy.peak_connections <= CONNECTIONS
    assert proxy.count("ListObjectsV2") == 100


def test_unsigned_requests_are_left_to_boto3(rclone_server: RcloneServer, hook_on: HookFactory) -> None:
    connection = json.loads(rclone_server.airflow_connection_json())
    with Recorder(lambda _: respond(200, EMPTY)) as server:
        connection["extra"] = {
            "endpoint_url": server.url,
            "region_name": "eu-central-1",
            "config_kwargs": {"signature_version": "unsigned", "s3": {"addressing_style": "path"}},
        }
        with hook_on(json.dumps(connection), True) as hook:
            assert not hook.list_page(Location("logs", "a/")).objects
    (request,) = server.requests
    assert "amz-sdk-request" in dict(request.headers)


@pytest.mark.parametrize("many_lists", [True, False])
def test_interim_responses_are_skipped(hook_on: HookFactory, many_lists: bool) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    found = EMPTY.replace(
        b"<IsTruncated>", b"<Contents><Key>a/k</Key><Size>1</Size><ETag>e</ETag></Contents><IsTruncated>"
    )

    def answer(request: Recorded) -> bytes:
        return interim + (respond(200, found) if request.method == "GET" else respond(200, b"", "ETag: e"))

    with Recorder(answer) as server:
        connection = json.dumps(
            {"conn_type": "aws", "login": "k", "password": "s", "extra": {"endpoint_url": server.url}}
        )
        with hook_on(connection, many_lists) as hook:
            for _ in range(3):
                assert [row.key for row in hook.list_page(Location("logs", "a/")).objects] == ["a/k"]
                head = hook.head(Location("logs", "a/k"))
                assert head is not None
                assert head.etag == "e"


def test_interim_responses_without_end_are_an_error(
    hook_on: HookFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.log_rollup.limits.CONTROL_RETRIES", 1)
    with Recorder(lambda _: b"HTTP/1.1 102 Processing\r\n\r\n" * 1000) as server:
        connection = json.dumps(
            {"conn_type": "aws", "login": "k", "password": "s", "extra": {"endpoint_url": server.url}}
        )
        with hook_on(connection, False) as hook, pytest.raises(TransientError, match="Connection was closed"):
            hook.list_page(Location("logs", "a/"))


@pytest.mark.parametrize("many_lists", [True, False])
def test_listing_of_another_prefix_is_an_error(hook_on: HookFactory, many_lists: bool) -> None:
    body = EMPTY.replace(b"<IsTruncated>", b"<Prefix>b/</Prefix><IsTruncated>")
    with Recorder(lambda _: respond(200, body)) as server:
        connection = json.dumps(
            {"conn_type": "aws", "login": "k", "password": "s", "extra": {"endpoint_url": server.url}}
        )
        with hook_on(connection, many_lists) as hook:
            for read in (hook.list_page, hook.list_folders, hook.list_times):
                with pytest.raises(ListingError, match="lists the prefix 'b/' instead"):
                    read(Location("logs", "a/"))
