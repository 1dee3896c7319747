"""validate_hour proves raw objects and parts, and leaves the hour incomplete if anything differs."""

import gzip
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup import monitor
from include.log_rollup.errors import (
    AccessError,
    InputChangedError,
    ProofError,
    RollupError,
    SupersededError,
    TransientError,
    VanishedInputError,
)
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage.protocol import ListPage
from include.log_rollup.streams import Stream
from tests.support.fake_store import CrashError, Effect, FakeStore, join_stores
from tests.support.hour_in_memory import (
    CLAIM,
    MANIFEST,
    MARKER,
    REMOVALS,
    WORK,
    assert_complete,
    assert_not_complete,
    assert_right,
    expected,
    joined_parts,
    make_stream,
    manifest_of,
    marker_of,
    numbered,
    part_key,
    parts,
    produce,
    run_hour,
    without_tags,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW
from tests.unit.strategies import raw_hours

# Three plain parts, one of gzip, one that is copied.
RAW_HOUR: Mapping[str, bytes] = {
    **{f"{letter}.log": letter.encode() * 30 for letter in "abcdef"},
    "g.log": b"g" * 100,
    "h.gz": b"h" * 30,
    "i.gz": b"",
}
STREAM = make_stream()
FIRST = 0
COPIED = 3


def packed_hour(stream: Stream = STREAM, **options: Any) -> FakeStore:
    """Return a store with a planned and packed hour."""
    store = FakeStore(**options)
    produce(store, RAW_HOUR)
    for ref in plan_hour(store, stream, HOUR, "run").shards:
        pack_shard(store, stream, ref)
    store.log.clear()
    return store


def refusal(store: FakeStore, kind: type[RollupError], stream: Stream = STREAM) -> str:
    with pytest.raises(kind) as caught:
        validate_hour(store, stream, HOUR)
    assert_not_complete(store)
    return without_tags(str(caught.value))


def assert_clear_completes(store: FakeStore, stream: Stream = STREAM, *, drop_vanished: bool = False) -> None:
    """Check that clearing the run from plan_hour on completes the hour."""
    run_hour(store, stream, drop_vanished=drop_vanished)
    assert_complete(store, stream)


def test_listed_part_that_a_head_misses_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    store = packed_hour()
    missing, head = part_key(store, FIRST), store.head
    monkeypatch.setattr(store, "head", lambda place: None if place.key == missing else head(place))
    assert "S3 answered 404, but the object is listed" in refusal(store, TransientError)
    assert store.has(missing)
    monkeypatch.undo()
    validate_hour(store, STREAM, HOUR)


def test_part_that_is_listed_late_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    store = packed_hour()
    late, list_page = part_key(store, FIRST), store.list_page

    def without_late(*arguments: Any, **options: Any) -> ListPage:
        page = list_page(*arguments, **options)
        return replace(page, objects=[row for row in page.objects if row.key != late])

    monkeypatch.setattr(store, "list_page", without_late)
    assert "exists, but is not listed" in refusal(store, TransientError)
    assert store.has(late)
    monkeypatch.undo()
    validate_hour(store, STREAM, HOUR)


# -- proofs --------------------------------------------------------------------------------------------


def test_packed_hour_gets_a_manifest() -> None:
    store = packed_hour()
    totals = validate_hour(store, STREAM, HOUR)
    assert (totals.objects, totals.bytes_in, totals.bytes_out, totals.parts) == (9, 310, 310, 5)
    staged, published, removed = store.writes()
    assert (published.kind, published.key) == ("PUBLISH", MANIFEST)
    assert (staged.kind, removed.kind, staged.key) == ("WRITE", "DELETE", removed.key)
    assert staged.key.startswith(f"{WORK}{totals.plan_id}/staged-")
    header, rows = manifest_of(store)
    assert (header["plan_id"], len(rows)) == (totals.plan_id, 9)
    assert_not_complete(store)
    complete_hour(store, STREAM, HOUR)
    assert_complete(store, STREAM)


@pytest.mark.parametrize(
    ("options", "raw_md5", "by_parts", "by_objects"),
    [
        # A store that keeps and checks CRCs proves everything.
        ({}, True, {"stored-crc64nvme": 5}, {"crc64nvme": 8, "length": 1}),
        # A store that keeps CRCs without checking them proves nothing.
        ({"checks_crc": False}, True, {"read-back": 5}, {"crc64nvme": 7, "etag-md5": 1, "length": 1}),
        # Without CRCs, parts are read back and compared with the MD5s of the raw objects.
        ({"keeps_crc": False, "checks_crc": False}, True, {"read-back": 5}, {"etag-md5": 8, "length": 1}),
        # Without MD5s, too, only a copied part can be compared with its source.
        (
            {"keeps_crc": False, "checks_crc": False, "etag_is_md5": False},
            False,
            {"read-back": 5},
            {"length": 8, "read-back": 1},
        ),
    ],
)
def test_totals_have_the_proof_of_parts_and_objects(
    options: dict[str, Any], raw_md5: bool, by_parts: dict[str, int], by_objects: dict[str, int]
) -> None:
    store = FakeStore(**options)
    produce(store, RAW_HOUR, md5_etag=raw_md5)
    totals = run_hour(store, STREAM)
    assert (totals.verified.parts, totals.verified.objects) == (by_parts, by_objects)
    assert marker_of(store)["verified"] == {"parts": by_parts, "objects": by_objects}
    assert_complete(store, STREAM)


@pytest.mark.parametrize(
    ("source_options", "raw_md5", "target_options", "by_parts", "by_objects"),
    [
        # Both keep CRCs.
        ({}, True, {}, {"stored-crc64nvme": 5}, {"crc64nvme": 8, "length": 1}),
        # The source states MD5s only: the parts are read back.
        ({"keeps_crc": False}, True, {}, {"read-back": 5}, {"etag-md5": 8, "length": 1}),
        # The source states nothing: the CRC of what was received is that of the part.
        ({"keeps_crc": False}, False, {}, {"stored-crc64nvme": 5}, {"length": 9}),
        # The target keeps no CRCs: the parts are read back.
        (
            {}, True, {"keeps_crc": False, "checks_crc": False},
            {"read-back": 5}, {"crc64nvme": 8, "length": 1},
        ),
        # Neither states anything: only a large object is compared with its source.
        (
            {"keeps_crc": False}, False, {"keeps_crc": False, "checks_crc": False},
            {"read-back": 5}, {"length": 8, "read-back": 1},
        ),
    ],
)  # fmt: skip
def test_parts_at_another_store_are_proven(
    source_options: dict[str, Any], raw_md5: bool, target_options: dict[str, Any],
    by_parts: dict[str, int], by_objects: dict[str, int],
) -> None:  # fmt: skip
    source, target = FakeStore(**source_options), FakeStore(**target_options)
    produce(source, RAW_HOUR, md5_etag=raw_md5)
    totals = run_hour(join_stores(source, target), STREAM)
    assert joined_parts(target) == expected(source, STREAM)
    assert marker_of(target)["verified"] == {"parts": by_parts, "objects": by_objects}
    assert totals.parts == 5
    assert source.writes() == []


@pytest.mark.parametrize("keeps_crc", [True, False])
@pytest.mark.parametrize("number", [FIRST, COPIED])
def test_damaged_part_at_another_store_is_refused(keeps_crc: bool, number: int) -> None:
    source, target = FakeStore(keeps_crc=False), FakeStore(keeps_crc=keeps_crc, checks_crc=keeps_crc)
    produce(source, RAW_HOUR)
    store = join_stores(source, target)
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    target.corrupt(part_key(target, number), keep_etag=True)
    with pytest.raises(ProofError, match="1 of 5 parts are not proven"):
        validate_hour(store, STREAM, HOUR)
    assert_not_complete(target)


def test_objects_without_crc_are_compared_by_md5() -> None:
    store = FakeStore()
    produce(store, RAW_HOUR, algorithm=None)
    totals = run_hour(store, STREAM)
    assert totals.verified.parts == {"read-back": 4, "stored-crc64nvme": 1} or totals.verified.parts == {
        "read-back": 5
    }
    assert totals.verified.objects["etag-md5"] >= 7
    assert_complete(store, STREAM)


def test_no_body_is_read_if_the_store_has_all_crcs() -> None:
    store = packed_hour()
    validate_hour(store, STREAM, HOUR)
    assert not {"RANGE", "GET"} & {operation.kind for operation in store.log}


@given(hour=raw_hours, separators=st.booleans(), md5_etag=st.booleans(), chunk=st.integers(1, 40))
def test_read_back_works_with_any_chunk_size(
    hour: dict[str, bytes], separators: bool, md5_etag: bool, chunk: int
) -> None:
    stream = make_stream(ensure_newline=separators, allow_empty=True)
    store = FakeStore(keeps_crc=False, checks_crc=False)
    produce(store, hour, md5_etag=md5_etag)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.log_rollup.hour.parts.READ_BACK_BYTES", chunk)
        totals = run_hour(store, stream)
    assert_complete(store, stream)
    assert set(totals.verified.parts) <= {"read-back"}
    if md5_etag:
        read = sum(count for kind, count in totals.verified.objects.items() if kind == "etag-md5")
        assert read >= sum(1 for body in hour.values() if body) - totals.left_out.hidden


def test_proof_covers_every_byte_that_is_read_back() -> None:
    store = packed_hour(keeps_crc=False, checks_crc=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.log_rollup.hour.parts.READ_BACK_BYTES", 7)
        validate_hour(store, STREAM, HOUR)
    read: dict[str, list[tuple[int, int]]] = {}
    for operation in store.log:
        if operation.kind == "RANGE":
            offset, length = map(int, operation.detail.split("+"))
            read.setdefault(operation.name, []).append((offset, length))
    sizes = {name: len(body) for name, body in parts(store).items()}
    assert read.keys() == sizes.keys()
    for name, size in sizes.items():
        assert read[name] == [(start, min(7, size - start)) for start in range(0, size, 7)]


def test_parts_are_proven_in_parallel_on_all_connections() -> None:
    store = FakeStore(control_connections=3)
    produce(store, {f"{number}.log": b"x" * 60 for number in range(6)})
    # Parts are proven shard by shard.
    stream = make_stream(shard_size=1024)
    for ref in plan_hour(store, stream, HOUR, "run").shards:
        pack_shard(store, stream, ref)
    together = threading.Barrier(3)
    inside = threading.Semaphore(3)
    too_many: list[bool] = []

    def wait_in_get() -> None:
        too_many.append(not inside.acquire(blocking=False))
        together.wait(30)
        inside.release()

    store.on("HEAD", "part-", wait_in_get, times=6)
    validate_hour(store, stream, HOUR)
    assert too_many == [False] * 6


def test_progress_is_logged_while_parts_are_proven(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor, "SAMPLE_SECONDS", 0.005)
    monkeypatch.setattr(monitor, "LOG_SECONDS", 0.01)
    store = packed_hour(keeps_crc=False, checks_crc=False, control_connections=1)
    line = threading.Event()

    class ProgressWatcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Three parts of 60 bytes are done when the fourth begins.
            if record.getMessage().startswith("parts 3/5 compared | 180 B read back | "):
                line.set()

    def await_line() -> None:
        line.wait(30)

    handler = ProgressWatcher()
    logger = logging.getLogger("include.log_rollup.steps.validate_hour")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger.name)
    try:
        store.on("HEAD", "part-00003", await_line)
        validate_hour(store, STREAM, HOUR)
    finally:
        logger.removeHandler(handler)
    assert line.is_set()


# -- ETags that look like MD5s -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keeps_crc", "checks_crc", "algorithm"),
    [(True, True, "crc64nvme"), (True, True, None), (True, False, None), (False, False, None)],
)
@pytest.mark.parametrize("newline", [False, True])
def test_hour_with_random_etags_completes(
    keeps_crc: bool, checks_crc: bool, algorithm: str | None, newline: bool
) -> None:
    stream = make_stream(ensure_newline=newline)
    store = FakeStore(keeps_crc=keeps_crc, checks_crc=checks_crc, random_etags=True)
    produce(store, RAW_HOUR, algorithm=algorithm)
    run_hour(store, stream)
    assert_complete(store, stream)
    before = store.snapshot()
    run_hour(store, stream)
    assert store.snapshot() == before
    store.produce(RAW + "z.log", b"late", algorithm=algorithm)
    run_hour(store, stream)
    assert_complete(store, stream)


