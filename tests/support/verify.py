"""Verifies a complete hour independently: it shares no code with the pipeline.

With a plain client it reads every byte of the aggregated hour and of the raw hour, several objects at a time and
in pieces, and compares the digests of each object. A raw object is not read if its expected bytes are given and
its ETag is their MD5.
"""

import base64
import binascii
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from awscrt.checksums import crc64nvme

from dev.servers import S3Client
from tests.support.newlines import NEWLINE_BYTES, content_of, lacks_newline

ENCODINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4")
"""Extensions of compressed raw objects, in lower or upper case. They get parts of their own."""

_PART_NAME = re.compile(r"part-(\d{5,})(?:-[0-9a-f]{8})?\.log(\.[a-z0-9]+)?")
_CHUNK_BYTES = 1024 * 1024
_HEAD_BYTES = 48
# More threads take more CPU time for the same requests.
_THREADS = 2
_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class VerifiedHour:
    """The totals of an hour as this module counted them; sizes in bytes."""

    objects: int
    bytes_in: int
    separator_bytes: int
    bytes_out: int
    parts: int
    hidden: int
    placeholders: int
    marker: Mapping[str, Any]
    """``_SUCCESS``, parsed."""
    manifest_header: Mapping[str, Any]
    """The first line of ``_manifest.jsonl.gz``, parsed."""


