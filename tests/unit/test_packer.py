"""The packer puts every byte in its place, compares bodies with their CRCs, and retries transient faults."""

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup import crc, limits
from include.log_rollup.errors import (
    AccessError,
    ChangedBufferError,
    InputChangedError,
    RollupError,
    SupersededError,
    ThrottledError,
    TransientError,
)
from include.log_rollup.hour.plan import PlannedPart, WriteOptions, make_plan
from include.log_rollup.hour.records import PackedPart
from include.log_rollup.hour.selection import InputRules, select
from include.log_rollup.steps.packer import OwnershipCheck, PackSettings, ShardPacker
from include.log_rollup.steps.part_buffers import WrittenPart
from include.log_rollup.storage.protocol import Location, ObjectInfo
from include.log_rollup.storage.two_stores import TwoStores
from tests.support.fake_store import Effect, FakeStore, FakeTransfer, PassingTransfer
from tests.support.hour_in_memory import expected as expected_of
from tests.support.hour_in_memory import joined_parts, make_stream, numbered, parts, produce
from tests.support.raw_hours import AGGREGATED, RAW, name_of
from tests.unit.strategies import bodies, visible_names

hours = st.dictionaries(visible_names, bodies, min_size=1, max_size=12).map(
    lambda hour: {name: body for name, body in hour.items() if body or not name.endswith("/")}
)
PART_SIZE = 30
CLAIM = Location("logs", f"{AGGREGATED}_rollup/claim.json")
TAGGED = PackSettings(WriteOptions(tags=(("x", "y"),)))
THREE: Mapping[str, bytes] = {"a.log": b"a" * 20, "b.log": b"b" * 20, "c.log": b"c" * 20}


class Packing:
    """One packer over a fake store, with its transfer and the parts that it reported."""

    def __init__(
        self,
        store: FakeStore,
        hour: Mapping[str, bytes],
        *,
        part_size: int = PART_SIZE,
        separators: bool = False,
        settings: PackSettings | None = None,
        connections: int = 4,
        recheck: Callable[[], bool] = lambda: True,
        is_current: Callable[[bytes], bool] = lambda _: False,
        **store_options: object,
    ) -> None:
        produce(store, hour, **store_options)
        self.store = store
        listed = [ObjectInfo(key, len(store.body(key)), store.stored(key).etag) for key in store.listing(RAW)]
        chosen, left_out = select(listed, name_of, InputRules())
        options = WriteOptions(ensure_newline=separators)
        self.planned = make_plan(chosen, left_out, part_size, options).parts
        self.written: list[PackedPart] = []
        self.transfer = FakeTransfer(store, connections)
        self.packer = ShardPacker(
            store,
            self.transfer,
            Location("logs", AGGREGATED),
            Location("logs", RAW, is_raw=True),
            settings or PackSettings(options),
            OwnershipCheck(CLAIM, is_current, recheck),
            self._note,
        )

    def _note(self, planned: PlannedPart, written: list[WrittenPart]) -> None:
        assert planned in self.planned
        assert [one.planned.split_of or one.planned.name for one in written] == [planned.name] * len(written)
        self.written += [one.packed for one in written]

    def run(self, parts: tuple[PlannedPart, ...] | None = None) -> bool:
        """Pack; afterwards no request may be pending, even after a failure."""
        try:
            return self.packer.run(self.planned if parts is None else parts)
        finally:
            self.transfer.close()

    def refusal(self) -> RollupError:
        """Return the error of a failing run; the parts that it reported must exist."""
        with pytest.raises(RollupError) as caught:
            self.run()
        for part in self.written:
            assert self.store.stored(AGGREGATED + part.name).etag == part.etag
        return caught.value


def numbered_parts(store: FakeStore) -> dict[str, bytes]:
    """Return the parts in the bucket, by their names without the digest."""
    return dict(zip(numbered(parts(store)), parts(store).values(), strict=True))


def fetched(store: FakeStore) -> list[str]:
    """Return the keys of the raw objects that were read."""
    return [each.key for each in store.log if each.kind == "GET" and each.key.startswith(RAW)]


# -- bytes ---------------------------------------------------------------------------------------------


