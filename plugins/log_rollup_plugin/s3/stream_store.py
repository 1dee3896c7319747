"""Opens the store of a stream, over one Airflow connection or two."""

from types import TracebackType
from typing import Any, Self

from include.log_rollup.storage.protocol import Location
from include.log_rollup.storage.two_stores import TwoStores
from include.log_rollup.streams import Stream
from log_rollup_plugin.s3.hook import PooledS3Hook, connections_left
from log_rollup_plugin.s3.transfer import SocketTransfer


class TwoHooks(TwoStores):
    """The store of a stream with ``target_conn_id``: a hook for raw objects, and one for parts and records.

    :param source: reads raw objects
    :param target: reads and writes parts and records
    :param max_connections: of both hooks and a transfer together
    """

    def __init__(self, source: PooledS3Hook, target: PooledS3Hook, max_connections: int) -> None:
        super().__init__(source, target, self._open, max_connections)
        self._source_hook, self._target_hook = source, target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections of both hooks."""
        self._source_hook.close()
        self._target_hook.close()

    def meta(self, location: Location) -> Any:
        """The ``meta`` of the boto3 client for a location: endpoint, region, partition."""
        return (self._source_hook if location.is_raw else self._target_hook).meta(location)

    def read_into(self, source: Location, etag: str, offset: int, into: memoryview) -> None:
        """Read bytes of an object into memory of the caller, if it still has this ETag."""
        (self._source_hook if source.is_raw else self._target_hook).read_into(source, etag, offset, into)

    def write_range(self, target: Location, upload_id: str, number: int, body: bytes) -> str:
        """Write one part of a multipart upload to the target; returns its ETag."""
        return self._target_hook.write_range(target, upload_id, number, body)

    def request_retrieval(self, target: Location, tier: str, days: int | None) -> bool:
        """Request that an archived part becomes readable; False if that is under way already."""
        return self._target_hook.request_retrieval(target, tier, days)

    def _open(self, read_bucket: str, write_bucket: str) -> SocketTransfer:
        """One transfer to both endpoints, within one cap."""
        connections = connections_left(self.max_connections, 2, self.control_connections)
        source = self._source_hook.transfer_side(read_bucket)
        return SocketTransfer(self._target_hook.transfer_side(write_bucket), connections, source)


StreamStore = PooledS3Hook | TwoHooks
"""What :func:`store_for` opens; used as a context manager, it closes its connections."""


def store_for(stream: Stream, max_connections: int, control_connections: int) -> StreamStore:
    """The store for a step of a stream.

    :param max_connections: of this step, to all hosts together: the slots of the pool that its task takes
    :param control_connections: of boto3 to all hosts together; one per host at least
    """
    source = PooledS3Hook.for_stream(stream, max_connections, control_connections)
    if not stream.has_two_connections:
        return source
    target = PooledS3Hook.for_stream(
        stream, max_connections, control_connections, stream.connection_of_aggregated
    )
    return TwoHooks(source, target, max_connections)
