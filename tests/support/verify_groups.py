"""An independent check of a complete hour whose objects are divided into groups.

As :mod:`tests.support.verify`, it shares no code with the pipeline: the caller says where each group lies.
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
) -> dict[str, VerifiedHour]:
    """Prove that each group of an hour is complete and that the hour's own records agree with all of them.

    :param folders: prefix of the raw objects to prefix of the parts, for each group of the hour
    :param home: prefix of the hour's records, such as ``aggregated/_hours/app/20261123/08/``
    :param part_size: the largest size in bytes of a part of more than one raw object
    :param expected: what the raw hour has to hold, key to body
    :returns: what each group's folder holds, by the prefix of its parts
    :raises AssertionError: naming what is not as it should be
    """
    groups = {}
    for raw, aggregated in folders.items():
        bodies = (
            {key: body for key, body in expected.items() if key.startswith(raw)}
            if expected is not None
            else None
        )
        groups[aggregated] = verify_hour(
            client, bucket, raw, aggregated,
            part_size=part_size, ensure_newline=ensure_newline, expected=bodies,
        )  # fmt: skip
    if expected is not None:
        lost = [key for key in expected if not key.startswith(tuple(folders))]
        assert not lost, f"raw objects of no group: {lost}"
    _verify_home(client, bucket, home, groups)
    return groups


def _verify_home(client: S3Client, bucket: str, home: str, groups: Mapping[str, VerifiedHour]) -> None:
    """The hour's marker and manifest have what those of its groups have, and nothing else is left of the run."""
    assert set(_names(client, bucket, home)) == {"_SUCCESS", "_manifest.jsonl.gz"}, f"in {home}"
    base = home[: home.index("_hours/")]
    marker = json.loads(_read(client, bucket, f"{home}_SUCCESS"))
    header, rows = _read_manifest(client, bucket, home)
    totals = {name: sum(getattr(group, name) for group in groups.values()) for name in _TOTALS}
    for record in (marker, header):
        assert {name: record[name] for name in _TOTALS} == totals
        assert "group" not in record
        _verify_list(record["groups"], {key.removeprefix(base): group for key, group in groups.items()})
    assert marker["plan_id"] == header["plan_id"]
    assert rows == [
        row | {"part": prefix.removeprefix(base) + row["part"]}
        for prefix in sorted(groups)
        for row in _read_manifest(client, bucket, prefix)[1]
    ]


def _verify_list(entries: list[dict[str, Any]], groups: Mapping[str, VerifiedHour]) -> None:
    """The list of groups names each of them once, with its own totals and captures."""
    assert [entry["folder"] for entry in entries] == sorted(groups)
    for entry in entries:
        group = groups[entry["folder"]]
        assert {name: entry[name] for name in _TOTALS} == {name: getattr(group, name) for name in _TOTALS}
        assert entry["captures"] == group.marker["group"] == group.manifest_header["group"]


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
