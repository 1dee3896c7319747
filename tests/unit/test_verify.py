"""verify proves a complete hour again: it finds and names what is wrong, and changes nothing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from include.log_rollup.errors import NotFoundError, ProofError, SupersededError, TransientError
from include.log_rollup.queries.verify import Verification, verify_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.storage.protocol import Location, ObjectHead
from include.log_rollup.streams import Stream
from tests.support.fake_store import Effect, FakeStore
from tests.support.hour_in_memory import (
    CLAIM,
    MANIFEST,
    MARKER,
    assert_complete,
    make_stream,
    part_key,
    part_name,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

pytestmark = pytest.mark.usefixtures("unwatched")

# Three plain parts, one of gzip, one that is copied.
RAW_HOUR: Mapping[str, bytes] = {
    **{f"{letter}.log": letter.encode() * 30 for letter in "abcdef"},
    "g.log": b"g" * 100,
    "h.gz": b"h" * 30,
    "i.gz": b"",
}
STREAM = make_stream()
PART = 0
COPIED = 3


def complete_hour(stream: Stream = STREAM, **options: Any) -> FakeStore:
    store = FakeStore(**options)
    produce(store, RAW_HOUR)
    run_hour(store, stream)
    store.log.clear()
    return store


def verify(store: FakeStore, deep: bool = False, stream: Stream = STREAM) -> Verification:
    """Verify the hour, and check that nothing was written."""
    store.log.clear()
    before = store.snapshot()
    found = verify_hour(store, stream, HOUR, deep=deep)
    assert store.writes() == []
    assert store.snapshot() == before
    return found


def damage_silently(store: FakeStore, key: str) -> None:
    """Damage an object as a disk would: the store still returns the old ETag and CRC."""
    store.corrupt(key, keep_etag=True)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"etag_is_md5": False}, {"keeps_crc": False, "checks_crc": False}, {"checks_crc": False}]
)
@pytest.mark.parametrize("newline", [False, True])
def test_correct_hour_passes_whatever_the_store_keeps(
    options: Mapping[str, Any], deep: bool, newline: bool
) -> None:
    stream = make_stream(ensure_newline=newline)
    found = verify(complete_hour(stream, **options), deep, stream)
    assert (found.problems, found.remedy) == ([], None)
    assert (found.objects, found.parts, found.raw_present) == (9, len(parts(complete_hour(stream))), 9)
    assert (found.bytes_in, found.bytes_out - found.bytes_in) == (310, 6 if newline else 0)
    assert found.raw_compared == (9 if deep else 0)
    assert sum(found.proofs.values()) == found.parts


def test_stored_crc_is_enough_without_deep() -> None:
    store = complete_hour()
    assert verify(store).proofs == {"stored-crc64nvme": 5}
    assert {operation.kind for operation in store.log} == {"LIST", "READ", "HEAD"}


def test_unchanged_etag_is_enough_for_a_read_back_part() -> None:
    store = complete_hour(keeps_crc=False, checks_crc=False)
    assert verify(store).proofs == {"same-etag": 5}
    assert {operation.kind for operation in store.log} == {"LIST", "READ"}


@pytest.mark.parametrize("chunk", [7, 32, 1000])
def test_deep_reads_every_byte_of_parts_and_raw(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("include.log_rollup.hour.parts.READ_BACK_BYTES", chunk)
    store = complete_hour()
    assert verify(store, deep=True).proofs == {"read-back": 5}
    read: dict[str, int] = {}
    for operation in store.log:
        if operation.kind == "RANGE":
            read[operation.key] = read.get(operation.key, 0) + int(operation.detail.partition("+")[2])
    sizes = {key: len(found.body) for key, found in store.snapshot().items() if found.body}
    assert read == {key: size for key, size in sizes.items() if key.startswith((RAW, AGGREGATED + "part-"))}


@pytest.mark.parametrize("number", [PART, COPIED])
@pytest.mark.parametrize("deep", [False, True])
def test_rewritten_part_is_named(number: int, deep: bool) -> None:
    store = complete_hour()
    store.corrupt(part_key(store, number))
    (problem,) = verify(store, deep).problems
    assert problem.part == part_name(store, number)
    assert "its ETag is" in problem.reason


@pytest.mark.parametrize("expired", [False, True])
def test_silent_damage_is_found_only_by_deep(expired: bool) -> None:
    store = complete_hour()
    for number in (PART, COPIED):
        damage_silently(store, part_key(store, number))
    if expired:
        for name in RAW_HOUR:
            store.vanish(RAW + name)
    assert verify(store).problems == []
    problems = verify(store, deep=True).problems
    assert [(problem.part, list(problem.keys)) for problem in problems] == [
        (part_name(store, PART), [f"{RAW}a.log"]),
        (part_name(store, COPIED), [f"{RAW}g.log"]),
    ]


def test_remedy_of_a_damaged_part_works() -> None:
    store = complete_hour()
    damage_silently(store, part_key(store, PART))
    found = verify(store, deep=True)
    assert found.remedy is not None
    assert found.remedy.startswith(
        "Delete _SUCCESS, then those parts, then clear the hour's run from plan_hour on"
    )
    store.vanish(MARKER)
    for problem in found.problems:
        store.vanish(f"{AGGREGATED}{problem.part}")
    run_hour(store, STREAM)
    assert_complete(store, STREAM)
    assert verify(store, deep=True).problems == []


def test_damaged_part_of_expired_objects_has_another_remedy() -> None:
    store = complete_hour()
    damage_silently(store, part_key(store, PART))
    store.vanish(RAW + "f.log")
    assert "a rerun is refused" in (verify(store, deep=True).remedy or "")


def test_silently_changed_raw_object_is_named() -> None:
    store = complete_hour()
    damage_silently(store, RAW + "c.log")
    found = verify(store, deep=True)
    (problem,) = found.problems
    assert (problem.part, list(problem.keys), found.remedy) == (None, [f"{RAW}c.log"], None)
    assert f"{part_name(store, 1)} holds what was packed" in problem.reason


def test_part_rewritten_after_its_listing_is_a_problem() -> None:
    store = complete_hour()
    store.on("HEAD", "part-00000", lambda: store.corrupt(part_key(store, PART)))
    (problem,) = verify_hour(store, STREAM, HOUR).problems
    assert problem.part == part_name(store, PART)
    assert "while it was verified" in problem.reason


def test_stored_crc_that_was_never_sent_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    store = complete_hour()
    head_of_store = store.head

    def head_with_other_crc(target: Location) -> ObjectHead | None:
        head = head_of_store(target)
        return replace(head, crc64nvme=1) if head and target.key == part_key(store, PART) else head

    monkeypatch.setattr(store, "head", head_with_other_crc)
    (problem,) = verify(store).problems
    assert problem.part == part_name(store, PART)
    assert "the store has CRC64NVME 1, " in problem.reason


def test_missing_part_is_a_problem() -> None:
    store = complete_hour()
    name = part_name(store, PART)
    store.vanish(AGGREGATED + name)
    assert {problem.part: problem.reason for problem in verify(store).problems} == {
        name: "it is not in the bucket"
    }


@pytest.mark.parametrize("deep", [False, True])
def test_foreign_objects_are_counted_without_a_problem(deep: bool) -> None:
    store = complete_hour()
    for name in ("part-00009.log", "part-00000.log", "part-00001-0123abcd.log", "_rollup/notes.txt", "x"):
        store.produce(AGGREGATED + name, b"foreign")
    found = verify(store, deep)
    assert (found.foreign, found.problems, found.remedy) == (5, [], None)


def test_part_of_an_overtaken_run_is_a_problem_of_the_hour() -> None:
    store, late = complete_hour(), FakeStore()
    produce(late, {**RAW_HOUR, "c.log": b"C" * 30})
    for ref in plan_hour(late, STREAM, HOUR, "overtaken").shards:
        pack_shard(late, STREAM, ref)
    for key, found in late.snapshot(AGGREGATED).items():
        if key != CLAIM:
            store.produce(key, found.body)
    (problem,) = verify(store).problems
    assert problem.part is None
    assert "a run that was overtaken left it behind" in problem.reason
    run_hour(store, STREAM)
    assert verify(store).problems == []


@pytest.mark.parametrize("deep", [False, True])
def test_expired_raw_objects_are_reported_without_a_problem(deep: bool) -> None:
    store = complete_hour()
    for name in ("a.log", "g.log"):
        store.vanish(RAW + name)
    found = verify(store, deep)
    assert found.problems == []
    assert found.changes.vanished == [f"{RAW}a.log", f"{RAW}g.log"]
    assert (found.raw_present, found.raw_compared) == (7, 7 if deep else 0)


def test_raw_objects_may_expire_during_the_comparison() -> None:
    store = complete_hour()
    store.on("RANGE", RAW + "a.log", lambda: store.vanish(RAW + "a.log"))
    found = verify_hour(store, STREAM, HOUR, deep=True)
    assert (found.problems, found.raw_compared) == ([], 8)


@pytest.mark.parametrize("deep", [False, True])
def test_late_and_changed_raw_objects_are_a_problem_of_the_hour(deep: bool) -> None:
    store = complete_hour()
    produce(store, {"late.log": b"late", "a.log": b"another"})
    (problem,) = verify(store, deep).problems
    assert problem.part is None
    assert "1 came late" in problem.reason
    assert "1 changed" in problem.reason
    assert "clear its run" in problem.reason
    store.vanish(RAW + "b.log")
    (problem,) = verify(store, deep).problems
    assert "a rerun is refused" in problem.reason


def test_marker_that_differs_from_the_manifest_is_a_problem() -> None:
    store = complete_hour()
    store.produce(MARKER, store.body(MARKER).replace(b'"objects": 9', b'"objects": 8'))
    (problem,) = verify(store).problems
    assert problem.reason == "objects: _SUCCESS says 8, the manifest's header 9, its lines 9"


def test_incomplete_hour_is_an_error_with_its_state() -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    with pytest.raises(NotFoundError, match="no run has planned it"):
        verify_hour(store, STREAM, HOUR)
    planned = plan_hour(store, STREAM, HOUR, "run")
    with pytest.raises(NotFoundError, match=f"being built as plan {planned.plan_id}"):
        verify_hour(store, STREAM, HOUR)


@pytest.mark.parametrize("gone", [MARKER, MANIFEST])
def test_records_that_are_not_of_this_version_prove_nothing(gone: str) -> None:
    store = complete_hour()
    if gone == MANIFEST:
        store.vanish(MANIFEST)
    else:
        store.produce(MARKER, b'{"format": 99}')
    with pytest.raises(ProofError, match="of this version"):
        verify_hour(store, STREAM, HOUR)


def test_manifest_of_another_plan_proves_nothing() -> None:
    store = complete_hour()
    other = complete_hour(make_stream(part_size=100))
    store.produce(MANIFEST, other.body(MANIFEST))
    with pytest.raises(ProofError, match="is of plan"):
        verify_hour(store, STREAM, HOUR)


def test_hour_replaced_during_verify_is_reported_as_such() -> None:
    store = complete_hour()

    def rerun_hour() -> None:
        produce(store, {"late.log": b"late"})
        plan_hour(store, STREAM, HOUR, "rerun")
        store.corrupt(part_key(store, PART))

    store.on("LIST", RAW, rerun_hour)
    with pytest.raises(SupersededError, match="verify it again"):
        verify_hour(store, STREAM, HOUR)


def test_part_rewritten_while_read_is_a_problem() -> None:
    store = complete_hour()
    store.on("RANGE", "part-00000", lambda: store.corrupt(part_key(store, PART)))
    (problem,) = verify_hour(store, STREAM, HOUR, deep=True).problems
    assert "while it was verified" in problem.reason


@pytest.mark.parametrize("deep", [False, True])
def test_network_error_is_raised(deep: bool) -> None:
    store = complete_hour()
    store.on("RANGE" if deep else "HEAD", "part-00000", TransientError("the connection broke"))
    with pytest.raises(TransientError):
        verify_hour(store, STREAM, HOUR, deep=deep)


def test_bit_flipped_in_transfer_is_not_accepted() -> None:
    store = complete_hour()
    store.on("RANGE", "part-00000", Effect.WRONG_BYTES)
    (problem,) = verify_hour(store, STREAM, HOUR, deep=True).problems
    assert problem.part == part_name(store, PART)


@pytest.mark.parametrize("deep", [False, True])
def test_progress_ends_with_all_bytes_in_every_case(deep: bool) -> None:
    store = complete_hour()
    store.vanish(part_key(store, PART))
    seen: list[tuple[int, int]] = []
    verify_hour(store, STREAM, HOUR, deep=deep, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (310, 310)
    assert seen == sorted(seen)


def test_empty_hour_passes() -> None:
    stream = make_stream(allow_empty=True)
    store = FakeStore()
    run_hour(store, stream)
    found = verify(store, True, stream)
    assert (found.problems, found.parts, found.proofs) == ([], 0, {})
