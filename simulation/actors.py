"""Tasks that run in turns: a scheduler picks who makes the next request, and lets some die at any of them.

Each task is a greenlet. It gives way at every request, so that the scheduler can interleave the requests of all
tasks in any order, from one random number generator. Time is simulated. What the pipeline's modules know as
``time``, ``random``, ``secrets``, ``datetime``, ``threading`` and ``ThreadPoolExecutor`` is replaced while a life
is simulated; a thread is then another greenlet of its task.
"""

import heapq
import importlib
import pkgutil
import random
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from greenlet import getcurrent, greenlet

import include.log_rollup as pipeline
from include.log_rollup import monitor
from include.log_rollup.steps import packer
from simulation.store import Fate
from simulation.story import Story

if TYPE_CHECKING:
    from simulation.store import SimulatedTransfer

# When every life begins.
BEGIN = datetime(2026, 11, 23, 12, tzinfo=UTC)
# A request takes this long; waits take what they take.
REQUEST_SECONDS = 0.02
# Of an object that is copied in several requests.
COPY_RANGE_BYTES = 16
# A life that makes more requests than this does not end.
MAX_STEPS = 20_000


class KilledError(BaseException):
    """The process of a task has died: nothing that it still tries has any effect."""


class TimeoutInTaskError(BaseException):
    """The task is ended from outside, as Airflow does; it may still clean up."""


class EndlessError(Exception):
    """A life takes more requests than any may."""


class Turn(Protocol):
    """Something that the scheduler may let go on."""

    task: "Task"

    def go(self) -> None:
        """Go on until the next request."""


class Strand:
    """One greenlet of a task."""

    def __init__(self, scheduler: "Scheduler", task: "Task", work: Callable[[], None]) -> None:
        self.task = task
        # Counts the times it was enabled, so that an old alarm does not wake it.
        self.ticket = 0
        self._scheduler = scheduler
        self.greenlet = _Greenlet(self._run, scheduler.main)
        self.greenlet.strand = self
        self._work = work
        task.strands.append(self)

    def go(self) -> None:
        """Run until its next request."""
        self.greenlet.switch()

    def _run(self) -> None:
        try:
            self._work()
        except KilledError:
            pass
        finally:
            self.task.strands.remove(self)


class _Greenlet(greenlet):
    strand: Strand


