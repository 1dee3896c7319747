"""The Dag id of a stream, and the hour of a run."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import floor_hour, parse_hour
from include.log_rollup.streams import Stream


def dag_id_of(stream: Stream) -> str:
    """The id of the Dag that rolls up a stream."""
    return f"log_rollup_{stream.name}"


def hour_of(context: Mapping[str, Any]) -> datetime:
    """The hour of a run: the one given in the trigger form, else the start of its data interval.

    :returns: a plain datetime in UTC; Airflow gives data intervals as pendulum's
    :raises ConfigurationError: if the run has neither
    """
    explicit = context["params"].get("hour")
    if explicit:
        return parse_hour(explicit)
    start = context.get("data_interval_start")
    if start is None:
        raise ConfigurationError(
            "this run was triggered without an hour and has no data interval; trigger it again and give the "
            "hour in the form, like 2026-11-23T08:00:00Z"
        )
    return floor_hour(start)
