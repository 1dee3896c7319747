"""A valid streams file gives streams; any other gives an error that names the stream, the key and the fix."""

import json
import os
import re
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.plan import WriteOptions
from include.log_rollup.storage.protocol import Location
from include.log_rollup.streams import (
    INCLUDE,
    Stream,
    check_pool,
    derived_names,
    load_late_schedule,
    load_streams,
    pool_slots,
    streams_path,
)
from include.log_rollup.units import GIB, MIB

APP: dict[str, Any] = {
    "name": "app",
    "raw": "s3://logs/raw/app/",
    "aggregated": "s3://logs/aggregated/app/",
    "start": "2026-11-01T00:00:00Z",
}
WEB = {**APP, "name": "web", "raw": "s3://logs/raw/web/", "aggregated": "s3://logs/aggregated/web/"}
WEB_2 = {**WEB, "raw": "s3://logs/raw/web2/", "aggregated": "s3://logs/aggregated/web2/"}
MAIL = {"class": "some.provider.Mail"}


@pytest.fixture
def streams_file(tmp_path: Path) -> Path:
    return tmp_path / "streams.yaml"


def load(path: Path, *streams: dict[str, Any], **document: Any) -> list[Stream]:
    path.write_text(yaml.safe_dump({**document, "streams": list(streams)}), encoding="utf-8")
    return load_streams(path)


def refusal(path: Path, *streams: Any, **document: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path, *streams, **document)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# -- valid files ---------------------------------------------------------------------------------------


def test_stream_needs_four_keys_and_has_documented_defaults(streams_file: Path) -> None:
    (stream,) = load(streams_file, APP)
    assert str(stream.raw) == "s3://logs/raw/app/"
    assert str(stream.aggregated) == "s3://logs/aggregated/app/"
    assert stream.start == datetime(2026, 11, 1, tzinfo=UTC)
    assert (stream.part_size, stream.shard_size, stream.max_shards) == (32 * MIB, GIB, 64)
    assert (stream.max_connections, stream.aws_conn_id) == (25, "aws_default")
    assert (stream.quiet_period, stream.timeout) == (timedelta(minutes=10), timedelta(hours=6))
    assert (stream.ready_object, stream.storage_class) == (None, None)
    assert not stream.allow_empty
    assert not stream.ensure_newline
    assert not stream.check_encoding


def test_stream_keys_override_the_defaults(streams_file: Path) -> None:
    app, web = load(
        streams_file,
        {**APP, "part_size": "64MiB"},
        {**APP, "name": "web", "raw": "s3://logs/raw/web", "aggregated": "s3://logs/aggregated/web"},
        defaults={"part_size": "16MiB", "quiet_period": "1h30m", "ready_object": "_DONE"},
    )
    assert (app.part_size, web.part_size) == (64 * MIB, 16 * MIB)
    assert app.quiet_period == web.quiet_period == timedelta(minutes=90)
    assert app.ready_object == web.ready_object == "_DONE"
    assert str(web.raw) == "s3://logs/raw/web/"


@pytest.mark.parametrize("new", [{}, {"ready_object": "_READY"}])
def test_old_key_marker_means_ready_object(streams_file: Path, new: dict[str, str]) -> None:
    (stream,) = load(streams_file, {**APP, **new}, defaults={"marker": "_DONE"})
    assert stream.ready_object == new.get("ready_object", "_DONE")
    (stream,) = load(streams_file, {**APP, "marker": "_DONE"}, defaults=new)
    assert stream.ready_object == "_DONE"


def test_marker_and_ready_object_together_are_refused(streams_file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"stream 'app': marker: .*'ready_object'.*remove 'marker'"):
        load(streams_file, {**APP, "marker": "_DONE", "ready_object": "_DONE"})


def test_shipped_streams_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOG_ROLLUP_STREAMS", raising=False)
    assert streams_path() == INCLUDE / "streams.yaml"
    streams = load_streams()
    assert streams
    check_pool(streams, pool_slots())


def test_environment_variable_names_another_streams_file(
    streams_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(streams_file, {**APP, "name": "from-elsewhere"})
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(streams_file))
    assert [stream.name for stream in load_streams()] == ["from-elsewhere"]


