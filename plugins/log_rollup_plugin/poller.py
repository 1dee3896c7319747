"""Lists raw hours for the triggerer in a few threads, each with a client of its own."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from include.log_rollup import limits
from include.log_rollup.hour.paths import RawPaths
from include.log_rollup.steps.wait_for_raw_hour import RawHourCheck, SettleRule, check_raw_hour
from log_rollup_plugin.s3.hook import PooledS3Hook


class _Client:
    """A hook, its age, and whether it has failed."""

    def __init__(self, aws_conn_id: str) -> None:
        connections = limits.POLL_CONNECTIONS
        self.hook = PooledS3Hook(
            aws_conn_id=aws_conn_id, max_connections=connections, control_connections=connections
        )
        self.created = time.monotonic()
        self.failed = False

    @property
    def is_due(self) -> bool:
        """Whether it has to be replaced."""
        return time.monotonic() - self.created >= (
            limits.POLL_FAILED_CLIENT_SECONDS if self.failed else limits.POLL_CLIENT_SECONDS
        )


class Poller:
    """Lists hours through one Airflow connection, for all triggers of a triggerer.

    Each thread has its own client and replaces it between two listings. So no client is closed while it is in use,
    and there are never more connections than those of all threads. An hour with one prefix takes one connection;
    the prefixes of groups are listed over all connections of the thread. Each Airflow connection has its own
    threads, so that an endpoint that does not answer delays only its own hours.

    :param aws_conn_id: the Airflow connection
    """

    def __init__(self, aws_conn_id: str) -> None:
        self._aws_conn_id = aws_conn_id
        self._threads = ThreadPoolExecutor(limits.POLL_THREADS, "log-rollup-poll")
        self._mine = threading.local()

    async def check(self, paths: RawPaths, rule: SettleRule, seconds: float) -> RawHourCheck:
        """See :func:`include.log_rollup.steps.wait_for_raw_hour.check_raw_hour`.

        :param seconds: time limit, including the wait for a free thread. After it, the caller stops waiting, but
            the thread stays busy until the request ends by its own time limits.
        :raises TimeoutError: if it takes longer
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            return await loop.run_in_executor(self._threads, self._check, paths, rule)

    def _check(self, paths: RawPaths, rule: SettleRule) -> RawHourCheck:
        client = self._client()
        try:
            return check_raw_hour(client.hook, paths, rule)
        except Exception:
            # Whatever the error is, somebody may have changed the Airflow connection because of it.
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
    """The poller of this process for an Airflow connection."""
    return Poller(aws_conn_id)
