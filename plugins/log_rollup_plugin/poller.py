"""Lists raw hours for the triggerer: few threads, each with a client of one connection that it renews."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from include.log_rollup import limits
from include.log_rollup.hour.layout import HourPaths
from include.log_rollup.steps.wait_for_raw_hour import RawHourCheck, SettleRule, check_raw_hour
from log_rollup_plugin.s3.hook import PooledS3Hook


class _Client:
    """A hook with one connection, and what its renewal depends on."""

    def __init__(self, aws_conn_id: str) -> None:
        self.hook = PooledS3Hook(aws_conn_id=aws_conn_id, max_connections=1, control_connections=1)
        self.made = time.monotonic()
        self.failed = False

    @property
    def is_due(self) -> bool:
        """Whether another one has to take its place."""
        return time.monotonic() - self.made >= (
            limits.POLL_FAILED_CLIENT_SECONDS if self.failed else limits.POLL_CLIENT_SECONDS
        )


class Poller:
    """Lists hours through one Airflow connection, for all triggers of a triggerer.

    Each thread has a client of its own and replaces it between two listings, so none is closed while it is used,
    and there are never more connections than threads. Airflow connections have threads of their own, so that an
    endpoint that does not answer delays no hour of another one.

    :param aws_conn_id: the Airflow connection
    """

    def __init__(self, aws_conn_id: str) -> None:
        self._aws_conn_id = aws_conn_id
        self._threads = ThreadPoolExecutor(limits.POLL_THREADS, "log-rollup-poll")
        self._mine = threading.local()

    async def look(self, paths: HourPaths, rule: SettleRule, seconds: float) -> RawHourCheck:
        """See :func:`include.log_rollup.steps.wait_for_raw_hour.check_raw_hour`.

        :param seconds: the most that it may take, until a thread is free included. A listing that takes longer is
            given up here; its thread is busy until the request ends by its own time limits.
        :raises TimeoutError: if it takes longer
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            return await loop.run_in_executor(self._threads, self._look, paths, rule)

    def _look(self, paths: HourPaths, rule: SettleRule) -> RawHourCheck:
        client = self._client()
        try:
            return check_raw_hour(client.hook, paths, rule)
        except Exception:
            # Whatever it is, the Airflow connection may have been changed because of it.
            client.failed = True
            raise

    def _client(self) -> _Client:
        """The client of this thread."""
        client: _Client | None = getattr(self._mine, "client", None)
        if client is not None and client.is_due:
            with client.hook:
                client = None
        if client is None:
            client = self._mine.client = _Client(self._aws_conn_id)
        return client


@cache
def poller_of(aws_conn_id: str) -> Poller:
    """The poller of this triggerer for an Airflow connection."""
    return Poller(aws_conn_id)
