"""Turns what botocore and sockets report into the pipeline's errors, with what the operator has to do."""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from botocore import exceptions as boto

from include.log_rollup.errors import (
    AccessError,
    ChangedBufferError,
    ConfigurationError,
    CredentialsError,
    InputChangedError,
    MissingBucketError,
    NotFoundError,
    PermanentError,
    RollupError,
    ThrottledError,
    TransientError,
    UnsupportedInputError,
)
from include.log_rollup.store import Location

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_THROTTLES = {
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "RequestLimitExceeded",
    "TooManyRequests",
    "503",
    "429",
}
_CREDENTIALS = {
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "InvalidToken": "the session token is not valid",
    "AuthorizationHeaderMalformed": "the region of the connection is not the bucket's",
    "RequestTimeTooSkewed": "the clock of this machine is off by more than 15 minutes; set it",
}
_MISSING_BUCKET = {"NoSuchBucket", "PermanentRedirect", "InvalidBucketName"}
# ConnectionError is botocore's: a refused connection and a host that is not found are no HTTPClientError.
_NETWORK = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
)
# Signed with credentials that ran out under way: the next try takes renewed ones.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}

# A HEAD has no body to name a code in, and S3 refuses expired credentials with this status.
_NO_REASON = "400"
# Another run gave up the multipart upload of a copy, as one that a crash had left open; the next try starts anew.
_UPLOAD_GONE = "NoSuchUpload"


def from_response(
    operation: str, target: Location, status: int, code: str, message: str, headers: Mapping[str, str]
) -> RollupError:
    """The error for an answer of S3.

    :param code: S3's error code; for a HEAD the status stands in for it
    :param headers: of the answer, names in lower case
    """
    what = f"{operation} {target}: S3 answered {status} {code}" + (f" ({message})" if message else "")
    if code in _THROTTLES or status in (429, 503):
        return ThrottledError(what, _seconds(headers.get("retry-after")))
    if code in _EXPIRED or code in (_NO_REASON, _UPLOAD_GONE):
        return TransientError(what)
    if code in _CREDENTIALS:
        return CredentialsError(f"{what}: {_CREDENTIALS[code]}; mend the Airflow connection of the stream")
    if code in _MISSING_BUCKET:
        return MissingBucketError(
            f"{what}: create the bucket {target.bucket!r}, or mend 'raw' and 'aggregated' of the stream or the "
            f"region of its connection"
        )
    if code == "InvalidObjectState":
        return UnsupportedInputError(f"{what}: the object is archived; restore it, then clear the task")
    if code in ("PreconditionFailed", "412"):
        return InputChangedError(what)
    if code in ("NoSuchKey", "NoSuchVersion") or status == 404:
        return NotFoundError(what)
    if status in (401, 403):
        return AccessError(
            f"{what}: the credentials of the connection may not do this; the README lists the permissions "
            f"that the Dag needs"
        )
    if status >= 500 or code in (
        "RequestTimeout",
        "InternalError",
        "BadDigest",
        "IncompleteBody",
        "OperationAborted",
    ):
        return TransientError(what, _seconds(headers.get("retry-after")))
    return PermanentError(what)


def from_network(operation: str, target: Location, error: Exception) -> RollupError:
    """The error for a request that got no answer, or half of one."""
    what = f"{operation} {target}: {error or type(error).__name__}"
    if isinstance(error, ChangedBufferError):
        return ChangedBufferError(what)
    return _certificate(what) if isinstance(error, ssl.SSLCertVerificationError) else TransientError(what)


@contextmanager
def translated(operation: str, target: Location) -> Iterator[None]:
    """Raise what botocore raises within as errors of the pipeline."""
    what = f"{operation} {target}"
    try:
        yield
    except boto.ClientError as error:
        answer = error.response.get("Error", {})
        meta = error.response.get("ResponseMetadata", {})
        headers = {name.lower(): value for name, value in meta.get("HTTPHeaders", {}).items()}
        raise from_response(
            operation, target, int(meta.get("HTTPStatusCode", 0)), str(answer.get("Code", "")),
            str(answer.get("Message", "")), headers,
        ) from error  # fmt: skip
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise CredentialsError(
            f"{what}: {error}; give the stream's Airflow connection keys, or the worker a role"
        ) from error
    except boto.SSLError as error:
        raise _certificate(f"{what}: {error}") from error
    except _NETWORK as error:
        raise TransientError(f"{what}: {error}") from error
    except boto.BotoCoreError as error:
        raise ConfigurationError(f"{what}: {error}; mend the Airflow connection or the stream") from error


def _certificate(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what}; the connection's extra 'verify' can name the CA file of a private endpoint"
    )


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        # An HTTP date: rare here, and our own waits are as good.
        return None
