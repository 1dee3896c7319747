"""Records round-trip, and a damaged record is never read as a different one."""

import gzip
import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from include.log_rollup.errors import UnreadableRecordError
from include.log_rollup.hour import gzip_json
from include.log_rollup.hour import manifest as manifest_module
from include.log_rollup.hour import records as records_module
from include.log_rollup.hour.layout import split_name
from include.log_rollup.hour.manifest import (
    HourTotals,
    Manifest,
    ManifestWriter,
    Verified,
    open_manifest,
    read_manifest,
    read_manifest_header,
)
from include.log_rollup.hour.plan import PlannedPart, ShardRef
from include.log_rollup.hour.records import (
    PROVEN_BY_READING,
    PROVEN_BY_STORE,
    Claim,
    CompletionMarker,
    Measured,
    PackedObject,
    PackedPart,
    PlanSummary,
    Receipt,
    Records,
    ShardPlan,
    StoredMarker,
    compressed_row,
    parse_claim,
)
from include.log_rollup.hour.selection import LeftOut
from include.log_rollup.storage.protocol import Location, ObjectInfo
from tests.support.fake_store import FakeStore
from tests.support.raw_hours import RAW
from tests.unit.strategies import etags, names

AT = Location("logs", "records/one.json.gz")
PLAIN_AT = Location("logs", "records/one.json")

counts = st.integers(0, 2**40)
crcs = st.integers(0, 2**64 - 1)
# Measured seconds are rounded to thousandths.
seconds = st.integers(0, 10**9).map(lambda thousandths: thousandths / 1000)
counters = st.dictionaries(st.sampled_from(["GET", "PUT", "ListObjectsV2"]), counts, max_size=3)
measured = st.builds(
    Measured, counts, counts, counts, counts, seconds, seconds, counters, counts, counts, counts, counts
)


@st.composite
def part_pairs(draw: st.DrawFn) -> tuple[PlannedPart, PackedPart]:
    """Draw a planned part and the packed part."""
    offset = 0
    planned, packed = [], []
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        size = draw(st.integers(0, 2**36))
        planned.append(ObjectInfo(RAW + name, size, draw(etags)))
        checked = draw(st.sampled_from(["crc64nvme", "crc32c", "etag-md5", "length"]))
        packed.append(PackedObject(draw(crcs), checked, False, draw(st.integers(0, 1)), draw(st.booleans())))
        offset += size
    encoding, fingerprint = draw(st.sampled_from(["", ".gz"])), draw(etags)
    index, tag = draw(st.integers(0, 10**6)), draw(st.sampled_from(["", "-3f9c2a1b"]))
    name, split_of = f"part-{index:05d}{tag}.log{encoding}", ""
    if tag and draw(st.booleans()):
        name, split_of = split_name(name, "0a1b2c3d"), name
    proof = draw(st.sampled_from([PROVEN_BY_STORE, PROVEN_BY_READING]))
    size = offset + sum(item.separator for item in packed)
    return (
        PlannedPart(name, encoding, offset, draw(st.booleans()), fingerprint, tuple(planned), split_of),
        PackedPart(name, fingerprint, size, draw(etags), draw(st.none() | crcs), tuple(packed), proof),
    )


left_outs = st.builds(LeftOut, counts, counts, counts)
refs = st.builds(
    ShardRef, st.text(max_size=5), st.text(max_size=5), etags, counts, counts, counts, counts, counts
)
summaries = st.builds(
    PlanSummary, etags, st.text(max_size=9), st.text(max_size=9), counts, counts, counts, left_outs,
    st.lists(refs, max_size=3).map(tuple), st.dictionaries(st.sampled_from(["", ".gz", ".z"]), etags),
    st.lists(st.text(max_size=9), max_size=3).map(tuple),
)  # fmt: skip
totals = st.builds(
    HourTotals, st.text(max_size=9), st.text(max_size=9), etags, counts, counts, counts, counts, counts,
    left_outs, st.builds(Verified, counters, counters), measured, counts, counts,
)  # fmt: skip


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def write_manifest(store: FakeStore, manifest: Manifest) -> None:
    """Write a manifest as validation does."""
    writer = ManifestWriter()
    for planned, packed in zip(manifest.planned, manifest.packed, strict=True):
        writer.add(planned, packed)
    store.write(AT, writer.finish(manifest.totals, manifest.validated_at, RAW, "0a"), "application/gzip")


