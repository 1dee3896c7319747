"""The trigger behind wait_for_raw_hour: lists the raw hour now and then until it is settled."""

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from include.log_rollup.errors import PermanentError, TransientError
from include.log_rollup.hours import HourPaths, parse_hour
from include.log_rollup.settle import Look, Rule, State, look, unsettled
from include.log_rollup.store import Location
from log_rollup_plugin.hook import PooledS3Hook

# All triggers of a triggerer share this many threads, and as many connections for each Airflow connection.
POLLING_THREADS = 2
JITTER = 0.2


class RawHourTrigger(BaseTrigger):
    """Fires when a raw hour is settled, when the time-out has come, or when looking cannot succeed.

    Holds a handful of numbers and no key: each look starts afresh from a listing.

    :param aws_conn_id: of the stream
    :param bucket: of the raw objects
    :param prefix: raw prefix of the stream
    :param hour: as in ``2026-11-23T08:00:00Z``
    :param quiet_seconds: the stream's quiet period
    :param marker: name of the stream's marker object below the hour's prefix, if it has one
    :param allow_empty: whether an hour without objects is settled
    :param poll_seconds: between two looks, give or take a fifth
    :param until: when to give up, by the store's clock, in ISO format
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

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments that make this trigger again."""
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
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look, wait, look again; network faults are waited out."""
        # Only the raw prefix is looked at; the aggregated one is not needed to judge.
        raw = Location(self.bucket, self.prefix)
        paths = HourPaths(raw, raw, parse_hour(self.hour))
        rule = Rule(timedelta(seconds=self.quiet_seconds), self.marker, self.allow_empty)
        until = datetime.fromisoformat(self.until)
        while True:
            await asyncio.sleep(self.poll_seconds * random.uniform(1 - JITTER, 1 + JITTER))
            try:
                seen = await self._look(paths, rule)
            except TransientError as error:
                self.log.warning("could not look at %s, trying again: %s", paths.raw, error)
                continue
            except PermanentError as error:
                # The connection may have been mended by the time somebody clears the task.
                shared_hook.cache_clear()
                yield TriggerEvent({"status": "failed", "message": str(error)})
                return
            self.log.info("hour %s under %s is %s", self.hour, paths.raw, seen)
            if seen.state is State.SETTLED:
                yield TriggerEvent({"status": "settled", "message": f"hour {self.hour} is {seen}"})
                return
            if seen.now >= until:
                yield TriggerEvent({"status": "failed", "message": str(unsettled(paths, rule, seen))})
                return

    async def _look(self, paths: HourPaths, rule: Rule) -> Look:
        hook = shared_hook(self.aws_conn_id)
        # The client is made where Airflow can ask its supervisor for the connection; listings only use it.
        await sync_to_async(getattr)(hook, "client")
        return await asyncio.get_running_loop().run_in_executor(_threads(), look, hook, paths, rule)


@cache
def shared_hook(aws_conn_id: str) -> PooledS3Hook:
    """The one small client of this triggerer for an Airflow connection."""
    return PooledS3Hook(
        aws_conn_id=aws_conn_id, max_connections=POLLING_THREADS, control_connections=POLLING_THREADS
    )


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(POLLING_THREADS, "log-rollup-poll")
