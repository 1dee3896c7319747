"""The documented IAM policy allows all that the pipeline needs, and nothing else."""

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
import yaml

from dev.servers import MotoServer, S3Client
from include.log_rollup.errors import RollupError
from include.log_rollup.steps.wait_for_raw_hour import SettleRule, check_raw_hour
from log_rollup_plugin.cli.main import main
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory
from tests.support.faults import Request, Rule, access_denied, on
from tests.support.fixtures import BucketFactory, ProxyFactory
from tests.support.hour_on_server import Pipeline, settings_on
from tests.support.raw_hours import AGGREGATED, HOUR, MIB, RAW, make_small_hour, put_objects
from tests.support.verify_groups import verify_groups

POLICY = json.loads((ROOT / "deploy" / "iam-policy.json").read_text())
EXAMPLE_BUCKET = "application-logs"
# The action that each operation needs; a copy also needs s3:GetObject on its source (
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html).
ACTIONS = {
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CopyObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
# Of an object that a KMS key encrypts, on the key (
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html). HEAD asks for the checksum too.
KMS_ACTIONS = {
    "GetObject": {"kms:Decrypt"},
    "HeadObject": {"kms:Decrypt"},
    "PutObject": {"kms:GenerateDataKey"},
    "CopyObject": {"kms:GenerateDataKey"},
    "CreateMultipartUpload": {"kms:GenerateDataKey"},
    "UploadPart": {"kms:GenerateDataKey", "kms:Decrypt"},
    "UploadPartCopy": {"kms:GenerateDataKey", "kms:Decrypt"},
    "CompleteMultipartUpload": {"kms:Decrypt"},
}
# Templates below the prefixes of the policies, and the folder of an hour of a group.
GROUPED = {"raw": "raw/app/{service}/%Y%m%d/%H/", "aggregated": "aggregated/app/{service}/%Y%m%d/%H/"}
GROUP = "app/{}/20261123/08/"
HOME = "aggregated/app/_hours/app/20261123/08/"


def allowed(action: str, resource: str, policy: Mapping[str, Any] = POLICY) -> list[str]:
    """The ids of the policy's statements that allow an action."""
    return [
        statement["Sid"]
        for statement in policy["Statement"]
        if action in _as_list(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in _as_list(statement["Resource"]))
    ]


def needed(
    requests: Iterable[Request], bucket: str = EXAMPLE_BUCKET, kms_key: str = ""
) -> set[tuple[str, str]]:
    """The actions and resources that requests need, in the example bucket of the policy.

    :param kms_key: the key that encrypts all objects below the aggregated prefix; empty for none
    """
    found = set()
    bucket = f"arn:aws:s3:::{bucket}"
    for request in requests:
        action = ACTIONS.get(request.operation, f"unknown:{request.operation}")
        key = request.key
        if request.operation == "DeleteObjects":
            # The keys are in the body. That no raw object is deleted is asserted by listing them.
            key = AGGREGATED
        found.add((action, bucket if action.startswith("s3:ListBucket") else f"{bucket}/{key}"))
        if "x-amz-tagging" in request.headers:
            found.add(("s3:PutObjectTagging", f"{bucket}/{key}"))
        if kms_key and key.startswith("aggregated/"):
            found |= {(action, kms_key) for action in KMS_ACTIONS.get(request.operation, ())}
        source = request.headers.get("x-amz-copy-source")
        if source:
            found.add(("s3:GetObject", f"{bucket}/{unquote(source).lstrip('/').partition('/')[2]}"))
    return found


