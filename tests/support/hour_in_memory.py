"""A small hour in the fake store: runs its steps, and checks the result without using their code."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Self

from awscrt.checksums import crc64nvme

from include.log_rollup.hour.manifest import HourTotals
from include.log_rollup.hour.plan import Plan, content_id_of, digest_of, make_plan
from include.log_rollup.hour.selection import select
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.monitor import Peaks
from include.log_rollup.newlines import newline_of
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.storage.protocol import ObjectInfo, ObjectStore
from include.log_rollup.streams import Stream
from tests.support.fake_store import FakeStore, Operation, Stored
from tests.support.newlines import NEWLINE_BYTES, lacks_newline
from tests.support.raw_hours import AGGREGATED, HOUR, RAW, name_of

WORK = AGGREGATED + "_rollup/"
MARKER = AGGREGATED + "_SUCCESS"
MANIFEST = AGGREGATED + "_manifest.jsonl.gz"
CLAIM = WORK + "claim.json"
REMOVALS = WORK + "removals/"

# Endings of objects that never share a part with plain text: all that can be joined, and some that cannot.
ENDINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".snappy", ".zz", ".br", ".z", ".tgz", ".zlib", ".pb")

_TAG = re.compile(r"(part-[0-9]{5,})-[0-9a-f]{8}(?=\.log)")


def make_stream(**settings: Any) -> Stream:
    """A stream with parts of 64 bytes and shards of 128 bytes, which the streams file does not allow."""
    stream = Stream(
        name="app",
        raw=RawTemplate.parse("s3://logs/raw/app/"),
        aggregated=AggregatedTemplate.parse("s3://logs/aggregated/app/"),
        start=datetime(2026, 11, 1, tzinfo=UTC),
        max_connections=8,
    )
    return stream.model_copy(update={"part_size": 64, "shard_size": 128, **settings})


def produce(store: FakeStore, hour: Mapping[str, bytes], **how: Any) -> None:
    """Write raw objects, given by name below the hour's prefix."""
    for name, body in hour.items():
        store.produce(RAW + name, body, **how)


def run_hour(
    store: ObjectStore,
    stream: Stream,
    run_id: str = "a run",
    *,
    drop_vanished: bool = False,
    repack: bool = False,
) -> HourTotals:
    """Run all steps in the order of the Dag."""
    return finish_hour(store, stream, plan_hour(store, stream, HOUR, run_id, drop_vanished, repack))


def finish_hour(store: ObjectStore, stream: Stream, planned: Planned) -> HourTotals:
    """Run the steps after plan_hour."""
    for ref in planned.shards:
        pack_shard(store, stream, ref)
    validate_hour(store, stream, HOUR)
    return complete_hour(store, stream, HOUR)


def encoding_of(name: str) -> str:
    """The ending because of which an object does not share a part with plain text; empty for plain text."""
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")


def inputs(store: FakeStore, stream: Stream) -> dict[str, bytes]:
    """The raw objects that the parts have to contain, name to body, in the order of the keys' UTF-8 bytes."""
    chosen = {}
    for key in store.listing(RAW):
        name, body = key.removeprefix(RAW), store.body(key)
        hidden = any(step.startswith(("_", ".")) for step in name.split("/"))
        placeholder = not body and (name == "" or name.endswith("/"))
        if not hidden and not placeholder and name != stream.ready_object:
            chosen[name] = body
    return chosen


def expected(store: FakeStore, stream: Stream) -> dict[str, bytes]:
    """For each encoding, the concatenated bytes that its parts have to contain."""
    joined: dict[str, bytes] = {}
    for name, body in inputs(store, stream).items():
        encoding = encoding_of(name)
        joined[encoding] = joined.get(encoding, b"") + body + newline_after(stream, name, body)
    return joined


def newline_after(stream: Stream, name: str, body: bytes) -> bytes:
    """What a part has between this raw object and the next one."""
    encoding = encoding_of(name)
    # An object that does not fit into a part with a newline is copied unchanged.
    is_copied = len(body) + NEWLINE_BYTES.get(encoding, 0) > stream.part_size
    if not stream.ensure_newline or is_copied or not lacks_newline(encoding, body):
        return b""
    return newline_of(encoding)


