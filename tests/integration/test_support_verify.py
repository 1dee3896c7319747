"""The independent verification accepts correct hours and finds each kind of error."""

import base64
import gzip
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from awscrt.checksums import crc64nvme

from dev.servers import MotoServer, RcloneServer, S3Client, S3Server
from tests.support.fixtures import BucketFactory
from tests.support.newlines import lacks_newline
from tests.support.raw_hours import (
    ODD_NAMES,
    ODD_NAMES_BEYOND_FILES,
    RawHour,
    make_hour,
    odd_hour,
    put_objects,
)
from tests.support.verify import ENCODINGS, VerifiedHour, assert_not_complete, verify_hour
from tests.support.verify_groups import verify_groups

RAW = "raw/app/20261123/08/"
PART_SIZE = 8000

Member = tuple[str, bytes]
NEWLINES = {"": b"\n", ".gz": gzip.compress(b"\n", mtime=0)}


def _encoding(key: str) -> str:
    return next((ending for ending in ENCODINGS if key.lower().endswith(ending)), "")


@dataclass
class Layout:
    """The parts of an aggregated hour, the members of each part, and changes of its records."""

    parts: dict[str, list[Member]]
    newline: bool = False
    manifest_edits: list[Callable[[list[dict[str, Any]]], None]] = field(default_factory=list)
    marker_edits: dict[str, Any] = field(default_factory=dict)
    header_edits: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes | None] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: Mapping[str, bytes], newline: bool = False) -> "Layout":
        """The correct layout of a raw hour."""
        parts: dict[str, list[Member]] = {}
        for encoding in sorted({_encoding(key) for key in raw}):
            used = PART_SIZE + 1
            for key in sorted((key for key in raw if _encoding(key) == encoding), key=str.encode):
                if used + len(raw[key]) + 1 > PART_SIZE:
                    parts[f"part-{len(parts):05d}.log{encoding}"] = []
                    used = 0
                list(parts.values())[-1].append((key, raw[key]))
                used += len(raw[key]) + 1
        return cls(parts, newline)

    def aggregated(self) -> dict[str, bytes]:
        """Parts, manifest and marker: content by name."""
        files: dict[str, bytes | None] = {}
        lines: list[dict[str, Any]] = []
        separators = 0
        for name, members in self.parts.items():
            body = b""
            for key, data in members:
                lines.append(
                    {
                        "key": key,
                        "part": name,
                        "offset": len(body),
                        "length": len(data),
                        "etag": hashlib.md5(data, usedforsecurity=False).hexdigest(),
                        "crc64nvme": f"{crc64nvme(data):016x}",
                    }
                )
                body += data
                newline = NEWLINES.get(_encoding(key), b"")
                if (
                    self.newline
                    and lacks_newline(_encoding(key), data)
                    and len(data) + len(newline) <= PART_SIZE
                ):
                    body += newline
                    separators += len(newline)
            files[name] = body
        totals = {
            "objects": len(lines),
            "bytes_in": sum(line["length"] for line in lines),
            "separator_bytes": separators,
            "bytes_out": sum(len(body) for body in files.values() if body),
            "parts": len(files),
        }
        marker = {"stream": "app", **totals, **self.marker_edits}
        for edit in self.manifest_edits:
            edit(lines)
        text = "\n".join(json.dumps(line) for line in [totals | self.header_edits, *lines])
        files["_manifest.jsonl.gz"] = gzip.compress(text.encode())
        files["_SUCCESS"] = json.dumps(marker).encode()
        files |= self.files
        return {name: body for name, body in files.items() if body is not None}


@dataclass
class Store:
    """A bucket with a raw hour in it."""

    client: S3Client
    bucket: str
    raw: dict[str, bytes]
    aggregated: str = "aggregated/app/20261123/08/"

    def verify(self, layout: Layout, **options: Any) -> VerifiedHour:
        """Write the aggregated hour and verify it."""
        files = {self.aggregated + name: body for name, body in layout.aggregated().items()}
        put_objects(self.client, self.bucket, files, threads=4)
        options = {"part_size": PART_SIZE, "expected": self.raw, **options}
        return verify_hour(self.client, self.bucket, RAW, self.aggregated, **options)

    def assert_refused(self, layout: Layout, *messages: str, **options: Any) -> None:
        """Assert that the verification fails with these messages."""
        with pytest.raises(AssertionError) as error:
            self.verify(layout, **options)
        for message in messages:
            assert message in str(error.value)