def test_start_with_an_offset_is_converted_to_utc(streams_file: Path) -> None:
    (stream,) = load(streams_file, {**APP, "start": "2026-11-01T02:00:00+02:00"})
    assert stream.start == datetime(2026, 11, 1, tzinfo=UTC)
    assert stream.start.tzinfo is UTC


def test_start_may_be_a_yaml_timestamp(streams_file: Path) -> None:
    streams_file.write_text(
        "streams:\n- {name: app, raw: s3://logs/r/, aggregated: s3://logs/a/, start: 2026-11-01T00:00:00Z}\n",
        encoding="utf-8",
    )
    assert load_streams(streams_file)[0].start == datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://my-bucket/raw/app/", Location("my-bucket", "raw/app/")),
        ("s3://my-bucket/raw/app", Location("my-bucket", "raw/app/")),
        ("s3://my.bucket.1/", Location("my.bucket.1", "")),
        ("s3://my-bucket/a b+%%/ü/", Location("my-bucket", "a b+%/ü/")),
        ("s3://ap-abc123-s3alias/raw/", Location("ap-abc123-s3alias", "raw/")),
        ("s3://my--x-s3-logs/raw/", Location("my--x-s3-logs", "raw/")),
    ],
)
def test_prefix_gets_the_usual_folders_of_an_hour(streams_file: Path, url: str, location: Location) -> None:
    (stream,) = load(streams_file, {**APP, "raw": url, "aggregated": "s3://parts/"})
    assert stream.raw.root == replace(location, is_raw=True)
    assert stream.at(datetime(2026, 11, 23, 8, tzinfo=UTC)).key_base == location.key + "20261123/08/"


def test_late_schedule_is_daily_by_default(streams_file: Path) -> None:
    assert load(streams_file, APP)[0].late_days == 3
    assert load_late_schedule(streams_file) == "0 5 * * *"
    load(streams_file, APP, late_schedule="30 */6 * * *", defaults={"late_days": 0})
    assert load_late_schedule(streams_file) == "30 */6 * * *"


@pytest.mark.parametrize("schedule", [5, None, "sometimes", "5 *"])
def test_late_schedule_must_be_a_cron_expression(streams_file: Path, schedule: Any) -> None:
    load(streams_file, APP, late_schedule=schedule)
    with pytest.raises(ConfigurationError, match=re.escape(f"late_schedule: {schedule!r} is not a cron")):
        load_late_schedule(streams_file)


def test_notify_is_a_list_of_classes_with_arguments(streams_file: Path) -> None:
    mail = {"class": "some.provider.Mail", "to": ["a@example.com"], "retry": 3}
    app, web = load(
        streams_file,
        {**APP, "deadline": "1h30m"},
        {**WEB, "notify": []},
        defaults={"notify": [mail, {"class": "some.provider.Chat"}]},
    )
    assert [(one.path, one.arguments) for one in app.notify] == [
        ("some.provider.Mail", {"to": ["a@example.com"], "retry": 3}),
        ("some.provider.Chat", {}),
    ]
    assert app.deadline == timedelta(minutes=90)
    assert (web.notify, web.deadline) == ((), None)


