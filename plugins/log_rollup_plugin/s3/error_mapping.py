"""Maps errors of S3, botocore and sockets to the pipeline's errors, with what the operator has to do.

Rules by error code, by HTTP status and by botocore exception are tables. The class of the resulting error decides
whether the request is tried again.
"""

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
    ArchivedError,
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

# Characters of a message that are kept: S3's messages are a sentence, but a proxy's error page can be long.
LONGEST_MESSAGE = 500


class ErrorRule(NamedTuple):
    """What to raise for an error.

    :param error: the class to raise
    :param remedy: what the operator has to do; ``{bucket}`` and ``{operation}`` are filled in
    """

    error: type[RollupError]
    remedy: str = ""


_FIX_KEYS = "; fix the Airflow connection of the stream"
_PERMISSION = ErrorRule(
    AccessError,
    "the credentials of the connection lack the permission; grant it: docs/DEPLOY.md lists the permissions that "
    "are needed",
)
_THROTTLE = ErrorRule(ThrottledError)
_RETRY = ErrorRule(TransientError)
_CHANGED = ErrorRule(InputChangedError)
_MISSING = ErrorRule(NotFoundError)
_FOREIGN = ErrorRule(
    ForeignResponseError,
    "S3 would state an error code, so a proxy or load balancer may have sent this; if it continues, fix "
    "'endpoint_url' of the connection",
)
_MISSING_BUCKET = ErrorRule(
    MissingBucketError,
    "create the bucket '{bucket}', or fix its name, in 'raw' or 'aggregated' of the stream or on the command "
    "line, or fix the region of the connection",
)
_ACCOUNT = ErrorRule(
    AccessError,
    "the account or the bucket is blocked by its provider; settle this with the provider, then clear the task",
)
_KEY_MANAGEMENT = ErrorRule(
    AccessError,
    "the encryption key of the bucket or object cannot be used: enable the key, and grant kms:Decrypt and "
    "kms:GenerateDataKey on it",
)
_UNKNOWN_KEY = ErrorRule(CredentialsError, "the access key is not known to the server" + _FIX_KEYS)
_WRONG_SECRET = ErrorRule(CredentialsError, "the secret key does not belong to the access key" + _FIX_KEYS)
_INVALID_TOKEN = ErrorRule(CredentialsError, "the session token is not valid" + _FIX_KEYS)
_WRONG_REGION = ErrorRule(
    CredentialsError, "the region of the connection is not that of the bucket" + _FIX_KEYS
)
_UNSIGNED = ErrorRule(CredentialsError, "the server does not accept these credentials" + _FIX_KEYS)
_CLOCK = ErrorRule(
    CredentialsError,
    "the clock of this machine is off by more than 15 minutes; set it (NTP), then clear the task",
)
_ARCHIVED = ErrorRule(
    ArchivedError,
    "the object is archived, so that it cannot be read; retrieve it from the archive (RestoreObject; for parts: "
    "log-rollup restore or grep with --retrieve), then try again",
)
_BEING_RETRIEVED = ErrorRule(
    ArchivedError,
    "the object is being retrieved from the archive already; wait until that has ended, then try again",
)
_NOT_ARCHIVED = ErrorRule(ArchivedError, "the object is not archived any more; try again")
_NO_EXPEDITED = ErrorRule(
    ArchivedError,
    "there is no capacity for expedited retrievals now; use the tier 'standard' or buy provisioned capacity",
)
_UNSUPPORTED = ErrorRule(UnsupportedOperationError, "this server does not support the request ({operation})")
_TOO_LARGE = ErrorRule(
    ConfigurationError,
    "the server, or a proxy before it, does not accept objects of this size; lower 'part_size' of the stream",
)
_TOO_LONG = ErrorRule(
    ConfigurationError,
    "the key is longer than the server allows (S3: 1,024 bytes); shorten 'aggregated' of the stream",
)
_FULL = ErrorRule(
    PermanentError,
    "the storage is full or its quota is used up; free space or raise the quota, then clear the task",
)
_STORAGE_CLASS = ErrorRule(
    ConfigurationError, "the server does not know the storage class; fix 'storage_class' of the stream"
)
_NEW_BUCKET = ErrorRule(
    TransientError,
    "the bucket is new and its name is not known everywhere yet; if this continues for hours, set "
    "'region_name' or 'endpoint_url' of the connection to those of the bucket",
)
_REDIRECT = ErrorRule(
    ConfigurationError,
    "the server redirects the request elsewhere, or in circles; fix 'endpoint_url' of the connection",
)


def _table(*groups: tuple[ErrorRule, str]) -> dict[str, ErrorRule]:
    """Rules by error code, from groups of codes with spaces between them."""
    return {code: rule for rule, codes in groups for code in codes.split()}


