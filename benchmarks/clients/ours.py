"""This project's own steps on a stream, through the real hook: what is planned, packed, validated, and measured.

Run as ``python -m benchmarks.clients.ours JOB``. Hooks and their boto3 clients are made before the clock starts,
as the other programs in Python make theirs: Airflow and botocore import half of themselves only then. Each
shard has a hook and a transfer of its own, as its task would.
"""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from benchmarks.clients.clock import Clock, Job, peak_rss_bytes
from include.log_rollup import limits
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.steps import complete_hour, pack_shard, plan_hour, validate_hour
from include.log_rollup.streams import Stream
from log_rollup_plugin.s3.hook import PooledS3Hook


def main() -> None:
    """Do what the job's option ``step`` says."""
    job = Job.from_arguments()
    hour = datetime.fromisoformat(job.options["hour"])
    steps = {"plan": plan, "pack": pack, "validate": prove, "complete": prove}
    steps[job.options["step"]](job, hour)


def stream_of(job: Job, out_prefix: str) -> Stream:
    """The stream of a job: the project's defaults, with the job's part size and connections."""
    stream = Stream.model_validate(
        {
            "name": "benchmark",
            "raw": f"s3://{job.bucket}/{job.options['stream_prefix']}",
            "aggregated": f"s3://{job.bucket}/{out_prefix}",
            "start": "2026-11-01T00:00:00Z",
            "max_connections": job.connections,
            "check_encoding": job.options.get("check_encoding", False),
        }
    )
    # Not validated: for tiny objects parts are tiny too.
    return stream.model_copy(update={"part_size": job.part_bytes})


def control(stream: Stream) -> PooledS3Hook:
    """The hook of plan_hour and validate_hour."""
    return PooledS3Hook.for_stream(stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS)


def plan(job: Job, hour: datetime) -> None:
    """Plan the hour into each of the prefixes; what is measured is all of them together."""
    shards: dict[str, list[dict[str, Any]]] = {}
    requests: dict[str, int] = {}
    streams = {prefix: stream_of(job, prefix) for prefix in job.options["out_prefixes"]}
    hooks = {prefix: control(stream) for prefix, stream in streams.items()}
    _connected = [hook.client for hook in hooks.values()]
    before = peak_rss_bytes()
    with Clock() as clock:
        for prefix, stream in streams.items():
            hook = hooks[prefix]
            planned = plan_hour.plan_hour(hook, stream, hour, "benchmark")
            shards[prefix] = [asdict(ref) for ref in planned.shards]
            requests = dict(hook.requests)
    xcom_bytes = max(len(json.dumps(refs)) for refs in shards.values())
    job.finish(clock, shards=shards, requests=requests, xcom_bytes=xcom_bytes, rss_before_bytes=before)


def pack(job: Job, hour: datetime) -> None:
    """Pack the planned shards, one after the other."""
    stream = stream_of(job, job.out_prefix)
    shards = [ShardRef(**ref) for ref in job.options["shards"]]
    hooks = [
        PooledS3Hook.for_stream(stream, stream.max_connections, limits.PACKING_CONTROL_CONNECTIONS)
        for _ in shards
    ]
    _connected = [hook.client for hook in hooks]
    before = peak_rss_bytes()
    with Clock() as clock:
        measured = [
            asdict(pack_shard.pack_shard(hook, stream, ref)) for hook, ref in zip(hooks, shards, strict=True)
        ]
    job.finish(clock, hour=format_hour(hour), shards=measured, rss_before_bytes=before)


def prove(job: Job, hour: datetime) -> None:
    """Validate or complete the packed hour."""
    stream = stream_of(job, job.out_prefix)
    hook = control(stream)
    _connected = hook.client
    do = validate_hour.validate_hour if job.options["step"] == "validate" else complete_hour.complete_hour
    before = peak_rss_bytes()
    with Clock() as clock:
        totals = do(hook, stream, hour)
    job.finish(
        clock, requests=dict(hook.requests), totals=asdict(totals), rss_before_bytes=before,
        max_connections=hook.max_connections,
    )  # fmt: skip


if __name__ == "__main__":
    main()
