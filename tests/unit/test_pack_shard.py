"""pack_shard writes only missing parts, updates its receipt, and stops when another plan takes over."""

import bz2
import gzip
import hashlib
import io
import json
import logging
import lzma
import resource
import threading
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import lz4.frame
import pytest
import zstandard

from include.log_rollup import monitor
from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    InputChangedError,
    ResourceLimitError,
    SupersededError,
    TransientError,
    VanishedInputError,
)
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.hour.records import Measured
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from tests.support.fake_store import CrashError, Effect, FakeStore, FakeTransfer
from tests.support.hour_in_memory import (
    MARKER,
    WORK,
    assert_complete,
    assert_not_complete,
    assert_right,
    finish_hour,
    make_stream,
    manifest_of,
    marker_of,
    numbered,
    part_key,
    part_name,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

RAW_HOUR: Mapping[str, bytes] = {f"{letter}.log": letter.encode() * 30 for letter in "abcdef"}
# All three parts in one shard.
STREAM = make_stream(shard_size=1024)


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, RAW_HOUR)
    return store


def planned_shard(store: FakeStore) -> ShardRef:
    (ref,) = plan_hour(store, STREAM, HOUR, "run").shards
    store.log.clear()
    return ref


def receipt_of(store: FakeStore, ref: ShardRef) -> dict[str, object]:
    body = store.body(f"{WORK}{ref.plan_id}/receipt-00000.json.gz")
    receipt: dict[str, object] = json.loads(gzip.decompress(body))
    return receipt


def receipt_parts(store: FakeStore, ref: ShardRef) -> list[str]:
    rows = receipt_of(store, ref)["parts"]
    assert isinstance(rows, list)
    return [row[0] for row in rows]


def written_parts(store: FakeStore) -> list[str]:
    return [operation.name for operation in store.log if operation.kind == "PUT"]


# -- what is missing -----------------------------------------------------------------------------------


def test_receipt_lists_the_parts_of_a_shard_in_order(store: FakeStore) -> None:
    ref = planned_shard(store)
    measured = pack_shard(store, STREAM, ref)
    assert list(parts(store)) == receipt_parts(store, ref)
    assert numbered(parts(store)) == ["part-00000.log", "part-00001.log", "part-00002.log"]
    assert b"".join(parts(store).values()) == b"".join(RAW_HOUR.values())
    assert (measured.parts_written, measured.parts_left_alone) == (3, 0)


def test_packed_shard_is_not_transferred_again(store: FakeStore) -> None:
    ref = planned_shard(store)
    pack_shard(store, STREAM, ref)
    store.log.clear()
    measured = pack_shard(store, STREAM, ref)
    assert not {"GET", "PUT", "COPY"} & {operation.kind for operation in store.log}
    assert (measured.parts_written, measured.parts_left_alone) == (0, 3)
    assert len(receipt_parts(store, ref)) == 3


