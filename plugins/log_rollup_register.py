"""The Airflow plugin of this project."""

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from log_rollup_plugin import hours_page, listener
from log_rollup_plugin.priority import FreshHoursFirst


class LogRollupPlugin(AirflowPlugin):
    """Registers the listener, the priority of newer hours, and the page Hours."""

    name = "log_rollup"
    listeners: ClassVar[list[Any]] = [listener]
    priority_weight_strategies: ClassVar[list[Any]] = [FreshHoursFirst]
    fastapi_apps: ClassVar[list[Any]] = [hours_page.FASTAPI_APP]
    external_views: ClassVar[list[Any]] = [hours_page.EXTERNAL_VIEW]
