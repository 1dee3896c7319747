"""A simulated Dag run of the hour, with retries and clears as Airflow does them."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from include.log_rollup.errors import TransientError
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.steps import complete_hour, pack_shard, plan_hour, validate_hour
from include.log_rollup.storage.protocol import ObjectStore
from simulation.codec import CodecFailureError
from simulation.scheduler import Task, TimeoutInTaskError
from simulation.world import HOUR

if TYPE_CHECKING:
    from simulation.scenario import Scenario

# Retries of each task.
RETRIES = 2


class DagRun:
    """One Dag run: plan, pack the shards, validate, complete.

    :param clears: how often the run is cleared after it failed
    :param repack: whether it packs the whole hour again
    """

    def __init__(
        self,
        scenario: "Scenario",
        name: str,
        *,
        clears: int,
        drop_vanished: bool = False,
        repack: bool = False,
    ) -> None:
        self.name = name
        self.drop_vanished = drop_vanished
        self.repack = repack
        self.clears = clears
        # "running", "success" or "failed".
        self.result = "running"
        self.error: BaseException | None = None
        self._scenario = scenario
        self._world = scenario.world
        self._tries: Counter[str] = Counter()
        self._generation = 0
        self._current: dict[str, Task] = {}
        self._shards: list[ShardRef] = []
        self._packed: set[int] = set()
        self._failed: set[str] = set()

    def clear(self, since: str = "plan") -> None:
        """Clear the run from a task on; running tasks are killed, timed out or left running."""
        self._generation += 1
        scheduler = self._world.scheduler
        for task in self._current.values():
            if not task.done:
                # Airflow asks a task to end and kills it seconds later, unless it can't reach its worker.
                fate = scheduler.randbelow(3)
                if fate == 0:
                    self._scenario.kill(task)
                elif fate == 1:
                    task.time_out()
                else:
                    self._world.note("left running", task.name)
        self._current.clear()
        self._tries.clear()
        self.result, self.error = "running", None
        self._world.note("clear", f"{self.name} from {since} on")
        if since == "pack" and self._shards:
            redo = self._failed or {f"pack-{ref.shard}" for ref in self._shards}
            self._packed -= {ref.shard for ref in self._shards if f"pack-{ref.shard}" in redo}
            self._failed = set()
            for ref in self._shards:
                if ref.shard not in self._packed:
                    self._start_pack(ref)
        elif since in ("validate", "complete"):
            self._failed = set()
            self._start(since)
        else:
            self._start("plan")

    def presume_dead(self, task: Task) -> None:
        """Handle a task that Airflow presumes dead, rightly or not: retry it."""
        key = self._key(task)
        if self._current.get(key) is task:
            del self._current[key]
            self._retry(key, RuntimeError(f"{task.name} was lost"))

    def _key(self, task: Task) -> str:
        return task.name.partition(".")[2].partition("#")[0]

    def _start(self, key: str) -> None:
        steps: dict[str, Callable[[ObjectStore], Any]] = {
            "plan": self._plan,
            "validate": lambda store: validate_hour.validate_hour(store, self._world.stream, HOUR),
            "complete": lambda store: complete_hour.complete_hour(store, self._world.stream, HOUR),
        }
        self._start_task(key, key, steps[key], self._world.settings.control_connections)

    def _start_pack(self, ref: ShardRef) -> None:
        self._start_task(
            f"pack-{ref.shard}",
            "pack",
            lambda store: pack_shard.pack_shard(store, self._world.stream, ref),
            1,
            ref.plan_id,
        )

    def _plan(self, store: ObjectStore) -> Any:
        if self.drop_vanished:
            self._world.hour.drops_vanished = True
        return plan_hour.plan_hour(
            store, self._world.stream, HOUR, self.name, self.drop_vanished, self.repack
        )

    def _start_task(
        self, key: str, kind: str, step: Callable[[ObjectStore], Any], control: int, plan_id: str = ""
    ) -> None:
        scenario, world = self._scenario, self._world
        generation = self._generation
        self._tries[key] += 1
        scenario.tasks += 1

        def work(task: Task) -> Any:
            connections = world.stream.max_connections if kind == "pack" else control
            return step(world.open_store(task, connections, control))

        def on_end(task: Task, result: Any) -> None:
            scenario.task_ended(task, result)
            if generation == self._generation and self._current.get(key) is task:
                del self._current[key]
                self._continue(key, kind, result)

        name = f"{self.name}.{key}#{scenario.tasks}"
        task = Task(world.scheduler, name, kind, work, on_end, world.clock(), plan_id)
        self._current[key] = task
        scenario.running.append((self, task))

    def _continue(self, key: str, kind: str, result: Any) -> None:
        """Start what follows a task: its retry, the next tasks, or the end of the run."""
        if isinstance(result, TransientError | TimeoutInTaskError | CodecFailureError):
            self._retry(key, result)
        elif isinstance(result, BaseException):
            self._fail(key, result)
        elif kind == "plan":
            self._shards, self._packed, self._failed = list(result.shards), set(), set()
            for ref in self._shards:
                self._start_pack(ref)
            if not self._shards:
                self._start("validate")
        elif kind == "pack":
            self._packed.add(int(key.partition("-")[2]))
            self._after_packing()
        elif kind == "validate":
            self._start("complete")
        else:
            self.result = "success"

    def _after_packing(self) -> None:
        if len(self._packed) == len(self._shards):
            self._start("validate")
        elif self._failed and not self._current:
            self._give_up(next(iter(self._failed)))

    def _retry(self, key: str, error: BaseException) -> None:
        if self._tries[key] > RETRIES:
            self._fail(key, error)
            return
        generation = self._generation

        def again() -> None:
            if generation == self._generation and key not in self._current:
                if key.startswith("pack-"):
                    # A shard whose parts are all kept has no task.
                    shard = int(key.partition("-")[2])
                    self._start_pack(next(ref for ref in self._shards if ref.shard == shard))
                else:
                    self._start(key)

        self._world.scheduler.after(self._world.scheduler.randbelow(80), again)

    def _fail(self, key: str, error: BaseException) -> None:
        self.error = error
        if key.startswith("pack-"):
            self._failed.add(key)
            self._after_packing()
        else:
            self._give_up(key)

    def _give_up(self, key: str) -> None:
        self.result = "failed"
        if self.clears > 0:
            self.clears -= 1
            since = key.partition("-")[0] if self._world.scheduler.chance(0.25) else "plan"
            generation = self._generation

            def clear() -> None:
                if generation == self._generation:
                    self.clear(since)

            self._world.scheduler.after(self._world.scheduler.randbelow(150), clear)
