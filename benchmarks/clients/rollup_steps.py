"""Runs and measures this project's steps on a stream, with the real hook.

Run as ``python -m benchmarks.clients.rollup_steps JOB``. Hooks and their boto3 clients are created before the
clock starts, as in the other Python programs, because Airflow and botocore import half of their modules only
then. Each shard has its own hook and transfer, like a task.
"""

import gc
import json
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from typing import Any

from benchmarks.clients.job import Clock, Job, peak_rss_bytes
from include.log_rollup import limits
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.steps import complete_hour, pack_shard, plan_hour, validate_hour
from include.log_rollup.streams import Stream
from log_rollup_plugin.s3.hook import PooledS3Hook


def main() -> None:
    """Run the step that the job's option ``step`` names."""
    job = Job.from_arguments()
    hour = datetime.fromisoformat(job.options["hour"])
    steps = {"plan": plan, "pack": pack, "validate": prove, "complete": prove}
    steps[job.options["step"]](job, hour)


def stream_of(job: Job, out_prefix: str) -> Stream:
    """Return the stream of a job: defaults, with the job's part size and number of connections."""
    stream = Stream.model_validate(
        {
            "name": "benchmark",
            "raw": f"s3://{job.bucket}/{job.options['stream_prefix']}",
            "aggregated": f"s3://{job.bucket}/{out_prefix}{job.options.get('groups_layout', '')}",
            "start": "2026-11-01T00:00:00Z",
            "max_connections": job.connections,
            "check_encoding": job.options.get("check_encoding", False),
            "compression": job.options.get("compression", "none"),
        }
    )
    # Set without validation: parts of tiny objects are smaller than the allowed minimum.
    return stream.model_copy(update={"part_size": job.part_bytes})


def control(stream: Stream) -> PooledS3Hook:
    """Return a hook as in plan_hour, validate_hour and complete_hour."""
    return PooledS3Hook.for_stream(stream, stream.control_connections, stream.control_connections)


def plan(job: Job, hour: datetime) -> None:
    """Plan the hour for each of the output prefixes, measured together."""
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
    """Pack the planned shards one after the other."""
    stream = stream_of(job, job.out_prefix)
    shards = [ShardRef(**ref) for ref in job.options["shards"]]
    hooks = [
        PooledS3Hook.for_stream(stream, stream.max_connections, limits.PACKING_CONTROL_CONNECTIONS)
        for _ in shards
    ]
    _connected = [hook.client for hook in hooks]
    # As PackShardOperator does.
    gc.freeze()
    before = peak_rss_bytes()
    with Clock() as clock:
        measured = [
            asdict(pack_shard.pack_shard(hook, stream, ref)) for hook, ref in zip(hooks, shards, strict=True)
        ]
    requests: Counter[str] = Counter()
    for each in measured:
        requests.update(each["requests"])
    job.finish(clock, hour=format_hour(hour), shards=measured, requests=requests, rss_before_bytes=before)


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
