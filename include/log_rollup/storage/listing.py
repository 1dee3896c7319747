"""Listings of a prefix, checked as they are read: in parallel by ranges of keys, or page by page by token.

S3 lists keys in the order of their UTF-8 bytes, each once, and names the next page by a token. Some servers do
not: they list a folder's keys behind those of the next one, list a key twice, ignore start-after or the prefix, or
forget the token. Each page is checked against that contract. Where the parallel listing meets a violation, the
prefix is listed again by token alone, where order does not matter but uniqueness and progress do.
"""

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from include.log_rollup.errors import ListingError, TransientError
from include.log_rollup.monitor import LOG_SECONDS
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import ListPage, Location, ObjectInfo, ObjectStore

log = logging.getLogger(__name__)

PAGE_SIZE = 1000
# S3 may answer with an empty page that is not the last one, behind many delete markers for example.
MAX_EMPTY_PAGES = 250
# Keys are split between these code points; beyond them they are listed one page after the other.
_LOWEST, _HIGHEST = 0x1F, 0x7F
_HASH_MASK = (1 << 64) - 1
_EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
_UNTRUSTED = "The listing of this server cannot be trusted: repair or update the server, then clear the task."


class _ContractError(Exception):
    """A page that S3 would not answer; the text says what is wrong with it."""


def list_all(store: ObjectStore, prefix: Location) -> list[ObjectInfo]:
    """Everything under a prefix in the order of the keys' UTF-8 bytes, listed in parallel where that is faster.

    If it takes long, the log says how far it is. What a row lacks, a HEAD answers.

    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    try:
        rows = _ParallelListing(store, prefix).run()
    except _ContractError as error:
        log.warning("%s: %s; it is listed again page by page", prefix, error)
        return list_by_token(store, prefix)
    return fill_rows(store, prefix.bucket, rows)


def list_by_token(store: ObjectStore, prefix: Location, page_size: int = PAGE_SIZE) -> list[ObjectInfo]:
    """As :func:`list_all`, page by page by continuation token alone; the server's order does not matter.

    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    rows = [row for page in pages_by_token(store, prefix, page_size) for row in page.objects]
    # Sorting what is in order already takes one comparison for each row.
    rows.sort(key=lambda row: row.key)
    return fill_rows(store, prefix.bucket, rows)


def fill_rows(store: ObjectStore, bucket: str, rows: list[ObjectInfo]) -> list[ObjectInfo]:
    """Rows with the ETags that the listing left out; objects that are gone meanwhile are dropped.

    Some servers list objects with a size of 0 that are not empty (noobaa-core 7705). An object that is listed as
    empty is never read, so HEAD is asked unless the ETag is the MD5 of nothing.

    :raises RollupError: as the store raises
    """
    if all(row.etag and (row.size or row.etag == _EMPTY_MD5) for row in rows):
        return rows

    def filled(row: ObjectInfo) -> ObjectInfo | None:
        if row.etag and (row.size or row.etag == _EMPTY_MD5):
            return row
        head = store.head(Location(bucket, row.key))
        return None if head is None else ObjectInfo(row.key, head.size, row.etag or head.etag)

    found = in_parallel(store.control_connections, "log-rollup-rows", filled, rows)
    return [row for row in found if row is not None]


def pages_by_token(store: ObjectStore, prefix: Location, page_size: int = PAGE_SIZE) -> Iterator[ListPage]:
    """The pages of a prefix by continuation token, each checked; at least one page.

    A key that is listed again with the same size and ETag is left out. As long as keys come in order nothing is
    kept of them; once they don't, the listing is read again from its beginning, to know which keys it had.

    :param page_size: the most objects of a page, 1 to 1,000
    :raises ListingError: if the listing contradicts itself: a truncated page without a token, a token that comes
        again, a key outside the prefix, or one that is listed with two sizes or ETags
    :raises TransientError: if it changed between the two readings
    :raises RollupError: as the store raises
    """
    pages = rows = digest = 0
    last = ""
    for page in _followed(store, prefix, page_size):
        if not increasing(last, page.objects):
            break
        if page.objects:
            last = page.objects[-1].key
        pages += 1
        rows += len(page.objects)
        digest += sum(map(hash, page.objects))
        yield page
    else:
        return
    log.warning(
        "%s is not listed in the order of the keys; every key is remembered, to see each once", prefix
    )
    yield from _unordered(store, prefix, page_size, pages, (rows, digest & _HASH_MASK))


