"""Lists a prefix over several connections at once, because each page has to wait for the one before it."""

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from include.log_rollup.monitor import LOG_SECONDS
from include.log_rollup.store import ListPage, Location, ObjectInfo, ObjectStore

log = logging.getLogger(__name__)

# Keys are split between these code points; beyond them they are listed one page after the other.
_LOWEST, _HIGHEST = 0x1F, 0x7F


def list_all(store: ObjectStore, prefix: Location) -> list[ObjectInfo]:
    """Everything under a prefix, in the order of the keys' UTF-8 bytes; if it takes long, the log says how far.

    :raises RollupError: as the store raises
    """
    return _Lister(store, prefix).run()


@dataclass(slots=True, eq=False)
class _Span:
    """Keys after ``start`` up to and with ``end``, of which those up to ``position`` are listed."""

    start: str
    end: str | None
    position: str = ""
    rows: list[ObjectInfo] = field(default_factory=list)

    def take(self, page: ListPage) -> bool:
        """Keep the rows of a page that are within; returns whether more may come."""
        rows: Sequence[ObjectInfo] = page.objects
        inside = len(rows)
        if self.end is not None and rows and rows[-1].key > self.end:
            inside = bisect_right(rows, self.end, key=lambda row: row.key)
        self.rows += rows[:inside]
        if inside:
            self.position = rows[inside - 1].key
        return page.truncated and inside == len(rows)


class _Lister:
    """Spans of keys, each listed by one thread; a thread without one cuts off a part of another's.

    Where the keys lie is not known beforehand, so a span is cut in the middle of the key space that it has left.
    If nothing lies behind the cut, one request was spent, and the span is known to end before it.
    """

    def __init__(self, store: ObjectStore, prefix: Location) -> None:
        self._store = store
        self._prefix = prefix
        self._threads = store.control_connections
        self._changed = threading.Condition()
        self._under_way: list[_Span] = []
        self._spans: list[_Span] = []
        self._failed = False
        self._listed = 0
        self._next_line = time.monotonic() + LOG_SECONDS

    def run(self) -> list[ObjectInfo]:
        first = _Span("", None)
        pages = self._store.list_pages(self._prefix)
        # Most prefixes are one page: no threads for those.
        if self._take(first, next(pages)) and self._threads > 1:
            self._spans.append(first)
            self._under_way.append(first)
            with ThreadPoolExecutor(self._threads, "log-rollup-listing") as executor:
                futures = [executor.submit(self._work, None) for _ in range(self._threads - 1)]
                futures.append(executor.submit(self._work, first))
            for future in futures:
                future.result()
            self._spans.sort(key=lambda span: span.start)
            return [row for span in self._spans for row in span.rows]
        for page in pages:
            self._take(first, page)
        return first.rows

    def _take(self, span: _Span, page: ListPage) -> bool:
        """Give a page to its span; from one thread at a time."""
        before = len(span.rows)
        more = span.take(page)
        self._listed += len(span.rows) - before
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + LOG_SECONDS
            log.info("%s objects listed under %s so far", f"{self._listed:,}", self._prefix)
        return more

    def _work(self, span: _Span | None) -> None:
        try:
            while span := span or self._cut():
                self._list(span)
                span = None
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise

    def _list(self, span: _Span) -> None:
        for page in self._store.list_pages(self._prefix, span.position or span.start):
            with self._changed:
                more = self._take(span, page) and not self._failed
                if not more:
                    self._under_way.remove(span)
                self._changed.notify_all()
            if not more:
                return

    def _cut(self) -> _Span | None:
        """Take the upper half of what a span has left; None when there is nothing more to list."""
        with self._changed:
            while self._under_way and not self._failed:
                # One without rows may be empty: it is not worth another request before that is known.
                for span in sorted(self._under_way, key=lambda span: len(span.rows), reverse=True):
                    middle = between(span.position, span.end, len(self._prefix.key)) if span.rows else None
                    if middle is not None:
                        upper = _Span(middle, span.end)
                        span.end = middle
                        self._spans.append(upper)
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
