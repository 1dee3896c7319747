"""Whole hours on servers with one quirk each: the hour completes and is right, or it ends with a clear error.

What is in the bucket is read from the server's memory (:mod:`tests.support.quirks.judge`), because with most
quirks the server's own answers cannot be trusted.
"""

import functools
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from botocore.retries.standard import ExponentialBackoff

from dev.tls import TlsFiles
from include.log_rollup import limits
from include.log_rollup.errors import PermanentError, RollupError, UnreadableRecordError, VanishedInputError
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.wait_for_raw_hour import SettleRule, check_raw_hour
from log_rollup_plugin.cli.main import main
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.support.hour_on_server import Pipeline, settings_on, stream_on
from tests.support.quirks.catalog import QUIRKS
from tests.support.quirks.judge import MANIFEST, MARKER, WORK, marker_of, problems_of_hour, problems_outside
from tests.support.quirks.process import QuirkServer, Seen
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

T = TypeVar("T")

BUCKET = "logs"
OBJECTS = 150
# Pages this small make several of an hour of some hundred objects.
PAGE = 40
LARGE = f"{RAW}large.log"
OTHERS = {
    "raw/app/20261123/07/a.log": b"the hour before",
    "raw/app/20261123/080/a.log": b"a neighbour that begins alike",
    "raw/app/20261123/09/a.log": b"the hour behind",
    "aggregated/app/20261123/07/part-00000.log": b"the hour before",
    "aggregated/app/20261123/07/_SUCCESS": b"{}",
    "aggregated/app/20261123/09/part-00000.log": b"the hour behind",
    "notes.txt": b"somebody's",
}
UPLOADS = (
    f"{AGGREGATED}other.bin",
    "aggregated/app/20261123/07/part-00001.log",
    "other/large.bin",
    "raw/app/20261123/08/large.log",
)
FOREIGN = {
    f"{AGGREGATED}part-00000.log": b"a predecessor's",
    f"{AGGREGATED}part-00001.log.snappy": b"another program's",
    f"{AGGREGATED}{WORK}notes.txt": b"a person's",
}

