"""The server as a whole: the quirk that is chosen, the request log, and ``/-/`` to look at them and change them.

==============================  =================================================================================
``GET /-/state``                quirk, connections that are open and their peak, uploads under way
``PUT /-/quirk``                choose a quirk: ``{"name": …, "settings": {…}}``; its counters begin again
``POST /-/reset``               forget all buckets and uploads, and the log; no quirk
``GET, DELETE /-/requests``     the request log, as JSON; forget it
``DELETE /-/peak``              count the peak of open connections from now on
``GET /-/objects/BUCKET``       all objects, as :mod:`tests.support.quirks.process` reads them
``PUT /-/objects/BUCKET``       write and delete objects as they are given, ETag and LastModified included
``POST /-/uploads/BUCKET``      begin a multipart upload, as another writer would: ``{"key": …}``
==============================  =================================================================================

Objects are sent as one line of JSON, a list with a field ``size`` for each, and then all bodies end to end.
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
    """A request that was answered.

    :param error: S3's error code, empty for none
    :param headers: those of :data:`LOGGED_HEADERS` that it had
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
    """Answers what comes in: ``/-/`` itself, everything else by the quirk that is chosen.

    :param secret_key: of the only user
    """

    def __init__(self, secret_key: str) -> None:
        self._secret_key = secret_key
        self._lock = threading.Lock()
        self._memory = Memory()
        self._service: Quirk = QUIRKS["no-quirk"](self._memory, secret_key)
        self._log: list[Logged] = []
        self.server: HttpServer | None = None
        """Whose connections are counted."""

    @property
    def piece_bytes(self) -> int:
        """See :class:`tests.support.quirks.http_server.Application`."""
        return self._service.piece_bytes

    def closes_handshake(self) -> bool:
        """See :class:`tests.support.quirks.http_server.Application`."""
        return self._service.closes_handshake()

    def choose(self, name: str, settings: Mapping[str, Any]) -> None:
        """Choose a quirk.

        :raises ValueError: if there is none of this name, or it has no such setting
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
                return _json([{name: getattr(one, name) for name in Logged.__slots__} for one in self._log])
            case "DELETE", "requests":
                self._log.clear()
            case "GET", "objects":
                return Answer(200, {}, dump(self._memory.buckets.get(bucket, {})))
            case "PUT", "objects":
                self._load(bucket, request.body)
            case "POST", "uploads":
                wanted = json.loads(request.body)
                return _json(self._memory.begin_upload(bucket, wanted["key"], {}).upload_id)
            case _:
                raise ValueError(f"{request.method} {request.path} is nothing that can be asked for")
        return _json("ok")

    def _reset_peak(self) -> None:
        if self.server is not None:
            self.server.reset_peak()

    def _state(self) -> dict[str, Any]:
        uploads = self._memory.uploads.values()
        return {
            "quirk": self._service.name,
            "happened": self._service.happened,
            "buckets": sorted(self._memory.buckets),
            "open": self.server.open if self.server else 0,
            "peak": self.server.peak if self.server else 0,
            "uploads": [{"bucket": one.bucket, "key": one.key, "id": one.upload_id} for one in uploads],
        }

    def _load(self, bucket: str, body: bytes) -> None:
        objects = self._memory.buckets.setdefault(bucket, {})
        line, _, rest = body.partition(b"\n")
        place = 0
        for entry in json.loads(line):
            if entry.get("deleted"):
                objects.pop(entry["key"], None)
                continue
            content = rest[place : place + entry["size"]]
            place += entry["size"]
            objects[entry["key"]] = StoredObject(
                content,
                entry.get("etag") or self._service.etag(content),
                entry.get("modified") or time.time(),
                entry.get("headers") or {},
                entry["checksums"] if "checksums" in entry else {"crc64nvme": checksum("crc64nvme", content)},
                entry.get("storage_class") or STANDARD,
            )


def dump(objects: Mapping[str, StoredObject]) -> bytes:
    """Objects as ``GET /-/objects/BUCKET`` sends them."""
    entries = [
        {
            "key": key, "size": len(kept.body), "etag": kept.etag, "modified": kept.modified,
            "headers": dict(kept.headers), "checksums": dict(kept.checksums), "storage_class": kept.storage_class,
        }
        for key, kept in objects.items()
    ]  # fmt: skip
    return b"\n".join((json.dumps(entries).encode(), b"".join(kept.body for kept in objects.values())))


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())
