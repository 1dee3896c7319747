"""Restores the raw objects of a plan from the parts of their hours.

Every object is compared with its CRC in the manifest before it appears in the target, and on request with its ETag
too, where that was seen to be an MD5. An object whose bytes are wrong is named in the result, and the others are
restored.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from include.log_rollup import crc
from include.log_rollup.errors import ArchivedError, InputChangedError, NotFoundError, ProofError
from include.log_rollup.hour.parts import Piece
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.hour.records import PackedPart
from include.log_rollup.queries.batches import BATCH_BYTES, Batch, BatchReader, plan_batches
from include.log_rollup.queries.restore_plan import (
    ChosenPart,
    Failure,
    HourPlan,
    in_key_order,
    is_empty,
    ordered_batches,
    restored_object,
)
from include.log_rollup.queries.restore_targets import (
    RestoredObject,
    Target,
    UnusableNameError,
    Writer,
)
from include.log_rollup.storage.protocol import RestoreStore
from include.log_rollup.streams import Stream

T = TypeVar("T")
R = TypeVar("R")

ProgressCallback = Callable[[int, int], None]
"""Called with the number of bytes of objects that are done, and the total; from several threads, one at a time."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The result: how much was restored, and which objects were not; the size is in bytes."""

    objects: int
    size: int
    failures: Sequence[Failure]


def restore(
    store: RestoreStore,
    stream: Stream,
    plans: Iterable[HourPlan],
    target: Target,
    on_progress: ProgressCallback | None = None,
    *,
    with_md5: bool = False,
) -> Restored:
    """Restore what was planned to a target that was entered.

    Parts are read in parallel over the store's control connections, each in runs of up to 8 MiB.

    :param with_md5: also compare the MD5 of each object whose ETag was seen to be one. It takes more CPU than all
        else, and the CRC in the manifest is already that of bytes with this MD5.
    :raises ConfigurationError: if the target cannot be written to
    :raises RollupError: as the store raises
    """
    plans = list(plans)
    total = sum(plan.size - plan.present_size for plan in plans)
    return _Restore(store, stream, target, total, on_progress, with_md5).run(plans)


