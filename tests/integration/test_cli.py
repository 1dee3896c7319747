"""The command log-rollup on real servers: its text, its JSON and its exit codes. It changes nothing."""

import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from dev.servers import MotoServer, RcloneServer
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.queries.overview import last_hours
from include.log_rollup.streams import load_streams
from log_rollup_plugin.cli import all_streams, hours
from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory, RunCommand, UseStreams
from tests.support.faults import Answer, Rule, access_denied, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline, settings_on, stream_on
from tests.support.markers import marker_body
from tests.support.raw_hours import AGGREGATED, MIB, RAW, make_small_hour, odd_hour, put_objects

HOUR_ARGUMENT = "2026-11-23T08"
LARGE = f"{RAW}large.log"
HOUR_OBJECT = "plus+plus.log"


@pytest.fixture
def rclone(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    use_streams: UseStreams,
) -> Pipeline:  # fmt: skip
    """The raw objects of an hour on rclone: odd names, and an object larger than a part."""
    bucket = make_bucket(rclone_server)
    use_streams(settings_on(bucket))
    pipeline = pipeline_on(rclone_server, bucket)
    put_objects(pipeline.client, bucket, raw_objects())
    return pipeline


@pytest.fixture
def complete(rclone: Pipeline) -> Pipeline:
    """The same hour, complete."""
    rclone.run()
    return rclone


@pytest.fixture(scope="module")
def complete_hour(rclone_server: RcloneServer) -> Iterator[Pipeline]:
    """The same hour for all tests of this module, complete."""
    bucket = f"bucket-{uuid.uuid4().hex[:16]}"
    rclone_server.create_bucket(bucket)
    pipeline = Pipeline(stream_on(bucket), rclone_server.client(), bucket)
    put_objects(pipeline.client, bucket, raw_objects())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
        pipeline.run()
    yield pipeline
    rclone_server.delete_bucket(bucket)


@pytest.fixture
def shared(
    complete_hour: Pipeline, rclone_server: RcloneServer, pipeline_on: PipelineFactory, use_streams: UseStreams
) -> Pipeline:  # fmt: skip
    """The complete hour of this module, which a test may read and not change."""
    use_streams(settings_on(complete_hour.bucket))
    return pipeline_on(rclone_server, complete_hour.bucket)


@functools.cache
def raw_objects() -> dict[str, bytes]:
    return odd_hour(RAW) | {LARGE: bytes(range(256)) * 24 * 1024}


def contents(pipeline: Pipeline) -> dict[str, bytes]:
    """All objects in the bucket, key to body."""
    return {
        key: pipeline.client.get_object(Bucket=pipeline.bucket, Key=key)["Body"].read()
        for key in pipeline.listed("")
    }


def test_status_shows_the_hours_of_a_day(command: RunCommand, shared: Pipeline) -> None:
    result = command("status", "app", "2026-11-23")
    assert result.code == 0
    lines = result.text.splitlines()
    assert len(lines) == 2 + 24
    row = next(line for line in lines if line.startswith("2026-11-23 08:00"))
    assert row.split()[2:4] == ["complete", f"{len(raw_objects())}"]
    document = command("status", "app", "20261123", "--json").json
    assert (document["stream"], document["day"]) == ("app", "2026-11-23")
    states = {hour["hour"]: hour["state"] for hour in document["hours"]}
    assert states.pop("2026-11-23T08:00:00Z") == "complete"
    assert set(states.values()) == {"incomplete"}
    hour = document["hours"][8]
    assert hour["objects"] == len(raw_objects())
    assert hour["bytes_in"] == hour["bytes_out"] == sum(map(len, raw_objects().values()))
    assert hour["verified"]["parts"] == {"read-back": hour["parts"]}
    assert hour["peak_sockets"] > 0
    assert hour["max_connections"] == 8


def test_status_distinguishes_building_from_impossible_hours(command: RunCommand, rclone: Pipeline) -> None:
    rclone.plan()
    assert command("status", "app", "2026-11-23", "--json").json["hours"][8]["state"] == "building"
    before = command("status", "app", "2026-10-31", "--json").json["hours"]
    assert {hour["state"] for hour in before} == {"before-start"}
    today = command("status", "app", "--json").json["hours"]
    assert today[-1]["state"] in {"not-over", "before-start"}
    future = command("status", "app", "2999-01-01", "--json")
    assert (future.code, future.json["hours"]) == (0, [])


