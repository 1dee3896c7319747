"""Faults that a :class:`tests.support.proxy.FaultProxy` can inject, and rules for which requests.

If several rules match a request, all their faults are applied, in this order: reset on arrival; calls and
answers instead of the server's; faults of the request's body; calls and answers after the server has carried out
the request; delay; changed headers; faults of the response's body; reset at the end. Faults of a body have no
effect on an empty body.
"""

import base64
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b, md5, sha256
from typing import Literal
from urllib.parse import parse_qs, unquote

from awscrt.checksums import crc64nvme


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived, in path style; ``bucket`` and ``key`` are decoded, header names in lower case."""

    number: int
    """Number among all requests, from 1."""
    nth: int
    """Number among the requests of this operation, from 1."""
    attempt: int
    """Number among the requests with the same method, path and query, from 1; 2 is the first repetition."""
    connection: int
    """Number of the client connection, from 1."""
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    operation: str
    """The S3 operation: ``GetObject``, ``PutObject``, ``ListObjectsV2``, ..."""
    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A response instead of the server's, with S3's XML error body (without a body for HEAD).

    :param status: 200 makes it "200 OK with an error in the body", which S3 sends for CopyObject
    :param after_effect: the server first gets the request and carries it out; its response is replaced
    """

    status: int
    code: str
    message: str = "made by the test"
    headers: Mapping[str, str] = field(default_factory=dict)
    after_effect: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """Delays the first byte of the response by so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reset:
    """Resets the client's connection (RST, not FIN).

    :param at: ``request``: when the head of the request has arrived, before the server gets it; ``mid_request``:
        after this fraction of the request's body; ``before_response``: after the server has carried it out;
        ``mid_response``: after this fraction of the response's body; ``after_response``: after the whole response
    """

    at: Literal["request", "mid_request", "before_response", "mid_response", "after_response"]
    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class Truncate:
    """Closes the connection (FIN) after this fraction of the response's body, at least one byte too early."""

    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class Stall:
    """Stops a body after this fraction for so many seconds, then continues.

    :param at: ``response``: the proxy stops sending; ``request``: the proxy stops reading
    """

    seconds: float
    fraction: float = 0.5
    at: Literal["request", "response"] = "response"


@dataclass(frozen=True, slots=True)
class CorruptResponse:
    """Changes one byte of the response's body, at this fraction of it; length and headers stay."""

    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class CorruptRequest:
    """Changes one byte of the request's body on its way to the server; length and headers stay.

    rclone and moto do not notice, even if the SHA-256 of the body is signed. With :class:`VerifyUpload` in
    addition, the upload is refused as S3 would refuse it.
    """

    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class ReplaceHeaders:
    """Sets headers of the response to these values; None removes the header."""

    headers: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class VerifyUpload:
    """Refuses uploads whose checksums do not match the body, as AWS does; rclone and moto do not.

    Holds the body back, compares x-amz-checksum-crc64nvme, Content-MD5 and x-amz-content-sha256, and answers 400
    BadDigest or XAmzContentSHA256Mismatch. :class:`CorruptRequest` is applied before. Bodies in aws-chunked
    encoding are not compared.
    """


@dataclass(frozen=True, slots=True)
class Call:
    """Runs a function while the request waits; an :class:`Answer` that it returns is sent instead of the server's.

    :param when: ``before`` the server gets the request, or ``after`` it has answered, but before the client gets
        the response. An exception of the function fails the test when the proxy is closed.
    """

    function: Callable[[Request], Answer | None]
    when: Literal["before", "after"] = "before"


Fault = (
    Answer
    | Delay
    | Reset
    | Truncate
    | Stall
    | CorruptResponse
    | CorruptRequest
    | ReplaceHeaders
    | VerifyUpload
    | Call
)


@dataclass(frozen=True, eq=False)
class Rule:
    """Injects a fault into some requests.

    :param match: whether the rule applies to a request
    :param probability: the share of matching requests that get the fault. Which ones depends only on the seed and
        the request (operation, key, query, attempt), not on the order of requests, so that a run can be repeated.
    :param count: how many requests get it at most; None for no limit
    """

    match: Callable[[Request], bool]
    fault: Fault
    probability: float = 1.0
    count: int | None = None
    seed: int = 0


def on(
    operation: str | Collection[str] | None = None,
    *,
    key: str | None = None,
    nth: int | None = None,
    attempt: int | None = None,
) -> Callable[[Request], bool]:
    """The ``match`` of a rule; a request must meet all conditions that are given.

    :param operation: the S3 operation, or several
    :param key: a regular expression to search in the key (for a listing: in the decoded prefix)
    :param nth: the request's number among those of its operation, from 1
    :param attempt: number among the repetitions of the same request, 1 for the first request
    """
    operations = {operation} if isinstance(operation, str) else operation
    pattern = re.compile(key) if key is not None else None

    def match(request: Request) -> bool:
        return (
            (operations is None or request.operation in operations)
            and (pattern is None or pattern.search(request.key) is not None)
            and (nth is None or request.nth == nth)
            and (attempt is None or request.attempt == attempt)
        )

    return match


