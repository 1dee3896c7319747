"""Raw hours for tests: log objects as producers write them, reproducible by seed."""

import bz2
import functools
import gzip
import lzma
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from botocore.exceptions import ClientError

from dev.servers import S3Client

MIB = 1024 * 1024

# The hour of the stream "app" that a test rolls up unless it chooses another.
HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
RAW = "raw/app/20261123/08/"
AGGREGATED = "aggregated/app/20261123/08/"

_PUT_ATTEMPTS = 5

# Every one a name that both servers store and list, and that something between a key and a URL gets wrong.
ODD_NAMES = (
    "space in name.log",
    " leading space.log",
    "trailing space ",
    "plus+plus.log",
    "percent%.log",
    "escaped%2Fslash.log",
    "%41.log",
    "ampersand&equals=.log",
    "question?mark.log",
    "hash#.log",
    "semi;colon:.log",
    "quote'\"`.log",
    "<angle>.log",
    "[square](round){curly}.log",
    "star*tilde~at@caret^pipe|dollar$comma,bang!.log",
    "back\\slash.log",
    "grüße-中文.log",
    "combining-u\u0308.log",
    "composed-ü.log",
    # The next two sort one way by code point and by UTF-8 bytes, the other way by UTF-16 units.
    "order-\uff5e.log",
    "order-\U0001f600.log",
    "line-separator\u2028.log",
    "no-break\u00a0space.log",
    "delete\x7f.log",
    "Case.log",
    "case.log",
    "dots...log",
    "deep/er/and/deeper.log",
    "n" * 250 + ".log",
)

# Keys that S3 allows and moto keeps, and that a server over a file system refuses or changes.
ODD_NAMES_BEYOND_FILES = (
    "double//slash.log",
    "dot/./segment.log",
    "up/../segment.log",
    "tab\t.log",
    "control\x01.log",
    "file-and-folder",
    "file-and-folder/within.log",
    "slash-at-the-end/",
    "long-" + "n" * 600 + ".log",
)


def zstd_frame(data: bytes) -> bytes:
    """A zstd frame that holds the data as it is, in blocks of the raw type (RFC 8878, 3.1.1)."""
    # Single segment, 8-byte content size, no checksum, no dictionary.
    pieces = [b"\x28\xb5\x2f\xfd\xe0", len(data).to_bytes(8, "little")]
    largest = 128 * 1024
    starts = range(0, max(len(data), 1), largest)
    for start in starts:
        block = data[start : start + largest]
        is_last = start == starts[-1]
        pieces += [(len(block) << 3 | is_last).to_bytes(3, "little"), block]
    return b"".join(pieces)


ENCODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, compresslevel=1, mtime=0),
    ".bz2": lambda data: bz2.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": zstd_frame,
}
"""How a producer would write a name with this extension; the sizes asked for are those before it."""


@functools.cache
def _log_lines(seed: int) -> bytes:
    """Some 500 KB of log lines, of which every body of this seed is a run."""
    rng = random.Random(seed)
    return b"".join(
        b"2026-11-23T08:%02d:%06.3fZ %b request=%016x path=/v1/%b/%d status=%d ms=%d\n"
        % (
            rng.randrange(60),
            rng.random() * 60,
            rng.choice((b"INFO", b"INFO", b"WARN", b"ERROR")),
            rng.getrandbits(64),
            rng.choice((b"orders", b"items", b"users")),
            rng.randrange(10**6),
            rng.choice((200, 200, 200, 404, 500)),
            rng.randrange(3000),
        )
        for _ in range(5000)
    )


# eq=False: a Mapping compares with any other by its items.
@dataclass(frozen=True, eq=False)
class RawHour(Mapping[str, bytes]):
    """The raw objects of an hour, key to body. Bodies are made when asked for: a large hour takes no memory.

    Each body consists of log lines, the first of which names the object, and ends with a newline.

    :param prefix: of the hour, such as ``raw/app/20261123/08/``
    :param objects: how many
    :param min_bytes: the smallest size; at least 1 KiB, so that the first line has room
    :param max_bytes: the largest size
    :param encodings: extensions from :data:`ENCODERS`, taken in turn
    :param seed: another seed gives other sizes and other bytes under the same keys
    """

    prefix: str
    objects: int = 30
    min_bytes: int = 100_000
    max_bytes: int = 1_000_000
    encodings: Sequence[str] = ("",)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1024 <= self.min_bytes <= self.max_bytes:
            raise ValueError(f"not 1024 <= {self.min_bytes} <= {self.max_bytes} bytes")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        # Hosts and minutes as a fleet of producers would name them: not in the order of their making.
        return {
            f"{self.prefix}host-{number % 7:02d}/{number * 13 % 60:02d}-{number:06d}.log"
            f"{self.encodings[number % len(self.encodings)]}": number
            for number in range(self.objects)
        }

    def __getitem__(self, key: str) -> bytes:
        number = self._numbers[key]
        rng = random.Random(f"{self.seed} {number}")
        size = rng.randint(self.min_bytes, self.max_bytes)
        first_line = f"object {number} seed {self.seed} bytes {size}\n".encode()
        lines = _log_lines(self.seed)
        start = rng.randrange(len(lines))
        wanted = size - len(first_line) - 1
        repeats = -(-(start + wanted) // len(lines))
        body = first_line + (lines * repeats)[start : start + wanted] + b"\n"
        return ENCODERS[self.encodings[number % len(self.encodings)]](body)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return self.objects


def make_hour(
    client: S3Client, bucket: str, prefix: str, *, objects: int = 30, min_bytes: int = 100_000,
    max_bytes: int = 1_000_000, encodings: Sequence[str] = ("",), seed: int = 0,
) -> dict[str, bytes]:  # fmt: skip
    """Write a :class:`RawHour` to a bucket; what was written, key to body."""
    made = dict(RawHour(prefix, objects, min_bytes, max_bytes, encodings, seed))
    put_objects(client, bucket, made)
    return made


def make_small_hour(
    client: S3Client, bucket: str, prefix: str, *, objects: int, encodings: Sequence[str] = ("",)
) -> dict[str, bytes]:
    """Write an hour of objects of 1 to 20 KB, for tests that need no more than one part."""
    return make_hour(
        client, bucket, prefix, objects=objects, min_bytes=1024, max_bytes=20_000, encodings=encodings
    )


def odd_hour(prefix: str, names: Sequence[str] = ODD_NAMES) -> dict[str, bytes]:
    """Objects with odd names below a prefix, key to body; every fifth body is empty."""
    return {
        prefix + name: b"" if number % 5 == 4 else f"object {number} {name!r}\n".encode() * (number + 1)
        for number, name in enumerate(names)
    }


def put_objects(client: S3Client, bucket: str, objects: Mapping[str, bytes], threads: int = 8) -> None:
    """Write objects, several at a time; bodies are asked for one by one.

    A 5xx is tried again: rclone gives one now and then when several uploads into a folder that is not there
    yet come at the same time ("Dir.Rename error: file does not exist" in its log).
    """

    def put(key: str) -> None:
        for attempt in range(1, _PUT_ATTEMPTS + 1):
            try:
                client.put_object(Bucket=bucket, Key=key, Body=objects[key])
                return
            except ClientError as error:
                status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status < 500 or attempt == _PUT_ATTEMPTS:
                    raise

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(put, objects):
            pass


def hour_prefix(prefix: str, hour: datetime) -> str:
    """``raw/app/`` and an hour give ``raw/app/20261123/08/``."""
    return f"{prefix}{hour:%Y%m%d/%H}/"
