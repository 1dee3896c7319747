"""Writes the raw objects of one hour: log files like those of a small fleet of hosts.

For each hour and kind of host, the lines are generated once into a pool. Every object is a unique first line
and a slice of whole lines from that pool. A gzip object is a slice of compressed gzip members in the same way:
several members in sequence are a valid gzip file (RFC 1952, 2.2). So the CPU time and memory for the pools do not
depend on the number of objects.
"""

from __future__ import annotations

import gzip
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path

HOUR = timedelta(hours=1)
MIN_OBJECT_BYTES = 100_000
MAX_OBJECT_BYTES = 1_000_000
# The sizes are distributed uniformly.
MEAN_OBJECT_BYTES = (MIN_OBJECT_BYTES + MAX_OBJECT_BYTES) // 2

_PLAIN_POOL_BYTES = 4_000_000
_GZIP_POOL_BYTES = 10_000_000
_GZIP_MEMBER_LINES = 200
# How much an object may exceed its target size: its first line, and the rest of the last chunk, which is not cut.
_SLACK_BYTES = 30_000

_PATHS = (
    "/",
    "/login",
    "/cart",
    "/checkout",
    "/search?q=lamp",
    "/api/v1/orders",
    "/static/app.js",
    "/health",
)
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15",
    "okhttp/5.1.0",
    "curl/8.14.1",
)
_STATUSES = (200, 200, 200, 200, 200, 200, 204, 301, 304, 404, 429, 500)
_EVENTS = (
    "order placed",
    "payment accepted",
    "payment refused",
    "stock reserved",
    "mail queued",
    "cache miss",
)
_LEVELS = ("INFO", "INFO", "INFO", "INFO", "DEBUG", "WARNING", "ERROR")


@dataclass(frozen=True)
class LogFormat:
    """A kind of log: its lines, and the first line of a file, which names the host and the file."""

    line: Callable[[datetime, random.Random], str]
    opening: Callable[[datetime, str, int], str]


@dataclass(frozen=True)
class Host:
    """A producer of raw objects: the prefix of its keys, the kind of its log, and whether it compresses."""

    prefix: str
    log: LogFormat
    gzipped: bool = False

    @property
    def extension(self) -> str:
        """The suffix of its objects' keys."""
        return ".log.gz" if self.gzipped else ".log"


@dataclass(frozen=True)
class MadeGroup:
    """The raw objects written for a group of an hour.

    :param captures: the values of the captures, by name
    :param raw: what the keys of its raw objects begin with, and no others
    :param aggregated: the prefix of its parts
    :param objects: number of raw objects
    :param bytes: their total size as stored
    """

    captures: Mapping[str, str]
    raw: str
    aggregated: str
    objects: int
    bytes: int

    @property
    def name(self) -> str:
        """The values of its captures, for tables and messages."""
        return "/".join(self.captures.values())


@dataclass(frozen=True)
class MadeHour:
    """The raw objects written for an hour: their number, their total size in bytes as stored, and their groups."""

    hour: datetime
    objects: int
    bytes: int
    groups: tuple[MadeGroup, ...] = ()


@dataclass(frozen=True)
class _Pool:
    """Concatenated chunks (lines or gzip members) in time order, and the offset where each ends."""

    data: memoryview
    ends: Sequence[int]

    def cut(self, rng: random.Random, size_bytes: int) -> tuple[memoryview, float, float]:
        """Return whole chunks of about `size_bytes`, and their start and end as fractions of the hour."""
        last_start = bisect_left(self.ends, self.ends[-1] - size_bytes)
        first = rng.randrange(last_start + 1)
        start = self.ends[first - 1] if first else 0
        stop = self.ends[min(bisect_left(self.ends, start + size_bytes), len(self.ends) - 1)]
        return self.data[start:stop], start / self.ends[-1], stop / self.ends[-1]


def _access_line(at: datetime, rng: random.Random) -> str:
    """Return a line of a web server's log in the combined format."""
    return (
        f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)} - - "
        f'[{at:%d/%b/%Y:%H:%M:%S} +0000] "GET {rng.choice(_PATHS)} HTTP/1.1" {rng.choice(_STATUSES)} '
        f'{rng.randrange(200, 90_000)} "-" "{rng.choice(_AGENTS)}" {rng.random():.3f}\n'
    )


def _access_opening(at: datetime, host: str, number: int) -> str:
    """Return the comment at the start of a web server's log file."""
    return f"# {host} file {number} opened {at:%Y-%m-%dT%H:%M:%SZ}\n"


