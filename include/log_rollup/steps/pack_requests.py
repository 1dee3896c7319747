"""The kinds of S3 request that pack a shard; :mod:`range_requests` has those for large objects.

==============  =========================  ====================================  ==============================
request         sent when                  when it ends                          a retry
==============  =========================  ====================================  ==============================
GetObject       a part has a free buffer   the object is in the part's buffer    the same request
ReadClaim       before each try to write   the write is sent, or the claim is    none: the recheck decides
                                           rechecked in full
PutPart         the claim is current       the part is written                   ReadClaim first
CopyObject      the claim is current       the part is written                   ReadClaim first
==============  =========================  ====================================  ==============================
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from include.log_rollup import crc, limits
from include.log_rollup.errors import InputChangedError, NotFoundError, TransientError
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.steps.part_buffers import PartBody, PartBuffer
from include.log_rollup.steps.request_loop import Request
from include.log_rollup.storage.protocol import (
    Cancellable,
    Downloaded,
    Location,
    ObjectInfo,
    Transfer,
    Uploaded,
)
from include.log_rollup.units import KIB

# A claim is some hundred bytes long.
CLAIM_BYTES = 4 * KIB


@dataclass(slots=True)
class PartTarget:
    """Where and how parts are written.

    :param prefix: the parts lie below it
    :param headers: of each part
    :param attempted: names of the parts that were sent, written or not, each with the planned part it was made for
    """

    prefix: Location
    headers: Mapping[str, str]
    attempted: dict[str, str] = field(default_factory=dict)

    def attempt(self, part: PlannedPart) -> Location:
        """Where a part is written; notes that it was attempted."""
        self.attempted[part.name] = part.split_of or part.name
        return self.prefix.child(part.name)


@dataclass(slots=True, eq=False)
class GetObject(Request[Downloaded]):
    """Downloads a raw object to its place in the part's buffer, if it still has the planned ETag.

    Its ETag, length and CRC are compared: what a server claims to have sent is not trusted.

    :param downloaded: called with the part and the object's index
    """

    operation = "GET"

    source: Location
    part: PartBuffer
    index: int
    downloaded: Callable[[PartBuffer, int], None]

    @property
    def item(self) -> ObjectInfo:
        """The raw object as it was planned."""
        return self.part.planned.objects[self.index]

    @property
    def size(self) -> int:
        return self.item.size

    def send(self, transfer: Transfer, done: Callable[[Downloaded | Exception], None]) -> Cancellable:
        return transfer.get(self.source, self.item.etag, self.part.window(self.index), done)

    def handle_result(self, result: Downloaded | Exception) -> Exception | None:
        if isinstance(result, Exception):
            return source_error(self.source, result)
        error = self._mismatch(result)
        if error is None:
            self.part.set_downloaded(self.index, result)
            self.downloaded(self.part, self.index)
        return error

    def _mismatch(self, result: Downloaded) -> Exception | None:
        item = self.item
        if result.etag != item.etag:
            return input_changed(self.source, f"its ETag is {result.etag}, {item.etag} was planned")
        if result.size != item.size:
            return TransientError(f"{self.source}: received {result.size} of {item.size} bytes")
        if result.checksum is not None:
            algorithm, stated = result.checksum.algorithm, result.checksum.value
            actual = crc.by_algorithm(algorithm, self.part.window(self.index))
            if actual != stated:
                return TransientError(
                    f"{self.source}: the received bytes have {algorithm} {actual:x}, S3 states {stated:x}"
                )
        return None

    def __str__(self) -> str:
        return f"GET {self.item.key}"


@dataclass(slots=True, eq=False)
class ReadClaim(Request[Downloaded]):
    """Reads the claim before a try to write.

    It is tried once: whatever is wrong with the answer, rechecking the claim in full settles it.

    :param is_current: whether the content of the claim allows the write
    :param write: called if it does
    :param recheck: called if it doesn't, or if the claim could not be read
    """

    operation = "GET"

    source: Location
    is_current: Callable[[bytes], bool]
    write: Callable[[], None]
    recheck: Callable[[], None]
    claim: bytearray = field(default_factory=lambda: bytearray(CLAIM_BYTES), init=False)

    @property
    def size(self) -> int:
        return CLAIM_BYTES

    def send(self, transfer: Transfer, done: Callable[[Downloaded | Exception], None]) -> Cancellable:
        return transfer.get(self.source, None, memoryview(self.claim), done)

    def handle_result(self, result: Downloaded | Exception) -> Exception | None:
        size = 0 if isinstance(result, Exception) else result.size
        if 0 < size <= len(self.claim) and self.is_current(bytes(self.claim[:size])):
            self.write()
        else:
            self.recheck()
        return None

    def __str__(self) -> str:
        return "GET of the claim"


@dataclass(slots=True, eq=False)
class PutPart(Request[Uploaded]):
    """Writes a part from memory, with its CRC.

    :param read_claim: returns the request that reads the claim before the next try
    :param written: called with the body and the part's ETag
    """

    operation = "PUT"

    target: PartTarget
    body: PartBody
    read_claim: Callable[[Request[Any]], ReadClaim]
    written: Callable[[PartBody, str], None]

    @property
    def size(self) -> int:
        return len(self.body.content)

    def send(self, transfer: Transfer, done: Callable[[Uploaded | Exception], None]) -> Cancellable:
        location = self.target.attempt(self.body.planned)
        return transfer.put(location, self.body.content, self.body.crc64nvme, self.target.headers, done)

    def handle_result(self, result: Uploaded | Exception) -> Exception | None:
        if isinstance(result, Exception):
            return result
        if result.crc64nvme not in (None, self.body.crc64nvme):
            return TransientError(f"{self.body.planned.name}: S3 stored other bytes than were sent")
        self.written(self.body, result.etag)
        return None

    def next_try(self) -> ReadClaim:
        return self.read_claim(self)

    def __str__(self) -> str:
        return f"PUT {self.body.planned.name}"


@dataclass(slots=True, eq=False)
class CopyObject(Request[Uploaded]):
    """Lets the store copy a raw object of up to 5 GiB to a part of its own.

    :param read_claim: returns the request that reads the claim before the next try
    :param copied: called with the part, its ETag, and the CRC that the store states of it
    """

    operation = "COPY"
    slowest_bytes_per_second = limits.SLOWEST_COPY_BYTES_PER_SECOND

    source: Location
    target: PartTarget
    planned: PlannedPart
    read_claim: Callable[[Request[Any]], ReadClaim]
    copied: Callable[[PlannedPart, str, int | None], None]

    @property
    def size(self) -> int:
        return self.planned.size

    def send(self, transfer: Transfer, done: Callable[[Uploaded | Exception], None]) -> Cancellable:
        location = self.target.attempt(self.planned)
        etag = self.planned.objects[0].etag
        return transfer.copy(self.source, etag, location, self.target.headers, done)

    def handle_result(self, result: Uploaded | Exception) -> Exception | None:
        if isinstance(result, Exception):
            return source_error(self.source, result)
        self.copied(self.planned, result.etag, result.crc64nvme)
        return None

    def next_try(self) -> ReadClaim:
        return self.read_claim(self)

    def __str__(self) -> str:
        return f"COPY {self.source.key}"


def source_error(source: Location, error: Exception) -> Exception:
    """The error of a request that reads a raw object; a missing object, or another ETag, means that it changed."""
    if isinstance(error, NotFoundError | InputChangedError):
        return input_changed(source, str(error))
    return error


def input_changed(source: Location, what: str) -> InputChangedError:
    """The error for a raw object that is no longer what was planned."""
    return InputChangedError(
        f"{source} changed after it was planned: {what}. Nothing is lost: clear the run from plan_hour on, "
        f"and the hour is planned and packed as it is now."
    )