@pytest.mark.parametrize("number", [FIRST, COPIED])
def test_changed_bytes_are_found_with_random_etags(number: int) -> None:
    store = FakeStore(keeps_crc=False, checks_crc=False, random_etags=True)
    produce(store, RAW_HOUR)
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    store.corrupt(part_key(store, number), keep_etag=True)
    refusal(store, ProofError)
    assert_clear_completes(store)


def test_failed_part_stays_if_its_raw_objects_vanish_meanwhile() -> None:
    """A worker has written it again: its ETag is another one, but its bytes may be the last copy."""
    store = FakeStore(random_etags=True)
    produce(store, RAW_HOUR)
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    part = part_key(store, FIRST)
    before = store.body(part)
    store.produce(part, before)
    # Between the listing of the raw hour and the proof of the parts.
    store.on("HEAD", "part-00001", lambda: store.delete("logs", [f"{RAW}a.log"]))
    with pytest.raises(ProofError, match="Raw objects of 1 of them are gone"):
        validate_hour(store, STREAM, HOUR)
    assert store.body(part) == before


def test_wrong_copy_is_found_with_random_etags() -> None:
    store = FakeStore(keeps_crc=False, checks_crc=False, random_etags=True)
    produce(store, RAW_HOUR)
    store.on("COPY", "part-00003", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"part-00003-[0-9a-f]{8}\.log: its bytes"):
        run_hour(store, STREAM)
    assert_clear_completes(store)