# -- round trips ---------------------------------------------------------------------------------------


@given(st.lists(part_pairs(), max_size=3))
def test_shard_parts_round_trip(found: list[tuple[PlannedPart, PackedPart]]) -> None:
    records = Records(FakeStore())
    parts = tuple(planned for planned, _ in found)
    shard = ShardPlan("f00", 3, parts, frozenset(part.name for part in parts[1:]))
    records.write_shard(AT, shard, RAW)
    assert records.read_shard(AT, RAW) == records.read_shard(AT, "raw2/") == shard


@pytest.mark.parametrize("prefix", [RAW, "raw2/app/20261123/08/"])
def test_shard_file_states_the_prefix_of_its_keys(store: FakeStore, prefix: str) -> None:
    """The stream's raw template may change before the file is read."""
    records = Records(store)
    records.write_shard(AT, ShardPlan("f00", 0, (PART,)), prefix)
    read = records.read_shard(AT, "raw3/")
    assert read is not None
    assert [item.key for item in read.parts[0].objects] == [RAW + "a.log"]
    assert json.loads(gzip.decompress(store.body(AT.key)))["raw_prefix"] == ("" if prefix != RAW else RAW)


def test_shard_file_of_an_earlier_version_has_present_keys(store: FakeStore) -> None:
    records = Records(store)
    records.write_shard(AT, ShardPlan("f00", 0, (PART,)), RAW)
    body = json.loads(gzip.decompress(store.body(AT.key)))
    del body["raw_prefix"]
    store.write(AT, gzip.compress(json.dumps(body).encode()), "")
    assert records.read_shard(AT, RAW) == ShardPlan("f00", 0, (PART,))


@given(summaries)
def test_plan_summary_round_trips(summary: PlanSummary) -> None:
    records = Records(FakeStore())
    records.write_plan(PLAIN_AT, summary)
    assert records.read_plan(PLAIN_AT) == summary


