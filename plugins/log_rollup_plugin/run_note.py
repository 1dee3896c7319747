"""The note on a successful run: the totals of its hour."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from include.log_rollup.hour.group_summary import GroupChanges, group_name
from include.log_rollup.units import format_size

# The task whose result the note shows.
COMPLETE_HOUR = "complete_hour"
# The mapped task whose results the note shows, in the Dag that deletes raw objects.
EXPIRE_RAW = "expire_raw"
EXPIRE_DAG_ID = "log_rollup_expire"
# A note of this module. Any other note was written by a person, or when the run was triggered.
_OUR_NOTE = re.compile(
    r"[0-9,]+ objects, [0-9.]+ [KMGT]?i?B -> [0-9,]+ parts(, verified by CRC)?"
    r"(; left out: [0-9a-z, ]+)?(; [0-9,]+ groups.*|\. No .*)?"
    r"|Raw objects that (expired|can expire): .*"
)
# The length of a note in Airflow's database.
_MAX_LENGTH = 1000


def describe(totals: Mapping[str, Any]) -> str:
    """The text of the note, like ``29,812 objects, 16.1 GiB -> 514 parts, verified by CRC``.

    Then come the objects that ``include``, ``exclude`` and ``unjoinable: skip`` have left out, and those that
    belong to no hour. With groups, their number, the largest ones, and the new and vanished ones follow.

    :param totals: the return value of the task complete_hour
    :raises LookupError: if it is not
    """
    parts = totals["parts"]
    # Each part is proven by its CRC, either the one that the store keeps or one computed from its bytes.
    proven = ", verified by CRC" if parts else ""
    text = f"{totals['objects']:,} objects, {format_size(totals['bytes_in'])} -> {parts:,} parts{proven}"
    # Hidden objects and folder placeholders are usual; these are the stream's own choice, or not expected.
    left_out = totals.get("left_out", {})
    kinds = ("excluded", "unjoinable", "unmatched")
    chosen = [f"{left_out[kind]:,} {kind}" for kind in kinds if left_out.get(kind)]
    if chosen:
        text += f"; left out: {', '.join(chosen)}"
    if totals.get("why_empty"):
        text += f". {totals['why_empty']}"
    elif totals.get("groups") is not None:
        text += _describe_groups(totals)
    return text[:_MAX_LENGTH]


def describe_expiry(reports: Sequence[Mapping[str, Any]]) -> str:
    """The text of the note of a run that deletes raw objects, such as ``Raw objects that expired: app 300``.

    :param reports: the return values of the task expire_raw
    :raises LookupError: if they are not
    """
    deletes = any(report["deleted"] for report in reports)
    named = []
    for report in reports:
        text = f"{report['stream']} {report['objects']:,} ({format_size(report['bytes'])})"
        if deletes and not report["deleted"]:
            text += " not approved" if "approved" in report else " can expire"
        if report["left_alone"]:
            text += f", {report['left_alone']:,} hours left alone"
        named.append(text)
    what = "expired" if deletes else "can expire"
    return f"Raw objects that {what}: {'; '.join(named)}"[:_MAX_LENGTH]


def _describe_groups(totals: Mapping[str, Any]) -> str:
    count, largest = totals["groups"], totals["largest_groups"]
    named = ", ".join(f"{group_name(one['captures'])} {format_size(one['bytes_in'])}" for one in largest)
    text = f"; {count:,} groups"
    if named:
        text += f": {named}{', …' if count > len(largest) else ''}"
    compared = (("the last run", "group_changes"), ("the hour before", "since_hour_before"))
    for since, key in compared:
        if totals.get(key):
            text += f"; compared with {since}: {GroupChanges.from_json(totals[key])}"
    return text


def is_ours(note: str) -> bool:
    """Whether this module has written a note; no person has changed it then."""
    return _OUR_NOTE.fullmatch(note) is not None


def leave_note(dag_run: Any) -> str | None:
    """Put the totals of the hour, or what expired, into the note of a successful run of this project's Dags.

    A note written by a person is not changed. The statements run in the transaction of the scheduler, which holds
    a lock on the run's row; savepoints protect that transaction from their errors.

    :param dag_run: Airflow's model, attached to its session
    :returns: the note, or None if nothing was written
    """
    from airflow.models.dagrun import DagRunNote
    from airflow.models.xcom import XComModel
    from sqlalchemy import insert, select, update
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None or not dag_run.dag_id.startswith("log_rollup_"):
        return None
    # Savepoints of the connection, because the scheduler would take the commit of a nested session for its own.
    # One to read and one to write, because SQLite refuses to write in a transaction that has read if another
    # connection has written since.
    connection = session.connection()
    of_this_run = DagRunNote.dag_run_id == dag_run.id
    expires = dag_run.dag_id == EXPIRE_DAG_ID
    with connection.begin_nested():
        results = connection.scalars(
            select(XComModel.value)
            .where(
                XComModel.dag_id == dag_run.dag_id,
                XComModel.run_id == dag_run.run_id,
                XComModel.task_id == (EXPIRE_RAW if expires else COMPLETE_HOUR),
                XComModel.key == "return_value",
            )
            .order_by(XComModel.map_index)
        ).all()
        found = connection.execute(
            select(DagRunNote.content, DagRunNote.user_id).where(of_this_run)
        ).one_or_none()
    if not results or not all(isinstance(result, dict) for result in results):
        return None
    if found and (found.user_id is not None or not is_ours(found.content or "")):
        return None
    text = describe_expiry(results) if expires else describe(results[0])
    values = {"content": text, "updated_at": datetime.now(UTC)}
    with connection.begin_nested():
        if found:
            connection.execute(update(DagRunNote).where(of_this_run).values(values))
        else:
            new = {"dag_run_id": dag_run.id, "created_at": values["updated_at"]}
            connection.execute(insert(DagRunNote).values({**values, **new}))
    return str(values["content"])