@pytest.mark.parametrize("size", [30, 100])
def test_parts_without_md5_etags_excuse_nothing(size: int) -> None:
    """With KMS, ETags of parts are not MD5s, those of raw objects in another bucket are."""
    store = FakeStore(keeps_crc=False, checks_crc=False, etag_is_md5=False)
    produce(store, {"a.log": b"a" * size, "b.log": b"b" * 30}, md5_etag=True)
    store.on("COPY" if size > 64 else "GET", "part-0" if size > 64 else "a.log", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"its bytes of .*a\.log have MD5"):
        run_hour(store, STREAM)
    assert_clear_completes(store)


def test_random_etags_of_the_target_excuse_no_raw_object() -> None:
    source, target = FakeStore(keeps_crc=False), FakeStore(random_etags=True)
    produce(source, RAW_HOUR)
    store = join_stores(source, target)
    source.on("GET", "b.log", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"its bytes of .*b\.log have MD5"):
        run_hour(store, STREAM)
    assert_not_complete(target)
    run_hour(store, STREAM)
    assert joined_parts(target) == expected(source, STREAM)


def test_random_etags_of_the_source_are_read_again() -> None:
    source, target = FakeStore(keeps_crc=False, random_etags=True), FakeStore()
    produce(source, RAW_HOUR)
    run_hour(join_stores(source, target), STREAM)
    assert joined_parts(target) == expected(source, STREAM)


