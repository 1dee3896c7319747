"""A few calls at once, within the connections that a step has."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(workers: int, name: str, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Call a function for each item, at most ``workers`` at a time.

    With one worker the calls are made here, without a thread. All items are taken at once, so this is for
    items that fit into memory.

    :param name: of the threads
    :returns: the results in the order of the items, each as soon as it and those before it are there
    :raises Exception: the first error in that order; calls that have not begun are dropped then
    """
    if workers == 1:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(workers, name)
    try:
        yield from executor.map(function, items)
    finally:
        executor.shutdown(cancel_futures=True)
