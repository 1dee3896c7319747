"""Runs of the step ``expire_hour``, with retries as Airflow does them."""

from typing import TYPE_CHECKING, Any, cast

from include.log_rollup.errors import TransientError
from include.log_rollup.steps.expire_hour import expire_hour
from include.log_rollup.storage.protocol import ExpiryStore
from simulation.scheduler import EXPIRE, Task, TimeoutInTaskError
from simulation.world import HOUR

if TYPE_CHECKING:
    from simulation.scenario import Scenario

# Tries of a task.
TRIES = 3


class ExpiryRun:
    """One run of the expiry of the hour.

    :param name: of the run, in the log
    """

    def __init__(self, scenario: "Scenario", name: str) -> None:
        self.name = name
        # The result of its last task, or its error.
        self.result: Any = None
        self._scenario = scenario
        self._tries = 0

    def start(self) -> None:
        """Start a task."""
        scenario, world = self._scenario, self._scenario.world
        self._tries += 1
        scenario.tasks += 1
        control = world.settings.control_connections
        stream = world.stream.model_copy(update={"expire_raw": world.expiry_draws.rules})

        def work(task: Task) -> Any:
            return expire_hour(cast(ExpiryStore, world.open_store(task, control, control)), stream, HOUR)

        def on_end(task: Task, result: Any) -> None:
            scenario.task_ended(task, result)
            self.result = result
            if isinstance(result, TransientError | TimeoutInTaskError):
                self.presume_dead(task)
            elif not isinstance(result, BaseException):
                world.note(f"expiry ends: {result.state}", result.reason)

        name = f"{self.name}.expire#{scenario.tasks}"
        task = Task(world.scheduler, name, EXPIRE, work, on_end, world.clock())
        scenario.running.append((self, task))

    def presume_dead(self, task: Task) -> None:
        """Start another task after one that has died or failed, or is believed to."""
        if self._tries < TRIES:
            scheduler = self._scenario.world.scheduler
            scheduler.after(scheduler.randbelow(80), self.start)
