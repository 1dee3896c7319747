"""The streams of the system tests. Their Dags are named ``log_rollup_<stream>``."""

from datetime import datetime, timedelta
from typing import Any

from dev.stack.paths import BUCKET

# The stream ``app`` catches up with these hours when the stack starts.
APP_HOURS = 2
APP_OBJECTS = 60
PART_SIZE = 5 * 1024 * 1024
SMALL_CONNECTIONS = 8
# Settings of a stream whose hours are settled as soon as they are written.
AT_ONCE = {
    "shard_size": "5MiB", "max_connections": SMALL_CONNECTIONS, "quiet_period": "1s", "poll_interval": "1s",
}  # fmt: skip
READY_OBJECT = "_DONE"
# Raw objects of the stream ``expiring`` expire from so many days before its start on.
EXPIRING_DAYS = 3
HTTP_NOTIFIER = "airflow.providers.http.notifications.http.HttpNotifier"
DEFAULTS = {"part_size": PART_SIZE, "shard_size": "20MiB", "late_days": 0}


def stream(name: str, start: datetime, **settings: Any) -> dict[str, Any]:
    """Return a stream's entry in the streams file."""
    places = {side: f"s3://{BUCKET}/{side}/{name}/" for side in ("raw", "aggregated")}
    return {"name": name, "start": start, **places, **settings}


def manual_streams(start: datetime) -> list[dict[str, Any]]:
    """Return the streams whose runs are started by tests: by hand, or as backfills of earlier hours.

    :param start: the current hour, which has no scheduled run yet. Airflow runs no task of a manual run if its Dag
        starts in the future
    """
    return [
        # Its runs are those of several tests.
        stream("small", start, max_active_runs=8, **AT_ONCE),
        # A Dag has one backfill at a time.
        stream("backfilled", start, **AT_ONCE),
        stream("older", start, **AT_ONCE),
        # Its complete hours change.
        stream("revised", start, late_days=1, **AT_ONCE),
        # Its objects are divided into groups.
        stream(
            "grouped", start, raw=f"s3://{BUCKET}/grouped/{{service}}/%Y%m%d/%H/",
            aggregated=f"s3://{BUCKET}/packed/{{service}}/%Y%m%d/%H/", **AT_ONCE,
        ),
        stream("report", start, max_active_runs=6, **AT_ONCE),
        # Its runs are notified through the connection ``chat``, and its hours wait for a ready object.
        stream(
            "notified", start, ready_object=READY_OBJECT, deadline="2s",
            notify=[{"class": HTTP_NOTIFIER, "http_conn_id": "chat"}], **AT_ONCE,
        ),
        stream("waits", start, ready_object=READY_OBJECT, timeout="6h", **AT_ONCE),
        # Its parts have several frames.
        stream("archive", start, compression="zstd", **AT_ONCE | {"part_size": "16MiB", "shard_size": "16MiB"}),
        stream("quiet", start, quiet_period="5s", poll_interval="1s"),
        # Its raw objects expire; its connections to S3 pass through a proxy.
        stream(
            "expiring", start, aws_conn_id="proxied",
            expire_raw={
                "after": "1d", "since": start - timedelta(days=EXPIRING_DAYS),
                # rclone ignores the conditions of deletes.
                "unconditional": True,
            },
            **AT_ONCE,
        ),
        # Its connections to S3 pass through a proxy.
        stream("crashes", start, aws_conn_id="proxied", quiet_period="3s", poll_interval="3s"),
    ]  # fmt: skip
