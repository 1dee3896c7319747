"""The fault proxy between a real client and a real server: its faults have their effect, its records are right."""

import base64
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest
import urllib3
from awscrt.checksums import crc64nvme
from botocore.exceptions import ClientError, EndpointConnectionError, ResponseStreamingError, SSLError

from dev.servers import MotoServer, RcloneServer, S3Client, S3Server
from dev.tls import TlsFiles
from tests.support import forwarding
from tests.support.faults import (
    Answer,
    Call,
    CorruptRequest,
    CorruptResponse,
    Delay,
    Fault,
    ReplaceHeaders,
    Request,
    Reset,
    Rule,
    Stall,
    Truncate,
    VerifyUpload,
    access_denied,
    expired_token,
    internal_error,
    on,
    require_copy_source_match,
    slow_down,
    wrong_etag,
)
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.proxy import FaultProxy
from tests.support.raw_hours import ODD_NAMES, odd_hour, put_objects

BODY = bytes(range(256)) * 1000
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Bench:
    """A proxy in front of a server with one object, a client of the proxy and a client of the server."""

    proxy: FaultProxy
    bucket: str
    direct: S3Client
    through: S3Client
    stack: ExitStack

    def get(self, key: str = "key") -> bytes:
        """The body of an object, read through the proxy."""
        return bytes(self.through.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def stored(self, key: str) -> bytes | None:
        """The body of an object, read from the server; None if it does not exist."""
        try:
            return bytes(self.direct.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        except self.direct.exceptions.NoSuchKey:
            return None

    def inject(self, operation: str, fault: Fault) -> Rule:
        """Inject a fault into all requests of an operation."""
        rule = Rule(on(operation), fault)
        self.proxy.add(rule)
        return rule

    def connect(
        self, method: str, key: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPConnection:
        """Open a connection and send a presigned request on it."""
        url = self.through.generate_presigned_url(
            {"GET": "get_object", "PUT": "put_object"}[method], Params={"Bucket": self.bucket, "Key": key}
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=PATIENCE_SECONDS)
        self.stack.callback(connection.close)
        connection.request(method, url.removeprefix(self.proxy.endpoint_url), body, headers or {})
        return connection


@pytest.fixture
def bench(
    rclone_server: RcloneServer, make_bucket: BucketFactory, fault_proxy: ProxyFactory
) -> Iterator[Bench]:
    bucket = make_bucket(rclone_server)
    proxy = fault_proxy(rclone_server)
    direct = rclone_server.client()
    direct.put_object(Bucket=bucket, Key="key", Body=BODY)
    with ExitStack() as stack:
        yield Bench(proxy, bucket, direct, rclone_server.client(proxy.endpoint_url), stack)


def test_every_kind_of_request_passes_unchanged(
    s3_server: S3Server, bucket: str, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(s3_server)
    client = s3_server.client(proxy.endpoint_url)
    objects = odd_hour("raw/", ODD_NAMES) | {"raw/large": BODY * 8}
    put_objects(client, bucket, objects)
    listed = [
        item["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix="raw/", PaginationConfig={"PageSize": 10}
        )
        for item in page["Contents"]
    ]
    assert listed == sorted(objects, key=str.encode)
    assert {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in objects} == objects
    assert client.head_object(Bucket=bucket, Key="raw/large")["ContentLength"] == len(BODY) * 8
    client.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "raw/plus+plus.log"})
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in objects]})
    assert [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["copy"]
    assert proxy.operations == {
        "PutObject": len(objects),
        "ListObjectsV2": -(-len(objects) // 10) + 1,
        "GetObject": len(objects),
        "HeadObject": 1,
        "CopyObject": 1,
        "DeleteObjects": 1,
    }
    assert {exchange.request.key for exchange in proxy.exchanges} >= objects.keys()
    assert all(exchange.status == 200 and exchange.error is None for exchange in proxy.exchanges)
    uploaded = next(e for e in proxy.exchanges if e.request.key == "raw/large")
    assert (uploaded.request_bytes, uploaded.response_bytes) == (len(BODY) * 8, 0)


def test_one_connection_carries_many_requests(
    s3_server: S3Server, bucket: str, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(s3_server)
    client = s3_server.client(proxy.endpoint_url)
    for number in range(5):
        client.put_object(Bucket=bucket, Key=f"key-{number}", Body=BODY)
    assert proxy.count("PutObject", status=200) == 5
    assert (proxy.accepted_connections, proxy.peak_connections, proxy.peak_in_flight) == (1, 1, 1)


def test_100_continue_of_the_server_is_forwarded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # The proxy itself would ask for the body after this time.
    monkeypatch.setattr(forwarding, "CONTINUE_SECONDS", 3600.0)
    headers = {"Expect": "100-continue", "Content-Length": str(len(BODY))}
    connection = bench.connect("PUT", "new", headers=headers)
    assert connection.sock is not None
    assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(BODY)
    assert connection.getresponse().status == 200
    assert bench.stored("new") == BODY


def test_chunked_body_passes(
    moto_server: MotoServer, make_bucket: BucketFactory, fault_proxy: ProxyFactory
) -> None:
    proxy = fault_proxy(moto_server)
    bucket = make_bucket(moto_server)
    direct = moto_server.client()
    url = moto_server.client(proxy.endpoint_url).generate_presigned_url(
        "put_object", Params={"Bucket": bucket, "Key": "chunked"}
    )

    def put_in_chunks() -> bytes:
        with urllib3.PoolManager() as pool:
            pieces = iter([BODY[:1000], BODY[1000:70_000], BODY[70_000:]])
            assert pool.request("PUT", url, body=pieces, chunked=True, retries=False).status == 200
        return bytes(direct.get_object(Bucket=bucket, Key="chunked")["Body"].read())

    assert put_in_chunks() == BODY
    proxy.add(Rule(on("PutObject"), CorruptRequest(0.0)))
    assert put_in_chunks() == b"\xff" + BODY[1:]
    assert proxy.exchanges[0].request.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (slow_down(), 503, "SlowDown"),
        (slow_down(retry_after_seconds=3), 503, "SlowDown"),
        (internal_error(), 500, "InternalError"),
        (access_denied(), 403, "AccessDenied"),
        (expired_token(), 400, "ExpiredToken"),
    ],
)
def test_proxy_can_answer_instead_of_the_server(bench: Bench, fault: Answer, status: int, code: str) -> None:
    rule = bench.inject("PutObject", fault)
    bench.inject("HeadObject", fault)
    with pytest.raises(ClientError) as put:
        bench.through.put_object(Bucket=bench.bucket, Key="new", Body=BODY)
    with pytest.raises(ClientError) as head:
        bench.through.head_object(Bucket=bench.bucket, Key="key")
    assert put.value.response["Error"]["Code"] == code
    metadata = put.value.response["ResponseMetadata"]
    assert metadata["HTTPStatusCode"] == head.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert metadata["HTTPHeaders"].get("retry-after") == fault.headers.get("Retry-After")
    assert bench.stored("new") is None
    assert bench.get() == BODY
    assert bench.proxy.fired(rule) == 1
    assert bench.proxy.exchanges[0].faults == ("Answer",)


def test_response_can_be_lost_after_the_work_is_done(bench: Bench) -> None:
    bench.inject("PutObject", internal_error(after_effect=True))
    with pytest.raises(ClientError, match="InternalError"):
        bench.through.put_object(Bucket=bench.bucket, Key="new", Body=BODY)
    assert bench.stored("new") == BODY


def test_copy_can_fail_within_a_200_response(bench: Bench) -> None:
    bench.inject("CopyObject", Answer(200, "InternalError"))
    with pytest.raises(ClientError, match="InternalError"):
        bench.through.copy_object(
            Bucket=bench.bucket, Key="copy", CopySource={"Bucket": bench.bucket, "Key": "key"}
        )


@pytest.mark.parametrize(
    ("at", "arrives"),
    [("request", False), ("mid_request", False), ("before_response", True)],
)
def test_reset_before_the_response_leaves_upload_done_or_not(bench: Bench, at: str, arrives: bool) -> None:
    bench.proxy.add(Rule(on("PutObject"), Reset(at)))  # type: ignore[arg-type]
    with pytest.raises(ConnectionError):
        bench.connect("PUT", "new", BODY).getresponse()
    bench.proxy.wait_idle()
    assert bench.stored("new") == (BODY if arrives else None)


def test_reset_within_the_response_delivers_its_first_half(bench: Bench) -> None:
    bench.inject("GetObject", Reset("mid_response"))
    answer = bench.connect("GET", "key").getresponse()
    assert answer.read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    with pytest.raises(ConnectionResetError):
        answer.read(1)


def test_reset_after_the_response_delivers_all_of_it(bench: Bench) -> None:
    bench.inject("GetObject", Reset("after_response"))
    connection = bench.connect("GET", "key")
    answer = connection.getresponse()
    assert answer.read() == BODY
    assert connection.sock is not None
    bench.proxy.wait_idle()
    with pytest.raises(ConnectionResetError):
        connection.sock.recv(1)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_truncated_body_ends_without_a_reset(bench: Bench, fraction: float) -> None:
    bench.inject("GetObject", Truncate(fraction))
    with pytest.raises(http.client.IncompleteRead) as error:
        bench.connect("GET", "key").getresponse().read()
    got = min(int(len(BODY) * fraction), len(BODY) - 1)
    assert (error.value.partial, error.value.expected) == (BODY[:got], len(BODY) - got)


def test_stalled_body_continues_after_the_time(bench: Bench) -> None:
    bench.inject("GetObject", Stall(0.3))
    began = time.monotonic()
    assert bench.connect("GET", "key").getresponse().read() == BODY
    assert time.monotonic() - began >= 0.3


def test_stall_ends_when_the_client_disconnects(bench: Bench) -> None:
    bench.inject("GetObject", Stall(3600))
    connection = bench.connect("GET", "key")
    assert connection.getresponse().read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    connection.close()
    bench.proxy.wait_idle()
    assert bench.proxy.open_connections == 0


def test_stalled_upload_is_stored(bench: Bench) -> None:
    bench.inject("PutObject", Stall(0.3, at="request"))
    began = time.monotonic()
    bench.through.put_object(Bucket=bench.bucket, Key="new", Body=BODY)
    assert time.monotonic() - began >= 0.3
    assert bench.stored("new") == BODY


def test_latency_comes_before_the_first_byte(bench: Bench) -> None:
    bench.inject("GetObject", Delay(0.2))
    began = time.monotonic()
    answer = bench.connect("GET", "key").getresponse()
    assert time.monotonic() - began >= 0.2
    assert answer.read() == BODY
    exchange = bench.proxy.exchanges[-1]
    assert exchange.first_byte_seconds is not None
    assert exchange.first_byte_seconds - exchange.started_seconds >= 0.2


def test_delays_of_many_connections_run_at_the_same_time(bench: Bench) -> None:
    bench.inject("GetObject", Delay(3600))
    for _ in range(20):
        bench.connect("GET", "key")
    _await(lambda: bench.proxy.peak_in_flight == 20)
    assert bench.proxy.peak_connections == 20


def test_wrong_bytes_come_with_the_right_length(bench: Bench) -> None:
    bench.inject("GetObject", CorruptResponse(0.5))
    answer = bench.through.get_object(Bucket=bench.bucket, Key="key")
    body = answer["Body"].read()
    assert len(body) == len(BODY)
    assert [index for index in range(len(BODY)) if body[index] != BODY[index]] == [len(BODY) // 2]
    assert answer["ETag"] == bench.direct.head_object(Bucket=bench.bucket, Key="key")["ETag"]


def test_wrong_bytes_in_an_upload_are_stored(bench: Bench) -> None:
    bench.inject("PutObject", CorruptRequest(0.0))
    bench.through.put_object(Bucket=bench.bucket, Key="new", Body=BODY)
    assert bench.stored("new") == b"\xff" + BODY[1:]


def test_headers_can_be_changed_and_removed(bench: Bench) -> None:
    bench.inject("HeadObject", wrong_etag())
    bench.inject("HeadObject", ReplaceHeaders({"last-modified": None, "X-New": "value"}))
    metadata = bench.through.head_object(Bucket=bench.bucket, Key="key")["ResponseMetadata"]
    assert metadata["HTTPHeaders"]["etag"] == f'"{"0" * 32}"'
    assert metadata["HTTPHeaders"]["x-new"] == "value"
    assert "last-modified" not in metadata["HTTPHeaders"]


def test_upload_with_a_wrong_checksum_is_refused_as_by_aws(bench: Bench) -> None:
    bench.inject("PutObject", VerifyUpload())
    right, wrong = (base64.b64encode(crc64nvme(data).to_bytes(8)).decode() for data in (BODY, b"other"))
    bench.through.put_object(Bucket=bench.bucket, Key="right", Body=BODY, ChecksumCRC64NVME=right)
    with pytest.raises(ClientError, match="BadDigest"):
        bench.through.put_object(Bucket=bench.bucket, Key="wrong", Body=BODY, ChecksumCRC64NVME=wrong)
    assert (bench.stored("right"), bench.stored("wrong")) == (BODY, None)


def test_upload_damaged_in_transit_is_refused_as_by_aws(bench: Bench) -> None:
    bench.proxy.add(Rule(on("PutObject"), CorruptRequest(), count=1))
    bench.inject("PutObject", VerifyUpload())
    with pytest.raises(ClientError, match="XAmzContentSHA256Mismatch"):
        bench.through.put_object(Bucket=bench.bucket, Key="new", Body=BODY)
    assert bench.stored("new") is None
    bench.through.put_object(Bucket=bench.bucket, Key="new", Body=BODY)
    assert bench.stored("new") == BODY


def test_copy_of_a_changed_source_is_refused_as_by_aws(bench: Bench) -> None:
    def etag_of(bucket: str, key: str) -> str:
        return str(bench.direct.head_object(Bucket=bucket, Key=key)["ETag"])

    bench.direct.put_object(Bucket=bench.bucket, Key="odd +%ü", Body=b"x")
    bench.inject("CopyObject", require_copy_source_match(etag_of))
    for key in ("key", "odd +%ü"):
        source = {"Bucket": bench.bucket, "Key": key}
        etag = etag_of(bench.bucket, key)
        bench.through.copy_object(Bucket=bench.bucket, Key="1", CopySource=source, CopySourceIfMatch=etag)
        with pytest.raises(ClientError, match="PreconditionFailed"):
            bench.through.copy_object(
                Bucket=bench.bucket, Key="2", CopySource=source, CopySourceIfMatch=f'"{"0" * 32}"'
            )
    assert bench.stored("2") is None


def test_function_runs_before_the_server_sees_the_request(bench: Bench) -> None:
    def delete(request: Request) -> None:
        bench.direct.delete_object(Bucket=request.bucket, Key=request.key)

    bench.proxy.add(Rule(on("GetObject", nth=2), Call(delete)))
    assert bench.get() == BODY
    with pytest.raises(ClientError, match="NoSuchKey"):
        bench.get()


def test_function_runs_before_the_response_reaches_the_client(bench: Bench) -> None:
    def overwrite(request: Request) -> None:
        bench.direct.put_object(Bucket=request.bucket, Key="key", Body=b"new")

    bench.proxy.add(Rule(on("ListObjectsV2", nth=1), Call(overwrite, "after")))
    listed = bench.through.list_objects_v2(Bucket=bench.bucket)["Contents"][0]
    assert listed["Size"] == len(BODY)
    assert bench.stored("key") == b"new"


def test_function_can_answer_instead(bench: Bench) -> None:
    bench.inject("GetObject", Call(lambda request: access_denied() if request.key == "key" else None))
    with pytest.raises(ClientError, match="AccessDenied"):
        bench.get()


def test_rule_whose_function_raises_fails_the_test(rclone_server: RcloneServer) -> None:
    def raise_it(request: Request) -> bool:
        raise LookupError(request.operation)

    def ask(rule: Rule) -> None:
        with FaultProxy(rclone_server.endpoint_url) as proxy:
            proxy.add(rule)
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE_SECONDS)
            connection.request("GET", "/")
            with pytest.raises(ConnectionError):
                connection.getresponse()

    for rule in (Rule(raise_it, Delay(0)), Rule(on(), Call(raise_it))):  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="1 exceptions in functions of rules"):
            ask(rule)


