"""Finds complete hours whose raw objects came late, changed or vanished after completion."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from include.log_rollup.errors import ArchivedError, ProofError
from include.log_rollup.hour.changes import Changes, compare
from include.log_rollup.hour.layout import floor_hour, format_hour, hours_between
from include.log_rollup.hour.manifest import open_manifest
from include.log_rollup.hour.raw_digest import is_as_completed
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.hour.records import Records
from include.log_rollup.hour.selection import select
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChangedHour:
    """A complete hour whose raw objects have changed since completion."""

    hour: datetime
    changes: Changes

    @property
    def can_be_rerun(self) -> bool:
        """Whether a rerun packs the changes. It would lose objects that have vanished, so it is refused then."""
        return not self.changes.vanished


@dataclass(frozen=True, slots=True)
class LateCheckResult:
    """The result of comparing some hours with their raw objects.

    :param hours: number of hours
    :param complete: how many of them are complete
    :param changed: the complete hours whose raw objects have changed
    :param unclear: for each complete hour that could not be compared, a message that says why
    """

    hours: int
    complete: int
    changed: Sequence[ChangedHour]
    unclear: Sequence[str]


def recent_hours(now: datetime, days: int) -> list[datetime]:
    """The hours of the last days, the oldest first, up to the last one that has ended."""
    present = floor_hour(now)
    return hours_between(present - timedelta(days=days), present)


def find_changed_hours(store: ObjectStore, stream: Stream, hours: Iterable[datetime]) -> LateCheckResult:
    """Compare the raw objects of complete hours, as they are listed now, with the packed ones.

    Fast path: if the digest of the listing is that in the completion marker, nothing has changed. Otherwise the
    manifest is read and compared key by key; raw objects that have expired as announced don't count. Hours that
    are not complete are skipped.

    :raises RollupError: as the store raises
    """
    count = complete = 0
    changed: list[ChangedHour] = []
    unclear: list[str] = []
    for hour in hours:
        count += 1
        try:
            changes = _changes(store, stream, hour)
        except (ProofError, ArchivedError) as error:
            log.warning("hour %s cannot be compared: %s", format_hour(hour), error)
            unclear.append(f"{format_hour(hour)}: {error}")
            changes = Changes((), (), ())
        if changes is None:
            continue
        complete += 1
        if changes:
            changed.append(ChangedHour(hour, changes))
            log.info("hour %s: %s", format_hour(hour), changes)
    return LateCheckResult(count, complete, changed, unclear)


def _changes(store: ObjectStore, stream: Stream, hour: datetime) -> Changes | None:
    """The changes since the hour was completed; None if it is not complete.

    :raises ProofError: if its records cannot be read
    :raises ArchivedError: if they are archived
    """
    paths = stream.at(hour)
    marker = Records(store).read_marker(paths.marker)
    if marker is None:
        return None
    listed = paths.raw.list_all(store)
    chosen, _ = select(listed, paths.name_of, stream.input_rules)
    if is_as_completed(marker.content, paths, chosen):
        return Changes((), (), ())
    manifest = open_manifest(store, paths.manifest)
    if manifest is None:
        raise ProofError(f"there is no {paths.manifest}, which says what was packed; clear the hour's run")
    expiry = HourReader(store, stream, hour).expiry_record()
    changes = compare((planned for planned, _ in manifest.parts()), chosen, expiry)
    if not changes.vanished:
        return changes
    # An object that is left out since, for example by a new `exclude`, has not vanished: plan_hour accepts it too.
    existing = {item.key for item in listed}
    return replace(changes, vanished=[key for key in changes.vanished if key not in existing])
