"""The state of the server: buckets, objects and multipart uploads. Independent of HTTP."""

import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

STANDARD = "STANDARD"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in memory.

    :param etag: without quotes
    :param modified: time of the write, in epoch seconds
    :param headers: headers of every response to GET and HEAD, such as ``content-type`` and ``x-amz-meta-…``
    :param checksums: checksums of the whole object in base64, by algorithm (``crc64nvme``)
    """

    body: bytes
    etag: str
    modified: float
    headers: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = STANDARD


@dataclass(slots=True)
class Upload:
    """An open multipart upload; ``parts`` has the ETag and body of each part by its number."""

    bucket: str
    key: str
    upload_id: str
    begun: float
    headers: Mapping[str, str]
    storage_class: str
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Memory:
    """All buckets, each with its objects by key, and all open multipart uploads by id."""

    buckets: dict[str, dict[str, StoredObject]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)

    def begin_upload(
        self, bucket: str, key: str, headers: Mapping[str, str], storage_class: str = STANDARD
    ) -> Upload:
        """Begin a multipart upload."""
        upload = Upload(bucket, key, uuid.uuid4().hex, time.time(), dict(headers), storage_class)
        self.uploads[upload.upload_id] = upload
        return upload


def md5_hex(body: bytes) -> str:
    """The MD5 of a body in hexadecimal digits, as in an ETag of S3."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