@dataclass(frozen=True, slots=True)
class _Listed:
    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Content:
    """The facts about some bytes that were read to their end."""

    size: int
    digest: str
    crc64nvme: int
    head: bytes
    lacks_newline: bool = field(compare=False)
    """Whether the last line of the content has no newline; for compressed objects only with ``ensure_newline``."""
    is_expected: bool = field(compare=False, default=False)
    """Whether these are the expected bytes, by the object's ETag."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """The place where a raw object must be, given the order of the objects and their sizes."""

    raw: _Listed
    part: str
    offset: int
    separator: int


@dataclass(slots=True)
class _Findings:
    """The problems that were found, a sentence for each."""

    problems: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def raise_any(self, title: str) -> None:
        if self.problems:
            shown = self.problems[:_MOST_PROBLEMS]
            more = len(self.problems) - len(shown)
            rest = f"\n  ... and {more} more" if more else ""
            raise AssertionError(f"{title}: {len(self.problems)} problems\n  " + "\n  ".join(shown) + rest)


def verify_hour(
    client: S3Client,
    bucket: str,
    raw_prefix: str,
    aggregated_prefix: str,
    *,
    part_size: int,
    ensure_newline: bool = False,
    ready_object: str | None = None,
    expected: Mapping[str, bytes] | None = None,
    aggregated_bucket: str | None = None,
    aggregated_client: S3Client | None = None,
    reruns: bool = False,
) -> VerifiedHour:
    """Assert that an aggregated hour is complete, and holds the raw objects of the hour and nothing else.

    :param client: a plain boto3 client of the server itself, not of a proxy that injects faults
    :param raw_prefix: of the hour, such as ``raw/app/20261123/08/``
    :param aggregated_prefix: of the hour, such as ``aggregated/app/20261123/08/``
    :param part_size: the largest size in bytes of a part of more than one raw object
    :param ensure_newline: whether a newline must follow each object whose content does not end with one
    :param ready_object: name of the ready object below the raw prefix; it is not packed
    :param expected: the objects of the raw hour by key, with hidden objects and placeholders; they are not read
        again where the ETag proves them
    :param aggregated_bucket: the bucket of the aggregated hour, if it is another one
    :param aggregated_client: a client of its server, if that is another one
    :param reruns: whether later runs have packed objects, so that only the objects within each part are in order.
        The manifest says then which part an object is in; its bytes are compared like those of any hour
    :raises AssertionError: with the key, part and offset of each problem (20 at most)
    """
    target = aggregated_bucket or bucket
    writer = aggregated_client or client
    findings = _Findings()
    listed = list(_list(client, bucket, raw_prefix))
    raw, hidden, placeholders = _select(listed, raw_prefix, ready_object)
    with ThreadPoolExecutor(_THREADS) as pool:
        contents = dict(
            zip(
                (item.key for item in raw),
                pool.map(
                    lambda item: _read(
                        client, bucket, item, (expected or {}).get(item.key), ensure_newline, findings
                    ),
                    raw,
                ),
                strict=True,
            )
        )
        if expected is not None:
            _check_expected(contents, expected, raw_prefix, ready_object, findings)
        found = {
            item.key.removeprefix(aggregated_prefix): item
            for item in _list(writer, target, aggregated_prefix)
        }
        parts = _check_names(found, findings)
        header, entries = _read_manifest(writer, target, aggregated_prefix, found, findings)
        if reruns:
            numbers = {str(entry.get("key")): _part_number(str(entry.get("part"))) for entry in entries}
            raw.sort(key=lambda item: (numbers.get(item.key, -1), item.key.encode()))
        segments: list[_Segment] = []
        for encoding in sorted(
            {_encoding(item.key) for item in raw} | {_part_encoding(name) for name in parts}
        ):
            segments += _lay_out(
                [item for item in raw if _encoding(item.key) == encoding],
                [found[name] for name in parts if _part_encoding(name) == encoding],
                aggregated_prefix,
                contents,
                part_size,
                NEWLINE_BYTES[encoding] if ensure_newline else 0,
                _Peek(writer, target, contents),
                findings,
            )
        by_part: dict[str, list[_Segment]] = {name: [] for name in parts}
        for segment in segments:
            by_part[segment.part].append(segment)
        for _ in pool.map(
            lambda name: _compare_part(writer, target, found[name], by_part[name], contents, findings), parts
        ):
            pass
    if header:
        _check_manifest(
            entries, segments, raw, contents, {name: found[name].size for name in parts}, findings
        )
    marker = _read_marker(writer, target, aggregated_prefix, found, findings)
    facts = VerifiedHour(
        objects=len(raw),
        bytes_in=sum(item.size for item in raw),
        separator_bytes=sum(segment.separator for segment in segments),
        bytes_out=sum(found[name].size for name in parts),
        parts=len(parts),
        hidden=hidden,
        placeholders=placeholders,
        marker=marker,
        manifest_header=header,
    )
    if marker:
        _check_totals("_SUCCESS", marker, facts, findings)
    if header:
        _check_totals("_manifest.jsonl.gz", header, facts, findings)
    findings.raise_any(f"s3://{target}/{aggregated_prefix}")
    return facts


def assert_not_complete(client: S3Client, bucket: str, aggregated_prefix: str) -> None:
    """Assert that the hour has no completion marker.

    :raises AssertionError: if ``_SUCCESS`` exists
    """
    keys = [item.key for item in _list(client, bucket, f"{aggregated_prefix}_SUCCESS")]
    assert not keys, f"the hour has a completion marker: s3://{bucket}/{keys[0]}"


def _list(client: S3Client, bucket: str, prefix: str) -> Iterator[_Listed]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            yield _Listed(item["Key"], item["Size"], item["ETag"].strip('"'))


def _select(
    listed: Iterable[_Listed], prefix: str, ready_object: str | None
) -> tuple[list[_Listed], int, int]:
    """The objects to pack in the order of their keys' bytes; the numbers of hidden objects and placeholders."""
    chosen: list[_Listed] = []
    hidden = placeholders = 0
    for item in listed:
        name = item.key.removeprefix(prefix)
        if ready_object is not None and name == ready_object:
            continue
        # Where the prefix ends within a step, the name continues that step.
        steps = name.split("/")[0 if not prefix or prefix.endswith("/") else 1 :]
        if any(step[:1] in ("_", ".") for step in steps if step):
            hidden += 1
        elif not item.size and (not name or name[-1] == "/"):
            placeholders += 1
        else:
            chosen.append(item)
    return sorted(chosen, key=lambda item: item.key.encode()), hidden, placeholders


def _encoding(key: str) -> str:
    return next((ending for ending in ENCODINGS if key.lower().endswith(ending)), "")


def _part_encoding(name: str) -> str:
    match = _PART_NAME.fullmatch(name)
    return (match[2] if match else None) or ""


def _part_number(name: str) -> int:
    match = _PART_NAME.fullmatch(name)
    return int(match[1]) if match else -1


