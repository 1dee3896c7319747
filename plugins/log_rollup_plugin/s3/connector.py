"""Makes the sockets of the data plane as boto3 makes its own: addresses, proxies, TLS.

There are three ways to an origin: directly; through a tunnel of a proxy (CONNECT, for https); or by sending
requests with whole URLs to the proxy (for http, and for https where ``proxy_use_forwarding_for_https`` is set).
"""

import base64
import socket
import ssl
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from include.log_rollup import limits
from include.log_rollup.errors import ConfigurationError
from include.log_rollup.units import KIB

LONGEST_TUNNEL_RESPONSE_BYTES = 64 * KIB
_CHUNK_BYTES = 64 * KIB
_DEFAULT_PORTS = {"http": 80, "https": 443}

ClientCertificate = tuple[str, str | None]
"""Paths of a certificate and of its key; None if the key is in the certificate's file."""


@dataclass(frozen=True, slots=True)
class BucketEndpoint:
    """Where requests for a bucket are sent, and for which region they are signed.

    :param origin: scheme, host and port, like ``https://logs.s3.eu-central-1.amazonaws.com``
    :param path: of the bucket, up to the beginning of the key
    :param proxy: URL of the proxy on the way there, empty for none
    :param forwarded: https requests are sent to the proxy with their whole URL instead of through a tunnel
    :param conn_id: Airflow connection with the TLS settings
    """

    origin: str
    path: str
    region: str
    proxy: str = ""
    forwarded: bool = False
    conn_id: str | None = None
    host: str = field(init=False)
    """Host and port as botocore sends and signs them: in lower case, without a default port."""
    base_url: str = field(init=False)
    """The beginning of the whole URLs that are sent to a proxy."""

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
        """Whether the origin uses TLS."""
        return self.origin.startswith("https:")

    @property
    def tunnelled(self) -> bool:
        """Whether requests go through a tunnel of the proxy."""
        return bool(self.proxy) and self.secure and not self.forwarded

    @property
    def pool_key(self) -> tuple[str, str, str | None]:
        """What makes connections interchangeable: origin, proxy and TLS settings."""
        return self.origin, self.proxy, self.conn_id

    def target(self, key: str) -> str:
        """The path of an object, percent-encoded as S3 signs it."""
        return self.path + quote(key, safe="/~")


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Which certificates are accepted, and which one is shown.

    :param verify: whether the server's certificate is checked
    :param ca: CA file or directory to check it against
    :param client: the client certificate to show
    """

    verify: bool
    ca: str = ""
    client: ClientCertificate | None = None


class Connector:
    """Connects to the endpoints of buckets.

    :param timeout: for connecting, and again for each TLS handshake and for CONNECT
    :param tls: for origins
    :param proxy_tls: for proxies with https URLs; None for the same as to origins, without the client certificate
    :raises ConfigurationError: if a CA file or a client certificate cannot be used, or the URL of a proxy begins
        neither with http nor with https
    """

    def __init__(
        self,
        endpoints: Collection[BucketEndpoint],
        timeout: timedelta,
        tls: TlsSettings,
        proxy_tls: TlsSettings | None = None,
    ) -> None:
        self._seconds = timeout.total_seconds()
        # When connecting to an address last failed. Addresses without a failure are tried first.
        self._failed: dict[object, float] = {}
        # What each thread is connecting now.
        self._connecting: dict[int, socket.socket] = {}
        self._is_closed = False
        schemes = {urlsplit(endpoint.proxy).scheme for endpoint in endpoints if endpoint.proxy}
        for endpoint in endpoints:
            if endpoint.proxy and urlsplit(endpoint.proxy).scheme not in _DEFAULT_PORTS:
                raise ConfigurationError(
                    f"the proxy {_without_password(endpoint.proxy)} cannot be used: give it a URL that begins "
                    f"with http:// or https://"
                )
        secure = any(endpoint.secure for endpoint in endpoints)
        self._tls = _context(tls) if secure else None
        if proxy_tls is None:
            proxy_tls = TlsSettings(tls.verify, tls.ca)
        self._proxy_tls = _context(proxy_tls) if "https" in schemes else None

    def connect(self, endpoint: BucketEndpoint) -> "Socket":
        """Make a connection; blocks meanwhile. The socket that is returned is in non-blocking mode.

        :raises OSError: if the connection cannot be made, or :meth:`close` was called
        """
        try:
            return self._connect(endpoint)
        finally:
            self._connecting.pop(threading.get_ident(), None)

    def close(self) -> None:
        """Make each :meth:`connect` of another thread fail now, unless it waits for DNS."""
        self._is_closed = True
        for connecting in list(self._connecting.values()):
            # Closing would not wake the thread that waits for the socket. The method of SSLSocket would end TLS.
            with suppress(OSError):
                socket.socket.shutdown(connecting, socket.SHUT_RDWR)

    def _begin(self, connecting: socket.socket) -> None:
        """Let :meth:`close` end what this thread does with a socket."""
        self._connecting[threading.get_ident()] = connecting
        if self._is_closed:
            raise ConnectionAbortedError

    def _connect(self, endpoint: BucketEndpoint) -> "Socket":
        origin, proxy = urlsplit(endpoint.origin), urlsplit(endpoint.proxy)
        first = proxy if endpoint.proxy else origin
        connected: Socket = self._connect_tcp(
            first.hostname or "", first.port or _DEFAULT_PORTS[first.scheme]
        )
        try:
            if proxy.scheme == "https":
                connected = self._start_tls(self._proxy_tls, connected, proxy.hostname)
            if endpoint.tunnelled:
                until = time.monotonic() + self._seconds
                _open_tunnel(connected, endpoint, origin.port or _DEFAULT_PORTS[origin.scheme], until)
            if endpoint.secure and not endpoint.forwarded:
                connected = self._start_tls(self._tls, connected, origin.hostname)
            connected.setblocking(False)
        except BaseException:
            connected.close()
            raise
        return connected

    def _connect_tcp(self, host: str, port: int) -> socket.socket:
        """Connect to the first of a host's addresses that can be reached."""
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses.sort(key=lambda row: self._failed.get(row[4], 0.0))
        until = time.monotonic() + self._seconds
        problem = OSError(f"{host} has no address")
        for tried, (family, kind, protocol, _, address) in enumerate(addresses):
            share = (until - time.monotonic()) / (len(addresses) - tried)
            try:
                connected = socket.socket(family, kind, protocol)
            except OSError as error:
                problem = error
                continue
            try:
                self._begin(connected)
                connected.settimeout(min(self._seconds, max(share, limits.ADDRESS_CONNECT_SECONDS)))
                connected.connect(address)
                _set_options(connected)
            except OSError as error:
                connected.close()
                self._failed[address] = time.monotonic()
                problem = error
            except BaseException:
                connected.close()
                raise
            else:
                self._failed.pop(address, None)
                return connected
        raise problem

    def _start_tls(self, context: ssl.SSLContext | None, connected: "Socket", host: str | None) -> "Socket":
        assert context is not None
        # DNS names may end with a dot; the names in certificates don't.
        name = (host or "").rstrip(".")
        if isinstance(connected, ssl.SSLSocket):
            return NestedTls(connected, context, name, time.monotonic() + self._seconds)
        assert isinstance(connected, socket.socket)
        connected.settimeout(self._seconds)
        secured = context.wrap_socket(connected, server_hostname=name, do_handshake_on_connect=False)
        try:
            self._begin(secured)
            # Its time-out holds for the handshake as a whole.
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured


