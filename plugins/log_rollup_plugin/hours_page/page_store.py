"""The page's access to S3: the pipeline's hook with short time limits, because a person waits."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from botocore.config import Config

from include.log_rollup import limits
from include.log_rollup.errors import TransientError
from include.log_rollup.streams import Stream
from log_rollup_plugin.s3.hook import PooledS3Hook

OpenStore = Callable[..., AbstractContextManager[PooledS3Hook]]
"""A function like :func:`open_store`."""


class TimeLimitedHook(PooledS3Hook):
    """A hook with the page's time limits and tries, whatever the Airflow connection sets.

    :param seconds: no request is sent later than this after the hook's creation; None for no limit
    """

    def __init__(self, *args: Any, seconds: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def _get_config(self, config: Config | None = None) -> Config:
        page_limits = Config(
            connect_timeout=limits.PAGE_CONNECT_SECONDS,
            read_timeout=limits.PAGE_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": limits.PAGE_TRIES},
        )
        return super()._get_config(config).merge(page_limits)

    def get_client_type(self, *args: Any, **kwargs: Any) -> Any:
        """The boto3 client; it sends no request after the deadline."""
        client = super().get_client_type(*args, **kwargs)
        client.meta.events.register_first("before-send.s3", self._check_deadline)
        return client

    def _check_deadline(self, **_: Any) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TransientError(f"the bucket answers too slowly: it was not read within {self._seconds:g} s")


@contextmanager
def open_store(
    stream: Stream, connections: int = limits.MONTH_PAGE_CONNECTIONS, seconds: float | None = None
) -> Iterator[PooledS3Hook]:
    """A hook for a stream's aggregated bucket, closed afterwards.

    :param connections: the most connections; all of them go to one host, because only one bucket is read
    :param seconds: see :class:`TimeLimitedHook`
    """
    hook = TimeLimitedHook(
        aws_conn_id=stream.connection_of_aggregated, max_connections=connections, control_connections=connections,
        seconds=seconds,
    )  # fmt: skip
    with hook:
        yield hook
