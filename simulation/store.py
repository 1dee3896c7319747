"""An S3 server in memory with the quirks of real ones, and the client through which one task talks to it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from include.log_rollup import crc
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    RollupError,
    ThrottledError,
    TooLargeError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import (
    READ_LIMIT_BYTES,
    Checksum,
    Downloaded,
    ListPage,
    Location,
    ObjectHead,
    ObjectInfo,
    StoredObject,
    Uploaded,
)

if TYPE_CHECKING:
    from simulation.actors import Scheduler, Strand, Task

T = TypeVar("T")

# What is no actor of the pipeline.
PRODUCER = "producer"
FOREIGN = "foreign"
DAMAGE = "damage"
OLD_VERSION = "old version"


class Order(StrEnum):
    """In which order a server lists keys."""

    BYTES = "bytes"
    """As S3: by their UTF-8 bytes."""
    FOLDERS = "folders"
    """The objects of a folder before those of its subfolders."""
    REVERSED = "reversed"


class StartAfter(StrEnum):
    """What a server makes of ``start-after``."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    FOLDER = "folder"
    """It begins with the folder in which the key lies."""
    INCLUSIVE = "inclusive"


class ListingFault(StrEnum):
    """How a listing contradicts itself beyond repair, or looks as if it did."""

    NONE = "none"
    TWICE = "twice"
    """Each key in a folder is listed twice, one behind the other."""
    TWICE_LATER = "twice later"
    """Keys in folders are listed again behind all others."""
    PAGES_OVERLAP = "pages overlap"
    """Each page begins with the last key of the page before."""
    TWO_ETAGS = "two ETags"
    """A key is listed twice, with two ETags."""
    NO_TOKEN = "no token"
    """A truncated page has no continuation token."""
    SAME_TOKEN = "same token"
    """The token of the second page leads to the second page."""
    OUTSIDE = "outside"
    """The prefix is not honoured: a key of another prefix is listed."""


# A listing with one of these cannot be used: an error that names the fault is the right answer.
UNUSABLE = (ListingFault.TWO_ETAGS, ListingFault.NO_TOKEN, ListingFault.SAME_TOKEN, ListingFault.OUTSIDE)


class ETags(StrEnum):
    """What a server's ETags are."""

    MD5 = "md5"
    OPAQUE = "opaque"
    """They look like an MD5, and are none; another one for each write."""
    MARKED = "marked"
    """They don't look like an MD5."""


