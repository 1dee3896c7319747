"""One scenario: an hour, the runs that compete for it, and everything that interferes with them.

A scenario has three phases:

1. The hour is as producers, an older version of this project and other programs left it.
2. Runs compete. Requests fail, take effect late or twice; tasks are killed, timed out or presumed dead; runs are
   cleared; raw objects arrive late, change and expire; groups appear and vanish; records and parts are damaged;
   the compression of frames fails, and its library and settings change.
3. Nothing interferes any more. At most four clears must complete the hour, or fail for a justified reason. If
   records of groups were damaged, ``verify`` must name exactly these groups, and its remedy must repair them.
"""

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from include.log_rollup.errors import ListingError, RollupError, UnsupportedOperationError
from simulation.codec import CodecFailureError
from simulation.dag_run import DagRun
from simulation.event_log import EventLog
from simulation.expiry_run import ExpiryRun
from simulation.faults import Fate
from simulation.final_checks import FinalChecks
from simulation.patching import simulated
from simulation.quirks import UNUSABLE
from simulation.scheduler import EndlessError, Task, TimeoutInTaskError
from simulation.world import World

# Clears that must be enough once nothing interferes.
MAX_FINAL_CLEARS = 4
# The most requests of the last phase.
FINAL_STEPS = 8000
# The most runs that delayed tasks start.
MAX_RUNS = 8


@dataclass(slots=True)
class Outcome:
    """How a scenario ended.

    :param problems: violated invariants; empty if there are none
    :param seen: what occurred at least once
    :param quirks: how the server differed from S3
    """

    seed: int
    problems: list[str]
    seen: Counter[str]
    log: EventLog
    quirks: Sequence[str]


def simulate_seed(seed: int) -> Outcome:
    """Simulate the scenario of a seed."""
    logging.disable(logging.CRITICAL)
    world = World(seed)
    scenario = Scenario(world)
    with simulated(world.scheduler, world.copies_up_to, world.library):
        try:
            scenario.run()
        except EndlessError as error:
            world.checker.problems.append(f"it does not end: {error}")
        except RollupError as error:
            world.checker.problems.append(f"a step that only reads fails: {type(error).__name__}: {error}")
        finally:
            scenario.close()
            logging.disable(logging.NOTSET)
    requests = {entry.request for entry in world.log.entries if entry.key}
    fates = {entry.effect for entry in world.log.entries}.intersection(Fate)
    world.seen.update([f"request: {request}" for request in requests])
    world.seen.update([f"fate: {fate}" for fate in fates])
    return Outcome(seed, world.checker.problems, world.seen, world.log, world.quirk_names())


