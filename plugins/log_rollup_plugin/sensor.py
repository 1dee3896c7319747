"""The step wait_for_raw_hour: looks once, and waits in the triggerer if that was not enough."""

import logging
from datetime import UTC
from typing import Any, NoReturn

from airflow.sdk import BaseSensorOperator, Context

from include.log_rollup.errors import PermanentError
from include.log_rollup.hours import format_hour
from include.log_rollup.settle import Rule, State, give_up_at, look, unsettled
from include.log_rollup.streams import Stream
from log_rollup_plugin.hook import PooledS3Hook
from log_rollup_plugin.runs import hour_of
from log_rollup_plugin.trigger import RawHourTrigger

log = logging.getLogger(__name__)

# One listing, by one connection.
LISTING_CONNECTIONS = 1


class RawHourSensor(BaseSensorOperator):
    """Waits until a stream's raw hour is settled.

    An hour that is settled at the first look, as every hour of a catchup or a backfill is, never defers.

    :param stream: whose hour
    """

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(
            timeout=stream.timeout.total_seconds(),
            poke_interval=stream.poll_interval.total_seconds(),
            **kwargs,
        )
        self.stream = stream

    def execute(self, context: Context) -> None:
        """Look once; defer if the hour is not settled.

        :raises EmptyHourError: if there is nothing and the time-out has passed
        :raises UnsettledHourError: if the time-out has passed otherwise
        """
        stream, hour = self.stream, hour_of(context)
        paths = stream.at(hour)
        rule = Rule(stream.quiet_period, stream.marker, stream.allow_empty)
        with PooledS3Hook.for_stream(stream, LISTING_CONNECTIONS, LISTING_CONNECTIONS) as hook:
            first = look(hook, paths, rule)
        log.info("hour %s under %s is %s", format_hour(hour), paths.raw, first)
        if first.state is State.SETTLED:
            return
        until = give_up_at(paths, rule, first, stream.timeout)
        if first.now >= until:
            raise unsettled(paths, rule, first)
        log.info("waiting until %s at the longest", until.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ"))
        self.defer(
            trigger=RawHourTrigger(
                aws_conn_id=stream.aws_conn_id,
                bucket=stream.raw.bucket,
                prefix=stream.raw.key,
                hour=format_hour(hour),
                quiet_seconds=stream.quiet_period.total_seconds(),
                marker=stream.marker,
                allow_empty=stream.allow_empty,
                poll_seconds=stream.poll_interval.total_seconds(),
                until=until.isoformat(),
            ),
            method_name=self.resume.__name__,
        )

    def resume(self, context: Context, event: dict[str, Any]) -> None:
        """Take what the trigger found.

        :raises PermanentError: with the trigger's message, if the hour did not settle
        """
        if event["status"] != "settled":
            self._fail(event["message"])
        log.info("%s", event["message"])

    def _fail(self, message: str) -> NoReturn:
        raise PermanentError(message)
