"""Each error code of S3 and each exception of botocore maps to one class and remedy, on both planes."""

import socket
import ssl
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3 import exceptions as urllib3

from dev.tls import TlsFiles, make_tls_files
from include.log_rollup import errors
from include.log_rollup.errors import (
    AccessError,
    ArchivedError,
    ChangedBufferError,
    ConfigurationError,
    CredentialsError,
    ForeignResponseError,
    InputChangedError,
    ListingError,
    MissingBucketError,
    NotFoundError,
    PermanentError,
    ResourceLimitError,
    RollupError,
    ThrottledError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin.s3 import error_mapping
from log_rollup_plugin.s3.error_mapping import (
    from_code,
    from_network,
    from_response,
    is_unreachable,
    limit_redirects,
    translated,
)

OBJECT = Location("logs", "raw/app/20261123/08/a.log")
OPERATIONS = ("GET", "PUT", "HEAD", "COPY", "DELETE", "LIST")

# The class of each code. Sources: see log_rollup_plugin.s3.error_mapping.CODES.
EXPECTED: Mapping[type[RollupError], str] = {
    ThrottledError: "SlowDown SlowDownRead SlowDownWrite ServiceUnavailable Throttling ThrottlingException "
    "RequestLimitExceeded BandwidthLimitExceeded TooManyRequests Busy KMS.ThrottlingException",
    TransientError: "InternalError RequestTimeout IncompleteBody BadDigest OperationAborted "
    "ConditionalRequestConflict ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired "
    "NoSuchUpload TemporaryRedirect Redirect XAmzContentSHA256Mismatch XAmzContentChecksumMismatch "
    "KMS.KMSInternalException KMS.KeyUnavailableException ClientDisconnected",
    InputChangedError: "PreconditionFailed",
    NotFoundError: "NoSuchKey NoSuchVersion",
    MissingBucketError: "NoSuchBucket InvalidBucketName PermanentRedirect IllegalLocationConstraintException",
    CredentialsError: "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidTokenId InvalidSecurity "
    "AuthorizationHeaderMalformed RequestTimeTooSkewed Unauthorized CredentialsNotSupported",
    AccessError: "AccessDenied AccountProblem AllAccessDisabled NotSignedUp InvalidPayer UserSuspended "
    "KMS.DisabledException KMS.NotFoundException KMS.KMSInvalidStateException KMS.AccessDeniedException "
    "CloudKmsDisabledKey",
    ArchivedError: "InvalidObjectState ObjectNotInActiveTierError ObjectAlreadyInActiveTierError "
    "RestoreAlreadyInProgress GlacierExpeditedRetrievalNotAvailable",
    UnsupportedOperationError: "NotImplemented MethodNotAllowed",
    ConfigurationError: "EntityTooLarge KeyTooLong KeyTooLongError InvalidStorageClass",
    PermanentError: "QuotaExceeded XMinioStorageFull XMinioAdminBucketQuotaExceeded InsufficientCapacity "
    "InvalidArgument InvalidRequest MalformedXML EntityTooSmall InvalidDigest InvalidBucketState "
    "XMinioObjectExistsAsDirectory InvalidRange MetadataTooLarge MissingContentLength",
}
BY_CODE = [(code, kind) for kind, codes in EXPECTED.items() for code in codes.split()]


def response(
    status: int, code: str = "", message: str = "", operation: str = "GET", **headers: str
) -> RollupError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_response(operation, OBJECT, status, code, message, named)


# -- codes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "kind"), BY_CODE)
def test_code_counts_for_any_status_and_operation(code: str, kind: type[RollupError]) -> None:
    kinds = {
        type(from_response(operation, OBJECT, status, code, "why", {}))
        for operation in OPERATIONS
        for status in ((200, 301, 400, 403, 404, 409, 500, 503) if code in error_mapping.CODES else (400,))
    }
    kinds.add(type(from_code("DELETE", OBJECT, code, "why")))
    assert kinds == {kind}


def test_each_code_is_named_with_its_remedy() -> None:
    for code, rule in error_mapping.CODES.items():
        error = from_response("PUT", OBJECT, 400, code, "message", {})
        assert type(error) is rule.error
        text = str(error)
        assert text.startswith(f"PUT {OBJECT}: S3 answered 400 {code} (message)")
        assert "{" not in text
        if isinstance(error, PermanentError) and not isinstance(error, NotFoundError | InputChangedError):
            assert rule.remedy, f"{code} fails at once without a remedy"


def test_unknown_code_with_4xx_fails_at_once_and_is_quoted() -> None:
    error = response(400, "SomethingNew", "unknown")
    assert type(error) is PermanentError
    assert "S3 answered 400 SomethingNew (unknown)" in str(error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, MissingBucketError), (302, ConfigurationError), (307, TransientError), (400, TransientError),
        (401, AccessError), (403, AccessError), (404, NotFoundError), (405, UnsupportedOperationError),
        (408, TransientError), (409, TransientError), (412, InputChangedError), (413, ConfigurationError),
        (416, PermanentError), (429, ThrottledError), (500, TransientError), (501, UnsupportedOperationError),
        (502, TransientError), (503, ThrottledError), (504, TransientError), (507, PermanentError),
        (520, TransientError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("code", ["", None])
def test_status_counts_without_a_code(status: int, kind: type[RollupError], code: str | None) -> None:
    error = response(status, str(status) if code is None else code, operation="HEAD")
    assert type(error) is kind
    assert str(error).startswith(f"HEAD {OBJECT}: S3 answered {status}")


@pytest.mark.parametrize("operation", ["GET", "PUT", "COPY", "DELETE", "LIST"])
def test_404_without_a_code_is_not_one_of_s3(operation: str) -> None:
    error = response(404, "404", operation=operation)
    assert type(error) is ForeignResponseError
    assert "a proxy or load balancer may have sent this" in str(error)
    assert isinstance(response(404, "NoSuchKey", operation=operation), NotFoundError)


def test_code_of_a_head_is_read_from_minios_header() -> None:
    assert type(response(404, "404", x_minio_error_code="NoSuchBucket")) is MissingBucketError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            response(403, "InvalidObjectState"),
            "the object is archived, so that it cannot be read; retrieve it",
        ),
        (response(409, "RestoreAlreadyInProgress"), "being retrieved from the archive already; wait"),
        (response(503, "GlacierExpeditedRetrievalNotAvailable"), "use the tier 'standard'"),
        (response(501, "NotImplemented", operation="DELETE"), "does not support the request (DELETE)"),
        (response(307, "TemporaryRedirect"), "the bucket is new"),
        (response(301, "PermanentRedirect", x_amz_bucket_region="eu-central-1"), "the region eu-central-1"),
        (response(301, location="https://s3.example.com/"), "it redirects to https://s3.example.com/"),
        (response(403, "RequestTimeTooSkewed"), "the clock of this machine"),
        (
            response(404, "NoSuchBucket"),
            "create the bucket 'logs', or fix its name, in 'raw' or 'aggregated'",
        ),
        (response(404, "NoSuchBucket"), "or on the command line"),
        (response(403, "QuotaExceeded"), "raise the quota"),
        (response(400, "KMS.DisabledException"), "kms:Decrypt"),
        (response(413), "lower 'part_size'"),
        (response(403, "AccessDenied"), "docs/DEPLOY.md lists the permissions"),
    ],
)
def test_message_says_what_to_do(error: RollupError, words: str) -> None:
    assert words in str(error)


