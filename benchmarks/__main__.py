"""Runs one of the measurements: ``python -m benchmarks [COMMAND]``, see ``--help``."""

import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module

from benchmarks.settings import Settings, parse


def main() -> int:
    """The exit code: 0 if it could be measured, 1 if we failed ourselves, 2 if it cannot run here."""
    settings = parse(sys.argv[1:])
    # Whatever ends this process also has to end the servers and programs that it started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    modules: Mapping[str, str] = {"profile": "profiling"}
    module = import_module(f"benchmarks.{modules.get(settings.command, settings.command)}")
    command: Callable[[Settings], int] = getattr(module, settings.command)
    try:
        return command(settings)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
