"""Keeps a started server from outliving whoever started it, a killed pytest included.

Run by path, with the standard library alone: ``python -I -S guard.py LOG COMMAND...``. The guard starts the
command, prints its process id, and ends it (SIGTERM, SIGKILL after a grace time) as soon as its own standard
input is closed: the kernel closes that pipe when the starter ends, in whatever way it ends.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

GRACE_SECONDS = 3.0


def main(log_path: str, command: list[str]) -> int:
    """Run the command until it ends or until standard input is closed; the command's exit code."""
    with Path(log_path).open("ab", buffering=0) as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    print(child.pid, flush=True)

    def end_child() -> None:
        child.terminate()
        killer = threading.Timer(GRACE_SECONDS, child.kill)
        killer.daemon = True
        killer.start()

    def watch_starter() -> None:
        # Not sys.stdin: a thread that waits inside its buffer makes the interpreter's own exit fail.
        while os.read(0, 4096):
            pass
        end_child()

    signal.signal(signal.SIGTERM, lambda *_: end_child())
    threading.Thread(target=watch_starter, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
