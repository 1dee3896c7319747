"""Which hour and group a key belongs to, and which prefixes to list for an hour.

A template matches the start of keys; :mod:`include.log_rollup.hour.template_syntax` describes its text. From left
to right, each capture takes as few characters as it can for the text up to the next capture to fit. Only then are
the digits read: a key whose digits are not one local hour, the same in all places, belongs to no hour.

There is one exception. Where a raw template has a date in its folders, and date and hour again in the name, the
name alone decides the hour. Producers deliver into the folder of the present day, so the folder of an hour near
midnight may be that of the day before or after (:data:`HOURS_IN_DAY_BEFORE`, :data:`HOURS_IN_DAY_AFTER`).
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import itemgetter
from typing import ClassVar, NamedTuple, Self, TypeVar

from include.log_rollup.hour.key_pattern import KeyPattern, folder_day_of, full_year, label_of, text_of
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.local_hours import LocalHours, check_zone
from include.log_rollup.hour.template_syntax import (
    CAPTURE,
    DEFAULT_SUFFIX,
    DIRECTIVE,
    LITERAL,
    Element,
    TemplateError,
    count_folder_directives,
    escape,
    parse,
)
from include.log_rollup.storage.protocol import Location

# The folder below the literal beginning of an aggregated template that has the records of each hour.
HOURS_FOLDER = "_hours/"
# Hours of the day whose objects may be in the folder of the day before or after. AWS states for load balancers
# that the folder has the day of the delivery, and the name the end of the logged interval, which is earlier.
# Deliveries are late by minutes, rarely by hours. Each hour more costs the listing of one more folder.
HOURS_IN_DAY_BEFORE = frozenset((0,))
HOURS_IN_DAY_AFTER = frozenset((21, 22, 23))
_DAY = timedelta(days=1)
# One run packs one hour, so its keys have few stamps; the limit is for keys of many hours.
_MAX_STAMPS = 10_000
# No key begins with it: S3's keys have at most 1,024 bytes.
_LONGER_THAN_KEYS = "-" * 1025

R = TypeVar("R")


class Match(NamedTuple):
    """The hour and group of a key.

    :param captures: values in the order of the template's ``captures``
    :param name: rest of the key, behind the template
    """

    hour: datetime
    captures: tuple[str, ...]
    name: str


class Level(NamedTuple):
    """A listing with delimiter ``/`` that finds the values of a capture.

    :param prefix: prefix to list
    :param ending: what follows the value in each common prefix; it ends with ``/``
    """

    capture: str
    prefix: str
    ending: str

    def value(self, common_prefix: str) -> str | None:
        """The capture's value in a common prefix; None if the template does not match it."""
        value = common_prefix[len(self.prefix) : -len(self.ending)]
        return value if value and common_prefix == f"{self.prefix}{value}{self.ending}" else None


