"""Runs the tests with the marker ``overlaps`` at the same time as others: they mostly wait for Airflow."""

from collections.abc import Iterable
from concurrent import futures

import pytest

from tests.system.running import Running

MARKER = "overlaps"
# More would compete for the cores, and for SQLite's only writer.
_THREADS = 3


class OverlappingTests:
    """Starts the tests in threads, in their order. Their only fixture is ``running``.

    :param items: the selected tests; those without the marker are ignored
    """

    def __init__(self, items: Iterable[pytest.Item], running: Running) -> None:
        self._running = running
        self._pool = futures.ThreadPoolExecutor(_THREADS, "overlapping-test")
        self._ends = {
            item.nodeid: self._pool.submit(item.obj, running)
            for item in items
            if isinstance(item, pytest.Function) and item.get_closest_marker(MARKER)
        }

    def wait_for(self, item: pytest.Item) -> None:
        """Wait for the end of a test; raise its exception if it fails."""
        self._ends[item.nodeid].result()

    def wait_for_all(self) -> None:
        """Wait for the end of all tests."""
        futures.wait(self._ends.values())

    def stop(self) -> None:
        """Start no other test, and end those that run."""
        self._running.stopping.set()
        self._pool.shutdown(cancel_futures=True)
