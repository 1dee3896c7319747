"""Deletes objects; uses DeleteObjects and conditional deletes until the server refuses them."""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from botocore import exceptions as boto

from include.log_rollup import limits
from include.log_rollup.backoff import seconds_until_next_try
from include.log_rollup.errors import (
    ConfigurationError,
    CredentialsError,
    ForeignResponseError,
    MissingBucketError,
    NotFoundError,
    PermanentError,
    RollupError,
    TransientError,
)
from include.log_rollup.storage.protocol import Location, ObjectHead
from log_rollup_plugin.s3.checksums import may_refuse_header, quoted_etag
from log_rollup_plugin.s3.error_mapping import from_code, is_code, status_and_code, translated

log = logging.getLogger(__name__)

# S3 deletes at most this many objects in one request.
BATCH_SIZE = 1000
# XML 1.0 has no form for these characters, and DeleteObjects is XML.
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def wait_for_next_try(tried: int, error: RollupError) -> None:
    """Wait before objects are deleted again for which the server has asked that.

    :param tried: number of tries so far
    :param error: of one of the objects
    :raises RollupError: this error, if that was the last try
    """
    if tried == limits.DELETE_TRIES:
        raise type(error)(f"{error} (after {tried} tries)") from error
    time.sleep(seconds_until_next_try(limits.DELETE_FIRST_WAIT_SECONDS, tried))


class Deleter:
    """Deletes objects; remembers what the server has refused.

    :param client: of boto3
    :param head: see :meth:`include.log_rollup.storage.protocol.ObjectStore.head`
    """

    def __init__(self, client: Any, head: Callable[[Location], ObjectHead | None]) -> None:
        self._client = client
        self._head = head
        self._has_batches = True
        self._has_conditions = True

    def delete(self, bucket: str, keys: Sequence[str]) -> None:
        """See :meth:`include.log_rollup.storage.protocol.ObjectStore.delete`.

        :raises AccessError: if S3 refuses to delete one of them
        :raises TransientError: if one of them still cannot be deleted after some tries
        """
        batched = [key for key in keys if not NOT_IN_XML.search(key)]
        single = [key for key in keys if NOT_IN_XML.search(key)]
        for start in range(0, len(batched), BATCH_SIZE):
            batch = batched[start : start + BATCH_SIZE]
            if len(batch) > 1 and self._has_batches:
                batch = self._delete_batch(bucket, batch)
            single += batch
        for key in single:
            self._delete_one(Location(bucket, key))

    def delete_if(self, target: Location, etag: str) -> bool:
        """See :meth:`include.log_rollup.storage.protocol.ObjectStore.delete_if`.

        On a server without conditional deletes, the ETag is compared first, and the object is then deleted without
        condition.
        """
        if self._has_conditions:
            deleted = self._delete_on_condition(target, etag)
            if deleted is not None:
                return deleted
        found = self._head(target)
        if found is not None and found.etag != etag:
            return False
        self._delete_one(target)
        self._has_conditions = False
        return True

    def _delete_on_condition(self, target: Location, etag: str) -> bool | None:
        """Whether the object had this ETag and is gone; None if the server does not know the condition."""
        with translated("DELETE", target):
            try:
                self._client.delete_object(
                    Bucket=target.bucket, Key=target.key, IfMatch=quoted_etag(target, etag)
                )
            except boto.ClientError as error:
                status, code = status_and_code(error)
                if status == 412:
                    return False
                if status == 404 and code != "NoSuchBucket" and (is_code(code) or self._head(target) is None):
                    return True
                # A server may allow only deletes without a condition.
                if status != 405 and not may_refuse_header(status, code):
                    raise
                return None
        return True

    def _delete_one(self, target: Location) -> None:
        try:
            with translated("DELETE", target):
                self._client.delete_object(Bucket=target.bucket, Key=target.key)
        except NotFoundError:
            log.debug("%s was gone before it was deleted", target)
        except ForeignResponseError:
            if self._head(target) is not None:
                raise

    def _delete_batch(self, bucket: str, keys: Sequence[str]) -> list[str]:
        """Delete objects with DeleteObjects; returns the keys that have to be deleted one by one."""
        left = list(keys)
        for tried in range(1, limits.DELETE_TRIES + 1):
            try:
                with translated("DELETE", Location(bucket, left[0])):
                    response = self._client.delete_objects(
                        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in left], "Quiet": False}
                    )
            except (CredentialsError, MissingBucketError, ConfigurationError):
                raise
            except (PermanentError, ForeignResponseError) as error:
                return self._without_batches(bucket, left, error)
            failed = _errors_by_key(bucket, left, response)
            deleted = {row.get("Key") for row in response.get("Deleted", ())}
            unmentioned = [key for key in left if key not in failed and key not in deleted]
            for problem in failed.values():
                if not isinstance(problem, TransientError | NotFoundError):
                    raise problem
            again = {key: problem for key, problem in failed.items() if isinstance(problem, TransientError)}
            if unmentioned or not again:
                return [*unmentioned, *again]
            wait_for_next_try(tried, next(iter(again.values())))
            left = list(again)
        raise AssertionError("not reached")

    def _without_batches(self, bucket: str, keys: Sequence[str], error: RollupError) -> list[str]:
        """Handle refused batches: if the first key can be deleted by itself, returns the others."""
        self._delete_one(Location(bucket, keys[0]))
        log.info("objects are deleted one by one: %s", error)
        self._has_batches = False
        return list(keys[1:])


def _errors_by_key(bucket: str, keys: Sequence[str], response: Mapping[str, Any]) -> dict[str, RollupError]:
    """The errors in a response to DeleteObjects, for those of the keys that have one."""
    rows = {row.get("Key"): row for row in response.get("Errors", ())}
    return {
        key: from_code(
            "DELETE", Location(bucket, key), str(rows[key].get("Code", "")), str(rows[key].get("Message", ""))
        )
        for key in keys
        if key in rows
    }