@dataclass(frozen=True)
class Template:
    """What raw and aggregated templates have in common; made by ``parse``.

    :param text: the template, with what was appended
    :param zone: IANA name of the time zone of its directives
    """

    text: str
    bucket: str
    elements: tuple[Element, ...]
    zone: str = "UTC"

    is_raw: ClassVar = False

    def __str__(self) -> str:
        """The template as users write it: without the usual folders of an hour."""
        return self.text.removesuffix(DEFAULT_SUFFIX)

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """Names of the captures, in the order of their first occurrence."""
        return tuple(dict.fromkeys(element.value for element in self.elements if element.kind == CAPTURE))

    @cached_property
    def literal(self) -> str:
        """The text of all its keys before the first capture or directive."""
        return self.elements[0].value if self.elements[0].kind == LITERAL else ""

    @cached_property
    def root(self) -> Location:
        """The prefix of all its keys, up to the last ``/`` before the first capture or directive."""
        return self.location(self.literal[: self.literal.rfind("/") + 1])

    def location(self, key: str) -> Location:
        """The location of a key, or of a prefix, of the bucket."""
        return Location(self.bucket, key, self.is_raw)

    @cached_property
    def hours(self) -> LocalHours:
        """The hours of its time zone."""
        return LocalHours(self.zone)

    def match(self, key: str) -> Match | None:
        """The hour, captures and rest of a key of the bucket; None if it belongs to no hour."""
        found = self._match(key)
        if found is None:
            return None
        stamp = self._stamp(found)
        try:
            hour = self._hour_of_stamp[stamp]
        except KeyError:
            hour = self._read_stamp(stamp)
        if hour is None:
            return None
        return Match(hour, self._captures(found), key[found.end() :])

    def lookup(self, value_of: Callable[[Match], R]) -> Callable[[str], tuple[int, R] | None]:
        """A function from keys to the length of what the template matches and a value, faster than :meth:`match`.

        In a listing, the next key usually begins with the same text, which then matches in the same way. The
        function may be called from several threads; it returns None for keys that belong to no hour.

        :param value_of: computes the value from the match of a key; the match's ``name`` must not matter
        """
        last: tuple[str, tuple[int, R] | None] = (_LONGER_THAN_KEYS, None)

        def find(key: str) -> tuple[int, R] | None:
            nonlocal last
            beginning, result = last
            if key.startswith(beginning):
                return result
            found = self.match(key)
            if found is None:
                return None
            end = len(key) - len(found.name)
            result = end, value_of(found)
            last = key[:end], result
            return result

        return find

    def labels(self, hour: datetime) -> tuple[datetime, ...]:
        """The local hours, as naive datetimes, whose keys belong to a UTC hour; see :class:`LocalHours`."""
        labels = self.hours.labels_of(hour)
        if self._has_century:
            return labels
        return tuple(label for label in labels if full_year(label.year % 100) == label.year)

    def folder_days(self, label: datetime) -> tuple[datetime, ...]:
        """The times whose dates the folders of a local hour's keys may have; the hour itself is the first one."""
        if not self._folder_elements:
            return (label,)
        if label.hour in HOURS_IN_DAY_BEFORE:
            return label, label - _DAY
        return (label, label + _DAY) if label.hour in HOURS_IN_DAY_AFTER else (label,)

    def fill(self, label: datetime, values: Mapping[str, str], folder: datetime | None = None) -> str:
        """The text of keys of a local hour, up to the first capture that has no value in ``values``.

        :param folder: one of :meth:`folder_days`; the hour itself by default
        """
        texts = []
        for index, element in enumerate(self.elements):
            if element.kind == CAPTURE and element.value not in values:
                break
            time = folder if folder and index < self._folder_elements else label
            texts.append(text_of(element, time, values))
        return "".join(texts)

    def own_folder(self, text: str) -> str:
        """The text of a key up to its name, with the folder of the hour's own day.

        :param text: a key of an hour, up to its name, perhaps with the folder of the day before or after
        """
        found = self._match(text) if self._folder_elements else None
        if found is None:
            return text
        label = label_of(self.pattern.runs, [found[group] for group in self.pattern.stamp_groups])
        if label is None:
            return text
        return self.fill(label, dict(zip(self.captures, self._captures(found), strict=True)))

    def next_level(self, values: Mapping[str, str]) -> Level | None:
        """The listing that finds the next capture before the date; None if ``values`` has all of them.

        Start without values; for each value that a level finds, continue with ``values`` and that value.
        """
        prefix = ""
        # Before the first directive, nothing depends on the hour.
        for index, element in enumerate(self.elements):
            if element.kind == DIRECTIVE:
                return None
            if element.kind == CAPTURE and element.value not in values:
                # A literal follows, which has the end of the step.
                ending = self.elements[index + 1].value.partition("/")[0] + "/"
                return Level(element.value, prefix, ending)
            prefix += values[element.value] if element.kind == CAPTURE else element.value
        return None

    def prefixes(self, hour: datetime, values: Mapping[str, str]) -> tuple[str, ...]:
        """The longest prefixes that cover all keys of an hour; empty if no key can belong to it.

        :param values: values of all captures before the date, and of any others
        :raises ValueError: if a capture before the date has no value
        """
        if (level := self.next_level(values)) is not None:
            raise ValueError(f"the capture {{{level.capture}}} before the date has no value")
        prefixes: list[str] = []
        filled = (
            self.fill(label, values, folder)
            for label in self.labels(hour)
            for folder in self.folder_days(label)
        )
        for prefix in sorted(filled):
            if not prefixes or not prefix.startswith(prefixes[-1]):
                prefixes.append(prefix)
        return tuple(prefixes)

    @cached_property
    def is_exact(self) -> bool:
        """Whether all keys below the prefixes of an hour belong to it."""
        known = set[str]()
        for element in self.elements:
            if element.kind == DIRECTIVE:
                break
            if element.kind == CAPTURE:
                known.add(element.value)
        return known.issuperset(self.captures)

    def show(self, hour: datetime) -> str:
        """The template with an hour filled in, for messages: ``s3://logs/raw/{service}/20261123/08/``."""
        labels = self.labels(hour) or (hour.astimezone(UTC).replace(tzinfo=None),)
        return " and ".join(
            f"s3://{self.bucket}/{self.fill(label, self.unknown_captures)}" for label in labels
        )

    @property
    def unknown_captures(self) -> Mapping[str, str]:
        """Values for :meth:`fill` that show the captures as they are in the template."""
        return {name: f"{{{name}}}" for name in self.captures}

    @cached_property
    def _has_century(self) -> bool:
        return any(element.value == "%Y" for element in self.elements if element.kind == DIRECTIVE)

    @cached_property
    def _match(self) -> Callable[[str], re.Match[str] | None]:
        return re.compile(self.pattern.pattern).match

    @cached_property
    def _stamp(self) -> Callable[[re.Match[str]], str | tuple[str, ...]]:
        """The texts of the runs of directives in a key; a string if there is one."""
        return itemgetter(*self.pattern.stamp_groups)

    @cached_property
    def _captures(self) -> Callable[[re.Match[str]], tuple[str, ...]]:
        groups = self.pattern.capture_groups
        if not groups:
            return lambda found: ()
        if len(groups) == 1:
            return lambda found: (found[groups[0]],)
        return itemgetter(*groups)

    @cached_property
    def pattern(self) -> KeyPattern:
        """The regular expression of its keys."""
        return KeyPattern.of(self.elements, self._folder_elements)

    @cached_property
    def _folder_elements(self) -> int:
        """How many elements have the date of a folder that may differ from that of the hour."""
        count = count_folder_directives(self.elements) if self.is_raw else 0
        directives = [index for index, element in enumerate(self.elements) if element.kind == DIRECTIVE]
        return directives[count - 1] + 1 if count else 0

    @cached_property
    def _hour_of_stamp(self) -> dict[str | tuple[str, ...], datetime | None]:
        return {}

    def _read_stamp(self, stamp: str | tuple[str, ...]) -> datetime | None:
        """The UTC hour of the texts of the runs of directives in a key, and remember it."""
        texts = (stamp,) if isinstance(stamp, str) else stamp
        label = label_of(self.pattern.runs, texts)
        hour = self.hours.hour_of(label) if label is not None else None
        if label is None or hour is None or not self._agrees(texts, label):
            hour = None
        if len(self._hour_of_stamp) >= _MAX_STAMPS:
            self._hour_of_stamp.clear()
        self._hour_of_stamp[stamp] = hour
        return hour

    def _agrees(self, texts: Sequence[str], label: datetime) -> bool:
        """Whether all texts of the runs are those of a local hour, with one of its folder's days."""
        return any(
            all(run.fill(label, folder) == text for run, text in zip(self.pattern.runs, texts, strict=True))
            for folder in self.folder_days(label)
        )


