"""detect proposes a working stream for each layout of docs/SOURCES.md, and names every doubt."""

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from include.log_rollup.errors import AccessError, NotFoundError, UnknownLayoutError
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.queries import layouts
from include.log_rollup.queries.detect import MAX_REQUESTS, MAX_STREAMS, NOT_PROPOSED, Detection, detect
from include.log_rollup.queries.key_dates import readings_of
from include.log_rollup.storage.protocol import Location
from include.log_rollup.streams import load_streams
from tests.support.fake_store import FakeStore

SOURCES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "source_keys.yaml").read_text(encoding="utf-8")
)
BY_NAME = {source["stream"]["name"]: source for source in SOURCES}
NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
DAY = datetime(2026, 11, 22, tzinfo=UTC)
# Two values of each capture, in the form that its producer writes.
VALUES = {
    "account": ("111122223333", "444455556666"),
    "region": ("us-east-1", "eu-central-1"),
    "balancer": ("web.1234567890abcdef", "api.abcdef1234567890"),
    "flow_log": ("fl-1234abcd", "fl-abcd1234"),
    "distribution": ("EMLARXS9EXAMPLE", "E2EXAMPLE1ABCD"),
    "bucket": ("site", "shop"),
    "acl": ("edge", "core"),
    "vpc": ("vpc-1a2b3c4d", "vpc-4d3c2b1a"),
    "owner": ("111122223333",),
    "stage": ("prod", "test"),
    "service": ("web", "billing"),
    "tag": ("app.access", "app.error"),
    "signal": ("logs", "traces"),
    "topic": ("orders", "clicks"),
}


def put(store: FakeStore, key: str, modified: datetime, body: bytes = b"line\n") -> None:
    store.produce(key, body, modified=modified.timestamp())


def detected(store: FakeStore, prefix: str = "", now: datetime = NOW) -> Detection:
    found = detect(store, Location("logs", prefix), now)
    assert found.requests == len(store.log) <= MAX_REQUESTS
    assert not store.writes()
    return found


def loaded(found: Detection, tmp_path: Path) -> list[Any]:
    """Return the streams of the printed file."""
    path = tmp_path / "streams.yaml"
    path.write_text(found.text, encoding="utf-8")
    streams = load_streams(path)
    assert [stream.name for stream in streams] == [proposal.stream.name for proposal in found.proposals]
    return streams


def rest_of(raw: RawTemplate, key: str) -> str:
    """Return what a documented key has behind the template."""
    match = raw.match(key)
    assert match
    return match.name


def filled(store: FakeStore, name: str, hours: int = 30) -> dict[str, tuple[datetime, Mapping[str, str]]]:
    """Put keys of a documented layout into the bucket; return the hour and captures of each."""
    source = BY_NAME[name]
    raw = RawTemplate.parse(source["stream"]["raw"], source["stream"].get("timezone", "UTC"))
    documented = next(key["key"] for key in source["keys"] if key["hour"])
    rest = rest_of(raw, documented)
    keys: dict[str, tuple[datetime, Mapping[str, str]]] = {}
    for number in range(hours):
        hour = DAY + timedelta(hours=number)
        for values in itertools.product(*(VALUES[capture] for capture in raw.captures)):
            captures = dict(zip(raw.captures, values, strict=True))
            for label in raw.labels(hour):
                for minute in range(0, 60, 6):
                    name = f"{minute:02}{rest[2:]}" if rest[:2].isdigit() else rest
                    name = re.sub(
                        r"[0-9A-Za-z]{1,2}((?:\.(?:log|json|txt|metrics|gz))*)$", rf"{minute:02}\1", name
                    )
                    key = f"{raw.fill(label, captures)}{name}"
                    put(store, key, hour + timedelta(minutes=minute + 3, seconds=len(keys) % 50))
                    keys[key] = hour, captures
    return keys


