"""Entry point of ``log-rollup``, or ``python -m log_rollup_plugin.cli``."""

import logging
import os
import signal
import sys
from types import FrameType

from log_rollup_plugin.cli.main import main
from log_rollup_plugin.cli.output import printable_record

# Set before Airflow is imported. "server" lets it look up connections in the metadata database too, as its own
# commands do.
os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING")


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Stop after the requests in progress have ended; a second Ctrl-C stops at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    logging.setLogRecordFactory(printable_record)
    sys.exit(main())
