"""The commands about one raw object: locate, cat."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from include.log_rollup import crc
from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.locate import ObjectLocation, read_object
from include.log_rollup.queries.locate import locate as find
from log_rollup_plugin.cli.arguments import find_stream, key_of
from log_rollup_plugin.cli.output import Answer, ProgressDisplay, tell
from log_rollup_plugin.cli.store import open_store

# Beginning of the names of temporary files. One that a killed process left behind may be deleted.
_TEMPORARY = ".log-rollup-cat-"


def locate(options: argparse.Namespace, answer: Answer) -> bool:
    """show which part contains a raw object, and at which offset"""
    stream = find_stream(options.stream)
    with open_store(stream) as store:
        found = find(store, stream, key_of(stream, options.key))
        part = store.head(found.part)
    is_archived = part is not None and part.is_archived
    is_as_proven = part is not None and part.etag == found.part_etag
    if options.json:
        answer.json(_located(found) | {"archived": is_archived})
    else:
        place = found.place
        frame = place.frame
        within = (
            ""
            if frame is None
            else f"  in the {found.compression} frame at {place.frame_offset:,}, {frame.size:,} bytes"
        )
        answer.lines(f"{found.part}  offset {place.offset:,}  length {found.length:,}{within}")
        if found.recompressed:
            tell(_recompressed(found))
        _tell_older_versions(found)
        if not found.complete:
            tell(f"hour {format_hour(found.hour)} is not complete now: the part may be replaced at any time")
        if part is not None and is_archived:
            what = "it is being retrieved" if part.is_being_retrieved else "retrieve it before you read it"
            tell(f"the part is archived ({part.storage_class}): {what}")
    if not is_as_proven:
        what = "has been deleted" if part is None else "has been written again"
        tell(
            f"the part {what} since it was proven, so the object cannot be read from it; run `log-rollup verify "
            f"{found.stream} {found.hour:%Y-%m-%dT%H}`, which says what to do"
        )
    return is_as_proven


def _located(found: ObjectLocation) -> dict[str, Any]:
    return {
        "stream": found.stream,
        "hour": format_hour(found.hour),
        "complete": found.complete,
        "key": found.key,
        "part": found.part.key.rpartition("/")[2],
        "part_url": f"{found.part}",
        "part_etag": found.part_etag,
        "offset": found.place.offset,
        "length": found.length,
        "compression": found.compression or None,
        "frame_offset": found.place.frame_offset if found.place.frame else None,
        "frame_length": found.place.frame.size if found.place.frame else None,
        "etag": found.etag,
        "crc64nvme": None if found.crc64nvme is None else crc.to_hex(found.crc64nvme),
        "checked": found.checked,
        "recompressed": found.recompressed,
        "raw_length": found.raw_length,
        "older_versions": found.older_versions,
    }


def _tell_older_versions(found: ObjectLocation) -> None:
    if found.older_versions:
        tell(
            f"this is the newest version of the object; parts have {found.older_versions} older ones, which had "
            f"expired before it was written again"
        )


def _recompressed(found: ObjectLocation) -> str:
    return f"the object was recompressed: the part has its content, not its {found.raw_length:,} bytes"


def cat(options: argparse.Namespace, answer: Answer) -> bool:
    """write the bytes of a raw object, read from its part and compared with its CRC"""
    if options.json and not options.output:
        raise ConfigurationError(
            "--json needs --output FILE here, because without it the object itself is the output"
        )
    stream = find_stream(options.stream)
    with open_store(stream) as store:
        found = find(store, stream, key_of(stream, options.key))
        # On a terminal, the object's bytes would overwrite the progress bar.
        shown = bool(options.output) or not answer.is_terminal
        with (
            _output(options.output, answer) as out,
            ProgressDisplay(f"reading {found.part}", shown) as progress,
        ):
            done = 0
            for piece in read_object(store, found):
                out.write(piece)
                done += len(piece)
                progress(done, found.length)
    if found.recompressed:
        tell(_recompressed(found))
    _tell_older_versions(found)
    if options.json:
        answer.json(_located(found) | {"output": options.output})
    return True


@contextmanager
def _output(name: str | None, answer: Answer) -> Iterator[IO[bytes]]:
    """Standard output, or a file that replaces an older one only after all of it has been written."""
    if name is None:
        with answer.open_bytes() as out:
            yield out
        return
    target = Path(name)
    try:
        if target.exists() and not target.is_file():
            # Write to a device or a pipe; don't replace it. /dev/fd/1 is a link to a pipe, which has no path.
            with target.open("wb") as out:
                yield out
            return
        target = target.resolve()
        # Not the target's name, which may be as long as the file system allows.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=_TEMPORARY, delete=False) as file:
            written = Path(file.name)
            try:
                yield file.file
                file.flush()
            except BaseException:
                written.unlink()
                raise
        written.replace(target)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror}") from error
