"""Turns what botocore and the CRT raise into the pipeline's errors, with what the operator has to do."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from awscrt.exceptions import AwsCrtError
from awscrt.s3 import S3ResponseError
from botocore import exceptions as boto

from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
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

_XML_FIELD = r"<{0}>(.*?)</{0}>"

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
_CRT_THROTTLES = {"AWS_ERROR_S3_SLOW_DOWN"}
# Signed with credentials that ran out under way: the next try takes renewed ones.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}


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
    if code in _EXPIRED:
        return TransientError(what)
    if code in _CREDENTIALS:
        return AccessError(f"{what}: {_CREDENTIALS[code]}; mend the Airflow connection of the stream")
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


def from_crt(operation: str, target: Location, error: Exception) -> Exception:
    """The error for a request of the CRT client that failed."""
    if isinstance(error, S3ResponseError) and isinstance(error.status_code, int) and error.status_code >= 300:
        body = (error.body or b"").decode(errors="replace")
        headers = {name.lower(): value for name, value in error.headers or ()}
        code = _field(body, "Code") or str(error.status_code)
        return from_response(operation, target, error.status_code, code, _field(body, "Message"), headers)
    if isinstance(error, AwsCrtError):
        # The CRT keeps the answers of requests that it gave up retrying to itself.
        if error.name in _CRT_THROTTLES:
            return ThrottledError(f"{operation} {target}: {error.name}: {error.message}")
        return TransientError(f"{operation} {target}: {error.name}: {error.message}")
    return error


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
        raise AccessError(
            f"{what}: {error}; give the stream's Airflow connection keys, or the worker a role"
        ) from error
    except boto.SSLError as error:
        raise ConfigurationError(
            f"{what}: {error}; the connection's extra 'verify' can name the CA file of a private endpoint"
        ) from error
    except _NETWORK as error:
        raise TransientError(f"{what}: {error}") from error
    except boto.BotoCoreError as error:
        raise ConfigurationError(f"{what}: {error}; mend the Airflow connection or the stream") from error


def _field(xml: str, name: str) -> str:
    match = re.search(_XML_FIELD.format(name), xml, re.DOTALL)
    return match[1] if match else ""


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        # An HTTP date: rare here, and our own waits are as good.
        return None
