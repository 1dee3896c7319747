"""The small protocol through which the pipeline talks to object storage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

# Records beside the parts are small; what is larger is none of ours.
READ_LIMIT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket and a key, or a bucket and a prefix."""

    bucket: str
    key: str

    def child(self, name: str) -> "Location":
        """The location of ``name`` below this prefix."""
        return Location(self.bucket, self.key + name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class ObjectInfo(NamedTuple):
    """One row of a listing: the ETag is without quotes, the size in bytes. An hour may have a million of them."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing, exactly as the store answered it; ``listing.py`` checks it.

    :param newest: when its newest object was written, in epoch seconds; 0 if it has none
    :param server_time: the store's own time when it answered
    :param truncated: whether the store says that more pages follow
    :param token: continuation token of the next page; None where the store gave none
    """

    objects: Sequence[ObjectInfo]
    newest: float
    server_time: datetime
    truncated: bool
    token: str | None = None


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A small object that was read: its bytes, and its ETag without quotes."""

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What a HEAD tells of an object.

    ``crc64nvme`` is the CRC of the whole object where the store keeps one. ``etag_is_md5`` is false where
    the ETag cannot be the MD5 of the content: after a multipart upload, or under KMS or customer keys
    (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html).
    """

    size: int
    etag: str
    crc64nvme: int | None
    etag_is_md5: bool


@dataclass(frozen=True, slots=True)
class Checksum:
    """A CRC of a whole object as the store states it, e.g. ``crc32c`` and its value."""

    algorithm: str
    value: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What came with an object's body: ``checksum`` is None where the store keeps none for it."""

    size: int
    etag: str
    checksum: Checksum | None
    etag_is_md5: bool


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What the store answered to an upload."""

    etag: str
    crc64nvme: int | None


class Cancellable(Protocol):
    """A request under way."""

    def cancel(self) -> None:
        """Give it up: its callback comes with an error before this returns, and its memory is left alone."""


class Transfer(Protocol):
    """Moves bodies between the store and memory, over at most ``connections`` connections.

    It is used from one thread. A callback gets the result or the error, from within :meth:`wait`; it must
    not raise. Errors are of :mod:`include.log_rollup.errors`.
    """

    connections: int

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[["Downloaded | Exception"], None],
    ) -> Cancellable:
        """Fetch a whole object of at most ``len(into)`` bytes, if it still has this ETag; None is for any."""

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[["Uploaded | Exception"], None],
    ) -> Cancellable:
        """Write an object in one request, with its CRC for the store to check.

        What is sent is held against it as well: where it differs, the request is not completed, and a
        :class:`include.log_rollup.errors.ChangedBufferError` comes.
        """

    def copy(
        self,
        source: Location,
        etag: str,
        target: Location,
        headers: Mapping[str, str],
        done: Callable[["Uploaded | Exception"], None],
    ) -> Cancellable:
        """Let the store copy an object of at most 5 GiB, if the source still has this ETag (CopyObject).

        An error that comes within an answer of status 200 is an error. ``Uploaded.etag`` is the copy's.
        """

    def copy_range(
        self,
        source: Location,
        etag: str,
        first: int,
        last: int,
        target: Location,
        upload_id: str,
        number: int,
        done: Callable[["Uploaded | Exception"], None],
    ) -> Cancellable:
        """Let the store copy the bytes ``first`` to ``last``, inclusive, into one part of a multipart upload.

        :param number: of the part, from 1; ``Uploaded.etag`` is the part's (UploadPartCopy)
        """

    def wait(self, seconds: float) -> None:
        """Move bodies until a request has ended, :meth:`wake` was called, or the time is over."""

    def wake(self) -> None:
        """Have :meth:`wait` return; this alone may be called from any thread."""

    def close(self) -> None:
        """Close every connection. Nothing may be under way."""


class ObjectStore(Protocol):
    """Listing, small objects, copies and deletes; every call may raise the errors of this package.

    All calls together, and a transfer that is open, never use more than ``max_connections`` connections; a
    call that finds them all in use waits. ``requests`` counts what was sent, by S3's name of the operation.
    """

    max_connections: int
    control_connections: int
    requests: Mapping[str, int]

    @property
    def port(self) -> int:
        """The TCP port of the endpoint, by which its sockets are known."""

    def open_transfer(self, read_bucket: str, write_bucket: str) -> Transfer:
        """A transfer with the connections that the other calls leave."""

    def list_page(
        self, prefix: Location, start_after: str = "", token: str | None = None, limit: int = 1000
    ) -> ListPage:
        """One page of the objects under a prefix, unchecked: one request (ListObjectsV2).

        :param start_after: only keys behind this one; ignored where a token is given
        :param token: of the page before
        :param limit: the most objects of the page (``max-keys``), 1 to 1,000
        """

    def head(self, target: Location) -> ObjectHead | None:
        """Size, ETag and CRC of an object, None if there is none."""

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        """The whole of a small object with its ETag, None if there is none.

        :raises TooLargeError: if it has more than ``limit`` bytes; they are not read
        """

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """A run of an object's bytes, if it still has this ETag.

        :raises NotFoundError: if there is none
        :raises InputChangedError: if its ETag is another one
        """

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        """Write a small object; returns its ETag."""

    def publish(self, source: Location, target: Location) -> None:
        """Copy a small object within the bucket in one request (CopyObject).

        It fails if ``source`` was deleted before: another run uses that to stop it.

        :raises NotFoundError: if the source is gone
        :raises UnsupportedOperationError: if the store knows no CopyObject
        """

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """Whether the store checks the CRC64-NVME that comes with an object.

        Some servers keep the header they are sent and give it back unread, which proves nothing. Only the
        error code BadDigest and its documented equals count as a refusal.

        :param scratch: where an object of one byte may be written and removed
        """

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there count as deleted."""

    def delete_if(self, target: Location, etag: str) -> bool:
        """Delete an object if it has this ETag, where the store enforces the condition (If-Match).

        A store that does not know the condition deletes the object whatever its ETag.

        :returns: False if the store refused because the ETag is another one; True otherwise
        """

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        """Key and upload id of the multipart uploads under way, as the store lists them for a prefix.

        Unchecked: some servers ignore the prefix.
        """

    def begin_upload(self, target: Location, headers: Mapping[str, str]) -> str:
        """Begin a multipart upload; returns its upload id."""

    def finish_upload(self, target: Location, upload_id: str, etags: Sequence[str]) -> None:
        """Complete a multipart upload from its parts' ETags, in order."""

    def abort_upload(self, target: Location, upload_id: str) -> None:
        """Give up a multipart upload; one that is not there counts as given up."""
