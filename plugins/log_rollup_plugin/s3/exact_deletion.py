"""Deletes objects on condition of their ETag, and tries out whether the server enforces it."""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore import exceptions as boto

from include.log_rollup import limits
from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    CredentialsError,
    MissingBucketError,
    NotFoundError,
    PermanentError,
    RollupError,
    TransientError,
)
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import DeleteResult, Location, ObjectHead, ObjectInfo
from log_rollup_plugin.s3.checksums import quoted_etag
from log_rollup_plugin.s3.deletion import BATCH_SIZE, NOT_IN_XML, wait_for_next_try
from log_rollup_plugin.s3.error_mapping import from_code, is_code, status_and_code, translated

log = logging.getLogger(__name__)

_NO_CONDITIONS = "the object cannot be deleted on condition of its ETag"
_OTHER_ETAG = "0" * 32
_THREADS = "log-rollup-deletes"


@dataclass(slots=True)
class _Outcome:
    """What the server answered about some objects; the others are deleted.

    :param unmet: those that do not have the expected ETag, or do not exist
    :param again: those for which the server asks to try again, each with its error
    """

    unmet: list[ObjectInfo] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    again: dict[ObjectInfo, RollupError] = field(default_factory=dict)
    delete_markers: int = 0


class ExactDeleter:
    """Deletes objects with these ETags only. May be used from several threads.

    S3 enforces the ETag in a request for many objects (DeleteObjects) and in one for a single object (If-Match of
    DeleteObject). Other servers ignore one of them or both, and delete the object, so both are tried out.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html

    :param client: of boto3
    :param connections: how many requests may be sent at a time
    :param head: as the method of the store
    :param write: writes a small object; returns its ETag
    :param delete: deletes an object with any ETag
    """

    def __init__(
        self,
        client: Any,
        connections: int,
        head: Callable[[Location], ObjectHead | None],
        write: Callable[[Location, bytes], str],
        delete: Callable[[Location], None],
    ) -> None:
        self._client = client
        self._connections = connections
        self._head = head
        self._write = write
        self._delete = delete
        self._trying = threading.Lock()
        self._in_batches: bool | None = None
        self._one_by_one: bool | None = None

    # -- what the server enforces --------------------------------------------------------------------------

    def deletes_on_condition(self, scratch: Location) -> bool:
        """See :meth:`include.log_rollup.storage.protocol.ExpiryStore.deletes_on_condition`."""
        with self._trying:
            if self._in_batches is None:
                self._in_batches = self._enforces(scratch, self._send_batch)
                self._one_by_one = self._enforces(scratch, self._send_one)
                log.info(
                    "conditional deletes of this server: DeleteObjects %s the ETag, DeleteObject %s If-Match",
                    *("enforces" if does else "ignores" for does in (self._in_batches, self._one_by_one)),
                )
                self._delete(scratch)
            return bool(self._in_batches or self._one_by_one)

    def _enforces(self, scratch: Location, send: "_Send") -> bool:
        """Whether a delete with a wrong ETag leaves the object, and one with the right ETag deletes it."""
        for _ in range(limits.REMOVAL_TRIES):
            etag = self._write(scratch, secrets.token_bytes(16))
            try:
                wrong = send(scratch, [ObjectInfo(scratch.key, 0, _OTHER_ETAG)], True)
                head = self._head(scratch)
                if head is not None and head.etag != etag:
                    # Another task tries it out at the same time.
                    continue
                if head is None or not wrong.unmet:
                    return False
                send(scratch, [ObjectInfo(scratch.key, 0, etag)], True)
            except PermanentError as error:
                if isinstance(error, AccessError | MissingBucketError | ConfigurationError):
                    raise
                log.info("%s: %s", scratch, error)
                return False
            return self._head(scratch) is None
        return False

    # -- deleting --------------------------------------------------------------------------------------------

    def delete_exactly(
        self, bucket: Location, objects: Sequence[ObjectInfo], *, conditional: bool
    ) -> DeleteResult:
        """See :meth:`include.log_rollup.storage.protocol.ExpiryStore.delete_exactly`.

        :param bucket: a location of the bucket
        """
        in_batches = self._in_batches if conditional else True
        batched: list[ObjectInfo] = []
        single: list[ObjectInfo] = []
        for item in objects:
            (batched if in_batches and not NOT_IN_XML.search(item.key) else single).append(item)
        changed: list[str] = []
        refused: dict[str, str] = {}
        markers = 0
        if conditional and not self._one_by_one:
            refused = dict.fromkeys((item.key for item in single), _NO_CONDITIONS)
            single = []
        requests: list[tuple[_Send, Sequence[ObjectInfo]]] = [
            (self._send_batch, batched[start : start + BATCH_SIZE])
            for start in range(0, len(batched), BATCH_SIZE)
        ]
        requests += [(self._send_one, [item]) for item in single]

        def send(request: tuple["_Send", Sequence[ObjectInfo]]) -> _Outcome:
            return self._until_answered(bucket, *request, conditional)

        for outcome in in_parallel(self._connections, _THREADS, send, requests):
            refused |= outcome.refused
            markers += outcome.delete_markers
            for item, head in self._heads(bucket, outcome.unmet):
                if head is not None and head.etag == item.etag:
                    refused[item.key] = f"{_NO_CONDITIONS}, which the server refuses although it holds"
                elif head is not None:
                    changed.append(item.key)
        return DeleteResult(changed, refused, markers)

    def _heads(
        self, bucket: Location, items: Sequence[ObjectInfo]
    ) -> Iterator[tuple[ObjectInfo, ObjectHead | None]]:
        """Objects whose condition did not hold, as they are now: gone, changed, or as expected."""
        find = in_parallel(self._connections, _THREADS, lambda item: self._head(bucket.at(item.key)), items)
        return zip(items, find, strict=True)

    def _until_answered(
        self, bucket: Location, send: "_Send", items: Sequence[ObjectInfo], conditional: bool
    ) -> _Outcome:
        """Send a request again while the server asks for it.

        :raises TransientError: after some tries
        """
        total = _Outcome()
        left = items
        for tried in range(1, limits.DELETE_TRIES + 1):
            outcome = send(bucket, left, conditional)
            total.unmet += outcome.unmet
            total.refused |= outcome.refused
            total.delete_markers += outcome.delete_markers
            if not outcome.again:
                return total
            wait_for_next_try(tried, next(iter(outcome.again.values())))
            left = list(outcome.again)
        raise AssertionError("not reached")

    def _send_batch(self, bucket: Location, items: Sequence[ObjectInfo], conditional: bool) -> _Outcome:
        """Delete up to 1,000 objects with one request."""
        rows = [
            {"Key": item.key, "ETag": quoted_etag(bucket.at(item.key), item.etag)}
            if conditional
            else {"Key": item.key}
            for item in items
        ]
        with translated("DELETE", bucket.at(items[0].key)):
            response = self._client.delete_objects(
                Bucket=bucket.bucket, Delete={"Objects": rows, "Quiet": False}
            )
        deleted = {row.get("Key"): row for row in response.get("Deleted", ())}
        errors = {row.get("Key"): row for row in response.get("Errors", ())}
        outcome = _Outcome(delete_markers=sum(bool(row.get("DeleteMarker")) for row in deleted.values()))
        for item in items:
            row = errors.get(item.key)
            if row is not None:
                self._sort_error(outcome, item, bucket, str(row.get("Code", "")), str(row.get("Message", "")))
            elif item.key not in deleted:
                # It is asked with a HEAD what happened to it.
                outcome.unmet.append(item)
        return outcome

    def _send_one(self, bucket: Location, items: Sequence[ObjectInfo], conditional: bool) -> _Outcome:
        """Delete one object."""
        (item,) = items
        target = bucket.at(item.key)
        condition = {"IfMatch": quoted_etag(target, item.etag)} if conditional else {}
        outcome = _Outcome()
        with translated("DELETE", target):
            try:
                response = self._client.delete_object(Bucket=target.bucket, Key=target.key, **condition)
                outcome.delete_markers = int(bool(response.get("DeleteMarker")))
            except boto.ClientError as error:
                status, code = status_and_code(error)
                if code == "NoSuchBucket" or status not in (403, 404, 412):
                    raise
                if status == 403:
                    self._sort_error(outcome, item, bucket, code, str(error))
                elif status == 412 or not is_code(code):
                    # A proxy may have sent a 404 without a code.
                    outcome.unmet.append(item)
        return outcome

    def _sort_error(
        self, outcome: _Outcome, item: ObjectInfo, bucket: Location, code: str, message: str
    ) -> None:
        """Add the error that the server states for one object."""
        if code in ("PreconditionFailed", "ConditionalRequestConflict"):
            outcome.unmet.append(item)
            return
        error = from_code("DELETE", bucket.at(item.key), code, message)
        if isinstance(error, CredentialsError):
            raise error
        if isinstance(error, TransientError):
            outcome.again[item] = error
        elif not isinstance(error, NotFoundError):
            outcome.refused[item.key] = str(error)


_Send = Callable[[Location, Sequence[ObjectInfo], bool], _Outcome]
