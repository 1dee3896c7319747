"""The memory that the steps of a whole hour take for each raw object."""

import tracemalloc
from collections.abc import Callable

import pytest

from include.log_rollup.hour import gzip_json
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.units import KIB
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream, produce
from tests.support.raw_hours import HOUR

# Parts of 100 objects, shards of 500.
STREAM = make_stream(part_size=1000, shard_size=5000, max_shards=1000)
FEW, MANY = 2_000, 6_000


def peak_bytes(step: Callable[[], object], store: FakeStore) -> int:
    """The most memory that a step takes, with that of the fake store's log."""
    store.log.clear()
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks(objects: int) -> dict[str, int]:
    """The memory of each step on an hour of this many objects, in bytes."""
    store = FakeStore()
    produce(store, {f"{number:06d}.log": b"ten bytes\n" for number in range(objects)})
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    return {
        "validate": peak_bytes(lambda: validate_hour(store, STREAM, HOUR), store),
        "complete": peak_bytes(lambda: complete_hour(store, STREAM, HOUR), store),
        "plan again": peak_bytes(lambda: plan_hour(store, STREAM, HOUR, "run"), store),
    }


@pytest.fixture(scope="module")
def growth() -> dict[str, float]:
    """By how many bytes the memory of each step grows with each object."""
    with pytest.MonkeyPatch.context() as patch:
        # Smaller than the manifests of both hours; otherwise a piece would grow with the objects.
        patch.setattr(gzip_json, "_PIECE_BYTES", 16 * KIB)
        few, many = peaks(FEW), peaks(MANY)
    return {step: (many[step] - few[step]) / (MANY - FEW) for step in few}


# 512 MiB for a million objects, less the 150 MiB that Airflow takes, in bytes for each object.
MOST_BYTES = 380


@pytest.mark.slow
@pytest.mark.parametrize("step", ["validate", "complete", "plan again"])
def test_memory_per_object_stays_small(growth: dict[str, float], step: str) -> None:
    assert growth[step] < MOST_BYTES