@pytest.mark.parametrize("name", BY_NAME)
def test_documented_layout_is_read_as_documented(name: str, tmp_path: Path) -> None:
    store = FakeStore()
    keys = filled(store, name)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    (proposal,) = found.proposals
    assert BY_NAME[name]["source"].split(",")[0] in {
        f"{'AWS ' if item.name == 'CloudTrail' else ''}{item.name}" for item in proposal.layout.producers
    }
    used = BY_NAME[name]["stream"]["aggregated"]
    groups: dict[tuple[str, ...], Mapping[str, str]] = {}
    for key, (hour, captures) in keys.items():
        match = stream.raw.match(key)
        assert match is not None, key
        assert match.hour == hour
        named = dict(zip(stream.raw.captures, match.captures, strict=True))
        group = tuple(named[capture] for capture in stream.aggregated.captures)
        wanted = {capture: value for capture, value in captures.items() if f"{{{capture}}}" in used}
        # Groups may be finer than those of the documentation.
        assert groups.setdefault(group, wanted) == wanted
    assert found.not_read == {}
    assert stream.timezone == BY_NAME[name]["stream"].get("timezone", "UTC")
    assert proposal.zone.is_known


@pytest.mark.parametrize("name", BY_NAME)
def test_single_documented_keys_give_a_stream(name: str, tmp_path: Path) -> None:
    store = FakeStore()
    keys = [key for key in BY_NAME[name]["keys"] if key["hour"]]
    for key in keys:
        put(store, key["key"], NOW)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    raw = RawTemplate.parse(BY_NAME[name]["stream"]["raw"])
    for key in keys:
        match, documented = stream.raw.match(key["key"]), raw.match(key["key"])
        assert match
        assert documented
        assert match.hour == documented.hour
    # The times are not those of the hours, so they do not show the zone.
    assert not found.proposals[0].zone.is_known


# -- the sample -------------------------------------------------------------------------------------------


def test_newest_hours_of_years_are_sampled(tmp_path: Path) -> None:
    store = FakeStore(page_size=20)
    for service in ("web", "api", "auth"):
        for day in range(0, 1500, 5):
            hour = NOW.replace(minute=0) - timedelta(days=day)
            for number in range(3):
                put(
                    store,
                    f"raw/{service}/{hour:%Y%m%d/%H}/{number}.log",
                    hour + timedelta(minutes=9 + number),
                )
    found = detected(store, "raw/")
    (stream,) = loaded(found, tmp_path)
    assert stream.raw.text == "s3://logs/raw/{service}/%Y%m%d/%H/"
    assert {hour.hour.year for hour in found.proposals[0].hours} >= {2026}
    assert {hour.group["service"] for hour in found.proposals[0].hours} == {"web", "api", "auth"}
    assert max(hour.hour for hour in found.proposals[0].hours) > NOW - timedelta(days=10)


@pytest.mark.parametrize("step", ["%Y-%m-%d-%H-00-00-", "app.%Y%m%d%H.", "E1EXAMPLEEXAMPLE.%Y-%m-%d-%H."])
def test_newest_names_of_a_large_folder_are_sampled(step: str, tmp_path: Path) -> None:
    store = FakeStore(page_size=50)
    for day in range(800):
        hour = NOW.replace(minute=0) - timedelta(days=day, hours=4)
        for number in range(4):
            put(store, f"logs/{hour.strftime(step)}{number}.gz", hour + timedelta(minutes=10 * number))
    found = detected(store, "logs/")
    loaded(found, tmp_path)
    hours = [hour.hour for hour in found.proposals[0].hours]
    assert max(hours) > NOW - timedelta(days=10)
    assert min(hours) < NOW - timedelta(days=700)
    assert found.proposals[0].zone.is_known