# -- invalid files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"part_sise": "32MiB"}, ["part_sise", "unknown key", "did you mean part_size?"]),
        ({"zzz": 1}, ["zzz", "unknown key", "known keys are", "quiet_period"]),
        ({"part_size": "4MiB"}, ["part_size", "4.0 MiB is out of range", "5.0 MiB to 1.0 GiB"]),
        ({"part_size": 5 * MIB - 1}, ["part_size", "out of range"]),
        ({"part_size": "2GiB"}, ["part_size", "2.0 GiB is out of range"]),
        ({"part_size": "big"}, ["part_size", "'big' is not a size", "32MiB"]),
        ({"part_size": "-32MiB"}, ["part_size", "-32MiB"]),
        ({"part_size": None}, ["part_size", "is not a size"]),
        ({"part_size": float("inf")}, ["part_size", "is not a size"]),
        ({"part_size": "64MiB", "shard_size": "32MiB"}, ["shard_size", "less than part_size"]),
        ({"shard_size": "huge"}, ["shard_size", "is not a size"]),
        ({"quiet_period": 10}, ["quiet_period", "10 is not a duration", "10m"]),
        ({"quiet_period": "0s"}, ["quiet_period", "too short"]),
        ({"timeout": "soon"}, ["timeout", "'soon' is not a duration"]),
        ({"timeout": "999999999999d"}, ["timeout", "duration"]),
        ({"timeout": "900000000d"}, ["timeout", "too long", "at most 3650d"]),
        ({"task_timeout": "30s"}, ["task_timeout", "too short", "0:01:00"]),
        ({"max_connections": 3}, ["max_connections", "4"]),
        ({"max_connections": "many"}, ["max_connections", "integer"]),
        ({"max_shards": 1025}, ["max_shards", "1024"]),
        ({"max_shards": 0}, ["max_shards", "1"]),
        ({"raw": "logs/raw/"}, ["raw", "is not an S3 URL", "s3://logs/raw/"]),
        ({"raw": "s3://Logs/raw/"}, ["raw", "'Logs' is not the name of a bucket"]),
        ({"raw": "s3://logs"}, ["raw", "is not an S3 URL", "s3://logs/"]),
        ({"raw": None}, ["raw", "is not an S3 URL"]),
        ({"aggregated": "file:///tmp"}, ["aggregated", "is not an S3 URL"]),
        ({"aggregated": "s3://logs/out#1/"}, ["aggregated", "contains '#'", "prefix without it"]),
        ({"aggregated": "s3://logs/out?a=b/"}, ["aggregated", "contains '?'", "prefix without it"]),
        ({"raw": "s3://logs--use1-az4--x-s3/raw/"}, ["raw", "directory bucket", "general purpose bucket"]),
        ({"aggregated": "s3://ap--use1-az4--xa-s3/a/"}, ["aggregated", "directory bucket", "not supported"]),
        ({"raw": "s3://ap-o0111111111--op-s3/raw/"}, ["raw", "Outposts", "general purpose bucket"]),
        ({"raw": "s3://arn:aws:s3:eu-west-1:1:accesspoint/ap/raw/"}, ["raw", "is an ARN", "-s3alias"]),
        ({"raw": "arn:aws:s3:::logs/raw/"}, ["raw", "is an ARN", "the bucket's name"]),
        ({"start": "2026-11-01T00:00:00"}, ["start", "has no offset from UTC", "2026-11-01T00:00:00Z"]),
        ({"start": "2026-11-01T00:30:00Z"}, ["start", "not a whole hour", "2026-11-01T00:00:00Z"]),
        ({"start": "yesterday"}, ["start"]),
        ({"start": "9999-12-31T23:00:00Z"}, ["start", "out of range", "1970 to 2999"]),
        ({"start": "0001-01-01T00:00:00+05:00"}, ["start", "out of range", "1970 to 2999"]),
        ({"storage_class": "GLACIER_FLEXIBLE"}, ["storage_class", "STANDARD_IA"]),
        (
            {"storage_class": "EXPRESS_ONEZONE"},
            ["storage_class", "directory buckets", "leave storage_class out"],
        ),
        ({"storage_class": "OUTPOSTS"}, ["storage_class", "not supported", "leave storage_class out"]),
        ({"storage_class": 5}, ["storage_class", "STANDARD_IA"]),
        ({"tags": ["team"]}, ["tags", "is not a mapping", "{team: search, cost-center: '42'}"]),
        ({"tags": "team=search"}, ["tags", "is not a mapping"]),
        ({"tags": {str(number): "" for number in range(11)}}, ["tags", "11 tags", "allows 10"]),
        ({"tags": {"cost-center": 42}}, ["tags", "42 is not text", "in quotes"]),
        ({"tags": {True: "x"}}, ["tags", "True is not text", "in quotes"]),
        ({"tags": {"": "x"}}, ["tags", "''", "0 characters", "1 to 128"]),
        ({"tags": {"k" * 129: "x"}}, ["tags", "129 characters", "1 to 128"]),
        ({"tags": {"team": "x" * 257}}, ["tags", "'team'", "257 characters", "up to 256"]),
        ({"tags": {"team": "a&b=c"}}, ["tags", "'a&b=c' contains '&'", "+ - = . _ : / @"]),
        ({"tags": {"te#am": "x"}}, ["tags", "'te#am' contains '#'"]),
        ({"tags": {"team": "a\r\nx: y"}}, ["tags", "contains '\\r'"]),
        ({"tags": {"AWS:team": "x"}}, ["tags", "'AWS:team'", "which AWS reserves"]),
        ({"kms_key_id": ""}, ["kms_key_id", "does not name a KMS key", "arn:aws:kms:"]),
        ({"kms_key_id": "alias/x\n"}, ["kms_key_id", "does not name a KMS key"]),
        ({"kms_key_id": 5}, ["kms_key_id"]),
        ({"check_encoding": "perhaps"}, ["check_encoding"]),
        ({"ready_object": ""}, ["ready_object"]),
        ({"allow_empty": "perhaps"}, ["allow_empty"]),
        ({"name": "a b"}, ["name"]),
        ({"name": 5}, ["name"]),
        ({"name": "late"}, ["name", "'late'"]),
        ({"name": "."}, ["name", "is a step of a path, not a name; choose another name"]),
        ({"name": ".."}, ["name", "is a step of a path, not a name; choose another name"]),
        ({"late_days": 43}, ["late_days", "42"]),
        ({"late_days": -1}, ["late_days", "0"]),
        ({5: "x"}, ["5"]),
        ({"deadline": "2h"}, ["deadline", "no notifier would report it", "give 'notify' too"]),
        ({"deadline": "2", "notify": [MAIL]}, ["deadline", "'2' is not a duration"]),
        ({"notify": MAIL}, ["notify", "is not a list", "like {class: "]),
        ({"notify": "a@example.com"}, ["notify", "is not a list"]),
        ({"notify": None}, ["notify", "is not a list"]),
        ({"notify": [MAIL, {"to": "a@example.com"}]}, ["notify: entry 2 has no 'class'", "like {class: "]),
        ({"notify": ["some.provider.Mail"]}, ["notify: entry 1 has no 'class'"]),
        ({"notify": [{"class": "Mail"}]}, ["notify: entry 1: 'Mail' is not the full name of a class"]),
        ({"notify": [{**MAIL, "at": date(2026, 1, 1)}]}, ["notify: entry 1", "put dates", "in quotes"]),
    ],
)
def test_invalid_value_is_refused_with_stream_key_and_fix(
    streams_file: Path, change: dict[Any, Any], wanted: list[str]
) -> None:
    message = refusal(streams_file, {**APP, **change})
    assert message.startswith(f"stream {change.get('name', 'app')!r}: ")
    for part in wanted:
        assert part in message