def test_long_message_of_a_server_is_cut() -> None:
    assert len(str(response(400, "X", "long " * 10_000))) < 1000


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_a_finite_number_of_seconds(stated: str, seconds: float | None) -> None:
    error = response(503, "SlowDown", retry_after=stated)
    assert isinstance(error, ThrottledError)
    assert error.retry_after == seconds


def test_retry_after_may_be_a_date() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    error = response(500, "InternalError", retry_after=until)
    assert isinstance(error, TransientError)
    assert error.retry_after is not None
    assert 20 < error.retry_after <= 30


# -- exceptions of botocore --------------------------------------------------------------------------------

RETRIED = {
    "ConnectionClosedError", "ReadTimeoutError", "ResponseStreamingError", "HTTPClientError",
    "ConnectionError", "EndpointConnectionError", "SSLError", "ConnectTimeoutError", "ProxyConnectionError",
    "IncompleteReadError", "ChecksumError", "FlexibleChecksumError",
    # A metadata service or another source of credentials may fail for a moment.
    "CredentialRetrievalError", "MetadataRetrievalError", "TokenRetrievalError", "NoCredentialsError",
}  # fmt: skip
SIGN_IN = {
    "PartialCredentialsError", "NoAuthTokenError", "SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError",
    "LoginError", "LoginRefreshRequired", "LoginInsufficientPermissions", "LoginTokenLoadError",
    "LoginAuthorizationCodeError", "RefreshWithMFAUnsupportedError",
}  # fmt: skip
OTHER = {"CapacityNotAvailableError": ThrottledError, "PaginationError": ListingError}
# Mistakes in the Airflow connection, the environment or the streams file.
MISTAKES = {
    "BotoCoreError", "DataNotFoundError", "UnknownServiceError", "UnknownRegionError", "ApiVersionNotFoundError",
    "InvalidIMDSEndpointError", "InvalidIMDSEndpointModeError", "UnknownTokenProviderError",
    "UnknownSignatureVersionError", "ServiceNotInRegionError", "BaseEndpointResolverError", "NoRegionError",
    "EndpointVariantError", "UnknownEndpointError", "UnknownFIPSEndpointError", "ProfileNotFound",
    "ConfigParseError", "ConfigNotFound", "MissingParametersError", "ValidationError", "UnknownKeyError",
    "RangeError", "UnknownParameterError", "InvalidRegionError", "AliasConflictParameterError",
    "ParamValidationError", "UnknownServiceStyle", "OperationNotPageableError", "UnseekableStreamError",
    "WaiterError", "InvalidExpressionError", "UnknownCredentialError", "WaiterConfigError",
    "UnknownClientMethodError", "UnsupportedSignatureVersionError", "InvalidDNSNameError",
    "InvalidS3AddressingStyleError", "UnsupportedS3ArnError", "UnsupportedS3ControlArnError",
    "InvalidHostLabelError", "UnsupportedOutpostResourceError", "UnsupportedS3ConfigurationError",
    "UnsupportedS3AccesspointConfigurationError", "InvalidEndpointDiscoveryConfigurationError",
    "UnsupportedS3ControlConfigurationError", "InvalidRetryConfigurationError", "InvalidMaxRetryAttemptsError",
    "InvalidRetryModeError", "InvalidS3UsEast1RegionalEndpointConfigError",
    "InvalidSTSRegionalEndpointsConfigError", "StubResponseError", "StubAssertionError",
    "UnStubbedResponseError", "InvalidConfigError", "InfiniteLoopConfigError", "MD5UnavailableError",
    "MissingDependencyException", "InvalidProxiesConfigError", "InvalidDefaultsMode", "AwsChunkedWrapperError",
    "InvalidEndpointConfigurationError", "EndpointProviderError", "EndpointResolutionError",
    "UnknownEndpointResolutionBuiltInName", "InvalidChecksumConfigError", "UnsupportedServiceProtocolsError",
    "EndpointDiscoveryException", "EndpointDiscoveryRequired", "EndpointDiscoveryRefreshFailed",
}  # fmt: skip


def subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from subclasses(sub)


BOTOCORE = sorted(
    {kind for kind in subclasses(boto.BotoCoreError) if kind.__module__.startswith("botocore.")},
    key=lambda kind: kind.__name__,
)


def example(kind: type[BaseException]) -> BaseException:
    """Return an exception of this class, with a value for each of its fields."""
    if issubclass(kind, boto.WaiterError):
        return kind("name", "reason", {})
    fields = {name for _, name, _, _ in string.Formatter().parse(getattr(kind, "fmt", "")) if name}
    return kind(**{name.partition(".")[0]: "x" for name in fields})


def raised(error: BaseException, operation: str = "GET") -> RollupError:
    with pytest.raises(RollupError) as caught, translated(operation, OBJECT):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize("kind", BOTOCORE)
def test_each_exception_of_botocore_has_its_class(kind: type[BaseException]) -> None:
    name = kind.__name__
    expected: type[RollupError] = OTHER.get(name, ConfigurationError)
    if name in RETRIED:
        expected = TransientError
    elif name in SIGN_IN:
        expected = CredentialsError
    else:
        assert name in OTHER or name in MISTAKES, (
            f"decide what {name} means, and add it to one of the sets above"
        )
    error = raised(example(kind))
    assert type(error) is expected
    assert str(error).startswith(f"GET {OBJECT}: ")


def client_error(code: str, status: int, operation: str = "GetObject", **response: Any) -> boto.ClientError:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": {"Retry-After": "7"}}
    parsed: Any = {"Error": {"Code": code, "Message": "why"}, "ResponseMetadata": meta, **response}
    return boto.ClientError(parsed, operation)


