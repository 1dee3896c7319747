"""After a crash at any point, and any change to the hour, the next run completes the hour correctly.

After every write, a guard checks that the parts are correct whenever the marker exists.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from itertools import count
from typing import TypeVar

import pytest

from include.log_rollup.errors import RollupError, SupersededError
from include.log_rollup.steps import plan_hour as planner
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned
from include.log_rollup.steps.validate_hour import validate_hour
from tests.support import hour_in_memory
from tests.support.fake_store import CrashError, Effect, FakeStore, Operation
from tests.support.hour_in_memory import (
    MANIFEST,
    MARKER,
    WORK,
    MarkerGuard,
    assert_complete,
    assert_not_complete,
    assert_right,
    finish_hour,
    make_stream,
    manifest_of,
    numbered,
    part_key,
    parts,
    produce,
)
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

Outcome = TypeVar("Outcome")

# Slow: crashes at each write, in many states of an hour, take 10 s of CPU.
pytestmark = [pytest.mark.usefixtures("unwatched"), pytest.mark.slow]

# Plain parts, an empty object, a copied one, gzip; two shards or three.
RAW_HOUR: Mapping[str, bytes] = {
    **{f"{letter}.log": letter.encode() * 30 for letter in "abcde"},
    "f.log": b"",
    "g.log": b"g" * 100,
    "h.gz": b"h" * 30,
}
STREAM = make_stream()


# In some states objects have vanished, so these runs may drop them.
run_hour = partial(hour_in_memory.run_hour, drop_vanished=True)
plan_hour = partial(planner.plan_hour, drop_vanished=True)


def raw_hour_only(store: FakeStore) -> None:
    """Only the raw hour exists."""


def complete_and_unchanged(store: FakeStore) -> None:
    run_hour(store, STREAM)


def late_objects(store: FakeStore) -> None:
    run_hour(store, STREAM)
    produce(store, {"aa.log": b"late" * 10, "z.log": b"late" * 20, "z.gz": b"late"})


def fewer_objects(store: FakeStore) -> None:
    run_hour(store, STREAM)
    for name in ("b.log", "g.log", "h.gz"):
        store.vanish(RAW + name)


def changed_object(store: FakeStore) -> None:
    run_hour(store, STREAM)
    produce(store, {"c.log": b"C" * 30, "g.log": b"G" * 90})


def fewer_parts(store: FakeStore) -> None:
    run_hour(store, STREAM)
    store.vanish(RAW + "h.gz")


def corrupted_part(store: FakeStore) -> None:
    run_hour(store, STREAM)
    store.corrupt(part_key(store, 1))


def deleted_part(store: FakeStore) -> None:
    run_hour(store, STREAM)
    store.vanish(part_key(store, 1))


def unfinished_other_plan(store: FakeStore) -> None:
    planned = plan_hour(store, STREAM, HOUR, "an earlier run")
    for ref in planned.shards[:2]:
        pack_shard(store, STREAM, ref)
    produce(store, {"aa.log": b"late" * 10})


def stale_parts(store: FakeStore) -> None:
    """The raw hour changed during a run, so that its parts are no longer needed."""
    run_hour(store, STREAM)
    produce(store, {"aa.log": b"late" * 10, "z.gz": b"late"})
    for ref in plan_hour(store, STREAM, HOUR, "an earlier run").shards:
        pack_shard(store, STREAM, ref)
    for name in ("aa.log", "z.gz"):
        store.vanish(RAW + name)


STATES = {
    state.__name__.replace("_", " "): state
    for state in (
        raw_hour_only,
        complete_and_unchanged,
        late_objects,
        fewer_objects,
        fewer_parts,
        changed_object,
        corrupted_part,
        deleted_part,
        unfinished_other_plan,
        stale_parts,
    )
}


@cache
def prepared_store(state: Callable[[FakeStore], None], checks_crc: bool) -> tuple[FakeStore, MarkerGuard]:
    """Return a store with the hour in a state; the tests use forks of it."""
    store = FakeStore(keeps_crc=checks_crc, checks_crc=checks_crc, control_connections=1)
    produce(store, RAW_HOUR)
    guard = MarkerGuard(store, STREAM)
    state(store)
    return store, guard


def store_in_state(
    state: Callable[[FakeStore], None], checks_crc: bool = True, *, strays: bool = False
) -> tuple[FakeStore, MarkerGuard]:
    """Return a store with the hour in a state, and a guard that knows every raw hour packed on the way.

    :param strays: whether stray parts of an overtaken run may exist
    """
    first, known = prepared_store(state, checks_crc)
    store = first.fork()
    guard = known.over(store)
    guard.strays = strays
    if state in (corrupted_part, deleted_part):
        guard.damaged()
    return store, guard


@pytest.mark.parametrize("state", STATES)
def test_run_completes_from_every_state(state: str) -> None:
    store, guard = store_in_state(STATES[state])
    run_hour(store, STREAM)
    assert_complete(store, STREAM)
    assert guard.violations == []


@pytest.mark.parametrize(
    ("state", "checks_crc"),
    [*((state, True) for state in STATES), ("raw hour only", False), ("late objects", False)],
)
def test_next_run_completes_after_a_crash_at_any_write(state: str, checks_crc: bool) -> None:
    crashes = 0
    for writes in count():
        store, guard = store_in_state(STATES[state], checks_crc)
        store.crash_after_writes(writes)
        try:
            run_hour(store, STREAM)
        except CrashError:
            crashes += 1
        else:
            break
        store.revive()
        assert guard.violations == []
        run_hour(store, STREAM, "the next run")
        assert_complete(store, STREAM, died=True)
        assert guard.violations == []
    assert crashes > 12 or state == "complete and unchanged"


@pytest.mark.parametrize("state", ["raw hour only", "late objects"])
def test_each_step_can_be_retried_after_a_crash(state: str) -> None:
    """Airflow retries only the step that was killed."""
    for writes in count():
        store, guard = store_in_state(STATES[state])
        store.crash_after_writes(writes)
        planned = _with_retry(store, partial(plan_hour, store, STREAM, HOUR, "run"))
        for ref in planned.shards:
            _with_retry(store, partial(pack_shard, store, STREAM, ref))
        _with_retry(store, partial(validate_hour, store, STREAM, HOUR))
        _with_retry(store, partial(complete_hour, store, STREAM, HOUR))
        assert_complete(store, STREAM, died=True)
        assert guard.violations == []
        if store.pending_crash:
            break


def _with_retry(store: FakeStore, step: Callable[[], Outcome]) -> Outcome:
    with suppress(CrashError):
        return step()
    store.revive()
    return step()


@pytest.mark.parametrize("state", STATES)
def test_lost_answer_at_any_write_does_no_harm(state: str) -> None:
    for number in count():
        store, guard = store_in_state(STATES[state])
        rules = []
        for kind in ("WRITE", "PUT", "COPY", "PUBLISH", "DELETE"):
            store.on(kind, "", _do_nothing, times=number)
            rules.append(store.on(kind, "", Effect.LOST_ANSWER))
        for _ in range(6):
            try:
                run_hour(store, STREAM)
            except RollupError:
                continue
            break
        assert_complete(store, STREAM, died=True)
        assert guard.violations == []
        if not any(rule.hits for rule in rules):
            break


def _do_nothing() -> None:
    """Let a write succeed."""


# -- reruns --------------------------------------------------------------------------------------------


def written_parts(store: FakeStore) -> list[str]:
    return numbered(operation.name for operation in store.log if operation.kind in ("PUT", "COPY"))


def test_complete_unchanged_hour_is_not_written() -> None:
    store, _ = store_in_state(complete_and_unchanged)
    before = store.snapshot()
    run_hour(store, STREAM)
    assert store.writes() == []
    assert not {"GET", "RANGE"} & {operation.kind for operation in store.log}
    assert store.snapshot() == before


def test_late_object_gets_a_part_of_its_own() -> None:
    store, _ = store_in_state(complete_and_unchanged)
    before = parts(store)
    store.produce(RAW + "aa.log", b"late")
    run_hour(store, STREAM)
    assert written_parts(store) == ["part-00005.log"]
    assert before.items() < parts(store).items()
    assert_complete(store, STREAM)


@pytest.mark.parametrize("state", ["corrupted part", "deleted part"])
def test_only_the_damaged_part_is_packed_again(state: str) -> None:
    store, guard = store_in_state(STATES[state])
    run_hour(store, STREAM)
    assert written_parts(store) == ["part-00001.log"]
    assert_complete(store, STREAM)
    assert guard.violations == []


def test_part_repaired_before_a_crash_is_not_packed_again() -> None:
    # The manifest still has the ETag of the part before the repair.
    store = FakeStore(etag_is_md5=False)
    produce(store, RAW_HOUR)
    run_hour(store, STREAM)
    store.vanish(part_key(store, 1))
    for ref in plan_hour(store, STREAM, HOUR, "a run that dies").shards:
        pack_shard(store, STREAM, ref)
    store.log.clear()
    run_hour(store, STREAM)
    assert written_parts(store) == []
    assert_complete(store, STREAM)


def test_unneeded_parts_are_removed_before_the_marker() -> None:
    store, guard = store_in_state(fewer_objects)
    before = set(parts(store))
    run_hour(store, STREAM)
    names = [f"{operation.kind} {operation.name}" for operation in store.writes()]
    gone = before - set(parts(store))
    assert gone
    for name in gone:
        assert (
            names.index("DELETE _SUCCESS") < names.index(f"DELETE {name}") < names.index("PUBLISH _SUCCESS")
        )
    assert guard.violations == []


def test_added_and_removed_object_restores_the_same_parts() -> None:
    store, guard = store_in_state(complete_and_unchanged)
    before = parts(store)
    store.produce(RAW + "aa.log", b"late" * 10)
    guard.learn()
    run_hour(store, STREAM)
    assert parts(store) != before
    store.vanish(RAW + "aa.log")
    run_hour(store, STREAM)
    assert parts(store) == before
    assert_complete(store, STREAM)
    assert guard.violations == []


@pytest.mark.parametrize(
    "change",
    [{"part_size": 128}, {"part_size": 48}, {"ensure_newline": True}, {"shard_size": 64}, {"max_shards": 1}],
    ids=str,
)
def test_changed_settings_apply_to_a_repacked_hour(
    change: dict[str, int | bool],
) -> None:
    store, _ = store_in_state(complete_and_unchanged)
    other = make_stream(**change)
    run_hour(store, other)
    assert store.writes() == []
    run_hour(store, other, repack=True)
    assert_complete(store, other)
    assert bool(written_parts(store)) == ("part_size" in change or "ensure_newline" in change)


# The simulation mixes runs, crashes, faults and races: see tests/unit/test_simulation.py.

# -- two runs of one hour ------------------------------------------------------------------------------


def interrupted_runs(
    make: Callable[[], tuple[FakeStore, MarkerGuard]],
    step: Callable[[FakeStore], object],
    meanwhile: Callable[[FakeStore, MarkerGuard], object],
) -> Iterator[tuple[FakeStore, MarkerGuard, Operation]]:
    """Run a step once for each of its requests, with ``meanwhile`` called before that request."""
    for number in count():
        store, guard = make()

        def run_meanwhile(store: FakeStore = store, guard: MarkerGuard = guard) -> None:
            with suppress(RollupError):
                meanwhile(store, guard)

        store.on("ANY", "", _do_nothing, times=number)
        rule = store.on("ANY", "", run_meanwhile)
        with suppress(RollupError):
            step(store)
        if not rule.hits:
            assert number > 5
            return
        yield store, guard, store.log[number]


def assert_clear_completes(store: FakeStore, guard: MarkerGuard) -> None:
    """Check that a cleared run completes the hour."""
    run_hour(store, STREAM, "cleared")
    assert_complete(store, STREAM)
    assert guard.violations == []


def change_and_run(store: FakeStore, guard: MarkerGuard) -> None:
    store.produce(RAW + "bb.log", b"later")
    guard.learn()
    run_hour(store, STREAM, "another run")


def run_again(store: FakeStore, guard: MarkerGuard) -> None:
    run_hour(store, STREAM, "another run")


def pack_hour(store: FakeStore) -> None:
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)


def pack_and_validate(store: FakeStore) -> None:
    pack_hour(store)
    validate_hour(store, STREAM, HOUR)


@pytest.mark.parametrize("meanwhile", [change_and_run, run_again])
def test_validation_keeps_what_another_run_completed(
    meanwhile: Callable[[FakeStore, MarkerGuard], object],
) -> None:
    for store, guard, moment in interrupted_runs(
        lambda: store_in_state(pack_hour), lambda store: validate_hour(store, STREAM, HOUR), meanwhile
    ):
        assert guard.violations == [], f"another run completed the hour before {moment}"
        assert_clear_completes(store, guard)


def test_overtaken_shard_never_overwrites_a_part() -> None:
    def pack_all(store: FakeStore) -> None:
        for ref in plan_hour(store, STREAM, HOUR, "run").shards:
            pack_shard(store, STREAM, ref)

    for store, guard, moment in interrupted_runs(
        lambda: store_in_state(raw_hour_only, strays=True), pack_all, change_and_run
    ):
        assert guard.violations == [], f"another run completed the hour before {moment}"
        if store.has(MARKER):
            # The overtaken run has removed its unneeded parts.
            assert_right(store, STREAM)
            assert parts(store).keys() == {entry["name"] for entry in manifest_of(store)[0]["parts_table"]}
        assert_clear_completes(store, guard)


@pytest.mark.parametrize("meanwhile", [change_and_run, run_again])
def test_overtaken_run_writes_no_marker(
    meanwhile: Callable[[FakeStore, MarkerGuard], object],
) -> None:
    for store, guard, moment in interrupted_runs(
        lambda: store_in_state(pack_and_validate), lambda store: complete_hour(store, STREAM, HOUR), meanwhile
    ):
        assert guard.violations == [], f"another run completed the hour before {moment}"
        assert_clear_completes(store, guard)


def test_unchanged_hour_claimed_by_a_dead_run_is_completed() -> None:
    """The run that claimed the hour died, and validation would use its claim."""
    store, guard = store_in_state(complete_and_unchanged)
    guard.strays = True
    before = parts(store)
    store.produce(RAW + "aa.log", b"late" * 10)
    guard.learn()
    store.on("READ", MARKER, _do_nothing)
    store.on("READ", MARKER, CrashError("died"))
    with pytest.raises(CrashError):
        plan_hour(store, STREAM, HOUR, "a run that dies")
    assert store.has(MARKER)
    store.vanish(RAW + "aa.log")
    store.log.clear()
    run_hour(store, STREAM, "the next run")
    assert written_parts(store) == []
    assert_complete(store, STREAM)
    assert parts(store) == before
    assert guard.violations == []


def test_older_run_stops_and_newer_run_completes() -> None:
    store, guard = store_in_state(raw_hour_only)
    older = plan_hour(store, STREAM, HOUR, "older")
    pack_shard(store, STREAM, older.shards[0])
    store.produce(RAW + "bb.log", b"later")
    guard.learn()
    newer = plan_hour(store, STREAM, HOUR, "newer")
    with pytest.raises(SupersededError, match=newer.plan_id):
        pack_shard(store, STREAM, older.shards[1])
    for ref in newer.shards:
        pack_shard(store, STREAM, ref)
    validate_hour(store, STREAM, HOUR)
    complete_hour(store, STREAM, HOUR)
    assert_complete(store, STREAM)
    assert guard.violations == []


def test_run_reuses_the_parts_of_an_equal_plan() -> None:
    store, guard = store_in_state(raw_hour_only)
    one = plan_hour(store, STREAM, HOUR, "one")
    pack_shard(store, STREAM, one.shards[0])
    packed = len(written_parts(store))
    other = plan_hour(store, STREAM, HOUR, "other")
    for ref in other.shards:
        pack_shard(store, STREAM, ref)
    for ref in one.shards:
        with pytest.raises(SupersededError, match=other.plan_id):
            pack_shard(store, STREAM, ref)
    assert len(written_parts(store)) == len(parts(store)) > packed
    validate_hour(store, STREAM, HOUR)
    complete_hour(store, STREAM, HOUR)
    for ref in one.shards:
        assert pack_shard(store, STREAM, ref).parts_written == 0
    complete_hour(store, STREAM, HOUR)
    assert_complete(store, STREAM)
    assert guard.violations == []


def test_next_run_removes_files_of_an_unfinished_run() -> None:
    store, _ = store_in_state(unfinished_other_plan)
    assert store.listing(WORK)
    assert_not_complete(store)
    run_hour(store, STREAM)
    assert store.listing(WORK) == []


def test_unchanged_run_does_not_disturb_a_new_run() -> None:
    """It once removed the claim and the plan of the other run, and both failed."""
    store, guard = store_in_state(complete_and_unchanged)
    begun: list[Planned] = []

    def another() -> None:
        store.produce(RAW + "aa.log", b"late" * 10)
        guard.learn()
        begun.append(plan_hour(store, STREAM, HOUR, "another run"))

    # Just before the unchanged run lists what to clean up.
    store.on("LIST", WORK, another)
    assert plan_hour(store, STREAM, HOUR, "unchanged").unchanged
    finish_hour(store, STREAM, begun[0])
    assert_complete(store, STREAM)
    assert guard.violations == []


@pytest.mark.parametrize("target", [MARKER, MANIFEST])
def test_publishing_after_another_run_completed_fails(target: str) -> None:
    store, guard = store_in_state(raw_hour_only)
    for ref in plan_hour(store, STREAM, HOUR, "older").shards:
        pack_shard(store, STREAM, ref)

    def another() -> None:
        store.produce(RAW + "aa.log", b"late" * 10)
        guard.learn()
        run_hour(store, STREAM, "newer")

    store.on("PUBLISH", target, another)
    with pytest.raises(SupersededError, match="no plan is being built there now"):
        finish_hour(store, STREAM, Planned("", [], unchanged=False))
    assert_complete(store, STREAM)
    assert guard.violations == []


def test_unfinished_upload_of_a_copy_is_aborted() -> None:
    store, _ = store_in_state(raw_hour_only)
    for ref in plan_hour(store, STREAM, HOUR, "run").shards:
        pack_shard(store, STREAM, ref)
    (copied,) = [name for name, body in parts(store).items() if len(body) > STREAM.part_size]
    store.uploads["left"] = (AGGREGATED + copied, {})
    # Foreign uploads; some servers list them although their prefix differs.
    foreign = {"near": AGGREGATED + "part-00099.log", "far": "elsewhere/" + copied}
    store.uploads |= {name: (key, {}) for name, key in foreign.items()}
    store.lists_all_uploads = True
    run_hour(store, STREAM)
    assert set(store.uploads) == foreign.keys()
    assert_complete(store, STREAM)
