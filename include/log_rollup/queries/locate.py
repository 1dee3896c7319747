"""Finds a raw object in its part, and reads it from there: the raw one may have expired long ago."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from awscrt import checksums

from include.log_rollup import crc
from include.log_rollup.errors import ConfigurationError, InputChangedError, NotFoundError, ProofError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.manifest import open_manifest
from include.log_rollup.hour.parts import read_runs, spans
from include.log_rollup.hour.records import Records
from include.log_rollup.storage.protocol import Location, ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import MIB

# An object up to this size is read in one request, and handed out when its CRC is known to be right.
IN_ONE_PIECE_BYTES = 32 * MIB

_HOUR = re.compile(r"([0-9]{8}/[0-9]{2})/.+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Located:
    """Where the bytes of a raw object lie.

    :param part: the part that holds them, ``part_etag`` as it was when it was proven
    :param offset: where in the part they begin, in bytes
    :param length: how many bytes it has
    :param etag: of the raw object when it was packed
    :param crc64nvme: of its bytes
    :param checked: how its bytes were checked when it was packed
    :param complete: whether the completion marker stands; without it the part may be replaced at any time
    """

    stream: str
    key: str
    hour: datetime
    part: Location
    part_etag: str
    offset: int
    length: int
    etag: str
    crc64nvme: int | None
    checked: str
    complete: bool


def hour_of_key(stream: Stream, key: str) -> datetime:
    """The hour to which a raw object belongs, by its key.

    :raises ConfigurationError: if it is not the key of a raw object of this stream
    """
    name = key.removeprefix(stream.raw.key)
    match = _HOUR.fullmatch(name) if key.startswith(stream.raw.key) else None
    try:
        if match:
            return datetime.strptime(match[1], "%Y%m%d/%H").replace(tzinfo=UTC)
    except ValueError:
        pass
    raise ConfigurationError(
        f"{key!r} is not the key of a raw object of stream {stream.name!r}: those look like "
        f"{stream.raw.key}20261123/08/web-01/0001.log"
    )


def locate(store: ObjectStore, stream: Stream, key: str) -> Located:
    """Find a raw object in the parts of its hour, by the hour's manifest.

    :raises ConfigurationError: if it is not the key of a raw object of this stream
    :raises NotFoundError: if the hour has no manifest, or the manifest does not have the object
    :raises RollupError: as the store raises
    """
    paths = stream.at(hour_of_key(stream, key))
    manifest = open_manifest(store, paths.manifest)
    if manifest is None:
        raise NotFoundError(
            f"hour {format_hour(paths.hour)}: there is no {paths.manifest}; the objects of an hour are in its "
            f"parts when it is complete"
        )
    marker = Records(store).read_marker(paths.marker)
    complete = marker is not None and marker.is_of(manifest.totals.plan_id)
    for planned, packed in manifest.parts():
        for index, item in enumerate(planned.objects):
            if item.key == key:
                done = packed.objects[index]
                return Located(
                    stream=stream.name,
                    key=key,
                    hour=paths.hour,
                    part=paths.part(planned.name),
                    part_etag=packed.etag,
                    offset=spans(planned, packed)[index][0],
                    length=item.size,
                    etag=item.etag,
                    crc64nvme=done.crc64nvme,
                    checked=done.checked,
                    complete=complete,
                )
    raise NotFoundError(
        f"{key!r} is not among the {manifest.totals.objects:,} raw objects of {paths.manifest}: it came late, "
        f"was left out, or never was"
    )


def read_located(store: ObjectStore, located: Located) -> Iterator[bytes]:
    """The bytes of a raw object out of its part.

    Up to :data:`IN_ONE_PIECE_BYTES` they come at once, and only if their CRC is right. A larger one comes a
    few MiB at a time, and it is behind the last of them that a wrong CRC is told.

    :raises ProofError: if the bytes are not those of the raw object (what was handed out is worth nothing
        then), or the part is gone or was written anew
    :raises RollupError: as the store raises
    """
    try:
        if located.length <= IN_ONE_PIECE_BYTES:
            body = _read_once(store, located)
            _check(located, crc.crc64(body))
            yield body
            return
        value = 0
        for run in read_runs(store, located.part, located.part_etag, located.length, located.offset):
            value = checksums.crc64nvme(run, value)
            yield run
        _check(located, value)
    except (NotFoundError, InputChangedError) as error:
        raise ProofError(
            f"{error}: the part is not there as hour {format_hour(located.hour)} was proven with it; a run may be "
            f"replacing it. If none is at work, clear the hour's run from plan_hour on."
        ) from error


def _read_once(store: ObjectStore, located: Located) -> bytes:
    # A range has at least one byte.
    if not located.length:
        return b""
    return store.read_range(located.part, located.part_etag, located.offset, located.length)


def _check(located: Located, value: int) -> None:
    if value != located.crc64nvme:
        stated = "none" if located.crc64nvme is None else crc.to_hex(located.crc64nvme)
        raise ProofError(
            f"{located.part}: the {located.length:,} bytes of {located.key} at {located.offset:,} have the "
            f"CRC64-NVME {crc.to_hex(value)}, and the manifest says {stated}: they are not what was packed. "
            f"`log-rollup verify {located.stream} {located.hour:%Y-%m-%dT%H} --deep` tells what else is wrong, "
            f"and what to do."
        )