def use_everything(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Use all that the pipeline and the command can do: large, late, changed and vanished objects, and reruns."""
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=8)
    large = {f"{RAW}large.log": b"l" * (6 * MIB)}
    put_objects(pipeline.client, pipeline.bucket, large)
    raw_before = pipeline.listed(RAW)
    with PooledS3Hook.for_stream(pipeline.stream, 1, 1) as hook:
        check_raw_hour(hook, pipeline.stream.at(HOUR), SettleRule(pipeline.stream.quiet_period, None, False))
    pipeline.run()
    pipeline.run()
    streams = folder / "streams.yaml"
    streams.write_text(yaml.safe_dump({"streams": [settings_on(pipeline.bucket)]}))
    monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(streams))
    run_every_command(f"{RAW}large.log", folder / "object")
    pipeline.verify(made | large)
    late = {f"{RAW}zz-late.log": b"late\n"}
    put_objects(pipeline.client, pipeline.bucket, late)
    # S3 requires a copy in ranges above 5 GiB, which is too much for a test.
    monkeypatch.setattr("include.log_rollup.steps.packer.LARGEST_COPY_BYTES", 5 * MIB)
    monkeypatch.setattr("include.log_rollup.steps.packer.COPY_RANGE_BYTES", 5 * MIB)
    put_objects(pipeline.client, pipeline.bucket, {f"{RAW}large.log": b"m" * (6 * MIB)})
    pipeline.run()
    pipeline.client.delete_object(Bucket=pipeline.bucket, Key=f"{RAW}large.log")
    pipeline.run(drop_vanished=True)
    pipeline.verify(made | late)
    assert set(raw_before) - set(pipeline.listed(RAW)) == {f"{RAW}large.log"}


def use_groups(pipeline: Pipeline, raw: S3Client) -> None:
    """Roll up groups that are new, late and large, and one that vanishes.

    :param raw: a client for the raw objects
    """
    made: dict[str, bytes] = {}

    def produce(group: str, **bodies: bytes) -> None:
        new = {f"raw/{GROUP.format(group)}{name}.log": body for name, body in bodies.items()}
        put_objects(raw, pipeline.bucket, new)
        made.update(new)

    produce("web", a=b"a\n", b=b"b\n")
    produce("api", large=b"l" * (6 * MIB), small=b"s\n")
    pipeline.run()
    pipeline.run()
    produce("web", zz_late=b"late\n")
    produce("edge", a=b"new\n")
    pipeline.run()
    for key in [key for key in made if key.startswith(f"raw/{GROUP.format('api')}")]:
        raw.delete_object(Bucket=pipeline.bucket, Key=key)
        del made[key]
    pipeline.run(drop_vanished=True)
    folders = {f"raw/{GROUP.format(group)}": f"aggregated/{GROUP.format(group)}" for group in ("web", "edge")}
    verify_groups(
        pipeline.client, pipeline.bucket, folders, HOME,
        part_size=pipeline.stream.part_size, expected=made, raw_client=raw,
    )  # fmt: skip


def run_every_command(key: str, target: Path) -> None:
    """Run each command of log-rollup on a complete hour."""
    day, hour = f"{HOUR:%Y-%m-%d}", f"{HOUR:%Y-%m-%dT%H}"
    for command in (
        ("status", "app", day), ("verify", "app", hour), ("verify", "app", hour, "--deep"),
        ("locate", "app", key), ("cat", "app", key, "-o", str(target)), ("plan", "app", hour, "--dry-run"),
        ("grep", "l", "app", "--since", hour, "--until", hour, "--include-raw"), ("cost", "app", "--since", hour),
        ("restore", "app", hour, "--to", f"{target}s"), ("doctor",),
    ):  # fmt: skip
        assert main(command) == 0, command


@pytest.fixture
def requests(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory, pool: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> list[Request]:  # fmt: skip
    """All requests of the pipeline and the command, as a proxy recorded them."""
    proxy = fault_proxy(moto_server)
    pipeline = pipeline_on(moto_server, make_bucket(moto_server), proxy.endpoint_url)
    use_everything(pipeline, monkeypatch, tmp_path)
    # If a copy in ranges fails, its multipart upload is aborted when the hour completes.
    put_objects(pipeline.client, pipeline.bucket, {f"{RAW}large.log": b"n" * (6 * MIB)})
    proxy.add(Rule(on("UploadPartCopy"), access_denied()))
    with pytest.raises(RollupError):
        pipeline.run()
    proxy.clear_rules()
    pipeline.run()
    return [exchange.request for exchange in proxy.exchanges]


def test_policy_allows_what_is_needed_and_nothing_else(requests: list[Request]) -> None:
    assert_least(POLICY, needed(requests))


def test_policy_allows_groups(
    moto_server: MotoServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory,
) -> None:
    """Also the records below `_hours/`, and listings of the text before the first capture."""
    proxy, bucket = fault_proxy(moto_server), make_bucket(moto_server)
    templates = {side: f"s3://{bucket}/{template}" for side, template in GROUPED.items()}
    pipeline = pipeline_on(moto_server, bucket, proxy.endpoint_url, **templates)
    use_groups(pipeline, pipeline.client)
    requests = [exchange.request for exchange in proxy.exchanges]
    pairs = needed(requests)
    assert {pair for pair in pairs if not allowed(*pair)} == set()
    assert ("s3:PutObject", f"arn:aws:s3:::{EXAMPLE_BUCKET}/{HOME}_SUCCESS") in pairs
    queries = [parse_qs(request.query) for request in requests]
    assert ["raw/app/"] in [query["prefix"] for query in queries if "delimiter" in query]


def test_documented_statements_allow_tags_and_a_kms_key(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The statements that docs/DEPLOY.md adds to the policy for `tags` and `kms_key_id`."""
    tagging, kms = documented_statements()
    (key,) = _as_list(kms["Resource"])
    monkeypatch.setattr("include.log_rollup.steps.packer.LARGEST_COPY_BYTES", 5 * MIB)
    monkeypatch.setattr("include.log_rollup.steps.packer.COPY_RANGE_BYTES", 5 * MIB)
    proxy = fault_proxy(moto_server)
    pipeline = pipeline_on(
        moto_server, make_bucket(moto_server), proxy.endpoint_url, tags={"team": "search"}, kms_key_id=key
    )
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=8)
    large = {f"{RAW}large.log": b"l" * (6 * MIB)}
    put_objects(pipeline.client, pipeline.bucket, large)
    pipeline.run()
    pipeline.verify(made | large)
    requests = [exchange.request for exchange in proxy.exchanges]
    named = {"x-amz-server-side-encryption-aws-kms-key-id", "x-amz-tagging"}
    assert named <= {name for request in requests for name in request.headers}
    more = needed(requests, kms_key=key) - {pair for pair in needed(requests) if allowed(*pair)}
    assert_least({"Statement": [tagging, kms]}, more)


