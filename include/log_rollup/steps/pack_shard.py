"""The step pack_shard: what of a shard is missing is packed, and a receipt is kept of it."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from include.log_rollup.errors import RollupError, SupersededError
from include.log_rollup.hour.layout import parse_hour
from include.log_rollup.hour.parts import is_as_written
from include.log_rollup.hour.plan import PlannedPart, ShardRef
from include.log_rollup.hour.records import Measured, PackedPart, Receipt, Records, ShardPlan, parse_claim
from include.log_rollup.hour.state import HourState
from include.log_rollup.monitor import Monitor, check_open_file_limit, cpu_seconds
from include.log_rollup.steps.packer import OwnershipCheck, PackSettings, ShardPacker
from include.log_rollup.steps.part_buffers import WrittenPart
from include.log_rollup.storage.protocol import Location, ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)

# How often a receipt is written while packing: a process that is killed loses no more than this.
JOURNAL_SECONDS = 2.0


def pack_shard(
    store: ObjectStore,
    stream: Stream,
    ref: ShardRef,
    tried: Callable[[Measured], None] = lambda _: None,
) -> Measured:
    """Pack what is missing of a shard.

    Parts that are there as the receipt says are left alone. The receipt is written every few parts and after a
    failure, so that a retry goes on where this try ended. If another run takes over the hour, the parts that this
    try wrote and that run does not need are removed.

    :param tried: called with what this try measured, if it failed too
    :returns: the same
    :raises SupersededError: if the hour is being built under another plan
    :raises ResourceLimitError: if the open-file limit is too low for the stream's connections
    :raises RollupError: as :meth:`ShardPacker.run` and the store raise
    """
    check_open_file_limit(stream.max_connections)
    started, cpu_before = time.monotonic(), cpu_seconds()
    state = HourState(store, stream, parse_hour(ref.hour))
    paths, records = state.paths, state.records
    nothing = Measured(max_connections=stream.max_connections)
    if state.is_complete_under(ref.plan_id):
        return _already_complete(ref, nothing)
    shard = records.read_shard(paths.shard(ref.plan_id, ref.shard), paths.raw.key)
    if shard is None:
        if records.is_marked(paths.marker, ref.plan_id):
            # Another run is about to tidy up.
            return _already_complete(ref, nothing)
        raise SupersededError(
            f"shard {ref.shard} of plan {ref.plan_id} is not under {paths.work} any more, is damaged, or another "
            f"version wrote it; clear the run from plan_hour on"
        )
    target = paths.receipt(ref.plan_id, ref.shard)
    before = records.read_receipt(target) or Receipt(ref.plan_id, ref.shard)
    # Without a receipt nothing is left alone, and what is there does not matter.
    there = state.inventory().parts if before.parts else {}
    done = _Done(before, {part.name: part for part in before.parts if is_as_written(part, there)})
    todo = [part for part in shard.parts if not done.has(part)]
    log.info(
        "shard %d: %d parts, %d objects, %s; %d parts are there already",
        ref.shard, ref.parts, ref.objects, format_size(ref.bytes), len(shard.parts) - len(todo),
    )  # fmt: skip
    if todo and _is_marked_or_unmark(state, ref.plan_id):
        return _already_complete(ref, nothing)

    ownership = OwnershipCheck(
        paths.claim,
        is_current=lambda claim: parse_claim(claim).plan_id == ref.plan_id,
        recheck=lambda: not state.is_complete_under(ref.plan_id),
    )
    journal = Journal(records, target, before, done.of(shard))
    transfer = store.open_transfer(stream.raw.bucket, stream.aggregated.bucket)
    packer = ShardPacker(
        store,
        transfer,
        paths.aggregated,
        stream.raw.bucket,
        settings_of(stream),
        ownership,
        journal.add,
    )
    monitor = Monitor(log, store.port, stream.max_connections, packer.progress)

    def measured() -> Measured:
        requests = dict(store.requests)
        for name, count in packer.requests.items():
            requests[name] = requests.get(name, 0) + count
        return Measured(
            max_connections=stream.max_connections,
            sockets=monitor.peaks.sockets,
            open_files=monitor.peaks.open_files,
            rss_bytes=monitor.peaks.rss_bytes,
            seconds=round(time.monotonic() - started, 3),
            cpu_seconds=round(cpu_seconds() - cpu_before, 3),
            requests=requests,
            retries=packer.retries,
            throttles=packer.throttles,
            parts_written=packer.parts_written,
            parts_left_alone=len(shard.parts) - len(todo),
        )

    try:
        with monitor:
            try:
                all_written = packer.run(todo)
            finally:
                transfer.close()
        # Another run may have taken over before the last write.
        owned = not todo or (all_written and ownership.recheck())
    except SupersededError:
        journal.drop()
        _remove_overtaken(state, shard, packer.attempted)
        raise
    except BaseException:
        result = measured()
        journal.save(result)
        tried(result)
        raise
    if not owned:
        journal.drop()
        return _already_complete(ref, nothing)
    result = measured()
    tried(result)
    journal.close(shard, result)
    log.info("done: %s | peak sockets %d/%d", packer.progress(), result.sockets, stream.max_connections)
    return result


def _already_complete(ref: ShardRef, nothing: Measured) -> Measured:
    log.info("the hour is complete under plan %s; nothing is to be done", ref.plan_id)
    return nothing


def _is_marked_or_unmark(state: HourState, plan_id: str) -> bool:
    """Whether the completion marker of this plan is there; one of another plan is removed before parts change."""
    marker, etag = state.records.read_marker_with_etag(state.paths.marker)
    if marker is None:
        return False
    if marker.get("plan_id") == plan_id:
        # plan_hour has removed every marker that was there: this one another run has written since.
        return True
    # The marker was read before the claim, so it is older than this plan's claim.
    state.check_current(plan_id)
    state.remove_marker(etag)
    return False


def _remove_overtaken(state: HourState, shard: ShardPlan, attempted: Mapping[str, str]) -> None:
    """Remove what this try wrote and nobody needs; if that fails, the next validation of the hour does it."""
    try:
        planned = {part.name: part for part in shard.parts}
        state.remove_overtaken(
            shard.plan_id, {name: planned[made_for] for name, made_for in attempted.items()}
        )
    except RollupError as error:
        log.warning("could not remove parts of the plan that was overtaken: %s", error)


@dataclass(frozen=True, slots=True)
class _Done:
    """Which parts of a shard are there, by an earlier try's receipt."""

    before: Receipt
    parts: Mapping[str, PackedPart]

    def has(self, planned: PlannedPart) -> bool:
        """Whether a planned part is there, as one part or as those it was split into."""
        return all(
            (done := self.parts.get(part.name)) is not None and done.fingerprint == part.fingerprint
            for part in self.before.splits.get(planned.name, (planned,))
        )

    def of(self, shard: ShardPlan) -> dict[str, list[WrittenPart]]:
        """What was written for each planned part that is there."""
        return {
            planned.name: [
                WrittenPart(part, self.parts[part.name])
                for part in self.before.splits.get(planned.name, (planned,))
            ]
            for planned in shard.parts
            if self.has(planned)
        }