def test_tags_and_kms_key_become_headers_of_parts(streams_file: Path) -> None:
    longest = {"k" * 128: "v" * 256}
    tags = {"team": "search + logs", "größe": "", **longest}
    (stream,) = load(streams_file, {**APP, "tags": tags, "kms_key_id": "alias/logs"})
    headers = stream.write_options.headers
    assert parse_qsl(headers.pop("x-amz-tagging"), keep_blank_values=True) == sorted(tags.items())
    assert headers == {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "alias/logs",
    }


def test_order_of_tags_does_not_change_the_options() -> None:
    def options(tags: dict[str, str]) -> WriteOptions:
        return Stream.model_validate({**APP, "tags": tags}).write_options

    assert options({"a": "1", "b": "2"}) == options({"b": "2", "a": "1"})


def test_invalid_default_is_refused_with_its_key(streams_file: Path) -> None:
    message = refusal(streams_file, APP, defaults={"max_conections": 25})
    assert "max_conections: unknown key; did you mean max_connections?" in message


@pytest.mark.parametrize("key", ["name", "raw", "aggregated", "start"])
def test_missing_required_key_is_refused(streams_file: Path, key: str) -> None:
    message = refusal(streams_file, {name: value for name, value in APP.items() if name != key})
    title = "stream number 1" if key == "name" else "stream 'app'"
    assert message == f"{title}: {key}: is missing; every stream needs it"


