"""detect proposes a working stream for each layout of docs/SOURCES.md, and names every doubt."""

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.queries.detect import MAX_REQUESTS, Detection, detect
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
    # The times are not those of the hours, so they say nothing.
    assert not found.proposals[0].zone.is_known
