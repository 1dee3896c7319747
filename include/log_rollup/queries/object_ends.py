"""Reads the beginning and the end of a few objects: whether they are text, and end with a newline."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from include.log_rollup.errors import AccessError, InputChangedError, NotFoundError
from include.log_rollup.hour.selection import PLAIN, encoding_of
from include.log_rollup.storage.protocol import Location, SampledStore, TimedObject

# An object up to this size is read in one request.
_WHOLE_BYTES = 4096
_MAGIC = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4", b"PAR1": "Parquet", b"PK\x03\x04": "zip", b"Obj\x01": "Avro", b"ORC": "ORC",
}  # fmt: skip


@dataclass(frozen=True)
class Newlines:
    """What the bytes of some objects without a compression showed.

    :param read: how many were read
    :param without: how many do not end with a newline
    :param formats: number of objects that are not text, by format
    :param problem: why objects could not be read
    """

    read: int = 0
    without: int = 0
    formats: Mapping[str, int] | None = None
    problem: str = ""


class EndReader:
    """Reads the beginning and the end of a few objects.

    :param limit: the most requests
    """

    def __init__(self, store: SampledStore, bucket: str, limit: int) -> None:
        self._store = store
        self._bucket = bucket
        self._left = limit
        self.reads = 0

    def newlines(self, rows: Sequence[TimedObject], share: int) -> Newlines:
        """Whether some uncompressed objects end with a newline, and are text at all.

        :param share: the most requests for these
        """
        share = min(share, self._left)
        plain = [row for row in rows if row.size and row.etag and encoding_of(row.key) == PLAIN]
        read = without = 0
        formats: Counter[str] = Counter()
        step = max(1, len(plain) // max(1, share // 2))
        for row in plain[::step]:
            needed = 1 if row.size <= _WHOLE_BYTES else 2
            if share < needed:
                break
            share -= needed
            try:
                head, last = self._ends(row)
            except (AccessError, NotFoundError, InputChangedError) as error:
                return Newlines(read, without, formats, str(error))
            read += 1
            kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
            if kind:
                formats[kind] += 1
            elif last != b"\n":
                without += 1
        return Newlines(read, without, formats)

    def _ends(self, row: TimedObject) -> tuple[bytes, bytes]:
        """The first bytes and the last byte of an object."""
        if row.size <= _WHOLE_BYTES:
            body = self._read(row, 0, row.size)
            return body[:8], body[-1:]
        return self._read(row, 0, 8), self._read(row, row.size - 1, 1)

    def _read(self, row: TimedObject, offset: int, length: int) -> bytes:
        self._left -= 1
        self.reads += 1
        return self._store.read_range(Location(self._bucket, row.key), row.etag, offset, length)
