"""Rolls up hours in the test's own process: for tests that need complete hours, but not their runs."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from include.log_rollup.queries.hour_report import event_of
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.streams import load_streams
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.system.running import Running


def roll_up_in_process(running: Running, name: str, hours: Iterable[datetime]) -> list[dict[str, Any]]:
    """Roll up hours of a stream without Airflow; return the extra of each completion event.

    :param name: of the stream
    """
    stream = next(one for one in load_streams(running.stack.paths.streams) if one.name == name)
    extras = []
    with PooledS3Hook.for_stream(stream, stream.max_connections, 1) as hook:
        for hour in hours:
            for ref in plan_hour(hook, stream, hour, "test").shards:
                pack_shard(hook, stream, ref)
            validate_hour(hook, stream, hour)
            extras.append(event_of(stream, hour, complete_hour(hook, stream, hour)))
    return extras
