"""The sensor of wait_for_raw_hour: lists the hour once, and waits in the triggerer if it is not settled."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pendulum
from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowSensorTimeout

from include.log_rollup import limits
from include.log_rollup.errors import PermanentError, RollupError
from include.log_rollup.expiry_options import SHORTEST_AFTER
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.steps.wait_for_raw_hour import (
    RawHourCheck,
    RawHourStatus,
    SettleRule,
    check_raw_hour,
    give_up_at,
    unsettled_error,
)
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_duration
from log_rollup_plugin.runs import hour_of
from log_rollup_plugin.s3.hook import PooledS3Hook
from log_rollup_plugin.trigger import RawHourTrigger

log = logging.getLogger(__name__)


class RawHourSensor(BaseSensorOperator):
    """Waits until a stream's raw hour is settled.

    It does not defer if the hour is settled at the first listing, as in a catchup or a backfill. An hour that is
    empty or lacks the ready object is settled if raw objects of it have expired: it was complete before.

    :param stream: the stream to which the hour belongs
    """

    def __init__(self, *, stream: Stream, **kwargs: Any) -> None:
        super().__init__(
            timeout=stream.timeout.total_seconds(),
            poke_interval=stream.poll_interval.total_seconds(),
            **kwargs,
        )
        self.stream = stream

    def execute(self, context: Context) -> None:
        """List the hour; defer if it is not settled.

        :raises EmptyHourError: if the timeout has passed and there are no objects
        :raises UnsettledHourError: if the timeout has passed for another reason
        :raises RollupError: from the store
        """
        stream, hour = self.stream, hour_of(context)
        paths, rule = stream.at(hour), self._rule
        first = self._list_hour(hour)
        if self._is_settled(hour, first):
            return
        until = give_up_at(paths, first, stream.timeout)
        left = until - first.now
        if left <= timedelta(0):
            raise unsettled_error(paths, rule, first)
        log.info("waiting until %s at the latest", until.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ"))
        now = pendulum.now("UTC")
        self.defer(
            trigger=RawHourTrigger(
                aws_conn_id=stream.aws_conn_id,
                bucket=stream.raw.bucket,
                prefix=stream.raw.root.key,
                hour=format_hour(hour),
                quiet_seconds=stream.quiet_period.total_seconds(),
                marker=stream.ready_object,
                allow_empty=stream.allow_empty,
                poll_seconds=stream.poll_interval.total_seconds(),
                until=until.isoformat(),
                since=now.isoformat(),
                deadline=(now + left).isoformat(),
                template=stream.raw.text,
                timezone=stream.raw.zone,
            ),
            method_name=self.resume.__name__,
            # In case the trigger never runs, or is lost. It has to be a plain timedelta: Airflow 3.3.2 cannot
            # serialise pendulum's.
            timeout=left + limits.DEFERRAL_MARGIN,
        )

    def resume(self, context: Context, event: dict[str, Any]) -> None:
        """Handle the event of the trigger.

        :raises PermanentError: with the message of the trigger, if the hour is not settled
        """
        if event["status"] != "settled":
            raise PermanentError(f"stream {self.stream.name!r}: {event['message']}")
        log.info("%s", event["message"])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the deferral; if the trigger did not fire in time, list the hour once more.

        :raises PermanentError: if the trigger did not fire and the hour is not settled
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            return self._without_trigger(context)

    def _without_trigger(self, context: Context) -> None:
        hour = hour_of(context)
        waited = pendulum.now("UTC") - context["ti"].start_date
        silence = f"the triggerer has not reported for {format_duration(waited)}"
        try:
            seen = self._list_hour(hour)
            if self._is_settled(hour, seen):
                log.warning("%s; the hour is settled nevertheless", silence)
                return
        except RollupError as error:
            problem = str(error)
        else:
            problem = str(unsettled_error(self.stream.at(hour), self._rule, seen))
        raise PermanentError(
            f"stream {self.stream.name!r}: hour {format_hour(hour)}: {silence}, and the hour could not be found "
            f"settled. The last problem: {problem} See that a triggerer is running, then clear this task."
        )

    @property
    def _rule(self) -> SettleRule:
        return SettleRule(self.stream.quiet_period, self.stream.ready_object, self.stream.allow_empty)

    def _is_settled(self, hour: datetime, seen: RawHourCheck) -> bool:
        """Whether a listing shows a settled hour, or one that was complete before its objects expired.

        The ready object does not come back either, if a lifecycle rule has removed it.
        """
        if seen.status not in (RawHourStatus.EMPTY, RawHourStatus.NO_READY_OBJECT):
            return seen.status is RawHourStatus.SETTLED
        paths = self.stream.at(hour)
        # So that a new hour costs no request.
        if seen.now - paths.end < SHORTEST_AFTER or not self._has_expired(hour):
            return False
        log.info("raw objects have expired, as %s says: the hour was complete before", paths.expiry_record)
        return True

    def _has_expired(self, hour: datetime) -> bool:
        """Whether raw objects of the hour have been deleted because parts hold them."""
        connections = self.stream.wait_connections
        hook = PooledS3Hook.for_stream(
            self.stream, connections, connections, self.stream.connection_of_aggregated
        )
        with hook:
            return hook.head(self.stream.at(hour).expiry_record) is not None

    def _list_hour(self, hour: datetime) -> RawHourCheck:
        """List the hour once, with a new client."""
        paths = self.stream.at(hour)
        connections = self.stream.wait_connections
        # Only raw is listed, so all of them go to one host.
        hook = PooledS3Hook(
            aws_conn_id=self.stream.aws_conn_id,
            max_connections=connections,
            control_connections=connections,
            connect_timeout=self.stream.connect_timeout,
            many_lists=bool(self.stream.raw.captures),
        )
        with hook:
            seen = check_raw_hour(hook, paths, self._rule)
        log.info("hour %s under %s is %s", format_hour(hour), paths.raw, seen)
        return seen
