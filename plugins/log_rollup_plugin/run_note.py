"""The note that a finished run bears: what it made of its hour."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.units import format_size

# The only task whose result is told.
COMPLETE_HOUR = "complete_hour"
# What :func:`describe` says; a note of any other form is a person's, or of whoever triggered the run.
_OURS = re.compile(r"[0-9,]+ objects, [0-9.]+ [KMGT]?i?B -> [0-9,]+ parts(, verified by CRC)?")


def describe(totals: Mapping[str, Any]) -> str:
    """``29,812 objects, 16.1 GiB -> 514 parts, verified by CRC``

    :param totals: what complete_hour returns
    :raises LookupError: if it is something else
    """
    parts = totals["parts"]
    # Each part is proven by its CRC, whether the store keeps that or it was read back.
    proven = ", verified by CRC" if parts else ""
    return f"{totals['objects']:,} objects, {format_size(totals['bytes_in'])} -> {parts:,} parts{proven}"


def leave_note(dag_run: Any) -> str | None:
    """Note on a successful run what it made, if its Dag is one of this project; returns what was noted.

    A note that somebody has written is left alone. The statements go into the transaction of the caller, the
    scheduler, which holds the run's row; the savepoint keeps an error of theirs out of what it does itself.

    :param dag_run: the model, in its session
    """
    from airflow.models.dagrun import DagRunNote
    from airflow.models.xcom import XComModel
    from sqlalchemy import insert, select, update
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None or not dag_run.dag_id.startswith("log_rollup_"):
        return None
    # Of the connection: the scheduler takes the commit of a nested session for one of its own. Two of them,
    # because SQLite refuses to write in a transaction that has read, if anybody has written since.
    connection = session.connection()
    mine = DagRunNote.dag_run_id == dag_run.id
    with connection.begin_nested():
        totals = connection.scalar(
            select(XComModel.value).where(
                XComModel.dag_id == dag_run.dag_id,
                XComModel.run_id == dag_run.run_id,
                XComModel.task_id == COMPLETE_HOUR,
                XComModel.map_index == -1,
                XComModel.key == "return_value",
            )
        )
        found = connection.execute(select(DagRunNote.content, DagRunNote.user_id).where(mine)).one_or_none()
    if not isinstance(totals, dict):
        return None
    if found and (found.user_id is not None or not _OURS.fullmatch(found.content or "")):
        return None
    values = {"content": describe(totals), "updated_at": datetime.now(UTC)}
    with connection.begin_nested():
        if found:
            connection.execute(update(DagRunNote).where(mine).values(values))
        else:
            new = {"dag_run_id": dag_run.id, "created_at": values["updated_at"]}
            connection.execute(insert(DagRunNote).values({**values, **new}))
    return str(values["content"])
