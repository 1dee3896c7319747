"""Which checksum headers an S3 server understands, and which errors it answers to those that it doesn't."""

import base64
import hashlib
from dataclasses import dataclass

# A digest that does not match the body. The first is documented by AWS
# (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), the second is MinIO's.
BAD_DIGEST = frozenset({"BadDigest", "XAmzContentChecksumMismatch"})
# Servers refuse a header that they don't know with 501 NotImplemented (Cloudflare R2), 400 InvalidArgument
# (Backblaze B2), or 400 InvalidRequest (servers that know other algorithms). A HEAD has no body, so its status
# stands for the code.
_UNKNOWN_HEADER = frozenset(
    {
        "NotImplemented", "InvalidArgument", "InvalidRequest", "InvalidHeader", "UnsupportedHeader",
        "UnsupportedArgument", "UnsupportedOperation", "NotSupported", "BadRequest", "400", "501",
    }
)  # fmt: skip


@dataclass(slots=True)
class ChecksumSupport:
    """Which checksum headers the server takes; requests that it refuses set them to False.

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
