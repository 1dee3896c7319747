"""Crashes of the process that rolls an hour up and of its S3 server, and wrong clocks.

The moment of a crash is drawn from the requests of an undisturbed run. The request is held before it reaches the
server, in the middle of its body, or after the server has carried it out. Then the process is killed with SIGKILL.
"""

import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pytest

from dev.servers import MotoServer, RcloneServer, S3Server
from include.log_rollup.errors import AccessError
from include.log_rollup.steps.wait_for_raw_hour import RawHourStatus, SettleRule, check_raw_hour
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.integration.conftest import PipelineFactory
from tests.integration.fork_server import ForkServer
from tests.support.debian import program_or_skip
from tests.support.faults import Answer, Call, ReplaceHeaders, Request, Rule, Stall, internal_error, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.forwarding import Exchange
from tests.support.hour_on_server import settings_on
from tests.support.proxy import FaultProxy
from tests.support.raw_hours import AGGREGATED, MIB, RAW, make_hour, put_objects

# Set CRASH_SEED to repeat a run with the same moments.
SEED = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(10**6))
COPIED_IN_PARTS = 5 * MIB
# The random pieces of keys, which differ between two runs of the same hour.
RANDOM_IN_KEYS = re.compile(r"(?<=-)[0-9a-f]{8}(?=/)|(?<=staged-)[0-9a-f]{16}|(?<=removals/)[0-9a-f]{16}")


@dataclass(frozen=True)
class Moment:
    """A request that every run of the same hour sends, and how far it gets before the crash."""

    operation: str
    key: str
    attempt: int
    reached: str

    @classmethod
    def draw(cls, exchanges: tuple[Exchange, ...], rng: random.Random) -> "Moment":
        """Draw one of a run's requests: a read of a raw object, a request for a part, or another one.

        All three kinds are equally likely.
        """
        retried = {
            (exchange.request.operation, exchange.request.key)
            for exchange in exchanges
            if exchange.status is None or exchange.status >= 500
        }
        kinds: dict[str, list[Request]] = {"raw": [], "parts": [], "records": []}
        for exchange in exchanges:
            request = exchange.request
            # Another run may retry less, and write a receipt less often if the parts follow each other faster.
            timed = "/receipt-" in request.key or (request.operation, request.key) in retried
            if timed and request.attempt > 1:
                continue
            if request.operation == "GetObject" and request.key.startswith(RAW):
                kinds["raw"].append(request)
            elif "/part-" in request.key and request.operation != "ListObjectsV2":
                kinds["parts"].append(request)
            else:
                kinds["records"].append(request)
        request = rng.choice(kinds[rng.choice(sorted(kinds))])
        reached = rng.choice(("nothing", "within", "carried out"))
        return cls(request.operation, request.key, request.attempt, reached)

    def rule(self, hold: Callable[[Request], Answer]) -> Rule:
        """The rule that holds the request in another run of the hour."""
        key = ".+".join(map(re.escape, RANDOM_IN_KEYS.split(self.key)))
        match = on(self.operation, key=f"^{key}$", attempt=self.attempt)
        if self.reached == "within":
            # The proxy may not notice the end of a client before the stall is over, so the stall is short.
            stall = Stall(5.0, at="request" if self.operation == "PutObject" else "response")
            return Rule(match, stall, count=1)
        return Rule(match, Call(hold, "before" if self.reached == "nothing" else "after"), count=1)