class FixedClock(datetime):
    """A clock that shows 45 minutes past an hour."""

    @classmethod
    def now(cls, tz: Any = None) -> Self:
        """See the base class."""
        return cls.fromisoformat("2026-11-26T08:45:00+00:00")


def test_status_without_a_stream_shows_all_streams(
    command: RunCommand, rclone: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_streams, "datetime", FixedClock)
    stream = stream_on(rclone.bucket)
    hours = last_hours(FixedClock.now())
    for number, hour in enumerate(hours[:-1]):
        marker = marker_body(stream, hour, 0 if number == 9 else 100, 2048, 1024)
        rclone.client.put_object(Bucket=rclone.bucket, Key=stream.at(hour).marker.key, Body=marker)
    result = command("status")
    assert result.code == 0
    row, _, summary = result.text.splitlines()[2:]
    assert row.split() == ["app", "2026-11-26", "06:00", "-", "47", "/", "47", "1", "96,256", "48,128", "-"]
    assert summary == "1 of 1 streams whole; 47 of 47 due hours complete"
    rclone.client.delete_object(Bucket=rclone.bucket, Key=stream.at(hours[4]).marker.key)
    result = command("status")
    assert (result.code, f"app: {format_hour(hours[4])} is incomplete" in result.text) == (1, True)
    result = command("status", "--json")
    (found,) = result.json["streams"]
    assert (result.code, result.json["whole"], found["whole"], found["error"]) == (1, False, False, None)
    assert found["incomplete"] == [{"hour": format_hour(hours[4]), "state": "incomplete", "problem": None}]
    assert (found["complete"], found["empty"], found["bytes_stored"]) == (46, 1, 46 * 1024)
    assert (found["volume"]["state"], found["groups"]) == ("unknown", {"compared": None, "unusual": []})


def test_verify_accepts_a_correct_hour_and_changes_nothing(command: RunCommand, shared: Pipeline) -> None:
    before = contents(shared)
    result = command("verify", "app", HOUR_ARGUMENT)
    assert (result.code, result.text.splitlines()[-1]) == (0, "OK")
    document = command("verify", "app", "20261123/08", "--deep", "--json").json
    objects = len(raw_objects())
    assert document["ok"] is True
    assert document["proofs"] == {"read-back": document["parts"]}
    assert document["raw"] == {
        "present": objects, "compared": objects, "expired": 0, "vanished": 0, "changed": 0, "late": 0,
    }  # fmt: skip
    assert contents(shared) == before


def test_verify_uses_the_manifest_where_raw_has_expired(command: RunCommand, complete: Pipeline) -> None:
    for key in raw_objects():
        complete.client.delete_object(Bucket=complete.bucket, Key=key)
    result = command("verify", "app", HOUR_ARGUMENT, "--deep")
    assert result.code == 0
    assert (
        f"{len(raw_objects())} raw objects have expired: their parts are proven by the manifest"
        in result.text
    )
    document = command("verify", "app", HOUR_ARGUMENT, "--json").json
    assert (document["ok"], document["raw"]["expired"]) == (True, len(raw_objects()))


def test_damaged_part_fails_verify_and_cat_and_is_unchanged(
    command: RunCommand, complete: Pipeline, rclone_server: RcloneServer
) -> None:
    part = complete.part(1)
    key = next(key for key, body in raw_objects().items() if body and key != LARGE)
    found = command("locate", "app", key, "--json").json
    path = rclone_server.data_dir / complete.bucket / AGGREGATED / found["part"]
    body = bytearray(path.read_bytes())
    body[found["offset"]] ^= 1
    path.write_bytes(body)
    before = contents(complete)
    result = command("verify", "app", HOUR_ARGUMENT)
    assert result.code == 1
    assert f"FAILED: {found['part']}: " in result.text
    document = command("verify", "app", HOUR_ARGUMENT, "--deep", "--json")
    assert document.code == 1
    assert [problem["part"] for problem in document.json["problems"]] == [found["part"]]
    read = command("cat", "app", key)
    assert (read.code, read.out) == (1, b"")
    assert key in read.err
    assert contents(complete) == before
    assert part in before


def test_verify_reports_the_state_of_an_incomplete_hour(command: RunCommand, rclone: Pipeline) -> None:
    result = command("verify", "app", HOUR_ARGUMENT)
    assert (result.code, result.out) == (1, b"")
    assert "is not complete, so there is nothing to verify: no run has planned it" in result.err
    document = command("verify", "app", HOUR_ARGUMENT, "--json").json
    assert document["error"]["kind"] == "NotFoundError"
    assert document["error"]["message"] in result.err


