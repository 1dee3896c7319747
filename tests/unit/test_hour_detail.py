"""The details of an hour that is complete, being built, or damaged."""

import gzip
import json
from typing import Any

import pytest

from include.log_rollup.errors import UnreadableRecordError
from include.log_rollup.hour import manifest
from include.log_rollup.queries.hour_detail import FrameStatus, read_frames, read_hour
from include.log_rollup.queries.status import HourStatus
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.grouped_hour import GroupedHour
from tests.support.hour_in_memory import MANIFEST, MARKER, WORK, make_stream, manifest_of, produce, run_hour
from tests.support.raw_hours import HOUR

pytestmark = pytest.mark.usefixtures("unwatched")
STREAM = make_stream()


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, {f"{number}.log": b"a" * 30 for number in range(9)} | {"big.log": b"b" * 100})
    return store


@pytest.mark.parametrize("chunk", [7, 128 * 1024])
def test_complete_hour_has_the_parts_of_its_manifest(
    store: FakeStore, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "HEADER_BYTES", chunk)
    run_hour(store, STREAM)
    detail = read_hour(store, STREAM, HOUR)
    assert detail.status.state is HourStatus.COMPLETE
    header, _ = manifest_of(store)
    assert [(part.name, part.size, part.crc64nvme, part.proof) for part in detail.parts] == [
        (entry["name"], entry["size"], entry["crc64nvme"], entry["proof"]) for entry in header["parts_table"]
    ]
    assert [part.objects for part in detail.parts if part.copied] == [1]
    assert sum(part.objects for part in detail.parts) == 10