# Quirks with which an hour cannot complete, and what the error has to say.
FAILS = {
    "key-listed-with-two-etags": r"twice",
    "key-skipped-between-pages": r"LIST|listing|listed|came late|vanished|not what was planned",
    "token-repeats": r"token",
    "page-repeats": r"LIST .*pages in a row",
    "empty-pages": r"LIST .*empty pages in a row",
    "prefix-ignored": r"outside|prefix",
    "listed-etags-differ": r"ETag|If-Match",
    "wrong-checksum-stated": r"(?i)crc|checksum",
    "if-match-fails": r"412|If-Match|ETag",
    "copy-header-ignored": r"(?i)copy|copies",
    "copy-always-fails": r"(?i)copy",
    "copy-cut-short": r"large\.log|not proven",
    "sizes-listed-smaller": r"bytes",
    "sizes-listed-larger": r"bytes",
    "redirects-for-ever": r"307|redirect",
    "regions-in-circles": r"301|redirect|region",
}
# Quirks with which the first run ends with an error that says this, and the next run completes the hour.
COMPLETES_WHEN_CLEARED = {
    "checksum-echoed-body-damaged": r"not proven.*clear the run",
    "parts-lost": r"not proven.*clear the run",
}
# Quirks with which an hour may complete, or end with an error that says this.
MAY_FAIL = {
    "truncated-without-token": r"token",
    "truncated-missing": r"token|LIST",
    "truncated-false-with-token": r"token|LIST",
    "list-version-ignored": r"token",
    "sizes-missing": r"(?i)size",
    "times-missing": r"LastModified",
    "times-damaged": r"LastModified|timestamp|yesterday",
    "neighbour-listed": r"outside|prefix",
    "listing-without-etags": r"ETag",
    "etag-with-line-break": r"ETag",
    "put-without-etag": r"ETag",
    "range-ignored": r"(?i)range",
    "weak-etags": r"ETag",
    "copy-not-implemented": r"(?i)copy|copies",
    "copy-not-allowed": r"(?i)copy|copies",
    "damaged-checksum-header": r"(?i)checksum",
    "short-checksum-header": r"(?i)checksum",
}
# Servers whose statements about checksums prove nothing: parts have to be read back.
UNPROVEN = ("checksum-echoed", "checksum-echoed-body-damaged", "no-checksums", "probe-")
# Quirks that need more than an hour: TLS, a proxy, time, an archived object.
ELSEWHERE = {
    "tls-closed-in-handshake",
    "heads-byte-by-byte",
    "default-port-dropped",
    "requests-expire",
    "archived-answers400",
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once: how long they wait is tested elsewhere."""
    monkeypatch.setattr("include.log_rollup.limits.REQUEST_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr("include.log_rollup.limits.REQUEST_LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.001)


@pytest.fixture(scope="module")
def plain_process() -> Iterator[QuirkServer]:
    """One process without TLS for all tests of this file."""
    with QuirkServer() as server:
        yield server


@pytest.fixture(scope="module")
def tls_process(tls_files: TlsFiles) -> Iterator[QuirkServer]:
    """One process with TLS for all tests of this file."""
    with QuirkServer(tls=tls_files) as server:
        yield server


@dataclass
class Hour:
    """An hour on a server with a quirk.

    :param made: the raw objects that belong into it, by key
    :param before: all objects as they were before anything ran
    :param foreign: objects below the aggregated prefix that are none of the pipeline's
    """

    server: QuirkServer
    pipeline: Pipeline
    quirk: str
    made: dict[str, bytes]
    before: dict[str, Seen] = field(default_factory=dict)
    foreign: Mapping[str, bytes] = field(default_factory=dict)

    def run(self) -> RollupError | None:
        """Run all steps, each tried as often as Airflow does; the error that ended the hour."""
        try:
            self._tried(self.wait)
            for ref in self._tried(self.pipeline.plan).shards:
                self._tried(partial(self.pipeline.pack, ref))
            self._tried(self.pipeline.validate)
            self._tried(self.pipeline.complete)
        except RollupError as error:
            return error
        return None

    def wait(self) -> None:
        """Look once at the raw hour, as the sensor does."""
        with PooledS3Hook.for_stream(self.pipeline.stream, 1, 1) as hook:
            seen = check_raw_hour(hook, self.pipeline.stream.at(HOUR), SettleRule(timedelta(0), None, False))
        if self.quirk != "key-skipped-between-pages":
            assert seen.objects == sum(key.startswith(RAW) for key in self.before)

    def now(self) -> dict[str, Seen]:
        """All objects as they are in the server's memory."""
        return self.server.objects(BUCKET)

    def assert_complete(self) -> Mapping[str, Any]:
        """The hour is complete and right, and nothing else was touched; its marker."""
        now = self.now()
        self.assert_others_untouched(now)
        assert problems_of_hour(now, self.made, AGGREGATED, self.foreign) == []
        return marker_of(now, AGGREGATED)

    def assert_failed(self, error: RollupError, words: str) -> None:
        """The hour is not complete, its error says why, and nothing else was touched."""
        assert re.search(words, str(error)), f"the error does not name the fault: {error!r}"
        now = self.now()
        assert marker_of(now, AGGREGATED) == {}
        self.assert_others_untouched(now)

    def assert_others_untouched(self, now: Mapping[str, Seen]) -> None:
        """What lies outside the aggregated hour is as it was, uploads of others included."""
        assert problems_outside(self.before, now, AGGREGATED) == []
        assert {one["key"] for one in self.server.state()["uploads"]} >= set(UPLOADS)

    def assert_bounded(self) -> None:
        """No more requests than an hour of this size may take."""
        requests = self.server.requests()
        counts = Counter(one["operation"] for one in requests)
        assert len(requests) < 12 * len(self.made) + 800, counts
        assert counts["ListObjectsV2"] < 700, counts

    def _tried(self, step: Callable[[], T]) -> T:
        for _ in range(limits.TASK_RETRIES):
            try:
                return step()
            except PermanentError:
                raise
            except RollupError:
                continue
        return step()


HourFactory = Callable[..., Hour]


@pytest.fixture
def hour_on(monkeypatch: pytest.MonkeyPatch) -> HourFactory:
    """Makes an hour: ``hour_on(server, quirk, raw, extra, **settings of the quirk)``."""

    def make(
        server: QuirkServer,
        quirk: str = "no-quirk",
        raw: Mapping[str, bytes | Seen] | None = None,
        extra: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
        foreign: Mapping[str, bytes] | None = None,
        **settings: Any,
    ) -> Hour:
        monkeypatch.setenv(
            "AIRFLOW_CONN_AWS_DEFAULT", server.airflow_connection_json(endpoint, **(extra or {}))
        )
        server.reset(quirk, **{"page_size": PAGE, **settings})
        given = mixed_hour() if raw is None else dict(raw)
        bodies = {key: one.body if isinstance(one, Seen) else one for key, one in given.items()}
        server.put(BUCKET, {**given, **OTHERS, **(foreign or {})})
        for key in UPLOADS:
            server.begin_upload(BUCKET, key)
        pipeline = Pipeline(stream_on(BUCKET, max_connections=6), server.client(), BUCKET)
        made = {key: body for key, body in bodies.items() if is_input(key, body)}
        hour = Hour(server, pipeline, quirk, made, server.objects(BUCKET), foreign or {})
        # Once more, so that its counters begin with the hour.
        server.choose(quirk, **{"page_size": PAGE, **settings})
        return hour

    return make


def is_input(key: str, body: bytes) -> bool:
    """Whether an object belongs into the hour: not a hidden one, nor a folder's placeholder."""
    name = key.removeprefix(RAW)
    hidden = any(step[:1] in ("_", ".") for step in name.split("/") if step)
    return not hidden and (bool(body) or not key.endswith("/"))


@functools.cache
def mixed_hour(objects: int = OBJECTS) -> dict[str, bytes | Seen]:
    """An hour with all that quirks depend on: explicit folders, odd names, empty, hidden and packed objects.

    One object is larger than a part, so that the store copies it.
    """
    rng = random.Random(objects)
    folders = ("a/", "a-b/", "a!/", "", "it's/", "R&D <1>/", "space and+plus/", "%41/", "grüße/\U0001f600/")
    made: dict[str, bytes | Seen] = {f"{RAW}a/": b"", f"{RAW}a-b/": b"", f"{RAW}_tmp/x.log": b"hidden\n"}
    number = 0
    while len(made) < objects - 1:
        name = f"{RAW}{folders[number % len(folders)]}{number:05d}"
        body = b"object %d %b\n" % (number, rng.randbytes(rng.randint(1, 20_000)))
        if number % 29 == 7:
            packed = gzip.compress(body, 1, mtime=0)
            made[f"{name}.log.gz"] = Seen(packed, headers={"content-encoding": "gzip"})
        elif number % 23 == 5:
            made[f"{name}.log"] = b""
        else:
            made[f"{name}.log"] = body
        number += 1
    made[LARGE] = rng.randbytes(5 * 1024 * 1024 + 1)
    return made


def small_hour(objects: int) -> dict[str, bytes]:
    """An hour of many small objects in folders, one of them explicit."""
    folders = ("a/", "a-b/", "a.d/", "b/")
    made = {f"{RAW}{folders[n % 4]}{n:06d}.log": b"object %d\n" % n for n in range(objects - 1)}
    return {**made, f"{RAW}a/": b""}


def judged(hour: Hour, quirk: str) -> RollupError | None:
    """Run an hour and hold what came of it against what is expected with this quirk; the error, if any."""
    error = hour.run()
    if words := COMPLETES_WHEN_CLEARED.get(quirk):
        assert error is not None
        hour.assert_failed(error, words)
        error = hour.run()
    hour.assert_bounded()
    if error is None:
        assert quirk not in FAILS, f"the hour completed: {marker_of(hour.now(), AGGREGATED)}"
        verified = hour.assert_complete()["verified"]["parts"]
        assert not (quirk.startswith(UNPROVEN) and "stored-crc64nvme" in verified), verified
    else:
        assert quirk in FAILS or quirk in MAY_FAIL, f"the hour should complete: {error!r}"
        hour.assert_failed(error, FAILS.get(quirk) or MAY_FAIL[quirk])
    return error


@pytest.mark.parametrize("quirk", sorted(QUIRKS.keys() - ELSEWHERE))
def test_hour_is_correct_or_error_names_the_fault(
    plain_process: QuirkServer, hour_on: HourFactory, quirk: str
) -> None:
    hour = hour_on(plain_process, quirk)
    judged(hour, quirk)
    assert not any("x-injected" in one["headers"] for one in plain_process.requests())


@pytest.mark.parametrize(
    "quirk",
    [
        "no-quirk",
        "folder-listed-twice",
        "folder-by-folder",
        "start-after-ignored",
        "start-after-in-tree",
    ],
)
def test_hour_of_three_full_pages_is_correct(
    plain_process: QuirkServer, hour_on: HourFactory, quirk: str
) -> None:
    judged(hour_on(plain_process, quirk, small_hour(2300), page_size=1000), quirk)


@pytest.mark.parametrize("quirk", ["no-checksums", "checksum-echoed"])
def test_hour_with_random_etags_and_no_checksums_is_right(
    plain_process: QuirkServer, hour_on: HourFactory, quirk: str
) -> None:
    """Such ETags were once compared as MD5s, so that no part was ever proven."""
    rng = random.Random(quirk)
    raw = {key: Seen(body, etag=rng.randbytes(16).hex()) for key, body in small_hour(40).items()}
    hour = hour_on(plain_process, quirk, raw)
    assert hour.run() is None
    assert hour.assert_complete()["verified"]["parts"] == {"read-back": 1}


# -- TLS, proxies, time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quirk", ["no-quirk", "tls-closed-in-handshake", "heads-byte-by-byte", "length-not-stated"]
)
def test_hour_over_tls_is_correct(tls_process: QuirkServer, hour_on: HourFactory, quirk: str) -> None:
    hour = hour_on(tls_process, quirk, mixed_hour(40))
    assert hour.run() is None
    hour.assert_complete()