@given(
    hour=hours,
    part_size=st.integers(1, 60),
    separators=st.booleans(),
    keeps_crc=st.booleans(),
    threads=st.sampled_from([0, 3]),
    connections=st.integers(1, 6),
)
def test_parts_hold_the_raw_objects_end_to_end(
    hour: dict[str, bytes], part_size: int, separators: bool, keeps_crc: bool, threads: int, connections: int
) -> None:
    store = FakeStore(keeps_crc=keeps_crc, threads=threads)
    packing = Packing(store, hour, part_size=part_size, separators=separators, connections=connections)
    packing.run()
    stream = make_stream(part_size=part_size, ensure_newline=separators)
    assert joined_parts(store) == expected_of(store, stream)
    assert all(len(body) <= part_size or body in hour.values() for body in numbered_parts(store).values())
    by_name = {part.name: part for part in packing.written}
    assert list(by_name) == list(dict.fromkeys(by_name))
    assert by_name.keys() == {part.name for part in packing.planned}
    for planned in packing.planned:
        packed, body = by_name[planned.name], store.body(AGGREGATED + planned.name)
        assert (packed.size, packed.fingerprint) == (len(body), planned.fingerprint)
        assert packed.etag == store.stored(AGGREGATED + planned.name).etag
        assert packed.crc64nvme == (None if planned.copied else crc.crc64(body))
        wanted = [None if planned.copied else crc.crc64(store.body(item.key)) for item in planned.objects]
        assert [item.crc64nvme for item in packed.objects] == wanted


@given(
    hour=hours,
    separators=st.booleans(),
    threads=st.sampled_from([0, 3]),
    faults=st.lists(
        st.tuples(
            st.sampled_from(["GET", "PUT"]),
            st.sampled_from(
                [
                    TransientError("the connection broke"),
                    ThrottledError("slow down"),
                    ThrottledError("slow down", retry_after=0.001),
                    Effect.LOST_ANSWER,
                    Effect.WRONG_BYTES,
                    Effect.TRUNCATED,
                    Effect.WRONG_CRC,
                ]
            ),
            st.sampled_from([RAW, ".log", ".gz", "part-00001"]),
            st.integers(1, 2),
        ),
        max_size=(limits.REQUEST_TRIES - 1) // 2,
    ),
)
def test_transient_faults_do_not_change_the_parts(
    hour: dict[str, bytes],
    separators: bool,
    threads: int,
    faults: list[tuple[str, Effect | Exception, str, int]],
) -> None:
    store = FakeStore(threads=threads)
    packing = Packing(store, hour, separators=separators)
    rules = [store.on(kind, contains, effect, times) for kind, effect, contains, times in faults]
    packing.run()
    assert joined_parts(store) == expected_of(
        store, make_stream(part_size=PART_SIZE, ensure_newline=separators)
    )
    # A PUT is never truncated here, and a GET never returns the CRC of a PUT.
    harmless = {("PUT", Effect.TRUNCATED), ("GET", Effect.WRONG_CRC)}
    hits = sum(
        rule.hits
        for rule, (kind, effect, *_) in zip(rules, faults, strict=True)
        if (kind, effect) not in harmless
    )
    assert packing.packer.retries == hits


def test_newline_is_added_only_to_plain_objects_without_one() -> None:
    store = FakeStore()
    hour = {"a": b"one", "b": b"two\n", "c": b"", "d": b"\n", "e": b"x\r", "f.gz": b"zipped", "g": b"y" * 30}
    packing = Packing(store, hour, separators=True)
    packing.run()
    assert numbered_parts(store) == {
        "part-00000.log": b"one\ntwo\n\nx\r\n",
        "part-00001.log": b"y" * 30,
        "part-00002.log.gz": b"zipped",
    }
    by_name = dict(zip(numbered(part.name for part in packing.written), packing.written, strict=True))
    assert [item.separator for item in by_name["part-00000.log"].objects] == [1, 0, 0, 0, 1]
    assert by_name["part-00000.log"].separators == 2
    assert by_name["part-00001.log"].separators == by_name["part-00002.log.gz"].separators == 0


def test_empty_objects_are_packed_without_requests() -> None:
    store = FakeStore()
    packing = Packing(store, {"a": b"", "b": b"bytes", "c": b"", "d.gz": b""})
    packing.run()
    assert numbered_parts(store) == {"part-00000.log": b"bytes", "part-00001.log.gz": b""}
    assert fetched(store) == [RAW + "b"]
    assert [len(part.objects) for part in sorted(packing.written, key=lambda part: part.name)] == [3, 1]


def test_object_larger_than_a_part_is_copied_by_the_store() -> None:
    store = FakeStore()
    packing = Packing(store, {"a": b"a" * 31, "b": b"b" * 10}, settings=TAGGED)
    packing.run()
    assert numbered_parts(store) == {"part-00000.log": b"a" * 31, "part-00001.log": b"b" * 10}
    assert fetched(store) == [RAW + "b"]
    copied = [operation.name for operation in store.log if operation.kind == "COPY"]
    assert numbered(copied) == ["part-00000.log"]
    assert {store.stored(AGGREGATED + name).headers["x-amz-tagging"] for name in parts(store)} == {"x=y"}
    # The claim is read before each of the two parts.
    assert packing.packer.requests == {"GET": 3, "PUT": 1, "COPY": 1}