def test_raw_object_is_read_again_only_if_that_proves_it() -> None:
    store = FakeStore(keeps_crc=False, checks_crc=False, random_etags=True)
    produce(store, RAW_HOUR)
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    store.log.clear()
    validate_hour(store, STREAM, HOUR)
    read = [each.name for each in store.log if each.kind == "RANGE" and each.key.startswith(RAW)]
    assert read == ["g.log"]


# -- raw hours that differ from the plan ---------------------------------------------------------------


RawChange = Callable[[FakeStore], object]
RAW_CHANGES: dict[str, tuple[RawChange, str]] = {
    "late": (lambda store: store.produce(RAW + "z.log", b"late"), f"1 came late ({RAW}z.log)"),
    "late and empty": (lambda store: store.produce(RAW + "z.log", b""), f"1 came late ({RAW}z.log)"),
    "a late container": (lambda store: store.produce(RAW + "z.orc", b"ORC"), f"1 came late ({RAW}z.orc)"),
    "changed": (lambda store: store.produce(RAW + "c.log", b"C" * 30), f"1 changed ({RAW}c.log)"),
    "longer": (lambda store: store.produce(RAW + "c.log", b"c" * 31), f"1 changed ({RAW}c.log)"),
    "no longer empty": (lambda store: store.produce(RAW + "i.gz", b"now"), f"1 changed ({RAW}i.gz)"),
    "oversize one changed": (
        lambda store: store.produce(RAW + "g.log", b"G" * 100),
        f"1 changed ({RAW}g.log)",
    ),
    "vanished": (lambda store: store.vanish(RAW + "c.log"), f"1 vanished ({RAW}c.log)"),
    "empty one vanished": (lambda store: store.vanish(RAW + "i.gz"), f"1 vanished ({RAW}i.gz)"),
}


@pytest.mark.parametrize("change", RAW_CHANGES)
def test_changed_raw_hour_is_named_by_keys_and_left_alone(change: str) -> None:
    store = packed_hour()
    change_store, found = RAW_CHANGES[change]
    change_store(store)
    message = refusal(store, InputChangedError)
    assert found in message
    assert "Nothing is lost: clear the run from plan_hour on" in message
    assert store.writes() == []
    assert not store.has(MANIFEST)


@pytest.mark.parametrize("change", sorted({*RAW_CHANGES} - {"a late container"}))
def test_clearing_packs_the_current_raw_hour(change: str) -> None:
    store = packed_hour()
    RAW_CHANGES[change][0](store)
    refusal(store, InputChangedError)
    if "vanished" in change:
        with pytest.raises(VanishedInputError, match="1 of 9 raw objects"):
            plan_hour(store, STREAM, HOUR, "cleared")
    assert_clear_completes(store, drop_vanished="vanished" in change)


def test_late_objects_are_counted_and_the_first_named() -> None:
    store = packed_hour()
    produce(store, {f"z{number:04d}.log": b"late" for number in range(1200)})
    store.vanish(RAW + "a.log")
    message = refusal(store, InputChangedError)
    assert f"1,200 came late ({RAW}z0000.log, " in message
    assert "z0004.log, …)" in message
    assert "z0005.log" not in message
    assert f"1 vanished ({RAW}a.log)" in message


def test_late_hidden_objects_and_placeholders_change_nothing() -> None:
    store = packed_hour()
    produce(store, {"_late": b"x", "host/": b"", ".late": b"y"})
    totals = validate_hour(store, STREAM, HOUR)
    assert (totals.left_out.hidden, totals.left_out.placeholders) == (2, 1)


