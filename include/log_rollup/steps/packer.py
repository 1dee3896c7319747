"""Packing a shard: raw objects straight into the buffers of parts, and parts into the bucket."""

import heapq
import itertools
import logging
import mmap
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import accumulate
from typing import TypeVar

from include.log_rollup import crc, limits
from include.log_rollup.errors import (
    ChangedBufferError,
    InputChangedError,
    NotFoundError,
    ThrottledError,
    TransientError,
)
from include.log_rollup.hour.plan import PlannedPart, WriteOptions, split_part
from include.log_rollup.hour.records import READ_BY_LENGTH, PackedObject, PackedPart
from include.log_rollup.storage.protocol import (
    Cancellable,
    Downloaded,
    Location,
    ObjectInfo,
    ObjectStore,
    Transfer,
    Uploaded,
)
from include.log_rollup.units import GIB, KIB, format_size
from include.log_rollup.unpacking import CHECKED_ENCODINGS, why_damaged

log = logging.getLogger(__name__)

T = TypeVar("T")

# CopyObject takes at most 5 GiB (https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html); a larger
# object is copied in ranges of this size.
LARGEST_COPY_BYTES = 5 * GIB
COPY_RANGE_BYTES = GIB
TICK_SECONDS = 1.0
# A claim is some hundred bytes long.
CLAIM_BYTES = 4 * KIB
NEWLINE = b"\n"
# Beside the event loop, for checking encodings; zlib and the others release the interpreter lock.
UNPACKING_THREADS = 2


@dataclass(frozen=True, slots=True)
class PackSettings:
    """How parts are written.

    :param options: what decides the bytes of parts
    :param headers: of every part, such as its storage class
    :param connect_timeout: for connecting and again for the TLS handshake
    :param response_timeout: from the request to the first byte of the answer
    :param check_encoding: unpack each compressed object; one that is damaged gets a part of its own
    """

    options: WriteOptions = field(default_factory=WriteOptions)
    headers: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: timedelta = limits.DEFAULT_CONNECT_TIMEOUT
    response_timeout: timedelta = limits.DEFAULT_RESPONSE_TIMEOUT
    check_encoding: bool = False

    def request_seconds(self, size: int, slowest: int = limits.SLOWEST_BODY_BYTES_PER_SECOND) -> float:
        """How long one request may take in all.

        :param size: of the body, or of what the store copies, in bytes
        :param slowest: bytes a second
        """
        waits = 2 * self.connect_timeout + self.response_timeout
        return waits.total_seconds() + size / slowest


@dataclass(frozen=True, slots=True)
class Guard:
    """What says, before every try to write a part, whether it still may be written.

    :param source: the claim, a small object of the aggregated bucket; read over the connections of the parts
    :param is_current: whether its content is enough
    :param check: called where that is not, from a thread of its own; raises if no part may be written
    """

    source: Location
    is_current: Callable[[bytes], bool]
    check: Callable[[], None]


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """A part as it was planned, or split off a planned one, and as it was written."""

    planned: PlannedPart
    packed: PackedPart


@dataclass(slots=True, eq=False)
class _Building:
    """A part whose objects are on their way into its buffer; with room for newlines, ``starts`` leaves it.

    :param missing: how many objects have not come, or not been checked
    :param uploads: how many uploads of it have not ended; more than one where it was split
    """

    planned: PlannedPart
    starts: list[int]
    buffer: memoryview
    missing: int
    objects: list[PackedObject | None]
    uploads: int = 1
    written: list[WrittenPart] = field(default_factory=list)

    def window(self, index: int) -> memoryview:
        """Where an object lies while the part is filled."""
        start = self.starts[index]
        return self.buffer[start : start + self.planned.objects[index].size]


@dataclass(slots=True, eq=False)
class _Upload:
    """What is written as one part: a whole planned part, or one that was split off."""

    part: _Building
    planned: PlannedPart
    body: memoryview
    crc64nvme: int
    objects: tuple[PackedObject, ...]


@dataclass(slots=True, eq=False)
class _RangeCopies:
    """The copy of an object above 5 GiB, in ranges of a multipart upload."""

    planned: PlannedPart
    upload_id: str
    etags: list[str]
    missing: int


