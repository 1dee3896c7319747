"""What Airflow loads from the plugins folder at start."""

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from log_rollup_plugin import listener
from log_rollup_plugin.priority import FreshHoursFirst


class LogRollupPlugin(AirflowPlugin):
    """Registers the listener that creates the pool, and the order in which hours get its slots."""

    name = "log_rollup"
    listeners: ClassVar[list[Any]] = [listener]
    priority_weight_strategies: ClassVar[list[Any]] = [FreshHoursFirst]
