"""Runs one benchmark: ``python -m benchmarks [COMMAND]``, see ``--help``."""

import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module

from benchmarks.settings import Settings, parse


def main() -> int:
    """Return the exit code: 0 after a measurement, 1 if this project's own step failed."""
    settings = parse(sys.argv[1:])
    # Exit normally on these signals, so that the started servers and programs end too.
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