@dataclass(slots=True, eq=False)
class _Request:
    """One request over all its tries.

    :param size: of what moves, in bytes
    """

    size: int
    attempts: int = 0
    deadline: float = 0.0
    handle: Cancellable | None = None


@dataclass(slots=True, eq=False)
class _Get(_Request):
    """Reads a raw object into its place."""

    part: _Building = field(kw_only=True)
    index: int = field(kw_only=True)

    @property
    def item(self) -> ObjectInfo:
        return self.part.planned.objects[self.index]

    def __str__(self) -> str:
        return f"GET {self.item.key}"


@dataclass(slots=True, eq=False)
class _Put(_Request):
    """Writes a part."""

    upload: _Upload = field(kw_only=True)

    def __str__(self) -> str:
        return f"PUT {self.upload.planned.name}"


@dataclass(slots=True, eq=False)
class _Copy(_Request):
    """Has the store copy an object of up to 5 GiB."""

    planned: PlannedPart = field(kw_only=True)

    def __str__(self) -> str:
        return f"COPY {self.planned.objects[0].key}"


@dataclass(slots=True, eq=False)
class _CopyRange(_Request):
    """Has the store copy a range of a larger object."""

    copies: _RangeCopies = field(kw_only=True)
    number: int = field(kw_only=True)

    def __str__(self) -> str:
        return f"COPY {self.copies.planned.objects[0].key}, range {self.number}"


_Write = _Put | _Copy


@dataclass(slots=True, eq=False)
class _ReadClaim(_Request):
    """Reads the claim before a try to write; tried once, since whatever comes of it is checked in full."""

    write: _Write = field(kw_only=True)
    claim: bytearray = field(default_factory=lambda: bytearray(CLAIM_BYTES))

    def __str__(self) -> str:
        return "GET of the claim"


_AnyRequest = _Get | _Put | _Copy | _CopyRange | _ReadClaim


@dataclass(frozen=True, slots=True)
class _Ended:
    """A request has ended."""

    request: _AnyRequest
    result: Downloaded | Uploaded | Exception


@dataclass(frozen=True, slots=True)
class _ClaimChecked:
    """The claim was checked in full."""

    write: _Write
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class _UploadBegun:
    """A multipart upload has begun."""

    planned: PlannedPart
    result: str | BaseException


@dataclass(frozen=True, slots=True)
class _UploadFinished:
    """A multipart upload is complete."""

    copies: _RangeCopies
    result: str | BaseException


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """An object was unpacked to its end, or could not be."""

    part: _Building
    index: int
    damage: str | BaseException | None


_Event = _Ended | _ClaimChecked | _UploadBegun | _UploadFinished | _Unpacked