def _unordered(
    store: ObjectStore, prefix: Location, page_size: int, given: int, fingerprint: tuple[int, int]
) -> Iterator[ListPage]:
    """The pages behind the first ``given``, whose rows are those of the fingerprint, without repeated keys."""
    seen: dict[str, ObjectInfo] = {}
    stale = 0
    for number, page in enumerate(_followed(store, prefix, page_size)):
        if number == given:
            digest = sum(map(hash, seen.values())) & _HASH_MASK
            if (len(seen), digest) != fingerprint:
                raise TransientError(f"LIST {prefix}: the objects changed while they were listed")
        fresh = []
        for row in page.objects:
            known = seen.get(row.key)
            if known is None:
                seen[row.key] = row
                fresh.append(row)
            elif known != row:
                raise ListingError(
                    f"LIST {prefix}: the server lists the key {row.key!r} twice, as {known.size} bytes with ETag "
                    f"{known.etag!r} and as {row.size} bytes with ETag {row.etag!r}. Its listing cannot be "
                    f"trusted: repair or update the server, then clear the task."
                )
        stale = 0 if fresh else stale + 1
        if stale > MAX_EMPTY_PAGES:
            raise ListingError(
                f"LIST {prefix}: the server answered {stale} pages in a row without a new object and says that "
                f"more follow. {_UNTRUSTED}"
            )
        if number >= given:
            yield replace(page, objects=fresh)
        if stale and not page.truncated:
            return
    if number < given:
        raise TransientError(f"LIST {prefix}: the objects changed while they were listed")


def _followed(store: ObjectStore, prefix: Location, page_size: int) -> Iterator[ListPage]:
    """Pages from token to token, checked for what holds in any order of keys."""
    token: str | None = None
    tokens: set[str] = set()
    empty = 0
    while True:
        page = store.list_page(prefix, token=token, limit=page_size)
        empty = 0 if page.objects else empty + 1
        problem = _problem(prefix, page, tokens, empty)
        if problem:
            raise ListingError(f"LIST {prefix}: {problem}. {_UNTRUSTED}")
        yield page
        # A token counts more than IsTruncated, which some servers leave out, as long as it leads to objects.
        if not page.truncated and (not page.token or page.token in tokens or not page.objects):
            return
        token = page.token
        assert token is not None
        tokens.add(token)


def _problem(prefix: Location, page: ListPage, tokens: set[str], empty: int) -> str | None:
    """What is wrong with a page, whatever the order of its keys."""
    for row in page.objects:
        if not row.key.startswith(prefix.key):
            return f"the server lists {row.key!r}, which is not under the prefix"
    if not page.truncated:
        return None
    if not page.token:
        return "the server says that more objects follow, but gives no continuation token"
    if page.token in tokens:
        return f"the server gives the continuation token {page.token[:80]!r} a second time"
    if empty > MAX_EMPTY_PAGES:
        return f"the server answered {empty} empty pages in a row and says that more follow"
    return None


def increasing(last: str, rows: Sequence[ObjectInfo]) -> bool:
    """Whether the keys of these rows come in order, each once, all behind the key ``last``."""
    for row in rows:
        if row.key <= last:
            # The empty key, which is the prefix itself of a whole bucket, cannot be listed.
            return False
        last = row.key
    return True


@dataclass(slots=True, eq=False)
class _Range:
    """Keys after ``start`` up to and with ``end``, of which those up to ``position`` are listed."""

    start: str
    end: str | None
    position: str = ""
    rows: list[ObjectInfo] = field(default_factory=list)
    empty: int = 0
    tokens: set[str] = field(default_factory=set)

    def take(self, prefix: Location, page: ListPage) -> bool:
        """Check a page and keep its rows that are within the range; returns whether more may come.

        :raises _ContractError: if S3 would not answer it
        """
        rows = page.objects
        self.empty = 0 if rows else self.empty + 1
        problem = _problem(prefix, page, self.tokens, self.empty)
        if problem:
            raise _ContractError(problem)
        if page.token and not page.truncated:
            raise _ContractError("the server says that no more objects follow, and gives a token for more")
        if not increasing(self.position or self.start, rows):
            raise _ContractError(
                "the server does not list the keys in order from where it was asked to begin"
            )
        if page.token:
            self.tokens.add(page.token)
        inside = len(rows)
        if self.end is not None and rows and rows[-1].key > self.end:
            inside = bisect_right(rows, self.end, key=lambda row: row.key)
        self.rows += rows[:inside]
        if inside:
            self.position = rows[inside - 1].key
        return page.truncated and inside == len(rows)