@dataclass(frozen=True)
class RawTemplate(Template):
    """The template of a stream's raw objects."""

    is_raw: ClassVar = True

    @classmethod
    def parse(cls, text: str, zone: str = "UTC") -> Self:
        """Parse a template; without a directive, ``%Y%m%d/%H/`` is appended.

        :param zone: IANA name of the time zone of the producer's directives
        :raises TemplateError: if it is wrong
        :raises ValueError: if there is no such time zone
        """
        return cls(*parse(text, aggregated=False), check_zone(zone))

    @property
    def finds_unmatched(self) -> bool:
        """Whether the listing of an hour may find keys that :meth:`reporting_hour` assigns to it."""
        return bool(self._folder_elements) and not self.is_exact

    def reporting_hour(self, key: str) -> datetime | None:
        """The hour that reports a key because its folder has another day than its name; None for other keys.

        It is the name's hour of the folder's day, whose listing reads this folder.
        """
        found = self._match(key)
        if found is None or self.match(key) is not None:
            return None
        texts = [found[group] for group in self.pattern.stamp_groups]
        label, day = label_of(self.pattern.runs, texts), folder_day_of(self.pattern.runs, texts)
        if label is None or day is None:
            return None
        return self.hours.hour_of(label.replace(year=day.year, month=day.month, day=day.day))

    def why_empty(self, hour: datetime) -> str | None:
        """Why no key can belong to an hour, as a sentence; None if keys can."""
        if self.labels(hour):
            return None
        return self.hours.why_empty(hour) or (
            f"No key belongs to the UTC hour {format_hour(hour)}: %y has the years 1969 to 2068 only."
        )


