"""expire_hour deletes only raw objects of which proven parts hold copies; it can be interrupted anywhere."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from include.log_rollup.errors import AccessError, TransientError, UnsupportedOperationError
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.hour.expiry_record import ExpiryRecord
from include.log_rollup.hour.state import HourState
from include.log_rollup.queries.hour_detail import read_hour
from include.log_rollup.queries.late import find_changed_hours
from include.log_rollup.queries.status import HourStatus, read_hours
from include.log_rollup.queries.verify import verify_hour
from include.log_rollup.steps import expire_hour as module
from include.log_rollup.steps.expire_hour import (
    ExpiryState,
    HourExpiry,
    examine_hour,
    expire_hour,
    is_over,
    probe_of,
)
from include.log_rollup.steps.expire_stream import expire_stream, has_expired
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.streams import Stream
from tests.support.fake_store import CrashError, FakeStore, join_stores
from tests.support.grouped_hour import HOME, GroupedHour, three_groups
from tests.support.hour_in_memory import MANIFEST, MARKER, make_stream, part_key, produce, run_hour
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

pytestmark = pytest.mark.usefixtures("unwatched")

RECORD = f"{AGGREGATED}_expired.json"
# Three parts of two objects.
NAMES = tuple(f"{letter}.log" for letter in "abcdef")


def expiring(**settings: Any) -> Stream:
    return make_stream(expire_raw=ExpireRaw(after=timedelta(days=14), mode="delete", **settings))


STREAM = expiring()


@pytest.fixture
def store() -> FakeStore:
    return complete()


def complete(**options: Any) -> FakeStore:
    """Return a store with a complete hour of six raw objects in three parts."""
    store = FakeStore(control_connections=1, **options)
    produce(store, {name: name[0].encode() * 30 for name in NAMES})
    run_hour(store, STREAM)
    return store


def raw_names(store: FakeStore) -> list[str]:
    return [key.removeprefix(RAW) for key in store.listing(RAW)]


def record_of(store: FakeStore) -> ExpiryRecord:
    record = HourState(store.fork(), STREAM, HOUR).expiry_record()
    assert record is not None
    return record


def assert_left_alone(store: FakeStore, found: HourExpiry, reason: str) -> None:
    assert found.state is ExpiryState.LEFT_ALONE
    assert reason in found.reason
    assert found.objects == 0
    assert raw_names(store) == list(NAMES)
    assert not store.has(RECORD)


# -- what is deleted -------------------------------------------------------------------------------------


def test_examining_changes_nothing(store: FakeStore) -> None:
    before = store.snapshot()
    found = examine_hour(store, STREAM, HOUR)
    assert (found.state, found.objects, found.size, found.expired) == (ExpiryState.DELETABLE, 6, 180, 0)
    assert store.snapshot() == before


def test_all_raw_objects_of_proven_parts_are_deleted(store: FakeStore) -> None:
    parts = {key: body for key, body in store.snapshot(AGGREGATED).items() if "part-" in key}
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, found.objects, found.size, found.expired) == (ExpiryState.EXPIRED, 6, 180, 6)
    assert raw_names(store) == []
    record = record_of(store)
    assert (record.objects, record.size, len(record.parts), record.unfinished) == (6, 180, 3, None)
    assert [(one.objects, one.size) for one in record.deletions] == [(6, 180)]
    assert {key: body for key, body in store.snapshot(AGGREGATED).items() if "part-" in key} == parts


def test_expired_hour_costs_two_requests_later(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)
    store.log.clear()
    found = is_over(store, STREAM, HOUR)
    assert found is not None
    assert (found.state, found.expired, found.expired_size) == (ExpiryState.EXPIRED, 6, 180)
    assert len(store.log) == 2


def test_hour_is_over_only_if_all_its_objects_expired(store: FakeStore) -> None:
    assert is_over(store, STREAM, HOUR) is None
    produce(store, {"b.log": b"changed"})
    expire_hour(store, STREAM, HOUR)
    assert is_over(store, STREAM, HOUR) is None
    store.vanish(MARKER)
    found = is_over(store, STREAM, HOUR)
    assert found is not None
    assert found.state is ExpiryState.INCOMPLETE


def test_second_expiry_of_an_hour_changes_nothing(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)
    before = store.snapshot()
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, found.objects, found.expired) == (ExpiryState.EXPIRED, 0, 6)
    assert store.snapshot() == before


def test_late_changed_and_unknown_objects_stay(store: FakeStore) -> None:
    produce(store, {"b.log": b"changed", "g.log": b"late", "_hidden.log": b"unknown"})
    store.vanish(f"{RAW}d.log")
    found = expire_hour(store, STREAM, HOUR)
    assert raw_names(store) == ["_hidden.log", "b.log", "g.log"]
    assert (found.state, found.objects, found.left_out) == (ExpiryState.EXPIRED, 4, 1)
    kinds = (found.late, found.changed, found.vanished)
    assert [(keys.count, keys.first) for keys in kinds] == [
        (1, [f"{RAW}g.log"]), (1, [f"{RAW}b.log"]), (1, [f"{RAW}d.log"]),
    ]  # fmt: skip
    record = record_of(store)
    kept = {key for part in record.parts.values() for key in part.kept}
    assert kept == {f"{RAW}b.log", f"{RAW}d.log"}
    assert record.objects == 4


def test_only_few_keys_of_many_are_named(store: FakeStore) -> None:
    produce(store, {f"late-{number}.log": b"late" for number in range(9)})
    late = examine_hour(store, STREAM, HOUR).late
    assert (late.count, len(late.first)) == (9, 5)


def test_object_overwritten_at_the_last_moment_stays(store: FakeStore) -> None:
    store.on("DELETE", "c.log", lambda: produce(store, {"c.log": b"new"}))
    found = expire_hour(store, STREAM, HOUR)
    assert raw_names(store) == ["c.log"]
    assert (found.objects, found.changed.first) == (5, [f"{RAW}c.log"])
    # It stays announced: another run may have deleted the packed version.
    assert record_of(store).is_announced(*part_of(store, 1), f"{RAW}c.log")
    assert record_of(store).deletions[-1].left == 1


def part_of(store: FakeStore, number: int) -> tuple[str, str]:
    """Return the name and fingerprint of a part."""
    name = part_key(store, number).removeprefix(AGGREGATED)
    return name, record_of(store).parts[name].fingerprint


def test_object_written_again_as_it_was_expires_again(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)
    produce(store, {"a.log": b"a" * 30})
    found = expire_hour(store, STREAM, HOUR)
    assert (found.objects, found.expired, raw_names(store)) == (1, 6, [])
    assert record_of(store).objects == 6


def test_new_version_of_an_expired_object_stays(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)
    produce(store, {"a.log": b"another"})
    found = expire_hour(store, STREAM, HOUR)
    assert (found.objects, found.expired, found.changed.count) == (0, 6, 1)
    assert raw_names(store) == ["a.log"]


# -- what is left alone ------------------------------------------------------------------------------------


def test_incomplete_hour_is_left_alone() -> None:
    store = FakeStore()
    produce(store, {"a.log": b"a"})
    assert expire_hour(store, STREAM, HOUR).state is ExpiryState.INCOMPLETE
    assert store.writes() == []


def test_hour_that_a_run_has_claimed_is_left_alone(store: FakeStore) -> None:
    state = HourState(store, STREAM, HOUR)
    state.records.write_claim(state.paths.claim, "f" * 20, "a run", "0a")
    assert_left_alone(store, expire_hour(store, STREAM, HOUR), "a run has claimed it")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda store: store.produce(MARKER, b"{}"), "there is no"),
        (lambda store: store.vanish(MANIFEST), "there is no"),
        (lambda store: store.corrupt(MANIFEST), "the manifest cannot be read"),
        (lambda store: store.vanish(part_key(store, 1)), "it is not in the bucket"),
        (lambda store: store.corrupt(part_key(store, 1)), "its ETag is"),
        (lambda store: store.produce(part_key(store, 2), b"short"), "it has 5 bytes, 60 were written"),
    ],
)
def test_unproven_hour_is_left_alone(
    store: FakeStore, damage: Callable[[FakeStore], object], reason: str
) -> None:
    damage(store)
    assert_left_alone(store, expire_hour(store, STREAM, HOUR), reason)


def test_unreadable_record_leaves_the_hour_alone(store: FakeStore) -> None:
    store.produce(RECORD, b"{")
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, raw_names(store)) == (ExpiryState.LEFT_ALONE, list(NAMES))
    assert "the record of expired raw objects cannot be read" in found.reason


@pytest.mark.parametrize("record", ["_SUCCESS", "_manifest.jsonl.gz", "_expired.json"])
def test_archived_record_leaves_only_its_own_hour_alone(store: FakeStore, record: str) -> None:
    if record == "_expired.json":
        expire_hour(store, STREAM, HOUR)
    store.archive(AGGREGATED + record)
    following = HOUR + timedelta(hours=1)
    found = expire_stream(store, STREAM, [HOUR, following], delete=True)
    assert [one.hour for one in found.left_alone] == [HOUR]
    assert f"{record}: S3 answered 403" in found.left_alone[0].reason
    assert found.incomplete == [following]
    assert has_expired(store, STREAM, [HOUR]) == (record == "_expired.json")


def test_damage_behind_an_etag_is_found_by_reading() -> None:
    store = complete()
    store.corrupt(part_key(store, 1), keep_etag=True)
    assert examine_hour(store, STREAM, HOUR).state is ExpiryState.DELETABLE
    found = expire_hour(store, expiring(deep=True), HOUR)
    assert_left_alone(store, found, "its bytes have CRC64NVME")


def test_part_without_stored_crc_is_read() -> None:
    store = complete(keeps_crc=False, etag_is_md5=False)
    # As if the store had stated CRCs when the hour was validated.
    store.log.clear()
    assert expire_hour(store, STREAM, HOUR).objects == 6


def test_object_compared_by_its_length_is_read_again() -> None:
    store = FakeStore(control_connections=1)
    produce(store, {"a.log": b"a" * 30}, algorithm=None, md5_etag=False)
    run_hour(store, STREAM)
    store.corrupt(f"{RAW}a.log", keep_etag=True)
    found = expire_hour(store, STREAM, HOUR)
    assert "its bytes of raw/app/20261123/08/a.log are not those of the raw object" in found.reason
    assert raw_names(store) == ["a.log"]


def test_archived_object_compared_by_its_length_stays() -> None:
    store = FakeStore(control_connections=1)
    produce(store, {"a.log": b"a" * 30}, algorithm=None, md5_etag=False)
    run_hour(store, STREAM)
    store.archive(f"{RAW}a.log", "GLACIER")
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, raw_names(store)) == (ExpiryState.LEFT_ALONE, ["a.log"])
    assert "it cannot be read now, because it is archived" in found.reason
    assert not store.has(RECORD)


# -- conditions ----------------------------------------------------------------------------------------------


def test_store_that_ignores_conditions_is_refused() -> None:
    store = complete(has_conditions=False)
    with pytest.raises(UnsupportedOperationError, match="set 'unconditional: true' in expire_raw"):
        expire_hour(store, STREAM, HOUR)
    assert raw_names(store) == list(NAMES)
    assert not store.has(RECORD)


def test_unconditional_deletes_look_again_before() -> None:
    store = complete(has_conditions=False)
    store.on("WRITE", "_expired.json", lambda: produce(store, {"c.log": b"new"}))
    found = expire_hour(store, expiring(unconditional=True), HOUR)
    assert (found.objects, raw_names(store)) == (5, ["c.log"])


def test_refused_keys_are_reported_and_the_others_deleted(store: FakeStore) -> None:
    store.on("DELETE", "b.log", AccessError("DELETE b.log: S3 answered AccessDenied: locked"))
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, found.objects, found.refused.first) == (ExpiryState.LEFT_ALONE, 5, [f"{RAW}b.log"])
    assert "the store refuses to delete raw objects" in found.reason
    assert "locked" in found.reason
    assert raw_names(store) == ["b.log"]
    # The next run tries it again.
    assert expire_hour(store, STREAM, HOUR).state is ExpiryState.EXPIRED
    assert (raw_names(store), record_of(store).objects) == ([], 6)
    assert {key for part in record_of(store).parts.values() for key in part.kept} == set()


def test_refused_objects_stay_announced(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_OBJECTS", 2)
    store.on("DELETE", RAW, AccessError("DELETE: S3 answered AccessDenied: locked"), times=9)
    found = expire_hour(store, STREAM, HOUR)
    # After a first batch that was refused as a whole, no other is tried.
    assert (found.objects, found.refused.count, raw_names(store)) == (0, 2, list(NAMES))
    assert [len(part.kept) for part in record_of(store).parts.values()] == [0, 0, 0]
    assert record_of(store).deletions[-1].left == 6
    assert is_over(store, STREAM, HOUR) is None
    assert plan_hour(store, STREAM, HOUR, "again").unchanged


# -- another run, and interruptions --------------------------------------------------------------------------


def claim(store: FakeStore) -> None:
    store.another_client().write(HourState(store, STREAM, HOUR).paths.claim, b"{}", "application/json")


def later(store: FakeStore, kind: str, contains: str, effect: Callable[[], None]) -> None:
    store.on(kind, contains, effect)


def expire(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)


def test_claim_before_the_announcement_prevents_it(store: FakeStore) -> None:
    """The record would announce parts that the other run may have replaced."""
    before = set(store.listing(AGGREGATED))
    store.on("WRITE", "staged-", lambda: claim(store))
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, raw_names(store)) == (ExpiryState.LEFT_ALONE, list(NAMES))
    assert "a run has claimed the hour" in found.reason
    assert set(store.listing(AGGREGATED)) == before | {f"{AGGREGATED}_rollup/claim.json"}


def test_claim_after_the_announcement_stops_the_deletion(store: FakeStore) -> None:
    store.on("READ", "claim.json", lambda: later(store, "READ", "claim.json", lambda: claim(store)))
    found = expire_hour(store, STREAM, HOUR)
    assert found.state is ExpiryState.LEFT_ALONE
    assert "a run has claimed the hour" in found.reason
    assert raw_names(store) == list(NAMES)


def test_claim_between_batches_stops_the_deletion(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_OBJECTS", 2)
    store.on("DELETE", "b.log", lambda: claim(store))
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, raw_names(store)) == (ExpiryState.LEFT_ALONE, list(NAMES[2:]))
    store.vanish(f"{AGGREGATED}_rollup/claim.json")
    assert expire_hour(store, STREAM, HOUR).expired == 6


class Interrupted(FakeStore):
    """A store whose client dies at a given request."""

    def __init__(self, dies_at: int, **options: Any) -> None:
        super().__init__(**options)
        self.left = dies_at

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise CrashError("dead")
        return super().begin(*args, **kwargs)


def interruptions() -> Iterator[tuple[FakeStore, bool]]:
    """Yield stores in which an expiry died at each of its requests, and whether it died."""
    for number in range(100):
        done = complete()
        store = Interrupted(number, control_connections=1)
        store._buckets = done.fork()._buckets
        died = False
        with suppress(CrashError):
            expire_hour(store, STREAM, HOUR)
            died = True
        store.left = 10**6
        yield store, not died
        if died:
            return
    raise AssertionError("it never ended")


def test_expiry_continues_after_a_crash_at_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_OBJECTS", 2)
    crashes = 0
    for store, died in interruptions():
        crashes += died
        gone = set(NAMES) - set(raw_names(store))
        if gone:
            record = record_of(store)
            for name in gone:
                assert any(
                    record.is_announced(part, entry.fingerprint, RAW + name)
                    for part, entry in record.parts.items()
                )
        expire_hour(store, STREAM, HOUR)
        record = record_of(store)
        assert (raw_names(store), record.objects, record.size) == ([], 6, 180)
        assert (len(record.deletions), record.unfinished) == (1, None)
        assert record.deletions[0].objects == 6
    assert crashes > 20


def test_transient_error_is_raised_and_the_deletion_continued(store: FakeStore) -> None:
    store.on("DELETE", "d.log", TransientError("no answer"))
    with pytest.raises(TransientError):
        expire_hour(store, STREAM, HOUR)
    assert record_of(store).unfinished is not None
    assert is_over(store, STREAM, HOUR) is None
    assert expire_hour(store, STREAM, HOUR).expired == 6


def test_two_expiries_of_one_hour_never_hide_a_deletion(store: FakeStore) -> None:
    other = store.another_client()
    store.on("LIST", RAW, lambda: expire(other))
    found = expire_hour(store, STREAM, HOUR)
    assert (found.state, found.expired, found.vanished.count) == (ExpiryState.EXPIRED, 6, 0)


def test_expiry_in_between_stops_the_announcement(store: FakeStore) -> None:
    other = store.another_client()
    store.on("HEAD", "part-", lambda: expire(other))
    found = expire_hour(store, STREAM, HOUR)
    assert "another run has written the record of expired raw objects" in found.reason
    assert (record_of(store).objects, raw_names(store)) == (6, [])


def test_deletion_in_between_stays_announced_if_others_change(store: FakeStore) -> None:
    """The first deletion has deleted objects, which a producer then wrote again, before the second one did."""
    other = store.another_client()

    def delete_then_write_again() -> None:
        for name in NAMES[:2]:
            store.vanish(RAW + name)
            produce(store, {name: b"another"})

    def expire_meanwhile() -> None:
        other.on("DELETE", "a.log", delete_then_write_again)
        expire(other)

    store.on("DELETE", "a.log", expire_meanwhile)
    found = expire_hour(store, STREAM, HOUR)
    assert "another run has written the record" in found.reason
    before = part_key(store, 0), store.body(part_key(store, 0))
    run_hour(store, STREAM)
    assert (before[0], store.body(before[0])) == before
    assert list(verify_hour(store, STREAM, HOUR, deep=True).problems) == []


def test_refused_deletion_hides_none_of_another_run(store: FakeStore) -> None:
    other = store.another_client()
    other.on("DELETE", RAW, AccessError("DELETE: S3 answered AccessDenied"), times=9)
    store.on("DELETE", "a.log", lambda: expire(other))
    expire_hour(store, STREAM, HOUR)
    assert "a.log" not in raw_names(store)
    produce(store, {"g.log": b"late"})
    run_hour(store, STREAM)
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []


# -- two stores ------------------------------------------------------------------------------------------------


def test_raw_objects_in_another_store_are_deleted_there() -> None:
    done = complete()
    source, target = FakeStore(control_connections=1), FakeStore(control_connections=1)
    for key, stored in done.snapshot().items():
        (source if key.startswith("raw/") else target).produce(key, stored.body)
    for key in target.listing():
        target._buckets["logs"][key] = done.stored(key)
    found = expire_hour(join_stores(source, target), STREAM, HOUR)
    assert (found.objects, source.listing(RAW)) == (6, [])
    assert target.has(RECORD)


# -- other steps and queries of an expired hour -----------------------------------------------------------


def test_status_tells_how_many_objects_expired(store: FakeStore) -> None:
    (before,) = read_hours(store, STREAM, [HOUR])
    assert before.expired is None
    expire_hour(store, STREAM, HOUR)
    (after,) = read_hours(store, STREAM, [HOUR], expired=True)
    assert after.expired is not None
    assert (after.state, after.expired.objects, after.expired.size) == (HourStatus.COMPLETE, 6, 180)
    assert after.expired.finished
    assert str(after.expired).startswith("6 raw objects expired on 20")
    detail = read_hour(store, STREAM, HOUR)
    assert detail.status.expired == after.expired


def test_status_tells_of_an_interrupted_deletion(store: FakeStore) -> None:
    store.on("DELETE", "d.log", TransientError("no answer"))
    with suppress(TransientError):
        expire_hour(store, STREAM, HOUR)
    (status,) = read_hours(store, STREAM, [HOUR], expired=True)
    assert status.expired is not None
    assert not status.expired.finished
    assert "raw objects are being deleted since" in str(status.expired)


def test_status_names_an_unreadable_record(store: FakeStore) -> None:
    store.produce(RECORD, b"{")
    (status,) = read_hours(store, STREAM, [HOUR], expired=True)
    assert (status.state, status.expired) == (HourStatus.COMPLETE, None)
    assert "_expired.json" in status.problem


def test_expired_record_is_only_read_of_old_hours(store: FakeStore) -> None:
    store.log.clear()
    young = make_stream(expire_raw=ExpireRaw(after=timedelta(days=3650)))
    read_hours(store, young, [HOUR])
    assert [operation.key for operation in store.log] == [MARKER]


def test_expired_objects_are_neither_late_nor_vanished(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)
    result = find_changed_hours(store, STREAM, [HOUR])
    assert (result.complete, list(result.changed), list(result.unclear)) == (1, [], [])
    verified = verify_hour(store, STREAM, HOUR, deep=True)
    assert list(verified.problems) == []
    assert (verified.changes.expired, list(verified.changes.vanished)) == (6, [])
    # A clear changes nothing either.
    before = store.snapshot()
    run_hour(store, STREAM)
    assert store.snapshot() == before


def test_late_object_after_expiry_is_packed_and_expires(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)
    produce(store, {"g.log": b"g" * 30})
    (changed,) = find_changed_hours(store, STREAM, [HOUR]).changed
    assert list(changed.changes.late) == [f"{RAW}g.log"]
    run_hour(store, STREAM)
    assert find_changed_hours(store, STREAM, [HOUR]).changed == []
    found = expire_hour(store, STREAM, HOUR)
    assert (found.objects, found.expired, raw_names(store)) == (1, 7, [])
    record = record_of(store)
    assert [one.objects for one in record.deletions] == [6, 1]
    assert len(record.parts) == 4
    assert list(verify_hour(store, STREAM, HOUR, deep=True).problems) == []


def test_object_changed_after_expiry_expires_in_both_versions(store: FakeStore) -> None:
    expire_hour(store, STREAM, HOUR)
    produce(store, {"a.log": b"another"})
    run_hour(store, STREAM)
    found = expire_hour(store, STREAM, HOUR)
    assert (found.objects, found.expired, raw_names(store)) == (1, 7, [])
    # The old content again: the parts hold a newer version, so it stays until the hour is run again.
    produce(store, {"a.log": b"a" * 30})
    found = expire_hour(store, STREAM, HOUR)
    assert (found.objects, found.changed.count, raw_names(store)) == (0, 1, ["a.log"])


def test_raw_objects_of_groups_expire() -> None:
    hour = GroupedHour("before the date")
    hour.produce(three_groups())
    hour.run()
    keys = [key for key in hour.store.listing("raw/") if "/20261123/08/" in key]
    found = expire_hour(hour.store, hour.stream, HOUR)
    assert (found.state, found.objects) == (ExpiryState.EXPIRED, len(keys))
    assert hour.store.listing("raw/") == []
    assert hour.store.has(f"{HOME}_expired.json")
    assert list(verify_hour(hour.store, hour.stream, HOUR, deep=True).problems) == []
    hour.run()
    assert find_changed_hours(hour.store, hour.stream, [HOUR]).changed == []


def test_probe_is_on_the_server_with_the_raw_objects() -> None:
    assert str(probe_of(STREAM)) == "s3://logs/aggregated/app/_log-rollup-delete-probe"
    other = make_stream(target_conn_id="other")
    assert str(probe_of(other)) == "s3://logs/raw/app/_log-rollup-delete-probe"
    assert probe_of(other).is_raw