def test_only_requested_parts_are_written() -> None:
    store = FakeStore()
    packing = Packing(store, THREE)
    packing.run(packing.planned[1:2])
    assert list(numbered_parts(store)) == ["part-00001.log"]
    assert fetched(store) == [RAW + "b.log"]


def test_packing_no_parts_makes_no_requests() -> None:
    store = FakeStore()
    Packing(store, {}).run()
    assert store.log == []


@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32c", "crc32"])
def test_body_is_compared_with_any_crc_of_the_store(algorithm: str) -> None:
    store = FakeStore()
    store.on("GET", "b.log", Effect.WRONG_BYTES)
    packing = Packing(store, THREE, algorithm=algorithm)
    packing.run()
    assert packing.packer.retries == 1
    assert [item.checked for part in packing.written for item in part.objects] == [algorithm] * 3
    assert joined_parts(store)[""] == b"".join(THREE.values())


@pytest.mark.parametrize("md5_etag", [True, False])
def test_body_without_crc_is_compared_by_length(md5_etag: bool) -> None:
    packing = Packing(FakeStore(keeps_crc=False), THREE, md5_etag=md5_etag)
    packing.run()
    objects = [item for part in packing.written for item in part.objects]
    assert [(item.checked, item.etag_is_md5) for item in objects] == [("length", md5_etag)] * 3


# -- requests ------------------------------------------------------------------------------------------


class ReverseGate:
    """Blocks GETs until enough have arrived, then releases the first ones in reverse order."""

    def __init__(self, until: int) -> None:
        self.most = 0
        self.order: list[int] = []
        self._until = until
        self._arrived = self._waiting = 0
        self._condition = threading.Condition()

    def __call__(self) -> None:
        with self._condition:
            position = self._arrived
            self._arrived += 1
            self._waiting += 1
            self.most = max(self.most, self._waiting)
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: self._arrived >= self._until, 30)
            if position < self._until:
                assert self._condition.wait_for(lambda: len(self.order) == self._until - 1 - position, 30)
                self.order.append(position)
            self._waiting -= 1
            self._condition.notify_all()


@pytest.mark.parametrize("separators", [False, True])
def test_objects_received_in_reverse_order_are_placed_correctly(separators: bool) -> None:
    store = FakeStore(threads=12)
    gate = ReverseGate(until=9)
    store.on("GET", "", gate, times=100)
    hour = {f"{number:02d}.log": bytes([65 + number]) * (number % 7 + 1) for number in range(20)}
    packing = Packing(store, hour, connections=8, separators=separators)
    packing.run()
    assert gate.order == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert joined_parts(store) == expected_of(
        store, make_stream(part_size=PART_SIZE, ensure_newline=separators)
    )


def test_requests_in_flight_stay_within_the_connections() -> None:
    store = FakeStore(threads=32)
    hour = {f"{number:03d}.log": b"x" for number in range(200)}
    gate = ReverseGate(until=7)
    store.on("GET", "", gate, times=1000)
    packing = Packing(store, hour, connections=4)
    packing.run()
    # A few more requests than connections wait in the transfer, so that no connection is idle.
    assert gate.most <= packing.transfer.most_in_flight <= 4 + 4 // 2 + 1
    assert gate.most == 7


def test_next_parts_are_fetched_while_one_is_written() -> None:
    store = FakeStore(threads=4)
    fetched = threading.Event()
    store.on("GET", "c.log", fetched.set)
    store.on("PUT", "part-00000", lambda: _wait(fetched))
    Packing(store, {name: body[:2] for name, body in THREE.items()}, part_size=2).run()
    assert joined_parts(store)[""] == b"aabbcc"


def _wait(event: threading.Event) -> None:
    assert event.wait(30)


def test_parts_are_written_in_order_within_bounded_memory() -> None:
    store = FakeStore()
    hour = {f"{number}.log": b"x" * 20 for number in range(9)}
    packing = Packing(store, hour, connections=1)
    seen: list[int] = []
    store.on("GET", RAW, lambda: seen.append(len(packing.written)), times=9)
    packing.run()
    # Two buffers: the third part waits until the first is written.
    assert all(written >= number - 1 for number, written in enumerate(seen))
    assert len(seen) == len(packing.written) == 9


@pytest.mark.parametrize(("kind", "name"), [("GET", "b.log"), ("PUT", "part-00001")])
def test_unanswered_request_is_cancelled_and_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, name: str
) -> None:
    monkeypatch.setattr("include.log_rollup.steps.request_loop.TICK_SECONDS", 0.002)
    store = FakeStore()
    store.on(kind, name, Effect.STALLED, times=2)
    at_once = PackSettings(connect_timeout=timedelta(0), response_timeout=timedelta(0))
    packing = Packing(store, THREE, settings=at_once)
    with caplog.at_level(logging.WARNING):
        packing.run()
    assert packing.packer.retries == 2
    assert joined_parts(store)[""] == b"".join(THREE.values())
    assert f"trying again: {kind} " in caplog.text
    assert name in caplog.text


