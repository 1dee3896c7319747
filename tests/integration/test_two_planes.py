"""boto3 and the data plane send the same requests: through proxies, with certificates, to servers with quirks.

``ask_both`` sends each request over both planes to a recorder, and ``assert_alike`` compares what arrived.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from botocore.credentials import Credentials
from botocore.exceptions import CredentialRetrievalError

from dev.tls import TlsFiles
from include.log_rollup import limits
from include.log_rollup.crc import crc64, to_header
from include.log_rollup.errors import ConfigurationError, RollupError, TransientError
from include.log_rollup.storage.protocol import Downloaded, Location, Uploaded
from log_rollup_plugin.s3.checksums import content_md5
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.s3.transfer import SocketTransfer
from tests.support.recorder import (
    ETAG,
    ClientFiles,
    Recorded,
    Recorder,
    RecordingProxy,
    is_signed,
    like_s3,
    make_client_files,
    refuse,
    respond,
    server_context,
)

T = TypeVar("T")

BUCKET, KEY, BODY = "logs", "raw/a b+c/ü.log", b"2026-11-26T00:00:00Z hello\n"
SECRET = "secret+key/of=the-test"
PATIENCE_SECONDS = 20.0
# Headers that must be equal in both planes. Others belong to one plane, such as the invocation id of boto3.
COMPARED = (
    "host", "accept-encoding", "if-match", "x-amz-request-payer", "x-amz-checksum-crc64nvme",
    "x-amz-checksum-mode", "proxy-authorization", "x-team",
)  # fmt: skip


@pytest.fixture
def hook_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PooledS3Hook]]:
    """Makes a hook on an Airflow connection: ``hook_for(endpoint, config_kwargs, **extra)``."""
    hooks: list[PooledS3Hook] = []

    def make(endpoint: str, config: dict[str, Any] | None = None, **extra: Any) -> PooledS3Hook:
        settings = {
            "s3": {"addressing_style": "path"},
            "retries": {"total_max_attempts": 1},
            **(config or {}),
        }
        connection = {
            "conn_type": "aws", "login": "key", "password": SECRET,
            "extra": {
                "endpoint_url": endpoint, "region_name": "eu-central-1", "config_kwargs": settings, **extra
            },
        }  # fmt: skip
        monkeypatch.setenv("AIRFLOW_CONN_PLANES", json.dumps(connection))
        hooks.append(PooledS3Hook(aws_conn_id="planes", max_connections=4))
        return hooks[-1]

    yield make
    for hook in hooks:
        hook.close()


@pytest.fixture(scope="module")
def client_files(tmp_path_factory: pytest.TempPathFactory) -> ClientFiles:
    """A client certificate and its key."""
    return make_client_files(tmp_path_factory.mktemp("client"), "rollup-worker")


def outcome(
    transfer: SocketTransfer, ask: Callable[[Callable[[T | Exception], None]], object]
) -> T | Exception:
    """The result of a request of the data plane, or its error."""
    results: list[T | Exception] = []
    ask(results.append)
    until = time.monotonic() + PATIENCE_SECONDS
    while not results and time.monotonic() < until:
        transfer.wait(0.5)
    (result,) = results
    return result


def get(transfer: SocketTransfer, key: str = KEY) -> Downloaded | Exception:
    """GET over the data plane."""
    into = memoryview(bytearray(100))
    return outcome(transfer, lambda done: transfer.get(Location(BUCKET, key), ETAG, into, done))


def put(transfer: SocketTransfer, body: bytes = BODY) -> Uploaded | Exception:
    """PUT over the data plane."""
    view = memoryview(body)
    return outcome(transfer, lambda done: transfer.put(Location(BUCKET, KEY), view, crc64(view), {}, done))


def ask_both(hook: PooledS3Hook) -> None:
    """GET and PUT an object over boto3, then over the data plane."""
    arguments = {"Bucket": BUCKET, "Key": KEY}
    hook.client.get_object(**arguments, IfMatch=f'"{ETAG}"', ChecksumMode="ENABLED")["Body"].read()
    hook.client.put_object(**arguments, Body=BODY, ChecksumCRC64NVME=to_header(crc64(BODY)))
    with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
        assert isinstance(get(transfer), Downloaded)
        assert isinstance(put(transfer), Uploaded)


def compared_fields(request: Recorded) -> dict[str, object]:
    """The fields that must be equal in the requests of both planes."""
    headers = {name: request[name] for name in COMPARED}
    if request.method == "CONNECT":
        # http.client sends it from Python 3.12 on only.
        del headers["host"]
    fields: dict[str, object] = {
        "method": request.method, "target": request.target, "body": request.body, "client": request.client,
        "empty body": request.body == b"" and request["x-amz-content-sha256"],
    }  # fmt: skip
    return fields | headers


def assert_alike(requests: list[Recorded], signed: bool = True) -> None:
    """Compare the first half of the requests, which boto3 sent, with the second half."""
    half = len(requests) // 2
    assert half >= 1
    by_boto3, by_transfer = requests[:half], requests[half:]
    assert [compared_fields(request) for request in by_transfer] == [
        compared_fields(request) for request in by_boto3
    ]
    if signed:
        assert [is_signed(request, SECRET) for request in requests] == [True] * len(requests)


def resolve_localhost(monkeypatch: pytest.MonkeyPatch, addresses: list[tuple[str, int]]) -> None:
    """Let the name ``localhost`` resolve to these addresses and ports, for any port."""
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        if host != "localhost":
            return real(host, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


# -- the endpoint ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["", ":80", ":443"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_host_is_sent_and_signed_as_boto3_does(
    hook_for: Callable[..., PooledS3Hook],
    tls_files: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    port: str,
) -> None:
    with Recorder(tls=tls_files.server_context() if scheme == "https" else None) as server:
        resolve_localhost(monkeypatch, [("127.0.0.1", server.port)])
        ask_both(hook_for(f"{scheme}://localhost{port}", verify=str(tls_files.ca)))
    assert_alike(server.requests)
    default = {"http": ":80", "https": ":443"}[scheme]
    assert {request["host"] for request in server.requests} == {f"localhost{'' if port == default else port}"}


def test_both_planes_ask_for_unchanged_bodies(hook_for: Callable[..., PooledS3Hook]) -> None:
    """GCS and R2 decompress objects with a Content-Encoding, unless the request forbids it."""

    def answer(request: Recorded) -> bytes:
        if request.method == "GET" and request["accept-encoding"] != "identity":
            return respond(200, b"the decompressed content", f'ETag: "{ETAG}"')
        return like_s3(request)

    with Recorder(answer) as server:
        ask_both(hook_for(server.url))
        with closing(hook_for(server.url).open_transfer(BUCKET, BUCKET)) as transfer:
            got = get(transfer)
    assert_alike(server.requests[:4])
    assert isinstance(got, Downloaded)
    assert got.size == len(b"hello")
    assert "accept-encoding" not in (server.requests[-1]["authorization"] or "")


@pytest.mark.parametrize("kind", ["301", "307", "400"])
def test_bucket_in_another_region_is_found_as_boto3_does(
    hook_for: Callable[..., PooledS3Hook], kind: str
) -> None:
    refusals = {
        "301": refuse(301, "PermanentRedirect"),
        "307": refuse(307, "TemporaryRedirect"),
        "400": refuse(400, "AuthorizationHeaderMalformed"),
    }

    def answer(request: Recorded) -> bytes:
        if "/eu-west-3/s3/" in (request["authorization"] or ""):
            return like_s3(request)
        refused = refusals[kind].replace(b"\r\n", b"\r\nx-amz-bucket-region: eu-west-3\r\n", 1)
        return refused.partition(b"<Error>")[0] if request.method == "HEAD" else refused

    with Recorder(answer) as server:
        with closing(hook_for(server.url).open_transfer(BUCKET, BUCKET)) as transfer:
            assert isinstance(get(transfer), Downloaded)
            assert isinstance(put(transfer), Uploaded)
            assert [request.method for request in server.requests[-2:]] == ["GET", "PUT"]
            before = len(server.requests)
            assert isinstance(get(transfer), Downloaded)
            assert len(server.requests) == before + 1
        # The data plane knows what the control plane has found out.
        hook = hook_for(server.url)
        hook.head(Location(BUCKET, KEY))
        before = len(server.requests)
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            assert isinstance(get(transfer), Downloaded)
        assert len(server.requests) == before + 1


def test_redirect_in_circles_is_an_error(hook_for: Callable[..., PooledS3Hook]) -> None:
    with (
        Recorder(
            lambda request: (
                refuse(301, "PermanentRedirect").partition(b"<")[0]
                if request.method == "HEAD"
                else refuse(301, "PermanentRedirect")
            )
        ) as server,
        closing(hook_for(server.url).open_transfer(BUCKET, BUCKET)) as transfer,
    ):
        failed = get(transfer)
    assert isinstance(failed, RollupError)
    assert "PermanentRedirect" in str(failed)
    assert len(server.requests) < 10


@pytest.mark.parametrize("dead", [1, 3])
def test_dead_addresses_of_a_host_are_skipped(
    hook_for: Callable[..., PooledS3Hook], monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    with Recorder() as server, socket.create_server(("127.0.0.1", 0)) as refusing:
        refusing_port = refusing.getsockname()[1]
        refusing.close()
        addresses = [(f"127.0.0.{2 + number}", refusing_port) for number in range(dead)]
        resolve_localhost(monkeypatch, [*addresses, ("127.0.0.1", server.port)])
        ask_both(hook_for("http://localhost:9000"))
    assert_alike(server.requests)


def test_silent_addresses_leave_time_for_the_next(
    hook_for: Callable[..., PooledS3Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All addresses share the connect timeout, because the packer does not wait longer for a connection."""
    attempts: list[tuple[int, float]] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        attempts.append((address[1], self.gettimeout() or 0.0))
        real(self, address)

    # A full backlog makes an address silent.
    silent = [socket.create_server((f"127.0.0.{2 + number}", 0), backlog=0) for number in range(3)]
    filling = []
    for listener in silent:
        for _ in range(3):
            filling.append(socket.socket())
            filling[-1].setblocking(False)
            filling[-1].connect_ex(listener.getsockname())
    try:
        with Recorder() as server:
            addresses = [*(listener.getsockname() for listener in silent), ("127.0.0.1", server.port)]
            resolve_localhost(monkeypatch, addresses)
            monkeypatch.setattr(socket.socket, "connect", connect)
            with closing(hook_for("http://localhost:9000").open_transfer(BUCKET, BUCKET)) as transfer:
                assert isinstance(get(transfer), Downloaded)
                assert [port for port, _ in attempts] == [port for _, port in addresses]
                assert (
                    sum(seconds for _, seconds in attempts[:-1])
                    <= limits.DEFAULT_CONNECT_TIMEOUT.total_seconds()
                )
                # A second connection tries the reachable address first.
                attempts.clear()
                results: list[object] = []
                for number in range(2):
                    into = memoryview(bytearray(9))
                    transfer.get(Location(BUCKET, f"{number}"), None, into, results.append)
                until = time.monotonic() + PATIENCE_SECONDS
                while len(results) < 2 and time.monotonic() < until:
                    transfer.wait(1.0)
                assert [type(result) for result in results] == [Downloaded, Downloaded]
                assert [port for port, _ in attempts] == [server.port]
                assert server.peak_connections == 2
    finally:
        for opened in (*silent, *filling):
            opened.close()