def test_large_folder_of_a_day_shows_other_balancers(tmp_path: Path) -> None:
    store = FakeStore(page_size=30)
    raw = RawTemplate.parse(BY_NAME["alb"]["stream"]["raw"])
    for balancer in ("a.1", "b.2", "c.3"):
        values = {"account": "111122223333", "region": "us-east-1", "balancer": balancer}
        for number in range(24 * 6):
            time = DAY + timedelta(minutes=10 * number)
            key = f"{raw.fill(time.replace(tzinfo=None), values)}{time:%M}Z_10.0.0.1_abcdefgh.log.gz"
            put(store, key, time + timedelta(minutes=2))
    found = detected(store)
    loaded(found, tmp_path)
    assert {hour.group["balancer"] for hour in found.proposals[0].hours} == {"a.1", "b.2", "c.3"}
    assert found.proposals[0].entry["poll_interval"] == "10m"


def test_services_of_one_bucket_get_a_stream_each(tmp_path: Path) -> None:
    store = FakeStore()
    keys: dict[str, Any] = {}
    for name in ("cloudtrail", "vpc", "waf", "resolver"):
        keys |= filled(store, name, hours=2)
    digest = (
        "AWSLogs/111122223333/CloudTrail-Digest/us-east-1/2026/11/22/111122223333_CloudTrail-Digest_x.json.gz"
    )
    put(store, digest, NOW)
    found = detected(store)
    streams = loaded(found, tmp_path)
    assert {stream.name for stream in streams} == {"cloudtrail", "vpc", "waf", "resolver"}
    assert found.not_read == {layouts.NO_HOUR: [digest]}


def test_more_layouts_than_proposals_are_counted(tmp_path: Path) -> None:
    store = FakeStore()
    for host in range(12):
        for number in range(10):
            put(store, f"logs/host{host}-{DAY + timedelta(hours=number):%Y%m%d-%H}.log", DAY)
    found = detected(store)
    assert len(loaded(found, tmp_path)) == MAX_STREAMS
    assert list(found.not_read) == [NOT_PROPOSED]
    assert len(found.not_read[NOT_PROPOSED]) == 40


def test_folders_that_are_not_followed_are_named() -> None:
    store = FakeStore()
    for number in range(40):
        put(store, f"raw/tenant-{number:02}/20261122/08/a.log", DAY)
    found = detected(store, "raw/")
    assert len(found.not_sampled) == 34
    assert set(found.not_sampled) < {f"raw/tenant-{number:02}/" for number in range(40)}


def test_kinds_of_balancers_below_one_prefix_get_one_stream(tmp_path: Path) -> None:
    store = FakeStore()
    for name in ("alb", "nlb"):
        for key in filled(FakeStore(), name, hours=2):
            put(store, f"x/AWSLogs/{key.partition('AWSLogs/')[2]}", DAY)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert "{region}_{balancer}_%Y" in stream.raw.text
    assert [item.stream for item in found.proposals[0].layout.producers] == ["alb", "nlb"]


# -- dates and zones --------------------------------------------------------------------------------------


def fill_template(store: FakeStore, form: str, zone: str = "UTC", days: int = 10, delay: int = 1) -> None:
    """Put objects that are written during their hours; ``form`` has the directives of the local hour."""
    for number in range(24 * days):
        hour = NOW.replace(minute=0) - timedelta(hours=1 + number)
        for minute in range(0, 60, 7):
            time = hour + timedelta(minutes=minute)
            key = f"{time.astimezone(ZoneInfo(zone)).strftime(form)}{minute:02}.log"
            put(store, key, time + timedelta(minutes=delay))