def test_request_timeout_grows_with_the_body() -> None:
    times = PackSettings(connect_timeout=timedelta(seconds=2), response_timeout=timedelta(seconds=3))
    assert times.request_seconds(0) == 2 + 2 + 3
    assert times.request_seconds(limits.SLOWEST_BODY_BYTES_PER_SECOND * 10) == 7 + 10


# -- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("GET", "b.log"), ("PUT", "part-00001")])
def test_lasting_fault_ends_after_the_last_try(kind: str, name: str) -> None:
    store = FakeStore()
    rule = store.on(kind, name, TransientError("the connection broke"), times=999)
    error = Packing(store, THREE).refusal()
    assert isinstance(error, TransientError)
    assert str(error) == f"the connection broke (after {limits.REQUEST_TRIES} tries)"
    assert rule.hits == limits.REQUEST_TRIES


def test_changed_buffer_is_not_sent_again() -> None:
    store = FakeStore()
    rule = store.on("PUT", "part-00001", ChangedBufferError("its buffer changed"), times=999)
    assert isinstance(Packing(store, THREE).refusal(), ChangedBufferError)
    assert rule.hits == 1


def test_lasting_throttling_is_raised_as_throttling() -> None:
    store = FakeStore()
    store.on("GET", "b.log", ThrottledError("slow down"), times=999)
    assert isinstance(Packing(store, THREE).refusal(), ThrottledError)


@pytest.mark.parametrize(("throttled", "in_flight"), [(0, range(7, 8)), (7, range(1, 5))])
def test_throttling_lowers_the_requests_in_flight(throttled: int, in_flight: range) -> None:
    store = FakeStore()
    hour = {f"{number:03d}.log": b"x" for number in range(60)}
    packing = Packing(store, hour, connections=4)
    seen: list[int] = []
    lines: list[str] = []
    store.on("GET", "", ThrottledError("slow down"), times=throttled)
    store.on("GET", RAW, lambda: seen.append(packing.transfer.in_flight), times=9)
    store.on("GET", "", lambda: lines.append(packing.packer.progress()))
    packing.run()
    assert max(seen) in in_flight
    assert packing.packer.throttles == throttled
    assert packing.packer.retries == throttled
    assert ("slowed down to " in lines[0]) == bool(throttled)
    assert joined_parts(store)[""] == b"x" * 60


def test_refusal_fails_at_once() -> None:
    store = FakeStore()
    rule = store.on("GET", "b.log", AccessError("GET b.log: S3 answered 403"), times=9)
    assert isinstance(Packing(store, THREE).refusal(), AccessError)
    assert rule.hits == 1


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("size", [20, 31])
@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_changed_object_is_named_with_the_fix(threads: int, size: int, what: str) -> None:
    store = FakeStore(threads=threads)
    packing = Packing(store, {**THREE, "b.log": b"b" * size})
    if what == "changed":
        store.produce(RAW + "b.log", b"B" * size)
    else:
        store.vanish(RAW + "b.log")
    error = packing.refusal()
    assert isinstance(error, InputChangedError)
    assert f"s3://logs/{RAW}b.log" in str(error)
    assert "Nothing is lost: clear the run from plan_hour on" in str(error)
    assert "part-00001.log" not in numbered_parts(store)


@pytest.mark.parametrize("size", [10, 30])
def test_object_of_unplanned_size_is_not_packed(size: int) -> None:
    store = FakeStore()
    packing = Packing(store, THREE)
    store.produce(RAW + "b.log", b"B" * size)
    assert isinstance(packing.refusal(), InputChangedError)
    assert "part-00001.log" not in numbered_parts(store)


def test_object_changed_during_a_copy_is_named() -> None:
    store = FakeStore()
    packing = Packing(store, {"b.log": b"b" * 40})
    store.on("COPY", "", lambda: _discard(store.produce(RAW + "b.log", b"B" * 40)))
    error = packing.refusal()
    assert isinstance(error, InputChangedError)
    assert f"{RAW}b.log" in str(error)
    assert numbered_parts(store) == {}


def _discard(_: object) -> None:
    """Drop a result: the function of a rule returns nothing."""


def test_unexpected_etag_is_accepted_only_if_repeated() -> None:
    once, twice = FakeStore(), FakeStore()
    once.on("GET", "b.log", Effect.WRONG_ETAG)
    Packing(once, THREE).run()
    assert joined_parts(once)[""] == b"".join(THREE.values())
    twice.on("GET", "b.log", Effect.WRONG_ETAG, times=2)
    error = Packing(twice, THREE).refusal()
    assert isinstance(error, InputChangedError)
    assert "0" * 32 in str(error)
    assert twice.stored(RAW + "b.log").etag in str(error)


