"""One hour in full, complete and being built."""

import pytest

from include.log_rollup import records
from include.log_rollup.detail import read_hour
from include.log_rollup.packing import pack_shard
from include.log_rollup.planning import plan_hour
from include.log_rollup.status import HourState
from tests.unit.fake_store import FakeStore
from tests.unit.pipeline import HOUR, MANIFEST, make_stream, manifest_of, produce, run_hour

pytestmark = pytest.mark.usefixtures("unwatched")
STREAM = make_stream()


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    produce(store, {f"{number}.log": b"a" * 30 for number in range(9)} | {"big.log": b"b" * 100})
    return store


@pytest.mark.parametrize("chunk", [7, 128 * 1024])
def test_the_parts_of_a_complete_hour_are_those_of_its_manifest(
    store: FakeStore, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "HEADER_BYTES", chunk)
    run_hour(store, STREAM)
    detail = read_hour(store, STREAM, HOUR)
    assert detail.status.state is HourState.COMPLETE
    header, _ = manifest_of(store)
    assert [(part.name, part.size, part.crc64nvme, part.proof) for part in detail.parts] == [
        (entry["name"], entry["size"], entry["crc64nvme"], entry["proof"]) for entry in header["parts_table"]
    ]
    assert [part.objects for part in detail.parts if part.copied] == [1]
    assert sum(part.objects for part in detail.parts) == 10


def test_of_a_manifest_no_more_is_read_than_its_header(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_hour(store, STREAM)
    monkeypatch.setattr(records, "HEADER_BYTES", len(store.body(MANIFEST)) - 1)
    store.log.clear()
    read_hour(store, STREAM, HOUR)
    assert [step.kind for step in store.log if step.key == MANIFEST] == ["HEAD", "RANGE"]


def test_an_hour_that_is_being_built_tells_what_is_planned_and_what_is_packed(store: FakeStore) -> None:
    planned = plan_hour(store, STREAM, HOUR, "run")
    before = read_hour(store, STREAM, HOUR)
    assert (before.status.state, list(before.parts)) == (HourState.BUILDING, [])
    assert before.planned is not None
    assert before.planned.objects == 10
    pack_shard(store, STREAM, planned.shards[0])
    after = read_hour(store, STREAM, HOUR)
    assert len(after.parts) == planned.shards[0].parts
    assert all(part.proof is None for part in after.parts)


def test_a_damaged_manifest_is_told_and_the_hour_stays_complete(store: FakeStore) -> None:
    run_hour(store, STREAM)
    for damaged in (b"not gzip", store.body(MANIFEST)[:30]):
        store.produce(MANIFEST, damaged)
        detail = read_hour(store, STREAM, HOUR)
        assert (detail.status.state, list(detail.parts)) == (HourState.COMPLETE, [])
        assert "_manifest.jsonl.gz: cannot be read" in detail.unclear


def test_an_hour_without_a_marker_or_a_claim_has_no_parts(store: FakeStore) -> None:
    detail = read_hour(store, STREAM, HOUR)
    assert (detail.status.state, list(detail.parts), detail.unclear) == (HourState.INCOMPLETE, [], "")
