"""One table: what S3, botocore and sockets report, as the pipeline's errors, with the operator's remedy."""

import math
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import InvalidURL
from typing import Any, NamedTuple

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.util.ssl_match_hostname import CertificateError

from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    CredentialsError,
    InputChangedError,
    ListingError,
    MissingBucketError,
    NotFoundError,
    PermanentError,
    RollupError,
    ThrottledError,
    TransientError,
    UnsupportedInputError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import Location

# A proxy's error page can be long; S3's messages are a sentence.
LONGEST_MESSAGE = 500


class Fault(NamedTuple):
    """What an error code means.

    :param error: the class; it decides whether the request is tried again
    :param remedy: what the operator has to do; ``{bucket}`` and ``{operation}`` are filled in
    """

    error: type[RollupError]
    remedy: str = ""


_FIX_KEYS = "; fix the Airflow connection of the stream"
_PERMISSION = Fault(
    AccessError,
    "the credentials of the connection may not do this; the README lists the permissions that the Dag needs",
)
_THROTTLE = Fault(ThrottledError)
_RETRY = Fault(TransientError)
_CHANGED = Fault(InputChangedError)
_MISSING = Fault(NotFoundError)
_MISSING_BUCKET = Fault(
    MissingBucketError,
    "create the bucket '{bucket}', or fix 'raw' and 'aggregated' of the stream or the region of its connection",
)
_ACCOUNT = Fault(
    AccessError, "the account or the bucket is blocked by its provider; settle it there, then clear the task"
)
_KEY_MANAGEMENT = Fault(
    AccessError,
    "the encryption key of the bucket or object cannot be used: it has to exist and be enabled, and the "
    "credentials need kms:Decrypt and kms:GenerateDataKey for it",
)
_UNKNOWN_KEY = Fault(CredentialsError, "the access key is not known there" + _FIX_KEYS)
_WRONG_SECRET = Fault(CredentialsError, "the secret key does not belong to the access key" + _FIX_KEYS)
_INVALID_TOKEN = Fault(CredentialsError, "the session token is not valid" + _FIX_KEYS)
_WRONG_REGION = Fault(CredentialsError, "the region of the connection is not the bucket's" + _FIX_KEYS)
_UNSIGNED = Fault(CredentialsError, "the server does not accept these credentials" + _FIX_KEYS)
_CLOCK = Fault(
    CredentialsError,
    "the clock of this machine is off by more than 15 minutes; set it (NTP), then clear the task",
)
_ARCHIVED = Fault(UnsupportedInputError, "the object is archived; restore it, then clear the task")
_UNSUPPORTED = Fault(UnsupportedOperationError, "this server does not support the request ({operation})")
_TOO_LARGE = Fault(
    ConfigurationError,
    "the server, or a proxy before it, does not take objects of this size; lower 'part_size' of the stream",
)
_TOO_LONG = Fault(
    ConfigurationError,
    "the key is longer than the server allows (S3: 1,024 bytes); shorten 'aggregated' of the stream",
)
_FULL = Fault(
    PermanentError,
    "the storage is full or its quota is used up; free space or raise the quota, then clear the task",
)
_STORAGE_CLASS = Fault(
    ConfigurationError, "the server does not know the storage class; fix 'storage_class' of the stream"
)
_NEW_BUCKET = Fault(
    TransientError,
    "the bucket is new and its name is not known everywhere yet, which passes; if it stays, set 'region_name' "
    "or 'endpoint_url' of the connection to where the bucket is",
)
_REDIRECT = Fault(
    ConfigurationError,
    "the server redirects instead of answering; fix 'endpoint_url' of the connection, also where it redirects "
    "in circles",
)


def _table(*groups: tuple[Fault, str]) -> dict[str, Fault]:
    return {code: fault for fault, codes in groups for code in codes.split()}