@given(st.lists(part_pairs(), max_size=3), measured, st.booleans())
def test_receipt_round_trips(
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
    splits: dict[str, tuple[PlannedPart, ...]] = {}
    for planned, _ in found:
        if planned.split_of:
            object_part = replace(planned, copied=False)
            splits[planned.split_of] = (*splits.get(planned.split_of, ()), object_part)
    receipt = Receipt("f00", 3, parts, work, splits)
    records.write_receipt(AT, receipt)
    assert records.read_receipt(AT) == receipt
    records.write_receipt_rows(AT, "f00", 3, [compressed_row(part) for part in parts], work)
    assert records.read_receipt(AT) == replace(receipt, splits={})


@given(totals, st.lists(part_pairs(), max_size=3))
def test_manifest_round_trips(
    totals_of_hour: HourTotals, found: list[tuple[PlannedPart, PackedPart]]
) -> None:
    store = FakeStore()
    manifest = Manifest(
        totals_of_hour,
        tuple(one for one, _ in found),
        tuple(other for _, other in found),
        "2026-11-23T09:30:00+00:00",
    )
    write_manifest(store, manifest)
    assert read_manifest(store, AT) == manifest
    reader = open_manifest(store, AT)
    assert reader is not None
    assert (reader.totals, reader.validated_at, reader.claim_id) == (
        totals_of_hour,
        manifest.validated_at,
        "0a",
    )
    assert [(entry["name"], entry.get("split_of", "")) for entry in reader.table] == [
        (one.name, one.split_of) for one, _ in found
    ]
    # Validation and planning read it twice.
    for _ in range(2):
        assert list(reader.parts()) == found
    header = read_manifest_header(store, AT)
    assert header is not None
    assert header["parts_table"] == reader.table


@settings(max_examples=25)
@given(totals, st.lists(part_pairs(), max_size=3), st.integers(1, 200), st.integers(1, 200))
def test_large_manifest_is_read_in_pieces(
    totals_of_hour: HourTotals, found: list[tuple[PlannedPart, PackedPart]], at_once: int, piece: int
) -> None:
    store = FakeStore()
    manifest = Manifest(
        totals_of_hour, tuple(one for one, _ in found), tuple(other for _, other in found), "now"
    )
    write_manifest(store, manifest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "MANIFEST_AT_ONCE_BYTES", at_once)
        patch.setattr(gzip_json, "_PIECE_BYTES", piece)
        assert read_manifest(store, AT) == manifest
    ranges = [each for each in store.log if each.kind == "RANGE"]
    assert bool(ranges) == (len(store.body(AT.key)) > at_once)
    assert all(int(each.detail.partition("+")[2]) <= at_once for each in ranges)


@settings(max_examples=25)
@given(totals, st.lists(part_pairs(), max_size=3))
def test_manifest_has_a_header_and_a_line_per_raw_object(
    totals_of_hour: HourTotals, found: list[tuple[PlannedPart, PackedPart]]
) -> None:
    store = FakeStore()
    manifest = Manifest(
        totals_of_hour, tuple(one for one, _ in found), tuple(other for _, other in found), "now"
    )
    write_manifest(store, manifest)
    lines = gzip.decompress(store.body(AT.key)).split(b"\n")
    assert lines.pop() == b""
    header, *rows = map(json.loads, lines)
    assert header["raw_prefix"] == RAW
    assert (header["objects"], header["plan_id"]) == (totals_of_hour.objects, totals_of_hour.plan_id)
    wanted = []
    for planned, packed in found:
        offset = 0
        for item, done in zip(planned.objects, packed.objects, strict=True):
            wanted.append((item.key, planned.name, offset, item.size, item.etag, f"{done.crc64nvme:016x}"))
            offset += item.size + done.separator
    columns = ("key", "part", "offset", "length", "etag", "crc64nvme")
    assert [tuple(row[column] for column in columns) for row in rows] == wanted


@given(etags, st.text(max_size=9), st.text(max_size=9))
def test_claim_round_trips_with_its_etag(plan_id: str, run_id: str, claim_id: str) -> None:
    store = FakeStore()
    claim = Records(store).write_claim(PLAIN_AT, plan_id, run_id, claim_id)
    assert claim == Claim(plan_id, run_id, claim_id, store.stored(PLAIN_AT.key).etag)
    assert Records(store).read_claim(PLAIN_AT) == claim
    assert parse_claim(store.body(PLAIN_AT.key)) == replace(claim, etag="")


@given(st.lists(st.text(max_size=9), max_size=4))
def test_removal_round_trips(parts: list[str]) -> None:
    records = Records(FakeStore())
    records.write_removal(PLAIN_AT, parts)
    assert list(records.read_removal(PLAIN_AT)) == parts


def test_same_record_gives_the_same_bytes(store: FakeStore) -> None:
    records = Records(store)
    records.write_receipt(AT, Receipt("f00", 3))
    before = store.body(AT.key)
    records.write_receipt(AT, Receipt("f00", 3))
    assert store.body(AT.key) == before
    # The time in the gzip header.
    assert struct.unpack_from("<I", before, 4) == (0,)


# -- records that are missing, of another version, or damaged ------------------------------------------

READERS: dict[str, Callable[[FakeStore, Location], object]] = {
    "shard": lambda store, at: Records(store).read_shard(at, RAW),
    "plan": lambda store, at: Records(store).read_plan(at),
    "claim": lambda store, at: Records(store).read_claim(at),
    "receipt": lambda store, at: Records(store).read_receipt(at),
    "removal": lambda store, at: Records(store).read_removal(at),
    "manifest": read_manifest,
    "marker": lambda store, at: Records(store).read_marker(at),
}
PART = PlannedPart("part-00000.log", "", 3, False, "f", (ObjectInfo(RAW + "a.log", 3, "e"),))
PACKED = PackedPart("part-00000.log", "f", 3, "e", 5, (PackedObject(5, "crc64nvme", False),), PROVEN_BY_STORE)
TOTALS = HourTotals(
    "app", "2026-11-23T08:00:00Z", "f00", 1, 3, 0, 3, 1, LeftOut(), Verified({}, {}), Measured()
)
SUMMARY = PlanSummary("f00", "app", "", 0, 0, 0, LeftOut(), (), {}, ())
WRITERS: dict[str, Callable[[FakeStore], object]] = {
    "shard": lambda store: Records(store).write_shard(AT, ShardPlan("f00", 0, (PART,)), RAW),
    "plan": lambda store: Records(store).write_plan(PLAIN_AT, SUMMARY),
    "claim": lambda store: Records(store).write_claim(PLAIN_AT, "f00", "run", "0a"),
    "receipt": lambda store: Records(store).write_receipt(AT, Receipt("f00", 0, (PACKED,))),
    "removal": lambda store: Records(store).write_removal(PLAIN_AT, ["part-00000.log"]),
    "manifest": lambda store: write_manifest(store, Manifest(TOTALS, (PART,), (PACKED,), "")),
    "marker": lambda store: store.write(PLAIN_AT, CompletionMarker(plan_id="f00").to_bytes(), ""),
}
GZIPPED = ["shard", "receipt", "manifest"]
KINDS = sorted(READERS)
# The value of an unreadable record; an unreadable manifest raises instead.
UNREADABLE_VALUE: dict[str, object] = {"shard": None, "plan": None, "receipt": None, "removal": ()}


def write_record(kind: str) -> tuple[FakeStore, Location]:
    store = FakeStore()
    WRITERS[kind](store)
    return store, AT if kind in GZIPPED else PLAIN_AT


def assert_unreadable(kind: str, store: FakeStore, at: Location) -> None:
    """Check that a record counts as unreadable."""
    if kind == "manifest":
        with pytest.raises(UnreadableRecordError) as caught:
            read_manifest(store, at)
        assert str(at) in str(caught.value)
        assert "clear the run from plan_hour on" in str(caught.value)
        return
    if kind == "claim":
        claim = Records(store).read_claim(at)
        assert claim is not None
        assert (claim.plan_id, claim.run_id, claim.claim_id) == ("", "", "")
        return
    if kind == "marker":
        marker = Records(store).read_marker(at)
        assert marker is not None
        assert marker.content is None
        assert not marker.is_of("f00")
        assert Records(store).read_marker_json(at) == {}
        return
    assert READERS[kind](store, at) == UNREADABLE_VALUE[kind]


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"removal"}))
def test_missing_record_reads_as_none(store: FakeStore, kind: str) -> None:
    assert READERS[kind](store, AT) is None