# -- parts that differ from what was written -----------------------------------------------------------


PartDamage = Callable[[FakeStore], object]
DAMAGES: dict[str, tuple[PartDamage, str]] = {
    "corrupted": (lambda store: store.corrupt(part_key(store, FIRST)), "part-00000.log: its ETag is "),
    "deleted": (
        lambda store: store.vanish(part_key(store, FIRST)),
        "part-00000.log: it is not in the bucket",
    ),
    "longer": (
        lambda store: store.produce(part_key(store, FIRST), store.body(part_key(store, FIRST)) + b"x"),
        "part-00000.log: it has 61 bytes, 60 were written",
    ),
    "copy corrupted": (lambda store: store.corrupt(part_key(store, COPIED)), "part-00003.log: its ETag is "),
    "copy deleted": (
        lambda store: store.vanish(part_key(store, COPIED)),
        "part-00003.log: it is not in the bucket",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_changed_part_is_removed_and_packed_again(damage: str) -> None:
    store = packed_hour()
    change_store, found = DAMAGES[damage]
    change_store(store)
    message = refusal(store, ProofError)
    assert found in message
    assert "1 of 5 parts are not proven" in message
    assert "The raw objects are untouched: clear the run from plan_hour on" in message
    assert len(parts(store)) == 4
    assert not store.has(MANIFEST)
    assert_clear_completes(store)


@pytest.mark.parametrize(("number", "name"), [(FIRST, "part-00000.log"), (COPIED, "part-00003.log")])
@pytest.mark.parametrize("keeps_crc", [True, False])
def test_silently_changed_bytes_are_found_by_reading_back(number: int, name: str, keeps_crc: bool) -> None:
    store = packed_hour(keeps_crc=keeps_crc, checks_crc=False)
    store.corrupt(part_key(store, number), keep_etag=True)
    message = refusal(store, ProofError)
    assert f"{name}: " in message
    assert name not in numbered(parts(store))
    assert_clear_completes(store)


@pytest.mark.parametrize("raw_md5", [True, False])
def test_wrong_copy_is_found_without_md5_etags(raw_md5: bool) -> None:
    store = FakeStore(keeps_crc=False, checks_crc=False, etag_is_md5=False)
    produce(store, RAW_HOUR, md5_etag=raw_md5)
    store.on("COPY", "part-00003", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"part-00003-[0-9a-f]{8}\.log: its bytes"):
        run_hour(store, STREAM)
    assert_not_complete(store)
    assert_clear_completes(store)


def test_part_stored_with_wrong_bytes_is_found() -> None:
    store = FakeStore(keeps_crc=False, checks_crc=False)
    produce(store, RAW_HOUR)
    store.on("PUT", "part-00001", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"part-00001-[0-9a-f]{8}\.log: read back it has CRC64NVME"):
        run_hour(store, STREAM)
    assert_not_complete(store)
    assert_clear_completes(store)


@pytest.mark.parametrize("effect", [Effect.WRONG_BYTES, Effect.WRONG_ETAG])
def test_wrong_raw_bytes_without_crc_are_found_by_md5(effect: Effect) -> None:
    store = FakeStore(keeps_crc=False, checks_crc=False)
    produce(store, RAW_HOUR)
    store.on("GET", "b.log", effect)
    if effect is Effect.WRONG_ETAG:
        run_hour(store, STREAM)
    else:
        with pytest.raises(ProofError, match=r"its bytes of .*b\.log have MD5"):
            run_hour(store, STREAM)
        assert_not_complete(store)
        assert_clear_completes(store)
    assert_complete(store, STREAM)


def test_crc_that_the_store_only_echoes_is_not_accepted() -> None:
    store = FakeStore(keeps_crc=True, checks_crc=False)
    produce(store, RAW_HOUR)
    store.on("PUT", "part-00001", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"part-00001-[0-9a-f]{8}\.log: "):
        run_hour(store, STREAM)
    assert_not_complete(store)
    assert_clear_completes(store)


def test_stored_crc_that_differs_from_the_sent_is_refused() -> None:
    store = packed_hour()
    first = part_key(store, FIRST)
    body, etag = store.body(first), store.stored(first).etag
    # The same ETag and length with other bytes: the store is at fault.
    store.produce(first, b"?" + body[1:])
    other = store.stored(first)
    object.__setattr__(other, "etag", etag)
    message = refusal(store, ProofError)
    assert "part-00000.log: the store has CRC64NVME" in message
    assert_clear_completes(store)


def test_part_overwritten_during_validation_is_refused() -> None:
    store = packed_hour()
    store.on("HEAD", "part-00000", lambda: store.corrupt(part_key(store, FIRST)))
    message = refusal(store, ProofError)
    assert "part-00000.log: it was overwritten while it was validated" in message
    assert_clear_completes(store)


def test_oversize_object_changed_during_validation_is_refused() -> None:
    store = packed_hour()
    store.on("HEAD", "g.log", lambda: _discard(store.produce(RAW + "g.log", b"G" * 100)))
    before = parts(store)
    message = refusal(store, InputChangedError)
    assert f"s3://logs/{RAW}g.log changed or vanished while the hour was validated" in message
    # The part itself is correct, and may hold the last copy.
    assert parts(store) == before
    assert_clear_completes(store)


def _discard(_: object) -> None:
    """Drop a result: the function of a rule returns nothing."""


def test_missing_shard_leaves_the_hour_incomplete() -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    first, *_ = plan_hour(store, STREAM, HOUR, "run").shards
    pack_shard(store, STREAM, first)
    message = refusal(store, ProofError)
    assert "it was not packed under this plan" in message
    assert_clear_completes(store)


def test_more_failures_than_can_be_shown_are_counted() -> None:
    store = FakeStore()
    produce(store, {f"{number:03d}.log": b"x" * 60 for number in range(12)})
    plan_hour(store, STREAM, HOUR, "run")
    message = refusal(store, ProofError)
    assert "12 of 12 parts are not proven" in message
    assert "and 7 more" in message
    assert message.count("part-0") == 5


def _change_receipt(store: FakeStore, change: Callable[[list[list[object]]], None]) -> None:
    """Change the rows of a receipt in the bucket."""
    (key, *_) = [key for key in store.listing(WORK) if "/receipt-00000" in key]
    receipt = json.loads(gzip.decompress(store.body(key)))
    change(receipt["parts"])
    store.produce(key, gzip.compress(json.dumps(receipt).encode()))


def _drop_object(rows: list[list[object]]) -> None:
    objects = rows[0][6]
    assert isinstance(objects, list)
    objects.pop()


def _add_separator(rows: list[list[object]]) -> None:
    objects = rows[0][6]
    assert isinstance(objects, list)
    objects[0][3] = 1


def _change_crc(rows: list[list[object]]) -> None:
    objects = rows[0][6]
    assert isinstance(objects, list)
    objects[0][0] = "0" * 16


def _swap_crcs(rows: list[list[object]]) -> None:
    objects = rows[0][6]
    assert isinstance(objects, list)
    objects[0], objects[1] = objects[1], objects[0]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_drop_object, "it holds 1 objects, 2 were planned"),
        (_add_separator, "it has 60 bytes, its raw objects 60, separators 1"),
        (_change_crc, "its CRC is not the combination of its raw objects' CRCs"),
        (_swap_crcs, "its CRC is not the combination of its raw objects' CRCs"),
        (lambda rows: rows.pop(0), "it was not packed under this plan"),
    ],
)
def test_receipt_that_does_not_add_up_proves_nothing(
    change: Callable[[list[list[object]]], None], found: str
) -> None:
    store = packed_hour()
    _change_receipt(store, change)
    assert f"part-00000.log: {found}" in refusal(store, ProofError)
    assert_clear_completes(store)


