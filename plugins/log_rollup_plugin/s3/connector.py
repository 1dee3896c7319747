"""Makes the sockets of the data plane as boto3 makes its own: addresses, proxies, certificates.

An origin is reached directly, through a tunnel of the proxy (CONNECT, for https), or by sending the proxy requests
with whole URLs (for http, and for https where ``proxy_use_forwarding_for_https`` is set).
"""

import base64
import socket
import ssl
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from include.log_rollup import limits
from include.log_rollup.errors import ConfigurationError
from include.log_rollup.units import KIB

LONGEST_TUNNEL_ANSWER_BYTES = 64 * KIB
_RECORD_BYTES = 64 * KIB
_DEFAULT_PORTS = {"http": 80, "https": 443}

ClientCertificate = tuple[str, str | None]
"""Paths of a certificate and of its key; the key may be in the certificate's file."""


@dataclass(frozen=True, slots=True)
class BucketEndpoint:
    """Where a bucket answers, and how requests to it are signed.

    :param origin: scheme, host and port, like ``https://logs.s3.eu-central-1.amazonaws.com``
    :param path: of the bucket, up to where the key begins
    :param proxy: URL of the proxy on the way there, empty for none
    :param forwarded: https requests are sent to the proxy with their whole URL, and not through a tunnel
    """

    origin: str
    path: str
    region: str
    proxy: str = ""
    forwarded: bool = False
    host: str = field(init=False)
    """Host and port as they are sent and signed: in lower case, without a default port, as botocore does it."""
    base_url: str = field(init=False)
    """The beginning of a whole URL, as a proxy is sent it."""

    def __post_init__(self) -> None:
        url = urlsplit(self.origin)
        host = url.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        if url.port not in (None, _DEFAULT_PORTS.get(url.scheme)):
            host = f"{host}:{url.port}"
        object.__setattr__(self, "host", host)
        object.__setattr__(self, "base_url", f"{url.scheme}://{host}")

    @property
    def secure(self) -> bool:
        """Whether the origin speaks TLS."""
        return self.origin.startswith("https:")

    @property
    def tunnelled(self) -> bool:
        """Whether requests pass the proxy in a tunnel."""
        return bool(self.proxy) and self.secure and not self.forwarded

    @property
    def pool_key(self) -> tuple[str, str]:
        """Origin and proxy; connections with equal keys are shared."""
        return self.origin, self.proxy

    def target(self, key: str) -> str:
        """The path of an object, percent-encoded as S3 signs it."""
        return self.path + quote(key, safe="/~")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How certificates are checked and shown.

    :param verify: False for certificates that are not checked
    :param ca: CA file or directory to check them against
    :param client: the certificate to show
    """

    verify: bool
    ca: str = ""
    client: ClientCertificate | None = None


class Connector:
    """Connects to the endpoints of buckets.

    :param timeout: for connecting, and again for each step of a TLS handshake or the answer of a proxy
    :param tls: for origins
    :param proxy_tls: for proxies with https URLs; None takes that of the origins, without its client certificate
    :raises ConfigurationError: if a CA file or a client certificate cannot be used, or a proxy is neither http
        nor https
    """

    def __init__(
        self,
        endpoints: Collection[BucketEndpoint],
        timeout: timedelta,
        tls: TlsSettings,
        proxy_tls: TlsSettings | None = None,
    ) -> None:
        self._seconds = timeout.total_seconds()
        # When an address could not be reached last; those that could are tried first.
        self._failed: dict[object, float] = {}
        schemes = {urlsplit(endpoint.proxy).scheme for endpoint in endpoints if endpoint.proxy}
        for endpoint in endpoints:
            if endpoint.proxy and urlsplit(endpoint.proxy).scheme not in _DEFAULT_PORTS:
                raise ConfigurationError(
                    f"the proxy {_without_password(endpoint.proxy)} cannot be used: its URL has to begin with "
                    f"http:// or https://"
                )
        secure = any(endpoint.secure for endpoint in endpoints)
        self._tls = _context(tls) if secure else None
        if proxy_tls is None:
            proxy_tls = TlsSettings(tls.verify, tls.ca)
        self._proxy_tls = _context(proxy_tls) if "https" in schemes else None

    def connect(self, endpoint: BucketEndpoint) -> "Stream":
        """A connection in non-blocking mode; blocks while it is made.

        :raises OSError: if it cannot be made
        """
        there, proxy = urlsplit(endpoint.origin), urlsplit(endpoint.proxy)
        first = proxy if endpoint.proxy else there
        made: Stream = self._dial(first.hostname or "", first.port or _DEFAULT_PORTS[first.scheme])
        try:
            made.settimeout(self._seconds)
            if proxy.scheme == "https":
                made = _wrap(self._proxy_tls, made, proxy.hostname)
            if endpoint.tunnelled:
                _open_tunnel(made, endpoint, there.port or _DEFAULT_PORTS[there.scheme])
            if endpoint.secure and not endpoint.forwarded:
                made = _wrap(self._tls, made, there.hostname)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        return made

    def _dial(self, host: str, port: int) -> socket.socket:
        """A TCP connection to the first of a host's addresses that can be reached."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.sort(key=lambda one: self._failed.get(one[4], 0.0))
        until = time.monotonic() + self._seconds
        problem = OSError(f"{host} has no address")
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            share = (until - time.monotonic()) / (len(found) - tried)
            try:
                made = socket.socket(family, kind, protocol)
            except OSError as error:
                problem = error
                continue
            try:
                made.settimeout(min(self._seconds, max(share, limits.ADDRESS_CONNECT_SECONDS)))
                made.connect(address)
                _set_options(made)
            except OSError as error:
                made.close()
                self._failed[address] = time.monotonic()
                problem = error
            except BaseException:
                made.close()
                raise
            else:
                self._failed.pop(address, None)
                return made
        raise problem


