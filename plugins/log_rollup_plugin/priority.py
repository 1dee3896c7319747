"""Which hours go first when connections or workers are short: the freshest."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow.task.priority_strategy import PriorityWeightStrategy

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

# An hour gets one for being an hour, and one more for each hour that it is younger than this.
FRESH_HOURS = 24


class FreshHoursFirst(PriorityWeightStrategy):
    """Weighs the tasks of a run by the age of its hour: from 25 for the present one to 1 for a day and more.

    So a backfill, a catchup of long ago or the rerun of an old hour waits for the connections that the present
    hour needs, whatever the order in which they asked. Hours of equal weight go in their own order. A run that
    somebody made by hand counts as fresh, unless its id tells an old hour.
    """

    # On the class, because that is where Airflow 3.3.2 calls it for a mapped task.
    @classmethod
    def get_weight(cls, ti: "TaskInstance") -> int:
        """The weight of a task instance, when it is created or cleared."""
        # All that Airflow gives of the run at this moment is its id: `scheduled__2026-11-23T08:00:00+00:00`.
        stamp = ti.run_id.partition("__")[2][: len("2026-11-23T08:00:00")]
        try:
            age = datetime.now(UTC) - datetime.fromisoformat(stamp).replace(tzinfo=UTC)
        except ValueError:
            return 1 + FRESH_HOURS
        return 1 + max(0, FRESH_HOURS - max(0, int(age.total_seconds() // 3600)))

    def __repr__(self) -> str:
        """What Airflow 3.3.2 writes for a mapped task and for default_args, and knows the rule by: its name."""
        return f"{type(self).__module__}.{type(self).__qualname__}"