def test_stray_parts_are_removed_after_the_manifest() -> None:
    """A record names the parts of the overtaken run; planning has removed the marker."""
    store = FakeStore()
    produce(store, {**RAW_HOUR, "bb.log": b"late" * 9})
    for ref in plan_hour(store, STREAM, HOUR, "overtaken").shards:
        pack_shard(store, STREAM, ref)
    before = parts(store)
    store.vanish(RAW + "bb.log")
    for ref in plan_hour(store, STREAM, HOUR, "run", drop_vanished=True).shards:
        pack_shard(store, STREAM, ref)
    store.log.clear()
    validate_hour(store, STREAM, HOUR)
    names = [f"{operation.kind} {operation.name}" for operation in store.writes()]
    gone = before.keys() - parts(store).keys()
    assert gone
    record = next(number for number, each in enumerate(store.writes()) if "/removals/" in each.key)
    for name in gone:
        assert names.index("PUBLISH _manifest.jsonl.gz") < record < names.index(f"DELETE {name}")
    complete_hour(store, STREAM, HOUR)
    assert_complete(store, STREAM)


FOREIGN = ("part-00099.log", "part-00000.log.gz", "part-00001.log.snappy", "part-00001-0123abcd.log", "x/y")


@pytest.mark.parametrize("state", ["complete", "unfinished", "proven by the next plan"])
def test_part_of_a_left_out_object_that_vanishes_stays(state: str) -> None:
    """Planning saw the object, so it would remove the part; then the object vanishes."""
    store = packed_hour()
    if state != "unfinished":
        run_hour(store, STREAM)
    stream = make_stream(exclude=("a.log",))
    for ref in plan_hour(store, stream, HOUR, "other settings").shards:
        pack_shard(store, stream, ref)
    if state == "proven by the next plan":
        store.on("WRITE", REMOVALS, TransientError("503"), times=1)
        with pytest.raises(TransientError):
            validate_hour(store, stream, HOUR)
    before = store.snapshot(AGGREGATED)
    store.vanish(RAW + "a.log")
    message = refusal(store, InputChangedError, stream)
    assert f"1 raw objects ({RAW}a.log) that are left out now are gone" in message
    with pytest.raises(VanishedInputError, match=r"a\.log"):
        plan_hour(store, stream, HOUR, "cleared")
    assert store.snapshot(AGGREGATED) == before
    run_hour(store, stream, drop_vanished=True)
    assert_complete(store, stream)


