"""The step pack_shard: packs the missing parts of one shard and keeps a receipt of them."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from include.log_rollup.errors import ConfigurationError, ProofError, RollupError, SupersededError
from include.log_rollup.hour.changes import first_keys
from include.log_rollup.hour.layout import parse_hour
from include.log_rollup.hour.parts import is_as_written
from include.log_rollup.hour.plan import PlannedPart, ShardRef, is_packed_as_planned, is_planned_again
from include.log_rollup.hour.records import Measured, PackedPart, Receipt, Records, ShardPlan
from include.log_rollup.hour.state import HourState
from include.log_rollup.monitor import Monitor, check_open_file_limit, cpu_seconds
from include.log_rollup.steps.packer import OwnershipCheck, PackSettings, ShardPacker
from include.log_rollup.steps.part_buffers import WrittenPart
from include.log_rollup.storage.protocol import Location, ObjectStore, Transfer
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size

log = logging.getLogger(__name__)

# Minimum time between two receipts while packing: a process that is killed loses about this much work.
JOURNAL_SECONDS = 2.0


def pack_shard(
    store: ObjectStore,
    stream: Stream,
    ref: ShardRef,
    tried: Callable[[Measured], None] = lambda _: None,
) -> Measured:
    """Pack the missing parts of a shard.

    Parts that exist as the receipt says are left alone. The receipt is written every few parts and after a
    failure, so that a retry continues where this try ended. If another run takes over the hour, this try removes
    the parts that it wrote and that the other run does not need.

    :param tried: called with what this try measured, also if it failed
    :returns: the same; only the connections if another run has completed the hour under this plan
    :raises SupersededError: if the hour is being built under another plan
    :raises ProofError: if a part that the plan keeps is not as it was proven any more
    :raises ConfigurationError: if the hour was planned with other settings than the stream has now
    :raises ResourceLimitError: if the open-file limit is too low for the stream's connections
    :raises RollupError: as :meth:`ShardPacker.run` and the store raise
    """
    check_open_file_limit(stream.max_connections)
    measured = _ShardTask(store, stream, ref).run(tried)
    if measured is None:
        log.info("the hour is complete under plan %s; nothing to do", ref.plan_id)
        return Measured(max_connections=stream.max_connections)
    return measured


class _ShardTask:
    """One try to pack a shard."""

    def __init__(self, store: ObjectStore, stream: Stream, ref: ShardRef) -> None:
        self._started, self._cpu_before = time.monotonic(), cpu_seconds()
        self._store = store
        self._stream = stream
        self._ref = ref
        self._state = HourState(store, stream, parse_hour(ref.hour))

    def run(self, tried: Callable[[Measured], None]) -> Measured | None:
        """See :func:`pack_shard`; returns None if another run has completed the hour under this plan."""
        shard = self._read_shard() if self._is_current() else None
        if shard is None:
            return None
        records, target = self._state.records, self._state.paths.receipt(self._ref.plan_id, self._ref.shard)
        receipt = records.read_receipt(target) or Receipt(self._ref.plan_id, self._ref.shard)
        existing = self._existing_parts(receipt)
        todo = [part for part in shard.parts if not existing.has(part)]
        log.info(
            "shard %d: %d parts, %d objects, %s; %d parts exist already",
            self._ref.shard, self._ref.parts, self._ref.objects, format_size(self._ref.bytes),
            len(shard.parts) - len(todo),
        )  # fmt: skip
        self._refuse_lost_parts(shard, todo)
        self._refuse_other_settings(todo)
        received = {part.name for part in receipt.parts}
        lost = [part.name for part in todo if part.name in received]
        if todo and not self._state.prepare_packing(self._ref.plan_id, lost):
            return None
        journal = Journal(records, target, receipt, existing.written(shard))
        return self._pack(shard, todo, journal, tried)

    def _is_current(self) -> bool:
        """Whether the hour is being built under this plan; False if it is complete under it.

        :raises SupersededError: if it is neither
        """
        return not self._state.is_complete_under(self._ref.plan_id)

    def _read_shard(self) -> ShardPlan | None:
        """Read the parts of the shard; None if another run has completed the hour under this plan."""
        try:
            return self._state.shard(self._ref.plan_id, self._ref.shard)
        except SupersededError:
            marker = self._state.marker()
            if marker is not None and marker.is_of(self._ref.plan_id):
                # Another run has completed the hour and is cleaning up; its claim is removed last.
                return None
            raise

    def _refuse_lost_parts(self, shard: ShardPlan, todo: Sequence[PlannedPart]) -> None:
        """Refuse to pack parts that the plan keeps if the present settings give other bytes.

        :raises ProofError: if there are any
        """
        stream = self._stream
        lost = [
            part.name
            for part in todo
            if part.name in shard.kept and not is_planned_again(part, stream.part_size, stream.write_options)
        ]
        if lost:
            raise ProofError(
                f"hour {self._ref.hour}: {len(lost)} parts under {self._state.paths.aggregated} that plan "
                f"{self._ref.plan_id} keeps have changed or vanished since ({first_keys(lost)}), or their receipt "
                f"is damaged, and the stream's present settings give other parts: clear the run from plan_hour on"
            )

    def _refuse_other_settings(self, todo: Sequence[PlannedPart]) -> None:
        """Refuse to pack parts that this worker's settings would give other bytes, or store in another way.

        :raises ConfigurationError: if there are any
        """
        options = self._stream.write_options
        names = [part.name for part in todo if not is_packed_as_planned(part, options)]
        if names:
            codec = options.codec
            raise ConfigurationError(
                f"hour {self._ref.hour}: plan {self._ref.plan_id} was planned with other settings or another "
                f"version of the compression library than this worker has (compression: "
                f"{codec.describe() if codec else 'none'}), so {len(names)} parts under "
                f"{self._state.paths.aggregated} would differ ({first_keys(names)}), and none was written. Give "
                f"all workers the same streams file and the same packages, then clear the run from plan_hour on."
            )

    def _existing_parts(self, receipt: Receipt) -> "_ExistingParts":
        # Without parts in the receipt all parts are packed, so the listing is not needed.
        listed = self._state.inventory().parts if receipt.parts else {}
        return _ExistingParts(
            receipt, {part.name: part for part in receipt.parts if is_as_written(part, listed)}
        )

    def _pack(
        self,
        shard: ShardPlan,
        todo: Sequence[PlannedPart],
        journal: "Journal",
        tried: Callable[[Measured], None],
    ) -> Measured | None:
        """Pack some parts of a shard, with a receipt of them even after a failure.

        :returns: what this try measured; None if another run has completed the hour under this plan
        """
        transfer = self._store.open_transfer(self._stream.raw.bucket, self._stream.aggregated.bucket)
        packer = self._packer(transfer, journal)
        monitor = Monitor(log, self._store.ports, self._stream.max_connections, packer.progress)
        left_alone = len(shard.parts) - len(todo)
        try:
            with monitor:
                try:
                    all_written = packer.run(todo)
                finally:
                    transfer.close()
            # Another run may have taken over before the last write.
            owned = not todo or (all_written and self._is_current())
        except SupersededError:
            journal.drop()
            self._remove_overtaken(shard, packer.attempted)
            raise
        except BaseException:
            result = self._measured(packer, monitor, left_alone)
            journal.save(result)
            tried(result)
            raise
        if not owned:
            journal.drop()
            return None
        result = self._measured(packer, monitor, left_alone)
        tried(result)
        journal.close(shard, result)
        log.info(
            "done: %s | peak sockets %d/%d", packer.progress(), result.sockets, self._stream.max_connections
        )
        return result

    def _packer(self, transfer: Transfer, journal: "Journal") -> ShardPacker:
        return ShardPacker(
            self._store,
            transfer,
            self._state.paths.base,
            self._stream.raw.root,
            settings_of(self._stream),
            OwnershipCheck(
                self._state.paths.claim,
                is_current=partial(self._state.is_claim_of, self._ref.plan_id),
                recheck=self._is_current,
            ),
            journal.add,
        )

    def _measured(self, packer: ShardPacker, monitor: Monitor, left_alone: int) -> Measured:
        requests = dict(self._store.requests)
        for name, count in packer.requests.items():
            requests[name] = requests.get(name, 0) + count
        return Measured(
            max_connections=self._stream.max_connections,
            sockets=monitor.peaks.sockets,
            open_files=monitor.peaks.open_files,
            rss_bytes=monitor.peaks.rss_bytes,
            seconds=round(time.monotonic() - self._started, 3),
            cpu_seconds=round(cpu_seconds() - self._cpu_before, 3),
            requests=requests,
            retries=packer.retries,
            throttles=packer.throttles,
            parts_written=packer.parts_written,
            parts_left_alone=left_alone,
        )

    def _remove_overtaken(self, shard: ShardPlan, attempted: Mapping[str, str]) -> None:
        """Remove the stray parts of this try. If that fails, the next validation of the hour removes them.

        :param attempted: names of the parts that may have been written, each with that of the planned part
        """
        try:
            planned = {part.name: part for part in shard.parts}
            self._state.remove_overtaken(
                shard.plan_id, {name: planned[made_for] for name, made_for in attempted.items()}
            )
        except RollupError as error:
            log.warning("could not remove the stray parts of the overtaken plan: %s", error)


@dataclass(frozen=True, slots=True)
class _ExistingParts:
    """The parts of a shard that an earlier try wrote and that are still there.

    :param receipt: of the earlier tries
    :param parts: those of its parts that exist unchanged, by name
    """

    receipt: Receipt
    parts: Mapping[str, PackedPart]

    def has(self, planned: PlannedPart) -> bool:
        """Whether a planned part exists, as one part or as the parts it was split into."""
        return all(
            (packed := self.parts.get(part.name)) is not None and packed.fingerprint == part.fingerprint
            for part in self._parts_for(planned)
        )

    def written(self, shard: ShardPlan) -> dict[str, list[WrittenPart]]:
        """What was written for each planned part that exists, by the planned part's name."""
        return {
            planned.name: [WrittenPart(part, self.parts[part.name]) for part in self._parts_for(planned)]
            for planned in shard.parts
            if self.has(planned)
        }

    def _parts_for(self, planned: PlannedPart) -> Sequence[PlannedPart]:
        return self.receipt.splits.get(planned.name, (planned,))


