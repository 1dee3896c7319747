"""The transfer of a simulated task: requests with bodies, many at a time."""

from collections.abc import Callable, Mapping
from typing import Any

from include.log_rollup import crc
from include.log_rollup.errors import (
    InputChangedError,
    NotFoundError,
    RollupError,
    ThrottledError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.storage.protocol import Downloaded, Location, Uploaded
from simulation.faults import COPY_FATES, GET_FATES, PUT_FATES, Fate, flip_bit
from simulation.quirks import Checksums, ETags
from simulation.scheduler import Fiber, Scheduler, Task
from simulation.server import Server, ServerObject


class PendingRequest:
    """A request of a transfer; the scheduler decides when it takes effect.

    :param effect: applies the request to the server
    :param deliver: turns the result of ``effect`` into what the client receives
    :param done: the client's callback
    """

    def __init__(
        self,
        transfer: "SimulatedTransfer",
        kind: str,
        key: str,
        fates: tuple[Fate, ...],
        effect: Callable[[Fate], Any],
        deliver: Callable[[Any], object],
        done: Callable[[Any], None],
    ) -> None:
        self.task = transfer.task
        self.kind = kind
        self.key = key
        self.writes = kind != "GET"
        self._transfer = transfer
        self._fates = fates
        self._effect = effect
        self._deliver = deliver
        self._done = done
        self._executed = self._ended = False

    def resume(self) -> None:
        """Take effect on the server, and queue the response for the client."""
        scheduler = self._transfer.scheduler
        self._executed = True
        fate = scheduler.draw_fate(self._fates, writes=self.writes)
        scheduler.log.add(self.task.name, self.kind, self.key, str(fate))
        if fate in (Fate.LATE, Fate.TWICE):
            scheduler.apply_later(self.task, f"{self.kind} {self.key}", lambda: self._effect(Fate.DONE))
        if fate is Fate.STALLED:
            if self.writes and scheduler.chance(0.5):
                scheduler.apply_later(self.task, f"{self.kind} {self.key}", lambda: self._effect(Fate.DONE))
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
                scheduler.log.add(self.task.name, self.kind, self.key, str(error))
                result = error
            if fate is Fate.LOST:
                result = TransientError(f"{self.kind} {self.key}: the connection broke before the answer")
        self._transfer.respond(self, result)

    def abandon(self) -> None:
        """Drop the request; a write may still take effect much later."""
        if not self._executed:
            self._executed = True
            scheduler = self._transfer.scheduler
            scheduler.forget(self)
            if self.writes and scheduler.chance(0.5):
                scheduler.apply_later(self.task, f"{self.kind} {self.key}", lambda: self._effect(Fate.DONE))

    def cancel(self) -> None:
        """See :class:`include.log_rollup.storage.protocol.Cancellable`."""
        self.abandon()
        self.end(TransientError("the request was cancelled"))

    def end(self, result: Any) -> None:
        """Pass the result to the callback, once."""
        if not self._ended:
            self._ended = True
            self._transfer.pending.pop(self, None)
            self._done(result if isinstance(result, Exception) else self._deliver(result))


class SimulatedTransfer:
    """Implements :class:`include.log_rollup.storage.protocol.Transfer`.

    :param server: has the parts and records
    :param source: has the raw objects; may be the same
    """

    def __init__(
        self, server: Server, source: Server, scheduler: Scheduler, task: Task, connections: int
    ) -> None:
        self.connections = connections
        self.scheduler = scheduler
        self.task = task
        self.pending: dict[PendingRequest, None] = {}
        self._server = server
        self._source = source
        self._responses: list[tuple[PendingRequest, Any]] = []
        self._waiting: Fiber | None = None
        self._woken = False
        task.transfers.append(self)

    def get(
        self,
        source: Location,
        etag: str | None,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> PendingRequest:
        """See the protocol."""

        server = self._server_of(source)

        def effect(fate: Fate) -> tuple[bytes, Downloaded]:
            found = server.get_matching(source, etag)
            body = found.body
            if len(body) > len(into):
                raise TransientError(f"GET {source}: {len(body)} of {len(into)} bytes came")
            proves = found.checksum is not None or (found.etag_is_md5 and server.quirks.etags is ETags.MD5)
            if fate is Fate.WRONG_BYTES and proves:
                body = flip_bit(body, self.scheduler.randbelow(8 * len(body)) if body else 0)
                if found.checksum is None:
                    server.misread.add((source.key, found.etag))
            elif fate is Fate.CUT_SHORT:
                body = body[:-1]
            return body, Downloaded(len(body), found.etag, found.checksum, found.etag_is_md5)

        def deliver(answer: tuple[bytes, Downloaded]) -> Downloaded:
            body, result = answer
            into[: len(body)] = body
            return result

        return self._start("GET", source.key, GET_FATES, effect, deliver, done)

    def put(
        self,
        target: Location,
        body: memoryview,
        crc64nvme: int,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> PendingRequest:
        """See the protocol."""
        sent = bytes(body)

        def effect(fate: Fate) -> Uploaded:
            arrived = flip_bit(sent, self.scheduler.randbelow(8 * len(sent)) if sent else 0)
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

        return self._start("PUT", target.key, PUT_FATES, effect, _unchanged, done)

    def get_range(
        self,
        source: Location,
        etag: str,
        first: int,
        into: memoryview,
        done: Callable[[Downloaded | Exception], None],
    ) -> PendingRequest:
        """See the protocol."""

        server = self._server_of(source)

        def effect(fate: Fate) -> tuple[bytes, Downloaded]:
            found = server.get_matching(source, etag)
            body = found.body[first : first + len(into)]
            # The CRC of the whole object is compared; without one, validation compares the ETag.
            has_crc = found.checksum is not None and found.checksum.algorithm == crc.CRC64NVME
            is_md5 = found.etag_is_md5 and server.quirks.etags is ETags.MD5
            if fate is Fate.WRONG_BYTES and body and (has_crc or is_md5):
                body = flip_bit(body, self.scheduler.randbelow(8 * len(body)))
                if not has_crc:
                    server.misread.add((source.key, found.etag))
            elif fate is Fate.CUT_SHORT:
                body = body[:-1]
            return body, Downloaded(len(body), found.etag, None, found.etag_is_md5, len(found.body))

        def deliver(answer: tuple[bytes, Downloaded]) -> Downloaded:
            body, result = answer
            into[: len(body)] = body
            return result

        return self._start("GET", source.key, GET_FATES, effect, deliver, done)

    def put_range(
        self,
        target: Location,
        upload_id: str,
        number: int,
        body: memoryview,
        crc64nvme: int,
        done: Callable[[Uploaded | Exception], None],
    ) -> PendingRequest:
        """See the protocol."""
        sent = bytes(body)

        def effect(fate: Fate) -> Uploaded:
            upload = self._server.uploads.get(upload_id)
            if upload is None:
                raise NotFoundError(f"{target}: S3 answered 404 NoSuchUpload")
            arrived = sent
            if fate is Fate.WRONG_BYTES:
                arrived = flip_bit(sent, self.scheduler.randbelow(8 * len(sent)))
                if self._server.quirks.checksums is Checksums.CHECKED:
                    raise TransientError(f"PUT {target}: S3 answered 400 BadDigest")
            upload.parts[number] = arrived
            return Uploaded(f"part-{number}", None)

        return self._start("PUT", target.key, PUT_FATES, effect, _unchanged, done)

    def copy(
        self,
        source: Location,
        etag: str,
        target: Location,
        headers: Mapping[str, str],
        done: Callable[[Uploaded | Exception], None],
    ) -> PendingRequest:
        """See the protocol."""
        self._assert_one_store(source)

        def effect(_: Fate) -> Uploaded:
            return self._uploaded(self._server.copy(source, etag, target.key, self.task, headers))

        return self._start("COPY", target.key, COPY_FATES, effect, _unchanged, done)

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
    ) -> PendingRequest:
        """See the protocol."""
        self._assert_one_store(source)

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

        return self._start("COPY", target.key, COPY_FATES, effect, _unchanged, done)

    def wait(self, seconds: float) -> None:
        """See the protocol."""
        if not self._responses and not self._woken:
            self._waiting = self.scheduler.current()
            try:
                self.scheduler.sleep(seconds)
            finally:
                self._waiting = None
        self._woken = False
        responses, self._responses = self._responses, []
        for request, result in responses:
            request.end(result)

    def wake(self) -> None:
        """See the protocol."""
        self._woken = True
        self._resume()

    def close(self) -> None:
        """See the protocol."""
        if self.pending and not self.task.dead:
            raise AssertionError(f"closed with {len(self.pending)} requests pending")

    def respond(self, request: PendingRequest, result: Any) -> None:
        """Queue a response; :meth:`wait` passes it on."""
        self._responses.append((request, result))
        self._resume()

    def _server_of(self, place: Location) -> Server:
        server = self._source if place.is_raw else self._server
        if place.bucket != server.bucket:
            raise AssertionError(f"{place} is requested from the store of {server.bucket}")
        return server

    def _assert_one_store(self, source: Location) -> None:
        if self._server_of(source) is not self._server:
            raise AssertionError(f"{source}: no server copies from another one")

    def _resume(self) -> None:
        if self._waiting is not None:
            self.scheduler.enable(self._waiting)
            self._waiting = None

    def _uploaded(self, stored: ServerObject) -> Uploaded:
        return Uploaded(stored.etag, stored.checksum.value if stored.checksum else None)

    def _start(
        self,
        kind: str,
        key: str,
        fates: tuple[Fate, ...],
        effect: Callable[[Fate], Any],
        deliver: Callable[[Any], object],
        done: Callable[[Any], None],
    ) -> PendingRequest:
        request = PendingRequest(self, kind, key, fates, effect, deliver, done)
        self.pending[request] = None
        self.scheduler.request(request, writes=request.writes)
        return request


def _unchanged(result: object) -> object:
    return result
