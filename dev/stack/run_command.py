"""Runs a command in the environment of the stack that `make up` has left running.

    python -m dev.stack.run_command COMMAND [ARGUMENT ...]

So `./log-rollup` and `airflow` talk to its Airflow and its S3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dev.stack.local_stack import S3, LocalStack, read_record
from dev.stack.paths import PROJECT, StackPaths


class NothingRunsError(Exception):
    """There is no stack whose environment could be had."""


def environment(paths: StackPaths) -> dict[str, str]:
    """Return the whole environment of the Airflow processes that run under a state directory.

    :raises NothingRunsError: when there are none, or they have no S3 any more.
    """
    record = read_record(paths)
    if record is None or S3 in {process.name for process in record.dead()}:
        raise NothingRunsError(f"nothing is running in {paths.state}: start it with `make up`")
    addresses = record.addresses
    return LocalStack(paths.state, ui_port=addresses.ui_port, s3_port=addresses.s3_port).env


def main(command: Sequence[str]) -> None:
    """Become the command, with the caller's own PYTHONPATH where it has one: that is no setting of the stack's."""
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
