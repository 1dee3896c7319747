"""Runs a function for many items on a few threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
