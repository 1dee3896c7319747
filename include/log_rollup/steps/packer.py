"""Packs the parts of a shard: raw objects into the buffers of parts, and parts into the bucket."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from include.log_rollup import crc, limits
from include.log_rollup.decompression import COMPRESSED_ENCODINGS, Inspection, inspect
from include.log_rollup.errors import TransientError
from include.log_rollup.hour.plan import PlannedPart, WriteOptions
from include.log_rollup.hour.records import READ_BY_LENGTH, PackedObject, PackedPart
from include.log_rollup.steps.pack_requests import (
    CopyObject,
    GetObject,
    PartTarget,
    PutPart,
    ReadClaim,
    input_changed,
)
from include.log_rollup.steps.part_buffers import (
    MAX_BUFFERS,
    CompressedBatch,
    FramedPart,
    FrameIndex,
    PartBody,
    PartBuffer,
    WrittenPart,
    allocate,
    buffer_count,
    buffer_size,
    compress_buffer,
)
from include.log_rollup.steps.range_requests import GetRange, PassedObject, PutRange, RangeCopy, range_count
from include.log_rollup.steps.recompression import recompress_buffer
from include.log_rollup.steps.request_loop import Request, RequestLoop
from include.log_rollup.storage.protocol import Location, ObjectHead, ObjectStore, Transfer
from include.log_rollup.units import GIB, MIB, format_size

log = logging.getLogger(__name__)

# CopyObject takes at most 5 GiB (https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html); a larger
# object is copied in ranges of COPY_RANGE_BYTES.
LARGEST_COPY_BYTES = 5 * GIB
COPY_RANGE_BYTES = GIB
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_RANGES = 10_000
# Compressed parts that are in memory at a time: one is filled, one is written, one waits for its last frame.
MAX_OPEN_PARTS = 3
# Memory for the content of frames; a larger frame is one of few.
FRAME_MEMORY_BYTES = 72 * MIB
# zlib and the other libraries release the interpreter lock, so that the event loop goes on meanwhile.
DECOMPRESSION_THREADS = 2
# A thread that recompresses objects with 30 MiB of content each takes up to 90 MiB, besides its buffer.
RECOMPRESSION_THREADS = 2


@dataclass(frozen=True, slots=True)
class PackSettings:
    """How parts are written.

    :param options: what decides the bytes of parts, and how they are stored
    :param connect_timeout: for connecting, and again for the TLS handshake
    :param response_timeout: from the request to the first byte of the answer
    :param check_encoding: decompress each compressed object; one that is damaged gets a part of its own
    :param range_bytes: size of the ranges in which large objects pass through to another endpoint
    """

    options: WriteOptions = field(default_factory=WriteOptions)
    connect_timeout: timedelta = limits.DEFAULT_CONNECT_TIMEOUT
    response_timeout: timedelta = limits.DEFAULT_RESPONSE_TIMEOUT
    check_encoding: bool = False
    range_bytes: int = 32 * MIB

    def request_seconds(self, size: int, slowest: int = limits.SLOWEST_BODY_BYTES_PER_SECOND) -> float:
        """The time limit of one request, in seconds.

        :param size: of the body, or of what the store copies, in bytes
        :param slowest: bytes per second
        """
        waits = 2 * self.connect_timeout + self.response_timeout
        return waits.total_seconds() + size / slowest


@dataclass(frozen=True, slots=True)
class OwnershipCheck:
    """Decides before every try to write a part whether the hour is still this run's.

    Fast path: the claim is read over the connections of the transfer, and ``is_current`` allows the write. If it
    doesn't, or the claim cannot be read, ``recheck`` decides with requests of its own, on another thread.

    :param claim: where the claim is
    :param is_current: takes the content of the claim; returns whether that allows the write
    :param recheck: returns whether the part may be written, or False if the hour is complete already; raises
        SupersededError if another run owns the hour
    """

    claim: Location
    is_current: Callable[[bytes], bool]
    recheck: Callable[[], bool]


class ShardPacker:
    """Packs the parts of one shard; use it once.

    A part goes through these states:

    1. *planned*, until a buffer is free. The few buffers bound the memory.
    2. *downloading*: each raw object is read with If-Match on the planned ETag into the buffer, at its offset in
       the part. Its length, ETag and CRC are compared.
    3. *compressing*, only with compression: other threads compress the part frame by frame. The buffers then hold
       frames, or with ``recompress`` what becomes a few frames.
       *decompressing*, only with ``check_encoding``: other threads decompress the objects to find damage.
    4. *reading the claim*, before every try to write.
    5. *uploading* in one PUT with the part's CRC; then the buffer is free again.

    The next parts download while earlier ones upload. An object larger than a part needs no buffer: the store
    copies it, in ranges if it has more than 5 GiB. If raw objects and parts have different connections, it passes
    through the same buffers in ranges, as a multipart upload; so it does on the way into an archive class, where
    it cannot be read back, if the store states no CRC of its copy.

    :param store: begins and completes multipart uploads
    :param transfer: moves the bodies; its ``connections`` bound what is in flight
    :param aggregated: prefix below which the parts lie
    :param raw: any location of the raw bucket
    :param ownership: used before every try to write a part
    :param written: called from the thread of :meth:`run` with each planned part and what was written for it
    """

    def __init__(
        self,
        store: ObjectStore,
        transfer: Transfer,
        aggregated: Location,
        raw: Location,
        settings: PackSettings,
        ownership: OwnershipCheck,
        written: Callable[[PlannedPart, list[WrittenPart]], None],
    ) -> None:
        self._store = store
        self._connections = transfer.connections
        self._raw = raw
        self._settings = settings
        self._ownership = ownership
        self._written = written
        self._target = PartTarget(aggregated, settings.options.headers)
        self._loop = RequestLoop(transfer, settings.request_seconds)
        # Calls of the store have one connection, apart from the transfer's, so they run one at a time.
        self._store_thread = ThreadPoolExecutor(1, "log-rollup-control")
        self._decompression = (
            ThreadPoolExecutor(DECOMPRESSION_THREADS, "log-rollup-decompression")
            if settings.check_encoding or settings.options.ensure_newline
            else None
        )
        self._codec = settings.options.codec
        threads = len(os.sched_getaffinity(0))
        if settings.options.recompress:
            threads = min(threads, RECOMPRESSION_THREADS)
        self._compression = ThreadPoolExecutor(threads, "log-rollup-compression") if self._codec else None
        # Compressed parts of which some frames are in memory.
        self._open_parts = 0
        self._free_buffers: deque[memoryview] = deque()
        self._is_archived = settings.options.is_archived
        # Large objects on the way into an archive class that have no copy of which the store states the CRC.
        self._unstated: list[PlannedPart] = []
        # Ranges of large objects that can be downloaded: their uploads have begun.
        self._ranges: deque[tuple[PassedObject, int]] = deque()
        self._total_parts = self._done_parts = self._done_bytes = 0
        self._started = 0.0

    def run(self, parts: Sequence[PlannedPart]) -> bool:
        """Write these parts.

        :returns: False if it stopped because the hour is complete already, by the ownership check
        :raises InputChangedError: if a raw object is no longer what was planned
        :raises RollupError: if S3 refuses, or still fails after the last try; parts that are written stay
        """
        self._total_parts = len(parts)
        self._started = time.monotonic()
        try:
            if parts:
                self._loop.run(self._first_requests(parts))
        finally:
            self._loop.close()
            self._store_thread.shutdown(cancel_futures=True)
            for pool in (self._decompression, self._compression):
                if pool is not None:
                    pool.shutdown(cancel_futures=True)
        return self._done_parts == self._total_parts

    @property
    def attempted(self) -> Mapping[str, str]:
        """Names of the parts that were sent, written or not, each with the planned part it was made for."""
        return self._target.attempted

    @property
    def parts_written(self) -> int:
        """How many planned parts are written."""
        return self._done_parts

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests were sent, by operation; each try counts."""
        return self._loop.sent

    @property
    def retries(self) -> int:
        """How many tries failed and were repeated."""
        return self._loop.retries

    @property
    def throttles(self) -> int:
        """How many of them S3 answered with a request to slow down."""
        return self._loop.throttles

    def progress(self) -> str:
        """One line about the progress; safe to call from any thread."""
        seconds = max(time.monotonic() - self._started, 0.001)
        rate = self._done_bytes / seconds / 1e6
        limit = self._loop.limit
        slow = f" | slowed down to {limit.value} requests" if limit.is_reduced else ""
        return (
            f"parts {self._done_parts}/{self._total_parts} | {format_size(self._done_bytes)} written | "
            f"{rate:.0f} MB/s | retries {self.retries}{slow}"
        )

    # -- downloads -------------------------------------------------------------------------------------

    def _first_requests(self, parts: Sequence[PlannedPart]) -> Iterator[Request[Any] | None]:
        """Copies, then the downloads in order; None while every buffer is in use."""
        packed = [part for part in parts if not part.copied and not part.compression]
        compressed = [part for part in parts if part.compression]
        large = [part for part in parts if part.copied]
        passed = [] if self._store.copies_raw else large
        if not passed:
            # A copy in ranges has no CRC of the whole object.
            self._unstated = [part for part in large if self._is_archived and part.size > LARGEST_COPY_BYTES]
            for planned in large:
                if planned not in self._unstated:
                    yield self._first_copy_request(planned)
        framed = [self._framed(part) for part in compressed]
        self._allocate_buffers(packed, [frame for part in framed for frame in part.frames], passed)
        for planned in packed:
            while not self._free_buffers:
                yield None
            yield from self._downloads(
                PartBuffer(planned, self._settings.options, self._free_buffers.popleft())
            )
        for part in framed:
            while self._open_parts >= MAX_OPEN_PARTS:
                yield None
            self._open_parts += 1
            for number, frame in enumerate(part.frames):
                while not self._free_buffers:
                    yield None
                memory = self._free_buffers.popleft()
                yield from self._downloads(
                    PartBuffer(frame, self._settings.options, memory, FrameIndex(part, number))
                )
        yield from self._range_requests(passed)
        if self._is_archived and not passed and large:
            yield from self._pass_unstated()

    def _pass_unstated(self) -> Iterator[Request[Any] | None]:
        """Pass the large objects through of whose copies the store states no CRC, after all other parts."""
        while self._done_parts + len(self._unstated) < self._total_parts:
            yield None
        if self._unstated:
            self._free_buffers.clear()
            self._allocate_buffers([], [], self._unstated)
            yield from self._range_requests(self._unstated)

    def _downloads(self, part: PartBuffer) -> Iterator[GetObject]:
        """The downloads into a buffer."""
        if part.missing == 0:
            # All its objects are empty.
            self._full(part)
        for index, item in enumerate(part.planned.objects):
            if item.size:
                yield GetObject(self._raw.at(item.key), part, index, self._downloaded)

    def _framed(self, part: PlannedPart) -> FramedPart:
        assert self._codec is not None, "pack_shard refuses parts that were planned with other settings"
        return FramedPart(part, self._codec, self._settings.options)

    def _allocate_buffers(
        self, packed: Sequence[PlannedPart], frames: Sequence[PlannedPart], passed: Sequence[PlannedPart]
    ) -> None:
        size = count = 0
        if frames:
            size = max(buffer_size(frame, self._settings.options) for frame in frames)
            # Two more than downloads need: they are being compressed.
            count = min(buffer_count(frames, size, self._connections) + 2, max(2, FRAME_MEMORY_BYTES // size))
        if packed:
            size = max(size, *(buffer_size(part, self._settings.options) for part in packed))
            count = max(count, buffer_count(packed, size, self._connections))
        if passed:
            size = max(size, *(self._range_bytes(part) for part in passed))
            ranges = sum(range_count(part.size, self._range_bytes(part)) for part in passed)
            count = max(count, min(ranges, MAX_BUFFERS, self._connections))
            # Only objects of more than 10,000 parts need larger buffers. Then there are fewer.
            count = min(count, max(1, MAX_BUFFERS * self._settings.range_bytes // size))
        self._free_buffers.extend(allocate(size) for _ in range(count))

    def _downloaded(self, part: PartBuffer, index: int) -> None:
        encoding = part.planned.encoding
        if self._decompression is None or encoding not in COMPRESSED_ENCODINGS:
            self._object_ready(part)
            return
        self._loop.call(
            self._decompression,
            partial(inspect, encoding, part.window(index)),
            partial(self._decompressed, part, index),
        )

    def _decompressed(self, part: PartBuffer, index: int, found: Inspection) -> None:
        part.lacks_newline[index] = found.lacks_newline
        if found.damage is not None and self._settings.check_encoding:
            source = self._raw.at(part.planned.objects[index].key)
            log.warning("%s cannot be decompressed (%s): it gets a part of its own", source, found.damage)
            part.set_damaged(index)
        self._object_ready(part)

    def _object_ready(self, part: PartBuffer) -> None:
        part.missing -= 1
        if part.missing == 0:
            self._full(part)

    def _full(self, part: PartBuffer) -> None:
        """All objects of a buffer have arrived."""
        frame = part.frame
        if frame is None:
            for body in part.bodies():
                self._upload(body)
            return
        assert self._compression is not None
        self._loop.call(
            self._compression,
            partial(
                recompress_buffer if part.planned.recompressed else compress_buffer, part, frame.part.codec
            ),
            partial(self._compressed, part.memory, frame),
        )

    def _compressed(self, memory: memoryview, frame: FrameIndex, compressed: CompressedBatch) -> None:
        self._free_buffers.append(memory)
        frame.part.set_compressed(frame.index, compressed)
        if frame.part.missing == 0:
            for body in frame.part.bodies():
                self._upload(body)

    # -- uploads ---------------------------------------------------------------------------------------

    def _upload(self, body: PartBody) -> None:
        put = PutPart(self._target, body, self._claim_before, self._uploaded)
        self._loop.queue(self._claim_before(put))

    def _uploaded(self, body: PartBody, etag: str) -> None:
        part = body.buffer
        part.written.append(WrittenPart(body.planned, body.packed(etag)))
        part.unwritten -= 1
        if part.unwritten:
            return
        if isinstance(part, FramedPart):
            self._open_parts -= 1
        else:
            self._free_buffers.append(part.memory)
        self._finished(part.planned, part.written)

    def _finished(self, planned: PlannedPart, written: list[WrittenPart]) -> None:
        self._done_parts += 1
        self._done_bytes += sum(part.packed.size for part in written)
        self._written(planned, written)
        if self._done_parts == self._total_parts:
            self._loop.stop()

    # -- the claim -------------------------------------------------------------------------------------

    def _claim_before(self, write: Request[Any]) -> ReadClaim:
        """The request that reads the claim, and then sends a write if the hour is still this run's."""
        return self._read_claim(partial(self._loop.queue, write))

    def _read_claim(self, write: Callable[[], None]) -> ReadClaim:
        check = self._ownership
        return ReadClaim(check.claim, check.is_current, write, partial(self._recheck, write))

    def _recheck(self, write: Callable[[], None]) -> None:
        def rechecked(may_write: bool) -> None:
            if may_write:
                write()
            else:
                self._loop.stop()

        self._loop.call(self._store_thread, self._ownership.recheck, rechecked)

    # -- copies ----------------------------------------------------------------------------------------

    def _first_copy_request(self, planned: PlannedPart) -> ReadClaim:
        if planned.size > LARGEST_COPY_BYTES:
            return self._read_claim(partial(self._begin_range_copy, planned))
        source = self._raw.at(planned.objects[0].key)
        return self._claim_before(CopyObject(source, self._target, planned, self._claim_before, self._copied))

    def _copied(self, planned: PlannedPart, etag: str, stored: int | None = None) -> None:
        if self._is_archived and stored is None:
            # Some servers state the CRC of a copy only when they are asked for the object.
            head = partial(self._store.head, self._target.attempt(planned))
            self._loop.call(self._store_thread, head, partial(self._copied_to_archive, planned, etag))
            return
        # Validation reads the rest from the store: the CRC, and whether the ETag can be an MD5.
        unproven = PackedObject(None, READ_BY_LENGTH, False)
        packed = PackedPart(planned.name, planned.fingerprint, planned.size, etag, None, (unproven,))
        self._finished(planned, [WrittenPart(planned, packed)])

    def _copied_to_archive(self, planned: PlannedPart, etag: str, head: ObjectHead | None) -> None:
        if head is not None and head.crc64nvme is not None:
            self._copied(planned, etag, head.crc64nvme)
        else:
            self._unstated.append(planned)

    def _begin_range_copy(self, planned: PlannedPart) -> None:
        location = self._target.attempt(planned)
        self._loop.call(
            self._store_thread,
            partial(self._store.begin_upload, location, self._target.headers),
            partial(self._copy_ranges, planned, location),
        )

    def _copy_ranges(self, planned: PlannedPart, location: Location, upload_id: str) -> None:
        source = self._raw.at(planned.objects[0].key)
        copy = RangeCopy(source, location, planned, upload_id, COPY_RANGE_BYTES)
        for request in copy.requests(self._ranges_copied):
            self._loop.queue(request)

    def _ranges_copied(self, copy: RangeCopy) -> None:
        def completed(etag: str | None) -> None:
            if etag is None:
                self._loop.stop()
            else:
                self._copied(copy.planned, etag)

        self._loop.call(self._store_thread, partial(self._complete_range_copy, copy), completed)

    def _complete_range_copy(self, copy: RangeCopy) -> str | None:
        """Complete the multipart upload, if the hour is still this run's.

        :returns: the ETag of the part; None if the hour is complete already
        """
        if not self._ownership.recheck():
            return None
        self._store.finish_upload(copy.target, copy.upload_id, copy.etags)
        after = self._store.head(copy.target)
        if after is None:
            raise TransientError(f"{copy.target}: is not there after S3 copied it")
        return after.etag

    # -- large objects that pass through ---------------------------------------------------------------

    def _range_bytes(self, planned: PlannedPart) -> int:
        # Rounded up.
        return max(self._settings.range_bytes, -(-planned.size // MAX_RANGES))

    def _range_requests(self, parts: Sequence[PlannedPart]) -> Iterator[Request[Any] | None]:
        """Begin the uploads, then download their ranges; None while no upload has begun or no buffer is free."""
        for planned in parts:
            yield self._read_claim(partial(self._begin_passing, planned))
        left = sum(range_count(planned.size, self._range_bytes(planned)) for planned in parts)
        while left:
            if self._ranges and self._free_buffers:
                passed, number = self._ranges.popleft()
                left -= 1
                yield GetRange(passed, number, self._free_buffers.popleft(), self._range_downloaded)
            else:
                yield None

    def _begin_passing(self, planned: PlannedPart) -> None:
        location = self._target.attempt(planned)
        self._loop.call(
            self._store_thread,
            partial(self._store.begin_upload, location, self._target.headers, with_crc=True),
            partial(self._pass_ranges, planned, location),
        )

    def _pass_ranges(self, planned: PlannedPart, location: Location, upload_id: str) -> None:
        source = self._raw.at(planned.objects[0].key)
        passed = PassedObject(source, location, planned, upload_id, self._range_bytes(planned))
        self._ranges.extend((passed, number) for number in range(1, passed.missing + 1))

    def _range_downloaded(self, passed: PassedObject, number: int, memory: memoryview) -> None:
        self._loop.queue(PutRange(passed, number, memory, self._range_written))

    def _range_written(self, passed: PassedObject, memory: memoryview) -> None:
        self._free_buffers.append(memory)
        if passed.missing:
            return

        def completed(packed: PackedPart | None) -> None:
            if packed is None:
                self._loop.stop()
            else:
                self._finished(passed.planned, [WrittenPart(passed.planned, packed)])

        self._loop.call(self._store_thread, partial(self._complete_passing, passed), completed)

    def _complete_passing(self, passed: PassedObject) -> PackedPart | None:
        """Complete the upload of an object that passed through, if the hour is still this run's.

        :returns: the part; None if the hour is complete already
        :raises InputChangedError: if the raw object has changed
        :raises TransientError: if the received bytes don't have the CRC that the source states
        """
        planned, (item,), value = passed.planned, passed.planned.objects, passed.crc64nvme
        if not self._ownership.recheck():
            return None
        before = self._store.head(passed.source)
        if before is None or before.etag != item.etag:
            raise input_changed(
                passed.source, "it is gone" if before is None else f"its ETag is {before.etag}"
            )
        stated = before.crc64nvme
        if stated not in (None, value):
            raise TransientError(
                f"{passed.source}: the received bytes have {crc.CRC64NVME} {value:x}, S3 states {stated:x}"
            )
        self._store.finish_upload(passed.target, passed.upload_id, passed.etags, value)
        after = self._store.head(passed.target)
        if after is None:
            raise TransientError(f"{passed.target}: is not there after its upload was completed")
        checked = READ_BY_LENGTH if stated is None else crc.CRC64NVME
        done = PackedObject(value, checked, before.etag_is_md5)
        return PackedPart(planned.name, planned.fingerprint, planned.size, after.etag, value, (done,))
