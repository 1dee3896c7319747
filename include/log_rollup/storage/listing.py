"""Lists a prefix, in parallel by ranges of keys or page by page, and enforces the contract of S3 on each page.

The contract: keys come in the order of their UTF-8 bytes, each once, and a truncated page has a token for the next
one. Some servers break it: they list a folder's keys after those of the next folder, list a key twice, ignore
start-after or the prefix, or omit the token. If a page of the parallel listing violates the contract, the prefix
is listed again by token alone. That listing accepts any order; it still requires unique keys and progress.
On such a server the parallel listing can miss keys that come after the end of a thread's range, without noticing.
So validation always lists by token.

``own`` says by the key which objects are wanted. The others are checked like all, then dropped page by page.
"""

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from include.log_rollup.errors import ListingError, TransientError
from include.log_rollup.monitor import LOG_SECONDS
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import ListPage, Location, ObjectInfo, ObjectStore

log = logging.getLogger(__name__)

PAGE_SIZE = 1000
# S3 may return empty pages before the last one, for example after many delete markers.
MAX_EMPTY_PAGES = 250
# Ranges are split between these code points; keys beyond them are listed one page after the other.
_LOWEST, _HIGHEST = 0x1F, 0x7F
# With more threads, more ranges are split in vain: of 720 pages, 16 threads took 1,420 requests and 4 took 790.
RANGE_THREADS = 4
_HASH_MASK = (1 << 64) - 1
_EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
_UNASKED = "the server lists the common prefix {!r}, which was not asked for, instead of the objects below it"
_UNTRUSTED = "The listing of this server cannot be trusted: repair or update the server, then clear the task."


# Which keys are wanted; None for all.
Own = Callable[[str], bool] | None


class _ContractError(Exception):
    """A page violates the contract of S3; the text says how."""


def list_all(store: ObjectStore, prefix: Location, own: Own = None) -> list[ObjectInfo]:
    """All objects below a prefix in the order of the keys' UTF-8 bytes, listed in parallel where that is faster.

    Logs its progress every few seconds. Sends a HEAD for rows that :func:`fill_rows` has to complete.

    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    try:
        rows = _ParallelListing(store, prefix, own).run()
    except _ContractError as error:
        log.warning("%s: %s; it is listed again page by page", prefix, error)
        return list_by_token(store, prefix, own=own)
    return fill_rows(store, prefix, rows)


def list_by_token(
    store: ObjectStore, prefix: Location, page_size: int = PAGE_SIZE, own: Own = None
) -> list[ObjectInfo]:
    """The same as :func:`list_all`, page by page by continuation token, for servers that list in any order.

    :param page_size: the most objects on a page, 1 to 1,000
    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    rows = [row for page in pages_by_token(store, prefix, page_size, own) for row in page.objects]
    # Sorting rows that are in order already takes one comparison for each row.
    rows.sort(key=lambda row: row.key)
    return fill_rows(store, prefix, rows)


def fill_rows(store: ObjectStore, prefix: Location, rows: list[ObjectInfo]) -> list[ObjectInfo]:
    """Complete rows that lack an ETag, or may have a wrong size; objects that no longer exist are dropped.

    Some servers list objects with size 0 that are not empty (noobaa-core 7705). Objects listed as empty are never
    read, so their size is compared with a HEAD, unless the ETag is the MD5 of nothing.

    :raises RollupError: as the store raises
    """
    if all(_is_complete(row) for row in rows):
        return rows

    def filled(row: ObjectInfo) -> ObjectInfo | None:
        if _is_complete(row):
            return row
        head = store.head(prefix.at(row.key))
        return None if head is None else ObjectInfo(row.key, head.size, row.etag or head.etag)

    completed = in_parallel(store.control_connections, "log-rollup-rows", filled, rows)
    return [row for row in completed if row is not None]


def _is_complete(row: ObjectInfo) -> bool:
    return bool(row.etag and (row.size or row.etag == _EMPTY_MD5))


