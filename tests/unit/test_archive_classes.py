"""Parts in archive classes are proven without reading them, or nothing is written."""

import logging
import re
from datetime import timedelta
from typing import Any

import pytest

from include.log_rollup.errors import ArchivedError, InputChangedError, ProofError, UnsupportedOperationError
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.hour.plan import WriteOptions
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps import packer
from include.log_rollup.steps.expire_hour import ExpiryState, expire_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage_options import class_warnings, describe_class
from include.log_rollup.streams import parse_streams
from include.log_rollup.units import MIB
from tests.support.fake_store import Effect, FakeStore
from tests.support.hour_in_memory import (
    MARKER,
    assert_complete,
    make_stream,
    manifest_of,
    marker_of,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

ARCHIVED = make_stream(storage_class="GLACIER")
OBJECTS = {f"{number}.log": b"%d" % number * 20 for number in range(8)}
LARGE = {**OBJECTS, "large.log": b"l" * 200}


def part_reads(store: FakeStore) -> list[str]:
    return [
        str(operation)
        for operation in store.log
        if operation.kind in ("RANGE", "READ", "GET") and operation.key.startswith(AGGREGATED + "part-")
    ]


def classes(store: FakeStore) -> dict[str, set[str]]:
    """Return the storage classes of parts and of all other files."""
    found: dict[str, set[str]] = {"parts": set(), "records": set()}
    for key, stored in store.snapshot(AGGREGATED).items():
        found["parts" if "/part-" in key else "records"].add(stored.storage_class)
    return found


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_parts_are_archived_and_records_are_not(storage_class: str) -> None:
    store = FakeStore()
    produce(store, LARGE)
    run_hour(store, make_stream(storage_class=storage_class))
    assert classes(store) == {"parts": {storage_class}, "records": {""}}
    assert_complete(store, ARCHIVED)
    assert marker_of(store)["verified"]["parts"] == {"stored-crc64nvme": len(parts(store))}
    assert part_reads(store) == []


@pytest.mark.parametrize("md5_etag", [True, False])
@pytest.mark.parametrize("copies_keep_crc", [True, False])
def test_objects_without_a_crc_are_read_again(md5_etag: bool, copies_keep_crc: bool) -> None:
    store = FakeStore()
    store.copies_keep_crc = copies_keep_crc
    produce(store, LARGE, algorithm=None, md5_etag=md5_etag)
    run_hour(store, ARCHIVED)
    assert_complete(store, ARCHIVED)
    verified = marker_of(store)["verified"]
    assert verified["parts"] == {"stored-crc64nvme": len(parts(store))}
    kinds = {row["checked"] for row in manifest_of(store)[1]}
    assert kinds <= ({"etag-md5"} if md5_etag else {"length", "read-back"})
    assert part_reads(store) == []


@pytest.mark.parametrize("keeps_crc", [True, False])
def test_copy_without_a_crc_passes_through_the_worker(keeps_crc: bool) -> None:
    """Some servers state the CRC of a copy only in the answer to HEAD, others not at all."""
    store = FakeStore()
    store.copies_answer_crc, store.copies_keep_crc = False, keeps_crc
    produce(store, LARGE)
    run_hour(store, ARCHIVED)
    assert_complete(store, ARCHIVED)
    kinds = [operation.kind for operation in store.log if operation.kind in ("COPY", "BEGIN", "FINISH")]
    assert kinds == (["COPY"] if keeps_crc else ["COPY", "BEGIN", "FINISH"])


def test_very_large_object_is_not_copied_in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "LARGEST_COPY_BYTES", 100)
    store = FakeStore()
    produce(store, LARGE)
    run_hour(store, ARCHIVED)
    assert_complete(store, ARCHIVED)
    kinds = {operation.kind for operation in store.log}
    assert not kinds & {"COPY", "RANGECOPY"}
    assert {"GETRANGE", "PUTRANGE"} <= kinds


@pytest.mark.parametrize("lacks", [{"keeps_crc": False}, {"checks_crc": False}])
def test_store_without_crcs_is_refused_before_anything_is_written(lacks: dict[str, Any]) -> None:
    store = FakeStore(**lacks)
    produce(store, OBJECTS)
    with pytest.raises(UnsupportedOperationError, match="could not be proven in the storage class GLACIER"):
        run_hour(store, ARCHIVED)
    assert store.listing(AGGREGATED) == []
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def test_parts_archived_before_validation_stay_and_can_be_retrieved() -> None:
    stream = make_stream()
    store = FakeStore(keeps_crc=False)
    produce(store, OBJECTS)
    store.on("HEAD", "part-", lambda: store.archive(AGGREGATED + "part-"), times=1)
    with pytest.raises(ArchivedError, match=r"states no CRC64-NVME of it.*Nothing was removed"):
        run_hour(store, stream)
    assert not store.has(MARKER)
    written = parts(store)
    assert len(written) > 1
    store.retrievals = dict.fromkeys(store.listing(AGGREGATED + "part-"), True)
    run_hour(store, stream)
    assert parts(store) == written
    assert_complete(store, stream)


def test_rerun_keeps_archived_parts() -> None:
    for stream, keeps_crc in ((ARCHIVED, True), (make_stream(), True), (make_stream(), False)):
        store = FakeStore(keeps_crc=keeps_crc)
        produce(store, LARGE)
        run_hour(store, stream)
        store.archive(AGGREGATED + "part-")
        before = store.snapshot(AGGREGATED + "part-")
        store.vanish(MARKER)
        store.log.clear()
        run_hour(store, stream)
        assert store.snapshot(AGGREGATED + "part-") == before
        assert part_reads(store) == []
        validate_hour(store, stream, HOUR)
        assert_complete(store, stream)


