"""What the data plane takes over from a boto3 client, so that both send the same requests in the same way.

botocore makes neither its HTTP session nor its endpoint rules public. Code that needs its internals is in this
module.
"""

import functools
import re
import threading
from collections.abc import Mapping
from http.client import HTTPException, parse_headers
from http.client import HTTPResponse as RawResponse
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSPreparedRequest,
    AWSResponse,
)
from botocore.config import Config
from botocore.httpsession import get_cert_path
from urllib3 import HTTPResponse

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin.s3.connector import BucketEndpoint, ClientCertificate, TlsSettings
from log_rollup_plugin.s3.error_mapping import translated

# The key of the requests that are captured.
_KEY = "k"
# Interim responses before one response; a server may send some to show that it still works.
_MAX_INTERIM_RESPONSES = 100
_SIGNED_REGION = re.compile(r"Credential=[^/]+/\d{8}/([^/]+)/s3/")
# Headers that the data plane sets itself or does not send. All others come from handlers of boto3's events.
_OWN_HEADERS = frozenset(
    {
        "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "content-length",
        "content-md5", "content-type", "expect", "host", "transfer-encoding", "user-agent",
        "x-amz-content-sha256", "x-amz-date", "x-amz-sdk-checksum-algorithm", "x-amz-security-token",
    }
)  # fmt: skip


def with_tuples(config: Config) -> dict[str, Any]:
    """Options for which botocore requires tuples: a connection's JSON has lists, which botocore would ignore."""
    options: dict[str, Any] = {}
    if isinstance(config.client_cert, list):
        options["client_cert"] = tuple(config.client_cert)
    proxies = config.proxies_config or {}
    if isinstance(proxies.get("proxy_client_cert"), list):
        options["proxies_config"] = {**proxies, "proxy_client_cert": tuple(proxies["proxy_client_cert"])}
    return options


class _FinalResponse(RawResponse):
    """Skips interim responses, such as 103, as RFC 9110 requires.

    http.client skips only 100. It takes any other as the response, without a body, and the real response as that
    to the next request on the connection.
    """

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MAX_INTERIM_RESPONSES):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == 101:
                return version, status, reason
            parse_headers(self.fp)
        raise HTTPException(f"got more than {_MAX_INTERIM_RESPONSES} interim responses")


class _HttpConnection(AWSHTTPConnection):
    response_class = _FinalResponse


class _HttpsConnection(AWSHTTPSConnection):
    response_class = _FinalResponse