def test_retry_keeps_finished_parts(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("PUT", "part-00001", AccessError("denied"))
    with pytest.raises(AccessError):
        pack_shard(store, STREAM, ref)
    existing = [name for name in receipt_parts(store, ref) if name in parts(store)]
    assert "part-00000.log" in numbered(existing)
    store.log.clear()
    measured = pack_shard(store, STREAM, ref)
    assert sorted(written_parts(store)) == sorted(set(parts(store)) - set(existing))
    assert measured.parts_left_alone == len(existing)
    assert receipt_parts(store, ref) == list(parts(store))


@pytest.mark.parametrize("damage", ["corrupted", "deleted"])
def test_part_that_differs_from_its_receipt_is_packed_again(store: FakeStore, damage: str) -> None:
    ref = planned_shard(store)
    pack_shard(store, STREAM, ref)
    if damage == "corrupted":
        store.corrupt(part_key(store, 1))
    else:
        store.vanish(part_key(store, 1))
    store.log.clear()
    pack_shard(store, STREAM, ref)
    assert written_parts(store) == [part_name(store, 1)]
    assert b"".join(parts(store).values()) == b"".join(RAW_HOUR.values())


def test_part_without_a_receipt_is_packed_again(store: FakeStore) -> None:
    ref = planned_shard(store)
    pack_shard(store, STREAM, ref)
    store.vanish(f"{WORK}{ref.plan_id}/receipt-00000.json.gz")
    store.log.clear()
    pack_shard(store, STREAM, ref)
    assert len(written_parts(store)) == 3


def test_marker_is_removed_before_any_part_changes(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.produce(MARKER, b"{}")
    pack_shard(store, STREAM, ref)
    names = [f"{operation.kind} {operation.name}" for operation in store.writes()]
    assert names[0] == "DELETE _SUCCESS"
    assert_not_complete(store)


# -- the receipt ---------------------------------------------------------------------------------------


def test_receipt_is_written_during_packing(store: FakeStore) -> None:
    ref = planned_shard(store)
    receipt_written = threading.Event()
    store.on("WRITE", "receipt-", receipt_written.set)
    receipt_came_first: list[bool] = []
    store.on("PUT", "part-00002", lambda: receipt_came_first.append(receipt_written.wait(30)))
    one_connection = make_stream(shard_size=1024, max_connections=5)
    store.max_connections = 5
    pack_shard(store, one_connection, ref)
    assert receipt_came_first == [True]


def test_receipt_is_correct_after_a_crash(store: FakeStore) -> None:
    ref = planned_shard(store)
    for writes in range(1, 8):
        store.crash_after_writes(writes)
        try:
            pack_shard(store, STREAM, ref)
        except CrashError:
            store.revive()
            if store.listing(f"{WORK}{ref.plan_id}/receipt"):
                rows = receipt_of(store, ref)["parts"]
                assert isinstance(rows, list)
                for row in rows:
                    assert row[3] == store.stored(AGGREGATED + row[0]).etag
    store.revive()
    pack_shard(store, STREAM, ref)
    assert b"".join(parts(store).values()) == b"".join(RAW_HOUR.values())


class TaskTimeoutError(BaseException):
    """Raised in the task, as Airflow does at its ``execution_timeout``."""


def test_task_timeout_cancels_a_pending_copy(store: FakeStore) -> None:
    """The task once ended only after the copy, and the copied part was in no receipt."""
    produce(store, {"x.log": b"x" * 100})
    ref = planned_shard(store)
    store.on("COPY", "part-", Effect.STALLED)
    timed_out: list[bool] = []
    wait = FakeTransfer.wait

    def wait_or_time_out(transfer: FakeTransfer, seconds: float) -> None:
        assert not timed_out, "the packer waited for the copy"
        if transfer.in_flight == 1 and len(parts(store)) == ref.parts - 1:
            timed_out.append(True)
            raise TaskTimeoutError
        wait(transfer, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTransfer, "wait", wait_or_time_out)
        with pytest.raises(TaskTimeoutError):
            pack_shard(store, STREAM, ref)
    rows = receipt_of(store, ref)["parts"]
    assert isinstance(rows, list)
    assert {row[0] for row in rows} == parts(store).keys()
    assert len(rows) == ref.parts - 1
    assert pack_shard(store, STREAM, ref).parts_written == 1
    finish_hour(store, STREAM, Planned(ref.plan_id, [], unchanged=False))
    assert_complete(store, STREAM)


def test_receipt_that_cannot_be_written_fails_the_task(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("WRITE", "receipt-", AccessError("denied"), times=99)
    with pytest.raises(AccessError, match="denied"):
        pack_shard(store, STREAM, ref)


def test_failed_receipt_write_is_repeated_later(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("WRITE", "receipt-", TransientError("the connection broke"))
    for _ in range(2):
        try:
            pack_shard(store, STREAM, ref)
        except TransientError:
            continue
        break
    assert receipt_parts(store, ref) == list(parts(store))


def test_measurements_of_all_tries_are_added_up_in_the_receipt(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("GET", "b.log", TransientError("once"))
    first = pack_shard(store, STREAM, ref)
    # With one read of the claim for each part.
    assert (first.retries, first.requests["GET"], first.requests["PUT"]) == (1, 7 + 3, 3)
    store.vanish(part_key(store, 2))
    pack_shard(store, STREAM, ref)
    total = receipt_of(store, ref)["measured"]
    assert isinstance(total, dict)
    assert (total["retries"], total["parts_written"], total["parts_left_alone"]) == (1, 4, 2)
    assert (total["requests"]["GET"], total["requests"]["PUT"]) == (9 + 4, 4)
    assert total["max_connections"] == 8
    assert total["open_files"] > 0
    assert total["rss_bytes"] > 1024**2


def test_receipt_has_measurements_of_failed_tries(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("GET", "b.log", TransientError("once"))
    store.on("PUT", "part-00002", AccessError("denied"))
    with pytest.raises(AccessError):
        pack_shard(store, STREAM, ref)
    pack_shard(store, STREAM, ref)
    total = receipt_of(store, ref)["measured"]
    assert isinstance(total, dict)
    assert total["retries"] == 1
    assert total["requests"]["GET"] >= 7


def test_measurements_are_reported_even_after_a_failure(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("GET", "b.log", TransientError("once"))
    store.on("PUT", "part-00002", AccessError("denied"))
    reported: list[Measured] = []
    with pytest.raises(AccessError):
        pack_shard(store, STREAM, ref, reported.append)
    assert [measured.retries for measured in reported] == [1]
    measured = pack_shard(store, STREAM, ref, reported.append)
    assert reported[1:] == [measured]


# -- another plan --------------------------------------------------------------------------------------


def test_shard_of_a_replaced_plan_is_not_packed(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.produce(RAW + "g.log", b"late")
    other = planned_shard(store)
    with pytest.raises(SupersededError) as caught:
        pack_shard(store, STREAM, ref)
    for part in (ref.plan_id, other.plan_id, AGGREGATED, "clear this one from plan_hour on"):
        assert part in str(caught.value)
    assert store.writes() == []


def test_shard_of_a_completed_plan_has_nothing_to_do(store: FakeStore) -> None:
    ref = planned_shard(store)
    run_hour(store, STREAM)
    before = store.snapshot()
    measured = pack_shard(store, STREAM, ref)
    assert (measured.parts_written, measured.max_connections) == (0, 8)
    assert store.snapshot() == before


def test_shard_is_not_packed_if_another_plan_is_complete(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.produce(RAW + "g.log", b"late")
    run_hour(store, STREAM)
    before = store.snapshot()
    with pytest.raises(SupersededError, match="clear this one from plan_hour on"):
        pack_shard(store, STREAM, ref)
    assert store.snapshot() == before
    assert_complete(store, STREAM)


def test_shard_of_a_missing_plan_is_not_packed(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.vanish(f"{WORK}{ref.plan_id}/shard-00000.json.gz")
    with pytest.raises(SupersededError, match="clear the run from plan_hour on"):
        pack_shard(store, STREAM, ref)
    assert store.writes() == []


def test_overtaken_shard_stops_at_its_next_check(store: FakeStore) -> None:
    produce(store, {f"x{number}.log": b"x" * 60 for number in range(12)})
    ref = planned_shard(store)
    log_lengths: list[int] = []

    def overtake() -> None:
        store.produce(RAW + "aa.log", b"later")
        run_hour(store, STREAM, "another run")
        log_lengths.append(len(store.log))

    store.on("PUT", "part-00001", overtake)
    with pytest.raises(SupersededError, match=ref.plan_id):
        pack_shard(store, STREAM, ref)
    # Of 15 parts, only those are written whose claim was read before: at most one per buffer.
    assert sum(operation.kind == "PUT" for operation in store.log[log_lengths[0] :]) <= 8
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


@pytest.mark.parametrize(("kind", "contains"), [("PUT", "part-00001"), ("COPY", "part-0")])
def test_write_is_not_retried_after_another_run_completed(store: FakeStore, kind: str, contains: str) -> None:
    produce(store, {"x.log": b"x" * 100})
    ref = planned_shard(store)
    log_lengths: list[int] = []

    def overtake() -> None:
        store.produce(RAW + "aa.log", b"later")
        run_hour(store, STREAM, "another run")
        log_lengths.append(len(store.log))
        raise TransientError("the connection broke")

    store.on(kind, contains, overtake)
    with pytest.raises(SupersededError, match=ref.plan_id):
        pack_shard(store, STREAM, ref)
    tried = [each for each in store.log[log_lengths[0] :] if each.kind == kind and contains in each.name]
    assert tried == []
    assert_right(store, STREAM)


@pytest.mark.parametrize(("kind", "contains"), [("PUT", "part-00002"), ("COPY", "part-00003")])
def test_claim_is_read_once_more_after_the_last_write(store: FakeStore, kind: str, contains: str) -> None:
    """A write that was pending when another run took over leaves an unneeded part, which must be removed."""
    produce(store, {"x.log": b"x" * 100})
    stream = make_stream(shard_size=1024, max_connections=5)
    store.max_connections = 5
    ref = planned_shard(store)

    def overtake() -> None:
        produce(store, {"aa.log": b"later", "x.log": b"X" * 100})
        run_hour(store, STREAM, "another run")

    # During its last write.
    store.on(kind, contains, overtake)
    with pytest.raises(SupersededError, match=ref.plan_id):
        pack_shard(store, stream, ref)
    assert_right(store, STREAM)
    assert parts(store).keys() == {entry["name"] for entry in manifest_of(store)[0]["parts_table"]}


def test_packed_shard_reads_the_claim_last(store: FakeStore) -> None:
    ref = planned_shard(store)
    pack_shard(store, STREAM, ref)
    kinds = [f"{each.kind} {each.name}" for each in store.log]
    last = max(number for number, each in enumerate(store.log) if each.kind == "PUT")
    assert "READ claim.json" in kinds[last:]
    store.log.clear()
    # Without a write there is nothing to undo.
    pack_shard(store, STREAM, ref)
    assert [each.name for each in store.log].count("claim.json") == 1


# -- objects that cannot be decompressed -------------------------------------------------------------------


def compress_lz4(body: bytes) -> bytes:
    return bytes(lz4.frame.compress(body, content_checksum=True))


def decompress_lz4(body: bytes) -> bytes:
    # decompress() reads only the first frame.
    with lz4.frame.LZ4FrameFile(io.BytesIO(body)) as file:
        return bytes(file.read())


def compress_zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(body)


def decompress_zstd(body: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
        return reader.read()


CODECS: Mapping[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    ".gz": (gzip.compress, gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (partial(lzma.compress, preset=0), lzma.decompress),
    ".lz4": (compress_lz4, decompress_lz4),
    ".zst": (compress_zstd, decompress_zstd),
}
CONTENTS = {letter: hashlib.sha256(letter.encode()).digest() * 3 for letter in "abcde"}
CHECKING = make_stream(part_size=4096, shard_size=8192, check_encoding=True, ensure_newline=True)


def truncate(body: bytes) -> bytes:
    return body[:-5]


def flip_bit(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0x40]) + body[middle + 1 :]


def replace_by_text(_: bytes) -> bytes:
    return b"a line of text\n"


def compressed_objects(ending: str, damage: Callable[[bytes], bytes], letters: str) -> dict[str, bytes]:
    compress, _ = CODECS[ending]
    hour = {f"{letter}{ending}": compress(body) for letter, body in CONTENTS.items()}
    return {name: damage(body) if name[0] in letters else body for name, body in hour.items()}


@pytest.mark.parametrize(
    ("letters", "threads"),
    # Damaged objects at the beginning, in the middle, at the end, several, and all.
    [("a", 0), ("c", 3), ("e", 0), ("bd", 3), ("abcde", 0), ("abcde", 3)],
)
@pytest.mark.parametrize("damage", [truncate, flip_bit, replace_by_text])
@pytest.mark.parametrize("ending", CODECS)
def test_damaged_object_gets_a_part_of_its_own(
    ending: str,
    damage: Callable[[bytes], bytes],
    letters: str,
    threads: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FakeStore(threads=threads)
    hour = compressed_objects(ending, damage, letters)
    produce(store, {**hour, "plain.log": b"x", "other.snappy": b"no text"})
    totals = run_hour(store, CHECKING)
    assert totals.damaged == marker_of(store)["damaged"] == len(letters)
    assert totals.objects == len(hour) + 2
    assert_right(store, CHECKING)
    found = parts(store)
    _, rows = manifest_of(store)
    damaged = {row["key"].removeprefix(RAW): row["part"] for row in rows if row.get("damaged")}
    assert damaged.keys() == {f"{letter}{ending}" for letter in letters}
    for name, part in damaged.items():
        assert f"s3://logs/{RAW}{name} cannot be decompressed" in caplog.text
        assert found[part] == hour[name]
    # The rest of the part can be decompressed completely.
    intact = {row["part"] for row in rows if row["key"].endswith(ending) and not row.get("damaged")}
    joined = b"".join(CONTENTS[letter] + b"\n" for letter in CONTENTS if letter not in letters)
    assert [CODECS[ending][1](found[part]) for part in intact] == ([joined] if joined else [])


def test_hour_with_damaged_objects_stays_as_it_is() -> None:
    store = FakeStore()
    produce(store, compressed_objects(".gz", truncate, "bd"))
    totals = run_hour(store, CHECKING)
    before = store.snapshot()
    store.log.clear()
    assert run_hour(store, CHECKING) == totals
    assert store.writes() == []
    assert validate_hour(store, CHECKING, HOUR).damaged == 2
    assert verify_hour(store, CHECKING, HOUR, deep=True).problems == []
    assert find_changed_hours(store, CHECKING, [HOUR]).changed == []
    assert store.snapshot() == before


def test_late_object_next_to_damaged_ones_is_packed() -> None:
    store = FakeStore()
    hour = compressed_objects(".gz", truncate, "b")
    produce(store, hour)
    run_hour(store, CHECKING)
    produce(store, {"f.gz": gzip.compress(b"late"), "late.log": b"late"})
    assert run_hour(store, CHECKING).damaged == 1
    assert_right(store, CHECKING)
    assert plan_hour(store, CHECKING, HOUR, "again").unchanged


def test_repaired_object_shares_a_part_again() -> None:
    store = FakeStore()
    produce(store, compressed_objects(".gz", truncate, "b"))
    run_hour(store, CHECKING)
    produce(store, compressed_objects(".gz", truncate, ""))
    assert run_hour(store, CHECKING).damaged == 0
    assert_complete(store, CHECKING)


def test_expired_hour_keeps_its_damaged_objects() -> None:
    store = FakeStore()
    hour = compressed_objects(".gz", truncate, "b")
    produce(store, hour)
    run_hour(store, CHECKING)
    for name in hour:
        store.vanish(RAW + name)
    for name, body in hour.items():
        assert b"".join(read_object(store, locate(store, CHECKING, RAW + name))) == body


def test_split_parts_of_an_unfinished_run_hold_their_objects() -> None:
    store = FakeStore()
    hour = compressed_objects(".gz", truncate, "b")
    produce(store, hour)
    for ref in plan_hour(store, CHECKING, HOUR, "run").shards:
        pack_shard(store, CHECKING, ref)
    for name in ("a.gz", "b.gz"):
        expired = store.fork()
        expired.vanish(RAW + name)
        before = expired.snapshot()
        with pytest.raises(VanishedInputError, match="1 of 5 raw objects"):
            plan_hour(expired, CHECKING, HOUR, "again")
        assert expired.snapshot() == before


@pytest.mark.parametrize("turned", ["on", "off"])
def test_hour_is_correct_when_check_encoding_changes(turned: str) -> None:
    off = CHECKING.model_copy(update={"check_encoding": False})
    first, second = (off, CHECKING) if turned == "on" else (CHECKING, off)
    for damage in (None, "receipt", "crash"):
        store = FakeStore()
        produce(store, compressed_objects(".gz", truncate, "b"))
        (ref,) = plan_hour(store, first, HOUR, "run").shards
        pack_shard(store, first, ref)
        if damage == "receipt":
            store.vanish(f"{WORK}{ref.plan_id}/receipt-00000.json.gz")
        if damage == "crash":
            finish_hour(store, first, plan_hour(store, first, HOUR, "run"))
            store.vanish(part_key(store, 0) if turned == "on" else store.listing(AGGREGATED + "part-")[0])
        run_hour(store, second)
        assert_right(store, second)
        names = {entry["name"] for entry in manifest_of(store)[0]["parts_table"]}
        assert parts(store).keys() == names


def test_split_parts_are_recognised_after_any_crash() -> None:
    for writes in count():
        store = FakeStore()
        produce(store, compressed_objects(".gz", truncate, "b"))
        store.crash_after_writes(writes)
        try:
            run_hour(store, CHECKING)
        except CrashError:
            store.revive()
        else:
            assert writes > 10
            return
        run_hour(store, CHECKING, "the next run")
        assert_right(store, CHECKING)
        assert marker_of(store)["foreign"] == 0
        assert len(parts(store)) == 2


def test_nothing_is_decompressed_without_check_encoding() -> None:
    store = FakeStore()
    produce(store, compressed_objects(".gz", truncate, "b"))
    assert run_hour(store, make_stream(part_size=4096, shard_size=8192)).damaged == 0
    assert len(parts(store)) == 1


def test_copied_object_is_not_decompressed() -> None:
    store = FakeStore()
    produce(store, {"a.gz": b"x" * 5000, "b.gz": gzip.compress(b"b")})
    assert run_hour(store, CHECKING).damaged == 0
    assert_complete(store, CHECKING)


# -- limits and failures -------------------------------------------------------------------------------


def test_low_open_file_limit_fails_before_anything_is_opened(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = planned_shard(store)
    limit = monitor.open_files() + 10
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    with pytest.raises(ResourceLimitError, match=f"is {limit}"):
        pack_shard(store, STREAM, ref)
    assert store.log == []
    assert store.transfers == []


@pytest.mark.parametrize(
    "fault", [None, AccessError("denied"), TransientError("no end"), CrashError("died")], ids=str
)
def test_transfer_is_always_closed(store: FakeStore, fault: Exception | None) -> None:
    ref = planned_shard(store)
    before = set(threading.enumerate())
    if fault is None:
        pack_shard(store, STREAM, ref)
    else:
        store.on("GET", "d.log", fault, times=99)
        with pytest.raises(type(fault)):
            pack_shard(store, STREAM, ref)
    assert [transfer.closed for transfer in store.transfers] == [True]
    assert set(threading.enumerate()) <= before


def test_receipt_error_does_not_hide_the_packing_error(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("PUT", "", AccessError("denied"), times=99)
    store.on("WRITE", "receipt-", TransientError("the connection broke"), times=99)
    with pytest.raises(AccessError, match="denied"):
        pack_shard(store, STREAM, ref)
    assert_not_complete(store)


@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_changed_object_fails_the_shard_until_cleared(store: FakeStore, what: str) -> None:
    ref = planned_shard(store)
    if what == "changed":
        store.produce(RAW + "c.log", b"C" * 31)
    else:
        store.vanish(RAW + "c.log")
    with pytest.raises(InputChangedError, match=r"c\.log"):
        pack_shard(store, STREAM, ref)
    assert_not_complete(store)
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


def test_object_changed_while_read_fails_the_shard(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("GET", "c.log", lambda: _discard(store.produce(RAW + "c.log", b"C" * 30)))
    with pytest.raises(InputChangedError, match=r"c\.log"):
        pack_shard(store, STREAM, ref)
    assert_not_complete(store)


def _discard(_: object) -> None:
    """Drop a result: the function of a rule returns nothing."""


def test_part_with_a_lost_answer_is_written_again(store: FakeStore) -> None:
    ref = planned_shard(store)
    store.on("PUT", "part-00001", Effect.LOST_ANSWER)
    pack_shard(store, STREAM, ref)
    names = ["part-00000.log", "part-00001.log", "part-00001.log", "part-00002.log"]
    assert sorted(numbered(written_parts(store))) == names
    assert b"".join(parts(store).values()) == b"".join(RAW_HOUR.values())


@pytest.mark.parametrize(("storage_class", "header"), [(None, None), ("STANDARD_IA", "STANDARD_IA")])
def test_all_parts_have_the_storage_class_of_the_stream(
    store: FakeStore, storage_class: str | None, header: str | None
) -> None:
    store.produce(RAW + "z.log", b"z" * 100)
    run_hour(store, make_stream(storage_class=storage_class))
    headers = {name: store.stored(AGGREGATED + name).headers for name in parts(store)}
    assert {found.get("x-amz-storage-class") for found in headers.values()} == {header}
    assert len(headers) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"ensure_newline": True},
        {"storage_class": "GLACIER"},
        {"tags": {"team": "web"}},
        {"kms_key_id": "alias/logs"},
        {"compression": "gzip"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_worker_with_other_settings_packs_nothing(store: FakeStore, change: dict[str, Any]) -> None:
    """A part is named by its bytes and storage, so a worker that would write others must not use the name."""
    run_hour(store, STREAM)
    store.produce(RAW + "late.log", b"late")
    ref = planned_shard(store)
    before = store.listing("")
    store.log.clear()
    with pytest.raises(ConfigurationError, match="was planned with other settings or another version"):
        pack_shard(store, make_stream(shard_size=1024, **change), ref)
    assert store.listing("") == before
    assert written_parts(store) == []
    run_hour(store, STREAM)
    assert_complete(store, STREAM)


def test_raw_and_aggregated_may_be_in_two_buckets() -> None:
    store = FakeStore(buckets=["raw-logs", "logs"])
    stream = make_stream(raw=RawTemplate.parse("s3://raw-logs/raw/app/"))
    for name, body in {**RAW_HOUR, "z.log": b"z" * 100}.items():
        store.produce(RAW + name, body, bucket="raw-logs")
    run_hour(store, stream)
    assert b"".join(parts(store).values()) == b"".join(RAW_HOUR.values()) + b"z" * 100
    assert store.has(MARKER)


def test_log_has_kept_parts_and_the_result(store: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
    ref = planned_shard(store)
    pack_shard(store, STREAM, ref)
    store.vanish(part_key(store, 2))
    with caplog.at_level(logging.INFO):
        pack_shard(store, STREAM, ref)
    assert "shard 0: 3 parts, 6 objects, 180 B; 2 parts exist already" in caplog.text
    assert "done: parts 1/1 | 60 B written" in caplog.text
    assert "peak sockets 0/8" in caplog.text
