"""What is written beside the parts reads back as it was; what is damaged says so, and reads as nothing else."""

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from include.log_rollup.errors import ProofError
from include.log_rollup.plan import LeftOut, PlannedPart, ShardRef
from include.log_rollup.records import (
    PROVEN_BY_READING,
    PROVEN_BY_STORE,
    HourTotals,
    Manifest,
    Measured,
    PackedObject,
    PackedPart,
    PlanSummary,
    Receipt,
    Records,
    ShardPlan,
    Verified,
)
from include.log_rollup.store import Location, ObjectInfo
from tests.unit.fake_store import FakeStore
from tests.unit.pipeline import RAW
from tests.unit.strategies import etags, names

AT = Location("logs", "records/one.json.gz")
PLAIN_AT = Location("logs", "records/one.json")

counts = st.integers(0, 2**40)
crcs = st.integers(0, 2**64 - 1)
# As seconds are rounded where they are measured.
seconds = st.integers(0, 10**9).map(lambda thousandths: thousandths / 1000)
counters = st.dictionaries(st.sampled_from(["GET", "PUT", "ListObjectsV2"]), counts, max_size=3)
measured = st.builds(
    Measured, counts, counts, counts, counts, seconds, seconds, counters, counts, counts, counts, counts
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[PlannedPart, PackedPart]:
    """A planned part and what became of it, proven."""
    offset = 0
    planned, packed = [], []
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        size = draw(st.integers(0, 2**36))
        planned.append(ObjectInfo(RAW + name, size, draw(etags)))
        checked = draw(st.sampled_from(["crc64nvme", "crc32c", "etag-md5", "length"]))
        packed.append(PackedObject(draw(crcs), checked, False, draw(st.integers(0, 1))))
        offset += size
    encoding, fingerprint = draw(st.sampled_from(["", ".gz"])), draw(etags)
    name = f"part-{draw(st.integers(0, 10**6)):05d}.log{encoding}"
    proof = draw(st.sampled_from([PROVEN_BY_STORE, PROVEN_BY_READING]))
    size = offset + sum(item.separator for item in packed)
    return (
        PlannedPart(name, encoding, offset, draw(st.booleans()), fingerprint, tuple(planned)),
        PackedPart(name, fingerprint, size, draw(etags), draw(st.none() | crcs), tuple(packed), proof),
    )


left_outs = st.builds(LeftOut, counts, counts, counts)
refs = st.builds(
    ShardRef, st.text(max_size=5), st.text(max_size=5), etags, counts, counts, counts, counts, counts
)
summaries = st.builds(
    PlanSummary, etags, st.text(max_size=9), st.text(max_size=9), counts, counts, counts, left_outs,
    st.lists(refs, max_size=3).map(tuple),
)  # fmt: skip
totals = st.builds(
    HourTotals, st.text(max_size=9), st.text(max_size=9), etags, counts, counts, counts, counts, counts,
    left_outs, st.builds(Verified, counters, counters), measured,
)  # fmt: skip


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


# -- round trips ---------------------------------------------------------------------------------------


@given(st.lists(pairs(), max_size=3))
def test_the_parts_of_a_shard_are_read_back_as_they_were_planned(
    found: list[tuple[PlannedPart, PackedPart]],
) -> None:
    records = Records(FakeStore())
    shard = ShardPlan("f00", 3, tuple(planned for planned, _ in found))
    records.write_shard(AT, shard, RAW)
    assert records.read_shard(AT, RAW) == shard


@given(summaries)
def test_a_plan_summary_is_read_back_as_it_was(summary: PlanSummary) -> None:
    records = Records(FakeStore())
    records.write_plan(PLAIN_AT, summary)
    assert records.read_plan(PLAIN_AT) == summary


@given(st.lists(pairs(), max_size=3), measured, st.booleans())
def test_a_receipt_is_read_back_as_it_was(
    found: list[tuple[PlannedPart, PackedPart]], work: Measured, unproven: bool
) -> None:
    parts = tuple(packed for _, packed in found)
    if unproven:
        parts = tuple(
            replace(
                part,
                proof=None,
                objects=tuple(replace(item, crc64nvme=None, etag_is_md5=True) for item in part.objects),
            )
            for part in parts
        )
    records = Records(FakeStore())
    receipt = Receipt("f00", 3, parts, work)
    records.write_receipt(AT, receipt)
    assert records.read_receipt(AT) == receipt


@given(totals, st.lists(pairs(), max_size=3))
def test_a_manifest_is_read_back_as_it_was(
    of_hour: HourTotals, found: list[tuple[PlannedPart, PackedPart]]
) -> None:
    records = Records(FakeStore())
    manifest = Manifest(
        of_hour,
        tuple(one for one, _ in found),
        tuple(other for _, other in found),
        "2026-11-23T09:30:00+00:00",
    )
    records.write_manifest(AT, manifest, RAW)
    assert records.read_manifest(AT) == manifest


@given(totals, st.lists(pairs(), max_size=3))
def test_a_manifest_has_a_header_line_and_a_line_for_each_raw_object(
    of_hour: HourTotals, found: list[tuple[PlannedPart, PackedPart]]
) -> None:
    store = FakeStore()
    manifest = Manifest(of_hour, tuple(one for one, _ in found), tuple(other for _, other in found), "now")
    Records(store).write_manifest(AT, manifest, RAW)
    lines = gzip.decompress(store.body(AT.key)).split(b"\n")
    assert lines.pop() == b""
    header, *rows = map(json.loads, lines)
    assert header["raw_prefix"] == RAW
    assert (header["objects"], header["plan_id"]) == (of_hour.objects, of_hour.plan_id)
    wanted = []
    for planned, packed in found:
        offset = 0
        for item, done in zip(planned.objects, packed.objects, strict=True):
            wanted.append((item.key, planned.name, offset, item.size, item.etag, f"{done.crc64nvme:016x}"))
            offset += item.size + done.separator
    columns = ("key", "part", "offset", "length", "etag", "crc64nvme")
    assert [tuple(row[column] for column in columns) for row in rows] == wanted


@given(etags, st.text(max_size=9))
def test_a_claim_is_read_back(plan_id: str, run_id: str) -> None:
    records = Records(FakeStore())
    records.write_claim(PLAIN_AT, plan_id, run_id)
    assert records.read_claim(PLAIN_AT) == plan_id


def test_the_same_record_is_the_same_bytes(store: FakeStore) -> None:
    records = Records(store)
    records.write_receipt(AT, Receipt("f00", 3))
    before = store.body(AT.key)
    records.write_receipt(AT, Receipt("f00", 3))
    assert store.body(AT.key) == before
    # The time in the header of a gzip file.
    assert struct.unpack_from("<I", before, 4) == (0,)


# -- what is not there, of another version, or damaged -------------------------------------------------

READERS: dict[str, Callable[[Records, Location], object]] = {
    "shard": lambda records, at: records.read_shard(at, RAW),
    "plan": Records.read_plan,
    "claim": Records.read_claim,
    "receipt": Records.read_receipt,
    "manifest": Records.read_manifest,
    "marker": Records.read_marker,
}
PART = PlannedPart("part-00000.log", "", 3, False, "f", (ObjectInfo(RAW + "a.log", 3, "e"),))
PACKED = PackedPart("part-00000.log", "f", 3, "e", 5, (PackedObject(5, "crc64nvme", False),), PROVEN_BY_STORE)
TOTALS = HourTotals(
    "app", "2026-11-23T08:00:00Z", "f00", 1, 3, 0, 3, 1, LeftOut(), Verified({}, {}), Measured()
)
WRITERS: dict[str, Callable[[Records], None]] = {
    "shard": lambda records: records.write_shard(AT, ShardPlan("f00", 0, (PART,)), RAW),
    "plan": lambda records: records.write_plan(
        PLAIN_AT, PlanSummary("f00", "app", "", 0, 0, 0, LeftOut(), ())
    ),
    "claim": lambda records: records.write_claim(PLAIN_AT, "f00", "run"),
    "receipt": lambda records: records.write_receipt(AT, Receipt("f00", 0, (PACKED,))),
    "manifest": lambda records: records.write_manifest(AT, Manifest(TOTALS, (PART,), (PACKED,), ""), RAW),
    "marker": lambda records: records.write_marker(PLAIN_AT, {"format": 1, "plan_id": "f00"}),
}
ZIPPED = ["shard", "receipt", "manifest"]
KINDS = sorted(READERS)


def written(kind: str) -> tuple[FakeStore, Location]:
    store = FakeStore()
    WRITERS[kind](Records(store))
    return store, AT if kind in ZIPPED else PLAIN_AT


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_is_not_there_reads_as_none(store: FakeStore, kind: str) -> None:
    assert READERS[kind](Records(store), AT) is None


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"marker"}))
def test_a_record_of_another_version_reads_as_none(kind: str) -> None:
    store, at = written(kind)
    body = gzip.decompress(store.body(at.key)) if kind in ZIPPED else store.body(at.key)
    newer = body.replace(b'"format":1', b'"format":999')
    assert newer != body
    store.produce(at.key, gzip.compress(newer) if kind in ZIPPED else newer)
    assert READERS[kind](Records(store), at) is None