@pytest.mark.parametrize(
    ("form", "raw"),
    [
        ("raw/%d-%m-%Y/%H/", "raw/%d-%m-%Y/%H/"),
        ("raw/%m/%d/%Y/%H/", "raw/%m/%d/%Y/%H/"),
        ("raw/%y%m%d/%H/", "raw/%y%m%d/%H/"),
        ("raw/%d.%m.%y/%H/", "raw/%d.%m.%y/%H/"),
        ("raw/%Y/%j/%H/", "raw/%Y/%j/%H/"),
        ("raw/%Y%m%d%H/x-", "raw/%Y%m%d%H/"),
        ("raw/%Y-%m-%d/web/%H/", "raw/%Y-%m-%d/web/%H/"),
        ("raw/%Y-%m-%dT%H/", "raw/%Y-%m-%dT%H/"),
        ("raw/100%%/%Y%m%d/%H/", "raw/100%%/%Y%m%d/%H/"),
        ("raw/dt=%Y-%m-%d/host=a/hour=%H/", "raw/dt=%Y-%m-%d/host=a/hour=%H/"),
        ("raw/%H/%Y/%m/%d/", "raw/%H/%Y/%m/%d/"),
        ("raw/%H-%Y%m%d/x-", "raw/%H-%Y%m%d/"),
        ("raw/hour=%H/dt=%Y-%m-%d/", "raw/hour=%H/dt=%Y-%m-%d/"),
        ("raw/h%H/web/%d-%m-%Y/", "raw/h%H/web/%d-%m-%Y/"),
    ],
)
def test_order_of_the_date_is_found(form: str, raw: str, tmp_path: Path) -> None:
    store = FakeStore()
    fill_template(store, form)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert stream.raw.text == f"s3://logs/{raw}"
    assert found.proposals[0].layout.alternatives == ()


LAYOUTS = [
    "{service}/%Y%m%d/%H/",
    "raw/stage={stage}/{service}/%Y/%m/%d/%H/",
    "{service}/raw/42/year=%Y/month=%m/day=%d/hour=%H/",
    "raw/{service}/dt=%Y-%m-%d/{stage}/%H/",
    "raw/{service}/%Y/%m/%d/{tag}_%Y%m%dT%H",
    "%Y%m/%d/%H/",
    "{service}/%Y-%m-%d-%H-",
    "y=%Y/m=%m/d=%d/h=%H/",
]


@pytest.mark.parametrize("page_size", [7, 1000])
@pytest.mark.parametrize("text", LAYOUTS)
def test_every_key_is_in_the_hour_of_its_template(text: str, page_size: int, tmp_path: Path) -> None:
    store = FakeStore(page_size=page_size)
    raw = RawTemplate.parse(f"s3://logs/{text}")
    hours = {}
    for number in range(0, 24 * 12, 5):
        hour = NOW.replace(minute=0) - timedelta(hours=number + 1)
        for values in itertools.product(*(VALUES[capture] for capture in raw.captures)):
            captures = dict(zip(raw.captures, values, strict=True))
            key = f"{raw.fill(hour.replace(tzinfo=None), captures)}{'' if text.endswith(('/', '-')) else '15Z'}x"
            put(store, key, hour + timedelta(minutes=15))
            hours[key] = hour
    streams = loaded(detected(store), tmp_path)
    found = {key: [match.hour for stream in streams if (match := stream.raw.match(key))] for key in hours}
    assert found == {key: [hour] for key, hour in hours.items()}


def test_hour_before_the_date_is_to_be_checked(tmp_path: Path) -> None:
    for form, is_doubted in (("raw/%H/%Y%m%d/", True), ("raw/%Y%m%d/%H/", False)):
        store = FakeStore()
        fill_template(store, form)
        found = detected(store)
        loaded(found, tmp_path)
        remarks = [remark for remark in found.proposals[0].remarks if "before the date" in remark]
        assert bool(remarks) == is_doubted


def test_hour_behind_the_date_counts_before_one_in_front() -> None:
    (reading,) = readings_of("raw/07/20261123/08/a.log")
    assert reading.label == datetime(2026, 11, 23, 8)  # noqa: DTZ001 - a local time
    for key in ("raw/24/20261123/a.log", "raw/x08/20261123/a.log", "raw/08/web/20261123/a.log"):
        assert readings_of(key) == []


