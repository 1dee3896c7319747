"""A thread pool of the page, so that a slow bucket does not block the threads of Airflow's other pages."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class BusyError(Exception):
    """No thread became free in time."""


class PageThreads:
    """Runs calls that may block in a few threads, so that each caller gets an answer in bounded time.

    FastAPI runs functions that are not ``async`` in threads shared by all pages of the api-server, 40 by default.
    Calls that wait for S3 must not block those.

    :param count: the most threads; they are started on demand
    :param name: prefix of the threads' names
    :param queue_seconds: how long a call may wait for a free thread
    :param total_seconds: how long a caller waits for the result, including that wait
    """

    def __init__(self, count: int, name: str, queue_seconds: float, total_seconds: float) -> None:
        self._executor = ThreadPoolExecutor(count, name)
        self._queue_seconds = queue_seconds
        self._total_seconds = total_seconds

    async def run(self, function: Callable[[], T]) -> T:
        """Call the function in one of the threads and return its result.

        :raises BusyError: if no thread became free in time; the function is not called then
        :raises TimeoutError: if the call takes too long; it continues, and its thread stays busy until it ends
        """
        deadline = time.monotonic() + self._total_seconds
        future = self._executor.submit(function)
        result = asyncio.wrap_future(future)
        try:
            await asyncio.wait([result], timeout=self._queue_seconds)
            if future.cancel():
                raise BusyError
            await asyncio.wait([result], timeout=max(0.0, deadline - time.monotonic()))
            if not result.done():
                raise TimeoutError
            return result.result()
        finally:
            # A call that continues has no caller any more.
            result.cancel()
