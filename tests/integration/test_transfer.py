"""The data plane and responses that are rare: in chunks, in pieces, too early, too late, broken or missing.

Other tests use real servers. Those never send these responses, so this module has servers of its own.
"""

import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from botocore.credentials import Credentials
from botocore.httpsession import get_cert_path

from dev.servers import RcloneServer
from dev.tls import TlsFiles
from include.log_rollup.crc import crc64, to_header
from include.log_rollup.errors import (
    AccessError,
    ChangedBufferError,
    ConfigurationError,
    ForeignResponseError,
    InputChangedError,
    NotFoundError,
    RollupError,
    ThrottledError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import Downloaded, Location, Uploaded
from include.log_rollup.units import MIB
from log_rollup_plugin.s3.connection import SEND_BYTES
from log_rollup_plugin.s3.connector import BucketEndpoint
from log_rollup_plugin.s3.transfer import SocketTransfer, TransferSettings, TransferSide
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline, stream_on
from tests.support.raw_hours import RAW, make_hour

BODY = b"2026-11-26T00:00:00Z hello\n" * 900
ETAG = "0123456789abcdef0123456789abcdef"
PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "%s"\r\n\r\n' % (len(BODY), ETAG.encode())
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "%s"\r\n\r\n' % ETAG.encode()
ENDLESS = b'HTTP/1.1 200 OK\r\nETag: "%s"\r\n\r\n' % ETAG.encode()
STORED = b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "%s"\r\n\r\n' % ETAG.encode()
PATIENCE_SECONDS = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """The reply of a server to one request.

    :param raw: the response with its head
    :param closes: whether the server closes the connection afterwards
    :param pieces: how many bytes at the beginning are sent one by one
    :param pause: seconds after each of these bytes
    :param reads_body: whether the server reads the body of an upload before it replies
    """

    raw: bytes
    closes: bool = False
    pieces: int = 0
    pause: float = 0.0005
    reads_body: bool = True


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of a request and the beginning of its body; both empty if the connection ended before."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            return b"", b""
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def in_chunks(body: bytes) -> bytes:
    """A body in chunked encoding: two chunks and the last one."""
    half = len(body) // 2
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))


