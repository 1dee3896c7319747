"""The S3 client of a simulated task, for all requests but those of transfers."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

from include.log_rollup import crc
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    RollupError,
    ThrottledError,
    TooLargeError,
    TransientError,
)
from include.log_rollup.storage.protocol import (
    READ_LIMIT_BYTES,
    DeleteResult,
    FolderPage,
    ListPage,
    Location,
    ObjectHead,
    ObjectInfo,
    StoredObject,
)
from simulation.faults import ONCE_FATES, PROMPT_FATES, READ_FATES, WRITE_FATES, Fate
from simulation.quirks import Checksums
from simulation.scheduler import Scheduler, Task
from simulation.server import Server, Upload
from simulation.transfer import SimulatedTransfer

T = TypeVar("T")


# Claim, manifest, completion marker and the record of expired objects: they keep competing runs apart.
DECISIVE_KEYS = ("/claim.json", "/_manifest.jsonl.gz", "/_SUCCESS", "/_expired.json")


class Client:
    """Implements :class:`include.log_rollup.storage.protocol.ObjectStore`.

    Each request waits for the scheduler, which lets other tasks go first.

    :param source: has the raw objects; transfers read them there
    """

    ports: Collection[int] = (1,)
    copies_raw = True

    def __init__(
        self,
        server: Server,
        source: Server,
        scheduler: Scheduler,
        task: Task,
        connections: int,
        control: int,
    ) -> None:
        self.max_connections = connections
        self.control_connections = control
        self._server = server
        self._source = source
        self._scheduler = scheduler
        self._task = task
        self._requests: Counter[str] = Counter()
        self.requests: Mapping[str, int] = self._requests

    def open_transfer(self, read_bucket: str, write_bucket: str) -> "SimulatedTransfer":
        """See the protocol."""
        connections = self.max_connections - 1
        return SimulatedTransfer(self._server, self._source, self._scheduler, self._task, connections)

    def list_page(
        self,
        prefix: Location,
        start_after: str = "",
        token: str | None = None,
        limit: int = 1000,
        own: Callable[[str], bool] | None = None,
    ) -> ListPage:
        """See the protocol; the simulated streams have no keys of other hours below an hour's prefix."""
        return self._read(
            "LIST",
            prefix,
            lambda: self._server.list_page(prefix.key, start_after, token, limit),
            lambda page: f"{len(page.objects)} keys" + (", more follow" if page.truncated else ""),
        )

    def list_folders(self, prefix: Location, token: str | None = None, limit: int = 1000) -> FolderPage:
        """See the protocol."""
        return self._read(
            "LIST",
            prefix,
            lambda: self._server.list_folders(prefix.key, token, limit),
            lambda page: f"{len(page.folders)} folders" + (", more follow" if page.truncated else ""),
        )

    def head(self, target: Location) -> ObjectHead | None:
        """See the protocol."""

        def effect() -> ObjectHead | None:
            found = self._server.objects.get(target.key)
            if found is None:
                return None
            stated = found.checksum
            value = stated.value if stated and stated.algorithm == crc.CRC64NVME else None
            return ObjectHead(
                len(found.body),
                found.etag,
                value,
                found.etag_is_md5,
                is_archived=found.is_archived,
                storage_class=found.headers.get("x-amz-storage-class", ""),
            )

        return self._read("HEAD", target, effect, _presence)

    def read(self, source: Location, limit: int = READ_LIMIT_BYTES) -> StoredObject | None:
        """See the protocol."""

        def effect() -> StoredObject | None:
            found = self._server.objects.get(source.key)
            if found is None:
                return None
            if len(found.body) > limit:
                raise TooLargeError(f"GET {source}: {len(found.body)} bytes, at most {limit} are read")
            return StoredObject(found.body, found.etag)

        return self._read("GET", source, effect, _presence)

    def read_range(self, source: Location, etag: str, offset: int, length: int) -> bytes:
        """See the protocol."""

        def effect() -> bytes:
            found = self._server.get_matching(source, etag)
            if found.etag != etag:
                # The real client compares the ETag of the response, too.
                raise InputChangedError(f"GET {source}: its ETag is {found.etag} now")
            return found.body[offset : offset + length]

        return self._read("GET", source, effect, lambda body: f"{len(body)} bytes")

    def write(self, target: Location, body: bytes, content_type: str) -> str:
        """See the protocol."""
        # No client can prevent that a PUT of a staged record is done again after its response.
        is_expiry = target.key.endswith("/_expired.json")
        return self._write(
            "PUT",
            target,
            lambda: self._server.put(target.key, body, self._task, crc.crc64(body)).etag,
            once="/staged-" in target.key or is_expiry,
            # Nor, on a server without CopyObject, that an old record of expired objects replaces a newer one.
            fates=PROMPT_FATES if is_expiry else None,
        )

    def publish(self, source: Location, target: Location) -> None:
        """See the protocol."""
        self._write(
            "COPY",
            target,
            lambda: self._server.copy(source, None, target.key, self._task, {}),
            f"from {source.key.rpartition('_rollup/')[2]}",
        )

    def refuses_wrong_crc(self, scratch: Location) -> bool:
        """See the protocol."""
        if self._server.quirks.checksums is Checksums.CHECKED:
            self._read("PUT", scratch, lambda: None, lambda _: "wrong CRC refused")
            return True
        self._write("PUT", scratch, lambda: self._server.put(scratch.key, b"\n", self._task))
        self.delete(scratch.bucket, [scratch.key])
        return False

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """See the protocol. Requests of other tasks may come between the deletions."""
        problem: Exception | None = None
        for key in keys:
            # No client can prevent that a DELETE is done again after its response.
            once = key.rpartition("/")[2].startswith("part-")
            place = Location(bucket, key)
            try:
                self._write("DELETE", place, partial(self._server.remove, key, self._task), once=once)
            except TransientError as error:
                problem = error
        if problem is not None:
            raise problem

    def delete_if(self, target: Location, etag: str) -> bool:
        """See the protocol."""

        def effect() -> bool:
            found = self._server.objects.get(target.key)
            if found is not None and found.etag != etag:
                if self._server.quirks.if_match_delete:
                    return False
                self._server.claim_lost |= target.key.endswith("claim.json")
            self._server.remove(target.key, self._task)
            return True

        return self._write("DELETE", target, effect, f"if its ETag is {etag[:6]}")

    def deletes_on_condition(self, scratch: Location) -> bool:
        """See the protocol."""
        return self._read(
            "DELETE",
            scratch,
            lambda: self._server.quirks.if_match_delete,
            lambda found: f"conditions: {found}",
        )

    def delete_exactly(
        self, prefix: Location, objects: Sequence[ObjectInfo], *, conditional: bool
    ) -> DeleteResult:
        """See the protocol. Requests of other tasks may come between the deletions."""

        def effect(item: ObjectInfo) -> bool:
            found = self._server.objects.get(item.key)
            if found is not None and found.etag != item.etag:
                return False
            self._server.remove(item.key, self._task)
            return True

        detail = "if its ETag is {}"
        return DeleteResult(
            [
                item.key
                for item in objects
                if not self._write(
                    "DELETE", prefix.at(item.key), partial(effect, item), detail.format(item.etag[:6])
                )
            ]
        )

    def list_uploads(self, prefix: Location) -> Sequence[tuple[str, str]]:
        """See the protocol."""

        def effect() -> list[tuple[str, str]]:
            everything = not self._server.quirks.uploads_by_prefix
            return [
                (upload.key, number)
                for number, upload in self._server.uploads.items()
                if everything or upload.key.startswith(prefix.key)
            ]

        return self._read("LIST UPLOADS", prefix, effect, lambda found: f"{len(found)} uploads")

    def begin_upload(self, target: Location, headers: Mapping[str, str], *, with_crc: bool = False) -> str:
        """See the protocol."""

        def effect() -> str:
            number = f"upload-{len(self._server.uploads) + 1}-{self._scheduler.step}"
            self._server.uploads[number] = Upload(target.key, self._task.name, headers)
            return number

        return self._write("START UPLOAD", target, effect)

    def finish_upload(
        self, target: Location, upload_id: str, etags: Sequence[str], crc64nvme: int | None = None
    ) -> None:
        """See the protocol."""

        def effect() -> None:
            upload = self._server.uploads.pop(upload_id, None)
            if upload is None:
                raise NotFoundError(f"{target}: S3 answered 404 NoSuchUpload")
            if list(etags) != [f"part-{number}" for number in range(1, len(upload.parts) + 1)]:
                raise AssertionError(
                    f"{target} is completed from {etags}, not from its {len(upload.parts)} parts"
                )
            self._server.finish(upload, self._task, crc64nvme)

        self._write("FINISH UPLOAD", target, effect)

    def abort_upload(self, target: Location, upload_id: str) -> None:
        """See the protocol."""

        def effect() -> None:
            upload = self._server.uploads.pop(upload_id, None)
            if upload is not None:
                self._server.on_abort(upload, self._task)

        self._write("ABORT UPLOAD", target, effect)

    # -- requests and faults ---------------------------------------------------------------------------

    def _read(self, kind: str, place: Location, effect: Callable[[], T], describe: Callable[[T], str]) -> T:
        key = self._key_of(place)
        while True:
            self._scheduler.pause()
            self._requests[kind] += 1
            fate = self._scheduler.draw_fate(READ_FATES, writes=False)
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
        self,
        kind: str,
        place: Location,
        effect: Callable[[], T],
        detail: str = "",
        *,
        once: bool = False,
        fates: tuple[Fate, ...] | None = None,
    ) -> T:
        key = self._key_of(place)
        while True:
            self._scheduler.pause(writes=True, decisive=once or key.endswith(DECISIVE_KEYS))
            self._requests[kind] += 1
            fate = self._scheduler.draw_fate(fates or (ONCE_FATES if once else WRITE_FATES), writes=True)
            what = f"{detail}: {fate}" if detail else str(fate)
            self._note(kind, key, what)
            if fate in (Fate.LATE, Fate.TWICE):
                self._scheduler.apply_later(self._task, f"{kind} {key}", effect)
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
            self._fail(kind, key, fate, retries=fate is not Fate.LATE or not once)

    def _key_of(self, place: Location) -> str:
        if place.bucket != self._server.bucket:
            raise AssertionError(f"{place} is requested from the store of {self._server.bucket}")
        return place.key

    def _fail(self, kind: str, key: str, fate: Fate, *, retries: bool = True) -> None:
        """Raise the error of a request, unless the client retries it by itself, as boto3 does."""
        if fate in (Fate.REFUSED, Fate.THROTTLED):
            self._note(kind, key, str(fate))
        if retries and self._scheduler.chance(0.5):
            return
        if fate is Fate.THROTTLED:
            raise ThrottledError(f"{kind} {key}: S3 answered 503 SlowDown")
        raise TransientError(f"{kind} {key}: the connection broke")

    def _note(self, kind: str, key: str, effect: str) -> None:
        self._scheduler.log.add(self._task.name, kind, key, effect)


def _presence(found: object) -> str:
    return "not there" if found is None else "found"
