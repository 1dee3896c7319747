"""Samples the keys below a prefix within a bounded number of requests, whatever the bucket's size and age.

Folders are listed level by level. Of each level a few folders are followed: the newest dates, and different values
of everything else. Where a level has more than one page, the newest dates are found with start-after.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import NamedTuple

from include.log_rollup.queries.key_dates import dates_in, readings_of
from include.log_rollup.storage.listing import between
from include.log_rollup.storage.protocol import Location, SampledStore, TimedObject, TimedPage

# Folders that are followed in a level, and of one folder: those with dates, and those with hours or any name.
_WIDTH, _DATES, _NAMES = 6, 2, 6
# How far back from now the names of one folder are looked up, until there are some.
_BACK = tuple(timedelta(hours=hours) for hours in (3, 27, 24 * 8, 24 * 60, 24 * 400))
# Texts before the date that are looked up in one folder.
_MAX_HEADS = 3
_NUMBERED = re.compile(
    r"(?:(?i:year|month|day|hour|minute|min|date|dt|[ymdht])[=-]?)?(\d{2,4}|(?:19|20)\d{2}-?\d{2})/"
)
# Greater than a digit, and than the characters that separate dates.
_BEHIND_DIGITS = "\x7f"


class _Level(NamedTuple):
    """The folders in a folder.

    :param chosen: those to follow, the best first
    :param names: all of them
    :param is_dated: whether their names are dates or hours
    """

    chosen: Sequence[str]
    names: Sequence[str]
    is_dated: bool


class KeySample:
    """The objects that were listed below a prefix.

    :param limit: the most LISTs
    :ivar lists: how many LISTs were sent
    :ivar not_followed: folders whose objects were not sampled, except those that only have other dates
    """

    def __init__(self, store: SampledStore, place: Location, now: datetime, limit: int) -> None:
        self._store = store
        self._place = place
        self._now = now.replace(tzinfo=None)
        self._left = limit
        self._found: dict[str, TimedObject] = {}
        self._is_whole = True
        self.lists = 0
        self.not_followed: list[str] = []

    @property
    def objects(self) -> list[TimedObject]:
        """The objects in the order of their keys."""
        return sorted(self._found.values())

    @property
    def is_whole(self) -> bool:
        """Whether all objects below the prefix are in the sample."""
        return self._is_whole

    def take(self) -> None:
        """List the sample.

        :raises RollupError: as the store raises
        """
        folders = [self._place.key]
        while folders:
            levels = [self._visit(folder, number) for number, folder in enumerate(folders)]
            folders = self._next_folders([level for level in levels if level is not None])

    def _next_folders(self, levels: Sequence["_Level"]) -> list[str]:
        """The folders to follow next, of those in all folders of a level."""
        candidates = list(_in_turn([level.chosen for level in levels]))
        if not any(level.is_dated for level in levels):
            # First those with a name that no other one has.
            names = {folder.split("/")[-2]: folder for folder in reversed(candidates)}
            candidates.sort(key=lambda folder: names[folder.split("/")[-2]] != folder)
        followed = candidates[:_WIDTH]
        if sum(len(level.names) for level in levels) > len(followed):
            self._is_whole = False
        for level in levels:
            if not level.is_dated:
                self.not_followed += [name for name in level.names if name not in followed]
        return followed

    def _visit(self, folder: str, number: int) -> "_Level | None":
        """List a folder; returns what is in it, or None if no request is left."""
        # Below an hour the folders do not matter.
        delimiter = "" if folder.endswith("/") and readings_of(folder) else "/"
        page = self._list(folder, "", delimiter)
        if page is None:
            self.not_followed.append(folder)
            return None
        pages = [page]
        if page.truncated:
            self._is_whole = False
            pages += self._further_pages(folder, page, delimiter)
        names = {name for page in pages for name in page.folders if name != folder}
        return self._choose(folder, sorted(names), number)

    def _list(self, folder: str, start_after: str, delimiter: str) -> TimedPage | None:
        """A page; None if no request is left."""
        if not self._left:
            self._is_whole = False
            return None
        self._left -= 1
        self.lists += 1
        page = self._store.list_times(Location(self._place.bucket, folder), start_after, delimiter)
        self._found.update((row.key, row) for row in page.objects)
        return page

    def _further_pages(self, folder: str, first: TimedPage, delimiter: str) -> Iterator[TimedPage]:
        """The newest names of a folder with several pages, for different texts before the date."""
        page: TimedPage | None = first
        for _ in range(_MAX_HEADS):
            last = _last(page) if page else None
            if page is None or last is None or not page.truncated:
                return
            start = next((day.start for day in dates_in(last) if day.start >= len(folder)), None)
            if start is None:
                middle = between(last, None, len(folder))
                page = self._list(folder, middle, delimiter) if middle else None
                if page:
                    yield page
                return
            newest = self._newest_page(folder, last, delimiter)
            if newest:
                yield newest
            page = self._list(folder, last[:start] + _BEHIND_DIGITS, delimiter)
            if page:
                yield page

    def _newest_page(self, folder: str, last: str, delimiter: str) -> TimedPage | None:
        """The page with the newest date behind the text that comes before the date in a key."""
        head = last[: next(day.start for day in dates_in(last) if day.start >= len(folder))]
        for target in self._targets(folder):
            text = _with_time(last, len(folder), target)
            if text <= last:
                continue
            page = self._list(folder, text, delimiter)
            if page is None or any(row.startswith(head) for row in _rows(page)):
                return page
        return None

    def _targets(self, folder: str) -> Iterator[datetime]:
        """The times from which names are looked up: in a day's folder, its last hours."""
        days = dates_in(folder)
        if days:
            midnight = datetime.combine(days[0].day, datetime.min.time())
            for hours in (20, 12):
                if midnight + timedelta(hours=hours) <= self._now:
                    yield midnight + timedelta(hours=hours)
            return
        for back in _BACK:
            yield self._now - back

    def _choose(self, folder: str, names: Sequence[str], number: int) -> "_Level":
        """Choose the folders to follow."""
        values = {name: self._time_of(folder, name) for name in names}
        dated = [name for name in names if values[name] is not None]
        if dated and len(dated) >= 0.8 * len(names):
            dated.sort(key=lambda name: values[name] or "", reverse=True)
            if dates_in(folder):
                # Hours of a day: different ones in each of the days.
                turn = number * 5 % len(dated)
                return _Level((dated[turn:] + dated[:turn])[:_NAMES], names, True)
            return _Level(dated[:_DATES], names, True)
        visible = [name for name in names if name[len(folder) :][:1] not in ("_", ".")]
        hidden = [name for name in names if name not in set(visible)]
        return _Level((_spread(visible) + hidden)[:_NAMES], names, False)

    def _time_of(self, folder: str, name: str) -> str | None:
        """A text that sorts a folder by its time; None if its name is not a time, or is in the future."""
        step = name[len(folder) :]
        day = next(iter(dates_in(step)), None)
        tomorrow = f"{self._now + timedelta(days=2):%Y%m%d}"
        if day is not None:
            value = f"{day.day:%Y%m%d}"
            return f"{value}{step}" if value <= tomorrow else None
        match = _NUMBERED.fullmatch(step)
        if match is None:
            return None
        digits = match[1].replace("-", "")
        if len(digits) in (4, 6) and not "1970" <= digits <= tomorrow[: len(digits)]:
            return None
        return digits


def _rows(page: TimedPage) -> Iterator[str]:
    yield from (row.key for row in page.objects)
    yield from page.folders


def _last(page: TimedPage) -> str | None:
    return max(_rows(page), key=str.encode, default=None)


def _with_time(key: str, start: int, time: datetime) -> str:
    """The text of a key up to its date and hour behind an index, with another time."""
    readings = [reading for reading in readings_of(key) if reading.fields[-1].start >= start]
    fields = readings[0].fields if readings else dates_in(key)[-1].fields
    fields = tuple(field for field in fields if field.start >= start)
    text, position = "", 0
    for field in fields:
        text += key[position : field.start] + time.strftime(field.directive)
        position = field.end
    return text


def _spread(names: Sequence[str]) -> list[str]:
    """The names in an order in which the first few are far apart."""
    if len(names) <= _NAMES:
        return list(names)
    step = (len(names) - 1) / (_NAMES - 1)
    return [names[round(index * step)] for index in range(_NAMES)]


def _in_turn(lists: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first item of each list, then the second of each, and so on."""
    for items in zip_longest(*lists):
        yield from (item for item in items if item is not None)