class ShardPacker:
    """Packs the parts of one shard; use it once.

    Objects are read with If-Match on the planned ETag into the part's buffer at their planned offset, their
    length, ETag and CRC are checked, and each part is written as one PUT with its CRC. Downloads of the next
    parts run while earlier ones are uploaded. An object larger than a part is copied by the store. Before every
    try to write, the claim is read. Failures that may pass are retried with growing waits; when S3 asks to slow
    down, fewer requests are kept in flight until it answers well again.

    :param store: begins and ends the copies of objects above 5 GiB
    :param transfer: moves the bodies; its ``connections`` bound what is in flight
    :param aggregated: prefix under which the parts lie
    :param raw_bucket: bucket of the raw objects
    :param guard: asked before every try to write a part
    :param written: called from the thread of :meth:`run` with each planned part and what was written for it
    """

    def __init__(
        self,
        store: ObjectStore,
        transfer: Transfer,
        aggregated: Location,
        raw_bucket: str,
        settings: PackSettings,
        guard: Guard,
        written: Callable[[PlannedPart, list[WrittenPart]], None],
    ) -> None:
        self._store = store
        self._transfer = transfer
        self._aggregated = aggregated
        self._raw_bucket = raw_bucket
        self._settings = settings
        self._guard = guard
        self._written = written
        # A few more than there are connections, so that none waits for this thread to wake up.
        self._most_in_flight = transfer.connections + transfer.connections // 2 + 1
        self._limit = float(self._most_in_flight)
        self._paused_until = 0.0
        self._events: deque[_Event] = deque()
        # For what goes over the connection that boto3 has: one call at a time.
        self._control = ThreadPoolExecutor(1, "log-rollup-control")
        self._unpacking = (
            ThreadPoolExecutor(UNPACKING_THREADS, "log-rollup-unpacking") if settings.check_encoding else None
        )
        self._in_flight: set[_AnyRequest] = set()
        self._waiting: list[tuple[float, int, _AnyRequest]] = []
        self._order = itertools.count()
        self._free: deque[memoryview] = deque()
        self._total_parts = self._done_parts = self._done_bytes = 0
        self._started = 0.0
        self.retries = self.throttles = 0
        self.requests = {"GET": 0, "PUT": 0}
        self.attempted: dict[str, str] = {}
        """Names of the parts that were sent, well or not, each with the planned part it was made for."""

    def run(self, parts: Sequence[PlannedPart]) -> None:
        """Write these parts.

        :raises InputChangedError: if a raw object is no longer what was planned
        :raises RollupError: if S3 refuses, or still fails after the last retry; parts that are written stay
        """
        self._total_parts = len(parts)
        self._started = time.monotonic()
        try:
            self._pump(self._requests(parts))
        finally:
            self._abandon()
            self._control.shutdown(cancel_futures=True)
            if self._unpacking is not None:
                self._unpacking.shutdown(cancel_futures=True)

    @property
    def parts_written(self) -> int:
        """How many planned parts are there by now."""
        return self._done_parts

    def progress(self) -> str:
        """One line on how far it is; safe from any thread."""
        seconds = max(time.monotonic() - self._started, 0.001)
        rate = self._done_bytes / seconds / 1e6
        slow = f" | slowed down to {int(self._limit)} requests" if self._limit < self._most_in_flight else ""
        return (
            f"parts {self._done_parts}/{self._total_parts} | {format_size(self._done_bytes)} written | "
            f"{rate:.0f} MB/s | retries {self.retries}{slow}"
        )

    # -- the loop --------------------------------------------------------------------------------------

    def _pump(self, requests: Iterator[_AnyRequest | None]) -> None:
        more = True
        next_tick = time.monotonic() + TICK_SECONDS
        while self._done_parts < self._total_parts:
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now and self._has_room(now):
                self._send(heapq.heappop(self._waiting)[2])
            while more and not self._waiting_is_due(now) and self._has_room(now):
                try:
                    request = next(requests)
                except StopIteration:
                    more = False
                else:
                    if request is None:
                        break
                    self._send(request)
            if not self._events:
                self._transfer.wait(self._nap(now))
            while self._events:
                self._handle(self._events.popleft())
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_SECONDS
                self._cancel_stalled()

    def _has_room(self, now: float) -> bool:
        return len(self._in_flight) < max(1, int(self._limit)) and now >= self._paused_until

    def _waiting_is_due(self, now: float) -> bool:
        return bool(self._waiting) and self._waiting[0][0] <= now

    def _nap(self, now: float) -> float:
        """How long to wait for a result: until something may be sent again, or the next tick."""
        if len(self._in_flight) >= max(1, int(self._limit)):
            return TICK_SECONDS
        due = self._waiting[0][0] - now if self._waiting else TICK_SECONDS
        return min(max(due, self._paused_until - now, 0.001), TICK_SECONDS)

    def _requests(self, parts: Sequence[PlannedPart]) -> Iterator[_AnyRequest | None]:
        """The first requests of all parts: copies, then the GETs in order; None while every buffer is in use."""
        for planned in parts:
            if planned.copied:
                yield self._claim_for(_Copy(planned.size, planned=planned))
        packed = [part for part in parts if not part.copied]
        self._free.extend(_buffer(size) for size in self._buffers(packed))
        for planned in packed:
            while not self._free:
                yield None
            part = self._begin(planned)
            if part.missing == 0:
                self._built(part)
            for index, item in enumerate(planned.objects):
                if item.size:
                    yield _Get(item.size, part=part, index=index)

    def _buffers(self, parts: Sequence[PlannedPart]) -> list[int]:
        """Sizes in bytes of the buffers: two, or more where many connections would wait for two."""
        if not parts:
            return []
        largest = max(part.size + self._room(part) * len(part.objects) for part in parts)
        count = sum(len(part.objects) for part in parts)
        mean = sum(part.size for part in parts) / count
        filling = self._transfer.connections * mean / max(largest, 1)
        return [max(largest, 1)] * min(len(parts), 8, 1 + max(1, -int(-filling // 1)))

    def _room(self, part: PlannedPart) -> int:
        return self._settings.options.room_for_newline(part.encoding)

    def _begin(self, planned: PlannedPart) -> _Building:
        buffer = self._free.popleft()
        objects: list[PackedObject | None] = [
            None if item.size else PackedObject(0, READ_BY_LENGTH, False) for item in planned.objects
        ]
        room = self._room(planned)
        starts = list(accumulate((item.size + room for item in planned.objects), initial=0))
        return _Building(planned, starts, buffer, objects.count(None), objects)

    # -- requests --------------------------------------------------------------------------------------

    def _send(self, request: _AnyRequest) -> None:
        request.attempts += 1
        done = partial(self._ended, request)
        slowest = limits.SLOWEST_BODY_BYTES_PER_SECOND
        match request:
            case _Get():
                self.requests["GET"] += 1
                source = Location(self._raw_bucket, request.item.key)
                into = request.part.window(request.index)
                request.handle = self._transfer.get(source, request.item.etag, into, done)
            case _ReadClaim():
                self.requests["GET"] += 1
                into = memoryview(request.claim)
                request.handle = self._transfer.get(self._guard.source, None, into, done)
            case _Put(upload=upload):
                self.requests["PUT"] += 1
                self.attempted[upload.planned.name] = upload.part.planned.name
                request.handle = self._transfer.put(
                    self._aggregated.child(upload.planned.name),
                    upload.body,
                    upload.crc64nvme,
                    self._settings.headers,
                    done,
                )
            case _Copy(planned=planned):
                slowest = limits.SLOWEST_COPY_BYTES_PER_SECOND
                self._count("COPY")
                self.attempted[planned.name] = planned.name
                item, target = planned.objects[0], self._aggregated.child(planned.name)
                source = Location(self._raw_bucket, item.key)
                request.handle = self._transfer.copy(source, item.etag, target, self._settings.headers, done)
            case _CopyRange(copies=copies, number=number):
                slowest = limits.SLOWEST_COPY_BYTES_PER_SECOND
                self._count("COPY")
                item, target = copies.planned.objects[0], self._aggregated.child(copies.planned.name)
                first = (number - 1) * COPY_RANGE_BYTES
                request.handle = self._transfer.copy_range(
                    Location(self._raw_bucket, item.key),
                    item.etag,
                    first,
                    first + request.size - 1,
                    target,
                    copies.upload_id,
                    number,
                    done,
                )
        request.deadline = time.monotonic() + self._settings.request_seconds(request.size, slowest)
        self._in_flight.add(request)

    def _count(self, kind: str) -> None:
        self.requests[kind] = self.requests.get(kind, 0) + 1

    def _ended(self, request: _AnyRequest, result: Downloaded | Uploaded | Exception) -> None:
        self._events.append(_Ended(request, result))

    def _claim_for(self, write: _Write) -> _ReadClaim:
        """The reading of the claim that comes before a try to write."""
        return _ReadClaim(CLAIM_BYTES, write=write)

    def _handle(self, event: _Event) -> None:
        match event:
            case _Ended(request=request, result=result):
                self._in_flight.discard(request)
                request.handle = None
                self._handle_ended(request, result)
            case _ClaimChecked(write=write, error=error):
                if error is not None:
                    raise error
                self._write(write)
            case _UploadBegun(planned=planned, result=result):
                self._copy_ranges(planned, _raised(result))
            case _UploadFinished(copies=copies, result=result):
                self._copied(copies.planned, _raised(result))
            case _Unpacked(part=part, index=index, damage=damage):
                self._unpacked(part, index, _raised(damage))

    def _handle_ended(self, request: _AnyRequest, result: Downloaded | Uploaded | Exception) -> None:
        if isinstance(request, _ReadClaim):
            self._claim_read(request, result)
            return
        problem = self._problem(request, result)
        if problem is not None:
            self._retry(request, problem)
            return
        self._limit = min(self._limit + 0.1, self._most_in_flight)
        match request, result:
            case _Get(), Downloaded():
                self._downloaded(request.part, request.index, result)
            case _Put(), Uploaded():
                self._uploaded(request.upload, result)
            case _Copy(), Uploaded():
                self._copied(request.planned, result.etag)
            case _CopyRange(), Uploaded():
                self._range_copied(request, result)

    def _claim_read(self, request: _ReadClaim, result: Downloaded | Uploaded | Exception) -> None:
        """Write if the claim is current; whatever else came of reading it, have it checked in full."""
        size = result.size if isinstance(result, Downloaded) else 0
        if 0 < size <= len(request.claim) and self._guard.is_current(bytes(request.claim[:size])):
            self._write(request.write)
            return
        write = request.write

        def done(future: "Future[None]") -> None:
            if not future.cancelled():
                self._events.append(_ClaimChecked(write, future.exception()))
                self._transfer.wake()

        self._control.submit(self._guard.check).add_done_callback(done)

    def _write(self, write: _Write) -> None:
        if isinstance(write, _Copy) and write.size > LARGEST_COPY_BYTES:
            self._begin_upload(write.planned)
        else:
            self._soon(write)

    def _soon(self, request: _AnyRequest) -> None:
        """Send it before the GETs of later parts: it helps to give a buffer back."""
        heapq.heappush(self._waiting, (0.0, next(self._order), request))

    def _problem(self, request: _AnyRequest, result: Downloaded | Uploaded | Exception) -> Exception | None:
        """What is wrong with a result, if anything."""
        if isinstance(result, Exception):
            return self._failure(request, result)
        if isinstance(request, _Get) and isinstance(result, Downloaded):
            return self._check_download(request, result)
        if (
            isinstance(request, _Put)
            and isinstance(result, Uploaded)
            and result.crc64nvme not in (None, request.upload.crc64nvme)
        ):
            return TransientError(f"{request.upload.planned.name}: S3 stored other bytes than were sent")
        return None

    def _failure(self, request: _AnyRequest, error: Exception) -> Exception:
        """An object that is gone, or whose ETag S3 does not find, changed after it was planned."""
        if isinstance(request, _Put) or not isinstance(error, NotFoundError | InputChangedError):
            return error
        match request:
            case _Get():
                key = request.item.key
            case _Copy():
                key = request.planned.objects[0].key
            case _CopyRange():
                key = request.copies.planned.objects[0].key
            case _:
                return error
        return changed(Location(self._raw_bucket, key), str(error))

    def _check_download(self, request: _Get, result: Downloaded) -> Exception | None:
        item = request.item
        source = Location(self._raw_bucket, item.key)
        if result.etag != item.etag:
            return changed(source, f"its ETag is {result.etag}, {item.etag} was planned")
        if result.size != item.size:
            return TransientError(f"{source}: {result.size} of {item.size} bytes came")
        if result.checksum is not None:
            body = request.part.window(request.index)
            actual = crc.by_algorithm(result.checksum.algorithm, body)
            if actual != result.checksum.value:
                return TransientError(
                    f"{source}: the bytes that came have {result.checksum.algorithm} {actual:x}, S3 states "
                    f"{result.checksum.value:x}"
                )
        return None

    def _retry(self, request: _AnyRequest, problem: Exception) -> None:
        changed_once = isinstance(problem, InputChangedError) and request.attempts == 1
        may_pass = isinstance(problem, TransientError) and not isinstance(problem, ChangedBufferError)
        if not may_pass and not changed_once:
            raise problem
        if request.attempts >= limits.REQUEST_TRIES:
            raise type(problem)(f"{problem} (after {request.attempts} tries)") from problem
        self.retries += 1
        longest = min(
            limits.REQUEST_FIRST_WAIT_SECONDS * 2**request.attempts, limits.REQUEST_LONGEST_WAIT_SECONDS
        )
        wait = random.uniform(longest / 2, longest)
        asked = problem.retry_after if isinstance(problem, TransientError) else None
        if asked is not None:
            wait = max(wait, min(asked, limits.REQUEST_LONGEST_WAIT_SECONDS))
        now = time.monotonic()
        if isinstance(problem, ThrottledError):
            self.throttles += 1
            if now >= self._paused_until:
                # Once for each burst: the answers of one moment all say the same.
                self._limit = max(1.0, self._limit / 2)
                self._paused_until = now + min(wait, 1.0)
        log.debug("retry %d in %.1f s: %s", request.attempts, wait, problem)
        again = self._claim_for(request) if isinstance(request, _Put | _Copy) else request
        heapq.heappush(self._waiting, (now + wait, next(self._order), again))

    def _cancel_stalled(self) -> None:
        now = time.monotonic()
        for request in list(self._in_flight):
            if now > request.deadline and request.handle is not None:
                log.warning("no complete answer in time, trying again: %s", request)
                # Its callback brings it back as a failure that may pass.
                request.handle.cancel()

    def _abandon(self) -> None:
        """After a failure: nothing of this task may write into a buffer or the bucket any more."""
        for request in self._in_flight:
            if request.handle is not None:
                request.handle.cancel()
                # Whoever looks at the failure's frames would keep the buffers alive.
                request.handle = None
        self._in_flight.clear()
        self._events.clear()

    # -- parts -----------------------------------------------------------------------------------------

    def _downloaded(self, part: _Building, index: int, result: Downloaded) -> None:
        stated = result.checksum
        # Where S3 states this very CRC, the check has found the bytes to have it.
        if stated is not None and stated.algorithm == crc.CRC64NVME:
            value = stated.value
        else:
            value = crc.crc64(part.window(index))
        checked = stated.algorithm if stated else READ_BY_LENGTH
        part.objects[index] = PackedObject(value, checked, result.etag_is_md5)
        if self._unpacking is not None and part.planned.encoding in CHECKED_ENCODINGS:
            self._unpack(self._unpacking, part, index)
        else:
            self._object_ready(part)

    def _unpack(self, threads: ThreadPoolExecutor, part: _Building, index: int) -> None:
        def done(future: "Future[str | None]") -> None:
            if not future.cancelled():
                self._events.append(_Unpacked(part, index, future.exception() or future.result()))
                self._transfer.wake()

        threads.submit(why_damaged, part.planned.encoding, part.window(index)).add_done_callback(done)

    def _unpacked(self, part: _Building, index: int, damage: str | None) -> None:
        if damage is not None:
            source = Location(self._raw_bucket, part.planned.objects[index].key)
            log.warning("%s cannot be unpacked (%s): it gets a part of its own", source, damage)
            found = part.objects[index]
            assert found is not None
            part.objects[index] = PackedObject(
                found.crc64nvme, found.checked, found.etag_is_md5, damaged=True
            )
        self._object_ready(part)

    def _object_ready(self, part: _Building) -> None:
        part.missing -= 1
        if part.missing == 0:
            self._built(part)

    def _built(self, part: _Building) -> None:
        """All objects are in the buffer: write them, damaged ones in parts of their own."""
        damaged = [index for index, done in enumerate(part.objects) if done is not None and done.damaged]
        if damaged and len(part.planned.objects) > 1:
            uploads = self._split(part, damaged)
        else:
            body, pieces, objects = self._join(part, range(len(part.objects)))
            # The CRC of what was read, not of what the buffer holds by now: the transfer compares that with it.
            uploads = [_Upload(part, part.planned, body, crc.concatenate(pieces), objects)]
        part.uploads = len(uploads)
        for upload in uploads:
            self._soon(self._claim_for(_Put(len(upload.body), upload=upload)))

    def _split(self, part: _Building, damaged: Sequence[int]) -> list[_Upload]:
        intact = [index for index in range(len(part.objects)) if index not in set(damaged)]
        groups = [[index] for index in damaged] + ([intact] if intact else [])
        members = ([part.planned.objects[index] for index in group] for group in groups)
        uploads = []
        for planned, group in zip(
            split_part(part.planned, self._settings.options, members), groups, strict=True
        ):
            # The intact objects are moved together last; the others need a copy before that.
            single = group is not intact
            body, pieces, objects = self._join(part, group)
            kept = memoryview(bytes(body)) if single else body
            uploads.append(_Upload(part, planned, kept, crc.concatenate(pieces), objects))
        return uploads

    def _join(
        self, part: _Building, indexes: Sequence[int]
    ) -> tuple[memoryview, list[tuple[int, int]], tuple[PackedObject, ...]]:
        """Move some objects of a part together, with a newline behind each plain one that has none.

        :returns: the bytes, CRC and length of each piece, and the objects as they were packed
        """
        pieces: list[tuple[int, int]] = []
        objects: list[PackedObject] = []
        buffer, planned = part.buffer, part.planned
        newline = self._room(planned)
        begin = end = part.starts[indexes[0]] if len(indexes) == 1 else 0
        for index in indexes:
            item, done = planned.objects[index], part.objects[index]
            assert done is not None
            if item.size:
                if part.starts[index] != end:
                    # Within one memoryview CPython moves overlapping ranges as memmove does.
                    buffer[end : end + item.size] = part.window(index)
                end += item.size
                pieces.append((done.crc64nvme or 0, item.size))
                if newline and buffer[end - 1] != NEWLINE[0]:
                    buffer[end : end + 1] = NEWLINE
                    end += 1
                    pieces.append((_NEWLINE_CRC, 1))
                    done = PackedObject(done.crc64nvme, done.checked, done.etag_is_md5, 1, done.damaged)
            objects.append(done)
        return buffer[begin:end], pieces, tuple(objects)

    def _uploaded(self, upload: _Upload, result: Uploaded) -> None:
        part, planned = upload.part, upload.planned
        packed = PackedPart(
            planned.name,
            planned.fingerprint,
            len(upload.body),
            result.etag,
            upload.crc64nvme,
            upload.objects,
        )
        part.written.append(WrittenPart(planned, packed))
        part.uploads -= 1
        if part.uploads == 0:
            self._free.append(part.buffer)
            self._finished(part.planned, part.written)

    def _finished(self, planned: PlannedPart, written: list[WrittenPart]) -> None:
        self._done_parts += 1
        self._done_bytes += sum(one.packed.size for one in written)
        self._written(planned, written)

    # -- copies ----------------------------------------------------------------------------------------

    def _copied(self, planned: PlannedPart, etag: str) -> None:
        # Validation reads what the store has kept of it: CRC, and whether the ETag can be an MD5.
        checked = PackedObject(None, READ_BY_LENGTH, False)
        packed = PackedPart(planned.name, planned.fingerprint, planned.size, etag, None, (checked,))
        self._finished(planned, [WrittenPart(planned, packed)])

    def _begin_upload(self, planned: PlannedPart) -> None:
        target = self._aggregated.child(planned.name)
        self.attempted[planned.name] = planned.name

        def done(future: "Future[str]") -> None:
            if not future.cancelled():
                self._events.append(_UploadBegun(planned, future.exception() or future.result()))
                self._transfer.wake()

        self._control.submit(self._store.begin_upload, target, self._settings.headers).add_done_callback(done)

    def _copy_ranges(self, planned: PlannedPart, upload_id: str) -> None:
        count = -(-planned.size // COPY_RANGE_BYTES)
        copies = _RangeCopies(planned, upload_id, [""] * count, count)
        for number in range(1, count + 1):
            size = min(COPY_RANGE_BYTES, planned.size - (number - 1) * COPY_RANGE_BYTES)
            self._soon(_CopyRange(size, copies=copies, number=number))

    def _range_copied(self, request: _CopyRange, result: Uploaded) -> None:
        copies = request.copies
        copies.etags[request.number - 1] = result.etag
        copies.missing -= 1
        if copies.missing:
            return

        def done(future: "Future[str]") -> None:
            if not future.cancelled():
                self._events.append(_UploadFinished(copies, future.exception() or future.result()))
                self._transfer.wake()

        self._control.submit(self._finish_upload, copies).add_done_callback(done)

    def _finish_upload(self, copies: _RangeCopies) -> str:
        """Complete a copy in ranges, if the hour is still this run's; the ETag of the part."""
        target = self._aggregated.child(copies.planned.name)
        self._guard.check()
        self._store.finish_upload(target, copies.upload_id, copies.etags)
        after = self._store.head(target)
        if after is None:
            raise TransientError(f"{target}: is not there after S3 copied it")
        return after.etag


_NEWLINE_CRC = crc.crc64(NEWLINE)


def _raised(result: T | BaseException) -> T:
    if isinstance(result, BaseException):
        raise result
    return result


def _buffer(size: int) -> memoryview:
    """Memory for a part, in pages of 2 MiB where the system has them: it is gone through four times."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Not in every system's Python, nor in every kernel.
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def changed(source: Location, what: str) -> InputChangedError:
    """The error for a raw object that is no longer what was planned."""
    return InputChangedError(
        f"{source} changed after it was planned: {what}. Nothing is lost: clear the run from plan_hour on, "
        f"and the hour is planned and packed as it is now."
    )
