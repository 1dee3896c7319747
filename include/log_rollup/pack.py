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
from typing import Any

from include.log_rollup import crc
from include.log_rollup.errors import (
    ChangedBufferError,
    InputChangedError,
    NotFoundError,
    ThrottledError,
    TransientError,
)
from include.log_rollup.plan import PLAIN, PlannedPart
from include.log_rollup.records import READ_BY_LENGTH, PackedObject, PackedPart
from include.log_rollup.store import (
    Cancellable,
    Downloaded,
    Location,
    ObjectStore,
    Transfer,
    Uploaded,
)
from include.log_rollup.units import KIB, format_size

log = logging.getLogger(__name__)

# A request is tried this often before the task fails; with the waits below that is about two minutes.
ATTEMPTS = 8
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 30.0
# A body that comes more slowly than this has stalled.
SLOWEST_BYTES_PER_SECOND = 256 * KIB
TICK_SECONDS = 1.0
# A guard is some hundred bytes long.
GUARD_BYTES = 4 * KIB
NEWLINE = b"\n"


@dataclass(frozen=True, slots=True)
class PackSettings:
    """How parts are written.

    :param separators: end each plain object with a newline, adding one where it is missing
    :param headers: of every part, such as its storage class
    :param connect_timeout: for connecting and again for the TLS handshake
    :param response_timeout: from the request to the first byte of the answer
    """

    separators: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: timedelta = timedelta(seconds=5)
    response_timeout: timedelta = timedelta(seconds=5)

    def request_seconds(self, size: int) -> float:
        """How long one request with a body of ``size`` bytes may take in all."""
        waits = 2 * self.connect_timeout + self.response_timeout
        return waits.total_seconds() + size / SLOWEST_BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Guard:
    """What tells, before each part is written, whether it still may be.

    :param source: a small object of the aggregated bucket, read over the connections of the parts themselves
    :param holds: whether what it says is enough
    :param otherwise: called where that is not, from a thread of its own; raises if no part may be written
    """

    source: Location
    holds: Callable[[bytes], bool]
    otherwise: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Building:
    """A part whose objects are on their way into its buffer; with separators, ``starts`` leaves room for each."""

    planned: PlannedPart
    starts: list[int]
    buffer: memoryview
    missing: int
    objects: list[PackedObject | None]
    body: memoryview
    crc64nvme: int = 0


@dataclass(slots=True, eq=False)
class _Request:
    """One GET (``index`` names the object) or PUT (``index`` is None) of a part, over all its tries.

    :param guard: for a GET of the guard, which is tried once: what it says lands here
    """

    part: _Building
    index: int | None
    size: int
    guard: bytearray | None = None
    attempts: int = 0
    deadline: float = 0.0
    handle: Cancellable | None = None


