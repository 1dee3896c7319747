"""Ends a server when the process that started it ends, even if that process is killed.

Run by path, with the standard library only: ``python -I -S guard.py LOG COMMAND...``. The guard starts the
command, prints its process id, and ends it (SIGTERM, then SIGKILL after a grace period) when its own standard
input is closed. The kernel closes that pipe when the process that started the guard ends, however it ends.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

GRACE_SECONDS = 3.0


def main(log_path: str, command: list[str]) -> int:
    """Run the command until it ends or standard input is closed, and return the command's exit code."""
    with Path(log_path).open("ab", buffering=0) as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    print(child.pid, flush=True)

    def end_child() -> None:
        child.terminate()
        killer = threading.Timer(GRACE_SECONDS, child.kill)
        killer.daemon = True
        killer.start()

    def wait_for_end_of_input() -> None:
        # Not sys.stdin: the interpreter cannot exit cleanly while a thread waits inside that buffer.
        while os.read(0, 4096):
            pass
        end_child()

    signal.signal(signal.SIGTERM, lambda *_: end_child())
    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
