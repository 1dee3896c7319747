"""What a :class:`tests.support.proxy.FaultProxy` can be told to do to a request, and to which requests.

A request that several rules match suffers all their faults, in this order: reset on arrival; calls and
answers in the server's stead; what befalls the request's body; calls and answers after the server has done
its work; delay; changed headers; what befalls the answer's body; reset at the end. What befalls a body does
nothing where the body is empty.
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
    """A request as it arrived, path style: ``bucket`` and ``key`` are decoded, header names in lower case."""

    number: int
    """Counts all requests, from 1."""
    nth: int
    """Counts the requests of this operation, from 1."""
    attempt: int
    """Counts the requests of this very method, path and query, from 1: 2 is the first repetition."""
    connection: int
    """The client connection that it came over, counted from 1."""
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
    """An answer in the server's stead, with S3's XML error body (none to a HEAD).

    With ``after_effect`` the server gets the request first and carries it out; only its answer is lost.
    A ``status`` of 200 gives S3's "200 OK with an error in the body", known from CopyObject.
    """

    status: int
    code: str
    message: str = "made by the test"
    headers: Mapping[str, str] = field(default_factory=dict)
    after_effect: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """The answer's first byte comes this many seconds later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reset:
    """The client's connection is reset (RST, not FIN).

    ``request``: as soon as the request's head is there, nothing reaches the server; ``mid_request``: after
    this fraction of the request's body; ``before_response``: after the server has carried it out;
    ``mid_response``: after this fraction of the answer's body; ``after_response``: after all of it.
    """

    at: Literal["request", "mid_request", "before_response", "mid_response", "after_response"]
    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class Truncate:
    """The connection is closed (FIN) after this fraction of the answer's body, at least a byte too early."""

    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing moves for so many seconds after this fraction of the body; then it goes on.

    ``response``: the proxy stops sending; ``request``: the proxy stops reading.
    """

    seconds: float
    fraction: float = 0.5
    at: Literal["request", "response"] = "response"


@dataclass(frozen=True, slots=True)
class CorruptResponse:
    """One byte of the answer's body is changed, at this fraction of it; length and headers stay."""

    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class CorruptRequest:
    """One byte of the request's body is changed on its way to the server; length and headers stay.

    Neither test server notices, even where the body's SHA-256 is signed; with :class:`VerifyUpload` behind it
    the upload is refused as S3 would.
    """

    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class ReplaceHeaders:
    """Headers of the answer are set to these values, or taken out where the value is None."""

    headers: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class VerifyUpload:
    """What AWS does with an upload and neither test server does: refuse a body that its checksums deny.

    Holds the request's body, compares x-amz-checksum-crc64nvme, Content-MD5 and x-amz-content-sha256, and
    answers 400 BadDigest or XAmzContentSHA256Mismatch in the server's stead. Sees the body after
    :class:`CorruptRequest`. Bodies in aws-chunked encoding pass unchecked.
    """


@dataclass(frozen=True, slots=True)
class Call:
    """A function is run, and the request waits for it; an :class:`Answer` that it returns is sent instead.

    ``before`` the request goes to the server, or ``after`` the server has answered and before the client
    hears of it. An exception of the function fails the test when the proxy is closed.
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
    """Which requests suffer which fault.

    :param match: says of a request whether the rule is about it
    :param probability: the share of these that suffer it. It depends on the seed and the request (operation,
        key, query, attempt) alone, not on the order in which requests come, so that a run can be repeated
    :param count: how many times at most; None for no limit
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
    """A match for rules: all that is given must hold.

    :param operation: the S3 operation, or several
    :param key: a regular expression that is to be found in the key (for a listing: in the decoded prefix)
    :param nth: the request's number among those of its operation
    :param attempt: which repetition of the same request, 1 for the first
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
    """503 SlowDown, as S3 throttles, with a Retry-After header where a number is given."""
    headers = {} if retry_after_seconds is None else {"Retry-After": str(retry_after_seconds)}
    return Answer(503, "SlowDown", "Please reduce your request rate.", headers)


def internal_error(after_effect: bool = False) -> Answer:
    """500 InternalError, which S3 says to retry."""
    return Answer(
        500, "InternalError", "We encountered an internal error. Please try again.", after_effect=after_effect
    )


def access_denied() -> Answer:
    """403 AccessDenied, as a policy gives it."""
    return Answer(403, "AccessDenied", "Access Denied")


def expired_token() -> Answer:
    """400 ExpiredToken, as S3 refuses temporary credentials that are past their time."""
    return Answer(400, "ExpiredToken", "The provided token has expired.")


def wrong_etag() -> ReplaceHeaders:
    """The answer bears the ETag of another content."""
    return ReplaceHeaders({"ETag": '"00000000000000000000000000000000"'})


def require_copy_source_match(etag_of: Callable[[str, str], str | None]) -> Call:
    """What AWS does and neither test server does: honour x-amz-copy-source-if-match.

    :param etag_of: gives the ETag of an object by bucket and key, None if there is none
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
    """The S3 operation of a path-style request, its bucket, and its key (for a listing: its prefix)."""
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
    """A number of [0, 1) that depends on the seed and the request alone."""
    # Without the bucket and the upload's id, which differ from run to run.
    query = re.sub(r"uploadId=[^&]*", "", request.query)
    text = f"{seed}\0{request.operation}\0{request.key}\0{query}\0{request.attempt}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64


def refuse_upload(body: bytes, headers: Mapping[str, str]) -> Answer | None:
    """The answer with which S3 refuses a body that one of the request's own checksums denies, else None."""
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