def test_odd_keys_are_found_and_read_after_raw_expired(
    command: RunCommand, complete: Pipeline, tmp_path: Path
) -> None:
    names = (
        "space in name.log",
        "escaped%2Fslash.log",
        "percent%.log",
        "grüße-中文.log",
        "line-separator\u2028.log",
    )
    for key in raw_objects():
        complete.client.delete_object(Bucket=complete.bucket, Key=key)
    assert {RAW + name for name in names} < raw_objects().keys()
    for key in (LARGE, *(RAW + name for name in names)):
        found = command("cat", "app", f"s3://{complete.bucket}/{key}", "-o", str(tmp_path / "body"), "--json")
        assert (found.code, found.json["key"], found.json["complete"]) == (0, key, True)
        assert (tmp_path / "body").read_bytes() == raw_objects()[key]
        part = complete.client.get_object(Bucket=complete.bucket, Key=AGGREGATED + found.json["part"])
        offset, length = found.json["offset"], found.json["length"]
        assert part["Body"].read()[offset : offset + length] == raw_objects()[key]
    assert command("cat", "app", f"{RAW}space in name.log").out == raw_objects()[f"{RAW}space in name.log"]


def test_locate_prints_one_line_and_reports_a_missing_key(command: RunCommand, shared: Pipeline) -> None:
    found = command("locate", "app", LARGE)
    assert found.code == 0
    assert found.text.startswith(f"s3://{shared.bucket}/{AGGREGATED}part-")
    assert found.text.endswith("offset 0  length 6,291,456\n")
    missing = command("locate", "app", f"{RAW}never.log", "--json")
    assert (missing.code, missing.json["error"]["kind"]) == (1, "NotFoundError")
    for wrong in ("elsewhere/x.log", f"s3://another-bucket/{LARGE}"):
        assert command("locate", "app", wrong).code == 2


def test_locate_says_if_the_part_is_gone_or_another_one(command: RunCommand, complete: Pipeline) -> None:
    part = AGGREGATED + command("locate", "app", LARGE, "--json").json["part"]
    complete.client.put_object(Bucket=complete.bucket, Key=part, Body=b"?")
    result = command("locate", "app", LARGE)
    assert (result.code, "the part has been written again since it was proven" in result.err) == (1, True)
    complete.client.delete_object(Bucket=complete.bucket, Key=part)
    result = command("locate", "app", LARGE, "--json")
    assert (result.code, f"s3://{complete.bucket}/{part}") == (1, result.json["part_url"])
    assert "the part has been deleted since it was proven" in result.err


def test_cat_writes_a_file_only_if_its_bytes_are_correct(
    command: RunCommand, complete: Pipeline, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "large.log"
    assert command("cat", "app", LARGE, "-o", str(target)).code == 2
    target.parent.mkdir()
    result = command("cat", "app", LARGE, "-o", str(target), "--json")
    assert (result.code, result.json["output"]) == (0, str(target))
    assert target.read_bytes() == raw_objects()[LARGE]
    part = result.json["part"]
    complete.client.put_object(Bucket=complete.bucket, Key=AGGREGATED + part, Body=b"?" * 6 * MIB)
    assert command("cat", "app", LARGE, "--output", str(target)).code == 1
    assert [path.name for path in target.parent.iterdir()] == ["large.log"]
    assert target.read_bytes() == raw_objects()[LARGE]
    assert command("cat", "app", LARGE, "--json").code == 2
    link = target.with_name("link")
    link.symlink_to(target)
    assert command("cat", "app", f"{RAW}case.log", "-o", str(link)).code == 0
    assert (link.is_symlink(), target.read_bytes()) == (True, raw_objects()[f"{RAW}case.log"])
    pipe = target.with_name("pipe")
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_bytes)
        assert command("cat", "app", f"{RAW}case.log", "-o", str(pipe)).code == 0
        assert (read.result(), pipe.is_fifo()) == (raw_objects()[f"{RAW}case.log"], True)