def pages_by_token(
    store: ObjectStore, prefix: Location, page_size: int = PAGE_SIZE, own: Own = None
) -> Iterator[ListPage]:
    """The pages of a prefix by continuation token; at least one page. ``newest`` is that of the wanted objects.

    A key that is listed again with the same size and ETag is left out. While keys come in order, none is kept in
    memory. When they don't, the listing starts again, and remembers all keys to recognise repeated ones.

    :param page_size: the most objects on a page, 1 to 1,000
    :raises ListingError: if the listing contradicts itself: a truncated page without a token, a repeated token, a
        key outside the prefix, or a key with two sizes or ETags
    :raises TransientError: if the objects changed between the two listings
    :raises RollupError: as the store raises
    """
    pages = rows = digest = 0
    last = ""
    for page in _raw_pages(store, prefix, page_size, own):
        if not increasing(last, page.objects):
            break
        if page.objects:
            last = page.objects[-1].key
        pages += 1
        rows += len(page.objects)
        digest += sum(map(hash, page.objects))
        yield replace(page, objects=_wanted(page.objects, own)) if own else page
    else:
        return
    log.warning(
        "%s is not listed in the order of the keys; every key is remembered, to see each once", prefix
    )
    yield from _unordered_pages(store, prefix, page_size, own, pages, (rows, digest & _HASH_MASK))


def _wanted(rows: Sequence[ObjectInfo], own: Own) -> Sequence[ObjectInfo]:
    return [row for row in rows if own(row.key)] if own else rows


def _unordered_pages(
    store: ObjectStore,
    prefix: Location,
    page_size: int,
    own: Own,
    skipped: int,
    fingerprint: tuple[int, int],
) -> Iterator[ListPage]:
    """List from the start and return the pages after the first ones, without repeated keys.

    :param skipped: how many pages were returned already
    :param fingerprint: number and digest of the rows on those pages
    """
    seen: dict[str, ObjectInfo] = {}
    stale = 0
    for number, page in enumerate(_raw_pages(store, prefix, page_size, own)):
        if number == skipped:
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
        if number >= skipped:
            yield replace(page, objects=_wanted(fresh, own))
        if stale and not page.truncated:
            return
    if number < skipped:
        raise TransientError(f"LIST {prefix}: the objects changed while they were listed")


def _raw_pages(store: ObjectStore, prefix: Location, page_size: int, own: Own) -> Iterator[ListPage]:
    """Pages by token that keep the contract, except for the order and uniqueness of keys."""
    tokens: set[str] = set()
    folders = _UnlistedFolders(prefix.key)
    empty = 0
    asked = ""
    page = store.list_page(prefix, limit=page_size, own=own)
    first = page.objects
    while True:
        empty = 0 if page.objects else empty + 1
        violation = _violation(prefix, page, tokens, empty)
        if violation:
            raise ListingError(f"LIST {prefix}: {violation}. {_UNTRUSTED}")
        folders.add(page)
        yield page
        if page.truncated or (page.token and page.token not in tokens and page.objects):
            assert page.token is not None
            tokens.add(page.token)
            following = store.list_page(prefix, token=page.token, limit=page_size, own=own)
            # A token counts also if IsTruncated is missing or false. But some servers give one on the last page,
            # which leads back.
            if (
                page.truncated is False
                and following.objects
                and {*following.objects} <= {*first, *page.objects}
            ):
                break
        elif page.truncated is None and not page.token and page.objects and page.objects[-1].key > asked:
            # Nothing says whether more objects follow.
            asked = page.objects[-1].key
            following = store.list_page(prefix, asked, limit=page_size, own=own)
            if not any(row.key > asked for row in following.objects):
                break
        else:
            break
        page = following
    if unlisted := folders.first:
        raise ListingError(f"LIST {prefix}: {_UNASKED.format(unlisted)}. {_UNTRUSTED}")


