"""What commands, events and notes show of the groups of an hour."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from include.log_rollup.errors import NotFoundError
from include.log_rollup.hour.group_summary import GroupChanges, group_name, largest_groups
from include.log_rollup.hour.manifest import GroupTotals, HourTotals, Verified
from include.log_rollup.hour.records import Measured
from include.log_rollup.hour.selection import LeftOut
from include.log_rollup.queries import hour_report
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.queries.status import HourStatus, read_hours
from include.log_rollup.queries.verify import Verification, verify_hour
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.plan_hour import preview_hour
from log_rollup_plugin import run_note
from tests.support.grouped_hour import HOME, HOUR, LAYOUTS, GroupedHour, three_groups
from tests.support.hour_in_memory import make_stream

GROUPS = 3


@pytest.fixture(params=LAYOUTS)
def hour(request: pytest.FixtureRequest) -> GroupedHour:
    found = GroupedHour(request.param)
    found.produce(three_groups())
    found.run()
    return found


def verify(hour: GroupedHour) -> Verification:
    """Verify the hour, and check that nothing was written."""
    before = hour.store.snapshot()
    found = verify_hour(hour.store, hour.stream, HOUR)
    assert hour.store.snapshot() == before
    return found


# -- verify --------------------------------------------------------------------------------------------


def edit(hour: GroupedHour, key: str, **values: Any) -> None:
    hour.store.produce(key, json.dumps({**hour.json(key), **values}).encode())


def swap_manifests(hour: GroupedHour) -> None:
    hour.store.produce(
        hour.folder("web") + "_manifest.jsonl.gz",
        hour.store.body(hour.folder("sp ace") + "_manifest.jsonl.gz"),
    )


DAMAGE: dict[str, tuple[Callable[[GroupedHour], Any], str]] = {
    "no marker": (
        lambda hour: hour.store.delete("logs", [hour.folder("web") + "_SUCCESS"]),
        "there is no s3://logs/",
    ),
    "no manifest": (
        lambda hour: hour.store.delete("logs", [hour.folder("web") + "_manifest.jsonl.gz"]),
        "there is no s3://logs/",
    ),
    "damaged marker": (
        lambda hour: hour.store.produce(hour.folder("web") + "_SUCCESS", b"{"),
        "_SUCCESS cannot be read",
    ),
    "damaged manifest": (
        lambda hour: hour.store.produce(hour.folder("web") + "_manifest.jsonl.gz", b"\x1f\x8b"),
        "_manifest.jsonl.gz cannot be read",
    ),
    "other totals": (
        lambda hour: edit(hour, hour.folder("web") + "_SUCCESS", objects=4),
        "objects 4 instead of 5",
    ),
    "other group": (
        lambda hour: edit(hour, hour.folder("web") + "_SUCCESS", group={"service": "x"}),
        "is of the group {'service': 'x'}",
    ),
    "other plan": (
        lambda hour: edit(hour, hour.folder("web") + "_SUCCESS", plan_id="f00"),
        "are of different plans: ",
    ),
    "other parts": (swap_manifests, "has other totals than the manifest of the hour"),
    "no groups in the marker": (
        lambda hour: edit(hour, f"{HOME}_SUCCESS", groups=[]),
        "it is missing in _SUCCESS of the hour",
    ),
    "wrong type in the marker": (
        lambda hour: edit(hour, f"{HOME}_SUCCESS", groups=7),
        "it is missing in _SUCCESS of the hour",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_records_of_a_group_are_found_and_repaired(hour: GroupedHour, damage: str) -> None:
    do, reason = DAMAGE[damage]
    do(hour)
    found = verify(hour)
    assert found.groups == GROUPS
    assert found.problems
    assert all(problem.group for problem in found.problems)
    assert any(reason in problem.reason for problem in found.problems)
    assert found.remedy is not None
    assert found.remedy.startswith("Delete _SUCCESS and _manifest.jsonl.gz of these groups")
    files = [hour.folder("web") + name for name in ("_SUCCESS", "_manifest.jsonl.gz")]
    hour.store.delete("logs", [*files, f"{HOME}_SUCCESS"])
    hour.run()
    hour.verify()
    assert verify(hour).problems == []


def test_rerun_writes_missing_records_of_groups_again(hour: GroupedHour) -> None:
    hour.store.delete("logs", [hour.folder("web") + "_SUCCESS"])
    hour.store.delete("logs", [hour.folder("a.b") + "_manifest.jsonl.gz"])
    parts = {key: hour.store.stored(key) for key in hour.written() if "part-" in key}
    assert not hour.run().unchanged
    assert {key: hour.store.stored(key) for key in hour.written() if "part-" in key} == parts
    hour.verify()


def test_group_may_be_proven_in_another_way_than_its_hour(hour: GroupedHour) -> None:
    place = hour.folder("web")
    header, rows = hour.manifest(place)
    for entry in header["parts_table"]:
        entry["proof"] = "stored-crc64nvme" if entry["proof"] == "read-back" else "read-back"
    for row in rows:
        row["checked"] = "etag-md5"
    lines = "".join(f"{json.dumps(line)}\n" for line in (header, *rows))
    hour.store.produce(f"{place}_manifest.jsonl.gz", gzip.compress(lines.encode()))
    assert verify(hour).problems == []
    rows[0]["crc64nvme"] = "0" * 16
    lines = "".join(f"{json.dumps(line)}\n" for line in (header, *rows))
    hour.store.produce(f"{place}_manifest.jsonl.gz", gzip.compress(lines.encode()))
    (problem,) = verify(hour).problems
    assert problem.reason.endswith("has other parts or objects than the manifest of the hour")


def test_records_of_an_unknown_group_are_a_problem(hour: GroupedHour) -> None:
    hour.store.produce(hour.folder("gone") + "_SUCCESS", b"{}")
    (problem,) = verify(hour).problems
    assert problem.reason.endswith("the hour has no such group")


# -- status, plan, locate ------------------------------------------------------------------------------


def test_status_has_the_totals_of_each_group(hour: GroupedHour) -> None:
    (found,) = read_hours(hour.store, hour.stream, [HOUR], groups=True)
    assert found.marker is not None
    assert found.marker["groups"] == GROUPS
    assert {group["captures"]["service"]: group["objects"] for group in found.groups} == {
        "web": 5,
        "a.b": 1,
        "sp ace": 3,
    }


@pytest.mark.parametrize(
    "groups", [7, "x", [7], [{}], [{"folder": "a/", "captures": {"service": 7}}], {"a": 1}]
)
def test_marker_with_wrong_groups_is_damaged(hour: GroupedHour, groups: Any) -> None:
    edit(hour, f"{HOME}_SUCCESS", groups=groups)
    (found,) = read_hours(hour.store, hour.stream, [HOUR])
    assert found.state is HourStatus.DAMAGED
    assert "groups" in found.problem
    assert len(found.problem) < 1000


def test_marker_of_five_thousand_groups_can_be_read(hour: GroupedHour) -> None:
    (group, *_) = hour.json(f"{HOME}_SUCCESS")["groups"]
    groups = [{**group, "folder": f"{number:0200d}/"} for number in range(5000)]
    edit(hour, f"{HOME}_SUCCESS", groups=groups)
    (found,) = read_hours(hour.store, hour.stream, [HOUR])
    assert found.state is HourStatus.COMPLETE
    assert found.marker is not None
    assert found.marker["groups"] == 5000
    assert found.groups == ()


def test_preview_has_the_number_and_the_largest_groups(hour: GroupedHour) -> None:
    found = preview_hour(hour.store, hour.stream, HOUR)
    assert found.unchanged
    assert found.groups == GROUPS
    assert [(one.captures["service"], one.objects) for one in found.largest_groups] == [
        ("web", 5),
        ("sp ace", 3),
        ("a.b", 1),
    ]


def test_object_of_a_group_is_read_from_its_part(hour: GroupedHour) -> None:
    found = locate(hour.store, hour.stream, hour.key("web", "4.log"))
    assert found.complete
    assert b"".join(read_object(hour.store, found)) == hour.raw["web"]["4.log"]
    with pytest.raises(NotFoundError):
        locate(hour.store, hour.stream, hour.key("other", "4.log"))


def test_planning_says_which_groups_are_new_or_vanished(hour: GroupedHour) -> None:
    hour.expire("web")
    hour.produce({"new": {"0.log": b"new"}})
    changes = hour.plan(drop_vanished=True).group_changes
    assert changes == GroupChanges(1, 1, ("new",), ("web",))
    assert str(changes) == "1 new (new), 1 vanished (web)"


# -- events and results of tasks -----------------------------------------------------------------------


def many_groups(count: int, length: int = 10) -> HourTotals:
    groups = tuple(totals(f"{number:0{length}d}/20261123/08/", number) for number in range(count))
    return HourTotals(
        "app", "2026-11-23T08:00:00Z", "f00", count, 1, 0, 1, count, LeftOut(), Verified({}, {}), Measured(),
        groups=groups,
    )  # fmt: skip


def test_event_has_the_totals_of_each_group(hour: GroupedHour) -> None:
    event = hour_report.event_of(hour.stream, HOUR, complete_hour(hour.store, hour.stream, HOUR))
    assert event["groups"] == 3
    assert event["group_totals"][0] == {
        "captures": {"service": "web"}, "objects": 5, "bytes_in": 150, "bytes_out": 150, "parts": 3,
        "aggregated": f"s3://logs/{hour.folder('web')}",
    }  # fmt: skip


def test_event_and_result_of_many_groups_stay_small() -> None:
    stream = GroupedHour("before the date").stream
    for length in (10, 500):
        event = hour_report.event_of(stream, HOUR, many_groups(1000, length))
        assert event["groups"] == 1000
        assert 20 < len(event["group_totals"]) <= hour_report.EVENT_GROUPS
        assert event["group_totals"][0]["bytes_in"] == 999
        assert len(json.dumps(event)) < hour_report.EVENT_GROUP_BYTES + 2000
        result = hour_report.result_of(stream, HOUR, many_groups(1000, length))
        assert (result["groups"], len(result["largest_groups"])) == (1000, 3)
        assert len(json.dumps(result)) < 4000


def test_stream_without_groups_has_no_keys_of_groups() -> None:
    event = hour_report.event_of(make_stream(), HOUR, many_groups(0))
    result = hour_report.result_of(make_stream(), HOUR, many_groups(0))
    assert not {"groups", "group", "group_totals", "largest_groups"} & {*event, *result}


def test_groups_are_compared_with_the_hour_before_by_one_request(hour: GroupedHour) -> None:
    found = complete_hour(hour.store, hour.stream, HOUR)
    hour.store.log.clear()
    after = HOUR + timedelta(hours=1)
    changes = hour_report.compare_with_hour_before(
        hour.store, hour.stream, after, replace(found, groups=(totals("web", 1), totals("new", 1)))
    )
    assert changes == GroupChanges(1, 2, ("new",), ("a.b", "sp ace"))
    assert [operation.kind for operation in hour.store.log] == ["READ"]


@pytest.mark.parametrize("body", [None, b"{", b'{"format": 1, "groups": [7]}', b'{"format": 1, "groups": 7}'])
def test_hour_before_without_readable_groups_is_not_compared(hour: GroupedHour, body: bytes | None) -> None:
    after = HOUR + timedelta(hours=1)
    if body is None:
        hour.store.delete("logs", [f"{HOME}_SUCCESS"])
    else:
        hour.store.produce(f"{HOME}_SUCCESS", body)
    assert hour_report.compare_with_hour_before(hour.store, hour.stream, after, many_groups(3)) is None


# -- the note on a run ---------------------------------------------------------------------------------

NOTE = {"objects": 9, "bytes_in": 270, "parts": 5}
LARGEST = [{"captures": {"service": name}, "bytes_in": 100} for name in ("web", "db", "x")]


@pytest.mark.parametrize(
    ("more", "note"),
    [
        (
            {"left_out": {"hidden": 9, "excluded": 1200, "unjoinable": 3}, "groups": 1, "largest_groups": []},
            "; left out: 1,200 excluded, 3 unjoinable; 1 groups",
        ),
        ({"left_out": {"hidden": 9, "excluded": 0}}, ""),
        ({"left_out": {"unjoinable": 1, "unmatched": 4}}, "; left out: 1 unjoinable, 4 unmatched"),
        ({}, ""),
        ({"groups": 0, "largest_groups": []}, "; 0 groups"),
        ({"groups": 3, "largest_groups": LARGEST}, "; 3 groups: web 100 B, db 100 B, x 100 B"),
        ({"groups": 4, "largest_groups": LARGEST}, "; 4 groups: web 100 B, db 100 B, x 100 B, …"),
        (
            {"groups": 0, "largest_groups": [], "group_changes": GroupChanges(0, 1, (), ("db",)).to_json()},
            "; 0 groups; compared with the last run: 1 vanished (db)",
        ),
        (
            {
                "groups": 4,
                "largest_groups": LARGEST,
                "group_changes": None,
                "since_hour_before": GroupChanges(4, 0, ("a", "b", "c"), ()).to_json(),
            },
            "; 4 groups: web 100 B, db 100 B, x 100 B, …; compared with the hour before: 4 new (a, b, c, …)",
        ),
        ({"why_empty": "No object belongs to the hour."}, ". No object belongs to the hour."),
    ],
)
def test_note_names_the_groups_and_is_known_as_ours(more: dict[str, Any], note: str) -> None:
    found = run_note.describe(json.loads(json.dumps(NOTE | more)))
    assert found == f"9 objects, 270 B -> 5 parts, verified by CRC{note}"
    assert run_note.is_ours(found)


def test_note_stays_short() -> None:
    names = ("x" * 60,) * 3
    most = [{"captures": {"service": "x" * 1000}, "bytes_in": 10**15}] * 3
    changes = GroupChanges(10**6, 10**6, names, names).to_json()
    found = run_note.describe(
        NOTE
        | {"groups": 10**6, "largest_groups": most, "group_changes": changes, "since_hour_before": changes}
    )
    assert len(found) <= 1000
    assert run_note.is_ours(found)


# -- summaries -----------------------------------------------------------------------------------------


def totals(folder: str, size: int) -> GroupTotals:
    return GroupTotals(folder, {"service": folder}, 1, size, 0, size, 1, Verified({}, {}))


def test_largest_groups_come_first_and_ties_by_folder() -> None:
    groups = [totals("c", 1), totals("b", 2), totals("a", 1), totals("d", 9)]
    assert [group.folder for group in largest_groups(groups, 3)] == ["d", "b", "a"]


@pytest.mark.parametrize(
    ("captures", "name"),
    [
        ({"service": "web"}, "web"),
        ({"account": "12", "region": "eu"}, "12/eu"),
        ({"service": "a\nb\u202e"}, r"a\x0ab\u202e"),
        ({"service": "x" * 61}, "x" * 59 + "…"),
    ],
)
def test_name_of_a_group_is_short_and_on_one_line(captures: dict[str, str], name: str) -> None:
    assert group_name(captures) == name
