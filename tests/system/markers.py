"""Reads an hour again and again, as a reader that honours the completion marker does."""

import json
import threading
from typing import Self

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from dev.servers import S3Client


class MarkerWatch:
    """Records each set of parts that was listed between two reads of the same marker.

    :param prefix: aggregated prefix of the hour
    """

    def __init__(self, client: S3Client, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._seen: dict[bytes, set[frozenset[tuple[str, str]]]] = {}
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="marker-watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def assert_never_mixed(self, plans: int) -> None:
        """Each marker had one set of parts, of the number that the marker states.

        :param plans: how many different plans the markers must have been of
        """
        assert self._error is None, repr(self._error)
        assert len({json.loads(marker)["plan_id"] for marker in self._seen}) == plans
        for marker, sets in self._seen.items():
            (parts,) = sets
            assert len(parts) == json.loads(marker)["parts"]

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.05):
                self._look()
        except Exception as error:
            self._error = error

    def _look(self) -> None:
        try:
            self._compare()
        except (BotoCoreError, HTTPError):
            # The marker was replaced while it was read: try again.
            return
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                raise

    def _compare(self) -> None:
        before = self._marker()
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}part-"
        )
        parts = frozenset((item["Key"], item["ETag"]) for page in pages for item in page.get("Contents", ()))
        if before is not None and self._marker() == before:
            self._seen.setdefault(before, set()).add(parts)

    def _marker(self) -> bytes | None:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}_SUCCESS")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        body: bytes = answer["Body"].read()
        return body