def test_missing_removal_names_nothing(store: FakeStore) -> None:
    assert list(Records(store).read_removal(AT)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_record_of_another_version_is_not_read(kind: str) -> None:
    store, at = write_record(kind)
    body = gzip.decompress(store.body(at.key)) if kind in GZIPPED else store.body(at.key)
    newer, changes = re.subn(rb'"format": ?[0-9]+', b'"format":999', body)
    assert changes == 1
    store.produce(at.key, gzip.compress(newer) if kind in GZIPPED else newer)
    assert_unreadable(kind, store, at)


def test_manifest_of_a_later_version_says_to_update() -> None:
    store, at = write_record("manifest")
    newer = gzip.decompress(store.body(at.key)).replace(b'"format":1', b'"format":7')
    store.produce(at.key, gzip.compress(newer))
    for read in (read_manifest, open_manifest, read_manifest_header):
        with pytest.raises(UnreadableRecordError, match=r"has format 7, .* Update Log Rollup"):
            read(store, at)


@pytest.mark.parametrize(
    "body", [b"", b"complete", b"[]", b'{"format": 999}', b'"x"', b"\xff", b"{}", b"[" * 9999]
)
def test_invalid_marker_exists_without_content(store: FakeStore, body: bytes) -> None:
    store.produce(PLAIN_AT.key, body)
    assert Records(store).read_marker(PLAIN_AT) == StoredMarker(None, store.stored(PLAIN_AT.key).etag)
    assert_unreadable("marker", store, PLAIN_AT)


def test_marker_reads_back_as_written(store: FakeStore) -> None:
    marker = CompletionMarker(plan_id="f00", objects=3, peak={"sockets": 2})
    etag = store.write(PLAIN_AT, marker.to_bytes(), "")
    assert Records(store).read_marker(PLAIN_AT) == StoredMarker(marker, etag)
    assert Records(store).read_marker_json(PLAIN_AT) == marker.to_json()


def test_marker_with_missing_and_unknown_keys_is_read(store: FakeStore) -> None:
    etag = store.write(PLAIN_AT, b'{"format": 1, "plan_id": "f00", "foreign": ["a"], "older": 1}', "")
    found = Records(store).read_marker(PLAIN_AT)
    assert found == StoredMarker(CompletionMarker(plan_id="f00", foreign=["a"]), etag)  # type: ignore[arg-type]
    assert found.is_of("f00")


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("claim", records_module.SMALL_RECORD_BYTES), ("marker", records_module.MARKER_BYTES)],
)
def test_claim_or_marker_that_is_too_large_is_not_read(store: FakeStore, kind: str, limit: int) -> None:
    store.produce(PLAIN_AT.key, b" " * (limit + 1))
    assert_unreadable(kind, store, PLAIN_AT)