# By error code, for any operation and status, because servers disagree on statuses.
# - S3: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
# - Throttling codes of botocore: botocore.retries.standard.ThrottledRetryableChecker
# - MinIO: cmd/api-errors.go; Ceph: https://docs.ceph.com/en/latest/radosgw/s3/commons/
# - Cloudflare R2: https://developers.cloudflare.com/r2/api/error-codes/
# - Google: https://cloud.google.com/storage/docs/xml-api/reference-status
# - KMS: https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html
# - STS, which boto3 asks for credentials: https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
CODES: Mapping[str, ErrorRule] = _table(
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
    # The credentials expired after the request was signed; the next try uses renewed ones.
    (
        _RETRY,
        "ExpiredToken ExpiredTokenException RequestExpired ExpiredRequest TokenRefreshRequired",
    ),
    # Another run aborted the multipart upload of a copy; the next try begins a new one.
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
    (_ARCHIVED, "InvalidObjectState ObjectNotInActiveTierError"),
    (_BEING_RETRIEVED, "RestoreAlreadyInProgress"),
    (_NOT_ARCHIVED, "ObjectAlreadyInActiveTierError"),
    (_NO_EXPEDITED, "GlacierExpeditedRetrievalNotAvailable"),
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
# All other codes of the key management service: AccessDenied, Disabled, NotFound, KMSInvalidState, ...
KEY_CODE_PREFIXES = ("KMS.", "CloudKms")

# For responses without a code: those to HEAD, which have no body, and some of proxies. S3 answers 400 to a HEAD
# with expired credentials.
STATUSES_WITHOUT_CODE: Mapping[int, ErrorRule] = {400: _RETRY, 409: _RETRY}
# For responses without a code, or with one that is not in the table.
STATUSES: Mapping[int, ErrorRule] = {
    301: _MISSING_BUCKET,
    302: _REDIRECT,
    303: _REDIRECT,
    307: _NEW_BUCKET,
    308: _MISSING_BUCKET,
    401: _PERMISSION,
    403: _PERMISSION,
    404: _MISSING,
    405: _UNSUPPORTED,
    407: ErrorRule(
        ConfigurationError, "the proxy requires other credentials; fix user and password in the proxy's URL"
    ),
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

_NO_CREDENTIALS = ErrorRule(
    # boto3 raises the same if a metadata service does not answer for a moment: a retry can help.
    TransientError,
    "add keys to the stream's Airflow connection, or give the worker a role",
)
_CONFIGURATION = ErrorRule(ConfigurationError, "fix the Airflow connection or the stream")
_SIGN_IN = ErrorRule(
    CredentialsError, "add keys to the stream's Airflow connection, or give the worker a role"
)
# By botocore exception; the nearest base class counts. All others mean a mistake in the connection.
EXCEPTIONS: Mapping[type[BaseException], ErrorRule] = {
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
    boto.PaginationError: ErrorRule(
        ListingError, "the server sends the same page of a listing again; update or replace the server"
    ),
}
_CERTIFICATE = ErrorRule(
    ConfigurationError,
    "the certificate is not trusted; name the CA file of a private endpoint in the connection's extra 'verify'",
)
_CLIENT_CERTIFICATE = ErrorRule(
    ConfigurationError,
    "the server does not accept the client certificate; fix 'client_cert' in the connection's config_kwargs",
)
_FILES = ErrorRule(
    ConfigurationError,
    "a certificate file cannot be used; fix 'verify' or 'client_cert' in the connection's extra",
)
_PROGRAM = ErrorRule(
    ConfigurationError,
    "the file or program cannot be used; fix the setting that names it, such as 'credential_process' in the AWS "
    "configuration",
)
_TEMPORARY_FILES = ErrorRule(
    ResourceLimitError, "free some space there, or let TMPDIR name a directory that can be written"
)
_URL = ErrorRule(ConfigurationError, "fix 'endpoint_url' of the connection, or the bucket's name")
_PROXY = ErrorRule(
    ConfigurationError, "the proxy refuses the request; fix its URL, or allow the endpoint in the proxy"
)
_NO_TLS = ErrorRule(
    TransientError, "if this continues, the port does not use TLS: fix 'endpoint_url' of the connection"
)
# OpenSSL's reasons for TLS alerts about the client certificate.
_CLIENT_CERTIFICATE_ALERTS = ("CERTIFICATE", "UNKNOWN_CA")
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
# OpenSSL's libraries that read files.
_FILE_LIBRARIES = {"PEM", "X509"}
# The messages of http.client and of the data plane.
_PROXY_REFUSES = re.compile(r"(?:Tunnel connection failed|the proxy refused a tunnel to .*): 40[1357]\b")
# Operations with which boto3 gets credentials, in the middle of a request to S3.
_TOKEN_OPERATIONS = {
    "AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML", "GetSessionToken", "GetFederationToken",
    "GetRoleCredentials", "CreateToken",
}  # fmt: skip
_ROLE = ErrorRule(
    CredentialsError,
    "these credentials may not assume the role; fix 'role_arn' of the connection, or the role's trust policy",
)


# -- responses ---------------------------------------------------------------------------------------------


def from_response(
    operation: str, target: Location, status: int, code: str, message: str, headers: Mapping[str, str]
) -> RollupError:
    """The error that a response of S3 means.

    :param status: of the response; an error in a response of status 200 counts as one of status 500
    :param code: S3's error code; empty, or the status, if the response has none
    :param headers: of the response, names in lower case
    """
    # MinIO puts the error code of a HEAD into a header.
    if not is_code(code) and (stated := headers.get("x-minio-error-code", "").strip('"')):
        code = stated
    what = f"{operation} {target}: S3 answered {status}" + (f" {code}" if is_code(code) else "")
    rule = _rule_for(500 if status == 200 else status, code)
    # The response to a HEAD has no body, and so never a code.
    if rule is _MISSING and not is_code(code) and operation != "HEAD":
        rule = _FOREIGN
    return _error(rule, what, message, operation, target, headers)


def from_code(operation: str, target: Location, code: str, message: str) -> RollupError:
    """The error that S3 states for one of several keys, as in a response to DeleteObjects.

    :param target: the object that the error is about
    """
    what = f"{operation} {target}: S3 answered {code}"
    return _error(_rule_for(0, code), what, message, operation, target, {})


def is_code(code: str) -> bool:
    """Whether it is an error code of S3; botocore takes the status as the code of a response without one."""
    return bool(code) and not code.isdecimal()


def _rule_for(status: int, code: str) -> ErrorRule:
    code = code.strip()
    if code in CODES:
        return CODES[code]
    if code.startswith(KEY_CODE_PREFIXES):
        return _KEY_MANAGEMENT
    if not is_code(code):
        status = int(code) if code else status
        if status in STATUSES_WITHOUT_CODE:
            return STATUSES_WITHOUT_CODE[status]
    if status in STATUSES:
        return STATUSES[status]
    return _RETRY if status >= 500 else ErrorRule(PermanentError)


def _error(
    rule: ErrorRule, what: str, message: str, operation: str, target: Location, headers: Mapping[str, str]
) -> RollupError:
    """The error of a rule. Its message contains S3's message, and the region or address that S3 states."""
    if message := message.strip():
        what += f" ({message[:LONGEST_MESSAGE]})"
    if region := headers.get("x-amz-bucket-region"):
        what += f"; the bucket is in the region {region}"
    elif (location := headers.get("location")) and rule in (_REDIRECT, _MISSING_BUCKET, _NEW_BUCKET):
        what += f"; it redirects to {location}"
    if rule.remedy:
        what += f": {rule.remedy.format(bucket=target.bucket, operation=operation)}"
    if issubclass(rule.error, TransientError):
        return rule.error(what, _retry_after_seconds(headers.get("retry-after")))
    return rule.error(what)


def _retry_after_seconds(value: str | None) -> float | None:
    """The value of Retry-After, which is a number or a date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


# -- no response -------------------------------------------------------------------------------------------


def from_network(operation: str, target: Location, error: Exception) -> RollupError:
    """The error for a request without a complete response; an error of the pipeline keeps its class."""
    what = f"{operation} {target}: {error or type(error).__name__}"
    result: RollupError
    if isinstance(error, TransientError):
        result = type(error)(what, error.retry_after)
    elif isinstance(error, RollupError):
        result = type(error)(what)
    else:
        result = _with_remedy(_network_rule(error), what)
    result.__cause__ = error
    return result


def status_and_code(error: boto.ClientError) -> tuple[int, str]:
    """HTTP status and error code of a response; botocore takes the status as the code of a HEAD."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(error.response.get("Error", {}).get("Code", ""))


def is_unreachable(error: RollupError) -> bool:
    """Whether the server could not be reached or did not respond; False for errors that the server reported."""
    cause = error.__cause__
    if not isinstance(error, TransientError) or isinstance(cause, boto.ClientError | RuntimeError):
        return False
    if isinstance(cause, boto.BotoCoreError):
        return isinstance(cause, boto.ConnectionError | boto.HTTPClientError | boto.IncompleteReadError)
    return cause is not None


def _network_rule(error: BaseException) -> ErrorRule:
    """The rule of the first cause that is not merely a failed network; otherwise the one to try again."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError | CertificateError):
            return _CERTIFICATE
        if isinstance(cause, ssl.SSLError):
            reason, library = (getattr(cause, name, None) or "" for name in ("reason", "library"))
            if "ALERT" in reason and any(word in reason for word in _CLIENT_CERTIFICATE_ALERTS):
                return _CLIENT_CERTIFICATE
            if reason in _NOT_TLS:
                return _NO_TLS
            if library in _FILE_LIBRARIES:
                return _FILES
        elif isinstance(cause, _FILE_ERRORS) and cause.filename is not None:
            return _PROGRAM
        elif isinstance(cause, FileNotFoundError) and "temporary directory" in str(cause):
            return _TEMPORARY_FILES
        elif isinstance(cause, _FILE_ERRORS) and not isinstance(cause, PermissionError):
            # OpenSSL does not say which file. A firewall may refuse a connection with the other one.
            return _FILES
        elif isinstance(cause, LocationValueError | InvalidURL | UnicodeError):
            return _URL
        elif isinstance(cause, OSError) and _PROXY_REFUSES.match(str(cause)):
            return _PROXY
    return _RETRY


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that botocore and urllib3 wrapped in it."""
    candidates: list[Any] = [error]
    seen: set[int] = set()
    while candidates:
        cause = candidates.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        candidates.append(cause.__cause__)
        candidates.extend(cause.args)
        if isinstance(cause, boto.BotoCoreError):
            candidates.extend(cause.kwargs.values())
        candidates.extend(getattr(cause, name, None) for name in ("original_error", "reason"))


def _with_remedy(rule: ErrorRule, what: str) -> RollupError:
    return rule.error(f"{what}; {rule.remedy}" if rule.remedy else what)


# -- botocore ----------------------------------------------------------------------------------------------


@contextmanager
def translated(operation: str, target: Location) -> Iterator[None]:
    """Turn exceptions of botocore and of the network in the ``with`` block into errors of the pipeline.

    :param operation: as error messages name it
    """
    what = f"{operation} {target}"
    try:
        yield
    except boto.ClientError as error:
        raise _from_client(operation, target, error) from error
    except boto.BotoCoreError as error:
        raise _from_botocore(what, error) from error
    except (OSError, HTTPError) as error:
        # botocore does not wrap some of urllib3's errors while a body is read.
        raise from_network(operation, target, error) from error
    except (ResponseParserError, ValueError, KeyError) as error:
        raise TransientError(
            f"{what}: the response cannot be read: {str(error)[:LONGEST_MESSAGE]}"
        ) from error
    except RecursionError as error:
        raise ConfigurationError(f"{what}: {_REDIRECT.remedy}") from error
    except RuntimeError as error:
        # botocore raises it for a time that it cannot parse, such as milliseconds since 1970, ...
        if "timezone offset" in str(error):
            raise TransientError(f"{what}: the response cannot be read: {error}") from error
        # ... and if a metadata service returns expired credentials.
        if "refreshed credentials" not in str(error):
            raise
        raise TransientError(f"{what}: {error}") from error
    except (AttributeError, TypeError, OverflowError) as error:
        # botocore makes a list of an element that occurs twice, and its own handlers do not expect that.
        raise TransientError(
            f"{what}: the response cannot be read: {type(error).__name__}: {str(error)[:LONGEST_MESSAGE]}"
        ) from error


def limit_redirects(client: Any) -> None:
    """Make a boto3 client follow one redirect only.

    For a redirect without a region, botocore sends HeadBucket; for a redirect of that, HeadBucket again, until
    Python's stack is full.
    """
    client.meta.events.register("before-call.s3.HeadBucket", _mark_as_redirected)


def _mark_as_redirected(context: Mapping[str, Any], **_: Any) -> None:
    if "s3_redirect" in context:
        context["s3_redirect"]["redirected"] = True


def _from_client(operation: str, target: Location, error: boto.ClientError) -> RollupError:
    # botocore does not recognise an <Error> with a namespace, and leaves its elements on the top level.
    stated = error.response.get("Error") or {}
    code = str(stated.get("Code") or error.response.get("Code") or "")
    message = str(stated.get("Message") or error.response.get("Message") or "")
    meta = error.response.get("ResponseMetadata", {})
    headers = {name.lower(): str(value) for name, value in meta.get("HTTPHeaders", {}).items()}
    status = int(meta.get("HTTPStatusCode", 0))
    if error.operation_name in _TOKEN_OPERATIONS:
        what = f"{error.operation_name} for {operation} {target}: STS answered {status} {code}"
        rule = _rule_for(status, code)
        rule = _ROLE if rule is _PERMISSION else rule
        return _error(rule, what, message, error.operation_name, target, headers)
    return from_response(operation, target, status, code, message, headers)


def _from_botocore(what: str, error: boto.BotoCoreError) -> RollupError:
    rule = next((EXCEPTIONS[kind] for kind in type(error).__mro__ if kind in EXCEPTIONS), _CONFIGURATION)
    if rule is _RETRY:
        rule = _network_rule(error)
    return _with_remedy(rule, f"{what}: {error}")
