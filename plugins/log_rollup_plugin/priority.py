"""Task priority by the age of the hour: newer hours get connections and workers first."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow.task.priority_strategy import PriorityWeightStrategy

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

# The weight is 1, plus 1 for each hour by which the hour is younger than this.
FRESH_HOURS = 24


class FreshHoursFirst(PriorityWeightStrategy):
    """Weights the tasks of a run by the age of its hour: 25 for the newest hour, 1 for a day and older.

    So a backfill, a long catchup or a rerun of an old hour does not delay the newest hour, whichever was queued
    first. A run triggered by hand has the weight of the newest hour, unless its id contains an older one.
    """

    # A class method, because Airflow 3.3.2 calls it on the class for a mapped task.
    @classmethod
    def get_weight(cls, ti: "TaskInstance") -> int:
        """The weight of a task instance; called when it is created or cleared."""
        # The run's id is all that is known here, like `scheduled__2026-11-23T08:00:00+00:00`.
        stamp = ti.run_id.partition("__")[2][: len("2026-11-23T08:00:00")]
        try:
            age = datetime.now(UTC) - datetime.fromisoformat(stamp).replace(tzinfo=UTC)
        except ValueError:
            return 1 + FRESH_HOURS
        return 1 + max(0, FRESH_HOURS - max(0, int(age.total_seconds() // 3600)))

    def __repr__(self) -> str:
        """The class path: Airflow 3.3.2 serialises the rule as this for a mapped task and for default_args."""
        return f"{type(self).__module__}.{type(self).__qualname__}"