@pytest.mark.parametrize("kind", GZIPPED)
@given(place=st.integers(0, 10**6), mask=st.integers(1, 255))
@example(place=12, mask=0xFF)
def test_damaged_record_never_reads_as_another(kind: str, place: int, mask: int) -> None:
    store, at = write_record(kind)
    right = READERS[kind](store, at)
    body = bytearray(store.body(at.key))
    body[place % len(body)] ^= mask
    store.produce(at.key, bytes(body))
    found: object = None
    with suppress(UnreadableRecordError):
        found = READERS[kind](store, at)
    # Some bytes of the gzip header have no meaning.
    if found != right:
        assert_unreadable(kind, store, at)


@pytest.mark.parametrize("kind", GZIPPED)
@given(length=st.integers(0, 10**6))
def test_truncated_record_is_not_read(kind: str, length: int) -> None:
    store, at = write_record(kind)
    body = store.body(at.key)
    store.produce(at.key, body[: length % len(body)])
    assert_unreadable(kind, store, at)


@given(lines=st.integers(0, 6), extra=st.booleans())
def test_manifest_needs_exactly_the_lines_of_its_table(lines: int, extra: bool) -> None:
    store = FakeStore()
    objects = tuple(ObjectInfo(f"{RAW}{number}", 1, "e") for number in range(3))
    part = replace(PART, size=3, objects=objects)
    packed = replace(PACKED, objects=PACKED.objects * 3)
    write_manifest(store, Manifest(TOTALS, (part, part), (packed, packed), ""))
    header, *rows = gzip.decompress(store.body(AT.key)).splitlines(keepends=True)
    rows = rows[:lines] + ([rows[0]] if extra else [])
    store.produce(AT.key, gzip.compress(b"".join([header, *rows])))
    if len(rows) == 6:
        assert read_manifest(store, AT) is not None
    else:
        assert_unreadable("manifest", store, AT)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"marker"}))
@pytest.mark.parametrize(
    "value",
    [5, [], "x", None, {}, {"format": 1}, {"format": 2}]
    + [{"format": number, "plan_id": 5, "parts": 7, "shards": 7} for number in (1, 2)],
    ids=str,
)
def test_json_of_another_shape_is_not_read(kind: str, value: object) -> None:
    body = json.dumps(value).encode()
    store = FakeStore()
    at = AT if kind in GZIPPED else PLAIN_AT
    store.produce(at.key, gzip.compress(body + b"\n") if kind in GZIPPED else body)
    assert_unreadable(kind, store, at)


