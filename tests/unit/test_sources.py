"""The entries of docs/SOURCES.md put the keys that manuals print into the right hour and group."""

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import combinations, product
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
import zstandard

from include.log_rollup.hour.overlap import overlap
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate, Template, check_pair
from include.log_rollup.streams import INCLUDE

PAGE = INCLUDE.parent / "docs" / "SOURCES.md"
TEXT = PAGE.read_text(encoding="utf-8")
TABLE: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "source_keys.yaml").read_text(encoding="utf-8")
)
STREAMS: dict[str, dict[str, Any]] = {source["stream"]["name"]: source["stream"] for source in TABLE}
KEYS = [(source["stream"]["name"], key) for source in TABLE for key in source["keys"]]
ORIGINS = {"verbatim", "elsewhere", "composed"}
# Name of the part in the examples of the page.
PART = "part-00000-3f9c2a1b.log.gz"
DOCUMENTS = [{"Records": [{"eventID": "1"}, {"eventID": "2"}]}, {"Records": [{"eventID": "3"}]}]
EVENTS = [event for document in DOCUMENTS for event in document["Records"]]


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def entries() -> list[dict[str, Any]]:
    """Return the stream entries of the page; other YAML on it configures a producer."""
    files = [yaml.safe_load(block) for block in blocks("yaml")]
    return [entry for file in files if "streams" in file for entry in file["streams"]]


def raw_template(name: str) -> RawTemplate:
    return RawTemplate.parse(STREAMS[name]["raw"], STREAMS[name].get("timezone", "UTC"))


def aggregated_template(name: str) -> AggregatedTemplate:
    return AggregatedTemplate.parse(STREAMS[name]["aggregated"])


def test_page_has_the_entries_of_the_table() -> None:
    documented = entries()
    assert sorted(entry["name"] for entry in documented) == sorted(STREAMS)
    assert {entry["name"]: entry for entry in documented} == STREAMS


def test_names_of_the_streams_are_unique() -> None:
    assert len(STREAMS) == len(TABLE)


def test_page_names_the_address_of_each_pattern() -> None:
    assert [source["url"] for source in TABLE if source["url"] not in TEXT] == []


@pytest.mark.parametrize("name", STREAMS)
def test_aggregated_uses_captures_of_raw_only(name: str) -> None:
    check_pair(raw_template(name), aggregated_template(name))


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_key_is_in_its_hour_and_group(name: str, key: dict[str, Any]) -> None:
    raw, aggregated = raw_template(name), aggregated_template(name)
    assert key["origin"] in ORIGINS
    assert ("at" in key) == (key["origin"] == "elsewhere")
    match = raw.match(key["key"])
    if key["hour"] is None:
        assert match is None
        return
    assert match is not None
    assert match.hour == key["hour"]
    captures = dict(zip(raw.captures, match.captures, strict=True))
    group = [captures[capture] for capture in aggregated.captures]
    assert dict(zip(aggregated.captures, group, strict=True)) == key["group"]
    part = aggregated.match(aggregated.render(match.hour, group) + PART)
    assert part is not None
    assert (part.hour, list(part.captures), part.name) == (match.hour, group, PART)


@pytest.mark.parametrize("name", STREAMS)
def test_each_entry_has_a_key_in_an_hour(name: str) -> None:
    assert any(key["hour"] for stream, key in KEYS if stream == name)


@pytest.mark.parametrize(("name", "key"), [pair for pair in KEYS if pair[1]["hour"]])
def test_listing_of_the_hour_finds_the_key(name: str, key: dict[str, Any]) -> None:
    raw = raw_template(name)
    match = raw.match(key["key"])
    assert match is not None
    captures = dict(zip(raw.captures, match.captures, strict=True))
    values: dict[str, str] = {}
    while level := raw.next_level(values):
        # A listing with the delimiter returns the key up to the first slash behind the prefix.
        assert key["key"].startswith(level.prefix)
        end = key["key"].index("/", len(level.prefix)) + 1
        assert level.value(key["key"][:end]) == captures[level.capture]
        values[level.capture] = captures[level.capture]
    assert any(key["key"].startswith(prefix) for prefix in raw.prefixes(match.hour, values))


