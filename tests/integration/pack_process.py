"""Rolls hours up in child processes, for tests.integration.fork_server.

Imports Airflow once, which takes seconds, and forks a child for each request. A request is a line of JSON on
stdin. On stdout come the lines ``PID``, ``RESULT`` (what a shard measured, or the error) and ``EXIT``.
"""

import json
import os
import resource
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from include.log_rollup.errors import RollupError
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.steps import packer
from include.log_rollup.streams import Stream
from tests.support.hour_on_server import Pipeline


def serve() -> None:
    """Run the requests one after the other."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print("PID", pid, flush=True)
        print("EXIT", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run(request: Mapping[str, Any]) -> int:
    """Pack planned shards, or run all steps of the hour; return 1 after an error of the pipeline, else 0."""
    os.environ.update(request["environment"])
    if request["open_files"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["open_files"],) * 2)
    if request["copy_in_parts_above"]:
        packer.LARGEST_COPY_BYTES = packer.COPY_RANGE_BYTES = request["copy_in_parts_above"]
    stream = Stream.model_validate(request["settings"])
    # The steps use the hook; the plain client is for tests.
    pipeline = Pipeline(stream, None, stream.raw.bucket)
    whole_hour = request["shards"] is None
    try:
        refs = pipeline.plan().shards if whole_hour else [ShardRef(**shard) for shard in request["shards"]]
        for ref in refs:
            print("RESULT", json.dumps(asdict(pipeline.pack(ref))), flush=True)
        if whole_hour:
            pipeline.validate()
            pipeline.complete()
    except RollupError as error:
        print("RESULT", f"{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    serve()
