"""The init step of a deployment: checks the streams, migrates the database, creates the pool, checks connections.

    python -m deploy.init_airflow

Running it again is safe.
"""

import sys

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.streams import Stream, check_pool, load_streams, pool_slots


def main() -> int:
    """Run all steps; return 1, with the fix on stderr, if a stream or a connection is not usable."""
    try:
        streams = load_streams()
        check_pool(streams, pool_slots())
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _migrate_database()
    # These two read the database, so they follow the migration.
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


def _migrate_database() -> None:
    """Run `airflow db migrate` in this process: a new one would take seconds to import Airflow again."""
    from airflow.__main__ import main as run_airflow

    sys.argv = ["airflow", "db", "migrate"]
    run_airflow()


def _create_pools() -> None:
    from airflow import settings

    # Makes the plugins folder importable, as in every Airflow process.
    settings.initialize()
    from log_rollup_plugin.listener import create_missing_pools

    create_missing_pools()


def _missing_connections(streams: list[Stream]) -> list[str]:
    """Return the names of connections that streams use and Airflow does not have."""
    from airflow.exceptions import AirflowNotFoundException
    from airflow.models.connection import Connection

    missing = []
    names = {name for one in streams for name in (one.aws_conn_id, one.connection_of_aggregated)}
    for name in sorted(names - {""}):
        try:
            Connection.get_connection_from_secrets(name)
        except AirflowNotFoundException:
            missing.append(name)
    return missing


if __name__ == "__main__":
    sys.exit(main())