# By error code, whatever the operation and the status: servers disagree on statuses.
# - S3: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
# - S3's throttles by botocore: botocore.retries.standard.ThrottledRetryableChecker
# - MinIO: cmd/api-errors.go; Ceph: https://docs.ceph.com/en/latest/radosgw/s3/commons/
# - Cloudflare R2: https://developers.cloudflare.com/r2/api/error-codes/
# - Google: https://cloud.google.com/storage/docs/xml-api/reference-status
# - KMS: https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html
# - STS, for the credentials themselves: https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
CODES: Mapping[str, Fault] = _table(
    (
        _THROTTLE,
        "SlowDown SlowDownRead SlowDownWrite ServiceUnavailable ServiceUnavailableException Busy ServerBusy "
        "Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException "
        "TooManyRequests TooManyRequestsException RequestLimitExceeded BandwidthLimitExceeded "
        "LimitExceededException ProvisionedThroughputExceededException EC2ThrottledException "
        "PriorRequestNotComplete RateLimitExceeded UserRateLimitExceeded QpsLimitExceeded "
        "KMS.ThrottlingException KMS.Throttling XMinioServerNotInitialized XMinioBackendDown",
    ),
    (
        _RETRY,
        "InternalError InternalFailure InternalServerError InternalErrorException BackendError "
        "RequestTimeout RequestTimeoutException GatewayTimeout BadGateway OperationTimedOut "
        "IncompleteBody BadDigest CrcMismatch ContentMD5Mismatch XAmzContentSHA256Mismatch "
        "XAmzContentChecksumMismatch ConnectionClosedByRequester RequestAbortedException ClientDisconnected "
        "OperationAborted ConditionalRequestConflict TransactionInProgressException ConcurrentModification "
        "KMS.KMSInternalException KMS.DependencyTimeoutException KMS.KeyUnavailableException "
        "IDPCommunicationError",
    ),
    # Signed with credentials that ran out meanwhile: the next try takes renewed ones.
    (
        _RETRY,
        "ExpiredToken ExpiredTokenException RequestExpired ExpiredRequest TokenRefreshRequired",
    ),
    # Another run gave up the multipart upload of a copy; the next try begins another one.
    (_RETRY, "NoSuchUpload"),
    (_NEW_BUCKET, "TemporaryRedirect Redirect"),
    (_CHANGED, "PreconditionFailed"),
    (_MISSING, "NoSuchKey NoSuchVersion NoSuchObject ObjectNotFound NotFound"),
    (
        _MISSING_BUCKET,
        "NoSuchBucket InvalidBucketName PermanentRedirect PermanentRedirectControlError BucketNotFound "
        "IllegalLocationConstraintException IncorrectEndpoint EndpointNotFound NoSuchAccessPoint "
        "NoSuchMultiRegionAccessPoint NoSuchOutpost NoSuchTenant",
    ),
    (
        _PERMISSION,
        "AccessDenied AccessDeniedException Forbidden UnauthorizedAccess NotAuthorized InvalidPayer "
        "AuthorizationError",
    ),
    (
        _ACCOUNT,
        "AccountProblem AllAccessDisabled NotSignedUp OptInRequired UserSuspended UserDisable "
        "AccessKeyDisabled BillingDisabled AccountBillingDisabled",
    ),
    (_UNKNOWN_KEY, "InvalidAccessKeyId InvalidAccessKey InvalidClientTokenId UnrecognizedClientException"),
    (_WRONG_SECRET, "SignatureDoesNotMatch InvalidSignature InvalidSignatureException"),
    (_INVALID_TOKEN, "InvalidToken InvalidTokenId"),
    (_WRONG_REGION, "AuthorizationHeaderMalformed InvalidRegion"),
    (
        _UNSIGNED,
        "InvalidSecurity Unauthorized AuthFailure IncompleteSignature MissingAuthenticationToken "
        "AuthorizationParametersError CredentialsNotSupported MissingSecurityHeader InvalidIdentityToken "
        "IDPRejectedClaim AuthenticationRequired",
    ),
    (_CLOCK, "RequestTimeTooSkewed"),
    (
        _ARCHIVED,
        "InvalidObjectState ObjectNotInActiveTierError ObjectAlreadyInActiveTierError RestoreAlreadyInProgress",
    ),
    (
        _UNSUPPORTED,
        "NotImplemented MethodNotAllowed UnsupportedOperation NotSupported UnsupportedOperationException "
        "UnknownOperation UnknownOperationException XNotImplemented",
    ),
    (_TOO_LARGE, "EntityTooLarge MaxMessageLengthExceeded RequestEntityTooLargeException"),
    (_TOO_LONG, "KeyTooLong KeyTooLongError"),
    (
        _FULL,
        "QuotaExceeded XMinioAdminBucketQuotaExceeded XMinioStorageFull InsufficientCapacity "
        "InsufficientStorage InsufficientStorageSpace StorageQuotaExceeded",
    ),
    (_STORAGE_CLASS, "InvalidStorageClass"),
)
# All other codes of the key service: AccessDenied, Disabled, NotFound, KMSInvalidState, InvalidKeyUsage, ...
KEY_CODES = ("KMS.", "CloudKms")

