"""Checksums and ETags in requests and responses, and the errors of servers that don't know the headers."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from include.log_rollup import crc
from include.log_rollup.errors import ListingError
from include.log_rollup.storage.protocol import Checksum, Location

# The checksum of a request does not match its body. The first code is AWS's
# (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), the second is MinIO's.
BAD_DIGEST = frozenset({"BadDigest", "XAmzContentChecksumMismatch"})
# Servers refuse an unknown header with 501 NotImplemented (Cloudflare R2), 400 InvalidArgument (Backblaze B2), or
# 400 InvalidRequest (servers that know other algorithms). The response to a HEAD has no body: botocore then takes
# the status as the code.
_UNKNOWN_HEADER = frozenset(
    {
        "NotImplemented", "InvalidArgument", "InvalidRequest", "InvalidHeader", "UnsupportedHeader",
        "UnsupportedArgument", "UnsupportedOperation", "NotSupported", "BadRequest", "400", "501",
    }
)  # fmt: skip
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(slots=True)
class ChecksumSupport:
    """Which checksum headers the server accepts. A field becomes False when the server refuses its header.

    :param on_write: uploads carry ``x-amz-checksum-crc64nvme``; otherwise Content-MD5
    :param on_copy: copies carry ``x-amz-checksum-algorithm``
    :param on_read: requests for objects carry ``x-amz-checksum-mode``
    """

    on_write: bool = True
    on_copy: bool = True
    on_read: bool = True


def may_refuse_header(status: int, code: str) -> bool:
    """Whether an error can mean that the server does not know one of the request's headers."""
    return status in (400, 501) and code in _UNKNOWN_HEADER


def content_md5(body: bytes | memoryview) -> str:
    """The value of the header Content-MD5."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def stated_checksum(headers: Mapping[str, str]) -> Checksum | None:
    """The CRC of the whole object that a response states; None without one, or if it is one of parts' CRCs.

    :param headers: names in lower case
    """
    if headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() != "FULL_OBJECT":
        return None
    for algorithm in crc.ALGORITHMS:
        value = crc.from_header(headers.get(f"x-amz-checksum-{algorithm}"), algorithm)
        if value is not None:
            return Checksum(algorithm, value)
    return None


def etag_may_be_md5(etag: str, encryption: str | None, customer_algorithm: str | None) -> bool:
    """Whether an ETag can be the MD5 of the content: not after a multipart upload, nor under KMS or customer keys.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html

    :param encryption: the header ``x-amz-server-side-encryption``
    :param customer_algorithm: the header ``x-amz-server-side-encryption-customer-algorithm``
    """
    if encryption not in (None, "AES256") or customer_algorithm is not None:
        return False
    return _MD5.fullmatch(etag) is not None


def bare_etag(value: str | None) -> str:
    """An ETag of a response without quotes; empty if there is none.

    Weak ETags lose their mark: a proxy that may compress responses adds it to those of single operations.
    """
    return (value or "").strip().removeprefix("W/").strip('"')


def quoted_etag(target: Location, etag: str) -> str:
    """An ETag as the value of a header.

    :raises ListingError: if it would break the header
    """
    if not etag.isprintable():
        raise ListingError(f"{target}: its ETag {etag!r} cannot be sent as the value of a header")
    return f'"{etag}"'
