"""Metrics of hours and shards for Airflow's StatsD or OpenTelemetry; docs/OBSERVABILITY.md lists them."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from airflow.sdk.configuration import conf
from airflow.sdk.observability.stats import Stats

from include.log_rollup.hour.changes import Changes
from include.log_rollup.hour.manifest import HourTotals
from include.log_rollup.hour.records import Measured
from include.log_rollup.steps.expire_stream import StreamExpiry


def hour_completed(totals: HourTotals) -> None:
    """Count an hour that has just become complete."""
    stream = totals.stream
    _count(stream, "hours", 1)
    _count(stream, "objects", totals.objects)
    _count(stream, "bytes", totals.bytes_in)
    _count(stream, "parts", totals.parts)
    _gauge(stream, "groups", len(totals.groups))


def shard_packed(stream: str, measured: Measured) -> None:
    """Record one try to pack a shard, successful or not."""
    for name, tags in _series(stream, "shard_duration"):
        Stats.timing(name, timedelta(seconds=measured.seconds), tags=tags)
    _count(stream, "throttles", measured.throttles)
    _count(stream, "retries", measured.retries)
    _gauge(stream, "peak_sockets", measured.sockets)


def late_checked(stream: str, changes: Sequence[Changes]) -> None:
    """Record what a check for late objects found."""
    _gauge(stream, "changed_hours", len(changes))
    _gauge(stream, "late_objects", sum(len(one.late) for one in changes))
    _gauge(stream, "changed_objects", sum(len(one.changed) for one in changes))
    _gauge(stream, "vanished_objects", sum(len(one.vanished) for one in changes))


def raw_expired(result: StreamExpiry) -> None:
    """Record what was found in a stream's old hours, and what was deleted."""
    if result.deletes:
        _count(result.stream, "expired_objects", result.objects)
        _count(result.stream, "expired_bytes", result.size)
    else:
        _gauge(result.stream, "expirable_objects", result.objects)
        _gauge(result.stream, "expirable_bytes", result.size)
    _gauge(result.stream, "expiry_left_alone", len(result.left_alone))


def _count(stream: str, metric: str, count: int) -> None:
    for name, tags in _series(stream, metric):
        Stats.incr(name, count, tags=tags)


def _gauge(stream: str, metric: str, value: int) -> None:
    for name, tags in _series(stream, metric):
        Stats.gauge(name, value, tags=tags)


def _series(stream: str, metric: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Names and tags of a metric.

    The stream is a tag. If Airflow's setting ``metrics.legacy_names_on`` is set, there is a second metric with the
    stream in its name, for a StatsD without tags, as Airflow does it for its own metrics.
    """
    yield f"log_rollup.{metric}", {"stream": stream}
    if conf.getboolean("metrics", "legacy_names_on"):
        yield f"log_rollup.{metric}.{stream.replace('.', '__')}", {}