def proxy_headers(endpoint: BucketEndpoint) -> dict[str, str]:
    """The header with user and password for the proxy of an endpoint, if the proxy's URL has both."""
    proxy = urlsplit(endpoint.proxy)
    if not proxy.username or not proxy.password:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password)}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _set_options(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS calls TCP_KEEPIDLE TCP_KEEPALIVE.
    for name in ("TCP_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), limits.TCP_KEEP_ALIVE_SECONDS)


def _wait_until(connected: socket.socket, until: float) -> None:
    """Limit the next operation of a socket.

    :param until: in monotonic seconds
    """
    # With 0, the operation would not block, and would fail in another way.
    connected.settimeout(max(until - time.monotonic(), 0.001))


def _open_tunnel(connected: "Socket", endpoint: BucketEndpoint, port: int, until: float) -> None:
    """Ask the proxy for a tunnel to the origin.

    :param until: the time limit in monotonic seconds, also if the response arrives byte by byte
    :raises OSError: if the proxy refuses, or the time is over
    """
    assert isinstance(connected, socket.socket)
    host = urlsplit(endpoint.origin).hostname or ""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = {"Host": target, **proxy_headers(endpoint)}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    _wait_until(connected, until)
    connected.sendall("\r\n".join((*lines, "", "")).encode())
    response = b""
    while b"\r\n\r\n" not in response:
        _wait_until(connected, until)
        chunk = connected.recv(4 * KIB)
        if not chunk or len(response) > LONGEST_TUNNEL_RESPONSE_BYTES:
            raise OSError("the proxy closed the connection, or did not answer CONNECT in HTTP")
        response += chunk
    status = response.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2]
    if not status.startswith("200"):
        # The message of http.client, so that error_mapping knows it from both planes.
        raise OSError(f"Tunnel connection failed: {status}")


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    # Some servers request the client certificate only after they have read the request.
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
            # Without this function, OpenSSL would ask for the key's password on the terminal.
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
    """TLS inside the TLS connection to a proxy, with the methods of a socket that a connection needs.

    :param outer: connection to the proxy, blocking until :meth:`setblocking`
    :param until: the time limit of the handshake, in monotonic seconds
    :raises OSError: if the handshake fails, or its time is over
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str, until: float) -> None:
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        # TLS records that the outer connection has not taken yet.
        self._records = memoryview(b"")
        # How many bytes of the present send() are encrypted, but not all sent.
        self._encrypted = 0
        while True:
            _wait_until(outer, until)
            try:
                self._inner.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def recv_into(self, buffer: memoryview) -> int:
        """Receive into a buffer; returns the number of bytes, 0 at the end.

        :raises ssl.SSLWantReadError: if there is nothing to receive now
        """
        while True:
            try:
                # With a buffer, read() returns the number of bytes; its annotation says bytes.
                return int(self._inner.read(len(buffer), buffer))
            except ssl.SSLWantReadError:
                # TLS itself may have something to send, such as new keys.
                self._flush_some()
                self._fill()
            except ssl.SSLEOFError:
                return 0

    def recv(self, size: int) -> bytes:
        """Receive up to ``size`` bytes; none at the end."""
        buffer = bytearray(size)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def send(self, data: memoryview) -> int:
        """Send the beginning of the data; returns the number of bytes.

        :raises ssl.SSLWantWriteError: if the connection takes none now; call it again with the same data
        """
        if not self._encrypted:
            self._flush()
            self._encrypted = self._inner.write(data[:_CHUNK_BYTES])
        self._flush()
        sent, self._encrypted = self._encrypted, 0
        return sent

    def fileno(self) -> int:
        """File descriptor of the socket."""
        return self._outer.fileno()

    def setblocking(self, blocking: bool) -> None:
        """See :meth:`socket.socket.setblocking`."""
        self._outer.setblocking(blocking)

    def close(self) -> None:
        """Close the socket."""
        self._outer.close()

    def _fill(self) -> None:
        chunk = self._outer.recv(_CHUNK_BYTES)
        if chunk:
            self._incoming.write(chunk)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        """Send all TLS records."""
        while self._records or self._outgoing.pending:
            if not self._records:
                self._records = memoryview(self._outgoing.read())
            self._records = self._records[self._outer.send(self._records) :]

    def _flush_some(self) -> None:
        """Send the TLS records that the connection takes now; :meth:`send` sends the rest."""
        try:
            self._flush()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return


Socket = socket.socket | NestedTls
"""What a connection sends and receives over; ``ssl.SSLSocket`` is a ``socket.socket``."""
