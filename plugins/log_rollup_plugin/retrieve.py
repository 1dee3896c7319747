"""The operator RetrievePartsOperator: makes archived parts of complete hours readable, for Dags that read them."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import pendulum
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, Context

from include.log_rollup import limits
from include.log_rollup.errors import ArchivedError, ConfigurationError
from include.log_rollup.hour.layout import format_hour, hours_between, parse_hour
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.retrieval import (
    DEFAULT_DAYS,
    MAX_DAYS,
    ArchivedPart,
    Tier,
    find_archived,
    needed_parts,
    request_retrieval,
)
from include.log_rollup.streams import POOL
from include.log_rollup.units import format_duration, format_size
from log_rollup_plugin.cli.arguments import find_stream
from log_rollup_plugin.s3.stream_store import store_for

log = logging.getLogger(__name__)


class RetrievePartsOperator(BaseOperator):
    """Requests the retrieval of archived parts, and waits until all of them can be read.

    The wait takes no slot of a worker: the task defers to a trigger of Airflow that only waits, and asks S3 again
    after ``poll_interval``. Which parts are archived or being retrieved is read from S3 each time, so a task that
    is cleared or retried requests nothing twice. The task succeeds at once if no part is archived.

    :param stream: name of a stream (templated)
    :param hour: an hour like ``2026-11-23T08:00:00Z`` (templated)
    :param last_hour: last hour of a range that begins with ``hour`` (templated); by default that hour alone
    :param match: globs for names below the hour; only parts that hold such objects are retrieved
    :param groups: values by capture of the stream's ``aggregated``; only parts of such groups are retrieved
    :param tier: ``bulk``, ``standard`` or ``expedited``
    :param days: how long S3 keeps the copies that can be read
    :param poll_interval: time between two checks
    :param wait_timeout: the task fails if parts cannot be read after it; the longest retrieval takes two days
    :param kwargs: of BaseOperator. The pool is ``s3_connections``, with as many slots as connections are opened.
    """

    template_fields: Sequence[str] = ("stream", "hour", "last_hour")

    def __init__(
        self,
        *,
        stream: str,
        hour: str,
        last_hour: str | None = None,
        match: Sequence[str] = (),
        groups: Mapping[str, str] | None = None,
        tier: str = Tier.STANDARD.value,
        days: int = DEFAULT_DAYS,
        poll_interval: timedelta = timedelta(minutes=30),
        wait_timeout: timedelta = timedelta(hours=60),
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"pool": POOL, "pool_slots": limits.CONTROL_CONNECTIONS, **kwargs})
        if tier not in list(Tier):
            raise ConfigurationError(f"tier: {tier!r} is not a tier; give {', '.join(Tier)}")
        if not 1 <= days <= MAX_DAYS:
            raise ConfigurationError(f"days: {days} is not a number of days; give 1 to {MAX_DAYS}")
        self.stream = stream
        self.hour = hour
        self.last_hour = last_hour
        self.match = match
        self.groups = groups or {}
        self.tier = tier
        self.days = days
        self.poll_interval = poll_interval
        self.wait_timeout = wait_timeout

    def execute(self, context: Context) -> int:
        """Request the retrieval, and defer if parts are archived.

        :returns: number of parts that can be read, those of the chosen objects
        :raises NotFoundError: if an hour is not complete
        :raises ConfigurationError: if the range ends before it begins, or the class of a part does not have the
            tier
        :raises RollupError: from the store
        """
        # Airflow keeps the start of a task when it resumes from a deferral.
        return self._check(context["ti"].start_date + self.wait_timeout)

    def resume(self, context: Context, event: Any = None) -> int:
        """Check again; defer again if parts are still archived.

        :raises ArchivedError: if they are after ``wait_timeout``
        """
        return self.execute(context)

    def _check(self, deadline: datetime) -> int:
        needed, archived = self._request()
        if archived:
            self._wait(needed, archived, deadline)
        log.info("all %d parts can be read", needed)
        return needed

    def _wait(self, needed: int, archived: Sequence[ArchivedPart], deadline: datetime) -> None:
        """Defer until the next check.

        :raises TaskDeferred: if the wait goes on
        :raises ArchivedError: if it has ended
        """
        left = deadline - pendulum.now("UTC")
        if left <= timedelta(0):
            raise ArchivedError(
                f"stream {self.stream!r}: {len(archived):,} of {needed:,} parts could not be read after "
                f"{format_duration(self.wait_timeout)}, such as {archived[0].place} of hour "
                f"{format_hour(archived[0].hour)}. Their retrieval with the tier {self.tier!r} is still under "
                f"way: clear this task, or give it a longer wait_timeout"
            )
        pause = min(self.poll_interval, left)
        log.info("checking again in %s, until %s", format_duration(pause), deadline.isoformat())
        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=pause.total_seconds())),
            method_name=self.resume.__name__,
            # In case no triggerer runs.
            timeout=timedelta(seconds=pause.total_seconds()) + limits.DEFERRAL_MARGIN,
        )

    def _request(self) -> tuple[int, list[ArchivedPart]]:
        """Request what is missing; returns the number of needed parts, and those that cannot be read."""
        stream = find_stream(self.stream)
        first = parse_hour(self.hour)
        last = parse_hour(self.last_hour) if self.last_hour else first
        if last < first:
            raise ConfigurationError(
                f"last_hour: {format_hour(last)} is before the hour {format_hour(first)}; give the last hour of "
                f"the range, or leave it out"
            )
        chosen = ObjectFilter(stream, self.match, self.groups.items())
        connections = limits.CONTROL_CONNECTIONS
        with store_for(stream, connections, connections) as store:
            hours = hours_between(first, last + timedelta(hours=1))
            needed = list(needed_parts(store, stream, hours, chosen, strict=True))
            archived = find_archived(store, needed)
            requested = request_retrieval(store, archived, Tier(self.tier), self.days)
        if archived:
            log.info(
                "%d of %d parts are archived, %s; requested the retrieval of %d with the tier %s",
                len(archived), len(needed), format_size(sum(part.size for part in archived)), requested, self.tier,
            )  # fmt: skip
        return len(needed), archived