def test_truncated_body_without_crc_is_found_by_length() -> None:
    store = FakeStore(keeps_crc=False)
    store.on("GET", "b.log", Effect.TRUNCATED, times=99)
    error = Packing(store, THREE).refusal()
    assert isinstance(error, TransientError)
    assert "received 19 of 20 bytes" in str(error)
    assert "part-00001.log" not in numbered_parts(store)


@pytest.mark.parametrize("size", [20, 40])
@pytest.mark.parametrize("parts", [0, 1, 2])
def test_each_part_needs_an_ownership_check(size: int, parts: int) -> None:
    store = FakeStore()
    part_counts: list[int] = []

    def recheck() -> bool:
        part_counts.append(len(numbered_parts(store)))
        if len(part_counts) > parts:
            raise SupersededError("another run has planned the hour")
        return True

    packing = Packing(store, {name: body[:1] * size for name, body in THREE.items()}, recheck=recheck)
    assert isinstance(packing.refusal(), SupersededError)
    assert all(count <= number for number, count in enumerate(part_counts))
    assert len(numbered_parts(store)) <= parts


def test_passing_quick_check_replaces_the_full_check() -> None:
    store = FakeStore()
    store.write(CLAIM, b"ours", "text/plain")
    calls: list[tuple[bytes, int]] = []

    def is_current(claim: bytes) -> bool:
        calls.append((claim, len(numbered_parts(store))))
        return True

    def recheck() -> bool:
        raise AssertionError("the claim was current")

    Packing(store, THREE, is_current=is_current, recheck=recheck).run()
    assert [claim for claim, _ in calls] == [b"ours"] * 3
    assert all(count <= number for number, (_, count) in enumerate(calls))
    assert joined_parts(store)[""] == b"".join(THREE.values())


@pytest.mark.parametrize(
    ("body", "effect"),
    [
        (b"another", None),
        (b"", None),
        (b"ours" * 5000, None),
        (None, None),
        (b"ours", TransientError("the connection broke")),
        (b"ours", ThrottledError("slow down")),
        (b"ours", AccessError("denied")),
        (b"ours", Effect.STALLED),
    ],
)
def test_failing_quick_check_leads_to_the_full_check(
    monkeypatch: pytest.MonkeyPatch, body: bytes | None, effect: Effect | Exception | None
) -> None:
    monkeypatch.setattr("include.log_rollup.steps.request_loop.TICK_SECONDS", 0.002)
    at_once = PackSettings(connect_timeout=timedelta(0), response_timeout=timedelta(0))
    store = FakeStore()
    if body is not None:
        store.write(CLAIM, body, "text/plain")
    if effect is not None:
        store.on("GET", CLAIM.key, effect, times=9)
    part_counts: list[int] = []

    def recheck() -> bool:
        part_counts.append(len(numbered_parts(store)))
        return True

    packing = Packing(
        store, THREE, settings=at_once, is_current=lambda claim: claim.startswith(b"ours"), recheck=recheck
    )
    packing.run()
    assert len(part_counts) == 3
    assert packing.packer.retries == 0
    assert joined_parts(store)[""] == b"".join(THREE.values())


@pytest.mark.parametrize("size", [20, 40])
@pytest.mark.parametrize("threads", [0, 3])
def test_packing_stops_if_the_hour_is_complete(size: int, threads: int) -> None:
    store = FakeStore(threads=threads)
    packing = Packing(store, {name: body[:1] * size for name, body in THREE.items()}, recheck=lambda: False)
    assert not packing.run()
    assert parts(store) == {}
    assert packing.transfer.in_flight == 0


WRITES = ("PUT", "COPY")


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(("kind", "size"), [("PUT", 20), ("COPY", 40)])
@pytest.mark.parametrize(
    "fault", [TransientError("broke"), ThrottledError("slow down"), Effect.LOST_ANSWER], ids=str
)
def test_claim_is_read_before_each_try_of_a_write(
    kind: str, size: int, fault: Effect | Exception, threads: int
) -> None:
    """With one check for 8 tries over minutes, another run could complete the hour in between."""
    store = FakeStore(threads=threads)
    store.write(CLAIM, b"ours", "text/plain")
    rule = store.on(kind, "part-00001", fault, times=limits.REQUEST_TRIES - 1)
    Packing(store, {name: body[:1] * size for name, body in THREE.items()}, is_current=lambda _: True).run()
    assert rule.hits == limits.REQUEST_TRIES - 1
    reads = tries = 0
    last = ""
    for operation in store.log:
        if operation.kind == "GET" and operation.key == CLAIM.key:
            reads += 1
        elif operation.kind in WRITES:
            tries += 1
            assert reads >= tries, f"{operation} without reading the claim first"
        last = operation.kind
    assert reads == tries == len(THREE) + limits.REQUEST_TRIES - 1
    assert last in WRITES


