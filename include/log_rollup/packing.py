"""The step pack_shard: what of a shard is missing is packed, and a receipt is kept of it."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from include.log_rollup.errors import ProofError, RollupError, SupersededError
from include.log_rollup.hours import HourPaths, parse_hour
from include.log_rollup.monitor import Monitor, check_open_file_limit, cpu_seconds
from include.log_rollup.pack import Guard, PackSettings, ShardPacker
from include.log_rollup.plan import ShardRef
from include.log_rollup.planning import standing_parts, stands
from include.log_rollup.records import Measured, PackedPart, Receipt, Records, ShardPlan, claim_of
from include.log_rollup.store import Location, ObjectStore
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

    Parts that stand as the receipt says are left alone. The receipt is written every few parts and
    after a failure, so that a retry goes on where this try ended.

    :param tried: called with what this try measured, if it failed too
    :returns: the same
    :raises SupersededError: if the hour is being built under another plan
    :raises ResourceLimitError: if the open-file limit is too low for the stream's connections
    :raises RollupError: as :meth:`ShardPacker.run` and the store raise
    """
    check_open_file_limit(stream.max_connections)
    started, cpu_before = time.monotonic(), cpu_seconds()
    paths = stream.at(parse_hour(ref.hour))
    records = Records(store)
    nothing = Measured(max_connections=stream.max_connections)
    if is_complete_under(records, paths, ref.plan_id):
        return nothing
    shard = records.read_shard(paths.shard(ref.plan_id, ref.shard), paths.raw.key)
    if shard is None:
        if records.is_marked(paths.marker, ref.plan_id):
            # Another run is about to tidy up.
            return nothing
        raise SupersededError(
            f"shard {ref.shard} of plan {ref.plan_id} is not under {paths.work} any more, or another version "
            f"wrote it; clear the run from plan_hour on"
        )
    target = paths.receipt(ref.plan_id, ref.shard)
    before = records.read_receipt(target) or Receipt(ref.plan_id, ref.shard)
    # Without a receipt nothing is left alone, and what stands does not matter.
    standing = standing_parts(store, paths) if before.parts else {}
    done = [part for part in before.parts if stands(part, standing)]
    kept = {(part.name, part.fingerprint) for part in done}
    todo = [part for part in shard.parts if (part.name, part.fingerprint) not in kept]
    log.info(
        "shard %d: %d parts, %d objects, %s; %d parts stand already",
        ref.shard, ref.parts, ref.objects, format_size(ref.bytes), len(shard.parts) - len(todo),
    )  # fmt: skip
    marker = records.read_marker(paths.marker) if todo else None
    if marker is not None:
        if marker.get("plan_id") == ref.plan_id:
            # plan_hour has removed every marker that was there: this one another run has written since.
            return nothing
        # While an hour has a marker, no part of it may change.
        store.delete(paths.marker.bucket, [paths.marker.key])

    def look() -> None:
        if is_complete_under(records, paths, ref.plan_id):
            raise _CompletedError

    def is_ours(claim: bytes) -> bool:
        with suppress(ProofError):
            return claim_of(paths.claim, claim) == ref.plan_id
        return False

    journal = Journal(records, target, before, done)
    transfer = store.open_transfer(stream.raw.bucket, stream.aggregated.bucket)
    packer = ShardPacker(
        store,
        transfer,
        paths.aggregated,
        stream.raw.bucket,
        settings_of(stream),
        Guard(paths.claim, is_ours, look),
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
                packer.run(todo)
            finally:
                transfer.close()
    except _CompletedError:
        journal.drop()
        return nothing
    except SupersededError:
        journal.drop()
        raise
    except BaseException:
        result = measured()
        journal.save(result)
        tried(result)
        raise
    result = measured()
    tried(result)
    journal.close(shard, result)
    log.info("done: %s | peak sockets %d/%d", packer.progress(), result.sockets, stream.max_connections)
    return result


class _CompletedError(Exception):
    """Another run has completed the hour under the very plan that is being packed."""


def is_complete_under(records: Records, paths: HourPaths, plan_id: str) -> bool:
    """Whether the hour is finished under this plan; False means that it is being built under it.

    :raises SupersededError: if it is neither
    """
    claimed = records.read_claim(paths.claim)
    if claimed == plan_id:
        return False
    if claimed is None and records.is_marked(paths.marker, plan_id):
        log.info("the hour is complete under plan %s; nothing is to be done", plan_id)
        return True
    raise superseded(paths, plan_id, claimed)


def superseded(paths: HourPaths, plan_id: str, claimed: str | None) -> SupersededError:
    """The error for a shard of a plan that is not the hour's any more."""
    now = "is not being built" if claimed is None else f"is being built under plan {claimed}"
    return SupersededError(
        f"{paths.aggregated} was planned as {plan_id}, but {now}: another run has planned it anew. If that "
        f"run is not at work any more, clear this one from plan_hour on."
    )


def settings_of(stream: Stream) -> PackSettings:
    """How the parts of a stream are written."""
    headers: Mapping[str, str] = {"x-amz-storage-class": stream.storage_class} if stream.storage_class else {}
    return PackSettings(stream.ensure_newline, headers, stream.connect_timeout, stream.response_timeout)


class Journal:
    """Keeps a shard's receipt in step with the parts that are written, without holding the packing up."""

    def __init__(self, records: Records, target: Location, before: Receipt, done: list[PackedPart]) -> None:
        self._records = records
        self._target = target
        self._before = before
        self._parts = done
        self._executor = ThreadPoolExecutor(1, "log-rollup-journal")
        self._pending: Future[None] | None = None
        self._due = 0.0

    def add(self, part: PackedPart) -> None:
        """Note a part; it is written now, or with those that come soon."""
        self._parts.append(part)
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
        """Write nothing more: the receipt is nobody's any more."""
        self._executor.shutdown()

    def save(self, measured: Measured) -> None:
        """After a failure of the packing, note all parts that stand, for the next try.

        That this fails too is only logged: the failure of the packing is the one to tell.
        """
        self._executor.shutdown()
        try:
            self._write(self._snapshot(self._before.measured + measured))
        except RollupError as error:
            log.warning("could not note what was packed, so it will be packed again: %s", error)

    def close(self, shard: ShardPlan, measured: Measured) -> None:
        """Write the finished receipt, its parts in the order of the plan."""
        self._executor.shutdown()
        order = {part.name: number for number, part in enumerate(shard.parts)}
        self._parts.sort(key=lambda part: order[part.name])
        self._write(self._snapshot(self._before.measured + measured))

    def _snapshot(self, measured: Measured) -> Receipt:
        return Receipt(self._before.plan_id, self._before.shard, tuple(self._parts), measured)

    def _write(self, receipt: Receipt) -> None:
        self._records.write_receipt(self._target, receipt)