class Checksums(StrEnum):
    """What a server does with the CRC64-NVME that comes with an object."""

    CHECKED = "checked"
    ECHOED = "echoed"
    """It is kept and stated, but never compared with the bytes."""
    NONE = "none"
    """It is neither compared nor kept."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """What is different about a server. The defaults are S3.

    :param page_size: the most rows of a page
    :param empty_pages: a page without rows comes before each page behind the first
    :param listed_etags: whether listings have ETags
    :param copies: whether it knows CopyObject
    :param if_match_get: whether it honours If-Match of a GET
    :param if_match_delete: whether it honours If-Match of a DELETE
    :param uploads_by_prefix: whether the listing of uploads honours the prefix
    :param clock_seconds: how far its clock is ahead
    """

    order: Order = Order.BYTES
    start_after: StartAfter = StartAfter.HONOURED
    listing: ListingFault = ListingFault.NONE
    page_size: int = 1000
    empty_pages: bool = False
    listed_etags: bool = True
    etags: ETags = ETags.MD5
    checksums: Checksums = Checksums.CHECKED
    copies: bool = True
    if_match_get: bool = True
    if_match_delete: bool = True
    uploads_by_prefix: bool = True
    clock_seconds: float = 0.0

    def names(self) -> list[str]:
        """What differs from S3, for counting and for people."""
        plain = Quirks()
        found = []
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value != getattr(plain, name):
                exact = isinstance(value, StrEnum | bool)
                found.append(f"{name}={value}" if exact else name)
        return found


@dataclass(slots=True, eq=False)
class Stored:
    """An object as the server holds it.

    :param author: who wrote it: the name of a task, or one of the constants of this module
    :param task: the task that wrote it, if one did
    :param step: when, in steps of the scheduler
    """

    key: str
    body: bytes
    etag: str
    etag_is_md5: bool
    checksum: Checksum | None
    modified: float
    author: str
    task: "Task | None"
    step: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Upload:
    """A multipart upload under way."""

    key: str
    author: str
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)


class Server:
    """One bucket. Its methods take effect at once; :class:`Client` decides when, and what goes wrong.

    :param changed: called after each change with the key, the object before and the object now
    """

    def __init__(self, scheduler: "Scheduler", bucket: str, quirks: Quirks) -> None:
        self.scheduler = scheduler
        self.bucket = bucket
        self.quirks = quirks
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.changed: Callable[[str, Stored | None, Stored | None, Task | None], None] = _nothing
        self.aborted: Callable[[Upload, Task | None], None] = _nothing
        self._tokens: list[tuple[int, str]] = []
        self._sorted: list[tuple[tuple[Any, ...], str]] | None = None
        self._serial = 0

    # -- for the world ---------------------------------------------------------------------------------

    def store(
        self,
        key: str,
        body: bytes,
        author: str,
        task: "Task | None" = None,
        *,
        checksum: Checksum | None = None,
        etag: str | None = None,
        modified: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Stored:
        """Keep an object."""
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
        now = Stored(
            key, body, etag, is_md5, checksum, self.time() if modified is None else modified,
            author, task, self.scheduler.step, headers or {},
        )  # fmt: skip
        self.objects[key] = now
        if before is None:
            self._sorted = None
        self.changed(key, before, now, task)
        return now

    def remove(self, key: str, task: "Task | None" = None) -> None:
        """Remove an object, if it is there."""
        before = self.objects.pop(key, None)
        if before is not None:
            self._sorted = None
            self.changed(key, before, None, task)

    def time(self) -> float:
        """The server's clock, in epoch seconds."""
        return self.scheduler.wall_clock(self.quirks.clock_seconds)

    # -- requests --------------------------------------------------------------------------------------

    def list_page(self, prefix: str, start_after: str, token: str | None, limit: int) -> ListPage:
        """ListObjectsV2."""
        quirks = self.quirks
        entries = [entry for entry in self._entries() if entry[1].startswith(prefix)]
        if quirks.listing is ListingFault.TWICE:
            entries = [twin for entry in entries for twin in self._twins(entry, prefix)]
        elif quirks.listing is ListingFault.TWICE_LATER:
            entries += [((9, *order), key) for order, key in entries if "/" in key[len(prefix) :]]
        elif quirks.listing is ListingFault.TWO_ETAGS and entries:
            entries.insert(1, entries[0])
        elif quirks.listing is ListingFault.OUTSIDE:
            entries.append(((8,), "elsewhere/object.log"))
        begin = 0
        if token is not None:
            begin = self._after(entries, int(token[1:]))
        elif start_after:
            entries = self._behind(entries, start_after)
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
        newest = max(
            (self.objects[row.key].modified for row in infos if row.key in self.objects), default=0.0
        )
        now = datetime.fromtimestamp(0, UTC) + timedelta(seconds=self.time())
        return ListPage(infos, newest, now, truncated, following)

    def _entries(self) -> list[tuple[tuple[Any, ...], str]]:
        """Every key with its place in the server's order, in that order."""
        if self._sorted is None:
            place = _PLACES[self.quirks.order]
            self._sorted = sorted((place(key), key) for key in self.objects)
            if self.quirks.order is Order.REVERSED:
                self._sorted.reverse()
        return list(self._sorted)

    def _twins(self, entry: tuple[tuple[Any, ...], str], prefix: str) -> list[tuple[tuple[Any, ...], str]]:
        return [entry, entry] if "/" in entry[1][len(prefix) :] else [entry]

    def _behind(
        self, entries: list[tuple[tuple[Any, ...], str]], start_after: str
    ) -> list[tuple[tuple[Any, ...], str]]:
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
        entries: list[tuple[tuple[Any, ...], str]],
        begin: int,
        rows: list[tuple[tuple[Any, ...], str]],
        token: str | None,
        empty: bool,
    ) -> str | None:
        if self.quirks.listing is ListingFault.NO_TOKEN:
            return None
        if self.quirks.listing is ListingFault.SAME_TOKEN and token is not None:
            return token
        last = rows[-1][1] if rows else self._tokens[int((token or "")[1:])][1]
        # How often the key was listed up to there, because some servers list it twice.
        times = sum(key == last for _, key in entries[: begin + len(rows)])
        self._tokens.append((times, last))
        return f"{'e' if empty else 't'}{len(self._tokens) - 1}"

    def _after(self, entries: list[tuple[tuple[Any, ...], str]], number: int) -> int:
        """Where a page begins whose page before ended with a key."""
        times, last = self._tokens[number]
        for index, (_, key) in enumerate(entries):
            if key == last:
                times -= 1
                if times == 0:
                    return index + 1
        # It was removed meanwhile.
        place = _PLACES[self.quirks.order]
        backwards = self.quirks.order is Order.REVERSED
        for index, (_, key) in enumerate(entries):
            if (place(key) < place(last)) if backwards else (place(key) > place(last)):
                return index
        return len(entries)

    def _info(self, key: str) -> ObjectInfo:
        found = self.objects.get(key)
        if found is None:
            return ObjectInfo(key, 1, "0" * 32)
        return ObjectInfo(key, len(found.body), found.etag if self.quirks.listed_etags else "")

    def matching(self, source: Location, etag: str | None) -> Stored:
        """An object for a GET or a copy.

        :raises NotFoundError: if there is none
        :raises InputChangedError: if it has another ETag, and the server honours If-Match
        """
        found = self.objects.get(source.key)
        if found is None:
            raise NotFoundError(f"GET {source}: S3 answered 404 NoSuchKey")
        if etag not in (None, found.etag) and self.quirks.if_match_get:
            raise InputChangedError(f"GET {source}: S3 answered 412 PreconditionFailed")
        return found

    def put(
        self,
        key: str,
        body: bytes,
        task: "Task",
        crc64nvme: int | None = None,
        headers: Mapping[str, str] | None = None,
        stored_body: bytes | None = None,
    ) -> Stored:
        """PutObject.

        :param stored_body: the bytes that arrive, if they are not those that were sent
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

    def copy(
        self, source: Location, etag: str | None, key: str, task: "Task", headers: Mapping[str, str]
    ) -> Stored:
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


def _nothing(*_: Any) -> None:
    """No one watches."""


def _folders_first(key: str) -> tuple[Any, ...]:
    """The place of a key where each folder's own objects come before its subfolders."""
    *folders, name = key.split("/")
    return (*(part for folder in folders for part in (1, folder)), 0, name)