@pytest.mark.parametrize("body", [b"", b"complete", b"[]", b'{"format": 999}', b'"x"', b"\xff", b"{}"])
def test_a_marker_of_another_kind_is_there_but_says_nothing(store: FakeStore, body: bytes) -> None:
    store.produce(PLAIN_AT.key, body)
    assert Records(store).read_marker(PLAIN_AT) == {}


@pytest.mark.parametrize("kind", ZIPPED)
@given(place=st.integers(0, 10**6), mask=st.integers(1, 255))
@example(place=12, mask=0xFF)
def test_a_damaged_record_is_told_by_its_place_and_never_reads_as_another(
    kind: str, place: int, mask: int
) -> None:
    store, at = written(kind)
    right = READERS[kind](Records(store), at)
    body = bytearray(store.body(at.key))
    body[place % len(body)] ^= mask
    store.produce(at.key, bytes(body))
    told: object = None
    try:
        found = READERS[kind](Records(store), at)
    except ProofError as error:
        told = error
    # Some bytes of gzip's header mean nothing.
    assert str(at) in str(told) if told else found == right


@pytest.mark.parametrize("kind", ZIPPED)
@given(length=st.integers(0, 10**6))
def test_a_record_that_was_cut_off_is_told_by_its_place(kind: str, length: int) -> None:
    store, at = written(kind)
    body = store.body(at.key)
    store.produce(at.key, body[: length % len(body)])
    with pytest.raises(ProofError, match="delete it and clear the run") as caught:
        READERS[kind](Records(store), at)
    assert str(at) in str(caught.value)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"marker"}))
