"""The command grep: searches the lines of raw objects, in the parts of hours."""

import argparse
import base64
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Any

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.printable import printable
from include.log_rollup.queries.grep import Found, GrepOptions, Note, NoteKind, Output, Progress
from include.log_rollup.queries.grep import grep as search
from include.log_rollup.queries.line_pattern import PatternError, compile_pattern
from include.log_rollup.queries.line_search import LONGEST_LINE_BYTES
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.retrieval import find_archived, needed_parts
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size
from log_rollup_plugin.cli import arguments, retrieval
from log_rollup_plugin.cli.arguments import find_stream
from log_rollup_plugin.cli.output import Answer, ProgressDisplay, json_text, tell
from log_rollup_plugin.cli.retrieval import Retrieval
from log_rollup_plugin.cli.store import open_store

FOUND, NONE_FOUND, INCOMPLETE = 0, 1, 2
"""The exit codes of grep."""
_HOUR = timedelta(hours=1)
# The most objects and parts that are named on stderr because they were not searched to their end.
_MAX_NAMED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add(
        "pattern",
        metavar="PATTERN",
        help="a regular expression of Python, for one line; after -- it may begin with -",
    )
    add("stream", metavar="STREAM", help="name of a stream")
    add(
        "--since", metavar="HOUR", type=arguments.day_or_hour, required=True,
        help="the first hour, like 2026-11-23T08, or a day",
    )  # fmt: skip
    add(
        "--until", metavar="HOUR", type=arguments.day_or_hour,
        help="the last hour, which is searched too, or a day (default: that of --since)",
    )  # fmt: skip
    add(
        "--match", metavar="GLOB", action="append", default=[],
        help="search only objects with such a name below the hour, like 'web-*'; several: any of them",
    )  # fmt: skip
    add(
        "--group", metavar="NAME=VALUE", action="append", default=[], type=arguments.group,
        help="search only groups with this value; several values of one name: any of them",
    )  # fmt: skip
    add(
        "--incomplete",
        action="store_true",
        help="also search parts of hours that have a manifest but no _SUCCESS",
    )
    add("--include-raw", action="store_true", help="search raw objects in hours whose parts are not searched")
    add("-F", "--fixed-strings", dest="fixed", action="store_true", help="PATTERN is a fixed string")
    add("-i", "--ignore-case", action="store_true", help="ignore the case of ASCII letters")
    add("-v", "--invert-match", dest="invert", action="store_true", help="select the lines that do not match")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "-c", "--count", dest="output", action="store_const", const=Output.COUNT, default=Output.LINES,
        help="write only the number of lines of each object that has any",
    )  # fmt: skip
    what.add_argument(
        "-l", "--keys-only", dest="output", action="store_const", const=Output.KEY,
        help="write only the keys of objects with such lines",
    )  # fmt: skip
    add(
        "-n",
        "--line-number",
        dest="numbered",
        action="store_true",
        help="write the line's number in its object",
    )
    add("-h", "--no-key", dest="with_key", action="store_false", help="do not write the key before each line")
    add(
        "-m", "--max-count", metavar="N", type=_count,
        help="stop after N lines of all hours together; with -l, after N keys",
    )  # fmt: skip
    retrieval.add_arguments(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines; give at least 1")
    return int(text)


def grep(options: argparse.Namespace, answer: Answer) -> int:
    """search the lines of raw objects, in the parts of complete hours"""
    stream = find_stream(options.stream)
    try:
        pattern = compile_pattern(options.pattern, fixed=options.fixed, ignore_case=options.ignore_case)
    except PatternError as error:
        if error.position is not None:
            tell(f"  {options.pattern}")
            tell(f"  {' ' * len(printable(options.pattern[: error.position]))}^")
        raise
    wanted = GrepOptions(
        pattern=pattern,
        objects=ObjectFilter(stream, options.match, options.group),
        output=options.output,
        invert=options.invert,
        numbered=options.numbered or options.json,
        max_count=options.max_count,
        incomplete=options.incomplete,
        include_raw=options.include_raw,
    )
    now = datetime.now(UTC)
    hours = _hours(options.since, options.until, now)
    if options.retrieve is not None and _has_archived(options, stream, hours, wanted, answer):
        return retrieval.ARCHIVED
    hours = _hours(options.since, options.until, now)
    return _run(stream, hours, wanted, _formatter(options, answer.is_terminal), answer)


def _has_archived(
    options: argparse.Namespace,
    stream: Stream,
    hours: Iterator[datetime],
    wanted: GrepOptions,
    answer: Answer,
) -> bool:
    """Whether parts that are to be searched are archived; their retrieval is requested then."""
    with open_store(stream) as store:
        parts = needed_parts(store, stream, hours, wanted.objects, incomplete=wanted.incomplete)
        archived = find_archived(store, parts)
        if not archived:
            return False
        retrieving = Retrieval(options, archived)
        retrieving.run(store)
    if options.json:
        answer.json({"archived": retrieving.document()}, in_one_line=True)
    return True


def _hours(since: date, until: date | None, now: datetime) -> Iterator[datetime]:
    """The hours of a range that have begun.

    :param since: first hour, or day
    :param until: last hour, or day; None for that of ``since``
    :raises ConfigurationError: if there are none, or too many
    """
    first = since if isinstance(since, datetime) else datetime.combine(since, time(), UTC)
    end = since if until is None else until
    last = end if isinstance(end, datetime) else datetime.combine(end, time(23), UTC)
    if last < first:
        raise ConfigurationError(f"--until {format_hour(last)} is before --since {format_hour(first)}")
    if first > now:
        raise ConfigurationError(f"--since {format_hour(first)} has not begun")
    last = min(last, now)
    number = (last - first) // _HOUR + 1
    if number > arguments.MAX_HOURS:
        raise ConfigurationError(
            f"from --since {format_hour(first)} on there are {number:,} hours; give at most "
            f"{arguments.MAX_HOURS:,}: a later --since, or an earlier --until"
        )
    return _each_hour(first, last)


def _each_hour(first: datetime, last: datetime) -> Iterator[datetime]:
    while first <= last:
        yield first
        first += _HOUR


def _run(
    stream: Stream,
    hours: Iterator[datetime],
    options: GrepOptions,
    to_bytes: Callable[[Found], bytes],
    answer: Answer,
) -> int:
    is_found = False
    planned = done = 0
    notes = _Notes(stream)
    # On a terminal, the lines would overwrite the progress bar.
    title = f"searching {stream.name}"
    with (
        open_store(stream) as store,
        ProgressDisplay(title, not answer.is_terminal) as progress,
        closing(search(store, stream, hours, options)) as results,
        answer.open_bytes() as out,
    ):
        for result in results:
            if isinstance(result, Found):
                is_found = True
                out.write(to_bytes(result))
                # A reader that has enough closes the pipe, which ends the search.
                out.flush()
            elif isinstance(result, Progress):
                planned += result.planned
                done += result.done
                progress(done, planned)
            else:
                notes.add(result)
    notes.tell()
    if notes.has_gaps:
        return INCOMPLETE
    if not planned and not options.objects.takes_all:
        tell("nothing was searched: no raw object of these hours matches --match and --group")
    return FOUND if is_found else NONE_FOUND


def _formatter(options: argparse.Namespace, is_terminal: bool) -> Callable[[Found], bytes]:
    """How the selected lines of an object are written."""
    if options.json:
        return lambda found: "".join(f"{json_text(row)}\n" for row in _rows(found, options.output)).encode()
    line_of = _shown if is_terminal else bytes

    def text(found: Found) -> bytes:
        key = printable(found.key).encode("utf-8", "backslashreplace")
        if options.output is Output.KEY:
            return key + b"\n"
        prefix = key + b":" if options.with_key else b""
        if options.output is Output.COUNT:
            return b"%b%d\n" % (prefix, found.count)
        lines = map(line_of, found.lines.lines)
        if options.numbered:
            numbered = zip(found.lines.numbers, lines, strict=True)
            return b"".join([b"%b%d:%b\n" % (prefix, number, line) for number, line in numbered])
        return b"".join([b"%b%b\n" % (prefix, line) for line in lines])

    return text


def _shown(line: bytes) -> bytes:
    """A line as a terminal may get it: with escapes for bytes that are not UTF-8, and for control characters."""
    text = line.decode("utf-8", "backslashreplace")
    return "\t".join(map(printable, text.split("\t"))).encode()


def _rows(found: Found, output: Output) -> Iterator[dict[str, Any]]:
    place = {"hour": format_hour(found.hour), "key": found.key}
    if output is Output.KEY:
        yield place
    elif output is Output.COUNT:
        yield {**place, "count": found.count}
    else:
        for number, line in zip(found.lines.numbers, found.lines.lines, strict=True):
            yield {**place, "line_number": number, **_content(line)}


def _content(line: bytes) -> dict[str, str]:
    try:
        return {"text": line.decode()}
    except UnicodeDecodeError:
        return {"bytes": base64.b64encode(line).decode()}


class _Notes:
    """What stderr shows at the end: hours and objects that were not searched, or not as usual."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._hours: list[Note] = []
        self._unread: list[Note] = []
        self._unread_count = 0
        self._formats: Counter[str] = Counter()
        self._long_lines = 0
        self._long_line = ""

    @property
    def has_gaps(self) -> bool:
        """Whether something that was asked for has not been searched."""
        return bool(self._unread_count) or any(note.kind is NoteKind.SKIPPED for note in self._hours)

    def add(self, note: Note) -> None:
        """Keep a note, as far as it is shown."""
        match note.kind:
            case NoteKind.SKIPPED | NoteKind.UNPROVEN:
                self._hours.append(note)
            case NoteKind.UNREAD:
                self._unread_count += 1
                if len(self._unread) < _MAX_NAMED:
                    self._unread.append(note)
            case NoteKind.AS_BYTES:
                self._formats[note.text] += 1
            case NoteKind.LONG_LINE:
                self._long_lines += 1
                self._long_line = self._long_line or note.name

    def tell(self) -> None:
        """Write all notes."""
        # Of hours that follow each other, the time minus the number is the same.
        rows = enumerate(self._hours)
        for _, group in groupby(
            rows, lambda row: (row[1].kind, self._reason(row[1]), row[1].hour - row[0] * _HOUR)
        ):
            tell(_about_hours([note for _, note in group]))
        for note in self._unread:
            tell(f"not searched to its end: {note.name} of hour {format_hour(note.hour)}: {note.text}")
        if self._unread_count > len(self._unread):
            tell(f"not searched to their end: {self._unread_count - len(self._unread):,} more objects")
        for encoding, count in sorted(self._formats.items()):
            tell(f"searched as they are: {count:,} objects that end in {encoding}, but were not decompressed")
        if self._long_lines:
            tell(
                f"{self._long_lines:,} objects have lines of more than {format_size(LONGEST_LINE_BYTES)}, which "
                f"were searched in pieces, such as {self._long_line}"
            )

    def _reason(self, note: Note) -> str:
        """The reason without the addresses of records, which differ from hour to hour."""
        paths = self._stream.at(note.hour)
        return note.text.replace(f"{paths.manifest}", "manifest").replace(f"{paths.marker}", "marker")


def _about_hours(notes: Sequence[Note]) -> str:
    first, last = notes[0], notes[-1]
    what = "skipped" if first.kind is NoteKind.SKIPPED else "not complete, but searched"
    if len(notes) == 1:
        return f"{what}: hour {format_hour(first.hour)}: {first.text}"
    return (
        f"{what}: {len(notes):,} hours from {format_hour(first.hour)} to {format_hour(last.hour)}: of the first, "
        f"{first.text}"
    )
