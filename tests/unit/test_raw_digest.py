"""Validation lists the raw hour by token, unlike planning, and computes its digest in bounded memory."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.hour.plan import ObjectDigests, WriteOptions, make_plan
from include.log_rollup.hour.raw_digest import digest_raw
from include.log_rollup.hour.selection import InputRules, LeftOut, select
from include.log_rollup.storage.protocol import ObjectInfo
from tests.support.fake_store import FakeStore, OddLister
from tests.support.hour_in_memory import make_stream, produce
from tests.support.raw_hours import HOUR, RAW, name_of
from tests.unit.strategies import raw_hours

STREAM = make_stream()
PATHS = STREAM.at(HOUR)


def planned_digests(store: FakeStore) -> dict[str, str]:
    listed = [ObjectInfo(key, len(store.body(key)), store.stored(key).etag) for key in store.listing(RAW)]
    chosen, left_out = select(listed, name_of, InputRules())
    return dict(make_plan(chosen, left_out, 64, WriteOptions()).digests)


@given(raw_hours, st.integers(1, 5), st.integers(0, 20))
def test_digest_equals_that_of_the_plan_in_any_order(
    hour: dict[str, bytes], page_size: int, expected: int
) -> None:
    plain = FakeStore(page_size=page_size)
    produce(plain, hour)
    wanted = planned_digests(plain)
    orders: list[Callable[[list[str]], list[str]]] = [
        list,
        lambda keys: keys[::-1],
        lambda keys: [*keys, *keys[: len(keys) // 2]],
        lambda keys: sorted(keys, key=lambda key: key.split("/")),
    ]
    for order in orders:
        store = OddLister(page_size=page_size, order=order)
        produce(store, hour)
        found = digest_raw(store, PATHS, InputRules(), expected)
        assert found.digests == wanted
        assert found.objects + found.left_out.hidden + found.left_out.placeholders == len(hour)


def test_any_change_changes_the_digest() -> None:
    store = FakeStore()
    produce(store, {"a.log": b"a", "b.gz": b"b", "c.log": b""})
    before = digest_raw(store, PATHS, InputRules(), 3)
    for change in ({"d.log": b""}, {"a.log": b"A"}, {"c.log": b"c"}, {"b.gz": b"bb"}):
        other = store.fork()
        produce(other, change)
        assert digest_raw(other, PATHS, InputRules(), 3).digests != before.digests
    produce(store, {"_hidden": b"x", "folder/": b""})
    after = digest_raw(store, PATHS, InputRules(), 3)
    assert after.digests == before.digests
    assert after.left_out == LeftOut(hidden=1, placeholders=1)


@pytest.mark.parametrize(("objects", "pages"), [(2, 1), (3, 2), (30, 2), (1999, 2), (2500, 3)])
def test_page_size_differs_from_planning(objects: int, pages: int) -> None:
    store = FakeStore()
    produce(store, {f"{number:05d}": b"x" for number in range(objects)})
    assert digest_raw(store, PATHS, InputRules(), objects).objects == objects
    assert [each.kind for each in store.log] == ["LIST"] * pages


def test_only_one_page_is_kept_of_ordered_rows() -> None:
    """The rows of a page are added to the digest and dropped."""
    store = FakeStore()
    produce(store, {f"{number:05d}": b"x" for number in range(3000)})
    sizes: list[int] = []

    class Counting(ObjectDigests):
        def add(self, rows: object) -> None:
            assert isinstance(rows, list)
            sizes.append(len(rows))
            super().add(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.log_rollup.hour.raw_digest.ObjectDigests", Counting)
        digest_raw(store, PATHS, InputRules(), 3000)
    assert sizes == [1000, 1000, 1000]


def test_ready_object_is_left_out() -> None:
    store = FakeStore()
    produce(store, {"a.log": b"a", "DONE": b""})
    found = digest_raw(store, PATHS, InputRules("DONE"), 2)
    assert (found.objects, found.left_out.markers) == (1, 1)


def test_container_is_a_raw_object_like_any_other() -> None:
    store = FakeStore()
    produce(store, {"a.log": b"a", "b.orc": b""})
    assert set(digest_raw(store, PATHS, InputRules(), 2).digests) == {"", ".orc"}
