"""Operators of the steps from plan_hour on, and of the check for late objects."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pendulum
from airflow.sdk import Asset, BaseOperator, Context

from include.log_rollup import limits
from include.log_rollup.hour.changes import Changes
from include.log_rollup.hour.layout import format_hour, parse_hour
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.queries import hour_report, late
from include.log_rollup.steps import complete_hour, pack_shard, plan_hour, validate_hour
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size
from log_rollup_plugin import metrics
from log_rollup_plugin.links import HourLink, ManifestLink, MarkerLink
from log_rollup_plugin.runs import hour_of
from log_rollup_plugin.s3.stream_store import StreamStore, store_for
from log_rollup_plugin.urls import hour_page, object_page

log = logging.getLogger(__name__)

GROUP_CHANGES = "group_changes"
"""XCom of plan_hour: the groups that are new or have vanished, compared with the hour's manifest before."""


class PlanHourOperator(BaseOperator):
    """Plans an hour and returns one small reference for each shard.

    :param stream: the stream to which the hour belongs
    """

    operator_extra_links = (HourLink(),)

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """See :func:`include.log_rollup.steps.plan_hour.plan_hour`."""
        hour = hour_of(context)
        self.hour_page = hour_page(self.stream.name, hour)
        with _control_hook(self.stream) as hook:
            planned = plan_hour.plan_hour(
                hook, self.stream, hour, context["run_id"],
                drop_vanished=bool(context["params"].get("drop_vanished")),
                repack=bool(context["params"].get("repack")),
            )  # fmt: skip
        if planned.group_changes:
            context["ti"].xcom_push(key=GROUP_CHANGES, value=planned.group_changes.to_json())
        return [asdict(ref) for ref in planned.shards]


class PackShardOperator(BaseOperator):
    """Packs one shard of a planned hour; mapped over the references that plan_hour returns.

    :param stream: the stream to which the hour belongs
    :param shard: the fields of a :class:`include.log_rollup.hour.plan.ShardRef`
    """

    template_fields: Sequence[str] = ("shard",)
    operator_extra_links = (HourLink(),)

    def __init__(self, *, stream: Stream, shard: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream
        self.shard = shard

    @property
    def title(self) -> str:
        """The name of the shard in Airflow's grid."""
        return ShardRef(**self.shard).title

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.steps.pack_shard.pack_shard`; returns its measurements."""
        cap, ref = self.stream.max_connections, ShardRef(**self.shard)
        self.hour_page = hour_page(self.stream.name, parse_hour(ref.hour))
        tried = partial(metrics.shard_packed, self.stream.name)
        with store_for(self.stream, cap, limits.PACKING_CONTROL_CONNECTIONS) as hook:
            # A full collection would visit each object of Airflow's and botocore's modules. One takes 0.15 s, a
            # tenth of the time in which a task packs 3,000 objects. The process ends with the task.
            gc.freeze()
            return asdict(pack_shard.pack_shard(hook, self.stream, ref, tried))


class ValidateHourOperator(BaseOperator):
    """Proves a packed hour and writes its manifest.

    :param stream: the stream to which the hour belongs
    """

    operator_extra_links = (HourLink(), ManifestLink())

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.steps.validate_hour.validate_hour`; returns the totals."""
        hour = hour_of(context)
        self.hour_page = hour_page(self.stream.name, hour)
        with _control_hook(self.stream) as hook:
            totals = validate_hour.validate_hour(hook, self.stream, hour)
            self.manifest_page = object_page(hook, self.stream.at(hour).manifest)
        return hour_report.result_of(self.stream, hour, totals)


class CompleteHourOperator(BaseOperator):
    """Marks a proven hour complete, and emits events for Dags downstream.

    Each completion is an event of two assets, because an event with a partition key reaches only partitioned Dags,
    and an event without one only the others. (One asset with an alias could have both kinds of event. But in
    Airflow 3.3.2 two first completions at the same time fail, because both insert the alias's row.)

    A run of a complete hour emits the events again (at least once): the bucket does not record whether they were
    sent.

    :param stream: the stream to which the hour belongs
    """

    operator_extra_links = (HourLink(), ManifestLink(), MarkerLink())

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        self.stream = stream
        name, uri = f"log_rollup_{stream.name}", str(stream.aggregated.root)
        self.asset = Asset(name=name, uri=uri)
        self.hours = Asset(name=f"{name}_hours", uri=f"{uri}_SUCCESS")
        super().__init__(outlets=[self.asset, self.hours], **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """See :func:`include.log_rollup.steps.complete_hour.complete_hour`; returns the totals."""
        hour = hour_of(context)
        paths = self.stream.at(hour)
        self.hour_page = hour_page(self.stream.name, hour)
        with _control_hook(self.stream) as hook:
            totals = complete_hour.complete_hour(hook, self.stream, hour, metrics.hour_completed)
            self.manifest_page = object_page(hook, paths.manifest)
            self.marker_page = object_page(hook, paths.marker)
            changes = hour_report.compare_with_hour_before(hook, self.stream, hour, totals)
        result = hour_report.result_of(self.stream, hour, totals)
        if changes:
            log.info("groups, compared with the hour before: %s", changes)
            result["since_hour_before"] = changes.to_json()
        if paths.has_groups:
            result[GROUP_CHANGES] = context["ti"].xcom_pull(task_ids="plan_hour", key=GROUP_CHANGES)
        events = context["outlet_events"]
        for asset in (self.asset, self.hours):
            events[asset].extra = hour_report.event_of(self.stream, hour, totals)
        events[self.hours].add_partitions(format_hour(hour))
        log.info(
            "%s objects, %s -> %d parts, proven by %s",
            f"{totals.objects:,}", format_size(totals.bytes_in), totals.parts,
            " and ".join(totals.verified.parts) or "having no parts",
        )  # fmt: skip
        return result


class FindLateHoursOperator(BaseOperator):
    """Finds the complete hours of the last ``late_days`` days with raw objects that arrived or changed since.

    Returns the arguments of a TriggerDagRunOperator for each hour to rerun. Each hour has its own run for this,
    which is cleared if it exists. So the kind of run that completed the hour does not matter, nor whether it was a
    run of this Airflow. The XCom ``report`` has the full result.

    :param stream: the stream to check
    """

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stream = stream

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """See :func:`include.log_rollup.queries.late.find_changed_hours`."""
        hours = late.recent_hours(pendulum.now("UTC"), self.stream.late_days)
        with _control_hook(self.stream) as hook:
            result = late.find_changed_hours(hook, self.stream, hours)
        metrics.late_checked(self.stream.name, [found.changes for found in result.changed])
        reruns = [found for found in result.changed if found.can_be_rerun]
        expired = [found for found in result.changed if not found.can_be_rerun]
        log.info(
            "%d hours, %d of them complete: %d to rerun, %d left alone because raw objects have vanished, "
            "%d that cannot be compared",
            result.hours, result.complete, len(reruns), len(expired), len(result.unclear),
        )  # fmt: skip
        report = {
            "hours": result.hours,
            "complete": result.complete,
            "rerun": {format_hour(found.hour): _counts(found.changes) for found in reruns},
            "left_alone": {format_hour(found.hour): _counts(found.changes) for found in expired},
            "unclear": list(result.unclear),
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


def _control_hook(stream: Stream) -> StreamStore:
    """The store of a task that moves no bodies of raw objects or parts."""
    return store_for(stream, stream.control_connections, stream.control_connections)


def _counts(changes: Changes) -> dict[str, int]:
    """The number of late, changed and vanished raw objects; expired ones are no change."""
    return {name: len(getattr(changes, name)) for name in ("late", "changed", "vanished")}
