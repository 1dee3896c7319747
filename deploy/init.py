"""The init step of a deployment: database, pools, streams, connections; each is safe to do again.

    python -m deploy.init

With DEMO_HOURS in the environment the demo's raw hours are made beside the streams file, if they are not there.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.streams import Stream, check_pool, load_streams, pool_slots


def main() -> int:
    """Do all steps; 1, and what to mend, if a stream or a connection is not right."""
    hours = os.environ.get("DEMO_HOURS")
    if hours:
        _make_demo_hours(int(hours), int(os.environ["DEMO_OBJECTS"]))
    try:
        streams = load_streams()
        check_pool(streams, pool_slots())
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True)
    # After the migration, because both look into the database.
    _create_pools()
    missing = _missing_connections(streams)
    for connection in missing:
        sys.stderr.write(
            f"there is no Airflow connection {connection!r}: set AIRFLOW_CONN_{connection.upper()}, or create it\n"
        )
    if missing:
        return 1
    print(f"ready: {', '.join(stream.name for stream in streams)}")
    return 0


def _make_demo_hours(hours: int, objects: int) -> None:
    from dev.made_logs.dataset import make_dataset, read_dataset
    from dev.stack.paths import StackPaths

    paths = StackPaths(Path(os.environ["LOG_ROLLUP_STREAMS"]).parent)
    if read_dataset(paths) is None:
        make_dataset(paths, hours, objects, datetime.now(UTC), print)


def _create_pools() -> None:
    from airflow import settings

    # Which makes plugins importable, as in every process of Airflow's.
    settings.initialize()
    from log_rollup_plugin.listener import create_missing_pools

    create_missing_pools()


def _missing_connections(streams: list[Stream]) -> list[str]:
    from airflow.exceptions import AirflowNotFoundException
    from airflow.models.connection import Connection

    missing = []
    for name in sorted({stream.aws_conn_id for stream in streams if stream.aws_conn_id}):
        try:
            Connection.get_connection_from_secrets(name)
        except AirflowNotFoundException:
            missing.append(name)
    return missing


if __name__ == "__main__":
    sys.exit(main())
