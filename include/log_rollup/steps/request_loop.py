"""An event loop for S3 requests: bounds what is in flight, retries failures, and slows down when S3 asks."""

import heapq
import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from include.log_rollup import limits
from include.log_rollup.backoff import seconds_until_next_try
from include.log_rollup.errors import (
    ChangedBufferError,
    InputChangedError,
    ThrottledError,
    TransientError,
)
from include.log_rollup.storage.protocol import Cancellable, Transfer

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

# How often requests are compared with their time limits.
TICK_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Request(ABC, Generic[R]):
    """One S3 request over all its tries. Each kind defines how it is sent and what its result means."""

    operation: ClassVar[str]
    slowest_bytes_per_second: ClassVar[int] = limits.SLOWEST_BODY_BYTES_PER_SECOND

    attempts: int = field(default=0, init=False)
    deadline: float = field(default=0.0, init=False)
    handle: Cancellable | None = field(default=None, init=False)

    @property
    @abstractmethod
    def size(self) -> int:
        """How many bytes move, which extends the time limit."""

    @abstractmethod
    def send(self, transfer: Transfer, done: Callable[[R | Exception], None]) -> Cancellable:
        """Start one try."""

    @abstractmethod
    def handle_result(self, result: R | Exception) -> Exception | None:
        """Act on the result of a try.

        :returns: why the try failed; None if the request has ended
        """

    def next_try(self) -> "Request[Any]":
        """The request to send after a failed try."""
        return self

    @abstractmethod
    def __str__(self) -> str:
        """Operation and key, for the log."""