@pytest.mark.parametrize("entry", [{}, {"name": "part-00000.log"}, 7, None, "x"], ids=str)
def test_damaged_manifest_table_is_found_at_once(entry: object) -> None:
    store, at = write_record("manifest")
    header, *rows = gzip.decompress(store.body(at.key)).splitlines()
    fields = json.loads(header) | {"parts_table": [entry]}
    store.produce(at.key, gzip.compress(b"\n".join([json.dumps(fields).encode(), *rows])))
    with pytest.raises(UnreadableRecordError):
        open_manifest(store, at)


# -- bounds --------------------------------------------------------------------------------------------


@cache
def bomb() -> bytes:
    """Return gzip data that decompresses to 32 MiB, about a thousand times its size."""
    return gzip.compress(b"0" * (32 * 2**20))


@pytest.mark.parametrize("kind", ["shard", "receipt"])
def test_gzip_bomb_is_not_decompressed_beyond_the_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_DECOMPRESSED_BYTES", 0)
    store = FakeStore()
    store.produce(AT.key, bomb())
    tracemalloc.start()
    try:
        assert_unreadable(kind, store, AT)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [open_manifest, read_manifest_header])
def test_header_that_is_a_gzip_bomb_is_refused(
    read: Callable[[FakeStore, Location], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzip_json, "LONGEST_LINE_BYTES", 2**20)
    monkeypatch.setattr(manifest_module, "LONGEST_LINE_BYTES", 2**20)
    store = FakeStore()
    store.produce(AT.key, bomb())
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableRecordError, match="longer than"):
            read(store, AT)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_default_limit_holds_for_the_decompressed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_DECOMPRESSED_BYTES", 99)
    store, at = write_record("shard")
    body = gzip.decompress(store.body(at.key))
    assert len(body) > 99
    assert_unreadable("shard", store, at)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6), st.integers(1, 40))
def test_members_cut_anywhere_decompress_to_their_content(text: bytes, cuts: list[int], piece: int) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    body = b"".join(gzip.compress(text[start:end]) for start, end in pairwise(edges))
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip_json, "_PIECE_BYTES", 7)
        assert b"".join(gzip_json.decompress_pieces(pieces)) == text
        lines = list(gzip_json.decompress_lines(pieces))
    assert lines == (text.removesuffix(b"\n").split(b"\n") if text else [])


# -- measurements --------------------------------------------------------------------------------------


@given(st.lists(measured, max_size=4))
def test_measurements_add_counts_and_keep_highest_peaks(several: list[Measured]) -> None:
    total = sum(several, Measured())
    for name in ("max_connections", "sockets", "open_files", "rss_bytes"):
        assert getattr(total, name) == max((getattr(one, name) for one in several), default=0)
    for name in ("retries", "throttles", "parts_written", "parts_left_alone"):
        assert getattr(total, name) == sum(getattr(one, name) for one in several)
    for name in ("seconds", "cpu_seconds"):
        assert getattr(total, name) == pytest.approx(sum(getattr(one, name) for one in several))
    for operation in ("GET", "PUT", "ListObjectsV2"):
        assert total.requests.get(operation, 0) == sum(one.requests.get(operation, 0) for one in several)


def test_separator_bytes_belong_to_no_raw_object() -> None:
    objects = tuple(PackedObject(1, "length", False, separator) for separator in (1, 0, 1))
    assert replace(PACKED, objects=objects).separators == 2


def test_error_of_a_request_does_not_make_a_plan_missing() -> None:
    store = FakeStore()
    store.on("READ", "plan.json", AttributeError("no isatty"))
    with pytest.raises(AttributeError):
        Records(store).read_plan(Location("logs", "plan.json"))
