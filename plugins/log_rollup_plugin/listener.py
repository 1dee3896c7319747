"""Creates the pool that caps the S3 connections of the whole fleet, where it is missing."""

import json
import logging
from typing import Any

from airflow.listeners import hookimpl

from include.log_rollup.streams import INCLUDE

log = logging.getLogger(__name__)


@hookimpl
def on_starting(component: Any) -> None:
    """Create what is missing of the pools in ``include/pools.json``, when a scheduler starts.

    A pool that exists is left as it is: an operator may have resized it. Without its pool a task would stay
    scheduled for ever.
    """
    # The listener is loaded in every process; only the scheduler has the database and needs the pool.
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    if not isinstance(getattr(component, "job_runner", component), SchedulerJobRunner):
        return
    for name, pool in json.loads((INCLUDE / "pools.json").read_text(encoding="utf-8")).items():
        with create_session() as session:
            if Pool.get_pool(name, session=session) is None:
                Pool.create_or_update_pool(
                    name, pool["slots"], pool["description"], pool["include_deferred"], session=session
                )
                log.info("created the pool %s with %d slots", name, pool["slots"])