def slow_down(retry_after_seconds: int | None = None) -> Answer:
    """503 SlowDown, as S3 throttles; with a Retry-After header if a number is given."""
    headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}
    return Answer(503, "SlowDown", "Please reduce your request rate.", headers)


def internal_error(after_effect: bool = False) -> Answer:
    """500 InternalError, which clients should retry."""
    return Answer(
        500, "InternalError", "We encountered an internal error. Please try again.", after_effect=after_effect
    )


def access_denied() -> Answer:
    """403 AccessDenied, as from a policy."""
    return Answer(403, "AccessDenied", "Access Denied")


def expired_token() -> Answer:
    """400 ExpiredToken, as S3 refuses expired temporary credentials."""
    return Answer(400, "ExpiredToken", "The provided token has expired.")


def wrong_etag() -> ReplaceHeaders:
    """Replaces the ETag of the response by that of another content."""
    return ReplaceHeaders({"ETag": '"00000000000000000000000000000000"'})


def require_copy_source_match(etag_of: Callable[[str, str], str | None]) -> Call:
    """Honours x-amz-copy-source-if-match, as AWS does; rclone and moto do not.

    :param etag_of: returns the ETag of an object by bucket and key; None if there is no object
    """

    def check(request: Request) -> Answer | None:
        wanted = request.headers.get("x-amz-copy-source-if-match")
        if wanted is None:
            return None
        bucket, _, key = (
            unquote(request.headers["x-amz-copy-source"].partition("?")[0]).lstrip("/").partition("/")
        )
        found = etag_of(bucket, key)
        if found is None or found.strip('"') == wanted.strip('"'):
            return None
        return Answer(
            412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"
        )

    return Call(check)


def classify(method: str, path: str, query: str, headers: Mapping[str, str]) -> tuple[str, str, str]:
    """The S3 operation of a path-style request, its bucket, and its key (for a listing: the prefix)."""
    raw_bucket, _, raw_key = path.lstrip("/").partition("/")
    bucket, key = unquote(raw_bucket), unquote(raw_key)
    fields = parse_qs(query, keep_blank_values=True)
    copies = "x-amz-copy-source" in headers
    if not bucket:
        return "ListBuckets", "", ""
    if not key:
        prefix = fields.get("prefix", [""])[0]
        operation = {
            "GET": "ListObjectsV2" if "list-type" in fields else "ListObjects",
            "HEAD": "HeadBucket",
            "PUT": "CreateBucket",
            "DELETE": "DeleteBucket",
        }.get(method, method)
        for name, other in (
            ("uploads", "ListMultipartUploads"),
            ("location", "GetBucketLocation"),
            ("versions", "ListObjectVersions"),
            ("delete", "DeleteObjects"),
        ):
            if name in fields:
                operation = other
        return operation, bucket, prefix
    if "uploadId" in fields:
        part = "UploadPartCopy" if copies else "UploadPart"
        uploads = {
            "GET": "ListParts",
            "PUT": part,
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
        }
        return uploads.get(method, method), bucket, key
    if "uploads" in fields:
        return "CreateMultipartUpload", bucket, key
    if method == "GET" and "attributes" in fields:
        return "GetObjectAttributes", bucket, key
    if method == "PUT" and copies:
        return "CopyObject", bucket, key
    plain = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
    return plain.get(method, method), bucket, key


def share_of(seed: int, request: Request) -> float:
    """A pseudo-random number in [0, 1) that depends only on the seed and the request."""
    # Without bucket and upload id, which differ between runs.
    query = re.sub(r"uploadId=[^&]*", "", request.query)
    text = f"{seed}\0{request.operation}\0{request.key}\0{query}\0{request.attempt}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64


def refuse_upload(body: bytes, headers: Mapping[str, str]) -> Answer | None:
    """S3's refusal of a body that does not match a checksum of its request; None if all match."""
    if "aws-chunked" in headers.get("content-encoding", ""):
        return None
    signed = headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    if (
        signed != "UNSIGNED-PAYLOAD"
        and not signed.startswith("STREAMING")
        and signed != sha256(body).hexdigest()
    ):
        return Answer(
            400,
            "XAmzContentSHA256Mismatch",
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        )
    for name, found in (
        ("content-md5", md5(body, usedforsecurity=False).digest()),
        ("x-amz-checksum-crc64nvme", crc64nvme(body).to_bytes(8)),
    ):
        if name in headers and headers[name] != base64.b64encode(found).decode():
            return Answer(400, "BadDigest", f"The {name} you specified did not match what we received.")
    return None
