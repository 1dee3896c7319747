"""Runs Airflow's scheduler with the modules that tasks need: ``python -m dev.stack.scheduler [ARGUMENT ...]``.

LocalExecutor forks tasks from the scheduler. Without these modules each task imports them again, which takes more
CPU time than most tasks themselves.
"""

from __future__ import annotations

import sys

# First: it adds the plugins folder to sys.path.
import airflow.settings  # noqa: F401
import boto3.s3.inject  # noqa: F401
from airflow.__main__ import main

import log_rollup_plugin.form
import log_rollup_plugin.notify
import log_rollup_plugin.operators
import log_rollup_plugin.rerun
import log_rollup_plugin.retries
import log_rollup_plugin.sensor  # noqa: F401

if __name__ == "__main__":
    sys.argv = ["airflow", "scheduler", *sys.argv[1:]]
    main()