def test_two_readings_of_a_date_are_both_named(tmp_path: Path) -> None:
    store = FakeStore()
    for day in range(1, 13):
        for hour in range(24):
            # Copied later, so the times do not help.
            put(store, f"raw/05/{day:02}/2024/{hour:02}/a.log", NOW)
    found = detected(store)
    loaded(found, tmp_path)
    (proposal,) = found.proposals
    assert {proposal.layout.raw, *proposal.layout.alternatives} == {
        "s3://logs/raw/%d/%m/%Y/%H/", "s3://logs/raw/%m/%d/%Y/%H/",
    }  # fmt: skip
    assert any("%m/%d/%Y" in remark for remark in proposal.remarks)


def test_readings_of_a_key_have_different_hours() -> None:
    labels = [reading.label for reading in readings_of("04/11/2026/08/a")]
    assert labels == [datetime(2026, 11, 4, 8), datetime(2026, 4, 11, 8)]  # noqa: DTZ001 - local times
    assert readings_of("10.0.0.1/a-20261123.log") == []
    first = readings_of("release-2026-11-01/2026/11/23/08/a")[0]
    assert first.label == datetime(2026, 11, 23, 8)  # noqa: DTZ001 - a local time


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "Asia/Kolkata", "Asia/Tokyo", "America/New_York", "America/Los_Angeles"]
)
def test_zone_of_the_keys_is_named(zone: str, tmp_path: Path) -> None:
    store = FakeStore()
    fill_template(store, "raw/%Y%m%d/%H/", zone)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    guess = found.proposals[0].zone
    assert zone in (guess.zone, *guess.others)
    offset = NOW.astimezone(ZoneInfo(zone)).utcoffset()
    assert NOW.astimezone(ZoneInfo(stream.timezone)).utcoffset() == offset
    # Behind UTC, a zone and a delay look alike.
    assert ("UTC" in guess.others) == zone.startswith("America")