_PLACES: Mapping[Order, Callable[[str], tuple[Any, ...]]] = {
    Order.BYTES: lambda key: (key,),
    Order.FOLDERS: _folders_first,
    Order.REVERSED: lambda key: (key,),
}


class Fate(StrEnum):
    """What becomes of a request."""

    DONE = "done"
    REFUSED = "refused"
    """The client gets an error, and nothing is done."""
    THROTTLED = "throttled"
    LOST = "done, but its answer is lost"
    LATE = "not answered; it will be done later"
    TWICE = "done, and will be done again later"
    STALLED = "never answered"
    WRONG_BYTES = "a bit of its body is flipped"
    CUT_SHORT = "the last byte of its body does not come"


class Client:
    """One task's client: implements :class:`include.log_rollup.storage.protocol.ObjectStore`.

    Each request waits for the scheduler, which lets other tasks go first.
    """

    port = 1

    def __init__(
        self, server: Server, scheduler: "Scheduler", task: "Task", connections: int, control: int
    ) -> None:
        self.max_connections = connections
        self.control_connections = control
        self._server = server
        self._scheduler = scheduler
        self._task = task
        self._requests: Counter[str] = Counter()
        self.requests: Mapping[str, int] = self._requests

    def open_transfer(self, read_bucket: str, write_bucket: str) -> "SimulatedTransfer":
        """See the protocol."""
        return SimulatedTransfer(self._server, self._scheduler, self._task, self.max_connections - 1)

    def list_page(
        self, prefix: Location, start_after: str = "", token: str | None = None, limit: int = 1000
    ) -> ListPage:
        """See the protocol."""
        return self._read(
            "LIST",
            prefix.key,
            lambda: self._server.list_page(prefix.key, start_after, token, limit),
            lambda page: f"{len(page.objects)} keys" + (", more follow" if page.truncated else ""),
        )

    def head(self, target: Location) -> ObjectHead | None:
        """See the protocol."""

        def effect() -> ObjectHead | None:
            found = self._server.objects.get(target.key)
            if found is None:
                return None
            stated = found.checksum
            value = stated.value if stated and stated.algorithm == crc.CRC64NVME else None
            return ObjectHead(len(found.body), found.etag, value, found.etag_is_md5)

        return self._read("HEAD", target.key, effect, _presence)

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        """See the protocol."""

        def effect() -> StoredObject | None:
            found = self._server.objects.get(source.key)
            if found is None:
                return None
            if len(found.body) > limit:
                raise TooLargeError(f"GET {source}: {len(found.body)} bytes, at most {limit} are read")
            return StoredObject(found.body, found.etag)

        return self._read("GET", source.key, effect, _presence)

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """See the protocol."""

        def effect() -> bytes:
            found = self._server.matching(source, etag)
            if found.etag != etag:
                # The client compares the ETag of the answer where the server does not.
                raise InputChangedError(f"GET {source}: its ETag is {found.etag} now")
            return found.body[offset : offset + length]

        return self._read("GET", source.key, effect, lambda body: f"{len(body)} bytes")

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        """See the protocol."""
        # As for parts below: nothing fences a PUT of a staged record that is done once more after it was answered.
        return self._write(
            "PUT",
            target.key,
            lambda: self._server.put(target.key, body, self._task, crc.crc64(body)).etag,
            once="/staged-" in target.key,
        )

    def publish(self, source: Location, target: Location) -> None:
        """See the protocol."""
        self._write(
            "COPY",
            target.key,
            lambda: self._server.copy(source, None, target.key, self._task, {}),
            f"from {source.key.rpartition('_rollup/')[2]}",
        )

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """See the protocol."""
        if self._server.quirks.checksums is Checksums.CHECKED:
            self._read("PUT", scratch.key, lambda: None, lambda _: "wrong CRC refused")
            return True
        self._write("PUT", scratch.key, lambda: self._server.put(scratch.key, b"\n", self._task))
        self.delete(scratch.bucket, [scratch.key])
        return False

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """See the protocol; one request, but not one step: others come in between."""
        problem: Exception | None = None
        for key in keys:
            # No client can know of a DELETE that is done once more after it was answered.
            once = key.rpartition("/")[2].startswith("part-")
            try:
                self._write("DELETE", key, partial(self._server.remove, key, self._task), once=once)
            except TransientError as error:
                problem = error
        if problem is not None:
            raise problem

    def delete_if(self, target: Location, etag: str) -> bool:
        """See the protocol."""

        def effect() -> bool:
            found = self._server.objects.get(target.key)
            if found is not None and found.etag != etag and self._server.quirks.if_match_delete:
                return False
            self._server.remove(target.key, self._task)
            return True

        return self._write("DELETE", target.key, effect, f"if its ETag is {etag[:6]}")

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        """See the protocol."""

        def effect() -> list[tuple[str, str]]:
            everything = not self._server.quirks.uploads_by_prefix
            return [
                (upload.key, number)
                for number, upload in self._server.uploads.items()
                if everything or upload.key.startswith(prefix.key)
            ]

        return self._read("LIST UPLOADS", prefix.key, effect, lambda found: f"{len(found)} uploads")

    def begin_upload(self, target: Location, headers: Mapping[str, str]) -> str:
        """See the protocol."""

        def effect() -> str:
            number = f"upload-{len(self._server.uploads) + 1}-{self._scheduler.step}"
            self._server.uploads[number] = Upload(target.key, self._task.name, headers)
            return number

        return self._write("BEGIN UPLOAD", target.key, effect)

    def finish_upload(self, target: Location, upload_id: str, etags: Sequence[str]) -> None:
        """See the protocol."""

        def effect() -> None:
            upload = self._server.uploads.pop(upload_id, None)
            if upload is None:
                raise NotFoundError(f"{target}: S3 answered 404 NoSuchUpload")
            if list(etags) != [f"part-{number}" for number in range(1, len(upload.parts) + 1)]:
                raise AssertionError(
                    f"{target} is completed from {etags}, not from its {len(upload.parts)} parts"
                )
            body = b"".join(upload.parts[number] for number in sorted(upload.parts))
            etag = f"{crc.crc64(body):032x}-{len(upload.parts)}"
            self._server.store(
                target.key, body, self._task.name, self._task, etag=etag, headers=upload.headers
            )

        self._write("FINISH UPLOAD", target.key, effect)

    def abort_upload(self, target: Location, upload_id: str) -> None:
        """See the protocol."""

        def effect() -> None:
            upload = self._server.uploads.pop(upload_id, None)
            if upload is not None:
                self._server.aborted(upload, self._task)

        self._write("ABORT UPLOAD", target.key, effect)

    # -- how a request goes ----------------------------------------------------------------------------

    def _read(self, kind: str, key: str, effect: Callable[[], T], describe: Callable[[T], str]) -> T:
        while True:
            self._scheduler.pause()
            self._requests[kind] += 1
            fate = self._scheduler.fate(_READ_FATES, writes=False)
            if fate is Fate.DONE:
                try:
                    result = effect()
                except RollupError as error:
                    self._note(kind, key, str(error))
                    raise
                self._note(kind, key, describe(result))
                return result
            self._fail(kind, key, fate)

    def _write(
        self, kind: str, key: str, effect: Callable[[], T], detail: str = "", *, once: bool = False
    ) -> T:
        while True:
            self._scheduler.pause(writes=True, decisive=once or key.endswith(_DECISIVE))
            self._requests[kind] += 1
            fate = self._scheduler.fate(_ONCE_FATES if once else _WRITE_FATES, writes=True)
            what = f"{detail}: {fate}" if detail else str(fate)
            self._note(kind, key, what)
            if fate in (Fate.LATE, Fate.TWICE):
                self._scheduler.do_later(self._task, f"{kind} {key}", effect)
            if fate in (Fate.DONE, Fate.TWICE, Fate.LOST):
                try:
                    result = effect()
                except RollupError as error:
                    self._note(kind, key, str(error))
                    if fate is not Fate.LOST:
                        raise
                else:
                    if fate is not Fate.LOST:
                        if result is False:
                            self._note(kind, key, "refused: another ETag")
                        return result
            self._fail(kind, key, fate, tries_again=fate is not Fate.LATE or not once)

    def _fail(self, kind: str, key: str, fate: Fate, *, tries_again: bool = True) -> None:
        """Raise what the client is told, unless it tries again by itself, as boto3 does."""
        if fate in (Fate.REFUSED, Fate.THROTTLED):
            self._note(kind, key, str(fate))
        if tries_again and self._scheduler.chance(0.5):
            return
        if fate is Fate.THROTTLED:
            raise ThrottledError(f"{kind} {key}: S3 answered 503 SlowDown")
        raise TransientError(f"{kind} {key}: the connection broke")

    def _note(self, kind: str, key: str, effect: str) -> None:
        self._scheduler.story.add(self._task.name, kind, key, effect)