def test_all_invalid_keys_of_a_stream_are_reported(streams_file: Path) -> None:
    message = refusal(streams_file, {**APP, "max_shards": 0, "quiet_period": "x", "zzz": 1})
    assert all(f"stream 'app': {key}: " in message for key in ("max_shards", "quiet_period", "zzz"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"aggregated": "s3://logs/raw/app/"}, {}),
        ({"aggregated": "s3://logs/raw/app/%Y%m%d/%H/out/"}, {}),
        ({}, {"raw": "s3://logs/raw/app/%Y%m%d/%H/web/"}),
        ({}, {"raw": "s3://logs/raw/{service}/"}),
        ({}, {"raw": "s3://logs/raw/a{service}/%Y%m%d/%H/x"}),
        ({}, {"raw": "s3://logs/raw/app/%Y%m%d/" + "{host}/%H/"}),
        ({}, {"aggregated": "s3://logs/aggregated/app"}),
        ({}, {"raw": "s3://logs/aggregated/app/"}),
    ],
)
def test_overlapping_prefixes_are_refused_with_both_keys(
    streams_file: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    message = refusal(streams_file, {**APP, **one}, {**WEB, **other})
    assert message.startswith("stream 'app': ")
    assert "overlaps with" in message
    for url in (*one.values(), *other.values()):
        assert url in message
    if other:
        assert "of stream 'web'" in message
    assert "a prefix of its own" in message
    url, caret = message.splitlines()[1:3]
    assert url[: caret.index("^")] in message.splitlines()[0].replace("s3://", "  s3://")
    (example,) = (line for line in message.splitlines() if line.startswith("write it like "))
    place = example.removeprefix("write it like ")
    key = "aggregated" if not other or "aggregated" in other else "raw"
    changed = [{**APP, **one}, {**WEB, **other}]
    changed[1 if other else 0][key] = place
    assert len(load(streams_file, *changed)) == 2


def test_overlap_is_shown_with_a_caret_and_an_example(streams_file: Path) -> None:
    message = refusal(streams_file, APP, {**WEB, "raw": "s3://logs/raw/{service}/"})
    assert message.splitlines()[1:] == [
        "  s3://logs/raw/{service}/",
        "                ^",
        "write it like s3://logs/raw/web/{service}/",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"raw": "s3://logs/raw/"},
        {"raw": "s3://logs/raw/app/web/"},
        {"raw": "s3://logs/raw/app/%Y/%m/%d/%H/"},
        {"raw": "s3://logs/raw/{service}/%Y/%m/%d/%H/"},
        {"aggregated": "s3://logs/"},
    ],
    ids=str,
)
def test_prefix_inside_another_is_fine_if_no_key_fits_both(streams_file: Path, other: dict[str, str]) -> None:
    web = {**APP, "name": "web", "raw": "s3://logs/raw/web/", "aggregated": "s3://logs/aggregated/web/"}
    assert len(load(streams_file, APP, {**web, **other})) == 2


def test_records_of_grouped_hours_count_as_a_prefix(streams_file: Path) -> None:
    grouped = {**APP, "raw": "s3://logs/raw/{service}/", "aggregated": "s3://logs/aggregated/{service}/"}
    web = {**APP, "name": "web", "raw": "s3://logs/aggregated/_hours/app/", "aggregated": "s3://logs/web/"}
    assert "overlaps with" in refusal(streams_file, grouped, web)


def test_similar_prefixes_do_not_overlap(streams_file: Path) -> None:
    streams = load(
        streams_file,
        {**APP, "raw": "s3://logs/raw/app", "aggregated": "s3://logs/raw/app-rolled"},
        {**APP, "name": "web", "raw": "s3://other/raw/app", "aggregated": "s3://logs/raw/app2"},
    )
    assert len(streams) == 2


def test_streams_with_equal_names_are_refused(streams_file: Path) -> None:
    other = {**APP, "raw": "s3://logs/raw/2/", "aggregated": "s3://logs/aggregated/2/"}
    assert refusal(streams_file, APP, other) == "stream 'app': there are 2 streams of this name; rename one"


