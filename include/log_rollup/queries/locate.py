"""Finds a raw object in its part and reads it from there, also after the raw object has expired."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from include.log_rollup import crc
from include.log_rollup.errors import ConfigurationError, InputChangedError, NotFoundError, ProofError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.manifest import ManifestReader, open_manifest
from include.log_rollup.hour.parts import (
    Place,
    decompress_frame,
    held_crc,
    held_size,
    places,
    read_runs,
)
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import PackedPart, Records
from include.log_rollup.hour.why_no_hour import why_no_hour
from include.log_rollup.queries.older_versions import may_have_older_versions
from include.log_rollup.storage.protocol import Location, ObjectStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import MIB

# An object up to this size is read in one request, and returned after its CRC was compared.
IN_ONE_PIECE_BYTES = 32 * MIB
_EXAMPLE_HOUR = datetime(2026, 11, 23, 8)  # noqa: DTZ001 - a local time


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """Where the bytes of a raw object are.

    :param part: the part that holds them
    :param part_etag: ETag of the part when it was proven
    :param place: offset of the object in the part, or its frame and the offset in the frame's content
    :param compression: of the part; empty for none
    :param length: of what the part has of it, in bytes: the object, or the content of a recompressed one
    :param etag: of the raw object when it was packed
    :param crc64nvme: of what the part has of it
    :param checked: kind of proof of its bytes, as in the manifest
    :param complete: whether the hour is complete; if not, a run may replace the part at any time
    :param recompressed: whether the part has its content instead of its bytes
    :param older_versions: number of older versions of the object in other parts: it was written again after it
        had expired
    :param raw_length: of the raw object, in bytes
    """

    stream: str
    key: str
    hour: datetime
    part: Location
    part_etag: str
    place: Place
    compression: str
    length: int
    etag: str
    crc64nvme: int | None
    checked: str
    complete: bool
    recompressed: bool = False
    raw_length: int = 0
    older_versions: int = 0


def hour_of_key(stream: Stream, key: str) -> datetime:
    """The hour of a raw object, from its key. Whether there is such an object, the hour's manifest says.

    :raises ConfigurationError: if it is not the key of a raw object of this stream
    """
    found = stream.raw.match(key)
    # The rest of the key may be empty: an object that is named like the folder is input if it has content.
    if found is not None:
        return found.hour
    # A template may end within a step of the key.
    rest = "web-01/0001.log" if stream.raw.text.endswith("/") else "-0001.log"
    why = why_no_hour(stream.raw, key)
    raise ConfigurationError(
        f"{key!r} is not the key of a raw object of stream {stream.name!r}: {why}. Keys of this stream look like "
        f"{stream.raw.fill(_EXAMPLE_HOUR, stream.raw.unknown_captures)}{rest}"
    )


def locate(store: ObjectStore, stream: Stream, key: str) -> ObjectLocation:
    """Find a raw object in the parts of its hour, from the hour's manifest; of several versions the newest.

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
    found = _find(manifest, key, only_first=not may_have_older_versions(manifest, marker))
    if not found:
        raise NotFoundError(
            f"{key!r} is not among the {manifest.totals.objects:,} raw objects of {paths.manifest}: it came late, "
            f"was left out, or never existed"
        )
    # The newest version is in the last part.
    planned, packed, index = found[-1]
    item, done = planned.objects[index], packed.objects[index]
    return ObjectLocation(
        stream=stream.name,
        key=key,
        hour=paths.hour,
        part=paths.part(planned.name),
        part_etag=packed.etag,
        place=next(islice(places(planned, packed), index, None)),
        compression=planned.compression,
        length=held_size(item, done),
        etag=item.etag,
        crc64nvme=held_crc(done),
        checked=done.checked,
        complete=marker is not None and marker.is_of(manifest.totals.plan_id),
        recompressed=done.content is not None,
        raw_length=item.size,
        older_versions=len(found) - 1,
    )


def _find(
    manifest: ManifestReader, key: str, *, only_first: bool
) -> list[tuple[PlannedPart, PackedPart, int]]:
    """The parts that hold a raw object, each with its index there, in the order of the manifest."""
    found = []
    for planned, packed in manifest.parts():
        for index, item in enumerate(planned.objects):
            if item.key == key:
                found.append((planned, packed, index))
                if only_first:
                    return found
    return found


def read_object(store: ObjectStore, location: ObjectLocation) -> Iterator[bytes]:
    """Read a raw object from its part; of a recompressed one the content.

    An object up to :data:`IN_ONE_PIECE_BYTES` is returned in one piece, after its CRC was compared. A larger one
    is returned in pieces of a few MiB, and its CRC is compared after the last one.

    :raises ProofError: if the CRC is wrong (pieces that were returned are not valid then), or if the part no
        longer exists or was overwritten
    :raises RollupError: as the store raises
    """
    try:
        if location.place.frame is not None or location.length <= IN_ONE_PIECE_BYTES:
            body = _read_once(store, location)
            _check(location, crc.crc64(body))
            yield body
            return
        value = 0
        for run in read_runs(
            store, location.part, location.part_etag, location.length, location.place.offset
        ):
            value = crc.crc64(run, value)
            yield run
        _check(location, value)
    except (NotFoundError, InputChangedError) as error:
        raise ProofError(
            f"{error}: the part changed after hour {format_hour(location.hour)} was completed; a run may be "
            f"replacing it. If no run is active, clear the hour's run from plan_hour on."
        ) from error


def _read_once(store: ObjectStore, location: ObjectLocation) -> bytes:
    # An HTTP range has at least one byte.
    if not location.length:
        return b""
    place = location.place
    if place.frame is None:
        return store.read_range(location.part, location.part_etag, place.offset, location.length)
    frame = store.read_range(location.part, location.part_etag, place.frame_offset, place.frame.size)
    content = decompress_frame(location.part, location.compression, frame, place.frame.content)
    return content[place.offset : place.offset + location.length]


def _check(location: ObjectLocation, value: int) -> None:
    if value != location.crc64nvme:
        stated = "none" if location.crc64nvme is None else crc.to_hex(location.crc64nvme)
        offset = location.place.offset
        raise ProofError(
            f"{location.part}: the {location.length:,} bytes of {location.key} at {offset:,} have the "
            f"CRC64-NVME {crc.to_hex(value)}, but the manifest states {stated}: they are not what was packed. "
            f"Run `log-rollup verify {location.stream} {location.hour:%Y-%m-%dT%H} --deep`, which shows all "
            f"damage and what to do."
        )
