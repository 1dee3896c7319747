"""An hour whose objects are divided into groups, on a fake store, in several layouts."""

import gzip
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
HOME = "aggregated/_hours/app/20261123/08/"
# Raw template, aggregated template, raw key of an object, folder of its group.
LAYOUTS = {
    "before the date": (
        "raw/{service}/%Y%m%d/%H/",
        "aggregated/{service}/%Y%m%d/%H/",
        "raw/{group}/20261123/08/{name}",
        "aggregated/{group}/20261123/08/",
    ),
    "behind the date": (
        "raw/%Y/%m/%d/%H/{service}/",
        "aggregated/dt=%Y-%m-%d/hour=%H/{service}/",
        "raw/2026/11/23/08/{group}/{name}",
        "aggregated/dt=2026-11-23/hour=08/{group}/",
    ),
    "in the name": (
        "raw/%Y/%m/%d/{service}_%Y%m%dT%H",
        "aggregated/{service}/%Y%m%d/%H/",
        "raw/2026/11/23/{group}_20261123T08{name}",
        "aggregated/{group}/20261123/08/",
    ),
}


class GroupedHour:
    """An hour of one of the layouts on a fake store."""

    def __init__(self, layout: str, **settings: Any) -> None:
        raw, aggregated, self._raw_key, self._folder = LAYOUTS[layout]
        self.store = FakeStore()
        self.stream: Stream = make_stream(
            raw=RawTemplate.parse(f"s3://logs/{raw}"),
            aggregated=AggregatedTemplate.parse(f"s3://logs/{aggregated}"),
            **settings,
        )
        self.raw: dict[str, dict[str, bytes]] = {}

    def key(self, group: str, name: str) -> str:
        return self._raw_key.format(group=group, name=name)

    def folder(self, group: str) -> str:
        return self._folder.format(group=group)

    def produce(self, groups: Mapping[str, Mapping[str, bytes]]) -> None:
        for group, objects in groups.items():
            for name, body in objects.items():
                self.raw.setdefault(group, {})[name] = body
                self.store.produce(self.key(group, name), body)

    def expire(self, group: str) -> None:
        for name in self.raw.pop(group):
            self.store.delete("logs", [self.key(group, name)])

    def plan(self, **how: Any) -> Planned:
        return plan_hour(self.store, self.stream, HOUR, "run", **how)

    def run(self, **how: Any) -> Planned:
        planned = self.plan(**how)
        for ref in planned.shards:
            pack_shard(self.store, self.stream, ref)
        validate_hour(self.store, self.stream, HOUR)
        complete_hour(self.store, self.stream, HOUR)
        return planned

    def json(self, key: str) -> Any:
        return json.loads(self.store.body(key))

    def manifest(self, place: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        lines = gzip.decompress(self.store.body(f"{place}_manifest.jsonl.gz")).decode().splitlines()
        header, *rows = map(json.loads, lines)
        return header, rows

    def written(self) -> set[str]:
        return set(self.store.listing("aggregated/"))

    def verify(self) -> None:
        """Each group's folder holds exactly the group's objects, as its own manifest and marker say."""
        folders = {group: self.folder(group) for group, objects in self.raw.items() if objects}
        for group, folder in folders.items():
            header, rows = self.manifest(folder)
            marker = self.json(f"{folder}_SUCCESS")
            found = {}
            for row in rows:
                part = self.store.body(folder + row["part"])
                found[row["key"]] = part[row["offset"] : row["offset"] + row["length"]]
            assert found == {self.key(group, name): body for name, body in self.raw[group].items()}
            names = {entry["name"] for entry in header["parts_table"]}
            files = {key.removeprefix(folder) for key in self.written() if key.startswith(folder)}
            assert files == names | {"_SUCCESS", "_manifest.jsonl.gz"}
            size = sum(map(len, self.raw[group].values()))
            for record in (header, marker):
                assert record["objects"] == len(self.raw[group])
                assert record["bytes_in"] == record["bytes_out"] == size
                assert record["parts"] == len(names)
                assert record["group"] == {"service": group}
            assert marker["plan_id"] == header["plan_id"]
        marker = self.json(f"{HOME}_SUCCESS")
        assert {entry["folder"]: entry["captures"]["service"] for entry in marker["groups"]} == {
            folder.removeprefix("aggregated/"): group for group, folder in folders.items()
        }
        for total in ("objects", "bytes_in", "bytes_out", "parts"):
            assert marker[total] == sum(entry[total] for entry in marker["groups"])
        places = (*folders.values(), HOME)
        assert {key for key in self.written() if not key.startswith(places)} == set()


def three_groups(size: int = 30) -> dict[str, dict[str, bytes]]:
    return {
        group: {
            f"{number}.log{ending}": f"{group} {number} ".encode().ljust(size, b".")
            for number in range(count)
        }
        for group, count, ending in (("web", 5, ""), ("a.b", 1, ".gz"), ("sp ace", 3, ""))
    }
