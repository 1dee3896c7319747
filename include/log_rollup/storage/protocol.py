"""The interface between the pipeline and object storage. The plugin implements it with boto3 and h11."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

# Records are much smaller; a larger object is not a record of this project.
READ_LIMIT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket and a key, or a bucket and a prefix.

    :param is_raw: whether raw objects are there. A store with two connections decides by it, not by the bucket,
        which connection to use: both may have a bucket of this name.
    """

    bucket: str
    key: str
    is_raw: bool = False

    def child(self, name: str) -> "Location":
        """The location of ``name`` below this prefix."""
        return Location(self.bucket, self.key + name, self.is_raw)

    def at(self, key: str) -> "Location":
        """The location of another key of the same bucket."""
        return Location(self.bucket, key, self.is_raw)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class ObjectInfo(NamedTuple):
    """One row of a listing. A tuple, because an hour may have a million of them.

    :param size: in bytes
    :param etag: without quotes
    """

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing, exactly as the store answered it; ``listing.py`` enforces the contract of S3.

    :param newest: time of its newest object in epoch seconds; 0 if it has none
    :param server_time: the store's time of the answer
    :param truncated: whether the store states that more pages follow; None if it states neither
    :param token: continuation token of the next page; None if the store returned none
    :param folders: common prefixes, which a store should list only if it is asked for them
    """

    objects: Sequence[ObjectInfo]
    newest: float
    server_time: datetime
    truncated: bool | None
    token: str | None = None
    folders: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class FolderPage:
    """One page of a listing with the delimiter ``/``, exactly as the store answered it.

    :param folders: common prefixes, each with the prefix that was listed and a ``/`` at the end
    :param keys: of the objects directly below the prefix
    :param truncated: whether the store states that more pages follow; None if it states neither
    :param token: continuation token of the next page; None if the store returned none
    """

    folders: Sequence[str]
    keys: Sequence[str]
    truncated: bool | None
    token: str | None = None


class TimedObject(NamedTuple):
    """One row of a listing, with the time at which the object was written.

    :param size: in bytes
    :param etag: without quotes
    """

    key: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class TimedPage:
    """One page of a listing, exactly as the store answered it.

    :param folders: common prefixes, each with a ``/`` at the end; empty without a delimiter
    :param truncated: whether the store states that more pages follow
    """

    objects: Sequence[TimedObject]
    folders: Sequence[str]
    truncated: bool


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The bytes of a small object, and its ETag without quotes."""

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """The answer to a HEAD.

    :param size: in bytes
    :param etag: without quotes
    :param crc64nvme: CRC of the whole object; None if the store keeps none
    :param etag_is_md5: False if the ETag cannot be the MD5 of the content: after a multipart upload, or with KMS
        or customer keys (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html)
    :param storage_class: empty if the store states none, as for STANDARD
    :param is_archived: whether it has to be retrieved from the archive before it can be read
    :param is_being_retrieved: whether that was requested and is under way
    """

    size: int
    etag: str
    crc64nvme: int | None
    etag_is_md5: bool
    storage_class: str = ""
    is_archived: bool = False
    is_being_retrieved: bool = False


@dataclass(frozen=True, slots=True)
class Checksum:
    """A CRC of a whole object as the store states it.

    :param algorithm: ``crc64nvme``, ``crc32c`` or ``crc32``
    """

    algorithm: str
    value: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The answer to a GET whose body is in the caller's buffer.

    :param size: of the body in bytes; more than the buffer has if the body did not fit
    :param checksum: None if the store keeps none
    :param etag_is_md5: as in :class:`ObjectHead`
    :param total: size of the whole object, if a range of it was requested and the store states it
    """

    size: int
    etag: str
    checksum: Checksum | None
    etag_is_md5: bool
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The answer to a PUT or a copy.

    :param crc64nvme: CRC of the object; None if the store states none
    """

    etag: str
    crc64nvme: int | None


class Cancellable(Protocol):
    """A request that has not ended."""

    def cancel(self) -> None:
        """Abort the request. Its callback gets an error before this returns; its buffer is not used any more."""


