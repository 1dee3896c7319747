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
from include.log_rollup.queries.locate import Located, read_located
from include.log_rollup.queries.locate import locate as find
from log_rollup_plugin.cli.arguments import find_stream, key_of
from log_rollup_plugin.cli.output import Answer, Progressing, tell
from log_rollup_plugin.cli.store import open_store


def locate(options: argparse.Namespace, answer: Answer) -> bool:
    """say in which part a raw object lies, and where in it"""
    stream = find_stream(options.stream)
    with open_store(stream) as store:
        found = find(store, stream, key_of(stream, options.key))
    if options.json:
        answer.json(_located(found))
    else:
        answer.lines(f"{found.part}  offset {found.offset:,}  length {found.length:,}")
        if not found.complete:
            tell(
                f"hour {format_hour(found.hour)} is not complete at present: the part may be replaced at any time"
            )
    return True


def _located(found: Located) -> dict[str, Any]:
    return {
        "stream": found.stream,
        "hour": format_hour(found.hour),
        "complete": found.complete,
        "key": found.key,
        "part": found.part.key.rpartition("/")[2],
        "part_url": f"{found.part}",
        "part_etag": found.part_etag,
        "offset": found.offset,
        "length": found.length,
        "etag": found.etag,
        "crc64nvme": None if found.crc64nvme is None else crc.to_hex(found.crc64nvme),
        "checked": found.checked,
    }


def cat(options: argparse.Namespace, answer: Answer) -> bool:
    """write the bytes of a raw object, out of its part and with their CRC checked"""
    if options.json and not options.output:
        raise ConfigurationError(
            "--json needs --output FILE here: without it the object itself is the output"
        )
    stream = find_stream(options.stream)
    with open_store(stream) as store:
        found = find(store, stream, key_of(stream, options.key))
        # On a terminal the object itself would run through the bar.
        shown = bool(options.output) or not answer.is_terminal
        with _output(options.output, answer) as out, Progressing(f"reading {found.part}", shown) as progress:
            done = 0
            for piece in read_located(store, found):
                out.write(piece)
                done += len(piece)
                progress(done, found.length)
    if options.json:
        answer.json(_located(found) | {"output": options.output})
    return True


@contextmanager
def _output(name: str | None, answer: Answer) -> Iterator[IO[bytes]]:
    """Standard output, or a file that takes the place of an older one when all of it is written."""
    if name is None:
        with answer.open_bytes() as out:
            yield out
        return
    target = Path(name).resolve()
    try:
        if target.exists() and not target.is_file():
            # A device or a pipe is written to, and not replaced.
            with target.open("wb") as out:
                yield out
            return
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            written = Path(file.name)
            try:
                yield file.file
            except BaseException:
                written.unlink()
                raise
        written.replace(target)
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror}") from error