def _make(server: RcloneServer, bucket: str) -> Store:
    client = server.client()
    encodings = ("", "", ".gz")
    raw = make_hour(client, bucket, RAW, objects=12, min_bytes=1024, max_bytes=2500, encodings=encodings)
    return Store(client, bucket, raw)


@pytest.fixture(scope="module")
def shared_store(rclone_server: RcloneServer) -> Iterator[Store]:
    bucket = f"bucket-{uuid.uuid4().hex[:16]}"
    rclone_server.create_bucket(bucket)
    yield _make(rclone_server, bucket)
    rclone_server.delete_bucket(bucket)


@pytest.fixture
def store(shared_store: Store) -> Store:
    """A shared raw hour, which no test may change, and an aggregated prefix of the test's own."""
    return replace(shared_store, aggregated=f"aggregated/{uuid.uuid4().hex}/20261123/08/")


@pytest.fixture
def own_store(rclone_server: RcloneServer, make_bucket: BucketFactory) -> Store:
    """A raw hour that the test may change."""
    return _make(rclone_server, make_bucket(rclone_server))


def _keys(raw: Mapping[str, bytes]) -> list[str]:
    """The keys of plain objects, in order."""
    return sorted(key for key in raw if not _encoding(key))


def test_correct_hour_is_accepted_and_counted(store: Store) -> None:
    facts = store.verify(Layout.of(store.raw))
    assert (facts.objects, facts.parts, facts.hidden, facts.placeholders) == (12, 3, 0, 0)
    assert facts.bytes_in == facts.bytes_out == sum(map(len, store.raw.values()))
    assert facts.marker["stream"] == "app"
    assert facts.manifest_header["objects"] == 12


def test_correct_hour_with_every_odd_name_is_accepted(s3_server: S3Server, bucket: str) -> None:
    is_moto = isinstance(s3_server, MotoServer)
    odd = odd_hour(RAW, ODD_NAMES + (ODD_NAMES_BEYOND_FILES if is_moto else ()))
    # Keys with a step that begins with a dot are hidden.
    dots = {key: body for key, body in odd.items() if "/./" in key or "/../" in key}
    packed = {key: odd[key] for key in odd.keys() - dots.keys()} | dict(
        RawHour(RAW, 9, 1024, 2000, ("", ".gz", ".bz2", ".xz", ".zst"), seed=5)
    )
    packed |= {
        RAW + "upper.GZ": gzip.compress(b"x", mtime=0),
        RAW + "empty.gz": b"",
        RAW + "vast.log": b"v" * 20_000,
    }
    hidden = {RAW + "_temporary/0/x.log": b"1", RAW + ".x.crc": b"2", RAW + "a/b/_c/d.log": b"3"} | dots
    placeholders = {RAW + "folder/": b"", RAW: b""} if is_moto else {}
    raw = packed | hidden | placeholders
    client = s3_server.client()
    put_objects(client, bucket, raw)
    facts = Store(client, bucket, raw).verify(Layout.of(packed))
    assert (facts.objects, facts.hidden, facts.placeholders) == (len(packed), len(hidden), len(placeholders))


def test_missing_separators_are_found(rclone_server: RcloneServer, make_bucket: BucketFactory) -> None:
    raw = {RAW + f"{n}.log": (b"open line", b"closed line\n", b"")[n % 3] for n in range(9)}
    raw |= {RAW + "z.gz": gzip.compress(b"x", mtime=0)}
    # Too large to pack: S3 copied it without a newline.
    raw |= {RAW + "vast.log": b"v" * PART_SIZE}
    store = Store(rclone_server.client(), make_bucket(rclone_server), raw)
    put_objects(store.client, store.bucket, raw)
    facts = store.verify(Layout.of(raw, newline=True), ensure_newline=True)
    assert (facts.separator_bytes, facts.bytes_out - facts.bytes_in) == (24, 24)
    store.assert_refused(Layout.of(raw), "ends within", ensure_newline=True)
    damaged = Layout.of(raw, newline=True)
    damaged.files["part-00002.log.gz"] = raw[RAW + "z.gz"] + gzip.compress(b"x", mtime=0)
    store.assert_refused(damaged, "should be followed by a newline", ensure_newline=True)
    store.assert_refused(Layout.of(raw, newline=True), "are not those of")


