"""The bucket, through the same hook and connection as the tasks'."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from include.log_rollup import limits
from include.log_rollup.streams import Stream

if TYPE_CHECKING:
    from log_rollup_plugin.s3.hook import PooledS3Hook


def open_store(stream: Stream, control_connections: int = limits.COMMAND_CONNECTIONS) -> "PooledS3Hook":
    """The hook for a command; as a context manager it closes its connections.

    :param control_connections: how many of them are boto3's; the rest are a transfer's
    """
    load_airflow()
    from log_rollup_plugin.s3.hook import PooledS3Hook

    return PooledS3Hook.for_stream(stream, limits.COMMAND_CONNECTIONS, control_connections)


def load_airflow() -> None:
    """Import Airflow: not at the start, because that takes seconds, and a wrong command line need not wait."""
    import_module("airflow")
    # Which sets all loggers up anew. This one warns of words of a connection's extra, such as "path", that are too
    # short to be masked.
    logging.getLogger("airflow.sdk._shared.secrets_masker.secrets_masker").setLevel(logging.ERROR)
