"""Entry point of ``log-rollup``, or ``python -m log_rollup_plugin.cli``."""

import os
import sys

from log_rollup_plugin.cli.main import main

# For Airflow, which is imported later. As its own commands have it, connections are looked up in the metadata
# database too.
os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING")

if __name__ == "__main__":
    sys.exit(main())
