"""The application of the server: the selected quirk, the request log, and ``/-/`` to control both.

==============================  =================================================================================
``GET /-/state``                quirk, open connections and their peak, open multipart uploads
``PUT /-/quirk``                select a quirk: ``{"name": …, "settings": {…}}``; its counters restart
``POST /-/reset``               delete all buckets, uploads and the log; select no quirk
``GET /-/requests``             the request log as JSON
``DELETE /-/peak``              count the peak of open connections from now on
``GET /-/objects/BUCKET``       all objects
``PUT /-/objects/BUCKET``       write objects with a given ETag and LastModified, delete objects
``POST /-/uploads/BUCKET``      begin a multipart upload, as another program would: ``{"key": …}``
==============================  =================================================================================

Objects are sent as a line of JSON, a list with the metadata and ``size`` of each object, followed by all bodies.
"""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.quirks.catalog import QUIRKS, Quirk
from tests.support.quirks.http_server import Answer, HttpServer, Request
from tests.support.quirks.memory import STANDARD, Memory, StoredObject
from tests.support.quirks.service import checksum, operation_of

ADMIN = "/-/"
LOGGED_HEADERS = (
    "if-match", "if-none-match", "range", "content-md5", "x-amz-copy-source", "x-amz-checksum-crc64nvme",
    "x-amz-sdk-checksum-algorithm", "x-injected", "host", "accept-encoding",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Logged:
    """A request and the status of its response.

    :param error: the error code of S3; empty if there was no error
    :param headers: the headers of the request that are in :data:`LOGGED_HEADERS`
    """

    operation: str
    method: str
    bucket: str
    key: str
    arguments: Mapping[str, str]
    headers: Mapping[str, str]
    status: int
    error: str
    connection: int


class QuirkApplication:
    """Answers all requests: those to ``/-/`` itself, all others by the selected quirk.

    :param secret_key: the secret key of the only user
    """

    def __init__(self, secret_key: str) -> None:
        self._secret_key = secret_key
        self._lock = threading.Lock()
        self._memory = Memory()
        self._service: Quirk = QUIRKS["no-quirk"](self._memory, secret_key)
        self._log: list[Logged] = []
        self.server: HttpServer | None = None
        """The server whose connections ``state`` returns."""

    @property
    def piece_bytes(self) -> int:
        """See :class:`tests.support.quirks.http_server.Application`."""
        return self._service.piece_bytes

    def closes_handshake(self) -> bool:
        """See :class:`tests.support.quirks.http_server.Application`."""
        return self._service.closes_handshake()

    def choose(self, name: str, settings: Mapping[str, Any]) -> None:
        """Select a quirk.

        :raises ValueError: if the quirk or one of its settings does not exist
        """
        if name not in QUIRKS:
            raise ValueError(f"there is no quirk {name!r}; there are {', '.join(sorted(QUIRKS))}")
        self._service = QUIRKS[name](self._memory, self._secret_key, **settings)

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        with self._lock:
            if request.path.startswith(ADMIN):
                try:
                    return self._answer_admin(request)
                except (ValueError, KeyError) as error:
                    return Answer(400, {}, f"{error}\n".encode())
            request.operation = operation_of(request)
            answer = self._service.answer(request)
            headers = {name: request.headers[name] for name in LOGGED_HEADERS if name in request.headers}
            self._log.append(
                Logged(
                    request.operation, request.method, request.bucket, request.key, request.arguments, headers,
                    answer.status, answer.error, request.connection,
                )
            )  # fmt: skip
            return answer

    def _answer_admin(self, request: Request) -> Answer:
        place, _, bucket = request.path.removeprefix(ADMIN).partition("/")
        match request.method, place:
            case "GET", "state":
                return _json(self._state())
            case "PUT", "quirk":
                wanted = json.loads(request.body)
                self.choose(wanted["name"], wanted.get("settings", {}))
            case "POST", "reset":
                self._memory.buckets.clear()
                self._memory.uploads.clear()
                self._log.clear()
                self.choose("no-quirk", {})
                self._reset_peak()
            case "DELETE", "peak":
                self._reset_peak()
            case "GET", "requests":
                return _json(
                    [{name: getattr(logged, name) for name in Logged.__slots__} for logged in self._log]
                )
            case "GET", "objects":
                return Answer(200, {}, dump(self._memory.buckets.get(bucket, {})))
            case "PUT", "objects":
                self._load(bucket, request.body)
            case "POST", "uploads":
                wanted = json.loads(request.body)
                return _json(self._memory.begin_upload(bucket, wanted["key"], {}).upload_id)
            case _:
                raise ValueError(f"{request.method} {request.path} is not supported")
        return _json("ok")

    def _reset_peak(self) -> None:
        if self.server is not None:
            self.server.reset_peak()

    def _state(self) -> dict[str, Any]:
        uploads = self._memory.uploads.values()
        return {
            "quirk": self._service.name,
            "occurrences": self._service.occurrences,
            "buckets": sorted(self._memory.buckets),
            "open": self.server.open if self.server else 0,
            "peak": self.server.peak if self.server else 0,
            "uploads": [
                {"bucket": upload.bucket, "key": upload.key, "id": upload.upload_id} for upload in uploads
            ],
        }

    def _load(self, bucket: str, body: bytes) -> None:
        objects = self._memory.buckets.setdefault(bucket, {})
        line, _, rest = body.partition(b"\n")
        offset = 0
        for entry in json.loads(line):
            if entry.get("deleted"):
                objects.pop(entry["key"], None)
                continue
            content = rest[offset : offset + entry["size"]]
            offset += entry["size"]
            objects[entry["key"]] = StoredObject(
                content,
                entry.get("etag") or self._service.etag(content),
                entry.get("modified") or time.time(),
                entry.get("headers") or {},
                entry["checksums"] if "checksums" in entry else {"crc64nvme": checksum("crc64nvme", content)},
                entry.get("storage_class") or STANDARD,
            )


def dump(objects: Mapping[str, StoredObject]) -> bytes:
    """Objects in the format of ``GET /-/objects/BUCKET``."""
    entries = [
        {
            "key": key, "size": len(stored.body), "etag": stored.etag, "modified": stored.modified,
            "headers": dict(stored.headers), "checksums": dict(stored.checksums),
            "storage_class": stored.storage_class,
        }
        for key, stored in objects.items()
    ]  # fmt: skip
    return b"\n".join((json.dumps(entries).encode(), b"".join(stored.body for stored in objects.values())))


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())