class Transfer(Protocol):
    """Moves bodies between the store and memory, over at most ``connections`` connections.

    All methods but :meth:`wake` have to be called from one thread. A request's callback ``done`` gets the result
    or an error of :mod:`include.log_rollup.errors`; it is called from within :meth:`wait` and must not raise.
    """

    connections: int

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[["Downloaded | Exception"], None],
    ) -> Cancellable:
        """Download a whole object.

        :param etag: that the object has to have (If-Match); None for any
        :param into: receives the body, of at most this length
        """

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[["Uploaded | Exception"], None],
    ) -> Cancellable:
        """Write an object in one request, with its CRC, which the store compares.

        :param crc64nvme: of the body. It is compared with the bytes that are sent too: if they differ, the request
            is not completed and fails with :class:`include.log_rollup.errors.ChangedBufferError`
        """

    def get_range(
        self,
        source: Location,
        etag: str,
        first: int,
        into: memoryview,
        done: Callable[["Downloaded | Exception"], None],
    ) -> Cancellable:
        """Download a range of an object's bytes.

        :param etag: that the object has to have (If-Match)
        :param first: offset of the range's first byte
        :param into: receives the range; its length is that of the range
        :param done: gets the answer without a checksum
        """

    def put_range(
        self,
        target: Location,
        upload_id: str,
        number: int,
        body: memoryview,
        crc64nvme: int,
        done: Callable[["Uploaded | Exception"], None],
    ) -> Cancellable:
        """Write one part of a multipart upload (UploadPart).

        :param number: of the part, from 1
        :param crc64nvme: of the body, as for :meth:`put`
        :param done: gets the ETag of that part
        """

    def copy(
        self,
        source: Location,
        etag: str,
        target: Location,
        headers: Mapping[str, str],
        done: Callable[["Uploaded | Exception"], None],
    ) -> Cancellable:
        """Let the store copy an object of at most 5 GiB (CopyObject). An error in an answer of status 200 counts.

        :param etag: that the source has to have
        :param done: gets the ETag of the copy
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
        """Let the store copy a range of bytes to one part of a multipart upload (UploadPartCopy).

        :param first: offset of the range's first byte
        :param last: offset of its last byte
        :param number: of the part, from 1
        :param done: gets the ETag of that part
        """

    def wait(self, seconds: float) -> None:
        """Move bodies until a request ends, :meth:`wake` is called, or the time is over."""

    def wake(self) -> None:
        """Let :meth:`wait` return; may be called from any thread."""

    def close(self) -> None:
        """Close all connections. All requests must have ended."""


class ObjectStore(Protocol):
    """Listing, small objects, copies and deletes. Every method may raise the errors of this package.

    All methods and an open transfer together use at most ``max_connections`` connections; a call waits while all
    of them are in use. May be used from several threads.

    :param control_connections: connections for the methods alone, without the transfer's
    :param copies_raw: whether raw objects and parts are at one endpoint, with the same credentials. Only then can
        the store copy a raw object to a part; otherwise the bytes pass through the worker.
    """

    max_connections: int
    control_connections: int
    copies_raw: bool

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests were sent, by S3's name of the operation."""

    @property
    def ports(self) -> Collection[int]:
        """The TCP ports of the endpoints; the monitor counts the sockets connected to them."""

    def open_transfer(self, read_bucket: str, write_bucket: str) -> Transfer:
        """A transfer with the connections that the other methods leave."""

    def list_page(
        self,
        prefix: Location,
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
        own: Callable[[str], bool] | None = None,
    ) -> ListPage:
        """One page of the objects below a prefix, exactly as the store answers one ListObjectsV2.

        :param start_after: list only keys after this one; ignored with a token
        :param token: continuation token that the previous page returned
        :param limit: the most objects on the page (``max-keys``), 1 to 1,000
        :param own: which keys count for ``newest``; None for all
        """

    def list_folders(self, prefix: Location, token: str | None = None, limit: int = 1000) -> FolderPage:
        """One page of the folders below a prefix, exactly as the store answers ListObjectsV2 with delimiter ``/``.

        :param token: continuation token that the previous page returned
        :param limit: the most folders and objects on the page (``max-keys``), 1 to 1,000
        """

    def head(self, target: Location) -> ObjectHead | None:
        """Size, ETag and CRC of an object; None if it does not exist."""

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        """A small object with its ETag; None if it does not exist.

        :raises TooLargeError: if it has more than ``limit`` bytes; the body is not read then
        """

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """A range of an object's bytes.

        :raises NotFoundError: if the object does not exist
        :raises InputChangedError: if the object has another ETag
        """

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        """Write a small object; returns its ETag."""

    def publish(self, source: Location, target: Location) -> None:
        """Copy a small object within the bucket in one request (CopyObject).

        It fails if the source does not exist: another run deletes the source to prevent the copy.

        :raises NotFoundError: if the source does not exist
        :raises UnsupportedOperationError: if the store does not support CopyObject
        """

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """Whether the store refuses an object whose CRC64-NVME header is wrong.

        Some servers store the header without comparing it, so the CRC that they return proves nothing. Only the
        error code BadDigest and its documented equivalents count as a refusal.

        :param scratch: where an object of one byte may be written and deleted
        """

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects; those that do not exist count as deleted."""

    def delete_if(self, target: Location, etag: str) -> bool:
        """Delete an object if it has this ETag (If-Match).

        A store that does not support the condition deletes the object with any ETag.

        :returns: False if the store refused because the object has another ETag
        """

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        """Key and upload id of unfinished multipart uploads, exactly as the store lists them for a prefix.

        Some servers ignore the prefix.
        """

    def begin_upload(self, target: Location, headers: Mapping[str, str], *, with_crc: bool = False) -> str:
        """Start a multipart upload; returns its upload id.

        :param with_crc: whether its parts are sent with their CRCs, and it is completed with that of the object
        """

    def finish_upload(
        self, target: Location, upload_id: str, etags: Sequence[str], crc64nvme: int | None = None
    ) -> None:
        """Complete a multipart upload.

        :param etags: of its parts, in order
        :param crc64nvme: of the whole object, which the store compares if it can; None for none
        """

    def abort_upload(self, target: Location, upload_id: str) -> None:
        """Abort a multipart upload; one that does not exist counts as aborted."""


class LargeReadStore(ObjectStore, Protocol):
    """A store that reads large bodies without a transfer."""

    def read_into(self, source: Location, etag: str, offset: int, into: memoryview) -> None:
        """Read a range of an object's bytes into memory of the caller.

        :param into: its length is that of the range
        :raises NotFoundError: if the object does not exist
        :raises InputChangedError: if the object has another ETag
        """


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What became of objects that were to be deleted; all that are not named here do not exist any more.

    :param changed: keys of those that have another ETag
    :param refused: the error for each key that the store has refused to delete
    :param delete_markers: how many deletes left a delete marker: the bucket keeps the bytes as older versions
    """

    changed: Collection[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    delete_markers: int = 0


class ExpiryStore(ObjectStore, Protocol):
    """A store with the requests that delete raw objects."""

    def deletes_on_condition(self, scratch: Location) -> bool:
        """Whether deletes can be made to depend on the ETag of the object; it is tried out once.

        :param scratch: where a small object may be written and deleted
        """

    def delete_exactly(
        self, prefix: Location, objects: Sequence[ObjectInfo], *, conditional: bool
    ) -> DeleteResult:
        """Delete objects on condition that they still have these ETags.

        :param prefix: a location of the bucket
        :param conditional: False to delete them with any ETag, where the store ignores the condition
        :raises AccessError: if the store refuses the request as a whole
        :raises TransientError: if some of them still cannot be deleted after some tries
        """


class RetrievalStore(ObjectStore, Protocol):
    """A store with the request that retrieves objects from an archive class."""

    def request_retrieval(self, target: Location, tier: str, days: int | None) -> bool:
        """Request that an archived object becomes readable for some days (RestoreObject).

        :param tier: ``Bulk``, ``Standard`` or ``Expedited``
        :param days: how long the copy that can be read is kept; None for a class that moves the object itself
        :returns: False if its retrieval is under way already
        """


class RestoreStore(LargeReadStore, RetrievalStore, Protocol):
    """A store with the requests that restore objects: of large bodies, without a transfer."""

    def write_range(self, target: Location, upload_id: str, number: int, body: bytes) -> str:
        """Write one part of a multipart upload (UploadPart); returns its ETag.

        :param number: of the part, from 1
        """


class SampledStore(Protocol):
    """The requests with which a sample of a bucket is read. May raise the errors of this package."""

    def list_times(self, prefix: Location, start_after: str = "", delimiter: str = "") -> TimedPage:
        """One page of at most 1,000 objects and folders below a prefix, with the objects' times.

        :param start_after: list only what comes after this key
        :param delimiter: ``/`` to list folders, and only the objects directly below the prefix
        """

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """As in :class:`ObjectStore`."""
