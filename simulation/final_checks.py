"""Checks of the last phase: the complete hour, the commands that only read, and justified failures."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from include.log_rollup.queries import late, locate, verify
from include.log_rollup.steps import wait_for_raw_hour
from include.log_rollup.storage.protocol import ObjectStore
from simulation.hour_model import Manifest, is_too_large, unpacked
from simulation.quirks import UNUSABLE, ListingFault
from simulation.scheduler import Task
from simulation.server import DAMAGE, FOREIGN, ServerObject
from simulation.world import HOUR, OUR_PART_NAME, World

# Connections of a step that only reads.
READER_CONNECTIONS = 4
# How many raw objects of an hour are read back.
READ_OBJECTS = 2


class FinalChecks:
    """Checks of an hour in which nothing interferes any more."""

    def __init__(self, world: World) -> None:
        self._world = world

    def check_complete_hour(self, clears: int) -> bool:
        """Check an hour that a run has completed.

        :param clears: runs of the last phase since the hour was complete
        :returns: False if records of a group were damaged, and the remedy needs one more run
        """
        world, hour = self._world, self._world.hour
        objects, checker, seen = world.server.objects, world.checker, world.seen
        seen["completed"] = 1
        seen[f"clears needed at the end: {clears}"] = 1
        for problem in checker.violations(final=True):
            checker.fail(f"at the end: {problem}")
        groups = checker.group_violations()
        if groups and not checker.problems and self._is_excused(groups):
            return not self._repair_groups(groups)
        for problems in groups.values():
            checker.fail(f"at the end: {problems[0]}")
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
        return True

    def _is_excused(self, folders: Iterable[str]) -> bool:
        """Whether somebody has damaged a record of each of these groups, or the server has no CopyObject."""
        world = self._world
        objects = world.server.objects
        scopes = map(world.hour.scope, folders)
        return not world.quirks.copies or all(
            any(key in objects and objects[key].author == DAMAGE for key in (scope.marker, scope.manifest))
            for scope in scopes
        )

    def _repair_groups(self, groups: Mapping[str, Sequence[str]]) -> bool:
        """Do what ``verify`` says about groups whose records are damaged: remove these and the hour's marker.

        :returns: False if raw objects have vanished, so that the records can only be restored
        """
        world = self._world
        if self._run_verify(damaged_groups=set(groups)).changes.vanished:
            return False
        world.note("remedy", f"remove the records of {', '.join(groups)}")
        world.server.remove(world.hour.marker)
        for scope in map(world.hour.scope, groups):
            world.server.remove(scope.marker)
            world.server.remove(scope.manifest)
        return True

    def _check_queries(self, *, stray_parts: bool) -> None:
        """Late checks and ``verify`` must find nothing wrong with the complete hour."""
        world = self._world
        result = self._run_step("late", lambda store: late.find_changed_hours(store, world.stream, [HOUR]))
        if (result.complete, len(result.changed), len(result.unclear)) != (1, 0, 0):
            world.checker.fail(f"find_changed_hours finds {result} in a complete hour")
        verified = self._run_verify(damaged_groups=set())
        marker = world.server.objects[world.hour.marker]
        problems = [problem for problem in verified.problems if not problem.is_archived]
        if problems and not stray_parts and marker.author != DAMAGE:
            world.checker.fail(f"verify_hour finds {problems[0]} in a complete hour")
        # After a problem, no step runs any more.
        if world.library is not None and not world.checker.problems:
            self._check_reading(world.library.rng)

    def _check_reading(self, rng: random.Random) -> None:
        """The command ``cat`` must return raw objects as producers wrote them, or their content."""
        world = self._world
        manifest = self._manifest()
        objects, base = world.server.objects, world.hour.base
        newest = {row.key: row for row in manifest.rows} if manifest else {}
        rows = [row for row in newest.values() if row.crc64nvme is not None]
        rows = [row for row in rows if not objects[base + row.part].is_archived]
        for row in rng.sample(rows, min(len(rows), READ_OBJECTS)):

            def read(store: ObjectStore, key: str = row.key) -> bytes:
                return b"".join(locate.read_object(store, locate.locate(store, world.stream, key)))

            body = self._run_step("cat", read)
            version = world.checker.completion.version(row.key, row.etag)
            held = version and (version.body if row.content is None else unpacked(row.key, version.body))
            if body != held:
                world.checker.fail(f"read_object returns {body[:60]!r} for {row.key}")

    def _run_verify(self, *, damaged_groups: set[str]) -> verify.Verification:
        """Run ``verify``, which must name exactly the groups with damaged records."""
        world = self._world
        verified: verify.Verification = self._run_step(
            "verify",
            lambda store: verify.verify_hour(store, world.stream, HOUR, deep=world.rng.random() < 0.5),
        )
        named = {problem.group for problem in verified.problems if problem.group is not None}
        # A damaged marker of the hour may state wrong totals of any group.
        is_damaged = world.server.objects[world.hour.marker].author == DAMAGE
        if named != damaged_groups and not (is_damaged and named > damaged_groups):
            world.checker.fail(
                f"verify_hour finds problems of the groups {sorted(named)}; the records of "
                f"{sorted(damaged_groups)} are damaged"
            )
        return verified

    def check_sensor(self) -> None:
        """The sensor must see the raw hour as it is, whatever its machine's clock."""
        world, stream = self._world, self._world.stream
        rule = wait_for_raw_hour.SettleRule(stream.quiet_period, stream.ready_object, stream.allow_empty)
        paths = stream.at(HOUR)
        found = self._run_step("settle", lambda store: wait_for_raw_hour.check_raw_hour(store, paths, rule))
        raw = list(world.raw_objects().values())
        quiet = stream.quiet_period.total_seconds()
        now, end = world.source.epoch_seconds(), paths.end.timestamp()
        if stream.ready_object:
            ready = self._is_ready(raw, stream.ready_object)
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

    def _is_ready(self, raw: Sequence[ServerObject], ready_object: str) -> bool:
        """Whether there is the ready object; with groups, in each place that has more than placeholders."""
        hour = self._world.hour
        keys = {stored.key for stored in raw}
        if not hour.has_groups:
            return hour.places[0].raw + ready_object in keys
        used = {
            hour.place_of(stored.key).raw for stored in raw if stored.body or not stored.key.endswith("/")
        }
        return bool(used) and all(place + ready_object in keys for place in used)

    def _run_step(self, name: str, step: Callable[[ObjectStore], Any]) -> Any:
        """Run a step that only reads, with no other task running."""
        world = self._world
        results: list[Any] = []
        clock = world.clock()
        control = world.settings.control_connections
        Task(
            world.scheduler,
            name,
            name,
            lambda task: step(world.open_store(task, READER_CONNECTIONS, control)),
            lambda task, result: results.append(result),
            clock,
        )
        world.scheduler.run()
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    def _manifest(self) -> Manifest | None:
        stored = self._world.server.objects.get(self._world.hour.manifest)
        return self._world.checker.completion.read_manifest(stored) if stored else None

    def _parts_in_manifest(self) -> set[str]:
        manifest = self._manifest()
        return set() if manifest is None else {self._world.hour.base + name for name in manifest.by_part()}

    def _has_expired_after_restore(self) -> bool:
        """Whether an object expired as a version that a producer had replaced and then restored.

        If a part holds the version in between, no record tells which of the two was the last one.
        """
        history = self._world.hour.history
        return any(
            sum(version.etag == etag for version in history[key]) > 1
            for key, etag in self._world.hour.expired
        )

    def is_justified(self, error: BaseException) -> bool:
        """Whether the state of the hour justifies that a run fails with this error."""
        world = self._world
        objects = world.server.objects
        name = type(error).__name__
        raw = world.raw_objects()
        inputs = [key for key, stored in raw.items() if world.hour.is_input(key, len(stored.body))]
        if "these parts are not as they were proven" in str(error):
            return bool(world.hour.announced) and bool(world.checker.damaged_bodies)
        if name == "VanishedInputError":
            # Of a damaged part, and without the record, what has expired counts as vanished.
            is_lost = world.checker.records_damaged or bool(world.checker.damaged_bodies)
            is_lost = is_lost or world.checker.older_expired or self._has_expired_after_restore()
            return world.vanished_any or (bool(world.hour.expired) and is_lost)
        if name == "UnreadableRecordError":
            # A foreign object named like one of our parts, and in no record, could be one of ours.
            foreign = [key for key, stored in objects.items() if stored.author == FOREIGN]
            return world.checker.records_damaged or any(key.endswith(OUR_PART_NAME) for key in foreign)
        if name == "EmptyHourError":
            return not inputs and not world.stream.allow_empty
        if name == "ListingError":
            # A key that is listed twice and overwritten in between has two ETags.
            faults = (*UNUSABLE, ListingFault.TWICE_LATER, ListingFault.PAGES_OVERLAP)
            return any(server.quirks.listing in faults for server in world.servers)
        if name == "UnsupportedInputError":
            return world.has_container
        if name == "UnsupportedOperationError":
            return (
                not world.quirks.copies
                and not world.has_two_stores
                and any(is_too_large(key, len(raw[key].body), world.hour.copied_above) for key in inputs)
            )
        return False