@pytest.mark.parametrize(
    "value", [5, [], "x", None, {}, {"format": 1}, {"format": 1, "plan_id": 5, "parts": 7, "shards": 7}]
)
def test_json_of_another_shape_is_told_by_its_place(kind: str, value: object) -> None:
    body = json.dumps(value).encode()
    store = FakeStore()
    at = AT if kind in ZIPPED else PLAIN_AT
    store.produce(at.key, gzip.compress(body + b"\n") if kind in ZIPPED else body)
    if kind == "claim" and isinstance(value, dict) and "plan_id" in value:
        assert Records(store).read_claim(at) == "5"
        return
    with pytest.raises(ProofError, match="delete it and clear the run") as caught:
        READERS[kind](Records(store), at)
    assert str(at) in str(caught.value)


# -- what tasks measured -------------------------------------------------------------------------------


@given(st.lists(measured, max_size=4))
def test_measurements_add_up_in_counts_and_keep_the_highest_peaks(several: list[Measured]) -> None:
    total = sum(several, Measured())
    for name in ("max_connections", "sockets", "open_files", "rss_bytes"):
        assert getattr(total, name) == max((getattr(one, name) for one in several), default=0)
    for name in ("retries", "throttles", "parts_written", "parts_left_alone"):
        assert getattr(total, name) == sum(getattr(one, name) for one in several)
    for name in ("seconds", "cpu_seconds"):
        assert getattr(total, name) == pytest.approx(sum(getattr(one, name) for one in several))
    for operation in ("GET", "PUT", "ListObjectsV2"):
        assert total.requests.get(operation, 0) == sum(one.requests.get(operation, 0) for one in several)


def test_the_bytes_of_a_part_that_are_in_no_raw_object_are_its_separators() -> None:
    objects = tuple(PackedObject(1, "length", False, separator) for separator in (1, 0, 1))
    assert replace(PACKED, objects=objects).separators == 2
