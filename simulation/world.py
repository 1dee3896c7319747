"""One life of an hour: what a seed draws, what happens, and whether it comes to a good end.

A life has three acts. First the hour is as producers, an older version of this code and other people have left
it. Then runs compete while the world interferes: requests fail, are done late or twice; tasks are killed, timed
out or taken for dead; runs are cleared; raw objects come late, change and expire; records and parts are damaged.
At last nothing interferes any more, and at most four clears have to complete the hour or give the right reason
why not.
"""

import gzip
import json
import logging
import random
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from include.log_rollup import crc
from include.log_rollup.errors import RollupError, TransientError
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.queries import late, verify
from include.log_rollup.steps import complete_hour, pack_shard, plan_hour, validate_hour, wait_for_raw_hour
from include.log_rollup.storage.protocol import Checksum, Location
from include.log_rollup.streams import Stream
from simulation.actors import EndlessError, Scheduler, Task, TimeoutInTaskError, simulated
from simulation.check import Check, Hour, Version, encoding_of
from simulation.store import (
    DAMAGE,
    FOREIGN,
    OLD_VERSION,
    PRODUCER,
    UNUSABLE,
    Checksums,
    Client,
    ETags,
    Fate,
    ListingFault,
    Order,
    Quirks,
    Server,
    StartAfter,
    Stored,
    Upload,
    flipped,
)
from simulation.story import Story

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
RAW = "raw/app/20261123/08/"
AGGREGATED = "aggregated/app/20261123/08/"
BUCKET = "logs"
# So many clears have to be enough when nothing interferes any more.
CLEARS = 4
FATES = {f"fate: {fate}" for fate in Fate}
# A name that parts of ours may have.
TAGGED = "part-00000-0123abcd.log"
ALGORITHMS = ("crc64nvme", "crc32c", "crc32", None)
FOLDERS = ("", "", "", "a/", "a/b/", "b/", "it's/", "zürich/")
NAMES = ("1.log", "2.log", "3.log", "4", "5.json", "6.LOG")
PACKED_NAMES = ("7.log.gz", "8.log.gz", "9.zst", "10.gz", "11.LOG.GZ")


@dataclass(slots=True)
class Outcome:
    """How a life ended.

    :param problems: what is wrong; empty if all is well
    :param seen: what occurred in it, each once
    """

    seed: int
    problems: list[str]
    seen: Counter[str]
    story: Story
    quirks: Sequence[str]


def live(seed: int) -> Outcome:
    """Simulate one life."""
    logging.disable(logging.CRITICAL)
    life = Life(seed)
    with simulated(life.scheduler, life.copies_up_to):
        try:
            life.run()
        except EndlessError as error:
            life.check.problems.append(f"it does not end: {error}")
        except RollupError as error:
            life.check.problems.append(f"a step that only reads fails: {type(error).__name__}: {error}")
        finally:
            life.close()
            logging.disable(logging.NOTSET)
    life.seen.update({f"request: {line.request}" for line in life.story.lines if line.key})
    life.seen.update({f"fate: {line.effect}" for line in life.story.lines} & FATES)
    return Outcome(seed, life.check.problems, life.seen, life.story, life.quirks.names())


# -- what a seed draws -------------------------------------------------------------------------------------


def draw_quirks(rng: random.Random) -> Quirks:
    """A server: often S3, often with one quirk or a few."""
    quirks = Quirks(page_size=rng.choice((1000, 1000, 3, 2, 1)))
    count = rng.choice((0, 0, 0, 0, 1, 1, 1, 2, 3))
    choices: list[Callable[[Quirks], Quirks]] = [
        lambda one: replace(one, order=rng.choice((Order.FOLDERS, Order.REVERSED))),
        lambda one: replace(
            one, start_after=rng.choice((StartAfter.IGNORED, StartAfter.FOLDER, StartAfter.INCLUSIVE))
        ),
        lambda one: replace(
            one,
            listing=rng.choice(
                (ListingFault.TWICE, ListingFault.TWICE_LATER, ListingFault.PAGES_OVERLAP, *UNUSABLE)
            ),
        ),
        lambda one: replace(one, empty_pages=True, page_size=2),
        lambda one: replace(one, listed_etags=False),
        lambda one: replace(one, etags=rng.choice((ETags.OPAQUE, ETags.MARKED))),
        lambda one: replace(one, checksums=rng.choice((Checksums.ECHOED, Checksums.NONE))),
        lambda one: replace(one, copies=False),
        lambda one: replace(one, if_match_get=False),
        lambda one: replace(one, if_match_delete=False),
        lambda one: replace(one, uploads_by_prefix=False),
        lambda one: replace(one, clock_seconds=rng.choice((-12_000.0, -4000.0, 700.0, 90_000.0))),
    ]
    for choice in rng.sample(choices, count):
        quirks = choice(quirks)
    return quirks