def test_client_error_of_botocore_goes_through_the_table() -> None:
    error = raised(client_error("SlowDown", 503))
    assert isinstance(error, ThrottledError)
    assert error.retry_after == 7.0
    assert "S3 answered 503 SlowDown (why)" in str(error)


def test_error_element_with_a_namespace_keeps_its_code() -> None:
    empty = {"Code": "", "Message": ""}
    error = raised(client_error("", 403, Error=empty, Code="InvalidObjectState", Message="archived"))
    assert type(error) is ArchivedError
    assert "(archived)" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AccessDenied", CredentialsError), ("ExpiredTokenException", TransientError),
        ("Throttling", ThrottledError), ("IDPCommunicationError", TransientError),
        ("InvalidClientTokenId", CredentialsError),
    ],
)  # fmt: skip
def test_error_of_sts_is_not_reported_as_one_of_s3(code: str, kind: type[RollupError]) -> None:
    error = raised(client_error(code, 403, "AssumeRole"))
    assert type(error) is kind
    assert "AssumeRole for GET" in str(error)
    assert "README" not in str(error)


@pytest.mark.parametrize(
    "error",
    [
        ResponseParserError("invalid XML " * 1000),
        ValueError("invalid literal for int()"),
        RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."),
        RuntimeError('Unable to calculate correct timezone offset for "1764000000000"'),
        AttributeError("'list' object has no attribute 'replace'"),
        TypeError("unhashable type: 'list'"),
        OverflowError("Python int too large to convert to C long"),
        KeyError("UploadId"),
        urllib3.SSLError("bad record mac"),
        urllib3.ProtocolError("cut"),
        ConnectionResetError("reset"),
    ],
)
def test_unwrapped_exceptions_of_botocore_are_tried_again(error: Exception) -> None:
    result = raised(error)
    assert type(result) is TransientError
    assert len(str(result)) < 1000


def test_other_exceptions_pass_unchanged() -> None:
    for error in (AccessError("x"), RuntimeError("unrelated"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, translated("GET", OBJECT):
            raise error
        assert caught.value is error


# -- the network -------------------------------------------------------------------------------------------


def wrapped(error: OSError) -> Mapping[str, Exception]:
    """Return an error of a socket, bare as in the data plane, and wrapped by urllib3 and botocore."""
    inner = urllib3.SSLError(error)
    tunnel = urllib3.ProxyError("Unable to connect to proxy", error)
    return {
        "bare": error,
        "SSLError": boto.SSLError(endpoint_url="https://s3", error=inner),
        "proxy": boto.ProxyConnectionError(proxy_url="http://p", error=tunnel),
        "other": boto.HTTPClientError(error=error),
    }


def ssl_error(reason: str, kind: type[ssl.SSLError] = ssl.SSLError, library: str = "SSL") -> ssl.SSLError:
    error = kind(1, f"[{library}: {reason}] {reason.lower()} (_ssl.c:1006)")
    error.reason, error.library = reason, library
    return error


@pytest.mark.parametrize("wrapping", ["bare", "SSLError", "proxy", "other"])
@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), TransientError, ""),
        (ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"), TransientError, ""),
        (ConnectionResetError(104, "Connection reset by peer"), TransientError, ""),
        (ssl_error("TLSV1_ALERT_INTERNAL_ERROR"), TransientError, ""),
        (ssl_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), TransientError, ""),
        (ssl_error("WRONG_VERSION_NUMBER"), TransientError, "the port does not use TLS"),
        (
            ssl_error("CERTIFICATE_VERIFY_FAILED", ssl.SSLCertVerificationError),
            ConfigurationError,
            "'verify'",
        ),
        (ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), ConfigurationError, "'client_cert'"),
        (ssl_error("TLSV1_ALERT_UNKNOWN_CA"), ConfigurationError, "'client_cert'"),
        (FileNotFoundError(2, "No such file"), ConfigurationError, "a certificate file cannot be used"),
        (FileNotFoundError(2, "No such file", "/opt/helper"), ConfigurationError, "'credential_process'"),
        (PermissionError(13, "Permission denied", "/opt/helper"), ConfigurationError, "'credential_process'"),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            ResourceLimitError,
            "TMPDIR",
        ),
        (ssl_error("NO_CERTIFICATE_OR_CRL_FOUND", library="X509"), ConfigurationError, "a certificate file"),
        (
            OSError("Tunnel connection failed: 407 Proxy Authentication Required"),
            ConfigurationError,
            "the proxy",
        ),
        (OSError("the proxy refused a tunnel to [::1]:443: 403 Forbidden"), ConfigurationError, "the proxy"),
        (OSError("Tunnel connection failed: 503 Service Unavailable"), TransientError, ""),
        (socket.gaierror(-3, "Temporary failure in name resolution"), TransientError, ""),
        (TimeoutError("timed out"), TransientError, ""),
    ],
)
def test_network_error_has_one_class_on_both_planes(
    wrapping: str, cause: OSError, kind: type[RollupError], words: str
) -> None:
    error = wrapped(cause)[wrapping]
    for result in (raised(error), from_network("GET", OBJECT, error)):
        assert type(result) is kind
        assert words in str(result)
        assert is_unreachable(result) is (kind is TransientError)