def parts(store: FakeStore) -> dict[str, bytes]:
    """The parts in the bucket, by name."""
    return {key.removeprefix(AGGREGATED): store.body(key) for key in store.listing(AGGREGATED + "part-")}


def numbered(names: Iterable[str]) -> list[str]:
    """Names of parts without the fingerprints, such as ``part-00001.log``."""
    return [without_tags(name) for name in names]


def without_tags(text: str) -> str:
    """The text with the fingerprints of part names removed."""
    return _TAG.sub(r"\1", text)


def part_key(store: FakeStore, number: int) -> str:
    """The key of the only part with this number."""
    (key,) = store.listing(f"{AGGREGATED}part-{number:05d}")
    return key


def part_name(store: FakeStore, number: int) -> str:
    """The name of the only part with this number."""
    return part_key(store, number).removeprefix(AGGREGATED)


def joined_parts(store: FakeStore) -> dict[str, bytes]:
    """For each encoding, its parts concatenated in the order of their numbers."""
    return _joined(parts(store))


def _joined(found: Mapping[str, bytes]) -> dict[str, bytes]:
    joined: dict[str, bytes] = {}
    for name, body in found.items():
        encoding = name.partition(".log")[2]
        joined[encoding] = joined.get(encoding, b"") + body
    return joined


def marker_of(store: FakeStore) -> dict[str, Any]:
    """The completion marker."""
    marker: dict[str, Any] = json.loads(store.body(MARKER))
    return marker