def draw_stream(rng: random.Random) -> Stream:
    """A stream with parts of a few bytes, which the streams file would not allow."""
    stream = Stream(
        name="app",
        raw=Location(BUCKET, "raw/app/"),
        aggregated=Location(BUCKET, "aggregated/app/"),
        start=datetime(2026, 11, 1, tzinfo=UTC),
        max_connections=rng.choice((4, 5, 8)),
    )
    part_size = rng.choice((24, 40, 40, 80))
    settings: dict[str, Any] = {
        "part_size": part_size,
        "shard_size": part_size * rng.choice((1, 2, 2, 4)),
        "allow_empty": rng.random() < 0.5,
        "ensure_newline": rng.random() < 0.4,
        "storage_class": rng.choice((None, None, "STANDARD_IA")),
        "marker": rng.choice((None, None, "DONE")),
    }
    if "check_encoding" in Stream.model_fields:
        settings["check_encoding"] = rng.random() < 0.3
    return stream.model_copy(update=settings)


@dataclass(slots=True)
class Plot:
    """How much of what happens in a life."""

    fault_rate: float
    rounds: int
    runs: int
    kills: int
    timeouts: int
    presumed_dead: int
    clears: int
    producer_events: int
    damages: int
    foreign: int
    drop_vanished: bool
    control: int
    hold_ups: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Plot":
        """Of each thing none, often; or some."""

        def some(likely: float, most: int) -> int:
            return rng.randint(1, most) if rng.random() < likely else 0

        return cls(
            fault_rate=rng.choice((0.0, 0.0, 0.01, 0.03, 0.08)),
            rounds=rng.choice((1, 1, 2, 3)),
            runs=rng.choice((1, 2, 2, 3)),
            kills=some(0.5, 3),
            timeouts=some(0.2, 2),
            presumed_dead=some(0.3, 2),
            clears=some(0.6, 4),
            producer_events=some(0.6, 4),
            damages=some(0.25, 2),
            foreign=some(0.3, 3),
            drop_vanished=rng.random() < 0.05,
            control=rng.choice((1, 1, 4)),
            hold_ups=rng.choice((0.0, 0.0, 0.1, 0.3)),
        )

    @classmethod
    def draw_race(cls, rng: random.Random) -> "Plot":
        """Runs overtake each other on a server that works, over raw objects that change in between."""
        return replace(
            cls.draw(rng),
            fault_rate=rng.choice((0.0, 0.01, 0.03)),
            runs=rng.choice((2, 2, 3)),
            timeouts=0,
            producer_events=rng.choice((1, 1, 2)),
            damages=rng.choice((0, 0, 1, 2)),
            foreign=0,
            hold_ups=rng.choice((0.2, 0.4)),
        )


class Run:
    """A Dag run of the hour, as Airflow leads it: tasks one after the other, retries, failures and clears."""

    def __init__(self, life: "Life", name: str, *, clears: int, drop_vanished: bool = False) -> None:
        self.name = name
        self.drop_vanished = drop_vanished
        self.clears = clears
        self.retries = 2
        self.result = "running"
        self.error: BaseException | None = None
        self._life = life
        self._tries: Counter[str] = Counter()
        self._generation = 0
        self._current: dict[str, Task] = {}
        self._shards: list[ShardRef] = []
        self._packed: set[int] = set()
        self._failed: set[str] = set()

    def clear(self, since: str = "plan") -> None:
        """Clear the run from a task on: what is under way is ended, one way or another."""
        self._generation += 1
        scheduler = self._life.scheduler
        for task in self._current.values():
            if not task.done:
                # Airflow tells a task to end; it is killed some seconds later, or its worker is out of reach.
                fate = scheduler.number(3)
                if fate == 0:
                    self._life.kill(task)
                elif fate == 1:
                    task.time_out()
                else:
                    self._life.note("left running", task.name)
        self._current.clear()
        self._tries.clear()
        self.result, self.error = "running", None
        self._life.note("clear", f"{self.name} from {since} on")
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

    def lost(self, task: Task) -> None:
        """Airflow takes a task for dead, rightly or not: it is tried again."""
        key = self._key(task)
        if self._current.get(key) is task:
            del self._current[key]
            self._retry(key, RuntimeError(f"{task.name} was lost"))

    def _key(self, task: Task) -> str:
        return task.name.partition(".")[2].partition("#")[0]

    def _start(self, key: str) -> None:
        steps: dict[str, Callable[[Client], Any]] = {
            "plan": self._plan,
            "validate": lambda client: validate_hour.validate_hour(client, self._life.stream, HOUR),
            "complete": lambda client: complete_hour.complete_hour(client, self._life.stream, HOUR),
        }
        self._begin(key, key, steps[key], self._life.plot.control)

    def _start_pack(self, ref: ShardRef) -> None:
        self._begin(
            f"pack-{ref.shard}",
            "pack",
            lambda client: pack_shard.pack_shard(client, self._life.stream, ref),
            1,
        )

    def _plan(self, client: Client) -> Any:
        if self.drop_vanished:
            self._life.check.drops_vanished = True
        return plan_hour.plan_hour(client, self._life.stream, HOUR, self.name, self.drop_vanished)

    def _begin(self, key: str, kind: str, step: Callable[[Client], Any], control: int) -> None:
        life = self._life
        generation = self._generation
        self._tries[key] += 1
        life.tasks += 1

        def work(task: Task) -> Any:
            connections = life.stream.max_connections if kind == "pack" else control
            return step(Client(life.server, life.scheduler, task, connections, control))

        def ended(task: Task, result: Any) -> None:
            life.judge(task, result)
            if generation == self._generation and self._current.get(key) is task:
                del self._current[key]
                self._ended(key, kind, result)

        name = f"{self.name}.{key}#{life.tasks}"
        task = Task(life.scheduler, name, kind, work, ended, life.clock())
        self._current[key] = task
        life.running.append((self, task))

    def _ended(self, key: str, kind: str, result: Any) -> None:
        if isinstance(result, TransientError | TimeoutInTaskError):
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
        if self._tries[key] > self.retries:
            self._fail(key, error)
            return
        generation = self._generation

        def again() -> None:
            if generation == self._generation and key not in self._current:
                if key.startswith("pack-"):
                    self._start_pack(self._shards[int(key.partition("-")[2])])
                else:
                    self._start(key)

        self._life.scheduler.after(self._life.scheduler.number(80), again)

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
            since = key.partition("-")[0] if self._life.scheduler.chance(0.25) else "plan"
            generation = self._generation

            def clear() -> None:
                if generation == self._generation:
                    self.clear(since)

            self._life.scheduler.after(self._life.scheduler.number(150), clear)


