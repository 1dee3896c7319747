"""The init step of the compose file's demo: make the raw hours, then run the init step of every deployment.

    python -m dev.demo.init_demo

DEMO_HOURS is the number of raw hours, DEMO_OBJECTS the number of raw objects in each, DEMO_LAYOUT their layout.
The hours are written next to the streams file that LOG_ROLLUP_STREAMS names, unless they exist already.
"""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from deploy import init_airflow
from dev.demo.settings import InvalidSettingError, one_of, positive
from dev.made_logs.dataset import NotEnoughDiskError, make_dataset, read_dataset
from dev.made_logs.layouts import LAYOUTS, PLAIN
from dev.stack.paths import StackPaths

T = TypeVar("T")


def main() -> int:
    """Make the hours if DEMO_HOURS is set, and return the exit status of :mod:`deploy.init_airflow`.

    It is 1, without calling that, if a setting is wrong or the disk has too little space.
    """
    if os.environ.get("DEMO_HOURS"):
        try:
            _make_missing_hours()
        except (InvalidSettingError, NotEnoughDiskError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
    return init_airflow.main()


def _make_missing_hours() -> None:
    """Make the hours, unless they exist.

    :raises InvalidSettingError: if a setting is wrong, or the existing hours have another layout
    :raises NotEnoughDiskError: before anything is written
    """
    hours = _setting("DEMO_HOURS", positive)
    objects = _setting("DEMO_OBJECTS", positive)
    layout_name = _setting("DEMO_LAYOUT", partial(one_of, tuple(LAYOUTS)), PLAIN)
    paths = StackPaths(Path(os.environ["LOG_ROLLUP_STREAMS"]).parent)
    found = read_dataset(paths)
    if found is None:
        make_dataset(paths, hours, objects, datetime.now(UTC), print, layout_name=layout_name)
    elif found.layout_name != layout_name:
        raise InvalidSettingError(
            f"DEMO_LAYOUT is {layout_name}, but the layout of the hours in {paths.state} is {found.layout_name}: "
            f"set DEMO_LAYOUT={found.layout_name}, or remove them and the database with "
            "`docker compose down --volumes`"
        )


def _setting(name: str, read: Callable[[str], T], default: str = "") -> T:
    try:
        return read(os.environ.get(name, default))
    except InvalidSettingError as error:
        raise InvalidSettingError(f"{name}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