class _Restore:
    """Restores batches, on as many threads as the store has control connections."""

    def __init__(
        self,
        store: RestoreStore,
        stream: Stream,
        target: Target,
        total: int,
        on_progress: ProgressCallback | None,
        with_md5: bool,
    ) -> None:
        self._with_md5 = with_md5
        self._store = store
        self._stream = stream
        self._target = target
        self._total = total
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._local = threading.local()
        self._stopped = threading.Event()
        self._objects = self._size = self._done = 0
        self._failures: list[Failure] = []

    def run(self, plans: Sequence[HourPlan]) -> Restored:
        for plan in plans:
            self._failures.extend(plan.failures)
        workers = self._store.control_connections
        with ThreadPoolExecutor(workers, "log-rollup-restore") as threads:
            try:
                if self._target.is_ordered:
                    for plan in plans:
                        self._write_in_order(threads, workers, plan)
                else:
                    _run_all(threads, 2 * workers, self._restore, self._jobs(plans))
            except BaseException:
                # Don't wait for the other threads to finish their batches, which may have gigabytes.
                self._stopped.set()
                threads.shutdown(cancel_futures=True)
                raise
        return Restored(self._objects, self._size, self._failures)

    def _jobs(self, plans: Sequence[HourPlan]) -> Iterator["_Job"]:
        for plan in plans:
            for paths, part in self._parts(plan):
                planned, packed, wanted = part
                empty = [index for index in wanted if is_empty(planned, packed, index)]
                if empty:
                    yield _Job(paths, planned, packed, plan.names, Batch(empty, 0, 0))
                for batch in plan_batches(planned, packed, wanted):
                    yield _Job(paths, planned, packed, plan.names, batch)

    def _parts(self, plan: HourPlan) -> Iterator[tuple[HourPaths, ChosenPart]]:
        """The parts of an hour with the objects that were planned, from its manifest."""
        if not plan.indices:
            return
        reader = HourReader(self._store, self._stream, plan.hour)
        manifest = reader.manifest()
        if manifest is None or manifest.totals.plan_id != plan.plan_id:
            raise reader.superseded(
                "a run has replaced the manifest since the restore was planned", "start the command again"
            )
        for planned, packed in manifest.parts():
            wanted = plan.indices.get(planned.name)
            if wanted:
                yield reader.paths, (planned, packed, wanted)

    # -- objects in any order ---------------------------------------------------------------------------

    def _restore(self, job: "_Job") -> None:
        """Read a batch and write its objects to the target."""
        for item, outcome in self._read(job, self._target.begin):
            if isinstance(outcome, str):
                self._fail(job, item, outcome)
                continue
            try:
                if outcome is not None:
                    self._target.write(item, outcome)
            except UnusableNameError as error:
                self._fail(job, item, f"{error}")
            else:
                self._count(item)

    def _read(
        self, job: "_Job", begin: Callable[[RestoredObject], Writer]
    ) -> Iterator[tuple[RestoredObject, memoryview | str | None]]:
        """The objects of a batch: their right bytes, None after they were written in pieces, or what is wrong."""
        left = dict.fromkeys(job.batch.indices)
        incoming: _Incoming | None = None
        try:
            for piece in self._pieces(job):
                if self._stopped.is_set():
                    return
                item = job.object(self._stream, piece.index)
                has_md5 = item.etag_is_md5 and (self._with_md5 or item.crc64nvme is None)
                if len(piece.body) == item.size:
                    del left[piece.index]
                    yield item, _content_problem(item, piece.body, has_md5) or piece.body
                    continue
                if incoming is None:
                    incoming = _Incoming(item, begin, has_md5)
                incoming.add(piece.body)
                if piece.offset + len(piece.body) == item.size:
                    del left[piece.index]
                    problem, incoming = incoming.finish(), None
                    yield item, problem
        except (NotFoundError, InputChangedError) as error:
            reason = f"{error}: the part is gone or was replaced"
        except (ProofError, ArchivedError) as error:
            reason = f"{error}"
        else:
            reason = "the part has no bytes of it"
        finally:
            if incoming is not None:
                incoming.discard()
        for index in left:
            yield job.object(self._stream, index), reason

    def _pieces(self, job: "_Job") -> Iterator[Piece]:
        if job.batch.end == job.batch.start:
            return iter([Piece(index, 0, memoryview(b"")) for index in job.batch.indices])
        # Each thread has its own.
        if not hasattr(self._local, "reader"):
            self._local.reader = BatchReader(self._store)
        reader: BatchReader = self._local.reader
        return reader.read(job.paths.part(job.planned.name), job.planned, job.packed, job.batch)

    # -- objects in key order ---------------------------------------------------------------------------

    def _write_in_order(self, threads: ThreadPoolExecutor, workers: int, plan: HourPlan) -> None:
        """Write an hour's objects in key order, while the next batches are read."""
        found = list(self._parts(plan))
        if not found:
            return
        paths, parts = found[0][0], [part for _, part in found]
        for planned, packed, wanted in parts:
            for index in wanted:
                if is_empty(planned, packed, index):
                    job = _Job(paths, planned, packed, plan.names, Batch((), 0, 0))
                    self._count(job.object(self._stream, index))
        jobs = (_Job(paths, part[0], part[1], plan.names, batch) for part, batch in ordered_batches(parts))
        answers = _in_order(threads, workers, self._held, jobs)
        held: dict[tuple[str, int], bytes | str | _Job] = {}
        for place, index in in_key_order(parts):
            at = parts[place][0].name, index
            while at not in held:
                held.update(next(answers))
            job = _Job(paths, *parts[place][:2], plan.names, Batch((index,), 0, 0))
            self._write_next(job, index, held.pop(at))

    def _held(self, job: "_Job") -> dict[tuple[str, int], "bytes | str | _Job"]:
        """Read a batch into memory; the job itself for an object that is too large for it."""
        if job.batch.end - job.batch.start > BATCH_BYTES and len(job.batch.indices) == 1:
            return {(job.planned.name, job.batch.indices[0]): job}
        index_of = {job.planned.objects[index].key: index for index in job.batch.indices}
        return {
            (job.planned.name, index_of[item.key]): outcome
            if isinstance(outcome, str)
            else bytes(outcome or b"")
            for item, outcome in self._read(job, self._target.begin)
        }

    def _write_next(self, job: "_Job", index: int, held: "bytes | str | _Job") -> None:
        item = job.object(self._stream, index)
        if isinstance(held, bytes):
            self._target.write(item, held)
            self._count(item)
        elif isinstance(held, str):
            self._fail(job, item, held)
        else:
            for _, outcome in self._read(held, self._target.begin):
                if isinstance(outcome, str):
                    self._fail(job, item, f"{outcome}; bytes of it are in the output")
                    continue
                if outcome is not None:
                    self._target.write(item, outcome)
                self._count(item)

    # -- results ----------------------------------------------------------------------------------------

    def _count(self, item: RestoredObject) -> None:
        with self._lock:
            self._objects += 1
            self._size += item.size
            self._advance(item)

    def _fail(self, job: "_Job", item: RestoredObject, reason: str) -> None:
        with self._lock:
            self._failures.append(Failure(item.hour, item.key, job.planned.name, reason))
            self._advance(item)

    def _advance(self, item: RestoredObject) -> None:
        self._done += item.size
        if self._on_progress:
            self._on_progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Job:
    """A batch of a part of an hour; see :class:`HourPlan` for the names."""

    paths: HourPaths
    planned: PlannedPart
    packed: PackedPart
    names: Mapping[str, str]
    batch: Batch

    def object(self, stream: Stream, index: int) -> RestoredObject:
        """A raw object of the part."""
        return restored_object(stream, self.paths.hour, self.planned, self.packed, index, self.names)


