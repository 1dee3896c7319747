"""Restores the hour to a directory, as the command restore does, and measures it.

Run as ``python -m benchmarks.clients.restore_hour JOB``. The client is created before the clock starts, as in the
other Python programs.
"""

from datetime import datetime
from pathlib import Path

from benchmarks.clients.job import Clock, Job
from benchmarks.clients.rollup_steps import stream_of
from include.log_rollup import limits
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.restore import restore
from include.log_rollup.queries.restore_plan import plan_restore
from include.log_rollup.queries.restore_targets import DirectoryTarget
from log_rollup_plugin.s3.hook import PooledS3Hook


def main() -> None:
    """Plan and restore, with the MD5s of the objects if the job's option ``md5`` says so."""
    job = Job.from_arguments()
    stream = stream_of(job, job.out_prefix)
    hour = datetime.fromisoformat(job.options["hour"])
    connections = limits.COMMAND_CONNECTIONS
    hook = PooledS3Hook.for_stream(stream, connections, connections)
    _connected = hook.client
    with Clock() as clock:
        target = DirectoryTarget(Path(job.options["folder"]))
        plans = plan_restore(hook, stream, [hour], ObjectFilter(stream), target)
        with target:
            restored = restore(hook, stream, plans, target, with_md5=job.options["md5"])
    job.finish(clock, objects=restored.objects, failed=len(restored.failures), requests=dict(hook.requests))


if __name__ == "__main__":
    main()