def test_part_of_a_left_out_object_that_exists_is_removed() -> None:
    store = packed_hour()
    run_hour(store, STREAM)
    stream = make_stream(exclude=("a.log",))
    totals = run_hour(store, stream)
    assert totals.left_out.excluded == 1
    held = {row["key"] for row in manifest_of(store)[1]}
    assert held == {RAW + name for name in RAW_HOUR} - {RAW + "a.log"}
    assert parts(store).keys() == {entry["name"] for entry in manifest_of(store)[0]["parts_table"]}


def test_foreign_objects_are_counted_and_stay() -> None:
    store = packed_hour()
    others = {AGGREGATED + name: b"foreign" for name in FOREIGN}
    for key, body in others.items():
        store.produce(key, body)
    assert validate_hour(store, STREAM, HOUR).foreign == len(FOREIGN)
    complete_hour(store, STREAM, HOUR)
    assert validate_hour(store, STREAM, HOUR).foreign == len(FOREIGN)
    assert {key: store.body(key) for key in others} == others
    assert marker_of(store)["foreign"] == len(FOREIGN)
    assert_right(store, STREAM)


def test_stray_parts_stay_if_a_part_is_not_proven() -> None:
    store = FakeStore()
    produce(store, {**RAW_HOUR, "bb.log": b"late" * 9})
    for ref in plan_hour(store, STREAM, HOUR, "overtaken").shards:
        pack_shard(store, STREAM, ref)
    before = parts(store)
    store.vanish(RAW + "bb.log")
    for ref in plan_hour(store, STREAM, HOUR, "run", drop_vanished=True).shards:
        pack_shard(store, STREAM, ref)
    now = parts(store).keys() - before.keys()
    store.corrupt(AGGREGATED + min(now))
    refusal(store, ProofError)
    assert parts(store).keys() == (before.keys() | now) - {min(now)}
    assert_clear_completes(store, drop_vanished=True)


# -- missing plans -------------------------------------------------------------------------------------


def test_hour_that_was_never_planned_cannot_be_validated() -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    message = refusal(store, SupersededError)
    assert "nothing is planned for 2026-11-23T08:00:00Z" in message
    assert "clear the run from plan_hour on" in message


@pytest.mark.parametrize("name", ["plan.json", "shard-00001.json.gz"])
def test_incomplete_plan_cannot_be_validated(name: str) -> None:
    store = packed_hour()
    (key,) = [key for key in store.listing(WORK) if key.endswith(name)]
    store.vanish(key)
    assert "clear the run from plan_hour on" in refusal(store, SupersededError)
    assert_clear_completes(store)


def test_marker_of_another_plan_counts_as_unplanned() -> None:
    store = packed_hour()
    run_hour(store, STREAM)
    marker = marker_of(store)
    store.produce(MARKER, json.dumps({**marker, "plan_id": "another"}).encode())
    with pytest.raises(SupersededError, match="clear the run from plan_hour on"):
        validate_hour(store, STREAM, HOUR)


# -- complete hours ------------------------------------------------------------------------------------


@pytest.mark.parametrize("checks_crc", [True, False])
def test_complete_hour_is_proven_again_without_changes(checks_crc: bool) -> None:
    store = FakeStore(keeps_crc=checks_crc, checks_crc=checks_crc)
    produce(store, RAW_HOUR)
    before = run_hour(store, STREAM)
    kept = store.snapshot()
    store.log.clear()
    assert validate_hour(store, STREAM, HOUR).bytes_out == before.bytes_out
    assert store.snapshot() == kept
    # The manifest has proofs for these ETags.
    assert "RANGE" not in {operation.kind for operation in store.log}


