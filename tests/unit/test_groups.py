"""Hours whose objects are divided into groups: parts, manifest and completion marker for each group."""

import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from include.log_rollup.errors import UnreadableRecordError, VanishedInputError
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.locate import locate
from include.log_rollup.queries.verify import verify_hour
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


@pytest.fixture(params=LAYOUTS)
def hour(request: pytest.FixtureRequest) -> GroupedHour:
    return GroupedHour(request.param)


def test_each_group_has_its_own_parts_manifest_and_marker(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.verify()
    assert verify_hour(hour.store, hour.stream, HOUR, deep=True).problems == []


def test_objects_of_other_hours_are_left_alone(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    for key in list(hour.store.listing("raw/")):
        hour.store.produce(key.replace("T08", "T09").replace("/08/", "/09/"), b"of another hour")
    hour.run()
    hour.verify()


def test_unchanged_hour_is_left_as_it_is(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    before = {key: hour.store.stored(key).etag for key in hour.written()}
    assert hour.run().unchanged
    assert {key: hour.store.stored(key).etag for key in hour.written()} == before


def test_rerun_rewrites_only_the_groups_that_changed(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    before = {key: hour.store.stored(key) for key in hour.written()}
    hour.produce({"web": {"late.log": b"late"}, "new": {"0.log": b"a new group"}})
    planned = hour.plan()
    assert not hour.store.has(f"{HOME}_SUCCESS")
    assert not hour.store.has(f"{hour.folder('web')}_SUCCESS")
    assert hour.store.has(f"{hour.folder('a.b')}_SUCCESS")
    for ref in planned.shards:
        pack_shard(hour.store, hour.stream, ref)
    validate_hour(hour.store, hour.stream, HOUR)
    assert not hour.store.has(f"{hour.folder('new')}_SUCCESS")
    complete_hour(hour.store, hour.stream, HOUR)
    hour.verify()
    for group in ("a.b", "sp ace"):
        folder = hour.folder(group)
        unchanged = {key: stored for key, stored in before.items() if key.startswith(folder)}
        assert {key: hour.store.stored(key) for key in unchanged} == unchanged


def test_late_object_is_found_in_its_group(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.produce({"web": {"late.log": b"late"}})
    (changed,) = find_changed_hours(hour.store, hour.stream, [HOUR]).changed
    assert list(changed.changes.late) == [hour.key("web", "late.log")]
    assert changed.can_be_rerun


def test_object_is_located_in_the_part_of_its_group(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    found = locate(hour.store, hour.stream, hour.key("sp ace", "1.log"))
    assert found.part.key.startswith(hour.folder("sp ace") + "part-")
    part = hour.store.body(found.part.key)
    assert part[found.offset : found.offset + found.length] == hour.raw["sp ace"]["1.log"]


def test_group_that_vanished_is_reported_and_kept(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    before = hour.written()
    hour.expire("web")
    with pytest.raises(VanishedInputError, match="5 of 9 raw objects"):
        hour.plan()
    assert hour.written() == before


def test_vanished_group_can_be_dropped(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.expire("web")
    hour.run(drop_vanished=True)
    hour.verify()
    assert not [key for key in hour.written() if key.startswith(hour.folder("web"))]


def test_foreign_objects_beside_parts_stay_and_are_counted(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    key = hour.folder("web") + "part-00000.log"
    hour.store.produce(key, b"of another program")
    hour.run()
    assert hour.store.body(key) == b"of another program"
    assert hour.json(f"{HOME}_SUCCESS")["foreign"] == 1


def test_group_markers_without_a_manifest_stop_planning(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.store.produce(hour.folder("web") + "_SUCCESS", b"")
    with pytest.raises(UnreadableRecordError, match="1 groups have a _SUCCESS"):
        hour.plan()


def test_hour_without_objects_needs_no_group() -> None:
    hour = GroupedHour("before the date", allow_empty=True)
    hour.run()
    assert hour.json(f"{HOME}_SUCCESS")["objects"] == 0


def test_shards_take_parts_of_many_groups() -> None:
    hour = GroupedHour("before the date", part_size=64, shard_size=1000)
    hour.produce({f"g{number:03d}": {"a.log": b"x" * 10} for number in range(100)})
    planned = hour.run()
    hour.verify()
    assert len(planned.shards) == 1


def numbers_of(header: Mapping[str, Any]) -> Sequence[int]:
    return [int(entry["name"][5:10]) for entry in header["parts_table"]]


def test_parts_are_numbered_within_each_group(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    assert numbers_of(hour.manifest(hour.folder("web"))[0]) == [0, 1, 2]
    assert numbers_of(hour.manifest(hour.folder("a.b"))[0]) == [0]
