"""Raw hours for tests: log objects as producers write them, the same for the same seed."""

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

# The hour of the stream "app" that most tests roll up.
HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
RAW = "raw/app/20261123/08/"
AGGREGATED = "aggregated/app/20261123/08/"

_PUT_ATTEMPTS = 5

# Names that both servers store and list correctly, and that are easily damaged between a key and a URL.
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
    # The order of the next two by UTF-16 units differs from that by code points or UTF-8 bytes.
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

# Keys that S3 and moto accept, and that a server on a file system refuses or changes.
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


def name_of(key: str) -> str:
    """The name below the hour of the raw object with this key."""
    return key.removeprefix(RAW)


def zstd_frame(data: bytes) -> bytes:
    """A zstd frame with the data uncompressed, in raw blocks (RFC 8878, 3.1.1)."""
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
"""By file extension, how a producer encodes an object. Sizes of a :class:`RawHour` are before encoding."""


@functools.cache
def _log_lines(seed: int) -> bytes:
    """About 500 KB of log lines, from which every body of this seed is cut."""
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


# eq=False, because Mapping already compares by items.
@dataclass(frozen=True, eq=False)
class RawHour(Mapping[str, bytes]):
    """The raw objects of an hour, key to body. Bodies are generated on access, so a large hour takes no memory.

    Each body consists of log lines, the first of which names the object, and ends with a newline.

    :param prefix: of the hour, such as ``raw/app/20261123/08/``
    :param objects: how many
    :param min_bytes: the smallest size; at least 1 KiB, so that the first line has room
    :param max_bytes: the largest size
    :param encodings: extensions from :data:`ENCODERS`, used in turn
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
        # Hosts and minutes, as a fleet of producers names objects. The order of keys is not that of the numbers.
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
    """Write a :class:`RawHour` to a bucket, and return the objects, key to body."""
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
    """Objects with odd names below a prefix, key to body. Every fifth body is empty."""
    return {
        prefix + name: b"" if number % 5 == 4 else f"object {number} {name!r}\n".encode() * (number + 1)
        for number, name in enumerate(names)
    }


def put_objects(client: S3Client, bucket: str, objects: Mapping[str, bytes], threads: int = 2) -> None:
    """Write objects on several threads; many threads take more CPU time for the same requests.

    Retries a 5xx: rclone sometimes answers one when several uploads create the same folder at the same time
    ("Dir.Rename error: file does not exist" in its log).
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
    """The prefix of an hour, such as ``raw/app/20261123/08/`` for ``raw/app/``."""
    return f"{prefix}{hour:%Y%m%d/%H}/"
