"""Runs simulated tasks in turns, one request at a time, in an order that a seed decides.

Each task is a greenlet. It yields before every request, so that the requests of all tasks can interleave in any
order. Time is simulated. A thread of the pipeline is another greenlet of its task.
"""

import heapq
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from greenlet import getcurrent, greenlet

from simulation.event_log import EventLog
from simulation.faults import Fate

if TYPE_CHECKING:
    from simulation.transfer import SimulatedTransfer

# When every scenario begins.
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
_START_SECONDS = START.timestamp()
# Simulated duration of a request.
REQUEST_SECONDS = 0.02
# More requests than any scenario needs.
MAX_STEPS = 40_000


# Kind of the tasks that delete raw objects.
EXPIRE = "expire"


class KilledError(BaseException):
    """Raised in a task whose process was killed; nothing it does afterwards has an effect."""


class TimeoutInTaskError(BaseException):
    """Raised in a task that Airflow ends after its time limit; it may still clean up."""


class EndlessError(Exception):
    """A scenario makes more requests than the limit."""


class Runnable(Protocol):
    """Something that the scheduler can resume."""

    task: "Task"

    def resume(self) -> None:
        """Run until the next request."""


class Fiber:
    """A greenlet of a task, in place of a thread."""

    def __init__(self, scheduler: "Scheduler", task: "Task", work: Callable[[], None]) -> None:
        self.task = task
        # Counts how often it was enabled, so that an outdated alarm does not wake it.
        self.ticket = 0
        self._scheduler = scheduler
        self.greenlet = _Greenlet(self._run, scheduler.main)
        self.greenlet.fiber = self
        self._work = work
        task.fibers.append(self)

    def resume(self) -> None:
        """Run until the next request."""
        self.greenlet.switch()

    def _run(self) -> None:
        try:
            self._work()
        except KilledError:
            pass
        finally:
            self.task.fibers.remove(self)


class _Greenlet(greenlet):
    fiber: Fiber


class Task:
    """One try of a step, in a process of its own.

    :param name: shown in the log, such as ``B.pack-1#2``
    :param kind: ``plan``, ``pack``, ``validate``, ``complete``, or the name of a step that only reads
    :param on_end: called with its result or error, unless it is killed
    :param clock_seconds: how far its machine's clock is ahead
    :param plan_id: the plan whose parts it packs; empty if it packs none
    """

    def __init__(
        self,
        scheduler: "Scheduler",
        name: str,
        kind: str,
        work: Callable[["Task"], Any],
        on_end: Callable[["Task", Any], None],
        clock_seconds: float = 0.0,
        plan_id: str = "",
    ) -> None:
        self.name = name
        self.plan_id = plan_id
        self.kind = kind
        self.clock_seconds = clock_seconds
        self.started = scheduler.step
        self.dead = self.done = False
        # A task may be delayed for long, once: before a request, or before a request that writes.
        self.requests = self.writes = 0
        delayed = scheduler.chance(scheduler.delay_rate)
        by_writes = scheduler.chance(0.6)
        self.delay_at_request = 1 + scheduler.randbelow(30) if delayed and not by_writes else 0
        self.delay_at_write = 1 + scheduler.randbelow(8) if delayed and by_writes else 0
        self.delay_steps = 50 + scheduler.randbelow(500)
        self.interrupt: BaseException | None = None
        self.fibers: list[Fiber] = []
        self.transfers: list[SimulatedTransfer] = []
        self._scheduler = scheduler
        self._work = work
        self._on_end = on_end
        self.main = Fiber(scheduler, self, self._run)
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
        ending = f"{type(result).__name__}: {result}" if isinstance(result, BaseException) else "success"
        scheduler.log.add(self.name, "END", "", ending)
        self._on_end(self, result)

    def kill(self) -> None:
        """Kill its process; requests already sent may still take effect."""
        self.dead = True
        for fiber in list(self.fibers):
            fiber.ticket += 1
            self._scheduler.forget(fiber)
            if fiber.greenlet:
                fiber.greenlet.throw(KilledError)
        for transfer in self.transfers:
            for request in list(transfer.pending):
                request.abandon()

    def time_out(self) -> None:
        """Raise :class:`TimeoutInTaskError` at its next request."""
        self.interrupt = TimeoutInTaskError(f"{self.name} timed out")


