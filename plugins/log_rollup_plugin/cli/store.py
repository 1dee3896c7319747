"""The bucket, through the same hook and connection as the tasks'."""

from typing import TYPE_CHECKING

from include.log_rollup.streams import Stream

if TYPE_CHECKING:
    from log_rollup_plugin.hook import PooledS3Hook

# As many as a task has that plans or validates; they come beside those that the pool counts.
CONNECTIONS = 4


def open_store(stream: Stream, control_connections: int = CONNECTIONS) -> "PooledS3Hook":
    """The hook for a command; as a context manager it closes its connections.

    :param control_connections: how many of them are boto3's; the rest are a transfer's
    """
    # Here, because Airflow takes seconds to import, and a wrong command line need not wait for it.
    from log_rollup_plugin.hook import PooledS3Hook

    return PooledS3Hook.for_stream(stream, CONNECTIONS, control_connections)
