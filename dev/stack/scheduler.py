"""Runs Airflow's scheduler with the modules that tasks need: ``python -m dev.stack.scheduler [ARGUMENT ...]``.

LocalExecutor forks tasks from the scheduler. Without these modules and boto3's model of S3, each task loads them
again, which takes more CPU time than most tasks themselves.
"""

from __future__ import annotations

import functools
import gc
import sys

# First: it adds the plugins folder to sys.path.
import airflow.settings  # noqa: F401
import boto3
import botocore.loaders
import botocore.session
from airflow.__main__ import main

import log_rollup_plugin.form
import log_rollup_plugin.notify
import log_rollup_plugin.operators
import log_rollup_plugin.rerun
import log_rollup_plugin.retries
import log_rollup_plugin.sensor  # noqa: F401
from dev.stack.environment import REGION

if __name__ == "__main__":
    # Also for the tasks, in which almost no object is garbage; the default is 700 objects.
    gc.set_threshold(50_000)
    # A loader keeps the models that it has read; otherwise each session of boto3 makes its own.
    botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)
    boto3.Session().client("s3", region_name=REGION)
    sys.argv = ["airflow", "scheduler", *sys.argv[1:]]
    main()
