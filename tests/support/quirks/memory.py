"""What the server keeps: buckets, objects, multipart uploads. Nothing here knows HTTP."""

import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

STANDARD = "STANDARD"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it is kept.

    :param etag: without quotes
    :param modified: when it was written, in epoch seconds
    :param headers: answered with every GET and HEAD, such as ``content-type`` and ``x-amz-meta-…``
    :param checksums: S3's name of the algorithm (``crc64nvme``) and the value in base64, of the whole object
    """

    body: bytes
    etag: str
    modified: float
    headers: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = STANDARD


@dataclass(slots=True)
class Upload:
    """A multipart upload that is under way: its parts by number, each with its ETag and body."""

    bucket: str
    key: str
    upload_id: str
    begun: float
    headers: Mapping[str, str]
    storage_class: str
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Memory:
    """All buckets, each a dict from key to object, and all uploads by their id."""

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
    """The MD5 of a body, as in an ETag of S3."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
