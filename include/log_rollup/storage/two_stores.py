"""Two stores as one: raw objects at one endpoint or account, parts and records at another."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

from include.log_rollup.storage.protocol import (
    READ_LIMIT_BYTES,
    DeleteResult,
    ExpiryStore,
    FolderPage,
    ListPage,
    Location,
    ObjectHead,
    ObjectInfo,
    ObjectStore,
    StoredObject,
    Transfer,
)


class TwoStores:
    """Implements :class:`include.log_rollup.storage.protocol.ObjectStore` over two stores.

    ``is_raw`` of a location decides which of them a request is for. Nothing is ever written to the source;
    only :meth:`delete_exactly` and its probe change it.

    :param source: has the raw objects
    :param target: has parts and records
    :param open_transfer: opens a transfer over both, as the protocol's method does
    :param max_connections: of both stores and a transfer together
    """

    # Even if both are one endpoint: each request has the credentials of one account.
    copies_raw = False

    def __init__(
        self,
        source: ObjectStore,
        target: ObjectStore,
        open_transfer: Callable[[str, str], Transfer],
        max_connections: int,
    ) -> None:
        self._source = source
        self._target = target
        self._open_transfer = open_transfer
        self.max_connections = max_connections
        self.control_connections = min(source.control_connections, target.control_connections)

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests were sent to both, by S3's name of the operation."""
        return Counter(self._source.requests) + Counter(self._target.requests)

    @property
    def ports(self) -> Collection[int]:
        """The TCP ports of both endpoints."""
        return {*self._source.ports, *self._target.ports}

    def open_transfer(self, read_bucket: str, write_bucket: str) -> Transfer:
        """See the protocol."""
        return self._open_transfer(read_bucket, write_bucket)

    def list_page(
        self,
        prefix: Location,
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
        own: Callable[[str], bool] | None = None,
    ) -> ListPage:
        """See the protocol."""
        return self._store_of(prefix).list_page(prefix, start_after, token, limit, own)

    def list_folders(self, prefix: Location, token: str | None = None, limit: int = 1000) -> FolderPage:
        """See the protocol."""
        return self._store_of(prefix).list_folders(prefix, token, limit)

    def head(self, target: Location) -> ObjectHead | None:
        """See the protocol."""
        return self._store_of(target).head(target)

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        """See the protocol."""
        return self._store_of(source).read(source, limit)

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """See the protocol."""
        return self._store_of(source).read_range(source, etag, offset, length)

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        """See the protocol."""
        return self._written(target).write(target, body, content_type)

    def publish(self, source: Location, target: Location) -> None:
        """See the protocol."""
        self._written(source, target).publish(source, target)

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """See the protocol; about the target."""
        return self._written(scratch).refuses_wrong_crc(scratch)

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """See the protocol; deletes from the target."""
        self._target.delete(bucket, keys)

    def delete_if(self, target: Location, etag: str) -> bool:
        """See the protocol."""
        return self._written(target).delete_if(target, etag)

    def deletes_on_condition(self, scratch: Location) -> bool:
        """See the protocol."""
        return cast(ExpiryStore, self._store_of(scratch)).deletes_on_condition(scratch)

    def delete_exactly(
        self, prefix: Location, objects: Sequence[ObjectInfo], *, conditional: bool
    ) -> DeleteResult:
        """See the protocol."""
        return cast(ExpiryStore, self._store_of(prefix)).delete_exactly(
            prefix, objects, conditional=conditional
        )

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        """See the protocol."""
        return self._written(prefix).list_uploads(prefix)

    def begin_upload(self, target: Location, headers: Mapping[str, str], *, with_crc: bool = False) -> str:
        """See the protocol."""
        return self._written(target).begin_upload(target, headers, with_crc=with_crc)

    def finish_upload(
        self, target: Location, upload_id: str, etags: Sequence[str], crc64nvme: int | None = None
    ) -> None:
        """See the protocol."""
        self._written(target).finish_upload(target, upload_id, etags, crc64nvme)

    def abort_upload(self, target: Location, upload_id: str) -> None:
        """See the protocol."""
        self._written(target).abort_upload(target, upload_id)

    def _store_of(self, location: Location) -> ObjectStore:
        return self._source if location.is_raw else self._target

    def _written(self, *locations: Location) -> ObjectStore:
        """The store that may be written to."""
        if any(location.is_raw for location in locations):
            raise AssertionError(f"{locations[0]}: raw objects are never written")
        return self._target
