"""Object storage in memory that implements the pipeline's protocols; any request can be made to fail.

It behaves like S3: keys are listed in the order of their UTF-8 bytes and in pages, an ETag is the MD5 of the
content, a CRC that is sent with an object is compared and kept, If-Match is honoured, and a copy keeps what S3
would keep. Options turn some of this off. Deleting several objects is one request, but not atomic: a crash may
come between any two of them, and one may be refused while the others are deleted.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, auto
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from include.log_rollup import crc
from include.log_rollup.errors import (
    AccessError,
    ArchivedError,
    InputChangedError,
    MissingBucketError,
    NotFoundError,
    TooLargeError,
    TransientError,
)
from include.log_rollup.storage.protocol import (
    READ_LIMIT_BYTES,
    Checksum,
    DeleteResult,
    Downloaded,
    FolderPage,
    ListPage,
    Location,
    ObjectHead,
    ObjectInfo,
    StoredObject,
    TimedObject,
    TimedPage,
    Uploaded,
)
from include.log_rollup.storage.two_stores import TwoStores
from include.log_rollup.storage_options import ARCHIVE_CLASSES

WRITES = frozenset({"WRITE", "PUT", "COPY", "PUBLISH", "DELETE"})
# S3's names of the requests that the hook counts. Those of a transfer are counted by the packer.
S3_NAMES = {
    "LIST": "ListObjectsV2",
    "HEAD": "HeadObject",
    "READ": "GetObject",
    "RANGE": "GetObject",
    "WRITE": "PutObject",
    "DELETE": "DeleteObjects",
    "PUBLISH": "CopyObject",
}


class Effect(Enum):
    """What can go wrong with a request, besides an error that is raised instead of carrying it out."""

    LOST_ANSWER = auto()
    """It is carried out, but the connection breaks before the client gets the answer."""
    WRONG_BYTES = auto()
    """One bit of the body is flipped in transit."""
    TRUNCATED = auto()
    """The last byte of a GET is missing, without an error."""
    WRONG_ETAG = auto()
    """A GET is answered with another object's ETag."""
    WRONG_CRC = auto()
    """A PUT is answered with another CRC than was sent."""
    STALLED = auto()
    """A GET or PUT is not answered until it is cancelled."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, or one object of a DELETE.

    :param detail: other arguments of the request, such as an offset
    """

    kind: str
    bucket: str
    key: str
    detail: str = ""

    @property
    def name(self) -> str:
        """The last step of the key."""
        return self.key.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


