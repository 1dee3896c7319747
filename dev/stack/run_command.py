"""Runs a command in the environment of the stack that `make up` started.

    python -m dev.stack.run_command COMMAND [ARGUMENT ...]

So `./log-rollup` and `airflow` use the Airflow and the S3 server of that stack.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dev.stack.local_stack import LocalStack
from dev.stack.paths import PROJECT, StackPaths
from dev.stack.stack_record import S3, read_record


class NothingRunsError(Exception):
    """No stack is running."""


def environment(paths: StackPaths) -> dict[str, str]:
    """Return the complete environment of the Airflow processes that run below a state directory.

    :raises NothingRunsError: if no stack is running, or its S3 server has ended
    """
    record = read_record(paths)
    if record is None or S3 in {process.name for process in record.dead()}:
        raise NothingRunsError(f"nothing is running in {paths.state}: start it with `make up`")
    addresses = record.addresses
    return LocalStack(paths.state, ui_port=addresses.ui_port, s3_port=addresses.s3_port).env


def main(command: Sequence[str]) -> None:
    """Replace this process with the command; keep the PYTHONPATH of the caller, if set."""
    env = environment(StackPaths(PROJECT / ".local"))
    os.execvpe(
        command[0], list(command), env | {"PYTHONPATH": os.environ.get("PYTHONPATH", env["PYTHONPATH"])}
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except NothingRunsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
