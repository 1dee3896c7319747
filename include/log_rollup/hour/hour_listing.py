"""Lists the objects of one hour of a template, at once or page by page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import TypeVar

from include.log_rollup.hour.template import RawTemplate, Template
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.listing import (
    PAGE_SIZE,
    folders_below,
    list_all,
    list_by_token,
    pages_by_token,
)
from include.log_rollup.storage.protocol import ListPage, Location, ObjectInfo, ObjectStore

# Up to this number of prefixes, each is listed by all threads; above it, each by one thread.
LISTED_IN_TURN = 4
# Prefixes whose first objects are in memory and not read yet, for each connection.
PREFIXES_AHEAD = 2
_THREADS = "log-rollup-listing"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class HourListing:
    """Lists the objects of one hour of a template.

    The captures before the date are found by listings with a delimiter, level by level. Objects of other hours
    below the same prefix are dropped page by page: a day's folder takes no more memory than the hour's objects.

    :param unmatched: the template, if the objects that belong to no hour and that this one reports are listed too

    All methods raise :class:`include.log_rollup.errors.ListingError` if the store's listing contradicts itself,
    and :class:`include.log_rollup.errors.RollupError` as the store does.
    """

    template: Template
    hour: datetime
    unmatched: RawTemplate | None = None

    def __str__(self) -> str:
        return self.template.show(self.hour)

    def list_all(self, store: ObjectStore) -> list[ObjectInfo]:
        """All objects in the order of the keys' UTF-8 bytes, listed in parallel where that is faster."""
        prefixes = self.prefixes(store)
        if len(prefixes) <= LISTED_IN_TURN:
            return _joined([list_all(store, prefix, self._own) for prefix in prefixes])
        return _joined(_each(store, lambda prefix: list_by_token(store, prefix, own=self._own), prefixes))

    def list_by_token(self, store: ObjectStore, page_size: int = PAGE_SIZE) -> list[ObjectInfo]:
        """The same, each prefix page by page, for servers that list in any order.

        :param page_size: the most rows on a page, 1 to 1,000
        """
        prefixes = self.prefixes(store, page_size)
        return _joined(
            _each(store, lambda prefix: list_by_token(store, prefix, page_size, self._own), prefixes)
        )

    def pages(self, store: ObjectStore, expected: int | None = None) -> Iterator[ListPage]:
        """The pages of the hour by continuation token, one prefix after the other, in bounded memory.

        The first thousand objects of several prefixes are requested at the same time.

        :param expected: probable number of objects. If it is given, pages are so small that a prefix with the
            average number of objects has two: planning reads them in one.
        """
        prefixes = self.prefixes(store, _half_of(expected))
        page_size = _half_of(expected, max(1, len(prefixes)))

        def begin(prefix: Location) -> Iterator[ListPage]:
            pages = pages_by_token(store, prefix, page_size, self._own)
            first: list[ListPage] = []
            rows = 0
            for page in pages:
                first.append(page)
                rows += len(page.objects)
                if rows >= PAGE_SIZE:
                    break
            return chain(first, pages)

        workers = store.control_connections
        for pages in in_parallel(workers, _THREADS, begin, prefixes, PREFIXES_AHEAD * workers):
            yield from pages

    def prefixes(self, store: ObjectStore, page_size: int = PAGE_SIZE) -> list[Location]:
        """The prefixes that cover the hour, in the order of their bytes; none is inside another.

        :param page_size: the most rows on a page of a listing that finds captures, 1 to 1,000
        """
        if not self.template.labels(self.hour):
            return []
        found: list[Mapping[str, str]] = [{}]
        while levels := [
            (values, level) for values in found if (level := self.template.next_level(values)) is not None
        ]:
            places = [self.template.location(level.prefix) for _, level in levels]
            folders = _each(store, lambda place: folders_below(store, place, page_size), places)
            found = [
                {**values, level.capture: value}
                for (values, level), names in zip(levels, folders, strict=True)
                for name in names
                if (value := level.value(name))
            ]
        keys = sorted(key for values in found for key in self.template.prefixes(self.hour, values))
        return [self.template.location(key) for key in keys]

    @cached_property
    def _own(self) -> Callable[[str], bool] | None:
        """Which keys below the prefixes belong to the hour; None if all do."""
        if self.template.is_exact:
            return None
        find = self.template.lookup(lambda match: match.hour == self.hour)
        if (raw := self.unmatched) is not None and raw.finds_unmatched:
            return lambda key: (
                found[1] if (found := find(key)) is not None else raw.reporting_hour(key) == self.hour
            )
        return lambda key: (found := find(key)) is not None and found[1]


def _half_of(expected: int | None, prefixes: int = 1) -> int:
    """The size of the pages on which a prefix with the average number of objects has two pages."""
    return PAGE_SIZE if expected is None else max(1, min(PAGE_SIZE, expected // (2 * prefixes) + 1))


def _each(store: ObjectStore, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The results of a function for each item, over the store's connections."""
    return list(in_parallel(store.control_connections, _THREADS, function, items))


def _joined(found: list[list[ObjectInfo]]) -> list[ObjectInfo]:
    return found[0] if len(found) == 1 else [row for rows in found for row in rows]
