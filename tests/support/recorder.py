"""HTTP servers and proxies that record every request as it arrives."""

import datetime
import hashlib
import hmac
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dev.tls import TlsFiles

ETAG = "0123456789abcdef0123456789abcdef"
_CHUNK_BYTES = 64 * 1024
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as it arrived; header names are in lower case.

    :param client: common name of the client certificate; None without one
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    client: str | None

    def __getitem__(self, name: str) -> str | None:
        """The value of a header; None without it."""
        return dict(self.headers).get(name)

    @property
    def path(self) -> str:
        """Path and query, also if the target is a whole URL."""
        url = urlsplit(self.target)
        return url.path + (f"?{url.query}" if url.query else "")


Respond = Callable[[Recorded], bytes]


def respond(status: int, body: bytes = b"", *headers: str) -> bytes:
    """A response with a Content-Length."""
    lines = (f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def refuse(status: int, code: str, message: str = "made by the test") -> bytes:
    """An error response as S3 sends it."""
    xml = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return respond(status, xml.encode(), "Content-Type: application/xml")


def like_s3(request: Recorded) -> bytes:
    """The response of a server that has one object of five bytes and accepts every other request."""
    if request.method == "HEAD":
        return b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "%s"\r\n\r\n' % ETAG.encode()
    if request.method == "DELETE":
        return b"HTTP/1.1 204 No Content\r\n\r\n"
    return respond(200, b"hello" if request.method == "GET" else b"", f'ETag: "{ETAG}"')


class Recorder:
    """Listens on a free port of 127.0.0.1, and answers each request with the response of a function.

    :param tls: the context for TLS; None for plain HTTP
    """

    def __init__(self, answer: Respond = like_s3, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Recorded] = []
        self.peak_connections = 0
        self._answer = answer
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in tuple(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_PATIENCE_SECONDS)

    @property
    def url(self) -> str:
        """Scheme, host and port; the certificate of :func:`dev.tls.make_tls_files` is valid for the host."""
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._run, accepted)

    def _run(self, accepted: socket.socket) -> None:
        connection = accepted
        with suppress(OSError):
            accepted.settimeout(_PATIENCE_SECONDS)
            if self._tls is not None:
                connection = self._tls.wrap_socket(accepted, server_side=True)
            with self._lock:
                self._open.add(connection)
                self.peak_connections = max(self.peak_connections, len(self._open))
            while request := read_request(connection):
                self.requests.append(request)
                if not self.serve(connection, request):
                    break
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def serve(self, connection: socket.socket, request: Recorded) -> bool:
        """Answer a request; returns whether the connection is kept."""
        response = self._answer(request)
        connection.sendall(response)
        return b"\r\nConnection: close\r\n" not in response.partition(b"\r\n\r\n")[0] + b"\r\n"


class RecordingProxy(Recorder):
    """A proxy that answers requests with a whole URL itself, and opens every tunnel to the same server.

    :param upstream_port: the port of that server on 127.0.0.1
    """

    def __init__(self, upstream_port: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(like_s3, tls)
        self._upstream_port = upstream_port

    def serve(self, connection: socket.socket, request: Recorded) -> bool:
        """Answer a request, or forward a tunnel until the connection ends."""
        if request.method != "CONNECT":
            return super().serve(connection, request)
        with socket.create_connection(("127.0.0.1", self._upstream_port)) as server:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            relay(connection, server)
        return False


def relay(client: socket.socket, server: socket.socket) -> None:
    """Forward in both directions until one side ends; on one thread, and for TLS sockets too."""
    sides = {client: server, server: client}
    while True:
        for source in select.select(list(sides), [], [], _PATIENCE_SECONDS)[0]:
            while True:
                source.settimeout(0.0)
                try:
                    chunk = source.recv(_CHUNK_BYTES)
                except (BlockingIOError, ssl.SSLWantReadError):
                    break
                if not chunk:
                    return
                sides[source].settimeout(_PATIENCE_SECONDS)
                sides[source].sendall(chunk)


def read_request(connection: socket.socket) -> Recorded | None:
    """The next request of a connection; None at its end."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(_CHUNK_BYTES)
        if not chunk:
            return None
        received += chunk
    head, _, beginning = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    if dict(headers).get("expect") == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(dict(headers).get("content-length", 0))
    # Not bytes: appending would copy a large body again for each piece.
    body = bytearray(beginning)
    while len(body) < length:
        chunk = connection.recv(_CHUNK_BYTES)
        if not chunk:
            return None
        body += chunk
    return Recorded(method, target, headers, bytes(body), _client_name(connection))


def _client_name(connection: socket.socket) -> str | None:
    certificate = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLSocket) else None
    if not certificate:
        return None
    subject = x509.load_der_x509_certificate(certificate).subject
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """PEM files of a self-signed client certificate and of its key; ``both`` contains the two."""

    certificate: Path
    key: Path
    both: Path


def make_client_files(directory: Path, name: str) -> ClientFiles:
    """Make a client certificate with this common name, valid for a week."""
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    files = ClientFiles(directory / f"{name}.pem", directory / f"{name}.key", directory / f"{name}.both.pem")
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files.certificate.write_bytes(certificate_pem)
    files.key.write_bytes(key_pem)
    files.both.write_bytes(certificate_pem + key_pem)
    return files


def server_context(server: TlsFiles, client: ClientFiles | None = None) -> ssl.SSLContext:
    """The TLS context of a server; with ``client``, it requires that client certificate."""
    context = server.server_context()
    if client is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client.certificate)
    return context


def is_signed(request: Recorded, secret: str) -> bool:
    """Whether the signature (version 4) matches the request as it arrived.

    https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    algorithm, _, rest = (request["authorization"] or "").partition(" ")
    fields = dict(field.strip().split("=", 1) for field in rest.split(","))
    _, date, region, service, last = fields["Credential"].split("/")
    path, _, query = request.path.partition("?")
    headers = dict(request.headers)
    names = fields["SignedHeaders"].split(";")
    canonical = "\n".join(
        (
            request.method,
            path,
            "&".join(sorted(query.split("&"))) if query else "",
            *(f"{name}:{' '.join(headers[name].split())}" for name in names),
            "",
            ";".join(names),
            headers["x-amz-content-sha256"],
        )
    )
    scope = f"{date}/{region}/{service}/{last}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join((algorithm, headers["x-amz-date"], scope, digest))
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, last):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex() == fields["Signature"]