class Life:
    """One life of an hour."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.story = Story(AGGREGATED)
        race = rng.random() < 0.35
        self.quirks = Quirks(page_size=rng.choice((1000, 2))) if race else draw_quirks(rng)
        self.plot = Plot.draw_race(rng) if race else Plot.draw(rng)
        self.stream = draw_stream(rng)
        # Where it is given, larger objects are copied in ranges, as those above 5 GiB are on S3.
        self.copies_up_to = self.stream.part_size + 3 if rng.random() < 0.25 else None
        self.scheduler = Scheduler(rng, self.story, rng.choice((10, 60, 400)))
        self.scheduler.held_up = self._overtake
        self.server = Server(self.scheduler, BUCKET, self.quirks)
        self.hour = Hour(
            RAW, AGGREGATED, self.stream.part_size, self.stream.ensure_newline,
            self.stream.storage_class, self.stream.marker,
        )  # fmt: skip
        self.check = Check(self.server, self.scheduler, self.hour)
        self.running: list[tuple[Run, Task]] = []
        self.runs: list[Run] = []
        self.tasks = 0
        self.container = self.vanished_any = False
        self._contents = 0

    def close(self) -> None:
        """End what is still under way."""
        for _, task in self.running:
            if not task.done and not task.dead:
                task.kill()

    # -- the acts --------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it."""
        for name in self.quirks.names():
            self.seen[f"quirk: {name}"] = 1
        self._set_the_scene()
        for number in range(self.plot.rounds):
            if self.check.problems:
                return
            calm = number == 0 and self.plot.rounds > 1
            self._act(calm)
        self.scheduler.fault_rate = self.scheduler.hold_ups = 0.0
        if not self.check.problems:
            self._finish()

    def _act(self, calm: bool) -> None:
        """Some runs at once, and what interferes with them; or a single one in peace."""
        plot, scheduler = self.plot, self.scheduler
        span = 60 + 30 * len(self.hour.history)
        self.running = [(run, task) for run, task in self.running if not task.done and not task.dead]
        for number in range(1 if calm else plot.runs):
            self._some_time(span if number else 1, self._start_run)
        if calm:
            scheduler.fault_rate = 0.0
        else:
            scheduler.fault_rate = plot.fault_rate
            scheduler.hold_ups = plot.hold_ups
            interference = (
                (plot.kills, self._kill_one),
                (plot.timeouts, self._time_one_out),
                (plot.presumed_dead, self._take_one_for_dead),
                (plot.clears, self._clear_one),
                (plot.producer_events, self._produce_something),
                (plot.damages, self._damage_something),
                (plot.foreign, self._put_something_foreign),
            )
            for count, happen in interference:
                for _ in range(count):
                    self._some_time(span, happen)
        scheduler.run()

    def _some_time(self, span: int, happen: Callable[[], None]) -> None:
        self.scheduler.after(int(self.rng.random() ** 1.3 * span), happen)

    def _start_run(self) -> None:
        name = chr(ord("A") + len(self.runs) % 26)
        drop = self.plot.drop_vanished and self.rng.random() < 0.5
        run = Run(self, name, clears=self.rng.randint(0, 2), drop_vanished=drop)
        self.runs.append(run)
        self.note("run", f"{name} begins" + (", and drops what has vanished" if drop else ""))
        run.clear()

    def _finish(self) -> None:
        """Clear a run until the hour is complete; nothing interferes."""
        self.scheduler.max_steps = self.scheduler.step + 8000
        if self.quirks.listing not in UNUSABLE:
            self._check_settled()
        reasons: list[BaseException | None] = []
        drop_vanished = False
        for number in range(CLEARS):
            run = Run(self, f"Z{number}", clears=0, drop_vanished=drop_vanished)
            self.runs.append(run)
            self.note("run", f"{run.name} begins; nothing interferes any more")
            run.clear()
            self.scheduler.run()
            if self.check.problems:
                return
            if run.result == "success":
                self._judge_complete(number)
                return
            reasons.append(run.error)
            if run.error is not None and self._is_justified(run.error):
                self.seen[f"refused: {type(run.error).__name__}"] = 1
                self.check.problems += self.check.unrecorded()
                if self.check.problems or not self._remedy(run.error):
                    return
                drop_vanished = self.check.drops_vanished
        shown = "; ".join(f"{type(error).__name__}: {error}" for error in reasons[-2:])
        self.check.fail(f"{CLEARS} clears do not complete the hour: {shown}")

    def _remedy(self, error: BaseException) -> bool:
        """Do what the message says, sometimes; whether anything was done."""
        name = type(error).__name__
        if name == "VanishedInputError" and self.rng.random() < 0.3:
            self.note("remedy", "drop what has vanished")
            self.check.drops_vanished = True
            return True
        if name == "UnreadableRecordError" and not self.vanished_any:
            self.note("remedy", "move the parts and the records of completion away")
            for key in (self.hour.marker, self.hour.manifest, *self.server.objects):
                if self.hour.is_part_like(key) or key in (self.hour.manifest, self.hour.marker):
                    self.server.remove(key)
            return True
        return False

    def _judge_complete(self, clears: int) -> None:
        self.seen["completed"] = 1
        self.seen[f"clears needed at the end: {clears + 1}"] = 1
        for problem in self.check.wrong(final=True):
            self.check.fail(f"at the end: {problem}")
        self.check.problems += self.check.unrecorded()
        named = self._named_parts()
        left = [key for key in self.server.objects if self.hour.is_part_like(key) and key not in named]
        if not self.check.problems:
            self._ask_the_readers(stray_parts=bool(left))
        if any(upload.author != FOREIGN for upload in self.server.uploads.values()):
            self.seen["an upload is left"] = 1
        if any(self.server.objects[key].task for key in left):
            self.seen["a stray part is left"] = 1
        if any(
            key.startswith(self.hour.work) and self.server.objects[key].task for key in self.server.objects
        ):
            self.seen["records of a plan are left"] = 1

    def _ask_the_readers(self, *, stray_parts: bool) -> None:
        """What the steps that only read say of the complete hour."""
        looked = self._ask("late", lambda client: late.look_back(client, self.stream, [HOUR]))
        if (looked.complete, len(looked.changed), len(looked.unclear)) != (1, 0, 0):
            self.check.fail(f"look_back finds {looked} in a complete hour")
        verified = self._ask(
            "verify",
            lambda client: verify.verify_hour(client, self.stream, HOUR, deep=self.rng.random() < 0.5),
        )
        marker = self.server.objects[self.hour.marker]
        if verified.problems and not stray_parts and marker.author != DAMAGE:
            self.check.fail(f"verify_hour finds {verified.problems[0]} in a complete hour")

    def _check_settled(self) -> None:
        """What the sensor says of the raw hour, whatever the clock of its machine."""
        rule = wait_for_raw_hour.SettleRule(
            self.stream.quiet_period, self.stream.marker, self.stream.allow_empty
        )
        paths = self.stream.at(HOUR)
        found = self._ask("settle", lambda client: wait_for_raw_hour.check_raw_hour(client, paths, rule))
        raw = [stored for key, stored in self.server.objects.items() if key.startswith(RAW)]
        quiet = self.stream.quiet_period.total_seconds()
        now, end = self.server.time(), paths.end.timestamp()
        if self.stream.marker:
            wanted = (
                "settled"
                if RAW + self.stream.marker in self.server.objects
                else "waiting for the ready object"
            )
        elif now < end:
            wanted = "not ended"
        elif raw:
            newest = max(stored.modified for stored in raw)
            wanted = "settled" if now - newest >= quiet else "being written"
        else:
            wanted = "settled" if self.stream.allow_empty and now - end >= quiet else "empty"
        self.seen[f"the raw hour is {wanted}"] = 1
        if found.status != wanted or found.objects != len(raw):
            self.check.fail(f"the sensor sees {found.objects} objects, {found.status}; it is {wanted}")

    def _ask(self, name: str, step: Callable[[Client], Any]) -> Any:
        """Run a step that only reads; nothing else goes on."""
        answers: list[Any] = []
        clock = self.clock()
        Task(
            self.scheduler,
            name,
            name,
            lambda task: step(Client(self.server, self.scheduler, task, 4, self.plot.control)),
            lambda task, result: answers.append(result),
            clock,
        )
        self.scheduler.run()
        if isinstance(answers[0], BaseException):
            raise answers[0]
        return answers[0]

    def _named_parts(self) -> set[str]:
        stored = self.server.objects.get(self.hour.manifest)
        read = self.check.read_manifest(stored) if stored else None
        return set() if read is None else {AGGREGATED + name for name in read.by_part()}

    def _is_justified(self, error: BaseException) -> bool:
        """Whether the scene gives the hour reason not to be completed."""
        name = type(error).__name__
        present = [key for key in self.server.objects if key.startswith(RAW)]
        inputs = [key for key in present if self.hour.is_input(key, len(self.server.objects[key].body))]
        if name == "VanishedInputError":
            return self.vanished_any
        if name == "UnreadableRecordError":
            # What is named like a part of ours, and described by no record, might be one.
            foreign = [key for key, one in self.server.objects.items() if one.author == FOREIGN]
            return self.check.records_damaged or AGGREGATED + TAGGED in foreign
        if name == "EmptyHourError":
            return not inputs and not self.stream.allow_empty
        if name == "ListingError":
            # Where keys are listed twice, one that is written in between may have two ETags.
            return self.quirks.listing in (*UNUSABLE, ListingFault.TWICE_LATER, ListingFault.PAGES_OVERLAP)
        if name == "UnsupportedInputError":
            return self.container
        if name == "UnsupportedOperationError":
            return not self.quirks.copies and any(
                len(self.server.objects[key].body) + 1 > self.stream.part_size for key in inputs
            )
        return False

    # -- what happens ----------------------------------------------------------------------------------

    def note(self, what: str, detail: str) -> None:
        """Tell of an event, and count it."""
        self.seen[what] = 1
        self.story.add("*", what, detail, "")

    def clock(self) -> float:
        """How far the clock of some machine is ahead, in seconds."""
        return self.rng.choice((0.0, 0.0, -1000.0, 5000.0))

    def judge(self, task: Task, result: Any) -> None:
        """A task has ended: count how, and object to errors that no one raises on purpose."""
        if isinstance(result, BaseException):
            self.seen[f"{task.kind} ended with {type(result).__name__}"] = 1
            if not isinstance(result, RollupError | TimeoutInTaskError):
                trace = "".join(traceback.format_exception(result)[-6:])
                self.check.fail(f"{task.name} raised {type(result).__name__}: {result}\n{trace}")
        else:
            self.seen[f"{task.kind} succeeded"] = 1

    def kill(self, task: Task) -> None:
        """A process dies."""
        self.note("kill", task.name)
        task.kill()

    def _some_task(self) -> tuple[Run, Task] | None:
        alive = [(run, task) for run, task in self.running if not task.done and not task.dead]
        return self.rng.choice(alive) if alive else None

    def _kill_one(self) -> None:
        found = self._some_task()
        if found:
            run, task = found
            self.kill(task)
            run.lost(task)

    def _time_one_out(self) -> None:
        found = self._some_task()
        if found:
            self.note("time out", found[1].name)
            found[1].time_out()

    def _take_one_for_dead(self) -> None:
        found = self._some_task()
        if found:
            run, task = found
            self.note("taken for dead", task.name)
            run.lost(task)

    def _overtake(self) -> None:
        """While a task is held up: the raw hour changes, and another run begins."""
        if self.rng.random() < 0.6:
            self._produce_something()
        if self.rng.random() < 0.7 and len(self.runs) < 8:
            self._start_run()

    def _clear_one(self) -> None:
        if self.runs:
            run = self.rng.choice(self.runs)
            run.clear(self.rng.choice(("plan", "plan", "plan", "pack", "validate", "complete")))

    # -- producers -------------------------------------------------------------------------------------

    def produce(self, key: str, body: bytes) -> None:
        """A producer writes a raw object."""
        known = self.hour.history.setdefault(key, [])
        if known and known[-1].end is None:
            known[-1].end = self.scheduler.step
        algorithm = self.rng.choice(ALGORITHMS)
        checksum = None
        if algorithm and self.quirks.checksums is not Checksums.NONE:
            checksum = Checksum(algorithm, crc.by_algorithm(algorithm, body))
        etag = f"{self.rng.getrandbits(128):032x}-2" if self.rng.random() < 0.1 else None
        stored = self.server.store(
            key,
            body,
            PRODUCER,
            checksum=checksum,
            etag=etag,
            modified=self.server.time() - self.rng.choice((5, 7200, 7200, 7200)),
        )
        known.append(Version(key, body, stored.etag, self.scheduler.step))
        self.check.produced(key)

    def vanish(self, key: str) -> None:
        """A raw object is deleted, by a lifecycle rule perhaps."""
        version = self.hour.history[key][-1]
        if version.end is None:
            version.end = self.scheduler.step
            self.vanished_any = True
            if self.check.vanished(version):
                self.seen["a part holds the last copy"] = 1
            self.server.remove(key)

    def _content(self, key: str) -> bytes:
        """Bytes that occur nowhere else."""
        self._contents += 1
        kind = self.rng.random()
        if kind < 0.06:
            return b""
        body = f"<{self._contents}:".encode()
        if kind < 0.14:
            body += b"x" * self.stream.part_size
        else:
            body += b"." * self.rng.randint(0, 14)
        body += b">"
        if encoding_of(key) == ".gz" and self.rng.random() < 0.5:
            return gzip.compress(body, mtime=0)[: None if self.rng.random() < 0.8 else -5]
        return body + (b"\n" if self.rng.random() < 0.5 else b"")

    def _some_key(self) -> str:
        if self.rng.random() < 0.05:
            return RAW + self.rng.choice(("_tmp/1.log", ".hidden", "a/_x.log", "a/", "DONE"))
        if self.rng.random() < 0.004:
            self.container = True
            return RAW + "table.parquet"
        return RAW + self.rng.choice(FOLDERS) + self.rng.choice((*NAMES, *NAMES, *PACKED_NAMES))

    def _produce_object(self) -> str:
        key = self._some_key()
        self.produce(key, b"" if key.endswith("/") else self._content(key))
        return key

    def _produce_something(self) -> None:
        present = [key for key in self.server.objects if key.startswith(RAW)]
        what = self.rng.random()
        if what < 0.45 or not present:
            before = set(present)
            key = self._produce_object()
            self.note("raw object changed" if key in before else "late raw object", key.removeprefix(RAW))
        elif what < 0.75:
            key = self.rng.choice(present)
            earlier = [version.body for version in self.hour.history.get(key, ())[:-1]]
            if earlier and self.rng.random() < 0.5:
                self.produce(key, self.rng.choice(earlier))
                self.note("raw object changed back", key.removeprefix(RAW))
            else:
                self.produce(key, self._content(key))
                self.note("raw object changed", key.removeprefix(RAW))
        else:
            share = self.rng.choice((0.0, 0.0, 0.5, 1.0))
            gone = [key for key in present if self.rng.random() < share] or [self.rng.choice(present)]
            self.note("raw objects expire", ", ".join(key.removeprefix(RAW) for key in gone))
            for key in gone:
                self.vanish(key)

    # -- other people, and damage ----------------------------------------------------------------------

    def _put_something_foreign(self) -> None:
        rng = self.rng
        name = rng.choice(
            ("part-00000.log", "part-00001.log", "part-00001.log.snappy", TAGGED, "notes.txt",
             "_rollup/notes.txt", "_rollup/0123456789abcdef0123/notes.txt", "_metadata")
        )  # fmt: skip
        key = AGGREGATED + name
        if rng.random() < 0.2:
            prefix = AGGREGATED if rng.random() < 0.5 else "elsewhere/"
            upload = f"foreign-{self.scheduler.step}-{len(self.server.uploads)}"
            self.server.uploads[upload] = Upload(prefix + "big.bin", FOREIGN)
            self.note("foreign upload", prefix)
        elif key not in self.check.ours and key not in self.server.objects:
            self.server.store(key, f"foreign {rng.random()}".encode(), FOREIGN)
            self.note("foreign object", name)

    def _damage_something(self) -> None:
        rng, hour = self.rng, self.hour
        records = [
            key
            for key, stored in self.server.objects.items()
            if stored.author not in (FOREIGN, PRODUCER)
            # What is copied within a second is not damaged in between.
            and "/staged-" not in key
            and (key.startswith(hour.work) or key in (hour.marker, hour.manifest))
        ]
        parts = [
            key
            for key, stored in self.server.objects.items()
            if hour.is_part_like(key) and stored.author != FOREIGN
        ]
        candidates = parts if parts and rng.random() < 0.4 else records
        if rng.random() < 0.1 and hour.marker not in self.server.objects:
            self.server.store(hour.marker, b"", DAMAGE)
            self.check.records_damaged = True
            self.note("empty _SUCCESS of someone else", "")
        elif candidates:
            self._damage(rng.choice(candidates))

    def _damage(self, key: str) -> None:
        rng = self.rng
        was = self.server.objects[key]
        is_part = self.hour.is_part_like(key)
        if is_part:
            self.check.forgive(was)
        else:
            self.check.records_damaged = True
        kind = rng.choice(
            ("delete", "cut", "flip", "empty") if is_part else ("delete", "cut", "flip", "empty", "format")
        )
        self.note(f"damaged {'part' if is_part else 'record'}", f"{key.removeprefix(AGGREGATED)}: {kind}")
        self.check.damaged[key] = self.scheduler.step
        if kind == "delete":
            self.server.remove(key)
        else:
            self.server.store(key, _damaged(rng, key, was.body, kind), DAMAGE, headers=was.headers)

    # -- the first act ---------------------------------------------------------------------------------

    def _set_the_scene(self) -> None:
        rng = self.rng
        self.server.store("elsewhere/object.log", b"not ours", FOREIGN)
        self.server.store("aggregated/app/20261123/09/_SUCCESS", b"not this hour", FOREIGN)
        self.server.store("aggregated/app/20261123/09/part-00000.log", b"not this hour", FOREIGN)
        self.server.store("raw/app/20261123/09/1.log", b"not this hour", FOREIGN)
        for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 9, 12))):
            self._produce_object()
        self.scheduler.step += 1
        scene = rng.random()
        if scene < 0.2:
            self.note("completed by the old version", "")
            write_old_hour(self, complete=True)
            self.scheduler.step += 1
            if rng.random() < 0.5:
                self._produce_something()
            if rng.random() < 0.3:
                self.note("the old version was stopped", "")
                write_old_hour(self, complete=False)
        elif scene < 0.3:
            self.note("the old version was stopped", "")
            write_old_hour(self, complete=False)


