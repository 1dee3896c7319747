"""The command status without a stream: an overview of all streams."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from include.log_rollup import limits
from include.log_rollup.errors import RollupError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.overview import (
    OVERVIEW_HOURS,
    IncompleteHour,
    StreamOverview,
    read_overview,
)
from include.log_rollup.queries.volume import Comparison, VolumeReport, VolumeState
from include.log_rollup.streams import Stream, load_streams
from include.log_rollup.units import format_size
from log_rollup_plugin.cli.output import LINE_SECONDS, Answer, table, tell
from log_rollup_plugin.cli.store import open_connection

# Number of incomplete hours and of unusual groups of a stream that the text names.
_MOST_HOURS = 5
_MOST_GROUPS = 5
_UNREADABLE = 3
_HEADINGS = (
    "stream", "last complete (UTC)", "behind", "complete / due", "empty", "bytes in", "bytes stored", "volume",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Row:
    """What was read of a stream.

    :param overview: None if its bucket could not be read
    :param error: why
    """

    stream: Stream
    overview: StreamOverview | None
    incomplete: Sequence[IncompleteHour] = ()
    error: str = ""

    @property
    def severity(self) -> int:
        """The order of the rows: 0 for a stream that could not be read, up to 3 for one without a problem."""
        if self.overview is None:
            return 0
        if not self.overview.is_whole:
            return 1
        return 2 if self.overview.volume.is_unusual else 3


def status_of_all(answer: Answer, as_json: bool) -> bool | int:
    """Show one line for each stream, those with problems first.

    :returns: whether every hour that should be complete is; 3 if a bucket could not be read
    """
    now = datetime.now(UTC)
    streams = load_streams()
    read = {row.stream.name: row for row in _read_all(streams, now)}
    rows = [read[stream.name] for stream in streams]
    whole = all(row.overview is not None and row.overview.is_whole for row in rows)
    if as_json:
        answer.json(
            {
                "now": format_hour(now),
                "hours": OVERVIEW_HOURS,
                "whole": whole,
                "streams": [_document(row) for row in rows],
            }
        )
    else:
        _show(answer, sorted(rows, key=lambda row: row.severity))
    return _UNREADABLE if any(row.overview is None for row in rows) else whole


def _read_all(streams: Sequence[Stream], now: datetime) -> Iterator[_Row]:
    """Read all streams, one bucket after the other, each over connections of its own."""
    shown = time.monotonic()
    done = 0
    for (conn_id, _), group in groupby(sorted(streams, key=_place), key=_place):
        with open_connection(conn_id, limits.COMMAND_CONNECTIONS) as store:
            for stream in group:
                try:
                    yield _Row(stream, *read_overview(store, stream, now))
                except RollupError as error:
                    yield _Row(stream, None, error=str(error))
                done += 1
                if time.monotonic() - shown >= LINE_SECONDS:
                    shown = time.monotonic()
                    tell(f"read {done:,} of {len(streams):,} streams")


def _place(stream: Stream) -> tuple[str, str]:
    """The Airflow connection and the bucket of a stream's parts."""
    return stream.connection_of_aggregated, stream.aggregated.bucket


def _show(answer: Answer, rows: Sequence[_Row]) -> None:
    if not rows:
        tell("there are no streams in the streams file")
        return
    answer.lines(*table(_HEADINGS, [_cells(row) for row in rows], (0, 1, len(_HEADINGS) - 1)))
    whole = sum(row.overview is not None and row.overview.is_whole for row in rows)
    due = sum(row.overview.due for row in rows if row.overview)
    incomplete = sum(len(row.incomplete) for row in rows)
    answer.lines(
        "",
        f"{whole:,} of {len(rows):,} streams whole; {due - incomplete:,} of {due:,} due hours complete",
    )
    for row in rows:
        answer.lines(*(f"{row.stream.name}: {line}" for line in _notes(row)))


def _cells(row: _Row) -> Sequence[str]:
    found = row.overview
    if found is None:
        return [row.stream.name, "could not be read", *["-"] * (len(_HEADINGS) - 2)]
    return [
        row.stream.name,
        f"{found.last_complete:%Y-%m-%d %H:%M}" if found.last_complete else f"none in {OVERVIEW_HOURS} h",
        f"{found.hours_behind} h" if found.hours_behind else "-",
        f"{found.due - len(found.incomplete)} / {found.due}",
        f"{found.empty:,}",
        f"{found.bytes_in:,}",
        f"{found.bytes_stored:,}",
        _volume(found.volume),
    ]


def _volume(report: VolumeReport) -> str:
    """Like ``usual; unusual groups: 1 of 41``."""
    text = "-" if report.state is VolumeState.UNKNOWN else report.state.value
    if report.unusual:
        text += f"; unusual groups: {len(report.unusual):,} of {report.groups:,}"
    return text


def _notes(row: _Row) -> Iterator[str]:
    """Lines about the problems of a stream."""
    if row.overview is None:
        yield row.error
        return
    for found in row.incomplete[:_MOST_HOURS]:
        yield f"{format_hour(found.hour)} is {found.state.value}" + (
            f": {found.problem}" if found.problem else ""
        )
    if len(row.incomplete) > _MOST_HOURS:
        yield f"and {len(row.incomplete) - _MOST_HOURS:,} more hours; --json has all"
    report = row.overview.volume
    if report.state in (VolumeState.SILENT, VolumeState.SHRUNK):
        yield _unusual(report.comparison)
    for group in report.unusual[:_MOST_GROUPS]:
        yield f"group {group.name}: {_unusual(group.comparison)}"
    if len(report.unusual) > _MOST_GROUPS:
        yield f"and {len(report.unusual) - _MOST_GROUPS:,} more groups; --json has all"


def _unusual(found: Comparison) -> str:
    return (
        f"{found.state.value}: {found.objects:,} objects with {format_size(found.bytes_in)} in the last complete "
        f"hours; usual are {found.usual_objects:,} with {format_size(found.usual_bytes_in)}"
    )


def _document(row: _Row) -> Mapping[str, Any]:
    found = row.overview
    document: dict[str, Any] = {"stream": row.stream.name, "error": row.error or None}
    if found is None:
        return document
    return document | {
        "whole": found.is_whole,
        "last_complete": format_hour(found.last_complete) if found.last_complete else None,
        "hours_behind": found.hours_behind,
        "due": found.due,
        "complete": found.complete,
        "empty": found.empty,
        "incomplete": [
            {"hour": format_hour(one.hour), "state": one.state.value, "problem": one.problem or None}
            for one in row.incomplete
        ],
        "objects": found.objects,
        "bytes_in": found.bytes_in,
        "bytes_stored": found.bytes_stored,
        "volume": {
            **asdict(found.volume.comparison),
            "hours": [format_hour(hour) for hour in found.volume.hours],
            "weeks": found.volume.weeks,
        },
        "groups": {
            "compared": found.volume.groups,
            "unusual": [{"name": one.name, **asdict(one.comparison)} for one in found.volume.unusual],
        },
    }
