"""An S3 server of made-up objects: answers at once or after a fixed delay, and keeps what is written in memory.

Run as ``python -m benchmarks.synthetic SETTINGS`` with :class:`Made` as JSON. It checks no signature and knows
only what this project asks: LIST with prefix, delimiter and start, GET, HEAD, PUT, copy, and DELETE. The raw
objects are never stored: key, size, ETag and body follow from an object's number.
"""

import asyncio
import base64
import json
import random
import re
import sys
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import formatdate
from hashlib import md5
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

from awscrt.checksums import crc64nvme

OBJECTS_A_HOST = 2_500
PAGE = 1_000
MODIFIED = "2026-11-23T08:59:00.000Z"


@dataclass(frozen=True, slots=True)
class Made:
    """What the server is to be.

    :param delay_seconds: how much later every answer comes; of listings, where ``only_lists``
    :param sizes: of the raw objects in bytes, taken in turn; about so large where they are compressed
    :param encoding: of the raw objects: empty for plain, or ``.gz``
    """

    port: int
    bucket: str
    prefix: str
    objects: int
    sizes: tuple[int, ...]
    delay_seconds: float
    only_lists: bool
    encoding: str = ""

    def arguments(self) -> list[str]:
        """The command line that serves this."""
        return [sys.executable, "-m", "benchmarks.synthetic", json.dumps(asdict(self))]


class RawKeys(Sequence[str]):
    """The keys of the raw objects in order, none of them in memory."""

    def __init__(self, prefix: str, count: int, ending: str) -> None:
        self._prefix = prefix
        self._count = count
        self._ending = ending

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return (
            f"{self._prefix}host-{number // OBJECTS_A_HOST:04d}/{number % OBJECTS_A_HOST:05d}{self._ending}"
        )

    def number(self, key: str) -> int | None:
        """Which object has this key."""
        number = bisect_left(self, key)
        return number if number < self._count and self[number] == key else None


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that was written: its body only where that is small."""

    size: int
    etag: str
    crc: str
    body: bytes | None


KEPT_BYTES = 64 * 1024**2


class Store:
    """The objects, made up and written."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.raw = RawKeys(made.prefix, made.objects, f".log{made.encoding}")
        self.bodies = {size: _body(size, made.encoding) for size in set(made.sizes)}
        self.etags = {
            size: md5(body, usedforsecurity=False).hexdigest() for size, body in self.bodies.items()
        }
        self.crcs = {size: _crc(body) for size, body in self.bodies.items()}
        self.written: dict[str, Stored] = {}

    def size(self, number: int) -> int:
        """The nominal size of a raw object, in bytes."""
        return self.made.sizes[number % len(self.made.sizes)]

    def find(self, key: str) -> Stored | None:
        """An object, whichever it is."""
        number = self.raw.number(key)
        if number is None:
            return self.written.get(key)
        size = self.size(number)
        body = self.bodies[size]
        return Stored(len(body), self.etags[size], self.crcs[size], body)

    def rows(self, prefix: str, after: str) -> Iterator[tuple[str, int, str]]:
        """Key, size and ETag of what begins with a prefix and sorts after a key."""
        first = max(prefix, after)
        if self.made.prefix.startswith(prefix) or prefix.startswith(self.made.prefix):
            for number in range(bisect_left(self.raw, first), len(self.raw)):
                key = self.raw[number]
                if not key.startswith(prefix):
                    break
                if key > after:
                    size = self.size(number)
                    yield key, len(self.bodies[size]), self.etags[size]
        for key in sorted(self.written):
            if key > after and key.startswith(prefix):
                yield key, self.written[key].size, self.written[key].etag


