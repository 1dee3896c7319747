"""The trigger of wait_for_raw_hour: lists the raw hour at intervals until it is settled."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.log_rollup import limits
from include.log_rollup.deadline import Deadline
from include.log_rollup.errors import AccessError, ConfigurationError, PermanentError, TransientError
from include.log_rollup.hour.layout import parse_hour
from include.log_rollup.hour.paths import RawPaths
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.hour.template_syntax import escape
from include.log_rollup.steps.wait_for_raw_hour import (
    RawHourCheck,
    RawHourStatus,
    SettleRule,
    unlisted_error,
    unsettled_error,
)
from include.log_rollup.units import format_duration
from log_rollup_plugin.poller import poller_of

JITTER = 0.2
"""The share of the poll interval by which each pause is randomly shorter or longer."""


class RawHourTrigger(BaseTrigger):
    """Fires when a raw hour is settled, when the deadline has passed, or when listing it cannot succeed.

    Its size does not depend on the number of raw objects; each check of the hour is a new listing.

    :param aws_conn_id: the stream's Airflow connection
    :param bucket: bucket of the raw objects
    :param prefix: raw prefix of the stream
    :param hour: as in ``2026-11-23T08:00:00Z``
    :param quiet_seconds: the stream's quiet period
    :param marker: the stream's ``ready_object``; triggers stored by earlier versions have it under this name
    :param allow_empty: whether an hour without objects is settled
    :param poll_seconds: pause between two listings, give or take a fifth
    :param until: the deadline by the store's clock, in ISO format
    :param since: start of the wait by the worker's clock, in ISO format; None in triggers that an earlier version
        stored
    :param deadline: the deadline by the worker's clock, in ISO format; None likewise
    """

    def __init__(
        self,
        aws_conn_id: str,
        bucket: str,
        prefix: str,
        hour: str,
        quiet_seconds: float,
        marker: str | None,
        allow_empty: bool,
        poll_seconds: float,
        until: str,
        since: str | None = None,
        deadline: str | None = None,
        template: str | None = None,
        timezone: str = "UTC",
    ) -> None:
        super().__init__()
        self.aws_conn_id = aws_conn_id
        self.bucket = bucket
        self.prefix = prefix
        self.hour = hour
        self.quiet_seconds = quiet_seconds
        self.marker = marker
        self.allow_empty = allow_empty
        self.poll_seconds = poll_seconds
        self.until = until
        self.since = since
        self.deadline = deadline
        self.template = template
        self.timezone = timezone

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path, and the arguments to create this trigger again."""
        return (
            "log_rollup_plugin.trigger.RawHourTrigger",
            {
                "aws_conn_id": self.aws_conn_id,
                "bucket": self.bucket,
                "prefix": self.prefix,
                "hour": self.hour,
                "quiet_seconds": self.quiet_seconds,
                "marker": self.marker,
                "allow_empty": self.allow_empty,
                "poll_seconds": self.poll_seconds,
                "until": self.until,
                "since": self.since,
                "deadline": self.deadline,
                "template": self.template,
                "timezone": self.timezone,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """List the hour again and again, with pauses, until it is settled or the deadline has passed.

        After a network fault the listing is tried again until the deadline. After refused credentials or an
        unusable connection it is tried again for a limited time, because somebody may be fixing them.
        """
        paths = RawPaths(self._raw_template, parse_hour(self.hour))
        rule = SettleRule(timedelta(seconds=self.quiet_seconds), self.marker, self.allow_empty)
        wait = Deadline(datetime.fromisoformat(self.until), _instant(self.since), _instant(self.deadline))
        failures: Failures | None = None
        while True:
            await asyncio.sleep(min(self._pause(failures), wait.left))
            seconds = min(limits.POLL_LISTING_SECONDS, max(wait.left, limits.LAST_POLL_LISTING_SECONDS))
            try:
                seen = await poller_of(self.aws_conn_id).check(paths, rule, seconds)
            except Exception as error:
                failures = failures or Failures()
                failures.add(error, seconds)
                self.log.warning("could not list %s, trying again: %s", paths.raw, failures.problem)
                event = self._after_failure(paths, failures, wait)
            else:
                failures = None
                wait.answered(seen.now)
                self.log.info("hour %s under %s is %s", self.hour, paths.raw, seen)
                event = self._after_listing(paths, rule, seen, wait)
            if event is not None:
                yield event
                return

    @property
    def _raw_template(self) -> RawTemplate:
        # Triggers of earlier versions have only bucket and prefix.
        template = self.template or f"s3://{self.bucket}/{escape(self.prefix)}"
        return RawTemplate.parse(template, self.timezone)

    def _pause(self, failures: "Failures | None") -> float:
        seconds = self.poll_seconds
        if failures is not None and failures.refused_for is not None:
            seconds = min(seconds, limits.POLL_REFUSED_INTERVAL_SECONDS)
        return seconds * random.uniform(1 - JITTER, 1 + JITTER)

    def _after_listing(
        self, paths: RawPaths, rule: SettleRule, seen: RawHourCheck, wait: Deadline
    ) -> TriggerEvent | None:
        if seen.status is RawHourStatus.SETTLED:
            return TriggerEvent({"status": "settled", "message": f"hour {self.hour} is {seen}"})
        if wait.passed:
            return _failed(str(unsettled_error(paths, rule, seen, wait.waited)))
        return None

    def _after_failure(self, paths: RawPaths, failures: "Failures", wait: Deadline) -> TriggerEvent | None:
        if failures.is_final:
            return _failed(failures.problem)
        refused_for = failures.refused_for
        if refused_for is not None and (
            wait.passed or refused_for >= timedelta(seconds=limits.POLL_REFUSED_SECONDS)
        ):
            return _failed(
                f"hour {self.hour}: {failures.problem}. The same came back for {format_duration(refused_for)}, "
                f"from new clients too; fix the Airflow connection {self.aws_conn_id!r} or its permissions, then "
                f"clear this task"
            )
        if wait.passed:
            error = unlisted_error(paths, self.aws_conn_id, failures.problem, failures.lasted, wait.waited)
            return _failed(str(error))
        return None


class Failures:
    """The failed listings since the last successful one."""

    def __init__(self) -> None:
        self.problem = ""
        self.is_final = False
        self._since = time.monotonic()
        self._refused_since: float | None = None
        self._is_refused = False

    def add(self, error: Exception, seconds: float) -> None:
        """Add the error of a listing.

        Refusals are errors of credentials, permissions and connections, and the errors that Airflow raises while
        it looks up the connection. Other errors that a retry cannot fix are final.

        :param seconds: the time limit of the listing
        """
        self.problem = str(error) or type(error).__name__
        self._is_refused = False
        if isinstance(error, TimeoutError):
            self.problem = f"the listing did not end within {format_duration(timedelta(seconds=seconds))}"
        elif not isinstance(error, TransientError):
            self._is_refused = isinstance(error, AccessError | ConfigurationError) or not isinstance(
                error, PermanentError
            )
            self.is_final = not self._is_refused
            if self._is_refused and self._refused_since is None:
                self._refused_since = time.monotonic()

    @property
    def lasted(self) -> timedelta:
        """How long listings have failed."""
        return timedelta(seconds=time.monotonic() - self._since)

    @property
    def refused_for(self) -> timedelta | None:
        """How long listings have been refused; None if the last one was not."""
        if not self._is_refused or self._refused_since is None:
            return None
        return timedelta(seconds=time.monotonic() - self._refused_since)


def _failed(message: str) -> TriggerEvent:
    return TriggerEvent({"status": "failed", "message": message})


def _instant(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)