class Scenario:
    """The runs of one hour, and what happens to their tasks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.running: list[tuple[DagRun | ExpiryRun, Task]] = []
        self._expiries = 0
        self.runs: list[DagRun] = []
        self.tasks = 0
        world.scheduler.on_delay = self._overtake

    def close(self) -> None:
        """Kill the tasks that are still running."""
        for _, task in self.running:
            if not task.done and not task.dead:
                task.kill()

    # -- phases ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run all phases."""
        world = self.world
        for name in world.quirk_names():
            world.seen[f"quirk: {name}"] = 1
        world.seen["layout: groups"] = int(world.layout.has_groups)
        world.seen["layout: two stores"] = int(world.has_two_stores)
        world.seen["layout: compression"] = int(world.library is not None)
        world.seen["layout: recompression"] = int(
            world.library is not None and world.library.packing.recompress
        )
        world.prepare()
        for number in range(world.settings.rounds):
            if world.checker.problems:
                return
            self._compete(calm=number == 0 and world.settings.rounds > 1)
        world.scheduler.fault_rate = world.scheduler.delay_rate = 0.0
        if world.library is not None:
            world.library.calm = True
            if world.library.changes_at_end:
                world.change_packing()
        if not world.checker.problems:
            self._finish()

    def _compete(self, *, calm: bool) -> None:
        """Run several Dag runs at once with interference, or a single one undisturbed."""
        world, settings, scheduler = self.world, self.world.settings, self.world.scheduler
        library = world.library
        if library is not None:
            library.calm = calm
        span = 60 + 30 * len(world.hour.history)
        self.running = [(run, task) for run, task in self.running if not task.done and not task.dead]
        for number in range(1 if calm else settings.runs):
            self._schedule(span if number else 1, self._start_run)
        if calm:
            scheduler.fault_rate = 0.0
        else:
            scheduler.fault_rate = settings.fault_rate
            scheduler.delay_rate = settings.delay_rate
            interference = (
                (settings.kills, self._kill_task),
                (settings.timeouts, self._time_out_task),
                (settings.presumed_dead, self._presume_task_dead),
                (settings.clears, self._clear_run),
                (settings.producer_events, world.change_raw_objects),
                (settings.damages, world.damage_something),
                (settings.foreign, world.put_foreign_object),
                (world.keeping.expiries if world.can_expire else 0, world.expiry.begin),
                (world.expiry_draws.runs if world.can_expire else 0, self._start_expiry),
                (library.changes if library else 0, world.change_packing),
            )
            for count, action in interference:
                for _ in range(count):
                    self._schedule(span, action)
        scheduler.run()

    def _schedule(self, span: int, action: Callable[[], None]) -> None:
        """Do something at a random step of the next ``span`` steps."""
        self.world.scheduler.after(int(self.world.rng.random() ** 1.3 * span), action)

    def _start_run(self) -> None:
        rng = self.world.rng
        name = chr(ord("A") + len(self.runs) % 26)
        drop = self.world.settings.drop_vanished and rng.random() < 0.5
        repack = self.world.keeping.is_repacked()
        run = DagRun(self, name, clears=rng.randint(0, 2), drop_vanished=drop, repack=repack)
        self.runs.append(run)
        self.world.note("run", f"{name} begins" + (", and drops vanished objects" if drop else ""))
        run.clear()

    def _start_expiry(self) -> None:
        self._expiries += 1
        ExpiryRun(self, f"X{self._expiries}").start()

    def _finish(self) -> None:
        """Start new runs until the hour is complete; nothing interferes."""
        world = self.world
        checks = FinalChecks(world)
        world.scheduler.max_steps = world.scheduler.step + FINAL_STEPS
        if world.source.quirks.listing not in UNUSABLE:
            checks.check_sensor()
        reasons: list[BaseException | None] = []
        drop_vanished = False
        repack = world.keeping.repacks_at_end
        expires = world.keeping.expires_at_end and world.can_expire
        runs_expiry = world.expiry_draws.at_end and world.can_expire
        world.hour.packing_since = 0 if repack else world.scheduler.step
        number = clears = 0
        while clears < MAX_FINAL_CLEARS:
            run = DagRun(self, f"Z{number}", clears=0, drop_vanished=drop_vanished, repack=repack)
            number += 1
            clears += 1
            self.runs.append(run)
            world.note("run", f"{run.name} begins; nothing interferes any more")
            run.clear()
            world.scheduler.run()
            if world.checker.problems:
                return
            if run.result == "success":
                if not checks.check_complete_hour(clears):
                    continue
                if world.checker.problems:
                    return
                if runs_expiry:
                    runs_expiry = False
                    self._run_final_expiry()
                elif expires:
                    expires = False
                    self._expire_complete_hour()
                else:
                    return
                clears = 0
                continue
            reasons.append(run.error)
            if run.error is not None and checks.is_justified(run.error):
                world.seen[f"refused: {type(run.error).__name__}"] = 1
                world.checker.problems += world.checker.unrecorded_last_copies()
                if world.checker.problems or not self._apply_remedy(run.error):
                    return
                drop_vanished = world.checker.drops_vanished
        shown = "; ".join(f"{type(error).__name__}: {error}" for error in reasons[-2:])
        world.checker.fail(f"{MAX_FINAL_CLEARS} clears do not complete the hour: {shown}")

    def _expire_complete_hour(self) -> None:
        """Let raw objects of the complete hour expire; then others come late."""
        world = self.world
        world.expiry.begin(at_once=True)
        for _ in range(world.keeping.rng.randint(0, 2)):
            world.change_raw_objects()

    def _run_final_expiry(self) -> None:
        """Run the step ``expire_hour`` on the complete hour: no raw object may be left that a part holds."""
        world = self.world
        run = ExpiryRun(self, "Y")
        run.start()
        world.scheduler.run()
        result = run.result
        if isinstance(result, ListingError | UnsupportedOperationError):
            return
        if "it is archived, so that its bytes cannot be read" in getattr(result, "reason", ""):
            # Its raw objects stay, too.
            world.note("expiry leaves archived parts alone", "")
            return
        state = getattr(result, "state", None)
        if state != "expired":
            world.checker.fail(f"the expiry of a complete hour ends with {result!r}")
        elif world.source.quirks.listed_etags:
            for key in world.checker.held_raw_objects():
                world.checker.fail(f"{key} did not expire, although a part holds it")

    def _apply_remedy(self, error: BaseException) -> bool:
        """Sometimes do what an error message says; returns whether anything was done."""
        world = self.world
        name = type(error).__name__
        if "these parts are not as they were proven" in str(error):
            # Only a copy of them would help, which nobody has.
            return False
        if name == "VanishedInputError" and world.rng.random() < 0.3:
            world.note("remedy", "drop vanished objects")
            world.hour.drops_vanished = True
            return True
        if name == "UnreadableRecordError" and not world.vanished_any and not world.hour.expired:
            world.note("remedy", "move the parts, the manifest, _SUCCESS and _expired.json away")
            hour = world.hour
            parts = [key for key in world.server.objects if hour.is_part_like(key)]
            # The markers first: they promise what the others hold. That of the hour promises those of its groups.
            records = sorted(
                hour.records, key=lambda key: (key != hour.marker, not key.endswith("_SUCCESS"), key)
            )
            expiry = world.server.objects.get(hour.expiry_record)
            for key in (*records, *parts, *([expiry.key] if expiry else [])):
                world.server.remove(key)
            return True
        return False

    # -- tasks and runs --------------------------------------------------------------------------------

    def task_ended(self, task: Task, result: Any) -> None:
        """Count how a task ended, and report errors that the pipeline does not raise on purpose."""
        world = self.world
        if isinstance(result, BaseException):
            world.seen[f"{task.kind} ended with {type(result).__name__}"] = 1
            if not isinstance(result, RollupError | TimeoutInTaskError | CodecFailureError):
                trace = "".join(traceback.format_exception(result)[-6:])
                world.checker.fail(f"{task.name} raised {type(result).__name__}: {result}\n{trace}")
        else:
            world.seen[f"{task.kind} succeeded"] = 1

    def kill(self, task: Task) -> None:
        """Kill the process of a task."""
        self.world.note("kill", task.name)
        task.kill()

    def _random_task(self) -> tuple[DagRun | ExpiryRun, Task] | None:
        alive = [(run, task) for run, task in self.running if not task.done and not task.dead]
        return self.world.rng.choice(alive) if alive else None

    def _kill_task(self) -> None:
        found = self._random_task()
        if found:
            run, task = found
            self.kill(task)
            run.presume_dead(task)

    def _time_out_task(self) -> None:
        found = self._random_task()
        if found:
            self.world.note("time out", found[1].name)
            found[1].time_out()

    def _presume_task_dead(self) -> None:
        found = self._random_task()
        if found:
            run, task = found
            self.world.note("presumed dead", task.name)
            run.presume_dead(task)

    def _clear_run(self) -> None:
        if self.runs:
            run = self.world.rng.choice(self.runs)
            run.clear(self.world.rng.choice(("plan", "plan", "plan", "pack", "validate", "complete")))

    def _overtake(self) -> None:
        """While a task is delayed: change the raw hour, and start another run."""
        if self.world.rng.random() < 0.6:
            self.world.change_raw_objects()
        if self.world.rng.random() < 0.7 and len(self.runs) < MAX_RUNS:
            self._start_run()
