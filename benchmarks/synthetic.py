"""An S3 server of synthetic raw objects, with an optional delay of its responses; written objects stay in memory.

Run as ``python -m benchmarks.synthetic SETTINGS`` with :class:`ServerSettings` as JSON. It checks no signatures
and supports only the requests of this project: LIST with prefix, delimiter and start, GET, HEAD, PUT, copy and
DELETE. Raw objects are not stored: key, size, ETag and body are computed from an object's number.
"""

import asyncio
import base64
import json
import random
import re
import sys
import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import formatdate
from hashlib import md5
from itertools import islice
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape, unescape

from awscrt.checksums import crc64nvme

OBJECTS_PER_HOST = 2_500
PAGE_KEYS = 1_000
# The names of load balancers in a day's folder, each with the same number of objects in every hour.
BALANCERS = 100
HOURS_PER_DAY = 24
MODIFIED = "2026-11-23T08:59:00.000Z"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of the server.

    :param prefix: prefix of the raw objects
    :param objects: number of raw objects
    :param sizes: sizes of the raw objects in bytes, used in turn; approximate for compressed objects
    :param delay_seconds: delay of every response
    :param only_lists: delay only listings
    :param encoding: encoding of the raw objects: empty for plain, or ``.gz``
    :param groups: number of groups in the raw hour, each with its own folder of the hour below ``prefix``; 0 for
        an hour without groups, whose folder is ``prefix``
    :param day: whether ``prefix`` is the folder of a day, whose objects have the hour in their names
    """

    port: int
    bucket: str
    prefix: str
    objects: int
    sizes: tuple[int, ...]
    delay_seconds: float
    only_lists: bool
    encoding: str = ""
    groups: int = 0
    day: bool = False

    def command(self) -> list[str]:
        """Return the command line of a server with these settings."""
        return [sys.executable, "-m", "benchmarks.synthetic", json.dumps(asdict(self))]


class RawKeys(Sequence[str]):
    """The sorted keys of the raw objects, computed when they are read."""

    def __init__(self, settings: ServerSettings) -> None:
        self._count = settings.objects
        self._key = _key_function(settings)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._key(number)

    def number(self, key: str) -> int | None:
        """Return the number of the object with this key, or None."""
        number = bisect_left(self, key)
        return number if number < self._count and self[number] == key else None


def _key_function(settings: ServerSettings) -> Callable[[int], str]:
    """Return the function from an object's number to its key; the keys increase with the numbers."""
    prefix, ending = settings.prefix, f".log{settings.encoding}"
    if settings.day:
        per_hour = -(-settings.objects // (BALANCERS * HOURS_PER_DAY))
        return lambda number: (
            f"{prefix}app.lb-{number // (per_hour * HOURS_PER_DAY):03d}_"
            f"20261123T{number // per_hour % HOURS_PER_DAY:02d}{number % per_hour:06d}Z_10.0.0.1{ending}"
        )
    if settings.groups:
        per_group = -(-settings.objects // settings.groups)
        return lambda number: (
            f"{prefix}service-{number // per_group:04d}/20261123/08/{number % per_group:05d}{ending}"
        )
    return lambda number: (
        f"{prefix}host-{number // OBJECTS_PER_HOST:04d}/{number % OBJECTS_PER_HOST:05d}{ending}"
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """A written object; the body of a part is not kept."""

    size: int
    etag: str
    crc: str
    body: bytes | None


class Store:
    """The synthetic and the written objects."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.raw = RawKeys(settings)
        self.bodies = {size: _body(size, settings.encoding) for size in set(settings.sizes)}
        self.etags = {
            size: md5(body, usedforsecurity=False).hexdigest() for size, body in self.bodies.items()
        }
        self.crcs = {size: _crc(body) for size, body in self.bodies.items()}
        self.written: dict[str, Stored] = {}
        self._written_keys: list[str] = []

    def write(self, key: str, stored: Stored) -> None:
        """Keep a written object."""
        if key not in self.written:
            insort(self._written_keys, key)
        self.written[key] = stored

    def delete(self, key: str) -> None:
        """Drop a written object, if there is one."""
        if self.written.pop(key, None) is not None:
            del self._written_keys[bisect_left(self._written_keys, key)]

    def size(self, number: int) -> int:
        """Return the nominal size of a raw object in bytes."""
        return self.settings.sizes[number % len(self.settings.sizes)]

    def find(self, key: str) -> Stored | None:
        """Return a synthetic or written object, or None."""
        number = self.raw.number(key)
        if number is None:
            return self.written.get(key)
        size = self.size(number)
        body = self.bodies[size]
        return Stored(len(body), self.etags[size], self.crcs[size], body)

    def rows(self, prefix: str, after: str) -> Iterator[tuple[str, int, str]]:
        """Yield key, size and ETag of the objects with a prefix and a key greater than ``after``."""
        first = max(prefix, after)
        if self.settings.prefix.startswith(prefix) or prefix.startswith(self.settings.prefix):
            for number in range(bisect_left(self.raw, first), len(self.raw)):
                key = self.raw[number]
                if not key.startswith(prefix):
                    break
                if key > after:
                    size = self.size(number)
                    yield key, len(self.bodies[size]), self.etags[size]
        start = max(bisect_left(self._written_keys, prefix), bisect_right(self._written_keys, after))
        for key in islice(self._written_keys, start, None):
            if not key.startswith(prefix):
                break
            yield key, self.written[key].size, self.written[key].etag


def _body(size: int, encoding: str) -> bytes:
    if not encoding:
        return (b"one line of a log, as long as any other\n" * (size // 40 + 1))[:size]
    # Lines that compress like those of a web server, by a factor of five to eight.
    rng = random.Random(size)
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    body = b""
    while len(body) < size:
        lines = (
            f"2026-11-23T08:{rng.randrange(60):02}:{rng.randrange(60):02}Z INFO web-{rng.randrange(40):02} "
            f"GET /api/v1/orders/{rng.randrange(10**6)} 200 {rng.randrange(10**4)} ms\n"
            for _ in range(200)
        )
        body += packer.compress("".join(lines).encode()) + packer.flush(zlib.Z_SYNC_FLUSH)
    return body + packer.flush()


def _crc(body: bytes) -> str:
    return base64.b64encode(crc64nvme(body).to_bytes(8)).decode()


@dataclass(frozen=True, slots=True)
class Response:
    """A response; ``length`` is that of the object if the body is left out."""

    status: str
    headers: Mapping[str, str]
    body: bytes = b""
    length: int | None = None


class Service:
    """Handles requests, with one method for each operation."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def handle(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Return the response to a path-style request."""
        path, _, query = target.partition("?")
        _, _, key = unquote(path).lstrip("/").partition("/")
        fields = dict(parse_qsl(query, keep_blank_values=True))
        if not key and method == "GET":
            return self._list(fields)
        if not key and method == "POST":
            return self._delete(body)
        if method == "PUT" and "x-amz-copy-source" in headers:
            return self._copy(key, headers["x-amz-copy-source"])
        if method == "PUT":
            return self._put(key, headers, body)
        if method == "DELETE":
            self._store.delete(key)
            return Response("204 No Content", {})
        return self._get(key, headers, method == "HEAD")

    def _get(self, key: str, headers: Mapping[str, str], head_only: bool) -> Response:
        found = self._store.find(key)
        if found is None:
            return _error("404 Not Found", "NoSuchKey")
        if headers.get("if-match", found.etag).strip('"') != found.etag:
            return _error("412 Precondition Failed", "PreconditionFailed")
        headers_out = {
            "ETag": f'"{found.etag}"',
            "x-amz-checksum-crc64nvme": found.crc,
            "x-amz-checksum-type": "FULL_OBJECT",
        }
        if head_only or found.body is None:
            return Response("200 OK", headers_out, b"", found.size)
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if byte_range:
            return Response(
                "206 Partial Content", headers_out, found.body[int(byte_range[1]) : int(byte_range[2]) + 1]
            )
        return Response("200 OK", headers_out, found.body)

    def _put(self, key: str, headers: Mapping[str, str], body: bytes) -> Response:
        crc = _crc(body)
        if headers.get("x-amz-checksum-crc64nvme", crc) != crc:
            return _error("400 Bad Request", "BadDigest")
        etag = md5(body, usedforsecurity=False).hexdigest()
        kept = body if "part-" not in key else None
        self._store.write(key, Stored(len(body), etag, crc, kept))
        return Response("200 OK", {"ETag": f'"{etag}"', "x-amz-checksum-crc64nvme": crc})

    def _copy(self, key: str, source: str) -> Response:
        found = self._store.find(unquote(source).lstrip("/").partition("/")[2])
        if found is None:
            return _error("404 Not Found", "NoSuchKey")
        self._store.write(key, found)
        return _xml(f"<CopyObjectResult><ETag>&quot;{found.etag}&quot;</ETag></CopyObjectResult>")

    def _delete(self, body: bytes) -> Response:
        keys = re.findall("<Key>(.*?)</Key>", body.decode())
        for key in keys:
            self._store.delete(unescape(key))
        deleted = (f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return _xml(f"<DeleteResult>{''.join(deleted)}</DeleteResult>")

    def _list(self, fields: Mapping[str, str]) -> Response:
        prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")
        after = max(fields.get("continuation-token", ""), fields.get("start-after", ""))
        max_keys = int(fields.get("max-keys", PAGE_KEYS))
        encode = quote if fields.get("encoding-type") == "url" else escape
        rows: list[str] = []
        last, truncated = after, False
        while True:
            skipped_folder = False
            for key, size, etag in self._store.rows(prefix, last):
                if len(rows) == max_keys:
                    truncated = True
                    break
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    folder = key[: cut + 1]
                    rows.append(f"<CommonPrefixes><Prefix>{encode(folder)}</Prefix></CommonPrefixes>")
                    # Continue after all keys of the folder.
                    last, skipped_folder = folder + "\U0010ffff", True
                    break
                rows.append(
                    f"<Contents><Key>{encode(key)}</Key><LastModified>{MODIFIED}</LastModified>"
                    f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass>"
                    f"</Contents>"
                )
                last = key
            if not skipped_folder:
                break
        next_page = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if truncated else ""
        encoding = "<EncodingType>url</EncodingType>" if encode is quote else ""
        return _xml(
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{self._store.settings.bucket}'
            f"</Name><Prefix>{encode(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount><MaxKeys>{max_keys}</MaxKeys>"
            f"{encoding}<IsTruncated>{str(truncated).lower()}</IsTruncated>{next_page}{''.join(rows)}"
            f"</ListBucketResult>"
        )


def _xml(text: str) -> Response:
    return Response("200 OK", {"Content-Type": "application/xml"}, f'<?xml version="1.0"?>{text}'.encode())


def _error(status: str, code: str) -> Response:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>synthetic</Message></Error>'
    return Response(status, {"Content-Type": "application/xml"}, text.encode())


class Connection(asyncio.Protocol):
    """One connection of a client, with one request at a time."""

    def __init__(
        self, settings: ServerSettings, handle: Callable[[str, str, Mapping[str, str], bytes], Response]
    ) -> None:
        self._settings = settings
        self._handle = handle
        self._received = bytearray()
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        assert self._transport is not None
        self._received += data
        if self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            first, *lines = self._received[:end].decode("latin-1").split("\r\n")
            del self._received[: end + 4]
            pairs = (line.partition(":") for line in lines)
            method, target, _ = first.split(" ", 2)
            self._head = (method, target, {name.strip().lower(): value.strip() for name, _, value in pairs})
            if self._head[2].get("expect") == "100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target, headers = self._head
        length = int(headers.get("content-length", 0))
        if len(self._received) < length:
            return
        body = bytes(self._received[:length])
        del self._received[:length]
        self._head = None
        response = self._handle(method, target, headers, body)
        text = _encode(response, method == "HEAD")
        delay = self._settings.delay_seconds
        if self._settings.only_lists and not (method == "GET" and "list-type=" in target):
            delay = 0.0
        if delay:
            asyncio.get_running_loop().call_later(delay, self._transport.write, text)
        else:
            self._transport.write(text)


def _encode(response: Response, head_only: bool) -> bytes:
    length = len(response.body) if response.length is None else response.length
    fields = {"Date": formatdate(usegmt=True), "Content-Length": str(length), **response.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {response.status}\r\n{head}\r\n".encode("latin-1") + (
        b"" if head_only else response.body
    )


async def serve(settings: ServerSettings) -> None:
    """Serve until the process is terminated."""
    service = Service(Store(settings))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(settings, service.handle), "127.0.0.1", settings.port
    )
    await server.serve_forever()


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    asyncio.run(serve(ServerSettings(**{**arguments, "sizes": tuple(arguments["sizes"])})))