# Where there is no code: a HEAD has no body to name one in, and some answers come from a proxy. S3 refuses a HEAD
# with expired credentials with 400.
WITHOUT_CODE: Mapping[int, Fault] = {400: _RETRY, 409: _RETRY}
# Where there is no code, or one that is not in the table.
STATUSES: Mapping[int, Fault] = {
    301: _MISSING_BUCKET,
    302: _REDIRECT,
    303: _REDIRECT,
    307: _NEW_BUCKET,
    308: _MISSING_BUCKET,
    401: _PERMISSION,
    403: _PERMISSION,
    404: _MISSING,
    405: _UNSUPPORTED,
    407: Fault(ConfigurationError, "the proxy wants other credentials; fix the proxy's URL"),
    408: _RETRY,
    412: _CHANGED,
    413: _TOO_LARGE,
    414: _TOO_LONG,
    425: _RETRY,
    429: _THROTTLE,
    499: _RETRY,
    501: _UNSUPPORTED,
    503: _THROTTLE,
    505: _UNSUPPORTED,
    507: _FULL,
}

_NO_CREDENTIALS = Fault(
    # boto3 says the same where a metadata service did not answer for a moment.
    TransientError,
    "give the stream's Airflow connection keys, or the worker a role",
)
_CONFIGURATION = Fault(ConfigurationError, "fix the Airflow connection or the stream")
_SIGN_IN = Fault(CredentialsError, "give the stream's Airflow connection keys, or the worker a role")
# By botocore's exceptions, the nearest base class first; those that are not here are mistakes in the connection.
EXCEPTIONS: Mapping[type[BaseException], Fault] = {
    boto.ConnectionError: _RETRY,
    boto.HTTPClientError: _RETRY,
    boto.IncompleteReadError: _RETRY,
    boto.ChecksumError: _RETRY,
    boto.FlexibleChecksumError: _RETRY,
    boto.CredentialRetrievalError: _NO_CREDENTIALS,
    boto.MetadataRetrievalError: _NO_CREDENTIALS,
    boto.TokenRetrievalError: _NO_CREDENTIALS,
    boto.NoCredentialsError: _NO_CREDENTIALS,
    boto.PartialCredentialsError: _SIGN_IN,
    boto.NoAuthTokenError: _SIGN_IN,
    boto.SSOError: _SIGN_IN,
    boto.LoginError: _SIGN_IN,
    boto.RefreshWithMFAUnsupportedError: _SIGN_IN,
    boto.CapacityNotAvailableError: _THROTTLE,
    boto.PaginationError: Fault(ListingError, "the server answers the same page again"),
}
_CERTIFICATE = Fault(
    ConfigurationError, "the connection's extra 'verify' can name the CA file of a private endpoint"
)
_CLIENT_CERTIFICATE = Fault(
    ConfigurationError,
    "the server does not accept the client certificate; fix 'client_cert' in the connection's extra",
)
_FILES = Fault(
    ConfigurationError,
    "a certificate file cannot be used; fix 'verify' or 'client_cert' in the connection's extra",
)
_URL = Fault(ConfigurationError, "fix 'endpoint_url' of the connection, or the bucket's name")
_PROXY = Fault(ConfigurationError, "the proxy refuses; fix its URL, or allow the endpoint there")
_NO_TLS = Fault(
    TransientError, "if it stays, no TLS is spoken on this port: fix 'endpoint_url' of the connection"
)
# Reasons of OpenSSL for alerts that a server sends about the client's certificate, not about its own state.
_CLIENT_ALERTS = ("CERTIFICATE", "UNKNOWN_CA")
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
# OpenSSL's libraries that read files.
_FILE_LIBRARIES = {"PEM", "X509"}
# As http.client says it, and the data plane.
_PROXY_REFUSES = re.compile(r"(?:Tunnel connection failed|the proxy refused a tunnel to .*): 40[1357]\b")
# Operations by which boto3 gets credentials while S3 is asked.
_TOKEN_OPERATIONS = {
    "AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML", "GetSessionToken", "GetFederationToken",
    "GetRoleCredentials", "CreateToken",
}  # fmt: skip
_ROLE = Fault(
    CredentialsError,
    "these credentials may not assume the role; fix 'role_arn' of the connection or the role's trust policy",
)