class Scheduler:
    """Decides which request comes next.

    From time to time it freezes some of the tasks, so that others get far ahead of them.

    :param rng: the only source of random numbers
    :param longest_freeze: the most steps for which a task is frozen
    """

    def __init__(self, rng: random.Random, log: EventLog, longest_freeze: int = 120) -> None:
        self.rng = rng
        self.log = log
        # Probability that a request goes wrong.
        self.fault_rate = 0.0
        # Probability that a task is delayed for long.
        self.delay_rate = 0.0
        # Called some steps after a task was delayed.
        self.on_delay: Callable[[], None] = _ignore
        self._longest_freeze = longest_freeze
        self.main = getcurrent()
        self.step = 0
        self.now = 0.0
        self.max_steps = MAX_STEPS
        # Set when an invariant is violated: the scenario ends.
        self.stopped = False
        self._runnable: list[Runnable] = []
        self._alarms: list[tuple[float, int, int, Fiber]] = []
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0
        self._frozen: set[Task] = set()
        self._unfreeze_at = 0
        log.clock = self

    # -- random numbers --------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.rng.random() < probability

    def randbelow(self, below: int) -> int:
        """Return a whole number from 0 to ``below - 1``."""
        return int(self.rng.random() * below)

    def draw_fate(self, fates: tuple[Fate, ...], *, writes: bool) -> Fate:
        """Draw what happens to a request. Writes go wrong more often, because their faults matter more."""
        if self.fault_rate and self.rng.random() < self.fault_rate * (3 if writes else 1):
            return fates[self.randbelow(len(fates))]
        return Fate.DONE

    # -- time ------------------------------------------------------------------------------------------

    def wall_clock(self, ahead: float = 0.0) -> float:
        """Return the epoch seconds of a clock that is ahead by some seconds."""
        return _START_SECONDS + self.now + ahead

    # -- for tasks -------------------------------------------------------------------------------------

    def current(self) -> Fiber:
        """Return the running fiber."""
        fiber = running_fiber()
        assert fiber is not None
        return fiber

    def pause(self, *, writes: bool = False, decisive: bool = False) -> None:
        """Yield to other fibers before a request."""
        fiber = self.current()
        self._check(fiber)
        self.request(fiber, writes=writes, decisive=decisive)
        self.main.switch()
        self._check(fiber)

    def sleep(self, seconds: float) -> None:
        """Wait until another fiber enables this one, or the time is over."""
        fiber = self.current()
        self._check(fiber)
        self._serial += 1
        heapq.heappush(self._alarms, (self.now + seconds, self._serial, fiber.ticket, fiber))
        self.main.switch()
        self._check(fiber)

    def block(self, waiters: list[Fiber]) -> None:
        """Add the running fiber to a list, and wait until another fiber enables it."""
        fiber = self.current()
        self._check(fiber)
        waiters.append(fiber)
        self.main.switch()
        self._check(fiber)

    def enable(self, runnable: "Runnable") -> None:
        """Let something run when its turn comes."""
        if isinstance(runnable, Fiber):
            if runnable.task.dead:
                return
            runnable.ticket += 1
        self._runnable.append(runnable)

    def request(self, runnable: "Runnable", *, writes: bool, decisive: bool = False) -> None:
        """Enable something that is about to make a request, perhaps after a long delay.

        :param decisive: whether competing runs are kept apart by this request
        """
        task = runnable.task
        task.requests += 1
        task.writes += writes
        if (
            task.requests == task.delay_at_request
            or (writes and task.writes == task.delay_at_write)
            or (decisive and self.delay_rate and self.chance(self.delay_rate / 3))
        ):
            self.after(self.randbelow(20), self.on_delay)
            self.log.add("*", "DELAYED", task.name, f"for {task.delay_steps} steps")

            def enable() -> None:
                if not task.dead:
                    self.enable(runnable)

            self.after(task.delay_steps, enable)
        else:
            self.enable(runnable)

    def forget(self, runnable: "Runnable") -> None:
        """Cancel a turn."""
        if runnable in self._runnable:
            self._runnable.remove(runnable)

    def _check(self, fiber: Fiber) -> None:
        task = fiber.task
        if task.dead:
            raise KilledError
        if task.interrupt is not None and fiber is task.main:
            interrupt, task.interrupt = task.interrupt, None
            raise interrupt

    # -- for the scenario ------------------------------------------------------------------------------

    def after(self, steps: int, action: Callable[[], None]) -> None:
        """Do something after a number of steps, or earlier when nothing else can run."""
        self._serial += 1
        heapq.heappush(self._later, (self.step + steps, self._serial, action))

    def apply_later(self, task: Task, what: str, effect: Callable[[], Any]) -> None:
        """Let a request take effect late, or never."""

        def apply() -> None:
            self.log.add(task.name, "LATE", what, "takes effect now")
            try:
                effect()
            except Exception as error:
                self.log.add(task.name, "LATE", what, str(error))

        if self.chance(0.8):
            self.after(int(self.rng.random() ** 2 * 300), apply)

    def run(self) -> None:
        """Run all tasks, one request at a time, until nothing is left to do."""
        while (self._runnable or self._later or self._alarms) and not self.stopped:
            self.step += 1
            self.now += REQUEST_SECONDS
            if self.step > self.max_steps:
                raise EndlessError(f"more than {self.max_steps} requests")
            if self._later and self._later[0][0] <= self.step:
                heapq.heappop(self._later)[2]()
            elif self._runnable and not (self._alarms and self.rng.random() < 0.02):
                self._pick().resume()
            elif self._alarms:
                self._run_alarm()
            elif self._later:
                heapq.heappop(self._later)[2]()

    def _run_alarm(self) -> None:
        due, _, ticket, fiber = heapq.heappop(self._alarms)
        if fiber.ticket == ticket and not fiber.task.dead:
            self.now = max(self.now, due)
            fiber.ticket += 1
            fiber.resume()

    def _pick(self) -> Runnable:
        runnables, rng = self._runnable, self.rng
        if len(runnables) == 1:
            return runnables.pop()
        if self.step >= self._unfreeze_at:
            tasks = list(dict.fromkeys(runnable.task for runnable in runnables))
            self._frozen = {task for task in tasks if rng.random() < 0.4}
            self._unfreeze_at = self.step + 1 + int(rng.random() ** 2 * self._longest_freeze)
        index = 0
        for _ in range(6):
            index = int(rng.random() * len(runnables))
            if runnables[index].task not in self._frozen:
                break
        runnables[index], runnables[-1] = runnables[-1], runnables[index]
        return runnables.pop()


def running_fiber() -> Fiber | None:
    """Return the running fiber, None outside tasks."""
    running = getcurrent()
    return running.fiber if isinstance(running, _Greenlet) else None


def _ignore() -> None:
    """Do nothing."""
