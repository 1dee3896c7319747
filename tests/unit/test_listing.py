"""A listing over several connections is the one that a single one gives, and waits for fewer pages in a row."""

import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup import listing
from include.log_rollup.errors import AccessError
from include.log_rollup.listing import between, list_all
from include.log_rollup.store import Location, ObjectInfo
from log_rollup_plugin.listing import page_of
from tests.unit.fake_store import FakeStore

PREFIX = Location("logs", "raw/app/20261123/08/")

names = st.lists(
    st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=6)
    | st.from_regex(r"\A(api|web)-[0-2]/[0-9]{1,4}\.log\Z"),
    max_size=60,
    unique=True,
)


def store_with(keys: list[str], page_size: int = 3, **options: Any) -> FakeStore:
    """A store with an object of each name, and some before and behind the prefix."""
    store = FakeStore(page_size=page_size, **options)
    for key in ["raw/app/20261123/07/z", "raw/app/20261123/09/a", *(PREFIX.key + key for key in keys)]:
        store.produce(key, key.encode())
    return store


@settings(max_examples=60)
@given(names, st.integers(1, 7), st.integers(1, 5))
def test_every_object_is_listed_once_and_in_order(keys: list[str], page_size: int, connections: int) -> None:
    store = store_with(keys, page_size, control_connections=connections)
    listed = [row.key for row in list_all(store, PREFIX)]
    assert listed == sorted((PREFIX.key + key for key in keys), key=lambda key: key.encode())


texts = st.text(st.characters(max_codepoint=0x200, exclude_categories=["Cs"]), max_size=5)


@given(texts, texts)
def test_a_cut_lies_between(one: str, other: str) -> None:
    low, high = sorted((PREFIX.key + one, PREFIX.key + other))
    middle = between(low, high, len(PREFIX.key))
    if low < high and middle is not None:
        assert low < middle < high
    unbound = between(low, None, len(PREFIX.key))
    if unbound is not None:
        assert unbound > low
        assert unbound.startswith(PREFIX.key)


@pytest.mark.parametrize("form", ["{:06d}.log", "host-{0:02.0f}/{0:06d}.log", "080000-{:06d}-log.gz"])
def test_pages_are_asked_for_side_by_side(form: str) -> None:
    store = store_with([form.format(number) for number in range(1000)], 1)
    counts: Counter[int] = Counter()

    def late() -> None:
        counts[threading.get_ident()] += 1
        time.sleep(0.001)

    store.on("LIST", "", late, times=10**6)
    assert len(list_all(store, PREFIX)) == 1000
    # Of four, no thread does more than twice its share.
    assert max(counts.values()) <= 500


def test_a_long_listing_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_with([f"{number:04d}" for number in range(2500)], 1000, control_connections=1)
    with caplog.at_level("INFO"):
        list_all(store, PREFIX)
        assert caplog.messages == []
        monkeypatch.setattr(listing, "LOG_SECONDS", 0.0)
        list_all(store, PREFIX)
    assert caplog.messages == [
        f"{count} objects listed under {PREFIX} so far" for count in ("1,000", "2,000", "2,500")
    ]


def test_one_page_is_one_request() -> None:
    store = store_with(["a", "b"], 3)
    assert len(list_all(store, PREFIX)) == 2
    assert store.requests == {"ListObjectsV2": 1}


def test_a_request_that_is_refused_ends_the_listing() -> None:
    store = store_with([f"{number:03d}" for number in range(50)], 1)
    store.on("LIST", "", lambda: None, times=10)
    store.on("LIST", "", AccessError("denied"), times=10**6)
    with pytest.raises(AccessError, match="denied"):
        list_all(store, PREFIX)


def test_the_watcher_sees_no_more_threads_at_once_than_connections() -> None:
    store = store_with([f"{number:03d}" for number in range(200)], 1, control_connections=3)
    threads: set[int] = set()
    store.on("LIST", "", lambda: threads.add(threading.get_ident()), times=10**6)
    list_all(store, PREFIX)
    # The first page is asked for by the caller itself, before there are others.
    assert len(threads) <= 3 + 1


def test_a_page_in_another_form_is_read_by_botocore() -> None:
    moment = datetime(2026, 11, 23, 8, tzinfo=UTC)
    row = {"Key": "a", "Size": 3, "ETag": '"e"', "LastModified": moment}
    answer = {"ResponseMetadata": {"HTTPHeaders": {}}, "Contents": [row], "IsTruncated": True}
    page = page_of(answer)
    assert page.objects == [ObjectInfo("a", 3, "e")]
    assert page.newest == moment.timestamp()
    assert page.truncated
