"""The demo's data set: the made raw hours, their streams file and their record."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from dev.made_logs.layouts import LAYOUTS, PLAIN, SEED, Layout
from dev.made_logs.log_files import MadeGroup, MadeHour, last_complete_hours
from dev.stack.paths import BUCKET, StackPaths, read_json, write_json
from dev.stack.s3_servers import RCLONE

NONE = "none"
COMPRESSIONS = (NONE, "zstd", "gzip")
# Bytes on disk for each raw byte: raw objects, their parts, new parts next to old ones in a rerun, and a reserve.
_DISK_FACTOR = 2.5

_STREAMS_FILE = """\
# Written by `python -m dev.demo`: the stream of the made raw hours.
defaults: {{aws_conn_id: aws_default, quiet_period: 1s}}
streams:
  - name: {stream}
    raw: s3://{bucket}/{raw}
    aggregated: s3://{bucket}/{aggregated}
    compression: {compression}
    recompress: {recompress}
    start: {start:%Y-%m-%dT%H:%M:%SZ}
    # The demo writes no further raw objects, so later hours of `make up` are empty.
    allow_empty: true
"""


@dataclass(frozen=True)
class Dataset:
    """The made hours, the oldest first.

    :param s3: name of the S3 server that serves them
    :param layout_name: a key of :data:`dev.made_logs.layouts.LAYOUTS`
    """

    hours: tuple[MadeHour, ...]
    s3: str = RCLONE
    layout_name: str = PLAIN

    @property
    def layout(self) -> Layout:
        """The layout of the raw objects."""
        return LAYOUTS[self.layout_name]

    @property
    def by_hour(self) -> Mapping[datetime, MadeHour]:
        """The made hours by their start in UTC."""
        return {made.hour: made for made in self.hours}


class NotEnoughDiskError(Exception):
    """The disk has too little space for the raw objects and their parts."""


def make_dataset(
    paths: StackPaths,
    hours: int,
    objects: int,
    now: datetime,
    log: Callable[[str], None],
    s3: str = RCLONE,
    layout_name: str = PLAIN,
    compression: str = NONE,
    recompress: bool = False,
) -> Dataset:
    """Write the raw hours as files into the bucket's directory, then the streams file, then the record.

    Call it before the S3 server starts: rclone caches directories for minutes, and a server that keeps objects in
    memory gets them when it starts.

    :param hours: number of hours, the last complete ones before `now`
    :param objects: raw objects in each hour
    :param log: called with a message after each hour
    :param s3: name of the S3 server that will serve them
    :param layout_name: a key of :data:`dev.made_logs.layouts.LAYOUTS`
    :param compression: of the parts, one of :data:`COMPRESSIONS`
    :param recompress: whether compressed raw objects are decompressed first; needs a compression
    :raises NotEnoughDiskError: before anything is written
    """
    paths.bucket.mkdir(parents=True, exist_ok=True)
    layout = LAYOUTS[layout_name]
    _check_disk(paths.bucket, round(hours * objects * layout.mean_bytes * _DISK_FACTOR))
    made: list[MadeHour] = []
    for hour in last_complete_hours(hours, now):
        made.append(layout.write(paths.bucket, hour, len(made), objects))
        log(_describe(made[-1]))
    paths.streams.write_text(
        _STREAMS_FILE.format(
            stream=layout.stream,
            bucket=BUCKET,
            raw=layout.raw,
            aggregated=layout.aggregated,
            compression=compression,
            recompress=str(recompress).lower(),
            start=made[0].hour,
        )
    )
    entries = [asdict(each) | {"hour": each.hour.isoformat()} for each in made]
    write_json(paths.dataset, {"seed": SEED, "s3": s3, "layout": layout_name, "hours": entries})
    return Dataset(hours=tuple(made), s3=s3, layout_name=layout_name)


def read_dataset(paths: StackPaths) -> Dataset | None:
    """Return the data set, or None if there is no complete one."""
    record = read_json(paths.dataset)
    if record is None or not paths.streams.exists():
        return None
    return Dataset(
        hours=tuple(
            MadeHour(
                hour=datetime.fromisoformat(entry["hour"]).astimezone(UTC),
                objects=entry["objects"],
                bytes=entry["bytes"],
                groups=tuple(MadeGroup(**group) for group in entry.get("groups", ())),
            )
            for entry in record["hours"]
        ),
        # Records of earlier versions name neither the server nor the layout: they were always these.
        s3=record.get("s3", RCLONE),
        layout_name=record.get("layout", PLAIN),
    )


def _describe(made: MadeHour) -> str:
    """Describe an hour: `made 300 raw objects for 2026-11-23 08:00 UTC, 157 MB: web 150, api 150`."""
    text = f"made {made.objects:,} raw objects for {made.hour:%Y-%m-%d %H:%M} UTC, {made.bytes / 1e6:,.0f} MB"
    groups = ", ".join(f"{group.name} {group.objects:,}" for group in made.groups)
    return f"{text}: {groups}" if groups else text


def _check_disk(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise NotEnoughDiskError(
            f"the demo needs about {needed_bytes / 1e9:.1f} GB in {folder}, and {free_bytes / 1e9:.1f} GB "
            "are free: set fewer HOURS or OBJECTS, or free some disk space"
        )
