"""Verifies a complete hour with groups independently.

Like :mod:`tests.support.verify`, it shares no code with the pipeline: the caller says where each group is.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dev.servers import S3Client
from tests.support.verify import VerifiedHour, verify_hour

_TOTALS = ("objects", "bytes_in", "separator_bytes", "bytes_out", "parts")


def verify_groups(
    client: S3Client,
    bucket: str,
    folders: Mapping[str, str],
    home: str,
    *,
    part_size: int,
    ensure_newline: bool = False,
    expected: Mapping[str, bytes] | None = None,
    raw_client: S3Client | None = None,
) -> dict[str, VerifiedHour]:
    """Assert that each group of an hour is complete, and that the hour's own records agree with all of them.

    :param folders: prefix of the raw objects to prefix of the parts, for each group of the hour
    :param home: prefix of the hour's records, such as ``aggregated/_hours/app/20261123/08/``
    :param part_size: the largest size in bytes of a part of more than one raw object
    :param ensure_newline: whether a newline must follow each object whose content does not end with one
    :param expected: the objects of the raw hour by key
    :param raw_client: for the raw objects, if they are on another server
    :returns: the totals of each group, by the prefix of its parts
    :raises AssertionError: with the first problem of the records, or the problems of a group
    """
    groups = {}
    for raw, aggregated in folders.items():
        bodies = (
            {key: body for key, body in expected.items() if key.startswith(raw)}
            if expected is not None
            else None
        )
        groups[aggregated] = verify_hour(
            raw_client or client, bucket, raw, aggregated, aggregated_client=client,
            part_size=part_size, ensure_newline=ensure_newline, expected=bodies,
        )  # fmt: skip
    if expected is not None:
        _check("raw objects of no group", [key for key in expected if not key.startswith(tuple(folders))], [])
    _verify_home(client, bucket, home, groups)
    return groups


def _verify_home(client: S3Client, bucket: str, home: str, groups: Mapping[str, VerifiedHour]) -> None:
    """The hour's marker and manifest agree with those of its groups, and no other file is left of the run."""
    _check(f"files in {home}", set(_names(client, bucket, home)), {"_SUCCESS", "_manifest.jsonl.gz"})
    base = home[: home.index("_hours/")]
    marker = json.loads(_read(client, bucket, f"{home}_SUCCESS"))
    header, rows = _read_manifest(client, bucket, home)
    by_folder = {prefix.removeprefix(base): group for prefix, group in groups.items()}
    for name, record in (("_SUCCESS", marker), ("_manifest.jsonl.gz", header)):
        for total in _TOTALS:
            wanted = sum(getattr(group, total) for group in groups.values())
            _check(f"{name} of the hour: {total}", record[total], wanted)
        _check(f"{name} of the hour: group", record.get("group"), None)
        _verify_list(f"{name} of the hour", record["groups"], by_folder)
    _check("plan_id of the hour's records", marker["plan_id"], header["plan_id"])
    wanted_rows = [
        row | {"part": prefix.removeprefix(base) + row["part"]}
        for prefix in sorted(groups)
        for row in _read_manifest(client, bucket, prefix)[1]
    ]
    _check("lines of the hour's manifest", rows, wanted_rows)


def _verify_list(where: str, entries: list[dict[str, Any]], groups: Mapping[str, VerifiedHour]) -> None:
    """The list of groups names each of them once, with its own totals and captures."""
    _check(f"{where}: folders", [entry["folder"] for entry in entries], sorted(groups))
    for entry in entries:
        group = groups[entry["folder"]]
        for total in _TOTALS:
            _check(f"{where}: {total} of {entry['folder']}", entry[total], getattr(group, total))
        for record in (group.marker, group.manifest_header):
            _check(f"{where}: captures of {entry['folder']}", entry["captures"], record["group"])


def _check(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: {found!r}, should be {wanted!r}")


def _read_manifest(client: S3Client, bucket: str, prefix: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    body = gzip.decompress(_read(client, bucket, f"{prefix}_manifest.jsonl.gz"))
    # Not splitlines(): it also splits at characters that a key may contain.
    header, *rows = map(json.loads, body.rstrip(b"\n").split(b"\n"))
    return header, rows


def _names(client: S3Client, bucket: str, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            # A server over a file system lists folders that had objects.
            if not item["Key"].endswith("/"):
                yield item["Key"].removeprefix(prefix)


def _read(client: S3Client, bucket: str, key: str) -> bytes:
    body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body