@pytest.mark.parametrize(("kind", "size"), [("PUT", 20), ("COPY", 40)])
def test_claim_that_changes_between_two_tries_stops_the_write(kind: str, size: int) -> None:
    store = FakeStore()
    store.write(CLAIM, b"ours", "text/plain")

    def take_over() -> None:
        store.write(CLAIM, b"another", "text/plain")
        raise TransientError("the connection broke")

    def check() -> bool:
        raise SupersededError("another run has taken over")

    store.on(kind, "part-00000", take_over)
    packing = Packing(
        store, {"a.log": b"a" * size}, is_current=lambda claim: claim == b"ours", recheck=check, connections=1
    )
    assert isinstance(packing.refusal(), SupersededError)
    assert parts(store) == {}
    assert [operation.kind for operation in store.log if operation.kind in WRITES] == [kind]
    assert set(packing.packer.attempted) == {packing.planned[0].name}


# -- objects above 5 GiB, copied in ranges -------------------------------------------------------------


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit of one copy to 50 bytes, and a range to 20."""
    monkeypatch.setattr("include.log_rollup.steps.packer.LARGEST_COPY_BYTES", 50)
    monkeypatch.setattr("include.log_rollup.steps.packer.COPY_RANGE_BYTES", 20)


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(("size", "ranges"), [(50, 0), (51, 3), (60, 3), (61, 4)])
def test_large_object_is_copied_in_ranges(size: int, ranges: int, threads: int) -> None:
    store = FakeStore(threads=threads)
    body = bytes(range(size))
    packing = Packing(store, {"a": body, "b": b"b"}, settings=TAGGED)
    store.on("RANGECOPY", "part-0", TransientError("broke"), times=2)
    packing.run()
    assert numbered_parts(store) == {"part-00000.log": body, "part-00001.log": b"b"}
    copied = [operation.detail for operation in store.log if operation.kind == "RANGECOPY"]
    assert len(copied) == (ranges + 2 if ranges else 0)
    assert {*copied} == {f"{start}-{min(start + 20, size) - 1}" for start in range(0, size, 20) if ranges}
    assert store.uploads == {}
    copy = next(part for part in packing.written if part.size == size)
    assert copy.etag == store.stored(AGGREGATED + copy.name).etag
    assert [(item.crc64nvme, item.checked) for item in copy.objects] == [(None, "length")]


@pytest.mark.usefixtures("small_ranges")
def test_large_copy_is_finished_only_under_the_claim() -> None:
    store = FakeStore()
    checks: list[int] = []

    def check() -> bool:
        checks.append(len(store.log))
        if len(checks) == 2:
            raise SupersededError("another run has taken over")
        return True

    packing = Packing(store, {"a": b"a" * 60}, recheck=check)
    assert isinstance(packing.refusal(), SupersededError)
    kinds = [operation.kind for operation in store.log]
    assert kinds.index("BEGIN") < kinds.index("RANGECOPY")
    assert checks[0] <= kinds.index("BEGIN")
    assert "FINISH" not in kinds
    assert parts(store) == {}
    # The run that completes the hour aborts the upload.
    assert [key for key, _ in store.uploads.values()] == [AGGREGATED + packing.planned[0].name]
    assert set(packing.packer.attempted) == {packing.planned[0].name}


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("kind", ["BEGIN", "RANGECOPY", "FINISH", "HEAD"])
def test_large_copy_that_is_refused_fails(kind: str) -> None:
    store = FakeStore()
    store.on(kind, "part-0", AccessError("denied"))
    assert isinstance(Packing(store, {"a": b"a" * 60}).refusal(), AccessError)


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_large_object_changed_during_a_copy_is_named(what: str) -> None:
    store = FakeStore()
    packing = Packing(store, {"a": b"a" * 60})

    def change_object() -> None:
        if what == "changed":
            store.produce(RAW + "a", b"A" * 60)
        else:
            store.vanish(RAW + "a")

    store.on("RANGECOPY", "part-0", change_object)
    error = packing.refusal()
    assert isinstance(error, InputChangedError)
    assert f"s3://logs/{RAW}a changed after it was planned" in str(error)
    assert parts(store) == {}


def test_copies_run_in_parallel_within_the_connections() -> None:
    store = FakeStore(threads=12)
    together = threading.Barrier(4)
    store.on("COPY", "", lambda: _discard(together.wait(30)), times=8)
    hour = {f"{number}": b"x" * 40 for number in range(8)}
    packing = Packing(store, hour, connections=4)
    packing.run()
    assert len(parts(store)) == 8
    assert packing.transfer.most_in_flight <= 4 + 4 // 2 + 1


def test_stalled_copy_is_cancelled_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.log_rollup.steps.request_loop.TICK_SECONDS", 0.002)
    store = FakeStore()
    store.on("COPY", "part-00000", Effect.STALLED, times=2)
    at_once = PackSettings(connect_timeout=timedelta(0), response_timeout=timedelta(0))
    packing = Packing(store, {"a": b"a" * 40}, settings=at_once)
    packing.run()
    assert packing.packer.retries == 2
    assert numbered_parts(store) == {"part-00000.log": b"a" * 40}


def test_persistently_wrong_bytes_are_not_packed() -> None:
    store = FakeStore()
    store.on("GET", "b.log", Effect.WRONG_BYTES, times=99)
    error = Packing(store, THREE).refusal()
    assert isinstance(error, TransientError)
    assert "crc64nvme" in str(error)
    assert "part-00001.log" not in numbered_parts(store)


def test_parts_written_before_a_failure_are_reported() -> None:
    store = FakeStore()
    store.on("GET", "c.log", AccessError("denied"), times=9)
    packing = Packing(store, THREE, connections=1)
    packing.refusal()
    # A write that was pending when another failed may leave a part that is not reported.
    assert {part.name for part in packing.written} <= set(parts(store))
    assert "part-00002.log" not in numbered_parts(store)


def test_no_request_is_pending_after_a_failure() -> None:
    store = FakeStore()
    store.on("GET", "a.log", Effect.STALLED)
    store.on("GET", "c.log", AccessError("denied"))
    packing = Packing(store, THREE)
    packing.refusal()
    assert packing.transfer.in_flight == 0
    assert numbered_parts(store).keys() <= {"part-00001.log"}


def test_failing_report_ends_the_packing() -> None:
    store = FakeStore()
    packing = Packing(store, THREE)

    def fail(planned: PlannedPart, _: list[WrittenPart]) -> None:
        raise AccessError(f"the receipt of {planned.name} was refused")

    packing.packer = ShardPacker(
        store,
        packing.transfer,
        Location("logs", AGGREGATED),
        Location("logs", RAW, is_raw=True),
        PackSettings(),
        OwnershipCheck(CLAIM, lambda _: False, lambda: True),
        fail,
    )
    with pytest.raises(AccessError, match="the receipt of part-0000"):
        packing.run()


def test_progress_names_parts_bytes_and_retries() -> None:
    store = FakeStore()
    store.on("GET", "b.log", TransientError("once"))
    packing = Packing(store, THREE)
    packing.run()
    assert packing.packer.progress().startswith("parts 3/3 | 60 B written | ")
    assert "retries 1" in packing.packer.progress()


# -- two stores ----------------------------------------------------------------------------------------


class Passing(Packing):
    """A packer between two stores that have buckets of the same name."""

    def __init__(
        self,
        source: FakeStore,
        target: FakeStore,
        hour: Mapping[str, bytes],
        recheck: Callable[[], bool] = lambda: True,
        range_bytes: int = 20,
    ) -> None:
        super().__init__(source, hour)
        self.transfer = PassingTransfer(source, target, 4)
        self.packer = ShardPacker(
            TwoStores(source, target, lambda *_: self.transfer, 8),
            self.transfer,
            Location("logs", AGGREGATED),
            Location("logs", RAW, is_raw=True),
            PackSettings(WriteOptions(tags=(("x", "y"),)), range_bytes=range_bytes),
            OwnershipCheck(CLAIM, lambda _: False, recheck),
            self._note,
        )


LARGE: Mapping[str, bytes] = {"a": bytes(range(61)), "b": b"b" * 10, "c": bytes(range(200, 240))}


@pytest.mark.parametrize("states_crc", [True, False])
def test_large_objects_pass_between_two_stores(states_crc: bool) -> None:
    source, target = FakeStore(keeps_crc=states_crc), FakeStore()
    packing = Passing(source, target, LARGE)
    packing.run()
    assert list(numbered_parts(target).values()) == [LARGE["a"], LARGE["b"], LARGE["c"]]
    assert parts(source) == {}
    assert target.uploads == {}
    assert source.writes() == []
    spans = [operation.detail for operation in source.log if operation.kind == "GETRANGE"]
    assert sorted(spans) == ["0+20", "0+20", "20+20", "20+20", "40+20", "60+1"]
    (passed,) = (part for part in packing.written if part.size == 61)
    assert passed.crc64nvme == crc.crc64(LARGE["a"])
    assert [item.checked for item in passed.objects] == ["crc64nvme" if states_crc else "length"]
    assert target.stored(AGGREGATED + passed.name).headers == {"x-amz-tagging": "x=y"}


@pytest.mark.parametrize("kind", ["GETRANGE", "PUTRANGE"])
@pytest.mark.parametrize("effect", [TransientError("broke"), Effect.LOST_ANSWER, Effect.TRUNCATED])
def test_range_that_fails_is_sent_again(kind: str, effect: Effect | Exception) -> None:
    source, target = FakeStore(), FakeStore()
    (source if kind == "GETRANGE" else target).on(kind, "", effect, times=3)
    Passing(source, target, LARGE).run()
    assert list(numbered_parts(target).values()) == [LARGE["a"], LARGE["b"], LARGE["c"]]


def test_damaged_upload_of_a_range_is_refused_and_sent_again() -> None:
    source, target = FakeStore(), FakeStore()
    target.on("PUTRANGE", "", Effect.WRONG_BYTES, times=2)
    packing = Passing(source, target, LARGE)
    packing.run()
    assert packing.packer.retries == 2
    assert list(numbered_parts(target).values()) == [LARGE["a"], LARGE["b"], LARGE["c"]]


def test_damaged_download_of_a_range_completes_no_upload() -> None:
    source, target = FakeStore(), FakeStore()
    source.on("GETRANGE", "a", Effect.WRONG_BYTES)
    with pytest.raises(TransientError, match="the received bytes have crc64nvme"):
        Passing(source, target, {"a": LARGE["a"]}).run()
    assert parts(target) == {}
    assert [operation.kind for operation in target.log if operation.kind == "FINISH"] == []


def test_object_that_changed_while_it_passed_completes_no_upload() -> None:
    source, target = FakeStore(), FakeStore()

    def change() -> None:
        source.produce(RAW + "a", b"changed" * 10)

    target.on("PUTRANGE", "", change)
    with pytest.raises(InputChangedError, match="changed after it was planned"):
        Passing(source, target, {"a": LARGE["a"]}).run()
    assert parts(target) == {}


def test_object_larger_than_it_was_listed_completes_no_upload() -> None:
    """With an ETag that did not change, only the size that the server states with each range shows it."""
    source, target = FakeStore(), FakeStore()
    packing = Passing(source, target, {"a": LARGE["a"]})
    source.corrupt(RAW + "a", keep_etag=True, body=LARGE["a"] + b"more")
    with pytest.raises(TransientError, match="it has 65 bytes, 61 were listed"):
        packing.run()
    assert parts(target) == {}


def test_upload_is_completed_only_under_the_claim() -> None:
    source, target = FakeStore(), FakeStore()
    answers = iter([True, False])
    packing = Passing(source, target, {"a": LARGE["a"]}, recheck=lambda: next(answers))
    assert packing.packer.run(packing.planned) is False
    assert parts(target) == {}


def test_ranges_use_few_buffers() -> None:
    source, target = FakeStore(), FakeStore()
    packing = Passing(source, target, {"a": bytes(2000)})
    sizes: list[int] = []

    def counted(size: int) -> memoryview:
        sizes.append(size)
        return memoryview(bytearray(size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.log_rollup.steps.packer.allocate", counted)
        packing.run()
    assert sizes == [20] * 4
    assert numbered_parts(target) == {"part-00000.log": bytes(2000)}


@pytest.mark.parametrize(("size", "buffers"), [(100, [20] * 4), (700, [70, 70]), (5000, [500])])
def test_very_large_objects_use_fewer_larger_buffers(
    size: int, buffers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload has at most 10,000 ranges; here 10."""
    monkeypatch.setattr("include.log_rollup.steps.packer.MAX_RANGES", 10)
    source, target = FakeStore(), FakeStore()
    sizes: list[int] = []

    def counted(size: int) -> memoryview:
        sizes.append(size)
        return memoryview(bytearray(size))

    monkeypatch.setattr("include.log_rollup.steps.packer.allocate", counted)
    Passing(source, target, {"a": bytes(size)}).run()
    assert sizes == buffers
    assert numbered_parts(target) == {"part-00000.log": bytes(size)}


def test_two_stores_never_write_to_the_source() -> None:
    source, target = FakeStore(), FakeStore()
    store = TwoStores(source, target, lambda *_: FakeTransfer(target, 1), 8)
    raw, part = Location("logs", "k", is_raw=True), Location("logs", "k")
    for write in (
        lambda: store.write(raw, b"", ""),
        lambda: store.publish(part, raw),
        lambda: store.publish(raw, part),
        lambda: store.delete_if(raw, "etag"),
        lambda: store.begin_upload(raw, {}),
        lambda: store.abort_upload(raw, "id"),
        lambda: store.finish_upload(raw, "id", []),
        lambda: store.refuses_wrong_crc(raw),
    ):
        with pytest.raises(AssertionError, match="raw objects are never written"):
            write()
    store.write(part, b"bytes", "")
    store.delete("logs", ["other"])
    assert (source.log, target.body("k")) == ([], b"bytes")
    assert store.requests == {"PutObject": 1, "DeleteObjects": 1}
