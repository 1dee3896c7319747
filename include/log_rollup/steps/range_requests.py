"""The kinds of S3 request that move a large raw object in ranges, as a multipart upload.

==============  =========================  ====================================  ==============================
request         sent when                  when it ends                          a retry
==============  =========================  ====================================  ==============================
CopyRange       a multipart upload began   after the last range the upload is    the same request
                                           completed
GetRange        an upload began, and a     the range is sent by PutRange         the same request
                buffer is free
PutRange        the range is in a buffer   after the last range the upload is    the same request
                                           completed
==============  =========================  ====================================  ==============================
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from include.log_rollup import crc, limits
from include.log_rollup.errors import TransientError
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.steps.pack_requests import input_changed, source_error
from include.log_rollup.steps.request_loop import Request
from include.log_rollup.storage.protocol import Cancellable, Downloaded, Location, Transfer, Uploaded


def range_count(size: int, range_bytes: int) -> int:
    """How many ranges an object has."""
    # Rounded up.
    return -(-size // range_bytes)


@dataclass(slots=True, eq=False)
class RangeCopy:
    """The copy of an object above 5 GiB, in ranges of a multipart upload.

    :param target: the part
    :param range_bytes: of each range but the last
    :param etags: of the ranges, in order
    :param missing: how many ranges are not copied
    """

    source: Location
    target: Location
    planned: PlannedPart
    upload_id: str
    range_bytes: int
    etags: list[str] = field(init=False)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = range_count(self.planned.size, self.range_bytes)
        self.etags = [""] * self.missing

    def requests(self, copied: Callable[["RangeCopy"], None]) -> "list[CopyRange]":
        """One request for each range.

        :param copied: called after the last of them
        """
        return [CopyRange(self, number, copied) for number in range(1, self.missing + 1)]


@dataclass(slots=True, eq=False)
class CopyRange(Request[Uploaded]):
    """Lets the store copy one range of a large object (UploadPartCopy).

    :param number: of the range, from 1
    """

    operation = "COPY"
    slowest_bytes_per_second = limits.SLOWEST_COPY_BYTES_PER_SECOND

    copy: RangeCopy
    number: int
    copied: Callable[[RangeCopy], None]

    @property
    def first(self) -> int:
        """Offset of the range's first byte."""
        return (self.number - 1) * self.copy.range_bytes

    @property
    def size(self) -> int:
        return min(self.copy.range_bytes, self.copy.planned.size - self.first)

    def send(self, transfer: Transfer, done: Callable[[Uploaded | Exception], None]) -> Cancellable:
        return transfer.copy_range(
            self.copy.source,
            self.copy.planned.objects[0].etag,
            self.first,
            self.first + self.size - 1,
            self.copy.target,
            self.copy.upload_id,
            self.number,
            done,
        )

    def handle_result(self, result: Uploaded | Exception) -> Exception | None:
        if isinstance(result, Exception):
            return source_error(self.copy.source, result)
        self.copy.etags[self.number - 1] = result.etag
        self.copy.missing -= 1
        if not self.copy.missing:
            self.copied(self.copy)
        return None

    def __str__(self) -> str:
        return f"COPY {self.copy.source.key}, range {self.number}"


@dataclass(slots=True, eq=False)
class PassedObject:
    """A large raw object on its way through buffers to a part at another endpoint, in ranges of an upload.

    :param target: the part
    :param range_bytes: of each range but the last
    :param etags: of the ranges that were sent, in order
    :param pieces: CRC and length of these ranges, in order
    :param missing: how many ranges were not sent
    """

    source: Location
    target: Location
    planned: PlannedPart
    upload_id: str
    range_bytes: int
    etags: list[str] = field(init=False)
    pieces: list[tuple[int, int]] = field(init=False)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = range_count(self.planned.size, self.range_bytes)
        self.etags = [""] * self.missing
        self.pieces = [(0, 0)] * self.missing

    @property
    def crc64nvme(self) -> int:
        """The CRC of the whole object, from those of its ranges."""
        return crc.concatenate(self.pieces)

    def span(self, number: int) -> tuple[int, int]:
        """Offset and length of a range, by its number from 1."""
        first = (number - 1) * self.range_bytes
        return first, min(self.range_bytes, self.planned.size - first)


@dataclass(slots=True, eq=False)
class GetRange(Request[Downloaded]):
    """Downloads one range of a large raw object into a buffer, if the object still has the planned ETag.

    :param number: of the range, from 1
    :param memory: a buffer that has room for it
    :param downloaded: called with the object, the range's number and the buffer
    """

    operation = "GET"

    passed: PassedObject
    number: int
    memory: memoryview
    downloaded: Callable[[PassedObject, int, memoryview], None]

    @property
    def size(self) -> int:
        return self.passed.span(self.number)[1]

    def send(self, transfer: Transfer, done: Callable[[Downloaded | Exception], None]) -> Cancellable:
        first, length = self.passed.span(self.number)
        etag = self.passed.planned.objects[0].etag
        return transfer.get_range(self.passed.source, etag, first, self.memory[:length], done)

    def handle_result(self, result: Downloaded | Exception) -> Exception | None:
        source, etag = self.passed.source, self.passed.planned.objects[0].etag
        if isinstance(result, Exception):
            return source_error(source, result)
        if result.etag != etag:
            return input_changed(source, f"its ETag is {result.etag}, {etag} was planned")
        if result.size != self.size:
            return TransientError(f"{source}: received {result.size} of {self.size} bytes")
        planned = self.passed.planned.size
        if result.total not in (None, planned):
            return TransientError(f"{source}: it has {result.total} bytes, {planned} were listed")
        self.passed.pieces[self.number - 1] = (crc.crc64(self.memory[: self.size]), self.size)
        self.downloaded(self.passed, self.number, self.memory)
        return None

    def __str__(self) -> str:
        return f"GET {self.passed.source.key}, range {self.number}"


@dataclass(slots=True, eq=False)
class PutRange(Request[Uploaded]):
    """Writes one range of a large raw object as a part of a multipart upload, with its CRC.

    :param number: of the range, from 1
    :param memory: the buffer that holds it
    :param written: called with the object and the buffer, which is free then
    """

    operation = "PUT"

    passed: PassedObject
    number: int
    memory: memoryview
    written: Callable[[PassedObject, memoryview], None]

    @property
    def size(self) -> int:
        return self.passed.span(self.number)[1]

    def send(self, transfer: Transfer, done: Callable[[Uploaded | Exception], None]) -> Cancellable:
        value = self.passed.pieces[self.number - 1][0]
        body = self.memory[: self.size]
        return transfer.put_range(self.passed.target, self.passed.upload_id, self.number, body, value, done)

    def handle_result(self, result: Uploaded | Exception) -> Exception | None:
        if isinstance(result, Exception):
            return result
        if result.crc64nvme not in (None, self.passed.pieces[self.number - 1][0]):
            return TransientError(f"{self.passed.target}: S3 stored other bytes than were sent")
        self.passed.etags[self.number - 1] = result.etag
        self.passed.missing -= 1
        self.written(self.passed, self.memory)
        return None

    def __str__(self) -> str:
        return f"PUT {self.passed.target.key}, range {self.number}"
