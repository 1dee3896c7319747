"""The step complete_hour: writes the completion marker, last of all."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from include.log_rollup.errors import ProofError, UnreadableRecordError
from include.log_rollup.hour.layout import folder_of, format_hour
from include.log_rollup.hour.manifest import HourTotals, ManifestReader, open_manifest
from include.log_rollup.hour.parts import is_intact
from include.log_rollup.hour.plan import digest_of
from include.log_rollup.hour.reader import Inventory
from include.log_rollup.hour.records import Claim, CompletionMarker
from include.log_rollup.hour.state import HourState
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import Location, ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)


def complete_hour(
    store: ObjectStore,
    stream: Stream,
    hour: datetime,
    completed: Callable[[HourTotals], None] = lambda _: None,
) -> HourTotals:
    """Mark a proven hour complete, if its parts are still those that were proven.

    A marker of the same plan that exists already is kept.

    :param completed: called with the totals if the hour was not complete before
    :returns: the totals of the hour, from its manifest
    :raises SupersededError: if the hour is being built under another plan
    :raises ProofError: if a part or a group's manifest has changed since it was proven
    """
    state = HourState(store, stream, hour)
    # Read before the parts are compared: a run that changes them later claims the hour first.
    claim = state.claim()
    manifest = _read_manifest(state)
    totals = manifest.totals
    found = state.inventory()
    if not is_intact(manifest.table, found.parts):
        raise ProofError(
            f"hour {format_hour(hour)}: the parts under {state.paths.aggregated} are not those that were proven "
            f"as plan {totals.plan_id}: another run or another program is changing them. Clear the run from "
            f"plan_hour on."
        )
    marker = state.marker()
    is_other_claimed = claim is not None and claim.plan_id != totals.plan_id
    if marker is not None and marker.is_of(totals.plan_id) and not is_other_claimed:
        log.info("the completion marker exists already: %s", state.paths.marker)
    else:
        claim = _validated_claim(state, claim, manifest)
        _remove_strays(state, claim, manifest, found)
        # There are none either, unless validation was interrupted.
        state.remove_gone_groups(claim, found, {group.folder for group in totals.groups})
        now = datetime.now(UTC)
        groups = _group_markers(store, state, manifest, found, now)
        why_empty = state.paths.raw_template.why_empty(hour) or ""
        content = marker_of(totals, manifest.validated_at, now, why_empty)
        if found.expiry_etag is not None:
            content = replace(content, older_versions=sum(map(len, manifest.older_versions().values())))
        state.complete(claim, _with_raw_digest(state, content), groups)
        log.info("complete: %s", state.paths.marker)
        completed(totals)
    _abort_uploads(state, manifest, found)
    state.clean_up(totals.plan_id)
    return totals


def _read_manifest(state: HourState) -> ManifestReader:
    """The manifest, each line of which can be read.

    :raises ProofError: if there is none
    :raises UnreadableRecordError: if it is damaged
    """
    manifest = state.manifest()
    if manifest is None:
        raise ProofError(
            f"hour {format_hour(state.paths.hour)}: there is no {state.paths.manifest}; clear the run from "
            f"validate_hour on, or after a change of versions from plan_hour on"
        )
    for _ in manifest.parts():
        pass
    return manifest


def _validated_claim(state: HourState, claim: Claim | None, manifest: ManifestReader) -> Claim:
    """The claim, under which the manifest must have been written.

    :raises SupersededError: if it was not
    """
    plan_id = manifest.totals.plan_id
    if claim is None or claim.plan_id != plan_id:
        raise state.overtaken(plan_id, claim)
    if manifest.claim_id != claim.claim_id:
        raise state.superseded(
            "the hour was planned again since it was validated", "clear the run from validate_hour on"
        )
    return claim


def _group_markers(
    store: ObjectStore, state: HourState, manifest: ManifestReader, found: Inventory, now: datetime
) -> dict[str, CompletionMarker]:
    """The markers of the groups that have none, or for which no manifest is listed, by folder.

    A group whose parts have not changed may lack its marker, because an overtaken run has removed it. Its
    manifest is of an earlier plan then, and the marker has to name that plan.

    :raises ProofError: if the manifest of a group is missing, damaged, or describes other parts
    """
    paths = state.paths
    missing = [
        group
        for group in manifest.totals.groups
        if group.folder not in found.group_markers or group.folder not in found.group_manifests
    ]
    proven = in_parallel(
        store.control_connections,
        "log-rollup-groups",
        lambda group: _read_group_manifest(store, paths.group_manifest(group.folder)),
        missing,
    )
    etags: dict[str, dict[str, str]] = {}
    for entry in manifest.table if missing else ():
        folder = folder_of(entry["name"])
        etags.setdefault(folder, {})[entry["name"].removeprefix(folder)] = entry["etag"]
    markers = {}
    for group, of_group in zip(missing, proven, strict=True):
        if of_group is None or of_group.etags != etags[group.folder]:
            raise ProofError(
                f"hour {format_hour(paths.hour)}: {paths.group_manifest(group.folder)} is missing, damaged, or "
                f"describes other parts than those that were proven: another run or another program has changed "
                f"it. Clear the run from plan_hour on."
            )
        totals = replace(manifest.totals.of_group(group), plan_id=of_group.plan_id)
        markers[group.folder] = marker_of(totals, of_group.validated_at, now)
    return markers


@dataclass(frozen=True, slots=True)
class _GroupManifest:
    """What the manifest of a group says.

    :param etags: of its parts, by name
    """

    plan_id: str
    validated_at: str
    etags: Mapping[str, str]


def _read_group_manifest(store: ObjectStore, source: Location) -> _GroupManifest | None:
    """The manifest of a group, each line of which can be read; None if it is missing or damaged."""
    try:
        manifest = open_manifest(store, source)
        if manifest is None:
            return None
        for _ in manifest.parts():
            pass
    except UnreadableRecordError as error:
        log.warning("%s", error)
        return None
    etags = {entry["name"]: entry["etag"] for entry in manifest.table}
    return _GroupManifest(manifest.totals.plan_id, manifest.validated_at, etags)


def _remove_strays(state: HourState, claim: Claim, manifest: ManifestReader, found: Inventory) -> None:
    """Remove stray parts. There are none, unless validation was interrupted or another run is writing them now."""
    strays = state.strays(found, manifest.names, claim.plan_id, None)
    if strays:
        strays = state.removable(found, strays, claim.plan_id, (planned for planned, _ in manifest.parts()))
    if strays:
        state.remove_parts(strays, claim)


def _abort_uploads(state: HourState, manifest: ManifestReader, found: Inventory) -> None:
    """Abort unfinished uploads of copied parts. Costs no request if no part was copied."""
    copied = {entry["name"] for entry in manifest.table if entry["copied"]}
    other_plans = [name for name in found.work if not name.startswith(f"{manifest.totals.plan_id}/")]
    parts = copied | state.recorded_parts(other_plans, None).keys()
    if parts:
        state.abort_uploads(parts)


def _with_raw_digest(state: HourState, marker: CompletionMarker) -> CompletionMarker:
    """A marker with the digest of the raw hour, from its plan; without it, late checks read the manifest."""
    plan = state.records.read_plan(state.paths.plan(marker.plan_id))
    return replace(marker, raw_digest=digest_of(plan.digests)) if plan else marker


def marker_of(totals: HourTotals, validated_at: str, now: datetime, why_empty: str = "") -> CompletionMarker:
    """The completion marker of an hour or of a group.

    :param why_empty: why no object can belong to the hour; empty if objects can
    """
    measured = totals.measured
    return CompletionMarker(
        stream=totals.stream,
        hour=totals.hour,
        plan_id=totals.plan_id,
        objects=totals.objects,
        bytes_in=totals.bytes_in,
        separator_bytes=totals.separator_bytes,
        bytes_out=totals.bytes_out,
        parts=totals.parts,
        left_out=asdict(totals.left_out),
        foreign=totals.foreign,
        damaged=totals.damaged,
        verified=asdict(totals.verified),
        validated_at=validated_at,
        completed_at=now.isoformat(timespec="seconds"),
        max_connections=measured.max_connections,
        peak={
            "sockets": measured.sockets,
            "open_files": measured.open_files,
            "rss_bytes": measured.rss_bytes,
        },
        requests=dict(measured.requests),
        retries=measured.retries,
        throttles=measured.throttles,
        seconds={"pack": measured.seconds, "pack_cpu": measured.cpu_seconds},
        groups=[group.to_json() for group in totals.groups],
        group=dict(totals.group),
        why_empty=why_empty,
        bytes_stored=totals.bytes_stored,
        recompressed=totals.recompressed,
        bytes_unpacked=totals.bytes_unpacked,
    )