# -- answers -----------------------------------------------------------------------------------------------


def from_response(
    operation: str, target: Location, status: int, code: str, message: str, headers: Mapping[str, str]
) -> RollupError:
    """The error for an answer of S3.

    :param status: of the answer; an error inside an answer of status 200 counts as one of status 500
    :param code: S3's error code; empty, or the status, where the answer has none
    :param headers: of the answer, names in lower case
    """
    # MinIO names the code of a HEAD's error in a header.
    if not _is_code(code) and (stated := headers.get("x-minio-error-code", "").strip('"')):
        code = stated
    what = f"{operation} {target}: S3 answered {status}" + (f" {code}" if _is_code(code) else "")
    fault = _fault(500 if status == 200 else status, code)
    return _error(fault, what, message, operation, target, headers)


def from_code(operation: str, target: Location, code: str, message: str) -> RollupError:
    """The error for one key of an answer that has a result for each, as that of DeleteObjects.

    :param target: the object that it is about
    """
    return _error(
        _fault(0, code), f"{operation} {target}: S3 answered {code}", message, operation, target, {}
    )


def _is_code(code: str) -> bool:
    return bool(code) and not code.isdecimal()


def _fault(status: int, code: str) -> Fault:
    code = code.strip()
    if code in CODES:
        return CODES[code]
    if code.startswith(KEY_CODES):
        return _KEY_MANAGEMENT
    if not _is_code(code):
        status = int(code) if code else status
        if status in WITHOUT_CODE:
            return WITHOUT_CODE[status]
    if status in STATUSES:
        return STATUSES[status]
    return _RETRY if status >= 500 else Fault(PermanentError)


def _error(
    fault: Fault, what: str, message: str, operation: str, target: Location, headers: Mapping[str, str]
) -> RollupError:
    if message := message.strip():
        what += f" ({message[:LONGEST_MESSAGE]})"
    if region := headers.get("x-amz-bucket-region"):
        what += f"; the bucket is in the region {region}"
    elif (place := headers.get("location")) and fault in (_REDIRECT, _MISSING_BUCKET, _NEW_BUCKET):
        what += f"; it redirects to {place}"
    if fault.remedy:
        what += f": {fault.remedy.format(bucket=target.bucket, operation=operation)}"
    if issubclass(fault.error, TransientError):
        return fault.error(what, _seconds(headers.get("retry-after")))
    return fault.error(what)


