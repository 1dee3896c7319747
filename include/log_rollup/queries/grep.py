"""Searches the lines of the raw objects of some hours, mostly in their parts: a few requests for each hour."""

import math
import threading
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import chain, groupby
from operator import itemgetter
from typing import NamedTuple

from include.log_rollup.decompression import (
    COMPRESSED_ENCODINGS,
    LONGEST_MAGIC_BYTES,
    DamageError,
    decompress_pieces,
    encoding_of_content,
)
from include.log_rollup.errors import (
    ArchivedError,
    InputChangedError,
    NotFoundError,
    ProofError,
    UnreadableRecordError,
)
from include.log_rollup.hour.manifest import ManifestReader
from include.log_rollup.hour.parts import held_size
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.hour.records import PackedPart
from include.log_rollup.hour.selection import NOT_JOINABLE, OPAQUE, PLAIN, encoding_of, select
from include.log_rollup.parallel import stream_in_parallel
from include.log_rollup.queries.batches import BatchReader, plan_batches
from include.log_rollup.queries.line_pattern import LinePattern
from include.log_rollup.queries.line_search import Lines, LineSearch
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.older_versions import find_older_versions
from include.log_rollup.storage.protocol import LargeReadStore, Location, ObjectInfo
from include.log_rollup.streams import Stream
from include.log_rollup.units import MIB

# With the default part_size, one request reads a part.
_REQUEST_BYTES = 32 * MIB
# Raw objects that one thread reads one after the other.
_RAW_BATCH_BYTES = 8 * MIB
_RAW_BATCH_OBJECTS = 32
# The selected lines of a part that wait for those of the parts before it.
_BUFFER_BYTES = 2 * MIB
_LINE_OVERHEAD_BYTES = 64
# Hours whose records are read ahead, on threads of their own.
_HOURS_AHEAD = 4
_RECORD_THREADS = 2