def settings_of(stream: Stream) -> PackSettings:
    """How the parts of a stream are written."""
    headers: Mapping[str, str] = {"x-amz-storage-class": stream.storage_class} if stream.storage_class else {}
    return PackSettings(
        stream.write_options,
        headers,
        stream.connect_timeout,
        stream.response_timeout,
        stream.check_encoding,
    )


class Journal:
    """Keeps a shard's receipt in step with the parts that are written, without holding the packing up.

    :param done: what was written before for planned parts that are there, by the planned part's name
    """

    def __init__(
        self, records: Records, target: Location, before: Receipt, done: dict[str, list[WrittenPart]]
    ) -> None:
        self._records = records
        self._target = target
        self._before = before
        self._done = done
        self._executor = ThreadPoolExecutor(1, "log-rollup-journal")
        self._pending: Future[None] | None = None
        self._due = 0.0

    def add(self, planned: PlannedPart, written: list[WrittenPart]) -> None:
        """Note what was written for a planned part; it is recorded now, or with those that come soon."""
        self._done[planned.name] = written
        now = time.monotonic()
        if now < self._due:
            return
        if self._pending is not None:
            if not self._pending.done():
                return
            self._pending.result()
        self._due = now + JOURNAL_SECONDS
        self._pending = self._executor.submit(self._write, self._snapshot(self._before.measured))

    def drop(self) -> None:
        """Write nothing more: another run owns this hour."""
        self._executor.shutdown()

    def save(self, measured: Measured) -> None:
        """After a failure of the packing, record all parts that are there, for the next try.

        That this fails too is only logged: the failure of the packing is the one to report.
        """
        self._executor.shutdown()
        try:
            self._write(self._snapshot(self._before.measured + measured))
        except RollupError as error:
            log.warning("could not record what was packed, so it will be packed again: %s", error)

    def close(self, shard: ShardPlan, measured: Measured) -> None:
        """Write the finished receipt, its parts in the order of the plan."""
        self._executor.shutdown()
        self._done = {part.name: self._done[part.name] for part in shard.parts}
        self._write(self._snapshot(self._before.measured + measured))

    def _snapshot(self, measured: Measured) -> Receipt:
        splits = {
            name: tuple(part.planned for part in written)
            for name, written in self._done.items()
            if written[0].planned.split_of
        }
        packed = tuple(part.packed for written in self._done.values() for part in written)
        return Receipt(self._before.plan_id, self._before.shard, packed, measured, splits)

    def _write(self, receipt: Receipt) -> None:
        self._records.write_receipt(self._target, receipt)