def test_default_port_is_not_signed(
    plain_process: QuirkServer, hour_on: HourFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_proxy(monkeypatch, "http_proxy", plain_process)
    hour = hour_on(plain_process, "default-port-dropped", mixed_hour(40), endpoint="http://127.0.0.1:80")
    assert hour.run() is None
    hour.assert_complete()


def test_default_port_of_tls_is_not_signed(
    tls_files: TlsFiles, hour_on: HourFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with QuirkServer(tls=tls_files, tunnel_only=True) as server:
        use_proxy(monkeypatch, "https_proxy", server)
        hour = hour_on(
            server,
            "default-port-dropped",
            mixed_hour(40),
            {"verify": str(tls_files.ca)},
            "https://127.0.0.1:443",
        )
        assert hour.run() is None
        hour.assert_complete()


def test_connections_behind_a_proxy_stay_within_the_cap(
    plain_process: QuirkServer, hour_on: HourFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_proxy(monkeypatch, "http_proxy", plain_process)
    hour = hour_on(plain_process, "no-quirk", small_hour(400), endpoint="http://127.0.0.1:80")
    stream = hour.pipeline.stream
    for control in (1, 4):
        before = idle_connections(plain_process)
        with PooledS3Hook.for_stream(stream, control, control) as hook:
            planned = plan_hour(hook, stream, HOUR, "test")
        assert plain_process.state()["peak"] <= before + control
    before = idle_connections(plain_process)
    with PooledS3Hook.for_stream(stream, stream.max_connections, 1) as hook:
        pack_shard(hook, stream, planned.shards[0])
    assert plain_process.state()["peak"] <= before + stream.max_connections


def idle_connections(server: QuirkServer) -> int:
    """Count the peak from now on; the connections that are open already, with the one that asks."""
    server.reset_peak()
    return int(server.state()["open"])


def use_proxy(monkeypatch: pytest.MonkeyPatch, variable: str, server: QuirkServer) -> None:
    """Have all requests go through the server itself as a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{server.port}")


def test_requests_are_signed_with_the_present_time(plain_process: QuirkServer, hour_on: HourFactory) -> None:
    made = {f"{RAW}{number:03}.log": b"object %d\n" % number for number in range(25)}
    hour = hour_on(plain_process, "requests-expire", made, seconds=2.5, delay_seconds=1.0)
    assert hour.run() is None
    hour.assert_complete()
    assert {one["error"] for one in plain_process.requests()} <= {"", "NoSuchKey", "BadDigest"}


# -- objects that cannot be read, and other people's -----------------------------------------------------


@pytest.mark.parametrize("quirk", ["no-quirk", "archived-answers400"])
@pytest.mark.parametrize("size", [100, 5 * 1024 * 1024 + 1])
def test_archived_object_is_named(
    plain_process: QuirkServer, hour_on: HourFactory, quirk: str, size: int
) -> None:
    cold = f"{RAW}cold.log"
    hour = hour_on(plain_process, quirk, {**small_hour(20), cold: Seen(bytes(size), storage_class="GLACIER")})
    error = hour.run()
    assert error is not None
    hour.assert_failed(error, r"cold\.log.*(archived|restore)")
    hour.assert_bounded()


def test_foreign_objects_stay_and_are_counted(plain_process: QuirkServer, hour_on: HourFactory) -> None:
    hour = hour_on(plain_process, foreign=FOREIGN)
    assert hour.run() is None
    assert hour.assert_complete()["foreign"] == len(FOREIGN)
    # A rerun with a late object replaces parts, and again none of the others.
    late = {f"{RAW}a!/late.log": b"late\n"}
    plain_process.put(BUCKET, late)
    hour.made.update(late)
    hour.before = {**hour.before, **{key: hour.now()[key] for key in late}}
    assert hour.run() is None
    assert hour.assert_complete()["foreign"] == len(FOREIGN)


def test_uploads_of_others_are_not_given_up(plain_process: QuirkServer, hour_on: HourFactory) -> None:
    hour = hour_on(plain_process, "uploads-ignore-prefix", mixed_hour(40))
    assert hour.run() is None
    hour.assert_complete()
    assert Counter(one["operation"] for one in plain_process.requests())["AbortMultipartUpload"] == 0


def _replace(now: Mapping[str, Seen], name: str, change: Callable[[bytes], bytes]) -> dict[str, bytes | None]:
    return {f"{AGGREGATED}{name}": change(now[f"{AGGREGATED}{name}"].body)}


def _other_format(body: bytes) -> bytes:
    header, _, rest = gzip.decompress(body).partition(b"\n")
    return gzip.compress(json.dumps({**json.loads(header), "format": 99}).encode() + b"\n" + rest)


def _other_marker(body: bytes) -> bytes:
    return json.dumps({**json.loads(body), "format": 99}).encode()


_GONE: dict[str, bytes | None] = {f"{AGGREGATED}{MANIFEST}": None}
# What becomes of marker and manifest; None deletes.
UNREADABLE: dict[str, Callable[[Mapping[str, Seen]], dict[str, bytes | None]]] = {
    "manifest of another format": lambda now: _replace(now, MANIFEST, _other_format),
    "both of another format": lambda now: {
        **_replace(now, MANIFEST, _other_format),
        **_replace(now, MARKER, _other_marker),
    },
    "manifest cut short": lambda now: _replace(now, MANIFEST, lambda body: body[: len(body) // 2]),
    "manifest cut short, no marker": lambda now: {
        **_replace(now, MANIFEST, lambda body: body[: len(body) // 2]),
        f"{AGGREGATED}{MARKER}": None,
    },
    "manifest empty": lambda now: _replace(now, MANIFEST, lambda _: b""),
    "manifest is no gzip": lambda now: _replace(now, MANIFEST, lambda _: b"not gzip"),
    "manifest deleted": lambda _: _GONE,
    "manifest deleted, marker empty": lambda _: {**_GONE, f"{AGGREGATED}{MARKER}": b""},
    "manifest deleted, marker no JSON": lambda _: {**_GONE, f"{AGGREGATED}{MARKER}": b"done"},
    "both deleted": lambda _: {**_GONE, f"{AGGREGATED}{MARKER}": None},
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_last_copies_survive_unreadable_records(
    plain_process: QuirkServer, hour_on: HourFactory, kind: str
) -> None:
    hour = hour_on(plain_process, raw=mixed_hour(60))
    assert hour.run() is None
    changes = UNREADABLE[kind](hour.now())
    gone = sorted(hour.made)[::2]
    plain_process.remove(BUCKET, [*gone, *(key for key, body in changes.items() if body is None)])
    plain_process.put(BUCKET, {key: body for key, body in changes.items() if body is not None})
    before = plain_process.objects(BUCKET)
    with pytest.raises(
        (UnreadableRecordError, VanishedInputError), match=r"drop_vanished|Restore|Update Log Rollup"
    ):
        hour.pipeline.plan()
    assert hour.now() == before


def test_damaged_receipt_counts_as_absent(plain_process: QuirkServer, hour_on: HourFactory) -> None:
    hour = hour_on(plain_process, raw=mixed_hour(40))
    hour.pipeline.pack_all(hour.pipeline.plan())
    receipts = {key: b"damaged" for key in hour.now() if "/receipt-" in key}
    assert receipts
    plain_process.put(BUCKET, receipts)
    assert hour.run() is None
    hour.assert_complete()


# -- the command doctor ----------------------------------------------------------------------------------


@dataclass
class Doctor:
    """What the command found: state and text of each check, by its name."""

    checks: dict[str, tuple[str, str]]


@pytest.fixture
def ask_doctor(
    hour_on: HourFactory,
    plain_process: QuirkServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], Doctor]:
    """Runs the command against a server with a quirk."""

    def ask(quirk: str) -> Doctor:
        hour_on(plain_process, quirk, small_hour(5))
        path = tmp_path / "streams.yaml"
        path.write_text(yaml.safe_dump({"streams": [settings_on(BUCKET)]}))
        monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(path))
        capsys.readouterr()
        main(["doctor", "--json"])
        checks = json.loads(capsys.readouterr().out)["checks"]
        return Doctor({one["check"]: (one["state"], f"{one['found']} {one['remedy']}") for one in checks})

    return ask


@pytest.mark.parametrize("quirk", ["redirects-for-ever", "regions-in-circles"])
def test_doctor_names_redirects_in_circles(
    ask_doctor: Callable[[str], Doctor], plain_process: QuirkServer, quirk: str
) -> None:
    state, text = ask_doctor(quirk).checks["list raw"]
    assert state == "fail"
    assert re.search(FAILS[quirk], text)
    assert len(plain_process.requests()) < 200


def test_doctor_names_an_operation_that_is_missing(ask_doctor: Callable[[str], Doctor]) -> None:
    state, text = ask_doctor("uploads-not-implemented").checks["open uploads"]
    assert state == "warn"
    assert "endpoint is right" not in text


@pytest.mark.parametrize(
    "quirk", ["checksum-wanted", "checksum-header-invalid", "delete-objects-not-implemented"]
)
def test_doctor_writes_as_the_tasks_do(ask_doctor: Callable[[str], Doctor], quirk: str) -> None:
    checks = ask_doctor(quirk).checks
    assert [checks[name][0] for name in ("write aggregated", "read aggregated", "remove aggregated")] == [
        "ok"
    ] * 3