@dataclass(slots=True)
class Rule:
    """What happens to requests of a kind whose key contains a text, for a number of times."""

    kind: str
    contains: str
    effect: "Effect | Exception | Callable[[], None]"
    times: int
    hits: int = 0

    def applies(self, operation: Operation) -> bool:
        """Whether the rule applies to this request."""
        return (
            self.hits < self.times and self.kind in (operation.kind, "ANY") and self.contains in operation.key
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """An object in the store.

    :param checksum: what the store states for it, right or wrong
    """

    body: bytes
    etag: str
    etag_is_md5: bool
    modified: float
    checksum: Checksum | None
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def storage_class(self) -> str:
        """The storage class; empty for STANDARD."""
        return self.headers.get("x-amz-storage-class", "")


class CrashError(Exception):
    """The process died: no later request of it has any effect."""


class FakeStore:
    """Implements :class:`include.log_rollup.storage.protocol.ObjectStore`.

    :param has_conditions: whether a delete depends on the ETag that is asked for; otherwise it is ignored
    :param keeps_crc: whether it keeps a CRC64-NVME for each object
    :param checks_crc: whether it refuses an object with a wrong CRC; a store that keeps CRCs without comparing
        them returns what it was sent
    :param etag_is_md5: whether the ETags of objects that the pipeline writes are MD5s
    :param random_etags: whether all ETags look like MD5s but are random, as on some servers
    :param page_size: of listings
    :param threads: threads of a transfer that carry out its requests; with 0, ``get`` and ``put`` carry them out
        before they return
    """

    def __init__(
        self,
        *,
        keeps_crc: bool = True,
        has_conditions: bool = True,
        checks_crc: bool = True,
        etag_is_md5: bool = True,
        random_etags: bool = False,
        page_size: int = 1000,
        threads: int = 0,
        max_connections: int = 8,
        control_connections: int = 4,
        buckets: Sequence[str] = ("logs",),
    ) -> None:
        self.max_connections = max_connections
        self.control_connections = control_connections
        self._requests: Counter[str] = Counter()
        self.requests: Mapping[str, int] = self._requests
        self.ports: Collection[int] = (1,)
        self.copies_raw = True
        # Whether the store states a CRC of what it has copied or joined from ranges.
        self.copies_keep_crc = True
        # Whether the answer to a copy states it.
        self.copies_answer_crc = True
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)
        self.log: list[Operation] = []
        self.transfers: list[FakeTransfer] = []
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self._upload_headers: dict[str, Mapping[str, str]] = {}
        self.lists_all_uploads = False
        self.watcher: Callable[[Operation], None] | None = None
        # Retrievals from the archive that were requested, by key, and whether they have ended.
        self.retrievals: dict[str, bool] = {}
        self.threads = threads
        self.crashed = False
        self._options: dict[str, Any] = {
            "keeps_crc": keeps_crc,
            "has_conditions": has_conditions,
            "checks_crc": checks_crc,
            "etag_is_md5": etag_is_md5,
            "random_etags": random_etags,
            "page_size": page_size,
            "threads": threads,
            "max_connections": max_connections,
            "control_connections": control_connections,
        }
        self._keeps_crc = keeps_crc
        self._has_conditions = has_conditions
        self._checks_crc = checks_crc
        self._etag_is_md5 = etag_is_md5
        self._random_etags = random_etags
        self._page_size = page_size
        self._buckets: dict[str, dict[str, Stored]] = {bucket: {} for bucket in buckets}
        self._rules: list[Rule] = []
        self._serial = count(1)
        self._writes_until_crash: int | None = None
        self._lock = threading.RLock()

    # -- for tests ------------------------------------------------------------------------

    def fork(self) -> "FakeStore":
        """A copy of this store with the same options and objects, but without its log and rules."""
        other = FakeStore(**self._options, buckets=list(self._buckets))
        other.now = self.now
        other._buckets = {bucket: dict(objects) for bucket, objects in self._buckets.items()}
        other._serial = count(next(self._serial))
        return other

    def another_client(self) -> "FakeStore":
        """A second client of the same objects, with its own log and rules."""
        other = self.fork()
        other._buckets = self._buckets
        other._lock = self._lock
        other._serial = self._serial
        other.uploads = self.uploads
        other._upload_headers = self._upload_headers
        other.watcher = self.watcher
        return other

    def produce(
        self,
        key: str,
        body: bytes,
        *,
        bucket: str = "logs",
        algorithm: str | None = "crc64nvme",
        md5_etag: bool = True,
        modified: float | None = None,
    ) -> str:
        """Put an object as a producer would; the log doesn't show it.

        :param algorithm: of the CRC that the store states for it, if it keeps any
        :returns: its ETag
        """
        checksum = None
        if algorithm and self._keeps_crc:
            checksum = Checksum(algorithm, crc.by_algorithm(algorithm, body))
        stored = Stored(
            body,
            self._etag(body, md5_etag),
            md5_etag,
            self.now.timestamp() - 7200 if modified is None else modified,
            checksum,
        )
        with self._lock:
            self._buckets[bucket][key] = stored
        return stored.etag

    def vanish(self, key: str, bucket: str = "logs") -> None:
        """Delete an object; the log doesn't show it."""
        with self._lock:
            del self._buckets[bucket][key]

    def corrupt(
        self, key: str, bucket: str = "logs", *, keep_etag: bool = False, body: bytes | None = None
    ) -> None:
        """Flip a bit of an object, as a disk or another writer would do.

        :param keep_etag: whether the store keeps the old ETag and CRC, as after damage on a disk
        :param body: the new bytes; None to flip a bit
        """
        with self._lock:
            was = self._buckets[bucket][key]
            body = _flipped(was.body) if body is None else body
            if keep_etag:
                self._buckets[bucket][key] = replace(was, body=body)
            else:
                self._buckets[bucket][key] = replace(
                    was,
                    body=body,
                    etag=self._etag(body, was.etag_is_md5),
                    checksum=self._checksum(body, None),
                )

    def archive(self, prefix: str, storage_class: str = "GLACIER", bucket: str = "logs") -> None:
        """Move objects to a class, as a lifecycle rule does."""
        with self._lock:
            for key in self.listing(prefix, bucket):
                stored = self._buckets[bucket][key]
                headers = {**stored.headers, "x-amz-storage-class": storage_class}
                self._buckets[bucket][key] = replace(stored, headers=headers)

    def end_retrievals(self) -> None:
        """Make the objects readable that are being retrieved."""
        self.retrievals = dict.fromkeys(self.retrievals, True)

    def on(
        self,
        kind: str,
        contains: str,
        effect: "Effect | Exception | Callable[[], None]",
        times: int = 1,
    ) -> Rule:
        """Apply an effect to the next requests of a kind (or ``ANY``) whose key contains a text.

        :param effect: an error is raised instead of carrying the request out; a function is called before it
        """
        rule = Rule(kind, contains, effect, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def crash_after_writes(self, number: int) -> None:
        """Crash as soon as this many more objects have been written, copied or deleted."""
        self._writes_until_crash = number
        self.crashed = number == 0

    @property
    def pending_crash(self) -> bool:
        """Whether fewer objects have been written than the crash needs."""
        return self._writes_until_crash is not None and not self.crashed

    def revive(self) -> None:
        """Start a new process after the crash."""
        self._writes_until_crash = None
        self.crashed = False

    def listing(self, prefix: str = "", bucket: str = "logs") -> list[str]:
        """The keys under a prefix, in order."""
        with self._lock:
            return sorted(
                (key for key in self._buckets[bucket] if key.startswith(prefix)), key=lambda key: key.encode()
            )

    def snapshot(self, prefix: str = "", bucket: str = "logs") -> dict[str, Stored]:
        """The objects under a prefix, by key."""
        with self._lock:
            objects = self._buckets[bucket]
            return {key: found for key, found in objects.items() if key.startswith(prefix)}

    def has(self, key: str, bucket: str = "logs") -> bool:
        """Whether an object with this key exists."""
        return key in self._buckets[bucket]

    def stored(self, key: str, bucket: str = "logs") -> Stored:
        """An object."""
        return self._buckets[bucket][key]

    def body(self, key: str, bucket: str = "logs") -> bytes:
        """An object's bytes."""
        return self._buckets[bucket][key].body

    def writes(self) -> list[Operation]:
        """The operations of the log that changed the store, in order."""
        return [operation for operation in self.log if operation.kind in WRITES]

    # -- the protocol ----------------------------------------------------------------------------------

    def open_transfer(self, read_bucket: str, write_bucket: str) -> "FakeTransfer":
        transfer = FakeTransfer(self, self.max_connections - self.control_connections)
        self.transfers.append(transfer)
        return transfer

    def list_folders(self, prefix: Location, token: str | None = None, limit: int = 1000) -> FolderPage:
        self.begin("LIST", prefix, token or "")
        size, after = min(limit, self._page_size), token or ""
        with self._lock:
            names = [key[len(prefix.key) :].partition("/") for key in self.listing(prefix.key, prefix.bucket)]
            rows = sorted({f"{prefix.key}{step}{slash}" for step, slash, _ in names} - {prefix.key})
        rest = [row for row in rows if row > after]
        page, more = rest[:size], len(rest) > size
        return FolderPage(
            [row for row in page if row.endswith("/")],
            [row for row in page if not row.endswith("/")],
            more,
            page[-1] if more else None,
        )

    def list_page(
        self,
        prefix: Location,
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
        own: Callable[[str], bool] | None = None,
    ) -> ListPage:
        after = start_after if token is None else token
        self.begin("LIST", prefix, after)
        size = min(limit, self._page_size)
        with self._lock:
            rest = [key for key in self.listing(prefix.key, prefix.bucket) if key.encode() > after.encode()]
            rows = [self._info(prefix.bucket, key) for key in rest[:size]]
            newest = self._newest(prefix.bucket, rows, own)
        more = len(rest) > size
        return ListPage(rows, newest, self.now, more, rows[-1].key if more else None)

    def list_times(self, prefix: Location, start_after: str = "", delimiter: str = "") -> TimedPage:
        self.begin("LIST", prefix, start_after)
        rows: set[str] = set()
        with self._lock:
            for key in self.listing(prefix.key, prefix.bucket):
                step, slash, _ = key[len(prefix.key) :].partition("/") if delimiter else ("", "", "")
                rows.add(f"{prefix.key}{step}/" if slash else key)
            rest = sorted((row for row in rows if row.encode() > start_after.encode()), key=str.encode)
            page = rest[: self._page_size]
            stored = self._buckets[prefix.bucket]
            objects = [
                TimedObject(
                    *self._info(prefix.bucket, key), datetime.fromtimestamp(stored[key].modified, UTC)
                )
                for key in page
                if key in stored
            ]
        return TimedPage(objects, [row for row in page if row not in stored], len(rest) > len(page))

    def head(self, target: Location) -> ObjectHead | None:
        self.begin("HEAD", target)
        found = self._find(target)
        if found is None:
            return None
        stated = found.checksum
        value = stated.value if stated and stated.algorithm == "crc64nvme" else None
        return ObjectHead(
            len(found.body),
            found.etag,
            value,
            found.etag_is_md5,
            found.storage_class,
            self._is_archived(target, found),
            self.retrievals.get(target.key) is False,
        )

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        self.begin("READ", source)
        found = self._find(source)
        self._refuse_archived(source, found)
        if found is not None and len(found.body) > limit:
            raise TooLargeError(f"{source} has {len(found.body)} bytes")
        return None if found is None else StoredObject(found.body, found.etag)

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        effect = self.begin("RANGE", source, f"{offset}+{length}")
        body = self.matching(source, etag).body[offset : offset + length]
        return _flipped(body) if effect is Effect.WRONG_BYTES else body

    def read_into(self, source: Location, etag: str, offset: int, into: memoryview) -> None:
        into[:] = self.read_range(source, etag, offset, len(into))

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        effect = self.begin("WRITE", target)
        stored = self.keep("WRITE", target, body, content_type=content_type)
        _lose_answer(effect, target)
        return stored.etag

    def publish(self, source: Location, target: Location) -> None:
        effect = self.begin("PUBLISH", target)
        with self._lock:
            found = self.matching(source, None)
            self.keep("PUBLISH", target, found.body, content_type=found.content_type)
        _lose_answer(effect, target)

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        if not self._checks_crc:
            self.write(scratch, b"\n", "")
            self.delete(scratch.bucket, [scratch.key])
        return self._checks_crc

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        refused: list[Exception] = []
        for key in keys:
            try:
                self._delete(Location(bucket, key))
            except CrashError:
                raise
            except Exception as error:
                # S3 reports a key that it could not delete after it has tried all of them.
                refused.append(error)
        if refused:
            raise refused[0]

    def delete_if(self, target: Location, etag: str) -> bool:
        return self._delete(target, etag)

    def deletes_on_condition(self, scratch: Location) -> bool:
        return self._has_conditions

    def delete_exactly(
        self, prefix: Location, objects: Sequence[ObjectInfo], *, conditional: bool
    ) -> DeleteResult:
        changed, refused = [], {}
        for item in objects:
            try:
                if not self._delete(prefix.at(item.key), item.etag if conditional else None):
                    changed.append(item.key)
            except AccessError as error:
                refused[item.key] = str(error)
        return DeleteResult(changed, refused)

    def _delete(self, target: Location, etag: str | None = None) -> bool:
        """Delete an object if it has this ETag; None is for any."""
        effect = self.begin("DELETE", target)
        with self._lock:
            found = self._find(target)
            if self._has_conditions and found is not None and etag not in (None, found.etag):
                return False
            self._buckets[target.bucket].pop(target.key, None)
            self._changed("DELETE", target)
        _lose_answer(effect, target)
        return True

    def request_retrieval(self, target: Location, tier: str, days: int | None) -> bool:
        self.begin("RETRIEVE", target, f"{tier} {days}")
        if target.key in self.retrievals:
            return False
        self.retrievals[target.key] = False
        return True

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        self.begin("UPLOADS", prefix)
        with self._lock:
            return [
                (key, upload_id)
                for upload_id, (key, _) in self.uploads.items()
                if self.lists_all_uploads or key.startswith(prefix.key)
            ]

    def begin_upload(self, target: Location, headers: Mapping[str, str], *, with_crc: bool = False) -> str:
        self.begin("BEGIN", target, "with CRC" if with_crc else "")
        with self._lock:
            upload_id = f"upload-{next(self._serial)}"
            self.uploads[upload_id] = (target.key, {})
            self._upload_headers[upload_id] = headers
        return upload_id

    def finish_upload(
        self, target: Location, upload_id: str, etags: Sequence[str], crc64nvme: int | None = None
    ) -> None:
        effect = self.begin("FINISH", target)
        with self._lock:
            key, ranges = self.uploads.pop(upload_id)
            assert key == target.key
            assert [f"range-{number}" for number in sorted(ranges)] == list(etags)
            body = b"".join(ranges[number] for number in sorted(ranges))
            if crc64nvme is not None and self.refuses(body, crc64nvme):
                raise TransientError(f"FINISH UPLOAD {target}: S3 answered 400 BadDigest")
            headers = self._upload_headers[upload_id]
            self.keep("COPY" if crc64nvme is None else "PUT", target, body, crc64nvme, headers=headers)
        _lose_answer(effect, target)

    def abort_upload(self, target: Location, upload_id: str) -> None:
        self.begin("ABORT", target)
        with self._lock:
            self.uploads.pop(upload_id, None)

    # -- used only in this module ----------------------------------------------------------------------

    def begin(self, kind: str, target: Location, detail: str = "") -> Effect | None:
        """Log a request and apply the first matching rule.

        :returns: an effect that the code of the request has to produce
        """
        operation = Operation(kind, target.bucket, target.key, detail)
        with self._lock:
            if self.crashed:
                raise CrashError(f"dead before {operation}")
            if target.bucket not in self._buckets:
                raise MissingBucketError(f"{kind} {target}: S3 answered 404 NoSuchBucket")
            self.log.append(operation)
            if kind in S3_NAMES:
                self._requests[S3_NAMES[kind]] += 1
            rule = next((rule for rule in self._rules if rule.applies(operation)), None)
            if rule is not None:
                rule.hits += 1
        if rule is None:
            return None
        if isinstance(rule.effect, Effect):
            return rule.effect
        if isinstance(rule.effect, Exception):
            raise rule.effect
        rule.effect()
        if self.crashed:
            raise CrashError(f"dead before {operation}")
        return None

    def keep(
        self,
        kind: str,
        target: Location,
        body: bytes,
        sent_crc: int | None = None,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Stored:
        """Store an object that the pipeline writes."""
        stored = Stored(
            body,
            self._etag(body, self._etag_is_md5),
            self._etag_is_md5,
            self.now.timestamp(),
            self._checksum(body, sent_crc) if self.copies_keep_crc or kind != "COPY" else None,
            content_type,
            dict(headers or {}),
        )
        with self._lock:
            if self.crashed:
                raise CrashError(f"dead before {kind} {target}")
            self._buckets[target.bucket][target.key] = stored
            self._changed(kind, target)
        return stored

    def matching(self, source: Location, etag: str | None) -> Stored:
        """An object, if its ETag fulfils If-Match; None as the ETag means no condition."""
        found = self._find(source)
        if found is None:
            raise NotFoundError(f"GET {source}: S3 answered 404 NoSuchKey")
        if etag not in (None, found.etag):
            raise InputChangedError(f"GET {source}: S3 answered 412 PreconditionFailed")
        self._refuse_archived(source, found)
        return found

    def _is_archived(self, target: Location, found: Stored) -> bool:
        return found.storage_class in ARCHIVE_CLASSES and not self.retrievals.get(target.key)

    def _refuse_archived(self, source: Location, found: Stored | None) -> None:
        if found is not None and self._is_archived(source, found):
            raise ArchivedError(f"GET {source}: S3 answered 403 InvalidObjectState: the object is archived")

    def refuses(self, body: bytes, sent_crc: int) -> bool:
        """Whether the store refuses this object because of its CRC."""
        return self._keeps_crc and self._checks_crc and crc.crc64(body) != sent_crc

    def _find(self, target: Location) -> Stored | None:
        with self._lock:
            return self._buckets[target.bucket].get(target.key)

    def _newest(self, bucket: str, rows: Sequence[ObjectInfo], own: Callable[[str], bool] | None) -> float:
        objects = self._buckets[bucket]
        return max((objects[row.key].modified for row in rows if own is None or own(row.key)), default=0.0)

    def _info(self, bucket: str, key: str) -> ObjectInfo:
        found = self._buckets[bucket][key]
        return ObjectInfo(key, len(found.body), found.etag)

    def _changed(self, kind: str, target: Location) -> None:
        if self._writes_until_crash is not None:
            self._writes_until_crash -= 1
            self.crashed = self.crashed or self._writes_until_crash <= 0
        if self.watcher is not None:
            self.watcher(Operation(kind, target.bucket, target.key))

    def _etag(self, body: bytes, is_md5: bool) -> str:
        if self._random_etags:
            return hashlib.md5(f"random {next(self._serial)}".encode()).hexdigest()
        if is_md5:
            return hashlib.md5(body).hexdigest()
        return f"{hashlib.md5(str(next(self._serial)).encode()).hexdigest()}-1"

    def _checksum(self, body: bytes, sent: int | None) -> Checksum | None:
        if not self._keeps_crc:
            return None
        return Checksum("crc64nvme", crc.crc64(body) if sent is None or self._checks_crc else sent)


class OddLister(FakeStore):
    """A store whose listings differ from those of S3, as on some servers.

    :param order: returns the listed keys in the order of the server; it may omit or repeat some
    :param start_after: how it is interpreted: ``honoured``, ``ignored``, or as a place in the ``tree`` of folders
    :param change: changes each page, given the page and the token of its request
    """

    def __init__(
        self,
        *,
        order: Callable[[list[str]], list[str]] = list,
        start_after: str = "honoured",
        change: Callable[[ListPage, str | None], ListPage] = lambda page, _: page,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._order = order
        self._start_after = start_after
        self._change = change

    def list_page(
        self,
        prefix: Location,
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
        own: Callable[[str], bool] | None = None,
    ) -> ListPage:
        self.begin("LIST", prefix, start_after if token is None else token)
        size = min(limit, self._page_size)
        with self._lock:
            keys = self._order(self.listing(prefix.key, prefix.bucket))
            first = int(token) if token else 0
            if start_after:
                # A token is a position in the listing that began at start_after.
                keys = [key for key in keys if self._is_after(key, start_after)]
            rows = [self._info(prefix.bucket, key) for key in keys[first : first + size]]
            newest = self._newest(prefix.bucket, rows, own)
        more = len(keys) > first + size
        page = ListPage(rows, newest, self.now, more, str(first + size) if more else None)
        return self._change(page, token)

    def _is_after(self, key: str, start_after: str) -> bool:
        if self._start_after == "ignored":
            return True
        if self._start_after == "tree":
            return key.split("/") > start_after.split("/")
        return key.encode() > start_after.encode()


class FakeTransfer:
    """Implements :class:`include.log_rollup.storage.protocol.Transfer`, and asserts correct use."""

    def __init__(self, store: FakeStore, connections: int) -> None:
        self.connections = connections
        self.closed = False
        self.most_in_flight = 0
        self.in_flight = 0
        self.answers: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._store = store
        self._executor = ThreadPoolExecutor(store.threads, "fake-transfer") if store.threads else None

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> "FakeRequest":
        def arrived(answer: tuple[bytes, Downloaded]) -> Downloaded:
            body, result = answer
            into[: len(body)] = body
            return result

        return self._run(lambda: self._get(source, etag, len(into)), arrived, done)

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> "FakeRequest":
        sent = bytes(body)
        return self._run(lambda: self._put(target, sent, crc64nvme, headers), lambda answer: answer, done)

    def get_range(
        self,
        source: Location,
        etag: str,
        first: int,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> "FakeRequest":
        def work() -> tuple[bytes, Downloaded] | None:
            effect = self._store.begin("GETRANGE", source, f"{first}+{len(into)}")
            if effect is Effect.STALLED:
                return None
            _lose_answer(effect, source)
            found = self._store.matching(source, etag)
            body = found.body[first : first + len(into)]
            body = _flipped(body) if effect is Effect.WRONG_BYTES else body
            body = body[:-1] if effect is Effect.TRUNCATED else body
            stated = "0" * 32 if effect is Effect.WRONG_ETAG else found.etag
            return body, Downloaded(len(body), stated, None, found.etag_is_md5, len(found.body))

        def arrived(answer: tuple[bytes, Downloaded]) -> Downloaded:
            body, result = answer
            into[: len(body)] = body
            return result

        return self._run(work, arrived, done)

    def put_range(
        self,
        target: Location,
        upload_id: str,
        number: int,
        body: memoryview,
        crc64nvme: int,
        done: Callable[[Uploaded | Exception], None],
    ) -> "FakeRequest":
        sent = bytes(body)

        def work() -> Uploaded | None:
            effect = self._store.begin("PUTRANGE", target, str(number))
            if effect is Effect.STALLED:
                return None
            arrived = _flipped(sent) if effect is Effect.WRONG_BYTES else sent
            if self._store.refuses(arrived, crc64nvme):
                raise TransientError(f"PUT {target}: S3 answered 400 BadDigest")
            self._store.uploads[upload_id][1][number] = arrived
            _lose_answer(effect, target)
            return Uploaded(f"range-{number}", None)

        return self._run(work, lambda answer: answer, done)

    def copy(
        self,
        source: Location,
        etag: str,
        target: Location,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> "FakeRequest":
        return self._run(lambda: self._copy(source, etag, target, headers), lambda answer: answer, done)

    def copy_range(
        self,
        source: Location,
        etag: str,
        first: int,
        last: int,
        target: Location,
        upload_id: str,
        number: int,
        done: Callable[[Uploaded | Exception], None],
    ) -> "FakeRequest":
        def work() -> Uploaded:
            self._store.begin("RANGECOPY", target, f"{first}-{last}")
            body = self._store.matching(source, etag).body[first : last + 1]
            self._store.uploads[upload_id][1][number] = body
            return Uploaded(f"range-{number}", None)

        return self._run(work, lambda answer: answer, done)

    def wait(self, seconds: float) -> None:
        assert not self.closed, "used after it was closed"
        with suppress(Empty):
            self.answers.get(timeout=seconds)()
            while True:
                self.answers.get_nowait()()

    def wake(self) -> None:
        self.answers.put(lambda: None)

    def close(self) -> None:
        assert self.in_flight == 0, f"closed with {self.in_flight} requests in flight"
        self.closed = True
        if self._executor is not None:
            self._executor.shutdown()

    def _run(
        self, work: Callable[[], Any], arrived: Callable[[Any], object], done: Callable[[Any], None]
    ) -> "FakeRequest":
        assert not self.closed, "used after it was closed"
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        request = FakeRequest(self, arrived, done)
        if self._executor is None:
            request.answer(work)
        else:
            self._executor.submit(request.answer, work)
        return request

    def _get(self, source: Location, etag: str | None, room: int) -> tuple[bytes, Downloaded] | None:
        effect = self._store.begin("GET", source)
        if effect is Effect.STALLED:
            return None
        _lose_answer(effect, source)
        found = self._store.matching(source, etag)
        body = _flipped(found.body) if effect is Effect.WRONG_BYTES else found.body
        if effect is Effect.TRUNCATED:
            body = body[:-1]
        stated = "0" * 32 if effect is Effect.WRONG_ETAG else found.etag
        return body[:room], Downloaded(len(body), stated, found.checksum, found.etag_is_md5)

    def _copy(
        self, source: Location, etag: str, target: Location, headers: Mapping[str, str]
    ) -> Uploaded | None:
        effect = self._store.begin("COPY", target)
        if effect is Effect.STALLED:
            return None
        found = self._store.matching(source, etag)
        body = _flipped(found.body) if effect is Effect.WRONG_BYTES else found.body
        stored = self._store.keep("COPY", target, body, headers=headers)
        _lose_answer(effect, target)
        stated = stored.checksum if self._store.copies_answer_crc else None
        return Uploaded(stored.etag, stated.value if stated else None)

    def _put(
        self, target: Location, body: bytes, sent_crc: int, headers: Mapping[str, str]
    ) -> Uploaded | None:
        effect = self._store.begin("PUT", target)
        if effect is Effect.STALLED:
            return None
        arrived = _flipped(body) if effect is Effect.WRONG_BYTES else body
        if self._store.refuses(arrived, sent_crc):
            raise TransientError(f"PUT {target}: S3 answered 400 BadDigest")
        stored = self._store.keep("PUT", target, arrived, sent_crc, headers=headers)
        _lose_answer(effect, target)
        stated = stored.checksum.value if stored.checksum else None
        if effect is Effect.WRONG_CRC and stated is not None:
            stated ^= 1
        return Uploaded(stored.etag, stated)


class PassingTransfer(FakeTransfer):
    """Reads raw objects from one store, and everything else from and to another."""

    def __init__(self, source: FakeStore, target: FakeStore, connections: int) -> None:
        super().__init__(target, connections)
        self._from = FakeTransfer(source, connections)
        self._from.answers = self.answers

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> "FakeRequest":
        if source.is_raw:
            return self._from.get(source, etag, into, done)
        return super().get(source, etag, into, done)

    def get_range(
        self,
        source: Location,
        etag: str,
        first: int,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> "FakeRequest":
        return self._from.get_range(source, etag, first, into, done)


def join_stores(source: FakeStore, target: FakeStore) -> TwoStores:
    """One store of two: raw objects in the first, parts and records in the second."""

    def opened(*_: str) -> PassingTransfer:
        return PassingTransfer(source, target, 4)

    return TwoStores(source, target, opened, 8)


class FakeRequest:
    """A request in flight; its callback is called once, when nothing accesses its buffer any more."""

    def __init__(
        self, transfer: FakeTransfer, arrived: Callable[[Any], object], done: Callable[[Any], None]
    ) -> None:
        self._transfer = transfer
        self._arrived = arrived
        self._done = done
        self._ended = False

    def answer(self, work: Callable[[], Any]) -> None:
        """Carry it out, and queue the callback; a stalled request has no result and no callback."""
        try:
            result = work()
        except Exception as error:
            result = error
        if result is not None:
            self._transfer.answers.put(lambda: self._end(result))

    def cancel(self) -> None:
        self._end(TransientError("the request was cancelled"))

    def _end(self, result: Any) -> None:
        if not self._ended:
            self._ended = True
            self._transfer.in_flight -= 1
            self._done(result if isinstance(result, Exception) else self._arrived(result))


def _flipped(body: bytes) -> bytes:
    return bytes([body[0] ^ 1]) + body[1:] if body else b"?"


def _lose_answer(effect: Effect | None, target: Location) -> None:
    if effect is Effect.LOST_ANSWER:
        raise TransientError(f"{target}: the connection broke before the answer came")
