"""Entry point of ``log-rollup``, or ``python -m log_rollup_plugin.cli``."""

import os
import sys

# As Airflow's own commands have it: connections are looked up in the metadata database too.
os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")

from log_rollup_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