class _Incoming:
    """An object that comes in several pieces, which are written as they come."""

    def __init__(
        self, item: RestoredObject, begin: Callable[[RestoredObject], Writer], has_md5: bool
    ) -> None:
        self._item = item
        self._crc = 0
        self._md5 = hashlib.md5(usedforsecurity=False) if has_md5 else None
        self._problem: str | None = None
        self._writer: Writer | None = None
        try:
            self._writer = begin(item)
        except UnusableNameError as error:
            self._problem = f"{error}"

    def add(self, body: memoryview) -> None:
        """Add the next bytes."""
        self._crc = crc.crc64(body, self._crc)
        if self._md5:
            self._md5.update(body)
        if self._writer:
            self._writer.write(body)

    def finish(self) -> str | None:
        """Let the object appear in the target if its bytes are right; else what is wrong."""
        problem = self._problem or _problem(
            self._item, self._crc, self._md5.hexdigest() if self._md5 else None
        )
        if problem is None and self._writer:
            try:
                self._writer.commit()
            except UnusableNameError as error:
                problem = f"{error}"
        if problem is not None:
            self.discard()
        return problem

    def discard(self) -> None:
        """Remove what was written."""
        if self._writer:
            self._writer.discard()


def _content_problem(item: RestoredObject, body: memoryview, has_md5: bool) -> str | None:
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest() if has_md5 else None
    return _problem(item, crc.crc64(body), digest)


def _problem(item: RestoredObject, value: int, md5: str | None) -> str | None:
    """What is wrong with the bytes of an object; None if nothing is.

    :param value: their CRC64-NVME
    :param md5: their MD5; None if the ETag is not one
    """
    if item.crc64nvme is not None and value != item.crc64nvme:
        return (
            f"its bytes in the part have the CRC64-NVME {crc.to_hex(value)}, but the manifest states "
            f"{crc.to_hex(item.crc64nvme)}"
        )
    if md5 is not None and md5 != item.etag:
        return f"its bytes in the part have the MD5 {md5}, but its ETag was {item.etag}"
    return None


def _run_all(
    threads: ThreadPoolExecutor, most: int, function: Callable[[T], None], items: Iterable[T]
) -> None:
    """Call a function for each item, and read items only as far as calls are about to start.

    :param most: the most calls that run or wait
    """
    pending: set[Future[None]] = set()
    for item in items:
        if len(pending) >= most:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        pending.add(threads.submit(function, item))
    for future in pending:
        future.result()


def _in_order(
    threads: ThreadPoolExecutor, most: int, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """The results of a function for each item, in order; at most some calls run ahead."""
    pending: deque[Future[R]] = deque()
    for item in items:
        if len(pending) >= most:
            yield pending.popleft().result()
        pending.append(threads.submit(function, item))
    while pending:
        yield pending.popleft().result()
