"""The small protocol through which the pipeline talks to object storage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol


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
    """One page of a listing.

    :param newest: when its newest object was written, in epoch seconds; 0 if it has none
    :param server_time: the store's own time when it answered
    :param truncated: whether more pages follow
    """

    objects: Sequence[ObjectInfo]
    newest: float
    server_time: datetime
    truncated: bool


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

    def list_pages(self, prefix: Location, start_after: str = "") -> Iterator[ListPage]:
        """The objects under a prefix in the order of their keys' UTF-8 bytes; at least one page."""

    def head(self, target: Location) -> ObjectHead | None:
        """Size, ETag and CRC of an object, None if there is none."""

    def read(self, source: Location) -> bytes | None:
        """The whole of a small object, None if there is none."""

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """A run of an object's bytes, if it still has this ETag."""

    def write(self, target: Location, body: bytes, content_type: str) -> None:
        """Write a small object."""

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """Whether the store checks the CRC64-NVME that comes with an object.

        Some servers keep the header they are sent and give it back unread, which proves nothing.

        :param scratch: where an object of one byte may be written and removed
        """

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there count as deleted."""

    def abort_uploads(self, prefix: Location) -> int:
        """Give up the multipart uploads under a prefix that were never finished; how many there were."""

    def copy(
        self, source: Location, etag: str, size: int, target: Location, headers: Mapping[str, str]
    ) -> None:
        """Have the store copy an object of any size, if it still has this ETag."""