def _damaged(rng: random.Random, key: str, body: bytes, kind: str) -> bytes:
    if kind == "empty" or not body:
        return b""
    if kind == "cut":
        return body[: rng.randrange(len(body))]
    if kind == "flip":
        return flipped(body, rng.randrange(8 * len(body)))
    packed = key.endswith(".gz")
    try:
        text = gzip.decompress(body).decode() if packed else body.decode()
    except (OSError, EOFError, ValueError, zlib.error):
        return b"{}"
    text = text.replace('"format":1', '"format":99').replace('"format": 1', '"format": 99')
    return gzip.compress(text.encode()) if packed else text.encode()


# -- hours of the old version ------------------------------------------------------------------------------


def write_old_hour(life: Life, *, complete: bool) -> None:
    """Write what the version before parts were named by their content left: a complete hour, or a stopped run."""
    server, hour, rng = life.server, life.hour, life.rng
    plan_id = f"{rng.getrandbits(80):020x}"
    parts = _old_parts(life)
    # As every version does: it is gone before any part changes.
    server.remove(hour.marker)
    table, rows, receipts = [], [], []
    for index, (encoding, keys, copied) in enumerate(parts):
        name = f"part-{index:05d}.log{encoding}"
        body, part_rows, packed = _old_part(life, name, keys, copied)
        if not complete and rng.random() < 0.4:
            continue
        before = server.objects.get(AGGREGATED + name)
        if before is not None:
            life.check.forgive(before)
        stored = server.store(
            AGGREGATED + name, body, OLD_VERSION,
            checksum=Checksum("crc64nvme", crc.crc64(body))
            if life.quirks.checksums is not Checksums.NONE
            else None,
        )  # fmt: skip
        value = crc.to_hex(crc.crc64(body))
        fingerprint = f"{rng.getrandbits(128):032x}"
        table.append(
            {"name": name, "encoding": encoding, "size": len(body), "etag": stored.etag, "crc64nvme": value,
             "objects": len(keys), "copied": copied, "fingerprint": fingerprint, "proof": "read-back"}
        )  # fmt: skip
        rows += part_rows
        receipts.append([name, fingerprint, len(body), stored.etag, value, None, packed])
    totals = _old_totals(life, plan_id, table, rows)
    if complete:
        header = {"format": 1, **totals, "raw_prefix": RAW, "validated_at": "2026-11-23T09:20:00+00:00",
                  "parts_table": table}  # fmt: skip
        lines = "".join(json.dumps(line) + "\n" for line in (header, *rows))
        server.store(hour.manifest, gzip.compress(lines.encode(), mtime=0), OLD_VERSION)
        marker = {"format": 1, **totals, "completed_at": "2026-11-23T09:21:00+00:00"}
        server.store(hour.marker, json.dumps(marker).encode(), OLD_VERSION)
        return
    work = f"{hour.work}{plan_id}/"
    written = {row[0]: row[1] for row in receipts}
    planned = []
    for index, (encoding, keys, copied) in enumerate(parts):
        name = f"part-{index:05d}.log{encoding}"
        objects = [server.objects[key] for key in keys]
        planned.append(
            [name, encoding, sum(len(one.body) for one in objects), copied,
             written.get(name, f"{rng.getrandbits(128):032x}"),
             [[one.key.removeprefix(RAW), len(one.body), one.etag] for one in objects]]
        )  # fmt: skip
    shard = {"format": 1, "plan_id": plan_id, "shard": 0, "parts": planned}
    server.store(f"{work}shard-00000.json.gz", gzip.compress(json.dumps(shard).encode()), OLD_VERSION)
    receipt = {"format": 1, "plan_id": plan_id, "shard": 0, "measured": _MEASURED, "parts": receipts}
    if rng.random() < 0.7:
        server.store(f"{work}receipt-00000.json.gz", gzip.compress(json.dumps(receipt).encode()), OLD_VERSION)
    refs = [
        {"stream": "app", "hour": totals["hour"], "plan_id": plan_id, "shard": 0, "first_part": 0,
         "parts": len(planned), "objects": totals["objects"], "bytes": totals["bytes_in"]}
    ]  # fmt: skip
    summary = {"format": 1, "plan_id": plan_id, "stream": "app", "hour": totals["hour"], "parts": len(planned),
               "objects": totals["objects"], "bytes_in": totals["bytes_in"], "left_out": totals["left_out"],
               "shards": refs if planned else []}  # fmt: skip
    server.store(f"{work}plan.json", json.dumps(summary).encode(), OLD_VERSION)
    claim = {"format": 1, "plan_id": plan_id, "run_id": "an old run"}
    server.store(f"{hour.work}claim.json", json.dumps(claim).encode(), OLD_VERSION)


