"""The locations of one hour of a stream in the bucket."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import ClassVar

from include.log_rollup.errors import UnsupportedInputError
from include.log_rollup.hour.hour_listing import HourListing
from include.log_rollup.hour.layout import is_part_name
from include.log_rollup.hour.template import AggregatedTemplate, Match, RawTemplate
from include.log_rollup.storage.protocol import Location

# The names of this project's files below `_rollup/`; everything else there is foreign.
_PLAN_FILE = (
    r"[0-9a-f]{20}(-[0-9a-f]{8})?/"
    r"(plan\.json|(shard|receipt)-[0-9]{5,}\.json\.gz|staged-[0-9a-f]+-\w+(\.jsonl\.gz)?)"
)
_WORK = re.compile(
    rf"claim\.json|crc-probe|removals/[0-9a-f]+\.json|expiry/staged-[0-9a-f]+-_expired\.json|{_PLAN_FILE}"
)


@dataclass(frozen=True)
class RawPaths:
    """The locations of the raw objects of one hour."""

    raw_template: RawTemplate
    hour: datetime

    @property
    def end(self) -> datetime:
        """The end of the hour."""
        return self.hour + timedelta(hours=1)

    @cached_property
    def raw(self) -> HourListing:
        """The raw objects of the hour."""
        return HourListing(self.raw_template, self.hour)

    @cached_property
    def raw_and_unmatched(self) -> HourListing:
        """The same, with the objects in a folder of another day: they belong to no hour, and this one counts them.

        They are found where the listing reads them anyway, i.e. where the hour has no prefix of its own.
        """
        return HourListing(self.raw_template, self.hour, self.raw_template)

    @cached_property
    def key_base(self) -> str:
        """What the keys of all raw objects of the hour begin with."""
        prefix = self._raw_prefix
        return self.raw_template.literal if prefix is None else prefix

    @cached_property
    def _raw_prefix(self) -> str | None:
        """The prefix of all raw objects; None if there are several, or one has objects of other hours too."""
        if self.raw_template.captures:
            return None
        prefixes = self.raw_template.prefixes(self.hour, {})
        return prefixes[0] if len(prefixes) == 1 else None

    @cached_property
    def name_of(self) -> Callable[[str], str]:
        """The name below the hour of a raw object with a given key; the whole key if it belongs to no hour."""
        if self._raw_prefix is not None:
            start = len(self._raw_prefix)
            return lambda key: key[start:]
        find = self.raw_template.lookup(lambda match: None)
        return lambda key: key[found[0] :] if (found := find(key)) else key


@dataclass(frozen=True)
class HourPaths(RawPaths):
    """The locations of one hour of a stream: raw objects, parts and records."""

    aggregated_template: AggregatedTemplate
    stream: str

    marker_name: ClassVar = "_SUCCESS"
    manifest_name: ClassVar = "_manifest.jsonl.gz"
    expiry_name: ClassVar = "_expired.json"

    @property
    def has_groups(self) -> bool:
        """Whether the parts are divided into groups."""
        return bool(self.aggregated_template.captures)

    @cached_property
    def aggregated(self) -> HourListing:
        """The objects below the prefixes of the parts."""
        return HourListing(self.aggregated_template, self.hour)

    @cached_property
    def home(self) -> Location:
        """The prefix of the hour's records; without groups, that of its parts too."""
        template = self.aggregated_template
        return template.location(template.home(self.stream, self.hour))

    @cached_property
    def base(self) -> Location:
        """The prefix below which the names of parts are: of the hour, or with groups of all hours."""
        return self.aggregated_template.root if self.has_groups else self.home

    def folder_of_key(self, key: str) -> str:
        """The folder below ``base`` of the group of a raw object: ``web/20261123/08/``; empty without groups.

        :raises UnsupportedInputError: if the folder would be that of the records
        :raises ValueError: if the key is not one of the hour
        """
        if not self.has_groups:
            return ""
        try:
            found = self._find_folder(key)
        except ValueError as error:
            raise UnsupportedInputError(f"{key}: {error}") from None
        if found is None:
            raise ValueError(f"{key} is no key of {self.raw_template}")
        return found[1]

    @cached_property
    def _find_folder(self) -> Callable[[str], tuple[int, str] | None]:
        return self.raw_template.lookup(lambda match: self._folder_of_group(match.captures))

    def _folder_of_group(self, captures: tuple[str, ...]) -> str:
        """The folder of a group.

        :param captures: values of all captures of the raw template
        :raises ValueError: if the folder would be that of the records
        """
        group = self._group_values(captures)
        folder = self._folders.get(group)
        if folder is None:
            prefix = self.aggregated_template.render(self.hour, group)
            folder = self._folders[group] = prefix.removeprefix(self.base.key)
        return folder

    @cached_property
    def find_folder(self) -> Callable[[str], str | None]:
        """The folder below ``base`` of the group of a key; None if it is not one of the hour.

        For keys in records: the stream's templates may have changed since.
        """

        def folder_of_match(match: Match) -> str | None:
            if match.hour != self.hour:
                return None
            return self._folder_of_group(match.captures) if self.has_groups else ""

        find = self.raw_template.lookup(folder_of_match)

        def find_folder(key: str) -> str | None:
            try:
                found = find(key)
            except ValueError:
                return None
            return None if found is None else found[1]

        return find_folder

    def is_own_folder(self, folder: str) -> bool:
        """Whether a folder below ``base`` is that of a group of the hour; without groups, whether it is empty."""
        return self.folder_of_aggregated(self.base.key + folder) == folder

    def captures_of(self, folder: str) -> dict[str, str]:
        """The captures of the group with this folder, by name."""
        found = self.aggregated_template.match(self.base.key + folder)
        return dict(zip(self.aggregated_template.captures, found.captures, strict=True)) if found else {}

    @cached_property
    def _folders(self) -> dict[tuple[str, ...], str]:
        return {}

    @cached_property
    def _group_values(self) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
        indices = [self.raw_template.captures.index(name) for name in self.aggregated_template.captures]
        return lambda values: tuple(values[index] for index in indices)

    def group_marker(self, folder: str) -> Location:
        """The completion marker of a group."""
        return self.base.child(folder + self.marker_name)

    def group_manifest(self, folder: str) -> Location:
        """The manifest of a group."""
        return self.base.child(folder + self.manifest_name)

    @property
    def marker(self) -> Location:
        """The completion marker: the hour is complete if and only if it exists."""
        return self.home.child(self.marker_name)

    @property
    def manifest(self) -> Location:
        """The manifest: part, offset, length, ETag and CRC of every raw object."""
        return self.home.child(self.manifest_name)

    @property
    def expiry_record(self) -> Location:
        """The record of the raw objects that have expired; see :mod:`include.log_rollup.hour.expiry_record`."""
        return self.home.child(self.expiry_name)

    @property
    def work(self) -> Location:
        """The prefix of the files that exist only while the hour is being built."""
        return self.home.child("_rollup/")

    @property
    def claim(self) -> Location:
        """The claim: which plan is being built."""
        return self.work.child("claim.json")

    def plan(self, plan_id: str) -> Location:
        """The summary of a plan, written after its shards: a plan without it is not whole."""
        return self.work.child(f"{plan_id}/plan.json")

    def shard(self, plan_id: str, shard: int) -> Location:
        """The parts of one shard, with their raw objects."""
        return self.work.child(f"{plan_id}/shard-{shard:05d}.json.gz")

    def receipt(self, plan_id: str, shard: int) -> Location:
        """The receipt of one shard."""
        return self.work.child(f"{plan_id}/receipt-{shard:05d}.json.gz")

    def staged_manifest(self, plan_id: str, nonce: str) -> Location:
        """A manifest that is not published yet; see :mod:`include.log_rollup.hour.state`."""
        return self.work.child(f"{plan_id}/staged-{nonce}-{self.manifest_name}")

    def staged_marker(self, plan_id: str, nonce: str) -> Location:
        """A completion marker that is not published yet; see :mod:`include.log_rollup.hour.state`."""
        return self.work.child(f"{plan_id}/staged-{nonce}-{self.marker_name}")

    def staged_expiry(self, nonce: str) -> Location:
        """A record of expired raw objects that is not published yet."""
        return self.work.child(f"expiry/staged-{nonce}-_expired.json")

    @property
    def removals(self) -> Location:
        """The prefix of the removal records."""
        return self.work.child("removals/")

    def part(self, name: str) -> Location:
        """The location of a part."""
        return self.base.child(name)

    def part_name_of(self, key: str) -> str | None:
        """The name of the part with this key, with its group's folder; None if it is not the key of a part."""
        folder = self.folder_of_aggregated(key)
        if folder is None or not is_part_name(key[len(self.base.key) + len(folder) :]):
            return None
        return key[len(self.base.key) :]

    def folder_of_aggregated(self, key: str) -> str | None:
        """The folder below ``base`` of an aggregated key of this hour; None for keys elsewhere."""
        if not self.has_groups:
            return "" if key.startswith(self.base.key) else None
        found = self.aggregated_template.match(key)
        if found is None or found.hour != self.hour:
            return None
        return key[len(self.base.key) : len(key) - len(found.name)]

    def folder_of_marker(self, key: str) -> str | None:
        """The folder of the group whose completion marker has this key; None for any other key."""
        return self._folder_of_file(key, self.marker_name)

    def folder_of_manifest(self, key: str) -> str | None:
        """The folder of the group whose manifest has this key; None for any other key."""
        return self._folder_of_file(key, self.manifest_name)

    def _folder_of_file(self, key: str, name: str) -> str | None:
        if not self.has_groups or not key.endswith(f"/{name}"):
            return None
        folder = self.folder_of_aggregated(key)
        return folder if folder and key == f"{self.base.key}{folder}{name}" else None

    def work_name_of(self, key: str) -> str | None:
        """The name below ``_rollup/`` of a file of this project; None for any other key."""
        name = key.removeprefix(self.work.key)
        return name if name != key and _WORK.fullmatch(name) else None
