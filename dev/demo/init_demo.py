"""The init step of the compose file's demo: make the raw hours, then run the init step of every deployment.

    python -m dev.demo.init_demo

DEMO_HOURS is the number of raw hours, DEMO_OBJECTS the number of raw objects in each. They are written next to the
streams file that LOG_ROLLUP_STREAMS names, unless they exist already.
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from deploy import init_airflow
from dev.made_logs.dataset import make_dataset, read_dataset
from dev.stack.paths import StackPaths


def main() -> int:
    """Make the hours if DEMO_HOURS is set, and return the exit status of :mod:`deploy.init_airflow`."""
    hours = os.environ.get("DEMO_HOURS")
    if hours:
        _make_missing_hours(int(hours), int(os.environ["DEMO_OBJECTS"]))
    return init_airflow.main()


def _make_missing_hours(hours: int, objects: int) -> None:
    paths = StackPaths(Path(os.environ["LOG_ROLLUP_STREAMS"]).parent)
    if read_dataset(paths) is None:
        make_dataset(paths, hours, objects, datetime.now(UTC), print)


if __name__ == "__main__":
    sys.exit(main())