class RequestLimit:
    """How many requests may be in flight: halved when S3 throttles, raised a little with each success.

    :param most: the limit as long as S3 doesn't throttle
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._paused_until = 0.0

    @property
    def value(self) -> int:
        """The limit at the moment, at least 1."""
        return max(1, int(self._limit))

    @property
    def is_reduced(self) -> bool:
        """Whether it is below ``most``, because S3 throttled."""
        return self._limit < self._most

    def allows(self, in_flight: int, now: float) -> bool:
        """Whether one more request may be sent."""
        return in_flight < self.value and now >= self._paused_until

    def pause_seconds(self, now: float) -> float:
        """How long nothing may be sent; 0 or less if something may."""
        return self._paused_until - now

    def succeeded(self) -> None:
        """Raise the limit after a success."""
        self._limit = min(self._limit + 0.1, self._most)

    def throttled(self, now: float, wait_seconds: float) -> None:
        """Halve the limit and pause, once for each burst of throttled answers."""
        if now >= self._paused_until:
            self._limit = max(1.0, self._limit / 2)
            self._paused_until = now + min(wait_seconds, 1.0)


@dataclass(slots=True)
class _TryEnded:
    """A try of a request has ended."""

    request: Request[Any]
    result: Any


@dataclass(slots=True)
class _CallEnded:
    """A function that ran on another thread has ended."""

    future: "Future[Any]"
    then: Callable[[Any], None]


class RequestLoop:
    """Sends requests over one transfer until it is stopped or one of them fails for good.

    Everything runs on the thread of :meth:`run`, except functions given to :meth:`call`. Results arrive as
    events and are handled one at a time; handling one may queue more requests. Requests that were queued or wait
    for a retry go before new ones.

    :param transfer: its ``connections`` bound how many requests are in flight
    :param time_limit_seconds: of one try, by its size in bytes and the slowest acceptable bytes per second
    """

    def __init__(self, transfer: Transfer, time_limit_seconds: Callable[[int, int], float]) -> None:
        self._transfer = transfer
        self._time_limit_seconds = time_limit_seconds
        # A few more than there are connections, so that no connection waits for this thread to wake up.
        self.limit = RequestLimit(transfer.connections + transfer.connections // 2 + 1)
        self._events: deque[_TryEnded | _CallEnded] = deque()
        # A dict for its order: the simulation replays a run only if requests are cancelled in the same order.
        self._in_flight: dict[Request[Any], None] = {}
        # A heap by due time, then by the order of queueing.
        self._queue: list[tuple[float, int, Request[Any]]] = []
        self._order = itertools.count()
        self._stopped = False
        self.retries = self.throttles = 0
        self.sent = Counter({"GET": 0, "PUT": 0})
        """How many tries were sent, by operation."""

    def run(self, new_requests: Iterator[Request[Any] | None]) -> None:
        """Send and handle requests until :meth:`stop` is called.

        :param new_requests: sent when nothing that is queued is due; yields None where it can't continue yet
        :raises RollupError: the first failure that a retry can't fix, or that is left after the last try
        """
        next_tick = time.monotonic() + TICK_SECONDS
        while not self._stopped:
            now = time.monotonic()
            self._send_due(now)
            self._send_new(now, new_requests)
            if not self._events:
                self._transfer.wait(self._idle_seconds(now))
            while self._events and not self._stopped:
                self._handle(self._events.popleft())
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_SECONDS
                self._cancel_stalled()

    def stop(self) -> None:
        """Let :meth:`run` return; later events are dropped."""
        self._stopped = True

    def close(self) -> None:
        """Cancel what is in flight: nothing may write into a buffer or the bucket any more."""
        for request in self._in_flight:
            if request.handle is not None:
                request.handle.cancel()
                # A traceback that keeps the request alive must not keep the transfer's buffers alive.
                request.handle = None
        self._in_flight.clear()
        self._events.clear()

    def queue(self, request: Request[Any], due: float = 0.0) -> None:
        """Send a request before all new ones.

        :param due: not before this time of the monotonic clock
        """
        heapq.heappush(self._queue, (due, next(self._order), request))

    def call(self, executor: Executor, function: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run a function on another thread.

        :param then: called on the loop's thread with the result; an error ends the loop
        """

        def ended(future: "Future[T]") -> None:
            if not future.cancelled():
                self._events.append(_CallEnded(future, then))
                self._transfer.wake()

        executor.submit(function).add_done_callback(ended)

    # -- sending ---------------------------------------------------------------------------------------

    def _send_due(self, now: float) -> None:
        while self._is_due(now) and self.limit.allows(len(self._in_flight), now):
            self._send(heapq.heappop(self._queue)[2])

    def _send_new(self, now: float, new_requests: Iterator[Request[Any] | None]) -> None:
        while not self._is_due(now) and self.limit.allows(len(self._in_flight), now):
            request = next(new_requests, None)
            if request is None:
                return
            self._send(request)

    def _is_due(self, now: float) -> bool:
        return bool(self._queue) and self._queue[0][0] <= now

    def _send(self, request: Request[Any]) -> None:
        request.attempts += 1
        self.sent[request.operation] += 1
        request.handle = request.send(self._transfer, partial(self._ended, request))
        limit = self._time_limit_seconds(request.size, request.slowest_bytes_per_second)
        request.deadline = time.monotonic() + limit
        self._in_flight[request] = None

    def _ended(self, request: Request[Any], result: Any) -> None:
        self._events.append(_TryEnded(request, result))

    def _idle_seconds(self, now: float) -> float:
        """How long to wait for an event: until something may be sent again, or the next tick."""
        if len(self._in_flight) >= self.limit.value:
            return TICK_SECONDS
        due = self._queue[0][0] - now if self._queue else TICK_SECONDS
        return min(max(due, self.limit.pause_seconds(now), 0.001), TICK_SECONDS)

    def _cancel_stalled(self) -> None:
        now = time.monotonic()
        for request in list(self._in_flight):
            if now > request.deadline and request.handle is not None:
                log.warning("no complete answer in time, trying again: %s", request)
                # Its callback comes with a transient error, which queues it for a retry.
                request.handle.cancel()

    # -- results ---------------------------------------------------------------------------------------

    def _handle(self, event: _TryEnded | _CallEnded) -> None:
        if isinstance(event, _CallEnded):
            event.then(event.future.result())
            return
        request, result = event.request, event.result
        self._in_flight.pop(request, None)
        request.handle = None
        error = request.handle_result(result)
        if error is not None:
            self._retry(request, error)
        elif not isinstance(result, Exception):
            self.limit.succeeded()

    def _retry(self, request: Request[Any], error: Exception) -> None:
        """Queue a request again.

        :raises Exception: the error, if a retry can't fix it or this was the last try
        """
        if not _may_pass(request, error):
            raise error
        if request.attempts >= limits.REQUEST_TRIES:
            raise type(error)(f"{error} (after {request.attempts} tries)") from error
        self.retries += 1
        wait = _wait_seconds(request.attempts, error)
        now = time.monotonic()
        if isinstance(error, ThrottledError):
            self.throttles += 1
            self.limit.throttled(now, wait)
        log.debug("retry %d in %.1f s: %s", request.attempts, wait, error)
        self.queue(request.next_try(), now + wait)


def _may_pass(request: Request[Any], error: Exception) -> bool:
    """Whether a retry can fix an error. A changed object counts only if two answers in a row say so."""
    if isinstance(error, InputChangedError):
        return request.attempts == 1
    return isinstance(error, TransientError) and not isinstance(error, ChangedBufferError)


def _wait_seconds(attempts: int, error: Exception) -> float:
    """How long to wait before the next try: exponential with jitter, or longer if S3 says so (Retry-After)."""
    most = limits.REQUEST_LONGEST_WAIT_SECONDS
    wait = seconds_until_next_try(limits.REQUEST_FIRST_WAIT_SECONDS, attempts, most)
    retry_after = error.retry_after if isinstance(error, TransientError) else None
    return wait if retry_after is None else max(wait, min(retry_after, most))
