"""Airflow's simple auth manager, with users who may read only one Dag."""

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class OneDagEach(SimpleAuthManager):
    """Users may do what their role allows; ``viewer-of-DAG_ID`` may do it only on that Dag."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **how: Any) -> bool:
        """Authorize access to one Dag, or to all if no details are given."""
        kind, _, dag_id = user.get_name().partition("-of-")
        if kind == "viewer" and dag_id and (details is None or details.id != dag_id):
            return False
        return bool(super().is_authorized_dag(user=user, details=details, **how))