def _presence(found: object) -> str:
    return "not there" if found is None else "found"


_READ_FATES = (Fate.REFUSED, Fate.THROTTLED)
_WRITE_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE, Fate.TWICE)
# Claim, manifest and completion marker.
_DECISIVE = ("/claim.json", "/_manifest.jsonl.gz", "/_SUCCESS")
_ONCE_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE)
_GET_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.STALLED, Fate.CUT_SHORT, Fate.WRONG_BYTES)
_PUT_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE, Fate.TWICE, Fate.STALLED, Fate.WRONG_BYTES)
_COPY_FATES = (Fate.REFUSED, Fate.THROTTLED, Fate.LOST, Fate.LATE, Fate.TWICE, Fate.STALLED)


class Flight:
    """A request of a transfer under way; the scheduler decides when it takes effect.

    :param effect: takes effect on the server, and returns the result and the function that hands over the body
    """

    def __init__(
        self,
        transfer: "SimulatedTransfer",
        kind: str,
        key: str,
        fates: tuple[Fate, ...],
        effect: Callable[[Fate], Any],
        arrived: Callable[[Any], object],
        done: Callable[[Any], None],
    ) -> None:
        self.task = transfer.task
        self.kind = kind
        self.key = key
        self.writes = kind != "GET"
        self._transfer = transfer
        self._fates = fates
        self._effect = effect
        self._arrived = arrived
        self._done = done
        self._executed = self._ended = False

    def go(self) -> None:
        """Take effect on the server, and have the answer wait for the client."""
        scheduler = self._transfer.scheduler
        self._executed = True
        fate = scheduler.fate(self._fates, writes=self.writes)
        scheduler.story.add(self.task.name, self.kind, self.key, str(fate))
        if fate in (Fate.LATE, Fate.TWICE):
            scheduler.do_later(self.task, f"{self.kind} {self.key}", lambda: self._effect(Fate.DONE))
        if fate is Fate.STALLED:
            if self.writes and scheduler.chance(0.5):
                scheduler.do_later(self.task, f"{self.kind} {self.key}", lambda: self._effect(Fate.DONE))
            return
        result: Any
        if fate is Fate.THROTTLED:
            result = ThrottledError(f"{self.kind} {self.key}: S3 answered 503 SlowDown")
        elif fate in (Fate.REFUSED, Fate.LATE):
            result = TransientError(f"{self.kind} {self.key}: the connection broke")
        else:
            try:
                result = self._effect(fate)
            except RollupError as error:
                scheduler.story.add(self.task.name, self.kind, self.key, str(error))
                result = error
            if fate is Fate.LOST:
                result = TransientError(f"{self.kind} {self.key}: the connection broke before the answer")
        self._transfer.answer(self, result)

    def abandon(self) -> None:
        """Its client is gone: a write may still take effect, much later."""
        if not self._executed:
            self._executed = True
            scheduler = self._transfer.scheduler
            scheduler.forget(self)
            if self.writes and scheduler.chance(0.5):
                scheduler.do_later(self.task, f"{self.kind} {self.key}", lambda: self._effect(Fate.DONE))

    def cancel(self) -> None:
        """See :class:`include.log_rollup.storage.protocol.Cancellable`."""
        self.abandon()
        self.end(TransientError("the request was cancelled"))

    def end(self, result: Any) -> None:
        """Call back, once."""
        if not self._ended:
            self._ended = True
            self._transfer.in_flight.pop(self, None)
            self._done(result if isinstance(result, Exception) else self._arrived(result))


