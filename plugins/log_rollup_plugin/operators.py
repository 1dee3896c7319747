"""The pipeline's steps from plan_hour on, and the look for late objects, as operators: each calls its step."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from airflow.sdk import Asset, BaseOperator, Context

from include.log_rollup import limits
from include.log_rollup.hour.changes import Changes
from include.log_rollup.hour.layout import format_hour, parse_hour
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.queries import late
from include.log_rollup.steps import complete_hour, pack_shard, plan_hour, validate_hour
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size
from log_rollup_plugin import metrics
from log_rollup_plugin.links import HourLink, ManifestLink, MarkerLink
from log_rollup_plugin.runs import hour_of
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.urls import hour_page, object_page

log = logging.getLogger(__name__)


class PlanHourOperator(BaseOperator):
    """Plans a stream's hour and returns one small reference for each shard.

    :param stream: whose hour
    """

    operator_extra_links = (HourLink(),)

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """See :func:`include.log_rollup.steps.plan_hour.plan_hour`."""
        hour = hour_of(context)
        self.hour_page = hour_page(self.stream.name, hour)
        with PooledS3Hook.for_stream(
            self.stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS
        ) as hook:
            planned = plan_hour.plan_hour(
                hook, self.stream, hour, context["run_id"],
                drop_vanished=bool(context["params"].get("drop_vanished")),
            )  # fmt: skip
        return [asdict(ref) for ref in planned.shards]


class PackShardOperator(BaseOperator):
    """Packs one shard of a planned hour; mapped over what plan_hour returns.

    :param stream: whose hour
    :param shard: the reference of the shard
    """

    template_fields: Sequence[str] = ("shard",)
    operator_extra_links = (HourLink(),)

    def __init__(self, *, stream: Stream, shard: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream
        self.shard = shard

    @property
    def title(self) -> str:
        """The shard by name, for the grid."""
        return ShardRef(**self.shard).title

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.steps.pack_shard.pack_shard`; returns what it measured."""
        cap, ref = self.stream.max_connections, ShardRef(**self.shard)
        self.hour_page = hour_page(self.stream.name, parse_hour(ref.hour))
        tried = partial(metrics.shard_tried, self.stream.name)
        with PooledS3Hook.for_stream(self.stream, cap, limits.PACKING_CONTROL_CONNECTIONS) as hook:
            return asdict(pack_shard.pack_shard(hook, self.stream, ref, tried))


class ValidateHourOperator(BaseOperator):
    """Proves a packed hour and writes its manifest.

    :param stream: whose hour
    """

    operator_extra_links = (HourLink(), ManifestLink())

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.steps.validate_hour.validate_hour`; returns the totals."""
        hour = hour_of(context)
        self.hour_page = hour_page(self.stream.name, hour)
        with PooledS3Hook.for_stream(
            self.stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS
        ) as hook:
            totals = validate_hour.validate_hour(hook, self.stream, hour)
            self.manifest_page = object_page(hook, self.stream.at(hour).manifest)
        return asdict(totals)


class CompleteHourOperator(BaseOperator):
    """Marks a proven hour complete, and tells the Dags downstream.

    Each completion is an event of two assets, because an event with a partition key reaches partitioned Dags
    alone, and one without reaches the others alone. (An alias could give one asset both kinds of event, but the
    first two completions at a time fail in Airflow 3.3.2: each inserts the alias' row for the asset.)

    A run of an hour that was complete already tells them again: whether an earlier try came to telling, nothing
    in the bucket says, and twice is better than never.

    :param stream: whose hour
    """

    operator_extra_links = (HourLink(), ManifestLink(), MarkerLink())

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        self.stream = stream
        name, uri = f"log_rollup_{stream.name}", str(stream.aggregated)
        self.asset = Asset(name=name, uri=uri)
        self.hours = Asset(name=f"{name}_hours", uri=f"{uri}_SUCCESS")
        super().__init__(outlets=[self.asset, self.hours], **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.steps.complete_hour.complete_hour`; returns the totals."""
        hour = hour_of(context)
        paths = self.stream.at(hour)
        self.hour_page = hour_page(self.stream.name, hour)
        with PooledS3Hook.for_stream(
            self.stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS
        ) as hook:
            totals = complete_hour.complete_hour(hook, self.stream, hour, metrics.hour_completed)
            self.manifest_page = object_page(hook, paths.manifest)
            self.marker_page = object_page(hook, paths.marker)
        events = context["outlet_events"]
        for asset in (self.asset, self.hours):
            events[asset].extra = complete_hour.event_of(self.stream, hour, totals)
        events[self.hours].add_partitions(format_hour(hour))
        log.info(
            "%s objects, %s -> %d parts, proven by %s",
            f"{totals.objects:,}", format_size(totals.bytes_in), totals.parts,
            " and ".join(totals.verified.parts) or "their absence",
        )  # fmt: skip
        return asdict(totals)


class FindLateHoursOperator(BaseOperator):
    """Finds the complete hours of the last ``late_days`` days whose raw objects have changed since.

    Returns, for each hour that a rerun makes right, the arguments of the TriggerDagRunOperator that reruns
    it. The run is one of its own for each hour, cleared when it is there already, so that it does not matter
    whether the hour was made by the schedule, a backfill, somebody's hand or not by this Airflow at all. The
    XCom ``report`` tells the whole of what was found.

    :param stream: whose hours
    """

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """See :func:`include.log_rollup.queries.late.look_back`."""
        hours = late.recent_hours(datetime.now(UTC), self.stream.late_days)
        with PooledS3Hook.for_stream(
            self.stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS
        ) as hook:
            looked = late.look_back(hook, self.stream, hours)
        metrics.looked_back(self.stream.name, [found.changes for found in looked.changed])
        reruns = [found for found in looked.changed if found.wants_rerun]
        expired = [found for found in looked.changed if not found.wants_rerun]
        log.info(
            "%d hours, %d of them complete: %d to rerun, %d left alone because raw objects have vanished, "
            "%d that cannot be compared",
            looked.hours, looked.complete, len(reruns), len(expired), len(looked.unclear),
        )  # fmt: skip
        report = {
            "hours": looked.hours,
            "complete": looked.complete,
            "rerun": {format_hour(found.hour): _counts(found.changes) for found in reruns},
            "left_alone": {format_hour(found.hour): _counts(found.changes) for found in expired},
            "unclear": list(looked.unclear),
        }
        context["ti"].xcom_push(key="report", value=report)
        return [
            {
                "trigger_run_id": f"late__{format_hour(found.hour)}",
                "conf": {"hour": format_hour(found.hour)},
                "note": "Rerun of a complete hour: {late:,} raw objects came late, {changed:,} changed.".format(
                    **_counts(found.changes)
                ),
            }
            for found in reruns
        ]


def _counts(changes: Changes) -> dict[str, int]:
    return {name: len(keys) for name, keys in asdict(changes).items()}