class _Meter:
    """Takes bytes in pieces and returns the facts about all of them."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._crc = 0
        self._size = 0
        self._head = b""
        self._last = b""

    def take(self, piece: bytes) -> None:
        if piece:
            self._digest.update(piece)
            self._crc = crc64nvme(piece, self._crc)
            self._size += len(piece)
            self._head += piece[: _HEAD_BYTES - len(self._head)]
            self._last = piece[-1:]

    def content(self) -> _Content:
        return _Content(
            self._size, self._digest.hexdigest(), self._crc, self._head, self._last not in (b"", b"\n")
        )


def _pieces(client: S3Client, bucket: str, key: str) -> Iterator[bytes]:
    body = client.get_object(Bucket=bucket, Key=key)["Body"]
    while piece := body.read(_CHUNK_BYTES):
        yield piece


def _read(
    client: S3Client,
    bucket: str,
    item: _Listed,
    expected: bytes | None,
    ensure_newline: bool,
    findings: _Findings,
) -> _Content:
    pieces: Iterable[bytes] = _pieces(client, bucket, item.key)
    is_expected = False
    if expected is not None and item.etag == hashlib.md5(expected, usedforsecurity=False).hexdigest():
        pieces, is_expected = [expected], True
    meter = _Meter()
    body = bytearray()
    encoding = _encoding(item.key)
    for piece in pieces:
        meter.take(piece)
        if ensure_newline and encoding:
            body += piece
    content = replace(meter.content(), is_expected=is_expected)
    if encoding:
        content = replace(content, lacks_newline=lacks_newline(encoding, bytes(body)))
    findings.check(
        content.size == item.size, f"{item.key}: {item.size} bytes listed, {content.size} bytes read"
    )
    return content


def _check_expected(
    contents: Mapping[str, _Content],
    expected: Mapping[str, bytes],
    prefix: str,
    ready_object: str | None,
    findings: _Findings,
) -> None:
    """Compare the raw hour with the expected objects."""
    bodies = [_Listed(key, len(expected[key]), "") for key in expected]
    wanted = {item.key for item in _select(bodies, prefix, ready_object)[0]}
    for key in sorted(wanted - contents.keys()):
        findings.check(False, f"{key}: the raw object is missing")
    for key in sorted(contents.keys() - wanted):
        findings.check(False, f"{key}: this raw object is not expected")
    for key in sorted(wanted & contents.keys()):
        if contents[key].is_expected:
            continue
        meter = _Meter()
        meter.take(expected[key])
        findings.check(
            meter.content() == contents[key], f"{key}: the raw object has other bytes than expected"
        )


def _check_names(found: Mapping[str, _Listed], findings: _Findings) -> list[str]:
    """The names of the parts in the order of their numbers; other objects are problems."""
    parts = []
    for name, item in found.items():
        if _PART_NAME.fullmatch(name):
            parts.append(name)
        elif name not in ("_SUCCESS", "_manifest.jsonl.gz") and not (
            name in ("", "_rollup/") and not item.size
        ):
            findings.check(False, f"{name}: is not allowed in a complete hour ({item.size} bytes)")
    for number, count in Counter(map(_part_number, parts)).items():
        findings.check(count == 1, f"{count} parts have the number {number}")
    return sorted(parts, key=_part_number)


@dataclass(frozen=True, slots=True)
class _Peek:
    """Says which object begins at an offset of a part, for the message of a problem."""

    client: S3Client
    bucket: str
    contents: Mapping[str, _Content]

    def __call__(self, part: _Listed, offset: int) -> str:
        if offset >= part.size:
            return "the part ends there"
        end = min(offset + _HEAD_BYTES, part.size) - 1
        reply = self.client.get_object(Bucket=self.bucket, Key=part.key, Range=f"bytes={offset}-{end}")
        there = reply["Body"].read()
        owners = [
            key for key, content in self.contents.items() if content.head and there.startswith(content.head)
        ]
        if owners:
            return f"{owners[0]} begins there"
        return f"no raw object begins with {there[:24]!r}, as the bytes there do"


def _lay_out(
    raw: Sequence[_Listed],
    parts: Sequence[_Listed],
    prefix: str,
    contents: Mapping[str, _Content],
    part_size: int,
    newline: int,
    peek: _Peek,
    findings: _Findings,
) -> list[_Segment]:
    """The place of each raw object of one encoding, by order and sizes alone."""
    segments: list[_Segment] = []
    waiting = list(reversed(raw))
    for part in parts:
        name = part.key.removeprefix(prefix)
        offset = members = 0
        while offset < part.size:
            if not waiting:
                findings.check(
                    False, f"{name}: {part.size - offset} bytes at offset {offset} belong to no raw object"
                )
                return segments
            item = waiting.pop()
            separator = newline if contents[item.key].lacks_newline else 0
            if separator and item.size == part.size and item.size + newline > part_size:
                # Too large to pack: S3 copied the object, which adds no newline.
                separator = 0
            if offset + item.size + separator > part.size:
                findings.check(
                    False,
                    f"{name}: has {part.size} bytes and ends within {item.key}, which should be at offset "
                    f"{offset} with {item.size} bytes and {separator} bytes of separator. It is truncated, or an "
                    f"object before it is missing, doubled or out of order ({peek(part, offset)})",
                )
                return segments
            segments.append(_Segment(item, name, offset, separator))
            offset += item.size + separator
            members += item.size > 0
        findings.check(
            part.size <= part_size or members == 1,
            f"{name}: has {part.size} bytes, more than the {part_size} of a part, and {members} objects",
        )
    if waiting and any(item.size for item in waiting):
        missing = [item.key for item in reversed(waiting)]
        findings.check(
            False,
            f"{len(missing)} raw objects of {sum(item.size for item in waiting)} bytes are in no part; the first "
            f"is {missing[0]}",
        )
    return segments


def _compare_part(
    client: S3Client,
    bucket: str,
    part: _Listed,
    segments: Sequence[_Segment],
    contents: Mapping[str, _Content],
    findings: _Findings,
) -> None:
    """Read a part and compare the bytes at each place with the raw object that must be there."""
    pieces = _pieces(client, bucket, part.key)
    rest = b""
    total = 0

    def take(size: int) -> Iterator[bytes]:
        nonlocal rest, total
        while size:
            rest = rest or next(pieces, b"")
            if not rest:
                return
            piece, rest = rest[:size], rest[size:]
            size -= len(piece)
            total += len(piece)
            yield piece

    for segment in segments:
        meter = _Meter()
        for piece in take(segment.raw.size):
            meter.take(piece)
        if meter.content() != contents[segment.raw.key]:
            peek = _Peek(client, bucket, contents)
            findings.check(
                False,
                f"{segment.part}: the {segment.raw.size} bytes at offset {segment.offset} are not those of "
                f"{segment.raw.key} ({peek(part, segment.offset)})",
            )
        separator = b"".join(take(segment.separator))
        findings.check(
            _is_newline(_encoding(segment.raw.key), separator) if segment.separator else not separator,
            f"{segment.part}: {segment.raw.key} should be followed by a newline, not by {separator!r}",
        )
    for _ in take(part.size + 1):
        pass
    findings.check(total == part.size, f"{part.key}: {part.size} bytes listed, {total} bytes read")


def _is_newline(encoding: str, separator: bytes) -> bool:
    return (
        len(separator) == NEWLINE_BYTES[encoding] and content_of(encoding, separator + separator) == b"\n\n"
    )


def _read_manifest(
    client: S3Client, bucket: str, prefix: str, found: Mapping[str, _Listed], findings: _Findings
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    if "_manifest.jsonl.gz" not in found:
        findings.check(False, "_manifest.jsonl.gz: does not exist")
        return {}, []
    body = client.get_object(Bucket=bucket, Key=f"{prefix}_manifest.jsonl.gz")["Body"].read()
    try:
        # Not splitlines(): a key may contain other characters that Python takes for the end of a line.
        header, *lines = [json.loads(line) for line in gzip.decompress(body).rstrip(b"\n").split(b"\n")]
    except (OSError, EOFError, ValueError) as error:
        findings.check(False, f"_manifest.jsonl.gz: cannot be read: {error}")
        return {}, []
    return header, lines


def _check_manifest(
    entries: Sequence[Mapping[str, Any]],
    segments: Sequence[_Segment],
    raw: Sequence[_Listed],
    contents: Mapping[str, _Content],
    part_sizes: Mapping[str, int],
    findings: _Findings,
) -> None:
    wanted = {item.key: item for item in raw}
    members = Counter(entry.get("part") for entry in entries)
    for name in sorted(part_sizes.keys() - members.keys()):
        findings.check(False, f"{name}: this part is in no line of the manifest")
    places = {segment.raw.key: (segment.part, segment.offset) for segment in segments}
    for key, count in Counter(str(entry.get("key")) for entry in entries).items():
        findings.check(count == 1, f"manifest: {key} has {count} lines")
        findings.check(key in wanted, f"manifest: {key} is no raw object of this hour")
    for key in sorted(wanted.keys() - {entry.get("key") for entry in entries}):
        findings.check(False, f"manifest: {key} has no line")
    for entry in entries:
        item = wanted.get(str(entry.get("key")))
        if item is None:
            continue
        for name, value in (("length", item.size), ("etag", item.etag)):
            found = entry.get(name)
            findings.check(
                (found.strip('"') if isinstance(found, str) else found) == value,
                f"manifest: {item.key} has the {name} {found!r}, it should be {value!r}",
            )
        crc = _crc(entry.get("crc64nvme"))
        # An object that S3 copied has a part of its own. Its bytes were not read, so its CRC may be unknown.
        findings.check(
            crc == contents[item.key].crc64nvme or (crc is None and members[entry.get("part")] == 1),
            f"manifest: {item.key} has the crc64nvme {entry.get('crc64nvme')!r}, it should be "
            f"{contents[item.key].crc64nvme:016x}",
        )
        part, offset = entry.get("part"), entry.get("offset")
        if not item.size:
            # Between two parts, an empty object may be at the end of the first or the start of the second.
            findings.check(
                isinstance(offset, int) and 0 <= offset <= part_sizes.get(str(part), -1),
                f"manifest: {item.key} should be at offset {offset} of {part}, which does not exist",
            )
        elif item.key in places:
            findings.check(
                (part, offset) == places[item.key],
                f"manifest: {item.key} should be at {(part, offset)}, it is at {places[item.key]}",
            )


def _crc(value: object) -> int | None:
    """Parse a CRC: a number, 16 hexadecimal digits, or base64 as in S3. None without one, -1 if invalid."""
    if value is None or isinstance(value, int):
        return value
    text = str(value)
    try:
        return int(text, 16) if len(text) == 16 else int.from_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        return -1


def _read_marker(
    client: S3Client, bucket: str, prefix: str, found: Mapping[str, _Listed], findings: _Findings
) -> Mapping[str, Any]:
    if "_SUCCESS" not in found:
        findings.check(False, "_SUCCESS: does not exist, the hour is not complete")
        return {}
    try:
        marker = json.loads(client.get_object(Bucket=bucket, Key=f"{prefix}_SUCCESS")["Body"].read())
    except ValueError as error:
        findings.check(False, f"_SUCCESS: is not JSON: {error}")
        return {}
    if not isinstance(marker, dict):
        findings.check(False, f"_SUCCESS: should be a JSON object, is {marker!r}")
        return {}
    return marker


def _check_totals(where: str, record: Mapping[str, Any], facts: VerifiedHour, findings: _Findings) -> None:
    """Compare the totals of a record, which are at its top level or in ``totals``."""
    nested = record.get("totals")
    totals = nested if isinstance(nested, Mapping) else record
    for name in ("objects", "bytes_in", "separator_bytes", "bytes_out", "parts"):
        value: int = getattr(facts, name)
        findings.check(
            totals.get(name) == value, f"{where}: {name} is {totals.get(name)!r}, it should be {value}"
        )
    left_out = totals.get("left_out")
    if isinstance(left_out, Mapping):
        for name, value in (("hidden", facts.hidden), ("placeholders", facts.placeholders)):
            findings.check(
                left_out.get(name) == value,
                f"{where}: {name} is {left_out.get(name)!r}, it should be {value}",
            )
