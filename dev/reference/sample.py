"""The records of an hour with one raw object, as the code writes them: all fields with example values."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.hour import manifest as manifests
from include.log_rollup.hour import records
from include.log_rollup.hour.expiry_record import Deletion, ExpiredPart, ExpiryRecord
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.plan import Plan, digest_of, make_plan
from include.log_rollup.hour.selection import LeftOut
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries import hour_report
from include.log_rollup.steps import complete_hour
from include.log_rollup.storage.protocol import ObjectInfo
from include.log_rollup.streams import Stream

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
_STREAM = Stream(
    name="app",
    raw=RawTemplate.parse("s3://application-logs/raw/app/"),
    aggregated=AggregatedTemplate.parse("s3://application-logs/aggregated/app/"),
    start=HOUR,
)
# With groups; its records have more fields.
_GROUPED = _STREAM.model_copy(
    update={
        "raw": RawTemplate.parse("s3://application-logs/raw/{service}/"),
        "aggregated": AggregatedTemplate.parse("s3://application-logs/aggregated/{service}/"),
    }
)
_SIZE, _STORED, _CRC = 550_000, 61_000, 0xAE8B14860A799888
_RECOMPRESSED = 120


def _plan() -> Plan:
    key = _STREAM.at(HOUR).key_base + "web-01/0001.log"
    item = ObjectInfo(key, _SIZE, "9e107d9d372bb6826bd81d3542a419d6")
    return make_plan([item], LeftOut(hidden=1), _STREAM.part_size, _STREAM.write_options)


def _manifest() -> manifests.Manifest:
    plan = _plan()
    (planned,) = plan.parts
    (item,) = planned.objects
    done = records.PackedObject(_CRC, records.READ_BY_ETAG, True)
    packed = records.PackedPart(
        planned.name, planned.fingerprint, _SIZE, item.etag, _CRC, (done,), records.PROVEN_BY_READING
    )
    totals = manifests.HourTotals(
        stream=_STREAM.name, hour=format_hour(HOUR), plan_id=f"{plan.content_id}-5b0e66aa",
        objects=1, bytes_in=_SIZE, separator_bytes=0, bytes_out=_SIZE, parts=1, left_out=plan.left_out,
        verified=manifests.Verified({records.PROVEN_BY_READING: 1}, {records.READ_BY_ETAG: 1}),
        measured=records.Measured(
            max_connections=_STREAM.max_connections, sockets=2, open_files=31, rss_bytes=160_000_000,
            seconds=0.731, cpu_seconds=0.212, requests={"GetObject": 4, "GET": 1, "PUT": 1}, parts_written=1,
        ),
    )  # fmt: skip
    return manifests.Manifest(totals, (planned,), (packed,), "2026-11-23T09:12:31+00:00")


def marker() -> dict[str, Any]:
    """Return the content of ``_SUCCESS``."""
    content = complete_hour.marker_of(
        _manifest().totals, _manifest().validated_at, HOUR.replace(hour=9, minute=12, second=33)
    )
    return replace(content, raw_digest=digest_of(_plan().digests)).to_json()


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header of ``_manifest.jsonl.gz`` and the line of a raw object."""
    header, line = manifests.manifest_lines(_manifest(), _STREAM.at(HOUR).key_base)
    return header, line


def event() -> dict[str, Any]:
    """Return the ``extra`` of an asset event."""
    return hour_report.event_of(_STREAM, HOUR, _manifest().totals)


def _grouped_totals() -> manifests.HourTotals:
    totals = _manifest().totals
    group = manifests.GroupTotals(
        folder="web/20261123/08/", captures={"service": "web"}, objects=totals.objects, bytes_in=totals.bytes_in,
        separator_bytes=totals.separator_bytes, bytes_out=totals.bytes_out, parts=totals.parts,
        verified=totals.verified, bytes_stored=_STORED, recompressed=_RECOMPRESSED,
        bytes_unpacked=totals.bytes_out - totals.separator_bytes,
    )  # fmt: skip
    return replace(
        totals,
        groups=(group,),
        bytes_stored=_STORED,
        recompressed=group.recompressed,
        bytes_unpacked=group.bytes_unpacked,
    )


def marker_with_groups() -> dict[str, Any]:
    """Return the fields of ``_SUCCESS`` that only some hours have, for example those with groups."""
    totals = _grouped_totals()
    (group,) = totals.groups
    berlin = RawTemplate.parse("s3://application-logs/raw/app/", "Europe/Berlin")
    why_empty = berlin.why_empty(datetime(2026, 10, 25, tzinfo=UTC)) or ""
    at = HOUR.replace(hour=9, minute=12, second=33)
    of_hour = replace(complete_hour.marker_of(totals, "", at, why_empty), older_versions=1).to_json()
    of_group = complete_hour.marker_of(totals.of_group(group), "", at).to_json()
    return {key: record[key] for record in (of_hour, of_group) for key in record if key not in marker()}


def event_with_groups() -> dict[str, Any]:
    """Return the fields of the ``extra`` of an asset event that only a stream with groups has."""
    found = hour_report.event_of(_GROUPED, HOUR, _grouped_totals())
    return {key: found[key] for key in found if key not in event()}


def expiry() -> dict[str, Any]:
    """Return the content of ``_expired.json``."""
    (planned,) = _manifest().planned
    expired = {planned.name: ExpiredPart(planned.fingerprint)}
    deletion = Deletion(
        _manifest().totals.plan_id, "2026-12-07T09:00:01.204512+00:00", "2026-12-07T09:00:02.731027+00:00",
        1, _SIZE,
    )  # fmt: skip
    record = ExpiryRecord(_STREAM.name, format_hour(HOUR), expired, (deletion,), 1, _SIZE)
    found: dict[str, Any] = json.loads(record.to_bytes())
    return found


def flat(record: Mapping[str, Any], counts: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a record with their values; nested fields as ``a.b``, fields in a list as ``a[].b``.

    :param counts: fields whose keys are data, not names
    """
    for key, value in record.items():
        name = prefix + key
        if isinstance(value, Mapping) and name not in counts:
            yield from flat(value, counts, f"{name}.")
        elif isinstance(value, list):
            yield from flat(value[0], counts, f"{name}[].")
        else:
            yield name, value