def test_cat_writes_to_a_pipe_of_the_shell(command: RunCommand, shared: Pipeline) -> None:
    """As with `-o /dev/stdout |` and `-o >(zcat)`, whose links lead to no path."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as pipe:
        with os.fdopen(theirs, "wb"):
            result = command("cat", "app", f"{RAW}case.log", "-o", f"/dev/fd/{theirs}")
        assert (result.code, pipe.read()) == (0, raw_objects()[f"{RAW}case.log"]), result.err
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb"):
        assert command("cat", "app", LARGE, "-o", f"/dev/fd/{theirs}").code == 141


def test_cat_writes_a_file_of_the_longest_name(command: RunCommand, shared: Pipeline, tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    result = command("cat", "app", f"{RAW}case.log", "-o", str(target))
    assert result.code == 0, result.err
    assert target.read_bytes() == raw_objects()[f"{RAW}case.log"]


def test_cat_leaves_no_file_on_a_full_disk(shared: Pipeline, tmp_path: Path) -> None:
    # The object fits into Python's buffer, so the error comes when that is written.
    key = f"{RAW}deep/er/and/deeper.log"
    assert 512 < len(raw_objects()[key]) < io.DEFAULT_BUFFER_SIZE
    target = tmp_path / "out"
    target.mkdir()
    arguments = ["cat", "app", key, "-o", f"{target / 'case.log'}"]
    process = run_script(arguments, tmp_path, ROOT / "log-rollup", on_full_disk=True)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"cannot write" in err
    assert list(target.iterdir()) == []


def test_plan_command_shows_the_plan_and_changes_nothing(command: RunCommand, rclone: Pipeline) -> None:
    assert command("plan", "app", HOUR_ARGUMENT).code == 2
    before = rclone.listed("")
    document = command("plan", "app", HOUR_ARGUMENT, "--dry-run", "--json").json
    assert rclone.listed("") == before
    assert (document["objects"], document["parts_copied"]) == (len(raw_objects()), 1)
    assert (document["unchanged"], document["parts_standing"]) == (False, 0)
    assert document["left_out"] == dict.fromkeys(
        ("hidden", "placeholders", "markers", "excluded", "unjoinable", "unmatched"), 0
    )
    rclone.run()
    result = command("plan", "app", HOUR_ARGUMENT, "--dry-run")
    assert (result.code, "nothing would be done" in result.text) == (0, True)
    rclone.client.delete_object(Bucket=rclone.bucket, Key=LARGE)
    refused = command("plan", "app", HOUR_ARGUMENT, "--dry-run", "--json")
    assert (refused.code, refused.json["error"]["kind"]) == (1, "VanishedInputError")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["status", "other"], "there is no stream 'other'"),
        (["status", "app", "yesterday"], "is not a day"),
        (["status", "--groups"], "--groups needs a stream"),
        (["verify", "app", "2026-11-23"], "is a day"),
        (["verify", "app", "8 o'clock"], "is not an hour"),
        (["status", "app", "raw/app/20261123/08/a.log"], "For the hour of a key, use the command locate"),
        (["locate", "app"], "KEY"),
        ([], "COMMAND"),
    ],
)
def test_wrong_command_line_exits_with_2_and_a_reason(
    command: RunCommand, shared: Pipeline, arguments: list[str], reason: str
) -> None:
    result = command(*arguments)
    assert (result.code, result.out) == (2, b"")
    assert reason in result.err


def test_unreachable_s3_exits_with_3_without_traceback(
    command: RunCommand, shared: Pipeline, rclone_server: RcloneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(rclone_server.airflow_connection_json())
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection | {"password": "wrong"}))
    result = command("status", "app", "2026-11-23", "--json")
    assert (result.code, result.json["error"]["kind"]) == (3, "CredentialsError")
    everything = command("status", "--json")
    assert everything.code == 3
    assert "fix the Airflow connection" in everything.json["streams"][0]["error"]
    assert "Traceback" not in result.err
    assert "fix the Airflow connection" in result.err
    result = command("doctor", "--json")
    assert result.code == 1
    (failed,) = (check for check in result.json["checks"] if check["state"] == "fail")
    assert (failed["check"], "fix the Airflow connection" in failed["found"]) == ("list raw", True)


def test_interrupting_ends_with_130(
    command: RunCommand, shared: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(hours, "read_hours", interrupted)
    # A shell may start background processes with SIGINT ignored, which is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = command("status", "app")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.code, result.out) == (130, b"")
    assert "interrupted" in result.err


def test_doctor_tries_every_operation_and_leaves_nothing(command: RunCommand, shared: Pipeline) -> None:
    before = shared.listed("")
    result = command("doctor", "--json")
    document = result.json
    assert (result.code, document["ok"]) == (0, True)
    checks = {check["check"]: check for check in document["checks"]}
    assert {name for name, check in checks.items() if check["state"] == "ok"} >= {
        "versions", "streams file", "open files", "connection aws_default", "list raw", "clock", "read raw",
        "list aggregated", "write aggregated", "write records", "read aggregated", "copy",
        "conditional delete", "remove aggregated", "CRC64-NVME", "open uploads", "pool",
    }  # fmt: skip
    assert "the store accepts a wrong one" in checks["CRC64-NVME"]["found"]
    assert shared.listed("") == before
    lines = command("doctor", "app").text.splitlines()
    assert len([line for line in lines if not line.startswith("     ->")]) == len(checks)
    assert command("doctor", "other").code == 1


def test_doctor_and_cat_work_for_a_stream_with_groups(
    command: RunCommand, rclone: Pipeline, use_streams: UseStreams
) -> None:
    places = {
        "raw": f"s3://{rclone.bucket}/raw/{{service}}/",
        "aggregated": f"s3://{rclone.bucket}/out/{{service}}/",
    }
    use_streams(settings_on(rclone.bucket, **places))
    Pipeline(stream_on(rclone.bucket, **places), rclone.client, rclone.bucket).run()
    before = rclone.listed("")
    body = raw_objects()[f"{RAW}{HOUR_OBJECT}"]
    result = command("doctor", "app", "--json")
    checks = {check["check"]: check for check in result.json["checks"] if check["stream"] == "app"}
    assert {check["state"] for check in checks.values()} <= {"ok", "warn"}
    assert "/raw/{service}/" in checks["list raw"]["found"]
    assert "/out/_rollup/doctor-" in checks["write aggregated"]["found"]
    assert rclone.listed("") == before
    key = f"{RAW}{HOUR_OBJECT}"
    located = command("locate", "app", key, "--json").json
    assert located["part_url"].startswith(f"s3://{rclone.bucket}/out/app/20261123/08/part-")
    assert command("cat", "app", f"s3://{rclone.bucket}/{key}").out == body
    assert command("verify", "app", HOUR_ARGUMENT).text.endswith("OK\n")


def test_doctor_names_a_missing_permission_and_bucket(
    command: RunCommand, moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory, use_streams: UseStreams,
) -> None:  # fmt: skip
    proxy = fault_proxy(moto_server)
    bucket = make_bucket(moto_server)
    use_streams(settings_on(bucket))
    pipeline = pipeline_on(moto_server, bucket, proxy.endpoint_url)
    make_small_hour(pipeline.client, bucket, RAW, objects=2)
    proxy.add(Rule(on("PutObject"), access_denied(), count=1))
    result = command("doctor", "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    (failed,) = (check for check in result.json["checks"] if check["state"] == "fail")
    assert (failed["check"], failed["stream"]) == ("write aggregated", "app")
    assert f"allow s3:PutObject on arn:aws:s3:::{bucket}/aggregated/app/*" in failed["remedy"]
    assert command("doctor").code == 0
    use_streams(settings_on("no-such-bucket"))
    result = command("doctor")
    assert result.code == 1
    assert "create the bucket 'no-such-bucket'" in result.text


NO_OBJECT_LOCK = Answer(
    400, "InvalidRequest", "x-amz-checksum- HTTP header is required for Put Object requests with Object Lock"
)
NOT_IMPLEMENTED = Answer(501, "NotImplemented", "A header you provided implies functionality that is not")


@pytest.mark.parametrize(
    ("rule", "check", "state", "words"),
    [
        (Rule(on("ListObjectsV2"), NOT_IMPLEMENTED), "list raw", "fail", "does not support the request (LIST)"),
        (Rule(on("CopyObject"), NOT_IMPLEMENTED), "copy", "warn", "cannot copy objects"),
        (Rule(on("ListMultipartUploads"), NOT_IMPLEMENTED), "open uploads", "warn", "does not support"),
        (Rule(on("PutObject", key="-record"), NO_OBJECT_LOCK), "write records", "fail", "Object Lock"),
        (Rule(on("GetObject", key="raw/"), Answer(403, "InvalidObjectState")), "read raw", "fail", "archived"),
    ],
)  # fmt: skip
def test_doctor_names_what_the_store_refuses(
    command: RunCommand, moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory, use_streams: UseStreams,
    rule: Rule, check: str, state: str, words: str,
) -> None:  # fmt: skip
    proxy = fault_proxy(moto_server)
    bucket = make_bucket(moto_server)
    use_streams(settings_on(bucket))
    pipeline = pipeline_on(moto_server, bucket, proxy.endpoint_url)
    make_small_hour(pipeline.client, bucket, RAW, objects=2)
    before = pipeline.listed("")
    proxy.add(rule)
    result = command("doctor", "--json")
    found = {one["check"]: one for one in result.json["checks"]}[check]
    assert (found["state"], words in found["found"]) == (state, True), found
    assert "endpoint" not in (found["remedy"] or "")
    assert result.code == (1 if state == "fail" else 0)
    assert pipeline.listed("") == before


@pytest.mark.parametrize("status", [301, 302, 307])
def test_doctor_ends_on_a_server_that_redirects_forever(
    command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
    use_streams: UseStreams,
    status: int,
) -> None:
    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", f"http://{request.headers['Host']}{request.path}")
        request.send_header("Content-Length", "0")
        request.end_headers()

    names: dict[str, Any] = {f"do_{method}": redirect for method in ("GET", "HEAD", "PUT", "POST", "DELETE")}
    handler = type("Handler", (BaseHTTPRequestHandler,), {**names, "log_message": lambda *_: None})
    use_streams(settings_on("logs"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, ThreadPoolExecutor(1) as serving:
        serving.submit(server.serve_forever, 0.01)
        extra = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "region_name": "us-east-1"}
        connection = {"conn_type": "aws", "login": "a", "password": "s", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        result = command("doctor", "--json")
        server.shutdown()
    assert result.code == 1
    (failed,) = (one for one in result.json["checks"] if one["state"] == "fail")
    assert (failed["check"], "it redirects to http://127.0.0.1" in failed["found"]) == ("list raw", True)


def test_doctor_reports_an_error_in_the_streams_file(
    command: RunCommand, shared: Pipeline, use_streams: UseStreams
) -> None:
    use_streams(settings_on(shared.bucket, max_connections=500))
    result = command("doctor")
    assert result.code == 1
    assert "max_connections: 500 is more than the 250 slots" in result.text


def test_detect_proposes_a_streams_file(command: RunCommand, shared: Pipeline, tmp_path: Path) -> None:
    before = contents(shared)
    result = command("detect", f"s3://{shared.bucket}/raw/")
    assert result.code == 0
    path = tmp_path / "detected.yaml"
    path.write_bytes(result.out)
    (stream,) = load_streams(path)
    assert stream.raw.match(LARGE)
    document = command("detect", f"s3://{shared.bucket}/raw/", "--json").json
    assert (document["objects"], document["is_whole"]) == (len(raw_objects()), True)
    assert document["yaml"] in result.text
    assert contents(shared) == before


@pytest.mark.parametrize(
    ("url", "code", "kind"),
    [
        ("logs/raw/", 2, "ConfigurationError"),
        ("s3://{}/none/", 1, "NotFoundError"),
        ("s3://no-such-bucket-here/", 3, "MissingBucketError"),
    ],
)
def test_detect_reports_a_wrong_address(
    command: RunCommand, shared: Pipeline, url: str, code: int, kind: str
) -> None:
    result = command("detect", url.format(shared.bucket), "--json")
    assert (result.code, result.json["error"]["kind"]) == (code, kind)


def run_script(
    arguments: list[str],
    cwd: Path,
    script: Path,
    *,
    on_full_disk: bool = False,
    modules: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start the script as a shell does.

    :param modules: folder of modules that replace installed ones
    :param on_full_disk: whether it can write no more than 512 bytes to a file
    """
    limit = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh"] if on_full_disk else []
    # Python would cut off the cached bytecode of the modules, which all other processes load.
    without_cache = {"PYTHONDONTWRITEBYTECODE": "1"} if on_full_disk else {}
    return subprocess.Popen(
        [*limit, str(script), *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | ({"PYTHONPATH": f"{modules}"} if modules else {})
        | without_cache
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip


def test_script_works_from_any_folder_into_a_closed_pipe(shared: Pipeline, tmp_path: Path) -> None:
    link = tmp_path / "rollup"
    link.symlink_to(ROOT / "log-rollup")
    process = run_script(["cat", "app", LARGE], tmp_path, link)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == b"\0"
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_interrupting_while_modules_load_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    with run_script(["status"], tmp_path, ROOT / "log-rollup", modules=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == b""
    # A shell shows it as 130.
    assert process.returncode == -signal.SIGINT


def test_script_reports_a_python_without_airflow(tmp_path: Path) -> None:
    script = Path(shutil.copy(ROOT / "log-rollup", tmp_path))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(
        [str(script), "status", "app"], capture_output=True, text=True,
        env={"PATH": f"{tmp_path}{os.pathsep}{os.defpath}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{python} has no Airflow" in done.stderr