class SimulatedTransfer:
    """Implements :class:`include.log_rollup.storage.protocol.Transfer`."""

    def __init__(self, server: Server, scheduler: "Scheduler", task: "Task", connections: int) -> None:
        self.connections = connections
        self.scheduler = scheduler
        self.task = task
        self.in_flight: dict[Flight, None] = {}
        self._server = server
        self._answers: list[tuple[Flight, Any]] = []
        self._waiting: Strand | None = None
        self._woken = False
        task.transfers.append(self)

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> Flight:
        """See the protocol."""

        def effect(fate: Fate) -> tuple[bytes, Downloaded]:
            found = self._server.matching(source, etag)
            body = found.body
            if len(body) > len(into):
                raise TransientError(f"GET {source}: {len(body)} of {len(into)} bytes came")
            proves = found.checksum is not None or (
                found.etag_is_md5 and self._server.quirks.etags is ETags.MD5
            )
            if fate is Fate.WRONG_BYTES and proves:
                body = flipped(body, self.scheduler.number(8 * len(body)) if body else 0)
            elif fate is Fate.CUT_SHORT:
                body = body[:-1]
            return body, Downloaded(len(body), found.etag, found.checksum, found.etag_is_md5)

        def arrived(answer: tuple[bytes, Downloaded]) -> Downloaded:
            body, result = answer
            into[: len(body)] = body
            return result

        return self._start("GET", source.key, _GET_FATES, effect, arrived, done)

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> Flight:
        """See the protocol."""
        sent = bytes(body)

        def effect(fate: Fate) -> Uploaded:
            arrived = flipped(sent, self.scheduler.number(8 * len(sent)) if sent else 0)
            return self._uploaded(
                self._server.put(
                    target.key,
                    sent,
                    self.task,
                    crc64nvme,
                    headers,
                    arrived if fate is Fate.WRONG_BYTES else None,
                )
            )

        return self._start("PUT", target.key, _PUT_FATES, effect, _as_it_is, done)

    def copy(
        self,
        source: Location,
        etag: str,
        target: Location,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> Flight:
        """See the protocol."""

        def effect(_: Fate) -> Uploaded:
            return self._uploaded(self._server.copy(source, etag, target.key, self.task, headers))

        return self._start("COPY", target.key, _COPY_FATES, effect, _as_it_is, done)

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
    ) -> Flight:
        """See the protocol."""

        def effect(_: Fate) -> Uploaded:
            if not self._server.quirks.copies:
                raise UnsupportedOperationError(f"COPY {target}: S3 answered 501 NotImplemented")
            found = self._server.objects.get(source.key)
            if found is None or found.etag != etag:
                raise InputChangedError(f"COPY {source}: S3 answered 412 PreconditionFailed")
            upload = self._server.uploads.get(upload_id)
            if upload is None:
                raise NotFoundError(f"{target}: S3 answered 404 NoSuchUpload")
            upload.parts[number] = found.body[first : last + 1]
            return Uploaded(f"part-{number}", None)

        return self._start("COPY", target.key, _COPY_FATES, effect, _as_it_is, done)

    def wait(self, seconds: float) -> None:
        """See the protocol."""
        if not self._answers and not self._woken:
            self._waiting = self.scheduler.current()
            try:
                self.scheduler.sleep(seconds)
            finally:
                self._waiting = None
        self._woken = False
        answers, self._answers = self._answers, []
        for flight, result in answers:
            flight.end(result)

    def wake(self) -> None:
        """See the protocol."""
        self._woken = True
        self._resume()

    def close(self) -> None:
        """See the protocol."""
        if self.in_flight and not self.task.dead:
            raise AssertionError(f"closed with {len(self.in_flight)} requests under way")

    def answer(self, flight: Flight, result: Any) -> None:
        """An answer has come; the client gets it in :meth:`wait`."""
        self._answers.append((flight, result))
        self._resume()

    def _resume(self) -> None:
        if self._waiting is not None:
            self.scheduler.enable(self._waiting)
            self._waiting = None

    def _uploaded(self, stored: Stored) -> Uploaded:
        return Uploaded(stored.etag, stored.checksum.value if stored.checksum else None)

    def _start(
        self,
        kind: str,
        key: str,
        fates: tuple[Fate, ...],
        effect: Callable[[Fate], Any],
        arrived: Callable[[Any], object],
        done: Callable[[Any], None],
    ) -> Flight:
        flight = Flight(self, kind, key, fates, effect, arrived, done)
        self.in_flight[flight] = None
        self.scheduler.request(flight, writes=flight.writes)
        return flight


def _as_it_is(result: object) -> object:
    return result


def flipped(body: bytes, bit: int) -> bytes:
    """The same bytes with one bit flipped; another byte where there are none."""
    if not body:
        return b"?"
    changed = bytearray(body)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
