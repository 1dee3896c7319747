"""The step complete_hour: the completion marker, written last."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.errors import ProofError, SupersededError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.parts import is_intact
from include.log_rollup.hour.records import MARKER_FORMAT, HourTotals, Manifest, ManifestReader
from include.log_rollup.hour.state import HourState, Inventory
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)


def complete_hour(
    store: ObjectStore,
    stream: Stream,
    hour: datetime,
    completed: Callable[[HourTotals], None] = lambda _: None,
) -> HourTotals:
    """Mark a proven hour complete, if its parts are still those that were proven.

    A marker that is there already for the same plan stays as it is.

    :param completed: called with the totals, if it was not complete before
    :returns: the totals of the hour, from its manifest
    :raises SupersededError: if the hour is being built under another plan than was proven
    :raises ProofError: if a part changed after it was proven
    """
    state = HourState(store, stream, hour)
    # Before the parts are compared: a run that changes them afterwards claims the hour first.
    claim = state.claim()
    manifest = state.records.open_manifest(state.paths.manifest)
    if manifest is None:
        raise ProofError(
            f"hour {format_hour(hour)}: there is no {state.paths.manifest}; clear the run from validate_hour on, "
            f"or after a change of versions from plan_hour on"
        )
    _read_through(manifest)
    totals = manifest.totals
    found = state.inventory()
    if not is_intact(manifest.table, found.parts):
        raise ProofError(
            f"hour {format_hour(hour)}: the parts under {state.paths.aggregated} are not those that were proven "
            f"as plan {totals.plan_id}: another run is changing them, or somebody is. Clear the run from "
            f"plan_hour on."
        )
    marked = state.records.is_marked(state.paths.marker, totals.plan_id)
    if marked and (claim is None or claim.plan_id == totals.plan_id):
        log.info("the completion marker is there already: %s", state.paths.marker)
    else:
        if claim is None or claim.plan_id != totals.plan_id:
            raise state.superseded(totals.plan_id, claim)
        if manifest.claim_id != claim.claim_id:
            raise SupersededError(
                f"{state.paths.aggregated} was planned again since it was validated; clear the run from "
                f"validate_hour on"
            )
        # Validation has removed them, unless it was interrupted, or is removing them just now.
        strays = state.strays(found, {entry["name"] for entry in manifest.table}, totals.plan_id, None)
        if strays:
            parts = (planned for planned, _ in manifest.parts())
            strays = state.removable(found, strays, totals.plan_id, parts)
        if strays:
            state.remove_parts(strays, claim)
        state.publish_marker(claim, marker_of(manifest, datetime.now(UTC)))
        log.info("complete: %s", state.paths.marker)
        completed(totals)
    _abort_uploads(state, manifest, found)
    state.clean_up(totals.plan_id)
    return totals


def _read_through(manifest: ManifestReader) -> None:
    """Whether every line of the manifest can be read.

    :raises UnreadableRecordError: if not
    """
    for _ in manifest.parts():
        pass


def _abort_uploads(state: HourState, manifest: ManifestReader, found: Inventory) -> None:
    """Give up uploads of copies that a crash has left unfinished; there are none where nothing was copied."""
    copied = {entry["name"] for entry in manifest.table if entry["copied"]}
    other_plans = [name for name in found.work if not name.startswith(f"{manifest.totals.plan_id}/")]
    parts = copied | state.recorded_parts(other_plans, None).keys()
    if parts:
        state.abort_uploads(parts)


def event_of(stream: Stream, hour: datetime, totals: HourTotals) -> dict[str, Any]:
    """What an asset event says of a complete hour: its totals, sizes in bytes, and where it lies.

    Small enough for a row of the metadata database, and enough to decide whether to read the hour at all: the
    same hour with the same ``plan_id`` has the same parts.
    """
    paths = stream.at(hour)
    return {
        "stream": stream.name,
        "hour": format_hour(hour),
        "plan_id": totals.plan_id,
        "objects": totals.objects,
        "bytes_in": totals.bytes_in,
        "bytes_out": totals.bytes_out,
        "parts": totals.parts,
        "aggregated": str(paths.aggregated),
        "manifest": str(paths.manifest),
        "marker": str(paths.marker),
    }


def marker_of(manifest: Manifest | ManifestReader, now: datetime) -> dict[str, Any]:
    """The content of ``_SUCCESS``; sizes in bytes, durations in seconds."""
    totals = manifest.totals
    measured = totals.measured
    return {
        "format": MARKER_FORMAT,
        "stream": totals.stream,
        "hour": totals.hour,
        "plan_id": totals.plan_id,
        "objects": totals.objects,
        "bytes_in": totals.bytes_in,
        "separator_bytes": totals.separator_bytes,
        "bytes_out": totals.bytes_out,
        "parts": totals.parts,
        "left_out": asdict(totals.left_out),
        "foreign": totals.foreign,
        "damaged": totals.damaged,
        "verified": asdict(totals.verified),
        "validated_at": manifest.validated_at,
        "completed_at": now.isoformat(timespec="seconds"),
        "max_connections": measured.max_connections,
        "peak": {
            "sockets": measured.sockets,
            "open_files": measured.open_files,
            "rss_bytes": measured.rss_bytes,
        },
        "requests": dict(measured.requests),
        "retries": measured.retries,
        "throttles": measured.throttles,
        "seconds": {"pack": measured.seconds, "pack_cpu": measured.cpu_seconds},
    }