def test_data_plane_keeps_the_class_of_pipeline_errors() -> None:
    for error in (
        ChangedBufferError("changed"),
        ConfigurationError("wrong proxy"),
        ThrottledError("slow", 3.0),
    ):
        result = from_network("PUT", OBJECT, error)
        assert type(result) is type(error)
        assert str(result) == f"PUT {OBJECT}: {error}"
        assert getattr(result, "retry_after", None) == getattr(error, "retry_after", None)


def test_error_response_does_not_count_as_unreachable() -> None:
    assert not is_unreachable(raised(client_error("InternalError", 500)))
    assert not is_unreachable(raised(boto.NoCredentialsError()))
    assert not is_unreachable(response(500, "InternalError"))


# -- real connections --------------------------------------------------------------------------------------


def client(endpoint_url: str, verify: Path | None = None) -> Any:
    s3 = boto3.client(
        "s3", endpoint_url=endpoint_url, region_name="us-east-1", aws_access_key_id="a",
        aws_secret_access_key="s", verify=str(verify) if verify else None,
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )  # fmt: skip
    limit_redirects(s3)
    return s3


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler], None]], ThreadingHTTPServer]]:
    """Return a function that starts a server, which handles all requests with one function."""
    running = []

    def start(handle: Callable[[BaseHTTPRequestHandler], None]) -> ThreadingHTTPServer:
        methods = {f"do_{method}": handle for method in ("GET", "HEAD", "PUT", "POST", "DELETE")}
        handler = type("Handler", (BaseHTTPRequestHandler,), {**methods, "log_message": lambda *_: None})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [(301, MissingBucketError), (302, ConfigurationError), (307, TransientError), (308, MissingBucketError)],
)
def test_redirects_in_circles_end_after_the_first(serve: Any, status: int, kind: type[RollupError]) -> None:
    methods_sent: list[str] = []

    def redirect(request: BaseHTTPRequestHandler) -> None:
        methods_sent.append(request.command)
        request.send_response(status)
        request.send_header("Location", f"http://{request.headers['Host']}{request.path}")
        request.send_header("Content-Length", "0")
        request.end_headers()

    s3 = client(f"http://127.0.0.1:{serve(redirect).server_port}")
    with pytest.raises(kind, match=r"it redirects to http://127\.0\.0\.1"), translated("LIST", OBJECT):
        s3.list_objects_v2(Bucket="logs")
    assert len(methods_sent) <= 2


def test_endless_redirects_are_a_configuration_error() -> None:
    assert type(raised(RecursionError("maximum recursion depth exceeded"))) is ConfigurationError


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


def test_connection_closed_in_the_handshake_is_tried_again(tls_files: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_at_once() -> None:
            connection, _ = listener.accept()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=close_at_once)
        thread.start()
        s3 = client(f"https://127.0.0.1:{listener.getsockname()[1]}", tls_files.ca)
        with pytest.raises(TransientError) as caught, translated("LIST", OBJECT):
            s3.list_objects_v2(Bucket="logs")
        thread.join()
    assert is_unreachable(caught.value)


# -- Airflow's retries -------------------------------------------------------------------------------------


def test_airflows_retries_agree_with_the_classes() -> None:
    from log_rollup_plugin.retries import retry_policy

    policy = retry_policy()
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RollupError)
    ]
    for kind in kinds:
        decision = policy.evaluate(kind("x"), 1, 4)
        assert (decision.action.value == "fail") is issubclass(kind, PermanentError)
        if issubclass(kind, ThrottledError):
            assert decision.retry_delay == timedelta(minutes=2)
