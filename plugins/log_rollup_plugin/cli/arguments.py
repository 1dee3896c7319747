"""Parses the arguments of the command: streams, days, hours and keys."""

import argparse
import re
from datetime import UTC, date, datetime, timedelta

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import FIRST_YEAR, LAST_YEAR, check_hour, floor_hour, hours_between
from include.log_rollup.streams import Stream, load_streams, streams_path

MAX_NAMED_STREAMS = 20
"""The most streams that an error message lists."""
MAX_HOURS = 10_000
"""The most hours of a range: more than a year. A longer one has a wrong year."""
_FOLDER = re.compile(r"([0-9]{8})/([0-9]{2})/?")
_URL = re.compile(r"s3://([^/]+)/(.+)", re.DOTALL)


def find_stream(name: str) -> Stream:
    """The stream of this name in the streams file.

    :raises ConfigurationError: if there is none, or the file has an error
    """
    streams = load_streams()
    for stream in streams:
        if stream.name == name:
            return stream
    known = ", ".join(stream.name for stream in streams[:MAX_NAMED_STREAMS]) or "none"
    if len(streams) > MAX_NAMED_STREAMS:
        known += f" and {len(streams) - MAX_NAMED_STREAMS:,} more"
    raise ConfigurationError(f"there is no stream {name!r} in {streams_path()}; its streams: {known}")


def day(text: str) -> date:
    """Parse a UTC day: ``2026-11-23`` or ``20261123``."""
    try:
        found = date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a day; write it like 2026-11-23{_about_key(text)}"
        ) from None
    if not FIRST_YEAR <= found.year <= LAST_YEAR:
        raise argparse.ArgumentTypeError(
            f"{text!r} is out of range; give a day of the years {FIRST_YEAR} to {LAST_YEAR}"
        )
    return found


def day_or_hour(text: str) -> date | datetime:
    """Parse a UTC day, or an hour of it; see :func:`day` and :func:`hour`."""
    try:
        return day(text)
    except argparse.ArgumentTypeError:
        if not re.match(r"[0-9-]+[T/]", text, re.IGNORECASE):
            raise
    return hour(text)


def hour(text: str) -> datetime:
    """Parse a UTC hour: ``2026-11-23T08:00:00Z``, ``2026-11-23T08`` or, as in the bucket, ``20261123/08``."""
    folder = _FOLDER.fullmatch(text)
    try:
        instant = datetime.fromisoformat(f"{folder[1]}T{folder[2]}" if folder else text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an hour; write it like 2026-11-23T08 or 20261123/08, in UTC{_about_key(text)}"
        ) from None
    if folder is None and "T" not in text.upper() and " " not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is a day; write an hour of it like 2026-11-23T08")
    try:
        check_hour(instant)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return floor_hour(instant if instant.tzinfo else instant.replace(tzinfo=UTC))


def hours(text: str) -> list[datetime]:
    """Parse a UTC hour, or a range of hours with its first and last one: ``2026-11-23T08..2026-11-23T10``."""
    first, dots, last = text.partition("..")
    begin = hour(first)
    end = hour(last) if dots else begin
    if end < begin:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    number = (end - begin) // timedelta(hours=1) + 1
    if number > MAX_HOURS:
        raise argparse.ArgumentTypeError(f"{text!r} has {number:,} hours; give at most {MAX_HOURS:,}")
    return hours_between(begin, end + timedelta(hours=1))


def group(text: str) -> tuple[str, str]:
    """Parse the name and the value of a capture: ``service=web``."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a group; write it like service=web")
    return name, value


def _about_key(text: str) -> str:
    """A hint for a text that may be a key."""
    return ". For the hour of a key, use the command locate" if "/" in text else ""


def key_of(stream: Stream, text: str) -> str:
    """The key of a raw object that is given as a key or as ``s3://bucket/key``.

    :raises ConfigurationError: if it is in another bucket
    """
    url = _URL.fullmatch(text)
    if url is None:
        return text
    if url[1] != stream.raw.bucket:
        raise ConfigurationError(
            f"{text} is in bucket {url[1]!r}; the raw objects of stream {stream.name!r} are in "
            f"{stream.raw.bucket!r}"
        )
    return url[2]


def check_utf8(url: str) -> None:
    """Refuse a URL with bytes that are not UTF-8, in whose place Python has halves of surrogate pairs.

    :raises ConfigurationError: if it has any
    """
    try:
        url.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{url!r} is not UTF-8, as all keys in S3 are; write it in UTF-8") from None
