"""A raw hour in little memory: what is listed under the keys of a manifest."""

import time
import tracemalloc
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.hour.raw_listing import Presence, RawListing
from include.log_rollup.storage.protocol import ListPage, ObjectInfo


def pages(rows: Sequence[ObjectInfo], size: int = 1000) -> Iterator[ListPage]:
    for start in range(0, len(rows), size):
        yield ListPage(rows[start : start + size], 0.0, datetime.now(UTC), truncated=False)


rows = st.lists(
    st.builds(ObjectInfo, st.text(max_size=3), st.integers(0, 9), st.text(max_size=2)),
    unique_by=lambda row: row.key,
)


@given(listed=rows, packed=rows)
def test_listing_says_what_a_dictionary_would(listed: list[ObjectInfo], packed: list[ObjectInfo]) -> None:
    listing = RawListing(pages(listed, 3))
    known = {row.key: row for row in listed}
    for item in packed:
        expected = Presence.ABSENT
        if item.key in known:
            expected = Presence.SAME if known[item.key] == item else Presence.OTHER
        assert listing.find(item) is listing.hold(item) is expected
        assert listing.is_newest(item) is (expected is Presence.SAME)
    held = {item.key for item in packed}
    assert {row.key for row in listing.others()} == known.keys() - held
    assert set(listing.changed()) == {item.key for item in packed if known.get(item.key, item) != item}


def test_later_version_in_a_part_counts() -> None:
    old, new = ObjectInfo("a", 1, "old"), ObjectInfo("a", 2, "new")
    listing = RawListing(pages([old]))
    assert listing.hold(old) is Presence.SAME
    assert listing.hold(new) is Presence.OTHER
    assert not listing.is_newest(old)
    assert list(listing.changed()) == ["a"]


@pytest.mark.parametrize("backwards", [False, True])
def test_listing_takes_little_memory_and_time(backwards: bool) -> None:
    count = 20_000
    keys = [f"raw/app/20261123/08/{number:060}" for number in range(count)]
    listed = [ObjectInfo(key, 1, f"{number:032x}") for number, key in enumerate(keys)]
    listing_of = list(reversed(listed)) if backwards else listed
    started = time.process_time()
    tracemalloc.start()
    listing = RawListing(pages(listing_of))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(listing.find(item) is Presence.SAME for item in listed[:100])
    # Without the keys themselves, which the test has.
    assert peak < count * 300
    assert time.process_time() - started < 5
