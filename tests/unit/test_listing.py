"""A listing over several connections gives the same rows as one connection, also from servers unlike S3."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.errors import AccessError, InputChangedError, ListingError, TransientError
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.storage import listing
from include.log_rollup.storage.listing import between, folders_below, list_all, list_by_token, pages_by_token
from include.log_rollup.storage.protocol import FolderPage, ListPage, Location, ObjectInfo
from log_rollup_plugin.s3.list_parser import parse_page
from tests.support.fake_store import FakeStore, OddLister
from tests.support.hour_in_memory import assert_right, make_stream, run_hour
from tests.support.raw_hours import HOUR

PREFIX = Location("logs", "raw/app/20261123/08/")

names = st.lists(
    st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=6)
    | st.from_regex(r"\A(api|web)-[0-2]/[0-9]{1,4}\.log\Z"),
    max_size=60,
    unique=True,
)


def store_with(keys: list[str], page_size: int = 3, **options: Any) -> FakeStore:
    """Return a store with an object of each name, and others before and after the prefix."""
    store = FakeStore(page_size=page_size, **options)
    for key in ["raw/app/20261123/07/z", "raw/app/20261123/09/a", *(PREFIX.key + key for key in keys)]:
        store.produce(key, key.encode())
    return store


@given(names, st.integers(1, 7), st.integers(1, 5))
def test_every_object_is_listed_once_and_in_order(keys: list[str], page_size: int, connections: int) -> None:
    store = store_with(keys, page_size, control_connections=connections)
    listed = [row.key for row in list_all(store, PREFIX)]
    assert listed == sorted((PREFIX.key + key for key in keys), key=lambda key: key.encode())


texts = st.text(st.characters(max_codepoint=0x200, exclude_categories=["Cs"]), max_size=5)


@given(texts, texts)
def test_split_key_lies_between_its_neighbours(one: str, other: str) -> None:
    low, high = sorted((PREFIX.key + one, PREFIX.key + other))
    middle = between(low, high, len(PREFIX.key))
    if low < high and middle is not None:
        assert low < middle < high
    unbound = between(low, None, len(PREFIX.key))
    if unbound is not None:
        assert unbound > low
        assert unbound.startswith(PREFIX.key)


@pytest.mark.parametrize("form", ["{:06d}.log", "host-{0:02.0f}/{0:06d}.log", "080000-{:06d}-log.gz"])
def test_pages_are_requested_in_parallel(form: str) -> None:
    store = store_with([form.format(number) for number in range(400)], 1)
    counts: Counter[int] = Counter()

    def count_slowly() -> None:
        counts[threading.get_ident()] += 1
        time.sleep(0.001)

    store.on("LIST", "", count_slowly, times=10**6)
    assert len(list_all(store, PREFIX)) == 400
    # No thread makes more than twice its share of the requests.
    assert max(counts.values()) <= 200


def test_long_listing_logs_its_progress(
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


def test_refused_request_ends_the_listing() -> None:
    store = store_with([f"{number:03d}" for number in range(50)], 1)
    store.on("LIST", "", lambda: None, times=10)
    store.on("LIST", "", AccessError("denied"), times=10**6)
    with pytest.raises(AccessError, match="denied"):
        list_all(store, PREFIX)


def test_parallel_requests_stay_within_the_connections() -> None:
    store = store_with([f"{number:03d}" for number in range(200)], 1, control_connections=3)
    threads: set[int] = set()
    store.on("LIST", "", lambda: threads.add(threading.get_ident()), times=10**6)
    list_all(store, PREFIX)
    # The caller itself requests the first page.
    assert len(threads) <= 3 + 1


# -- listings unlike S3's ------------------------------------------------------------------------------

UNTRUSTED = "cannot be trusted: repair or update the server, then clear the task"
NAMES = [
    f"{folder}{number:02d}.log" for folder in ("", "a/", "a/b/", "b/", "b.d/", "c-") for number in range(9)
]


def folders_last(keys: list[str]) -> list[str]:
    """List the files of a folder before its folders, as servers over a file system do."""
    return sorted(keys, key=lambda key: [(1, step) for step in key.split("/")[:-1]] + [(0, key)])


def folders_by_step(keys: list[str]) -> list[str]:
    """Sort step by step of the path: ``b/00`` before ``b.d/00``; "." alone would sort before "/"."""
    return sorted(keys, key=lambda key: key.split("/"))


def folder_twice(keys: list[str]) -> list[str]:
    """List the keys below an explicit folder object with the folder, and once more on their own."""
    return keys + [key for key in keys if "/a/" in key]


def every_key_twice(keys: list[str]) -> list[str]:
    """List every key twice in a row."""
    return [key for key in keys for _ in range(2)]


def reversed_keys(keys: list[str]) -> list[str]:
    """List the keys backwards."""
    return keys[::-1]


ORDERS = {
    order.__name__: order
    for order in (list, folders_last, folders_by_step, folder_twice, every_key_twice, reversed_keys)
}
OTHER_ORDERS = ("folders_last", "folders_by_step", "reversed_keys")


def odd_lister(names: list[str] = NAMES, page_size: int = 5, **options: Any) -> OddLister:
    """Return a store with an object of each name below the prefix, and others around it."""
    store = OddLister(page_size=page_size, **options)
    for key in ["raw/app/20261123/07/z", "raw/app/20261123/09/a", *(PREFIX.key + name for name in names)]:
        store.produce(key, key.encode())
    return store


def rows_of(store: FakeStore) -> list[ObjectInfo]:
    """Return all rows in order, each once."""
    return [
        ObjectInfo(key, len(store.body(key)), store.stored(key).etag) for key in store.listing(PREFIX.key)
    ]


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("start_after", ["honoured", "ignored", "tree"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("page_size", [1, 5, 1000])
def test_each_key_is_listed_once_in_any_order(
    order: str, start_after: str, page_size: int, connections: int
) -> None:
    store = odd_lister(
        order=ORDERS[order], start_after=start_after, page_size=page_size, control_connections=connections
    )
    assert list_by_token(store, PREFIX) == rows_of(store)
    assert sorted(row for page in pages_by_token(store, PREFIX) for row in page.objects) == rows_of(store)
    store.log.clear()
    found = list_all(store, PREFIX)
    if start_after == "tree" or (connections > 1 and order in OTHER_ORDERS):
        # Keys that a listing from the middle omits, or lists after the end of a thread's range, cannot be noticed.
        # Validation lists from the start on one thread.
        assert set(found) <= set(rows_of(store))
    else:
        assert found == rows_of(store)
    pages = 2 * len(NAMES) // page_size + 1
    assert len(store.log) <= 4 * pages + 8


@given(
    names,
    st.randoms(use_true_random=False),
    st.integers(1, 7),
    st.integers(1, 5),
    st.sampled_from(["honoured", "ignored"]),
)
def test_any_order_with_any_repetition_gives_each_key_once(
    keys: list[str], shuffler: random.Random, page_size: int, connections: int, start_after: str
) -> None:
    places = [shuffler.random() for _ in range(2 * len(keys))]
    repeated = [key for key in keys if shuffler.random() < 0.2]

    def order(listed: list[str]) -> list[str]:
        again = [key for key in listed if key.removeprefix(PREFIX.key) in repeated]
        placed = zip(places, [*listed, *again], strict=False)
        return [key for _, key in sorted(placed)]

    store = odd_lister(keys, page_size, order=order, start_after=start_after, control_connections=connections)
    found = list_all(store, PREFIX)
    assert found == rows_of(store) if connections == 1 else set(found) <= set(rows_of(store))
    assert list_by_token(store, PREFIX, page_size) == rows_of(store)


def without_token(page: ListPage, _: str | None) -> ListPage:
    return replace(page, token=None)


def same_token(page: ListPage, _: str | None) -> ListPage:
    return replace(page, token="5", truncated=True)


def token_of_the_page(page: ListPage, token: str | None) -> ListPage:
    return replace(page, token=token or "5") if page.truncated else page


def empty_pages(page: ListPage, token: str | None) -> ListPage:
    return replace(page, objects=(), truncated=True, token=str(int(token or 0) + 1))


def other_prefix(page: ListPage, _: str | None) -> ListPage:
    return replace(page, objects=[*page.objects, ObjectInfo("raw/app/20261123/09/a", 1, "e")])


def another_etag(page: ListPage, token: str | None) -> ListPage:
    return replace(page, objects=[*page.objects, ObjectInfo(PREFIX.key + "00.log", 27, f"{token}")])


def another_size(page: ListPage, token: str | None) -> ListPage:
    row = page.objects[0]
    return replace(page, objects=[row, row._replace(size=row.size + 1), *page.objects[1:]])


CONTRADICTIONS: dict[Callable[[ListPage, str | None], ListPage], str] = {
    without_token: "gives no continuation token",
    same_token: "gives the continuation token '5' a second time",
    token_of_the_page: "gives the continuation token '5' a second time",
    empty_pages: "empty pages in a row",
    other_prefix: "'raw/app/20261123/09/a', which is not under the prefix",
    another_etag: "lists the key 'raw/app/20261123/08/00.log' twice",
    another_size: "lists the key 'raw/app/20261123/08/00.log' twice",
}


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("change", CONTRADICTIONS, ids=lambda change: change.__name__)
def test_contradictory_listing_is_an_error(
    change: Callable[[ListPage, str | None], ListPage], connections: int
) -> None:
    for read in (list_all, list_by_token, lambda store, prefix: list(pages_by_token(store, prefix))):
        store = odd_lister(change=change, control_connections=connections)
        with pytest.raises(ListingError, match=re.escape(CONTRADICTIONS[change])) as caught:
            read(store, PREFIX)
        assert str(PREFIX) in str(caught.value)
        assert UNTRUSTED in str(caught.value)
        assert len(store.log) < 600


def test_pages_repeated_under_new_tokens_are_an_error() -> None:
    pages: list[ListPage] = []

    def repeated(page: ListPage, token: str | None) -> ListPage:
        pages.append(page)
        return replace(pages[0], truncated=True, token=str(int(token or 0) + 1))

    store = odd_lister(change=repeated)
    with pytest.raises(ListingError, match="without a new object"):
        list_all(store, PREFIX)
    assert len(store.log) < 600


def test_few_empty_pages_are_accepted() -> None:
    def sparse(page: ListPage, token: str | None) -> ListPage:
        place = int(token or 0)
        return replace(page, objects=page.objects if place % 50 == 0 else ())

    store = odd_lister([f"{number:03d}" for number in range(200)], 1, change=sparse, control_connections=1)
    expected = rows_of(store)[::50]
    assert list_all(store, PREFIX) == list_by_token(store, PREFIX) == expected


@pytest.mark.parametrize("read", [list_all, list_by_token])
@pytest.mark.parametrize("page_size", [5, 18, 1000])
def test_token_of_the_last_page_may_lead_back(read: Callable[..., list[ObjectInfo]], page_size: int) -> None:
    def back(page: ListPage, _: str | None) -> ListPage:
        return page if page.truncated else replace(page, token="0")

    store = odd_lister(page_size=page_size, change=back)
    assert read(store, PREFIX) == rows_of(store)


@pytest.mark.parametrize("read", [list_all, list_by_token])
@pytest.mark.parametrize("page_size", [5, 18, 1000])
def test_listing_that_states_no_end_is_continued(
    read: Callable[..., list[ObjectInfo]], page_size: int
) -> None:
    def unstated(page: ListPage, _: str | None) -> ListPage:
        return replace(page, truncated=None, token=None)

    store = odd_lister(page_size=page_size, change=unstated)
    assert read(store, PREFIX) == rows_of(store)
    empty = odd_lister([], change=unstated)
    assert read(empty, PREFIX) == []
    assert len(empty.log) == 1


@pytest.mark.parametrize("read", [list_all, list_by_token])
def test_folder_without_its_objects_is_an_error(read: Callable[..., list[ObjectInfo]]) -> None:
    def hides(page: ListPage, _: str | None) -> ListPage:
        shown = [row for row in page.objects if not row.key.startswith(f"{PREFIX.key}a/b/")]
        return replace(page, objects=shown, folders=[f"{PREFIX.key}a/b/"])

    with pytest.raises(
        ListingError, match=r"the common prefix 'raw/app/20261123/08/a/b/', which was not asked"
    ):
        read(odd_lister(change=hides), PREFIX)


@pytest.mark.parametrize("read", [list_all, list_by_token])
def test_folders_in_addition_to_their_objects_are_ignored(read: Callable[..., list[ObjectInfo]]) -> None:
    folders = [f"{PREFIX.key}a/b/", "elsewhere/"]
    store = odd_lister(change=lambda page, _: replace(page, folders=folders))
    assert read(store, PREFIX) == rows_of(store)


class OddFolders(FakeStore):
    """A store that changes each page of folders, given the page and the token of its request."""

    change: Callable[[FolderPage, str | None], FolderPage]

    def list_folders(self, prefix: Location, token: str | None = None, limit: int = 1000) -> FolderPage:
        return self.change(super().list_folders(prefix, None if token == "0" else token, limit), token)


@pytest.mark.parametrize("page_size", [1, 2, 5, 1000])
def test_folders_are_listed_whatever_the_last_page_states(page_size: int) -> None:
    store = OddFolders(page_size=page_size)
    for key in ("a/1", "a/2", "b", "c", "d/1", "d0", "e/1", "f"):
        store.produce(PREFIX.key + key, b"x")
    expected = [f"{PREFIX.key}{folder}/" for folder in "ade"]
    store.change = lambda page, _: page if page.truncated else replace(page, token="0")
    assert folders_below(store, PREFIX) == expected
    store.change = lambda page, _: replace(page, truncated=None, token=None)
    if page_size == 1000:
        assert folders_below(store, PREFIX) == expected
    else:
        with pytest.raises(ListingError, match="only some of the folders"):
            folders_below(store, PREFIX)


def test_row_without_etag_gets_the_etag_of_head() -> None:
    def bare(page: ListPage, _: str | None) -> ListPage:
        return replace(page, objects=[row._replace(etag="") for row in page.objects])

    store = odd_lister(change=bare)
    store.on("HEAD", "00.log", lambda: store.vanish(PREFIX.key + "00.log"))
    found = list_all(store, PREFIX)
    # One object vanishes between the listing and its HEAD.
    assert found == rows_of(store)
    assert len(found) == len(NAMES) - 1
    assert list_by_token(store, PREFIX) == found


@pytest.mark.parametrize("etag_is_md5", [True, False])
def test_row_wrongly_listed_as_empty_gets_its_size(etag_is_md5: bool) -> None:
    def sizeless(page: ListPage, _: str | None) -> ListPage:
        return replace(page, objects=[row._replace(size=0) for row in page.objects])

    store = OddLister(change=sizeless, etag_is_md5=etag_is_md5)
    for name, body in (("a", b"bytes"), ("b", b"")):
        store.produce(PREFIX.key + name, body, md5_etag=etag_is_md5)
    assert list_all(store, PREFIX) == rows_of(store)
    heads = [each.name for each in store.log if each.kind == "HEAD"]
    assert heads == (["a"] if etag_is_md5 else ["a", "b"])


def test_objects_changed_between_two_listings_are_retried() -> None:
    """After keys out of order, the prefix is listed again: rows already returned must still be the same."""
    store = odd_lister(order=folders_last, control_connections=1)
    first = next(iter(pages_by_token(store, PREFIX))).objects[0].key
    store.log.clear()

    def change() -> None:
        if [each.detail for each in store.log].count("") == 2:
            store.produce(first, b"changed")

    store.on("LIST", "", change, times=10**6)
    with pytest.raises(TransientError, match="changed while they were listed"):
        list_by_token(store, PREFIX)
    assert list_by_token(store, PREFIX) == rows_of(store)


# -- complete hours on such servers --------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("start_after", ["honoured", "ignored", "tree"])
@pytest.mark.parametrize("order", ORDERS)
def test_hour_is_packed_correctly_in_any_listing_order(
    order: str, start_after: str, connections: int
) -> None:
    stream = make_stream(part_size=400, shard_size=2000)
    store = odd_lister(order=ORDERS[order], start_after=start_after, control_connections=connections)
    for attempt in range(3):
        try:
            totals = run_hour(store, stream)
        except InputChangedError:
            # Validation finds keys that the parallel listing omitted; the next plan then lists by token.
            assert (start_after, attempt) == ("tree", 0)
            continue
        break
    assert totals.objects == len(NAMES)
    assert_right(store, stream)
    store.log.clear()
    assert plan_hour(store, stream, HOUR, "again").unchanged


@pytest.mark.parametrize("change", CONTRADICTIONS, ids=lambda change: change.__name__)
def test_hour_is_not_packed_from_a_contradictory_listing(
    change: Callable[[ListPage, str | None], ListPage],
) -> None:
    store = odd_lister(change=change)
    with pytest.raises(ListingError):
        run_hour(store, make_stream())
    assert store.writes() == []


def test_unusual_page_is_parsed_by_botocore() -> None:
    moment = datetime(2026, 11, 23, 8, tzinfo=UTC)
    row = {"Key": "a", "Size": 3, "ETag": '"e"', "LastModified": moment}
    answer = {"ResponseMetadata": {"HTTPHeaders": {}}, "Contents": [row], "IsTruncated": True}
    page = parse_page(answer)
    assert page.objects == [ObjectInfo("a", 3, "e")]
    assert page.newest == moment.timestamp()
    assert page.truncated
