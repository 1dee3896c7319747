"""The steps plan_hour, pack_shard, validate_hour and complete_hour as operators: each calls its step."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from airflow.sdk import Asset, AssetAlias, BaseOperator, Context

from include.log_rollup import complete, packing, planning, validate
from include.log_rollup.hours import format_hour
from include.log_rollup.plan import ShardRef
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size
from log_rollup_plugin.hook import PooledS3Hook
from log_rollup_plugin.runs import hour_of

log = logging.getLogger(__name__)

# For listing, planning and proving; as many as their tasks take slots of the pool.
CONTROL_CONNECTIONS = 4
# While a shard is packed, boto3 writes its receipt; the rest of its connections are the data plane's.
PACKING_CONTROL_CONNECTIONS = 1


class PlanHourOperator(BaseOperator):
    """Plans a stream's hour and returns one small reference for each shard.

    :param stream: whose hour
    """

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """See :func:`include.log_rollup.planning.plan_hour`."""
        hook = PooledS3Hook.for_stream(self.stream, CONTROL_CONNECTIONS, CONTROL_CONNECTIONS)
        planned = planning.plan_hour(hook, self.stream, hour_of(context), context["run_id"])
        return [asdict(ref) for ref in planned.shards]


class PackShardOperator(BaseOperator):
    """Packs one shard of a planned hour; mapped over what plan_hour returns.

    :param stream: whose hour
    :param shard: the reference of the shard
    """

    template_fields: Sequence[str] = ("shard",)

    def __init__(self, *, stream: Stream, shard: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream
        self.shard = shard

    @property
    def title(self) -> str:
        """The shard by name, for the grid."""
        return ShardRef(**self.shard).title

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.packing.pack_shard`; returns what it measured."""
        hook = PooledS3Hook.for_stream(self.stream, self.stream.max_connections, PACKING_CONTROL_CONNECTIONS)
        return asdict(packing.pack_shard(hook, self.stream, ShardRef(**self.shard)))


class ValidateHourOperator(BaseOperator):
    """Proves a packed hour and writes its manifest.

    :param stream: whose hour
    """

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.validate.validate_hour`; returns the totals."""
        hook = PooledS3Hook.for_stream(self.stream, CONTROL_CONNECTIONS, CONTROL_CONNECTIONS)
        return asdict(validate.validate_hour(hook, self.stream, hour_of(context)))


class CompleteHourOperator(BaseOperator):
    """Marks a proven hour complete, and tells the Dags that are scheduled on its asset.

    Two events are emitted, because Airflow gives one with a partition key to partitioned Dags alone, and one
    without to the others alone.

    :param stream: whose hour
    """

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        self.stream = stream
        self.asset = asset_of(stream)
        self.plain = AssetAlias(f"log_rollup_{stream.name}_plain")
        super().__init__(outlets=[self.asset, self.plain], **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.complete.complete_hour`; returns the totals."""
        hour = hour_of(context)
        hook = PooledS3Hook.for_stream(self.stream, CONTROL_CONNECTIONS, CONTROL_CONNECTIONS)
        totals = complete.complete_hour(hook, self.stream, hour)
        extra = {
            "hour": format_hour(hour),
            "objects": totals.objects,
            "bytes": totals.bytes_in,
            "parts": totals.parts,
            "plan_id": totals.plan_id,
        }
        events = context["outlet_events"]
        events[self.asset].extra = extra
        events[self.asset].add_partitions(format_hour(hour))
        events[self.plain].add(self.asset, extra=extra)
        log.info(
            "%s objects, %s -> %d parts, proven by %s",
            f"{totals.objects:,}", format_size(totals.bytes_in), totals.parts,
            " and ".join(totals.verified.parts) or "their absence",
        )  # fmt: skip
        return asdict(totals)


def asset_of(stream: Stream) -> Asset:
    """The asset that downstream Dags are scheduled on: one partition for each hour."""
    return Asset(name=f"log_rollup_{stream.name}", uri=str(stream.aggregated))