_MEASURED = {"max_connections": 8, "sockets": 0, "open_files": 0, "rss_bytes": 0, "seconds": 0.1,
             "cpu_seconds": 0.1, "requests": {}, "retries": 0, "throttles": 0, "parts_written": 1,
             "parts_left_alone": 0}  # fmt: skip


def _old_parts(life: Life) -> list[tuple[str, list[str], bool]]:
    """Encoding and keys of each part, and whether S3 copied it."""
    by_encoding: dict[str, list[Stored]] = {}
    for key in sorted(life.server.objects, key=str.encode):
        stored = life.server.objects[key]
        if key.startswith(RAW) and life.hour.is_input(key, len(stored.body)):
            by_encoding.setdefault(encoding_of(key), []).append(stored)
    parts: list[tuple[str, list[str], bool]] = []
    for encoding in sorted(by_encoding):
        slack = 1 if life.stream.ensure_newline and encoding == "" else 0
        members: list[str] = []
        used = 0
        for stored in by_encoding[encoding]:
            room = len(stored.body) + slack if stored.body else 0
            if members and used + room > life.stream.part_size:
                parts.append((encoding, members, False))
                members, used = [], 0
            if room > life.stream.part_size:
                parts.append((encoding, [stored.key], True))
            else:
                members.append(stored.key)
                used += room
        if members:
            parts.append((encoding, members, False))
    return parts


