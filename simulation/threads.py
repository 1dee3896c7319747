"""Replacements for threads, executors and locks, built on fibers."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from simulation.scheduler import Fiber, KilledError, Scheduler


class SimulatedFuture:
    """Implements what the pipeline uses of :class:`concurrent.futures.Future`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._state = "pending"
        self._result: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], object]] = []
        self.waiters: list[Fiber] = []

    def begin(self) -> bool:
        if self._state == "cancelled":
            return False
        self._state = "running"
        return True

    def finish(self, result: Any, error: BaseException | None) -> None:
        self._state, self._result, self._error = "done", result, error
        self._notify()

    def _notify(self) -> None:
        waiters, self.waiters = self.waiters, []
        for fiber in waiters:
            self._scheduler.enable(fiber)
        for callback in self._callbacks:
            callback(self)

    def cancel(self) -> bool:
        if self._state == "pending":
            self._state = "cancelled"
            self._notify()
        return self._state == "cancelled"

    def cancelled(self) -> bool:
        return self._state == "cancelled"

    def running(self) -> bool:
        return self._state == "running"

    def done(self) -> bool:
        return self._state in ("done", "cancelled")

    def result(self, timeout: float | None = None) -> Any:
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.wait()
        return self._error

    def wait(self) -> None:
        while not self.done():
            self._scheduler.block(self.waiters)

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)


class SimulatedExecutor:
    """Implements what the pipeline uses of :class:`concurrent.futures.ThreadPoolExecutor`."""

    def __init__(self, scheduler: Scheduler, max_workers: int | None = None, *_: Any, **__: Any) -> None:
        self._scheduler = scheduler
        self._max_workers = max_workers or 4
        self._workers = 0
        self._queue: list[tuple[SimulatedFuture, Callable[..., Any], Any, Any]] = []
        self._futures: list[SimulatedFuture] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SimulatedFuture:
        future = SimulatedFuture(self._scheduler)
        self._futures.append(future)
        self._queue.append((future, function, args, kwargs))
        if self._workers < self._max_workers:
            self._workers += 1
            self._scheduler.enable(Fiber(self._scheduler, self._scheduler.current().task, self._run_worker))
        return future

    def _run_worker(self) -> None:
        try:
            while self._queue:
                future, function, args, kwargs = self._queue.pop(0)
                if future.begin():
                    result, failure = None, None
                    try:
                        result = function(*args, **kwargs)
                    except KilledError:
                        raise
                    except BaseException as error:
                        failure = error
                    future.finish(result, failure)
        finally:
            self._workers -= 1

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
        futures = [self.submit(function, *items) for items in zip(*iterables, strict=False)]

        def results() -> Iterator[Any]:
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            for future in self._futures:
                future.cancel()
        if wait and not self._scheduler.current().task.dead:
            for future in self._futures:
                future.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


class SimulatedCondition:
    """Implements what the pipeline uses of :class:`threading.Condition`, Lock and RLock.

    Fibers yield only at requests, and keep the locks that they hold.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._holder: Fiber | None = None
        self._depth = 0
        self._acquiring: list[Fiber] = []
        self._waiting: list[Fiber] = []

    def acquire(self, *_: Any, **__: Any) -> bool:
        fiber = self._scheduler.current()
        while self._holder not in (None, fiber):
            self._scheduler.block(self._acquiring)
        self._holder = fiber
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._holder = None
            self._wake(self._acquiring)

    def wait(self, timeout: float | None = None) -> bool:
        depth, self._depth, self._holder = self._depth, 0, None
        self._wake(self._acquiring)
        try:
            self._scheduler.block(self._waiting)
        finally:
            self._holder, self._depth = None, 0
        self.acquire()
        self._depth = depth
        return True

    def notify(self, n: int = 1) -> None:
        woken, self._waiting = self._waiting[:n], self._waiting[n:]
        self._wake(woken)

    def notify_all(self) -> None:
        self._wake(self._waiting)

    def _wake(self, fibers: list[Fiber]) -> None:
        woken = list(fibers)
        fibers.clear()
        for fiber in woken:
            self._scheduler.enable(fiber)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