def _event_line(at: datetime, rng: random.Random) -> str:
    """Return a log record of a service as a line of JSON."""
    return (
        f'{{"ts":"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z","level":"{rng.choice(_LEVELS)}",'
        f'"trace":"{rng.getrandbits(64):016x}","msg":"{rng.choice(_EVENTS)}",'
        f'"order":{rng.randrange(10_000_000)},"ms":{rng.randrange(2_000)}}}\n'
    )


def _event_opening(at: datetime, host: str, number: int) -> str:
    """Return the first record of a service's log file, as JSON like all its lines."""
    about = f'"level":"INFO","msg":"opened","host":"{host}","file":{number}'
    return f'{{"ts":"{at:%Y-%m-%dT%H:%M:%S}.000Z",{about}}}\n'


_ACCESS = LogFormat(line=_access_line, opening=_access_opening)
_EVENT = LogFormat(line=_event_line, opening=_event_opening)

# Prefixes of different depths. Two of eight hosts compress, so a quarter of the objects is gzip.
HOSTS = (
    Host("web-01/", _ACCESS),
    Host("web-02/", _ACCESS),
    Host("web-03/", _ACCESS),
    Host("api-01/checkout/", _EVENT),
    Host("api-01/search/", _EVENT),
    Host("api-02/checkout/", _EVENT),
    Host("edge-01/", _ACCESS, gzipped=True),
    Host("edge-02/", _ACCESS, gzipped=True),
)


def write_hour(
    folder: Path, hour: datetime, objects: int, seed: int | str, hosts: Sequence[Host] = HOSTS
) -> MadeHour:
    """Write `objects` raw objects of `hour` below `folder`, each 100 KB to 1 MB as stored.

    The same seed and hour give the same objects. The modification times of the files are within the hour, as if
    the producer had written all the time, so that a past hour is settled.

    :param folder: the hour's directory (`.../YYYYmmdd/HH`), created if missing
    :param hour: start of the hour in UTC
    :param hosts: the producers, which take turns
    :raises OSError: if a file cannot be written
    """
    pools: dict[tuple[LogFormat, bool], _Pool] = {}
    rng = random.Random(f"{seed}/{hour:%Y%m%d%H}")
    total_bytes = 0
    for number in range(objects):
        host = hosts[number % len(hosts)]
        kind = (host.log, host.gzipped)
        if kind not in pools:
            pools[kind] = _make_pool(host, hour, random.Random(f"{seed}/{hour:%Y%m%d%H}/{len(pools)}"))
        size_bytes = rng.randint(MIN_OBJECT_BYTES, MAX_OBJECT_BYTES - _SLACK_BYTES)
        body, begin, end = pools[kind].cut(rng, size_bytes)
        opened, closed = hour + begin * HOUR, hour + min(end, 0.999) * HOUR
        first_line = host.log.opening(opened, host.prefix.rstrip("/"), number).encode()
        head = gzip.compress(first_line, mtime=0) if host.gzipped else first_line
        path = folder / f"{host.prefix}{opened:%H%M%S}-{number:06}{host.extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(head)
            file.write(body)
        os.utime(path, (closed.timestamp(), closed.timestamp()))
        total_bytes += len(head) + len(body)
    return MadeHour(hour=hour, objects=objects, bytes=total_bytes)


def last_complete_hours(count: int, now: datetime) -> list[datetime]:
    """Return the starts of the last `count` hours that had ended by `now`, the oldest first."""
    current = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return [current - HOUR * back for back in range(count, 0, -1)]


def _make_pool(host: Host, hour: datetime, rng: random.Random) -> _Pool:
    """Generate the lines of one kind, spread evenly over the hour, and join or compress them."""
    wanted_bytes = _GZIP_POOL_BYTES if host.gzipped else _PLAIN_POOL_BYTES
    sample = [host.log.line(hour, rng) for _ in range(100)]
    count = wanted_bytes * len(sample) // sum(map(len, sample))
    step = HOUR / count
    lines = [host.log.line(hour + number * step, rng).encode() for number in range(count)]
    if host.gzipped:
        chunks = [
            gzip.compress(b"".join(lines[start : start + _GZIP_MEMBER_LINES]), compresslevel=1, mtime=0)
            for start in range(0, count, _GZIP_MEMBER_LINES)
        ]
    else:
        chunks = lines
    return _Pool(data=memoryview(b"".join(chunks)), ends=list(accumulate(map(len, chunks))))