class _UnlistedFolders:
    """The common prefixes that a listing shows unasked, and below which it lists no object.

    :param prefix: of the listing
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._unlisted: set[str] = set()
        self._listed: set[str] = set()

    def add(self, page: ListPage) -> None:
        """Add the common prefixes and the objects of a page."""
        self._unlisted.update(
            folder
            for folder in page.folders
            if folder.startswith(self._prefix) and folder not in self._listed
        )
        for folder in sorted(self._unlisted):
            # A key that is equal to the folder is its placeholder.
            if any(row.key.startswith(folder) and row.key != folder for row in page.objects):
                self._unlisted.remove(folder)
                self._listed.add(folder)

    @property
    def first(self) -> str:
        """The first of them in the order of names; empty if there is none."""
        return min(self._unlisted, default="")


def _violation(prefix: Location, page: ListPage, tokens: set[str], empty: int) -> str | None:
    """How a page violates the contract, apart from the order of keys; None if it doesn't.

    :param tokens: of the pages before
    :param empty: how many pages up to this one are empty, in a row
    """
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
    """Whether the keys of some rows strictly increase, starting after the key ``last``."""
    for row in rows:
        if row.key <= last:
            # This also refuses the empty key, with which no object exists.
            return False
        last = row.key
    return True


def folders_below(store: ObjectStore, prefix: Location, page_size: int = PAGE_SIZE) -> list[str]:
    """The common prefixes up to the next ``/`` below a prefix, sorted.

    A server that ignores the delimiter lists objects instead; their keys show the same folders.

    :param page_size: the most rows on a page, 1 to 1,000
    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    found: set[str] = set()
    token: str | None = None
    tokens: set[str] = set()
    empty = 0
    known: set[str] | None = None
    first: set[str] | None = None
    while True:
        page = store.list_folders(prefix, token, page_size)
        rows = {*page.folders, *page.keys}
        # The token of the last page may lead back.
        if known and rows and rows <= known:
            return sorted(found)
        first = rows if first is None else first
        known = first | rows if page.truncated is False else None
        before = len(found)
        for folder in page.folders:
            if not folder.startswith(prefix.key) or not folder.endswith("/"):
                raise ListingError(
                    f"LIST {prefix}: the server lists the folder {folder!r}, which is not one below the prefix. "
                    f"{_UNTRUSTED}"
                )
            found.add(folder)
        for key in page.keys:
            if not key.startswith(prefix.key):
                raise ListingError(
                    f"LIST {prefix}: the server lists {key!r}, which is not under the prefix. {_UNTRUSTED}"
                )
            step, slash, _ = key[len(prefix.key) :].partition("/")
            if slash:
                found.add(f"{prefix.key}{step}/")
        empty = 0 if len(found) > before or page.keys else empty + 1
        if not page.truncated and (not page.token or page.token in tokens):
            if page.truncated is None and not page.token and rows and _has_more(store, prefix, rows, found):
                raise ListingError(
                    f"LIST {prefix}: the server lists only some of the folders, and does not say that more "
                    f"follow. {_UNTRUSTED}"
                )
            return sorted(found)
        if not page.token or page.token in tokens or empty > MAX_EMPTY_PAGES:
            raise ListingError(
                f"LIST {prefix}: the server says that more folders follow, but gives no new ones. {_UNTRUSTED}"
            )
        token = page.token
        tokens.add(token)


def _has_more(store: ObjectStore, prefix: Location, rows: set[str], found: set[str]) -> bool:
    """Whether objects come after the folders and keys of a page, outside the folders found so far."""
    last = max(rows)
    # "0" is the character after "/": keys from there on are not in that folder.
    after = f"{last[:-1]}0" if last.endswith("/") else last
    page = store.list_page(prefix, after)
    return any(row.key > after and not row.key.startswith(tuple(found)) for row in page.objects)


@dataclass(slots=True, eq=False)
class _Range:
    """A range of keys that one thread lists.

    :param start: exclusive
    :param end: inclusive; None for no bound. It moves down when the upper half is split off
    :param position: the last key listed so far
    :param empty: number of empty pages in a row
    """

    start: str
    end: str | None
    position: str = ""
    rows: list[ObjectInfo] = field(default_factory=list)
    empty: int = 0
    tokens: set[str] = field(default_factory=set)

    def add_page(self, prefix: Location, page: ListPage, own: Own) -> bool:
        """Keep the wanted rows of a page that are within the range.

        :returns: whether the range has more pages
        :raises _ContractError: if the page violates the contract of S3
        """
        rows = page.objects
        self.empty = 0 if rows else self.empty + 1
        violation = _violation(prefix, page, self.tokens, self.empty)
        if violation:
            raise _ContractError(violation)
        if page.truncated is None and rows and not page.token:
            raise _ContractError("the server does not say whether more objects follow")
        for folder in page.folders:
            if folder.startswith(prefix.key):
                raise _ContractError(_UNASKED.format(folder))
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
        self.rows += _wanted(rows[:inside], own)
        if inside:
            self.position = rows[inside - 1].key
        return bool(page.truncated) and inside == len(rows)


