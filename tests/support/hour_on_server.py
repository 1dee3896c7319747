"""Runs the steps of an hour on a real server, as the operators do, but without Airflow's scheduler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

from dev.servers import S3Client
from include.log_rollup import limits
from include.log_rollup.errors import PermanentError, RollupError
from include.log_rollup.hour.manifest import HourTotals
from include.log_rollup.hour.plan import ShardRef
from include.log_rollup.hour.records import Measured
from include.log_rollup.steps.complete_hour import complete_hour
from include.log_rollup.steps.pack_shard import pack_shard
from include.log_rollup.steps.plan_hour import Planned, plan_hour
from include.log_rollup.steps.validate_hour import validate_hour
from include.log_rollup.streams import Stream
from log_rollup_plugin.s3.stream_store import StreamStore, store_for
from tests.support.raw_hours import AGGREGATED, HOUR, RAW
from tests.support.verify import VerifiedHour, assert_not_complete, verify_hour

T = TypeVar("T")


@dataclass(frozen=True)
class Pipeline:
    """One stream on one server.

    :param client: a plain client, to prepare and inspect the bucket
    """

    stream: Stream
    client: S3Client
    bucket: str
    hour: datetime = HOUR

    def plan(self, drop_vanished: bool = False) -> Planned:
        """Run plan_hour."""
        return plan_hour(self._control(), self.stream, self.hour, "test", drop_vanished)

    def pack(self, ref: ShardRef) -> Measured:
        """Run one pack_shard."""
        hook = store_for(self.stream, self.stream.max_connections, limits.PACKING_CONTROL_CONNECTIONS)
        return pack_shard(hook, self.stream, ref)

    def pack_all(self, planned: Planned) -> list[Measured]:
        """Run pack_shard for each shard of a plan."""
        return [self.pack(ref) for ref in planned.shards]

    def validate(self) -> HourTotals:
        """Run validate_hour."""
        return validate_hour(self._control(), self.stream, self.hour)

    def complete(self) -> HourTotals:
        """Run complete_hour."""
        return complete_hour(self._control(), self.stream, self.hour)

    def run(self, drop_vanished: bool = False) -> list[Measured]:
        """Run all steps, and return what each shard measured."""
        measured = self.pack_all(self.plan(drop_vanished))
        self.validate()
        self.complete()
        return measured

    def run_as_airflow(self, clears: int) -> list[RollupError]:
        """Run all steps, retry each as often as the Dag does, and clear the run if a step still fails.

        :param clears: the most clears
        :returns: the errors of failed tries
        """
        errors: list[RollupError] = []

        def tried(step: Callable[[], T]) -> T:
            for _ in range(limits.TASK_RETRIES):
                try:
                    return step()
                except PermanentError:
                    raise
                except RollupError as error:
                    errors.append(error)
            return step()

        for _ in range(clears):
            try:
                for ref in tried(self.plan).shards:
                    tried(partial(self.pack, ref))
                tried(self.validate)
                tried(self.complete)
            except RollupError as error:
                errors.append(error)
            else:
                return errors
        raise AssertionError(f"not complete after {clears} clears: {[str(error) for error in errors]}")

    def parts(self) -> dict[str, str]:
        """The SHA-256 of each existing part, by its key."""
        return {
            key: sha256(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()).hexdigest()
            for key in self.listed(f"{AGGREGATED}part-")
        }

    def part(self, index: int) -> str:
        """The key of the part with this index."""
        (key,) = self.listed(f"{AGGREGATED}part-{index:05d}-")
        return key

    def open_uploads(self) -> list[str]:
        """The keys of unfinished multipart uploads."""
        try:
            answer = self.client.list_multipart_uploads(Bucket=self.bucket)
        except self.client.exceptions.NoSuchUpload:
            # rclone answers this if there are none.
            return []
        return [upload["Key"] for upload in answer.get("Uploads", ())]

    def verify(self, expected: Mapping[str, bytes] | None = None, *, reruns: bool = False) -> VerifiedHour:
        """Compare the hour byte by byte, without the project's code.

        :param reruns: whether later runs have packed objects of the hour
        """
        return verify_hour(
            self.client, self.bucket, RAW, AGGREGATED,
            part_size=self.stream.part_size, ensure_newline=self.stream.ensure_newline,
            ready_object=self.stream.ready_object, expected=expected, reruns=reruns,
        )  # fmt: skip

    def assert_not_complete(self) -> None:
        """The hour has no completion marker."""
        assert_not_complete(self.client, self.bucket, AGGREGATED)

    def listed(self, prefix: str = AGGREGATED) -> list[str]:
        """All keys under a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def _control(self) -> StreamStore:
        return store_for(self.stream, limits.CONTROL_CONNECTIONS, limits.CONTROL_CONNECTIONS)


def settings_on(bucket: str, **settings: Any) -> dict[str, Any]:
    """The settings of :func:`stream_on` as JSON values, for another process."""
    return {
        "name": "app",
        "raw": f"s3://{bucket}/raw/app/",
        "aggregated": f"s3://{bucket}/aggregated/app/",
        "start": "2026-11-01T00:00:00Z",
        "part_size": "5MiB",
        "shard_size": "10MiB",
        "max_connections": 8,
        **settings,
    }


def stream_on(bucket: str, **settings: Any) -> Stream:
    """A stream ``app`` in a bucket, with small parts unless the settings say otherwise."""
    return Stream.model_validate(settings_on(bucket, **settings))