@dataclass(frozen=True)
class CrashTest:
    """Makes an hour, and kills processes that roll it up.

    :param fork_server: starts the processes
    """

    make_bucket: BucketFactory
    pipeline_on: PipelineFactory
    fault_proxy: ProxyFactory
    fork_server: ForkServer

    def kill_and_finish(self, server: S3Server, seed: int) -> None:
        """Kill a run at a moment drawn by the seed, inspect what it left, and run the hour again."""
        rng = random.Random(seed)
        bucket = self.make_bucket(server)
        proxy = self.fault_proxy(server)
        pipeline = self.pipeline_on(server, bucket, proxy.endpoint_url)
        made = make_hour(
            pipeline.client, bucket, RAW, objects=30, min_bytes=20_000, max_bytes=400_000, seed=seed
        )
        # rclone writes an empty object for a copy in parts.
        in_parts = COPIED_IN_PARTS if isinstance(server, MotoServer) else 0
        if in_parts:
            made[f"{RAW}oversize.log"] = b"oversize\n" * (12 * MIB // 9)
            put_objects(pipeline.client, bucket, {f"{RAW}oversize.log": made[f"{RAW}oversize.log"]})
        proxy.reset_records()
        with pytest.MonkeyPatch.context() as patch:
            if in_parts:
                patch.setattr("include.log_rollup.steps.packer.LARGEST_COPY_BYTES", in_parts)
                patch.setattr("include.log_rollup.steps.packer.COPY_RANGE_BYTES", in_parts)
            pipeline.run()
        moment = Moment.draw(proxy.exchanges, rng)
        print(f"CRASH_SEED {SEED}, this kill's {seed}: {type(server).__name__}, {moment}")
        for key in pipeline.listed():
            pipeline.client.delete_object(Bucket=bucket, Key=key)
        proxy.wait_idle()
        proxy.reset_records()

        self.kill_at(proxy, moment.rule, bucket, in_parts)
        proxy.wait_idle(60.0)
        proxy.clear_rules()

        marked = f"{AGGREGATED}_SUCCESS" in pipeline.listed()
        left = pipeline.parts()
        opened = pipeline.open_uploads()
        pipeline.run()
        pipeline.verify(made)
        finished = pipeline.parts()
        # Each part that existed after the kill was whole.
        assert left == {key: finished[key] for key in left}
        # If the completion marker existed, no part was missing.
        assert not marked or left == finished
        assert pipeline.open_uploads() == []
        print(f"left: {len(left)} of {len(finished)} parts, {len(opened)} open uploads")

    def kill_at(
        self,
        proxy: FaultProxy,
        rule_with: Callable[[Callable[[Request], Answer]], Rule],
        bucket: str,
        in_parts: int,
    ) -> None:
        """Start a run of the hour, and kill it as soon as a rule applies.

        :param rule_with: returns the rule, given a function that holds a request until the process is dead
        :param in_parts: size in bytes above which objects are copied in parts; 0 for the default
        """
        dead = threading.Event()

        def hold(_: Request) -> Answer:
            dead.wait(60)
            return internal_error()

        rule = rule_with(hold)
        proxy.add(rule)
        process = self.fork_server.start(settings_on(bucket), copy_in_parts_above=in_parts)
        try:
            while not proxy.fired(rule):
                assert process.poll() is None, (
                    f"it ended with {process.poll()} before {rule}: {process.results}"
                )
                time.sleep(0.02)
        finally:
            process.kill()
            dead.set()


@pytest.fixture
def crash(
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
    fork_server: ForkServer,
) -> CrashTest:
    """Kills processes that roll an hour up."""
    return CrashTest(make_bucket, pipeline_on, fault_proxy, fork_server)


@pytest.mark.parametrize("number", range(3))
def test_kill_at_a_random_moment_is_finished_by_a_rerun(
    request: pytest.FixtureRequest, crash: CrashTest, number: int
) -> None:
    server: S3Server = request.getfixturevalue(("rclone_server", "moto_server")[number % 2])
    crash.kill_and_finish(server, SEED + number)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_kills_at_20_random_moments_are_finished_by_reruns(
    request: pytest.FixtureRequest, crash: CrashTest, number: int
) -> None:
    server: S3Server = request.getfixturevalue(("rclone_server", "moto_server")[number % 2])
    crash.kill_and_finish(server, SEED + 1000 + number)


def test_multipart_copy_left_by_a_kill_is_aborted_at_completion(
    moto_server: MotoServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
    crash: CrashTest,
) -> None:
    bucket = make_bucket(moto_server)
    proxy = fault_proxy(moto_server)
    pipeline = pipeline_on(moto_server, bucket, proxy.endpoint_url)
    made = {f"{RAW}oversize.log": b"oversize\n" * (12 * MIB // 9), f"{RAW}small.log": b"small\n"}
    put_objects(pipeline.client, bucket, made)
    crash.kill_at(proxy, lambda hold: Rule(on("UploadPartCopy", nth=2), Call(hold)), bucket, COPIED_IN_PARTS)
    proxy.clear_rules()
    (upload,) = pipeline.open_uploads()
    assert upload.startswith(f"{AGGREGATED}part-00000-")
    # The hour is completed even if the credentials do not allow to list uploads.
    denied = Rule(on("ListMultipartUploads"), Answer(403, "AccessDenied"))
    proxy.add(denied)
    pipeline.run()
    assert proxy.fired(denied) == 1
    pipeline.verify(made)
    proxy.remove(denied)
    pipeline.run()
    assert pipeline.open_uploads() == []
    pipeline.verify(made)


def test_packing_survives_a_killed_and_restarted_s3_server(
    pipeline_on: PipelineFactory, fault_proxy: ProxyFactory
) -> None:
    with RcloneServer() as server:
        server.create_bucket("logs")
        proxy = fault_proxy(server)
        pipeline = pipeline_on(server, "logs", proxy.endpoint_url)
        made = make_hour(pipeline.client, "logs", RAW, objects=60, min_bytes=20_000, max_bytes=400_000)
        planned = pipeline.plan()

        def restart(_: Request) -> None:
            server.kill()
            server.start()

        reading = Rule(on("GetObject", key="raw/", nth=20), Call(restart))
        writing = Rule(on("PutObject", key="/part-", attempt=1), Call(restart, "after"), count=1)
        proxy.add(reading, writing)
        pipeline.pack_all(planned)
        assert (proxy.fired(reading), proxy.fired(writing)) == (1, 1)
        pipeline.validate()
        pipeline.complete()
        pipeline.verify(made)
        assert pipeline.open_uploads() == []


def server_clock(ahead: timedelta) -> Rule:
    """Makes the Date of each answer that of a server whose clock is ahead of this machine's."""
    return Rule(on(), ReplaceHeaders({"Date": format_datetime(datetime.now(UTC) + ahead, usegmt=True)}))


@pytest.mark.parametrize(
    "ahead", [timedelta(minutes=12), pytest.param(timedelta(minutes=-12), marks=pytest.mark.soak)], ids=str
)
def test_worker_with_a_clock_minutes_off_packs_an_hour(
    s3_server: S3Server,
    bucket: str,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
    ahead: timedelta,
) -> None:
    proxy = fault_proxy(s3_server)
    proxy.add(server_clock(ahead))
    pipeline = pipeline_on(s3_server, bucket, proxy.endpoint_url)
    made = make_hour(pipeline.client, bucket, RAW, objects=12)
    pipeline.run()
    pipeline.verify(made)


@pytest.mark.parametrize(
    ("ahead", "state"),
    [(timedelta(minutes=12), RawHourStatus.SETTLED), (timedelta(minutes=8), RawHourStatus.BEING_WRITTEN)],
    ids=str,
)
def test_settled_hour_is_determined_by_the_servers_clock(
    s3_server: S3Server,
    bucket: str,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
    ahead: timedelta,
    state: RawHourStatus,
) -> None:
    """The newest object was written just now, so the hour is quiet only if the server is 10 minutes ahead."""
    proxy = fault_proxy(s3_server)
    pipeline = pipeline_on(s3_server, bucket, proxy.endpoint_url)
    two_hours_ago = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    paths = pipeline.stream.at(two_hours_ago)
    put_objects(pipeline.client, bucket, {f"{paths.key_base}a.log": b"a\n"})
    proxy.add(server_clock(ahead))
    hook = PooledS3Hook.for_stream(pipeline.stream, 1, 1)
    assert check_raw_hour(hook, paths, SettleRule(timedelta(minutes=10), None, False)).status is state


@pytest.mark.parametrize("ahead", [timedelta(minutes=20), timedelta(minutes=-20)], ids=str)
def test_clock_that_s3_rejects_is_reported_at_once(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
    ahead: timedelta,
) -> None:
    """AWS refuses a signature that is more than 15 minutes off its own clock; the test servers do not."""
    bucket = make_bucket(rclone_server)
    proxy = fault_proxy(rclone_server)
    pipeline = pipeline_on(rclone_server, bucket, proxy.endpoint_url)
    made = make_hour(pipeline.client, bucket, RAW, objects=6)
    planned = pipeline.plan()

    def refuse(request: Request) -> Answer | None:
        signed = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        now = datetime.now(UTC) + ahead
        if abs(now - signed) <= timedelta(minutes=15):
            return None
        return Answer(
            403, "RequestTimeTooSkewed", "The difference between the times is too large.",
            {"Date": format_datetime(now, usegmt=True)},
        )  # fmt: skip

    proxy.add(Rule(on(), Call(refuse)), server_clock(ahead))
    proxy.reset_records()
    for step in (
        pipeline.plan,
        partial(pipeline.pack, planned.shards[0]),
        pipeline.validate,
        pipeline.complete,
    ):
        with pytest.raises(AccessError, match="the clock of this machine is off"):
            step()
    # No request was tried again.
    assert len(proxy.exchanges) == 4
    pipeline.assert_not_complete()
    proxy.clear_rules()
    pipeline.run()
    pipeline.verify(made)


@pytest.mark.soak
@pytest.mark.parametrize("offset", ["+10m", "-10m"])
def test_process_with_a_clock_minutes_off_packs_an_hour(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory, offset: str
) -> None:
    library = program_or_skip("libfaketimeMT.so.1", "libfaketime", "usr/lib/*/faketime")
    pipeline = pipeline_on(s3_server, bucket)
    made = make_hour(pipeline.client, bucket, RAW, objects=30)
    clock = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with ForkServer(environment=clock) as server:
        code, printed, _ = server.run(
            settings_on(bucket), None, int(s3_server.endpoint_url.rpartition(":")[2])
        )
    assert code == 0, printed
    marker = pipeline.verify(made).marker
    away = datetime.fromisoformat(marker["completed_at"]) - datetime.now(UTC)
    # The process used the wrong clock.
    assert timedelta(minutes=5) < abs(away) < timedelta(minutes=15)