@pytest.mark.parametrize("first", [True, False])
def test_streams_whose_assets_share_a_name_are_refused(streams_file: Path, first: bool) -> None:
    hours = {**WEB, "name": "app_hours"}
    pair = (APP, hours) if first else (hours, APP)
    message = refusal(streams_file, *pair)
    assert message.startswith(f"stream {pair[1]['name']!r}: name: ")
    assert "its asset 'log_rollup_app_hours' has the same name as one of stream" in message
    assert repr(pair[0]["name"]) in message
    assert load(streams_file, APP, {**WEB, "name": "apphours"}, {**WEB_2, "name": "app.hours"})


def test_derived_names_are_unique() -> None:
    names = derived_names(Stream.model_validate(APP))
    assert names == {
        "Dag": ("log_rollup_app",),
        "asset": ("log_rollup_app", "log_rollup_app_hours"),
        "task of log_rollup_late": ("find_app", "rerun_app"),
    }


def test_overlaps_are_found_at_any_position(streams_file: Path) -> None:
    streams = [
        {
            **APP,
            "name": f"s{number}",
            "raw": f"s3://logs/raw/{number}/",
            "aggregated": f"s3://logs/out/{number}/",
        }
        for number in range(20)
    ]
    assert len(load(streams_file, *streams)) == 20
    inner = {**APP, "name": "inner", "raw": "s3://logs/raw/7/%Y%m%d/%H/in/", "aggregated": "s3://other/"}
    assert (
        "stream 's7': raw: s3://logs/raw/7/ overlaps with raw s3://logs/raw/7/%Y%m%d/%H/in/ of stream 'inner'"
        in refusal(streams_file, *streams, inner)
    )


@pytest.mark.slow
def test_loading_scales_linearly_with_the_streams(streams_file: Path) -> None:
    def calls(count: int) -> int:
        lines = ["streams:"]
        for number in range(count):
            place = f"s3://logs/{{}}/{number}/"
            lines += [
                f"- name: s{number}", f"  raw: {place.format('raw')}", f"  aggregated: {place.format('out')}",
                "  start: 2026-11-01T00:00:00Z",
            ]  # fmt: skip
        streams_file.write_text("\n".join(lines), encoding="utf-8")
        made = 0

        def called(frame: FrameType, event: str, argument: object) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(called)
        try:
            assert len(load_streams(streams_file)) == count
        finally:
            sys.setprofile(before)
        return made

    calls(10)
    # Eight times the streams would take 64 times the calls if each were compared with each.
    assert calls(2000) < 12 * calls(250)


def test_changed_file_is_read_again_whatever_its_mtime(streams_file: Path) -> None:
    assert load(streams_file, APP)[0].owner == "log-rollup"
    before = streams_file.stat()
    for owner in ("one", "two"):
        load(streams_file, {**APP, "owner": owner})
        os.utime(streams_file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert load_streams(streams_file)[0].owner == owner
    load_streams(streams_file).clear()
    assert len(load_streams(streams_file)) == 1


def test_yaml_error_is_one_line(streams_file: Path) -> None:
    streams_file.write_text("streams:\n- name: [app\n  raw: x\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_streams(streams_file)
    assert "line" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "needs a list under the key 'streams'"),
        ("streams: {}", "needs a list under the key 'streams'"),
        ("- app", "needs a list under the key 'streams'"),
        ("{streams: [], stream: []}", "unknown key 'stream'"),
        ("{streams: [], 5: []}", "unknown key 5"),
        ("{streams: [], defaults: [1]}", "'defaults' has to be a mapping"),
        ("streams: [app]", "stream number 1: has to be a mapping"),
        ("streams: [", "is not YAML"),
        ("streams: 2026-13-45", "is not YAML"),
        ("streams: !!python/object:os.system {}", "is not YAML"),
        ("streams: []\nstreams: []", "key 'streams' is given twice, in line 1 and in line 2; remove one"),
        ("streams:\n- name: app\n  tags: {a: b,\n    'a': c}", "key 'a' is given twice, in line 3 and in"),
        ("defaults: {x: 1, ? x : 2}\nstreams: []", "key 'x' is given twice, in line 1"),
    ],
)
def test_file_of_another_shape_is_refused(streams_file: Path, text: str, wanted: str) -> None:
    streams_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_streams(streams_file)
    assert str(caught.value).startswith(f"{streams_file}: {wanted}")


