"""Entry point of ``log-rollup``, or ``python -m log_rollup_plugin.cli``."""

import logging
import os
import signal
import sys
from types import FrameType

if __name__ == "__main__":
    # The modules take a second to load. Until then, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from log_rollup_plugin.cli.main import main
from log_rollup_plugin.cli.output import printable_record
from log_rollup_plugin.cli.standard_streams import discard, open_missing_streams

# Set before Airflow is imported. "server" lets it look up connections in the metadata database too, as its own
# commands do.
os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING")


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Stop after the requests in progress have ended; a second Ctrl-C stops at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def run() -> int:
    """Run the command, and return its exit code."""
    try:
        return main()
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            # Python would try it again at exit, fail, and end with 120.
            discard(sys.stderr)


if __name__ == "__main__":
    open_missing_streams()
    signal.signal(signal.SIGINT, interrupt)
    logging.setLogRecordFactory(printable_record)
    sys.exit(run())
