"""The step complete_hour: the completion marker, written last."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.errors import ProofError, RollupError, SupersededError
from include.log_rollup.hours import HourPaths, format_hour
from include.log_rollup.listing import list_all
from include.log_rollup.planning import is_intact, is_proven, standing_parts
from include.log_rollup.records import MARKER_FORMAT, HourTotals, Manifest, Records
from include.log_rollup.store import ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)


def complete_hour(
    store: ObjectStore,
    stream: Stream,
    hour: datetime,
    completed: Callable[[HourTotals], None] = lambda _: None,
) -> HourTotals:
    """Mark a proven hour complete, if its parts are still those that were proven.

    A marker that stands already for the same plan stays as it is.

    :param completed: called with the totals, if it was not complete before
    :returns: the totals of the hour, from its manifest
    :raises SupersededError: if the hour is being built under another plan than was proven
    :raises ProofError: if a part changed after it was proven
    """
    paths = stream.at(hour)
    records = Records(store)
    manifest = records.read_manifest(paths.manifest)
    if manifest is None:
        raise ProofError(
            f"hour {format_hour(hour)}: there is no {paths.manifest}, or another version wrote it; clear "
            f"validate_hour, or after a change of versions the run from plan_hour on"
        )
    plan_id = manifest.totals.plan_id
    if not is_intact(manifest, plan_id, standing_parts(store, paths)):
        raise ProofError(
            f"hour {format_hour(hour)}: the parts under {paths.aggregated} are not those that were proven as "
            f"plan {plan_id}: another run is changing them, or somebody is. Clear the run from plan_hour on."
        )
    marked = records.is_marked(paths.marker, plan_id)
    claimed = records.read_claim(paths.claim)
    if marked and claimed in (None, plan_id):
        log.info("the completion marker is there already: %s", paths.marker)
    else:
        _check_claim(paths, plan_id, claimed)
        records.write_marker(paths.marker, marker_of(manifest, datetime.now(UTC)))
        claimed = records.read_claim(paths.claim)
        # Another run may have completed the hour under the very same plan meanwhile, and have tidied up. If it
        # did so under another, or has only begun, it must not find the hour complete.
        if claimed != plan_id and (claimed or not is_proven(store, records, paths, plan_id)):
            store.delete(paths.marker.bucket, [paths.marker.key])
            _check_claim(paths, plan_id, claimed)
        log.info("complete: %s", paths.marker)
        completed(manifest.totals)
    _clean_up(store, records, paths, plan_id)
    return manifest.totals


def _clean_up(store: ObjectStore, records: Records, paths: HourPaths, plan_id: str) -> None:
    """Remove what this plan needed; of another run that has begun meanwhile, nothing."""
    gone = [item.key for item in list_all(store, paths.work.child(f"{plan_id}/"))]
    if records.read_claim(paths.claim) == plan_id:
        gone.append(paths.claim.key)
    store.delete(paths.work.bucket, gone)
    try:
        aborted = store.abort_uploads(paths.aggregated)
    except RollupError as error:
        # The hour is complete whatever S3 says to this. Only a crash within the copy of an object above 5 GiB
        # leaves one, and it costs only its storage.
        log.info("could not look for multipart uploads that a crash may have left: %s", error)
    else:
        if aborted:
            log.info("gave up %d multipart uploads that a crash had left unfinished", aborted)


def _check_claim(paths: HourPaths, plan_id: str, claimed: str | None) -> None:
    if claimed != plan_id:
        now = "nothing is" if claimed is None else f"plan {claimed} is"
        raise SupersededError(
            f"{paths.aggregated} was proven as plan {plan_id}, but {now} being built there now; if no other run "
            f"is at work, clear this one from plan_hour on"
        )


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


def marker_of(manifest: Manifest, now: datetime) -> dict[str, Any]:
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
