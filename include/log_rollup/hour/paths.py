"""The locations of one hour of a stream in the bucket."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import ClassVar

from include.log_rollup.hour.hour_listing import HourListing
from include.log_rollup.hour.layout import is_part_name
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.storage.protocol import Location

# The names of this project's files below `_rollup/`; everything else there is foreign.
_PLAN_FILE = (
    r"[0-9a-f]{20}(-[0-9a-f]{8})?/"
    r"(plan\.json|(shard|receipt)-[0-9]{5,}\.json\.gz|staged-[0-9a-f]+-\w+(\.jsonl\.gz)?)"
)
_WORK = re.compile(rf"claim\.json|crc-probe|removals/[0-9a-f]+\.json|{_PLAN_FILE}")


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
        """The name below the hour of a raw object with a given key."""
        if self._raw_prefix is not None:
            start = len(self._raw_prefix)
            return lambda key: key[start:]
        match = self.raw_template.match
        return lambda key: found.name if (found := match(key)) else key


@dataclass(frozen=True)
class HourPaths(RawPaths):
    """The locations of one hour of a stream: raw objects, parts and records."""

    aggregated_template: AggregatedTemplate

    marker_name: ClassVar = "_SUCCESS"
    manifest_name: ClassVar = "_manifest.jsonl.gz"

    @cached_property
    def aggregated(self) -> Location:
        """``aggregated/app/20261123/08/``"""
        template = self.aggregated_template
        return Location(template.bucket, template.render(self.hour))

    @property
    def marker(self) -> Location:
        """The completion marker: the hour is complete if and only if it exists."""
        return self.aggregated.child(self.marker_name)

    @property
    def manifest(self) -> Location:
        """The manifest: part, offset, length, ETag and CRC of every raw object."""
        return self.aggregated.child(self.manifest_name)

    @property
    def work(self) -> Location:
        """The prefix of the files that exist only while the hour is being built."""
        return self.aggregated.child("_rollup/")

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

    @property
    def removals(self) -> Location:
        """The prefix of the removal records."""
        return self.work.child("removals/")

    def part(self, name: str) -> Location:
        """The location of a part."""
        return self.aggregated.child(name)

    def part_name_of(self, key: str) -> str | None:
        """The name of the part with this key; None if it is not the key of a part."""
        name = key.removeprefix(self.aggregated.key)
        return name if name != key and is_part_name(name) else None

    def work_name_of(self, key: str) -> str | None:
        """The name below ``_rollup/`` of a file of this project; None for any other key."""
        name = key.removeprefix(self.work.key)
        return name if name != key and _WORK.fullmatch(name) else None