def manifest_of(store: FakeStore) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the rows of the manifest."""
    header, *rows = gzip.decompress(store.body(MANIFEST)).decode().removesuffix("\n").split("\n")
    return json.loads(header), [json.loads(row) for row in rows]


def assert_complete(store: FakeStore, stream: Stream, *, died: bool = False) -> None:
    """Assert that the hour is complete, contains the expected objects and nothing else, and its records are right.

    :param died: whether a run may have died while it deleted parts, which leaves its removal record
    """
    assert_right(store, stream)
    header, _ = manifest_of(store)
    names = [entry["name"] for entry in header["parts_table"]]
    numbers = [int(name[5:10]) for name in names]
    if _is_packed_once(store, stream):
        assert numbers == list(range(len(names)))
    # Kept parts keep their numbers; several parts that were split off one part have the same.
    assert numbers == sorted(numbers)
    found = [key for key in store.listing(AGGREGATED) if not (died and key.startswith(REMOVALS))]
    assert found == sorted(
        [MARKER, MANIFEST, *(AGGREGATED + name for name in names)], key=lambda key: key.encode()
    )
    assert header["foreign"] == 0


def assert_right(store: FakeStore, stream: Stream) -> None:
    """Assert that the parts in the manifest contain the expected bytes, and that the records are right."""
    raw = inputs(store, stream)
    header, rows = manifest_of(store)
    found = _by_manifest(store)
    if _is_packed_once(store, stream) and not any("split_of" in entry for entry in header["parts_table"]):
        # If a part was split, its damaged objects come first, so the order of the bytes differs.
        assert _joined(found) == expected(store, stream)
    assert sorted(row["key"] for row in rows) == sorted(RAW + name for name in raw)
    for row in rows:
        body = raw[row["key"].removeprefix(RAW)]
        assert found[row["part"]][row["offset"] : row["offset"] + row["length"]] == body
        assert row["length"] == len(body)
        assert row["etag"] == store.stored(row["key"]).etag
        assert row["crc64nvme"] == f"{crc64nvme(body):016x}"
    for entry in header["parts_table"]:
        body = found[entry["name"]]
        members = [row["key"].removeprefix(RAW) for row in rows if row["part"] == entry["name"]]
        assert members == sorted(members, key=str.encode)
        assert body == b"".join(raw[name] + newline_after(stream, name, raw[name]) for name in members)
        assert (entry["size"], entry["crc64nvme"]) == (len(body), f"{crc64nvme(body):016x}")
        assert len(body) <= stream.part_size or entry["objects"] == 1
    marker = marker_of(store)
    sizes = {
        "objects": len(raw),
        "bytes_in": sum(map(len, raw.values())),
        "bytes_out": sum(map(len, found.values())),
        "parts": len(found),
    }
    sizes["separator_bytes"] = sizes["bytes_out"] - sizes["bytes_in"]
    for record in (marker, header):
        assert {name: record[name] for name in sizes} == sizes
    for name in ("plan_id", "foreign", "damaged"):
        assert marker[name] == header[name]


def _is_packed_once(store: FakeStore, stream: Stream) -> bool:
    """Whether the complete hour has the parts of a plan without kept parts, in key order over all parts."""
    return content_id_of(marker_of(store)["plan_id"]) == content_of_plan(store, stream)


def _by_manifest(store: FakeStore) -> dict[str, bytes]:
    """The parts that the manifest names, in the order of the manifest."""
    found = parts(store)
    header, _ = manifest_of(store)
    return {entry["name"]: found[entry["name"]] for entry in header["parts_table"]}


def complete_in_format_1(store: FakeStore, parts_of: Iterable[Iterable[str]]) -> str:
    """Complete the hour as the version with record format 1 did, and return the plan_id.

    :param parts_of: for each part, the names of its raw objects, all of one encoding
    """
    table: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    plan = hashlib.blake2b(b"1\n", digest_size=10)
    for number, names in enumerate(parts_of):
        keys = [RAW + name for name in names]
        encoding = encoding_of(keys[0])
        name = f"part-{number:05d}.log{encoding}"
        text = f"1 {encoding} False 0 None\n"
        body = b""
        for key in keys:
            content, etag = store.body(key), store.stored(key).etag
            text += f"{len(key)} {key} {len(content)} {etag}\n"
            rows.append(
                {
                    "key": key, "part": name, "offset": len(body), "length": len(content), "etag": etag,
                    "crc64nvme": f"{crc64nvme(content):016x}", "checked": "crc64nvme",
                }
            )  # fmt: skip
            body += content
        fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        plan.update(f"{name} {fingerprint}\n".encode())
        table.append(
            {
                "name": name, "encoding": encoding, "size": len(body),
                "etag": store.produce(AGGREGATED + name, body), "crc64nvme": f"{crc64nvme(body):016x}",
                "objects": len(keys), "copied": False, "fingerprint": fingerprint,
                "proof": "stored-crc64nvme",
            }
        )  # fmt: skip
    size = sum(row["length"] for row in rows)
    totals = {
        "format": 1, "stream": "app", "hour": "2026-11-23T08:00:00Z", "plan_id": plan.hexdigest(),
        "objects": len(rows), "bytes_in": size, "separator_bytes": 0, "bytes_out": size, "parts": len(table),
        "left_out": {"hidden": 0, "placeholders": 0, "markers": 0},
        "verified": {"parts": {"stored-crc64nvme": len(table)}, "objects": {"crc64nvme": len(rows)}},
    }  # fmt: skip
    measured = {
        "max_connections": 8, "sockets": 3, "open_files": 20, "rss_bytes": 10**8, "seconds": 1.5,
        "cpu_seconds": 0.5, "requests": {"GET": len(rows)}, "retries": 0, "throttles": 0,
        "parts_written": len(table), "parts_left_alone": 0,
    }  # fmt: skip
    header = totals | {
        "measured": measured, "raw_prefix": RAW, "validated_at": "2026-11-23T09:30:00+00:00",
        "parts_table": table,
    }  # fmt: skip
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (header, *rows))
    # Format 1 has header and rows in one gzip member.
    store.produce(MANIFEST, gzip.compress(text.encode(), mtime=0))
    store.produce(MARKER, json.dumps(totals, indent=1).encode())
    return plan.hexdigest()


def assert_not_complete(store: FakeStore) -> None:
    """Assert that the hour has no completion marker."""
    assert not store.has(MARKER)


def content_of_plan(store: FakeStore, stream: Stream) -> str:
    """The content id of a plan of the present raw hour without kept parts."""
    return _fresh_plan(store, stream).content_id


def _fresh_plan(store: FakeStore, stream: Stream) -> Plan:
    listed = [ObjectInfo(key, len(store.body(key)), store.stored(key).etag) for key in store.listing(RAW)]
    chosen, left_out = select(listed, name_of, stream.input_rules)
    return make_plan(chosen, left_out, stream.part_size, stream.write_options, unjoinable=stream.unjoinable)


class Unwatched:
    """A monitor that records nothing."""

    def __init__(self, *_: object) -> None:
        self.peaks = Peaks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class MarkerGuard:
    """Checks the store after each write: while the marker exists, the parts are exactly the expected ones.

    Expected is the raw hour at the time of the plan that the marker names. After a test has damaged a part, the
    pipeline must remove the marker before it changes any part.

    :param strays: whether parts may exist that are not in the manifest, because two runs compete or a run has
        been overtaken
    """

    def __init__(self, store: FakeStore, stream: Stream, *, strays: bool = False) -> None:
        self.violations: list[str] = []
        self.strays = strays
        self._store = store
        self._stream = stream
        self._right: dict[str, dict[str, bytes]] = {}
        # The raw objects, by the digest of the raw hour.
        self._inputs: dict[str, dict[str, bytes]] = {}
        self._damaged: dict[str, bytes] | None = None
        # The marker, manifest and parts that were found to be right: most writes change other objects.
        self._checked: dict[str, Stored] = {}
        store.watcher = self.look
        self.learn()

    def learn(self) -> None:
        """Accept plans of the present raw hour."""
        plan = _fresh_plan(self._store, self._stream)
        self._right[plan.content_id] = expected(self._store, self._stream)
        self._inputs[digest_of(plan.digests)] = inputs(self._store, self._stream)

    def over(self, store: FakeStore) -> "MarkerGuard":
        """A guard for a fork of the store, which accepts the same plans."""
        other = MarkerGuard(store, self._stream, strays=self.strays)
        other._right = {**self._right, **other._right}
        other._inputs = {**self._inputs, **other._inputs}
        return other

    def damaged(self) -> None:
        """Remember that the test has changed a part."""
        self._damaged = parts(self._store)

    def forgive(self) -> None:
        """Accept the present parts; from now on they may only be kept or repaired."""
        self.violations.clear()
        self.damaged()

    def look(self, operation: Operation) -> None:
        """Check the store after a write."""
        if not self._store.has(MARKER):
            self._damaged = None
            return
        objects = {
            key: stored
            for key, stored in self._store.snapshot(AGGREGATED).items()
            if not key.startswith(WORK)
        }
        if objects == self._checked or parts(self._store) == self._damaged:
            return
        problem = self._problem()
        if problem:
            self.violations.append(f"after {operation} {problem}")
        else:
            self._checked = objects

    def _problem(self) -> str | None:
        try:
            marker, (header, rows) = marker_of(self._store), manifest_of(self._store)
            found = _by_manifest(self._store)
        except (KeyError, ValueError, OSError, EOFError) as error:
            return f"the marker exists, but the records cannot be read: {error!r}"
        plan_id = marker["plan_id"]
        if header["plan_id"] != plan_id:
            return f"the marker is of plan {plan_id}, the manifest of {header['plan_id']}"
        content = content_id_of(plan_id)
        if content in self._right:
            is_right = _joined(found) == self._right[content]
        elif raw := self._inputs.get(marker.get("raw_digest", "")):
            is_right = self._holds(found, rows, raw)
        else:
            is_right = _joined(found) in self._right.values()
        if not is_right:
            return f"the marker of {plan_id} exists, but the parts are others"
        strays = parts(self._store).keys() - found.keys()
        if strays and not self.strays:
            return f"the marker exists, with stray parts {sorted(strays)}"
        return None

    def _holds(
        self, found: Mapping[str, bytes], rows: Iterable[Mapping[str, Any]], raw: Mapping[str, bytes]
    ) -> bool:
        """Whether parts hold exactly these raw objects, each once and in key order within its part."""
        members: dict[str, list[str]] = {name: [] for name in found}
        for row in rows:
            members[row["part"]].append(row["key"].removeprefix(RAW))
        names = [name for inside in members.values() for name in inside]
        content = {name: body + newline_after(self._stream, name, body) for name, body in raw.items()}
        return sorted(names) == sorted(raw) and all(
            inside == sorted(inside, key=str.encode)
            and found[part] == b"".join(map(content.__getitem__, inside))
            for part, inside in members.items()
        )