class _ParallelListing:
    """Ranges of keys, each listed by one thread; a thread without a range splits off half of another thread's.

    The distribution of the keys is unknown, so a range is split in the middle of the key space that is left. If no
    key lies above the split, one request was wasted, and the range below is known to end there.
    """

    def __init__(self, store: ObjectStore, prefix: Location, own: Own) -> None:
        self._store = store
        self._prefix = prefix
        self._own = own
        self._threads = min(store.control_connections, RANGE_THREADS)
        self._changed = threading.Condition()
        self._unfinished: list[_Range] = []
        self._ranges: list[_Range] = []
        self._failed = False
        self._listed = 0
        self._next_log = time.monotonic() + LOG_SECONDS

    def run(self) -> list[ObjectInfo]:
        """All rows below the prefix, in the order of keys."""
        first = _Range("", None)
        page = self._store.list_page(self._prefix)
        more = self._add_page(first, page)
        # Most prefixes have one page and need no threads.
        if more and self._threads > 1:
            return self._run_threads(first, page.token)
        while more:
            page = self._store.list_page(self._prefix, token=page.token)
            more = self._add_page(first, page)
        return first.rows

    def _run_threads(self, first: _Range, token: str | None) -> list[ObjectInfo]:
        """Continue the first range on all threads."""
        self._ranges.append(first)
        self._unfinished.append(first)
        with ThreadPoolExecutor(self._threads, "log-rollup-listing") as executor:
            futures = [executor.submit(self._work, None, None) for _ in range(self._threads - 1)]
            futures.append(executor.submit(self._work, first, token))
        for future in futures:
            future.result()
        self._ranges.sort(key=lambda key_range: key_range.start)
        rows = self._ranges[0].rows
        for key_range in self._ranges[1:]:
            rows += key_range.rows
            # Each range is freed at once: there may be a million rows.
            key_range.rows.clear()
        return rows

    def _add_page(self, key_range: _Range, page: ListPage) -> bool:
        """Add a page to its range and log the progress; not thread-safe."""
        before = len(key_range.rows)
        more = key_range.add_page(self._prefix, page, self._own)
        self._listed += len(key_range.rows) - before
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + LOG_SECONDS
            log.info("%s objects listed under %s so far", f"{self._listed:,}", self._prefix)
        return more

    def _work(self, key_range: _Range | None, token: str | None) -> None:
        """List ranges on one thread until all keys are listed, or a thread fails."""
        try:
            while key_range := key_range or self._split():
                self._list(key_range, token)
                key_range = token = None
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise

    def _list(self, key_range: _Range, token: str | None) -> None:
        more = True
        while more:
            page = self._store.list_page(self._prefix, key_range.start, token)
            token = page.token
            with self._changed:
                more = self._add_page(key_range, page) and not self._failed
                if not more:
                    self._unfinished.remove(key_range)
                self._changed.notify_all()

    def _split(self) -> _Range | None:
        """Split off the upper half of the rest of a range; waits if none can be split.

        :returns: None if nothing is left to list, or a thread has failed
        """
        with self._changed:
            while self._unfinished and not self._failed:
                by_rows = sorted(self._unfinished, key=lambda key_range: len(key_range.rows), reverse=True)
                for key_range in by_rows:
                    upper = self._upper_half(key_range)
                    if upper is not None:
                        self._ranges.append(upper)
                        self._unfinished.append(upper)
                        return upper
                self._changed.wait()
        return None

    def _upper_half(self, key_range: _Range) -> _Range | None:
        # A range without rows may be empty, which its first page shows; splitting it earlier may waste a request.
        if not key_range.rows:
            return None
        middle = between(key_range.position, key_range.end, len(self._prefix.key))
        if middle is None:
            return None
        upper = _Range(middle, key_range.end)
        key_range.end = middle
        return upper


def between(low: str, high: str | None, common: int) -> str | None:
    """A key in the middle between two keys, from their first different characters.

    :param low: exclusive
    :param high: inclusive; None for no bound
    :param common: how many characters all keys have in common
    :returns: None if no key between the two can be formed
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