def test_hour_without_objects_is_accepted(rclone_server: RcloneServer, make_bucket: BucketFactory) -> None:
    store = Store(rclone_server.client(), make_bucket(rclone_server), {})
    assert store.verify(Layout({})).objects == 0


def test_part_numbers_beyond_five_digits_are_sorted(
    rclone_server: RcloneServer, make_bucket: BucketFactory
) -> None:
    store = Store(rclone_server.client(), make_bucket(rclone_server), dict(RawHour(RAW, 12, 1024, 2500)))
    put_objects(store.client, store.bucket, store.raw)
    parts = list(Layout.of(store.raw).parts.values())
    assert len(parts) == 3
    names = ("part-99998.log", "part-99999.log", "part-100000.log")
    assert store.verify(Layout(dict(zip(names, parts, strict=True)))).parts == 3


def test_crc_may_be_missing_only_for_a_copied_object(own_store: Store) -> None:
    vast = RAW + "zz-vast.log"
    own_store.raw[vast] = b"v" * 20_000
    put_objects(own_store.client, own_store.bucket, {vast: own_store.raw[vast]})
    layout = Layout.of(own_store.raw)
    layout.manifest_edits = [lambda lines: _line(lines, vast).update(crc64nvme=None)]
    own_store.verify(layout)
    first = _keys(own_store.raw)[0]
    layout.manifest_edits = [lambda lines: _line(lines, first).update(crc64nvme=None)]
    own_store.assert_refused(layout, f"{first} has the crc64nvme None")