def proxy_headers(endpoint: BucketEndpoint) -> dict[str, str]:
    """User and password for the proxy of an endpoint, where its URL has both."""
    proxy = urlsplit(endpoint.proxy)
    if not proxy.username or not proxy.password:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password)}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _set_options(made: socket.socket) -> None:
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # TCP_KEEPALIVE is what macOS calls TCP_KEEPIDLE.
    for name in ("TCP_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), limits.TCP_KEEP_ALIVE_SECONDS)


def _open_tunnel(made: "Stream", endpoint: BucketEndpoint, port: int) -> None:
    """Ask the proxy for a tunnel to the origin.

    :raises OSError: if the proxy refuses
    """
    host = urlsplit(endpoint.origin).hostname or ""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = {"Host": target, **proxy_headers(endpoint)}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    made.sendall("\r\n".join((*lines, "", "")).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = made.recv(4 * KIB)
        if not chunk or len(answer) > LONGEST_TUNNEL_ANSWER_BYTES:
            raise OSError("the proxy closed the connection, or did not answer CONNECT in HTTP")
        answer += chunk
    status = answer.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2]
    if not status.startswith("200"):
        # As http.client says it.
        raise OSError(f"Tunnel connection failed: {status}")


def _wrap(context: ssl.SSLContext | None, made: "Stream", host: str | None) -> "Stream":
    """TLS on a connection."""
    assert context is not None
    # Certificates are for names without the dot that may end a name in DNS.
    name = (host or "").rstrip(".")
    if isinstance(made, ssl.SSLSocket):
        return NestedTls(made, context, name)
    assert isinstance(made, socket.socket)
    return context.wrap_socket(made, server_hostname=name)


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    # Some servers ask for the client's certificate only when they see the request.
    context.post_handshake_auth = True
    if settings.verify:
        try:
            context.load_verify_locations(
                **{"capath" if Path(settings.ca).is_dir() else "cafile": settings.ca}
            )
        except OSError as error:
            raise ConfigurationError(
                f"the CA file {settings.ca} cannot be used: {error}; fix the connection's extra 'verify' or "
                f"AWS_CA_BUNDLE, or 'proxy_ca_bundle' of its proxies_config"
            ) from error
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.client is not None:
        certificate, key = settings.client
        try:
            # Without a function, OpenSSL would ask for the key's password on the terminal.
            context.load_cert_chain(certificate, key, lambda: "")
        except OSError as error:
            raise ConfigurationError(
                f"the client certificate {certificate} cannot be used: {error}; fix 'client_cert' or "
                f"'proxy_client_cert' in the connection's config_kwargs"
            ) from error
    return context


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


class NestedTls:
    """TLS inside the TLS of a proxy, with those methods of a socket that a connection needs.

    :param outer: connection to the proxy, blocking until :meth:`setblocking`
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        # Records that the outer connection has not taken yet.
        self._records = memoryview(b"")
        # Bytes whose records were made, but not yet all sent.
        self._accepted = 0
        while True:
            try:
                self._inner.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def recv_into(self, buffer: memoryview) -> int:
        """Receive into a buffer; 0 at the end.

        :raises ssl.SSLWantReadError: if nothing has come
        """
        while True:
            try:
                # With a buffer it returns the number of bytes, which its annotation does not know.
                return int(self._inner.read(len(buffer), buffer))
            except ssl.SSLWantReadError:
                # For what TLS itself has to say, such as new keys.
                self._flush_some()
                self._fill()
            except ssl.SSLEOFError:
                return 0

    def recv(self, size: int) -> bytes:
        """Receive up to so many bytes; none at the end."""
        buffer = bytearray(size)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def send(self, data: memoryview) -> int:
        """Send a beginning of the data; how many bytes that is.

        :raises ssl.SSLWantWriteError: if the connection takes none now; the same data has to be sent later
        """
        if not self._accepted:
            self._flush()
            self._accepted = self._inner.write(data[:_RECORD_BYTES])
        self._flush()
        sent, self._accepted = self._accepted, 0
        return sent

    def sendall(self, data: bytes) -> None:
        """Send all of the data; for a blocking connection."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def fileno(self) -> int:
        """Descriptor of the socket."""
        return self._outer.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """See :meth:`socket.socket.settimeout`."""
        self._outer.settimeout(seconds)

    def setblocking(self, blocking: bool) -> None:
        """See :meth:`socket.socket.setblocking`."""
        self._outer.setblocking(blocking)

    def close(self) -> None:
        """Close the socket."""
        self._outer.close()

    def _fill(self) -> None:
        chunk = self._outer.recv(_RECORD_BYTES)
        if chunk:
            self._incoming.write(chunk)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        """Send all records that were made."""
        while self._records or self._outgoing.pending:
            if not self._records:
                self._records = memoryview(self._outgoing.read())
            self._records = self._records[self._outer.send(self._records) :]

    def _flush_some(self) -> None:
        """Send records as far as the connection takes them; :meth:`send` sends the rest."""
        try:
            self._flush()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return


Stream = socket.socket | NestedTls
"""What a request is sent over."""