def _body(size: int, encoding: str) -> bytes:
    if not encoding:
        return (b"one line of a log, as long as any other\n" * (size // 40 + 1))[:size]
    # Lines that compress about as well as those of a web server: five to eight times.
    made = random.Random(size)
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    body = b""
    while len(body) < size:
        lines = (
            f"2026-11-23T08:{made.randrange(60):02}:{made.randrange(60):02}Z INFO web-{made.randrange(40):02} "
            f"GET /api/v1/orders/{made.randrange(10**6)} 200 {made.randrange(10**4)} ms\n"
            for _ in range(200)
        )
        body += packer.compress("".join(lines).encode()) + packer.flush(zlib.Z_SYNC_FLUSH)
    return body + packer.flush()


def _crc(body: bytes) -> str:
    return base64.b64encode(crc64nvme(body).to_bytes(8)).decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    status: str
    headers: Mapping[str, str]
    body: bytes = b""
    length: int | None = None


class Service:
    """Answers requests, one function for each operation."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The answer to a request, path style."""
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
            self._store.written.pop(key, None)
            return Answer("204 No Content", {})
        return self._get(key, headers, method == "HEAD")

    def _get(self, key: str, headers: Mapping[str, str], head_only: bool) -> Answer:
        found = self._store.find(key)
        if found is None:
            return _error("404 Not Found", "NoSuchKey")
        if headers.get("if-match", found.etag).strip('"') != found.etag:
            return _error("412 Precondition Failed", "PreconditionFailed")
        about = {
            "ETag": f'"{found.etag}"',
            "x-amz-checksum-crc64nvme": found.crc,
            "x-amz-checksum-type": "FULL_OBJECT",
        }
        if head_only or found.body is None:
            return Answer("200 OK", about, b"", found.size)
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if span:
            return Answer("206 Partial Content", about, found.body[int(span[1]) : int(span[2]) + 1])
        return Answer("200 OK", about, found.body)

    def _put(self, key: str, headers: Mapping[str, str], body: bytes) -> Answer:
        crc = _crc(body)
        if headers.get("x-amz-checksum-crc64nvme", crc) != crc:
            return _error("400 Bad Request", "BadDigest")
        etag = md5(body, usedforsecurity=False).hexdigest()
        kept = body if "part-" not in key else None
        self._store.written[key] = Stored(len(body), etag, crc, kept)
        return Answer("200 OK", {"ETag": f'"{etag}"', "x-amz-checksum-crc64nvme": crc})

    def _copy(self, key: str, source: str) -> Answer:
        found = self._store.find(unquote(source).lstrip("/").partition("/")[2])
        if found is None:
            return _error("404 Not Found", "NoSuchKey")
        self._store.written[key] = found
        return _xml(f"<CopyObjectResult><ETag>&quot;{found.etag}&quot;</ETag></CopyObjectResult>")

    def _delete(self, body: bytes) -> Answer:
        for key in re.findall(rb"<Key>(.*?)</Key>", body):
            self._store.written.pop(key.decode(), None)
        return _xml("<DeleteResult></DeleteResult>")

    def _list(self, fields: Mapping[str, str]) -> Answer:
        prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")
        after = max(fields.get("continuation-token", ""), fields.get("start-after", ""))
        most = int(fields.get("max-keys", PAGE))
        encode = quote if fields.get("encoding-type") == "url" else escape
        rows: list[str] = []
        last, truncated = after, False
        while True:
            again = False
            for key, size, etag in self._store.rows(prefix, last):
                if len(rows) == most:
                    truncated = True
                    break
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    folder = key[: cut + 1]
                    rows.append(f"<CommonPrefixes><Prefix>{encode(folder)}</Prefix></CommonPrefixes>")
                    # Past everything below the folder.
                    last, again = folder + "\U0010ffff", True
                    break
                rows.append(
                    f"<Contents><Key>{encode(key)}</Key><LastModified>{MODIFIED}</LastModified>"
                    f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass>"
                    f"</Contents>"
                )
                last = key
            if not again:
                break
        next_page = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if truncated else ""
        encoding = "<EncodingType>url</EncodingType>" if encode is quote else ""
        return _xml(
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{self._store.made.bucket}'
            f"</Name><Prefix>{encode(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"{encoding}<IsTruncated>{str(truncated).lower()}</IsTruncated>{next_page}{''.join(rows)}"
            f"</ListBucketResult>"
        )


def _xml(text: str) -> Answer:
    return Answer("200 OK", {"Content-Type": "application/xml"}, f'<?xml version="1.0"?>{text}'.encode())


def _error(status: str, code: str) -> Answer:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made up</Message></Error>'
    return Answer(status, {"Content-Type": "application/xml"}, text.encode())


class Connection(asyncio.Protocol):
    """One client's connection; requests come one after the other."""

    def __init__(self, made: Made, answer: Callable[[str, str, Mapping[str, str], bytes], Answer]) -> None:
        self._made = made
        self._answer = answer
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
        answer = self._answer(method, target, headers, body)
        text = _wire(answer, method == "HEAD")
        late = self._made.delay_seconds
        if self._made.only_lists and not (method == "GET" and "list-type=" in target):
            late = 0.0
        if late:
            asyncio.get_running_loop().call_later(late, self._transport.write, text)
        else:
            self._transport.write(text)


def _wire(answer: Answer, head_only: bool) -> bytes:
    length = len(answer.body) if answer.length is None else answer.length
    fields = {"Date": formatdate(usegmt=True), "Content-Length": str(length), **answer.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {answer.status}\r\n{head}\r\n".encode("latin-1") + (b"" if head_only else answer.body)


async def serve(made: Made) -> None:
    """Serve until the process is ended."""
    service = Service(Store(made))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(made, service.answer), "127.0.0.1", made.port)
    await server.serve_forever()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    asyncio.run(serve(Made(**{**asked, "sizes": tuple(asked["sizes"])})))