def assert_marker_removed_first(store: FakeStore) -> None:
    """Check that the marker was removed after the claim and before any part."""
    claim, marker, *others = [each for each in store.writes() if "/staged-" not in each.key]
    assert (claim.kind, claim.key) == ("WRITE", CLAIM)
    assert (marker.kind, marker.key) == ("DELETE", MARKER)
    assert MARKER not in {operation.key for operation in others}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_part_removes_the_marker_first(damage: str) -> None:
    store = packed_hour()
    run_hour(store, STREAM)
    DAMAGES[damage][0](store)
    store.log.clear()
    message = refusal(store, ProofError)
    assert "The hour is no longer complete, its marker is removed." in message
    assert_marker_removed_first(store)
    assert_clear_completes(store)


def test_complete_hour_with_a_late_object_keeps_its_marker() -> None:
    store = packed_hour()
    run_hour(store, STREAM)
    store.produce(RAW + "z.log", b"late")
    with pytest.raises(InputChangedError, match=r"z\.log"):
        validate_hour(store, STREAM, HOUR)
    assert store.has(MARKER)
    assert_clear_completes(store)


def test_damaged_part_removes_the_marker_without_cleanup() -> None:
    store = packed_hour()
    validate_hour(store, STREAM, HOUR)
    rule = store.on("DELETE", "_rollup/", RollupError("cut short"), times=99)
    with pytest.raises(RollupError, match="cut short"):
        complete_hour(store, STREAM, HOUR)
    rule.times = 0
    assert store.has(MARKER)
    assert store.has(CLAIM)
    store.corrupt(part_key(store, FIRST))
    store.log.clear()
    with pytest.raises(ProofError):
        validate_hour(store, STREAM, HOUR)
    assert_not_complete(store)
    assert_marker_removed_first(store)
    assert_clear_completes(store)


@pytest.mark.parametrize("error", [AccessError("denied"), TransientError("internal error")], ids=str)
def test_damaged_part_stays_if_the_marker_stays(error: RollupError) -> None:
    store = packed_hour()
    run_hour(store, STREAM)
    store.corrupt(part_key(store, FIRST))
    before = parts(store)
    store.on("DELETE", "_SUCCESS", error)
    with pytest.raises(type(error)):
        validate_hour(store, STREAM, HOUR)
    assert store.has(MARKER)
    assert parts(store) == before
    assert_clear_completes(store)


def test_etag_of_an_empty_object_is_the_md5_of_no_bytes() -> None:
    # With it, the empty objects above can be compared with a listing.
    store = FakeStore()
    assert store.produce(RAW + "x", b"") == hashlib.md5(b"").hexdigest()


# -- claims that are older than what another run has proven -------------------------------------------------


def test_plan_older_than_the_manifest_of_another_run_is_refused() -> None:
    """Its run dies as soon as it has claimed the hour, before it can notice the other one."""
    store = FakeStore()
    produce(store, RAW_HOUR)

    def complete() -> None:
        produce(store, {"zz.log": b"late"})
        run_hour(store.another_client(), STREAM, "another")
        store.vanish(RAW + "zz.log")
        store.on("LIST", "_rollup/", CrashError())

    store.on("WRITE", "/shard-", complete)
    with pytest.raises(CrashError):
        plan_hour(store, STREAM, HOUR, "dies")
    before = store.snapshot()
    with pytest.raises(SupersededError, match=r"another run has proven the hour since plan .* was made"):
        validate_hour(store, STREAM, HOUR)
    assert store.snapshot() == before
    assert b"late" in b"".join(parts(store).values())


def test_part_stays_whose_raw_object_vanishes_before_it_is_rejected() -> None:
    """Another run that claims the hour in between may rely on it."""
    store = FakeStore(random_etags=True)
    produce(store, RAW_HOUR)
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    # Another try has written it, too, after this one.
    store.produce(part_key(store, 0), store.body(part_key(store, 0)))
    before = parts(store)
    store.on("WRITE", "claim.json", lambda: store.vanish(RAW + "a.log"))
    with pytest.raises(ProofError, match=r"Raw objects of 1 of them are gone .* left alone"):
        validate_hour(store, STREAM, HOUR)
    assert parts(store) == before


def test_hour_with_a_rejected_part_has_to_be_planned_again() -> None:
    """The server may carry out the delete of the part at any time, so no task may rely on its name."""
    store = packed_hour()
    rejected, body = part_key(store, 0), store.body(part_key(store, 0))
    store.corrupt(rejected)
    store.on("DELETE", "part-", TransientError("the connection broke"))
    with pytest.raises(TransientError):
        validate_hour(store, STREAM, HOUR)
    # Another try of pack_shard has packed it again.
    store.produce(rejected, body)
    with pytest.raises(SupersededError, match="clear the run from plan_hour on"):
        validate_hour(store, STREAM, HOUR)
    run_hour(store, STREAM)
    assert not store.has(rejected)
    # The removal record of the interrupted delete stays.
    assert_complete(store, STREAM, died=True)
