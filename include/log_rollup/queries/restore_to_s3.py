"""The S3 prefix as a target of a restore: :class:`S3Target`."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from include.log_rollup import crc
from include.log_rollup.parallel import in_parallel
from include.log_rollup.queries.present_objects import PresentObjects
from include.log_rollup.queries.restore_targets import Presence, RestoredObject
from include.log_rollup.storage.protocol import Location, RestoreStore
from include.log_rollup.units import MIB

CONTENT_TYPE = "application/octet-stream"
UPLOAD_PART_BYTES = 8 * MIB
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_UPLOAD_PARTS = 10_000
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
MAX_KEY_BYTES = 1024


class S3Target:
    """A prefix in S3, written over the store of the parts. Objects above 8 MiB are multipart uploads.

    :param prefix: begins the keys of all restored objects
    :param headers: of uploads, such as that of the KMS key
    :param is_ours: whether a key of the bucket is that of a part or record, among which nothing is restored
    :param is_raw: whether a key of the bucket is that of a raw object; an object is restored there only as itself
    """

    is_ordered = False

    def __init__(
        self,
        store: RestoreStore,
        prefix: Location,
        headers: dict[str, str],
        is_ours: Callable[[str], bool],
        is_raw: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._headers = headers
        self._is_ours = is_ours
        self._is_raw = is_raw

    def name_problem(self, item: RestoredObject) -> str | None:
        """See :class:`Target`."""
        key = f"{self._prefix.key}{item.name}"
        size = len(key.encode())
        if size > MAX_KEY_BYTES:
            return f"its key there would have {size:,} bytes, more than S3 allows"
        if self._is_ours(key):
            return f"{key} would be among the parts and records of the stream; restore to another prefix"
        # The next run would pack it again, next to the object that it was restored from.
        if self._is_raw(key) and (key != item.key or item.is_content):
            return f"{key} would be another raw object of the stream; restore to another prefix"
        return None

    def compare(self, objects: Sequence[RestoredObject]) -> Sequence[Presence]:
        """See :class:`Target`. An object is the same if its size and its ETag or CRC are.

        If the store has another ETag and no CRC of an object of the same size, the object is read.
        """
        present = PresentObjects(self._store, self._prefix).find([item.name for item in objects])
        pairs = [(item, present.get(item.name)) for item in objects]
        if not present:
            return [Presence.ABSENT] * len(pairs)

        def presence(pair: tuple[RestoredObject, tuple[int, str] | None]) -> Presence:
            item, found = pair
            if found is None:
                return Presence.ABSENT
            return Presence.SAME if found == (item.size, item.etag) else self._look_closer(item)

        return list(in_parallel(self._store.control_connections, "log-rollup-present", presence, pairs))

    def _look_closer(self, item: RestoredObject) -> Presence:
        source = self._prefix.child(item.name)
        head = self._store.head(source)
        if head is None:
            return Presence.ABSENT
        if head.size != item.size:
            return Presence.DIFFERENT
        if head.etag == item.etag:
            return Presence.SAME
        value = head.crc64nvme
        if value is None:
            value = 0
            for start in range(0, item.size, UPLOAD_PART_BYTES):
                length = min(UPLOAD_PART_BYTES, item.size - start)
                value = crc.crc64(self._store.read_range(source, head.etag, start, length), value)
        return Presence.SAME if value == item.crc64nvme else Presence.DIFFERENT

    def write(self, item: RestoredObject, body: bytes | memoryview) -> None:
        """See :class:`Target`."""
        self._store.write(self._prefix.child(item.name), bytes(body), CONTENT_TYPE)

    def begin(self, item: RestoredObject) -> "UploadWriter":
        """See :class:`Target`."""
        return UploadWriter(self._store, self._prefix.child(item.name), item.size, self._headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class UploadWriter:
    """Writes an object by a multipart upload.

    Its parts have 8 MiB; those of an object of more than 78 GiB are as large as 10,000 of them need to be.
    """

    def __init__(self, store: RestoreStore, target: Location, size: int, headers: dict[str, str]) -> None:
        self._store, self._target = store, target
        # Rounded up.
        self._part_bytes = max(UPLOAD_PART_BYTES, -(-size // MAX_UPLOAD_PARTS))
        self._buffer = bytearray()
        self._etags: list[str] = []
        self._crc = 0
        self._is_open = True
        self._upload_id = store.begin_upload(target, headers, with_crc=True)

    def write(self, piece: memoryview) -> None:
        """See :class:`Writer`."""
        self._buffer += piece
        while len(self._buffer) >= self._part_bytes:
            self._send(self._part_bytes)

    def commit(self) -> None:
        """See :class:`Writer`."""
        if self._buffer:
            self._send(len(self._buffer))
        self._store.finish_upload(self._target, self._upload_id, self._etags, self._crc)
        self._is_open = False

    def discard(self) -> None:
        """See :class:`Writer`."""
        if self._is_open:
            self._is_open = False
            self._store.abort_upload(self._target, self._upload_id)

    def _send(self, size: int) -> None:
        body = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        self._crc = crc.crc64(body, self._crc)
        number = len(self._etags) + 1
        self._etags.append(self._store.write_range(self._target, self._upload_id, number, body))