def documented_statements() -> list[dict[str, Any]]:
    """The statements of policies in docs/DEPLOY.md, with an id each."""
    text = (ROOT / "docs" / "DEPLOY.md").read_text()
    blocks = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [{"Sid": str(number), **json.loads(block)} for number, block in enumerate(blocks)]


def assert_least(policy: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> None:
    """Compare a policy with the actions and resources that were needed, in both directions."""
    assert {(action, place) for action, place in pairs if not allowed(action, place, policy)} == set()
    used = {(sid, action) for action, place in pairs for sid in allowed(action, place, policy)}
    granted = {
        (statement["Sid"], action)
        for statement in policy["Statement"]
        for action in _as_list(statement["Action"])
    }
    assert granted - used == set()


def test_pipeline_works_with_the_policy_enforced(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bucket = make_bucket(moto_server)
    policy = json.loads(json.dumps(POLICY).replace(EXAMPLE_BUCKET, bucket))
    prepared = pipeline_on(moto_server, bucket)
    made = make_small_hour(prepared.client, bucket, RAW, objects=8)
    # For DeleteObjects, moto checks the permission for the bucket; S3 checks it for each key.
    whole = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{bucket}"}
    policy["Statement"].append(whole)
    with moto_server.enforced_policy(policy) as (key, secret):
        fields = json.loads(moto_server.airflow_connection_json()) | {"login": key, "password": secret}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(fields))
        prepared.run()
        prepared.run()
        client = moto_server.client(access_key=key, secret_key=secret)
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            client.put_object(Bucket=bucket, Key=min(made), Body=b"")
    prepared.verify(made)


def test_requester_pays_is_sent_with_every_request(
    moto_server: MotoServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory,
    fault_proxy: ProxyFactory, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    proxy = fault_proxy(moto_server)
    pipeline = pipeline_on(moto_server, make_bucket(moto_server), proxy.endpoint_url)
    connection = moto_server.airflow_connection_json(proxy.endpoint_url, requester_pays=True)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
    made = make_small_hour(pipeline.client, pipeline.bucket, RAW, objects=8)
    pipeline.run()
    pipeline.verify(made)
    payers = {exchange.request.headers.get("x-amz-request-payer") for exchange in proxy.exchanges}
    assert payers == {"requester"}


def test_example_policy_matches_the_example_stream() -> None:
    streams = (ROOT / "include" / "streams.yaml").read_text()
    for prefix in ("raw/app/", "aggregated/app/"):
        assert f"s3://{EXAMPLE_BUCKET}/{prefix}" in streams
        assert allowed("s3:GetObject", f"arn:aws:s3:::{EXAMPLE_BUCKET}/{prefix}x")
    for action in ("s3:PutObject", "s3:DeleteObject"):
        assert not allowed(action, f"arn:aws:s3:::{EXAMPLE_BUCKET}/raw/app/x")


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