def test_only_the_header_of_a_manifest_is_read(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run_hour(store, STREAM)
    monkeypatch.setattr(manifest, "HEADER_BYTES", len(store.body(MANIFEST)) - 1)
    store.log.clear()
    read_hour(store, STREAM, HOUR)
    assert [step.kind for step in store.log if step.key == MANIFEST] == ["HEAD", "RANGE"]


@pytest.fixture
def compressed(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> Stream:
    """A stream with a complete hour: parts with several frames, and one object that is copied."""
    monkeypatch.setattr("include.log_rollup.compression.FRAME_BYTES", 50)
    monkeypatch.setattr("include.log_rollup.compression.LARGEST_FRAME_BYTES", 90)
    stream = make_stream(compression="zstd", part_size=150, shard_size=1000)
    run_hour(store, stream)
    return stream


def frames_of(store: FakeStore, part: str) -> list[FrameStatus]:
    """The frames of a part, from the lines of the manifest."""
    lines = [line for line in manifest_of(store)[1] if line["part"] == part]
    found = []
    for offset in sorted({line["frame_offset"] for line in lines}):
        members = [line for line in lines if line["frame_offset"] == offset]
        content = sum(line["length"] + line["separator"] for line in members)
        found.append(FrameStatus(offset, members[0]["frame_length"], content, len(members)))
    return found


def test_compressed_parts_have_frames_and_their_content(store: FakeStore, compressed: Stream) -> None:
    detail = read_hour(store, compressed, HOUR)
    framed = [part for part in detail.parts if part.frames]
    assert len(framed) > 1
    for part in framed:
        found = read_frames(store, compressed, HOUR, part.name)
        assert found == frames_of(store, part.name)
        assert part.frames == len(found) > 1
        assert part.content_size == sum(frame.content_size for frame in found)
        assert part.objects == sum(frame.objects for frame in found)
    (copied,) = [part for part in detail.parts if not part.frames]
    assert (copied.copied, copied.content_size) == (True, None)
    assert read_frames(store, compressed, HOUR, copied.name) == []


def test_frames_of_groups_are_found_by_the_names_of_the_hour() -> None:
    hour = GroupedHour("before the date", compression="zstd", part_size=10_000)
    hour.produce({"web": {"a.log": b"a\n"}, "api": {"a.log": b"b\n", "b.log": b"b\n"}})
    hour.run()
    detail = read_hour(hour.store, hour.stream, HOUR)
    assert [part.name.split("/")[0] for part in detail.parts] == ["api", "web"]
    found = [read_frames(hour.store, hour.stream, HOUR, part.name) for part in detail.parts]
    assert [[frame.objects for frame in frames or ()] for frames in found] == [[2], [1]]


def test_frames_need_a_part_of_the_manifest(store: FakeStore, compressed: Stream) -> None:
    assert read_frames(store, compressed, HOUR, "part-00000-00000000.log.zst") is None
    name = read_hour(store, compressed, HOUR).parts[0].name
    body = store.body(MANIFEST)
    store.produce(MANIFEST, body[:-40])
    with pytest.raises(UnreadableRecordError, match=MANIFEST):
        read_frames(store, compressed, HOUR, read_hour(store, compressed, HOUR).parts[-1].name)
    store.delete("logs", [MANIFEST])
    assert read_frames(store, compressed, HOUR, name) is None


def test_uncompressed_manifest_states_no_frames(store: FakeStore) -> None:
    run_hour(store, STREAM)
    header, _ = manifest_of(store)
    assert header["format"] == 1
    assert not any("frames" in entry or "content_size" in entry for entry in header["parts_table"])
    for part in read_hour(store, STREAM, HOUR).parts:
        assert (part.frames, part.content_size) == (0, None)
        assert read_frames(store, STREAM, HOUR, part.name) == []


def test_packed_parts_of_a_compressed_hour_have_frames(store: FakeStore) -> None:
    stream = make_stream(compression="gzip")
    (ref, *_) = plan_hour(store, stream, HOUR, "run").shards
    pack_shard(store, stream, ref)
    packed = [part for part in read_hour(store, stream, HOUR).parts if part.frames]
    assert packed
    assert all(part.content_size and part.proof is None for part in packed)


def test_hour_being_built_has_planned_and_packed_parts(store: FakeStore) -> None:
    planned = plan_hour(store, STREAM, HOUR, "run")
    before = read_hour(store, STREAM, HOUR)
    assert (before.status.state, list(before.parts)) == (HourStatus.BUILDING, [])
    assert before.planned is not None
    assert before.planned.objects == 10
    pack_shard(store, STREAM, planned.shards[0])
    after = read_hour(store, STREAM, HOUR)
    assert len(after.parts) == planned.shards[0].parts
    assert all(part.proof is None for part in after.parts)


def test_damaged_manifest_is_reported_for_a_complete_hour(store: FakeStore) -> None:
    run_hour(store, STREAM)
    for damaged in (b"not gzip", store.body(MANIFEST)[:30]):
        store.produce(MANIFEST, damaged)
        detail = read_hour(store, STREAM, HOUR)
        assert (detail.status.state, list(detail.parts)) == (HourStatus.COMPLETE, [])
        assert f"s3://logs/{MANIFEST}" in detail.unclear


def test_hour_without_a_marker_or_a_claim_has_no_parts(store: FakeStore) -> None:
    detail = read_hour(store, STREAM, HOUR)
    assert (detail.status.state, list(detail.parts), detail.unclear) == (HourStatus.INCOMPLETE, [], "")


def gzip_json(value: Any) -> bytes:
    return gzip.compress(json.dumps(value).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"parts_table": None}, {"parts_table": [7]}, {"parts_table": [{}]}, {"parts_table": {"a": 1}},
        {"parts_table": [{"name": 5}]}, {"format": 99},
        {"parts_table": [{"name": "\ud800", "size": 1, "objects": 1, "copied": False, "crc64nvme": None,
                          "proof": None}]},
        {"parts_table": [{"name": "x", "size": -1, "objects": 1, "copied": False, "crc64nvme": None,
                          "proof": None}]},
    ],
)  # fmt: skip
def test_manifest_of_another_shape_leaves_the_parts_unclear(store: FakeStore, change: dict[str, Any]) -> None:
    run_hour(store, STREAM)
    header, _ = manifest_of(store)
    store.produce(MANIFEST, gzip_json({**header, **change}) + gzip.compress(b"\n"))
    detail = read_hour(store, STREAM, HOUR)
    assert (detail.status.state, list(detail.parts)) == (HourStatus.COMPLETE, [])
    assert f"s3://logs/{MANIFEST}" in detail.unclear
    assert detail.unclear.encode()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"[" * 200_000, b'{"format": 1}', b'{"format": 1, "parts": "x"}']
)
def test_damaged_plan_leaves_the_hour_being_built(store: FakeStore, body: bytes) -> None:
    plan_hour(store, STREAM, HOUR, "run")
    (plan,) = [key for key in store.listing(WORK) if key.endswith("/plan.json")]
    if b"parts" in body:
        body = json.dumps({**json.loads(store.body(plan)), "parts": "many"}).encode()
    store.produce(plan, body)
    detail = read_hour(store, STREAM, HOUR)
    assert (detail.status.state, list(detail.parts), detail.planned) == (HourStatus.BUILDING, [], None)
    assert plan in detail.unclear


def test_damaged_receipt_hides_only_the_parts_of_its_shard(store: FakeStore) -> None:
    planned = plan_hour(store, STREAM, HOUR, "run")
    assert len(planned.shards) > 1
    for ref in planned.shards:
        pack_shard(store, STREAM, ref)
    complete_count = len(read_hour(store, STREAM, HOUR).parts)
    receipt = next(key for key in store.listing(WORK) if "/receipt-" in key)
    for body in (b"not gzip", gzip_json([]), gzip_json({"format": 1}), gzip.compress(b"[" * 200_000)):
        store.produce(receipt, body)
        detail = read_hour(store, STREAM, HOUR)
        assert 0 < len(detail.parts) < complete_count
        assert detail.planned is not None


def test_damaged_marker_leaves_the_parts_unclear(store: FakeStore) -> None:
    run_hour(store, STREAM)
    store.produce(MARKER, b"")
    detail = read_hour(store, STREAM, HOUR)
    assert (detail.status.state, list(detail.parts)) == (HourStatus.DAMAGED, [])
    assert detail.unclear == detail.status.problem
    assert MARKER in detail.unclear