def test_copied_objects_do_not_show_the_zone(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(48):
        put(store, f"raw/{DAY - timedelta(days=90, hours=number):%Y%m%d/%H}/a.log", NOW)
    found = detected(store)
    loaded(found, tmp_path)
    (proposal,) = found.proposals
    assert not proposal.zone.is_known
    assert proposal.quiet is None
    assert proposal.entry["quiet_period"] == "10m"


def test_quiet_period_covers_the_gaps_after_an_hour(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(48):
        hour = DAY - timedelta(hours=number)
        for index, minute in enumerate((5, 30, 55, 90)):
            put(store, f"raw/{hour:%Y%m%d/%H}/{index}.log", hour + timedelta(minutes=minute))
    found = detected(store)
    loaded(found, tmp_path)
    (proposal,) = found.proposals
    assert proposal.quiet is not None
    assert proposal.quiet.gap == timedelta(minutes=35)
    assert proposal.entry["quiet_period"] == "1h"


def test_number_that_is_no_hour_is_doubted(tmp_path: Path) -> None:
    store = FakeStore()
    for day in range(5):
        for number in range(240):
            time = DAY - timedelta(days=day) + timedelta(minutes=6 * number)
            put(store, f"raw/{time:%Y-%m-%d}/{number % 4:02}/{number}.log", time)
    found = detected(store)
    loaded(found, tmp_path)
    (proposal,) = found.proposals
    assert not proposal.zone.is_known
    assert any("is no hour" in remark for remark in proposal.remarks)


def test_same_hour_in_all_keys_is_doubted(tmp_path: Path) -> None:
    store = FakeStore()
    for day in range(5):
        put(store, f"logs/{DAY - timedelta(days=day):%Y-%m-%d}-00-00-00-E568B2907131C0C0", DAY)
    found = detected(store)
    loaded(found, tmp_path)
    assert any("event time" in remark for remark in found.proposals[0].remarks)


def test_connection_is_part_of_the_entry(tmp_path: Path) -> None:
    store = FakeStore()
    filled(store, "firehose", hours=2)
    found = detect(store, Location("logs", ""), NOW, "aws_logs")
    (stream,) = loaded(found, tmp_path)
    assert stream.aws_conn_id == "aws_logs"


# -- objects ----------------------------------------------------------------------------------------------


def test_newlines_containers_and_temporary_objects(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(24):
        hour = DAY + timedelta(hours=number)
        for name, body in {
            "a.log": b"no newline",
            "b.log.gz": b"x",
            "c.parquet": b"x",
            "d.log.tmp": b"x",
            "d.log.tmp.md5": b"x",
            "b.log.gz.md5": b"x",
            ".hidden": b"x",
            "_SUCCESS": b"",
            "DONE": b"",
        }.items():
            put(store, f"raw/{hour:%Y%m%d/%H}/{name}", hour, body)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert stream.ensure_newline
    assert (stream.unjoinable, stream.include) == ("stop", ("*.log", "*.log.gz"))
    # Nothing else is included.
    assert stream.exclude == ()
    proposal = found.proposals[0]
    hours = len(proposal.hours)
    assert any("ready_object: _SUCCESS" in remark for remark in proposal.remarks)
    assert any(remark.startswith(f"{hours} .parquet objects cannot be joined") for remark in proposal.remarks)
    assert proposal.encodings == {"plain": hours, ".gz": hours}
    assert (proposal.left_out.hidden, proposal.left_out.excluded) == (2 * hours, 5 * hours)


KINDS = [
    # names of each hour, include, exclude, unjoinable
    (("a.log", "a.log.tmp", "DONE"), (), ("*.tmp", "DONE"), "stop"),
    (("a.json.gz", "a.json.gz.md5", "a.json.gz.sha256"), (), ("*.md5", "*.sha256"), "stop"),
    # Without the object itself, they may be the data.
    (("a.log", "b.md5"), (), (), "stop"),
    (("a.parquet",), (), (), "copy"),
    (("a.json.gz", "b.json.gz", "a.parquet", "a.orc"), ("*.json.gz",), (), "stop"),
    (("a.json.gz", "b.json.tmp", "c.tmp.json.gz", "a.zip"), ("*.json.gz",), (), "stop"),
    # What no ending describes would be left out: all objects are read.
    (("part-0", "a.parquet"), (), (), "copy"),
    (("a.b", "a.c", "a.d", "a.e", "a.f", "a.g", "a.avro"), (), (), "copy"),
]


@pytest.mark.parametrize(("names", "include", "exclude", "unjoinable"), KINDS)
def test_kinds_of_objects_are_chosen_by_their_names(
    names: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    unjoinable: str,
    tmp_path: Path,
) -> None:
    store = FakeStore()
    for number, name in itertools.product(range(24), names):
        put(store, f"raw/{DAY + timedelta(hours=number):%Y%m%d/%H}/{name}", DAY)
    (stream,) = loaded(detected(store), tmp_path)
    assert (stream.include, stream.exclude, stream.unjoinable) == (include, exclude, unjoinable)


def test_containers_with_few_joinable_objects_are_copied(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(24):
        put(store, f"raw/{DAY + timedelta(hours=number):%Y%m%d/%H}/a.parquet", DAY)
    put(store, f"raw/{DAY:%Y%m%d/%H}/notes.txt", DAY)
    (stream,) = loaded(detected(store), tmp_path)
    assert (stream.include, stream.unjoinable) == ((), "copy")


def test_compressed_objects_without_the_ending_are_named(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(24):
        put(store, f"app/2022/12/25/{number:02}_00_00-apwgylqg", NOW, b"\x1f\x8b and more" + bytes(9000))
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert not stream.ensure_newline
    assert any("gzip by their bytes" in remark for remark in found.proposals[0].remarks)
    assert found.proposals[0].layout.producers[0].name == "Fluent Bit"


def test_objects_that_cannot_be_read_are_no_error(tmp_path: Path) -> None:
    store = FakeStore()
    filled(store, "s3_access", hours=3)
    store.on("RANGE", "", AccessError("GET: no"), times=99)
    found = detected(store)
    loaded(found, tmp_path)
    assert any("is not known: GET: no" in remark for remark in found.proposals[0].remarks)


def test_parts_of_log_rollup_are_not_proposed(tmp_path: Path) -> None:
    store = FakeStore()
    filled(store, "firehose", hours=3)
    for name in ("part-00000-3f9c2a1b.log", "_manifest.jsonl.gz", "_rollup/claim.json", "_SUCCESS"):
        put(store, f"aggregated/app/20261122/08/{name}", NOW)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert stream.name == "firehose"
    assert sum(map(len, found.not_read.values())) == 4


def test_folder_that_names_another_day_is_named(tmp_path: Path) -> None:
    store = FakeStore()
    filled(store, "alb", hours=3)
    next_day, other = (key["key"] for key in BY_NAME["alb"]["keys"][1:])
    for key in (next_day, other):
        put(store, key, NOW)
    found = detected(store)
    loaded(found, tmp_path)
    assert found.not_read == {layouts.TWO_DAYS: [other]}


def test_folder_of_the_next_day_is_read_without_a_known_producer(tmp_path: Path) -> None:
    store = FakeStore()
    for hour in range(24):
        put(store, f"raw/{DAY:%Y/%m/%d}/x_{DAY:%Y%m%d}T{hour:02}30.log", DAY + timedelta(hours=hour))
    put(store, f"raw/{DAY + timedelta(days=1):%Y/%m/%d}/x_{DAY:%Y%m%d}T2355.log", DAY + timedelta(days=1))
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert stream.raw.text == "s3://logs/raw/%Y/%m/%d/x_%Y%m%dT%H"
    assert found.not_read == {}


def test_many_values_make_no_groups(tmp_path: Path) -> None:
    store = FakeStore()
    for number in range(300):
        put(store, f"raw/{DAY:%Y%m%d/%H}/x.log".replace("raw/", f"raw/host-{number:03}/"), DAY)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert stream.raw.captures == ("service",)


def test_names_and_odd_characters_load(tmp_path: Path) -> None:
    store = FakeStore()
    for hour in range(3):
        put(store, f"a: b#{{x}} ü\x1b\n%/late/20261122/{hour:02}/\u202e.log", DAY)
    found = detected(store)
    (stream,) = loaded(found, tmp_path)
    assert stream.name == "late_logs"
    assert all(stream.raw.match(key) for key in store.listing())


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a/b.log"], layouts.NO_DATE),
        (["topics/t/year=2015/month=4/day=2/hour=0/t+0+0000000000.json"], layouts.NO_ZEROS),
        (["date=2019-06-18/1560886634-fddd7a0e-fad9-4f7e-9bce-00ae5debc563.log.gz"], "#vector"),
        (
            [
                f"ls.s3.{number:08}-2f5d-49bc-ae9f-5940cf4ad9a6.2013-04-18T10.00.part0.txt"
                for number in range(30)
            ],
            "#logstash",
        ),
        (["raw/20261123/a.log"], layouts.NO_HOUR),
        (["raw/1560886634-a.log", "raw/1560886634123.log"], layouts.SECONDS),
        (["raw/20261123/1795392000.log"], layouts.SECONDS),
        (["raw/2026/Nov/23/08/a.log", "raw/23-november-2026/08/a.log"], layouts.MONTH_NAME),
        (["raw/2026-11-23/a.log", "raw/2026-11-23/9/a.log"], "no template can express"),
    ],
)
def test_keys_without_an_hour_are_refused(keys: list[str], message: str) -> None:
    store = FakeStore()
    for key in keys:
        put(store, key, NOW)
    with pytest.raises(UnknownLayoutError, match=re.escape(message)):
        detect(store, Location("logs", ""), NOW)


def test_empty_prefix_is_refused() -> None:
    with pytest.raises(NotFoundError, match=r"no objects below s3://logs/none/; give a prefix"):
        detect(FakeStore(), Location("logs", "none/"), NOW)


def test_access_denied_is_passed_on() -> None:
    store = FakeStore()
    store.on("LIST", "", AccessError("LIST: no"))
    with pytest.raises(AccessError):
        detect(store, Location("logs", ""), NOW)
