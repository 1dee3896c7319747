"""What the bucket alone says of hours: complete, being built, or neither."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from include.log_rollup.records import Records
from include.log_rollup.store import ObjectStore
from include.log_rollup.streams import Stream


class HourState(StrEnum):
    """Complete if and only if the marker is there; building if a run has claimed the hour."""

    COMPLETE = "complete"
    BUILDING = "building"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class HourStatus:
    """An hour as its records tell it.

    :param marker: the content of its ``_SUCCESS``; empty where another version wrote it, None where there is none
    """

    hour: datetime
    state: HourState
    marker: Mapping[str, Any] | None


def read_hours(store: ObjectStore, stream: Stream, hours: Sequence[datetime]) -> list[HourStatus]:
    """The status of hours, in their order: one GET for each that is complete, two for each other.

    :raises RollupError: as the store raises
    """
    records = Records(store)

    def read(hour: datetime) -> HourStatus:
        paths = stream.at(hour)
        marker = records.read_marker(paths.marker)
        if marker is not None:
            return HourStatus(hour, HourState.COMPLETE, marker)
        claimed = records.read_claim(paths.claim) is not None
        return HourStatus(hour, HourState.BUILDING if claimed else HourState.INCOMPLETE, None)

    with ThreadPoolExecutor(store.control_connections, "log-rollup-status") as threads:
        return list(threads.map(read, hours))
