"""An S3 bucket in memory, with the quirks of real servers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from include.log_rollup import crc
from include.log_rollup.errors import (
    ArchivedError,
    InputChangedError,
    NotFoundError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import (
    Checksum,
    FolderPage,
    ListPage,
    Location,
    ObjectInfo,
)
from include.log_rollup.storage_options import ARCHIVE_CLASSES
from simulation.quirks import Checksums, ETags, ListingFault, Order, Quirks, StartAfter
from simulation.scheduler import (
    Scheduler,
    Task,
)

EPOCH = datetime.fromtimestamp(0, UTC)
# Authors of objects that no simulated task wrote.
PRODUCER = "producer"
FOREIGN = "foreign"
DAMAGE = "damage"
OLD_VERSION = "old version"
# Authors whose objects the pipeline does not answer for.
INTERFERENCE = (DAMAGE, FOREIGN)

# The place of a key in the server's order, and the key.
ListingEntry = tuple[tuple[Any, ...], str]


@dataclass(slots=True, eq=False)
class ServerObject:
    """An object in the bucket.

    :param modified: epoch seconds by the server's clock
    :param author: the name of the task that wrote it, or an author of this module
    :param task: the task that wrote it, None if no task did
    :param step: the scheduler's step at which it was written
    """

    key: str
    body: bytes
    etag: str
    etag_is_md5: bool
    checksum: Checksum | None
    modified: float
    author: str
    task: Task | None
    step: int
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_archived(self) -> bool:
        """Whether it cannot be read."""
        return self.headers.get("x-amz-storage-class") in ARCHIVE_CLASSES


@dataclass(slots=True)
class Upload:
    """A multipart upload that is not finished."""

    key: str
    author: str
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)


class Server:
    """One bucket. Its methods take effect at once; clients and transfers decide when, and what goes wrong.

    ``on_change`` is called after each change with the key, the object before, the object now and the task.
    ``on_abort`` is called after each upload that a task aborts.
    """

    def __init__(self, scheduler: Scheduler, bucket: str, quirks: Quirks) -> None:
        self.scheduler = scheduler
        self.bucket = bucket
        self.quirks = quirks
        self.objects: dict[str, ServerObject] = {}
        self.uploads: dict[str, Upload] = {}
        # Raw objects without a checksum that a task received with wrong bytes: only validation notices that.
        self.misread: set[tuple[str, str]] = set()
        # Whether a DELETE removed another claim than it named, because its If-Match was ignored.
        self.claim_lost = False
        self.on_change: Callable[[str, ServerObject | None, ServerObject | None, Task | None], None] = _ignore
        self.on_abort: Callable[[Upload, Task | None], None] = _ignore
        self._tokens: list[tuple[int, str]] = []
        self._sorted: list[ListingEntry] | None = None
        self._serial = 0

    # -- objects ---------------------------------------------------------------------------------------

    def store(
        self,
        key: str,
        body: bytes,
        author: str,
        task: Task | None = None,
        *,
        checksum: Checksum | None = None,
        etag: str | None = None,
        modified: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ServerObject:
        """Store an object, and compute its ETag unless one is given."""
        self._serial += 1
        is_md5 = self.quirks.etags is not ETags.MARKED
        if etag is None:
            etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
            if self.quirks.etags is not ETags.MD5:
                etag = hashlib.md5(f"{self._serial} {etag}".encode(), usedforsecurity=False).hexdigest()
        else:
            is_md5 = is_md5 and "-" not in etag
        if not is_md5 and "-" not in etag:
            etag += "-1"
        before = self.objects.get(key)
        now = ServerObject(
            key, body, etag, is_md5, checksum, self.epoch_seconds() if modified is None else modified,
            author, task, self.scheduler.step, headers or {},
        )  # fmt: skip
        self.objects[key] = now
        if before is None:
            self._sorted = None
        self.on_change(key, before, now, task)
        return now

    def remove(self, key: str, task: Task | None = None) -> None:
        """Remove an object, if it is there."""
        before = self.objects.pop(key, None)
        if before is not None:
            self._sorted = None
            self.on_change(key, before, None, task)

    def epoch_seconds(self) -> float:
        """Return the time of the server's clock."""
        return self.scheduler.wall_clock(self.quirks.clock_seconds)

    # -- requests --------------------------------------------------------------------------------------

    def list_folders(self, prefix: str, token: str | None, limit: int) -> FolderPage:
        """ListObjectsV2 with the delimiter ``/``."""
        quirks = self.quirks
        if not quirks.delimiter:
            page = self.list_page(prefix, "", token, limit)
            return FolderPage((), [row.key for row in page.objects], page.truncated, page.token)
        steps = [_step(key, len(prefix)) for _, key in self._entries() if key.startswith(prefix)]
        rows = list(dict.fromkeys(steps))
        if quirks.listing is ListingFault.OUTSIDE:
            rows.append("elsewhere/")
        begin = 0
        if token is not None:
            last = self._tokens[int(token[1:])][1]
            begin = rows.index(last) + 1 if last in rows else 0
        shown = rows[begin : begin + min(limit, quirks.page_size)]
        truncated = begin + len(shown) < len(rows)
        following = None
        if truncated and quirks.listing is ListingFault.SAME_TOKEN and token is not None:
            following = token
        elif truncated and quirks.listing is not ListingFault.NO_TOKEN:
            self._tokens.append((1, shown[-1]))
            following = f"t{len(self._tokens) - 1}"
        return FolderPage(
            [row for row in shown if row.endswith("/") and row != prefix],
            [row for row in shown if not row.endswith("/") or row == prefix],
            truncated,
            following,
        )

    def list_page(self, prefix: str, start_after: str, token: str | None, limit: int) -> ListPage:
        """ListObjectsV2."""
        quirks = self.quirks
        entries = [entry for entry in self._entries() if entry[1].startswith(prefix)]
        if quirks.listing is ListingFault.TWICE:
            entries = [copy for entry in entries for copy in self._repeat_in_folders(entry, prefix)]
        elif quirks.listing is ListingFault.TWICE_LATER:
            entries += [((9, *order), key) for order, key in entries if "/" in key[len(prefix) :]]
        elif quirks.listing is ListingFault.TWO_ETAGS and entries:
            entries.insert(1, entries[0])
        elif quirks.listing is ListingFault.OUTSIDE:
            entries.append(((8,), "elsewhere/object.log"))
        begin = 0
        if token is not None:
            begin = self._position_after(entries, int(token[1:]))
        elif start_after:
            entries = self._entries_after(entries, start_after)
        size = min(limit, quirks.page_size)
        empty = quirks.empty_pages and token is not None and not token.startswith("e")
        rows = [] if empty else entries[begin : begin + size]
        truncated = begin + len(rows) < len(entries)
        following = None
        if truncated:
            following = self._token(entries, begin, rows, token, empty)
        if quirks.listing is ListingFault.PAGES_OVERLAP and rows and begin:
            rows = [entries[begin - 1], *rows]
        infos = [self._info(key) for _, key in rows]
        if quirks.listing is ListingFault.TWO_ETAGS and len(infos) > 1 and infos[0] == infos[1]:
            infos[1] = infos[1]._replace(etag="0" * 32)
        listed = (self.objects.get(key) for _, key in rows)
        newest = max((stored.modified for stored in listed if stored is not None), default=0.0)
        now = EPOCH + timedelta(seconds=self.epoch_seconds())
        return ListPage(infos, newest, now, truncated, following)

    def _entries(self) -> Sequence[ListingEntry]:
        """Return all keys, in the server's order."""
        if self._sorted is None:
            sort_key = _SORT_KEYS[self.quirks.order]
            self._sorted = sorted((sort_key(key), key) for key in self.objects)
            if self.quirks.order is Order.REVERSED:
                self._sorted.reverse()
        return self._sorted

    def _repeat_in_folders(self, entry: ListingEntry, prefix: str) -> list[ListingEntry]:
        return [entry, entry] if "/" in entry[1][len(prefix) :] else [entry]

    def _entries_after(self, entries: list[ListingEntry], start_after: str) -> list[ListingEntry]:
        kind = self.quirks.start_after
        if kind is StartAfter.IGNORED:
            return entries
        if kind is StartAfter.FOLDER:
            start_after = start_after[: start_after.rfind("/") + 1]
        if kind is StartAfter.INCLUSIVE:
            return [entry for entry in entries if entry[1] >= start_after]
        return [entry for entry in entries if entry[1] > start_after]

    def _token(
        self,
        entries: list[ListingEntry],
        begin: int,
        rows: list[ListingEntry],
        token: str | None,
        empty: bool,
    ) -> str | None:
        if self.quirks.listing is ListingFault.NO_TOKEN:
            return None
        if self.quirks.listing is ListingFault.SAME_TOKEN and token is not None:
            return token
        last = rows[-1][1] if rows else self._tokens[int((token or "")[1:])][1]
        # Some servers list a key twice: count how often it was listed so far.
        times = sum(key == last for _, key in entries[: begin + len(rows)])
        self._tokens.append((times, last))
        return f"{'e' if empty else 't'}{len(self._tokens) - 1}"

    def _position_after(self, entries: list[ListingEntry], number: int) -> int:
        """Return where the page after a token begins."""
        times, last = self._tokens[number]
        for index, (_, key) in enumerate(entries):
            if key == last:
                times -= 1
                if times == 0:
                    return index + 1
        # The last key was removed in the meantime.
        sort_key = _SORT_KEYS[self.quirks.order]
        backwards = self.quirks.order is Order.REVERSED
        for index, (_, key) in enumerate(entries):
            if (sort_key(key) < sort_key(last)) if backwards else (sort_key(key) > sort_key(last)):
                return index
        return len(entries)

    def _info(self, key: str) -> ObjectInfo:
        found = self.objects.get(key)
        if found is None:
            return ObjectInfo(key, 1, "0" * 32)
        return ObjectInfo(key, len(found.body), found.etag if self.quirks.listed_etags else "")

    def get_matching(self, source: Location, etag: str | None) -> ServerObject:
        """Return the object for a GET with If-Match.

        :raises NotFoundError: if there is no object
        :raises InputChangedError: if its ETag differs, and the server honours If-Match
        :raises ArchivedError: if it is in an archive class
        """
        found = self.objects.get(source.key)
        if found is None:
            raise NotFoundError(f"GET {source}: S3 answered 404 NoSuchKey")
        if etag not in (None, found.etag) and self.quirks.if_match_get:
            raise InputChangedError(f"GET {source}: S3 answered 412 PreconditionFailed")
        if found.is_archived:
            raise ArchivedError(f"GET {source}: S3 answered 403 InvalidObjectState")
        return found

    def put(
        self,
        key: str,
        body: bytes,
        task: Task,
        crc64nvme: int | None = None,
        headers: Mapping[str, str] | None = None,
        stored_body: bytes | None = None,
    ) -> ServerObject:
        """PutObject.

        :param stored_body: the bytes that arrive, if they differ from those sent
        """
        arrived = body if stored_body is None else stored_body
        checksum = None
        if self.quirks.checksums is Checksums.CHECKED:
            value = crc.crc64(arrived)
            if crc64nvme is not None and value != crc64nvme:
                raise TransientError(f"PUT {key}: S3 answered 400 BadDigest")
            checksum = Checksum("crc64nvme", value)
        elif self.quirks.checksums is Checksums.ECHOED and crc64nvme is not None:
            checksum = Checksum("crc64nvme", crc64nvme)
        return self.store(key, arrived, task.name, task, checksum=checksum, headers=headers)

    def finish(self, upload: Upload, task: Task, crc64nvme: int | None = None) -> ServerObject:
        """CompleteMultipartUpload.

        :param crc64nvme: that the object should have; None for any
        """
        body = b"".join(upload.parts[number] for number in sorted(upload.parts))
        checksum = None
        if crc64nvme is not None and self.quirks.checksums is Checksums.CHECKED:
            checksum = Checksum("crc64nvme", crc.crc64(body))
            if checksum.value != crc64nvme:
                raise TransientError(f"{upload.key}: S3 answered 400 BadDigest")
        elif crc64nvme is not None and self.quirks.checksums is Checksums.ECHOED:
            checksum = Checksum("crc64nvme", crc64nvme)
        etag = f"{crc.crc64(body):032x}-{len(upload.parts)}"
        return self.store(
            upload.key, body, task.name, task, checksum=checksum, etag=etag, headers=upload.headers
        )

    def copy(
        self, source: Location, etag: str | None, key: str, task: Task, headers: Mapping[str, str]
    ) -> ServerObject:
        """CopyObject."""
        if not self.quirks.copies:
            raise UnsupportedOperationError(f"COPY {key}: S3 answered 501 NotImplemented")
        found = self.objects.get(source.key)
        if found is None:
            raise NotFoundError(f"COPY {source}: S3 answered 404 NoSuchKey")
        if etag not in (None, found.etag):
            raise InputChangedError(f"COPY {source}: S3 answered 412 PreconditionFailed")
        checksum = None
        if self.quirks.checksums is Checksums.CHECKED:
            checksum = Checksum("crc64nvme", crc.crc64(found.body))
        return self.store(key, found.body, task.name, task, checksum=checksum, headers=headers)


def _ignore(*_: Any) -> None:
    """Do nothing."""


def _step(key: str, start: int) -> str:
    """A key up to the first ``/`` after a prefix of this length."""
    end = key.find("/", start)
    return key if end < 0 else key[: end + 1]


def _folders_first(key: str) -> tuple[Any, ...]:
    """The sort key of a key where each folder's own objects come before its subfolders."""
    *folders, name = key.split("/")
    return (*(part for folder in folders for part in (1, folder)), 0, name)


_SORT_KEYS: Mapping[Order, Callable[[str], tuple[Any, ...]]] = {
    Order.BYTES: lambda key: (key,),
    Order.FOLDERS: _folders_first,
    Order.REVERSED: lambda key: (key,),
}
