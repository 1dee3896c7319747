"""What happens beside the tasks: the missing pool is created at start, and a finished run gets its note."""

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
    # Tasks call this too, but have no database, and must not load its models.
    if getattr(component, "__tablename__", None) == "job":
        create_missing_pools()


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Say in the run's note what it made; called by the scheduler, which must not suffer from it."""
    try:
        leave_note(dag_run)
    except Exception:
        log.exception("could not leave a note on the run %s of %s", dag_run.run_id, dag_run.dag_id)


def create_missing_pools() -> None:
    """Create what is missing of the pools in ``include/pools.json``; needs the metadata database.

    A pool that exists is left as it is: an operator may have resized it. Without its pool a task would stay
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
            # Scheduler, Dag processor and triggerer start together; another one was faster.
            log.info("the pool %s is there already", name)