class Output(StrEnum):
    """What is wanted of an object: its selected lines, their number, or only whether there are any."""

    LINES = "lines"
    COUNT = "count"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class GrepOptions:
    """What to search, and for what.

    :param invert: select the lines that do not match
    :param numbered: number the lines
    :param max_count: stop after this number of lines (with ``Output.KEY``, of keys) of all hours, or None
    :param incomplete: read the parts of hours that are not complete, if they have a manifest
    :param include_raw: read the raw objects of hours whose parts are not read
    """

    pattern: LinePattern
    objects: ObjectFilter
    output: Output = Output.LINES
    invert: bool = False
    numbered: bool = False
    max_count: int | None = None
    incomplete: bool = False
    include_raw: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Selected lines of an object; there may be more of them in the next result.

    :param count: how many lines; 1 with ``Output.KEY``
    """

    hour: datetime
    key: str
    count: int
    lines: Lines = field(default_factory=Lines)


class NoteKind(StrEnum):
    """What a note is about.

    - skipped: an hour that was not searched.
    - unproven: an hour that was searched although it is not complete.
    - unread: an object or part that was not searched to its end.
    - as bytes: an object of a format that is not decompressed.
    - long line: an object with a line that was searched in pieces.
    """

    SKIPPED = "skipped"
    UNPROVEN = "unproven"
    UNREAD = "unread"
    AS_BYTES = "as bytes"
    LONG_LINE = "long line"


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know about the result.

    :param name: key of the object or name of the part; empty for an hour
    :param text: the reason; the format, if it is about one
    """

    kind: NoteKind
    hour: datetime
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that were found to be searched, and bytes that have been searched, since the last one."""

    planned: int = 0
    done: int = 0


Result = Found | Note | Progress


@dataclass(frozen=True, slots=True)
class _Unit:
    """What one thread searches: objects of a part, or some raw objects; or only results about an hour.

    :param wanted: indices of objects of the part
    """

    hour: datetime
    part: tuple[Location, PlannedPart, PackedPart] | None = None
    wanted: Sequence[int] = ()
    raw: Sequence[ObjectInfo] = ()
    results: Sequence[Result] = ()


@dataclass(frozen=True, slots=True)
class _OpenHour:
    """The records of an hour.

    :param problem: why the hour is not complete; empty if it is
    :param raw: the raw objects to search; None to search the parts
    :param older: indices of the raw objects that are older versions, by the name of their part
    """

    paths: HourPaths
    manifest: ManifestReader | None
    problem: str
    raw: Sequence[ObjectInfo] | None = None
    older: Mapping[str, Collection[int]] = field(default_factory=dict)


class _Source(NamedTuple):
    """What some bytes belong to.

    :param is_content: whether they are the content of a recompressed object
    """

    key: str
    is_content: bool = False


def grep(
    store: LargeReadStore, stream: Stream, hours: Iterable[datetime], options: GrepOptions
) -> Generator[Result, None, None]:
    """Search the lines of the raw objects of some hours.

    Reads with as many threads as the store has control connections, each with up to 32 MiB of a part in memory.

    :returns: results in the order of hours, parts of an hour, objects of a part, and lines
    :raises RollupError: as the store raises
    """
    search = _Grep(store, stream, options)
    left = options.max_count
    with closing(search.units(hours)) as units:
        results = stream_in_parallel(
            store.control_connections, "log-rollup-grep", search.run, units,
            size_of=_size_of, buffer_size=_BUFFER_BYTES,
        )  # fmt: skip
        with closing(results):
            for result in results:
                if left is not None and isinstance(result, Found):
                    result = _first(result, left)
                    left -= result.count
                yield result
                if left == 0:
                    return


def _held_bytes(planned: PlannedPart, packed: PackedPart, wanted: Iterable[int]) -> int:
    return sum(held_size(planned.objects[index], packed.objects[index]) for index in wanted)


def _size_of(result: Result) -> int:
    if not isinstance(result, Found):
        return 0
    return sum(map(len, result.lines.lines)) + _LINE_OVERHEAD_BYTES * (1 + len(result.lines.lines))


def _first(found: Found, most: int) -> Found:
    """The first of the selected lines."""
    if found.count <= most:
        return found
    return Found(found.hour, found.key, most, Lines(found.lines.lines[:most], found.lines.numbers[:most]))


class _Grep:
    def __init__(self, store: LargeReadStore, stream: Stream, options: GrepOptions) -> None:
        self._store = store
        self._stream = stream
        self._options = options
        self._of_thread = threading.local()

    # -- what to search --------------------------------------------------------------------------------

    def units(self, hours: Iterable[datetime]) -> Generator[_Unit, None, None]:
        """What to search, in order; the records of a few hours are read ahead."""
        ahead: deque[Future[_OpenHour]] = deque()
        threads = ThreadPoolExecutor(_RECORD_THREADS, "log-rollup-grep-records")
        try:
            for hour in hours:
                ahead.append(threads.submit(self._open, hour))
                if len(ahead) > _HOURS_AHEAD:
                    yield from self._units_of(ahead.popleft().result())
            while ahead:
                yield from self._units_of(ahead.popleft().result())
        finally:
            threads.shutdown(cancel_futures=True)

    def _open(self, hour: datetime) -> _OpenHour:
        """Read the marker and the manifest of an hour; list its raw objects if they are to be searched."""
        reader = HourReader(self._store, self._stream, hour)
        paths = reader.paths
        marker = reader.marker()
        manifest = None
        try:
            manifest = reader.manifest()
        except UnreadableRecordError as error:
            problem = str(error)
        else:
            if manifest is None:
                problem = f"there is no {paths.manifest}"
            elif marker is None:
                problem = f"there is no {paths.marker}"
            elif marker.is_of(manifest.totals.plan_id):
                return _OpenHour(paths, manifest, "", older=find_older_versions(manifest, marker))
            else:
                problem = f"{paths.marker} cannot be read, or is of another plan than the manifest"
        raw = None
        if self._options.include_raw and not (manifest and self._options.incomplete):
            listed, _ = select(paths.raw.list_all(self._store), paths.name_of, self._stream.input_rules)
            raw = [row for row in listed if self._options.objects.takes(paths, row.key)]
        is_read = manifest is not None and raw is None and self._options.incomplete
        older = find_older_versions(manifest, marker) if manifest and is_read else {}
        return _OpenHour(paths, manifest, problem, raw, older)

    def _units_of(self, opened: _OpenHour) -> Iterator[_Unit]:
        hour = opened.paths.hour
        if opened.raw is not None:
            yield _Unit(
                hour, results=[Note(NoteKind.UNPROVEN, hour, f"raw objects were read: {opened.problem}")]
            )
            yield from self._raw_units(hour, opened.raw)
        elif opened.manifest is None or (opened.problem and not self._options.incomplete):
            yield _Unit(hour, results=[Note(NoteKind.SKIPPED, hour, opened.problem)])
        else:
            if opened.problem:
                yield _Unit(
                    hour, results=[Note(NoteKind.UNPROVEN, hour, f"parts were read: {opened.problem}")]
                )
            yield from self._part_units(opened.paths, opened.manifest, opened.older)

    def _raw_units(self, hour: datetime, rows: Sequence[ObjectInfo]) -> Iterator[_Unit]:
        yield _Unit(hour, results=[Progress(planned=sum(row.size for row in rows))])
        batch: list[ObjectInfo] = []
        size = 0
        for row in rows:
            if batch and (len(batch) >= _RAW_BATCH_OBJECTS or size + row.size > _RAW_BATCH_BYTES):
                yield _Unit(hour, raw=batch)
                batch, size = [], 0
            batch.append(row)
            size += row.size
        if batch:
            yield _Unit(hour, raw=batch)

    def _part_units(
        self, paths: HourPaths, manifest: ManifestReader, older: Mapping[str, Collection[int]]
    ) -> Iterator[_Unit]:
        objects = self._options.objects
        if objects.takes_all:
            yield _Unit(paths.hour, results=[Progress(planned=manifest.totals.bytes_held)])
        for planned, packed in manifest.parts():
            wanted = objects.indices(paths, planned)
            if planned.name in older:
                wanted = [index for index in wanted if index not in older[planned.name]]
            if not wanted:
                continue
            size = 0 if objects.takes_all else _held_bytes(planned, packed, wanted)
            part = (paths.part(planned.name), planned, packed)
            yield _Unit(paths.hour, part, wanted, results=[Progress(planned=size)])

    # -- searching -------------------------------------------------------------------------------------

    def run(self, unit: _Unit) -> Iterator[Result]:
        """Search one unit."""
        yield from unit.results
        for row in unit.raw:
            source = self._stream.raw.root.at(row.key)
            bodies = self._reader().read_range(source, row.etag, row.size)
            yield from self._search_one_by_one(
                unit.hour, row.key, ((_Source(row.key), body) for body in bodies)
            )
        if unit.part is not None:
            source, planned, packed = unit.part
            # Frames are decompressed one at a time, so their content needs no limit.
            batches = plan_batches(planned, packed, unit.wanted, _REQUEST_BYTES, math.inf)
            keyed = (
                (
                    _Source(
                        planned.objects[piece.index].key, packed.objects[piece.index].content is not None
                    ),
                    piece.body,
                )
                for batch in batches
                for piece in self._reader().read(source, planned, packed, batch)
            )
            yield from self._search_one_by_one(unit.hour, planned.name, keyed)

    def _reader(self) -> BatchReader:
        """The reader of this thread."""
        if not hasattr(self._of_thread, "reader"):
            self._of_thread.reader = BatchReader(self._store, _REQUEST_BYTES)
        reader: BatchReader = self._of_thread.reader
        return reader

    def _search_one_by_one(
        self, hour: datetime, name: str, pieces: Iterator[tuple["_Source", memoryview]]
    ) -> Iterator[Result]:
        """Search objects that come one after the other.

        :param name: of what is read, for a note
        :param pieces: bytes of the objects, each with what it belongs to
        """
        left = self._options.max_count
        try:
            for source, bodies in groupby(pieces, itemgetter(0)):
                for result in self._search_object(hour, source, (body for _, body in bodies)):
                    yield result
                    if left is not None and isinstance(result, Found):
                        left -= result.count
                        if left <= 0:
                            return
        except (NotFoundError, InputChangedError):
            yield Note(NoteKind.UNREAD, hour, "it was overwritten or removed while it was read", name)
        except ArchivedError:
            yield Note(NoteKind.UNREAD, hour, "it is archived; see --retrieve", name)
        except ProofError as error:
            yield Note(NoteKind.UNREAD, hour, str(error), name)

    def _search_object(
        self, hour: datetime, source: "_Source", bodies: Iterator[memoryview]
    ) -> Iterator[Result]:
        key, read = source.key, _Counter(bodies)
        beginning = _beginning(read)
        named = PLAIN if source.is_content else encoding_of(key)
        encoding = encoding_of_content(bytes(beginning[:LONGEST_MAGIC_BYTES]), named)
        content: Iterable[bytes | memoryview] = chain((beginning,), read)
        if encoding:
            content = decompress_pieces(encoding, content)
        elif beginning and (named in COMPRESSED_ENCODINGS or named in NOT_JOINABLE or named in OPAQUE):
            yield Note(NoteKind.AS_BYTES, hour, named, key)
        options = self._options
        search = LineSearch(options.pattern, invert=options.invert, numbered=options.numbered)
        count = 0
        damage = ""

        def blocks() -> Iterator[Lines]:
            nonlocal damage
            try:
                for piece in content:
                    yield from search.feed(piece)
            except DamageError as error:
                damage = str(error)
            yield from search.finish()

        for lines in blocks():
            if done := read.take():
                yield Progress(done=done)
            if not lines.lines:
                continue
            if options.output is Output.LINES:
                yield Found(hour, key, len(lines.lines), lines)
            elif options.output is Output.KEY:
                yield Found(hour, key, 1)
                return
            else:
                count += len(lines.lines)
        if count:
            yield Found(hour, key, count)
        if search.has_long_line:
            yield Note(NoteKind.LONG_LINE, hour, "", key)
        if damage:
            yield Note(NoteKind.UNREAD, hour, f"it cannot be decompressed to its end: {damage}", key)
        if done := read.take():
            yield Progress(done=done)


class _Counter:
    """Passes the pieces of an object on, and counts their bytes."""

    def __init__(self, bodies: Iterator[memoryview]) -> None:
        self._bodies = bodies
        self._count = 0

    def __iter__(self) -> "_Counter":
        return self

    def __next__(self) -> memoryview:
        body = next(self._bodies)
        self._count += len(body)
        return body

    def take(self) -> int:
        """The number of bytes since the last call."""
        count, self._count = self._count, 0
        return count


def _beginning(bodies: Iterator[memoryview]) -> bytes | memoryview:
    """The first pieces of an object, with enough bytes to see its encoding."""
    beginning = b""
    for body in bodies:
        if not beginning and len(body) >= LONGEST_MAGIC_BYTES:
            return body
        # The next piece may replace this one in memory.
        beginning += bytes(body)
        if len(beginning) >= LONGEST_MAGIC_BYTES:
            break
    return beginning