class Server(ABC):
    """Listens on a free port, with a thread for each connection.

    :param tls: files for TLS; None for plain HTTP
    """

    def __init__(self, tls: TlsFiles | None = None, address: str = "127.0.0.1") -> None:
        self.tls = tls
        self.connections = 0
        self._address = address
        self._connected: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server((self._address, 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in tuple(self._connected):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    @property
    def host(self) -> str:
        """Address and port."""
        return f"{self._address}:{self._listener.getsockname()[1]}"

    @property
    def origin(self) -> str:
        """Scheme, address and port."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def _accept(self) -> None:
        context = self.tls.server_context() if self.tls else None
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with suppress(OSError):
                connection = context.wrap_socket(accepted, server_side=True) if context else accepted
                self._connected.append(connection)
                self._threads.append(threading.Thread(target=self._run, args=[connection]))
                self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.serve(connection)

    @abstractmethod
    def serve(self, connection: socket.socket) -> None:
        """Serve a connection until it ends."""


class ScriptedServer(Server):
    """Sends the n-th of its replies to the n-th request, and the last one to all later requests."""

    def __init__(self, replies: tuple[Reply, ...], *options: Any) -> None:
        super().__init__(*options)
        self.heads: list[bytes] = []
        self.whole_bodies = self.replied = 0
        self._replies = replies

    def serve(self, connection: socket.socket) -> None:
        """Reply to one request after the other."""
        while self._exchange(connection):
            pass

    def _exchange(self, connection: socket.socket) -> bool:
        """Serve a request; whether the connection is kept."""
        head, body = read_head(connection)
        if not head:
            return False
        reply = self._replies[min(len(self.heads), len(self._replies) - 1)]
        self.heads.append(head)
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        received = len(body)
        while reply.reads_body and received < length:
            chunk = connection.recv(65536)
            if not chunk:
                return False
            received += len(chunk)
        self.whole_bodies += received == length
        for position in range(min(reply.pieces, len(reply.raw))):
            connection.sendall(reply.raw[position : position + 1])
            time.sleep(reply.pause)
        connection.sendall(reply.raw[reply.pieces :])
        self.replied += 1
        return not reply.closes


def settings(ca: Path | None = None, seconds: float = 5.0) -> TransferSettings:
    """Settings of a transfer, with a CA file or without; ``seconds`` are those of both timeouts."""
    wait = timedelta(seconds=seconds)
    return TransferSettings(str(ca) if ca else False, str(ca or ""), wait, wait, {})


@contextmanager
def transfer_to(
    server: ScriptedServer, connections: int = 1, seconds: float = 5.0
) -> Iterator[SocketTransfer]:
    """A transfer with the bucket ``b`` on a server."""
    endpoint = BucketEndpoint(server.origin, "/b/", "us-east-1")
    ca = server.tls.ca if server.tls else None
    credentials = Credentials("key", "secret")
    with closing(
        SocketTransfer(TransferSide({"b": endpoint}, credentials, settings(ca, seconds)), connections)
    ) as transfer:
        yield transfer


def fetch(transfer: SocketTransfer, into: memoryview | bytearray) -> Downloaded | Exception:
    """GET an object."""
    return outcome(transfer, lambda done: transfer.get(Location("b", "k"), ETAG, memoryview(into), done))


def fetch_range(transfer: SocketTransfer, first: int, into: bytearray) -> Downloaded | Exception:
    """GET a range of an object."""
    return outcome(
        transfer, lambda done: transfer.get_range(Location("b", "k"), ETAG, first, memoryview(into), done)
    )


def store(transfer: SocketTransfer, body: bytes) -> Uploaded | Exception:
    """PUT an object."""
    view = memoryview(body)
    return outcome(transfer, lambda done: transfer.put(Location("b", "k"), view, crc64(view), {}, done))


def outcome(
    transfer: SocketTransfer, ask: Callable[[Callable[[T | Exception], None]], object]
) -> T | Exception:
    """The result of a request, or its error."""
    results: list[T | Exception] = []
    ask(results.append)
    until = time.monotonic() + PATIENCE_SECONDS
    while not results and time.monotonic() < until:
        transfer.wait(0.5)
    (result,) = results
    return result


@pytest.fixture(params=[False, True], ids=["http", "tls"])
def tls(request: pytest.FixtureRequest, tls_files: TlsFiles) -> TlsFiles | None:
    """Plain HTTP and TLS."""
    return tls_files if request.param else None


GOOD = {
    "with a length": Reply(PLAIN + BODY),
    "in pieces": Reply(PLAIN + BODY, pieces=len(PLAIN) + 5),
    "in chunks": Reply(CHUNKED + in_chunks(BODY)),
    "in chunks, in pieces": Reply(CHUNKED + in_chunks(BODY), pieces=len(CHUNKED) + 5),
    "after an interim response": Reply(b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN + BODY),
    "with a header twice": Reply(PLAIN.replace(b"\r\nETag", b"\r\nVary: a\r\nVary: b\r\nETag") + BODY),
    "with a folded header": Reply(PLAIN.replace(b"\r\nETag", b"\r\nX-Long: a\r\n b\r\nETag") + BODY),
    "and the connection closed": Reply(
        PLAIN.replace(b"\r\nETag", b"\r\nConnection: close\r\nETag") + BODY, closes=True
    ),
    "HTTP/1.0, until close": Reply(ENDLESS.replace(b"1.1", b"1.0") + BODY, closes=True),
    "until close": Reply(ENDLESS + BODY, closes=True),
    "with lines that end with LF": Reply(PLAIN.replace(b"\r\n", b"\n") + BODY),
    "with lines that end with LF, in pieces": Reply(PLAIN.replace(b"\r\n", b"\n") + BODY, pieces=len(PLAIN)),
    "with two spaces in the status line": Reply(PLAIN.replace(b" 200", b"  200") + BODY),
    "with a sign in its length": Reply(PLAIN.replace(b"Length: ", b"Length: +") + BODY),
    "with the encoding identity": Reply(
        PLAIN.replace(b"\r\nETag", b"\r\nTransfer-Encoding: Identity\r\nETag") + BODY
    ),
    "in chunks, with odd names": Reply(
        CHUNKED.replace(b"\r\nETag", b"\r\nX : 1\r\na b: c\r\nnonsense\r\nX-A: \0\r\nETag") + in_chunks(BODY)
    ),
    "after odd interim responses": Reply(
        b"HTTP/1.1  103 Early Hints\na b: c\n\n\r\nHTTP/1.1 102\r\n\r\n" + PLAIN + BODY
    ),
    "after an empty line": Reply(b"\r\n" + PLAIN + BODY),
}


@pytest.mark.parametrize("kind", GOOD)
def test_body_is_complete_and_the_connection_is_kept(tls: TlsFiles | None, kind: str) -> None:
    reply = GOOD[kind]
    with ScriptedServer((reply,), tls) as server, transfer_to(server) as transfer:
        for _ in range(3):
            into = bytearray(len(BODY) + 10)
            assert fetch(transfer, memoryview(into)[: len(BODY)]) == Downloaded(len(BODY), ETAG, None, True)
            assert bytes(into) == BODY + bytes(10)
        assert server.connections == (3 if reply.closes else 1)


@pytest.mark.parametrize("size", [100, len(BODY)])
def test_line_break_after_a_body_does_not_count(tls: TlsFiles | None, size: int) -> None:
    """The break arrives with the head of a small body, and before the response that follows a large one."""
    head = PLAIN.replace(b"%d" % len(BODY), b"%d" % size)
    with (
        ScriptedServer((Reply(head + BODY[:size] + b"\r\n"),), tls) as server,
        transfer_to(server) as transfer,
    ):
        for _ in range(3):
            into = bytearray(size)
            assert fetch(transfer, into) == Downloaded(size, ETAG, None, True)
            assert into == BODY[:size]


def test_weak_etags_lose_their_mark() -> None:
    got, stored = (
        Reply(head.replace(b'"', b'W/"', 1) + body) for head, body in ((PLAIN, BODY), (STORED, b""))
    )
    copied = Reply(xml(COPIED.replace(b"<ETag>", b"<ETag>W/")))
    with ScriptedServer((got, stored, copied)) as server, transfer_to(server) as transfer:
        assert fetch(transfer, bytearray(len(BODY))) == Downloaded(len(BODY), ETAG, None, True)
        assert store(transfer, BODY) == Uploaded(ETAG, None)
        assert copy(transfer) == Uploaded(ETAG, CRC)


def test_odd_heads_of_uploads_are_read(tls: TlsFiles | None) -> None:
    reply = Reply(STORED.replace(b"\r\nETag", b"\r\nx-amz-meta-a b: c\r\nTransfer-Encoding: identity\nETag"))
    with ScriptedServer((reply,), tls) as server, transfer_to(server) as transfer:
        for _ in range(2):
            assert store(transfer, BODY) == Uploaded(ETAG, None)
        assert server.connections == 1


@pytest.mark.parametrize("reply", [GOOD["with a length"], GOOD["in chunks"], GOOD["until close"]])
def test_body_longer_than_its_buffer_stays_inside_it(tls: TlsFiles | None, reply: Reply) -> None:
    with ScriptedServer((reply,), tls) as server, transfer_to(server) as transfer:
        for _ in range(2):
            into = bytearray(len(BODY) + 10)
            result = fetch(transfer, memoryview(into)[:1000])
            assert isinstance(result, Downloaded)
            assert result.size == len(BODY)
            assert into[1000:] == bytes(len(into) - 1000)


BROKEN = {
    "a body that ends early": Reply(PLAIN + BODY[:-1], closes=True),
    "chunks that end early": Reply(CHUNKED + in_chunks(BODY)[:-9], closes=True),
    "a head that ends early": Reply(PLAIN[:-3], closes=True),
    "no response": Reply(b"", closes=True),
    "no HTTP": Reply(b"SSH-2.0-OpenSSH\r\n\r\n", closes=True),
    "two lengths": Reply(PLAIN.replace(b"\r\nETag", b"\r\nContent-Length: 1\r\nETag") + BODY),
    "a head without an end": Reply(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, closes=True),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_response_is_transient_and_the_next_succeeds(tls: TlsFiles | None, kind: str) -> None:
    with ScriptedServer((BROKEN[kind], Reply(PLAIN + BODY)), tls) as server, transfer_to(server) as transfer:
        into = bytearray(len(BODY))
        failed = fetch(transfer, into)
        assert type(failed) is TransientError
        assert "GET s3://b/k: " in str(failed)
        assert fetch(transfer, into) == Downloaded(len(BODY), ETAG, None, True)
        assert into == BODY


@pytest.mark.parametrize(
    ("status", "stated", "total"),
    [
        (206, "bytes 1000-1009/24300", 24300),
        (200, "Bytes 1000-1009/24300", None),
        (206, "bytes 1000-1009/*", None),
        (206, "", None),
        (
            200,
            "bytes 0-9/24300",
            "the bytes from 1000 on were requested, but the server sent those from 0 on",
        ),
    ],
)
def test_stated_range_must_be_the_requested_one(status: int, stated: str, total: int | str | None) -> None:
    head = f'HTTP/1.1 {status} OK\r\nContent-Length: 10\r\nContent-Range: {stated}\r\nETag: "{ETAG}"\r\n\r\n'
    with ScriptedServer((Reply(head.encode() + BODY[:10]),)) as server, transfer_to(server) as transfer:
        result = fetch_range(transfer, 1000, bytearray(10))
    if isinstance(total, str):
        assert type(result) is TransientError
        assert total in str(result)
    else:
        assert result == Downloaded(10, ETAG, None, True, total)


PAGE_WITH_200 = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n<html>wait</html>"
ERROR_WITH_200 = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n<Error><Code>InternalError</Code><Message/></Error>\n"
)


@pytest.mark.parametrize("response", [PAGE_WITH_200, ERROR_WITH_200])
@pytest.mark.parametrize("call", ["get", "put", "upload part"])
def test_success_that_is_not_one_of_s3_is_transient(response: bytes, call: str) -> None:
    with ScriptedServer((Reply(response),)) as server, transfer_to(server) as transfer:
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: fetch(transfer, bytearray(len(BODY))),
            "put": lambda: store(transfer, BODY),
            "upload part": lambda: outcome(
                transfer,
                lambda done: transfer.put_range(
                    Location("b", "k"), "id", 1, memoryview(BODY), crc64(BODY), done
                ),
            ),
        }
        assert isinstance(calls[call](), TransientError)


def refusal(status: int, code: str, *headers: str) -> bytes:
    """An error response as S3 sends it."""
    xml = f"<Error><Code>{code}</Code><Message>why</Message></Error>".encode()
    lines = (f"HTTP/1.1 {status} No", "Transfer-Encoding: chunked", *headers, "", "")
    return "\r\n".join(lines).encode() + in_chunks(xml)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (refusal(404, "NoSuchKey"), NotFoundError),
        (refusal(403, "AccessDenied"), AccessError),
        (refusal(503, "SlowDown", "Retry-After: 3"), ThrottledError),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", RollupError),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad", TransientError),
    ],
)  # fmt: skip
def test_error_response_keeps_its_connection(
    tls: TlsFiles | None, response: bytes, error: type[RollupError]
) -> None:
    with (
        ScriptedServer((Reply(response), Reply(PLAIN + BODY)), tls) as server,
        transfer_to(server) as transfer,
    ):
        into = bytearray(len(BODY))
        failed = fetch(transfer, into)
        assert isinstance(failed, error)
        assert into == bytes(len(BODY))
        if isinstance(failed, ThrottledError):
            assert failed.retry_after == 3.0
            assert "SlowDown (why)" in str(failed)
        assert isinstance(fetch(transfer, into), Downloaded)
        assert server.connections == 1


@pytest.mark.parametrize("size", [1, SEND_BYTES, 32 * MIB])
def test_body_that_changed_in_memory_is_not_sent_whole(tls: TlsFiles | None, size: int) -> None:
    body = bytearray(size)

    def put(done: Callable[[Uploaded | Exception], None]) -> None:
        stated = crc64(bytes(body))
        body[-1] ^= 1
        transfer.put(Location("b", "k"), memoryview(body), stated, {}, done)

    with ScriptedServer((Reply(STORED),), tls) as server, transfer_to(server) as transfer:
        assert store(transfer, bytes(size)) == Uploaded(ETAG, None)
        failed = outcome(transfer, put)
        assert isinstance(failed, ChangedBufferError)
        assert "PUT s3://b/k: the buffer changed after its objects were read" in str(failed)
        assert store(transfer, bytes(size)) == Uploaded(ETAG, None)
        assert server.whole_bodies == server.connections == 2


def test_upload_refused_early_fails_with_the_refusal(
    tls: TlsFiles | None,
) -> None:
    early = Reply(refusal(403, "AccessDenied"), reads_body=False)
    body = bytes(32 * 1024**2)
    with ScriptedServer((early, Reply(STORED)), tls) as server, transfer_to(server) as transfer:
        assert isinstance(store(transfer, body), AccessError)
        assert store(transfer, body) == Uploaded(ETAG, None)
        # The server must not read the rest of the first body as a request.
        assert server.connections == 2


def test_success_before_the_whole_upload_is_an_error(tls: TlsFiles | None) -> None:
    early = Reply(STORED, reads_body=False)
    with ScriptedServer((early,), tls) as server, transfer_to(server) as transfer:
        failed = store(transfer, bytes(32 * 1024**2))
        assert isinstance(failed, TransientError)
        assert "before the whole body was sent" in str(failed)


def test_connection_closed_while_idle_is_replaced(tls: TlsFiles | None) -> None:
    reply = Reply(PLAIN + BODY, closes=True)
    with ScriptedServer((reply,), tls) as server, transfer_to(server) as transfer:
        into = bytearray(len(BODY))
        for _ in range(20):
            assert isinstance(fetch(transfer, into), Downloaded)
        assert len(server.heads) == 20


def test_request_on_a_just_closed_connection_is_resent_once(
    tls: TlsFiles | None,
) -> None:
    closed = Reply(b"", closes=True)
    with ScriptedServer((Reply(PLAIN + BODY), closed, Reply(PLAIN + BODY), closed), tls) as server:
        with transfer_to(server) as transfer:
            into = bytearray(len(BODY))
            assert isinstance(fetch(transfer, into), Downloaded)
            # Closed without a response: sent again.
            assert isinstance(fetch(transfer, into), Downloaded)
            assert server.connections == 2
            # Closed without a response twice.
            assert isinstance(fetch(transfer, into), TransientError)
        assert server.connections == 3
        assert len(server.heads) == 5


def test_stalled_answer_ends_after_the_response_timeout(tls: TlsFiles | None) -> None:
    stops = Reply(PLAIN + BODY[:100])
    with (
        ScriptedServer((stops, Reply(PLAIN + BODY)), tls) as server,
        transfer_to(server, seconds=1.0) as transfer,
    ):
        failed = fetch(transfer, bytearray(len(BODY)))
        assert isinstance(failed, TransientError)
        assert "no byte arrived for 1 s" in str(failed)
        assert isinstance(fetch(transfer, bytearray(len(BODY))), Downloaded)


def test_request_can_be_cancelled_at_any_time(tls: TlsFiles | None) -> None:
    with ScriptedServer((Reply(PLAIN + BODY[:-1]),), tls) as server, transfer_to(server, 2) as transfer:
        buffers = [bytearray(len(BODY)) for _ in range(5)]
        results: dict[int, list[object]] = {number: [] for number in range(5)}
        requests = [
            transfer.get(
                Location("b", f"{number}"), ETAG, memoryview(buffers[number]), results[number].append
            )
            for number in range(5)
        ]
        # A request that waits, and one whose connection is being made.
        requests[4].cancel()
        requests[0].cancel()
        until = time.monotonic() + PATIENCE_SECONDS
        while len(server.heads) < 2 and time.monotonic() < until:
            transfer.wait(0.1)
        # Requests that were sent; the last one is then sent.
        requests[1].cancel()
        requests[2].cancel()
        while len(server.heads) < 3 and time.monotonic() < until:
            transfer.wait(0.1)
        assert len(server.heads) == 3
        requests[3].cancel()
        requests[3].cancel()
        assert [[type(result) for result in ended] for ended in results.values()] == [[TransientError]] * 5
        kept = [bytes(buffer) for buffer in buffers]
        transfer.wait(0.1)
        assert [bytes(buffer) for buffer in buffers] == kept


def test_host_that_cannot_be_reached_is_transient() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for origin in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid:1"):
        endpoint = BucketEndpoint(origin, "/b/", "us-east-1")
        with closing(
            SocketTransfer(TransferSide({"b": endpoint}, Credentials("key", "secret"), settings()), 2)
        ) as transfer:
            failed = fetch(transfer, bytearray(10))
            assert type(failed) is TransientError


def refused_certificate(server: ScriptedServer, chosen: TransferSettings) -> Exception:
    """The error for a server whose certificate is not accepted."""
    endpoint = BucketEndpoint(server.origin, "/b/", "us-east-1")
    with closing(
        SocketTransfer(TransferSide({"b": endpoint}, Credentials("key", "secret"), chosen), 1)
    ) as transfer:
        failed = fetch(transfer, bytearray(10))
    assert isinstance(failed, ConfigurationError)
    assert server.heads == []
    return failed


def test_certificates_are_checked_against_the_ca_and_the_name(tls_files: TlsFiles, tmp_path: Path) -> None:
    wait = timedelta(seconds=5)
    with ScriptedServer((Reply(PLAIN + BODY),), tls_files) as server:
        unknown = refused_certificate(
            server, TransferSettings(True, str(get_cert_path(True)), wait, wait, {})
        )
        assert "name the CA file" in str(unknown)
    # The certificate is for 127.0.0.1.
    with ScriptedServer((Reply(PLAIN + BODY),), tls_files, "127.0.0.2") as server:
        assert "127.0.0.2" in str(refused_certificate(server, settings(tls_files.ca)))
    broken = tmp_path / "ca.pem"
    endpoint = BucketEndpoint("https://s3.invalid", "/b/", "us-east-1")
    for text in (None, "no certificate"):
        if text:
            broken.write_text(text)
        with pytest.raises(ConfigurationError, match=r"ca\.pem cannot be used"):
            SocketTransfer(TransferSide({"b": endpoint}, Credentials("key", "secret"), settings(broken)), 1)


def test_proxy_of_unknown_kind_is_refused_without_password() -> None:
    endpoint = BucketEndpoint("https://s3.invalid", "/b/", "us-east-1", "socks5://me:secret@proxy.invalid")
    with pytest.raises(ConfigurationError, match=r"socks5://proxy\.invalid cannot be used") as refused:
        SocketTransfer(TransferSide({"b": endpoint}, Credentials("key", "secret"), settings()), 1)
    assert "secret" not in str(refused.value)


def test_head_in_tls_records_of_one_byte_is_read(tls_files: TlsFiles) -> None:
    """All records are there before the first is read, and more of them than Python allows recursive calls."""
    head = PLAIN.replace(b"\r\nETag", b"\r\nX-Long: " + b"x" * 3000 + b"\r\nETag")
    reply = Reply(head + BODY, pieces=len(head) + 5, pause=0.0)
    with ScriptedServer((Reply(PLAIN + BODY), reply), tls_files) as server, transfer_to(server) as transfer:
        into = bytearray(len(BODY))
        assert isinstance(fetch(transfer, into), Downloaded)
        results: list[Downloaded | Exception] = []
        transfer.get(Location("b", "k"), ETAG, memoryview(into), results.append)
        until = time.monotonic() + PATIENCE_SECONDS
        while server.replied < 2 and time.monotonic() < until:
            time.sleep(0.01)
        while not results and time.monotonic() < until:
            transfer.wait(0.5)
        assert results == [Downloaded(len(BODY), ETAG, None, True)]
        assert into == BODY


@pytest.mark.parametrize("value", [b"a\nX-Evil: 1", b"a\rX-Evil: 1", b"a\r\n X-Evil: 1"])
def test_line_break_in_a_response_header_is_not_kept(value: bytes) -> None:
    head = PLAIN.replace(ETAG.encode(), value)
    with ScriptedServer((Reply(head + BODY),)) as server, transfer_to(server) as transfer:
        result = fetch(transfer, bytearray(len(BODY)))
    if isinstance(result, Downloaded):
        assert result.etag.isprintable()
    else:
        assert type(result) in (TransientError, ForeignResponseError)


@pytest.mark.parametrize("value", ["!", "AAAA", "AAAAAAAAAAA", "=", "ä", "AAAAAAAAAAAAAAAA"])
@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32", "crc32c"])
def test_damaged_checksum_header_counts_as_none(algorithm: str, value: str) -> None:
    stated = f"\r\nx-amz-checksum-{algorithm}: {value}\r\nETag".encode("latin-1")
    got, stored = (
        Reply(head.replace(b"\r\nETag", stated) + body) for head, body in ((PLAIN, BODY), (STORED, b""))
    )
    with ScriptedServer((got, stored)) as server, transfer_to(server) as transfer:
        assert fetch(transfer, bytearray(len(BODY))) == Downloaded(len(BODY), ETAG, None, True)
        assert store(transfer, BODY) == Uploaded(ETAG, None)


# -- copies ------------------------------------------------------------------------------------------------

CRC = 0x0123456789ABCDEF
COPIED = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<CopyObjectResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    f"<LastModified>2026-11-26T00:00:00.000Z</LastModified><ETag>&quot;{ETAG}&quot;</ETag>"
    f"<ChecksumCRC64NVME>{to_header(CRC)}</ChecksumCRC64NVME></CopyObjectResult>"
).encode()
SOURCE, TARGET = Location("b", "raw/ü a+b"), Location("b", "k")


def xml(body: bytes, status: int = 200, space: bytes = b"") -> bytes:
    """A chunked response, with white space before its XML as S3 sends it while it copies."""
    head = b"HTTP/1.1 %d Status\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    spaces = b"".join(b"1\r\n%c\r\n" % byte for byte in space)
    return head + spaces + in_chunks(body)


def copy(transfer: SocketTransfer, headers: dict[str, str] | None = None) -> Uploaded | Exception:
    """CopyObject."""
    return outcome(transfer, lambda done: transfer.copy(SOURCE, ETAG, TARGET, headers or {}, done))


def copy_range(transfer: SocketTransfer) -> Uploaded | Exception:
    """UploadPartCopy."""
    return outcome(
        transfer, lambda done: transfer.copy_range(SOURCE, ETAG, 5, 104, TARGET, "an/id=", 7, done)
    )


def test_copy_names_its_source_and_reads_the_xml_result(tls: TlsFiles | None) -> None:
    with (
        ScriptedServer((Reply(xml(COPIED, space=b"\n \n \n")),), tls) as server,
        transfer_to(server) as transfer,
    ):
        assert copy(transfer, {"x-amz-storage-class": "GLACIER_IR"}) == Uploaded(ETAG, CRC)
        assert copy_range(transfer) == Uploaded(ETAG, CRC)
        assert server.connections == 1
    first, second = (head.decode().split("\r\n") for head in server.heads)
    assert first[0] == "PUT /b/k HTTP/1.1"
    assert second[0] == "PUT /b/k?partNumber=7&uploadId=an%2Fid%3D HTTP/1.1"
    for lines in (first, second):
        assert "content-length: 0" in lines
        assert "x-amz-copy-source: b/raw/%C3%BC%20a%2Bb" in lines
        assert f'x-amz-copy-source-if-match: "{ETAG}"' in lines
    assert "x-amz-checksum-algorithm: CRC64NVME" in first
    assert "x-amz-storage-class: GLACIER_IR" in first
    assert "x-amz-copy-source-range: bytes=5-104" in second


def test_copy_result_may_have_prefixes_and_attributes() -> None:
    prefixed = COPIED.replace(b"</", b"</s3:").replace(b"<", b"<s3:").replace(b"<s3:/s3:", b"</s3:")
    attributed = COPIED.replace(b"<ETag>", b"<ETag >").replace(
        b"<ChecksumCRC64NVME>", b'<ChecksumCRC64NVME a="b">'
    )
    for body in (prefixed.replace(b"<s3:?", b"<?"), attributed):
        with ScriptedServer((Reply(xml(body)),)) as server, transfer_to(server) as transfer:
            assert copy(transfer) == Uploaded(ETAG, CRC)
    error = b"<s:Error xmlns:s='x'><s:Code>SlowDown</s:Code></s:Error>"
    with ScriptedServer((Reply(xml(error)),)) as server, transfer_to(server) as transfer:
        assert type(copy(transfer)) is ThrottledError


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (200, "SlowDown", ThrottledError),
        (200, "InternalError", TransientError),
        (200, "UnknownCode", TransientError),
        (200, "AccessDenied", AccessError),
        (404, "NoSuchKey", NotFoundError),
        (412, "PreconditionFailed", InputChangedError),
        (501, "NotImplemented", UnsupportedOperationError),
        (405, "MethodNotAllowed", UnsupportedOperationError),
    ],
)
def test_error_of_a_copy_counts_with_any_status(status: int, code: str, error: type[RollupError]) -> None:
    body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>made</Message></Error>'.encode()
    reply = Reply(xml(body, status, b" \n" if status == 200 else b""))
    for ask in (copy, copy_range):
        with ScriptedServer((reply,)) as server, transfer_to(server) as transfer:
            failed = ask(transfer)
            assert type(failed) is error
            assert f"COPY {SOURCE}: " in str(failed)
            assert code in str(failed)


@pytest.mark.parametrize(
    ("body", "error"), [(b"", UnsupportedOperationError), (b"<CopyObjectResult/>", TransientError)]
)
def test_copy_without_a_result_is_an_error(body: bytes, error: type[RollupError]) -> None:
    """A server without CopyObject stores an empty object."""
    with ScriptedServer((Reply(xml(body)),)) as server, transfer_to(server) as transfer:
        assert type(copy(transfer)) is error


def test_copy_that_takes_long_is_not_cancelled() -> None:
    # About 7 s in all, with a timeout of 1 s between two bytes.
    slow = Reply(xml(COPIED, space=b" " * 40), pieces=10**6, pause=0.01)
    with ScriptedServer((slow,)) as server, transfer_to(server, seconds=1.0) as transfer:
        assert copy(transfer) == Uploaded(ETAG, CRC)


def test_copy_can_be_cancelled() -> None:
    with (
        ScriptedServer((Reply(xml(COPIED)[:-30]), Reply(xml(COPIED)))) as server,
        transfer_to(server) as transfer,
    ):
        results: list[Uploaded | Exception] = []
        request = transfer.copy(SOURCE, ETAG, TARGET, {}, results.append)
        until = time.monotonic() + PATIENCE_SECONDS
        while not server.replied and time.monotonic() < until:
            transfer.wait(0.05)
        assert results == []
        request.cancel()
        assert [type(result) for result in results] == [TransientError]
        assert copy(transfer) == Uploaded(ETAG, CRC)
        assert server.connections == 2


def test_connection_of_a_cancelled_request_serves_the_next() -> None:
    with ScriptedServer((Reply(PLAIN + BODY),)) as server, transfer_to(server) as transfer:
        results: list[object] = []
        into = bytearray(len(BODY))
        transfer.get(Location("b", "k"), ETAG, memoryview(into), results.append).cancel()
        assert [type(result) for result in results] == [TransientError]
        assert isinstance(fetch(transfer, into), Downloaded)
        assert server.connections == len(server.heads) == 1


class SlowProxy(Server):
    """A proxy that answers CONNECT byte by byte.

    :param pause: seconds after each byte
    """

    def __init__(self, pause: float) -> None:
        super().__init__()
        self._pause = pause
        self.asked = threading.Event()
        self.ended = threading.Event()

    def serve(self, connection: socket.socket) -> None:
        """Answer without an end."""
        read_head(connection)
        self.asked.set()
        with suppress(OSError):
            while not self.ended.wait(self._pause):
                connection.sendall(b"H")

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        super().__exit__(*exception)


@contextmanager
def tunnel_through(proxy: SlowProxy, seconds: float) -> Iterator[SocketTransfer]:
    """A transfer through a tunnel; ``seconds`` are those of both timeouts."""
    endpoint = BucketEndpoint("https://s3.example.invalid", "/b/", "us-east-1", f"http://{proxy.host}")
    side = TransferSide({"b": endpoint}, Credentials("key", "secret"), settings(seconds=seconds))
    with closing(SocketTransfer(side, 1)) as transfer:
        yield transfer


def test_answer_to_connect_has_one_time_limit() -> None:
    with SlowProxy(pause=0.05) as proxy, tunnel_through(proxy, 0.3) as transfer:
        began = time.monotonic()
        failed = fetch(transfer, bytearray(10))
        assert type(failed) is TransientError
        assert "timed out" in str(failed)
        assert time.monotonic() - began < 5


def test_close_ends_connections_that_are_being_made() -> None:
    with SlowProxy(pause=60) as proxy:
        with tunnel_through(proxy, 60) as transfer:
            transfer.get(Location("b", "k"), ETAG, memoryview(bytearray(10)), lambda _: None)
            assert proxy.asked.wait(PATIENCE_SECONDS)
            began = time.monotonic()
        assert time.monotonic() - began < 5


class ForwardProxy(Server):
    """An HTTP proxy that requires a user and a password, and records the request lines."""

    login = "Basic bWU6c2VjOnJldA=="

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.request_lines: list[str] = []

    @property
    def url(self) -> str:
        """With user and password."""
        return f"http://me:sec%3Aret@{self.host}"

    def serve(self, connection: socket.socket) -> None:
        """Connect a client with the server."""
        head, body = read_head(connection)
        if not head:
            return
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            first, *fields = head.decode("latin-1").split("\r\n")
            self.request_lines.append(first)
            allowed = [
                line for line in fields if line.lower() == f"proxy-authorization: {self.login}".lower()
            ]
            if not allowed:
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if first.startswith("CONNECT "):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head + b"\r\n\r\n" + body)
            back = threading.Thread(target=pump, args=[server, connection])
            back.start()
            pump(connection, server)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Forward everything until the source ends."""
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    for connection in (source, target):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def test_hour_is_rolled_up_through_a_proxy(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    fault_proxy: ProxyFactory,
    tls: TlsFiles | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = make_bucket(rclone_server)
    front = fault_proxy(rclone_server, tls=tls)
    options = {"verify": tls.ca} if tls else {}
    pipeline = Pipeline(stream_on(bucket), rclone_server.client(), bucket)
    made = make_hour(pipeline.client, bucket, RAW, objects=12)
    with ForwardProxy(front.port) as proxy:
        # No server listens on port 9: only requests through the proxy succeed.
        origin = front.endpoint_url.replace(f":{front.port}", ":9")
        connection = rclone_server.airflow_connection_json(
            origin, config_kwargs={"proxies": {"http": proxy.url, "https": proxy.url}}, **options
        )
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
        pipeline.run()
        pipeline.verify(made)
    beginning = "CONNECT 127.0.0.1:9 " if tls else ("GET http://127.0.0.1:9/", "PUT http://127.0.0.1:9/")
    assert len([line for line in proxy.request_lines if line.startswith(beginning)]) > 5
    assert proxy.request_lines == [line for line in proxy.request_lines if ":9" in line]