# The column "hour listed by" of the page: whether the prefix of an hour leads to its own keys only.
LISTED_BY_DAY = {"alb", "nlb", "clb", "vpc", "resolver"}


@pytest.mark.parametrize("name", STREAMS)
def test_hour_has_its_own_prefix_where_the_page_says_so(name: str) -> None:
    raw = raw_template(name)
    values: dict[str, str] = {}
    while level := raw.next_level(values):
        values[level.capture] = "value"
    hours = [datetime(2026, 11, 24, hour, tzinfo=UTC) for hour in (8, 9)]
    prefixes = [prefix for hour in hours for prefix in raw.prefixes(hour, values)]
    assert (len(set(prefixes)) < len(hours)) == (name in LISTED_BY_DAY)


def test_entries_can_be_in_one_file() -> None:
    raw = {name: raw_template(name) for name in STREAMS}
    aggregated = {name: aggregated_template(name) for name in STREAMS}
    pairs: list[tuple[Template, Template]] = [
        *combinations(raw.values(), 2),
        *combinations(aggregated.values(), 2),
    ]
    pairs += product(raw.values(), aggregated.values())
    assert [key for key in (overlap(one, other) for one, other in pairs) if key] == []


def gzip_member(content: bytes) -> bytes:
    return gzip.compress(content)


def zstd_frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def part_of(compress: Callable[[bytes], bytes], newline: bytes) -> bytes:
    """Return the documents as compressed objects end to end, each followed by a compressed ``newline``."""
    objects = [compress(json.dumps(document).encode()) for document in DOCUMENTS]
    return b"".join(item + (compress(newline) if newline else b"") for item in objects)


def run_block(word: str, **names: Any) -> dict[str, Any]:
    """Run the Python block of the page that contains a word and return its names."""
    (block,) = (block for block in blocks("python") if word in block)
    namespace: dict[str, Any] = {"gzip": gzip, "json": json, "Iterator": Iterator, "Any": Any, **names}
    exec(block, namespace)
    return namespace


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_reader_of_the_page_separates_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newline: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(PART).write_bytes(part_of(gzip_member, newline))
    names = run_block("def documents")
    assert names["events"] == EVENTS
    plain = part_of(lambda content: content, newline).decode()
    assert list(names["documents"](plain)) == DOCUMENTS


@pytest.mark.parametrize("newline", [b"", b"\n"])
@pytest.mark.parametrize(
    ("command", "compress", "extension"), [("zcat", gzip_member, ".gz"), ("zstdcat", zstd_frame, ".zst")]
)
def test_jq_separates_documents(
    tmp_path: Path, command: str, compress: Callable[[bytes], bytes], extension: str, newline: bytes
) -> None:
    missing = [tool for tool in (command, "jq") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    file = tmp_path / f"part-00000-3f9c2a1b.log{extension}"
    file.write_bytes(part_of(compress, newline))
    text = subprocess.run([command, file], check=True, capture_output=True).stdout
    events = subprocess.run(["jq", "-c", ".Records[]"], input=text, check=True, capture_output=True).stdout
    assert [json.loads(line) for line in events.splitlines()] == EVENTS


def test_duckdb_separates_documents(tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(part_of(gzip_member, b""))
    (query,) = re.findall(r"`(SELECT unnest\(Records\).*?)`", TEXT)
    rows = duckdb.connect().execute(query.replace(PART, str(tmp_path / PART))).fetchall()
    assert [str(event["eventID"]) for (event,) in rows] == [event["eventID"] for event in EVENTS]


def test_members_with_a_newline_make_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    members = [gzip_member(json.dumps(document).encode()) for document in DOCUMENTS]
    Path(PART).write_bytes(b"".join(members))
    objects = [
        {"offset": 0, "length": len(members[0])},
        {"offset": len(members[0]), "length": len(members[1])},
    ]
    run_block("newline = gzip.compress", objects=objects)
    lines = gzip.decompress(Path("lines.log.gz").read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == DOCUMENTS
