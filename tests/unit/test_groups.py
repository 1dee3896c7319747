"""Hours whose objects are divided into groups: parts, manifest and completion marker for each group."""

import gzip
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from include.log_rollup.errors import (
    ConfigurationError,
    InputChangedError,
    ProofError,
    SupersededError,
    TransientError,
    UnreadableRecordError,
    VanishedInputError,
)
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.locate import locate
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage.protocol import Location
from include.log_rollup.streams import Stream
from tests.support.fake_store import CrashError, FakeStore, join_stores
from tests.support.grouped_hour import HOME, HOUR, LAYOUTS, GroupedHour, three_groups


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
    assert part[found.place.offset : found.place.offset + found.length] == hour.raw["sp ace"]["1.log"]


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
    (ref,) = planned.shards
    assert ref.title == "100 parts of 100 groups: 100 objects, 1000 B"


def numbers_of(header: Mapping[str, Any]) -> Sequence[int]:
    return [int(entry["name"][5:10]) for entry in header["parts_table"]]


def test_parts_are_numbered_within_each_group(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    assert numbers_of(hour.manifest(hour.folder("web"))[0]) == [0, 1, 2]
    assert numbers_of(hour.manifest(hour.folder("a.b"))[0]) == [0]


def test_groups_are_packed_into_another_store(hour: GroupedHour) -> None:
    hour.produce({**three_groups(), "large": {"0.log": bytes(range(200))}})
    source, target = hour.store, FakeStore()
    store = join_stores(source, target)
    for ref in plan_hour(store, hour.stream, HOUR, "run").shards:
        pack_shard(store, hour.stream, ref)
    validate_hour(store, hour.stream, HOUR)
    complete_hour(store, hour.stream, HOUR)
    assert verify_hour(store, hour.stream, HOUR, deep=True).problems == []
    assert list(find_changed_hours(store, hour.stream, [HOUR]).changed) == []
    assert source.writes() == []
    assert [operation.key for operation in target.log if operation.key.startswith("raw/")] == []
    for key in source.listing("raw/"):
        target.produce(key, source.body(key))
    hour.store = target
    hour.verify()


def test_overtaken_planning_keeps_the_markers_of_the_other_run(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.produce({"web": {"late.log": b"late"}})

    def overtake() -> None:
        hour.run()

    hour.store.on("HEAD", hour.folder("web") + "_SUCCESS", overtake)
    assert hour.plan().unchanged
    hour.verify()
    assert verify_hour(hour.store, hour.stream, HOUR).problems == []


def test_marker_an_overtaken_run_may_still_remove_is_replaced(hour: GroupedHour) -> None:
    # Each write gets another ETag.
    hour.store = FakeStore(etag_is_md5=False)
    hour.produce(three_groups())
    hour.run()
    late = hour.key("web", "late.log")
    hour.store.produce(late, b"late")

    def overtake() -> None:
        """For this run the group has not changed, so that it need not touch the marker."""
        hour.store.delete("logs", [late])
        hour.run()

    # The overtaken run has read its own claim and is about to remove the marker that it saw before.
    hour.store.on("DELETE", hour.folder("web") + "_SUCCESS", overtake)
    hour.plan()
    hour.verify()
    assert verify_hour(hour.store, hour.stream, HOUR).problems == []


def test_marker_of_a_group_goes_before_another_try_completes(hour: GroupedHour) -> None:
    """Two tries of one plan: one completes the hour while the other writes the manifests of all groups again."""
    hour.produce(three_groups())
    hour.run()
    hour.produce({"web": {"late.log": b"late"}})
    hour.plan()
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    validate_hour(hour.store, hour.stream, HOUR)

    def validate_again() -> None:
        hour.store.on("PUBLISH", f"{hour.folder('web')}_manifest.jsonl.gz", CrashError())
        with pytest.raises(CrashError):
            validate_hour(hour.store, hour.stream, HOUR)

    # The groups are complete, and the copy of the hour's marker has been sent.
    hour.store.on("PUBLISH", f"{HOME}_SUCCESS", validate_again)
    with pytest.raises(SupersededError):
        complete_hour(hour.store, hour.stream, HOUR)
    assert not hour.store.has(f"{HOME}_SUCCESS")
    hour.run()
    hour.verify()


@pytest.mark.parametrize("manifest_too", [False, True])
def test_claim_carried_out_twice_leaves_no_marker_of_the_run_in_between(
    hour: GroupedHour, manifest_too: bool
) -> None:
    """The server carries out the PUT of a claim again, after another run has completed the hour.

    :param manifest_too: whether the other run has proven the hour after this one had listed it, too
    """
    store, web = hour.store, hour.folder("web")
    hour.produce(three_groups())
    for ref in hour.plan().shards:
        pack_shard(store, hour.stream, ref)
    claim = store.body(f"{HOME}_rollup/claim.json")

    def prove() -> None:
        for ref in hour.plan().shards:
            pack_shard(store, hour.stream, ref)
        validate_hour(store, hour.stream, HOUR)
        if not manifest_too:
            store.on("ANY", f"{web}part-", complete)

    def complete() -> None:
        if manifest_too:
            prove()
        # It dies before it removes the files of the first run, whose claim then appears again.
        store.on("WRITE", "removals/", CrashError())
        with pytest.raises(CrashError):
            complete_hour(store, hour.stream, HOUR)
        store.another_client().write(Location("logs", f"{HOME}_rollup/claim.json"), claim, "application/json")
        store.on("PUBLISH", f"{HOME}_manifest.jsonl.gz", CrashError())

    if not manifest_too:
        # This run has read its claim, and has not listed the hour yet.
        store.on("LIST", "raw/", prove)
    else:
        store.on("ANY", f"{web}part-", complete)
    with pytest.raises(SupersededError if manifest_too else CrashError):
        validate_hour(store, hour.stream, HOUR)
    if manifest_too:
        hour.verify()
    else:
        assert {key for key in store.listing("aggregated/") if key.endswith("_SUCCESS")} == set()
    hour.run()
    hour.verify()


@pytest.mark.parametrize("file", ["_SUCCESS", "_manifest.jsonl.gz"])
def test_overtaken_validation_keeps_the_records_of_the_other_run(hour: GroupedHour, file: str) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.expire("web")
    planned = hour.plan(drop_vanished=True)
    for ref in planned.shards:
        pack_shard(hour.store, hour.stream, ref)

    def bring_back() -> None:
        hour.produce({"web": three_groups()["web"]})
        hour.run()

    # The group is gone for this run, but not for the other one.
    hour.store.on("HEAD", hour.folder("web") + file, bring_back)
    with pytest.raises(SupersededError):
        validate_hour(hour.store, hour.stream, HOUR)
    hour.verify()
    assert verify_hour(hour.store, hour.stream, HOUR).problems == []


def remove_part(hour: GroupedHour, group: str) -> str:
    """Remove a part of a group, as somebody outside; returns its key."""
    (key,) = (key for key in hour.written() if key.startswith(f"{hour.folder(group)}part-00000"))
    hour.store.delete("logs", [key])
    return key


def test_part_that_is_written_again_renews_records_of_its_group(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    key = remove_part(hour, "web")
    before = {group: hour.store.stored(f"{hour.folder(group)}_SUCCESS") for group in ("a.b", "sp ace")}
    planned = hour.plan()
    assert not hour.store.has(f"{hour.folder('web')}_SUCCESS")
    for ref in planned.shards:
        pack_shard(hour.store, hour.stream, ref)
    assert hour.store.has(key)
    validate_hour(hour.store, hour.stream, HOUR)
    complete_hour(hour.store, hour.stream, HOUR)
    hour.verify()
    assert {group: hour.store.stored(f"{hour.folder(group)}_SUCCESS") for group in before} == before
    assert hour.json(f"{hour.folder('web')}_SUCCESS")["plan_id"] == planned.plan_id
    assert verify_hour(hour.store, hour.stream, HOUR).problems == []


def test_marker_written_again_names_the_plan_of_its_group(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    marker = f"{hour.folder('a.b')}_SUCCESS"
    before = hour.json(marker)["plan_id"]
    hour.produce({"web": {"late.log": b"late"}})
    planned = hour.plan()
    for ref in planned.shards:
        pack_shard(hour.store, hour.stream, ref)
    validate_hour(hour.store, hour.stream, HOUR)
    hour.store.delete("logs", [marker])
    complete_hour(hour.store, hour.stream, HOUR)
    hour.verify()
    assert hour.json(marker)["plan_id"] == before != planned.plan_id
    assert verify_hour(hour.store, hour.stream, HOUR).problems == []


@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_hour_does_not_complete_without_the_manifest_of_a_group(hour: GroupedHour, damage: str) -> None:
    hour.produce(three_groups())
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    validate_hour(hour.store, hour.stream, HOUR)
    manifest = f"{hour.folder('web')}_manifest.jsonl.gz"
    body = hour.store.body(manifest)
    hour.store.delete("logs", [manifest])
    if damage == "cut off":
        # Its header can still be read.
        hour.store.produce(manifest, body[:-20])
    with pytest.raises(ProofError, match=r"web/.*is missing, damaged, or describes other parts"):
        complete_hour(hour.store, hour.stream, HOUR)
    assert not hour.store.has(f"{HOME}_SUCCESS")
    assert not hour.store.has(f"{hour.folder('web')}_SUCCESS")
    hour.run()
    hour.verify()


def test_completion_removes_records_of_groups_that_are_gone(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.expire("web")
    for ref in hour.plan(drop_vanished=True).shards:
        pack_shard(hour.store, hour.stream, ref)
    # Validation dies after it has written the manifest of the hour.
    hour.store.on("HEAD", f"{hour.folder('web')}_manifest.jsonl.gz", CrashError())
    with pytest.raises(CrashError):
        validate_hour(hour.store, hour.stream, HOUR)
    complete_hour(hour.store, hour.stream, HOUR)
    hour.verify()


def test_marker_goes_before_a_manifest_that_somebody_removed(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.produce({"new": {"late.log": b"late"}})
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    hour.store.delete("logs", [f"{hour.folder('web')}_manifest.jsonl.gz"])
    validate_hour(hour.store, hour.stream, HOUR)
    assert hour.store.has(f"{hour.folder('web')}_manifest.jsonl.gz")
    assert not hour.store.has(f"{hour.folder('web')}_SUCCESS")
    complete_hour(hour.store, hour.stream, HOUR)
    hour.verify()
    assert verify_hour(hour.store, hour.stream, HOUR).problems == []


def test_what_another_plan_has_staged_goes_before_a_manifest(hour: GroupedHour) -> None:
    """Planning was interrupted after its claim, before it could do that."""
    hour.produce(three_groups())
    staged = f"{HOME}_rollup/{'f' * 20}/staged-0f-_SUCCESS"
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    hour.store.produce(staged, b"{}")
    validate_hour(hour.store, hour.stream, HOUR)
    assert not hour.store.has(staged)


def test_marker_goes_before_one_of_the_parts_of_a_divided_part() -> None:
    """Both parts were split off one planned part, and only one of them is kept."""
    hour = GroupedHour("before the date", check_encoding=True)
    whole = gzip.compress(b"whole")
    hour.produce({"web": {"0.log.gz": whole, "1.log.gz": b"damaged"}, "new": {"0.log": b"unchanged"}})
    hour.run()
    assert sum(key.startswith(f"{hour.folder('web')}part-") for key in hour.written()) == 2
    hour.store.delete("logs", [hour.key("web", "0.log.gz")])
    del hour.raw["web"]["0.log.gz"]
    hour.plan(drop_vanished=True)
    assert not hour.store.has(f"{hour.folder('web')}_SUCCESS")
    assert hour.store.has(f"{hour.folder('new')}_SUCCESS")
    hour.run(drop_vanished=True)
    hour.verify()


def test_part_with_another_etag_renews_records_of_its_group(hour: GroupedHour) -> None:
    # Each write gets another ETag.
    hour.store = FakeStore(etag_is_md5=False)
    hour.produce(three_groups())
    hour.run()
    marker = f"{hour.folder('web')}_SUCCESS"
    body = hour.store.body(marker)
    remove_part(hour, "web")
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    # As if an overtaken run had written the part again since the group was complete: its receipt names it.
    hour.store.produce(marker, body)
    hour.run()
    hour.verify()
    assert verify_hour(hour.store, hour.stream, HOUR).problems == []


@pytest.mark.parametrize("raw", ["raw/{service}/{host}/", "raw/{host}/{service}/"])
def test_template_that_changes_before_validation_is_refused(raw: str) -> None:
    hour = GroupedHour("before the date")
    hour.store.produce("raw/web/20261123/08/a/20261123/08/1.log", b"1")
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    before = hour.store.snapshot()
    other = hour.stream.model_copy(update={"raw": RawTemplate.parse(f"s3://logs/{raw}")})
    with pytest.raises(InputChangedError, match=r"holds 1 raw objects .* clear the run from plan_hour on"):
        validate_hour(hour.store, other, HOUR)
    assert hour.store.snapshot() == before


OTHER_GROUPS = {
    "other capture": "aggregated/{host}/%Y%m%d/%H/",
    "other place": "aggregated/%Y%m%d/%H/{service}/",
}


def two_captures() -> GroupedHour:
    """An hour with the groups a and b, whose objects can be grouped by host too."""
    hour = GroupedHour("before the date")
    hour.stream = with_raw(hour.stream, "raw/{service}/{host}/")
    for service, host in (("a", "a"), ("a", "b"), ("b", "b")):
        hour.store.produce(f"raw/{service}/{host}/20261123/08/1.log", b"1")
    return hour


def with_raw(stream: Stream, text: str) -> Stream:
    return stream.model_copy(update={"raw": RawTemplate.parse(f"s3://logs/{text}")})


@pytest.mark.parametrize("aggregated", OTHER_GROUPS.values(), ids=OTHER_GROUPS)
@pytest.mark.parametrize("change", ["none", "late", "vanished"])
def test_hour_with_groups_of_another_template_is_refused(aggregated: str, change: str) -> None:
    hour = two_captures()
    hour.run()
    if change == "late":
        hour.store.produce("raw/a/a/20261123/08/2.log", b"2")
    elif change == "vanished":
        hour.store.vanish("raw/a/a/20261123/08/1.log")
    before, stream = hour.store.snapshot(), hour.stream
    template = AggregatedTemplate.parse(f"s3://logs/{aggregated}")
    hour.stream = stream.model_copy(update={"aggregated": template})
    for drop_vanished in (False, True):
        with pytest.raises(
            ConfigurationError, match=r"has 2 groups \(a/20261123/08/, .* template 'aggregated'"
        ):
            hour.plan(drop_vanished=drop_vanished)
    assert hour.store.snapshot() == before
    hour.stream = stream
    hour.run(drop_vanished=True)


def test_unfinished_parts_in_folders_of_another_template_are_refused() -> None:
    hour = two_captures()
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    hour.store.vanish("raw/a/a/20261123/08/1.log")
    before = hour.store.snapshot()
    template = AggregatedTemplate.parse(f"s3://logs/{OTHER_GROUPS['other place']}")
    hour.stream = hour.stream.model_copy(update={"aggregated": template})
    with pytest.raises(ConfigurationError, match=r"the unfinished plan .* has parts \(a/20261123/08/part-"):
        hour.plan()
    assert hour.store.snapshot() == before


def test_part_with_an_object_of_another_group_is_packed_again() -> None:
    hour = two_captures()
    hour.run()
    hour.stream = with_raw(hour.stream, "raw/{host}/{service}/")
    hour.store.produce("raw/a/a/20261123/08/2.log", b"2")
    hour.run()
    groups = {group: hour.manifest(hour.folder(group))[1] for group in ("a", "b")}
    assert {group: [row["key"] for row in rows] for group, rows in groups.items()} == {
        "a": ["raw/a/a/20261123/08/1.log", "raw/a/a/20261123/08/2.log"],
        "b": ["raw/b/b/20261123/08/1.log", "raw/a/b/20261123/08/1.log"],
    }


def test_marker_goes_before_a_part_lost_since_planning(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.produce({"new": {"0.log": b"a new group"}})
    planned = hour.plan()
    key = remove_part(hour, "web")
    assert hour.store.has(f"{hour.folder('web')}_SUCCESS")
    markers = []
    hour.store.on("PUT", key, lambda: markers.append(hour.store.has(f"{hour.folder('web')}_SUCCESS")))
    for ref in planned.shards:
        pack_shard(hour.store, hour.stream, ref)
    assert markers == [False]
    assert hour.store.has(f"{hour.folder('a.b')}_SUCCESS")
    validate_hour(hour.store, hour.stream, HOUR)
    complete_hour(hour.store, hour.stream, HOUR)
    hour.verify()
    assert hour.json(f"{hour.folder('web')}_SUCCESS")["plan_id"] == planned.plan_id


# -- records of other programs -----------------------------------------------------------------------------


def foreign_records(hour: GroupedHour) -> dict[str, tuple[str, bytes]]:
    """Name and content of records in the folder of a group that the hour does not have."""
    of_web = hour.folder("web")
    of_another_hour = hour.store.body(f"{of_web}_SUCCESS").replace(b"T08:", b"T09:").replace(b"web", b"db")
    return {
        "marker of another program": ("_SUCCESS", b""),
        "marker of another group": ("_SUCCESS", hour.store.body(f"{of_web}_SUCCESS")),
        "marker of another hour": ("_SUCCESS", of_another_hour),
        "manifest of another program": ("_manifest.jsonl.gz", b"of another program"),
        "manifest of another group": ("_manifest.jsonl.gz", hour.store.body(f"{of_web}_manifest.jsonl.gz")),
    }


FOREIGN = (
    "marker of another program", "marker of another group", "marker of another hour",
    "manifest of another program", "manifest of another group",
)  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_record_in_the_folder_of_a_new_group_is_refused(hour: GroupedHour, kind: str) -> None:
    hour.produce({"web": {"0.log": b"1"}})
    hour.run()
    name, body = foreign_records(hour)[kind]
    hour.store.produce(hour.folder("db") + name, body)
    hour.produce({"db": {"0.log": b"2"}})
    before = hour.store.snapshot()
    with pytest.raises(UnreadableRecordError, match="1 objects named _SUCCESS or _manifest") as caught:
        hour.plan()
    assert hour.folder("db") + name in str(caught.value)
    assert hour.store.snapshot() == before
    hour.store.delete("logs", [hour.folder("db") + name])
    hour.run()
    hour.verify()


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_record_in_another_folder_stays(hour: GroupedHour, kind: str) -> None:
    hour.produce({"web": {"0.log": b"1"}})
    hour.run()
    name, body = foreign_records(hour)[kind]
    manifest = hour.folder("db") + "_manifest.jsonl.gz"
    hour.store.produce(manifest, b"of another program")
    hour.store.produce(hour.folder("db") + name, body)
    hour.produce({"web": {"1.log": b"2"}})
    hour.run()
    assert hour.store.has(manifest)
    assert hour.store.body(hour.folder("db") + name) == body


def test_manifest_of_a_gone_group_goes_next_to_a_foreign_marker(hour: GroupedHour) -> None:
    hour.produce(three_groups())
    hour.run()
    hour.expire("web")
    marker = hour.folder("web") + "_SUCCESS"
    for ref in hour.plan(drop_vanished=True).shards:
        pack_shard(hour.store, hour.stream, ref)
    hour.store.produce(marker, b"")
    validate_hour(hour.store, hour.stream, HOUR)
    complete_hour(hour.store, hour.stream, HOUR)
    assert hour.store.body(marker) == b""
    assert not hour.store.has(hour.folder("web") + "_manifest.jsonl.gz")


def test_records_of_groups_that_an_interrupted_run_left_are_ours(hour: GroupedHour) -> None:
    hour.produce({"web": {"0.log": b"1"}})
    hour.run()
    hour.produce({"db": {"0.log": b"2"}, "gone": {"0.log": b"3"}})
    for ref in hour.plan().shards:
        pack_shard(hour.store, hour.stream, ref)
    hour.store.on("PUBLISH", f"{HOME}_manifest", TransientError("503"), times=1)
    with pytest.raises(TransientError):
        validate_hour(hour.store, hour.stream, HOUR)
    assert hour.store.has(hour.folder("gone") + "_manifest.jsonl.gz")
    hour.expire("gone")
    hour.run(drop_vanished=True)
    hour.verify()
    assert not hour.store.has(hour.folder("gone") + "_manifest.jsonl.gz")