def test_merged_keys_may_be_given_again(streams_file: Path) -> None:
    entry = "raw: s3://logs/raw/{0}/, aggregated: s3://logs/aggregated/{0}/, start: 2026-11-01T00:00:00Z"
    streams_file.write_text(
        "defaults: &all {part_size: 64MiB, late_days: 1}\n"
        "streams:\n"
        f"- &app {{<<: *all, name: app, late_days: 2, {entry.format('app')}}}\n"
        f"- {{<<: *app, <<: *all, name: web, {entry.format('web')}}}\n"
    )
    app, web = load_streams(streams_file)
    assert (app.name, app.part_size, app.late_days) == ("app", 64 * MIB, 2)
    assert (web.name, web.part_size) == ("web", 64 * MIB)


@pytest.mark.parametrize("text", ["streams: &a [*a]", "streams: [&a {b: *a}]"])
def test_file_that_contains_itself_is_refused(streams_file: Path, text: str) -> None:
    streams_file.write_text(text)
    with pytest.raises(ConfigurationError):
        load_streams(streams_file)


def test_file_that_is_not_text_is_refused(streams_file: Path) -> None:
    streams_file.write_bytes(b"\xff\xfe\x00streams")
    with pytest.raises(ConfigurationError, match=r"streams\.yaml"):
        load_streams(streams_file)


def test_missing_file_is_named_with_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yaml: cannot be read .*LOG_ROLLUP_STREAMS"):
        load_streams(tmp_path / "none.yaml")


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@given(key=st.sampled_from(sorted(Stream.model_fields)), value=_anything)
def test_any_value_gives_a_stream_or_an_error_with_its_key(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-streams.yaml"
    message = ""
    try:
        load(path, {**APP, key: value})
    except ConfigurationError as error:
        message = str(error)
    assert not message or key in message


# -- the pool ------------------------------------------------------------------------------------------


def test_more_connections_than_pool_slots_are_refused(streams_file: Path, tmp_path: Path) -> None:
    pools = tmp_path / "pools.json"
    pools.write_text(json.dumps({"s3_connections": {"slots": 40, "description": ""}}), encoding="utf-8")
    streams = load(streams_file, {**APP, "max_connections": 40}, {**WEB, "max_connections": 41})
    check_pool(streams[:1], pool_slots(pools))
    with pytest.raises(ConfigurationError) as caught:
        check_pool(streams, pool_slots(pools))
    for part in ("stream 'web'", "max_connections", "41", "40 slots", "s3_connections", "pools.json"):
        assert part in str(caught.value)


# -- expire_raw ------------------------------------------------------------------------------------------


def test_expiry_only_reports_by_default(streams_file: Path) -> None:
    (without,) = load(streams_file, APP)
    assert without.expire_raw is None
    (stream,) = load(streams_file, {**APP, "expire_raw": {"after": "14d"}})
    rules = stream.expire_raw
    assert rules is not None
    assert (rules.after, rules.mode, rules.approve_first) == (timedelta(days=14), "report", True)
    assert (rules.approve_above, rules.deep, rules.unconditional) == (None, False, False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("14d", "expire_raw: '14d' is not a mapping; write it like {after: 14d, mode: report}"),
        ({}, "expire_raw.after: is missing; expire_raw needs it"),
        ({"after": "12h"}, "expire_raw.after: 12h is out of range; give 1d to 3650d"),
        ({"after": "2d"}, "expire_raw.after: 2d is less than the 3 days of late_days"),
        ({"after": "9d", "mode": "remove"}, "expire_raw.mode: Input should be 'report' or 'delete'"),
        ({"after": "9d", "moode": "report"}, "expire_raw.moode: unknown key; did you mean mode?"),
        (
            {"after": "9d", "since": "2026-11-01T00:30:00Z"},
            "expire_raw.since: 2026-11-01 00:30:00+00:00 is not a",
        ),
        ({"after": "9d", "since": "2026-11-01T00:00:00"}, "expire_raw.since: has no offset from UTC"),
        ({"after": "9d", "approve_above": -1}, "expire_raw.approve_above: Input should be greater"),
    ],
)
def test_nonsense_in_expire_raw_is_refused(streams_file: Path, value: Any, message: str) -> None:
    assert message in refusal(streams_file, {**APP, "expire_raw": value})