class Task:
    """One try of a step in a process of its own.

    :param name: for people, such as ``B.pack-1#2``
    :param kind: ``plan``, ``pack``, ``validate`` or ``complete``
    :param ended: called with its result or error, unless it is killed
    :param clock_seconds: how far its machine's clock is ahead
    """

    def __init__(
        self,
        scheduler: "Scheduler",
        name: str,
        kind: str,
        work: Callable[["Task"], Any],
        ended: Callable[["Task", Any], None],
        clock_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.kind = kind
        self.clock_seconds = clock_seconds
        self.started = scheduler.step
        self.dead = self.done = False
        # Once in its life it may be held up for long: before one of its requests, or before one that writes.
        self.requests = self.writes = 0
        held_up = scheduler.chance(scheduler.hold_ups)
        by_writes = scheduler.chance(0.6)
        self.held_up_at = 1 + scheduler.number(30) if held_up and not by_writes else 0
        self.held_up_at_write = 1 + scheduler.number(8) if held_up and by_writes else 0
        self.held_up_for = 50 + scheduler.number(500)
        self.interrupt: BaseException | None = None
        self.strands: list[Strand] = []
        self.transfers: list[SimulatedTransfer] = []
        self._scheduler = scheduler
        self._work = work
        self._ended = ended
        self.main = Strand(scheduler, self, self._run)
        scheduler.enable(self.main)

    def _run(self) -> None:
        scheduler = self._scheduler
        self.started = scheduler.step
        result: Any
        try:
            result = self._work(self)
        except (Exception, TimeoutInTaskError) as error:
            result = error
        if self.dead:
            return
        self.done = True
        told = f"{type(result).__name__}: {result}" if isinstance(result, BaseException) else "success"
        scheduler.story.add(self.name, "END", "", told)
        self._ended(self, result)

    def kill(self) -> None:
        """Have its process die: what is under way may still take effect, but it learns nothing of it."""
        self.dead = True
        for strand in list(self.strands):
            strand.ticket += 1
            self._scheduler.forget(strand)
            if strand.greenlet:
                strand.greenlet.throw(KilledError)
        for transfer in self.transfers:
            for flight in list(transfer.in_flight):
                flight.abandon()

    def time_out(self) -> None:
        """End it from outside at its next request; it may clean up."""
        self.interrupt = TimeoutInTaskError(f"{self.name} timed out")


class Scheduler:
    """Decides whose request comes next.

    For some time a part of the tasks is frozen, so that others get far ahead of them.

    :param rng: the only source of chance
    :param longest_pause: for how many steps a task is frozen at most
    """

    def __init__(self, rng: random.Random, story: Story, longest_pause: int = 120) -> None:
        self.rng = rng
        self.story = story
        # How likely a request goes wrong.
        self.fault_rate = 0.0
        # How many of the tasks are held up for long.
        self.hold_ups = 0.0
        # What the world does when one is.
        self.held_up: Callable[[], None] = _nothing
        self._longest_pause = longest_pause
        self.main = getcurrent()
        self.step = 0
        self.now = 0.0
        self.max_steps = MAX_STEPS
        # Set when something is wrong: the life ends.
        self.stopped = False
        self._turns: list[Turn] = []
        self._alarms: list[tuple[float, int, int, Strand]] = []
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0
        self._frozen: set[Task] = set()
        self._thaw_at = 0
        story.clock = self

    # -- chance ----------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def number(self, below: int) -> int:
        """A whole number from 0 up to one less than this."""
        return int(self.rng.random() * below)

    def fate(self, fates: tuple[Fate, ...], *, writes: bool) -> Fate:
        """What becomes of a request. Those that write go wrong more often: that is where it matters."""
        if self.fault_rate and self.rng.random() < self.fault_rate * (3 if writes else 1):
            return fates[self.number(len(fates))]
        return Fate.DONE

    # -- time ------------------------------------------------------------------------------------------

    def wall_clock(self, ahead: float = 0.0) -> float:
        """Epoch seconds by a clock that is ahead by some seconds."""
        return BEGIN.timestamp() + self.now + ahead

    # -- for tasks -------------------------------------------------------------------------------------

    def current(self) -> Strand:
        """The strand that runs."""
        running = getcurrent()
        assert isinstance(running, _Greenlet)
        return running.strand

    def pause(self, *, writes: bool = False, decisive: bool = False) -> None:
        """Give way to the others, before a request."""
        strand = self.current()
        self._check(strand)
        self.request(strand, writes=writes, decisive=decisive)
        self.main.switch()
        self._check(strand)

    def sleep(self, seconds: float) -> None:
        """Wait until the strand is enabled by another, or the time is over."""
        strand = self.current()
        self._check(strand)
        self._serial += 1
        heapq.heappush(self._alarms, (self.now + seconds, self._serial, strand.ticket, strand))
        self.main.switch()
        self._check(strand)

    def block(self, waiters: list[Strand]) -> None:
        """Wait until the strand is enabled by another, which finds it in this list."""
        strand = self.current()
        self._check(strand)
        waiters.append(strand)
        self.main.switch()
        self._check(strand)

    def enable(self, turn: "Turn") -> None:
        """Let something go on when its turn comes."""
        if isinstance(turn, Strand):
            if turn.task.dead:
                return
            turn.ticket += 1
        self._turns.append(turn)

    def request(self, turn: "Turn", *, writes: bool, decisive: bool = False) -> None:
        """As :meth:`enable`, for what is about to make a request; the task may be held up there.

        :param decisive: whether it is one of those that keep competing runs apart
        """
        task = turn.task
        task.requests += 1
        task.writes += writes
        if (
            task.requests == task.held_up_at
            or (writes and task.writes == task.held_up_at_write)
            or (decisive and self.hold_ups and self.chance(self.hold_ups / 3))
        ):
            self.after(self.number(20), self.held_up)
            self.story.add("*", "HELD UP", task.name, f"for {task.held_up_for} steps")

            def go_on() -> None:
                if not task.dead:
                    self.enable(turn)

            self.after(task.held_up_for, go_on)
        else:
            self.enable(turn)

    def forget(self, turn: "Turn") -> None:
        """Let something not go on."""
        if turn in self._turns:
            self._turns.remove(turn)

    def _check(self, strand: Strand) -> None:
        task = strand.task
        if task.dead:
            raise KilledError
        if task.interrupt is not None and strand is task.main:
            interrupt, task.interrupt = task.interrupt, None
            raise interrupt

    # -- for the world ---------------------------------------------------------------------------------

    def after(self, steps: int, do: Callable[[], None]) -> None:
        """Do something that many steps later, or when nothing else is going on."""
        self._serial += 1
        heapq.heappush(self._later, (self.step + steps, self._serial, do))

    def do_later(self, task: Task, what: str, effect: Callable[[], Any]) -> None:
        """Have a request take effect late, or not at all."""

        def land() -> None:
            self.story.add(task.name, "LATE", what, "takes effect now")
            try:
                effect()
            except Exception as error:
                self.story.add(task.name, "LATE", what, str(error))

        if self.chance(0.8):
            self.after(int(self.rng.random() ** 2 * 300), land)

    def run(self) -> None:
        """Let tasks go on, one request at a time, until nothing is left to do."""
        while (self._turns or self._later or self._alarms) and not self.stopped:
            self.step += 1
            self.now += REQUEST_SECONDS
            if self.step > self.max_steps:
                raise EndlessError(f"more than {self.max_steps} requests")
            if self._later and self._later[0][0] <= self.step:
                heapq.heappop(self._later)[2]()
            elif self._turns and not (self._alarms and self.rng.random() < 0.02):
                self._pick().go()
            elif self._alarms:
                self._ring()
            elif self._later:
                heapq.heappop(self._later)[2]()

    def _ring(self) -> None:
        due, _, ticket, strand = heapq.heappop(self._alarms)
        if strand.ticket == ticket and not strand.task.dead:
            self.now = max(self.now, due)
            strand.ticket += 1
            strand.go()

    def _pick(self) -> Turn:
        turns, rng = self._turns, self.rng
        if len(turns) == 1:
            return turns.pop()
        if self.step >= self._thaw_at:
            tasks = list(dict.fromkeys(turn.task for turn in turns))
            self._frozen = {task for task in tasks if rng.random() < 0.4}
            self._thaw_at = self.step + 1 + int(rng.random() ** 2 * self._longest_pause)
        index = 0
        for _ in range(6):
            index = int(rng.random() * len(turns))
            if turns[index].task not in self._frozen:
                break
        turns[index], turns[-1] = turns[-1], turns[index]
        return turns.pop()


def _nothing() -> None:
    """The world does nothing."""


# -- what stands in for threads, time and chance -----------------------------------------------------------


class _Future:
    """As a Future, for strands."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._state = "pending"
        self._result: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], object]] = []
        self.waiters: list[Strand] = []

    def begin(self) -> bool:
        if self._state == "cancelled":
            return False
        self._state = "running"
        return True

    def finish(self, result: Any, error: BaseException | None) -> None:
        self._state, self._result, self._error = "done", result, error
        self._tell()

    def _tell(self) -> None:
        waiters, self.waiters = self.waiters, []
        for strand in waiters:
            self._scheduler.enable(strand)
        for callback in self._callbacks:
            callback(self)

    def cancel(self) -> bool:
        if self._state == "pending":
            self._state = "cancelled"
            self._tell()
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


class _Executor:
    """As a ThreadPoolExecutor, with strands."""

    def __init__(self, scheduler: Scheduler, max_workers: int | None = None, *_: Any, **__: Any) -> None:
        self._scheduler = scheduler
        self._most = max_workers or 4
        self._busy = 0
        self._queue: list[tuple[_Future, Callable[..., Any], Any, Any]] = []
        self._futures: list[_Future] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> _Future:
        future = _Future(self._scheduler)
        self._futures.append(future)
        self._queue.append((future, function, args, kwargs))
        if self._busy < self._most:
            self._busy += 1
            self._scheduler.enable(Strand(self._scheduler, self._scheduler.current().task, self._work))
        return future

    def _work(self) -> None:
        try:
            while self._queue:
                future, function, args, kwargs = self._queue.pop(0)
                if future.begin():
                    result, problem = None, None
                    try:
                        result = function(*args, **kwargs)
                    except KilledError:
                        raise
                    except BaseException as error:
                        problem = error
                    future.finish(result, problem)
        finally:
            self._busy -= 1

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


class _Condition:
    """As a Condition or a Lock. Strands give way only at requests; one that holds it there keeps it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._holder: Strand | None = None
        self._depth = 0
        self._outside: list[Strand] = []
        self._inside: list[Strand] = []

    def acquire(self, *_: Any, **__: Any) -> bool:
        strand = self._scheduler.current()
        while self._holder not in (None, strand):
            self._scheduler.block(self._outside)
        self._holder = strand
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._holder = None
            self._wake(self._outside)

    def wait(self, timeout: float | None = None) -> bool:
        depth, self._depth, self._holder = self._depth, 0, None
        self._wake(self._outside)
        try:
            self._scheduler.block(self._inside)
        finally:
            self._holder, self._depth = None, 0
        self.acquire()
        self._depth = depth
        return True

    def notify(self, n: int = 1) -> None:
        woken, self._inside = self._inside[:n], self._inside[n:]
        self._wake(woken)

    def notify_all(self) -> None:
        self._wake(self._inside)

    def _wake(self, strands: list[Strand]) -> None:
        woken = list(strands)
        strands.clear()
        for strand in woken:
            self._scheduler.enable(strand)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Unwatched:
    """As the Monitor, and sees nothing."""

    def __init__(self, *_: object) -> None:
        self.peaks = monitor.Peaks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _OrderedSet(dict[Any, None]):
    """As a set, in the order of insertion, so that a life does not depend on where objects lie in memory."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__((item, None) for item in items)

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def remove(self, item: Any) -> None:
        del self[item]


class _Names(ModuleType):
    """Stands in for a module: some names are others here, the rest are the module's own."""

    def __init__(self, real: ModuleType, **names: Any) -> None:
        super().__init__(real.__name__)
        self._real = real
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Now:
    """The scheduler whose life is being simulated, for the names that stand in."""

    scheduler: Scheduler


_now = _Now()


class _Datetime(datetime):
    """The time of the task's machine."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        scheduler = _now.scheduler
        running = getcurrent()
        ahead = running.strand.task.clock_seconds if isinstance(running, _Greenlet) else 0.0
        return (BEGIN + timedelta(seconds=scheduler.now + ahead)).astimezone(tz)


def _token(bits: int) -> int:
    return _now.scheduler.rng.getrandbits(bits)


def _stand_ins() -> dict[int, Any]:
    """What stands in for what, by the identity of the original."""

    def scheduler() -> Scheduler:
        return _now.scheduler

    def condition(*_: object) -> _Condition:
        return _Condition(scheduler())

    return {
        id(time): _Names(
            time,
            monotonic=lambda: scheduler().now,
            perf_counter=lambda: scheduler().now,
            time=lambda: scheduler().wall_clock(),
            sleep=lambda seconds: scheduler().sleep(seconds),
        ),
        id(random): _Names(
            random,
            random=lambda: scheduler().rng.random(),
            uniform=lambda low, high: scheduler().rng.uniform(low, high),
        ),
        id(secrets): _Names(
            secrets,
            token_hex=lambda count=16: f"{_token(8 * count):0{2 * count}x}",
            randbits=_token,
        ),
        id(uuid): _Names(uuid, uuid4=lambda: uuid.UUID(int=_token(128), version=4)),
        id(secrets.token_hex): lambda count=16: f"{_token(8 * count):0{2 * count}x}",
        id(uuid.uuid4): lambda: uuid.UUID(int=_token(128), version=4),
        id(threading): _Names(threading, Lock=condition, RLock=condition, Condition=condition),
        id(ThreadPoolExecutor): lambda *args, **kwargs: _Executor(scheduler(), *args, **kwargs),
        id(datetime): _Datetime,
        id(monitor.Monitor): _Unwatched,
        id(monitor.check_open_file_limit): lambda *_: None,
    }


# Modules whose datetime is a type in annotations and models, not a clock.
_KEEP_DATETIME = ("streams", "layout", "protocol")


@contextmanager
def simulated(scheduler: Scheduler, copies_up_to: int | None = None) -> Iterator[None]:
    """Have the pipeline's modules use the scheduler's time, chance and threads.

    :param copies_up_to: what S3 copies in one request, in bytes; None for 5 GiB
    """
    _now.scheduler = scheduler
    changed: list[tuple[ModuleType, str, Any]] = []
    if copies_up_to is not None:
        for name, value in (("LARGEST_COPY_BYTES", copies_up_to), ("COPY_RANGE_BYTES", COPY_RANGE_BYTES)):
            changed.append((packer, name, getattr(packer, name)))
            setattr(packer, name, value)
    for module in _modules():
        for name, stand_in in _stand_ins_of(module):
            changed.append((module, name, getattr(module, name, None)))
            setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name, original in changed:
            if original is None:
                delattr(module, name)
            else:
                setattr(module, name, original)


class _Cache:
    modules: Sequence[ModuleType] = ()
    stand_ins: dict[str, Sequence[tuple[str, Any]]] = {}  # noqa: RUF012


def _modules() -> Sequence[ModuleType]:
    if not _Cache.modules:
        _Cache.modules = [
            importlib.import_module(found.name)
            for found in pkgutil.walk_packages(pipeline.__path__, f"{pipeline.__name__}.")
            if not found.name.endswith(".monitor")
        ]
    return _Cache.modules


def _stand_ins_of(module: ModuleType) -> Sequence[tuple[str, Any]]:
    found = _Cache.stand_ins.get(module.__name__)
    if found is None:
        stand_ins = _stand_ins()
        short = module.__name__.rpartition(".")[2]
        found = [
            (name, stand_ins[id(value)])
            for name, value in vars(module).items()
            if id(value) in stand_ins and not (value is datetime and short in _KEEP_DATETIME)
        ]
        if "ShardPacker" in vars(module):
            found.append(("set", _OrderedSet))
        _Cache.stand_ins[module.__name__] = found
    return found