def _seconds(value: str | None) -> float | None:
    """The value of Retry-After, which is a number or a date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


# -- no answer ---------------------------------------------------------------------------------------------


def from_network(operation: str, target: Location, error: Exception) -> RollupError:
    """The error for a request that got no answer, or half of one; an error of the pipeline keeps its class."""
    what = f"{operation} {target}: {error or type(error).__name__}"
    made: RollupError
    if isinstance(error, TransientError):
        made = type(error)(what, error.retry_after)
    elif isinstance(error, RollupError):
        made = type(error)(what)
    else:
        made = _with_remedy(_network_fault(error), what)
    made.__cause__ = error
    return made


def is_unreachable(error: RollupError) -> bool:
    """Whether the server could not be reached or did not answer, as opposed to an error that it answered."""
    cause = error.__cause__
    if not isinstance(error, TransientError) or isinstance(cause, boto.ClientError | RuntimeError):
        return False
    if isinstance(cause, boto.BotoCoreError):
        return isinstance(cause, boto.ConnectionError | boto.HTTPClientError | boto.IncompleteReadError)
    return cause is not None


def _network_fault(error: BaseException) -> Fault:
    """What the first of an error and its causes says that says more than that the network failed."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError | CertificateError):
            return _CERTIFICATE
        if isinstance(cause, ssl.SSLError):
            reason, library = (getattr(cause, name, None) or "" for name in ("reason", "library"))
            if "ALERT" in reason and any(word in reason for word in _CLIENT_ALERTS):
                return _CLIENT_CERTIFICATE
            if reason in _NOT_TLS:
                return _NO_TLS
            if library in _FILE_LIBRARIES:
                return _FILES
        elif isinstance(cause, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            return _FILES
        elif isinstance(cause, LocationValueError | InvalidURL | UnicodeError):
            return _URL
        elif isinstance(cause, OSError) and _PROXY_REFUSES.match(str(cause)):
            return _PROXY
    return _RETRY


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that botocore and urllib3 wrapped in it."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting.append(one.__cause__)
        waiting.extend(one.args)
        if isinstance(one, boto.BotoCoreError):
            waiting.extend(one.kwargs.values())
        waiting.extend(getattr(one, name, None) for name in ("original_error", "reason"))


def _with_remedy(fault: Fault, what: str) -> RollupError:
    return fault.error(f"{what}; {fault.remedy}" if fault.remedy else what)


# -- botocore ----------------------------------------------------------------------------------------------


@contextmanager
def translated(operation: str, target: Location) -> Iterator[None]:
    """Raise what botocore raises within as errors of the pipeline."""
    what = f"{operation} {target}"
    try:
        yield
    except boto.ClientError as error:
        raise _from_client(operation, target, error) from error
    except boto.BotoCoreError as error:
        raise _from_botocore(what, error) from error
    except (OSError, HTTPError) as error:
        # botocore passes some of urllib3's on while a body is read.
        raise from_network(operation, target, error) from error
    except (ResponseParserError, ValueError, KeyError) as error:
        raise TransientError(f"{what}: the answer cannot be read: {str(error)[:LONGEST_MESSAGE]}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{what}: {_REDIRECT.remedy}") from error
    except RuntimeError as error:
        # botocore's, for a metadata service that hands out what has expired.
        if "refreshed credentials" not in str(error):
            raise
        raise TransientError(f"{what}: {error}") from error


def limit_redirects(client: Any) -> None:
    """Have a boto3 client follow one redirect.

    For a redirect without a region botocore asks HeadBucket, and for a redirect of that HeadBucket again, and so
    on until Python's stack is full.
    """
    client.meta.events.register("before-call.s3.HeadBucket", _do_not_redirect)


def _do_not_redirect(context: Mapping[str, Any], **_: Any) -> None:
    if "s3_redirect" in context:
        context["s3_redirect"]["redirected"] = True


def _from_client(operation: str, target: Location, error: boto.ClientError) -> RollupError:
    # An <Error> with a namespace is not taken for one by botocore, which leaves its parts on the top level.
    answer = error.response.get("Error") or {}
    code = str(answer.get("Code") or error.response.get("Code") or "")
    message = str(answer.get("Message") or error.response.get("Message") or "")
    meta = error.response.get("ResponseMetadata", {})
    headers = {name.lower(): str(value) for name, value in meta.get("HTTPHeaders", {}).items()}
    status = int(meta.get("HTTPStatusCode", 0))
    if error.operation_name in _TOKEN_OPERATIONS:
        what = f"{error.operation_name} for {operation} {target}: it was answered {status} {code}"
        fault = _fault(status, code)
        fault = _ROLE if fault is _PERMISSION else fault
        return _error(fault, what, message, error.operation_name, target, headers)
    return from_response(operation, target, status, code, message, headers)


def _from_botocore(what: str, error: boto.BotoCoreError) -> RollupError:
    fault = next((EXCEPTIONS[kind] for kind in type(error).__mro__ if kind in EXCEPTIONS), _CONFIGURATION)
    if fault is _RETRY:
        fault = _network_fault(error)
    return _with_remedy(fault, f"{what}: {error}")
