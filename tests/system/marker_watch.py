"""Reads an hour repeatedly, as a reader that honours the completion marker does."""

import json
import threading
from collections.abc import Collection
from typing import Self

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from dev.servers import S3Client

# Each sample takes three requests.
_INTERVAL_SECONDS = 0.2


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

    def assert_never_mixed(self, plans: Collection[int]) -> None:
        """Assert that each marker had one set of parts, with as many parts as the marker states.

        :param plans: possible numbers of different plans to which the markers belong
        """
        assert self._error is None, repr(self._error)
        assert len({json.loads(marker)["plan_id"] for marker in self._seen}) in plans
        for marker, sets in self._seen.items():
            (parts,) = sets
            assert len(parts) == json.loads(marker)["parts"]

    def _run(self) -> None:
        try:
            while True:
                # Also once at the end, when the hour is complete.
                stopping = self._stop.wait(_INTERVAL_SECONDS)
                self._sample()
                if stopping:
                    return
        except Exception as error:
            self._error = error

    def _sample(self) -> None:
        try:
            before = self._marker()
            parts = self._parts()
            if before is not None and self._marker() == before:
                self._seen.setdefault(before, set()).add(parts)
        except (BotoCoreError, HTTPError):
            # The marker was replaced while it was read: the next sample reads it again.
            return
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                raise

    def _parts(self) -> frozenset[tuple[str, str]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}part-"
        )
        return frozenset((item["Key"], item["ETag"]) for page in pages for item in page.get("Contents", ()))

    def _marker(self) -> bytes | None:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}_SUCCESS")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        body: bytes = answer["Body"].read()
        return body
