"""Parallel calls: results in order, no more at once than allowed, and no threads left after an error."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.parallel import in_parallel


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