@dataclass(frozen=True)
class AggregatedTemplate(Template):
    """The template of a stream's parts, always in UTC. A group is the tuple of its captures' values.

    It has at most one capture in a path step, and it ends with ``/``. So different hours and groups have different
    prefixes, and none is inside another.
    """

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a template; a missing ``/`` at the end, or ``%Y%m%d/%H/``, is appended.

        :raises TemplateError: if it is wrong
        """
        return cls(*parse(text, aggregated=True))

    def render(self, hour: datetime, group: Sequence[str] = ()) -> str:
        """The prefix of a group's parts in an hour.

        :param group: values in the order of ``captures``, none empty or with ``/``
        :raises ValueError: if the number or a value is wrong, or the prefix would be among the hours' records
        """
        if len(group) != len(self.captures) or not all(value and "/" not in value for value in group):
            raise ValueError(f"{tuple(group)} are not values of the captures {self.captures} of {self.text}")
        prefix = self.fill(hour.astimezone(UTC), dict(zip(self.captures, group, strict=True)))
        if group and prefix.startswith(self._records):
            raise ValueError(
                f"the parts of group {', '.join(group)} would be below s3://{self.bucket}/{self._records}, where "
                f"the records of the hours are; change the literal text of {self.text}"
            )
        return prefix

    def match(self, key: str) -> Match | None:
        """As of the base class; None also for the records of the hours."""
        if self.captures and key.startswith(self._records):
            return None
        return super().match(key)

    def home_template(self, stream: str) -> "AggregatedTemplate":
        """The template of the prefixes of an hour's records; without captures it is the template itself.

        :param stream: name of the stream
        """
        if not self.captures:
            return self
        place = escape(f"{self._records}{stream}/")
        return AggregatedTemplate.parse(f"s3://{self.bucket}/{place}{DEFAULT_SUFFIX}")

    def home(self, stream: str, hour: datetime) -> str:
        """The prefix of an hour's records: ``_hours/<stream>/20261123/08/`` below the literal beginning.

        Without captures it is the prefix of the hour's parts.

        :param stream: name of the stream
        """
        if not self.captures:
            return self.render(hour)
        return f"{self._records}{stream}/{hour.astimezone(UTC):%Y%m%d/%H}/"

    @cached_property
    def _records(self) -> str:
        return self.root.key + HOURS_FOLDER


def check_pair(raw: Template, aggregated: Template) -> None:
    """Refuse an aggregated template with a capture that the raw template lacks.

    :raises TemplateError: for the aggregated template
    """
    for element in aggregated.elements:
        if element.kind == CAPTURE and element.value not in raw.captures:
            known = ", ".join(f"{{{name}}}" for name in raw.captures) or "none"
            near = difflib.get_close_matches(element.value, raw.captures, n=1, cutoff=0)
            end = element.start + len(str(element))
            fixed = f"{{{near[0]}}}" if near else element.value
            raise TemplateError(
                f"has a capture {{{element.value}}} that raw lacks; the captures of raw are {known}",
                aggregated.text,
                element.start,
                aggregated.text[: element.start] + fixed + aggregated.text[end:],
            )
