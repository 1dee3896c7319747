"""Runs a function for many items on a few threads."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(
    workers: int, name: str, function: Callable[[T], R], items: Iterable[T], ahead: int | None = None
) -> Iterator[R]:
    """Call a function for each item, at most ``workers`` calls at a time.

    With one worker or one item the calls run on the calling thread. All items are read at once, so they have to
    fit into memory.

    :param workers: the most threads, usually the connections that the step may use
    :param name: prefix of the threads' names
    :param ahead: the most results in memory that the caller has not taken yet; None for no limit
    :returns: the results in the order of the items, each as soon as it and those before it are ready
    :raises Exception: the first error in that order; calls that have not started are dropped
    """
    waiting = list(items)
    workers = min(workers, len(waiting))
    if workers <= 1:
        yield from map(function, waiting)
        return
    executor = ThreadPoolExecutor(workers, name)
    started: deque[Future[R]] = deque()
    try:
        for item in waiting:
            if ahead is not None and len(started) >= ahead:
                yield started.popleft().result()
            started.append(executor.submit(function, item))
        while started:
            yield started.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def stream_in_parallel(
    workers: int,
    name: str,
    function: Callable[[T], Iterator[R]],
    items: Iterator[T],
    *,
    size_of: Callable[[R], int],
    buffer_size: int,
) -> Generator[R, None, None]:
    """Call a function that yields results for each item, at most ``workers`` calls at a time.

    Items are read one by one, at most twice ``workers`` ahead of the item whose results are returned. A call whose
    results are not returned yet waits when they have ``buffer_size``.

    :param name: prefix of the threads' names
    :param size_of: size of a result
    :param buffer_size: the most results of one call that wait, in the same unit; one result may exceed it
    :returns: the results in the order of the items, each as soon as it and those before it are ready
    :raises Exception: the first error in that order; calls that have not ended are stopped at their next result
    """
    stopped = threading.Event()
    running: deque[_Results[R]] = deque()

    def start_more() -> None:
        while len(running) < 2 * workers:
            try:
                item = next(items)
            except StopIteration:
                return
            results = _Results(size_of, buffer_size, stopped)
            running.append(results)
            executor.submit(results.fill, function, item)

    executor = ThreadPoolExecutor(workers, name)
    try:
        start_more()
        while running:
            for result in running[0]:
                yield result
                start_more()
            running.popleft()
            start_more()
    finally:
        stopped.set()
        for results in running:
            results.wake()
        executor.shutdown(cancel_futures=True)


class _Results(Generic[R]):
    """The results of one call, which wait until they are returned."""

    def __init__(self, size_of: Callable[[R], int], buffer_size: int, stopped: threading.Event) -> None:
        self._size_of = size_of
        self._buffer_size = buffer_size
        self._stopped = stopped
        self._changed = threading.Condition()
        self._waiting: deque[R] = deque()
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None

    def fill(self, function: Callable[[T], Iterator[R]], item: T) -> None:
        """Call the function, and keep its results."""
        try:
            for result in function(item):
                if not self._put(result):
                    break
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _put(self, result: R) -> bool:
        """Keep a result when there is room for it.

        :returns: False if nothing is needed any more
        """
        with self._changed:
            self._changed.wait_for(lambda: self._size < self._buffer_size or self._stopped.is_set())
            self._waiting.append(result)
            self._size += self._size_of(result)
            self._changed.notify_all()
        return not self._stopped.is_set()

    def wake(self) -> None:
        """Let a call that waits for room see that it is stopped."""
        with self._changed:
            self._changed.notify_all()

    def __iter__(self) -> Iterator[R]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    break
                result = self._waiting.popleft()
                self._size -= self._size_of(result)
                self._changed.notify_all()
            yield result
        if self._error is not None:
            raise self._error