class _ParallelListing:
    """Ranges of keys, each listed by one thread; a thread without one cuts off a part of another's.

    Where the keys lie is not known beforehand, so a range is cut in the middle of the key space that it has left.
    If nothing lies behind the cut, one request was spent, and the range is known to end before it.
    """

    def __init__(self, store: ObjectStore, prefix: Location) -> None:
        self._store = store
        self._prefix = prefix
        self._threads = store.control_connections
        self._changed = threading.Condition()
        self._under_way: list[_Range] = []
        self._ranges: list[_Range] = []
        self._failed = False
        self._listed = 0
        self._next_line = time.monotonic() + LOG_SECONDS

    def run(self) -> list[ObjectInfo]:
        first = _Range("", None)
        page = self._store.list_page(self._prefix)
        more = self._take(first, page)
        # Most prefixes are one page: no threads for those.
        if more and self._threads > 1:
            self._ranges.append(first)
            self._under_way.append(first)
            with ThreadPoolExecutor(self._threads, "log-rollup-listing") as executor:
                futures = [executor.submit(self._work, None, None) for _ in range(self._threads - 1)]
                futures.append(executor.submit(self._work, first, page.token))
            for future in futures:
                future.result()
            self._ranges.sort(key=lambda one: one.start)
            rows = self._ranges[0].rows
            for one in self._ranges[1:]:
                rows += one.rows
                one.rows.clear()
            return rows
        while more:
            page = self._store.list_page(self._prefix, token=page.token)
            more = self._take(first, page)
        return first.rows

    def _take(self, one: _Range, page: ListPage) -> bool:
        """Give a page to its range; from one thread at a time."""
        before = len(one.rows)
        more = one.take(self._prefix, page)
        self._listed += len(one.rows) - before
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + LOG_SECONDS
            log.info("%s objects listed under %s so far", f"{self._listed:,}", self._prefix)
        return more

    def _work(self, one: _Range | None, token: str | None) -> None:
        try:
            while one := one or self._cut():
                self._list(one, token)
                one = token = None
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise

    def _list(self, one: _Range, token: str | None) -> None:
        more = True
        while more:
            page = self._store.list_page(self._prefix, one.start, token)
            token = page.token
            with self._changed:
                more = self._take(one, page) and not self._failed
                if not more:
                    self._under_way.remove(one)
                self._changed.notify_all()

    def _cut(self) -> _Range | None:
        """Take the upper half of what a range has left; None when there is nothing more to list."""
        with self._changed:
            while self._under_way and not self._failed:
                # One without rows may be empty: it is not worth another request before that is known.
                for one in sorted(self._under_way, key=lambda one: len(one.rows), reverse=True):
                    middle = between(one.position, one.end, len(self._prefix.key)) if one.rows else None
                    if middle is not None:
                        upper = _Range(middle, one.end)
                        one.end = middle
                        self._ranges.append(upper)
                        self._under_way.append(upper)
                        return upper
                self._changed.wait()
        return None


def between(low: str, high: str | None, common: int) -> str | None:
    """A key in the middle between two, by their first characters that differ; None where there is no room.

    :param high: None for no bound
    :param common: how many characters all keys have in common
    """
    place = common
    while high is not None and place < min(len(low), len(high)) and low[place] == high[place]:
        place += 1
    top = ord(high[place]) if high is not None and place < len(high) else _HIGHEST
    for end in range(place, len(low) + 1):
        bottom = ord(low[end]) if end < len(low) else _LOWEST
        middle = (bottom + min(top, _HIGHEST)) // 2
        if middle > bottom:
            return low[:end] + chr(middle)
        top = _HIGHEST
    return None