def test_rules_apply_from_the_next_request_on(bench: Bench) -> None:
    rule = bench.inject("GetObject", slow_down())
    with pytest.raises(ClientError, match="SlowDown"):
        bench.get()
    bench.proxy.remove(rule)
    assert bench.get() == BODY
    bench.proxy.add(Rule(on("GetObject"), slow_down(), count=2))
    for _ in range(2):
        with pytest.raises(ClientError, match="SlowDown"):
            bench.get()
    assert bench.get() == BODY
    bench.proxy.clear_rules()
    bench.proxy.add(Rule(on("GetObject", key="^ke", attempt=7), slow_down()))
    assert bench.get() == BODY
    with pytest.raises(ClientError, match="SlowDown"):
        bench.get()


def test_affected_requests_depend_on_the_seed_not_on_order(bench: Bench) -> None:
    keys = [f"key-{number}" for number in range(60)]

    def failing(seed: int, order: list[str]) -> set[str]:
        bench.proxy.clear_rules()
        bench.proxy.reset_records()
        bench.proxy.add(Rule(on("HeadObject"), internal_error(), probability=0.3, seed=seed))
        for key in order:
            with pytest.raises(ClientError):
                bench.through.head_object(Bucket=bench.bucket, Key=key)
        return {e.request.key for e in bench.proxy.exchanges if e.status == 500}

    first = failing(1, keys)
    assert 5 <= len(first) <= 35
    assert failing(1, keys[::-1]) == first
    assert failing(2, keys) != first


