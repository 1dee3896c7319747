"""Threads of the page's own, so that a bucket that stalls holds none that Airflow's other pages need."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class BusyError(Exception):
    """All threads are at work, and none became free in time."""


class OwnThreads:
    """Runs work that may stall in a few threads, so that each caller gets an answer in a bounded time.

    FastAPI runs what is not ``async`` in threads that all pages of the api-server share, 40 by default. Work
    that waits for S3 must not wait there.

    :param count: how many threads there are at most; they are started as they are needed
    :param name: of the threads
    :param start_seconds: how long work may wait for a thread
    :param end_seconds: how long its caller waits for it, from the beginning on
    """

    def __init__(self, count: int, name: str, start_seconds: float, end_seconds: float) -> None:
        self._executor = ThreadPoolExecutor(count, name)
        self._start_seconds = start_seconds
        self._end_seconds = end_seconds

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, run in one of the threads.

        :raises BusyError: if no thread became free for it; then it was not begun
        :raises TimeoutError: if it takes too long; it goes on and keeps its thread until it ends by itself
        """
        deadline = time.monotonic() + self._end_seconds
        future = self._executor.submit(work)
        result = asyncio.wrap_future(future)
        try:
            await asyncio.wait([result], timeout=self._start_seconds)
            if future.cancel():
                raise BusyError
            await asyncio.wait([result], timeout=max(0.0, deadline - time.monotonic()))
            if not result.done():
                raise TimeoutError
            return result.result()
        finally:
            # Of work that goes on, nobody takes the result any more.
            result.cancel()
