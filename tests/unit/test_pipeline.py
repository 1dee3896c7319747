"""From plan to marker: for any hour and any fault, the parts hold its objects end to end."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup import crc
from include.log_rollup.errors import (
    AccessError,
    MissingBucketError,
    RollupError,
    ThrottledError,
    TransientError,
)
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import Effect, FakeStore
from tests.support.hour_in_memory import (
    CLAIM,
    MarkerGuard,
    assert_complete,
    assert_not_complete,
    inputs,
    make_stream,
    manifest_of,
    numbered,
    parts,
    produce,
    run_hour,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW
from tests.unit.strategies import raw_hours

Outcome = TypeVar("Outcome")

pytestmark = [pytest.mark.usefixtures("unwatched"), pytest.mark.slow]

ODD_NAMES = (
    "space in name.log",
    " leading",
    "trailing ",
    "plus+plus.log",
    "percent%.log",
    "escaped%2Fslash.log",
    "%41.log",
    "&=?#;:'\"`<>[](){}*~@^|$,!",
    "back\\slash.log",
    "grüße-中文.log",
    "combining-u\u0308.log",
    "composed-ü.log",
    "order-\uff5e.log",
    "order-\U0001f600.log",
    "line-separator\u2028.log",
    "next-line\x85.log",
    "tab\tand\x7fand\x01.log",
    "new\nline.log",
    "Case.log",
    "case.log",
    "deep/er/and/deeper.log",
    "double//slash.log",
    "file-and-folder",
    "file-and-folder/within.log",
    "slash-at-the-end/",
    "n" * 800,
)

stores: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"keeps_crc": True, "checks_crc": True},
        {"keeps_crc": True, "checks_crc": False},
        {"keeps_crc": False, "checks_crc": False},
        {"keeps_crc": False, "checks_crc": False, "etag_is_md5": False},
    ]
)
streams = st.builds(
    make_stream,
    part_size=st.integers(1, 60),
    shard_size=st.integers(1, 200),
    max_shards=st.integers(1, 4),
    ensure_newline=st.booleans(),
    allow_empty=st.just(True),
)


@given(
    hour=raw_hours,
    stream=streams,
    options=stores,
    page_size=st.integers(1, 5),
    threads=st.sampled_from([0, 2]),
)
def test_any_hour_is_packed_completely_in_order(
    hour: dict[str, bytes], stream: Stream, options: dict[str, Any], page_size: int, threads: int
) -> None:
    store = FakeStore(**options, page_size=page_size, threads=threads)
    produce(store, hour, md5_etag=options.get("etag_is_md5", True))
    guard = MarkerGuard(store, stream)
    totals = run_hour(store, stream)
    assert_complete(store, stream)
    assert guard.violations == []
    assert sum(totals.verified.objects.values()) == totals.objects == len(inputs(store, stream))
    assert sum(totals.verified.parts.values()) == totals.parts == len(parts(store))
    assert {key: store.body(key) for key in store.listing(RAW)} == {RAW + name: hour[name] for name in hour}


def until_done(step: Callable[[], Outcome]) -> Outcome:
    """Run a step as Airflow does: retry it after transient errors."""
    for _ in range(50):
        with suppress(TransientError):
            return step()
    raise AssertionError("still failing after 50 tries")


def run_with_retries(store: FakeStore, stream: Stream) -> None:
    for ref in until_done(partial(plan_hour, store, stream, HOUR, "run")).shards:
        until_done(partial(pack_shard, store, stream, ref))
    until_done(partial(validate_hour, store, stream, HOUR))
    until_done(partial(complete_hour, store, stream, HOUR))


transient_faults = st.tuples(
    st.sampled_from(["ANY", "GET", "PUT", "LIST", "READ", "WRITE", "DELETE", "HEAD", "COPY", "RANGE"]),
    st.sampled_from(
        ["", "part-0000", "shard-", "receipt-", "claim", "plan.json", "_SUCCESS", "_manifest", "raw/"]
    ),
    st.sampled_from(
        [
            TransientError("the connection broke"),
            ThrottledError("slow down"),
            ThrottledError("slow down", retry_after=0.001),
            Effect.LOST_ANSWER,
        ]
    ),
    st.integers(1, 12),
)


@given(
    hour=raw_hours,
    stream=streams,
    options=stores,
    faults=st.lists(transient_faults, max_size=5),
    threads=st.sampled_from([0, 2]),
)
def test_transient_faults_at_any_request_cost_only_retries(
    hour: dict[str, bytes],
    stream: Stream,
    options: dict[str, Any],
    faults: list[tuple[str, str, Effect | Exception, int]],
    threads: int,
) -> None:
    store = FakeStore(**options, threads=threads)
    produce(store, hour)
    guard = MarkerGuard(store, stream)
    for kind, contains, effect, times in faults:
        store.on(kind, contains, effect, times)
    run_with_retries(store, stream)
    assert_complete(store, stream)
    assert guard.violations == []


def small_hour() -> FakeStore:
    store = FakeStore()
    produce(store, {"a.log": b"a" * 40, "b.log": b"b" * 40, "c.log": b"c" * 90, "d.gz": b"d", "e.log": b""})
    return store


@pytest.mark.slow
@pytest.mark.parametrize(
    "effect",
    [TransientError("the connection broke"), ThrottledError("slow down"), Effect.LOST_ANSWER],
    ids=["error", "throttle", "lost-answer"],
)
def test_fault_at_each_request_in_turn_costs_only_retries(effect: Effect | Exception) -> None:
    for number in count():
        store = small_hour()
        guard = MarkerGuard(store, make_stream())
        store.on("ANY", "", _do_nothing, times=number)
        rule = store.on("ANY", "", effect)
        run_with_retries(store, make_stream())
        assert_complete(store, make_stream())
        assert guard.violations == []
        if not rule.hits:
            break
    assert number > 30


@pytest.mark.slow
@pytest.mark.parametrize("error", [AccessError("denied"), MissingBucketError("no such bucket")], ids=str)
def test_refusal_at_each_request_fails_without_damage(error: RollupError) -> None:
    failed = 0
    for number in count():
        store = small_hour()
        guard = MarkerGuard(store, make_stream())
        store.on("ANY", "", _do_nothing, times=number)
        rule = store.on("ANY", "", error)
        try:
            run_hour(store, make_stream())
        except type(error):
            failed += 1
            run_hour(store, make_stream())
        assert_complete(store, make_stream())
        assert guard.violations == []
        if not rule.hits:
            break
    # Not fatal are: a receipt that a later one replaces, the removal of two staged objects, the search for
    # unfinished uploads, and the quick check of the claim before each part, which the full check replaces.
    assert failed >= number - 6 - len(parts(store))
    assert number > 30


def _do_nothing() -> None:
    """Let a request succeed."""


@pytest.mark.parametrize("keeps_crc", [True, False])
def test_odd_names_are_packed_like_any_other(keeps_crc: bool) -> None:
    store, stream = FakeStore(keeps_crc=keeps_crc, checks_crc=keeps_crc), make_stream(ensure_newline=True)
    hour = {name: f"{number} {name[:9]}".encode() for number, name in enumerate(ODD_NAMES)}
    produce(store, hour)
    totals = run_hour(store, stream)
    assert_complete(store, stream)
    assert totals.objects == len(ODD_NAMES)
    _, rows = manifest_of(store)
    assert [row["key"] for row in rows] == sorted(
        (RAW + name for name in ODD_NAMES), key=lambda key: key.encode()
    )


def test_each_encoding_has_its_own_parts() -> None:
    store, stream = FakeStore(), make_stream()
    endings = ("", ".log", ".gz", ".GZ", ".zst", ".bz2", ".xz", ".lz4", ".snappy", ".zz", ".br", ".Z", ".tgz")
    produce(
        store,
        {f"{number:02d}{ending}": bytes([65 + number]) * 20 for number in range(9) for ending in endings},
    )
    run_hour(store, stream)
    assert_complete(store, stream)
    assert {name.partition(".log")[2] for name in parts(store)} == {
        *("", ".gz", ".zst", ".bz2", ".xz", ".lz4"),
        *(".snappy", ".zz", ".br", ".z", ".tgz"),
    }


def test_empty_objects_become_an_empty_part_per_encoding() -> None:
    store, stream = FakeStore(), make_stream(ensure_newline=True)
    produce(store, {"a.log": b"", "b.log": b"", "c.gz": b""})
    totals = run_hour(store, stream)
    assert_complete(store, stream)
    assert numbered(parts(store)) == ["part-00000.log", "part-00001.log.gz"]
    assert set(parts(store).values()) == {b""}
    assert (totals.objects, totals.bytes_in, totals.bytes_out) == (3, 0, 0)


def test_oversize_objects_are_copied_as_parts() -> None:
    store, stream = FakeStore(), make_stream(ensure_newline=True)
    hour = {f"{number}.log": bytes([65 + number]) * (64 + number) for number in range(6)}
    produce(store, hour)
    run_hour(store, stream)
    assert_complete(store, stream)
    assert list(parts(store).values()) == list(hour.values())
    assert not any(each.kind == "PUT" or (each.kind == "GET" and each.key != CLAIM) for each in store.log)


def test_object_one_byte_larger_than_a_part_is_copied() -> None:
    store = FakeStore()
    produce(store, {"a.log": b"a" * 64, "b.log": b"b" * 65, "c.log": b"c" * 63, "d.log": b"d"})
    run_hour(store, make_stream())
    assert_complete(store, make_stream())
    assert [len(body) for body in parts(store).values()] == [64, 65, 64]
    copies = [operation.name for operation in store.log if operation.kind == "COPY"]
    assert numbered(copies) == ["part-00001.log"]


def test_several_thousand_objects_are_packed_completely() -> None:
    store, stream = FakeStore(), make_stream(part_size=4096, shard_size=16384)
    produce(
        store, {f"host-{number % 7}/{number:05d}.log": str(number).encode() * 3 for number in range(3000)}
    )
    totals = run_hour(store, stream)
    assert_complete(store, stream)
    assert totals.objects == 3000
    assert totals.parts >= 8
    assert sum(each.kind == "GET" and each.key.startswith(RAW) for each in store.log) == 3000


def test_bad_input_leaves_no_marker_and_loses_nothing() -> None:
    store = FakeStore()
    produce(store, {"a.log": b"a", "b.parquet": b"PAR1"})
    with pytest.raises(RollupError, match=r"b\.parquet"):
        run_hour(store, make_stream())
    assert_not_complete(store)
    assert store.listing(AGGREGATED) == []
    assert store.listing(RAW) == [RAW + "a.log", RAW + "b.parquet"]
    store.vanish(RAW + "b.parquet")
    run_hour(store, make_stream())
    assert_complete(store, make_stream())


def test_crc_of_a_part_combines_the_crcs_of_its_rows() -> None:
    store = small_hour()
    run_hour(store, make_stream())
    header, rows = manifest_of(store)
    for entry in header["parts_table"]:
        pieces = [(int(row["crc64nvme"], 16), row["length"]) for row in rows if row["part"] == entry["name"]]
        assert f"{crc.concatenate(pieces):016x}" == entry["crc64nvme"]
