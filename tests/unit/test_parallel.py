"""Parallel calls: results in order, no more at once than allowed, and no threads left after an error."""

import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.parallel import in_parallel, stream_in_parallel


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_results_are_in_the_order_of_the_items(items: list[int], workers: int) -> None:
    assert list(in_parallel(workers, "test", lambda item: item * 2, items)) == [item * 2 for item in items]


@pytest.mark.parametrize(("workers", "items"), [(1, 3), (8, 1), (8, 0)])
def test_one_worker_or_item_needs_no_thread(workers: int, items: int) -> None:
    threads = list(in_parallel(workers, "test", lambda _: threading.get_ident(), range(items)))
    assert threads == [threading.get_ident()] * items


@given(st.integers(2, 4), st.integers(1, 6))
def test_results_ahead_are_limited(workers: int, ahead: int) -> None:
    called: list[int] = []
    found: list[int] = []

    def call(item: int) -> int:
        called.append(item)
        return item

    for result in in_parallel(workers, "test", call, range(30), ahead):
        found.append(result)
        assert len(called) <= len(found) + ahead
    assert found == list(range(30))


def test_no_more_items_run_at_once_than_workers() -> None:
    inside, together = threading.Semaphore(3), threading.Barrier(3)
    too_many: list[bool] = []

    def call(_: int) -> None:
        too_many.append(not inside.acquire(blocking=False))
        together.wait(30)
        inside.release()

    list(in_parallel(3, "test", call, range(9)))
    assert too_many == [False] * 9


@pytest.mark.parametrize("workers", [1, 3])
def test_first_error_in_order_is_raised_and_ends_the_work(workers: int) -> None:
    called: list[int] = []

    def call(item: int) -> int:
        called.append(item)
        if item >= 2:
            raise ValueError(f"number {item}")
        return item

    before = set(threading.enumerate())
    found: list[int] = []
    with pytest.raises(ValueError, match="number 2"):
        found.extend(in_parallel(workers, "test", call, range(1000)))
    assert set(threading.enumerate()) <= before
    assert len(called) < 1000


def test_unfinished_iteration_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    results = in_parallel(2, "test-left", lambda item: item, range(50))
    assert next(results) == 0
    del results
    assert set(threading.enumerate()) <= before


# -- stream_in_parallel ------------------------------------------------------------------------------------


def streamed(
    workers: int, function: Callable[[int], Iterator[int]], items: Iterator[int], size: int = 10
) -> Generator[int, None, None]:
    return stream_in_parallel(workers, "test", function, items, size_of=lambda _: 1, buffer_size=size)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 5), st.integers(1, 5))
def test_streams_are_in_the_order_of_the_items(items: list[int], workers: int, size: int) -> None:
    found = list(streamed(workers, lambda item: iter(range(item)), iter(items), size))
    assert found == [number for item in items for number in range(item)]


def test_streams_wait_for_those_before_them() -> None:
    produced = [0, 0, 0, 0]
    first = threading.Event()

    def produce(item: int) -> Iterator[int]:
        for number in range(100):
            produced[item] += 1
            if item == 0 and number == 0:
                first.wait(30)
            yield number

    results = streamed(2, produce, iter(range(4)), size=10)

    def release() -> None:
        until(lambda: produced[1] == 11)
        first.set()

    waiter = threading.Thread(target=release)
    waiter.start()
    assert next(results) == 0
    waiter.join()
    # The second has filled its buffer and holds one more; the third has not begun.
    assert produced[2:] == [0, 0]
    assert len(list(results)) == 399


def test_streamed_items_are_read_only_as_needed() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            read.append(item)
            yield item

    results = streamed(2, lambda item: iter([item]), items())
    assert next(results) == 0
    assert len(read) <= 5
    results.close()
    assert len(read) <= 5


def test_closing_a_stream_stops_its_threads() -> None:
    before = threading.active_count()

    def endless(item: int) -> Iterator[int]:
        while True:
            yield item

    results = streamed(3, endless, iter(range(10)), size=5)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def test_streams_raise_the_first_error_in_order() -> None:
    def fail(item: int) -> Iterator[int]:
        yield item
        if item:
            raise ValueError(item)

    results = streamed(4, fail, iter(range(5)))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="1"):
        next(results)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
