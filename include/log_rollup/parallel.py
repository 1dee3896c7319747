"""Runs a function for many items on a few threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(workers: int, name: str, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Call a function for each item, at most ``workers`` calls at a time.

    With one worker the calls run on the calling thread. All items are read at once, so they have to fit into
    memory.

    :param workers: number of threads, usually the connections that the step may use
    :param name: prefix of the threads' names
    :returns: the results in the order of the items, each as soon as it and those before it are ready
    :raises Exception: the first error in that order; calls that have not started are dropped
    """
    if workers == 1:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(workers, name)
    try:
        yield from executor.map(function, items)
    finally:
        executor.shutdown(cancel_futures=True)