def test_connections_are_counted(bench: Bench) -> None:
    sockets = [socket.create_connection(("127.0.0.1", bench.proxy.port)) for _ in range(7)]
    _await(lambda: bench.proxy.open_connections == 7)
    for opened in sockets[:3]:
        opened.close()
    _await(lambda: bench.proxy.open_connections == 4)
    assert bench.proxy.peak_connections == bench.proxy.accepted_connections == 7
    assert [count for _, count in bench.proxy.connection_series] == [1, 2, 3, 4, 5, 6, 7, 6, 5, 4]
    bench.proxy.reset_records()
    assert (bench.proxy.peak_connections, bench.proxy.accepted_connections) == (4, 0)
    for opened in sockets[3:]:
        opened.close()


def test_client_that_disconnects_is_no_longer_counted(bench: Bench) -> None:
    bench.inject("GetObject", Delay(30))
    for _ in range(3):
        connection = bench.connect("GET", "key")
        _await(lambda: bench.proxy.open_connections == 1)
        connection.close()
        _await(lambda: bench.proxy.open_connections == 0)
    assert bench.proxy.peak_connections == 1


def test_tls_connections_are_verified_and_counted(
    rclone_server: RcloneServer, make_bucket: BucketFactory, fault_proxy: ProxyFactory, tls_files: TlsFiles
) -> None:
    proxy = fault_proxy(rclone_server, tls=tls_files)
    bucket = make_bucket(rclone_server)
    client = rclone_server.client(proxy.endpoint_url, verify=tls_files.ca)
    client.put_object(Bucket=bucket, Key="key", Body=BODY)
    assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY
    with socket.create_connection(("127.0.0.1", proxy.port)):
        _await(lambda: proxy.open_connections == 2)
    with pytest.raises(SSLError):
        rclone_server.client(proxy.endpoint_url).list_buckets()
    proxy.add(Rule(on("GetObject"), Reset("mid_response")))
    # OpenSSL reports a reset as the end of the stream.
    with pytest.raises(ResponseStreamingError, match="128000 more expected"):
        client.get_object(Bucket=bucket, Key="key")["Body"].read()