@pytest.mark.parametrize("algorithm", ["crc64nvme", None])
@pytest.mark.parametrize("written_archived", [True, False])
def test_archived_parts_outlive_their_raw_objects(algorithm: str | None, written_archived: bool) -> None:
    stream = make_stream(
        storage_class="GLACIER" if written_archived else None,
        expire_raw=ExpireRaw(after=timedelta(days=14), mode="delete"),
    )
    store = FakeStore()
    produce(store, LARGE, algorithm=algorithm)
    run_hour(store, stream)
    store.archive(AGGREGATED + "part-", "DEEP_ARCHIVE")
    assert expire_hour(store, stream, HOUR).state is ExpiryState.EXPIRED
    assert store.listing(RAW) == []
    before = store.snapshot(AGGREGATED + "part-")
    produce(store, {"late.log": b"late\n"}, algorithm=algorithm)
    store.log.clear()
    run_hour(store, stream)
    after = store.snapshot(AGGREGATED + "part-")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    assert not [read for read in part_reads(store) if read.partition(" ")[2] in before]
    assert verify_hour(store, stream, HOUR).problems == []


def test_wrong_bytes_in_an_archived_part_are_found() -> None:
    store = FakeStore()
    produce(store, LARGE, algorithm=None)
    store.on("GET", RAW + "3.log", Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"its bytes of .*3[.]log are not those of the raw object"):
        run_hour(store, ARCHIVED)
    run_hour(store, ARCHIVED)
    assert_complete(store, ARCHIVED)


def test_raw_object_that_changes_before_the_proof_stops_it() -> None:
    store = FakeStore()
    produce(store, OBJECTS, algorithm=None)
    changed = False

    def change() -> None:
        nonlocal changed
        if not changed:
            changed = True
            store.vanish(RAW + "3.log")

    store.on("RANGE", RAW, change)
    with pytest.raises(InputChangedError, match="changed or vanished while the hour was validated"):
        run_hour(store, ARCHIVED)
    assert parts(store)


def test_archived_raw_object_stops_the_hour() -> None:
    store = FakeStore()
    produce(store, LARGE)
    store.archive(RAW + "large.log")
    with pytest.raises(ArchivedError):
        run_hour(store, make_stream())
    assert not store.has(MARKER)


def test_only_archive_classes_are_archived() -> None:
    for storage_class in (None, "STANDARD", "STANDARD_IA", "GLACIER_IR", "INTELLIGENT_TIERING"):
        assert not WriteOptions(storage_class=storage_class).is_archived
    assert WriteOptions(storage_class="DEEP_ARCHIVE").is_archived


# -- verify ------------------------------------------------------------------------------------------------


def test_verify_names_archived_parts_and_keeps_them() -> None:
    store = FakeStore()
    produce(store, OBJECTS)
    run_hour(store, ARCHIVED)
    assert verify_hour(store, ARCHIVED, HOUR).problems == []
    deep = verify_hour(store, ARCHIVED, HOUR, deep=True)
    assert {problem.part for problem in deep.problems} == {
        key.removeprefix(AGGREGATED) for key in store.listing(AGGREGATED + "part-")
    }
    assert deep.remedy is not None
    assert "Retrieve these parts" in deep.remedy
    assert "Delete" not in deep.remedy


# -- warnings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage_class", "settings", "words"),
    [
        (None, {"late_merge": True, "has_groups": True}, []),
        ("STANDARD", {"late_merge": True, "has_groups": True}, []),
        ("DEEP_ARCHIVE", {}, []),
        ("DEEP_ARCHIVE", {"late_merge": True}, ["late_merge: storage_class DEEP_ARCHIVE bills.*180 days"]),
        ("GLACIER", {"has_groups": True}, ["aggregated: .*GLACIER adds 40.0 KiB to each part"]),
        ("STANDARD_IA", {"has_groups": True}, ["aggregated: .*as at least 128.0 KiB"]),
        ("GLACIER", {"part_size": 5 * MIB}, ["part_size: 5.0 MiB is small.*at least 32.0 MiB"]),
        ("GLACIER_IR", {"part_size": 5 * MIB}, []),
    ],
)
def test_minimum_durations_and_sizes_are_warned_about(
    storage_class: str | None, settings: dict[str, Any], words: list[str]
) -> None:
    given = {"part_size": 32 * MIB, "has_groups": False, "late_merge": False, **settings}
    found = class_warnings(storage_class, given.pop("part_size"), **given)
    assert len(found) == len(words)
    for warning, pattern in zip(found, words, strict=True):
        assert re.search(pattern, warning), warning


def test_terms_of_a_class_are_one_line() -> None:
    assert describe_class("STANDARD") == describe_class("") == ""
    assert describe_class("GLACIER").startswith("GLACIER bills each part for 90 days at least")
    assert "40.0 KiB more" in describe_class("DEEP_ARCHIVE")


def test_reading_the_streams_file_logs_warnings(caplog: pytest.LogCaptureFixture) -> None:
    text = (
        b"streams: [{name: cold, raw: 's3://logs/raw/{app}/', aggregated: 's3://logs/cold/{app}/',"
        b" start: 2026-11-01T00:00:00Z, storage_class: GLACIER}]"
    )
    with caplog.at_level(logging.WARNING):
        parse_streams(text)
    assert "stream 'cold': aggregated: each group has at least one part an hour" in caplog.text