def _old_part(
    life: Life, name: str, keys: Sequence[str], copied: bool
) -> tuple[bytes, list[dict[str, Any]], list[list[Any]]]:
    body = b""
    rows, packed = [], []
    for key in keys:
        stored = life.server.objects[key]
        value = crc.to_hex(crc.crc64(stored.body))
        rows.append(
            {"key": key, "part": name, "offset": len(body), "length": len(stored.body), "etag": stored.etag,
             "crc64nvme": value, "checked": "crc64nvme"}
        )  # fmt: skip
        body += stored.body
        wants = life.stream.ensure_newline and encoding_of(key) == "" and not copied
        newline = b"\n" if wants and stored.body and not stored.body.endswith(b"\n") else b""
        body += newline
        packed.append([value, "crc64nvme", False, len(newline)])
    return body, rows, packed


def _old_totals(
    life: Life, plan_id: str, table: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    bytes_in = sum(row["length"] for row in rows)
    bytes_out = sum(entry["size"] for entry in table)
    return {
        "stream": "app",
        "hour": "2026-11-23T08:00:00Z",
        "plan_id": plan_id,
        "objects": len(rows),
        "bytes_in": bytes_in,
        "separator_bytes": bytes_out - bytes_in,
        "bytes_out": bytes_out,
        "parts": len(table),
        "left_out": {"hidden": 0, "placeholders": 0, "markers": 0},
        "verified": {"parts": {"read-back": len(table)}, "objects": {"crc64nvme": len(rows)}},
        "measured": _MEASURED,
    }