class ShardPacker:
    """Packs the parts of one shard; use it once.

    Objects are read with If-Match on the planned ETag into the part's buffer at their planned offset, their
    length, ETag and CRC are checked, and each part is written as one PUT with its CRC. Downloads of the next
    parts run while earlier ones are uploaded. Failures that may pass are retried with growing waits; when S3
    asks to slow down, fewer requests are kept in flight until it answers well again.

    :param store: for objects that S3 copies
    :param transfer: moves the bodies; its ``connections`` bound what is in flight
    :param aggregated: prefix under which the parts lie
    :param raw_bucket: bucket of the raw objects
    :param guard: asked before each part is written
    :param written: called with each part once it stands, from the thread of :meth:`run`
    """

    def __init__(
        self,
        store: ObjectStore,
        transfer: Transfer,
        aggregated: Location,
        raw_bucket: str,
        settings: PackSettings,
        guard: Guard,
        written: Callable[[PackedPart], None],
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
        self._events: deque[tuple[_Request | _Building | PlannedPart, Any]] = deque()
        # Copies, and whole looks at the guard: one at a time, over the connection that boto3 has.
        self._control = ThreadPoolExecutor(1, "log-rollup-control")
        self._in_flight: set[_Request] = set()
        self._waiting: list[tuple[float, int, _Request]] = []
        self._order = itertools.count()
        self._copies: deque[PlannedPart] = deque()
        self._free: deque[memoryview] = deque()
        self._total_parts = self._done_parts = self._done_bytes = 0
        self._started = 0.0
        self.retries = self.throttles = 0
        self.requests = {"GET": 0, "PUT": 0}

    def run(self, parts: Sequence[PlannedPart]) -> None:
        """Write these parts.

        :raises InputChangedError: if a raw object is no longer what was planned
        :raises RollupError: if S3 refuses, or still fails after the last retry; parts that are written stay
        """
        self._total_parts = len(parts)
        self._started = time.monotonic()
        packed = [part for part in parts if not part.copied]
        try:
            self._copies.extend(part for part in parts if part.copied)
            self._copy_next()
            self._pump(self._gets(packed), len(parts))
        finally:
            self._control.shutdown(cancel_futures=True)
            self._abandon()

    @property
    def parts_written(self) -> int:
        """How many parts stand by now."""
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

    def _pump(self, gets: Iterator[_Request | None], outstanding: int) -> None:
        more = True
        next_tick = time.monotonic() + TICK_SECONDS
        while outstanding:
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now and self._has_room(now):
                self._send(heapq.heappop(self._waiting)[2])
            while more and not self._waiting_is_due(now) and self._has_room(now):
                try:
                    request = next(gets)
                except StopIteration:
                    more = False
                else:
                    if request is None:
                        break
                    self._send(request)
            if not self._events:
                self._transfer.wait(self._nap(now))
            while self._events:
                outstanding -= self._handle(*self._events.popleft())
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

    def _gets(self, parts: Sequence[PlannedPart]) -> Iterator[_Request | None]:
        """The GETs of all parts in order; None while every buffer is in use."""
        self._free.extend(_buffer(size) for size in self._buffers(parts))
        for planned in parts:
            while not self._free:
                yield None
            part = self._begin(planned)
            if part.missing == 0:
                self._upload(part)
            for index, item in enumerate(planned.objects):
                if item.size:
                    yield _Request(part, index, item.size)

    def _buffers(self, parts: Sequence[PlannedPart]) -> list[int]:
        """Sizes in bytes of the buffers: two, or more where many connections would wait for two."""
        if not parts:
            return []
        largest = max(part.size + self._slack(part) * len(part.objects) for part in parts)
        count = sum(len(part.objects) for part in parts)
        mean = sum(part.size for part in parts) / count
        filling = self._transfer.connections * mean / max(largest, 1)
        return [max(largest, 1)] * min(len(parts), 8, 1 + max(1, -int(-filling // 1)))

    def _slack(self, part: PlannedPart) -> int:
        return 1 if self._settings.separators and part.encoding == PLAIN else 0

    def _begin(self, planned: PlannedPart) -> _Building:
        buffer = self._free.popleft()
        objects: list[PackedObject | None] = [
            None if item.size else PackedObject(0, READ_BY_LENGTH, False) for item in planned.objects
        ]
        slack = self._slack(planned)
        starts = list(accumulate((item.size + slack for item in planned.objects), initial=0))
        return _Building(planned, starts, buffer, objects.count(None), objects, buffer[: planned.size])

    def _window(self, part: _Building, index: int) -> memoryview:
        """Where an object lies while the part is filled."""
        start = part.starts[index]
        return part.buffer[start : start + part.planned.objects[index].size]

    # -- requests --------------------------------------------------------------------------------------

    def _send(self, request: _Request) -> None:
        request.attempts += 1
        request.deadline = time.monotonic() + self._settings.request_seconds(request.size)
        done = partial(self._put_event, request)
        part = request.part
        if request.guard is not None:
            self.requests["GET"] += 1
            request.handle = self._transfer.get(self._guard.source, None, memoryview(request.guard), done)
        elif request.index is None:
            self.requests["PUT"] += 1
            target = self._aggregated.child(part.planned.name)
            request.handle = self._transfer.put(
                target, part.body, part.crc64nvme, self._settings.headers, done
            )
        else:
            self.requests["GET"] += 1
            item = part.planned.objects[request.index]
            source = Location(self._raw_bucket, item.key)
            request.handle = self._transfer.get(source, item.etag, self._window(part, request.index), done)
        self._in_flight.add(request)

    def _put_event(self, subject: _Request | _Building | PlannedPart, result: object) -> None:
        self._events.append((subject, result))

    def _in_control(
        self, subject: _Building | PlannedPart, do: Callable[..., object], *arguments: object
    ) -> None:
        """Have something done beside the loop; its outcome comes back as an event."""

        def done(future: Future[object]) -> None:
            if not future.cancelled():
                self._put_event(subject, future.exception() or future.result())
                self._transfer.wake()

        self._control.submit(do, *arguments).add_done_callback(done)

    def _handle(self, subject: _Request | _Building | PlannedPart, result: Any) -> int:
        """Take one result; returns how many parts it finished."""
        if not isinstance(subject, _Request):
            if isinstance(result, Exception):
                raise result
            if isinstance(subject, _Building):
                self._put_part(subject)
                return 0
            self._copy_next()
            self._finished(result)
            return 1
        self._in_flight.discard(subject)
        subject.handle = None
        if subject.guard is not None:
            self._guarded(subject.part, subject.guard, result)
            return 0
        problem = (
            self._failure(subject, result) if isinstance(result, Exception) else self._check(subject, result)
        )
        if problem:
            self._retry(subject, problem)
            return 0
        self._limit = min(self._limit + 0.1, self._most_in_flight)
        if subject.index is None:
            return self._uploaded(subject.part, result)
        self._downloaded(subject.part, subject.index, result)
        return 0

    def _guarded(self, part: _Building, said: bytearray, result: Downloaded | Exception) -> None:
        """Write a part whose guard holds; whatever else came of the look, have the whole look taken."""
        size = result.size if isinstance(result, Downloaded) else 0
        if 0 < size <= len(said) and self._guard.holds(bytes(said[:size])):
            self._put_part(part)
        else:
            self._in_control(part, self._guard.otherwise)

    def _put_part(self, part: _Building) -> None:
        self._soon(_Request(part, None, len(part.body)))

    def _soon(self, request: _Request) -> None:
        """Send it before the GETs of later parts: it helps to give a buffer back."""
        heapq.heappush(self._waiting, (0.0, next(self._order), request))

    def _failure(self, request: _Request, error: Exception) -> Exception:
        """An object that is gone, or whose ETag S3 does not find, changed after it was planned."""
        if request.index is None or not isinstance(error, NotFoundError | InputChangedError):
            return error
        item = request.part.planned.objects[request.index]
        return changed(Location(self._raw_bucket, item.key), str(error))

    def _check(self, request: _Request, result: Downloaded | Uploaded) -> Exception | None:
        if isinstance(result, Uploaded):
            if result.crc64nvme not in (None, request.part.crc64nvme):
                return TransientError(f"{request.part.planned.name}: S3 stored other bytes than were sent")
            return None
        assert request.index is not None
        item = request.part.planned.objects[request.index]
        source = Location(self._raw_bucket, item.key)
        if result.etag != item.etag:
            return changed(source, f"its ETag is {result.etag}, {item.etag} was planned")
        if result.size != item.size:
            return TransientError(f"{source}: {result.size} of {item.size} bytes came")
        if result.checksum is not None:
            body = self._window(request.part, request.index)
            actual = crc.by_algorithm(result.checksum.algorithm, body)
            if actual != result.checksum.value:
                return TransientError(
                    f"{source}: the bytes that came have {result.checksum.algorithm} {actual:x}, S3 states "
                    f"{result.checksum.value:x}"
                )
        return None

    def _retry(self, request: _Request, problem: Exception) -> None:
        changed_once = isinstance(problem, InputChangedError) and request.attempts == 1
        may_pass = isinstance(problem, TransientError) and not isinstance(problem, ChangedBufferError)
        if not may_pass and not changed_once:
            raise problem
        if request.attempts >= ATTEMPTS:
            raise type(problem)(f"{problem} (after {request.attempts} tries)") from problem
        self.retries += 1
        longest = min(FIRST_WAIT_SECONDS * 2**request.attempts, LONGEST_WAIT_SECONDS)
        wait = random.uniform(longest / 2, longest)
        asked = problem.retry_after if isinstance(problem, TransientError) else None
        if asked is not None:
            wait = max(wait, min(asked, LONGEST_WAIT_SECONDS))
        now = time.monotonic()
        if isinstance(problem, ThrottledError):
            self.throttles += 1
            if now >= self._paused_until:
                # Once for each burst: the answers of one moment all say the same.
                self._limit = max(1.0, self._limit / 2)
                self._paused_until = now + min(wait, 1.0)
        log.debug("retry %d in %.1f s: %s", request.attempts, wait, problem)
        heapq.heappush(self._waiting, (now + wait, next(self._order), request))

    def _cancel_stalled(self) -> None:
        now = time.monotonic()
        for request in list(self._in_flight):
            if now > request.deadline and request.handle is not None:
                log.warning(
                    "no complete answer in %.0f s, trying again: %s",
                    self._settings.request_seconds(request.size),
                    self._name(request),
                )
                # Its callback brings it back as a failure that may pass.
                request.handle.cancel()

    def _name(self, request: _Request) -> str:
        if request.guard is not None:
            return f"GET {self._guard.source.key}"
        if request.index is None:
            return f"PUT {request.part.planned.name}"
        return f"GET {request.part.planned.objects[request.index].key}"

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
            value = crc.crc64(self._window(part, index))
        checked = stated.algorithm if stated else READ_BY_LENGTH
        part.objects[index] = PackedObject(value, checked, result.etag_is_md5)
        part.missing -= 1
        if part.missing == 0:
            self._upload(part)

    def _upload(self, part: _Building) -> None:
        pieces = self._close_gaps(part) if self._slack(part.planned) else self._pieces(part)
        # Of what was read, not of what lies in the buffer by now: the transfer holds that against it.
        part.crc64nvme = crc.concatenate(pieces)
        self._soon(_Request(part, None, GUARD_BYTES, guard=bytearray(GUARD_BYTES)))

    def _pieces(self, part: _Building) -> list[tuple[int, int]]:
        return [
            (done.crc64nvme or 0, item.size)
            for item, done in zip(part.planned.objects, _complete(part), strict=True)
        ]

    def _close_gaps(self, part: _Building) -> list[tuple[int, int]]:
        """Move the objects together, with a newline behind each plain one that has none."""
        pieces: list[tuple[int, int]] = []
        buffer = part.buffer
        end = 0
        for index, (item, done) in enumerate(zip(part.planned.objects, _complete(part), strict=True)):
            if not item.size:
                continue
            source = self._window(part, index)
            if source.nbytes and part.starts[index] != end:
                # Within one memoryview CPython moves overlapping ranges as memmove does.
                buffer[end : end + item.size] = source
            end += item.size
            pieces.append((done.crc64nvme or 0, item.size))
            if buffer[end - 1] != NEWLINE[0]:
                buffer[end : end + 1] = NEWLINE
                end += 1
                pieces.append((_NEWLINE_CRC, 1))
                part.objects[index] = PackedObject(done.crc64nvme, done.checked, done.etag_is_md5, 1)
        part.body = buffer[:end]
        return pieces

    def _uploaded(self, part: _Building, result: Uploaded) -> int:
        planned = part.planned
        packed = PackedPart(
            planned.name,
            planned.fingerprint,
            len(part.body),
            result.etag,
            part.crc64nvme,
            tuple(_complete(part)),
        )
        self._free.append(part.buffer)
        self._finished(packed)
        return 1

    def _finished(self, packed: PackedPart) -> None:
        self._done_parts += 1
        self._done_bytes += packed.size
        self._written(packed)

    def _copy_next(self) -> None:
        """Start one copy; the next one waits for it, so that looks at the claim come in between."""
        if self._copies:
            part = self._copies.popleft()
            self._in_control(part, self._copy, part)

    def _copy(self, planned: PlannedPart) -> PackedPart:
        (item,) = planned.objects
        source = Location(self._raw_bucket, item.key)
        target = self._aggregated.child(planned.name)
        before = self._store.head(source)
        if before is None or before.etag != item.etag:
            raise changed(source, "it is gone" if before is None else f"its ETag is {before.etag} now")
        self._guard.otherwise()
        self._store.copy(source, item.etag, item.size, target, self._settings.headers)
        after = self._store.head(target)
        if after is None:
            raise TransientError(f"{target}: is not there after S3 copied it")
        checked = PackedObject(None, READ_BY_LENGTH, before.etag_is_md5)
        return PackedPart(planned.name, planned.fingerprint, after.size, after.etag, None, (checked,))


_NEWLINE_CRC = crc.crc64(NEWLINE)


def _buffer(size: int) -> memoryview:
    """Memory for a part, in pages of 2 MiB where the system has them: it is gone through four times."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Not in every system's Python, nor in every kernel.
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _complete(part: _Building) -> list[PackedObject]:
    return [item for item in part.objects if item is not None]


def changed(source: Location, what: str) -> InputChangedError:
    """The error for a raw object that is no longer what was planned."""
    return InputChangedError(
        f"{source} changed after it was planned: {what}. Nothing is lost: clear the run from plan_hour on, "
        f"and the hour is planned and packed as it is now."
    )
