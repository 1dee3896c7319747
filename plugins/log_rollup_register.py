"""What Airflow loads from the plugins folder at start."""

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from log_rollup_plugin import listener


class LogRollupPlugin(AirflowPlugin):
    """Registers the listener that creates the pool."""

    name = "log_rollup"
    listeners: ClassVar[list[Any]] = [listener]