def test_crc_may_be_written_in_base64(store: Store) -> None:
    def in_base64(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["crc64nvme"] = base64.b64encode(bytes.fromhex(line["crc64nvme"])).decode()

    layout = Layout.of(store.raw)
    layout.manifest_edits = [in_base64]
    store.verify(layout)


@pytest.mark.parametrize("index", [0, 3, -1])
def test_missing_object_is_found(store: Store, index: int) -> None:
    key = _keys(store.raw)[index]
    store.assert_refused(
        Layout.of({other: body for other, body in store.raw.items() if other != key}),
        f"manifest: {key} has no line",
        "_SUCCESS: objects is 11, it should be 12",
    )


def test_object_missing_despite_the_records_is_found(store: Store) -> None:
    right = Layout.of(store.raw).aggregated()
    broken = Layout.of({key: store.raw[key] for key in store.raw if key != _keys(store.raw)[2]})
    broken.files = {name: right[name] for name in ("_SUCCESS", "_manifest.jsonl.gz")}
    store.assert_refused(broken, _keys(store.raw)[2], "is missing, doubled or out of order")


def test_duplicate_object_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    members = layout.parts["part-00001.log"]
    members.insert(1, members[0])
    store.assert_refused(layout, f"manifest: {members[0][0]} has 2 lines")
    layout.manifest_edits = [lambda lines: lines.remove(_line(lines, members[0][0]))]
    store.assert_refused(layout, f"{members[0][0]} begins there")


def test_duplicate_of_the_last_object_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    last = max(name for name in layout.parts if name.endswith(".log"))
    layout.parts[last].append(layout.parts[last][-1])
    store.assert_refused(layout, f"{last}: ", "belong to no raw object")


def test_swapped_objects_are_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    members = layout.parts["part-00000.log"]
    members[0], members[1] = members[1], members[0]
    store.assert_refused(layout, f"are not those of {members[1][0]}", f"({members[0][0]} begins there)")


def test_swapped_objects_of_equal_size_are_found(
    rclone_server: RcloneServer, make_bucket: BucketFactory
) -> None:
    raw = {RAW + f"{n}.log": bytes([65 + n]) * 500 for n in range(6)}
    store = Store(rclone_server.client(), make_bucket(rclone_server), raw)
    put_objects(store.client, store.bucket, raw)
    right = Layout.of(raw).aggregated()
    layout = Layout.of(raw)
    members = layout.parts["part-00000.log"]
    members[2], members[3] = members[3], members[2]
    layout.files = {name: right[name] for name in ("_SUCCESS", "_manifest.jsonl.gz")}
    store.assert_refused(
        layout, f"the 500 bytes at offset 1000 are not those of {RAW}2.log ({RAW}3.log begins there)"
    )


def test_swapped_parts_are_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    first, second = layout.parts["part-00000.log"], layout.parts["part-00001.log"]
    layout.parts |= {"part-00000.log": second, "part-00001.log": first}
    store.assert_refused(layout, "part-00000.log: ", second[0][0])


def test_truncated_object_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    key, body = layout.parts["part-00000.log"].pop()
    layout.parts["part-00000.log"].append((key, body[:400]))
    layout.parts["part-00001.log"].insert(0, (key, body[400:]))
    store.assert_refused(
        layout, f"part-00000.log: has {_size(layout, 'part-00000.log')} bytes and ends within {key}"
    )


def test_object_without_its_last_byte_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    key, body = layout.parts["part-00000.log"][1]
    layout.parts["part-00000.log"][1] = (key, body[:-1])
    store.assert_refused(layout, key, f"has the length {len(body) - 1}, it should be {len(body)}")


def test_changed_byte_is_found(store: Store) -> None:
    right = Layout.of(store.raw).aggregated()
    layout = Layout.of(store.raw)
    key, body = layout.parts["part-00000.log"][1]
    layout.parts["part-00000.log"][1] = (key, body[:-2] + b"#" + body[-1:])
    layout.files = {name: right[name] for name in ("_SUCCESS", "_manifest.jsonl.gz")}
    store.assert_refused(layout, f"are not those of {key} ({key} begins there)")


def test_stale_part_is_found(store: Store) -> None:
    right = Layout.of(store.raw).aggregated()
    layout = Layout.of(store.raw)
    layout.files = {"part-00009.log": right["part-00000.log"]}
    store.assert_refused(
        layout,
        "part-00009.log: ",
        "belong to no raw object",
        "part-00009.log: this part is in no line of the manifest",
        "parts is 3, it should be 4",
    )


def test_stale_empty_part_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    layout.files = {"part-00009.log": b""}
    store.assert_refused(layout, "part-00009.log: this part is in no line of the manifest")


def test_part_that_is_too_large_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    layout.parts["part-00000.log"] += layout.parts["part-00001.log"]
    del layout.parts["part-00001.log"]
    store.assert_refused(layout, "part-00000.log: has", "more than the 8000 of a part")


def test_object_of_another_encoding_in_a_part_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    zipped = next(name for name in layout.parts if name.endswith(".gz"))
    layout.parts[zipped].insert(0, layout.parts["part-00000.log"].pop())
    store.assert_refused(layout, zipped)


def test_part_number_used_twice_is_found(store: Store) -> None:
    layout = Layout.of(store.raw)
    layout.parts = {
        "part-00000.log.gz" if name.endswith(".gz") else name: members
        for name, members in layout.parts.items()
    }
    store.assert_refused(layout, "2 parts have the number 0")


def test_packed_hidden_object_is_found(own_store: Store) -> None:
    hidden = {RAW + "_tmp/x.log": b"hidden\n" * 200}
    put_objects(own_store.client, own_store.bucket, hidden)
    own_store.raw |= hidden
    own_store.assert_refused(
        Layout.of(own_store.raw), f"manifest: {RAW}_tmp/x.log is no raw object of this hour"
    )


@pytest.mark.parametrize(
    "name", ["_rollup/1234/plan.json", "notes.txt", "part-1.log", "part-00000.log.tmp-1"]
)
def test_any_other_object_is_found(store: Store, name: str) -> None:
    layout = Layout.of(store.raw)
    layout.files = {name: b"x"}
    store.assert_refused(layout, f"{name}: is not allowed in a complete hour")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"offset": 1}, "should be at ('part-00000.log', 1), it is at ('part-00000.log', 0)"),
        ({"part": "part-00001.log"}, "should be at ('part-00001.log', 0), it is at"),
        ({"length": 1}, "has the length 1, it should be"),
        ({"etag": "0" * 32}, f"has the etag '{'0' * 32}', it should be"),
        ({"crc64nvme": "0" * 16}, f"has the crc64nvme '{'0' * 16}', it should be"),
        ({"crc64nvme": "what?"}, "has the crc64nvme 'what?', it should be"),
        ({"key": RAW + "stranger.log"}, f"{RAW}stranger.log is no raw object of this hour"),
    ],
)
def test_wrong_manifest_line_is_found(store: Store, edit: dict[str, Any], message: str) -> None:
    layout = Layout.of(store.raw)
    layout.manifest_edits = [lambda lines: _line(lines, _keys(store.raw)[0]).update(edit)]
    store.assert_refused(layout, "1 problems" if "key" not in edit else "2 problems", message)