def test_tls_to_the_server_works_until_it_is_killed(tls_files: TlsFiles, fault_proxy: ProxyFactory) -> None:
    with RcloneServer(tls=tls_files) as server:
        server.create_bucket("bucket")
        proxy = fault_proxy(server)
        client = server.client(proxy.endpoint_url)
        client.put_object(Bucket="bucket", Key="key", Body=BODY)
        assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == BODY
        server.kill()
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE_SECONDS)
        connection.request("GET", "/")
        with pytest.raises(ConnectionError):
            connection.getresponse()
    proxy.wait_idle()
    error = proxy.exchanges[-1].error
    assert error is not None
    assert "Connect" in error


def test_outage_refuses_connections_and_ends(bench: Bench) -> None:
    assert bench.get() == BODY
    bench.proxy.refuse_connections()
    assert bench.proxy.open_connections == 0
    with pytest.raises(EndpointConnectionError):
        bench.get()
    bench.proxy.accept_connections()
    assert bench.get() == BODY


def test_body_without_length_can_be_damaged(fault_proxy: ProxyFactory) -> None:
    body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    with (
        _canned(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body) as url,
        FaultProxy(url) as proxy,
    ):
        assert urllib3.request("GET", proxy.endpoint_url).data == b"hello world"
        proxy.add(Rule(on(), CorruptResponse(0.0)))
        answer = urllib3.request("GET", proxy.endpoint_url)
        assert (answer.data, answer.headers["Content-Length"]) == (b"\x97ello world", "11")
    with _canned(b"HTTP/1.0 200 OK\r\n\r\nuntil the end") as url, FaultProxy(url) as proxy:
        assert urllib3.request("GET", proxy.endpoint_url).data == b"until the end"


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"the condition is false after {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.005)


@contextmanager
def _canned(answer: bytes) -> Iterator[str]:
    """A server that sends these bytes on every connection and closes it; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                with accepted:
                    accepted.recv(65536)
                    accepted.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Closing the socket alone would not end accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
