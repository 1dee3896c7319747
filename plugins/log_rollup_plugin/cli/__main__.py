"""Entry point of ``log-rollup``, or ``python -m log_rollup_plugin.cli``."""

import logging
import os
import sys

from log_rollup_plugin.cli.main import main

# For Airflow, which is imported later. As its own commands have it, connections are looked up in the metadata
# database too.
os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING")
# It warns of each word of a connection's extra that is too short to be masked in logs, such as "path".
logging.getLogger("airflow.sdk._shared.secrets_masker.secrets_masker").setLevel(logging.ERROR)

if __name__ == "__main__":
    sys.exit(main())