def settings_of(stream: Stream) -> PackSettings:
    """How the parts of a stream are written."""
    return PackSettings(
        stream.write_options,
        stream.connect_timeout,
        stream.response_timeout,
        stream.check_encoding,
        stream.part_size,
    )


class Journal:
    """Writes the receipt of a shard while its parts are packed, from a thread, so that packing does not wait.

    :param before: receipt of the earlier tries
    :param done: what earlier tries wrote for planned parts that still exist, by the planned part's name
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
        """Add what was written for a planned part; writes the receipt unless the last one is too recent."""
        self._done[planned.name] = written
        now = time.monotonic()
        if now < self._due:
            return
        if self._pending is not None:
            if not self._pending.done():
                return
            self._pending.result()
        self._due = now + JOURNAL_SECONDS
        self._pending = self._executor.submit(self._write, self._receipt(self._before.measured))

    def drop(self) -> None:
        """Write nothing more: another run owns this hour."""
        self._executor.shutdown()

    def save(self, measured: Measured) -> None:
        """After a failure, write a receipt of all parts that exist, for the next try.

        An error of its own is only logged: the first failure is the one to report.
        """
        self._executor.shutdown()
        try:
            self._write(self._receipt(self._before.measured + measured))
        except RollupError as error:
            log.warning("could not write the receipt, so the parts will be packed again: %s", error)

    def close(self, shard: ShardPlan, measured: Measured) -> None:
        """Write the final receipt, with the parts in the order of the plan."""
        self._executor.shutdown()
        self._done = {part.name: self._done[part.name] for part in shard.parts}
        self._write(self._receipt(self._before.measured + measured))

    def _receipt(self, measured: Measured) -> Receipt:
        splits = {
            name: tuple(part.planned for part in written)
            for name, written in self._done.items()
            if written[0].planned.name != name
        }
        packed = tuple(part.packed for written in self._done.values() for part in written)
        return Receipt(self._before.plan_id, self._before.shard, packed, measured, splits)

    def _write(self, receipt: Receipt) -> None:
        self._records.write_receipt(self._target, receipt)