class _HttpPool(AWSHTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def prepare_connections(client: Any) -> None:
    """Cap the connections of a client, and make them skip interim responses.

    Its connection pools wait at ``max_pool_connections`` instead of opening more connections. urllib3 has the
    option; botocore has no way to set it.
    """
    session = client._endpoint.http_session
    # botocore makes the pool manager of a proxy on first use, and two threads could make two: make it now.
    for scheme in ("http", "https"):
        if proxy := session._proxy_config.proxy_url_for(f"{scheme}://s3"):
            session._get_proxy_manager(proxy)
    for manager in (session._manager, *session._proxy_managers.values()):
        manager.connection_pool_kw["block"] = True
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


def keep_user_agent(client: Any) -> None:
    """Make a client build its User-Agent once, with the features that its first request uses.

    botocore builds it twice for each request, which takes 15 % of the CPU of a short listing; it has no option for
    this.
    """
    creator = getattr(client, "_user_agent_creator", None)
    build = getattr(creator, "to_string", None)
    if creator is not None and build is not None:
        creator.to_string = functools.cache(build)


class ClientSettings:
    """Reads how a boto3 client sends its requests.

    :param conn_id: the Airflow connection of the client, for error messages
    """

    def __init__(self, client: Any, conn_id: str | None) -> None:
        self._client = client
        self._conn_id = conn_id
        self._session = client._endpoint.http_session
        self._capturing = threading.Lock()

    @property
    def verify(self) -> str | bool:
        """Whether, or against which CA file or directory, certificates of origins are checked."""
        verify: str | bool = self._session._verify
        return verify

    @property
    def ca(self) -> str:
        """The CA file or directory that results from :attr:`verify`; empty if certificates are not checked."""
        return str(get_cert_path(self.verify)) if self.verify else ""

    @property
    def client_certificate(self) -> ClientCertificate | None:
        """The certificate that is shown to origins."""
        session = self._session
        return (session._cert_file, session._key_file) if session._cert_file else None

    def proxy(self, url: str) -> str:
        """The proxy on the way to a URL, from the connection or from the environment; empty for none."""
        return self._session._proxy_config.proxy_url_for(url) or ""

    def proxy_tls(self, secure: bool) -> TlsSettings:
        """How boto3 uses TLS to proxies.

        :param secure: whether the origins use TLS. If they don't, boto3 checks the certificate of a proxy only if
            there is a ``proxy_ca_bundle``.
        """
        settings = self._session._proxy_config.settings
        shown = settings.get("proxy_client_cert")
        certificate: ClientCertificate | None = None
        if shown:
            certificate = (shown, None) if isinstance(shown, str) else (shown[0], shown[1])
        bundle = settings.get("proxy_ca_bundle")
        if bundle:
            return TlsSettings(True, str(bundle), certificate)
        return TlsSettings(secure and bool(self.verify), self.ca, certificate)

    def get_request(self, bucket: str) -> AWSPreparedRequest:
        """The request that boto3 would send to get an object."""
        return self._capture(bucket, "GetObject", self._client.get_object)

    def put_request(self, bucket: str) -> AWSPreparedRequest:
        """The request that boto3 would send to write an object."""
        return self._capture(bucket, "PutObject", self._client.put_object, Body=b"")

    def endpoint(self, request: AWSPreparedRequest) -> BucketEndpoint:
        """Where a captured request would be sent.

        :raises ConfigurationError: if it is not signed with Signature Version 4
        """
        signature = _text(request.headers.get("Authorization", ""))
        region = _SIGNED_REGION.search(signature)
        if region is None or not signature.startswith("AWS4-HMAC-SHA256 "):
            raise ConfigurationError(
                f"the Airflow connection {self._conn_id!r} asks for requests without a signature of version 4; "
                f"remove 'signature_version' from its config_kwargs"
            )
        url = urlsplit(request.url)
        origin = f"{url.scheme}://{url.netloc}"
        proxy = self.proxy(origin)
        forwards = bool(self._session._proxies_kwargs().get("use_forwarding_for_https"))
        forwarded = forwards and url.scheme == "https" and proxy.startswith("https:")
        return BucketEndpoint(origin, url.path.removesuffix(_KEY), region[1], proxy, forwarded, self._conn_id)

    def send(self, url: str, headers: Mapping[str, str]) -> AWSResponse:
        """Send a signed GET as boto3 sends its requests: over its connections, with its TLS and time limits.

        :returns: the response, completely received
        :raises botocore.exceptions.BotoCoreError: if there is none
        """
        response: AWSResponse = self._session.send(AWSPreparedRequest("GET", url, headers, None, False))
        return response

    def _capture(self, bucket: str, operation: str, send: Any, **options: Any) -> AWSPreparedRequest:
        """Let boto3 build and sign a request with all its endpoint rules, and answer it here."""
        captured: list[AWSPreparedRequest] = []
        owner = threading.get_ident()

        def capture(request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
            # Other threads may send requests meanwhile.
            if threading.get_ident() != owner:
                return None
            captured.append(request)
            return AWSResponse(request.url, 200, {}, HTTPResponse(BytesIO(), preload_content=False))

        event = f"before-send.s3.{operation}"
        events = self._client.meta.events
        with self._capturing, translated("connect to", Location(bucket, "")):
            events.register_first(event, capture)
            try:
                send(Bucket=bucket, Key=_KEY, **options)
            finally:
                events.unregister(event, capture)
        return captured[0]


def extra_headers(request: AWSPreparedRequest) -> dict[str, str]:
    """Headers of a captured request that the data plane would not send by itself."""
    return {
        name.lower(): _text(value)
        for name, value in request.headers.items()
        if name.lower() not in _OWN_HEADERS and not name.lower().startswith("x-amz-checksum-")
    }


def user_agent(request: AWSPreparedRequest) -> str:
    """The User-Agent of a captured request."""
    return _text(request.headers.get("User-Agent", ""))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