# -- certificates and proxies ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["one file", "two files"])
def test_client_certificate_of_the_connection_is_sent(
    hook_for: Callable[..., PooledS3Hook], tls_files: TlsFiles, client_files: ClientFiles, form: str
) -> None:
    certificate = (
        str(client_files.both)
        if form == "one file"
        else [str(client_files.certificate), str(client_files.key)]
    )
    with Recorder(tls=server_context(tls_files, client_files)) as server:
        ask_both(hook_for(server.url, {"client_cert": certificate}, verify=str(tls_files.ca)))
    assert_alike(server.requests)
    assert server.requests[-1].client == "rollup-worker"


def test_client_certificate_that_cannot_be_read_is_named(
    hook_for: Callable[..., PooledS3Hook], tls_files: TlsFiles, tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing.pem")
    hook = hook_for("https://localhost:1", {"client_cert": missing}, verify=str(tls_files.ca))
    with pytest.raises(ConfigurationError, match=r"the client certificate .*missing\.pem cannot be used"):
        hook.open_transfer(BUCKET, BUCKET)


PROXIES = {
    "http": {},
    "https": {},
    "https, with a certificate of its own": {"proxy_client_cert": True},
    "https, forwarding": {"proxy_use_forwarding_for_https": True},
}


@pytest.mark.parametrize("kind", PROXIES)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxies_are_used_as_boto3_uses_them(
    hook_for: Callable[..., PooledS3Hook],
    tls_files: TlsFiles,
    client_files: ClientFiles,
    scheme: str,
    kind: str,
) -> None:
    options: dict[str, object] = dict(PROXIES[kind])
    shown = client_files if options.get("proxy_client_cert") else None
    if shown:
        options["proxy_client_cert"] = [str(shown.certificate), str(shown.key)]
    context = server_context(tls_files, shown) if kind.startswith("https") else None
    with (
        Recorder(tls=tls_files.server_context() if scheme == "https" else None) as server,
        RecordingProxy(server.port, context) as proxy,
    ):
        login = proxy.url.replace("://", "://me:sec%3Aret@")
        config = {
            "proxies": {"http": login, "https": login},
            "proxies_config": {"proxy_ca_bundle": str(tls_files.ca), **options},
        }
        # Only the proxy can reach the origin.
        ask_both(hook_for(f"{scheme}://localhost:9", config, verify=str(tls_files.ca)))
    assert_alike(proxy.requests, signed="forwarding" in kind or scheme == "http")
    expected = "rollup-worker" if shown else None
    assert {request.client for request in proxy.requests} == {expected}
    assert {request["proxy-authorization"] for request in proxy.requests} == {"Basic bWU6c2VjOnJldA=="}
    if scheme == "https" and "forwarding" not in kind:
        assert [(request.method, request.target) for request in proxy.requests] == [
            ("CONNECT", "localhost:9")
        ] * 2
        assert_alike(server.requests)
        assert server.requests[-1]["proxy-authorization"] is None
    else:
        assert server.requests == []
        assert proxy.requests[-1].target.startswith(f"{scheme}://localhost:9/logs/raw/a%20b%2Bc/")


def test_large_bodies_pass_tls_within_tls(hook_for: Callable[..., PooledS3Hook], tls_files: TlsFiles) -> None:
    body = bytes(range(256)) * 40_000

    def answer(request: Recorded) -> bytes:
        return respond(200, body if request.method == "GET" else b"", f'ETag: "{ETAG}"')

    with (
        Recorder(answer, tls_files.server_context()) as server,
        RecordingProxy(server.port, tls_files.server_context()) as proxy,
    ):
        config = {
            "proxies": {"https": proxy.url},
            "proxies_config": {"proxy_ca_bundle": str(tls_files.ca)},
        }
        hook = hook_for("https://localhost:9", config, verify=str(tls_files.ca))
        into = bytearray(len(body))
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            for _ in range(2):
                assert put(transfer, body) == Uploaded(ETAG, None)
                got: object = outcome(
                    transfer,
                    lambda done: transfer.get(Location(BUCKET, KEY), ETAG, memoryview(into), done),
                )
                assert isinstance(got, Downloaded)
                assert into == body
        assert [request.body for request in server.requests if request.method == "PUT"] == [body] * 2
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("which", ["proxy", "origin"])
def test_certificates_behind_a_tls_proxy_are_checked(
    hook_for: Callable[..., PooledS3Hook], tls_files: TlsFiles, client_files: ClientFiles, which: str
) -> None:
    trusted, other = str(tls_files.ca), str(client_files.certificate)
    with (
        Recorder(tls=tls_files.server_context()) as server,
        RecordingProxy(server.port, tls_files.server_context()) as proxy,
    ):
        config = {
            "proxies": {"https": proxy.url},
            "proxies_config": {"proxy_ca_bundle": other if which == "proxy" else trusted},
        }
        hook = hook_for("https://localhost:9", config, verify=trusted if which == "proxy" else other)
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            assert isinstance(get(transfer), ConfigurationError)
    assert server.requests == []


def test_proxy_that_refuses_a_tunnel_is_an_error(
    hook_for: Callable[..., PooledS3Hook], tls_files: TlsFiles
) -> None:
    with Recorder(lambda _: respond(407)) as proxy:
        hook = hook_for("https://localhost:9", {"proxies": {"https": proxy.url}}, verify=str(tls_files.ca))
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            failed = get(transfer)
    assert isinstance(failed, RollupError)
    assert "Tunnel connection failed: 407" in str(failed)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_more_threads_than_connections_wait_behind_proxies(
    hook_for: Callable[..., PooledS3Hook], tls_files: TlsFiles, scheme: str
) -> None:
    with (
        Recorder(tls=tls_files.server_context() if scheme == "https" else None) as server,
        RecordingProxy(server.port) as proxy,
    ):
        config = {"proxies": {"http": proxy.url, "https": proxy.url}}
        hook = hook_for(f"{scheme}://localhost:9", config, verify=str(tls_files.ca))
        assert hook.client is not None
        threads = [threading.Thread(target=hook.head, args=[Location(BUCKET, f"{n}")]) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (
            len(server.requests) + len([request for request in proxy.requests if request.method == "HEAD"])
            == 12
        )
        assert proxy.peak_connections == 1


# -- headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "sent"),
    [("true", "requester"), (True, "requester"), ("False", None), (False, None), ("0", None)],
)
def test_requester_pays_is_read_as_airflow_writes_it(
    hook_for: Callable[..., PooledS3Hook], stated: object, sent: str | None
) -> None:
    """If the connection is a URI, every value of its extra is a string."""
    with Recorder() as server:
        ask_both(hook_for(server.url, requester_pays=stated))
    assert_alike(server.requests)
    assert {request["x-amz-request-payer"] for request in server.requests} == {sent}


def test_requester_pays_other_than_true_or_false_is_refused(hook_for: Callable[..., PooledS3Hook]) -> None:
    hook = hook_for("http://localhost:1", requester_pays="perhaps")
    with pytest.raises(ConfigurationError, match="requester_pays='perhaps'; set it to true or false"):
        hook.head(Location(BUCKET, KEY))


def test_headers_of_boto3_handlers_are_sent_by_both(hook_for: Callable[..., PooledS3Hook]) -> None:
    def add(request: Any, **_: Any) -> None:
        request.headers["X-Team"] = "logs"

    with Recorder() as server:
        hook = hook_for(server.url)
        hook.client.meta.events.register("before-sign.s3.PutObject", add)
        ask_both(hook)
    assert_alike(server.requests)
    assert [request["x-team"] for request in server.requests] == [None, "logs"] * 2


def test_user_agent_names_botocore_in_each_request(hook_for: Callable[..., PooledS3Hook]) -> None:
    with Recorder() as server:
        hook = hook_for(server.url)
        for _ in range(2):
            hook.head(Location(BUCKET, KEY))
    first, second = (one["user-agent"] for one in server.requests)
    assert first == second
    assert "Botocore/" in (first or "")


def test_user_agent_names_the_calling_operator(hook_for: Callable[..., PooledS3Hook]) -> None:
    class PackOperator:
        def execute(self, url: str) -> None:
            hook_for(url).head(Location(BUCKET, KEY))

    with Recorder() as server:
        PackOperator().execute(server.url)
        hook_for(server.url).head(Location(BUCKET, KEY))
    first, second = (str(one["user-agent"]) for one in server.requests)
    assert " Caller/PackOperator " in first
    assert " Caller/Unknown " in second


def test_connection_without_signature_version_4_is_refused(hook_for: Callable[..., PooledS3Hook]) -> None:
    hook = hook_for("http://localhost:1", {"signature_version": "s3"})
    with pytest.raises(ConfigurationError, match="remove 'signature_version' from its config_kwargs"):
        hook.open_transfer(BUCKET, BUCKET)


@pytest.mark.parametrize("etag", ['abc"\r\nX-Evil: 1\r\nX: "', "abc\nX-Evil: 1", "abc\rX-Evil: 1", "a\0b"])
def test_line_break_in_an_etag_adds_no_header(hook_for: Callable[..., PooledS3Hook], etag: str) -> None:
    source, target = Location(BUCKET, KEY), Location(BUCKET, "copy")
    operations: list[Callable[[SocketTransfer], Callable[[Callable[[Any], None]], object]]] = [
        lambda transfer: lambda done: transfer.get(source, etag, memoryview(bytearray(9)), done),
        lambda transfer: lambda done: transfer.copy(source, etag, target, {}, done),
        lambda transfer: lambda done: transfer.copy_range(source, etag, 0, 9, target, "id", 1, done),
        lambda transfer: (
            lambda done: transfer.put(target, memoryview(b""), 0, {"x-amz-storage-class": etag}, done)
        ),
    ]
    with Recorder() as server:
        hook = hook_for(server.url)
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            for operation in operations:
                failed = outcome(transfer, operation(transfer))
                assert isinstance(failed, RollupError)
                assert "cannot be sent as the value of a header" in str(failed)
            assert isinstance(get(transfer), Downloaded)
        with pytest.raises(RollupError, match="cannot be sent as the value of a header"):
            hook.read_range(source, etag, 0, 5)
        with pytest.raises(RollupError, match="cannot be sent as the value of a header"):
            hook.delete_if(source, etag)
    assert len(server.requests) == 1


# -- checksums ---------------------------------------------------------------------------------------------


def test_every_write_has_a_checksum(hook_for: Callable[..., PooledS3Hook]) -> None:
    """Buckets with Object Lock require one."""

    def answer(request: Recorded) -> bytes:
        has_checksum = any("checksum-crc" in name or name == "content-md5" for name, _ in request.headers)
        if request.method == "PUT" and not has_checksum:
            return refuse(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required")
        return like_s3(request)

    with Recorder(answer) as server:
        hook = hook_for(server.url)
        assert hook.write(Location(BUCKET, KEY), BODY, "text/plain") == ETAG
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            assert isinstance(put(transfer), Uploaded)
    assert [request["x-amz-checksum-crc64nvme"] for request in server.requests] == [
        to_header(crc64(BODY))
    ] * 2
    assert all(is_signed(request, SECRET) for request in server.requests)


REFUSALS = {
    "Backblaze B2": (
        400,
        "InvalidArgument",
        "Unsupported header 'x-amz-checksum' received for this API call.",
    ),
    "Cloudflare R2": (501, "NotImplemented", "Header 'x-amz-checksum' with value 'x' not implemented"),
    "older algorithms": (400, "InvalidRequest", "Checksum algorithm provided is unsupported."),
}


def without_checksums(status: int, code: str, message: str) -> Callable[[Recorded], bytes]:
    """A server that refuses all checksum headers."""

    def answer(request: Recorded) -> bytes:
        if any("checksum" in name for name, _ in request.headers):
            refused = refuse(status, code, message)
            return refused.partition(b"<Error>")[0] if request.method == "HEAD" else refused
        if request.method == "PUT":
            stated = request["content-md5"]
            if "x-amz-copy-source" in dict(request.headers):
                return respond(
                    200, f"<CopyObjectResult><ETag>&quot;{ETAG}&quot;</ETag></CopyObjectResult>".encode()
                )
            if stated != content_md5(request.body):
                return refuse(400, "BadDigest")
        return like_s3(request)

    return answer


@pytest.mark.parametrize("kind", REFUSALS)
def test_refused_checksum_headers_are_not_sent_again(
    hook_for: Callable[..., PooledS3Hook], kind: str
) -> None:
    source, target = Location(BUCKET, KEY), Location(BUCKET, "copy")

    def use(hook: PooledS3Hook) -> None:
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            assert put(transfer) == Uploaded(ETAG, None)
            got = get(transfer)
            assert isinstance(got, Downloaded)
            assert got.size == 5
            copied: object = outcome(transfer, lambda done: transfer.copy(source, ETAG, target, {}, done))
            assert copied == Uploaded(ETAG, None)
        head = hook.head(source)
        assert head is not None
        assert (head.size, head.crc64nvme) == (5, None)
        assert hook.write(source, BODY, "text/plain") == ETAG

    with Recorder(without_checksums(*REFUSALS[kind])) as server:
        hook = hook_for(server.url)
        use(hook)
        # PUT, GET and copy are each refused once; HEAD and the second PUT no longer send the headers.
        assert len(server.requests) == 3 + 5
        use(hook)
        assert len(server.requests) == 3 + 5 + 5
        assert hook.refuses_wrong_crc(target) is False
    assert all(is_signed(request, SECRET) for request in server.requests)
    with Recorder(without_checksums(*REFUSALS[kind])) as server:
        # The control plane also finds this out by itself.
        hook = hook_for(server.url)
        assert hook.write(source, BODY, "text/plain") == ETAG
        assert hook.head(source) is not None
        # After a HEAD with status 400, botocore sends HeadBucket to find the region.
        assert len([request for request in server.requests if request.path != f"/{BUCKET}"]) == 4


@pytest.mark.parametrize("where", ["connection", "environment"])
def test_checksum_setting_of_botocore_is_followed(
    hook_for: Callable[..., PooledS3Hook], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = {"request_checksum_calculation": "when_required"} if where == "connection" else {}
    if where == "environment":
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
    with Recorder() as server:
        hook = hook_for(server.url, config)
        hook.write(Location(BUCKET, KEY), BODY, "text/plain")
        with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
            assert isinstance(put(transfer), Uploaded)
    assert [request["content-md5"] for request in server.requests] == [content_md5(BODY)] * 2
    assert [request["x-amz-checksum-crc64nvme"] for request in server.requests] == [None] * 2


def test_refusal_for_another_reason_is_reported(hook_for: Callable[..., PooledS3Hook]) -> None:
    """After a refusal for another reason, the next upload carries a CRC again."""
    refusals = [refuse(400, "InvalidArgument", "no such storage class")] * 2

    def answer(request: Recorded) -> bytes:
        return refusals.pop() if refusals else like_s3(request)

    with Recorder(answer) as server, closing(hook_for(server.url).open_transfer(BUCKET, BUCKET)) as transfer:
        failed = put(transfer)
        assert isinstance(failed, RollupError)
        assert "no such storage class" in str(failed)
        assert isinstance(put(transfer), Uploaded)
    assert [request["content-md5"] is None for request in server.requests] == [True, False, True]


# -- time --------------------------------------------------------------------------------------------------


def test_requests_are_signed_with_the_present_time(
    hook_for: Callable[..., PooledS3Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack task may run for hours; S3 refuses signatures that are older than 15 minutes."""
    real = time.time
    with Recorder() as server, closing(hook_for(server.url).open_transfer(BUCKET, BUCKET)) as transfer:
        for hours in (0, 1, 20, -3):
            monkeypatch.setattr(time, "time", lambda hours=hours: real() + hours * 3600)
            assert isinstance(get(transfer), Downloaded)
            assert isinstance(put(transfer), Uploaded)
            now = time.gmtime(time.time())
            for request in server.requests[-2:]:
                stated = time.strptime(request["x-amz-date"] or "", "%Y%m%dT%H%M%SZ")
                assert abs(time.mktime(now) - time.mktime(stated)) < 60
                assert is_signed(request, SECRET)


def test_hook_made_after_a_rotation_uses_the_new_keys(
    hook_for: Callable[..., PooledS3Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recorder() as server:
        hook_for(server.url).head(Location(BUCKET, KEY))
        connection = json.loads(os.environ["AIRFLOW_CONN_PLANES"]) | {"login": "rotated"}
        monkeypatch.setenv("AIRFLOW_CONN_PLANES", json.dumps(connection))
        with PooledS3Hook(aws_conn_id="planes", max_connections=4) as hook:
            hook.head(Location(BUCKET, KEY))
            with closing(hook.open_transfer(BUCKET, BUCKET)) as transfer:
                assert isinstance(get(transfer), Downloaded)
    keys = [
        (request["authorization"] or "").partition("Credential=")[2].partition("/")[0]
        for request in server.requests
    ]
    assert keys == ["key", "rotated", "rotated"]


def test_credentials_that_cannot_be_renewed_end_the_request(
    hook_for: Callable[..., PooledS3Hook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request fails through its callback, and the next one succeeds as soon as there are credentials."""
    with Recorder() as server, closing(hook_for(server.url).open_transfer(BUCKET, BUCKET)) as transfer:
        with monkeypatch.context() as patch:

            def fail(_: Credentials) -> None:
                raise CredentialRetrievalError(provider="metadata", error_msg="unavailable")

            patch.setattr(Credentials, "get_frozen_credentials", fail)
            for _ in range(3):
                failed = get(transfer)
                assert isinstance(failed, RollupError)
                assert "unavailable" in str(failed)
        assert isinstance(get(transfer), Downloaded)
        assert server.peak_connections == 1


def test_tls_connection_closed_in_the_handshake_is_transient(
    hook_for: Callable[..., PooledS3Hook], tls_files: TlsFiles
) -> None:
    """A load balancer that restarts does this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_all() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.recv(1)
                connection.close()

        thread = threading.Thread(target=close_all)
        thread.start()
        try:
            url = f"https://localhost:{listener.getsockname()[1]}"
            with closing(hook_for(url, verify=str(tls_files.ca)).open_transfer(BUCKET, BUCKET)) as transfer:
                assert type(get(transfer)) is TransientError
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_SECONDS)
