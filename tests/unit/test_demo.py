"""What the demo tells of a run once it has ended."""

from datetime import UTC, datetime, timedelta

from demo.airflow_api import TaskInstance
from demo.follow import describe_split

BEGAN = datetime(2026, 11, 24, 8, tzinfo=UTC)


def at_work(task_id: str, map_index: int, start: float | None, end: float | None) -> TaskInstance:
    """A task that was at work between two moments, in seconds after the run began."""
    moments = (None if one is None else BEGAN + timedelta(seconds=one) for one in (start, end))
    return TaskInstance("run", task_id, map_index, "success", 1, "pool", 1, *moments)


def test_a_run_is_split_into_its_steps_in_their_order_and_what_lies_between_them() -> None:
    tasks = [
        at_work("complete", -1, 17, 18),
        at_work("pack", 0, 5, 9),
        at_work("pack", 1, 5.5, 11),
        at_work("pack", 2, 12, 15),
        at_work("plan", -1, 1, 4),
        at_work("skipped", -1, None, None),
    ]
    assert describe_split(20, tasks) == ("plan 3.0 s, pack (3) 10.0 s, complete 1.0 s, no task at work 7.0 s")


def test_a_run_without_a_task_is_all_waiting() -> None:
    assert describe_split(2.5, []) == "no task at work 2.5 s"