@pytest.mark.parametrize("name", ["objects", "bytes_in", "separator_bytes", "bytes_out", "parts"])
def test_wrong_total_is_found(store: Store, name: str) -> None:
    layout = Layout.of(store.raw)
    layout.marker_edits = {name: 77}
    store.assert_refused(layout, "1 problems", f"_SUCCESS: {name} is 77, it should be")


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("_SUCCESS", None, "_SUCCESS: does not exist"),
        ("_SUCCESS", b"", "_SUCCESS: is not JSON"),
        ("_SUCCESS", b"[]", "_SUCCESS: should be a JSON object"),
        ("_manifest.jsonl.gz", None, "_manifest.jsonl.gz: does not exist"),
        ("_manifest.jsonl.gz", b"{}", "_manifest.jsonl.gz: cannot be read"),
        (
            "_manifest.jsonl.gz",
            gzip.compress(b"{}\n{}\n", mtime=0)[:-4],
            "_manifest.jsonl.gz: cannot be read",
        ),
    ],
)
def test_missing_or_damaged_record_is_found(
    store: Store, name: str, body: bytes | None, message: str
) -> None:
    layout = Layout.of(store.raw)
    layout.files = {name: body}
    store.assert_refused(layout, message)


def test_raw_hour_that_differs_from_expected_is_found(store: Store) -> None:
    changed, gone = _keys(store.raw)[:2]
    expected = store.raw | {changed: b"something else", RAW + "gone.log": b"x"}
    del expected[gone]
    store.assert_refused(
        Layout.of(store.raw),
        f"{changed}: the raw object has other bytes than expected",
        f"{RAW}gone.log: the raw object is missing",
        f"{gone}: this raw object is not expected",
        expected=expected,
    )


def test_raw_object_is_read_unless_its_etag_proves_it(
    rclone_server: RcloneServer, make_bucket: BucketFactory
) -> None:
    store = _make(rclone_server, make_bucket(rclone_server))
    read: list[str] = []
    store.client.meta.events.register(
        "provide-client-params.s3.GetObject", lambda params, **_: read.append(params["Key"])
    )
    store.verify(Layout.of(store.raw))
    assert not [key for key in read if key.startswith(RAW)]
    store.verify(Layout.of(store.raw), expected=None)
    assert store.raw.keys() <= set(read)


def test_ready_object_is_not_packed(own_store: Store) -> None:
    put_objects(own_store.client, own_store.bucket, {RAW + "DONE": b"done"})
    own_store.verify(Layout.of(own_store.raw), ready_object="DONE")
    own_store.assert_refused(Layout.of(own_store.raw), "DONE")


def test_hour_without_marker_is_not_complete(store: Store) -> None:
    assert_not_complete(store.client, store.bucket, store.aggregated)
    store.verify(Layout.of(store.raw))
    with pytest.raises(AssertionError, match="completion marker"):
        assert_not_complete(store.client, store.bucket, store.aggregated)


GROUPS = ("api", "web")
HOME = "packed/_hours/app/20261123/08/"


