"""Airflow listener: creates missing pools at start, and puts a note on successful runs."""

import json
import logging
from typing import Any

from airflow.listeners import hookimpl

from include.log_rollup.streams import INCLUDE
from log_rollup_plugin.run_note import leave_note

log = logging.getLogger(__name__)


@hookimpl
def on_starting(component: Any) -> None:
    """Create the pools when a scheduler, a Dag processor or a triggerer starts."""
    # Airflow calls this in tasks too. They have no database, and must not import its models.
    if getattr(component, "__tablename__", None) == "job":
        create_missing_pools()


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Put a note on the run. The scheduler calls this, so it never raises."""
    try:
        leave_note(dag_run)
    except Exception:
        log.exception("could not write the note of run %s of %s", dag_run.run_id, dag_run.dag_id)


def create_missing_pools() -> None:
    """Create those pools of ``include/pools.json`` that do not exist; needs the metadata database.

    A pool that exists is not changed, because an operator may have resized it. Tasks of a missing pool stay
    scheduled for ever.
    """
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import IntegrityError

    for name, pool in json.loads((INCLUDE / "pools.json").read_text(encoding="utf-8")).items():
        try:
            with create_session() as session:
                if Pool.get_pool(name, session=session) is None:
                    session.add(Pool(pool=name, **pool))
                    log.info("created the pool %s with %d slots", name, pool["slots"])
        except IntegrityError:
            # Scheduler, Dag processor and triggerer start at the same time: another one has created it.
            log.info("the pool %s exists already", name)
