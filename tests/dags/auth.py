"""Airflow's simple auth manager, with users who may read one Dag alone."""

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class OneDagEach(SimpleAuthManager):
    """Users may do what their role allows, but ``viewer-of-DAG_ID`` on that Dag alone."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **how: Any) -> bool:
        """As Airflow asks it, for one Dag or for all."""
        kind, _, mine = user.get_name().partition("-of-")
        if kind == "viewer" and mine and (details is None or details.id != mine):
            return False
        return bool(super().is_authorized_dag(user=user, details=details, **how))
