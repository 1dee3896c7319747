"""Opens a store with the hook and the Airflow connection of the tasks."""

import gc
import logging
from importlib import import_module
from typing import TYPE_CHECKING

from include.log_rollup import limits
from include.log_rollup.streams import Stream

if TYPE_CHECKING:
    from log_rollup_plugin.s3.hook import PooledS3Hook
    from log_rollup_plugin.s3.stream_store import StreamStore


def open_store(stream: Stream, control_connections: int = limits.COMMAND_CONNECTIONS) -> "StreamStore":
    """The store for a command; used as a context manager, it closes its connections.

    :param control_connections: how many of its connections boto3 may use; a transfer uses the rest
    """
    load_airflow()
    from log_rollup_plugin.s3.stream_store import store_for

    return store_for(stream, limits.COMMAND_CONNECTIONS, control_connections)


def open_connection(conn_id: str, connections: int = 1) -> "PooledS3Hook":
    """The hook for a command that has no stream, or several of one bucket.

    :param conn_id: name of the Airflow connection
    :param connections: the most connections to one host
    """
    load_airflow()
    from log_rollup_plugin.s3.hook import PooledS3Hook

    return PooledS3Hook(aws_conn_id=conn_id, max_connections=connections, control_connections=connections)


def load_airflow() -> None:
    """Import Airflow and the hook. This takes seconds, so it comes after the command line has been checked."""
    # Imports create many objects and hardly any garbage; searching for it would take a tenth of their time.
    gc.disable()
    try:
        import_module("airflow")
        import_module("log_rollup_plugin.s3.hook")
    finally:
        gc.enable()
    # After the import, because Airflow configures all loggers. This one warns of words in a connection's extra
    # that are too short to be masked, such as "path".
    logging.getLogger("airflow.sdk._shared.secrets_masker.secrets_masker").setLevel(logging.ERROR)