@dataclass
class GroupedStore:
    """An hour with two groups, each as its layout says, and the records of the hour that match them.

    :param home_edits: changes of files below the home of the hour
    """

    store: Store
    raw: dict[str, dict[str, bytes]]
    layouts: dict[str, Layout]
    home_edits: dict[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """All files that a run has written, by key."""
        files: dict[str, bytes] = {}
        groups, rows = [], []
        for group in GROUPS:
            folder = f"{group}/20261123/08/"
            written = self.layouts[group].aggregated()
            files |= {f"packed/{folder}{name}": body for name, body in written.items()}
            header, *lines = map(json.loads, gzip.decompress(written["_manifest.jsonl.gz"]).splitlines())
            totals = {name: header[name] for name in header if name != "group"}
            groups.append({"folder": folder, "captures": {"service": group}, **totals})
            rows += [line | {"part": folder + line["part"]} for line in lines]
        sums = {name: sum(group[name] for group in groups) for name in totals}
        marker = {"plan_id": "1", **sums, "groups": groups}
        text = "\n".join(json.dumps(line) for line in [marker, *rows])
        home = {"_SUCCESS": json.dumps(marker).encode(), "_manifest.jsonl.gz": gzip.compress(text.encode())}
        return files | {HOME + name: body for name, body in (home | self.home_edits).items()}

    def verify(self) -> dict[str, VerifiedHour]:
        """Write the hour and verify it."""
        put_objects(self.store.client, self.store.bucket, self.files(), threads=4)
        folders = {f"raw/{group}/20261123/08/": f"packed/{group}/20261123/08/" for group in GROUPS}
        expected = {key: body for bodies in self.raw.values() for key, body in bodies.items()}
        return verify_groups(
            self.store.client, self.store.bucket, folders, HOME, part_size=PART_SIZE, expected=expected
        )


@pytest.fixture
def grouped(rclone_server: RcloneServer, make_bucket: BucketFactory) -> GroupedStore:
    store = Store(rclone_server.client(), make_bucket(rclone_server), {})
    raw = {
        group: make_hour(
            store.client, store.bucket, f"raw/{group}/20261123/08/", objects=6, min_bytes=1024, max_bytes=2500
        )
        for group in GROUPS
    }
    captures = {group: {"group": {"service": group}} for group in GROUPS}
    layouts = {
        group: replace(Layout.of(raw[group]), marker_edits=captures[group], header_edits=captures[group])
        for group in GROUPS
    }
    return GroupedStore(store, raw, layouts)


def test_correct_groups_are_accepted_and_counted(grouped: GroupedStore) -> None:
    groups = grouped.verify()
    assert [group.objects for group in groups.values()] == [6, 6]


def test_object_in_the_part_of_another_group_is_found(grouped: GroupedStore) -> None:
    moved = grouped.layouts["api"].parts["part-00000.log"].pop()
    grouped.layouts["web"].parts["part-00000.log"].append(moved)
    with pytest.raises(AssertionError, match=moved[0]):
        grouped.verify()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"objects": 11}, "_SUCCESS of the hour: objects: 11, should be 12"),
        ({"plan_id": "2"}, "plan_id of the hour's records: '2', should be '1'"),
        ({"groups": []}, "_SUCCESS of the hour: folders: "),
        ({"group": {"service": "web"}}, "_SUCCESS of the hour: group: "),
    ],
)
def test_wrong_marker_of_a_grouped_hour_is_found(
    grouped: GroupedStore, edit: dict[str, Any], message: str
) -> None:
    marker = json.loads(grouped.files()[f"{HOME}_SUCCESS"])
    grouped.home_edits = {"_SUCCESS": json.dumps(marker | edit).encode()}
    with pytest.raises(AssertionError, match=message):
        grouped.verify()


def test_wrong_captures_of_a_group_are_found(grouped: GroupedStore) -> None:
    grouped.layouts["web"].marker_edits = {"group": {"service": "api"}}
    with pytest.raises(AssertionError, match="captures of web"):
        grouped.verify()


def test_rest_of_a_run_in_the_home_is_found(grouped: GroupedStore) -> None:
    grouped.home_edits = {"_rollup/claim.json": b"{}"}
    with pytest.raises(AssertionError, match=r"files in .*claim"):
        grouped.verify()


def _line(lines: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    return next(line for line in lines if line["key"] == key)


def _size(layout: Layout, name: str) -> int:
    return sum(len(body) for _, body in layout.parts[name])
