"""Complete hours that are not what they were: raw objects that came late, changed or vanished since."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from include.log_rollup.errors import ProofError, UnsupportedInputError
from include.log_rollup.hour.changes import Changes, compare
from include.log_rollup.hour.layout import floor_hour, format_hour, hours_between
from include.log_rollup.hour.manifest import open_manifest
from include.log_rollup.hour.plan import content_id_of, make_plan, select
from include.log_rollup.hour.records import Records
from include.log_rollup.storage.listing import list_all
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChangedHour:
    """A complete hour whose raw objects have changed since."""

    hour: datetime
    changes: Changes

    @property
    def wants_rerun(self) -> bool:
        """Whether a rerun would make it right; without what has vanished, it would only lose that."""
        return not self.changes.vanished


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at some hours found.

    :param hours: how many were looked at
    :param complete: how many of them are complete
    :param changed: those of the complete ones whose raw objects have changed
    :param unclear: why others could not be compared, for people
    """

    hours: int
    complete: int
    changed: Sequence[ChangedHour]
    unclear: Sequence[str]


def recent_hours(now: datetime, days: int) -> list[datetime]:
    """The hours of the last days that have ended, the oldest first."""
    present = floor_hour(now)
    return hours_between(present - timedelta(days=days), present)


def look_back(store: ObjectStore, stream: Stream, hours: Iterable[datetime]) -> Looked:
    """Hold the raw objects of complete hours, as they are listed now, against what was packed.

    The listing gives the plan that it would be packed under today; where the completion marker names the
    very same, nothing has changed, and nothing else is read. Otherwise the manifest tells what has. Hours
    that are not complete are left to their own runs.

    :raises RollupError: as the store raises
    """
    looked = complete = 0
    changed: list[ChangedHour] = []
    unclear: list[str] = []
    for hour in hours:
        looked += 1
        try:
            changes = _changes(store, stream, hour)
        except ProofError as error:
            log.warning("hour %s cannot be compared: %s", format_hour(hour), error)
            unclear.append(f"{format_hour(hour)}: {error}")
            changes = Changes((), (), ())
        if changes is None:
            continue
        complete += 1
        if changes:
            changed.append(ChangedHour(hour, changes))
            log.info("hour %s: %s", format_hour(hour), changes)
    return Looked(looked, complete, changed, unclear)


def _changes(store: ObjectStore, stream: Stream, hour: datetime) -> Changes | None:
    """What has changed since the hour was completed, None if it is not complete."""
    paths = stream.at(hour)
    marker = Records(store).read_marker(paths.marker)
    if marker is None:
        return None
    chosen, left_out = select(list_all(store, paths.raw), paths.raw.key, stream.ready_object)
    try:
        plan = make_plan(chosen, left_out, stream.part_size, stream.write_options)
        if marker.content and plan.content_id == content_id_of(marker.content.plan_id):
            return Changes((), (), ())
    except UnsupportedInputError:
        # An object that cannot be packed has come: its rerun says what to do about it.
        pass
    manifest = open_manifest(store, paths.manifest)
    if manifest is None:
        raise ProofError(f"there is no {paths.manifest}, which says what was packed; clear the hour's run")
    return compare((planned for planned, _ in manifest.parts()), chosen)
