"""Checks of the last phase: the complete hour, the commands that only read, and justified failures."""

from collections.abc import Callable
from typing import Any

from include.log_rollup.queries import late, verify
from include.log_rollup.steps import wait_for_raw_hour
from simulation.client import Client
from simulation.quirks import UNUSABLE, ListingFault
from simulation.scheduler import Task
from simulation.server import DAMAGE, FOREIGN
from simulation.world import AGGREGATED, HOUR, OUR_PART_NAME, RAW, World

# Connections of a step that only reads.
READER_CONNECTIONS = 4


class FinalChecks:
    """Checks of an hour in which nothing interferes any more."""

    def __init__(self, world: World) -> None:
        self._world = world

    def check_complete_hour(self, clears: int) -> None:
        """Check an hour that a run has completed.

        :param clears: runs that failed before it
        """
        world, hour = self._world, self._world.hour
        objects, checker, seen = world.server.objects, world.checker, world.seen
        seen["completed"] = 1
        seen[f"clears needed at the end: {clears + 1}"] = 1
        for problem in checker.violations(final=True):
            checker.fail(f"at the end: {problem}")
        checker.problems += checker.unrecorded_last_copies()
        named = self._parts_in_manifest()
        left = [key for key in objects if hour.is_part_like(key) and key not in named]
        if not checker.problems:
            self._check_queries(stray_parts=bool(left))
        if any(upload.author != FOREIGN for upload in world.server.uploads.values()):
            seen["an upload is left"] = 1
        if any(objects[key].task for key in left):
            seen["a stray part is left"] = 1
        if any(key.startswith(hour.work) and objects[key].task for key in objects):
            seen["records of a plan are left"] = 1

    def _check_queries(self, *, stray_parts: bool) -> None:
        """Late checks and ``verify`` must find nothing wrong with the complete hour."""
        world = self._world
        result = self._run_step("late", lambda client: late.find_changed_hours(client, world.stream, [HOUR]))
        if (result.complete, len(result.changed), len(result.unclear)) != (1, 0, 0):
            world.checker.fail(f"find_changed_hours finds {result} in a complete hour")
        verified = self._run_step(
            "verify",
            lambda client: verify.verify_hour(client, world.stream, HOUR, deep=world.rng.random() < 0.5),
        )
        marker = world.server.objects[world.hour.marker]
        if verified.problems and not stray_parts and marker.author != DAMAGE:
            world.checker.fail(f"verify_hour finds {verified.problems[0]} in a complete hour")

    def check_sensor(self) -> None:
        """The sensor must see the raw hour as it is, whatever its machine's clock."""
        world, stream = self._world, self._world.stream
        rule = wait_for_raw_hour.SettleRule(stream.quiet_period, stream.ready_object, stream.allow_empty)
        paths = stream.at(HOUR)
        found = self._run_step("settle", lambda client: wait_for_raw_hour.check_raw_hour(client, paths, rule))
        raw = [stored for key, stored in world.server.objects.items() if key.startswith(RAW)]
        quiet = stream.quiet_period.total_seconds()
        now, end = world.server.epoch_seconds(), paths.end.timestamp()
        if stream.ready_object:
            ready = RAW + stream.ready_object in world.server.objects
            expected = "settled" if ready else "waiting for the ready object"
        elif now < end:
            expected = "not ended"
        elif raw:
            newest = max(stored.modified for stored in raw)
            expected = "settled" if now - newest >= quiet else "being written"
        else:
            expected = "settled" if stream.allow_empty and now - end >= quiet else "empty"
        world.seen[f"the raw hour is {expected}"] = 1
        if found.status != expected or found.objects != len(raw):
            world.checker.fail(f"the sensor sees {found.objects} objects, {found.status}; it is {expected}")

    def _run_step(self, name: str, step: Callable[[Client], Any]) -> Any:
        """Run a step that only reads, with no other task running."""
        world = self._world
        results: list[Any] = []
        clock = world.clock()
        control = world.settings.control_connections
        Task(
            world.scheduler,
            name,
            name,
            lambda task: step(Client(world.server, world.scheduler, task, READER_CONNECTIONS, control)),
            lambda task, result: results.append(result),
            clock,
        )
        world.scheduler.run()
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    def _parts_in_manifest(self) -> set[str]:
        stored = self._world.server.objects.get(self._world.hour.manifest)
        manifest = self._world.checker.read_manifest(stored) if stored else None
        return set() if manifest is None else {AGGREGATED + name for name in manifest.by_part()}

    def is_justified(self, error: BaseException) -> bool:
        """Whether the state of the hour justifies that a run fails with this error."""
        world = self._world
        objects = world.server.objects
        name = type(error).__name__
        inputs = [
            key for key in objects if key.startswith(RAW) and world.hour.is_input(key, len(objects[key].body))
        ]
        if name == "VanishedInputError":
            return world.vanished_any
        if name == "UnreadableRecordError":
            # A foreign object named like one of our parts, and in no record, could be one of ours.
            foreign = [key for key, stored in objects.items() if stored.author == FOREIGN]
            return world.checker.records_damaged or AGGREGATED + OUR_PART_NAME in foreign
        if name == "EmptyHourError":
            return not inputs and not world.stream.allow_empty
        if name == "ListingError":
            # A key that is listed twice and overwritten in between has two ETags.
            faults = (*UNUSABLE, ListingFault.TWICE_LATER, ListingFault.PAGES_OVERLAP)
            return world.quirks.listing in faults
        if name == "UnsupportedInputError":
            return world.has_container
        if name == "UnsupportedOperationError":
            return not world.quirks.copies and any(
                len(objects[key].body) + 1 > world.stream.part_size for key in inputs
            )
        return False
