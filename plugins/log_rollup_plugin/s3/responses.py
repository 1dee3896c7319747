"""Reads the responses of boto3's clients: whether they are S3's, whole, and of the range that was requested."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from botocore import exceptions as boto
from urllib3.exceptions import ReadTimeoutError

from include.log_rollup import limits
from include.log_rollup.backoff import seconds_until_next_try
from include.log_rollup.errors import CutShortError, ForeignResponseError, RollupError, TransientError
from include.log_rollup.storage.protocol import Location
from include.log_rollup.units import MIB
from log_rollup_plugin.s3.content_range import other_range_error
from log_rollup_plugin.s3.error_mapping import translated

log = logging.getLogger(__name__)

T = TypeVar("T")
# Bytes of a body that are read at a time.
CHUNK_BYTES = MIB


def check_range(response: Mapping[str, Any], source: Location, first: int) -> None:
    """Raise an error if a response to GetObject states that it begins with another byte than ``first``."""
    if error := other_range_error(source, response.get("ContentRange"), first):
        raise error


def until_usable(send: Callable[[], T]) -> T:
    """Send a request, and again while its response is cut short or, as from a load balancer, not one of S3.

    botocore tries requests again, but not the reading of a body.

    :raises ForeignResponseError: after some tries
    :raises CutShortError: after some tries
    """
    for tried in range(1, limits.FOREIGN_TRIES):
        try:
            return send()
        except (ForeignResponseError, CutShortError) as error:
            log.info("trying again: %s", error)
        time.sleep(seconds_until_next_try(limits.FOREIGN_FIRST_WAIT_SECONDS, tried))
    return send()


@contextmanager
def receiving(source: Location) -> Iterator[None]:
    """Turn the early end of a body in the ``with`` block into an error of its own; a timeout is none.

    :raises CutShortError: if the body ends early
    :raises TransientError: after a timeout
    """
    try:
        with translated("GET", source):
            yield
    except TransientError as error:
        if isinstance(error.__cause__, boto.ReadTimeoutError | ReadTimeoutError | TimeoutError):
            raise
        raise CutShortError(str(error)) from error


def span_of(offset: int, length: int) -> str:
    return f"bytes={offset}-{offset + length - 1}"


def check_received(source: Location, received: int | None, offset: int, length: int) -> None:
    """Compare the size of the body of a range with what was requested.

    :param received: None if it is larger
    :raises CutShortError: if it is smaller
    :raises TransientError: if it is larger
    """
    if received == length:
        return
    kind = TransientError if received is None or received > length else CutShortError
    shown = "more" if received is None else received
    raise kind(f"GET {source}: {shown} of {length} bytes came for the range {span_of(offset, length)}")


def has_headers_of_s3(error: RollupError) -> bool:
    """Whether the response that an error is from has a header of S3, which states an id of each request."""
    cause = error.__cause__
    response = cause.response if isinstance(cause, boto.ClientError) else {}
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return any(name.lower().startswith(("x-amz-", "x-minio-")) for name in headers)


def has_body(response: Mapping[str, Any]) -> bool:
    headers = response["ResponseMetadata"]["HTTPHeaders"]
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def read_body(response: Mapping[str, Any], limit: int) -> bytes | None:
    """The body of a response to GetObject; None if it has more than ``limit`` bytes."""
    body = response["Body"]
    if (response.get("ContentLength") or 0) > limit:
        discard_body(body)
        return None
    chunks: list[bytes] = []
    left = limit
    while chunk := body.read(CHUNK_BYTES):
        chunks.append(chunk)
        left -= len(chunk)
        if left < 0:
            discard_body(body)
            return None
    return b"".join(chunks)


def read_body_into(response: Mapping[str, Any], into: memoryview) -> int:
    """Read the body of a response to GetObject, and return its size in bytes, also if it does not fit."""
    body = response["Body"]
    size = int(response.get("ContentLength") or 0)
    if size > len(into):
        discard_body(body)
        return size
    # urllib3's own readinto() reads into new memory and copies.
    raw = body._raw_stream
    place = 0
    with raw._error_catcher():
        while place < len(into):
            count = raw._fp.readinto(into[place:])
            if not count:
                break
            place += count
    return place


def discard_body(body: Any) -> None:
    """Close a body that is not read to its end, and free its place in the connection pool."""
    body.close()
    body._raw_stream.release_conn()
